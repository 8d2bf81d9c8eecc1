"""Where a loss stands among the others: from frames to places. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.report.frames import Frames
from harness.report.tables import measures
from harness.report.verdicts import Comparison, Ranking, compare, outcomes, within
from harness.report.words import count, number
from harness.stats import Analysis, LossResult


@dataclass(frozen=True)
class ClassEffect:
    """A loss against the baseline on one class; not adjusted for the number of classes.

    Attributes:
        name: The class.
        mean: Of the loss, as in the table.
        baseline: Of the baseline.
        effect: Loss − baseline, in the unit of the place.
        low: Lower end of its 95 % interval.
        high: Upper end.
        why: Why there is no interval.
    """

    name: str
    mean: float | None
    baseline: float | None
    effect: float | None
    low: float | None
    high: float | None
    why: str = ""


@dataclass(frozen=True)
class SeedsBuy:
    """The smallest difference that a number of seeds finds with a power of 80 %, in the unit of the place."""

    seeds: int
    difference: float | None
    now: bool


@dataclass(frozen=True)
class Place:
    """A loss on one data set, model and outcome. None where there is no answer.

    Attributes:
        dataset: Data set, with its split where there are several.
        model: The model.
        metric: Its heading: name, unit, profile.
        outcome: `value`, `distance` or `misses`.
        unit: Of `effect`, its interval and `seeds`.
        better: "higher" or "lower" values are better.
        verdict: Against the baseline, after Holm over all losses.
        tier: 1: not shown to be worse than the best.
        tiers: How many tiers there are.
        rank: 1 is best; a loss with a diverged run stands behind all others.
        rank_low: Best rank that is not excluded.
        rank_high: Worst rank that is not excluded.
        losses: How many losses are ranked.
        first: Probability of rank 1.
        mean: Mean over the classes of a patient, then over patients and runs; of distances without misses.
        baseline_mean: That of the baseline.
        effect: Loss − baseline.
        low: Lower end of its 95 % interval, for the population of patients and trainings.
        high: Upper end.
        p_holm: Of the test for a difference, after Holm.
        p_rope: Of the two one-sided tests for a difference within ±rope, after Holm; None without a rope.
        runs: Runs with values.
        diverged: Runs that diverged.
        crashed: Runs that ended otherwise without values.
        classes: Gains and losses by class.
        seeds: What more seeds would buy.
        more: The same as a sentence; empty where there is no verdict, for the reason that `said` gives.
        said: The place as a sentence.
        notes: Sentences of the analysis.
    """

    dataset: str
    model: str
    metric: str
    outcome: str
    unit: str
    better: str
    verdict: str
    tier: int | None
    tiers: int
    rank: int | None
    rank_low: int | None
    rank_high: int | None
    losses: int
    first: float | None
    mean: float | None
    baseline_mean: float | None
    effect: float | None
    low: float | None
    high: float | None
    p_holm: float | None
    p_rope: float | None
    runs: int
    diverged: int
    crashed: int
    classes: tuple[ClassEffect, ...]
    seeds: tuple[SeedsBuy, ...]
    more: str
    said: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Means over the runs of one loss, or None where no run has them; memory is the largest of any run's process."""

    train_s: float | None
    step_ms: float | None
    targets_ms: float | None
    peak_rss_mb: float | None


@dataclass(frozen=True)
class Standing:
    """Everything about one ranked loss.

    Attributes:
        loss: Its label.
        baseline: The loss that it is compared with.
        duplicate_of: Losses with the same value and gradient.
        places: One for each data set, model and outcome.
        missing: Why there is no place, where there is none.
        cost: What it costs by data set and model: (data set, model) as `dataset / model`.
        baseline_cost: The same of the baseline; None where the hardware or torch differs.
        load: Why the times of the two cannot be compared; empty where they can.
    """

    loss: str
    baseline: str
    duplicate_of: tuple[str, ...]
    places: tuple[Place, ...]
    missing: str
    cost: dict[str, Cost]
    baseline_cost: dict[str, Cost] | None
    load: str = ""


