"""Distances as two outcomes: how far, among cases where both masks exist; and how often one of the masks is empty."""

from __future__ import annotations

import numpy as np
import pandas as pd

from harness.errors import BenchError

_KEYS = ["loss", "fold", "seed", "patient"]


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two frames that `analyse` takes, with the kinds `distance` and `rate`.

    Args:
        rows: Columns loss, fold, seed, patient, value (the measured distance, NaN where there is none) and status
            (which of the two masks are empty), one row per case: one data set, model, class, metric and profile.

    Returns:
        Distances, NaN unless both masks exist; and misses: 1 where one mask alone is empty, 0 where both exist, NaN
        where both are empty.

    Raises:
        BenchError: A column is missing or a status is unknown.
    """
    lacking = [c for c in (*_KEYS, "value", "status") if c not in rows.columns]
    if lacking:
        raise BenchError(f"statistics: no column {', '.join(map(repr, lacking))} in the rows of a distance.")
    known = {"ok": 0.0, "pred_empty": 1.0, "ref_empty": 1.0, "both_empty": np.nan}
    unknown = sorted(set(rows["status"]) - set(known))
    if unknown:
        raise BenchError(f"statistics: status {unknown[0]!r} is unknown; expected one of {', '.join(known)}.")
    distance, miss = rows[_KEYS].copy(), rows[_KEYS].copy()
    distance["value"] = rows["value"].astype(float).where(rows["status"] == "ok")
    miss["value"] = rows["status"].map(known).astype(float)
    return distance, miss


def rate_floor(patients: float) -> float:
    """The least variance of a difference of two rates: what one patient more, missed by one of the two, would give.

    Where nobody was missed, or everybody by one loss, the rates do not vary, and an interval of width 0 would claim
    what a few patients cannot show.

    Args:
        patients: Their number.
    """
    return 1.0 / patients**2
