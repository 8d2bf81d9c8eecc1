"""Reading faults: one sentence each, with the file."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from harness.data.layouts import Volume, reader_of
from harness.data.manifest import load_manifest
from harness.errors import BenchError

MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: Ask the author.
layout: {decathlon: {folder: Task99_Toy}}
modalities: [MRI]
labels: {front: 2, back: 1}
ignore: 9
drop: [7]
intensity: {zscore: volume}
cases: [c1, c2]
splits: {s: {test: [c2]}}
"""
SPACING = (0.5, 1.0, 3.0)  # x, y, z, as SimpleITK orders them


def _write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def make_toy(tmp_path: Path, manifest: str = MANIFEST):
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    folder = root / "Task99_Toy"
    for case in ("c1", "c2"):
        label = np.zeros((4, 6, 8), np.uint8)
        label[1:3, 2:4, 2:6] = 2
        label[1:3, 4:5, 2:6] = 1
        label[0, 0, 0], label[0, 0, 1] = 9, 7
        _write(folder / f"labelsTr/{case}.nii.gz", label)
        _write(folder / f"imagesTr/{case}.nii.gz", rng.normal(100, 10, label.shape).astype(np.float32))
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "b", "2": "f", "7": "x", "9": "i"}})
    )
    (tmp_path / "toy.yaml").write_text(manifest)
    found = load_manifest("toy.yaml", tmp_path)
    return found, reader_of(found, root), folder


def test_a_case_is_read_with_remapped_labels_and_spacing_in_array_order(tmp_path: Path) -> None:
    _, reader, _ = make_toy(tmp_path)
    assert reader.missing(["c1", "c2"]) == []
    volume = reader.read("c1")
    assert volume.image.shape == (1, 4, 6, 8) and volume.spacing == (3.0, 1.0, 0.5)
    # front is 2 in the file and first in the manifest; 7 is dropped, 9 ignored
    assert (volume.label == 1).sum() == 2 * 2 * 4 and (volume.label == 2).sum() == 2 * 1 * 4
    assert volume.label[0, 0, 0] == 255 and volume.label[0, 0, 1] == 0


def test_unknown_spacing_stays_unknown(tmp_path: Path) -> None:
    _, reader, _ = make_toy(tmp_path, MANIFEST + "spacing: unknown\n")
    assert reader.read("c1").spacing is None


def _truncate(folder: Path) -> None:
    path = folder / "imagesTr/c1.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(folder: Path) -> None:
    (folder / "imagesTr/c1.nii.gz").write_bytes(b"")


