"""Progress of a run: live bars in a terminal, plain lines in a log file, and where the time went in the end."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from harness.cell_log import LOG
from harness.records import RETRIED, STATUSES, RunRecord

LINE_SECONDS = 15.0  # between lines where there is no terminal
TRUSTED = 0.02  # share of the work that must be done before its own speed tells more than earlier cells


class RunProgress:
    """Shows every running cell and the whole, with an estimate of the time left.

    What is left is counted in work and not in cells: a cell counts as much as it is expected to take.

    Args:
        total: Number of cells to run.
        console: Where to write.
        workers: Processes.
        work: What all cells are expected to take, in any unit; by default each takes 1.
        seconds: Whether that unit is seconds, so that it tells the time left before anything is done.
        out: Folder of results, to say where the log of a failed cell is.
        at_once: How many of the processes train at once; all by default.
    """

    def __init__(
        self,
        total: int,
        console: Console,
        workers: int = 1,
        work: float | None = None,
        seconds: bool = False,
        out: Path | None = None,
        at_once: int | None = None,
    ) -> None:
        self._total, self._work, self._console = total, float(total) if work is None else work, console
        self._workers, self._seconds, self._out, self._at_once = workers, seconds, out, at_once or workers
        self._done, self._worked = 0, 0.0  # cells, and what they weighed
        self._running: dict[int, tuple[float, float, float]] = {}  # slot → weight, share done, when it began
        self._rest: dict[int, float] = {}  # slot → what an ended cell of a group leaves of the group's weight
        self._waits: dict[int, float] = {}  # slot → since when it waits for its turn to train
        self._waited: defaultdict[int, float] = defaultdict(float)  # slot → seconds that its cell has waited
        self._trained: set[int] = set()  # slots whose cell was trained in this run, and not only evaluated
        self._spent: defaultdict[str, float] = defaultdict(float)  # seconds of the processes
        self._states: Counter[str] = Counter()
        self._start = self._began = self._line = self._end = time.monotonic()
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._all: TaskID | None = None
        self._waiting = 0
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> RunProgress:
        """Start the display."""
        self._bars.start()
        self._all = self._bars.add_task("[bold]all cells", total=self._work, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display; what was printed stays."""
        self._end = time.monotonic()
        self._bars.stop()

    def prepared(self) -> None:
        """The processes are there and the cases are prepared."""
        self._began = self._line = time.monotonic()
        self._spent["preparation"] = (self._began - self._start) * self._workers

    def started(self, slot: int, title: str, weight: float = 1.0) -> None:
        """A worker took a cell, which is expected to take `weight` of the work."""
        self._running[slot] = weight, 0.0, time.monotonic()
        self._trained.discard(slot)
        self._waited.pop(slot, None)
        self._tasks[slot] = self._bars.add_task(_plain(title), total=1.0, note="loading")

    def continued(self, slot: int, title: str) -> None:
        """The next cell of a group, with what those that ended left of the group's weight."""
        self.started(slot, title, self._rest.pop(slot, 0.0))

    def moved(self, slot: int, done: int, total: int, loss: float) -> None:
        """A cell finished an epoch."""
        weight, _, began = self._running[slot]
        self._running[slot] = weight, done / total, began
        self._trained.add(slot)
        note = "scoring" if done >= total else f"loss {loss:.4f}"
        self._bars.update(self._tasks[slot], completed=done / total, note=note)
        self._refresh()

    def awaits(self, slot: int, waits: bool) -> None:
        """A worker waits for its turn to train, or that is over."""
        if waits:
            self._waits[slot] = time.monotonic()
        else:
            self._waited[slot] += time.monotonic() - self._waits.pop(slot)
        self._bars.update(self._tasks[slot], note="waiting" if waits else "training")

    def put_off(self, slot: int, rest: int = 0, together: int | None = None) -> tuple[float, float]:
        """A cell goes back to where it waited, or its process died; returns its weight and when it began.

        Of a group with `rest` more cells it takes its share, and where its training is over that of those that trained
        `together` with it: by default all.
        """
        whole, _, began = self._running.pop(slot, (1.0, 0.0, time.monotonic()))
        over = (together or 1 + rest) if slot in self._trained else 1
        weight = whole * min(1.0, over / (1 + rest))
        self._rest[slot] = whole - weight
        if slot in self._tasks:
            self._bars.remove_task(self._tasks.pop(slot))
        return weight, began

    def waiting(self, count: int) -> None:
        """Nothing is left to do but cells that another process runs."""
        if count and count != self._waiting:
            cells = "1 cell" if count == 1 else f"{count} cells"
            self._console.print(f"waiting for {cells} that another process runs", highlight=False)
        self._waiting = count

    def finished(self, slot: int, title: str, record: RunRecord, rest: int = 0) -> None:
        """A cell ended, well or not; `rest` more of its group have not."""
        # a group can train in parts, one after the other; a cell that failed does not say with how many
        together = int(record.environment.get("fused_cells", 1)) if record.environment else None
        weight, began = self.put_off(slot, rest, together)
        self._done += 1
        self._worked += weight
        self._states[record.status] += 1
        self._account(slot, record, time.monotonic() - began)
        mark = {"ok": "[green]ok[/]", "skip": "[dim]skip[/]"}.get(record.status, f"[red]{record.status}[/]")
        seconds = record.cost.get("train_s", 0.0) + record.cost.get("eval_s", 0.0)
        cost = f" {seconds:.0f} s" if record.status == "ok" else ""
        left = self._left()
        self._console.print(
            f"[{self._done}/{self._total}] {mark} {_plain(title)}{cost}"
            + (f": {_plain(record.message)}" if record.message else "")
            + self._log(record)
            + (f"  [dim]{left}[/]" if left and not self._live else ""),
            highlight=False,
            soft_wrap=True,
        )
        self._refresh(force=True)

    def summary(self) -> list[str]:
        """What became of the cells, how fast, and what the processes did in that time; empty before the first."""
        if not self._done:
            return []
        wall = max(self._end - self._start, 1e-9)
        states = ", ".join(f"{self._states[s]} {s}" for s in STATUSES if self._states[s])
        of = "" if self._done == self._total else f" of {self._total}"
        lines = [f"{self._done}{of} cells in {duration(wall)}, {3600 * self._done / wall:.0f} an hour: {states}"]
        whole = wall * self._workers
        kinds = ["training", "evaluation", "other", *(["waiting"] if self._spent["waiting"] else []), "preparation"]
        spent = [(kind, self._spent[kind] / whole) for kind in kinds]
        spent.append(("idle", max(0.0, 1 - sum(share for _, share in spent))))
        names = {"other": "loading and storing", "waiting": "waiting for the device"}
        shares = ", ".join(f"{names.get(kind, kind)} {100 * share:.0f} %" for kind, share in spent)
        workers = f"{self._workers} workers" if self._workers > 1 else "1 worker"
        return [*lines, f"time of {workers}: {shares}"]

    def _account(self, slot: int, record: RunRecord, seconds: float) -> None:
        """Where the time of a cell went; its record may hold that of an earlier session, too."""
        evaluation = min(seconds, record.cost.get("eval_s", 0.0))
        here = record.cost.get("train_s", 0.0) if record.cost else seconds  # a cell that failed says nothing
        here *= record.environment.get("fused_cells", 1)  # the first record of a group comes after the group's training
        waited = self._waited.pop(slot, 0.0)
        if slot in self._waits:  # its process ended while it waited
            waited += time.monotonic() - self._waits.pop(slot)
        waited = min(waited, seconds - evaluation)
        training = min(seconds - evaluation - waited, here) if slot in self._trained else 0.0
        self._trained.discard(slot)
        self._spent["training"] += training
        self._spent["evaluation"] += evaluation
        self._spent["waiting"] += waited
        self._spent["other"] += seconds - training - evaluation - waited

    def _log(self, record: RunRecord) -> str:
        """Where the log of a failed cell is."""
        if self._out is None or record.status not in RETRIED:
            return ""
        path = self._out / record.train_id / LOG
        return f"  [dim]log: {_plain(str(path))}[/]" if path.is_file() else ""

    def _refresh(self, force: bool = False) -> None:
        if self._live and self._all is not None:
            self._bars.update(self._all, completed=self._whole(), note=f"{self._done}/{self._total}  {self._left()}")
        elif not force and time.monotonic() - self._line > LINE_SECONDS:
            self._line = time.monotonic()
            share = self._whole() / self._work if self._work else 1.0
            left = self._left()
            self._console.print(
                f"  {self._done} of {self._total} cells, {100 * share:.0f} % of the work"
                + (f", {left}" if left else ""),
                highlight=False,
            )

    def _whole(self) -> float:
        """The work that is done, with that of the running cells."""
        return self._worked + sum(weight * share for weight, share, _ in self._running.values())

    def _left(self) -> str:
        if self._done == self._total:
            return ""
        whole = self._whole()
        left = self._work - whole
        if whole > TRUSTED * self._work:
            seconds = (time.monotonic() - self._began) * left / whole
        elif self._seconds:
            seconds = left / self._at_once
        else:
            return ""
        return f"about {duration(seconds)} left" if seconds >= 1 else ""


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
