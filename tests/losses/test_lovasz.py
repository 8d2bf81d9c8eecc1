"""Lovász losses against their definition in loops, exacta, kornia and arithmetic by hand."""

import math
from collections.abc import Callable

import exacta.losses as exacta
import kornia.losses as kornia
import pytest
import torch

from harness.losses import LovaszHinge, LovaszSoftmax
from harness.losses.lovasz import _margins, _steps

Case = tuple[torch.Tensor, torch.Tensor]
Make = Callable[..., Case]
Agree = Callable[..., None]

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]


def test_lovasz_by_hand(four: Case) -> None:
    logits, target = four
    # class 1: errors 1/4, 1/2, 3/4 of the object, 3/4 of the background (p = 3/4). Sorted: 3/4 fg, 3/4 bg, 1/2 fg, 1/4 fg.
    # Jaccard losses of the prefixes: 1/3; 2/4; 3/4; 4/4, steps 1/3, 1/6, 1/4, 1/4:
    # 3/4 · (1/3 + 1/6) + 1/2 · 1/4 + 1/4 · 1/4 = 3/8 + 1/8 + 1/16 = 9/16
    # class 0: errors 1/4 bg, 1/2 bg, 3/4 bg, 3/4 fg. Sorted: 3/4 bg, 3/4 fg, 1/2 bg, 1/4 bg.
    # Prefixes: 1/2; 2/2; ...: 3/4 · 1/2 + 3/4 · 1/2 = 3/4. Mean: 21/32
    assert LovaszSoftmax()(logits, target).item() == pytest.approx(21 / 32, rel=1e-12)


def _lovasz(logits: torch.Tensor, target: torch.Tensor, classes: str) -> float:
    """Berman et al., eqs. 5, 8, 9, 11: Σ_k m_(k) (Δ(M_k) - Δ(M_{k-1})), Δ(M) = |M| / |F ∪ M| of mispredicted sets."""
    z, y = logits.movedim(1, -1).reshape(-1, logits.shape[1]).tolist(), target.flatten().tolist()
    losses = []
    for c in range(logits.shape[1]):
        errors = {}
        for n, label in enumerate(y):
            if label != 255:
                e = [math.exp(v) for v in z[n]]
                errors[n] = abs((label == c) - e[c] / sum(e))
        front = {n for n in errors if y[n] == c}
        if classes == "present" and not front:
            continue
        total, before, wrong = 0.0, 0.0, set()
        for n in sorted(errors, key=lambda n: -errors[n]):
            wrong.add(n)
            now = len(wrong) / len(front | wrong)
            total, before = total + errors[n] * (now - before), now
        losses.append(total)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_is_its_definition(
    agree: Agree, example: Make, shape: tuple[int, ...], classes: str, ignored: bool, per_image: bool
) -> None:
    logits, target = example(shape, ignored)
    target[target == 1] = 0  # class 1 is absent
    images = [(logits[b : b + 1], target[b : b + 1]) for b in range(len(logits))] if per_image else [(logits, target)]
    expected = sum(_lovasz(z, y, classes) for z, y in images) / len(images)
    agree("lovasz", "loops over sets", LovaszSoftmax(classes, per_image)(logits, target), expected, 1e-12)


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou_of_present_classes() -> None:
    target = torch.tensor([[0, 0, 1, 1, 1, 255]])
    prediction = torch.tensor([[0, 1, 1, 1, 2, 2]])
    logits = 1e4 * torch.nn.functional.one_hot(prediction, 4).movedim(-1, 1).double()
    # class 0: 1 of 2; class 1: 2 of {1..4} = 4; classes 2 and 3 are absent; 1 - (1/2 + 1/2) / 2
    assert LovaszSoftmax()(logits, target).item() == pytest.approx(0.5, rel=1e-12)
    # over all: class 2, absent and predicted once: 1; class 3, absent and not predicted: 0: (1/2 + 1/2 + 1 + 0) / 4
    assert LovaszSoftmax("all")(logits, target).item() == pytest.approx(0.5, rel=1e-12)
    target[0, 4] = 0
    # class 0: 1 / {0, 1, 4} = 1/3; class 1: 2 / {1, 2, 3} = 2/3; 1 - 1/2; all: (2/3 + 1/3 + 1 + 0) / 4
    prediction[0, 0] = 1
    logits = 1e4 * torch.nn.functional.one_hot(prediction, 4).movedim(-1, 1).double()
    # voxel 0 is wrong now: class 0: 0 / 3; class 1: 2 / {0, 1, 2, 3} = 1/2; 1 - (0 + 1/2) / 2
    assert LovaszSoftmax()(logits, target).item() == pytest.approx(0.75, rel=1e-12)
    assert LovaszSoftmax("all")(logits, target).item() == pytest.approx((1 + 0.5 + 1 + 0) / 4, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lovasz_is_that_of_exacta(
    agree: Agree, example: Make, shape: tuple[int, ...], classes: str, per_image: bool, dtype: torch.dtype
) -> None:
    logits, target = example(shape, ignored=True)
    target[target == 1] = 0
    logits = logits.to(dtype).requires_grad_()
    ours = LovaszSoftmax(classes, per_image)(logits, target)
    theirs = exacta.LovaszSoftmaxLoss(classes=classes, per_image=per_image, ignore_index=255)(logits, target)
    exact = dtype == torch.float64
    agree("lovasz", f"exacta LovaszSoftmaxLoss, {str(dtype)[6:]}", ours, theirs, 1e-12 if exact else 2e-6)
    first, second = (torch.autograd.grad(v, logits)[0] for v in (ours, theirs))
    torch.testing.assert_close(first, second, rtol=1e-9 if exact else 1e-3, atol=1e-14 if exact else 1e-7)


def test_lovasz_is_that_of_kornia(agree: Agree, example: Make) -> None:
    """Per image, over all classes."""
    logits, target = example((3, 4, 6, 5))
    target[0][target[0] == 2] = 1
    ours = LovaszSoftmax("all", per_image=True)(logits, target)
    agree("lovasz", "kornia lovasz_softmax_loss", ours, kornia.lovasz_softmax_loss(logits, target), 1e-9)


def _binary(shape: tuple[int, ...], example: Make, ignored: bool = False) -> Case:
    logits, target = example((shape[0], 2, *shape[2:]), ignored)
    return 2 * logits, target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_image", [False, True])
def test_the_hinge_of_two_classes_is_that_of_one_logit(
    agree: Agree, example: Make, shape: tuple[int, ...], per_image: bool
) -> None:
    logits, target = _binary(shape, example, ignored=True)
    logits.requires_grad_()
    ours = LovaszHinge(per_image=per_image)(logits, target)
    single = (logits[:, 1] - logits[:, 0])[:, None]
    theirs = exacta.LovaszHingeLoss(per_image=per_image, ignore_index=255)(single, target)
    agree("lovasz_hinge", "exacta LovaszHingeLoss", ours, theirs, 1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (ours, theirs)))


