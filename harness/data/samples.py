"""Training samples in bounded memory: what fits is resident, the rest is read from the cached files when asked for.

Which samples are resident never changes what they are: batches are the same bit for bit with any budget. The first
samples stay and the others are always read, because a pass visits every sample once, in a new order each time: a cache
of the most recent ones would hold what is not asked for again for longest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.augment import onto
from harness.data.layouts import IGNORE
from harness.data.stored import Prepared
from harness.errors import BenchError
from harness.processes import free_memory

SHARE = 0.25  # of the memory that is free, where BENCH_CACHE_MB says nothing: workers share a machine


def budget(device: torch.device, beside: int = 1) -> int:
    """Bytes of samples that one training set may hold: BENCH_CACHE_MB, else a quarter of the device's free memory.

    Args:
        device: The device.
        beside: Processes that share it; more than two together take half of what is free.

    Raises:
        BenchError: BENCH_CACHE_MB is not a number of megabytes.
    """
    given = os.environ.get("BENCH_CACHE_MB", "")
    if given:
        if not given.isdecimal():
            raise BenchError(f"BENCH_CACHE_MB is {given!r}; expected a whole number of megabytes, such as 4096.")
        return int(given) * 2**20
    return int(min(SHARE, 0.5 / beside) * (_free(device) if device.type == "cuda" else free_memory()))


def _free(device: torch.device) -> int:
    """Free bytes of a GPU, with those that this process's allocator keeps for itself and does not use."""
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


def home_of(total: int, device: torch.device, limit: int | None) -> tuple[torch.device, int]:
    """Where so many bytes of samples live, and how many of them.

    Args:
        total: Bytes of all samples.
        device: Where batches are wanted; samples live there if all fit, else as many as fit in host memory.
        limit: Bytes that may be held; by default the budget of the device, and of the host where that is too small.
    """
    room = budget(device) if limit is None else limit
    if total <= room or device.type == "cpu":
        return device, room
    host = torch.device("cpu")
    return host, budget(host) if limit is None else limit


