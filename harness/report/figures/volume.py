"""Where a loss gains: the difference of Dice against the volume of the object."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.report.figures.base import (
    Look,
    SuitePicture,
    alike,
    drawing,
    grid,
    left_out,
    log_axis,
    looks,
    plain,
    save,
    short,
)
from harness.report.figures.scores import dice_of, patient_scores, rows_of
from harness.report.frames import Frames
from harness.report.palette import INK

MAX_PANELS = 24  # more are too small to read; all are in cases.csv
MAX_POINTS = 2500
MAX_MEDIANS = 60
LEAST = 7
_SHARE = 0.3


def reference_volumes(rows: pd.DataFrame, profile: str) -> pd.Series:
    """Voxels of the reference, TP + FN, by (patient, class): sum over a patient's cases, mean over runs."""
    counts = rows[rows["metric"].isin(("tp", "fn")) & (rows["profile"] == profile)]
    run = ["loss", "fold", "seed"]
    sums = counts.groupby([*run, "patient", "class"], sort=False, observed=True)["value"].sum()
    out: pd.Series = sums.groupby(level=["patient", "class"], sort=False, observed=True).mean()
    return out


def volume_effects(frames: Frames, group: str, model: str, baseline: str | None = None) -> pd.DataFrame:
    """Difference of DSC to the baseline, or to the mean over the losses, per patient and class.

    Args:
        frames: The prepared frames.
        group: The data set.
        model: The model.
        baseline: Label of a loss. None: the mean over the losses that have a number for every patient and class.

    Returns:
        Columns loss, patient, class, volume (voxels of the reference), effect (points); without the baseline itself,
        and without what is not in the reference. Empty where there is nothing to compare with.

    Raises:
        BenchError: The baseline is no loss of this suite.
    """
    if baseline is not None and baseline not in frames.losses:
        raise BenchError(
            f"baseline: {baseline!r} is no loss of this suite; expected one of {', '.join(frames.losses)}."
        )
    names = ["loss", "patient", "class", "volume", "effect"]
    rows = rows_of(frames, group, model)
    measure = dice_of(rows)
    if measure is None:
        return pd.DataFrame(columns=names)
    volumes = reference_volumes(rows, measure.profile)
    scores = patient_scores(rows, measure)
    table = scores.pivot(index=["patient", "class"], columns="loss", values="score")
    volume = pd.Series({pair: float(volumes.get(pair, 0.0)) for pair in table.index}, dtype=float)
    table = table[(volume > 0).to_numpy()]
    if baseline is None:
        against = table.dropna(axis=1).mean(axis=1)
    else:
        against = table[baseline] if baseline in table else pd.Series(math.nan, table.index)
    losses = [x for x in frames.losses if x in table.columns and x != baseline]
    parts = []
    for loss in losses:
        effect = (table[loss] - against).dropna()
        part = effect.rename("effect").reset_index().assign(loss=loss)
        parts.append(part.assign(volume=[volume[pair] for pair in effect.index]))
    return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)


def running_median(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Medians over a window that moves along `x`: 30 % of the points and at least `LEAST`; nothing for fewer points."""
    n = len(x)
    if n < LEAST:
        return np.array([]), np.array([])
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    width = max(LEAST, round(_SHARE * n))
    starts = np.unique(np.linspace(0, n - width, min(MAX_MEDIANS, n - width + 1)).round().astype(int))
    return (
        np.array([np.median(x[i : i + width]) for i in starts]),
        np.array([np.median(y[i : i + width]) for i in starts]),
    )


def volume_effect(
    frames: Frames, group: str, model: str, folder: Path, name: str, baseline: str | None = None
) -> SuitePicture | None:
    """Effect of each loss on DSC against the object's volume, a panel per loss; None with fewer than two losses."""
    effects = volume_effects(frames, group, model, baseline)
    losses = [x for x in frames.losses if x in set(effects["loss"])]
    if len(losses) < (2 if baseline is None else 1):
        return None
    shown, dots = losses[:MAX_PANELS], len(effects) <= MAX_POINTS
    parts = {x: effects[effects["loss"] == x] for x in shown}
    sizes = np.abs(np.concatenate([_drawn(p, dots=dots) for p in parts.values()]))
    limit = max(float(np.quantile(sizes, 0.98)) * 1.1, 0.1) if len(sizes) else 1.0
    small = len(shown) > 16
    across = min(6 if small else 4, len(shown))
    what = "the mean of the losses" if baseline is None else short(baseline)
    title = f"Difference of DSC to {what} by object volume on {plain(group)}, {plain(model)}"
    look = looks(frames.losses)
    with drawing():
        size = (9.2 if across > 2 else 4.8, (1.2 if small else 1.75) * math.ceil(len(shown) / across) + 0.7)
        figure = Figure(figsize=size, layout="constrained")
        axes = grid(figure, len(shown), across, sharex=True, sharey=True)
        for ax, (loss, part) in zip(axes, parts.items(), strict=True):
            _panel(ax, part, look[loss], limit, dots=dots)
            ax.set_title(short(loss, 24), fontsize=7 if small else 8.5, fontweight="normal" if small else "bold")
        alike(axes)
        for ax in axes:
            log_axis(ax, float(effects["volume"].min()), float(effects["volume"].max()), 3 if small else 4)
        figure.supxlabel("volume of the reference (voxels)", fontsize=8.5)
        figure.supylabel(f"difference to {what} (points of DSC)", fontsize=8.5)
        svg = save(figure, folder, name, title)
    beyond = int((sizes > limit).sum()) if dots else 0
    edge = f" {beyond} of {len(sizes)} lie beyond the frame, drawn as triangles at its edge." if beyond else ""
    caption = (
        ("A point is a patient and class, mean over runs. " if dots else "Too many patients and classes to draw each. ")
        + f"Line: running median over {_SHARE:.0%} of them. Above 0 the loss does better than {what}."
        + edge
        + left_out(len(shown), len(losses), "losses")
    )
    return SuitePicture(name, svg, title, caption, group, model)


def _drawn(rows: pd.DataFrame, *, dots: bool) -> NDArray[np.float64]:
    """What a panel shows: all points, or the medians alone."""
    y = rows["effect"].to_numpy(dtype=float)
    return y if dots else running_median(rows["volume"].to_numpy(dtype=float), y)[1]


def _panel(ax: Axes, rows: pd.DataFrame, look: Look, limit: float, *, dots: bool) -> None:
    x, y = rows["volume"].to_numpy(dtype=float), rows["effect"].to_numpy(dtype=float)
    ax.axhline(0, color=INK, linewidth=0.7)
    if dots:
        inside = np.abs(y) <= limit
        ax.plot(x[inside], y[inside], "o", color=look.colour, markersize=2.4, markeredgewidth=0, alpha=0.5)
        for sign, mark in ((1, "^"), (-1, "v")):
            out = ~inside & (np.sign(y) == sign)
            if out.any():
                at = np.full(int(out.sum()), sign * limit)
                ax.plot(x[out], at, mark, color=look.colour, markersize=4, markeredgewidth=0, clip_on=False)
    ax.plot(*running_median(x, y), color=INK, linewidth=1.6)
    ax.set_ylim(-limit, limit)
    ax.tick_params(labelsize=7, pad=1.5)
