"""Values of the losses: computed by hand, by torch and MONAI, and by loops over voxels written from the formulas."""

import math

import monai.losses as monai
import numpy as np
import pytest
import torch

from harness.losses import LOSSES, CrossEntropy, Dice, DiceCE, Focal, FocalTversky, Jaccard, LovaszSoftmax, Tversky

SHAPES = [(2, 4, 7, 6), (2, 3, 4, 5, 3)]

# Four voxels, two classes. Probability of class 1: .1 .4 .8 .6; the truth is 0 0 1 1.
P1 = torch.tensor([[0.1, 0.4], [0.8, 0.6]], dtype=torch.float64)
LOGITS = torch.stack([1 - P1, P1])[None].log()  # softmax of the logarithms gives the probabilities back
TARGET = torch.tensor([[[0, 0], [1, 1]]])
LN = {p: -math.log(p) for p in (0.9, 0.6, 0.8)}
# TP, Σp, Σt are 1.5, 2.1, 2 for class 0 and 1.4, 1.9, 2 for class 1; FP .6 and .5, FN .5 and .6.
HAND = {
    "ce": (CrossEntropy(), (LN[0.9] + LN[0.6] + LN[0.8] + LN[0.6]) / 4),
    "weighted ce": (
        CrossEntropy(torch.tensor([1.0, 3.0])),
        (LN[0.9] + LN[0.6] + 3 * LN[0.8] + 3 * LN[0.6]) / (1 + 1 + 3 + 3),
    ),
    "focal": (Focal(2.0), (0.01 * LN[0.9] + 0.16 * LN[0.6] + 0.04 * LN[0.8] + 0.16 * LN[0.6]) / 4),
    "focal alpha": (
        Focal(1.0, torch.tensor([0.75, 0.25])),
        (0.75 * (0.1 * LN[0.9] + 0.4 * LN[0.6]) + 0.25 * (0.2 * LN[0.8] + 0.4 * LN[0.6])) / 4,
    ),
    "dice": (Dice(smooth=0), 1 - (3.0 / 4.1 + 2.8 / 3.9) / 2),
    "dice smooth 1": (Dice(smooth=1), 1 - (4.0 / 5.1 + 3.8 / 4.9) / 2),
    "dice foreground": (Dice(smooth=0, background=False), 1 - 2.8 / 3.9),
    # Σp² is .81 + .36 + .04 + .16 = 1.37 and .01 + .16 + .64 + .36 = 1.17
    "dice squared": (Dice(smooth=0, squared=True), 1 - (3.0 / 3.37 + 2.8 / 3.17) / 2),
    "jaccard": (Jaccard(smooth=0), 1 - (1.5 / 2.6 + 1.4 / 2.5) / 2),
    # fp_weight .3, fn_weight .7: 1.5 + .18 + .35 = 2.03 and 1.4 + .15 + .42 = 1.97
    "tversky": (Tversky(fp_weight=0.3, fn_weight=0.7, smooth=0), 1 - (1.5 / 2.03 + 1.4 / 1.97) / 2),
    "focal tversky": (
        FocalTversky(0.3, 0.7, 4 / 3, smooth=0),
        ((0.53 / 2.03) ** 0.75 + (0.57 / 1.97) ** 0.75) / 2,
    ),
    "focal tversky sum": (
        FocalTversky(0.3, 0.7, 2.0, classes="sum", smooth=0),
        (0.53 / 2.03) ** 0.5 + (0.57 / 1.97) ** 0.5,
    ),
    # Errors .1 .4 .2 .4. Class 1, sorted .4(bg) .4(fg) .2(fg) .1(bg): Jaccard losses 1/3 2/3 1 1, steps 1/3 1/3 1/3 0.
    # Class 0, sorted .4(fg) .4(bg) .2(bg) .1(fg): 1/2 2/3 3/4 1, steps 1/2 1/6 1/12 1/4.
    "lovasz": (
        LovaszSoftmax(),
        ((0.4 + 0.4 + 0.2) / 3 + 0.4 * (1 / 2 + 1 / 6) + 0.2 / 12 + 0.1 / 4) / 2,
    ),
    "dice + ce": (
        DiceCE(dice_weight=2.0, ce_weight=0.5),
        2 * (1 - (3.00001 / 4.10001 + 2.80001 / 3.90001) / 2) + 0.5 * (LN[0.9] + LN[0.6] + LN[0.8] + LN[0.6]) / 4,
    ),
}


