"""How a metric answers to the values of a hyperparameter: one point per value with its interval over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.figures.base import SuitePicture, drawing, grid, left_out, log_axis, plain, save, short
from harness.report.figures.scores import dice_of, means_of, rows_of
from harness.report.figures.sweeps import MAX_PANELS, Sweep, sweeps_of
from harness.report.frames import Frames
from harness.report.layouts import DEFAULT
from harness.report.palette import COLOURS, INK
from harness.report.robustness import interval
from harness.report.tables import of_measure, over_classes

LOG_FROM = 20.0  # the values of a sweep span more than this factor: logarithmic axis


def response_points(frames: Frames, group: str, model: str, sweep: Sweep) -> pd.DataFrame:
    """Mean DSC of each value of a sweep with its 95 % interval over repeats, see `harness.report.robustness.interval`.

    Returns:
        Columns label, value, mean, low, high (per cent; the last two NaN with one repeat) and runs, a list; in planned
        order, without values that were not measured.
    """
    names = ["label", "value", "mean", "low", "high", "runs"]
    measure = dice_of(rows_of(frames, group, model))
    if measure is None:
        return pd.DataFrame(columns=names)
    means = over_classes(of_measure(means_of(frames, group, model), measure))
    found = []
    for label, value in sweep.settings:
        own = means.loc[means["loss"] == label, ["fold", "seed", "score"]].dropna(subset="score")
        runs = [(int(f), int(s), float(x) * measure.scale) for f, s, x in own.itertuples(index=False)]
        if runs:
            found.append((label, value, *interval(runs), [x for _, _, x in runs]))
    return pd.DataFrame(found, columns=names)


def sweep_responses(frames: Frames, group: str, model: str, folder: Path, name: str) -> SuitePicture | None:
    """Mean DSC against the value, one panel per sweep; None where no sweep has two measured values."""
    there = set(rows_of(frames, group, model)["loss"].unique())
    sweeps = sweeps_of([x for x in frames.losses if x in there])
    points = [(s, found) for s in sweeps if len(found := response_points(frames, group, model, s)) > 1]
    if not points:
        return None
    shown = points[:MAX_PANELS]
    across = min(3, len(shown))
    title = f"DSC by hyperparameter on {plain(group)}, {plain(model)}"
    with drawing():
        size = (3.2 * across if across > 1 else 5.2, 2.5 * math.ceil(len(shown) / across) + 0.1)
        figure = Figure(figsize=size, layout="constrained")
        axes = grid(figure, len(shown), across)
        for ax, (sweep, own) in zip(axes, shown, strict=True):
            _panel(ax, sweep, own)
        for ax in axes[::across]:
            ax.set_ylabel("DSC (%)")
        svg = save(figure, folder, name, title)
    several = any(len(runs) > 1 for _, own in shown for runs in own["runs"])
    bars = any(bool(own["high"].notna().any()) for _, own in shown)
    caption = (
        "One panel per loss and argument. Large points: mean over runs"
        + "; bars: 95 % interval over repeats (Student's t), for other trainings and these patients" * bars
        + ("; small points: runs" if several else "; one run each")
        + ("." if bars else ", so without intervals." if not several else " of one repeat, so without intervals.")
        + " Dotted: the loss with its default, in a tuned suite as it was tuned, where it stands in the suite."
        * any(DEFAULT in set(own["value"]) and _numeric(own) for _, own in shown)
        + left_out(len(shown), len(points), "sweeps")
    )
    return SuitePicture(name, svg, title, caption, group, model)


def _numeric(points: pd.DataFrame) -> bool:
    """Whether the values stand on an axis of numbers: those that move together by the first of them."""
    places = [_place(v) for v in points["value"] if v != DEFAULT]
    return len(places) > 1 and None not in places and len(set(places)) == len(places)


def _place(value: str) -> float | None:
    try:
        found = float(value.split(", ")[0])
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _panel(ax: Axes, sweep: Sweep, points: pd.DataFrame) -> None:
    numeric = _numeric(points)
    if numeric:
        for mean in points.loc[points["value"] == DEFAULT, "mean"]:
            ax.axhline(float(mean), color=INK, linewidth=0.9, linestyle=":")
        points = points[points["value"] != DEFAULT]
        places = [_place(v) or 0.0 for v in points["value"]]
        order = sorted(range(len(places)), key=lambda i: places[i])
        points, places = points.iloc[order], [places[i] for i in order]
        if places[0] > 0 and places[-1] > LOG_FROM * places[0]:
            log_axis(ax, places[0], places[-1])
    else:
        places = [float(i) for i in range(len(points))]
        ax.set_xticks(places, [short(v, 14) for v in points["value"]])
        ax.margins(x=0.15)
    _draw(ax, places, points, joined=numeric)
    first, *others = sweep.argument.split(", ")
    ax.set_xlabel(short(f"{first} (and {', '.join(others)})" if others and numeric else sweep.argument, 34))
    ax.set_title(short(sweep.title, 40))
    ax.yaxis.set_major_locator(MaxNLocator(6))


def _draw(ax: Axes, places: Sequence[float], points: pd.DataFrame, joined: bool) -> None:
    for place, runs in zip(places, points["runs"], strict=True):
        if len(runs) > 1:
            ax.plot([place] * len(runs), runs, linestyle="", marker="o", markersize=2.5, color=COLOURS[-1], alpha=0.6)
    bars = (points["high"] - points["mean"]).fillna(0.0)
    ax.errorbar(
        places, points["mean"], yerr=bars if bool((bars > 0).any()) else None, color=COLOURS[0], marker="o",
        markersize=5, markeredgewidth=0, elinewidth=1.1, capsize=2.5, linewidth=1.2, linestyle="-" if joined else "",
    )  # fmt: skip
