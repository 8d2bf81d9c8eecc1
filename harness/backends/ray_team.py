"""The processes of `bench run --on ray`: which there are, what each is doing, and what has come of it."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from harness.backends.ray_cluster import Need, capacity, no_room, problem_of
from harness.backends.ray_slot import Met, Moved, Slot, versions_here
from harness.cell import Cell, Place
from harness.errors import BenchError, first_line
from harness.preparing import Job
from harness.processes import THREAD_VARIABLES

LOOK_SECONDS = 2.0  # between two questions how far a cell is
NODES_SECONDS = 10.0  # between two looks at the nodes
WAITING_SECONDS = 30.0  # without any process, before that is said
STARTS = 3  # processes in a row that may die while they start


@dataclass
class Seat:
    """A process on a node and what it is doing.

    Attributes:
        number: For progress.
        actor: Ray's handle.
        ref: What it is doing, as Ray knows it; None where it waits for work.
        work: The cell or case of that; None while it starts.
        met: What it said of itself, once it has.
        node: Ray's id of its node.
        kills: Processes that its machine had killed for lack of memory when it last said so.
        moved: How far its cell was then.
        look: A question on its way, and when it was asked.
        deadline: When its cell has taken too long.
        group: The training set that it keeps from its last cell.
    """

    number: int
    actor: Any
    ref: Any
    work: Task | Job | None = None
    met: Met | None = None
    node: str = ""
    kills: int | None = None
    moved: Moved | None = None
    look: Any = None
    looked: float = 0.0
    deadline: float | None = None
    group: Hashable = None

    @property
    def host(self) -> str:
        """Its machine, for messages."""
        return self.met.host if self.met else "a node"


@dataclass
class Task:
    """A cell under way.

    Attributes:
        cell: The cell.
        fresh: Whether what is there of it is to be forgotten.
        before: The record that was there when it began, as `_identity` knows it.
    """

    cell: Cell
    fresh: bool
    before: tuple[int, int] | None


@dataclass
class Team:
    """The processes of a run: as many as the cluster has room for, and not more than there is work.

    Attributes:
        place: Where things are, on all nodes.
        need: What one process reserves.
        workers: The most processes, or None for what the nodes hold.
        marker: A file in the results folder that every process must see.
        console: For messages.
    """

    place: Place
    need: Need
    workers: int | None
    marker: Path
    console: Console
    seats: dict[int, Seat] = field(default_factory=dict)
    here: dict[str, str] = field(default_factory=versions_here)
    _welcomed: bool = False
    _refused: int = 0
    _deaths: int = 0
    _limit: int = 0
    _counted: float = -NODES_SECONDS
    _empty: float | None = None  # since when there is no process that can work

    def grow(self, wanted: int) -> None:
        """Start processes until there are as many as wanted, or as fit.

        Raises:
            BenchError: Not one fits on any node.
        """
        free = (n for n in range(wanted) if n not in self.seats)
        while len(self.seats) < min(wanted, self.limit() - self._refused):
            self._start(next(free))

    def limit(self) -> int:
        """The most processes that there can be.

        Raises:
            BenchError: Not one fits on any node, and none has before.
        """
        if time.monotonic() - self._counted > NODES_SECONDS:
            self._counted = time.monotonic()
            self._limit = self.workers or capacity(ray.nodes(), self.need)
            if not self._limit and not self._welcomed:
                raise no_room(ray.nodes(), self.need)
        return self._limit

    def _start(self, number: int) -> None:
        single = dict.fromkeys(THREAD_VARIABLES, "1")  # before anything numerical is imported
        environment = single | {"CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")}
        actor = _actor_class().options(**self.need.options, runtime_env={"env_vars": environment}).remote(self.place)
        self.seats[number] = Seat(number, actor, actor.meet.remote(self.marker))

    def idle(self) -> list[Seat]:
        """Processes that wait for work."""
        return [seat for seat in self.seats.values() if seat.ref is None]

    def busy(self) -> list[Seat]:
        """Processes that work on a cell or a case."""
        return [seat for seat in self.seats.values() if seat.work is not None]

    def end(self, seat: Seat) -> None:
        """End a process at once; the next one of its number starts anew."""
        ray.kill(seat.actor)
        del self.seats[seat.number]

    def outcomes(self, seconds: float = 0.5) -> Iterator[tuple[Seat, Task | Job | None, Any]]:
        """What processes finished, waiting up to so many seconds: the work, and what came of it or the error of Ray.

        A process that is lost, or takes no more work, is not among the seats any more.
        """
        waiting = {seat.ref: seat for seat in self.seats.values() if seat.ref is not None}
        done = ready(list(waiting))
        if not done and waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        elif not done:
            time.sleep(seconds)
        for ref in done:
            seat, outcome = waiting[ref], answer_of(ref)
            if seat.met is None:
                self._meet(seat, outcome)
                continue
            work, seat.ref, seat.work = seat.work, None, None
            if isinstance(outcome, RayError) and not isinstance(outcome, RayTaskError):
                self.end(seat)
            yield seat, work, outcome
        self._say_if_empty()

    def _meet(self, seat: Seat, outcome: Met | RayError) -> None:
        """Take a process in, or not.

        Raises:
            BenchError: None can be taken.
        """
        if isinstance(outcome, Met):
            problem = problem_of(outcome, self.here, self.place.out, self.place.root)
        elif isinstance(outcome, RayTaskError) or "creation task" in str(outcome):
            problem = f"a process on a node of the Ray cluster cannot start ({short(outcome)})"
        else:  # its node was lost, or it was killed: another one may have better luck
            self._deaths += 1
            problem = f"processes on the Ray cluster die while they start ({short(outcome)})"
            if self._deaths < STARTS:
                self.end(seat)
                return
        if not problem:
            assert isinstance(outcome, Met)
            seat.met, seat.node, seat.kills, seat.ref = outcome, outcome.node, outcome.kills, None
            self._welcomed, self._deaths = True, 0
            return
        self.end(seat)
        self._refused += 1
        if self._refused >= self._limit:
            raise BenchError(f"--on ray: {problem}.")
        self.console.print(f"left out: {problem}", highlight=False, markup=False, soft_wrap=True)

    def _say_if_empty(self) -> None:
        if any(seat.met for seat in self.seats.values()):
            self._empty = None
        elif self._empty is None:
            self._empty = time.monotonic()
        elif 0 < self._empty < time.monotonic() - WAITING_SECONDS:
            self._empty = -1.0
            self.console.print(f"waiting for the cluster to have room: each cell asks for {self.need}", highlight=False)

    def looks(self) -> Iterator[Seat]:
        """Ask, once in a while, how far cells are; the processes that have answered since the last time."""
        now = time.monotonic()
        for seat in self.busy():
            if seat.look is None and isinstance(seat.work, Task) and now - seat.looked > LOOK_SECONDS:
                seat.look, seat.looked = seat.actor.look.remote(), now
        asked = {seat.look: seat for seat in self.seats.values() if seat.look is not None}
        for ref in ready(list(asked)):
            seat, outcome = asked[ref], answer_of(ref)
            seat.look = None
            if not isinstance(outcome, RayError):
                cell, moved, seat.kills = outcome
                of_now = isinstance(seat.work, Task) and seat.work.cell.eval_id == cell  # and not of the one before
                if of_now and moved is not None and moved != seat.moved:
                    seat.moved = moved
                    yield seat

    def stop(self, grace: float) -> None:
        """Tell running cells to write their checkpoints, and wait for them up to so many seconds."""
        running = [seat for seat in self.busy() if isinstance(seat.work, Task)]
        for seat in running:
            seat.actor.stop.remote()
        if running:
            ray.wait([seat.ref for seat in running], num_returns=len(running), timeout=grace)

    def dismiss(self) -> None:
        """End all processes."""
        for seat in list(self.seats.values()):
            self.end(seat)


def _actor_class() -> Any:
    """`Slot` as an actor that answers while it works. Ray starts none anew and repeats nothing by itself."""
    for method in (Slot.look, Slot.stop):
        ray.method(concurrency_group="control")(method)
    return ray.remote(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0)(Slot)


def ready(refs: list[Any], seconds: float = 0.0) -> list[Any]:
    """Those of some tasks that are done, waiting up to so many seconds for all of them."""
    done: list[Any] = ray.wait(refs, num_returns=len(refs), timeout=seconds)[0] if refs else []
    return done


def answer_of(ref: Any) -> Any:
    """What a task returned, or the error of Ray that stands for it."""
    try:
        return ray.get(ref)
    except RayError as error:
        return error


def short(error: Any) -> str:
    """What an error of Ray says, without its traceback and its advice."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {first_line(cause, '')}".rstrip(": .")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("The actor is dead because")]
    wrong = [line for line in lines if "Error: " in line]
    text = (wrong or told or lines or ["no message"])[-1]
    return text.partition(". ")[0].rstrip(".")
