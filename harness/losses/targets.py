"""Targets derived from the label, once per batch for all losses that ask: masks, presence, exact distance maps."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

IGNORE = 255
# Elements of the largest intermediate tensor of a distance transform on a device: 256 MiB in float32.
CHUNK = 2**26


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
        target: (B, *S) int64: a class from 0 to C - 1, or ignored.
        num_classes: C.
        spacing: (B, D).
        ignore_index: The ignored value.

    Raises:
        ValueError: A name is not in the table.
    """
    valid = target != ignore_index
    out: dict[str, Tensor] = {}
    masks: Tensor | None = None
    maps: dict[str, Tensor] | None = None
    for name in names:
        if name == "valid":
            out[name] = valid
        elif name == "boundary":
            out[name] = _boundary(target, valid)
        elif name in ("onehot", "present", "distance_in", "distance_out"):
            if masks is None:
                numbers = torch.arange(num_classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
                masks = (target[:, None] == numbers) & valid[:, None]
            if name.startswith("distance"):
                maps = maps or _distances(masks, target, valid, spacing, "distance_in" in names)
                out[name] = maps[name]
            else:
                out[name] = masks.flatten(2).any(2) if name == "present" else masks.float()
        else:
            raise ValueError(f"nothing called {name!r} is derived from the label")
    return out


def distance_to(masks: Tensor, spacing: Tensor) -> Tensor:
    """Exact Euclidean distance from every voxel to the nearest voxel of a mask.

    On the CPU with scipy, a thread for each mask (it lets go of the interpreter's lock) and only in the box that holds
    the voxels outside of the mask; elsewhere on the device, without waiting for it.

    Args:
        masks: (B, K, *S) bool.
        spacing: (B, D).

    Returns:
        (B, K, *S) float32: 0 in the mask, infinite where the mask is empty.
    """
    with torch.no_grad():
        return _on_cpu(masks, spacing) if masks.device.type == "cpu" else separable_distance(masks, spacing)


def separable_distance(masks: Tensor, spacing: Tensor) -> Tensor:
    """`distance_to` in torch alone, for any device: the squared distance as a minimum over one axis after the other.

    D²(i) = min_j D²(j) + h² (i - j)² along each axis, by search over all j: exact (the lower envelope of the parabolas
    is faster in theory, and serial). Squares of whole numbers are exact in float32, so the result has its rounding.
    """
    squared = torch.zeros(masks.shape, device=masks.device).masked_fill_(~masks, torch.inf)
    sides = spacing.to(device=masks.device, dtype=torch.float64)
    for axis in range(2, masks.ndim):
        size = masks.shape[axis]
        rows = squared.movedim(axis, -1)
        at = torch.arange(size, device=masks.device, dtype=torch.float64)
        cost = ((at[:, None] - at) ** 2 * sides[:, axis - 2, None, None] ** 2).float()  # (B, from, to)
        cost = cost.view(len(cost), *[1] * (masks.ndim - 2), size, size)
        step = max(1, CHUNK // max(1, masks.numel()))
        nearest = torch.full_like(rows, torch.inf)
        for first in range(0, size, step):
            part = rows[..., first : first + step, None] + cost[..., first : first + step, :]
            nearest = torch.minimum(nearest, part.amin(-2))
        squared = nearest.movedim(-1, axis)
    return squared.contiguous().sqrt_()


def _on_cpu(masks: Tensor, spacing: Tensor) -> Tensor:
    found = torch.empty(masks.shape)
    arrays, out, sides = masks.numpy(), found.numpy(), spacing.double().cpu().numpy()
    jobs = [(arrays[b, k], sides[b], out[b, k]) for b in range(len(arrays)) for k in range(arrays.shape[1])]
    workers = min(torch.get_num_threads(), len(jobs))
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: _one(*job), jobs))
    else:
        for job in jobs:
            _one(*job)
    return found


def _one(mask: NDArray[np.bool_], spacing: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    """Write the distance to one mask into `out`."""
    box = _outside(mask)
    if box is None:
        out[...] = 0
        return
    part = mask[box]
    if not part.any():
        out[...] = np.inf  # the box is the whole image where there is no voxel of the mask around it
        return
    nearest = distance_transform_edt(~part, sampling=spacing, return_distances=False, return_indices=True)
    total, step = np.zeros(part.shape, np.float32), np.empty(part.shape, np.float32)
    for axis, size in enumerate(part.shape):
        at = np.arange(size, dtype=np.int32).reshape([-1 if a == axis else 1 for a in range(part.ndim)])
        np.subtract(nearest[axis], at, out=step, casting="unsafe")
        step *= np.float32(spacing[axis])
        step *= step
        total += step
    if part.size < mask.size:
        out[...] = 0
    np.sqrt(total, out=out[box])


def _outside(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The box of the voxels outside of a mask and one voxel around it, which holds the nearest mask voxel of each.

    A mask voxel beyond that box has one on its rim that is nearer: its projection, as the rim is all of the mask.
    """
    box = []
    for axis in range(mask.ndim):
        outside = ~mask.all(tuple(a for a in range(mask.ndim) if a != axis))
        hits = np.flatnonzero(outside)
        if not len(hits):
            return None
        box.append(slice(max(int(hits[0]) - 1, 0), int(hits[-1]) + 2))
    return tuple(box)


def _boundary(target: Tensor, valid: Tensor) -> Tensor:
    found = torch.zeros_like(valid)
    for axis in range(1, target.ndim):
        size = target.shape[axis]
        left, right = target.narrow(axis, 0, size - 1), target.narrow(axis, 1, size - 1)
        differs = (left != right) & valid.narrow(axis, 0, size - 1) & valid.narrow(axis, 1, size - 1)
        found.narrow(axis, 0, size - 1).logical_or_(differs)
        found.narrow(axis, 1, size - 1).logical_or_(differs)
    return found


def _distances(masks: Tensor, target: Tensor, valid: Tensor, spacing: Tensor, inner: bool) -> dict[str, Tensor]:
    """Both maps from one transform for each class.

    Every valid voxel outside of a class belongs to another one, so the distance from the inside of a class to the
    outside is the least of the distances to all other classes. Ignored voxels are in no mask: nobody's nearest voxel.
    """
    outer = distance_to(masks, spacing)
    maps = {"distance_out": outer}
    if inner:
        own = torch.where(valid, target, 0)[:, None]
        nearest = outer.scatter_(1, own, torch.inf).amin(1, keepdim=True)
        outer.scatter_(1, own, 0)
        # infinite: one class fills the image
        nearest.masked_fill_(nearest.isinf() | ~valid[:, None], 0)
        maps["distance_in"] = torch.zeros_like(outer).scatter_(1, own, nearest)
    outer.masked_fill_(outer.isinf() | ~valid[:, None], 0)
    return maps
