"""Region losses against MONAI, loops over voxels, the definition of Lovász and arithmetic by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceLoss
from monai.losses import TverskyLoss as MonaiTversky

from harness.losses import Dice, FocalTversky, Jaccard, LovaszSoftmax, Tversky

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]
LN3 = math.log(3)
S = 1e-5


def _example(shape: tuple[int, ...], ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    logits = torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.3] = 255
    return logits, target


def _four() -> tuple[torch.Tensor, torch.Tensor]:
    # p of class 1: 3/4, 1/2, 1/4, 3/4; labels 1, 1, 1, 0
    # class 1: TP = 3/2, FP = 3/4, FN = 3/2, Σp = 9/4, Σt = 3
    # class 0: TP = 1/4, FP = 3/2, FN = 3/4, Σp = 7/4, Σt = 1
    logits = torch.tensor([[[0.0, 0, 0, 0], [LN3, 0, -LN3, LN3]]], dtype=torch.float64)
    return logits, torch.tensor([[1, 1, 1, 0]])


def _by_voxels(
    logits: torch.Tensor, target: torch.Tensor, score: Callable[[float, float, float, float], float], sample: bool
) -> list[list[float]]:
    """`score(tp, fp, fn, p²)` of each class from sums in plain loops, per sample or over the batch."""
    z, y = logits.flatten(2).tolist(), target.flatten(1).tolist()
    groups = [[b] for b in range(len(z))] if sample else [list(range(len(z)))]
    out = []
    for group in groups:
        values = []
        for c in range(len(z[0])):
            tp = fp = fn = squares = 0.0
            for b in group:
                for n, label in enumerate(y[b]):
                    if label == 255:
                        continue
                    e = [math.exp(channel[n]) for channel in z[b]]
                    p, t = e[c] / sum(e), float(label == c)
                    tp, fp, fn, squares = tp + t * p, fp + (1 - t) * p, fn + t * (1 - p), squares + p * p
            values.append(score(tp, fp, fn, squares))
        out.append(values)
    return out


def _mean(rows: list[list[float]]) -> float:
    return sum(sum(row) / len(row) for row in rows) / len(rows)


def test_dice_jaccard_tversky_by_hand() -> None:
    logits, target = _four()

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


def test_lovasz_by_hand() -> None:
    logits, target = _four()
    # class 1: errors 1/4, 1/2, 3/4 of the object, 3/4 of the background (p = 3/4). Sorted: 3/4 fg, 3/4 bg, 1/2 fg, 1/4 fg.
    # Jaccard losses of the prefixes: 1/3; 2/4; 3/4; 4/4, steps 1/3, 1/6, 1/4, 1/4:
    # 3/4 · (1/3 + 1/6) + 1/2 · 1/4 + 1/4 · 1/4 = 3/8 + 1/8 + 1/16 = 9/16
    # class 0: errors 1/4 bg, 1/2 bg, 3/4 bg, 3/4 fg. Sorted: 3/4 bg, 3/4 fg, 1/2 bg, 1/4 bg.
    # Prefixes: 1/2; 2/2; ...: 3/4 · 1/2 + 3/4 · 1/2 = 3/4. Mean: 21/32
    assert LovaszSoftmax()(logits, target).item() == pytest.approx(21 / 32, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_agreement_with_monai(shape: tuple[int, ...], background: bool, reduction: str) -> None:
    logits, target = _example(shape)
    ours = {"background": background, "reduction": reduction}
    theirs = {"include_background": background, "batch": reduction == "batch", "to_onehot_y": True, "softmax": True}
    pairs = [
        (Dice(**ours), DiceLoss(**theirs)),
        (Dice(squared=True, **ours), DiceLoss(squared_pred=True, **theirs)),
        # MONAI's Jaccard is (2 TP + s) / (2 union + s): its s is twice ours
        (Jaccard(**ours), DiceLoss(jaccard=True, smooth_nr=2 * S, smooth_dr=2 * S, **theirs)),
        (Tversky(0.3, 0.7, **ours), MonaiTversky(alpha=0.3, beta=0.7, **theirs)),
    ]
    for mine, monai in pairs:
        expected = monai(logits, target[:, None]).item()
        # MONAI makes its one-hot label in float32
        assert mine(logits, target).item() == pytest.approx(expected, rel=1e-6), type(mine).__name__


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample", [False, True])
def test_ignored_voxels_against_loops(shape: tuple[int, ...], sample: bool) -> None:
    logits, target = _example(shape, ignored=True)
    reduction = "sample" if sample else "batch"

    def dice(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (2 * tp + S) / (2 * tp + fp + fn + S)

    def squared(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (2 * tp + S) / (squares + tp + fn + S)

    def jaccard(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (tp + S) / (tp + fp + fn + S)

    def tversky(tp: float, fp: float, fn: float, squares: float) -> float:
        return 1 - (tp + S) / (tp + 0.2 * fp + 0.9 * fn + S)

    for loss, score in [
        (Dice(reduction=reduction), dice),
        (Dice(squared=True, reduction=reduction), squared),
        (Jaccard(reduction=reduction), jaccard),
        (Tversky(0.2, 0.9, reduction=reduction), tversky),
    ]:
        expected = _mean(_by_voxels(logits, target, score, sample))
        assert loss(logits, target).item() == pytest.approx(expected, rel=1e-10), type(loss).__name__


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("classes", ["mean", "sum"])
@pytest.mark.parametrize("background", [True, False])
def test_focal_tversky_against_loops(sample: bool, classes: str, background: bool) -> None:
    logits, target = _example(SHAPES[0], ignored=True)

    def focal(tp: float, fp: float, fn: float, squares: float) -> float:
        return (1 - (tp + S) / (tp + 0.3 * fp + 0.7 * fn + S)) ** 0.75

    rows = [row[0 if background else 1 :] for row in _by_voxels(logits, target, focal, sample)]
    expected = _mean(rows) * (len(rows[0]) if classes == "sum" else 1)
    loss = FocalTversky(classes=classes, background=background, reduction="sample" if sample else "batch")
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-10)


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
def test_lovasz_is_its_definition(shape: tuple[int, ...], classes: str, ignored: bool, per_image: bool) -> None:
    logits, target = _example(shape, ignored)
    target[target == 1] = 0  # class 1 is absent
    images = [(logits[b : b + 1], target[b : b + 1]) for b in range(len(logits))] if per_image else [(logits, target)]
    expected = sum(_lovasz(z, y, classes) for z, y in images) / len(images)
    assert LovaszSoftmax(classes, per_image)(logits, target).item() == pytest.approx(expected, rel=1e-12)


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
@pytest.mark.parametrize("options", [{}, {"reduction": "sample"}, {"background": False}, {"absent": "penalise"}])
def test_identities(shape: tuple[int, ...], options: dict) -> None:
    logits, target = _example(shape, ignored=True)

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
