"""What every process that works beside others needs: its share of cores, one thread, and quiet on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from harness.errors import BenchError

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)

GROUP = Path("/sys/fs/cgroup")  # the control group of this process, where it has one of its own
VMSTAT = Path("/proc/vmstat")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that this process may still take, on Linux also within its control group."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    found = [pages] if pages else [4 * 2**30]
    try:
        lines = dict(t.split(":") for t in Path("/proc/meminfo").read_text().splitlines())
        found = [int(lines["MemAvailable"].split()[0]) * 1024]  # free pages and what the system would give up for us
        found.append(int((GROUP / "memory.max").read_text()) - int((GROUP / "memory.current").read_text()))
    except (OSError, ValueError, KeyError, IndexError):
        pass  # another system, or no limit ("max")
    return max(0, min(found))


def oom_kills() -> int | None:
    """Processes that the system has killed for lack of memory so far; None where it does not say.

    Linux counts them for the control group, and where that has no count for the whole machine.
    """
    for path in (GROUP / "memory.events", VMSTAT):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
    return None


def cause_of_death(process: Any, oom: bool = False) -> str:
    """Why a process ended, in words; `oom` where the system is known to have killed one for lack of memory."""
    process.join(5)
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    if code == -9 and oom:
        return "signal 9, and the system has just ended a process for lack of memory"
    hint = ", often the system's answer to too little memory; try fewer workers" if code == -9 else ""
    return f"signal {-code}{hint}"


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Children are deaf to Ctrl-C from their first moment: it reaches the whole group, and the parent decides.

    The parent hears one that comes meanwhile at the end of the block. For children the signal is blocked rather than
    ignored: what is ignored is lost for the parent, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # it unblocks the signal where it starts its process (Python 3.11), so that is done before
    resource_tracker.ensure_running()
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))  # another thread may get it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Children inherit one thread for every numerical library; it must be set before they import it."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def writable(folder: Path) -> None:
    """Make a folder and see that it takes files: before minutes of work, not after.

    Raises:
        BenchError: It does not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise BenchError(f"{folder}: cannot be written to ({reason}); name another folder.") from None
