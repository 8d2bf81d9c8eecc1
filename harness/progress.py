"""Progress of a run: live bars in a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from harness.records import RunRecord

LINE_SECONDS = 15.0  # between lines where there is no terminal


class RunProgress:
    """Shows every running cell and the whole, with an estimate of the time left.

    Args:
        total: Number of cells to run.
        console: Where to write.
    """

    def __init__(self, total: int, console: Console) -> None:
        self._total, self._console = total, console
        self._done, self._shares = 0, dict[int, float]()
        self._began = self._line = time.monotonic()
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
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> RunProgress:
        """Start the display."""
        self._bars.start()
        self._all = self._bars.add_task("[bold]all cells", total=self._total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display; what was printed stays."""
        self._bars.stop()

    def started(self, slot: int, title: str) -> None:
        """A worker took a cell."""
        self._shares[slot] = 0.0
        self._tasks[slot] = self._bars.add_task(title, total=1.0, note="loading")

    def moved(self, slot: int, done: int, total: int, loss: float) -> None:
        """A cell finished an epoch."""
        self._shares[slot] = done / total
        note = "scoring" if done >= total else f"loss {loss:.4f}"
        self._bars.update(self._tasks[slot], completed=done / total, note=note)
        self._refresh()

    def finished(self, slot: int, title: str, record: RunRecord) -> None:
        """A cell ended, well or not."""
        self._shares.pop(slot, None)
        if slot in self._tasks:
            self._bars.remove_task(self._tasks.pop(slot))
        self._done += 1
        mark = {"ok": "[green]ok[/]", "skip": "[dim]skip[/]"}.get(record.status, f"[red]{record.status}[/]")
        seconds = record.cost.get("train_s", 0.0) + record.cost.get("eval_s", 0.0)
        cost = f" {seconds:.0f} s" if record.status == "ok" else ""
        left = self._left()
        self._console.print(
            f"[{self._done}/{self._total}] {mark} {_plain(title)}{cost}"
            + (f": {_plain(record.message)}" if record.message else "")
            + (f"  [dim]{left}[/]" if left and not self._live else ""),
            highlight=False,
            soft_wrap=True,
        )
        self._refresh(force=True)

    def _refresh(self, force: bool = False) -> None:
        whole = self._done + sum(self._shares.values())
        if self._live and self._all is not None:
            self._bars.update(self._all, completed=whole, note=f"{self._done}/{self._total}  {self._left()}")
        elif not force and time.monotonic() - self._line > LINE_SECONDS:
            self._line = time.monotonic()
            self._console.print(f"  {whole:.1f} of {self._total} cells, {self._left()}", highlight=False)

    def _left(self) -> str:
        whole = self._done + sum(self._shares.values())
        if whole <= 0:
            return ""
        seconds = (time.monotonic() - self._began) * (self._total - whole) / whole
        return f"about {duration(seconds)} left" if seconds >= 1 else ""


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
