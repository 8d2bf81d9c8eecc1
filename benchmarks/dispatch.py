"""What planning and dispatching cost: thousands of cells that do nothing, with the real parent, processes and records.

The suite crosses one loss's arguments with seeds on phantoms of four slices. It is planned as `bench plan` does,
in a process of its own; then its cells go through the real pool, to worker processes that write a record and nothing
else. What is left of wall time is the overhead of a cell. `--real` runs cells of four training steps the same way.

    python benchmarks/dispatch.py --cells 10000
    python benchmarks/dispatch.py --cells 200 --profile      # where the parent's time goes
    python benchmarks/dispatch.py --real 20
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cell import Cell, Place
from harness.plan import make_plan
from harness.records import RunRecord
from harness.runner import run_cells
from harness.suite import load_suite

SEEDS = 100
MANIFEST = """\
name: dispatch
title: Small phantoms, as many as are wanted
licence: Apache-2.0 (made by this package)
attribution: Made by harness/data/phantom.py; no patient.
obtain: Nothing to obtain, the package makes it.
layout: {{phantom: {{shape: [4, 16, 16], seed: 1}}}}
modalities: [CT]
labels: {{aorta: 1, gallbladder: 2, left_kidney: 3, right_kidney: 4, liver: 5, pancreas: 6, spleen: 7, stomach: 8}}
intensity: {{window: [-125, 275]}}
cases: [{cases}]
splits: {{s: {{test: [p0, p1]}}}}
"""
SUITE = """\
suite: dispatch
description: Cells that do nothing, to measure what each costs besides its work.
data: {{manifest: dispatch.yaml, split: s, slices: {{size: [16, 16]}}}}
models: [unet: {{width: 2, depth: 2}}]
losses: [tversky: {{fp_weight: 0.5, fn_weight: {{sweep: {losses}}}}}]
seeds: {seeds}
train: {{epochs: 1, steps: 4, batch: 2, optimizer: {{adamw: {{lr: 1.0e-3}}}}}}
metrics: [dice]
"""


def nothing(cell: Cell, place: Place, *_: Any) -> RunRecord:
    """Write the record of a cell and do nothing else."""
    record = RunRecord(cell.train_id, cell.eval_id, "ok", "", cell.described(), sources=cell.sources)
    cell.eval_folder(place.out).mkdir(parents=True, exist_ok=True)
    record.write(cell.eval_folder(place.out) / "record.json")
    return record


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=50, help="of training")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--real", type=int, default=0, metavar="N", help="run N minimal cells instead")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    cells = args.real or args.cells
    with tempfile.TemporaryDirectory() as name:
        folder, seeds = Path(name), min(SEEDS, cells)
        path = folder / "suite.yaml"
        weights = [round(0.1 + 0.001 * i, 3) for i in range(-(-cells // seeds))]
        (folder / "dispatch.yaml").write_text(MANIFEST.format(cases=", ".join(f"p{i}" for i in range(args.cases + 2))))
        path.write_text(SUITE.format(losses=weights, seeds=seeds))
        if not args.real:
            print(f"{cells} cells, {args.cases} cases of training, {args.workers} workers")
            print(f"bench plan, no records: {_planned(path, folder)}")
        _dispatched(path, folder, cells, args)
        if not args.real:
            print(f"bench plan, all done, first: {_planned(path, folder)}; again {_planned(path, folder)}")


def _planned(suite: Path, folder: Path) -> str:
    """Wall and CPU seconds of the command."""
    command = [sys.executable, "-m", "harness", "plan", str(suite), "--out", str(folder / "runs")]
    before, began = os.times(), time.perf_counter()
    subprocess.run([*command, "--reports", str(folder / "reports")], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{wall:.2f} s ({cpu:.2f} CPU s)"


def _dispatched(suite: Path, folder: Path, cells: int, args: argparse.Namespace) -> None:
    loaded = load_suite(suite)
    place = Place(folder / "runs", None)
    place.out.mkdir()
    entries = make_plan(loaded, place.out, folder / "reports")[:cells]
    profile = cProfile.Profile()
    with (folder / "out.txt").open("w") as stream:
        console = Console(file=stream, width=120)
        began, cpu = time.perf_counter(), time.process_time()
        if args.profile:
            profile.enable()
        records = run_cells(entries, place, ["cpu"] * args.workers, console, run=None if args.real else nothing)
        profile.disable()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    if {r.status for r in records} != {"ok"} or len(records) != cells:
        raise SystemExit(f"{len(records)} records of {cells}: {sorted({r.status + r.message for r in records})}")
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    kind = "minimal real cells" if args.real else "cells that write a record"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{cells} {kind}, start of the processes and preparation included: {wall:.1f} s, {1000 * wall / cells:.2f} ms "
        f"a cell ({1000 * args.workers * wall / cells:.2f} ms of a worker); the parent: {1000 * cpu / cells:.2f} CPU "
        f"ms a cell, peak {peak:.0f} MB; load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
    )


if __name__ == "__main__":
    main()
