"""The tables of the verdicts: differences with intervals, tiers, variance split, sensitivity of the ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.metrics.policy import takes_worst
from harness.metrics.table import metric_of
from harness.report.figures.scores import lacking
from harness.report.frames import Frames, by_group
from harness.report.tables import Measure, measures
from harness.report.verdicts import Comparison, Ranking, equivalence, interval_text, outcomes
from harness.report.view import NAN, Block, Column, Entry, Head, Row, TableView
from harness.report.words import count, number
from harness.stats import LossResult
from harness.stats.sensitivity import across, sensitivity

_METHODS = {
    "closed forms": "Every loss met the same patients and the same seeds; closed forms.",
    "REML": "The grid has gaps, so every pair of losses was fitted by REML over the cells that both have.",
    "patients only": "There is one training of each loss: intervals are over patients alone.",
}


def statistics_views(found: Sequence[Comparison]) -> list[TableView]:
    """One table of verdicts per comparison; where there is none, its reason."""
    return [_verdicts(c) for c in found]


def _verdicts(c: Comparison) -> TableView:
    a = c.analysis
    if a is None:
        return TableView("statistics", c.title, notes=(c.reason,))
    unit = "% of 1 + distance" if c.outcome == "distance" else "%" if c.outcome == "misses" else c.measure.shown_unit
    columns = (
        Column("mean", c.measure.decimals),
        Column("difference", c.measure.decimals, signed=True),
        Column("patients and trainings", words=True),
        Column("these networks", words=True),
        Column("p (Holm)", 3),
        Column("verdict", words=True),
        Column("tier", 0),
        Column("rank", words=True),
        Column("rank 1 (%)", 0),
    )
    heads = (
        Head(c.heading, 1),
        Head(f"to {a.baseline} ({unit})", 1),
        Head("95 % interval for", 2),
        Head("", 2),
        Head("", 3),
    )
    order = sorted(a.losses, key=lambda r: (r.rank is None, r.rank or 0))
    rows = tuple(Row(r.loss, _entries(c, r), _lost(r)) for r in order)
    frame = a.frame()
    for name, value in reversed(
        {"dataset": c.group, "model": c.model, "metric": c.measure.metric, "profile": c.measure.profile,
         "outcome": c.outcome, "baseline": a.baseline, "method": a.method}.items()
    ):  # fmt: skip
        frame.insert(0, name, value)
    said = (
        _METHODS[a.method]
        + f" {count(a.patients, 'patient')}, {count(a.runs, 'run')}"
        + (f" in {a.folds} folds." if a.folds > 1 else ".")
    )
    said += " Mean: over the classes of a patient, then over patients and runs; in the leaderboard over patients first."
    if c.outcome == "distance":
        worst = takes_worst(c.measure.metric, c.measure.profile, "pred_empty")
        counted = "as the image diagonal" if worst else f"as {c.measure.profile} does"
        said += (
            f" Without misses, which the leaderboard counts {counted}."
            " Differences are of log(1 + distance), shown as per cent of 1 + distance; the mean is the plain one."
        )
    if not a.no_verdict:
        said += " Intervals are those of single comparisons; p and verdicts are adjusted for all of them (Holm)."
        said += " p is that of the test for a difference." * bool(equivalence(c))
    notes = tuple(n for n in (a.no_verdict, said, equivalence(c), c.note, *a.notes) if n)
    return TableView("statistics", c.title, "Loss", heads, columns, (Block("", rows),), notes, frame)


def _entries(c: Comparison, r: LossResult) -> tuple[Entry, ...]:
    def known(value: float | None, scale: float = 1.0) -> Entry:
        return Entry(NAN if value is None else value * scale)

    scale = 100.0 if c.outcome == "misses" else c.measure.scale
    is_base = r.verdict == "baseline"
    rank = "–" if r.rank is None else str(r.rank)
    if r.rank_low is not None and r.rank_low != r.rank_high:
        rank += f" ({r.rank_low}–{r.rank_high})"
    return (
        known(r.mean, scale),
        Entry(text="baseline") if is_base else Entry(NAN if r.effect is None else c.shown(r.effect)),
        Entry(text="" if is_base else interval_text(c, r.low, r.high) or "–"),
        Entry(text="" if is_base else interval_text(c, r.fixed_low, r.fixed_high) or "–"),
        Entry(text="") if is_base else known(r.p_holm),
        Entry(text="" if is_base else r.verdict + _of_equivalence(r)),
        known(r.tier),
        Entry(text=rank),
        known(r.first, 100.0),
    )


def _of_equivalence(r: LossResult) -> str:
    return f" (p = {r.p_rope:.2g})" if r.verdict == "equivalent" and r.p_rope is not None else ""


def _lost(r: LossResult) -> str:
    parts = [f"{n} {word}" for n, word in ((r.diverged, "diverged"), (r.crashed, "crashed")) if n]
    return ", ".join(parts)


def tier_views(frames: Frames, ranking: Ranking) -> list[TableView]:
    """Metric by loss with the tier in each, after Azad et al., 2023, section 5.6; then the first metric by class."""
    views = []
    for group in frames.groups:
        known = measures(frames.of_group(group), frames.pooled)
        known = [m for m in known if metric_of(m.metric)[0].scope == "case"]
        for model in by_group(frames, group, frames.cases):
            own = frames.parts[group, model]
            planned = frames.cells[(frames.cells["group"] == group) & (frames.cells["model"] == model)]
            losses = frames.losses
            shown = [(m.name, m.shown_profile(known), _first(own, planned, m, ranking, losses)) for m in known]
            classes = [str(x) for x in own["class"].unique()]
            first = next((m for m in known if m.metric == ranking.by[0]), None)
            if first is not None and len(classes) > 1:
                for name in classes:
                    part = own[own["class"] == name]
                    shown.append(
                        (name.replace("_", " "), first.name, _first(part, planned, first, ranking, frames.losses))
                    )
            found = [(name, small, c) for name, small, c in shown if c.analysis and not c.analysis.no_verdict]
            if found:
                views.append(_tiers(group, model, found))
    return views


def _first(
    cases: pd.DataFrame, planned: pd.DataFrame, measure: Measure, ranking: Ranking, losses: Sequence[str]
) -> Comparison:
    """The comparison of values or of distances; misses have a table of their own."""
    return next(outcomes(cases, planned, measure, ranking, losses, detail=False))


def _tiers(group: str, model: str, found: Sequence[tuple[str, str, Comparison]]) -> TableView:
    by_loss: dict[str, list[LossResult | None]] = {}
    for i, (_, _, c) in enumerate(found):
        for r in c.analysis.losses if c.analysis else ():
            by_loss.setdefault(r.loss, [None] * len(found))[i] = r
    rows = tuple(Row(loss, tuple(_place(r) for r in results)) for loss, results in by_loss.items())
    columns = tuple(Column(name, words=True) for name, _, _ in found)
    heads = tuple(Head(small, 1) for _, small, _ in found)
    frame = pd.DataFrame(
        [
            {"dataset": group, "model": model, "loss": loss, "metric": c.measure.metric, "profile": c.measure.profile,
             "column": name, "tier": r.tier, "rank": r.rank, "verdict": r.verdict, "effect": r.effect,
             "low": r.low, "high": r.high, "p_holm": r.p_holm}
            for loss, results in by_loss.items()
            for (name, _, c), r in zip(found, results, strict=True) if r is not None
        ]
    )  # fmt: skip
    notes = (
        "Tier, and the rank by the mean. Tier 1: not shown to be worse than the best, over patients and trainings. "
        "Each column is a family of its own for Holm: over many columns some tiers part by chance.",
    )
    title = f"{group}, {model}: tier of each loss by metric and class"
    return TableView("tiers", title, "Loss", heads, columns, (Block("", rows),), notes, frame)


def _place(r: LossResult | None) -> Entry:
    if r is None or r.tier is None:
        return Entry(text="–")
    return Entry(text=f"{r.tier} ({r.rank})")


def variance_views(found: Sequence[Comparison]) -> list[TableView]:
    """Where the variance lies, and the smallest difference that more seeds would show."""
    views = []
    for c in found:
        a = c.analysis
        if a is None or not a.sources:
            continue
        scale = 100.0 if c.outcome == "misses" else c.measure.scale if c.outcome == "value" else 1.0
        total = sum(s.variance for s in a.sources)
        rows = tuple(
            Row(s.name, (Entry(s.sd * scale), Entry(100 * s.variance / total if total else NAN), Entry(s.df)))
            for s in a.sources
        )
        seeds = [
            f"{count(d.seeds, 'seed')}{' (now)' if d.now else ''}: {number(c.shown(d.difference), 2)}"
            for d in a.detectable
            if d.difference is not None
        ]
        unit = "log(1 + distance)" if c.outcome == "distance" else "%" if scale == 100 else c.measure.shown_unit
        notes = []
        if seeds:
            what = "per cent of 1 + distance" if c.outcome == "distance" else unit
            notes = [f"Smallest difference to the baseline found with a power of 80 % ({what}): {'; '.join(seeds)}."]
        frame = pd.DataFrame([vars(s) for s in a.sources])
        for name, value in (("metric", c.measure.metric), ("model", c.model), ("dataset", c.group)):
            frame.insert(0, name, value)
        columns = (Column(f"SD ({unit})", 3), Column("share of the variance (%)", 1), Column("degrees of freedom", 0))
        heads = (Head(c.heading, 3),)
        views.append(TableView("variance", c.title, "Source", heads, columns, (Block("", rows),), tuple(notes), frame))
    return views


def sensitivity_views(frames: Frames, ranking: Ranking) -> list[TableView]:
    """How far the ranking by the first metric depends on other choices of metric, policy and order: Kendall's tau."""
    views = []
    for group in frames.plain_groups:
        name = ranking.by[0]
        if metric_of(name)[0].scope == "dataset":
            continue
        known = measures(frames.of_group(group), frames.pooled)
        measure = next((m for m in known if m.metric == name), None)
        for model in by_group(frames, group, frames.cases) if measure else []:
            own = frames.parts[group, model]
            assert measure is not None
            if own["loss"].nunique() < 2:
                continue
            found = sensitivity(own, name, measure.profile).assign(dataset=group, model=model)
            title = f"{group}, {model}: ranking by {measure.name} and by other choices"
            short = ", ".join(f"{loss} ({runs})" for loss, runs in lacking(frames, group, model).items())
            note = [f"Ranked by the runs that each loss has. These lack some: {short}."] if short else []
            views.append(_taus(title, found, *note))
    return views + _across_views(frames, ranking.by[0])


