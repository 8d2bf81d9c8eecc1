"""What is done with the data of cells before any of them runs: whether it is there, and each case prepared once.

No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.data.fingerprint import asks
from harness.data.layouts import reader_of
from harness.data.layouts.absent import absence
from harness.data.manifest import load_manifest
from harness.data.phantoms import is_phantom
from harness.errors import BenchError

Case = tuple[str, str, str, bool, str]  # manifest, case, view, whether of the phantom, training cases if they matter
Shared = tuple[str, bool, int]
Job = tuple[str, str, dict[str, Any], bool, list[str]]


def check_data(cells: list[Cell], root: Path | None) -> None:
    """Find out before any work whether the data is there.

    Raises:
        BenchError: It says which files are missing, where they must lie and how to obtain the data set; or the folder
            is a phantom, whose results must not look like those of patients.
    """
    wanted: dict[str, set[str]] = {}
    for cell in cells:
        if not cell.skip and not cell.quick:  # a quick cell's data is made when it is needed
            names = wanted.setdefault(cell.manifest_path, set())
            names.update(cell.data["train"], cell.data["val"], cell.data["test"])
    if wanted and root is not None and is_phantom(root):
        raise BenchError(f"{root} holds a phantom, no patients: run it with --quick, or name the folder of the data.")
    for path, cases in wanted.items():
        manifest = load_manifest(path, Path(path).parent, root)
        absent = reader_of(manifest, root).missing(sorted(cases))
        if absent:
            raise BenchError(absence(manifest, root, absent))


def jobs_of(cells: Iterable[Cell]) -> tuple[dict[Case, Job], dict[Shared, list[Case]]]:
    """What is to be prepared for cells: every case once, and the cases behind each data of cells."""
    jobs: dict[Case, Job] = {}
    wanted: dict[Shared, list[Case]] = {}
    for cell in cells:
        if cell.skip or shared(cell) in wanted:
            continue
        own = wanted[shared(cell)] = []
        for case in [*cell.data["train"], *cell.data["val"], *cell.data["test"]]:
            wish = job_of(cell, case)
            own.append(key_of(wish))
            jobs.setdefault(own[-1], wish)
    return jobs, wanted


def faulty(wanted: dict[Shared, list[Case]], faults: dict[Case, str]) -> dict[Shared, str]:
    """What is wrong with the data of cells: the first fault of their cases."""
    return {
        shared: next(faults[c] for c in own if c in faults) for shared, own in wanted.items() if faults.keys() & own
    }


def shared(cell: Cell) -> Shared:
    """Equal for cells whose cases are prepared alike: the data of a fold is one dictionary for all of them."""
    return cell.manifest_path, cell.quick, id(cell.data)


def job_of(cell: Cell, case: str) -> Job:
    """What a worker is told to prepare a case of a cell."""
    view = cell.data["view"]
    told = _asks(cell.manifest_path, json.dumps(view))  # the view's numbers then depend on the fold
    return cell.manifest_path, case, view, cell.quick, list(cell.data["train"]) if told else []


@cache
def _asks(manifest_path: str, view: str) -> bool:
    return asks(load_manifest(manifest_path, Path(manifest_path).parent), json.loads(view))


def case_of(cell: Cell, case: str) -> Case:
    """Equal for cells that share the prepared case."""
    return key_of(job_of(cell, case))


def key_of(job: Job) -> Case:
    """The case that a job prepares."""
    return job[0], job[1], repr(job[2]), job[3], repr(job[4])
