"""Readers: one class per layout on disk, all with the same two methods.

A reader says what is missing and reads one case; it knows nothing of training. A data set in one of these layouts needs
a manifest and no code; a new layout is one more class here or in a file of its own, and one line in `LAYOUTS`.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.manifest import LAYOUTS, Manifest
from harness.errors import BenchError
from harness.resolve import load

IGNORE = 255


@dataclass(frozen=True)
class Volume:
    """One case on its original grid.

    Attributes:
        image: (C, z, y, x) float32, in the units of the file; an image of a 2D data set is one slice.
        label: (z, y, x) uint8; 0 background, 1..K classes in the manifest's order, 255 ignored.
        spacing: (z, y, x) in millimetres, or None where the layout stores none.
        origin: Physical position of the first voxel, SimpleITK's order.
        direction: Direction cosines, SimpleITK's order.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing: tuple[float, float, float] | None
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class Reader(Protocol):
    """What every layout offers."""

    def missing(self, cases: list[str]) -> list[Path]:
        """Files of these cases that are not there."""
        ...

    def digest(self, case: str) -> str:
        """Digest of the case's raw content."""
        ...

    def read(self, case: str) -> Volume:
        """Read one case; faults of a file are a `BenchError` that names it."""
        ...


def reader_of(manifest: Manifest, root: Path | None) -> Reader:
    """The reader of a manifest's layout.

    Args:
        manifest: The data set.
        root: Folder in which data sets lie (`--data` or `BENCH_DATA`); None where none was given.

    Raises:
        BenchError: The layout needs files and no root was given, or its options are wrong.
    """
    name, options = manifest.layout
    try:
        reader: Reader = load(LAYOUTS[name])(manifest, root, **options)
    except TypeError as error:
        text = str(error).replace("__init__() ", "").split("Phantom.")[-1]
        raise manifest.file.error(("layout", name), f"wrong options: {text}.") from None
    return reader


class Phantom:
    """The embedded procedural abdominal CT: nothing to download."""

    def __init__(self, manifest: Manifest, root: Path | None, *, shape: list[int], seed: int) -> None:
        if len(shape) != 3:
            raise manifest.file.error(("layout", "phantom", "shape"), f"expected [z, y, x], found {shape}.")
        self._manifest, self._seed = manifest, seed
        self._shape = (shape[0], shape[1], shape[2])

    def missing(self, cases: list[str]) -> list[Path]:
        """Nothing ever is."""
        return []

    def digest(self, case: str) -> str:
        """Of the generator's source and its parameters."""
        source = Path(__file__).with_name("phantom.py").read_bytes()
        return hashlib.sha256(source + repr((self._shape, self._seed, case)).encode()).hexdigest()

    def read(self, case: str) -> Volume:
        """Generate one patient."""
        from harness.data.phantom import phantom_case

        number = self._manifest.spec.cases.index(case)
        made = phantom_case(self._seed * 100_000 + number, shape=self._shape)
        return Volume(made.image[None].astype(np.float32), made.label, made.spacing)


class Files:
    """Images and labels found by patterns with `{case}`, in any format that SimpleITK reads."""

    def __init__(self, manifest: Manifest, root: Path | None, *, image: str | list[str], label: str) -> None:
        self._manifest = manifest
        self._root = _root(manifest, root)
        self._images = [image] if isinstance(image, str) else list(image)
        self._label = label
        for pattern in (*self._images, label):
            if re.sub(r"\{case\}", "", pattern).count("{") or "{case}" not in pattern:
                raise manifest.file.error(
                    ("layout", "files"), f"{pattern!r} must contain {{case}} and no other braces."
                )
        colours = manifest.spec.dimensions == 2  # one photograph has several channels: counted when it is read
        if len(self._images) != len(manifest.spec.modalities) and not colours:
            raise manifest.file.error(
                ("layout",), f"{len(self._images)} image patterns, {len(manifest.spec.modalities)} modalities."
            )

    def _paths(self, case: str) -> list[Path]:
        return [self._root / pattern.format(case=case) for pattern in (*self._images, self._label)]

    def missing(self, cases: list[str]) -> list[Path]:
        """Files that are not there."""
        return [p for case in cases for p in self._paths(case) if not p.is_file()]

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        total = hashlib.sha256()
        for path in self._paths(case):
            total.update(_file_digest(path))
        return total.hexdigest()

    def read(self, case: str) -> Volume:
        """Read one case, with one channel per image pattern."""
        *images, label = self._paths(case)
        return _assemble(self._manifest, images, label)


class Decathlon(Files):
    """The folder layout of the Medical Segmentation Decathlon: `dataset.json`, `imagesTr`, `labelsTr`."""

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str) -> None:
        self._manifest = manifest
        self._root = _root(manifest, root) / folder
        self._images = ["imagesTr/{case}.nii.gz"]
        self._label = "labelsTr/{case}.nii.gz"

    def missing(self, cases: list[str]) -> list[Path]:
        """Files that are not there, `dataset.json` first."""
        head = self._root / "dataset.json"
        if not head.is_file():
            return [head]
        self._check_labels(head)
        return super().missing(cases)

    def _check_labels(self, head: Path) -> None:
        try:
            stated = {int(v) for v in json.loads(head.read_text(encoding="utf-8"))["labels"]}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise BenchError(f"{head}: not a Decathlon description with `labels`: {error}.") from None
        spec = self._manifest.spec
        listed = {0, *spec.labels.values(), *spec.drop, *([spec.ignore] if spec.ignore is not None else [])}
        if stated - listed:
            raise BenchError(
                f"{head}: label value {min(stated - listed)} is not in the manifest {self._manifest.path}."
            )


