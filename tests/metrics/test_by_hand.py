"""Every metric on cases small enough to work out on paper; the working stands beside the numbers."""

from __future__ import annotations

from math import hypot, sqrt

import numpy as np
import pytest
from shapes import EMPTY, Pair, marked

from harness.metrics import evaluate

VOXELS = ("voxel-max", "voxel-pooled")
FIRST_THREE = ["voxel-max", "voxel-pooled", "area"]
OVERLAP = ["dice", "iou", "sensitivity", "specificity", "precision", "volume_difference"]
DISTANCES = ["hd", "hd95", "asd", "asd_reverse", "assd", "masd"]


def measure(pred, ref, spacing, profile="voxel-max", metrics=DISTANCES, engine="simpleitk"):
    """Values by metric, of one class."""
    maps = pred.astype(np.uint8), ref.astype(np.uint8)
    rows = evaluate(*maps, spacing, {"x": 1}, profile, metrics=metrics, engine=engine)
    return {r.metric: r.value for r in rows}


def check(got, **want):
    for name, value in want.items():
        name = name.replace("_at_", "@").replace("_dot_", ".")
        assert got[name] == pytest.approx(value, abs=1e-5), name


# Overlap


def test_overlap_in_three_dimensions():
    pred, ref = np.zeros((2, 2, 3, 4), np.uint8)
    pred[0, 0], pred[1, 2, :2] = 1, 1  # 4 + 2 voxels
    ref[0, 0, 1:], ref[0, 1, 0] = 1, 1  # 3 + 1 voxels, of which the 3 are predicted
    rows = evaluate(pred, ref, (3.0, 2.0, 0.5), {"x": 1}, FIRST_THREE, metrics=OVERLAP)
    assert [(r.metric, r.profile) for r in rows] == [(m, "voxel-max") for m in (*OVERLAP, "tp", "fp", "fn", "tn")]
    got = {r.metric: r for r in rows}
    # TP 3, FP 3, FN 1, TN 24 − 7 = 17
    want = {"dice": 6 / 10, "iou": 3 / 7, "sensitivity": 3 / 4, "specificity": 17 / 20, "precision": 3 / 6}
    assert {m: got[m].value for m in want} == pytest.approx(want, abs=1e-15)
    assert [got[m].value for m in ("tp", "fp", "fn", "tn")] == [3, 3, 1, 17]
    volume = got["volume_difference"]  # |6 − 4| voxels of 3 · 2 · 0.5 = 3 mm³; the image has 24 of them
    assert (volume.value, volume.unit, volume.worst) == (6.0, "mm3", 72.0)


@pytest.mark.parametrize(("spacing", "unit", "value"), [((0.5, 4.0), "mm2", 6.0), (None, "voxel2", 3.0)])
def test_volume_difference_in_the_plane_is_an_area(spacing, unit, value):
    pred, ref = np.array([[0, 0, 1, 0]]), np.array([[1, 1, 1, 1]])  # 3 pixels less, of 0.5 · 4 = 2 mm²
    row = evaluate(pred, ref, spacing, {"x": 1}, metrics=["volume_difference"])[0]
    assert (row.value, row.unit) == (value, unit)


def test_fractions_that_do_not_exist():
    full = np.ones((2, 3), np.uint8)
    got = measure(full, full, None, metrics=OVERLAP)  # no voxel outside of the reference: 0 / 0
    assert got["specificity"] is None
    assert [got[m] for m in ("dice", "iou", "sensitivity", "precision", "volume_difference")] == [1, 1, 1, 1, 0]
    none = {"pred_empty": ["precision"], "ref_empty": ["sensitivity"], "ok": []}
    none["both_empty"] = ["dice", "iou", "sensitivity", "precision"]
    for pair in EMPTY:
        got = measure(pair.pred, pair.ref, pair.spacing, metrics=[*OVERLAP, *DISTANCES, "nsd@2"])
        wanted = none[pair.name] + ([*DISTANCES, "nsd@2"] if pair.name != "ok" else [])
        assert [m for m, v in got.items() if v is None] == wanted
        if pair.name in ("pred_empty", "ref_empty"):
            assert (got["dice"], got["iou"]) == (0, 0)
            voxels = max(pair.pred.sum(), pair.ref.sum())
            assert got["volume_difference"] == pytest.approx(voxels * np.prod(pair.spacing))
        if pair.name == "pred_empty":
            assert (got["sensitivity"], got["specificity"]) == (0, 1)
        if pair.name == "ref_empty":
            assert got["precision"] == 0
            assert got["specificity"] == got["tn"] / (got["tn"] + got["fp"]) < 1
        if pair.name == "both_empty":
            assert (got["specificity"], got["volume_difference"]) == (1, 0)


