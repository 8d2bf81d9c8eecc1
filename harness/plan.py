"""Plan: every cell of a suite with its state, from records alone."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell import Cell
from harness.errors import BenchError
from harness.records import RETRIED, STATUSES, RunRecord, read_record
from harness.suite import Suite
from harness.yamlfile import nearest

_KEYS: dict[str, Callable[[Cell], str]] = {
    "loss": lambda c: c.loss_label,
    "model": lambda c: c.model_label,
    "dataset": lambda c: c.dataset,
    "seed": lambda c: str(c.seed),
    "fold": lambda c: str(c.data["fold"]),
}


@dataclass(frozen=True)
class Entry:
    """A cell and what is known of it.

    Attributes:
        cell: The cell.
        state: A status of a record, `missing`, or `stale` where the source has changed since.
        record: The record, if there is one.
        folder: Folder of the evaluation the record stands in.
        problem: A damaged record: what is wrong with it.
    """

    cell: Cell
    state: str
    record: RunRecord | None = None
    folder: Path | None = None
    problem: str = ""

    @property
    def todo(self) -> bool:
        """Whether `bench run` would run it."""
        return self.state == "missing" or self.state in RETRIED


def make_plan(suite: Suite, out: Path, reports: Path, only: Sequence[str] = ()) -> list[Entry]:
    """Look up every cell of a suite in the results folder, then in committed records.

    Args:
        suite: The suite.
        out: Folder of results.
        reports: Folder whose `*/records/` hold committed records.
        only: Filters `key=glob` with key loss, model, dataset, seed or fold.

    Raises:
        BenchError: A filter is malformed or matches no cell.
    """
    places = [out, *sorted(reports.glob("*/records"))]
    cells = _filtered(suite.cells, only)
    return [_entry(cell, places) for cell in cells]


def to_rerun(entries: Iterable[Entry], rerun: str | None) -> list[Entry]:
    """Entries that a run works on: missing and retried ones, and those of the state `rerun`."""
    return [e for e in entries if e.todo or rerun == "all" or (rerun is not None and e.state == rerun)]


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Number of entries per state, in the order of the closed set."""
    found = Counter(e.state for e in entries)
    return {s: found[s] for s in (*STATUSES, "stale", "missing") if found[s]}


def _entry(cell: Cell, places: list[Path]) -> Entry:
    """The best that is known of a cell: a result before a stale one, before a failure, before nothing."""
    if cell.skip:
        return Entry(cell, "skip", problem=cell.skip)
    found: list[Entry] = []
    problem = ""
    for place in places:
        folder = cell.eval_folder(place)
        path = folder / "record.json"
        if not path.is_file():
            continue
        try:
            record = read_record(path)
        except BenchError as error:
            problem = str(error)
            continue
        if record.eval_id != cell.eval_id or record.train_id != cell.train_id:
            problem = f"{path}: the record is of another cell"
            continue
        if record.status == "skip":
            continue  # of a loss that asked for more than it does now
        fresh = record.sources == {"loss": cell.loss_digest, "model": cell.model_source.digest}
        state = "stale" if record.status in ("ok", "diverged") and not fresh else record.status
        found.append(Entry(cell, state, record, folder))
    order = ("ok", "diverged", "stale")
    found.sort(key=lambda e: order.index(e.state) if e.state in order else len(order))
    return found[0] if found else Entry(cell, "missing", problem=problem)


def _filtered(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    kept = list(cells)
    for text in only:
        key, equals, pattern = text.partition("=")
        if not equals or key not in _KEYS:
            raise BenchError(
                f"--only {text}: expected KEY=GLOB with KEY one of {', '.join(_KEYS)}{nearest(key, _KEYS)}."
            )
        known = list(dict.fromkeys(_KEYS[key](c) for c in kept))
        kept = [c for c in kept if _KEYS[key](c) == pattern or fnmatch.fnmatchcase(_KEYS[key](c), pattern)]
        if not kept:
            raise BenchError(f"--only {text}: no cell matches; {key} is one of: {', '.join(known)}.")
    return kept
