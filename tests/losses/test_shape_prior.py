"""Losses on attention, latents and token maps against torch, MONAI, loops over cells and arithmetic by hand."""

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from harness.losses.shape_prior import AttentionRegularisation, KLShapePrior, ShapeAlignment

GRIDS = [((6, 8), (3, 4)), ((4, 4, 6), (2, 4, 3)), ((5, 4), (5, 4))]  # of the label, of the maps


def _target(space, batch=2, classes=3, ignored=False, seed=0):
    chance = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (batch, *space), generator=chance)
    target[torch.rand(target.shape, generator=chance) < 0.5] = 0
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.1] = 255
    return target


def _maps(space, batch=2, number=3, over=2, seed=1):
    """Positive maps that sum to 1 over space (over=2) or classes (over=1)."""
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randn((batch, number, *space), generator=chance, dtype=torch.float64)
    return (scores.flatten(2).softmax(2).view_as(scores) if over == 2 else scores.softmax(1)).requires_grad_()


def _logits(target, classes=3):
    return torch.zeros(target.shape[0], classes, *target.shape[1:], dtype=torch.float64)


def _cells(target, grid):
    """Labels of the voxels of each cell, one sample: grid must divide."""
    sides = [n // g for n, g in zip(target.shape, grid, strict=True)]
    out = {}
    for at in np.ndindex(*grid):
        out[at] = target[tuple(slice(i * s, (i + 1) * s) for i, s in zip(at, sides, strict=True))].ravel()
    return out


@pytest.mark.parametrize(("space", "grid"), GRIDS)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("dilation", [0, 1])
def test_attention_mass_against_loops(space, grid, ignored, dilation, agree):
    target, attention = _target(space, ignored=ignored), _maps(grid, number=2)
    target[0] = torch.where(target[0] == 255, 255, 0)  # one object, in a corner
    target[0].view(-1)[0] = 1
    values = []
    for b in range(2):
        cells = _cells(target[b].numpy(), grid)
        whole = {at for at, labels in cells.items() if 255 not in labels}
        object_ = {at for at in whole if (cells[at] > 0).any()}
        if not object_:
            continue
        near = {at for at in whole for o in object_ if max(abs(i - j) for i, j in zip(at, o, strict=True)) <= dilation}
        for a in attention[b].detach().numpy():
            values.append(1 - sum(a[at] for at in near) / sum(a[at] for at in whole))
    assert values
    # a mean over maps of the mean over samples is a mean over both
    ours = AttentionRegularisation(dilation=dilation)(_logits(target), target, attention=attention)
    agree("attention", "loops over cells", ours, np.mean(values))


@pytest.mark.parametrize(("space", "grid"), GRIDS)
@pytest.mark.parametrize("ignored", [False, True])
def test_attention_divergence_against_torch(space, grid, ignored, agree):
    target, attention = _target(space, ignored=ignored), _maps(grid, number=2)
    values = []
    for b in range(2):
        cells = _cells(target[b].numpy(), grid)
        whole = [at for at, labels in cells.items() if 255 not in labels]
        share = torch.tensor([(cells[at] > 0).mean() for at in whole], dtype=torch.float64)
        truth = 0.9 * share / share.sum() + 0.1 / len(whole)
        for a in attention[b].detach():
            kept = torch.stack([a[at] for at in whole])
            values.append(F.kl_div(truth.log(), kept / kept.sum(), reduction="sum").item())
    ours = AttentionRegularisation("kl", smooth=0.1)(_logits(target), target, attention=attention)
    agree("attention", "torch kl_div", ours, np.mean(values))


def test_attention_by_hand():
    # four cells, the object in the first: without dilation 1 - 0.4, dilated by one cell 1 - 0.7
    target = torch.tensor([[[1, 0, 0, 0]]])
    attention = torch.tensor([[[[0.4, 0.3, 0.2, 0.1]]]])
    logits = torch.zeros(1, 2, 1, 4)
    assert AttentionRegularisation(dilation=0)(logits, target, attention=attention).item() == pytest.approx(0.6)
    assert AttentionRegularisation()(logits, target, attention=attention).item() == pytest.approx(0.3)
    # the last cell ignored: (0.4 + 0.3) / 0.9 remain
    target[..., 3] = 255
    assert AttentionRegularisation()(logits, target, attention=attention).item() == pytest.approx(2 / 9, rel=1e-6)
    # all of it on the object
    attention = torch.tensor([[[[1.0, 0, 0, 0]]]], requires_grad=True)
    for form in ("mass", "kl"):
        value = AttentionRegularisation(form, smooth=1e-6)(logits, target, attention=attention)
        assert value.item() == pytest.approx(0, abs=1e-5)
        assert torch.autograd.grad(value, attention)[0].isfinite().all()


def test_attention_without_an_object_is_left_out():
    target = _target((6, 8))
    target[1] = 0
    attention = _maps((3, 4))
    for form in ("mass", "kl"):
        loss = AttentionRegularisation(form)
        both = loss(_logits(target), target, attention=attention)
        torch.testing.assert_close(both, loss(_logits(target)[:1], target[:1], attention=attention[:1]))
        nothing = loss(_logits(target), torch.zeros_like(target), attention=attention)
        assert nothing.item() == 0
        assert (torch.autograd.grad(nothing, attention)[0] == 0).all()


@pytest.mark.parametrize("given", [False, True])
def test_latent_is_that_of_torch(given, agree):
    chance = torch.Generator().manual_seed(0)
    latent = torch.randn(3, 2, 5, generator=chance, dtype=torch.float64)
    mean, log_variance = (torch.randn(5, generator=chance, dtype=torch.float64) for _ in range(2))
    if not given:
        mean, log_variance = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    prior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(Normal(latent[:, 0], (latent[:, 1] / 2).exp()), prior).sum(1)
    loss = KLShapePrior(mean, log_variance) if given else KLShapePrior()
    target = _target((4, 4), batch=3)
    agree("kl_shape_prior", "torch.distributions", loss(_logits(target), target, shape_prior=latent), expected.mean())
    # a sample without a valid voxel takes no part
    target[1] = 255
    ours = loss(_logits(target), target, shape_prior=latent)
    agree("kl_shape_prior", "torch.distributions", ours, (expected[0] + expected[2]) / 2)
    latent.requires_grad_()
    nothing = loss(_logits(target), torch.full_like(target, 255), shape_prior=latent)
    assert nothing.item() == 0 and (torch.autograd.grad(nothing, latent)[0] == 0).all()


def test_latent_by_hand():
    # μ = 2, σ² = 1: 2² / 2; μ = 0, σ² = e: (e - 1 - 1) / 2
    latent = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    value = KLShapePrior()(_logits(target), target, shape_prior=latent).item()
    assert value == pytest.approx(2 + (math.e - 2) / 2, rel=1e-6)
    assert KLShapePrior()(_logits(target), target, shape_prior=torch.zeros(1, 2, 4)).item() == 0


def test_latent_of_any_size_is_finite_and_pulled_back():
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    for size in (-1e4, 1e4):
        latent = torch.tensor([[[0.0], [size]]], requires_grad=True)
        value = KLShapePrior()(_logits(target), target, shape_prior=latent)
        (grad,) = torch.autograd.grad(value, latent)
        assert value.isfinite() and grad.isfinite().all()
        assert grad[0, 1, 0] * size > 0


def _shares(target, grid, classes=3):
    """Share of each class and whether the cell is whole, by loops: (B, C, cells), (B, cells)."""
    shares, whole = [], []
    for one in target.numpy():
        cells = list(_cells(one, grid).values())
        shares.append([[(labels == c).mean() for labels in cells] for c in range(classes)])
        whole.append([255 not in labels for labels in cells])
    return np.array(shares), np.array(whole)


@pytest.mark.parametrize(("space", "grid"), GRIDS)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("sample", [False, True])
def test_alignment_against_loops(space, grid, ignored, background, sample, agree):
    target, maps = _target(space, ignored=ignored), _maps(grid, over=1)
    shares, whole = _shares(target, grid)
    m = maps.detach().flatten(2).numpy()
    first, s = 0 if background else 1, 0.2
    dice, cosine = [], []
    for group in [[0], [1]] if sample else [[0, 1]]:
        for c in range(first, 3):
            a = np.concatenate([m[b, c][whole[b]] for b in group])
            t = np.concatenate([shares[b, c][whole[b]] for b in group])
            dice.append(1 - (2 * a @ t + s) / (a @ a + t @ t + s))
            cosine.append(1 - (a @ t + s) / (np.linalg.norm(a) * np.linalg.norm(t) + s))
    options = {"background": background, "reduction": "sample" if sample else "batch", "smooth": s}
    for form, expected in (("dice", dice), ("cosine", cosine)):
        ours = ShapeAlignment(form, **options)(_logits(target), target, token_maps=maps)
        agree("shape_alignment", "loops over cells", ours, np.mean(expected))


def test_alignment_is_dice_and_cosine_similarity_on_the_same_grid(agree):
    target, maps = _target((6, 5)), _maps((6, 5), over=1)
    theirs = DiceLoss(squared_pred=True, to_onehot_y=True, batch=True)(maps, target[:, None])
    agree("shape_alignment", "MONAI DiceLoss", ShapeAlignment()(_logits(target), target, token_maps=maps), theirs)
    onehot = F.one_hot(target, 3).movedim(-1, 1).double()
    theirs = 1 - F.cosine_similarity(maps.flatten(2), onehot.flatten(2), dim=2).mean()
    ours = ShapeAlignment("cosine", reduction="sample", smooth=0)(_logits(target), target, token_maps=maps)
    agree("shape_alignment", "torch cosine_similarity", ours, theirs)


@pytest.mark.parametrize("form", ["dice", "cosine"])
def test_alignment_is_zero_at_the_shares_of_the_cells(form):
    target = _target((6, 8))
    shares = torch.tensor(_shares(target, (3, 4))[0]).view(2, 3, 3, 4)
    value = ShapeAlignment(form)(_logits(target), target, token_maps=shares)
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert ShapeAlignment(form)(_logits(target), target, token_maps=shares.roll(1, 3)).item() > 0.01


def test_alignment_of_absent_classes():
    target, maps = _target((6, 8)), _maps((3, 4), over=1)
    target[target == 2] = 0
    found = {
        a: ShapeAlignment(absent=a)(_logits(target), target, token_maps=maps) for a in ("include", "skip", "penalise")
    }
    mean = maps[:, 2].mean()
    torch.testing.assert_close(3 * found["penalise"], 2 * found["skip"] + mean)
    torch.testing.assert_close(3 * found["include"], 2 * found["skip"] + 1, rtol=1e-4, atol=0)


@pytest.mark.parametrize("space", [(4, 4), (2, 4, 2)], ids=["2d", "3d"])
def test_gradients(space):
    grid = tuple(n // 2 for n in space)
    target = _target(space, ignored=False)
    target.view(2, -1)[:, 0] = 255
    logits = _logits(target)
    for loss in (AttentionRegularisation(dilation=0), AttentionRegularisation("kl")):
        assert torch.autograd.gradcheck(lambda a, f=loss: f(logits, target, attention=a), _maps(grid))
    for loss in (ShapeAlignment(), ShapeAlignment("cosine", background=False, reduction="sample")):
        assert torch.autograd.gradcheck(lambda m, f=loss: f(logits, target, token_maps=m), _maps(grid, over=1))
    latent = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: KLShapePrior()(logits, target, shape_prior=z), latent)


def test_wrong_arguments():
    for make in (
        lambda: AttentionRegularisation("sum"),
        lambda: AttentionRegularisation(dilation=-1),
        lambda: AttentionRegularisation(smooth=0),
        lambda: ShapeAlignment("l2"),
        lambda: ShapeAlignment(reduction="none"),
        lambda: ShapeAlignment(absent="never"),
    ):
        with pytest.raises(ValueError):
            make()
