"""nnU-Net's rules: from a data set's median shape and spacing to patch, batch and the shape of the network.

The rules are of version 1 (Isensee et al., 2021, Nature Methods 18, supplementary note 2), whose three published
plans a test compares with. No torch here: plans and fingerprints read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Elements of all feature maps of a network of 30 channels that filled the authors' graphics card, at a batch of 2.
BUDGET_3D, BATCH_3D = 520_000_000, 2
BUDGET_2D, BATCH_2D = 19_739_648, 50
FILTERS = {2: 512, 3: 320}  # no stage is wider
PLANNED_WIDTH = 30  # channels that memory is counted with; the published networks have 32, which is faster
MIN_EDGE = 4  # of the feature maps at the bottom
SHARE = 0.05  # of the data set's voxels that a batch may hold
CONVOLUTIONS = 2  # a stage
EXTENT = 512  # voxels of the shortest side that planning starts from


@dataclass(frozen=True)
class Topology:
    """Shape of a network.

    Attributes:
        patch: Size of its input, divisible by what the poolings ask for.
        pools: Poolings of each axis.
        strides: Factors of every pooling, the first one first; one shorter than `kernels`.
        kernels: Convolution kernels of every stage, the bottom last.
    """

    patch: tuple[int, ...]
    pools: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """A network and its batch.

    Attributes:
        topology: Patch, poolings and kernels.
        batch: Patches a batch.
        shape: Median shape of the data set on the network's grid.
        spacing: Of that grid, mm.
    """

    topology: Topology
    batch: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of the network's input."""
        return self.topology.patch


def topology(size: Sequence[int], spacing: Sequence[float], min_edge: int = MIN_EDGE) -> Topology:
    """Poolings and kernels for a size.

    Each axis is halved as often as leaves `min_edge` voxels; axes with fewer poolings join late, so that the first
    poolings are of the longest axes. While the voxels of a stage are at most half as long along some axis as those of
    the input along its coarsest, kernels have length 1 along the axes where they are longer.

    Args:
        size: Of the input; it is padded up to what the poolings divide.
        spacing: Of the network's grid, in the order of `size`; its unit does not matter.
        min_edge: Voxels of the shortest side at the bottom.

    Raises:
        ValueError: Size and spacing have not the same 2 or 3 axes, or hold something not above 0.
    """
    dims = len(size)
    if dims not in (2, 3) or len(spacing) != dims or min([*size, *spacing]) <= 0:
        raise ValueError(f"expected a size and a spacing of 2 or 3 axes above 0, found {list(size)}, {list(spacing)}")
    pools = [max(0, math.floor(math.log2(n / min_edge))) for n in size]
    longest = max(spacing)
    here = [float(s) for s in spacing]
    strides, kernels = [], []
    for step in range(max(pools)):
        fine = [s / longest <= 0.5 for s in here]
        kernels.append(tuple(3 if f or not any(fine) else 1 for f in fine))
        strides.append(tuple(2 if n + step >= max(pools) else 1 for n in pools))
        here = [s * f for s, f in zip(here, strides[-1], strict=True)]
    kernels.append((3,) * dims)
    patch = tuple(-(-int(n) // 2**p) * 2**p for n, p in zip(size, pools, strict=True))
    return Topology(patch, tuple(pools), tuple(strides), tuple(kernels))


def memory(net: Topology, width: int, limit: int, channels: int, classes: int) -> int:
    """Elements of all feature maps for one patch: what the memory of training is proportional to.

    Args:
        net: The network's shape.
        width: Channels of its first stage; they double to `limit`.
        limit: Channels of its widest stage.
        channels: Of the image.
        classes: With background.
    """
    sides = list(net.patch)
    # two convolutions down, two up, and the transposed one
    total = math.prod(sides) * ((2 * CONVOLUTIONS + 1) * width + channels + classes)
    for i, factors in enumerate(net.strides):
        sides = [n // f for n, f in zip(sides, factors, strict=True)]
        width = min(2 * width, limit)
        bottom = i == len(net.strides) - 1
        total += math.prod(sides) * width * (CONVOLUTIONS if bottom else 2 * CONVOLUTIONS + 1)
    return total


def plan(
    shape: Sequence[float],
    spacing: Sequence[float],
    cases: int,
    *,
    channels: int = 1,
    classes: int = 2,
    min_edge: int = MIN_EDGE,
) -> Plan:
    """Plan the network for a data set, in 2D or 3D.

    In 3D the patch starts as a cube in mm, cut to the median shape; the side that is longest relative to the median
    shape shrinks until the feature maps fit; what is left of the memory makes the batch, of at least 2 patches and at
    most 5 % of the data set's voxels. In 2D the patch is the median slice.

    Args:
        shape: Median shape of the training cases on the network's grid; (z, y, x) or (y, x).
        spacing: Of that grid, mm, in the same order.
        cases: Training cases; in 2D their slices.
        channels: Of the image.
        classes: With background.
        min_edge: Voxels of the shortest side at the bottom.

    Raises:
        ValueError: Shape and spacing have not the same 2 or 3 axes, or hold something not above 0.
    """
    median = [max(1, round(n)) for n in shape]
    dims = len(median)
    start = [min(n, round(EXTENT * max(spacing) / s)) for n, s in zip(median, spacing, strict=True)]
    net = topology(start if dims == 3 else median, spacing, min_edge)
    width, limit = PLANNED_WIDTH, FILTERS[dims]
    if dims == 2:
        batch = math.floor(BUDGET_2D / memory(net, width, limit, channels, classes) * BATCH_2D)
    else:
        while memory(net, width, limit, channels, classes) > BUDGET_3D:
            net = _smaller(net, median, spacing, min_edge)
        batch = math.floor(max(BUDGET_3D / memory(net, width, limit, channels, classes), 1) * BATCH_3D)
    most = max(2, round(SHARE * math.prod(median) * cases / math.prod(net.patch)))
    return Plan(net, max(2, min(batch, most)), tuple(median), tuple(float(s) for s in spacing))


def _smaller(net: Topology, median: Sequence[int], spacing: Sequence[float], min_edge: int) -> Topology:
    """The next smaller network: by one step along the axis that covers most of the median shape, the last of equals."""
    covered = [n / m for n, m in zip(net.patch, median, strict=True)]
    axis = max(range(len(covered)), key=lambda i: (covered[i], i))
    tried = list(net.patch)
    tried[axis] -= 2 ** net.pools[axis]
    step = 2 ** topology(tried, spacing, min_edge).pools[axis]  # fewer poolings divide it into smaller steps
    size = list(net.patch)
    size[axis] -= step
    return topology(size, spacing, min_edge)