def test_the_hinge_is_that_of_kornia(agree: Agree, example: Make) -> None:
    logits, target = _binary((3, 2, 6, 5), example)
    theirs = kornia.lovasz_hinge_loss((logits[:, 1] - logits[:, 0])[:, None], target)
    agree("lovasz_hinge", "kornia lovasz_hinge_loss", LovaszHinge()(logits, target), theirs, 1e-9)


def _hinge(logits: torch.Tensor, target: torch.Tensor, c: int) -> float:
    """Berman et al., eq. 8, of one class against the rest: margins of ln p_c / (1 - p_c)."""
    z, y = logits.movedim(1, -1).reshape(-1, logits.shape[1]).tolist(), target.flatten().tolist()
    errors = {}
    for n, label in enumerate(y):
        if label != 255:
            rest = sum(math.exp(v) for k, v in enumerate(z[n]) if k != c)
            errors[n] = 1 - (1 if label == c else -1) * (z[n][c] - math.log(rest))
    front = {n for n in errors if y[n] == c}
    total, before, wrong = 0.0, 0.0, set()
    for n in sorted(errors, key=lambda n: -errors[n]):
        wrong.add(n)
        now = len(wrong) / len(front | wrong)
        total, before = total + max(errors[n], 0) * (now - before), now
    return total


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_the_hinge_is_its_definition(
    agree: Agree, example: Make, shape: tuple[int, ...], classes: str, background: bool, per_image: bool
) -> None:
    logits, target = example(shape, ignored=True)
    target[1][target[1] == 2] = 0
    images = [(logits[b : b + 1], target[b : b + 1]) for b in range(len(logits))] if per_image else [(logits, target)]
    expected = []
    for z, y in images:
        counted = [c for c in range(shape[1]) if (c or background) and (classes == "all" or (y == c).any())]
        expected.append(sum(_hinge(z, y, c) for c in counted) / max(len(counted), 1))
    ours = LovaszHinge(classes, per_image, background)(logits, target)
    agree("lovasz_hinge", "loops over sets", ours, sum(expected) / len(expected), 1e-12)


