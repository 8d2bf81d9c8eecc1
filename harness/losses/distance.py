"""Losses weighted with distance maps of the truth. The maps come from `harness.losses.targets`, once per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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
)
from harness.losses._maps import inverted_map, largest, mean_product, per_axis, signed_map, weighted_ce


class UNetWeightMap(nn.Module):
    """U-Net's weighted cross-entropy (Ronneberger et al., 2015, eqs. 1 and 2): w = w_c + w0 exp(-(d1 + d2)² / 2σ²).

    The mean over valid voxels of w · (-ln p), where the paper sums:

        L = 1/N Σ_n w_n (-ln p_n),    w_n = w_y + w0 · exp(-(d1_n + d2_n)² / (2 σ²))

    In the paper d1 and d2 are the distances to the nearest and the second nearest cell. Instances are not known here,
    so they are the distances to the two nearest foreground *classes* (our reading): 0 inside a class, so that the
    weight is high wherever two foreground classes touch or nearly do, and with one foreground class the term is 0.
    The paper gives no formula for w_c "to balance the class frequencies"; it is N / (C n_c) here (our reading), n_c the
    voxels of the class in the training split: their mean over the voxels is 1.

    Args:
        w0: Height of the second term.
        sigma: σ, in the unit of the spacing; about 5 pixels in the paper.
        balance: Whether w_c balances the classes; otherwise it is 1.
        weight: w_c of each class with background, (C,), in place of the balancing ones.
        class_counts: n_c, a fact of the data set.

    Raises:
        ValueError: σ is not positive, w0 is negative, or the counts are not known.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Puts weight on the thin gaps between neighbouring structures, where a few voxels decide whether they merge.

    Disadvantages:
        Two objects of one class are one to it, and σ has to fit the size of the gaps.

    Use:
        Several foreground classes that lie close to each other and must stay apart.

    Elsewhere:
        Implementations that know instances label connected components first, and most apply the second term in the
        background alone.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    weight: Tensor | None

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        balance: bool = True,
        weight: Tensor | None = None,
        class_counts: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if w0 < 0 or sigma <= 0:
            raise ValueError(f"w0 must not be negative and sigma must be above 0, found {w0}, {sigma}")
        self.w0, self.sigma = w0, sigma
        if weight is None and balance:
            if class_counts is None:
                raise ValueError("class_counts are not known; give them, or weight, or balance: false")
            counts = torch.as_tensor(class_counts, dtype=torch.float32)
            # a class without a voxel in the training split never asks for its weight in training
            weight = counts.sum() / (len(counts) * counts.clamp_min(1))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, *, distance_out: Tensor, present: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, _ = flat(logits, target)
        with torch.no_grad():
            near = torch.full_like(distance_out[:, 0], torch.inf)
            next_near = near
            for c in range(1, distance_out.shape[1]):
                # the map of an absent class is 0 everywhere: it is nowhere
                away = torch.where(per_axis(present[:, c], near), distance_out[:, c], torch.inf)
                next_near = torch.minimum(next_near, torch.maximum(near, away))
                near = torch.minimum(near, away)
            weight = self.w0 * torch.exp(-((near + next_near) ** 2) / (2 * self.sigma**2))
            base = 1.0 if self.weight is None else of_class(self.weight, scores, labels).view(weight.shape)
        return weighted_ce(logits, target, weight + base)


class DistanceMapCE(nn.Module):
    """Distance-penalised cross-entropy, DPCE (Caliva et al., 2019): the mean of (1 + Φ_n) (-ln p_n).

    Azad et al., 2023, eq. 5; Jadon, 2020, eq. 22. Φ is large near the boundary of the truth:

        L = 1/N Σ_n (1 + Φ_n) (-ln p_n),    Φ_n = (m - d_n) / m

    d_n is the distance to the nearest voxel of another class and m its maximum over the class in that sample: Φ is
    in [0, 1), and each region reaches 0 at its core. With two classes this is the map that SegLoss builds, object and
    background one by one; with more, our reading is the distance to any change of the label. "Inverse of the distance
    map" in Azad et al. means m - d, not 1 / d. Jadon's text, a distance between truth and prediction, is wrong: Φ
    depends on the truth alone. Φ is 0 where one class fills the image.

    Args:
        scale: Factor of Φ; 1 in the paper.

    Raises:
        ValueError: The scale is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Cross-entropy that cares for boundaries: hard-to-segment rims weigh up to twice as much as the core.

    Disadvantages:
        The weight is at most 2, and a structure one voxel thin has m = d, hence no extra weight at all.

    Use:
        Where cross-entropy works and boundaries are to be sharper.

    Elsewhere:
        SegLoss's DisPenalizedCE computes the weighted values and returns the mean of the unweighted ones: it is plain
        cross-entropy. On an image with one class it divides 0 by 0.
    """

    version = 1
    taxonomy = ("pixel", "distribution")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if scale < 0:
            raise ValueError(f"scale must not be negative, found {scale}")
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor) -> Tensor:
        """Return the loss."""
        return weighted_ce(logits, target, 1 + self.scale * inverted_map(distance_in))


