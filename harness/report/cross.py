"""Cross-evaluation: networks trained with one loss, scored by the others (Azad et al., 2023, section 5.6).

The values are the metrics `loss:NAME`, measured by the cells. They stand in this table alone: a loss is no measure of
quality, and two losses have no scale in common, so no leaderboard and no mean takes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.metrics.table import LOSS
from harness.report.frames import Frames
from harness.report.tables import Measure, run_means, spread
from harness.report.verdicts import Ranking, outcomes
from harness.report.view import NAN, Block, Column, Entry, Head, Row, TableView, marked

TITLE = "networks scored by every loss"
_ABOUT = (
    "A row is the loss that networks were trained with, a column the loss that scores them: its value on the logits of "
    "each test case on the network's grid, mean over patients, then over runs. Smaller is better; the values of two "
    "columns have no scale in common. In brackets the rank in the column by the printed means{tier}; own: the loss "
    "that the network was trained with, without what the rule `with` added to it. The last column is the mean rank in "
    "the other columns, the leave-one-out evaluation of Azad et al. (2023, section 5.6): it asks whether a network is "
    "good, or good at its own loss alone. A loss that is close to the one that scores has an advantage there."
)
_TIER = (
    ", and the tier: tier 1 is not shown to be worse than the best, over patients and trainings (Holm within a column)"
)


@dataclass(frozen=True)
class _Score:
    """What one loss says of the networks trained with one loss."""

    mean: float
    sd: float
    runs: int
    rank: int | None
    tier: int | None


def cross_views(frames: Frames, ranking: Ranking) -> list[TableView]:
    """One table per data set and model: rows trained with, columns scored by; none where no cell was scored so.

    Args:
        frames: The prepared frames.
        ranking: Whose baseline the statistics take.
    """
    views = []
    for group in frames.groups:
        for model in frames.models:
            rows = frames.cross[(frames.cross["group"] == group) & (frames.cross["model"] == model)]
            planned = frames.cells[(frames.cells["group"] == group) & (frames.cells["model"] == model)]
            if len(rows):
                views.append(_view(group, model, rows, planned, ranking, frames.losses))
    return views


def _view(
    group: str, model: str, rows: pd.DataFrame, planned: pd.DataFrame, ranking: Ranking, losses: Sequence[str]
) -> TableView:
    trained = [x for x in losses if x in set(rows["loss"])]
    means = run_means(rows)
    found = {
        str(name): _scores(means[means["metric"] == name], rows, planned, str(name), ranking, losses)
        for name in dict.fromkeys(rows["metric"])
    }
    planned_runs = planned["loss"].value_counts()
    lines: list[Row] = []
    records: list[dict[str, object]] = []
    for loss in trained:
        scores = {name: by[loss] for name, by in found.items() if loss in by}
        others = [s.rank for name, s in scores.items() if name != LOSS + loss and s.rank is not None]
        mean_rank = sum(others) / len(others) if others else NAN
        entries = [_entry(scores.get(name), name == LOSS + loss) for name in found]
        ran = max(s.runs for s in scores.values())
        lost = f"{ran}/{planned_runs[loss]} runs" if ran < planned_runs[loss] else ""
        lines.append(Row(loss, (*entries, Entry(mean_rank)), lost))
        records += [
            {"dataset": group, "model": model, "loss": loss, "scored_by": name.removeprefix(LOSS), "value": s.mean,
             "sd": s.sd, "runs": s.runs, "rank": s.rank, "tier": s.tier, "own": name == LOSS + loss,
             "mean_rank_by_others": mean_rank}
            for name, s in scores.items()
        ]  # fmt: skip
    columns = [Column(n.removeprefix(LOSS), _decimals(s.mean for s in by.values()), True) for n, by in found.items()]
    columns.append(Column("mean rank by others", 1, True))
    tiers = any(s.tier is not None for by in found.values() for s in by.values())
    heads = (Head("scored by", len(found), lower=True), Head("", 1))
    notes = (_ABOUT.format(tier=_TIER if tiers else ""),)
    block = marked(Block("", tuple(lines)), columns)
    frame = pd.DataFrame(records).astype({"rank": "Int64", "tier": "Int64"})
    return TableView(
        "cross", f"{group}, {model}: {TITLE}", "Trained with", heads, tuple(columns), (block,), notes, frame
    )


def _scores(
    means: pd.DataFrame,
    rows: pd.DataFrame,
    planned: pd.DataFrame,
    metric: str,
    ranking: Ranking,
    losses: Sequence[str],
) -> dict[str, _Score]:
    """A column: what one loss says of the networks of each loss."""
    spreads = {str(loss): spread(part) for loss, part in means.groupby("loss", sort=False, observed=True)}
    spreads = {loss: s for loss, s in spreads.items() if math.isfinite(s.mean)}
    decimals = _decimals(s.mean for s in spreads.values())
    printed = {loss: round(s.mean, decimals) for loss, s in spreads.items()}
    tiers = _tiers(rows, planned, metric, ranking, losses)
    return {
        loss: _Score(s.mean, s.sd, len(s.runs), 1 + sum(v < printed[loss] for v in printed.values()), tiers.get(loss))
        for loss, s in spreads.items()
    }


def _tiers(
    rows: pd.DataFrame, planned: pd.DataFrame, metric: str, ranking: Ranking, losses: Sequence[str]
) -> Mapping[str, int | None]:
    """Tiers of a column; empty where there are no verdicts."""
    compared = next(outcomes(rows, planned, Measure(metric, "", ""), ranking, losses))
    if compared.analysis is None or compared.analysis.no_verdict:
        return {}
    return {r.loss: r.tier for r in compared.analysis.losses}


def _entry(score: _Score | None, own: bool) -> Entry:
    if score is None:
        return Entry()
    parts = [str(score.rank), *([f"tier {score.tier}"] if score.tier is not None else []), *(["own"] if own else [])]
    return Entry(score.mean, remark=", ".join(parts))


def _decimals(values: Iterable[float]) -> int:
    """As many as give the largest value of a column four digits, at most six."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 4