def value(loss, logits, target):
    out = loss(logits, target)
    return (out["loss"] if isinstance(out, dict) else out).item()


def sample(shape, seed=0):
    batch, classes, *space = shape
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    return logits, torch.randint(0, classes, (batch, *space), generator=g)


@pytest.mark.parametrize("case", HAND)
def test_four_voxels_by_hand(case):
    loss, expected = HAND[case]
    assert value(loss, LOGITS, TARGET) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_agrees_with_torch(shape):
    logits, target = sample(shape)
    target[0, 0] = 255
    weight = torch.rand(shape[1], dtype=torch.float64)
    for w in (None, weight):
        theirs = torch.nn.CrossEntropyLoss(w, ignore_index=255)(logits, target)
        assert value(CrossEntropy(w), logits, target) == pytest.approx(theirs.item(), rel=1e-9)


S = 1e-5
MONAI = [
    ({}, Dice(), monai.DiceLoss),
    ({"batch": False}, Dice(reduction="sample"), monai.DiceLoss),
    ({"include_background": False}, Dice(background=False), monai.DiceLoss),
    ({"squared_pred": True}, Dice(squared=True), monai.DiceLoss),
    # MONAI doubles the sums of the Jaccard index, and not its smoothing
    ({"jaccard": True}, Jaccard(smooth=S / 2), monai.DiceLoss),
    ({"jaccard": True, "batch": False}, Jaccard(reduction="sample", smooth=S / 2), monai.DiceLoss),
    ({"alpha": 0.3, "beta": 0.7}, Tversky(fp_weight=0.3, fn_weight=0.7), monai.TverskyLoss),
    ({"alpha": 0.8, "beta": 0.2, "batch": False}, Tversky(0.8, 0.2, reduction="sample"), monai.TverskyLoss),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("options", "ours", "theirs"), MONAI)
def test_region_losses_agree_with_monai(options, ours, theirs, shape):
    logits, target = sample(shape, 1)
    reference = theirs(
        **{"softmax": True, "to_onehot_y": True, "batch": True, "smooth_nr": S, "smooth_dr": S} | options
    )
    # MONAI makes its one-hot label in float32
    assert value(ours, logits, target) == pytest.approx(reference(logits, target[:, None]).item(), rel=1e-6)


def test_focal_is_monais_times_the_number_of_classes():
    logits, target = sample((2, 4, 5, 5), 2)
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=1.5)(logits, target[:, None])
    assert value(Focal(1.5), logits, target) == pytest.approx(4 * theirs.item(), rel=1e-6)


def voxels(logits, target):
    """(probabilities (C,), label) of every valid voxel, in plain numpy, without torch's softmax."""
    out = []
    for b in range(len(logits)):
        for at in np.ndindex(*target.shape[1:]):
            if target[b][at] != 255:
                raw = logits[(b, slice(None), *at)]
                e = [math.exp(v - max(raw)) for v in raw]
                out.append(([v / sum(e) for v in e], int(target[b][at])))
    return out


def focal_by_loop(points, classes, gamma, alpha):
    return sum(alpha[y] * (1 - p[y]) ** gamma * -math.log(p[y]) for p, y in points) / len(points)


def focal_tversky_by_loop(points, classes, fp_weight, fn_weight, gamma):
    total = 0.0
    for c in range(classes):
        tp = sum(p[c] for p, y in points if y == c)
        fp = sum(p[c] for p, y in points if y != c)
        fn = sum(1 - p[c] for p, y in points if y == c)
        total += (1 - (tp + S) / (tp + fp_weight * fp + fn_weight * fn + S)) ** (1 / gamma)
    return total / classes


