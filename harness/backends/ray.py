"""`bench run --on ray`: cells in processes of a Ray cluster. What runs on the nodes is `harness.backends.ray_slot`.

Each process is an actor that takes one cell at a time, so that at most one task per process is under way, however many
cells wait. Ray starts processes where there is room and says when one is gone; the rest is decided here. Ray's own
retries are off: it repeats without end what ran out of memory, and would not know that a record is there already.
No answer of Ray's is believed without the record in the results folder, and a record there needs no answer.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from harness.backends import Asked
from harness.backends.ray_cluster import (
    Need,
    RayCluster,
    capacity,
    connected,
    device_and_gpus,
    need_of,
    no_room,
    problem_of,
    read_ray_cluster,
    room,
)
from harness.backends.ray_slot import Met, Moved, Slot, versions_here
from harness.cell import Cell, Place
from harness.cell_log import remedy
from harness.claims import is_held, record_failure
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.order import Queue
from harness.plan import Entry
from harness.preparing import Case, Job, Shared, check_data, faulty, jobs_of, key_of, shared
from harness.processes import THREAD_VARIABLES, oom_kills
from harness.progress import RunProgress
from harness.records import RETRIED, RunRecord, read_record
from harness.runner import FAILED
from harness.seeds import TUNING_SEED

LOOK_SECONDS = 2.0  # between two questions how far a cell is
HELD_SECONDS = 5.0  # before a cell that another process runs is tried again
NODES_SECONDS = 10.0  # between two looks at the nodes
PATIENCE = 10.0  # for a record that was written on another machine to be seen on this one
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
        done = _ready(list(waiting))
        if not done and waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        elif not done:
            time.sleep(seconds)
        for ref in done:
            seat, outcome = waiting[ref], _outcome(ref)
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
            problem = f"a process on a node of the Ray cluster cannot start ({_short(outcome)})"
        else:  # its node was lost, or it was killed: another one may have better luck
            self._deaths += 1
            problem = f"processes on the Ray cluster die while they start ({_short(outcome)})"
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
        for ref in _ready(list(asked)):
            seat, outcome = asked[ref], _outcome(ref)
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


def run_cells(entries: Sequence[Entry], place: Place, asked: Asked, console: Console) -> list[RunRecord]:
    """Run cells on a Ray cluster, or on one that is started on this machine and ended afterwards.

    Args:
        entries: Cells to run; long ones start first.
        place: Results folder and data root, which all nodes see under the same path; the device asked for.
        asked: What the user asks for.
        console: For progress.

    Returns:
        The records of all cells that were started.

    Raises:
        BenchError: There is no such cluster, or no node can run a cell.
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written; after a second one at once.
    """
    cluster = read_ray_cluster(asked.cluster)
    if asked.detach:
        raise BenchError("--detach: is for --on slurm; with Ray the command runs as long as its cells do.")
    cells = [e.cell for e in entries]
    later: Sequence[Cell] = getattr(asked.follow, "later", ())
    total = len(cells) + int(getattr(asked.follow, "total", 0))
    check_data([*cells, *later], place.root)
    records: list[RunRecord] = []
    with connected(cluster, asked.workers), tempfile.NamedTemporaryFile(prefix=".seen-", dir=place.out) as marker:
        device, gpus = device_and_gpus(place.device, cluster, ray.cluster_resources().get("GPU", 0.0))
        need = need_of(cluster, gpus)
        beside = min(room(ray.nodes(), need), asked.workers or total)
        place = replace(place, device=device, beside=beside, sharing="`gpus:` in the file of --cluster")
        team = Team(place, need, asked.workers, Path(marker.name), console)
        estimates = Estimates(asked.known, gpu=device != "cpu")
        weights = [estimates.weight(c) for c in (*cells, *later)]
        work = sum(weights) * total / max(1, len(weights))  # of cells that join only the number is known
        progress = RunProgress(
            total, console, min(team.limit(), total), work=work, seconds=estimates.known > 0, out=place.out
        )
        clean = False
        try:
            faults = _prepare_all([*cells, *later], team, total, cluster.tries)
            progress.prepared()
            fresh = {e.cell.eval_id for e in entries if not e.todo}  # finished ones that were asked for again
            fresh |= getattr(asked.follow, "fresh", frozenset())
            queue = Queue(cells, estimates.weight)
            dispatch = Dispatch(team, cluster, progress, estimates, faults, queue, len(cells), fresh)
            dispatch.more = asked.follow is not None
            with progress:
                for cell, record in dispatch.run():
                    records.append(record)
                    if asked.fail_fast and record.status in FAILED and record.cell["seed"] != TUNING_SEED:
                        break
                    for other in asked.follow(cell, record) if asked.follow is not None else ():
                        dispatch.add(other)
                else:
                    clean = True
        except KeyboardInterrupt:
            console.print("stopping: running cells write their checkpoints (Ctrl-C again ends at once)")
            raise
        finally:
            try:
                if not clean:
                    team.stop(cluster.grace)
            finally:
                team.dismiss()
        for line in progress.summary()[:1]:  # what processes did is not known here: their number changes
            console.print(line, highlight=False, soft_wrap=True)
    return records


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
            return self._failed(seat, cell, "error", f"Ray could not run it on {seat.host} ({_short(outcome)})")
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
                _ready([seat.ref], PATIENCE)  # then it writes nothing more
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


def _prepare_all(cells: Sequence[Cell], team: Team, total: int, tries: int) -> dict[Shared, str]:
    """Preprocess every case once, in parallel; returns what is wrong with the data of cells."""
    jobs, wanted = jobs_of(cells)
    faults: dict[Case, str] = {}
    queue = deque(jobs.values())
    deaths: dict[Case, int] = {}
    began = time.monotonic()
    console = team.console
    with console.status(f"preparing {len(jobs)} cases") if console.is_terminal else contextlib.nullcontext():
        while queue or team.busy():
            team.grow(min(total, len(queue) + len(team.busy())))
            for seat in team.idle():
                if queue:
                    seat.work = queue.popleft()
                    seat.ref = seat.actor.prepare.remote(seat.work)
            for _, done, outcome in team.outcomes():
                assert isinstance(done, tuple)
                if not isinstance(outcome, RayError):
                    if outcome is not None:
                        faults[key_of(done)] = outcome
                    continue
                deaths[key_of(done)] = deaths.get(key_of(done), 0) + 1
                if isinstance(outcome, RayTaskError) or deaths[key_of(done)] >= tries:
                    faults[key_of(done)] = f"case {done[1]}: the process that prepared it died ({_short(outcome)})"
                else:
                    queue.append(done)
    if time.monotonic() - began > 5:
        console.print(f"prepared {len(jobs)} cases in {time.monotonic() - began:.0f} s", highlight=False)
    return faulty(wanted, faults)


def _actor_class() -> Any:
    """`Slot` as an actor that answers while it works. Ray starts none anew and repeats nothing by itself."""
    for method in (Slot.look, Slot.stop):
        ray.method(concurrency_group="control")(method)
    return ray.remote(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0)(Slot)


def _kills_on(node: str) -> int | None:
    """How many processes a node's machine has killed for lack of memory by now; None where it does not answer."""
    found = _on(node, oom_kills) if node else None
    return found if isinstance(found, int) else None


def _on(node: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns on a node; None or an error of Ray where it does not answer."""
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    ref = ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=here).remote(*args)
    if _ready([ref], PATIENCE):
        return _outcome(ref)
    ray.cancel(ref, force=True)
    return None


def _ready(refs: list[Any], seconds: float = 0.0) -> list[Any]:
    done: list[Any] = ray.wait(refs, num_returns=len(refs), timeout=seconds)[0] if refs else []
    return done


def _outcome(ref: Any) -> Any:
    """What a task returned, or the error of Ray that stands for it."""
    try:
        return ray.get(ref)
    except RayError as error:
        return error


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


def _short(error: Any) -> str:
    """What an error of Ray says, without its traceback and its advice."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}".rstrip(": .")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("The actor is dead because")]
    wrong = [line for line in lines if "Error: " in line]
    text = (wrong or told or lines or ["no message"])[-1]
    return text.partition(". ")[0].rstrip(".")
