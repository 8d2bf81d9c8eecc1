"""Targets derived from the label, once per batch for all losses that ask: masks, presence, exact distance maps."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

IGNORE = 255


def derive(
    names: Collection[str], target: Tensor, *, num_classes: int, spacing: Tensor, ignore_index: int = IGNORE
) -> dict[str, Tensor]:
    """Derive what is asked for.

    | name | shape | meaning |
    |---|---|---|
    | onehot | (B, C, *S) float32 | 1 at voxels of the class, 0 elsewhere and where ignored |
    | valid | (B, *S) bool | not ignored |
    | present | (B, C) bool | the class has a voxel |
    | boundary | (B, *S) bool | a valid voxel with a valid face neighbour of another class |
    | distance_in | (B, C, *S) float32 | inside the class: exact Euclidean distance to the nearest voxel centre
    outside |
    | distance_out | (B, C, *S) float32 | outside: distance to the nearest voxel centre of the class |

    Distances are in the unit of `spacing`; both maps are 0 where the class is absent or fills the image, and at ignored
    voxels, which count as neither side.

    Args:
        names: Names of the table.
        target: (B, *S) int64.
        num_classes: C.
        spacing: (B, D).
        ignore_index: The ignored value.

    Raises:
        ValueError: A name is not in the table.
    """
    valid = target != ignore_index
    out: dict[str, Tensor] = {}
    distances: tuple[Tensor, Tensor] | None = None
    for name in names:
        if name == "valid":
            out[name] = valid
        elif name in ("onehot", "present"):
            numbers = torch.arange(num_classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
            onehot = target[:, None] == numbers
            out[name] = onehot.flatten(2).any(2) if name == "present" else onehot.float()
        elif name == "boundary":
            out[name] = _boundary(target, valid)
        elif name in ("distance_in", "distance_out"):
            distances = distances or _distances(target, valid, num_classes, spacing)
            out[name] = distances[name == "distance_out"]
        else:
            raise ValueError(f"nothing called {name!r} is derived from the label")
    return out


def _boundary(target: Tensor, valid: Tensor) -> Tensor:
    found = torch.zeros_like(valid)
    for axis in range(1, target.ndim):
        size = target.shape[axis]
        left, right = target.narrow(axis, 0, size - 1), target.narrow(axis, 1, size - 1)
        differs = (left != right) & valid.narrow(axis, 0, size - 1) & valid.narrow(axis, 1, size - 1)
        found.narrow(axis, 0, size - 1).logical_or_(differs)
        found.narrow(axis, 1, size - 1).logical_or_(differs)
    return found


def _distances(target: Tensor, valid: Tensor, num_classes: int, spacing: Tensor) -> tuple[Tensor, Tensor]:
    labels, known, sides = target.cpu().numpy(), valid.cpu().numpy(), spacing.cpu().double().numpy()
    inner = np.zeros((len(labels), num_classes, *labels.shape[1:]), np.float32)
    outer = np.zeros_like(inner)
    for b in range(len(labels)):
        for c in range(num_classes):
            inside = (labels[b] == c) & known[b]
            outside = (labels[b] != c) & known[b]
            if inside.any() and outside.any():
                inner[b, c][inside] = _to(outside, sides[b])[inside]
                outer[b, c][outside] = _to(inside, sides[b])[outside]
    return torch.from_numpy(inner).to(target.device), torch.from_numpy(outer).to(target.device)


def _to(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> NDArray[Any]:
    distance: NDArray[Any] = distance_transform_edt(~mask, sampling=spacing)
    return distance
