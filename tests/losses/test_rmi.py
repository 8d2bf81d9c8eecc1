"""Region mutual information against loops over neighbourhoods with plain inverses and determinants."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from harness.losses.rmi import RMI

Agree = Callable[..., None]

EPS = 5e-4


def _example(shape: tuple[int, ...], ignored: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    target[torch.rand(target.shape, generator=chance) < ignored] = 255
    return logits, target


def _pool(image: np.ndarray, valid: np.ndarray, size: int, pool: str) -> tuple[np.ndarray, np.ndarray]:
    shape = [n // size for n in image.shape]
    values, whole = np.zeros(shape), np.zeros(shape, bool)
    for cell in itertools.product(*map(range, shape)):
        box = tuple(slice(i * size, (i + 1) * size) for i in cell)
        values[cell] = image[box].max() if pool == "max" else image[box].mean()
        whole[cell] = valid[box].all()
    return values, whole


def _vectors(image: np.ndarray, whole: np.ndarray, radius: int) -> np.ndarray:
    rows = []
    for corner in itertools.product(*(range(n - radius + 1) for n in image.shape)):
        box = tuple(slice(i, i + radius) for i in corner)
        if whole[box].all():
            rows.append(image[box].ravel())
    return np.array(rows)


def _reference(
    logits: torch.Tensor, target: torch.Tensor, radius: int, pool: str, size: int, weight: float
) -> tuple[float, float, float]:
    z, y = logits.numpy(), target.numpy()
    p = 1 / (1 + np.exp(-z))
    bce, voxels = 0.0, 0
    for place in itertools.product(*map(range, y.shape)):
        if y[place] != 255:
            voxels += 1
            for c in range(z.shape[1]):
                q = p[(place[0], c, *place[1:])]
                bce -= math.log(q if y[place] == c else 1 - q)
    bce /= voxels
    images = []
    for b in range(len(y)):
        total, found = 0.0, True
        for c in range(z.shape[1]):
            label, whole = _pool((y[b] == c).astype(float), y[b] != 255, size, pool)
            map_, _ = _pool(p[b, c], y[b] != 255, size, pool)
            t, q = _vectors(label, whole, radius), _vectors(map_, whole, radius)
            if not len(t):
                found = False
                break
            t, q = t - t.mean(0), q - q.mean(0)
            eye = np.eye(t.shape[1])
            a = t.T @ t - t.T @ q @ np.linalg.inv(q.T @ q + EPS * eye) @ q.T @ t
            sign, logdet = np.linalg.slogdet(a + EPS * eye)
            assert sign > 0
            total += logdet / 2 / t.shape[1]
        if found:
            images.append(total)
    rmi = float(np.mean(images))
    return weight * bce + (1 - weight) * rmi, bce, rmi


@pytest.mark.parametrize(
    ("shape", "options", "ignored"),
    [
        ((2, 3, 20, 17), {}, 0.0),
        ((2, 4, 20, 17), {}, 0.02),
        ((2, 4, 18, 15), {"pool": "mean", "bce_weight": 0.3}, 0.02),
        ((2, 2, 13, 14), {"pool": "mean", "pool_size": 2, "radius": 2}, 0.05),
        ((2, 3, 7, 8), {"pool_size": 1, "radius": 2}, 0.1),
        ((2, 3, 12, 11, 13), {}, 0.0),
        ((2, 3, 8, 9, 8), {"pool_size": 2, "radius": 2}, 0.02),
        ((1, 2, 8, 9, 8), {"pool": "mean", "pool_size": 2, "radius": 3}, 0.0),
    ],
)
def test_agreement_with_loops(agree: Agree, shape: tuple[int, ...], options: dict, ignored: float) -> None:
    logits, target = _example(shape, ignored)
    settings = {"radius": 3, "pool": "max", "pool_size": 3, "bce_weight": 0.5} | options
    total, bce, rmi = _reference(logits, target, *settings.values())
    terms = RMI(**options)(logits, target)
    agree("rmi", "loops over neighbourhoods", terms["loss"], total)
    agree("rmi", "loops over neighbourhoods", terms["rmi"], rmi)
    agree("rmi", "loops over neighbourhoods", terms["bce"], bce)


def test_by_hand() -> None:
    # radius 1, no pooling: scalars. Two voxels, labels 0 and 1, each class's p is 3/4 where right and 1/4 where wrong:
    # S_tt = 1/2, S_pp = 1/8, S_tp = 1/4: A = 1/2 - 1/16 / (1/8 + ε)
    ln3 = math.log(3)
    logits = torch.tensor([[[[ln3, -ln3]], [[-ln3, ln3]]]], dtype=torch.float64)
    terms = RMI(radius=1, pool_size=1)(logits, torch.tensor([[[0, 1]]]))
    left = 0.5 - 0.0625 / (0.125 + EPS)
    assert terms["rmi"].item() == pytest.approx(2 * 0.5 * math.log(left + EPS), rel=1e-9)
    assert terms["bce"].item() == pytest.approx(-2 * math.log(0.75), rel=1e-12)
    assert terms["loss"].item() == pytest.approx((terms["bce"] + terms["rmi"]).item() / 2, rel=1e-12)


def test_a_perfect_prediction_leaves_what_epsilon_leaves() -> None:
    """P = T: A = S - S (S + εI)⁻¹ S ≈ ε, so each class gives half of ln 2ε: the loss is negative."""
    _, target = _example((1, 3, 60, 60))
    logits = 40 * (2 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double() - 1)
    terms = RMI(pool="mean")(logits, target)
    assert terms["rmi"].item() == pytest.approx(3 * math.log(2 * EPS) / 2, rel=1e-3)
    assert terms["loss"] < 0


def test_the_term_does_not_care_about_the_sign_of_the_dependence() -> None:
    logits, target = _example((1, 2, 18, 18))
    loss = RMI(pool="mean")
    assert loss(-logits, target)["rmi"].item() == pytest.approx(loss(logits, target)["rmi"].item(), rel=1e-9)


def test_finite_where_a_difference_of_matrices_loses_its_sign() -> None:
    """Smooth maps of a large image: S_PP is of rank 1 but for ε, and its norm is 10⁸ times ε."""
    chance = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-30, 30, 300, dtype=torch.float64).expand(1, 1, 300, 300)
    logits = torch.cat([ramp, -ramp], 1) + 1e-9 * torch.randn(1, 2, 300, 300, generator=chance, dtype=torch.float64)
    logits.requires_grad_()
    target = (ramp[:, 0] < 0).long()
    value = RMI(pool_size=1)(logits, target)["loss"]
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_images_too_small_or_without_a_whole_neighbourhood_have_cross_entropy_alone() -> None:
    logits, target = _example((2, 3, 8, 20))  # 8 // 3 = 2 cells, three are needed
    logits.requires_grad_()
    terms = RMI()(logits, target)
    assert terms["rmi"].item() == 0
    assert terms["loss"].item() == pytest.approx(terms["bce"].item() / 2, rel=1e-12)
    terms["loss"].backward()
    assert logits.grad.abs().max() > 0
    logits, target = _example((2, 3, 20, 20))
    alone = RMI()(logits[:1], target[:1])["rmi"].item()
    target[1, ::4, ::4] = 255
    assert RMI()(logits, target)["rmi"].item() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_gradient_and_ignored_voxels(pool: str) -> None:
    logits, target = _example((1, 2, 10, 9))
    target[0, 0, 0] = 255
    loss = RMI(radius=2, pool=pool, pool_size=2)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target)["loss"], logits)
    (gradient,) = torch.autograd.grad(loss(logits, target)["loss"], logits)
    assert gradient[0, :, 0, 0].abs().max() == 0
    assert gradient[0, :, 0, 1].abs().min() > 0
    value = loss(logits, torch.full_like(target, 255))["loss"]
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("options", [{"radius": 0}, {"pool_size": 0}, {"pool": "min"}, {"bce_weight": 1.1}])
def test_constructor_errors(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RMI(**options)
