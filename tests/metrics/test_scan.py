"""The pass over the two volumes: joint histogram and surface voxels, against loops over voxels."""

import numpy as np
import pytest
from definitions import surface_voxels

from harness.metrics.overlap import counts_of
from harness.metrics.scan import Classes, scan

PLAIN = {"a": (1,), "b": (2,), "c": (3,)}
REGIONS = {"whole": (1, 2, 3), "core": (3, 1), "two": (2,), "core again": (1, 3, 2, 9)}
GAPS = {"x": (7,), "y": (300,), "z": (9,)}


def check(pred, ref, labels, ignore=None):
    """Every number of a scan against its definition."""
    classes = Classes.of(labels, ignore)
    found = scan(pred, ref, classes, True)
    values = sorted({0, *(v for known in labels.values() for v in known)} | ({ignore} - {None}))
    joint = np.array([[((pred == p) & (ref == r)).sum() for r in values] for p in values])
    assert np.array_equal(found.joint[:-1, :-1], joint)
    assert found.joint.sum() == pred.size
    assert len(found.clouds) == len(labels)
    kept = np.ones(ref.shape, bool) if ignore is None else ref != ignore
    counts = counts_of(found, classes)
    for number, (name, members) in enumerate(labels.items()):
        masks = [np.isin(volume, members) & kept for volume in (pred, ref)]
        for mask, cloud in zip(masks, found.clouds[number], strict=True):
            points = surface_voxels(mask)
            want = np.ravel_multi_index(points.T, mask.shape) if len(points) else []
            assert np.array_equal(cloud, np.sort(want)), (name, ignore)
        p, r = masks
        got = counts[number]
        assert (got.tp, got.fp, got.fn) == ((p & r).sum(), (p & ~r).sum(), (~p & r).sum()), name
        assert got.tn == (~p & ~r & kept).sum()
    assert scan(pred, ref, classes, False).clouds == []


def volumes(shape, values, seed, empty=0.3):
    rng = np.random.default_rng(seed)
    pair = rng.choice(values, (2, *shape))
    coarse = rng.choice(values, (2, *(-(-n // 3) for n in shape)))  # objects of 3 voxels a side, so some are inside
    for axis, n in enumerate(shape, start=1):
        coarse = coarse.repeat(3, axis).take(range(n), axis)
    pair = np.where(rng.random(pair.shape) < 0.15, pair, coarse)
    pair[:, rng.random(shape[0]) < empty] = 0  # slices without a label
    return pair


@pytest.mark.parametrize("shape", [(9, 14, 13), (1, 8, 9), (7, 1, 9), (5, 6, 1), (10, 12), (1, 11), (1, 1, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_plain_labels_regions_and_gaps(shape, seed):
    check(*volumes(shape, [0, 1, 2, 3], seed), PLAIN)
    check(*volumes(shape, [0, 1, 2, 3, 9], seed), REGIONS)
    check(*volumes(shape, [0, 7, 9, 300], seed), GAPS)
    check(*volumes(shape, [0, 1, 2], seed).astype(np.uint8), {"b": (2,), "a": (1,)})  # in another order


@pytest.mark.parametrize("background", [{"bg": (0,)}, {"a": (1,), "bg and b": (0, 2)}])
def test_background_as_a_class_has_a_surface_everywhere(background):
    for seed in range(3):
        check(*volumes((6, 9, 8), [0, 1, 2], seed) * (seed != 2), {"rest": (1, 2), **background})


@pytest.mark.parametrize("ignore", [0, 5, 255, 40000])
def test_ignored_voxels_belong_to_no_mask(ignore):
    for seed, labels in enumerate((PLAIN, REGIONS)):
        pred, ref = volumes((6, 9, 8), [0, 1, 2, 3, 9] if labels is REGIONS else [0, 1, 2, 3], seed)
        ref[np.random.default_rng(seed).random(ref.shape) < 0.2] = ignore
        pred[0, 0, 0] = ignore  # allowed in a prediction, and no class
        check(pred, ref, labels, ignore)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", ">i2", ">u2", "u4", "i8", "u8"])
def test_types_and_memory_orders(dtype):
    pred, ref = volumes((6, 9, 8), [0, 1, 2, 3], 0)
    want = scan(pred, ref, Classes.of(PLAIN, None), True)
    for p in (pred.astype(dtype), np.asfortranarray(pred.astype(dtype)), pred.astype(dtype)[:, ::-1][:, ::-1]):
        got = scan(p, ref.astype(dtype), Classes.of(PLAIN, None), True)
        assert np.array_equal(got.joint, want.joint)
        assert all(
            np.array_equal(a, b)
            for x, y in zip(got.clouds, want.clouds, strict=True)
            for a, b in zip(x, y, strict=True)
        )


def test_unknown_values_are_counted_apart():
    pred, ref = np.array([[0, 1, 2, 4]], np.uint8), np.array([[4, 1, 3, 4]], np.uint8)
    joint = scan(pred, ref, Classes.of({"a": (1,), "d": (4,)}, None), True).joint
    # codes 0, 1 → 1, 4 → 2, unknown 3; rows: prediction
    assert joint.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_many_classes_need_16_bits():
    values = np.arange(400).reshape(20, 20)
    labels = {f"c{i}": (i,) for i in range(1, 400)}
    check(values, values.T.copy(), labels)


def test_overlapping_regions_lie_in_layers_of_their_own():
    classes = Classes.of(REGIONS, None)
    assert [sorted(set(layer.tolist()) - {0}) for layer in classes.layers] == [[1], [2, 3], [4]]
    assert len(Classes.of(PLAIN, 255).layers) == 1
