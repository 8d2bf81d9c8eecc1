"""Losses on the embedding against loops over voxels, pytorch-metric-learning, and arithmetic by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import nn

from harness.losses.embedding import ConditionalBoundary, PixelTriplet
from harness.losses.targets import derive

SHAPES = [(2, 3, 8, 7), (2, 4, 5, 4, 6)]


def _example(
    shape: tuple[int, ...], ignored: bool = False, features: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    """Labels of blocks, an embedding that tells a part of them, and a classifier of it."""
    chance = torch.Generator().manual_seed(seed)
    target = torch.randint(0, shape[1], (shape[0], *[-(-n // 3) for n in shape[2:]]), generator=chance)
    for axis, n in enumerate(shape[2:], start=1):
        target = target.repeat_interleave(3, axis).narrow(axis, 0, n)
    target = target.contiguous()
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.2] = 255
    embedding = torch.randn(shape[0], features, *shape[2:], generator=chance, dtype=torch.float64)
    head = {4: nn.Conv2d, 5: nn.Conv3d}[len(shape)](features, shape[1], 1).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance))
        known = target.where(target != 255, 0)
        embedding += 0.5 * head.weight.flatten(1)[known].movedim(-1, 1)
    return target, embedding, head


def _boundary(target: torch.Tensor) -> torch.Tensor:
    return derive(["boundary"], target, num_classes=9, spacing=torch.ones(len(target), target.ndim - 1))["boundary"]


def _conditional(
    loss: ConditionalBoundary, target: torch.Tensor, embedding: torch.Tensor, head: nn.Module
) -> dict[str, torch.Tensor]:
    return loss(head(embedding), target, embedding=embedding, classify=head, boundary=_boundary(target))


def _by_voxels(target: np.ndarray, embedding: np.ndarray, head: nn.Module, reach: int) -> tuple[float, float, float]:
    """The three terms, from their formulas."""
    weight, bias = (p.detach().numpy() for p in head.parameters())
    weight = weight.reshape(len(weight), -1)
    dims = target.ndim - 1
    steps = [s for s in product(range(-reach, reach + 1), repeat=dims) if any(s)]
    pairs: list[float] = []
    centres: dict[int, list[float]] = {}
    means: dict[int, list[float]] = {}
    sures: dict[int, list[float]] = {}
    for y, f in zip(target, embedding, strict=True):
        known = {i for i in np.ndindex(*y.shape) if y[i] != 255}
        at = {i: f[(slice(None), *i)] for i in known}
        right = {i for i in known if int(np.argmax(weight @ at[i] + bias)) == y[i]}
        faces = [s for s in steps if sum(map(abs, s)) == 1]
        for i in known:
            if not any(j in known and y[j] != y[i] for j in (tuple(np.add(i, s)) for s in faces)):
                continue
            window = [j for j in (tuple(np.add(i, s)) for s in steps) if j in known]
            for j in window:
                cosine = at[i] @ at[j] / np.linalg.norm(at[i]) / np.linalg.norm(at[j])
                pairs.append((cosine - (y[i] == y[j])) ** 2)
            c = int(y[i])
            same = [at[j] for j in window if y[j] == c]
            sure = [at[j] for j in window if y[j] == c and j in right]
            for group, out in ((same, means), (sure, sures)):
                if group:
                    z = weight @ np.mean(group, 0) + bias
                    out.setdefault(c, []).append(math.log(np.exp(z).sum()) - z[c])
            if sure and i in right:
                centres.setdefault(c, []).append(((at[i] - np.mean(sure, 0)) ** 2).mean())
    centre, mean, sure_mean = (float(np.mean([np.mean(v) for v in d.values()])) for d in (centres, means, sures))
    return float(np.mean(pairs)), centre, mean + sure_mean


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_conditional_boundary_agrees_with_loops(agree, shape, ignored: bool, window: int | None) -> None:
    target, embedding, head = _example(shape, ignored)
    found = _conditional(ConditionalBoundary(window), target, embedding, head)
    reach = 2 if window is None and len(shape) == 4 else 1
    pairs, centre, neighbours = _by_voxels(target.numpy(), embedding.numpy(), head, reach)
    expected = [pairs + 2 * centre + 0.2 * neighbours, pairs, centre, neighbours]
    ours = torch.stack([found[k] for k in ("loss", "pairs", "centre", "neighbours")])
    assert min(expected) > 0.05
    agree("conditional_boundary", "loops over voxels", ours, np.array(expected))


def test_conditional_boundary_by_hand() -> None:
    # one boundary in a row of four: each boundary voxel has one neighbour of each class in a window of 3
    target = torch.tensor([[[0, 0, 1, 1]]])
    head = nn.Conv2d(2, 2, 1, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(2)[..., None, None])
    # features of class 0 all (1, 0), those of class 1 (0, 1), but the last (0, 3)
    embedding = torch.tensor([[[[1.0, 1, 0, 0]], [[0.0, 0, 1, 3]]]], dtype=torch.float64)
    found = _conditional(ConditionalBoundary(3), target, embedding, head)
    assert found["pairs"].item() == pytest.approx(0, abs=1e-12)
    # class 0: 0; class 1: (1 - 3)² over 2 features; mean over classes
    assert found["centre"].item() == pytest.approx(1.0, rel=1e-12)
    # both means are (1, 0) in class 0 and (0, 3) in class 1, and all voxels are right: each counts twice
    expected = (2 * math.log(1 + math.exp(-1)) + 2 * math.log(1 + math.exp(-3))) / 2
    assert found["neighbours"].item() == pytest.approx(expected, rel=1e-12)
    assert found["loss"].item() == pytest.approx(2.0 + 0.2 * expected, rel=1e-12)
    # all features alike: every pair across the boundary costs 1, half of the pairs
    alike = _conditional(ConditionalBoundary(3), target, torch.ones_like(embedding), head)
    assert alike["pairs"].item() == pytest.approx(0.5, rel=1e-9)


def test_background_has_pairs_too() -> None:
    # the released code multiplies its mask by the label: with class 0 alone at the boundary's one side, no pair there
    target = torch.tensor([[[0, 0, 1, 1]]])
    embedding = torch.randn(1, 3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = nn.Conv2d(3, 2, 1).double()
    embedding.requires_grad_()
    (grad,) = torch.autograd.grad(_conditional(ConditionalBoundary(3), target, embedding, head)["pairs"], embedding)
    assert grad[..., 0].abs().max() > 1e-6  # the far voxel of class 0 is a neighbour of a voxel of class 0 alone


@pytest.mark.parametrize("shape", SHAPES)
def test_the_classifier_is_frozen_and_gradients_are_right(shape: tuple[int, ...]) -> None:
    target, embedding, head = _example(shape, ignored=True)
    embedding.requires_grad_()
    found = _conditional(ConditionalBoundary(3), target, embedding, head)
    grads = torch.autograd.grad(found["loss"], [embedding, *head.parameters()], allow_unused=True, retain_graph=True)
    assert grads[0].any() and all(g is None or not g.any() for g in grads[1:])
    # the linear stand-in has the gradient of the real thing
    loss = ConditionalBoundary(3, centre_weight=0.0)
    small = embedding.detach()[:1, ..., :4].clone().requires_grad_()
    labels = target[:1, ..., :4].contiguous()
    assert torch.autograd.gradcheck(lambda e: _conditional(loss, labels, e, head)["loss"], small, fast_mode=True)
    # without a gradient: the same value
    with torch.no_grad():
        plain = _conditional(ConditionalBoundary(3), target, embedding, head)
    assert plain["loss"].item() == pytest.approx(found["loss"].item(), rel=1e-14) and not plain["loss"].requires_grad


def test_the_centre_moves_towards_its_neighbours_and_not_they_towards_it() -> None:
    target = torch.tensor([[[0, 0, 1, 1]]])
    head = nn.Conv2d(2, 2, 1, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(2)[..., None, None])
    embedding = torch.tensor([[[[1.0, 2, 0, 0]], [[0.0, 0, 1, 3]]]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(_conditional(ConditionalBoundary(3), target, embedding, head)["centre"], embedding)
    assert grad[..., 1:3].abs().sum(1).min() > 0 and not grad[..., [0, 3]].any()


@pytest.mark.parametrize("make", [ConditionalBoundary, PixelTriplet])
def test_ignored_voxels_are_as_if_cropped_away(make: type[nn.Module]) -> None:
    target, embedding, head = _example((2, 3, 8, 9))
    target[..., 5:] = 255

    def value(e: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if make is PixelTriplet:
            draw = torch.Generator().manual_seed(0)
            return PixelTriplet()(head(e), y, embedding=e, boundary=_boundary(y), generator=draw)
        return _conditional(ConditionalBoundary(), y, e, head)["loss"]

    moved = embedding.clone()
    moved[..., 5:] += 5
    moved.requires_grad_()
    changed = value(moved, target)
    assert changed.item() == value(embedding, target).item() > 0
    assert not torch.autograd.grad(changed, moved)[0][..., 5:].any()
    if make is ConditionalBoundary:
        alone = value(embedding[..., :5], target[..., :5].contiguous())
        torch.testing.assert_close(changed, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", ["one class", "all ignored", "no features", "one voxel"])
def test_extremes_are_finite(case: str) -> None:
    target, embedding, head = _example((2, 3, 8, 7))
    if case == "one class":
        target = torch.full_like(target, 2)
    if case == "all ignored":
        target = torch.full_like(target, 255)
    if case == "no features":
        embedding = torch.zeros_like(embedding)
    if case == "one voxel":
        target, embedding = target[..., :1, :1], embedding[..., :1, :1]
    embedding.requires_grad_()
    boundary, draw = _boundary(target), torch.Generator().manual_seed(0)
    triplet = PixelTriplet()(head(embedding), target, embedding=embedding, boundary=boundary, generator=draw)
    for value in (_conditional(ConditionalBoundary(), target, embedding, head)["loss"], triplet):
        (grad,) = torch.autograd.grad(value, embedding, retain_graph=True)
        assert value.isfinite() and grad.isfinite().all()
        assert case == "no features" or value.item() == 0


def _sampled(
    loss: PixelTriplet, target: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return loss.sample(target, _boundary(target), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("anchors", [16, 256])
def test_triplets_agree_with_metric_learning_and_with_loops(agree, shape, normalize: bool, anchors: int) -> None:
    target, embedding, head = _example(shape, ignored=True)
    loss = PixelTriplet(margin=0.7, anchors=anchors, normalize=normalize)
    draw = torch.Generator().manual_seed(0)
    ours = loss(head(embedding), target, embedding=embedding, boundary=_boundary(target), generator=draw)
    voxels, drawn, positive, negative = _sampled(loss, target)
    rows, triplets, values = [], [], []
    for b in range(len(target)):
        flat, labels = embedding[b].flatten(1), target[b].flatten()
        for place in drawn[b].nonzero().flatten().tolist():
            three = [int(voxels[b, j]) for j in (place, positive[b, place], negative[b, place])]
            assert labels[three[0]] == labels[three[1]] != labels[three[2]]
            triplets.append([len(rows), len(rows) + 1, len(rows) + 2])
            rows += [flat[:, v] for v in three]
            a, p, n = (v.numpy() / (np.linalg.norm(v) if normalize else 1) for v in rows[-3:])
            values.append(max(0.0, 0.7 + np.linalg.norm(a - p) - np.linalg.norm(a - n)))
    oracle = TripletMarginLoss(
        margin=0.7, distance=LpDistance(normalize_embeddings=normalize, p=2), reducer=MeanReducer()
    )
    a, p, n = torch.tensor(triplets).T
    theirs = oracle(torch.stack(rows), torch.zeros(len(rows)), indices_tuple=(a, p, n))
    assert theirs > 0.1
    agree("pixel_triplet", "pytorch-metric-learning TripletMarginLoss", ours, theirs)
    agree("pixel_triplet", "loops over triplets", ours, np.mean(values))


def test_what_is_drawn() -> None:
    target, _, _ = _example((2, 3, 12, 11), ignored=True, seed=4)
    edge = _boundary(target).flatten(1)
    most = int(edge.sum(1).max())
    for anchors in (3, 20, 1000):
        loss = PixelTriplet(anchors=anchors)
        voxels, drawn, positive, negative = _sampled(loss, target)
        assert voxels.shape[1] == min(anchors, 12 * 11)
        for b in range(2):
            chosen = voxels[b, drawn[b]]
            assert edge[b, chosen].all() and chosen.unique().numel() == len(chosen)
            there = min(anchors, int(edge[b].sum()))
            assert len(chosen) <= there
            if anchors == 1000:  # every voxel of the boundary, as each has a partner of either kind here
                assert len(chosen) == there <= most
            places = drawn[b].nonzero().flatten()
            assert (positive[b, places] != places).all()
            labels = target[b].flatten()[voxels[b]]
            assert (labels[positive[b, places]] == labels[places]).all()
            assert (labels[negative[b, places]] != labels[places]).all()
    again = _sampled(PixelTriplet(anchors=20), target)
    assert all(torch.equal(x, y) for x, y in zip(again, _sampled(PixelTriplet(anchors=20), target), strict=True))
    assert not torch.equal(again[0], _sampled(PixelTriplet(anchors=20), target, seed=1)[0])


def test_partners_are_drawn_evenly() -> None:
    # a row of five: the boundary is all of it; class 0 at 0, 1; class 1 at 2, 3; class 2 at 4
    target = torch.tensor([[[0, 0, 1, 1, 2]]])
    boundary = torch.ones_like(target, dtype=torch.bool)
    draw = torch.Generator().manual_seed(0)
    loss = PixelTriplet(anchors=5)
    found: dict[tuple[int, int], int] = {}
    for _ in range(600):
        voxels, drawn, positive, negative = loss.sample(target, boundary, draw)
        for place in drawn[0].nonzero().flatten().tolist():
            a, p, n = (int(voxels[0, j]) for j in (place, positive[0, place], negative[0, place]))
            assert a != 4 and p == {0: 1, 1: 0, 2: 3, 3: 2}[a]
            found[a, n] = found.get((a, n), 0) + 1
    for a in range(4):
        others = [n for n in range(5) if n // 2 != a // 2]
        # three negatives, 600 draws: 200 each, standard deviation 11.5
        assert all(abs(found[a, n] - 200) < 58 for n in others)


def test_triplets_by_hand_and_their_gradient() -> None:
    # four voxels, two of each class: the partner is forced; distances 0 within and √2 between: max(0, m - √2)
    target = torch.tensor([[[0, 0, 1, 1]]])
    boundary = torch.ones_like(target, dtype=torch.bool)
    embedding = torch.tensor([[[[1.0, 2, 0, 0]], [[0.0, 0, 1, 5]]]], dtype=torch.float64)

    def value(e: torch.Tensor, **args: float) -> torch.Tensor:
        draw = torch.Generator().manual_seed(1)
        return PixelTriplet(**args)(e, target, embedding=e, boundary=boundary, generator=draw)

    assert value(embedding, margin=1.0).item() == 0
    assert value(embedding, margin=1.9).item() == pytest.approx(1.9 - math.sqrt(2), rel=1e-5)
    # the two classes have changed places: features of a class are as near to each other, and the loss is as low
    assert value(embedding.flip(1), margin=1.9).item() == pytest.approx(1.9 - math.sqrt(2), rel=1e-5)
    # all alike: the margin itself
    assert value(torch.ones_like(embedding), margin=0.6).item() == pytest.approx(0.6, rel=1e-12)
    chance = torch.Generator().manual_seed(2)
    rough = torch.randn(1, 3, 1, 4, generator=chance, dtype=torch.float64, requires_grad=True)
    assert value(rough, margin=1.5) > 0
    assert torch.autograd.gradcheck(lambda e: value(e, margin=1.5), rough)


def test_constructor_errors() -> None:
    for window in (1, 4):
        with pytest.raises(ValueError, match="window must be odd"):
            ConditionalBoundary(window)
    with pytest.raises(ValueError, match="must not be negative"):
        ConditionalBoundary(centre_weight=-1.0)
    for args in ({"margin": 0.0}, {"anchors": 2}):
        with pytest.raises(ValueError, match="margin > 0 and anchors >= 3"):
            PixelTriplet(**args)
