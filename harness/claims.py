"""Who runs a cell: a lease in its training folder, renewed by a heartbeat. It needs no locks and no common clock.

The lease is a folder `claim/TOKEN/` with the holder in `holder.json`, and a heartbeat renews the time of that file. A
plain shared file system offers one operation that is atomic, exclusive, and the same on every host: rename(2) of a
folder to a name at which a folder with content lies fails. All rests on it:

- *Taking*: `.claim.TOKEN/TOKEN/holder.json` is made first, then `.claim.TOKEN` is renamed to `claim`. Hard links,
  O_EXCL (which NFS version 2 lacks) and flock (which on many file systems does not reach other hosts) are not needed.
- *Taking over*: `claim/TOKEN` of a holder without signs of life is renamed away. The token is in the path, so what is
  renamed is what was judged, whatever happened in between.
- *Publishing*: a holder writes everything into `claim/TOKEN/` and renames it from there to its place. Once the lease is
  taken over, that path is gone, and each of these renames fails: a process that was suspended for an hour can replace
  nothing. A check of the lease before the rename would leave a moment between the two; this leaves none.

Age is the difference between the time of `holder.json` and that of a file touched just now in the same folder: both are
of the file server's clock, and the clocks of the hosts do not matter. A lease that looks old is watched for two
heartbeats before it is taken over: the server's clock can be set, and after an outage the judge may come before the
holder. On one host a holder whose process is gone is taken over at once.

A long call in C that keeps Python's interpreter lock keeps the heartbeat waiting, too. The time to live is therefore
twelve heartbeats: no single call of a training step takes two minutes. Where one does, the cell is trained twice and
recorded once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from harness.cell import Cell, Place
from harness.cell_log import log
from harness.records import RunRecord, record_at, sync_folder, write_atomic

HEARTBEAT_SECONDS = float(os.environ.get("BENCH_HEARTBEAT_SECONDS", "10"))
LEASE_SECONDS = float(os.environ.get("BENCH_LEASE_SECONDS", str(12 * HEARTBEAT_SECONDS)))
HELD = "another process is running this cell"

_LONGEST = 86_400.0  # a lease that says more of itself is not believed
_CLAIM, _HOLDER = "claim", "holder.json"
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_GONE = (errno.ENOENT, errno.ESTALE)


class LostLease(Exception):
    """The lease was taken over by another process: what this one made has no place any more."""


@dataclass(frozen=True)
class Holder:
    """A lease as it stands in a folder.

    Attributes:
        token: Its name.
        renewed: Time of the last heartbeat in ns, of the file server's clock.
        about: host, where, pid, started, kind, heartbeat, lease; empty where it cannot be read.
    """

    token: str
    renewed: int
    about: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.about.get('kind', 'process')} {self.about.get('pid', '?')} on {self.about.get('host', '?')}"

    @property
    def heartbeat(self) -> float:
        """Seconds between its heartbeats."""
        return float(self.about.get("heartbeat", HEARTBEAT_SECONDS))

    @property
    def lease(self) -> float:
        """Seconds without a heartbeat after which it may be taken over."""
        return float(self.about.get("lease", LEASE_SECONDS))


@dataclass
class Lease:
    """The right to write into a training folder; a context that gives it back.

    Attributes:
        folder: The training folder.
        token: Name of the lease.
        before: The holder that it was taken over from, if any.
        lost: A heartbeat found that another has it.
    """

    folder: Path
    token: str
    before: Holder | None = None
    lost: bool = False
    _end: threading.Event = field(default_factory=threading.Event)

    @property
    def stage(self) -> Path:
        """Folder in which everything is written before it comes to its place; gone when the lease is."""
        return self.folder / _CLAIM / self.token

    def __enter__(self) -> Lease:
        """Start the heartbeat."""
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lease back; one that cannot be given back runs out."""
        self._end.set()
        try:
            _remove(self.folder, self.token)
        except OSError:  # a rename may want space; to remove takes none
            shutil.rmtree(self.stage, ignore_errors=True)

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.stage / _HOLDER)
            except OSError as error:
                if error.errno in _GONE and not self._end.is_set():
                    self.lost = True
                    return  # anything else, such as a server that does not answer, may pass

    @contextlib.contextmanager
    def fenced(self) -> Iterator[None]:
        """What fails inside because the lease was taken over raises LostLease."""
        try:
            yield
        except OSError as error:
            if error.errno in _GONE and not self._there():
                raise LostLease from None
            raise

    def _there(self) -> bool:
        try:
            with open(self.stage / _HOLDER, "rb"):  # an NFS client asks the server on open, on stat it may not
                return True
        except OSError as error:
            return error.errno not in _GONE

    def write(self, path: Path, write: Callable[[IO[bytes]], Any]) -> None:
        """Write a file of the training folder, as `records.write_atomic`.

        Raises:
            LostLease: Another has the lease; the file is as it was.
        """
        with self.fenced():
            write_atomic(path, write, self.stage)

    def remove(self, path: Path) -> None:
        """Remove a file or folder, if it is there.

        Raises:
            LostLease: Another has the lease; nothing was removed.
        """
        gone = self.stage / f"removed-{uuid.uuid4().hex}"
        with self.fenced():
            try:
                os.rename(path, gone)
            except FileNotFoundError:
                os.stat(self.stage / _HOLDER)
                return
        with contextlib.suppress(OSError):
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    def publish(self, record: RunRecord, target: Path) -> RunRecord:
        """Bring an evaluation to its place by one rename: the record, and all that lies in `stage/NAME` with it.

        What is there stays if it is a result; anything else makes room. So there is one result, and never the record of
        one run beside the rows of another.

        Args:
            record: The record.
            target: Folder of the evaluation; its name is that of the folder in `stage`.

        Returns:
            The record that is there in the end.

        Raises:
            LostLease: Another has the lease; nothing was published.
            OSError: It cannot be written.
        """
        staged = self.stage / target.name
        with self.fenced():
            staged.mkdir(exist_ok=True)
            record.write(staged / "record.json")
            for _ in range(5):
                try:
                    os.rename(staged, target)
                except OSError as error:
                    if error.errno not in _IN_THE_WAY:
                        raise
                else:
                    sync_folder(self.folder)
                    return record
                if (there := result_in(target)) is not None:
                    return there
                self.remove(target)
        raise OSError(errno.EBUSY, "something else writes there", str(target))


