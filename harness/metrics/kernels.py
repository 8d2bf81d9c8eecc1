"""What numba compiles for the engine `points-numba`: loops over voxels and points; see `accelerated`.

Arrays come in few types (symbols of 8 or 16 bits, read only), so that little is compiled. Indices of 64 bits without a
sign spare numba's handling of negative ones, and only then are the loops over voxels made of vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile at the first call, and keep the machine code on disk if there is a folder to keep it in.

    numba writes beside this file, else into the user's cache; the variable `NUMBA_CACHE_DIR` names another folder.
    Where it may write to none of them, each process compiles anew.
    """
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    except RuntimeError:  # "no locator available"
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def _bit_counter(name: str) -> Any:
    """Return the instruction that counts zero bits, from the lowest (`cttz`) or the highest (`ctlz`); 64 for 0."""

    def instruction(_: Any, word: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            return getattr(builder, name)(args[0], context.get_constant(types.boolean, False))

        return types.uint64(types.uint64), generate

    return intrinsic(instruction)


_zeros_below, _zeros_above = _bit_counter("cttz"), _bit_counter("ctlz")


@compiled
def count(pred: Any, ref: Any, pred_words: Any, ref_words: Any, start: int, stop: int, size: int, joint: Any) -> None:
    """Add the pairs of symbols of the voxels start..stop to `joint`, shape (size * size,)."""
    lanes = 8 // pred.itemsize
    first, last = -(-start // lanes), stop // lanes
    if last < first:
        last = first
    for i in range(start, min(first * lanes, stop)):
        joint[pred[i] * size + ref[i]] += 1
    for i in range(last * lanes, stop):
        joint[pred[i] * size + ref[i]] += 1
    spread = np.uint64(0x0101010101010101) if lanes == 8 else np.uint64(0x0001000100010001)
    background = 0
    k, end, eight = np.uint64(first), np.uint64(last), np.uint64(8)
    while k < end:
        if k + eight <= end:
            any_label = np.uint64(0)
            for j in range(eight):
                any_label |= pred_words[k + j] | ref_words[k + j]
            if any_label == 0:
                background += 8
                k += eight
                continue
        for w in range(k, min(k + eight, end)):
            p, r = pred_words[w], ref_words[w]
            first_of = w * np.uint64(lanes)
            if p == pred[first_of] * spread and r == ref[first_of] * spread:  # a word of one pair
                joint[np.int64(pred[first_of]) * size + np.int64(ref[first_of])] += lanes
            else:
                for v in range(first_of, first_of + np.uint64(lanes)):
                    joint[np.int64(pred[v]) * size + np.int64(ref[v])] += 1
        k += eight
    joint[0] += background * lanes


@compiled
def renumber(symbols: Any, ref: Any, numbers: Any, ignored: int, out: Any) -> None:
    """Write the number of each symbol, 0 where the reference is ignored."""
    for begin in range(0, symbols.size, 64):
        end = min(begin + 64, symbols.size)
        labels = np.uint64(0)
        for i in range(np.uint64(begin), np.uint64(end)):
            labels |= symbols[i]
        if labels == 0 and numbers[0] == 0:
            for i in range(np.uint64(begin), np.uint64(end)):
                out[i] = 0
            continue
        for i in range(begin, end):
            out[i] = numbers[symbols[i]] if ref[i] != ignored else 0


@compiled
def surface(
    numbers: Any, words: Any, first: int, last: int, depth: int, rows: int, columns: int, flat: bool,
    index: Any, number: Any,
) -> int:  # fmt: skip
    """Find the voxels of slices first..last that differ from a face neighbour and are not 0.

    Args:
        numbers: Slices of `rows` x `columns` voxels, flat.
        words: The same memory in words.
        first: First slice to look at.
        last: The slice after the last.
        depth: Slices in all; those before and after lie outside of the volume.
        rows: Length of the middle axis.
        columns: Length of the last axis.
        flat: Whether the middle axis has no neighbours.
        index: Filled with the flat indices.
        number: Filled with the numbers.

    Returns:
        How many there are.
    """
    lanes = 8 // numbers.itemsize
    one, zero = np.uint64(1), np.uint64(0)
    along_z = np.uint64(rows * columns)
    along_y = zero if flat else np.uint64(columns)
    line = np.zeros(64, np.uint8)  # a mark for each voxel of a chunk
    line_words = line.view(np.uint64)
    found = 0
    for z in range(first, last):
        for y in range(rows):
            begin = (z * rows + y) * columns
            end = begin + columns
            border = z == 0 or z == depth - 1 or (not flat and (y == 0 or y == rows - 1))
            chunk = begin // lanes
            while chunk * lanes < end:
                if chunk + 8 <= words.size:
                    any_label = zero
                    for j in range(np.uint64(8)):
                        any_label |= words[np.uint64(chunk) + j]
                    if any_label == 0:
                        chunk += 8
                        continue
                low, high = max(chunk * lanes, begin), min((chunk + 8) * lanes, end)
                chunk += 8
                a = np.uint64(low)
                n = np.uint64(high - low)
                if border:
                    for j in range(n):
                        line[j] = numbers[a + j] != 0
                else:
                    # the two ends of a row read a neighbour from another row here, and are set below
                    for j in range(n):
                        i = a + j
                        c = numbers[i]
                        line[j] = (c != 0) & (
                            (((c ^ numbers[i - one]) | (c ^ numbers[i + one]))
                            | ((c ^ numbers[i - along_y]) | (c ^ numbers[i + along_y]))
                            | ((c ^ numbers[i - along_z]) | (c ^ numbers[i + along_z]))) != 0
                        )  # fmt: skip
                    if low == begin:
                        line[0] = numbers[a] != 0
                    if high == end:
                        line[n - one] = numbers[a + n - one] != 0
                count = (n + np.uint64(7)) // np.uint64(8)
                for j in range(n, count * np.uint64(8)):
                    line[j] = 0
                for k in range(count):
                    marks = line_words[k]
                    while marks != 0:
                        i = a + k * np.uint64(8) + (_zeros_below(marks) >> np.uint64(3))
                        index[found] = i
                        number[found] = numbers[i]
                        found += 1
                        marks &= marks - one
    return found


@compiled
def distribute(index: Any, number: Any, place: Any, cloud: Any) -> None:
    """Write each index to the next place of its number and move that place on; none where it is negative."""
    for i in range(index.size):
        at = place[number[i]]
        if at >= 0:
            cloud[at] = index[i]
            place[number[i]] = at + 1


@compiled
def extent(cloud: Any, rows: int, columns: int) -> Any:
    """Return the first and the last index along each axis, shape (2, 3)."""
    low_y, high_y, low_x, high_x = rows, 0, columns, 0
    begin = -columns
    for point in cloud:
        if point - begin >= columns:
            begin = point // columns * columns
            y = point // columns % rows
            low_y, high_y = min(low_y, y), max(high_y, y)
        low_x, high_x = min(low_x, point - begin), max(high_x, point - begin)
    box = np.empty((2, 3), np.int64)
    box[0, 0], box[0, 1], box[0, 2] = cloud[0] // (rows * columns), low_y, low_x
    box[1, 0], box[1, 1], box[1, 2] = cloud[-1] // (rows * columns), high_y, high_x
    return box


@compiled
def fill(cloud: Any, rows: int, columns: int, origin: Any, size: Any, bits: Any) -> None:
    """Set the bits of points in a map of `size` (planes, rows, words) from `origin` on.

    Word k of a row has the voxels 32 k to 32 k + 63, so that for each voxel there is a word with its neighbourhood.
    """
    begin, base = -columns, -1
    for point in cloud:
        if point - begin >= columns:
            row = point // columns
            begin = row * columns
            z, y = row // rows - origin[0], row % rows - origin[1]
            base = (z * size[1] + y) * size[2] if 0 <= z < size[0] and 0 <= y < size[1] else -1
        x = point - begin - origin[2]
        k = x >> 5
        if base >= 0 and 0 <= k <= size[2]:
            if k < size[2]:
                bits[base + k] |= np.uint64(1) << np.uint64(x & 31)
            if k > 0:
                bits[base + k - 1] |= np.uint64(1) << np.uint64((x & 31) + 32)


@compiled
def near(
    cloud: Any, rows: int, columns: int, first: Any, last: Any, origin: Any, size: Any, bits: Any,
    steps: Any, rests: Any, lengths: Any, limit: float, squares: Any,
) -> int:  # fmt: skip
    """Write the squares of the distances that are less than `limit`.

    Args:
        cloud: Flat indices of the points.
        rows: Length of the grid's middle axis.
        columns: Length of its last axis.
        first: Points before this index along any axis are far.
        last: Points after this one too.
        origin: Where the map begins.
        size: Its planes, rows and words.
        bits: The map.
        steps: Words from a row to the rows around it, the nearest first.
        rests: Squares of the distances to these rows; then infinity.
        lengths: Squares of the distances to the next 64 points of a row; then infinity.
        limit: See `_rows`.
        squares: Filled.

    Returns:
        How many points are far.
    """
    begin, base, far = -columns, -1, 0
    for n in range(cloud.size):
        if cloud[n] - begin >= columns:
            row = cloud[n] // columns
            begin = row * columns
            z, y = row // rows, row % rows
            base = -1
            if first[0] <= z <= last[0] and first[1] <= y <= last[1]:
                base = ((z - origin[0]) * size[1] + y - origin[1]) * size[2]
        x = cloud[n] - begin
        if base < 0 or x < first[2] or x > last[2]:
            far += 1
            continue
        x -= origin[2]
        word = base + ((x - 16) >> 5)
        right = np.uint64(16 + ((x - 16) & 31))  # place of the voxel in its word, 16 to 47
        left = np.uint64(63) - right
        best = limit
        k = 0
        while rests[k] < best:
            around = bits[word + steps[k]]
            gap = min(_zeros_below(around >> right), _zeros_above(around << left))
            best = min(best, rests[k] + lengths[gap])
            k += 1
        if best < limit:
            squares[n] = best
        else:
            far += 1
    return far


@compiled
def group(cloud: Any, rows: int, columns: int, low: Any, edges: Any, count: Any) -> Any:
    """Sort points into boxes.

    Args:
        cloud: Flat indices of the points.
        rows: Length of the grid's middle axis.
        columns: Length of its last axis.
        low: Where the first box begins.
        edges: Size of a box in voxels.
        count: Boxes along each axis.

    Returns:
        Positions of the points in `cloud`, by box; their coordinates in this order, shape (3, N); the first point of
        each box that is not empty, and N; first and last coordinate of each such box along each axis, shapes (3, M).
    """
    total = count[0] * count[1] * count[2]
    ends = np.zeros(total + 1, np.int64)
    box_of = np.empty(cloud.size, np.int64)
    for n in range(cloud.size):
        row = cloud[n] // columns
        z, y, x = row // rows, row % rows, cloud[n] - row * columns
        box = ((z - low[0]) // edges[0] * count[1] + (y - low[1]) // edges[1]) * count[2] + (x - low[2]) // edges[2]
        box_of[n] = box
        ends[box + 1] += 1
    filled = 0
    for box in range(total):
        filled += ends[box + 1] > 0
    starts = np.empty(filled + 1, np.int64)
    k = 0
    for box in range(total):
        if ends[box + 1] > 0:
            starts[k] = ends[box]
            k += 1
        ends[box + 1] += ends[box]
    starts[filled] = cloud.size
    order = np.empty(cloud.size, np.int64)
    at = np.empty((3, cloud.size))
    for n in range(cloud.size):
        place = ends[box_of[n]]
        ends[box_of[n]] += 1
        order[place] = n
        row = cloud[n] // columns
        at[0, place], at[1, place], at[2, place] = row // rows, row % rows, cloud[n] - row * columns
    first, last = np.empty((3, filled)), np.empty((3, filled))
    for k in range(filled):
        for axis in range(3):
            low_at = high_at = at[axis, starts[k]]
            for i in range(starts[k], starts[k + 1]):
                low_at, high_at = min(low_at, at[axis, i]), max(high_at, at[axis, i])
            first[axis, k], last[axis, k] = low_at, high_at
    return order, at, starts, first, last


@compiled
def far(
    at: Any, starts: Any, first: Any, last: Any,
    others: Any, other_starts: Any, other_first: Any, other_last: Any,
    step_z: float, step_y: float, step_x: float,
) -> Any:  # fmt: skip
    """Return the squares of the distances from points in boxes to other points in boxes, both from `group`.

    For a box of points, all boxes that cannot hold the nearest point of any of them are left out first: those whose
    nearest corner is farther than the farthest corner of some other box.
    """
    boxes = other_starts.size - 1
    squares = np.empty(at.shape[1])
    bound, most = np.empty(boxes), np.empty(boxes)
    kept = np.empty(boxes, np.int64)
    for box in range(starts.size - 1):
        for k in range(boxes):
            # least and greatest distance along each axis between a point of one box and a point of the other
            dz = max(max(other_first[0, k] - last[0, box], first[0, box] - other_last[0, k]), 0.0) * step_z
            dy = max(max(other_first[1, k] - last[1, box], first[1, box] - other_last[1, k]), 0.0) * step_y
            dx = max(max(other_first[2, k] - last[2, box], first[2, box] - other_last[2, k]), 0.0) * step_x
            bound[k] = dz * dz + dy * dy + dx * dx
            dz = max(other_last[0, k] - first[0, box], last[0, box] - other_first[0, k]) * step_z
            dy = max(other_last[1, k] - first[1, box], last[1, box] - other_first[1, k]) * step_y
            dx = max(other_last[2, k] - first[2, box], last[2, box] - other_first[2, k]) * step_x
            most[k] = dz * dz + dy * dy + dx * dx
        nearest = 0
        for k in range(boxes):
            if most[k] < most[nearest]:
                nearest = k
        number = 0
        for k in range(boxes):
            if bound[k] <= most[nearest]:
                kept[number] = k
                number += 1
        hint = other_starts[nearest]  # a near point: the nearest one of the point before
        for n in range(starts[box], starts[box + 1]):
            z, y, x = at[0, n], at[1, n], at[2, n]
            dz, dy, dx = (others[0, hint] - z) * step_z, (others[1, hint] - y) * step_y, (others[2, hint] - x) * step_x
            best = dz * dz + dy * dy + dx * dx
            for j in range(number):
                k = kept[j]
                dz = max(max(other_first[0, k] - z, z - other_last[0, k]), 0.0) * step_z
                dy = max(max(other_first[1, k] - y, y - other_last[1, k]), 0.0) * step_y
                dx = max(max(other_first[2, k] - x, x - other_last[2, k]), 0.0) * step_x
                if dz * dz + dy * dy + dx * dx >= best:
                    continue
                for i in range(other_starts[k], other_starts[k + 1]):
                    dz, dy, dx = (others[0, i] - z) * step_z, (others[1, i] - y) * step_y, (others[2, i] - x) * step_x
                    square = dz * dz + dy * dy + dx * dx
                    if square < best:
                        best, hint = square, i
            squares[n] = best
    return squares
