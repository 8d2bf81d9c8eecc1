"""The definitions of the metrics, written to be read: loops over voxels and all pairs of surface elements.

What Metrics Reloaded (Maier-Hein, Reinke et al. 2024; its code is on no package index) and the papers say, with
nothing shared with `harness.metrics`. A metric that does not exist is left out of the result.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from math import hypot

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from shapes import Mask, Pair
from surface_distance import lookup_tables

Values = dict[str, float]
Numbers = NDArray[np.float64]
Points = NDArray[np.intp]


def confusion(pred: Mask, ref: Mask) -> tuple[int, int, int, int]:
    """TP, FP, FN, TN, voxel by voxel."""
    found = {(p, r): 0 for p in (False, True) for r in (False, True)}
    for p, r in zip(pred.flat, ref.flat, strict=True):
        found[bool(p), bool(r)] += 1
    return found[True, True], found[True, False], found[False, True], found[False, False]


def overlap(pair: Pair) -> Values:
    tp, fp, fn, tn = confusion(pair.pred, pair.ref)
    ratios = {
        "dice": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "precision": (tp, tp + fp),
    }
    values = {name: above / below for name, (above, below) in ratios.items() if below}
    values["volume_difference"] = abs((tp + fp) - (tp + fn)) * float(np.prod(pair.spacing))
    return values | {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def surface_voxels(mask: Mask) -> Points:
    """Indices of the voxels with a face neighbour outside of the mask; outside of the array is outside."""
    found = []
    for index in map(tuple, np.argwhere(mask)):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(index)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append(index)
                break
    return np.array(found)


def nearest(a: Points, b: Points, spacing: tuple[float, ...]) -> tuple[Numbers, ...]:
    """From every point of `a` to the nearest of `b`, and from every point of `b` to the nearest of `a`."""
    pairs = cdist(a * np.array(spacing), b * np.array(spacing))
    return pairs.min(1), pairs.min(0)


@lru_cache(maxsize=256)
def voxel_distances(pair: Pair) -> tuple[Numbers, ...]:
    return nearest(surface_voxels(pair.pred), surface_voxels(pair.ref), pair.spacing)


def voxel_metrics(pair: Pair, profile: str, tolerances: tuple[float, ...] = ()) -> Values:
    """Surface metrics of the profiles `voxel-max` (Metrics Reloaded) and `voxel-pooled` (medpy)."""
    there, back = voxel_distances(pair)
    both = np.concatenate([there, back])
    directed = max(np.percentile(there, 95), np.percentile(back, 95))
    return {
        "hd": both.max(),
        "hd95": directed if profile == "voxel-max" else np.percentile(both, 95),
        "asd": there.mean(),
        "asd_reverse": back.mean(),
        "assd": both.mean(),
        "masd": (there.mean() + back.mean()) / 2,
        **{f"nsd@{t:g}": (both <= t).mean() for t in tolerances},
    }


def surface_elements(mask: Mask, spacing: tuple[float, ...]) -> tuple[Points, Numbers]:
    """Corners where a block of 2 voxels a side is neither full nor empty, and the area of the surface in the block."""
    if mask.ndim == 3:
        areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
        weights = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    else:
        areas = lookup_tables.create_table_neighbour_code_to_contour_length(spacing)
        weights = lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL
    blocks = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), weights.shape)
    codes = np.tensordot(blocks, weights, axes=mask.ndim)  # one per corner: weights are the table's bits
    corners = np.argwhere((codes > 0) & (codes < 2**weights.size - 1))
    return corners, areas[codes[tuple(corners.T)]]


@lru_cache(maxsize=256)
def element_distances(pair: Pair) -> tuple[Numbers, ...]:
    """From the elements of the prediction, from those of the reference, and the areas of both."""
    (p, in_p), (r, in_r) = (surface_elements(m, pair.spacing) for m in (pair.pred, pair.ref))
    return *nearest(p, r, pair.spacing), in_p, in_r


def area_metrics(pair: Pair, tolerances: tuple[float, ...] = ()) -> Values:
    """Surface metrics weighted by area (Nikolov et al. 2018), the areas being those of surface-distance's table."""
    there, back, in_p, in_r = element_distances(pair)

    def percentile(distances: Numbers, sizes: Numbers) -> float:
        done = 0.0
        ordered = sorted(zip(distances, sizes, strict=True))
        for distance, size in ordered:
            done += size
            if done >= 0.95 * sizes.sum():
                return float(distance)
        return float(ordered[-1][0])

    all_distances, all_sizes = np.concatenate([there, back]), np.concatenate([in_p, in_r])
    asd, reverse = np.average(there, weights=in_p), np.average(back, weights=in_r)
    return {
        "hd": all_distances.max(),
        "hd95": max(percentile(there, in_p), percentile(back, in_r)),
        "asd": asd,
        "asd_reverse": reverse,
        "assd": np.average(all_distances, weights=all_sizes),
        "masd": (asd + reverse) / 2,
        **{f"nsd@{t:g}": all_sizes[all_distances <= t].sum() / all_sizes.sum() for t in tolerances},
    }


