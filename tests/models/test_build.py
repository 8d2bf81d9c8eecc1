"""Networks from a suite: facts are filled in, MONAI's networks become an `Output`, mistakes are one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import BenchError
from harness.models.build import build_model, digest
from harness.models.unet import UNet

NETS = "monai.networks.nets:"
SMALL = {"channels": (4, 8, 16), "strides": (2, 2)}
DYN = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 16]}
FACTS = """\
from torch import nn

class Facts(nn.Module):
    def __init__(self, in_channels, num_classes, out_channels, spatial_dims, img_size, image_size, width=7):
        super().__init__()
        self.got = (in_channels, num_classes, out_channels, spatial_dims, img_size, image_size, width)

class Plain(nn.Module):
    def __init__(self, in_channels, num_classes, width=6):
        super().__init__()
        self.trunk = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Conv2d(width, num_classes, 1)
        # registered last, run before the head
        self.side = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, image):
        hidden = self.trunk(image).relu()
        self.side(image)
        return self.head(hidden)

class AsWide(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(in_channels, 5, 3, padding=1), nn.Conv2d(5, num_classes, 3, padding=1))
        self.more = nn.Conv2d(num_classes, num_classes, 3, padding=1)
        self.head = nn.Conv2d(num_classes, num_classes, 1)

    def forward(self, image):
        return self.head(self.more(self.trunk(image)))

class Half(Plain):
    def forward(self, image):
        return super().forward(image)[..., ::2]

class Pair(Plain):
    def forward(self, image):
        return super().forward(image), image

class Own(Plain):
    def forward(self, image):
        from harness.models.output import Output
        return Output(super().forward(image), image)

class Picky(nn.Module):
    def __init__(self, kind="a"):
        super().__init__()
        assert kind == "a", "kind must be a\\nand this is a second line"

class Broken(nn.Module):
    def __init__(self, kind="a"):
        super().__init__()
        import no_such_package

class NoModule:
    def __init__(self, in_channels):
        pass
