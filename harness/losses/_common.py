"""What the losses share: the convention on ignored voxels, sums over regions, powers with finite gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.errors import BenchError

IGNORE = 255
Reduction = Literal["batch", "sample"]
Absent = Literal["include", "skip", "penalise"]


@dataclass(frozen=True)
class RegionSums:
    """Soft sums over the valid voxels of each class.

    Attributes:
        tp: Σ t p, shape (R, C): R is 1 for sums over the batch, B for sums per sample.
        p: Σ p (or Σ p²), the same shape.
        t: Σ t, the same shape.
        valid: Σ 1, shape (R, 1).
    """

    tp: Tensor
    p: Tensor
    t: Tensor
    valid: Tensor


def full_precision(logits: Tensor) -> Tensor:
    """At least float32: a sum of half-precision probabilities overflows at 65,504."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def flat(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flatten the spatial axes.

    Returns:
        Logits (B, C, N) in at least float32, target (B, N) with 0 at ignored voxels, and valid (B, N) bool.
    """
    valid = target != IGNORE
    return full_precision(logits).flatten(2), torch.where(valid, target, 0).flatten(1), valid.flatten(1)


def true_class(values: Tensor, target: Tensor) -> Tensor:
    """The value of each voxel's true class: (B, C, N), (B, N) → (B, N)."""
    return values.gather(1, target[:, None])[:, 0]


def of_class(weights: Tensor, scores: Tensor, target: Tensor) -> Tensor:
    """The weight of each voxel's true class: (C,), scores (B, C, N), (B, N) → (B, N).

    Raises:
        BenchError: There is not one weight for each class.
    """
    if weights.shape != scores.shape[1:2]:
        raise BenchError(
            f"class weights of shape {tuple(weights.shape)} do not fit {scores.shape[1]} classes; "
            "give one weight for each class, the background first."
        )
    return weights.to(scores.dtype)[target]


def region_sums(logits: Tensor, target: Tensor, reduction: Reduction, squared: bool = False) -> RegionSums:
    """Soft true positives and sizes of every class.

    A float one-hot by `scatter_` and plain sums: twice as fast as comparing labels with every class, deterministic on
    CUDA (each place is written once), accurate to rounding in float32 (`index_add` adds one by one, and was 1 % off at
    128³ voxels), and neither autocast nor TF32 lowers the precision, as they do in a matrix product.

    Args:
        logits: (B, C, *S), raw.
        target: (B, *S) int64, 255 ignored.
        reduction: Sums over the whole batch, or per sample.
        squared: Sum p² in place of p.
    """
    scores, labels, valid = flat(logits, target)
    probs = scores.softmax(1)
    weight = valid.to(probs.dtype)[:, None]
    onehot = torch.zeros_like(probs).scatter_(1, labels[:, None], weight)
    mass = ((probs * probs if squared else probs) * weight).sum(2)
    sums = RegionSums((probs * onehot).sum(2), mass, onehot.sum(2), weight.sum(2))
    if reduction == "sample":
        return sums
    return RegionSums(*(getattr(sums, f).sum(0, keepdim=True) for f in ("tp", "p", "t", "valid")))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, 0 where both are 0: smooth = 0 and a class that is neither there nor predicted."""
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def over_classes(losses: Tensor, sums: RegionSums, background: bool, absent: Absent, total: bool = False) -> Tensor:
    """Mean (or sum) over classes, then mean over samples, of a loss (R, C) with one policy for absent classes.

    Args:
        losses: Loss of each class, (R, C).
        sums: The sums that it was made from.
        background: Whether class 0 counts.
        absent: `include` counts a class without a voxel as it comes out, `skip` leaves it out, `penalise` counts the
            mean probability that it was given.
        total: Sum over the classes that count.
    """
    first = 0 if background else 1
    losses, there = losses[:, first:], sums.t[:, first:] > 0
    if absent == "penalise":
        losses = torch.where(there, losses, sums.p[:, first:] / sums.valid.clamp_min(1))
    weight = there.to(losses.dtype) if absent == "skip" else torch.ones_like(losses)
    summed = (losses * weight).sum(1)
    return (summed if total else summed / weight.sum(1).clamp_min(1)).mean()


def safe_power(base: Tensor, exponent: float, eps: float = 1e-7) -> Tensor:
    """`base ** exponent` for base in [0, 1] with a finite gradient at 0 also where the exponent is below 1."""
    return base if exponent == 1 else base.clamp_min(eps) ** exponent
