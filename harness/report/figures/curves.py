"""Curves over epochs: the training loss, and the metrics of the validation cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from harness.errors import BenchError
from harness.metrics.table import metric_of
from harness.report.figures.base import (
    MAX_ROWS,
    Look,
    SuitePicture,
    alike,
    drawing,
    grid,
    left_out,
    legend,
    looks,
    lowest,
    plain,
    save,
    short,
)
from harness.report.frames import CURVE_COLUMNS, Frames, by_group
from harness.report.palette import DASHES
from harness.report.tables import measures

LOG_FROM = 50.0
MAX_EPOCHS = 400
TOGETHER = 12  # more lines than this in one panel cannot be followed
_VAL = "val_"


@dataclass(frozen=True)
class CurveKind:
    """What a figure of curves shows.

    Attributes:
        column: Of the curves.
        scale: What a value is multiplied with to be shown.
        label: Of the vertical axis, with the unit.
        title: Of the figure.
        logged: Whether the axis may be logarithmic, and each panel has a scale of its own.
        caption: What the reader must know of the values.
    """

    column: str
    scale: float
    label: str
    title: str
    logged: bool
    caption: str


@dataclass(frozen=True)
class CurvePicture(SuitePicture):
    """A figure of curves, which the page can draw itself from `harness.report.charts`."""

    kind: CurveKind | None = None


def loss_curves(frames: Frames, group: str, folder: Path, name: str) -> SuitePicture | None:
    """Training loss per epoch, one panel per model, one line per loss, as in Azad et al. 2023, Figure 4.

    More losses than can be followed in one panel get a panel each, with one line per model.
    """
    kind = CurveKind(
        "loss_value", 1.0, "training loss", f"Training loss per epoch on {plain(group)}", True,
        "The losses have different scales: compare the shape of the curves, not their height.",
    )  # fmt: skip
    return _curves(frames, group, kind, folder, name)


def validation_metrics(frames: Frames, group: str) -> list[str]:
    """Metrics that were recorded on the validation cases of a data set: columns `val_dice`, `val_nsd@2`."""
    own = frames.curves[frames.curves["group"] == group]
    out = []
    for column in own.columns:
        if column.startswith(_VAL) and column not in CURVE_COLUMNS and own[column].notna().any():
            try:
                metric_of(column.removeprefix(_VAL))
            except BenchError:
                continue  # a term of a loss that happens to be called so
            out.append(column.removeprefix(_VAL))
    return out


def validation_curves(frames: Frames, group: str, metric: str, folder: Path, name: str) -> SuitePicture | None:
    """A metric of the validation cases per epoch, one panel per model, one line per loss; None where none was kept."""
    column = _VAL + metric
    if column not in frames.curves:
        return None
    measure = next((m for m in measures(frames.of_group(group)) if m.metric == metric), None)
    kind, fraction = metric_of(metric)[0], metric_of(metric)[0].unit_kind == "fraction"
    title = measure.name if measure else kind.title
    label = measure.heading if measure else f"{title} (%)" if fraction else title
    words = CurveKind(
        column, 100.0 if fraction else 1.0, f"validation {label}",
        f"{title} of the validation cases per epoch on {plain(group)}", False,
        "Smaller is better. " * (not kind.higher_is_better) + "Validation cases, not the test cases of the tables.",
    )  # fmt: skip
    return _curves(frames, group, words, folder, name)


def finished(frames: Frames, group: str, column: str) -> pd.DataFrame:
    """Rows of measured and diverged runs where `column` is a finite number, which becomes `value`."""
    there = (frames.curves["group"] == group) & frames.curves["status"].isin(("ok", "diverged"))
    values = pd.to_numeric(frames.curves[column], errors="coerce").astype(float)
    return frames.curves.assign(value=values).loc[there & np.isfinite(values)]


def epoch_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, smallest and largest `value` over the runs of each epoch: columns epoch, mean, low, high.

    Of many epochs every k-th and the last one: the page stays small.
    """
    by_epoch = rows.groupby("epoch")["value"]
    parts = {"mean": by_epoch.mean(), "low": by_epoch.min(), "high": by_epoch.max()}
    found = pd.DataFrame(parts).reset_index()
    if len(found) <= MAX_EPOCHS:
        return found
    step = math.ceil(len(found) / MAX_EPOCHS)
    kept = (found.index % step == 0) | (found.index == len(found) - 1)
    return found.loc[kept].reset_index(drop=True)


