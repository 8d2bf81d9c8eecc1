"""Rows of a case and means under the default policy, by hand."""

import math
from typing import Any

import numpy as np
import pytest

from harness.data.prepare import Prepared
from harness.evaluation import mean_of, score_case
from harness.records import CASE_COLUMNS

CLASSES = {"bar": 1, "lost": 2, "ghost": 3, "nowhere": 4}
ABOUT = {
    "dataset": "toy",
    "split": "s",
    "fold": None,
    "model": "unet",
    "loss": "dice",
    "seed": 0,
    "patient": "p",
    "case": "c",
}
SHAPE = (3, 4, 12)  # 144 voxels


def _case(spacing: tuple[float, ...] | None) -> tuple[np.ndarray, Prepared]:
    """Bars of 4 voxels along x, one voxel apart; `lost` is only in the reference, `ghost` only in the prediction."""
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[1, 1, 0:4] = 1
    prediction[1, 1, 1:5] = 1
    reference[0, 0, 0:2] = 2
    prediction[2, 3, 9] = 3
    reference[0, 3, 0:6] = 255  # ignored
    prediction[0, 3, 0:3] = 1  # there, it does not count
    case = Prepared("c", np.zeros(0, np.float32), reference, reference, (1.0, 1.0), spacing, (), ())
    return prediction, case


def _rows(
    spacing: tuple[float, ...] | None = (5.0, 1.0, 0.5), metrics: Any = ("dice", "hd95", "asd")
) -> list[dict[str, Any]]:
    return score_case(*_case(spacing), CLASSES, metrics, ABOUT)


def _row(rows: list[dict[str, Any]], name: str, metric: str) -> dict[str, Any]:
    (found,) = [r for r in rows if r["class"] == name and r["metric"] == metric]
    return found


def test_columns_and_order() -> None:
    rows = _rows()
    assert all(set(r) == set(CASE_COLUMNS) for r in rows)
    assert [r["metric"] for r in rows] == ["dice", "hd95", "asd", "tp", "fp", "fn", "tn"] * 4
    assert [r["class"] for r in rows[::7]] == list(CLASSES)
    assert all(r["profile"] == "voxel-max" and {k: r[k] for k in ABOUT} == ABOUT for r in rows)


@pytest.mark.parametrize(("spacing", "unit", "side"), [((5.0, 1.0, 0.5), "mm", 0.5), (None, "voxel", 1.0)])
def test_a_class_in_both_by_hand(spacing: Any, unit: str, side: float) -> None:
    rows = _rows(spacing)
    values = {m: _row(rows, "bar", m)["value"] for m in ("dice", "hd95", "asd", "tp", "fp", "fn", "tn")}
    # 138 voxels are compared: tp x = 1..3, fp x = 4, fn x = 0; dice 2 · 3 / 8
    assert (values["tp"], values["fp"], values["fn"], values["tn"]) == (3, 1, 1, 133)
    assert values["dice"] == pytest.approx(0.75)
    # every voxel is on the surface; distances one way are 0, 0, 0, 1 voxel: mean 1/4, 95th percentile 0.85 of the
    # way from the third to the fourth value (linear)
    assert values["asd"] == pytest.approx(0.25 * side)
    assert values["hd95"] == pytest.approx(0.85 * side)
    assert _row(rows, "bar", "hd95")["unit"] == _row(rows, "bar", "asd")["unit"] == unit
    assert _row(rows, "bar", "dice")["unit"] == "1" and _row(rows, "bar", "tp")["unit"] == "voxels"


@pytest.mark.parametrize(
    ("spacing", "diagonal"),
    [
        ((5.0, 1.0, 0.5), math.sqrt(277)),  # (3 · 5)² + (4 · 1)² + (12 · 0.5)² = 225 + 16 + 36
        (None, 13.0),  # 9 + 16 + 144
    ],
)
def test_empty_masks(spacing: Any, diagonal: float) -> None:
    rows = _rows(spacing)
    for name, status in (("bar", "ok"), ("lost", "pred_empty"), ("ghost", "ref_empty"), ("nowhere", "both_empty")):
        assert {r["status"] for r in rows if r["class"] == name} == {status}
    for name in ("lost", "ghost"):
        assert _row(rows, name, "dice")["value"] == 0
        for metric in ("hd95", "asd"):
            row = _row(rows, name, metric)
            assert row["value"] is None and row["worst"] == pytest.approx(diagonal)
    assert all(_row(rows, "nowhere", m)["value"] is None for m in ("dice", "hd95", "asd"))
    assert _row(rows, "nowhere", "tn")["value"] == 138


def test_means_by_hand() -> None:
    rows = _rows()
    # `nowhere` is left out; `lost` and `ghost` cost 0 and the diagonal
    assert mean_of(rows, "dice") == pytest.approx((0.75 + 0 + 0) / 3)
    assert mean_of(rows, "hd95") == pytest.approx((0.85 * 0.5 + 2 * math.sqrt(277)) / 3)
    assert mean_of(rows, "asd") == pytest.approx((0.25 * 0.5 + 2 * math.sqrt(277)) / 3)


def test_a_mean_is_over_rows_and_a_zero_is_a_value() -> None:
    def row(value: float | None, worst: float, status: str, metric: str = "hd95") -> dict[str, Any]:
        return {"metric": metric, "profile": "area", "value": value, "worst": worst, "status": status}

    rows = [row(0.0, 50, "ok"), row(4.0, 60, "ok"), row(None, 20, "pred_empty"), row(None, 99, "both_empty")]
    assert mean_of([*rows, row(1.0, 0, "ok", "dice")], "hd95") == 8.0  # (0 + 4 + 20) / 3


