"""From a plan to records: a pool of persistent worker processes that share nothing but the results folder.

A worker's death takes one cell. The truth is the records alone: the same command does what is missing and nothing else.
No torch in this process.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cell import Cell, Place
from harness.cell_log import log, remedy
from harness.data.fingerprint import asks
from harness.data.layouts import reader_of
from harness.data.layouts.absent import absence
from harness.data.manifest import load_manifest
from harness.data.phantoms import is_phantom
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.order import Queue
from harness.plan import Entry
from harness.processes import cause_of_death, deaf_to_ctrl_c, one_thread, oom_kills
from harness.progress import RunProgress
from harness.records import RETRIED, RunRecord, read_record

Case = tuple[str, str, str, bool, str]  # manifest, case, view, whether of the phantom, training cases if they matter
Run = Callable[..., RunRecord]  # as harness.worker.run_cell
Shared = tuple[str, bool, int]
Job = tuple[str, str, dict[str, Any], bool, list[str]]
FAILED = ("error", "oom", "timeout", "diverged")  # what --fail-fast stops at
START_SECONDS = 120.0  # for a new process to import torch; a cell's timeout counts from then


@dataclass
class Worker:
    """A worker process and what it is doing."""

    process: Any
    connection: Connection
    cell: Cell | None = None
    deadline: float | None = None
    kills: int | None = None  # of the system for lack of memory, when the cell began


@dataclass
class Pool:
    """Worker processes, one cell each at a time.

    Attributes:
        place: Results folder and data root; its device is not looked at.
        devices: The device of each process.
        run: What a process runs a cell with; by default `harness.worker.run_cell`.
        slots: The processes that were started, by their index in `devices`.
    """

    place: Place
    devices: Sequence[str]
    run: Run | None = None
    slots: dict[int, Worker] = field(default_factory=dict)

    def start(self, slot: int) -> Worker:
        """Start a worker in a slot, replacing a dead one."""
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        device = self.devices[slot]
        place = replace(self.place, device=device, beside=self.devices.count(device))
        process = context.Process(target=_serve, args=(theirs, place, self.run), daemon=True, name=f"bench-{slot}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS deterministic; before CUDA
        with one_thread(), deaf_to_ctrl_c():
            process.start()
        theirs.close()
        self.slots[slot] = Worker(process, ours)
        return self.slots[slot]

    def end(self, grace: float) -> None:
        """Tell all workers to finish; those that do not within `grace` seconds are killed."""
        for worker in self.slots.values():
            if worker.process.is_alive():
                if worker.cell is not None:
                    worker.process.terminate()  # SIGTERM: writes a checkpoint and stops
                else:
                    _send(worker, ("stop", None))
        until = time.monotonic() + grace
        for worker in self.slots.values():
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _serve(connection: Connection, place: Place, run: Run | None) -> None:
    """What a worker process starts with; torch is imported there and not here."""
    from harness.worker import run_cell, worker_main

    worker_main(connection, place, run or run_cell)


def check_data(cells: list[Cell], root: Path | None) -> None:
    """Find out before any work whether the data is there.

    Raises:
        BenchError: It says which files are missing, where they must lie and how to obtain the data set; or the folder
            is a phantom, whose results must not look like those of patients.
    """
    wanted: dict[str, set[str]] = {}
    for cell in cells:
        if not cell.skip and not cell.quick:  # a quick cell's data is made when it is needed
            names = wanted.setdefault(cell.manifest_path, set())
            names.update(cell.data["train"], cell.data["val"], cell.data["test"])
    if wanted and root is not None and is_phantom(root):
        raise BenchError(f"{root} holds a phantom, no patients: run it with --quick, or name the folder of the data.")
    for path, cases in wanted.items():
        manifest = load_manifest(path, Path(path).parent, root)
        absent = reader_of(manifest, root).missing(sorted(cases))
        if absent:
            raise BenchError(absence(manifest, root, absent))


def run_cells(
    entries: list[Entry],
    place: Place,
    devices: Sequence[str],
    console: Console,
    fail_fast: bool = False,
    estimates: Estimates | None = None,
    run: Run | None = None,
) -> list[RunRecord]:
    """Run cells on local worker processes.

    Args:
        entries: Cells to run; long ones start first, the order here decides among those that take as long.
        place: Results folder and data root.
        devices: The device of each process: "cpu" (one thread) or "cuda:N", which several may share.
        console: For progress.
        fail_fast: Start nothing more after the first cell that failed.
        estimates: What finished cells tell of the time of these.
        run: What a process runs a cell with instead of `harness.worker.run_cell`; for measurements and tests.

    Returns:
        The records of all cells that were started.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written.
    """
    cells = [e.cell for e in entries]
    fresh = {e.cell.eval_id for e in entries if not e.todo}  # finished ones that were asked for again
    estimates = estimates or Estimates(())
    pool = Pool(place, [*devices[: max(1, len(cells))]], run)
    records: list[RunRecord] = []
    clean = False
    progress = RunProgress(
        [estimates.weight(c) for c in cells], console, len(pool.devices), seconds=estimates.known > 0, out=place.out
    )
    try:
        faults = _prepare_all(cells, pool, console)
        progress.prepared()
        with progress:
            for record in _dispatch(Queue(cells, estimates.weight), fresh, pool, progress, faults, estimates):
                records.append(record)
                if fail_fast and record.status in FAILED:
                    break
        clean = True
    finally:
        pool.end(grace=30.0 if not clean or fail_fast else 10.0)
        for line in progress.summary():
            console.print(line, highlight=False, soft_wrap=True)
    return records


def _prepare_all(cells: list[Cell], pool: Pool, console: Console) -> dict[Shared, str]:
    """Preprocess every case once, in parallel; returns what is wrong with the data of cells, by `_shared`.

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
            for slot in pool.slots:
                if queue and slot not in running:
                    running[slot] = queue.popleft()
                    _send(pool.slots[slot], ("prepare", running[slot]))
            for slot, message in _messages(pool, 0.5):
                job = running.pop(slot, None)
                if message is None:
                    cause = cause_of_death(pool.slots[slot].process)
                    pool.start(slot)
                    if job is None:
                        raise BenchError(f"a worker process died before it had anything to do ({cause}).")
                    faults[_of(job)] = f"case {job[1]}: the process that prepared it died ({cause})"
                elif job is not None and message[1] is not None:
                    faults[_of(job)] = message[1]
    if time.monotonic() - began > 5:
        console.print(f"prepared {len(jobs)} cases in {time.monotonic() - began:.0f} s", highlight=False)
    return faulty(wanted, faults)


