"""A procedural CT phantom of the upper abdomen: nine classes, no download, no patient.

An atlas in millimetres (ellipsoids and tubes) is moved, scaled, bent and roughened at random for every patient, then
rendered with partial volume, shading and the correlated noise of CT. Bowel, vessels, heart and muscle have the
attenuation of their neighbours and no label. The look is that of the portal venous phase, patient supine.

Arrays are (z, y, x) in the patient's LPS directions: z rises towards the head, y towards the back, x towards the
patient's left. A slice drawn with row 0 on top is seen as radiologists see it, from the feet: front on top, the
patient's right (the liver) on the left of the image. Points of the atlas are (x, y, z) with the origin in the middle of
the trunk, in front of the first lumbar vertebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.errors import BenchError

Array = NDArray[np.floating[Any]]
Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]

ORGANS: dict[str, int] = {
    "aorta": 1,
    "gallbladder": 2,
    "left_kidney": 3,
    "right_kidney": 4,
    "liver": 5,
    "pancreas": 6,
    "spleen": 7,
    "stomach": 8,
}
"""Label of every organ, in the order of TransUNet's Synapse (BTCV) table; 0 is background."""

# Mean and spread between patients of the attenuation in HU, portal venous phase.
_HU: dict[str, tuple[float, float]] = {
    "aorta": (158, 10),
    "gallbladder": (11, 5),
    "kidney": (172, 11),
    "liver": (108, 10),
    "pancreas": (94, 7),
    "spleen": (121, 7),
    "stomach": (72, 7),
    "muscle": (60, 5),
    "fat": (-95, 4),
    "bone": (190, 25),
    "bowel": (84, 9),
    "vein": (146, 9),
}

# Tubes of the atlas: "x y z radius" of every node, in mm.
_TUBES: dict[str, str] = {
    "aorta": "7 12 -125 8.5, 10 11 -60 9.5, 11 11 0 10.5, 11 11 60 11.5, 15 17 125 12.5",
    "gallbladder": "-33 -24 8 4, -38 -34 -2 9.3, -43 -46 -14 12.6, -45 -51 -21 12.2",
    "pancreas": "-20 -4 -34 11, -25 -9 -18 15, -8 -22 -4 10.5, 18 -15 6 11, 44 -5 14 11, 68 8 24 11, 80 15 32 8",
    "stomach": "50 26 68 24, 60 6 54 31, 60 -28 26 28, 38 -55 -4 23, 5 -52 -14 18, -18 -38 -6 13, -29 -28 0 9",
    "cardia": "12 6 84 8, 22 8 76 9, 44 12 66 12",
    "gullet": "6 2 130 7, 10 4 95 7, 14 7 80 8",
    "vena cava": "-19 14 -125 10, -20 14 -20 11, -21 8 40 12, -14 2 100 12",
    "portal and splenic vein": "-40 -10 22 6, -22 -8 8 6.5, -8 -14 0 6.5, 16 -6 8 5, 46 4 18 4.5, 74 18 34 4",
    "upper mesenteric vein": "-8 -14 0 6, -6 -20 -30 5.5, -4 -24 -80 5",
    "upper mesenteric artery": "10 4 8 3.5, 8 -8 0 4, 6 -16 -30 3.5, 6 -20 -80 3",
    "coeliac artery": "10 4 20 4, 10 -8 22 3.5, -16 -14 22 3",
    "left renal vein": "-20 14 -8 5, 8 -2 -8 4, 42 32 -5 5",
    "right renal vein": "-20 14 -20 5, -44 32 -22 5",
    "right hepatic vein": "-20 6 82 7, -45 4 66 6, -92 14 44 3.5",
    "middle hepatic vein": "-20 6 82 7, -42 -28 62 5.5, -64 -56 34 3.5",
    "left hepatic vein": "-20 6 82 5, 0 -26 66 4, 10 -50 46 2",
    "right portal vein": "-36 -10 20 7, -62 0 26 6, -98 10 16 3.5",
    "left portal vein": "-36 -10 20 7, -34 -34 38 5.5, -4 -56 46 3",
    "anterior portal vein": "-62 0 26 6, -84 -40 34 3.5",
    "duodenum": "-26 -30 0 12, -44 -16 -8 13, -46 0 -30 12, -30 2 -50 12, 0 -4 -54 11, 26 -8 -38 11, 34 -22 -30 11",
    "proximal colon": "-92 8 -130 20, -94 14 -80 21, -86 6 -52 20, -60 -40 -50 18, -20 -66 -48 18, 30 -68 -40 18,"
    "76 -46 -10 18, 100 -8 14 17",
    "distal colon": "100 -8 14 17, 108 22 -14 15, 106 24 -70 14, 102 18 -130 13",
}

