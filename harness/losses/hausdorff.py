"""Hausdorff losses: squared errors weighted by how far, or how deep, they lie from the boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import ClassVar, Literal

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn.functional import pad

from harness.losses._common import IGNORE, full_precision
from harness.losses.targets import derive

Threshold = Literal["half", "argmax"]


class HausdorffDT(nn.Module):
    """Hausdorff loss by distance transforms (Karimi and Salcudean, 2019): mean of (p - t)² (d_t^α + d_p^α).

    Azad et al., 2023, eqs. 24 to 26 (the three losses of the paper); Jadon, 2020, eq. 23.

        L = 1/(N K) Σ_c Σ_n (p - t)² (d_t^α + d_p^α)

    d_t is the distance of a voxel to the nearest voxel on the other side of the truth's boundary (inside and outside
    alike), d_p the same of the thresholded prediction; both are constants: no gradient passes through a threshold. A
    map is 0 where its class is absent or fills the image. Jadon writes that the objective is to maximise the distance,
    which is an error. The paper has one object; with several, the mean is over the K classes that count, and the
    background is none of them, since its boundary is the union of the others'. Distances are in the unit of the
    spacing; both maps are exact.

    Args:
        alpha: α; the authors' 2.
        background: Whether class 0 counts; it is dropped after the softmax.
        threshold: The voxels of the predicted object: `half`, where p > 0.5 (the authors', and MONAI's: with many
            classes a voxel can belong to none), or `argmax`, where the class is the likeliest.

    Raises:
        ValueError: α is not positive, or the threshold is neither half nor argmax.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Errors far from the boundary cost the most, which is what the Hausdorff distance measures.

    Disadvantages:
        Exact distance transforms of the prediction at every step. It is dominated by outliers early on, and a class
        without a voxel that is predicted below one half costs nothing.

    Use:
        Beside a region loss, for objects whose worst error matters. The authors add it to Dice and reset the weight
        each epoch to the ratio of the mean losses.

    Elsewhere:
        MONAI `HausdorffDTLoss` truncates distances to integers when the target is of an integer type. SegLoss's raises
        on any tensor that requires a gradient. LIVIAETS and SegWithDistMap use the distances inside the object alone.
    """

    version = 1
    taxonomy = ("boundary", "boundary")

    def __init__(self, alpha: float = 2.0, background: bool = False, threshold: Threshold = "half") -> None:
        super().__init__()
        if threshold not in ("half", "argmax"):
            raise ValueError(f"threshold must be 'half' or 'argmax', found {threshold!r}")
        self.alpha, self.background, self.threshold = _positive("alpha", alpha), background, threshold

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        onehot: Tensor,
        valid: Tensor,
        distance_in: Tensor,
        distance_out: Tensor,
        spacing: Tensor,
    ) -> Tensor:
        """Return the loss."""
        scores = full_precision(logits)
        first = 0 if self.background else 1
        with torch.no_grad():  # in place, and before the softmax that is kept: this is where memory peaks
            weight = self._predicted(scores, valid, spacing, first).to(scores.dtype).pow_(self.alpha)
            weight += (distance_in[:, first:] + distance_out[:, first:]).to(scores.dtype).pow_(self.alpha)
        return _mean((scores.softmax(1)[:, first:] - onehot[:, first:]) ** 2 * weight, valid)

    def _predicted(self, scores: Tensor, valid: Tensor, spacing: Tensor, first: int) -> Tensor:
        """Distances of the prediction, (B, C - first, *S)."""
        classes = scores.shape[1] - first
        best, labels = scores.softmax(1).max(1)
        labels = labels - first
        rest = labels < 0 if self.threshold == "argmax" else (labels < 0) | (best <= 0.5)
        # what lies in no object is a class of its own: each map then takes one transform, not one for each side
        labels = torch.where(valid, labels.masked_fill(rest, classes), IGNORE)
        maps = derive(("distance_in", "distance_out"), labels, num_classes=classes + 1, spacing=spacing)
        return maps["distance_in"][:, :classes] + maps["distance_out"][:, :classes]


class HausdorffOneSided(nn.Module):
    """One-sided Hausdorff loss (Karimi and Salcudean, 2019): mean of (p - t)² d_t^α, distances of the truth alone.

    `HausdorffDT` without the prediction's map; Celaya et al., 2023, eq. 7, call this the Hausdorff loss.

        L = 1/(N K) Σ_c Σ_n (p - t)² d_t^α

    d_t as in `HausdorffDT`: the distance to the nearest voxel on the other side of the truth's boundary, 0 everywhere
    where a class is absent or fills the image.

    Args:
        alpha: α; the authors' 2.
        background: Whether class 0 counts; it is dropped after the softmax.

    Raises:
        ValueError: α is not positive.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        The maps come from the label alone, so a step costs no more than one of a squared error, and the weights do not
        jump when a prediction crosses a threshold.

    Disadvantages:
        A false positive is weighted by its distance to the truth, a missed part only by its depth inside it; absent
        classes cost nothing.

    Use:
        Where the distance transforms of `HausdorffDT` take too long; beside a region loss.

    Elsewhere:
        MIST (`hdos`) adds it to Dice + cross-entropy and always leaves the background out; its map is signed, in
        voxels, and the image's diagonal where a class is absent, so predicting an absent class costs there.
    """

    version = 1
    taxonomy = ("boundary", "boundary")

    def __init__(self, alpha: float = 2.0, background: bool = False) -> None:
        super().__init__()
        self.alpha, self.background = _positive("alpha", alpha), background

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        onehot: Tensor,
        valid: Tensor,
        distance_in: Tensor,
        distance_out: Tensor,
    ) -> Tensor:
        """Return the loss."""
        first = 0 if self.background else 1
        probs = full_precision(logits).softmax(1)[:, first:]
        weight = (distance_in[:, first:] + distance_out[:, first:]).to(probs.dtype) ** self.alpha
        return _mean((probs - onehot[:, first:]) ** 2 * weight, valid)


class HausdorffErosion(nn.Module):
    """Hausdorff loss by erosion (Karimi and Salcudean, 2019): Σ_k k^α of the k-fold eroded squared error.

    Azad et al., 2023, eqs. 24 to 26.

        L = 1/(N K) Σ_c Σ_n Σ_{k=1..10} k^α e_k,   e_0 = (p - t)²,   e_k = S(B * e_{k-1})

    B averages a voxel and its face neighbours (5 in 2D, 7 in 3D; 0 outside the image), S(x) = max(x - 1/2, 0). As e_1
    is then at most 1/2, e_2 would always be 0; released code therefore rescales every e_k to [0, 1] over its map, and
    so does this by default. An ignored voxel is what the outside of the image is: no error, never the centre of a
    window, so the loss is that of the image without it.

    Args:
        alpha: α; the authors' 2.
        erosions: How many erosions; the authors' 10.
        normalize: Rescale each eroded map to [0, 1] by its least and greatest value, as released code does. Otherwise
            divide it by 1/2, the greatest value it can have, so that a full error stays 1 (our reading).
        background: Whether class 0 counts; it is dropped after the softmax.

    Raises:
        ValueError: α is not positive, or there is no erosion.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        No distance transform: it runs on the device, and large connected errors, which survive many erosions, cost the
        most.

    Disadvantages:
        A dead zone: value and gradient are exactly 0 until a voxel and most of its neighbours are wrong by more than
        √½ ≈ 0.71. It is thus 0 for a fresh network, for thin errors, and for nearly right predictions. Rescaling makes
        it jump when the first voxel leaves the zone, still without a gradient as long as that voxel is the only one.

    Use:
        Never alone: after a warm start, beside Dice or cross-entropy.

    Elsewhere:
        kornia `HausdorffERLoss` counts the background too. The kernel of the original port was (3, 1, 3, 3) in 3D, not
        a cross. SegLoss's raises on any tensor that requires a gradient.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "order": "a dead zone: errors that are thin, or below 0.71, cost nothing, so a degraded prediction scores 0",
        "monotone_large": "each eroded map is rescaled to its greatest value, so a weaker error can weigh as much",
        "monotone_small": "each eroded map is rescaled to its greatest value, so a weaker error can weigh as much",
    }

    def __init__(
        self, alpha: float = 2.0, erosions: int = 10, normalize: bool = True, background: bool = False
    ) -> None:
        super().__init__()
        if erosions < 1:
            raise ValueError(f"erosions must be at least 1, found {erosions}")
        self.alpha, self.erosions = _positive("alpha", alpha), erosions
        self.normalize, self.background = normalize, background

    def forward(self, logits: Tensor, target: Tensor, *, onehot: Tensor, valid: Tensor) -> Tensor:
        """Return the loss."""
        first = 0 if self.background else 1
        probs = full_precision(logits).softmax(1)[:, first:]
        known = valid[:, None]
        error = (probs - onehot[:, first:]) ** 2 * known
        total = torch.zeros_like(error)
        for k in range(1, self.erosions + 1):
            error = (_cross_mean(error) - 0.5).clamp_min(0) * known
            error = _to_unit(error, known) if self.normalize else 2 * error
            total = total + k**self.alpha * error
        return _mean(total, valid)


