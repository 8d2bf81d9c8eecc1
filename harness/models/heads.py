"""Heads that a loss asks for, attached to a network's embedding: 1×1 convolutions, trained with the network.

They are made after the network and from a stream of their own, so the network starts from the same weights whatever
the loss asks for; predictions do not use them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.errors import BenchError
from harness.losses.needs import HEADS
from harness.models.output import Output

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}


class Heads(nn.Module):
    """Heads by name.

    Args:
        channels: Output channels of each head.
        features: Channels of the embedding.
        dims: 2 or 3.
        seed: Of their initial weights.
    """

    def __init__(self, channels: Mapping[str, int], features: int, dims: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleDict({name: _CONV[dims](features, n, 1) for name, n in channels.items()})

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Outputs (B, K, *S) of an embedding (B, F, *S), in float32 also inside autocast."""
        with torch.autocast(embedding.device.type, enabled=False):
            return {name: head(embedding.float()) for name, head in self.heads.items()}


def head_channels(loss: nn.Module, needs: set[str]) -> dict[str, int]:
    """Channels of the heads that a loss and its parts ask for.

    Raises:
        BenchError: Two parts of a sum want a head of different widths.
    """
    wanted = {name: HEADS[name] for name in sorted(needs & set(HEADS))}
    stated: dict[str, int] = {}
    for part in loss.modules():
        for name, count in getattr(part, "channels", {}).items() if hasattr(part, "forward") else ():
            if name in wanted and stated.setdefault(name, int(count)) != int(count):
                raise BenchError(f"two terms of the loss want {name!r} with {stated[name]} and with {count} channels.")
    return wanted | stated


@torch.no_grad()
def attach(model: nn.Module, channels: Mapping[str, int], image: Tensor, seed: int) -> Heads:
    """Make heads for a network; one pass in evaluation mode tells the width of its embedding.

    Raises:
        BenchError: The network provides no embedding.
    """
    was_training = model.training
    model.eval()
    output: Output = model(image)
    model.train(was_training)
    if output.embedding is None:
        raise BenchError(f"the loss needs {', '.join(channels)} on an embedding, which this model does not provide.")
    return Heads(channels, output.embedding.shape[1], image.ndim - 2, seed).to(image.device)
