"""A prepared case: in memory, or in its cached file and read part by part.

The file is an uncompressed `.npz`, so every array lies in it as one block of bytes. A part is read by mapping the
block, copying what is asked for and closing the map again: the process keeps nothing of what it does not use.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.geometry import Geometry
from harness.errors import BenchError

_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)


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
        geometry: The way back to the original grid, where axes, extent or spacing were changed.
        view: The view with numbers in place of words, where it had words.
        first_class: Class of the network's first output: 1 where the data set has no background.
    """

    case: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    grid_spacing: tuple[float, ...]
    spacing: tuple[float, ...] | None
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    geometry: Geometry | None = None
    view: dict[str, Any] | None = None
    first_class: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image."""
        return self.image.shape

    @property
    def nbytes(self) -> int:
        """Bytes of image and label."""
        return self.image.nbytes + self.label.nbytes

    @property
    def reference_shape(self) -> tuple[int, ...]:
        """Shape of the original grid."""
        return self.reference.shape

    def part(self, name: str, window: tuple[int | slice, ...]) -> NDArray[Any]:
        """A copy of a part of `image` or `label`."""
        return np.array(getattr(self, name)[window])


@dataclass(frozen=True)
class Block:
    """Where an array lies in a file."""

    offset: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Stored(Prepared):
    """A prepared case whose arrays stay on disk: each access to one of them reads it anew.

    Args:
        path: A file that `harness.data.prepare.prepare` wrote.

    Raises:
        BenchError: The file is damaged; it is removed, so that the next run makes it again. Parts are read without
            their checksum; whole arrays with it.
    """

    def __init__(self, path: Path, view: dict[str, Any] | None = None) -> None:
        blocks, facts = _opened(path)
        for name, value in ({"path": path, "blocks": blocks, "view": view} | facts).items():
            object.__setattr__(self, name, value)

    path: Path
    blocks: dict[str, Block]

    @property
    def image(self) -> NDArray[np.float32]:
        """The whole image, read now."""
        return self._whole("image")

    @property
    def label(self) -> NDArray[np.uint8]:
        """The whole label, read now."""
        return self._whole("label")

    @property
    def reference(self) -> NDArray[np.uint8]:
        """The whole reference, read now."""
        return self._whole("reference")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image, without reading it."""
        return self.blocks["image"].shape

    @property
    def nbytes(self) -> int:
        """Bytes of image and label, without reading them."""
        return self.blocks["image"].nbytes + self.blocks["label"].nbytes

    @property
    def reference_shape(self) -> tuple[int, ...]:
        """Shape of the original grid, without reading the reference."""
        return self.blocks["reference"].shape

    def home(self, name: str) -> Path:
        """The file that an array lies in."""
        return self.path

    def part(self, name: str, window: tuple[int | slice, ...]) -> NDArray[Any]:
        """A copy of a part of an array; nothing else of it is read."""
        block = self.blocks[name]
        try:
            mapped = np.memmap(
                self.home(name), block.dtype, "r", block.offset, block.shape, "F" if block.fortran else "C"
            )
        except (OSError, ValueError) as error:
            raise BenchError(f"{self.home(name)}: the cached case cannot be read any more ({error}).") from None
        return np.array(mapped[window])  # the map is closed with the last reference to it

    def _whole(self, name: str) -> NDArray[Any]:
        path = self.home(name)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found: NDArray[Any] = arrays[name]
        except _DAMAGED as error:
            raise _damage(path, error) from None
        return found


class Relabelled(Stored):
    """A stored case with another label: image and reference are those of the case, the label lies in a file of its own.

    Args:
        case: The case.
        path: The file with the label, and with `counts` of what was changed as its `meta`.
        condition: What was done to the label, in canonical form (`harness.data.conditions`).
        classes: Classes of the data set, without the background.

    Raises:
        BenchError: The file is damaged; it is removed, so that the next run makes it again.
    """

    def __init__(self, case: Stored, path: Path, condition: dict[str, Any], classes: int) -> None:
        own, meta = _blocks(path, {"label"})
        try:
            counts = json.loads(meta)
        except ValueError as error:
            raise _damage(path, error) from None
        known = {
            "blocks": case.blocks | own, "files": {"label": path}, "condition": condition, "classes": classes,
            "counts": counts,
        }  # fmt: skip
        for name, value in (vars(case) | known).items():
            object.__setattr__(self, name, value)

    files: dict[str, Path]
    condition: dict[str, Any]
    classes: int
    counts: dict[str, int]

    @property
    def certain(self) -> bool:
        """Whether no label that is left is in doubt."""
        return "partial" in self.condition

    def home(self, name: str) -> Path:
        """The file that an array lies in."""
        return self.files.get(name, self.path)

    def including(self, name: str, path: Path) -> Relabelled:
        """The case with one more array, out of a file of its own."""
        more = object.__new__(Relabelled)
        own, _ = _blocks(path, {name})
        for key, value in (vars(self) | {"blocks": self.blocks | own, "files": self.files | {name: path}}).items():
            object.__setattr__(more, key, value)
        return more


def load_prepared(path: Path) -> Prepared:
    """Read a cached case into memory.

    Raises:
        BenchError: The file is damaged; it is removed, so that the next run makes it again.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = _facts(str(arrays["meta"]))
            return Prepared(image=arrays["image"], label=arrays["label"], reference=arrays["reference"], **facts)
    except _DAMAGED as error:
        raise _damage(path, error) from None


def _facts(meta: str) -> dict[str, Any]:
    found = json.loads(meta)
    grid, origin, direction = (tuple(found[k]) for k in ("grid_spacing", "origin", "direction"))
    return {
        "case": found["case"],
        "grid_spacing": grid,
        "spacing": None if found["spacing"] is None else tuple(found["spacing"]),
        "origin": origin,
        "direction": direction,
        "geometry": Geometry.of(found["geometry"]) if "geometry" in found else None,
        "first_class": found.get("first_class", 0),
    }


def _opened(path: Path) -> tuple[dict[str, Block], dict[str, Any]]:
    blocks, meta = _blocks(path, {"image", "label", "reference"})
    try:
        return blocks, _facts(meta)
    except _DAMAGED as error:
        raise _damage(path, error) from None


def _blocks(path: Path, needed: set[str]) -> tuple[dict[str, Block], str]:
    """Where the arrays of a file lie, and its text `meta`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = str(arrays["meta"]) if "meta" in arrays else ""
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            blocks = {
                info.filename.removesuffix(".npy"): _block(stream, info)
                for info in archive.infolist()
                if info.filename != "meta.npy"
            }
        if not needed <= set(blocks):
            raise ValueError("an array is missing")
    except _DAMAGED as error:
        raise _damage(path, error) from None
    return blocks, meta


def _block(stream: Any, info: zipfile.ZipInfo) -> Block:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    stream.seek(info.header_offset + 26)  # the local header: 30 bytes, then a name and a field of stated lengths
    lengths = np.frombuffer(stream.read(4), "<u2")
    stream.seek(info.header_offset + 30 + int(lengths.sum()))
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return Block(stream.tell(), tuple(shape), fortran, dtype)


def _damage(path: Path, error: Exception) -> BenchError:
    if isinstance(error, OSError) and error.errno is not None:  # the system's refusal says nothing of the content
        return BenchError(f"{path}: the cached case cannot be read ({error.strerror}).")
    path.unlink(missing_ok=True)
    return BenchError(f"{path}: the cached case was damaged ({error}) and is removed; run the command again.")


def fingerprint(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 of arrays, one after the other."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(repr(array.shape).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
