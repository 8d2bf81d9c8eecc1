"""Where cells run other than in processes of this machine: `bench run --on slurm` and `--on ray`.

A backend brings cells to other machines and waits for their records. The work is `harness.worker.run_cell` and nothing
else, and the truth is the records in the results folder, which all machines share. Backends are imported when they are
asked for; nothing here needs their packages.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cell import Place
    from harness.plan import Entry
    from harness.records import RunRecord

PLACES = ("local", "slurm", "ray")
_NEEDS = {
    "slurm": "submitit",
    "ray": "ray",
}  # the package of each backend, and the extra of the same name as the backend


@dataclass(frozen=True)
class Asked:
    """What a user asks of a backend.

    Attributes:
        workers: The most cells at once, on SLURM of each array of jobs; or None for what the cluster gives.
        fail_fast: Start nothing more after the first cell that failed.
        cluster: A file that describes the cluster, or None.
        detach: Submit and end, where the backend can; the same command later attaches to what runs.
        known: Records of finished cells, to tell time and memory of these.
        follow: Cells that join while others finish, as in `harness.runner.run_cells`.
    """

    workers: int | None = None
    fail_fast: bool = False
    cluster: Path | None = None
    detach: bool = False
    known: Sequence[RunRecord] = ()
    follow: Callable[..., Any] | None = None


# Runs the entries in their order and returns the records of all that were started. The device of the place is what the
# user asked for, "auto" included: only the machine that runs a cell knows its devices. Each backend checks the data
# (`harness.preparing.check_data`) where it lies. Ctrl-C raises KeyboardInterrupt when the checkpoints are on their way.
Backend = Callable[["Sequence[Entry]", "Place", Asked, "Console"], "list[RunRecord]"]


def backend_of(on: str) -> Backend:
    """The function `run_cells` of `harness.backends.slurm` or `harness.backends.ray`.

    Raises:
        BenchError: There is no such backend, or its package is not installed.
    """
    if on not in _NEEDS:
        raise BenchError(f"--on {on}: expected one of {', '.join(PLACES)}.")
    # under `uv run` Ray would upload the working directory, which the nodes share
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        importlib.import_module(_NEEDS[on])
    except ImportError as error:
        raise BenchError(
            f"--on {on} needs the package {_NEEDS[on]} ({error}): pip install 'segmentation-loss-bench[{on}]'."
        ) from None
    backend: Backend = importlib.import_module(f"harness.backends.{on}").run_cells
    return backend