_FAR = np.float32(60.0)  # distance written where nothing is computed, in mm
_REACH = 160.0  # half side of the cube on which the random fields live, in mm


@dataclass(frozen=True)
class PhantomCase:
    """One patient.

    Attributes:
        image: int16 (z, y, x), Hounsfield units.
        label: uint8 (z, y, x), 0 or a value of `ORGANS`.
        spacing: Voxel size (z, y, x) in mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    spacing: tuple[float, float, float]


def phantom_case(
    seed: int, shape: tuple[int, int, int] = (24, 64, 64), fov: tuple[float, float, float] = (204.0, 320.0, 320.0)
) -> PhantomCase:
    """Make one patient.

    The anatomy depends on the seed alone; shape and field of view say how it is sampled, so the same patient can be had
    finer. The noise is drawn per voxel and differs between shapes.

    Args:
        seed: The patient, a non-negative integer.
        shape: Voxels (z, y, x).
        fov: Field of view (z, y, x) in mm, centred on the patient; spacing is fov / shape.

    Raises:
        BenchError: Seed, shape or field of view make no image.
    """
    if seed < 0:
        raise BenchError(f"phantom: found seed {seed}, expected a non-negative integer; choose another.")
    if len(shape) != 3 or len(fov) != 3 or min(shape) < 4 or min(fov) <= 0:
        found = f"phantom: found shape {tuple(shape)} and fov {tuple(fov)}"
        raise BenchError(f"{found}, expected three sizes of at least 4 and three lengths above 0; change them.")
    spacing = (fov[0] / shape[0], fov[1] / shape[1], fov[2] / shape[2])
    anatomy, texture = (np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(2))
    patient = _Patient(anatomy, (shape[0], shape[1], shape[2]), spacing)
    frame = _frame(patient)
    cava = patient.tube("vena cava", 0.4)
    organs = _organs(patient, frame, cava)
    image = np.full(shape, -1000, np.float32)
    _wall(patient, frame, image)
    _bowel(patient, frame, image)
    near = np.minimum.reduce(list(organs.values()))
    # fat parts the organs from the bowel, more in some patients
    patient.paint(image, np.maximum(near - anatomy.uniform(0, 3), frame.abdomen + 2), patient.hu["fat"] + 10)
    _vessels(patient, image, cava)
    _contents(patient, organs, image)
    _chest(patient, frame, image)
    label = np.zeros(shape, np.uint8)
    for name, distance in organs.items():
        label[distance < 0] = ORGANS[name]
    return PhantomCase(_scan(patient, image, texture), label, spacing)


class _Patient:
    """A grid of voxel centres in the atlas coordinates of one patient, and signed distances of shapes on it.

    Distances are float32 (z, y, x) in mm, negative inside, and exact only near a surface.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: Point):
        self.rng = rng
        self.shape = shape
        self.pixel = float(np.sqrt(spacing[1] * spacing[2]))
        self.axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
        self.shift = rng.normal(0, (11, 5, 5)).clip(-22, 22)
        self.scale = (rng.normal(1, 0.045) * rng.normal(1, (0.03, 0.03, 0.03))).clip(0.88, 1.12)
        grid = np.meshgrid(*self.axes, indexing="ij", sparse=True)
        # every organ is bent by the same slow field, so neighbours stay neighbours
        self.z, self.y, self.x = (
            (c - np.float32(t)) / np.float32(k) + self.field(95, 5.0)
            for c, t, k in zip(grid, self.shift, self.scale, strict=True)
        )
        self.hu = {k: float(rng.normal(m, s)) for k, (m, s) in _HU.items()}
        if rng.random() < 0.15:
            self.hu["liver"] -= 28  # fatty liver
        self.hu["spleen"] = max(self.hu["spleen"], self.hu["liver"] + 5)

    def field(self, pitch: float, amplitude: float) -> Array:
        """A smooth random field: cubic B-splines over knots `pitch` mm apart, standard deviation `amplitude`."""
        knots = int(np.ceil(2 * _REACH / pitch)) + 3
        out = self.rng.standard_normal((knots, knots, knots), dtype=np.float32)
        for axis in self.axes:
            t = np.clip((axis + _REACH) / pitch, 0, knots - 3 - 1e-3)
            i = t.astype(int)
            u = t - i
            weights = np.zeros((len(axis), knots), np.float32)
            cubics = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
            for k, w in enumerate(cubics):
                weights[np.arange(len(axis)), i + k] = w / 6
            out = np.tensordot(out, weights, axes=(0, 1))
        # a cubic B-spline of white noise has a standard deviation of about 0.69 along each axis
        return np.asarray(out * np.float32(amplitude / 0.69**3))

    def box(self, low: Array, high: Array) -> Box:
        """The voxels that can lie between two corners (x, y, z) of the atlas, whatever the bending."""
        cut = []
        for axis, lo, hi, t, k in zip(self.axes, low[::-1], high[::-1], self.shift, self.scale, strict=True):
            ends = np.searchsorted(axis, ((lo - 16) * k + t, (hi + 16) * k + t))
            cut.append(slice(int(ends[0]), int(ends[1])))
        return cut[0], cut[1], cut[2]

    def at(self, cut: Box, origin: Array) -> list[Array]:
        """Coordinates x, y, z of some voxels from an origin (x, y, z)."""
        return [v[cut] - np.float32(m) for v, m in zip((self.x, self.y, self.z), origin, strict=True)]

    def blob(self, centre: Point, semi: Point, turn: Point = (0, 0, 0), jitter: float = 0.0) -> Array:
        """An ellipsoid: centre and half axes (x, y, z) in mm, turned about x, y, z by degrees; `jitter` 1 is usual."""
        c = np.array(centre) + jitter * self.rng.normal(0, 3.0, 3)
        r = np.array(semi) * (1 + jitter * self.rng.normal(0, 0.07, 3).clip(-0.16, 0.16))
        angles = np.deg2rad(np.array(turn) + jitter * self.rng.normal(0, 5.0, 3))
        cut = self.box(c - r.max() - 8, c + r.max() + 8)
        q = self.at(cut, c)
        for a, (i, j) in zip(angles, ((1, 2), (2, 0), (0, 1)), strict=True):
            cos, sin = np.float32(np.cos(a)), np.float32(np.sin(a))
            q[i], q[j] = cos * q[i] + sin * q[j], cos * q[j] - sin * q[i]
        k0 = np.sqrt(sum((v / np.float32(s)) ** 2 for v, s in zip(q, r, strict=True)))
        k1 = np.sqrt(sum((v / np.float32(s * s)) ** 2 for v, s in zip(q, r, strict=True)))
        out = np.full(self.shape, _FAR)
        out[cut] = k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6))
        return out

    def tube(self, nodes: str | Array, jitter: float = 0.0, swell: float = 0.0) -> Array:
        """A tube of the atlas, or through nodes (x, y, z, radius), on a Catmull-Rom curve; `swell` makes haustra."""
        path = _curve(_nodes(nodes) if isinstance(nodes, str) else nodes, self.rng, jitter)
        path[1:-1:2, 3] *= 1 - swell
        out = np.full(self.shape, _FAR)
        for a, b in pairwise(path):
            reach = max(a[3], b[3]) + 4
            cut = self.box(np.minimum(a, b)[:3] - reach, np.maximum(a, b)[:3] + reach)
            x, y, z = self.at(cut, a[:3])
            s = (b - a).astype(np.float32)
            t = np.clip((x * s[0] + y * s[1] + z * s[2]) / np.maximum(s[:3] @ s[:3], np.float32(1e-6)), 0, 1)
            away = np.sqrt((x - t * s[0]) ** 2 + (y - t * s[1]) ** 2 + (z - t * s[2]) ** 2)
            out[cut] = np.minimum(out[cut], away - (np.float32(a[3]) + t * s[3]))
        return out

    def paint(self, image: Array, distance: Array, hu: float | Array) -> None:
        """Lay a tissue over the image, mixed with what is there in the voxels that its surface cuts."""
        image += np.clip(0.5 - distance / self.pixel, 0, 1) * (hu - image)


