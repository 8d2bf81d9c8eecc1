"""Weights that change over a training: functions of progress = e / (E - 1), from 0 in the first epoch to 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Schedule = Callable[[Tensor, Tensor], Tensor]


def schedule(spec: Mapping[str, Any]) -> Schedule:
    """The weight as a function of (progress, epochs), both 0-dim tensors.

    Celaya et al., 2023, eqs. 14 to 16, run from 1 to 0: `linear: [1, 0]`, `step: {every: h, from: 1, to: 0}` and
    `cosine: [1, 0]`. A step schedule moves every h epochs with t = progress · E; it ends at its last value only where h
    divides E. `switch: {at: 0.5, from: 0, to: 1}` is a warm start.

    Raises:
        ValueError: The specification is none of these.
    """
    if len(spec) != 1:
        raise ValueError(f"expected one of linear, cosine, step, switch, found {dict(spec)}")
    kind, args = next(iter(spec.items()))
    if kind == "linear":
        a, b = args
        return lambda progress, epochs: a + (b - a) * progress
    if kind == "cosine":
        a, b = args
        return lambda progress, epochs: b + (a - b) * (1 + torch.cos(math.pi * progress)) / 2
    if kind == "step":
        every, a, b = args["every"], args["from"], args["to"]
        return lambda progress, epochs: (
            a + (b - a) * torch.clamp(torch.floor(progress * epochs / every) * every / epochs, max=1.0)
        )
    if kind == "switch":
        at, a, b = args["at"], args["from"], args["to"]
        return lambda progress, epochs: torch.where(progress < at, a, b).to(progress.dtype)
    raise ValueError(f"unknown schedule {kind!r}, expected linear, cosine, step or switch")
