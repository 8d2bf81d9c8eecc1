"""What the figures are made from: Dice per patient, and which losses lack runs."""

from __future__ import annotations

import pandas as pd

from harness.metrics.table import PROFILES
from harness.report.frames import Frames
from harness.report.tables import Measure, all_class_means, apply_policy, measures, of_measure

_RUN = ["class", "loss", "fold", "seed", "patient"]


def rows_of(frames: Frames, group: str, model: str) -> pd.DataFrame:
    """The cases of one data set and model."""
    found = frames.parts.get((group, model))
    return frames.cases.iloc[:0] if found is None else found


def means_of(frames: Frames, group: str, model: str) -> pd.DataFrame:
    """The `class_means` of one data set and model."""
    means = all_class_means(frames)
    return means[(means["group"] == group) & (means["model"] == model)]


def dice_of(rows: pd.DataFrame) -> Measure | None:
    """Dice; of several profiles the first. None where it was not measured."""
    return next((m for m in measures(rows) if m.metric == "dice"), None)


def patient_scores(rows: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """One number per class, loss and patient: mean over the patient's cases, then over runs.

    Args:
        rows: Cases of one data set and model.
        measure: The metric.

    Returns:
        Columns class, loss, patient, score, in the shown unit; what does not apply is left out.
    """
    scored = apply_policy(of_measure(rows, measure))
    per_run = scored.groupby(_RUN, sort=False, observed=True)["score"].mean().dropna()
    found = per_run.groupby(level=["class", "loss", "patient"], sort=False, observed=True).mean() * measure.scale
    names = ["class", "loss", "patient"]
    return found.reset_index().astype(dict.fromkeys(names, object))[[*names, "score"]]


def patient_means(rows: pd.DataFrame, measure: Measure, losses: list[str]) -> pd.DataFrame:
    """Mean over classes of `patient_scores`: one row per patient, one column per loss, NaN where there is none."""
    scores = patient_scores(rows, measure)
    found = scores.groupby(["patient", "loss"], sort=False)["score"].mean().unstack("loss")
    return found[[x for x in losses if x in found.columns]]


def lacking(frames: Frames, group: str, model: str) -> dict[str, str]:
    """Loss to `4/5 runs`, of those that lack runs: their means leave out what may have been hard."""
    cells = frames.cells[(frames.cells["group"] == group) & (frames.cells["model"] == model)]
    out = {}
    for loss, part in cells.groupby("loss", sort=False):
        measured = int((part["status"] == "ok").sum())
        if measured < len(part):
            out[str(loss)] = f"{measured}/{len(part)} runs"
    return out


def empties_note(measure: Measure) -> str:
    """What empty masks count, as a sentence."""
    if measure.profile in PROFILES and PROFILES[measure.profile].own_empties:
        return f"Empty masks count as in {measure.profile}."
    return "Misses count as 0; patients without the class are left out."
