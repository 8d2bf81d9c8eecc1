"""The leaderboard of the page: one table per data set, made of columns, so that a column more is one object more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from harness.report import checks
from harness.report.frames import FAILED, Frames, by_group
from harness.report.tables import Measure, Spread, all_class_means, measures, over_classes, spread, triples
from harness.report.words import number

Key = tuple[str, str]  # (model, loss)
Order = Literal["ascending", "descending"]
STRIP = (132.0, 6.0)  # width and inner margin of the drawing of single runs, in px


@dataclass(frozen=True)
class Strip:
    """Single runs as dots on one line, with a bar at their mean; places in px as text."""

    width: str
    dots: tuple[str, ...]
    mean: str
    label: str


@dataclass(frozen=True)
class BoardCell:
    """One entry of the leaderboard.

    Attributes:
        text: What is shown.
        value: What the column is sorted by; None or NaN sorts last in both directions.
        small: Set smaller after the text, such as the spread.
        alert: What is wrong, in words; shown in the colour of failures.
        mark: "best", "second" or "".
        strip: A drawing instead of the text.
    """

    text: str
    value: float | str | None = None
    small: str = ""
    alert: str = ""
    mark: str = ""
    strip: Strip | None = None

    @property
    def key(self) -> str:
        """The value as an attribute: empty where there is none."""
        missing = self.value is None or (isinstance(self.value, float) and not math.isfinite(self.value))
        return "" if missing else str(self.value)


@dataclass(frozen=True)
class BoardColumn:
    """A column of the leaderboard of one data set.

    Attributes:
        heading: Its name with the unit.
        cells: (model, loss) to its entry; an en dash stands where there is none.
        small: Above the heading, such as the profile.
        metric: Heading of the metric that the column belongs to, for the page's filter; empty: always shown.
        first: Order of the first click.
        kind: "text" aligns left and sorts as text; "strip" is not sorted.
        axis: Lowest and highest value of a column of strips, as text.
    """

    heading: str
    cells: Mapping[Key, BoardCell]
    small: str = ""
    metric: str = ""
    first: Order = "ascending"
    kind: Literal["number", "text", "strip"] = "number"
    axis: tuple[str, str] | None = None

    def cell(self, model: str, loss: str) -> BoardCell:
        """The entry of one row."""
        return self.cells.get((model, loss), BoardCell("–"))


@dataclass(frozen=True)
class Board:
    """The leaderboard of one data set: the losses of each model, in the order of the first measure's means."""

    group: str
    columns: Sequence[BoardColumn]
    blocks: Mapping[str, Sequence[str]]
    patients: int
    classes: int

    @property
    def measured(self) -> bool:
        """Whether any run was measured."""
        return any(c.metric for c in self.columns)


def boards(frames: Frames, extra: Mapping[str, Sequence[BoardColumn]] | None = None) -> list[Board]:
    """The leaderboards in planned order.

    Args:
        frames: The prepared frames.
        extra: Data set to columns that stand behind the first measure: verdict, interval, tier.
    """
    found = []
    costs = {(c.group, c.model, c.loss): c for c in checks.costs(frames)}
    parts = triples(frames)
    for group in frames.groups:
        own = {(model, loss): part for (name, model, loss), part in parts if name == group}
        prices = {key: costs[group, *key] for key in own if (group, *key) in costs}
        found.append(board_view(frames, group, own, prices, (extra or {}).get(group, ())))
    return found


