"""Mean ranks over patients with the critical difference of Nemenyi's test (Demšar, 2006).

It speaks of other patients for the networks that were trained, and not of another training: so it is no verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from harness.report.figures.base import SuitePicture, drawing, plain, rows_axis, save, short, width_of
from harness.report.figures.cases import SAME_NETWORKS
from harness.report.figures.scores import dice_of, lacking, patient_means, rows_of
from harness.report.frames import Frames
from harness.report.palette import COLOURS, INK

ALPHA = 0.05
LEAST_LOSSES, LEAST_PATIENTS = 3, 10
CLASSIC = 24  # more losses than this stand in rows


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over patients, 1 is best.

    Attributes:
        losses: By mean rank, the best first.
        ranks: Of each.
        patients: How many.
        critical: The difference of mean ranks that Nemenyi's test calls significant at 5 %.
        p: Of Friedman's test.
        cliques: First and last position of losses that are not told apart, largest sets only.
        excluded: Losses that lack runs, or a patient.
    """

    losses: tuple[str, ...]
    ranks: tuple[float, ...]
    patients: int
    critical: float
    p: float
    cliques: tuple[tuple[int, int], ...]
    excluded: tuple[str, ...]


def critical_distance(losses: int, patients: int) -> float:
    """Nemenyi's critical difference of mean ranks at 5 %: q sqrt(k (k + 1) / (6 n)), Demšar, 2006, section 3.2.2."""
    q = float(stats.studentized_range.ppf(1 - ALPHA, losses, math.inf)) / math.sqrt(2)
    return q * math.sqrt(losses * (losses + 1) / (6 * patients))


def case_ranks(frames: Frames, group: str, model: str) -> Ranking | None:
    """Rank the losses with all their runs within each patient by DSC; None for too few losses or patients."""
    rows = rows_of(frames, group, model)
    measure = dice_of(rows)
    if measure is None:
        return None
    table = patient_means(rows, measure, frames.losses)
    runs = lacking(frames, group, model)
    whole = table[[x for x in table.columns if x not in runs]].dropna(axis=1)
    excluded = tuple(x for x in table.columns if x not in whole.columns)
    n, k = whole.shape
    if k < LEAST_LOSSES or n < LEAST_PATIENTS:
        return None
    values = np.round(whole.to_numpy(dtype=float), 9)  # equal numbers that were summed in another order stay equal
    ranks = stats.rankdata(-values, axis=1).mean(axis=0)
    constant = bool((values == values[:, :1]).all())
    p = 1.0 if constant else float(stats.friedmanchisquare(*values.T).pvalue)
    order = np.argsort(ranks, kind="stable")
    by_rank = tuple(float(ranks[i]) for i in order)
    critical = critical_distance(k, n)
    apart = cliques(by_rank, critical) if p < ALPHA else ((0, k - 1),)
    return Ranking(tuple(whole.columns[i] for i in order), by_rank, n, critical, p, apart, excluded)


def cliques(ranks: tuple[float, ...], critical: float) -> tuple[tuple[int, int], ...]:
    """The largest sets of neighbours, two or more, whose ranks differ by less than `critical`.

    Args:
        ranks: Ascending.
        critical: The critical difference.
    """
    out: list[tuple[int, int]] = []
    for i, low in enumerate(ranks):
        last = max(j for j, high in enumerate(ranks) if high == low or high - low < critical)
        if last > i and (not out or last > out[-1][1]):
            out.append((i, last))
    return tuple(out)


def critical_difference(frames: Frames, group: str, model: str, folder: Path, name: str) -> SuitePicture | None:
    """Critical-difference diagram over patients; None with fewer than 3 losses or 10 patients."""
    found = case_ranks(frames, group, model)
    if found is None:
        return None
    title = f"Critical differences of mean ranks on {plain(group)}, {plain(model)}: {SAME_NETWORKS}"
    classic = len(found.losses) <= CLASSIC
    with drawing():
        figure = _classic(found) if classic else _rows(found)
        svg = save(figure, folder, name, title)
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    if found.p >= ALPHA:
        told = "finds no difference, so none is told apart"
    elif classic:
        told = f"finds a difference; Nemenyi's tells apart what differs by CD = {found.critical:.2f} or more"
    else:
        told = "finds a difference; Nemenyi's tells apart what has bars that do not overlap"
    gone = ", ".join(short(x) for x in found.excluded)
    caption = (
        f"Losses ranked by DSC within each of {found.patients} patients, mean over classes and runs; rank 1 is best. "
        f"Friedman's test {told} ({p}, 5 % level). "
        + ("Joined by a thick line: not told apart. " if classic and found.cliques else "")
        + "No verdict on the losses: it asks what would hold on other cases for these trained networks; another "
        "training may turn the order round." + (f" Left out for lack of runs or patients: {gone}." if gone else "")
    )
    return SuitePicture(name, svg, title, caption, group, model)


