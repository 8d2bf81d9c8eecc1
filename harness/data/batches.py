"""Training batches, resident on the device: order, crops and augmentation drawn from keyed generators.

Every draw is a function of (seed, step) alone: no worker count, no loss and no point of resumption changes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data.layouts import IGNORE
from harness.data.prepare import Prepared
from harness.seeds import seed_of


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        image: (B, C, *S) float32.
        target: (B, *S) int64, ignored voxels 255.
        spacing: (B, D) float32, of the network's grid.
    """

    image: Tensor
    target: Tensor
    spacing: Tensor


class TrainSet:
    """All training samples of a cell on the device.

    Args:
        cases: Prepared training cases.
        view: `{"slices": {...}}` or `{"patches": {...}}`.
        augment: The resolved `train.augment` section.
        device: Where samples live and batches are made.
    """

    def __init__(
        self, cases: list[Prepared], view: dict[str, Any], augment: dict[str, Any], device: torch.device
    ) -> None:
        self._augment = augment
        self._device = device
        self._patch: dict[str, Any] | None = view.get("patches")
        if self._patch is None:
            self._images = torch.from_numpy(np.concatenate([c.image for c in cases])).to(device)
            self._labels = torch.from_numpy(np.concatenate([c.label for c in cases])).to(device)
            per_slice = [c.grid_spacing for c in cases for _ in range(len(c.image))]
            self._spacing = torch.tensor(per_slice, dtype=torch.float32, device=device)
            self.samples = len(per_slice)
        else:
            self._volumes = [
                (torch.from_numpy(c.image).to(device), torch.from_numpy(c.label).to(device)) for c in cases
            ]
            self._spacing = torch.tensor([c.grid_spacing for c in cases], dtype=torch.float32, device=device)
            self._foreground = [_foreground(c.label) for c in cases]
            self.samples = len(cases)
        self._pass: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        """The batch of a step; the same for every loss.

        Args:
            step: Global step, from 0.
            size: Number of samples.
            base: `Cell.seed_base`.
        """
        raw = self._slices(step, size, base) if self._patch is None else self._patches(step, size, base)
        return augmented(raw, self._augment, _generator("augment", base, step))

    def _slices(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        picks = [self._place(i, base) for i in range(step * size, (step + 1) * size)]
        index = _onto(torch.tensor(picks), self._device)
        return Batch(self._images[index], self._labels[index].long(), self._spacing[index])

    def _place(self, position: int, base: dict[str, Any]) -> int:
        """The sample at a position of the endless stream of shuffled passes over the data."""
        turn, offset = divmod(position, self.samples)
        seed = seed_of("order", base, turn)  # a set serves cells of several seeds: the turn alone is no key
        if self._pass[0] != seed:
            generator = torch.Generator().manual_seed(seed)
            self._pass = (seed, torch.randperm(self.samples, generator=generator))
        return int(self._pass[1][offset])

    def _patches(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        assert self._patch is not None
        rng = np.random.Generator(np.random.PCG64(seed_of("order", base, step)))
        images, labels, picks = [], [], []
        for _ in range(size):
            pick = int(rng.integers(self.samples))
            image, label = self._volumes[pick]
            start = self._corner(rng, tuple(label.shape), self._foreground[pick])
            window = tuple(slice(s, s + n) for s, n in zip(start, self._patch["size"], strict=True))
            images.append(image[(slice(None), *window)])
            labels.append(label[window])
            picks.append(pick)
        index = _onto(torch.tensor(picks), self._device)
        return Batch(torch.stack(images), torch.stack(labels).long(), self._spacing[index])

    def _corner(self, rng: np.random.Generator, shape: tuple[int, ...], foreground: list[np.ndarray]) -> list[int]:
        assert self._patch is not None
        room = [n - p for n, p in zip(shape, self._patch["size"], strict=True)]
        if rng.random() < self._patch["foreground"] and foreground:
            voxels = foreground[int(rng.integers(len(foreground)))]
            centre = voxels[int(rng.integers(len(voxels)))]
            return [int(np.clip(c - p // 2, 0, r)) for c, p, r in zip(centre, self._patch["size"], room, strict=True)]
        return [int(rng.integers(r + 1)) for r in room]


def augmented(batch: Batch, how: dict[str, Any], generator: torch.Generator) -> Batch:
    """Rotate, scale, shift and flip images and labels together; then gain and noise on the images.

    Draws but the noise come from a CPU generator, so they are the same on every device; images are interpolated
    linearly, labels by the nearest voxel. Rotation is in the plane of the last two axes. `spacing` is not changed by
    scaling.
    """
    image, target = batch.image, batch.target
    count, dims = len(image), image.ndim - 2
    draw = torch.rand(count, 3 + 2 * dims, generator=generator) * 2 - 1
    if how["rotate"] or how["scale"] or how["shift"] or how["flip"]:
        grid = F.affine_grid(
            _onto(_matrices(draw, how, image.shape[2:]), image.device), list(image.shape), align_corners=False
        )
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        marks = F.grid_sample(
            target[:, None].float(), grid.float(), mode="nearest", padding_mode="zeros", align_corners=False
        )
        target = marks[:, 0].long()
    if how["intensity"]:
        gain = 1 + how["intensity"] * draw[:, 1]
        image = image * _onto(gain, image.device).reshape(-1, *[1] * (dims + 1))
    if how["noise"]:
        if image.device.type != "cpu":  # as many numbers as voxels: drawn where they are used
            generator = torch.Generator(image.device).manual_seed(generator.initial_seed())
        image = image + how["noise"] * torch.randn(image.shape, generator=generator, device=image.device)
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


def _foreground(label: np.ndarray) -> list[np.ndarray]:
    """Voxels of each class that is there, thinned to fewer than 8,192 a class."""
    out = []
    for index in range(1, IGNORE):
        if index > int(label[label != IGNORE].max(initial=0)):
            break
        voxels = np.argwhere(label == index)
        if len(voxels):
            out.append(voxels[:: max(1, len(voxels) // 4096)])
    return out


def _onto(values: Tensor, device: torch.device) -> Tensor:
    """Send a few numbers to the device without waiting for it: only from pinned memory is the copy asynchronous."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def _generator(stream: str, base: dict[str, Any], key: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(stream, base, key))
