"""Unified focal losses: a focal part and a focal Tversky part with the same two parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.losses._common import (
    Absent,
    Reduction,
    check_absent,
    check_reduction,
    flat,
    over_classes,
    ratio,
    region_sums,
    safe_power,
    true_class,
)


class SymmetricUnifiedFocal(nn.Module):
    """Symmetric unified focal loss (Yeung et al., 2022, eq. 13): λ · focal + (1 - λ) · focal Tversky, δ and γ shared.

        focal = mean_n w_y (1 - pₙ)^γ (-ln pₙ), w = δ for foreground classes, 1 - δ for the background
        focal Tversky = mean_c (1 - mTI_c)^(1-γ), mTI = TP / (TP + δ FN + (1 - δ) FP)

    Azad et al., 2023, eq. 36. The paper writes the symmetric form with 1 - γ in the focal and γ in the Tversky part,
    the asymmetric one and the authors' code the other way round: as here; at γ = 1/2 both are the same. λ is on the
    focal part, as in the paper; the code's `weight` is on the Tversky part. The code is for two classes; here every
    class but 0 is rare (our reading), and the Tversky part averages over classes. With γ = 0 and δ = 1/2 the loss is
    λ CE / 2 + (1 - λ) Dice; λ = 1, δ = 1/2 is half the focal loss; λ = 0 is focal Tversky with the weights 1 - δ and δ.
    (1 - mTI)^(1-γ) has an infinite gradient at perfect overlap: below 1e-7 it is continued by the straight line to 0.

    Args:
        focal_weight: λ.
        delta: δ, of foreground classes and of false negatives.
        gamma: γ in [0, 1): the larger, the less easy voxels count, and the more easy classes do.
        reduction: Sums of the Tversky part over the whole batch, or per sample (the authors').
        absent: What a class without a voxel contributes to the Tversky part (see `Dice`).
        smooth: s of the Tversky index.

    Raises:
        ValueError: A parameter is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → the loss with its terms `focal` and
        `focal_tversky`.

    Advantages:
        Joins a loss over voxels to one over regions, for output and input imbalance at once, with two parameters in
        place of the five that focal and focal Tversky have.

    Disadvantages:
        The symmetric form also damps the easy voxels of rare classes and lifts the background's region term. A bad
        choice of δ and γ costs more than with a plain sum of Dice and cross-entropy.

    Use:
        Imbalanced data on which Dice + cross-entropy leaves small structures out.

    Elsewhere:
        unified-focal-loss-pytorch 0.1.2 takes probabilities, has δ = .7 and γ = .75, and computes the Tversky index of
        each voxel instead of each class, a different loss; its focal part agrees.
    """

    version = 1
    taxonomy = ("combination", "compound")
    asymmetric = False

    def __init__(
        self,
        focal_weight: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if not (0 <= focal_weight <= 1 and 0 <= delta <= 1):
            raise ValueError(f"focal_weight and delta must lie in [0, 1], found {focal_weight}, {delta}")
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), found {gamma}")
        self.focal_weight, self.delta, self.gamma = focal_weight, delta, gamma
        self.reduction, self.absent, self.smooth = check_reduction(reduction), check_absent(absent), smooth

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        focal, tversky = self._focal(logits, target), self._focal_tversky(logits, target)
        loss = self.focal_weight * focal + (1 - self.focal_weight) * tversky
        return {"loss": loss, "focal": focal, "focal_tversky": tversky}

    def _focal(self, logits: Tensor, target: Tensor) -> Tensor:
        scores, labels, valid = flat(logits, target)
        log_p = true_class(scores.log_softmax(1), labels)
        rare = labels > 0
        # δ or 1 - δ; `where` of two numbers would make float32 of them
        weight = (1 - self.delta + (2 * self.delta - 1) * rare.to(scores.dtype)) * valid
        if self.gamma:
            easy = safe_power(-torch.expm1(log_p), self.gamma)
            weight = weight * (torch.where(rare, 1, easy) if self.asymmetric else easy)
        return -(weight * log_p).sum() / valid.sum().clamp_min(1)

    def _focal_tversky(self, logits: Tensor, target: Tensor) -> Tensor:
        sums = region_sums(logits, target, self.reduction)
        errors = (1 - self.delta) * (sums.p - sums.tp) + self.delta * (sums.t - sums.tp)
        losses = ratio(errors, sums.tp + errors + self.smooth)
        lifted = _lift(losses, 1 - self.gamma)
        if self.asymmetric:
            lifted = torch.cat([losses[:, :1], lifted[:, 1:]], 1)
        return over_classes(lifted, sums, True, self.absent)


class AsymmetricUnifiedFocal(SymmetricUnifiedFocal):
    """Asymmetric unified focal loss (Yeung et al., 2022, eq. 18): damps easy background, lifts foreground regions.

        focal = mean_n { δ (-ln pₙ) in the foreground, (1 - δ) (1 - pₙ)^γ (-ln pₙ) in the background }
        focal Tversky = mean_c { 1 - mTI_0 for the background, (1 - mTI_c)^(1-γ) for foreground classes }

    Azad et al., 2023, eq. 36; λ weighs the first part, 1 - λ the second. Easy voxels are damped in the background
    only, and the region term of a class that is nearly right is lifted in the foreground only. The authors' code takes
    two classes; here every class but 0 is rare (our reading), and the Tversky part averages over classes where the
    paper sums. λ is on the focal part, as in the paper; the code's `weight` is on the Tversky part. With γ = 0 it is
    the symmetric loss. (1 - mTI)^(1-γ) has an infinite gradient at perfect overlap: below 1e-7 it is continued by the
    straight line to 0.

    Args:
        focal_weight: λ.
        delta: δ, of foreground classes and of false negatives.
        gamma: γ in [0, 1).
        reduction: Sums of the Tversky part over the whole batch, or per sample (the authors').
        absent: What a class without a voxel contributes to the Tversky part (see `Dice`).
        smooth: s of the Tversky index.

    Raises:
        ValueError: A parameter is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → the loss with its terms `focal` and
        `focal_tversky`.

    Advantages:
        Damps the background without damping the rare classes, which the symmetric form and the focal loss do too.

    Disadvantages:
        Class 0 must be the common one: it is not invariant to which class is called background.

    Use:
        Strong imbalance between background and foreground; the variant that the authors recommend.

    Elsewhere:
        MONAI `AsymmetricUnifiedFocalLoss` says that it takes logits but applies no activation, has δ = .7, is for two
        classes, and its focal part is half the authors' (a mean over the class axis in place of a sum).
        unified-focal-loss-pytorch 0.1.2 gives false positives the weight δ too, and takes the Tversky index of each
        voxel; its focal part agrees.
    """

    version = 1
    taxonomy = ("combination", "compound")
    asymmetric = True


def _lift(base: Tensor, exponent: float, eps: float = 1e-7) -> Tensor:
    """`base ** exponent`, below eps the straight line to 0: exactly 0 at 0, with a finite gradient."""
    base = base.clamp_min(0)  # rounding: Σp may come out below TP
    return base if exponent == 1 else base * base.clamp_min(eps) ** (exponent - 1)
