"""The one number of a metric over the rows of several cases, as epochs and trials are chosen by it. Nothing heavy."""

from __future__ import annotations

from typing import Any

from harness.metrics.policy import policy_value, pooled_iou
from harness.metrics.table import metric_of


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
