"""Losses on distance maps: loops over voxels written from the formulas, MONAI, and rows computed by hand."""

import math

import numpy as np
import pytest
import torch
from monai.losses import BoundaryLoss

from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.dice import Dice
from harness.losses.distance import (
    Boundary,
    DistanceDice,
    DistanceMapCE,
    DistanceWeightedCE,
    RectifiedRegionWise,
    RegionWise,
    UNetWeightMap,
)
from harness.losses.needs import LABEL_NEEDS
from harness.losses.pixel import CrossEntropy
from harness.losses.targets import derive

COUNTS = [50, 30, 15, 5]
SHAPES = pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 4, 4, 3, 4)], ids=["2d", "3d"])
LOSSES = {
    "unet_ce": lambda: UNetWeightMap(sigma=2.0, class_counts=COUNTS),
    "distance_ce": DistanceMapCE,
    "distance_weighted_ce": DistanceWeightedCE,
    "boundary": Boundary,
    "region_wise": RegionWise,
    "rectified_region_wise": RectifiedRegionWise,
    "distance_dice": DistanceDice,
}
every = pytest.mark.parametrize("name", LOSSES)


def sample(shape, seed=0, ignored=True, absent=True):
    """Logits, labels with ignored voxels and, in the second sample, without class 3; spacing unlike in each axis."""
    batch, classes, *space = shape
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    target = torch.randint(0, classes, (batch, *space), generator=g)
    target[:, :2] = 0
    if absent:
        target[1][target[1] == 3] = 0
    if ignored:
        target[0, 1, 1:3] = 255
        target[1, -1] = 255
    return logits, target, torch.tensor([[1.0, 1.5, 0.8][: len(space)], [2.0, 0.5, 1.0][: len(space)]])


def run(loss, logits, target, spacing):
    names = set().union(*needs_of(loss)) & LABEL_NEEDS
    offered = derive(names, target, num_classes=logits.shape[1], spacing=spacing)
    return evaluate_loss(loss, logits, target, {**offered, "spacing": spacing})["loss"]


class Reference:
    """Everything a formula needs at the valid voxels of one sample, by search over all pairs of them, in float64."""

    def __init__(self, logits, target, spacing):
        self.classes, self.step = len(logits), float(min(spacing))
        at = [i for i in np.ndindex(*target.shape) if target[i] != 255]
        self.t = [int(target[i]) for i in at]
        where = [np.multiply(i, np.asarray(spacing, np.float64)) for i in at]
        self.p, self.nearest = [], []
        for n, i in enumerate(at):
            e = np.exp(logits[(slice(None), *i)] - logits[(slice(None), *i)].max())
            self.p.append(e / e.sum())
            found = [math.inf] * self.classes
            for m in range(len(at)):
                found[self.t[m]] = min(found[self.t[m]], math.dist(where[n], where[m]))
            self.nearest.append(found)
        self.n = len(at)

    def inside(self, n, c):
        return min(d for k, d in enumerate(self.nearest[n]) if k != c)

    def depth(self, n):
        return self.inside(n, self.t[n])

    def deepest(self, c):
        return max(self.depth(n) for n in range(self.n) if self.t[n] == c)

    def signed(self, n, c, less):
        if self.t[n] == c:
            d = self.inside(n, c)
            return 0.0 if math.isinf(d) else -max(d - less, 0)
        return 0.0 if math.isinf(self.nearest[n][c]) else self.nearest[n][c]

    def phi(self, n):
        d = self.depth(n)
        return 0.0 if math.isinf(d) else 1 - d / self.deepest(self.t[n])


def references(logits, target, spacing):
    return [Reference(x, y, s) for x, y, s in zip(logits.numpy(), target.numpy(), spacing.tolist(), strict=True)]


def mean_ce(samples, weight):
    total = sum(-math.log(s.p[n][s.t[n]]) * weight(s, n) for s in samples for n in range(s.n))
    return total / sum(s.n for s in samples)


def unet(samples, w0, sigma, counts):
    def weight(s, n):
        d = sorted(s.nearest[n][1:])
        gap = w0 * math.exp(-((d[0] + d[1]) ** 2) / (2 * sigma**2)) if math.isfinite(d[1]) else 0.0
        return sum(counts) / (len(counts) * counts[s.t[n]]) + gap

    return mean_ce(samples, weight)


def inverse(samples, power):
    def weight(s, n):
        raw = [(s.step / s.depth(m)) ** power for m in range(s.n)]
        return raw[n] * s.n / sum(raw)

    return mean_ce(samples, weight)


