"""Scenes: procedural images of the kind that each supported data set holds, with their labels.

A scene draws one case on a grid of any size, from a seed alone. It knows nothing of files, manifests or folders
(`harness.data.phantoms` puts it into the layout of a data set), and nothing in it is a patient. Anatomy is given in the
millimetres of a reference field of view that always fills the grid; the spacing that a file states is the manifest's
affair. Axes are (z, y, x) as in `harness.data.phantom`: z towards the head, y towards the back, x towards the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.yamlfile import nearest

VOID = 255  # a label that no class has and no loss sees


@dataclass(frozen=True)
class Order:
    """What is to be drawn.

    Attributes:
        seed: The patient (or photograph), a non-negative integer.
        shape: Voxels (z, y, x); a photograph is one slice.
        classes: Class names of the data set, in the order of its labels.
        modalities: Names of the channels.
        frame: Which image of the patient: 0, 1, ... in time.
    """

    seed: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    frame: int = 0


@dataclass(frozen=True)
class Drawn:
    """One case.

    Attributes:
        image: (C, z, y, x) float32, in the units that files of this kind hold.
        label: (z, y, x) uint8: 0 background, 1..K as `names`, `VOID` where nothing is to be learned.
        names: Classes of the scene, in its own words.
        part_of: Class to the one that it counts as in a data set that does not tell the two apart.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    names: tuple[str, ...]
    part_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """One kind of image.

    Attributes:
        target: module:function that draws an `Order`.
        shape: Voxels (z, y, x) where a manifest names none.
        spacing: (z, y, x) in mm that its files then state.
        series: An order's frames show one patient at several times; otherwise every case is a patient of its own.
    """

    target: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    series: bool = False


SCENES: dict[str, Scene] = {
    "abdomen": Scene("harness.data.scenes.abdomen:abdomen", (16, 64, 64), (12.5, 5.0, 5.0)),
    "abdomen_scaled": Scene("harness.data.scenes.abdomen:abdomen_scaled", (16, 64, 64), (12.5, 5.0, 5.0)),
    "liver": Scene("harness.data.scenes.abdomen:liver", (16, 64, 64), (12.5, 5.0, 5.0)),
    "head": Scene("harness.data.scenes.head:head", (16, 64, 64), (10.5, 3.6, 3.0)),
    "brain_tumour": Scene("harness.data.scenes.head:brain_tumour", (16, 64, 64), (9.0, 2.9, 2.4)),
    "heart": Scene("harness.data.scenes.heart:heart", (10, 64, 64), (10.0, 2.4, 2.4), series=True),
    "hippocampus": Scene("harness.data.scenes.hippocampus:hippocampus", (36, 50, 35), (1.0, 1.0, 1.0)),
    "street": Scene("harness.data.scenes.street:street", (1, 64, 128), (1.0, 1.0, 1.0)),
    "blobs": Scene("harness.data.scenes.blobs:blobs", (16, 64, 64), (1.0, 1.0, 1.0)),
}
"""The scenes by name. `blobs` draws any classes, in volumes or in images: for a manifest that names no scene."""


def scene_of(name: str) -> Scene:
    """The scene of that name.

    Raises:
        BenchError: There is none.
    """
    if name not in SCENES:
        raise BenchError(f"no scene {name!r}{nearest(name, SCENES)}; scenes are {', '.join(SCENES)}.")
    return SCENES[name]


def draw(name: str, order: Order) -> Drawn:
    """Draw one case of a scene; the same order gives the same arrays.

    Raises:
        BenchError: The scene is unknown, or cannot be drawn on such a grid or with such channels.
    """
    module, function = scene_of(name).target.split(":")
    if order.seed < 0 or min(order.shape) < 1 or min(order.shape[1:]) < 16:
        raise BenchError(
            f"scene {name}: found seed {order.seed} and {'×'.join(map(str, order.shape))} voxels (z, y, x); "
            "a scene has a seed of at least 0 and slices of at least 16×16."
        )
    drawn: Drawn = getattr(import_module(module), function)(order)
    return drawn
