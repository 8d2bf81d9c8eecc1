"""Effects within thirds by object size: where a loss gains, with intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.figures.base import (
    MAX_ROWS,
    SuitePicture,
    drawing,
    left_out,
    plain,
    rows_axis,
    save,
    short,
    width_of,
)
from harness.report.palette import COLOURS, INK

if TYPE_CHECKING:
    from harness.report.sizes import BySize

# from light to dark would vanish on one of the two grounds; shape tells them apart without colour
_LOOKS = {"small": (COLOURS[3], "v"), "medium": (COLOURS[1], "o"), "large": (COLOURS[0], "^")}


def size_effects(found: BySize, folder: Path, name: str) -> SuitePicture | None:
    """A row per loss with its difference to the baseline in each third, and the 95 % intervals; None without any."""
    known = {size: c for size, c in found.parts.items() if c.analysis is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    assert first.analysis is not None
    baseline = first.analysis.baseline
    losses = [r.loss for r in first.analysis.losses if r.loss != baseline]
    shown = losses[:MAX_ROWS]
    points = {
        (size, r.loss): [None if v is None else c.shown(v) for v in (r.effect, r.low, r.high)]
        for size, c in known.items()
        if c.analysis is not None
        for r in c.analysis.losses
        if r.loss in shown and r.effect is not None and math.isfinite(r.effect)
    }
    if not points:
        return None
    unit = "% of 1 + distance" if first.outcome == "distance" else first.measure.shown_unit
    unit = "points" if unit == "%" else unit
    title = f"Difference of {first.measure.name} to {plain(baseline)} by object size on {plain(found.group)}, "
    title += plain(found.model)
    names = [short(x) for x in shown]
    with drawing():
        figure = Figure(figsize=(5.4 + width_of(names), 0.34 * len(names) + 1.15), layout="constrained")
        ax = figure.subplots()
        ax.axvline(0, color=INK, linewidth=0.8)
        for i, size in enumerate(known):
            colour, mark = _LOOKS[size]
            for y, loss in enumerate(shown):
                effect, low, high = points.get((size, loss), (None, None, None))
                at = y + 0.22 * (i - (len(known) - 1) / 2)
                if low is not None and high is not None:
                    ax.plot([low, high], [at, at], color=colour, linewidth=1.5, solid_capstyle="butt")
                if effect is not None:
                    ax.plot([effect], [at], mark, color=colour, markersize=4.5, markeredgewidth=0)
        rows_axis(ax, names, size=6.5 if len(names) > 24 else None)
        better = "less" if first.measure.lower_is_better else "more"
        ax.set_xlabel(f"difference of {first.measure.name} to {short(baseline)} ({unit}); {better} is better")
        handles = [
            Line2D([], [], color=_LOOKS[s][0], marker=_LOOKS[s][1], markersize=4.5, linewidth=1.5) for s in known
        ]
        labels = [f"{s}, {c.analysis.patients if c.analysis else 0} patients" for s, c in known.items()]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(known), frameon=False)
        svg = save(figure, folder, name, title)
    caption = (
        "Line: 95 % interval of a single comparison, over patients and trainings; none where there is one training. "
        "Thirds by the volume of the reference within each class." + left_out(len(shown), len(losses), "losses")
    )
    return SuitePicture(name, svg, title, caption, found.group, found.model)
