"""Hausdorff losses: against MONAI, kornia, exacta, and loops over voxels written from the formulas."""

import itertools
import math

import exacta.losses
import kornia.losses
import monai.losses
import numpy as np
import pytest
import torch
from torch import nn

from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.hausdorff import (
    HausdorffConvolution,
    HausdorffDT,
    HausdorffErosion,
    HausdorffOneSided,
    WeightedHausdorff,
)
from harness.losses.needs import LABEL_NEEDS
from harness.losses.targets import derive

SHAPES = [(2, 4, 8, 7), (2, 3, 5, 4, 6)]
LOSSES = {
    "dt": HausdorffDT(),
    "dt argmax": HausdorffDT(alpha=1.5, background=True, threshold="argmax"),
    "one-sided": HausdorffOneSided(),
    "erosion": HausdorffErosion(erosions=4),
    "erosion fixed": HausdorffErosion(normalize=False, background=True),
    "convolution": HausdorffConvolution(radii=(1, 2.5, 4)),
    "weighted": WeightedHausdorff(),
    "weighted steep": WeightedHausdorff(alpha=-4, radius=3, background=True),
}


def _example(shape: tuple[int, ...], ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Confident logits, a label of blocks with a rare wrong voxel, uneven spacing; the last class is in one sample."""
    draw = torch.Generator().manual_seed(len(shape))
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    target[:, 1:4, 1:4] = 1
    target[:, 3:, 3:] = 2
    if shape[1] > 3:
        target[0, 5:, :3] = 3
    guess = torch.where(torch.rand(target.shape, generator=draw) < 0.3, 0, target)
    guess[:, :3, 2:] = 2
    logits = torch.randn(shape, generator=draw, dtype=torch.float64)
    logits.scatter_add_(1, guess[:, None], torch.full_like(logits[:, :1], 5.0))
    if ignored:
        target[0, 2, 1:4] = 255
        target[1, -1] = 255
    spacing = torch.tensor([[1.0, 2.0, 0.5], [1.5, 1.0, 1.25]])[:, : len(shape) - 2]
    return logits, target, spacing


def _value(loss: nn.Module, logits: torch.Tensor, target: torch.Tensor, spacing: torch.Tensor) -> torch.Tensor:
    names = set().union(*needs_of(loss)) & LABEL_NEEDS
    offered = derive(names, target, num_classes=logits.shape[1], spacing=spacing)
    return evaluate_loss(loss, logits, target, {**offered, "spacing": spacing})["loss"]


def _row(target: list[int], p: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row of voxels, two classes, probabilities of class 1."""
    p1 = torch.tensor([[p]], dtype=torch.float64)
    return torch.stack([1 - p1, p1], 1).log(), torch.tensor([[target]]), torch.ones(1, 2)


# ---- references: numpy, voxel by voxel


def _voxels(valid: np.ndarray) -> list[tuple[int, ...]]:
    return [n for n in np.ndindex(valid.shape) if valid[n]]


def _gap(a: tuple[int, ...], b: tuple[int, ...], sides: np.ndarray) -> float:
    return math.sqrt(sum(((i - j) * float(s)) ** 2 for i, j, s in zip(a, b, sides, strict=True)))


def _distances(mask: np.ndarray, valid: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Distance to the nearest valid voxel of the other side; 0 where there is none."""
    out = np.zeros(mask.shape)
    for n in _voxels(valid):
        others = [_gap(n, m, sides) for m in _voxels(valid) if mask[m] != mask[n]]
        out[n] = min(others, default=0.0)
    return out


def _parts(logits: torch.Tensor, target: torch.Tensor, first: int):
    """(p, t, valid) of each sample and class."""
    probs, labels = logits.softmax(1).numpy(), target.numpy()
    for b in range(len(labels)):
        for c in range(first, probs.shape[1]):
            yield b, c, probs[b, c], (labels[b] == c).astype(float), labels[b] != 255


def _loops_dt(logits, target, spacing, alpha=2.0, first=1, two_sided=True, threshold="half"):
    total = count = 0.0
    likeliest = logits.argmax(1).numpy()
    for b, c, p, t, valid in _parts(logits, target, first):
        near_t = _distances(t == 1, valid, spacing[b])
        hard = p > 0.5 if threshold == "half" else likeliest[b] == c
        near_p = _distances(hard, valid, spacing[b])
        for n in _voxels(valid):
            weight = near_t[n] ** alpha + (near_p[n] ** alpha if two_sided else 0)
            total += (p[n] - t[n]) ** 2 * weight
            count += 1
    return total / count


def _loops_erosion(logits, target, alpha=2.0, erosions=10, normalize=True, first=1):
    total = count = 0.0
    for _, _, p, t, valid in _parts(logits, target, first):
        error = (p - t) ** 2 * valid
        for k in range(1, erosions + 1):
            nxt = np.zeros_like(error)
            for n in _voxels(valid):
                cross = [error[n]]
                for axis, step in itertools.product(range(error.ndim), (-1, 1)):
                    m = tuple(i + step * (a == axis) for a, i in enumerate(n))
                    cross.append(error[m] if all(0 <= i < s for i, s in zip(m, error.shape, strict=True)) else 0.0)
                nxt[n] = max(sum(cross) / (2 * error.ndim + 1) - 0.5, 0)
            found = nxt[valid]
            if not normalize:
                nxt = 2 * nxt
            elif found.max() > found.min():
                nxt = np.where(valid, (nxt - found.min()) / (found.max() - found.min()), 0)
            total += k**alpha * nxt.sum()
            error = nxt
        count += valid.sum()
    return total / count


def _loops_convolution(logits, target, radii, alpha=2.0, first=1):
    total = count = 0.0
    for _, _, p, t, valid in _parts(logits, target, first):
        for n in _voxels(valid):
            wrong, missing = (p[n] - t[n]) ** 2 * p[n], (p[n] - t[n]) ** 2 * t[n]
            for r in radii:
                disc = [m for m in _voxels(valid) if _gap(n, m, np.ones(p.ndim)) <= r]
                bt, bp = np.mean([t[m] for m in disc]), np.mean([p[m] for m in disc])
                outside = [max(2 * (1 - v) - 1, 0) for v in (bt, bp)]
                inside = [max(2 * v - 1, 0) for v in (bt, bp)]
                total += r**alpha * (
                    outside[0] * wrong + inside[0] * missing + outside[1] * missing + inside[1] * wrong
                )
            count += 1
    return total / count


def _loops_weighted(logits, target, spacing, alpha=-1.0, radius=2.0, first=1):
    losses = []
    for b, _, p, t, valid in _parts(logits, target, first):
        sides, voxels = spacing[b], _voxels(valid)
        lows, highs = np.min(voxels, 0), np.max(voxels, 0)
        far = _gap(tuple(lows), tuple(highs), sides)
        ys = [y for y in voxels if t[y]]
        if not ys:
            losses.append(far * np.mean([p[x] for x in voxels]))
            continue
        reach = sum(p[x] * min(_gap(x, y, sides) for y in ys) for x in voxels) / (sum(p[x] for x in voxels) + 1e-6)
        lacking = []
        for y in ys:
            near = [x for x in voxels if _gap(x, y, np.ones(p.ndim)) <= radius]
            terms = [p[x] * _gap(x, y, sides) + (1 - p[x]) * far for x in near]
            lacking.append(np.mean([v**alpha for v in terms]) ** (1 / alpha))
        losses.append(reach + np.mean(lacking))
    return np.mean(losses)


# ---- agreement


@pytest.mark.parametrize("shape", SHAPES)
def test_dt_agrees_with_monai_and_exacta(shape: tuple[int, ...], agree) -> None:
    logits, target, _ = _example(shape, ignored=False)
    ones = torch.ones(2, len(shape) - 2)
    onehot = derive(("onehot",), target, num_classes=shape[1], spacing=ones)["onehot"].double()
    for alpha, background in ((2.0, False), (1.5, True)):
        ours = _value(HausdorffDT(alpha, background), logits, target, ones)
        # a float target: MONAI's distances take the type of the target, and truncate with integers
        theirs = monai.losses.HausdorffDTLoss(alpha=alpha, include_background=background, softmax=True)(logits, onehot)
        agree("hausdorff_dt", "MONAI HausdorffDTLoss", ours, theirs)
        uneven = [1.0, 2.0, 0.5][: len(shape) - 2]
        ours = _value(HausdorffDT(alpha, background), logits, target, torch.tensor([uneven, uneven]))
        peer = exacta.losses.HausdorffDTLoss(alpha=alpha, include_background=background)
        agree("hausdorff_dt", "exacta HausdorffDTLoss", ours, peer(logits, target, spacing=uneven))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", ["half", "argmax"])
def test_dt_agrees_with_loops(shape: tuple[int, ...], threshold: str, agree) -> None:
    given = _example(shape)
    for alpha, background in ((2.0, False), (1.0, True)):
        ours = _value(HausdorffDT(alpha, background, threshold), *given)
        theirs = _loops_dt(*given, alpha, 0 if background else 1, threshold=threshold)
        agree("hausdorff_dt", "loops over voxels", ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_sided_agrees_with_monai_maps_and_loops(shape: tuple[int, ...], agree) -> None:
    logits, target, spacing = _example(shape)
    ours = _value(HausdorffOneSided(3.0), logits, target, spacing)
    agree("hausdorff_one_sided", "loops over voxels", ours, _loops_dt(logits, target, spacing, 3.0, two_sided=False))
    logits, target, _ = _example(shape, ignored=False)
    ones = torch.ones(2, len(shape) - 2)
    onehot = derive(("onehot",), target, num_classes=shape[1], spacing=ones)["onehot"].double()
    # MONAI's map of one class at a time; MONAI has no one-sided loss
    field = torch.cat([monai.losses.HausdorffDTLoss().distance_field(t) for t in onehot.split(1, 1)], 1)
    theirs = ((logits.softmax(1) - onehot) ** 2 * field**2)[:, 1:].mean()
    agree("hausdorff_one_sided", "MONAI distance_field", _value(HausdorffOneSided(), logits, target, ones), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_erosion_agrees_with_kornia_and_loops(shape: tuple[int, ...], agree) -> None:
    logits, target, spacing = _example(shape, ignored=False)
    kind = kornia.losses.HausdorffERLoss if len(shape) == 4 else kornia.losses.HausdorffERLoss3D
    for alpha, erosions in ((2.0, 10), (1.0, 3)):
        maps = kind(alpha, erosions, reduction="none")(logits.softmax(1), target[:, None])  # classes first
        for background in (False, True):
            ours = _value(HausdorffErosion(alpha, erosions, background=background), logits, target, spacing)
            theirs = maps[0 if background else 1 :].mean()
            agree("hausdorff_erosion", f"kornia {kind.__name__}", ours, theirs)
            assert ours > 0
    logits, target, spacing = _example(shape)
    for normalize in (True, False):
        ours = _value(HausdorffErosion(normalize=normalize), logits, target, spacing)
        agree("hausdorff_erosion", "loops over voxels", ours, _loops_erosion(logits, target, normalize=normalize))


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_agrees_with_loops(shape: tuple[int, ...], agree) -> None:
    logits, target, spacing = _example(shape)
    for radii, alpha, background in (((1, 2.5), 2.0, False), ((3, 20), 1.0, True)):  # 20 is wider than the image
        ours = _value(HausdorffConvolution(radii, alpha, background), logits, target, spacing)
        theirs = _loops_convolution(logits, target, radii, alpha, 0 if background else 1)
        agree("hausdorff_conv", "loops over voxels", ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_agrees_with_loops(shape: tuple[int, ...], agree) -> None:
    given = _example(shape)
    for alpha, radius, background in ((-1.0, 2, False), (-4.0, 1, True)):
        ours = _value(WeightedHausdorff(alpha, radius, background), *given)
        theirs = _loops_weighted(*given, alpha, radius, 0 if background else 1)
        agree("weighted_hausdorff", "loops over voxels", ours, theirs)


def test_weighted_is_the_papers_where_the_radius_covers_the_image(agree) -> None:
    logits, target, spacing = _example((2, 3, 5, 6), ignored=False)
    ours = _value(WeightedHausdorff(radius=8), logits, target, spacing)
    agree("weighted_hausdorff", "all pairs of points", ours, _loops_weighted(logits, target, spacing, radius=np.inf))


# ---- by hand

# Distances of the truth 2 1 1 2 3; of the prediction 1 1 0 0 1: 2 1 1 1 1. (p - t)²: .01 .04 .04 .01 .36.
ROW = ([1, 1, 0, 0, 0], [0.9, 0.8, 0.2, 0.1, 0.6])
SHORT = ([1, 0, 0], [0.9, 0.5, 0.2])
HAND = {
    "dt": (HausdorffDT(), ROW, (0.01 * 8 + 0.04 * 2 + 0.04 * 2 + 0.01 * 5 + 0.36 * 10) / 5),
    "dt, alpha 1": (HausdorffDT(1.0), ROW, (0.01 * 4 + 0.04 * 2 + 0.04 * 2 + 0.01 * 3 + 0.36 * 4) / 5),
    "one-sided": (HausdorffOneSided(), ROW, (0.01 * 4 + 0.04 + 0.04 + 0.01 * 4 + 0.36 * 9) / 5),
    # means over discs of radius 1: of t 1/2 1/3 0, of p .7 8/15 .35
    "convolution": (
        HausdorffConvolution([1]),
        SHORT,
        (0.01 * 0.9 * 0.4 + 0.25 * 0.5 * (1 / 3 + 1 / 15) + 0.04 * 0.2 * 1) / 3,
    ),
    # (.5 + .2 · 2) / 1.6, and the harmonic mean of .1 · 2 and .5 + .5 · 2
    "weighted": (WeightedHausdorff(radius=1), SHORT, 0.9 / 1.6 + 2 / (1 / 0.2 + 1 / 1.5)),
}


@pytest.mark.parametrize("name", HAND)
def test_by_hand(name: str) -> None:
    loss, row, wanted = HAND[name]
    assert _value(loss, *_row(*row)).item() == pytest.approx(wanted, rel=2e-6)


def _block(error: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """No object in the truth, a block of 3 × 3 voxels predicted with probability `error`, in 5 × 5 voxels."""
    p1 = torch.full((1, 5, 5), 1e-12, dtype=torch.float64)
    p1[:, 1:4, 1:4] = error
    return torch.stack([1 - p1, p1], 1).log(), torch.zeros(1, 5, 5, dtype=torch.long), torch.ones(1, 2)


def test_erosion_of_a_block_by_hand() -> None:
    # eroded once, over its maximum: 1 in the centre, 4 × .6, 4 × .2; twice: the centre, (1 + 2.4) / 5 - .5 = .18
    once, twice = 1 + 4 * 0.6 + 4 * 0.2, 0.18 * 2
    given = _block(1 - 1e-12)
    assert _value(HausdorffErosion(), *given).item() == pytest.approx((once + 4 * 1) / 25, rel=1e-9)
    assert _value(HausdorffErosion(erosions=1), *given).item() == pytest.approx(once / 25, rel=1e-9)
    assert _value(HausdorffErosion(normalize=False), *given).item() == pytest.approx((once + 4 * twice) / 25, rel=1e-9)


# ---- behaviour


def test_erosion_has_a_dead_zone() -> None:
    # at .72 one voxel survives, rescaled to 1 whatever its error: the value jumps, and there is still no gradient
    for error, wanted, moves in ((0.70, 0.0, False), (0.72, 1 / 25, False), (0.9, None, True)):
        logits, target, spacing = _block(error)
        logits.requires_grad_()
        value = _value(HausdorffErosion(), logits, target, spacing)
        (grad,) = torch.autograd.grad(value, logits)
        assert wanted is None or value.item() == wanted
        assert (grad.abs().max() > 1e-9) == moves
    thin = _block(1 - 1e-12)[0]
    thin[..., :2, :] = thin[..., 4:, :]
    thin[..., 3:, :] = thin[..., :1, :]
    target = torch.zeros(1, 5, 5, dtype=torch.long)
    # three wrong voxels in a row: the middle one keeps 3/5 - 1/2, and without a rescaling it hardly counts
    assert _value(HausdorffErosion(normalize=False), thin, target, torch.ones(1, 2)).item() == pytest.approx(0.2 / 25)


def test_dt_is_one_sided_where_nothing_is_predicted() -> None:
    _, target, spacing = _example(SHAPES[0])
    logits = torch.zeros(SHAPES[0], dtype=torch.float64)
    logits[:, 0] = 0.1
    one_sided = _value(HausdorffOneSided(), logits, target, spacing)
    assert torch.equal(_value(HausdorffDT(), logits, target, spacing), one_sided) and one_sided > 0


def test_dt_does_not_see_an_absent_class_below_one_half_and_convolution_does() -> None:
    target = torch.zeros(1, 6, 6, dtype=torch.long)
    logits = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    logits[:, 0, :3] = 0.1
    logits[:, 0, 3:] = 0.2
    ones = torch.ones(1, 2)
    assert _value(HausdorffDT(), logits, target, ones) == 0
    assert _value(HausdorffConvolution(), logits, target, ones) > 0
    mean = logits.softmax(1)[:, 1].mean().item()
    assert _value(WeightedHausdorff(), logits, target, ones).item() == pytest.approx(math.sqrt(50) * mean)


def test_farther_errors_cost_more() -> None:
    target = torch.zeros(1, 9, 16, dtype=torch.long)
    target[:, 3:6, 1:4] = 1
    truth = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).double()
    for loss in (HausdorffDT(), HausdorffOneSided(), HausdorffConvolution([2, 4, 6]), WeightedHausdorff()):
        values = []
        for column in (5, 8, 12):
            logits = 20 * truth
            logits[:, :, 3:6, column : column + 3] = 20 * torch.tensor([0.0, 1.0])[None, :, None, None]
            values.append(_value(loss, logits, target, torch.ones(1, 2)).item())
        assert values[0] < values[1] < values[2], type(loss).__name__


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ignored_voxels_count_for_nothing(name: str, shape: tuple[int, ...]) -> None:
    logits, target, spacing = _example(shape)
    cut = shape[-1] // 2
    target[..., cut:] = 255
    logits.requires_grad_()
    value = _value(LOSSES[name], logits, target, spacing)
    (grad,) = torch.autograd.grad(value, logits)
    hidden = (target == 255)[:, None].expand_as(grad)
    assert not grad[hidden].any() and (grad[~hidden].any() or "erosion" in name)
    other = torch.where(hidden, -7.0, logits)
    assert _value(LOSSES[name], other, target, spacing).item() == pytest.approx(value.item(), rel=1e-12)
    alone = _value(LOSSES[name], logits[..., :cut], target[..., :cut], spacing)
    assert alone.item() == pytest.approx(value.item(), rel=1e-12)
    value = _value(LOSSES[name], logits, torch.full_like(target, 255), spacing)
    (grad,) = torch.autograd.grad(value, logits)
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    logits, target, spacing = _example((2, 3, 5, 4))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _value(LOSSES[name], x, target, spacing), (logits,), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HausdorffDT(alpha=0),
        lambda: HausdorffDT(threshold="none"),  # type: ignore[arg-type]
        lambda: HausdorffOneSided(alpha=-1),
        lambda: HausdorffErosion(alpha=0),
        lambda: HausdorffErosion(erosions=0),
        lambda: HausdorffConvolution(radii=[]),
        lambda: HausdorffConvolution(radii=[3, 0.5]),
        lambda: HausdorffConvolution(alpha=0),
        lambda: WeightedHausdorff(alpha=1),
        lambda: WeightedHausdorff(radius=0),
    ],
)
def test_bad_arguments(make) -> None:
    with pytest.raises(ValueError, match="found"):
        make()
