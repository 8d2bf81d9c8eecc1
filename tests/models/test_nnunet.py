"""nnU-Net's network: the shape its rules give it, MONAI's numbers, logits at lower resolutions, learning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet

from harness.models import provided
from harness.models.build import build_model
from harness.models.nnunet import NNUNet

TARGET = "harness.models.nnunet:NNUNet"


def _net(size: list[int], **kwargs: Any) -> NNUNet:
    torch.manual_seed(0)
    facts = {"in_channels": 2, "num_classes": 3, "image_size": size, "spatial_dims": len(size), "width": 4}
    return NNUNet(**facts | kwargs)


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_channels_double_up_to_320_in_3d_and_512_in_2d() -> None:
    with torch.device("meta"):
        volumes, slices = NNUNet(1, 2, [128] * 3), NNUNet(1, 2, [256] * 2, 2)
    assert [s.conv1.conv.out_channels for s in volumes.encoder] == [32, 64, 128, 256, 320, 320]
    assert [s.conv1.conv.out_channels for s in slices.encoder] == [32, 64, 128, 256, 512, 512, 512]
    assert sum(p.numel() for p in volumes.parameters()) == 31_190_312


def test_parameters_by_hand() -> None:
    # 16 × 16: three stages of 2, 4, 8 channels, 1 channel in, 3 classes; no bias but in the heads, norms have two
    norms = 2 * 2
    down = sum(a * c * 9 + c * c * 9 + norms * c for a, c in ((1, 2), (2, 4), (4, 8)))
    up = sum(2 * c * c * 4 + 2 * c * c * 9 + c * c * 9 + norms * c for c in (4, 2))
    net = NNUNet(1, 3, [16, 16], 2, width=2)
    assert sum(p.numel() for p in net.parameters()) == down + up + (2 * 3 + 3)


def test_strides_and_kernels_are_those_of_the_plan() -> None:
    net = _net([8, 32, 32], spacing=[5.0, 1.0, 1.0])
    assert [s.conv1.conv.stride for s in net.encoder] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert [s.conv1.conv.kernel_size for s in net.encoder] == [(1, 3, 3)] * 2 + [(3, 3, 3)] * 2
    assert all(s.conv1.conv.kernel_size == (3, 3, 3) for s in _net([8, 32, 32]).encoder)


def test_it_computes_what_monai_does_with_the_same_weights() -> None:
    net = _net([16, 32]).eval()
    torch.manual_seed(0)
    theirs = DynUNet(
        2, 2, 3, [3, 3, 3, 3], [1, (1, 2), 2, 2], [(1, 2), 2, 2], [4, 8, 16, 32], deep_supervision=True, deep_supr_num=1
    )
    image = _image(2, 2, 16, 32)
    assert torch.equal(net(image).logits, theirs.eval()(image))
    lower = net.train()(image).aux
    stacked = theirs.train()(image)  # theirs are brought to full size again
    assert len(lower) == stacked.shape[1] - 1 == 1
    assert torch.equal(lower[0].repeat_interleave(2, -1), stacked[:, 1])


def test_logits_at_lower_resolutions_in_training_alone() -> None:
    net, image = _net([64, 32]), _image(1, 2, 64, 32)
    assert [tuple(a.shape) for a in net.train()(image).aux] == [(1, 3, 32, 32), (1, 3, 16, 16)]
    assert all(a.dtype == torch.float32 for a in net(image).aux)
    assert net.eval()(image).aux is None
    assert _net([16, 16]).train()(image[..., :16, :16]).aux is None  # two poolings leave none between
    assert provided("nnunet") >= {"aux", "embedding", "classify"}


@pytest.mark.parametrize("size", [[32, 32], [16, 16, 16], [16, 32, 32]])
def test_shapes_head_and_gradients(size: list[int]) -> None:
    net, image = _net(size), _image(2, 2, *size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(image)
        assert torch.equal(output.classify(output.embedding), output.logits)
    assert output.logits.shape == (2, 3, *size) and output.logits.dtype == torch.float32
    assert output.embedding.shape == (2, 4, *size)
    assert not torch.equal(output.logits, output.logits.bfloat16().float())  # the head did not run in bfloat16
    output = net(image)
    sum((a * _image(*a.shape)).sum() for a in [output.logits, *(output.aux or [])]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "conv" in n)


def test_no_part_of_the_network_is_kept_twice() -> None:
    net = _net([32, 32])
    assert len(net.state_dict()) == len(dict(net.named_parameters()))  # instance norm has no buffers


@pytest.mark.parametrize(
    ("size", "kwargs", "words"),
    [
        ([36, 50, 35], {}, "nnunet needs sides divisible by 8, found (36, 50, 35); take [40, 56, 40]"),
        ([20, 36], {}, "nnunet needs sides divisible by (4, 8), found (20, 36); take [20, 40]"),
        ([8, 12], {}, "nnunet needs a side of at least 16 voxels, found (8, 12)"),
        ([32, 32], {"spatial_dims": 3}, "expected a size of spatial_dims axes"),
        ([32, 32], {"width": 0}, "width and min_edge of at least 1"),
        ([32, 32], {"spacing": [1.0]}, "expected a size and a spacing of 2 or 3 axes above 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(size: list[int], kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        _net(size, **kwargs)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_image_of_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nnunet needs sides divisible by 8, found \(32, 36\); change `size`"):
        _net([32, 32])(_image(1, 2, 32, 36))


def test_facts_reach_it() -> None:
    facts: dict[str, Any] = {"in_channels": 1, "num_classes": 2, "spatial_dims": 3, "size": [8, 32, 32]}
    coarse = build_model(TARGET, {"width": 2}, **facts, spacing=[5.0, 1.0, 1.0])
    assert coarse.encoder[0].conv1.conv.kernel_size == (1, 3, 3)
    assert build_model(TARGET, {"width": 2}, **facts).encoder[0].conv1.conv.kernel_size == (3, 3, 3)


@pytest.mark.parametrize(("dims", "side", "steps"), [(2, 32, 80), (3, 16, 60)])
def test_it_learns_two_images(overfit: Callable[..., float], dims: int, side: int, steps: int) -> None:
    assert overfit(lambda: NNUNet(1, 3, [side] * dims, dims, width=6), dims, side, steps) > 0.95
