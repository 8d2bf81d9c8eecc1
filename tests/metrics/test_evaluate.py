"""Rows, counts, Dice, empty cases, units, bounds, ignored voxels, and what is refused."""

import pickle

import numpy as np
import pytest

from harness.errors import BenchError
from harness.metrics import evaluate
from harness.metrics.checks import UnknownLabel


def table(rows):
    return {(r.class_name, r.metric): r for r in rows}


def values(rows):
    return {(r.class_name, r.metric): r.value for r in rows}


def test_rows_in_order_with_counts_always():
    pred = np.array([[1, 2, 0]])
    rows = evaluate(pred, pred, (1.0, 1.0), {"b": 2, "a": 1}, metrics=["hd95", "dice", "hd95", "fp"])
    assert [(r.class_name, r.metric) for r in rows] == [
        (c, m) for c in "ba" for m in ("hd95", "dice", "fp", "tp", "fn", "tn")
    ]
    assert {r.profile for r in rows} == {"voxel-max"}


def test_counts_and_dice_by_hand():
    ref = np.array([[1, 1, 1, 0], [2, 2, 0, 0]])
    pred = np.array([[1, 1, 2, 0], [2, 0, 0, 1]])
    got = values(evaluate(pred, ref, None, {"one": 1, "two": 2}, metrics=["dice"]))
    # one: both at (0,0), (0,1); predicted only at (1,3); missed at (0,2); the other 4 of 8 are true negatives
    assert [got["one", m] for m in ("tp", "fp", "fn", "tn")] == [2, 1, 1, 4]
    assert got["one", "dice"] == 4 / 6  # 2·2 / (2·2 + 1 + 1)
    # two: both at (1,0); predicted only at (0,2); missed at (1,1)
    assert [got["two", m] for m in ("tp", "fp", "fn", "tn")] == [1, 1, 1, 5]
    assert got["two", "dice"] == 0.5  # 2·1 / (2·1 + 1 + 1)


def test_counts_of_random_volumes_against_masks():
    rng = np.random.default_rng(0)
    pred, ref = rng.integers(0, 5, (2, 4, 6, 7))
    labels = {f"c{i}": i for i in range(5)}  # background among them
    got = values(evaluate(pred, ref, None, labels, metrics=["dice"]))
    for name, i in labels.items():
        p, r = pred == i, ref == i
        assert [got[name, m] for m in ("tp", "fp", "fn", "tn")] == [
            (p & r).sum(), (p & ~r).sum(), (~p & r).sum(), (~p & ~r).sum(),
        ]  # fmt: skip
        assert got[name, "dice"] == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()), abs=1e-15)


@pytest.mark.parametrize(
    ("pred_label", "ref_label", "status", "dice"),
    [(1, 1, "ok", 1.0), (0, 1, "pred_empty", 0.0), (1, 0, "ref_empty", 0.0), (0, 0, "both_empty", None)],
)
def test_empty_masks(pred_label, ref_label, status, dice):
    pred, ref = np.zeros((2, 3, 4, 5), np.uint8)
    pred[1, 1, 1], ref[1, 1, 1] = pred_label, ref_label
    rows = table(evaluate(pred, ref, (3.0, 2.0, 1.0), {"organ": 1}))
    assert {r.status for r in rows.values()} == {status}
    assert rows["organ", "dice"].value == dice
    for metric in ("hd95", "asd", "assd"):
        assert rows["organ", metric].value == (0.0 if status == "ok" else None)
        # 3 x 4 x 5 voxels of 3 x 2 x 1 mm: sides 9, 8, 5; sqrt(81 + 64 + 25) = sqrt(170)
        assert rows["organ", metric].worst == pytest.approx(170**0.5, abs=1e-12)
    counts = [rows["organ", m].value for m in ("tp", "fp", "fn", "tn")]
    p, r = pred_label, ref_label
    assert counts == [p * r, p * (1 - r), r * (1 - p), 60 - max(p, r)]


def test_one_class_empty_does_not_touch_another():
    ref = np.array([[1, 0, 2]])
    pred = np.array([[1, 0, 0]])
    got = table(evaluate(pred, ref, (1.0, 1.0), {"a": 1, "b": 2, "c": 3}))
    assert [got[c, "hd95"].status for c in "abc"] == ["ok", "pred_empty", "both_empty"]
    assert [got[c, "hd95"].value for c in "abc"] == [0.0, None, None]


