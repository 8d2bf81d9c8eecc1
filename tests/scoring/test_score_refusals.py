"""`bench score`: what is refused in a sentence before anything is measured."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scored import LABELS, SPACING, made, made_folders, refused, volumes, write

from harness.cli import main
from harness.errors import BenchError
from harness.metrics import evaluate
from harness.scoring.command import parse_labels
from harness.scoring.folders import score_folders
from harness.scoring.images import Header, Pair, check_headers, pair_files, read_header


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return made_folders(tmp_path)


def test_folders_that_do_not_pair(folders, capsys) -> None:
    pred, ref = folders
    assert f"{pred}/no is not a folder" in refused(capsys, pred / "no", ref)
    assert "are the same folder" in refused(capsys, ref, ref)
    assert f"{made(pred / 'sub')} holds no label images; expected files that end in .nii.gz," in refused(
        capsys, pred / "sub", ref
    )
    _, label = volumes()
    write(ref / "d0.nii", label)
    write(ref / "d1.nii", label)
    words = refused(capsys, pred, ref)
    assert (
        f"{ref}/d0.nii: this reference has no prediction of its name in {pred} (2 of 5 references have none)" in words
    )
    for name in ("d0.nii", "d1.nii"):
        (ref / name).rename(pred / name)
    assert f"{pred}/d0.nii: this prediction has no reference" in refused(capsys, pred, ref)
    write(pred / "d0.nii.gz", label)
    assert f"{pred}: case 'd0' has two files, d0.nii and d0.nii.gz; leave" in refused(capsys, pred, ref)


def test_the_case_is_the_name_without_its_ending(tmp_path: Path) -> None:
    for name in ("pred/a.b.NII.GZ", "pred/x.mha", "ref/a.b.png", "ref/x.Tif"):
        (made((tmp_path / name).parent) / Path(name).name).touch()
    pairs = pair_files(tmp_path / "pred", tmp_path / "ref")
    assert [(p.case, p.pred.name, p.ref.name) for p in pairs] == [
        ("a.b", "a.b.NII.GZ", "a.b.png"),
        ("x", "x.mha", "x.Tif"),
    ]


OBLIQUE = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"array": volumes()[0][:5]}, r"has 5×20×24 voxels and its reference \S+c1.nii 6×20×24 \(z, y, x\); resample"),
        ({"array": volumes()[0][2], "spacing": SPACING[1:]}, r"has 20×24 voxels and its reference \S+ 6×20×24"),
        (
            {"spacing": (3.0, 0.8, 0.501)},
            r"the spacing \(3, 0.8, 0.501\) and its reference \S+ \(3, 0.8, 0.5\) \(z, y, x\)",
        ),
        ({"SetOrigin": (0.0, 0.0, 0.01)}, r"the origin \(0, 0, 0.01\) and its reference \S+ \(0, 0, 0\) \(x, y, z\)"),
        ({"SetDirection": OBLIQUE}, r"the direction \(0, 1, 0, 1, 0, 0, 0, 0, 1\) and its reference"),
        (
            {"array": volumes()[0].astype(np.float32)},
            r"c1.mha: the pixels are 32-bit float, expected integer labels; write",
        ),
        ({"array": volumes()[0].astype(np.float64)}, "the pixels are 64-bit float"),
    ],
)
def test_headers_that_do_not_fit(folders, capsys, change, words) -> None:
    given = {"array": volumes(1)[0]} | change
    write(folders[0] / "c1.mha", **given)
    assert re.search(words, refused(capsys, *folders)), words


def test_small_differences_of_headers_are_rounding(folders) -> None:
    write(folders[0] / "c1.mha", volumes(1)[0], (3.0, 0.8, 0.50004), SetOrigin=(0.0, 0.0, 0.0005))
    assert list(score_folders(*folders, workers=1).rows) == ["c0", "c1", "c2"]


def test_what_a_file_does_not_state_is_not_compared(tmp_path: Path) -> None:
    pair = Pair("a", tmp_path / "p", tmp_path / "r")
    full = Header((2, 3), (1.0, 2.0), (5.0, 5.0), (0.0, 1.0, 1.0, 0.0))
    bare = Header((2, 3), None, None, None)
    check_headers(pair, bare, full)
    check_headers(pair, full, bare)
    write(tmp_path / "a.nrrd", np.zeros((2, 3), np.uint8), (1.0, 2.0), SetOrigin=(4.0, 5.0))
    assert read_header(tmp_path / "a.nrrd") == Header((2, 3), (1.0, 2.0), (4.0, 5.0), (1.0, 0.0, 0.0, 1.0))
    text = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "b.nrrd").write_bytes(re.sub(rb"space.*\n", b"", text))  # as pynrrd writes an array without a header
    assert read_header(tmp_path / "b.nrrd") == bare
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 2), np.uint8), None), tmp_path / "c.nii")
    assert read_header(tmp_path / "c.nii") == Header((2, 3), (1.0, 1.0), None, None)


def test_a_given_spacing_replaces_headers_that_are_wrong(folders) -> None:
    pred, ref = volumes(1)
    write(folders[0] / "c1.mha", pred, (1.0, 1.0, 1.0), SetOrigin=(9.0, 9.0, 9.0))
    for spacing in (SPACING, None):
        scores = score_folders(*folders, LABELS, spacing=spacing, workers=1)
        assert scores.rows["c1"] == evaluate(pred, ref, spacing, LABELS, metrics=("dice", "hd95", "asd"))


def test_references_with_and_without_spacing_do_not_mix(folders, capsys) -> None:
    for folder in folders:
        write(folder / "d.png", volumes()[0][2], None)
    words = refused(capsys, *folders)
    assert f"{folders[1]}/d.png: states no spacing (1 of 4 references do not)" in words and "--spacing unknown" in words


def _pixdim(path: Path, value: float) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    raw[76 + 12 : 76 + 16] = np.float32(value).tobytes()
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))


@pytest.mark.parametrize("value", [float("nan"), 0.0, -3.0, float("inf")])
def test_spacing_of_nifti_that_is_no_spacing(folders, capsys, value: float) -> None:
    for folder in folders:  # in both: it must not be the comparison that refuses it
        _pixdim(folder / "c0.nii.gz", value)
    words = refused(capsys, *folders)
    assert f"ref/c0.nii.gz: the header states the spacing (0.5, 0.8, {value:g}) (x, y, z), expected finite" in words
    assert score_folders(*folders, spacing=None, workers=1).faults == {}


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", rb"ElementSpacing = .*", b"ElementSpacing = nan 0.8 3"),
        (".mha", rb"ElementSpacing = .*", b"ElementSpacing = 0 0.8 3"),
        (".nrrd", rb"space directions: .*", b"space directions: (0,0,0) (0,0.8,0) (0,0,3)"),
        (".nrrd", rb"space directions: .*", b"space directions: (nan,0,0) (0,0.8,0) (0,0,3)"),
    ],
)
def test_spacing_of_other_formats_that_is_no_spacing(tmp_path: Path, ending, old, new) -> None:
    path = write(tmp_path / f"a{ending}", volumes()[0])
    path.write_bytes(re.sub(old, new, path.read_bytes(), count=1))
    with pytest.raises(BenchError, match=r"a\.(mha|nrrd): (the header states the spacing \(|cannot be read)") as error:
        read_header(path)
    assert "\n" not in str(error.value)


def test_pixels_that_are_no_labels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    scaled = nibabel.Nifti1Image(np.linspace(0, 2, 27).reshape(3, 3, 3), np.eye(4))
    scaled.set_data_dtype(np.uint8)
    nibabel.save(scaled, tmp_path / "scaled.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), np.eye(4)), tmp_path / "four.nii.gz")
    for name, words in (
        ("rgb.png", "each pixel has 3 numbers"),
        ("scaled.nii.gz", r"the pixels are (32|64)-bit float \(uint8 with a scale factor\)"),
        ("four.nii.gz", "an image of 4 axes"),
    ):
        with pytest.raises(BenchError, match=words):
            read_header(tmp_path / name)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--labels", "disc"], "'disc' is not NAME=VALUE"),
        (["--labels", "disc=1,ring=two"], "'ring=two' is not NAME=VALUE"),
        (["--labels", "disc=1+,ring=2"], "'disc=1+' is not NAME=VALUE"),
        (["--labels", "a=1,a=2"], "'a' stands there twice"),
        (["--labels", "a=1,b=70000"], "class 'b' has label 70000"),
        (["--labels", "a=1,b=2", "--ignore", "2"], "label 2 is both ignored and class 'b'"),
        (["--labels", "a=1", "--manifest", "phantom"], "both say what the labels mean"),
        (["--manifest", "fantom"], "no data manifest 'fantom'"),
        (["--drop", "x"], "--drop x: expected label values"),
        (["--metrics", "dice,hd59"], "unknown metric 'hd59' (did you mean 'hd95'?)"),
        (["--metrics", "nsd"], "nsd@2"),
        (["--metrics", "boundary_iou"], "boundary_iou"),
        (["--profile", "voxel-mix"], "unknown profile 'voxel-mix'"),
        (["--engine", "point"], "point"),
        (["--spacing", "3;2;1"], "--spacing 3;2;1: expected mm per axis"),
        (["--spacing", "3,2,0"], "not finite and positive"),
        (["--workers", "0"], "--workers 0: expected at least 1"),
    ],
)
def test_options_that_cannot_be(folders, capsys, args, words) -> None:
    assert main(["score", *map(str, folders), *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err and captured.err.count("\n") == 1, captured.err


def test_a_folder_that_cannot_be_read(folders, capsys, monkeypatch) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    assert f"{folders[0]}: cannot be read (Permission denied)" in refused(capsys, *folders)


def test_files_that_cannot_be_written(folders, tmp_path: Path, capsys) -> None:
    assert main(["score", *map(str, folders), "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_labels_on_the_command_line() -> None:
    assert parse_labels("liver=1, tumour = 2+3") == {"liver": (1,), "tumour": (2, 3)}
