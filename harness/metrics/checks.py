"""Checks of what `evaluate` is given: one sentence for each mistake."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.metrics.table import METRICS, PROFILES
from harness.yamlfile import nearest

IntArray = NDArray[np.integer[Any]]
MAX_LABEL = 65535  # label values index histograms, and masks are stored in 8 or 16 bits


def check_names(metrics: Iterable[str], profile: str) -> tuple[str, ...]:
    """Return the metrics asked for, each once, in order."""
    if isinstance(metrics, str):
        raise BenchError(f"metrics is the string {metrics!r}, expected a list of names; write [{metrics!r}].")
    names = tuple(dict.fromkeys(metrics))
    for name in names:
        if name not in METRICS:
            raise BenchError(f"unknown metric {name!r}{nearest(name, METRICS)}; known: {', '.join(METRICS)}.")
    if profile not in PROFILES:
        raise BenchError(f"unknown profile {profile!r}{nearest(profile, PROFILES)}; known: {', '.join(PROFILES)}.")
    return names


def check_labels(labels: Mapping[str, int], ignore: int | None) -> dict[str, int]:
    """Return class name → label value as plain integers."""
    if not labels:
        raise BenchError("labels is empty, expected at least one class name with its label value.")
    known = {name: _label(value, f"class {name!r}") for name, value in labels.items()}
    owner: dict[int, str] = {}
    for name, value in known.items():
        if value in owner:
            raise BenchError(f"classes {owner[value]!r} and {name!r} share label {value}; give each its own.")
        owner[value] = name
    if ignore is not None and _label(ignore, "ignore") in owner:
        raise BenchError(f"label {ignore} is both ignored and class {owner[ignore]!r}; take it out of one of them.")
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


def check_known(values: Iterable[int], what: str, labels: Mapping[str, int], ignore: int | None) -> None:
    """Refuse a label value that is no class, not background and not ignored."""
    known = {0, *labels.values()} | (set() if ignore is None else {ignore})
    for value in values:
        if value not in known:
            raise BenchError(
                f"the {what} holds label {value}, which is neither background (0) nor a class "
                f"({', '.join(f'{n} {v}' for n, v in labels.items())}); add it to the labels or pass it as ignore."
            )
