"""What a layout writes it reads again, bit for bit, on a grid that is turned and mirrored; checked by nibabel too."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from harness.data.layouts import IGNORE, Volume, reader_of
from harness.data.manifest import load_manifest, packed
from harness.errors import BenchError

BODY = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: Ask the author.
layout: LAYOUT
modalities: [CT]
labels: {front: 2, back: 300}
ignore: 9
intensity: {zscore: volume}
cases: [c1, c2, c10]
splits: {s: {test: [c2]}}
"""
LAYOUTS = {
    "nii": 'files: {image: "i/{case}.nii", label: "l/{case}.nii.gz"}',
    "mha": 'files: {image: "i/{case}.mha", label: "l/{case}.mha"}',
    "nrrd": 'files: {image: "{case}/i.nrrd", label: "{case}/l.nrrd"}',
    "dicom": 'files: {image: "dicom/{case}", label: "l/{case}.nii.gz"}',
    "decathlon": "decathlon: {folder: Task99_Toy}",
    "nnunet": "nnunet: {folder: Dataset001_Toy}",
    "nnunet-nrrd": "nnunet: {folder: Dataset001_Toy, ending: .nrrd}",
}


def _volume(manifest, seed: int, *, whole: bool, mirrored: bool) -> Volume:
    """No two axes alike, and no symmetry: another order or a flip of axes would show."""
    rng = np.random.default_rng(seed)
    spec = manifest.spec
    planar = spec.dimensions == 2
    shape = (1 if planar else 5, 7, 9)
    low, high = (0, 256) if planar else (-1024, 3000)
    image = rng.integers(low, high, (len(spec.modalities), *shape)).astype(np.float32)
    if not whole:
        image = image / np.float32(4096)
    indices = [*range(len(spec.labels) + 1), *([IGNORE] if spec.ignore is not None else [])]
    if manifest.layout[0] == "cityscapes":
        indices.remove(0)  # no pixel is background there
    label = rng.choice(indices, shape).astype(np.uint8)
    label.ravel()[: len(indices)] = indices  # each value at least once
    if planar:
        return Volume(image, label, None)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.3, -0.5, 0.9)
    direction = np.reshape(turn.GetMatrix(), (3, 3)) @ np.diag([1, 1, -1 if mirrored else 1])
    spacing = None if spec.spacing == "unknown" else (2.5, 0.75, 1.25)
    return Volume(image, label, spacing, (-12.5, 7.0, 100.25), tuple(direction.ravel()))


def _same(found: Volume, made: Volume, placed: bool) -> None:
    assert found.image.dtype == np.float32 and np.array_equal(found.image, made.image)
    assert found.label.dtype == np.uint8 and np.array_equal(found.label, made.label)
    if made.spacing is None:
        assert found.spacing is None
    else:
        assert found.spacing == pytest.approx(made.spacing, abs=1e-5)
    if placed:
        assert found.origin == pytest.approx(made.origin, abs=1e-3)
        assert found.direction == pytest.approx(made.direction, abs=1e-4)


def _toy(tmp_path: Path, layout: str, *changes: tuple[str, str]):
    text = BODY.replace("LAYOUT", f"{{{layout}}}")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "toy.yaml").write_text(text)
    return load_manifest("toy.yaml", tmp_path)


@pytest.mark.parametrize(
    ("layout", "mirrored"),
    [(name, flip) for name in LAYOUTS for flip in (False, True) if not (flip and name == "dicom")],
)
def test_formats_of_volumes(tmp_path: Path, layout: str, mirrored: bool) -> None:
    manifest = _toy(tmp_path, LAYOUTS[layout])
    reader = reader_of(manifest, tmp_path / "data")
    cases = ["c1", "c2", "c10"]
    assert reader.cases() == []
    for seed, case in enumerate(cases):
        reader.write(case, _volume(manifest, seed, whole=layout == "dicom" or seed < 2, mirrored=mirrored))
    reader.finish(cases)
    assert reader.missing(cases) == [] and reader.cases() == cases  # c2 before c10
    for seed, case in enumerate(cases):
        _same(reader.read(case), _volume(manifest, seed, whole=layout == "dicom" or seed < 2, mirrored=mirrored), True)
    assert len({reader.digest(c) for c in cases}) == 3
    assert reader_of(manifest, tmp_path / "data").digest("c1") == reader.digest("c1")


