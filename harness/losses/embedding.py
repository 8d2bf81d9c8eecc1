"""Losses on the embedding at the boundary of the truth: conditional boundary loss and pixel-wise triplets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.losses._common import IGNORE, full_precision
from harness.losses.active_boundary import offsets

# Added to a squared length before its root: the gradient stays finite where features are 0, as after a ReLU.
TINY = 1e-12
DRAWN = "triplets are drawn at random: another order or number of voxels, other triplets"


class ConditionalBoundary(nn.Module):
    """Conditional boundary loss (Wu et al., 2023): features at the true boundary drawn to their class, off the other.

    Azad et al., 2023, print no equation. For voxels i of the true boundary ∂ and j in the window around i:

        pairs      = mean_{i ∈ ∂, j} (cos(f_i, f_j) - [y_i = y_j])²
        centre     = mean_c mean_{i ∈ ∂_c, correct} ‖f_i - sg(m⁺_i)‖² / F
        neighbours = mean_c mean_{i ∈ ∂_c} (CE(g(m_i), c) + CE(g(m⁺_i), c))
        L = pair_weight · pairs + centre_weight · centre + neighbour_weight · neighbours

    m_i is the mean feature of the neighbours of i with its class, m⁺_i of those that are also classified correctly,
    sg stops the gradient, g is the segmentation head, which gets no gradient from this loss, F the number of features.
    A voxel without such neighbours is left out, and so are neighbours outside the image or ignored.

    Departures. The released code multiplies its mask by the label's number, so that class 0 never has pairs; it takes
    part here. There, pairs are made only where the whole window fits the image, and are averaged within each image;
    here every pair counts alike. A mean over classes is over those that have such a voxel; there, over those that have
    both kinds of voxels. The boundary is every voxel with a face neighbour of another class (there: the rim of
    an erosion by 2 % of the diagonal). The means have no 1e-5 in their denominators. In 3D the window is 3 × 3 × 3
    unless stated: its 26 neighbours come next to the 24 of the authors' 5 × 5 (our reading).

    Args:
        window: Odd side of the window; 5 in 2D and 3 in 3D by default.
        pair_weight: Weight of the pairs.
        centre_weight: Weight of the distance to the neighbours' mean.
        neighbour_weight: Weight of the classification of the neighbours' means.

    Raises:
        ValueError: The window is not odd and at least 3, or a weight is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored, embedding (B, F, *S) → dict of scalars.

    Advantages:
        Acts where segmentations are wrong, and on the features rather than on single probabilities: those of one
        class become alike right up to the boundary, those of two classes apart. Nothing is added to the network that
        predicts.

    Disadvantages:
        Several passes over the embedding for each neighbour, so it is slow, above all in 3D. Says
        nothing about voxels away from the boundary, and its three weights were tuned on street scenes.

    Use:
        Added to cross-entropy, with weight 1 as its authors do.

    Elsewhere:
        The authors' head has 512 channels written into it. The filter of correctly classified neighbours that the paper
        describes for the pairs is not in the released head, nor here.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "gradcheck": "the neighbours' mean gets no gradient from the distance to it, by design",
        "monotone_large": "compares features of neighbours: all wrong alike can cost less than some wrong",
        "classwise": "compares features of neighbours: all wrong alike can cost less than some wrong",
    }

    def __init__(
        self,
        window: int | None = None,
        pair_weight: float = 1.0,
        centre_weight: float = 2.0,
        neighbour_weight: float = 0.2,
    ) -> None:
        super().__init__()
        if window is not None and (window < 3 or window % 2 == 0):
            raise ValueError(f"window must be odd and at least 3, found {window}")
        if min(pair_weight, centre_weight, neighbour_weight) < 0:
            raise ValueError(
                f"weights must not be negative, found {pair_weight}, {centre_weight} and {neighbour_weight}"
            )
        self.window, self.pair_weight = window, pair_weight
        self.centre_weight, self.neighbour_weight = centre_weight, neighbour_weight

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        embedding: Tensor,
        classify: Callable[[Tensor], Tensor],
        boundary: Tensor,
    ) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        valid = target != IGNORE
        steps = offsets(target.ndim - 1, self.window or (5 if target.ndim == 3 else 3))
        with torch.autocast(logits.device.type, enabled=False):
            features = full_precision(embedding)
            unit = features * (features.square().sum(1, keepdim=True) + TINY).rsqrt()
            pairs: Tensor = _Pairs.apply(unit, target, boundary, steps)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                labels = torch.where(valid, target, 0)
                correct = (logits.argmax(1) == target) & valid
            mean, number = _neighbour_means(features, target, valid, steps)
            sure, sure_number = _neighbour_means(features, target, correct, steps)
            near = ((features - sure.detach()) ** 2).mean(1)
            classes = logits.shape[1]
            centre = _over_classes(near, labels, boundary & correct & (sure_number > 0), classes)
            neighbours = _frozen(classify, mean, labels, boundary & (number > 0))
            neighbours = neighbours + _frozen(classify, sure, labels, boundary & (sure_number > 0))
        total = self.pair_weight * pairs + self.centre_weight * centre + self.neighbour_weight * neighbours
        # an empty sum, so that the logits are part of the graph where they do not come from the embedding
        loss = total + full_precision(logits[:0]).sum()
        return {"loss": loss, "pairs": pairs, "centre": centre, "neighbours": neighbours}


