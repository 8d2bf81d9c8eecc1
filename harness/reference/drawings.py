"""Figures of the reference as SVG: behaviour of a loss, the two taxonomies, Ma's reading of three losses.

Each is a function of its arguments alone; the first line of a file holds a digest of them, so that a figure that is
out of date is found without drawing it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt

from harness.reference.entries import AZAD, MA
from harness.report.figures import drawing, lighter
from harness.report.palette import BLANK, COLOURS, INK

DRAWING_VERSION = 1
LIMIT = 30_000  # bytes of a figure
_BLUE, _ORANGE, _GREEN, _RED = COLOURS[:4]
_X, _Y = (-1.35, 1.35), (-1.05, 1.05)
_OBJECTS = {"large": (_BLUE, ()), "small": (_ORANGE, (4, 1.5))}
_MARKS = dict(zip(MA, (("o", _BLUE), ("s", _ORANGE), ("^", _GREEN), ("D", _RED)), strict=True))


def digest_of(kind: str, data: Any) -> str:
    """Of what a figure is made from."""
    text = json.dumps([DRAWING_VERSION, kind, data], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp(digest: str) -> str:
    """The first line of a figure's file."""
    return f"<!-- made from {digest} -->"


def behaviour(curves: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """Value of a loss for each object, and both gradients, against the shift of the prediction."""
    with drawing():
        figure = Figure(figsize=(8.8, 2.5), layout="constrained")
        axes = figure.subplots(1, len(curves) + 1)
        for ax, (label, rows) in zip(axes, curves.items(), strict=False):
            _course(ax, {label: rows}, "value")
            ax.set_title(f"Value, {label} object")
        _course(axes[-1], curves, "gradient")
        axes[-1].set_title("Size of the gradient")
        axes[-1].set_ylim(top=1.16 * axes[-1].get_ylim()[1])  # room for the legend
        axes[-1].legend(
            frameon=False, handlelength=1.8, loc="upper left", ncols=2, fontsize=7.5, columnspacing=1.2, borderaxespad=0
        )
        return _svg(figure)


def taxonomy(groups: Mapping[str, tuple[str, str]]) -> str:
    """A tree: root, groups of Azad et al., their losses; the mark before each name is its group of Jadon and Ma."""
    columns = {group: [n for n, g in groups.items() if g[0] == group] for group in AZAD}
    columns = {group: names for group, names in columns.items() if names}
    rows = max(map(len, columns.values()))
    widths = [max(len(group) + 6, *(len(n) + 4 for n in names)) for group, names in columns.items()]
    ends = [*itertools.accumulate(widths, initial=0)]
    across, step = 9.8, 0.21
    unit, height = across / ends[-1], 1.45 + step * rows
    with drawing():
        figure = Figure(figsize=(across, height))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, across), ylim=(-height, 0))
        ax.axis("off")
        middles = [unit * (a + b) / 2 for a, b in itertools.pairwise(ends)]
        root = (middles[0] + middles[-1]) / 2
        _box(ax, root, -0.24, "segmentation losses", 1.7, INK, "white")
        _lines(ax, [([root, root], [-0.38, -0.54]), ([middles[0], middles[-1]], [-0.54, -0.54])])
        _lines(ax, [([x, x], [-0.54, -0.7]) for x in middles])
        for (group, names), start, middle, width in zip(columns.items(), ends, middles, widths, strict=False):
            _box(ax, middle, -0.84, f"{group} ({len(names)})", unit * width - 0.14, BLANK, INK)
            _branch(ax, {name: groups[name][1] for name in names}, unit * start + 0.16, step)
        keys = [Line2D([], [], linestyle="", marker=m, color=c, markersize=5) for m, c in _MARKS.values()]
        ax.legend(
            keys, [*_MARKS], title="Jadon, 2020, and Ma et al., 2021:", alignment="left", loc="lower left",
            bbox_to_anchor=(0.01, 0.0), ncols=4, frameon=False, handletextpad=0.1, columnspacing=1.2,
        )  # fmt: skip
        return _svg(figure)


