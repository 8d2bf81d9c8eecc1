"""T1 MRI cropped around one hippocampus, as the Medical Segmentation Decathlon has it."""

from __future__ import annotations

import numpy as np

from harness.data.scenes import Drawn, Order
from harness.data.scenes.canvas import Canvas

FOV = (36.0, 50.0, 35.0)


def hippocampus(order: Order) -> Drawn:
    """A curved body from a thick head in front to a thin tail behind, cut into anterior and posterior."""
    canvas = Canvas(order.seed, order.shape, FOV, bend=1.2)
    rng = canvas.rng
    thick = float(np.clip(rng.normal(1, 0.08), 0.85, 1.15))
    lean = rng.normal(0, 1.0, 2)
    course = ((-5, -15, 3, 5.0), (-5, -8, 1, 5.4), (-3, 0, 0, 4.2), (0, 8, 0.5, 3.6), (4, 15, -2, 2.8))
    nodes = [(z + lean[0], y, x + lean[1], r * thick) for z, y, x, r in course]
    body = canvas.tube(nodes) + canvas.field(4, 0.5)
    cut = canvas.y + 4.0 + rng.normal(0, 1.5)
    image = 640 + canvas.field(5, 70).astype(np.float32)  # cortex and white matter around
    canvas.paint(image, canvas.field(7, 3.0) - 1.0, 760.0)
    horn = canvas.tube([(z + 5.5 * thick, y, x + 3.5, 1.6) for z, y, x, _ in nodes])  # fluid beside it
    canvas.paint(image, horn, 230.0)
    canvas.paint(image, canvas.tube([(-16, -22, 12, 3.0), (-14, 22, 10, 3.0)]), 230.0)
    canvas.paint(image, body - 1.0, 800.0)  # a thin sheet of white matter parts it from the cortex
    canvas.paint(image, body, 540 + canvas.field(4, 18))
    label = np.where(body < 0, np.where(cut < 0, 1, 2), 0).astype(np.uint8)
    return Drawn(canvas.mri(image, 26.0, 0.08)[None], label, ("anterior", "posterior"))
