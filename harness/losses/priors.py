"""Losses that compare the prediction with what the training labels taught: neighbours and sizes of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.losses._common import Reduction, check_reduction, flat, ratio, true_class


class NonAdjacency(nn.Module):
    """Non-adjacency loss (Ganaye et al., 2019): λ times how much classes touch that never touch in the training labels.

        A_ij = (1 / N) Σ_n p_i(n) (k * p_j)(n),   L = λ Σ_{(i, j): G_ij = 0} A_ij / #{(i, j): G_ij = 0}

    k is a box of 3 x 3 (3 x 3 x 3), ones over their number, with zeros around the image, as in the authors' code; G is
    the fact `adjacency`. Pairs with an ignored voxel are left out. The label serves for its ignored voxels and for the
    Dice below, and for nothing else.

    The authors add the loss to Dice and cross-entropy of a trained network and let λ grow. Our reading of their
    controller, with training Dice where they look at the validation set: after the first epoch λ = 0.3 Dice / A, A the
    mean of the penalty; every fifth epoch it grows by `factor`, but not while Dice is 0.01 or more below its best
    epoch, and after five such epochs in a row it shrinks by 0.95. It never exceeds 1000 times its first value. The
    authors measure one epoch before they begin (`start=1`); by default λ is `weight` in that epoch, so that the loss
    is never without effect. Their last phase, which lowers λ in the last third, is left out.

    Args:
        adjacency: G, (C, C): anything above 0 where classes may touch; a fact of the training labels.
        weight: λ until the end of the first epoch, and throughout where `factor` is None.
        start: Epochs before the loss begins to count.
        factor: Growth of λ; the authors' 1.3. None keeps λ constant.
        neighbours: `box`, the authors' k, or `faces`: a voxel and its face neighbours. The fact counts face neighbours,
            so that `box` also sees contacts at corners that no training label need have across a face.

    Raises:
        ValueError: There is no adjacency, it is not square, or a number is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, adjacency, strength.

    Advantages:
        Anatomical knowledge without further labels; works on images without labels too.

    Disadvantages:
        Says nothing about where classes are, and nothing at all where every pair of classes touches somewhere in the
        training labels; a network that predicts one class everywhere is perfect to it.

    Use:
        As a term of a sum, for many structures with a fixed arrangement, at best from a trained network on.

    Elsewhere:
        The authors estimate G with the same box, corners included; soft probabilities of one voxel count as contact
        there as here.
    """

    version = 1
    taxonomy = ("shape prior", "region")
    declares: ClassVar[dict[str, str]] = {
        "descent": "the label is not compared with the prediction",
        "classwise": "the label is not compared with the prediction",
        "monotone_large": "a shifted object touches the same classes",
        "monotone_small": "a shifted object touches the same classes",
    }
    forbidden: Tensor
    strength: Tensor
    state: Tensor
    sums: Tensor

    def __init__(
        self,
        adjacency: Sequence[Sequence[float]] | None = None,
        weight: float = 1.0,
        start: int = 0,
        factor: float | None = 1.3,
        neighbours: Literal["box", "faces"] = "box",
    ) -> None:
        super().__init__()
        if adjacency is None:
            raise ValueError("the loss needs the adjacency of the classes in the training labels")
        if neighbours not in ("box", "faces"):
            raise ValueError(f"neighbours must be 'box' or 'faces', found {neighbours!r}")
        if weight < 0 or start < 0 or (factor is not None and factor < 1):
            raise ValueError(
                f"expected weight and start of at least 0 and a factor of at least 1, found {weight}, {start}, {factor}"
            )
        known = torch.tensor([[float(n) for n in row] for row in adjacency])
        if known.ndim != 2 or known.shape[0] != known.shape[1]:
            raise ValueError(f"adjacency must be square, found shape {tuple(known.shape)}")
        self.start, self.factor, self.neighbours = start, factor, neighbours
        self.register_buffer("forbidden", (known <= 0).float(), persistent=False)
        self.register_buffer("strength", torch.tensor(float(weight)))
        # epochs over, epochs since λ moved, epochs in a row with a low Dice, best Dice, first λ
        self.register_buffer("state", torch.zeros(5))
        # of the running epoch: steps, Σ Dice, Σ penalty
        self.register_buffer("sums", torch.zeros(3))

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss, the penalty without its weight, and λ."""
        if logits.shape[1] != len(self.forbidden):
            raise ValueError(f"adjacency of {len(self.forbidden)} classes does not fit {logits.shape[1]}")
        scores, labels, valid = flat(logits, target)
        weight = valid.to(scores.dtype)
        probs = scores.softmax(1) * weight[:, None]
        penalty = self._penalty(probs.reshape(logits.shape), weight.sum())
        if self.training and self.factor is not None:
            with torch.no_grad():
                dice = _mean_dice(probs.detach(), labels, weight)
                self.sums += torch.stack([torch.ones_like(dice), dice, penalty.detach()]).to(self.sums)
        # no branch on a tensor: before its start the loss is 0 times a finite number
        strength = (self.strength * (self.state[0] >= self.start)).to(penalty.dtype)
        return {"loss": strength * penalty, "adjacency": penalty, "strength": strength}

    def _penalty(self, probs: Tensor, count: Tensor) -> Tensor:
        around = _around(probs, self.neighbours == "faces")
        forbidden = self.forbidden.to(probs.dtype)
        with torch.autocast(device_type=probs.device.type, enabled=False):
            touching = torch.matmul(probs.flatten(2), around.flatten(2).transpose(1, 2)).sum(0)
        return (touching * forbidden).sum() / (count.clamp_min(1) * forbidden.sum().clamp_min(1))

    @torch.no_grad()
    def epoch_end(self) -> None:
        """Move λ."""
        steps, dice, penalty = (float(v) for v in self.sums)
        epoch, since, low, best, first = (float(v) for v in self.state)
        if self.factor is not None and steps:
            dice, penalty = dice / steps, penalty / steps
            strength = float(self.strength)
            if first == 0:
                strength = 0.3 * dice / penalty if penalty > 0 and dice > 0 else strength
                first, since, low = strength, 0, 0
            else:
                fell = best - dice >= 0.01
                low, since = (low + 1, since) if fell else (0, since + 1)
                if low >= 5:
                    strength, low, since = 0.95 * strength, 0, 0
                elif since >= 5:
                    strength, since = min(strength * self.factor, 1000 * first), 0
            self.strength.fill_(strength)
            best = max(best, dice)
        self.state.copy_(torch.tensor([epoch + 1, since, low, best, first]))
        self.sums.zero_()


