"""From the original grid of a case to the grid that is cut into slices or patches, and back.

Three steps, each only where the view asks for it: axes into one order (`canonical`), a bounding box (`crop`), another
spacing (`resample`). `Geometry` remembers them, so that a prediction is scored on the original grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.intensity import Intensity, normalise
from harness.data.layouts import Volume
from harness.data.resample import axis_apart, new_shape, resample, resample_label, strongest
from harness.errors import BenchError

STEPS = ("canonical", "crop", "resample")  # the keys of a view that need a geometry


@dataclass(frozen=True)
class Geometry:
    """Where a grid lies on the original one.

    Attributes:
        axes: Axis i of the grid is axis `axes[i]` of the original volume (z, y, x).
        flips: Whether axis i of the grid runs backwards.
        full: Voxels of the whole volume along the grid's axes.
        box: First voxel, and the first beyond, of the part that was kept.
        shape: Voxels that this part was resampled to.
        apart: The axis that was resampled by the nearest slice, or None.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    full: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    apart: int | None = None

    @property
    def inner(self) -> tuple[int, ...]:
        """Voxels of the part that was kept, before resampling."""
        return tuple(b - a for a, b in self.box)

    @property
    def resampled(self) -> bool:
        """Whether the part has another number of voxels than before."""
        return self.shape != self.inner

    def back(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A label of the part that was kept (before resampling) on the original grid; background outside of it."""
        whole = np.zeros(self.full, np.uint8)
        whole[tuple(slice(a, b) for a, b in self.box)] = label
        turned = np.flip(whole, tuple(i for i, f in enumerate(self.flips) if f))
        return np.ascontiguousarray(np.transpose(turned, np.argsort(self.axes)))

    def decide(self, score: Callable[[int], NDArray[np.float32]], classes: int) -> NDArray[np.uint8]:
        """The class with the highest score, on the original grid.

        Args:
            score: Gives the score of a class on the resampled grid; each is interpolated linearly, by the nearest
                slice along `apart`, as nnU-Net does with its probabilities.
            classes: How many there are.
        """
        inner = (resample(score(k), self.inner, 1, self.apart) for k in range(classes))
        return self.back(strongest(inner, range(classes)))

    def described(self) -> dict[str, Any]:
        """Plain data for the cached file."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Geometry:
        """The inverse of `described`, from JSON."""
        return cls(
            tuple(data["axes"]),
            tuple(data["flips"]),
            tuple(data["full"]),
            tuple((a, b) for a, b in data["box"]),
            tuple(data["shape"]),
            data["apart"],
        )


def on_grid(
    volume: Volume, view: dict[str, Any], how: Intensity, case: str
) -> tuple[Volume, NDArray[np.float32], Geometry | None]:
    """Bring a volume to the grid of a view, with its intensities normalised.

    Intensities are normalised between cropping and resampling, as nnU-Net's second version does.

    Args:
        volume: As read.
        view: With numbers, not words, in `resample`.
        how: How to normalise.
        case: Its name, for messages.

    Returns:
        The volume on the grid (its image not normalised, or resampled), the network's input (C, z, y, x), and the
        way back; None where the view asks for none of the steps.

    Raises:
        BenchError: Resampling is asked for and the spacing is unknown.
    """
    if not any(view.get(step) for step in STEPS):
        return volume, normalise(volume.image, how), None
    cut, geometry = cut_out(volume, view)
    image = normalise(cut.image, how)
    if "resample" not in view:
        return cut, image, geometry
    if cut.spacing is None:
        raise BenchError(
            f"case {case}: its spacing is unknown, and `resample` needs it; leave `resample` away, or give a table "
            "under `spacing` in the manifest."
        )
    target = view["resample"]["spacing"]
    shape, apart = new_shape(geometry.inner, cut.spacing, target), axis_apart(cut.spacing, target)
    label = resample_label(cut.label, shape, apart)
    fitted = [s * n / m for s, n, m in zip(cut.spacing, geometry.inner, shape, strict=True)]
    there = replace(cut, label=label, spacing=(fitted[0], fitted[1], fitted[2]))
    if shape != geometry.inner:
        image = np.stack([resample(channel, shape, 3, apart) for channel in image])
    return there, image, replace(geometry, shape=shape, apart=apart)


def cut_out(volume: Volume, view: dict[str, Any]) -> tuple[Volume, Geometry]:
    """Order the axes and crop, as the view says; label and image stay in the units of the file."""
    axes, flips = canonical_axes(volume.direction) if view.get("canonical") else ((0, 1, 2), (False, False, False))
    image = _turned(volume.image, axes, flips)
    label = _turned(volume.label, axes, flips)
    box = bounding_box(image, view["crop"]) if view.get("crop") else tuple((0, n) for n in label.shape)
    window = tuple(slice(a, b) for a, b in box)
    spacing = volume.spacing and (volume.spacing[axes[0]], volume.spacing[axes[1]], volume.spacing[axes[2]])
    inner = tuple(b - a for a, b in box)
    cut = Volume(image[(slice(None), *window)], label[window], spacing)
    return cut, Geometry(axes, flips, label.shape, box, inner)


def canonical_axes(direction: tuple[float, ...]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which axis of an array (z, y, x) goes up, to the front and to the right of the patient, and which runs backwards.

    The order is that of NIfTI's RAS: in the result z rises to the top of the head, y to the front, x to the right.

    Args:
        direction: Nine cosines as SimpleITK gives them: column j is the direction of axis j of (x, y, z) in
            coordinates that rise to the left, to the back and to the top.

    Returns:
        `axes` and `flips` as in `Geometry`; of rotated grids the closest assignment of axes.
    """
    cosines = np.reshape(np.array(direction, float), (3, 3))
    # how much each array axis (rows: z, y, x) runs along each canonical one (columns: up, front, right)
    along = np.array([[cosines[2, j], -cosines[1, j], -cosines[0, j]] for j in (2, 1, 0)])
    best = max(permutations(range(3)), key=lambda order: sum(abs(along[a, i]) for i, a in enumerate(order)))
    flips = [bool(along[a, i] < 0) for i, a in enumerate(best)]
    return (best[0], best[1], best[2]), (flips[0], flips[1], flips[2])


def bounding_box(image: NDArray[np.float32], crop: str) -> tuple[tuple[int, int], ...]:
    """The box of what is there.

    Args:
        image: (C, z, y, x).
        crop: `nonzero`, the voxels that are not 0 in any channel; `body`, the largest connected part of the first
            channel above Otsu's threshold.

    Returns:
        First voxel and the first beyond along each axis; the whole volume where nothing is there.
    """
    if crop == "nonzero":
        inside = (image != 0).any(axis=0)
    elif crop == "body":
        inside = _body(image[0])
    else:
        raise ValueError(f"crop must be 'nonzero' or 'body', found {crop!r}")
    if not inside.any():
        return tuple((0, n) for n in inside.shape)
    box = []
    for axis in range(inside.ndim):
        places = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        box.append((int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _body(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    from scipy.ndimage import label
    from skimage.filters import threshold_otsu

    if image.min() == image.max():
        return np.zeros(image.shape, bool)
    parts, count = label(image > threshold_otsu(image))
    if not count:
        return np.zeros(image.shape, bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    found: NDArray[np.bool_] = parts == sizes.argmax()
    return found


def _turned(array: NDArray[Any], axes: tuple[int, ...], flips: tuple[bool, ...]) -> NDArray[Any]:
    """The last three axes in another order, and backwards where `flips` says so."""
    lead = array.ndim - 3
    order = (*range(lead), *(lead + a for a in axes))
    turned: NDArray[Any] = np.flip(np.transpose(array, order), tuple(lead + i for i, f in enumerate(flips) if f))
    return turned
