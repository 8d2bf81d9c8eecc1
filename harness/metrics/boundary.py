"""Boundary IoU of two masks in the plane: the IoU of the bands along the inside of their contours.

Cheng et al., 2021, CVPR, equation 3, https://arxiv.org/abs/2103.16562. The band is measured as in their code,
https://github.com/bowenc0221/boundary-iou-api: the mask without its erosion by d passes of a 3 x 3 square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.errors import BenchError

BoolArray = NDArray[np.bool_]
SHARE = 0.02  # of the image diagonal: the paper's width of the band


def band_width(shape: Sequence[int], asked: float | None = None) -> int:
    """Width d of the band in pixels: the one asked for, or 2 % of the image diagonal, rounded, at least 1.

    Args:
        shape: Shape of the whole image, (y, x).
        asked: A width in pixels, or None.

    Raises:
        BenchError: The image is not 2D, or the width is not a whole number from 1 up.
    """
    if len(shape) != 2:
        raise BenchError(f"boundary_iou is defined for images of 2 axes, this one has {len(shape)}; ask for nsd@T.")
    if asked is None:
        return max(1, round(SHARE * math.hypot(*shape)))
    if not (math.isfinite(asked) and asked >= 1 and asked == int(asked)):
        raise BenchError(f"boundary_iou has the width {asked!r}, expected a whole number of pixels from 1 up.")
    return int(asked)


def boundary_iou(pred: BoolArray, ref: BoolArray, d: float | None = None) -> float | None:
    """|P_d ∩ R_d| / |P_d ∪ R_d| of the pixels of each mask within d pixels of its contour.

    The distance is the chessboard one, to the nearest pixel that is not in the mask, outside of the image included: a
    pixel belongs to the band if it is d or less from there. The spacing plays no part.

    Args:
        pred: Mask of the prediction, shape (y, x): the image, or with `d` also a part of it that holds both masks.
        ref: Mask of the reference, the same part.
        d: Width of the band in pixels; None is 2 % of the diagonal of the array, see `band_width`.

    Returns:
        A fraction in 0..1, 1 for equal masks, 0 if one mask is empty; None if both are.

    Raises:
        BenchError: As `band_width`.
    """
    width = band_width(pred.shape, d)
    pred_band, ref_band = _band(pred, width), _band(ref, width)
    union = np.count_nonzero(pred_band | ref_band)
    return float(np.count_nonzero(pred_band & ref_band) / union) if union else None


def _band(mask: BoolArray, d: int) -> BoolArray:
    """The mask without its erosion by d passes of a 3 x 3 square: one pass of a square of 2 d + 1, axis by axis."""
    inner = mask.astype(np.uint8)
    for axis, size in enumerate(mask.shape):
        reach = 2 * min(d, size) + 1  # a longer one reaches beyond both ends at every pixel too
        ndimage.minimum_filter1d(inner, reach, axis=axis, output=inner, mode="constant", cval=0)
    band: BoolArray = mask & (inner == 0)
    return band
