"""Active boundary loss: at a predicted boundary, the neighbour nearer to the true boundary shall differ most."""

from __future__ import annotations

import math
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.losses._common import IGNORE, full_precision

# First threshold on the divergence of neighbours, and the factor by which it is raised.
FIRST, FACTOR = 1e-5, 1.2
JUMPS = "a mean over the strongest predicted edges alone: which these are jumps with the prediction"


def offsets(dims: int, window: int = 3) -> list[tuple[int, ...]]:
    """All steps within a window of odd side but the one to the centre itself, the shortest first."""
    reach = window // 2
    steps = [step for step in product(range(reach, -reach - 1, -1), repeat=dims) if any(step)]
    return sorted(steps, key=lambda step: sum(s * s for s in step))


def padded(values: Tensor, dims: int, reach: int, fill: float = 0.0) -> Tensor:
    """The last `dims` axes with `reach` layers of a value on either side."""
    return F.pad(values, [reach, reach] * dims, value=fill)


def moved(values: Tensor, step: tuple[int, ...], reach: int) -> Tensor:
    """A view of a padded tensor: at each voxel the value of the voxel one step away."""
    for axis, s in enumerate(step, start=values.ndim - len(step)):
        values = values.narrow(axis, reach + s, values.shape[axis] - 2 * reach)
    return values


def smallest(spacing: Tensor | None, like: Tensor) -> Tensor:
    """The smallest spacing of each sample, shaped to divide a map (B, *S); ones where none is known."""
    if spacing is None:
        return like.new_ones([1] * like.ndim)
    return spacing.to(like).amin(1).view(-1, *[1] * (like.ndim - 1))


