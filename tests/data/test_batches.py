"""Batches: a function of (seed, step) alone; image and label move together; ranges as the suite says."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.batches import Batch, TrainSet, augmented
from harness.data.prepare import Prepared

CPU = torch.device("cpu")
BASE = {"data": "toy", "repeat": 0}
OTHER = {"data": "toy", "repeat": 1}
OFF: dict[str, Any] = {"rotate": 0.0, "scale": 0.0, "shift": 0.0, "flip": False, "noise": 0.0, "intensity": 0.0}
ALL = {"rotate": 30.0, "scale": 0.2, "shift": 0.1, "flip": True, "noise": 0.1, "intensity": 0.2}
SLICES = {"slices": {"size": [8, 8], "fit": "pad", "axis": 0}}
COUNT = 10


def _cases() -> list[Prepared]:
    """Ten slices in two cases; every voxel of slice i is i, so that a batch tells what it holds."""
    out = []
    for name, numbers, spacing in (("a", range(4), (1.0, 2.0)), ("b", range(4, COUNT), (3.0, 4.0))):
        image = np.stack([np.full((1, 8, 8), float(n), np.float32) for n in numbers])
        label = image[:, 0].astype(np.uint8)
        out.append(Prepared(name, image, label, label, spacing, None, (), ()))
    return out


def _set(**augment: Any) -> TrainSet:
    return TrainSet(_cases(), SLICES, OFF | augment, CPU)


def _picked(batch: Batch) -> list[int]:
    return batch.target[:, 0, 0].tolist()


def _same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.target, b.target) and torch.equal(a.spacing, b.spacing)


def _pass(data: TrainSet, turn: int, base: dict[str, Any], size: int = 5) -> list[int]:
    per = COUNT // size
    return [n for step in range(turn * per, (turn + 1) * per) for n in _picked(data.batch(step, size, base))]


# order


def test_what_a_batch_holds() -> None:
    batch = _set().batch(0, 6, BASE)
    assert batch.image.shape == (6, 1, 8, 8) and batch.image.dtype == torch.float32
    assert batch.target.shape == (6, 8, 8) and batch.target.dtype == torch.int64
    assert batch.spacing.dtype == torch.float32
    for i, number in enumerate(_picked(batch)):  # image, label and spacing are of the same slice
        assert (batch.image[i] == number).all() and (batch.target[i] == number).all()
        assert batch.spacing[i].tolist() == ([1.0, 2.0] if number < 4 else [3.0, 4.0])


def test_random_access_equals_the_sequence() -> None:
    used = TrainSet(_cases(), SLICES, ALL, CPU)
    sequence = [used.batch(step, 3, BASE) for step in range(9)]
    for step in (8, 0, 4, 4, 3, 7):
        assert _same(used.batch(step, 3, BASE), sequence[step])
        assert _same(TrainSet(_cases(), SLICES, ALL, CPU).batch(step, 3, BASE), sequence[step])


def test_neighbouring_steps_and_global_generators_do_not_matter() -> None:
    data = TrainSet(_cases(), SLICES, ALL, CPU)
    first = data.batch(0, 10, BASE)
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    assert _same(data.batch(0, 10, BASE), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_visits_every_slice_once_and_the_next_in_another_order() -> None:
    data = _set()
    passes = [_pass(data, turn, BASE) for turn in range(4)]
    assert all(sorted(p) == list(range(COUNT)) for p in passes)
    assert len({tuple(p) for p in passes}) == 4
    # batches that straddle the passes: the stream of samples is the same whatever the size of a batch
    stream = [n for step in range(10) for n in _picked(data.batch(step, 4, BASE))]
    assert stream == [n for p in passes for n in p]


def test_another_seed_is_another_order_also_in_a_set_that_was_used() -> None:
    data = _set()
    first = _pass(data, 0, BASE)
    second = _pass(data, 0, OTHER)  # the same pass again: a worker keeps its set between the cells of two seeds
    assert sorted(second) == sorted(first) and second != first
    assert second == _pass(_set(), 0, OTHER)
    assert _pass(data, 0, BASE) == first


# augmentation

_GRID = {
    size: torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij") for size in ((64, 48), (48, 64), (48, 48))
}


def _blobs(size: tuple[int, int], count: int = 12) -> Batch:
    """An ellipse off the centre, well inside; the image is the label."""
    y, x = _GRID[size]
    disc = ((y - size[0] * 0.46) / 11) ** 2 + ((x - size[1] * 0.55) / 7) ** 2 < 1
    label = disc.long().expand(count, *size).clone()
    return Batch(label[:, None].float(), label, torch.tensor([[1.0, 2.0]]).repeat(count, 1))


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_off_is_the_identity_bit_for_bit() -> None:
    image = torch.randn(3, 2, 9, 7, generator=_draw(5))
    batch = Batch(image, torch.randint(0, 255, (3, 9, 7), generator=_draw(6)), torch.ones(3, 2))
    assert _same(augmented(batch, OFF, _draw()), batch)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (48, 48)])
@pytest.mark.parametrize(
    "how", [{"rotate": 45.0}, {"scale": 0.3}, {"shift": 0.15}, {"flip": True}, ALL | {"noise": 0.0}]
)
def test_image_and_label_move_together(size: tuple[int, int], how: dict[str, Any]) -> None:
    before = _blobs(size)
    after = augmented(before, OFF | how, _draw())
    assert not torch.equal(after.target, before.target)
    agree = ((after.image[:, 0] > 0.5).long() == after.target).float().mean((1, 2))
    assert agree.min() > 0.97
    # agreement of the blob itself, which background cannot hide
    both = ((after.image[:, 0] > 0.5) & (after.target == 1)).sum((1, 2))
    either = ((after.image[:, 0] > 0.5) | (after.target == 1)).sum((1, 2))
    assert (both / either).min() > 0.9
    assert torch.equal(after.spacing, before.spacing)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (48, 48)])
def test_rotation_keeps_area_and_the_shape_of_a_disc(size: tuple[int, int]) -> None:
    y, x = _GRID[size]
    cy, cx = (size[0] - 1) / 2, (size[1] - 1) / 2
    disc = ((y - cy) ** 2 + (x - cx) ** 2 < 15**2).long().expand(12, *size)
    centred = augmented(Batch(disc[:, None].float(), disc, torch.ones(12, 2)), OFF | {"rotate": 90.0}, _draw(1))
    union = ((centred.target == 1) | (disc == 1)).sum((1, 2))
    overlap = ((centred.target == 1) & (disc == 1)).sum((1, 2)) / union
    assert overlap.min() > 0.93  # a disc in the centre stays where it is and does not become an ellipse
    before = _blobs(size)
    after = augmented(before, OFF | {"rotate": 90.0}, _draw(1))
    ratio = after.target.sum((1, 2)) / before.target.sum((1, 2))
    assert (ratio - 1).abs().max() < 0.05


def _angles(degrees: float, size: tuple[int, int], count: int = 300) -> torch.Tensor:
    """Angle of every sample in degrees, measured on the image: where the spot beside the centre has gone."""
    y, x = _GRID[size]
    cy, cx = (size[0] - 1) / 2, (size[1] - 1) / 2
    spot = torch.exp(-((y - cy) ** 2 + (x - cx - 15) ** 2) / 8.0).expand(count, 1, *size)
    image = augmented(
        Batch(spot, torch.zeros(count, *size).long(), torch.ones(count, 2)), OFF | {"rotate": degrees}, _draw()
    ).image[:, 0]
    mass = image.sum((1, 2))
    dy = (image * (y - cy)).sum((1, 2)) / mass
    dx = (image * (x - cx)).sum((1, 2)) / mass
    assert (torch.hypot(dy, dx) - 15).abs().max() < 0.5  # a rotation keeps the distance, on oblong images too
    return torch.rad2deg(torch.atan2(dy, dx))


@pytest.mark.parametrize("size", [(64, 48), (48, 48)])
def test_rotation_is_uniform_within_the_given_degrees(size: tuple[int, int]) -> None:
    angles = _angles(20.0, size)
    assert angles.abs().max() <= 20.5 and angles.abs().max() > 18
    assert abs(float(angles.mean())) < 2.5  # uniform on ±20: SD 11.5, of a mean of 300 0.67
    assert float(angles.std()) == pytest.approx(20 / math.sqrt(3), rel=0.12)


def _span(image: torch.Tensor) -> torch.Tensor:
    return (image > 0.5).sum((1, 2, 3)).float()


def test_zoom_is_by_one_plus_the_draw() -> None:
    size = (48, 48)
    y, x = _GRID[size]
    square = (((y - 23.5).abs() < 8) & ((x - 23.5).abs() < 8)).float().expand(400, 1, *size)
    batch = Batch(square, square[:, 0].long(), torch.ones(400, 2))
    side = _span(augmented(batch, OFF | {"scale": 0.25}, _draw()).image).sqrt()
    # a square of 16 voxels becomes 12 (1 − 0.25) to 20 (1 + 0.25), and as often larger as smaller
    assert 12 <= side.min() <= 12.6 and 19.4 <= side.max() <= 20
    assert side.mean() == pytest.approx(16, abs=0.5)


def test_shift_is_a_share_of_each_size() -> None:
    size = (64, 48)
    y, x = _GRID[size]
    spot = torch.exp(-((y - 31.5) ** 2 + (x - 23.5) ** 2) / 4.0).expand(400, 1, *size)
    batch = Batch(spot, torch.zeros(400, *size).long(), torch.ones(400, 2))
    image = augmented(batch, OFF | {"shift": 0.25}, _draw()).image[:, 0]
    mass = image.sum((1, 2))
    dy = (image * y).sum((1, 2)) / mass - 31.5
    dx = (image * x).sum((1, 2)) / mass - 23.5
    assert 15 < dy.abs().max() < 16.1  # 0.25 · 64
    assert 11.2 < dx.abs().max() < 12.1  # 0.25 · 48
    assert abs(float(dy.mean())) < 2 and abs(float(dx.mean())) < 1.5
    assert abs(float(torch.corrcoef(torch.stack([dy, dx]))[0, 1])) < 0.2  # each axis has its own draw


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_flips_are_exact_and_every_axis_by_itself(shape: tuple[int, ...]) -> None:
    target = torch.arange(math.prod(shape)).reshape(shape)
    count, dims = 64, len(shape)
    batch = Batch(target.float().expand(count, 1, *shape), target.expand(count, *shape), torch.ones(count, dims))
    after = augmented(batch, OFF | {"flip": True}, _draw())
    axes = [[d for d in range(dims) if mask >> d & 1] for mask in range(2**dims)]
    ways = [torch.flip(target, a) for a in axes]
    seen = [next(i for i, way in enumerate(ways) if torch.equal(way, sample)) for sample in after.target]
    assert set(seen) == set(range(2**dims))
    assert torch.allclose(after.image[:, 0], after.target.float(), atol=1e-3)


def test_gain_and_noise_by_their_statistics() -> None:
    ones = torch.ones(600, 1, 8, 8)
    batch = Batch(ones, torch.zeros(600, 8, 8).long(), torch.ones(600, 2))
    gain = augmented(batch, OFF | {"intensity": 0.3}, _draw()).image
    assert torch.equal(gain.amin((1, 2, 3)), gain.amax((1, 2, 3)))  # one factor a sample
    assert 0.7 <= gain.min() < 0.71 and 1.29 < gain.max() <= 1.3
    assert gain.mean() == pytest.approx(1, abs=0.03)
    noise = augmented(batch, OFF | {"noise": 0.25}, _draw()).image - 1
    # 38,400 normal draws: the SD's own SD is 0.25 / √76,800 = 0.0009
    assert noise.std() == pytest.approx(0.25, abs=0.005) and noise.mean() == pytest.approx(0, abs=0.007)
    assert (noise.abs() < 0.25).float().mean() == pytest.approx(0.6827, abs=0.015)


def test_gain_and_noise_leave_the_label_and_the_geometry_alone() -> None:
    before = _blobs((48, 48))
    assert torch.equal(augmented(before, OFF | {"noise": 0.3, "intensity": 0.3}, _draw()).target, before.target)
    plain = augmented(before, OFF | {"rotate": 30.0, "shift": 0.1}, _draw())
    noisy = augmented(before, OFF | {"rotate": 30.0, "shift": 0.1, "noise": 0.3, "intensity": 0.3}, _draw())
    assert torch.equal(plain.target, noisy.target)


@pytest.mark.parametrize("shape", [(40, 30), (12, 20, 16)])
def test_labels_are_never_interpolated_and_ignored_stays(shape: tuple[int, ...]) -> None:
    values = torch.tensor([0, 7, 13, 254, 255])
    target = values[torch.randint(0, 5, (4, *[n // 2 for n in shape]), generator=_draw(2))]
    for d in range(1, 1 + len(shape)):
        target = target.repeat_interleave(2, d)
    batch = Batch(target[:, None].float(), target, torch.ones(4, len(shape)))
    after = augmented(batch, ALL, _draw())
    assert after.target.dtype == torch.int64 and not torch.equal(after.target, target)
    assert set(after.target.unique().tolist()) == set(values.tolist())


def test_what_comes_in_from_outside_is_background_in_the_label_and_the_edge_in_the_image() -> None:
    ones = torch.ones(20, 1, 32, 32)
    after = augmented(Batch(ones, ones[:, 0].long(), torch.ones(20, 2)), OFF | {"shift": 0.3}, _draw())
    assert set(after.target.unique().tolist()) == {0, 1}
    assert torch.allclose(after.image, ones)


def test_scaling_does_not_touch_spacing_and_the_input_is_left_alone() -> None:
    batch = _blobs((48, 48))
    image, target = batch.image.clone(), batch.target.clone()
    assert torch.equal(augmented(batch, OFF | {"scale": 0.5}, _draw()).spacing, batch.spacing)
    augmented(batch, ALL, _draw())
    assert torch.equal(batch.image, image) and torch.equal(batch.target, target)


def test_rotation_of_a_volume_is_in_the_plane_of_the_last_two_axes() -> None:
    label = torch.zeros(6, 8, 24, 24, dtype=torch.int64)
    label[:, 2, 4:20, 10:14] = 1
    after = augmented(Batch(label[:, None].float(), label, torch.ones(6, 3)), OFF | {"rotate": 90.0}, _draw())
    assert (after.target.sum((2, 3)) > 0).tolist() == [[False, False, True, False, False, False, False, False]] * 6
    assert not torch.equal(after.target, label)


def test_draws_repeat_for_a_step_and_differ_between_steps_and_seeds() -> None:
    one = _blobs((48, 48), 1)
    case = Prepared(
        "c", one.image.numpy(), one.target.byte().numpy(), one.target.byte().numpy(), (1.0, 1.0), None, (), ()
    )
    data = TrainSet([case], SLICES, OFF | {"rotate": 45.0}, CPU)
    assert torch.equal(data.batch(3, 2, BASE).image, data.batch(3, 2, BASE).image)
    images = [data.batch(step, 2, base).image for step in range(4) for base in (BASE, OTHER)]
    images = [part for image in images for part in image]  # the two samples of a batch have draws of their own, too
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


# patches


def _volumes() -> list[Prepared]:
    rng = np.random.default_rng(0)
    out = []
    for i, (shape, value) in enumerate((((10, 20, 16), 1), ((8, 12, 30), 2))):
        label = np.zeros(shape, np.uint8)
        label[0, shape[1] - 1, 3] = value  # one voxel, at a border: random patches hardly meet it
        image = np.stack([label.astype(np.float32), rng.random(shape, np.float32)])
        out.append(Prepared(str(i), image, label, label, (float(i + 1), 1.0, 0.5), None, (), ()))
    return out


def _patches(foreground: float, size: tuple[int, int, int] = (4, 5, 6), **augment: Any) -> TrainSet:
    return TrainSet(_volumes(), {"patches": {"size": list(size), "foreground": foreground}}, OFF | augment, CPU)


def _holding(data: TrainSet, steps: int = 20) -> list[bool]:
    return [bool((t > 0).any()) for step in range(steps) for t in data.batch(step, 8, BASE).target]


def test_patches_have_the_shape_and_the_spacing_of_their_volume() -> None:
    batch = _patches(1.0).batch(0, 16, BASE)
    assert batch.image.shape == (16, 2, 4, 5, 6) and batch.target.shape == (16, 4, 5, 6)
    assert batch.target.dtype == torch.int64
    assert torch.equal(batch.image[:, 0], batch.target.float())  # cut at the same place
    owners = batch.target.amax((1, 2, 3))
    assert set(owners.tolist()) == {1, 2}
    assert [s.tolist() for s in batch.spacing] == [[float(o), 1.0, 0.5] for o in owners]


def test_the_share_of_patches_on_the_foreground() -> None:
    assert all(_holding(_patches(1.0)))
    none, half = np.mean(_holding(_patches(0.0))), np.mean(_holding(_patches(0.5)))
    assert none < 0.1  # by chance alone, 1 voxel at the edge
    assert 0.38 < half < 0.65  # 160 draws: SD 0.04


def test_a_patch_of_the_foreground_is_centred_on_it_where_there_is_room() -> None:
    label = np.zeros((11, 11, 11), np.uint8)
    label[5, 6, 4] = 1
    case = replace(_volumes()[0], image=label[None].astype(np.float32), label=label)
    data = TrainSet([case], {"patches": {"size": [3, 5, 5], "foreground": 1.0}}, OFF, CPU)
    assert data.batch(0, 1, BASE).target[0].nonzero().tolist() == [[1, 2, 2]]


def test_every_class_is_as_likely_as_another() -> None:
    label = np.zeros((12, 12, 12), np.uint8)
    label[0, 0, 0], label[6:, 6:, 6:], label[0, 11, 0] = 3, 1, 255  # 1 voxel, 216 voxels, and an ignored one
    case = replace(_volumes()[0], image=label[None].astype(np.float32), label=label)
    data = TrainSet([case], {"patches": {"size": [2, 2, 2], "foreground": 1.0}}, OFF, CPU)
    kinds = [int(t.max()) for step in range(20) for t in data.batch(step, 10, BASE).target]
    assert set(kinds) == {1, 3}  # the ignored voxel is no foreground
    assert 0.4 < kinds.count(3) / len(kinds) < 0.6  # 200 draws: SD 0.035


def test_patches_reach_every_corner_and_a_whole_volume_is_one_patch() -> None:
    volume = np.arange(4 * 4 * 4, dtype=np.uint8).reshape(4, 4, 4)
    case = replace(_volumes()[0], image=volume[None].astype(np.float32), label=volume)
    data = TrainSet([case], {"patches": {"size": [3, 3, 3], "foreground": 0.0}}, OFF, CPU)
    starts = {int(t[0, 0, 0]) for t in data.batch(0, 200, BASE).target}
    assert starts == {z * 16 + y * 4 + x for z in (0, 1) for y in (0, 1) for x in (0, 1)}
    data = TrainSet([case], {"patches": {"size": [4, 4, 4], "foreground": 0.5}}, OFF, CPU)
    assert all(np.array_equal(t.numpy(), volume) for t in data.batch(0, 4, BASE).target)


def test_patches_without_any_foreground_are_random() -> None:
    empty = replace(_volumes()[0], label=np.zeros((10, 20, 16), np.uint8))
    data = TrainSet([empty], {"patches": {"size": [4, 5, 6], "foreground": 1.0}}, OFF, CPU)
    assert data.batch(0, 2, BASE).target.shape == (2, 4, 5, 6)


def test_patches_are_a_function_of_seed_and_step() -> None:
    used = _patches(0.5, rotate=20.0, noise=0.1)
    sequence = [used.batch(step, 3, BASE) for step in range(5)]
    for step in (4, 0, 2):
        assert _same(used.batch(step, 3, BASE), sequence[step])
        assert _same(_patches(0.5, rotate=20.0, noise=0.1).batch(step, 3, BASE), sequence[step])
    assert not _same(used.batch(1, 3, BASE), sequence[0])
    assert not _same(used.batch(0, 3, OTHER), sequence[0])
