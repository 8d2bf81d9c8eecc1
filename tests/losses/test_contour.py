"""Losses on contours: against kornia, scipy, and loops over voxels written from the formulas."""

import itertools
import math

import kornia.filters
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.contour import ActiveContour, BoundaryDoU, ShapeAware, SobelBoundary
from harness.losses.dice import Dice
from harness.losses.needs import LABEL_NEEDS
from harness.losses.pixel import CrossEntropy
from harness.losses.targets import derive

SHAPES = [(2, 4, 8, 7), (2, 3, 5, 4, 6)]
LOSSES = {
    "shape": ShapeAware(),
    "dou": BoundaryDoU(),
    "dou policies": BoundaryDoU(background=False, absent="penalise", limit=0.5, smooth=1e-3),
    "sobel": SobelBoundary(),
    "sobel magnitudes": SobelBoundary("magnitudes", background=False),
    "active": ActiveContour(),
    "active foreground": ActiveContour(3.0, background=False, eps=1e-4),
}


def _example(shape: tuple[int, ...], ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits near the label, a label of blocks, uneven spacing; the last class is in one sample."""
    draw = torch.Generator().manual_seed(len(shape))
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    target[:, 1:4, 1:4] = 1
    target[:, 3:, 3:] = 2
    if shape[1] > 3:
        target[0, 5:, :3] = 3
    guess = torch.where(torch.rand(target.shape, generator=draw) < 0.2, 0, target)
    logits = torch.randn(shape, generator=draw, dtype=torch.float64)
    logits.scatter_add_(1, guess[:, None], torch.full_like(logits[:, :1], 2.0))
    if ignored:
        target[0, 2, 1:3] = 255
        target[1, -1] = 255
    spacing = torch.tensor([[1.0, 2.0, 0.5], [1.5, 1.0, 1.25]])[:, : len(shape) - 2]
    return logits, target, spacing


def _terms(loss: nn.Module, logits: torch.Tensor, target: torch.Tensor, spacing: torch.Tensor) -> dict:
    names = set().union(*needs_of(loss)) & LABEL_NEEDS
    offered = derive(names, target, num_classes=logits.shape[1], spacing=spacing)
    return evaluate_loss(loss, logits, target, {**offered, "spacing": spacing})


def _value(loss: nn.Module, *given: torch.Tensor) -> torch.Tensor:
    return _terms(loss, *given)["loss"]


def _logits_of(label: torch.Tensor, classes: int, size: float = 30.0) -> torch.Tensor:
    return size * torch.nn.functional.one_hot(label, classes).movedim(-1, 1).double()


# ---- references: numpy, voxel by voxel


def _voxels(valid: np.ndarray) -> list[tuple[int, ...]]:
    return [n for n in np.ndindex(valid.shape) if valid[n]]


def _neighbours(n: tuple[int, ...], shape: tuple[int, ...]):
    """Face neighbours; None for those outside the image."""
    for axis, step in itertools.product(range(len(n)), (-1, 1)):
        m = tuple(i + step * (a == axis) for a, i in enumerate(n))
        yield m if all(0 <= i < s for i, s in zip(m, shape, strict=True)) else None


def _loops_shape(logits, target, spacing, weight=1.0):
    labels, probs = target.numpy(), logits.softmax(1).numpy()
    total = count = 0.0
    for b in range(len(labels)):
        sides, valid, guess = spacing[b].numpy(), labels[b] != 255, probs[b].argmax(0)
        voxels = _voxels(valid)
        away = []
        for n in voxels:
            around = [m for m in _neighbours(n, valid.shape) if m and valid[m]]
            if any(guess[m] != guess[n] for m in around):
                gaps = [
                    math.sqrt(sum(((i - j) * float(s)) ** 2 for i, j, s in zip(n, m, sides, strict=True)))
                    for m in voxels
                    if labels[b][m] != labels[b][n]
                ]
                away.append(max(min(gaps, default=0.0) - sides.min(), 0))
        error = np.mean(away) if away else 0.0
        for n in voxels:
            ce = -math.log(probs[b][(labels[b][n], *n)])
            total += ce * (1 + weight * error * (guess[n] != labels[b][n]))
            count += 1
    return total / count


def _loops_dou(logits, target, limit=0.8, background=True, sample=False, absent="include", smooth=1e-5):
    labels, probs = target.numpy(), logits.softmax(1).numpy()
    groups = [[b] for b in range(len(labels))] if sample else [list(range(len(labels)))]
    means = []
    for group in groups:
        losses = []
        for c in range(0 if background else 1, probs.shape[1]):
            z = g = both = edge = mass = count = 0.0
            for b in group:
                for n in _voxels(labels[b] != 255):
                    p, t = probs[b][(c, *n)], labels[b][n] == c
                    z, g, both, mass, count = z + p * p, g + t, both + p * t, mass + p, count + 1
                    edge += t and any(m is None or labels[b][m] != c for m in _neighbours(n, labels[b].shape))
            if g == 0 and absent == "skip":
                continue
            alpha = min(1 - 2 * edge / g, limit) if g else -1
            loss = (z + g - 2 * both) / (z + g - (1 + alpha) * both + smooth)
            losses.append(mass / count if g == 0 and absent == "penalise" else loss)
        means.append(np.mean(losses))
    return np.mean(means)


def _scipy_sobel(x: np.ndarray) -> np.ndarray:
    """Gradients of one image, (D, *S), for slopes of 1."""
    return np.stack([scipy.ndimage.sobel(x, axis) / (2 * 4 ** (x.ndim - 1)) for axis in range(x.ndim)])


def _loops_sobel(logits, target, magnitudes=False, first=0, eps=1e-6):
    labels, probs = target.numpy(), logits.softmax(1).numpy()
    found = []
    for b, c in itertools.product(range(len(labels)), range(first, probs.shape[1])):
        p, t = _scipy_sobel(probs[b, c]), _scipy_sobel((labels[b] == c).astype(float))
        for n in np.ndindex(labels[b].shape):
            window = [
                tuple(i + s for i, s in zip(n, step, strict=True))
                for step in itertools.product((-1, 0, 1), repeat=len(n))
            ]
            inside = all(0 <= i < s for m in window for i, s in zip(m, labels[b].shape, strict=True))
            if not inside or any(labels[b][m] == 255 for m in window):
                continue
            u, v = p[(slice(None), *n)], t[(slice(None), *n)]
            if magnitudes:
                found.append(abs(math.sqrt((u**2).sum() + eps) - math.sqrt((v**2).sum() + eps)))
            else:
                found.append(math.sqrt(((u - v) ** 2).sum() + eps) - math.sqrt(eps))
    return np.mean(found)


def _loops_active(logits, target, first=0, eps=1e-8):
    """(length, region)."""
    labels, probs = target.numpy(), logits.softmax(1).numpy()
    lengths, regions = [], []
    for b, c in itertools.product(range(len(labels)), range(first, probs.shape[1])):
        p = probs[b, c]
        for n in _voxels(labels[b] != 255):
            t = float(labels[b][n] == c)
            regions.append(p[n] * (1 - t) ** 2 + (1 - p[n]) * (0 - t) ** 2)
            ahead = [tuple(i + (a == axis) for a, i in enumerate(n)) for axis in range(p.ndim)]
            if all(m[a] < p.shape[a] and labels[b][m] != 255 for a, m in enumerate(ahead)):
                lengths.append(math.sqrt(sum((p[m] - p[n]) ** 2 for m in ahead) + eps))
    return np.mean(lengths), np.mean(regions)


# ---- agreement


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_aware_agrees_with_loops(shape: tuple[int, ...], agree) -> None:
    given = _example(shape)
    for weight in (1.0, 2.5):
        ours = _terms(ShapeAware(weight), *given)
        agree("shape_aware", "loops over voxels", ours["loss"], _loops_shape(*given, weight))
        assert ours["shape"] > 0
        assert ours["ce"].item() == pytest.approx(CrossEntropy()(*given[:2]).item(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_dou_agrees_with_loops(shape: tuple[int, ...], agree) -> None:
    logits, target, spacing = _example(shape)
    agree(
        "boundary_dou", "loops over voxels", _value(BoundaryDoU(), logits, target, spacing), _loops_dou(logits, target)
    )
    for absent in ("include", "skip", "penalise"):
        ours = _value(BoundaryDoU(0.1, False, "sample", absent, 1e-2), logits, target, spacing)
        agree("boundary_dou", "loops over voxels", ours, _loops_dou(logits, target, 0.1, False, True, absent, 1e-2))


def test_sobel_agrees_with_kornia(agree) -> None:
    logits, target, spacing = _example(SHAPES[0], ignored=False)
    p, t = logits.softmax(1), _logits_of(target, 4, 1.0)
    inner = (..., slice(1, -1), slice(1, -1))  # kornia replicates the border
    theirs = (kornia.filters.sobel(p) - kornia.filters.sobel(t)).abs()[inner].mean()
    agree("sobel_boundary", "kornia sobel", _value(SobelBoundary("magnitudes"), logits, target, spacing), theirs)
    gradient = kornia.filters.spatial_gradient(p - t)  # (B, C, 2, H, W)
    theirs = ((gradient**2).sum(2) + 1e-6).sqrt()[inner].mean() - 1e-3
    agree("sobel_boundary", "kornia spatial_gradient", _value(SobelBoundary(), logits, target, spacing), theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_sobel_agrees_with_scipy(shape: tuple[int, ...], agree) -> None:
    logits, target, spacing = _example(shape, ignored=len(shape) == 4)
    if len(shape) == 5:
        target[1, -1] = 255
    for compare, background in itertools.product(("vectors", "magnitudes"), (True, False)):
        ours = _value(SobelBoundary(compare, background), logits, target, spacing)
        theirs = _loops_sobel(logits, target, compare == "magnitudes", 0 if background else 1)
        agree("sobel_boundary", "scipy sobel and loops", ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_active_contour_agrees_with_loops(shape: tuple[int, ...], agree) -> None:
    logits, target, spacing = _example(shape)
    for weight, background in ((1.0, True), (2.0, False)):
        ours = _terms(ActiveContour(weight, background), logits, target, spacing)
        length, region = _loops_active(logits, target, 0 if background else 1)
        agree("active_contour", "loops over voxels", ours["loss"], length + weight * region)
        agree("active_contour", "loops over voxels", ours["length"], length)


# ---- by hand and by identity


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_shape_aware_distance_of_a_shifted_edge(shift: int) -> None:
    """An edge moved by s voxels: contour voxels at s - 1 and s from the true ones, s - 1/2 on average."""
    target = torch.zeros(1, 4, 12, dtype=torch.long)
    target[..., 5:] = 1
    guess = torch.zeros_like(target)
    guess[..., 5 + shift :] = 1
    logits = _logits_of(guess, 2, 3.0)
    spacing = torch.full((1, 2), 2.0)
    terms = _terms(ShapeAware(), logits, target, spacing)
    wrong = math.log1p(math.exp(3.0)) * shift / 12
    assert terms["shape"].item() == pytest.approx(2.0 * max(shift - 0.5, 0) * wrong, rel=1e-9)
    assert (terms["loss"] - terms["ce"]).item() == pytest.approx(terms["shape"].item(), abs=1e-12)


def test_shape_aware_is_cross_entropy_without_a_contour() -> None:
    logits, target, spacing = _example(SHAPES[0])
    logits[:, 1] += 50  # one class everywhere
    assert _value(ShapeAware(), logits, target, spacing).item() == CrossEntropy()(logits, target).item()


def _square(size: int, side: int) -> torch.Tensor:
    target = torch.zeros(1, side, side, dtype=torch.long)
    target[:, 1 : 1 + size, 1 : 1 + size] = 1
    return target


def test_dou_alpha_by_hand() -> None:
    """A square of 4 has 12 of 16 voxels at its edge: α = -1/2. One of 2 has all: Dice. A large one is cut off at 0.8."""
    draw = torch.Generator().manual_seed(0)
    for size, alpha in ((2, -1.0), (4, -0.5), (50, 0.8)):  # 50: 196 of 2500, 1 - 2 · .0784 = .8432
        target = _square(size, 54)
        logits = torch.randn(1, 2, 54, 54, generator=draw, dtype=torch.float64)
        p, t = logits.softmax(1)[:, 1], (target == 1).double()
        z, g, both = (p * p).sum(), t.sum(), (p * t).sum()
        wanted = (z + g - 2 * both) / (z + g - (1 + alpha) * both)
        found = BoundaryDoU(background=False, smooth=0)(logits, target)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    full = torch.ones(1, 4, 4, 4, dtype=torch.long)  # the border of the image is an edge: 56 of 64, α = -3/4
    logits = torch.randn(1, 2, 4, 4, 4, generator=draw, dtype=torch.float64)
    p = logits.softmax(1)[:, 1]
    wanted = ((p * p).sum() + 64 - 2 * p.sum()) / ((p * p).sum() + 64 - 0.25 * p.sum())
    found = BoundaryDoU(background=False, smooth=0)(logits, full)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_dou_with_the_least_limit_is_dice_with_squared_sums(shape: tuple[int, ...]) -> None:
    logits, target, _ = _example(shape)
    for options in ({}, {"reduction": "sample", "absent": "skip", "background": False}):
        dou, dice = BoundaryDoU(limit=-1, **options), Dice(squared=True, **options)
        assert dou(logits, target).item() == pytest.approx(dice(logits, target).item(), rel=1e-12)
        assert abs(BoundaryDoU(**options)(logits, target) - dice(logits, target)) > 1e-3


def test_dou_of_an_absent_class() -> None:
    target = _square(3, 8)
    perfect = _logits_of(target, 3)
    assert BoundaryDoU()(perfect, target) < 1e-9  # the authors' code gives 1/3
    perfect[:, 2] += 10 * (target == 0)
    assert BoundaryDoU()(perfect, target) < 1e-6
    wrong = perfect.clone()
    wrong[:, 2, 0] += 60
    kept = BoundaryDoU(absent="skip")(wrong, target)
    assert BoundaryDoU()(wrong, target).item() == pytest.approx((2 * kept.item() + 1) / 3, rel=1e-5)


def test_sobel_of_a_swap_and_of_a_constant() -> None:
    target = _square(3, 8)
    swapped = _logits_of(1 - target, 2)
    ones = torch.ones(1, 2)
    assert _value(SobelBoundary("magnitudes"), swapped, target, ones) < 1e-12
    # vectors: twice the length of the truth's gradient
    t = (target[0] == 1).double().numpy()
    twice = (np.sqrt(4 * (_scipy_sobel(t) ** 2).sum(0) + 1e-6) - 1e-3)[1:-1, 1:-1].mean()
    assert _value(SobelBoundary(), swapped, target, ones).item() == pytest.approx(twice, rel=1e-9)
    empty = torch.zeros_like(target)
    assert _value(SobelBoundary(), _logits_of(empty + 1, 2), empty, ones) < 1e-12
    thin = torch.zeros(1, 2, 8, dtype=torch.long)  # no room for a stencil
    assert _value(SobelBoundary(), _logits_of(thin, 2), thin, ones) == 0


def test_active_contour_by_hand() -> None:
    """A perfect edge of 4 voxels in 4 × 6: length 1 at 3 of the 3 × 5 places that have both neighbours."""
    target = torch.zeros(1, 4, 6, dtype=torch.long)
    target[..., 3:] = 1
    terms = _terms(ActiveContour(), _logits_of(target, 2, 60.0), target, torch.ones(1, 2))
    assert terms["length"].item() == pytest.approx((3 * math.sqrt(1 + 1e-8) + 12 * 1e-4) / 15, rel=1e-9)
    assert terms["region"] < 1e-12 and terms["loss"] > 0.2
    empty = _logits_of(torch.zeros_like(target), 2, 60.0)
    without = _terms(ActiveContour(), empty, target, torch.ones(1, 2))
    assert without["length"].item() == pytest.approx(1e-4) and without["region"].item() == pytest.approx(0.5)


def test_active_contour_region_is_the_mean_absolute_error() -> None:
    logits, target, spacing = _example(SHAPES[1], ignored=False)
    error = (logits.softmax(1) - _logits_of(target, 3, 1.0)).abs().mean()
    assert _terms(ActiveContour(), logits, target, spacing)["region"].item() == pytest.approx(error.item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ignored_voxels_count_for_nothing(name: str, shape: tuple[int, ...]) -> None:
    logits, target, spacing = _example(shape)
    target[target == 255] = 0
    cut = 4
    target[..., cut:] = 255
    logits.requires_grad_()
    value = _value(LOSSES[name], logits, target, spacing)
    (grad,) = torch.autograd.grad(value, logits)
    hidden = (target == 255)[:, None].expand_as(grad)
    assert not grad[hidden].any() and grad[~hidden].any()
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
        lambda: ShapeAware(-1),
        lambda: BoundaryDoU(limit=1),
        lambda: BoundaryDoU(limit=-2),
        lambda: BoundaryDoU(reduction="none"),  # type: ignore[arg-type]
        lambda: BoundaryDoU(absent="none"),  # type: ignore[arg-type]
        lambda: SobelBoundary("lengths"),  # type: ignore[arg-type]
        lambda: SobelBoundary(eps=0),
        lambda: ActiveContour(region_weight=-1),
        lambda: ActiveContour(eps=0),
    ],
)
def test_bad_arguments(make) -> None:
    with pytest.raises(ValueError, match="found"):
        make()