class ActiveBoundary(nn.Module):
    """Active boundary loss (Wang et al., 2022): cross-entropy of the way from a predicted to the true boundary.

    Azad et al., 2023, eq. 28.

        L = 1/|B| Σ_{i ∈ B} Λ(d_i) CE(softmax_j KL(p_j ‖ p_i), argmin_j d_j),  Λ(d) = min(d, 20) / 20

    B is the predicted boundary: voxels whose divergence Σ_axes KL(p_i ‖ p_next) exceeds the first threshold of
    1e-5 · 1.2^k that leaves at most 1 % of the image, grown by one voxel. j runs over the 8 neighbours of a voxel in
    2D (26 in 3D: our reading). d_i is the distance to the nearest voxel of another class in the unit of the smallest
    spacing, so 1 on either side of the true boundary. Voxels without a neighbour that is nearer are left out. The
    distribution of the neighbour gets no gradient.

    Departures. The 1 % is that of each image's valid voxels, at least one voxel (the released code compares the
    count over the batch with 1 % of one image, so a larger batch has fewer boundary voxels for each image).
    The released distances are those to the nearest boundary pixel less 1, where a pixel counts as boundary if its
    lower or right neighbour differs; the loss was then 0 at a distance of one pixel too. Where neighbours are equally
    near, the first in a fixed order with faces before corners is the target, and a voxel as near as its neighbours is
    left out (there: kept, with weight 0 on the boundary itself). Neighbours outside the image or ignored are no
    candidates (there: the edge of the image is repeated, and ignored pixels are boundary). Label smoothing is that of
    `torch.nn.functional.cross_entropy`. The released clamp of KL to 20 assigns its result to nothing; there is none
    here. Without a boundary the loss is 0 with a gradient of 0.

    Args:
        ratio: Largest part of an image's voxels that is predicted boundary before it is grown.
        label_smoothing: ε of the cross-entropy over directions.
        max_distance: Distance, in smallest spacings, from which on the weight is 1.
        detach: Whether the neighbours' distributions get no gradient.

    Raises:
        ValueError: An argument is out of its range.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar.

    Advantages:
        Works on the boundary that the network draws now and pulls it step by step to the true one, so it sharpens
        outlines that region losses leave soft, and it needs no second branch.

    Disadvantages:
        Says nothing about voxels away from a predicted boundary and does not tell on which side of it which class
        lies, so it cannot train a network alone. The choice of boundary voxels jumps with the prediction.

    Use:
        As a third term, as its authors do: cross-entropy + Lovász-softmax + this, each with weight 1.

    Elsewhere:
        The released code returns None where nothing is predicted, is for 2D and CUDA alone, and fails on current
        numpy and torch (`np.bool`, an index in a list). segloss 0.0.1 ports it to the CPU, multiplies the sum of the
        cross-entropies by the sum of the weights in place of a weighted mean, and adds the summed cross-entropy.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "order": "the edges of an inverted prediction lie on the true boundary, and only voxels at edges count",
        "gradcheck": "the neighbours' distributions get no gradient, by design (`detach`)",
        "axes": "of equally near neighbours the first in a fixed order is the target",
        "descent": "draws predicted boundaries nearer, and does not say which class lies on which side",
        "monotone_large": JUMPS,
        "monotone_small": JUMPS,
        "classwise": JUMPS,
    }

    def __init__(
        self, ratio: float = 0.01, label_smoothing: float = 0.2, max_distance: float = 20.0, detach: bool = True
    ) -> None:
        super().__init__()
        if not 0 < ratio <= 1 or not 0 <= label_smoothing < 1 or max_distance <= 0:
            raise ValueError(
                "expected 0 < ratio <= 1, 0 <= label_smoothing < 1 and max_distance > 0, "
                f"found {ratio}, {label_smoothing}, {max_distance}"
            )
        self.ratio, self.label_smoothing = ratio, label_smoothing
        self.max_distance, self.detach = max_distance, detach

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor, spacing: Tensor | None = None) -> Tensor:
        """Return the loss."""
        valid = target != IGNORE
        log_p = full_precision(logits).log_softmax(1)
        with torch.no_grad():
            # outside of a class its inner distance is 0: the sum is the one of the voxel's own class
            distance = distance_in.sum(1).to(log_p.dtype)
            towards, found = _nearer(torch.where(valid, distance, torch.inf))
            kept = found & valid & self._boundary(log_p, valid)
            near = (distance / smallest(spacing, distance)).clamp(max=self.max_distance) / self.max_distance
            weight = torch.where(kept, near, 0.0)
        scores, there = _divergences(log_p, valid, self.detach)
        right = scores.gather(1, towards[:, None])[:, 0]
        mean = torch.where(there, scores, 0.0).sum(1) / there.sum(1).clamp_min(1)
        loss = scores.logsumexp(1) - (1 - self.label_smoothing) * right - self.label_smoothing * mean
        # `where` and not a product: a voxel without any neighbour has the filling for a score
        return (torch.where(kept, loss, 0.0) * weight).sum() / kept.sum().clamp_min(1)

    def _boundary(self, log_p: Tensor, valid: Tensor) -> Tensor:
        """The predicted boundary, (B, *S) bool."""
        dims = valid.ndim - 1
        divergence = torch.zeros_like(log_p[:, 0])
        for axis in range(1, dims + 1):
            size = valid.shape[axis] - 1
            p, q = log_p.narrow(axis + 1, 0, size), log_p.narrow(axis + 1, 1, size)
            both = valid.narrow(axis, 0, size) & valid.narrow(axis, 1, size)
            divergence.narrow(axis, 0, size).add_(torch.where(both, (p.exp() * (p - q)).sum(1), 0.0))
        values = divergence.flatten(1)
        # the most voxels that any image may have, known without looking at the data; then each image's own number
        most = max(1, int(self.ratio * values.shape[1]))
        count = (self.ratio * valid.flatten(1).sum(1).double()).long().clamp(1, most)
        highest = values.topk(min(most + 1, values.shape[1]), dim=1).values
        first_out = highest.gather(1, count.clamp(max=highest.shape[1] - 1)[:, None])
        steps = (first_out.double().clamp_min(FIRST) / FIRST).log().div(math.log(FACTOR)).ceil()
        threshold = torch.maximum((FIRST * FACTOR**steps).to(values), first_out)
        edge = (values > threshold).view_as(divergence).to(divergence.dtype)
        grow = F.max_pool2d if dims == 2 else F.max_pool3d
        return grow(edge[:, None], 3, stride=1, padding=1)[:, 0] > 0


def _nearer(distance: Tensor) -> tuple[Tensor, Tensor]:
    """For each voxel the number of its nearest neighbour, and whether that one is nearer than the voxel itself."""
    dims = distance.ndim - 1
    around = padded(distance, dims, 1, torch.inf)
    best, towards = distance, torch.zeros_like(distance, dtype=torch.int64)
    # a running minimum: which of equal values `argmin` picks is not fixed on CUDA
    for k, step in enumerate(offsets(dims)):
        there = moved(around, step, 1)
        closer = there < best
        best, towards = torch.where(closer, there, best), torch.where(closer, k, towards)
    return towards, best < distance


def _divergences(log_p: Tensor, valid: Tensor, detach: bool) -> tuple[Tensor, Tensor]:
    """KL(neighbour ‖ voxel) for all neighbours, (B, K, *S), very low where there is none; and where there is one."""
    dims = valid.ndim - 1
    log_q = log_p.detach() if detach else log_p
    q = log_q.exp()
    around, entropy, known = padded(q, dims, 1), padded((q * log_q).sum(1), dims, 1), padded(valid, dims, 1, False)
    scores, there = [], []
    for step in offsets(dims):
        there.append(moved(known, step, 1))
        # Σ_c q ln q - Σ_c q ln p: the shifted q is a view, so that nothing of the size of the logits is kept
        value = moved(entropy, step, 1) - (moved(around, step, 1) * log_p).sum(1)
        scores.append(torch.where(there[-1], value, -1e9))
    return torch.stack(scores, 1), torch.stack(there, 1)
