"""Region losses against MONAI, exacta, kornia, loops over voxels and arithmetic by hand."""

import math
from collections.abc import Callable

import exacta.losses as exacta
import kornia.losses as kornia
import numpy as np
import pytest
import torch
from monai.losses import DiceLoss, GeneralizedDiceLoss
from monai.losses import TverskyLoss as MonaiTversky

from harness.losses import (
    AsymmetricSimilarity,
    Dice,
    FocalTversky,
    GeneralizedDice,
    Jaccard,
    LogCoshDice,
    PenaltyGeneralizedDice,
    SensitivitySpecificity,
    Tversky,
)

Case = tuple[torch.Tensor, torch.Tensor]
Make = Callable[..., Case]
Voxels = Callable[..., list[tuple[int, list[float], int]]]
Agree = Callable[..., None]

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]
S = 1e-5


def _sums(found: list[tuple[int, list[float], int]], c: int) -> tuple[float, float, float, float]:
    """TP, FP, FN and Σ p² of a class."""
    t = np.array([y == c for _, _, y in found], float)
    p = np.array([p[c] for _, p, _ in found])
    return float((t * p).sum()), float(((1 - t) * p).sum()), float((t * (1 - p)).sum()), float((p * p).sum())


def _by_voxels(
    found: list[tuple[int, list[float], int]], score: Callable[[float, float, float, float], float], sample: bool
) -> list[list[float]]:
    """`score(tp, fp, fn, p²)` of each class from the listed voxels, per sample or over the batch."""
    groups = [[v for v in found if v[0] == b] for b in sorted({v[0] for v in found})] if sample else [found]
    return [[score(*_sums(group, c)) for c in range(len(found[0][1]))] for group in groups]


def _mean(rows: list[list[float]]) -> float:
    return sum(sum(row) / len(row) for row in rows) / len(rows)


