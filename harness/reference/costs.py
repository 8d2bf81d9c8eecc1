"""What a loss costs, as `python benchmarks/losses.py --json docs/losses/cost.json` measured it.

The file: `{"machine": "words", "rows": [{"loss", "by", "shape", "device", "ms", "peak_bytes"}, ...]}`. `by` is "ours"
or another library that computes the same value; `ms` is forward and backward; "floor" among the losses is one pass over
the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import BenchError
from harness.losses import LOSSES

FLOOR = "floor"
OURS = "ours"


@dataclass(frozen=True)
class Cost:
    """Forward and backward of a loss at one shape, on one device.

    Attributes:
        by: "ours", or another library.
        shape: Of the logits.
        device: "cpu" or the name of a GPU.
        ms: Milliseconds.
        peak: Bytes at the highest.
        of_time: Times the floor's milliseconds; None without a floor.
        of_peak: Times the floor's bytes.
        machine: In words.
    """

    by: str
    shape: tuple[int, ...]
    device: str
    ms: float
    peak: float
    of_time: float | None
    of_peak: float | None
    machine: str


def read_costs(path: Path) -> dict[str, list[Cost]]:
    """By loss, ours first; empty where nothing was measured.

    Raises:
        BenchError: The file is not as described.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = [(str(r["loss"]), _cost(r, data["rows"], str(data["machine"]))) for r in data["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path}: cannot be read ({error!r}); write it with benchmarks/losses.py again.") from None
    return {name: sorted((c for n, c in rows if n == name), key=lambda c: c.by != OURS) for name in LOSSES}


def _cost(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], machine: str) -> Cost:
    same = [r for r in rows if r["loss"] == FLOOR and r["shape"] == row["shape"] and r["device"] == row["device"]]
    ms, peak = float(row["ms"]), float(row["peak_bytes"])
    return Cost(
        by=str(row["by"]),
        shape=tuple(row["shape"]),
        device=str(row["device"]),
        ms=ms,
        peak=peak,
        of_time=ms / float(same[0]["ms"]) if same else None,
        of_peak=peak / float(same[0]["peak_bytes"]) if same else None,
        machine=machine,
    )
