"""Whether a loss is another loss of the catalogue under a new name, by value and by gradient."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.check.finding import Finding, Make
from harness.check.scenes import evaluate, facts_of, on_voxels, scene
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.resolve import load

# a smooth term of 1 moves Dice by 2e-3; the two most alike of the catalogue are 4e-2 apart
_SAME = 3e-3
_Marks = list[tuple[float, Tensor]]


def twin_of(spec: Mapping[str, Any], make: Make) -> Finding:
    """Look for a loss of the catalogue with the same gradient, up to one factor for all predictions.

    A built-in loss is compared with those before it in the table: of two that are equal, the second is the alias.
    """
    mine = _marks(make(scene("random").target))
    gaps: dict[str, tuple[float, float]] = {}
    for name, marks in _catalogue(tuple(LOSSES.items())).items():
        if LOSSES[name] == spec["class"]:
            break
        gaps[name] = _gap(mine, marks)
    nearest = min((gap for gap, _ in gaps.values()), default=1.0)
    # of two that are as near, the first
    name, factor = next(((n, f) for n, (gap, f) in gaps.items() if gap <= max(1.01 * nearest, 1e-6)), ("none", 1.0))
    which = name if abs(factor - 1) < 1e-6 else f"{factor:.4g} × {name}"
    same = nearest < _SAME
    if same:
        text = f"the gradient is that of {which}" + ("" if nearest < 1e-6 else f", {nearest:.1e} away")
    else:
        text = f"nearest: {which}, {nearest:.1e} away"
    return Finding(not same, nearest, text)


def _gap(a: _Marks, b: _Marks) -> tuple[float, float]:
    """Relative distance of two sets of gradients after the best common factor."""
    x, y = (torch.cat([g.flatten() for _, g in marks]) for marks in (a, b))
    size = float((y * y).sum())
    if x.shape != y.shape or size == 0 or float((x * x).sum()) == 0:
        return 1.0, 1.0
    factor = float((x * y).sum()) / size
    return float((x - factor * y).norm() / x.norm()), factor


def _marks(loss: torch.nn.Module) -> _Marks:
    out = []
    for quality in ("random", "degraded"):
        found = evaluate(loss, scene(quality, seed=31))
        out.append((found.value, found.logits))
    return out


@cache
def _catalogue(table: tuple[tuple[str, str], ...]) -> dict[str, _Marks]:
    out = {}
    for name, target in table:
        cls = load(target)
        if hasattr(cls, "prepare"):
            continue
        torch.manual_seed(0)
        spec = {"name": name, "class": target, "args": {}}
        try:
            loss = build_loss(spec, facts_of(scene("random").target))
            if on_voxels(loss):
                out[name] = _marks(loss)
        except Exception:  # a loss that cannot be made or called fails its own check, not everybody's
            continue
    return out
