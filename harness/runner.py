"""From a plan to records: a pool of persistent worker processes that share nothing but the results folder.

A worker's death takes one cell. The truth is the records alone: the same command does what is missing and nothing else.
No torch in this process.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import claims
from harness.cell import Cell, Place
from harness.cell_log import remedy
from harness.claims import record_failure
from harness.engine import Engine
from harness.errors import BenchError, first_line
from harness.estimates import Estimates
from harness.follow import Follow
from harness.order import Queue
from harness.plan import Entry
from harness.preparing import Case, Job, Shared, faulty, jobs_of, key_of, shared
from harness.processes import cause_of_death, deaf_to_ctrl_c, one_thread, oom_kills
from harness.progress import RunProgress
from harness.records import RunRecord
from harness.seeds import TUNING_SEED
from harness.turns import Turns

Run = Callable[..., RunRecord]  # as harness.worker.run_cell
FAILED = ("error", "oom", "timeout", "diverged")  # what --fail-fast stops at
LOOK_SECONDS = 1.0  # between looks at cells that another process runs
START_SECONDS = 120.0  # for a new process to import torch; a cell's timeout counts from then


@dataclass
class Worker:
    """A worker process and what it is doing."""

    process: Any
    connection: Connection
    cell: Cell | None = None
    rest: list[Cell] = field(default_factory=list)  # of a group: the other cells that have no record yet
    faulty: bool = False  # a cell of the group ended with an error
    limit: float | None = None  # seconds for all of its cells together
    deadline: float | None = None
    waits: float | None = None  # since when, where it waits for its turn to train
    kills: int | None = None  # of the system for lack of memory, when the cell began
    ready: bool = False  # it has imported torch and has its device
    unfit: str = ""  # why it could not start


@dataclass
class Pool:
    """Worker processes, one cell each at a time.

    Attributes:
        place: Results folder and data root; its device is not looked at.
        devices: The device of each process.
        run: What a process runs a cell with; by default `harness.worker.run_cell`.
        engine: How that trains a cell alone: "single" or "compiled".
        at_once: By device, how many of its processes train at once; devices that are not named have no such bound.
        slots: The processes that were started, by their index in `devices`.
        fit: Slots whose last process could start.
    """

    place: Place
    devices: Sequence[str]
    run: Run | None = None
    engine: str = "single"
    at_once: Mapping[str, int] = field(default_factory=dict)
    slots: dict[int, Worker] = field(default_factory=dict)
    fit: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-turns-") if self.at_once else None

    @property
    def training(self) -> int:
        """How many processes train at once."""
        return sum(min(n, self.at_once.get(device, n)) for device, n in Counter(self.devices).items())

    def seat(self, slot: int) -> Place:
        """The place as the process of a slot sees it."""
        device = self.devices[slot]
        turns = None
        if self._folder is not None and device in self.at_once:
            turns = Turns(Path(self._folder.name), device, self.at_once[device])
        return replace(self.place, device=device, beside=self.devices.count(device), turns=turns)

    def start(self, slot: int) -> Worker:
        """Start a worker in a slot, replacing a dead one."""
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        args = (theirs, self.seat(slot), self.run, self.engine)
        process = context.Process(target=_serve, args=args, daemon=True, name=f"bench-{slot}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS deterministic; before CUDA
        with one_thread(), deaf_to_ctrl_c():  # a Ctrl-C is heard when the worker is among those that are ended
            process.start()
            theirs.close()
            self.slots[slot] = Worker(process, ours)
        return self.slots[slot]

    def end(self, grace: float) -> None:
        """Tell all workers to finish; those that do not within `grace` seconds, or at Ctrl-C, are killed."""
        try:
            # those that wait for their turn first: one that trains gives it back, and they would begin with it
            for worker in sorted(self.slots.values(), key=lambda w: w.waits is None):
                if worker.process.is_alive():
                    if worker.cell is not None:
                        worker.process.terminate()  # SIGTERM: writes a checkpoint and stops
                    else:
                        _send(worker, ("stop", None))
            until = time.monotonic() + grace
            for worker in self.slots.values():
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in self.slots.values():
                if worker.process.is_alive():
                    _end_now(worker)
            if self._folder is not None:
                self._folder.cleanup()


def _serve(connection: Connection, place: Place, run: Run | None, engine: str) -> None:
    """What a worker process starts with; torch is imported there and not here."""
    try:
        from harness.machine import settle
        from harness.worker import run_cell, worker_main

        settle(place.device)
        connection.send(("ready", None))
    except Exception as error:  # such as a device without room for one process more
        with contextlib.suppress(OSError):  # the parent is gone
            connection.send(("unfit", f"{type(error).__name__}: {first_line(error)}"))
        return
    worker_main(connection, place, run or partial(run_cell, engine=engine))


def run_cells(
    entries: list[Entry],
    place: Place,
    devices: Sequence[str],
    console: Console,
    fail_fast: bool = False,
    estimates: Estimates | None = None,
    run: Run | None = None,
    follow: Follow | None = None,
    engine: Engine | None = None,
    at_once: Mapping[str, int] | None = None,
) -> list[RunRecord]:
    """Run cells on local worker processes.

    Args:
        entries: Cells to run; long ones start first, the order here decides among those that take as long.
        place: Results folder and data root.
        devices: The device of each process: "cpu" (one thread) or "cuda:N", which several may share.
        console: For progress.
        fail_fast: Start nothing more after the first cell that failed; a trial that failed is an answer.
        estimates: What finished cells tell of the time of these.
        run: What a process runs a cell with instead of `harness.worker.run_cell`; for measurements and tests.
        follow: Cells that join the queue while others end.
        engine: How cells are trained; each alone by default.
        at_once: By device, how many of its processes train at once while the others load, evaluate and store; all of
            them by default.

    Returns:
        The records of all cells that were started.

    Raises:
        BenchError: A worker process cannot start.
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written.
    """
    cells = [e.cell for e in entries]
    engine = engine or Engine()
    jobs = {job[0].eval_id: job for job in engine.jobs(cells)}
    estimates = estimates or Estimates(())
    follow = follow or Follow(lambda cell, record: ())
    fresh = {e.cell.eval_id for e in entries if not e.todo} | follow.fresh  # finished ones that were asked for again
    pool = Pool(place, [*devices[: max(1, len(jobs) + follow.total)]], run, engine.name, at_once or {})
    records: list[RunRecord] = []
    clean = False
    total = len(cells) + follow.total
    progress = RunProgress(
        total,
        console,
        len(pool.devices),
        work=estimates.work([*cells, *follow.later], total),
        seconds=estimates.known > 0,
        out=place.out,
        at_once=pool.training,
    )
    try:
        faults = _prepare_all([*cells, *follow.later], pool, console)
        progress.prepared()
        with progress:
            for record in _dispatch(jobs, fresh, pool, progress, faults, estimates, follow, engine):
                records.append(record)
                if fail_fast and record.status in FAILED and record.cell["seed"] != TUNING_SEED:
                    break
        clean = True
    finally:
        pool.end(grace=30.0 if not clean or fail_fast else 10.0)
        for line in [*_memory_notes(cells, records, estimates), *progress.summary()]:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    return records


def _memory_notes(cells: list[Cell], records: list[RunRecord], estimates: Estimates) -> list[str]:
    """What other cells needed that are like those for which memory did not suffice."""
    hungry = {r.eval_id for r in records if r.status == "oom"}
    now = Estimates(records if hungry else ())
    found = {}
    for cell in cells:
        if cell.eval_id in hungry and (peak := now.measured(cell) or estimates.measured(cell)) is not None:
            found[cell.model_label, cell.dataset] = peak / 1024
    return [f"memory: other cells of {model} on {data} needed up to {gb:.1f} GB" for (model, data), gb in found.items()]


def _prepare_all(cells: list[Cell], pool: Pool, console: Console) -> dict[Shared, str]:
    """Preprocess every case once, in parallel; returns what is wrong with the data of cells, by `shared`.

    Cells of a suite share the dictionary of their data: what follows from it is made once for all of them.
    """
    jobs, wanted = jobs_of(cells)
    faults: dict[Case, str] = {}
    queue = deque(jobs.values())
    running: dict[int, Job] = {}
    began = time.monotonic()
    for slot in range(len(pool.devices)):
        pool.start(slot)
    with console.status(f"preparing {len(jobs)} cases") if console.is_terminal else contextlib.nullcontext():
        while queue or running:
            for slot, worker in pool.slots.items():
                if queue and slot not in running and worker.ready:  # else a fault of its start would be the case's
                    running[slot] = queue.popleft()
                    _send(worker, ("prepare", running[slot]))
            for slot, message in _messages(pool, 0.5):
                job = running.pop(slot, None)
                if message is None:
                    cause = cause_of_death(pool.slots[slot].process)
                    if job is None:
                        raise _cannot_start(pool.devices[slot], cause)
                    pool.start(slot)
                    faults[key_of(job)] = f"case {job[1]}: the process that prepared it died ({cause})"
                elif job is not None and message[1] is not None:
                    faults[key_of(job)] = message[1]
    if time.monotonic() - began > 5:
        console.print(f"prepared {len(jobs)} cases in {time.monotonic() - began:.0f} s", highlight=False)
    return faulty(wanted, faults)


def _dispatch(
    jobs: dict[str, list[Cell]],
    fresh: set[str],
    pool: Pool,
    progress: RunProgress,
    faults: dict[Shared, str],
    estimates: Estimates,
    follow: Follow,
    engine: Engine,
) -> Iterator[RunRecord]:
    def weight_of(cell: Cell) -> float:
        return sum(estimates.weight(c) for c in jobs[cell.eval_id])

    # the first cell of a job stands for all of them
    queue = Queue((job[0] for job in jobs.values()), weight_of, lambda cell: [c.train_id for c in jobs[cell.eval_id]])
    cells = {cell.eval_id: cell for job in jobs.values() for cell in job}

    def join(ended: Cell, record: RunRecord) -> None:
        for cell in follow(ended, record):
            jobs[cell.eval_id], cells[cell.eval_id] = [cell], cell
            queue.add(cell)

    busy: dict[int, Cell] = {}
    held: dict[int, Hashable] = {}  # the training set that each process keeps from its last cell
    waiting: list[Cell] = []  # cells that other processes run
    look = 0.0
    while queue or busy or waiting:
        if waiting and not queue and time.monotonic() > look:
            leading = {c.eval_id for c in busy.values()}
            still = []
            for one in waiting:
                if one.eval_id in leading or claims.held(one.folder(pool.place.out)):
                    still.append(one)
                else:
                    jobs[one.eval_id] = [one]
                    queue.add(one)
            waiting = still
            progress.waiting(0 if busy or queue else len(waiting))
            look = time.monotonic() + LOOK_SECONDS
        for slot in range(len(pool.devices)):
            while slot not in busy:
                others = [group for other, group in held.items() if other != slot]
                cell = queue.take(held.get(slot), others)
                if cell is None:
                    break
                job = jobs[cell.eval_id]
                if (fault := faults.get(shared(cell))) and not cell.skip:
                    queue.done(cell)
                    for one in job:
                        progress.started(slot, one.title, estimates.weight(one))
                        record = _finish(one, slot, record_failure(one, pool.place, "error", fault), progress)
                        join(one, record)
                        yield record
                    continue
                _begin(pool, slot, job, fresh, alone=not engine.groups)
                progress.started(slot, _title(job), weight_of(cell))
                busy[slot], held[slot] = cell, queue.group(cell)
        for slot, record in _collect(pool, progress):
            worker = pool.slots.get(slot)
            if (worker is None or worker.cell is None) and (ended := busy.pop(slot, None)) is not None:
                queue.done(ended)
            if claims.is_held(record):
                waiting.append(cells[record.eval_id])
            else:
                join(cells[record.eval_id], record)
                yield record


def _begin(pool: Pool, slot: int, job: list[Cell], fresh: set[str], alone: bool) -> None:
    worker = pool.slots.get(slot)
    if worker is None or not worker.process.is_alive():
        worker = pool.start(slot)
    worker.cell, *worker.rest = job
    worker.faulty, worker.waits = False, None
    worker.limit = sum(c.timeout or 0.0 for c in job) if all(c.timeout for c in job) else None
    worker.deadline = time.monotonic() + worker.limit + START_SECONDS if worker.limit else None
    worker.kills = oom_kills()
    mine = frozenset(c.eval_id for c in job if c.eval_id in fresh)
    _send(worker, ("cell", (job[0], bool(mine))) if alone else ("group", (job, mine)))


def _title(job: list[Cell]) -> str:
    return job[0].title + (f" and {len(job) - 1} more losses" if len(job) > 1 else "")


def _collect(pool: Pool, progress: RunProgress) -> Iterator[tuple[int, RunRecord]]:
    for slot, message in _messages(pool, 0.2):
        worker = pool.slots[slot]
        if worker.cell is None:
            if message is None:
                del pool.slots[slot]  # died while idle; the next cell of this slot starts another
            continue
        if message is None:
            oom = worker.kills is not None and (oom_kills() or 0) > worker.kills
            oom &= worker.process.exitcode == -9
            reason = f"its worker process died ({worker.unfit or cause_of_death(worker.process, oom)})"
            if oom:
                reason += f"; {remedy(worker.cell, pool.seat(slot))}"
            yield from _ended(pool, slot, "oom" if oom else "error", reason, progress)
            pool.start(slot)
        elif message[0] == "started":
            worker.deadline = time.monotonic() + worker.limit if worker.limit else None
        elif message[0] == "waits":
            _wait(worker, message[1])
            progress.awaits(slot, message[1])
        elif message[0] == "progress":
            progress.moved(slot, *message[1])
        else:
            cell = _reported(worker, message[1].eval_id)
            worker.faulty |= message[1].status in ("error", "oom")
            if pool.devices[slot] != "cpu" and worker.faulty and worker.cell is None:
                _end_now(worker)  # after a fault on the device nothing works in its process any more
                del pool.slots[slot]
            yield slot, _finish(cell, slot, message[1], progress, _left(worker))
            if worker.cell is not None:
                progress.continued(slot, worker.cell.title)
    for slot, worker in list(pool.slots.items()):
        if worker.cell is not None and _late(worker):
            _end_now(worker)
            reason = f"not finished after {worker.limit:g} s"
            yield from _ended(pool, slot, "timeout", reason, progress)
            pool.start(slot)


def _wait(worker: Worker, waits: bool) -> None:
    """A worker waits for its turn to train, or that is over; its cell's timeout does not count the time between."""
    now = time.monotonic()
    if worker.deadline is not None and worker.waits is not None:
        worker.deadline += now - worker.waits
    worker.waits = now if waits else None


