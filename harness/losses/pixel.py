"""Pixel losses: means over voxels of a function of the probability of the true class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.losses._common import flat, of_class, safe_power, true_class


class CrossEntropy(nn.Module):
    """Cross-entropy: the mean over valid voxels of -ln p_n, p_n the probability of the true class.

    Azad et al., 2023, eqs. 1 and 2, with the mean in place of the printed sum. With weights it is Σ w_y (-ln p) / Σ
    w_y, as in `torch.nn.CrossEntropyLoss`: the normaliser is the sum of the weights, not the number of voxels.
    Written as log-softmax and gather, because `nll_loss2d` has no deterministic form on CUDA.

    Args:
        weight: Weight of each class with background, (C,); none by default.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where every voxel is ignored.
    """

    version = 1
    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, valid = flat(logits, target)
        weight = valid.to(scores.dtype)
        if self.weight is not None:
            weight = weight * of_class(self.weight, scores, labels)
        log_p = true_class(scores.log_softmax(1), labels)
        return -(log_p * weight).sum() / weight.sum().clamp_min(torch.finfo(scores.dtype).tiny)


class Focal(nn.Module):
    """Focal loss (Lin et al., 2017, eq. 5): the mean over valid voxels of -α_y (1 - p_n)^γ ln p_n.

    The softmax form of Azad et al., 2023, section 3.1; γ = 0 is cross-entropy (Jadon, 2020, says γ = 1, which is an
    error). kornia and MONAI divide by the number of classes too; MONAI's and smp's defaults are one-vs-rest sigmoids:
    other values.

    Args:
        gamma: γ, at least 0.
        alpha: Weight α of each class with background, (C,); none by default. The normaliser is the number of voxels.

    Raises:
        ValueError: γ is negative.
    """

    version = 1
    alpha: Tensor | None

    def __init__(self, gamma: float = 2.0, alpha: Tensor | None = None) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, found {gamma}")
        self.gamma = gamma
        self.register_buffer("alpha", alpha, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, valid = flat(logits, target)
        weight = valid.to(scores.dtype)
        log_p = true_class(scores.log_softmax(1), labels)
        loss = -log_p * weight
        if self.gamma:
            loss = loss * safe_power(-torch.expm1(log_p), self.gamma)  # -expm1: 1 - p without cancellation
        if self.alpha is not None:
            loss = loss * of_class(self.alpha, scores, labels)
        return loss.sum() / weight.sum().clamp_min(1)