def boundary_band(mask: Mask, d: int) -> Mask:
    """Pixels of the mask with a pixel outside of it among those at most d rows and d columns away.

    Cheng et al. 2021 as in their code: erosion by a square of 3 x 3, d times; outside of the image is outside.
    """
    padded = np.pad(mask, d)
    band = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        band[y, x] = not padded[y : y + 2 * d + 1, x : x + 2 * d + 1].all()
    return band


def boundary_iou(pair: Pair, d: int | None = None) -> float:
    if d is None:
        d = max(1, round(0.02 * hypot(*pair.pred.shape)))
    a, b = boundary_band(pair.pred, d), boundary_band(pair.ref, d)
    return float((a & b).sum() / (a | b).sum())


def image(mask: Mask, spacing: tuple[float, ...]) -> sitk.Image:
    made = sitk.GetImageFromArray(mask.astype(np.uint8))
    made.SetSpacing(spacing[::-1])
    return made


def mist2023(pair: Pair) -> Values:
    """HD95 and mean surface distance as MIST computed them in February 2023 (commit 491ab4b), in 3D.

    HD95 takes all voxels of a mask, 0 where the other mask covers them. Both use the distance map of the mask, whose
    zero is at the voxels with one of 26 neighbours outside; the contour has the 6 neighbours and knows no border.
    """
    if not pair.pred.any() and not pair.ref.any():
        return {"hd95": 0.0, "asd": 0.0}
    images = [image(m, pair.spacing) for m in (pair.pred, pair.ref)]
    (nx, ny, nz), (sx, sy, sz) = images[0].GetSize(), images[0].GetSpacing()
    worst = float(np.sqrt((nx * sy) ** 2 + (ny * sz) ** 2 + (nz * sx) ** 2))  # their pairing of sizes and spacings
    if not (pair.pred.any() and pair.ref.any()):
        return {"hd95": worst, "asd": worst}
    maps = [sitk.SignedMaurerDistanceMap(i, squaredDistance=False, useImageSpacing=True) for i in images]
    fields = [sitk.GetArrayFromImage(m).astype(np.float64) for m in maps]  # negative inside
    contours = [sitk.GetArrayFromImage(sitk.LabelContour(i)) > 0 for i in images]
    masks = [pair.pred, pair.ref]
    percentiles = [np.percentile(np.maximum(fields[1 - i][masks[i]], 0), 95) for i in (0, 1)]
    means = [abs(fields[1 - i][contours[i]]).mean() if contours[i].any() else np.nan for i in (0, 1)]
    asd = float(np.mean(means))
    return {"hd95": float(max(percentiles)), "asd": asd if np.isfinite(asd) else worst}
