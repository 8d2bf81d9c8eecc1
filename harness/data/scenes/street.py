"""A street seen from a car: colour photograph with the nineteen classes of Cityscapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.data.scenes import VOID, Drawn, Order
from harness.errors import BenchError

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic_light", "traffic_sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

HEIGHT, WIDTH = 64.0, 128.0  # of the picture in the scene's own units, whatever its pixels
HORIZON = 25.0

# Usual colour and the spread of its brightness between photographs.
COLOUR: dict[str, tuple[tuple[int, int, int], float]] = {
    "road": ((105, 100, 105), 8),
    "sidewalk": ((150, 140, 135), 9),
    "building": ((120, 100, 85), 18),
    "wall": ((145, 120, 105), 12),
    "fence": ((85, 95, 105), 10),
    "pole": ((62, 62, 66), 8),
    "traffic_light": ((40, 42, 38), 5),
    "traffic_sign": ((60, 90, 190), 14),
    "vegetation": ((52, 88, 48), 10),
    "terrain": ((120, 140, 80), 10),
    "sky": ((195, 212, 232), 12),
    "person": ((135, 62, 72), 18),
    "rider": ((185, 70, 40), 14),
    "car": ((60, 70, 110), 30),
    "truck": ((200, 175, 95), 14),
    "bus": ((215, 160, 30), 12),
    "train": ((195, 45, 45), 12),
    "motorcycle": ((35, 38, 62), 8),
    "bicycle": ((72, 42, 60), 10),
}

Mask = NDArray[np.bool_]


def street(order: Order) -> Drawn:
    """One photograph; the bonnet of the car below and a little of the border are void."""
    if order.shape[0] != 1 or len(order.modalities) != 3:
        raise BenchError(
            f"scene street: a photograph is one slice of 3 channels, found {order.shape[0]} slices and "
            f"{len(order.modalities)} modalities."
        )
    photo = _Photo(order)
    _ground(photo)
    _behind(photo)
    _traffic(photo)
    _people(photo)
    _posts(photo)
    photo.void(photo.v > HEIGHT - 3.2 + 0.0006 * photo.u**2, (28, 30, 36))
    photo.void((photo.u < 0.8 - WIDTH / 2) | (photo.u > WIDTH / 2 - 0.8), None)
    return Drawn(photo.finished(), photo.label[None], CLASSES)


class _Photo:
    """Pixels in the scene's units: u from left to right around 0, v from the top down."""

    def __init__(self, order: Order) -> None:
        _, height, width = order.shape
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(order.seed)))
        self._grain = np.random.Generator(np.random.PCG64(np.random.SeedSequence([order.seed, 1])))
        v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        self.v, self.u = v * HEIGHT, (u - 0.5) * WIDTH
        self.label = np.zeros((height, width), np.uint8)
        self.colour = np.zeros((height, width, 3))
        self.gain = {name: float(self.rng.normal(0, spread)) for name, (_, spread) in COLOUR.items()}
        self.end = float(self.rng.normal(0, 6))  # where the road meets the horizon
        self.lay("sky", np.ones_like(self.v, bool), shade=(HORIZON - self.v) * -0.6)

    def lay(self, name: str, where: Mask, shade: Any = 0.0, tint: float = 0.0) -> None:
        """Paint a class over what is there; `shade` per pixel, `tint` for this one object."""
        base = np.asarray(COLOUR[name][0], float) + self.gain[name] + tint
        values = base + np.broadcast_to(np.asarray(shade, float), self.v.shape)[..., None]
        self.colour[where] = values[where]
        self.label[where] = CLASSES.index(name) + 1

    def void(self, where: Mask, colour: tuple[int, int, int] | None) -> None:
        """What is not judged; with a colour of its own, or as it looks."""
        if colour is not None:
            self.colour[where] = colour
        self.label[where] = VOID

    def box(self, left: float, right: float, top: float, bottom: float) -> Mask:
        """A rectangle."""
        return np.asarray((self.u >= left) & (self.u < right) & (self.v >= top) & (self.v < bottom))

    def disc(self, u: float, v: float, wide: float, high: float) -> Mask:
        """An ellipse of two half axes."""
        return np.asarray(((self.u - u) / wide) ** 2 + ((self.v - v) / high) ** 2 < 1)

    def texture(self, level: float, pitch: float = 1.5) -> NDArray[np.float64]:
        """Leaves, stone: correlated spots."""
        raw = self._grain.standard_normal(self.v.shape)
        spots = ndimage.gaussian_filter(raw, pitch * self.v.shape[0] / HEIGHT)
        return np.asarray(level * spots / spots.std())

    def finished(self) -> NDArray[np.float32]:
        """(3, 1, y, x): slightly soft, with the noise of a sensor, 0 to 255."""
        soft = 0.45 * self.v.shape[0] / HEIGHT
        image = ndimage.gaussian_filter(self.colour, (soft, soft, 0))
        image = image * self.rng.normal(1, 0.05) + self._grain.normal(0, 4.0, image.shape)
        return np.clip(np.rint(np.moveaxis(image, -1, 0)), 0, 255).astype(np.float32)[:, None]


