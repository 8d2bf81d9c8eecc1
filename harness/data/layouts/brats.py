"""The layout `brats`: one folder a patient with a file for each modality, as the BraTS challenges of 2018 to 2020."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.data.cases import sorted_cases
from harness.data.layouts.base import Volume, digest_of, either, is_there, listed, root_of, text_option
from harness.data.layouts.images import assemble, write_case
from harness.data.manifest import Manifest

# one segmentation of BraTS 2020 was shipped under the name that it had at its hospital
OTHER_NAME = {"BraTS20_Training_355": "W39_1998.09.19_Segm"}


class Brats:
    """`CASE/CASE_t1.nii.gz` and so on, the label is `CASE/CASE_seg.nii.gz`; a mirror's `.nii` are read too.

    A file's suffix is its modality in the manifest, in lower case.

    Args:
        folder: Folder of the patients' folders, below the folder of data.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str) -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root) / text_option(manifest, "folder", folder)
        self._suffixes = [name.lower() for name in manifest.spec.modalities]

    def _paths(self, case: str) -> list[Path]:
        place = self._root / case
        images = [either(place / f"{case}_{suffix}") for suffix in self._suffixes]
        return [*images, self._label(case)]

    def _label(self, case: str) -> Path:
        usual = either(self._root / case / f"{case}_seg")
        if case not in OTHER_NAME or is_there(usual):
            return usual
        return either(self._root / case / OTHER_NAME[case], (".nii", ".nii.gz"))

    def cases(self) -> list[str]:
        """Folders that hold a label."""
        return sorted_cases(p.name for p in listed(self._root) if p.is_dir() and is_there(self._label(p.name)))

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there."""
        return [p for case in cases for p in self._paths(case) if not is_there(p)]

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        return digest_of(self._paths(case))

    def read(self, case: str) -> Volume:
        """Read one case, its channels in the manifest's order of modalities."""
        *images, label = self._paths(case)
        return assemble(self._manifest, case, images, label)

    def write(self, case: str, volume: Volume) -> None:
        """Write one case."""
        *images, label = self._paths(case)
        write_case(self._manifest, volume, images, label)

    def finish(self, cases: Sequence[str]) -> None:
        """Nothing that is read belongs to the folder."""