class SliceStore:
    """Slices of all cases, one after the other.

    Args:
        cases: Prepared cases of slices.
        device: Where batches are wanted.
        limit: As for `home_of`.
        labelled: Keep only slices on which a class is.

    Raises:
        BenchError: No slice is kept.
    """

    def __init__(self, cases: Sequence[Prepared], device: torch.device, limit: int | None, labelled: bool) -> None:
        self._cases, self._device = cases, device
        self.places = [(i, int(s)) for i, c in enumerate(cases) for s in _kept(c, labelled)]
        if not self.places:
            raise BenchError("no slice of the training cases has a class on it, so `keep: labelled` leaves none.")
        each = cases[0].nbytes // cases[0].shape[0]
        home, room = home_of(each * len(self.places), device, limit)
        self.resident = min(len(self.places), room // max(each, 1))
        self._all = self.resident == len(self.places) and home == device
        self._images = torch.empty((self.resident, *cases[0].shape[1:]))
        self._labels = torch.empty((self.resident, *cases[0].shape[2:]), dtype=torch.uint8)
        self._fill()
        if self._all:
            self._images, self._labels = self._images.to(device), self._labels.to(device)

    def __len__(self) -> int:
        return len(self.places)

    def _fill(self) -> None:
        done = 0
        for i, case in enumerate(self._cases):
            own = [s for j, s in self.places[done : self.resident] if j == i]
            if not own:
                continue
            self._images[done : done + len(own)] = torch.from_numpy(case.image[own])
            self._labels[done : done + len(own)] = torch.from_numpy(case.label[own])
            done += len(own)

    def take(self, picks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Slices (B, C, h, w) and labels (B, h, w) uint8 on the device."""
        if self._all:
            index = onto(torch.tensor(picks), self._device)
            return self._images[index], self._labels[index]
        images = torch.empty((len(picks), *self._images.shape[1:]))
        labels = torch.empty((len(picks), *self._labels.shape[1:]), dtype=torch.uint8)
        for row, pick in enumerate(picks):
            if pick < self.resident:
                images[row], labels[row] = self._images[pick], self._labels[pick]
                continue
            i, s = self.places[pick]
            images[row] = torch.from_numpy(self._cases[i].part("image", (s,)))
            labels[row] = torch.from_numpy(self._cases[i].part("label", (s,)))
        return onto(images, self._device), onto(labels, self._device)


class VolumeStore:
    """Whole volumes, of which windows are taken.

    Args:
        cases: Prepared cases of volumes.
        device: Where windows are wanted.
        limit: As for `home_of`.
    """

    def __init__(self, cases: Sequence[Prepared], device: torch.device, limit: int | None) -> None:
        self._cases, self._device = cases, device
        self.shapes = [tuple(c.shape[1:]) for c in cases]
        home, room = home_of(sum(c.nbytes for c in cases), device, limit)
        self._volumes: list[tuple[Tensor, Tensor] | None] = []
        self.foreground: list[list[NDArray[np.int16]]] = []
        used = 0
        for case in cases:
            label = case.label
            self.foreground.append(foreground(label))
            used += case.nbytes
            here = used <= room
            self._volumes.append(
                (torch.from_numpy(case.image).to(home), torch.from_numpy(label).to(home)) if here else None
            )
        self.resident = sum(v is not None for v in self._volumes)

    def __len__(self) -> int:
        return len(self._cases)

    def part(self, case: Prepared, name: str, pick: int, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """A window (*size) of another array of a case than image and label, read now, on the device.

        Args:
            case: The case with that array.
            name: Of an array of the label's shape.
            pick: The number of the case.
            start: First voxel of the window.
            size: Of the window; 0 where it reaches beyond the volume.
        """
        shape = self.shapes[pick]
        inside = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, size, shape, strict=True))
        found = torch.from_numpy(case.part(name, inside))
        pads = [(w.start - s, s + n - w.stop) for w, s, n in zip(inside, start, size, strict=True)]
        return onto(torch.nn.functional.pad(found, [side for pair in reversed(pads) for side in pair]), self._device)

    def window(self, pick: int, start: Sequence[int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A window of a volume (C, *size) and of its label (*size) uint8, on the device.

        Where it reaches beyond the volume the image's edge is continued and the label is background.
        """
        shape = self.shapes[pick]
        inside = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, size, shape, strict=True))
        kept = self._volumes[pick]
        if kept is not None:
            image, label = kept[0][(slice(None), *inside)], kept[1][inside]
        else:
            case = self._cases[pick]
            image = torch.from_numpy(case.part("image", (slice(None), *inside)))
            label = torch.from_numpy(case.part("label", inside))
        # kinds, not devices: "cuda" is not equal to the "cuda:0" that it means
        if image.device.type != self._device.type:
            image, label = (onto(t.contiguous(), self._device) for t in (image, label))
        if tuple(label.shape) == tuple(size):
            return image, label
        pads = [(w.start - s, s + n - w.stop) for w, s, n in zip(inside, start, size, strict=True)]
        flat = [side for pair in reversed(pads) for side in pair]
        wide = torch.nn.functional.pad(image[None], flat, mode="replicate")[0]
        return wide, torch.nn.functional.pad(label, flat)


class LabelList(Sequence[Tensor]):
    """The labels (*S) int64 of prepared cases, each read when it is asked for."""

    def __init__(self, cases: Sequence[Prepared]) -> None:
        self._cases = cases

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> LabelList: ...
    def __getitem__(self, at: int | slice) -> Tensor | LabelList:
        if isinstance(at, slice):
            return LabelList(self._cases[at])
        return torch.from_numpy(self._cases[at].label).long()

    def tensors(self, limit: int | None = None) -> Sequence[Tensor]:
        """A list of them where they fit into `limit` bytes (by default the budget), else this sequence itself."""
        room = budget(torch.device("cpu")) if limit is None else limit
        return list(self) if sum(2 * c.nbytes for c in self._cases) <= room else self


def foreground(label: NDArray[np.uint8]) -> list[NDArray[np.int16]]:
    """Voxels of each class that is there, thinned to fewer than 8,192 a class."""
    out = []
    for index in range(1, 1 + int(label[label != IGNORE].max(initial=0))):
        voxels = np.argwhere(label == index)
        if len(voxels):
            out.append(voxels[:: max(1, len(voxels) // 4096)].astype(np.int16))
    return out


def _kept(case: Prepared, labelled: bool) -> Sequence[int] | NDArray[np.intp]:
    if not labelled:
        return range(case.shape[0])
    label = case.label
    lowest = 0 if case.first_class else 1  # without a background the class 0 is one like the others
    return np.flatnonzero(((label >= lowest) & (label != IGNORE)).any(axis=(1, 2)))