def _ground(p: _Photo) -> None:
    """Road, sidewalks and grass, all running to one point on the horizon."""
    below = p.v > HORIZON
    away = np.abs(p.u - p.end * np.clip((HEIGHT - p.v) / (HEIGHT - HORIZON), 0, 1))
    depth = p.v - HORIZON
    broad = float(p.rng.uniform(1.05, 1.25))
    p.lay("terrain", below, shade=p.texture(7))
    p.lay("sidewalk", below & (away < 5 + (broad + 0.75) * depth), shade=p.texture(3, 0.7))
    p.lay("road", below & (away < 3 + broad * depth), shade=p.texture(3, 0.7) + 0.3 * depth)


def _behind(p: _Photo) -> None:
    """Houses, trees, a wall on one side and a fence on the other, above the horizon and a little below it."""
    rng = p.rng
    side = float(rng.choice((-1.0, 1.0)))
    windows = 22 * ((np.mod(p.u, 5) < 2) & (np.mod(p.v, 5.5) < 2.8))
    edge = 10 + rng.uniform(0, 6)
    for s in (-1, 1):
        far = edge
        while far < WIDTH / 2:
            near = far + rng.uniform(14, 24)
            top = HORIZON - 5 - (far - edge) * 0.32 - rng.uniform(0, 6)
            left, right = sorted((p.end * 0.5 + s * far, p.end * 0.5 + s * near))
            p.lay("building", p.box(left, right, top, HORIZON + 2.5), shade=-windows, tint=float(rng.normal(0, 14)))
            far = near
    leaves = p.texture(13, 1.2)
    for _ in range(int(rng.integers(3, 6))):
        u, size = rng.choice((-1, 1)) * rng.uniform(16, 60), rng.uniform(5, 10)
        p.lay("vegetation", p.disc(u, HORIZON - 4 - 0.4 * size, size, 0.9 * size), shade=leaves)
    wall = (side * p.u > 24) & p.box(-64, 64, HORIZON - 2.5, HORIZON + 4.5)
    p.lay("wall", wall, shade=8 * (np.mod(p.v, 3) < 1))
    fence = (-side * p.u > 26) & p.box(-60, 60, HORIZON - 1.5, HORIZON + 4.5)
    p.lay("fence", fence, shade=45 * (np.mod(p.u, 2.0) < 0.9))


