"""Phantoms of data sets: in the true layout, the same every time, whole whoever makes them and however that ends."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harness.data import phantoms
from harness.data.layouts import IGNORE, reader_of
from harness.data.layouts.files import Files
from harness.data.manifest import Manifest, load_manifest, packed
from harness.data.phantoms import data_root, make_phantom, phantom_root, phantom_volume
from harness.data.scenes import SCENES
from harness.errors import BenchError

SHIPPED = sorted(p.stem for p in packed("data_manifests").glob("*.yaml") if p.stem != "phantom")

TOY = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: Nothing.
layout: {files: {image: "{case}/image.nii.gz", label: "{case}/label.nii.gz"}}
modalities: [MRI]
labels: {Anterior: 4, posterior: 2}
intensity: {zscore: volume}
cases: [a, b, c, d, e, f]
splits: {s: {test: [f]}}
phantom: {scene: hippocampus, shape: [8, 32, 24], spacing: [4.0, 1.5, 1.5]}
"""


def manifest(folder: Path, old: str = "", new: str = "", text: str = TOY) -> Manifest:
    assert old in text
    (folder / "toy.yaml").write_text(text.replace(old, new, 1) if old else text)
    return load_manifest("toy.yaml", folder, phantom=True)


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file of a phantom but of its list."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".phantom" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_phantom_is_read_as_it_was_drawn(name, tmp_path):
    m = load_manifest(name, tmp_path, phantom=True)
    split = next(iter(m.spec.splits))
    parts = m.parts(split, 0 if m.spec.splits[split].folds else None)
    cases = [parts.train[0], parts.test[0]]
    make_phantom(m, cases, tmp_path / "data")
    reader = reader_of(m, tmp_path / "data")
    assert reader.missing(cases) == [] and set(cases) <= set(reader.cases())
    for case in cases:
        made, read = phantom_volume(m, case), reader.read(case)
        assert np.array_equal(read.image, made.image)
        # no pixel of Cityscapes is background: what no class has is ignored
        assert np.array_equal(
            read.label, np.where(made.label == 0, IGNORE, made.label) if name == "cityscapes" else made.label
        )
        assert set(m.classes.values()) - set(np.unique(read.label)) <= {m.classes.get("gallbladder")}
        assert read.spacing == (None if made.spacing is None else pytest.approx(made.spacing, rel=1e-6))
        assert read.origin == pytest.approx(made.origin, abs=1e-4)
    assert not np.array_equal(reader.read(cases[0]).image, reader.read(cases[1]).image)


def test_every_published_data_set_has_a_scene_of_its_own_kind():
    # `blobs` is what a user's manifest gets; a published one names what its images look like
    for name in (n for n in SHIPPED if not n.startswith("example")):
        look = load_manifest(name, Path(), phantom=True).spec.phantom
        assert look is not None and look.scene in set(SCENES) - {"blobs"}, name


def test_a_second_call_writes_nothing_and_another_folder_gets_the_same_bytes(tmp_path):
    m = manifest(tmp_path)
    make_phantom(m, ["a", "b"], tmp_path / "one")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*.nii.gz")}
    seen: list[tuple[int, int]] = []
    make_phantom(m, ["b", "a"], tmp_path / "one", lambda done, total: seen.append((done, total)))
    assert seen == [] and {p: p.stat().st_mtime_ns for p in before} == before
    make_phantom(m, ["c", "a"], tmp_path / "one", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
    for case in "abc":  # one at a time, as the cases of a run are asked for
        make_phantom(m, [case], tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 6


def test_the_folder_as_a_whole_is_finished_with_all_its_cases(tmp_path):
    m = manifest(
        tmp_path,
        'layout: {files: {image: "{case}/image.nii.gz", label: "{case}/label.nii.gz"}}',
        "layout: {decathlon: {folder: T}}",
    )
    make_phantom(m, ["d"], tmp_path / "data")
    make_phantom(m, ["b", "a"], tmp_path / "data")
    described = json.loads((tmp_path / "data" / "T" / "dataset.json").read_text())
    assert [e["image"] for e in described["training"]] == [f"./imagesTr/{c}.nii.gz" for c in "abd"]


def test_classes_get_the_manifests_values_and_names_are_compared_loosely(tmp_path):
    import SimpleITK as sitk

    m = manifest(tmp_path)
    make_phantom(m, ["a"], tmp_path / "data")
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "data" / "a" / "label.nii.gz")))
    made = phantom_volume(m, "a")
    assert set(np.unique(values)) == {0, 2, 4} and set(np.unique(made.label)) == {0, 1, 2}
    y = {k: np.nonzero(made.label == k)[1].mean() for k in (1, 2)}
    assert y[m.classes["Anterior"]] < y[m.classes["posterior"]]
    assert reader_of(m, tmp_path / "data").read("a").spacing == (4.0, 1.5, 1.5)


