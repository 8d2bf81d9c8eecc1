"""Facts of the training labels that a loss may take in its constructor: counts, surfaces, neighbours of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
COUNTED = ("class_counts", "class_surface", "adjacency")
"""What `label_facts` gives."""


def label_facts(labels: Iterable[NDArray[Any]], num_classes: int) -> dict[str, Any]:
    """Count classes, boundary voxels and neighbours over all labels; ignored voxels count for nothing.

    Args:
        labels: Integer labels, any spatial shape each.
        num_classes: C, with background.

    Returns:
        `class_counts`: voxels of each class; `class_surface`: voxels of each class with a face neighbour of another
        class; `adjacency`: (C, C) number of pairs of face neighbours of classes i and j, symmetric, an unlike pair
        counted once in each of its two places.
    """
    counts = np.zeros(num_classes, np.int64)
    surface = np.zeros(num_classes, np.int64)
    pairs = np.zeros((num_classes, num_classes), np.int64)
    for label in labels:
        valid = label != IGNORE
        counts += np.bincount(label[valid].ravel(), minlength=num_classes)[:num_classes]
        edge = np.zeros(label.shape, bool)
        for axis in range(label.ndim):
            low, high = (_without(label, axis, end) for end in (-1, 0))
            both = _without(valid, axis, -1) & _without(valid, axis, 0)
            codes = low[both].astype(np.int64) * num_classes + high[both]
            pairs += np.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)
            unlike = (low != high) & both
            _without(edge, axis, -1)[...] |= unlike
            _without(edge, axis, 0)[...] |= unlike
        surface += np.bincount(label[edge].ravel(), minlength=num_classes)[:num_classes]
    symmetric = pairs + pairs.T - np.diag(np.diag(pairs))
    return {"class_counts": counts.tolist(), "class_surface": surface.tolist(), "adjacency": symmetric.tolist()}


def _without(array: NDArray[Any], axis: int, end: int) -> NDArray[Any]:
    """A view without the first (0) or the last (-1) layer along an axis."""
    window = [slice(None)] * array.ndim
    window[axis] = slice(1, None) if end == 0 else slice(None, -1)
    return array[tuple(window)]
