"""The layout `synapse_npz`: TransUNet's preprocessed copy of Synapse, slices in npz and volumes in HDF5.

Values are clipped and scaled to [0, 1] already, and the classes are numbered 1 to 8. No file states a spacing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.cases import sorted_cases
from harness.data.layouts.base import (
    IGNORE,
    Volume,
    check_not_empty,
    digest_of,
    file_values,
    is_there,
    listed,
    remap,
    root_of,
    text_option,
)
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import by, readable

_SLICE = re.compile(r"case(.+)_slice(\d{3,})\.npz")


class SynapseNpz:
    """`train_npz/caseXXXX_sliceYYY.npz` for training and `test_vol_h5/caseXXXX.npy.h5` for test volumes.

    Args:
        folder: Folder that holds the two, below the folder of data.
        volumes: Cases that are volumes in HDF5; the others are slices.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str, volumes: list[str]) -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root) / text_option(manifest, "folder", folder)
        if not isinstance(volumes, list) or not all(isinstance(v, str) for v in volumes):
            raise manifest.file.error(
                ("layout", "synapse_npz", "volumes"), f"expected a list of cases, found {volumes!r}."
            )
        self._volumes = frozenset(volumes)
        self._slices: dict[str, list[Path]] | None = None

    def _volume(self, case: str) -> Path:
        return self._root / "test_vol_h5" / f"case{case}.npy.h5"

    def _slice(self, case: str, number: int) -> Path:
        return self._root / "train_npz" / f"case{case}_slice{number:03d}.npz"

    def _found(self) -> dict[str, list[Path]]:
        """Case → its slices by number; the folder holds thousands of files and is read once."""
        if self._slices is None:
            numbered: dict[str, dict[int, Path]] = {}
            for path in listed(self._root / "train_npz"):
                if match := _SLICE.fullmatch(path.name):
                    numbered.setdefault(match[1], {})[int(match[2])] = path
            self._slices = {case: [parts[n] for n in sorted(parts)] for case, parts in numbered.items()}
        return self._slices

    def _paths(self, case: str) -> list[Path]:
        return [self._volume(case)] if case in self._volumes else self._found().get(case, [self._slice(case, 0)])

    def cases(self) -> list[str]:
        """Cases of either folder."""
        volumes = [p.name[len("case") : -len(".npy.h5")] for p in listed(self._root / "test_vol_h5")
                   if p.name.startswith("case") and p.name.endswith(".npy.h5")]  # fmt: skip
        return sorted_cases([*self._found(), *volumes])

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there; slices are numbered from 0 without a gap."""
        absent: list[Path] = []
        for case in cases:
            if case in self._volumes:
                absent += [] if is_there(self._volume(case)) else [self._volume(case)]
                continue
            names = {p.name for p in self._found().get(case, [])}
            last = max((int(m[2]) for n in names if (m := _SLICE.fullmatch(n))), default=0)
            absent += [p for k in range(last + 1) if (p := self._slice(case, k)).name not in names]
        return absent

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        return digest_of(self._paths(case))

    def read(self, case: str) -> Volume:
        """Read one case; slices are stacked to a volume."""
        if case in self._volumes:
            path = self._volume(case)
            image, label = _hdf5(path)
        else:
            if absent := self.missing([case]):
                raise BenchError(f"{absent[0]}: no such file.")
            path = self._paths(case)[0]
            image, label = _stacked(self._paths(case))
        if image.shape != label.shape or image.ndim != 3:
            raise BenchError(
                f"{path}: the image has {by(image.shape)} voxels and its label {by(label.shape)}; expected the same "
                "three axes (z, y, x)."
            )
        if not image.size:
            raise BenchError(f"{path}: {by(image.shape)} voxels (z, y, x): there is nothing in it.")
        if not np.isfinite(image).all():
            raise BenchError(f"{path}: holds values that are not finite numbers.")
        spacing = self._manifest.spacing_of(case, None)
        return Volume(image[None].astype(np.float32), remap(self._manifest, label, path), spacing)

    def write(self, case: str, volume: Volume) -> None:
        """Write one case; image and label are float32, as in the published files."""
        if len(volume.image) != 1:
            raise BenchError(f"{self._root}: {len(volume.image)} channels; this layout holds one.")
        image, label = volume.image[0], file_values(self._manifest, volume.label).astype(np.float32)
        if case in self._volumes:
            import h5py

            path = self._volume(case)
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["image"], file["label"] = image, label
            return
        self._slice(case, 0).parent.mkdir(parents=True, exist_ok=True)
        for k, (plane, marks) in enumerate(zip(image, label, strict=True)):
            np.savez(self._slice(case, k), image=plane, label=marks)
        self._slices = None

    def doubts(self, case: str, volume: Volume) -> str | None:
        """Whether the numbers of the classes mean what the manifest says, by size and position of the organs.

        The liver is the largest organ, the aorta lies between the kidneys, and the right one is on the liver's side.

        Returns:
            A sentence, or None; nothing is said where an organ that it takes is not in the case.
        """
        index = self._manifest.classes
        sizes = np.bincount(volume.label[volume.label != IGNORE], minlength=len(index) + 1)
        path = self._paths(case)[0]
        if "liver" in index and sizes[index["liver"]] != sizes[1:].max():
            largest = next(n for n, i in index.items() if sizes[i] == sizes[1:].max())
            value = self._manifest.spec.labels["liver"]
            return (
                f"{path}: class {value}, the liver, is not the largest organ but {largest} is; "
                "the files number their classes otherwise than the manifest."
            )
        names = ("left_kidney", "right_kidney", "aorta", "liver")
        if not all(n in index and sizes[index[n]] for n in names):
            return None
        left, right, aorta, liver = (np.argwhere(volume.label == index[n]).mean(0)[1:] for n in names)
        axis = int(np.argmax(np.abs(left - right)))  # left to right of the patient, whichever way slices are turned
        if (left[axis] - aorta[axis]) * (right[axis] - aorta[axis]) >= 0:
            return f"{path}: the aorta does not lie between the kidneys; the files number their classes otherwise."
        if (right[axis] - aorta[axis]) * (liver[axis] - aorta[axis]) <= 0:
            return (
                f"{path}: the right kidney does not lie on the liver's side; left and right are exchanged "
                "between the files and the manifest."
            )
        return None

    def finish(self, cases: Sequence[str]) -> None:
        """Nothing that is read belongs to the folder."""


def _hdf5(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    import h5py

    with readable(path):
        check_not_empty(path)
        with h5py.File(path, "r") as file:
            for key in ("image", "label"):
                if key not in file and file.get(key, getlink=True, default=None) is None:
                    raise BenchError(f"{path}: has no array {key!r}; it holds {', '.join(file) or 'nothing'}.")
                if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
                    raise BenchError(f"{path}: {key!r} is a link to another file, expected an array.")
                if not isinstance(file[key], h5py.Dataset):
                    raise BenchError(f"{path}: {key!r} is a group, expected an array.")
                if file[key].is_virtual or file[key].external:
                    raise BenchError(f"{path}: {key!r} lies in other files, expected an array.")
            return _numbers(path, file["image"][()]), _numbers(path, file["label"][()])


def _stacked(paths: Sequence[Path]) -> tuple[NDArray[Any], NDArray[Any]]:
    images: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    for path in paths:
        image, label = _npz(path)
        for array, what in ((image, "image"), (label, "label")):
            shape = images[0].shape if images else image.shape
            if array.ndim != 2 or array.shape != shape:
                raise BenchError(f"{path}: the {what} has {by(array.shape)} pixels, expected {by(shape)} (y, x).")
        images.append(image)
        labels.append(label)
    return np.stack(images), np.stack(labels)


def _npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with readable(path):
            check_not_empty(path)
            opened = np.load(path, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                raise BenchError(f"{path}: is a single array (.npy) under this name, expected an npz of two.")
            with opened as arrays:
                for key in ("image", "label"):
                    if key not in arrays:
                        raise BenchError(f"{path}: has no array {key!r}; it holds {', '.join(arrays) or 'nothing'}.")
                return _numbers(path, arrays["image"]), _numbers(path, arrays["label"])
    except zipfile.BadZipFile as error:
        raise BenchError(
            f"{path}: cannot be read as an npz file, it is damaged or of another format ({error})."
        ) from None


def _numbers(path: Path, array: Any) -> NDArray[Any]:
    values = np.asarray(array)
    if values.dtype.kind not in "iufb":
        raise BenchError(f"{path}: holds numbers of the type {values.dtype.name}, expected real numbers.")
    return values
