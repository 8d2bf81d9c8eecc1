"""The unified focal losses against unified-focal-loss-pytorch, MONAI and loops over voxels."""

import importlib
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from monai.losses import AsymmetricUnifiedFocalLoss as Monai
from monai.losses.unified_focal_loss import AsymmetricFocalLoss as MonaiFocal
from monai.losses.unified_focal_loss import AsymmetricFocalTverskyLoss as MonaiTversky

from harness.losses.dice import Dice
from harness.losses.pixel import CrossEntropy, Focal
from harness.losses.region import FocalTversky
from harness.losses.unified_focal import AsymmetricUnifiedFocal, SymmetricUnifiedFocal

Agree = Callable[..., None]

SHAPES = [(2, 4, 6, 5), (2, 3, 3, 4, 5)]
LOSSES = {"symmetric_unified_focal": SymmetricUnifiedFocal, "asymmetric_unified_focal": AsymmetricUnifiedFocal}


@pytest.fixture(scope="module")
def theirs() -> Iterator[ModuleType]:
    """unified-focal-loss-pytorch: all that it wants of einops is to flatten."""

    def rearrange(values: torch.Tensor, pattern: str) -> torch.Tensor:
        return values.flatten() if pattern == "n ... -> (n ...)" else values.movedim(1, -1).flatten(0, -2)

    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("einops") is None:
            patch.setitem(sys.modules, "einops", SimpleNamespace(rearrange=rearrange))
        yield importlib.import_module("unified_focal_loss")


def _example(shape: tuple[int, ...], ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.3] = 255
    return logits, target


def _reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    asymmetric: bool,
    weight: float,
    delta: float,
    gamma: float,
    sample: bool,
) -> float:
    """The loss in loops, s = 1e-5."""
    z, y = logits.flatten(2).numpy(), target.flatten(1).numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    classes = range(z.shape[1])
    focal, voxels = 0.0, 0
    for b, n in itertools.product(*map(range, y.shape)):
        label = y[b, n]
        if label != 255:
            q = p[b, label, n]
            easy = 1.0 if asymmetric and label > 0 else (1 - q) ** gamma
            focal -= (delta if label > 0 else 1 - delta) * easy * math.log(q)
            voxels += 1
    values = []
    for group in [[b] for b in range(len(y))] if sample else [list(range(len(y)))]:
        for c in classes:
            tp = fp = fn = 0.0
            for b, n in itertools.product(group, range(y.shape[1])):
                if y[b, n] != 255:
                    q, t = p[b, c, n], float(y[b, n] == c)
                    tp, fp, fn = tp + t * q, fp + (1 - t) * q, fn + t * (1 - q)
            index = (tp + 1e-5) / (tp + delta * fn + (1 - delta) * fp + 1e-5)
            values.append((1 - index) ** (1.0 if asymmetric and c == 0 else 1 - gamma))
    return weight * focal / voxels + (1 - weight) * float(np.mean(values))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_agreement_with_loops(agree: Agree, name: str, shape: tuple[int, ...], reduction: str) -> None:
    logits, target = _example(shape, ignored=True)
    asymmetric, sample = name.startswith("a"), reduction == "sample"
    expected = _reference(logits, target, asymmetric, 0.5, 0.6, 0.5, sample)
    agree(name, "loops over voxels", LOSSES[name](reduction=reduction)(logits, target)["loss"], expected)
    expected = _reference(logits, target, asymmetric, 0.3, 0.7, 0.2, sample)
    agree(name, "loops over voxels", LOSSES[name](0.3, 0.7, 0.2, reduction)(logits, target)["loss"], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_focal_parts_agree_with_the_package(agree: Agree, theirs: ModuleType, shape: tuple[int, ...]) -> None:
    logits, target = _example(shape, ignored=True)
    for name, cls in LOSSES.items():
        reference = theirs.SymmetricFocalLoss if name.startswith("s") else theirs.AsymmetricFocalLoss
        expected = reference(delta=0.7, gamma=0.75, ignore_index=255)(logits.softmax(1), target)
        ours = cls(delta=0.7, gamma=0.75)(logits, target)["focal"]
        agree(name, "unified-focal-loss-pytorch, focal part", ours, expected)


def test_the_whole_agrees_with_the_package_on_images_of_one_voxel(agree: Agree, theirs: ModuleType) -> None:
    """It takes the Tversky index of each voxel: with one voxel an image that is the index of the class."""
    logits, target = _example(SHAPES[0])
    logits, target = logits.movedim(1, -1).reshape(-1, 4, 1, 1), target.reshape(-1, 1, 1)
    reference = theirs.SymmetricUnifiedFocalLoss(weight=0.3, delta=0.6, gamma=0.5)  # its weight: of the Tversky part
    ours = SymmetricUnifiedFocal(0.7, 0.6, 0.5, "sample", smooth=1e-8)(logits, target)["loss"]
    agree("symmetric_unified_focal", "unified-focal-loss-pytorch", ours, reference(logits.softmax(1), target))
    # its asymmetric form gives false positives the weight delta too: right at 1/2
    reference = theirs.AsymmetricUnifiedFocalLoss(weight=0.3, delta=0.5, gamma=0.5)
    ours = AsymmetricUnifiedFocal(0.7, 0.5, 0.5, "sample", smooth=1e-8)(logits, target)["loss"]
    agree("asymmetric_unified_focal", "unified-focal-loss-pytorch", ours, reference(logits.softmax(1), target))


@pytest.mark.parametrize("shape", [(2, 2, 6, 5), (2, 2, 3, 4, 5)])
def test_agreement_with_monai(agree: Agree, shape: tuple[int, ...]) -> None:
    logits, target = _example(shape)
    probs = logits.softmax(1)  # it says logits, and applies nothing
    terms = AsymmetricUnifiedFocal(0.3, 0.7, 0.4, "sample", smooth=1e-7)(logits, target)
    both = Monai(weight=0.3, delta=0.7, gamma=0.4, to_onehot_y=True)(probs, target[:, None])
    # its focal part is a mean over the two classes where the authors sum: half
    focal = 2 * MonaiFocal(delta=0.7, gamma=0.4, to_onehot_y=True)(probs, target[:, None])
    agree("asymmetric_unified_focal", "MONAI AsymmetricFocalLoss, doubled", terms["focal"], focal)
    oracle = "MONAI AsymmetricUnifiedFocalLoss, focal part doubled"
    agree("asymmetric_unified_focal", oracle, terms["loss"], both + 0.3 * focal / 2)
    tversky = MonaiTversky(delta=0.7, gamma=0.4, to_onehot_y=True)(probs, target[:, None])
    agree("asymmetric_unified_focal", "MONAI AsymmetricFocalTverskyLoss", terms["focal_tversky"], tversky)


def test_by_hand() -> None:
    # p of class 1: 3/4 and 1/2, labels 1 and 0
    ln3 = math.log(3)
    logits, target = torch.tensor([[[0.0, 0], [ln3, 0]]], dtype=torch.float64), torch.tensor([[1, 0]])
    # focal, δ = .6, γ = .5: (.6 · (1/4)^.5 · ln 4/3 + .4 · (1/2)^.5 · ln 2) / 2; asymmetric: .6 ln 4/3 in place
    fore, back = 0.6 * math.log(4 / 3), 0.4 * math.sqrt(0.5) * math.log(2)
    # class 1: TP 3/4, FN 1/4, FP 1/2: errors .6/4 + .4/2 = .35; class 0: TP 1/2, FN 1/2, FP 1/4: .3 + .1 = .4
    one, zero = 0.35 / 1.1, 0.4 / 0.9
    terms = SymmetricUnifiedFocal(smooth=0)(logits, target)
    assert terms["focal"].item() == pytest.approx((fore / 2 + back) / 2, rel=1e-12)
    assert terms["focal_tversky"].item() == pytest.approx((math.sqrt(one) + math.sqrt(zero)) / 2, rel=1e-12)
    assert terms["loss"].item() == pytest.approx((terms["focal"] + terms["focal_tversky"]).item() / 2, rel=1e-12)
    terms = AsymmetricUnifiedFocal(smooth=0)(logits, target)
    assert terms["focal"].item() == pytest.approx((fore + back) / 2, rel=1e-12)
    assert terms["focal_tversky"].item() == pytest.approx((math.sqrt(one) + zero) / 2, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"reduction": "sample"}, {"absent": "skip"}, {"absent": "penalise"}])
