"""From a case on disk to arrays on the network's grid, cached by content and shared by all cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.geometry import Geometry, on_grid
from harness.data.intensity import Intensity
from harness.data.intensity import normalise as normalise
from harness.data.layouts import IGNORE, Reader, Volume
from harness.data.manifest import Manifest
from harness.data.stored import Prepared as Prepared
from harness.data.stored import Stored as Stored
from harness.data.stored import load_prepared as load_prepared
from harness.errors import BenchError
from harness.records import write_atomic

PREPARE_VERSION = 2  # raised when the same file would give other arrays


def prepare(manifest: Manifest, reader: Reader, case: str, view: dict[str, Any], cache: Path) -> Path:
    """Preprocess one case unless the cache has it.

    Args:
        manifest: The data set.
        reader: Its reader.
        case: The case.
        view: As in a cell's data, with numbers in place of words (see `harness.data.fingerprint.resolve_view`):
            `{"slices": {...}}` or `{"patches": {...}}`, and where they are set `canonical`, `crop`, `resample` and
            `intensity`, which are done in this order but for the intensities, which come before the resampling.
        cache: Folder of the cache.

    Returns:
        The cached file.

    Raises:
        BenchError: A file is missing, damaged, or does not fit the view.
    """
    absent = reader.missing([case])
    if absent:
        raise BenchError(f"{absent[0]}: no such file.")
    key_parts = [PREPARE_VERSION, manifest.digest(), case, reader.digest(case), _shaping(view)]
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()[:20]
    path = cache / manifest.name / f"{key}.npz"
    if path.is_file():
        return path
    volume = reader.read(case)
    there, image, geometry = on_grid(volume, view, intensity_of(manifest, view), case)
    shaped = (
        _slices(there, image, view["slices"], case) if "slices" in view else _patches(there, image, view["patches"])
    )
    label, reference = shaped[1], volume.label
    if not manifest.spec.background:
        label = _without_background(label, view, case)
        reference = np.where(reference == 0, np.uint8(IGNORE), reference)  # not trained on, so not scored either
    meta: dict[str, Any] = {
        "case": case,
        "grid_spacing": shaped[2],
        "spacing": volume.spacing,
        "origin": volume.origin,
        "direction": volume.direction,
    }
    if geometry is not None:
        meta["geometry"] = geometry.described()
    if not manifest.spec.background:
        meta["first_class"] = 1

    def save(stream: Any) -> None:
        np.savez(stream, image=shaped[0], label=label, reference=reference, meta=np.array(json.dumps(meta)))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save)
    return path


def _without_background(label: NDArray[np.uint8], view: dict[str, Any], case: str) -> NDArray[np.uint8]:
    """Classes counted from 0, as the network has them; what has no class, such as padding, is ignored."""
    if "crop" in view:
        raise BenchError(f"case {case}: `crop` takes what lies outside for background, and this data set has none.")
    return np.where(label == IGNORE, label, label - np.uint8(1))  # 0 - 1 is 255, ignored


def intensity_of(manifest: Manifest, view: dict[str, Any]) -> Intensity:
    """How intensities are normalised: as the view says, else as the manifest does."""
    return Intensity.model_validate(view["intensity"]) if "intensity" in view else manifest.spec.intensity


def _shaping(view: dict[str, Any]) -> dict[str, Any]:
    """What of a view changes the arrays of a case; the overlap of windows and the choice of slices do not."""
    if "slices" in view:
        shaping: dict[str, Any] = {"slices": {k: v for k, v in view["slices"].items() if k != "keep"}}
    else:
        shaping = {"patches": {"size": view["patches"]["size"]}}
    return shaping | {k: view[k] for k in ("canonical", "crop", "resample", "intensity") if k in view}


def _slices(
    volume: Volume, image: NDArray[np.float32], view: dict[str, Any], case: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, ...]]:
    axis, (height, width) = int(view["axis"]), view["size"]
    planes = np.moveaxis(image, axis + 1, 0)  # (S, C, h, w)
    labels = np.moveaxis(volume.label, axis, 0)
    spacing = _unit(volume.spacing)
    in_plane = tuple(s for i, s in enumerate(spacing) if i != axis)
    shape = labels.shape[1:]
    if view["fit"] == "pad":
        if shape[0] > height or shape[1] > width:
            raise BenchError(
                f"case {case}: slices of {shape[0]}×{shape[1]} do not fit into size {height}×{width}; "
                "take a larger `size` or `fit: resize`."
            )
        pads = _pads(shape, (height, width))
        # the image's own edge is continued: a step to zero would be an edge that is not in the patient
        return np.pad(planes, ((0, 0), (0, 0), *pads), mode="edge"), np.pad(labels, ((0, 0), *pads)), in_plane
    from scipy.ndimage import zoom

    factors = (height / shape[0], width / shape[1])
    # not scipy's default `constant`: rounding puts the last row just outside the image, and it becomes 0 (247 to 224)
    resized = np.stack([np.stack([zoom(c, factors, order=3, mode="mirror") for c in s]) for s in planes])
    marks = np.stack([zoom(s, factors, order=0, mode="mirror") for s in labels])
    known = volume.spacing is not None
    grid = tuple(s / f for s, f in zip(in_plane, factors, strict=True)) if known else in_plane
    return resized.astype(np.float32), marks, grid


def _patches(
    volume: Volume, image: NDArray[np.float32], view: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, ...]]:
    shape = volume.label.shape
    pads = _pads(shape, tuple(max(a, b) for a, b in zip(shape, view["size"], strict=True)))
    return np.pad(image, ((0, 0), *pads), mode="edge"), np.pad(volume.label, pads), _unit(volume.spacing)


def restore(
    prediction: NDArray[np.uint8],
    reference_shape: tuple[int, ...],
    view: dict[str, Any],
    geometry: Geometry | None = None,
) -> NDArray[np.uint8]:
    """Bring a predicted label from the network's grid back to the original grid (z, y, x).

    Args:
        prediction: (S, h, w) or (z, y, x), on the network's grid.
        reference_shape: Of the original grid.
        view: `{"slices": {...}}` or `{"patches": {...}}`.
        geometry: The case's, where axes or extent were changed. Where the spacing was, classes are weighed against
            each other on the way back: that takes `restore_scores`.
    """
    if geometry is None:
        return _uncut(prediction, reference_shape, view, 0)
    if geometry.resampled:
        raise ValueError("a resampled prediction goes back by its scores, see restore_scores")
    return geometry.back(_uncut(prediction, geometry.shape, view, 0))


def restore_scores(
    score: Callable[[int], NDArray[np.float32]], classes: int, view: dict[str, Any], geometry: Geometry
) -> NDArray[np.uint8]:
    """Bring class scores of a resampled case back to the original grid, and take the class with the highest.

    Scores are interpolated linearly; along an axis that was resampled by the nearest slice, by the nearest slice.

    Args:
        score: Gives (S, h, w) or (z, y, x) of one class on the network's grid, float32: probabilities, as in nnU-Net.
        classes: How many there are.
        view: `{"slices": {...}}` or `{"patches": {...}}`.
        geometry: The case's.

    Returns:
        (z, y, x) uint8.
    """
    return geometry.decide(lambda k: _uncut(score(k), geometry.shape, view, 1), classes)


def _uncut(array: NDArray[Any], shape: tuple[int, ...], view: dict[str, Any], order: int) -> NDArray[Any]:
    """Undo cutting into slices or padding to patches; `order` is that of the interpolation of resized slices."""
    if "patches" in view:
        starts = [p[0] for p in _pads(shape, array.shape)]
        return array[tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))]
    axis = int(view["slices"]["axis"])
    plane = tuple(n for i, n in enumerate(shape) if i != axis)
    if view["slices"]["fit"] == "pad":
        (top, _), (left, _) = _pads(plane, array.shape[1:])
        planes = array[:, top : top + plane[0], left : left + plane[1]]
    else:
        from scipy.ndimage import zoom

        factors = (plane[0] / array.shape[1], plane[1] / array.shape[2])
        planes = np.stack([zoom(s, factors, order=0 if order == 0 else 1, mode="mirror") for s in array])
    return np.ascontiguousarray(np.moveaxis(planes, 0, axis))


def _pads(shape: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
    return [((b - a) // 2, b - a - (b - a) // 2) for a, b in zip(shape, size, strict=True)]


def _unit(spacing: tuple[float, ...] | None) -> tuple[float, ...]:
    return (1.0, 1.0, 1.0) if spacing is None else spacing