class HausdorffConvolution(nn.Module):
    """Hausdorff loss by convolution (Karimi and Salcudean, 2019): errors times how full discs around them are.

    Azad et al., 2023, eqs. 24 to 26. Our reading: no code of it is public.

        L = 1/(N K) Σ_c Σ_r r^α Σ_n [ S(1 - B_r*t) f_p + S(B_r*t) f_t + S(1 - B_r*p) f_t + S(B_r*p) f_p ]
        f_p = (p - t)² p  (wrongly there),   f_t = (p - t)² t  (missing)

    B_r * x is the mean of x over the disc (in 3D the ball) of radius r: it is 0 where the voxel lies at least r outside
    of x, 1 where it lies at least r inside. S(x) = max(2x - 1, 0) is the paper's soft threshold at 1/2, rescaled so
    that a full disc counts 1 (our reading). p is soft throughout, and gradients pass through B_r * p too. The mean is
    over the part of the disc that is in the image and not ignored, where the paper pads with zeros: the outside of the
    image then belongs to neither side. Discs are convolved by Fourier transforms: the cost does not grow with r.

    Args:
        radii: Radii in voxels; the authors' for 2D images, used in 3D too.
        alpha: α; the authors' 2.
        background: Whether class 0 counts; it is dropped after the softmax.

    Raises:
        ValueError: α is not positive, or radii are missing or below 1.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Differentiable in everything, no distance transform, and absent classes that are predicted cost.

    Disadvantages:
        Discs count voxels, so the loss knows nothing of anisotropic spacing. Errors near a straight boundary, where
        discs are half full, hardly cost anything.

    Use:
        Beside Dice or cross-entropy, in place of `HausdorffDT` where the device should do the work.

    Elsewhere:
        None known.
    """

    version = 1
    taxonomy = ("boundary", "boundary")

    def __init__(
        self, radii: Sequence[float] = (3, 6, 9, 12, 15, 18), alpha: float = 2.0, background: bool = False
    ) -> None:
        super().__init__()
        self.radii = tuple(float(r) for r in radii)
        if not self.radii or min(self.radii) < 1:
            raise ValueError(f"radii must be numbers of at least 1, found {list(radii)}")
        self.alpha, self.background = _positive("alpha", alpha), background

    def forward(self, logits: Tensor, target: Tensor, *, onehot: Tensor, valid: Tensor) -> Tensor:
        """Return the loss."""
        first = 0 if self.background else 1
        with torch.autocast(device_type=logits.device.type, enabled=False):
            probs = full_precision(logits).softmax(1)[:, first:]
            truth, known = onehot[:, first:].to(probs.dtype), valid[:, None].to(probs.dtype)
            error = (probs - truth) ** 2
            wrong, missing = error * probs * known, error * truth
            discs = _Discs(max(self.radii), known)
            probs_f, truth_f = discs.transform(probs * known), discs.transform(truth)
            total = torch.zeros_like(error)
            for r in self.radii:
                disc = discs.disc(r)
                size = discs.back(discs.transformed_known * disc).round().clamp_min(1)
                # counts of voxels are whole numbers: rounding takes the transform's error away
                t = discs.back(truth_f * disc).round() / size
                p = discs.back(probs_f * disc) / size
                wrongly = (1 - 2 * t).clamp_min(0) + (2 * p - 1).clamp_min(0)
                lacking = (2 * t - 1).clamp_min(0) + (1 - 2 * p).clamp_min(0)
                total = total + r**self.alpha * (wrongly * wrong + lacking * missing)
            return _mean(total, valid)


