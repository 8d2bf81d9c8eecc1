"""Image files of a case: read with every fault as one sentence, and written in a type that loses nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.layouts.base import Volume, check_not_empty, file_values, is_there, listed, remap
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import (
    JPEG,
    META,
    NIFTI,
    PICTURES,
    by,
    check_bmp,
    check_jpeg,
    check_meta,
    ending_of,
    has_palette,
    locale_kept,
    nifti_header,
    quiet,
    readable,
    stated,
    stored_type,
)
from harness.imagefiles import read_nifti as read_stored

ORTHONORMAL = 1e-3  # a NIfTI keeps its directions as float32


def assemble(
    manifest: Manifest, case: str, images: Sequence[Path], label: Path, merge: dict[int, int] | None = None
) -> Volume:
    """One case out of its files.

    Args:
        manifest: The data set.
        case: The case.
        images: Its image files; each gives one channel or several.
        label: Its label file.
        merge: Label value in the file → value that it counts as.

    Raises:
        BenchError: A file is not there, is damaged, or does not fit the manifest or the label.
    """
    import SimpleITK as sitk

    planar = manifest.spec.dimensions == 2
    read = [_slice(read_image(path), path) if planar else read_image(path) for path in images]
    truth = _slice(read_image(label, palette=True), label) if planar else read_image(label)
    if truth.GetNumberOfComponentsPerPixel() > 1:
        raise BenchError(f"{label}: {truth.GetNumberOfComponentsPerPixel()} colours, expected one label a voxel.")
    for path, image, what in (
        *((p, i, "an image") for p, i in zip(images, read, strict=True)),
        (label, truth, "a label"),
    ):
        if image.GetDimension() == 2:
            raise BenchError(
                f"{path}: {what} of 2 dimensions, expected a volume of 3; a 2D data set says `dimensions: 2`."
            )
    channels: list[NDArray[np.float32]] = []
    for path, image in zip(images, read, strict=True):
        channels += _channels(path, image, label, truth)
    if len(channels) != len(manifest.spec.modalities):
        raise BenchError(
            f"{images[0]}: {len(channels)} channels, the manifest names {len(manifest.spec.modalities)} modalities."
        )
    if not (planar and manifest.spec.spacing == "unknown"):  # a photograph's header states a density for printing
        for path, image in zip(images, read, strict=True):
            _same_grid(path, image, label, truth)
    return Volume(
        np.stack(channels),
        remap(manifest, sitk.GetArrayFromImage(truth), label, merge),
        manifest.spacing_of(case, truth.GetSpacing()[::-1] if _states_spacing(label) else None),
        truth.GetOrigin(),
        truth.GetDirection(),
    )


def _states_spacing(label: Path) -> bool:
    """Whether a file says how large its voxels are; ITK gives 1 mm to one that does not."""
    if not ending_of(label):
        return True  # a format whose header is not looked into here, such as DICOM, which always states it
    with readable(label):
        return bool(stated(label, 3).spacing)


def _channels(path: Path, image: Any, label: Path, truth: Any) -> list[NDArray[np.float32]]:
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)  # colours are channels
    parts = list(array) if array.ndim == 4 else [array]  # the Decathlon keeps modalities on a fourth axis
    for part in parts:
        if part.ndim != 3:
            raise BenchError(f"{path}: an image of {part.ndim} dimensions, expected a volume of 3.")
        if part.shape != truth.GetSize()[::-1]:
            raise BenchError(
                f"{path}: the image has {by(part.shape)} voxels (z, y, x) and its label {label.name} has "
                f"{by(truth.GetSize()[::-1])}; they must be the same grid."
            )
        if not np.isfinite(part).all():
            raise BenchError(f"{path}: holds values that are not finite numbers.")
    return parts


def read_image(path: Path, *, palette: bool = False) -> Any:
    """An image by SimpleITK, after what ITK lets pass is refused; a folder is a DICOM series.

    Args:
        path: The file or folder.
        palette: The numbers of a picture with a palette are labels, and not colours.

    Raises:
        BenchError: It is not there, may not be read, is damaged, or its numbers are not real and finite.
    """
    import SimpleITK as sitk

    if not is_there(path):
        raise BenchError(f"{path}: no such file.")
    if path.is_dir():
        if ending_of(path):
            raise BenchError(f"{path}: is a folder, expected a file of this name.")
        return _read_series(path)
    with readable(path), quiet():
        check_not_empty(path)
        ending = ending_of(path)
        if ending in NIFTI:
            _check_nifti(path)
        elif ending in META:
            check_meta(path)
        elif ending == ".bmp":
            check_bmp(path)
        elif path.suffix.lower() in JPEG:
            check_jpeg(path)
        numbers = _numbers_of(path, palette) if ending in PICTURES else None
        if numbers is not None:
            return sitk.GetImageFromArray(numbers)
        image = sitk.ReadImage(str(path))
    kind = image.GetPixelIDTypeAsString()
    if "complex" in kind:
        raise BenchError(f"{path}: holds {kind} numbers, expected one real number a voxel and channel.")
    return image


def _numbers_of(path: Path, palette: bool) -> NDArray[Any] | None:
    """The pixels of a picture that ITK would turn into colours: with a palette, or a grey bitmap; None for others."""
    from PIL import Image

    if ending_of(path) != ".bmp" and not (palette and has_palette(path)):
        return None
    with Image.open(path) as picture:
        if picture.mode == "1":
            return np.array(picture.convert("L"))
        return np.array(picture) if picture.mode == "L" or (palette and picture.mode == "P") else None


def _check_nifti(path: Path) -> None:
    """Refuse what ITK reads without a word, or refuses in many: truncation, NaN, odd types, sides and directions."""
    header = nifti_header(path)
    kind = stored_type(header)
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise BenchError(
            f"{path}: holds numbers of the type {kind.name if kind.names is None else 'colours (RGB)'}, expected "
            "integers or floating point numbers of at most 64 bits; write it as int16 or float32."
        )
    sides = np.asarray(header["pixdim"][1:4], np.float64)[: max(int(header["dim"][0]), 1)]
    if not (np.isfinite(sides) & (sides > 0)).all():
        shown = ", ".join(f"{v:g}" for v in sides)
        raise BenchError(f"{path}: the header states the spacing ({shown}) (x, y, z), expected positive numbers.")
    if header["sform_code"] > 0:
        check_directions(path, np.asarray(header.get_sform(), np.float64)[:3, :3])
    values = read_stored(path)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BenchError(f"{path}: holds values that are not finite numbers.")


def check_directions(path: Path, axes: NDArray[np.float64]) -> None:
    """Refuse axes that are not at right angles: distances and rotations would be wrong.

    Args:
        path: The file.
        axes: (3, 3), one axis of the image per column, of any length.

    Raises:
        BenchError: Two of them are not at right angles, or one has no length.
    """
    lengths = np.linalg.norm(axes, axis=0)
    unit = axes / np.where(lengths > 0, lengths, 1)
    off = np.abs(unit.T @ unit - np.eye(3)).max()
    if not np.isfinite(off) or off > ORTHONORMAL:
        raise BenchError(
            f"{path}: the direction of its axes is not orthonormal (off by {off:.2g}): the image is sheared; "
            "resample it to a grid at right angles."
        )


def _read_series(folder: Path) -> Any:
    """The one DICOM series of a folder."""
    import SimpleITK as sitk

    with readable(folder), quiet(), locale_kept():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(series) != 1:
            files = sum(p.is_file() for p in listed(folder))
            raise BenchError(
                f"{folder}: {len(series)} DICOM series in {files} files, expected one; "
                "put each series into a folder of its own."
            )
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        return reader.Execute()


def _slice(image: Any, path: Path) -> Any:
    """An image of a 2D data set as a volume of one slice, the form that everything here has."""
    import SimpleITK as sitk

    if image.GetDimension() == 2:
        return sitk.JoinSeries(image)
    if image.GetDimension() != 3 or image.GetDepth() != 1:
        raise BenchError(
            f"{path}: {by(image.GetSize()[::-1])} voxels, expected one image of two dimensions; "
            "the manifest says `dimensions: 2`."
        )
    return image


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


def _round(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def write_case(manifest: Manifest, volume: Volume, images: Sequence[Path], label: Path) -> None:
    """Write the files of a case: the inverse of `assemble`.

    Args:
        manifest: The data set.
        volume: The case.
        images: One file for each channel, or one for all of them.
        label: The label file.

    Raises:
        BenchError: The files cannot hold the volume.
    """
    if len(images) not in (1, len(volume.image)):
        raise BenchError(f"{images[0]}: {len(volume.image)} channels for {len(images)} files.")
    groups = [volume.image] if len(images) == 1 else [channel[None] for channel in volume.image]
    for path, channels in zip(images, groups, strict=True):
        write_image(path, channels, volume)
    write_image(label, file_values(manifest, volume.label)[None], volume)


def write_image(path: Path, channels: NDArray[Any], volume: Volume) -> None:
    """Write one file.

    Args:
        path: Its ending names the format; without one it is the folder of a DICOM series.
        channels: (C, z, y, x); colours in pictures, a fourth axis in volumes.
        volume: Whose grid it is.

    Raises:
        BenchError: The format cannot hold the values.
    """
    import SimpleITK as sitk

    if path.suffix.lower() in JPEG:
        raise BenchError(f"{path}: a JPEG does not keep the values it is given; a phantom needs .png or another one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = _smallest(path, channels)
    picture = ending_of(path) in PICTURES
    if picture:
        if values.shape[1] != 1:
            raise BenchError(f"{path}: a picture holds one slice, found {values.shape[1]}.")
        flat = values[:, 0]
        image = sitk.GetImageFromArray(flat[0]) if len(flat) == 1 else _colours(flat)
        sitk.WriteImage(image, str(path))
        return
    grids = [sitk.GetImageFromArray(v) for v in values]
    for grid in grids:
        grid.SetSpacing([float(s) for s in (volume.spacing or (1.0, 1.0, 1.0))[::-1]])
        grid.SetOrigin(volume.origin)
        grid.SetDirection(volume.direction)
    if not ending_of(path):
        _write_series(path, grids, values)
        return
    sitk.WriteImage(grids[0] if len(grids) == 1 else sitk.JoinSeries(grids), str(path), useCompression=True)


def _colours(values: NDArray[Any]) -> Any:
    import SimpleITK as sitk

    return sitk.GetImageFromArray(np.moveaxis(values, 0, -1), isVector=True)


def _smallest(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Values in the type that files of this kind have: whole numbers as integers, unless that would change them."""
    if values.dtype.kind in "iu":
        return values
    whole = bool(np.equal(values, np.round(values)).all())
    low, high = float(values.min()), float(values.max())
    ending = ending_of(path)
    if ending in PICTURES:
        if whole and low >= 0 and high <= 65535:
            return values.astype(np.uint8 if high <= 255 else np.uint16)
        if ending in (".tif", ".tiff"):
            return values.astype(np.float32)
        raise BenchError(f"{path}: values from {low:g} to {high:g}; a {ending} holds whole numbers from 0 to 65535.")
    if whole and low >= -32768 and high <= 32767:
        return values.astype(np.int16)
    if not ending:
        raise BenchError(f"{path}: values from {low:g} to {high:g}; a DICOM series holds whole numbers of 16 bits.")
    return values.astype(np.float32)


