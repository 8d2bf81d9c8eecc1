"""What `bench plan` and `bench report` cost on many records: wall time and memory on a made-up results folder.

The suite crosses losses, models, seeds and the five folds of a data set that is not there; the records carry the
identities of its plan, so that every cell counts as run. Values are drawn from a fixed seed and mean nothing. The plan
and the report run as the user runs them, each several times: first without, then with what earlier ones left behind.

    python benchmarks/report_scale.py --cells 10000 --rows 500
    python benchmarks/report_scale.py --cells 200          # to try it
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from metrics import tree_pss

from harness.cell import Cell
from harness.records import CASE_COLUMNS, RunRecord
from harness.suite import load_suite

CLASSES = ("liver", "spleen", "pancreas")
COUNTS = ("tp", "fp", "fn", "tn")
MEASURED = (("dice", "1", 0.0), ("hd95", "mm", 400.0), ("asd", "mm", 400.0))  # name, unit, worst value
FOLDS, MODELS, SEEDS = 5, (4, 8, 16, 32), 10
MANIFEST = """\
name: scale
title: A data set that is not there
licence: none
attribution: nobody
obtain: It cannot be had.
layout: {{decathlon: {{folder: scale}}}}
modalities: [CT]
labels: {{{labels}}}
intensity: {{zscore: volume}}
cases: [{cases}]
splits: {{cv: {{folds: {folds}}}}}
"""
SUITE = """\
suite: scale
description: Made up, to measure what reports of this size cost.
data: {{manifest: scale.yaml, split: cv, slices: {{size: [64, 64]}}}}
models: [{{unet: {{width: {{sweep: {models}}}}}}}]
losses: [{{tversky: {{fp_weight: 0.5, fn_weight: {{sweep: {losses}}}}}}}]
seeds: {seeds}
train: {{epochs: {epochs}, steps: 100, batch: 8, optimizer: {{adamw: {{lr: 1.0e-3}}}}}}
metrics: [dice, hd95, asd]
report: {{layout: {layout}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000, help="rounded up to whole losses × 4 models × 5 folds")
    parser.add_argument("--rows", type=int, default=500, help="of each cases.csv, rounded up to whole cases")
    parser.add_argument("--epochs", type=int, default=20, help="rows of each curve.csv")
    parser.add_argument("--layout", default="survey_table,curves,qualitative", help="of the report")
    parser.add_argument("--times", type=int, default=2, help="how often each command is run")
    parser.add_argument("--folder", type=Path, help="keep what is made here, or use what is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).resolve()
        suite = make(folder, args)
        print(f"{'command':16} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}")
        for verb in ("plan", "report"):
            for turn in range(1, args.times + 1):
                wall, cpu, peak = measured(verb, suite, folder)
                print(f"{f'{verb}, {turn}.':16} {wall:8.1f} {cpu:8.1f} {peak / 1e6:8.0f}", flush=True)


def make(folder: Path, args: argparse.Namespace) -> Path:
    """A manifest, a suite and the records of all its cells; a folder that is complete is left as it is."""
    suite, done = folder / "suite.yaml", folder / "made.json"
    asked = {k: getattr(args, k) for k in ("cells", "rows", "epochs")}
    cases = math.ceil(args.rows / (len(CLASSES) * (len(MEASURED) + len(COUNTS))))
    seeds = SEEDS if args.cells >= 1000 else 2
    losses = math.ceil(args.cells / (len(MODELS) * FOLDS * seeds))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.yaml").write_text(
        MANIFEST.format(
            labels=", ".join(f"{name}: {i}" for i, name in enumerate(CLASSES, start=1)),
            cases=", ".join(f"scale_{i:03}" for i in range(FOLDS * cases)),
            folds=FOLDS,
        )
    )
    weights = [round(0.01 * (i + 1), 2) for i in range(losses)]
    suite.write_text(
        SUITE.format(models=[*MODELS], losses=weights, seeds=seeds, epochs=args.epochs, layout=f"[{args.layout}]")
    )
    began = time.perf_counter()
    cells = load_suite(suite).cells
    if done.is_file() and json.loads(done.read_text()) == asked:
        print(f"{len(cells)} cells are in {folder}")
        return suite
    rows = 0
    for cell in cells:
        rows += leave(cell, folder / "runs", args.epochs)
    done.write_text(json.dumps(asked))
    print(f"{len(cells)} cells with {rows} rows, made in {time.perf_counter() - began:.0f} s")
    return suite


def leave(cell: Cell, out: Path, epochs: int) -> int:
    """What a worker leaves behind of a cell; the number of its rows."""
    rng = random.Random(cell.eval_id)
    folder = cell.eval_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(map(str, row)) for row in case_rows(cell, rng)]
    (folder / "cases.csv").write_text("\n".join([",".join(CASE_COLUMNS), *lines]) + "\n")
    curve = [f"{i},{100 * (i + 1)},{1e-3 * (1 - i / epochs)!r},{rng.random() / (i + 1)!r}" for i in range(epochs)]
    (folder.parent / "curve.csv").write_text("\n".join(["epoch,step,lr,loss", *curve]) + "\n")
    record = RunRecord(
        train_id=cell.train_id,
        eval_id=cell.eval_id,
        status="ok",
        message="",
        cell=cell.described(),
        fingerprints={k: cell.data["digest"] for k in ("init", "batches", "train_data", "test_data")},
        weights=f"{rng.getrandbits(256):064x}",
        cost={"train_s": 95 + rng.random(), "eval_s": 1.0, "step_ms": 47.0, "peak_rss_mb": 543.0, "steps": 2000},
        environment={"torch": "none", "device": "cpu", "python": "3"},
        sources={"loss": cell.loss_digest, "model": cell.model_source.digest},
    )
    text = json.dumps(record.__dict__, indent=1, sort_keys=True)
    (folder / "record.json").write_text(text)
    return len(lines)


