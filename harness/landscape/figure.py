"""The figures of the landscape: losses beside each other on one scale, and each loss on its own.

Lines differ in colour, dashes and marks, so that they can be told apart without colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from harness.landscape.measure import FAMILIES, Course, Point
from harness.landscape.scenes import (
    DILATION,
    EROSION,
    FARTHEST,
    OBJECTS,
    TRANSFORMATIONS,
    component_mask,
    label,
    moved_mask,
)
from harness.report.figures import Picture, drawing, save
from harness.report.palette import COLOURS, DASHES, GRID, INK

# More lines than this in a panel cannot be followed: then a figure for each family, in parts where it is large.
TOGETHER, PART = 10, 8
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
_TITLES = {
    "shrink": "Shrinking",
    "translate": "Translation",
    "erode": "Erosion",
    "dilate": "Dilation",
    "missing": "Missing component",
}
_X_LABELS = {
    "shrink": "overlap with the object (%)",
    "translate": "shift to the left or right (voxels)",
    "erode": "eroded by (voxels)",
    "dilate": "dilated by (voxels)",
    "missing": "faded (% of its probability)",
}
_SHOWN = {"shrink": 0.5, "translate": 5.0, "erode": 2.0, "dilate": 3.0}  # in the drawings of the first column
_OWN = {"large": (COLOURS[0], (), "o"), "small": (COLOURS[3], (4.0, 1.5), "s")}
_FAINT = 1e-12  # a gradient below this is none, and stands on no logarithmic axis


def groups_of(courses: Sequence[Course]) -> list[tuple[str, str, list[Course]]]:
    """What shares a figure: the end of the file's name, the words for the title, the losses."""
    if len(courses) <= TOGETHER:
        return [("", "", list(courses))]
    out = []
    for family in FAMILIES:
        own = [c for c in courses if c.family == family]
        parts = math.ceil(len(own) / PART)
        cuts = [len(own) * i // parts for i in range(parts + 1)] if parts else []
        for i in range(parts):
            number = f"-{i + 1}" if parts > 1 else ""
            words = f"{family} losses" + (f" ({i + 1} of {parts})" if parts > 1 else "")
            out.append((f"-{family.replace(' ', '-')}{number}", words, own[cuts[i] : cuts[i + 1]]))
    return out


def comparison(courses: Sequence[Course], folder: Path, name: str, words: str) -> Picture:
    """Normalised value and gradient of several losses, a row for each transformation."""
    left, wide, tall, gap = 1.6, 2.25, 1.18, 0.62
    columns = [(what, of) for what in ("normalised", "gradient") for of in OBJECTS]
    across = 12.4
    high = 1.0 + len(TRANSFORMATIONS) * (tall + gap) + 0.1 + 0.2 * _legend_rows(courses, across)
    with drawing():
        figure = Figure(figsize=(across, high))
        title = "How losses answer to a prediction that gets worse" + (f": {words}" if words else "")
        figure.text(0.2 / across, 1 - 0.28 / high, title, fontsize=12, fontweight="bold", va="center")
        _under(
            figure, "Value: 0 for the perfect prediction, 1 for the largest change in the row. Gradient: its 2-norm."
        )
        starts = [left + i * (wide + 0.28) + (i // 2) * 0.45 + 0.35 for i in range(4)]
        for (what, of), x in zip(columns, starts, strict=True):
            head = "Value" if what == "normalised" else "Gradient"
            figure.text(x / across, 1 - 0.84 / high, f"{head}, {of} object", fontsize=9.5, fontweight="bold")
        for row, transformation in enumerate(TRANSFORMATIONS):
            bottom = high - 0.97 - tall - row * (tall + gap)
            _drawing(figure.add_axes((0.2 / across, bottom / high, 1.25 / across, tall / high)), transformation)
            panels = [figure.add_axes((x / across, bottom / high, wide / across, tall / high)) for x in starts]
            for ax, (what, of) in zip(panels, columns, strict=True):
                _panel(ax, courses, transformation, of, what)
            for pair, logged in ((panels[:2], False), (panels[2:], True)):
                _same_height(pair, logged)
        handles = [_handle(i) for i in range(len(courses))]
        names = [c.loss for c in courses]
        figure.legend(
            handles, names, loc="lower center", ncols=_legend_columns(courses, across), frameon=False,
            handlelength=3.2, bbox_to_anchor=(0.5, 0.08 / high), borderaxespad=0, fontsize=9,
        )  # fmt: skip
        svg = _saved(figure, folder, name, title)
    caption = (
        "Value: minus that of the perfect prediction, over the largest such difference in the row, both objects "
        "together; below 0 the loss prefers the worse prediction. Gradient: 2-norm with respect to the logits, "
        "logarithmic; a gradient of 0 is not drawn, one that all but vanishes leaves the frame."
    )
    return Picture(name, svg, title, caption)


def values(courses: Sequence[Course], folder: Path, name: str, words: str) -> Picture:
    """The raw value of each loss, a column for each, with a scale of its own in each panel."""
    left, wide, tall, gap, between = 1.55, 1.3, 0.95, 0.5, 0.52
    across = left + len(courses) * (wide + between) + 0.15
    across, high = max(across, 6.4), 1.0 + len(TRANSFORMATIONS) * (tall + gap) + 0.2
    with drawing():
        figure = Figure(figsize=(across, high))
        title = "Value of each loss" + (f": {words}" if words else "")
        figure.text(0.2 / across, 1 - 0.28 / high, title, fontsize=12, fontweight="bold", va="center")
        _under(figure, "Each panel has a scale of its own: compare the objects in it, not one loss with another.")
        for row, transformation in enumerate(TRANSFORMATIONS):
            bottom = high - 1.0 - tall - row * (tall + gap)
            _drawing(figure.add_axes((0.2 / across, bottom / high, 0.95 / across, tall / high)), transformation)
            for column, course in enumerate(courses):
                x = left + column * (wide + between) + between / 2
                ax = figure.add_axes((x / across, bottom / high, wide / across, tall / high))
                _raw(ax, course, transformation)
                if column:
                    ax.set_xlabel("")
                if row == 0:
                    ax.set_title(_short_name(course.loss), fontsize=9, pad=5)
        handles = [_line_of(*_OWN[of]) for of in OBJECTS]
        names = [f"{of} object" for of in OBJECTS]
        figure.legend(
            handles, names, loc="lower left", ncols=2, frameon=False, handlelength=3.2, borderaxespad=0,
            bbox_to_anchor=(0.2 / across, 0.05 / high),
        )  # fmt: skip
        svg = _saved(figure, folder, name, title)
    caption = "Each panel has a scale of its own: compare the two objects in it, not one loss with another."
    return Picture(name, svg, title, caption)


def _under(figure: Figure, text: str) -> None:
    """A line below the title: the file may stand alone."""
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.53 / height, text, va="center")


def _panel(ax: Axes, courses: Sequence[Course], transformation: str, of: str, what: str) -> None:
    for i, course in enumerate(courses):
        points = course.points[transformation, of]
        y = np.array([getattr(p, what) for p in points])
        if what == "gradient":
            y = np.where(y > _FAINT, y, np.nan)
        every = max(2, len(points) // 5)
        handle = _handle(i)
        (line,) = ax.plot(
            _x(points), y, color=handle.get_color(), linewidth=1.3, marker=_MARKS[i], markersize=3.6,
            markeredgewidth=0, markevery=(i % every, every), alpha=0.95,
        )  # fmt: skip
        _dash(line, _dashes(i))
    _abscissa(ax, transformation, 8)
    if what == "normalised":
        ax.axhline(0, color=INK, linewidth=0.6, zorder=1)


def _raw(ax: Axes, course: Course, transformation: str) -> None:
    ys = []
    for of in OBJECTS:
        points = course.points[transformation, of]
        colour, dashes, mark = _OWN[of]
        ys += [p.value for p in points if math.isfinite(p.value)]
        every = max(2, len(points) // 4)
        (line,) = ax.plot(
            _x(points), [p.value for p in points], color=colour, linewidth=1.3, marker=mark, markersize=3,
            markeredgewidth=0, markevery=(0, every),
        )  # fmt: skip
        _dash(line, dashes)
    low, high = min(ys), max(ys)
    room = 0.08 * (high - low)
    if room <= 1e-9 * max(1.0, abs(high)):
        room = 0.5 * abs(high) or 1.0  # it does not answer: a line in the middle, not a picture of its rounding
    ax.set_ylim(low - room, high + room)
    _abscissa(ax, transformation, 7)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useOffset=False, useMathText=False)
    ax.yaxis.get_offset_text().set_fontsize(6.5)
    ax.tick_params(axis="y", labelsize=7, pad=1)


def _abscissa(ax: Axes, transformation: str, size: float) -> None:
    """The axis of the transformation: from right to wrong, the translation from the middle to both sides."""
    shares = ([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    if transformation in ("shrink", "missing"):
        ax.set_xticks(*shares)
        ax.set_xlim((1.03, -0.03) if transformation == "shrink" else (-0.03, 1.03))
    else:
        last = {"translate": FARTHEST, "erode": EROSION, "dilate": DILATION}[transformation]
        first = -last if transformation == "translate" else 0
        ax.set_xticks([*range(first, last + 1, 6 if first else 2)])
        ax.set_xlim(first - 0.03 * (last - first), last + 0.03 * (last - first))
    ax.set_xlabel(_X_LABELS[transformation], fontsize=size, labelpad=1.5)
    ax.tick_params(axis="x", labelsize=size - 0.5, pad=1.5)


def _same_height(panels: Sequence[Axes], logged: bool) -> None:
    """One vertical axis for both objects."""
    curves = [np.asarray(line.get_ydata(), float) for ax in panels for line in _curves(ax)]
    curves = [found for y in curves if len(found := y[np.isfinite(y)])] or [np.array([0.1, 1.0])]
    low, high = min(float(y.min()) for y in curves), max(float(y.max()) for y in curves)
    # where one gradient all but vanishes at one step, its curve leaves the frame, and the others are not flattened
    low = max(low, 0.25 * min(float(np.median(y)) for y in curves)) if logged else low
    for ax in panels:
        if logged:
            _logarithmic(ax, low / 1.6, high * 1.6)
        else:
            ax.set_ylim(min(-0.06, 1.06 * low), 1.06)
            ax.set_yticks([y for y in (-1, -0.5, 0, 0.5, 1) if y >= min(0.0, low)])
        ax.tick_params(axis="y", labelsize=7.5, pad=1.5)
    panels[1].tick_params(labelleft=False)


def _logarithmic(ax: Axes, low: float, high: float) -> None:
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.4 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=6))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # names are no formulas here, so powers are none
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def _curves(ax: Axes) -> list[Line2D]:
    return [line for line in ax.get_lines() if len(np.asarray(line.get_xdata())) > 2]


def _drawing(ax: Axes, transformation: str) -> None:
    """The label in grey, and on it the outlines of what is predicted of both objects halfway."""
    target = label()[0].numpy()
    colours = [_OWN[of][0] for of in OBJECTS]
    ax.contourf(target > 0, levels=[0.5, 1.5], colors=[GRID])
    for of, colour in zip(OBJECTS, colours, strict=True):
        if transformation == "missing":
            ax.contourf(component_mask(of), levels=[0.5, 1.5], colors=[colour], alpha=0.35)
            ax.contour(component_mask(of), levels=[0.5], colors=[colour], linewidths=0.9, linestyles="dotted")
        else:
            mask = moved_mask(of, transformation, _SHOWN[transformation] if of == "large" else _small(transformation))
            ax.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)
    ax.set(xlim=(-0.5, 63.5), ylim=(63.5, -0.5), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(True)
    ax.set_title(_TITLES[transformation], fontsize=9, pad=3)


def _small(transformation: str) -> float:
    """Of the small object nothing would be left of an erosion by two voxels."""
    return 1.0 if transformation == "erode" else _SHOWN[transformation]


def _x(points: Sequence[Point]) -> list[float]:
    return [p.x for p in points]


def _dashes(i: int) -> tuple[float, ...]:
    """Another one where colours come round again."""
    return DASHES[(i + i // len(COLOURS)) % len(DASHES)]


def _dash(line: Line2D, dashes: tuple[float, ...]) -> None:
    if dashes:
        line.set_dashes(dashes)


def _handle(i: int) -> Line2D:
    return _line_of(COLOURS[i % len(COLOURS)], _dashes(i), _MARKS[i])


def _line_of(colour: str, dashes: tuple[float, ...], mark: str) -> Line2D:
    line = Line2D([], [], color=colour, linewidth=1.5, marker=mark, markersize=4.5, markeredgewidth=0)
    _dash(line, dashes)
    return line


def _legend_columns(courses: Sequence[Course], across: float) -> int:
    """As many as there is room for, and rows of about one length."""
    longest = max(len(c.loss) for c in courses)
    room = max(1, min(len(courses), int(across * 72 / (longest * 5.4 + 48))))
    return math.ceil(len(courses) / math.ceil(len(courses) / room))


def _legend_rows(courses: Sequence[Course], across: float) -> int:
    return math.ceil(len(courses) / _legend_columns(courses, across))


def _short_name(name: str) -> str:
    """On two lines, at most as wide as a panel."""
    width = 22
    if len(name) <= width:
        return name
    cut = next((i for i in range(width, 5, -1) if name[i] in "_( ,"), width)
    rest = name[cut:]
    return name[:cut] + "\n" + (rest if len(rest) <= width else rest[: width - 1] + "…")


def _saved(figure: Figure, folder: Path, name: str, title: str) -> str:
    """As the report does, but white behind the file on disk, which stands alone."""
    svg = save(figure, folder, name, title)
    path = folder / f"{name}.svg"
    text = path.read_text(encoding="utf-8")
    white: Any = r'\1<rect width="100%" height="100%" fill="#ffffff"/>'
    path.write_text(re.sub(r"(<svg[^>]*>)", white, text, count=1), encoding="utf-8")
    return svg
