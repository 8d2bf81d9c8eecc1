"""Compound losses: weighted sums of a loss on regions and one on voxels. `Sum` adds any losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.losses._common import (
    Absent,
    Reduction,
    RegionSums,
    check_absent,
    check_reduction,
    flat,
    of_class,
    over_classes,
    ratio,
    region_sums_and_log_p,
    safe_power,
    true_class,
)
from harness.losses._sum import Sum
from harness.losses.dice import Dice
from harness.losses.pixel import CrossEntropy, Focal, TopK

__all__ = ["Combo", "DiceCE", "DiceFocal", "DiceTopK", "ExpLog", "Sum"]


class DiceCE(nn.Module):
    """Dice + cross-entropy (Isensee et al., 2018): dice_weight · Dice + ce_weight · CE; the terms are returned too.

        L = λ_D (1 - mean_c (2 Σ t_c p_c + s) / (Σ t_c + Σ p_c + s)) - λ_CE mean_n ln p_n

    Ma et al., 2021. nnU-Net returns -Dice in place of 1 - Dice, another constant, and leaves the background out of it.

    Args:
        dice_weight: Weight of Dice.
        ce_weight: Weight of cross-entropy.
        weight: Class weights of the cross-entropy, (C,).
        background: Whether class 0 counts in Dice.
        reduction: Sums of Dice over the whole batch, or per sample.
        absent: What a class without a voxel contributes to Dice (see `Dice`).
        smooth: s.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, dice, ce.

    Advantages:
        Cross-entropy gives every voxel a smooth gradient from the first step on, Dice counters the imbalance of
        classes; in Ma's comparison the most robust family.

    Disadvantages:
        Two terms whose balance depends on the sizes of the objects; nothing in it knows about contours or topology.

    Use:
        The default to measure everything else against.

    Elsewhere:
        MONAI's DiceCELoss averages Dice over samples (`reduction="sample"`), and its include_background=False leaves
        the cross-entropy alone; GSL eq. 4 divides the cross-entropy by the number of classes too.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        weight: Tensor | None = None,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.dice = Dice(background=background, reduction=reduction, absent=absent, smooth=smooth)
        self.ce = CrossEntropy(weight)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        sums, log_p = region_sums_and_log_p(logits, target, self.dice.reduction)
        dice, weight = _dice(self.dice, sums), self.ce.weight
        if weight is None:
            ce = -log_p.sum() / sums.valid.sum().clamp_min(1)
        else:
            each = _class_weights(weight, logits, target)
            ce = -(log_p * each).sum() / each.sum().clamp_min(torch.finfo(each.dtype).tiny)
        return {"loss": self.dice_weight * dice + self.ce_weight * ce, "dice": dice, "ce": ce}


