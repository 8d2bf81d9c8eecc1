"""The layout `acdc`: cardiac MRI of the Automated Cardiac Diagnosis Challenge, two labelled frames a patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.data.cases import sorted_cases
from harness.data.layouts.base import Volume, digest_of, either, is_there, listed, root_of, text_option
from harness.data.layouts.images import assemble, write_case
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import readable

PHASES = {"ED": 1, "ES": 10}  # and the frame that a phantom gets


class Acdc:
    """`patient001/patient001_frame01.nii.gz` and `..._gt.nii.gz`; cases are named by phase: `patient001_ED`.

    Which frame is the end of diastole (ED) and which that of systole (ES) stands in the patient's `Info.cfg`.

    Args:
        folder: Folder of the patients' folders, below the folder of data.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, folder: str) -> None:
        self._manifest = manifest
        self._root = root_of(manifest, root) / text_option(manifest, "folder", folder)

    def _split(self, case: str) -> tuple[str, str]:
        patient, _, phase = case.rpartition("_")
        if not patient or phase not in PHASES:
            raise self._manifest.file.error(
                ("cases",), f"case {case!r} must be a patient and a phase, as in patient001_ED or patient001_ES."
            )
        return patient, phase

    def _info(self, case: str) -> Path:
        return self._root / self._split(case)[0] / "Info.cfg"

    def _paths(self, case: str) -> list[Path]:
        patient, phase = self._split(case)
        path = self._info(case)
        with readable(path):
            text = path.read_text(encoding="utf-8")
        match = re.search(rf"^\s*{phase}\s*:\s*(\d+)\s*$", text, re.MULTILINE)
        if match is None:
            raise BenchError(f"{path}: has no line '{phase}: NUMBER' with the frame of that phase.")
        stem = f"{patient}_frame{int(match[1]):02d}"
        return [either(self._root / patient / stem), either(self._root / patient / f"{stem}_gt")]

    def cases(self) -> list[str]:
        """Phases that have a label, of every patient that has a description."""
        patients = [p.name for p in listed(self._root) if is_there(p / "Info.cfg")]
        named = (f"{patient}_{phase}" for patient in patients for phase in PHASES)
        return sorted_cases(case for case in named if is_there(self._paths(case)[1]))

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files that are not there; only `Info.cfg` where that is not, for it names the others."""
        absent: list[Path] = []
        for case in cases:
            info = self._info(case)
            absent += [p for p in self._paths(case) if not is_there(p)] if is_there(info) else [info]
        return list(dict.fromkeys(absent))

    def digest(self, case: str) -> str:
        """Of the files' bytes."""
        return digest_of(self._paths(case))

    def read(self, case: str) -> Volume:
        """Read one frame."""
        image, label = self._paths(case)
        return assemble(self._manifest, case, [image], label)

    def write(self, case: str, volume: Volume) -> None:
        """Write one frame; a patient without a description gets one."""
        info = self._info(case)
        if not is_there(info):
            info.parent.mkdir(parents=True, exist_ok=True)
            lines = [*(f"{phase}: {frame}" for phase, frame in PHASES.items()), "Group: NOR", "NbFrame: 30"]
            info.write_text("\n".join(lines) + "\n", encoding="utf-8")
        image, label = self._paths(case)
        write_case(self._manifest, volume, [image], label)

    def finish(self, cases: Sequence[str]) -> None:
        """Nothing that is read belongs to the folder."""
