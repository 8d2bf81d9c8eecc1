"""`bench data`: counts by hand, digests, organs in the wrong place, phantoms of every data set, tables of spacings."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from harness.cli import main
from harness.data import command as module
from harness.data.layouts import IGNORE, Volume, reader_of
from harness.data.manifest import load_manifest, packed
from harness.data.verify import verify
from harness.errors import BenchError

TEXT = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: Ask the author.
layout: {files: {image: "img/{case}.nii.gz", label: "lab/{case}.nii.gz"}}
modalities: [CT]
labels: {a: 3, b: 1, never: 2}
ignore: 9
intensity: {window: [0, 1]}
cases: [p1, p2]
splits: {s: {test: [p2]}}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two cases of 24 and 48 voxels; class a has 3 and 5 of them, class b 2 and none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    (tmp_path / "toy.yaml").write_text(TEXT)
    manifest = load_manifest("toy.yaml", tmp_path)
    reader = reader_of(manifest, tmp_path)
    rng = np.random.default_rng(0)
    for case, depth, spacing in (("p1", 2, (2.0, 1.0, 0.5)), ("p2", 4, (3.0, 1.0, 0.5))):
        label = np.zeros((depth, 3, 4), np.uint8)
        label.ravel()[:5] = [1, 1, 1, 2, 2] if case == "p1" else [1] * 5
        label.ravel()[-1] = IGNORE
        image = rng.integers(0, 100, (1, depth, 3, 4)).astype(np.float32)
        reader.write(case, Volume(image, label, spacing))
    return tmp_path


def _data(*args: object) -> int:
    return main(["data", *map(str, args)])


def test_counts_and_volumes_by_hand(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _data("toy.yaml", "--data", toy, "--verify", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["read"] == 2 and found["faults"] == {} and found["missing"] == [] and not found["phantom"]
    assert found["classes"]["a"] == {"voxels": 8, "cases": 2, "volume": 3 * 1.0 + 5 * 1.5}
    assert found["classes"]["b"] == {"voxels": 2, "cases": 1, "volume": 2.0}
    assert found["classes"]["never"] == {"voxels": 0, "cases": 0, "volume": None}
    assert found["classes"]["ignored"]["voxels"] == 2 and found["classes"]["background"]["voxels"] == 72 - 12
    assert found["shapes"] == {"p1": [2, 3, 4], "p2": [4, 3, 4]} and found["spacings"]["p2"] == [3.0, 1.0, 0.5]
    assert _data("toy.yaml", "--data", toy, "--verify") == 0
    text = capsys.readouterr().out
    assert "shape       2 × 3 × 4 to 4 × 3 × 4 (z, y, x)" in text
    assert "spacing mm  2 × 1 × 0.5 to 3 × 1 × 0.5 (z, y, x)" in text
    assert "a           2 of 2 cases, 8 voxels (11.11 %), 5 mm³ a case that has it" in text
    assert "class never is in no case" in text and "2 cases read, 0 with faults" in text


def test_faults_are_all_named_and_missing_files_too(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "img/p1.nii.gz").write_bytes(b"")
    assert _data("toy.yaml", "--data", toy, "--verify") == 1
    text = capsys.readouterr().out
    assert f"{toy}/img/p1.nii.gz: cannot be read as an image" in text and "1 cases read, 1 with faults" in text
    assert _data("toy.yaml", "--data", toy, "--verify", "--json") == 1
    assert list(json.loads(capsys.readouterr().out)["faults"]) == ["p1"]
    (toy / "lab/p2.nii.gz").unlink()
    assert _data("toy.yaml", "--data", toy, "--verify", "--json") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["missing"] == [f"{toy}/lab/p2.nii.gz"]
    assert "bench: 1 file of toy is not there." in captured.err
    assert _data("toy.yaml", "--data", toy / "img") == 2
    assert f"{toy}/img is one folder too deep: name {toy} with --data." in capsys.readouterr().err


def test_several_processes_find_the_same(toy: Path) -> None:
    manifest = load_manifest("toy.yaml", toy)
    reader = reader_of(manifest, toy)
    alone = verify(manifest, reader, manifest.cases, toy)
    assert verify(manifest, reader, manifest.cases, toy, workers=2) == alone and alone.read == 2
    (toy / "lab/p2.nii.gz").write_bytes(b"")
    assert verify(manifest, reader, manifest.cases, toy, workers=2) == verify(manifest, reader, manifest.cases, toy)


def test_digests_that_the_manifest_states(toy: Path) -> None:
    good = hashlib.sha256((toy / "img/p1.nii.gz").read_bytes()).hexdigest()
    stated = {"img/p1.nii.gz": good, "img/p2.nii.gz": "0" * 64, "img/p3.nii.gz": good}
    lines = "".join(f"  {name}: sha256:{digest}\n" for name, digest in stated.items())
    (toy / "stated.yaml").write_text(TEXT + "files:\n" + lines)
    manifest = load_manifest("stated.yaml", toy)
    assert manifest.digest() == load_manifest("toy.yaml", toy).digest()
    faults = verify(manifest, reader_of(manifest, toy), manifest.cases, toy).faults
    assert list(faults) == ["img/p2.nii.gz", "img/p3.nii.gz"]
    assert "the manifest states 000000000000…; download the file again" in faults["img/p2.nii.gz"]
    assert "no such file, and the manifest states its digest" in faults["img/p3.nii.gz"]
    (toy / "stated.yaml").write_text(TEXT + "files: {img/p1.nii.gz: md5:123}\n")
    with pytest.raises(BenchError, match="must be 'sha256:' and 64 hexadecimal digits"):
        load_manifest("stated.yaml", toy)


@pytest.mark.parametrize("name", sorted(p.stem for p in packed("data_manifests").glob("*.yaml")))
def test_a_phantom_in_the_true_layout_of_every_data_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "PHANTOM_PART", 1)
    root = tmp_path / "phantom"
    if name == "phantom":
        assert _data(name, "--phantom", root) == 2 and "made while it is read" in capsys.readouterr().err
        return
    assert _data(name, "--phantom", root) == 0
    assert "nothing in it is a patient" in capsys.readouterr().out
    assert _data(name, "--data", root, "--verify", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phantom"] and found["faults"] == {} and found["read"] == len(found["cases"]) >= 2
    absent = [n for n, c in found["classes"].items() if not c["cases"] and n not in ("background", "ignored")]
    assert set(absent) <= {"gallbladder"}  # some patients have none, as after surgery
    manifest = load_manifest(name, tmp_path)
    assert bool(found["spacings"]) == (manifest.spec.spacing == "header")


def _abdomen(**moved: tuple[int, int]) -> Volume:
    """A liver on one side, the kidneys on either side of the aorta, seen from the feet; columns are left to right."""
    places = {"aorta": (20, 20), "left_kidney": (20, 30), "right_kidney": (20, 10), "liver": (10, 8)} | moved
    label = np.zeros((2, 40, 40), np.uint8)
    for index, (name, size) in {
        1: ("aorta", 2), 3: ("left_kidney", 4), 4: ("right_kidney", 4), 5: ("liver", 8)
    }.items():  # fmt: skip
        y, x = places[name]
        label[:, y - size // 2 : y + size // 2, x - size // 2 : x + size // 2] = index
    return Volume(np.zeros((1, 2, 40, 40), np.float32), label, None)


def test_organs_in_the_wrong_place_show_other_numbers(tmp_path: Path) -> None:
    manifest = load_manifest("synapse_npz", packed("suites"))
    reader = reader_of(manifest, tmp_path)

    def doubt(volume: Volume) -> str:
        reader.write("0001", volume)
        faults = verify(manifest, reader, ["0001"]).faults
        assert all(str(tmp_path) in text for text in faults.values())
        return faults.get("0001", "")

    good = _abdomen()
    assert doubt(good) == ""
    turned = Volume(good.image, np.rot90(good.label, axes=(1, 2)), None)  # as TransUNet's slices lie
    assert doubt(turned) == ""
    swapped = good.label.copy()
    swapped[good.label == 3], swapped[good.label == 4] = 4, 3
    assert "left and right are exchanged" in doubt(Volume(good.image, swapped, None))
    other = good.label.copy()
    other[good.label == 5], other[good.label == 1] = 6, 5  # the challenge's own numbers
    assert "class 5, the liver, is not the largest organ but pancreas is" in doubt(Volume(good.image, other, None))
    assert "the aorta does not lie between the kidneys" in doubt(_abdomen(aorta=(20, 36)))
    alone = Volume(good.image, (good.label == 5).astype(np.uint8) * 5, None)
    assert doubt(alone) == ""


def test_spacings_from_the_challenges_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = load_manifest("synapse_npz", packed("suites"))
    raw = tmp_path / "RawData/Training/label"
    raw.mkdir(parents=True)
    for k, case in enumerate(manifest.cases):
        image = sitk.GetImageFromArray(np.zeros((4, 6, 6), np.uint8))
        image.SetSpacing((0.75, 0.75, 3 + k / 8))
        sitk.WriteImage(image, str(raw / f"label{case}.nii.gz"))
    reader = reader_of(manifest, tmp_path)
    made = _abdomen()
    reader.write("0001", Volume(made.image[:, :, :6, :6].repeat(2, 1), made.label[:, :6, :6].repeat(2, 0), None))
    assert _data("synapse_npz", "--data", tmp_path, "--from-nifti", tmp_path / "RawData") == 0
    found = load_manifest("synapse_npz_mm", tmp_path)
    assert found.name == "synapse_npz_mm" and found.digest() != manifest.digest()
    assert found.spacing_of("0002", None) == (3.125, 0.75, 0.75) and len(found.spacings) == 30
    assert reader_of(found, tmp_path).read("0001").spacing == (3.0, 0.75, 0.75)
    assert _data("synapse_npz", "--from-nifti", tmp_path / "RawData") == 2
    assert "synapse_npz_mm.yaml is there already" in capsys.readouterr().err
    (tmp_path / "data_manifests/synapse_npz_mm.yaml").unlink()
    (raw / "label0009.nii.gz").rename(raw / "label9.nii.gz")
    assert _data("synapse_npz", "--from-nifti", tmp_path / "RawData") == 2
    assert "holds no NIfTI file of case 0009 among 30; expected img0009.nii.gz" in capsys.readouterr().err
    (raw / "label9.nii.gz").rename(raw / "label0009.nii.gz")
    image = sitk.GetImageFromArray(np.zeros((5, 6, 6), np.uint8))
    sitk.WriteImage(image, str(raw / "label0001.nii.gz"))
    assert _data("synapse_npz", "--data", tmp_path, "--from-nifti", tmp_path / "RawData") == 2
    assert "5×6×6 voxels (z, y, x), the data set's case 0001 has 4×6×6" in capsys.readouterr().err
    assert _data("synapse", "--from-nifti", tmp_path / "RawData") == 2  # its files state a spacing themselves
    assert "has no line `spacing: unknown`" in capsys.readouterr().err


def test_found_cases_that_lie_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    label = tmp_path / "a/b/NFBS_Dataset/A1/sub-A1_ses-NFB3_T1w_brainmask.nii.gz"
    label.parent.mkdir(parents=True)
    label.touch()
    looked = "NFBS_Dataset/{case}/sub-{case}_ses-NFB3_T1w_brainmask.nii.gz."
    for root, words in (
        ("a", f"a holds no case of nfbs: looked for a/{looked} They lie one folder deeper: name a/b with --data. Down"),
        ("a/b/NFBS_Dataset", f"a/b/NFBS_Dataset is one folder too deep: name {tmp_path}/a/b with --data. Download"),
        ("nowhere", f"looked for nowhere/{looked} There is no folder nowhere. Download"),
        ("a/b", "a/b holds 1 cases of nfbs, its manifest expects 125"),
    ):
        assert _data("nfbs", "--data", root, "--json") == 2
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert words in captured.err and words in found["problem"] and found["cases"] == found["missing"] == []


def test_tasks_of_bench_data_one_at_a_time_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    assert _data("lits", "--phantom", "p", "--verify") == 2
    assert "--verify and --phantom: each is a task of its own" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
    assert _data("synapse", "--json") == 0  # how to obtain it was all there was to ask
    assert "--data FOLDER or BENCH_DATA" in json.loads(capsys.readouterr().out)["problem"]
    assert _data("example_folder", "--phantom", "p", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phantom"] == "p" and found["cases"][:2] == ["a01", "a02"]
    (tmp_path / "p/my_pictures/masks/a03.png").unlink()
    assert _data("example_folder", "--data", "p", "--verify") == 2
    assert "1 file of example_folder is not there" in capsys.readouterr().err
    for other in ("nfbs", "lits"):  # nothing is not "all files are there"
        assert _data(other, "--data", "p", "--verify") == 2
        assert f"p is a phantom, and holds no case of {other}; write one into" in capsys.readouterr().err


def test_a_phantom_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note").write_text("mine")
    assert _data("nfbs", "--phantom", "note") == 2
    assert "bench: note is a file; name an empty or a new folder" in capsys.readouterr().err
    assert _data("nfbs", "--phantom", "note/x") == 2
    assert "bench: note/x: the phantom cannot be written there: Not a directory." in capsys.readouterr().err
    assert (tmp_path / "note").read_text() == "mine"
