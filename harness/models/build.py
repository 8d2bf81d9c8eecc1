"""From a cell's model to a network that returns an `Output`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BenchError, first_line
from harness.models.output import Output
from harness.resolve import load

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


def build_model(
    target: str,
    args: dict[str, Any],
    *,
    in_channels: int,
    num_classes: int,
    spatial_dims: int,
    size: list[int],
    spacing: list[float] | None = None,
) -> nn.Module:
    """Construct a network; facts of the data set fill the parameters that the suite left out.

    Args:
        target: `pkg.mod:Class` or `/file.py:Class`.
        args: Arguments from the suite.
        in_channels: Channels of the image.
        num_classes: Classes with background.
        spatial_dims: 2 or 3.
        size: Spatial size of the network's input.
        spacing: Of the network's grid, mm, where every case has the same.

    Raises:
        BenchError: The constructor refuses, or what it returns is no `nn.Module`.
    """
    cls = load(target)
    known = inspect.signature(cls).parameters
    facts = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "out_channels": num_classes,
        "spatial_dims": spatial_dims,
        "img_size": size,
        "image_size": size,
        "spacing": spacing,
    }
    filled = {k: v for k, v in facts.items() if k in known and k not in args and v is not None}
    try:
        network = cls(**filled, **args)
    except (TypeError, ValueError, LookupError, AssertionError, NotImplementedError, ImportError) as error:
        reason = first_line(error, type(error).__name__).rstrip(".")
        raise BenchError(f"model {target.rpartition(':')[2]} cannot be made with {args}: {reason}.") from error
    if not isinstance(network, nn.Module):
        raise BenchError(f"model {target} is a {type(network).__name__}, expected a torch.nn.Module.")
    return network if target.startswith("harness.") else Adapter(network, num_classes)


class Adapter(nn.Module):
    """Any network from images to logits; its embedding is what enters the last layer that makes the classes.

    Under autocast the whole network runs in low precision, its head too: only the logits are cast to float32.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self._classes = num_classes
        self._seen: list[Tensor] = []
        for module in network.modules():
            if isinstance(module, _CONVOLUTIONS):
                module.register_forward_pre_hook(self._keep)

    def _keep(self, module: _Convolution, inputs: tuple[Tensor, ...]) -> None:
        """Remember what enters the last convolution that makes the classes; after it only 1×1 ones may follow.

        Where a trunk is as wide as there are classes this cannot be told, and there is no embedding.
        """
        if module.out_channels != self._classes:
            self._seen.clear()
        elif module.in_channels != self._classes:
            self._seen[:] = inputs[:1]
        elif max(module.kernel_size) > 1:
            self._seen.clear()

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, C, *S).

        Raises:
            BenchError: The network returns something else than one tensor of logits.
        """
        self._seen.clear()
        out = self.network(image)
        embedding = self._seen[0] if self._seen else None
        self._seen.clear()
        if isinstance(out, Output):
            return out
        if not isinstance(out, Tensor):
            name = type(self.network).__name__
            raise BenchError(f"model {name} returns {type(out).__name__}, expected one tensor of logits (B, C, *S).")
        expected = (len(image), self._classes, *image.shape[2:])
        if out.shape != expected:
            name = type(self.network).__name__
            raise BenchError(f"model {name} returns logits of shape {tuple(out.shape)}, expected {expected}.")
        full = embedding is not None and embedding.shape[2:] == out.shape[2:]
        return Output(out.float(), embedding if full else None)


def digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name: the fingerprint of weights."""
    return digest_of_state(module.state_dict())


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """The same of weights that are in no module."""
    import hashlib

    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