def mean_map(samples, z, classes):
    total = sum(s.p[n][c] * z(s, n, c) for s in samples for n in range(s.n) for c in classes)
    return total / (len(classes) * sum(s.n for s in samples))


def rectified(s, n, c):
    return 1.0 if s.t[n] != c else -s.depth(n) / s.deepest(c)


def normalised(s, n, c):
    largest = max(abs(s.signed(m, c, s.step)) for m in range(s.n))
    return s.signed(n, c, s.step) / largest if largest else 0.0


def both_sides(s, n, c):
    inner = max([0.0] + [-s.signed(m, c, 0) for m in range(s.n)])
    outer = max([0.0] + [s.signed(m, c, 0) for m in range(s.n)])
    z = s.signed(n, c, 0)
    return z / outer if z > 0 else z / inner if z < 0 else 0.0


def distance_dice(samples, groups, smooth=1e-5):
    losses = []
    for group in groups:
        for c in range(samples[0].classes):
            top = bottom = smooth
            for s in (samples[i] for i in group):
                for n in range(s.n):
                    w, t = 1 + s.phi(n), float(s.t[n] == c)
                    top += 2 * w * t * s.p[n][c]
                    bottom += w * (t + s.p[n][c])
            losses.append(1 - top / bottom)
    return sum(losses) / len(losses)


@SHAPES
def test_losses_agree_with_loops_over_voxels(shape, agree):
    logits, target, spacing = sample(shape)
    samples, classes = references(logits, target, spacing), range(4)

    def check(name, loss, theirs):
        agree(name, "numpy loops", run(loss, logits, target, spacing), theirs)

    check("unet_ce", UNetWeightMap(7.0, 1.5, class_counts=COUNTS), unet(samples, 7.0, 1.5, COUNTS))
    check("distance_ce", DistanceMapCE(), mean_ce(samples, lambda s, n: 1 + s.phi(n)))
    check("distance_ce", DistanceMapCE(3.0), mean_ce(samples, lambda s, n: 1 + 3 * s.phi(n)))
    for power in (1.0, 0.5):
        check("distance_weighted_ce", DistanceWeightedCE(power), inverse(samples, power))
    check("boundary", Boundary(), mean_map(samples, lambda s, n, c: s.signed(n, c, s.step), classes))
    check("boundary", Boundary(normalize=True), mean_map(samples, normalised, classes))
    check("boundary", Boundary(classes=[1, 3]), mean_map(samples, lambda s, n, c: s.signed(n, c, s.step), [1, 3]))
    check("region_wise", RegionWise(), mean_map(samples, lambda s, n, c: s.signed(n, c, 0), classes))
    check("region_wise", RegionWise(normalize=True), mean_map(samples, both_sides, classes))
    check("rectified_region_wise", RectifiedRegionWise(), mean_map(samples, rectified, classes))
    check("rectified_region_wise", RectifiedRegionWise(background=False), mean_map(samples, rectified, [1, 2, 3]))
    check("distance_dice", DistanceDice(), distance_dice(samples, [[0, 1]]))
    check("distance_dice", DistanceDice(reduction="sample"), distance_dice(samples, [[0], [1]]))


@SHAPES
@pytest.mark.parametrize("background", [True, False])
def test_boundary_agrees_with_monai(shape, background, agree):
    logits, target, spacing = sample(shape, 1, ignored=False)
    theirs = BoundaryLoss(include_background=background, softmax=True, to_onehot_y=True)(logits, target[:, None])
    ones = torch.ones_like(spacing)
    agree("boundary", "MONAI BoundaryLoss", run(Boundary(background=background), logits, target, ones), theirs)


