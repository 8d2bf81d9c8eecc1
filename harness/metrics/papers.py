"""Profiles `transunet` and `mist2023`: the numbers of two pieces of research code, their quirks included.

They are for reproducing papers and for comparing with them, not for new results: one measures in voxels where others
measure in millimetres, the other takes HD95 over all voxels of a mask where others take the surface, and both have
numbers of their own for empty masks, which no policy may replace. Every value here is a finite number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from harness.metrics.surface import Cloud, Distances, Grid

BoolArray = NDArray[np.bool_]
Box = tuple[slice, ...]


def transunet_dice(tp: int, fp: int, fn: int) -> float:
    """Dice of one class as TransUNet's `calculate_metric_percase` gives it: a fraction.

    | masks of the class | dice | hd95 |
    |---|---|---|
    | both present | 2 TP / (2 TP + FP + FN) | see `transunet_hd95` |
    | reference empty, prediction not | 1 | 0 |
    | prediction empty, both empty | 0 | 0 |

    Source: https://github.com/Beckschen/TransUNet, utils.py; Chen et al., 2021, https://arxiv.org/abs/2102.04306.

    Args:
        tp: Voxels of the class in both.
        fp: In the prediction only.
        fn: In the reference only.
    """
    if tp + fp == 0:
        return 0.0
    if tp + fn == 0:
        return 1.0
    return 2 * tp / (2 * tp + fp + fn)


def transunet_hd95(distances: Distances | None) -> float:
    """HD95 of one class as TransUNet gives it: medpy's, without a spacing, so in voxels whatever their size.

    It is the 95th percentile (linear interpolation) of the surface distances of both directions together; 0 where a
    mask is empty. Source: see `transunet_dice`.

    Args:
        distances: Of the profile `voxel-pooled` on a grid of spacing 1; None if a mask is empty.
    """
    if distances is None:
        return 0.0
    return float(np.percentile(np.concatenate([distances.pred_to_ref, distances.ref_to_pred]), 95))


def check_mist2023(shape: Sequence[int]) -> None:
    """Refuse an image in the plane: there MIST's worst value reads a third spacing and the tool stops.

    Raises:
        BenchError: The image has not 3 axes.
    """
    if len(shape) != 3:
        raise BenchError(
            f"profile 'mist2023' is defined for volumes of 3 axes, this image has {len(shape)}; take another profile."
        )


def crop(pred: Cloud, ref: Cloud, grid: Grid) -> Box:
    """Box of both masks and one voxel more on every side where the image has one: what `mist2023_distances` must see.

    Args:
        pred: Surface voxels of the prediction.
        ref: Surface voxels of the reference. Either may be empty; if both are, the box is one voxel.
        grid: Grid of both.

    Returns:
        A slice along each of the three axes.
    """
    at = np.concatenate([np.stack(np.unravel_index(cloud, grid.shape)) for cloud in (pred, ref)], axis=1)
    if not at.size:
        return (slice(0, 1),) * 3
    spans = zip(at.min(1).tolist(), at.max(1).tolist(), grid.shape, strict=True)
    return tuple(slice(max(low - 1, 0), min(high + 2, size)) for low, high, size in spans)


def mist2023_dice(tp: int, fp: int, fn: int) -> float:
    """Dice of one class as in `mist2023_distances`: 2 TP / (2 TP + FP + FN), 1 if both masks are empty.

    For two empty masks SimpleITK's Dice is infinite, for which MIST puts 1.

    Args:
        tp: Voxels of the class in both.
        fp: In the prediction only.
        fn: In the reference only.
    """
    total = 2 * tp + fp + fn
    return 2 * tp / total if total else 1.0


def mist2023_distances(
    pred: BoolArray, ref: BoolArray, spacing: Sequence[float], shape: Sequence[int] | None = None
) -> dict[str, float]:
    """HD95 and ASD of one class as MIST gave them in February 2023, the month of the Generalized Surface Loss.

    * `hd95`: the larger of the two directed 95th percentiles over **all voxels** of a mask, of the distance to the
      nearest voxel of the other mask: 0 for a voxel inside of it, so far lower than the HD95 of surfaces.
    * `asd`: the mean of the two directed means over the contour of a mask, of the distance to the contour of the other.
      The first is SimpleITK's LabelContour, by face neighbours; the second, to which SignedMaurerDistanceMap measures,
      is by all 26 neighbours. Neither has voxels where a mask meets the border of the image.

    | masks of the class | hd95 | asd |
    |---|---|---|
    | both present | value | value |
    | both present, one or both fill the image | value | worst |
    | one empty | worst | worst |
    | both empty | 0 | 0 |

    A mask that fills the image has no contour and MIST's mean over none is NaN, for which it puts its worst value:
    sqrt((nx sy)² + (ny sz)² + (nz sx)²), sizes n and spacings s by axis. It pairs each size with the spacing of another
    axis; that is kept here. So it does for one empty mask: SimpleITK's distance to it is 1.8e19 everywhere, which is
    finite, but the other direction is a percentile, or a mean, of no numbers. SimpleITK computes distances in float32
    (relative error up to 3e-5), and so did MIST.

    Source: https://github.com/mist-medical/MIST at 491ab4b (2023-02-25), runtime/utils.py: `dice_sitk`, `hausdorff`,
    `surface_hausdorff`; Celaya et al., 2023, https://arxiv.org/abs/2302.03868.

    Args:
        pred: Mask of the prediction, shape (z, y, x): the image, or the part of it that `crop` gives.
        ref: Mask of the reference, the same part.
        spacing: Size of a voxel, (z, y, x), in mm, or 1.0 each where it is unknown.
        shape: Shape of the whole image, (z, y, x); None if the masks are the whole image.

    Returns:
        `hd95` and `asd` in the unit of the spacing.

    Raises:
        BenchError: As `check_mist2023`.
    """
    check_mist2023(pred.shape)
    present = bool(pred.any()), bool(ref.any())
    if not any(present):
        return {"hd95": 0.0, "asd": 0.0}
    worst = mist2023_worst(pred.shape if shape is None else shape, spacing)
    if not all(present):
        return {"hd95": worst, "asd": worst}
    to_ref, mean_to_ref = _mist_directed(pred, ref, spacing)
    to_pred, mean_to_pred = _mist_directed(ref, pred, spacing)
    asd = (mean_to_ref + mean_to_pred) / 2
    return {"hd95": max(to_ref, to_pred), "asd": asd if math.isfinite(asd) else worst}


def mist2023_worst(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """MIST's worst distance: a diagonal with the spacings at the wrong axes; see `mist2023_distances`.

    Args:
        shape: Shape of the image, (z, y, x).
        spacing: Size of a voxel, (z, y, x).
    """
    (nz, ny, nx), (sz, sy, sx) = shape, spacing
    return math.hypot(nx * sy, ny * sz, nz * sx)


def _mist_directed(source: BoolArray, target: BoolArray, spacing: Sequence[float]) -> tuple[float, float]:
    """95th percentile over the voxels of `source`, and mean over its contour, NaN if it has none."""
    import SimpleITK as sitk

    from harness.metrics.maurer import one_thread

    with one_thread():
        field = sitk.SignedMaurerDistanceMap(_image(target, spacing), squaredDistance=False, useImageSpacing=True)
        contour = sitk.GetArrayFromImage(sitk.LabelContour(_image(source, spacing))).view(np.bool_)
    signed = sitk.GetArrayViewFromImage(field)  # negative inside of the target, −1.8e19 if that fills the image
    over_voxels = np.maximum(signed[source], 0.0).astype(np.float64)
    at_contour = np.abs(signed[contour]).astype(np.float64)
    return float(np.percentile(over_voxels, 95)), float(at_contour.mean()) if at_contour.size else math.nan


def _image(mask: BoolArray, spacing: Sequence[float]) -> sitk.Image:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(mask).view(np.uint8))
    image.SetSpacing([float(side) for side in reversed(spacing)])  # ITK's order is (x, y, z)
    return image