def test_regions_are_unions():
    #                 0  1  2  3  4  5
    pred = np.array([[2, 2, 4, 4, 0, 0]])
    ref = np.array([[1, 2, 4, 0, 0, 2]])
    labels = {"WT": [1, 2, 4], "TC": (1, 4), "ET": 4}
    names = ["dice", "hd", "asd", "volume_difference"]
    rows = evaluate(pred, ref, (1.0, 3.0), labels, metrics=names)
    got = {(r.class_name, r.metric): r.value for r in rows}
    # WT: columns 0–3 and 0, 1, 2, 5: TP 3, FP 1, FN 1. Column 3 is 1 pixel of 3 mm from column 2; column 5 is 2 from 3.
    assert [got["WT", m] for m in ("tp", "fp", "fn", "tn")] == [3, 1, 1, 1]
    assert [got["WT", m] for m in names] == pytest.approx([6 / 8, 6, 3 / 4, 0], abs=1e-5)
    # TC: columns 2, 3 and 0, 2: TP 1, FP 1, FN 1. Column 3 is 1 pixel from 2; column 0 is 2 from 2.
    assert [got["TC", m] for m in names] == pytest.approx([2 / 4, 6, 3 / 2, 0], abs=1e-5)
    # ET: columns 2, 3 and 2
    assert [got["ET", m] for m in names] == pytest.approx([2 / 3, 3, 3 / 2, 3], abs=1e-5)


# Surface distances of voxels


def line(start, stop, size=12):
    return marked((3, size), (1, slice(start, stop)))


@pytest.mark.parametrize(("profile", "hd95"), [("voxel-max", 11.1), ("voxel-pooled", 10.7)])
def test_a_line_too_long(profile, hd95, engine):
    pred, ref = line(0, 10), line(0, 4)
    # Pixels of 2 mm. There: 0 0 0 0 2 4 6 8 10 12, sum 42; rank 0.95 · 9 = 8.55 is 10 + 0.55 · 2. Back: four zeros.
    # Pooled: 8 zeros and 2 4 6 8 10 12; rank 0.95 · 13 = 12.35 is 10 + 0.35 · 2.
    got = measure(pred, ref, (1.0, 2.0), profile, engine=engine)
    check(got, hd=12, hd95=hd95, asd=4.2, asd_reverse=0, assd=42 / 14, masd=2.1)
    got = measure(ref, pred, (1.0, 2.0), profile, engine=engine)
    check(got, hd=12, hd95=hd95, asd=0, asd_reverse=4.2, assd=42 / 14, masd=2.1)


@pytest.mark.parametrize("profile", VOXELS)
@pytest.mark.parametrize(
    ("tolerance", "within"),
    # 14 distances: 8 zeros, 2, 4, 6, 8, 10, 12
    [("0", 8), ("1.99", 8), ("2", 9), ("2.01", 9), ("5.9", 10), ("6", 11), ("11.99", 13), ("12", 14), ("1e3", 14)],
)
def test_nsd_counts_a_distance_equal_to_the_tolerance(tolerance, within, profile, engine):
    got = measure(line(0, 10), line(0, 4), (1.0, 2.0), profile, [f"nsd@{tolerance}"], engine)
    assert got[f"nsd@{float(tolerance):g}"] == pytest.approx(within / 14, abs=1e-12)