class DistanceWeightedCE(nn.Module):
    """Cross-entropy weighted with the distance map (after Sugino et al., 2021): w falls as 1 / distance to the rim.

    Sugino et al. compare weighting by a distance transform map with the penalty term of Caliva et al.
    (`DistanceMapCE`). Their formula could not be checked; this is our reading of a weighting against class imbalance:

        L = 1/N Σ_n w_n (-ln p_n),    w_n ∝ (h / d_n)^power,  mean of w over each sample 1

    d_n is the distance to the nearest voxel of another class and h the smallest spacing. Small and thin structures
    consist of voxels near a rim and keep their weight; the inside of large ones loses it. In an image with one class
    all weights are 1.

    Args:
        power: Exponent; 0 is cross-entropy.

    Raises:
        ValueError: The power is negative.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Balances classes without counting them, by geometry: what is small or thin is close to its rim everywhere.

    Disadvantages:
        Says little about the inside of large regions, and nothing special about small compact objects far apart.

    Use:
        Thin or small structures beside a large background.

    Elsewhere:
        No public implementation is known to us.
    """

    version = 1
    taxonomy = ("pixel", "distribution")

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        if power < 0:
            raise ValueError(f"power must not be negative, found {power}")
        self.power = power

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor, spacing: Tensor, valid: Tensor) -> Tensor:
        """Return the loss."""
        with torch.no_grad():
            step = spacing.amin(1).to(distance_in.dtype)
            depth = distance_in.amax(1)  # 0 in all maps but the voxel's own
            # no rim anywhere: any constant will do, the mean is made 1
            weight = torch.where(depth > 0, (per_axis(step, depth) / depth.clamp_min(1e-30)) ** self.power, 1.0)
            weight = weight * valid
            count = valid.flatten(1).sum(1)
            weight = weight * per_axis(count / weight.flatten(1).sum(1).clamp_min(1e-30), weight)
        return weighted_ce(logits, target, weight)


class Boundary(nn.Module):
    """Boundary loss (Kervadec et al., 2019, eq. 5): the mean over classes and voxels of p · φ, φ the signed distance.

    Azad et al., 2023, eq. 23; Celaya et al., 2023, eq. 9:

        L = 1/(C N) Σ_c Σ_n p_cn φ_cn,    φ = d_out outside of the object, -(d_in - h) inside

    h is the smallest spacing, so that φ is 0 on the object's rim; d_in and d_out are distances to the nearest voxel
    centre of the other side, in the unit of the spacing. φ is 0 for a class that is absent or fills the image. Dropped
    from the paper is the constant that would make the optimum 0. The authors add it to a region loss with a growing
    weight, in a suite `sum: [dice, {boundary: ...}]` with schedules; here it stands alone.

    Args:
        normalize: Divide each class's map by its largest magnitude, so that the value does not grow with the image.
        background: Whether class 0 counts.
        classes: The classes that count; all by default.

    Raises:
        ValueError: `classes` are not distinct class numbers, or none is left.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Errors cost their distance from the boundary, whatever the size of the object: little is lost to imbalance, and
        it is one product per voxel once the maps are there.

    Disadvantages:
        An empty prediction is nearly stationary for small objects, so alone it may learn nothing; the value is
        negative and grows with the image; the maps have to be computed for every augmented label.

    Use:
        With a region loss, its weight rising during training, for small objects and for boundary distances.

    Elsewhere:
        MONAI's BoundaryLoss is the same with spacing 1, and knows no ignored voxels. The authors' schedule lowers the
        weight of the region loss by 0.01 an epoch to 0.1 and raises this one's without bound; Celaya et al. use α and
        1 - α. MIST always leaves the background out. The region-wise authors' version does not subtract h inside.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {"optimum": "negative by design: p · φ is lowest inside the object"}

    def __init__(self, normalize: bool = False, background: bool = True, classes: Sequence[int] | None = None) -> None:
        super().__init__()
        if classes is not None and (
            len(set(classes)) != len(classes) or not all(type(c) is int and c >= 0 for c in classes)
        ):
            raise ValueError(f"classes must be distinct class numbers, found {classes}")
        self.normalize, self.background = normalize, background
        self.classes = None if classes is None else [c for c in classes if c or background]
        if self.classes == []:
            raise ValueError("no class is left that counts")

    def forward(
        self, logits: Tensor, target: Tensor, *, distance_in: Tensor, distance_out: Tensor, spacing: Tensor
    ) -> Tensor:
        """Return the loss."""
        with torch.no_grad():
            maps = signed_map(distance_in, distance_out, spacing)
            if self.normalize:
                maps = maps / largest(maps.abs()).clamp_min(1e-30)
        if self.classes is not None and max(self.classes) >= maps.shape[1]:
            raise ValueError(f"classes {self.classes} of {maps.shape[1]}")
        return mean_product(logits, target, maps, self.classes or slice(0 if self.background else 1, None))


class RegionWise(nn.Module):
    """Region-wise loss with boundary maps (Valverde and Tohka, 2023): the mean of p · z, z = d_out - d_in.

    Azad et al., 2023, eq. 31:

        L = 1/(C N) Σ_c Σ_n p_cn z_cn

    Any map z is allowed in the paper; this is the one of its boundary experiments, the plain signed distance: d_out
    outside of the class, -d_in inside, 0 for a class that is absent or fills the image. `Boundary` differs by one voxel
    inside. With `normalize`, each side is divided by its maximum (our reading), so that z is in [-1, 1].

    Args:
        normalize: Divide each side of each class's map by its maximum.
        background: Whether class 0 counts.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        One product with a map, into which any importance of voxels and classes can be written.

    Disadvantages:
        The authors show that unrectified maps make training unstable: wrong classes of one voxel compete with unequal
        values. The value is negative at the optimum and grows with the image.

    Use:
        To compare with the rectified form, which is the better choice.

    Elsewhere:
        The authors' code reuses the map of the class before where a class is absent.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {"optimum": "negative by design: z is below 0 inside the object"}

    def __init__(self, normalize: bool = False, background: bool = True) -> None:
        super().__init__()
        self.normalize, self.background = normalize, background

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor, distance_out: Tensor) -> Tensor:
        """Return the loss."""
        with torch.no_grad():
            if self.normalize:
                distance_in, distance_out = (d / largest(d).clamp_min(1e-30) for d in (distance_in, distance_out))
            maps = distance_out - distance_in
        return mean_product(logits, target, maps, slice(0 if self.background else 1, None))


