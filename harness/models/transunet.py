"""TransUNet, R50 + ViT-B/16, written from the paper; the published ImageNet-21k weights load into it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models._blocks import check_sides, in_float32
from harness.models.attention import TransformerLayer
from harness.models.output import Output


class TransUNet(nn.Module):
    """TransUNet (Chen et al., 2021): ResNetV2 to 1/16, a transformer on its cells, a decoder with three skips.

    The numbers left away give R50-ViT-B/16: 105.28 M parameters with 9 classes at 224×224, of which 0.15 M are position
    embeddings. A grey image is repeated to three channels, as in the authors' code, so that weights trained on colour
    fit. Inputs of another size than `image_size` are taken: the position embeddings are then interpolated.

    Args:
        in_channels: Channels of the image; 1 is repeated to 3.
        num_classes: Classes with background.
        spatial_dims: 2.
        image_size: (h, w) that the position embeddings are made for.
        width: Channels of the ResNet's stem.
        blocks: Bottlenecks in each of the three stages.
        hidden: Width of the transformer.
        layers: Its blocks.
        heads: Attention heads.
        mlp: Width between the two layers of its MLP.
        dropout: In the transformer.
        decoder: Channels of the four decoder stages, from 1/8 to the full size.

    Raises:
        ValueError: A number is out of range, or `heads` does not divide `hidden`.

    Shape:
        image (B, in_channels, H, W), H and W divisible by 16 → logits (B, num_classes, H, W).
    """

    channels_last = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        image_size: Sequence[int] = (224, 224),
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 9),
        hidden: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp: int = 3072,
        dropout: float = 0.1,
        decoder: Sequence[int] = (256, 128, 64, 16),
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(f"transunet is for 2D, found spatial_dims {spatial_dims}; use `slices`")
        if len(blocks) != 3 or len(decoder) != 4 or min(*blocks, *decoder, width, hidden, layers, heads, mlp) < 1:
            raise ValueError("expected 3 numbers in blocks, 4 in decoder, and all of them and the widths at least 1")
        if hidden % heads or not 0 <= dropout < 1:
            raise ValueError(
                f"expected heads to divide hidden, and dropout in [0, 1); found {heads}, {hidden}, {dropout}"
            )
        check_sides("transunet", image_size, (16, 16))
        self.grid = (image_size[0] // 16, image_size[1] // 16)
        self.repeat = 3 if in_channels == 1 else 1
        self.heads = heads
        self.resnet = _ResNet(in_channels * self.repeat, width, blocks)
        self.embed = nn.Conv2d(16 * width, hidden, 1)
        self.position = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], hidden))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads, mlp, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        skips = (8 * width, 4 * width, width, 0)
        bottom = 2 * decoder[0]  # 512 in the paper
        self.bridge = _conv(hidden, bottom)
        self.decoder = nn.ModuleList(
            nn.Sequential(_conv((bottom, *decoder)[i] + skips[i], decoder[i]), _conv(decoder[i], decoder[i]))
            for i in range(4)
        )
        self.head = nn.Conv2d(decoder[-1], num_classes, 3, padding=1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, H, W) of an embedding (B, F, H, W), in float32 also inside autocast."""
        return in_float32(self.head, embedding)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, H, W).

        Raises:
            ValueError: A side of the image is not divisible by 16.
        """
        check_sides("transunet", image.shape[2:], (16, 16))
        x, *skips = self.resnet(image.repeat(1, self.repeat, 1, 1) if self.repeat > 1 else image)
        size = (x.shape[2], x.shape[3])
        cells = self.embed(x).flatten(2).transpose(1, 2)
        cells = self.dropout(cells + resized(self.position, self.grid, size))
        for layer in self.layers:
            cells = layer(cells)
        x = self.bridge(self.norm(cells).transpose(1, 2).unflatten(2, size))
        for i, stage in enumerate(self.decoder):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = stage(torch.cat([x, skips[i]], dim=1) if i < len(skips) else x)
        return Output(self.classify(x), x, self.classify)

    def from_npz(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """The part of the state that Google's `R50+ViT-B_16.npz` holds: ResNet, transformer, position embeddings.

        Raises:
            ValueError: An array is missing, is too many or has another shape than this network needs.
        """
        from harness.models.transunet_npz import state_of

        return state_of(self, arrays)


def resized(position: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Position embeddings (1, N, F) of a grid, interpolated to another one; corners stay corners."""
    if grid == size:
        return position
    field = position.transpose(1, 2).reshape(1, -1, *grid)
    return F.interpolate(field, size, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)


class _StdConv(nn.Conv2d):
    """A convolution whose weights are standardised for each output channel (Qiao et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return F.conv2d(x, weight, None, self.stride, self.padding)


def _std_conv(inner: int, outer: int, kernel: int, stride: int = 1) -> _StdConv:
    return _StdConv(inner, outer, kernel, stride, kernel // 2, bias=False)


def _group_norm(channels: int) -> nn.GroupNorm:
    """32 groups; fewer in small variants."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class _Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut; as in the authors' code each norm follows its convolution."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        middle = outer // 4
        self.conv1, self.norm1 = _std_conv(inner, middle, 1), _group_norm(middle)
        self.conv2, self.norm2 = _std_conv(middle, middle, 3, stride), _group_norm(middle)
        self.conv3, self.norm3 = _std_conv(middle, outer, 1), _group_norm(outer)
        self.project = stride != 1 or inner != outer
        if self.project:
            self.conv_proj = _std_conv(inner, outer, 1, stride)
            # one group for each channel and eps 1e-5: not what the weights were trained with, but the published network
            self.norm_proj = nn.GroupNorm(outer, outer)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.norm_proj(self.conv_proj(x)) if self.project else x
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        out: Tensor = F.relu(shortcut + self.norm3(self.conv3(y)))
        return out


class _ResNet(nn.Module):
    """Stem and three stages; returns features at 1/16, 1/8, 1/4 and 1/2."""

    def __init__(self, in_channels: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv = _std_conv(in_channels, width, 7, 2)
        self.norm = _group_norm(width)
        channels = [width, 4 * width, 8 * width, 16 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    _Bottleneck(channels[i] if j == 0 else channels[i + 1], channels[i + 1], 2 if i and j == 0 else 1)
                    for j in range(count)
                )
            )
            for i, count in enumerate(blocks)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        half = F.relu(self.norm(self.conv(image)))
        # without padding the pooled map is one row and one column short of a quarter; only the skip is filled with 0
        quarter = self.stages[0](F.max_pool2d(half, 3, 2))
        eighth = self.stages[1](quarter)
        return self.stages[2](eighth), eighth, F.pad(quarter, (0, 1, 0, 1)), half


def _conv(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )
