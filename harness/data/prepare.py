"""From a case on disk to arrays on the network's grid, cached by content and shared by all cells."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.intensity import Intensity
from harness.data.layouts import Reader, Volume
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.records import write_atomic

PREPARE_VERSION = 2  # raised when the same file would give other arrays


@dataclass(frozen=True)
class Prepared:
    """A case ready for training and for scoring.

    Attributes:
        image: Slices (S, C, h, w) or a volume (C, z, y, x), float32, on the network's grid.
        label: (S, h, w) or (z, y, x) uint8 on the network's grid.
        reference: (z, y, x) uint8 on the original grid: what predictions are scored against.
        grid_spacing: Spacing of the network's grid in its spatial axes; ones where it is unknown.
        spacing: (z, y, x) of the original grid in millimetres, or None.
        origin: Position of the first voxel, for writing masks.
        direction: Direction cosines, for writing masks.
    """

    case: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    grid_spacing: tuple[float, ...]
    spacing: tuple[float, ...] | None
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def prepare(manifest: Manifest, reader: Reader, case: str, view: dict[str, Any], cache: Path) -> Path:
    """Preprocess one case unless the cache has it.

    Args:
        manifest: The data set.
        reader: Its reader.
        case: The case.
        view: `{"slices": {...}}` or `{"patches": {...}}`, as in a cell's data.
        cache: Folder of the cache.

    Returns:
        The cached file.

    Raises:
        BenchError: A file is missing, damaged, or does not fit the view.
    """
    absent = reader.missing([case])
    if absent:
        raise BenchError(f"{absent[0]}: no such file.")
    shaping = {"slices": view["slices"]} if "slices" in view else {"patches": {"size": view["patches"]["size"]}}
    key_parts = [PREPARE_VERSION, manifest.digest(), case, reader.digest(case), shaping]
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()[:20]
    path = cache / manifest.name / f"{key}.npz"
    if path.is_file():
        return path
    volume = reader.read(case)
    image = normalise(volume.image, manifest.spec.intensity)
    shaped = (
        _slices(volume, image, view["slices"], case) if "slices" in view else _patches(volume, image, view["patches"])
    )
    meta = {
        "case": case,
        "grid_spacing": shaped[2],
        "spacing": volume.spacing,
        "origin": volume.origin,
        "direction": volume.direction,
    }

    def save(stream: Any) -> None:
        np.savez(stream, image=shaped[0], label=shaped[1], reference=volume.label, meta=np.array(json.dumps(meta)))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save)
    return path


def load_prepared(path: Path) -> Prepared:
    """Read a cached case.

    Raises:
        BenchError: The file is damaged; it is removed, so that the next run makes it again.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            image, label, reference = arrays["image"], arrays["label"], arrays["reference"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        path.unlink(missing_ok=True)
        raise BenchError(
            f"{path}: the cached case was damaged ({error}) and is removed; run the command again."
        ) from None
    spacing = None if meta["spacing"] is None else tuple(meta["spacing"])
    grid, origin, direction = (tuple(meta[k]) for k in ("grid_spacing", "origin", "direction"))
    return Prepared(meta["case"], image, label, reference, grid, spacing, origin, direction)


def normalise(image: NDArray[np.float32], how: Intensity) -> NDArray[np.float32]:
    """Scale intensities per channel as the manifest says."""
    if how.window is not None:
        low, high = how.window
        return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)
    out = np.empty_like(image)
    for i, channel in enumerate(image.astype(np.float64)):
        if how.percentiles is not None:
            channel = np.clip(channel, *np.percentile(channel, how.percentiles))
        out[i] = (channel - channel.mean()) / max(channel.std(), 1e-8)
    return out


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


def restore(prediction: NDArray[np.uint8], reference_shape: tuple[int, ...], view: dict[str, Any]) -> NDArray[np.uint8]:
    """Bring a predicted label from the network's grid back to the original grid (z, y, x)."""
    if "patches" in view:
        starts = [p[0] for p in _pads(reference_shape, prediction.shape)]
        return prediction[tuple(slice(s, s + n) for s, n in zip(starts, reference_shape, strict=True))]
    axis = int(view["slices"]["axis"])
    shape = tuple(n for i, n in enumerate(reference_shape) if i != axis)
    if view["slices"]["fit"] == "pad":
        (top, _), (left, _) = _pads(shape, prediction.shape[1:])
        planes = prediction[:, top : top + shape[0], left : left + shape[1]]
    else:
        from scipy.ndimage import zoom

        factors = (shape[0] / prediction.shape[1], shape[1] / prediction.shape[2])
        planes = np.stack([zoom(s, factors, order=0, mode="mirror") for s in prediction])
    return np.ascontiguousarray(np.moveaxis(planes, 0, axis))


def _pads(shape: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
    return [((b - a) // 2, b - a - (b - a) // 2) for a, b in zip(shape, size, strict=True)]


def _unit(spacing: tuple[float, ...] | None) -> tuple[float, ...]:
    return (1.0, 1.0, 1.0) if spacing is None else spacing
