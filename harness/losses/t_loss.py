"""T-loss: the residual of a whole image under a Student-t distribution, robust to images with wrong labels."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.losses._common import flat


class TLoss(nn.Module):
    """T-loss (Gonzalez-Jimenez et al., 2023): negative log-likelihood of d = p - t under a multivariate Student t.

        -ln Γ((ν + D) / 2) + ln Γ(ν / 2) + D/2 ln(π ν) + (ν + D) / 2 · ln(1 + ‖d‖² / ν), per image, ν learned

    Azad et al., 2023, eq. 22, with Σ = I. The survey has the limits the wrong way round: ν → ∞ gives the squared
    error, small ν heavy tails, and then an image far off weighs little: its weight is (ν + D) / (ν + ‖d‖²). It is
    whole images that are weighed down, not voxels. The authors' code has a precision of e in place of 1 (its `lambdas`
    of 1 are logarithms), fixes D from the size of the image, and is binary. Here d holds the foreground channels of
    the softmax at valid voxels and D is how many numbers these are, image by image: for two classes the authors'
    form, and in general C - 1 free numbers a voxel, because residuals sum to 0 over classes (our reading).
    ln Γ in float64: it is of the order of D ln D, and the value is a difference of such numbers.

    Args:
        nu: ν at the start; the authors' e. Its logarithm is a parameter, learned with `lr` 1e-3.
        background: Whether d holds the background channel too.
        reduction: "voxel" divides the value of each image by D, so that weights in sums and learning rates do not
            depend on the size of the patch (our reading); "image" is the authors', of the order of D.

    Raises:
        ValueError: ν is not above 0, or `reduction` is unknown.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar, the mean over images with a valid voxel.

    Advantages:
        Tolerates images whose labels are wrong, and learns from the data how much to tolerate; no noise rate has to be
        known.

    Disadvantages:
        Not robust to wrong voxels within a good image. It says nothing about class imbalance. The value can be
        negative and cannot be compared between patch sizes.

    Use:
        Data sets in which some cases are badly annotated.

    Elsewhere:
        The authors' `TLoss`: precision e, D fixed, one sigmoid channel.
    """

    version = 1
    taxonomy = ("pixel", "distribution")
    lr = 1e-3
    declares: ClassVar[dict[str, str]] = {
        "optimum": "a log-likelihood: at the truth it is lowest, at a value of either sign that is not 0"
    }

    def __init__(
        self, nu: float = math.e, background: bool = False, reduction: Literal["voxel", "image"] = "voxel"
    ) -> None:
        super().__init__()
        if not 0 < nu < math.inf:
            raise ValueError(f"nu must be above 0 and finite, found {nu}")
        if reduction not in ("voxel", "image"):
            raise ValueError(f"reduction must be 'voxel' or 'image', found {reduction!r}")
        self.background, self.reduction = background, reduction
        self.log_nu = nn.Parameter(torch.tensor(math.log(nu)))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels, valid = flat(logits, target)
        first = 0 if self.background else 1
        probs = scores.softmax(1)
        onehot = torch.zeros_like(probs).scatter_(1, labels[:, None], 1.0)
        residual = (probs - onehot)[:, first:] * valid[:, None]
        squares = residual.square().sum((1, 2)).double()
        size = valid.sum(1).double() * residual.shape[1]
        nu = self.log_nu.double().exp()
        half = (nu + size) / 2
        values = torch.lgamma(nu / 2) - torch.lgamma(half) + half * torch.log1p(squares / nu)
        values = values + size / 2 * (math.log(math.pi) + self.log_nu.double())
        if self.reduction == "voxel":
            values = values / size.clamp_min(1)
        return (values.sum() / (size > 0).sum().clamp_min(1)).to(scores.dtype)
