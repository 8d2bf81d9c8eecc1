"""Short-axis cine MRI of the heart: both ventricles and the muscle of the left one, in two phases."""

from __future__ import annotations

import numpy as np

from harness.data.scenes import Drawn, Order
from harness.data.scenes.canvas import Canvas

FOV = (100.0, 154.0, 154.0)


def heart(order: Order) -> Drawn:
    """End diastole in frame 0, end systole in every later one: the cavities shrink and the muscle thickens.

    Slices run from below the apex to above the base; the first and the last show no ventricle.
    """
    canvas = Canvas(order.seed, order.shape, FOV, bend=1.5, stream=order.frame)
    rng = canvas.rng
    systole = float(rng.uniform(0.66, 0.78))  # drawn in either phase: what follows must be the same patient
    squeeze = systole if order.frame else 1.0
    wide = float(rng.uniform(22, 26)) * squeeze
    wall = float(rng.uniform(8.5, 10.5)) / squeeze**0.8
    base = 36.0 - (8.0 if order.frame else 0.0)  # the base moves towards the apex
    middle = (-8.0, rng.normal(0, 3), rng.normal(8, 3))
    cavity = canvas.ellipsoid((base, *middle[1:]), (base - middle[0] + 24, wide, wide)) + canvas.field(14, 0.8)
    epicardium = canvas.ellipsoid((base, *middle[1:]), (base - middle[0] + 24 + wall * 0.7, wide + wall, wide + wall))
    # whole slices end at the base, as readers of such scans contour them
    cut = np.where(canvas.axes[0] < base, -np.inf, np.inf).astype(np.float32)[:, None, None]
    cavity, epicardium = np.maximum(cavity, cut), np.maximum(epicardium, cut)
    turn = float(rng.normal(20, 8))
    broad = float(rng.uniform(31, 36)) * (squeeze + 1) / 2
    beside = (base, middle[1] - 10, middle[2] - wide - wall + 1)
    # the right ventricle wraps around the left one as a crescent
    right = np.maximum(canvas.ellipsoid(beside, (base - middle[0] + 16, broad + 4, broad - 8), turn), cut)
    right = np.maximum(right, 1.0 - epicardium)
    image = _chest(canvas)
    vessels = canvas.ellipsoid((base + 6, middle[1], middle[2] - 14), (30, wide + 4, wide + 14))
    canvas.paint(image, np.maximum(vessels, -cut), 500.0)  # above the base: atria and great vessels, no class
    canvas.paint(image, np.minimum(epicardium, right) - 5 - canvas.field(10, 1.5), 560.0)  # fat around the heart
    blood = float(rng.normal(540, 20))
    canvas.paint(image, right - 2.5, 210.0)
    canvas.paint(image, right, blood + canvas.field(12, 18))
    canvas.paint(image, epicardium, 190 + canvas.field(10, 14))
    canvas.paint(image, cavity, blood + canvas.field(12, 18))
    for angle in (50.0, 200.0):  # papillary muscles belong to the cavity, as in the data set's contours
        at = np.deg2rad(angle)
        centre = (0, middle[1] + 0.6 * wide * np.sin(at), middle[2] + 0.6 * wide * np.cos(at))
        canvas.paint(image, np.maximum(canvas.ellipsoid(centre, (16, 3.4, 3.4)), cavity), 240.0)
    label = np.zeros(order.shape, np.uint8)
    for value, distance in ((1, right), (2, epicardium), (3, cavity)):
        label[distance < 0] = value
    return Drawn(canvas.mri(image, 20.0, 0.18)[None], label, ("right_ventricle", "myocardium", "left_ventricle"))


def _chest(canvas: Canvas) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What lies around: lung, chest wall, liver, descending aorta."""
    image = np.full(canvas.shape, np.float32(35.0))
    image += canvas.field(6, 8).astype(np.float32)
    canvas.paint(image, canvas.y + 55 + canvas.field(20, 3), 480.0)
    canvas.paint(image, np.abs(canvas.y + 59) - 3 + canvas.field(20, 1), 260.0)
    canvas.paint(image, canvas.ellipsoid((-50, 30, -70), (60, 60, 60)), 270 + canvas.field(10, 15))
    canvas.paint(image, canvas.ellipsoid((0, 58, 34), (200, 11, 11)), 520.0)
    canvas.paint(image, canvas.ellipsoid((0, 76, 8), (200, 20, 24)), 230.0)
    return image
