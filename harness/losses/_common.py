"""What the losses share: the convention on ignored voxels, sums over regions, powers with finite gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.errors import BenchError
from harness.losses._fused import IGNORE, SoftmaxSums, softmax_sums

__all__ = [
    "IGNORE",
    "Absent",
    "Reduction",
    "RegionSums",
    "check_absent",
    "check_reduction",
    "class_sizes",
    "fitting",
    "flat",
    "full_precision",
    "of_class",
    "over_classes",
    "ratio",
    "region_sums",
    "region_sums_and_log_p",
    "safe_power",
    "true_class",
    "true_log_p",
    "weighted_log_p",
]

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


def fitting(weights: Tensor, classes: int) -> Tensor:
    """Return the weights.

    Raises:
        BenchError: There is not one weight for each class.
    """
    if weights.shape != (classes,):
        raise BenchError(
            f"class weights of shape {tuple(weights.shape)} do not fit {classes} classes; "
            "give one weight for each class, the background first."
        )
    return weights


def of_class(weights: Tensor, scores: Tensor, target: Tensor) -> Tensor:
    """The weight of each voxel's true class: (C,), scores (B, C, N), (B, N) → (B, N).

    Raises:
        BenchError: There is not one weight for each class.
    """
    return fitting(weights, scores.shape[1]).to(scores.dtype)[target]


def region_sums(logits: Tensor, target: Tensor, reduction: Reduction, squared: bool = False) -> RegionSums:
    """Soft true positives and sizes of every class.

    Accurate to rounding in float32 (`index_add` in float32 adds one by one, and was 1 % off at 128³ voxels),
    deterministic, and neither autocast nor TF32 lowers the precision.

    Args:
        logits: (B, C, *S), raw.
        target: (B, *S) int64, 255 ignored.
        reduction: Sums over the whole batch, or per sample.
        squared: Sum p² in place of p.
    """
    return _reduced(softmax_sums(logits, target, squared=squared), reduction)


def region_sums_and_log_p(
    logits: Tensor, target: Tensor, reduction: Reduction, squared: bool = False
) -> tuple[RegionSums, Tensor]:
    """Region sums, and ln p of the true class of each voxel, (B, N), 0 where ignored: one softmax for both."""
    found = softmax_sums(logits, target, squared=squared, log_p=True)
    return _reduced(found, reduction), found.log_p


def true_log_p(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The ln p of the true class of each voxel, (B, N), 0 and without a gradient where ignored.

    Returns:
        The logarithms, and the number of valid voxels of each sample, (B, 1).
    """
    found = softmax_sums(logits, target, sums=False, log_p=True)
    return found.log_p, found.valid


def weighted_log_p(logits: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ln p of the true class of each voxel times its weight; nothing more is kept than without weights.

    Args:
        logits: (B, C, *S).
        target: (B, *S).
        weights: Weight of each class, (C,) or for each sample (B, C).

    Returns:
        The products (B, N), and the number and the summed weights of the valid voxels of each sample, (B, 1).

    Raises:
        BenchError: There is not one weight for each class.
    """
    fitting(weights[0] if weights.ndim == 2 else weights, logits.shape[1])
    found = softmax_sums(logits, target, sums=False, log_p=True, weights=weights)
    return found.log_p, found.valid, found.weight


def class_sizes(target: Tensor, classes: int) -> Tensor:
    """The number of voxels of each class in each sample: (B, *S) with 255 ignored → (B, C) int64."""
    labels = target.flatten(1)
    if not target.is_cpu:  # bincount waits for the device, and is not deterministic there
        return torch.stack([(labels == c).sum(1) for c in range(classes)], 1)
    return torch.stack([torch.bincount(row, minlength=IGNORE + 1)[:classes] for row in labels])


def _reduced(found: SoftmaxSums, reduction: Reduction) -> RegionSums:
    sums = RegionSums(found.tp, found.p, found.t, found.valid)
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


def check_reduction(value: Reduction) -> Reduction:
    """Return it.

    Raises:
        ValueError: It is neither batch nor sample.
    """
    if value not in ("batch", "sample"):
        raise ValueError(f"reduction must be 'batch' or 'sample', found {value!r}")
    return value


def check_absent(value: Absent) -> Absent:
    """Return it.

    Raises:
        ValueError: It is no policy for absent classes.
    """
    if value not in ("include", "skip", "penalise"):
        raise ValueError(f"absent must be 'include', 'skip' or 'penalise', found {value!r}")
    return value