def _traffic(p: _Photo) -> None:
    """A tram, a bus and a truck far off, cars nearer."""
    rng = p.rng
    side = float(rng.choice((-1.0, 1.0)))
    for name, place, foot, wide, high in (
        ("train", side * 30, 31, 12.0, 11.0),
        ("bus", -side * 16, 33, 6.5, 11.5),
        ("truck", side * 9, 34, 6.0, 10.0),
    ):
        u, f = p.end * 0.5 + place + rng.normal(0, 1.5), foot + rng.normal(0, 0.7)
        w, h = wide * rng.uniform(0.9, 1.15), high * rng.uniform(0.9, 1.1)
        glass = (p.v > f - 0.85 * h) & (p.v < f - 0.55 * h)
        p.lay(name, p.box(u - w, u + w, f - h, f), shade=-70.0 * glass - 60.0 * (p.v > f - 1.3))
    for _ in range(int(rng.integers(2, 5))):
        f = rng.uniform(34, 50)
        scale = (f - 20) / 22
        u, w, h = rng.uniform(-0.8, 0.8) * (f - HORIZON) * 1.3 + p.end * 0.3, 6.5 * scale, 6.5 * scale
        body = p.box(u - w, u + w, f - 0.6 * h, f) | p.disc(u, f - 0.55 * h, 0.75 * w, 0.5 * h)
        glass = p.disc(u, f - 0.62 * h, 0.6 * w, 0.25 * h)
        p.lay("car", body, shade=60.0 * glass - 45.0 * (p.v > f - 0.18 * h), tint=float(rng.normal(0, 18)))


def _people(p: _Photo) -> None:
    """People on the sidewalks, a cyclist on one side of the road and a motorcycle on the other."""
    rng = p.rng
    for _ in range(int(rng.integers(2, 5))):
        foot = rng.uniform(36, 48)
        _person(p, "person", rng.choice((-1, 1)) * (10 + 1.45 * (foot - HORIZON)), foot, (foot - 18) / 20)
    side = float(rng.choice((-1.0, 1.0)))
    for name, where in (("bicycle", side), ("motorcycle", -side)):
        foot = rng.uniform(45, 54)
        scale = (foot - 18) / 22
        u = where * rng.uniform(22, 34)
        _person(p, "rider", u, foot - 3 * scale, 0.75 * scale)
        wheels = p.disc(u - 3 * scale, foot - 1.8 * scale, 2.2 * scale, 2.2 * scale)
        wheels |= p.disc(u + 3 * scale, foot - 1.8 * scale, 2.2 * scale, 2.2 * scale)
        if name == "motorcycle":
            wheels |= p.disc(u, foot - 2.6 * scale, 3.5 * scale, 1.6 * scale)
        else:
            wheels |= p.box(u - 3 * scale, u + 3 * scale, foot - 2.8 * scale, foot - 1.6 * scale)
        p.lay(name, wheels)


def _person(p: _Photo, name: str, u: float, foot: float, scale: float) -> None:
    where = p.box(u - 1.5 * scale, u + 1.5 * scale, foot - 8 * scale, foot)
    where |= p.disc(u, foot - 9.2 * scale, 1.2 * scale, 1.5 * scale)
    legs = p.v > foot - 3.8 * scale
    head = p.v < foot - 8 * scale
    p.lay(name, where, shade=-35.0 * legs + 45.0 * head, tint=float(p.rng.normal(0, 10)))


def _posts(p: _Photo) -> None:
    """Poles in front of everything, one with a traffic light and one with a sign."""
    side = float(p.rng.choice((-1.0, 1.0)))
    for s, top in ((side, "traffic_light"), (-side, "traffic_sign")):
        u, foot = s * p.rng.uniform(40, 54), p.rng.uniform(38, 44)
        p.lay("pole", p.box(u - 0.9, u + 0.9, 6, foot))
        if top == "traffic_light":
            where = p.box(u - 2.2, u + 2.2, 5, 14)
            lamp = p.disc(u, 7.2, 1.3, 1.3)
            p.lay(top, where, shade=120.0 * lamp)
        else:
            p.lay(top, p.disc(u, 8.5, 4.0, 4.0), shade=90.0 * p.disc(u, 8.5, 2.0, 2.0))
