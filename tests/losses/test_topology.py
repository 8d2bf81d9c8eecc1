"""Topology losses against gudhi, MONAI, exacta and loops over voxels."""

import gudhi
import numpy as np
import pytest
import torch
from exacta.losses import SoftClDiceLoss as ExactaClDice
from gudhi.hera import wasserstein_distance
from monai.losses import SoftclDiceLoss as MonaiClDice

from harness.losses._persistence import components, count_features, holes
from harness.losses.pixel import Focal
from harness.losses.topology import SoftClDice, TopologyAwareFocal

SHAPES = [(2, 3, 9, 7), (2, 3, 5, 4, 6)]
NINE_TWO = torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)


def _example(shape, ignored=False, seed=0):
    chance = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.2] = 255
    return logits, target


def _hard(target, classes, size=40.0):
    return size * torch.nn.functional.one_hot(target, classes).movedim(-1, 1).double()


def _ring(size=11, gap=False):
    target = torch.zeros(1, size, size, dtype=torch.int64)
    target[:, 2:-2, 2:-2] = 1
    target[:, 4:-4, 4:-4] = 0
    if gap:
        target[:, size // 2, :5] = 0
    return target


# soft clDice


def _around(x, at, box, default):
    """Values of a voxel and its neighbours inside of the array (NaN: not there), by a cross or a box."""
    found = [x[at]]
    for shift in np.ndindex(*[3] * x.ndim):
        step = np.array(shift) - 1
        if 0 < np.abs(step).sum() <= (x.ndim if box else 1):
            place = tuple(np.array(at) + step)
            if all(0 <= i < n for i, n in zip(place, x.shape, strict=True)):
                found.append(x[place])
    kept = [v for v in found if not np.isnan(v)]
    return kept or [default]


def _skeleton(p, valid, iterations):
    """Shit et al.'s recursion, in loops; ignored voxels are NaN and take no part."""
    p = np.where(valid, p, np.nan)

    def erode(x):
        return np.array(
            [np.nan if not valid[at] else min(_around(x, at, False, 1)) for at in np.ndindex(*x.shape)]
        ).reshape(x.shape)

    def dilate(x):
        return np.array(
            [np.nan if not valid[at] else max(_around(x, at, True, 0)) for at in np.ndindex(*x.shape)]
        ).reshape(x.shape)

    skeleton = np.maximum(p - dilate(erode(p)), 0)
    for _ in range(iterations):
        p = erode(p)
        delta = np.maximum(p - dilate(erode(p)), 0)
        skeleton = skeleton + np.maximum(delta - skeleton * delta, 0)
    return np.where(valid, skeleton, 0)


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 4, 3, 4)])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_cldice_against_loops(shape, ignored, reduction, agree):
    logits, target = _example(shape, ignored)
    probs, labels = logits.softmax(1).numpy(), target.numpy()
    rows = np.zeros((shape[0], 2, 4))
    for b in range(shape[0]):
        valid = labels[b] != 255
        for c in (1, 2):
            t, p = (labels[b] == c) * 1.0, np.where(valid, probs[b, c], 0)
            sp, st = _skeleton(probs[b, c], valid, 2), _skeleton(t, valid, 2)
            rows[b, c - 1] = (sp * t).sum(), sp.sum(), (st * p).sum(), st.sum()
    if reduction == "batch":
        rows = rows.sum(0, keepdims=True)
    precision, sensitivity = (rows[..., 0] + 1) / (rows[..., 1] + 1), (rows[..., 2] + 1) / (rows[..., 3] + 1)
    expected = (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()
    agree("soft_cldice", "loops over voxels", SoftClDice(2, reduction=reduction)(logits, target), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("background", [False, True])
def test_cldice_is_that_of_exacta(shape, iterations, background, agree):
    logits, target = _example(shape)
    theirs = ExactaClDice(iterations=iterations, smooth=0.5, include_background=background, backend="torch")
    ours = SoftClDice(iterations, 0.5, background, reduction="sample")
    agree("soft_cldice", "exacta SoftClDiceLoss", ours(logits, target), theirs(logits, target))


@pytest.mark.parametrize("shape", [(2, 2, 9, 7), (2, 2, 5, 4, 6)])
def test_cldice_is_that_of_monai_for_two_classes(shape, agree):
    logits, target = _example(shape)
    theirs = MonaiClDice(include_background=False, softmax=True, to_onehot_y=True, smooth=1e-12)
    agree(
        "soft_cldice",
        "MONAI SoftclDiceLoss",
        SoftClDice(reduction="sample")(logits, target),
        theirs(logits, target[:, None]),
    )
    # MONAI makes its one-hot label in float32; exacta's gradient is that of pooling, the same where nothing ties
    x = logits.clone().requires_grad_()
    y = logits.clone().requires_grad_()
    (mine,) = torch.autograd.grad(SoftClDice(reduction="sample")(x, target), x)
    (other,) = torch.autograd.grad(theirs(y, target[:, None]), y)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


def test_cldice_by_hand():
    """A line of three voxels is its own skeleton; the prediction p = 1/2 everywhere has none but its plateau's."""
    target = torch.tensor([[[0, 0, 0], [1, 1, 1], [0, 0, 0]]])
    # uniform: E_k = 1/2 and every opening is 1/2: S = 0; Tprec = (0 + 1) / (0 + 1), Tsens = (3/2 + 1) / (3 + 1)
    value = SoftClDice()(torch.zeros(1, 2, 3, 3, dtype=torch.float64), target).item()
    assert value == pytest.approx(1 - 2 * (5 / 8) / (1 + 5 / 8), rel=1e-12)
    # the line one row off: both skeletons miss the other mask: 1/4 and 1/4
    shifted = _hard(target.roll(1, 1), 2)
    assert SoftClDice()(shifted, target).item() == pytest.approx(3 / 4, rel=1e-12)
    assert SoftClDice()(_hard(target, 2), target).item() == pytest.approx(0, abs=1e-12)


def test_cldice_does_not_mind_width_but_gaps():
    line = torch.zeros(1, 9, 15, dtype=torch.int64)
    line[:, 4] = 1
    thick, broken = line.clone(), line.clone()
    thick[:, 3:6] = 1
    broken[:, 4, 6:9] = 0
    assert SoftClDice()(_hard(thick, 2), line).item() == pytest.approx(0, abs=1e-6)
    assert SoftClDice()(_hard(broken, 2), line).item() > 0.05


def test_cldice_of_absent_classes_and_wrong_arguments():
    logits, target = _example((2, 3, 6, 6))
    target[target == 2] = 0
    two = torch.stack([logits[:, 0], logits[:, 1], logits[:, 2]], 1)
    kept = SoftClDice(absent="skip")(two, target)
    assert kept.item() != pytest.approx(SoftClDice()(two, target).item())
    mean = two.softmax(1)[:, 2].mean()
    torch.testing.assert_close(SoftClDice(absent="penalise")(two, target), (kept + mean) / 2)
    for arguments in ({"iterations": -1}, {"smooth": 0}, {"reduction": "none"}, {"absent": "never"}):
        with pytest.raises(ValueError):
            SoftClDice(**arguments)


@pytest.mark.parametrize("make", [lambda: SoftClDice(2), TopologyAwareFocal, lambda: TopologyAwareFocal(downsample=2)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 3, 2, 4)], ids=["2d", "3d"])
def test_gradients_and_ignored_voxels(make, shape):
    logits, target = _example(shape, seed=2)
    target[:, :2] = 255  # two rows: windows of two are the same windows in the rest
    loss = make()

    def value(x, y=target):
        out = loss(x, y)
        return out["loss"] if isinstance(out, dict) else out

    logits.requires_grad_()
    assert torch.autograd.gradcheck(value, logits)
    whole = value(logits)
    (grad,) = torch.autograd.grad(whole, logits)
    assert (grad[:, :, :2] == 0).all()
    rest = logits[:, :, 2:].detach().requires_grad_()
    alone = value(rest, target[:, 2:])
    assert alone.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(alone, rest)[0], grad[:, :, 2:])
    nothing = value(logits, torch.full_like(target, 255))
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


