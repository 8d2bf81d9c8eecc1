"""The compiled engine: surfaces voxel by voxel from the definition, distances by brute force, and where numba keeps its code."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

pytest.importorskip("numba")

from harness.metrics import accelerated, evaluate, kernels
from harness.metrics.scan import Classes
from harness.metrics.surface import Grid

ORGANS = {"a": (1,), "b": (2,), "c": (3,)}
REGIONS = {"whole": (1, 2, 3), "core": (1, 3), "edge": (3,), "other": (5,)}


def plain_scan(pred, ref, classes, labels, ignore):
    """The definition, voxel by voxel."""
    joint = np.zeros((classes.size + 1,) * 2, np.int64)
    for p, r in zip(pred.ravel().tolist(), ref.ravel().tolist(), strict=True):
        joint[classes.lut[int(p)], classes.lut[int(r)]] += 1
    clouds = []
    for values in labels.values():
        both = []
        for volume in (pred, ref):
            mask = np.isin(volume, values)
            if ignore is not None:
                mask &= ref != ignore
            cloud = []
            for voxel in np.argwhere(mask):
                neighbours = [
                    voxel + step * np.eye(mask.ndim, dtype=int)[axis] for axis in range(mask.ndim) for step in (-1, 1)
                ]
                if any((n < 0).any() or (n >= mask.shape).any() or not mask[tuple(n)] for n in neighbours):
                    cloud.append(np.ravel_multi_index(tuple(voxel), mask.shape))
            both.append(np.array(cloud, int))
        clouds.append(both)
    return joint, clouds


def check_scan(pred, ref, labels, ignore=None):
    classes = Classes.of(labels, ignore)
    joint, clouds = plain_scan(np.array(pred), np.array(ref), classes, labels, ignore)
    found = accelerated.scan(pred, ref, classes, True)
    np.testing.assert_array_equal(found.joint, joint)
    assert len(found.clouds) == len(labels)
    for measured, expected in zip(found.clouds, clouds, strict=True):
        for cloud, plain in zip(measured, expected, strict=True):
            assert cloud.dtype == np.intp
            np.testing.assert_array_equal(cloud, plain)
    without = accelerated.scan(pred, ref, classes, False)
    np.testing.assert_array_equal(without.joint, joint)
    assert without.clouds == []


def random_pair(shape, values, seed, share=0.5):
    """Lumps of labels, so that there are insides as well as surfaces."""
    rng = np.random.default_rng(seed)
    small = [-(-n // 3) for n in shape]
    pair = []
    for _ in range(2):
        volume = rng.choice(values, small) * (rng.random(small) < share)
        for axis in range(len(shape)):
            volume = volume.repeat(3, axis)
        volume = volume[tuple(slice(n) for n in shape)].copy()
        noise = rng.random(shape) < 0.02
        volume[noise] = rng.choice([0, *values], noise.sum())
        pair.append(volume.astype(np.uint8))
    return pair


SHAPES = [
    (7, 11, 13),
    (5, 6, 64),
    (3, 4, 201),
    (1, 1, 1),
    (1, 9, 8),
    (9, 1, 8),
    (9, 8, 1),
    (4, 3, 128),
    (13, 17),
    (1, 30),
    (30, 1),
    (5, 300),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("labels", [ORGANS, REGIONS, {"background": (0,), "rest": (1, 2, 3, 5)}, {"a": (2,)}])
def test_scan_is_the_definition(shape, labels):
    pred, ref = random_pair(shape, [1, 2, 3, 5] if (5,) in labels.values() else [1, 2], seed=len(shape) + shape[-1])
    top = max(v for values in labels.values() for v in values)
    check_scan(np.minimum(pred, top), np.minimum(ref, top), labels)


@pytest.mark.parametrize("ignore", [0, 4, 255])
@pytest.mark.parametrize("labels", [ORGANS, REGIONS])
def test_ignored_voxels_belong_to_no_mask(labels, ignore):
    pred, ref = random_pair((6, 9, 70), [1, 2, 3], seed=ignore, share=0.8)
    ref[2:4, 3:6, 10:50] = ignore
    pred[3:5, 4:7, 20:60] = ignore  # of no class in a prediction either
    check_scan(pred, ref, labels, ignore)


@pytest.mark.parametrize("values", [(0, 3, 6), (0, 7, 900)])
def test_unknown_values_are_counted_apart(values):
    rng = np.random.default_rng(1)
    pred, ref = rng.integers(0, values[2] + 1, (2, 5, 6, 33)).astype(np.uint16)
    check_scan(pred, ref, {"a": values[1:2], "b": values[2:]})


@pytest.mark.parametrize("count", [254, 255, 256, 300])
def test_many_classes(count):
    rng = np.random.default_rng(count)
    pred, ref = rng.integers(0, count + 1, (2, 4, 16, 20)).astype(np.uint16)
    check_scan(pred, ref, {str(v): (v,) for v in range(1, count + 1)})
    check_scan(pred, ref, {**{str(v): (v,) for v in range(1, count)}, "all": tuple(range(1, count + 1))}, ignore=0)


def test_every_label_of_eight_bits_is_a_class_and_one_is_background():
    pred, ref = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 20)).astype(np.uint8)
    check_scan(pred, ref, {str(v): (v,) for v in range(256)})


ORDERS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "reversed": lambda v: np.ascontiguousarray(v[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "strided": lambda v: np.repeat(v, 2, axis=2)[:, :, ::2],
    "not aligned": lambda v: np.frombuffer(b"x" * v.itemsize + v.tobytes(), v.dtype)[1:].reshape(v.shape),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "u2", "i2", ">i2", "i4", "u4", "i8", ">u8"])
def test_types_and_memory_orders(dtype, order):
    pair = [v.astype(dtype) for v in random_pair((5, 7, 19), [1] if dtype == "bool" else [1, 2, 3], seed=4)]
    pred, ref = map(ORDERS[order], pair)
    assert pred.tolist() == pair[0].tolist()
    before = pred.copy()
    check_scan(pred, ref, ORGANS)
    np.testing.assert_array_equal(pred, before)
    check_scan(pred, pair[1].astype(np.int32), REGIONS)  # two types in one call


@pytest.mark.parametrize("block", [1, 200, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_parts_join_without_a_seam(monkeypatch, block, dtype):
    monkeypatch.setattr(accelerated, "BLOCK", block)
    pred, ref = (v.astype(dtype) for v in random_pair((11, 7, 13), [1, 2, 3], seed=block))
    check_scan(pred, ref, ORGANS)
    check_scan(pred, ref, REGIONS, ignore=0)
    check_scan(pred[4], ref[4], ORGANS)


def test_memory_that_is_odd_or_must_not_be_written_to_compiles_nothing_anew():
    pred, ref = random_pair((6, 8, 40), [1, 2, 3], seed=9)
    pred.flags.writeable = ref.flags.writeable = False
    check_scan(pred, ref, ORGANS)
    check_scan(pred.copy(), ref.copy(), ORGANS)
    check_scan(ORDERS["not aligned"](pred), ORDERS["not aligned"](ref), ORGANS)
    # at most one for 8 and one for 16 bits, whatever ran before
    assert len(kernels.count.signatures) <= 2
    assert len(kernels.surface.signatures) <= 2


@settings(max_examples=60)
@given(st.data())
def test_scan_on_random_volumes(data):
    shape = (*data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=2).map(tuple)), data.draw(st.integers(1, 140)))
    seed = data.draw(st.integers(0, 2**32))
    pred, ref = random_pair(shape, [1, 2, 3], seed, data.draw(st.floats(0, 1)))
    labels = data.draw(st.sampled_from([ORGANS, REGIONS, {"b": (2,)}]))
    ignore = data.draw(st.sampled_from([None, 0, 7]))
    top = max(ignore or 0, *(v for values in labels.values() for v in values))  # higher values are refused before
    check_scan(np.minimum(pred, top), np.minimum(ref, top), labels, ignore)


# ---------------------------------------------------------------- distances

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.8, 0.8, 3.0), (0.3, 7.0, 0.5), (1e-9, 1.0, 1e6), (1e6, 1.0, 1e-9), (1.0, 1e-9, 1e6), (1e-9,) * 3, (1e6,) * 3, (1e-160, 1e-160, 1e-160), (1e200, 1e200, 2e200)]  # fmt: skip


def cloud(grid, mask_or_points):
    points = np.argwhere(mask_or_points) if mask_or_points.dtype == bool else mask_or_points
    return np.unique(np.ravel_multi_index(tuple(points.T), grid.shape))


def points_of(cloud, grid):
    """Coordinates in units of the largest spacing, so that their squares are numbers too."""
    return np.stack(np.unravel_index(cloud, grid.shape), 1) * (np.array(grid.spacing) / max(grid.spacing))


def check_distances(pred, ref, grid):
    found = accelerated.distances(pred, ref, grid)
    for a, b, measured in ((pred, ref, found.pred_to_ref), (ref, pred, found.ref_to_pred)):
        assert measured.dtype == np.float64
        x, y = points_of(a, grid), points_of(b, grid)
        if x.shape[0] * y.shape[0] < 4e6:
            expected = np.concatenate([cdist(part, y).min(1) for part in np.array_split(x, 1 + len(x) // 1000)])
        else:
            expected = cKDTree(y).query(x)[0]
        np.testing.assert_allclose(measured / max(grid.spacing), expected, rtol=1e-12, atol=0)


def shell(shape, centre, radii):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1
    inner = sum(((a - c) / (r - 1.0)) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1
    return inside & ~inner


def scenes():
    rng = np.random.default_rng(0)
    shape = (20, 60, 150)
    full = np.ones(shape, bool)
    inner = full.copy()
    inner[1:-1, 1:-1, 1:-1] = False
    line = {axis: np.zeros(shape, bool) for axis in range(3)}
    line[0][:, 30, 70] = line[1][10, :, 70] = line[2][10, 30, :] = True
    corner, other = np.zeros(shape, bool), np.zeros(shape, bool)
    corner[0, 0, 0] = other[-1, -1, -1] = True
    ball = shell(shape, (9, 30, 70), (6, 18, 25))
    moved = shell(shape, (10, 33, 66), (6, 17, 27))
    islands = moved.copy()
    islands[0:2, 0:3, 0:4] = islands[17:19, 50:55, 140:148] = True
    yield "shells", ball, moved
    yield "islands", ball, islands
    yield "islands in both", islands[::-1, ::-1, ::-1], islands
    yield "identical", ball, ball
    yield "single voxels, corner to corner", corner, other
    yield "a voxel and a shell", corner, ball
    yield "a voxel and all others", corner, full & ~corner
    yield "border and centre", inner, np.pad(np.ones((2, 2, 2), bool), [(9, 9), (29, 29), (74, 74)])
    yield "border and line", inner, line[2]
    for a, b in itertools.combinations(range(3), 2):
        yield f"lines {a} {b}", line[a], line[b]
    yield "parallel lines", line[2], np.roll(line[2], (7, 23), (0, 1))
    yield "parallel lines end to end", line[2] & (np.arange(150) < 20), line[2] & (np.arange(150) > 130)
    yield "far sets", rng.random(shape) < 0.2 * (np.arange(150) < 30), rng.random(shape) < 0.2 * (np.arange(150) > 110)
    yield "dense noise", rng.random(shape) < 0.1, rng.random(shape) < 0.1
    yield "sparse noise", rng.random(shape) < 0.0005, rng.random(shape) < 0.0005
    yield "sparse and dense", rng.random(shape) < 0.0005, rng.random(shape) < 0.1


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("scene", list(scenes()), ids=lambda s: s[0])
def test_distances_are_those_of_brute_force(scene, spacing):
    _, pred, ref = scene
    grid = Grid(pred.shape, spacing)
    check_distances(cloud(grid, pred), cloud(grid, ref), grid)


@pytest.mark.parametrize("shape", [(1, 400, 300), (1, 1, 700), (1, 700, 1), (700, 1, 1), (1, 1, 1), (1, 3, 2000)])
def test_images_and_lines(shape):
    rng = np.random.default_rng(3)
    for share in (0.001, 0.05, 1.0):
        pred, ref = (
            np.sort(rng.choice(np.prod(shape), max(1, int(share * np.prod(shape) / 4)), False)) for _ in range(2)
        )
        check_distances(pred, ref, Grid(shape, (1.0, 0.7, 1.3)))


@pytest.mark.parametrize("window", range(60, 70))
def test_a_row_across_words(window):
    """Points of one row, and of the next, at every place in a word and just within and beyond its reach."""
    grid = Grid((1, 2, 300), (1.0, 1.0, 1.0))
    for gap in (0, 1, 15, 16, 17, 18, 31, 32, 33, 63, 64, 65, 100):
        check_distances(np.array([window]), np.array([window + gap, 300 + window + gap + 1]), grid)
        check_distances(np.array([window + 120]), np.array([window + 120 - gap, 300 + window + 119 - gap]), grid)


@settings(max_examples=150)
@given(st.data())
def test_distances_on_random_clouds(data):
    shape = tuple(data.draw(st.tuples(*[st.sampled_from([1, 2, 5, 17, 40, 120])] * 3)))
    spacing = tuple(data.draw(st.tuples(*[st.sampled_from([1e-9, 0.1, 0.8, 1.0, 3.0, 50.0, 1e6])] * 3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    clouds = []
    for _ in range(2):
        low = [data.draw(st.integers(0, n - 1)) for n in shape]
        size = [data.draw(st.integers(1, n - a)) for n, a in zip(shape, low, strict=True)]
        points = rng.integers(low, np.add(low, size), (data.draw(st.integers(1, 400)), 3))
        clouds.append(cloud(Grid(shape, spacing), points))
    check_distances(*clouds, Grid(shape, spacing))


def test_most_points_far_and_most_boxes_left_out():
    shape = (40, 160, 160)
    pred, ref = shell(shape, (12, 40, 40), (10, 38, 36)), shell(shape, (28, 115, 110), (11, 42, 45))
    grid = Grid(shape, (2.5, 0.8, 0.8))
    check_distances(cloud(grid, pred), cloud(grid, ref), grid)


# ---------------------------------------------------------------- the engine


@pytest.mark.parametrize("engine", ["simpleitk", "points"])
@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.8), None])
def test_the_same_rows_as_the_other_engines(engine, spacing):
    pred, ref = random_pair((9, 40, 44), [1, 2, 3], seed=2, share=0.3)
    ref[:, :, :5] = 9
    options = {"metrics": ("dice", "hd", "hd95", "asd", "assd", "masd", "nsd@1"), "ignore": 9}
    for labels in ({n: v[0] for n, v in ORGANS.items()}, {n: v for n, v in REGIONS.items() if n != "other"}):
        rows = evaluate(pred, ref, spacing, labels, engine="points-numba", **options)
        others = evaluate(pred, ref, spacing, labels, engine=engine, **options)
        assert [(r.class_name, r.metric, r.status) for r in rows] == [
            (r.class_name, r.metric, r.status) for r in others
        ]
        close = 1e-4 if engine == "simpleitk" else 1e-12  # SimpleITK computes in float32
        assert [r.value for r in rows] == pytest.approx([r.value for r in others], rel=close)


def test_importing_the_metrics_does_not_import_numba():
    code = "import sys, harness.metrics, harness.metrics.engines; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_code_is_kept_between_processes(tmp_path):
    code = (
        "import numpy as np; from harness.metrics import accelerated, kernels; from harness.metrics.surface import Grid;"
        "accelerated.distances(np.array([0]), np.array([5]), Grid((1, 1, 9), (1., 1., 1.)));"
        "s = kernels.near.stats; print(sum(s.cache_hits.values()), sum(s.cache_misses.values()))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [[b"0", b"1"], [b"1", b"0"]]


def test_without_a_folder_for_its_code_a_function_is_compiled_all_the_same():
    space = {}
    exec("def twice(x):\n    return 2 * x\n", space)  # numba finds no file beside which it could keep this one
    function = kernels.compiled(space["twice"])
    assert function(21) == 42
    assert sum(function.stats.cache_hits.values()) == 0 and function.stats.cache_path is None