def standings(
    frames: Frames,
    ranking: Ranking,
    ranked: Sequence[str],
    *,
    duplicates: dict[str, tuple[str, ...]] | None = None,
    same_hardware: bool = True,
    load: str = "",
) -> list[Standing]:
    """Place losses among all losses that have values.

    Args:
        frames: The prepared frames of all losses.
        ranking: What to rank by; with a baseline.
        ranked: Labels of the losses to place.
        duplicates: For each of them the losses that it equals.
        same_hardware: Whether the costs of the baseline are given.
        load: Why times cannot be compared, see `harness.ranking.differences.load`.
    """
    baseline = str(ranking.baseline)
    found = compare(frames, ranking)
    out = []
    for loss in ranked:
        places = tuple(p for c in found if (p := _place(frames, ranking, c, loss)) is not None)
        own = frames.cells[frames.cells["loss"] == loss]
        out.append(
            Standing(
                loss,
                baseline,
                (duplicates or {}).get(loss, ()),
                places,
                "" if places else _why_none(own, found),
                _costs(frames, loss),
                _costs(frames, baseline) if same_hardware else None,
                load,
            )
        )
    return out


def _why_none(own: pd.DataFrame, found: Sequence[Comparison]) -> str:
    reasons = [c.reason for c in found if c.analysis is None and c.reason]
    states = ", ".join(f"{n} {state}" for state, n in own["status"].value_counts(sort=False).items())
    return f"no place: its cells are {states}" + (f"; {reasons[0]}" if reasons and "ok" in states else "")


def _place(frames: Frames, ranking: Ranking, c: Comparison, loss: str) -> Place | None:
    a = c.analysis
    result = next((r for r in a.losses if r.loss == loss), None) if a is not None else None
    if a is None or result is None or (result.rank is None and result.effect is None):
        return None
    base = next(r for r in a.losses if r.loss == a.baseline)
    measure = c.measure
    scale = 100.0 if c.outcome == "misses" else measure.scale
    tiers = {r.tier for r in a.losses if r.tier is not None}
    seeds = tuple(
        SeedsBuy(d.seeds, None if d.difference is None else c.shown(d.difference), d.now) for d in a.detectable
    )
    return Place(
        dataset=c.group,
        model=c.model,
        metric=c.heading,
        outcome=c.outcome,
        unit=unit_of(c),
        better="higher" if a.higher_is_better else "lower",
        verdict=result.verdict,
        tier=result.tier,
        tiers=len(tiers),
        rank=result.rank,
        rank_low=result.rank_low,
        rank_high=result.rank_high,
        losses=sum(r.rank is not None for r in a.losses),
        first=result.first,
        mean=_scaled(result.mean, scale),
        baseline_mean=_scaled(base.mean, scale),
        effect=_shown(c, result.effect),
        low=_shown(c, result.low),
        high=_shown(c, result.high),
        p_holm=result.p_holm,
        p_rope=result.p_rope,
        runs=result.runs,
        diverged=result.diverged,
        crashed=result.crashed,
        classes=tuple(_classes(frames, ranking, c, loss)),
        seeds=seeds,
        more=_more(c, a, result, seeds),
        said=_said(c, a, result),
        notes=tuple([*a.notes, *([c.note] if c.note else [])]),
    )


def unit_of(c: Comparison) -> str:
    """Unit of the effects: points of per cent, per cent of 1 + distance, or that of the metric."""
    if c.outcome == "distance":
        return "% of 1 + distance"
    return "points" if c.outcome == "misses" or c.measure.unit == "1" else c.measure.shown_unit


def _shown(c: Comparison, effect: float | None) -> float | None:
    return None if effect is None else c.shown(effect)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value * scale


def _classes(frames: Frames, ranking: Ranking, c: Comparison, loss: str) -> Iterator[ClassEffect]:
    """The same comparison on each class alone; of one class it would be the same again."""
    own = frames.parts[c.group, c.model]
    mask = (own["metric"] == c.measure.metric) & (own["profile"] == c.measure.profile)
    names = list(dict.fromkeys(own.loc[mask, "class"].astype(str)))
    planned = frames.cells[(frames.cells["group"] == c.group) & (frames.cells["model"] == c.model)]
    if len(names) < 2:
        return
    for name in names:
        rows = own[mask & (own["class"] == name)]
        measure = next(m for m in measures(rows) if m.metric == c.measure.metric and m.profile == c.measure.profile)
        made = outcomes(rows, planned, measure, ranking, frames.losses, detail=False)
        one = next((x for x in made if x.outcome == c.outcome), None)
        if one is None:
            continue  # this class is missed by no loss
        found = {r.loss: r for r in one.analysis.losses} if one.analysis else {}
        mine, base = found.get(loss), found.get(str(ranking.baseline))
        scale = 100.0 if c.outcome == "misses" else measure.scale
        why = one.reason or (one.analysis.no_verdict if one.analysis else "") or ""
        yield ClassEffect(
            name,
            _scaled(mine.mean, scale) if mine else None,
            _scaled(base.mean, scale) if base else None,
            _shown(one, mine.effect) if mine else None,
            _shown(one, mine.low) if mine else None,
            _shown(one, mine.high) if mine else None,
            why,
        )


