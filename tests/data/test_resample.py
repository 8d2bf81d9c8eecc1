"""Resampling: against scikit-image, which nnU-Net calls, and its rule for coarse axes by hand."""

import numpy as np
import pytest
from skimage.transform import resize

from harness.data.resample import axis_apart, new_shape, resample, resample_label, strongest

SHAPE = (11, 17, 14)


def _noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(7, 25, 14), (22, 9, 9), (11, 17, 14), (3, 40, 1), (1, 1, 1)])
def test_it_is_what_scikit_image_gives(shape: tuple[int, ...], order: int) -> None:
    volume = _noise()
    expected = resize(volume.astype(float), shape, order=order, mode="edge", anti_aliasing=False, clip=True)
    found = resample(volume, shape, order)
    assert found.dtype == np.float32 and found.shape == shape
    assert np.abs(found - expected).max() < 2e-4  # of values about 100: float32


def test_voxels_are_boxes_and_not_points() -> None:
    # two voxels at 0.5 and 1.5 of a side of 2; four at 0.25, 0.75, 1.25, 1.75
    assert resample(np.array([0.0, 1.0]), (4,), 1).tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resample(np.array([0.0, 1.0, 2.0, 3.0]), (2,), 1).tolist() == [0.5, 2.5]
    assert resample(np.array([5.0, 6.0, 7.0, 8.0]), (2,), 0).tolist() == [6.0, 8.0]
    assert resample(np.array([5.0, 6.0]), (4,), 0).tolist() == [5.0, 5.0, 6.0, 6.0]


def test_the_axis_apart_takes_whole_slices() -> None:
    volume = _noise((3, 10, 12))
    found = resample(volume, (6, 15, 8), 3, apart=0)
    for i in range(6):
        expected = resize(volume[i // 2].astype(float), (15, 8), order=3, mode="edge", anti_aliasing=False, clip=False)
        inside = np.clip(expected, volume.min(), volume.max())
        assert np.abs(found[i] - inside).max() < 2e-4


def test_cubic_splines_stay_within_the_range_of_the_volume() -> None:
    step = np.repeat(np.array([0.0, 1.0], np.float32), 6)
    assert resample(step, (30,), 3).min() == 0 and resample(step, (30,), 3).max() == 1
    free = resample(step, (30,), 3, clip=False)
    assert free.min() < -0.01 and free.max() > 1.01


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3, 1, 1), (1, 1, 1), None),  # exactly 3 is not more than 3
        ((3.1, 1, 1), (1, 1, 1), 0),
        ((5, 0.8, 0.8), (5, 0.8, 0.8), 0),
        ((0.7, 0.7, 2.5), (1, 1, 1), 2),
        ((1, 1, 1), (1, 4, 1), 1),  # the new grid decides where the old one is even
        ((5, 1, 1), (1, 4, 1), 0),  # the old one first
        ((0.24, 1.25, 1.25), (1, 1, 1), None),  # two coarse axes
    ],
)
def test_which_axis_is_apart(spacing: tuple[float, ...], target: tuple[float, ...], expected: int | None) -> None:
    assert axis_apart(spacing, target) == expected


def test_shapes_are_rounded_and_never_zero() -> None:
    assert new_shape((10, 512, 3), (5.0, 0.7, 0.1), (2.5, 1.0, 9.0)) == (20, 358, 1)


def test_labels_are_never_mixed_and_ignored_is_a_value_like_others() -> None:
    label = np.array([[0, 0, 7, 7, 255, 255, 3, 3]] * 4, np.uint8)
    found = resample_label(label, (8, 24))
    assert found.dtype == np.uint8 and np.array_equal(found, np.repeat(np.repeat(label, 3, 1), 2, 0))
    # three classes that meet within one voxel: the largest share wins, no voxel becomes background
    thin = np.array([1, 1, 2, 2, 3, 3, 3], np.uint8)
    assert resample_label(thin, (3,)).tolist() == [1, 2, 3]


def test_a_smooth_label_survives_a_round_trip() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in (20, 60, 50)), indexing="ij")
    label = (((z - 9) / 7) ** 2 + ((y - 30) / 20) ** 2 + ((x - 22) / 15) ** 2 < 1).astype(np.uint8)
    back = resample_label(resample_label(label, (40, 45, 38)), label.shape)
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.98


def test_the_first_of_equal_scores_wins() -> None:
    scores = [np.array([1.0, 0.0, 2.0], np.float32), np.array([1.0, 3.0, 1.0], np.float32)]
    assert strongest(scores, [4, 9]).tolist() == [4, 9, 4]
