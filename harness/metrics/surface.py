"""Surface distances of one class, and what is made of them: HD95, ASD and ASSD from the same two arrays.

The surface of a mask is its voxels with a face neighbour outside of it (6 neighbours in 3D, 4 in 2D; outside of the
image counts as outside of the mask), and distances are between voxel centres: as in medpy, MONAI and Metrics Reloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.metrics.maurer import directed_distances

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Distances:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other; neither is empty."""

    pred_to_ref: FloatArray
    ref_to_pred: FloatArray


def _hd95_max(d: Distances) -> float:
    """Maximum of the two directed 95th percentiles (linear interpolation)."""
    return float(max(np.percentile(d.pred_to_ref, 95), np.percentile(d.ref_to_pred, 95)))


def _asd(d: Distances) -> float:
    """Mean from the prediction to the reference, as medpy's `asd` and MONAI's default."""
    return float(d.pred_to_ref.mean())


def _assd(d: Distances) -> float:
    """Mean over the surface voxels of both masks together."""
    return float((d.pred_to_ref.sum() + d.ref_to_pred.sum()) / (d.pred_to_ref.size + d.ref_to_pred.size))


# profile → metric → reduction
REDUCTIONS: dict[str, dict[str, Callable[[Distances], float]]] = {
    "voxel-max": {"hd95": _hd95_max, "asd": _asd, "assd": _assd},
}


def edge(mask: BoolArray) -> BoolArray:
    """Voxels of the mask with a face neighbour outside of it, on a grid with one more voxel on every side."""
    padded = np.pad(mask, 1)
    core = (slice(1, -1),) * mask.ndim
    inside = mask.copy()
    for axis in range(mask.ndim):
        for shift in (slice(0, -2), slice(2, None)):
            inside &= padded[(*core[:axis], shift, *core[axis + 1 :])]
    padded[core] &= ~inside
    return padded


def boxes(volume: IntArray, labels: Sequence[int]) -> dict[int, Box]:
    """Bounding box of each label that is present; label 0 has the whole volume."""
    found = ndimage.find_objects(volume, max(*labels, 1))
    tight = {label: box for label in labels if label > 0 and (box := found[label - 1]) is not None}
    return {0: tuple(slice(0, n) for n in volume.shape), **tight}


def surface_distances(
    pred: IntArray, ref: IntArray, label: int, box: tuple[Box, Box], spacing: Sequence[float], ignore: int | None
) -> Distances:
    """Both directed sets of distances of one label, in the unit of `spacing`.

    Args:
        pred: Integer labels, shape (z, y, x) or (y, x).
        ref: The same for the reference.
        label: Label value, present in both at voxels that are not ignored.
        box: Bounding boxes of the label in `pred` and in `ref`.
        spacing: Size of a voxel, one number per axis.
        ignore: Reference label whose voxels are left out of both masks.
    """
    crop = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*box, strict=True))
    in_pred = pred[crop] == label
    in_ref = ref[crop] == label
    if ignore is not None:
        in_pred &= ref[crop] != ignore
    pred_edge, ref_edge = edge(in_pred), edge(in_ref)
    return Distances(
        directed_distances(pred_edge, ref_edge, spacing),
        directed_distances(ref_edge, pred_edge, spacing),
    )
