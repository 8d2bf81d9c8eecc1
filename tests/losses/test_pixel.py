"""Cross-entropy and focal loss against torch, MONAI, loops over voxels and arithmetic by hand."""

import math

import numpy as np
import pytest
import torch
from monai.losses import FocalLoss
from torch.nn import functional as F

from harness.errors import BenchError
from harness.losses import CrossEntropy, Focal

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]
LN2, LN3 = math.log(2), math.log(3)


def _example(shape: tuple[int, ...], ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.3] = 255
    return logits, target


def _four() -> tuple[torch.Tensor, torch.Tensor]:
    # p of class 1: 3/4, 1/2, 1/4, 3/4; labels 1, 1, 1, 0: p of the true class: 3/4, 1/2, 1/4, 1/4
    logits = torch.tensor([[[0.0, 0, 0, 0], [LN3, 0, -LN3, LN3]]], dtype=torch.float64)
    return logits, torch.tensor([[1, 1, 1, 0]])


def _focal_by_voxels(logits: torch.Tensor, target: torch.Tensor, gamma: float, alpha: list[float] | None) -> float:
    z, y = logits.flatten(2).numpy(), target.flatten(1).numpy()
    total, voxels = 0.0, 0
    for b in range(z.shape[0]):
        for n in range(z.shape[2]):
            if y[b, n] == 255:
                continue
            e = [math.exp(v) for v in z[b, :, n]]
            p = e[y[b, n]] / sum(e)
            total += -(alpha[y[b, n]] if alpha else 1) * (1 - p) ** gamma * math.log(p)
            voxels += 1
    return total / voxels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_torch(shape: tuple[int, ...], ignored: bool, weighted: bool) -> None:
    logits, target = _example(shape, ignored)
    weight = torch.arange(1, shape[1] + 1, dtype=torch.float64) if weighted else None
    logits.requires_grad_()
    value = CrossEntropy(weight)(logits, target)
    expected = F.cross_entropy(logits, target, weight, ignore_index=255)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(v, logits)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)


def test_cross_entropy_by_hand() -> None:
    logits, target = _four()
    # ln 4/3 + ln 2 + ln 4 + ln 4 = ln(4/3 · 2 · 4 · 4) = ln(128/3); mean over 4
    assert CrossEntropy()(logits, target).item() == pytest.approx(math.log(128 / 3) / 4, rel=1e-12)
    # weights 3 (class 0), 1: (ln 4/3 + ln 2 + ln 4 + 3 ln 4) / (1 + 1 + 1 + 3)
    weighted = CrossEntropy(torch.tensor([3.0, 1.0]))(logits, target).item()
    assert weighted == pytest.approx((math.log(4 / 3) + LN2 + 4 * math.log(4)) / 6, rel=1e-12)
    # the third voxel ignored: (ln 4/3 + ln 2 + ln 4) / 3
    target[0, 2] = 255
    assert CrossEntropy()(logits, target).item() == pytest.approx(math.log(4 / 3 * 8) / 3, rel=1e-12)


def test_focal_by_hand() -> None:
    logits, target = _four()
    # (1 - p)²: 1/16, 1/4, 9/16, 9/16: (ln(4/3)/16 + ln(2)/4 + 2 · 9/16 · ln 4) / 4
    expected = (math.log(4 / 3) / 16 + LN2 / 4 + 9 / 8 * math.log(4)) / 4
    assert Focal()(logits, target).item() == pytest.approx(expected, rel=1e-12)
    # alpha 1/4 for class 0, 3/4 for class 1; the mean stays over 4 voxels
    expected = (0.75 * (math.log(4 / 3) / 16 + LN2 / 4 + 9 / 16 * math.log(4)) + 0.25 * 9 / 16 * math.log(4)) / 4
    assert Focal(alpha=torch.tensor([0.25, 0.75]))(logits, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_is_the_loop_over_voxels(shape: tuple[int, ...], gamma: float, weighted: bool) -> None:
    logits, target = _example(shape, ignored=True)
    alpha = [0.2 + 0.3 * c for c in range(shape[1])] if weighted else None
    loss = Focal(gamma, torch.tensor(alpha, dtype=torch.float64) if alpha else None)
    assert loss(logits, target).item() == pytest.approx(_focal_by_voxels(logits, target, gamma, alpha), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_focal_is_classes_times_that_of_monai(shape: tuple[int, ...]) -> None:
    """MONAI's mean is over voxels and classes, of which only the true one is not 0."""
    logits, target = _example(shape)
    theirs = FocalLoss(to_onehot_y=True, use_softmax=True)(logits, target[:, None])
    # MONAI computes in float32
    assert Focal()(logits, target).item() == pytest.approx(shape[1] * theirs.item(), rel=1e-5)


@pytest.mark.parametrize("ignored", [False, True])
def test_focal_of_gamma_0_is_cross_entropy(ignored: bool) -> None:
    logits, target = _example(SHAPES[0], ignored)
    torch.testing.assert_close(Focal(0)(logits, target), CrossEntropy()(logits, target), rtol=1e-12, atol=0)
    # Jadon, 2020: "gamma = 1 works like cross-entropy" is an error
    assert Focal(1)(logits, target).item() < 0.9 * CrossEntropy()(logits, target).item()


def test_the_focal_of_the_survey_is_another_number() -> None:
    """Its released code multiplies (N, 1) by (N,): the product of two means, with N x N in memory."""
    logits, target = _example(SHAPES[0])
    log_p = logits.log_softmax(1).gather(1, target[:, None]).flatten()
    broken = (((1 - log_p.exp()) ** 2)[:, None] * -log_p[None]).mean()
    assert abs(Focal()(logits, target).item() - broken.item()) > 0.1 * broken.item()


def test_a_gamma_below_1_has_a_finite_gradient_at_the_optimum() -> None:
    logits = torch.tensor([[[-1e4, 0.0], [1e4, 0.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Focal(0.5)(logits, torch.tensor([[1, 1]])), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1, 1] < 0


@pytest.mark.parametrize("loss", [CrossEntropy(torch.ones(4)), CrossEntropy(torch.ones(2)), Focal(2, torch.ones(4))])
def test_as_many_class_weights_as_classes(loss: torch.nn.Module) -> None:
    logits, target = _example(SHAPES[0])
    with pytest.raises(BenchError, match="3 classes"):
        loss(logits, target)


def test_weights_move_with_the_module_but_are_not_saved() -> None:
    loss = CrossEntropy(torch.ones(3)).double()
    assert loss.weight is not None and loss.weight.dtype == torch.float64
    assert not loss.state_dict()


def test_every_weight_0_is_a_loss_of_0() -> None:
    logits, target = _example(SHAPES[0])
    value = CrossEntropy(torch.zeros(3))(logits.requires_grad_(), target)
    assert value.item() == 0
    assert np.all(torch.autograd.grad(value, logits)[0].numpy() == 0)