def board_view(
    frames: Frames,
    group: str,
    cells: Mapping[Key, pd.DataFrame],
    costs: Mapping[Key, checks.Cost],
    extra: Sequence[BoardColumn] = (),
) -> Board:
    """One leaderboard.

    Args:
        frames: The prepared frames.
        group: The data set.
        cells: Planned cells by (model, loss), in planned order.
        costs: Costs by (model, loss), where a run was measured.
        extra: Columns behind the first measure.
    """
    cases = frames.of_group(group)
    found = measures(cases, frames.pooled)
    means = all_class_means(frames)
    means = over_classes(means[means["group"] == group])
    parts = dict(iter(means.groupby(["model", "loss", *Measure._fields], sort=False)))
    spreads = {m: {key: spread(parts.get((*key, *m), means.iloc[:0])) for key in cells} for m in found}
    scores = [_scores(m, spreads[m], m.shown_profile(found)) for m in found]
    order = list(cells)
    if found:
        scores[1:1] = [_strips(found[0], spreads[found[0]]), *extra]
        sign = 1 if found[0].lower_is_better else -1
        means_of = {k: s.mean for k, s in spreads[found[0]].items()}
        order.sort(key=lambda k: math.inf if math.isnan(means_of[k]) else sign * means_of[k])
    return Board(
        group,
        [*scores, _runs(cells), *_prices(costs)],
        {m: [loss for model, loss in order if model == m] for m in by_group(frames, group, frames.cells)},
        cases["patient"].nunique(),
        cases["class"].nunique(),
    )


def _scores(measure: Measure, spreads: Mapping[Key, Spread], profile: str) -> BoardColumn:
    k, decimals = measure.scale, measure.decimals
    cells = {}
    for key, s in spreads.items():
        sd = f"± {number(s.sd * k, decimals)}" if s.sd == s.sd else "± n/a"
        cells[key] = BoardCell(number(s.mean * k, decimals), s.mean, sd if s.runs else "")
    first: Order = "ascending" if measure.lower_is_better else "descending"
    return BoardColumn(measure.heading, cells, profile, measure.heading, first)


def _strips(measure: Measure, spreads: Mapping[Key, Spread]) -> BoardColumn:
    values = [v * measure.scale for s in spreads.values() for v in s.runs]
    limits = (min(values), max(values)) if values else (0.0, 0.0)
    cells = {}
    for key, s in spreads.items():
        strip = _strip(s, measure, limits) if s.runs else None
        cells[key] = BoardCell("" if strip else "no measured run", strip=strip)
    shown = (number(limits[0], 1), number(limits[1], 1)) if values else None
    return BoardColumn("single runs", cells, metric=measure.heading, kind="strip", axis=shown)


def _strip(s: Spread, measure: Measure, limits: tuple[float, float]) -> Strip:
    width, margin = STRIP
    low, high = limits

    def place(value: float) -> str:
        share = 0.5 if high == low else (value * measure.scale - low) / (high - low)
        return f"{margin + share * (width - 2 * margin):.1f}"

    label = "single runs: " + ", ".join(number(v * measure.scale, measure.decimals) for v in s.runs)
    return Strip(f"{width:.0f}", tuple(place(v) for v in s.runs), place(s.mean), label)


def _runs(cells: Mapping[Key, pd.DataFrame]) -> BoardColumn:
    """Measured of planned runs, and in words how many failed."""
    out = {}
    for key, part in cells.items():
        counts = part["status"].value_counts()
        ok, failed = int(counts.get("ok", 0)), int(sum(counts.get(s, 0) for s in FAILED))
        word = "diverged" if failed and failed == counts.get("diverged", 0) else "failed"
        cell = BoardCell(f"{ok}/{len(part)}", float(ok))
        out[key] = replace(cell, alert=f"{failed} {word}") if failed else cell
    return BoardColumn("Runs", out, first="descending")


def _prices(costs: Mapping[Key, checks.Cost]) -> list[BoardColumn]:
    """Time of a step, of its maps (what is derived from the label for the loss), and memory."""

    def column(heading: str, name: str, decimals: int) -> BoardColumn:
        values: dict[Key, float] = {key: getattr(cost, name) for key, cost in costs.items()}
        return BoardColumn(heading, {key: BoardCell(number(v, decimals), v) for key, v in values.items()})

    return [
        column("ms/step", "step_ms", 1),
        column("of it, maps", "targets_ms", 1),
        column("Peak MB", "peak_rss_mb", 0),
    ]
