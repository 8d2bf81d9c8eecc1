"""What has to be run for the reference: the check of each loss, and its behaviour as two objects slip away.

Kept in `measured.json` with the digest of the loss's source, so that a stale number is found without running anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.check import CHECK_VERSION, check_loss, maker
from harness.check.scenes import Scene, evaluate, one_hot
from harness.losses import LOSSES
from harness.records import write_atomic
from harness.resolve import current_digest

FILE = "measured.json"
BEHAVIOUR_VERSION = 1
SIZE = 40
SIDES = {"large": 14, "small": 4}
LOGIT = 6.0
Measured = dict[str, Any]


def read(folder: Path) -> Measured:
    """What was measured, by loss; empty where nothing was."""
    path = folder / FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def stale(name: str, measured: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a loss was not measured, or its source, the check or this module has changed since."""
    found = measured.get(name)
    return found is None or any(found.get(k) != v for k, v in _stamp(name).items())


def measure(folder: Path, again: Collection[str] = (), say: Callable[[str], None] = print) -> Measured:
    """Measure what is missing or stale, and the losses named in `again`; each result is kept at once."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = {name: found for name, found in read(folder).items() if name in LOSSES}
    for name in LOSSES:
        if name in again or stale(name, measured):
            measured[name] = _measure_one(name)
            _write(folder, measured)
            failed = [x["name"] for x in measured[name]["check"] if x["outcome"] == "fail"]
            say(f"{name}: {'fails ' + ', '.join(failed) if failed else 'passes'}")
    _write(folder, measured)
    return measured


def behaviour(spec: dict[str, Any], side: int) -> tuple[list[dict[str, float | None]], list[str]]:
    """Value and gradient as the prediction of a square slips off it, until half a side lies between them.

    Returns:
        For each shift: `shift` in sides, `value`, `gradient` (2-norm over all voxels); and of what the gradient is.
    """
    make = maker(spec)
    target = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    top = (SIZE - side) // 2
    target[:, top : top + side, 2 : 2 + side] = 1
    # each class is there, so that no rule for absent classes speaks
    target[:, -3:-1, -3:-1], target[:, -3:-1, 1:3] = 2, 3
    rows: list[dict[str, float | None]] = []
    leaves: list[str] = []
    for shift in range(side + side // 2 + 1):
        guess = torch.where(target == 1, 0, target)
        guess[:, top : top + side, 2 + shift : 2 + shift + side] = 1
        logits = LOGIT * one_hot(guess).double()
        weight = torch.ones(target.shape, dtype=torch.float64)
        found = evaluate(make(target), Scene(target, logits, torch.ones(1, 2), {"label_weight": weight}))
        size = math.sqrt(sum(float((g * g).sum()) for g in found.leaves.values()))
        leaves = sorted({*leaves, *(n for n, g in found.leaves.items() if float(g.abs().max()) > 0)})
        rows.append({"shift": _short(shift / side), "value": _short(found.value), "gradient": _short(size)})
    return rows, leaves


def _measure_one(name: str) -> dict[str, Any]:
    spec = {"name": name, "class": LOSSES[name], "args": {}}
    certificate = check_loss(spec)
    curves: dict[str, Any] = {}
    leaves: set[str] = set()
    for label, side in SIDES.items():
        curves[label], found = behaviour(spec, side)
        leaves |= set(found)
    lines = [
        {**line, "number": None if line["number"] is None else _short(line["number"])}
        for line in certificate.as_dict()["lines"]
    ]
    return {**_stamp(name), "check": lines, "behaviour": curves, "gradient_of": sorted(leaves)}


def _stamp(name: str) -> dict[str, Any]:
    return {
        "digest": current_digest(LOSSES[name]),
        "check_version": CHECK_VERSION,
        "behaviour_version": BEHAVIOUR_VERSION,
    }


def _short(value: float) -> float | None:
    """Five digits: the rest differs between machines."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _write(folder: Path, measured: Measured) -> None:
    rows = [f"{json.dumps(n)}: {json.dumps(measured[n], ensure_ascii=False)}" for n in LOSSES if n in measured]
    text = "{\n" + ",\n".join(rows) + "\n}\n"  # a line for each loss
    write_atomic(folder / FILE, lambda stream: stream.write(text.encode()))