# A row 0 0 1 1 with 2 mm between voxels; probabilities of class 1: .1 .4 .8 .6. Distances inside are 4 2 2 4.
ROW = torch.tensor([[[0, 0, 1, 1]]])
P1 = torch.tensor([0.1, 0.4, 0.8, 0.6], dtype=torch.float64)
ROW_LOGITS = torch.stack([1 - P1, P1])[None, :, None].log()
ROW_SPACING = torch.tensor([[2.0, 2.0]])
NLL = [-math.log(p) for p in (0.9, 0.6, 0.8, 0.6)]
HAND = {
    # Φ is 0 1/2 1/2 0
    "distance_ce": (DistanceMapCE(), (NLL[0] + 1.5 * NLL[1] + 1.5 * NLL[2] + NLL[3]) / 4),
    # 1/2 1 1 1/2 of a mean of 3/4
    "distance_weighted_ce": (DistanceWeightedCE(), (0.5 * NLL[0] + NLL[1] + NLL[2] + 0.5 * NLL[3]) / 3),
    # φ of class 1 is 4 2 0 -2, of class 0 it is -2 0 2 4
    "boundary": (Boundary(), (0.4 + 0.8 - 1.2 - 1.8 + 0.4 + 1.6) / 8),
    "boundary foreground": (Boundary(background=False), (0.4 + 0.8 - 1.2) / 4),
    "boundary normalised": (Boundary(normalize=True, background=False), (0.4 + 0.8 - 1.2) / 4 / 4),
    # z of class 1 is 4 2 -2 -4
    "region_wise": (RegionWise(background=False), (0.4 + 0.8 - 1.6 - 2.4) / 4),
    # z of class 1 is 1 1 -1/2 -1, of class 0 it is -1 -1/2 1 1
    "rectified": (RectifiedRegionWise(), (0.1 + 0.4 - 0.4 - 0.6 - 0.9 - 0.3 + 0.2 + 0.4) / 8),
    # weights 1 1.5 1.5 1: class 1 has TP 1.8, Σwp 2.5, Σwt 2.5; class 0 has TP 1.8, Σwp 2.5, Σwt 2.5
    "distance_dice": (DistanceDice(smooth=0), 1 - 3.6 / 5.0),
    # one foreground class: no gap between two
    "unet": (UNetWeightMap(class_counts=[3, 1]), (2 / 3 * (NLL[0] + NLL[1]) + 2 * (NLL[2] + NLL[3])) / 4),
}


@pytest.mark.parametrize("case", HAND)
def test_a_row_by_hand(case):
    loss, expected = HAND[case]
    assert run(loss, ROW_LOGITS, ROW, ROW_SPACING).item() == pytest.approx(expected, rel=1e-6)


def test_the_gap_between_two_classes_is_heavy():
    """A row 1 0 2 with unit spacing: d1 + d2 is 0 + 2, 1 + 1, 0 + 2 everywhere."""
    target, logits = torch.tensor([[[1, 0, 2]]]), torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    value = run(UNetWeightMap(10.0, 1.0, balance=False), logits, target, torch.ones(1, 2))
    assert value.item() == pytest.approx((1 + 10 * math.exp(-2)) * math.log(3), rel=1e-6)
    # an absent class is nowhere, not at distance 0
    alone = run(UNetWeightMap(10.0, 1.0, balance=False), logits, target.clamp_max(1), torch.ones(1, 2))
    assert alone.item() == pytest.approx(math.log(3), rel=1e-6)


@SHAPES
def test_special_arguments_are_other_losses(shape):
    logits, target, spacing = sample(shape, 2)
    ce = run(CrossEntropy(), logits, target, spacing).item()
    for loss in (DistanceMapCE(0.0), DistanceWeightedCE(0.0), UNetWeightMap(0.0, balance=False)):
        assert run(loss, logits, target, spacing).item() == pytest.approx(ce, rel=1e-6)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert run(UNetWeightMap(0.0, weight=2 * torch.ones(4)), logits, target, spacing).item() == pytest.approx(2 * ce)
    assert run(UNetWeightMap(0.0, weight=weight), logits, target, spacing).item() != pytest.approx(ce, rel=1e-3)
    for options in ({}, {"background": False}, {"reduction": "sample", "absent": "skip"}, {"absent": "penalise"}):
        dice = run(Dice(**options), logits, target, spacing).item()
        assert run(DistanceDice(0.0, **options), logits, target, spacing).item() == pytest.approx(dice, rel=1e-9)
    foreground = run(Boundary(background=False), logits, target, spacing).item()
    assert run(Boundary(classes=[3, 1, 2]), logits, target, spacing).item() == pytest.approx(foreground, rel=1e-9)
    assert run(Boundary(background=False, classes=[0, 1]), logits, target, spacing).item() == pytest.approx(
        run(Boundary(classes=[1]), logits, target, spacing).item(), rel=1e-12
    )


def test_weights_lie_where_they_should():
    """Cross-entropy of the same error costs more at a rim than at a core."""
    target = torch.zeros(1, 9, 9, dtype=torch.long)
    target[:, 2:7, 2:7] = 1
    costs = {}
    for place, at in (("rim", (2, 4)), ("core", (4, 4))):
        logits = 8 * torch.nn.functional.one_hot(target, 2).movedim(-1, 1).double()
        logits[(0, slice(None), *at)] = -logits[(0, slice(None), *at)]
        for loss in (DistanceMapCE(), DistanceWeightedCE(), DistanceDice()):
            costs[type(loss).__name__, place] = run(loss, logits, target, torch.ones(1, 2)).item()
    for name in ("DistanceMapCE", "DistanceWeightedCE", "DistanceDice"):
        assert costs[name, "rim"] > 1.1 * costs[name, "core"]


