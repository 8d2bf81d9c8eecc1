"""What has become of the cell of a task that is gone, read from its record, its mark and its log, in this order."""

from __future__ import annotations

import re
from pathlib import Path

from harness.backends.slurm_jobs import Submission, tail
from harness.backends.slurm_task import ELSEWHERE, Mark
from harness.cell import Cell, Place
from harness.errors import BenchError
from harness.records import RETRIED, RunRecord, read_record

OUT_OF_MEMORY = re.compile(r"oom[-_ ]?kill|exceeded (job|step)? ?memory limit", re.IGNORECASE)


def ended(mark: Mark | None) -> bool:
    """Whether a cell's task got a record for it; an interrupted one continues."""
    return mark is not None and mark.status not in ("begun", "interrupted", ELSEWHERE)


def record_of(cell: Cell, place: Place) -> RunRecord | None:
    """The record of a cell as it is now; none where it is missing or damaged."""
    try:
        return read_record(cell.eval_folder(place.out) / "record.json")
    except BenchError:
        return None


def counts(record: RunRecord, cell: Cell, place: Place, mark: Mark | None, job: Submission, fresh: bool) -> bool:
    """Whether a record is what became of the cell now, not what was there before its task.

    Args:
        record: What is there.
        cell: Its cell.
        place: Where it is.
        mark: The last that its task said of it.
        job: The submission of the task.
        fresh: Whether a result that was there is to be made again.
    """
    if mark is None:  # another process may have finished it
        return record.status not in RETRIED and not fresh
    if ended(mark):
        return record.status == mark.status
    if record.status not in RETRIED:
        return True  # a result that was to be made again is removed when the cell begins
    path = cell.eval_folder(place.out) / "record.json"  # its task can die between record and mark
    return record.status != "interrupted" and _newer(path, job.seen / f"{cell.eval_id}.begun")


def advanced(cell: Cell, place: Place, mark: Mark | None, job: Submission) -> bool:
    """Whether a cell that is not finished has come further in its task."""
    if mark is None:
        return False
    if mark.status == "interrupted":
        return mark.steps > 0
    begun = job.seen / f"{cell.eval_id}.begun"
    return any(_newer(cell.folder(place.out) / name, begun) for name in ("checkpoint.pt", "train.json"))


def out_of_memory(fate: str, log: Path) -> bool:
    """Whether SLURM ended a task for its memory, by what it says of the task or wrote into its log."""
    return fate.startswith("OUT_OF_ME") or OUT_OF_MEMORY.search(tail(log, 20)) is not None


def why(job: Submission, index: int, fate: str, tries: int) -> str:
    """The message of a cell whose tasks ended so many times in a row without a record."""
    times = f"{tries} times in a row" if tries > 1 else "once"
    last = tail(job.log(index))
    return (
        f"its SLURM job ended without a record {times}, at last job {job.task(index)} "
        f"({fate or 'SLURM no longer knows it'}); log: {job.log(index)}" + (f": {last}" if last else "")
    )


def _newer(path: Path, than: Path) -> bool:
    """Whether a file was written after another; by the clock of the file server, where both lie."""
    try:
        return path.stat().st_mtime >= than.stat().st_mtime
    except OSError:
        return False