def jobs_of(cells: Iterable[Cell]) -> tuple[dict[Case, Job], dict[Shared, list[Case]]]:
    """What is to be prepared for cells: every case once, and the cases behind each data of cells."""
    jobs: dict[Case, Job] = {}
    wanted: dict[Shared, list[Case]] = {}
    for cell in cells:
        if cell.skip or _shared(cell) in wanted:
            continue
        own = wanted[_shared(cell)] = []
        for case in [*cell.data["train"], *cell.data["val"], *cell.data["test"]]:
            wish = _job(cell, case)
            own.append(_of(wish))
            jobs.setdefault(own[-1], wish)
    return jobs, wanted


def faulty(wanted: dict[Shared, list[Case]], faults: dict[Case, str]) -> dict[Shared, str]:
    """What is wrong with the data of cells: the first fault of their cases."""
    return {
        shared: next(faults[c] for c in own if c in faults) for shared, own in wanted.items() if faults.keys() & own
    }


def _dispatch(
    queue: Queue,
    fresh: set[str],
    pool: Pool,
    progress: RunProgress,
    faults: dict[Shared, str],
    estimates: Estimates,
) -> Iterator[RunRecord]:
    busy: dict[int, Cell] = {}
    held: dict[int, Hashable] = {}  # the training set that each process keeps from its last cell
    while queue or busy:
        for slot in range(len(pool.devices)):
            while slot not in busy:
                others = [group for other, group in held.items() if other != slot]
                cell = queue.take(held.get(slot), others)
                if cell is None:
                    break
                weight = estimates.weight(cell)
                if (fault := faults.get(_shared(cell))) and not cell.skip:
                    progress.started(slot, cell.title, weight)
                    queue.done(cell)
                    yield _finish(cell, slot, _failed(cell, pool.place, "error", fault), progress)
                    continue
                _begin(pool, slot, cell, cell.eval_id in fresh)
                progress.started(slot, cell.title, weight)
                busy[slot], held[slot] = cell, queue.group(cell)
        for slot, record in _collect(pool, progress):
            if (ended := busy.pop(slot, None)) is not None:
                queue.done(ended)
            yield record


