"""Heads that a loss asks for: made from their own stream, trained with the network, never part of a prediction."""

import pytest
import torch
from torch import nn

from harness.errors import BenchError
from harness.losses.compound import Sum
from harness.models.heads import attach, head_channels
from harness.models.output import Output
from harness.models.unet import UNet


class Edge(nn.Module):
    def forward(self, logits, target, *, boundary_logits):
        return boundary_logits.square().mean() + 0 * logits.sum()


class Bins(nn.Module):
    def __init__(self, bins: int) -> None:
        super().__init__()
        self.channels = {"distance_logits": bins}

    def forward(self, logits, target, *, distance_logits):
        return distance_logits.mean() + 0 * logits.sum()


def test_channels_are_the_defaults_or_what_the_loss_states() -> None:
    assert head_channels(Edge(), {"boundary_logits", "onehot"}) == {"boundary_logits": 2}
    both = Sum([Edge(), Bins(7)], [1.0, 1.0], ["edge", "bins"])
    assert head_channels(both, {"boundary_logits", "distance_logits"}) == {"boundary_logits": 2, "distance_logits": 7}
    assert head_channels(Edge(), {"embedding"}) == {}


def test_two_terms_that_want_other_widths_are_refused() -> None:
    with pytest.raises(BenchError, match="with 7 and with 5 channels"):
        head_channels(Sum([Bins(7), Bins(5)], [1.0, 1.0], ["a", "b"]), {"distance_logits"})


def test_heads_leave_the_network_and_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    model = UNet(1, 3, width=4, depth=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    heads = attach(model, {"projection": 5}, torch.randn(1, 1, 8, 8, generator=torch.Generator()), seed=1)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "BatchNorm saw a batch"
    out: Output = model(torch.randn(2, 1, 8, 8))
    assert out.embedding is not None
    assert heads(out.embedding)["projection"].shape == (2, 5, 8, 8)
    again = attach(model, {"projection": 5}, torch.zeros(1, 1, 8, 8), seed=1)
    other = attach(model, {"projection": 5}, torch.zeros(1, 1, 8, 8), seed=2)
    same, unlike = (torch.equal(heads.heads["projection"].weight, h.heads["projection"].weight) for h in (again, other))
    assert same and not unlike


def test_a_model_without_an_embedding_is_refused() -> None:
    class Blind(nn.Module):
        def forward(self, image):
            return Output(image)

    with pytest.raises(BenchError, match="boundary_logits"):
        attach(Blind(), {"boundary_logits": 2}, torch.zeros(1, 2, 4, 4), seed=0)
