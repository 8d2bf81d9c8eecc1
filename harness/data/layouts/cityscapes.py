"""The layout `cityscapes`: street scenes of the Cityscapes data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.data.cases import sorted_cases
from harness.data.layouts.base import IGNORE, Volume, digest_of, file_values, is_there, listed, root_of, text_option
from harness.data.layouts.images import pixels_of, write_image
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import by

VALIDATION = ("frankfurt", "lindau", "munster")  # the cities of `val`; those of `train` are all others
IMAGE, LABEL = "leftImg8bit", "gtFine"
UNLABELLED = 0  # what a pixel that is ignored is written as


class Cityscapes:
    """`leftImg8bit/PART/CITY/CASE_leftImg8bit.png` and `gtFine/PART/CITY/CASE_gtFine_labelIds.png`.

    A case is `CITY_SEQUENCE_FRAME`. Label values that the manifest does not name are ignored, as the benchmark has it:
    no pixel is background.

    Args:
        folder: Folder that holds `leftImg8bit` and `gtFine`, below the folder of data.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str) -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root) / text_option(manifest, "folder", folder)

    def _paths(self, case: str) -> tuple[Path, Path]:
        match = re.fullmatch(r"(.+)_\d{6}_\d{6}", case)
        if match is None:
            raise self._manifest.file.error(
                ("cases",), f"case {case!r} must be CITY_SEQUENCE_FRAME, as in aachen_000000_000019."
            )
        city = match[1]
        part = "val" if city in VALIDATION else "train"
        return (
            self._root / IMAGE / part / city / f"{case}_{IMAGE}.png",
            self._root / LABEL / part / city / f"{case}_{LABEL}_labelIds.png",
        )

    def cases(self) -> list[str]:
        """Cases of `train` and `val` that have a label."""
        end = f"_{LABEL}_labelIds.png"
        cities = [city for part in ("train", "val") for city in listed(self._root / LABEL / part)]
        return sorted_cases(p.name[: -len(end)] for city in cities for p in listed(city) if p.name.endswith(end))

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there."""
        return [p for case in cases for p in self._paths(case) if not is_there(p)]

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        return digest_of(self._paths(case))

    def read(self, case: str) -> Volume:
        """Read one image as a volume of one slice."""
        image_path, label_path = self._paths(case)
        image, label = pixels_of(image_path), pixels_of(label_path)
        count = len(self._manifest.spec.modalities)
        if image.ndim != 3 or image.shape[2] != count:
            found = 1 if image.ndim == 2 else image.shape[2]
            raise BenchError(f"{image_path}: {found} channels, the manifest names {count} modalities.")
        if label.ndim != 2:
            raise BenchError(f"{label_path}: {label.shape[2]} colours, expected one label a pixel.")
        if image.shape[:2] != label.shape:
            raise BenchError(
                f"{image_path}: the image has {by(image.shape[:2])} pixels (y, x) and its label {label_path.name} "
                f"has {by(label.shape)}; they must be the same grid."
            )
        if label.dtype != np.uint8:
            raise BenchError(f"{label_path}: pixels of the type {label.dtype.name}, expected label values of 8 bits.")
        table = np.full(256, IGNORE, np.uint8)
        for index, value in enumerate(self._manifest.spec.labels.values(), start=1):
            table[value] = index
        return Volume(
            np.ascontiguousarray(np.moveaxis(image, -1, 0)[:, None].astype(np.float32)),
            table[label][None],
            self._manifest.spacing_of(case, None),
        )

    def write(self, case: str, volume: Volume) -> None:
        """Write one image; a pixel that is ignored or background becomes `unlabeled`."""
        image_path, label_path = self._paths(case)
        write_image(image_path, volume.image, volume)
        write_image(label_path, file_values(self._manifest, volume.label, ignore=UNLABELLED)[None], volume)

    def finish(self, cases: Sequence[str]) -> None:
        """Nothing that is read belongs to the folder."""
