"""The network with a shape prior: what it shows is what the losses look at, and follows it when they train it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from harness.losses.shape_prior import AttentionRegularisation, KLShapePrior, ShapeAlignment
from harness.models import provided
from harness.models.shape_prior import ShapePriorNet

SMALL: dict[str, Any] = {"width": 4, "depth": 3, "layers": 1, "heads": 2, "shapes": 5, "latent": 6}


def _net(dims: int = 2, **kwargs: Any) -> ShapePriorNet:
    torch.manual_seed(0)
    return ShapePriorNet(2, 3, dims, **(SMALL | kwargs))


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(16, 24), (8, 12, 16)])
def test_what_it_shows(size: tuple[int, ...]) -> None:
    output = _net(len(size))(_image(2, 2, *size))
    grid = tuple(s // 4 for s in size)
    assert set(output.offered()) == provided("shape_prior")
    assert output.logits.shape == (2, 3, *size) and output.embedding.shape == (2, 4, *size)
    assert output.attention.shape == (2, 2, *grid) and output.token_maps.shape == (2, 3, *grid)
    assert output.shape_tokens.shape == (2, 5) and output.shape_prior.shape == (2, 2, 6)
    ones = torch.ones
    assert torch.allclose(output.attention.flatten(2).sum(2), ones(2, 2)) and (output.attention >= 0).all()
    assert torch.allclose(output.token_maps.sum(1), ones(2, *grid)) and (output.token_maps >= 0).all()
    assert torch.allclose(output.shape_tokens.sum(1), ones(2)) and (output.shape_tokens >= 0).all()
    assert torch.equal(output.classify(output.embedding), output.logits)


def test_attention_is_that_of_torch() -> None:
    prior, cells = _net().prior, _image(2, 7, 16)
    reference = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([prior.query.weight, prior.key.weight, prior.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([prior.query.bias, prior.key.bias, prior.value.bias]))
        reference.out_proj.load_state_dict(prior.out.state_dict())
    _, weights = reference(prior.tokens.expand(2, -1, -1), cells, cells, average_attn_weights=True)
    _, shown = prior.eval()(cells)
    assert torch.allclose(shown["attention"], weights[:, 1:], atol=1e-6)  # without the background's token


def test_the_prior_is_told_by_its_formulas() -> None:
    """Tokens, latent and maps of one image by hand, from the parameters."""
    prior, cells = _net().prior.eval(), _image(1, 7, 16)
    given, shown = prior(cells)
    found = nn.functional.scaled_dot_product_attention(
        *(
            f(x).reshape(len(x), -1, 2, 8).transpose(1, 2)
            for f, x in ((prior.query, prior.tokens), (prior.key, cells), (prior.value, cells))
        )
    )
    tokens = prior.norm(prior.tokens + prior.out(found.transpose(1, 2).reshape(1, 3, 16)))[0]
    shares = (prior.shapes @ tokens.mean(0) / 4).softmax(0)
    latent = prior.encode(torch.cat([tokens.mean(0), shares @ prior.shapes]))
    tokens = tokens + prior.decode(latent[:6]).reshape(3, 16)
    maps = (tokens @ cells[0].T / 4).softmax(0)
    assert torch.allclose(shown["shape_tokens"][0], shares, atol=1e-6)
    assert torch.allclose(shown["shape_prior"][0], latent.reshape(2, 6), atol=1e-6)
    assert torch.allclose(shown["token_maps"][0], maps, atol=1e-6)
    assert torch.allclose(given[0], prior.give(maps.T @ tokens), atol=1e-5)


def test_the_latent_is_drawn_in_training_and_is_its_mean_in_prediction() -> None:
    prior, cells = _net().prior, _image(1, 7, 16)
    with torch.no_grad():
        prior.encode.weight.zero_()
        prior.encode.bias[:6], prior.encode.bias[6:] = 3.0, 2 * torch.tensor(0.5).log()

    def maps(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return prior(cells)[1]["token_maps"]

    prior.eval()
    assert torch.equal(maps(1), maps(2))
    prior.train()
    assert torch.equal(maps(1), maps(1)) and not torch.allclose(maps(1), maps(2))
    seen: list[torch.Tensor] = []
    prior.decode.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    for _ in range(200):
        prior(cells)
    drawn = torch.cat(seen).detach()
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.05) and float(drawn.std()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("loss", "need"),
    [
        (AttentionRegularisation(dilation=0), "attention"),
        (AttentionRegularisation("kl"), "attention"),
        (KLShapePrior(), "shape_prior"),
        (ShapeAlignment(), "token_maps"),
        (ShapeAlignment("cosine"), "token_maps"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_loss_moves_what_it_looks_at(
    two_images: Callable[..., tuple[torch.Tensor, torch.Tensor]], loss: nn.Module, need: str, dims: int
) -> None:
    torch.manual_seed(0)
    image, target = two_images(dims, 16)
    net = ShapePriorNet(1, 3, dims, **SMALL)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    values: list[float] = []
    for _ in range(25):
        output = net(image)
        value = loss(output.logits, target, **{need: output.offered()[need]})
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert min(values[-3:]) < 0.7 * values[0], values


def test_the_prior_reaches_the_prediction_and_the_gradient_every_parameter() -> None:
    net, image = _net(), _image(2, 2, 16, 16)
    output = net(image)
    (output.logits * _image(2, 3, 16, 16)).sum().backward()
    silent = {n for n, p in net.named_parameters() if not (p.grad is not None and p.grad.abs().sum() > 0)}
    # from the logits alone, without a loss on what it shows
    assert not silent - {"prior.key.bias"}, silent  # a constant of the keys moves no softmax
    before = net.eval()(image).logits
    with torch.no_grad():
        net.prior.decode.bias.add_(_image(48))
    assert not torch.allclose(net(image).logits, before, atol=1e-3)


def test_heads_and_maps_are_float32_inside_autocast() -> None:
    net, image = _net().eval(), _image(2, 2, 16, 16)
    exact = net(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(image)
    for name in ("logits", "attention", "shape_tokens", "shape_prior", "token_maps"):
        low, high = getattr(output, name), getattr(exact, name)
        assert low.dtype == torch.float32 and torch.allclose(low, high, atol=0.15), name
    assert not torch.equal(output.logits, exact.logits)
    last = net.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last)).logits
    assert torch.allclose(exact.logits, last, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spatial_dims": 4}, "expected spatial_dims 2 or 3"),
        ({"depth": 1}, "depth >= 2"),
        ({"latent": 0}, "latent >= 1; found 2, 3, 1, 4, 2, 5, 0"),
        ({"heads": 3}, "expected heads to divide the last stage's width of 16, found 3"),
    ],
)
def test_wrong_arguments(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError) as error:
        ShapePriorNet(2, 3, **(SMALL | change))
    assert words in str(error.value)


def test_a_size_that_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError) as error:
        _net()(_image(1, 2, 16, 18))
    assert str(error.value) == "shape_prior needs sides divisible by 4, found (16, 18); change `size` or `depth`"


@pytest.mark.parametrize(("dims", "side", "steps"), [(2, 32, 80), (3, 16, 60)])
def test_it_learns_two_images(overfit: Callable[..., float], dims: int, side: int, steps: int) -> None:
    assert overfit(lambda: ShapePriorNet(1, 3, dims, **(SMALL | {"width": 8})), dims, side, steps) > 0.95
