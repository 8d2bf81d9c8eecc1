"""Quick runs: the suite's own data set, as a phantom that is made where the run needs it, without any data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from harness.cell import Place
from harness.data.manifest import load_manifest
from harness.data.phantoms import PHANTOM_VERSION, made_cases, make_phantom, phantom_root
from harness.errors import BenchError
from harness.plan import Entry
from harness.preparing import check_data
from harness.records import read_rows
from harness.runner import run_cells
from harness.suite import load_suite
from harness.worker import run_cell

LOOK = "phantom: {scene: hippocampus, shape: [6, 32, 32], spacing: [2.0, 1.0, 1.0]}\n"
QUICK = "quick: {epochs: 1, steps: 3, cases: 2, size: 32}\n"


@pytest.fixture
def quick(toy) -> Path:
    """The toy suite with a scene for its data set, whose files are not there."""
    shutil.rmtree(toy.folder / "data")
    text = (toy.folder / "toy.yaml").read_text().replace("{disc: 1, ring: 2}", "{anterior: 1, posterior: 2}")
    (toy.folder / "toy.yaml").write_text(text + LOOK)
    path = toy.suite()
    path.write_text(path.read_text() + QUICK)
    return path


def test_a_quick_run_needs_no_data_and_trains_on_the_phantom(toy, quick):
    cells = load_suite(quick, quick=True).cells
    check_data(list(cells), None)
    place = Place(toy.folder / "runs", None)
    (record,) = run_cells([Entry(cells[0], "missing")], place, ["cpu"], Console(quiet=True))
    assert record.status == "ok", record.message
    assert cells[0].data["phantom"] == PHANTOM_VERSION  # another phantom is another result
    # the cell is one of the suite's own manifest and split, with the first cases of each part
    data = record.cell["data"]
    assert (record.cell["dataset"], data["split"], data["train"], data["test"]) == (
        "toy",
        "s",
        ["c0", "c1"],
        ["c4", "c5"],
    )
    root = phantom_root(load_manifest("toy.yaml", toy.folder, phantom=True), place.cache)
    assert made_cases(root) == {"c0", "c1", "c4", "c5"}
    rows = read_rows(cells[0].eval_folder(place.out) / "cases.csv")
    assert {(r["case"], r["class"]) for r in rows} == {(c, k) for c in ("c4", "c5") for k in ("anterior", "posterior")}
    assert {r["unit"] for r in rows if r["metric"] == "hd95"} == {"mm"}
    # nothing was left to make when the cases were read a second time
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.nii.gz")}
    assert run_cell(cells[1], place).status == "ok"
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*.nii.gz")} == before


def test_a_phantom_that_cannot_be_drawn_fails_the_cells_with_its_sentence(toy, quick):
    manifest = toy.folder / "toy.yaml"
    manifest.write_text(manifest.read_text().replace("posterior: 2", "amygdala: 2"))
    done = toy.bench("run", quick, "--quick", "--workers", "1")
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr
    for record in toy.records().values():
        assert record["status"] == "error"
        assert "phantom.scene: the scene hippocampus does not make class 'amygdala'" in record["message"]


def test_the_full_suite_still_needs_the_data_and_refuses_a_phantom(quick):
    cells = list(load_suite(quick).cells)
    folder = quick.parent / "data"
    with pytest.raises(BenchError, match=r"dataset\.json"):
        check_data(cells, folder)
    make_phantom(load_manifest("toy.yaml", quick.parent, phantom=True), [f"c{i}" for i in range(6)], folder)
    with pytest.raises(BenchError, match="data holds a phantom, no patients: run it with --quick"):
        check_data(cells, folder)
    check_data(list(load_suite(quick, quick=True).cells), None)
    shutil.rmtree(folder / ".phantom")  # what stops it is the mark and nothing else
    check_data(cells, folder)