# 5 x 4 voxels: sides 5 mm and 12 mm, so 13 mm; or, in voxels, sqrt(25 + 16)
@pytest.mark.parametrize(("spacing", "unit", "diagonal"), [((1.0, 3.0), "mm", 13.0), (None, "voxel", 41**0.5)])
def test_units_and_worst(spacing, unit, diagonal):
    pred = np.zeros((5, 4), int)
    pred[2, 2] = 1
    rows = table(evaluate(pred, pred, spacing, {"x": 1}))
    got = {m: (rows["x", m].unit, rows["x", m].worst) for m in ("dice", "hd95", "asd", "assd", "tp", "fp", "fn", "tn")}
    assert got["dice"] == ("1", 0.0)
    assert got["hd95"] == got["asd"] == got["assd"] == (unit, pytest.approx(diagonal, abs=1e-12))
    assert got["tp"] == got["tn"] == ("voxels", 0.0)
    assert got["fp"] == got["fn"] == ("voxels", 20.0)


def test_distance_in_voxels_without_spacing():
    pred, ref = np.zeros((2, 1, 9), int)
    pred[0, 1] = ref[0, 5] = 1
    assert values(evaluate(pred, ref, None, {"x": 1}))["x", "hd95"] == 4.0


def test_ignored_reference_voxels_leave_both_masks():
    ref = np.array([[1, 1, 0, 255, 255, 0]])
    pred = np.array([[1, 0, 0, 1, 2, 255]])
    rows = evaluate(pred, ref, (1.0, 1.0), {"a": 1, "b": 2}, ignore=255)
    got = values(rows)
    # compared: columns 0, 1, 2, 5. a: hit at 0, missed at 1. The prediction of 1 at column 3 does not exist.
    assert [got["a", m] for m in ("tp", "fp", "fn", "tn")] == [1, 0, 1, 2]
    # surfaces: prediction {0}, reference {0, 1}: 0 and {0, 1}; with column 3 the first mean would be 1
    assert got["a", "asd"] == 0.0
    assert got["a", "assd"] == pytest.approx(1 / 3)
    # b is predicted at an ignored voxel only
    assert table(rows)["b", "dice"].status == "both_empty"
    assert table(rows)["a", "fp"].worst == 4.0


def test_ignoring_is_the_same_as_clearing_both_masks():
    rng = np.random.default_rng(3)
    pred, ref = rng.integers(0, 3, (2, 5, 6, 7))
    ref[rng.random(ref.shape) < 0.3] = 7
    cleared = [np.where(ref == 7, 0, x) for x in (pred, ref)]
    labels, spacing = {"a": 1, "b": 2}, (2.0, 1.0, 0.5)
    got = values(evaluate(pred, ref, spacing, labels, ignore=7))
    want = values(evaluate(*cleared, spacing, labels))
    for key in got:
        assert got[key] == want[key] - (ref == 7).sum() * (key[1] == "tn"), key


def test_ignored_background():
    ref, pred = np.array([[0, 0, 1, 2]]), np.array([[1, 0, 1, 1]])
    got = values(evaluate(pred, ref, None, {"a": 1, "b": 2}, metrics=["dice"], ignore=0))
    assert [got["a", m] for m in ("tp", "fp", "fn", "tn")] == [1, 1, 0, 0]  # columns 2 and 3 are compared


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", ">i2", "u4", "i8", "u8"])
def test_integer_types_and_memory_order(dtype):
    rng = np.random.default_rng(5)
    pred, ref = rng.integers(0, 3, (2, 4, 5, 6))
    want = evaluate(pred, ref, (2.0, 1.0, 1.0), {"a": 1, "b": 2})
    assert evaluate(pred.astype(dtype), np.asfortranarray(ref), (2.0, 1.0, 1.0), {"a": 1, "b": 2}) == want


def test_boolean_masks_read_only_and_untouched():
    pred, ref = np.random.default_rng(6).random((2, 4, 5, 6)) > 0.5
    want = evaluate(pred.astype(int), ref.astype(int), None, {"a": 1})
    pred.setflags(write=False)
    assert evaluate(pred, ref, None, {"a": 1}) == want


def test_large_label_values():
    pred, ref = np.zeros((2, 3, 8), np.uint16)
    pred[1, 1] = ref[1, 3] = 65535
    assert values(evaluate(pred, ref, (1.0, 2.0), {"x": 65535}))["x", "hd95"] == 4.0


