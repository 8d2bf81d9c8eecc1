"""Records that were written, not run, of a suite and of losses that are ranked on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cell import Cell
from harness.plan import Entry, make_plan
from harness.ranking.asked import RankSuite, extended, parse_loss
from harness.ranking.place import Standing
from harness.ranking.rank import counted, placed, ranking_of
from harness.records import CASE_COLUMNS, RunRecord, write_rows
from harness.rows import frames
from harness.stats.simulate import Setting, draw
from harness.suite import load_suite

CASES = [f"c{i}" for i in range(20)]
MANIFEST = """\
name: m
title: Made
licence: none
attribution: nobody
obtain: It cannot be had.
layout: {decathlon: {folder: m}}
modalities: [MRI]
labels: {disc: 1, ring: 2}
intensity: {zscore: volume}
cases: [CASES]
splits: {s: {val: [c0], test: [TEST]}}
""".replace("CASES", ", ".join(CASES)).replace("TEST", ", ".join(CASES[4:]))
SUITE = """\
suite: made
data: {manifest: m.yaml, split: s, slices: {size: [32, 32]}}
models: [unet: {width: 4, depth: 3}]
losses: [dice, ce, focal]
seeds: 5
train: {epochs: 2, steps: 4, batch: 4, optimizer: {adamw: {lr: 3e-3}}}
metrics: [dice]
rank: {by: [dice], baseline: dice}
"""
LOSS = """\
from torch import nn


class MyLoss(nn.Module):
    version = 1

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, target, *, onehot, valid):
        return (((onehot - logits.softmax(1)) * valid[:, None]) ** self.gamma).mean()
"""
ENVIRONMENT = {"device": "cpu", "instructions": "AVX2", "platform": "Linux", "threads": 1, "torch": "2.13"}


@dataclass
class Made:
    """A folder with a suite, whose values come from the simulation of the statistics: no loss truly differs."""

    folder: Path
    shifts: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    def suite(self, old: str = "", new: str = "") -> Path:
        assert old in SUITE
        path = self.folder / "made.yaml"
        path.write_text(SUITE.replace(old, new, 1) if old else SUITE)
        return path

    def whole(self, *losses: str) -> RankSuite:
        suite = load_suite(self.suite())
        asked = losses or (f"{self.folder}/my_loss.py:MyLoss",)
        return extended(suite, [parse_loss(x, (), self.folder) for x in asked])

    def leave(
        self,
        whole: RankSuite,
        shifts: Mapping[str, float | Mapping[str, float]] | None = None,
        diverged: Mapping[str, set[int]] | None = None,
        copies: Mapping[str, str] | None = None,
        **record: Any,
    ) -> list[Entry]:
        """Write a record for each cell that has none and return the plan.

        `shifts`: loss to what it is better by (on all classes, or by class); `copies`: loss to the one whose values it
        has to the last digit; `record`: other fields of the records.
        """
        labels = list(dict.fromkeys(c.loss_label for c in whole.cells))
        setting = Setting(len(labels), 5, len(CASES[4:]), run_sd=0.004, patient_sd=0.008)
        values = {name: draw(setting, 1, np.random.default_rng(i))[0][0] for i, name in enumerate(("disc", "ring"))}
        for cell in whole.cells:
            folder = cell.eval_folder(self.out)
            if (folder / "record.json").is_file():
                continue
            folder.mkdir(parents=True)
            own = (copies or {}).get(cell.loss_label, cell.loss_label)
            gone = cell.seed in (diverged or {}).get(cell.loss_label, set())
            if not gone:
                shift = (shifts or {}).get(own, 0.0)
                write_rows(folder / "cases.csv", CASE_COLUMNS, self._rows(cell, values, labels.index(own), shift))
            write_rows(
                folder.parent / "curve.csv",
                ["epoch", "step", "lr", "loss"],
                [{"epoch": 0, "step": 4, "lr": 1, "loss": 1}],
            )
            status = "diverged" if gone else "ok"
            cost = {"train_s": 10.0 + labels.index(own), "step_ms": 5.0, "targets_ms": 0.0, "peak_rss_mb": 100.0}
            fields: dict[str, Any] = {
                "fingerprints": {"init": f"i{cell.seed}", "batches": f"b{cell.seed}"}, "weights": cell.train_id,
                "cost": cost, "environment": ENVIRONMENT, "sources": cell.sources,
            }  # fmt: skip
            message = "the loss is not finite" if gone else ""
            fields |= record
            RunRecord(cell.train_id, cell.eval_id, status, message, cell.described(), **fields).write(
                folder / "record.json"
            )
        return make_plan(whole, self.out, self.folder / "reports")

    def _rows(self, cell: Cell, values: Any, number: int, shift: float | Mapping[str, float]) -> list[dict[str, Any]]:
        return [
            {
                **cell.labels, "patient": case, "case": case, "class": name, "metric": "dice", "profile": "voxel-max",
                "unit": "1", "worst": 0.0, "status": "ok",
                "value": values[name][number, cell.seed, i] + (shift if isinstance(shift, float) else shift.get(name, 0.0)),
            }
            for i, case in enumerate(cell.data["test"])
            for name in ("disc", "ring")
        ]  # fmt: skip

    def standing(self, whole: RankSuite, entries: list[Entry], baseline: str = "dice") -> Standing:
        tables = frames(counted(entries, whole.ranked))
        (found,) = placed(whole, entries, tables, ranking_of(whole, baseline))
        return found


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "m.yaml").write_text(MANIFEST)
    (tmp_path / "my_loss.py").write_text(LOSS)
    return Made(tmp_path)
