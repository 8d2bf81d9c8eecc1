"""The generalised Wasserstein Dice loss against MONAI, exacta, optimal transport by scipy and loops over voxels."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from exacta.losses import GeneralizedWassersteinDiceLoss as Exacta
from monai.losses import GeneralizedWassersteinDiceLoss as Monai
from scipy.stats import wasserstein_distance

from harness.errors import BenchError
from harness.losses.build import build_loss
from harness.losses.dice import Dice
from harness.losses.wasserstein import GeneralizedWassersteinDice, tree_matrix, uniform_matrix

Agree = Callable[..., None]

SHAPES = [(2, 4, 6, 5), (2, 4, 3, 4, 5)]
# every class at distance 1 from the background: what MONAI and exacta take for granted
FAR = [[0, 1, 1, 1], [1, 0, 0.3, 0.6], [1, 0.3, 0, 0.5], [1, 0.6, 0.5, 0]]
# classes on a line: class 1 is nearer to the background than to class 3
LINE = [[abs(i - j) / 3 for j in range(4)] for i in range(4)]


def _example(shape: tuple[int, ...], ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.3] = 255
    return logits, target


def _by_voxels(
    logits: torch.Tensor, target: torch.Tensor, matrix: list[list[float]], gdl: bool, sample: bool, transport: bool
) -> float:
    """The loss in loops, with s = 1e-5; the distance of a voxel by the matrix, or by optimal transport on a line."""
    scores = logits.flatten(2).numpy()
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = target.flatten(1).numpy()
    groups = [[b] for b in range(len(labels))] if sample else [list(range(len(labels)))]
    values = []
    for group in groups:
        counts = [sum(int((labels[b] == c).sum()) for b in group) for c in range(4)]
        positive = errors = 0.0
        for b in group:
            for n, label in enumerate(labels[b]):
                if label == 255:
                    continue
                cost = sum(matrix[label][c] * probs[b, c, n] for c in range(4))
                if transport:
                    cost = wasserstein_distance([label], range(4), v_weights=probs[b, :, n]) / 3
                if gdl:
                    weight, reference = 1 / (counts[label] + 1), matrix[label][0] if label else max(matrix[0])
                else:
                    weight, reference = float(label > 0), matrix[label][0]
                positive += weight * (reference - cost)
                errors += cost * weight if gdl else cost
        values.append(1 - (2 * positive + 1e-5) / (2 * positive + errors + 1e-5))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighting", ["default", "GDL"])
def test_agreement_with_monai_and_exacta(agree: Agree, shape: tuple[int, ...], weighting: str) -> None:
    logits, target = _example(shape)
    matrix = np.array(FAR)
    ours = GeneralizedWassersteinDice(FAR, weighting, "sample")(logits, target)
    theirs = Monai(matrix, weighting_mode=weighting)(logits, target[:, None])
    agree("gwdl", "MONAI GeneralizedWassersteinDiceLoss", ours, theirs)
    agree(
        "gwdl", "exacta GeneralizedWassersteinDiceLoss", ours, Exacta(matrix, weighting_mode=weighting)(logits, target)
    )
    logits, target = _example(shape, ignored=True)
    theirs = Exacta(matrix, weighting_mode=weighting, ignore_index=255)(logits, target)
    ours = GeneralizedWassersteinDice(FAR, weighting, "sample")(logits, target)
    agree("gwdl", "exacta GeneralizedWassersteinDiceLoss", ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("gdl", [False, True])
def test_agreement_with_loops_for_a_class_near_the_background(
    agree: Agree, shape: tuple[int, ...], sample: bool, gdl: bool
) -> None:
    logits, target = _example(shape, ignored=True)
    loss = GeneralizedWassersteinDice(LINE, "GDL" if gdl else "default", "sample" if sample else "batch")
    value = loss(logits, target)
    agree("gwdl", "loops over voxels", value, _by_voxels(logits, target, LINE, gdl, sample, False))
    agree("gwdl", "scipy wasserstein_distance", value, _by_voxels(logits, target, LINE, gdl, sample, True))


def test_by_hand() -> None:
    # probabilities (1/2, 1/4, 1/4) at two voxels with labels 1 and 0
    logits = torch.tensor([[[2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64).log()
    target = torch.tensor([[1, 0]])
    matrix = [[0, 0.8, 1], [0.8, 0, 0.5], [1, 0.5, 0]]
    # W of voxel 1: .8 / 2 + .5 / 4 = .525; of voxel 2: .8 / 4 + 1 / 4 = .45; AE = .975; TP = .8 - .525 = .275
    loss = GeneralizedWassersteinDice(matrix, smooth=0)
    assert loss(logits, target).item() == pytest.approx(0.975 / (0.55 + 0.975), rel=1e-12)
    # GDL: both classes have one voxel, weight 1/2: TP = (.275 + (1 - .45)) / 2 = .4125, AE = .4875
    loss = GeneralizedWassersteinDice(matrix, "GDL", smooth=0)
    assert loss(logits, target).item() == pytest.approx(0.4875 / (0.825 + 0.4875), rel=1e-12)


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_two_classes_at_distance_one_are_the_dice_of_the_foreground(reduction: str) -> None:
    logits, target = _example((2, 2, 6, 5), ignored=True)
    expected = Dice(background=False, reduction=reduction)(logits, target).item()
    value = GeneralizedWassersteinDice(reduction=reduction)(logits, target).item()
    assert value == pytest.approx(expected, rel=1e-9)
    given = GeneralizedWassersteinDice([[0, 1], [1, 0]], reduction=reduction)(logits, target).item()
    assert given == value


def test_the_closed_form_of_equal_distances() -> None:
    logits, target = _example(SHAPES[0])
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    right = p[target > 0].sum()
    expected = 1 - 2 * right / (2 * right + (1 - p).sum())
    value = GeneralizedWassersteinDice(smooth=0)(logits, target)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("weighting", ["default", "GDL"])
def test_the_scale_of_the_matrix_does_not_matter(weighting: str) -> None:
    logits, target = _example(SHAPES[0])
    half = [[value / 2 for value in row] for row in LINE]
    one = GeneralizedWassersteinDice(LINE, weighting, smooth=0)(logits, target).item()
    assert GeneralizedWassersteinDice(half, weighting, smooth=0)(logits, target).item() == pytest.approx(one, rel=1e-12)


def test_a_confusion_costs_what_the_matrix_says() -> None:
    target = torch.tensor([[0, 1, 2, 3]])

    def value(prediction: list[int]) -> float:
        logits = 50 * torch.nn.functional.one_hot(torch.tensor([prediction]), 4).movedim(-1, 1).double()
        return GeneralizedWassersteinDice(FAR, smooth=0)(logits, target).item()

    assert value([0, 1, 2, 3]) == pytest.approx(0, abs=1e-12)
    # one error of .3: TP = 3 - .3; of .6; of 1, the background
    assert value([0, 2, 2, 3]) == pytest.approx(0.3 / (5.4 + 0.3), rel=1e-12)
    assert value([0, 3, 2, 3]) == pytest.approx(0.6 / (4.8 + 0.6), rel=1e-12)
    assert value([0, 0, 2, 3]) == pytest.approx(1 / (4 + 1), rel=1e-12)


def test_an_image_of_background_costs_one_unless_it_is_perfect() -> None:
    target = torch.zeros(1, 6, dtype=torch.int64)
    logits = torch.zeros(1, 3, 6, dtype=torch.float64, requires_grad=True)
    value = GeneralizedWassersteinDice()(logits, target)
    value.backward()
    assert value.item() == pytest.approx(1, abs=1e-5)
    assert logits.grad.abs().max() < 1e-5
    perfect = torch.tensor([60.0, 0, 0], dtype=torch.float64)[None, :, None].expand(1, 3, 6)
    assert GeneralizedWassersteinDice()(perfect, target).item() == pytest.approx(0, abs=1e-12)


def test_builders() -> None:
    assert uniform_matrix(3) == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    # [0, [1, 2]]: 0-1: one edge up, two down; 1-2: one and one
    expected = [[0, 1, 1], [1, 0, 2 / 3], [1, 2 / 3, 0]]
    assert np.allclose(tree_matrix([0, [1, 2]]), expected)
    assert np.allclose(tree_matrix({"background": 0, "organ": {"liver": 1, "tumour": 2}}), expected)
    # 2 and 1 in another order, one more level: 0-3: 1 + 2 = 3; 0-1: 1 + 3 = 4; 1-3: 2 + 1 = 3; 1-2: 2
    assert np.allclose(
        tree_matrix([[3, [2, 1]], 0]), np.array([[0, 4, 4, 3], [4, 0, 2, 3], [4, 2, 0, 3], [3, 3, 3, 0]]) / 4
    )


@pytest.mark.parametrize("matrix", ["uniform", [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]], {"tree": [0, [1, 2]]}])
def test_usable_from_a_suite(matrix: object) -> None:
    spec = {
        "name": "gwdl",
        "class": "harness.losses.wasserstein:GeneralizedWassersteinDice",
        "args": {"matrix": matrix},
    }
    logits, target = _example((2, 3, 4, 4))
    value = build_loss(spec, {"num_classes": 3})(logits, target)
    assert 0 < value.item() < 1
    with pytest.raises(BenchError, match="classes"):
        build_loss(spec, {"num_classes": 3})(logits[:, :2], target.clamp_max(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": "tree"}, "uniform"),
        ({"matrix": {"trees": [0, 1]}}, "'tree'"),
        ({"matrix": [[0, 1], [1, 0], [1, 1]]}, "C x C"),
        ({"matrix": [[0.1, 1], [1, 0]]}, "diagonal"),
        ({"matrix": [[0, 1.5], [1.5, 0]]}, r"\[0, 1\]"),
        ({"matrix": [[0, float("nan")], [1, 0]]}, r"\[0, 1\]"),
        ({"matrix": [[0, 1], [0.5, 0]]}, "symmetric"),
        ({"matrix": [[0, 0.2, 1], [0.2, 0, 1], [1, 1, 0]]}, "class 1 is less than half"),
        ({"matrix": {"tree": [0, [1, 3]]}}, "leaves"),
        ({"matrix": {"tree": [0, [1, 1]]}}, "leaves"),
        ({"matrix": {"tree": [0, "liver"]}}, "class numbers"),
        ({"matrix": [[0, 1], [1, 0]], "num_classes": 3}, "2 classes"),
        ({"num_classes": 1}, "at least 2"),
        ({"weighting": "gdl"}, "GDL"),
        ({"reduction": "mean"}, "batch"),
    ],
)
def test_constructor_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneralizedWassersteinDice(**options)


@pytest.mark.parametrize("weighting", ["default", "GDL"])
def test_gradient_and_ignored_voxels(weighting: str) -> None:
    logits, target = _example((2, 4, 3, 4), ignored=True)
    loss = GeneralizedWassersteinDice(LINE, weighting)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    assert (gradient * (target == 255)[:, None]).abs().max() == 0
    void = loss(logits, torch.full_like(target, 255))
    (gradient,) = torch.autograd.grad(void, logits)
    assert void.item() == 0
    assert gradient.isfinite().all()