def take(folder: Path, kind: str | None = None) -> Lease | None:
    """Take the lease of a folder, unless its holder shows signs of life.

    It may watch a holder that has been silent for two of its heartbeats; a living one is seen at once.

    Args:
        folder: The training folder; it must be there.
        kind: What runs the cell, for messages; by default what the environment tells.

    Returns:
        The lease, to be entered as a context; None where another has it.

    Raises:
        OSError: The folder cannot be read or written.
    """
    before: Holder | None = None
    for _ in range(10):
        holder = holder_of(folder)
        if holder is None:
            if (token := _make(folder, kind)) is not None:
                _sweep(folder)
                return Lease(folder, token, before)
            continue
        if not _process_gone(holder):
            if not _silent(folder, holder):
                return None
            time.sleep(2 * holder.heartbeat)
            if holder_of(folder) != holder:
                return None
        _remove(folder, holder.token)
        before = holder
    return None


def held(folder: Path) -> bool:
    """Whether a process that shows signs of life holds the lease of a training folder."""
    try:
        holder = holder_of(folder)
        return holder is not None and not _process_gone(holder) and not _silent(folder, holder)
    except OSError:
        return True  # what cannot be read is left alone


def is_held(record: RunRecord) -> bool:
    """Whether this is the answer of `worker.run_cell` for a cell that another process runs; it stands in no file."""
    return record.status == "interrupted" and record.message == HELD


def result_in(folder: Path) -> RunRecord | None:
    """The record of an evaluation if it is a result, which nothing replaces; one of another cell is none.

    Args:
        folder: `TRAIN_ID/EVAL_ID` of the cell.

    Raises:
        OSError: The system refuses to read it.
    """
    record = record_at(folder / "record.json")
    if record is None or (record.train_id, record.eval_id) != (folder.parent.name, folder.name):
        return None
    return record if record.status in ("ok", "diverged") else None


@contextlib.contextmanager
def waited_for(folder: Path) -> Iterator[Lease]:
    """Hold the lease of a folder, waiting for it as long as another has it."""
    while (lease := take(folder)) is None:
        time.sleep(0.1)
    with lease:
        yield lease


