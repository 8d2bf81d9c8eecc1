"""Boundary IoU: cases by hand, and the repeated erosion that it is defined by."""

from math import hypot

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from shapes import EMPTY, ZOO, marked

from harness.errors import BenchError
from harness.metrics.boundary import band_width, boundary_iou

FLAT = [p for p in ZOO if p.pred.ndim == 2]


def by_erosion(pred, ref, d):
    bands = [m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations=d, border_value=0) for m in (pred, ref)]
    union = (bands[0] | bands[1]).sum()
    return (bands[0] & bands[1]).sum() / union if union else None


@pytest.mark.parametrize("d", [1, 2, 3, 9, 50])
@pytest.mark.parametrize("pair", FLAT, ids=repr)
def test_band_is_the_mask_without_its_erosion(pair, d):
    assert boundary_iou(pair.pred, pair.ref, d) == by_erosion(pair.pred, pair.ref, d)


@settings(max_examples=100)
@given(st.tuples(*[arrays(bool, (7, 9), elements=st.integers(0, 9).map(lambda n: n > 1))] * 2), st.integers(1, 5))
def test_dense_masks_agree_and_know_no_side_and_no_place(masks, d):
    value = boundary_iou(*masks, d)
    assert value == by_erosion(*masks, d) == boundary_iou(*masks[::-1], d)
    assert value == boundary_iou(*(np.pad(m, (4, 2)) for m in masks), d)


def test_square_moved_by_one_pixel():
    pred, ref = (marked((9, 9), (slice(2, 7), slice(x, x + 5))) for x in (1, 2))
    assert type(boundary_iou(pred, ref, 1)) is float  # not numpy's
    # Rings of 16 pixels that share 4 in the top row and 4 in the bottom row.
    assert boundary_iou(pred, ref, 1) == 8 / 24
    # At 2 a ring is the square without its middle: 20 shared pixels less the 2 middles, of 30 less none.
    assert boundary_iou(pred, ref, 2) == 18 / 30
    # At 3 nothing is left in the middle, so it is the IoU of the squares.
    assert boundary_iou(pred, ref, 3) == 20 / 30


def test_outside_of_the_image_counts_as_outside():
    full = np.ones((10, 10), bool)
    assert boundary_iou(full, marked((10, 10), (slice(2, 8), slice(2, 8))), 2) == 0.0
    assert boundary_iou(full, marked((10, 10), (slice(1, 9), slice(1, 9))), 2) == 28 / (64 + 20)
    assert boundary_iou(full, full, 2) == 1.0


@pytest.mark.parametrize("pair", [p for p in EMPTY if p.pred.ndim == 2], ids=repr)
def test_empty_masks(pair):
    expected = {"pred_empty": 0.0, "ref_empty": 0.0, "both_empty": None, "ok": 1.0}[pair.name]
    assert boundary_iou(pair.pred, pair.ref, 1) == expected


def test_width_is_two_percent_of_the_diagonal_and_at_least_one():
    assert band_width((300, 400)) == 10
    assert band_width((100, 100)) == round(0.02 * hypot(100, 100)) == 3
    assert band_width((12, 9)) == 1
    assert band_width((300, 400), 4.0) == 4
    pred, ref = marked((300, 400), (slice(20, 90), slice(20, 90))), marked((300, 400), (slice(20, 95), slice(20, 90)))
    assert boundary_iou(pred, ref) == by_erosion(pred, ref, 10) != by_erosion(pred, ref, 9)


@pytest.mark.parametrize("d", [0.0, -1.0, 2.5, np.nan, np.inf])
def test_a_width_that_is_no_number_of_pixels_is_refused(d):
    with pytest.raises(BenchError, match="expected a whole number of pixels from 1 up"):
        boundary_iou(np.ones((3, 3), bool), np.ones((3, 3), bool), d)


def test_a_volume_is_refused():
    with pytest.raises(BenchError, match="images of 2 axes, this one has 3"):
        boundary_iou(np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), 1)