def case_rows(cell: Cell, rng: random.Random) -> Iterator[tuple[object, ...]]:
    """Rows as in cases.csv; one in fifty has an empty prediction, and so no distance."""
    about = (cell.dataset, cell.data["split"], cell.data["fold"], cell.model_label, cell.loss_label, cell.seed)
    quote = tuple(f'"{part}"' if "," in str(part) else part for part in about)
    for case in cell.data["test"]:
        for name in CLASSES:
            empty = rng.random() < 0.02
            status = "pred_empty" if empty else "ok"
            for metric, unit, worst in MEASURED:
                known = rng.random() if unit == "1" else rng.expovariate(0.1)
                value = "" if empty and unit == "mm" else repr(0.0 if empty else known)
                yield (*quote, case, case, name, metric, "voxel-max", unit, value, worst, status)
            for count in COUNTS:
                yield (*quote, case, case, name, count, "voxel-max", "voxels", float(rng.randrange(9999)), 0.0, status)


def measured(verb: str, suite: Path, folder: Path) -> tuple[float, float, int]:
    """Wall and CPU seconds and peak bytes of a command and all that it starts."""
    command = [sys.executable, "-X", "importtime", "-m", "harness", verb, str(suite)]
    command += ["--out", str(folder / "runs"), "--reports", str(folder / "reports")]
    log = folder / f"{verb}.log"
    before, began, most = os.times(), time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None:
            most = max(most, tree_pss(process.pid))
            time.sleep(0.1)
    wall, after, text = time.perf_counter() - began, os.times(), log.read_text(encoding="utf-8")
    if process.returncode:
        raise SystemExit(f"bench {verb} failed:\n{text[-2000:]}")
    if any(line.startswith("import time:") and line.split("|")[-1].strip() == "torch" for line in text.splitlines()):
        raise SystemExit(f"bench {verb} imported torch.")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, most


if __name__ == "__main__":
    main()
