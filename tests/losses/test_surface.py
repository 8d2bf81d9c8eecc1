"""The generalized surface loss and GSL: loops over voxels, MIST where it is installed, and rows by hand."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.needs import LABEL_NEEDS
from harness.losses.surface import GSL, GeneralizedSurface
from harness.losses.targets import derive

COUNTS, SURFACE = [50, 30, 15, 5], [20, 18, 10, 5]
SHAPES = pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 4, 4, 3, 4)], ids=["2d", "3d"])


def sample(shape, seed=0, ignored=True):
    """Logits, labels with ignored voxels and, in the second sample, without class 3; spacing unlike in each axis."""
    batch, classes, *space = shape
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    target = torch.randint(0, classes, (batch, *space), generator=g)
    target[:, :2] = 0
    target[1][target[1] == 3] = 0
    if ignored:
        target[0, 1, 1:3] = 255
        target[1, -1] = 255
    return logits, target, torch.tensor([[1.0, 1.5, 0.8][: len(space)], [2.0, 0.5, 1.0][: len(space)]])


def offered(logits, target, spacing, **more):
    return derive(LABEL_NEEDS, target, num_classes=logits.shape[1], spacing=spacing) | {"spacing": spacing} | more


def run(loss, logits, target, spacing, **more):
    return evaluate_loss(loss, logits, target, offered(logits, target, spacing, **more))["loss"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def magnitudes(target, classes, spacing, diagonal):
    """|D| of every class and valid voxel: {(voxel, class): value}, by search over all pairs."""
    spacing = np.asarray(spacing, np.float64)
    at = [i for i in np.ndindex(*target.shape) if target[i] != 255]
    out = {}
    corners = np.array(at)
    extent = (corners.max(0) - corners.min(0) + 1) * spacing
    for c in range(classes):
        own, rest = [i for i in at if target[i] == c], [i for i in at if target[i] != c]
        for i in at:
            others = rest if target[i] == c else own
            if not own and diagonal:
                out[i, c] = math.sqrt((extent**2).sum())
            elif not others:
                out[i, c] = 0.0
            else:
                d = min(math.dist(np.multiply(i, spacing), np.multiply(j, spacing)) for j in others)
                out[i, c] = max(d - spacing.min(), 0) if target[i] == c else d
    return out


def by_loop(logits, target, spacing, weight, norm=2, reduction="sample", diagonal=True, first=0):
    """The printed form, with 1 - (T + P) and its absolute value."""
    parts = []
    for x, y, s in zip(logits.numpy(), target.numpy(), spacing.tolist(), strict=True):
        top = bottom = 0.0
        for (i, c), d in magnitudes(y, len(x), s, diagonal).items():
            if c >= first:
                p = softmax(x[(slice(None), *i)])[c]
                top += weight[c] * abs(d * (1 - (float(y[i] == c) + p))) ** norm
                bottom += weight[c] * d**norm
        parts.append((top, bottom))
    if reduction == "batch":
        return 1 - sum(p[0] for p in parts) / sum(p[1] for p in parts)
    return sum(1 - top / bottom for top, bottom in parts) / len(parts)


@SHAPES
def test_the_surface_loss_agrees_with_loops_over_voxels(shape, agree):
    logits, target, spacing = sample(shape)
    counts = [1 / n for n in COUNTS]

    def check(loss, **options):
        agree("generalized_surface", "numpy loops", run(loss, logits, target, spacing), by_loop(*given, **options))

    given = (logits, target, spacing, counts)
    facts = {"class_counts": COUNTS, "class_surface": SURFACE}
    check(GeneralizedSurface(**facts))
    check(GeneralizedSurface(norm=1, **facts), norm=1)
    check(GeneralizedSurface(reduction="batch", **facts), reduction="batch")
    check(GeneralizedSurface(absent="skip", **facts), diagonal=False)
    check(GeneralizedSurface(background=False, **facts), first=1)
    given = (logits, target, spacing, [n**-0.5 for n in COUNTS])
    check(GeneralizedSurface(power=0.5, **facts))
    given = (logits, target, spacing, [n**-2.0 for n in SURFACE])
    check(GeneralizedSurface(weights="surface", power=2.0, **facts))
    given = (logits, target, spacing, [1.0] * 4)
    check(GeneralizedSurface(weights="none"))
    given = (logits, target, spacing, [0.1, 0.2, 0.3, 0.4])
    check(GeneralizedSurface(weight=torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)))


def cross_entropy_and_dice(logits, target):
    """Mean -ln p plus one minus the mean Dice over the batch, in loops over voxels."""
    classes = logits.shape[1]
    ce, count, tp, size = 0.0, 0, [0.0] * classes, [0.0] * classes
    for x, y in zip(logits.numpy(), target.numpy(), strict=True):
        for i in np.ndindex(*y.shape):
            if y[i] != 255:
                p, t = softmax(x[(slice(None), *i)]), int(y[i])
                ce, count, tp[t] = ce - math.log(p[t]), count + 1, tp[t] + p[t]
                size = [v + p[c] + (c == t) for c, v in enumerate(size)]
    return ce / count + 1 - sum((2 * a + 1e-5) / (b + 1e-5) for a, b in zip(tp, size, strict=True)) / classes


@pytest.mark.parametrize(
    ("alpha", "weight"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ({"linear": [0.8, 0.2]}, lambda x: 0.8 - 0.6 * x),
        # every 2 of 8 epochs: x = 0.3 is epoch 2.4
        ({"step": {"every": 2, "from": 1, "to": 0}}, lambda x: 1 - math.floor(x * 8 / 2) * 2 / 8),
        (0.3, lambda x: 0.3),
    ],
)
def test_gsl_agrees_with_loops_over_voxels(alpha, weight, agree):
    logits, target, spacing = sample((2, 4, 6, 5), 1)
    region = cross_entropy_and_dice(logits, target)
    surface = by_loop(logits, target, spacing, [1 / n for n in COUNTS])
    loss = GSL(alpha=alpha, class_counts=COUNTS)
    for x in (0.0, 0.3, 1.0):
        clock = {"progress": torch.tensor(x), "epochs": torch.tensor(8.0)}
        terms = evaluate_loss(loss, logits, target, offered(logits, target, spacing, **clock))
        assert set(terms) == {"loss", "region", "surface"}
        agree("gsl", "numpy loops", terms["loss"], weight(x) * region + (1 - weight(x)) * surface)
        agree("gsl", "numpy loops", terms["region"], region)
        agree("gsl", "numpy loops", terms["surface"], surface)


@pytest.mark.skipif(importlib.util.find_spec("mist") is None, reason="mist-medical pins a stack of its own")
@pytest.mark.parametrize("classes", [2, 4])
def test_the_surface_loss_agrees_with_mist(classes, agree):
    """MIST averages one ratio per foreground class and sample: w_c = 1 / Σ D_c² makes ours the same."""
    from mist.loss_functions.losses.generalized_surface import GenSurfLoss

    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(1, classes, 7, 6, 5, generator=g, dtype=torch.float64)
        target = torch.randint(0, classes, (1, 7, 6, 5), generator=g)
        target[:, :3] = 0
        spacing = torch.tensor([[1.0, 2.0, 1.5]])
        maps = offered(logits, target, spacing)
        dtm = (maps["distance_out"] - (maps["distance_in"] - 1).clamp_min(0)).double()
        theirs = GenSurfLoss()(target[:, None], logits, dtm=dtm, alpha=0.0)
        loss = GeneralizedSurface(weight=1 / (dtm**2).sum((0, 2, 3, 4)), background=False)
        agree("generalized_surface", "MIST GenSurfLoss", evaluate_loss(loss, logits, target, maps)["loss"], theirs)


def test_a_row_by_hand():
    """A row 0 0 1 1 with 2 mm: |D| is 2 0 2 4 of class 0 and 4 2 0 2 of class 1; p of class 1 is .1 .4 .8 .6."""
    p = torch.tensor([0.1, 0.4, 0.8, 0.6], dtype=torch.float64)
    logits, target = torch.stack([1 - p, p])[None, :, None].log(), torch.tensor([[[0, 0, 1, 1]]])
    spacing = torch.tensor([[2.0, 2.0]])
    # 1 - (t + p) of class 0 is -.9, -.6, 1 - .2, 1 - .4; of class 1 it is .9, .6, -.8, -.6
    squares = (4 * 0.81 + 4 * 0.64 + 16 * 0.36) + (16 * 0.81 + 4 * 0.36 + 4 * 0.36)
    values = (2 * 0.9 + 2 * 0.8 + 4 * 0.6) + (4 * 0.9 + 2 * 0.6 + 2 * 0.6)
    for norm, expected in ((2, 1 - squares / 48), (1, 1 - values / 16)):
        loss = GeneralizedSurface(norm=norm, weights="none")
        assert run(loss, logits, target, spacing).item() == pytest.approx(expected, rel=1e-9)
    # weights 1/3 and 1/1: the ratio is of weighted sums
    weighted = GeneralizedSurface(class_counts=[3, 1], background=True)
    top = (4 * 0.81 + 4 * 0.64 + 16 * 0.36) / 3 + (16 * 0.81 + 4 * 0.36 + 4 * 0.36)
    assert run(weighted, logits, target, spacing).item() == pytest.approx(1 - top / 32, rel=1e-6)


@pytest.mark.parametrize("norm", [1, 2])
@SHAPES
def test_it_lies_between_0_at_the_truth_and_1_at_the_worst(shape, norm):
    _, target, spacing = sample((shape[0], 2, *shape[2:]), 2)
    truth = torch.nn.functional.one_hot(target.clamp_max(1), 2).movedim(-1, 1).double()
    target = torch.where(target == 255, 255, target.clamp_max(1))
    loss = GeneralizedSurface(norm=norm, weights="none")
    assert run(loss, 60 * truth, target, spacing).item() == pytest.approx(0, abs=1e-9)
    assert run(loss, -60 * truth, target, spacing).item() == pytest.approx(1, rel=1e-9)


def test_it_is_flat_at_the_worst_prediction_and_steep_at_the_best():
    """The slope by the probabilities: 2 D² (1 - e) of an error e. Eq. 12 is concave, its variant with norm 1 is not."""
    target = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    spacing = torch.ones(1, 2)
    sizes = {}
    for norm in (1, 2):
        for name, own in (("worst", 1e-6), ("best", 1 - 1e-6)):
            p = torch.where(target == 1, own, 1 - own).double()
            logits = torch.stack([1 - p, p], 1).log().requires_grad_()
            value = run(GeneralizedSurface(norm=norm, weights="none"), logits, target, spacing)
            (grad,) = torch.autograd.grad(value, logits)
            sizes[norm, name] = grad.abs().max().item() / (own * (1 - own))  # by p, not by the logit
    assert sizes[2, "worst"] < 1e-5 * sizes[2, "best"]
    assert sizes[1, "worst"] == pytest.approx(sizes[1, "best"], rel=1e-3)


def test_an_absent_class_costs_its_probability_or_nothing():
    """Classes 0 and 1 of three in a row of four: diagonal² of class 2 is 4² + 1²."""
    target, spacing = torch.tensor([[[0, 0, 1, 1]]]), torch.ones(1, 2)
    truth = 40 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    wrong = truth.clone()
    wrong[..., 0] = torch.tensor([0.0, 0.0, 40.0])[:, None]  # the first voxel is called class 2
    # |D| of class 0 is 1 0 1 2 and of class 1 it is 2 1 0 1
    for policy, expected in (("penalise", (1 + 17) / (12 + 4 * 17)), ("skip", 1 / 12)):
        loss = GeneralizedSurface(weights="none", absent=policy)
        assert run(loss, truth, target, spacing).item() == pytest.approx(0, abs=1e-9)
        assert run(loss, wrong, target, spacing).item() == pytest.approx(expected, rel=1e-6)


def test_a_background_sample_costs_what_is_predicted_there():
    target, spacing = torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 2)
    logits = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    # p = 1/2 of the absent class: 1 - (1 - 1/2)²
    assert run(GeneralizedSurface(weights="none"), logits, target, spacing).item() == pytest.approx(0.75)
    assert run(GeneralizedSurface(weights="none", absent="skip"), logits, target, spacing).item() == 0


def test_weights_of_the_classes():
    """Eq. 13 sums to 1, eq. 17 with power 1 is eq. 13, and a class that training does not have weighs nothing."""
    assert GeneralizedSurface(class_counts=[8, 2]).weight.tolist() == pytest.approx([0.2, 0.8])
    assert GeneralizedSurface(class_counts=[8, 2], power=0.5).weight.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert GeneralizedSurface(class_counts=[8, 0, 2], power=0.0).weight.tolist() == pytest.approx([0.5, 0, 0.5])
    assert GeneralizedSurface(weights="surface", class_surface=[3, 1], class_counts=[1, 1]).weight.tolist() == (
        pytest.approx([0.25, 0.75])
    )
    assert GeneralizedSurface(weights="none", class_counts=[8, 2]).weight is None


LOSSES = {
    "generalized_surface": lambda: GeneralizedSurface(class_counts=COUNTS),
    "norm 1": lambda: GeneralizedSurface(norm=1, class_counts=COUNTS, absent="skip"),
    "gsl": lambda: GSL(class_counts=COUNTS),
}
CLOCK = {"progress": torch.tensor(0.5), "epochs": torch.tensor(3.0)}
every = pytest.mark.parametrize("name", LOSSES)


@every
@SHAPES
def test_ignored_voxels_have_no_value_and_no_gradient(name, shape):
    logits, target, spacing = sample(shape, 4)
    half = shape[-1] // 2 + 1
    target[..., half:] = 255
    loss = LOSSES[name]()
    logits.requires_grad_()
    value = run(loss, logits, target, spacing, **CLOCK)
    (grad,) = torch.autograd.grad(value, logits)
    assert not grad.movedim(1, -1)[target == 255].any()
    assert grad.abs().sum() > 0
    alone = run(loss, logits[..., :half], target[..., :half], spacing, **CLOCK)
    assert value.item() == pytest.approx(alone.item(), rel=1e-9)
    moved = torch.where((target == 255)[:, None], 9.0, logits)
    assert run(loss, moved, target, spacing, **CLOCK).item() == value.item()


@every
@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 4, 2, 3, 2)], ids=["2d", "3d"])
def test_gradients_agree_with_differences(name, shape):
    logits, target, spacing = sample(shape, 5)
    loss = LOSSES[name]()
    assert torch.autograd.gradcheck(
        lambda x: run(loss, x, target, spacing, **CLOCK), logits.requires_grad_(), atol=1e-6
    )


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_are_finite_at_the_extremes(name, dtype):
    _, mixed, spacing = sample((2, 4, 6, 5), 6)
    for target in (mixed, torch.zeros_like(mixed), torch.full_like(mixed, 255)):
        truth = torch.nn.functional.one_hot(target.clamp_max(3), 4).movedim(-1, 1).to(dtype)
        for size in (-1e4, 0.0, 30.0, 1e4):
            logits = (size * truth).requires_grad_()
            value = run(LOSSES[name](), logits, target, spacing, **CLOCK)
            (grad,) = torch.autograd.grad(value, logits)
            assert value.isfinite()
            assert value.dtype == torch.float32
            assert grad.isfinite().all()
            if (target == 255).all():
                assert value == 0


@every
def test_half_precision_agrees(name):
    logits, target, spacing = sample((2, 4, 6, 5), 7)
    low = logits.half()
    wanted = run(LOSSES[name](), low.float(), target, spacing, **CLOCK).item()
    assert run(LOSSES[name](), low, target, spacing, **CLOCK).item() == pytest.approx(wanted, rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(LOSSES[name](), low.float(), target, spacing, **CLOCK).item() == pytest.approx(wanted, rel=1e-6)


def test_any_loss_of_the_catalogue_can_be_the_region_loss():
    logits, target, spacing = sample((2, 4, 6, 5), 8)
    tversky = GSL("tversky", {"fp_weight": 0.2, "fn_weight": 0.8}, alpha=1.0, weights="none")
    plain = evaluate_loss(tversky, logits, target, offered(logits, target, spacing))
    assert plain["loss"].item() == plain["region"].item()
    assert plain["region"].item() == pytest.approx(
        run(type(tversky.region)(fp_weight=0.2, fn_weight=0.8), logits, target, spacing).item()
    )
    assert needs_of(tversky)[0] == {"distance_in", "distance_out", "spacing", "present", "valid"}
    assert needs_of(GSL(weights="none"))[0] == needs_of(tversky)[0] | {"progress", "epochs"}


def test_the_end_of_an_epoch_reaches_the_region_loss():
    loss, seen = GSL(weights="none"), []
    loss.epoch_end()  # Dice and cross-entropy have no state
    loss.region.epoch_end = lambda: seen.append(1)
    loss.epoch_end()
    assert seen == [1]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (GeneralizedSurface, "class_counts are not known"),
        (lambda: GeneralizedSurface(weights="surface", class_counts=COUNTS), "class_surface are not known"),
        (lambda: GeneralizedSurface(norm=3, class_counts=COUNTS), "norm must be one of 1, 2"),
        (lambda: GeneralizedSurface(weights="size"), "weights must be one of"),
        (lambda: GeneralizedSurface(power=-1, class_counts=COUNTS), "power"),
        (lambda: GeneralizedSurface(reduction="mean", class_counts=COUNTS), "reduction"),
        (lambda: GeneralizedSurface(absent="include", class_counts=COUNTS), "absent"),
        (lambda: GSL("dise_ce", class_counts=COUNTS), "dise_ce"),
        (lambda: GSL("gsl", class_counts=COUNTS), "another loss"),
        (lambda: GSL(alpha="quadratic", class_counts=COUNTS), "quadratic"),
        (lambda: GSL(alpha={"cubic": [1, 0]}, class_counts=COUNTS), "cubic"),
    ],
)
def test_wrong_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
