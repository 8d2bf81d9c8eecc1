"""InverseForm: its terms against loops and numpy, and what its network measures."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch.nn import functional as F

from harness.losses import inverse_form
from harness.losses.inverse_form import InverseForm
from harness.losses.targets import derive


def _prepared(labels: list[torch.Tensor] | None = None, seed: int = 0) -> InverseForm:
    loss = InverseForm()
    loss.prepare(labels or [], device=torch.device("cpu"), generator=torch.Generator().manual_seed(seed))
    return loss


@pytest.fixture(scope="module")
def loss() -> InverseForm:
    return _prepared()


def _boundary(target: torch.Tensor) -> torch.Tensor:
    return derive(["boundary"], target, num_classes=9, spacing=torch.ones(len(target), target.ndim - 1))["boundary"]


def _terms(loss: InverseForm, scores: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = torch.zeros(len(target), 3, *target.shape[1:], dtype=scores.dtype)
    return loss(logits, target, boundary_logits=scores, boundary=_boundary(target))


def _discs(size: tuple[int, int], *discs: tuple[float, float, float]) -> torch.Tensor:
    y, x = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return torch.stack([((y - a) ** 2 + (x - b) ** 2 < r * r).long() for a, b, r in discs])


def _drawn(edges: torch.Tensor, sharpness: float = 8.0) -> torch.Tensor:
    """An edge head that draws these edges."""
    score = sharpness * (2 * edges.double() - 1)
    return torch.stack([-score / 2, score / 2], 1)


def _example(shape: tuple[int, ...], ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    target = torch.randint(0, 3, [shape[0], *(-(-n // 7) for n in shape[1:])], generator=chance)
    for axis, n in enumerate(shape[1:], start=1):
        target = target.repeat_interleave(7, axis).narrow(axis, 0, n)
    target = target.contiguous()
    if ignored:
        target[torch.rand(target.shape, generator=chance) < 0.1] = 255
    return 2 * torch.randn(shape[0], 2, *shape[1:], generator=chance, dtype=torch.float64), target


def _network_in_numpy(loss: InverseForm, edges: np.ndarray, truth: np.ndarray) -> np.ndarray:
    state = {k: v.double().numpy() for k, v in loss.state_dict().items()}
    line = np.exp(-((np.arange(9) - 4) ** 2) / (2 * 2.25**2))
    kernel = np.outer(line, line) / line.sum()
    x = np.concatenate([correlate(m, kernel, mode="constant")[::2, ::2].ravel() for m in (edges, truth)])
    for i in range(3):
        x = state[f"weight_{i}"] @ x + state[f"bias_{i}"]
        if i < 2:
            x = x / (1 + np.exp(-x))
    return x


def _by_loops(loss: InverseForm, scores: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    edge_of = np.zeros(target.shape)
    known = target != 255
    for i in np.ndindex(*target.shape):
        for axis in range(1, target.ndim):
            for step in (-1, 1):
                j = list(i)
                j[axis] += step
                if not 0 <= j[axis] < target.shape[axis] or not known[i] or not known[tuple(j)]:
                    continue
                edge_of[i] = max(edge_of[i], float(target[i] != target[tuple(j)]))
    p = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
    number, positive = known.sum(), edge_of.sum()
    edge = 0.0
    for i in np.ndindex(*target.shape):
        if known[i]:
            edge -= (number - positive) / number * math.log(p[i]) if edge_of[i] else 0
            edge -= 0 if edge_of[i] else positive / number * math.log(1 - p[i])
    p = p * known
    images = [(a, b) for a, b in zip(p, edge_of, strict=True)]
    if target.ndim == 4:
        images = [(a[z], b[z]) for a, b in images for z in range(len(a))]
    sizes = []
    for guess, truth in images:
        for y in range(0, truth.shape[0], 32):
            for x in range(0, truth.shape[1], 32):
                tiles = []
                for m in (guess, truth):
                    part = m[y : y + 32, x : x + 32]
                    tiles.append(np.pad(part, [(0, 32 - part.shape[0]), (0, 32 - part.shape[1])]))
                if tiles[1].any():
                    theta = _network_in_numpy(loss, *tiles) - _network_in_numpy(loss, tiles[1], tiles[1])
                    sizes.append(np.linalg.norm(theta))
    return edge / number, float(np.mean(sizes))


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 40, 35), (1, 3, 20, 37)])
@pytest.mark.parametrize("ignored", [False, True])
def test_agrees_with_loops_and_numpy(agree, loss: InverseForm, shape: tuple[int, ...], ignored: bool) -> None:
    scores, target = _example(shape, ignored)
    found = _terms(loss, scores, target)
    edge, inverse = _by_loops(loss, scores.numpy(), target.numpy())
    assert edge > 0.1 and inverse > 0.01
    ours = torch.stack([found[k] for k in ("loss", "edge", "inverse")])
    agree("inverse_form", "loops and the network in numpy", ours, np.array([0.3 * (edge + inverse), edge, inverse]))


def test_balanced_cross_entropy_by_hand(loss: InverseForm) -> None:
    # two edge pixels of eight with p = 3/4, the others with p = 1/4: weights 6/8 and 2/8
    target = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    score = math.log(3) * (2 * _boundary(target).double() - 1)
    edge = _terms(loss, torch.stack([torch.zeros_like(score), score], 1), target)["edge"]
    assert edge.item() == pytest.approx((2 * 0.75 + 6 * 0.25) * math.log(4 / 3) / 8, rel=1e-12)
    weights = InverseForm(edge_weight=2.0, inverse_weight=0.0)
    weights.load_state_dict(loss.state_dict())
    found = _terms(weights, torch.stack([torch.zeros_like(score), score], 1), target)
    assert found["loss"].item() == pytest.approx(2 * edge.item(), rel=1e-12)


def test_the_network_measures_known_warps(loss: InverseForm) -> None:
    draw = torch.Generator().manual_seed(77)
    labels = inverse_form._shapes(1024, draw)
    warp = (torch.rand(1024, 4, generator=draw) * 2 - 1) * torch.tensor([0.3, 0.3, 0.25, 0.25])
    truth, moved = (inverse_form._edge(inverse_form._warped(labels, w)) for w in (0 * warp, warp))
    held = truth.flatten(1).any(1)
    error = (loss.measure(moved, truth) - warp)[held].square().mean(0).sqrt()
    guess = warp[held].square().mean(0).sqrt()
    # shifts to half of what a guess of no shift gives; scales are harder to see in an open line
    assert (error[:2] < 0.6 * guess[:2]).all() and (error[2:] < 0.92 * guess[2:]).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_network_measures_the_shift_of_a_disc(loss: InverseForm, axis: int) -> None:
    truth = _boundary(_discs((32, 32), (15.5, 15.5, 8)))
    for shift in (-4, -2, -1, 0, 1, 2, 4):
        centre = [15.5, 15.5]
        centre[axis] += shift
        found = loss.measure(_boundary(_discs((32, 32), (*centre, 8))).float(), truth.float())[0]
        assert found[axis].item() == pytest.approx(shift / 16, abs=0.1)
        assert found[1 - axis].abs() < 0.09
    assert found[axis] > 0.15  # of the last one, a quarter


def test_it_rises_with_the_displacement_of_the_edge_and_is_0_for_a_perfect_one(loss: InverseForm) -> None:
    target = _discs((64, 64), (20, 18, 9))
    values = []
    for shift in range(5):
        drawn = _drawn(_boundary(_discs((64, 64), (20 + shift, 18, 9))), 20)
        values.append(_terms(loss, drawn, target)["inverse"].item())
    assert values[0] < 1e-3 and all(b > a + 0.01 for a, b in pairwise(values))
    # cross-entropy alone hardly tells a near edge from a far one
    far = _terms(loss, _drawn(_boundary(_discs((64, 64), (24, 18, 9))), 20), target)["edge"].item()
    near = _terms(loss, _drawn(_boundary(_discs((64, 64), (22, 18, 9))), 20), target)["edge"].item()
    assert far / near < 1.3 < values[4] / values[2]


def test_gradients_reach_the_head_and_nothing_else(loss: InverseForm) -> None:
    scores, target = _example((1, 33, 32), ignored=True)
    scores.requires_grad_()
    found = _terms(loss, scores, target)
    (grad,) = torch.autograd.grad(found["inverse"], scores)
    assert grad.isfinite().all() and (grad.abs().sum(1)[target != 255] > 0).float().mean() > 0.9
    assert not list(loss.parameters()) and not any(b.requires_grad for b in loss.buffers())
    # the released code's input, a log-softmax over one channel, is 0 whatever the head says: no gradient
    assert not F.log_softmax(scores[:, :1], 1).any()
    # along a random direction the slope is that of differences
    along = torch.randn(scores.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [_terms(loss, scores.detach() + s * along, target)["loss"].item() for s in (1e-5, -1e-5)]
    (grad,) = torch.autograd.grad(_terms(loss, scores, target)["loss"], scores)
    assert (grad * along).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("start", [(14.0, 14.0), (16.0, 19.0)])
def test_descent_moves_a_drawn_edge_home(loss: InverseForm, start: tuple[float, float]) -> None:
    target = _discs((32, 32), (16, 16, 7))
    centre = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    at = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")).double()
    adam = torch.optim.Adam([centre], lr=0.1)

    def off() -> float:
        return float((centre.detach() - 16).abs().max())

    before = off()
    for _ in range(40):
        radius = ((at - centre[:, None, None]).square().sum(0) + 1e-9).sqrt()
        score = 6 - 8 * (radius - 7).abs()
        adam.zero_grad()
        _terms(loss, torch.stack([-score, score])[None] / 2, target)["inverse"].backward()
        adam.step()
    assert off() < 0.5 * before


def test_ignored_voxels(loss: InverseForm) -> None:
    scores, target = _example((2, 40, 40))
    target[..., 23:] = 255
    scores.requires_grad_()
    value = _terms(loss, scores, target)["loss"]
    assert not torch.autograd.grad(value, scores)[0][..., 23:].any()
    alone = _terms(loss, scores[..., :23], target[..., :23].contiguous())["loss"]
    torch.testing.assert_close(value, alone, rtol=1e-10, atol=0)


@pytest.mark.parametrize("label", [0, 1, 255])
def test_without_a_boundary_it_is_0(loss: InverseForm, label: int) -> None:
    scores, _ = _example((1, 34, 20))
    scores = (1e4 * scores.float()).requires_grad_()
    found = _terms(loss, scores, torch.full((1, 34, 20), label))
    (grad,) = torch.autograd.grad(found["loss"], scores)
    assert found["loss"].item() == 0 and not grad.any()


def test_a_volume_is_its_slices(loss: InverseForm) -> None:
    scores, target = _example((1, 4, 20, 24))
    target = target[:, :1].expand(-1, 4, -1, -1).contiguous()  # no boundary between slices
    volume = _terms(loss, scores, target)
    slices = _terms(loss, scores[0].transpose(0, 1), target[0])
    for term in ("edge", "inverse"):
        torch.testing.assert_close(volume[term], slices[term], rtol=1e-12, atol=0)


def test_unprepared_it_refuses_and_the_state_carries_it(loss: InverseForm) -> None:
    scores, target = _example((1, 32, 32))
    fresh = InverseForm()
    with pytest.raises(RuntimeError, match=r"no trained network yet; call prepare\("):
        _terms(fresh, scores, target)
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(_terms(fresh, scores, target), _terms(loss, scores, target), rtol=0, atol=0)
    fresh.load_state_dict(InverseForm().state_dict())
    with pytest.raises(RuntimeError, match="no trained network"):
        _terms(fresh, scores, target)


def test_preparation_is_seeded_uses_the_labels_and_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverse_form, "STEPS", 5)
    monkeypatch.setattr(inverse_form, "CROPS", 20)
    volume = _example((3, 6, 60, 50), ignored=True)[1]
    labels, flat = list(volume), [volume[0, 0]]

    def weights(labels: list[torch.Tensor], seed: int) -> torch.Tensor:
        monkeypatch.setattr(inverse_form, "_TRAINED", {})
        before = torch.get_rng_state()
        with torch.no_grad():
            state = _prepared(labels, seed).state_dict()
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([v.flatten().float() for v in state.values()])

    once = weights(labels, 1)
    assert torch.equal(once, weights(labels, 1))
    for other in (weights(labels, 2), weights(flat, 1), weights([], 1)):
        assert not torch.equal(once, other) and other.isfinite().all()
    # labels without a boundary teach nothing, and do no harm
    assert torch.equal(weights([torch.zeros(4, 9, 9, dtype=torch.int64)], 1), weights([], 1))


def test_constructor_and_head_errors(loss: InverseForm) -> None:
    for args in ({"edge_weight": -1.0}, {"edge_weight": 0.0, "inverse_weight": 0.0}):
        with pytest.raises(ValueError, match="must not be negative, nor both 0"):
            InverseForm(**args)
    scores, target = _example((1, 32, 32))
    with pytest.raises(ValueError, match="expected 2 channels of boundary_logits, found 1"):
        _terms(loss, scores[:, :1], target)