def lovasz_by_definition(points, classes, only_present):
    """Σ_i m_(i) (J({1..i}) - J({1..i-1})), J(M) the Jaccard loss when the voxels of the set M are wrong."""
    losses = []
    for c in range(classes):
        truth = {i for i, (_, y) in enumerate(points) if y == c}
        if only_present and not truth:
            continue
        errors = [1 - p[c] if y == c else p[c] for p, y in points]
        order = sorted(range(len(points)), key=lambda i: -errors[i])
        total, before, wrong = 0.0, 0.0, set()
        for i in order:
            wrong.add(i)
            predicted = truth ^ wrong
            union = truth | predicted
            jaccard = 1 - len(truth & predicted) / len(union) if union else 0.0
            total, before = total + errors[i] * (jaccard - before), jaccard
        losses.append(total)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(2, 4, 5, 4), (1, 3, 3, 4, 3)])
def test_losses_agree_with_loops_over_voxels(shape):
    logits, target = sample(shape, 3)
    target[target == shape[1] - 1] = 0  # the last class is absent
    target[0, 0, 0] = 255
    points, classes = voxels(logits.numpy(), target.numpy()), shape[1]
    alpha = torch.linspace(0.2, 1, classes, dtype=torch.float64)
    close = {"rel": 1e-9, "abs": 1e-12}
    assert value(Focal(2.5, alpha), logits, target) == pytest.approx(
        focal_by_loop(points, classes, 2.5, alpha.tolist()), **close
    )
    assert value(FocalTversky(0.2, 0.8, 2.0), logits, target) == pytest.approx(
        focal_tversky_by_loop(points, classes, 0.2, 0.8, 2.0), rel=1e-5
    )
    for only in (True, False):
        assert value(LovaszSoftmax("present" if only else "all"), logits, target) == pytest.approx(
            lovasz_by_definition(points, classes, only), rel=1e-7
        )


def test_lovasz_of_a_hard_prediction_is_the_jaccard_loss():
    _, target = sample((2, 3, 6, 6), 4)
    _, predicted = sample((2, 3, 6, 6), 5)
    logits = 1e3 * torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).double()
    expected = [
        1 - ((predicted == c) & (target == c)).sum() / ((predicted == c) | (target == c)).sum() for c in range(3)
    ]
    assert value(LovaszSoftmax(), logits, target) == pytest.approx(sum(expected).item() / 3, rel=1e-6)


