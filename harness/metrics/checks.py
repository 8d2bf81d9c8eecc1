"""Checks of what `evaluate` is given: one sentence for each mistake."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.metrics.papers import check_mist2023
from harness.metrics.table import metric_of

IntArray = NDArray[np.integer[Any]]
MAX_LABEL = 65535  # label values index histograms, and masks are stored in 8 or 16 bits


def check_labels(labels: Mapping[str, int | Sequence[int]], ignore: int | None) -> dict[str, tuple[int, ...]]:
    """Return class name → label values as plain integers; a region has several."""
    if not labels:
        raise BenchError("labels is empty, expected at least one class name with its label value.")
    known: dict[str, tuple[int, ...]] = {}
    owner: dict[frozenset[int], str] = {}
    for name, given in labels.items():
        several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        values = tuple(_label(v, f"class {name!r}") for v in several)
        if not values or len(set(values)) != len(values):
            raise BenchError(f"class {name!r} has the labels {list(values)}, expected one or more, each once.")
        if (other := owner.setdefault(frozenset(values), name)) != name:
            what = f"label {values[0]}" if len(values) == 1 else f"labels {list(values)}"
            raise BenchError(f"classes {other!r} and {name!r} share {what}; give each its own.")
        known[name] = values
    if ignore is not None:
        value = _label(ignore, "ignore")
        for name, values in known.items():
            if value in values:
                raise BenchError(f"label {ignore} is both ignored and class {name!r}; take it out of one of them.")
    return known


def _label(value: Any, what: str) -> int:
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_LABEL:
        raise BenchError(f"{what} has label {value!r}, expected an integer in 0..{MAX_LABEL}; correct the map.")
    return number


def check_volume(volume: Any, what: str) -> IntArray:
    """Return a label volume with integer labels, none negative; a boolean one is seen as 0 and 1."""
    if not isinstance(volume, np.ndarray):
        raise BenchError(f"the {what} is a {type(volume).__name__}, expected a numpy array; convert it.")
    if volume.dtype.kind not in "iub":
        raise BenchError(f"the {what} has dtype {volume.dtype}, expected integer labels; take the argmax or cast.")
    if volume.ndim not in (2, 3):
        raise BenchError(f"the {what} has shape {volume.shape}, expected 2 or 3 axes; drop batch and channel.")
    if volume.size == 0:
        raise BenchError(f"the {what} has shape {volume.shape} and so no voxels; check how it was read or cropped.")
    if volume.dtype.kind == "b":
        return volume.view(np.uint8)
    if volume.dtype.kind == "i" and (low := int(volume.min())) < 0:
        raise BenchError(f"the {what} holds the negative label {low}, expected labels from 0 up; correct it.")
    return volume


def check_shapes(pred: IntArray, ref: IntArray) -> None:
    """Refuse two volumes that do not lie on the same grid."""
    if pred.shape != ref.shape:
        raise BenchError(
            f"the prediction has shape {pred.shape} and the reference {ref.shape}, expected the same; "
            "resample the prediction to the reference."
        )


def check_spacing(spacing: Sequence[float] | None, ndim: int) -> tuple[float, ...] | None:
    """Return the spacing as plain floats, or None where it is unknown."""
    if spacing is None:
        return None
    try:
        sides = tuple(float(s) for s in spacing)
    except (TypeError, ValueError):
        raise BenchError(f"spacing is {spacing!r}, expected {ndim} numbers in mm or None; correct it.") from None
    if len(sides) != ndim:
        raise BenchError(f"spacing {sides} has {len(sides)} numbers for {ndim} axes; give one per axis.")
    if not all(math.isfinite(s) and s > 0 for s in sides):
        raise BenchError(f"spacing {sides} is not finite and positive; correct it, or pass None if unknown.")
    return sides


def check_dims(metrics: Iterable[str], profiles: Iterable[str], shape: tuple[int, ...]) -> None:
    """Refuse a metric that is not of a case, and a metric or a profile not defined for that number of axes."""
    ndim = len(shape)
    if "mist2023" in profiles:
        check_mist2023(shape)
    for name in metrics:
        metric, _ = metric_of(name)
        if metric.scope == "dataset":
            raise BenchError(f"metric {name!r} is of a whole data set, from the counts of its cases; ask for iou here.")
        if ndim not in metric.dims:
            axes = " or ".join(map(str, metric.dims))
            raise BenchError(f"metric {name!r} is defined for {axes} axes, found {ndim}; leave it away.")


def check_range(volume: IntArray, what: str, labels: Mapping[str, Sequence[int]], ignore: int | None) -> None:
    """Refuse a label value above all that are known, before it is used as an index."""
    top = max(ignore or 0, *(v for values in labels.values() for v in values))
    if (high := int(volume.max())) > top:
        raise _unknown(high, what, labels)


def check_known(
    unknown: int, volume: IntArray, what: str, labels: Mapping[str, Sequence[int]], ignore: int | None
) -> None:
    """Refuse label values that are no class, not background and not ignored.

    Args:
        unknown: How many voxels have one.
        volume: Where they are.
        what: The volume's name in the sentence.
        labels: Class name → label values.
        ignore: The ignored reference label.
    """
    if unknown:
        known = {0, *(v for values in labels.values() for v in values)} | (set() if ignore is None else {ignore})
        raise _unknown(min(set(np.unique(volume).tolist()) - known), what, labels)


class UnknownLabel(BenchError):
    """A label value without a meaning.

    Attributes:
        found: What was found, a sentence without its end.
        label: The value.
    """

    def __init__(self, found: str, label: int) -> None:
        super().__init__(found, label)  # both: so it goes between processes
        self.found, self.label = found, label

    def __str__(self) -> str:
        """The sentence."""
        return f"{self.found}; add it to the labels or pass it as ignore."


def _unknown(value: int, what: str, labels: Mapping[str, Sequence[int]]) -> UnknownLabel:
    known = ", ".join(f"{name}={'+'.join(map(str, values))}" for name, values in labels.items())
    return UnknownLabel(f"the {what} holds label {value}, which is neither background (0) nor a class ({known})", value)