def test_a_class_that_the_data_set_has_not_counts_as_what_it_is_part_of_or_as_background(tmp_path):
    both = manifest(
        tmp_path,
        "labels: {Anterior: 4, posterior: 2}",
        "labels: {liver: 1, tumor: 2}",
        TOY.replace("hippocampus", "liver"),
    )
    two = phantom_volume(both, "a").label
    assert set(np.unique(two)) == {0, 1, 2}
    one = manifest(
        tmp_path, "labels: {Anterior: 4, posterior: 2}", "labels: {liver: 1}", TOY.replace("hippocampus", "liver")
    )
    assert np.array_equal(phantom_volume(one, "a").label, (two > 0).astype(np.uint8))
    spleen = manifest(
        tmp_path, "labels: {Anterior: 4, posterior: 2}", "labels: {spleen: 1}", TOY.replace("hippocampus", "abdomen")
    )
    assert 0 < phantom_volume(spleen, "a").label.mean() < 0.05


def test_a_manifest_without_a_scene_gets_blobs(tmp_path):
    m = manifest(tmp_path, "phantom: {scene: hippocampus, shape: [8, 32, 24], spacing: [4.0, 1.5, 1.5]}\n", "")
    assert phantom_volume(m, "a").image.shape == (1, 16, 64, 64)
    flat = manifest(
        tmp_path,
        "phantom: {scene: hippocampus, shape: [8, 32, 24], spacing: [4.0, 1.5, 1.5]}",
        "dimensions: 2\nspacing: unknown",
    )
    made = phantom_volume(flat, "a")
    assert made.image.shape == (1, 1, 64, 64) and made.spacing is None
    assert set(np.unique(made.label)) == {0, 1, 2}


def test_frames_of_a_patient_are_of_one_heart(tmp_path):
    text = (
        TOY.replace("hippocampus", "heart")
        .replace("labels: {Anterior: 4, posterior: 2}", "labels: {lv: 1, myo: 2, rv: 3}\npatient: '(p.)_'")
        .replace("[a, b, c, d, e, f]", "[p1_ED, p2_ED, p1_ES, p2_ES]")
        .replace("test: [f]", "test: [p2_ED, p2_ES]")
    )
    m = manifest(tmp_path, text=text)
    cavity = {case: float((phantom_volume(m, case).label == 1).mean()) for case in m.cases}
    for patient in ("p1", "p2"):
        assert cavity[f"{patient}_ES"] < 0.7 * cavity[f"{patient}_ED"]
    assert cavity["p1_ED"] != cavity["p2_ED"]


def test_a_file_that_went_away_is_made_again(tmp_path):
    m = manifest(tmp_path)
    make_phantom(m, ["a", "b"], tmp_path / "data")
    before = contents(tmp_path / "data")
    (tmp_path / "data" / "a" / "label.nii.gz").unlink()
    make_phantom(m, ["a", "b"], tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_a_case_that_was_not_finished_is_made_again(tmp_path, monkeypatch):
    m = manifest(tmp_path)
    make_phantom(m, ["a", "b"], tmp_path / "whole")
    moved = 0

    def dies(source: object, target: object) -> None:  # after the first of two files of the second case
        nonlocal moved
        moved += 1
        if moved == 4:
            raise KeyboardInterrupt
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(phantoms.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(m, ["a", "b"], tmp_path / "data")
    monkeypatch.undo()
    assert len(contents(tmp_path / "data")) == 3
    (tmp_path / "data" / ".phantom" / "part-left").mkdir()  # as `kill -9` leaves it
    make_phantom(m, ["a", "b"], tmp_path / "data")
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "data" / ".phantom").iterdir()) == ["cases.json"]


def test_a_damaged_list_counts_as_none(tmp_path):
    m = manifest(tmp_path)
    make_phantom(m, ["a"], tmp_path / "data")
    (tmp_path / "data" / ".phantom" / "cases.json").write_text('["a"')
    seen: list[int] = []
    make_phantom(m, ["a"], tmp_path / "data", lambda done, total: seen.append(done))
    assert seen == [1] and json.loads((tmp_path / "data" / ".phantom" / "cases.json").read_text()) == ["a"]


