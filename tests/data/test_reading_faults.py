"""Each fault of a user's files is one sentence of its own that names the file."""

import gzip
import json
import locale
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from harness.data.layouts import Volume, reader_of
from harness.data.layouts.absent import absence
from harness.data.layouts.images import read_image
from harness.data.manifest import load_manifest, packed
from harness.data.verify import verify
from harness.errors import BenchError

CASE = "BraTS20_Training_001"
FOLDER = f"MICCAI_BraTS2020_TrainingData/{CASE}"


@pytest.fixture
def brats(tmp_path: Path):
    """Manifest, reader, and the folder of one patient with four modalities."""
    manifest = load_manifest("brats2020", packed("suites"))
    reader = reader_of(manifest, tmp_path)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (4, 6, 8)).astype(np.uint8)
    image = rng.normal(100, 20, (4, 4, 6, 8)).astype(np.float32)
    reader.write(CASE, Volume(image, label, (3.0, 1.0, 0.5), (1.0, 2.0, 3.0)))
    return manifest, reader, tmp_path / FOLDER


def _again(path: Path, change: Callable[[nibabel.Nifti1Image], nibabel.Nifti1Image]) -> None:
    file = nibabel.load(path)
    made = change(nibabel.Nifti1Image(np.asarray(file.dataobj), file.affine))
    path.unlink()
    nibabel.save(made, path)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(path: Path) -> None:
    path.write_bytes(b"")


def _cut_within(path: Path) -> None:
    """Whole as gzip, and shorter than its header says."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-40]))


def _flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the checksum that gzip keeps at the end
    path.write_bytes(bytes(content))


def _as(kind: type) -> Callable[[Path], None]:
    return lambda path: _again(path, lambda f: nibabel.Nifti1Image(np.asarray(f.dataobj).astype(kind), f.affine))


def _colours(path: Path) -> None:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    _again(path, lambda f: nibabel.Nifti1Image(np.zeros(f.shape, dtype), f.affine))


def _nan(path: Path) -> None:
    def change(file: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
        values = np.asarray(file.dataobj).copy()
        values[1, 2, 3] = np.nan
        return nibabel.Nifti1Image(values, file.affine)

    _again(path, change)


def _affine(matrix: list[list[float]]) -> Callable[[Path], None]:
    """Multiply the affine from the right: the image's own axes change."""

    def spoil(path: Path) -> None:
        _again(path, lambda f: nibabel.Nifti1Image(np.asarray(f.dataobj), f.affine @ np.array(matrix)))

    return spoil


