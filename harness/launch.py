"""Before the first cell runs: data, folders and device are seen to be there. Torch only where a GPU's driver is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell import Place
from harness.errors import BenchError
from harness.plan import Entry
from harness.processes import cores, writable
from harness.records import RunRecord

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
) -> list[RunRecord]:
    """Run cells of one or several suites, after the data was seen to be there and the folders to take files.

    Args:
        todo: The cells.
        place: Where results and data are; its device is not looked at.
        reports: Folder of reports.
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: As in `run`.
        fail_fast: As in `run`.
        console: As in `run`.
        on: As in `run`.
        cluster: As in `run`.
        detach: As in `run`.

    Raises:
        BenchError: As in `run`, or the device is not there.
    """
    from harness.runner import check_data, run_cells

    if workers is not None and workers < 1:
        raise BenchError(f"--workers {workers}: expected at least 1.")
    backend = _elsewhere(on, cluster, detach)
    if not todo:
        return []
    if console is None:
        from rich.console import Console

        console = Console()
    if backend is None:
        check_data([e.cell for e in todo], place.root)
    for folder in (place.out, reports):
        writable(folder)
    if backend is not None:
        from harness.backends import Asked

        return backend(todo, replace(place, device=device), Asked(workers, fail_fast, cluster, detach), console)
    place = replace(place, device=device_of(device))
    return run_cells([*todo], place, workers or (1 if place.device != "cpu" else cores()), console, fail_fast)


def _elsewhere(on: str, cluster: Path | None, detach: bool) -> Backend | None:
    """The backend that runs the cells, or None for this machine."""
    if on != "local":
        from harness.backends import backend_of

        return backend_of(on)
    for flag, given in (("--cluster", cluster), ("--detach", detach)):
        if given:
            raise BenchError(f"{flag}: is for --on slurm and --on ray; here the cells run on this machine.")
    return None


def device_of(asked: str) -> str:
    """The device to run on; torch is asked only where a GPU's driver is present.

    Raises:
        BenchError: There is no such device here.
    """
    if asked == "cpu":
        return "cpu"
    present = any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))
    if not present and asked == "auto":
        return "cpu"
    import torch

    available = torch.cuda.is_available()
    if asked == "auto":
        return "cuda:0" if available else "cpu"
    if not asked.startswith("cuda"):
        raise BenchError(f"--device {asked}: expected auto, cpu, cuda or cuda:N.")
    index = asked.partition(":")[2] or "0"
    if not available or not index.isdigit() or int(index) >= torch.cuda.device_count():
        raise BenchError(
            f"--device {asked}: torch sees {torch.cuda.device_count() if available else 0} CUDA devices here."
        )
    return f"cuda:{index}"
