"""The properties that a loss is checked for, each a function from a loss to a finding with its number."""

from __future__ import annotations

from collections.abc import Callable

from harness.check.device import device
from harness.check.finding import Finding, Make
from harness.check.invariance import (
    axes,
    batch_order,
    class_permutation,
    copies,
    dimensions,
    ignored,
    steady,
    voxelwise,
)
from harness.check.numerics import finite, gradcheck, half_precision, large_logits, memory
from harness.check.response import classwise, descent, monotone_large, monotone_small, optimum, order

PROPERTIES: dict[str, Callable[[Make], Finding]] = {
    "optimum": optimum,
    "order": order,
    "gradcheck": gradcheck,
    "ignored": ignored,
    "voxelwise": voxelwise,
    "finite": finite,
    "large_logits": large_logits,
    "half_precision": half_precision,
    "class_permutation": class_permutation,
    "batch_order": batch_order,
    "axes": axes,
    "copies": copies,
    "dimensions": dimensions,
    "memory": memory,
    "device": device,
    "descent": descent,
    "monotone_large": monotone_large,
    "monotone_small": monotone_small,
    "classwise": classwise,
    "steady": steady,
}
NEVER_DECLARED = frozenset({"ignored", "finite", "large_logits", "half_precision"})

__all__ = ["NEVER_DECLARED", "PROPERTIES", "Finding", "Make"]
