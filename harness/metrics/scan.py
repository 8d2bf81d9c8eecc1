"""One pass over two label volumes: which labels meet in how many voxels, and the surface voxels of every class.

Everything that grows with the volume happens here; overlap and distances are made from the result alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.surface import Cloud

IntArray = NDArray[np.integer[Any]]
Codes = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Classes:
    """The classes to measure, in terms of codes 0..K-1 of the known label values, ascending; background is code 0.

    Attributes:
        names: Names of the classes.
        members: Codes of each class; a region has several.
        lut: Code of each label value, shape (largest known value + 1,); K where the value is unknown.
        size: K.
        ignore: Code of the ignored reference label.
        layers: Number of the class + 1 of each code, or 0, shape (K + 1,) each; the classes of a layer share no code.
        plain: Whether label values are their own codes.
    """

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    lut: NDArray[np.uint16]
    size: int
    ignore: int | None
    layers: tuple[NDArray[np.uint16], ...]
    plain: bool

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[int]], ignore: int | None) -> Classes:
        """From the label values of each class and the ignored reference value."""
        values = sorted({0, *(v for known in labels.values() for v in known), *([] if ignore is None else [ignore])})
        size = len(values)
        lut = np.full(values[-1] + 1, size, np.uint16)
        lut[values] = np.arange(size)
        members = tuple(tuple(int(lut[v]) for v in known) for known in labels.values())
        layers: list[NDArray[np.uint16]] = []
        for number, codes in enumerate(members, start=1):
            free = next((layer for layer in layers if not layer[list(codes)].any()), None)
            if free is None:
                layers.append(free := np.zeros(size + 1, np.uint16))
            free[list(codes)] = number
        plain = values == list(range(size))
        return cls(
            tuple(labels), members, lut, size, None if ignore is None else int(lut[ignore]), tuple(layers), plain
        )


@dataclass(frozen=True)
class Scan:
    """What one pass gives.

    Attributes:
        joint: Voxels by (code in the prediction, code in the reference), shape (K + 1, K + 1); the last row and column
            are label values that are not known. Ignored voxels are counted too.
        clouds: Surface voxels of each class in the prediction and in the reference, either of them empty where the mask
            is; none if they were not asked for.
    """

    joint: NDArray[np.int64]
    clouds: list[tuple[Cloud, Cloud]]


def scan(pred: IntArray, ref: IntArray, classes: Classes, surfaces: bool) -> Scan:
    """Count pairs of labels and collect surface voxels, slice by slice along the first axis.

    A slice fits the processor's cache, and rows without a label are left out, so the pass costs little more than
    reading the two volumes. Only slices are copied.

    Args:
        pred: Integer labels, shape (z, y, x) or (y, x), none above the last index of `classes.lut`.
        ref: The same for the reference. A voxel of the ignored label belongs to no mask.
        classes: What to measure.
        surfaces: Whether to collect surface voxels.
    """
    flat = pred.ndim == 2
    if flat:
        pred, ref = pred[None], ref[None]
    pair = _Pair(pred, ref, classes)
    width = classes.size + 1
    background = any(layer[0] for layer in classes.layers)
    joint = np.zeros(width * width, np.int64)
    found = [_Found([], []) for _ in range(2 * len(classes.layers))]
    for z in range(len(pred)):
        p, r = pair.codes(z)
        at = np.flatnonzero((p | r) != 0)
        joint[0] += p.size - at.size  # background in both: most of a volume
        if not at.size and not background:
            continue
        joint += np.bincount(p.ravel()[at].astype(np.intp) * width + r.ravel()[at], minlength=width * width)
        if surfaces:
            rows = slice(None) if background else slice(int(at[0]) // p.shape[1], int(at[-1]) // p.shape[1] + 1)
            for i in range(len(classes.layers)):
                for side in (0, 1):
                    _collect(found[2 * i + side], [pair.layer(z + k, i)[side] for k in (-1, 0, 1)], rows, z, flat)
    clouds = _by_class(found, len(classes.names)) if surfaces else []
    return Scan(joint.reshape(width, width), clouds)


class _Pair:
    """Slices of both volumes as codes, and as numbers of classes; the last three are kept."""

    def __init__(self, pred: IntArray, ref: IntArray, classes: Classes) -> None:
        self._volumes, self._classes = (pred, ref), classes
        small = np.uint8 if classes.size < 255 and len(classes.names) < 255 else np.uint16
        self._lut: Codes = classes.lut.astype(small)
        self._layers: list[Codes] = [layer.astype(small) for layer in classes.layers]
        # label values that are numbers of classes already, as in most data sets, are read in place
        self._same = [classes.plain and np.array_equal(layer[:-1], np.arange(classes.size)) for layer in classes.layers]
        self._kept: dict[tuple[int, int], tuple[Codes, Codes]] = {}

    def codes(self, z: int) -> tuple[Codes, Codes]:
        return self._keep(z, -1, lambda: (self._coded(self._volumes[0][z]), self._coded(self._volumes[1][z])))

    def layer(self, z: int, number: int) -> tuple[Codes | None, Codes | None]:
        """Numbers of classes (0: none) of one slice; None beyond the volume."""
        if not 0 <= z < len(self._volumes[0]):
            return None, None
        return self._keep(z, number, lambda: self._layered(z, number))

    def _keep(self, z: int, number: int, make: Any) -> tuple[Codes, Codes]:
        if (z, number) not in self._kept:
            self._kept = {key: value for key, value in self._kept.items() if key[0] >= z - 2}
            self._kept[z, number] = make()
        return self._kept[z, number]

    def _coded(self, labels: IntArray) -> Codes:
        if self._classes.plain:  # none is larger than the largest code, so nothing is lost
            return np.ascontiguousarray(labels, self._lut.dtype)
        coded: Codes = self._lut[labels]
        return coded

    def _layered(self, z: int, number: int) -> tuple[Codes, Codes]:
        p, r = self.codes(z)
        ignored = None if self._classes.ignore is None else r == self._classes.ignore
        if not self._same[number]:
            p, r = self._layers[number][p], self._layers[number][r]
        if ignored is not None and ignored.any():
            p, r = np.where(ignored, 0, p).astype(p.dtype), np.where(ignored, 0, r).astype(r.dtype)
        return p, r


@dataclass
class _Found:
    """Surface voxels of one volume and layer: flat indices, and numbers of their classes."""

    index: list[Cloud]
    number: list[Codes]


def _collect(found: _Found, slices: list[Any], rows: slice, z: int, flat: bool) -> None:
    """Add the surface voxels of the middle one of three slices (None beyond the volume)."""
    before, whole, after = slices
    here = whole[rows]
    inner = np.empty(here.shape, bool)
    if flat:
        inner[:] = True
    elif before is None or after is None:
        inner[:] = False
    else:
        np.equal(here, before[rows], out=inner)
        inner &= here == after[rows]
    along_x = here[:, 1:] == here[:, :-1]
    inner[:, 1:] &= along_x
    inner[:, :-1] &= along_x
    inner[:, [0, -1]] = False
    along_y = here[1:] == here[:-1]
    inner[1:] &= along_y
    inner[:-1] &= along_y
    inner[[0, -1]] = False  # beyond these rows lies background, or nothing
    at = np.flatnonzero((here != 0) > inner)
    if at.size:
        found.index.append(at + (z * len(whole) + (rows.start or 0)) * whole.shape[1])
        found.number.append(here.ravel()[at])


def _by_class(found: list[_Found], classes: int) -> list[tuple[Cloud, Cloud]]:
    empty: Cloud = np.zeros(0, np.intp)
    clouds = [[empty, empty] for _ in range(classes)]
    for place, part in enumerate(found):
        if not part.index:
            continue
        index, number = np.concatenate(part.index), np.concatenate(part.number)
        order = np.argsort(number, kind="stable")  # a radix sort; indices stay ascending within a class
        ends = np.cumsum(np.bincount(number, minlength=classes + 1))
        for c in np.unique(number):
            clouds[int(c) - 1][place % 2] = index[order[ends[c - 1] : ends[c]]]
    return [(p, r) for p, r in clouds]