def _begin(pool: Pool, slot: int, cell: Cell, fresh: bool) -> None:
    worker = pool.slots.get(slot)
    if worker is None or not worker.process.is_alive():
        worker = pool.start(slot)
    worker.cell = cell
    worker.deadline = time.monotonic() + cell.timeout + START_SECONDS if cell.timeout else None
    worker.kills = oom_kills()
    _send(worker, ("cell", (cell, fresh)))


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
            reason = f"its worker process died ({cause_of_death(worker.process, oom)})"
            if oom:
                reason += f"; {remedy(worker.cell)}"
            yield slot, _ended(pool, slot, "oom" if oom else "error", reason, progress)
            pool.start(slot)
        elif message[0] == "started":
            worker.deadline = time.monotonic() + worker.cell.timeout if worker.cell.timeout else None
        elif message[0] == "progress":
            progress.moved(slot, *message[1])
        else:
            cell, worker.cell = worker.cell, None
            if pool.devices[slot] != "cpu" and message[1].status in ("error", "oom"):
                _end_now(worker)  # after a fault on the device nothing works in its process any more
                del pool.slots[slot]
            yield slot, _finish(cell, slot, message[1], progress)
    for slot, worker in list(pool.slots.items()):
        if worker.cell is not None and worker.deadline is not None and time.monotonic() > worker.deadline:
            _end_now(worker)
            reason = f"not finished after {worker.cell.timeout:g} s"
            yield slot, _ended(pool, slot, "timeout", reason, progress)
            pool.start(slot)


def _ended(pool: Pool, slot: int, status: str, reason: str, progress: RunProgress) -> RunRecord:
    cell = pool.slots[slot].cell
    assert cell is not None
    return _finish(cell, slot, _failed(cell, pool.place, status, reason), progress)


def _finish(cell: Cell, slot: int, record: RunRecord, progress: RunProgress) -> RunRecord:
    described = cell.described()
    if record.cell == described:  # the cells of a suite share most of it, and thousands of copies would not
        record = replace(record, cell=described)
    progress.finished(slot, cell.title, record)
    return record


def _failed(cell: Cell, place: Place, status: str, message: str) -> RunRecord:
    """The record of a cell that could not write its own; one that is there and finished stays."""
    with contextlib.suppress(BenchError):
        there = read_record(cell.eval_folder(place.out) / "record.json")
        if there.status not in RETRIED:
            return there
    record = RunRecord(cell.train_id, cell.eval_id, status, message, cell.described(), sources=cell.sources)
    with contextlib.suppress(OSError):  # the message still reaches the user, and the same command runs the cell again
        cell.eval_folder(place.out).mkdir(parents=True, exist_ok=True)
        record.write(cell.eval_folder(place.out) / "record.json")
    log(cell.folder(place.out), f"{status}: {message}")
    return record


def _shared(cell: Cell) -> Shared:
    """Equal for cells whose cases are prepared alike: the data of a fold is one dictionary for all of them."""
    return cell.manifest_path, cell.quick, id(cell.data)


def _job(cell: Cell, case: str) -> Job:
    view = cell.data["view"]
    told = _asks(cell.manifest_path, json.dumps(view))  # the view's numbers then depend on the fold
    return cell.manifest_path, case, view, cell.quick, list(cell.data["train"]) if told else []


@cache
def _asks(manifest_path: str, view: str) -> bool:
    return asks(load_manifest(manifest_path, Path(manifest_path).parent), json.loads(view))


def _key(cell: Cell, case: str) -> Case:
    return _of(_job(cell, case))


def _of(job: Job) -> Case:
    return job[0], job[1], repr(job[2]), job[3], repr(job[4])


def _end_now(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join()


def _messages(pool: Pool, seconds: float) -> Iterator[tuple[int, Any]]:
    """Messages of workers; None for a worker that is gone."""
    by_connection = {w.connection: slot for slot, w in pool.slots.items()}
    for ready in wait(list(by_connection), seconds):
        slot = by_connection[ready]  # type: ignore[index]
        try:
            yield slot, pool.slots[slot].connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            pool.slots[slot].process.join(5)
            yield slot, None


def _send(worker: Worker, message: tuple[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a dead worker shows as the end of its connection, where its cell is counted
        worker.connection.send(message)
