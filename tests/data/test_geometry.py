"""Axes, boxes and grids, and the way back: orientation from files that SimpleITK wrote, round trips of rotated ones."""

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from harness.data.geometry import bounding_box, canonical_axes, cut_out, on_grid
from harness.data.intensity import Intensity
from harness.data.layouts import Volume, reader_of
from harness.data.manifest import load_manifest
from harness.data.prepare import load_prepared, prepare
from harness.errors import BenchError
from harness.models.output import Output
from harness.predict import predict_case

MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: nowhere
layout: {files: {image: ["{case}_0.nii.gz", "{case}_1.nii.gz", "{case}_2.nii.gz", "{case}_3.nii.gz"], label: "{case}_label.nii.gz"}}
modalities: [body, a, b, c]
labels: {a: 1, b: 2, c: 3}
intensity: {scale: [0, 1]}
cases: [c1, c2]
splits: {s: {test: [c2]}}
"""
WHOLE = Intensity(scale=(0, 1))
SHAPE = (7, 9, 8)
ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]  # all 48: axes of the patient that the file's x, y, z run along, and whether forwards


def _corner(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """(z, y, x), z up, y to the front, x to the right: no turn or mirror maps it onto itself."""
    label = np.zeros(shape, np.uint8)
    label[1:6, 2:4, 1:3] = 1
    label[4:6, 2:8, 1:3] = 2
    label[4:6, 2:4, 1:7] = 3
    return label


def _cosines(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Columns: directions of x, y, z of the file, in ITK's left, back, up."""
    # patient axes in our order: 0 up, 1 front, 2 right, as ITK vectors
    patient = [np.array([0, 0, 1.0]), np.array([0, -1.0, 0]), np.array([-1.0, 0, 0])]
    return np.stack([patient[a] * s for a, s in zip(order, signs, strict=True)], axis=1)


