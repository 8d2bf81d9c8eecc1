"""Maps of coloured cells: vector drawings in a few steps of lightness, so that they read in black and white."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

DARK, LIGHT = "#14181d", "#fdfdfd"  # text on a cell: it does not follow the page's theme, as the cells do not
NONE = "#c3c7cc"  # of a cell without a number


def nice(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, on a logarithmic scale; the value is above 0."""
    exponent = math.floor(math.log10(value))
    # read from text, for 2 times 10 ** -1 is not 0.2 to the last bit
    return min((float(f"{f}e{exponent}") for f in (1, 2, 5, 10)), key=lambda v: abs(math.log(v / value)))


def behind_edges(distances: NDArray[np.float64]) -> list[float]:
    """Edges of steps that double, for distances to the best: the last step is open, for what is far behind.

    Args:
        distances: Of any shape, not negative; NaN and 0 say nothing of the scale.
    """
    known = distances[np.isfinite(distances) & (distances > 0)]
    step = nice(float(np.quantile(known, 0.9)) / 8) if len(known) else 1.0
    edges = [step * 2**i for i in range(5)]
    return [e for e in edges if e <= np.max(known, initial=0.0)] or edges[:1]


def signed_edges(differences: NDArray[np.float64]) -> list[float]:
    """Edges of seven steps around 0 that double outwards, both ends open."""
    known = np.abs(differences[np.isfinite(differences)])
    known = known[known > 1e-9]
    step = nice(float(np.quantile(known, 0.9)) / 4) if len(known) else 1.0
    return [-4 * step, -2 * step, -step, step, 2 * step, 4 * step]


def ramp(name: str, count: int) -> list[str]:
    """Colours from one end of a map to the other."""
    found = matplotlib.colormaps[name](np.linspace(0, 1, count))
    return [matplotlib.colors.to_hex(c) for c in found]


def ink_on(colour: str) -> str:
    """Dark or light text, whichever stands out."""
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else LIGHT


def paint(ax: Axes, levels: NDArray[np.int_], colours: Sequence[str]) -> None:
    """Draw a cell per element of (rows, columns) levels, one outline per colour; -1 is a cell without a number."""
    rows, columns = levels.shape
    for level, colour in [*enumerate(colours), (-1, NONE)]:
        boxes = []
        for y in range(rows):
            own = np.flatnonzero(levels[y] == level)
            for run in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1) if len(own) else []:
                left, right, top, low = run[0] - 0.5, run[-1] + 0.5, y - 0.46, y + 0.46
                boxes.append(Outline([(left, top), (right, top), (right, low), (left, low), (left, top)], closed=True))
        if boxes:
            ax.add_patch(PathPatch(Outline.make_compound_path(*boxes), facecolor=colour, linewidth=0))
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def key(figure: Figure, colours: Sequence[str], names: Sequence[str], title: str) -> None:
    """The colours and what they stand for, below the map."""
    handles = [Patch(facecolor=c, edgecolor=NONE, linewidth=0.6) for c in colours]
    per_row = max(1, int(figure.get_figwidth() * 72 / (max(map(len, names)) * 3.5 + 26)))
    figure.legend(
        handles, names, title=title, loc="outside lower center", ncols=min(len(names), per_row), frameon=False,
        fontsize=7.5, title_fontsize=8, handlelength=1.4, handleheight=1.0, columnspacing=1.2,
    )  # fmt: skip
