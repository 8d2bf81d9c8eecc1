"""`bench rank` from end to end on a suite that is really run, and what it refuses."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import harness
from harness.api import load_records, load_suite, plan, rank, run
from harness.cli import main
from harness.errors import BenchError
from harness.plan import counts
from harness.ranking import rank as module
from harness.ranking.asked import extended, parse_loss
from harness.ranking.command import _places
from harness.ranking.duplicates import duplicates

ROOT = Path(__file__).parents[2]
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
    toy.suite().rename(toy.folder / "suite.yaml")
    monkeypatch.chdir(toy.folder)
    return toy.folder


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds of a check; the test from end to end has it."""
    monkeypatch.setattr(module, "_checked", lambda *_: {})
    monkeypatch.setattr(module, "_twins", lambda suite, _: {label: ("dice",) for label in suite.ranked})


def _times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.glob("runs/*/*/record.json"))}


def test_from_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline is run, then a rewritten Dice is checked, run and placed, and a wrong loss is not run."""
    arguments = ["--data", "data", "--workers", "1", "--no-report", "--json"]
    assert main(["rank", "mine.py:Overlap", "suite.yaml", *arguments]) == 2
    said = capsys.readouterr().err
    assert "the baseline dice has no record" in said
    where = folder / "data"
    assert f"`bench run suite.yaml --data {where} --only loss=dice` makes them" in said
    assert not list(folder.glob("runs/*/*/record.json"))

    assert [r.status for r in run(load_suite("suite.yaml"), data="data", only=["loss=dice"], workers=1)] == ["ok"]
    before = _times(folder)
    capsys.readouterr()
    assert main(["rank", "mine.py:Overlap", "suite.yaml", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["states"] == {"Overlap": {"ok": 1}} and found["baseline"] == "dice" and found["page"] is None
    (standing,) = found["standings"]
    assert standing["duplicate_of"] == ["dice"]
    assert list(found["checks"]["Overlap"]["failed"]) == ["identity"]
    place = standing["places"][0]
    assert abs(place["effect"]) < 0.05 and place["runs"] == 1 and place["losses"] == 2
    assert "No verdict: " in place["said"] and place["more"] == "" and place["verdict"] == "no verdict"
    assert any(s.startswith("Without a record, so not in the comparison: ce (1)") for s in found["differences"])
    after = _times(folder)
    assert len(after) == 2 and before.items() <= after.items()

    assert main(["rank", "mine.py:Backwards", "suite.yaml", *arguments[:-1]]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Backwards fails" in said and "does not pass the check, so nothing was trained: Backwards (" in said
    assert _times(folder) == after


def _states(folder: Path, text: str) -> dict[str, dict[str, int]]:
    whole = extended(load_suite(folder / "made.yaml"), [parse_loss(text, (), folder)])
    entries = plan(whole, out=folder / "runs", reports=folder)
    names = dict.fromkeys(e.cell.loss_label for e in entries)
    return {n: counts(e for e in entries if e.cell.loss_label == n) for n in names}


def test_what_has_to_run_anew(made) -> None:
    """Nothing; after another argument that loss alone; after an edit nothing, until it is asked for."""
    made.leave(made.whole())
    done = {"dice": {"ok": 5}, "ce": {"ok": 5}, "focal": {"ok": 5}}
    assert _states(made.folder, "my_loss.py:MyLoss") == done | {"MyLoss": {"ok": 5}}
    assert _states(made.folder, "my_loss.py:MyLoss(gamma=3)") == done | {"MyLoss(gamma=3)": {"missing": 5}}
    path = made.folder / "my_loss.py"
    path.write_text(path.read_text().replace(".mean()", ".mean() * 2"))
    assert _states(made.folder, "my_loss.py:MyLoss") == done | {"MyLoss": {"stale": 5}}
    path.write_text(path.read_text().replace("version = 1", "version = 2"))
    assert _states(made.folder, "my_loss.py:MyLoss") == done | {"MyLoss": {"missing": 5}}


def test_the_report(made, unchecked: None, capsys: pytest.CaptureFixture[str]) -> None:
    made.leave(made.whole(), {"MyLoss": 0.03}, diverged={"focal": {1}})
    path, reports = f"{made.folder}/my_loss.py:MyLoss", made.folder / "reports"
    arguments = [path, str(made.folder / "made.yaml"), "--out", str(made.out), "--reports", str(reports)]
    assert main(["rank", *arguments]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("MyLoss on made, baseline dice", "tier 1 of", "better after Holm", "disc", "cost on m / unet: 13.0 s"):
        assert text in shown
    folder = reports / "made+MyLoss"
    text = (folder / "index.html").read_text()
    assert "MyLoss is dice under another name" in text and f"bench rank {path} made.yaml" in text
    result = json.loads((folder / "rank.json").read_text())
    assert result["standings"][0]["places"][0]["verdict"] == "better" and result["page"] == "index.html"
    board = (folder / "leaderboard.csv").read_text()
    assert all(name in board for name in ("MyLoss", "dice", "ce", "focal"))
    assert not (reports / "made").exists()


def test_a_rewritten_dice_is_named_and_stands_in_its_tier(made) -> None:
    """Named by value and gradient, not by its results; and its results, those of Dice, put it beside Dice."""
    (made.folder / "mine.py").write_text(LOSSES)
    mine = f"{made.folder}/mine.py:Overlap"
    made.leave(made.whole(mine), {"ce": -0.03, "focal": -0.03}, copies={"Overlap": "dice"})
    found = rank(mine, made.suite(), out=made.out, reports=made.folder, page=False)
    (standing,) = found.standings
    (place,) = standing.places
    assert standing.duplicate_of == ("dice",) and list(found.checks["Overlap"]["failed"]) == ["identity"]
    assert (place.tier, place.effect) == (1, 0) and place.rank_low == 1 and place.verdict != "better"
    # the two share the first rank between them, and the others have none of it
    assert place.first == pytest.approx(0.5, abs=0.1)
    (other,) = rank("dice", made.suite(), out=made.out, reports=made.folder, page=False).standings
    assert other.places[0].tier == place.tier and other.places[0].mean == place.mean


def test_a_diverged_loss_is_last_and_the_exit_code_says_so(made, unchecked: None, capsys) -> None:
    made.leave(made.whole(), {"MyLoss": 0.03}, diverged={"MyLoss": {1, 2}})
    arguments = ["my_loss.py:MyLoss", str(made.folder / "made.yaml"), "--out", str(made.out), "--no-report", "--json"]
    assert main(["rank", *arguments]) == 1
    found = json.loads(capsys.readouterr().out)
    place = found["standings"][0]["places"][0]
    assert (place["rank"], place["losses"], place["diverged"]) == (4, 4, 2) and place["tier"] != 1
    assert found["states"] == {"MyLoss": {"ok": 3, "diverged": 2}}
    assert sum("the loss is not finite" in note for note in found["notes"]) == 2


def test_a_stale_loss_says_so(made, unchecked: None) -> None:
    made.leave(made.whole())
    path = made.folder / "my_loss.py"
    path.write_text(path.read_text().replace(".mean()", ".mean() * 2"))
    found = rank(str(path) + ":MyLoss", made.suite(), out=made.out, reports=made.folder, page=False)
    assert found.standings[0].places == () and not found.complete
    assert found.notes[0].startswith("STALE: the source of MyLoss has changed since 5 of its cells were trained")


def test_committed_records_serve_as_baselines(made, unchecked: None) -> None:
    """Records in REPORTS/*/records give the same places as those of the folder of results."""
    whole = made.whole()
    made.leave(whole, {"MyLoss": 0.01})
    first = rank(f"{made.folder}/my_loss.py:MyLoss", made.suite(), out=made.out, reports=made.folder / "r", page=False)
    ours = {c.train_id for c in whole.cells if c.loss_label == "MyLoss"}
    kept = made.folder / "r/made/records"
    kept.mkdir(parents=True)
    for path in made.out.iterdir():
        if path.is_dir() and path.name not in ours and path.name != "cache":
            path.rename(kept / path.name)
    again = rank(f"{made.folder}/my_loss.py:MyLoss", made.suite(), out=made.out, reports=made.folder / "r", page=False)
    assert again.standings == first.standings and again.differences == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine.py:Overlap"], "give a loss and a suite"),
        (["suite.yaml", "mine.py:Overlap"], "the suite comes last: bench rank mine.py:Overlap suite.yaml."),
        (["quickstart", "dice"], "the suite comes last: bench rank dice quickstart."),
        (["dice", "mine.py:Overlap"], "the suite comes last: bench rank dice mine.py:Overlap SUITE."),
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


def test_records_beside_the_suite_are_named(made, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    whole = made.whole()
    made.leave(whole)
    made.out.rename(made.folder / "records")
    kept = made.folder / "reports/made"
    kept.mkdir(parents=True)
    (made.folder / "records").rename(kept / "records")
    (made.folder / "elsewhere").mkdir()
    monkeypatch.chdir(made.folder / "elsewhere")
    assert main(["rank", "../my_loss.py:MyLoss", "../made.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"there are some beside the suite: add --reports {made.folder / 'reports'}." in error
    assert error.count("\n") == 1


def test_a_row_of_the_table_fits_into_80_columns(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole)).places
    wide = replace(place, metric="HD95 (mm), without misses", unit="% of 1 + distance", mean=29.42, effect=-198.57,
                   low=-170.72, high=129.34, tier=10, tiers=12, rank=10, losses=12, rank_low=9, rank_high=12, first=1.0)  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_places([wide]))
    rows = console.export_text().splitlines()
    assert "−198.57 %" in rows[1] and "−170.72 to +129.34 10/12 10/12 (9–12) 100 %" in rows[1]
    assert max(map(len, rows)) <= 80 and [row.strip() for row in rows[2:]] == ["without", "misses"]


def test_without_the_data_nothing_is_checked(made, unchecked: None, capsys: pytest.CaptureFixture[str]) -> None:
    whole = made.whole()
    made.leave(type(whole)(**{**vars(whole), "cells": tuple(c for c in whole.cells if c.loss_label == "dice")}))
    arguments = [
        "my_loss.py:MyLoss",
        str(made.folder / "made.yaml"),
        "--out",
        str(made.out),
        "--data",
        str(made.folder),
    ]
    assert main(["rank", *arguments]) == 2
    error = capsys.readouterr().err
    assert "It cannot be had." in error and error.count("\n") == 1


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


def test_the_code_of_the_docs_runs(made, unchecked: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """On records that are there, so that nothing is trained."""
    made.leave(made.whole(), {"MyLoss": 0.03})
    made.suite()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rank.md").read_text(encoding="utf-8"), re.DOTALL)
    ours = code.replace('"suites/quickstart.yaml", quick=True', '"made.yaml"')
    assert ours != code
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr("harness.ranking.page.write_page", lambda *_: None)
    exec(compile(ours, "rank.md", "exec"), {"__name__": "__main__"})
    tier, effect, low, high, verdict = capsys.readouterr().out.split()
    assert (tier, verdict) == ("1", "better") and float(low) < float(effect) < float(high)
