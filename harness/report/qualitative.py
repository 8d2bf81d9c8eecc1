"""Qualitative slices: contours of the reference and of each loss's prediction, one small panel per loss.

Below each stands the region where the losses are wrong most often, enlarged (as in Azad et al., 2023, Figures 6, 7).
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.report.figures import Picture, SuitePicture, drawing, save
from harness.report.figures.base import plain
from harness.report.palette import BLANK, INK, style_of

MARGIN = 0.12
IGNORED = 255
ZOOM = 0.4  # side of the enlarged square, as a part of the longer side of the drawn part
LEAST_ZOOM = 8  # pixels of its side
FRAME = "#8a8f98"  # seen on white and on black
Window = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice of one case, with what each loss predicted there.

    Attributes:
        case: Name of the case.
        dataset: Name of the data set.
        model: Label of the model.
        image: (H, W) grey values, or None where the licence forbids to show voxels: then contours only.
        truth: (H, W) integer labels.
        predictions: Loss to (H, W) integer labels, in the order of the panels.
        classes: Label to name, of the classes to draw.
        note: A sentence for the caption, such as the slice and the seed.
    """

    case: str
    dataset: str
    model: str
    image: NDArray[Any] | None
    truth: NDArray[Any]
    predictions: Mapping[str, NDArray[Any]]
    classes: Mapping[int, str]
    note: str = ""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            BenchError: An array is not 2D or not of the shape of `truth`, or there is no prediction.
        """
        arrays = {"truth": self.truth, **({} if self.image is None else {"image": self.image}), **self.predictions}
        for name, array in arrays.items():
            if np.ndim(array) != 2 or np.shape(array) != np.shape(self.truth):
                raise BenchError(
                    f"panel of case {self.case!r}: {name} has shape {np.shape(array)}, expected the two dimensions of "
                    f"truth, {np.shape(self.truth)}."
                )
        if not self.predictions:
            raise BenchError(f"panel of case {self.case!r}: no predictions; give at least one loss.")


@dataclass(frozen=True)
class SlicePicture(Picture):
    """A figure of slices, with what the page needs to look through them.

    Attributes:
        group: Name of the data set.
        model: Label of the model.
        viewer: See `viewer_data`.
    """

    group: str
    model: str
    viewer: dict[str, Any]


def draw_panel(panel: Panel, folder: Path, name: str) -> SlicePicture:
    """Draw the reference and one small multiple per loss, cropped to the labels."""
    window = crop(panel)
    shown = [k for k in panel.classes if k in _labels(panel)]
    style = dict(zip(panel.classes, style_of([str(k) for k in panel.classes]).values(), strict=True))
    tiles = {"reference": panel.truth, **panel.predictions}
    across = min(4, len(tiles))
    down = math.ceil(len(tiles) / across)
    height, width = (s.stop - s.start for s in window)
    zoom = zoom_of(panel)
    tile, heading = 2.3, 0.45 if max(map(len, tiles)) > 30 else 0.3
    tall = [tile * min(max(height / width, 0.4), 1.8), *([tile * 0.9] if zoom else [])]
    size = (tile * across, (sum(tall) + heading) * down + 0.4)
    with drawing():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(tall) * down, across, squeeze=False, height_ratios=tall * down)
        for ax in axes.flat:
            ax.set_axis_off()
        for i, (title, label) in enumerate(tiles.items()):
            row, column = len(tall) * (i // across), i % across
            for ax, part in zip((axes[row, column], axes[row + len(tall) - 1, column]), (window, zoom), strict=True):
                if part is None:
                    continue
                _ground(ax, panel, part)
                for k in shown:
                    colour, dashes = style[k]
                    if i:
                        _reference(ax, panel, panel.truth[part] == k)
                    _contour(ax, label[part] == k, color=colour, linewidth=1.5, dashes=dashes)
            if zoom:
                _frame(axes[row, column], zoom, window, bright=panel.image is None)
            axes[row, column].set_title(textwrap.fill(title, 30, max_lines=2, placeholder=" …"), fontsize=8)
        _key(figure, panel, shown, style)
        title = f"{panel.case} of {panel.dataset}, {panel.model}"
        svg = save(figure, folder, name, f"Contours of reference and predictions: {title}")
    caption = "Solid: the class as labelled (first panel) or predicted. Dotted: reference."
    if zoom:
        caption += " Framed, and enlarged below: where the losses are wrong most often."
    if panel.image is None:
        caption += " Contours only: the licence of the images does not allow to show voxels."
    caption = f"{caption} {panel.note}".strip()
    return SlicePicture(name, svg, title, caption, panel.dataset, panel.model, viewer_data(panel))


def draw_ladder(
    panels: Sequence[Panel], losses: Sequence[str], rule: str, folder: Path, name: str
) -> SuitePicture | None:
    """Cases in rows from easier to harder, losses in columns, as in Celaya et al. (2023, Figures 3 and 4).

    Args:
        panels: Slices of one data set and model, in the order of the rows.
        losses: Those to show, in the order of the columns.
        rule: How they were chosen, a sentence for the caption; empty where all are shown.
        folder: Where the files go.
        name: Their name.

    Returns:
        The figure; None with fewer than two slices or without a loss that all of them have.
    """
    columns = [x for x in losses if all(x in p.predictions for p in panels)]
    if len(panels) < 2 or not columns:
        return None
    first = panels[0]
    shown = [k for k in first.classes if any(k in _labels(p) for p in panels)]
    style = dict(zip(first.classes, style_of([str(k) for k in first.classes]).values(), strict=True))
    tile, windows = 1.75, [crop(p) for p in panels]
    tall = [tile * min(max((r.stop - r.start) / (c.stop - c.start), 0.4), 1.6) for r, c in windows]
    with drawing():
        figure = Figure(figsize=(tile * (len(columns) + 1) + 0.3, sum(tall) + 0.75), layout="constrained")
        axes = figure.subplots(len(panels), len(columns) + 1, squeeze=False, height_ratios=tall)
        for row, panel, window in zip(axes, panels, windows, strict=True):
            for ax, loss in zip(row, [None, *columns], strict=True):
                ax.set_axis_off()
                _ground(ax, panel, window)
                label = panel.truth if loss is None else panel.predictions[loss]
                for k in shown:
                    colour, dashes = style[k]
                    if loss is not None:
                        _reference(ax, panel, panel.truth[window] == k)
                    _contour(ax, label[window] == k, color=colour, linewidth=1.3, dashes=dashes)
            case = textwrap.fill(plain(panel.case), 24, max_lines=3, placeholder=" …")
            row[0].text(
                -0.06, 0.5, case, rotation=90, ha="right", va="center", fontsize=6.5, transform=row[0].transAxes
            )
        for ax, loss in zip(axes[0], ["reference", *columns], strict=True):
            ax.set_title(textwrap.fill(plain(loss), 24, max_lines=2, placeholder=" …"), fontsize=7.5)
        _key(figure, first, shown, style)
        title = f"From easier to harder cases of {plain(first.dataset)}, {plain(first.model)}"
        svg = save(figure, folder, name, title)
    caption = (
        "Cases by their mean Dice over losses and runs, the easiest on top. Solid: the class as labelled (first "
        f"column) or predicted. Dotted: reference. {rule}"
    )
    return SuitePicture(name, svg, title, caption.strip(), first.dataset, first.model)


def viewer_data(panel: Panel) -> dict[str, Any]:
    """The slice as plain values for the page's viewer, cropped as the figure is.

    Returns:
        `width` and `height` in pixels; `zoom`, left, top, width and height of the region of `zoom_of`, or None;
        `image`, a grey PNG as a data URI, or None where voxels must not be shown; `classes` (name, colour,
        dashes) in the order of the paths; `layers`, the reference first and then each prediction, with `name` and one
        SVG path of contours per class in `paths`; a pixel is one unit wide.
    """
    window, zoom = crop(panel), zoom_of(panel)
    shown = [k for k in panel.classes if k in _labels(panel)]
    style = dict(zip(panel.classes, style_of([str(k) for k in panel.classes]).values(), strict=True))
    layers = [("reference", panel.truth), *panel.predictions.items()]
    return {
        "width": window[1].stop - window[1].start,
        "height": window[0].stop - window[0].start,
        "image": None if panel.image is None else _png(panel.image[window]),
        "zoom": None if zoom is None else _box(zoom, window),
        "classes": [{"name": panel.classes[k], "colour": style[k][0], "dash": list(style[k][1])} for k in shown],
        "layers": [{"name": name, "paths": [_path(label[window] == k) for k in shown]} for name, label in layers],
    }


def _png(image: NDArray[Any]) -> str:
    from PIL import Image

    low, high = _grey_range(image)
    grey = np.clip((np.nan_to_num(image.astype(float), nan=low) - low) / (high - low), 0, 1) * 255
    stream = io.BytesIO()
    Image.fromarray(np.round(grey).astype(np.uint8)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _grey_range(image: NDArray[Any]) -> tuple[float, float]:
    low, high = (float(v) for v in np.nanpercentile(np.asarray(image, dtype=float), [0.5, 99.5]))
    return low, max(high, low + 1e-9)


def _path(mask: NDArray[np.bool_]) -> str:
    """Contours as an SVG path; the centre of the first pixel is (0.5, 0.5)."""
    lines = [" ".join(f"{x:g} {y:g}" for y, x in line - 0.5) for line in _lines(mask)]
    return "".join(f"M{line}" for line in lines)


def zoom_of(panel: Panel) -> Window | None:
    """The square in which most pixels are wrong, summed over the losses; None where it would show little else.

    Its side is `ZOOM` of the longer side of the drawn part. Ignored pixels do not count. Of equal squares it is the
    one nearest to the middle of all wrong pixels. None where no pixel is wrong, or where less than half of the drawn
    part would be left out.
    """
    rows, columns = crop(panel)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    side = max(LEAST_ZOOM, round(ZOOM * max(height, width)))
    if min(side, height) * min(side, width) > height * width / 2:
        return None
    tall, wide = min(side, height), min(side, width)
    truth = np.asarray(panel.truth)[rows, columns]
    wrong = np.zeros(truth.shape)
    for label in panel.predictions.values():
        found = np.asarray(label)[rows, columns]
        wrong += (found != truth) & (truth != IGNORED)
    if not wrong.any():
        return None
    sums = np.pad(wrong.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    middle = [float((np.arange(n) * wrong.sum(1 - a)).sum() / wrong.sum()) for a, n in enumerate(truth.shape)]
    best = np.argwhere(boxes == boxes.max())
    away = ((best + (np.array([tall, wide]) - 1) / 2 - middle) ** 2).sum(axis=1)
    y, x = (int(v) for v in best[int(away.argmin())])
    return slice(rows.start + y, rows.start + y + tall), slice(columns.start + x, columns.start + x + wide)


def _box(zoom: Window, window: Window) -> list[int]:
    """Left, top, width and height of a region within the drawn part."""
    (top, left), (height, width) = (
        [z.start - w.start for z, w in zip(zoom, window, strict=True)],
        [z.stop - z.start for z in zoom],
    )
    return [left, top, width, height]


def _frame(ax: Axes, zoom: Window, window: Window, *, bright: bool) -> None:
    """A dashed frame; on an image white dashes on grey, seen on dark and on bright tissue."""
    left, top, width, height = _box(zoom, window)
    xs = [x - 0.5 for x in (left, left + width, left + width, left, left)]
    ys = [y - 0.5 for y in (top, top, top + height, top + height, top)]
    if not bright:
        ax.plot(xs, ys, color=FRAME, linewidth=2.0)
    (line,) = ax.plot(xs, ys, color=FRAME if bright else "#ffffff", linewidth=1.2)
    line.set_dashes((4, 2))


def crop(panel: Panel) -> Window:
    """The rows and columns that hold a drawn label, with a margin; everything where there is none."""
    arrays = [panel.truth, *panel.predictions.values()]
    some = np.any([np.isin(a, list(panel.classes)) for a in arrays], axis=0)
    if not some.any():
        return slice(0, some.shape[0]), slice(0, some.shape[1])
    out = []
    for axis in (0, 1):
        where = np.flatnonzero(some.any(axis=1 - axis))
        margin = max(2, round(MARGIN * (where[-1] - where[0] + 1)))
        out.append(slice(max(0, int(where[0]) - margin), min(some.shape[axis], int(where[-1]) + 1 + margin)))
    return out[0], out[1]


def _labels(panel: Panel) -> set[int]:
    arrays = [panel.truth, *panel.predictions.values()]
    return {int(k) for a in arrays for k in np.unique(a)} - {IGNORED}


def _ground(ax: Axes, panel: Panel, window: Window) -> None:
    height, width = (s.stop - s.start for s in window)
    if panel.image is None:
        ax.add_patch(_rectangle(width, height))
    else:
        image = np.asarray(panel.image[window], dtype=float)
        low, high = _grey_range(image)
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="none")
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.set_aspect("equal")


def _rectangle(width: int, height: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.5, -0.5), width, height, facecolor=BLANK, edgecolor="none")


def _contour(ax: Axes, mask: NDArray[np.bool_], *, color: str, linewidth: float, dashes: tuple[float, ...]) -> None:
    for line in _lines(mask):
        (drawn,) = ax.plot(line[:, 1] - 1, line[:, 0] - 1, color=color, linewidth=linewidth)
        if dashes:
            drawn.set_dashes(dashes)


def _lines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Contours as rows of (y, x) in pixels of the mask padded by one: the rim of zeros closes those at the border."""
    from skimage.measure import find_contours

    return list(find_contours(np.pad(mask.astype(float), 1), 0.5))


def _reference(ax: Axes, panel: Panel, mask: NDArray[np.bool_]) -> None:
    if panel.image is not None:  # white dots on a black line show on dark and on bright tissue
        _contour(ax, mask, color="#000000", linewidth=1.0, dashes=())
    _contour(ax, mask, color=INK if panel.image is None else "#ffffff", linewidth=0.9, dashes=(1.5, 1.5))


def _key(figure: Figure, panel: Panel, shown: list[int], style: dict[int, tuple[str, tuple[float, ...]]]) -> None:
    handles = []
    for k in shown:
        handle = Line2D([], [], color=style[k][0], linewidth=2)
        if style[k][1]:
            handle.set_dashes(style[k][1])
        handles.append(handle)
    names = [panel.classes[k] for k in shown]
    longest = max((len(n) for n in names), default=1)
    columns = max(1, min(len(names), int(figure.get_figwidth() * 72 / (longest * 5.2 + 34))))
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
