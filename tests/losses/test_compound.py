"""Sums of losses against exacta, MONAI, torch, loops over voxels and arithmetic by hand."""

import math

import numpy as np
import pytest
import torch
from exacta.losses import DiceFocalLoss as ExactaDiceFocal
from exacta.losses import DiceTopKCELoss as ExactaDiceTopK
from monai.losses import DiceCELoss
from torch import nn

from harness.losses.compound import Combo, DiceCE, DiceFocal, DiceTopK, ExpLog, Sum
from harness.losses.dice import Dice
from harness.losses.pixel import CrossEntropy, Focal

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]
EVERY = [DiceCE, DiceTopK, DiceFocal, Combo, ExpLog]


def _example(shape, ignored=False, seed=0):
    chance = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.3] = 255
    return logits, target


def _voxels(logits, target):
    """Probabilities and labels of the valid voxels, in plain loops: lists of (sample, p of each class, label)."""
    z, y = logits.flatten(2).numpy(), target.flatten(1).numpy()
    out = []
    for b in range(len(z)):
        for n in range(z.shape[2]):
            if y[b, n] != 255:
                e = np.exp(z[b, :, n] - z[b, :, n].max())
                out.append((b, e / e.sum(), int(y[b, n])))
    return out


def _dice_by_voxels(voxels, classes, smooth, first=0, sample=False):
    """Dice of each class, per sample or over all."""
    groups = [[v for v in voxels if v[0] == b] for b in sorted({v[0] for v in voxels})] if sample else [voxels]
    rows = []
    for group in groups:
        row = []
        for c in range(first, classes):
            tp = sum(p[c] for _, p, y in group if y == c)
            size = sum(p[c] for _, p, _ in group) + sum(y == c for _, _, y in group)
            row.append((2 * tp + smooth) / (size + smooth))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_dice_ce_is_that_of_monai(shape, reduction, agree):
    logits, target = _example(shape)
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, batch=reduction == "batch", lambda_dice=0.7, lambda_ce=1.3)
    ours = DiceCE(0.7, 1.3, reduction=reduction)(logits, target)
    agree("dice_ce", "MONAI DiceCELoss", ours["loss"], theirs(logits, target[:, None]))
    torch.testing.assert_close(ours["loss"], 0.7 * ours["dice"] + 1.3 * ours["ce"])


def test_one_softmax_gives_what_the_parts_give():
    logits, target = _example((2, 4, 5, 4), ignored=True)
    options = {"background": False, "reduction": "sample", "absent": "skip", "smooth": 0.5}
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0])
    for gamma in (0.0, 0.7, 2.0):
        terms = DiceFocal(gamma=gamma, alpha=weight, **options)(logits, target)
        torch.testing.assert_close(terms["focal"], Focal(gamma=gamma, alpha=weight)(logits, target))
        torch.testing.assert_close(terms["dice"], Dice(**options)(logits, target))
    torch.testing.assert_close(DiceCE()(logits, target)["ce"], CrossEntropy()(logits, target))


def test_dice_ce_passes_its_options_on():
    logits, target = _example((2, 4, 5, 4), ignored=True)
    target[target == 3] = 0
    options = {"background": False, "reduction": "sample", "absent": "penalise", "smooth": 0.5}
    terms = DiceCE(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), **options)(logits, target)
    torch.testing.assert_close(terms["dice"], Dice(**options)(logits, target))
    torch.testing.assert_close(terms["ce"], CrossEntropy(torch.tensor([1.0, 2.0, 3.0, 4.0]))(logits, target))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
