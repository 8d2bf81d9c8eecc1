"""Region losses: one minus a ratio of sums over the voxels of each class, in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from harness.losses._common import Absent, Reduction, flat, over_classes, ratio, region_sums, safe_power


class Dice(nn.Module):
    """Soft Dice loss: 1 - mean_c (2 TP_c + s) / (Σ t_c + Σ p_c + s).

    Azad et al., 2023, eq. 7, the plain form of Drozdzal et al., 2016. The survey attributes it to Milletari et al.,
    2016, whose denominator is Σ t_c² + Σ p_c²: `squared=True`. Its released code sums the denominator over all
    classes and adds label numbers; this does not.

    Args:
        squared: The denominator of Milletari et al.
        background: Whether class 0 counts; it is dropped after the softmax.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes: `include` (1, or 0 where nothing is predicted), `skip`, or
            `penalise` (the mean probability it was given).
        smooth: s.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.
    """

    version = 1

    def __init__(
        self,
        squared: bool = False,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.squared, self.background = squared, background
        self.reduction, self.absent, self.smooth = _reduction(reduction), _absent(absent), smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction, self.squared)
        errors = sums.t + sums.p - 2 * sums.tp
        return over_classes(ratio(errors, sums.t + sums.p + self.smooth), sums, self.background, self.absent)


class Tversky(nn.Module):
    """Tversky loss (Salehi et al., 2017): 1 - mean_c (TP + s) / (TP + fp_weight FP + fn_weight FN + s).

    Azad et al., 2023, eqs. 13 and 14 (eq. 13 prints |Y∖T| twice, eq. 14 lacks two sums). Which of α and β weighs
    which error differs between papers, so the arguments say it: in Azad's text α weighs false negatives and β false
    positives, in Salehi, MONAI and smp α weighs false positives. (0.5, 0.5) is Dice, (1, 1) Jaccard.

    Args:
        fp_weight: Weight of false positives.
        fn_weight: Weight of false negatives.
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).
        smooth: s.

    Raises:
        ValueError: A weight is negative, or both are 0.
    """

    version = 1

    def __init__(
        self,
        fp_weight: float = 0.5,
        fn_weight: float = 0.5,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if min(fp_weight, fn_weight) < 0 or fp_weight == fn_weight == 0:
            raise ValueError(
                f"fp_weight and fn_weight must not be negative, nor both 0, found {fp_weight}, {fn_weight}"
            )
        self.fp_weight, self.fn_weight, self.background = fp_weight, fn_weight, background
        self.reduction, self.absent, self.smooth = _reduction(reduction), _absent(absent), smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction)
        errors = self.fp_weight * (sums.p - sums.tp) + self.fn_weight * (sums.t - sums.tp)
        return over_classes(ratio(errors, sums.tp + errors + self.smooth), sums, self.background, self.absent)


class Jaccard(nn.Module):
    """Soft Jaccard (IoU) loss (Rahman and Wang, 2016): 1 - mean_c (TP + s) / (Σ t_c + Σ p_c - TP + s).

    Azad et al., 2023, eqs. 10 and 11; equal to Tversky(1, 1).

    Args:
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).
        smooth: s.
    """

    version = 1

    def __init__(
        self,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.background, self.smooth = background, smooth
        self.reduction, self.absent = _reduction(reduction), _absent(absent)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction)
        union = sums.t + sums.p - sums.tp
        return over_classes(ratio(union - sums.tp, union + self.smooth), sums, self.background, self.absent)


class FocalTversky(nn.Module):
    """Focal Tversky loss (Abraham and Khan, 2018): the mean (or sum) over classes of (1 - T_c)^(1/γ).

    Azad et al., 2023, eq. 15, which sums over classes; most code takes the mean, and so does the default here. The
    survey's released code and Jadon, 2020, eq. 11 use the exponent γ, which does the opposite. For γ > 1 the gradient
    grows without bound towards the optimum; it is cut off where 1 - T_c is below 1e-7.

    Args:
        fp_weight: Weight of false positives; the authors' 0.3.
        fn_weight: Weight of false negatives; the authors' 0.7.
        gamma: γ, above 0; the authors' 4/3.
        classes: "mean" or "sum" over classes.
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).
        smooth: s of the Tversky index.

    Raises:
        ValueError: γ or a weight is out of range, or `classes` is neither mean nor sum.
    """

    version = 1

    def __init__(
        self,
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
        gamma: float = 4 / 3,
        classes: Literal["mean", "sum"] = "mean",
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if min(fp_weight, fn_weight) < 0 or fp_weight == fn_weight == 0 or gamma <= 0:
            raise ValueError(
                f"expected weights of at least 0 and gamma above 0, found {fp_weight}, {fn_weight}, {gamma}"
            )
        if classes not in ("mean", "sum"):
            raise ValueError(f"classes must be 'mean' or 'sum', found {classes!r}")
        self.fp_weight, self.fn_weight, self.gamma, self.classes = fp_weight, fn_weight, gamma, classes
        self.background, self.smooth = background, smooth
        self.reduction, self.absent = _reduction(reduction), _absent(absent)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction)
        errors = self.fp_weight * (sums.p - sums.tp) + self.fn_weight * (sums.t - sums.tp)
        # 1 - T = errors / (...): the difference would lose the digits that the power then magnifies
        losses = safe_power(ratio(errors, sums.tp + errors + self.smooth), 1 / self.gamma)
        return over_classes(losses, sums, self.background, self.absent, total=self.classes == "sum")


class LovaszSoftmax(nn.Module):
    """Lovász-softmax loss (Berman et al., 2018): the Lovász extension of the Jaccard loss of each class.

    Azad et al., 2023, eq. 12; the text there describes the binary hinge variant. The errors m_n = |t_n - p_n| of a
    class are sorted in descending order and weighted with the discrete gradient of the Jaccard loss. Counts are
    summed as integers: exact, and deterministic on CUDA.

    Args:
        classes: Average over the classes that are `present` in the label (the authors' default), or over `all`.
        per_image: Compute per sample and average; the authors' default is the whole batch.

    Raises:
        ValueError: `classes` is neither present nor all.
    """

    version = 1

    def __init__(self, classes: Literal["present", "all"] = "present", per_image: bool = False) -> None:
        super().__init__()
        if classes not in ("present", "all"):
            raise ValueError(f"classes must be 'present' or 'all', found {classes!r}")
        self.classes, self.per_image = classes, per_image

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, valid = flat(logits, target)
        probs = scores.softmax(1)
        if self.per_image:
            parts = [self._one(p, y, v) for p, y, v in zip(probs, labels, valid, strict=True)]
            return torch.stack(parts).mean()
        return self._one(probs.transpose(0, 1).flatten(1), labels.flatten(), valid.flatten())

    def _one(self, probs: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """The loss of probabilities (C, N), labels (N,) and valid (N,)."""
        numbers = torch.arange(len(probs), device=probs.device)[:, None]
        foreground = (labels == numbers) & valid
        errors = torch.where(foreground, 1 - probs, probs)
        # ignored voxels come last in the order and count for nothing
        ranked, order = torch.where(valid, errors, -1.0).sort(dim=1, descending=True, stable=True)
        inside = foreground.gather(1, order).long()
        counted = valid.expand_as(foreground).gather(1, order).long()
        size = inside.sum(1, keepdim=True)
        intersection = size - inside.cumsum(1)
        union = size + (counted - inside).cumsum(1)
        jaccard = 1 - intersection.double() / union.double().clamp_min(1)
        steps = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(jaccard), 1)).to(probs.dtype)
        losses = (ranked.clamp_min(0) * steps * counted).sum(1)
        if self.classes == "all":
            return losses.mean()
        there = (size[:, 0] > 0).to(losses.dtype)
        return (losses * there).sum() / there.sum().clamp_min(1)


def _reduction(value: Reduction) -> Reduction:
    if value not in ("batch", "sample"):
        raise ValueError(f"reduction must be 'batch' or 'sample', found {value!r}")
    return value


def _absent(value: Absent) -> Absent:
    if value not in ("include", "skip", "penalise"):
        raise ValueError(f"absent must be 'include', 'skip' or 'penalise', found {value!r}")
    return value
