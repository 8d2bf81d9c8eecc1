"""Laying checked records beside those that are there: nothing is replaced, and all of it is laid down or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BenchError
from harness.records import UMASK, RunRecord, read_record
from harness.sharing.archive import Archive
from harness.sharing.contents import SHARED, Checked
from harness.sharing.pack import write_file


@dataclass(frozen=True)
class Outcome:
    """What became of the cells of an archive.

    Attributes:
        new: Cells that were laid down.
        present: Cells whose numbers were there already.
        kept: Cells for which something else is there, with the reason; what is there stays.
    """

    new: tuple[Checked, ...]
    present: tuple[Checked, ...]
    kept: tuple[tuple[Checked, str], ...]


def place_records(archive: Archive, target: Path) -> Outcome:
    """Copy the cells of an archive to a folder of records.

    The first result stays: that another machine measured otherwise is no reason to prefer it, and least of all that its
    training diverged where this one did not.

    Args:
        archive: The archive.
        target: Such as `reports/SUITE/records`; made where it is not there.

    Raises:
        BenchError: The folder cannot be written; it is then as it was.
    """
    if target.exists() and not target.is_dir():
        raise BenchError(f"{target}: is no folder; name another with --to.")
    new: list[Checked] = []
    present: list[Checked] = []
    kept: list[tuple[Checked, str]] = []
    for cell in archive.cells:
        reason = _standing(archive, cell, target)
        if reason is None:
            new.append(cell)
        elif reason:
            kept.append((cell, reason))
        else:
            present.append(cell)
    if new:
        try:
            _lay(archive, new, target)
        except OSError as error:
            raise BenchError(
                f"{target}: cannot be written ({error.strerror or error}); nothing was imported."
            ) from None
    return Outcome(tuple(new), tuple(present), tuple(kept))


def _standing(archive: Archive, cell: Checked, target: Path) -> str | None:
    """None where the cell is new to the folder, nothing where it is there, else why it is left out."""
    record = cell.record
    training = target / record.train_id
    if not os.path.lexists(training):
        return None
    trained = _known(training / "train.json")
    if trained is None:
        return "an unfinished or damaged training lies there"
    if trained.weights != record.weights:
        return "trained there, with other weights"
    evaluation = training / record.eval_id
    if not os.path.lexists(evaluation):
        return None
    known = _known(evaluation / "record.json")
    if known is None or known.status not in SHARED:
        return "an unfinished or damaged evaluation lies there"
    cases = f"{record.train_id}/{record.eval_id}/cases.csv"
    theirs = archive.read(cases) if cases in cell.files else None
    with suppress(OSError):
        ours = (target / cases).read_bytes() if known.status == "ok" else None
        return "" if (known.status, ours) == (record.status, theirs) else "measured there, with other numbers"
    return "an unfinished or damaged evaluation lies there"


def _known(path: Path) -> RunRecord | None:
    try:
        return read_record(path)
    except BenchError:
        return None


def _lay(archive: Archive, cells: list[Checked], target: Path) -> None:
    """Write all beside the folder first; then each training or evaluation comes to its place by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    made: list[Path] = []
    try:
        staging.chmod(0o777 & ~UMASK)
        for name in dict.fromkeys(n for cell in cells for n in cell.files):
            write_file(staging / name, archive.read(name))
        if not target.exists():
            os.rename(staging, target)
            return
        for cell in cells:
            for part in (cell.record.train_id, f"{cell.record.train_id}/{cell.record.eval_id}"):
                if not os.path.lexists(target / part):
                    os.rename(staging / part, target / part)
                    made.append(target / part)
    except BaseException:
        for path in reversed(made):
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
