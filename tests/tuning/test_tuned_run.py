"""A tuned suite from end to end: a learning rate that is far too low is found out, also after kill -9; its report."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.api import load_suite, plan, rank
from harness.clean import find
from harness.cli import main
from harness.plan import counts
from harness.seeds import TUNING_SEED
from tests.conftest import MANIFEST, Toy, started, wait_for

SUITE = """\
suite: planted
data: {manifest: toy.yaml, split: v, slices: {size: [32, 32]}}
models: [unet: {width: 4, depth: 2}]
losses: [dice_ce, focal]
seeds: 2
train: {epochs: 4, steps: 12, batch: 4, optimizer: {adamw: {lr: 1e-6}}, schedule: constant}
tune: {trials: 4, lr: [3e-3, 3e-2], epochs: 3, at_once: 2}
metrics: [dice]
rank: {by: [dice]}
report: {layout: [survey_table]}
"""


def _records(out: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """By loss, seed and learning rate; with the time at which each was written."""
    found = {}
    for path in out.glob("*/*/record.json"):
        record = json.loads(path.read_text())
        cell = record["cell"]
        rate = f"{cell['train']['optimizer']['adamw']['lr']:g}" if cell["seed"] < 0 else ""
        found[cell["loss"]["label"], cell["seed"], rate] = record | {"at": path.stat().st_mtime_ns, "path": path}
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The suite, run undisturbed to `whole`; and to `runs`, killed with all its workers half way and started again."""
    toy = Toy(tmp_path_factory.mktemp("tuned"))
    toy.data()
    text = MANIFEST.format(name="toy").replace("splits: {", "splits: {v: {val: [c2, c3], test: [c4, c5]}, ")
    (toy.folder / "toy.yaml").write_text(text)
    (toy.folder / "planted.yaml").write_text(SUITE)
    suite = toy.folder / "planted.yaml"
    whole = toy.bench("run", suite, "--workers", "2", out="whole")
    assert whole.returncode == 0, whole.stderr + whole.stdout
    assert "4 cells, 0 done, 4 to run; up to 8 trials of 2 studies before them" in whole.stdout

    command = [*toy.command("run", suite, "--workers", "2"), "--out", str(toy.folder / "runs")]
    with started(command, stdout=subprocess.DEVNULL):
        wait_for(lambda: len(list((toy.folder / "runs").glob("*/*/record.json"))) >= 3, "three records")
    before = _records(toy.folder / "runs")
    assert 3 <= len(before) < 12, "the kill came too late to prove anything"
    again = toy.bench("run", suite, "--workers", "1")  # another number of workers, too
    assert again.returncode == 0, again.stderr + again.stdout
    after = _records(toy.folder / "runs")
    assert all(after[key]["at"] == record["at"] for key, record in before.items() if record["status"] == "ok")
    return toy


def test_after_kill_9_the_same_command_makes_the_same_trials_the_same_choice_and_the_same_networks(done: Toy) -> None:
    whole, killed = _records(done.folder / "whole"), _records(done.folder / "runs")
    assert whole.keys() == killed.keys() and len(whole) == 2 * 4 + 4
    for key, record in whole.items():
        other = killed[key]
        assert (record["weights"], record["status"]) == (other["weights"], "ok")
        told, others = ({k: v for k, v in r.get("tuned", {}).items() if k != "seconds"} for r in (record, other))
        assert told == others and bool(told) == (key[1] != TUNING_SEED)


def test_a_rate_that_is_far_too_low_is_found_out_on_validation_patients(done: Toy) -> None:
    records = _records(done.folder / "runs")
    for (loss, seed, _), record in records.items():
        cell = record["cell"]
        if seed == TUNING_SEED:
            assert (
                cell["data"]["test"] == ["c2", "c3"] and "c4" not in json.dumps(cell) and "c5" not in json.dumps(cell)
            )
            continue
        tuned = record["tuned"]
        assert tuned["trial"] > 0 and 3e-3 <= tuned["lr"] <= 3e-2 and tuned["value"] > tuned["default"] + 0.1, loss
        assert cell["train"]["optimizer"]["adamw"]["lr"] == 1e-6  # the id is of what was asked, not of what was chosen
        curve = list(csv.DictReader((record["path"].parent.parent / "curve.csv").open()))
        assert {float(row["lr"]) for row in curve} == {tuned["lr"]}
    for loss in ("dice_ce", "focal"):
        assert records[loss, 0, ""]["tuned"] == records[loss, 1, ""]["tuned"]
        assert records[loss, 0, ""]["weights"] != records[loss, 1, ""]["weights"]