class DiceTopK(nn.Module):
    """Dice + TopK (nnU-Net; Ma et al., 2021): dice_weight · Dice + topk_weight · mean CE of the worst k percent.

        L = λ_D (1 - mean_c Dice_c) + λ_T mean_{n in worst k %} (-ln p_n)

    A plain sum, as in nnU-Net's DC_and_topk_loss; the terms are returned too.

    Args:
        dice_weight: Weight of Dice.
        topk_weight: Weight of TopK.
        k: Percentage of voxels that TopK keeps; nnU-Net's 10.
        background: Whether class 0 counts in Dice.
        reduction: Sums of Dice over the whole batch, or per sample.
        absent: What a class without a voxel contributes to Dice (see `Dice`).
        smooth: s of Dice.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, dice, topk.

    Advantages:
        Dice for the imbalance, and a pixel term that is not drowned by the many easy voxels of the background; among
        the best in Ma's comparison.

    Disadvantages:
        Wrong labels are among the worst voxels and are followed hardest; the choice of voxels jumps between steps.

    Use:
        Imbalanced classes with labels one can trust.

    Elsewhere:
        nnU-Net returns -Dice in place of 1 - Dice, and lets ignored voxels into the pool with the value 0.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        dice_weight: float = 1.0,
        topk_weight: float = 1.0,
        k: float = 10.0,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dice_weight, self.topk_weight = dice_weight, topk_weight
        self.dice = Dice(background=background, reduction=reduction, absent=absent, smooth=smooth)
        self.topk = TopK(k)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        sums, log_p = region_sums_and_log_p(logits, target, self.dice.reduction)
        dice, topk = _dice(self.dice, sums), self.topk.of(log_p, sums.valid)
        return {"loss": self.dice_weight * dice + self.topk_weight * topk, "dice": dice, "topk": topk}


class DiceFocal(nn.Module):
    """Dice + focal loss (Zhu et al., 2019, AnatomyNet): dice_weight · Dice + focal_weight · focal.

        L = λ_D (1 - mean_c Dice_c) - λ_F mean_n (1 - p_n)^γ ln p_n

    A plain sum by default, as in Ma et al., 2021; AnatomyNet weighs the focal term with a λ of its own and takes a
    Tversky index with weights of 1/2, which is Dice. The focal term is the softmax form. The terms are returned too.

    Args:
        dice_weight: Weight of Dice.
        focal_weight: Weight of the focal term.
        gamma: γ of the focal term.
        alpha: Class weights of the focal term, (C,).
        background: Whether class 0 counts in Dice.
        reduction: Sums of Dice over the whole batch, or per sample.
        absent: What a class without a voxel contributes to Dice (see `Dice`).
        smooth: s of Dice.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, dice, focal.

    Advantages:
        Dice counters the imbalance between classes, the focal term that between easy and hard voxels.

    Disadvantages:
        The focal term is small where most voxels are easy, so that Dice leads; γ is one more thing to set.

    Use:
        Small structures beside large ones.

    Elsewhere:
        MONAI's DiceFocalLoss(softmax=True) keeps a sigmoid in its focal term (issue 8242), and divides by the number
        of classes.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        gamma: float = 2.0,
        alpha: Tensor | None = None,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        self.dice_weight, self.focal_weight = dice_weight, focal_weight
        self.dice = Dice(background=background, reduction=reduction, absent=absent, smooth=smooth)
        self.focal = Focal(gamma=gamma, alpha=alpha)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        sums, log_p = region_sums_and_log_p(logits, target, self.dice.reduction)
        dice, losses = _dice(self.dice, sums), -log_p
        if self.focal.gamma:
            losses = losses * safe_power(-torch.expm1(log_p), self.focal.gamma)  # -expm1: 1 - p without cancellation
        if self.focal.alpha is not None:
            losses = losses * _class_weights(self.focal.alpha, logits, target)
        focal = losses.sum() / sums.valid.sum().clamp_min(1)
        return {"loss": self.dice_weight * dice + self.focal_weight * focal, "dice": dice, "focal": focal}


