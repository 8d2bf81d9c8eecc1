"""The U-Net of Jadon's survey."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from harness.models._blocks import check_sides, in_float32
from harness.models.output import Output

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_NORM = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): nn.InstanceNorm2d,
    ("instance", 3): nn.InstanceNorm3d,
}
STAGES = 5


class JadonUNet(nn.Module):
    """U-Net of Jadon, 2020, section III: 10 convolutions in the encoder and 8 transposed ones in the decoder.

    Five stages of two 3×3 convolutions with ReLU and max pooling between them; on the way up four stages of two
    transposed convolutions, one that doubles the resolution and one on what it and the encoder give; a 1×1 head. The
    paper states the two numbers and no more: channels, norm and how the eight are placed are ours.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        spatial_dims: 2 as in the paper, or 3.
        width: Channels of the first stage; each further stage doubles them.
        norm: "batch", "instance" or "none".

    Raises:
        ValueError: `spatial_dims`, `width` or `norm` is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        width: int = 32,
        norm: Literal["batch", "instance", "none"] = "batch",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "instance", "none"):
            raise ValueError(f"norm must be 'batch', 'instance' or 'none', found {norm!r}")
        if spatial_dims not in _CONV or width < 1:
            raise ValueError(f"expected spatial_dims 2 or 3 and width >= 1, found {spatial_dims}, {width}")
        channels = [width * 2**i for i in range(STAGES)]
        conv, up = _CONV[spatial_dims], _UP[spatial_dims]

        def after(layer: nn.Module, count: int) -> nn.Sequential:
            normed = [] if norm == "none" else [_NORM[norm, spatial_dims](count, affine=True)]
            return nn.Sequential(layer, *normed, nn.ReLU(inplace=True))

        self.pool = _POOL[spatial_dims](2)
        self.encoder = nn.ModuleList(
            nn.Sequential(after(conv(a, c, 3, padding=1), c), after(conv(c, c, 3, padding=1), c))
            for a, c in zip([in_channels, *channels], channels, strict=False)
        )
        self.up = nn.ModuleList(after(up(2 * c, c, 2, stride=2), c) for c in channels[:-1])
        self.decoder = nn.ModuleList(after(up(2 * c, c, 3, padding=1), c) for c in channels[:-1])
        self.head = conv(width, num_classes, 1)
        self.divisors = [2 ** (STAGES - 1)] * spatial_dims

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, *S) of an embedding (B, width, *S), in float32 also inside autocast."""
        return in_float32(self.head, embedding)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *S).

        Raises:
            ValueError: A side of the image is not divisible by 16.
        """
        check_sides("jadon_unet", image.shape[2:], self.divisors)
        skips: list[Tensor] = []
        x = image
        for i, stage in enumerate(self.encoder):
            x = stage(self.pool(x) if i else x)
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](torch.cat([skips[i], self.up[i](x)], dim=1))
        return Output(self.classify(x), x, self.classify)
