"""Persistence diagrams of images as cubical complexes: components and holes, with their voxels of birth and death."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Diagram:
    """Points above the diagonal, of one dimension of homology.

    Attributes:
        birth: Height at which each feature begins.
        death: Height at which it ends; 1 for a component that never merges.
        birth_voxel: Flat number of the voxel of that height.
        death_voxel: The same for the end; -1 where it is not a voxel's.
    """

    birth: Floats
    death: Floats
    birth_voxel: Ints
    death_voxel: Ints


def components(height: Floats, valid: Mask) -> Diagram:
    """Components of the voxels of at most a height, voxels touching by a corner too; a component ends in an older one.

    Args:
        height: Any shape, in [0, 1].
        valid: The same shape; other voxels never enter.
    """
    lowest, merged = _merge_tree(height, valid, corners=True)
    flat = height.ravel()
    death = np.where(merged >= 0, flat[merged], 1.0) if flat.size else np.zeros(0)
    return _above(flat[lowest], death, lowest, merged)


def holes(height: Floats, valid: Mask) -> Diagram:
    """Holes of the voxels of at most a height (cavities in three dimensions), by duality.

    A hole is a component of the voxels above the height, touching by faces, that does not reach the outside: going
    down from the top, it begins at its highest voxel and ends where it joins the outside or a higher one, read
    backwards. The border of the image and the voxels that are not valid are outside.
    """
    depth = np.pad(np.where(valid, -height, -np.inf), 1, constant_values=-np.inf)
    highest, joined = _merge_tree(depth, np.ones(depth.shape, bool), corners=False)
    kept = (joined >= 0) & np.isfinite(depth.ravel()[highest])
    inner = np.ravel(np.pad(np.arange(height.size).reshape(height.shape), 1, constant_values=-1))
    first, last = inner[joined[kept]], inner[highest[kept]]
    flat = height.ravel()
    return _above(flat[first], flat[last], first, last)


def count_features(mask: Mask, valid: Mask) -> tuple[int, int]:
    """Components and holes of a mask, as `components` and `holes` count them."""
    objects = label(mask & valid, generate_binary_structure(mask.ndim, mask.ndim))[1]
    outside = np.pad(~valid, 1, constant_values=True)
    parts, number = label(np.pad(~mask, 1, constant_values=True) | outside)
    return int(objects), int(number - len(np.unique(parts[outside])))


def _above(birth: Floats, death: Floats, birth_voxel: Ints, death_voxel: Ints) -> Diagram:
    kept = death > birth
    return Diagram(birth[kept], death[kept], birth_voxel[kept], death_voxel[kept])


def _merge_tree(height: Floats, inside: Mask, corners: bool) -> tuple[Ints, Ints]:
    """Lowest voxel of every component that ever is, and the voxel at which it merges into one with a lower one (or -1).

    Every voxel drains to a minimum along its lowest neighbours; only the lowest passes between these basins matter,
    and of them only a minimum spanning tree: what is left for a loop is one step for each minimum. Equal heights
    count in the order of the voxels, minus infinity as one basin.
    """
    flat, mask = height.ravel(), inside.ravel()
    order = np.argsort(np.where(mask, flat, np.inf), kind="stable")[: int(mask.sum())]
    none = len(order)
    if none == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ranks = np.full(flat.size, none)
    ranks[order] = np.arange(none)
    rank = ranks.reshape(height.shape)
    shifts = [s for s in product((-1, 0, 1), repeat=height.ndim) if s > (0,) * height.ndim]
    shifts = shifts if corners else [s for s in shifts if sum(map(abs, s)) == 1]
    views = [
        (
            tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(s, height.shape, strict=True)),
            tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(s, height.shape, strict=True)),
        )
        for s in shifts
    ]
    lowest = rank.copy()
    for here, there in views:
        np.minimum(lowest[here], rank[there], out=lowest[here])
        np.minimum(lowest[there], rank[here], out=lowest[there])
    drain = lowest.ravel()[order]
    while not np.array_equal(further := drain[drain], drain):
        drain = further
    outer = int(np.searchsorted(flat[order], -np.inf, side="right"))
    drain[drain < outer] = 0
    basin = np.append(drain, none)[rank]
    minima = np.unique(drain)
    parts = []
    for here, there in views:
        a, b = basin[here], basin[there]
        meet = (a != b) & (a < none) & (b < none)
        parts.append((a[meet], b[meet], np.maximum(rank[here], rank[there])[meet]))
    a, b, level = (np.concatenate(p) for p in zip(*parts, strict=True))
    return order[minima], _elder(minima, a, b, level, order)


def _elder(minima: Ints, a: Ints, b: Ints, level: Ints, order: Ints) -> Ints:
    """Where each basin merges into an elder one, from passes between basins a and b (named by their minima)."""
    merged = np.full(len(minima), -1)
    if not len(a):
        return merged
    low, high = np.searchsorted(minima, np.minimum(a, b)), np.searchsorted(minima, np.maximum(a, b))
    by_level = np.argsort(level, kind="stable")
    _, first = np.unique((low * len(minima) + high)[by_level], return_index=True)
    kept = by_level[first]
    shape = (len(minima), len(minima))
    tree = minimum_spanning_tree(coo_array((level[kept] + 1.0, (low[kept], high[kept])), shape=shape)).tocoo()
    parent = list(range(len(minima)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    for e in np.argsort(tree.data, kind="stable"):
        one, two = root(int(tree.row[e])), root(int(tree.col[e]))
        elder, younger = min(one, two), max(one, two)
        parent[younger] = elder
        merged[younger] = order[int(tree.data[e]) - 1]
    return merged
