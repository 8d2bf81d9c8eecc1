"""Surface distances of one class, and what the voxel profiles make of them.

The surface of a mask is its voxels with a face neighbour outside of it (6 neighbours in 3D, 4 in 2D; outside of the
image counts as outside of the mask), and distances are between voxel centres: as in medpy, MONAI and Metrics Reloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Cloud = NDArray[np.intp]
"""Points of a grid: flat indices in C order, ascending, each once, never empty."""


@dataclass(frozen=True)
class Grid:
    """Three axes and their spacing; an image in the plane is (1, y, x) with spacing 1 along the first."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def coordinates(self, cloud: Cloud) -> NDArray[np.intp]:
        """Indices of the points along each axis, shape (3, N)."""
        return np.stack(np.unravel_index(cloud, self.shape))


@dataclass(frozen=True)
class Distances:
    """Distances from each surface element of one mask to the nearest of the other, in the order of the clouds.

    Attributes:
        pred_to_ref: One for each element of the prediction's surface.
        ref_to_pred: One for each element of the reference's.
        rounding: Relative error that the engine may have made.
    """

    pred_to_ref: FloatArray
    ref_to_pred: FloatArray
    rounding: float = 1e-9

    def near(self, tolerance: float) -> tuple[BoolArray, BoolArray]:
        """Which distances are within a tolerance, itself included.

        Many are a multiple of the spacing, and so is the tolerance that is asked for: 3 steps of 0.7 mm are not 2.1 in
        floating point, and a hair must not decide about hundreds of voxels.
        """
        reach = tolerance * (1 + self.rounding)
        return self.pred_to_ref <= reach, self.ref_to_pred <= reach


Reduction = Callable[[Distances, float | None], float]
Engine = Callable[[Cloud, Cloud, Grid], Distances]
"""From the surface of the prediction, that of the reference and their grid to the distances, in its unit."""


def _hd95_max(d: Distances) -> float:
    """Maximum of the two directed 95th percentiles (linear interpolation)."""
    return float(max(np.percentile(d.pred_to_ref, 95), np.percentile(d.ref_to_pred, 95)))


def _hd95_pooled(d: Distances) -> float:
    """95th percentile of the distances of both directions together (linear interpolation)."""
    return float(np.percentile(np.concatenate([d.pred_to_ref, d.ref_to_pred]), 95))


def _assd(d: Distances) -> float:
    total = d.pred_to_ref.sum() + d.ref_to_pred.sum()
    return float(total / (d.pred_to_ref.size + d.ref_to_pred.size))


def _nsd(d: Distances, tolerance: float | None) -> float:
    """Nikolov et al. 2018, with voxels for surface elements: those of both within the tolerance, over all."""
    if tolerance is None:
        raise ValueError("nsd needs a tolerance")
    return sum(np.count_nonzero(near) for near in d.near(tolerance)) / (d.pred_to_ref.size + d.ref_to_pred.size)


_COMMON: dict[str, Reduction] = {
    "hd": lambda d, _: float(max(d.pred_to_ref.max(), d.ref_to_pred.max())),
    "asd": lambda d, _: float(d.pred_to_ref.mean()),
    "asd_reverse": lambda d, _: float(d.ref_to_pred.mean()),
    "assd": lambda d, _: _assd(d),
    "masd": lambda d, _: float((d.pred_to_ref.mean() + d.ref_to_pred.mean()) / 2),
    "nsd": _nsd,
}
REDUCTIONS: dict[str, dict[str, Reduction]] = {
    "voxel-max": {**_COMMON, "hd95": lambda d, _: _hd95_max(d)},
    "voxel-pooled": {**_COMMON, "hd95": lambda d, _: _hd95_pooled(d)},
}
"""Profile → metric → its value from (distances, parameter), in the unit of the distances; NSD is a fraction."""
