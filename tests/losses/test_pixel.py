"""Pixel losses against torch, MONAI, kornia, exacta, loops over voxels and arithmetic by hand."""

import math
from collections.abc import Callable

import exacta.losses as exacta
import kornia.losses as kornia
import numpy as np
import pytest
import torch
from monai.losses import FocalLoss
from torch.nn import functional as F

from harness.errors import BenchError
from harness.losses import OHEM, BalancedCrossEntropy, CrossEntropy, Focal, TopK, WeightedCrossEntropy
from harness.losses.pixel import _worst, _worst_by_sort, class_weights

Case = tuple[torch.Tensor, torch.Tensor]
Make = Callable[..., Case]
Voxels = Callable[..., list[tuple[int, list[float], int]]]
Agree = Callable[..., None]

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]
LN2, LN3 = math.log(2), math.log(3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_that_of_torch(
    agree: Agree, example: Make, shape: tuple[int, ...], ignored: bool, weighted: bool
) -> None:
    logits, target = example(shape, ignored)
    weight = torch.arange(1, shape[1] + 1, dtype=torch.float64) if weighted else None
    logits.requires_grad_()
    value = CrossEntropy(weight)(logits, target)
    expected = F.cross_entropy(logits, target, weight, ignore_index=255)
    agree("ce", "torch CrossEntropyLoss", value, expected, tolerance=1e-12)
    ours, theirs = (torch.autograd.grad(v, logits)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)


def test_cross_entropy_by_hand(four: Case) -> None:
    logits, target = four
    # ln 4/3 + ln 2 + ln 4 + ln 4 = ln(4/3 · 2 · 4 · 4) = ln(128/3); mean over 4
    assert CrossEntropy()(logits, target).item() == pytest.approx(math.log(128 / 3) / 4, rel=1e-12)
    # weights 3 (class 0), 1: (ln 4/3 + ln 2 + ln 4 + 3 ln 4) / (1 + 1 + 1 + 3)
    weighted = CrossEntropy(torch.tensor([3.0, 1.0]))(logits, target).item()
    assert weighted == pytest.approx((math.log(4 / 3) + LN2 + 4 * math.log(4)) / 6, rel=1e-12)
    # the third voxel ignored: (ln 4/3 + ln 2 + ln 4) / 3
    target[0, 2] = 255
    assert CrossEntropy()(logits, target).item() == pytest.approx(math.log(4 / 3 * 8) / 3, rel=1e-12)


def test_focal_by_hand(four: Case) -> None:
    logits, target = four
    # (1 - p)²: 1/16, 1/4, 9/16, 9/16: (ln(4/3)/16 + ln(2)/4 + 2 · 9/16 · ln 4) / 4
    expected = (math.log(4 / 3) / 16 + LN2 / 4 + 9 / 8 * math.log(4)) / 4
    assert Focal()(logits, target).item() == pytest.approx(expected, rel=1e-12)
    # alpha 1/4 for class 0, 3/4 for class 1; the mean stays over 4 voxels
    expected = (0.75 * (math.log(4 / 3) / 16 + LN2 / 4 + 9 / 16 * math.log(4)) + 0.25 * 9 / 16 * math.log(4)) / 4
    assert Focal(alpha=torch.tensor([0.25, 0.75]))(logits, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_is_the_loop_over_voxels(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...], gamma: float, weighted: bool
) -> None:
    logits, target = example(shape, ignored=True)
    alpha = [0.2 + 0.3 * c for c in range(shape[1])] if weighted else None
    loss = Focal(gamma, torch.tensor(alpha, dtype=torch.float64) if alpha else None)
    found = voxels(logits, target)
    total = sum(-(alpha[y] if alpha else 1) * (1 - p[y]) ** gamma * math.log(p[y]) for _, p, y in found)
    agree("focal", "loops over voxels", loss(logits, target), total / len(found), tolerance=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_focal_is_that_of_others(agree: Agree, example: Make, shape: tuple[int, ...]) -> None:
    """The means of MONAI and kornia are over voxels and classes, of which only the true one is not 0."""
    logits, target = example(shape)
    ours = Focal(1.5)(logits, target)
    theirs = FocalLoss(gamma=1.5, to_onehot_y=True, use_softmax=True)(logits, target[:, None])
    agree("focal", "MONAI FocalLoss, times the classes", ours, shape[1] * theirs)  # in float32
    theirs = kornia.focal_loss(logits, target, alpha=None, gamma=1.5, reduction="mean")
    agree("focal", "kornia focal_loss, times the classes", ours, shape[1] * theirs, tolerance=1e-10)
    target[0, 1:3] = 255
    theirs = exacta.FocalLoss(gamma=1.5, ignore_index=255)(logits, target)
    agree("focal", "exacta FocalLoss", Focal(1.5)(logits, target), theirs, tolerance=1e-10)


@pytest.mark.parametrize("ignored", [False, True])
def test_focal_of_gamma_0_is_cross_entropy(example: Make, ignored: bool) -> None:
    logits, target = example(SHAPES[0], ignored)
    torch.testing.assert_close(Focal(0)(logits, target), CrossEntropy()(logits, target), rtol=1e-12, atol=0)
    # Jadon, 2020: "gamma = 1 works like cross-entropy" is an error
    assert Focal(1)(logits, target).item() < 0.9 * CrossEntropy()(logits, target).item()


def test_the_focal_of_the_survey_is_another_number(example: Make) -> None:
    """Its released code multiplies (N, 1) by (N,): the product of two means, with N x N in memory."""
    logits, target = example(SHAPES[0])
    log_p = logits.log_softmax(1).gather(1, target[:, None]).flatten()
    broken = (((1 - log_p.exp()) ** 2)[:, None] * -log_p[None]).mean()
    assert abs(Focal()(logits, target).item() - broken.item()) > 0.1 * broken.item()


def test_a_gamma_below_1_has_a_finite_gradient_at_the_optimum() -> None:
    logits = torch.tensor([[[-1e4, 0.0], [1e4, 0.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Focal(0.5)(logits, torch.tensor([[1, 1]])), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1, 1] < 0


@pytest.mark.parametrize("loss", [CrossEntropy(torch.ones(4)), CrossEntropy(torch.ones(2)), Focal(2, torch.ones(4))])
def test_as_many_class_weights_as_classes(example: Make, loss: torch.nn.Module) -> None:
    logits, target = example(SHAPES[0])
    with pytest.raises(BenchError, match="3 classes"):
        loss(logits, target)


def test_weights_move_with_the_module_but_are_not_saved() -> None:
    loss = CrossEntropy(torch.ones(3)).double()
    assert loss.weight is not None and loss.weight.dtype == torch.float64
    assert not loss.state_dict()


def test_every_weight_0_is_a_loss_of_0(example: Make) -> None:
    logits, target = example(SHAPES[0])
    value = CrossEntropy(torch.zeros(3))(logits.requires_grad_(), target)
    assert value.item() == 0
    assert np.all(torch.autograd.grad(value, logits)[0].numpy() == 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_cross_entropy_is_that_of_torch(agree: Agree, example: Make, shape: tuple[int, ...]) -> None:
    logits, target = example(shape, ignored=True)
    counts = [40.0, 10.0, 5.0, 20.0][: shape[1]]
    for scheme in ("inverse", "median", "normalized"):
        weight = class_weights(counts, scheme).double()
        # the sum of the weights: all schemes are the same number
        ours = WeightedCrossEntropy(scheme=scheme, normalizer="weights", class_counts=counts)(logits, target)
        theirs = F.cross_entropy(logits, target, weight, ignore_index=255)
        agree("weighted_ce", "torch CrossEntropyLoss(weight), mean", ours, theirs, tolerance=1e-7)
        ours = WeightedCrossEntropy(scheme=scheme, class_counts=counts)(logits, target)
        theirs = F.cross_entropy(logits, target, weight, ignore_index=255, reduction="sum") / (target != 255).sum()
        agree("weighted_ce", "torch CrossEntropyLoss(weight), sum over voxels", ours, theirs, tolerance=1e-7)


def test_weights_of_classes_by_hand() -> None:
    counts = [60, 30, 10, 0]
    # N / (C N_c) = 100 / (4 N_c); the median of 60, 30, 10 is 30; 1/60 + 1/30 + 1/10 = 9/60
    torch.testing.assert_close(class_weights(counts, "inverse"), torch.tensor([25 / 60, 25 / 30, 2.5, 0]))
    torch.testing.assert_close(class_weights(counts, "median"), torch.tensor([0.5, 1, 3, 0]))
    torch.testing.assert_close(class_weights(counts, "normalized"), torch.tensor([1 / 9, 2 / 9, 6 / 9, 0]))
    # an even number of classes: between the two in the middle
    torch.testing.assert_close(class_weights([40, 20], "median"), torch.tensor([0.75, 1.5]))


def test_weighted_cross_entropy_by_hand(four: Case) -> None:
    logits, target = four
    # counts 1 and 3: weights 4 / (2 · 1) = 2 and 4 / (2 · 3) = 2/3; (2/3 (ln 4/3 + ln 2 + ln 4) + 2 ln 4) / 4
    expected = (2 / 3 * math.log(32 / 3) + 2 * math.log(4)) / 4
    assert WeightedCrossEntropy(class_counts=[1, 3])(logits, target).item() == pytest.approx(expected, rel=1e-6)
    # given weights override the scheme
    given = WeightedCrossEntropy(torch.tensor([1.0, 1.0]), class_counts=[1, 3])(logits, target)
    assert given.item() == pytest.approx(CrossEntropy()(logits, target).item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (2, 2, 3, 4, 3)])
def test_balanced_cross_entropy_of_two_classes_is_that_of_the_paper(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...]
) -> None:
    """HED eq. 2: -β Σ_{Y+} ln p - (1 - β) Σ_{Y-} ln(1 - p), β = |Y-| / |Y| of each image."""
    logits, target = example(shape, ignored=True)
    target[0][target[0] == 1] = 0  # an image of one class weighs 0
    found = voxels(logits, target)
    total = 0.0
    for image in range(shape[0]):
        mine = [(p, y) for b, p, y in found if b == image]
        beta = sum(y == 0 for _, y in mine) / len(mine)
        total -= sum(beta * math.log(p[1]) if y else (1 - beta) * math.log(1 - p[1]) for p, y in mine)
    ours = BalancedCrossEntropy()(logits, target)
    agree("balanced_ce", "loops over voxels, HED eq. 2", ours, total / len(found), tolerance=1e-12)
    assert BalancedCrossEntropy()(logits[:1], target[:1]).item() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_balanced_cross_entropy_weighs_by_the_share_of_the_others(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...]
) -> None:
    logits, target = example(shape, ignored=True)
    found = voxels(logits, target)
    total = 0.0
    for image in range(shape[0]):
        labels = [y for b, _, y in found if b == image]
        share = [labels.count(c) / len(labels) for c in range(shape[1])]
        total -= sum((1 - share[y]) * math.log(p[y]) for b, p, y in found if b == image)
    ours = BalancedCrossEntropy()(logits, target)
    agree("balanced_ce", "loops over voxels", ours, total / len(found), tolerance=1e-12)


def _worst_in_loops(losses: list[float], keep: int) -> float:
    return sum(sorted(losses, reverse=True)[:keep]) / keep


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 10, 37.5, 100])
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_topk_is_the_mean_of_the_worst(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...], k: float, reduction: str
) -> None:
    logits, target = example(shape, ignored=True)
    groups: dict[int, list[float]] = {}
    for b, p, y in voxels(logits, target):
        groups.setdefault(b if reduction == "sample" else 0, []).append(-math.log(p[y]))
    expected = [_worst_in_loops(g, max(1, int(len(g) * k / 100))) for g in groups.values()]
    agree("topk", "loops over voxels", TopK(k, reduction)(logits, target), np.mean(expected), tolerance=1e-12)


