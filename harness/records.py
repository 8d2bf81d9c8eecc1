"""Records: what a cell leaves behind, written last and atomically, so that a folder with a record is complete."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.errors import BenchError

SCHEMA = 1
Write = Callable[[Path, Callable[[IO[bytes]], Any]], None]  # as `write_atomic`
UMASK = os.umask(0o077)  # the only way to ask for it; once, as it is of the whole process
os.umask(UMASK)
STATUSES = ("ok", "diverged", "oom", "timeout", "error", "interrupted", "skip")
# These are tried again by the same command; `ok`, `diverged` and `skip` are results.
RETRIED = ("oom", "timeout", "error", "interrupted")

CASE_COLUMNS = (
    "dataset", "split", "fold", "model", "loss", "seed", "patient", "case", "class", "metric", "profile", "unit",
    "value", "worst", "status",
)  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """What is known of one cell.

    Attributes:
        train_id: Identity of the training.
        eval_id: Identity of the evaluation; empty in `train.json`.
        status: One of `STATUSES`.
        message: One sentence where the status is not ok.
        cell: The resolved configuration (`Cell.described`).
        fingerprints: Digests of the initial weights (`init`) and of the first batches (`batches`).
        weights: Digest of the trained weights.
        cost: Seconds of training and evaluation, ms per step, peak memory in MB, parameters, steps.
        environment: Versions, device, threads, processor.
        sources: Digests of the sources of loss and model.
        checks: Certificate of each part of the loss (`harness.check`), in short.
        files: SHA-256 of the tables that belong to it, by name: `curve.csv`, `cases.csv`. Older records have none.
        tuned: Of a tuned cell what its trials chose, see `harness.tuning.study`; not written where there is nothing.
    """

    train_id: str
    eval_id: str
    status: str
    message: str
    cell: dict[str, Any]
    fingerprints: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    cost: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    files: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path, write: Write | None = None) -> None:
        """Write as JSON, atomically.

        Args:
            path: The file.
            write: What writes it; `write_atomic` by default.

        Raises:
            ValueError: A number is not finite or the status is not in the closed set.
        """
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {STATUSES}")
        told = {k: v for k, v in asdict(self).items() if k != "tuned" or v}
        text = json.dumps(told, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        (write or write_atomic)(path, lambda stream: stream.write(text.encode()))


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        BenchError: It is damaged or of another schema.
    """
    try:
        return _parsed(path)
    except OSError as error:
        raise BenchError(f"{path}: not a readable record ({error}); remove it to run the cell again.") from None


def record_at(path: Path) -> RunRecord | None:
    """The record of a file; None where there is none, or a damaged one.

    Raises:
        OSError: The system refuses to read it, which says nothing of its content.
    """
    try:
        return _parsed(path)
    except (BenchError, FileNotFoundError, NotADirectoryError):
        return None


def _parsed(path: Path) -> RunRecord:
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
        record = RunRecord(**raw)
    except (ValueError, TypeError) as error:
        raise BenchError(f"{path}: not a readable record ({error}); remove it to run the cell again.") from None
    if record.schema != SCHEMA or record.status not in STATUSES:
        raise BenchError(f"{path}: schema {record.schema}, status {record.status!r}: not a record of this version.")
    return record


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any], stage: Path | None = None) -> None:
    """Write a file under a temporary name, flush it to disk, rename it: whole or not there.

    Args:
        path: The file.
        write: Writes its content to the stream that it is given.
        stage: Folder of the temporary file, on the same file system; beside the file by default.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=stage or path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o666 & ~UMASK)  # a temporary file is for its owner alone
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what is wrong was said already
            Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system offers it: a rename survives a loss of power after that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], write: Write | None = None
) -> str:
    """Write a CSV atomically; numbers keep all their digits, None and non-finite numbers become empty.

    Args:
        path: The file.
        columns: Its columns.
        rows: Values by column.
        write: What writes it; `write_atomic` by default.

    Returns:
        The SHA-256 of the file.
    """
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_text(row.get(c)) for c in columns])
    content = text.getvalue().encode()
    (write or write_atomic)(path, lambda stream: stream.write(content))
    return hashlib.sha256(content).hexdigest()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV written by `write_rows`."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)  # numpy's float64 is a float, too
