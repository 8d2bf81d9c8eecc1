"""Structural similarity loss: cross-entropy where label and prediction correlate badly within a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from harness.losses._common import IGNORE, full_precision

C4 = 0.01


class StructuralSimilarity(nn.Module):
    """Correlation-maximised structural similarity loss (Zhao et al., 2019): Σ e f BCE / Σ f over voxels and classes.

        e = |(t - μ_t + C4) / (σ_t + C4) - (p - μ_p + C4) / (σ_p + C4)|, f = 1 where e > β max e, C4 = .01

    Jadon, 2020, section N. μ and σ are the mean and the standard deviation in a Gaussian window around the voxel: e is
    small where the two maps rise and fall together, and only hard voxels (f = 1) count. One sigmoid per class, and
    BCE, by nature of the loss. Our reading where the paper is silent: the window has 3 voxels a side with the standard
    deviation 1.5 of the structural similarity index; max e is over all voxels and classes of the batch; voxels whose
    window leaves the image or touches an ignored voxel are left out; e has its gradient, as the formula says.
    Moments are taken in float64: in float32 the rounding of E[p²] - μ² is a σ of some 3e-4 at p near 1, percents of C4.

    Args:
        beta: β in [0, 1).
        window: Side of the window, odd.
        sigma: Standard deviation of its Gaussian weights, in voxels.
        detach: Take e as a mere weight, without its gradient.

    Raises:
        ValueError: A parameter is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar; 0 where no window fits.

    Advantages:
        Puts the weight where the local structure is wrong, mostly at contours and thin parts, at little cost.

    Disadvantages:
        The set of hard voxels jumps between steps. In a window where the label is constant e sees the slightest ripple
        of p, because σ_p is small there.

    Use:
        Images where structure matters more than areas; in a sum with cross-entropy or Dice early in training.

    Elsewhere:
        The authors' repository is gone. A public reimplementation cuts e at a constant instead of β max e, and takes
        the deviation from the mean of each neighbour's own window.
    """

    version = 1
    taxonomy = ("pixel", "compound")

    def __init__(self, beta: float = 0.1, window: int = 3, sigma: float = 1.5, detach: bool = False) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"beta must lie in [0, 1), found {beta}")
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3, found {window}")
        if sigma <= 0:
            raise ValueError(f"sigma must be above 0, found {sigma}")
        self.beta, self.window, self.sigma, self.detach = beta, window, sigma, detach
        half = window // 2
        weights = [math.exp(-((i / sigma) ** 2) / 2) for i in range(-half, half + 1)]
        self.weights = [w / sum(weights) for w in weights]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores = full_precision(logits)
        if min(scores.shape[2:]) < self.window:
            return (scores * 0).sum()
        valid = (target != IGNORE)[:, None]
        onehot = torch.zeros_like(scores, requires_grad=False).scatter_(
            1, torch.where(valid, target[:, None], 0), valid.to(scores.dtype)
        )
        whole = self._whole(valid)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            error = (self._normalised(scores.sigmoid(), squared=False) - self._normalised(onehot, squared=True)).abs()
        error = torch.where(whole, error, 0)
        hard = error > self.beta * error.detach().amax()
        bce = functional.binary_cross_entropy_with_logits(self._centre(scores), self._centre(onehot), reduction="none")
        return (error * hard * bce).sum() / hard.sum().clamp_min(1)

    def _normalised(self, maps: Tensor, *, squared: bool) -> Tensor:
        """(x - μ + C4) / (σ + C4); `squared`: the maps are their own squares."""
        dtype, maps = maps.dtype, maps.double()
        mean: Tensor = _WindowMean.apply(maps, self.weights)  # type: ignore[no-untyped-call]
        square: Tensor = mean if squared else _WindowMean.apply(maps * maps, self.weights)  # type: ignore[no-untyped-call]
        # the square root has an infinite slope at 0
        deviation = (square - mean * mean).clamp_min(1e-16).to(dtype).sqrt()
        return ((self._centre(maps) - mean).to(dtype) + C4) / (deviation + C4)

    def _centre(self, maps: Tensor) -> Tensor:
        for axis in range(2, maps.ndim):
            maps = maps.narrow(axis, self.window // 2, maps.shape[axis] - self.window + 1)
        return maps

    def _whole(self, valid: Tensor) -> Tensor:
        """Whether every voxel of the window is valid, (B, 1, *S)."""
        for axis in range(2, valid.ndim):
            length = valid.shape[axis] - self.window + 1
            valid = torch.stack([valid.narrow(axis, i, length) for i in range(self.window)]).all(0)
        return valid


class _WindowMean(torch.autograd.Function):
    """Weighted means over the windows that lie within the image, one axis after the other; nothing is saved."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weights: Sequence[float]) -> Tensor:
        ctx.weights = weights
        for axis in range(2, maps.ndim):
            length = maps.shape[axis] - len(weights) + 1
            out = maps.narrow(axis, 0, length) * weights[0]
            for i, weight in enumerate(weights[1:], 1):
                out.add_(maps.narrow(axis, i, length), alpha=weight)
            maps = out
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        for axis in range(2, grad.ndim):
            shape, length = list(grad.shape), grad.shape[axis]
            shape[axis] += len(ctx.weights) - 1
            out = grad.new_zeros(shape)
            for i, weight in enumerate(ctx.weights):
                out.narrow(axis, i, length).add_(grad, alpha=weight)
            grad = out
        return grad, None