# persistence


def _gudhi(height, dimension):
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=height)
    complex_.compute_persistence(homology_coeff_field=2, min_persistence=0)
    found = complex_.persistence_intervals_in_dimension(dimension).reshape(-1, 2).copy()
    found[np.isinf(found)] = 1
    return found[found[:, 1] > found[:, 0]]


def _sorted(points):
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (12, 12), (5, 6, 4), (4, 7, 5)])
@pytest.mark.parametrize("kind", ["different", "ties", "binary"])
def test_diagrams_are_those_of_gudhi(shape, kind):
    chance = np.random.default_rng(len(shape))
    for _ in range(3):
        height = chance.random(shape)
        if kind == "ties":
            height = np.round(4 * height) / 4
        if kind == "binary":
            height = (height > 0.45).astype(float)
        valid = np.ones(shape, bool)
        for dimension, ours in ((0, components), (len(shape) - 1, holes)):
            found = ours(height, valid)
            points = np.stack([found.birth, found.death], 1)
            expected = _gudhi(height, dimension)
            assert points.shape == expected.shape
            np.testing.assert_array_equal(_sorted(points), _sorted(expected))
            np.testing.assert_array_equal(height.ravel()[found.birth_voxel], found.birth)
            dies = found.death_voxel >= 0
            np.testing.assert_array_equal(height.ravel()[found.death_voxel[dies]], found.death[dies])
        if kind == "binary":
            sizes = len(components(height, valid).birth), len(holes(height, valid).birth)
            assert count_features(height == 0, valid) == sizes