def _said(c: Comparison, a: Analysis, r: LossResult) -> str:
    """The place in one or two sentences."""
    head = f"{c.title}: "
    total = sum(x.rank is not None for x in a.losses)
    parts = []
    if r.tier is not None:
        tiers = len({x.tier for x in a.losses if x.tier is not None})
        span = f" (95 %: {r.rank_low} to {r.rank_high})" if r.rank_low is not None else ""
        parts.append(f"tier {r.tier} of {tiers}, rank {r.rank}{span} of {total}")
    elif r.rank is not None:
        parts.append(f"rank {r.rank} of {total} by its mean")
    if r.first is not None:
        parts.append(f"probability of rank 1: {100 * r.first:.0f} %")
    text = head + ", ".join(parts) + "."
    if r.loss != a.baseline and r.effect is not None:
        unit = unit_of(c)
        text += f" Against {a.baseline}: {signed(c.shown(r.effect))} {unit}"
        if r.low is not None and r.high is not None:
            text += f", 95 % interval {signed(c.shown(r.low))} to {signed(c.shown(r.high))}"
        text += f": {_verdict(c, r)}." if not a.no_verdict else "."
    if r.loss == a.baseline:
        text += " It is the baseline."
    if a.no_verdict:
        text += f" {a.no_verdict}"
    if r.diverged or r.crashed:
        text += " " + _lost(r)
    return text


def _verdict(c: Comparison, r: LossResult) -> str:
    """The verdict with the p of the test that gives it: of a difference, or of two one-sided tests against one."""
    same = r.verdict == "equivalent"
    p = r.p_rope if same else r.p_holm
    return f"{r.verdict}{f' ({within(c)})' * same} after Holm" + (f" (p = {p:.2g})" if p is not None else "")


def _lost(r: LossResult) -> str:
    named = [f"{n} {word}" for n, word in ((r.diverged, "diverged"), (r.crashed, "crashed")) if n]
    text = f"Of its {r.runs + r.diverged + r.crashed} runs {' and '.join(named)}"
    behind = "; it stands behind every loss whose runs all ended, and cannot be in the first tier" if r.diverged else ""
    return f"{text}{behind}."


def _more(c: Comparison, a: Analysis, r: LossResult, seeds: Sequence[SeedsBuy]) -> str:
    """What more seeds would buy."""
    known = [s for s in seeds if s.difference is not None]
    if not known:
        return "" if a.no_verdict else "What more seeds would buy cannot be told: the grid has gaps, or it is a rate."
    unit = unit_of(c)
    now = next((s for s in known if s.now), None)
    parts = []
    if now is not None:
        found = f"a difference of {number(now.difference)} {unit} is found with a power of 80 %"
        parts.append(f"With {count(now.seeds, 'seed')} {found}")
    later = [s for s in known if not s.now and (now is None or s.seeds > now.seeds)]
    parts += [f"with {s.seeds}, {number(s.difference)}" for s in later]
    text = ", ".join(parts) + "."
    if r.verdict != "no difference shown" or r.effect is None or not later:
        return text
    # a distance shrinks and grows by factors: sizes are compared on the analysed scale, where they are symmetric
    needed = next((d.seeds for d in a.detectable if d.difference is not None and d.difference <= abs(r.effect)), None)
    seen = f" A difference as large as the one seen ({signed(c.shown(r.effect))}) would need "
    if needed is None:
        return text + seen + f"more than {known[-1].seeds} seeds, or more patients."
    return text + seen + f"about {needed} seeds."


def signed(value: float | None, decimals: int = 2) -> str:
    """A number with its sign; an en dash where there is none."""
    if value is None:
        return "–"
    text = number(value, decimals)
    return text if text.startswith(("\u2212", "–")) else f"+{text}"


def _costs(frames: Frames, loss: str) -> dict[str, Cost]:
    out = {}
    own = frames.cells[(frames.cells["loss"] == loss) & (frames.cells["status"] == "ok")]
    for (group, model), runs in own.groupby(["group", "model"], sort=False, observed=True):
        values = [pd.to_numeric(runs[k]).mean() for k in ("train_s", "step_ms", "targets_ms")]
        values.append(pd.to_numeric(runs["peak_rss_mb"]).max())
        out[f"{group} / {model}"] = Cost(*(None if math.isnan(v) else float(v) for v in values))
    return out