def mismatch() -> str:
    """Ma et al., 2021: Dice, boundary and Hausdorff losses as weights on the region where S and G differ."""
    fine, keep = 320, slice(None, None, 5)
    x, y = np.meshgrid(np.linspace(*_X, fine), np.linspace(*_Y, fine))
    truth, found = _blob(-0.22, 0.05, 0.84, 0.3), _blob(0.3, -0.1, 0.76, 1.9)
    union = Outline.make_compound_path(truth, found)
    inside = [o.contains_points(np.c_[x.ravel(), y.ravel()]).reshape(x.shape) for o in (truth, found)]
    to_truth, to_found = (_to_border(m, (np.ptp(_Y) / (fine - 1), np.ptp(_X) / (fine - 1))) for m in inside)
    differs = inside[0] != inside[1]
    around = ~binary_dilation(differs, iterations=10)
    panels = (
        ("Dice", "the same everywhere,\n1 / (|S| + |G|)", None),
        ("Boundary", "by the distance\nto the boundary of G", to_truth),
        ("Hausdorff", "by the distances to the\nboundaries of G and S", to_truth**2 + to_found**2),
    )
    with drawing():
        figure = Figure(figsize=(8.6, 3.2), layout="constrained")
        for ax, (title, text, weight) in zip(figure.subplots(1, 3), panels, strict=True):
            if weight is None:
                ax.add_patch(PathPatch(union, facecolor="#6aaed6", edgecolor="none"))
            else:
                # white where nothing is drawn: a smaller image; a fine one would be of no use to a smooth function
                share = np.where(around, 0, weight / weight[differs].max())[keep, keep]
                image = ax.imshow(
                    share, "Blues", vmin=-0.15, vmax=1.1, interpolation="none", origin="lower", extent=(*_X, *_Y)
                )
                image.set_clip_path(PathPatch(union, transform=ax.transData))
            both = ax.add_patch(PathPatch(found, facecolor="white", edgecolor="none"))
            both.set_clip_path(PathPatch(truth, transform=ax.transData))
            ax.add_patch(PathPatch(truth, fill=False, edgecolor=INK, linewidth=1.6))
            ax.add_patch(PathPatch(found, fill=False, edgecolor=_RED, linewidth=1.6, linestyle=(0, (4, 2))))
            ax.text(-1.0, 0.74, "G", color=INK, fontsize=10, fontweight="bold", ha="center")
            ax.text(0.98, 0.62, "S", color=_RED, fontsize=10, fontweight="bold", ha="center")
            ax.set(xlim=_X, ylim=_Y, aspect="equal", xlabel=text, xticks=[], yticks=[])
            ax.set_title(title, loc="center")
            ax.grid(visible=False)
            ax.spines[["left", "bottom"]].set_visible(False)
        keys = [
            Line2D([], [], color=INK, linewidth=1.6, label="truth G"),
            Line2D([], [], color=_RED, linewidth=1.6, linestyle=(0, (4, 2)), label="prediction S"),
            Rectangle((0, 0), 1, 1, facecolor="#d3e4f3", label="low weight"),
            Rectangle((0, 0), 1, 1, facecolor="#1c6bb0", label="high weight"),
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure)


def _branch(ax: Axes, kinds: Mapping[str, str], stem: float, step: float) -> None:
    """The losses of a group below its box, on a stem."""
    heights = {name: -1.2 - step * i for i, name in enumerate(kinds)}
    _lines(ax, [([stem, stem], [-0.98, min(heights.values())])])
    _lines(ax, [([stem, stem + 0.1], [y, y]) for y in heights.values()])
    for kind, (mark, colour) in _MARKS.items():
        own = [heights[name] for name in kinds if kinds[name] == kind]
        ax.plot([stem + 0.17] * len(own), own, mark, color=colour, markersize=4.2, markeredgewidth=0)
    for name, y in heights.items():
        ax.text(stem + 0.27, y, name, fontsize=8, va="center_baseline")


def _course(ax: Axes, curves: Mapping[str, Sequence[Mapping[str, float | None]]], what: str) -> None:
    """Curves against the overlap; from 0 where all is positive."""
    everything: list[float] = []
    for label, rows in curves.items():
        colour, dashes = _OBJECTS[label]
        shifts = [float(row["shift"] or 0) for row in rows]
        values = [math.nan if (y := row[what]) is None else y for row in rows]
        (line,) = ax.plot(shifts, values, color=colour, linewidth=1.8, label=label)
        if dashes:
            line.set_dashes(dashes)
        everything += [y for y in values if math.isfinite(y)]
    ax.axvline(1, color=INK, linewidth=0.8, dashes=(1, 2))
    ax.set_xlim(-0.05, 1.5)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["100", "75", "50", "25", "0 %"])
    ax.set_xlabel("overlap; then further away →")
    low, high = min(everything, default=0.0), max(everything, default=1.0)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    ax.set_ylim(0 if low >= 0 else low - room, high + room)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-4, 5), useMathText=False, useOffset=False)


def _box(ax: Axes, x: float, y: float, text: str, width: float, face: str, ink: str) -> None:
    box = FancyBboxPatch(
        (x - width / 2, y - 0.14),
        width,
        0.28,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=face,
        edgecolor=INK if face != INK else face,
        linewidth=0.9,
    )
    ax.add_patch(box)
    ax.text(x, y, text, color=ink, fontsize=9, fontweight="bold", ha="center", va="center_baseline")


def _lines(ax: Axes, parts: Sequence[tuple[list[float], list[float]]]) -> None:
    """Several lines as one path."""
    x = [value for part in parts for value in (*part[0], math.nan)]
    y = [value for part in parts for value in (*part[1], math.nan)]
    ax.plot(x, y, color="#9aa0a8", linewidth=0.9, solid_capstyle="butt", zorder=0)


def _blob(x: float, y: float, radius: float, turn: float) -> Outline:
    angle = np.linspace(0, 2 * np.pi, 49)
    size = radius * (1 + 0.12 * np.cos(2 * (angle - turn)) + 0.07 * np.cos(3 * angle + turn))
    return Outline(np.c_[x + size * np.cos(angle), y + size * np.sin(angle)], closed=True)


def _to_border(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> NDArray[np.float64]:
    near = distance_transform_edt(mask, sampling=spacing) + distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(near, np.float64)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    # images may be smoothed where they are enlarged
    text = re.sub(r"image-rendering:[^;\"]*", "", stream.getvalue())
    return re.sub(r' d="[^"]*"', _shorter, lighter(text[text.index("<svg") :])).strip() + "\n"


def _shorter(path: re.Match[str]) -> str:
    """A tenth of a point is enough; what follows a move is a line anyway."""
    text = re.sub(r"(\.\d)\d", r"\1", path[0]).replace(".0 ", " ")
    return text if re.search("[CQ]", text) else text.replace(" L ", " ")


__all__ = ["LIMIT", "behaviour", "digest_of", "mismatch", "stamp", "taxonomy"]
