"""Networks of MONAI behind `Output`: each is cut before its last 1×1 convolution, which becomes the head."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from monai.networks.nets.unetr import UNETR as MonaiUNETR
from torch import Tensor, nn

from harness.models._blocks import check_sides, in_float32
from harness.models.output import Output


class Cut(nn.Module):
    """A trunk from images to an embedding, and the head that was cut from it.

    Args:
        name: Of the network, for messages.
        trunk: From images (B, in_channels, *S) to an embedding (B, F, *S).
        head: From an embedding to logits (B, C, *S).
        divisors: What the sides of an image must be divisible by.
    """

    def __init__(self, name: str, trunk: nn.Module, head: nn.Module, divisors: Sequence[int]) -> None:
        super().__init__()
        self.name, self.trunk, self.head, self.divisors = name, trunk, head, list(divisors)

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, *S) of an embedding (B, F, *S), in float32 also inside autocast."""
        return in_float32(self.head, embedding)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *S).

        Raises:
            ValueError: A side of the image is not divisible by what the network needs.
        """
        check_sides(self.name, image.shape[2:], self.divisors)
        embedding: Tensor = self.trunk(image)
        return Output(self.classify(embedding), embedding, self.classify)


class AttentionUNet(Cut):
    """Attention U-Net (Oktay et al., 2018): a U-Net whose skip connections are weighted by gates.

    Its gates, one weight for each voxel, are offered as `attention` at full resolution.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        spatial_dims: 2 or 3.
        width: Channels of the first stage; each further stage doubles them.
        depth: Number of stages; the input's size must be divisible by 2^(depth - 1).
        dropout: Share of channels that is dropped.

    Raises:
        ValueError: `spatial_dims`, `width` or `depth` is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 2,
        width: int = 64,
        depth: int = 5,
        dropout: float = 0.0,
    ) -> None:
        if spatial_dims not in (2, 3) or depth < 2 or width < 2:
            raise ValueError(
                f"expected spatial_dims 2 or 3, depth >= 2 and width >= 2, found {spatial_dims}, {depth}, {width}"
            )
        channels = [width * 2**i for i in range(depth)]
        net = AttentionUnet(spatial_dims, in_channels, num_classes, channels, [2] * (depth - 1), dropout=dropout)
        head = net.model[2].conv
        net.model[2] = nn.Identity()
        super().__init__("attention_unet", net, head, [2 ** (depth - 1)] * spatial_dims)
        self._gate: list[Tensor] = []
        net.model[1].attention.psi.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], gate: Tensor) -> None:
        self._gate.append(gate)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *S); `attention` is (B, 1, *S), in (0, 1).

        Raises:
            ValueError: A side of the image is not divisible by 2^(depth - 1).
        """
        self._gate.clear()
        output = super().forward(image)
        output.attention = self._gate.pop()
        return output


class SegResNet(Cut):
    """SegResNet (Myronenko, 2018), without its autoencoder branch: residual blocks with group norm, linear upsampling.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        spatial_dims: 2 or 3.
        width: Channels of the first stage, divisible by 8; each further stage doubles them. 32 in the paper.
        blocks_down: Residual blocks of each stage; the input's size must be divisible by 2^(stages - 1).
        blocks_up: Residual blocks of each stage on the way up, one stage fewer.
        dropout: Share of channels of the first stage that is dropped.

    Raises:
        ValueError: `spatial_dims` or `width` is none of these, or the numbers of stages do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        width: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
    ) -> None:
        if spatial_dims not in (2, 3) or width < 8 or width % 8 or len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(
                "expected spatial_dims 2 or 3, width divisible by 8 and one stage fewer up than down, "
                f"found {spatial_dims}, {width}, {list(blocks_down)}, {list(blocks_up)}"
            )
        net = MonaiSegResNet(
            spatial_dims,
            width,
            in_channels,
            num_classes,
            dropout_prob=dropout or None,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )
        head = net.conv_final[2].conv
        net.conv_final[2] = nn.Identity()
        super().__init__("segresnet", net, head, [2 ** (len(blocks_down) - 1)] * spatial_dims)


class UNETR(Cut):
    """UNETR (Hatamizadeh et al., 2022): a vision transformer of 12 layers on patches of 16 voxels, a U-Net's decoder.

    Its position embeddings are of one grid: images of another size than `image_size` are refused.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        image_size: Size of the input, divisible by 16.
        spatial_dims: 2 or 3.
        width: Channels at full resolution.
        hidden_size: Channels of the transformer.
        mlp_dim: Channels within its perceptrons.
        num_heads: Heads of its attention; they divide `hidden_size`.
        dropout: Share of units that is dropped.

    Raises:
        ValueError: A side is not divisible by 16, or `num_heads` does not divide `hidden_size`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: Sequence[int],
        spatial_dims: int = 3,
        width: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        dropout: float = 0.0,
    ) -> None:
        if spatial_dims != len(image_size) or width < 1:
            raise ValueError(
                "expected a size of spatial_dims axes and width >= 1, "
                f"found {spatial_dims}, {list(image_size)}, {width}"
            )
        check_sides("unetr", image_size, [16] * len(image_size))
        net = MonaiUNETR(
            in_channels,
            num_classes,
            tuple(image_size),
            feature_size=width,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            dropout_rate=dropout,
            spatial_dims=spatial_dims,
        )
        head = net.out.conv.conv
        net.out = nn.Identity()
        super().__init__("unetr", net, head, [16] * spatial_dims)
        self.image_size = tuple(image_size)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *image_size).

        Raises:
            ValueError: The image has another size.
        """
        if tuple(image.shape[2:]) != self.image_size:
            raise ValueError(f"unetr was made for images of {self.image_size}, found {tuple(image.shape[2:])}")
        return super().forward(image)


class SwinUNETR(Cut):
    """Swin UNETR (Hatamizadeh et al., 2022): attention in shifted windows as the encoder, a U-Net's decoder.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        image_size: Size of the input, each side divisible by 32 and one above 32.
        spatial_dims: 2 or 3.
        width: Channels of the first stage, divisible by 12; 48 in the paper.
        depths: Blocks of each of the four stages.
        num_heads: Heads of each stage's attention.
        window_size: Voxels along a side of the windows, of the stage's grid.
        dropout: Share of units that is dropped.

    Raises:
        ValueError: The size or `width` is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: Sequence[int],
        spatial_dims: int = 3,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        if spatial_dims != len(image_size) or len(depths) != 4 or len(num_heads) != 4 or min(*depths, *num_heads) < 1:
            raise ValueError(
                "expected a size of spatial_dims axes and four depths and four num_heads of at least 1, "
                f"found {spatial_dims}, {list(image_size)}, {list(depths)}, {list(num_heads)}"
            )
        check_sides("swin_unetr", image_size, [32] * len(image_size))
        if max(image_size) == 32:  # one voxel is left at the bottom, and instance norm has nothing to norm
            raise ValueError(f"swin_unetr needs a side of at least 64 voxels, found {tuple(image_size)}")
        net = MonaiSwinUNETR(
            in_channels,
            num_classes,
            feature_size=width,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            drop_rate=dropout,
            spatial_dims=spatial_dims,
        )
        head = net.out.conv.conv
        net.out = nn.Identity()
        super().__init__("swin_unetr", net, head, [32] * spatial_dims)
