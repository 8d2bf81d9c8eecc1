"""The point engine compiled by numba (optional): the same numbers as `scan` and `points`, several times faster.

`scan` reads both volumes once, 64 voxels at a time where there is only background. `distances` keeps one bit per voxel
of the box in which the two surfaces can be near each other: a machine word is 64 voxels of a row, the nearest point of
a row is found by counting zero bits, and rows are tried outwards until the next is farther than the best point so far.
Points without a neighbour within reach (islands far away) are compared with small groups of the other surface, the
nearest group first. Nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics import kernels
from harness.metrics.scan import Classes, Codes, IntArray, Scan
from harness.metrics.surface import Cloud, Distances, FloatArray, Grid

Words = NDArray[np.uint64]
Box = NDArray[np.intp]

BLOCK = 1 << 19  # voxels scanned at a time
ROWS = 1000  # rows tried for a point before it is taken as far
WINDOW = 16  # voxels to either side that one word of the map shows at least


def scan(pred: IntArray, ref: IntArray, classes: Classes, surfaces: bool) -> Scan:
    """Count pairs of labels and collect surface voxels: the same as `harness.metrics.scan.scan`.

    Volumes of 8 bits in C order are read in place, others through copies of a few slices.

    Args:
        pred: Integer labels, shape (z, y, x) or (y, x), none above the last index of `classes.lut`.
        ref: The same for the reference. A voxel of the ignored label belongs to no mask.
        classes: What to measure.
        surfaces: Whether to collect surface voxels.
    """
    flat = pred.ndim == 2
    if flat:  # an image's rows are slices of one row each, in which the middle axis has no neighbours
        pred, ref = pred[:, None], ref[:, None]
    pair = _Pair(pred, ref, classes, flat)
    size = pair.code.size
    joint = np.zeros(size * size, np.int64)
    layers = [_Layer(pair, layer) for layer in classes.layers] if surfaces else []
    for part in pair.parts():
        start, stop = ((z - part.first) * pair.area for z in (part.start, part.stop))
        kernels.count(part.pred, part.ref, _words(part.pred), _words(part.ref), start, stop, size, joint)
        for layer in layers:
            layer.collect(part)
    by_code = np.zeros((classes.size + 1, classes.size + 1), np.int64)
    at = np.flatnonzero(joint)
    np.add.at(by_code, (pair.code[at // size], pair.code[at % size]), joint[at])
    clouds: list[list[Cloud]] = [[np.zeros(0, np.intp)] * 2 for _ in classes.names] if surfaces else []
    for layer in layers:
        for side in (0, 1):
            for number, cloud in layer.clouds(side):
                clouds[number][side] = cloud
    return Scan(by_code, [(p, r) for p, r in clouds])


@dataclass(frozen=True)
class _Part:
    """Slices start..stop of both volumes, and one more on either side where there is one.

    Attributes:
        pred: Symbols, flat; the first is at the beginning of slice `first`.
        ref: The same for the reference.
        first: First slice in the arrays.
        start: First slice to look at.
        stop: The slice after the last to look at.
        end: The slice after the last in the arrays.
    """

    pred: Codes
    ref: Codes
    first: int
    start: int
    stop: int
    end: int


class _Pair:
    """Both volumes as symbols of 8 or 16 bits: label values where these are small, else codes.

    Attributes:
        code: Code of each symbol.
        area: Voxels of a slice.
    """

    def __init__(self, pred: IntArray, ref: IntArray, classes: Classes, flat: bool) -> None:
        self.volumes, self.classes, self.flat = (pred, ref), classes, flat
        self.by_value = classes.lut.size <= 256
        self.code = classes.lut.astype(np.intp) if self.by_value else np.arange(classes.size + 1)
        self.type = np.uint8 if self.code.size <= 256 else np.uint16
        self.shape: tuple[int, int, int] = pred.shape
        self.area = self.shape[1] * self.shape[2]
        self.step = max(1, BLOCK // self.area)

    def parts(self) -> Iterator[_Part]:
        """Walk over the volumes, some slices at a time."""
        depth = self.shape[0]
        in_place = all(map(self._readable, self.volumes))
        pred, ref = (_read_only(v.reshape(-1)) for v in self.volumes) if in_place else self.volumes
        for start in range(0, depth, self.step):
            stop = min(start + self.step, depth)
            if in_place:
                yield _Part(pred, ref, 0, start, stop, depth)
            else:
                first, end = max(start - 1, 0), min(stop + 1, depth)
                yield _Part(self._copied(pred[first:end]), self._copied(ref[first:end]), first, start, stop, end)

    def _readable(self, volume: IntArray) -> bool:
        """Whether the compiled functions can read the volume in place."""
        aligned = volume.flags.c_contiguous and volume.ctypes.data % 8 == 0
        return self.by_value and aligned and volume.dtype == np.uint8

    def _copied(self, labels: IntArray) -> Codes:
        symbols: IntArray = labels if self.by_value else self.classes.lut.take(labels)
        return _read_only(symbols.astype(self.type, order="C").reshape(-1))  # type: ignore[arg-type]  # a bare dtype


def _read_only(array: IntArray) -> Codes:
    """Return a view that cannot be written to: one type of argument, so that nothing is compiled twice."""
    view: Codes = array.view()
    view.flags.writeable = False
    return view


def _words(symbols: Codes) -> Words:
    """Return the same memory as 64-bit words, less what is left over at its end."""
    lanes = 8 // symbols.itemsize
    return symbols[: symbols.size // lanes * lanes].view(np.uint64)


class _Layer:
    """Collects the surface voxels of classes that share no label.

    A voxel's number is its symbol if the symbols of no two classes have to be joined and none is ignored; otherwise
    numbers are written into a copy of the part.
    """

    def __init__(self, pair: _Pair, layer: NDArray[np.uint16]) -> None:
        self.pair = pair
        classes = layer[pair.code]  # of each symbol: number of the class + 1, or 0
        present = np.unique(classes[classes > 0])
        self.ignored = -1
        if pair.classes.ignore is not None:
            self.ignored = int(np.flatnonzero(pair.code == pair.classes.ignore)[0])
        self.direct = self.ignored < 0 and classes[0] == 0 and present.size == np.count_nonzero(classes)
        # of each number that a voxel may have: number of the class + 1, or 0
        self.classes = classes if self.direct else np.concatenate([[0], present])
        numbers = np.searchsorted(present, classes) + 1
        self.numbers = np.where(classes > 0, numbers, 0).astype(np.uint8 if present.size < 256 else np.uint16)
        self.index: tuple[list[Cloud], list[Cloud]] = ([], [])
        self.number: tuple[list[Codes], list[Codes]] = ([], [])

    def collect(self, part: _Part) -> None:
        """Add the surface voxels of one part."""
        pair, count = self.pair, part.stop - part.start
        for side, symbols in enumerate((part.pred, part.ref)):
            first, end = part.first, part.end
            if not self.direct:
                low, high = max(part.start - 1, first), min(part.stop + 1, end)
                span = slice((low - first) * pair.area, (high - first) * pair.area)
                numbered = np.empty(span.stop - span.start, self.numbers.dtype)
                kernels.renumber(symbols[span], part.ref[span], self.numbers, self.ignored, numbered)
                symbols, first, end = _read_only(numbered), low, high
            index = np.empty(count * pair.area, np.intp)
            number = np.empty(count * pair.area, symbols.dtype)
            here = part.start - first, part.stop - first, end - first, *pair.shape[1:]
            found = kernels.surface(symbols, _words(symbols), *here, pair.flat, index, number)
            if found:
                self.index[side].append(index[:found] + first * pair.area)
                self.number[side].append(number[:found].copy())

    def clouds(self, side: int) -> Iterator[tuple[int, Cloud]]:
        """Number of each class that was met and its surface voxels."""
        sizes = np.zeros(self.classes.size, np.intp)
        for number in self.number[side]:
            sizes += np.bincount(number, minlength=sizes.size)
        sizes[self.classes == 0] = 0
        ends = np.cumsum(sizes)
        place = np.where(self.classes > 0, ends - sizes, -1)
        cloud: Cloud = np.empty(int(sizes.sum()), np.intp)
        for index, number in zip(self.index[side], self.number[side], strict=True):
            kernels.distribute(index, number, place, cloud)
        for k in np.flatnonzero(sizes):
            yield int(self.classes[k]) - 1, cloud[ends[k] - sizes[k] : ends[k]]


def distances(pred: Cloud, ref: Cloud, grid: Grid) -> Distances:
    """Distances between two surfaces; see `surface.Engine`.

    Exact up to float64. Memory: two bits for each voxel of the box in which points of one surface are near to the
    other, and some 50 bytes for each point of a surface that has far points on the other side.
    """
    # in units of a power of two near the largest spacing: no square overflows, and no digit is lost
    exponent = math.frexp(max(grid.spacing))[1]
    step_z, step_y, step_x = (math.ldexp(s, -exponent) for s in grid.spacing)
    scaled = Grid(grid.shape, (step_z, step_y, step_x))
    boxes = [kernels.extent(cloud, *grid.shape[1:]) for cloud in (pred, ref)]
    found = _nearest(pred, ref, boxes[0], boxes[1], scaled), _nearest(ref, pred, boxes[1], boxes[0], scaled)
    pred_to_ref, ref_to_pred = (np.ldexp(np.sqrt(squares), exponent) for squares in found)
    return Distances(pred_to_ref, ref_to_pred)


def _nearest(points: Cloud, others: Cloud, box: Box, other_box: Box, grid: Grid) -> FloatArray:
    """Squared distance from each of `points` to the nearest of `others`, in a box given by first and last indices."""
    rows, columns = grid.shape[1:]
    offsets, rests, limit = _rows(grid.spacing, grid.shape[:2])
    margin = np.array([*np.abs(offsets).max(0), WINDOW])
    # others that matter to any of the points, and points to which any of these may be near
    low, high = np.maximum(other_box[0], box[0] - margin), np.minimum(other_box[1], box[1] + margin)
    squares = np.full(points.size, np.inf)
    far = points.size
    if (low <= high).all():
        first, last = np.maximum(box[0], low - margin), np.minimum(box[1], high + margin)
        origin = first - [*margin[:2], 32]
        size = last - origin + 1 + [*margin[:2], 0]
        size[2] = size[2] // 32 + 1
        bits = np.zeros(int(size.prod()), np.uint64)
        kernels.fill(others, rows, columns, origin, size, bits)
        steps = offsets @ np.array([size[1], 1]) * size[2]
        lengths = np.append((np.arange(64) * grid.spacing[2]) ** 2, np.inf)
        place = first, last, origin, size, bits
        far = kernels.near(points, rows, columns, *place, steps, rests, lengths, limit, squares)
    if far:
        rest = np.flatnonzero(squares == np.inf)
        order, groups = _grouped(points[rest], box, grid)
        _, other_groups = _grouped(others, other_box, grid)
        squares[rest[order]] = kernels.far(*groups, *other_groups, *grid.spacing)
    return squares


@lru_cache(maxsize=16)
def _rows(spacing: tuple[float, float, float], shape: tuple[int, int]) -> tuple[NDArray[np.intp], FloatArray, float]:
    """Rows of voxels around a point, the nearest first.

    Returns:
        Offsets to the rows, shape (N, 2); squares of the distances to them, and at the end infinity; a limit: every
        voxel whose squared distance is less lies in one of these rows, at most `WINDOW` voxels along it.
    """
    reach = (WINDOW + 1) * spacing[2]
    while math.prod(2 * min(reach / s, n - 1) + 1 for s, n in zip(spacing, shape, strict=False)) > 4 * ROWS:
        reach *= 0.8
    margin = [min(int(min(reach / s, n)) + 1, n - 1) for s, n in zip(spacing, shape, strict=False)]
    offsets = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in margin), indexing="ij"), -1).reshape(-1, 2)
    rests = (offsets[:, 0] * spacing[0]) ** 2 + (offsets[:, 1] * spacing[1]) ** 2
    order = np.argsort(rests, kind="stable")
    order = order[rests[order] < reach**2]
    limit = rests[order[ROWS]] if order.size > ROWS else reach**2
    return offsets[order[:ROWS]], np.append(rests[order[:ROWS]], np.inf), float(limit)


def _grouped(cloud: Cloud, box: Box, grid: Grid) -> tuple[NDArray[np.intp], tuple[Any, Any, Any, Any]]:
    """Sort the points of a box into smaller ones, about as long as wide.

    Comparing all boxes takes (points / points in a box)² steps, looking into some of them points * points in a box:
    the sum is least where a box holds about as many points as the cube root of their number.

    Returns:
        Positions of the points in `cloud`, by box; the rest of what `kernels.group` gives.
    """
    extent = box[1] - box[0] + 1
    lengths = extent * grid.spacing
    side = float(lengths.max())
    boxes = 2 * cloud.size ** (2 / 3)  # most are empty
    while np.minimum(lengths / side + 1, extent).prod() < boxes and side > min(grid.spacing):
        side *= 0.8
    edges = np.clip(side / np.array(grid.spacing), 1, extent).astype(np.intp)
    order, *groups = kernels.group(cloud, *grid.shape[1:], box[0], edges, -(-extent // edges))
    return order, tuple(groups)
