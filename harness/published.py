"""The published tables that ship with the package: which there are, and what their rows are called here.

Light on purpose: a suite that names a table is checked without pandas.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.data.manifest import packed
from harness.errors import BenchError
from harness.yamlfile import Strict, nearest, read_yaml

NAMES = "names.yaml"


class LossName(Strict):
    """One loss of a paper.

    Attributes:
        ours: Our loss, as in `bench list losses`.
        labels: Labels of sums in a suite that mean the same.
        args: What the paper states of its arguments, in our names.
        params: Argument in the file's column `params` → our argument.
        complement: Our argument that is 1 minus another one of ours.
        why: In what the compared losses differ; empty where in nothing.
    """

    ours: str = ""
    labels: list[str] = Field(default_factory=list)
    args: dict[str, Any] = Field(default_factory=dict)
    params: dict[str, str] = Field(default_factory=dict)
    complement: dict[str, str] = Field(default_factory=dict)
    why: str = ""

    @model_validator(mode="after")
    def _named(self) -> LossName:
        if not self.ours and not self.labels:
            raise ValueError("give `ours` (a loss) or `labels` (names of sums)")
        return self


class Partner(Strict):
    """The paper's total: varied · L + weight · loss."""

    loss: str
    varied: float
    weight: float


class PublishedTable(Strict):
    """One published table.

    Attributes:
        title: Paper and number.
        data: Data set in the file ("" where it has no such column) → our manifest, or several of the same data.
        models: Model in the file → our model.
        metrics: Metric in the file → our metric.
        classes: Class or task in the file → our class; "*" is the only one; one that is not named has its own name.
        mean_of: Classes that the table's means are over, where it has no rows of their own.
        rows: Column of the file that names the rows.
        over: What means and deviations are over: runs of means over patients, or cases.
        partner: The second term of every loss, where the paper has one.
        losses: Row in the file → our loss.
        notes: Sentences below the comparison.
    """

    title: str
    data: dict[str, str | list[str]]
    models: dict[str, str]
    metrics: dict[str, str]
    classes: dict[str, str] = Field(default_factory=dict)
    mean_of: list[str] = Field(default_factory=list)
    rows: Literal["loss", "schedule"] = "loss"
    over: Literal["runs", "cases"] = "runs"
    partner: Partner | None = None
    losses: dict[str, LossName]
    notes: list[str] = Field(default_factory=list)


class Names(Strict):
    """The schema of `reports/published/names.yaml`."""

    defaults: dict[str, dict[str, Any]]
    tables: dict[str, PublishedTable]


@cache
def published_names() -> Names:
    """What the published tables are called here."""
    return read_yaml(packed("published") / NAMES).parse(Names)


def published_table(name: str) -> tuple[PublishedTable, Path]:
    """A published table and its file.

    Raises:
        BenchError: There is no such table; the sentence names the nearest and all.
    """
    known = published_names().tables
    if name not in known:
        raise BenchError(f"{name!r} is no published table{nearest(name, known)}; known: {', '.join(known)}.")
    return known[name], packed("published") / f"{name}.csv"
