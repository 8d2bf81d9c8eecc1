"""Profile `area`: surface distances weighted by the area of the surface, as surface-distance (google-deepmind) does.

The surface elements of a mask are the cells of the grid that lies half a voxel off the voxels: a cell has 8 voxels as
its corners (4 in 2D), and it is an element where some of them are in the mask and some are not. What lies outside of
the array is outside of the mask, so there is one cell more than voxels along each axis. An element stands at the centre
of its cell and weighs as much as the surface in it: the area in 3D, the length in 2D, of the marching cubes surface of
its corners (Lorensen and Cline, 1987, https://doi.org/10.1145/37401.37422). Source of the definition: Nikolov et al.,
2021, https://doi.org/10.2196/26151, and their code, https://github.com/google-deepmind/surface-distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.surface import Distances

if TYPE_CHECKING:
    from harness.metrics.surface import Cloud, Engine, Grid

FloatArray = NDArray[np.float64]
Inside = Callable[[NDArray[np.intp]], NDArray[np.bool_]]
BLOCK = 1 << 16  # cells that are looked at together: bounds the memory for their coordinates and corners


@dataclass(frozen=True)
class Surfels:
    """Surface elements of one mask.

    Attributes:
        cells: Flat C-order indices of the cells on `grid`, ascending; the cell (z, y, x) lies before the voxel of the
            same indices, so its centre is half a voxel before that voxel's along each axis.
        areas: Area in each cell (in 2D the length), in the unit of the spacing squared (in 2D not squared).
        grid: Grid of the cells: one more than voxels along each axis, (1, y + 1, x + 1) in 2D.
    """

    cells: Cloud
    areas: FloatArray
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class AreaDistances(Distances):
    """Distance from each element of one mask to the nearest element of the other, with the elements' areas."""

    pred_areas: FloatArray
    ref_areas: FloatArray


def surfels(cloud: Cloud, inside: Inside, grid: Grid, *, flat: bool = False) -> Surfels:
    """Find the surface elements of one mask; time and memory grow with its surface, not with the volume.

    In a cell with corners in and out of the mask, two corners with a common edge differ, and the one inside is a voxel
    with a face neighbour outside: so only the cells round those voxels need a look.

    Args:
        cloud: Voxels of the mask with a face neighbour outside of it, flat indices on `grid`, ascending, not empty.
        inside: Whether voxels are in the mask, flat indices on `grid` of shape (N,) → bool of shape (N,). It is called
            with voxels of the grid only, each several times.
        grid: Grid of the voxels.
        flat: The image is 2D, `grid` is (1, y, x): cells have 4 corners, in the plane.
    """
    extent = (0 if flat else 1, 1, 1)
    shape = (grid.shape[0] + extent[0], grid.shape[1] + 1, grid.shape[2] + 1)
    areas = contour_lengths(grid.spacing[1:]) if flat else surface_areas(grid.spacing)
    candidates = _candidates(cloud, grid.shape, shape, extent)
    kept: list[NDArray[np.intp]] = []
    weights: list[FloatArray] = []
    for start in range(0, candidates.size, BLOCK):
        cells = candidates[start : start + BLOCK].astype(np.intp)
        codes = _codes(cells, inside, grid.shape, shape, extent)
        mixed = codes != len(areas) - 1  # none is 0: a voxel of the mask is a corner of each
        kept.append(cells[mixed])
        weights.append(areas[codes[mixed]])
    return Surfels(np.concatenate(kept), np.concatenate(weights), replace(grid, shape=shape))


def _candidates(
    cloud: Cloud, shape: tuple[int, ...], cell_shape: tuple[int, ...], extent: tuple[int, ...]
) -> NDArray[np.signedinteger[Any]]:
    """Cells that have a voxel of `cloud` as a corner, ascending, each once."""
    # 4 bytes where they do: half the memory, and faster to sort
    index: type[np.int32] | type[np.int64] = np.int32 if math.prod(cell_shape) < 2**31 else np.int64
    first = np.ravel_multi_index(np.unravel_index(cloud, shape), cell_shape)
    rows, row = cell_shape[1] * cell_shape[2], cell_shape[2]
    corners = list(product(*(range(e + 1) for e in extent)))
    every = np.empty((len(corners), first.size), index)
    for line, (z, y, x) in zip(every, corners, strict=True):
        line[:] = first + (z * rows + y * row + x)
    cells = every.ravel()
    cells.sort()
    new = np.ones(cells.size, np.bool_)
    np.not_equal(cells[1:], cells[:-1], out=new[1:])
    return cells[new]


