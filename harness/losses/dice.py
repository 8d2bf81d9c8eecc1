"""Dice and what is made of it: log-cosh, generalized, with a penalty."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from harness.losses._common import (
    Absent,
    Reduction,
    check_absent,
    check_reduction,
    over_classes,
    ratio,
    region_sums,
)


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

    Advantages:
        Close to the measure that is reported; each class counts the same whatever its size, without weights.

    Disadvantages:
        The gradient depends on the size of the object: small ones are unstable, absent ones have next to none.
        Probabilities become overconfident, and blind to where an error lies.

    Use:
        Imbalanced classes; mostly together with cross-entropy, which steadies it.

    Elsewhere:
        MONAI's default is `reduction="sample"`; smp gives absent classes 0 and still divides by all classes; kornia
        averages over present classes; nnU-Net returns -Dice with s = 1; SegLoss s = 1. MONAI sums half precision in
        half precision: NaN from 512² on.
    """

    version = 1
    taxonomy = ("region", "region")

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
        self.reduction, self.absent, self.smooth = check_reduction(reduction), check_absent(absent), smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction, self.squared)
        errors = sums.t + sums.p - 2 * sums.tp
        return over_classes(ratio(errors, sums.t + sums.p + self.smooth), sums, self.background, self.absent)


class LogCoshDice(Dice):
    """Log-cosh Dice loss (Jadon, 2020): ln cosh(L), L the Dice loss.

        L_lc = ln cosh(L_Dice) = ln(1 + 2 sinh²(L_Dice / 2)),   in [0, 0.434]

    Azad et al., 2023, eq. 8, who print cosh x = (e^x - e^-x) / 2, which is sinh. L is the Dice loss after the mean over
    classes (our reading; the paper is binary).

    Args:
        squared: The denominator of Milletari et al.
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).
        smooth: s.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Smooth, with a bounded gradient that becomes gentle near the optimum.

    Disadvantages:
        About L² / 2 near the optimum: the gradient tanh(L) vanishes there, and with it the last percent of Dice.
        Otherwise the Dice loss with another step size.

    Use:
        Where Dice jumps about late in training.

    Elsewhere:
        Jadon's table of results contradicts his text.
    """

    version = 1
    taxonomy = ("region", "region")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        loss = super().forward(logits, target)
        return torch.log1p(2 * torch.sinh(loss / 2) ** 2)  # the logarithm of cosh near 1 would lose its digits


class GeneralizedDice(nn.Module):
    """Generalized Dice loss (Sudre et al., 2017): one ratio over all classes, each weighted by its size.

        L = 1 - (2 Σ_c w_c TP_c + s) / (Σ_c w_c (Σ t_c + Σ p_c) + s),   w_c = 1 / (Σ t_c)²

    The denominator holds t and p themselves; Celaya et al., 2023, eq. 5, square them. Weights are scaled so that the
    largest is 1, a common factor: with the printed ones, 1e-10 for a class of 1e5 voxels, s would be the larger term.

    One policy for a class without a voxel, whose weight would be infinite: `include` gives it the largest weight of
    the classes that are there, so that predicting it costs; `skip` gives it 0.

    Args:
        weights: w_c: `square` 1/n², `simple` 1/n, or `uniform` 1, with n = Σ t_c over what the ratio is made of.
        background: Whether class 0 counts.
        reduction: One ratio for the whole batch, or per sample.
        absent: `include` or `skip`.
        smooth: s.

    Raises:
        ValueError: An argument is none of its choices.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Size no longer decides what a class contributes; one ratio is steadier than a mean of ratios.

    Disadvantages:
        A class of a few voxels takes over: with one voxel the gradient of a large class falls by a factor of 100. The
        weights jump from batch to batch.

    Use:
        Several classes of very different sizes, each with many voxels.

    Elsewhere:
        The code of Kervadec et al. has w = 1 / (n + 1e-10)², 1e20 for an absent class. MONAI replaces infinite weights
        by the largest finite one of the sample, as here; its s is larger than the weighted sums of large classes.
    """

    version = 1
    taxonomy = ("region", "region")

    def __init__(
        self,
        weights: Literal["square", "simple", "uniform"] = "square",
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Literal["include", "skip"] = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if weights not in ("square", "simple", "uniform"):
            raise ValueError(f"weights must be 'square', 'simple' or 'uniform', found {weights!r}")
        if absent not in ("include", "skip"):
            raise ValueError(f"absent must be 'include' or 'skip', found {absent!r}")
        self.weights, self.background, self.absent = weights, background, absent
        self.reduction, self.smooth = check_reduction(reduction), smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self._losses(logits, target).mean()

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each ratio, (1,) or (B,)."""
        first = 0 if self.background else 1
        sums = region_sums(logits, target, self.reduction)
        tp, p, t = (part[:, first:] for part in (sums.tp, sums.p, sums.t))
        power = {"square": 2, "simple": 1, "uniform": 0}[self.weights]
        # the smallest class that is there, to scale by; 1 where none is
        there = t > 0
        least = torch.where(there, t, torch.inf).amin(1, keepdim=True)
        least = torch.where(least.isinf(), 1.0, least)
        weight = torch.where(there, (least / t.clamp_min(1)) ** power, 1.0 if self.absent == "include" else 0.0)
        errors, whole = (weight * (t + p - 2 * tp)).sum(1), (weight * (t + p)).sum(1)
        return ratio(errors, whole + self.smooth)


class PenaltyGeneralizedDice(GeneralizedDice):
    """Generalized Dice with a penalty (Yang et al., 2019): 1 - GD / (1 + k (1 - GD)), GD the generalized Dice.

        pGD = GD / (1 + k (1 - GD)),   L = 1 - pGD = (1 + k) x / (1 + k x),   x = 1 - GD

    Ma et al., 2021. k = 0 is `GeneralizedDice`. With `reduction="sample"` the penalty is each sample's.

    Args:
        k: Strength of the penalty, at least 0; the authors' 2.5.
        weights: See `GeneralizedDice`.
        background: Whether class 0 counts.
        reduction: One ratio for the whole batch, or per sample.
        absent: `include` or `skip` (see `GeneralizedDice`).
        smooth: s.

    Raises:
        ValueError: k is negative, or an argument is none of its choices.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [0, 1].

    Advantages:
        False positives and false negatives cost more where the overlap is good already: the gradient at the optimum is
        1 + k times that of generalized Dice.

    Disadvantages:
        A poor start has a weak gradient, 1 / (1 + k) of it; the weights are as unsteady as those of generalized Dice.

    Use:
        Thin structures (the authors segment vessels) once the overlap is fair.

    Elsewhere:
        SegLoss puts a negative GD into the formula: values between 0 and -0.17.
    """

    version = 1
    taxonomy = ("region", "region")

    def __init__(
        self,
        k: float = 2.5,
        weights: Literal["square", "simple", "uniform"] = "square",
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Literal["include", "skip"] = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(weights, background, reduction, absent, smooth)
        if k < 0:
            raise ValueError(f"k must be at least 0, found {k}")
        self.k = k

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        losses = self._losses(logits, target)
        return ((1 + self.k) * losses / (1 + self.k * losses)).mean()
