"""The functions behind the command line, for notebooks and scripts.

    from harness.api import load_records, load_suite, plan, rank, run

    suite = load_suite("suites/quickstart.yaml", quick=True)
    run(suite)                              # what is missing; returns the records
    cells, cases, curves, notes = load_records(suite)
    found = rank(["my_loss.py:MyLoss"], suite)

Worker processes are started afresh: a script calls `run` and `rank` under `if __name__ == "__main__":`.
Nothing here imports torch before it is needed. Every mistake of the caller is a `harness.errors.BenchError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell import Place
from harness.engine import Engine, check_engines
from harness.launch import run_entries
from harness.plan import Entry, make_plan, to_rerun
from harness.ranking.rank import rank
from harness.records import RunRecord
from harness.resolve import forget
from harness.rows import Tables, frames
from harness.store import Home
from harness.suite import Suite
from harness.suite import load_suite as _load

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["load_records", "load_suite", "plan", "rank", "run"]

Folder = str | Path
Folders = Folder | Sequence[Folder]


def load_suite(path: Folder, quick: bool = False, root: Path | None = None) -> Suite:
    """Read, validate and expand a suite file; sources of losses and models are read as they stand on disk now.

    Args:
        path: A file, or the name of a suite that ships with the package.
        quick: Apply the suite's `quick:` overrides, on phantoms of its data sets.
        root: Folder of data sets: only asked for by a manifest whose cases are those that are found.

    Raises:
        BenchError: One sentence with file, line, key, what was found and what was expected.
    """
    forget()
    return _load(path, quick, root)


def plan(suite: Suite, *, out: Folders = "runs", reports: Folder = "reports", only: Sequence[str] = ()) -> list[Entry]:
    """Every cell of a suite with its state, from records alone.

    Args:
        suite: From `load_suite`.
        out: Folder of results, or several: of equally good records that of the first is taken.
        reports: Folder whose `*/records/` hold committed or imported records.
        only: Filters `key=glob` with key loss, model, dataset, seed or fold.

    Raises:
        BenchError: A filter is malformed or matches no cell, or one of several folders does not exist.
    """
    return make_plan(suite, folders(out), Path(reports), only)


def run(
    suite: Suite,
    *,
    data: Folder | None = None,
    out: Folder = "runs",
    reports: Folder = "reports",
    only: Sequence[str] = (),
    rerun: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    fail_fast: bool = False,
    console: Console | None = None,
    on: str = "local",
    cluster: Folder | None = None,
    detach: bool = False,
    per_device: int | None = None,
    engine: str = "single",
    fuse: int | None = None,
    overlap: bool | None = None,
) -> list[RunRecord]:
    """Train and measure the cells of a suite that have no record; returns the records of those that were started.

    Args:
        suite: From `load_suite`.
        data: Folder of data sets.
        out: Folder of results.
        reports: Folder whose `*/records/` hold committed or imported records.
        only: As in `plan`.
        rerun: Also run cells of this state again: "diverged", "stale" or "all".
        device: "auto" (all GPUs, else the CPU), "cpu", "cuda:N", or several: "cuda:0,cuda:1".
        workers: Cells that train at once; by default one for each core, as far as memory goes, or `per_device` on
            each GPU.
        fail_fast: Start nothing more after the first cell that failed.
        console: For progress; the terminal by default.
        on: Where the cells run: "local", "slurm" or "ray" (docs/clusters.md); `workers` are then cells at
            once, on SLURM of each array of jobs.
        cluster: A file that describes the cluster.
        detach: Submit to the cluster and return; the same call later attaches to what runs.
        per_device: Cells that train at once on each GPU; 1 by default.
        engine: "single"; "compiled": with a compiled network; "fused": cells that differ only in their loss are
            trained as one; "mixed": that, beside records of cells that were trained otherwise.
        fuse: At most so many cells in a group; by default all.
        overlap: One process more on each device than train there at once, so that cells are evaluated meanwhile; by
            default on GPUs.

    Raises:
        BenchError: The data is not there, a folder takes no files, or there are records of another engine.
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written.
    """
    entries = plan(suite, out=out, reports=reports, only=only)
    place = Place(Path(out).resolve(), Path(data).resolve() if data is not None else None)
    todo, way = to_rerun(entries, rerun), Engine(engine, fuse)
    way.check()
    check_engines(entries, todo, way, place.out)
    return run_entries(
        todo,
        place,
        reports=Path(reports),
        device=device,
        workers=workers,
        fail_fast=fail_fast,
        console=console,
        on=on,
        cluster=Path(cluster) if cluster is not None else None,
        detach=detach,
        per_device=per_device,
        overlap=overlap,
        known=[e.record for e in entries if e.record is not None],
        engine=way,
    )


def load_records(suite: Suite, *, out: Folders = "runs", reports: Folder = "reports") -> Tables:
    """What the records of a suite hold, as data frames: one row per cell, per case and metric, per epoch.

    Args:
        suite: From `load_suite`.
        out: Folder of results, or several.
        reports: Folder whose `*/records/` hold committed or imported records.

    Returns:
        `cells`, `cases`, `curves`, and `notes`, a sentence for each damaged file, whose rows are left out.
    """
    entries = plan(suite, out=out, reports=reports)
    return frames(entries, Home(folders(out)[0].resolve(), suite.name))


def folders(out: Folders) -> list[Path]:
    """One or several folders as a list."""
    return [Path(out)] if isinstance(out, (str, Path)) else [Path(one) for one in out]