def test_features_of_simple_masks():
    ring, valid = _ring()[0].numpy() == 1, np.ones((11, 11), bool)
    assert count_features(ring, valid) == (1, 1)
    assert count_features(_ring(gap=True)[0].numpy() == 1, valid) == (1, 0)
    shell = np.zeros((7, 7, 7), bool)
    shell[1:6, 1:6, 1:6] = True
    shell[2:5, 2:5, 2:5] = False
    everywhere = np.ones(shell.shape, bool)
    assert count_features(shell, everywhere) == (1, 1)
    # an ignored voxel in the cavity makes it outside: it could go on there
    everywhere[3, 3, 3] = False
    assert count_features(shell, everywhere) == (1, 0)
    assert len(holes(1.0 - shell, everywhere).birth) == 0
    # diagonal voxels are one component, and the background between them is two
    assert count_features(np.eye(2, dtype=bool), np.ones((2, 2), bool)) == (1, 0)


# the topology term


def _term(logits, target, **options):
    return TopologyAwareFocal(**options)(logits, target)["topology"]


@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (1, 3, 5, 4, 6)])
@pytest.mark.parametrize("background", [False, True])
def test_topology_term_is_that_of_gudhi(shape, background, agree):
    logits, target = _example(shape)
    target[0] = 0
    target[0, 2:4, 1:3] = 1
    probs, dims, first = logits.softmax(1).numpy(), len(shape) - 2, 0 if background else 1
    values = []
    for b in range(shape[0]):
        for c in range(first, shape[1]):
            value = 0.0
            for k in (0, dims - 1):
                ours = _gudhi(1 - probs[b, c], k), _gudhi(1.0 - (target[b] == c).numpy(), k)
                value += wasserstein_distance(*ours, order=2, internal_p=2, delta=1e-9) ** 2
            values.append(value)
    ours = TopologyAwareFocal(weight=0.7, background=background)(logits, target)
    agree("topology_focal", "gudhi", ours["topology"], np.mean(values), tolerance=1e-5)
    torch.testing.assert_close(ours["focal"], Focal()(logits, target))
    torch.testing.assert_close(ours["loss"], ours["focal"] + 0.7 * ours["topology"])


@pytest.mark.parametrize("shape", [(1, 2, 8, 6), (1, 2, 4, 6, 5)])
def test_windows_are_maxima(shape, agree):
    logits, target = _example(shape)
    probs, dims = logits.softmax(1)[0, 1].numpy(), len(shape) - 2
    mask = (target[0] == 1).numpy() * 1.0
    size = tuple(n // 2 for n in probs.shape)
    coarse = [
        np.array([x[tuple(slice(2 * i, 2 * i + 2) for i in at)].max() for at in np.ndindex(*size)]).reshape(size)
        for x in (probs, mask)
    ]
    value = sum(
        wasserstein_distance(*(_gudhi(1 - x, k) for x in coarse), order=2, internal_p=2, delta=1e-9) ** 2
        for k in (0, dims - 1)
    )
    agree("topology_focal", "gudhi", _term(logits, target, downsample=2), value)


def test_topology_by_hand():
    # a ring predicted with p = 0.9 where the truth is 1 and 0.2 where it is 0: one component (0.1, 1), one hole
    # (0.1, 0.8); to (0, 1): 0.01 and 0.01 + 0.04
    target = _ring()
    p = torch.where(target == 1, *NINE_TWO)
    logits = torch.stack([1 - p, p], 1).log()
    assert _term(logits, target).item() == pytest.approx(0.01 + 0.05, rel=1e-9)
    # truth without a hole: the hole goes to the diagonal, 0.7² / 2
    filled = torch.where(torch.arange(11)[:, None].clamp(2, 8) == torch.arange(11)[:, None], 1, 0)
    filled = (filled * filled.T)[None]
    assert _term(logits, filled).item() == pytest.approx(0.01 + 0.245, rel=1e-9)
    # truth with nothing: both to the diagonal
    assert _term(logits, torch.zeros_like(target)).item() == pytest.approx(0.405 + 0.245, rel=1e-9)
    # two components in the truth, one predicted: the other costs 1/2
    two = torch.zeros_like(target)
    two[:, 2, 2], two[:, 8, 8] = 1, 1
    one = torch.where(torch.arange(121).view(1, 11, 11) == 24, *NINE_TWO)
    assert _term(torch.stack([1 - one, one], 1).log(), two).item() == pytest.approx(0.01 + 0.5, rel=1e-9)


def test_topology_is_zero_at_the_truth_and_sees_a_gap():
    target = _ring()
    assert _term(_hard(target, 2), target).item() == pytest.approx(0, abs=1e-9)
    assert _term(_hard(_ring(gap=True), 2), target).item() == pytest.approx(0.5, abs=1e-6)


def test_the_gradient_is_at_births_and_deaths():
    target = _ring()
    p = torch.where(target == 1, *NINE_TWO)
    p[0, 5, 3], p[0, 5, 5], p[0, 2, 2] = 0.6, 0.1, 0.95  # weakest of the ring's width is beside it; deepest; strongest
    p[0, 5, 2] = 0.7
    logits = torch.stack([1 - p, p], 1).log().requires_grad_()
    (grad,) = torch.autograd.grad(_term(logits, target), logits)
    places = set(map(tuple, grad[0, 1].nonzero().tolist()))
    # the component is born at its strongest voxel, the hole at the stronger of the two that close it, and dies in its
    # deepest; nothing else has a gradient
    assert places == {(2, 2), (5, 2), (5, 5)}
    assert grad[0, 1, 2, 2] < 0 and grad[0, 1, 5, 2] < 0 and grad[0, 1, 5, 5] > 0


def test_wrong_arguments():
    for arguments in ({"downsample": 0}, {"weight": -1}, {"gamma": -1}):
        with pytest.raises(ValueError):
            TopologyAwareFocal(**arguments)
