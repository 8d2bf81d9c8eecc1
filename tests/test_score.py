"""Rows of a case and means under the default policy, by hand."""

import math
from typing import Any

import numpy as np
import pytest

from harness.data.prepare import Prepared
from harness.records import CASE_COLUMNS
from harness.score import mean_of, score_case

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
        return {"metric": metric, "value": value, "worst": worst, "status": status}

    rows = [row(0.0, 50, "ok"), row(4.0, 60, "ok"), row(None, 20, "pred_empty"), row(None, 99, "both_empty")]
    assert mean_of([*rows, row(1.0, 0, "ok", "dice")], "hd95") == 8.0  # (0 + 4 + 20) / 3


def test_nothing_to_count_is_none() -> None:
    assert mean_of([], "dice") is None
    assert mean_of(_rows(), "assd") is None  # not measured
    assert mean_of([r for r in _rows() if r["class"] == "nowhere"], "dice") is None


def test_only_the_metrics_asked_for_and_the_counts() -> None:
    assert [r["metric"] for r in _rows(metrics=("dice",))][:5] == ["dice", "tp", "fp", "fn", "tn"]