def _garbage(folder: Path) -> None:
    (folder / "imagesTr/c1.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))


def _shape(folder: Path) -> None:
    _write(folder / "imagesTr/c1.nii.gz", np.zeros((4, 6, 7), np.float32))


def _spacing(folder: Path) -> None:
    _write(folder / "imagesTr/c1.nii.gz", np.zeros((4, 6, 8), np.float32), (1.0, 1.0, 3.0))


def _value(folder: Path) -> None:
    label = np.zeros((4, 6, 8), np.uint8)
    label[0, 0, 0] = 5
    _write(folder / "labelsTr/c1.nii.gz", label)


def _fraction(folder: Path) -> None:
    _write(folder / "labelsTr/c1.nii.gz", np.full((4, 6, 8), 0.5, np.float32))


def _nan(folder: Path) -> None:
    _write(folder / "imagesTr/c1.nii.gz", np.full((4, 6, 8), np.nan, np.float32))


@pytest.mark.parametrize(
    ("spoil", "file", "words"),
    [
        (_truncate, "imagesTr/c1.nii.gz", "cannot be read as an image"),
        (_empty, "imagesTr/c1.nii.gz", "cannot be read as an image"),
        (_garbage, "imagesTr/c1.nii.gz", "cannot be read as an image"),
        (_shape, "imagesTr/c1.nii.gz", "4×6×7 voxels (z, y, x) and its label c1.nii.gz has 4×6×8"),
        (_spacing, "imagesTr/c1.nii.gz", "spacing (1.0, 1.0, 3.0) differs from (0.5, 1.0, 3.0)"),
        (_value, "labelsTr/c1.nii.gz", "label value 5 is not in the manifest toy.yaml"),
        (_fraction, "labelsTr/c1.nii.gz", "label values are not whole numbers"),
        (_nan, "imagesTr/c1.nii.gz", "not finite numbers"),
    ],
)
def test_faults(tmp_path: Path, spoil, file: str, words: str) -> None:
    _, reader, folder = make_toy(tmp_path)
    spoil(folder)
    with pytest.raises(BenchError) as error:
        reader.read("c1")
    text = str(error.value)
    assert text.startswith(str(folder / file)) and words in text and "\n" not in text


def test_missing_files_are_listed_and_a_missing_root_says_how_to_obtain(tmp_path: Path) -> None:
    manifest, reader, folder = make_toy(tmp_path)
    (folder / "labelsTr/c2.nii.gz").unlink()
    assert reader.missing(["c1", "c2"]) == [folder / "labelsTr/c2.nii.gz"]
    with pytest.raises(BenchError, match=r"--data FOLDER or BENCH_DATA\. Ask the author"):
        reader_of(manifest, None)


def test_a_description_with_other_labels_is_refused(tmp_path: Path) -> None:
    _, reader, folder = make_toy(tmp_path)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "4": "new"}}))
    with pytest.raises(BenchError, match="label value 4 is not in the manifest"):
        reader.missing(["c1"])


FLAT = """\
name: flat
title: Flat
licence: none
attribution: nobody
obtain: Ask the author.
layout: {files: {image: "img/{case}.png", label: "lab/{case}.png"}}
modalities: [R, G, B]
labels: {spot: 1}
dimensions: 2
spacing: unknown
intensity: {zscore: volume}
cases: [c1, c2]
splits: {s: {test: [c2]}}
"""


