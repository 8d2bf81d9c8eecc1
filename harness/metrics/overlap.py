"""Overlap: the confusion counts of every class in one pass over the two volumes, and the Dice coefficient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.table import Status

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Counts:
    """Voxels of one class; the four sum to the number of compared voxels of the image."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def status(self) -> Status:
        """Which of the two masks are empty."""
        if self.tp + self.fp == 0:
            return "both_empty" if self.fn == 0 else "pred_empty"
        return "ref_empty" if self.tp + self.fn == 0 else "ok"

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN); 0 if one mask is empty, None if both are."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else None


@dataclass(frozen=True)
class Histograms:
    """Voxel counts by label value, each of shape (top + 1,).

    `pred`, `ref` and `both` (same label in both) are of the `compared` voxels, those whose reference is not ignored;
    `pred_seen` and `ref_seen` are of all voxels that are not background in both.
    """

    pred_seen: NDArray[np.int64]
    ref_seen: NDArray[np.int64]
    pred: NDArray[np.int64]
    ref: NDArray[np.int64]
    both: NDArray[np.int64]
    compared: int

    def counts(self, label: int) -> Counts:
        """Confusion counts of one label against all others."""
        tp = int(self.both[label])
        fp = int(self.pred[label]) - tp
        fn = int(self.ref[label]) - tp
        return Counts(tp, fp, fn, self.compared - tp - fp - fn)


def histograms(pred: IntArray, ref: IntArray, top: int, ignore: int | None) -> Histograms:
    """Count labels, slice by slice along the first axis.

    Only voxels where one of the two is not background are gathered: they are few, so the pass costs little more than
    reading the arrays, and a slice bounds the memory.

    Args:
        pred: Integer labels in 0..top, shape (z, y, x) or (y, x).
        ref: The same for the reference.
        top: Largest label value.
        ignore: Reference label that takes a voxel out of the comparison.
    """
    size = top + 1
    sums = np.zeros((5, size), np.int64)
    slabs = zip(pred, ref, strict=True) if pred.ndim == 3 else [(pred, ref)]
    for slab_pred, slab_ref in slabs:
        busy = (slab_pred != 0) | (slab_ref != 0)
        p = slab_pred[busy].astype(np.intp)
        r = slab_ref[busy].astype(np.intp)
        quiet = busy.size - p.size  # background in both
        sums[0] += np.bincount(p, minlength=size)
        sums[1] += np.bincount(r, minlength=size)
        if ignore is not None:
            keep = r != ignore
            p, r = p[keep], r[keep]
        if ignore != 0:
            sums[2:, 0] += quiet
        sums[2] += np.bincount(p, minlength=size)
        sums[3] += np.bincount(r, minlength=size)
        sums[4] += np.bincount(p[p == r], minlength=size)
    pred_seen, ref_seen, in_pred, in_ref, both = sums
    return Histograms(pred_seen, ref_seen, in_pred, in_ref, both, int(in_ref.sum()))
