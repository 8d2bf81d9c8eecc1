"""MRI of the head: T1 with scalp and skull, and the skull-stripped brain with a tumour in four sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.data.scenes import Drawn, Order
from harness.data.scenes.canvas import Array, Canvas
from harness.errors import BenchError

HEAD_FOV = (170.0, 230.0, 192.0)
BRAIN_FOV = (146.0, 186.0, 152.0)

# Signal of each tissue by sequence, in the arbitrary units of a scanner.
SIGNAL: dict[str, dict[str, float]] = {
    "t1": {"white": 720, "grey": 560, "fluid": 210, "oedema": 470, "enhancing": 540, "core": 330},
    "t1ce": {"white": 720, "grey": 570, "fluid": 210, "oedema": 470, "enhancing": 1080, "core": 340},
    "t2": {"white": 330, "grey": 450, "fluid": 1000, "oedema": 780, "enhancing": 600, "core": 860},
    "flair": {"white": 350, "grey": 460, "fluid": 110, "oedema": 860, "enhancing": 690, "core": 470},
}


@dataclass(frozen=True)
class _Brain:
    """Signed distances in mm: the brain's outside, its white matter, its ventricles."""

    outside: Array
    white: Array
    ventricles: Array


def _brain(canvas: Canvas) -> _Brain:
    rng = canvas.rng
    tall, long, wide = rng.normal((60, 84, 66), 1.5)
    folds = canvas.field(7, 1.3)
    cerebrum = canvas.ellipsoid((10, 0, 0), (tall, long, wide))
    # the underside is flatter than an ellipsoid
    cerebrum = np.maximum(cerebrum, -30 - canvas.z - 0.15 * canvas.y)
    cerebellum = canvas.ellipsoid((-38, 42, 0), (26, 30, 46))
    stem = canvas.tube([(-25, 18, 0, 13), (-75, 26, 0, 10)])
    outside = np.minimum(np.minimum(cerebrum, cerebellum), stem) + folds
    gyri = canvas.field(5, 1.8)
    white = np.maximum(outside + 8 + gyri, 2.2 - np.abs(canvas.x))
    for side in (-1, 1):  # grey nuclei deep in each half
        white = np.maximum(white, -canvas.ellipsoid((2, 2, side * 24), (11, 19, 8)))
    horns = [
        canvas.tube([(4, -30, s * 11, 5), (14, -8, s * 12, 7), (14, 20, s * 17, 7), (-4, 40, s * 24, 6)])
        for s in (-1, 1)
    ]
    third = canvas.tube([(-2, -8, 0, 3), (-4, 12, 0, 3)])
    return _Brain(outside, white, np.minimum(np.minimum(*horns), third) + rng.normal(0, 1.2))


def _tissue(canvas: Canvas, brain: _Brain, signal: dict[str, float]) -> Array:
    image = np.full(canvas.shape, np.float32(signal["grey"]))
    canvas.paint(image, brain.white, signal["white"])
    canvas.paint(image, brain.ventricles, signal["fluid"])
    return image


