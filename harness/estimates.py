"""What a cell will take, told by finished ones: seconds and memory. Nothing of it enters a result. No torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from harness.cell import Cell
from harness.records import RunRecord

SLICES = 32  # of a volume, where nothing says how many there are
BASE_MB = 800.0  # a process with torch, its network and its optimizer
VOXEL_MB = 3e-3  # activations, gradients and targets of a voxel: those of nnU-Net's 2D plan, rounded up


class Estimates:
    """Seconds and memory of cells, from records of finished ones.

    Of the finished cells the nearest count: those of the same model, data and loss, else of the same model and data,
    else all of them by the number of voxels that a training sees.

    Args:
        records: Records of any status; only finished cells say something, and only those that were trained alone: the
            time of others is a share of their group's, and the memory the group's.
        gpu: Take only what was measured on a GPU (True) or on a CPU (False); by default both.
    """

    def __init__(self, records: Iterable[RunRecord], gpu: bool | None = None) -> None:
        self._texts: dict[int, tuple[Any, str]] = {}
        steps: defaultdict[Any, list[float]] = defaultdict(list)
        train: defaultdict[Any, list[float]] = defaultdict(list)
        test: defaultdict[Any, list[float]] = defaultdict(list)
        self._peaks: dict[Any, float] = {}
        self.known = 0
        for record in records:
            if record.status != "ok" or not _matches(record, gpu) or record.environment.get("engine") == "fused":
                continue
            told, cost = record.cell, record.cost
            with suppress(KeyError, TypeError, ZeroDivisionError):  # a record from elsewhere can lack anything
                near = self._near(told["model"], told["data"], told["loss"])
                seen = cost["steps"] * told["train"]["batch"] * _voxels(told["data"])
                rate, each = cost["train_s"] / seen, cost["eval_s"] / len(told["data"]["test"])
                sized = [(key, _samples(told["train"])) for key in near[:2]]
                steps[self._pass(told["data"], told["train"])].append(cost["steps"] / told["train"]["epochs"])
                for key in near:
                    train[key].append(rate)
                    test[key].append(each)
                for place in sized:
                    self._peaks[place] = max(cost["peak_rss_mb"], self._peaks.get(place, 0.0))
                self.known += 1
        self._steps = {key: median(values) for key, values in steps.items()}
        self._train = {key: median(values) for key, values in train.items()}
        self._test = {key: median(values) for key, values in test.items()}

    def seconds(self, cell: Cell) -> float | None:
        """Seconds of training and evaluation; None as long as no cell is finished."""
        if cell.skip:
            return 0.0
        if not self._train:
            return None
        near = self._near(cell.model, cell.data, cell.loss)
        key = next(k for k in near if k in self._train)
        work = self._work(cell.data, cell.train)
        return self._train[key] * work + self._test[key] * len(cell.data["test"])

    def weight(self, cell: Cell) -> float:
        """Seconds, or where no cell is finished a number that is in proportion to the work of the training."""
        seconds = self.seconds(cell)
        return self._work(cell.data, cell.train) if seconds is None else max(seconds, 1e-3)

    def work(self, cells: Sequence[Cell], total: int) -> float:
        """The weights of `total` cells, of which the rest are trials that are not known yet."""
        weights = [self.weight(cell) for cell in cells]
        like = [w for w, cell in zip(weights, cells, strict=True) if cell.trial is not None] or weights
        return sum(weights) + (total - len(cells)) * sum(like) / max(1, len(like))

    def total(self, cells: Iterable[Cell]) -> float | None:
        """Seconds of all of these on one process; None as long as no cell is finished."""
        found = [self.seconds(cell) for cell in cells]
        return None if None in found else sum(s for s in found if s is not None)

    def memory(self, cell: Cell) -> tuple[float, bool]:
        """Peak memory in MB, and whether it was measured on cells of this model, data and batch."""
        for key in self._near(cell.model, cell.data, cell.loss)[:2]:
            if (peak := self._peaks.get((key, _samples(cell.train)))) is not None:
                return peak, True
        return BASE_MB + VOXEL_MB * _samples(cell.train) * _voxels(cell.data), False

    def measured(self, cell: Cell) -> float | None:
        """Peak memory in MB of finished cells of this model, data and batch, whatever their loss."""
        return self._peaks.get((self._near(cell.model, cell.data, cell.loss)[1], _samples(cell.train)))

    def _near(self, model: Any, data: Any, loss: Any) -> list[Any]:
        model_text, loss_text = self._text(model, "label", "version"), self._text(loss, "label")
        shape = self._text(data["view"]), data["manifest"], "phantom" in data
        return [(model_text, shape, loss_text), (model_text, shape), ()]

    def _work(self, data: Mapping[str, Any], train: Mapping[str, Any]) -> float:
        """Voxels that a training sees."""
        steps = train["steps"] or self._steps.get(self._pass(data, train))
        if steps is None:
            samples = len(data["train"]) * (SLICES if "slices" in data["view"] else 1)
            steps = math.ceil(samples / train["batch"])
        return float(train["epochs"] * steps * train["batch"] * _voxels(data))

    def _pass(self, data: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
        """What decides how many steps visit every sample once."""
        return self._text(data["view"]), data["manifest"], len(data["train"]), "phantom" in data, train["batch"]

    def _text(self, value: Any, *without: str) -> str:
        """The value as text; a suite's cells share their parts, so each part is written once."""
        known = self._texts.get(id(value))
        if known is None or known[0] is not value:
            kept = {k: v for k, v in value.items() if k not in without}
            known = self._texts[id(value)] = value, json.dumps(_bare(kept), sort_keys=True)
        return known[1]


def _matches(record: RunRecord, gpu: bool | None) -> bool:
    """Whether a record was measured on such a device."""
    return gpu is None or (record.environment.get("device") != "cpu") == gpu


def _bare(value: Any) -> Any:
    """A specification without the places of its source files, which records do not hold."""
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if k != "class"}
    return [_bare(v) for v in value] if isinstance(value, list) else value


def _samples(train: Mapping[str, Any]) -> int:
    """Samples that are on the device at once."""
    return int(train["batch"] // train.get("accumulate", 1))


def _voxels(data: Mapping[str, Any]) -> int:
    """Voxels of a sample; a patch whose size the data decides counts as nnU-Net's usual one."""
    size = (data["view"].get("slices") or data["view"]["patches"])["size"]
    return 128**3 if isinstance(size, str) else math.prod(size)
