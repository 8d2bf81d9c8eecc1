"""What a change in a suite re-runs, in real runs: the training files say what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.api import load_suite, run
from harness.plan import make_plan
from harness.records import read_record, read_rows

LOSS = """\
from torch import nn


class Mine(nn.Module):
    def forward(self, logits, target):
        return logits.mean() ** 2
"""
SHORT = "train: {epochs: 2, steps: 4"


def _run(toy, *changes: tuple[str, str]) -> list[str]:  # type: ignore[no-untyped-def]
    """Run the suite with these changes; the labels of the cells that were started."""
    path = toy.suite(SHORT, "train: {epochs: 1, steps: 2")
    for old, new in changes:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    folder = toy.folder
    records = run(load_suite(path), data=folder / "data", out=folder / "runs", reports=folder / "reports", workers=1)
    assert all(r.status == "ok" for r in records)
    return [r.cell["loss"]["label"] for r in records]


def _trainings(toy) -> dict[Path, int]:  # type: ignore[no-untyped-def]
    files = [p for name in ("train.json", "weights.pt", "curve.csv") for p in toy.folder.glob(f"runs/*/{name}")]
    return {p: p.stat().st_mtime_ns for p in files}


def test_what_is_trained_again(toy, capsys: pytest.CaptureFixture[str]) -> None:
    source = toy.folder / "mine.py"
    source.write_text(LOSS)
    losses = ("losses: [dice, ce]", "losses: ['mine.py:Mine', focal: {gamma: 2}]")
    assert _run(toy, losses) == ["Mine", "focal"]
    first = _trainings(toy)
    assert len(first) == 6

    # the same again: nothing; another argument of one loss: that one alone
    assert _run(toy, losses) == [] and _trainings(toy) == first
    losses = (losses[0], "losses: ['mine.py:Mine', focal: {gamma: 3}]")
    assert _run(toy, losses) == ["focal"]
    second = _trainings(toy)
    assert len(second) == 9 and first.items() <= second.items()

    # another metric: all cells are measured, and none is trained
    metric = ("metrics: [dice, hd95, asd]", "metrics: [dice, hd95, asd, nsd@2]")
    assert _run(toy, losses, metric) == ["Mine", "focal"] and _trainings(toy) == second
    assert len(list(toy.folder.glob("runs/*/*/record.json"))) == 5
    for cell in load_suite(toy.folder / "toy.yaml.suite").cells:
        folder = cell.eval_folder(toy.folder / "runs")
        record, training = read_record(folder / "record.json"), read_record(folder.parent / "train.json")
        assert record.weights == training.weights and record.fingerprints["init"] == training.fingerprints["init"]
        assert (folder.parent / "log.txt").read_text().count("trained") == 1
        # what was measured before has the same values
        (other,) = [p for p in folder.parent.glob("*/cases.csv") if p.parent != folder] or [None]
        rows = read_rows(folder / "cases.csv")
        assert any(r["metric"] == "nsd@2" for r in rows)
        if other is not None:
            assert [r for r in rows if r["metric"] != "nsd@2"] == read_rows(other)

    # back again: what was measured first is still there
    assert _run(toy, losses) == [] and _trainings(toy) == second

    # measured anew after an edit of the source: the weights are those of the source as it was, and the record says so
    source.write_text(source.read_text().replace("** 2", "** 4"))
    assert _run(toy, losses, ("hd95, asd]", "hd95]")) == ["Mine", "focal"] and _trainings(toy) == second
    entries = make_plan(load_suite(toy.folder / "toy.yaml.suite"), toy.folder / "runs", toy.folder / "reports")
    assert [e.state for e in entries] == ["stale", "ok"]
