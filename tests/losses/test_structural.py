"""The structural similarity loss against loops over windows."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from harness.losses.structural import StructuralSimilarity

Agree = Callable[..., None]


def _example(shape: tuple[int, ...], ignored: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    target[:, 2:6, 1:5] = 1  # windows in which the label is constant
    target[torch.rand(target.shape, generator=chance) < ignored] = 255
    return logits, target


def _normalised(values: np.ndarray, weights: np.ndarray, centre: float) -> float:
    mean = (weights * values).sum()
    deviation = math.sqrt((weights * (values - mean) ** 2).sum())
    return (centre - mean + 0.01) / (deviation + 0.01)


def _reference(
    logits: torch.Tensor, target: torch.Tensor, beta: float = 0.1, window: int = 3, sigma: float = 1.5
) -> float:
    z, y = logits.numpy(), target.numpy()
    half, dims = window // 2, y.ndim - 1
    offsets = list(itertools.product(range(-half, half + 1), repeat=dims))
    weights = np.array([math.exp(-sum(o * o for o in offset) / (2 * sigma**2)) for offset in offsets])
    weights /= weights.sum()
    errors, entropies = [], []
    for b in range(len(y)):
        for place in itertools.product(*(range(half, n - half) for n in y.shape[1:])):
            around = [(b, *(i + o for i, o in zip(place, offset, strict=True))) for offset in offsets]
            if any(y[q] == 255 for q in around):
                continue
            for c in range(z.shape[1]):
                t = np.array([float(y[q] == c) for q in around])
                p = np.array([1 / (1 + math.exp(-z[(q[0], c, *q[1:])])) for q in around])
                here = around.index((b, *place))
                errors.append(abs(_normalised(t, weights, t[here]) - _normalised(p, weights, p[here])))
                entropies.append(-math.log(p[here] if t[here] else 1 - p[here]))
    hard = [e > beta * max(errors) for e in errors]
    return sum(e * h for e, f, h in zip(errors, hard, entropies, strict=True) if f) / sum(hard)


@pytest.mark.parametrize(
    ("shape", "options", "ignored"),
    [
        ((2, 4, 9, 8), {}, 0.0),
        ((2, 3, 9, 8), {}, 0.05),
        ((2, 3, 11, 10), {"window": 5, "sigma": 2.0, "beta": 0.3}, 0.01),
        ((1, 2, 9, 8), {"beta": 0.0}, 0.05),
        ((2, 3, 6, 7, 5), {}, 0.0),
        ((2, 3, 6, 7, 5), {"beta": 0.5}, 0.02),
    ],
)
def test_agreement_with_loops(agree: Agree, shape: tuple[int, ...], options: dict, ignored: float) -> None:
    logits, target = _example(shape, ignored)
    expected = _reference(logits, target, **options)
    agree("structural_similarity", "loops over windows", StructuralSimilarity(**options)(logits, target), expected)
    detached = StructuralSimilarity(detach=True, **options)
    agree("structural_similarity", "loops over windows", detached(logits, target), expected)


def test_by_hand() -> None:
    # one window of 3 x 3 with equal weights; label 1 in the centre, prediction 3/4 there and 1/4 around
    # class 1: t: mean 1/9, variance 8/81; p: mean 1/4 + 1/18, deviation half of t's
    logits = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    logits[0, 1] = -math.log(3)
    logits[0, 1, 1, 1] = math.log(3)
    logits[0, 0] = -logits[0, 1]  # class 0 mirrors it: the same error at the centre but for C4
    target = torch.zeros(1, 3, 3, dtype=torch.int64)
    target[0, 1, 1] = 1
    deviation, difference = math.sqrt(8) / 9, 8 / 9
    one = abs((difference + 0.01) / (deviation + 0.01) - (difference / 2 + 0.01) / (deviation / 2 + 0.01))
    zero = abs((-difference + 0.01) / (deviation + 0.01) - (-difference / 2 + 0.01) / (deviation / 2 + 0.01))
    expected = (one + zero) / 2 * -math.log(0.75)
    assert StructuralSimilarity(sigma=1e6)(logits, target).item() == pytest.approx(expected, rel=1e-9)


def test_only_hard_voxels_count() -> None:
    logits, target = _example((1, 3, 9, 8))
    values = [StructuralSimilarity(beta)(logits, target).item() for beta in (0.0, 0.5, 0.9)]
    # fewer voxels, the mean of larger errors
    assert values[0] < values[1] < values[2]


def test_zero_where_nothing_is_wrong_or_no_window_fits() -> None:
    target = torch.zeros(1, 5, 5, dtype=torch.int64)
    flat = torch.zeros(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    # a constant prediction of a constant label correlates perfectly, however wrong it is
    value = StructuralSimilarity()(flat, target)
    value.backward()
    assert value.item() == 0
    assert flat.grad.abs().max() == 0
    logits, target = _example((2, 3, 9, 8))
    truth = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    assert StructuralSimilarity()(60 * (2 * truth - 1), target).item() == pytest.approx(0, abs=1e-12)
    logits.requires_grad_()
    for hidden in (torch.full_like(target, 255), target[:, :2]):
        value = StructuralSimilarity()(logits[:, :, : hidden.shape[1]], hidden)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0
        assert gradient.abs().max() == 0


def test_detach_keeps_the_gradient_of_the_weighted_cross_entropy() -> None:
    logits, target = _example((1, 3, 9, 8))
    logits.requires_grad_()
    whole, weighted = StructuralSimilarity(), StructuralSimilarity(detach=True)
    assert whole(logits, target).item() == weighted(logits, target).item()
    (a,) = torch.autograd.grad(whole(logits, target), logits)
    (b,) = torch.autograd.grad(weighted(logits, target), logits)
    truth = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    # as a weight: always towards the truth, and nothing at voxels without a whole window
    inner = b[:, :, 1:-1, 1:-1]
    assert (inner * (1 - 2 * truth[:, :, 1:-1, 1:-1])).min() >= 0
    assert b[:, :, 0].abs().max() == 0
    assert not torch.allclose(a, b)


def test_single_precision_of_saturated_predictions() -> None:
    """Near p = 1 the rounding of E[p²] - μ² in float32 would look like a deviation of some 3e-4."""
    logits, target = _example((1, 3, 9, 8))
    logits = 12 + logits
    wanted = StructuralSimilarity()(logits, target).item()
    assert StructuralSimilarity()(logits.float(), target).item() == pytest.approx(wanted, rel=1e-4)


def test_gradient_and_ignored_voxels() -> None:
    logits, target = _example((1, 2, 6, 6))
    target[0, 0, 0] = 255
    loss = StructuralSimilarity(beta=0.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    assert gradient[0, :, 0, 0].abs().max() == 0
    assert gradient[0, :, 2, 2].abs().min() > 0


@pytest.mark.parametrize("options", [{"beta": -0.1}, {"beta": 1.0}, {"window": 4}, {"window": 1}, {"sigma": 0.0}])
def test_constructor_errors(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        StructuralSimilarity(**options)
