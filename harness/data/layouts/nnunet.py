"""The layout `nnunet`: a raw data set of nnU-Net, version 1 (`Task001_NAME`) or 2 (`Dataset001_NAME`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.data.layouts.base import (
    Volume,
    cases_by_pattern,
    digest_of,
    is_there,
    known_values,
    root_of,
    text_option,
)
from harness.data.layouts.images import assemble, write_case
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import ENDINGS, PICTURES, readable


class NnUnet:
    """`imagesTr/CASE_0000.nii.gz`, one file for each channel, `labelsTr/CASE.nii.gz`, described by `dataset.json`.

    Args:
        folder: The data set's folder below the folder of data.
        ending: What files end in where a phantom is written; a folder's own `dataset.json` says it by itself.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str, ending: str = ".nii.gz") -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root) / text_option(manifest, "folder", folder)
        if ending not in ENDINGS:
            raise manifest.file.error(("layout", "nnunet", "ending"), f"expected one of {', '.join(ENDINGS)}.")
        self._given = ending
        self._described: dict[str, Any] | None = None

    @property
    def _head(self) -> Path:
        return self._root / "dataset.json"

    def _description(self) -> dict[str, Any]:
        """`dataset.json`, checked against the manifest; empty where there is none."""
        if self._described is None:
            if not is_there(self._head):
                return {}
            with readable(self._head):
                text = self._head.read_text(encoding="utf-8")
            try:
                found = json.loads(text)
                self._check(found)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BenchError(
                    f"{self._head}: not a description of nnU-Net with `labels` and `channel_names` ({error})."
                ) from None
            self._described = found
        return self._described

    def _check(self, found: dict[str, Any]) -> None:
        channels = found["channel_names"] if "channel_names" in found else found["modality"]
        if len(channels) != len(self._manifest.spec.modalities):
            raise BenchError(
                f"{self._head}: names {len(channels)} channels, the manifest {self._manifest.path.name} "
                f"{len(self._manifest.spec.modalities)} modalities."
            )
        # version 1 writes value: name, version 2 name: value, where a region is a list of values
        new = "channel_names" in found
        values: set[int] = set()
        for key, value in found["labels"].items():
            values |= {int(v) for v in (value if isinstance(value, list) else [value])} if new else {int(key)}
        if strange := values - known_values(self._manifest):
            raise BenchError(f"{self._head}: label value {min(strange)} is not in the manifest {self._manifest.path}.")
        ending = str(found.get("file_ending", ".nii.gz"))
        if ending not in ENDINGS:
            raise BenchError(f"{self._head}: file_ending {ending!r} is not one of {', '.join(ENDINGS)}.")

    def _ending(self) -> str:
        described = self._description()
        return str(described.get("file_ending", ".nii.gz")) if described else self._given

    def _paths(self, case: str) -> list[Path]:
        ending = self._ending()
        count = len(self._manifest.spec.modalities)
        if ending in PICTURES and not is_there(self._root / "imagesTr" / f"{case}_0001{ending}"):
            count = 1  # the colours of a picture lie in one file
        images = [self._root / "imagesTr" / f"{case}_{i:04d}{ending}" for i in range(count)]
        return [*images, self._root / "labelsTr" / f"{case}{ending}"]

    def cases(self) -> list[str]:
        """Cases that have a label."""
        return cases_by_pattern(self._root, f"labelsTr/{{case}}{self._ending()}")

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there, `dataset.json` first."""
        if not self._description():
            return [self._head]
        return [p for case in cases for p in self._paths(case) if not is_there(p)]

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        return digest_of(self._paths(case))

    def read(self, case: str) -> Volume:
        """Read one case."""
        *images, label = self._paths(case)
        return assemble(self._manifest, case, images, label)

    def write(self, case: str, volume: Volume) -> None:
        """Write one case."""
        *images, label = self._paths(case)
        write_case(self._manifest, volume, images, label)

    def finish(self, cases: Sequence[str]) -> None:
        """Write `dataset.json` of version 2."""
        spec = self._manifest.spec
        labels = {"background": 0} | spec.labels | {f"unused {v}": v for v in spec.drop}
        if spec.ignore is not None:
            labels["ignore"] = spec.ignore
        described = {
            "channel_names": {str(i): name for i, name in enumerate(spec.modalities)},
            "labels": labels,
            "numTraining": len(cases),
            "file_ending": self._ending(),
            "name": self._manifest.name,
            "description": spec.title,
            "licence": spec.licence,
        }
        self._root.mkdir(parents=True, exist_ok=True)
        self._head.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        self._described = None