def test_topk_is_that_of_exacta_where_both_round_the_same(agree: Agree, example: Make) -> None:
    logits, target = example((2, 4, 10, 10))
    for k in (10, 25, 100):
        theirs = exacta.TopKCELoss(fraction=k / 100)(logits, target)
        agree("topk", "exacta TopKCELoss", TopK(k)(logits, target), theirs, tolerance=1e-12)


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_topk_of_everything_is_cross_entropy(example: Make, reduction: str) -> None:
    logits, target = example(SHAPES[1])
    torch.testing.assert_close(TopK(100, reduction)(logits, target), CrossEntropy()(logits, target))


def test_topk_of_a_tiny_image_is_its_worst_voxel(example: Make) -> None:
    """nnU-Net rounds to no voxel, and NaN."""
    logits, target = example((1, 3, 2, 2))
    target[0, 0, 0] = 255
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=255)
    assert TopK(10)(logits, target).item() == pytest.approx(losses.max().item(), rel=1e-12)
    nothing = TopK(10)(logits.requires_grad_(), torch.full_like(target, 255))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_ignored_voxels_do_not_enter_the_choice(example: Make) -> None:
    """With them in the pool a tenth of 100 would be 10 voxels; of the 20 that are valid it is 2."""
    logits, target = example((1, 3, 10, 10))
    target[:, 2:] = 255
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=255)
    assert TopK(10)(logits, target).item() == pytest.approx(losses.flatten().topk(2).values.mean().item(), rel=1e-12)