"""


def _build(
    target: str, args: dict[str, Any] | None = None, dims: int = 2, side: int = 16, classes: int = 3
) -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        target, args or {}, in_channels=2, num_classes=classes, spatial_dims=dims, size=[side] * dims
    ).eval()


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FACTS)
    return f"{path}:"


def _image(dims: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randn(2, 2, *[side] * dims, generator=torch.Generator().manual_seed(1))


def test_facts_are_filled_in_and_arguments_win(mine: str) -> None:
    size = [16, 16]
    assert _build(mine + "Facts").network.got == (2, 3, 3, 2, size, size, 7)
    given = _build(mine + "Facts", {"width": 1, "in_channels": 5, "img_size": 8}).network.got
    assert given == (5, 3, 3, 2, 8, size, 1)
    net = _build("harness.models.unet:UNet", {"width": 4, "depth": 2}, dims=3)
    assert isinstance(net, UNet) and net.head.weight.shape == (3, 4, 1, 1, 1)
    assert net.encoder[0][0].in_channels == 2


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "args", "width"),
    [
        ("AttentionUnet", SMALL, 4),
        ("SegResNet", {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}, 8),
        ("BasicUNet", {"features": (4, 4, 8, 8, 16, 6)}, 6),
        ("DynUNet", DYN, 4),
        ("UNet", SMALL, None),  # its last layer also doubles the size: nothing of full size enters it
        ("UNet", SMALL | {"num_res_units": 2}, None),
    ],
)
def test_monai_networks(name: str, args: dict[str, Any], width: int | None, dims: int) -> None:
    net, image = _build(NETS + name, args, dims, 32), _image(dims, 32)
    with torch.inference_mode():
        output = net(image)
    assert output.logits.shape == (2, 3, *image.shape[2:]) and output.logits.dtype == torch.float32
    if width is None:
        assert output.embedding is None and output.offered() == {}
    else:
        assert output.embedding.shape == (2, width, *image.shape[2:]) and set(output.offered()) == {"embedding"}
    with torch.inference_mode():
        plain = net.network(image)
    assert torch.equal(output.logits, plain)


def test_monai_under_autocast_gives_float32() -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            _build(NETS + "BasicUNet", {"features": (4, 4, 8, 8, 16, 6)})(_image(side=32)).logits.dtype == torch.float32
        )


def test_the_embedding_is_what_enters_the_head(mine: str) -> None:
    net, image = _build(mine + "Plain"), _image()
    output = net(image)
    assert output.embedding.shape == (2, 6, 16, 16)
    assert torch.equal(net.network.head(output.embedding), output.logits)
    output.embedding.sum().backward()  # a loss on the embedding trains the trunk
    assert net.network.trunk.weight.grad.abs().sum() > 0


def test_no_embedding_where_trunk_and_head_cannot_be_told_apart(mine: str) -> None:
    assert _build(mine + "AsWide")(_image()).embedding is None
    wide = _build(NETS + "BasicUNet", {"features": (4, 4, 8, 8, 16, 6)}, classes=6)
    assert wide(_image(side=32)).embedding is None


def test_a_network_that_returns_an_output_is_taken_at_its_word(mine: str) -> None:
    image = _image()
    output = _build(mine + "Own")(image)
    assert output.embedding is image and output.logits.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pair", "model Pair returns tuple, expected one tensor of logits (B, C, *S)."),
        ("Half", "model Half returns logits of shape (2, 3, 16, 8), expected (2, 3, 16, 16)."),
    ],
)
def test_other_returns_are_refused(mine: str, name: str, words: str) -> None:
    with pytest.raises(BenchError) as error:
        _build(mine + name)(_image())
    assert str(error.value) == words


def test_deep_supervision_of_monai_is_refused_in_training_and_not_mistaken_for_logits() -> None:
    net = _build(NETS + "DynUNet", DYN | {"deep_supervision": True, "deep_supr_num": 1})
    assert net(_image()).embedding.shape == (2, 4, 16, 16)
    with pytest.raises(BenchError, match=r"returns logits of shape \(2, 2, 3, 16, 16\), expected \(2, 3, 16, 16\)"):
        net.train()(_image())


@pytest.mark.parametrize(
    ("target", "args", "words"),
    [
        ("harness.models.unet:UNet", {"widht": 4}, "model UNet cannot be made with {'widht': 4}: "),
        ("harness.models.unet:UNet", {"depth": 1}, "expected spatial_dims 2 or 3, depth >= 2"),
        (NETS + "UNet", {}, "model UNet cannot be made with {}: "),
        (NETS + "UNet", {"channels": (4, 8), "strides": (2,), "kernel_size": (3, 3, 3)}, "model UNet cannot be made"),
        ("Picky", {"kind": "b"}, "model Picky cannot be made with {'kind': 'b'}: kind must be a."),
        ("Broken", {}, "No module named 'no_such_package'"),
        ("NoModule", {}, "is a NoModule, expected a torch.nn.Module."),
        ("Absent", {}, "has no class 'Absent'"),
        ("no.such.module:Net", {}, "no.such.module cannot be imported"),
    ],
)
def test_mistakes_are_one_sentence(mine: str, target: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError) as error:
        _build(target if ":" in target else mine + target, args)
    assert words in str(error.value) and "\n" not in str(error.value)


def _small(seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(1, 2, width=2, depth=2)


def test_the_digest_sees_one_weight_and_one_buffer() -> None:
    net = _small(0)
    first = digest(net)
    assert digest(_small(0)) == first and digest(_small(1)) != first
    with torch.no_grad():
        net.head.bias[1] += 1e-6
    assert digest(net) != first
    with torch.no_grad():
        net.head.bias.copy_(_small(0).head.bias)
    assert digest(net) == first
    net.get_buffer("encoder.0.1.running_mean")[0] = 1e-3
    assert digest(net) != first


def test_the_digest_does_not_see_the_memory_format() -> None:
    net = _small(0)
    first = digest(net)
    net.to(memory_format=torch.channels_last)
    assert not net.encoder[0][3].weight.is_contiguous()
    assert digest(net) == first
    net.requires_grad_(False).eval()
    assert digest(net) == first


def test_the_same_seed_makes_the_same_network() -> None:
    args = {"width": 2, "depth": 2}
    made = [_build("harness.models.unet:UNet", args), _build("harness.models.unet:UNet", args)]
    assert digest(made[0]) == digest(made[1])
    made = [_build(NETS + "SegResNet", {"init_filters": 8}), _build(NETS + "SegResNet", {"init_filters": 8})]
    assert digest(made[0]) == digest(made[1])
