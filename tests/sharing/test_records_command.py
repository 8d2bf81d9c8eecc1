"""`bench records` as a user meets it: from one machine to another that has no data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from shared import contents_of, make_archive, make_cell, repacked, write_cell

from harness.cli import main
from harness.suite import load_suite

if TYPE_CHECKING:
    from tests.conftest import Toy


def bench(*args: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ, timeout=120)


def test_the_same_leaderboard_on_a_machine_without_the_data(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = toy.folder, toy.folder / "elsewhere"
    suite = toy.suite("seeds: 1", "seeds: 3")
    cells = load_suite(suite, False, None).cells
    for cell in cells:
        write_cell(here / "runs", cell, value=0.7 + 0.1 * (cell.loss_label == "ce") + 0.01 * cell.seed)
    (cells[0].folder(here / "runs") / "weights.pt").write_bytes(b"x")
    packed = bench("records", "export", suite, "--to", "toy.zip", "--only", "loss=*", "--json", folder=here)
    told = json.loads(packed.stdout)
    assert (told["cells"], told["left_out"], told["stale"]) == (6, {}, 0)

    there.mkdir()
    for name in ("toy.yaml", suite.name, "toy.zip"):
        shutil.copy(here / name, there / name)
    taken = bench("records", "import", "toy.zip", "--digest", told["digest"], folder=there)
    assert taken.returncode == 0 and "toy: 6 new, 0 there already, 0 not taken" in taken.stdout
    assert "made with: bench 0.1.0, device cpu, threads 1, torch 2.13.0 (6 cells)" in taken.stdout
    tables = []
    for place in (here, there):
        report = bench("report", suite.name, "--format", "csv", folder=place)
        assert report.returncode == 0, report.stderr
        files = sorted((place / "reports/toy").rglob("*.csv"))
        tables.append({p.name: p.read_text() for p in files if "records" not in p.parts})
    assert tables[0] == tables[1] and len(tables[0]) > 3

    # a loss is ranked there against the imported records: places and numbers are those of here, and nothing is run
    found = []
    for place in (here, there):
        monkeypatch.chdir(place)
        assert main(["rank", "ce", suite.name, "--baseline", "dice", "--no-report", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[0]["states"] == {"ce": {"ok": 3}}
    (standing,) = found[0]["standings"]
    assert standing["places"][0]["rank"] == 1 and standing["places"][0]["effect"] == pytest.approx(10)
    assert not (there / "data").exists() and not list(there.glob("runs/*/train.json"))


def test_the_commands_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    (block,) = re.findall(r"```sh\n(.*?)```", (root / "docs/records.md").read_text(encoding="utf-8"), re.DOTALL)
    records = "reports/hippocampus/records"
    for training in sorted((root / records).iterdir())[:3]:
        shutil.copytree(training, tmp_path / records / training.name)
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        if "theirs.zip" in line:
            shutil.copy("hippocampus.zip", "theirs.zip")
        assert main(shlex.split(line)[1:]) == 0, line
    out = capsys.readouterr().out
    assert "hippocampus: 3 of " in out and "0 new, 3 there already" in out and "3 cells in both.zip" in out
    assert {p.name for p in tmp_path.glob("*.zip")} == {"hippocampus.zip", "theirs.zip", "both.zip"}


def run(*args: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["records", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_import_as_json_and_by_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path)
    code, _, error = run("import", "a.zip", "--digest", "sha256:" + "0" * 64, capsys=capsys)
    assert code == 2 and "these are other records" in error and not Path("reports").exists()
    code, out, _ = run("import", "a.zip", "--json", capsys=capsys)
    told = json.loads(out)
    assert code == 0 and (told["imported"], told["present"], told["kept"]) == (1, 0, [])
    assert told["environments"] == [{"bench": "0.1.0", "torch": "2.13.0", "device": "cpu", "threads": 1, "cells": 1}]
    assert Path("reports/toy/records", make_cell().train_id).is_dir() and told["to"] == "reports/toy/records"
    code, out, _ = run("import", "a.zip", "--to", "mine", "--digest", told["digest"], capsys=capsys)
    assert code == 0 and Path("mine", make_cell().train_id).is_dir()


def test_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = make_cell(), make_cell(seed=1)
    make_archive(tmp_path, one, to="a.zip", value=0.9)
    make_archive(tmp_path, one, two, to="b", value=0.8)
    code, out, _ = run("merge", "a.zip", "b", "--to", "both.zip", capsys=capsys)
    assert code == 0 and "toy: 2 cells in both.zip" in out
    assert "b: 1 new, 0 there already, 1 not taken" in out
    assert "not taken: dice / unet / toy / seed 0: trained there, with other weights; what is there stays" in out
    merged = contents_of(Path("both.zip"))
    cases = f"{one.train_id}/{one.eval_id}/cases.csv"
    assert b",0.9," in merged[cases] and len(merged) == 9
    code, _, error = run("merge", "a.zip", "b", "--to", "both.zip", capsys=capsys)
    assert code == 2 and "is there already" in error
    code, out, _ = run("merge", "both.zip", "a.zip", "--to", "folder", "--json", capsys=capsys)
    told = json.loads(out)
    assert [s["present"] for s in told["sources"]] == [0, 1] and told["cells"] == 2
    code, _, error = run("merge", "a.zip", "--to", "c.zip", capsys=capsys)
    assert code == 2 and "two archives" in error
    other = contents_of(Path("a.zip"))
    manifest = other.pop("manifest.json").replace(b'"suite": "toy"', b'"suite": "other"')
    repacked(Path("o.zip"), other, manifest)
    code, _, error = run("merge", "a.zip", "o.zip", "--to", "c.zip", capsys=capsys)
    assert code == 2 and "is of the suite other" in error and not Path("c.zip").exists()


def test_importing_runs_no_code_and_imports_no_torch(tmp_path: Path) -> None:
    """The record names a loss in a file that lies where the command runs: reading the record must not touch it."""
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n\nclass Loss:\n    open('ran', 'w').close()\n")
    make_archive(tmp_path, make_cell("evil.py:Loss"), make_cell("evil:Loss"))
    script = (
        "import sys; from harness.cli import main; code = main(['records', 'import', 'a.zip']); "
        "print(sorted(m for m in ('torch', 'pickle_', 'evil', 'monai') if m in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "2 new" in done.stdout and done.stdout.endswith("[]\n")
    assert not (tmp_path / "ran").exists()


SENTINEL = """\
from torch import nn