SHIPPED = sorted(p.stem for p in packed("data_manifests").glob("*.yaml") if p.stem != "phantom")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_data_set(tmp_path: Path, name: str) -> None:
    manifest = load_manifest(name, packed("suites"), phantom=True)
    reader = reader_of(manifest, tmp_path)
    cases = list(manifest.cases[:2])
    for seed, case in enumerate(cases):
        reader.write(case, _volume(manifest, seed, whole=True, mirrored=False))
    reader.finish(cases)
    assert reader.missing(cases) == [] and sorted(reader.cases()) == sorted(cases)
    for seed, case in enumerate(cases):
        # neither npz nor a picture says where a voxel lies
        placed = manifest.layout[0] not in ("synapse_npz", "cityscapes") and manifest.spec.dimensions == 3
        _same(reader.read(case), _volume(manifest, seed, whole=True, mirrored=False), placed)


def test_the_names_of_published_files(tmp_path: Path) -> None:
    # typed from the descriptions of the data sets, not from the manifests
    expected = {
        "synapse": ("0001", ["Synapse/RawData/Training/img/img0001.nii.gz",
                             "Synapse/RawData/Training/label/label0001.nii.gz"]),
        "synapse_npz": ("0005", [f"Synapse/train_npz/case0005_slice{k:03d}.npz" for k in range(5)]),
        "lits": ("130", ["LiTS/segmentation-130.nii", "LiTS/volume-130.nii"]),
        "nfbs": ("A00028185", ["NFBS_Dataset/A00028185/sub-A00028185_ses-NFB3_T1w.nii.gz",
                               "NFBS_Dataset/A00028185/sub-A00028185_ses-NFB3_T1w_brainmask.nii.gz"]),
        "acdc": ("patient007_ED", ["ACDC/database/training/patient007/Info.cfg",
                                   "ACDC/database/training/patient007/patient007_frame01.nii.gz",
                                   "ACDC/database/training/patient007/patient007_frame01_gt.nii.gz"]),
        "cityscapes": ("munster_000000_000019", [
            "Cityscapes/gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png",
            "Cityscapes/leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png"]),
        "brats2020": ("BraTS20_Training_355", [
            "MICCAI_BraTS2020_TrainingData/BraTS20_Training_355/" + n for n in (
                "BraTS20_Training_355_flair.nii.gz", "BraTS20_Training_355_t1.nii.gz",
                "BraTS20_Training_355_t1ce.nii.gz", "BraTS20_Training_355_t2.nii.gz", "W39_1998.09.19_Segm.nii")]),
    }  # fmt: skip
    for name, (case, files) in expected.items():
        manifest = load_manifest(name, packed("suites"), phantom=True)
        reader = reader_of(manifest, tmp_path / name)
        reader.write(case, _volume(manifest, 0, whole=True, mirrored=False))
        found = sorted(p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*") if p.is_file())
        assert found == files
        assert reader.missing([case]) == [] and reader.read(case).label.any()
    h5 = reader_of(load_manifest("synapse_npz", packed("suites")), tmp_path / "synapse_npz")
    h5.write("0038", _volume(load_manifest("synapse_npz", packed("suites")), 0, whole=True, mirrored=False))
    assert (tmp_path / "synapse_npz/Synapse/test_vol_h5/case0038.npy.h5").is_file()


def test_a_voxel_lies_where_nibabel_says(tmp_path: Path) -> None:
    manifest = _toy(tmp_path, LAYOUTS["nii"])
    reader = reader_of(manifest, tmp_path)
    made = _volume(manifest, 3, whole=True, mirrored=True)
    reader.write("c1", made)
    file = nibabel.load(tmp_path / "i/c1.nii")
    assert file.get_data_dtype() == np.int16 and file.shape == (9, 7, 5)
    z, y, x = 4, 2, 7
    assert file.get_fdata()[x, y, z] == made.image[0, z, y, x]
    # nibabel counts towards the left's opposite and the front: R = -L, A = -P
    steps = np.array([x, y, z]) * np.array(made.spacing[::-1])
    world = np.array(made.origin) + np.reshape(made.direction, (3, 3)) @ steps
    assert (file.affine @ [x, y, z, 1])[:3] == pytest.approx(world * [-1, -1, 1], abs=1e-3)


def test_modalities_share_a_file_in_the_decathlon_and_have_their_own_in_nnunet(tmp_path: Path) -> None:
    for layout in ("decathlon", "nnunet"):
        manifest = _toy(tmp_path, LAYOUTS[layout], ("[CT]", "[T1, T2, FLAIR]"))
        reader = reader_of(manifest, tmp_path / layout)
        made = _volume(manifest, 1, whole=True, mirrored=False)
        reader.write("c1", made)
        reader.finish(["c1"])
        _same(reader.read("c1"), made, True)
    assert nibabel.load(tmp_path / "decathlon/Task99_Toy/imagesTr/c1.nii.gz").shape == (9, 7, 5, 3)
    names = sorted(p.name for p in (tmp_path / "nnunet/Dataset001_Toy/imagesTr").iterdir())
    assert names == ["c1_0000.nii.gz", "c1_0001.nii.gz", "c1_0002.nii.gz"]


PICTURE = [("labels:", "dimensions: 2\nspacing: unknown\nlabels:"), ("back: 300", "back: 30"), ("[CT]", "[R, G, B]")]


def test_pictures_and_masks_with_a_palette(tmp_path: Path) -> None:
    manifest = _toy(tmp_path, 'files: {image: "i/{case}.png", label: "l/{case}.png"}', *PICTURE)
    reader = reader_of(manifest, tmp_path)
    made = _volume(manifest, 1, whole=True, mirrored=False)
    reader.write("c1", made)
    _same(reader.read("c1"), made, False)
    pixels = np.asarray(Image.open(tmp_path / "i/c1.png"))
    assert pixels.dtype == np.uint8 and pixels[2, 5].tolist() == made.image[:, 0, 2, 5].tolist()
    mask = Image.open(tmp_path / "l/c1.png")
    indexed = Image.fromarray(np.asarray(mask))
    indexed.putpalette([v for i in range(256) for v in (255 - i, i, 7)])
    indexed.save(tmp_path / "l/c1.png")
    assert Image.open(tmp_path / "l/c1.png").mode == "P"
    _same(reader.read("c1"), made, False)
    with pytest.raises(BenchError, match=r"i/c2.png: values from 0\.0\d+ to 0\.0\d+; a .png holds whole numbers"):
        reader.write("c2", _volume(manifest, 1, whole=False, mirrored=False))


def test_bitmaps_are_grey_or_coloured(tmp_path: Path) -> None:
    grey = [PICTURE[0], ("back: 300", "back: 255")]
    manifest = _toy(tmp_path, 'files: {image: "i/{case}.bmp", label: "l/{case}.bmp"}', *grey)
    reader = reader_of(manifest, tmp_path)
    made = _volume(manifest, 1, whole=True, mirrored=False)
    reader.write("c1", made)
    _same(reader.read("c1"), made, False)
    mask = (made.label[0] == 2).astype(np.uint8) * 255
    Image.fromarray(mask).convert("1").save(tmp_path / "l/c1.bmp")  # one bit a pixel, as masks often are
    assert np.array_equal(reader.read("c1").label[0], mask // 255 * 2)
    colours = _toy(tmp_path, 'files: {image: "j/{case}.bmp", label: "l/{case}.bmp"}', *PICTURE)
    made = _volume(colours, 1, whole=True, mirrored=False)
    reader_of(colours, tmp_path).write("c2", made)
    _same(reader_of(colours, tmp_path).read("c2"), made, False)


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    manifest = _toy(tmp_path, LAYOUTS["nii"], ("ignore: 9\n", ""))
    reader = reader_of(manifest, tmp_path)
    grid = np.zeros((1, 2, 2, 2), np.float32)
    with pytest.raises(BenchError, match="holds the index 3; the manifest has classes 1 to 2 and no `ignore`"):
        reader.write("c1", Volume(grid, np.full((2, 2, 2), 3, np.uint8), (1.0, 1.0, 1.0)))
    with pytest.raises(BenchError, match="holds the index 255"):
        reader.write("c1", Volume(grid, np.full((2, 2, 2), 255, np.uint8), (1.0, 1.0, 1.0)))
    series = _toy(tmp_path, LAYOUTS["dicom"])
    for flip, whole, words in ((True, True, "the grid is left-handed"), (False, False, "holds whole numbers of 16")):
        with pytest.raises(BenchError, match=words):
            reader_of(series, tmp_path).write("c1", _volume(series, 0, whole=whole, mirrored=flip))


def test_values_that_count_as_another(tmp_path: Path) -> None:
    text = 'files: {image: "i/{case}.nii", label: "l/{case}.nii", merge: {7: 2, 8: 2}}'
    manifest = _toy(tmp_path, text)
    reader = reader_of(manifest, tmp_path)
    reader.write("c1", _volume(manifest, 0, whole=True, mirrored=False))
    values = np.zeros((5, 7, 9), np.int16)
    values[0, 0, :5] = [2, 7, 8, 300, 9]
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(sitk.ReadImage(str(tmp_path / "i/c1.nii")))
    sitk.WriteImage(image, str(tmp_path / "l/c1.nii"))
    assert reader.read("c1").label[0, 0, :6].tolist() == [1, 1, 1, 2, IGNORE, 0]
    with pytest.raises(BenchError, match="7: 5 must map a value without a class to one in `labels`"):
        reader_of(_toy(tmp_path, text.replace("7: 2", "7: 5")), tmp_path)
    lits = load_manifest("lits", packed("suites"))
    assert lits.layout[1]["merge"] == {2: 1}  # the tumour counts as liver


def test_cityscapes_ignores_what_it_does_not_evaluate(tmp_path: Path) -> None:
    manifest = load_manifest("cityscapes", packed("suites"), phantom=True)
    reader = reader_of(manifest, tmp_path)
    case = "frankfurt_000000_000294"
    reader.write(case, _volume(manifest, 0, whole=True, mirrored=False))
    path = tmp_path / f"Cityscapes/gtFine/val/frankfurt/{case}_gtFine_labelIds.png"
    values = np.full((7, 9), 7, np.uint8)
    values[0] = [0, 4, 9, 18, 29, 255, 33, 8, 26]
    Image.fromarray(values).save(path)
    label = reader.read(case).label
    # road is 1, sidewalk 2, car 14, bicycle 19; unlabelled, static, parking, bridge, caravan and the plate are ignored
    assert label[0, 0].tolist() == [IGNORE] * 6 + [19, 2, 14] and (label[0, 1:] == 1).all()
    assert list(manifest.spec.labels.values()) == [
        7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33
    ]  # fmt: skip


def test_a_mirror_of_brats_without_gzip_is_read_too(tmp_path: Path) -> None:
    manifest = load_manifest("brats2020", packed("suites"))
    case, odd = "BraTS20_Training_007", "BraTS20_Training_355"
    for name in (case, odd):
        reader = reader_of(manifest, tmp_path)
        made = _volume(manifest, 2, whole=True, mirrored=False)
        reader.write(name, made)
        folder = tmp_path / "MICCAI_BraTS2020_TrainingData" / name
        for path in list(folder.glob("*.nii.gz")):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        assert len(list(folder.glob("*.nii"))) == 5
        _same(reader.read(name), made, True)
    # mended by hand, the usual name is taken
    (folder / "W39_1998.09.19_Segm.nii").rename(folder / f"{odd}_seg.nii")
    _same(reader.read(odd), made, True)
    (folder / f"{odd}_seg.nii").rename(folder / "W39_segm.nii")  # exactly that one other name, and no third
    assert reader.missing([odd]) == [folder / "W39_1998.09.19_Segm.nii"]