def test_plan_and_report_need_no_optuna_and_the_page_shows_the_choices(
    done: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    suite = load_suite(done.folder / "planted.yaml")
    assert counts(plan(suite, out=done.folder / "runs", reports=done.folder / "none")) == {"ok": 4}
    places = ["--out", f"{done.folder}/runs", "--reports", f"{done.folder}/reports", "--data", f"{done.folder}/data"]
    assert main(["report", str(suite.path), *places]) == 0
    folder = done.folder / "reports" / "planted"
    page = (folder / "index.html").read_text(encoding="utf-8")
    records = _records(done.folder / "runs")
    assert "What tuning chose" in page and "every loss got 4 trials of 3 epochs" in page
    assert "The learning rate alone, with as many trials: " not in page and "focal: gamma 0.5 to 5" in page
    rows = {row["loss"]: row for row in csv.DictReader((folder / "tables" / "tuning.csv").open())}
    assert rows.keys() == {"dice_ce", "focal"}
    for loss, row in rows.items():
        tuned = records[loss, 0, ""]["tuned"]
        assert float(row["lr"]) == tuned["lr"] and f"{tuned['lr']:g}" in page
        assert (
            float(row["validation_chosen"]) == tuned["value"] and float(row["validation_default"]) == tuned["default"]
        )
        assert (row["trials"], row["failed"], row["runs"]) == ("4", "0", "2")
        own = [r["cost"] for k, r in records.items() if k[0] == loss and k[1] >= 0]
        assert float(row["trainings_s"]) == pytest.approx(sum(c["train_s"] + c["eval_s"] for c in own))
        spent = [r["cost"] for k, r in records.items() if k[0] == loss and k[1] < 0]
        assert float(row["trials_s"]) == pytest.approx(sum(c["train_s"] + c["eval_s"] for c in spent))
    assert "\\toprule" in (folder / "tables" / "tuning.tex").read_text()
    with (folder / "cells.csv").open() as stream:
        assert {r["loss"]: float(r["lr"]) for r in csv.DictReader(stream)} == {
            k: float(r["lr"]) for k, r in rows.items()
        }
    capsys.readouterr()
    assert main(["plan", str(suite.path), "--json", *places]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [row["trials"] for row in planned] == [4] * 4 and len({row["study"] for row in planned}) == 2


def test_records_of_tuned_cells_travel_without_their_trials(done: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    suite, archive = done.folder / "planted.yaml", done.folder / "planted.zip"
    out = ["--out", f"{done.folder}/runs", "--reports", f"{done.folder}/nothing"]
    assert main(["records", "export", str(suite), "--to", str(archive), *out]) == 0
    assert main(["records", "import", str(archive), "--to", f"{done.folder}/elsewhere/planted/records"]) == 0
    found = plan(load_suite(suite), out=done.folder / "empty", reports=done.folder / "elsewhere")
    assert counts(found) == {"ok": 4} and all(e.record and e.record.tuned["trials"] == 4 for e in found)
    capsys.readouterr()


def test_clean_keeps_trials_as_long_as_the_suite_is_tuned(done: Toy) -> None:
    suite = load_suite(done.folder / "planted.yaml")
    assert find([suite], done.folder / "whole", orphans=True).items == []
    bare = done.folder / "bare.yaml"
    bare.write_text("".join(line for line in SUITE.splitlines(keepends=True) if not line.startswith("tune:")))
    items = find([load_suite(bare)], done.folder / "whole", orphans=True).items
    assert [item.kind for item in items] == ["orphan"] * 12


@pytest.mark.slow
def test_a_ranked_loss_gets_the_same_budget(done: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.folder)
    found = rank(
        "tversky", "planted.yaml", data=done.folder / "data", out="runs", reports="reports", workers=1, page=True
    )
    assert found.states == {"tversky": {"ok": 2}}
    records = _records(done.folder / "runs")
    tuned = records["tversky", 0, ""]["tuned"]
    assert sum(k[0] == "tversky" and k[1] < 0 for k in records) == tuned["trials"] == 4
    assert tuned["value"] > tuned["default"] + 0.1 and ("tversky", TUNING_SEED, "1e-06") in records
    page = (done.folder / "reports" / "planted+tversky" / "tables" / "tuning.csv").read_text()
    assert page.count("\n") == 1 + 3 and "tversky" in page