def test_the_hinge_by_hand() -> None:
    # F = 2, 1/2, -1 and labels 1, 1, 0: errors -1, 1/2, 0; sorted 1/2 (object), 0 (background), -1 (object)
    # one object of two mispredicted: 1/2; then 2/3, then 1: max(m, 0) counts 1/2 · 1/2
    logits = torch.tensor([[[0.0, 0, 0], [2, 0.5, -1]]], dtype=torch.float64)
    assert LovaszHinge()(logits, torch.tensor([[1, 1, 0]])).item() == pytest.approx(0.25, rel=1e-12)
    # nothing there: the largest error alone, 1 + 2
    assert LovaszHinge()(logits, torch.tensor([[0, 0, 0]])).item() == pytest.approx(3, rel=1e-12)
    assert LovaszHinge("present")(logits, torch.tensor([[0, 0, 0]])).item() == 0
    # of two classes the background is the same with the roles exchanged: errors -1, 1/2, 0 of which one is an object,
    # sorted 1/2 (background): 1 - 1/2; 1/2 · 1/2
    both = LovaszHinge(background=True)(logits, torch.tensor([[1, 1, 0]])).item()
    assert both == pytest.approx((0.25 + 0.25) / 2, rel=1e-12)


def test_margins_keep_their_digits_where_a_probability_rounds_to_1() -> None:
    logits = torch.tensor([[[80.0], [20.0], [0.0]]])
    assert _margins(logits).flatten().tolist() == pytest.approx([60, -60, -80], rel=1e-6)
    large = torch.tensor([[[1e4], [-1e4], [0.0]]], requires_grad=True)
    assert _margins(large).flatten().tolist() == pytest.approx([1e4, -2e4, -1e4])
    (gradient,) = torch.autograd.grad(_margins(large)[0, 0, 0], large)
    # d F_0 / dz: 1 for itself, minus the softmax of the others
    assert gradient.flatten().tolist() == pytest.approx([1, 0, -1])


@pytest.mark.parametrize("ignored", [False, True])
def test_integer_keys_sort_as_floats_do(ignored: bool) -> None:
    """float32 by the order of its bits, float64 by comparison: the same steps, ties included."""
    chance = torch.Generator().manual_seed(0)
    errors = torch.randint(0, 40, (500,), generator=chance).float() / 16  # many ties, 0, above 1
    errors[::50] = torch.tensor([1e-30, 3e-39, 1e30, 0.0, -0.0, 1.0, 2.0, 0.5, 1e-7, 0.1])
    inside = torch.rand(500, generator=chance) < 0.3
    valid = torch.rand(500, generator=chance) < 0.8 if ignored else torch.ones(500, dtype=torch.bool)
    first, second = (_steps(e, inside & valid, valid) for e in (errors, errors.double()))
    torch.testing.assert_close(first.double(), second, rtol=1e-6, atol=0)
    assert second.sum().item() == pytest.approx(1, rel=1e-9)  # the last prefix has a Jaccard loss of 1
    assert not second[~valid].any()


@pytest.mark.parametrize(
    "loss", [LovaszSoftmax(), LovaszSoftmax("all", True), LovaszHinge(), LovaszHinge("present", False, True)]
)
def test_gradients_agree_with_differences(example: Make, loss: torch.nn.Module) -> None:
    for shape in ((2, 2, 3, 2), (2, 3, 3, 2)):
        logits, target = example(shape)
        target[0, 0, 0] = 255
        assert torch.autograd.gradcheck(lambda z, y=target: loss(z, y), logits.requires_grad_())
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
        assert not gradient[0, :, 0, 0].any()
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), logits)


@pytest.mark.parametrize("loss", [LovaszSoftmax(), LovaszSoftmax("all", per_image=True)])
def test_lovasz_under_vmap(example: Make, loss: torch.nn.Module) -> None:
    logits, target = example((6, 3, 5, 4))
    logits, target = logits.view(3, 2, 3, 5, 4), target.view(3, 2, 5, 4)
    pairs = list(zip(logits, target, strict=True))
    torch.testing.assert_close(torch.func.vmap(loss)(logits, target), torch.stack([loss(z, y) for z, y in pairs]))
    gradient = torch.func.grad(loss)
    found = torch.func.vmap(gradient)(logits, target)
    torch.testing.assert_close(found, torch.stack([gradient(z, y) for z, y in pairs]))


@pytest.mark.parametrize("make", [lambda: LovaszSoftmax("some"), lambda: LovaszHinge("some")])
def test_classes_that_are_no_choice(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="present"):
        make()
