"""The policy for empty masks: what a row counts in a mean, for every status and kind of metric."""

import pytest

from harness.errors import BenchError
from harness.metrics.policy import applies, policy_value, pooled_iou
from harness.metrics.table import METRICS


@pytest.mark.parametrize(
    ("metric", "profile", "value", "worst", "status", "expected"),
    [
        ("dice", "voxel-max", 0.7, 0.0, "ok", 0.7),
        ("dice", "voxel-max", 0.0, 0.0, "pred_empty", 0.0),
        ("dice", "voxel-max", None, 0.0, "both_empty", None),
        ("dice", "transunet", 1.0, 0.0, "ref_empty", 1.0),
        ("dice", "transunet", 0.0, 0.0, "both_empty", 0.0),
        ("hd95", "mist2023", 91.0, 90.0, "pred_empty", 91.0),
        ("hd95", "area", None, 90.0, "pred_empty", 90.0),
        ("hd95", "area", None, 90.0, "ref_empty", 90.0),
        ("hd95", "area", None, 90.0, "both_empty", None),
        ("nsd@2", "voxel-max", None, 0.0, "ref_empty", 0.0),
        ("sensitivity", "voxel-max", None, 0.0, "ref_empty", None),
        ("sensitivity", "voxel-max", 0.0, 0.0, "pred_empty", 0.0),
        ("precision", "voxel-max", None, 0.0, "pred_empty", None),
        ("precision", "voxel-max", 0.0, 0.0, "ref_empty", 0.0),
        ("specificity", "voxel-max", 0.9, 0.0, "ref_empty", 0.9),
        ("volume_difference", "voxel-max", 12.0, 900.0, "pred_empty", 12.0),
        ("volume_difference", "voxel-max", 0.0, 900.0, "both_empty", None),
        ("tn", "voxel-max", 100.0, 0.0, "both_empty", 100.0),
    ],
)
def test_what_a_row_counts(metric, profile, value, worst, status, expected) -> None:
    assert policy_value(metric, profile, value, worst, status) == expected


def test_a_row_without_its_number_is_refused() -> None:
    with pytest.raises(BenchError, match="asd: status ok without a number in 'value'"):
        policy_value("asd", "voxel-max", None, 90.0, "ok")
    with pytest.raises(BenchError, match="asd: status pred_empty without a number in 'worst'"):
        policy_value("asd", "voxel-max", None, None, "pred_empty")


def test_every_metric_of_a_case_applies_where_both_masks_are_there_and_nowhere_where_both_are_empty() -> None:
    for name, metric in METRICS.items():
        asked = name + ("@2" if metric.parameter == "required" else "")
        assert applies(asked, "voxel-max", "ok")
        assert applies(asked, "voxel-max", "both_empty") is (metric.unit_kind == "count")


def test_the_pooled_iou_is_that_of_the_sums() -> None:
    assert pooled_iou([(90, 5, 5), (1, 4, 5)]) == pytest.approx(91 / 110)
    assert pooled_iou([(0, 0, 3)]) == 0.0
    assert pooled_iou([(0, 0, 0)]) is None and pooled_iou([]) is None
