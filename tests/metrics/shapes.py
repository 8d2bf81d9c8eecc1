"""A zoo of pairs of masks: what the metrics are compared on. Every pair is small enough for brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pair:
    """A prediction and a reference, and the size of a voxel in mm, in array order."""

    name: str
    pred: Mask
    ref: Mask
    spacing: tuple[float, ...]

    @property
    def label_maps(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self.pred.astype(np.uint8), self.ref.astype(np.uint8)

    def __repr__(self) -> str:
        return f"{self.name}-{self.pred.ndim}d"


# Millimetres. The last has no common measure, so squared distances are not whole numbers of anything.
SPACINGS = {2: [(1.0, 1.0), (3.0, 0.8), (0.71, 1.37)], 3: [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.71, 1.37, 2.05)]}


def blob(shape: tuple[int, ...], seed: int, share: float) -> Mask:
    """Smoothed noise above a threshold: this share of the voxels, in ragged pieces that the border may cut."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float, hole: float = 0.0) -> Mask:
    """Voxels between two distances (in voxels) of a centre, which may lie outside of the array."""
    away = np.sqrt(sum((x - c) ** 2 for x, c in zip(np.indices(shape), centre, strict=True)))
    return (away <= radius) & (away >= hole)


def marked(shape: tuple[int, ...], *places: tuple[int | slice, ...]) -> Mask:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def parity(shape: tuple[int, ...], odd: int, box: slice) -> Mask:
    return marked(shape, (box,) * len(shape)) & (np.indices(shape).sum(0) % 2 == odd)


def _shapes(ndim: int) -> Iterator[tuple[str, Mask, Mask]]:
    """Pairs of masks that both have voxels, in either number of dimensions."""
    shape = (9, 14, 13)[3 - ndim :]
    big = (8, 40, 36)[3 - ndim :]
    every, mid = slice(None), tuple(n // 2 for n in shape)
    first, last = (0,) * ndim, (-1,) * ndim
    core = (slice(2, -2),) * ndim

    for seed in range(4):
        yield f"blobs{seed}", blob(shape, seed, 0.3), blob(shape, seed, 0.3) ^ blob(shape, seed + 50, 0.05)
    yield "blobs-apart", blob(shape, 7, 0.1), blob(shape, 8, 0.25)
    rng = np.random.default_rng(ndim)
    yield "noise", rng.random(shape) > 0.5, rng.random(shape) > 0.55
    yield "sparse", rng.random(shape) > 0.97, rng.random(shape) > 0.9

    border = ball(shape, tuple(float(n) for n in first), 5.5)
    yield "in-a-corner", border, ball(shape, (1.0,) * ndim, 6.1)
    yield "at-opposite-borders", marked(shape, (slice(0, 2),)), marked(shape, (slice(-3, None),))
    yield "border-and-inside", marked(shape, (every, slice(0, 5))), marked(shape, core)

    organ = ball(big, tuple(n * 0.3 for n in big), 6)
    grown = ball(big, tuple(n * 0.33 for n in big), 6.4)
    far = ball(big, tuple(n - 2.0 for n in big), 2)
    yield "clean", grown, organ
    yield "far-false-positive", grown | far, organ
    yield "far-miss", grown, organ | far

    yield "two-voxels", marked(shape, first), marked(shape, last)
    yield "same-voxel", marked(shape, mid), marked(shape, mid)
    yield "next-voxel", marked(shape, mid), marked(shape, (*mid[:-1], mid[-1] + 1))
    yield "voxel-and-blob", marked(shape, last), blob(shape, 11, 0.3)

    along_last = marked(shape, (*mid[:-1], every))
    yield "crossing-lines", marked(shape, (every, *mid[1:])), along_last
    yield "line-too-short", marked(shape, (*mid[:-1], slice(2, 6))), along_last
    diagonal = marked(shape, *((i,) * ndim for i in range(9)))
    yield "diagonal-line", diagonal, along_last

    yield "checkerboards", parity(shape, 0, slice(1, 8)), parity(shape, 1, slice(1, 8))
    yield "checkerboard-in-box", parity(shape, 0, slice(1, 8)), marked(shape, (slice(1, 8),) * ndim)

    centre = tuple((n - 1) / 2 for n in big)
    yield "nested-shells", ball(big, centre, 3.9, hole=2.6), ball(big, centre, 2.2, hole=0.9)
    yield "shell-and-ball", ball(big, centre, 3.9, hole=2.1), ball(big, centre, 3.4)

    yield "planes", marked(shape, (2,)), marked(shape, (6,))
    yield "crossing-planes", marked(shape, (4,)), marked(shape, (every, 6))
    disc = ball(shape, tuple(n / 2 for n in shape), 5) & marked(shape, (4,))
    yield "disc-and-ball", disc, ball(shape, tuple(n / 2 for n in shape), 4.2)

    full = np.ones(shape, bool)
    yield "full-and-core", full, marked(shape, core)
    yield "core-and-full", marked(shape, core), full
    yield "both-full", full, full
    yield "one-hole", full ^ marked(shape, mid), full
    yield "identical", blob(shape, 3, 0.4), blob(shape, 3, 0.4)


def _every_pair() -> Iterator[Pair]:
    for ndim in (2, 3):
        for i, (name, pred, ref) in enumerate(_shapes(ndim)):
            yield Pair(name, pred, ref, SPACINGS[ndim][(i + 1) % 3])
        for spacing in SPACINGS[ndim]:  # one pair with each
            pred, ref = blob((8, 12, 11)[3 - ndim :], 21, 0.35), blob((8, 12, 11)[3 - ndim :], 22, 0.3)
            yield Pair(f"blobs@{'x'.join(map(str, spacing))}", pred, ref, spacing)
    yield Pair("one-slice", blob((1, 12, 11), 31, 0.4), blob((1, 12, 11), 32, 0.3), (3.0, 0.8, 0.8))
    yield Pair("one-row", marked((1, 17), (0, slice(2, 9))), marked((1, 17), (0, slice(5, 16))), (2.0, 0.6))
    yield Pair("one-column", marked((6, 1, 1), (0,), (1,)), marked((6, 1, 1), (4,)), (2.0, 0.7, 0.9))


ZOO: list[Pair] = list(_every_pair())
"""Both masks have voxels."""

EMPTY: list[Pair] = [
    Pair(name, np.where(p, shape, False), np.where(r, shape, False), SPACINGS[shape.ndim][1])
    for shape in (blob((6, 9, 8), 1, 0.3), blob((9, 8), 1, 0.3))
    for name, p, r in (("ok", 1, 1), ("pred_empty", 0, 1), ("ref_empty", 1, 0), ("both_empty", 0, 0))
]
"""The four cases of empty masks, by their status, in 3D and 2D."""


def label_maps(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels 0 to 4 in a prediction and a reference: smooth, so that classes touch, nested where they happen to be."""
    pair = []
    for step in (0, 1):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
        noise += 0.4 * step * ndimage.gaussian_filter(np.random.default_rng(seed + 1).normal(size=shape), 1.5)
        pair.append(np.digitize(noise, np.quantile(noise, [0.4, 0.6, 0.75, 0.9])).astype(np.uint8))
    return pair[0], pair[1]