class RectifiedRegionWise(nn.Module):
    """Rectified region-wise loss, RRW (Valverde and Tohka, 2023): the mean of p · z, z = -d_in / max d_in, else 1.

    Azad et al., 2023, eq. 31, with the rectified map:

        L = 1/(C N) Σ_c Σ_n p_cn z_cn,    z = -d_in / max d_in in the class, 1 elsewhere

    All wrong classes of a voxel cost the same, which the authors show to be what keeps training stable. An absent class
    has z = 1 everywhere: predicting it costs. Where one class fills the image, its z is -1 (our reading).

    Args:
        background: Whether class 0 counts.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [-1, 1].

    Advantages:
        Bounded, stable without schedules or a second loss, and without arguments; punishes absent classes.

    Disadvantages:
        Rims of the truth weigh less than cores on the side of the class; outside, distance plays no role any more.

    Use:
        Where a boundary-type loss is wanted alone.

    Elsewhere:
        In the authors' code a class that fills the image has an undefined distance map.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {"optimum": "negative by design: z is below 0 inside the object"}

    def __init__(self, background: bool = True) -> None:
        super().__init__()
        self.background = background

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor, onehot: Tensor, valid: Tensor) -> Tensor:
        """Return the loss."""
        with torch.no_grad():
            deepest = largest(distance_in)
            own = torch.where(deepest > 0, distance_in / deepest.clamp_min(1e-30), 1.0)
            maps = torch.where(onehot > 0, -own, 1.0) * valid[:, None]
        return mean_product(logits, target, maps, slice(0 if self.background else 1, None))


class DistanceDice(nn.Module):
    """Distance-penalised Dice, DP-Dice (SegLoss, Ma et al., 2021): Dice with every voxel weighted by 1 + Φ.

    The correct form has the weights in the numerator *and* the denominator:

        L = 1 - mean_c (2 Σ w t_c p_c + s) / (Σ w t_c + Σ w p_c + s),    w_n = 1 + Φ_n

    with Φ of `DistanceMapCE` (Caliva et al., 2019): near 1 at rims and 0 at the core of a region.

    Args:
        scale: Factor of Φ; 0 is Dice.
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes (see `Dice`).
        smooth: s.

    Raises:
        ValueError: The scale is negative, or `reduction` or `absent` is none of the choices.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [0, 1].

    Advantages:
        Dice that counts errors at the rim of a region more, for the price of one map.

    Disadvantages:
        The weights are between 1 and 2, so it stays close to Dice; structures one voxel thin gain nothing.

    Use:
        As Dice, where boundaries matter more than volumes.

    Elsewhere:
        SegLoss weights the true positives alone: its "Dice" exceeds 1, and the loss falls below -1.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        scale: float = 1.0,
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if scale < 0:
            raise ValueError(f"scale must not be negative, found {scale}")
        self.scale, self.background, self.smooth = scale, background, smooth
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, valid = flat(logits, target)
        probs = scores.softmax(1)
        with torch.no_grad():
            weight = (1 + self.scale * inverted_map(distance_in)).flatten(1).to(probs.dtype)
            weight = (weight * valid)[:, None]
            truth = torch.zeros_like(probs).scatter_(1, labels[:, None], weight)
        parts = [(probs * truth).sum(2), (probs * weight).sum(2), truth.sum(2), weight.sum(2)]
        if self.reduction == "batch":
            parts = [part.sum(0, keepdim=True) for part in parts]
        sums = RegionSums(*parts)
        errors = sums.t + sums.p - 2 * sums.tp
        return over_classes(ratio(errors, sums.t + sums.p + self.smooth), sums, self.background, self.absent)
