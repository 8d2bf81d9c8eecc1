"""Label images on disk: pairs of files by name, whether their headers agree, and the labels as an array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.imagefiles import (
    ENDINGS,
    META,
    NIFTI,
    by,
    check_bmp,
    check_meta,
    ending_of,
    has_palette,
    nifti_header,
    quiet,
    read_nifti,
    readable,
    stated,
)

IntArray = NDArray[np.integer[Any]]

SPACING_RTOL = 1e-4  # NIfTI keeps spacing as float32
ORIGIN_ATOL = 1e-3  # mm
DIRECTION_ATOL = 1e-3  # a NIfTI quaternion of float32 is off by up to 3e-4 where its first part is near 0


@dataclass(frozen=True)
class Pair:
    """The two files of one case."""

    case: str
    pred: Path
    ref: Path

    def __str__(self) -> str:
        """For sentences."""
        return f"case {self.case}"


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are read.

    Attributes:
        shape: (z, y, x), or (y, x) for pictures and volumes of one slice.
        spacing: Per axis of `shape`, in mm; None where the format or the file states none.
        origin: Position of the first voxel, (x, y, z) or (x, y), in mm; None where the file states none.
        direction: Direction cosines, row by row; None where the file states none.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    origin: tuple[float, ...] | None
    direction: tuple[float, ...] | None


def pair_files(pred_dir: Path, ref_dir: Path) -> list[Pair]:
    """The pairs of two folders, by name without ending, in the order of names.

    Raises:
        BenchError: A folder is not there or has no label images, a case has two files in one folder or lacks one of
            the two.
    """
    for folder in (pred_dir, ref_dir):
        if not folder.is_dir():
            raise BenchError(f"{folder} is not a folder; name the folder of predictions, then that of references.")
    if pred_dir.samefile(ref_dir):
        raise BenchError(f"{pred_dir} and {ref_dir} are the same folder; predictions and references lie apart.")
    preds, refs = _cases(pred_dir), _cases(ref_dir)
    for here, there, folder, what, lacks in (
        (refs, preds, pred_dir, "reference", "prediction"),
        (preds, refs, ref_dir, "prediction", "reference"),
    ):
        alone = [path for case, path in here.items() if case not in there]
        if alone:
            raise BenchError(
                f"{alone[0]}: this {what} has no {lacks} of its name in {folder} ({len(alone)} of {len(here)} "
                f"{what}s have none); every case needs both."
            )
    return [Pair(case, preds[case], ref) for case, ref in refs.items()]


def _cases(folder: Path) -> dict[str, Path]:
    """Case → file, sorted by case; hidden files and other endings (`dataset.json`, `.raw`) are no label images."""
    found: dict[str, list[Path]] = {}
    try:
        for path in folder.iterdir():
            ending = ending_of(path)
            if ending and not path.name.startswith(".") and path.is_file():
                found.setdefault(path.name[: -len(ending)], []).append(path)
    except OSError as error:
        raise BenchError(f"{folder}: cannot be read ({error.strerror or error}); give yourself the right to.") from None
    if not found:
        raise BenchError(f"{folder} holds no label images; expected files that end in {', '.join(ENDINGS)}.")
    double = sorted(case for case, paths in found.items() if len(paths) > 1)
    if double:
        names = " and ".join(sorted(p.name for p in found[double[0]])[:2])
        more = f" (as {len(double) - 1} more cases have)" if len(double) > 1 else ""
        raise BenchError(f"{folder}: case {double[0]!r} has two files, {names}{more}; leave one of them there.")
    return {case: found[case][0] for case in sorted(found)}


def read_header(path: Path, *, spacing: bool = True) -> Header:
    """Read what a file says about its grid.

    Args:
        path: The file.
        spacing: Whether its spacing is needed, and so must be good.

    Raises:
        BenchError: It cannot be read, its pixels are no integer labels, it has not 2 or 3 axes, or its spacing is not
            finite and positive.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with readable(path), quiet():
        reader.ReadImageInformation()
        _check_pixels(path, reader)
        size, sides = reader.GetSize(), reader.GetSpacing()
        said = stated(path, len(size))
    if spacing and said.spacing and not all(math.isfinite(s) and s > 0 for s in (*said.spacing, *sides)):
        raise BenchError(
            f"{path}: the header states the spacing {_numbers(said.spacing)} (x, y, z), expected finite and "
            "positive numbers; correct the header, or give the spacing yourself (--spacing)."
        )
    if len(size) not in (2, 3):
        raise BenchError(f"{path}: an image of {len(size)} axes ({by(size)}), expected 2 or 3; write one per case.")
    n = 2 if len(size) == 3 and size[2] == 1 else len(size)  # one slice is an image in the plane
    direction = np.reshape(reader.GetDirection(), (len(size), len(size)))[:n, :n]
    return Header(
        tuple(size[:n][::-1]),
        tuple(sides[:n][::-1]) if said.spacing else None,
        tuple(reader.GetOrigin()[:n]) if said.origin else None,
        tuple(float(v) for v in direction.ravel()) if said.direction else None,
    )


