"""What all figures share: style, files, the element for the page, names cut to size.

Figures are made without pyplot: no window, no backend, no state left in the user's process. The same input gives the
same bytes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from harness.report.palette import GRID, INK, THEMED, style_of

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MAX_ROWS = 100  # losses that one figure shows as rows or panels
MANY = 8  # panels; the sizes of text in the formats differ by too little to place so many three times
MAX_PNG = 12_000  # pixels on the longer side
_DPI = 200
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_RC: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "bench", "pdf.fonttype": 42, "path.simplify": True,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.5, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.linewidth": 0.8,
    "figure.facecolor": "white", "axes.facecolor": "none", "text.parse_math": False, "axes.unicode_minus": True,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: File name without ending.
        svg: The SVG element, in the colours of the page's theme.
        title: What is shown, for the heading and for screen readers.
        caption: What the reader must know to read it.
    """

    name: str
    svg: str
    title: str
    caption: str


@dataclass(frozen=True)
class SuitePicture(Picture):
    """A figure of one data set, which the page can hide with it.

    Attributes:
        group: Name of the data set.
        model: Label of the model; empty where the figure shows all of them.
    """

    group: str
    model: str = ""


@contextmanager
def drawing() -> Iterator[None]:
    """The report's own style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may be written in letters that the font lacks: PNG and PDF show boxes, the page's SVG the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _RC))
        yield


def save(figure: Figure, folder: Path, name: str, title: str) -> str:
    """Write SVG, PNG and PDF, and return the SVG for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {ending: folder / f"{name}.{ending}" for ending in ("svg", "png", "pdf")}
    with _placed(figure, FigureCanvasSVG, 72):
        figure.savefig(paths["svg"], metadata={"Date": None, "Creator": None}, transparent=True)
    dpi = min(_DPI, MAX_PNG / max(figure.get_size_inches()))
    with _placed(figure, FigureCanvasAgg, dpi):
        figure.savefig(paths["png"], dpi=dpi, metadata={"Software": None})
    with _placed(figure, FigureCanvasPdf, 72):
        figure.savefig(paths["pdf"], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    svg = _grey_images(lighter(paths["svg"].read_text(encoding="utf-8")))
    paths["svg"].write_text(svg, encoding="utf-8")
    return inline(svg, name, title)


@contextmanager
def _placed(figure: Figure, canvas: type[FigureCanvasBase], dpi: float) -> Iterator[None]:
    """Lay the figure out with the text sizes of a format. `savefig` would draw all of it once more to do so."""
    engine, before = figure.get_layout_engine(), figure.dpi
    if engine is None or (len(figure.axes) > MANY and canvas is not FigureCanvasSVG):
        yield
        return
    canvas(figure)
    figure.set_dpi(dpi)
    engine.execute(figure)
    figure.set_dpi(before)
    figure.set_layout_engine("none")
    try:
        yield
    finally:
        if len(figure.axes) <= MANY:
            figure.set_layout_engine(engine)


def inline(svg: str, name: str, title: str) -> str:
    """The element alone, with ids of its own, colours of the theme and a name for screen readers."""
    from markupsafe import escape

    def themed(tag: str) -> str:
        for colour, variable in THEMED.items():
            tag = re.sub(re.escape(colour), variable, tag, flags=re.IGNORECASE)
        tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
        return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", tag)

    body = svg[svg.index("<svg") :].strip()
    width, height = (float(v) for v in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)[0])
    head = (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width * 4 / 3:.0f}" height="{height * 4 / 3:.0f}">'
    )
    return head + _in_tags(themed, body[body.index(">") + 1 :])


def lighter(svg: str) -> str:
    """Two decimals of a point are enough for a screen and for print: half the size. Text stays as it is."""

    def lighter(tag: str) -> str:
        tag = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m.group()):.2f}".rstrip("0").rstrip("."), tag)
        tag = re.sub(r"-0(?=[\s\",)])", "0", tag)
        tag = re.sub(r"(font: (?:\d+ )?[\d.]+px) [^;\"]*", r"\1 system-ui, 'DejaVu Sans', sans-serif", tag)
        return re.sub(r"\s*\n\s*", " ", tag)

    bare = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r">\s*\n\s*", ">\n", _in_tags(lighter, bare))