OK = np.array([[0, 1, 2]])
GOOD = {"pred": OK, "ref": OK, "spacing": (1.0, 1.0), "labels": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": OK.T}, r"prediction has shape \(3, 1\) and the reference \(1, 3\)"),
        ({"pred": OK.astype(float)}, "prediction has dtype float64"),
        ({"ref": OK.astype(np.float32)}, "reference has dtype float32"),
        ({"ref": OK.tolist()}, "reference is a list"),
        ({"pred": OK[0], "ref": OK[0]}, r"shape \(3,\), expected 2 or 3 axes"),
        ({"pred": OK[None, None], "ref": OK[None, None]}, "expected 2 or 3 axes"),
        ({"pred": OK[:0], "ref": OK[:0]}, "no voxels"),
        ({"pred": OK - 1}, "prediction holds the negative label -1"),
        ({"ref": np.array([[0, 9, 2]])}, "reference holds label 9"),
        ({"pred": np.array([[0, 2**40, 2]])}, f"prediction holds label {2**40}"),
        (
            {"labels": {"b": 2}},
            r"prediction holds label 1.*background \(0\) nor a class \(b=2\); add it to the labels or pass it as ignore\.$",
        ),
        ({"labels": {"b": 2}, "pred": OK * 0}, "reference holds label 1"),
        ({"pred": np.array([[0, 3, 2]]), "ref": np.array([[0, 255, 2]]), "ignore": 255}, "prediction holds label 3"),
        ({"labels": {}}, "labels is empty"),
        ({"labels": {"a": 1, "b": 1}}, "'a' and 'b' share label 1"),
        ({"labels": {"a": 1.0, "b": 2}}, "class 'a' has label 1.0"),
        ({"labels": {"a": -1, "b": 2}}, "class 'a' has label -1"),
        ({"labels": {"a": True, "b": 2}}, "class 'a' has label True"),
        ({"labels": {"a": 1, "b": 65536}}, r"expected an integer in 0\.\.65535"),
        ({"ignore": 2}, "label 2 is both ignored and class 'b'"),
        ({"ignore": -1}, "ignore has label -1"),
        ({"spacing": (1.0, float("nan"))}, "not finite and positive"),
        ({"spacing": (1.0, float("inf"))}, "not finite and positive"),
        ({"spacing": (0.0, 1.0)}, "not finite and positive"),
        ({"spacing": (1.0, -1.0)}, "not finite and positive"),
        ({"spacing": (1.0, 1.0, 1.0)}, "has 3 numbers for 2 axes"),
        ({"spacing": "mm"}, "expected 2 numbers in mm or None"),
        ({"spacing": 1.0}, "expected 2 numbers in mm or None"),
        ({"metrics": ["dice", "hd59"]}, r"unknown metric 'hd59' \(did you mean 'hd95'\?\)"),
        ({"metrics": "dice"}, "metrics is the string 'dice'"),
        ({"profile": "voxel-mix"}, r"unknown profile 'voxel-mix' \(did you mean 'voxel-max'\?\)"),
    ],
)
def test_refused_in_one_sentence(change, message):
    with pytest.raises(BenchError, match=message) as error:
        evaluate(**(GOOD | change))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_an_unknown_label_goes_between_processes():
    with pytest.raises(UnknownLabel) as error:
        evaluate(**GOOD | {"labels": {"b": 2}})
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.label) == (str(error.value), 1)


def test_the_good_case_is_good():
    assert evaluate(**GOOD)


@pytest.mark.parametrize("engine", ["simpleitk", "points"])
@pytest.mark.parametrize("profile", ["voxel-max", "area"])
def test_a_tolerance_that_is_a_multiple_of_the_spacing_includes_its_distance(engine, profile):
    for side, steps in ((0.1, 3), (0.7, 3), (0.71, 5), (1.37, 7), (0.1, 6)):
        pred, ref = np.zeros((2, 4, 4, 20), np.uint8)
        pred[1:3, 1:3, 2:4] = 1
        ref[1:3, 1:3, 2 + steps : 4 + steps] = 1
        tolerance = f"nsd@{round(side * steps, 9)}"  # 3 · 0.1 is 0.30000000000000004
        below = f"nsd@{round(side * steps * 0.99, 9)}"
        got = values(evaluate(pred, ref, (side,) * 3, {"x": 1}, profile, metrics=[tolerance, below], engine=engine))
        assert got["x", tolerance] == 1.0, (side, steps)
        assert got["x", below] < 1.0