def _late(worker: Worker) -> bool:
    return worker.deadline is not None and worker.waits is None and time.monotonic() > worker.deadline


def _reported(worker: Worker, eval_id: str) -> Cell:
    """The cell of a worker that a record is of; it has one less then."""
    assert worker.cell is not None
    cells = [worker.cell, *worker.rest]
    cell = next((c for c in cells if c.eval_id == eval_id), worker.cell)
    cells.remove(cell)
    worker.cell, worker.rest = (cells[0], cells[1:]) if cells else (None, [])
    return cell


def _ended(pool: Pool, slot: int, status: str, reason: str, progress: RunProgress) -> Iterator[tuple[int, RunRecord]]:
    """The records of all cells that a worker leaves without one."""
    worker = pool.slots[slot]
    while worker.cell is not None:
        cell = _reported(worker, worker.cell.eval_id)
        yield slot, _finish(cell, slot, record_failure(cell, pool.place, status, reason), progress, _left(worker))
        if worker.cell is not None:
            progress.continued(slot, worker.cell.title)


def _left(worker: Worker) -> int:
    """Cells that a worker has not ended."""
    return 0 if worker.cell is None else 1 + len(worker.rest)


def _finish(cell: Cell, slot: int, record: RunRecord, progress: RunProgress, rest: int = 0) -> RunRecord:
    if claims.is_held(record):
        progress.put_off(slot, rest)
        return record
    described = cell.described()
    if record.cell == described:  # the cells of a suite share most of it, and thousands of copies would not
        record = replace(record, cell=described)
    progress.finished(slot, cell.title, record, rest)
    return record