def _nodes(name: str) -> Array:
    return np.array([[float(v) for v in node.split()] for node in _TUBES[name].split(",")])


def _curve(nodes: Array, rng: np.random.Generator, jitter: float) -> Array:
    """A Catmull-Rom curve through jittered nodes, a point about every 14 mm."""
    p = nodes.astype(np.float64)
    p[:, :3] += jitter * (rng.normal(0, 2.5, 3) + rng.normal(0, 2.0, (len(p), 3)))
    p[:, 3] *= 1 + jitter * rng.normal(0, 0.06)
    p = np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    parts = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        steps = max(1, round(float(np.linalg.norm((c - b)[:3])) / 14))
        u = (np.arange(steps) / steps)[:, None]
        parts.append(0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3))
    path = np.vstack([*parts, p[-2:-1]])
    path[:, 3] = np.maximum(path[:, 3], 1.0)
    return path


def _smooth_union(a: Array, b: Array, width: float) -> Array:
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.asarray(np.minimum(a, b) - h * h * (width / 4))


@dataclass(frozen=True)
class _Frame:
    """What the organs lie in, as signed distances.

    Attributes:
        trunk: Skin and all within.
        shell: The muscular wall and all within.
        cavity: What the wall, the spine and the muscles of the back leave.
        dome: Below the diaphragm.
        abdomen: The cavity below the diaphragm.
        spine: Vertebrae and discs.
        disc: True where the spine is disc.
        psoas: The two psoas muscles.
        back: The muscles of the back.
    """

    trunk: Array
    shell: Array
    cavity: Array
    dome: Array
    abdomen: Array
    spine: Array
    disc: NDArray[np.bool_]
    psoas: Array
    back: Array


