"""The distance head against loops over voxels and torch, and what is decoded from it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.losses.heads import DistanceHead
from harness.losses.targets import derive

SHAPES = [(2, 3, 9, 8), (2, 4, 5, 6, 4)]


def _example(shape: tuple[int, ...], bins: int, ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    scores = torch.randn(shape[0], bins, *shape[2:], generator=chance, dtype=torch.float64)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    target[:, 1:] = 1
    target[:, :, -2:] = shape[1] - 1
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.1] = 255
    return scores, target


def _maps(target: torch.Tensor, spacing: torch.Tensor | None = None) -> torch.Tensor:
    spacing = torch.ones(len(target), target.ndim - 1) if spacing is None else spacing
    return derive(["distance_in"], target, num_classes=5, spacing=spacing)["distance_in"]


def _value(
    loss: DistanceHead, scores: torch.Tensor, target: torch.Tensor, spacing: torch.Tensor | None = None
) -> torch.Tensor:
    logits = torch.zeros(len(target), 5, *target.shape[1:], dtype=scores.dtype, requires_grad=True)
    return loss(logits, target, distance_in=_maps(target, spacing), distance_logits=scores, spacing=spacing)


def _by_voxels(scores: np.ndarray, target: np.ndarray, spacing: np.ndarray, bins: int, reach: float) -> float:
    radii = [n * reach / (bins - 1) for n in range(bins)]
    losses = []
    for z, y, h in zip(scores, target, spacing, strict=True):
        known = [i for i in np.ndindex(*y.shape) if y[i] != 255]
        for i in known:
            wanted = 0.0
            if y[i] != 0:
                away = [np.linalg.norm((np.array(i) - j) * h) / h.min() for j in known if y[j] != y[i]]
                wanted = min(math.ceil(min(away) - 1e-5), reach) if away else reach
            right = next(n for n, r in enumerate(radii) if r >= wanted - 1e-9)
            for n in range(bins):
                p = 1 / (1 + math.exp(-z[(n, *i)]))
                losses.append(-math.log(p if n == right else 1 - p))
    return sum(losses) * bins / len(losses)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("bins", "reach"), [(10, None), (4, 3.0), (4, 5.0), (7, 3.0), (2, 1.0)])
@pytest.mark.parametrize("spaced", [False, True])
def test_agrees_with_loops_over_voxels(agree, shape, ignored: bool, bins: int, reach: float | None, spaced: bool):
    scores, target = _example(shape, bins, ignored)
    spacing = torch.tensor([[1.4, 0.7, 1.1][: len(shape) - 2]] * 2) if spaced else torch.ones(2, len(shape) - 2)
    loss = DistanceHead(bins, reach)
    ours = _value(loss, scores, target, spacing if spaced else None)
    theirs = _by_voxels(scores.numpy(), target.numpy(), spacing.double().numpy(), bins, reach or bins - 1)
    agree("distance_head", "loops over voxels", ours, theirs)
    # and K binary cross-entropies of torch on what `encode` says
    bits = loss.encode(target, _maps(target, spacing), spacing).double()
    valid = (target != 255)[:, None].expand_as(bits)
    assert (bits.sum(1) == 1).all()
    theirs = F.binary_cross_entropy_with_logits(scores[valid], bits[valid]) * bins
    agree("distance_head", "torch binary_cross_entropy_with_logits", ours, theirs)


def test_by_hand() -> None:
    # a row 0 1 1 1 0: distances 0 1 2 1 0, cut at 1 they would be 0 1 1 1 0
    target = torch.tensor([[[0, 1, 1, 1, 0]]])
    loss = DistanceHead(bins=3)
    assert loss.channels == {"distance_logits": 3} and loss.radii.tolist() == [0, 1, 2]
    bits = loss.encode(target, _maps(target))
    assert bits[0, :, 0].int().argmax(0).tolist() == [0, 1, 2, 1, 0]
    assert DistanceHead(bins=2).encode(target, _maps(target))[0, :, 0].int().argmax(0).tolist() == [0, 1, 1, 1, 0]
    # all scores 0: three times ln 2
    assert _value(loss, torch.zeros(1, 3, 1, 5), target).item() == pytest.approx(3 * math.log(2), rel=1e-6)
    # right everywhere with score ±s
    value = _value(loss, 4.0 * (2 * bits.double() - 1), target).item()
    assert value == pytest.approx(3 * math.log(1 + math.exp(-4)), rel=1e-12)
    # classes next to each other: the distance ends where the class ends
    two = torch.tensor([[[1, 1, 1, 2, 2, 2]]])
    assert DistanceHead().encode(two, _maps(two))[0, :, 0].int().argmax(0).tolist() == [3, 2, 1, 1, 2, 3]
    # a class that fills the patch has no outside
    full = torch.full((1, 1, 4), 2)
    assert (DistanceHead(bins=6).encode(full, _maps(full)).int().argmax(1) == 5).all()


def test_a_slanted_distance_is_rounded_up_and_cut_off() -> None:
    size = 21
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    target = ((y - 10) ** 2 + (x - 10) ** 2 <= 64).long()[None]
    maps = _maps(target)
    found = DistanceHead(bins=10).encode(target, maps).int().argmax(1)
    expected = maps[:, 1].ceil().clamp(max=9) * target
    assert torch.equal(found, expected.long()) and found.max() == 9
    # four bins up to 9: 0, 3, 6, 9, the next larger one
    found = DistanceHead(bins=4, max_distance=9.0).encode(target, maps).int().argmax(1)
    assert torch.equal(found, (expected / 3).ceil().long())


@pytest.mark.parametrize("dims", [2, 3])
def test_decoding_a_box_gives_the_box(dims: int) -> None:
    target = torch.zeros(2, *[16] * dims, dtype=torch.int64)
    target[0][(slice(2, 11), slice(3, 14), *[slice(5, 12)] * (dims - 2))] = 1
    target[1][(slice(0, 4), *[slice(10, 16)] * (dims - 1))] = 2
    for bins in (3, 10):
        loss = DistanceHead(bins)
        assert torch.equal(loss.decode(loss.encode(target, _maps(target)).float()), target > 0)
    spacing = torch.tensor([[0.5, 1.0, 1.5][:dims]] * 2)
    loss = DistanceHead(bins=30)
    found = loss.decode(loss.encode(target, _maps(target, spacing), spacing).float(), spacing)
    assert torch.equal(found, target > 0)


def test_decoding_a_disc_is_off_by_the_next_voxel_at_most_and_mends_a_hole() -> None:
    size = 33
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    target = ((y - 16) ** 2 + (x - 15) ** 2 <= 100).long()[None]
    loss = DistanceHead(bins=14)
    scores = loss.encode(target, _maps(target)).float()
    found = loss.decode(scores)
    assert found[target > 0].all()
    outside = derive(["distance_out"], target, num_classes=2, spacing=torch.ones(1, 2))["distance_out"][:, 1]
    assert 0 < outside[found].max() < 1.5
    # a hole in the head's prediction is inside the discs around
    holed = scores.clone()
    holed[..., 14:19, 13:18] = 0
    holed[:, 0, 14:19, 13:18] = 1
    assert loss.decode(holed)[target > 0].all()
    assert not loss.decode(torch.zeros_like(scores)).any()  # bin 0 first


def test_ignored_voxels_are_as_if_cropped_away() -> None:
    scores, target = _example((2, 3, 9, 8), 10)
    target[..., 5:] = 255
    loss = DistanceHead()
    scores.requires_grad_()
    value = _value(loss, scores, target)
    assert not torch.autograd.grad(value, scores, retain_graph=True)[0][..., 5:].any()
    alone = _value(loss, scores[..., :5], target[..., :5])
    torch.testing.assert_close(value, alone, rtol=1e-12, atol=0)
    assert _value(loss, scores, torch.full_like(target, 255)).item() == 0


def test_gradients() -> None:
    scores, target = _example((1, 3, 5, 4), 4, ignored=True)
    loss = DistanceHead(4)
    assert torch.autograd.gradcheck(lambda z: _value(loss, z, target), scores.requires_grad_())
    large = (1e4 * scores.detach().float().sign()).requires_grad_()
    value = _value(loss, large, target)
    assert value.isfinite() and torch.autograd.grad(value, large)[0].isfinite().all()
    # the segmentation is part of the graph, with a gradient of 0
    logits = torch.zeros(1, 5, 5, 4, requires_grad=True)
    loss(logits, target, distance_in=_maps(target), distance_logits=scores.detach()).backward()
    assert logits.grad is not None and not logits.grad.any()


def test_errors() -> None:
    for args in ({"bins": 1}, {"max_distance": 0.5}):
        with pytest.raises(ValueError, match="bins >= 2 and max_distance >= 1"):
            DistanceHead(**args)
    scores, target = _example(SHAPES[0], 10)
    with pytest.raises(ValueError, match="expected 5 channels of distance_logits, found 10"):
        _value(DistanceHead(5), scores, target)