class Combo(nn.Module):
    """Combo loss (Taghanaki et al., 2019): ce_weight · weighted binary cross-entropy + (1 - ce_weight) · Dice.

    Azad et al., 2023, eq. 32.

        L = -α mean_{n,c} [β t ln p + (1 - β) (1 - t) ln(1 - p)] + (1 - α) (1 - mean_c (2 TP_c + s) / (Σ t + Σ p + s))

    α is `ce_weight`, β is `fn_weight` and 1 - β is `fp_weight`, two numbers here. With several classes each is one
    against the rest with its softmax probability, as the authors' equation is read, and the mean is over voxels and
    classes. The paper subtracts (1 - α) Dice: the same up to the constant 1 - α, and 0 at the truth here. Dice is the
    mean over classes where the authors' code pools all channels. Jadon, 2020, eq. 17 prints β (y - ln p), which must be
    a product.

    Args:
        ce_weight: α, from 0 to 1.
        fn_weight: Weight of -ln p in the object: false negatives.
        fp_weight: Weight of -ln(1 - p) outside: false positives.
        background: Whether class 0 counts, in both terms.
        reduction: Sums of Dice over the whole batch, or per sample.
        absent: What a class without a voxel contributes to Dice (see `Dice`).
        smooth: s of Dice; the authors' 1.

    Raises:
        ValueError: ce_weight is not in [0, 1], or an error weight is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, ce, dice.

    Advantages:
        Handles imbalance of the classes through Dice, and trades false positives for false negatives through the
        weights of the cross-entropy.

    Disadvantages:
        Two balances to set. With softmax every voxel's cross-entropy is counted once for each class.

    Use:
        Where one kind of error is worse than the other.

    Elsewhere:
        In versions of the authors' code the background term has the wrong sign (raising p there lowers the loss), or β
        multiplies the whole bracket; unified-focal-loss-pytorch's ComboLoss ignores β; the file of that name in the
        survey's code is its Dice.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        ce_weight: float = 0.5,
        fn_weight: float = 0.5,
        fp_weight: float = 0.5,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= ce_weight <= 1 or min(fn_weight, fp_weight) < 0:
            raise ValueError(
                "expected ce_weight in [0, 1] and error weights of at least 0, "
                f"found {ce_weight}, {fn_weight}, {fp_weight}"
            )
        self.ce_weight, self.fn_weight, self.fp_weight, self.background = ce_weight, fn_weight, fp_weight, background
        self.dice = Dice(background=background, reduction=reduction, absent=absent, smooth=smooth)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        dice, ce = self.dice(logits, target), self._cross_entropy(logits, target)
        return {"loss": self.ce_weight * ce + (1 - self.ce_weight) * dice, "ce": ce, "dice": dice}

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        scores, labels, valid = flat(logits, target)
        first, weight = 0 if self.background else 1, valid.to(scores.dtype)
        log_p = scores.log_softmax(1)
        inside = true_class(log_p, labels)
        outside = _log_complement(scores, log_p)
        if first:
            inside = inside * (labels > 0).to(inside.dtype)
            outside = outside[:, 1:]
        own = torch.arange(first, scores.shape[1], device=labels.device)[None, :, None] == labels[:, None]
        losses = self.fn_weight * inside + self.fp_weight * outside.masked_fill(own, 0).sum(1)
        return -(losses * weight).sum() / (weight.sum().clamp_min(1) * outside.shape[1])


class ExpLog(nn.Module):
    """Exponential logarithmic loss (Wong et al., 2018): weighted means of (-ln Dice_c)^γ and of w_y (-ln p_n)^γ.

    Azad et al., 2023, eqs. 33 to 35.

        L = λ_D mean_c (-ln Dice_c)^γ_D + λ_CE mean_n w_y (-ln p_n)^γ_CE,   w_c = (Σ_k f_k / f_c)^0.5

    f are the voxel counts of the training labels. The survey's eqs. 34 and 35 take the logarithm of the losses, which
    turns the Dice term round and fails where the cross-entropy is above 1; Jadon, 2020, eq. 20 misplaces the power. For
    γ < 1 the gradient of x^γ grows without bound at 0: below 1e-6 the power is continued by its chord, so that the
    value is 0 at the truth and the gradient finite. The mean of the second term is over voxels, not over weights.

    Args:
        dice_weight: λ_D; the authors' 0.8.
        ce_weight: λ_CE; the authors' 0.2.
        dice_gamma: γ_D; the authors' 0.3.
        ce_gamma: γ_CE; the authors' 0.3.
        class_counts: f, a fact of the training labels; without it every weight is 1. A class without a voxel there is
            weighed as one with a single voxel.
        background: Whether class 0 counts in Dice.
        reduction: Sums of Dice over the whole batch, or per sample.
        absent: What a class without a voxel contributes to Dice (see `Dice`).
        smooth: s of Dice.

    Raises:
        ValueError: A γ is not above 0, or a count is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, dice, ce.

    Advantages:
        The logarithm makes badly segmented, mostly small, classes count more than Dice does; γ < 1 keeps the gradient
        alive close to the truth.

    Disadvantages:
        For γ < 1 the gradient is steepest at the truth, which is unrest at the end of training; rare classes get large
        weights, and the loss of an absent class depends on s.

    Use:
        Very unequal object sizes.

    Elsewhere:
        SegLoss takes the logarithm of the Dice averaged over classes and applies neither γ nor the weights to the
        cross-entropy.
    """

    version = 1
    taxonomy = ("combination", "compound")
    weight: Tensor | None

    def __init__(
        self,
        dice_weight: float = 0.8,
        ce_weight: float = 0.2,
        dice_gamma: float = 0.3,
        ce_gamma: float = 0.3,
        class_counts: Sequence[float] | None = None,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if min(dice_gamma, ce_gamma) <= 0:
            raise ValueError(f"gamma must be above 0, found {dice_gamma}, {ce_gamma}")
        self.dice_weight, self.ce_weight, self.dice_gamma, self.ce_gamma = dice_weight, ce_weight, dice_gamma, ce_gamma
        self.background, self.smooth = background, smooth
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)
        weight = None
        if class_counts is not None:
            counts = torch.tensor([float(n) for n in class_counts], dtype=torch.float64)
            if counts.min() < 0:
                raise ValueError(f"counts of voxels cannot be negative, found {list(class_counts)}")
            weight = (counts.sum() / counts.clamp_min(1)).sqrt()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        sums, log_p = region_sums_and_log_p(logits, target, self.reduction)
        losses = _power(-log_p, self.ce_gamma)
        if self.weight is not None:
            losses = losses * _class_weights(self.weight, logits, target)
        dice, ce = self._log_dice(sums), losses.sum() / sums.valid.sum().clamp_min(1)
        return {"loss": self.dice_weight * dice + self.ce_weight * ce, "dice": dice, "ce": ce}

    def _log_dice(self, sums: RegionSums) -> Tensor:
        total = sums.t + sums.p
        errors = ratio(total - 2 * sums.tp, total + self.smooth)
        # near 1 the logarithm of 1 - errors keeps the digits, near 0 that of the quotient does
        tiny = torch.finfo(total.dtype).tiny
        low = (total + self.smooth).clamp_min(tiny).log() - (2 * sums.tp + self.smooth).clamp_min(tiny).log()
        minus_log = torch.where(errors < 0.5, -torch.log1p(-errors.clamp(0, 0.5)), low)
        return over_classes(_power(minus_log, self.dice_gamma), sums, self.background, self.absent)


def _dice(loss: Dice, sums: RegionSums) -> Tensor:
    """What a Dice loss makes of sums at hand."""
    total = sums.t + sums.p
    return over_classes(ratio(total - 2 * sums.tp, total + loss.smooth), sums, loss.background, loss.absent)


def _class_weights(weights: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """The weight of each voxel's true class, (B, N), 0 where ignored."""
    scores, labels, valid = flat(logits, target)
    return of_class(weights, scores, labels) * valid


def _log_complement(scores: Tensor, log_p: Tensor) -> Tensor:
    """ln(1 - p) of softmax probabilities (B, C, N), exact where p rounds to 1.

    Only the largest probability of a voxel can be above 1/2; there 1 - p is the sum of the others.
    """
    top = scores.detach().argmax(1, keepdim=True)
    others = scores.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - scores.logsumexp(1, keepdim=True)
    rest = torch.log1p(-log_p.exp().clamp_max(0.5))
    largest = torch.arange(scores.shape[1], device=top.device)[None, :, None] == top
    return torch.where(largest, others, rest)


def _power(base: Tensor, exponent: float, eps: float = 1e-6) -> Tensor:
    """`base ** exponent` for base >= 0; for exponents below 1 its chord below eps: 0 at 0, with a finite gradient."""
    if exponent >= 1:
        return base**exponent
    return torch.where(base > eps, base.clamp_min(eps) ** exponent, base * eps ** (exponent - 1))
