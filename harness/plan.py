"""Plan: every cell of a suite with its state, from records alone."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell import Cell
from harness.errors import BenchError
from harness.records import RETRIED, STATUSES, RunRecord
from harness.store import Home, Records
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


def make_plan(suite: Suite, out: Path | Sequence[Path], reports: Path, only: Sequence[str] = ()) -> list[Entry]:
    """Look up every cell of a suite in the results folders, then in committed records.

    Args:
        suite: The suite.
        out: Folder of results, or several: of equally good records that of the first folder is taken.
        reports: Folder whose `*/records/` hold committed records.
        only: Filters `key=glob` with key loss, model, dataset, seed or fold.

    Raises:
        BenchError: A filter is malformed or matches no cell, or one of several folders does not exist.
    """
    outs = [out] if isinstance(out, Path) else [*out]
    absent = [str(p) for p in outs if len(outs) > 1 and not p.is_dir()]
    if absent:
        raise BenchError(f"--out {absent[0]}: no such folder; of several folders of results each must be there.")
    places = [str(p) for p in (*outs, *sorted(reports.glob("*/records"))) if p.is_dir()]
    records = Records(Home(outs[0], suite.name))
    entries = [_entry(cell, places, records) for cell in _filtered(suite.cells, only)]
    if not only:  # what is known of the other cells stays known
        records.save()
    return entries


def to_rerun(entries: Iterable[Entry], rerun: str | None) -> list[Entry]:
    """Entries that a run works on: missing and retried ones, and those of the state `rerun`."""
    return [e for e in entries if e.todo or rerun == "all" or (rerun is not None and e.state == rerun)]


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Number of entries per state, in the order of the closed set."""
    found = Counter(e.state for e in entries)
    return {s: found[s] for s in (*STATUSES, "stale", "missing") if found[s]}


def _entry(cell: Cell, places: Sequence[str], records: Records) -> Entry:
    """The best that is known of a cell: a result before a stale one, before a failure, before nothing."""
    if cell.skip:
        return Entry(cell, "skip", problem=cell.skip)
    found: list[Entry] = []
    problem = ""
    train_id, eval_id = cell.train_id, cell.eval_id
    name = f"{train_id}/{eval_id}/record.json"
    for place in places:
        try:
            record = records.read(place, name)
        except BenchError as error:
            problem = str(error)
            continue
        if record is None:
            continue
        if record.eval_id != eval_id or record.train_id != train_id:
            problem = f"{place}/{name}: the record is of another cell"
            continue
        if record.status == "skip":
            continue  # of a loss that asked for more than it does now
        fresh = record.sources == cell.sources
        state = "stale" if record.status in ("ok", "diverged") and not fresh else record.status
        found.append(Entry(cell, state, record, Path(place, train_id, eval_id)))
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