def test_dice_topk_is_that_of_exacta(shape, ignored, agree):
    logits, target = _example(shape, ignored)
    # exacta keeps ceil(fraction · voxels): a number of voxels at which floor and ceiling are one
    valid = (target != 255).flatten().nonzero()[:, 0]
    target.view(-1)[valid[4 * (len(valid) // 4) :]] = 255
    theirs = ExactaDiceTopK(fraction=0.25, batch_dice=True, ignore_index=255, backend="torch")(logits, target)
    agree("dice_topk", "exacta DiceTopKCELoss", DiceTopK(k=25.0)(logits, target)["loss"], theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
def test_dice_focal_is_that_of_exacta(shape, ignored, agree):
    logits, target = _example(shape, ignored)
    theirs = ExactaDiceFocal(gamma=1.5, batch_dice=True, lambda_focal=0.5, ignore_index=255, backend="torch")
    # exacta's focal term is the mean over voxels, ours too
    ours = DiceFocal(focal_weight=0.5, gamma=1.5)(logits, target)
    agree("dice_focal", "exacta DiceFocalLoss", ours["loss"], theirs(logits, target))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("sample", [False, True])
def test_dice_focal_and_topk_against_loops(shape, background, sample, agree):
    logits, target = _example(shape, ignored=True)
    voxels, first = _voxels(logits, target), 0 if background else 1
    dice = 1 - _dice_by_voxels(voxels, shape[1], 0.3, first, sample).mean()
    focal = np.mean([-((1 - p[y]) ** 2) * math.log(p[y]) for _, p, y in voxels])
    options = {"background": background, "reduction": "sample" if sample else "batch", "smooth": 0.3}
    ours = DiceFocal(2.0, 3.0, **options)(logits, target)["loss"]
    agree("dice_focal", "loops over voxels", ours, 2 * dice + 3 * focal)
    worst = sorted((-math.log(p[y]) for _, p, y in voxels), reverse=True)[: int(len(voxels) * 30 / 100)]
    ours = DiceTopK(2.0, 3.0, k=30.0, **options)(logits, target)["loss"]
    agree("dice_topk", "loops over voxels", ours, 2 * dice + 3 * np.mean(worst))


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 4, 4)])
@pytest.mark.parametrize("background", [True, False])
def test_combo_against_loops(shape, background, agree):
    logits, target = _example(shape, ignored=True)
    voxels, first = _voxels(logits, target), 0 if background else 1
    total = 0.0
    for _, p, y in voxels:
        for c in range(first, shape[1]):
            total += 0.7 * math.log(p[c]) if y == c else 0.2 * math.log(1 - p[c])
    ce = -total / (len(voxels) * (shape[1] - first))
    dice = 1 - _dice_by_voxels(voxels, shape[1], 1.0, first).mean()
    ours = Combo(ce_weight=0.3, fn_weight=0.7, fp_weight=0.2, background=background)(logits, target)
    agree("combo", "loops over voxels", ours["loss"], 0.3 * ce + 0.7 * dice)
    assert ours["ce"].item() == pytest.approx(ce, rel=1e-12)


def test_combo_of_two_classes_is_binary_cross_entropy_and_dice(agree):
    logits, target = _example((2, 2, 5, 4))
    p = logits.softmax(1)[:, 1]
    t = target.double()
    theirs = 0.25 * nn.functional.binary_cross_entropy(p, t) + 0.5 * (
        1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    )
    # α = β = 1/2: half of the mean of half of each part
    agree("combo", "torch binary_cross_entropy", Combo(background=False)(logits, target)["loss"], theirs)


def test_combo_punishes_the_object_in_the_background():
    """The sign that versions of the authors' code have wrong."""
    target = torch.zeros(1, 8, dtype=torch.int64)
    costs = [Combo()(torch.tensor([[[0.0] * 8, [z] * 8]]), target)["ce"].item() for z in (-4.0, -1.0, 1.0, 4.0)]
    assert costs == sorted(costs) and costs[0] < costs[-1]


def test_combo_trades_errors():
    # labels 1 1 0 0, p of class 1 3/4 1/2 1/4 3/4: without fp_weight only -ln 3/4 - ln 1/2 count of class 1
    p = torch.tensor([0.75, 0.5, 0.25, 0.75], dtype=torch.float64)
    logits, target = torch.stack([1 - p, p])[None].log(), torch.tensor([[1, 1, 0, 0]])
    loss = Combo(fn_weight=1, fp_weight=0, background=False)
    assert loss(logits, target)["ce"].item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 4, rel=1e-12)
    loss = Combo(fn_weight=0, fp_weight=1, background=False)
    assert loss(logits, target)["ce"].item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 4, rel=1e-12)