def test_several_may_make_the_same_phantom_at_once(tmp_path, monkeypatch):
    m = manifest(tmp_path)
    written: list[str] = []
    write = Files.write

    def counted(self: Files, case: str, volume: object) -> None:
        written.append(case)
        write(self, case, volume)

    monkeypatch.setattr(Files, "write", counted)
    orders = [["a", "b", "c"], ["c", "b", "d"], ["d", "a", "e"], ["e", "c", "b"]]
    with ThreadPoolExecutor(4) as pool:  # a lock on a file holds between threads as between processes
        for done in [pool.submit(make_phantom, m, order, tmp_path / "data") for order in orders]:
            done.result()
    assert sorted(written) == ["a", "b", "c", "d", "e"]
    assert reader_of(m, tmp_path / "data").missing(["a", "b", "c", "d", "e"]) == []


def test_the_users_own_files_are_never_written_over(tmp_path):
    m = manifest(tmp_path)
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "image.nii.gz").write_text("mine")
    with pytest.raises(
        BenchError, match=f"{tmp_path}/data holds files that are no phantom; name an empty or a new folder"
    ):
        make_phantom(m, ["a"], tmp_path / "data")
    assert (tmp_path / "data" / "a" / "image.nii.gz").read_text() == "mine"


def test_another_look_is_another_folder_and_prose_is_not(tmp_path, monkeypatch):
    def root(old: str = "", new: str = "") -> Path:
        return phantom_root(manifest(tmp_path, old, new), tmp_path / "cache")

    first = root()
    assert first.parent == tmp_path / "cache" / "phantoms" and first.name.startswith("toy-")
    assert root("title: Toy", "title: Other") == first
    others = [
        root("shape: [8", "shape: [9"),
        root("Anterior: 4", "Anterior: 5"),
        root("spacing: [4.0", "spacing: [5.0"),
    ]
    monkeypatch.setattr(phantoms, "PHANTOM_VERSION", phantoms.PHANTOM_VERSION + 1)
    assert len({first, *others, root()}) == 5


def test_only_a_quick_run_reads_the_phantom(tmp_path):
    quick = manifest(tmp_path)
    real = load_manifest("toy.yaml", tmp_path)
    assert data_root(real, Path("/data"), tmp_path / "cache", ["a"]) == Path("/data")
    assert not (tmp_path / "cache").exists()
    root = data_root(quick, Path("/data"), tmp_path / "cache", ["a"])
    assert root == phantom_root(quick, tmp_path / "cache") and reader_of(quick, root).missing(["a"]) == []
    made_on_the_spot = load_manifest("phantom", tmp_path, phantom=True)
    assert data_root(made_on_the_spot, None, tmp_path / "cache", ["p00"]) is None
    with pytest.raises(BenchError, match="phantom is made while it is read"):
        make_phantom(made_on_the_spot, ["p00"], tmp_path / "other")


def test_cases_that_are_found_have_names_for_the_phantom(tmp_path):
    m = manifest(
        tmp_path, "cases: [a, b, c, d, e, f]", "cases: found", TOY.replace("spacing: [4.0, 1.5, 1.5]", "cases: [f, g]")
    )
    make_phantom(m, m.cases, tmp_path / "data")
    real = load_manifest("toy.yaml", tmp_path, tmp_path / "data")
    assert real.cases == ("f", "g")
    assert np.array_equal(reader_of(real, tmp_path / "data").read("g").image, phantom_volume(m, "g").image)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("scene: hippocampus", "scene: hipocampus", "toy.yaml:12: phantom: no scene 'hipocampus' \\(did you mean 'hippocampus'"),
        ("posterior: 2", "amygdala: 2", "toy.yaml:12: phantom.scene: the scene hippocampus does not make class 'amygdala'; it makes anterior, posterior"),
        ("shape: [8, 32, 24]", "shape: [8, 8, 24]", "toy.yaml:12: phantom: scene hippocampus: found seed .* at least 16×16"),
    ],
)  # fmt: skip
def test_a_phantom_that_cannot_be_drawn_is_refused(old, new, sentence, tmp_path):
    with pytest.raises(BenchError, match=sentence):
        make_phantom(manifest(tmp_path, old, new), ["a"], tmp_path / "data")
    assert contents(tmp_path / "data") == {}
