"""What the wrapped networks share: a head in float32 and a sentence for sizes that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def in_float32(head: nn.Module, features: Tensor) -> Tensor:
    """Logits (B, C, *S) of features (B, F, *S), in float32 also inside autocast."""
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = head(features.float())
    return logits


def check_sides(model: str, size: Sequence[int], divisors: Sequence[int], change: str = "change `size`") -> None:
    """Refuse a size that a network cannot halve as often as it wants to.

    Args:
        model: Name of the network, for the message.
        size: Sides of its input.
        divisors: What each side must be divisible by.
        change: What to do.

    Raises:
        ValueError: A side is not divisible.
    """
    if any(n % d for n, d in zip(size, divisors, strict=True)):
        wanted = str(divisors[0]) if len(set(divisors)) == 1 else str(tuple(divisors))
        raise ValueError(f"{model} needs sides divisible by {wanted}, found {tuple(size)}; {change}")