def test_lovasz_per_image_is_the_mean_over_images():
    logits, target = sample((3, 3, 4, 4), 6)
    each = [value(LovaszSoftmax(), logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert value(LovaszSoftmax(per_image=True), logits, target) == pytest.approx(sum(each) / 3)


def test_identities():
    logits, target = sample((2, 4, 6, 6), 7)
    target[1, :2] = 255
    # Tversky's numerator is half of Dice's, so its smoothing is too
    dice = value(Dice(smooth=2e-3), logits, target)
    assert value(Tversky(0.5, 0.5, smooth=1e-3), logits, target) == pytest.approx(dice, rel=1e-9)
    jaccard = value(Jaccard(), logits, target)
    assert value(Tversky(1, 1), logits, target) == pytest.approx(jaccard, rel=1e-9)
    assert value(FocalTversky(0.3, 0.7, 1.0), logits, target) == pytest.approx(
        value(Tversky(0.3, 0.7), logits, target), rel=1e-9
    )
    ce = value(CrossEntropy(), logits, target)
    assert value(Focal(0.0), logits, target) == pytest.approx(ce, rel=1e-12)
    terms = DiceCE()(logits, target)
    assert set(terms) == {"loss", "dice", "ce"}
    assert terms["dice"].item() == pytest.approx(value(Dice(), logits, target))
    assert terms["loss"].item() == pytest.approx(value(Dice(), logits, target) + ce)


def test_one_error_costs_more_where_its_weight_is_larger():
    """Voxels 0 0 0 1 1 1: one false positive against one false negative of class 1."""
    target = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    over, under = torch.tensor([[[0, 0, 1, 1, 1, 1]]]), torch.tensor([[[0, 0, 0, 0, 1, 1]]])
    hard = {k: 50.0 * torch.nn.functional.one_hot(v, 2).movedim(-1, 1) for k, v in (("fp", over), ("fn", under))}
    loss = Tversky(fp_weight=0.1, fn_weight=0.9, background=False, smooth=0)
    # TP 3, FP 1: .1 / 3.1; TP 2, FN 1: .9 / 2.9
    assert value(loss, hard["fp"], target) == pytest.approx(0.1 / 3.1, rel=1e-5)
    assert value(loss, hard["fn"], target) == pytest.approx(0.9 / 2.9, rel=1e-5)


def test_absent_classes():
    """Class 2 has no voxel and is given .1 of each; classes 0 and 1 are given .9 in truth and 0 elsewhere."""
    p = torch.tensor([[0.9, 0.9, 0, 0], [0, 0, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    logits, target = p.clamp_min(1e-12).log()[None], torch.tensor([[0, 0, 1, 1]])
    there = 1 - 3.6 / 3.8  # 2 · 1.8 / (1.8 + 2)
    expected = {
        "include": (2 * there + 1) / 3,
        "skip": there,
        "penalise": (2 * there + 0.1) / 3,
    }
    for policy, wanted in expected.items():
        assert value(Dice(absent=policy), logits, target) == pytest.approx(wanted, rel=1e-4)
    # per sample: a second image in which every class is there changes nothing for the first
    full = torch.tensor([[0, 0, 1, 2]])
    pair, targets = torch.cat([logits, logits]), torch.cat([target, full])
    one, two = (value(Dice(absent="skip", reduction="sample"), logits, t) for t in (target, full))
    assert value(Dice(absent="skip", reduction="sample"), pair, targets) == pytest.approx((one + two) / 2)


def test_penalise_pushes_an_absent_class_down_where_include_does_nothing():
    logits = torch.zeros(1, 3, 64, 64, requires_grad=True)
    target = torch.zeros(1, 64, 64, dtype=torch.long)
    sizes = {}
    for policy in ("include", "penalise"):
        (grad,) = torch.autograd.grad(Dice(absent=policy, background=False)(logits, target), logits)
        sizes[policy] = grad[:, 2].abs().sum().item()
        assert (grad[:, 2] >= 0).all()
    # the mean over two absent classes of the mean of p = 1/3: 1/2 (p_2 (1 - p_2) - p_1 p_2) = 1/2 (2/9 - 1/9)
    assert sizes["penalise"] == pytest.approx(1 / 18, rel=1e-4)
    assert sizes["include"] < 1e-6


def test_sum_over_classes_counts_the_classes_that_count():
    """`classes="sum"` is the sum of the terms of the mean, whatever the policy leaves out."""
    logits, target = sample((2, 4, 5, 5), 8)
    target[target == 3] = 0
    for background in (True, False):
        for absent, counted in (("include", 3 + background), ("skip", 2 + background), ("penalise", 3 + background)):
            options = {"background": background, "absent": absent}
            mean, total = (value(FocalTversky(classes=c, **options), logits, target) for c in ("mean", "sum"))
            assert total == pytest.approx(counted * mean), options


@pytest.mark.parametrize("loss", [Dice(), Jaccard(), Tversky(), DiceCE()])
def test_sums_over_many_voxels_keep_their_digits(loss):
    """A 3D patch has millions of voxels: adding them up one by one in float32 loses digits."""
    g = torch.Generator().manual_seed(9)
    logits, target = torch.randn(1, 2, 128, 128, 96, generator=g), torch.zeros(1, 128, 128, 96, dtype=torch.long)
    target[:, :8] = 1
    assert value(loss, logits, target) == pytest.approx(value(loss, logits.double(), target), rel=2e-6)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Dice(reduction="mean"), "batch"),
        (lambda: Dice(absent="zero"), "penalise"),
        (lambda: Tversky(-0.1, 0.5), "negative"),
        (lambda: FocalTversky(gamma=0), "gamma"),
        (lambda: FocalTversky(classes="max"), "mean"),
        (lambda: LovaszSoftmax("some"), "present"),
        (lambda: Focal(-1), "gamma"),
    ],
)
def test_wrong_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_the_table_names_classes_that_exist_and_imports_no_torch():
    import importlib
    import subprocess
    import sys

    for target in LOSSES.values():
        module, _, name = target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        assert cls.version >= 1
        assert cls.__doc__
        assert "20" in cls.__doc__ or "ours" in cls.__doc__, "the docstring names the paper with its year"
    code = (
        "import sys, harness.losses, harness.losses.needs; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