def test_special_cases_are_other_losses(shape: tuple[int, ...], options: dict) -> None:
    logits, target = _example(shape, ignored=True)
    target[target == 2] = 0  # class 2 is absent

    def value(loss: torch.nn.Module) -> float:
        out = loss(logits, target)
        return (out["loss"] if isinstance(out, dict) else out).item()

    ce = value(CrossEntropy())
    dice = value(Dice(**{**options, "smooth": 2e-5}))  # the s of Dice counts as half
    for cls in LOSSES.values():
        assert value(cls(1.0, 0.5, 0.0, **options)) == pytest.approx(ce / 2, rel=1e-12)
        assert value(cls(0.0, 0.5, 0.0, **options)) == pytest.approx(dice, rel=1e-12)
        assert value(cls(0.3, 0.5, 0.0, **options)) == pytest.approx(0.3 * ce / 2 + 0.7 * dice, rel=1e-12)
    assert value(SymmetricUnifiedFocal(1.0, 0.5, 0.4, **options)) == pytest.approx(value(Focal(0.4)) / 2, rel=1e-12)
    tversky = value(FocalTversky(0.3, 0.7, 1 / 0.6, **options))
    assert value(SymmetricUnifiedFocal(0.0, 0.7, 0.4, **options)) == pytest.approx(tversky, rel=1e-12)
    same = value(SymmetricUnifiedFocal(0.5, 0.7, 0.0, **options))
    assert value(AsymmetricUnifiedFocal(0.5, 0.7, 0.0, **options)) == pytest.approx(same, rel=1e-12)


@pytest.mark.parametrize("cls", LOSSES.values())
def test_zero_with_a_finite_gradient_at_the_truth(cls: type) -> None:
    _, target = _example(SHAPES[0])
    truth = torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    for scale, dtype in itertools.product((20.0, 1e4), (torch.float32, torch.float64)):
        logits = (scale * truth).to(dtype).requires_grad_()
        value = cls()(logits, target)["loss"]
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-4)
        assert logits.grad.isfinite().all()
    assert value.item() == 0


@pytest.mark.parametrize("cls", LOSSES.values())
def test_gradient_and_ignored_voxels(cls: type) -> None:
    logits, target = _example((2, 3, 3, 4), ignored=True)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cls()(z, target)["loss"], logits)
    (gradient,) = torch.autograd.grad(cls()(logits, target)["loss"], logits)
    assert (gradient * (target == 255)[:, None]).abs().max() == 0
    value = cls()(logits, torch.full_like(target, 255))["loss"]
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{"focal_weight": -0.1}, {"delta": 1.1}, {"gamma": 1.0}, {"gamma": -0.1}, {"reduction": "mean"}, {"absent": "no"}],
)
@pytest.mark.parametrize("cls", LOSSES.values())
def test_constructor_errors(cls: type, options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        cls(**options)