def make_flat(tmp_path: Path, manifest: str = FLAT):
    """Two colour photographs of 6×8 pixels with a spot."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for case in ("c1", "c2"):
        label = np.zeros((6, 8), np.uint8)
        label[2:4, 3:7] = 1
        image = sitk.GetImageFromArray(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), isVector=True)
        for folder, made in (("img", image), ("lab", sitk.GetImageFromArray(label))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(made, str(root / folder / f"{case}.png"))
    (tmp_path / "flat.yaml").write_text(manifest)
    found = load_manifest("flat.yaml", tmp_path)
    return found, reader_of(found, root), root


def test_an_image_of_a_2d_data_set_is_one_slice_and_its_colours_are_channels(tmp_path: Path) -> None:
    _, reader, root = make_flat(tmp_path)
    volume = reader.read("c1")
    assert volume.image.shape == (3, 1, 6, 8) and volume.label.shape == (1, 6, 8) and volume.spacing is None
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "img/c1.png")))
    assert np.array_equal(volume.image[1, 0], pixels[..., 1]) and volume.label.sum() == 8


def test_a_2d_image_with_its_spacing_and_a_volume_of_one_slice(tmp_path: Path) -> None:
    text = FLAT.replace(".png", ".nii.gz").replace("[R, G, B]", "[CT]").replace("spacing: unknown\n", "")
    _, reader, root = make_flat(tmp_path, text)
    label = np.zeros((6, 8), np.uint8)
    label[2:4, 3:7] = 1
    _write(root / "img/c1.nii.gz", label.astype(np.float32), (0.5, 2.0))
    _write(root / "lab/c1.nii.gz", label, (0.5, 2.0))
    assert reader.read("c1").spacing == (1.0, 2.0, 0.5)  # one slice has no thickness; nothing is measured along it
    _write(root / "img/c2.nii.gz", label[None].astype(np.float32), (0.5, 2.0, 3.0))
    _write(root / "lab/c2.nii.gz", label[None], (0.5, 2.0, 3.0))
    assert reader.read("c2").spacing == (3.0, 2.0, 0.5)
    _write(root / "img/c2.nii.gz", np.zeros((4, 6, 8), np.float32), (0.5, 2.0, 3.0))
    with pytest.raises(BenchError, match=r"img/c2.nii.gz: 4×6×8 voxels, expected one image of two dimensions"):
        reader.read("c2")


def test_an_image_where_the_manifest_says_volume(tmp_path: Path) -> None:
    _, reader, _ = make_flat(tmp_path, FLAT.replace("dimensions: 2\n", "").replace("[R, G, B]", "[CT]"))
    with pytest.raises(BenchError, match=r"an image of 2 dimensions, expected a volume of 3; .*`dimensions: 2`"):
        reader.read("c1")


def test_a_label_in_colours_is_refused(tmp_path: Path) -> None:
    _, reader, root = make_flat(tmp_path)
    (root / "lab/c1.png").write_bytes((root / "img/c1.png").read_bytes())
    with pytest.raises(BenchError, match=r"lab/c1.png: 3 colours, expected one label a voxel"):
        reader.read("c1")


def test_a_picture_and_a_header_without_spacing_are_not_of_one_millimetre(tmp_path: Path) -> None:
    _, reader, _ = make_flat(tmp_path, FLAT.replace("spacing: unknown\n", ""))
    with pytest.raises(BenchError, match="state no spacing; write `unknown` or a table by case"):
        reader.read("c1")
    table = "spacing: {c1: [1, 0.5, 0.25], c2: [1, 1, 1]}\n"
    _, reader, root = make_flat(tmp_path, FLAT.replace("spacing: unknown\n", table))
    assert reader.read("c1").spacing == (1.0, 0.5, 0.25)
    text = FLAT.replace(".png", ".nrrd").replace("[R, G, B]", "[CT]").replace("dimensions: 2\nspacing: unknown\n", "")
    _, reader, root = make_flat(tmp_path, text)
    head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"
    for more, spacing in (("", None), ("spacings: 0.5 1 3\n", (3.0, 1.0, 0.5))):
        for folder in ("img", "lab"):
            (root / folder / "c1.nrrd").write_bytes(f"{head}{more}\n".encode() + bytes([1] * 24))
        if spacing is not None:
            assert reader.read("c1").spacing == spacing
            continue
        with pytest.raises(BenchError, match="state no spacing"):
            reader.read("c1")


def test_jpeg_images_are_read_whole_and_never_written(tmp_path: Path) -> None:
    _, reader, root = make_flat(tmp_path, FLAT.replace("img/{case}.png", "img/{case}.jpg"))
    path = root / "img/c1.jpg"
    sitk.WriteImage(sitk.ReadImage(str(root / "img/c1.png")), str(path))
    volume = reader.read("c1")
    assert volume.image.shape == (3, 1, 6, 8)
    path.write_bytes(path.read_bytes()[:-30])  # ITK makes up the rest
    with pytest.raises(BenchError, match=r"c1.jpg: cannot be read as an image, .*truncated"):
        reader.read("c1")
    with pytest.raises(BenchError, match=r"c2.jpg: a JPEG does not keep the values"):
        reader.write("c2", volume)


def test_label_values_of_any_size_are_written_and_read(tmp_path: Path) -> None:
    for ignore, kind in ((-1, np.int16), (9, np.uint8), (70000, np.int32)):
        text = MANIFEST.replace("ignore: 9", f"ignore: {ignore}")
        _, reader, folder = make_toy(tmp_path, text)
        label = np.zeros((4, 6, 8), np.uint8)
        label[0, 0, :4] = [0, 1, 2, 255]
        reader.write("c1", Volume(np.ones((1, 4, 6, 8), np.float32), label, (3.0, 1.0, 0.5)))
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr/c1.nii.gz")))
        assert stored.dtype == kind and stored[0, 0, :4].tolist() == [0, 2, 1, ignore]
        assert np.array_equal(reader.read("c1").label, label)