def _across_views(frames: Frames, metric: str) -> list[TableView]:
    """The ranking over all data sets, and without one of them: one table per model that has several."""
    views = []
    groups = [g for g in frames.groups if g not in frames.settings or frames.settings[g].plain]
    for model in frames.models if metric_of(metric)[0].scope == "case" and len(groups) > 1 else []:
        rows = frames.cases[(frames.cases["model"] == model) & (frames.cases["metric"] == metric)]
        used = {}  # of several profiles of a data set the first, as in the other tables
        for group in groups:
            first = next((m for m in measures(rows[rows["group"] == group]) if m.metric == metric), None)
            if first is not None:
                used[group] = first
        kept = [(rows["group"] == g) & (rows["profile"] == m.profile) for g, m in used.items()]
        found = across(rows[np.logical_or.reduce(kept)], metric) if len(kept) > 1 else pd.DataFrame()
        if len(found):
            name = next(iter(used.values())).name
            note = (
                f"Main ranking: the rank by {name} in each data set, among the {found['losses'].iloc[0]} losses that "
                "all of them have, then the mean over the data sets. Each data set weighs the same; nothing is tested."
            ) + " With worse labels or fewer patients a data set is left out here." * bool(frames.settings)
            title = f"All data sets, {model}: mean rank by {name}, each data set left out in turn"
            views.append(_taus(title, found.assign(dataset="", model=model), note))
    return views


def _taus(title: str, found: pd.DataFrame, *more: str) -> TableView:
    blocks = tuple(
        Block(str(choice), tuple(_variant(*r) for r in part[["variant", "tau", "first"]].to_numpy()))
        for choice, part in found.groupby("choice", sort=False)
    )
    columns = (Column("Kendall's tau", 2), Column("first", words=True))
    note = "1: the same order; 0: no relation. Differences within a tier are expected to change places."
    return TableView("sensitivity", title, "Choice", (Head("", 2),), columns, blocks, (note, *more), found)


def _variant(name: object, tau: object, first: object) -> Row:
    return Row(str(name), (Entry(float(str(tau))), Entry(text=str(first))))
