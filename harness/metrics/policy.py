"""What an empty mask counts in a mean, and the IoU of a whole data set: the one home of both rules.

Rows of a case are raw: a value where there is one, the worst value, and the status of the two masks. Whatever takes a
mean over rows (the report, validation, `bench score`) asks here what a row counts. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import BenchError
from harness.metrics.table import PROFILES, metric_of


def applies(metric: str, profile: str, status: str) -> bool:
    """Whether a row has a number at all; where it has none, it is left out of the mean and counted.

    Args:
        metric: Name as in the row, `hd95` or `nsd@2`.
        profile: The row's profile; one with numbers of its own for empty masks always has one.
        status: "ok", "both_empty", "pred_empty" or "ref_empty".

    Raises:
        BenchError: The metric is unknown.
    """
    kind = metric_of(metric)[0]
    return kind.unit_kind == "count" or _own(profile) or status not in kind.not_applicable


def policy_value(metric: str, profile: str, value: float | None, worst: float | None, status: str) -> float | None:
    """The number that enters a mean, under the default policy for empty masks.

    | row | number |
    |---|---|
    | a count, or a profile with numbers of its own for empty masks | the value |
    | both masks empty; sensitivity without a reference, precision without a prediction | None, not applicable |
    | any other with a value: all rows of two masks, and Dice 0 or a volume difference where one is empty | the value |
    | one mask empty and no value: distances | the worst value, the image diagonal |

    Args:
        metric: Name as in the row, `hd95` or `nsd@2`.
        profile: The row's profile.
        value: What was measured, or None.
        worst: The metric's bad bound for this image.
        status: "ok", "both_empty", "pred_empty" or "ref_empty".

    Returns:
        The number, or None where the metric is not applicable.

    Raises:
        BenchError: The metric is unknown, or the row lacks the number that the policy asks for.
    """
    if not applies(metric, profile, status):
        return None
    number = worst if value is None and takes_worst(metric, profile, status) else value
    if number is None:
        lacking = "worst" if takes_worst(metric, profile, status) else "value"
        raise BenchError(f"{metric}: status {status} without a number in {lacking!r}; score the case again.")
    return number


def takes_worst(metric: str, profile: str, status: str) -> bool:
    """Whether the worst value stands in where a row has no value: one of the two masks is empty.

    Raises:
        BenchError: The metric is unknown.
    """
    counted = metric_of(metric)[0].unit_kind == "count"
    return status in ("pred_empty", "ref_empty") and not counted and not _own(profile)


def pooled_iou(counts: Iterable[tuple[float, float, float]]) -> float | None:
    """IoU of one class over a data set: TP / (TP + FP + FN) of the counts summed over its cases.

    Args:
        counts: TP, FP and FN of each case.

    Returns:
        The fraction, or None where the class is neither labelled nor predicted in any case.
    """
    tp, fp, fn = (sum(column) for column in zip((0.0, 0.0, 0.0), *counts, strict=True))
    return tp / (tp + fp + fn) if tp + fp + fn else None


def _own(profile: str) -> bool:
    return profile in PROFILES and PROFILES[profile].own_empties
