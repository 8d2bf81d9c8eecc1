"""Every published comparison end to end, without its data: phantom, `bench data`, the suite's quick form, the report.

Minutes; `make suites` runs it, and CI.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from harness.cli import main

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = (
    "synapse", "synapse_npz", "synapse_hyperparameters", "cityscapes", "nfbs", "lits", "brats", "gsl_schedules",
    "gsl_variants", "acdc", "shape_prior", "combos", "hippocampus_nnunet",
)  # fmt: skip
DATA_SETS = (
    "synapse", "synapse_npz", "cityscapes", "lits", "brats2020", "nfbs", "acdc", "hippocampus", "example_decathlon",
    "example_nnunet", "example_folder",
)  # fmt: skip
EXAMPLES = {
    "example_nnunet": ("kfold5, folds: [0]", "slices: {size: [64, 64]}"),
    "example_folder": ("thirds", "slices: {size: [64, 64]}"),
    "example_decathlon": ("kfold5, folds: [0]", "slices: {size: [64, 64]}"),
}

pytestmark = pytest.mark.suites


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of results: what is prepared once serves all suites."""
    return tmp_path_factory.mktemp("suites")


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_phantom_in_the_true_layout_is_verified(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", name, "--phantom", str(tmp_path)]) == 0
    assert capsys.readouterr()
    assert main(["data", name, "--data", str(tmp_path), "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phantom"] and found["read"] == len(found["cases"]) > 0, found
    assert not found["missing"] and not found["faults"], found
    empty = [k for k, v in found["classes"].items() if not v["voxels"] and k not in ("background", "ignored")]
    assert not empty, empty


@pytest.mark.parametrize("name", [*PUBLISHED, "tuned"])
def test_the_quick_form_of_a_suite_runs_to_its_report(name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", f"{ROOT}/suites/{name}.yaml", "--quick", "--out", f"{out}/runs", "--reports", f"{out}/reports"])
    assert code == 0, capsys.readouterr().out[-2000:]
    report = out / "reports" / f"{name}-quick"
    with (report / "cells.csv").open(encoding="utf-8") as stream:
        cells = list(csv.DictReader(stream))
    assert cells and {c["status"] for c in cells} == {"ok"}
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "Protocol of" in page or name in ("hippocampus_nnunet", "tuned")
    with (report / "cases.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {r["loss"] for r in rows} == {c["loss"] for c in cells}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_data_set_of_ones_own_runs(name: str, out: Path, tmp_path: Path) -> None:
    split, view = EXAMPLES[name]
    (tmp_path / f"{name}.yaml").write_text(
        f"suite: {name}\ndata: {{manifest: {name}, split: {split}, {view}}}\nmodels: [unet: {{width: 4, depth: 3}}]\n"
        "losses: [dice, ce]\ntrain: {epochs: 1, steps: 2, batch: 2, optimizer: {adamw: {lr: 1e-3}}}\nmetrics: [dice]\n"
        "quick: {epochs: 1, steps: 2, cases: 2, size: 64}\n"
    )
    arguments = ["--quick", "--out", f"{out}/runs", "--reports", f"{out}/reports"]
    assert main(["run", str(tmp_path / f"{name}.yaml"), *arguments]) == 0
    assert (out / "reports" / f"{name}-quick" / "index.html").is_file()
