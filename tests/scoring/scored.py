"""Folders of label images for the tests of `bench score`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from harness.cli import main

SPACING = (3.0, 0.8, 0.5)  # z, y, x
LABELS = {"disc": 1, "ring": 2, "both": (1, 2)}


def volumes(number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    ref = np.zeros((6, 20, 24), np.uint8)
    ref[1:5, 4:14, 5:15] = 1
    ref[1:5, 4:14, 16:20] = 2
    pred = np.roll(ref, number + 1, axis=2)
    return pred, ref


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] | None = SPACING, **state: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if spacing:
        image.SetSpacing(spacing[::-1])
    for name, value in state.items():
        getattr(image, name)(value)
    sitk.WriteImage(image, str(path), bool(state) or path.suffix != ".mha")
    return path


def made_folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases, in formats that differ between the folders and between the cases."""
    for number, (mine, its) in enumerate(((".nii.gz", ".nii.gz"), (".mha", ".nii"), (".nrrd", ".mhd"))):
        pred, ref = volumes(number)
        write(tmp_path / f"pred/c{number}{mine}", pred)
        write(tmp_path / f"ref/c{number}{its}", ref.astype(np.int32))
    (tmp_path / "pred/plans.json").write_text("{}")
    (tmp_path / "pred/.c0.nii.gz").write_text("of an editor")
    return tmp_path / "pred", tmp_path / "ref"


def refused(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    """The one sentence with which the command refuses, before anything is measured or written."""
    out = Path(str(args[0])).parent / "refused.csv"
    assert main(["score", *map(str, args), "--out", str(out), "--workers", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not out.exists()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("bench: ") and lines[0].endswith("."), captured.err
    return lines[0]


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
