"""Distances: exact cases by hand, all surface pairs by brute force, MONAI, and invariants."""

import itertools
from math import sqrt

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from harness.metrics import evaluate
from harness.metrics.maurer import directed_distances
from harness.metrics.scan import Classes, scan

DISTANCES = ("hd95", "asd", "assd")


def measure(pred, ref, spacing, **options):
    rows = evaluate(pred.astype(np.uint8), ref.astype(np.uint8), spacing, {"x": 1}, **options)
    assert rows[0].status == "ok"
    return {r.metric: r.value for r in rows}


def masks(shape, *, pred, ref):
    volumes = []
    for voxels in (pred, ref):
        volume = np.zeros(shape, bool)
        volume[voxels] = True
        volumes.append(volume)
    return volumes


def surface_points(mask):
    """The definition, voxel by voxel."""
    points = []
    for index in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = index.copy()
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                points.append(index)
                break
    return np.array(points, float)


def brute(pred, ref, spacing):
    spacing = np.ones(pred.ndim) if spacing is None else np.array(spacing)
    pairs = cdist(surface_points(pred) * spacing, surface_points(ref) * spacing)
    there, back = pairs.min(1), pairs.min(0)
    return {
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "asd": there.mean(),
        "assd": np.concatenate([there, back]).mean(),
        "hd": max(there.max(), back.max()),
    }


def check_against_brute(pred, ref, spacing, unit=1.0):
    got, want = measure(pred, ref, spacing), brute(pred, ref, spacing)
    for metric in DISTANCES:
        assert got[metric] == pytest.approx(want[metric], abs=1e-4 * unit, rel=0), metric
    assert got["hd95"] <= want["hd"] + 1e-4 * unit
    return got


# By hand


def test_two_voxels_in_anisotropic_space():
    pred, ref = masks((4, 5, 6), pred=(0, 0, 0), ref=(1, 2, 3))
    got = measure(pred, ref, (3.0, 0.8, 0.5))
    want = sqrt(13.81)  # (1·3)² + (2·0.8)² + (3·0.5)² = 9 + 2.56 + 2.25
    assert got["dice"] == 0.0
    assert [got[m] for m in DISTANCES] == pytest.approx([want] * 3, abs=1e-5)


def test_two_cubes_shifted_by_one():
    two = slice(1, 3)
    pred, ref = masks((4, 4, 6), pred=(two, two, slice(1, 3)), ref=(two, two, slice(2, 4)))
    got = measure(pred, ref, (3.0, 0.8, 0.5))
    # All 8 voxels of each are surface; 4 coincide, 4 are one step of 0.5 from the other. Rank 0.95·7 = 6.65 is a 0.5.
    assert [got[m] for m in ("dice", *DISTANCES)] == pytest.approx([0.5, 0.5, 0.25, 0.25], abs=1e-6)


def test_a_line_too_long():
    pred, ref = masks((3, 12), pred=(1, slice(0, 10)), ref=(1, slice(0, 4)))
    got = measure(pred, ref, (1.0, 2.0))
    # there: 0 0 0 0 2 4 6 8 10 12, sum 42; rank 0.95·9 = 8.55 is 10 + 0.55·2 = 11.1; back: four zeros
    assert got["dice"] == 8 / 14
    assert [got[m] for m in DISTANCES] == pytest.approx([11.1, 4.2, 42 / 14], abs=1e-5)
    back = measure(ref, pred, (1.0, 2.0))
    assert [back[m] for m in DISTANCES] == pytest.approx([11.1, 0.0, 3.0], abs=1e-5)  # directed: nothing to see


def test_far_false_positive_counts_in_its_own_direction():
    pred, ref = masks((110, 40), pred=([*[3] * 40, 103, 103, 103], [*range(40), 5, 15, 25]), ref=(3, slice(None)))
    got = measure(pred, ref, (1.0, 1.0))
    # there: 40 zeros and 3 × 100; rank 0.95·42 = 39.9 is 0.1·0 + 0.9·100 = 90. Pooled with 40 zeros back it would be 0.
    assert [got[m] for m in DISTANCES] == pytest.approx([90.0, 300 / 43, 300 / 83], abs=1e-4)


def test_nested_cubes():
    seven, three = slice(1, 8), slice(3, 6)
    pred, ref = masks((9, 9, 9), pred=(seven,) * 3, ref=(three,) * 3)
    got = measure(pred, ref, (1.0, 1.0, 1.0))
    # Distance per axis from the outer surface to the inner cube: 0 for 3 coordinates, 1 for 2, 2 for 2. Surface voxels:
    # one axis at 2: 6 faces × (9 of 2, 12 of √5, 4 of √6); two axes: 12 edges × (3 of √8, 2 of 3); three: 8 of √12.
    there = 54 * 2 + 72 * sqrt(5) + 24 * sqrt(6) + 36 * sqrt(8) + 24 * 3 + 8 * sqrt(12)  # 218 voxels
    # Back: all 27 − 1 surface voxels of the inner cube are 2 from the nearest face.
    assert got["asd"] == pytest.approx(there / 218, abs=1e-5)
    assert got["assd"] == pytest.approx((there + 52) / (218 + 26), abs=1e-5)
    # 54 + 72 + 24 + 36 = 186 are below 3, and then 24 are 3: rank 0.95·217 = 206.15 among them
    assert got["hd95"] == pytest.approx(3.0, abs=1e-5)


