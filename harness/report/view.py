"""What a table is before it is HTML, CSV or LaTeX: headings, blocks of rows, entries with value, spread and mark.

The three renderings differ in syntax alone: which columns there are, how a number is rounded, what is marked and what
is said below is decided here and in the layouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import pandas as pd

from harness.report.tables import Measure, marks

NAN = float("nan")
FRAME_COLUMNS = (
    "dataset", "model", "loss", "class", "metric", "profile", "unit", "value", "sd", "sd_over", "mark", "runs",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a number of a table is: its place in the CSV file.

    Attributes:
        name: Class, or "average" over classes.
        unit: As shown: "%", "1", "mm", "voxel".
        over: What its standard deviation is over: "seeds" or "cases".
        runs: "4/5 runs" where runs are missing, else "".
    """

    group: str
    model: str
    loss: str
    name: str
    measure: Measure
    unit: str
    over: str = "seeds"
    runs: str = ""


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        value: In the unit of its column; NaN where there is no number, shown as a dash.
        sd: Standard deviation in the same unit; NaN where there is none.
        mark: "best", "second" or "".
        text: Words that stand here in place of a number; None for a number, "" for an empty place.
        remark: Shown small behind it: "4/5 runs".
        source: What the number is; None for words and for what no run was planned for.
    """

    value: float = NAN
    sd: float = NAN
    mark: str = ""
    text: str | None = None
    remark: str = ""
    source: Source | None = None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its heading.
        decimals: How many are printed.
        lower_is_better: Direction of the marks; None where nothing is ever marked.
        spread: Whether the standard deviation is printed.
        signed: Whether a plus is printed.
        words: Whether it holds words: set to the left.
    """

    name: str
    decimals: int = 2
    lower_is_better: bool | None = None
    spread: bool = False
    signed: bool = False
    words: bool = False

    def show(self, entry: Entry) -> str:
        """The entry without its spread: fixed decimals, a minus sign, an en dash where there is no number."""
        if entry.text is not None:
            return entry.text
        if not math.isfinite(entry.value):
            return "–"
        sign = "+" if self.signed else ""
        return f"{entry.value:{sign},.{self.decimals}f}".replace(",", "\u202f").replace("-", "\u2212")

    def show_sd(self, entry: Entry) -> str:
        """`± 0.12`, or nothing."""
        if not self.spread or entry.text is not None or not math.isfinite(entry.sd):
            return ""
        return f"± {entry.sd:,.{self.decimals}f}".replace(",", "\u202f")


@dataclass(frozen=True)
class Head:
    """A heading over `span` columns; `lower` draws the arrow of the better direction, None draws none."""

    name: str
    span: int
    profile: str = ""
    lower: bool | None = None


@dataclass(frozen=True)
class Row:
    """A row: its name, what is said behind the name, and one entry per column."""

    name: str
    entries: tuple[Entry, ...]
    remark: str = ""


@dataclass(frozen=True)
class Block:
    """Rows under one heading, such as a model; without a name there is no heading. Marks stay within a block."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class TableView:
    """A table ready to be rendered.

    Attributes:
        layout: Name in the suite's `report.layout`, and of its files.
        title: What it is about: the data set, and the published table where there is one.
        stub: Heading of the rows' names; without it the rows have none.
        heads: First row of headings; their spans add up to the columns.
        columns: Second row of headings.
        blocks: The rows.
        notes: Sentences below. Without columns they are all there is: why there is no table.
        frame: The numbers as they stand in the CSV file, one a row, unrounded.
    """

    layout: str
    title: str
    stub: str = ""
    heads: tuple[Head, ...] = ()
    columns: tuple[Column, ...] = ()
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    @property
    def starts(self) -> tuple[int, ...]:
        """Indices of the columns at which a heading starts."""
        return tuple(sum(h.span for h in self.heads[:i]) for i in range(len(self.heads)))

    @property
    def width(self) -> int:
        """Columns with that of the rows' names."""
        return len(self.columns) + bool(self.stub)

    @property
    def height(self) -> int:
        """Printed rows without the headings on top."""
        return sum(len(b.rows) + bool(b.name) for b in self.blocks)


def marked(block: Block, columns: Sequence[Column]) -> Block:
    """Mark the best and the second best of every column by the printed number.

    A number that leaves runs out is never marked: a mean without its hard run is no better mean.
    """
    by_column = [
        marks(
            [_whole(row.entries[i]) for row in block.rows],
            lower_is_better=column.lower_is_better,
            decimals=column.decimals,
        )
        if column.lower_is_better is not None
        else [""] * len(block.rows)
        for i, column in enumerate(columns)
    ]
    rows = (
        replace(row, entries=tuple(replace(e, mark=by_column[i][n]) for i, e in enumerate(row.entries)))
        for n, row in enumerate(block.rows)
    )
    return Block(block.name, tuple(rows))


def _whole(entry: Entry) -> float:
    return NAN if entry.source is not None and entry.source.runs else entry.value


def frame_of(blocks: Sequence[Block]) -> pd.DataFrame:
    """The numbers of the blocks in printed order, with `FRAME_COLUMNS`; the marks are those that are printed."""
    rows = [
        (
            s.group, s.model, s.loss, s.name, s.measure.name, s.measure.profile, s.unit, e.value, e.sd, s.over, e.mark,
            s.runs,
        )
        for block in blocks for row in block.rows for e in row.entries if (s := e.source) is not None
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(FRAME_COLUMNS))


def heads_of(
    found: Sequence[Measure], among: Sequence[Measure], names: Sequence[str] | None = None
) -> tuple[Head, ...]:
    """One heading per run of equal measures; `names` replace the usual headings, one per column."""
    named = list(zip(found, names or [m.heading for m in found], strict=True))
    heads = []
    for (measure, name), part in groupby(named):
        heads.append(Head(name, len(list(part)), measure.shown_profile(among), measure.lower_is_better))
    return tuple(heads)
