"""The T-loss against scipy's multivariate t distribution, its limits and its learned parameter."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from harness.losses.t_loss import TLoss

Agree = Callable[..., None]

SHAPES = [(2, 4, 5, 4), (2, 3, 3, 3, 2), (3, 2, 4, 4)]


def _example(shape: tuple[int, ...], ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.3] = 255
    return logits, target


def _residuals(logits: torch.Tensor, target: torch.Tensor, first: int) -> list[np.ndarray]:
    """p - t of each image, one number for each valid voxel and class from `first` on."""
    z, y = logits.flatten(2).numpy(), target.flatten(1).numpy()
    out = []
    for b in range(len(y)):
        numbers = []
        for n in range(y.shape[1]):
            if y[b, n] != 255:
                p = np.exp(z[b, :, n]) / np.exp(z[b, :, n]).sum()
                numbers += [p[c] - (y[b, n] == c) for c in range(first, len(p))]
        out.append(np.array(numbers))
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("nu", [math.e, 0.3, 40.0])
def test_agreement_with_scipy(agree: Agree, shape: tuple[int, ...], ignored: bool, background: bool, nu: float) -> None:
    logits, target = _example(shape, ignored)
    residuals = _residuals(logits, target, 0 if background else 1)
    values = [-multivariate_t(np.zeros(len(d)), np.eye(len(d)), df=nu).logpdf(d) for d in residuals]
    loss = TLoss(nu, background, "image")
    agree("t_loss", "scipy.stats.multivariate_t", loss(logits, target), np.mean(values))
    shares = [v / len(d) for v, d in zip(values, residuals, strict=True)]
    agree("t_loss", "scipy.stats.multivariate_t", TLoss(nu, background)(logits, target), np.mean(shares))


def test_by_hand() -> None:
    # one voxel, two classes, p of the true class 1/4: d = -3/4; ν = 1, D = 1: the Cauchy density 1 / (π (1 + d²))
    logits = torch.tensor([[[3.0], [1.0]]], dtype=torch.float64).log()
    value = TLoss(1.0)(logits, torch.tensor([[1]]))
    assert value.item() == pytest.approx(math.log(math.pi * (1 + 9 / 16)), rel=1e-12)


def test_a_large_nu_is_the_squared_error() -> None:
    """The survey has it the other way round."""
    logits, target = _example(SHAPES[0])
    residuals = _residuals(logits, target, 1)
    expected = np.mean([(d @ d) / 2 + len(d) / 2 * math.log(2 * math.pi) for d in residuals])
    assert TLoss(1e7, reduction="image")(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_a_far_image_weighs_less_than_under_the_squared_error() -> None:
    # gradient of an image to its residual: (ν + D) d / (ν + |d|²)
    logits, target = _example((2, 2, 4, 4))
    logits[0] = 6 * torch.stack([2.0 * (target[0] > 0) - 1, 1 - 2.0 * (target[0] > 0)])  # confidently wrong
    logits.requires_grad_()
    probs = logits.softmax(1)[:, 1]
    residual = (probs - target).flatten(1)
    for nu in (0.5, math.e):
        (gradient,) = torch.autograd.grad(TLoss(nu, reduction="image")(logits, target), logits, retain_graph=True)
        weight = (nu + 16) / (nu + residual.square().sum(1)).detach() / 2
        assert weight[0] < weight[1]
        (expected,) = torch.autograd.grad((residual.square().sum(1) / 2 * weight).sum(), logits, retain_graph=True)
        assert torch.allclose(gradient, expected, rtol=1e-9)


def test_nu_is_learned() -> None:
    logits, target = _example(SHAPES[0])
    loss = TLoss()
    assert [name for name, p in loss.named_parameters() if p.requires_grad] == ["log_nu"]
    assert loss.lr == 1e-3
    assert loss.state_dict()["log_nu"].item() == pytest.approx(1)
    loss(logits, target).backward()
    values = []
    for step in (1e-2, -1e-2):
        values.append(TLoss(math.exp(1 + step))(logits, target).item())
    assert loss.log_nu.grad.item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-3)


def test_large_images_in_single_precision() -> None:
    """ln Γ is of the order of D ln D: in float32 the value would be lost."""
    logits, target = _example((1, 2, 256, 256))
    wanted = TLoss()(logits, target).item()
    assert TLoss()(logits.float(), target).item() == pytest.approx(wanted, rel=1e-5)


def test_images_without_a_valid_voxel_do_not_count() -> None:
    logits, target = _example((2, 3, 4, 4))
    alone = TLoss()(logits[:1], target[:1]).item()
    target[1] = 255
    assert TLoss()(logits, target).item() == pytest.approx(alone, rel=1e-12)
    target[0] = 255
    logits.requires_grad_()
    value = TLoss()(logits, target)
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_gradient() -> None:
    logits, target = _example((2, 3, 3, 3), ignored=True)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: TLoss()(z, target), logits)
    (gradient,) = torch.autograd.grad(TLoss()(logits, target), logits)
    assert (gradient * (target == 255)[:, None]).abs().max() == 0


@pytest.mark.parametrize("options", [{"nu": 0.0}, {"nu": -1.0}, {"nu": math.inf}, {"reduction": "mean"}])
def test_constructor_errors(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TLoss(**options)
