"""The studies of a run: their trials first, each in its own order and side by side with those of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

from harness.cell import Cell
from harness.claims import held
from harness.errors import BenchError
from harness.follow import Follow
from harness.plan import Entry
from harness.records import RETRIED, RunRecord, read_record
from harness.tuning.study import Study, study_key


class Studies:
    """What of a run can start, and what joins it as trials end.

    A trial that failed is an answer and not tried again; where all of a study failed, and not by diverging alone,
    something else is wrong, such as a file: then the same command tries them again.

    Args:
        todo: The cells of the run; those that are tuned wait for their trials.
        out: Folder of results.

    Attributes:
        start: Entries that can start now: first trials, and cells that wait for none.
        follow: What joins: further trials, then the cells that waited for them.
    """

    def __init__(self, todo: Sequence[Entry], out: Path) -> None:
        self._out = out
        self._open: dict[str, Study] = {}
        self._waiting: dict[str, list[Cell]] = {}
        self._started: set[str] = set()
        for entry in todo:
            if _waits(entry):
                self._waiting.setdefault(study_key(entry.cell), []).append(entry.cell)
        rows = []
        for key, cells in self._waiting.items():
            self._open[key] = _opened(cells[0], out)
            rows.append([*self._next(key)])
        trials = [cell for row in _across(rows) for cell in row if cell.trial is not None]
        waiting = {cell.eval_id for key in self._open for cell in self._waiting[key]}
        self.start = [Entry(cell, "missing") for cell in trials]
        self.start += [entry for entry in todo if entry.cell.eval_id not in waiting]
        left = sum(study.tune["trials"] - len(study.outcomes) for study in self._open.values()) - len(trials)
        later = [entry.cell for entry in todo if entry.cell.eval_id in waiting]
        fresh = frozenset(entry.cell.eval_id for entry in todo if entry.cell.eval_id in waiting and not entry.todo)
        self.follow = Follow(self._ended, tuple(later), len(later) + left, fresh)

    def _ended(self, cell: Cell, record: RunRecord) -> list[Cell]:
        """After a cell: what its study can do now. Of an interrupted trial nothing: the same command continues it."""
        if cell.trial is None or record.status == "interrupted":
            return []
        return [c for key in list(self._open) if self._holds(key, cell) for c in self._next(key)]

    def _holds(self, key: str, cell: Cell) -> bool:
        return any(t.cell.eval_id == cell.eval_id for t in self._open[key].trials)

    def _next(self, key: str) -> Iterator[Cell]:
        """The trials of a study that start now; its waiting cells where it is complete."""
        study = self._open[key]
        for trial in study.pending():
            if trial.cell.eval_id not in self._started:
                self._started.add(trial.cell.eval_id)
                _forget(trial.cell, self._out)
                yield trial.cell
        if study.complete:
            del self._open[key]
            yield from self._waiting[key]


def _waits(entry: Entry) -> bool:
    return "tune" in entry.cell.train and not entry.cell.skip


def _across(rows: Iterable[list[Cell]]) -> Iterator[list[Cell]]:
    """The first of each row, then the second of each: no study waits for another."""
    for column in zip_longest(*rows):
        yield [cell for cell in column if cell is not None]


def _opened(cell: Cell, out: Path) -> Study:
    """The study of a cell; where none of its trials succeeded, those that can be tried again are forgotten.

    They are not while another process is at the study: what failed there may yet be followed by what succeeds.
    """
    study = Study(cell, out)
    study.pending()
    told = list(zip(study.trials, study.outcomes, strict=False))
    again = [trial.cell for trial, outcome in told if outcome.status in RETRIED]
    if not again or any(outcome.value is not None for _, outcome in told):
        return study
    if not study.complete and any(held(trial.cell.folder(out)) for trial in study.trials):
        return study
    for one in again:
        _forget(one, out)
    return Study(cell, out)


def _forget(cell: Cell, out: Path) -> None:
    """Remove a trial's record that is no answer: of another source, without its rows, or to be tried again.

    A training of another source goes, too, also where the trial was killed before its evaluation had a record.
    """
    trained = cell.folder(out) / "train.json"
    with suppress(BenchError):
        sources = read_record(trained).sources
        if any(sources.get(k) != cell.sources[k] for k in ("loss", "model")):
            trained.unlink(missing_ok=True)
    (cell.eval_folder(out) / "record.json").unlink(missing_ok=True)


def budget(entries: Iterable[Entry]) -> dict[str, int]:
    """The studies that entries need, each with all of its trials, from the plan alone."""
    return {study_key(e.cell): int(e.cell.train["tune"]["trials"]) for e in entries if _waits(e)}


def in_words(entries: Iterable[Entry]) -> str:
    """`; up to 40 trials of 2 studies before them`, or nothing."""
    found = budget(entries)
    return f"; up to {sum(found.values())} trials of {len(found)} studies before them" if found else ""
