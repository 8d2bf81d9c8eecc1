"""Training batches: order, crops and augmentation drawn from keyed generators.

Every draw is a function of (seed, step) alone: no worker count, no loss and no point of resumption changes it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.augment import Batch as Batch
from harness.data.augment import augmented as augmented
from harness.data.augment import onto
from harness.data.augment_nnunet import Spatial, valued
from harness.data.degrade import WHOLE, with_doubt
from harness.data.layouts import IGNORE
from harness.data.samples import SliceStore, VolumeStore
from harness.data.stored import Prepared, Relabelled
from harness.seeds import seed_of

_LABELS = 256  # values of a label; what stands above them in a target is the doubt of its voxel


class TrainSet:
    """All training samples of a cell: on the device as far as a stated number of bytes, beyond it read from disk.

    Args:
        cases: Prepared training cases.
        view: `{"slices": {...}}` or `{"patches": {...}}`.
        augment: The resolved `train.augment` section.
        device: Where batches are made.
        limit: Bytes of samples that may be held; by default BENCH_CACHE_MB, else a quarter of the free memory.
    """

    def __init__(
        self,
        cases: Sequence[Prepared],
        view: dict[str, Any],
        augment: dict[str, Any],
        device: torch.device,
        limit: int | None = None,
    ) -> None:
        self._cases = cases
        self._doubts: list[Prepared] | None = None
        self._augment = augment
        self._device = device
        self._patch: dict[str, Any] | None = view.get("patches")
        if self._patch is None:
            self._store = SliceStore(cases, device, limit, view["slices"].get("keep") == "labelled")
            spacing = [cases[i].grid_spacing for i, _ in self._store.places]
            self.samples, self.resident = len(self._store), self._store.resident
        else:
            self._volumes = VolumeStore(cases, device, limit)
            spacing = [c.grid_spacing for c in cases]
            self.samples, self.resident = len(self._volumes), self._volumes.resident
        self._outside = IGNORE if any(c.first_class for c in cases) else 0
        self._spacing = torch.tensor(spacing, dtype=torch.float32, device=device)
        self._pass: tuple[int, Tensor] = (-1, torch.empty(0))

    def weighted(self) -> TrainSet:
        """The same samples with `Batch.weight`, where the labels are in doubt; else this set itself.

        Images and targets stay the same bit for bit: the doubt rides on the target through every transform, and what
        turns in from beyond the image is as certain as it is without a doubt.
        """
        if self._doubts is not None or not any(isinstance(c, Relabelled) and not c.certain for c in self._cases):
            return self
        other = copy.copy(self)  # the samples themselves are shared
        other._doubts = [with_doubt(c) for c in self._cases]
        return other

    def batch(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        """The batch of a step; the same for every loss.

        Args:
            step: Global step, from 0.
            size: Number of samples.
            base: `Cell.seed_base`.
        """
        batch = self._batch(step, size, base)
        if self._doubts is None:
            return batch
        weight = 1 - (batch.target // _LABELS).float() / WHOLE
        return Batch(batch.image, batch.target % _LABELS, batch.spacing, weight)

    def _batch(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        generator = _generator("augment", base, step)
        if self._patch is None:
            return augmented(self._slices(step, size, base), self._augment, generator, self._outside)
        if self._augment.get("preset") != "nnunet":
            return augmented(self._patches(step, size, base), self._augment, generator, self._outside)
        spatial = Spatial.drawn(self._patch["size"], size, generator)
        return valued(self._patches(step, size, base, spatial), self._augment, generator, flat=spatial.flat)

    def _slices(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        picks = [self._place(i, base) for i in range(step * size, (step + 1) * size)]
        images, labels = self._store.take(picks)
        target = labels.long()
        if self._doubts is not None:
            places = [self._store.places[pick] for pick in picks]
            doubts = torch.stack([torch.from_numpy(self._doubts[i].part("doubt", (s,))) for i, s in places])
            target = target + _LABELS * onto(doubts, self._device).long()
        return Batch(images, target, self._spacing[onto(torch.tensor(picks), self._device)])

    def _place(self, position: int, base: dict[str, Any]) -> int:
        """The sample at a position of the endless stream of shuffled passes over the data."""
        turn, offset = divmod(position, self.samples)
        seed = seed_of("order", base, turn)  # a set serves cells of several seeds: the turn alone is no key
        if self._pass[0] != seed:
            generator = torch.Generator().manual_seed(seed)
            self._pass = (seed, torch.randperm(self.samples, generator=generator))
        return int(self._pass[1][offset])

    def _patches(self, step: int, size: int, base: dict[str, Any], spatial: Spatial | None = None) -> Batch:
        """Random patches; those that are turned are cut with a margin, so that what turns in is image and not edge."""
        assert self._patch is not None
        rng = np.random.Generator(np.random.PCG64(seed_of("order", base, step)))
        images, labels, picks = [], [], []
        for i in range(size):
            pick = int(rng.integers(self.samples))
            start = self._corner(rng, self._volumes.shapes[pick], self._volumes.foreground[pick])
            reach = self._patch["size"] if spatial is None else spatial.reach(i)
            start = [s - (r - n) // 2 for s, r, n in zip(start, reach, self._patch["size"], strict=True)]
            image, label = self._volumes.window(pick, start, reach)
            target = label.long()
            if self._doubts is not None:
                doubts = self._volumes.part(self._doubts[pick], "doubt", pick, start, reach)
                target = target + _LABELS * doubts.long()
            if spatial is not None:
                image, target = spatial.applied(i, image, target)
            images.append(image)
            labels.append(target)
            picks.append(pick)
        index = onto(torch.tensor(picks), self._device)
        return Batch(torch.stack(images), torch.stack(labels), self._spacing[index])

    def _corner(
        self, rng: np.random.Generator, shape: tuple[int, ...], foreground: Sequence[NDArray[np.int16]]
    ) -> list[int]:
        assert self._patch is not None
        room = [n - p for n, p in zip(shape, self._patch["size"], strict=True)]
        if rng.random() < self._patch["foreground"] and foreground:
            voxels = foreground[int(rng.integers(len(foreground)))]
            centre = voxels[int(rng.integers(len(voxels)))].tolist()
            return [int(np.clip(c - p // 2, 0, r)) for c, p, r in zip(centre, self._patch["size"], room, strict=True)]
        return [int(rng.integers(r + 1)) for r in room]


def _generator(stream: str, base: dict[str, Any], key: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(stream, base, key))
