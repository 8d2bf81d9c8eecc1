"""Abdominal CT: the phantom of the quick start, and its liver with tumours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.data.phantom import ORGANS, phantom_case
from harness.data.scenes import Drawn, Order
from harness.data.scenes.canvas import Canvas

FOV = (204.0, 320.0, 320.0)  # mm, as `phantom_case`


def abdomen(order: Order) -> Drawn:
    """Eight organs of the upper abdomen, portal venous phase, in Hounsfield units."""
    made = phantom_case(order.seed, order.shape, FOV)
    return Drawn(made.image[None].astype(np.float32), made.label, tuple(ORGANS))


def abdomen_scaled(order: Order) -> Drawn:
    """The same clipped to [-125, 275] HU and scaled to [0, 1], as TransUNet's copy of Synapse holds it."""
    made = abdomen(order)
    return Drawn((np.clip(made.image, -125, 275) + 125) / np.float32(400), made.label, made.names)


def liver(order: Order) -> Drawn:
    """The same abdomen with the liver alone as a class, and one to four dark tumours in it."""
    made = phantom_case(order.seed, order.shape, FOV)
    organ = made.label == ORGANS["liver"]
    image = made.image.astype(np.float32)
    canvas = Canvas(order.seed, order.shape, FOV, bend=3.0)
    rng = canvas.rng
    depth = ndimage.distance_transform_edt(organ, canvas.voxel)
    far = np.full(order.shape, np.float32(np.inf))
    for number in range(int(rng.integers(1, 5))):
        # seated where the liver is thick, so that a tumour is not mostly outside it; one at least is large
        radius = float(rng.uniform(20, 30) if number == 0 else rng.uniform(9, 20))
        seats = np.argwhere(depth >= min(0.6 * radius, float(depth.max())))
        seat = [axis[i] for axis, i in zip(canvas.axes, seats[int(rng.integers(len(seats)))], strict=True)]
        lumps = canvas.field(12, 0.12 * radius)
        axes = [
            a - np.float32(c) for a, c in zip(np.meshgrid(*canvas.axes, indexing="ij", sparse=True), seat, strict=True)
        ]
        far = np.minimum(far, np.sqrt(sum(a**2 for a in axes)) - radius + lumps)
    tumour = organ & (far < 0)
    edge = np.float32(canvas.voxel[2])
    share = np.where(organ, np.clip(0.5 - far / edge, 0, 1), 0)
    darker = rng.normal(52, 6) + canvas.field(14, 5)
    image -= share * darker.astype(np.float32)
    label: NDArray[np.uint8] = organ.astype(np.uint8)
    label[tumour] = 2
    return Drawn(np.rint(image)[None].astype(np.float32), label, ("liver", "tumour"), {"tumour": "liver"})
