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
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cell import Cell, Place
from harness.data.fingerprint import asks
from harness.data.layouts import reader_of
from harness.data.layouts.absent import absence
from harness.data.manifest import load_manifest
from harness.data.phantoms import is_phantom
from harness.errors import BenchError
from harness.plan import Entry
from harness.processes import cause_of_death, deaf_to_ctrl_c, one_thread
from harness.progress import RunProgress
from harness.records import RETRIED, RunRecord, read_record

Case = tuple[str, str, str, bool, str]  # manifest, case, view, whether of the phantom, training cases if they matter
Job = tuple[str, str, dict[str, Any], bool, list[str]]
START_SECONDS = 120.0  # for a new process to import torch; a cell's timeout counts from then


@dataclass
class Worker:
    """A worker process and what it is doing."""

    process: Any
    connection: Connection
    cell: Cell | None = None
    deadline: float | None = None


@dataclass
class Pool:
    """Worker processes, one cell each at a time."""

    place: Place
    slots: dict[int, Worker] = field(default_factory=dict)

    def start(self, slot: int) -> Worker:
        """Start a worker in a slot, replacing a dead one."""
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.place), daemon=True, name=f"bench-{slot}")
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


def _serve(connection: Connection, place: Place) -> None:
    """What a worker process starts with; torch is imported there and not here."""
    from harness.worker import worker_main

    worker_main(connection, place)


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
    entries: list[Entry], place: Place, workers: int, console: Console, fail_fast: bool = False
) -> list[RunRecord]:
    """Run cells on local worker processes.

    Args:
        entries: Cells to run, in the order in which they start.
        place: Results folder, data root, device.
        workers: Processes; each runs one thread on a CPU.
        console: For progress.
        fail_fast: Start nothing more after the first cell that failed.

    Returns:
        The records of all cells that were started.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written.
    """
    cells = [e.cell for e in entries]
    fresh = {e.cell.eval_id for e in entries if not e.todo}  # finished ones that were asked for again
    workers = max(1, min(workers, len(cells)))
    pool = Pool(place)
    records: list[RunRecord] = []
    clean = False
    try:
        faults = _prepare_all(cells, pool, workers, console)
        with RunProgress(len(cells), console) as progress:
            for record in _dispatch(cells, fresh, pool, workers, progress, faults):
                records.append(record)
                if fail_fast and record.status in ("error", "oom", "timeout", "diverged"):
                    break
        clean = True
    finally:
        pool.end(grace=30.0 if not clean or fail_fast else 10.0)
    return records


def _prepare_all(cells: list[Cell], pool: Pool, workers: int, console: Console) -> dict[Case, str]:
    """Preprocess every case once, in parallel; returns the faults by (manifest, case)."""
    jobs: dict[Case, Job] = {}
    for cell in cells:
        for case in [] if cell.skip else [*cell.data["train"], *cell.data["val"], *cell.data["test"]]:
            jobs.setdefault(_key(cell, case), _job(cell, case))
    faults: dict[Case, str] = {}
    queue = deque(jobs.values())
    running: dict[int, Job] = {}
    began = time.monotonic()
    for slot in range(workers):
        pool.start(slot)
    with console.status(f"preparing {len(jobs)} cases") if console.is_terminal else contextlib.nullcontext():
        while queue or running:
            for slot in range(workers):
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
    return faults


def _dispatch(
    cells: list[Cell],
    fresh: set[str],
    pool: Pool,
    workers: int,
    progress: RunProgress,
    faults: dict[Case, str],
) -> Iterator[RunRecord]:
    queue = list(cells)
    busy: dict[int, str] = {}  # slot → training; two evaluations of one training take turns
    while queue or busy:
        for slot in range(workers):
            while slot not in busy:
                cell = next((c for c in queue if c.train_id not in busy.values()), None)
                if cell is None:
                    break
                queue.remove(cell)
                fault = _fault_of(cell, faults)
                if fault:
                    yield _finish(cell, slot, _failed(cell, pool.place, "error", fault), progress)
                    continue
                _begin(pool, slot, cell, cell.eval_id in fresh, progress)
                busy[slot] = cell.train_id
        for slot, record in _collect(pool, progress):
            busy.pop(slot, None)
            yield record


def _begin(pool: Pool, slot: int, cell: Cell, fresh: bool, progress: RunProgress) -> None:
    worker = pool.slots.get(slot)
    if worker is None or not worker.process.is_alive():
        worker = pool.start(slot)
    worker.cell = cell
    worker.deadline = time.monotonic() + cell.timeout + START_SECONDS if cell.timeout else None
    progress.started(slot, cell.title)
    _send(worker, ("cell", (cell, fresh)))


def _collect(pool: Pool, progress: RunProgress) -> Iterator[tuple[int, RunRecord]]:
    for slot, message in _messages(pool, 0.2):
        worker = pool.slots[slot]
        if worker.cell is None:
            if message is None:
                del pool.slots[slot]  # died while idle; the next cell of this slot starts another
            continue
        if message is None:
            reason = f"its worker process died ({cause_of_death(worker.process)})"
            yield slot, _ended(pool, slot, "error", reason, progress)
            pool.start(slot)
        elif message[0] == "started":
            worker.deadline = time.monotonic() + worker.cell.timeout if worker.cell.timeout else None
        elif message[0] == "progress":
            progress.moved(slot, *message[1])
        else:
            cell, worker.cell = worker.cell, None
            if pool.place.device != "cpu" and message[1].status in ("error", "oom"):
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
    return record


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


def _fault_of(cell: Cell, faults: dict[Case, str]) -> str | None:
    for case in [*cell.data["train"], *cell.data["val"], *cell.data["test"]]:
        fault = faults.get(_key(cell, case))
        if fault and not cell.skip:
            return fault
    return None


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
