"""Per case and class rows: a prediction against its reference, on the original grid of the whole volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.layouts import IGNORE
from harness.data.prepare import Prepared
from harness.metrics import evaluate

PROFILE = "voxel-max"


def score_case(
    prediction: NDArray[np.uint8],
    case: Prepared,
    classes: dict[str, int],
    metrics: Sequence[str],
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Measure one case.

    Args:
        prediction: (z, y, x) on the original grid.
        case: Its prepared case, with reference and spacing.
        classes: Class name to index.
        metrics: Names of metrics; the counts come besides.
        about: The columns that do not change within the cell, with `patient` and `case`.

    Returns:
        One row per class and metric with the columns of `records.CASE_COLUMNS`.
    """
    rows = evaluate(prediction, case.reference, case.spacing, classes, metrics=metrics, profile=PROFILE, ignore=IGNORE)
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


def mean_of(rows: list[dict[str, Any]], metric: str) -> float | None:
    """Mean of a metric over cases and classes under the default policy for empty masks; None where nothing counts."""
    values = [
        float(r["worst"]) if r["value"] is None else float(r["value"])
        for r in rows
        if r["metric"] == metric and r["status"] != "both_empty"
    ]
    return sum(values) / len(values) if values else None
