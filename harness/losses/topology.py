"""Losses that look at topology: soft centrelines (clDice) and persistence diagrams of cubical complexes (TAFL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from harness.losses._common import (
    Absent,
    Reduction,
    RegionSums,
    check_absent,
    check_reduction,
    full_precision,
    over_classes,
)
from harness.losses._persistence import Diagram, components, count_features, holes
from harness.losses.pixel import Focal


class SoftClDice(nn.Module):
    """Soft clDice loss (Shit et al., 2021): 1 - the harmonic mean of how much of each skeleton lies in the other mask.

        Tprec = (Σ S(p) t + s) / (Σ S(p) + s),   Tsens = (Σ S(t) p + s) / (Σ S(t) + s)
        L = 1 - mean_c 2 Tprec Tsens / (Tprec + Tsens)

    S is the soft skeleton: with E_0 = p, E_k the erosion of E_{k-1} by a cross and D the dilation by a box of 3 x 3
    (x 3), 1 - S = Π_k (1 - ReLU(E_k - D(E_{k+1}))) over k = 0 ... `iterations`. That is the authors' recursion
    S + ReLU(δ - S δ), written as a product. Each class goes with its softmax probability against the rest; the mean is
    over classes, where the authors' code pools the foreground channels (the same for two classes). What lies outside
    the image, and ignored voxels, takes no part in a minimum or maximum, so that ignoring is cutting off.

    A minimum keeps only which neighbour it was, one byte, for its gradient; and the classes are taken one by one and
    computed again in the backward pass: the memory is that of one class. Where neighbours tie the gradient goes to one.

    Args:
        iterations: Erosions after the first opening; the authors' 3. At least the radius of the thickest structure.
        smooth: s; the authors' 1.
        background: Whether class 0 counts; not in the authors' code.
        reduction: Sums over the whole batch, as in the authors' code, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).

    Raises:
        ValueError: iterations is negative, or smooth is not above 0.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; two or three spatial axes.

    Advantages:
        Rewards connected centrelines whatever the width, so thin vessels count as much as thick ones.

    Disadvantages:
        The soft skeleton is a surrogate: plateaus and too few iterations leave thick objects without one. It says
        little about widths and contours, and costs an erosion and a dilation for each iteration.

    Use:
        Together with Dice, as 1/2 each in the paper, for tubular structures.

    Elsewhere:
        MONAI pools the channels of each sample and adds 1e-4 to the last denominator; exacta averages samples and
        classes with 10 iterations; the authors' PyTorch class lacks `self` in forward.
    """

    version = 1
    taxonomy = ("region", "region")
    declares: ClassVar[dict[str, str]] = {
        "copies": "s = 1 counts less beside the sums of a larger batch",
        "monotone_large": "three erosions do not reach the skeleton of a thick square",
        "monotone_small": "a shift that keeps the skeletons inside of the objects is free",
        "classwise": "an uneven rise of a class changes its soft skeleton elsewhere",
    }

    def __init__(
        self,
        iterations: int = 3,
        smooth: float = 1.0,
        background: bool = False,
        reduction: Reduction = "batch",
        absent: Absent = "include",
    ) -> None:
        super().__init__()
        if iterations < 0 or smooth <= 0:
            raise ValueError(f"expected iterations of at least 0 and smooth above 0, found {iterations}, {smooth}")
        self.iterations, self.smooth, self.background = iterations, smooth, background
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        probs, valid = full_precision(logits).softmax(1), target != 255
        first = 0 if self.background else 1
        # unbind, not an index for each class: one gradient of full size in place of one for each class
        columns = [self._class_sums(p, target == c, valid) for c, p in enumerate(probs.unbind(1)) if c >= first]
        # (rows of sums, B, C)
        sums = torch.stack([torch.stack(column) for column in columns], 2)
        counted = valid.flatten(1).sum(1).to(sums.dtype)[:, None]
        if self.reduction == "batch":
            sums, counted = sums.sum(1, keepdim=True), counted.sum(0, keepdim=True)
        inside, skeleton, found, true_skeleton, p, t = sums
        precision = (inside + self.smooth) / (skeleton + self.smooth)
        sensitivity = (found + self.smooth) / (true_skeleton + self.smooth)
        losses = 1 - 2 * precision * sensitivity / (precision + sensitivity)
        return over_classes(losses, RegionSums(torch.zeros_like(t), p, t, counted), True, self.absent)

    def _class_sums(self, p: Tensor, t: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """Sums per sample of one class: Σ S(p) t, Σ S(p), Σ S(t) p, Σ S(t), Σ p, Σ t."""
        with torch.no_grad():
            s = _hard_skeleton(t, valid, self.iterations)
        if torch.is_grad_enabled() and p.requires_grad:
            inside, total = checkpoint(_skeleton_sums, p, t, valid, self.iterations, use_reentrant=False)
        else:
            inside, total = _skeleton_sums(p, t, valid, self.iterations)
        masked = torch.where(valid, p, 0).flatten(1)
        found = (masked * s.flatten(1)).sum(1)
        return inside, total, found, s.flatten(1).sum(1).to(p.dtype), masked.sum(1), t.flatten(1).sum(1).to(p.dtype)


class TopologyAwareFocal(nn.Module):
    """Topology-aware focal loss (Demir et al., 2023): focal loss + weight · W between persistence diagrams.

        L = focal(p, t) + λ mean_{b,c} Σ_k W_2²(Dgm_k(p_c), Dgm_k(t_c))

    The paper leaves open the filtration, what becomes of components that never die, the order of the distance, λ and
    several classes; there is no code of the authors. Our reading: each class against the rest with its softmax
    probability; voxels enter a cubical complex in the order of 1 - p, so that a component is born at a maximum of p
    (26 neighbours in three dimensions, 8 in two) and dies at a saddle, or at 1 if it never merges; holes (cavities in
    three dimensions) are born at a saddle and die at a minimum of p. Components and, by duality, holes are computed
    here with union-find; the tunnels of three dimensions, which need a matrix reduction, are left out. W is the squared
    2-Wasserstein distance with the Euclidean ground distance, points going to each other or to the diagonal. Every
    feature of a label is the point (0, 1), so the best matching is known in closed form and is exact, where the paper
    takes Sinkhorn-Knopp's approximation. The matching is held fixed for the gradient, which reaches p at the voxels of
    birth and death. An ignored voxel is as if cut off: outside of the image.

    Diagrams are computed on the CPU: the probabilities go there once in each step, which waits for the device.

    Args:
        weight: λ; ours.
        gamma: γ of the focal loss.
        alpha: Class weights of the focal loss, (C,).
        downsample: Side of the windows whose maximum stands for them in the diagrams, in voxels; 1 is exact, and too
            slow for volumes. Windows that hold an ignored voxel or stick out of the image are left out.
        background: Whether class 0 has a topology term; its holes are about the components of the others.

    Raises:
        ValueError: downsample is below 1, or weight is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → dict of scalars: loss, focal, topology.

    Advantages:
        Counts components and holes, which sums over voxels cannot see: broken structures, islands, pierced walls.

    Disadvantages:
        Slow, on the CPU, and the gradient reaches two voxels for each feature. Diagrams do not know where a feature
        lies: a component at a wrong place satisfies them.

    Use:
        Fine-tuning with few, clear objects; a small weight.

    Elsewhere:
        gudhi's CubicalComplex(top_dimensional_cells=1 - p) gives the same pairs.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        weight: float = 0.1,
        gamma: float = 2.0,
        alpha: Tensor | None = None,
        downsample: int = 1,
        background: bool = False,
    ) -> None:
        super().__init__()
        if downsample < 1 or weight < 0:
            raise ValueError(
                f"expected downsample of at least 1 and weight of at least 0, found {downsample}, {weight}"
            )
        self.weight, self.downsample, self.background = weight, downsample, background
        self.focal = Focal(gamma=gamma, alpha=alpha)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        focal, topology = self.focal(logits, target), self._topology(logits, target)
        return {"loss": focal + self.weight * topology, "focal": focal, "topology": topology}

    def _topology(self, logits: Tensor, target: Tensor) -> Tensor:
        first = 0 if self.background else 1
        probs = full_precision(logits).softmax(1)[:, first:]
        truth = torch.stack([target == c for c in range(first, logits.shape[1])], 1)
        whole = _windows(target != 255, self.downsample).all(-1)
        if self.downsample > 1:
            probs, truth = (torch.stack([_windows(c, self.downsample).amax(-1) for c in x]) for x in (probs, truth))
        # the one place that waits for the device: union-find has no form in tensors
        p, t, valid = (x.detach().cpu().numpy() for x in (probs, truth, whole))
        total, slopes = 0.0, np.zeros(p.shape)
        for b, c in np.ndindex(*p.shape[:2]):
            value, slopes[b, c] = _diagram_distance(p[b, c].astype(np.float64), t[b, c], valid[b])
            total += value
        count = p.shape[0] * p.shape[1]
        # a linear form that has the gradient of the distance, moved to its value
        linear: Tensor = (probs * torch.from_numpy(slopes / count).to(probs)).sum()
        moved: Tensor = linear - linear.detach() + total / count
        return moved


