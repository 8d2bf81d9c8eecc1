"""Manifests: splits by patient, and mistakes named with file and line."""

from pathlib import Path

import pytest

from harness.data.manifest import load_manifest, packed
from harness.errors import BenchError

TEXT = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: nowhere
layout: {files: {image: "img/{case}.nii.gz", label: "lab/{case}.nii.gz"}}
modalities: [CT]
labels: {a: 3, b: 1}
intensity: {window: [0, 1]}
cases: [p1_x, p1_y, p2_x, p3_x, p4_x, p5_x]
patient: "(p[0-9]+)_"
splits:
  held: {test: [p2_x]}
  folds: {folds: 3, seed: 5}
"""


def _load(tmp_path: Path, text: str):
    (tmp_path / "toy.yaml").write_text(text)
    return load_manifest("toy.yaml", tmp_path)


def test_classes_are_indexed_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert _load(tmp_path, TEXT).classes == {"a": 1, "b": 2}


def test_a_share_of_a_folds_training_patients_is_held_out(tmp_path: Path) -> None:
    phantom = (
        (packed("data_manifests") / "phantom.yaml").read_text(encoding="utf-8").replace("name: phantom", "name: toy")
    )
    text = phantom.replace("kfold4: {folds: 4, seed: 0}", "kfold4: {folds: 4, seed: 0, validation: 0.3333333333}")
    assert text != phantom
    manifest, bare = _load(tmp_path, text), _load(tmp_path, phantom)
    parts = [manifest.parts("kfold4", fold) for fold in range(4)]
    for fold, part in enumerate(parts):
        assert part.test == bare.parts("kfold4", fold).test and len(part.val) == 9 and len(part.train) == 18
        assert {*part.train, *part.val} == {*bare.parts("kfold4", fold).train} and not {*part.train} & {*part.val}
        assert {*part.val} == {*parts[(fold + 1) % 4].test}  # the patients that the next fold tests
    assert manifest.digest() == bare.digest()
    for wrong, words in (
        ("kfold4: {folds: 4, seed: 0, validation: 0.99}", "no patient of 27 would be left for training"),
        ("kfold4: {fractions: [0.6, 0.2, 0.2], validation: 0.2}", "`validation` is a share of the training patients"),
    ):
        with pytest.raises(BenchError, match=words):
            _load(tmp_path, phantom.replace("kfold4: {folds: 4, seed: 0}", wrong)).parts("kfold4", 0)


def test_folds_keep_patients_whole_and_cover_every_case_once(tmp_path: Path) -> None:
    manifest = _load(tmp_path, TEXT)
    seen: list[str] = []
    for fold in range(3):
        parts = manifest.parts("folds", fold)
        assert {manifest.patient_of(c) for c in parts.train} & {manifest.patient_of(c) for c in parts.test} == set()
        assert len(parts.train) + len(parts.test) == 6
        seen += parts.test
    assert sorted(seen) == sorted(manifest.spec.cases)
    assert manifest.parts("folds", 0) == _load(tmp_path, TEXT).parts("folds", 0)
    other = _load(tmp_path, TEXT.replace("seed: 5", "seed: 6"))
    assert any(other.parts("folds", f) != manifest.parts("folds", f) for f in range(3))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "held: {test: [p2_x]}",
            "held: {test: [p1_x]}",
            "toy.yaml:13: splits.held.test: patient 'p1' stands in two parts",
        ),
        ("test: [p2_x]", "test: [p9_x]", "case 'p9_x' is not in `cases`"),
        ("p1_x, p1_y", "p1_x, p1_x", "case 'p1_x' stands twice"),
        ("labels: {a: 3, b: 1}", "labels: {a: 1, b: 1}", "toy.yaml:8: labels"),
        ("licence:", "license:", "toy.yaml:3: license: unknown key (did you mean 'licence'?)"),
        ("window: [0, 1]", "window: [1, 0]", "low < high"),
        ("intensity: {window: [0, 1]}", "intensity: {}", "exactly one of window, zscore, percentiles"),
        ("folds: 3", "folds: 9", "9 folds of 5 patients"),
        ("{files:", "{filez:", "`layout` names one of phantom, decathlon, files"),
        ("p1_x, p1_y", "p1/x, p1_y", "case 'p1/x' names a file"),
        ('"(p[0-9]+)_"', '"(p["', "not a regular expression"),
        ('"(p[0-9]+)_"', '"(q)?p"', "toy.yaml:11: patient: the pattern finds no patient in case 'p1_x'"),
        ("a: 3, b: 1", "a: -3, b: 1", "toy.yaml:8: labels: labels map each class to its own positive value"),
        ("{a: 3, b: 1}", str({f"c{i}": i for i in range(1, 256)}), "255 classes; at most 254 fit"),
        ("test: [p2_x]", "test: [p2_x, p2_x]", "case 'p2_x' stands here twice"),
        ("name: toy", "name: toy\nname: toy", "stands here a second time"),
        ("cases: [", "cases: [[", "not valid YAML"),
        ("intensity:", "regions: {R: [a, c]}\nintensity:", "toy.yaml:9: regions.R[1]: 'c' is no class; classes: a, b."),
        ("intensity:", "regions: {R: []}\nintensity:", "toy.yaml:9: regions.R: the list is empty"),
        ("intensity:", "regions: {}\nintensity:", "toy.yaml:9: regions: no region is given"),
        ("intensity:", "regions: {R: [a, a]}\nintensity:", "regions.R[1]: class 'a' stands here twice"),
        (
            "intensity:",
            "regions: {R: [a, b], S: [b, a]}\nintensity:",
            "regions.S: the same classes as region 'R'",
        ),
        (
            "intensity:",
            "regions: {a: [b]}\nintensity:",
            "regions.a: 'a' is the name of a class that the region is not",
        ),
        ("intensity:", "dimensions: 4\nintensity:", "toy.yaml:9: dimensions"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(BenchError) as error:
        _load(tmp_path, TEXT.replace(old, new, 1))
    assert words in str(error.value)


def test_prose_does_not_change_the_digest_and_labels_do(tmp_path: Path) -> None:
    digest = _load(tmp_path, TEXT).digest()
    assert _load(tmp_path, TEXT.replace("licence: none", "licence: some")).digest() == digest
    assert _load(tmp_path, TEXT.replace("held:", "other:")).digest() == digest
    assert _load(tmp_path, TEXT.replace("a: 3", "a: 4")).digest() != digest


def test_regions_are_what_is_measured_and_change_no_array(tmp_path: Path) -> None:
    bare = _load(tmp_path, TEXT)
    assert bare.measured == {"a": (1,), "b": (2,)}
    some = _load(tmp_path, TEXT + "regions: {whole: [b, a], b: [b]}\n")
    assert some.measured == {"whole": (2, 1), "b": (2,)} and some.classes == bare.classes
    assert some.digest() == bare.digest()
    assert _load(tmp_path, TEXT + "dimensions: 3\n").digest() == bare.digest()
    assert _load(tmp_path, TEXT + "dimensions: 2\n").digest() != bare.digest()


@pytest.mark.parametrize("path", sorted(packed("data_manifests").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_manifests_are_valid(path: Path) -> None:
    manifest = load_manifest(path.name, path.parent, phantom=True)
    for name, split in manifest.spec.splits.items():
        parts = manifest.parts(name, 0 if split.folds else None)
        assert set(parts.train) & set(parts.test) == set()


def test_the_published_split_of_synapse() -> None:
    parts = load_manifest("synapse", packed("suites")).parts("transunet-18-12", None)
    # typed from the protocol, not from the manifest
    test = ["0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035", "0036", "0038"]
    assert list(parts.test) == test and len(parts.train) == 18
    assert set(parts.train) == {f"{i:04d}" for i in [*range(1, 11), *range(21, 41)]} - set(test)


def test_tuning_never_sees_the_held_out_patients() -> None:
    for name, final in (("hippocampus", "holdout"), ("phantom", "default")):
        manifest = load_manifest(name, packed("suites"))
        tuning, held = manifest.parts("tuning", None), manifest.parts(final, None)
        assert set(held.test) & {*tuning.train, *tuning.val, *tuning.test} == set()
