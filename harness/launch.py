"""Before the first cell runs: data, folders and device are seen to be there. Torch only where a GPU's driver is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell import Cell, Place
from harness.engine import Engine
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.follow import Follow
from harness.plan import Entry
from harness.processes import cores, free_memory, writable
from harness.records import RunRecord
from harness.turns import unavailable

if TYPE_CHECKING:
    from rich.console import Console

    from harness.backends import Backend


def run_entries(
    todo: Sequence[Entry],
    place: Place,
    *,
    reports: Path,
    device: str = "auto",
    workers: int | None = None,
    fail_fast: bool = False,
    console: Console | None = None,
    on: str = "local",
    cluster: Path | None = None,
    detach: bool = False,
    per_device: int | None = None,
    known: Iterable[RunRecord] = (),
    engine: Engine | None = None,
    overlap: bool | None = None,
    first: Sequence[str] = (),
) -> list[RunRecord]:
    """Run cells of one or several suites, after the data was seen to be there and the folders to take files.

    Args:
        todo: The cells.
        place: Where results and data are; its device is not looked at.
        reports: Folder of reports.
        device: As in `run`.
        workers: As in `run`.
        fail_fast: As in `run`.
        console: As in `run`.
        on: As in `run`.
        cluster: As in `run`.
        detach: As in `run`.
        per_device: As in `run`.
        known: Records of finished cells, to tell time and memory of these.
        engine: How cells are trained; each alone by default.
        overlap: As in `run`.
        first: Lines to say before all others, when what was asked for was looked at and not refused.

    Raises:
        BenchError: As in `run`, or the device is not there.
    """
    from harness.preparing import check_data
    from harness.runner import run_cells

    if workers is not None and workers < 1:
        raise BenchError(f"--workers {workers}: expected at least 1.")
    engine = engine or Engine()
    engine.check()
    backend = _elsewhere(on, cluster, detach)
    if backend is not None and engine.name != "single":
        raise BenchError(f"--engine {engine.name}: cells are trained so on this machine only; leave out --on {on}.")
    if not todo:
        return []
    if console is None:
        from rich.console import Console

        console = Console()
    if backend is None:
        check_data([e.cell for e in todo], place.root)
    for folder in (place.out, reports):
        writable(folder)
    todo, follow = tuned(todo, place.out)
    if backend is not None:
        if per_device is not None:
            raise BenchError("--per-device: is for this machine; a cluster has `gpus:` in the file of --cluster.")
        if overlap is not None:
            raise BenchError(f"--{'' if overlap else 'no-'}overlap: is for this machine; leave it out with --on {on}.")
        from harness.backends import Asked

        say(console, first)
        asked = Asked(workers, fail_fast, cluster, detach, tuple(known), follow)
        return backend(todo, replace(place, device=device), asked, console)
    devices = devices_of(device)
    estimates = Estimates(known, gpu=devices[0] != "cpu")
    jobs = [*engine.jobs(e.cell for e in todo), *([cell] for cell in (follow.later if follow else ()))]
    slots, said = slots_of(devices, jobs, estimates, workers, per_device)
    lines, at_once = [*first], None
    if device == "auto" and (unused := _unused_gpu(devices)):
        lines.append(unused)
    if overlaps(overlap, devices, workers) and len(slots) < len(jobs):
        if fault := unavailable():
            if overlap:
                raise BenchError(f"--overlap: {fault}.")
            lines.append(f"no cell is evaluated while another trains: {fault}")
        else:
            at_once = Counter(slots)
            slots, said = with_more(slots, len(jobs))
    say(console, [*lines, said] if said else lines)
    return run_cells(
        [*todo], place, slots, console, fail_fast, estimates, follow=follow, engine=engine, at_once=at_once
    )


def say(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def tuned(todo: Sequence[Entry], out: Path) -> tuple[Sequence[Entry], Follow | None]:
    """What can start at once where some cells wait for their trials, and what joins.

    Raises:
        BenchError: Cells are tuned, and Optuna is not installed.
    """
    if not any("tune" in entry.cell.train for entry in todo):
        return todo, None
    from harness.tuning.studies import Studies

    studies = Studies(todo, out)
    return studies.start, studies.follow


def _elsewhere(on: str, cluster: Path | None, detach: bool) -> Backend | None:
    """The backend that runs the cells, or None for this machine."""
    if on != "local":
        from harness.backends import backend_of

        return backend_of(on)
    for flag, given in (("--cluster", cluster), ("--detach", detach)):
        if given:
            raise BenchError(f"{flag}: is for --on slurm and --on ray; here the cells run on this machine.")
    return None


def slots_of(
    devices: Sequence[str],
    jobs: Sequence[Sequence[Cell]],
    estimates: Estimates,
    workers: int | None = None,
    per_device: int | None = None,
) -> tuple[list[str], str]:
    """The device of every worker process, and why there are so many.

    On a CPU a process runs one thread, and without `workers` there are as many as cores, as far as memory goes for the
    largest cell or group of cells. On GPUs each runs one job, or `per_device` of them.

    Args:
        devices: From `devices_of`.
        jobs: What is to run, in the groups that train as one; of one cell each where none do.
        estimates: Of their memory.
        workers: Processes in all, or None.
        per_device: Processes on each GPU, or None.

    Raises:
        BenchError: The two do not go together, or with these devices.
    """
    if per_device is not None and per_device < 1:
        raise BenchError(f"--per-device {per_device}: expected at least 1.")
    if devices[0] != "cpu":
        if workers is not None and per_device is not None:
            raise BenchError(
                "--per-device and --workers both say how many cells run at once; leave out one of the two."
            )
        count = workers or len(devices) * (per_device or 1)
        slots = [devices[i % len(devices)] for i in range(min(count, len(jobs)))]  # the first cells on different ones
        each = Counter(slots)
        return slots, f"{_workers(len(slots))}: " + ", ".join(f"{n} on {name}" for name, n in each.items())
    if per_device is not None:
        raise BenchError("--per-device: is for GPUs; on a CPU --workers says how many cells run at once.")
    if workers is not None:
        return ["cpu"] * min(workers, len(jobs)), ""
    needs = [(len(job), *estimates.memory(cell)) for job in jobs for cell in job if not cell.skip] or [(1, 0.0, True)]
    size, one, measured = max(needs, key=lambda need: need[0] * need[1])
    peak, of = size * one, "a cell" if size == 1 else f"a group of {size} cells"
    free = free_memory() / 2**20
    count = max(1, min(cores(), int(free / max(peak, 1.0)), len(jobs)))
    how = "in finished ones" if measured else "guessed from its size"
    return ["cpu"] * count, (
        f"{_workers(count)}: {cores()} cores, {free / 1024:.1f} GB free, about {peak / 1024:.1f} GB {of} ({how})"
    )


def overlaps(overlap: bool | None, devices: Sequence[str], workers: int | None) -> bool:
    """Whether each device has one process more than train on it at once, so that one evaluates while others train.

    Args:
        overlap: What was asked for; None for GPUs only, because on a CPU each process has a core of its own.
        devices: From `devices_of`.
        workers: Processes that train at once, or None.

    Raises:
        BenchError: On a CPU `workers` must say which of the cores are to train.
    """
    if overlap and devices[0] == "cpu" and workers is None:
        raise BenchError(
            "--overlap: on a CPU it needs --workers N: N cells train at once, and one process more evaluates."
        )
    return devices[0] != "cpu" if overlap is None else overlap


def with_more(slots: Sequence[str], most: int) -> tuple[list[str], str]:
    """The device of every process where each device has one more than train on it at once, and how many there are.

    Args:
        slots: The device of every process that trains, from `slots_of`.
        most: No more processes than this, the number of jobs.
    """
    more = [*dict.fromkeys(slots)][: most - len(slots)]
    parts = [f"{n} {'train' if n > 1 else 'trains'} on {name}" for name, n in Counter(slots).items()]
    parts.append(f"{len(more)} more {'evaluate' if len(more) > 1 else 'evaluates'}")
    return [*slots, *more], f"{_workers(len(slots) + len(more))}: {', '.join(parts)}"


def devices_of(asked: str) -> list[str]:
    """The devices to run on; torch is asked only where a GPU's driver is present.

    Args:
        asked: "auto" (all GPUs of the kind of the first, else the CPU), "cpu", "cuda", or GPUs as "cuda:0,cuda:1".

    Raises:
        BenchError: There is no such device here, or they cannot work together.
    """
    if asked == "cpu":
        return ["cpu"]
    if asked == "auto" and not _driver_here():
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":  # of one kind: another would round otherwise, and take another time
        names = [torch.cuda.get_device_name(i) for i in range(count)]
        return [f"cuda:{i}" for i, name in enumerate(names) if name == names[0]] or ["cpu"]
    found: list[str] = []
    for part in asked.split(","):
        kind, _, index = part.strip().partition(":")
        if kind == "cpu":
            raise BenchError(f"--devices {asked}: a CPU beside GPUs would give other numbers; name one or the other.")
        if kind != "cuda":
            raise BenchError(f"--devices {asked}: expected auto, cpu, cuda, cuda:N or several: cuda:0,cuda:1.")
        index = index or "0"
        if not index.isdecimal() or int(index) >= count:
            raise BenchError(f"--devices {asked}: torch sees {count} CUDA devices here.")
        name = f"cuda:{int(index)}"
        if name in found:
            raise BenchError(f"--devices {asked}: {name} stands twice; --per-device 2 runs two cells on each.")
        found.append(name)
    return found


def _driver_here() -> bool:
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def _unused_gpu(devices: Sequence[str]) -> str:
    """A line that says it where a GPU is here, not hidden from this process, and torch cannot use it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if devices[0] != "cpu" or hidden or not _driver_here():
        return ""
    import torch

    why = "is built without CUDA" if torch.version.cuda is None else "finds none that it can use; an old driver?"
    return f"on the CPU, though the driver of a GPU is here: torch {torch.__version__} {why}"


def _workers(count: int) -> str:
    return f"{count} workers" if count > 1 else "1 worker"