def _diagram_distance(p: NDArray[Any], t: NDArray[Any], valid: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """W_2² of the diagrams of one class, over components and holes, and its gradient with respect to p."""
    slope = np.zeros(p.size)
    value = 0.0
    for diagram, corners in zip((components, holes), count_features(t, valid), strict=True):
        points = diagram(1 - p, valid)
        part, birth, death = _to_corner(points, corners)
        value += part
        dies = points.death_voxel >= 0
        # 1 - p: the slopes change sign
        np.subtract.at(slope, points.birth_voxel, birth)
        np.subtract.at(slope, points.death_voxel[dies], death[dies])
    return value, slope.reshape(p.shape)


def _to_corner(points: Diagram, corners: int) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """W_2² between a diagram and so many points at (0, 1), with its slopes with respect to births and deaths.

    A point goes to a corner, b² + (1 - d)², or to the diagonal, (d - b)² / 2; a corner that is left over goes there
    too, 1/2. All corners are the same, so those points take them that gain most.
    """
    b, d = points.birth, points.death
    gain = (d - b) ** 2 / 2 + 0.5 - b**2 - (1 - d) ** 2
    best = np.argsort(-gain, kind="stable")[:corners]
    matched = np.zeros(len(b), bool)
    matched[best[gain[best] > 0]] = True
    value = np.where(matched, b**2 + (1 - d) ** 2, (d - b) ** 2 / 2).sum() + 0.5 * (corners - matched.sum())
    return float(value), np.where(matched, 2 * b, b - d), np.where(matched, 2 * (d - 1), d - b)


def _windows(values: Tensor, side: int) -> Tensor:
    """Windows of the last axes (B, *S) → (B, *S', side^D); what sticks out is left out."""
    if side == 1:
        return values[..., None]
    dims = values.ndim - 1
    for axis in range(dims):
        # after the axes in front of it and their windows, which were moved to the end
        size = values.shape[1 + axis] // side
        values = values.narrow(1 + axis, 0, size * side)
        values = values.reshape(*values.shape[: 1 + axis], size, side, *values.shape[2 + axis :]).movedim(2 + axis, -1)
    return values.flatten(1 + dims)


class _Extremum(torch.autograd.Function):
    """The largest (or smallest) of a voxel and its face neighbours along some axes; ties go to the voxel itself.

    Only the number of the neighbour is kept, in one byte; slices alone, so the gradient is deterministic on CUDA, where
    that of pooling is not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: Sequence[int], largest: bool) -> Tensor:
        best, which = x.clone(), torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        for number, (axis, here, there) in enumerate(_neighbours(x, axes), start=1):
            size = x.shape[axis] - 1
            now, other = best.narrow(axis, here, size), x.narrow(axis, there, size)
            moved = (other > now if largest else other < now).to(torch.uint8)
            mark = which.narrow(axis, here, size)
            torch.maximum(mark, moved.mul_(number), out=mark)
            torch.maximum(now, other, out=now) if largest else torch.minimum(now, other, out=now)
        ctx.save_for_backward(which)
        ctx.axes = axes
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (which,) = ctx.saved_tensors
        out = grad * (which == 0).to(grad.dtype)
        for number, (axis, here, there) in enumerate(_neighbours(grad, ctx.axes), start=1):
            size = grad.shape[axis] - 1
            taken = (which.narrow(axis, here, size) == number).to(grad.dtype)
            out.narrow(axis, there, size).addcmul_(grad.narrow(axis, here, size), taken)
        return out, None, None


def _extremum(x: Tensor, axes: Sequence[int], largest: bool) -> Tensor:
    return cast(Tensor, _Extremum.apply(x, axes, largest))  # type: ignore[no-untyped-call]


def _neighbours(x: Tensor, axes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Axis, first place of the voxels that have a neighbour, first place of those neighbours."""
    return [(axis, here, 1 - here) for axis in axes for here in (0, 1) if x.shape[axis] > 1]


def _skeleton_sums(p: Tensor, t: Tensor, valid: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Σ S(p) t and Σ S(p) per sample, S the soft skeleton of probabilities (B, *S)."""
    axes = tuple(range(1, p.ndim))
    weight = valid.to(p.dtype)
    neutral = 1 - weight
    rest = torch.ones_like(p)
    for _ in range(iterations + 1):
        # an ignored voxel: 1 never is the smaller of two probabilities, 0 never the larger
        eroded = _extremum(torch.addcmul(neutral, p, weight), axes, False)
        opened = eroded * weight
        for axis in axes:
            opened = _extremum(opened, (axis,), True)
        rest = rest * (1 - torch.relu(p - opened))
        p = eroded
    skeleton = ((1 - rest) * weight).flatten(1)
    return (skeleton * t.flatten(1)).sum(1), skeleton.sum(1)


def _hard_skeleton(t: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """The same of a mask, in bytes."""
    axes = tuple(range(1, t.ndim))
    skeleton = torch.zeros_like(t)
    for _ in range(iterations + 1):
        eroded = _shifted(t | ~valid, axes, False)
        opened = eroded & valid
        for axis in axes:
            opened = _shifted(opened, (axis,), True)
        skeleton |= t & ~opened
        t = eroded
    return skeleton & valid


def _shifted(mask: Tensor, axes: Sequence[int], largest: bool) -> Tensor:
    out = mask.clone()
    for axis, here, there in _neighbours(mask, axes):
        size = mask.shape[axis] - 1
        part, other = out.narrow(axis, here, size), mask.narrow(axis, there, size)
        torch.logical_or(part, other, out=part) if largest else torch.logical_and(part, other, out=part)
    return out
