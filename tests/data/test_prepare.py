"""Preparation: there and back on the network's grid, intensities by hand, and a cache keyed by content."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.intensity import Intensity
from harness.data.layouts import Volume, reader_of
from harness.data.manifest import load_manifest
from harness.data.prepare import Prepared, load_prepared, normalise, prepare, restore
from harness.errors import BenchError

MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: nowhere
layout: {phantom: {shape: [4, 16, 16], seed: 1}}
modalities: [CT]
labels: {a: 1, b: 2}
intensity: {window: [0, 1]}
cases: [c1, c2]
splits: {s: {test: [c2]}}
"""
SHAPE = (5, 7, 6)


class OneVolume:
    """A reader of one volume in memory that counts how often it is read."""

    def __init__(self, volume: Volume, content: str = "as it was") -> None:
        self.volume, self.content, self.reads = volume, content, 0

    def missing(self, cases: list[str]) -> list[Path]:
        return []

    def digest(self, case: str) -> str:
        return self.content

    def read(self, case: str) -> Volume:
        self.reads += 1
        return self.volume


def _manifest(folder: Path, old: str = "", new: str = ""):
    assert old in MANIFEST
    (folder / "toy.yaml").write_text(MANIFEST.replace(old, new, 1))
    return load_manifest("toy.yaml", folder)


def _volume(shape: tuple[int, int, int] = SHAPE, channels: int = 2, spacing: Any = (5.0, 0.5, 2.0)) -> Volume:
    rng = np.random.default_rng(3)
    image = rng.random((channels, *shape), np.float32)
    label = rng.choice(np.array([0, 1, 2, 255], np.uint8), shape)
    return Volume(image, label, spacing, (1.0, 2.0, 3.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))


def _prepared(folder: Path, volume: Volume, view: dict[str, Any]) -> Prepared:
    return load_prepared(prepare(_manifest(folder), OneVolume(volume), "c1", view, folder / "cache"))


def _slices(size: list[int], fit: str = "pad", axis: int = 0) -> dict[str, Any]:
    return {"slices": {"size": size, "fit": fit, "axis": axis}}


def _patches(size: list[int], foreground: float = 0.5) -> dict[str, Any]:
    return {"patches": {"size": size, "foreground": foreground}}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [[8, 8], [7, 7], [12, 9]])
def test_padding_and_back_is_exact_on_every_axis(tmp_path: Path, axis: int, size: list[int]) -> None:
    volume = _volume()
    view = _slices(size, axis=axis)
    case = _prepared(tmp_path, volume, view)
    assert case.image.shape == (SHAPE[axis], 2, *size) and case.label.shape == (SHAPE[axis], *size)
    assert case.image.dtype == np.float32 and case.label.dtype == np.uint8
    assert np.array_equal(restore(case.label, SHAPE, view), volume.label)
    for channel in range(2):  # slice s of the image is slice s of the volume along the axis, channel by channel
        back = restore(case.image[:, channel], SHAPE, view)
        assert np.array_equal(back, volume.image[channel])
    assert np.array_equal(case.reference, volume.label)
    assert (case.case, case.origin, case.direction) == ("c1", volume.origin, volume.direction)


