"""Reading every case of a data set: which files have faults, how large its classes are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness.data.layouts import IGNORE, Reader
from harness.data.layouts.base import is_there
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import readable

T = TypeVar("T")
Track = Callable[[Iterable[T], int, str], Iterable[T]]


@dataclass
class ClassCount:
    """What the references hold of one class.

    Attributes:
        voxels: In all cases.
        cases: Cases that hold it.
        volume: Sum over the cases with a known spacing, in mm³ (mm² in 2D); None where none is known.
    """

    voxels: int = 0
    cases: int = 0
    volume: float | None = None


@dataclass
class Verified:
    """What reading every case gave.

    Attributes:
        read: Cases that could be read.
        faults: Sentence by case, or by file for digests.
        shapes: Case → (z, y, x).
        spacings: Case → mm, for those that have one.
        classes: Class name → counts; `background` and `ignored` too.
    """

    read: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    spacings: dict[str, tuple[float, ...]] = field(default_factory=dict)
    classes: dict[str, ClassCount] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """What is kept of a case that was read."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    counts: list[int]  # voxels by index
    content: bytes  # digest of the image's values
    doubt: str | None


def verify(
    manifest: Manifest,
    reader: Reader,
    cases: Sequence[str],
    root: Path | None = None,
    track: Track[Any] | None = None,
    workers: int = 1,
) -> Verified:
    """Read every case, and compare the files whose digests the manifest states.

    Args:
        manifest: The data set.
        reader: Its reader.
        cases: What to read.
        root: Folder of data, for the digests.
        track: Shows progress; takes what is iterated over, the number in all, and a word.
        workers: Processes that read, one case each at a time.

    Returns:
        Faults, each a sentence that names a file, and counts.
    """
    show: Track[Any] = track or (lambda items, total, word: items)
    names = {0: "background", **{i: n for n, i in manifest.classes.items()}, IGNORE: "ignored"}
    done = Verified(classes={n: ClassCount() for n in names.values()})
    seen = dict(show(_read_all(reader, cases, workers), len(cases), "reading"))
    owners: dict[bytes, str] = {}
    for case in cases:
        found = seen[case]
        if isinstance(found, str):
            done.faults[case] = found
            continue
        done.read += 1
        _count(done, manifest, case, found, names)
        other = owners.setdefault(found.content, case)
        if other != case:
            done.faults[case] = _twins(manifest, other, case)
        elif found.doubt:
            done.faults[case] = found.doubt
    for name, stated in show(manifest.spec.files.items(), len(manifest.spec.files), "digests"):
        if root is not None and (fault := _other_bytes(root / name, stated)):
            done.faults[name] = fault
    return done


def _read_all(reader: Reader, cases: Sequence[str], workers: int) -> Iterator[tuple[str, _Seen | str]]:
    """Case and what it holds, or why it cannot be read, as they are done."""
    if workers < 2:
        for case in cases:
            try:
                yield case, _see((reader, case))
            except BenchError as error:
                yield case, str(error)
        return
    from harness.scoring.pool import Failure, Pool

    with Pool(workers, (__name__, "SimpleITK", "nibabel")) as pool:
        for number, outcome in pool.run(_see, [(reader, case) for case in cases]):
            if isinstance(outcome, Failure):
                text = outcome.reason if outcome.told else f"case {cases[number]}: {outcome.reason}."
                yield cases[number], text
            else:
                yield cases[number], outcome


def _see(job: tuple[Reader, str]) -> _Seen:
    """Read a case; runs in a worker."""
    reader, case = job
    volume = reader.read(case)
    doubts = getattr(reader, "doubts", None)
    return _Seen(
        volume.label.shape,
        volume.spacing,
        np.bincount(volume.label.ravel(), minlength=256).tolist(),
        hashlib.sha256(repr(volume.image.shape).encode() + volume.image.tobytes()).digest(),
        doubts(case, volume) if doubts is not None else None,
    )


def _count(done: Verified, manifest: Manifest, case: str, seen: _Seen, names: dict[int, str]) -> None:
    done.shapes[case] = seen.shape
    planar = manifest.spec.dimensions == 2
    size: float | None = None
    if seen.spacing is not None:
        done.spacings[case] = seen.spacing
        size = float(np.prod(seen.spacing[1:] if planar else seen.spacing))
    for index, voxels in enumerate(seen.counts):
        if not voxels:
            continue
        counts = done.classes[names[index]]
        counts.voxels += voxels
        counts.cases += 1
        if size is not None:
            counts.volume = (counts.volume or 0.0) + voxels * size


def _twins(manifest: Manifest, other: str, case: str) -> str:
    a, b = manifest.patient_of(other), manifest.patient_of(case)
    whose = f"patient {a!r}" if a == b else f"patients {a!r} and {b!r} are one, which can stand in training and in test"
    return f"case {case} has the same image as case {other} ({whose}); leave one of the two away."


def _other_bytes(path: Path, stated: str) -> str | None:
    if not is_there(path):
        return f"{path}: no such file, and the manifest states its digest."
    with readable(path), path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if f"sha256:{found}" == stated:
        return None
    return f"{path}: its SHA-256 is {found[:12]}…, the manifest states {stated[7:19]}…; download the file again."