def test_mask_that_fills_the_image_has_its_surface_at_the_border():
    pred, ref = masks((4, 4), pred=(slice(None),) * 2, ref=(slice(1, 3),) * 2)
    got = measure(pred, ref, None)
    # 12 border voxels: 4 corners at √2, 8 at 1; rank 0.95·11 = 10.45 is a corner. Back: 4 voxels at 1.
    assert got["hd95"] == pytest.approx(sqrt(2), abs=1e-6)
    assert got["asd"] == pytest.approx((4 * sqrt(2) + 8) / 12, abs=1e-6)
    assert got["assd"] == pytest.approx((4 * sqrt(2) + 12) / 16, abs=1e-6)


def test_edge_has_face_neighbours_only():
    plus_hole = np.ones((5, 5), bool)
    plus_hole[0, 0] = False  # touches (1, 1) by a corner only
    want = np.ones((5, 5), bool)
    want[1:4, 1:4] = False
    want[0, 0] = False
    (cloud, other) = scan(
        plus_hole.view(np.uint8), plus_hole.view(np.uint8), Classes.of({"x": (1,)}, None), True
    ).clouds[0]
    got = np.zeros(25, bool)
    got[cloud] = True
    assert np.array_equal(got.reshape(5, 5), want)
    assert np.array_equal(cloud, other)


# Brute force and MONAI

SPACINGS = {2: [(1.0, 1.0), (3.0, 0.7), None], 3: [(3.0, 0.8, 0.8), (1.0, 1.0, 1.0), (0.5, 4.0, 1.3)]}


def random_pair(shape, kind, seed):
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.random((2, *shape)) > 0.6
    if kind == "points":
        return rng.random((2, *shape)) > 1 - 3 / np.prod(shape)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    pair = []
    for _ in range(2):  # balls that may be cut by the border, or shells with a hole inside
        centre, radius = rng.uniform(0, shape), rng.uniform(2, max(shape) / 2)
        away = np.linalg.norm(grid - centre, axis=-1)
        pair.append((away <= radius) & ((away > radius - 1.7) if kind == "shells" else True))
    return np.stack(pair)


@pytest.mark.parametrize("kind", ["noise", "points", "balls", "shells"])
@pytest.mark.parametrize("shape", [(9, 11), (1, 12), (5, 9, 8), (1, 7, 9), (6, 1, 1)])
def test_brute_force(shape, kind):
    done = 0
    for seed in range(12):
        pred, ref = random_pair(shape, kind, seed)
        if pred.any() and ref.any():
            check_against_brute(pred, ref, SPACINGS[len(shape)][seed % 3])
            done += 1
    assert done >= 4


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e6])
def test_tiny_and_huge_spacing(scale):
    for seed in range(5):
        pred, ref = random_pair((6, 9, 8), "points", seed) | random_pair((6, 9, 8), "shells", seed)
        check_against_brute(pred, ref, tuple(scale * s for s in (1.0, 20.0, 1.0)), unit=scale)


@pytest.mark.parametrize("spacing", [(1.2, 1.2, 1.2), (3.0, 0.8, 0.8), (1e-4, 0.1, 1e-4)])
def test_float32_on_a_wide_grid(spacing):
    rng = np.random.default_rng(0)
    source, target = np.zeros((2, 20, 200, 200), bool)
    for volume, n in ((source, 2000), (target, 40)):
        volume[tuple(rng.integers(1, side - 1, n) for side in volume.shape)] = True
    want, _ = cKDTree(np.argwhere(target) * spacing).query(np.argwhere(source) * spacing)
    # ITK in the unit as given has a relative error above 1e-5 here
    np.testing.assert_allclose(directed_distances(source, target, spacing), want, rtol=1e-6)


def test_several_classes_are_measured_one_by_one():
    rng = np.random.default_rng(1)
    pred, ref = rng.integers(0, 4, (2, 6, 9, 8))
    rows = evaluate(pred, ref, (3.0, 0.8, 0.9), {"c": 3, "a": 1, "b": 2})
    got = {(r.class_name, r.metric): r.value for r in rows}
    for name, label in {"a": 1, "b": 2, "c": 3}.items():
        want = brute(pred == label, ref == label, (3.0, 0.8, 0.9))
        for metric in DISTANCES:
            assert got[name, metric] == pytest.approx(want[metric], abs=1e-4, rel=0)