@pytest.mark.parametrize("profile", FIRST_THREE)
@pytest.mark.parametrize(
    ("steps", "spacing", "tolerance"),
    # The fourth: 0.1 + 0.2 is not 0.3 in binary, but three voxels of 0.1 mm are 0.3 mm away.
    [((0, 2), (1.0, 0.8), 1.6), ((3, 0), (1.5, 0.7), 4.5), ((3, 4), (0.5, 0.5), 2.5), ((0, 3), (1.0, 0.1), 0.3),
     ((0, 3), (3.0, 0.8), 2.4), ((0, 7), (3.0, 0.7), 4.9), ((5, 12), (0.7, 0.7), 9.1)],
)  # fmt: skip
def test_nsd_at_a_tolerance_of_some_voxels(steps, spacing, tolerance, profile, engine):
    """One voxel each, `steps` apart: exactly the tolerance, in numbers as people write them."""
    pred, ref = marked((20, 20), (1, 2)), marked((20, 20), (1 + steps[0], 2 + steps[1]))
    assert hypot(*np.multiply(steps, spacing)) == pytest.approx(tolerance, rel=1e-12)
    names = [f"nsd@{tolerance}", f"nsd@{0.999 * tolerance:g}"]
    got = measure(pred, ref, spacing, profile, names, engine)
    at, below = (got[n] for n in names)
    if profile == "area":  # the four corners of a pixel are as far from the nearest of the other, or nearer
        assert at == pytest.approx(1, abs=1e-12)
    else:
        assert (at, below) == (1, 0)


@pytest.mark.parametrize("side", [0.7, 0.1, 0.8, 0.976])
def test_nsd_at_a_tie_is_the_same_everywhere(side, engine):
    """Two voxels of which one is n steps from the other, wherever they lie: at n steps all is near, below nothing."""
    for steps in (1, 2, 3, 5, 11, 40):
        at, below = f"nsd@{steps * side:g}", f"nsd@{steps * side * 0.999:g}"
        for start in (0, 3, 7, 19, 50):
            pred, ref = marked((1, 100), (0, start)), marked((1, 100), (0, start + steps))
            got = measure(pred, ref, (1.0, side), metrics=[at, below], engine=engine)
            assert (got[at], got[below]) == (1, 0), (steps, start)


def test_distances_in_anisotropic_space(engine):
    # A voxel against two: 1 · 3, 2 · 0.8, 3 · 0.5 mm away, sqrt(9 + 2.56 + 2.25); and the neighbour along z, 3 mm.
    pred, ref = marked((4, 5, 6), (0, 0, 0)), marked((4, 5, 6), (1, 2, 3), (1, 0, 0))
    far = sqrt(13.81)
    got = measure(pred, ref, (3.0, 0.8, 0.5), metrics=[*DISTANCES, "nsd@3"], engine=engine)
    # There: 3. Back: 3 and far; rank 0.95 · 1 is 3 + 0.95 · (far − 3).
    check(got, hd=far, hd95=3 + 0.95 * (far - 3), asd=3, asd_reverse=(3 + far) / 2, assd=(6 + far) / 3, nsd_at_3=2 / 3)
    check(got, masd=(3 + (3 + far) / 2) / 2)
    pooled = measure(pred, ref, (3.0, 0.8, 0.5), "voxel-pooled", engine=engine)
    check(pooled, hd=far, hd95=3 + 0.9 * (far - 3))  # 3, 3, far: rank 0.95 · 2 = 1.9


def test_far_false_positive_is_seen_by_one_profile(engine):
    pred, ref = marked((110, 40), (3,), (103, 5), (103, 15), (103, 25)), marked((110, 40), (3,))
    # There: 40 zeros and 3 × 100; rank 0.95 · 42 = 39.9 is 0.9 · 100. Pooled: 80 zeros; rank 0.95 · 82 = 77.9 is 0.
    check(measure(pred, ref, (1.0, 1.0), "voxel-max", engine=engine), hd=100, hd95=90, asd=300 / 43, asd_reverse=0)
    check(measure(pred, ref, (1.0, 1.0), "voxel-pooled", engine=engine), hd=100, hd95=0, assd=300 / 83, masd=150 / 43)