def _frame(p: _Patient) -> _Frame:
    rng = p.rng
    wide, deep = rng.normal(133, 4), rng.normal(92, 4)
    fat, wall = min(max(rng.normal(13, 6), 4.0), 26.0), min(max(rng.normal(11, 2), 7.0), 15.0)
    # a superellipse; distances along the ray from the middle
    ratio = (np.abs(p.x / wide) ** 2.4 + np.abs(p.y / deep) ** 2.4) ** (1 / 2.4)
    inner = np.sqrt(p.x**2 + p.y**2) * (1 - 1 / np.maximum(ratio, 0.05)) + p.field(60, 1.5)
    # subcutaneous fat is thickest at the flanks and the back
    trunk = inner - wall - fat * (1 + 0.35 * np.clip(p.y / 80, -0.6, 1)) - p.field(70, 1.5)

    level = np.mod(p.z + rng.uniform(0, 34), 34) - 17  # vertebrae 34 mm apart
    vertebra = np.sqrt((p.x / 1.25) ** 2 + (p.y - 44) ** 2) - (19 + 2.5 * (level / 17) ** 2)
    spinous = np.maximum(np.abs(p.x) - 3.2, np.maximum(p.y - 97, 66 - p.y)) + 5 * (level <= 0)
    transverse = np.maximum(np.abs(p.y - 60 - np.abs(p.x) * 0.2) - 4.5, np.abs(p.x) - 34) + np.abs(level) * 0.7
    spine = np.minimum(vertebra, np.minimum(spinous, transverse))

    down = np.clip((30 - p.z) / 110, 0, 1)  # the psoas grows downwards
    psoas, back = (
        np.minimum(*(np.sqrt(((p.x - side * x) / k) ** 2 + (p.y - y) ** 2) - r for side in (-1, 1)))
        for x, y, k, r in ((31 + 8 * down, 47, 1, 21 * down), (33, 82, 1.5, 20))
    )
    middle = np.maximum(np.abs(p.x) - 30, 52 - p.y)
    cavity = np.maximum(inner, -np.minimum(np.minimum(back, middle), vertebra))

    right = p.blob((-62, 0, -8), (86, 108, 104), jitter=0.5)
    left = p.blob((58, 2, -8), (86, 104, 94), jitter=0.5)
    dome = _smooth_union(right, left, 40)
    dome = np.where(p.z < 5, np.minimum(dome, -8), dome)  # below its widest level it is no bound
    disc = np.abs(level) > 13
    return _Frame(trunk, inner - wall, cavity, dome, np.maximum(cavity, dome), spine, disc, psoas, back)