def test_an_absent_class_costs_where_its_map_says_so():
    """Class 2 is nowhere: its signed map is 0 and its rectified map is 1."""
    target = torch.tensor([[[0, 0, 1, 1]]])
    low, high = torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4)
    high[:, 2] = 3
    space = torch.ones(1, 2)
    assert run(RectifiedRegionWise(), high, target, space) > run(RectifiedRegionWise(), low, target, space)
    only = Boundary(classes=[2])
    assert run(only, high, target, space) == run(only, low, target, space) == 0


def test_a_class_that_fills_the_image():
    target, logits = torch.ones(1, 4, 4, dtype=torch.long), torch.zeros(1, 3, 4, 4)
    space = torch.ones(1, 2)
    assert run(Boundary(), logits, target, space) == 0
    # -1 in the class, +1 in the two others
    assert run(RectifiedRegionWise(), logits, target, space).item() == pytest.approx(1 / 9)
    for loss in (DistanceMapCE(), DistanceWeightedCE()):
        assert run(loss, logits, target, space).item() == pytest.approx(math.log(3))


@SHAPES
def test_rectified_values_are_bounded(shape):
    _, target, spacing = sample(shape, 3)
    for labels in (target, torch.zeros_like(target)):
        truth = torch.nn.functional.one_hot(labels.clamp_max(3), 4).movedim(-1, 1).double()
        best, worst = (run(RectifiedRegionWise(), s * 40 * truth, labels, spacing).item() for s in (1, -1))
        assert -1 <= best < 0 < worst <= 1


@every
@SHAPES
def test_ignored_voxels_have_no_value_and_no_gradient(name, shape):
    logits, target, spacing = sample(shape, 4)
    half = shape[-1] // 2 + 1
    target[..., half:] = 255
    loss = LOSSES[name]()
    logits.requires_grad_()
    value = run(loss, logits, target, spacing)
    (grad,) = torch.autograd.grad(value, logits)
    assert not grad.movedim(1, -1)[target == 255].any()
    assert grad.abs().sum() > 0
    alone = run(loss, logits[..., :half], target[..., :half], spacing)
    assert value.item() == pytest.approx(alone.item(), rel=1e-9)
    moved = torch.where((target == 255)[:, None], 9.0, logits)
    assert run(loss, moved, target, spacing).item() == value.item()


@every
@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 4, 2, 3, 2)], ids=["2d", "3d"])
def test_gradients_agree_with_differences(name, shape):
    logits, target, _ = sample(shape, 5, ignored=False, absent=False)
    target.view(-1)[1] = 255
    spacing = torch.tensor([[1.0, 2.0, 1.5][: len(shape) - 2]] * shape[0])
    loss = LOSSES[name]()
    assert torch.autograd.gradcheck(lambda x: run(loss, x, target, spacing), logits.requires_grad_(), atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_are_finite_at_the_extremes(name, dtype):
    _, mixed, spacing = sample((2, 4, 6, 5), 6)
    for target in (mixed, torch.zeros_like(mixed), torch.full_like(mixed, 255)):
        truth = torch.nn.functional.one_hot(target.clamp_max(3), 4).movedim(-1, 1).to(dtype)
        for size in (-1e4, 0.0, 30.0, 1e4):
            logits = (size * truth).requires_grad_()
            value = run(LOSSES[name](), logits, target, spacing)
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
    wanted = run(LOSSES[name](), low.float(), target, spacing)
    assert run(LOSSES[name](), low, target, spacing).item() == pytest.approx(wanted.item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(LOSSES[name](), low.float(), target, spacing).item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (UNetWeightMap, "class_counts"),
        (lambda: UNetWeightMap(sigma=0, balance=False), "sigma"),
        (lambda: UNetWeightMap(w0=-1, balance=False), "w0"),
        (lambda: DistanceMapCE(-1), "scale"),
        (lambda: DistanceWeightedCE(-1), "power"),
        (lambda: Boundary(classes=[1, 1]), "distinct"),
        (lambda: Boundary(classes=[0.5]), "class numbers"),
        (lambda: Boundary(background=False, classes=[0]), "no class"),
        (lambda: DistanceDice(-1), "scale"),
        (lambda: DistanceDice(reduction="mean"), "batch"),
        (lambda: DistanceDice(absent="drop"), "penalise"),
    ],
)
def test_wrong_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_classes_that_the_data_do_not_have_are_named():
    logits, target, spacing = sample((2, 4, 6, 5))
    with pytest.raises(ValueError, match="of 4"):
        run(Boundary(classes=[4]), logits, target, spacing)
