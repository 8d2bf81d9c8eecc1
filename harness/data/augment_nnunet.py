"""nnU-Net's augmentation (Isensee et al., 2021, supplementary note 4; probabilities and ranges of its released code).

In this order, each with its probability per sample: rotation 0.2 and scaling 0.2, noise 0.1, blur 0.2, brightness 0.15,
contrast 0.15, low resolution 0.25, gamma of the inverted image 0.1, gamma 0.3, a mirror along each axis 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data.augment import Batch, onto, where_used

P_ROTATE, P_SCALE, SCALES = 0.2, 0.2, (0.7, 1.4)
P_NOISE, NOISE = 0.1, 0.1  # largest SD (the released code draws what it calls a variance and uses it as the SD)
P_BLUR, BLUR = 0.2, (0.5, 1.0)  # SD in voxels
P_BRIGHT, P_CONTRAST, FACTORS = 0.15, 0.15, (0.75, 1.25)
P_COARSE, COARSE = 0.25, (0.5, 1.0)
P_GAMMA_INVERTED, P_GAMMA, GAMMAS = 0.1, 0.3, (0.7, 1.5)
P_CHANNEL = 0.5  # of those that are blurred or coarsened, each channel by itself
P_MIRROR = 0.5
ANISOTROPY = 3  # of the patch: beyond it everything spatial stays in the plane of the last two axes
RADIUS = 4  # of the blur's kernel: four times its largest SD
REACH = 0.85  # what the released code divides the patch by for the margin of zooms; beyond it the edge is continued


@dataclass(frozen=True)
class Spatial:
    """Rotations and scalings of a batch: drawn before its patches are cut, so that a turned patch is cut with a margin.

    Attributes:
        size: Of the patch.
        angles: (B, 3) or (B, 1) radians: about each axis in 3D; in 2D, and of flat patches, in the last plane.
        zooms: (B,) factors on the coordinates: above 1 shows more, smaller.
        flat: Of a volume, only the plane of the last two axes is turned and zoomed.
        largest: The largest angle that can be drawn.
    """

    size: tuple[int, ...]
    angles: Tensor
    zooms: Tensor
    flat: bool
    largest: float

    @classmethod
    def drawn(cls, size: Sequence[int], count: int, generator: torch.Generator) -> Spatial:
        """Draw for `count` patches of a size."""
        dims = len(size)
        flat = dims == 3 and max(size) > ANISOTROPY * size[0]
        plane = size[-2:]
        turned = 15.0 if dims == 2 and max(plane) > 1.5 * min(plane) else 180.0  # in the plane
        degrees = 30.0 if dims == 3 and not flat else turned
        draw = torch.rand(count, 6, generator=generator)
        largest = math.radians(degrees)
        angles = (draw[:, 2:5] * 2 - 1) * largest * (draw[:, :1] < P_ROTATE)
        low, high = SCALES
        zooms = torch.where(draw[:, 1] < P_SCALE, low + (high - low) * draw[:, 5], torch.ones(()))
        return cls(tuple(size), angles if dims == 3 and not flat else angles[:, :1], zooms, flat, largest)

    def moves(self, i: int) -> bool:
        """Whether a sample is turned or zoomed."""
        return bool(self.angles[i].any()) or float(self.zooms[i]) != 1.0

    def reach(self, i: int) -> tuple[int, ...]:
        """The size to cut a sample with: the patch, or with room for its turns."""
        if not self.moves(i):
            return self.size
        angle = min(self.largest, math.pi / 2)
        planes = [(1, 2)] if self.flat else [(a, b) for a in range(len(self.size)) for b in range(a)]
        wide = [float(n) for n in self.size]
        for a, b in planes:  # the box around the patch, turned in one plane; at most its diagonal
            for this, other in ((a, b), (b, a)):
                best = min(angle, math.atan2(self.size[other], self.size[this]))
                wide[this] = max(wide[this], self.size[this] * math.cos(best) + self.size[other] * math.sin(best))
        grown = [math.ceil(w / REACH) for w in wide]
        return (self.size[0], *grown[1:]) if self.flat else tuple(grown)

    def applied(self, i: int, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Turn and zoom one sample and cut the patch from its middle.

        Args:
            i: Its place in the batch.
            image: (C, *R), of the size `reach` or of the patch.
            target: (*R) int64.

        Returns:
            (C, *S) linearly interpolated, with the edge continued; (*S) by the nearest voxel, with 0 from outside.
        """
        if not self.moves(i):
            return image, target
        dims = image.ndim - 1
        half = torch.tensor([float(n) for n in reversed(image.shape[1:])])
        patch = torch.tensor([float(n) for n in reversed(self.size)])
        turn = self._turn(i, dims) * patch[None, :] / half[:, None]
        theta = torch.cat([turn, torch.zeros(dims, 1)], dim=1)[None]
        grid = F.affine_grid(onto(theta, image.device), [1, 1, *self.size], align_corners=False)
        image = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        marks = F.grid_sample(
            target[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
        )
        return image, marks[0, 0].long()

    def _turn(self, i: int, dims: int) -> Tensor:
        """Rotation times zoom, in voxels, (x, y, z) order."""
        zoom = float(self.zooms[i])
        if dims == 2 or self.flat:
            turn = torch.eye(dims)
            turn[:2, :2] = _plane(float(self.angles[i, 0])) * zoom
            return turn
        turn = torch.eye(3) * zoom
        for axis in range(3):
            kept = [a for a in range(3) if a != axis]
            one = torch.eye(3)
            one[torch.tensor(kept)[:, None], torch.tensor(kept)] = _plane(float(self.angles[i, axis]))
            turn = turn @ one
        return turn


def nnunet(batch: Batch, how: dict[str, Any], generator: torch.Generator) -> Batch:
    """All of nnU-Net's augmentation, of patches that were cut without a margin.

    Args:
        batch: The samples; they are left as they are.
        how: `{"preset": "nnunet", "flip": ...}`; `flip: false` leaves the mirrors away.
        generator: Of this step, on the CPU.
    """
    spatial = Spatial.drawn(batch.image.shape[2:], len(batch.image), generator)
    moved = [spatial.applied(i, batch.image[i], batch.target[i]) for i in range(len(batch.image))]
    image, target = (torch.stack([m[k] for m in moved]) for k in (0, 1))
    return valued(Batch(image, target, batch.spacing), how, generator, flat=spatial.flat)


def valued(batch: Batch, how: dict[str, Any], generator: torch.Generator, *, flat: bool) -> Batch:
    """What follows the turns: everything on the values of the images, then the mirrors.

    Args:
        batch: The samples; they are left as they are.
        how: As for `nnunet`.
        generator: The one that the turns were drawn from.
        flat: Low resolution is simulated in the plane of the last two axes alone.
    """
    image, target = batch.image.clone(), batch.target.clone()
    count, channels, dims = len(image), image.shape[1], image.ndim - 2
    whether = torch.rand(count, 7 + dims, generator=generator)
    draws = torch.rand(count, channels, 11 + dims, generator=generator)
    sd = torch.rand(count, 1, generator=generator) * NOISE
    source = where_used(generator, image.device)

    def noisy(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return x + _column(sd[rows], x) * torch.randn(x.shape, generator=source, device=x.device)

    def blurred(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return _chosen(u[..., 0] < P_CHANNEL, blur(x, _between(u[..., 11:], BLUR)), x)

    def brighter(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return x * _column(_around_one(u[..., 1:3], FACTORS), x)

    def contrasted(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return contrast(x, _around_one(u[..., 3:5], FACTORS))

    def coarse(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return _chosen(u[..., 5] < P_CHANNEL, coarsened(x, _between(u[..., 6], COARSE), flat=flat), x)

    def dark(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return -gamma(-x, _around_one(u[..., 7:9], GAMMAS))

    def light(x: Tensor, rows: list[int], u: Tensor) -> Tensor:
        return gamma(x, _around_one(u[..., 9:11], GAMMAS))

    shares = (P_NOISE, P_BLUR, P_BRIGHT, P_CONTRAST, P_COARSE, P_GAMMA_INVERTED, P_GAMMA)
    for i, change in enumerate((noisy, blurred, brighter, contrasted, coarse, dark, light)):
        rows = (whether[:, i] < shares[i]).nonzero()[:, 0].tolist()
        if rows:
            at = onto(torch.tensor(rows), image.device)
            image[at] = change(image[at], rows, draws[rows])
    for axis in range(dims if how.get("flip", True) else 0):
        rows = (whether[:, 7 + axis] < P_MIRROR).nonzero()[:, 0].tolist()
        if rows:
            at = onto(torch.tensor(rows), image.device)
            image[at], target[at] = image[at].flip(2 + axis), target[at].flip(1 + axis)
    return Batch(image, target, batch.spacing)


def blur(image: Tensor, sd: Tensor) -> Tensor:
    """Gaussian blur of every channel, along each axis with an SD of its own; the edge is continued.

    Args:
        image: (B, C, *S).
        sd: (B, C, D) in voxels.
    """
    count, channels, *size = image.shape
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32)
    for axis, n in enumerate(size):
        kernel = torch.exp(-0.5 * (places / sd[..., axis, None]) ** 2)
        kernel = onto(kernel / kernel.sum(-1, keepdim=True), image.device).reshape(count * channels, 1, -1)
        lines = image.movedim(2 + axis, -1)
        flat = F.pad(lines.reshape(1, count * channels, -1, n), (RADIUS, RADIUS, 0, 0), mode="replicate")
        mixed = F.conv2d(flat, kernel[:, :, None, :], groups=count * channels)
        image = mixed.reshape(lines.shape).movedim(-1, 2 + axis)
    return image


def contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Stretch the values of each channel about their mean by a factor (B, C), within the range that they had."""
    values = image.flatten(2)
    mean = _column(values.mean(-1), image)
    stretched = (image - mean) * _column(factor, image) + mean
    return stretched.clamp(_column(values.amin(-1), image), _column(values.amax(-1), image))


def coarsened(image: Tensor, scale: Tensor, *, flat: bool) -> Tensor:
    """Take each channel down to a share (B, C) of its voxels along each axis, by the nearest, and linearly up again.

    With `flat` the first axis of a volume stays as it is.
    """
    size = image.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    out = torch.empty_like(image)
    for b, c in ((b, c) for b in range(len(image)) for c in range(image.shape[1])):
        small = [max(1, round(n * float(scale[b, c]))) for n in size]
        if flat:
            small[0] = size[0]
        low = F.interpolate(image[b, c][None, None], size=small, mode="nearest-exact")
        out[b, c] = F.interpolate(low, size=list(size), mode=mode, align_corners=False)[0, 0]
    return out


def gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """Raise each channel, scaled to [0, 1], to an exponent (B, C); its mean and SD are kept."""
    values = image.flatten(2)
    low = _column(values.amin(-1), image)
    span = (_column(values.amax(-1), image) - low).clamp(min=1e-7)
    bent = ((image - low) / span) ** _column(exponent, image) * span + low
    after = bent.flatten(2)
    ratio = values.std(-1, unbiased=False) / after.std(-1, unbiased=False).clamp(min=1e-7)
    return (bent - _column(after.mean(-1), image)) * _column(ratio, image) + _column(values.mean(-1), image)


def _between(uniform: Tensor, span: tuple[float, float]) -> Tensor:
    return span[0] + (span[1] - span[0]) * uniform


def _around_one(uniform: Tensor, span: tuple[float, float]) -> Tensor:
    """Half of the draws between the lower end and 1, half between 1 and the upper end."""
    below, above = _between(uniform[..., 1], (span[0], 1.0)), _between(uniform[..., 1], (1.0, span[1]))
    return torch.where(uniform[..., 0] < 0.5, below, above)


def _column(values: Tensor, image: Tensor) -> Tensor:
    """(B, C) or (B, 1) on the image's device, with an axis for each of its spatial ones."""
    there = values if values.device == image.device else onto(values, image.device)
    return there.reshape(*values.shape, *[1] * (image.ndim - 2))


def _chosen(where: Tensor, changed: Tensor, image: Tensor) -> Tensor:
    return torch.where(_column(where, image), changed, image)


def _plane(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]])