@locale_kept()
def _write_series(folder: Path, grids: Sequence[Any], values: NDArray[Any]) -> None:
    """A DICOM series, one file a slice."""
    import SimpleITK as sitk

    if len(grids) != 1:
        raise BenchError(f"{folder}: {len(grids)} channels; a DICOM series holds one, name a folder for each.")
    if np.linalg.det(np.reshape(grids[0].GetDirection(), (3, 3))) < 0:
        raise BenchError(f"{folder}: the grid is left-handed; slices of a DICOM series are sorted, and are never so.")
    folder.mkdir(parents=True, exist_ok=True)
    grid = sitk.Cast(grids[0], sitk.sitkInt16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = grid.GetDirection()
    # a UID of the arc for made-up ones, from the content: the same case is the same series
    uid = f"2.25.{int.from_bytes(hashlib.sha256(values.tobytes()).digest()[:12], 'big')}"
    for k in range(grid.GetDepth()):
        part = grid[:, :, k]
        position = grid.TransformIndexToPhysicalPoint((0, 0, k))
        for tag, text in (
            ("0008|0016", "1.2.840.10008.5.1.4.1.1.2"),
            ("0008|0018", f"{uid}.{k + 1}"[:64]),
            ("0008|0060", "CT"),
            ("0020|000d", f"{uid}.8"[:64]),
            ("0020|000e", f"{uid}.9"[:64]),
            ("0020|0013", str(k + 1)),
            ("0020|0032", "\\".join(f"{v:.10g}" for v in position)),
            ("0020|0037", "\\".join(f"{direction[i]:.10g}" for i in (0, 3, 6, 1, 4, 7))),
            ("0018|0050", f"{grid.GetSpacing()[2]:.10g}"),
            ("0010|0010", folder.name),
            ("0010|0020", folder.name),
        ):
            part.SetMetaData(tag, text)
        writer.SetFileName(str(folder / f"{k + 1:04d}.dcm"))
        writer.Execute(part)


def pixels_of(path: Path) -> NDArray[Any]:
    """The pixels of a PNG: (y, x) for one channel or a palette's numbers, (y, x, C) for colours.

    Raises:
        BenchError: It is not there, may not be read, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with readable(path):
            check_not_empty(path)
            with Image.open(path) as picture:
                return np.array(picture)
    except (UnidentifiedImageError, SyntaxError) as error:  # a broken chunk is a SyntaxError to pillow
        raise BenchError(f"{path}: cannot be read as an image, it is damaged or of another format ({error}).") from None
