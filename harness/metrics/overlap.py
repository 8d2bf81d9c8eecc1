"""Overlap: the confusion counts of every class from the joint histogram, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.metrics.scan import Classes, Scan
from harness.metrics.table import Status


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
    def compared(self) -> int:
        """Voxels of the image that are not ignored."""
        return self.tp + self.fp + self.fn + self.tn


def _share(part: int, whole: int) -> float | None:
    """A quotient, or None where it is 0 / 0."""
    return part / whole if whole else None


OVERLAP: dict[str, Callable[[Counts], float | None]] = {
    "dice": lambda c: _share(2 * c.tp, 2 * c.tp + c.fp + c.fn),
    "iou": lambda c: _share(c.tp, c.tp + c.fp + c.fn),
    "sensitivity": lambda c: _share(c.tp, c.tp + c.fn),
    "specificity": lambda c: _share(c.tn, c.tn + c.fp),
    "precision": lambda c: _share(c.tp, c.tp + c.fp),
    "tp": lambda c: float(c.tp),
    "fp": lambda c: float(c.fp),
    "fn": lambda c: float(c.fn),
    "tn": lambda c: float(c.tn),
}


def counts_of(scan: Scan, classes: Classes) -> list[Counts]:
    """Confusion counts of each class; voxels of the ignored reference label are left out."""
    compared = scan.joint[: classes.size, : classes.size].copy()
    if classes.ignore is not None:
        compared[:, classes.ignore] = 0
    in_pred, in_ref, total = compared.sum(1), compared.sum(0), int(compared.sum())
    found = []
    for members in classes.members:
        chosen = list(members)
        tp = int(compared[chosen][:, chosen].sum())
        fp, fn = int(in_pred[chosen].sum()) - tp, int(in_ref[chosen].sum()) - tp
        found.append(Counts(tp, fp, fn, total - tp - fp - fn))
    return found
