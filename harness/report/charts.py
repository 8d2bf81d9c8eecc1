"""Curves over epochs as numbers for the page's own drawing, which can be hovered and zoomed."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from harness.report.figures import LOG_FROM, MAX_EPOCHS, CurveKind, finished
from harness.report.frames import Frames, by_group
from harness.report.palette import style_of

MAX_POINTS = 60_000  # of all lines of a page together
MIN_POINTS = 20  # of one line, however many there are


def points_per_line(frames: Frames, kinds: int) -> int:
    """How many epochs of a line a page keeps that shows `kinds` kinds of curves."""
    n_lines = len(frames.curves.drop_duplicates(["group", "model", "loss"])) * kinds
    return min(MAX_EPOCHS, max(MIN_POINTS, MAX_POINTS // max(1, n_lines)))


def chart(frames: Frames, group: str, kind: CurveKind, keep: int) -> dict[str, Any]:
    """The numbers of one figure of curves: one chart per model, one line per loss.

    Args:
        frames: The prepared frames.
        group: The data set.
        kind: What is drawn.
        keep: Epochs of a line at most, see `points_per_line`.

    Returns:
        A mapping of plain values: `title`, `label` (of the vertical axis), `alike` (whether the charts have one
        vertical scale), `losses` (name, colour, dashes) and `models`, each with `name`, `log` (logarithmic axis),
        `lines` (index of the loss, epochs `x`, means over runs `y`, smallest `lo` and largest `hi` where there are
        several `runs`) and `diverged` (one entry per run that diverged).
    """
    rows = finished(frames, group, kind.column)
    rows = rows.assign(value=rows["value"] * kind.scale)
    style = style_of(frames.losses)
    there = set(rows["loss"])
    losses = [x for x in frames.losses if x in there]
    models = [
        _chart(rows[rows["model"] == m], m, losses, keep, logged=kind.logged) for m in by_group(frames, group, rows)
    ]
    legend = [{"name": x, "colour": style[x][0], "dash": list(style[x][1])} for x in losses]
    return {"title": kind.title, "label": kind.label, "alike": not kind.logged, "losses": legend, "models": models}


def _chart(rows: pd.DataFrame, model: str, losses: list[str], keep: int, *, logged: bool) -> dict[str, Any]:
    ok = rows[rows["status"] == "ok"]
    values = ok["value"] if len(ok) else rows["value"]
    low, high = float(values.min()), float(values.max())
    lines, diverged = [], []
    for i, loss in enumerate(losses):
        own = ok[ok["loss"] == loss]
        if len(own):
            lines.append({"loss": i, **_line(own, keep)})
        ended = rows[(rows["loss"] == loss) & (rows["status"] == "diverged")]
        diverged += [{"loss": i, **_line(one, keep)} for _, one in ended.groupby("train_id", sort=False)]
    return {"name": model, "log": logged and low > 0 and high / low > LOG_FROM, "lines": lines, "diverged": diverged}


def _line(rows: pd.DataFrame, keep: int) -> dict[str, Any]:
    by_epoch = rows.groupby("epoch")["value"]
    runs = int(rows["train_id"].nunique())
    found = pd.DataFrame({"y": by_epoch.mean(), "lo": by_epoch.min(), "hi": by_epoch.max()})
    step = math.ceil(len(found) / keep)
    last = len(found) - 1
    found = found[[i % step == 0 or i == last for i in range(len(found))]]
    out: dict[str, Any] = {"runs": runs, "x": [int(x) for x in found.index], "y": _short(found["y"])}
    return out | ({"lo": _short(found["lo"]), "hi": _short(found["hi"])} if runs > 1 else {})


def _short(values: pd.Series) -> list[float]:
    """Five digits are more than a screen shows."""
    return [float(f"{v:.5g}") for v in values]