def test_nested_cubes(engine):
    pred, ref = marked((9, 9, 9), (slice(2, 7),) * 3), marked((9, 9, 9), (slice(3, 6),) * 3)
    got = measure(pred, ref, (2.0, 2.0, 2.0), metrics=[*DISTANCES, "nsd@2"], engine=engine)
    # 5 · 5 · 5 round 3 · 3 · 3, voxels of 2 mm. There: 6 faces × 9 at 1, 12 edges × 3 at √2, 8 corners at √3, of 98.
    # Back: 26 surface voxels, 1 from the nearest face. Rank 0.95 · 97 = 92.15 is beyond the 90 of faces and edges.
    there = 54 + 36 * sqrt(2) + 8 * sqrt(3)
    check(got, hd=2 * sqrt(3), hd95=2 * sqrt(3), asd=2 * there / 98, asd_reverse=2, assd=2 * (there + 26) / 124)
    check(got, masd=there / 98 + 1, nsd_at_2=(54 + 26) / 124)
    # Pooled: 80 at 1, 36 at √2, 8 at √3: rank 0.95 · 123 = 116.85 is beyond the 116, 0-based, by the first √3 at 116.
    check(measure(pred, ref, (2.0, 2.0, 2.0), "voxel-pooled", engine=engine), hd95=2 * sqrt(3))


# Area-weighted surfaces


def test_area_of_a_pixel_and_a_bar(engine):
    # A pixel has four elements at its corners, each of length √2/2. A bar of two has √2/2 at four corners and 1 at the
    # middle of either long side, total 2 √2 + 2. The two far corners of the bar, √2 of it, are 1 from the pixel's.
    pred, ref = marked((5, 7), (2, 3)), marked((5, 7), (2, 3), (2, 4))
    names = [*DISTANCES, "nsd@0", "nsd@1"]
    got = measure(pred, ref, (1.0, 1.0), "area", names, engine)
    bar, both = 2 * sqrt(2) + 2, 4 * sqrt(2) + 2
    check(got, hd=1, hd95=1, asd=0, asd_reverse=sqrt(2) / bar, assd=sqrt(2) / both, masd=sqrt(2) / bar / 2)
    check(got, nsd_at_0=1 - sqrt(2) / both, nsd_at_1=1)


def test_area_of_two_squares(engine):
    # 2 · 2 pixels of 2 mm · 1 mm, shifted by one pixel of 1 mm. Elements of a square: four corners of √5/2, 1 in the
    # middle of its upper and lower side, 2 in the middle of the left and right; total 6 + 2 √5. Of the prediction, the
    # left side (√5/2 + 2 + √5/2) and the middle of the right side, 2, are 1 mm from the reference; the rest is on it.
    pred, ref = marked((6, 6), (slice(2, 4), slice(1, 3))), marked((6, 6), (slice(2, 4), slice(2, 4)))
    got = measure(pred, ref, (2.0, 1.0), "area", [*DISTANCES, "nsd@0.9", "nsd@1"], engine)
    mean = (4 + sqrt(5)) / (6 + 2 * sqrt(5))
    check(got, hd=1, hd95=1, asd=mean, asd_reverse=mean, assd=mean, masd=mean, nsd_at_1=1)
    assert got["nsd@0.9"] == pytest.approx((2 + sqrt(5)) / (6 + 2 * sqrt(5)), abs=1e-12)


