"""The surveys' U-Net: size, shapes, float32 logits, and a head that can be called by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.models.unet import UNet


def _net(dims: int = 2, **kwargs: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(**{"in_channels": 2, "num_classes": 3, "spatial_dims": dims, "width": 4, "depth": 3} | kwargs)


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_parameters_of_the_published_network() -> None:
    with torch.device("meta"):
        net = UNet(1, 9)
    assert sum(p.numel() for p in net.parameters()) == 31_042_889  # 31.04 M in the survey


@pytest.mark.parametrize("dims", [2, 3])
def test_parameters_by_hand(dims: int) -> None:
    # width 2, depth 2, 1 channel, 3 classes; k = 3^dims weights a kernel, u = 2^dims in the transposed convolution
    k, u = 3**dims, 2**dims
    stage = lambda a, b: (a * b * k + b) + (b * b * k + b) + 2 * 2 * b  # noqa: E731  two convolutions, two norms
    expected = stage(1, 2) + stage(2, 4) + (4 * 2 * u + 2) + stage(4, 2) + (2 * 3 + 3)
    assert sum(p.numel() for p in UNet(1, 3, dims, width=2, depth=2).parameters()) == expected


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (8, 12, 4), (4, 4, 4)])
def test_shapes(size: tuple[int, ...]) -> None:
    output = _net(len(size)).eval()(_image(2, 2, *size))
    assert output.logits.shape == (2, 3, *size) and output.logits.dtype == torch.float32
    assert output.embedding is not None and output.embedding.shape == (2, 4, *size)
    assert set(output.offered()) == {"embedding", "classify"}


@pytest.mark.parametrize(("size", "bad"), [((16, 18), "(16, 18)"), ((15, 16), "(15, 16)"), ((4, 6, 4), "(4, 6, 4)")])
def test_a_size_that_does_not_divide_is_named(size: tuple[int, ...], bad: str) -> None:
    with pytest.raises(ValueError) as error:
        _net(len(size))(_image(1, 2, *size))
    assert str(error.value) == f"unet needs sides divisible by 4, found {bad}; change `size` or `depth`"


def test_instance_norm_does_not_mix_samples_and_batch_norm_does() -> None:
    image = _image(2, 2, 8, 8)
    other = torch.cat([image[:1], 3 * image[1:] + 1])
    for norm, mixed in (("instance", False), ("batch", True)):
        net = _net(norm=norm).train()
        assert torch.allclose(net(image).logits[0], net(other).logits[0], atol=1e-5) is not mixed
    count = [sum(p.numel() for p in _net(norm=norm).parameters()) for norm in ("instance", "batch")]
    assert count[0] == count[1]
    with pytest.raises(ValueError, match="norm must be 'batch' or 'instance', found 'group'"):
        _net(norm="group")


@pytest.mark.parametrize("change", [{"spatial_dims": 1}, {"spatial_dims": 4}, {"depth": 1}, {"width": 0}])
def test_wrong_arguments(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected spatial_dims 2 or 3, depth >= 2 and width >= 1"):
        _net(**change)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_head_is_float32_inside_autocast(dims: int) -> None:
    net = _net(dims).eval()
    image = _image(2, 2, *[8] * dims)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(image)
        again = net.classify(output.embedding)
    assert output.logits.dtype == again.dtype == torch.float32 and torch.equal(again, output.logits)
    # bfloat16 has 3 digits: numbers with all of float32's digits are not representable in it
    assert not torch.equal(output.logits, output.logits.bfloat16().float())
    exact = net(image).logits
    assert not torch.equal(exact, output.logits)  # the trunk did run in bfloat16
    assert torch.allclose(exact, output.logits, atol=0.1)


@pytest.mark.parametrize("dims", [2, 3])
def test_classify_of_the_embedding_is_the_logits(dims: int) -> None:
    output = _net(dims)(_image(2, 2, *[8] * dims))
    assert output.classify is not None and output.embedding is not None
    assert torch.equal(output.classify(output.embedding), output.logits)


def test_gradients_reach_every_parameter() -> None:
    net = _net()
    output = net(_image(2, 2, 8, 8))
    (output.logits * _image(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    weights = [p for n, p in net.named_parameters() if n.endswith("weight")]
    assert all(p.grad.abs().sum() > 0 for p in weights)


def test_every_stage_is_used_and_sees_far() -> None:
    """One voxel of the input moves logits well beyond two convolutions, through the deepest stage."""
    net = _net(depth=4).eval()
    image = _image(1, 2, 32, 32)
    changed = image.clone()
    changed[0, :, 16, 16] += 10
    moved = (net(changed).logits != net(image).logits).any(1)[0].nonzero()
    assert moved.min() < 16 - 8 and moved.max() > 16 + 8
    image.requires_grad_()
    net(image).logits[0, :, 16, 16].sum().backward()  # and the gradient takes the same way back
    touched = image.grad[0].any(0).nonzero()
    assert touched.min() < 16 - 8 and touched.max() > 16 + 8


@pytest.mark.parametrize(("dims", "side", "steps"), [(2, 32, 60), (3, 16, 60)])
def test_it_learns_two_images(overfit: Callable[..., float], dims: int, side: int, steps: int) -> None:
    assert overfit(lambda: UNet(1, 3, dims, width=8, depth=3), dims, side, steps) > 0.95
