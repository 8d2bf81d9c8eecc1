"""Region losses: one minus a ratio of sums over the voxels of each class, in [0, 1]. Those of Dice are in `dice`."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.losses._common import (
    Absent,
    Reduction,
    RegionSums,
    check_absent,
    check_reduction,
    flat,
    over_classes,
    ratio,
    region_sums,
    safe_power,
    true_class,
)


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

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Says which error is worse: weights above those of false positives make small lesions hard to miss.

    Disadvantages:
        Two weights to choose; what recall gains, precision loses. Otherwise as unsteady as Dice.

    Use:
        Imbalanced data where misses and false alarms do not cost the same; Salehi et al. take 0.3 and 0.7.

    Elsewhere:
        nabsabraham's and Yeung's code has α for false negatives and 1 - α for false positives, Jadon's eq. 9 β for
        false positives and 1 - β for false negatives; SegLoss' default is (0.3, 0.7), MONAI's and smp's (0.5, 0.5).
    """

    version = 1
    taxonomy = ("region", "region")
    declares: ClassVar[dict[str, str]] = {"identity": "at its defaults, 0.5 and 0.5, it is the Dice loss"}

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
        self.reduction, self.absent, self.smooth = check_reduction(reduction), check_absent(absent), smooth

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

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        The measure of many leaderboards itself; punishes a few bad classes a little more than Dice.

    Disadvantages:
        Those of Dice, to which it is a monotone map class by class: the optimum is the same, only steps differ.

    Use:
        Where the intersection over union is reported.

    Elsewhere:
        MONAI's `DiceLoss(jaccard=True)` doubles the sums and not s; Ma et al. pool the classes, most code averages.
    """

    version = 1
    taxonomy = ("region", "region")

    def __init__(
        self,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.background, self.smooth = background, smooth
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

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

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        For γ > 1 classes that are nearly right still have a strong gradient, and hard ones are not given up.

    Disadvantages:
        Three parameters; for γ > 1 the gradient diverges at the optimum, and training can end in jumps.

    Use:
        Small lesions, with misses weighted above false alarms.

    Elsewhere:
        smp applies its gamma after the mean over classes; the authors' repository says that a figure of the paper was
        made with the exponent γ. unified-focal-loss has the exponent 1 - γ.
    """

    version = 1
    taxonomy = ("region", "region")

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
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction)
        errors = self.fp_weight * (sums.p - sums.tp) + self.fn_weight * (sums.t - sums.tp)
        # 1 - T = errors / (...): the difference would lose the digits that the power then magnifies
        losses = safe_power(ratio(errors, sums.tp + errors + self.smooth), 1 / self.gamma)
        return over_classes(losses, sums, self.background, self.absent, total=self.classes == "sum")


class AsymmetricSimilarity(Tversky):
    """Asymmetric similarity loss (Hashemi et al., 2018): 1 - F_β, a Tversky loss with weights that add up to 1.

        F_β = (1 + β²) TP / ((1 + β²) TP + β² FN + FP),   so fn_weight = β² / (1 + β²), fp_weight = 1 / (1 + β²)

    Ma et al., 2021. β = 1 is Dice.

    Args:
        beta: β of F_β, how much more recall counts than precision, at least 0; the authors' 1.5.
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).
        smooth: s of the Tversky index.

    Raises:
        ValueError: β is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        One number says how recall is traded for precision, in the terms of the F measure.

    Disadvantages:
        Those of Tversky: more recall brings false positives.

    Use:
        Small lesions, where a miss is worse than a false alarm.

    Elsewhere:
        Nothing beyond the confusion of α and β described at `Tversky`.
    """

    version = 1
    taxonomy = ("region", "region")
    declares: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        beta: float = 1.5,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        if beta < 0:
            raise ValueError(f"beta must be at least 0, found {beta}")
        share = beta**2 / (1 + beta**2)
        super().__init__(1 - share, share, background, reduction, absent, smooth)


class SensitivitySpecificity(nn.Module):
    """Sensitivity-specificity loss (Brosch et al., 2015): mean squared errors inside and outside, weighted.

        L_c = r Σ_n t (t - p)² / Σ_n t + (1 - r) Σ_n (1 - t)(t - p)² / Σ_n (1 - t),   L = mean_c L_c

    The first term is the error of sensitivity, the second that of specificity. Azad et al., 2023, eqs. 18 to 20, print
    1 - w sens + (1 - w) spec with errors for both, which rewards false negatives and gives a perfect prediction 1;
    Jadon, 2020, eq. 12, is a score. One class against the rest, mean over classes (Ma et al., 2021, pool them).

    Args:
        r: Weight of the sensitivity term, in [0, 1]; NiftyNet's 0.05, "0.01 to 0.10 similar".
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes: `include` (its specificity term), `skip`, or `penalise` (the
            mean probability it was given).
        smooth: Added to both denominators.

    Raises:
        ValueError: r is not in [0, 1].

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [0, 1].

    Advantages:
        Both sides of a class count by their means, whatever their sizes; the weight says how much.

    Disadvantages:
        Squared errors of probabilities have small gradients where the prediction is confidently wrong; sensitive to r.

    Use:
        Lesions of a few voxels, where r sets the working point.

    Elsewhere:
        NiftyNet and SegLoss name the two terms the wrong way round; SegLoss' r is 0.1. Jadon's code rounds the
        prediction, and has no gradient.
    """

    version = 1
    taxonomy = ("region", "region")

    def __init__(
        self,
        r: float = 0.05,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= r <= 1:
            raise ValueError(f"r must lie in [0, 1], found {r}")
        self.r, self.background, self.smooth = r, background, smooth
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, valid = flat(logits, target)
        place, weight = labels[:, None], valid.to(scores.dtype)
        probs = scores.softmax(1) * weight[:, None]
        missed = ((1 - true_class(probs, labels)) ** 2 * weight)[:, None]
        wrong = probs.scatter(1, place, 0.0)  # what the other classes were given
        parts = [
            torch.zeros_like(probs).scatter(1, place, missed).sum(2),
            (wrong * wrong).sum(2),
            torch.zeros_like(probs).scatter(1, place, weight[:, None]).sum(2),
            probs.sum(2),
            weight.sum(1, keepdim=True),
        ]
        if self.reduction == "batch":
            parts = [part.sum(0, keepdim=True) for part in parts]
        inside, outside, t, p, voxels = parts
        losses = self.r * ratio(inside, t + self.smooth) + (1 - self.r) * ratio(outside, voxels - t + self.smooth)
        return over_classes(losses, RegionSums(t, p, t, voxels), self.background, self.absent)