def test_combo_of_certain_mistakes_is_exact_in_float32():
    # p of the wrong class is 1 - e^-50: -ln(1 - p) is 50, where 1 - p rounds to 0
    logits, target = torch.tensor([[[0.0], [50.0]]], requires_grad=True), torch.zeros(1, 1, dtype=torch.int64)
    loss = Combo(fn_weight=0, fp_weight=1, background=False)(logits, target)["ce"]
    assert loss.item() == pytest.approx(50, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad[0, 1, 0].item() == pytest.approx(1, rel=1e-6)


def _exp_log_by_voxels(voxels, classes, counts, first=0, sample=False, smooth=1e-5, gammas=(0.3, 0.3)):
    dice = (-np.log(_dice_by_voxels(voxels, classes, smooth, first, sample))) ** gammas[0]
    weights = np.sqrt(sum(counts) / np.maximum(counts, 1)) if counts is not None else np.ones(classes)
    ce = np.mean([weights[y] * (-math.log(p[y])) ** gammas[1] for _, p, y in voxels])
    return dice.mean(), ce


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sample", [False, True])
def test_exp_log_against_loops(shape, sample, agree):
    logits, target = _example(shape, ignored=True)
    counts = [1000, 70, 4, 30][: shape[1]]
    dice, ce = _exp_log_by_voxels(_voxels(logits, target), shape[1], counts, 0, sample)
    ours = ExpLog(class_counts=counts, reduction="sample" if sample else "batch")(logits, target)
    agree("exp_log", "loops over voxels", ours["loss"], 0.8 * dice + 0.2 * ce)
    dice, ce = _exp_log_by_voxels(_voxels(logits, target), shape[1], None, 1, False, 0.1, (0.5, 2.0))
    loss = ExpLog(0.1, 0.9, dice_gamma=0.5, ce_gamma=2.0, background=False, smooth=0.1)
    agree("exp_log", "loops over voxels", loss(logits, target)["loss"], 0.1 * dice + 0.9 * ce)


def test_exp_log_by_hand():
    # one voxel of each class at p = 1/2: Dice (2 · 1/2) / (1 + 1) = 1/2; counts 3 and 1: weights sqrt(4/3), 2
    logits, target = torch.zeros(1, 2, 2, dtype=torch.float64), torch.tensor([[0, 1]])
    terms = ExpLog(class_counts=[3, 1], smooth=0)(logits, target)
    power = math.log(2) ** 0.3
    assert terms["dice"].item() == pytest.approx(power, rel=1e-12)
    assert terms["ce"].item() == pytest.approx(power * (math.sqrt(4 / 3) + 2) / 2, rel=1e-12)
    # a class that training never saw is weighed as one voxel, a class that fills it as 1
    assert ExpLog(class_counts=[4, 0])(logits, target)["ce"].item() == pytest.approx(power * (1 + 2) / 2, rel=1e-12)


def test_exp_log_is_lowest_at_the_truth():
    """Eqs. 34 and 35 of the survey, logarithms of losses, are lowest at the worst prediction."""
    _, target = _example((1, 3, 8, 8))
    truth = nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    costs = [
        ExpLog(class_counts=[9, 5, 1])(size * truth, target)["loss"].item() for size in (60.0, 4.0, 1.0, 0.0, -9.0)
    ]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(0, abs=1e-6)
    logits = (60 * truth).float().requires_grad_()
    (grad,) = torch.autograd.grad(ExpLog()(logits, target)["loss"], logits)
    assert grad.isfinite().all()


def test_exp_log_without_power_or_weights_is_log_dice_and_cross_entropy():
    logits, target = _example((2, 3, 5, 4), ignored=True)
    terms = ExpLog(1, 1, dice_gamma=1, ce_gamma=1)(logits, target)
    torch.testing.assert_close(terms["ce"], CrossEntropy()(logits, target))
    one = ExpLog(dice_gamma=1, absent="skip", background=False)
    two = torch.where(target == 2, 0, target)  # only one foreground class is there
    torch.testing.assert_close(
        one(logits, two)["dice"], -torch.log(1 - Dice(background=False, absent="skip")(logits, two))
    )


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("shape", [(2, 3, 3, 2), (1, 3, 2, 2, 2)], ids=["2d", "3d"])
def test_gradients_and_ignored_voxels(cls, shape):
    logits, target = _example(shape, seed=3)
    target[:, 0] = 255
    loss = cls(k=50.0) if cls is DiceTopK else cls()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target)["loss"], logits)
    whole = loss(logits, target)["loss"]
    (grad,) = torch.autograd.grad(whole, logits)
    assert (grad[:, :, 0] == 0).all() and (grad[:, :, 1:] != 0).any()
    assert loss(logits[:, :, 1:], target[:, 1:])["loss"].item() == pytest.approx(whole.item(), rel=1e-12)
    nothing = loss(logits, torch.full_like(target, 255))["loss"]
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