def _organs(p: _Patient, f: _Frame, cava: Array) -> dict[str, Array]:
    """Signed distances of the organs that the patient has; they never overlap, the earlier one keeps its place."""
    rng = p.rng
    bound = np.maximum(f.abdomen + 2, 1.5 - np.minimum(f.spine, f.psoas))
    gap = rng.uniform(0.3, 2.5)
    capsule = {"left_kidney": rng.uniform(1, 7), "right_kidney": rng.uniform(1, 7)}  # fat of the kidneys
    found = {"aorta": np.maximum(p.tube("aorta", 0.5), 0.5 - f.spine)}

    def add(name: str, distance: Array) -> None:
        d = np.maximum(distance, bound)
        for other, taken in found.items():
            d = np.maximum(d, capsule.get(other, gap) - taken)
        found[name] = d

    for side, name, height in ((-1, "right_kidney", -20), (1, "left_kidney", -4)):
        x, y, z = side * 63 + rng.normal(0, 3), 40 + rng.normal(0, 3), height + rng.normal(0, 7)
        kidney = p.blob((x, y, z), (26, 23, 53), (-9, -side * 13, side * 15), 0.5)
        hilum = p.blob((x - side * 23, y - 9, z), (15, 8, 19), (0, 0, side * 25), 0.3)
        add(name, np.maximum(kidney + p.field(30, 1.2), -hilum))
    gallbladder = p.tube("gallbladder", 0.9) + rng.normal(0, 1.3)  # contracted or full
    if rng.random() > 0.2:  # else removed by a surgeon
        add("gallbladder", gallbladder)
    add("pancreas", p.tube("pancreas", 1.0, 0.12) + p.field(14, 1.0))
    spleen = p.blob((90, 30, 40), (30, 48, 50), (0, 0, -12), 1.0)
    add("spleen", np.maximum(spleen, -p.blob((50, 8, 36), (34, 44, 60), jitter=0.5)) + p.field(40, 2.0))
    stomach = _nodes("stomach")
    stomach[:, 3] *= rng.normal(1, 0.13)
    add("stomach", np.minimum(p.tube(stomach, 1.0), p.tube("cardia", 0.3)) + p.field(35, 1.8))
    lobes = p.blob((-74, 2, 30), (69, 80, 83), jitter=0.8), p.blob((4, -48, 46), (60, 31, 34), jitter=1.2)
    underside = p.blob((2, -8, -46), (66, 80, 64), jitter=0.8)
    ligament = np.maximum(np.abs(p.x + 12 + (p.y + 40) * 0.3) - 1.2, np.maximum(p.z - 48, np.maximum(p.y, -p.y - 70)))
    liver = np.maximum(_smooth_union(*lobes, 25), -np.minimum(underside, ligament))
    add("liver", np.maximum(liver + p.field(45, 3.0), 0.5 - cava))
    return found


