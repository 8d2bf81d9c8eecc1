"""Training curves as numbers for the page's own drawing, which can be hovered and zoomed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.report.figures import LOG_FROM, MAX_EPOCHS
from harness.report.frames import Frames, by_group
from harness.report.palette import style_of

MAX_POINTS = 60_000  # of all lines of a page together
MIN_POINTS = 20  # of one line, however many there are


def charts(frames: Frames) -> list[dict[str, Any]]:
    """One entry per data set with curves, one chart per model, one line per loss: the numbers of figure `curves`.

    Returns:
        Mappings of plain values: `group`, `losses` (name, colour, dashes) and `models`, each with `name`, `log`
        (logarithmic axis), `lines` (index of the loss, epochs `x`, means over runs `y`, smallest `lo` and largest
        `hi` where there are several `runs`) and `diverged` (one entry per run that diverged).
    """
    rows = frames.curves[frames.curves["status"].isin(("ok", "diverged"))]
    rows = rows[np.isfinite(rows["loss_value"])]
    n_lines = max(1, len(rows.drop_duplicates(["group", "model", "loss"])))
    keep = min(MAX_EPOCHS, max(MIN_POINTS, MAX_POINTS // n_lines))
    style = style_of(frames.losses)
    found = []
    for group in frames.groups:
        own = rows[rows["group"] == group]
        if own.empty:
            continue
        there = set(own["loss"])
        losses = [x for x in frames.losses if x in there]
        models = [_chart(own[own["model"] == m], m, losses, keep) for m in by_group(frames, group, own)]
        legend = [{"name": x, "colour": style[x][0], "dash": list(style[x][1])} for x in losses]
        found.append({"group": group, "losses": legend, "models": models})
    return found


def _chart(rows: pd.DataFrame, model: str, losses: list[str], keep: int) -> dict[str, Any]:
    ok = rows[rows["status"] == "ok"]
    values = ok["loss_value"] if len(ok) else rows["loss_value"]
    low, high = float(values.min()), float(values.max())
    lines, diverged = [], []
    for i, loss in enumerate(losses):
        own = ok[ok["loss"] == loss]
        if len(own):
            lines.append({"loss": i, **_line(own, keep)})
        ended = rows[(rows["loss"] == loss) & (rows["status"] == "diverged")]
        diverged += [{"loss": i, **_line(one, keep)} for _, one in ended.groupby("train_id", sort=False)]
    return {"name": model, "log": low > 0 and high / low > LOG_FROM, "lines": lines, "diverged": diverged}


def _line(rows: pd.DataFrame, keep: int) -> dict[str, Any]:
    by_epoch = rows.groupby("epoch")["loss_value"]
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
