"""The U-Net of the surveys, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from harness.models.output import Output

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[tuple[str, int], Callable[[int], nn.Module]] = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): partial(nn.InstanceNorm2d, affine=True),
    ("instance", 3): partial(nn.InstanceNorm3d, affine=True),
}
_ACT: dict[str, Callable[..., nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) as in Azad et al., 2023: 64-128-256-512-1024 channels at width 64.

    Two 3×3 convolutions with BatchNorm and ReLU per stage, max pooling, transposed convolutions, 1×1 head.
    31.04 M parameters at width 64 with 1 channel and 9 classes in 2D.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        spatial_dims: 2 or 3.
        width: Channels of the first stage; each further stage doubles them.
        depth: Number of stages; the input's size must be divisible by 2^(depth - 1).
        norm: "batch" as in the survey, or "instance".
        act: "relu" as in the survey, or "leaky_relu" as in nnU-Net. With few features all of them can be 0 at the rare
            classes after ReLU, and no gradient brings them back: plain cross-entropy then predicts background alone.

    Raises:
        ValueError: `spatial_dims`, `depth`, `width`, `norm` or `act` is none of these.
    """

    channels_last = True  # safe on a CPU, and faster; see harness.predict.memory_format

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        width: int = 64,
        depth: int = 5,
        norm: Literal["batch", "instance"] = "batch",
        act: Literal["relu", "leaky_relu"] = "relu",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "instance"):
            raise ValueError(f"norm must be 'batch' or 'instance', found {norm!r}")
        if act not in _ACT:
            raise ValueError(f"act must be one of {', '.join(_ACT)}, found {act!r}")
        if spatial_dims not in _CONV or depth < 2 or width < 1:
            raise ValueError(
                f"expected spatial_dims 2 or 3, depth >= 2 and width >= 1, found {spatial_dims}, {depth}, {width}"
            )
        self.divisor = 2 ** (depth - 1)
        channels = [width * 2**i for i in range(depth)]
        self.pool = _POOL[spatial_dims](2)
        self.encoder = nn.ModuleList(
            _stage(norm, act, spatial_dims, in_channels if i == 0 else channels[i - 1], c)
            for i, c in enumerate(channels)
        )
        self.up = nn.ModuleList(
            _UP[spatial_dims](channels[i + 1], channels[i], kernel_size=2, stride=2) for i in range(depth - 1)
        )
        self.decoder = nn.ModuleList(
            _stage(norm, act, spatial_dims, 2 * channels[i], channels[i]) for i in range(depth - 1)
        )
        self.head = _CONV[spatial_dims](width, num_classes, kernel_size=1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, *S) of an embedding (B, width, *S), in float32 also inside autocast."""
        with torch.autocast(embedding.device.type, enabled=False):
            logits: Tensor = self.head(embedding.float())
        return logits

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *S).

        Raises:
            ValueError: A side of the image is not divisible by 2^(depth - 1).
        """
        if any(side % self.divisor for side in image.shape[2:]):
            size = tuple(image.shape[2:])
            raise ValueError(f"unet needs sides divisible by {self.divisor}, found {size}; change `size` or `depth`")
        skips: list[Tensor] = []
        x = image
        for i, stage in enumerate(self.encoder):
            x = stage(self.pool(x) if i else x)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](torch.cat([skips[i], self.up[i](x)], dim=1))
        return Output(self.classify(x), x, self.classify)


def _stage(norm: str, act: str, dims: int, inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        # a bias before BatchNorm would be removed by it again, but the survey's count of 31.04 M includes it
        layers += [_CONV[dims](channels, outer, 3, padding=1), _NORM[norm, dims](outer), _ACT[act](inplace=True)]
    return nn.Sequential(*layers)