def _root(manifest: Manifest, root: Path | None) -> Path:
    if root is None:
        raise BenchError(
            f"{manifest.name} lies outside the package: say where with --data FOLDER or BENCH_DATA. "
            f"{manifest.spec.obtain.strip()}"
        )
    return root


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _assemble(manifest: Manifest, images: list[Path], label: Path) -> Volume:
    import SimpleITK as sitk

    planar = manifest.spec.dimensions == 2
    read = [_slice(_image(path), path) if planar else _image(path) for path in images]
    truth = _slice(_image(label), label) if planar else _image(label)
    if truth.GetNumberOfComponentsPerPixel() > 1:
        raise BenchError(f"{label}: {truth.GetNumberOfComponentsPerPixel()} colours, expected one label a voxel.")
    channels: list[NDArray[np.float32]] = []
    for path, image in zip(images, read, strict=True):
        if image.GetDimension() == 2:
            raise BenchError(
                f"{path}: an image of 2 dimensions, expected a volume of 3; a 2D data set says `dimensions: 2`."
            )
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        if image.GetNumberOfComponentsPerPixel() > 1:
            array = np.moveaxis(array, -1, 0)  # colours are channels
        parts = list(array) if array.ndim == 4 else [array]  # the Decathlon keeps modalities on a fourth axis
        for part in parts:
            if part.ndim != 3:
                raise BenchError(f"{path}: an image of {part.ndim} dimensions, expected a volume of 3.")
            if part.shape != truth.GetSize()[::-1]:
                raise BenchError(
                    f"{path}: the image has {_x(part.shape)} voxels (z, y, x) and its label {label.name} has "
                    f"{_x(truth.GetSize()[::-1])}; they must be the same grid."
                )
            if not np.isfinite(part).all():
                raise BenchError(f"{path}: holds values that are not finite numbers.")
            channels.append(part)
    if len(channels) != len(manifest.spec.modalities):
        raise BenchError(
            f"{images[0]}: {len(channels)} channels, the manifest names {len(manifest.spec.modalities)} modalities."
        )
    if not (planar and manifest.spec.spacing == "unknown"):  # a photograph's header states a density for printing
        for path, image in zip(images, read, strict=True):
            _same_grid(path, image, label, truth)
    spacing = truth.GetSpacing()[::-1]
    return Volume(
        np.stack(channels),
        _remap(manifest, sitk.GetArrayFromImage(truth), label),
        (spacing[0], spacing[1], spacing[2]) if manifest.spec.spacing == "header" else None,
        truth.GetOrigin(),
        truth.GetDirection(),
    )


def _slice(image: Any, path: Path) -> Any:
    """An image of a 2D data set as a volume of one slice, the form that everything here has."""
    import SimpleITK as sitk

    if image.GetDimension() == 2:
        return sitk.JoinSeries(image)
    if image.GetDimension() != 3 or image.GetDepth() != 1:
        raise BenchError(
            f"{path}: {_x(image.GetSize()[::-1])} voxels, expected one image of two dimensions; "
            "the manifest says `dimensions: 2`."
        )
    return image


def _image(path: Path) -> Any:
    import SimpleITK as sitk

    if not path.is_file():
        raise BenchError(f"{path}: no such file.")
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = next((t.strip() for t in reversed(str(error).splitlines()) if t.strip()), "unknown reason")
        raise BenchError(
            f"{path}: cannot be read as an image, it is damaged or of another format ({reason})."
        ) from None


def _check_nifti(path: Path) -> None:
    """Refuse what ITK reads without a word: a truncated NIfTI (the rest becomes zeros) and NaN (becomes 0)."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        values = np.asanyarray(nibabel.load(path).dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BenchError(
            f"{path}: cannot be read as an image, it is damaged or of another format ({reason})."
        ) from None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BenchError(f"{path}: holds values that are not finite numbers.")


def _same_grid(path: Path, image: Any, label_path: Path, label: Any) -> None:
    for name, a, b in (
        ("spacing", image.GetSpacing()[:3], label.GetSpacing()),
        ("origin", image.GetOrigin()[:3], label.GetOrigin()),
        ("direction", _direction(image), label.GetDirection()),
    ):
        if not np.allclose(a, b, atol=1e-3):
            raise BenchError(f"{path}: {name} {_round(a)} differs from {_round(b)} of its label {label_path.name}.")


def _direction(image: Any) -> tuple[float, ...]:
    """Direction cosines of the three spatial axes, also of an image with a fourth axis of modalities."""
    n = image.GetDimension()
    return tuple(float(v) for v in np.reshape(image.GetDirection(), (n, n))[:3, :3].ravel())


def _remap(manifest: Manifest, values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if values.dtype.kind == "f":
        if not np.equal(values, np.round(values)).all():
            raise BenchError(f"{path}: label values are not whole numbers.")
        values = values.astype(np.int64)
    spec = manifest.spec
    out = np.zeros(values.shape, np.uint8)
    for index, value in enumerate(spec.labels.values(), start=1):
        out[values == value] = index
    if spec.ignore is not None:
        out[values == spec.ignore] = IGNORE
    listed = {0, *spec.labels.values(), *spec.drop, *([spec.ignore] if spec.ignore is not None else [])}
    unknown = sorted(set(np.unique(values).tolist()) - listed)
    if unknown:
        raise BenchError(
            f"{path}: label value {unknown[0]} is not in the manifest {manifest.path.name} "
            f"(labels {', '.join(f'{k}={v}' for k, v in spec.labels.items())}); name it in `labels` or `drop`."
        )
    return out


def _x(shape: Any) -> str:
    return "×".join(str(int(s)) for s in shape)


def _round(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)
