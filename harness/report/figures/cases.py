"""Losses by patients: the spread of Dice, and which patients a loss does well or badly on."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.figures.base import (
    MAX_ROWS,
    Look,
    SuitePicture,
    drawing,
    grid,
    left_out,
    looks,
    lowest,
    plain,
    rows_axis,
    save,
    short,
    width_of,
)
from harness.report.figures.cells import key, paint, ramp, signed_edges
from harness.report.figures.scores import dice_of, empties_note, lacking, patient_means, patient_scores, rows_of
from harness.report.frames import Frames

MAX_POINTS = 2500
MAX_COLUMNS = 150
NAMED = 40  # more patients than this are not named below a map
SAME_NETWORKS = "other cases, same trained networks"


def dice_distribution(frames: Frames, group: str, model: str, folder: Path, name: str) -> SuitePicture | None:
    """Dice per patient, mean over runs: one panel per class, one row of points with a box per loss."""
    rows = rows_of(frames, group, model)
    measure = dice_of(rows)
    if measure is None:
        return None
    points = patient_scores(rows, measure)
    there, losses = set(points["class"]), [x for x in frames.losses if x in set(points["loss"])]
    classes = [c for c in dict.fromkeys(map(str, rows["class"])) if c in there]
    if not classes:
        return None
    shown = losses[:MAX_ROWS]
    dots = len(points) <= MAX_POINTS
    drawn = points["score"] if dots else points.groupby(["class", "loss"])["score"].quantile(0.25)
    low = min(80.0, 10 * math.floor(float(drawn.min()) / 10))
    many = len(shown) > 24
    across = min(5 if many else 3, len(classes))
    down = math.ceil(len(classes) / across)
    names = [short(x) for x in shown]
    wide, row = (1.7, 0.14) if many else (2.7, 0.24)
    size = (max(wide * across + width_of(names) + 0.3, 5.2), (row * len(shown) + 0.55) * down + 0.35)
    look = looks(frames.losses)
    with drawing():
        figure = Figure(figsize=size, layout="constrained")
        axes = grid(figure, len(classes), across, sharex=True, sharey=True)
        for ax, label in zip(axes, classes, strict=True):
            own = points[points["class"] == label]
            values = {x: np.sort(part["score"].to_numpy(dtype=float)) for x, part in own.groupby("loss")}
            _strip(ax, [(look[x], values.get(x)) for x in shown], dots=dots)
            rows_axis(ax, names, size=6 if many else None)
            ax.set_title(short(label.replace("_", " "), 30))
            ax.xaxis.set_major_locator(MaxNLocator(4 if many else 7))
            ax.set_xlim(low - 0.02 * (100 - low), 100 + 0.02 * (100 - low))
        for ax in lowest(axes, across):
            ax.set_xlabel("DSC (%)")
        title = f"DSC per patient on {plain(group)}, {plain(model)}"
        svg = save(figure, folder, name, title)
    caption = (
        "One point per patient, mean over runs; box: quartiles, line: median. "
        if dots
        else "Box: quartiles over patients (mean over runs), line: median; too many patients to draw each. "
    )
    caption += empties_note(measure) + left_out(len(shown), len(losses), "losses")
    return SuitePicture(name, svg, title, caption, group, model)


def _strip(ax: Axes, rows: list[tuple[Look, np.ndarray | None]], *, dots: bool) -> None:
    for y, (look, v) in enumerate(rows):
        if v is None or not len(v):
            continue
        low, middle, high = np.quantile(v, [0.25, 0.5, 0.75])
        ax.barh(y, high - low, left=low, height=0.56, color=look.colour, alpha=0.2, linewidth=0)
        ax.plot([middle, middle], [y - 0.28, y + 0.28], color=look.colour, linewidth=1.8, solid_capstyle="butt")
        if dots:
            # Fixed jitter from the golden ratio: the same picture every time.
            jitter = (np.arange(len(v)) * 0.6180339887) % 1 - 0.5
            ax.plot(v, y + 0.4 * jitter, "o", color=look.colour, markersize=2.6, markeredgewidth=0, alpha=0.75)


def case_differences(frames: Frames, group: str, model: str) -> pd.DataFrame:
    """DSC of each loss and patient minus the patient's mean over the losses, in points.

    Returns:
        One row per loss, the best on top, one column per patient, the one with the lowest mean first. Empty where Dice
        was not measured. A patient's mean is over the losses that have a number for every patient, where there are
        any: a loss that lacks a fold would else shift the means of the others.
    """
    rows = rows_of(frames, group, model)
    measure = dice_of(rows)
    if measure is None:
        return pd.DataFrame()
    table = patient_means(rows, measure, frames.losses)
    whole = table.dropna(axis=1)
    mean = (whole if whole.shape[1] else table).mean(axis=1)
    order = mean.sort_values(kind="stable").index
    out = table.sub(mean, axis=0).loc[order].T
    return out.loc[out.mean(axis=1).sort_values(ascending=False, kind="stable").index]


def merged(table: pd.DataFrame) -> np.ndarray:
    """At most `MAX_COLUMNS` columns: of more, neighbours are averaged."""
    values = table.to_numpy(dtype=float)
    if values.shape[1] <= MAX_COLUMNS:
        return values
    columns = []
    for part in np.array_split(values, MAX_COLUMNS, axis=1):
        known = ~np.isnan(part)
        total, count = np.where(known, part, 0.0).sum(axis=1), known.sum(axis=1)
        columns.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return np.stack(columns, axis=1)


def case_map(frames: Frames, group: str, model: str, folder: Path, name: str) -> SuitePicture | None:
    """Loss by patient, DSC minus the patient's mean; None with fewer than two losses or two patients."""
    whole = case_differences(frames, group, model)
    if whole.shape[0] < 2 or whole.shape[1] < 2:
        return None
    table, runs = whole.iloc[:MAX_ROWS], lacking(frames, group, model)
    values = merged(table)
    edges = signed_edges(values)
    colours = ramp("cividis", len(edges) + 1)
    names = [short(x, 40) + (f" ({runs[x]})" if x in runs else "") for x in table.index]
    patients = [short(str(p), 18) for p in table.columns] if table.shape[1] <= NAMED else []
    title = f"DSC minus the patient's mean on {plain(group)}, {plain(model)}: {SAME_NETWORKS}"
    with drawing():
        cell = 0.2 if values.shape[1] <= NAMED else 0.07
        width = max(cell * values.shape[1] + width_of(names) + 0.3, 7.2)
        figure = Figure(figsize=(width, 0.2 * len(names) + width_of(patients) + 1.25), layout="constrained")
        ax = figure.subplots()
        paint(ax, np.where(np.isnan(values), -1, np.digitize(values, edges)), colours)
        ax.set_yticks(range(len(names)), names)
        if patients:
            ax.set_xticks(range(len(patients)), patients, rotation=90, fontsize=7)
        else:
            ax.set_xticks([])
        ax.set_xlabel(f"{whole.shape[1]} patients, the one with the lowest mean first")
        figure.suptitle(
            f"DSC minus the patient's mean: {SAME_NETWORKS}", x=0.01, ha="left", fontsize=9.5, fontweight="bold"
        )
        inner = [f"{a:+g} to {b:+g}".replace("-", "−") for a, b in pairwise(edges)]
        texts = [f"below {edges[0]:+g}".replace("-", "−"), *inner, f"{edges[-1]:+g} or more"]
        key(figure, colours, texts, "points of DSC above (+) or below (−) the patient's mean over the losses")
        svg = save(figure, folder, name, title)
    caption = (
        "A patient's DSC is the mean over classes and runs. Losses by their mean, the best on top; the darker a cell, "
        "the worse the loss does on this patient compared with the others. It shows what other cases would change for "
        "these networks, and nothing of what another training would."
        + (" Grey: no number." if bool(np.isnan(values).any()) else "")
        + (f" Neighbouring patients are averaged to {MAX_COLUMNS} columns." if table.shape[1] > MAX_COLUMNS else "")
        + left_out(len(table), len(whole), "losses")
    )
    return SuitePicture(name, svg, title, caption, group, model)
