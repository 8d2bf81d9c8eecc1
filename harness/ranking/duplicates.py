"""Whether a loss is one of the suite's under another name, by value and gradient on the scenes of the check."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.check.scenes import QUALITIES, evaluate, facts_of, label, scene
from harness.errors import BenchError
from harness.losses.build import build_loss
from harness.losses.prepared import prepare_loss

TOLERANCE = 1e-5
_Marks = list[tuple[float, dict[str, Tensor]]]


def duplicates(
    spec: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], prepared: Path | None = None
) -> tuple[str, ...]:
    """Labels of the losses that have the same value and the same gradient as this one.

    Both are compared on a perfect, a degraded, a random and an inverted prediction of the check's 2D label, in double
    precision, with everything that a loss can read supplied: values within 1e-5 of each other or of their size, and
    gradients within 1e-5 of their norm. Unlike in the property `identity` of the check, arguments and factors count.

    Args:
        spec: Canonical specification of the loss, see `harness.grid`.
        others: Those of the others by label.
        prepared: Folder in which what a loss prepares once is kept.
    """
    mine = _marks(spec, prepared)
    if mine is None:
        return ()
    found = ((name, _marks(other, prepared)) for name, other in others.items())
    return tuple(name for name, marks in found if marks is not None and _same(mine, marks))


def _marks(spec: Mapping[str, Any], prepared: Path | None) -> _Marks | None:
    """Values and gradients; None where the loss cannot be called, which its own check says."""
    out: _Marks = []
    try:
        for quality in QUALITIES:
            given = scene(quality, seed=31)
            result = evaluate(_made(spec, given.target, prepared), given)
            out.append((result.value, {k: v for k, v in result.leaves.items() if bool((v != 0).any())}))
    except (BenchError, ArithmeticError, RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return None
    return out


def _made(spec: Mapping[str, Any], target: Tensor, prepared: Path | None) -> nn.Module:
    torch.manual_seed(0)
    loss = build_loss(spec, facts_of(target))
    return prepare_loss(loss, spec, partial(list, label(2)), key="check", seed=0, folder=prepared)


def _same(a: _Marks, b: _Marks) -> bool:
    for (value, grads), (other, others) in zip(a, b, strict=True):
        if not abs(value - other) <= TOLERANCE * max(1.0, abs(other)) or grads.keys() != others.keys():
            return False
        for name, gradient in grads.items():
            size = max(float(others[name].norm()), TOLERANCE)
            if not float((gradient - others[name]).norm()) <= TOLERANCE * size:
                return False
    return True
