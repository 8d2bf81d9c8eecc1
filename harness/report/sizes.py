"""Which losses differ on small, medium and large objects: the analysis of `verdicts` within thirds by volume.

An object is what a patient has of one class. Within each class the patients that have it are parted by the terciles of
its reference volume (voxels, TP + FN over the patient's cases), so that a small liver is small among livers; what is
not in the reference has no volume and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.metrics.table import metric_of
from harness.report.figures.volume import reference_volumes
from harness.report.frames import Frames, by_group
from harness.report.tables import measures
from harness.report.verdicts import Comparison, Ranking, interval_text, outcomes
from harness.report.view import NAN, Block, Column, Entry, Head, Row, TableView
from harness.report.words import count, number
from harness.stats import LossResult

SIZES = ("small", "medium", "large")
LEAST = 6  # patients that have a class: two for each third, which has a verdict with six over all classes
LISTED = 12  # classes whose limits are written below the table; the others stand in the CSV file


@dataclass(frozen=True)
class BySize:
    """One metric of one data set and model, compared within each third.

    Attributes:
        limits: One row per class: class, patients (that have it), low and high (the terciles, in voxels).
        left_out: Classes with fewer than `LEAST` patients that have it, or whose terciles are equal.
        parts: Size to its comparison, in the order of `SIZES`.
    """

    group: str
    model: str
    limits: pd.DataFrame
    left_out: tuple[str, ...]
    parts: dict[str, Comparison]

    @property
    def judged(self) -> bool:
        """Whether there is a verdict in any third."""
        return any(c.analysis is not None and not c.analysis.no_verdict for c in self.parts.values())

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return next(iter(self.parts.values())).measure.metric

    @property
    def heading(self) -> str:
        """The metric with its unit."""
        return next(iter(self.parts.values())).heading


def terciles(volumes: pd.Series) -> tuple[pd.Series, pd.DataFrame, tuple[str, ...]]:
    """Part the patients of each class in thirds.

    Args:
        volumes: Voxels by (patient, class), see `reference_volumes`.

    Returns:
        The size by (patient, class), 0 small to 2 large, where there is one; the limits, as in `BySize`; and the
        classes that cannot be parted. Up to the lower tercile is small, above the upper one large (numpy's linear
        quantiles); equal volumes never part.
    """
    there = volumes[volumes > 0]
    parts, rows, left = [], [], []
    for name, own in there.groupby(level="class", sort=False, observed=True):
        low, high = (float(v) for v in np.quantile(own, [1 / 3, 2 / 3]))
        codes = (own > low).astype(int) + (own > high).astype(int)
        if len(own) < LEAST or codes.nunique() < len(SIZES):
            left.append(str(name))
            continue
        parts.append(codes)
        rows.append((str(name), len(own), low, high))
    found = pd.concat(parts) if parts else pd.Series(dtype=int)
    return found, pd.DataFrame(rows, columns=["class", "patients", "low", "high"]), tuple(left)


def compare_sizes(frames: Frames, ranking: Ranking) -> list[BySize]:
    """Every data set, model and metric to rank by, as far as its references were counted and can be parted.

    Args:
        frames: The prepared frames.
        ranking: What to compare; the first profile of a metric counts, and of distances how far, not how often missed.
    """
    found: list[BySize] = []
    for group in frames.plain_groups:
        known = [m for m in measures(frames.of_group(group)) if metric_of(m.metric)[0].scope == "case"]
        for model in by_group(frames, group, frames.cases):
            own = frames.parts[group, model]
            planned = frames.cells[(frames.cells["group"] == group) & (frames.cells["model"] == model)]
            parted: dict[str, tuple[pd.Series, pd.DataFrame, tuple[str, ...]]] = {}
            for name in ranking.by:
                measure = next((m for m in known if m.metric == name), None)
                if measure is None or planned["loss"].nunique() < 2:
                    continue
                if measure.profile not in parted:
                    parted[measure.profile] = terciles(reference_volumes(own, measure.profile))
                sizes, limits, left = parted[measure.profile]
                if limits.empty:
                    continue
                rows = own[(own["metric"] == measure.metric) & (own["profile"] == measure.profile)]
                codes = _codes(rows, sizes)
                parts = {
                    size: next(outcomes(rows[codes == i], planned, measure, ranking, frames.losses, detail=False))
                    for i, size in enumerate(SIZES)
                }
                found.append(BySize(group, model, limits, left, parts))
    return found


def _codes(rows: pd.DataFrame, sizes: pd.Series) -> np.ndarray:
    """The size of each row's object, -1 where it has none: by the codes of the categories, as there are many rows."""
    patients, classes = rows["patient"].cat, rows["class"].cat
    table = np.full((len(patients.categories), len(classes.categories)), -1)
    at = patients.categories.get_indexer(sizes.index.get_level_values("patient"))
    table[at, classes.categories.get_indexer(sizes.index.get_level_values("class"))] = sizes
    return np.asarray(table[patients.codes, classes.codes])