def test_area_of_two_cubes(engine):
    # 2 · 2 · 2 voxels of 3 · 2 · 1 mm (z, y, x), shifted by one along x. Surface elements of one cube:
    #   8 corners, a triangle through the middles of three edges: √(2²·1² + 3²·1² + 3²·2²)/8 = 7/8 each;
    #   12 edges, a strip across a corner: 4 along z of 3 · √(2² + 1²)/2, 4 along y of 2 · √(3² + 1²)/2, 4 along x of √13/2;
    #   6 faces: 2 across x of 3 · 2, 2 across y of 3, 2 across z of 2.
    total = 7 + 6 * sqrt(5) + 4 * sqrt(10) + 2 * sqrt(13) + 22
    # 1 mm from the reference: the whole side at low x (4 corners, 2 edges along z, 2 along y, a face) and the middle
    # of the side at high x, which lies within the reference. The other elements coincide with some of the reference.
    away = 3.5 + 3 * sqrt(5) + 2 * sqrt(10) + 6 + 6
    two = slice(1, 3)
    pred, ref = marked((4, 4, 5), (two, two, slice(1, 3))), marked((4, 4, 5), (two, two, slice(2, 4)))
    got = measure(pred, ref, (3.0, 2.0, 1.0), "area", [*DISTANCES, "nsd@0.99", "nsd@1"], engine)
    mean = away / total
    check(got, hd=1, hd95=1, asd=mean, asd_reverse=mean, assd=mean, masd=mean, nsd_at_1=1)
    assert got["nsd@0.99"] == pytest.approx(1 - mean, abs=1e-12)


def test_area_of_a_voxel_and_a_bar(engine):
    # Voxels of 1 mm. Eight corners of √3/8; the bar of two has besides four strips of √2/2 round its middle.
    pred, ref = marked((3, 3, 4), (1, 1, 1)), marked((3, 3, 4), (1, 1, 1), (1, 1, 2))
    got = measure(pred, ref, (1.0, 1.0, 1.0), "area", engine=engine)
    far = sqrt(3) / 2  # four corners of the bar
    check(got, hd=1, hd95=1, asd=0, asd_reverse=far / (sqrt(3) + 2 * sqrt(2)), assd=far / (2 * sqrt(3) + 2 * sqrt(2)))


@pytest.mark.parametrize(("length", "hd95"), [(11, 1.0), (21, 0.0)])
def test_area_percentile_does_not_interpolate(length, hd95, engine):
    # A bar of n pixels has the length 2 √2 + 2 (n − 1), of which √2 is at its far end, 1 from the bar that is one
    # pixel shorter: 6.2 % of it for 11 pixels, 3.3 % for 21. No number between 0 and 1 can come of it.
    got = measure(line(2, 2 + length - 1, 30), line(2, 2 + length, 30), (1.0, 1.0), "area", engine=engine)
    assert got["hd95"] == pytest.approx(hd95, abs=1e-12)
    assert got["asd_reverse"] == pytest.approx(sqrt(2) / (2 * sqrt(2) + 2 * (length - 1)), abs=1e-6)


def test_area_at_the_border_of_the_array(engine):
    # All voxels: what lies outside of the array is outside, so the surface is the box. One pixel in the corner less.
    pred = np.ones((3, 3), bool)
    ref = pred.copy()
    ref[0, 0] = False
    got = measure(pred, ref, (1.0, 1.0), "area", engine=engine)
    # Prediction: 4 corners of √2/2 and 8 of 1 along the sides. The corner (0, 0) is √2/2 long and 1 from (0, 1), where
    # the reference has its own. Reference: (1, 1) is new, √2/2 long, 1 from the side.
    box = 2 * sqrt(2) + 8
    cut = 6 * sqrt(2) / 2 + 6  # three corners, (0, 1), (1, 0) and (1, 1) of √2/2; six along the sides
    check(got, hd=1, asd=sqrt(2) / 2 / box, asd_reverse=sqrt(2) / 2 / cut)


# Boundary IoU