def test_ties_share_the_last_places() -> None:
    """Losses 3, 1, 1, 1, 0 and two places: 3 counts, the three ones share the other."""
    losses = torch.tensor([[3.0, 1, 1, 1, 0]], requires_grad=True)
    for choose in (_worst, _worst_by_sort):
        value = choose(losses, torch.tensor([[2]]))
        (gradient,) = torch.autograd.grad(value.sum(), losses)
        assert value.item() == pytest.approx(2, rel=1e-6)
        torch.testing.assert_close(gradient, torch.tensor([[1 / 2, 1 / 6, 1 / 6, 1 / 6, 0]]))


@pytest.mark.parametrize("keep", [1, 3, 7])
def test_both_ways_to_choose_agree(keep: int) -> None:
    losses = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = [choose(losses, torch.full((3, 1), keep)) for choose in (_worst, _worst_by_sort)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), losses)[0] for v in values))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("threshold", "least"), [(0.7, 0.1), (0.2, 0.5), (0.05, 0.0)])
def test_ohem_is_the_mean_below_the_threshold(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...], threshold: float, least: float
) -> None:
    logits, target = example(shape, ignored=True)
    true = [p[y] for _, p, y in voxels(logits, target)]
    hard = [p for p in true if p < threshold]
    enough = max(1, int(least * len(true)))
    if len(hard) < enough:
        hard = sorted(true)[:enough]
    expected = np.mean([-math.log(p) for p in hard])
    agree("ohem", "loops over voxels", OHEM(threshold, least)(logits, target), expected, tolerance=1e-12)


