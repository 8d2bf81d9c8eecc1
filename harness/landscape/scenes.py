"""The label of the landscape, and predictions of it that get worse step by step.

One label serves all: a large and a small object of one shape (a disc with a thin arm, so that an erosion, which takes
thin parts first, differs from shrinking), and a class of two components. All four classes are always in the label, so
that no rule for absent classes speaks, and what a loss reads of it (distance maps, class counts) is the same at every
step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from harness.check.scenes import CLASSES, Scene, one_hot

Mask = NDArray[np.bool_]

SIZE = 64
# Confident, not saturated: a perfect overlap still costs a little, and no gradient is 0 for want of digits. With 0.9
# the 0.033 left for each other class would add up to 130 voxels over the background, more than the small object has.
CONFIDENCE = 0.99
OTHERS = (1 - CONFIDENCE) / (CLASSES - 1)
OBJECTS = ("large", "small")
TRANSFORMATIONS = ("shrink", "translate", "erode", "dilate", "missing")
FARTHEST = 12  # voxels of the translation, to either side
EROSION, DILATION = 10, 6
PARTS = 10  # steps of the overlap
FADING = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # logarithms rise at the end

_CLASS = {"large": 1, "small": 2}
_CENTRE = {"large": (26, 32), "small": (50, 32)}
_UNIT = {"large": 3.0, "small": 1.0}
_COMPONENTS = {"large": ((52, 9), 6.3), "small": ((52, 56), 3.3)}
_TWO = 3  # the class of the two components


@dataclass(frozen=True)
class Step:
    """A prediction on the way from right to wrong.

    Attributes:
        transformation: One of `TRANSFORMATIONS`.
        of: The object it happens to, one of `OBJECTS`.
        x: How far it has gone: the share of the object that is overlapped (shrink), voxels (translate, erode, dilate),
            the share that has faded (missing).
        probabilities: (1, C, H, W) float64.
    """

    transformation: str
    of: str
    x: float
    probabilities: Tensor


def label() -> Tensor:
    """The label (1, H, W)."""
    out = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    for name in OBJECTS:
        out[0][torch.from_numpy(object_mask(name))] = _CLASS[name]
        out[0][torch.from_numpy(component_mask(name))] = _TWO
    return out


def object_mask(name: str) -> Mask:
    """The voxels (H, W) of the large or the small object."""
    return np.asarray(_gauge(name) <= 1)


def component_mask(name: str) -> Mask:
    """The voxels (H, W) of the larger or the smaller of the two components."""
    (row, column), radius = _COMPONENTS[name]
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.asarray((y - row) ** 2 + (x - column) ** 2 <= radius**2)


def perfect() -> Tensor:
    """Probabilities of the prediction that is right everywhere."""
    return _probabilities(label())


def steps() -> Iterator[Step]:
    """Every transformation of every object, each from its first x to its last."""
    for name in OBJECTS:
        mask = object_mask(name)
        for x, moved in _masks(name, mask):
            yield Step(*x, _probabilities(_painted(name, moved)))
        for share in FADING:
            yield Step("missing", name, share, faded(name, share))


def faded(name: str, share: float) -> Tensor:
    """A component whose probability has gone over to the background by a share; the voxels keep their place."""
    out = perfect()
    where = torch.from_numpy(component_mask(name))
    gone = share * (CONFIDENCE - OTHERS)
    out[0, _TWO][where] = CONFIDENCE - gone
    out[0, 0][where] = OTHERS + gone
    return out


def moved_mask(name: str, transformation: str, x: float) -> Mask:
    """The object (H, W) after a transformation by x."""
    mask = object_mask(name)
    if transformation == "shrink":
        # the voxels that smaller copies of the shape reach first
        order = np.argsort(_gauge(name), axis=None, kind="stable")
        out = np.zeros(mask.size, bool)
        out[order[: round(x * int(mask.sum()))]] = True
        return out.reshape(mask.shape)
    if transformation == "translate":
        return np.roll(mask, round(x), axis=1)
    if transformation == "erode":
        return np.asarray(distance_transform_edt(mask) > x)
    return np.asarray(distance_transform_edt(~mask) <= x)


def scene_of(probabilities: Tensor) -> Scene:
    """The label with a prediction, as the check hands scenes to a loss.

    The logits are ln p + a constant, with which they are ±2.85 at every voxel that is not fading: losses that look at
    each class by a sigmoid see a prediction, too (probabilities 0.945 and 0.055).
    """
    target = label()
    middle = 0.5 * (math.log(CONFIDENCE) + math.log(OTHERS))
    weight = torch.ones(target.shape, dtype=torch.float64)
    return Scene(target, probabilities.log() - middle, torch.ones(1, 2), {"label_weight": weight})


def _masks(name: str, mask: Mask) -> Iterator[tuple[tuple[str, str, float], Mask]]:
    voxels = int(mask.sum())
    ways = {
        "shrink": [round(voxels * (PARTS - i) / PARTS) / voxels for i in range(PARTS + 1)],
        "translate": [float(x) for x in range(-FARTHEST, FARTHEST + 1)],
        "erode": [float(x) for x in range(EROSION + 1)],
        "dilate": [float(x) for x in range(DILATION + 1)],
    }
    for transformation, far in ways.items():
        for x in far:
            yield (transformation, name, x), moved_mask(name, transformation, x)


def _gauge(name: str) -> NDArray[np.float64]:
    """By how much the shape must be scaled about its centre to reach a voxel; at most 1 inside."""
    (row, column), unit = _CENTRE[name], _UNIT[name]
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    y, x = y - row, x - column
    disc = np.hypot(y, x) / (3.2 * unit)
    arm = np.maximum(np.abs(x) / (0.5 * unit), np.where(y <= 0, -y, np.inf) / (5.4 * unit))
    return np.asarray(np.minimum(disc, arm))


def _painted(name: str, mask: Mask) -> Tensor:
    """The label with an object replaced by a mask."""
    out = label()
    out[out == _CLASS[name]] = 0
    out[0][torch.from_numpy(mask)] = _CLASS[name]
    return out


def _probabilities(guess: Tensor) -> Tensor:
    return OTHERS + (CONFIDENCE - OTHERS) * one_hot(guess).double()
