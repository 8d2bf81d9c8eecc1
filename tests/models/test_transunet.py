"""TransUNet: the published size, each layer against formulas of its own, and Google's weights, array by array."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F

from harness.errors import BenchError
from harness.models.transunet import TransUNet, resized
from harness.models.transunet_npz import UNUSED, places
from harness.models.weights import load_initial

# Names and shapes in R50+ViT-B_16.npz (ImageNet-21k)
PUBLISHED: dict[str, list[int]] = json.loads(Path(__file__).with_name("r50_vit_b16.json").read_text())
SMALL: dict[str, Any] = {"width": 8, "blocks": (2, 1, 1), "hidden": 12, "layers": 2, "heads": 3, "mlp": 20}
SMALL |= {"decoder": (16, 8, 8, 8), "image_size": (64, 64)}
LAYER = "Transformer/encoderblock_1/"


def _net(in_channels: int = 3, **kwargs: Any) -> TransUNet:
    torch.manual_seed(0)
    return TransUNet(in_channels, 3, **(SMALL | kwargs))


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _arrays(net: TransUNet) -> dict[str, np.ndarray]:
    """A small file in Google's format."""
    random = np.random.default_rng(0)
    shapes = {k: p.shape for k, p in places(net).items()}
    shapes = {k: (1, 1, 1, *s) if "/gn" in f"/{k}" else s for k, s in shapes.items()}
    arrays = {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return arrays | {"cls": np.zeros((1, 1, 12), np.float32), "head/bias": np.zeros(7, np.float32)}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("size", "classes", "count"),
    [
        (224, 9, 105_277_081),  # 105.28 M in the survey
        (512, 9, 105_912_985),  # 105.9 M of its released code at 512
        (224, 2, 105_276_066),
    ],
)
def test_parameters_of_the_published_network(size: int, classes: int, count: int) -> None:
    with torch.device("meta"):
        net = TransUNet(1, classes, image_size=(size, size))
    assert sum(p.numel() for p in net.parameters()) == count


def test_parameters_by_hand() -> None:
    """The encoder's are those of the published file without classifier and class token, the decoder's 7.4 M."""
    encoder = sum(math.prod(s) for k, s in PUBLISHED.items() if k not in UNUSED) - 768
    block = lambda inner, outer: 9 * inner * outer + 2 * outer  # noqa: E731  convolution without bias, BatchNorm
    decoder = block(768, 512) + block(512 + 512, 256) + block(256, 256) + block(256 + 256, 128) + block(128, 128)
    decoder += block(128 + 64, 64) + block(64, 64) + block(64, 16) + block(16, 16) + (9 * 16 * 9 + 9)
    assert encoder + decoder == 105_277_081


def test_the_published_file_and_the_network_are_a_bijection() -> None:
    with torch.device("meta"):
        net = TransUNet(1, 9)
    table = places(net)
    assert set(table) == set(PUBLISHED) - UNUSED and set(PUBLISHED) >= UNUSED
    targets = [p.parameter for p in table.values()]
    ours = {n for n, _ in net.named_parameters() if n.partition(".")[0] not in ("bridge", "decoder", "head")}
    assert len(set(targets)) == len(targets) and set(targets) == ours
    for key, place in table.items():
        shape = tuple(PUBLISHED[key])
        assert place.shape in (shape, shape[3:] if shape[:3] == (1, 1, 1) else shape), key
        expected = tuple(net.get_parameter(place.parameter).shape)
        if place.parameter == "position":
            assert expected == (1, shape[1] - 1, shape[2])
        else:
            turned = place.turn(np.empty(place.shape, np.float32))
            assert turned.shape == expected, key