def test_ohem_at_its_limits(example: Make) -> None:
    logits, target = example(SHAPES[0], ignored=True)
    ce = CrossEntropy()(logits, target)
    torch.testing.assert_close(OHEM(threshold=1)(logits, target), ce)
    torch.testing.assert_close(OHEM(threshold=1e-9, min_kept=1)(logits, target), ce)
    # no voxel below the threshold: the worst tenth, as TopK
    torch.testing.assert_close(OHEM(1e-9, 0.1)(logits, target), TopK(10)(logits, target))
    nothing = OHEM()(logits.requires_grad_(), torch.full_like(target, 255))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("loss", [TopK(30), TopK(30, "sample"), OHEM(0.4), BalancedCrossEntropy()])
def test_gradients_of_the_chosen(example: Make, loss: torch.nn.Module) -> None:
    logits, target = example((2, 3, 3, 2))
    target[0, 0, 0] = 255
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TopK(0), "percentage"),
        (lambda: TopK(101), "percentage"),
        (lambda: TopK(reduction="mean"), "batch"),
        (lambda: OHEM(0), "probability"),
        (lambda: OHEM(min_kept=2), "share"),
        (WeightedCrossEntropy, "class_counts"),
        (lambda: WeightedCrossEntropy(scheme="log", class_counts=[1, 2]), "median"),
        (lambda: WeightedCrossEntropy(normalizer="mean", class_counts=[1, 2]), "voxels"),
        (lambda: WeightedCrossEntropy(class_counts=[0, 0]), "no voxel"),
    ],
)
def test_arguments_that_are_none(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