class WeightedHausdorff(nn.Module):
    """Weighted Hausdorff distance (Ribera et al., 2019), read for masks: mean distances both ways, softly.

    Cited by neither survey's equations. The paper locates a few points Y in a map p; here Y are the voxels of a class.

        L = Σ_x p_x d(x, Y) / (Σ_x p_x + ε)  +  1/|Y| Σ_{y∈Y} M_α over x of [ p_x d(x, y) + (1 - p_x) d_max ]

    The first term is the paper's: d(x, Y) is the distance outside the class. In the second, the paper takes the
    generalised mean M_α, a soft minimum for α < 0, over all N voxels x for each y: N |Y| pairs, which masks do not
    allow. Our reading: x runs over the voxels within `radius` steps of y, so that a voxel of the class with nothing
    predicted so near counts as d_max away. d_max is the diagonal of the box of valid voxels (the image's, without
    ignored ones). Pairs with an ignored voxel are left out. Values below a small share of d_max (10⁻⁶ at α = -1)
    are raised to it, so that the power stays finite. An absent class, for which the paper's distances do not exist,
    costs d_max times its mean probability (our reading). Each image and class counts alike.

    Args:
        alpha: α of the generalised mean, negative; the limit of -∞ is the minimum. -1 is our reading of the paper's.
        radius: Reach of the second term in voxels.
        background: Whether class 0 counts; it is dropped after the softmax.

    Raises:
        ValueError: α is not negative, or the radius is below 1.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Distances of all predicted voxels count, with gradients and without a threshold, and missed parts of an
        object cost whatever its size.

    Disadvantages:
        The first term is a mean over what is predicted: small far errors of a large object fade in it. The second sees
        only `radius` voxels far, and in 3D it takes a pass over the probabilities for each kind of step.

    Use:
        Beside a region loss, for objects of similar size whose average surface distance matters.

    Elsewhere:
        The authors' code works on lists of points, one image at a time.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "classwise": "a false voxel near a missed one shortens the way to the prediction, as in the Hausdorff distance"
    }

    def __init__(self, alpha: float = -1.0, radius: int = 2, background: bool = False) -> None:
        super().__init__()
        if not alpha < 0:
            raise ValueError(f"alpha must be negative, found {alpha}")
        if radius < 1:
            raise ValueError(f"radius must be at least 1, found {radius}")
        self.alpha, self.radius, self.background = alpha, radius, background
        self.least = max(1e-6, 10 ** (27 / alpha))  # least^α fits in float32, and so does its gradient

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        onehot: Tensor,
        valid: Tensor,
        present: Tensor,
        distance_out: Tensor,
        spacing: Tensor,
    ) -> Tensor:
        """Return the loss."""
        first = 0 if self.background else 1
        probs = full_precision(logits).softmax(1)[:, first:]
        truth, known = onehot[:, first:].to(probs.dtype), valid[:, None].to(probs.dtype)
        sides = spacing.to(probs.dtype)
        farthest = _diagonal(valid, sides)
        mass = (probs * known).flatten(2).sum(2)
        far = (probs * distance_out[:, first:]).flatten(2).sum(2) / (mass + 1e-6)
        nearest = self._nearest(probs, truth, known, sides, farthest)
        missed = (nearest * truth).flatten(2).sum(2) / truth.flatten(2).sum(2).clamp_min(1) * farthest
        count = known.flatten(1).sum(1, keepdim=True)
        losses = torch.where(present[:, first:], far + missed, farthest * mass / count.clamp_min(1)).mean(1)
        there = (count[:, 0] > 0).to(losses.dtype)
        return (losses * there).sum() / there.sum().clamp_min(1)

    def _nearest(self, probs: Tensor, truth: Tensor, known: Tensor, sides: Tensor, farthest: Tensor) -> Tensor:
        """M_α / d_max around each voxel of the truth, (B, K, *S)."""
        dims = probs.ndim - 2
        total, pairs = torch.zeros_like(probs), torch.zeros_like(known)
        for step in _steps(self.radius, dims):
            squares = torch.zeros_like(farthest)
            for axis, length in enumerate(step):  # numbers, not a tensor of them: nothing is copied to the device
                squares = squares + (length * sides[:, axis : axis + 1]) ** 2
            distance = squares.sqrt()
            near = 1 - (distance / farthest.clamp_min(torch.finfo(sides.dtype).tiny)).clamp_max(1)
            # (p d + (1 - p) d_max) / d_max = 1 - p (1 - d / d_max)
            share = (1 - probs * near.view(-1, 1, *[1] * dims)).clamp_min(self.least) ** self.alpha
            for signed in _signs(step):
                total = total + _shifted(share * known, signed)
                pairs = pairs + _shifted(known, signed)
        total = torch.where(truth > 0, total / pairs.clamp_min(1), 1.0)  # elsewhere 0^α is infinite
        return total ** (1 / self.alpha)


class _Discs:
    """Sums over discs, by Fourier transforms over grids so padded that nothing wraps around."""

    def __init__(self, radius: float, known: Tensor) -> None:
        self.shape, self.like = known.shape[2:], known
        self.dims = tuple(range(-len(self.shape), 0))
        self.sizes = [next_fast_len(n + min(int(radius), n - 1), real=True) for n in self.shape]
        self.transformed_known = self.transform(known)

    def transform(self, x: Tensor) -> Tensor:
        transformed: Tensor = torch.fft.rfftn(x, s=self.sizes, dim=self.dims)
        return transformed

    def back(self, x: Tensor) -> Tensor:
        whole: Tensor = torch.fft.irfftn(x, s=self.sizes, dim=self.dims)
        for axis, n in enumerate(self.shape, start=2):
            whole = whole.narrow(axis, 0, n)
        return whole

    def disc(self, radius: float) -> Tensor:
        """The transform of the disc's indicator, its centre at index 0."""
        squares = self.like.new_zeros(())
        for axis, (n, size) in enumerate(zip(self.shape, self.sizes, strict=True)):
            steps = torch.arange(size, device=self.like.device)
            steps = torch.where(steps < n, steps, steps - size)  # the second half stands for steps to the left
            # steps of n or more reach no voxel, and are made longer than the radius
            lengths = torch.where(steps.abs() < n, steps.to(self.like.dtype), radius + 1)
            squares = squares + (lengths**2).view(*[-1 if a == axis else 1 for a in range(len(self.shape))])
        return self.transform((squares <= radius**2).to(self.like.dtype))


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, found {value}")
    return value


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over classes and valid voxels of (B, K, *S), which is 0 elsewhere."""
    return values.sum() / (valid.sum() * values.shape[1]).clamp_min(1)


def _cross_mean(x: Tensor) -> Tensor:
    """Mean over a voxel and its face neighbours, 0 outside the image: sums of slices, exact under autocast."""
    total, dims = x, x.ndim - 2
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        around = pad(x, [0, 0] * (x.ndim - 1 - axis) + [1, 1])
        total = total + around.narrow(axis, 0, size) + around.narrow(axis, 2, size)
    return total / (2 * dims + 1)


def _to_unit(x: Tensor, known: Tensor) -> Tensor:
    """Rescale every map of (B, K, *S) from its range over known voxels to [0, 1]; constant maps stay."""
    axes = tuple(range(2, x.ndim))
    high = x.amax(axes, keepdim=True)
    low = torch.where(known, x, high).amin(axes, keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) / span.clamp_min(1e-6), x) * known


def _diagonal(valid: Tensor, sides: Tensor) -> Tensor:
    """Diagonal of the box of valid voxels, centre to centre, (B, 1)."""
    total = torch.zeros_like(sides[:, :1])
    for axis in range(1, valid.ndim):
        size = valid.shape[axis]
        found = valid.movedim(axis, 1).flatten(2).any(2)
        places = torch.arange(size, device=valid.device)
        extent = torch.where(found, places, -1).amax(1) - torch.where(found, places, size).amin(1)
        total = total + (extent.clamp_min(0) * sides[:, axis - 1])[:, None] ** 2
    return total.sqrt()


def _steps(radius: int, dims: int) -> Iterator[tuple[int, ...]]:
    """Steps of at most the radius, up to signs."""
    return (s for s in product(range(radius + 1), repeat=dims) if math.hypot(*s) <= radius)


def _signs(step: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return product(*((s, -s) if s else (0,) for s in step))


def _shifted(x: Tensor, step: tuple[int, ...]) -> Tensor:
    """The value one step on, 0 outside the image."""
    padding = [p for s in reversed(step) for p in (max(-s, 0), max(s, 0))]
    x = pad(x, padding)
    for axis, s in enumerate(step):
        x = x.narrow(axis + 2, max(s, 0), x.shape[axis + 2] - abs(s))
    return x
