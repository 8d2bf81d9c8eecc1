"""Per case and class rows: a prediction against its reference, on the original grid of the whole volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.cell import ENGINE, PROFILE
from harness.data.layouts import IGNORE
from harness.data.prepare import Prepared
from harness.metrics import evaluate
from harness.metrics.policy import policy_value, pooled_iou
from harness.metrics.table import metric_of


def score_case(
    prediction: NDArray[np.uint8],
    case: Prepared,
    classes: Mapping[str, int] | Mapping[str, Sequence[int]],
    metrics: Sequence[str],
    about: dict[str, Any],
    *,
    profiles: Sequence[str] = (PROFILE,),
    engine: str = ENGINE,
    dimensions: int = 3,
) -> list[dict[str, Any]]:
    """Measure one case.

    Args:
        prediction: (z, y, x) on the original grid.
        case: Its prepared case, with reference and spacing.
        classes: Class name to index, or region name to indices; what is in no region counts as background.
        metrics: Names of metrics; the counts come besides, and those of the scope `dataset` are made of the counts.
        about: The columns that do not change within the cell, with `patient` and `case`.
        profiles: Profiles to measure under.
        engine: What computes the distances.
        dimensions: 2 for a data set of images: the one slice is measured in its plane.

    Returns:
        One row per class and metric with the columns of `records.CASE_COLUMNS`.

    Raises:
        BenchError: As `harness.metrics.evaluate`.
    """
    reference, spacing = case.reference, case.spacing
    regions = {name: indices for name, indices in classes.items() if not isinstance(indices, int)}
    if regions:
        prediction, reference = _within(prediction, regions), _within(reference, regions)
    if dimensions == 2:
        prediction, reference = prediction[0], reference[0]
        spacing = None if spacing is None else spacing[1:]
    rows = evaluate(
        prediction,
        reference,
        spacing,
        classes,
        profile=list(profiles),
        metrics=[m for m in metrics if metric_of(m)[0].scope == "case"],
        engine=engine,
        ignore=IGNORE,
    )
    return [
        about
        | {
            "class": row.class_name,
            "metric": row.metric,
            "profile": row.profile,
            "unit": row.unit,
            "value": row.value,
            "worst": row.worst,
            "status": row.status,
        }
        for row in rows
    ]


def _within(volume: NDArray[np.uint8], members: Mapping[str, Sequence[int]]) -> NDArray[np.uint8]:
    """The volume with classes that stand in no region as background."""
    kept = np.zeros(256, np.uint8)
    known = [IGNORE, *(index for indices in members.values() for index in indices)]
    kept[known] = known
    return kept[volume]


def mean_of(rows: list[dict[str, Any]], metric: str) -> float | None:
    """Mean of a metric over cases and classes under the default policy for empty masks; None where nothing counts.

    Of several profiles it is the first that stands in the rows. `miou` is the mean over classes of the pooled IoU.
    """
    if metric_of(metric)[0].scope == "dataset":
        return _pooled(rows)
    own = [r for r in rows if r["metric"] == metric]
    own = [r for r in own if r["profile"] == own[0]["profile"]]
    values = [policy_value(metric, r["profile"], r["value"], r["worst"], r["status"]) for r in own]
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _pooled(rows: list[dict[str, Any]]) -> float | None:
    counts: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["metric"] in ("tp", "fp", "fn"):
            own = counts.setdefault(row["class"], {"tp": [], "fp": [], "fn": []})
            own[row["metric"]].append(float(row["value"]))
    found = [pooled_iou(zip(c["tp"], c["fp"], c["fn"], strict=True)) for c in counts.values()]
    known = [v for v in found if v is not None]
    return sum(known) / len(known) if known else None
