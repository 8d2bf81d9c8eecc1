"""Any classes, in volumes or in images: one lumpy body per class."""

from __future__ import annotations

import hashlib

import numpy as np

from harness.data.scenes import Drawn, Order
from harness.data.scenes.canvas import Canvas

FOV = 100.0


def blobs(order: Order) -> Drawn:
    """Classes as bodies side by side on a ring, each with its own brightness in each channel.

    Brightness follows from the class and the channel's name, so it is the same in all cases and can be learned.
    """
    flat = order.shape[0] == 1
    canvas = Canvas(order.seed, order.shape, (FOV, FOV, FOV), bend=3.0)
    rng = canvas.rng
    count = len(order.classes)
    label = np.zeros(order.shape, np.uint8)
    images = [np.full(order.shape, np.float32(90.0)) + canvas.field(9, 10).astype(np.float32) for _ in order.modalities]
    # bodies on a ring touch when there are many; the radius shrinks so that none is covered
    ring = 0.0 if count == 1 else 27.0
    radius = 22.0 if count == 1 else min(17.0, 0.85 * ring * float(np.sin(np.pi / count)))
    for index in range(count):
        angle = 2 * np.pi * index / count + rng.normal(0, 0.06)
        centre = (0 if flat else rng.normal(0, 8), ring * np.sin(angle), ring * np.cos(angle))
        semi = radius * rng.uniform(0.85, 1.15, 3)
        body = canvas.ellipsoid(centre, (1e4 if flat else 1.3 * semi[0], *semi[1:])) + canvas.field(8, 0.08 * radius)
        label[body < 0] = index + 1
        for image, channel in zip(images, order.modalities, strict=True):
            canvas.paint(image, body, _brightness(index, count, channel) + canvas.field(8, 8))
    made = np.stack([np.clip(np.rint(image + canvas.noise(8.0)), 0, 255) for image in images])
    return Drawn(made.astype(np.float32), label, order.classes)


def _brightness(index: int, count: int, channel: str) -> float:
    """Between 130 and 245, in an order of the classes that differs between channels."""
    turn = hashlib.sha256(channel.encode()).digest()[0] % count
    return 130 + 115 * ((index + turn) % count) / max(count - 1, 1) if count > 1 else 190.0
