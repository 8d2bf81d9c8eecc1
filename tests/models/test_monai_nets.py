"""Jadon's U-Net and the networks of MONAI behind `Output`: the same numbers, an embedding and a head, learning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn

from harness.losses.shape_prior import AttentionRegularisation
from harness.models import MODELS, provided
from harness.models.build import build_model
from harness.models.jadon_unet import JadonUNet
from harness.models.monai_nets import UNETR, AttentionUNet, SegResNet, SwinUNETR

SMALL: dict[str, dict[str, Any]] = {
    "jadon_unet": {"width": 8},
    "attention_unet": {"width": 6, "depth": 3},
    "segresnet": {"width": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "unetr": {"width": 6, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
    "swin_unetr": {"width": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4},
}
STEPS = {"jadon_unet": 60, "attention_unet": 80, "segresnet": 80, "unetr": 70, "swin_unetr": 30}
SIZES = {2: [32, 64], 3: [16, 32, 16]}
SWIN = {2: [32, 64], 3: [32, 64, 32]}


def _net(name: str, size: list[int], channels: int = 2, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    facts: dict[str, Any] = {"in_channels": channels, "num_classes": 3, "spatial_dims": len(size), "size": size}
    return build_model(MODELS[name], SMALL[name] | kwargs, **facts)


def _size(name: str, dims: int) -> list[int]:
    return SWIN[dims] if name == "swin_unetr" else SIZES[dims]


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _theirs(name: str) -> nn.Module:
    torch.manual_seed(0)
    common: dict[str, Any] = {"spatial_dims": 2, "in_channels": 2, "out_channels": 3}
    if name == "attention_unet":
        return nets.AttentionUnet(**common, channels=(6, 12, 24), strides=(2, 2))
    if name == "segresnet":
        return nets.SegResNet(**common, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    if name == "unetr":
        sizes = {"feature_size": 6, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
        return nets.UNETR(**common, img_size=(32, 64), **sizes)
    shape = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    return nets.SwinUNETR(**common, **shape)


@pytest.mark.parametrize("name", [n for n in SMALL if n != "jadon_unet"])
def test_it_computes_what_monai_does_with_the_same_weights(name: str) -> None:
    net, theirs, image = _net(name, _size(name, 2)).eval(), _theirs(name).eval(), _image(2, 2, *_size(name, 2))
    with torch.inference_mode():
        assert torch.equal(net(image).logits, theirs(image))
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_the_head_in_float32(name: str, dims: int) -> None:
    size = _size(name, dims)
    net, image = _net(name, size).eval(), _image(1, 2, *size)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(image)
        assert torch.equal(output.classify(output.embedding), output.logits)
    assert output.logits.shape == (1, 3, *size) and output.logits.dtype == torch.float32
    assert output.embedding.shape[2:] == torch.Size(size) and output.embedding.shape[1] == net.head.in_channels
    # bfloat16 has 3 digits: numbers with all of float32's digits are not representable in it
    assert not torch.equal(output.logits, output.logits.bfloat16().float())
    offered = {k for k, v in output.offered().items() if v is not None}
    assert offered == provided(name)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_that_is_used(name: str) -> None:
    size = _size(name, 2)
    net = _net(name, size)
    output = net(_image(2, 2, *size))
    (output.logits * _image(*output.logits.shape)).sum().backward()
    silent = {n for n, p in net.named_parameters() if p.grad is None}
    assert all("norm_cross_attn" in n for n in silent)  # MONAI's transformer carries one that UNETR does not use
    assert not silent or name == "unetr"


@pytest.mark.parametrize(("name", "steps"), STEPS.items())
def test_it_learns_two_images(overfit: Callable[..., float], name: str, steps: int) -> None:
    side = 64 if name == "swin_unetr" else 32
    assert overfit(lambda: _net(name, [side, side], channels=1), 2, side, steps) > 0.95


def test_sizes_are_about_those_of_the_papers() -> None:
    def millions(net: nn.Module) -> float:
        return sum(p.numel() for p in net.parameters()) / 1e6

    with torch.device("meta"):
        unetr = UNETR(1, 14, [96] * 3)
    assert millions(unetr) == pytest.approx(92.58, rel=0.01)
    assert millions(SwinUNETR(1, 14, [96] * 3)) == pytest.approx(61.98, rel=0.01)


def test_jadon_has_ten_convolutions_and_eight_transposed_ones() -> None:
    kinds = [type(m) for m in JadonUNet(1, 2).modules()]
    assert kinds.count(nn.Conv2d) == 10 + 1 and kinds.count(nn.ConvTranspose2d) == 8  # and the head
    assert kinds.count(nn.BatchNorm2d) == 18
    assert not any(isinstance(m, nn.BatchNorm2d) for m in JadonUNet(1, 2, norm="none").modules())


def test_jadons_parameters_by_hand() -> None:
    channels = [2, 4, 8, 16, 32]
    down = sum(a * c * 9 + c + c * c * 9 + c for a, c in zip([1, *channels], channels, strict=False))
    up = sum(2 * c * c * 4 + c + 2 * c * c * 9 + c for c in channels[:-1])
    net = JadonUNet(1, 3, width=2, norm="none")
    assert sum(p.numel() for p in net.parameters()) == down + up + 2 * 3 + 3


def test_the_gates_of_attention_u_net_are_what_multiplies_its_skips() -> None:
    net, image = _net("attention_unet", [16, 16]).eval(), _image(2, 2, 16, 16)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    block = net.trunk.model[1].attention
    block.register_forward_hook(
        lambda module, given, kwargs, found: seen.append((kwargs["x"], found)), with_kwargs=True
    )
    gates = net(image).attention.detach()
    assert gates.shape == (2, 1, 16, 16) and 0 < float(gates.min()) < float(gates.max()) < 1
    skip, gated = seen[0]
    assert torch.equal(skip * gates, gated)
    assert not torch.equal(net(image + 1).attention, gates)  # of this image, not of the one before


def test_attention_regularisation_trains_the_gates() -> None:
    net, image = _net("attention_unet", [16, 16]), _image(2, 2, 16, 16)
    target = torch.zeros(2, 16, 16, dtype=torch.int64)
    target[:, 4:8, 4:8] = 1
    output = net(image)
    AttentionRegularisation()(output.logits, target, attention=output.attention).backward()
    assert net.trunk.model[1].attention.psi[0].conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AttentionUNet(1, 2, 4), "expected spatial_dims 2 or 3, depth >= 2 and width >= 2, found 4, 5, 64"),
        (lambda: SegResNet(1, 2, 3, 12), "width divisible by 8 and one stage fewer up than down"),
        (lambda: SegResNet(1, 2, 3, 8, (1, 2), (1, 1)), "one stage fewer up than down, found 3, 8, [1, 2], [1, 1]"),
        (lambda: UNETR(1, 2, [96, 96, 40]), "unetr needs sides divisible by 16, found (96, 96, 40); change `size`"),
        (lambda: UNETR(1, 2, [32, 32], 2, hidden_size=20, num_heads=3), "hidden_size should be divisible by num_heads"),
        (
            lambda: UNETR(1, 2, [32, 32], 2, 0),
            "expected a size of spatial_dims axes and width >= 1, found 2, [32, 32], 0",
        ),
        (lambda: UNETR(1, 2, [32], 1 + 1), "expected a size of spatial_dims axes and width >= 1, found 2, [32], 16"),
        (
            lambda: SwinUNETR(1, 2, [64, 64], 2, 12, (1, 1)),
            "four depths and four num_heads of at least 1, found 2, [64, 64], [1, 1]",
        ),
        (lambda: SwinUNETR(1, 2, [64, 48], 2), "swin_unetr needs sides divisible by 32, found (64, 48)"),
        (lambda: SwinUNETR(1, 2, [32, 32], 2), "swin_unetr needs a side of at least 64 voxels, found (32, 32)"),
        (lambda: SwinUNETR(1, 2, [64, 64], 2, 10), "divisible by 12"),
        (lambda: JadonUNet(1, 2, 4), "expected spatial_dims 2 or 3 and width >= 1, found 4, 32"),
        (lambda: JadonUNet(1, 2, norm="group"), "norm must be 'batch', 'instance' or 'none', found 'group'"),
    ],
)
def test_wrong_arguments_are_one_sentence(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("jadon_unet", [32, 40], "jadon_unet needs sides divisible by 16, found (32, 40)"),
        ("attention_unet", [16, 18], "attention_unet needs sides divisible by 4, found (16, 18)"),
        ("segresnet", [16, 18], "segresnet needs sides divisible by 4, found (16, 18)"),
        ("unetr", [64, 32], "unetr was made for images of (32, 64), found (64, 32)"),
        ("swin_unetr", [64, 40], "swin_unetr needs sides divisible by 32, found (64, 40)"),
    ],
)
def test_images_of_another_size_are_refused(name: str, size: list[int], words: str) -> None:
    net = _net(name, _size(name, 2))
    with pytest.raises(ValueError) as error:
        net(_image(1, 2, *size))
    assert words in str(error.value)