def _codes(
    cells: NDArray[np.intp],
    inside: Inside,
    shape: tuple[int, ...],
    cell_shape: tuple[int, ...],
    extent: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Which corners of each cell are inside: bit i is the i-th corner in C order (the last axis changes fastest)."""
    position = np.unravel_index(cells, cell_shape)
    steps = (shape[1] * shape[2], shape[2], 1)
    after = position[0] * steps[0] + position[1] * steps[1] + position[2]  # the corner with the highest indices
    # per axis, the cells without voxels on the low and on the high side, None where there are none
    missing = [
        tuple(side if side.any() else None for side in (at == 0, at == n)) if e else (None, None)
        for at, n, e in zip(position, shape, extent, strict=True)
    ]
    codes = np.zeros(cells.size, np.uint8)
    for bit, corner in enumerate(product(*(range(e + 1) for e in extent))):
        voxels = after - sum((e - side) * step for side, e, step in zip(corner, extent, steps, strict=True))
        outside = [lack for side, sides in zip(corner, missing, strict=True) if (lack := sides[side]) is not None]
        if outside:
            here = ~np.logical_or.reduce(outside)
            codes[here] |= inside(voxels[here]).astype(np.uint8) << bit
        else:
            codes |= inside(voxels).astype(np.uint8) << bit
    return codes


@lru_cache(maxsize=1)
def _triangles() -> FloatArray:
    """Normals of the marching cubes triangles of each corner code, as long as the triangle's area: (256, 5, 3).

    From scikit-image's original marching cubes. It is not symmetric: where corners of a face are in the mask crosswise,
    a code and its complement differ. surface-distance has for both the area of the one with fewer corners, of two
    with 4 each the area of each.
    """
    from skimage.measure import marching_cubes

    normals = np.zeros((256, 5, 3))
    for code in range(1, 255):
        corners = code if code.bit_count() <= 4 else 255 - code
        cube = np.array([corners >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        vertices, faces, _, _ = marching_cubes(cube, 0.5, method="lorensen", allow_degenerate=False)
        a, b, c = vertices[faces].astype(np.float64).swapaxes(0, 1)  # multiples of 1/2, so exact
        normals[code, : len(faces)] = np.cross(b - a, c - a) / 2
    normals.setflags(write=False)
    return normals


@lru_cache(maxsize=16)
def surface_areas(spacing: tuple[float, float, float]) -> FloatArray:
    """Area of the surface in a cell, by the code of its 8 corners (see `_codes`): shape (256,), unit of spacing²."""
    z, y, x = spacing
    areas: FloatArray = np.sqrt(np.square(_triangles() * (y * x, z * x, z * y)).sum(axis=2)).sum(axis=1)
    areas.setflags(write=False)
    return areas


@lru_cache(maxsize=16)
def contour_lengths(spacing: tuple[float, float]) -> FloatArray:
    """Length of the contour in a cell, by the code of its 4 corners: shape (16,), unit of the spacing.

    It runs between the middles of the edges whose ends differ: along an axis if two corners with a common edge are in
    the mask, across one corner if one or three are, across both if two opposite ones are.
    """
    y, x = spacing
    across = 0.5 * float(np.hypot(y, x))
    lengths = np.zeros(16)
    for code in range(1, 15):
        if code.bit_count() in (1, 3):
            lengths[code] = across
        elif code in (0b1001, 0b0110):
            lengths[code] = 2 * across
        else:
            lengths[code] = x if code in (0b0011, 0b1100) else y
    lengths.setflags(write=False)
    return lengths


def area_distances(pred: Surfels, ref: Surfels, engine: Engine) -> AreaDistances:
    """Measure between the elements of two masks on the same grid, in the unit of the spacing."""
    distances = engine(pred.cells, ref.cells, pred.grid)
    return AreaDistances(**vars(distances), pred_areas=pred.areas, ref_areas=ref.areas)


def _percentile(distances: FloatArray, areas: FloatArray, percent: float) -> float:
    """The smallest distance up to which at least `percent` of the area lies; no interpolation."""
    order = np.lexsort((areas, distances))  # by distance, then area: as the tool adds up, so rounding is the same
    shares = np.cumsum(areas[order]) / areas[order].sum()
    at = min(int(np.searchsorted(shares, percent / 100)), distances.size - 1)
    return float(distances[order[at]])


def _hd95(d: AreaDistances) -> float:
    return max(_percentile(d.pred_to_ref, d.pred_areas, 95), _percentile(d.ref_to_pred, d.ref_areas, 95))


def _asd(d: AreaDistances) -> float:
    return float((d.pred_to_ref * d.pred_areas).sum() / d.pred_areas.sum())


def _asd_reverse(d: AreaDistances) -> float:
    return float((d.ref_to_pred * d.ref_areas).sum() / d.ref_areas.sum())


def _assd(d: AreaDistances) -> float:
    total = (d.pred_to_ref * d.pred_areas).sum() + (d.ref_to_pred * d.ref_areas).sum()
    return float(total / (d.pred_areas.sum() + d.ref_areas.sum()))


def _nsd(d: AreaDistances, tolerance: float | None) -> float:
    assert tolerance is not None  # `table.metric_of` asks for it
    in_pred, in_ref = d.near(tolerance)
    return float((d.pred_areas[in_pred].sum() + d.ref_areas[in_ref].sum()) / (d.pred_areas.sum() + d.ref_areas.sum()))


REDUCTIONS: dict[str, Callable[[AreaDistances, float | None], float]] = {
    "hd": lambda d, _: float(max(d.pred_to_ref.max(), d.ref_to_pred.max())),
    "hd95": lambda d, _: _hd95(d),
    "asd": lambda d, _: _asd(d),
    "asd_reverse": lambda d, _: _asd_reverse(d),
    "assd": lambda d, _: _assd(d),
    "masd": lambda d, _: (_asd(d) + _asd_reverse(d)) / 2,
    "nsd": _nsd,
}
"""Metric → its value from (distances, parameter), in the unit of the distances; NSD is a fraction.

| metric | value | in surface-distance |
|---|---|---|
| hd, hd95 | the larger of the two maxima, of the two directed 95th percentiles | robust Hausdorff at 100, at 95 |
| asd, asd_reverse | directed means, weighted by area | average surface distance |
| masd, assd | mean of these two; mean over the area of both surfaces together | - |
| nsd | area of both within the tolerance (the parameter), over the area of both | surface Dice at tolerance |
"""
