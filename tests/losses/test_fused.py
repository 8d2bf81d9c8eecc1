"""Fused sums of the softmax: on CPU in pieces, by whole tensors as on a device, and by plain operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import harness.losses._fused as fused
from harness.errors import BenchError
from harness.losses._common import class_sizes, region_sums, region_sums_and_log_p, true_log_p, weighted_log_p
from harness.losses._fused import softmax_sums

Make = Callable[..., tuple[Tensor, Tensor]]
SHAPES = [(3, 4, 5, 7), (2, 3, 4, 3, 5)]


def plain(logits: Tensor, target: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`tp`, `p`, `log_p` by autograd, with a one-hot label."""
    z, y = logits.flatten(2), target.flatten(1)
    valid = (y != 255)[:, None].to(z.dtype)
    onehot = torch.nn.functional.one_hot(torch.where(y == 255, 0, y), z.shape[1]).movedim(-1, 1) * valid
    p = z.softmax(1)
    log_p = (z.log_softmax(1) * onehot).sum(1)
    return (p * onehot).sum(2), ((p * p if squared else p) * valid).sum(2), log_p


@pytest.fixture(params=[2**19, 40, 7], ids=["whole", "pieces", "small pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PIECE", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("asked", ["sums", "log_p", "both"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "view"])
def test_values_and_gradients_are_those_of_plain_operations(
    example: Make, shape: tuple[int, ...], squared: bool, ignored: bool, asked: str, layout: str
) -> None:
    logits, target = example(shape, ignored)
    if layout == "channels last":
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "view":
        logits = torch.cat([logits, logits], -1)[..., : shape[-1]]
    logits.requires_grad_()
    found = softmax_sums(logits, target, sums=asked != "log_p", log_p=asked != "sums", squared=squared)
    wanted = plain(logits, target, squared)
    pairs = [(found.tp, wanted[0]), (found.p, wanted[1])] if asked != "log_p" else []
    pairs += [(found.log_p, wanted[2])] if asked != "sums" else []
    weights = [torch.rand_like(b) for _, b in pairs]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    first, second = (sum((p[i] * w).sum() for p, w in zip(pairs, weights, strict=True)) for i in (0, 1))
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (first, second)), rtol=1e-9, atol=1e-14)
    assert torch.equal(found.valid[:, 0].long(), (target != 255).flatten(1).sum(1))
    if asked != "log_p":
        assert torch.equal(found.t.long(), class_sizes(target, shape[1]))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("given", [(0, 1, 2), (0,), (1,), (2,), (0, 1), (1, 2), ()])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_runs_on_a_device_is_the_same(
    example: Make, squared: bool, given: tuple[int, ...], weighted: bool
) -> None:
    logits, target = example((3, 4, 35), ignored=True)
    weights = torch.rand(3, 4, dtype=torch.float64) if weighted else None
    here = fused._forward_cpu(logits, target, weights, True, True, squared, True)
    there = fused._forward_elsewhere(logits, target, weights, True, True, squared, False)
    for a, b in zip(here[:6], there[:6], strict=True):
        torch.testing.assert_close(a, b)
    gradients = [torch.rand_like(here[i]) if k in given else None for k, i in enumerate((0, 1, 4))]
    if not given:
        assert not fused._Gradient.apply(logits, target, weights, squared, False, *gradients).any()
        return
    wanted = fused._gradient_cpu(logits, target, weights, squared, False, *gradients)
    probs = logits.softmax(1)
    for found in (
        fused._gradient_cpu(probs, target, weights, squared, True, *gradients),
        fused._gradient_elsewhere(logits, target, weights, squared, False, *gradients),
        fused._plain_gradient(logits, target, weights, squared, False, *gradients),
        fused._plain_gradient(probs, target, weights, squared, True, *gradients),
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("squared", [False, True])
def test_first_and_second_derivatives_agree_with_differences(example: Make, squared: bool) -> None:
    logits, target = example((2, 3, 4))
    target[0, 1] = 255
    logits.requires_grad_()

    def all_three(z: Tensor) -> tuple[Tensor, ...]:
        found = softmax_sums(z, target, log_p=True, squared=squared)
        return found.tp, found.p, found.log_p

    assert torch.autograd.gradcheck(all_three, logits)
    assert torch.autograd.gradgradcheck(all_three, logits)
    for weights in (None, torch.rand(3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)):
        for sums in (False, True):

            def of_weights(z: Tensor, weights: Tensor | None = weights, sums: bool = sums) -> Tensor:
                return softmax_sums(z, target, sums=sums, log_p=True, weights=weights).log_p

            assert torch.autograd.gradcheck(of_weights, logits)
            assert torch.autograd.gradgradcheck(of_weights, logits)


def score(z: Tensor, y: Tensor) -> Tensor:
    found = softmax_sums(z, y, log_p=True)
    return (found.tp**2).sum() + (found.p**3).sum() + (found.log_p**2).sum()


def test_transforms_of_torch_func(example: Make) -> None:
    logits, target = example((6, 3, 5, 4), ignored=True)
    logits, target = logits.view(3, 2, 3, 5, 4), target.view(3, 2, 5, 4)
    for function in (score, torch.func.grad(score)):
        wanted = torch.stack([function(z, y) for z, y in zip(logits, target, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(logits, target), wanted)
        torch.testing.assert_close(
            torch.func.vmap(function, in_dims=(1, 0))(logits.movedim(0, 1).contiguous(), target), wanted
        )
    one = torch.stack([score(z, target[0]) for z in logits])
    torch.testing.assert_close(torch.func.vmap(score, in_dims=(0, None))(logits, target[0]), one)
    small, label = logits[0, :, :, :2, :2], target[0, :, :2, :2]
    twice = torch.func.jacrev(torch.func.jacrev(lambda z: score(z, label)))(small).view(24, 24)
    hessian = torch.autograd.functional.hessian(lambda z: score(z, label), small).view(24, 24)
    torch.testing.assert_close(twice, hessian)
    torch.testing.assert_close(twice, twice.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(example: Make, dtype: torch.dtype) -> None:
    logits, target = example((2, 3, 6, 5), ignored=True)
    half = logits.to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    first, second = (softmax_sums(z, target, log_p=True) for z in (half, full))
    for a, b in zip(first, second, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)
    gradients = [torch.autograd.grad(s.tp.sum() + s.p.square().sum(), z)[0] for s, z in ((first, half), (second, full))]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(gradients[0].float(), gradients[1], rtol=1e-2, atol=1e-4)


def test_a_probability_of_almost_nothing_keeps_its_logarithm() -> None:
    """Of logits 300 apart the probability is 0 in float32."""
    logits = torch.tensor([[[300.0, 0.0], [0.0, 300.0]]], requires_grad=True)
    target = torch.tensor([[1, 1]])
    found = softmax_sums(logits, target, log_p=True)
    assert found.log_p[0].tolist() == [-300, 0]
    (gradient,) = torch.autograd.grad(found.log_p.sum(), logits)
    assert gradient[0].tolist() == [[-1, 0], [1, 0]]


def test_sums_of_millions_of_voxels_keep_their_digits() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 160, 128, 64, generator=chance)
    target = torch.zeros(1, 160, 128, 64, dtype=torch.int64)
    target[:, :3] = 1
    found, exact = (region_sums(z, target, "batch") for z in (logits, logits.double()))
    for name in ("tp", "p", "t", "valid"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), rtol=3e-7, atol=0)


@pytest.mark.parametrize("label", [3, 254, 256, -1])
def test_labels_that_are_no_class_are_named(example: Make, label: int) -> None:
    logits, target = example((2, 3, 4, 4), ignored=True)
    target[1, 0, 0] = label
    with pytest.raises(BenchError, match=rf"label {label} with 3 classes"):
        softmax_sums(logits, target)


def test_nothing_at_all_is_0(example: Make) -> None:
    logits, target = example((2, 3, 4, 4))
    logits.requires_grad_()
    for y, z in ((torch.full_like(target, 255), logits), (target[:, :0], logits[:, :, :0])):
        found = softmax_sums(z, y, log_p=True)
        assert not any(part.any() for part in found)
        (gradient,) = torch.autograd.grad(found.tp.sum() + found.p.sum() + found.log_p.sum(), logits)
        assert not gradient.any()


def test_only_one_tensor_as_large_as_the_logits_is_kept(example: Make) -> None:
    logits, target = example((2, 5, 9, 9))
    logits.requires_grad_()
    for options in (
        {},
        {"log_p": True},
        {"log_p": True, "sums": False},
        {"squared": True},
        {"log_p": True, "sums": False, "weights": torch.rand(5)},
    ):
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            softmax_sums(logits, target, **options)
        assert sum(sizes.values()) <= logits.nbytes + target.nbytes + 100, options
    before = logits.detach().clone()
    softmax_sums(logits, target, log_p=True).tp.sum().backward()
    assert torch.equal(before, logits)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("each", [False, True])
def test_weights_of_classes(example: Make, each: bool) -> None:
    logits, target = example((3, 4, 5, 7), ignored=True)
    weights = torch.rand((3, 4) if each else (4,), dtype=torch.float64)
    log_p, voxels, total = weighted_log_p(logits, target, weights)
    flat = target.flatten(1)
    of_voxel = weights.expand(3, 4).gather(1, torch.where(flat == 255, 0, flat)) * (flat != 255)
    torch.testing.assert_close(log_p, true_log_p(logits, target)[0] * of_voxel, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(total, of_voxel.sum(1, keepdim=True), rtol=1e-12, atol=0)
    assert torch.equal(voxels.long(), (flat != 255).sum(1, keepdim=True))


def test_one_softmax_for_two_losses(example: Make) -> None:
    logits, target = example((2, 3, 6, 5), ignored=True)
    sums, log_p = region_sums_and_log_p(logits, target, "sample", squared=True)
    alone = region_sums(logits, target, "sample", squared=True)
    for name in ("tp", "p", "t", "valid"):
        torch.testing.assert_close(getattr(sums, name), getattr(alone, name), rtol=1e-12, atol=0)
    other, voxels = true_log_p(logits, target)
    torch.testing.assert_close(log_p, other, rtol=1e-12, atol=1e-14)
    assert torch.equal(voxels, sums.valid)


def test_the_same_whatever_the_autocast(example: Make) -> None:
    logits, target = example((2, 3, 6, 5))
    logits = logits.float().requires_grad_()

    def both() -> tuple[Tensor, Tensor]:
        found = softmax_sums(logits, target, log_p=True)
        value = (found.tp / (found.p + found.t)).sum() + found.log_p.mean()
        return value, torch.autograd.grad(value, logits)[0]

    plain_value = both()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = both()
    assert torch.equal(plain_value[0], inside[0])
    assert torch.equal(plain_value[1], inside[1])