def test_nothing_to_count_is_none() -> None:
    assert mean_of([], "dice") is None
    assert mean_of(_rows(), "assd") is None  # not measured
    assert mean_of([r for r in _rows() if r["class"] == "nowhere"], "dice") is None


def test_only_the_metrics_asked_for_and_the_counts() -> None:
    assert [r["metric"] for r in _rows(metrics=("dice",))][:5] == ["dice", "tp", "fp", "fn", "tn"]


def test_a_2d_data_set_is_measured_in_its_plane_and_a_volume_of_one_slice_is_not() -> None:
    reference, prediction = np.zeros((1, 20, 30), np.uint8), np.zeros((1, 20, 30), np.uint8)
    reference[0, 5:15, 5:15] = 1
    prediction[0, 5:15, 8:18] = 1  # 3 columns to the right, 0.5 mm each
    case = Prepared("c", np.zeros(0, np.float32), reference, reference, (2.0, 0.5), (7.0, 2.0, 0.5), (), ())
    asked = ("asd", "volume_difference")

    def rows(**more: Any) -> dict[str, dict[str, Any]]:
        return {r["metric"]: r for r in score_case(prediction, case, {"square": 1}, asked, ABOUT, **more)}

    flat, solid = rows(dimensions=2), rows()
    assert flat["volume_difference"]["unit"] == "mm2" and solid["volume_difference"]["unit"] == "mm3"
    assert flat["asd"]["worst"] == pytest.approx(math.hypot(20 * 2.0, 30 * 0.5))
    # In the plane the contour is measured: 36 pixels of the square's rim. Left column 2 · 1.5 mm to nothing nearer than
    # the reference's own rows; as a volume of one slice every voxel is surface, and 7 of 10 columns are at 0.
    assert solid["asd"]["value"] == pytest.approx((10 * (0.5 + 1.0 + 1.5)) / 100)
    rim = [0.0] * 7 * 2 + [0.5, 1.0, 1.5] * 2  # upper and lower row: 7 of 10 on the reference's, 3 beyond its corner
    # left column x = 8 between the rows: 3 columns from the reference's left side and 6 from its right; rows 6 to 13
    # are 1 to 4 rows of 2 mm from the upper or lower side, so the left side is nearest, at 1.5 mm
    rim += [1.5] * 8 + [1.5] * 8
    assert flat["asd"]["value"] == pytest.approx(sum(rim) / len(rim))
    boundary = score_case(prediction, case, {"square": 1}, ["boundary_iou@1"], ABOUT, dimensions=2)[0]
    assert boundary["metric"] == "boundary_iou@1" and boundary["value"] == pytest.approx(14 / (36 + 36 - 14))


def test_regions_are_unions_and_what_is_in_none_is_background() -> None:
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[1, 1, 0:4], reference[1, 2, 0:4], reference[1, 3, 0:4] = 1, 2, 3
    prediction[1, 1, 0:4], prediction[1, 2, 0:4], prediction[1, 3, 0:4] = 2, 1, 3
    case = Prepared("c", np.zeros(0, np.float32), reference, reference, (1.0, 1.0), (1.0, 1.0, 1.0), (), ())
    rows = score_case(prediction, case, {"both": (1, 2), "first": (1,)}, ("dice",), ABOUT)
    # within `both` the classes are swapped, which the union does not see; class 3 is in no region
    assert {r["class"]: r["value"] for r in rows if r["metric"] == "dice"} == {"both": 1.0, "first": 0.0}
    assert [r["value"] for r in rows if r["class"] == "both"][1:] == [8, 0, 0, 144 - 8]


def test_profiles_stand_in_their_rows_and_a_mean_takes_the_first() -> None:
    case = _case((5.0, 1.0, 0.5))
    rows = score_case(*case, CLASSES, ("dice", "hd95"), ABOUT, profiles=("voxel-pooled", "transunet"), engine="points")
    bar = [(r["profile"], r["metric"]) for r in rows if r["class"] == "bar"]
    assert bar[:4] == [("voxel-pooled", "dice"), ("voxel-pooled", "hd95"), ("transunet", "dice"), ("transunet", "hd95")]
    ghost = {r["profile"]: r["value"] for r in rows if r["class"] == "ghost" and r["metric"] == "dice"}
    assert ghost == {"voxel-pooled": 0.0, "transunet": 1.0}
    assert mean_of(rows, "dice") == pytest.approx(0.75 / 3)
    own = [r for r in rows if r["profile"] == "transunet"]
    assert mean_of(own, "dice") == pytest.approx((0.75 + 0 + 1 + 0) / 4)  # both empty: TransUNet's code gives 0


def test_sensitivity_and_precision_leave_out_what_they_cannot_tell() -> None:
    rows = _rows(metrics=("sensitivity", "precision", "volume_difference"))
    assert mean_of(rows, "sensitivity") == pytest.approx((3 / 4 + 0) / 2)  # bar, lost; not ghost
    assert mean_of(rows, "precision") == pytest.approx((3 / 4 + 0) / 2)  # bar, ghost; not lost
    assert mean_of(rows, "volume_difference") == pytest.approx((0 + 2 * 2.5 + 1 * 2.5) / 3)  # a voxel has 2.5 mm³


def test_miou_is_made_of_the_counts_of_all_cases() -> None:
    def counts(name: str, tp: float, fp: float, fn: float) -> list[dict[str, Any]]:
        return [{"metric": m, "class": name, "value": v} for m, v in (("tp", tp), ("fp", fp), ("fn", fn))]

    rows = [*counts("a", 90, 5, 5), *counts("a", 1, 4, 5), *counts("b", 3, 1, 0), *counts("nowhere", 0, 0, 0)]
    assert mean_of(rows, "miou") == pytest.approx((91 / 110 + 3 / 4) / 2)
    assert mean_of([], "miou") is None