def holder_of(folder: Path) -> Holder | None:
    """Who holds the lease of a folder, alive or not; None where nobody does."""
    claim = folder / _CLAIM
    try:
        token = next(iter(os.listdir(claim)), None)
        if token is None:
            return None
        try:
            with open(claim / token / _HOLDER, "rb") as stream:  # the opening makes an NFS client ask for the time anew
                renewed, text = os.fstat(stream.fileno()).st_mtime_ns, stream.read()
        except FileNotFoundError:  # given back this moment, or a crash of the host took it
            return Holder(token, os.stat(claim / token).st_mtime_ns, {})
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        about = json.loads(text)
        known = 0 < float(about["heartbeat"]) <= float(about["lease"]) <= _LONGEST
    except (ValueError, TypeError, KeyError):
        known = False
    return Holder(token, renewed, about if known else {})


def _make(folder: Path, kind: str | None) -> str | None:
    """Make a lease if there is none; its token, or None if another was quicker."""
    token = uuid.uuid4().hex
    whole = folder / f".{_CLAIM}.{token}"
    about = {
        "host": socket.gethostname(),
        "where": _where(),
        "pid": os.getpid(),
        "started": (_process(os.getpid()) or ("", ""))[1],
        "kind": kind or _kind(),
        "heartbeat": HEARTBEAT_SECONDS,
        "lease": LEASE_SECONDS,
    }
    try:
        (whole / token).mkdir(parents=True)
        (whole / token / _HOLDER).write_text(json.dumps(about), encoding="utf-8")
        os.rename(whole, folder / _CLAIM)
        return token
    except FileNotFoundError:  # swept up by one that was quicker
        if not folder.is_dir():
            raise
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
        with contextlib.suppress(OSError):  # an empty folder, where a file system minds it; a file of an older version
            (folder / _CLAIM).unlink() if (folder / _CLAIM).is_file() else (folder / _CLAIM).rmdir()
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return None


def _remove(folder: Path, token: str) -> None:
    """Take a lease out of its place by one rename, then what it holds: an NFS client may know the old place still."""
    gone = folder / f".{_CLAIM}.{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):  # another did
        os.rename(folder / _CLAIM / token, gone)
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / _CLAIM).rmdir()  # only if it is empty


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left behind; who is just taking the lease tries again."""
    for left in folder.glob(f".{_CLAIM}.*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(".*.??????*"):  # temporary files
        with contextlib.suppress(OSError):
            left.unlink()


def _silent(folder: Path, holder: Holder) -> bool:
    """Whether the last heartbeat is longer ago than the lease lasts, or as far in the future: a clock was set then."""
    try:
        return abs(_now(folder) - holder.renewed) > holder.lease * 1e9
    except FileNotFoundError:  # swept up by one that took the lease this moment
        return False


def _now(folder: Path) -> int:
    """The time of the file server in ns: that of a file touched in the folder."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    try:
        with probe.open("wb") as stream:
            os.utime(probe)  # an exclusive creation may leave another time on NFS
        with probe.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def _kind() -> str:
    for variable, kind in (("SLURM_JOB_ID", "slurm"), ("RAY_JOB_ID", "ray")):
        if variable in os.environ:
            return f"{kind} job {os.environ[variable]}"
    return "process"


@cache
def _where() -> str:
    """What must be equal for a process number to mean the same process; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"  # containers count on their own
    except OSError:
        return ""


def _process_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this host and is no more."""
    pid = holder.about.get("pid")
    if not _where() or holder.about.get("where") != _where() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    now = _process(pid)
    return now is not None and (now[0] in "ZX" or now[1] != holder.about.get("started"))


def _process(pid: int) -> tuple[str, str] | None:
    """State and start of a process, in ticks since the boot; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def record_failure(cell: Cell, place: Place, status: str, message: str) -> RunRecord:
    """The record of a cell that could not write its own; a result that is there stays."""
    record = RunRecord(cell.train_id, cell.eval_id, status, message, cell.described(), sources=cell.sources)
    folder = cell.folder(place.out)
    with contextlib.suppress(OSError, LostLease):  # the message still reaches the user; the same command runs it
        folder.mkdir(parents=True, exist_ok=True)
        if (lease := take(folder)) is not None:
            with lease:
                record = lease.publish(record, cell.eval_folder(place.out))
    log(folder, f"{status}: {message}")
    return record
