"""The distance engine: SimpleITK's SignedMaurerDistanceMap (Maurer et al., 2003), exact Euclidean up to float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray


def directed_distances(
    source: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Distance from every voxel of `source` to the nearest voxel of `target`.

    ITK's map is the distance to the *contour* of the object that it is given, a contour of 26 neighbours. Given the
    mask, it would measure to other voxels than the 6-neighbour edge and read low; so it is given the edge itself.
    Each voxel of an edge has a face neighbour that is not on the edge, so all of them belong to that contour.

    Args:
        source: Edge image, shape (*S).
        target: Edge image of the same shape, not empty and nowhere on the border of the array.
        spacing: Size of a voxel, one number per axis, in array order.

    Returns:
        Distances in the unit of `spacing`, in the array order of the voxels of `source`. ITK computes in float32:
        against scipy, on up to 400 voxels a side, the relative error was 6e-8 to 3e-5, by spacing. A voxel on both
        edges has exactly 0.
    """
    # ITK works on squared coordinates; with the smallest side at 1, many are whole and exact. At 3 x 0.8 x 0.8 mm
    # that takes the relative error from 2e-5 to 6e-8.
    scale = min(spacing)
    image = sitk.GetImageFromArray(target.view(np.uint8))
    image.SetSpacing([side / scale for side in reversed(spacing)])  # ITK's order is (x, y, z)
    with _one_thread():
        field = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    distances: NDArray[np.float64] = np.abs(sitk.GetArrayViewFromImage(field)[source]).astype(np.float64) * scale
    distances[target[source]] = 0.0  # where the sides have no common measure, ITK leaves about 1e-5 here
    return distances


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run ITK on one thread: cases run in parallel, not one case. A filter's own setting misses its inner filters."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
