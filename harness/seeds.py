"""Seeds of a cell: one per stream, and the loss never enters.

Every loss of a suite therefore sees the same initial weights, the same order of samples and the same augmentations:
comparisons are paired by construction.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

TUNING_SEED = -1  # the repeat that trials of tuning are: none of a suite's, which count from 0
STREAMS = ("init", "order", "augment", "dropout", "loss", "heads", "labels", "cases")


def seed_of(stream: str, base: dict[str, Any], *keys: int) -> int:
    """Derive a 63-bit seed for one stream of random numbers.

    Args:
        stream: One of `STREAMS`.
        base: What the seed depends on: data set, split, fold, model and repeat. See `Cell.seed_base`.
        keys: Further integers, such as the step, so that a stream can be entered at any point without its history.

    Raises:
        ValueError: The stream is unknown.
    """
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}, expected one of {STREAMS}")
    text = json.dumps(["bench-seed-1", base, stream, list(keys)], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