def test_dice_jaccard_tversky_by_hand(four: Case) -> None:
    logits, target = four

    def value(loss: torch.nn.Module) -> float:
        return loss(logits, target).item()

    # Dice: class 1: 3 / (3 + 9/4) = 4/7; class 0: (1/2) / (1 + 7/4) = 2/11; 1 - (4/7 + 2/11) / 2 = 1 - 29/77 = 48/77
    assert value(Dice(smooth=0)) == pytest.approx(48 / 77, rel=1e-12)
    assert value(Dice(smooth=0, background=False)) == pytest.approx(3 / 7, rel=1e-12)
    # with s = 1: class 1: 4 / (25/4) = 16/25; class 0: (3/2) / (15/4) = 2/5; 1 - (0.64 + 0.4) / 2 = 0.48
    assert value(Dice(smooth=1)) == pytest.approx(0.48, rel=1e-12)
    # squared: Σp² of class 1: 9/16 + 4/16 + 1/16 + 9/16 = 23/16: 3 / (71/16) = 48/71
    #          of class 0: 1/16 + 4/16 + 9/16 + 1/16 = 15/16: (1/2) / (31/16) = 8/31
    assert value(Dice(smooth=0, squared=True)) == pytest.approx(1 - (48 / 71 + 8 / 31) / 2, rel=1e-12)
    # Jaccard: class 1: (3/2) / (3/2 + 3/4 + 3/2) = 2/5; class 0: (1/4) / (1/4 + 3/2 + 3/4) = 1/10; 1 - 1/4
    assert value(Jaccard(smooth=0)) == pytest.approx(0.75, rel=1e-12)
    # Tversky, 1/4 FP and 3/4 FN: class 1: (3/2) / (3/2 + 3/16 + 9/8) = 8/15
    #                             class 0: (1/4) / (1/4 + 3/8 + 9/16) = 4/19
    expected = 1 - (8 / 15 + 4 / 19) / 2
    assert value(Tversky(0.25, 0.75, smooth=0)) == pytest.approx(expected, rel=1e-12)
    # focal Tversky, γ = 2, is the square root of each class's loss: 7/15 and 15/19
    roots = math.sqrt(7 / 15) + math.sqrt(15 / 19)
    assert value(FocalTversky(0.25, 0.75, gamma=2, smooth=0)) == pytest.approx(roots / 2, rel=1e-12)
    assert value(FocalTversky(0.25, 0.75, gamma=2, smooth=0, classes="sum")) == pytest.approx(roots, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_agreement_with_monai(
    agree: Agree, example: Make, shape: tuple[int, ...], background: bool, reduction: str
) -> None:
    logits, target = example(shape)
    ours = {"background": background, "reduction": reduction}
    theirs = {"include_background": background, "batch": reduction == "batch", "to_onehot_y": True, "softmax": True}
    pairs = [
        ("dice", Dice(**ours), DiceLoss(**theirs)),
        ("dice", Dice(squared=True, **ours), DiceLoss(squared_pred=True, **theirs)),
        # MONAI's Jaccard is (2 TP + s) / (2 union + s): its s is twice ours
        ("jaccard", Jaccard(**ours), DiceLoss(jaccard=True, smooth_nr=2 * S, smooth_dr=2 * S, **theirs)),
        ("tversky", Tversky(0.3, 0.7, **ours), MonaiTversky(alpha=0.3, beta=0.7, **theirs)),
        # β = 2: β² / (1 + β²) = 4/5 for false negatives
        ("asymmetric_similarity", AsymmetricSimilarity(2, **ours), MonaiTversky(alpha=0.2, beta=0.8, **theirs)),
    ]
    for name, mine, monai in pairs:
        # MONAI makes its one-hot label in float32
        agree(name, f"MONAI {type(monai).__name__}", mine(logits, target), monai(logits, target[:, None]), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_agreement_with_exacta(
    agree: Agree, example: Make, shape: tuple[int, ...], background: bool, reduction: str
) -> None:
    logits, target = example(shape, ignored=True)
    ours = {"background": background, "reduction": reduction}
    theirs = {"include_background": background, "batch_dice": reduction == "batch", "ignore_index": 255}
    # scaled weights count as a larger s: without it both are the same number
    exact = {"smooth": 0.0}
    pairs = [
        ("dice", Dice(**ours), exacta.DiceLoss(**theirs)),
        ("dice", Dice(squared=True, **ours), exacta.DiceLoss(squared_pred=True, **theirs)),
        ("jaccard", Jaccard(**ours), exacta.TverskyLoss(alpha=1, beta=1, **theirs)),
        ("tversky", Tversky(0.2, 0.9, **ours), exacta.TverskyLoss(alpha=0.2, beta=0.9, **theirs)),
        ("focal_tversky", FocalTversky(0.3, 0.7, 4 / 3, **ours), exacta.FocalTverskyLoss(gamma=0.75, **theirs)),
        ("generalized_dice", GeneralizedDice(**ours, **exact), exacta.GeneralizedDiceLoss(**theirs, **exact)),
        (
            "generalized_dice",
            GeneralizedDice("simple", **ours, **exact),
            exacta.GeneralizedDiceLoss(weight_type="simple", **theirs, **exact),
        ),
        (
            "generalized_dice",
            GeneralizedDice("uniform", **ours),
            exacta.GeneralizedDiceLoss(weight_type="uniform", **theirs),
        ),
    ]
    for name, mine, other in pairs:
        agree(name, f"exacta {type(other).__name__}", mine(logits, target), other(logits, target), 1e-9)


def test_agreement_with_kornia(agree: Agree, example: Make) -> None:
    """Per image; its macro Dice averages over present classes, its micro Dice pools them."""
    logits, target = example((2, 4, 7, 8), ignored=True)
    target[1][target[1] == 2] = 0
    options = {"reduction": "sample", "smooth": 0.0}
    pairs = [
        ("dice", Dice(absent="skip", **options), {"average": "macro"}),
        ("generalized_dice", GeneralizedDice("uniform", **options), {"average": "micro"}),
    ]
    for name, mine, theirs in pairs:
        expected = kornia.dice_loss(logits, target, eps=1e-12, ignore_index=255, **theirs)
        agree(name, f"kornia dice_loss, {theirs['average']}", mine(logits, target), expected, 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", ["square", "simple", "uniform"])
def test_generalized_dice_is_that_of_monai(agree: Agree, example: Make, shape: tuple[int, ...], weights: str) -> None:
    logits, target = example(shape)
    target[0][target[0] == 2] = 0  # absent from one sample: MONAI too takes the largest finite weight there
    monai = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, w_type=weights, smooth_nr=0.0, smooth_dr=0.0)
    ours = GeneralizedDice(weights, reduction="sample", smooth=0.0)(logits, target)
    agree("generalized_dice", "MONAI GeneralizedDiceLoss", ours, monai(logits, target[:, None]), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample", [False, True])
def test_ignored_voxels_against_loops(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...], sample: bool
) -> None:
    logits, target = example(shape, ignored=True)
    reduction = "sample" if sample else "batch"

    def dice(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (2 * tp + S) / (2 * tp + fp + fn + S)

    def squared(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (2 * tp + S) / (squares + tp + fn + S)

    def jaccard(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (tp + S) / (tp + fp + fn + S)

    def tversky(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (tp + S) / (tp + 0.2 * fp + 0.9 * fn + S)

    def f_measure(tp: float, fp: float, fn: float, squares: float) -> float:
        b = 1.5**2
        return 1 - ((1 + b) * tp + (1 + b) * S) / ((1 + b) * tp + b * fn + fp + (1 + b) * S)

    for name, loss, score in [
        ("dice", Dice(reduction=reduction), dice),
        ("dice", Dice(squared=True, reduction=reduction), squared),
        ("jaccard", Jaccard(reduction=reduction), jaccard),
        ("tversky", Tversky(0.2, 0.9, reduction=reduction), tversky),
        ("asymmetric_similarity", AsymmetricSimilarity(reduction=reduction), f_measure),
    ]:
        expected = _mean(_by_voxels(voxels(logits, target), score, sample))
        agree(name, "loops over voxels", loss(logits, target), expected, 1e-10)


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("classes", ["mean", "sum"])
@pytest.mark.parametrize("background", [True, False])
def test_focal_tversky_against_loops(
    agree: Agree, example: Make, voxels: Voxels, sample: bool, classes: str, background: bool
) -> None:
    logits, target = example(SHAPES[0], ignored=True)

    def focal(tp: float, fp: float, fn: float, squares: float) -> float:
        return (1 - (tp + S) / (tp + 0.3 * fp + 0.7 * fn + S)) ** 0.75

    rows = [row[0 if background else 1 :] for row in _by_voxels(voxels(logits, target), focal, sample)]
    expected = _mean(rows) * (len(rows[0]) if classes == "sum" else 1)
    loss = FocalTversky(classes=classes, background=background, reduction="sample" if sample else "batch")
    agree("focal_tversky", "loops over voxels", loss(logits, target), expected, 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"reduction": "sample"}, {"background": False}, {"absent": "penalise"}])
def test_identities(example: Make, shape: tuple[int, ...], options: dict) -> None:
    logits, target = example(shape, ignored=True)

    def value(loss: torch.nn.Module) -> float:
        return loss(logits, target).item()

    # s of Dice counts as s / 2 of Tversky
    assert value(Dice(**options)) == pytest.approx(value(Tversky(0.5, 0.5, **options)), rel=1e-4)
    half = value(Tversky(0.5, 0.5, smooth=0.5, **options))
    assert value(Dice(smooth=1, **options)) == pytest.approx(half, rel=1e-12)
    assert value(Jaccard(**options)) == pytest.approx(value(Tversky(1, 1, **options)), rel=1e-12)
    focal = value(FocalTversky(0.2, 0.9, gamma=1, **options))
    assert focal == pytest.approx(value(Tversky(0.2, 0.9, **options)), rel=1e-12)


def test_false_positives_and_false_negatives_are_not_swapped() -> None:
    # class 1, labels 1, 1, 0, 0; predicted 1, 0, 0, 0: FN = 1, FP = 0: 1 - 1 / (1 + fn)
    target = torch.tensor([[1, 1, 0, 0]])
    logits = 1e3 * torch.tensor([[[-1.0, 1, 1, 1], [1, -1, -1, -1]]], dtype=torch.float64)
    loss = Tversky(fp_weight=0, fn_weight=3, background=False, smooth=0)
    assert loss(logits, target).item() == pytest.approx(0.75, rel=1e-12)
    # predicted 1, 1, 1, 0: FP = 1, FN = 0: 1 - 2 / (2 + fp)
    logits = 1e3 * torch.tensor([[[-1.0, -1, -1, 1], [1, 1, 1, -1]]], dtype=torch.float64)
    loss = Tversky(fp_weight=2, fn_weight=0, background=False, smooth=0)
    assert loss(logits, target).item() == pytest.approx(0.5, rel=1e-12)


def test_policies_for_absent_classes() -> None:
    # 4 voxels of uniform probability 1/4 for each of 4 classes; labels 0, 0, 1, 1: classes 2 and 3 are absent
    # classes 0, 1: 2 · (1/2) / (2 + 1) = 1/3; Dice loss 2/3; absent: 1 - s / (1 + s); mean probability 1/4
    logits, target = torch.zeros(1, 4, 4, dtype=torch.float64), torch.tensor([[0, 0, 1, 1]])

    def value(policy: str, **options: object) -> float:
        return Dice(absent=policy, smooth=0, **options)(logits, target).item()

    assert value("include") == pytest.approx((2 / 3 + 2 / 3 + 1 + 1) / 4, rel=1e-12)
    assert value("skip") == pytest.approx(2 / 3, rel=1e-12)
    assert value("penalise") == pytest.approx((2 / 3 + 2 / 3 + 1 / 4 + 1 / 4) / 4, rel=1e-12)
    # without background: classes 1, 2, 3
    assert value("include", background=False) == pytest.approx((2 / 3 + 2) / 3, rel=1e-12)
    assert value("skip", background=False) == pytest.approx(2 / 3, rel=1e-12)
    assert value("penalise", background=False) == pytest.approx((2 / 3 + 1 / 2) / 3, rel=1e-12)


def test_policies_per_sample_and_in_sums_over_classes() -> None:
    # two samples of 2 voxels, probability 1/2; labels (0, 1) and (0, 0)
    # sample 1: each class: 2 · (1/2) / (1 + 1) = 1/2; sample 2: class 0: 2 · 1 / (2 + 1) = 2/3 → 1/3; class 1 absent: 1
    logits, target = torch.zeros(2, 2, 2, dtype=torch.float64), torch.tensor([[0, 1], [0, 0]])

    def value(policy: str) -> float:
        return Dice(absent=policy, reduction="sample", smooth=0)(logits, target).item()

    assert value("include") == pytest.approx((1 / 2 + (1 / 3 + 1) / 2) / 2, rel=1e-12)
    assert value("skip") == pytest.approx((1 / 2 + 1 / 3) / 2, rel=1e-12)
    assert value("penalise") == pytest.approx((1 / 2 + (1 / 3 + 1 / 2) / 2) / 2, rel=1e-12)
    # focal Tversky (.5, .5), γ = 1, sum over classes: a skipped class adds nothing: (1/2 + 1/2), (1/3)
    loss = FocalTversky(0.5, 0.5, 1, classes="sum", absent="skip", reduction="sample", smooth=0)
    assert loss(logits, target).item() == pytest.approx((1 + 1 / 3) / 2, rel=1e-12)


def test_an_absent_class_that_is_not_predicted_costs_nothing() -> None:
    target = torch.zeros(1, 6, dtype=torch.int64)
    logits = 1e3 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    for loss in (Dice(), Dice(smooth=0), Jaccard(smooth=0), Tversky(smooth=0), Dice(absent="penalise")):
        assert loss(logits, target).item() == pytest.approx(0, abs=1e-12)


def test_the_dice_of_the_survey_is_another_number() -> None:
    """Its released code sums the denominator over all classes and adds the numbers of the labels."""
    target = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    probs = torch.nn.functional.one_hot(target, 4).movedim(-1, 1).double()
    scores = [(2 * (probs[:, c] * (target == c)).sum() + 1) / (probs.sum() + target.sum() + 1) for c in range(4)]
    # each class: (2 · 2 + 1) / (8 + 12 + 1) = 5/21: a perfect prediction costs 16/21
    assert 1 - torch.stack(scores).mean().item() == pytest.approx(16 / 21)
    assert Dice()(1e3 * probs, target).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample", [False, True])
def test_log_cosh_dice_against_loops(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...], sample: bool
) -> None:
    logits, target = example(shape, ignored=True)
    rows = _by_voxels(voxels(logits, target), lambda tp, fp, fn, _: 1 - (2 * tp + S) / (2 * tp + fp + fn + S), sample)
    ours = LogCoshDice(reduction="sample" if sample else "batch")(logits, target)
    agree("log_cosh_dice", "loops over voxels", ours, math.log(math.cosh(_mean(rows))), 1e-10)


def test_log_cosh_dice_by_hand_and_at_its_limits(four: Case) -> None:
    logits, target = four
    assert LogCoshDice(smooth=0)(logits, target).item() == pytest.approx(math.log(math.cosh(48 / 77)), rel=1e-12)
    # Azad et al. print sinh for cosh: a logarithm of less than 1, negative
    assert math.log(math.sinh(48 / 77)) < 0
    hard = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).double()
    assert LogCoshDice(smooth=0)(-1e3 * hard, target).item() == pytest.approx(math.log(math.cosh(1)), rel=1e-9)
    # near the optimum x²/2, to the last digits
    x = Dice()(9 * hard, target).item()
    assert LogCoshDice()(9 * hard, target).item() == pytest.approx(x * x / 2, rel=1e-6)


def _generalized(found: list[tuple[int, list[float], int]], power: int, absent: str) -> float:
    """Sudre et al., with the printed weights; an absent class has the largest of the others, or none."""
    sums = [_sums(found, c) for c in range(len(found[0][1]))]
    sizes = [tp + fn for tp, _, fn, _ in sums]
    largest = max(1 / round(n) ** power for n in sizes if n > 0.5) if absent == "include" else 0.0
    weights = [1 / round(n) ** power if n > 0.5 else largest for n in sizes]
    part = sum(w * 2 * tp for w, (tp, _, _, _) in zip(weights, sums, strict=True))
    return 1 - part / sum(w * (2 * tp + fp + fn) for w, (tp, fp, fn, _) in zip(weights, sums, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("weights", "power"), [("square", 2), ("simple", 1), ("uniform", 0)])
@pytest.mark.parametrize("absent", ["include", "skip"])
@pytest.mark.parametrize("sample", [False, True])
def test_generalized_dice_and_its_penalty_against_loops(
    agree: Agree,
    example: Make,
    voxels: Voxels,
    shape: tuple[int, ...],
    weights: str,
    power: int,
    absent: str,
    sample: bool,
) -> None:
    logits, target = example(shape, ignored=True)
    target[target == 1] = 0
    found = voxels(logits, target)
    groups = [[v for v in found if v[0] == b] for b in range(shape[0])] if sample else [found]
    losses = [_generalized(group, power, absent) for group in groups]
    options = {"absent": absent, "reduction": "sample" if sample else "batch", "smooth": 0.0}
    ours = GeneralizedDice(weights, **options)(logits, target)
    agree("generalized_dice", "loops over voxels", ours, np.mean(losses), 1e-10)
    # Yang et al.: GD / (1 + k (1 - GD)) of the score GD
    penalised = [1 - (1 - x) / (1 + 2.5 * x) for x in losses]
    ours = PenaltyGeneralizedDice(weights=weights, **options)(logits, target)
    agree("penalty_generalized_dice", "loops over voxels", ours, np.mean(penalised), 1e-10)
    without = PenaltyGeneralizedDice(0, weights, **options)(logits, target)
    assert without.item() == pytest.approx(np.mean(losses), rel=1e-10)


def test_generalized_dice_by_hand(four: Case) -> None:
    logits, target = four
    # sizes 1 and 3: weights 1 and 1/9. TP 1/4 and 3/2, Σp + Σt 11/4 and 21/4:
    # 1 - 2 (1/4 + 1/6) / (11/4 + 7/12) = 1 - (5/6) / (10/3) = 3/4
    assert GeneralizedDice(smooth=0)(logits, target).item() == pytest.approx(0.75, rel=1e-12)
    # weights 1 and 1/3: 1 - 2 (1/4 + 1/2) / (11/4 + 7/4) = 1 - (3/2) / (9/2)
    assert GeneralizedDice("simple", smooth=0)(logits, target).item() == pytest.approx(2 / 3, rel=1e-12)
    # weights 1: 1 - 2 (7/4) / 8
    assert GeneralizedDice("uniform", smooth=0)(logits, target).item() == pytest.approx(9 / 16, rel=1e-12)
    # x = 3/4: 3.5 x / (1 + 2.5 x) = 2.625 / 2.875
    assert PenaltyGeneralizedDice(smooth=0)(logits, target).item() == pytest.approx(21 / 23, rel=1e-12)


def test_the_smoothing_of_generalized_dice_does_not_depend_on_the_size_of_the_image() -> None:
    """With the printed weights s = 1e-5 exceeds 1 / 512² and pulls the loss of a random prediction towards 0."""
    logits = torch.zeros(1, 2, 512, 512, dtype=torch.float64)
    target = (torch.arange(512 * 512) % 2).view(1, 512, 512)
    assert GeneralizedDice()(logits, target).item() == pytest.approx(0.5, rel=1e-6)


def test_a_class_that_is_absent_from_generalized_dice_costs_or_is_left_out() -> None:
    # 4 voxels, uniform over 4 classes; labels 0, 0, 1, 1: TP 1/2 each, Σp + Σt = 3 each, and 1 for classes 2 and 3
    logits, target = torch.zeros(1, 4, 4, dtype=torch.float64), torch.tensor([[0, 0, 1, 1]])
    assert GeneralizedDice(smooth=0)(logits, target).item() == pytest.approx(1 - 2 / 8, rel=1e-12)
    assert GeneralizedDice(absent="skip", smooth=0)(logits, target).item() == pytest.approx(1 - 2 / 6, rel=1e-12)
    # nothing there at all: everything that is given to the objects is wrong, or nothing counts
    empty = torch.zeros(1, 4, dtype=torch.int64)
    assert GeneralizedDice(background=False, smooth=0)(logits, empty).item() == pytest.approx(1, rel=1e-12)
    assert GeneralizedDice(background=False, absent="skip", smooth=0)(logits, empty).item() == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_sensitivity_specificity_against_loops(
    agree: Agree, example: Make, voxels: Voxels, shape: tuple[int, ...], sample: bool, background: bool
) -> None:
    logits, target = example(shape, ignored=True)
    found = voxels(logits, target)
    groups = [[v for v in found if v[0] == b] for b in range(shape[0])] if sample else [found]
    rows = []
    for group in groups:
        row = []
        for c in range(0 if background else 1, shape[1]):
            inside = [(1 - p[c]) ** 2 for _, p, y in group if y == c]
            outside = [p[c] ** 2 for _, p, y in group if y != c]
            row.append(0.2 * sum(inside) / (len(inside) + S) + 0.8 * sum(outside) / (len(outside) + S))
        rows.append(row)
    loss = SensitivitySpecificity(0.2, background, "sample" if sample else "batch")
    agree("sensitivity_specificity", "loops over voxels", loss(logits, target), _mean(rows), 1e-10)


def test_sensitivity_specificity_by_hand(four: Case) -> None:
    logits, target = four
    # class 1: inside (1/16 + 1/4 + 9/16) / 3 = 7/24, outside 9/16; class 0: inside 9/16, outside 7/24
    value = SensitivitySpecificity(0.1, smooth=0)(logits, target).item()
    assert value == pytest.approx((0.1 + 0.9) * (7 / 24 + 9 / 16) / 2, rel=1e-12)
    value = SensitivitySpecificity(0.1, background=False, smooth=0)(logits, target).item()
    assert value == pytest.approx(0.1 * 7 / 24 + 0.9 * 9 / 16, rel=1e-12)


def test_sensitivity_specificity_does_not_reward_false_negatives() -> None:
    """As printed by Azad et al. a perfect prediction costs 1, and one that misses everything 0.95."""
    target = torch.tensor([[1, 1, 0, 0, 0, 0]])
    hard = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).double()
    missing = torch.nn.functional.one_hot(torch.zeros_like(target), 2).movedim(-1, 1).double()
    loss = SensitivitySpecificity(background=False)
    assert loss(1e3 * hard, target).item() == pytest.approx(0, abs=1e-12)
    assert loss(1e3 * missing, target).item() == pytest.approx(0.05, rel=1e-4)
    # sensitivity alone
    assert SensitivitySpecificity(1, background=False)(1e3 * missing, target).item() == pytest.approx(1, rel=1e-4)
    assert SensitivitySpecificity(0, background=False)(1e3 * missing, target).item() == pytest.approx(0, abs=1e-12)


def test_asymmetric_similarity_of_beta_1_is_tversky_of_halves(example: Make) -> None:
    logits, target = example(SHAPES[0], ignored=True)
    torch.testing.assert_close(AsymmetricSimilarity(1)(logits, target), Tversky(0.5, 0.5)(logits, target))
    # β = 0 is precision: false positives only
    torch.testing.assert_close(AsymmetricSimilarity(0)(logits, target), Tversky(1, 0)(logits, target))


@pytest.mark.parametrize(
    "loss",
    [
        LogCoshDice(),
        GeneralizedDice(),
        GeneralizedDice("simple", False, "sample", "skip"),
        PenaltyGeneralizedDice(reduction="sample"),
        AsymmetricSimilarity(absent="penalise"),
        SensitivitySpecificity(0.3),
        SensitivitySpecificity(0.3, False, "sample", "penalise"),
    ],
)
def test_gradients_agree_with_differences(example: Make, loss: torch.nn.Module) -> None:
    logits, target = example((2, 3, 3, 2))
    target[0, 0, 0] = 255
    target[1][target[1] == 2] = 0
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    assert not gradient[0, :, 0, 0].any()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: GeneralizedDice("cubic"), "square"),
        (lambda: GeneralizedDice(absent="penalise"), "skip"),
        (lambda: GeneralizedDice(reduction="mean"), "batch"),
        (lambda: PenaltyGeneralizedDice(-1), "k must"),
        (lambda: AsymmetricSimilarity(-1), "beta"),
        (lambda: SensitivitySpecificity(1.5), "r must"),
        (lambda: SensitivitySpecificity(absent="drop"), "penalise"),
    ],
)
def test_arguments_that_are_none(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