@pytest.mark.parametrize("cls", EVERY)
def test_terms_have_names_and_total(cls):
    logits, target = _example((2, 3, 6, 6))
    terms = cls()(logits, target)
    assert len(terms) == 3 and all(v.ndim == 0 for v in terms.values())


def test_wrong_arguments():
    for make in (
        lambda: Combo(ce_weight=1.5),
        lambda: Combo(fn_weight=-1),
        lambda: Combo(reduction="none"),
        lambda: ExpLog(dice_gamma=0),
        lambda: ExpLog(class_counts=[1, -1]),
        lambda: ExpLog(absent="never"),
        lambda: DiceCE(reduction="mean"),
        lambda: DiceTopK(k=0),
        lambda: DiceFocal(gamma=-1),
    ):
        with pytest.raises(ValueError):
            make()


class _Named(nn.Module):
    def __init__(self, **terms):
        super().__init__()
        self.terms, self.ends = terms, 0

    def forward(self, logits, target, *, boundary=None, spacing):
        loss = logits.mean() * 0
        return {"loss": loss + 2, **{k: loss + v for k, v in self.terms.items()}}

    def epoch_end(self):
        self.ends += 1


def test_a_sum_keeps_the_terms_of_its_parts():
    logits, target = _example((2, 3, 4, 4))
    total = Sum([DiceCE(), Focal(), DiceCE(ce_weight=0)], [1.0, 0.5, 2], ["dice_ce", "focal", "dice_ce"])
    terms = total(logits, target)
    assert list(terms) == [
        "loss",
        "dice_ce_0",
        "dice_ce_0.dice",
        "dice_ce_0.ce",
        "focal",
        "dice_ce_2",
        "dice_ce_2.dice",
        "dice_ce_2.ce",
    ]
    torch.testing.assert_close(terms["dice_ce_0.dice"], Dice()(logits, target))
    expected = terms["dice_ce_0"] + 0.5 * terms["focal"] + 2 * terms["dice_ce_2"]
    torch.testing.assert_close(terms["loss"], expected)


def test_names_of_terms_do_not_clash():
    logits, target = _example((2, 3, 4, 4))
    spacing = torch.ones(2, 2)
    total = Sum([_Named(b=1), Focal(), Focal(), Focal()], [1, 1, 1, 1], ["a", "a.b", "lr", "loss"])
    terms = total(logits, target, spacing=spacing)
    assert terms["a.b_0"].item() == 1  # the part called a.b keeps its name
    torch.testing.assert_close(terms["a.b"], Focal()(logits, target))
    assert {"lr_2", "loss_3"} < set(terms) and "lr" not in terms
    nested = Sum([total], [1], ["sum"])(logits, target, spacing=spacing)
    assert nested["sum.a.b_0"].item() == 1
    torch.testing.assert_close(nested["loss"], terms["loss"])


def test_a_sum_tells_needs_and_ends():
    part = _Named()
    total = Sum([Sum([part], [1], ["x"]), Dice()], [1, {"linear": [1, 0]}], ["sum", "dice"])
    assert total.needs == ({"spacing", "progress", "epochs"}, {"boundary"})
    total.epoch_end()
    assert part.ends == 1
    with pytest.raises(ValueError, match="2 weights"):
        Sum([part], [1, 1], ["x"])