def test_a_layer_computes_what_the_arrays_say(tmp_path: Path) -> None:
    """The transformer's block from the arrays as Google's code contracts them, in NumPy."""
    net = _net()
    arrays = _arrays(net)
    load_initial(net, _save(tmp_path / "w.npz", arrays), {})
    of = lambda name: arrays[LAYER + name].astype(float)  # noqa: E731

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return centred * of(f"{name}/scale") + of(f"{name}/bias")

    x = np.random.default_rng(1).normal(size=(2, 5, 12))
    y, head = norm(x, "LayerNorm_0"), "MultiHeadDotProductAttention_1/"
    q, k, v = (
        np.einsum("bnf,fhd->bnhd", y, of(f"{head}{n}/kernel")) + of(f"{head}{n}/bias")
        for n in ("query", "key", "value")
    )
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)  # 12 features in 3 heads: the root of 4
    mixed = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    x1 = x + np.einsum("bnhd,hdf->bnf", mixed, of(f"{head}out/kernel")) + of(f"{head}out/bias")
    hidden = norm(x1, "LayerNorm_2") @ of("MlpBlock_3/Dense_0/kernel") + of("MlpBlock_3/Dense_0/bias")
    gelu = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    expected = x1 + gelu @ of("MlpBlock_3/Dense_1/kernel") + of("MlpBlock_3/Dense_1/bias")
    found = net.eval().layers[1](torch.from_numpy(x).float())
    assert np.allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_stem_computes_what_the_arrays_say(tmp_path: Path) -> None:
    net = _net()
    arrays = _arrays(net)
    arrays["conv_root/kernel"] *= 0.004  # a variance of the order of the 1e-5 that is added to it
    load_initial(net, _save(tmp_path / "w.npz", arrays), {})
    kernel = arrays["conv_root/kernel"].astype(float)
    kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-5)
    image = _image(1, 3, 16, 16)
    window = image[0, :, 3:10, 5:12].numpy().transpose(1, 2, 0)  # output (3, 4): stride 2, padding 3
    expected = np.einsum("hwi,hwio->o", window, kernel)
    assert np.allclose(net.resnet.conv(image)[0, :, 3, 4].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(net.resnet.norm.weight.detach().numpy(), arrays["gn_root/scale"].ravel())


def test_a_bottleneck_by_hand(tmp_path: Path) -> None:
    """First unit of the second stage, stride 2, in double precision: 32 to 64 channels with 16 between them."""
    net = _net()
    arrays = _arrays(net)
    load_initial(net, _save(tmp_path / "w.npz", arrays), {})
    of = lambda name: torch.from_numpy(arrays[f"block2/unit1/{name}"].astype(float))  # noqa: E731

    def conv(x: torch.Tensor, name: str, stride: int, groups: int, eps: float) -> torch.Tensor:
        kernel = of(f"conv{name}/kernel").permute(3, 2, 0, 1)
        centred = kernel - kernel.mean((1, 2, 3), keepdim=True)
        kernel = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        y = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        parts = y.unflatten(1, (groups, -1)).flatten(2)
        mean, variance = parts.mean(2, keepdim=True), parts.var(2, keepdim=True, correction=0)
        y = ((parts - mean) / (variance + eps).sqrt()).reshape(y.shape)
        return y * of(f"gn{name}/scale").reshape(1, -1, 1, 1) + of(f"gn{name}/bias").reshape(1, -1, 1, 1)

    x = _image(2, 32, 7, 7)
    y = conv(x.double(), "1", 1, 16, 1e-6).relu()
    y = conv(conv(y, "2", 2, 16, 1e-6).relu(), "3", 1, 32, 1e-6)
    expected = (y + conv(x.double(), "_proj", 2, 64, 1e-5)).relu()
    assert torch.allclose(net.resnet.stages[1](x).double(), expected, rtol=1e-4, atol=1e-4)


def test_other_channels_start_from_the_mean_of_the_colours(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.npz", _arrays(_net()))
    colour, grey, four = _net(3), _net(1), _net(4)
    for net in (colour, grey, four):
        load_initial(net, path, {})
    assert torch.equal(colour.resnet.conv.weight, grey.resnet.conv.weight)  # a grey image is repeated
    mean = colour.resnet.conv.weight.mean(1)
    assert all(torch.allclose(four.resnet.conv.weight[:, c], mean) for c in range(4))
    image = _image(2, 1, 32, 32)
    assert torch.allclose(
        grey.eval().resnet(image.repeat(1, 3, 1, 1))[0], colour.eval().resnet(image.repeat(1, 3, 1, 1))[0]
    )
    colour.load_state_dict(grey.state_dict())
    assert torch.equal(grey.eval()(image).logits, colour.eval()(image.repeat(1, 3, 1, 1)).logits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gn_root/bias": None}, "array 'gn_root/bias' is missing."),
        ({"conv_root/kernel": None, "gn_root/bias": None}, "array 'conv_root/kernel' is missing (1 more)."),
        ({LAYER + "LayerNorm_0/bias": (11,)}, "LayerNorm_0/bias' has shape (11,), expected (12,)."),
        (
            {"embedding/kernel": (1, 1, 12, 128)},
            "'embedding/kernel' has shape (1, 1, 12, 128), expected (1, 1, 128, 12).",
        ),
        ({"gn_root/scale": (1, 1, 8, 1)}, "'gn_root/scale' has shape (1, 1, 8, 1), expected (8,)."),
        (
            {"Transformer/posembed_input/pos_embedding": (1, 16, 12)},
            "shape (1, 16, 12), expected (1, 1 + a square, 12).",
        ),
        (
            {"block1/unit3/conv1/kernel": (1, 1, 32, 8)},
            "array 'block1/unit3/conv1/kernel' has no place in this network.",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    net = _net()
    arrays = _arrays(net)
    for key, shape in change.items():
        arrays.pop(key, None)
        if shape is not None:
            arrays[key] = np.ones(shape, np.float32)
    path, before = _save(tmp_path / "w.npz", arrays), {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(BenchError) as error:
        load_initial(net, path, {})
    assert str(error.value).startswith(f"{path}: does not hold the weights of this model: ")
    assert str(error.value).endswith(words)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), "half of a file was loaded"


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for value, words in ((np.full(8, np.nan, np.float32), "not finite"), (np.ones(8, np.int64), "holds int64")):
        path = _save(tmp_path / "w.npz", _arrays(_net()) | {"gn_root/bias": value})
        with pytest.raises(BenchError, match=f"'gn_root/bias' .*{words}"):
            load_initial(_net(), path, {})
    squeezed = tmp_path / "squeezed.npz"
    np.savez_compressed(squeezed, **_arrays(_net()))
    content = bytearray(squeezed.read_bytes())
    content[200:400] = b"\xff" * 200
    squeezed.write_bytes(content)
    with pytest.raises(BenchError, match=r"squeezed\.npz: does not hold the weights of this model"):
        load_initial(_net(), squeezed, {})
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BenchError, match=r"cut\.npz: does not hold the weights of this model"):
        load_initial(_net(), tmp_path / "cut.npz", {})


def test_position_embeddings_are_interpolated_as_the_authors_do(tmp_path: Path) -> None:
    """They zoom with order 1, which keeps the corners."""
    field = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
    found = resized(torch.from_numpy(field), (3, 3), (5, 7)).numpy()[0].reshape(5, 7, 4)
    assert np.allclose(found, scipy.ndimage.zoom(field.reshape(3, 3, 4), (5 / 3, 7 / 3, 1), order=1), atol=1e-6)
    assert np.array_equal(resized(torch.from_numpy(field), (3, 3), (3, 3)).numpy(), field)
    net, arrays = _net(image_size=(48, 80)), _arrays(_net())
    load_initial(net, _save(tmp_path / "w.npz", arrays), {})
    grid = arrays["Transformer/posembed_input/pos_embedding"][0, 1:].reshape(4, 4, 12)  # the class token is first
    assert np.allclose(net.position.detach().numpy()[0].reshape(3, 5, 12)[[0, -1], [0, -1]], grid[[0, -1], [0, -1]])


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 32)])
def test_shapes(size: tuple[int, int]) -> None:
    net, image = _net().eval(), _image(2, 3, *size)
    output = net(image)
    assert output.logits.shape == (2, 3, *size) and output.embedding.shape == (2, 8, *size)
    assert set(output.offered()) == {"embedding", "classify"}
    assert torch.equal(output.classify(output.embedding), output.logits)
    sixteenth, eighth, quarter, half = net.resnet(image)
    for features, factor, channels in ((sixteenth, 16, 128), (eighth, 8, 64), (quarter, 4, 32), (half, 2, 8)):
        assert features.shape == (2, channels, size[0] // factor, size[1] // factor)
    assert not quarter[:, :, -1].any() and not quarter[..., -1].any() and quarter[:, :, :-1, :-1].any()


def test_every_pixel_sees_every_other_one() -> None:
    net, image = _net().eval(), _image(1, 3, 64, 64)
    image[..., 60:, 60:] = 0
    image.requires_grad_()
    net(image).logits[0, :, 0, 0].sum().backward()
    assert image.grad[0, :, 60:, 60:].abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spatial_dims": 3}, "transunet is for 2D, found spatial_dims 3; use `slices`"),
        ({"image_size": (64, 60)}, "transunet needs sides divisible by 16, found (64, 60); change `size`"),
        ({"heads": 5}, "expected heads to divide hidden, and dropout in [0, 1); found 5, 12, 0.1"),
        ({"dropout": 1.0}, "found 3, 12, 1.0"),
        ({"blocks": (1, 1)}, "expected 3 numbers in blocks"),
        ({"decoder": (8, 8, 8, 0)}, "all of them and the widths at least 1"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        _net(**change)
    assert words in str(error.value)


def test_a_size_that_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError) as error:
        _net()(_image(1, 3, 64, 72))
    assert str(error.value) == "transunet needs sides divisible by 16, found (64, 72); change `size`"


def test_the_head_is_float32_inside_autocast_and_the_memory_format_does_not_matter() -> None:
    net, image = _net().eval(), _image(2, 3, 32, 32)
    exact = net(image).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(image)
    assert output.logits.dtype == torch.float32 and not torch.equal(output.logits, output.logits.bfloat16().float())
    assert torch.allclose(exact, output.logits, atol=0.1) and not torch.equal(exact, output.logits)
    last = net.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last)).logits
    assert torch.allclose(exact, last, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    net = _net()
    (net(_image(2, 3, 32, 32)).logits * _image(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    silent = {n for n, p in net.named_parameters() if not p.grad.abs().sum() > 0}
    assert not silent, silent


def test_dropout_draws_in_training_alone() -> None:
    net, image = _net(dropout=0.5), _image(2, 3, 32, 32)
    assert torch.equal(net.eval()(image).logits, net(image).logits)
    cells = F.layer_norm(_image(1, 4, 12), (12,))
    assert not torch.equal(net.train().layers[0](cells), net.layers[0](cells))


def test_it_learns_two_images(overfit: Callable[..., float]) -> None:
    make = lambda: TransUNet(1, 3, **(SMALL | {"image_size": (32, 32), "hidden": 24}))  # noqa: E731
    assert overfit(make, 2, 32, 100) > 0.95