def check_headers(pair: Pair, pred: Header, ref: Header, *, geometry: bool = True) -> None:
    """Refuse two files that do not lie on the same grid.

    Args:
        pair: The files, for the sentence.
        pred: Header of the prediction.
        ref: Header of the reference.
        geometry: Also compare spacing, origin and direction, where both files state them.

    Raises:
        BenchError: They differ; it says in what and what to do.
    """
    where = f"{pair.pred}: the prediction"
    if pred.shape != ref.shape:
        raise BenchError(
            f"{where} has {by(pred.shape)} voxels and its reference {pair.ref} {by(ref.shape)} "
            f"({_axes(ref.shape)}); resample it to the reference, with the nearest neighbour."
        )
    if not geometry:
        return
    by_axis = _axes(ref.shape)
    for name, mine, its, rtol, atol, order in (
        ("spacing", pred.spacing, ref.spacing, SPACING_RTOL, 0.0, f" ({by_axis})"),
        ("origin", pred.origin, ref.origin, 0.0, ORIGIN_ATOL, f" ({by_axis[::-1].replace(' ,', ', ')})"),
        ("direction", pred.direction, ref.direction, 0.0, DIRECTION_ATOL, ""),
    ):
        if mine is not None and its is not None and not np.allclose(mine, its, rtol=rtol, atol=atol):
            raise BenchError(
                f"{where} has the {name} {_numbers(mine)} and its reference {pair.ref} {_numbers(its)}{order}; "
                "resample it to the reference, or, if only its header is wrong, give the spacing yourself (--spacing)."
            )


def read_labels(path: Path) -> IntArray:
    """Read the labels of a file whose header is good.

    Returns:
        Shape (z, y, x), or (y, x) for pictures and volumes of one slice; of the smallest unsigned type that holds them.

    Raises:
        BenchError: The file is damaged, or it holds a negative label.
    """
    with readable(path), quiet():
        values = _pixels(path)
        low, high = int(values.min()), int(values.max())
        if low < 0:
            raise BenchError(f"{path}: holds the negative label {low}, expected labels from 0 up; correct it.")
        if values.ndim == 3 and values.shape[0] == 1:
            values = values[0]
        # label maps are often stored in 16 to 64 bits, and metrics are quickest on bytes
        return values.astype(np.min_scalar_type(high), copy=False)


def _pixels(path: Path) -> NDArray[Any]:
    ending = ending_of(path)
    if ending in NIFTI:
        return read_nifti(path)
    if has_palette(path):
        from PIL import Image  # ITK turns the palette into colours, and the numbers are the labels

        with Image.open(path) as picture:
            return np.array(picture)
    if ending in META:
        check_meta(path)
    elif ending == ".bmp":
        check_bmp(path)
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # type: ignore[no-any-return]


def _check_pixels(path: Path, reader: Any) -> None:
    """Refuse colours and numbers that are not whole."""
    import SimpleITK as sitk

    if reader.GetNumberOfComponents() != 1 and not has_palette(path):
        raise BenchError(
            f"{path}: each pixel has {reader.GetNumberOfComponents()} numbers (a colour picture), expected one label; "
            "write the label numbers as a picture of one channel."
        )
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "integer" in kind:
        return
    stored = nifti_header(path).get_data_dtype() if ending_of(path) in NIFTI else None
    why = f" ({stored} with a scale factor)" if stored is not None and stored.kind in "iu" else ""
    raise BenchError(
        f"{path}: the pixels are {kind}{why}, expected integer labels; write them as integers, "
        "for example with sitk.Cast(image, sitk.sitkUInt8) or array.astype('uint8')."
    )


def _axes(shape: Sequence[int]) -> str:
    return "z, y, x" if len(shape) == 3 else "y, x"


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v + 0.0:.7g}" for v in values) + ")"
