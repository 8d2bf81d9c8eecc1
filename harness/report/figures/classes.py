"""Losses by classes: the means as a map with the numbers in it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.report.figures.base import MAX_ROWS, SuitePicture, drawing, left_out, plain, save, short, width_of
from harness.report.figures.cells import DARK, behind_edges, ink_on, key, paint, ramp
from harness.report.figures.scores import lacking, means_of, rows_of
from harness.report.frames import Frames
from harness.report.tables import Measure, marks, measures, of_measure, over_classes, spread
from harness.report.words import number

MEAN = "mean"
MAX_CLASSES = 30


def class_table(frames: Frames, group: str, model: str, measure: Measure) -> pd.DataFrame:
    """The means of the tables: one row per loss, the best on top, one column per class, then `(MEAN, "")`.

    Returns:
        In the shown unit; columns are pairs, `("class", name)` and `("mean", "")`, so that a class may be called mean.
        Without the mean where there is one class.
    """
    per_class = of_measure(means_of(frames, group, model), measure)
    parts: dict[tuple[str, str], dict[str, float]] = {}
    for label in dict.fromkeys(per_class["class"]):
        found = {x: spread(p).mean for x, p in per_class[per_class["class"] == label].groupby("loss", observed=True)}
        if any(math.isfinite(v) for v in found.values()):
            parts["class", str(label)] = {str(k): v for k, v in found.items()}
    means = over_classes(per_class)
    parts[MEAN, ""] = {str(x): spread(p).mean for x, p in means.groupby("loss", observed=True)}
    table = pd.DataFrame(parts).reindex([x for x in frames.losses if x in parts[MEAN, ""]]) * measure.scale
    order = table[MEAN, ""].sort_values(ascending=measure.lower_is_better, kind="stable", na_position="last").index
    table = table.loc[order]
    return table.iloc[:, :1] if table.shape[1] == 2 else table


def best_of(table: pd.DataFrame, measure: Measure, incomplete: set[str]) -> pd.DataFrame:
    """Whether a number is its column's best as printed, among the losses with all their runs."""
    flags = {}
    for column in table.columns:
        values = [math.nan if x in incomplete else float(v) for x, v in table[column].items()]
        found = marks(values, lower_is_better=measure.lower_is_better, decimals=measure.decimals)
        flags[column] = [m == "best" for m in found]
    return pd.DataFrame(flags, index=table.index)


def class_heatmap(
    frames: Frames, group: str, model: str, measure: Measure, folder: Path, name: str
) -> SuitePicture | None:
    """Mean of a metric by loss and class; None with fewer than two losses."""
    whole = class_table(frames, group, model, measure).dropna(how="all")
    if len(whole) < 2:
        return None
    runs = lacking(frames, group, model)
    flags = best_of(whole, measure, set(runs)).iloc[:MAX_ROWS]
    classes = [c for c in whole.columns if c[0] == "class"]
    columns: list[Any] = [*classes[:MAX_CLASSES], *(c for c in whole.columns if c[0] == MEAN)]
    table, flags = whole[columns].iloc[:MAX_ROWS], flags[columns]
    values = table.to_numpy(dtype=float)
    full = whole[columns].to_numpy(dtype=float)
    best = np.nanmin(full, axis=0) if measure.lower_is_better else np.nanmax(full, axis=0)
    behind = np.abs(values - best)
    edges = behind_edges(behind)
    profile = measure.shown_profile(measures(rows_of(frames, group, model)))
    title = f"{measure.name}{f', {profile},' if profile else ''} by loss and class on {plain(group)}, {plain(model)}"
    names = [short(x, 40) + (f" ({runs[x]})" if x in runs else "") for x in table.index]
    heads = ["mean" if kind == MEAN else short(c.replace("_", " "), 24) for kind, c in columns]
    with drawing():
        svg = save(_draw(values, flags.to_numpy(), behind, edges, names, heads, measure), folder, name, title)
    unit = "points" if measure.shown_unit == "%" else measure.shown_unit
    caption = (
        f"{measure.heading}, the means of the tables; losses by their mean, the best on top. Framed and bold: the best "
        f"printed number of a column, which claims no difference. The darker a cell, the more {unit} behind the best."
        + (" A loss that lacks runs is never framed." if runs else "")
        + left_out(len(table), len(whole), "losses")
        + left_out(min(len(classes), MAX_CLASSES), len(classes), "classes")
    )
    return SuitePicture(name, svg, title, caption, group, model)


def _draw(
    values: np.ndarray, best: np.ndarray, behind: np.ndarray, edges: list[float], names: list[str], heads: list[str],
    measure: Measure,
) -> Figure:  # fmt: skip
    printed = [[number(v, measure.decimals) for v in row] for row in values]
    needed = 0.075 * max(len(t) for t in [*heads, *(p for row in printed for p in row)]) + 0.14
    cell = min(max(needed, 0.52), 0.95)
    slanted = needed > cell
    width = max(cell * len(heads) + width_of(names) + 0.3, 6.4)
    figure = Figure(figsize=(width, 0.23 * len(names) + (width_of(heads) * 0.8 if slanted else 0.3) + 0.75))
    figure.set_layout_engine("constrained")
    ax = figure.subplots()
    colours = ramp("Blues", 9)[: len(edges) + 1]
    levels = np.where(np.isnan(behind), -1, np.digitize(behind, edges))
    paint(ax, levels, colours)
    for (y, x), level in np.ndenumerate(levels):
        ink = DARK if level < 0 else ink_on(colours[level])
        bold = "bold" if best[y, x] else "normal"
        ax.text(x, y, printed[y][x], ha="center", va="center", fontsize=7.5, color=ink, fontweight=bold)
        if best[y, x]:
            ax.add_patch(Rectangle((x - 0.47, y - 0.43), 0.94, 0.86, fill=False, edgecolor=DARK, linewidth=1.3))
    if len(heads) > 1 and heads[-1] == "mean":
        ax.axvline(len(heads) - 1.5, color=DARK, linewidth=1.0)
    ax.xaxis.tick_top()
    turned: dict[str, Any] = {"rotation": 55, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    ax.set_xticks(range(len(heads)), heads, **turned)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    unit = "points" if measure.shown_unit == "%" else measure.shown_unit
    texts = [
        f"below {edges[0]:g}",
        *(f"{a:g}–{b:g}" for a, b in pairwise(edges)),
        f"{edges[-1]:g} or more",
    ]
    key(figure, colours, texts, f"{measure.name}: {unit} behind the best of the column")
    return figure
