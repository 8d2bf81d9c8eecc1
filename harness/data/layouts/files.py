"""The layout `files`: images and labels whose names follow a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.data.layouts.base import Volume, cases_by_pattern, digest_of, is_there, root_of, text_option
from harness.data.layouts.images import assemble, write_case
from harness.data.manifest import Manifest


class Files:
    """Images and labels found by patterns with `{case}`, in any format that SimpleITK reads.

    Args:
        image: Path below the folder of data, with `{case}` for the case; one pattern for each modality, or one where a
            file holds all. A pattern without an ending is the folder of a DICOM series.
        label: Path of the label.
        merge: Label value in the files → value that it counts as.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: Path | None,
        *,
        image: str | list[str],
        label: str,
        merge: dict[int, int] | None = None,
    ) -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root)
        images: list[Any] = list(image) if isinstance(image, list) else [image]
        self._images = [text_option(manifest, "image", pattern) for pattern in images]
        self._label = text_option(manifest, "label", label)
        self._merge = _checked(manifest, merge)
        for pattern in (*self._images, self._label):
            if pattern.replace("{case}", "").count("{") or "{case}" not in pattern:
                raise manifest.file.error(
                    ("layout", "files"), f"{pattern!r} must contain {{case}} and no other braces."
                )
        colours = manifest.spec.dimensions == 2  # one photograph has several channels: counted when it is read
        if len(self._images) != len(manifest.spec.modalities) and not colours:
            raise manifest.file.error(
                ("layout",), f"{len(self._images)} image patterns, {len(manifest.spec.modalities)} modalities."
            )

    def _paths(self, case: str) -> list[Path]:
        return [self._root / pattern.replace("{case}", case) for pattern in (*self._images, self._label)]

    def cases(self) -> list[str]:
        """Cases that have a label."""
        return cases_by_pattern(self._root, self._label)

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there."""
        return [p for case in cases for p in self._paths(case) if not is_there(p)]

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        return digest_of(self._paths(case))

    def read(self, case: str) -> Volume:
        """Read one case, with one channel per image pattern."""
        *images, label = self._paths(case)
        return assemble(self._manifest, case, images, label, self._merge)

    def write(self, case: str, volume: Volume) -> None:
        """Write one case; channels share a file where there is one pattern."""
        *images, label = self._paths(case)
        write_case(self._manifest, volume, images, label)

    def finish(self, cases: Sequence[str]) -> None:
        """Nothing belongs to the folder."""


def _checked(manifest: Manifest, merge: Any) -> dict[int, int]:
    if merge is None:
        return {}
    if not isinstance(merge, dict) or not all(type(v) is int for pair in merge.items() for v in pair):
        raise manifest.file.error(
            ("layout", "files", "merge"), f"expected label value: value it counts as, found {merge!r}."
        )
    labels = set(manifest.spec.labels.values())
    spec = manifest.spec
    for value, target in merge.items():
        if target not in labels or value in labels or value == 0:
            raise manifest.file.error(
                ("layout", "files", "merge"), f"{value}: {target} must map a value without a class to one in `labels`."
            )
        if value in spec.drop or value == spec.ignore:
            raise manifest.file.error(
                ("layout", "files", "merge"), f"value {value} is also in `drop` or `ignore`; keep one of the two."
            )
    return merge