def _grey_images(svg: str) -> str:
    """Images are grey: one byte a pixel where matplotlib writes four."""
    import base64
    import io

    from PIL import Image

    def smaller(found: re.Match[str]) -> str:
        stream = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(found.group(1)))).convert("L").save(stream, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

    return re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", smaller, svg)


def _in_tags(change: Callable[[str], str], svg: str) -> str:
    """Apply `change` to the tags only: a loss may be named like a number, a colour or an attribute."""
    return re.sub(r"<[^>]*>", lambda m: change(m.group()), svg)


class Look(NamedTuple):
    """Colour, dashes and marker of a loss: together they tell losses apart without colour, too."""

    colour: str
    dashes: tuple[float, ...]
    marker: str

    def line(self, **more: Any) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        dashes = {"dashes": self.dashes} if self.dashes else {}
        return {"color": self.colour, "marker": self.marker, "markeredgewidth": 0, **dashes} | more


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each name, the colours and dashes those of the page."""
    return {n: Look(*style, MARKERS[i % len(MARKERS)]) for i, (n, style) in enumerate(style_of(list(names)).items())}


def plain(text: str) -> str:
    """A name on one line, without characters that no SVG may hold."""
    return " ".join(_NO_XML.sub("\ufffd", text).split())


def short(text: str, width: int = 34) -> str:
    """A name of at most `width` characters: long ones lose their middle, because what differs often stands last."""
    text = plain(text)
    if len(text) <= width:
        return text
    end = (width - 1) // 3
    return text[: width - 1 - end] + "…" + text[-end:]


def width_of(names: Sequence[str], size: float = 8.5) -> float:
    """Inches that the longest of the names takes, roughly."""
    return max((len(n) for n in names), default=0) * size * 0.6 / 72


def rows_axis(ax: Axes, names: Sequence[str], *, size: float | None = None) -> None:
    """One row per name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    if size is not None:
        ax.tick_params(axis="y", labelsize=size)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def log_axis(ax: Axes, low: float, high: float, most: int = 6) -> None:
    """A logarithmic horizontal axis with plain numbers, where they are round.

    Args:
        ax: The panel.
        low: Smallest value, above 0.
        high: Largest value.
        most: Ticks at most, about.
    """
    ax.set_xscale("log")
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) <= most:
            break
    ticks = ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > 1 else [low] if low == high else [low, high]
    ax.set_xticks(ticks, [f"{t:.4g}" if t < 1e4 else f"{t:.3g}".replace("e+0", "e") for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def grid(figure: Figure, count: int, across: int, *, sharex: bool = False, sharey: bool = False) -> list[Axes]:
    """`count` panels in rows of `across`; where the axis is shared, the lowest panel of each column has its numbers.

    The panels' axes do not know of each other, which costs seconds with fifty of them: where the caller does not set
    the limits of a shared axis, it calls `alike` (for the horizontal one).
    """
    down = math.ceil(count / across)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    axes = axes[:count]
    for i, ax in enumerate(axes):
        if sharex and i < count - across:
            ax.tick_params(axis="x", which="both", labelbottom=False)
        if sharey and i % across:
            ax.tick_params(axis="y", which="both", labelleft=False)
    return axes


def alike(axes: Sequence[Axes]) -> None:
    """Give the horizontal axes of panels the limits that hold what all of them show."""
    ends = np.array([ax.dataLim.intervalx for ax in axes])
    known = ends[np.isfinite(ends).all(axis=1)]
    for ax in axes if len(known) else ():
        ax.update_datalim([(known.min(), 0.0), (known.max(), 0.0)], updatey=False)
        ax.autoscale_view(scaley=False)


def lowest(axes: Sequence[Axes], across: int) -> list[Axes]:
    """The last panel of each column of a grid whose last row may not be full."""
    return list(axes[-across:]) if len(axes) >= across else list(axes)


def left_out(shown: int, total: int, words: str) -> str:
    """A sentence for the caption where a figure does not show everything."""
    return f" Shown are {shown} of {total} {words}." if shown < total else ""


def legend(figure: Figure, names: Sequence[str], handles: Sequence[Line2D]) -> None:
    """A legend below the panels, as many columns as there is room for."""
    labels = [short(n) for n in names]
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 72 / (max(map(len, labels)) * 5.2 + 34))))
    rows = math.ceil(len(labels) / columns)
    columns = math.ceil(len(labels) / rows)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 3))  # room of its own, not the panels'
    # A name that starts with an underscore is an ordinary name here.
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6)
