"""What losses on distance maps share: maps made of `distance_in` and `distance_out`, and means over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.losses._common import flat


def per_axis(values: Tensor, like: Tensor) -> Tensor:
    """Append axes of size 1 so that (B,) or (B, C) goes with `like`."""
    return values.view(*values.shape, *[1] * (like.ndim - values.ndim))


def signed_map(distance_in: Tensor, distance_out: Tensor, spacing: Tensor) -> Tensor:
    """Kervadec's map: the distance outside, minus the distance inside less one voxel: 0 on the object's rim.

    One voxel is the smallest spacing of the sample, as between neighbours across the finest axis.
    """
    with torch.no_grad():
        step = per_axis(spacing.amin(1).to(distance_in.dtype), distance_in)
        return distance_out - (distance_in - step).clamp_min(0)


def largest(maps: Tensor) -> Tensor:
    """The largest value over the voxels, (B, C), with axes of size 1 behind."""
    return per_axis(maps.flatten(2).amax(2), maps)


def inverted_map(distance_in: Tensor) -> Tensor:
    """Φ = (m - d) / m, (B, *S): d the distance to the nearest voxel of another class, m its maximum over the class.

    Near 1 at the rim of a region and 0 at its core; 0 where one class fills the image, and at ignored voxels.
    """
    with torch.no_grad():
        deepest = largest(distance_in)
        # every map is 0 outside of its class, so the sum is the voxel's own
        return torch.where(distance_in > 0, 1 - distance_in / deepest.clamp_min(1e-30), 0.0).sum(1)


def mean_product(logits: Tensor, target: Tensor, maps: Tensor, classes: Sequence[int] | slice) -> Tensor:
    """Mean over valid voxels and the classes that count of p · z; `maps` z (B, C, *S) are 0 at ignored voxels."""
    scores, _, valid = flat(logits, target)
    probs, weight = (_of_classes(values, classes) for values in (scores.softmax(1), maps.flatten(2)))
    return (probs * weight.to(probs.dtype)).sum() / (probs.shape[1] * valid.sum().clamp_min(1))


def _of_classes(values: Tensor, classes: Sequence[int] | slice) -> Tensor:
    """Channels of (B, C, N), without the copy to the device that an index list would be."""
    return values[:, classes] if isinstance(classes, slice) else torch.stack([values[:, c] for c in classes], 1)


def weighted_ce(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over valid voxels of w · (-ln p), w (B, *S)."""
    scores, labels, valid = flat(logits, target)
    log_p = scores.log_softmax(1).gather(1, labels[:, None])[:, 0]
    counted = torch.where(valid, weight.flatten(1).to(scores.dtype), 0.0)
    return -(log_p * counted).sum() / valid.sum().clamp_min(1)
