"""Dice against the strength of a degradation of the training labels, and against the number of training patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from harness.report.figures.base import (
    Look,
    SuitePicture,
    drawing,
    grid,
    left_out,
    legend,
    looks,
    plain,
    save,
    short,
)
from harness.report.frames import Frames
from harness.report.robustness import PATIENTS, Panel, Point, robustness_panels

MAX_LINES = 8  # more cannot be followed with their intervals
MAX_PANELS = 12
_APART = 0.012  # of the axis: losses stand beside each other, so that their intervals can be told apart


def robustness_curves(
    frames: Frames, base: str, model: str, patients: bool, folder: Path, name: str, *, baseline: str | None = None
) -> SuitePicture | None:
    """One panel per kind of degradation, or those over the number of patients; None where there are none.

    Args:
        frames: The prepared frames.
        base: The data set.
        model: The model.
        patients: Whether the panels over training patients are drawn, or those of degraded labels.
        folder: Where the files go.
        name: Of the files.
        baseline: The loss that is drawn in bold.
    """
    found = [p for p in robustness_panels(frames) if (p.base, p.model) == (base, model)]
    found = [p for p in found if (p.kind == PATIENTS) == patients and p.points]
    if not found:
        return None
    shown = found[:MAX_PANELS]
    losses = list(dict.fromkeys(x for p in shown for x in p.losses))
    picked = _picked(shown, losses, baseline)
    look = looks(losses)
    across = min(3, len(shown))
    against = "the number of training patients" if patients else "the strength of label noise"
    measure = shown[0].measure
    title = f"{measure.name} against {against} on {plain(base)}, {plain(model)}"
    with drawing():
        size = (3.2 * across if across > 1 else 5.4, 2.5 * math.ceil(len(shown) / across) + 0.45)
        figure = Figure(figsize=size, layout="constrained")
        axes = grid(figure, len(shown), across)
        for ax, panel in zip(axes, shown, strict=True):
            _panel(ax, panel, {x: look[x] for x in picked if x in panel.losses}, baseline)
            ax.set_title(short(panel.title, 40))
            ax.set_xlabel(panel.axis)
        for ax in axes[::across]:
            ax.set_ylabel(f"{measure.name} ({measure.shown_unit})")
        low, high = (f([ax.get_ylim()[i] for ax in axes]) for i, f in enumerate((min, max)))
        for ax in axes:  # one scale: what costs more looks steeper
            ax.set_ylim(low, high)
        names = [f"{x} (baseline)" if x == baseline else x for x in picked]
        legend(figure, names, [Line2D([], [], markersize=4, **_line(look[x], x == baseline)) for x in picked])
        svg = save(figure, folder, name, title)
    caption = (
        f"Mean over runs{_whole(frames, shown)}; bars: 95 % interval over the runs (Student's t; with folds over the "
        "repeats, each the mean of its folds), none with one repeat. Losses stand beside each other at the same value. "
        "Validated and tested on the true labels. A hollow point lacks runs."
        + left_out(len(picked), len(losses), f"losses: {_which(shown[0], baseline in losses)}")
        + left_out(len(shown), len(found), "panels")
    )
    return SuitePicture(name, svg, title, caption, base, model)


def _whole(frames: Frames, shown: Sequence[Panel]) -> str:
    """Where clean labels, or all patients, stand; nothing where they were not run."""
    if shown[0].kind != PATIENTS:
        return ", clean labels at 0" if any(p.x == 0 for panel in shown for p in panel.points) else ""
    full = {s.trained for s in frames.settings.values() if s.base == shown[0].base and s.patients is None}
    return ", all of them on the right" if all(panel.xs[-1] in full for panel in shown) else ""


def _which(first: Panel, baseline: bool) -> str:
    """Which losses `_picked` takes, for the caption."""
    drawn = first.reference in first.xs
    best = f"those with the highest mean at {first.reference:g} in the first panel" if drawn else "the first in order"
    return f"the baseline, and {best}" if baseline else best


def _picked(panels: Sequence[Panel], losses: Sequence[str], baseline: str | None) -> list[str]:
    """At most `MAX_LINES` losses, in planned order: the baseline, and those with the best means in the reference."""
    if len(losses) <= MAX_LINES:
        return list(losses)
    first = {p.loss: p.mean for panel in panels[:1] for p in panel.points if p.x == panel.reference}
    sign = 1.0 if panels[0].measure.lower_is_better else -1.0
    best = sorted(losses, key=lambda x: (x != baseline, sign * first[x] if x in first else math.inf))
    return [x for x in losses if x in best[:MAX_LINES]]


def _line(look: Look, bold: bool) -> dict[str, Any]:
    return look.line(linewidth=2.2 if bold else 1.2)


def _panel(ax: Axes, panel: Panel, look: dict[str, Look], baseline: str | None) -> None:
    xs = panel.xs
    logged = panel.kind == PATIENTS
    if logged:
        ax.set_xscale("log")
    ends = np.log(xs[0]) if logged else xs[0], np.log(xs[-1]) if logged else xs[-1]
    for i, (loss, one) in enumerate(look.items()):
        own = [p for p in panel.points if p.loss == loss]
        step = (i - (len(look) - 1) / 2) * _APART * (ends[1] - ends[0])
        at = [p.x * math.exp(step) if logged else p.x + step for p in own]
        bold = loss == baseline
        ax.plot(at, [p.mean for p in own], zorder=3 if bold else 2, **_line(one, bold) | {"marker": ""})
        for x, p in zip(at, own, strict=True):
            _mark(ax, x, p, one, bold)
    ax.set_xticks(xs, [f"{x:g}" for x in xs])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(MaxNLocator(6))


def _mark(ax: Axes, x: float, p: Point, look: Look, bold: bool) -> None:
    if math.isfinite(p.low):
        ax.plot([x, x], [p.low, p.high], color=look.colour, linewidth=1.6 if bold else 1.0, solid_capstyle="butt")
    whole = p.runs >= p.planned
    ax.plot(
        [x], [p.mean], look.marker, color=look.colour, markersize=5 if bold else 4, zorder=4,
        markeredgewidth=0 if whole else 1.0, markerfacecolor=look.colour if whole else "none",
    )  # fmt: skip