@pytest.mark.parametrize(
    ("name", "want"),
    # Squares of 6 · 6, shifted by one column; they share 6 · 5 pixels.
    # d = 1: rings of 20, which share 5 pixels above and 5 below. 2 % of the diagonal of 14.1 rounds to 0, so d is 1.
    # d = 2: without the inner 2 · 2 each 32; of the shared 30, 6 are inner to one of them.
    # d = 3 and more: the whole squares.
    [("boundary_iou", 10 / 30), ("boundary_iou@1", 10 / 30), ("boundary_iou@2", 24 / 40), ("boundary_iou@3", 30 / 42),
     ("boundary_iou@50", 30 / 42)],
)  # fmt: skip
def test_boundary_iou_of_squares(name, want):
    pred, ref = marked((10, 10), (slice(2, 8), slice(2, 8))), marked((10, 10), (slice(2, 8), slice(3, 9)))
    assert measure(pred, ref, (5.0, 0.1), metrics=[name])[name] == pytest.approx(want, abs=1e-15)  # pixels, no mm


def test_boundary_iou_band_is_two_percent_of_the_diagonal():
    # The diagonal of 300 · 400 is 500, so d is 10. Squares of 100, shifted by one column: bands of 100² − 80² = 3600;
    # they share 100 · 99 pixels without the 80 · 81 that are inner to one of them.
    rows = slice(90, 190)
    pred, ref = marked((300, 400), (rows, slice(50, 150))), marked((300, 400), (rows, slice(51, 151)))
    want = (9900 - 6480) / (7200 - (9900 - 6480))
    got = measure(pred, ref, None, metrics=["boundary_iou", "boundary_iou@10"])
    assert got["boundary_iou"] == got["boundary_iou@10"] == pytest.approx(want, abs=1e-15)


def test_boundary_iou_rounds_the_width_of_the_band():
    # The diagonal of 54 · 72 is 90, 2 % are 1.8, so d is 2. Squares of 20, shifted by one column: bands of 400 − 16²;
    # they share 20 · 19 pixels without the 16 · 17 that are inner to one of them.
    rows = slice(10, 30)
    pred, ref = marked((54, 72), (rows, slice(10, 30))), marked((54, 72), (rows, slice(11, 31)))
    assert measure(pred, ref, None, metrics=["boundary_iou"])["boundary_iou"] == pytest.approx(108 / (288 - 108))


def test_boundary_iou_at_the_border_of_the_image():
    # The full image has its band along the border: 20 of 6 · 6. Its left half, 6 · 3, has 18 − 4: they share column 0
    # and the ends of columns 1 and 2.
    pred, ref = np.ones((6, 6), bool), marked((6, 6), (slice(None), slice(0, 3)))
    got = measure(pred, ref, None, metrics=["boundary_iou@1"])
    assert got["boundary_iou@1"] == pytest.approx(10 / (20 + 14 - 10), abs=1e-15)


@pytest.mark.parametrize("pair", [p for p in EMPTY if p.pred.ndim == 2], ids=repr)
def test_boundary_iou_of_empty_masks(pair: Pair):
    want = {"ok": 1.0, "pred_empty": 0.0, "ref_empty": 0.0, "both_empty": None}[pair.name]
    assert measure(pair.pred, pair.ref, None, metrics=["boundary_iou"])["boundary_iou"] == want


# The papers' profiles


def test_transunet_measures_in_voxels(engine):
    rows = evaluate(*(line(*ends).astype(int) for ends in ((0, 10), (0, 4))), (1.0, 2.0), {"x": 1}, "transunet",
                    metrics=["hd95", "dice"], engine=engine)  # fmt: skip
    got = {r.metric: (r.value, r.unit, r.profile) for r in rows}
    # 8 zeros and 1 to 6 pixels, whatever their size: rank 0.95 · 13 = 12.35 is 5.35
    assert got["hd95"] == (pytest.approx(5.35, abs=1e-5), "voxel", "transunet")
    assert got["dice"] == (pytest.approx(8 / 14, abs=1e-15), "1", "transunet")


@pytest.mark.parametrize("pair", EMPTY, ids=repr)
def test_transunet_empty_masks(pair: Pair, engine):
    want = {"ok": (1, 0), "pred_empty": (0, 0), "ref_empty": (1, 0), "both_empty": (0, 0)}[pair.name]
    got = measure(pair.pred, pair.ref, pair.spacing, "transunet", ["dice", "hd95"], engine)
    assert (got["dice"], got["hd95"]) == want


