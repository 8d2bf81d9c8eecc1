"""Spacings for layouts that store none, taken from NIfTI files of the same cases."""

from __future__ import annotations

import re
from pathlib import Path

from harness.data.layouts.base import Reader, is_there
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import by
from harness.scoring.images import read_header

Table = dict[str, tuple[float, float, float]]


def spacings_from_nifti(manifest: Manifest, reader: Reader | None, folder: Path) -> Table:
    """The spacing of each case, from the header of the NIfTI whose name ends in the case's.

    Args:
        manifest: The data set.
        reader: Its reader, to compare shapes; None where its files are not at hand.
        folder: Searched with all folders below; `label0005.nii.gz` is a file of case 0005, as is `img0005.nii.gz`.

    Returns:
        Case → (z, y, x) in mm.

    Raises:
        BenchError: A case has no file, its files disagree, or it has another shape than the data set's own.
    """
    if not is_there(folder):
        raise BenchError(f"{folder} is not a folder; name the one with the challenge's NIfTI files.")
    files = sorted([*folder.rglob("*.nii.gz"), *folder.rglob("*.nii")])
    table: Table = {}
    for case in manifest.cases:
        ends = re.compile(rf"(?:.*[^0-9A-Za-z]|[A-Za-z]*){re.escape(case)}\.nii(\.gz)?")
        own = [p for p in files if ends.fullmatch(p.name)]
        if not own:
            raise BenchError(
                f"{folder} holds no NIfTI file of case {case} among {len(files)}; expected img{case}.nii.gz."
            )
        headers = [(p, _header(p)) for p in own]
        first, (shape, sides) = headers[0]
        for path, (other_shape, other) in headers[1:]:
            if other_shape != shape or max(abs(a - b) for a, b in zip(other, sides, strict=True)) > 1e-3:
                raise BenchError(f"{path}: its grid differs from that of {first}, which is of the same case {case}.")
        if reader is not None and not reader.missing([case]):
            mine = reader.read(case).label.shape
            if mine != shape and mine != (shape[0], shape[2], shape[1]):
                raise BenchError(f"{first}: {by(shape)} voxels (z, y, x), the data set's case {case} has {by(mine)}.")
            turned = mine != shape or shape[1] == shape[2]  # a preprocessing may have exchanged rows and columns
            if turned and abs(sides[1] - sides[2]) > 1e-3:
                raise BenchError(f"{first}: pixels are not square, so it cannot be told which side is which.")
        table[case] = sides
    return table


def _header(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    found = read_header(path)
    if len(found.shape) != 3 or found.spacing is None:
        raise BenchError(f"{path}: an image of {len(found.shape)} axes, expected a volume of 3 with a spacing.")
    z, y, x = found.shape
    a, b, c = found.spacing
    return (z, y, x), (a, b, c)


def manifest_with_spacings(manifest: Manifest, name: str, table: Table) -> str:
    """The text of a manifest like this one, under another name and with a table of spacings.

    Raises:
        BenchError: The manifest does not say `spacing: unknown` on a line of its own.
    """
    text = manifest.path.read_text(encoding="utf-8")
    rows = "\n".join(f'  "{case}": [{", ".join(f"{v:.7g}" for v in sides)}]' for case, sides in table.items())
    text, named = re.subn(r"^name: .*$", f"name: {name}", text, count=1, flags=re.MULTILINE)
    text, placed = re.subn(
        r"^spacing: unknown *$", lambda _: f"spacing:  # (z, y, x) in mm\n{rows}", text, count=1, flags=re.MULTILINE
    )
    if not named or not placed:
        raise BenchError(f"{manifest.path}: has no line `spacing: unknown` that a table could replace.")
    return text
