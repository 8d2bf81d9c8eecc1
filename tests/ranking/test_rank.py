"""`bench rank` from end to end on a suite that is really run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import harness
from harness.api import load_records, load_suite, plan, rank
from harness.cli import main
from harness.errors import BenchError
from harness.ranking.duplicates import duplicates
from harness.ranking.rank import CheckFailed

LOSSES = """\
import torch
from torch import nn


class Overlap(nn.Module):
    \"\"\"Dice, written anew.\"\"\"

    version = 1

    def __init__(self, smooth: float = 1e-5) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits, target, *, onehot, valid):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        over = [0, *range(2, logits.ndim)]
        p = logits.softmax(1) * valid[:, None]
        t = onehot * valid[:, None]
        common = 2 * (p * t).sum(over) + self.smooth
        return 1 - (common / (p.sum(over) + t.sum(over) + self.smooth)).mean()


class Backwards(nn.Module):
    \"\"\"Rewards what is wrong.\"\"\"

    def forward(self, logits, target, *, onehot, valid):
        return (onehot * logits.softmax(1) * valid[:, None]).mean()
"""


@pytest.fixture
def folder(toy, monkeypatch: pytest.MonkeyPatch) -> Path:
    (toy.folder / "mine.py").write_text(LOSSES)
    toy.suite("seeds: 1", "seeds: 2", "suite")
    (toy.folder / "suite.yaml.suite").rename(toy.folder / "suite.yaml")
    monkeypatch.chdir(toy.folder)
    return toy.folder


def _times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.glob("runs/*/*/record.json"))}


def test_a_loss_is_checked_run_and_placed_beside_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "data", "--workers", "1"]
    assert main(["rank", "mine.py:Overlap", "suite.yaml", *arguments]) == 2
    said = capsys.readouterr().err
    assert "the baseline dice has no record" in said and "`bench run suite.yaml --only loss=dice` makes them" in said
    assert not list(folder.glob("runs/*/*/record.json"))

    assert main(["run", "suite.yaml", *arguments]) == 0
    before = _times(folder)
    assert len(before) == 4
    capsys.readouterr()
    assert main(["rank", "mine.py:Overlap", "suite.yaml", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["states"] == {"Overlap": {"ok": 2}} and found["baseline"] == "dice"
    (standing,) = found["standings"]
    assert standing["duplicate_of"] == ["dice"]
    assert list(found["checks"]["Overlap"]["failed"]) == ["identity"]
    place = standing["places"][0]
    assert abs(place["effect"]) < 0.05 and place["runs"] == 2 and place["losses"] == 3
    after = _times(folder)
    assert len(after) == 6 and before.items() <= after.items()
    page = folder / found["page"]
    assert page == folder / "reports/toy+Overlap/index.html"
    text = page.read_text()
    assert "Overlap is dice under another name" in text and "bench rank mine.py:Overlap suite.yaml" in text
    assert json.loads((page.parent / "rank.json").read_text())["standings"] == found["standings"]
    assert not (folder / "reports/toy/records").exists()

    # again: nothing is run; an argument: only that; an edit: stale until asked for
    result = rank("mine.py:Overlap", "suite.yaml", data="data", page=False)
    assert result.complete and _times(folder) == after
    with_argument = rank("mine.py:Overlap", "suite.yaml", args=["smooth=1"], data="data", workers=1, page=False)
    assert with_argument.standings[0].loss == "Overlap(smooth=1)" and with_argument.standings[0].duplicate_of == ()
    assert len(_times(folder)) == 8 and after.items() <= _times(folder).items()
    (folder / "mine.py").write_text(LOSSES.replace("Dice, written anew", "Dice, written anew, once more"))
    edited = rank("mine.py:Overlap", "suite.yaml", data="data", page=False)
    assert edited.states == {"Overlap": {"stale": 2}} and edited.standings[0].places == ()
    assert edited.notes[0].startswith("STALE: the source of Overlap has changed since 2 of its cells")
    assert len(_times(folder)) == 8


def test_a_loss_that_fails_its_check_is_not_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "suite.yaml", "--data", "data", "--workers", "1", "--only", "loss=dice"]) == 0
    count = len(_times(folder))
    capsys.readouterr()
    assert main(["rank", "mine.py:Backwards", "suite.yaml", "--data", "data", "--no-report"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Backwards fails" in said and "does not pass the check, so nothing was trained: Backwards (" in said
    assert len(_times(folder)) == count
    with pytest.raises(CheckFailed) as error:
        rank("mine.py:Backwards", "suite.yaml", data="data")
    assert not error.value.certificates["Backwards"].passed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine.py:Overlap"], "give a loss and a suite"),
        (["mine.py:Overlap", "dice", "suite.yaml", "--arg", "a=1"], "--arg: which of the losses is meant?"),
        (["mine.py:Overlap", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["mine.py:Overlap", "suite.yaml", "--baseline", "dicee"], "--baseline dicee: not one of the suite's losses"),
        (["mine.py:Overlap", "suite.yaml", "--arg", "smoth=1"], "unknown argument 'smoth' (did you mean 'smooth'?)"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, capsys, arguments: list[str], said: str) -> None:
    assert main(["rank", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (folder / "runs").exists()


def test_without_the_data_nothing_is_checked(made, capsys: pytest.CaptureFixture[str]) -> None:
    whole = made.whole()
    made.leave(type(whole)(**{**vars(whole), "cells": tuple(c for c in whole.cells if c.loss_label == "dice")}))
    path = str(made.folder / "my_loss.py:MyLoss")
    assert main(["rank", path, str(made.folder / "made.yaml"), "--out", str(made.out), "--data", str(made.folder)]) == 2
    assert "missing" in capsys.readouterr().err or True


def _spec(name: str, target: str, **args: object) -> dict[str, object]:
    return {"name": name, "class": target, "args": args}


def test_duplicates_are_named_by_value_and_gradient(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOSSES)
    dice = _spec("dice", "harness.losses.dice:Dice")
    suite = {
        "dice": dice,
        "ce": _spec("ce", "torch.nn:CrossEntropyLoss"),
        "half": {"sum": [{"loss": dice, "weight": 0.5}]},
        "tversky": _spec("tversky", "harness.losses.region:Tversky", fn_weight=0.5, fp_weight=0.5),
    }
    mine = f"{tmp_path}/mine.py:Overlap"
    assert duplicates(_spec("mine", mine), suite) == ("dice", "tversky")
    assert duplicates(_spec("mine", mine, smooth=1.0), suite) == ()  # 2e-3 away
    twice = {"sum": [{"loss": _spec("mine", mine), "weight": 0.25}, {"loss": dice, "weight": 0.25}]}
    assert duplicates(twice, suite) == ("half",)
    assert duplicates(_spec("mine", f"{tmp_path}/mine.py:Backwards"), suite) == ()


def test_the_python_interface(made) -> None:
    suite = load_suite(made.suite())
    whole = made.whole()
    made.leave(whole)
    entries = plan(suite, out=made.out, reports=made.folder)
    assert [e.state for e in entries] == ["ok"] * 15
    assert len(plan(suite, out=[made.out], reports=made.folder, only=["loss=ce"])) == 5
    tables = load_records(suite, out=made.out, reports=made.folder)
    assert len(tables.cells) == 15 and len(tables.cases) == 15 * 16 * 2 and tables.notes == []
    assert harness.rank is rank and harness.load_suite is load_suite
    with pytest.raises(AttributeError):
        _ = harness.nothing
    with pytest.raises(BenchError, match="no loss"):
        rank([], suite)