def test_padding_continues_the_image_and_adds_background(tmp_path: Path) -> None:
    image = np.array([[[[0.1, 0.2], [0.3, 0.4]]]], np.float32)
    label = np.array([[[1, 2], [255, 1]]], np.uint8)
    case = _prepared(tmp_path, Volume(image, label, None), _slices([3, 5]))
    # 1 row too few: 0 above, 1 below; 3 columns too few: 1 left, 2 right
    rows = [[0.1, 0.1, 0.2, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4, 0.4], [0.3, 0.3, 0.4, 0.4, 0.4]]
    assert np.array_equal(case.image[0, 0], np.array(rows, np.float32))
    assert case.label[0].tolist() == [[0, 1, 2, 0, 0], [0, 255, 1, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("size", [[8, 8, 8], [5, 7, 6], [3, 3, 3], [3, 9, 6]])
def test_patches_pad_only_what_is_too_small_and_restore_exactly(tmp_path: Path, size: list[int]) -> None:
    volume = _volume()
    case = _prepared(tmp_path, volume, _patches(size))
    grown = tuple(max(a, b) for a, b in zip(SHAPE, size, strict=True))
    assert case.image.shape == (2, *grown) and case.label.shape == grown
    assert case.grid_spacing == case.spacing == (5.0, 0.5, 2.0)
    assert np.array_equal(restore(case.label, SHAPE, _patches(size)), volume.label)
    assert np.array_equal(restore(case.image[1], SHAPE, _patches(size)), volume.image[1])


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [[64, 48], [32, 40], [41, 57]])
def test_resizing_and_back_keeps_a_smooth_blob(tmp_path: Path, axis: int, size: list[int]) -> None:
    shape = (45, 50, 39)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    label = (((z - 20) / 13) ** 2 + ((y - 27) / 15) ** 2 + ((x - 18) / 11) ** 2 < 1).astype(np.uint8)
    image = label[None].astype(np.float32)
    view = _slices(size, "resize", axis)
    case = _prepared(tmp_path, Volume(image, label, (1.0, 1.0, 1.0)), view)
    assert case.image.shape == (shape[axis], 1, *size) and case.label.shape == (shape[axis], *size)
    back = restore(case.label, shape, view)
    assert back.shape == shape and back.dtype == np.uint8 and back.flags["C_CONTIGUOUS"]
    assert _dice(back == 1, label == 1) > 0.95
    assert _dice(case.image[:, 0] > 0.5, case.label == 1) > 0.95  # image and label stay on each other


@pytest.mark.parametrize("sides", [(247, 224), (230, 224), (256, 32), (125, 16), (59, 16), (80, 16)])
def test_resizing_leaves_no_empty_edge(tmp_path: Path, sides: tuple[int, int]) -> None:
    """Sizes at which scipy's zoom puts its last sample just outside the image, in one direction or the other."""
    source, size = sides
    volume = Volume(np.ones((1, 1, source, source), np.float32), np.full((1, source, source), 2, np.uint8), None)
    view = _slices([size, size], "resize")
    case = _prepared(tmp_path, volume, view)
    assert (case.label == 2).all() and case.image.min() > 0.999
    assert (restore(case.label, volume.label.shape, view) == 2).all()


def test_labels_are_never_mixed_by_resizing(tmp_path: Path) -> None:
    volume = _volume((2, 20, 30))
    view = _slices([33, 17], "resize")
    case = _prepared(tmp_path, volume, view)
    assert set(np.unique(case.label)) <= {0, 1, 2, 255}
    assert set(np.unique(restore(case.label, (2, 20, 30), view))) <= {0, 1, 2, 255}


@pytest.mark.parametrize(
    ("axis", "fit", "size", "expected"),
    [
        # volume of 5×8×6 voxels of 5, 0.5, 2 mm (z, y, x)
        (0, "pad", [8, 8], (0.5, 2.0)),
        (1, "pad", [8, 8], (5.0, 2.0)),
        (2, "pad", [8, 8], (5.0, 0.5)),
        (0, "resize", [16, 3], (0.25, 4.0)),  # y 8 → 16: 0.5 · 8/16; x 6 → 3: 2 · 6/3
        (1, "resize", [10, 12], (2.5, 1.0)),  # z 5 → 10: 5 · 5/10; x 6 → 12: 2 · 6/12
        (2, "resize", [4, 32], (6.25, 0.125)),  # z 5 → 4: 5 · 5/4; y 8 → 32: 0.5 · 8/32
    ],
)
def test_spacing_of_the_grid_by_hand(tmp_path: Path, axis: int, fit: str, size: list[int], expected: Any) -> None:
    case = _prepared(tmp_path, _volume((5, 8, 6)), _slices(size, fit, axis))
    assert case.grid_spacing == pytest.approx(expected)
    assert case.spacing == (5.0, 0.5, 2.0)  # scoring happens on the original grid


@pytest.mark.parametrize(
    ("view", "ones"),
    [(_slices([8, 8]), 2), (_slices([14, 3], "resize"), 2), (_patches([4, 4, 4]), 3)],
)
def test_unknown_spacing_is_ones_on_the_grid_and_none_for_scores(
    tmp_path: Path, view: dict[str, Any], ones: int
) -> None:
    case = _prepared(tmp_path, _volume(spacing=None), view)
    assert case.grid_spacing == (1.0,) * ones and case.spacing is None


@pytest.mark.parametrize("size", [[6, 8], [8, 5]])
def test_a_slice_larger_than_the_size_is_one_sentence(tmp_path: Path, size: list[int]) -> None:
    with pytest.raises(BenchError) as error:
        _prepared(tmp_path, _volume(), _slices(size))
    text = f"case c1: slices of 7×6 do not fit into size {size[0]}×{size[1]}; take a larger `size` or `fit: resize`."
    assert str(error.value) == text
    assert not list((tmp_path / "cache").rglob("*.npz"))


def _channels(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(len(rows), 1, 1, -1)


def test_window_by_hand() -> None:
    out = normalise(_channels([-500, -125, -25, 75, 275, 900]), Intensity(window=(-125, 275)))
    # (x + 125) / 400 after clipping
    assert out.dtype == np.float32 and out.ravel().tolist() == [0, 0, 0.25, 0.5, 1, 1]


def test_zscore_by_hand_and_per_channel() -> None:
    out = normalise(_channels([2, 4, 4, 4, 5, 5, 7, 9], [0, 0, 0, 0, 20, 20, 20, 20]), Intensity(zscore="volume"))
    # mean 5, squares 9+1+1+1+0+0+4+16 = 32, variance 4, SD 2; second channel: mean 10, SD 10
    assert out.dtype == np.float32
    assert out[0].ravel().tolist() == [-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2]
    assert out[1].ravel().tolist() == [-1, -1, -1, -1, 1, 1, 1, 1]


def test_percentiles_by_hand() -> None:
    out = normalise(_channels([0, 10, 20, 30, 1000]), Intensity(percentiles=(25, 75)))
    # of 5 values the percentiles 25 and 75 are the 2nd and the 4th: clipped to 10 10 20 30 30, mean 20, variance 400/5
    expected = np.array([-10, -10, 0, 10, 10]) / np.sqrt(80)
    assert out.ravel() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("how", [Intensity(zscore="volume"), Intensity(percentiles=(1, 99))])
@pytest.mark.parametrize("value", [0.0, 0.1, -1024.0])
def test_a_constant_image_becomes_zero(how: Intensity, value: float) -> None:
    out = normalise(np.full((1, 3, 5, 7), value, np.float32), how)
    assert np.abs(out).max() < 1e-4


def test_normalising_leaves_its_input_alone() -> None:
    for how in (Intensity(window=(0, 1)), Intensity(zscore="volume"), Intensity(percentiles=(5, 95))):
        image = _channels([1, 2, 3, 40])
        normalise(image, how)
        assert image.ravel().tolist() == [1, 2, 3, 40]


def test_a_second_call_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, reader, view = _manifest(tmp_path), OneVolume(_volume()), _slices([8, 8])
    first = prepare(manifest, reader, "c1", view, tmp_path / "cache")
    stamp = first.stat().st_mtime_ns

    def refuse(case: str) -> Volume:
        raise AssertionError("the volume was read again")

    monkeypatch.setattr(reader, "read", refuse)
    assert prepare(manifest, reader, "c1", view, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == stamp and first.parent == tmp_path / "cache" / "toy"
    assert [p.name for p in first.parent.iterdir()] == [first.name]  # no temporary file is left


def test_the_cache_is_keyed_by_everything_that_changes_the_arrays(tmp_path: Path) -> None:
    def at(old: str = "", new: str = "", view: Any = None, case: str = "c1", content: str = "as it was") -> Path:
        reader = OneVolume(_volume(), content)
        return prepare(_manifest(tmp_path, old, new), reader, case, view or _slices([8, 8]), tmp_path / "cache")

    base = at()
    others = [
        at(content="changed"),
        at(case="c2"),
        at(view=_slices([8, 9])),
        at(view=_slices([8, 8], "resize")),
        at(view=_slices([8, 8], axis=1)),
        at(view=_patches([8, 8, 8])),
        at(view=_patches([8, 8, 9])),
        at("window: [0, 1]", "window: [0, 2]"),
        at("window: [0, 1]", "zscore: volume"),
        at("b: 2", "b: 3"),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert at("licence: none", "licence: CC BY 4.0, ask first") == base
    assert at("s: {test: [c2]}", "s: {test: [c1]}") == base
    assert at(view=_patches([8, 8, 8], foreground=0.9)) == at(view=_patches([8, 8, 8]))  # the draw, not the arrays


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b"no archive " * 40)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[500] ^= 0xFF  # inside the first array
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [_cut, _empty, _garbage, _flip])
def test_a_damaged_cache_file_is_removed_and_named(tmp_path: Path, spoil: Any) -> None:
    manifest, reader, view = _manifest(tmp_path), OneVolume(_volume()), _slices([8, 8])
    path = prepare(manifest, reader, "c1", view, tmp_path / "cache")
    before = path.read_bytes()
    spoil(path)
    with pytest.raises(BenchError, match="damaged") as error:
        load_prepared(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert not path.exists()
    assert prepare(manifest, reader, "c1", view, tmp_path / "cache") == path and reader.reads == 2
    assert np.array_equal(load_prepared(path).label[:, 0:7, 1:7], reader.volume.label)
    assert len(path.read_bytes()) == len(before)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    reader = OneVolume(_volume())
    reader.missing = lambda cases: [tmp_path / f"{cases[0]}.nii.gz"]  # type: ignore[method-assign]
    with pytest.raises(BenchError, match=r"c1\.nii\.gz: no such file"):
        prepare(_manifest(tmp_path), reader, "c1", _slices([8, 8]), tmp_path / "cache")


def test_the_phantom_goes_through(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "[0, 1]", "[-125, 275]")
    reader = reader_of(manifest, None)
    case = load_prepared(prepare(manifest, reader, "c1", _slices([20, 20]), tmp_path / "cache"))
    assert case.image.shape == (4, 1, 20, 20) and 0 <= case.image.min() < case.image.max() <= 1
    assert np.array_equal(case.reference, reader.read("c1").label)