def _wall(p: _Patient, f: _Frame, image: Array) -> None:
    """Skin, fat, muscle and bone."""
    hu = p.hu
    p.paint(image, f.trunk, 50.0)
    p.paint(image, f.trunk + 2.5, hu["fat"])
    p.paint(image, f.shell, hu["muscle"] + p.field(12, 14))
    rib = np.abs(np.mod(p.z - 0.55 * p.y + p.rng.uniform(0, 30), 30) - 15) - 5
    # the costal margin rises towards the front
    rib = np.maximum(rib, np.maximum(-30 + 0.9 * np.maximum(30 - p.y, 0) - p.z, np.abs(f.shell + 6) - 4.5))
    p.paint(image, np.maximum(rib, 20 - np.abs(p.x)), hu["bone"] + 60)
    p.paint(image, f.cavity, hu["fat"] + p.field(30, 7))
    p.paint(image, f.psoas, hu["muscle"])
    p.paint(image, f.back, hu["muscle"] + p.field(12, 12))
    p.paint(image, f.spine, hu["bone"] + 130)
    p.paint(image, f.spine + 2.8, np.where(f.disc, 85, hu["bone"] + p.field(10, 22)))
    p.paint(image, np.sqrt(p.x**2 + (p.y - 71) ** 2) - 8, 25.0)  # the spinal canal


def _bowel(p: _Patient, f: _Frame, image: Array) -> None:
    """Gut, which has no label: the attenuation of its neighbours, often fluid or gas inside."""
    rng = p.rng
    parts: list[tuple[Array, float, bool]] = []
    for _ in range(20):
        # a loop of small bowel wanders below the stomach
        walk = [np.array([rng.uniform(-50, 78), rng.uniform(-66, 0), rng.uniform(-120, -28)])]
        for _ in range(3):
            walk.append(np.clip(walk[-1] + rng.normal(0, (30, 16, 16)), (-60, -66, -125), (85, 12, -22)))
        parts.append((np.hstack([walk, np.full((4, 1), 12.5)]), 0.12, False))
    for name, swell, stool in (("proximal colon", 0.22, True), ("distal colon", 0.2, True), ("duodenum", 0.1, False)):
        parts.append((_nodes(name), swell, stool))
    for nodes, swell, stool in parts:
        d = np.maximum(p.tube(nodes, 1.0, swell), f.abdomen + 1)
        wall = p.hu["bowel"] + rng.normal(0, 8)
        p.paint(image, d, wall)
        chyme = float(rng.choice([12.0, 35.0, 60.0, wall]))
        p.paint(image, d + 2.6, p.field(9, 130) - 30 if stool else chyme + p.field(12, 8))
        if stool or rng.random() < 0.25:
            front = float((nodes[:, 1] - nodes[:, 3]).min()) + rng.uniform(0, 16)
            p.paint(image, np.maximum(d + 3, p.y - front), -850.0)


def _vessels(p: _Patient, image: Array, cava: Array) -> None:
    p.paint(image, cava, p.hu["vein"] - 8)
    for name in ("portal and splenic vein", "upper mesenteric vein", "left renal vein", "right renal vein"):
        p.paint(image, p.tube(name, 0.5), p.hu["vein"])
    for name in ("upper mesenteric artery", "coeliac artery"):
        p.paint(image, p.tube(name, 0.5), p.hu["aorta"])


