"""Random transforms of a training batch, batched on the device.

Draws come from a CPU generator, so they are the same on every device; only noise, which takes as many numbers as there
are voxels, is drawn where it is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        image: (B, C, *S) float32.
        target: (B, *S) int64, ignored voxels 255.
        spacing: (B, D) float32, of the network's grid.
        weight: (B, *S) float32 from 0 to 1, how far each voxel's label is trusted; None where all are, or nobody asked.
    """

    image: Tensor
    target: Tensor
    spacing: Tensor
    weight: Tensor | None = None

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many parts of equal size, samples in order; `count` divides the batch."""
        if count == 1:
            return [self]
        size = len(self.image) // count
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return [
            replace(self, **{k: v[i : i + size] for k, v in given.items() if v is not None})
            for i in range(0, len(self.image), size)
        ]


def augmented(batch: Batch, how: dict[str, Any], generator: torch.Generator, outside: int = 0) -> Batch:
    """Transform images and labels together; then the values of the images.

    By default: rotate, scale, shift and flip; then gain and noise. Images are interpolated linearly, labels by the
    nearest voxel. Rotation is in the plane of the last two axes. `spacing` is not changed by scaling.

    Args:
        batch: The samples; they are left as they are.
        how: The resolved `train.augment` section; with `preset`, the recipe of that name.
        generator: Of this step, on the CPU.
        outside: Label of what turns in from beyond the image: the background, or 255 where there is none.
    """
    if outside:  # every transform brings in zeros
        moved = augmented(Batch(batch.image, batch.target - outside, batch.spacing), how, generator)
        return Batch(moved.image, moved.target + outside, moved.spacing)
    if how.get("preset") == "transunet":
        return transunet(batch, how, generator)
    if how.get("preset") == "nnunet":
        from harness.data.augment_nnunet import nnunet

        return nnunet(batch, how, generator)
    image, target = batch.image, batch.target
    count, dims = len(image), image.ndim - 2
    draw = torch.rand(count, 3 + 2 * dims, generator=generator) * 2 - 1
    if how["rotate"] or how["scale"] or how["shift"] or how["flip"]:
        grid = F.affine_grid(
            onto(_matrices(draw, how, image.shape[2:]), image.device), list(image.shape), align_corners=False
        )
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        marks = F.grid_sample(
            target[:, None].float(), grid.float(), mode="nearest", padding_mode="zeros", align_corners=False
        )
        target = marks[:, 0].long()
    if how["intensity"]:
        gain = 1 + how["intensity"] * draw[:, 1]
        image = image * onto(gain, image.device).reshape(-1, *[1] * (dims + 1))
    if how["noise"]:
        image = image + how["noise"] * torch.randn(
            image.shape, generator=where_used(generator, image.device), device=image.device
        )
    return Batch(image, target, batch.spacing)


def _matrices(draw: Tensor, how: dict[str, Any], size: torch.Size) -> Tensor:
    """Affine matrices (B, D, D + 1) in the normalised coordinates of `affine_grid` (x first)."""
    count, dims = len(draw), len(size)
    angle = draw[:, 0] * math.radians(how["rotate"])
    zoom = 1 / (1 + how["scale"] * draw[:, 2])
    # x first; in units of the half size of each axis, so that a rotation stays a rotation on oblong images
    half = torch.tensor([float(n) for n in reversed(size)])
    turn = torch.eye(dims).repeat(count, 1, 1)
    turn[:, 0, 0], turn[:, 0, 1] = angle.cos(), -angle.sin()
    turn[:, 1, 0], turn[:, 1, 1] = angle.sin(), angle.cos()
    matrix = turn * half[None, None, :] / half[None, :, None] * zoom[:, None, None]
    if how["flip"]:
        sign = torch.where(draw[:, 3 : 3 + dims] < 0, -1.0, 1.0)
        matrix = matrix * sign[:, None, :]
    shift = how["shift"] * 2 * draw[:, 3 + dims : 3 + 2 * dims]
    return torch.cat([matrix, shift[:, :, None]], dim=2)


def transunet(batch: Batch, how: dict[str, Any], generator: torch.Generator) -> Batch:
    """The augmentation of TransUNet's released code, in the plane of the last two axes.

    Half of the samples are turned by a random number of quarters and flipped along a random axis of the plane; a
    quarter is rotated by a whole number of degrees from -20 to 19, image and label by the nearest voxel and with 0
    from outside; a quarter is left alone. The quarter turns of an oblong plane are half turns; those of others turn
    the spacing too. `flip: false` leaves the flips away. There it is done before the slices are resized to the
    network's grid, here after.

    Args:
        batch: The samples.
        how: `{"preset": "transunet", "flip": ...}`.
        generator: Of this step, on the CPU.
    """
    draw = torch.rand(len(batch.image), 5, generator=generator)
    image, target, spacing = batch.image.clone(), batch.target.clone(), batch.spacing.clone()
    square = image.shape[-1] == image.shape[-2]
    turned = [i for i in range(len(draw)) if draw[i, 0] >= 0.5 and draw[i, 3] < 0.5]
    for i in (i for i in range(len(draw)) if draw[i, 0] < 0.5):
        quarters, axis = int(draw[i, 1] * 4), -2 + int(draw[i, 2] * 2)
        for whole in (image, target):
            sample = torch.rot90(whole[i], quarters if square else quarters // 2 * 2, (-2, -1))
            whole[i] = sample.flip(axis) if how.get("flip", True) else sample
        if square and quarters % 2:  # the axes change places, and so do their spacings
            spacing[i, -2:] = spacing[i, -2:].flip(0)
    if turned:
        degrees = torch.floor(draw[turned, 4] * 40) - 20
        rows = onto(torch.tensor(turned), image.device)
        image[rows], target[rows] = _rotated(image[rows], target[rows], degrees)
    return Batch(image, target, spacing)


def _rotated(image: Tensor, target: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate in the plane of the last two axes, everything by the nearest voxel."""
    still = {"rotate": 1.0, "scale": 0.0, "shift": 0.0, "flip": False}
    draw = torch.zeros(len(degrees), 3 + 2 * (image.ndim - 2))
    draw[:, 0] = degrees  # times one degree
    grid = F.affine_grid(
        onto(_matrices(draw, still, image.shape[2:]), image.device), list(image.shape), align_corners=False
    )
    both = torch.cat([image, target[:, None].to(image.dtype)], dim=1)
    both = F.grid_sample(both, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return both[:, :-1], both[:, -1].long()


def onto(values: Tensor, device: torch.device) -> Tensor:
    """Send a few numbers to the device without waiting for it: only from pinned memory is the copy asynchronous."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def where_used(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator for as many numbers as voxels: on a GPU one of its own, with the same seed."""
    return generator if device.type == "cpu" else torch.Generator(device).manual_seed(generator.initial_seed())
