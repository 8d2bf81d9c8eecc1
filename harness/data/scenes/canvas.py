"""A grid of voxels to draw on: signed distances of simple bodies, smooth random fields, partial volume, noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.floating[Any]]
Point = tuple[float, float, float]

MODES = 24  # plane waves of a random field: enough that its values are nearly normal


class Canvas:
    """Voxel centres in the millimetres of a reference field of view, bent by a slow random field.

    Distances are float32 (z, y, x) in mm, negative inside, and exact only near a surface. Random draws do not depend on
    the number of voxels, so another shape samples the same case; only the noise is drawn per voxel.

    Args:
        seed: The case.
        shape: Voxels (z, y, x).
        fov: What the grid covers, (z, y, x) in mm.
        bend: Standard deviation of the bending in mm.
        stream: Draws of another stream of the same seed: frames of one patient share the seed and differ in this.
    """

    def __init__(self, seed: int, shape: tuple[int, int, int], fov: Point, bend: float = 2.0, stream: int = 0) -> None:
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._grain = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1 + stream])))
        self.shape = shape
        self.voxel = tuple(f / n for f, n in zip(fov, shape, strict=True))
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * v).astype(np.float32) for n, v in zip(shape, self.voxel, strict=True)
        ]
        grid = np.meshgrid(*self.axes, indexing="ij", sparse=True)
        scale = self.rng.normal(1, 0.04, 3).clip(0.92, 1.06)
        self.z, self.y, self.x = (
            c / np.float32(k) + self.field(fov[1] / 3, bend) for c, k in zip(grid, scale, strict=True)
        )

    def field(self, pitch: float, amplitude: float) -> Array:
        """A smooth random field of standard deviation `amplitude`, waves of about four `pitch` (mm)."""
        way = self.rng.standard_normal((MODES, 3))
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        number = way * (self.rng.uniform(0.25, 0.6, (MODES, 1)) * np.pi / pitch)
        phase = self.rng.uniform(0, 2 * np.pi, MODES)
        waves = [np.exp(1j * number[:, i, None] * axis).astype(np.complex64) for i, axis in enumerate(self.axes)]
        waves[0] *= np.exp(1j * phase).astype(np.complex64)[:, None]
        plane = np.einsum("my,mx->myx", waves[1], waves[2]).reshape(MODES, -1)
        total = (waves[0].T @ plane).real.reshape(self.shape)
        return np.asarray(total * np.float32(amplitude * np.sqrt(2 / MODES)))

    def ellipsoid(self, centre: Sequence[float], semi: Sequence[float], turn: float = 0.0) -> Array:
        """An ellipsoid: centre and half axes (z, y, x) in mm, turned about z by degrees."""
        c = np.asarray(centre, np.float32)
        r = np.asarray(semi, np.float32)
        z, y, x = self.z - c[0], self.y - c[1], self.x - c[2]
        if turn:
            cos, sin = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
            y, x = cos * y - sin * x, sin * y + cos * x
        k0 = np.sqrt((z / r[0]) ** 2 + (y / r[1]) ** 2 + (x / r[2]) ** 2)
        k1 = np.sqrt((z / r[0] ** 2) ** 2 + (y / r[1] ** 2) ** 2 + (x / r[2] ** 2) ** 2)
        return np.asarray(k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6)))

    def tube(self, nodes: Sequence[Sequence[float]]) -> Array:
        """A tube through nodes (z, y, x, radius) in mm, with round ends."""
        out = np.full(self.shape, np.float32(np.inf))
        for a, b in pairwise(np.asarray(nodes, np.float32)):
            step = b - a
            z, y, x = self.z - a[0], self.y - a[1], self.x - a[2]
            t = np.clip((z * step[0] + y * step[1] + x * step[2]) / max(float(step[:3] @ step[:3]), 1e-6), 0, 1)
            away = np.sqrt((z - t * step[0]) ** 2 + (y - t * step[1]) ** 2 + (x - t * step[2]) ** 2)
            out = np.minimum(out, away - (a[3] + t * step[3]))
        return out

    def paint(self, image: Array, distance: Array, value: float | Array) -> None:
        """Lay a tissue over the image, mixed with what is there in the voxels that its surface cuts."""
        edge = np.float32(np.sqrt(self.voxel[1] * self.voxel[2]))
        image += np.clip(0.5 - distance / edge, 0, 1) * (value - image)

    def noise(self, level: float) -> Array:
        """Slightly correlated noise of standard deviation `level`."""
        grain = self._grain.standard_normal(self.shape, dtype=np.float32)
        grain = ndimage.gaussian_filter(grain, (0.0, 0.5, 0.5))
        return np.asarray(grain * np.float32(level / grain.std()))

    def mri(self, image: Array, level: float, shading: float = 0.12) -> NDArray[np.float32]:
        """Magnitudes of a scanner: slow shading of the coil, then Rician noise; whole numbers from 0."""
        bright = image * np.exp(self.field(max(self.axes[1][-1] * 0.8, 1.0), shading))
        real, imaginary = bright + self.noise(level), self.noise(level)
        return np.asarray(np.rint(np.hypot(real, imaginary)), np.float32)