def size_views(found: Sequence[BySize]) -> list[TableView]:
    """Loss by size: mean, difference to the baseline with its interval, verdict and tier."""
    return [_view(s) for s in found if s.judged]


def _view(s: BySize) -> TableView:
    known = {size: c for size, c in s.parts.items() if c.analysis is not None}
    first = next(iter(known.values()))
    unit = "% of 1 + distance" if first.outcome == "distance" else first.measure.shown_unit
    columns = (
        Column("mean", first.measure.decimals),
        Column("difference", first.measure.decimals, signed=True),
        Column("95 % interval", words=True),
        Column("verdict", words=True),
        Column("tier", 0),
    )
    baseline = first.analysis.baseline if first.analysis else ""
    heads = (Head(s.heading, 1), Head(f"to {baseline} ({unit})", 2), Head("", 2))
    blocks = []
    for size, c in known.items():
        results = c.analysis.losses if c.analysis else ()
        name = f"{size}, {count(c.analysis.patients if c.analysis else 0, 'patient')}"
        blocks.append(Block(name, tuple(Row(r.loss, _entries(c, r)) for r in results)))
    title = f"{s.group}, {s.model}: {s.heading} by object size"
    return TableView("sizes", title, "Loss", heads, columns, tuple(blocks), _notes(s), _frame(s))


def _entries(c: Comparison, r: LossResult) -> tuple[Entry, ...]:
    mean, tier = NAN if r.mean is None else r.mean * c.measure.scale, NAN if r.tier is None else r.tier
    if r.verdict == "baseline":
        return (Entry(mean), Entry(text="baseline"), Entry(text=""), Entry(text=""), Entry(tier))
    effect = Entry(NAN if r.effect is None else c.shown(r.effect))
    verdict = "–" if r.verdict == "no verdict" else r.verdict
    return (Entry(mean), effect, Entry(text=interval_text(c, r.low, r.high) or "–"), Entry(text=verdict), Entry(tier))


def _notes(s: BySize) -> tuple[str, ...]:
    limits = "; ".join(
        f"{r['class'].replace('_', ' ')} {number(r['low'], 0)} and {number(r['high'], 0)}"
        for r in s.limits.head(LISTED).to_dict("records")
    )
    more = f"; {count(len(s.limits) - LISTED, 'more class', 'more classes')}" if len(s.limits) > LISTED else ""
    notes = [
        "Thirds of the patients that have a class, by its volume in the reference; a patient can be small in one class "
        "and large in another, and its value is the mean over its classes in the third. "
        f"Limits in voxels: {limits}{more}."
    ]
    if s.left_out:
        notes.append(
            f"Left out, with fewer than {LEAST} patients that have it or without different volumes: "
            f"{', '.join(x.replace('_', ' ') for x in s.left_out)}."
        )
    for size, c in s.parts.items():
        reason = c.reason if c.analysis is None else c.analysis.no_verdict
        if reason:
            notes.append(f"{size.capitalize()}: {reason}")
    notes.append(
        "Each third is a family of its own for Holm. That a loss differs in one third and not in another does not show "
        "that the thirds differ."
    )
    return tuple(notes)


def _frame(s: BySize) -> pd.DataFrame:
    rows = [
        {"dataset": s.group, "model": s.model, "metric": c.measure.metric, "profile": c.measure.profile,
         "outcome": c.outcome, "size": size, "patients": c.analysis.patients, "loss": r.loss, "mean": r.mean,
         "effect": r.effect, "low": r.low, "high": r.high, "p_holm": r.p_holm, "verdict": r.verdict, "tier": r.tier,
         "rank": r.rank}
        for size, c in s.parts.items() if c.analysis is not None for r in c.analysis.losses
    ]  # fmt: skip
    limits = "; ".join(f"{r['class']}: {r['low']:g}, {r['high']:g}" for r in s.limits.to_dict("records"))
    return pd.DataFrame(rows).assign(limits_voxels=limits)
