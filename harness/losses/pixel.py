"""Pixel losses: means over voxels of a function of the probability of the true class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.losses._common import (
    IGNORE,
    Reduction,
    check_reduction,
    class_sizes,
    fitting,
    full_precision,
    safe_power,
    true_log_p,
    weighted_log_p,
)


class CrossEntropy(nn.Module):
    """Cross-entropy: the mean over valid voxels of -ln p_n, p_n the probability of the true class.

        L = -(1/N) Σ_n ln p_n,   with weights   L = -Σ_n w_y(n) ln p_n / Σ_n w_y(n)

    Azad et al., 2023, eqs. 1 and 2, with the mean in place of the printed sum. With weights the normaliser is the sum
    of the weights, as in `torch.nn.CrossEntropyLoss`, not the number of voxels. Without `nll_loss2d`, which has no
    deterministic form on CUDA.

    Args:
        weight: Weight of each class with background, (C,); none by default.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.

    Advantages:
        Smooth, convex in the logits, with a gradient at every wrong voxel from the first step on; its minimum is the
        true posterior, so probabilities stay calibrated.

    Disadvantages:
        Every voxel counts the same: where the background is most of the image it dominates, and small objects vanish.
        Blind to shape and to the overlap that is measured in the end.

    Use:
        The baseline, and the partner of region and boundary losses that cannot start from scratch.

    Elsewhere:
        torch divides by the sum of weights, kornia and MONAI's weighted forms by the number of voxels, GSL eq. 4 by
        the number of classes too.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        if self.weight is None:
            log_p, voxels = true_log_p(logits, target)
            return -log_p.sum() / voxels.sum().clamp_min(1)
        log_p, _, weight = weighted_log_p(logits, target, self.weight)
        return -log_p.sum() / weight.sum().clamp_min(torch.finfo(log_p.dtype).tiny)


Scheme = Literal["inverse", "median", "normalized"]


