"""Which values of a hyperparameter stay in the top tier on every data set, after Azad et al., 2023, section 5.1.

The tiers are those of the statistics among the settings of one loss alone; other losses have no part in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from harness.report.figures.sweeps import Sweep, sweeps_of
from harness.report.frames import Frames, by_group
from harness.report.tables import measures
from harness.report.verdicts import Comparison, Ranking, outcomes
from harness.report.view import Block, Column, Entry, Head, Row, TableView
from harness.report.words import joined

TOP = "the first tier"


def sweep_range_views(frames: Frames, ranking: Ranking) -> list[TableView]:
    """One table per sweep: the tier of each setting on each data set and model, and the sentence that follows.

    Args:
        frames: The prepared frames.
        ranking: What the suite ranks by; the first metric is taken.
    """
    return [_view(sweep, compared(frames, ranking, sweep), ranking.by[0]) for sweep in sweeps_of(frames.losses)]


def compared(frames: Frames, ranking: Ranking, sweep: Sweep) -> list[Comparison]:
    """The settings of a sweep against each other, for each data set and model that has two of them."""
    labels = [label for label, _ in sweep.settings]
    found = []
    for group in frames.groups:
        known = measures(frames.of_group(group), frames.pooled)
        measure = next((m for m in known if m.metric == ranking.by[0]), None)
        for model in by_group(frames, group, frames.cases) if measure is not None else ():
            rows = frames.parts[group, model]
            rows = rows[rows["loss"].isin(labels)]
            planned = frames.cells[(frames.cells["group"] == group) & (frames.cells["model"] == model)]
            planned = planned[planned["loss"].isin(labels)]
            if rows["loss"].nunique() > 1 and measure is not None:
                own = replace(ranking, baseline=None)
                found.append(next(outcomes(rows, planned, measure, own, labels, detail=False)))
    return found


def sentence(sweep: Sweep, found: Sequence[Comparison], metric: str) -> str:
    """The range of a sweep that is in the top tier wherever there is a verdict; or that none is, or why none can be."""
    if not found:
        return f"{sweep.title}: fewer than two values were measured by {metric}, so no verdict is possible."
    judged = [c for c in found if _reason(c) is None]
    silent = [c for c in found if _reason(c) is not None]
    if not judged:
        reasons = list(dict.fromkeys(str(_reason(c)) for c in silent))
        return f"{sweep.title}: no verdict is possible. {' '.join(reasons)}"
    everywhere = "on every data set and model measured" if not silent else "wherever there is a verdict"
    places = joined([f"{c.group} with {c.model}" for c in judged])
    kept = [(label, value) for label, value in sweep.settings if all(label in _top(c) for c in judged)]
    named = judged[0].heading
    if not kept:
        own = "; ".join(f"{c.group} with {c.model}: {_named(sweep, _top(c)) or 'none'}" for c in judged)
        text = f"{sweep.title}: no value is in {TOP} of {named} {everywhere} ({own})."
    elif len(kept) == len(sweep.settings):
        text = (
            f"{sweep.title}: all {len(kept)} values, {_named(sweep, {x for x, _ in kept})}, are in {TOP} of {named} "
            f"{everywhere} ({places}): no difference between them is shown."
        )
    else:
        word = "is" if len(kept) == 1 else "are"
        text = (
            f"{sweep.title}: of {len(sweep.settings)} values {_named(sweep, {x for x, _ in kept})} {word} in {TOP} of "
            f"{named} {everywhere} ({places})."
        )
    if silent:
        text += " No verdict on " + "; ".join(f"{c.group} with {c.model}: {_reason(c)}" for c in silent)
    return text


def _reason(c: Comparison) -> str | None:
    """Why there is no verdict; None where there is one."""
    if c.analysis is None:
        return c.reason
    return c.analysis.no_verdict


def _top(c: Comparison) -> set[str]:
    return {r.loss for r in c.analysis.losses if r.tier == 1} if c.analysis else set()


def _named(sweep: Sweep, labels: set[str]) -> str:
    """`1.5 to 2.5` for values that follow each other, and a list where there are gaps."""
    settings = _sorted(sweep)
    at = [i for i, (label, _) in enumerate(settings) if label in labels]
    values = [_shown(settings[i][1]) for i in at]
    if len(at) > 2 and at == list(range(at[0], at[-1] + 1)) and _numbers(sweep):
        return f"{values[0]} to {values[-1]}"
    return joined(values) if values else ""


def _sorted(sweep: Sweep) -> list[tuple[str, str]]:
    return sorted(sweep.settings, key=lambda s: float(s[1].split(", ")[0])) if _numbers(sweep) else [*sweep.settings]


def _numbers(sweep: Sweep) -> bool:
    try:
        return all(float(value.split(", ")[0]) is not None for _, value in sweep.settings)
    except ValueError:
        return False


def _shown(value: str) -> str:
    return f"({value})" if ", " in value else value


def _view(sweep: Sweep, found: Sequence[Comparison], metric: str) -> TableView:
    said = sentence(sweep, found, metric)
    judged = [c for c in found if c.analysis is not None]
    if not judged:
        return TableView("sweeps", sweep.title, notes=(said,))
    columns = tuple(Column(c.model, words=True) for c in judged)
    heads = tuple(Head(c.group, 1) for c in judged)
    rows, lines = [], []
    for label, value in sweep.settings:
        results = [
            next((r for r in c.analysis.losses if r.loss == label), None) if c.analysis else None for c in judged
        ]
        rows.append(Row(_shown(value), tuple(Entry(text=_tier(r)) for r in results)))
        lines += [
            {"loss": sweep.loss, "argument": sweep.argument, "fixed": sweep.fixed, "value": value, "dataset": c.group,
             "model": c.model, "metric": c.measure.metric, "profile": c.measure.profile, "tier": r.tier, "rank": r.rank}
            for c, r in zip(judged, results, strict=True) if r is not None
        ]  # fmt: skip
    note = (
        f"Tier by {judged[0].heading} among the settings of this loss alone, and the rank by the mean. Tier 1: not "
        "shown to be worse than the best setting."
    )
    title = f"{sweep.title}: tier of each value"
    return TableView(
        "sweeps", title, sweep.argument, heads, columns, (Block("", tuple(rows)),), (said, note), pd.DataFrame(lines)
    )


def _tier(r: object) -> str:
    tier, rank = getattr(r, "tier", None), getattr(r, "rank", None)
    return "–" if tier is None else f"{tier} ({rank})"
