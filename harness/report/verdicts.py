"""From the records to verdicts: which losses differ over patients and trainings (`harness.stats`), and how it is said.

Per data set, model and metric of the suite's `rank.by`. A patient's value is the mean over its classes, so a mean here
is not that of `harness.report.tables` where a class is absent in a patient. For distances
there are two outcomes: how far, on log(1 + distance), over the patients and classes where every run of every loss has
both masks; and how often one mask alone is empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from harness.errors import BenchError
from harness.metrics.table import metric_of
from harness.report.board import BoardCell, BoardColumn
from harness.report.frames import Frames, by_group
from harness.report.tables import Measure, apply_policy, measures
from harness.report.words import count, joined, number
from harness.stats import Analysis, Kind, analyse, split

Outcome = Literal["value", "distance", "misses"]
_RUN = ["loss", "fold", "seed"]
UNREALISTIC = 20.0  # points: losses that train at all lie closer together


@dataclass(frozen=True)
class Ranking:
    """What the suite ranks by.

    Attributes:
        by: Names of metrics; the first one orders the leaderboard.
        baseline: The loss that others are compared with; None: the first of the suite with values.
        rope: Differences of fractions up to this do not matter (0.01: one point of Dice).
    """

    by: tuple[str, ...] = ("dice",)
    baseline: str | None = None
    rope: float = 0.01


@dataclass(frozen=True)
class Comparison:
    """One outcome of one data set and model.

    Attributes:
        outcome: `value` for fractions and volumes; distances have `distance` and `misses`.
        analysis: None where there can be none.
        reason: Why there is none.
        note: What was left out before the analysis.
        rope: Differences up to this do not matter, on the scale of the effects; None: not defined for this outcome.
    """

    group: str
    model: str
    measure: Measure
    outcome: Outcome
    analysis: Analysis | None
    reason: str = ""
    note: str = ""
    rope: float | None = None

    @property
    def title(self) -> str:
        """What was compared."""
        return f"{self.group}, {self.model}: {self.heading}"

    @property
    def heading(self) -> str:
        """The metric with its unit, or the rate of misses."""
        if self.outcome == "misses":
            return "misses, one of the two masks empty (%)"
        profile = self.measure.shown_profile([self.measure])
        parts = (self.measure.heading, profile, "without misses" if self.outcome == "distance" else "")
        return ", ".join(p for p in parts if p)

    def shown(self, value: float) -> float:
        """An effect in the unit of the table: points of per cent, per cent of 1 + distance, or the unit itself."""
        if self.outcome == "distance":
            return 100 * math.expm1(value)
        return value * (100.0 if self.outcome == "misses" else self.measure.scale)


def compare(frames: Frames, ranking: Ranking) -> list[Comparison]:
    """Analyse every data set, model and metric to rank by; the first profile of a metric counts.

    Args:
        frames: The prepared frames.
        ranking: What to compare.
    """
    found: list[Comparison] = []
    for group in frames.groups:
        known = measures(frames.of_group(group), frames.pooled)
        for model in by_group(frames, group, frames.cases):
            own = frames.parts[group, model]
            planned = frames.cells[(frames.cells["group"] == group) & (frames.cells["model"] == model)]
            for name in ranking.by:
                measure = next((m for m in known if m.metric == name), None)
                if measure is not None:
                    found += outcomes(own, planned, measure, ranking, frames.losses)
    return found


def outcomes(
    cases: pd.DataFrame, planned: pd.DataFrame, measure: Measure, ranking: Ranking, losses: Sequence[str],
    detail: bool = True,
) -> Iterator[Comparison]:  # fmt: skip
    """The comparisons of one metric: one of values, or one of distances and, where any mask was missed, one of misses.

    Args:
        cases: Rows of one data set and model, of all classes that are averaged.
        planned: Its planned cells.
        measure: The metric.
        ranking: Baseline and rope.
        losses: Losses in planned order.
        detail: As in `analyse`.
    """
    group, model = str(planned["group"].iloc[0]), str(planned["model"].iloc[0])
    metric, _ = metric_of(measure.metric)
    planned_losses = [x for x in losses if x in set(planned["loss"])]
    rows = cases[(cases["metric"] == measure.metric) & (cases["profile"] == measure.profile)]
    if metric.scope == "dataset":
        reason = f"{measure.name} is one number per run, without patients: no verdict from it."
        yield Comparison(group, model, measure, "value", None, reason)
        return
    baseline = ranking.baseline
    if baseline is None:
        baseline = next((x for x in planned_losses if x in set(rows["loss"])), "")

    def made(outcome: Outcome, frame: pd.DataFrame, note: str = "") -> Comparison:
        others: dict[str, Kind] = {"volume": "volume", "loss": "loss"}
        of_value = others.get(metric.unit_kind, "fraction")
        kind: Kind = "distance" if outcome == "distance" else "rate" if outcome == "misses" else of_value
        rope = ranking.rope if kind == "fraction" else None
        try:
            analysis = analyse(
                frame,
                baseline,
                kind,
                higher_is_better=metric.higher_is_better and outcome == "value",
                rope=rope,
                runs=planned,
                losses=planned_losses,
                detail=detail,
            )
        except BenchError as error:
            return Comparison(group, model, measure, outcome, None, str(error), note)
        return Comparison(group, model, measure, outcome, analysis, note=note, rope=rope)

    if metric.unit_kind != "distance":
        scored = apply_policy(rows).drop(columns="value").rename(columns={"score": "value"})
        yield made("value", _per_patient(scored))
        return
    far, missed = split(rows)
    kept, left, total = _in_common(far.assign(**{"class": rows["class"]}))
    note = ""
    if left:
        note = (
            f"{left} of {total} pairs of patient and class are left out of the distances: some run of some loss "
            "has none there; how often that happens is compared apart."
        )
    yield made("distance", _per_patient(kept), note)
    if (missed["value"] > 0).any():
        yield made("misses", _per_patient(missed.assign(**{"class": rows["class"]})))


def _per_patient(rows: pd.DataFrame) -> pd.DataFrame:
    """One value per loss, fold, seed and patient: the mean over the classes, the cases of a class averaged first."""
    per_class = rows.groupby([*_RUN, "patient", "class"], observed=True, sort=False)["value"].mean()
    return per_class.groupby(level=[*_RUN, "patient"], observed=True, sort=False).mean().reset_index()


def _in_common(rows: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """The rows of those patients and classes that have a distance in every run of every loss that has values."""
    pairs = rows.groupby(["patient", "class"], observed=True, sort=False)["value"]
    planned, known = pairs.transform("size"), pairs.transform("count")  # `count` passes NaN over
    occurs = int((pairs.count() > 0).sum())
    return rows[planned == known], occurs - int((pairs.count() == pairs.size()).sum()), occurs


def verdict_sentence(found: Sequence[Comparison]) -> str:
    """The first sentence of the page: what the first metric says, per data set and model."""
    first = [c for c in found if c.measure.metric == found[0].measure.metric and c.outcome != "misses"] if found else []
    if not first:
        return "No verdict: no run was measured."
    reasons = {c.analysis.no_verdict if c.analysis else c.reason for c in first}
    if len(reasons) == 1 and None not in reasons:
        return f"{reasons.pop()} The tables show means, spread, and intervals over patients where there are any."
    return " ".join(_said(c) for c in first)


def _said(c: Comparison) -> str:
    if c.analysis is None or c.analysis.no_verdict:
        return f"{c.group}, {c.model}: {c.analysis.no_verdict if c.analysis else c.reason}"
    results = [r for r in c.analysis.losses if r.tier is not None]
    top = [r.loss for r in sorted(results, key=lambda r: r.rank or 0) if r.tier == 1]
    text = f"{c.measure.name} on {c.group} with {c.model}: "
    if not top:
        text += "no loss has all of its runs, so none is in the first tier"
    elif len(top) == len(results):
        text += f"no difference is shown between any of the {len(results)} losses"
    elif len(top) == 1:
        text += f"{top[0]} alone is in the first tier"
    else:
        text += f"{_named(top)} are not shown to be worse than the best"
    for word in ("better", "worse"):
        names = [r.loss for r in results if r.verdict == word]
        if names:
            text += f"; {word} than {c.analysis.baseline}: {_named(names)}"
    if c.analysis.detectable:
        now = next((d.difference for d in c.analysis.detectable if d.now), None)
        if now is not None:
            least = f"{number(c.shown(now), 1)}{' points' if c.measure.unit == '1' else ''}"
            if c.measure.unit == "1" and c.shown(now) > UNREALISTIC:
                text += (
                    "; there are too few seeds or patients to show a difference of a realistic size: the smallest "
                    f"found with a power of 80 % is {least}"
                )
            else:
                text += f"; a difference of {least} would have been found with a power of 80 %"
    return text + "."


def within(c: Comparison) -> str:
    """`within ±1 point`: the differences that do not matter; nothing where the outcome has none."""
    if c.rope is None:
        return ""
    size = c.shown(c.rope)
    unit = "%" if c.measure.unit != "1" else "point" if size == 1 else "points"
    return f"within ±{size:g} {unit}"


def equivalence(c: Comparison) -> str:
    """What `equivalent` means, where a verdict of this comparison says so."""
    if c.analysis is None or all(r.verdict != "equivalent" for r in c.analysis.losses):
        return ""
    return f"Equivalent: no difference is shown, and two one-sided tests (Holm) show that it is {within(c)}."


def _named(losses: Sequence[str]) -> str:
    return joined(losses) if len(losses) <= 6 else count(len(losses), "loss", "losses")


def board_columns(found: Sequence[Comparison], group: str) -> list[BoardColumn]:
    """Columns of one data set's leaderboard behind the first measure: difference, verdict, tier, chance of rank 1."""
    own = [c for c in found if c.group == group and c.outcome != "misses"]
    own = [c for c in own if c.measure == own[0].measure]
    if not any(c.analysis for c in own):
        return []
    effect, verdict, tier, first = {}, {}, {}, {}
    for c in own:
        for r in c.analysis.losses if c.analysis else ():
            key = (c.model, r.loss)
            effect[key] = BoardCell(_signed(c, r.effect), r.effect, interval_text(c, r.low, r.high) or "")
            if r.verdict == "baseline":
                effect[key] = BoardCell("baseline", 0.0)
            verdict[key] = BoardCell("–" if r.verdict in ("baseline", "no verdict") else r.verdict, r.verdict)
            span = f"rank {r.rank_low}–{r.rank_high}" if r.rank_low is not None else ""
            tier[key] = BoardCell(number(r.tier, 0), r.tier, span)
            first[key] = BoardCell("–" if r.first is None else f"{100 * r.first:.0f} %", r.first)
    metric = own[0].measure.heading
    unit = "% of 1 + distance" if own[0].outcome == "distance" else own[0].measure.shown_unit
    columns = [BoardColumn(f"Difference, 95 % ({unit})", effect, "to the baseline", metric, "descending")]
    if any(c.analysis and not c.analysis.no_verdict for c in own):
        columns.append(BoardColumn("Verdict", verdict, "after Holm", metric, kind="text"))
        columns.append(BoardColumn("Tier", tier, "", metric))
        columns.append(BoardColumn("Rank 1", first, "probability", metric, "descending"))
    return columns


def _signed(c: Comparison, effect: float | None) -> str:
    if effect is None:
        return "–"
    text = number(c.shown(effect), c.measure.decimals)
    return text if text.startswith("\u2212") else f"+{text}"


def interval_text(c: Comparison, low: float | None, high: float | None) -> str | None:
    """An interval in the unit of the table; None where there is none."""
    if low is None or high is None:
        return None
    return f"[{number(c.shown(low), c.measure.decimals)}, {number(c.shown(high), c.measure.decimals)}]"