class WeightedCrossEntropy(nn.Module):
    """Weighted cross-entropy (Ronneberger et al., 2015; Azad et al., 2023, eq. 2): mean of w_y (-ln p_n).

        L = -Σ_n w_y(n) ln p_n / N,   or with `normalizer="weights"`   / Σ_n w_y(n)

    Azad's eq. 2 prints the sum without a normaliser. The weights come from the numbers of voxels N_c of the training
    split unless they are given:

        inverse:     w_c = Σ_k N_k / (C N_c)              1 on average over the voxels of the training split
        median:      w_c = median(N) / N_c                 Eigen and Fergus, 2015, from pooled counts (our reading)
        normalized:  w_c = (1 / N_c) / Σ_k (1 / N_k)       Celaya et al., 2023, eq. 13; they add up to 1

    The three differ by a common factor, which `normalizer="weights"` cancels. A class without a voxel in the training
    split has weight 0: no voxel of the label would count it anyway.

    Args:
        weight: Weight of each class with background, (C,); overrides the scheme.
        scheme: `inverse`, `median` or `normalized`.
        normalizer: `voxels`: the number of valid voxels. `weights`: the sum of their weights, as in torch.
        class_counts: Voxels of each class in the training split, a fact of the data set.

    Raises:
        ValueError: Neither weights nor counts are known, or an argument is none of its choices.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.

    Advantages:
        Rare classes count as much as frequent ones over the data set, with the smooth gradient of cross-entropy.

    Disadvantages:
        Weights far from 1 bring false positives of the rare classes, and noise from their few voxels; fixed over the
        training, whatever is still hard.

    Use:
        Imbalance between classes that is about the same in every image.

    Elsewhere:
        SegLoss' `WeightedCrossEntropyLossV2` ignores its weights. Jadon's code of the binary form uses
        β / (1 - β) as the weight of positives in place of the β of his eq. 2.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    weight: Tensor

    def __init__(
        self,
        weight: Tensor | None = None,
        scheme: Scheme = "inverse",
        normalizer: Literal["voxels", "weights"] = "voxels",
        class_counts: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if normalizer not in ("voxels", "weights"):
            raise ValueError(f"normalizer must be 'voxels' or 'weights', found {normalizer!r}")
        if weight is None:
            if class_counts is None:
                raise ValueError("give weight, or class_counts to make it from")
            weight = class_weights(class_counts, scheme)
        self.normalizer = normalizer
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        log_p, voxels, weight = weighted_log_p(logits, target, self.weight)
        if self.normalizer == "voxels":
            return -log_p.sum() / voxels.sum().clamp_min(1)
        return -log_p.sum() / weight.sum().clamp_min(torch.finfo(log_p.dtype).tiny)


class BalancedCrossEntropy(nn.Module):
    """Balanced cross-entropy (Xie and Tu, 2015, HED eq. 2): a voxel weighs the share of the other classes.

        L = -(1/N) Σ_n (1 - N_y(n) / N_image) ln p_n

    In the binary case that is β for positives and 1 - β for negatives with β = |Y-| / |Y| of the image, as printed;
    both sides then have the same total weight. More than two classes are a class-balanced softmax, w_c the fraction of
    the image's valid voxels that are not of class c: our reading, the paper is binary. An image of one class weighs 0,
    as β = 1 leaves nothing in the paper. The mean is over the valid voxels of the batch; the paper sums.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.

    Advantages:
        Follows the imbalance of each image without a parameter or a pass over the data.

    Disadvantages:
        Images without an object teach nothing; over-segments, since a false positive costs little next to a miss. With
        many classes it balances the background against the rest, not small organs against large ones.

    Use:
        Thin structures and boundaries against a large background; images that differ in how much object they hold.

    Elsewhere:
        Jadon, 2020, eq. 3 prints β = 1 - y / (HW); it is Σ y / (HW). pytorch-toolbelt raises the weight of positives to
        its gamma twice: equal at gamma = 1 only.
    """

    version = 1
    taxonomy = ("pixel", "distribution")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sizes = class_sizes(target, logits.shape[1]).double()
        share = sizes / sizes.sum(1, keepdim=True).clamp_min(1)
        log_p, voxels, _ = weighted_log_p(logits, target, 1 - share)
        return -log_p.sum() / voxels.sum().clamp_min(1)


class TopK(nn.Module):
    """TopK cross-entropy (Wu et al., 2016; Azad et al., 2023, eq. 3): the mean of -ln p_n over the worst k percent.

        L = (1/K) Σ_{n in the K largest} (-ln p_n),   K = max(1, ⌊k N / 100⌋), N the number of valid voxels

    k = 100 is cross-entropy. Ma et al., 2021, print Wu's other form, by a threshold on p: `OHEM`. Voxels that tie at
    the K-th place share what is left (our reading), so that nothing depends on their order.

    Args:
        k: Percentage of valid voxels, above 0 and at most 100; nnU-Net's 10.
        reduction: Choose from the whole batch, as nnU-Net does, or from each sample.

    Raises:
        ValueError: k is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.

    Advantages:
        The easy voxels of the background do not drown the hard ones, without a weight per class.

    Disadvantages:
        Wrong labels are among the hardest and are followed most; most voxels have no gradient in a step, and the choice
        jumps from step to step. Training is slow at first with a small k.

    Use:
        With Dice (Ma et al. found DiceTopK among the best), or to finish a training that plain cross-entropy began.

    Elsewhere:
        nnU-Net and SegLoss round K down, to 0 and NaN on tiny patches, and let ignored voxels into the pool with the
        value 0; exacta rounds up. In the code of Azad et al. the choice fails or is never used.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    declares: ClassVar[dict[str, str]] = {
        "monotone_large": "once the worst k percent are as wrong as can be, further errors change nothing"
    }

    def __init__(self, k: float = 10.0, reduction: Reduction = "batch") -> None:
        super().__init__()
        if not 0 < k <= 100:
            raise ValueError(f"k must be a percentage above 0 and at most 100, found {k}")
        self.k, self.reduction = k, check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self.of(*true_log_p(logits, target))

    def of(self, log_p: Tensor, voxels: Tensor) -> Tensor:
        """The loss of ln p of the true classes, (B, N), 0 where ignored, and the number of valid voxels, (B, 1)."""
        losses = -log_p
        if self.reduction == "batch":
            losses, voxels = losses.reshape(1, -1), voxels.sum(0, keepdim=True)
        if self.k == 100:
            return (losses.sum(1, keepdim=True) / voxels.clamp_min(1)).mean()
        keep = (voxels.double() * self.k / 100 + 1e-9).floor().clamp_min(1).long()
        return _worst(losses, keep).mean()