SHEAR = [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
FLIP = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
MOVE = [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
WIDE = [[1, 0, 0, 0], [0, 1.25, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]


def _no_thickness(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[88:92] = np.float32(0).tobytes()  # pixdim[3]
    path.write_bytes(gzip.compress(bytes(content)))


def _stating(offset: int, *numbers: int) -> Callable[[Path], None]:
    """Other 16-bit numbers in the header."""

    def spoil(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[offset : offset + 2 * len(numbers)] = np.array(numbers, "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(content)))

    return spoil


def _flat(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 8), np.float32)), str(path))


def _other_label(path: Path) -> None:
    def change(file: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
        values = np.asarray(file.dataobj).astype(np.uint8)
        values[0, 0, 0] = 3
        return nibabel.Nifti1Image(values, file.affine)

    _again(path, change)


def _text(path: Path) -> None:
    path.write_text("<html>Please log in</html>" * 50)


FAULTS = {
    "zero bytes": ("t2", _zero, "(the file is empty: 0 bytes)"),
    "zero bytes, label": ("seg", _zero, "(the file is empty: 0 bytes)"),
    "gzip cut": ("t2", _half, "(Compressed file ended before the end-of-stream marker was reached)"),
    "gzip damaged": ("t2", _flipped_bit, "CRC check failed"),
    "pixels cut": ("t2", _cut_within, "bytes of pixels are there"),
    "a web page": ("t2", _text, "(Not a gzipped file"),
    "complex": ("t2", _as(np.complex64), "holds numbers of the type complex64, expected integers or floating"),
    "colours": ("t2", _colours, "holds numbers of the type colours (RGB)"),
    "fractions in a label": ("seg", lambda p: shutil.copy(p.with_name(f"{CASE}_t1.nii.gz"), p), "not whole numbers"),
    "nan": ("flair", _nan, "holds values that are not finite numbers"),
    "sheared": ("t2", _affine(SHEAR), "the direction of its axes is not orthonormal (off by 0."),
    "flipped against the label": ("t2", _affine(FLIP), "direction (-1.0, 0.0, 0.0"),
    "moved against the label": ("t2", _affine(MOVE), "origin (1.25, 2.0, 3.0) differs from (1.0, 2.0, 3.0)"),
    "other spacing than the label": ("t2", _affine(WIDE), "spacing (0.5, 1.25, 3.0) differs from (0.5, 1.0, 3.0)"),
    "no thickness": ("t2", _no_thickness, "states the spacing (0.5, 1, 0) (x, y, z), expected positive numbers"),
    "2D": ("t2", _flat, "an image of 2 dimensions, expected a volume of 3"),
    "2D label": ("seg", _flat, "a label of 2 dimensions, expected a volume of 3"),
    "label outside the manifest": ("seg", _other_label, "label value 3 is not in the manifest brats2020.yaml"),
    "damaged size": ("t2", _stating(42, 32767, 32767, 32767), "states a size that does not fit into memory"),
    "damaged type": ("t2", _stating(70, 999), "states the type of numbers 999, which does not exist"),
    "a folder": ("t2", lambda p: (p.unlink(), p.mkdir()), "is a folder, expected a file of this name"),
    "missing": ("t1ce", lambda p: p.unlink(), ": no such file."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file(brats, fault: str) -> None:
    _, reader, folder = brats
    kind, spoil, words = FAULTS[fault]
    path = folder / f"{CASE}_{kind}.nii.gz"
    assert reader.read(CASE).image.shape == (4, 4, 6, 8)  # it is the fault that is refused
    spoil(path)
    with pytest.raises(BenchError) as error:
        reader.read(CASE)
    text = str(error.value)
    assert text.startswith(str(path)) and words in text and "\n" not in text, text


def test_no_two_faults_have_the_same_words(brats, tmp_path: Path) -> None:
    words = [w for name, (_, _, w) in FAULTS.items() if name not in ("zero bytes, label",)]
    assert len(set(words)) == len(words) and not any(a != b and a in b for a in words for b in words)


def test_a_missing_modality_is_named_with_those_that_are_there(brats, tmp_path: Path) -> None:
    manifest, reader, folder = brats
    (folder / f"{CASE}_t1ce.nii.gz").unlink()
    absent = reader.missing([CASE])
    assert absent == [folder / f"{CASE}_t1ce.nii.gz"]
    text = absence(manifest, tmp_path, absent)
    there = ", ".join(f"{CASE}_{k}.nii.gz" for k in ("flair", "seg", "t1", "t2"))
    assert text.startswith(f"brats2020: {absent[0]} is not there. Of case {CASE} its folder has only {there}. Register")


def test_the_same_file_under_two_endings(brats) -> None:
    _, reader, folder = brats
    (folder / f"{CASE}_t1.nii").write_bytes(b"x")
    with pytest.raises(
        BenchError, match=r"_t1.nii.gz: the same file is also there as BraTS20_Training_001_t1.nii; keep"
    ):
        reader.read(CASE)


def test_one_patient_under_two_names(brats) -> None:
    manifest, reader, folder = brats
    twin = "BraTS20_Training_002"
    for path in list(folder.iterdir()):
        target = folder.parent / twin / path.name.replace(CASE, twin)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    found = verify(manifest, reader, [CASE, twin])
    assert list(found.faults) == [twin] and found.read == 2
    assert (
        f"case {twin} has the same image as case {CASE} (patients '{CASE}' and '{twin}' are one" in found.faults[twin]
    )


def _moved(tmp_path: Path, *into: str) -> None:
    """All data goes some folders deeper."""
    there = [p for p in tmp_path.iterdir() if p.name != into[0] or len(into) == 1]
    away = tmp_path.with_name(tmp_path.name + "-away")
    away.mkdir()
    for path in there:
        path.rename(away / path.name)
    target = tmp_path.joinpath(*into)
    target.parent.mkdir(parents=True, exist_ok=True)
    away.rename(target)


@pytest.mark.parametrize(
    ("into", "words"),
    [
        (["unpacked"], "It lies one folder deeper, in {root}/unpacked: move what is there up to {root}."),
        (
            ["MICCAI_BraTS2020_TrainingData"],
            "It lies one folder deeper, in {root}/MICCAI_BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData: "
            "move what is there up to {root}/MICCAI_BraTS2020_TrainingData.",
        ),
    ],
)
def test_a_folder_one_level_too_deep(brats, tmp_path: Path, into: list[str], words: str) -> None:
    manifest, _, _ = brats
    _moved(tmp_path, *into)
    absent = reader_of(manifest, tmp_path).missing([CASE])
    text = absence(manifest, tmp_path, absent)
    assert text.startswith(f"brats2020: {tmp_path}/{FOLDER}/{CASE}_t1.nii.gz is not there and 4 more files. ")
    assert words.replace("{root}", str(tmp_path)) in text


def test_a_root_one_level_too_deep_and_one_that_is_not_there(brats, tmp_path: Path) -> None:
    manifest, _, _ = brats
    root = tmp_path / "MICCAI_BraTS2020_TrainingData"
    text = absence(manifest, root, reader_of(manifest, root).missing([CASE]))
    assert f"{root} is one folder too deep: name {tmp_path} with --data." in text
    nowhere = tmp_path / "nowhere"
    assert f"There is no folder {nowhere}." in absence(manifest, nowhere, reader_of(manifest, nowhere).missing([CASE]))


@pytest.mark.skipif(os.name != "posix", reason="rights of files as in POSIX")
def test_permission_denied() -> None:
    manifest = load_manifest("nfbs", packed("suites"))
    root = Path(tempfile.mkdtemp(prefix="rights-"))
    try:
        root.chmod(0o755)
        reader = reader_of(manifest, root)
        reader.write("A1", Volume(np.ones((1, 2, 3, 4), np.float32), np.ones((2, 3, 4), np.uint8), (1.0, 1.0, 1.0)))
        reader.read("A1")
        image = root / "NFBS_Dataset/A1/sub-A1_ses-NFB3_T1w.nii.gz"
        image.chmod(0)
        with _nobody():
            assert reader.missing(["A1"]) == []
            for action in (reader.read, reader.digest):
                with pytest.raises(BenchError, match="permission denied; give this user the right") as error:
                    action("A1")
                assert str(error.value).startswith(str(image))
        image.chmod(0o644)
        (root / "NFBS_Dataset").chmod(0)
        with _nobody():
            for action in (lambda: reader.missing(["A1"]), reader.cases):
                with pytest.raises(BenchError, match=f"{root}.*: permission denied"):
                    action()
    finally:
        (root / "NFBS_Dataset").chmod(0o755)
        shutil.rmtree(root)


class _nobody:
    """Root may read everything, so this part of a test is run by nobody."""

    def __enter__(self) -> None:
        self._root = os.geteuid() == 0
        if self._root:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if self._root:
            os.seteuid(0)


def test_two_dicom_series_in_one_folder(tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_ALL)
    text = (packed("data_manifests") / "nfbs.yaml").read_text()
    body = text.replace("{case}/sub-{case}_ses-NFB3_T1w.nii.gz", "{case}/dicom")
    (tmp_path / "m.yaml").write_text(body)
    reader = reader_of(load_manifest("m.yaml", tmp_path), tmp_path)
    rng = np.random.default_rng(0)
    for case in ("A1", "A2"):
        image = rng.integers(-100, 100, (1, 3, 4, 5)).astype(np.float32)
        reader.write(case, Volume(image, np.ones((3, 4, 5), np.uint8), (2.0, 1.0, 1.0)))
    folder = tmp_path / "NFBS_Dataset"
    assert len(list((folder / "A1/dicom").iterdir())) == 3 and reader.read("A1").image.shape == (1, 3, 4, 5)
    for path in (folder / "A2/dicom").iterdir():
        shutil.copy(path, folder / "A1/dicom" / f"b{path.name}")
    with pytest.raises(BenchError, match=r"A1/dicom: 2 DICOM series in 6 files, expected one"):
        reader.read("A1")
    assert locale.setlocale(locale.LC_ALL) == before  # ITK's reader of DICOM leaves "C"
    shutil.rmtree(folder / "A1/dicom")
    (folder / "A1/dicom").mkdir()
    with pytest.raises(BenchError, match=r"A1/dicom: 0 DICOM series in 0 files, expected one"):
        reader.read("A1")


@pytest.fixture
def npz(tmp_path: Path):
    """TransUNet's copy of Synapse: one case of slices, one volume; 4 slices of 6 × 8 pixels."""
    manifest = load_manifest("synapse_npz", packed("suites"))
    reader = reader_of(manifest, tmp_path)
    rng = np.random.default_rng(0)
    for case in ("0005", "0001"):
        label = rng.integers(0, 9, (4, 6, 8)).astype(np.uint8)
        reader.write(case, Volume(rng.random((1, 4, 6, 8), np.float32), label, None))
    return reader, tmp_path / "Synapse"


def test_faults_of_slices_and_of_hdf5(npz) -> None:
    reader, folder = npz
    slices, volume = folder / "train_npz", folder / "test_vol_h5/case0001.npy.h5"
    assert reader.read("0005").label.shape == (4, 6, 8) == reader.read("0001").label.shape
    good = {p: p.read_bytes() for p in (slices / "case0005_slice002.npz", volume)}
    image = np.zeros((6, 8), np.float32)

    def check(case: str, path: Path, words: str) -> None:
        with pytest.raises(BenchError) as error:
            reader.read(case)
        assert str(error.value).startswith(str(path)) and words in str(error.value), error.value
        path.write_bytes(good[path])
        reader.read(case)

    middle = slices / "case0005_slice002.npz"
    for spoil, words in (
        (lambda: middle.write_bytes(b""), "the file is empty: 0 bytes"),
        (lambda: middle.write_bytes(good[middle][:300]), "damaged or of another format"),
        (lambda: np.savez(middle, image=image), "has no array 'label'; it holds image"),
        (lambda: np.savez(middle, image=image[:5], label=image), "the image has 5×8 pixels, expected 6×8"),
        (lambda: np.savez(middle, image=image * 1j, label=image), "of the type complex"),
        (lambda: np.save(middle.open("wb"), image), "is a single array (.npy) under this name"),
    ):
        spoil()
        check("0005", middle, words)
    for content, words in ((b"", "the file is empty: 0 bytes"), (good[volume][:700], "damaged or of another format")):
        volume.write_bytes(content)
        check("0001", volume, words)
    for made, words in (
        ({"image": None, "label": image[None]}, "'image' is a group, expected an array"),
        ({"image": image[None][:0], "label": image[None][:0]}, "0×6×8 voxels (z, y, x): there is nothing in it"),
    ):
        with h5py.File(volume, "w") as file:
            for key, values in made.items():
                if values is None:
                    file.create_group(key)
                else:
                    file[key] = values
        check("0001", volume, words)
    for name, values, words in (
        ("label", np.full((6, 8), np.inf, np.float32), "label values are not whole numbers"),
        ("image", np.full((6, 8), np.nan, np.float32), "not finite numbers"),
        ("label", np.full((6, 8), 9, np.float32), "label value 9 is not in the manifest"),
    ):
        np.savez(middle, **({"image": image, "label": image} | {name: values}))
        with pytest.raises(BenchError, match=words):
            reader.read("0005")


def test_a_slice_that_is_not_there_is_named(npz, tmp_path: Path) -> None:
    _, folder = npz
    gap = folder / "train_npz/case0005_slice001.npz"
    gap.unlink()
    fresh = reader_of(load_manifest("synapse_npz", packed("suites")), tmp_path)
    assert fresh.missing(["0005", "0001", "0006"]) == [gap, folder / "train_npz/case0006_slice000.npz"]
    with pytest.raises(BenchError, match=r"case0005_slice001.npz: no such file"):
        fresh.read("0005")


def test_faults_of_descriptions(tmp_path: Path) -> None:
    manifest = load_manifest("example_nnunet", packed("suites"), phantom=True)
    folder = tmp_path / "Dataset005_Prostate"
    folder.mkdir()
    head = folder / "dataset.json"
    good = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "a": 1, "b": [1, 2]}}
    for change, words in (
        ({"channel_names": {"0": "T2"}}, "names 1 channels, the manifest example_nnunet.yaml 2 modalities"),
        ({"labels": {"background": 0, "a": 4}}, "label value 4 is not in the manifest"),
        ({"file_ending": ".npy"}, "file_ending '.npy' is not one of"),
        ({"labels": None}, "not a description of nnU-Net"),
    ):
        head.write_text(json.dumps(good | change))
        with pytest.raises(BenchError) as error:
            reader_of(manifest, tmp_path).missing(["prostate_00"])
        assert str(error.value).startswith(str(head)) and words in str(error.value)
    old = {"modality": good["channel_names"], "labels": {"0": "background", "1": "a", "2": "b"}}
    for described in (good, old):
        head.write_text(json.dumps(described))
        assert reader_of(manifest, tmp_path).missing(["prostate_00"]) == [
            folder / "imagesTr/prostate_00_0000.nii.gz",
            folder / "imagesTr/prostate_00_0001.nii.gz",
            folder / "labelsTr/prostate_00.nii.gz",
        ]


def test_acdc_frames_are_those_of_the_description(tmp_path: Path) -> None:
    manifest = load_manifest("acdc", packed("suites"))
    reader = reader_of(manifest, tmp_path)
    info = tmp_path / "ACDC/database/training/patient090/Info.cfg"
    assert reader.missing(["patient090_ED", "patient090_ES"]) == [info]
    info.parent.mkdir(parents=True)
    info.write_text("ED: 11\nES: 4\nGroup: MINF\n")
    made = Volume(np.ones((1, 2, 3, 4), np.float32), np.ones((2, 3, 4), np.uint8), (10.0, 1.5, 1.5))
    reader.write("patient090_ES", made)
    assert (info.parent / "patient090_frame04_gt.nii.gz").is_file() and reader.cases() == ["patient090_ES"]
    assert [p.name for p in reader.missing(["patient090_ED"])] == [
        "patient090_frame11.nii.gz", "patient090_frame11_gt.nii.gz"
    ]  # fmt: skip
    info.write_text("ES: 4\n")
    with pytest.raises(BenchError, match=r"Info.cfg: has no line 'ED: NUMBER'"):
        reader.read("patient090_ED")


@pytest.mark.parametrize("name", ["nii", "nii.gz", "mha", "mha!", "nrrd", "nrrd!", "png", "tif", "tif!", "bmp", "dcm"])
def test_a_file_that_was_cut_is_refused_in_every_format(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    flat = name.rstrip("!") in ("png", "tif", "bmp", "dcm")
    values = rng.integers(0, 200, (32, 32) if flat else (3, 32, 32)).astype(np.uint8)
    path = tmp_path / f"a.{name.rstrip('!')}"  # with !: compressed
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path), useCompression=name.endswith("!"))
    whole = path.read_bytes()
    assert np.array_equal(np.squeeze(sitk.GetArrayFromImage(read_image(path))), values)
    for share in (0.4, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BenchError, match=r"cannot be read as an image, it is damaged") as error:
            read_image(path)
        assert str(error.value).startswith(str(path))


def test_labels_of_cityscapes_that_are_not_of_8_bits(tmp_path: Path) -> None:
    manifest = load_manifest("cityscapes", packed("suites"))
    case = "aachen_000000_000019"
    made = Volume(np.ones((3, 1, 4, 6), np.float32), np.ones((1, 4, 6), np.uint8), None)
    reader = reader_of(manifest, tmp_path)
    reader.write(case, made)
    path = tmp_path / f"Cityscapes/gtFine/train/aachen/{case}_gtFine_labelIds.png"
    for picture, kind in (
        (Image.fromarray(np.full((4, 6), 700, np.uint16)), "uint16"),
        (Image.fromarray(np.full((4, 6), 255, np.uint8)).convert("1"), "bool"),
    ):
        picture.save(path)
        with pytest.raises(BenchError, match=f"labelIds.png: pixels of the type {kind}, expected label values"):
            reader.read(case)
