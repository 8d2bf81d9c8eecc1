"""A network with a prior of shape: what the losses of harness.losses.shape_prior look at, it shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.models._blocks import check_sides, in_float32
from harness.models.attention import TransformerLayer, attend
from harness.models.output import Output

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ShapePriorNet(nn.Module):
    """Image encoder with self-attention, shape-prior module with cross-attention, mask decoder (ours).

    The note on shape priors names the three parts without details; these are ours. The encoder is that of a U-Net, with
    transformer blocks between the N cells of its lowest stage. In the prior, one learned token per class looks for its
    class among the cells x_n (cross-attention, weights a_cn) and becomes t_c; the image's distribution over K learned
    shapes s_k is p = softmax_k(mean_c t_c · s_k / √F), and with Σ_k p_k s_k it gives a latent z ~ N(μ, σ²), drawn in
    training and μ in prediction, that moves the tokens: t'_c = t_c + (W z)_c. The token maps
    m_cn = softmax_c(t'_c · x_n / √F) then say for each cell which class the prior expects, and a linear map of
    Σ_c m_cn t'_c is added to the cell. The decoder is that of a U-Net.

    Besides logits and embedding it returns `attention` (B, C - 1, *S'), a_cn of the classes without background, means
    over heads, each with sum 1; `shape_tokens` (B, K), the distribution p; `shape_prior` (B, 2, Z), μ and ln σ²; and
    `token_maps` (B, C, *S'), probabilities. S' is the lowest stage's grid, S / 2^(depth - 1). All are float32.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        spatial_dims: 2 or 3.
        width: Channels of the first stage; each further stage doubles them; the last stage's are F.
        depth: Number of stages; the input's size must be divisible by 2^(depth - 1).
        layers: Transformer blocks.
        heads: Attention heads.
        shapes: K, learned shapes.
        latent: Z, length of the latent.

    Raises:
        ValueError: A number is out of range, or `heads` does not divide the width of the last stage.

    Shape:
        image (B, in_channels, *S) → logits (B, num_classes, *S).
    """

    channels_last = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        width: int = 32,
        depth: int = 5,
        layers: int = 4,
        heads: int = 8,
        shapes: int = 16,
        latent: int = 64,
    ) -> None:
        super().__init__()
        if spatial_dims not in _CONV or depth < 2 or min(width, heads, shapes, latent) < 1 or layers < 0:
            raise ValueError(
                "expected spatial_dims 2 or 3, depth >= 2, layers >= 0, and width, heads, shapes and latent >= 1; "
                f"found {spatial_dims}, {depth}, {layers}, {width}, {heads}, {shapes}, {latent}"
            )
        channels = [width * 2**i for i in range(depth)]
        features = channels[-1]
        if features % heads:
            raise ValueError(f"expected heads to divide the last stage's width of {features}, found {heads}")
        self.divisor, self.heads, dims = 2 ** (depth - 1), heads, spatial_dims
        self.pool = _POOL[dims](2)
        self.encoder = nn.ModuleList(_stage(dims, c // 2 if i else in_channels, c) for i, c in enumerate(channels))
        # a depthwise convolution tells cells where they are, at any size (Chu et al., 2023)
        self.position = _CONV[dims](features, features, 3, padding=1, groups=features)
        self.layers = nn.ModuleList(TransformerLayer(features, heads, 2 * features, 0.0) for _ in range(layers))
        self.norm = nn.LayerNorm(features, eps=1e-6)
        self.prior = _ShapePrior(features, num_classes, heads, shapes, latent)
        self.up = nn.ModuleList(_UP[dims](2 * c, c, kernel_size=2, stride=2) for c in channels[:-1])
        self.decoder = nn.ModuleList(_stage(dims, 2 * c, c) for c in channels[:-1])
        self.head = _CONV[dims](width, num_classes, 1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, *S) of an embedding (B, width, *S), in float32 also inside autocast."""
        return in_float32(self.head, embedding)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *S).

        Raises:
            ValueError: A side of the image is not divisible by 2^(depth - 1).
        """
        divisors = [self.divisor] * (image.ndim - 2)
        check_sides("shape_prior", image.shape[2:], divisors, "change `size` or `depth`")
        skips: list[Tensor] = []
        x = image
        for i, stage in enumerate(self.encoder):
            x = stage(self.pool(x) if i else x)
            skips.append(x)
        grid = x.shape[2:]
        cells = (x + self.position(x)).flatten(2).transpose(1, 2)
        for layer in self.layers:
            cells = layer(cells)
        given, shown = self.prior(self.norm(cells))
        x = (cells + given).transpose(1, 2).reshape(x.shape)
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](torch.cat([skips[i], self.up[i](x)], dim=1))
        on_grid = {k: shown[k].reshape(*shown[k].shape[:2], *grid) for k in ("attention", "token_maps")}
        return Output(self.classify(x), x, self.classify, **(shown | on_grid))


class _ShapePrior(nn.Module):
    """From cells (B, N, F) to what the prior adds to them, and what it shows."""

    def __init__(self, features: int, classes: int, heads: int, shapes: int, latent: int) -> None:
        super().__init__()
        self.heads, self.classes = heads, classes
        self.tokens = nn.Parameter(torch.randn(1, classes, features) / math.sqrt(features))
        self.shapes = nn.Parameter(torch.randn(shapes, features) / math.sqrt(features))
        self.query, self.key = nn.Linear(features, features), nn.Linear(features, features)
        self.value, self.out = nn.Linear(features, features), nn.Linear(features, features)
        self.norm = nn.LayerNorm(features, eps=1e-6)
        self.encode = nn.Linear(2 * features, 2 * latent)
        self.decode = nn.Linear(latent, classes * features)
        self.give = nn.Linear(features, features)

    def forward(self, cells: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        scale = 1 / math.sqrt(cells.shape[2])
        asked = self.tokens.expand(len(cells), -1, -1)
        found, weights = attend(self.query(asked), self.key(cells), self.value(cells), self.heads)
        tokens = self.norm(asked + self.out(found))
        summary = tokens.mean(1)
        shares = (summary @ self.shapes.T * scale).float().softmax(1)
        mean, log_variance = self.encode(torch.cat([summary, shares @ self.shapes], 1)).float().chunk(2, 1)
        z = mean
        if self.training:
            # from the global generator, which the training loop seeds at every step; within what float32 can hold
            z = mean + (log_variance / 2).clamp(-20, 20).exp() * torch.randn_like(mean)
        moved = tokens + self.decode(z.to(tokens.dtype)).reshape(tokens.shape)
        maps = (moved @ cells.transpose(1, 2) * scale).float().softmax(1)
        given = self.give(maps.to(moved.dtype).transpose(1, 2) @ moved)
        shown = {
            "attention": weights.mean(1)[:, 1:],  # where background attends is not attention to an object
            "shape_tokens": shares,
            "shape_prior": torch.stack([mean, log_variance], 1),
            "token_maps": maps,
        }
        return given, shown


def _stage(dims: int, inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        # a bias would be removed by the norm
        layers.append(_CONV[dims](channels, outer, 3, padding=1, bias=False))
        layers += [_NORM[dims](outer, affine=True), nn.LeakyReLU(0.01, inplace=True)]
    return nn.Sequential(*layers)
