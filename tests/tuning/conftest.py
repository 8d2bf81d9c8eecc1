"""A tuned suite on the phantom, and trials that are answered by a formula instead of by a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cell import Cell
from harness.records import CASE_COLUMNS, RunRecord, write_rows
from harness.suite import Suite, load_suite
from harness.tuning.study import Trial

SUITE = """\
suite: toy
data: {manifest: phantom, split: validated, slices: {size: [64, 64]}}
models: [unet: {width: 4, depth: 3}]
losses: [dice, focal, tversky]
seeds: 2
train: {epochs: 6, steps: 2, batch: 2, optimizer: {sgd: {lr: 1e-2}}}
tune: {trials: 8, lr: [1e-4, 1e-1], epochs: 3}
metrics: [dice]
rank: {by: [dice]}
"""


def load(folder: Path, old: str = "", new: str = "", text: str = SUITE, **more: Any) -> Suite:
    assert old in text
    path = folder / "toy.yaml"
    path.write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
    return load_suite(path, **more)


def cell_of(suite: Suite, loss: str = "focal", seed: int = 0) -> Cell:
    return next(c for c in suite.cells if c.loss_label == loss and c.seed == seed)


def rate(cell: Cell) -> float:
    ((_, args),) = cell.train["optimizer"].items()
    return float(args["lr"])


def write(cell: Cell, out: Path, value: float | None, status: str = "ok") -> RunRecord:
    """The record of a cell, and the Dice of its cases."""
    folder = cell.eval_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    if value is not None:
        rows = [
            cell.labels
            | {"patient": case, "case": case, "class": name, "metric": "dice", "profile": "voxel-max", "unit": "1",
               "value": value, "worst": 0.0, "status": "ok"}
            for case in cell.data["test"]
            for name in ("liver", "spleen")
        ]  # fmt: skip
        write_rows(folder / "cases.csv", CASE_COLUMNS, rows)
    cost = {"train_s": 2.0, "eval_s": 0.5}
    record = RunRecord(cell.train_id, cell.eval_id, status, "", cell.described(), sources=cell.sources, cost=cost)
    record.write(folder / "record.json")
    return record


def peak(cell: Cell) -> float:
    """A score that is best at the rate 0.03 and, where there is a gamma, at gamma 3."""
    gamma = cell.loss.get("args", {}).get("gamma", 2.0)
    return math.exp(-((math.log10(rate(cell) / 0.03)) ** 2) - 0.1 * (gamma - 3.0) ** 2)


Answer = Callable[[Trial, Path], None]


def by_formula(trial: Trial, out: Path) -> None:
    write(trial.cell, out, peak(trial.cell))


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return load(tmp_path)