def _heading(found: Ranking) -> str:
    return f"Mean rank over {found.patients} patients: {SAME_NETWORKS}"


def layers(spans: tuple[tuple[int, int], ...], ranks: tuple[float, ...], gap: float) -> list[int]:
    """For each clique the first line in which it stands clear of the others."""
    ends: list[float] = []
    out = []
    for first, last in spans:
        line = next((i for i, end in enumerate(ends) if ranks[first] - end > gap), len(ends))
        ends[line:] = [ranks[last], *ends[line + 1 :]]
        out.append(line)
    return out


def _classic(found: Ranking) -> Figure:
    k = len(found.losses)
    names = [short(x, 32) for x in found.losses]
    half = math.ceil(k / 2)
    margin = width_of(names) + 0.75  # with the rank
    axis = min(max(0.32 * k, 3.2), 5.6)
    scale = axis / (k - 1)  # inches a rank
    lines = layers(found.cliques, found.ranks, 0.12 / scale)
    step = 0.21
    body = 0.16 + 0.09 * (max(lines, default=-1) + 1)
    top, low = 0.95, body + step * half + 0.1
    figure = Figure(figsize=(axis + 2 * margin, top + low))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(1 - margin / scale, k + margin / scale), ylim=(low, -top))  # inches below the axis of ranks
    ax.set_axis_off()
    ax.text(1 - (margin - 0.1) / scale, -top + 0.16, _heading(found), fontweight="bold", fontsize=9.5, va="center")
    ax.plot([1, k], [0, 0], color=INK, linewidth=1.0)
    for tick in range(1, k + 1):
        ax.plot([tick, tick], [0, -0.06], color=INK, linewidth=1.0)
        ax.text(tick, -0.09, str(tick), ha="center", va="bottom", fontsize=8)
    _critical_bar(ax, found.critical, -0.42)
    for (first, last), line in zip(found.cliques, lines, strict=True):
        y = 0.12 + 0.09 * line
        ends = [found.ranks[first] - 0.04 / scale, found.ranks[last] + 0.04 / scale]
        ax.plot(ends, [y, y], color=INK, linewidth=3.2, solid_capstyle="butt")
    for i, (label, rank) in enumerate(zip(names, found.ranks, strict=True)):
        left = i < half
        y = body + step * (i if left else k - 1 - i) + 0.08
        edge = 1 - 0.1 / scale if left else k + 0.1 / scale
        ax.plot([rank, rank, edge], [0, y, y], color=COLOURS[7], linewidth=0.9)
        text = f"{label}  {rank:.2f}" if left else f"{rank:.2f}  {label}"
        ax.text(edge + (-0.05 if left else 0.05) / scale, y, text, ha="right" if left else "left", va="center")
    return figure


def _critical_bar(ax: Axes, critical: float, y: float) -> None:
    ax.plot([1, 1 + critical], [y, y], color=INK, linewidth=1.4)
    for x in (1, 1 + critical):
        ax.plot([x, x], [y - 0.04, y + 0.04], color=INK, linewidth=1.4)
    ax.text(1 + critical / 2, y - 0.05, f"CD = {critical:.2f}", ha="center", va="bottom", fontsize=8)


def _rows(found: Ranking) -> Figure:
    """Mean ranks in rows, with bars of half the critical difference to both sides: apart where two do not overlap."""
    names = [short(x, 40) for x in found.losses]
    figure = Figure(figsize=(5.6 + width_of(names), 0.17 * len(names) + 0.9), layout="constrained")
    ax = figure.subplots()
    bars: dict[str, Any] = {"xerr": found.critical / 2, "ecolor": COLOURS[0], "elinewidth": 1.6}
    ax.errorbar(found.ranks, np.arange(len(names)), fmt="o", color=INK, markersize=3.4, **bars)
    rows_axis(ax, names, size=7)
    ax.set_xticks([1, *range(10, len(names) + 1, 10)])
    ax.set_xlabel(f"mean rank, 1 is best; bars: half the critical difference, {found.critical / 2:.2f}, to both sides")
    figure.suptitle(_heading(found), x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure
