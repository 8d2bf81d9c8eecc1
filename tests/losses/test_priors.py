"""Losses on neighbours and sizes against loops over voxels, torch, and arithmetic by hand."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from harness.losses.facts import label_facts
from harness.losses.priors import NonAdjacency, SizePrior

SHAPES = [(2, 3, 5, 4), (2, 4, 3, 4, 5)]
CHAIN = [[9, 9, 0, 0], [9, 9, 9, 0], [0, 9, 9, 9], [0, 0, 9, 9]]  # 0-1-2-3


def _example(shape, ignored=False, seed=0):
    chance = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.2] = 255
    return logits, target


def _chain(classes):
    return [row[:classes] for row in CHAIN[:classes]]


def _hard(target, classes, size=40.0):
    return size * F.one_hot(target, classes).movedim(-1, 1).double()


# neighbours


def _penalty_by_voxels(logits, target, adjacency, faces):
    probs, labels = logits.softmax(1).numpy(), target.numpy()
    classes, dims = probs.shape[1], labels.ndim - 1
    total, voxels = np.zeros((classes, classes)), 0
    for b in range(len(labels)):
        for at in np.ndindex(*labels.shape[1:]):
            if labels[b][at] == 255:
                continue
            voxels += 1
            for step in np.ndindex(*[3] * dims):
                shift = np.array(step) - 1
                place = tuple(np.array(at) + shift)
                inside = all(0 <= i < n for i, n in zip(place, labels.shape[1:], strict=True))
                if not inside or labels[b][place] == 255 or (faces and np.abs(shift).sum() > 1):
                    continue
                total += np.outer(probs[(b, slice(None), *at)], probs[(b, slice(None), *place)])
    size = 1 + 2 * dims if faces else 3**dims
    forbidden = np.array(adjacency) == 0
    return (total * forbidden).sum() / (size * voxels * forbidden.sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("neighbours", ["box", "faces"])
def test_neighbours_against_loops(shape, ignored, neighbours, agree):
    logits, target = _example(shape, ignored)
    adjacency = _chain(shape[1])
    terms = NonAdjacency(adjacency, weight=2.5, neighbours=neighbours)(logits, target)
    expected = _penalty_by_voxels(logits, target, adjacency, neighbours == "faces")
    agree("non_adjacency", "loops over voxels", terms["loss"], 2.5 * expected)
    assert terms["adjacency"].item() == pytest.approx(expected, rel=1e-12)
    assert terms["strength"].item() == 2.5


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_are_a_convolution(shape, agree):
    """The authors' way: a depthwise convolution with ones over their number, zeros around."""
    logits, target = _example(shape)
    classes, dims = shape[1], len(shape) - 2
    p = logits.softmax(1)
    kernel = torch.full((classes, 1, *[3] * dims), 1 / 3**dims, dtype=p.dtype)
    around = (F.conv2d if dims == 2 else F.conv3d)(p, kernel, padding=1, groups=classes)
    graph = torch.einsum("bin,bjn->ij", p.flatten(2), around.flatten(2)) / target.numel()
    forbidden = 1 - (torch.tensor(_chain(classes)) > 0).double()
    expected = (graph * forbidden).sum() / forbidden.sum()
    agree("non_adjacency", "torch conv", NonAdjacency(_chain(classes))(logits, target)["loss"], expected)


def test_neighbours_by_hand():
    # a row 0 2 1 of certain classes; 0 and 2 must not touch: A_02 = A_20 = 1/9 (one neighbour of nine) / 3 voxels;
    # two forbidden pairs: (1/27 + 1/27) / 2
    target = torch.tensor([[[0, 2, 1]]])
    loss = NonAdjacency([[1, 1, 0], [1, 1, 1], [0, 1, 1]])
    assert loss(_hard(target, 3), target)["loss"].item() == pytest.approx(1 / 27, rel=1e-12)
    # faces: a row has two of five neighbours
    loss = NonAdjacency([[1, 1, 0], [1, 1, 1], [0, 1, 1]], neighbours="faces")
    assert loss(_hard(target, 3), target)["loss"].item() == pytest.approx(1 / 15, rel=1e-12)


def test_the_truth_is_free_and_a_forbidden_contact_is_not():
    target = torch.arange(4).repeat_interleave(3)[None, None].expand(1, 6, 12).clone()
    adjacency = label_facts([target[0].numpy()], 4)["adjacency"]
    assert (torch.tensor(adjacency) > 0).tolist() == (torch.tensor(CHAIN) > 0).tolist()
    loss = NonAdjacency(adjacency)
    assert loss(_hard(target, 4), target)["loss"].item() == pytest.approx(0, abs=1e-12)
    wrong = target.clone()
    wrong[:, 2:4, 1] = 3
    assert loss(_hard(wrong, 4), target)["loss"].item() > 1e-3


def test_without_a_forbidden_pair_the_value_is_0_with_a_gradient_path():
    logits, target = _example((2, 3, 5, 4))
    logits.requires_grad_()
    value = NonAdjacency([[1] * 3] * 3)(logits, target)["loss"]
    assert value.item() == 0 and value.requires_grad
    assert (torch.autograd.grad(value, logits)[0] == 0).all()


def _epoch(loss, prediction, target, times=3):
    for _ in range(times):
        loss(prediction, target)
    loss.epoch_end()


def _bars():
    target = torch.arange(4).repeat_interleave(3)[None, None].expand(1, 6, 12).clone()
    good = _hard(target, 4, 3.0)
    return target, good


def test_strength_is_set_after_the_first_epoch_and_grows():
    target, good = _bars()
    loss = NonAdjacency(CHAIN, factor=1.5)
    first = loss(good, target)
    _epoch(loss, good, target, 4)
    p = good.softmax(1)
    dice = [2 * p[:, c][target == c].sum() / (p[:, c].sum() + (target == c).sum()) for c in (1, 2, 3)]
    start = 0.3 * (sum(dice) / 3 / first["adjacency"]).item()
    assert loss(good, target)["strength"].item() == pytest.approx(start, rel=1e-5)
    seen = []
    for _ in range(10):
        _epoch(loss, good, target)
        seen.append(loss.strength.item() / start)
    assert seen == pytest.approx([1, 1, 1, 1, 1.5, 1.5, 1.5, 1.5, 1.5, 2.25], rel=1e-5)
    terms = loss(good, target)
    torch.testing.assert_close(terms["loss"], terms["strength"] * terms["adjacency"])


def test_strength_waits_and_shrinks_while_dice_is_low():
    target, good = _bars()
    bad = _hard(target, 4, 1.0)
    loss = NonAdjacency(CHAIN)
    _epoch(loss, good, target)
    start = loss.strength.item()
    seen = []
    for _ in range(6):
        _epoch(loss, bad, target)
        seen.append(loss.strength.item() / start)
    assert seen == pytest.approx([1, 1, 1, 1, 0.95, 0.95], rel=1e-5)


def test_strength_has_a_ceiling_a_start_and_can_stay():
    target, good = _bars()
    loss = NonAdjacency(CHAIN, factor=100.0)
    _epoch(loss, good, target)
    start = loss.strength.item()
    for _ in range(20):
        _epoch(loss, good, target, 1)
    assert loss.strength.item() == pytest.approx(1000 * start, rel=1e-5)
    still = NonAdjacency(CHAIN, weight=0.5, factor=None)
    for _ in range(7):
        _epoch(still, good, target, 1)
    assert still.strength.item() == 0.5
    late = NonAdjacency(CHAIN, start=2, factor=None)
    values = []
    for _ in range(3):
        values.append(late(good, target)["loss"].item())
        late.epoch_end()
    assert values[:2] == [0, 0] and values[2] > 0


def test_state_is_saved_and_evaluation_leaves_it_alone():
    target, good = _bars()
    loss = NonAdjacency(CHAIN)
    _epoch(loss, good, target)
    loss(good, target)
    other = NonAdjacency(CHAIN)
    other.load_state_dict(loss.state_dict())
    for one in (loss, other):
        for _ in range(5):
            one.epoch_end()
            one(good, target)
    assert torch.equal(loss.strength, other.strength) and torch.equal(loss.state, other.state)
    kept = loss.sums.clone()
    loss.eval()(good, target)
    assert torch.equal(kept, loss.sums)


def test_strength_stays_where_nothing_was_measured():
    target, good = _bars()
    loss = NonAdjacency([[1] * 4] * 4, weight=3.0)
    _epoch(loss, good, target)
    loss.epoch_end()
    assert loss.strength.item() == 3.0 and loss.strength.isfinite()