def head(order: Order) -> Drawn:
    """A T1 scan of a whole head; the class is the brain with its ventricles."""
    _channels("head", order, 1)
    canvas = Canvas(order.seed, order.shape, HEAD_FOV, bend=2.5)
    rng = canvas.rng
    brain = _brain(canvas)
    skull = np.minimum(canvas.ellipsoid((8, 0, 0), (72, 96, 77)), canvas.ellipsoid((-30, 20, 0), (50, 72, 60)))
    skull = np.maximum(
        skull, -(canvas.z + 38 + 0.65 * np.clip(canvas.y + 25, 0, 60))
    )  # its base falls towards the back
    skin = np.minimum(canvas.ellipsoid((4, 0, 0), (88, 108, 88)), canvas.tube([(-40, 8, 0, 72), (-120, 20, 0, 58)]))
    face = canvas.ellipsoid((-52, -58, 0), (52, 46, 58))
    image = np.zeros(order.shape, np.float32)
    canvas.paint(image, np.minimum(skin, face), 820.0)  # fat under the skin
    canvas.paint(image, np.minimum(skin, face) + 5 + canvas.field(14, 1.0), 430 + canvas.field(10, 60))
    for side in (-1, 1):
        eye = canvas.ellipsoid((-26, -82, side * 32), (12, 12, 12))
        canvas.paint(image, eye, 180.0)
    canvas.paint(image, canvas.ellipsoid((-50, -66, 0), (20, 22, 12)), 20.0)  # the nose's air
    canvas.paint(image, skull, 90.0)
    canvas.paint(image, skull + 3.2, 520 + canvas.field(9, 60))  # marrow between two dark tables
    canvas.paint(image, skull + 5.6, 90.0)
    canvas.paint(image, np.maximum(skull + 8, brain.outside - 9), SIGNAL["t1"]["fluid"])
    canvas.paint(image, brain.outside, _tissue(canvas, brain, SIGNAL["t1"]))
    label = (brain.outside < 0).astype(np.uint8)
    made = canvas.mri(image, float(rng.uniform(18, 34)), 0.15)
    return Drawn(made[None], label, ("brain",))


def brain_tumour(order: Order) -> Drawn:
    """A glioma: a dark core, a rim that takes up contrast, oedema around; everything outside the brain is exactly 0.

    The channels are those of `modalities`, by name: t1, t1ce (t1gd), t2, flair.
    """
    sequences = [_sequence(name) for name in order.modalities]
    canvas = Canvas(order.seed, order.shape, BRAIN_FOV, bend=2.5)
    rng = canvas.rng
    brain = _brain(canvas)
    radius = float(rng.uniform(15, 23))
    side = float(rng.choice((-1.0, 1.0)))
    seat = (rng.uniform(8, 32), rng.uniform(-42, 40), side * rng.uniform(26, 38))
    semi = [radius * float(k) for k in rng.uniform(0.85, 1.15, 3)]
    rim = canvas.ellipsoid(seat, semi) + canvas.field(6, 1.8)
    inside = np.maximum(rim, brain.outside + 1)
    core = np.maximum(rim + 0.42 * radius + canvas.field(5, 1.5), brain.outside + 3)
    # oedema spreads along the white matter and stops at the fluid
    swollen = canvas.ellipsoid(seat, [r + float(rng.uniform(11, 20)) for r in semi]) + canvas.field(9, 4.0)
    oedema = np.maximum(np.maximum(swollen, brain.outside + 4), -brain.ventricles)
    where = brain.outside < 0
    channels = []
    for name in sequences:
        signal = SIGNAL[name]
        image = _tissue(canvas, brain, signal)
        canvas.paint(image, oedema, signal["oedema"] + canvas.field(8, 25))
        canvas.paint(image, inside, signal["enhancing"] + canvas.field(6, 35))
        canvas.paint(image, core, signal["core"] + canvas.field(6, 25))
        channels.append(np.where(where, np.maximum(canvas.mri(image, 22.0, 0.08), 1), 0))
    label = np.zeros(order.shape, np.uint8)
    for value, distance in ((2, oedema), (3, inside), (1, core)):
        label[where & (distance < 0)] = value
    return Drawn(np.stack(channels).astype(np.float32), label, ("core", "oedema", "enhancing"))


def _sequence(name: str) -> str:
    key = "".join(c for c in name.lower() if c.isalnum())
    key = {"t1gd": "t1ce", "t1c": "t1ce", "t1w": "t1", "t2w": "t2", "t2flair": "flair"}.get(key, key)
    if key not in SIGNAL:
        raise BenchError(f"scene brain_tumour: no sequence {name!r}; `modalities` may name {', '.join(SIGNAL)}.")
    return key


def _channels(scene: str, order: Order, count: int) -> None:
    if len(order.modalities) != count:
        raise BenchError(f"scene {scene}: {count} channel, and the manifest names {len(order.modalities)} modalities.")
