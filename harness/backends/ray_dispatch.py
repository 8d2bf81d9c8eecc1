"""Cells of `bench run --on ray` on their way to processes and back.

No answer of Ray's is believed without the record in the results folder, and a record there needs no answer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.backends.ray_cluster import RayCluster
from harness.backends.ray_team import Seat, Task, Team, answer_of, ready, short
from harness.cell import Cell, Place
from harness.cell_log import remedy
from harness.claims import is_held, record_failure
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.order import Queue
from harness.preparing import Shared, shared
from harness.processes import oom_kills
from harness.progress import RunProgress
from harness.records import RETRIED, RunRecord, read_record

HELD_SECONDS = 5.0  # before a cell that another process runs is tried again
PATIENCE = 10.0  # for a record that was written on another machine to be seen on this one


@dataclass
class Dispatch:
    """Cells on their way to processes and back.

    Attributes:
        team: The processes.
        cluster: The cluster file.
        progress: The display.
        estimates: What cells are expected to take.
        faults: What is wrong with the data of cells.
        queue: Cells that wait.
        left: How many cells have not ended.
        fresh: Ids of finished cells that are to be run again.
        more: Whether cells may join the queue while others end.
        lost: How often in a row a cell was lost, and after how many steps the last time.
        held: Cells that another process runs, with the time to try again.
    """

    team: Team
    cluster: RayCluster
    progress: RunProgress
    estimates: Estimates
    faults: dict[Shared, str]
    queue: Queue
    left: int
    fresh: set[str]
    more: bool = False
    lost: dict[str, tuple[int, int]] = field(default_factory=dict)
    held: list[tuple[float, Cell]] = field(default_factory=list)

    def add(self, cell: Cell) -> None:
        """One more cell."""
        self.queue.add(cell)
        self.left += 1

    def run(self) -> Iterator[tuple[Cell, RunRecord]]:
        """Run all cells; each with its record, in the order in which they end."""
        while self.left:
            self.team.grow(self.left)
            while self.held and self.held[0][0] <= time.monotonic():
                self.queue.add(self.held.pop(0)[1])
            for seat in self.team.idle():
                yield from self._give(seat)
            for seat, task, outcome in self.team.outcomes():
                if isinstance(task, Task) and (record := self._settle(seat, task, outcome)) is not None:
                    yield self._finish(seat, task.cell, record)
            for seat in self.team.looks():
                assert seat.moved is not None
                self.progress.moved(seat.number, *seat.moved)
            yield from self._overdue()

    def _give(self, seat: Seat) -> Iterator[tuple[Cell, RunRecord]]:
        """Give a process its next cell; cells whose data is bad fail here."""
        others = [other.group for other in self.team.seats.values() if other is not seat]
        while (cell := self.queue.take(seat.group, others)) is not None:
            self.progress.started(seat.number, cell.title, self.estimates.weight(cell))
            if (fault := self.faults.get(shared(cell))) and not cell.skip:
                yield self._finish(seat, cell, record_failure(cell, self.team.place, "error", fault))
                continue
            task = Task(cell, cell.eval_id in self.fresh, _identity(self._record(cell)))
            seat.work, seat.moved, seat.looked = task, None, time.monotonic()
            seat.deadline = time.monotonic() + cell.timeout if cell.timeout else None
            seat.group = self.queue.group(cell)
            seat.ref = seat.actor.run.remote(cell, task.fresh)
            return
        if self.left <= len(self.team.busy()) and not self.more:
            self.team.end(seat)  # others can use what it reserves

    def _settle(self, seat: Seat, task: Task, outcome: Any) -> RunRecord | None:
        """The record of a cell whose process is done with it; None where it goes back into the queue."""
        cell, place = task.cell, self.team.place
        if not isinstance(outcome, RayError):
            record, seat.kills = outcome
            if is_held(record):
                self.held.append((time.monotonic() + HELD_SECONDS, cell))
                self._back(seat, cell)
                return None
            if place.device != "cpu" and record.status in ("error", "oom"):
                self.team.end(seat)  # after a fault on the device nothing works in its process any more
            return self._seen(seat, task, record)
        if (written := self._written(task)) is not None:
            return written
        if isinstance(outcome, RayTaskError):
            return self._failed(seat, cell, "error", f"Ray could not run it on {seat.host} ({short(outcome)})")
        if isinstance(outcome, OutOfMemoryError):
            return self._failed(seat, cell, "oom", _memory(seat, cell, place, "Ray's memory monitor"))
        if seat.kills is not None and (_kills_on(seat.node) or 0) > seat.kills:
            return self._failed(seat, cell, "oom", _memory(seat, cell, place, "the system"))
        return self._lost(seat, task)

    def _lost(self, seat: Seat, task: Task) -> RunRecord | None:
        cell = task.cell
        if seat.moved or _identity(self._record(cell)) != task.before:
            self.fresh.discard(cell.eval_id)  # what was there is forgotten already; the rest is of this run
        tries, before = self.lost.get(cell.eval_id, (0, 0))
        steps = seat.moved[0] if seat.moved else 0
        tries = 1 if steps > before else tries + 1  # one that gets somewhere is worth another try
        self.lost[cell.eval_id] = tries, steps
        reason = f"its process on {seat.host} died, or the node was lost"
        if tries >= self.cluster.tries:
            text = f"{reason}, {tries} times in a row; a crash in native code, or too little memory there"
            return self._failed(seat, cell, "error", text)
        self.team.console.print(
            f"{cell.title}: {reason}; it continues elsewhere ({tries} of {self.cluster.tries} tries)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        self._back(seat, cell)
        self.queue.add(cell)
        return None

    def _back(self, seat: Seat, cell: Cell) -> None:
        self.progress.put_off(seat.number)
        self.queue.done(cell)

    def _seen(self, seat: Seat, task: Task, said: RunRecord) -> RunRecord:
        """The record on disk, if it says what the process said; a shared folder may take seconds to show it."""
        until = time.monotonic() + PATIENCE
        while (written := self._written(task)) is None:
            if said.status in RETRIED:  # the disk was full there; the sentence says so
                return said
            if time.monotonic() > until:
                text = f"{seat.host} says that it is {said.status}, and {self.team.place.out} here has no record of it"
                return record_failure(
                    task.cell, self.team.place, "error", f"{text}: is this folder the same on all nodes?"
                )
            time.sleep(0.2)
        return written

    def _written(self, task: Task) -> RunRecord | None:
        """The record of a cell on disk, if it was written since it began, or needs no more work."""
        path = self._record(task.cell)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # so that NFS asks the server
        now = _identity(path)
        if now is None:
            return None
        with contextlib.suppress(BenchError):
            record = read_record(path)
            if now != task.before or (record.status not in RETRIED and not task.fresh):
                return record
        return None

    def _overdue(self) -> Iterator[tuple[Cell, RunRecord]]:
        for seat in self.team.busy():
            if seat.deadline is not None and time.monotonic() > seat.deadline and isinstance(seat.work, Task):
                cell = seat.work.cell
                self.team.end(seat)
                ready([seat.ref], PATIENCE)  # then it writes nothing more
                text = f"not finished after {cell.timeout:g} s"
                record = self._written(seat.work) or self._failed(seat, cell, "timeout", text)
                yield self._finish(seat, cell, record)

    def _failed(self, seat: Seat, cell: Cell, status: str, message: str) -> RunRecord:
        """The record of a cell that could not write its own, written where its process was.

        There it is known to be gone, and its lease is taken over at once; elsewhere the lease holds for minutes.
        """
        if seat.node and seat.node != ray.get_runtime_context().get_node_id():
            found = _on(seat.node, record_failure, cell, self.team.place, status, message)
            if isinstance(found, RunRecord):
                return found
        return record_failure(cell, self.team.place, status, message)

    def _finish(self, seat: Seat, cell: Cell, record: RunRecord) -> tuple[Cell, RunRecord]:
        self.progress.finished(seat.number, cell.title, record)
        self.queue.done(cell)
        self.left -= 1
        return cell, record

    def _record(self, cell: Cell) -> Path:
        return cell.eval_folder(self.team.place.out) / "record.json"


def _kills_on(node: str) -> int | None:
    """How many processes a node's machine has killed for lack of memory by now; None where it does not answer."""
    found = _on(node, oom_kills) if node else None
    return found if isinstance(found, int) else None


def _on(node: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns on a node; None or an error of Ray where it does not answer."""
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    ref = ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=here).remote(*args)
    if ready([ref], PATIENCE):
        return answer_of(ref)
    ray.cancel(ref, force=True)
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Of a file: another one after it was written again, as files here are never written in place."""
    try:
        with path.open("rb") as stream:  # the opening makes NFS ask the server
            found = os.fstat(stream.fileno())
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _memory(seat: Seat, cell: Cell, place: Place, who: str) -> str:
    return (
        f"out of memory on {seat.host}, {who} ended its process; fewer cells on a node (`memory:` or `cpus:` in the "
        f"file of --cluster), or {remedy(cell, replace(place, beside=1))}"
    )