open("ran", "w").close()


class Loss(nn.Module):
    open("ran", "w").close()

    def forward(self, logits, target):
        open("ran", "w").close()
        return logits.mean()


class Net(nn.Module):
    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        open("ran", "w").close()
"""


def test_only_work_runs_the_code_of_losses_and_models(toy: Toy) -> None:
    """A suite with a loss and a model in a file: nothing but training and checking imports that file, or torch."""
    (toy.folder / "evil.py").write_text(SENTINEL)
    suite = toy.suite("losses: [dice, ce]", "losses: [dice, 'evil.py:Loss']")
    suite.write_text(suite.read_text().replace("unet: {width: 4, depth: 3}", "'evil.py:Net'"))
    for cell in load_suite(suite).cells:
        write_cell(toy.folder / "runs", cell)
    commands = [
        ["plan", suite.name],
        ["run", suite.name, "--data", "data"],  # all is there
        ["report", suite.name, "--commit", "--format", "csv"],
        ["records", "export", suite.name, "--to", "a.zip"],
        ["records", "export", suite.name, "--to", "a"],
        ["records", "import", "a.zip", "--to", "taken"],
        ["records", "merge", "a.zip", "a", "--to", "both.zip"],
        ["clean", suite.name, "--orphans", "--cache", "--yes"],
        ["list", "losses"],
        ["data", "toy.yaml", "--data", "data"],
    ]
    script = (
        "import sys; from harness.cli import main\n"
        f"for command in {commands!r}:\n"
        "    assert main(command) == 0, command\n"
        "    assert not {'torch', 'evil'} & set(sys.modules), command\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=toy.folder, timeout=200, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert not (toy.folder / "ran").exists()


def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    whole = make_archive(tmp_path).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[: len(whole) // 2])
    done = bench("records", "import", "b.zip", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "bench: b.zip: is no zip file of `bench records export`, or is cut off; fetch it again.\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "a.zip.results", "b.zip"]
