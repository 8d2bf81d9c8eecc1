"""Whether another engine scores like training alone: the same cells both ways, over whole trainings, some seeds each.

Rounding differs, so the trajectories part; what must agree is the score. For every loss the table has the mean Dice of
the test cases both ways, how much it varies from seed to seed, and the mean difference of the two with the half-width
of its 95 % interval (Student's t over the seeds). The run ends with code 1 where 0 lies outside an interval that is
corrected for the number of losses, or a mean difference is larger than the spread of the seeds.

    OMP_NUM_THREADS=1 python benchmarks/engine_scores.py --engine compiled --seeds 5
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from scipy.stats import t as student

from harness.cell import Cell, Place
from harness.cell_cases import Cases
from harness.engine import Engine
from harness.records import read_rows
from harness.suite import load_suite
from harness.worker import run_cell, run_group

SUITE = """\
suite: engines
data: {{manifest: phantom, split: default, slices: {{size: [64, 64]}}}}
models: [UNet: {{channels: [8, 16, 32], strides: [2, 2], num_res_units: 2}}]
losses: [{losses}]
seeds: {seeds}
train: {{epochs: {epochs}, steps: 25, batch: 8, optimizer: {{adamw: {{lr: 5.0e-3}}}}, schedule: constant}}
metrics: [dice]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="fused", choices=("fused", "compiled"))
    parser.add_argument("--losses", default="ce, dice, dice_ce, lovasz")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="of 25 steps")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.yaml"
        path.write_text(SUITE.format(losses=args.losses, seeds=args.seeds, epochs=args.epochs))
        cells = list(load_suite(path).cells)
        places = {name: Place(Path(folder) / name, None, args.device) for name in ("single", args.engine)}
        spent = {name: 0.0 for name in places}
        kept = {name: Cases(place) for name, place in places.items()}
        for job in Engine("fused").jobs(cells):  # in turn, so that the machine's moods meet both
            for name, place in places.items():
                began = time.monotonic()
                if name == "fused":
                    records = list(run_group(job, place, kept[name]))
                else:
                    records = [run_cell(cell, place, kept[name], engine=name) for cell in job]
                spent[name] += time.monotonic() - began
                if other := {r.environment.get("engine") for r in records if r.status == "ok"} - {name}:
                    raise SystemExit(f"trained as {other}, not {name}")
                if wrong := [r for r in records if r.status != "ok"]:
                    raise SystemExit(f"{wrong[0].cell['loss']['label']}: {wrong[0].status}: {wrong[0].message}")
        found = {name: _scores(cells, place) for name, place in places.items()}
    print(f"{len(cells)} cells each way, {25 * args.epochs} steps, {args.seeds} seeds, {args.device}")
    print(f"wall time: alone {spent['single']:.0f} s, {args.engine} {spent[args.engine]:.0f} s")
    return _table(found["single"], found[args.engine], args.engine)


def _scores(cells: list[Cell], place: Place) -> dict[str, list[float]]:
    """Mean Dice of the test cases by loss, in the order of the seeds."""
    out: dict[str, list[float]] = defaultdict(list)
    for cell in sorted(cells, key=lambda c: c.seed):
        rows = read_rows(cell.eval_folder(place.out) / "cases.csv")
        values = [float(r["value"]) for r in rows if r["metric"] == "dice" and r["value"]]
        out[cell.loss_label].append(statistics.fmean(values))
    return out


def _table(single: dict[str, list[float]], other: dict[str, list[float]], engine: str) -> int:
    print(f"\n| loss | Dice alone | Dice {engine} | spread of seeds, alone | {engine} | {engine} − alone, 95 % |")
    print("|---|--:|--:|--:|--:|--:|")
    bad = False
    for loss, alone in single.items():
        together = other[loss]
        gaps = [b - a for a, b in zip(alone, together, strict=True)]
        mean, count = statistics.fmean(gaps), len(gaps)
        error = statistics.stdev(gaps) / count**0.5
        spread = statistics.stdev(alone), statistics.stdev(together)
        half = float(student.ppf(0.975, count - 1)) * error
        strict = float(student.ppf(1 - 0.025 / len(single), count - 1)) * error
        bad |= abs(mean) > strict or abs(mean) > max(spread)
        means = f"{statistics.fmean(alone):.3f} | {statistics.fmean(together):.3f}"
        print(f"| {loss} | {means} | {spread[0]:.3f} | {spread[1]:.3f} | {mean:+.4f} ± {half:.4f} |")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
