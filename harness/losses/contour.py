"""Losses on contours: how far, how long, how steep, or how well met the boundary of the prediction is."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from harness.losses._common import (
    IGNORE,
    Absent,
    Reduction,
    check_absent,
    check_reduction,
    flat,
    full_precision,
    over_classes,
    ratio,
    region_sums,
    true_class,
)
from harness.losses.targets import derive


class ShapeAware(nn.Module):
    """Shape-aware loss (Al Arif et al., 2017): cross-entropy, times 1 + E where the prediction is wrong.

    Jadon, 2020, eqs. 15 and 16, which print -CE - i E CE: a wrong sign and a stray i.

        L = 1/N Σ_n (1 + w E [ŷ_n ≠ y_n]) (-ln p_n)

    p_n is the probability of the true class, ŷ the likeliest class. E, one number for each image, is the mean distance
    of the predicted contour to the true one. Both E and the mismatch are constants: the gradient is that of weighted
    cross-entropy. Our reading: a contour is the voxels with a face neighbour of another class, on both sides, as the
    need `boundary`; its distance to the true contour is max(d - h, 0), d the distance to the nearest voxel of another
    class than the true one there and h the smallest spacing, so that E is 0 for a perfect prediction. The mean over
    valid voxels replaces the paper's sums. E is 0 where either image has no contour: plain cross-entropy.

    Args:
        weight: w; the authors' 1.

    Raises:
        ValueError: The weight is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: `loss`, `ce` and `shape`.

    Advantages:
        Errors cost more the farther the whole predicted shape is from the true one; the gradient never vanishes, as
        cross-entropy remains.

    Disadvantages:
        All wrong voxels of an image share one weight, the near and the far; predicting nothing, which has no contour,
        is not weighted at all. E is in the unit of the spacing, so the balance depends on the unit.

    Use:
        For single objects of a known shape, as the vertebrae of the paper, after cross-entropy alone has settled.

    Elsewhere:
        No public code was found. Jadon cites Hayder et al. for it, whose loss is another one.
    """

    version = 1
    taxonomy = ("boundary", "boundary")

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, found {weight}")
        self.weight = weight

    def forward(
        self, logits: Tensor, target: Tensor, *, valid: Tensor, distance_in: Tensor, spacing: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        scores, labels, known = flat(logits, target)
        log_p = true_class(scores.log_softmax(1), labels)
        with torch.no_grad():
            guess = logits.argmax(1)
            contour = derive(
                ("boundary",), torch.where(valid, guess, IGNORE), num_classes=logits.shape[1], spacing=spacing
            )["boundary"].flatten(1)
            # a voxel is inside its own class alone, so the sum over classes is that of its class
            away = distance_in.to(scores.dtype).sum(1).flatten(1)
            away = (away - spacing.amin(1, keepdim=True).to(scores.dtype)).clamp_min(0)
            error = (away * contour).sum(1) / contour.sum(1).clamp_min(1)
            wrong = ((guess.flatten(1) != labels) & known).to(scores.dtype) * error[:, None]
        count = known.sum().clamp_min(1)
        ce, shape = -(log_p * known).sum() / count, -(log_p * wrong).sum() / count
        return {"loss": ce + self.weight * shape, "ce": ce, "shape": shape}


class BoundaryDoU(nn.Module):
    """Boundary difference over union (Sun et al., 2023): 1 - the share of the union, less α of the intersection, met.

    Azad et al., 2023, eq. 30: (G∪P - G∩P) / (G∪P - α G∩P).

        L_c = (z + g - 2 I) / (z + g - (1 + α_c) I + s),   z = Σ p²,   g = Σ t,   I = Σ p t
        α_c = min(1 - 2 E_c / g, 0.8)

    E_c counts the voxels of the class with fewer than all of its 2D face neighbours in the class; the image's border
    counts as outside (and so does an ignored neighbour, as the loss must be that of the image without it). α nears 1
    for a large object, where the region within would drown the boundary, and is -1 for one all of whose voxels are at
    its edge, where this is Dice with squared sums; α = 0 is Jaccard. The paper gives [0, 1) as the range of α: its code
    cuts off at 0.8 and not below. The code has s in the numerator too, so an absent class costs a constant 1 there,
    even when nothing is predicted; here, as in `Dice`, s stands below alone.

    Args:
        limit: The greatest α; the authors' 0.8.
        background: Whether class 0 counts; it is dropped after the softmax.
        reduction: Sums over the whole batch (the authors'), or per sample.
        absent: What a class without a voxel contributes: `include` (nearly 1, or 0 where nothing is predicted), `skip`,
            or `penalise` (the mean probability it was given).
        smooth: s.

    Raises:
        ValueError: The limit is not in [-1, 1), or a policy is unknown.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        A region loss that looks harder at the boundary of large objects, at the price of a few comparisons of labels:
        no distance map, no schedule, no second loss.

    Disadvantages:
        It sees how much of the boundary is missed, not how far off; for small or thin objects it is Dice. Labels with
        ragged edges have more edge voxels, and so a smaller α.

    Use:
        In place of Dice for large objects; alone or beside cross-entropy.

    Elsewhere:
        The authors' code is 2D and needs CUDA; the 3D form, a cross of six neighbours, is what they advise in an issue.
    """

    version = 1
    taxonomy = ("boundary", "boundary")

    def __init__(
        self,
        limit: float = 0.8,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if not -1 <= limit < 1:
            raise ValueError(f"limit must be at least -1 and below 1, found {limit}")
        self.limit, self.background, self.smooth = limit, background, smooth
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        sums = region_sums(logits, target, self.reduction, squared=True)
        edges = _edge_counts(target, logits.shape[1]).to(sums.t.dtype)
        if self.reduction == "batch":
            edges = edges.sum(0, keepdim=True)
        # no voxel: -1, as in the authors' code
        alpha = torch.where(sums.t > 0, 1 - 2 * edges / sums.t.clamp_min(1), -1.0).clamp_max(self.limit)
        both = sums.p + sums.t
        losses = ratio(both - 2 * sums.tp, both - (1 + alpha) * sums.tp + self.smooth)
        if self.absent == "penalise":  # the policy takes the mean of p, not of p²
            sums = region_sums(logits, target, self.reduction)
        return over_classes(losses, sums, self.background, self.absent)


class SobelBoundary(nn.Module):
    """Sobel boundary loss (ours, for a term that the project's note on shape priors names without a formula).

    Mean over classes and voxels of the length of the difference of the Sobel gradients.

        L = 1/(N K) Σ_c Σ_n |∇p - ∇t|,   |v| = √(Σ_a v_a² + ε) - √ε

    ∇ is the Sobel operator in voxels, normalised so that a ramp of slope 1 has a gradient of length 1; in 3D it smooths
    along both other axes. ε keeps the gradient finite, and its root is taken off, so that the loss is 0 at the truth.
    Stencils that leave the image or touch an ignored voxel are left out, so images need 3 voxels along every axis.

    Args:
        compare: `vectors`, as above, or `magnitudes`: ||∇p| - |∇t||, which cannot tell an object from its inverse: with
            two classes it is 0 for a prediction that swaps them.
        background: Whether class 0 counts; it is dropped after the softmax.
        eps: ε.

    Raises:
        ValueError: `compare` is neither vectors nor magnitudes, or ε is not positive.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Asks for edges where the truth has edges, and for none elsewhere, with a few slices and no distance map.

    Disadvantages:
        Blind to a constant: where neither image has an edge nothing is learned, whatever the class, and an edge two
        voxels off gives no hint of where to go.

    Use:
        Only beside a loss on the classes themselves.

    Elsewhere:
        kornia `sobel` gives magnitudes in 2D, √(Σ v² + ε), with the image's border replicated.
    """

    version = 1
    taxonomy = ("shape prior", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "order": "a noisy prediction has more false edges than an inverted one, whose edges are at the right place"
    }

    def __init__(
        self, compare: Literal["vectors", "magnitudes"] = "vectors", background: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        if compare not in ("vectors", "magnitudes"):
            raise ValueError(f"compare must be 'vectors' or 'magnitudes', found {compare!r}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, found {eps}")
        self.compare, self.background, self.eps = compare, background, eps

    def forward(self, logits: Tensor, target: Tensor, *, onehot: Tensor, valid: Tensor) -> Tensor:
        """Return the loss."""
        first = 0 if self.background else 1
        probs = full_precision(logits).softmax(1)[:, first:]
        truth = onehot[:, first:].to(probs.dtype)
        if min(target.shape[1:]) < 3:
            return (0 * probs).sum()
        if self.compare == "vectors":
            lengths = self._length(probs - truth)
        else:
            lengths = (self._length(probs) - self._length(truth)).abs()
        inside = _whole(valid, 3)[:, None]
        return (lengths * inside).sum() / (inside.sum() * lengths.shape[1]).clamp_min(1)

    def _length(self, x: Tensor) -> Tensor:
        squares = torch.zeros((), dtype=x.dtype, device=x.device)
        for axis in range(2, x.ndim):
            slope = x
            for other in range(2, x.ndim):
                slope = _difference(slope, other) if other == axis else _smoothed(slope, other)
            squares = squares + slope**2
        length: Tensor = (squares + self.eps).sqrt() - self.eps**0.5
        return length


class ActiveContour(nn.Module):
    """Active contour loss (Chen et al., 2019, eqs. 11 and 12): the length of the contour and the error of the region.

    Named by neither survey's equations; the region-wise loss contains its region term.

        L = Length + λ Region
        Length = mean √(|∇p|² + ε),   Region = mean of p (1 - t)² + (1 - p) (0 - t)²,   over voxels and classes

    ∇ takes forward differences, in voxels. p is a softmax probability, each class against the rest (the paper has one
    object, with a sigmoid). c_1 = 1 and c_2 = 0 are the paper's fixed means inside and outside; the region term is then
    the mean of |p - t|. Means in place of the paper's sums are the authors' code. That code takes the two differences
    at different voxels, (i+1, j) and (i, j+1); here both belong to one voxel, as in the equation. Differences that
    leave the image or touch an ignored voxel are left out.

    Args:
        region_weight: λ; the authors' code has 1.
        background: Whether class 0 counts; it is dropped after the softmax.
        eps: ε; the authors' 1e-8.

    Raises:
        ValueError: The weight is negative, or ε is not positive.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: `loss`, `length` and `region`.

    Advantages:
        Rewards smooth contours and few isolated voxels, without a map or a schedule.

    Disadvantages:
        Lowest not at the truth: a corner, a thin branch or a small object costs more length than it gains region, so
        objects shrink where λ is small. The region term is linear in p, with small gradients at confident errors.

    Use:
        For compact smooth objects in noisy images, from a pre-trained network, as the authors advise.

    Elsewhere:
        Other ports weigh the length by 10, or make both weights a convex combination.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "optimum": "the contour of the truth has a length, and a shorter one can cost less",
        "order": "a noisy prediction has a longer contour than an inverted one",
    }

    def __init__(self, region_weight: float = 1.0, background: bool = True, eps: float = 1e-8) -> None:
        super().__init__()
        if region_weight < 0:
            raise ValueError(f"region_weight must not be negative, found {region_weight}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, found {eps}")
        self.region_weight, self.background, self.eps = region_weight, background, eps

    def forward(self, logits: Tensor, target: Tensor, *, onehot: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        first = 0 if self.background else 1
        probs = full_precision(logits).softmax(1)[:, first:]
        truth, known = onehot[:, first:], valid[:, None]
        classes = probs.shape[1]
        error = probs * (1 - truth) ** 2 + (1 - probs) * truth**2
        region = (error * known).sum() / (valid.sum() * classes).clamp_min(1)
        squares = torch.zeros((), dtype=probs.dtype, device=probs.device)
        whole = _cut(known)
        for axis in range(2, probs.ndim):
            squares = squares + (_cut(probs, axis) - _cut(probs)) ** 2
            whole = whole & _cut(known, axis)
        length = ((squares + self.eps).sqrt() * whole).sum() / (whole.sum() * classes).clamp_min(1)
        return {"loss": length + self.region_weight * region, "length": length, "region": region}


def _edge_counts(target: Tensor, classes: int) -> Tensor:
    """How many voxels of each class have a face neighbour out of it, (B, C); the image's border is out of it."""
    whole = target != IGNORE
    for axis in range(1, target.ndim):
        size = target.shape[axis]
        around = pad(target, [0, 0] * (target.ndim - 1 - axis) + [1, 1], value=IGNORE)
        whole = whole & (around.narrow(axis, 0, size) == target) & (around.narrow(axis, 2, size) == target)
    edge = torch.where(whole, IGNORE, target).flatten(1)
    return torch.stack([(edge == c).sum(1) for c in range(classes)], 1)


def _cut(x: Tensor, shifted: int | None = None) -> Tensor:
    """Drop the last place of every axis of (B, K, *S); along `shifted` the first one."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, int(axis == shifted), x.shape[axis] - 1)
    return x


def _smoothed(x: Tensor, axis: int) -> Tensor:
    """[1, 2, 1] / 4 along an axis, two places shorter."""
    size = x.shape[axis] - 2
    return (x.narrow(axis, 0, size) + 2 * x.narrow(axis, 1, size) + x.narrow(axis, 2, size)) / 4


def _difference(x: Tensor, axis: int) -> Tensor:
    """[-1, 0, 1] / 2 along an axis, two places shorter."""
    size = x.shape[axis] - 2
    return (x.narrow(axis, 2, size) - x.narrow(axis, 0, size)) / 2


def _whole(valid: Tensor, width: int) -> Tensor:
    """Whether all voxels of each window inside the image are valid: (B, *S) → every axis width - 1 shorter."""
    for axis in range(1, valid.ndim):
        size = valid.shape[axis] - width + 1
        parts = [valid.narrow(axis, i, size) for i in range(width)]
        valid = torch.stack(parts).all(0)
    return valid
