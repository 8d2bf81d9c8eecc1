"""nnU-Net's network: MONAI's blocks, put together by nnU-Net's rules."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from harness.models._blocks import check_sides, in_float32
from harness.models.nnunet_plan import FILTERS, MIN_EDGE, topology
from harness.models.output import Output


class NNUNet(nn.Module):
    """The U-Net of nnU-Net (Isensee et al., 2021), shaped by the size and the spacing of its input.

    Two convolutions with instance norm and leaky ReLU (0.01) per stage, strided convolutions down, transposed ones up,
    a 1×1 head at full resolution and, in training, at each lower one but the two lowest, for deep supervision.
    Poolings and kernels follow `harness.models.nnunet_plan`. Unlike the authors' the heads have a bias and the
    convolutions before a norm have none, which changes nothing that the network can express.

    31.2 M parameters with a patch of 128³, 1 channel and 2 classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes with background.
        image_size: Size of the input that the network is shaped for.
        spatial_dims: 2 or 3.
        spacing: Of the network's grid, in the order of `image_size`; left out, voxels count as cubes.
        width: Channels of the first stage; each further stage doubles them.
        max_width: Channels of the widest stages; 512 in 2D and 320 in 3D.
        min_edge: Sides are halved while this many voxels are left.

    Raises:
        ValueError: `image_size` is not divisible by its poolings, or too small for two of them.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: Sequence[int],
        spatial_dims: int = 3,
        spacing: Sequence[float] | None = None,
        width: int = 32,
        max_width: int | None = None,
        min_edge: int = MIN_EDGE,
    ) -> None:
        super().__init__()
        if spatial_dims != len(image_size) or width < 1 or min_edge < 1:
            raise ValueError(
                "expected a size of spatial_dims axes, and width and min_edge of at least 1, "
                f"found {spatial_dims}, {list(image_size)}, {width}, {min_edge}"
            )
        shape = topology(image_size, spacing or [1.0] * spatial_dims, min_edge)
        self.divisors = [2**n for n in shape.pools]
        if shape.patch != tuple(image_size):
            check_sides("nnunet", image_size, self.divisors, f"take {list(shape.patch)}")
        if len(shape.strides) < 2:
            raise ValueError(f"nnunet needs a side of at least {4 * min_edge} voxels, found {tuple(image_size)}")
        supervised = len(shape.strides) - 2
        limit = FILTERS[spatial_dims] if max_width is None else max_width
        net = DynUNet(
            spatial_dims,
            in_channels,
            num_classes,
            kernel_size=shape.kernels,
            strides=[(1,) * spatial_dims, *shape.strides],
            upsample_kernel_size=shape.strides,
            filters=[min(width * 2**i, limit) for i in range(len(shape.kernels))],
            deep_supervision=supervised > 0,
            deep_supr_num=max(1, supervised),
        )
        self.encoder = nn.ModuleList([net.input_block, *net.downsamples, net.bottleneck])
        self.decoder = nn.ModuleList(net.upsamples)  # the lowest first
        self.head: nn.Module = net.output_block.conv.conv
        lower = net.deep_supervision_heads if supervised else []
        self.lower_heads = nn.ModuleList(block.conv.conv for block in lower)  # the finest first

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, *S) of an embedding (B, width, *S), in float32 also inside autocast."""
        return in_float32(self.head, embedding)

    def forward(self, image: Tensor) -> Output:
        """Segment images (B, in_channels, *S); in training with `aux`, logits at 1/2, 1/4, ... of the resolution.

        Raises:
            ValueError: A side of the image is not divisible by its poolings.
        """
        check_sides("nnunet", image.shape[2:], self.divisors)
        skips: list[Tensor] = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        aux: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[len(self.decoder) - 1 - level](x, skips[level])
            if self.training and 0 < level <= len(self.lower_heads):
                aux.insert(0, in_float32(self.lower_heads[level - 1], x))
        return Output(self.classify(x), x, self.classify, aux or None)
