"""The cases of a cell: views whose words became numbers, training sets that stay on disk, and the runner's jobs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from harness.cell import Cell, Place
from harness.cell_cases import Cases, prepare_case
from harness.data.manifest import Manifest, load_manifest
from harness.data.stored import Stored
from harness.preparing import case_of, job_of
from harness.suite import load_suite
from harness.worker import run_cell

MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: nowhere
layout: {files: {image: "{case}_image.nii.gz", label: "{case}_label.nii.gz"}}
modalities: [CT]
labels: {a: 1, b: 2}
intensity: {window: [0, 100]}
cases: [c0, c1, c2, c3]
splits:
  s: {train: [c0, c1], val: [c2], test: [c3]}
  k: {folds: 2, seed: 0}
"""
SUITE = """\
suite: toy
data: {manifest: toy.yaml, split: SPLIT, patches: {size: SIZE}, MORE}
models: [unet: {width: 2, depth: 2}]
losses: [ce]
train: {epochs: 1, steps: 2, batch: 1, optimizer: {sgd: {lr: 0.01}}, augment: {preset: nnunet}}
metrics: [dice]
"""
WORDS = "resample: {spacing: nnunet}, intensity: {foreground: [0.5, 99.5]}, crop: nonzero, canonical: true"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(4):
        label = np.zeros((12, 20, 18), np.uint8)
        label[3:8, 5:12, 4 : 9 + i], label[6:10, 12:16, 8:14] = 1, 2
        image = (20 + 30 * label + rng.normal(0, 5, label.shape) + 5 * i).astype(np.float32)
        for kind, array in (("image", image), ("label", label)):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing([1.0, 1.0, 2.0 + i])
            sitk.WriteImage(volume, str(tmp_path / f"c{i}_{kind}.nii.gz"))
    (tmp_path / "toy.yaml").write_text(MANIFEST)
    return tmp_path


def _cells(folder: Path, split: str = "s", size: str = "[4, 8, 8]", more: str = WORDS) -> tuple[Cell, ...]:
    text = SUITE.replace("SPLIT", split).replace("SIZE", size).replace("MORE", more)
    (folder / "suite.yaml").write_text(text)
    return load_suite(folder / "suite.yaml").cells


def _open(folder: Path, cell: Cell) -> tuple[Cases, Manifest]:
    return Cases(Place(folder / "runs", folder)), load_manifest(cell.manifest_path, folder)


def test_a_view_is_resolved_from_the_training_cases_alone(folder: Path) -> None:
    (cell,) = _cells(folder)
    cases, manifest = _open(folder, cell)
    view = cases.view(cell, manifest)
    assert view["resample"] == {"spacing": [2.5, 1.0, 1.0]}  # c0 and c1: 2 and 3 mm
    values = []
    for name in ("c0", "c1"):
        image, label = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}_{k}.nii.gz"))) for k in ("image", "label")
        )
        values.append(image[label > 0])
    pooled = np.concatenate(values).astype(float)
    assert view["intensity"]["standard"]["mean"] == pytest.approx([pooled.mean()])
    assert view["intensity"]["standard"]["sd"] == pytest.approx([pooled.std()])
    assert cases.view(cell, manifest) is view
    assert cell.data["view"]["resample"] == {"spacing": "nnunet"}


def test_cases_stay_on_disk_and_bring_their_view(folder: Path) -> None:
    (cell,) = _cells(folder)
    cases, manifest = _open(folder, cell)
    (case,) = cases.load(cell, manifest, ["c3"])
    assert isinstance(case, Stored) and case.view == cases.view(cell, manifest)
    assert case.reference_shape == (12, 20, 18)
    assert case.shape == (1, 24, 20, 18)  # 12 slices of 5 mm at 2.5 mm


def test_raw_files_are_read_through_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.cell_cases as module

    (cell,) = _cells(folder, more="crop: nonzero")
    cases, manifest = _open(folder, cell)
    asked: list[str] = []
    real = module.prepare
    monkeypatch.setattr(module, "prepare", lambda *a: (asked.append(a[2]), real(*a))[1])
    first = cases.load(cell, manifest, ["c0", "c1"])
    assert [c.path for c in cases.load(cell, manifest, ["c1", "c0"])] == [c.path for c in reversed(first)]
    assert asked == ["c0", "c1"]
    first[1].path.unlink()
    cases.load(cell, manifest, ["c0", "c1"])
    assert asked == ["c0", "c1", "c1"] and first[1].path.is_file()  # what was removed is made again


def test_the_training_set_is_the_same_without_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = _cells(folder)
    sets = []
    for room in ("1000", "0"):
        monkeypatch.setenv("BENCH_CACHE_MB", room)
        cases, manifest = _open(folder, cell)
        data, labels, facts = cases.train_set(cell, manifest)
        assert cases.train_set(cell, manifest)[0] is data  # kept
        sets.append((data, facts, cases.fingerprint))
        assert data.resident == (2 if room == "1000" else 0) and len(labels) == 2
    assert sets[0][1:] == sets[1][1:]
    for step in range(3):
        one, two = (s[0].batch(step, 2, cell.seed_base) for s in sets)
        assert torch.equal(one.image, two.image) and torch.equal(one.target, two.target)


def test_a_record_says_what_words_became(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.worker.certificates_of", lambda *_: {})  # seconds, and another test's matter
    (cell,) = _cells(folder, size="nnunet")
    record = run_cell(cell, Place(folder / "runs", folder))
    assert record.status == "ok", record.message
    told = json.loads(record.fingerprints["view"])
    assert told["resample"] == {"spacing": [2.5, 1.0, 1.0]} and set(told["intensity"]) == {"standard"}
    # c0 and c1 at 2.5 mm have 10 and 14 slices; the plan takes the median, padded to what its poolings divide
    assert told["patches"]["size"] == [12, 20, 20]
    assert "view of the data" in (cell.folder(folder / "runs") / "log.txt").read_text()
    (plain,) = _cells(folder, more="crop: nonzero")
    record = run_cell(plain, Place(folder / "runs", folder))
    assert record.status == "ok" and "view" not in record.fingerprints


def _jobs(cells: tuple[Cell, ...]) -> set[Any]:
    return {case_of(c, "c0") for c in cells}


def test_a_case_is_prepared_once_for_all_folds_unless_their_numbers_differ(folder: Path) -> None:
    plain = _cells(folder, "k", more="resample: {spacing: [2, 1, 1]}")
    assert len(plain) == 2 and len(_jobs(plain)) == 1 and job_of(plain[0], "c0")[4] == []
    worded = _cells(folder, "k")
    assert len(_jobs(worded)) == 2 and job_of(worded[0], "c0")[4] == worded[0].data["train"]


def test_what_the_runner_prepares_is_what_the_cell_finds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = _cells(folder)
    place = Place(folder / "runs", folder)
    for name in ("c2", "c0", "c1", "c3"):
        assert prepare_case(place, *job_of(cell, name)) is None
    there = sorted(p.name for p in (place.cache / "toy").iterdir())
    cases, manifest = _open(folder, cell)
    cases.load(cell, manifest, ["c0", "c1", "c2", "c3"])
    assert sorted(p.name for p in (place.cache / "toy").iterdir()) == there and len(there) == 6  # 4 cases, facts of 2


def test_a_fault_of_a_training_case_is_a_sentence(folder: Path) -> None:
    (cell,) = _cells(folder)
    (folder / "c1_image.nii.gz").unlink()
    said = prepare_case(Place(folder / "runs", folder), *job_of(cell, "c0"))
    assert said is not None and "c1_image.nii.gz: no such file" in said