class OHEM(nn.Module):
    """Online hard example mining (Wu et al., 2016): the mean of -ln p_n over voxels with p_n < threshold.

        L = (1/|H|) Σ_{n in H} (-ln p_n),   H = {n: p_n < threshold}, or the K worst if H has fewer

    Ma et al., 2021, print it as the TopK loss: 1{p_n < t}, with a minimal count. K = max(1, ⌊min_kept N⌋), a share of
    the valid voxels, since a number would mean another thing at each patch size (our reading).

    Args:
        threshold: Voxels below this probability of their class count, in (0, 1].
        min_kept: Share of the valid voxels of the batch that always counts, in [0, 1]; 1/16 to 1/5 are customary.

    Raises:
        ValueError: An argument is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.

    Advantages:
        Adapts how many voxels count: nearly all at first, the hard ones later.

    Disadvantages:
        Follows wrong labels as TopK does; the value jumps where a voxel crosses the threshold, and it does not fall
        steadily while training goes well.

    Use:
        Many easy voxels, labels one can trust.

    Elsewhere:
        mmsegmentation keeps a number of voxels (100,000 per image) and divides by all voxels, kept or not.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    declares: ClassVar[dict[str, str]] = {
        "monotone_large": "a mean over the hard voxels alone: more of them, equally hard, change nothing",
        "classwise": "a voxel that leaves the hard ones takes a small loss out of their mean, which rises",
    }

    def __init__(self, threshold: float = 0.7, min_kept: float = 0.1) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be a probability above 0, found {threshold}")
        if not 0 <= min_kept <= 1:
            raise ValueError(f"min_kept must be a share between 0 and 1, found {min_kept}")
        self.threshold, self.min_kept = threshold, min_kept

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        log_p, voxels = true_log_p(logits, target)
        losses = -log_p.reshape(1, -1)
        least = (voxels.sum(0, keepdim=True).double() * self.min_kept + 1e-9).floor().clamp_min(1).long()
        hard = (losses.detach() > -math.log(self.threshold)).sum(1, keepdim=True)
        return _worst(losses, torch.maximum(least, hard)).mean()


class Focal(nn.Module):
    """Focal loss (Lin et al., 2017, eq. 5): the mean over valid voxels of -α_y (1 - p_n)^γ ln p_n.

    The softmax form of Azad et al., 2023, section 3.1; γ = 0 is cross-entropy (Jadon, 2020, says γ = 1, which is an
    error). The normaliser is the number of valid voxels, whatever α. For γ < 1 the power is cut off at 1 - p = 1e-7,
    where its slope grows without bound.

    Args:
        gamma: γ, at least 0.
        alpha: Weight α of each class with background, (C,); none by default.

    Raises:
        ValueError: γ is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.

    Advantages:
        Voxels that are right already weigh little: an imbalance of easy and hard, and so of classes, is dampened.

    Disadvantages:
        γ must be tuned; noisy labels count more; probabilities come out less confident than they should.

    Use:
        Small objects against a large, easy background.

    Elsewhere:
        kornia and MONAI (`use_softmax`) divide by the number of classes too; MONAI's and smp's defaults are
        one-vs-rest sigmoids: other values. kornia's alpha gives class 0 the weight 1 - α. The code of Azad et al.
        multiplies two means, with N x N memory. RetinaNet normalises by the number of positive anchors.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    alpha: Tensor | None

    def __init__(self, gamma: float = 2.0, alpha: Tensor | None = None) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, found {gamma}")
        self.gamma = gamma
        self.register_buffer("alpha", alpha, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        log_p, voxels = true_log_p(logits, target)
        loss = -log_p
        if self.gamma:
            loss = loss * safe_power(-torch.expm1(log_p), self.gamma)  # -expm1: 1 - p without cancellation
        if self.alpha is not None:
            loss = loss * _weights(self.alpha, logits, target)
        return loss.sum() / voxels.sum().clamp_min(1)


def class_weights(counts: Sequence[float], scheme: Scheme) -> Tensor:
    """Weights from numbers of voxels, 0 for a class without one (see `WeightedCrossEntropy`).

    Raises:
        ValueError: The scheme is none, or there is no voxel at all.
    """
    sizes = torch.tensor([float(n) for n in counts], dtype=torch.float64)
    there = sizes > 0
    if not there.any():
        raise ValueError(f"class_counts holds no voxel: {list(counts)}")
    inverse = torch.where(there, 1 / sizes, 0.0)
    if scheme == "inverse":
        factor = sizes.sum() / len(sizes)
    elif scheme == "median":
        factor = sizes[there].quantile(0.5)
    elif scheme == "normalized":
        factor = 1 / inverse.sum()
    else:
        raise ValueError(f"scheme must be 'inverse', 'median' or 'normalized', found {scheme!r}")
    return (factor * inverse).float()


def _weights(weight: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """The weight of each voxel's class, (B, N), 0 where ignored."""
    scores = full_precision(logits)
    table = scores.new_zeros(IGNORE + 1)  # the ignored label has a place of its own: one pass over the labels
    table[: logits.shape[1]] = fitting(weight, logits.shape[1])
    return table.index_select(0, target.reshape(-1)).view(len(target), -1)


def _worst(losses: Tensor, keep: Tensor) -> Tensor:
    """The mean of the `keep` largest of each row: (R, N) of at least 0, (R, 1) → (R,); ties at the last place share it.

    Ignored voxels have a loss of 0 and no gradient: chosen or not, they change nothing.
    """
    if losses.is_cpu:
        return torch.stack([_worst_of_row(row, int(k)) for row, k in zip(losses, keep, strict=True)])
    return _worst_by_sort(losses, keep)


def _worst_by_sort(losses: Tensor, keep: Tensor) -> Tensor:
    """The same where the numbers are on the device: sort, and do not wait for them."""
    with torch.no_grad():
        edge = losses.sort(1, descending=True).values.gather(1, keep - 1)
        above, tied = losses > edge, losses == edge
        share = (keep - above.sum(1, keepdim=True)).to(losses.dtype) / tied.sum(1, keepdim=True)
        weight = (above + tied * share) / keep
    return (losses * weight).sum(1)


def _worst_of_row(losses: Tensor, keep: int) -> Tensor:
    found = losses.detach().topk(keep, sorted=False)
    edge = found.values.amin()
    tied = losses.detach() == edge
    if int(tied.sum()) == int((found.values == edge).sum()):
        return losses.index_select(0, found.indices).mean()
    above = losses.detach() > edge
    return (losses * (above + tied * ((keep - above.sum()) / tied.sum())) / keep).sum()