MIST = ["dice", "hd95", "asd"]


def test_mist2023_takes_hd95_over_the_volume(engine):
    # A cube of 6 · 6 · 6 and the same with a rod of 10 voxels on one face. Of the 226 voxels 216 are within the cube:
    # rank 0.95 · 225 = 213.75 is 0. On the surface 151 are on the cube's (the one under the rod has no free face any
    # more, of 152) and 10 at 1 to 10: rank 0.95 · 160 = 152 is 2.
    cube = (slice(2, 8),) * 3
    pred, ref = marked((10, 10, 20), cube), marked((10, 10, 20), cube, (4, 4, slice(8, 18)))
    got = measure(pred, ref, (1.0, 1.0, 1.0), "mist2023", MIST, engine)
    check(got, hd95=0, dice=432 / 442)
    check(measure(pred, ref, (1.0, 1.0, 1.0), engine=engine), hd95=2)


def test_mist2023_of_nested_cubes(engine):
    pred, ref = marked((9, 9, 9), (slice(2, 7),) * 3), marked((9, 9, 9), (slice(3, 6),) * 3)
    got = measure(pred, ref, (2.0, 2.0, 2.0), "mist2023", MIST, engine)
    # As in `test_nested_cubes`, but the 27 voxels inside count 0: rank 0.95 · 124 = 117.8 is beyond 27 + 54 + 36.
    # Back, the inner cube is within the outer: all 0 for HD95, and 1 voxel from its contour for the mean.
    there = (54 + 36 * sqrt(2) + 8 * sqrt(3)) / 98
    check(got, dice=2 * 27 / 152, hd95=2 * sqrt(3), asd=2 * (there + 1) / 2)


def test_mist2023_knows_no_contour_at_the_border(engine):
    # Slabs of 4 and 6 columns of 0.5 mm, cut by the border on all other sides: their contours are columns 3 and 5.
    pred, ref = marked((4, 4, 10), (..., slice(0, 4))), marked((4, 4, 10), (..., slice(0, 6)))
    got = measure(pred, ref, (3.0, 2.0, 0.5), "mist2023", MIST, engine)
    # Of the 96 voxels of the reference, 16 are at 1 column and 16 at 2: rank 0.95 · 95 = 90.25 is 2 columns.
    check(got, dice=2 * 64 / 160, hd95=1.0, asd=1.0)


# Sizes 10, 4, 3 and spacings 0.5, 2, 3 along x, y, z, each size with the spacing of the next axis:
# (10 · 2)² + (4 · 3)² + (3 · 0.5)² = 400 + 144 + 2.25
MISPAIRED = sqrt(546.25)


@pytest.mark.parametrize(
    ("pred", "ref", "want"),
    [
        (0, 0, (1, 0, 0)),  # ITK's Dice of nothing is infinite, for which MIST has 1
        (1, 0, (0, MISPAIRED, MISPAIRED)),
        (0, 1, (0, MISPAIRED, MISPAIRED)),
    ],
)
def test_mist2023_empty_masks(pred, ref, want, engine):
    masks = [np.full((3, 4, 10), False) for _ in range(2)]
    masks[0][1, 1, 1:3], masks[1][1, 1, 1:3] = pred, ref
    got = measure(*masks, (3.0, 2.0, 0.5), "mist2023", MIST, engine)
    assert tuple(got[m] for m in MIST) == pytest.approx(want, abs=1e-9)


def test_mist2023_of_a_mask_that_fills_the_image(engine):
    full, part = np.ones((3, 4, 10), bool), marked((3, 4, 10), (..., slice(0, 9)))
    got = measure(full, part, (3.0, 2.0, 0.5), "mist2023", MIST, engine)
    # 12 of 120 voxels are one column outside: rank 0.95 · 119 is 0.5 mm. No contour, so no mean.
    check(got, dice=2 * 108 / 228, hd95=0.5, asd=MISPAIRED)
