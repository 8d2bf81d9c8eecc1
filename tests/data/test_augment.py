"""The published augmentations: each transform by hand or against an independent reference, and how often it comes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

import harness.data.augment_nnunet as module
from harness.data.augment import Batch, augmented
from harness.data.augment_nnunet import Spatial, blur, coarsened, contrast, gamma, valued
from harness.data.batches import TrainSet
from harness.data.stored import Prepared

CPU = torch.device("cpu")
BASE = {"data": "toy", "repeat": 0}
TRANSUNET: dict[str, Any] = {"preset": "transunet", "flip": True}
NNUNET: dict[str, Any] = {"preset": "nnunet", "flip": True}


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(count: int, size: tuple[int, ...], channels: int = 1, seed: int = 5) -> Batch:
    """Labels of random blocks; the first channel is the label."""
    target = torch.randint(0, 4, (count, *[n // 4 for n in size]), generator=_draw(seed))
    for d in range(1, 1 + len(size)):
        target = target.repeat_interleave(4, d)
    noise = torch.randn(count, channels - 1, *target.shape[1:], generator=_draw(seed + 1))
    return Batch(torch.cat([target[:, None].float(), noise], 1), target, torch.ones(count, len(size)))


def _symmetries(sample: Tensor) -> list[Tensor]:
    return [f for k in range(4) for f in (torch.rot90(sample, k, (-2, -1)), torch.rot90(sample, k, (-2, -1)).flip(-1))]


# TransUNet


@pytest.mark.parametrize("size", [(32, 32), (4, 24, 24)])
def test_transunet_turns_half_rotates_a_quarter_and_leaves_a_quarter(size: tuple[int, ...]) -> None:
    before = _batch(400, size)
    after = augmented(before, TRANSUNET, _draw())
    assert torch.equal(after.image[:, 0], after.target.float())  # nearest for both, moved together
    kinds = {"same": 0, "turned": 0, "rotated": 0}
    for a, b in zip(before.target, after.target, strict=True):
        whole = any(torch.equal(b, s) for s in _symmetries(a))
        kinds["same" if torch.equal(a, b) else "turned" if whole else "rotated"] += 1
    # a turn and flip is the identity for none of the 8 draws (a flip always changes a quarter turn's parity)
    assert kinds["rotated"] == pytest.approx(100, abs=30) and kinds["turned"] == pytest.approx(200, abs=35)


def test_transunets_turns_are_flipped_quarter_turns_on_either_axis() -> None:
    before = _batch(300, (16, 16))
    after = augmented(before, TRANSUNET, _draw(1))
    seen = set()
    for a, b in zip(before.target, after.target, strict=True):
        for k in range(4):
            for axis in (-2, -1):
                if torch.equal(b, torch.rot90(a, k, (-2, -1)).flip(axis)):
                    seen.add((k, axis))
    assert len(seen) == 8


@pytest.mark.parametrize("size", [(16, 16), (4, 16, 16), (16, 24)])
def test_the_spacing_of_a_quarter_turn_turns_with_it(size: tuple[int, ...]) -> None:
    before = _batch(200, size)
    own = [1.0, 2.0, 3.0][: len(size)]
    before = Batch(before.image, before.target, torch.tensor(own).expand(200, -1))
    after = augmented(before, TRANSUNET | {"flip": False}, _draw(1))
    for a, b, spacing in zip(before.target, after.target, after.spacing.tolist(), strict=True):
        turned = size[-1] == size[-2] and any(torch.equal(b, torch.rot90(a, k, (-2, -1))) for k in (1, 3))
        assert spacing == ([*own[:-2], own[-1], own[-2]] if turned else own)
    assert before.spacing[0].tolist() == own


def test_transunets_rotation_is_scipys_by_whole_degrees_with_zero_from_outside() -> None:
    size = (41, 41)
    before = Batch(torch.ones(60, 1, *size), _batch(60, (44, 44)).target[:, :41, :41].contiguous(), torch.ones(60, 2))
    after = augmented(before, TRANSUNET, _draw(3))
    angles = []
    for image, a, b in zip(after.image, before.target, after.target, strict=True):
        if bool((image == 1).all()):
            continue  # nothing came in from outside: not rotated, or by 0 degrees
        agreed = [
            (float((ndimage.rotate(a.numpy(), d, reshape=False, order=0) == b.numpy()).mean()), d)
            for d in range(-20, 21)
        ]
        best, degrees = max(agreed)
        assert best > 0.97, best  # ties of the nearest pixel aside
        angles.append(degrees)
    assert len(angles) > 8 and min(angles) < -5 and max(angles) > 5


def test_transunet_without_flips_and_on_oblong_planes() -> None:
    before = _batch(100, (16, 16))
    after = augmented(before, TRANSUNET | {"flip": False}, _draw(1))
    mirrored = [torch.rot90(s, k, (-2, -1)).flip(-1) for s in before.target for k in range(4)]
    moved = [b for a, b in zip(before.target, after.target, strict=True) if not torch.equal(a, b)]
    assert moved and not any(torch.equal(b, m) for b in moved for m in mirrored)
    oblong = _batch(50, (16, 24))
    assert augmented(oblong, TRANSUNET, _draw()).image.shape == oblong.image.shape


# nnU-Net, what moves


def test_rotation_and_scaling_come_in_a_fifth_of_the_samples_each() -> None:
    spatial = Spatial.drawn((64, 64, 64), 4000, _draw())
    turned, zoomed = spatial.angles.abs().sum(1) > 0, spatial.zooms != 1
    assert float(turned.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(zoomed.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float((turned & zoomed).float().mean()) == pytest.approx(0.04, abs=0.01)
    angles = torch.rad2deg(spatial.angles[turned])
    assert angles.shape[1] == 3 and 29 < angles.max() <= 30 and -30 <= angles.min() < -29
    zooms = spatial.zooms[zoomed]
    assert 0.7 <= zooms.min() < 0.71 and 1.39 < zooms.max() <= 1.4


@pytest.mark.parametrize(
    ("size", "degrees", "axes", "flat"),
    [
        ((64, 64, 64), 30, 3, False),
        ((40, 56, 40), 30, 3, False),
        ((16, 64, 64), 180, 1, True),  # 64 is more than 3 times 16: in the plane, all the way round
        ((64, 64), 180, 1, False),
        ((64, 112), 15, 1, False),  # a long plane
    ],
)
def test_how_far_is_turned(size: tuple[int, ...], degrees: float, axes: int, flat: bool) -> None:
    spatial = Spatial.drawn(size, 2000, _draw())
    largest = float(torch.rad2deg(spatial.angles.abs().max()))
    assert 0.97 * degrees < largest <= degrees + 1e-3
    assert spatial.angles.shape[1] == axes and spatial.flat == flat


def _one(size: tuple[int, ...], angles: list[float], zoom: float = 1.0, flat: bool = False) -> Spatial:
    return Spatial(size, torch.deg2rad(torch.tensor([angles])), torch.tensor([zoom]), flat, math.pi / 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_about_an_axis_is_exact(axis: int) -> None:
    """About x, y or z: the plane of the other two is turned and nothing else."""
    sample = _batch(1, (8, 8, 8), 2)
    angles = [0.0, 0.0, 0.0]
    angles[axis] = 90.0
    image, target = _one((8, 8, 8), angles).applied(0, sample.image[0], sample.target[0])
    plane = [d for d in range(3) if d != 2 - axis]  # x is the last axis of the array
    options = [torch.rot90(sample.target[0], k, plane) for k in (1, 3)]
    assert any(torch.equal(target, o) for o in options)
    assert torch.allclose(image[0], target.float(), atol=1e-4)


def test_zoom_shows_more_and_the_margin_is_image() -> None:
    """Twice the coordinates: every second pixel of a plane twice as large, so nothing comes from outside."""
    size = (8, 8)
    spatial = _one(size, [0.0], 2.0)
    plane = torch.arange(16.0).repeat(16, 1)[None]
    image, _ = spatial.applied(0, plane, torch.zeros(16, 16, dtype=torch.int64))
    assert image.shape == (1, *size)
    # pixel j lies at 8 + 2 (j - 3.5), in the middle of two
    assert torch.allclose(image[0], torch.arange(0.5, 16, 2).repeat(8, 1), atol=1e-4)


def test_the_margin_holds_the_turned_patch() -> None:
    for size, angles in (((32, 32, 32), [30.0, 0.0, 0.0]), ((20, 40, 30), [0.0, 30.0, 0.0]), ((24, 36), [45.0])):
        spatial = Spatial(
            size, torch.deg2rad(torch.tensor([angles])), torch.tensor([1.0]), False, math.radians(max(angles))
        )
        reach = spatial.reach(0)
        assert all(r >= n / 0.85 for r, n in zip(reach, size, strict=True))
        ones = torch.ones(1, *reach)
        marks = torch.ones(reach, dtype=torch.int64)
        assert bool((spatial.applied(0, ones, marks)[1] == 1).all())  # 0 would be from outside
    assert _one((8, 8, 8), [0.0, 0.0, 0.0]).reach(0) == (8, 8, 8)
    flat = _one((4, 32, 32), [45.0], flat=True)
    assert flat.reach(0)[0] == 4 and flat.reach(0)[1] >= 45


def test_a_patch_is_cut_with_its_margin_from_the_volume() -> None:
    """Of a ramp along x a zoomed and turned patch has no plateau: no edge was continued into it."""
    ramp = np.broadcast_to(np.arange(120, dtype=np.float32), (120, 120, 120))
    label = np.ones((120, 120, 120), np.uint8)
    case = Prepared("c", np.ascontiguousarray(ramp[None]), label, label, (1.0,) * 3, None, (), ())
    view = {"patches": {"size": [24, 24, 24], "foreground": 0.0}}
    data = TrainSet([case], view, NNUNET, CPU)
    seen = 0
    for step in range(12):
        generator = torch.Generator().manual_seed(module_seed(step))
        spatial = Spatial.drawn((24, 24, 24), 8, generator)
        raw = data._patches(step, 8, BASE, spatial)
        plain = data._patches(step, 8, BASE)
        for i in range(8):
            if not spatial.moves(i):
                assert torch.equal(raw.image[i], plain.image[i])
                continue
            # the middle is where the patch without turns has it; near the border of the volume the edge may show
            inside = float(plain.image[i].min()) > 30 and float(plain.image[i].max()) < 90
            centre = [float(p[0, 11:13, 11:13, 11:13].mean()) for p in (raw.image[i], plain.image[i])]
            if inside and bool((raw.target[i] == 1).all()):
                assert centre[0] == pytest.approx(centre[1], abs=0.6)
                assert bool((raw.image[i].diff(dim=-1).abs() > 0.1).all())
                seen += 1
    assert seen > 5


def module_seed(step: int) -> int:
    from harness.seeds import seed_of

    return seed_of("augment", BASE, step)


# nnU-Net, what changes values


@pytest.mark.parametrize("size", [(20, 24), (12, 10, 14)])
def test_blur_is_scipys_gaussian(size: tuple[int, ...]) -> None:
    image = torch.randn(2, 2, *size, generator=_draw())
    sd = 0.5 + 0.5 * torch.rand(2, 2, len(size), generator=_draw(1))
    found = blur(image, sd)
    for b in range(2):
        for c in range(2):
            expected = image[b, c].numpy()
            for axis in range(len(size)):
                expected = ndimage.gaussian_filter1d(expected, float(sd[b, c, axis]), axis, mode="nearest", radius=4)
            assert np.allclose(found[b, c].numpy(), expected, atol=1e-5)


def test_contrast_and_gamma_by_hand() -> None:
    image = torch.tensor([0.0, 1.0, 2.0, 5.0]).reshape(1, 1, 2, 2)  # mean 2, range 0 to 5
    assert contrast(image, torch.tensor([[0.5]])).flatten().tolist() == [1.0, 1.5, 2.0, 3.5]
    assert contrast(image, torch.tensor([[2.0]])).flatten().tolist() == [0.0, 0.0, 2.0, 5.0]  # kept within the range
    bent = gamma(image, torch.tensor([[2.0]]))
    assert float(bent.mean()) == pytest.approx(2.0, abs=1e-5)
    assert float(bent.std(unbiased=False)) == pytest.approx(float(image.std(unbiased=False)), abs=1e-5)
    raw = np.array([0, 0.04, 0.16, 1]) * 5
    expected = (raw - raw.mean()) / raw.std() * image.numpy().std() + 2
    assert np.allclose(bent.flatten().numpy(), expected, atol=1e-5)
    flat = torch.full((1, 1, 2, 2), 3.0)
    assert torch.allclose(gamma(flat, torch.tensor([[0.7]])), flat)


@pytest.mark.parametrize("size", [(16, 20), (8, 12, 16)])
def test_low_resolution_is_down_by_the_nearest_and_linearly_up(size: tuple[int, ...]) -> None:
    image = torch.randn(1, 2, *size, generator=_draw())
    found = coarsened(image, torch.tensor([[0.5, 1.0]]), flat=False)
    assert torch.allclose(found[0, 1], image[0, 1], atol=1e-6)  # a share of 1 is the image
    low = image[0, 0][tuple(slice(1, None, 2) for _ in size)]  # the voxel in the middle of two, rounded up
    mode = "bilinear" if len(size) == 2 else "trilinear"
    up = torch.nn.functional.interpolate(low[None, None], scale_factor=2, mode=mode, align_corners=False)
    assert torch.allclose(found[0, 0], up[0, 0], atol=1e-5)


def test_flat_patches_keep_their_slices_at_low_resolution() -> None:
    image = torch.randn(1, 1, 4, 16, 16, generator=_draw())
    found = coarsened(image, torch.tensor([[0.5]]), flat=True)
    for z in range(4):
        alone = coarsened(image[:, :, z], torch.tensor([[0.5]]), flat=False)
        assert torch.allclose(found[:, :, z], alone, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_how_often_values_change(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...]) -> None:
    """Each transform by itself: the others are made to come never."""
    before = _batch(600, size, 2)
    names = ("P_NOISE", "P_BLUR", "P_BRIGHT", "P_CONTRAST", "P_COARSE", "P_GAMMA_INVERTED", "P_GAMMA", "P_MIRROR")
    expected = (0.1, 0.2, 0.15, 0.15, 0.25, 0.1, 0.3, None)
    shares = {n: getattr(module, n) for n in names}
    for name, share in zip(names, expected, strict=True):
        for other in names:
            monkeypatch.setattr(module, other, shares[other] if other == name else 0.0)
        after = valued(before, NNUNET, _draw(3), flat=False)
        changed = (after.image != before.image).flatten(2).any(-1)  # (B, C)
        if share is None:  # no axis is flipped once in 2^dims
            kept = 0.5 ** len(size)
            assert float((~changed[:, 1]).float().mean()) == pytest.approx(kept, abs=0.06)
            assert torch.equal(after.image[:, 0], after.target.float())
            continue
        assert torch.equal(after.target, before.target)
        # blur and low resolution take half of the channels of a chosen sample
        part = 0.5 if name in ("P_BLUR", "P_COARSE") else 1.0
        assert float(changed[:, 1].float().mean()) == pytest.approx(share * part, abs=0.05)


def test_brightness_draws_half_below_and_half_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("P_NOISE", "P_BLUR", "P_CONTRAST", "P_COARSE", "P_GAMMA_INVERTED", "P_GAMMA", "P_MIRROR"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "P_BRIGHT", 1.0)
    ones = Batch(torch.ones(3000, 1, 2, 2), torch.zeros(3000, 2, 2, dtype=torch.int64), torch.ones(3000, 2))
    factors = valued(ones, NNUNET, _draw(), flat=False).image[:, 0, 0, 0]
    assert 0.75 <= factors.min() < 0.76 and 1.24 < factors.max() <= 1.25
    assert float((factors < 1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_noise_has_an_sd_of_up_to_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("P_BRIGHT", "P_BLUR", "P_CONTRAST", "P_COARSE", "P_GAMMA_INVERTED", "P_GAMMA", "P_MIRROR"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "P_NOISE", 1.0)
    zeros = Batch(torch.zeros(300, 1, 40, 40), torch.zeros(300, 40, 40, dtype=torch.int64), torch.ones(300, 2))
    sd = valued(zeros, NNUNET, _draw(), flat=False).image.flatten(1).std(1)
    assert float(sd.min()) < 0.003 and 0.097 < float(sd.max()) < 0.106
    assert float(sd.mean()) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("how", [NNUNET, TRANSUNET])
@pytest.mark.parametrize("size", [(24, 24), (12, 16, 16), (4, 24, 24)])
def test_labels_stay_labels_and_draws_repeat(how: dict[str, Any], size: tuple[int, ...]) -> None:
    before = _batch(30, size, 2)
    before.target[before.target == 3] = 255
    image, target = before.image.clone(), before.target.clone()
    one, two, other = (augmented(before, how, _draw(s)) for s in (1, 1, 2))
    assert torch.equal(before.image, image) and torch.equal(before.target, target)
    assert torch.equal(one.image, two.image) and torch.equal(one.target, two.target)
    assert not torch.equal(one.image, other.image)
    assert one.target.dtype == torch.int64 and set(one.target.unique().tolist()) <= {0, 1, 2, 255}
    assert one.image.dtype == torch.float32 and bool(torch.isfinite(one.image).all())
    assert torch.equal(one.spacing, before.spacing)


def test_without_flips_nothing_is_mirrored() -> None:
    before = _batch(200, (16, 16))
    still = [i for i in range(200) if not Spatial.drawn((16, 16), 200, _draw(4)).moves(i)]
    after = augmented(before, NNUNET | {"flip": False}, _draw(4))
    assert torch.equal(after.target[still], before.target[still])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", [NNUNET, TRANSUNET])
def test_a_gpu_draws_the_same(monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]) -> None:
    """All but the noise, whose numbers are drawn where they are used."""
    monkeypatch.setattr(module, "P_NOISE", 0.0)
    here = _batch(30, (12, 16, 16), 2)
    there = Batch(here.image.cuda(), here.target.cuda(), here.spacing.cuda())
    one, two = augmented(here, how, _draw(1)), augmented(there, how, _draw(1))
    assert torch.allclose(one.image, two.image.cpu(), atol=1e-4)
    assert (one.target == two.target.cpu()).float().mean() > 0.999  # ties of the nearest voxel
