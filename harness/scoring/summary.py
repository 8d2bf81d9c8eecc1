"""Means over cases and over classes of what was measured in two folders, under the policy for empty masks."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.metrics.policy import policy_value, pooled_iou
from harness.metrics.table import COUNTS, Row, metric_of
from harness.scoring.folders import Scores


@dataclass(frozen=True)
class Mean:
    """One metric of one class over the cases, or of all classes.

    Attributes:
        class_name: None for the mean over classes.
        metric: Name as in the rows.
        profile: Name as in the rows.
        unit: As in the rows; fractions are 0 to 1.
        n: Cases that count; both masks empty is not applicable and does not.
        mean: Of a class, over the cases; of all classes, the mean of the classes' means. None where nothing counts.
        sd: Sample standard deviation over the cases; of all classes, of each case's mean over its classes. None for
            fewer than two cases, and for a metric of a whole data set.
        pred_empty: Cases in which only the prediction is empty; of all classes, their sum.
        ref_empty: The same for the reference.
        both_empty: The same for both.
    """

    class_name: str | None
    metric: str
    profile: str
    unit: str
    n: int
    mean: float | None
    sd: float | None
    pred_empty: int
    ref_empty: int
    both_empty: int


Key = tuple[str, str, str]  # metric, profile, unit
Values = dict[str, dict[str, float]]  # class → case → the number that counts


def summarise(scores: Scores) -> list[Mean]:
    """The means of everything asked for: metric after metric, each class and then all of them.

    Counts of voxels are left out unless they were asked for. `miou` is the IoU of the counts summed over the cases.
    """
    statuses: dict[str, Counter[str]] = {name: Counter() for name in scores.labels}
    table: dict[Key, Values] = {}
    for case, rows in scores.rows.items():
        for row in rows:
            if row.metric == COUNTS[0]:  # every class has this row once
                statuses[row.class_name][row.status] += 1
            if row.metric in COUNTS and row.metric not in scores.metrics:
                continue
            values = table.setdefault((row.metric, row.profile, row.unit), {name: {} for name in scores.labels})
            number = policy_value(row.metric, row.profile, row.value, row.worst, row.status)
            if number is not None:
                values[row.class_name][case] = number
    found = [mean for key, values in table.items() for mean in _means(key, values, statuses)]
    if scores.rows:
        for metric in scores.metrics:
            if metric_of(metric)[0].scope == "dataset":
                found += _pooled(metric, scores, statuses)
    return found


def _means(key: Key, values: Values, statuses: dict[str, Counter[str]]) -> list[Mean]:
    means = [_mean(name, key, list(cases.values()), statuses[name]) for name, cases in values.items()]
    by_case: dict[str, list[float]] = {}
    for cases in values.values():
        for case, number in cases.items():
            by_case.setdefault(case, []).append(number)
    whole = _mean(None, key, [statistics.fmean(numbers) for numbers in by_case.values()], _sum(statuses))
    return [*means, _over_classes(whole, means)]


def _pooled(metric: str, scores: Scores, statuses: dict[str, Counter[str]]) -> list[Mean]:
    counts: dict[str, list[tuple[float, float, float]]] = {name: [] for name in scores.labels}
    for rows in scores.rows.values():
        by_class: dict[str, dict[str, Row]] = {}
        for row in rows:
            by_class.setdefault(row.class_name, {})[row.metric] = row
        for name, own in by_class.items():
            tp, fp, fn = (own[count].value or 0.0 for count in ("tp", "fp", "fn"))
            counts[name].append((tp, fp, fn))
    profile = next(row.profile for rows in scores.rows.values() for row in rows if row.metric == COUNTS[0])
    means = []
    for name, triples in counts.items():
        status, iou = statuses[name], pooled_iou(triples)
        n = len(triples) - status["both_empty"]
        means.append(Mean(name, metric, profile, "1", n, iou, None, *_empties(status)))
    whole = Mean(None, metric, profile, "1", len(scores.rows), None, None, *_empties(_sum(statuses)))
    return [*means, _over_classes(whole, means)]


def _mean(name: str | None, key: Key, values: Sequence[float], status: Counter[str]) -> Mean:
    mean = statistics.fmean(values) if values else None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Mean(name, *key, len(values), mean, sd, *_empties(status))


def _over_classes(whole: Mean, classes: Iterable[Mean]) -> Mean:
    """The mean over classes is that of their means: a class that is rarely there weighs as much as any other."""
    known = [m.mean for m in classes if m.mean is not None]
    mean = statistics.fmean(known) if known else None
    return Mean(
        None, whole.metric, whole.profile, whole.unit, whole.n, mean, whole.sd, whole.pred_empty, whole.ref_empty,
        whole.both_empty,
    )  # fmt: skip


def _empties(status: Counter[str]) -> tuple[int, int, int]:
    return status["pred_empty"], status["ref_empty"], status["both_empty"]


def _sum(statuses: dict[str, Counter[str]]) -> Counter[str]:
    return sum(statuses.values(), Counter())