def _end_now(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join()


def _messages(pool: Pool, seconds: float) -> Iterator[tuple[int, Any]]:
    """Messages of workers that have started; None for a worker that is gone.

    Raises:
        BenchError: A worker cannot start where none could before: whatever it was to do, the next one could not either.
    """
    by_connection = {w.connection: slot for slot, w in pool.slots.items()}
    for ready in wait(list(by_connection), seconds):
        slot = by_connection[ready]  # type: ignore[index]
        worker = pool.slots[slot]
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            worker.process.join(5)
            message = None
        if message is not None and message[0] == "unfit":
            if slot not in pool.fit:
                raise _cannot_start(pool.devices[slot], message[1])
            pool.fit.remove(slot)  # one that replaces another: its device may have room again for the next
            worker.unfit, message = message[1], None
            worker.process.join(5)
        if message is not None and message[0] == "ready":
            worker.ready = True
            pool.fit.add(slot)
        else:
            yield slot, message


def _cannot_start(device: str, reason: str) -> BenchError:
    fewer = "--workers" if device == "cpu" else "--no-overlap, --per-device"
    return BenchError(
        f"a worker process cannot start on {device} ({reason}); where memory is short, try fewer processes ({fewer})."
    )


def _send(worker: Worker, message: tuple[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a dead worker shows as the end of its connection, where its cell is counted
        worker.connection.send(message)