class PixelTriplet(nn.Module):
    """Pixel-wise triplet loss (Wen et al., 2022, our reading): mean of max(0, m + d(a, p) - d(a, n)) at the boundary.

        L = 1/|T| Σ_{(a, p, n) ∈ T} max(0, m + ‖f_a - f_p‖ - ‖f_a - f_n‖),  y_p = y_a ≠ y_n

    Azad et al., 2023, describe it without an equation, no code was found, and margin and sampling are not known to us.
    Our reading: in each image as many as `anchors` voxels are drawn from the true boundary, without repetition; each is
    an anchor once, with a positive of its class and a negative of another class drawn from the same voxels. Features
    have length 1. Voxels without a partner of either kind make no triplet.

    Args:
        margin: m; the distance of features of length 1 is at most 2.
        anchors: Most voxels drawn from an image.
        normalize: Whether features are brought to length 1.

    Raises:
        ValueError: The margin is not above 0, or fewer than 3 anchors.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored, embedding (B, F, *S) → scalar.

    Advantages:
        Separates the features of two classes exactly where they are confused, and is cheap: a fixed number of voxels,
        whatever the size of the image.

    Disadvantages:
        Trains no classifier, so it is of use only beside another loss. A random sample of triplets makes the gradient
        noisy, and after a while most triplets are satisfied and say nothing.

    Use:
        With a small weight beside cross-entropy or Dice, where boundaries between neighbouring structures blur.

    Elsewhere:
        pytorch-metric-learning's `TripletMarginLoss` computes the same for given triplets (default margin 0.05), and by
        default averages over the triplets that are not satisfied alone.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "order": "the features of an inverted prediction are as well apart",
        "voxelwise": DRAWN,
        "class_permutation": DRAWN,
        "batch_order": DRAWN,
        "axes": DRAWN,
        "copies": DRAWN,
        "descent": "sets the features of two classes apart, and does not say which features are whose",
        "monotone_large": DRAWN,
        "classwise": "sets features apart; one wrong as a whole can cost less than one half right",
    }

    def __init__(self, margin: float = 0.5, anchors: int = 256, normalize: bool = True) -> None:
        super().__init__()
        if margin <= 0 or anchors < 3:
            raise ValueError(f"expected margin > 0 and anchors >= 3, found {margin} and {anchors}")
        self.margin, self.anchors, self.normalize = margin, anchors, normalize

    def forward(
        self, logits: Tensor, target: Tensor, *, embedding: Tensor, boundary: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the loss."""
        with torch.autocast(logits.device.type, enabled=False):
            voxels, drawn, positive, negative = self.sample(target, boundary, generator)
            where = voxels[:, None].expand(-1, embedding.shape[1], -1)
            features = full_precision(embedding).flatten(2).gather(2, where)
            if self.normalize:
                features = features * (features.square().sum(1, keepdim=True) + TINY).rsqrt()
            to_positive, to_negative = (self._distance(features, partner) for partner in (positive, negative))
            loss = torch.where(drawn, F.relu(self.margin + to_positive - to_negative), 0.0)
            return loss.sum() / drawn.sum().clamp_min(1) + full_precision(logits[:0]).sum()

    def sample(
        self, target: Tensor, boundary: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw triplets, with a fixed number of places and so without waiting for the device.

        Returns:
            Flat numbers of T voxels of each image (B, T); whether the voxel is an anchor; the places, among these T, of
            its positive and of its negative. All but the first are meaningless where it is no anchor.
        """
        with torch.no_grad():
            edge, labels = boundary.flatten(1), target.flatten(1)
            keys = torch.where(edge, self._random(edge.shape, edge, generator), -1.0)
            highest, voxels = keys.topk(min(self.anchors, keys.shape[1]), dim=1)
            # which of the other voxels come last is not fixed on CUDA: their places all point to the first voxel
            there = highest >= 0
            voxels = torch.where(there, voxels, 0)
            classes = torch.where(there, labels.gather(1, voxels), IGNORE)
            order = classes.argsort(dim=1, stable=True)
            in_order = classes.gather(1, order)
            first, last = (torch.searchsorted(in_order, classes, right=end) for end in (False, True))
            number, total = last - first, there.sum(1, keepdim=True)
            chance = self._random((2, *classes.shape), edge, generator)
            # the class's own voxels stand in one row: go on from the anchor, by less than the whole way round
            ahead = order.argsort(1) - first + 1 + (chance[0] * (number - 1)).long()
            positive = order.gather(1, first + ahead % number)
            beyond = last + (chance[1] * (total - number)).long()
            negative = order.gather(1, beyond % total.clamp_min(1))
            return voxels, there & (number > 1) & (total > number), positive, negative

    @staticmethod
    def _random(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
        # float64: among 2^24 values of float32 two of many voxels are equal, and the order of those is not fixed
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(like.device)

    @staticmethod
    def _distance(features: Tensor, partner: Tensor) -> Tensor:
        other = features.gather(2, partner[:, None].expand(-1, features.shape[1], -1))
        return ((features - other).square().sum(1) + TINY).sqrt()


def _ends(values: Tensor, step: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Views of the voxels that have a neighbour one step away, and of these neighbours."""
    here, there = values, values
    for axis, s in enumerate(step, start=values.ndim - len(step)):
        size = max(values.shape[axis] - abs(s), 0)
        start, end = (min(max(v, 0), values.shape[axis]) for v in (-s, s))
        here, there = here.narrow(axis, start, size), there.narrow(axis, end, size)
    return here, there


class _Pairs(torch.autograd.Function):
    """Mean squared error of the cosine between boundary voxels and their neighbours.

    Written with its gradient: that of a slice is a tensor of zeros of the size of the embedding for each neighbour.
    A pair with both ends on the boundary counts twice, so half of the steps see every pair.
    """

    @staticmethod
    def forward(ctx: Any, unit: Tensor, target: Tensor, boundary: Tensor, steps: list[tuple[int, ...]]) -> Tensor:
        ctx.steps = [step for step in steps if step > tuple(-s for s in step)]
        total, number, errors = unit.new_zeros(()), unit.new_zeros(()), []
        for step in ctx.steps:
            (f, g), (y, z), (b, c) = (_ends(v, step) for v in (unit, target, boundary))
            counts = (b.to(unit.dtype) + c.to(unit.dtype)) * ((y != IGNORE) & (z != IGNORE))
            error = (f * g).sum(1) - (y == z).to(unit.dtype)
            total = total + (counts * error.square()).sum()
            number = number + counts.sum()
            errors.append(counts * error)
        number = number.clamp_min(1)
        ctx.save_for_backward(unit, number, *errors)
        return total / number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        unit, number, *errors = ctx.saved_tensors
        out = torch.zeros_like(unit)
        for step, error in zip(ctx.steps, errors, strict=True):
            (f, g), (to_f, to_g) = _ends(unit, step), _ends(out, step)
            slope = (error * (2 * gradient / number))[:, None]
            to_f.addcmul_(g, slope)
            to_g.addcmul_(f, slope)
        return out, None, None, None


class _SameClassSum(torch.autograd.Function):
    """Sum of the features of those neighbours that count and have a voxel's class, and their number."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, target: Tensor, counts: Tensor, steps: list[tuple[int, ...]]
    ) -> tuple[Tensor, Tensor]:
        # labels of neighbours that do not count match none
        labels = torch.where(counts, target, -1)
        ctx.steps = steps
        ctx.save_for_backward(target, labels)
        total, number = torch.zeros_like(features), features.new_zeros(target.shape)
        for step in steps:
            same = (_ends(target, step)[0] == _ends(labels, step)[1]).to(features.dtype)
            _ends(total, step)[0].addcmul_(_ends(features, step)[1], same[:, None])
            _ends(number, step)[0].add_(same)
        ctx.mark_non_differentiable(number)
        return total, number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        target, labels = ctx.saved_tensors
        out = torch.zeros_like(gradient)
        for step in ctx.steps:
            same = (_ends(target, step)[0] == _ends(labels, step)[1]).to(gradient.dtype)
            _ends(out, step)[1].addcmul_(_ends(gradient, step)[0], same[:, None])
        return out, None, None, None


def _neighbour_means(
    features: Tensor, target: Tensor, counts: Tensor, steps: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Mean feature of the neighbours that count and have a voxel's class, (B, F, *S), and their number (B, *S)."""
    total, number = _SameClassSum.apply(features, target, counts, steps)  # type: ignore[no-untyped-call]
    return total / number.clamp_min(1)[:, None], number


def _over_classes(values: Tensor, labels: Tensor, counts: Tensor, classes: int) -> Tensor:
    """Mean over the classes that have a voxel that counts, of the mean over these voxels."""
    flat, which, weight = values.flatten(), labels.flatten(), counts.flatten().to(values.dtype)
    per_class = torch.stack([(weight * (which == c)).sum() for c in range(classes)])
    share = weight / per_class.clamp_min(1)[which] / (per_class > 0).sum().clamp_min(1)
    return (torch.where(counts.flatten(), flat, 0.0) * share).sum()


def _frozen(classify: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Cross-entropy of features (B, F, *S), mean over classes, with a gradient to the features, not to the classifier.

    The parameters of a callable are out of reach, so its gradient with respect to the features is taken at once, and
    put back as the slope of a linear function with the right value.
    """
    point = features.detach()
    wanted = torch.is_grad_enabled() and features.requires_grad
    with torch.set_grad_enabled(wanted):
        logits = full_precision(classify(point.requires_grad_(wanted)))
        values = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        value = _over_classes(values, labels, counts, logits.shape[1])
        if not wanted:
            return value
        (slope,) = torch.autograd.grad(value, point)
    return value.detach() + ((features - point.detach()) * slope).sum()
