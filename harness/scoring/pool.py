"""Worker processes for whole cases: each takes one at a time, on one thread, and its death costs that case alone.

`concurrent.futures` gives up every case when one of its processes is killed, which is what too little memory does.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from harness.errors import BenchError, first_line
from harness.processes import THREAD_VARIABLES, cause_of_death, deaf_to_ctrl_c, one_thread

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A job without a result.

    Attributes:
        reason: Why.
        told: Whether the reason is a sentence that names the file, for the user; else it is a part of one.
    """

    reason: str
    told: bool = False


@dataclass
class Worker:
    """A process, and the number of the job that it has."""

    process: Any
    connection: Connection
    job: int | None = None


class Pool:
    """Processes that live from the first job to the end of the `with` block.

    Args:
        workers: Processes at once.
        preload: Modules that every worker needs, imported once on systems where processes are forked from a server.
    """

    def __init__(self, workers: int, preload: Sequence[str] = ()) -> None:
        # macOS allows no fork after some of its libraries were loaded, and Windows has none
        self._context: Any = mp.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self._context.set_forkserver_preload(list(preload))
        self._size = workers
        self._workers: list[Worker] = []

    def __enter__(self) -> Pool:
        """Processes start when there is a job for them."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes at once, also in the middle of a job: they leave nothing behind that must be saved."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def run(self, task: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result | Failure]]:
        """Do all jobs; gives the number of a job and its result as they end.

        Args:
            task: A function at the top of a module.
            jobs: Its arguments.

        Yields:
            Index into `jobs`, and what the task returned or why it did not.
        """
        queue = deque(range(len(jobs)))
        while len(self._workers) < min(self._size, len(jobs)):
            self._start(len(self._workers))
        while queue or any(w.job is not None for w in self._workers):
            for worker in self._workers:
                if queue and worker.job is None:
                    self._give(worker, queue.popleft(), task, jobs)
            busy = {w.connection: i for i, w in enumerate(self._workers) if w.job is not None}
            for ready in wait(list(busy)):
                slot = busy[ready]  # type: ignore[index]
                worker = self._workers[slot]
                number, worker.job = worker.job, None
                assert number is not None
                try:
                    outcome = worker.connection.recv()
                except (EOFError, OSError):
                    outcome = Failure(f"its process was lost ({cause_of_death(worker.process)})")
                    worker.connection.close()
                    self._start(slot)
                yield number, outcome

    def _give(self, worker: Worker, number: int, task: Callable[[Job], Result], jobs: Sequence[Job]) -> None:
        worker.job = number
        with contextlib.suppress(OSError):  # a dead worker shows as the end of its connection, where its job is counted
            worker.connection.send((task, jobs[number]))

    def _start(self, slot: int) -> None:
        """Start a worker in a slot, replacing a dead one."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True, name="bench-score")
        with one_thread(), deaf_to_ctrl_c():  # a Ctrl-C is heard when the worker is among those that are ended
            process.start()
            theirs.close()
            self._workers[slot : slot + 1] = [Worker(process, ours)]


def _serve(connection: Connection) -> None:
    """What a worker does: one job after another, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a server that someone else had started knows nothing of it
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    while True:
        try:
            task, job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = task(job)
        except BenchError as error:
            outcome = Failure(str(error), told=True)
        except MemoryError as error:
            outcome = Failure(f"out of memory ({first_line(error, 'no reason given')})")
        except Exception as error:  # whatever a damaged file makes a library raise costs its case and no other
            outcome = Failure(f"{type(error).__name__}: {first_line(error, 'no reason given')}")
        del task, job  # nothing of a case is kept while waiting for the next
        try:
            connection.send(outcome)
        except OSError:
            return
        del outcome
