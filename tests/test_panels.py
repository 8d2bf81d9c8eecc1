"""Which slices a report shows, what is read for them, and that voxels need the manifest, a phantom or the user."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from harness.cell import Place
from harness.cli import main
from harness.panels import PICKS, chosen, panels
from harness.plan import Entry, make_plan
from harness.records import CASE_COLUMNS, RunRecord, write_rows
from harness.results import report_suite
from harness.rows import frames
from harness.suite import Suite, load_suite

MANIFEST = """\
name: spots
title: Spots
licence: none
attribution: nobody
obtain: It is made by the tests.
layout: {files: {image: "spots/img/{case}.nii.gz", label: "spots/lab/{case}.nii.gz"}}
modalities: [CT]
labels: {core: 1, rim: 2}
intensity: {window: [-20, 300]}
cases: [c0, c1, c2, c3, c4, c5, c6]
splits: {s: {val: [c0], test: [c2, c3, c4, c5, c6]}}
"""
SUITE = """\
suite: spots
data: {manifest: spots.yaml, split: s, slices: {size: [32, 32]}}
models: [unet: {width: 4, depth: 3}]
losses: [dice, ce]
train: {epochs: 1, steps: 2, batch: 2, optimizer: {adamw: {lr: 1e-2}}}
metrics: [dice]
report: {layout: [qualitative]}
"""
DICE = {"c2": 0.9, "c3": 0.1, "c4": 0.8, "c5": 0.5, "c6": 0.7}


@pytest.fixture
def spots(tmp_path: Path) -> tuple[Suite, Path]:
    """Seven volumes of which slice 2 holds most labels, and the records and masks of two losses."""
    (tmp_path / "spots.yaml").write_text(MANIFEST)
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite = load_suite(tmp_path / "suite.yaml")
    rng = np.random.default_rng(0)
    for number in range(7):
        label = np.zeros((4, 28, 30), np.uint8)
        label[1, 10:12, 10:12] = 1
        label[2, 5:20, 6:21] = 2
        label[2, 9:15, 10:16] = 1
        image = (label * 500.0 + rng.normal(0, 5, label.shape)).astype(np.float32)
        for kind, array in (("img", image), ("lab", label)):
            (tmp_path / "spots" / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "spots" / kind / f"c{number}.nii.gz"))
    for cell in suite.cells:
        folder = cell.eval_folder(tmp_path / "runs")
        (folder / "masks").mkdir(parents=True)
        rows: list[dict[str, Any]] = []
        for case in cell.data["test"]:
            mask = sitk.ReadImage(str(tmp_path / f"spots/lab/{case}.nii.gz"))
            sitk.WriteImage(mask, str(folder / f"masks/{case}.nii.gz"))
            rows += [
                {**cell.labels, "patient": case, "case": case, "class": name, "metric": "dice", "profile": "voxel-max",
                 "unit": "1", "value": DICE[case], "worst": 0.0, "status": "ok"} for name in ("core", "rim")
            ]  # fmt: skip
        write_rows(folder / "cases.csv", CASE_COLUMNS, rows)
        RunRecord(
            cell.train_id, cell.eval_id, "ok", "", cell.described(), {}, "w", {}, {"device": "cpu"}, cell.sources
        ).write(folder / "record.json")
    return suite, tmp_path


def plan(suite: Suite, folder: Path) -> list[Entry]:
    return make_plan(suite, folder / "runs", folder / "reports")


def test_cases_go_from_easier_to_harder_by_rule(spots: tuple[Suite, Path]) -> None:
    suite, folder = spots
    entries = plan(suite, folder)
    cases = frames(entries).cases
    tests = [*DICE]
    picked = chosen(cases, entries, entries[0].cell.model_label, tests)
    # in order: c3 10, c5 50, c6 70, c4 80, c2 90 %; places 4, 2.67, 1.33 and 0 of 0 to 4
    assert picked == [
        ("c2", "highest Dice (90 %)"), ("c4", "upper third (80 %)"), ("c5", "lower third (50 %)"), ("c3", "lowest Dice (10 %)"),
    ]  # fmt: skip
    assert chosen(cases, entries, entries[0].cell.model_label, ["c2"]) == [("c2", f"{PICKS[0][1]} (90 %)")]
    two = chosen(cases, entries, entries[0].cell.model_label, ["c3", "c2"])
    assert two == [("c2", "highest Dice (90 %)"), ("c3", "lowest Dice (10 %)")]
    assert chosen(cases, entries, "another model", tests) == []
    # a case that every loss missed is harder than the worst that was found
    missed = cases.assign(
        value=cases["value"].where(cases["case"] != "c6"),
        status=pd.Categorical(np.where(cases["case"] == "c6", "pred_empty", "ok")),
    )
    assert chosen(missed, entries, entries[0].cell.model_label, tests)[-1] == ("c6", "lowest Dice (0 %)")


def test_the_slice_with_most_labels_and_its_masks_without_voxels_unless_allowed(spots: tuple[Suite, Path]) -> None:
    suite, folder = spots
    entries, place = plan(suite, folder), Place(folder / "runs", folder)
    cases = frames(entries).cases
    shown, notes = panels(suite, entries, place, cases)
    assert notes == [] and shown[0].case == "c2, slice 2, highest Dice (90 %)"
    assert all(p.image is None for p in shown) and len(shown) == 4
    assert [*shown[0].predictions] == ["dice", "ce"] and (shown[0].truth == 2).sum() == 225 - 36
    seen, _ = panels(suite, entries, place, cases, images=True)
    image = seen[0].image
    assert image is not None and image.min() > -20 and image.max() == 300  # cut at the window
    (folder / "spots.yaml").write_text(MANIFEST.replace("layout:", "figures: images\nlayout:"))
    allowed = load_suite(folder / "suite.yaml")
    assert allowed.cells[0].train_id == suite.cells[0].train_id  # a licence changes no id
    assert all(p.image is not None for p in panels(allowed, plan(allowed, folder), place, cases)[0])


def test_a_mask_that_does_not_fit_its_label_leaves_all_panels_out_with_a_note(spots: tuple[Suite, Path]) -> None:
    suite, folder = spots
    entries, place = plan(suite, folder), Place(folder / "runs", folder)
    path = suite.cells[0].eval_folder(folder / "runs") / "masks/c3.nii.gz"  # the last of the four
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 28, 30), np.uint8)), str(path))
    shown, notes = panels(suite, entries, place, frames(entries).cases)
    assert shown == [] and len(notes) == 1
    assert str(path) in notes[0] and "(2, 28, 30)" in notes[0] and "(4, 28, 30)" in notes[0]


def test_a_page_is_made_anew_when_the_manifest_says_something_else_of_the_images(spots: tuple[Suite, Path]) -> None:
    suite, folder = spots
    place = Place(folder / "runs", folder)
    made = [report_suite(suite, plan(suite, folder), place, folder / "reports")[1] for _ in range(2)]
    assert made == [True, False]
    (folder / "spots.yaml").write_text(MANIFEST.replace("layout:", "figures: images\nlayout:"))
    allowed = load_suite(folder / "suite.yaml")
    page, anew = report_suite(allowed, plan(allowed, folder), place, folder / "reports")
    assert anew and "data:image/png" in page.read_text(encoding="utf-8")
    page, anew = report_suite(suite, plan(suite, folder), place, folder / "reports")
    assert anew and "data:image/png" not in page.read_text(encoding="utf-8")


def test_of_a_photograph_the_luminance_is_shown() -> None:
    from harness.panels import _grey

    colours = np.zeros((3, 1, 2, 2), np.float32)
    colours[0], colours[1], colours[2] = 100, 50, 10
    spec = SimpleNamespace(dimensions=2, intensity=SimpleNamespace(window=None))
    manifest: Any = SimpleNamespace(spec=spec)
    assert _grey(manifest, colours, 0, 0) == pytest.approx(np.full((2, 2), 29.9 + 29.35 + 1.14))
    spec.dimensions = 3
    assert _grey(manifest, colours, 0, 0) == pytest.approx(np.full((2, 2), 100.0))


def test_a_report_with_images_lies_apart_says_so_and_is_ignored_by_git(
    spots: tuple[Suite, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = spots
    monkeypatch.chdir(folder)
    assert main(["report", "suite.yaml", "--data", ".", "--format", "csv"]) == 0
    usual = {p: p.read_bytes() for p in (folder / "reports/spots").rglob("*") if p.is_file()}
    assert main(["report", "suite.yaml", "--data", ".", "--format", "html", "--with-images"]) == 0
    apart = folder / "reports/spots/with-images"
    text = (apart / "index.html").read_text(encoding="utf-8")
    assert "data:image/png" in text and "Made with --with-images" in text
    assert (apart / ".gitignore").read_text() == "*\n"
    rest = {p: p.read_bytes() for p in (folder / "reports/spots").rglob("*") if p.is_file() and apart not in p.parents}
    assert rest == usual
    assert main(["report", "suite.yaml", "--data", ".", "--with-images", "--commit"]) == 2
    assert not (folder / "reports/spots/records").exists()


def test_a_report_of_nothing_is_refused_and_touches_nothing(
    spots: tuple[Suite, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, folder = spots
    monkeypatch.chdir(folder)
    assert main(["report", "suite.yaml", "--data", "."]) == 0
    before = {p: p.read_bytes() for p in (folder / "reports").rglob("*") if p.is_file()}
    shutil.move(folder / "runs", folder / "elsewhere")
    for more in ([], ["--format", "latex"], ["--commit"], ["--with-images"]):
        assert main(["report", "suite.yaml", "--data", ".", *more]) == 2
    assert {p: p.read_bytes() for p in (folder / "reports").rglob("*") if p.is_file()} == before
    assert (
        "spots: no cell has a result, so no report is written; `bench run suite.yaml` makes" in capsys.readouterr().err
    )
    # a failure is a record, too: its page says what failed
    for cell in suite.cells:
        cell.eval_folder(folder / "runs").mkdir(parents=True)
        RunRecord(cell.train_id, cell.eval_id, "oom", "too little memory", cell.described()).write(
            cell.eval_folder(folder / "runs") / "record.json"
        )
    assert main(["report", "suite.yaml", "--data", "."]) == 0
    assert "too little memory" in (folder / "reports/spots/index.html").read_text(encoding="utf-8")


def test_slices_that_cannot_be_drawn_again_are_told_in_the_terminal(
    spots: tuple[Suite, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = spots
    monkeypatch.chdir(folder)
    assert main(["report", "suite.yaml", "--data", "."]) == 0
    assert "qualitative" not in capsys.readouterr().out
    slices = sorted(p.name for p in (folder / "reports/spots/figures").glob("slice-*.svg"))
    shutil.rmtree(folder / "spots")
    assert main(["report", "suite.yaml", "--data", ".", "--format", "csv"]) == 0  # draws none
    assert "qualitative" not in capsys.readouterr().out
    assert main(["report", "suite.yaml", "--data", "."]) == 0
    said = capsys.readouterr().out
    assert "No qualitative panels of spots: its masks or its labels are not at hand (" in said
    assert f"Removed with the earlier report, and not drawn again: ladder-spots-unet.svg, {', '.join(slices)}." in said
    assert len(slices) == 4 and not list((folder / "reports/spots/figures").glob("slice-*"))


def test_masks_that_are_not_there_are_a_note(spots: tuple[Suite, Path]) -> None:
    suite, folder = spots
    entries = plan(suite, folder)
    assert entries[0].folder is not None
    (entries[0].folder / "masks/c3.nii.gz").unlink()
    place = Place(folder / "runs", folder)
    _, notes = panels(suite, entries, place, frames(entries).cases)
    assert notes == ["No qualitative panels of spots: its masks or its labels are not at hand (c3.nii.gz)."]