class SizePrior(nn.Module):
    """Prior-aware loss (Zhou et al., 2019): how far the predicted sizes of the classes are from those in training.

        L = Σ_c KL(Bernoulli(q_c) || Bernoulli(p̄_c)) = Σ_c q_c ln(q_c / p̄_c) + (1 - q_c) ln((1 - q_c) / (1 - p̄_c))

    p̄_c is the mean probability of class c, q_c its share of the voxels of the training labels, from the fact
    `class_counts`. The paper takes p̄ over a whole data set and optimises a saddle-point form of it by turns; our
    reading takes it over the batch, in closed form, so that small batches pull every image towards the mean sizes.
    Sums are taken in logarithms: exact and with a gradient where a class has no probability at all. The label is used
    for nothing but its ignored voxels.

    Args:
        class_counts: Voxels of each class in the training labels; a fact of the data set.
        binary: The paper's sum over classes of the divergence of a class from the rest. Without it, KL(q || p̄) of the
            distribution over classes, half as redundant.
        background: Whether class 0 counts.
        reduction: p̄ over the whole batch, or per sample and then the mean.

    Raises:
        ValueError: There are no counts, one is negative, all are 0, or reduction is unknown.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Uses images whose labels miss classes; keeps a class from vanishing or flooding the image.

    Disadvantages:
        Knows sizes alone. It pulls images with unusual sizes, and patches, towards the mean: at the truth it is not 0.

    Use:
        A term of a sum with a small weight, with whole images or large batches.

    Elsewhere:
        The second half of each summand is redundant with softmax, which amounts to a larger weight.
    """

    version = 1
    taxonomy = ("shape prior", "region")
    declares: ClassVar[dict[str, str]] = {
        "descent": "only the size of the prediction counts, not its place",
        "classwise": "a class that is already too large grows",
        "monotone_large": "a shifted object has the same size",
        "monotone_small": "a shifted object has the same size",
    }
    share: Tensor

    def __init__(
        self,
        class_counts: Sequence[float] | None = None,
        binary: bool = True,
        background: bool = True,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__()
        if class_counts is None:
            raise ValueError("the loss needs class_counts, the voxels of each class in the training labels")
        counts = torch.tensor([float(n) for n in class_counts], dtype=torch.float64)
        if counts.min() < 0 or counts.sum() == 0:
            raise ValueError(f"expected counts of at least 0 that are not all 0, found {list(class_counts)}")
        self.binary, self.background, self.reduction = binary, background, check_reduction(reduction)
        self.register_buffer("share", counts / counts.sum(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        if logits.shape[1] != len(self.share):
            raise ValueError(f"counts of {len(self.share)} classes do not fit {logits.shape[1]}")
        scores, _, valid = flat(logits, target)
        log_p = scores.log_softmax(1)
        if self.reduction == "batch":
            log_p, valid = log_p.transpose(0, 1).flatten(1)[None], valid.flatten()[None]
        some = valid.any(1)
        # a sample without a valid voxel: any finite number, weighed with 0 below
        masked = log_p.masked_fill(~(valid | ~some[:, None])[:, None], -torch.inf)
        count = torch.where(some, valid.sum(1), valid.shape[1]).to(log_p.dtype)
        mean = masked.logsumexp(2) - count.log()[:, None]
        losses = self._divergence(mean)
        weight = some.to(losses.dtype)
        return (losses * weight).sum() / weight.sum().clamp_min(1)

    def _divergence(self, log_p: Tensor) -> Tensor:
        """Divergence of each row of log p̄, (R, C) → (R,)."""
        q, first = self.share.to(log_p.dtype), 0 if self.background else 1
        terms = torch.xlogy(q, q) - q * log_p
        if self.binary:
            # ln(1 - p̄_c), as the sum over the other classes
            others = torch.eye(len(q), dtype=torch.bool, device=log_p.device)
            rest = log_p[:, None].expand(-1, len(q), -1).masked_fill(others, -torch.inf).logsumexp(2)
            terms = terms + torch.xlogy(1 - q, 1 - q) - (1 - q) * rest
        return terms[:, first:].sum(1)


def _around(probs: Tensor, faces: bool) -> Tensor:
    """Mean over a voxel and its neighbours, zeros around the image. Slices: full precision, deterministic on CUDA."""
    axes = range(2, probs.ndim)
    if faces:
        total = probs.clone()
        for axis in axes:
            total = total + _both_sides(probs, axis)
        return total / (1 + 2 * len(axes))
    for axis in axes:
        probs = probs + _both_sides(probs, axis)
    return probs / float(3 ** len(axes))


def _both_sides(x: Tensor, axis: int) -> Tensor:
    """The sum of the two neighbours along an axis, 0 outside."""
    none = torch.zeros_like(x.narrow(axis, 0, 1))
    size = x.shape[axis] - 1
    return torch.cat([x.narrow(axis, 1, size), none], axis) + torch.cat([none, x.narrow(axis, 0, size)], axis)


def _mean_dice(probs: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Mean soft Dice of the foreground classes that are there."""
    own = true_class(probs, labels)
    scores, there = [], []
    for c in range(1, probs.shape[1]):
        mine = (labels == c).to(weight.dtype) * weight
        size = mine.sum()
        scores.append(ratio(2 * (own * mine).sum(), probs[:, c].sum() + size))
        there.append(size > 0)
    present = torch.stack(there).to(weight.dtype)
    mean: Tensor = (torch.stack(scores) * present).sum() / present.sum().clamp_min(1)
    return mean