def test_background_as_a_class():
    pred, ref = random_pair((9, 11), "balls", 3)
    rows = evaluate((~pred).astype(int), (~ref).astype(int), (2.0, 1.0), {"outside": 1})
    want = [(r.metric, r.value) for r in rows]
    rows = evaluate(pred.astype(int), ref.astype(int), (2.0, 1.0), {"road": 0, "car": 1})
    assert [(r.metric, r.value) for r in rows if r.class_name == "road"] == want


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own call of its own function
@pytest.mark.parametrize("shape", [(24, 20), (10, 16, 14)])
@pytest.mark.parametrize("kind", ["balls", "shells", "noise"])
def test_monai(shape, kind):
    spacing = (3.0, 0.8, 0.7)[: len(shape)]
    done = 0
    for seed in range(4):
        pred, ref = random_pair(shape, kind, seed)
        if not (pred.any() and ref.any()):
            continue
        got = measure(pred, ref, spacing)
        p, r = (torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (pred, ref))
        hd95 = compute_hausdorff_distance(p, r, percentile=95, spacing=spacing)
        asd = compute_average_surface_distance(p, r, spacing=spacing)
        assd = compute_average_surface_distance(p, r, symmetric=True, spacing=spacing)
        assert [got[m] for m in DISTANCES] == pytest.approx([float(v[0, 0]) for v in (hd95, asd, assd)], abs=1e-4)
        done += 1
    assert done >= 2


# Invariants


def test_identity_is_exactly_zero():
    for seed, kind in enumerate(["noise", "points", "balls", "shells"]):
        pred, ref = random_pair((6, 20, 18), kind, seed)
        pred |= ref
        for spacing in ((3.0, 0.8, 0.8), (1.3, 0.51, 0.77), None):  # ITK alone leaves 2e-6 in the second
            got = measure(pred, pred, spacing)
            assert [got[m] for m in ("dice", *DISTANCES)] == [1.0, 0.0, 0.0, 0.0]


def test_translation_padding_and_permutation_of_axes():
    pred, ref = random_pair((6, 9, 8), "shells", 4) | random_pair((6, 9, 8), "points", 5)
    spacing = (3.0, 0.8, 0.5)
    want = measure(pred, ref, spacing)
    for before in itertools.product((0, 5), repeat=3):
        width = [(b, 5 - b) for b in before]
        moved = measure(np.pad(pred, width), np.pad(ref, width), spacing)
        assert [moved[m] for m in DISTANCES] == pytest.approx([want[m] for m in DISTANCES], abs=1e-5)
    for order in itertools.permutations(range(3)):
        turned = measure(pred.transpose(order), ref.transpose(order), [spacing[i] for i in order])
        assert [turned[m] for m in DISTANCES] == pytest.approx([want[m] for m in DISTANCES], abs=1e-5)


def test_far_island_in_a_larger_box():
    pred, ref = masks((40, 60, 50), pred=(slice(3, 8),) * 3, ref=(slice(4, 9),) * 3)
    pred[36:39, 55:58, 45:48] = True
    check_against_brute(pred, ref, (3.0, 0.8, 0.8))


def test_threads_of_simpleitk_are_given_back():
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
        pred, ref = masks((4, 4), pred=(0, 0), ref=(3, 3))
        measure(pred, ref, None)
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 3
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@st.composite
def pairs(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
    spacing = tuple(draw(st.floats(0.1, 10)) for _ in shape)
    pred, ref = (draw(arrays(bool, shape, elements=st.booleans(), fill=st.just(False))) for _ in range(2))
    for mask in (pred, ref):
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
    return pred, ref, spacing


@settings(max_examples=60, derandomize=True)
@given(pairs(), st.floats(0.01, 100))
def test_properties(pair, factor):
    pred, ref, spacing = pair
    got = check_against_brute(pred, ref, spacing)
    back = measure(ref, pred, spacing)
    assert (back["hd95"], back["dice"]) == (got["hd95"], got["dice"])
    assert back["assd"] == pytest.approx(got["assd"], rel=1e-12)
    # pooled: the mean of the two directed means, weighted by their numbers of voxels, so between them
    assert min(got["asd"], back["asd"]) - 1e-9 <= got["assd"] <= max(got["asd"], back["asd"]) + 1e-9
    scaled = measure(pred, ref, tuple(factor * s for s in spacing))
    assert [scaled[m] for m in DISTANCES] == pytest.approx([factor * got[m] for m in DISTANCES], rel=1e-5)
    worst = next(r.worst for r in evaluate(pred, ref, spacing, {"x": 1}) if r.metric == "hd95")
    assert all(0 <= got[m] < worst for m in DISTANCES)