# sizes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_sizes_are_divergences_of_torch(shape, ignored, background, reduction, agree):
    logits, target = _example(shape, ignored)
    counts = torch.tensor([50.0, 3, 12, 7][: shape[1]], dtype=torch.float64)
    q, first = counts / counts.sum(), 0 if background else 1
    probs = logits.softmax(1).movedim(1, -1)
    valid = target != 255
    groups = [probs[valid]] if reduction == "batch" else [p[v] for p, v in zip(probs, valid, strict=True)]
    expected = torch.stack([kl_divergence(Bernoulli(q), Bernoulli(g.mean(0)))[first:].sum() for g in groups]).mean()
    loss = SizePrior(counts.tolist(), background=background, reduction=reduction)
    agree("size_prior", "torch.distributions", loss(logits, target), expected)
    if background:
        expected = torch.stack([kl_divergence(Categorical(q), Categorical(g.mean(0))) for g in groups]).mean()
        loss = SizePrior(counts.tolist(), binary=False, reduction=reduction)
        agree("size_prior", "torch.distributions", loss(logits, target), expected)


def test_sizes_by_hand():
    # p̄ = (1/2, 1/2), q = (3/4, 1/4): each half: 3/4 ln 3/2 + 1/4 ln 1/2
    logits, target = torch.zeros(1, 2, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.int64)
    half = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert SizePrior([3, 1])(logits, target).item() == pytest.approx(2 * half, rel=1e-12)
    assert SizePrior([3, 1], binary=False)(logits, target).item() == pytest.approx(half, rel=1e-12)
    assert SizePrior([5, 5])(logits, target).item() == pytest.approx(0, abs=1e-12)


def test_sizes_do_not_read_the_label():
    logits, target = _example((2, 3, 5, 4))
    loss = SizePrior([4, 2, 1])
    assert torch.equal(loss(logits, target), loss(logits, (target + 1) % 3))


def test_a_vanished_class_still_has_a_gradient():
    """ln of a mean that underflows: float32 knows no e^-200."""
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 2] = -200
    logits.requires_grad_()
    value = SizePrior([2, 1, 1])(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    (grad,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and value > 40
    # q_2 d(-ln p̄_2) / dz_2 = -q_2, spread over the voxels
    assert grad[0, 2].sum().item() == pytest.approx(-0.25, rel=1e-4)


def test_a_class_that_training_never_saw():
    logits, target = _example((2, 3, 5, 4))
    value = SizePrior([3, 1, 0])(logits, target)
    p = logits.softmax(1).mean((0, 2, 3))
    q = torch.tensor([0.75, 0.25], dtype=torch.float64)
    rest = (q * (q / p[:2]).log() + (1 - q) * ((1 - q) / (1 - p[:2])).log()).sum()
    assert value.item() == pytest.approx((rest - torch.log1p(-p[2])).item(), rel=1e-12)


# both


@pytest.mark.parametrize(
    "loss", [NonAdjacency(_chain(3)), SizePrior([5, 2, 1]), SizePrior([5, 2, 1], False, False, "sample")]
)
@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (2, 3, 2, 2, 2)], ids=["2d", "3d"])
def test_gradients_and_ignored_voxels(loss, shape):
    logits, target = _example(shape, seed=3)
    target[:, 0] = 255

    def value(x, y=target):
        out = loss(x, y)
        return out["loss"] if isinstance(out, dict) else out

    logits.requires_grad_()
    assert torch.autograd.gradcheck(value, logits)
    whole = value(logits)
    (grad,) = torch.autograd.grad(whole, logits)
    assert (grad[:, :, 0] == 0).all() and (grad[:, :, 1:] != 0).any()
    assert value(logits[:, :, 1:], target[:, 1:]).item() == pytest.approx(whole.item(), rel=1e-12)
    # a sample without a valid voxel takes no part
    alone = target.clone()
    alone[1] = 255
    assert value(logits, alone).item() == pytest.approx(value(logits[:1], alone[:1]).item(), rel=1e-12)
    nothing = value(logits, torch.full_like(target, 255))
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


def test_wrong_arguments():
    for make in (
        NonAdjacency,
        lambda: NonAdjacency([[1, 0]]),
        lambda: NonAdjacency(CHAIN, weight=-1),
        lambda: NonAdjacency(CHAIN, start=-1),
        lambda: NonAdjacency(CHAIN, factor=0.5),
        lambda: NonAdjacency(CHAIN, neighbours="ball"),
        SizePrior,
        lambda: SizePrior([0, 0]),
        lambda: SizePrior([2, -1]),
        lambda: SizePrior([2, 1], reduction="none"),
        lambda: SizePrior([2, 1])(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)),
        lambda: NonAdjacency(CHAIN)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError):
            make()
