"""Figures: training loss per epoch, distribution of Dice over patients. The same bytes for the same input.

Figures are made without pyplot: no window, no backend, no state left in the user's process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from harness.metrics.table import PROFILES
from harness.report.frames import Frames, by_group
from harness.report.palette import GRID, INK, THEMED, style_of
from harness.report.tables import apply_policy

LOG_FROM = 50.0
MAX_EPOCHS = 400
MAX_POINTS = 2500

_RC: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "bench", "pdf.fonttype": 42, "path.simplify": True,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.5, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID,
    "grid.linewidth": 0.6, "axes.linewidth": 0.8, "figure.facecolor": "white", "axes.facecolor": "none",
    "text.parse_math": False, "axes.unicode_minus": True,
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


@contextmanager
def drawing() -> Iterator[None]:
    """The report's own style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _RC))
        yield


def save(figure: Figure, folder: Path, name: str, title: str) -> str:
    """Write SVG, PNG and PDF, and return the SVG for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {ending: folder / f"{name}.{ending}" for ending in ("svg", "png", "pdf")}
    figure.savefig(paths["svg"], metadata={"Date": None, "Creator": None}, transparent=True)
    figure.savefig(paths["png"], dpi=200, metadata={"Software": None})
    figure.savefig(paths["pdf"], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    svg = _grey_images(lighter(paths["svg"].read_text(encoding="utf-8")))
    paths["svg"].write_text(svg, encoding="utf-8")
    return inline(svg, name, title)


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


def loss_curves(frames: Frames, group: str, folder: Path, name: str) -> Picture | None:
    """Training loss per epoch, one panel per model, one line per loss, as in Azad et al. 2023, Figure 4."""
    curves = frames.curves[(frames.curves["group"] == group) & frames.curves["status"].isin(("ok", "diverged"))]
    curves = curves[np.isfinite(curves["loss_value"])]
    models = by_group(frames, group, curves)
    if not models:
        return None
    with drawing():
        figure = Figure(figsize=_panels(len(models)), layout="constrained")
        axes = figure.subplots(1, len(models), squeeze=False)
        pairs = zip(axes[0], models, strict=True)
        logged = [_curve_panel(ax, curves[curves["model"] == m], m, frames) for ax, m in pairs]
        axes[0][0].set_ylabel("training loss")
        shown = [x for x in frames.losses if x in set(curves["loss"])]
        _legend(figure, shown, frames, lines=True)
        title = f"Training loss per epoch on {group}"
        svg = save(figure, folder, name, title)
    return Picture(name, svg, title, _curve_caption(curves, any(logged)))


def _curve_caption(curves: pd.DataFrame, logged: bool) -> str:
    runs = curves[curves["status"] == "ok"].groupby(["model", "loss"])["train_id"].nunique()
    text = "Mean over the iterations of an epoch; "
    several = len(runs) > 0 and runs.max() > 1
    text += "line: mean over runs, band: smallest to largest run." if several else "one run a line."
    if (curves["status"] == "diverged").any():
        text += " Dotted, ending in a cross: runs that diverged, cut off at the frame."
    if logged:
        text += " Logarithmic where the values span more than a factor of 50."
    return text + " The losses have different scales: compare the shape of the curves, not their height."


def _curve_panel(ax: Axes, rows: pd.DataFrame, model: str, frames: Frames) -> bool:
    style = style_of(frames.losses)
    ok = rows[rows["status"] == "ok"]
    for loss in frames.losses:
        own = _thinned(ok[ok["loss"] == loss])
        if own.empty:
            continue
        colour, dashes = style[loss]
        band = ("pi", 100) if own["train_id"].nunique() > 1 else None
        sns.lineplot(
            data=own, x="epoch", y="loss_value", ax=ax, color=colour, linewidth=1.5, errorbar=band, legend=False,
            err_kws={"alpha": 0.18, "linewidth": 0}, **({"dashes": dashes} if dashes else {}),
        )  # fmt: skip
    values = ok["loss_value"] if len(ok) else rows["loss_value"]
    low, high = float(values.min()), float(values.max())
    logged = low > 0 and high / low > LOG_FROM
    if logged:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # names are no formulas here, so powers are none
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.autoscale_view()
    limits = ax.get_ylim() if len(ok) else (-math.inf, math.inf)
    for _, one in rows[rows["status"] == "diverged"].groupby("train_id", sort=False):
        own = _thinned(one.sort_values("epoch"))
        colour = style[str(own["loss"].iloc[0])][0]
        ax.plot(own["epoch"], own["loss_value"], color=colour, linewidth=0.9, linestyle=":")
        end = min(max(float(own["loss_value"].iloc[-1]), limits[0]), limits[1])
        ax.plot(own["epoch"].iloc[-1:], [end], "x", color=colour, markersize=5, clip_on=False)
    if len(ok):
        ax.set_ylim(limits)  # a run that diverges leaves the frame rather than flattening the others
    ax.set(title=model, xlabel="epoch", ylabel="")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", visible=False)
    return logged


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """Every k-th epoch and the last one: the page stays small."""
    epochs = np.sort(rows["epoch"].unique())
    if len(epochs) <= MAX_EPOCHS:
        return rows
    kept = set(epochs[:: math.ceil(len(epochs) / MAX_EPOCHS)]) | {epochs[-1]}
    return rows[rows["epoch"].isin(kept)]


def dice_distribution(frames: Frames, group: str, model: str, folder: Path, name: str) -> Picture | None:
    """Dice per patient, mean over runs: one panel per class, one row of points with a box per loss."""
    cases = frames.cases
    own = cases[(cases["group"] == group) & (cases["model"] == model) & (cases["metric"] == "dice")]
    own = own[own["profile"] == own["profile"].iloc[0]] if len(own) else own  # of several profiles the first
    if own.empty:
        return None
    scored = apply_policy(own)
    points = scored.groupby(["class", "loss", "patient"], sort=False)["score"].mean().dropna().reset_index()
    classes = [c for c in dict.fromkeys(own["class"]) if c in set(points["class"])]
    losses = [x for x in frames.losses if x in set(points["loss"])]
    if not classes:
        return None
    low = min(80.0, 10 * math.floor(10 * float(points["score"].min())))
    across = min(3, len(classes))
    down = math.ceil(len(classes) / across)
    size = (3.1 * across + 1.2, (0.24 * len(losses) + 0.55) * down + 0.35)
    with drawing():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, label in zip(axes.flat, classes, strict=False):
            _strip(ax, points[points["class"] == label], losses, frames, label, dots=len(points) <= MAX_POINTS)
            ax.set_xlim(low - 0.02 * (100 - low), 100 + 0.02 * (100 - low))
        for ax in list(axes.flat)[len(classes) :]:
            ax.set_visible(False)
        for column in range(across):
            bottom = max(i for i in range(down) if i * across + column < len(classes))
            axes[bottom][column].set_xlabel("DSC (%)")
            axes[bottom][column].tick_params(labelbottom=True)
        title = f"DSC per patient on {group}, {model}"
        svg = save(figure, folder, name, title)
    caption = (
        "One point per patient, mean over runs; box: quartiles, line: median. "
        if len(points) <= MAX_POINTS
        else "Box: quartiles over patients (mean over runs), line: median; too many patients to draw each. "
    )
    profile = str(own["profile"].iloc[0])
    if profile in PROFILES and PROFILES[profile].own_empties:
        return Picture(name, svg, title, caption + f"Empty masks count as in {profile}.")
    return Picture(name, svg, title, caption + "Misses count as 0; patients without the class are left out.")


def _strip(ax: Axes, rows: pd.DataFrame, losses: list[str], frames: Frames, label: str, *, dots: bool) -> None:
    style = style_of(frames.losses)
    values = [100 * np.sort(rows.loc[rows["loss"] == x, "score"].to_numpy(dtype=float)) for x in losses]
    for y, (loss, v) in enumerate(zip(losses, values, strict=True)):
        colour = style[loss][0]
        if not len(v):
            continue
        low, middle, high = np.quantile(v, [0.25, 0.5, 0.75])
        ax.barh(y, high - low, left=low, height=0.56, color=colour, alpha=0.2, linewidth=0)
        ax.plot([middle, middle], [y - 0.28, y + 0.28], color=colour, linewidth=1.8, solid_capstyle="butt")
        if dots:
            # Fixed jitter from the golden ratio: the same picture every time.
            jitter = (np.arange(len(v)) * 0.6180339887) % 1 - 0.5
            ax.plot(v, y + 0.4 * jitter, "o", color=colour, markersize=2.6, markeredgewidth=0, alpha=0.75)
    ax.set(title=label.replace("_", " "), ylim=(len(losses) - 0.4, -0.6))
    ax.set_yticks(range(len(losses)), losses)
    ax.grid(axis="y", visible=False)


def _panels(n: int) -> tuple[float, float]:
    return (min(4.4 * n + 0.4, 9.6) if n > 1 else 6.2, 3.5)


def _legend(figure: Figure, names: list[str], frames: Frames, *, lines: bool) -> None:
    style = style_of(frames.losses)
    handles = []
    for name in names:
        colour, dashes = style[name]
        handle = Line2D([], [], color=colour, linewidth=2, label=name)
        if lines and dashes:
            handle.set_dashes(dashes)
        handles.append(handle)
    # A name that starts with an underscore is an ordinary name here.
    longest = max((len(n) for n in names), default=1)
    columns = max(1, min(len(names), int(figure.get_figwidth() * 72 / (longest * 5.2 + 34))))
    more = -(-len(names) // columns) - 3  # a legend of many rows gets room of its own, not the panels'
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, more))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.2)
