"""What runs inside a SLURM job: cells one after the other in one process, each through `run_cell`.

A task leaves a mark for every cell in its submission's folder `seen`, so that one listing shows where all cells are:
`ID.begun`, then `ID.STATUS.STEPS`; and `task-N.ended` when it ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cell import Cell, Place
from harness.claims import HEARTBEAT_SECONDS, LEASE_SECONDS, Lease, holder_of, is_held

Preparation = tuple[str, str, dict[str, Any], bool, list[str]]  # see `harness.preparing.Job`
HELD_SECONDS = 1.5 * LEASE_SECONDS  # for the lease of a cell whose task died to run out
ELSEWHERE = "elsewhere"  # in place of a status: another process is running this cell


@dataclass(frozen=True)
class Bundle:
    """The cells of one task.

    Attributes:
        index: Of the task in its array.
        cells: In the order in which they run.
        fresh: Ids of finished cells that are to be run again.
        place: As it is on the node.
        seen: Folder of marks.
    """

    index: int
    cells: tuple[Cell, ...]
    fresh: frozenset[str]
    place: Place
    seen: Path


@dataclass(frozen=True)
class Cases:
    """The cases that one task prepares, by the names of their marks."""

    index: int
    jobs: dict[str, Preparation]
    place: Place
    seen: Path


class Stop:
    """Set by SIGTERM: SLURM sends it before the time limit, on scancel and before preemption."""

    def __init__(self) -> None:
        self.asked = False
        self.steps = -1
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # submitit's own answers are not wanted
            signal.signal(number, self._signal)

    def _signal(self, number: int, frame: Any) -> None:
        self.asked = True

    def __call__(self) -> bool:
        """Asked before every step of a training, so that it counts them."""
        self.steps += 1
        return self.asked


def _broken(device: str) -> bool:
    """Whether a fault has ended all work of this process on its device."""
    if device == "cpu":
        return False
    import torch

    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


def run_bundle(bundle: Bundle) -> None:
    """Run the cells of a task until SIGTERM, when the one that is running writes its checkpoint, or a fault on a GPU.

    What is left then has no mark, so that it is submitted again without counting as lost.
    """
    stop = Stop()
    from harness.cell_cases import Cases as Prepared
    from harness.machine import settle
    from harness.worker import run_cell

    settle(bundle.place.device)
    marks = Marks(bundle.seen)
    marks.remove(f"task-{bundle.index}.ended")  # of this task, before SLURM started it again
    cases = Prepared(bundle.place)
    begun_before = set[str]()
    queue, patience = deque(bundle.cells), None
    while queue and not stop.asked:
        cell = queue.popleft()
        if marks.begin(cell.eval_id):
            begun_before.add(cell.eval_id)
        stop.steps = -1
        _say(f"{cell.title} ({cell.train_id}/{cell.eval_id})")
        with _limit(cell, bundle.place, marks):
            fresh = cell.eval_id in bundle.fresh - begun_before
            record = run_cell(cell, bundle.place, cases, stop=stop, fresh=fresh)
        held = is_held(record)
        marks.end(cell.eval_id, ELSEWHERE if held else record.status, max(0, stop.steps))
        _say(f"{record.status}{': ' + record.message if record.message else ''}")
        if record.status in ("error", "oom") and _broken(bundle.place.device):
            break
        if held:  # perhaps by a task that died on another node: its lease runs out while the other cells run
            patience = patience or time.monotonic() + HELD_SECONDS
            if time.monotonic() < patience:
                queue.append(cell)
                _wait(stop, 0.0 if any(c.eval_id not in marks.ended for c in queue) else HEARTBEAT_SECONDS)
    marks.put(f"task-{bundle.index}.ended")


def prepare_cases(cases: Cases) -> None:
    """Preprocess cases until SIGTERM; a fault of one is the matter of the cells that need it."""
    stop = Stop()
    from harness.cell_cases import prepare_case

    marks = Marks(cases.seen)
    for name, job in cases.jobs.items():
        if stop.asked:
            break
        fault = prepare_case(cases.place, *job)
        if fault is None:
            marks.put(name)
        else:
            _say(fault)
    marks.put(f"task-{cases.index}.ended")


class Marks:
    """The marks of a submission. They are hints: what cannot be written is left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        self._before = read_marks(folder)
        self.ended = set[str]()  # by this process

    def put(self, name: str) -> None:
        """Leave a mark."""
        with contextlib.suppress(OSError):
            (self.folder / name).touch()

    def remove(self, name: str) -> None:
        """Take a mark away."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink(missing_ok=True)

    def begin(self, name: str) -> bool:
        """Mark a cell as begun; whether it was before, by this task before SLURM started it again."""
        before = self._before.get(name)
        if before is not None:
            self.remove(f"{name}.{before.status}" + ("" if before.status == "begun" else f".{before.steps}"))
        self.remove(f"{name}.{ELSEWHERE}.0")
        self.put(f"{name}.begun")
        return before is not None

    def end(self, name: str, status: str, steps: int) -> None:
        """Mark a cell as ended."""
        self.ended.add(name)
        self._before.pop(name, None)
        with contextlib.suppress(OSError):
            (self.folder / f"{name}.begun").rename(self.folder / f"{name}.{status}.{steps}")


@dataclass(frozen=True)
class Mark:
    """Where a cell is: `begun`, or the status it ended with after so many steps of training."""

    status: str
    steps: int = 0


def read_marks(folder: Path) -> dict[str, Mark]:
    """All marks of a submission, by id, from one listing of its folder."""
    found: dict[str, Mark] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            key, _, rest = name.partition(".")
            status, _, steps = rest.partition(".")
            found[key] = Mark(status, int(steps) if steps.isdigit() else 0)
    return found


@contextlib.contextmanager
def _limit(cell: Cell, place: Place, marks: Marks) -> Iterator[None]:
    """Hold a cell to the suite's `timeout`, even where it hangs: the process ends, its other cells run elsewhere."""
    if not cell.timeout:
        yield
        return
    lock, over = threading.Lock(), False

    def expire() -> None:
        from harness.claims import record_failure

        with lock:
            if over:
                return
            message = f"not finished after {cell.timeout:g} s"
            folder = cell.folder(place.out)
            holder = holder_of(folder)
            if holder is not None and holder.about.get("pid") == os.getpid():  # the lease of the cell that hangs
                Lease(folder, holder.token).__exit__()
            record_failure(cell, place, "timeout", message)
            marks.end(cell.eval_id, "timeout", 0)
            _say(message)
            os._exit(1)

    timer = threading.Timer(cell.timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()


def _wait(stop: Stop, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.asked:
        time.sleep(0.2)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
