"""Resampling of volumes to another number of voxels, by the rules of nnU-Net.

The first voxel's outer face stays on the first voxel's outer face, and the last on the last: voxel i of n lies at
(i + 1/2)/n of the side. Splines are separable, so each axis is one sparse matrix; values beyond the edge repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANISOTROPY = 3.0  # nnU-Net's threshold between the largest and the smallest spacing


def new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Number of voxels along each axis at another spacing, at least one."""
    return tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))


def axis_apart(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis that is resampled by the nearest slice, or None.

    nnU-Net (Isensee et al., 2021, Methods): where the largest spacing is more than 3 times the smallest, on the grid
    as it is or else on the new one, slices are resampled in their plane and taken from the nearest slice across it.
    Not where two axes share the largest spacing.
    """
    for grid in (spacing, target):
        if max(grid) > ANISOTROPY * min(grid):
            worst = [i for i, s in enumerate(grid) if np.isclose(s, max(grid))]
            return worst[0] if len(worst) == 1 else None
    return None


def resample(
    volume: NDArray[Any], shape: Sequence[int], order: int, apart: int | None = None, *, clip: bool = True
) -> NDArray[np.float32]:
    """Interpolate a volume on a grid of the same extent.

    Args:
        volume: Any number of axes.
        shape: Voxels of the result along each axis.
        order: 0 nearest, 1 linear, 3 cubic spline.
        apart: An axis that takes the nearest voxel whatever the order.
        clip: Keep cubic splines within the range of the volume, as nnU-Net does.

    Returns:
        float32 of that shape.
    """
    out = np.asarray(volume, np.float32)
    # axes that shrink come first: fewer voxels for the others
    for axis in sorted(range(out.ndim), key=lambda a: shape[a] / out.shape[a]):
        n, m = out.shape[axis], int(shape[axis])
        if n == m:
            continue
        steps = 0 if axis == apart else order
        if steps == 0:
            out = np.take(out, _nearest(n, m), axis=axis)
            continue
        flat = np.ascontiguousarray(np.moveaxis(out, axis, 0))
        mixed = _weights(n, m, steps) @ flat.reshape(n, -1)
        out = np.moveaxis(mixed.reshape(m, *flat.shape[1:]), 0, axis)
    if order > 1 and clip and out.size:
        low, high = np.float32(np.min(volume)), np.float32(np.max(volume))
        out = np.clip(out, low, high)
    return np.ascontiguousarray(out)


def resample_label(label: NDArray[np.uint8], shape: Sequence[int], apart: int | None = None) -> NDArray[np.uint8]:
    """Interpolate every label value by itself linearly and take the largest; ignored voxels are a value like others."""
    values = np.unique(label)
    return strongest((resample(label == v, shape, 1, apart) for v in values), values)


def strongest(scores: Iterable[NDArray[np.float32]], values: Sequence[int] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The value with the highest score at each voxel, the first of equal ones; one score is held at a time."""
    best: NDArray[np.float32] | None = None
    chosen: NDArray[np.uint8] | None = None
    for value, score in zip(values, scores, strict=True):
        if best is None or chosen is None:
            best, chosen = score, np.full(score.shape, value, np.uint8)
            continue
        higher = score > best
        chosen[higher] = value
        np.maximum(best, score, out=best)
    assert chosen is not None
    return chosen


@lru_cache(maxsize=64)
def _nearest(n: int, m: int) -> NDArray[np.intp]:
    return np.minimum(((np.arange(m) + 0.5) * n / m).astype(np.intp), n - 1)


@lru_cache(maxsize=64)
def _weights(n: int, m: int, order: int) -> Any:
    """The (m, n) matrix of interpolating n samples at m places: scipy's own answers to the n unit vectors.

    Weights of a cubic spline die off by a factor of about 4 a voxel; below 1e-7 they are left away.
    """
    from scipy.ndimage import zoom
    from scipy.sparse import csr_matrix

    spline: Any = order  # one of scipy's literals
    columns = [zoom(unit, m / n, order=spline, mode="nearest", grid_mode=True) for unit in np.eye(n)]
    dense = np.stack(columns, axis=1)
    dense[np.abs(dense) < 1e-7] = 0.0
    return csr_matrix(dense.astype(np.float32))
