"""The layout `decathlon`: a task of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.data.layouts.base import is_there, known_values, root_of, text_option
from harness.data.layouts.files import Files
from harness.data.manifest import Manifest
from harness.errors import BenchError


class Decathlon(Files):
    """The folder layout of the Medical Segmentation Decathlon: `dataset.json`, `imagesTr`, `labelsTr`.

    Modalities lie on a fourth axis of the image file.

    Args:
        folder: Folder of the task below the folder of data, such as `Task04_Hippocampus`.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str) -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root) / text_option(manifest, "folder", folder)
        self._images = ["imagesTr/{case}.nii.gz"]
        self._label = "labelsTr/{case}.nii.gz"
        self._merge = {}

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there, `dataset.json` first."""
        head = self._root / "dataset.json"
        if not is_there(head):
            return [head]
        self._check_labels(head)
        return super().missing(cases)

    def _check_labels(self, head: Path) -> None:
        try:
            stated = {int(v) for v in json.loads(head.read_text(encoding="utf-8"))["labels"]}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise BenchError(f"{head}: not a Decathlon description with `labels`: {error}.") from None
        if strange := stated - known_values(self._manifest):
            raise BenchError(f"{head}: label value {min(strange)} is not in the manifest {self._manifest.path}.")

    def finish(self, cases: Sequence[str]) -> None:
        """Write `dataset.json`, with the keys that the Decathlon has."""
        spec = self._manifest.spec
        names = {0: "background"} | {v: n for n, v in spec.labels.items()} | {v: f"unused {v}" for v in spec.drop}
        if spec.ignore is not None:
            names[spec.ignore] = "ignored"
        described = {
            "name": self._manifest.name,
            "description": spec.title,
            "licence": spec.licence,
            "tensorImageSize": "4D" if len(spec.modalities) > 1 else "3D",
            "modality": {str(i): name for i, name in enumerate(spec.modalities)},
            "labels": {str(v): names[v] for v in sorted(names)},
            "numTraining": len(cases),
            "numTest": 0,
            "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases],
            "test": [],
        }
        self._root.mkdir(parents=True, exist_ok=True)
        (self._root / "dataset.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
