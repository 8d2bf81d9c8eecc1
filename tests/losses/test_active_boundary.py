"""Active boundary loss against loops over voxels, the pieces of segloss, and arithmetic by hand."""

import math
import sys
import types
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from harness.losses.active_boundary import ActiveBoundary
from harness.losses.targets import derive


def _example(shape: tuple[int, ...], ignored: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and labels of large regions, so that distances are of all sizes."""
    chance = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    target[:, shape[2] // 2 :] = 1
    target[0, :3, :2] = shape[1] - 1
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.1] = 255
    return logits, target


def _maps(target: torch.Tensor, classes: int, spacing: torch.Tensor | None = None) -> torch.Tensor:
    spacing = torch.ones(len(target), target.ndim - 1) if spacing is None else spacing
    return derive(["distance_in"], target, num_classes=classes, spacing=spacing)["distance_in"].double()


def _value(logits: torch.Tensor, target: torch.Tensor, loss: ActiveBoundary | None = None) -> torch.Tensor:
    return (loss or ActiveBoundary())(logits, target, distance_in=_maps(target, logits.shape[1]))


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def _by_voxels(logits: np.ndarray, target: np.ndarray, spacing: np.ndarray, ratio: float) -> float:
    """From the formula: distances by search over all voxels, the threshold raised in a loop."""
    total, number = 0.0, 0
    dims = target.ndim - 1
    for z, y, h in zip(logits, target, spacing, strict=True):
        e = np.exp(z)
        p = e / e.sum(0)
        voxels = [i for i in np.ndindex(*y.shape) if y[i] != 255]
        distance = {}
        for i in voxels:
            others = [np.linalg.norm((np.array(i) - j) * h) for j in voxels if y[j] != y[i]]
            distance[i] = np.float32(min(others, default=0.0))
        change = {}
        for i in voxels:
            after = [tuple(np.add(i, step)) for step in np.eye(dims, dtype=int)]
            change[i] = sum(_kl(p[(slice(None), *i)], p[(slice(None), *j)]) for j in after if j in distance)
        eps = 1e-5
        while sum(v > eps for v in change.values()) > max(1, ratio * len(voxels)):
            eps *= 1.2
        edge = {i for i in voxels if change[i] > eps}
        steps = [s for s in product((1, 0, -1), repeat=dims) if any(s)]
        steps.sort(key=lambda s: sum(map(abs, s)))
        for i in voxels:
            window = [tuple(np.add(i, s)) for s in steps]
            if not ({i, *window} & edge):
                continue
            around = [j for j in window if j in distance]
            best = min(around, key=lambda j: distance[j], default=i)
            if distance[best] >= distance[i]:
                continue
            scores = np.array([_kl(p[(slice(None), *j)], p[(slice(None), *i)]) for j in around])
            log_q = scores - math.log(np.exp(scores).sum())
            ce = -(0.8 * log_q[around.index(best)] + 0.2 * log_q.mean())
            total += ce * min(distance[i] / h.min(), 20) / 20
            number += 1
    return total / max(number, 1)


@pytest.mark.parametrize("shape", [(2, 3, 12, 9), (2, 4, 6, 5, 4)])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("spaced", [False, True])
def test_agrees_with_loops_over_voxels(agree, shape: tuple[int, ...], ignored: bool, spaced: bool) -> None:
    logits, target = _example(shape, ignored)
    spacing = torch.tensor([[2.0, 0.7, 1.1][: len(shape) - 2]] * 2) if spaced else torch.ones(2, len(shape) - 2)
    maps = _maps(target, shape[1], spacing)
    ours = ActiveBoundary(ratio=0.05)(logits, target, distance_in=maps, spacing=spacing)
    theirs = _by_voxels(logits.numpy(), target.numpy(), spacing.double().numpy(), 0.05)
    assert theirs > 0.01
    agree("active_boundary", "loops over voxels", ours, theirs, tolerance=1e-6)


@pytest.fixture
def segloss(monkeypatch: pytest.MonkeyPatch):
    """segloss imports torchvision for a chain of functions that is not called here."""
    transforms = types.ModuleType("torchvision.transforms")
    transforms.Compose = lambda steps: steps  # type: ignore[attr-defined]
    vision = types.ModuleType("torchvision")
    vision.transforms = transforms  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", transforms)
    from segloss.src.abl import ActiveBoundaryLoss

    return ActiveBoundaryLoss


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("ratio", [0.01, 0.1])
def test_agrees_with_the_pieces_of_segloss(agree, segloss, ratio: float) -> None:
    # one image, as the 1 % there is that of one image; nothing on the rim, which is repeated there; no two distances
    # alike, as a voxel as near as its neighbours stays there; the mean of products in place of a product of sums
    chance = torch.Generator().manual_seed(3)
    logits = torch.zeros(1, 4, 30, 26, dtype=torch.float64)
    logits[..., 4:-4, 4:-4] = 2 * torch.randn(1, 4, 22, 18, generator=chance, dtype=torch.float64)
    distance = 25 * torch.rand(1, 30, 26, generator=chance, dtype=torch.float64)
    target = torch.zeros(1, 30, 26, dtype=torch.int64)
    maps = torch.zeros(1, 4, 30, 26, dtype=torch.float64)
    maps[:, 0] = distance
    logits.requires_grad_()
    ours = ActiveBoundary(ratio)(logits, target, distance_in=maps)

    theirs = segloss([1.0, "cpu", True, 0.2, ratio, 20.0])
    edge = theirs.slices2boundary(logits)
    right, scores, away = theirs.get_orientation(distance[:, None], edge, logits)
    value = (theirs.border_criterion(scores, right) * theirs.weight_func(away)).mean()
    assert edge.sum() > 20
    agree("active_boundary", "segloss ActiveBoundaryLoss, its pieces", ours, value)
    agree(
        "active_boundary",
        "segloss ActiveBoundaryLoss, gradient",
        *(torch.autograd.grad(v, logits)[0] for v in (ours, value)),
    )


def test_by_hand() -> None:
    # true boundary between voxels 1 and 2: distances 2 1 1 2 3 4 5 6, from left; predicted between 5 and 6, grown to 4, 5, 6
    target = torch.tensor([[[0, 0, 1, 1, 1, 1, 1, 1]]])
    score = math.log(3) * torch.tensor([[[1.0, 1, 1, 1, 1, 1, -1, -1]]], dtype=torch.float64)
    logits = torch.stack([score, torch.zeros_like(score)], 1)
    k = 0.5 * math.log(3)  # KL between (3/4, 1/4) and (1/4, 3/4)
    lse = math.log(1 + math.exp(k))
    # 4: both neighbours alike; 5: the left one is right and has 0; 6: the left one is right and has k
    losses = [math.log(2), lse - 0.2 * k / 2, lse - 0.8 * k - 0.2 * k / 2]
    expected = sum(w / 20 * v for w, v in zip((3, 4, 5), losses, strict=True)) / 3
    assert _value(logits, target).item() == pytest.approx(expected, rel=1e-12)
    # a smaller cut of the distance: all three have weight 1
    assert _value(logits, target, ActiveBoundary(max_distance=3.0)).item() == pytest.approx(sum(losses) / 3, rel=1e-12)
    # no smoothing
    sharp = [math.log(2), lse, lse - k]
    expected = sum(w / 20 * v for w, v in zip((3, 4, 5), sharp, strict=True)) / 3
    assert _value(logits, target, ActiveBoundary(label_smoothing=0.0)).item() == pytest.approx(expected, rel=1e-12)
    # half of the spacing: the same in voxels
    spacing = torch.full((1, 2), 0.5)
    value = ActiveBoundary()(logits, target, distance_in=_maps(target, 2, spacing), spacing=spacing)
    assert value.item() == pytest.approx(_value(logits, target).item(), rel=1e-12)


@pytest.mark.parametrize("case", ["nothing predicted", "one class", "all ignored", "single voxel"])
def test_without_a_boundary_it_is_0_with_a_gradient(case: str) -> None:
    logits, target = _example((2, 3, 8, 7))
    if case == "nothing predicted":
        logits = torch.zeros_like(logits)
    if case == "one class":
        target = torch.ones_like(target)
    if case == "all ignored":
        target = torch.full_like(target, 255)
    if case == "single voxel":
        logits, target = logits[..., :1, :1], target[..., :1, :1]
    logits = logits.requires_grad_()
    value = _value(logits, target)
    (grad,) = torch.autograd.grad(value, logits)
    assert value.item() == 0 and grad.shape == logits.shape and not grad.any()


def test_a_boundary_further_off_costs_more() -> None:
    target = (torch.arange(40) >= 10).long()[None, None].expand(1, 6, 40)
    values = []
    for at in (12, 14, 18, 24, 30):
        score = 3.0 - 6.0 * (torch.arange(40) >= at).double()
        logits = torch.stack([score, -score])[None, :, None].expand(1, 2, 6, 40)
        values.append(_value(logits, target, ActiveBoundary(ratio=0.05)).item())
    assert values[0] > 0 and all(b > a for a, b in pairwise(values))
    # from 20 on the weight is 1 and no longer grows
    assert values[-1] == pytest.approx(values[-2] * 20 / 14, rel=0.05)


def test_only_voxels_at_the_predicted_boundary_have_a_gradient_and_neighbours_have_none() -> None:
    score = torch.where(torch.arange(12) < 8, 2.0, -2.0).double()
    target = (torch.arange(12) >= 2).long()[None, None].expand(1, 5, 12)
    logits = torch.stack([score, -score])[None, :, None].repeat(1, 1, 5, 1).requires_grad_()
    _value(logits, target, ActiveBoundary(ratio=0.2)).backward()
    columns = logits.grad.abs().sum((0, 1, 2)) > 1e-15
    # predicted between columns 7 and 8, grown to 6, 7, 8; column 6 sees equal neighbours: its softmax has no slope
    assert columns.nonzero().flatten().tolist() == [7, 8]


def test_each_image_has_its_own_share_of_boundary_voxels() -> None:
    logits, target = _example((1, 3, 16, 16))
    once = _value(logits, target)
    twice = _value(torch.cat([logits, logits]), torch.cat([target, target]))
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)


def test_ignored_voxels_are_as_if_cropped_away() -> None:
    logits, target = _example((2, 3, 14, 12))
    target[..., 7:] = 255
    loss = ActiveBoundary(ratio=0.05)
    torch.testing.assert_close(
        _value(logits, target, loss), _value(logits[..., :7], target[..., :7], loss), rtol=1e-12, atol=0
    )
    moved = logits.clone()
    moved[..., 7:] += 5
    moved.requires_grad_()
    value = _value(moved, target, loss)
    assert value.item() == _value(logits, target, loss).item() > 0
    assert not torch.autograd.grad(value, moved)[0][..., 7:].any()


def test_gradcheck_where_neighbours_are_not_detached() -> None:
    logits, target = _example((1, 3, 7, 6), ignored=True)
    loss = ActiveBoundary(ratio=0.1, detach=False)
    assert _value(logits, target, loss) > 0
    assert torch.autograd.gradcheck(lambda z: _value(z, target, loss), logits.requires_grad_())
    detached, attached = (
        torch.autograd.grad(_value(logits, target, ActiveBoundary(0.1, detach=d)), logits)[0] for d in (True, False)
    )
    assert not torch.allclose(detached, attached)


def test_constructor_errors() -> None:
    for args in ({"ratio": 0.0}, {"ratio": 1.5}, {"label_smoothing": 1.0}, {"max_distance": 0.0}):
        with pytest.raises(ValueError, match="expected 0 < ratio"):
            ActiveBoundary(**args)
