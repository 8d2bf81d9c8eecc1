"""Region mutual information: label and prediction compared as the joint distribution of small neighbourhoods."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.losses._common import IGNORE, full_precision

EPS = 5e-4  # the authors', on the diagonal of covariances that are sums, not means


class RMI(nn.Module):
    """Region mutual information loss (Zhao et al., 2019): λ BCE - (1 - λ) Σ_c lower bound of I(T_c; P_c).

        bound = -1/(2d) ln det(A + εI), A = S_TT - S_TP (S_PP + εI)⁻¹ S_PT, ε = 5e-4

    Azad et al., 2023, eq. 21. Each class has two maps, label and probability; after pooling, every neighbourhood of
    radius r gives a vector of d = r² (2D) or r³ (3D) numbers, and S are the covariances of these vectors over an image,
    as sums. A is what of the label remains unexplained by the prediction. One sigmoid per class, by nature of the
    loss. BCE is summed over classes and averaged over voxels. ln det is the trailing part of one Cholesky factor of
    the joint matrix, in float64: the same number, and it cannot fail where the authors' difference loses its sign.

    Departures: windows and neighbourhoods that leave the image or touch an ignored voxel are left out (the authors pad,
    and count ignored voxels as 0); BCE is divided by the number of voxels, not one more; the 1e-6 added to p cancels.
    An image too small for one neighbourhood has no mutual information term.

    Args:
        radius: r, in pooled voxels.
        pool: "max", the authors' class default, or "mean", which their training script has.
        pool_size: Window and stride of the pooling; the training script has 4.
        bce_weight: λ.

    Raises:
        ValueError: A parameter is out of range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → the loss with its terms `bce` and `rmi`.

    Advantages:
        Looks at voxels with their neighbours: the structure of the label, without another network or a graph.

    Disadvantages:
        Memory and float64 matrices in the training step; the value is not bounded below by 0 and depends on the size
        of the image. Pooling hides details below the pooled grid.

    Use:
        As a stand-alone loss or late in training, where cross-entropy leaves ragged or broken structures.

    Elsewhere:
        The authors' code runs on CUDA only, with `torch.cholesky`, which is gone. Azad's eq. 21 is right up to a
        constant.
    """

    version = 1
    taxonomy = ("region", "region")
    declares: ClassVar[dict[str, str]] = {
        "optimum": "a log-determinant: at the truth it is the number that eps leaves, far below 0",
        "monotone_large": "mutual information is about dependence: a shifted object predicts the label's edge as well",
        "monotone_small": "mutual information is about dependence: a shifted object predicts the label's edge as well",
        "classwise": "the bound is per image: a better voxel can make its neighbourhoods less alike the others'",
    }

    def __init__(
        self,
        radius: int = 3,
        pool: Literal["max", "mean"] = "max",
        pool_size: int = 3,
        bce_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if radius < 1 or pool_size < 1:
            raise ValueError(f"radius and pool_size must be at least 1, found {radius}, {pool_size}")
        if pool not in ("max", "mean"):
            raise ValueError(f"pool must be 'max' or 'mean', found {pool!r}")
        if not 0 <= bce_weight <= 1:
            raise ValueError(f"bce_weight must lie in [0, 1], found {bce_weight}")
        self.radius, self.pool, self.pool_size, self.bce_weight = radius, pool, pool_size, bce_weight

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        scores = full_precision(logits)
        valid = (target != IGNORE)[:, None]
        onehot = torch.zeros_like(scores, requires_grad=False).scatter_(
            1, torch.where(valid, target[:, None], 0), valid.to(scores.dtype)
        )
        terms = functional.binary_cross_entropy_with_logits(scores, onehot, reduction="none")
        bce = (terms * valid).sum() / valid.sum().clamp_min(1)
        rmi = self._rmi(scores.sigmoid(), onehot, valid)
        return {"loss": self.bce_weight * bce + (1 - self.bce_weight) * rmi, "bce": bce, "rmi": rmi}

    def _rmi(self, probs: Tensor, onehot: Tensor, valid: Tensor) -> Tensor:
        """Minus the bound, summed over classes, mean over images with a neighbourhood."""
        if min(probs.shape[2:]) // self.pool_size < self.radius:
            return (probs * 0).sum()
        inside = self._vectors(_pooled(valid, self.pool_size, torch.all)).all(2)
        weight = inside[:, :, None].double()
        number = weight.sum(-1, keepdim=True)
        pool = torch.amax if self.pool == "max" else torch.mean
        pairs = [self._vectors(_pooled(maps, self.pool_size, pool).double()) for maps in (probs, onehot)]
        joint = torch.cat(pairs, 2) * weight
        with torch.autocast(device_type=probs.device.type, enabled=False):
            total = joint.sum(-1, keepdim=True)
            covariance = joint @ joint.mT - total @ total.mT / number.clamp_min(1)
        size = covariance.shape[-1]
        eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
        # no check for failure: it would wait for the device, and ε times the identity keeps the matrix positive
        factor: Tensor = torch.linalg.cholesky_ex(covariance + EPS * eye).L
        half_log_det = factor.diagonal(dim1=-2, dim2=-1)[..., size // 2 :].log().sum(-1)
        there = (number[:, :, 0, 0] > 0).to(half_log_det.dtype)
        rmi = (half_log_det * there).sum() / (size // 2) / there.sum().clamp_min(1)
        return rmi.to(probs.dtype)

    def _vectors(self, maps: Tensor) -> Tensor:
        """Every neighbourhood as a vector: (B, C, *S) → (B, C, d, number)."""
        sides = [n - self.radius + 1 for n in maps.shape[2:]]
        corners = product(range(self.radius), repeat=len(sides))
        return torch.stack(
            [
                reduce(lambda x, a: x.narrow(a[0] + 2, a[1], sides[a[0]]), enumerate(corner), maps).flatten(2)
                for corner in corners
            ],
            2,
        )


def _pooled(maps: Tensor, size: int, pool: Callable[..., Tensor]) -> Tensor:
    """Reduce whole cells, one axis after the other: (B, C, *S) → (B, C, *S/size); what is left over is dropped.

    `amax` shares the gradient between equal values, whatever their order, and is deterministic.
    """
    for axis in range(2, maps.ndim):
        count = maps.shape[axis] // size
        cells = maps.narrow(axis, 0, count * size)
        maps = pool(cells.reshape(*maps.shape[:axis], count, size, *maps.shape[axis + 1 :]), axis + 1)
    return maps