def _contents(p: _Patient, organs: dict[str, Array], image: Array) -> None:
    """The labelled organs and what they hold."""
    rng, hu = p.rng, p.hu
    liver = organs["liver"]
    p.paint(image, liver, hu["liver"] + p.field(22, 4))
    for name in _TUBES:
        if name.endswith(("hepatic vein", "t portal vein", "anterior portal vein")):
            p.paint(image, np.maximum(p.tube(name, 0.8), liver + 2), hu["vein"])
    for _ in range(int(rng.integers(0, 4))):  # cysts, as dark as the gallbladder
        x, y, z, r = rng.uniform(-110, -30), rng.uniform(-45, 55), rng.uniform(-10, 85), rng.uniform(4, 11)
        p.paint(image, np.maximum(p.blob((x, y, z), (r, r, r)), liver + 1), rng.normal(12, 5))
    for name in ("left_kidney", "right_kidney"):
        p.paint(image, organs[name], hu["kidney"] + 8)
        p.paint(image, np.maximum(organs[name] + 5, p.field(13, 4)), hu["kidney"] - 32)  # the pyramids
    p.paint(image, organs["spleen"], hu["spleen"] + p.field(20, 3))
    p.paint(image, organs["pancreas"], hu["pancreas"] + p.field(11, 7))
    _stomach(p, organs["stomach"], image)
    if "gallbladder" in organs:
        p.paint(image, organs["gallbladder"], 45.0)
        p.paint(image, organs["gallbladder"] + 1.5, hu["gallbladder"])
    p.paint(image, organs["aorta"], hu["aorta"])


def _stomach(p: _Patient, d: Array, image: Array) -> None:
    """Wall; water, a meal or contrast medium; and mostly a bubble of air with a level."""
    rng = p.rng
    wall = min(max(rng.normal(4.5, 1), 3.0), 7.0)
    kind = int(rng.choice(3, p=[0.45, 0.43, 0.12]))
    mean, spread = ((18, 7), (52, 12), (215, 20))[kind]
    p.paint(image, d, p.hu["stomach"])
    p.paint(image, d + wall, rng.normal(mean, spread) + p.field(10, 16 if kind else 8))
    level = rng.uniform(-70, -42)
    if rng.random() < 0.7:
        # the level is horizontal whatever the bending of the patient
        above = p.axes[1][None, :, None] - np.float32(p.shift[1] + level)
        p.paint(image, np.maximum(d + wall, above), -860.0)


def _chest(p: _Patient, f: _Frame, image: Array) -> None:
    """The diaphragm and what is above it: lung, heart and gullet."""
    p.paint(image, np.maximum(f.cavity, np.abs(f.dome + 1.5) - 1.8), p.hu["muscle"])
    above = np.maximum(f.cavity, np.maximum(1 - f.dome, 18 - 0.3 * p.y - p.z))
    p.paint(image, above, p.hu["fat"])
    mediastinum = np.sqrt((p.x / 1.3) ** 2 + (p.y - 22) ** 2) - 26
    heart = p.blob((22, -34, 112), (62, 52, 40), (0, 12, 20), 0.8)
    p.paint(image, np.maximum(above, -np.minimum(mediastinum, heart - 6)), p.field(14, 30) - 840)
    p.paint(image, np.maximum(heart, 1 - f.dome), p.hu["vein"] - 12 + p.field(25, 9))
    p.paint(image, np.maximum(p.tube("gullet", 0.5), 1 - f.dome), 48.0)


def _scan(p: _Patient, image: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Point spread, shading and the correlated noise of a scanner."""
    sharp = 1.1 / p.pixel
    image = ndimage.gaussian_filter(image, (0.4, sharp, sharp))
    tissue = np.clip((image + 300) / 300, 0, 1)  # no shading in air
    grain = ndimage.gaussian_filter(rng.standard_normal(p.shape, dtype=np.float32), (0.3, 0.6, 0.6))
    level = min(max(rng.normal(15, 3), 9.0), 24.0)
    image = image + tissue * p.field(120, 7.0) + grain * np.float32(level / grain.std())
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