def _stored(label: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """The array (z, y, x) of a file whose x runs along patient axis order[0], and so on."""
    out = np.transpose(label, tuple(reversed(order)))
    return np.flip(out, tuple(i for i, s in enumerate(reversed(signs)) if s < 0)).copy()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_becomes_the_same_and_goes_back(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    label = _corner()
    held = _stored(label, order, signs)
    spacing = np.array([4.0, 2.0, 1.0])  # of the patient's axes
    there = tuple(float(s) for s in spacing[list(reversed(order))])
    volume = Volume(
        held[None].astype(np.float32),
        held,
        (there[0], there[1], there[2]),
        (0.0, 0.0, 0.0),
        tuple(_cosines(order, signs).ravel()),
    )
    cut, geometry = cut_out(volume, {"canonical": True})
    assert np.array_equal(cut.label, label) and np.array_equal(cut.image[0], label)
    assert cut.spacing == (4.0, 2.0, 1.0)
    assert np.array_equal(geometry.back(cut.label), held)


def test_it_agrees_with_simple_itk() -> None:
    """Its DICOMOrient is an independent reading of the same direction cosines."""
    rng = np.random.default_rng(0)
    for order, signs in ORIENTATIONS:
        values = rng.random(SHAPE, np.float32)
        image = sitk.GetImageFromArray(values)
        image.SetDirection(_cosines(order, signs).ravel().tolist())
        turned = sitk.DICOMOrient(image, "RAS")
        volume = Volume(values[None], np.zeros(SHAPE, np.uint8), (1.0, 1.0, 1.0), (0.0,) * 3, image.GetDirection())
        cut, _ = cut_out(volume, {"canonical": True})
        assert np.array_equal(cut.image[0], sitk.GetArrayFromImage(turned))


def _turned(degrees: float) -> np.ndarray:
    """An oblique direction: two rotations, of a file that is also mirrored."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    one = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    two = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return one @ two @ np.diag([1.0, -1.0, 1.0])


@pytest.mark.parametrize("degrees", [-40.0, -20.0, 0.0, 10.0, 40.0])
def test_of_an_oblique_grid_the_closest_axes_count(degrees: float) -> None:
    # x to the left and y to the front: x is turned round, y is not
    assert canonical_axes(tuple(_turned(degrees).ravel())) == ((0, 1, 2), (False, False, True))


def _box(image: np.ndarray, crop: str) -> list[tuple[int, int]]:
    return list(bounding_box(image, crop))


def test_the_box_of_what_is_not_zero_in_any_channel() -> None:
    image = np.zeros((2, 6, 8, 10), np.float32)
    image[0, 2, 3, 4], image[1, 4, 1, 9] = -5, 0.1
    assert _box(image, "nonzero") == [(2, 5), (1, 4), (4, 10)]
    assert _box(np.zeros((1, 2, 3, 4), np.float32), "nonzero") == [(0, 2), (0, 3), (0, 4)]


def test_the_box_of_the_body_is_of_its_largest_part() -> None:
    image = np.full((1, 8, 30, 30), -1000.0, np.float32)
    image[0, 2:7, 5:20, 6:25] = 40 + np.random.default_rng(0).normal(0, 20, (5, 15, 19))
    image[0, 0, 28, :] = 300  # the table, brighter but smaller, and apart
    assert _box(image, "body") == [(2, 7), (5, 20), (6, 25)]
    assert _box(np.full((1, 2, 3, 4), 7.0, np.float32), "body") == [(0, 2), (0, 3), (0, 4)]


def test_outside_of_the_box_is_background_on_the_way_back() -> None:
    label = _corner()
    image = np.where(label > 0, 9.0, 0.0).astype(np.float32)[None]
    cut, geometry = cut_out(Volume(image, label, None), {"crop": "nonzero"})
    assert cut.label.shape == (5, 6, 6) and geometry.inner == (5, 6, 6)
    assert np.array_equal(geometry.back(cut.label), label)
    assert geometry.back(np.full((5, 6, 6), 3, np.uint8)).sum() == 3 * 5 * 6 * 6


def test_intensities_are_of_what_was_kept() -> None:
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, 1:3, 1:3, 1:3] = np.arange(8).reshape(2, 2, 2) + 1
    volume = Volume(image, np.zeros((4, 4, 4), np.uint8), None)
    _, values, _ = on_grid(volume, {"crop": "nonzero"}, Intensity(zscore="volume"), "c")
    assert values.shape == (1, 2, 2, 2)
    assert abs(float(values.mean())) < 1e-6 and abs(float(values.std()) - 1) < 1e-6


def test_without_any_of_it_nothing_changes() -> None:
    label = _corner()
    volume = Volume(label[None].astype(np.float32), label, (1.0, 2.0, 3.0))
    there, image, geometry = on_grid(volume, {"patches": {"size": [4, 4, 4]}}, WHOLE, "c")
    assert there is volume and geometry is None and np.array_equal(image, volume.image)


def test_resampling_without_a_spacing_is_one_sentence() -> None:
    volume = Volume(np.zeros((1, *SHAPE), np.float32), _corner(), None)
    with pytest.raises(BenchError, match=r"case k: its spacing is unknown"):
        on_grid(volume, {"resample": {"spacing": [1, 1, 1]}}, WHOLE, "k")


def test_the_grid_keeps_the_extent_of_the_volume() -> None:
    volume = Volume(np.zeros((1, 10, 20, 30), np.float32), np.zeros((10, 20, 30), np.uint8), (3.0, 1.0, 0.7))
    there, image, geometry = on_grid(volume, {"resample": {"spacing": [2.0, 2.0, 1.0]}}, WHOLE, "c")
    assert geometry is not None and geometry.shape == there.label.shape == image.shape[1:] == (15, 10, 21)
    assert there.spacing == pytest.approx((2.0, 2.0, 1.0))
    assert geometry.apart == 0  # 3.0 is more than three times 0.7


# from a file to a prediction on the file's own grid


class Oracle(nn.Module):
    """Channel k is the share of a voxel that class k has; background is where no class has half."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Output:
        self.seen.append(tuple(image.shape[2:]))
        return Output(20 * torch.cat([1 - image[:, 1:].sum(1, keepdim=True), image[:, 1:]], dim=1))


def _written(folder: Path, label: np.ndarray, spacing: tuple[float, ...], direction: np.ndarray) -> None:
    """A body with a mask of each class; spacing as (z, y, x)."""
    body = np.zeros(label.shape, np.float32)
    places = np.argwhere(label)
    body[tuple(slice(max(0, a - 1), b + 2) for a, b in zip(places.min(0), places.max(0), strict=True))] = 1
    arrays = {"0": body, "label": label} | {str(k): (label == k).astype(np.float32) for k in (1, 2, 3)}
    for kind, array in arrays.items():
        image = sitk.GetImageFromArray(array)
        image.SetSpacing([float(s) for s in reversed(spacing)])
        image.SetOrigin([12.5, -80.0, 33.0])
        image.SetDirection(direction.ravel().tolist())
        sitk.WriteImage(image, str(folder / f"c1_{kind}.nii.gz"))
    (folder / "toy.yaml").write_text(MANIFEST)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def _organs(shape: tuple[int, int, int], spacing: tuple[float, ...]) -> np.ndarray:
    """Three ellipsoids, off centre and of different sizes, in mm."""
    grids = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    label = np.zeros(shape, np.uint8)
    for k, (centre, radius) in enumerate(
        (((0.4, 0.35, 0.3), 0.2), ((0.55, 0.7, 0.6), 0.25), ((0.6, 0.3, 0.75), 0.17)), 1
    ):
        inside = sum(((g - c * e) / (radius * e)) ** 2 for g, c, e in zip(grids, centre, extent, strict=True))
        label[inside < 1] = k
    return label


VIEWS: list[dict[str, Any]] = [
    {"patches": {"size": [16, 48, 48], "foreground": 0.3}, "resample": {"spacing": [2.0, 1.0, 1.0]}},
    {"patches": {"size": [16, 40, 40], "foreground": 0.3}, "resample": {"spacing": [2.5, 0.8, 0.8]}, "canonical": True, "crop": "nonzero"},
    {"slices": {"size": [112, 112], "fit": "pad", "axis": 0}, "resample": {"spacing": [2.5, 0.7, 0.7]}, "canonical": True},
    {"slices": {"size": [96, 96], "fit": "resize", "axis": 0}, "resample": {"spacing": [3.0, 0.8, 0.8]}, "crop": "body"},
    {"slices": {"size": [96, 96], "fit": "pad", "axis": 0}, "canonical": True, "crop": "nonzero"},
    {"patches": {"size": [16, 48, 48], "foreground": 0.3, "overlap": 0.25}, "canonical": True},
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: "-".join(v))
def test_a_prediction_returns_to_the_grid_of_an_anisotropic_rotated_file(tmp_path: Path, view: dict[str, Any]) -> None:
    """The network gives back the label that it sees on its own grid; on the file's grid it must be the file's label."""
    spacing = (3.0, 0.75, 0.9)
    label = _organs((24, 90, 84), spacing)
    _written(tmp_path, label, spacing, _turned(25.0))
    manifest = load_manifest("toy.yaml", tmp_path)
    path = prepare(manifest, reader_of(manifest, tmp_path), "c1", view, tmp_path / "cache")
    case = load_prepared(path)
    assert np.array_equal(case.reference, label) and case.spacing == pytest.approx(spacing)
    network = Oracle()
    found = predict_case(network, case, view, batch=8, device=torch.device("cpu"), precision="float32")
    assert found.shape == label.shape and found.dtype == np.uint8
    dice = [_dice(found == k, label == k) for k in (1, 2, 3)]
    assert min(dice) > 0.99, dice
    assert set(network.seen) == {tuple(next(iter(view.values()))["size"])}


def test_the_label_on_the_grid_lies_on_the_image(tmp_path: Path) -> None:
    spacing = (3.0, 0.75, 0.9)
    label = _organs((24, 90, 84), spacing)
    _written(tmp_path, label, spacing, _turned(25.0))
    manifest = load_manifest("toy.yaml", tmp_path)
    for view in VIEWS:
        case = load_prepared(prepare(manifest, reader_of(manifest, tmp_path), "c1", view, tmp_path / "cache"))
        channels = np.moveaxis(case.image, 1, 0) if "slices" in view else case.image
        for k in (1, 2, 3):
            assert _dice(case.label == k, channels[k] > 0.5) > 0.98


def test_what_changes_the_grid_changes_the_cached_file(tmp_path: Path) -> None:
    _written(tmp_path, _corner(), (1.0, 1.0, 1.0), np.eye(3))
    manifest = load_manifest("toy.yaml", tmp_path)
    reader = reader_of(manifest, tmp_path)
    base: dict[str, Any] = {"patches": {"size": [4, 4, 4], "foreground": 0.5}}
    others = [
        base | {"crop": "nonzero"},
        base | {"canonical": True},
        base | {"resample": {"spacing": [1.0, 1.0, 2.0]}},
        base | {"intensity": {"scale": [0, 4]}},
    ]
    paths = [prepare(manifest, reader, "c1", view, tmp_path / "cache") for view in (base, *others)]
    assert len(set(paths)) == 5
    same = {"patches": {"size": [4, 4, 4], "foreground": 0.1, "overlap": 0.75}}
    assert prepare(manifest, reader, "c1", same, tmp_path / "cache") == paths[0]
    assert load_prepared(paths[4]).image.max() == 0.25  # the view's intensity counts, not the manifest's