def _curves(frames: Frames, group: str, kind: CurveKind, folder: Path, name: str) -> CurvePicture | None:
    rows = finished(frames, group, kind.column)
    rows = rows.assign(value=rows["value"] * kind.scale)
    models = by_group(frames, group, rows)
    if not models:
        return None
    losses = [x for x in frames.losses if x in set(rows["loss"])]
    with drawing():
        if len(losses) <= TOGETHER:
            figure, logged = _by_model(rows, models, losses, frames, kind)
            note = ""
        else:
            figure, logged = _by_loss(rows, models, losses[:MAX_ROWS], frames, kind)
            note = "One panel per loss. " + left_out(MAX_ROWS, len(losses), "losses").lstrip()
        svg = save(figure, folder, name, kind.title)
    caption = f"{_caption(rows, logged)} {note}{kind.caption}"
    return CurvePicture(name, svg, kind.title, caption, group, kind=kind)


def _by_model(
    rows: pd.DataFrame, models: list[str], losses: list[str], frames: Frames, kind: CurveKind
) -> tuple[Figure, bool]:
    across = min(len(models), 3)
    size = (min(4.4 * across + 0.4, 9.6) if across > 1 else 6.2, 3.0 * math.ceil(len(models) / across) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = grid(figure, len(models), across, sharey=not kind.logged)
    look = looks(frames.losses)
    logged, limits = False, None if kind.logged else _limits(rows)
    for i, (ax, model) in enumerate(zip(axes, models, strict=True)):
        own = rows[rows["model"] == model]
        logged |= curve_panel(ax, [(look[x], own[own["loss"] == x]) for x in losses], logged=kind.logged, limits=limits)
        ax.set(title=short(model, 44), xlabel="epoch", ylabel="" if i % across else kind.label)
    legend(figure, losses, [Line2D([], [], linewidth=1.5, markersize=4, **look[x].line()) for x in losses])
    return figure, logged


def _by_loss(
    rows: pd.DataFrame, models: list[str], losses: list[str], frames: Frames, kind: CurveKind
) -> tuple[Figure, bool]:
    across = 5
    figure = Figure(figsize=(9.6, 1.25 * math.ceil(len(losses) / across) + 0.6), layout="constrained")
    axes = grid(figure, len(losses), across, sharex=True, sharey=not kind.logged)
    # without markers in so small a panel, dashes must tell the models apart
    look = {m: x._replace(dashes=DASHES[i % len(DASHES)]) for i, (m, x) in enumerate(looks(frames.models).items())}
    logged, limits = False, None if kind.logged else _limits(rows)
    parts = dict(iter(rows.groupby(["loss", "model"], sort=False)))
    for ax, loss in zip(axes, losses, strict=True):
        pairs = [(look[m], parts[loss, m]) for m in models if (loss, m) in parts]
        logged |= curve_panel(ax, pairs, logged=kind.logged, small=True, limits=limits)
        ax.set_title(short(loss, 27), fontsize=7.5, fontweight="normal")
    alike(axes)
    for ax in lowest(axes, across):
        ax.set_xlabel("epoch", fontsize=7.5)
    figure.supylabel(kind.label, fontsize=8.5)
    legend(figure, models, [Line2D([], [], linewidth=1.5, **look[m].line(marker="")) for m in models])
    return figure, logged


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """The one vertical scale of panels that are compared: what the runs that are ok span, else all runs."""
    ok = rows.loc[rows["status"] == "ok", "value"]
    known = ok if len(ok) else rows["value"]
    low, high = float(known.min()), float(known.max())
    rim = 0.05 * (high - low or abs(high) or 1.0)
    return low - rim, high + rim


def curve_panel(
    ax: Axes,
    parts: Sequence[tuple[Look, pd.DataFrame]],
    *,
    logged: bool = True,
    small: bool = False,
    limits: tuple[float, float] | None = None,
) -> bool:
    """Lines of `value` over `epoch`: mean over the runs that are ok, and each diverged run on its own.

    Args:
        ax: The panel.
        parts: Look and rows of each line: epoch, value, status, train_id.
        logged: Whether the axis may be logarithmic.
        small: A panel of many: no markers, few ticks.
        limits: Of the vertical axis; without them those of the runs that are ok.

    Returns:
        Whether the axis is logarithmic.
    """
    ok = [(look, rows[rows["status"] == "ok"]) for look, rows in parts]
    for i, (look, rows) in enumerate(ok):
        if rows.empty:
            continue
        line = epoch_means(rows)
        every = max(1, len(line) // 6)
        marked = {"markersize": 3.4, "markevery": (i % every, every)} if not small or len(line) == 1 else {"marker": ""}
        sns.lineplot(
            data=line, x="epoch", y="mean", ax=ax, errorbar=None, legend=False,
            **look.line(linewidth=1.4 if not small else 1.1, **marked),
        )  # fmt: skip
        if rows["train_id"].nunique() > 1:
            wide = 0.0 if len(line) > 1 else 3.0  # an area of one epoch has no width of its own
            ax.fill_between(line["epoch"], line["low"], line["high"], color=look.colour, alpha=0.18, linewidth=wide)
    values = pd.concat([rows["value"] for _, rows in ok]) if any(len(rows) for _, rows in ok) else None
    known = values if values is not None else pd.concat([rows["value"] for _, rows in parts])
    low, high = float(known.min()), float(known.max())
    logarithmic = logged and low > 0 and high / low > LOG_FROM
    if logarithmic:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # names are no formulas here, so powers are none
        ax.yaxis.set_minor_formatter(NullFormatter())
        if small:
            ax.yaxis.set_minor_locator(NullLocator())  # marks without length or label, which take as long as others
    elif small:
        ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.autoscale_view()
    limits = limits or (ax.get_ylim() if values is not None else (-math.inf, math.inf))
    for look, rows in parts:
        for _, one in rows[rows["status"] == "diverged"].groupby("train_id", sort=False):
            _diverged(ax, one, look.colour, limits)
    if math.isfinite(limits[0]):
        ax.set_ylim(limits)  # a run that diverges leaves the frame rather than flattening the others
    ax.set(xlabel="", ylabel="")
    ax.xaxis.set_major_locator(MaxNLocator(3 if small else 8, integer=True, min_n_ticks=1))
    ax.grid(axis="x", visible=False)
    if small:
        ax.tick_params(labelsize=6.5, pad=1.5)
    return logarithmic


def _diverged(ax: Axes, rows: pd.DataFrame, colour: str, limits: tuple[float, float]) -> None:
    line = epoch_means(rows)
    ax.plot(line["epoch"], line["mean"], color=colour, linewidth=0.9, linestyle=":")
    end = min(max(float(line["mean"].iloc[-1]), limits[0]), limits[1])
    ax.plot(line["epoch"].iloc[-1:], [end], "x", color=colour, markersize=5, clip_on=False)


def _caption(rows: pd.DataFrame, logged: bool) -> str:
    runs = rows[rows["status"] == "ok"].groupby(["model", "loss"])["train_id"].nunique()
    several = len(runs) > 0 and runs.max() > 1
    text = "Line: mean over runs, band: smallest to largest run." if several else "One run a line."
    if (rows["status"] == "diverged").any():
        text += " Dotted, ending in a cross: runs that diverged, cut off at the frame."
    if logged:
        text += f" Logarithmic where the values span more than a factor of {LOG_FROM:g}."
    return text
