"""Gain against cost: mean Dice and the time of a training step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.report.figures.base import Look, SuitePicture, drawing, grid, legend, log_axis, looks, plain, save, short
from harness.report.figures.scores import dice_of, means_of, rows_of
from harness.report.frames import Frames, by_group
from harness.report.palette import COLOURS, INK
from harness.report.tables import of_measure, over_classes, spread, spread_of

TOGETHER = 14  # more losses than this are not all named
LOG_FROM = 5.0
_OTHER = Look(COLOURS[-1], (), "o")


def cost_points(frames: Frames, group: str, model: str) -> pd.DataFrame:
    """Mean DSC and time per step of each loss.

    Returns:
        Columns loss, ms, ms_sd, score, score_sd (per cent; SD over seeds, NaN with one) and front: whether no other
        loss is at least as good in both and better in one. In planned order, without losses that lack one of the two.
    """
    names = ["loss", "ms", "ms_sd", "score", "score_sd"]
    rows = rows_of(frames, group, model)
    measure = dice_of(rows)
    if measure is None:
        return pd.DataFrame(columns=[*names, "front"])
    means = over_classes(of_measure(means_of(frames, group, model), measure))
    scores = {str(x): spread(part) for x, part in means.groupby("loss", observed=True)}
    cells = frames.cells
    cells = cells[(cells["group"] == group) & (cells["model"] == model) & (cells["status"] == "ok")]
    found = []
    for loss in frames.losses:
        own = cells[cells["loss"] == loss]
        ms = spread_of(zip(own["fold"], own["seed"], own["step_ms"], strict=True))
        if loss in scores and math.isfinite(ms.mean) and math.isfinite(scores[loss].mean):
            s, k = scores[loss], measure.scale
            found.append((loss, ms.mean, ms.sd, s.mean * k, s.sd * k))
    points = pd.DataFrame(found, columns=names)
    return points.assign(front=_front(points))


def _front(points: pd.DataFrame) -> list[bool]:
    out = []
    for ms, score in zip(points["ms"], points["score"], strict=True):
        as_good = (points["ms"] <= ms) & (points["score"] >= score)
        out.append(not bool((as_good & ((points["ms"] < ms) | (points["score"] > score))).any()))
    return out


def cost_gain(frames: Frames, group: str, folder: Path, name: str) -> SuitePicture | None:
    """Mean DSC against milliseconds per step, one panel per model; None where there are not two losses to compare."""
    models = by_group(frames, group, frames.cells)
    points = {m: found for m in models if len(found := cost_points(frames, group, m)) > 1}
    if not points:
        return None
    losses = [x for x in frames.losses if any(x in set(p["loss"]) for p in points.values())]
    front = [x for x in losses if any(x in set(p.loc[p["front"], "loss"]) for p in points.values())]
    named = losses if len(losses) <= TOGETHER else front
    across = min(3, len(points))
    title = f"DSC against the time of a training step on {plain(group)}"
    look = looks(frames.losses if len(losses) <= TOGETHER else named)
    with drawing():
        size = (3.2 * across if across > 1 else 6.2, 2.9 * math.ceil(len(points) / across) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = grid(figure, len(points), across)
        for i, (ax, (model, own)) in enumerate(zip(axes, points.items(), strict=True)):
            _panel(ax, own, {x: look[x] for x in named})
            ax.set(title=short(model, 40), xlabel="time per training step (ms)", ylabel="" if i % across else "DSC (%)")
        legend(figure, named, [Line2D([], [], linestyle="", markersize=6, **_mark(look[x])) for x in named])
        svg = save(figure, folder, name, title)
    several = any(bool(p[["ms_sd", "score_sd"]].gt(0).any(axis=None)) for p in points.values())
    devices = {d for d in frames.cells.loc[frames.cells["group"] == group, "device"] if d}
    caption = (
        "Mean over runs"
        + ("; bars: standard deviation over seeds" if several else "")
        + ". Dotted: the losses that no other beats in both, by these means. "
        "Times compare only on one device under one load."
        + (f" These are of {len(devices)} kinds of device." if len(devices) > 1 else "")
        + (" Grey: the other losses." if named is not losses else "")
    )
    return SuitePicture(name, svg, title, caption, group)


def _mark(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "marker": look.marker, "markeredgewidth": 0}


def _panel(ax: Axes, points: pd.DataFrame, look: dict[str, Look]) -> None:
    front = points[points["front"]].sort_values("ms")
    ax.step(front["ms"], front["score"], where="post", color=INK, linewidth=0.9, linestyle=":")
    for loss, *numbers in points[["loss", "ms", "ms_sd", "score", "score_sd"]].itertuples(index=False):
        ms, ms_sd, score, score_sd = (float(v) for v in numbers)
        known = loss in look
        ax.errorbar(
            ms, score, xerr=ms_sd if ms_sd > 0 else None, yerr=score_sd if score_sd > 0 else None, linestyle="",
            elinewidth=0.9 if known else 0.5, markersize=6 if known else 3.5, alpha=0.95 if known else 0.6,
            **_mark(look.get(loss, _OTHER)),
        )  # fmt: skip
    low, high = float(points["ms"].min()), float(points["ms"].max())
    if high > LOG_FROM * low > 0:
        log_axis(ax, low, high)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_locator(MaxNLocator(6))
