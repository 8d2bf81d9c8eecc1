"""`bench data`: what a data set is, what of it is missing, which files have faults, how large its classes are."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness.data.cases import Found
from harness.data.layouts import IGNORE, Reader, reader_of
from harness.data.layouts.absent import hint_of
from harness.data.layouts.base import is_there
from harness.data.manifest import Manifest, load_manifest
from harness.errors import BenchError
from harness.imagefiles import readable
from harness.processes import cores

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # missing files that are listed
PHANTOM_PART = 4  # patients of each part of the first split in a phantom that is asked for
CASES_A_PROCESS = 16  # fewer are read before another process has started
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


def data_command(args: argparse.Namespace) -> int:
    """Run `bench data`.

    Args:
        args: `manifest` and, all optional, `data`, `verify`, `phantom`, `from_nifti`, `json`.

    Returns:
        0, or 1 where `--verify` found faults.

    Raises:
        BenchError: The manifest is not valid, files are missing, or what is asked for cannot be written.
    """
    from rich.console import Console

    out = Console(highlight=False, soft_wrap=True, quiet=args.json)
    manifest = load_manifest(args.manifest, Path.cwd(), args.data)
    if args.phantom is not None:
        return _write_phantom(manifest, args.phantom, out)
    if args.from_nifti is not None:
        return _write_spacings(manifest, args.data, args.from_nifti, out)
    if args.data is not None and is_phantom(args.data):
        manifest = load_manifest(args.manifest, Path.cwd(), args.data, phantom=True)
    _describe(manifest, out)
    reader = reader_of(manifest, args.data)
    cases = _cases_to_read(manifest, reader, args.data)
    absent = reader.missing(cases)
    done: Verified | None = None
    if not absent and args.verify:
        workers = min(cores(), len(cases) // CASES_A_PROCESS)
        done = verify(manifest, reader, cases, args.data, _track(Console(stderr=True)), workers)
    if args.json:
        print(json.dumps(_as_json(manifest, cases, absent, done), indent=1, ensure_ascii=False))
    for path in absent[:SHOWN]:
        out.print(f"missing: {path}", markup=False)
    if absent:
        raise BenchError(
            f"{len(absent)} files of {manifest.name} are not there. {hint_of(manifest, args.data, absent)}".strip()
        )
    if done is None:
        out.print(f"all files of {len(cases)} cases are there")
        return 0
    _show(manifest, done, out)
    return 1 if done.faults else 0


def is_phantom(root: Path) -> bool:
    """Whether a folder of data is one that `make_phantom` wrote."""
    return is_there(root / ".phantom")


def _cases_to_read(manifest: Manifest, reader: Reader, root: Path | None) -> list[str]:
    """All cases; of a phantom those that it has."""
    if root is None or not is_phantom(root):
        return list(manifest.cases)
    there = set(reader.cases())
    return [case for case in manifest.cases if case in there]


def _describe(manifest: Manifest, out: Console) -> None:
    spec = manifest.spec
    count = "those found in the folder" if isinstance(spec.cases, Found) else str(len(manifest.cases))
    facts = {
        "data set": spec.title,
        "licence": spec.licence,
        "attribution": spec.attribution,
        "to obtain": spec.obtain,
        "classes": ", ".join(spec.labels),
        "regions": ", ".join(spec.regions or {}),
        "cases": f"{count}; what lies here is a phantom" if manifest.phantom else count,
        "splits": ", ".join(spec.splits),
    }
    for name, text in facts.items():
        if text:
            out.print(f"{name:12}{' '.join(text.split())}", markup=False)


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


def _show(manifest: Manifest, done: Verified, out: Console) -> None:
    for fault in done.faults.values():
        out.print(fault, markup=False)
    for name, text in _ranges(done).items():
        out.print(f"{name:12}{text}", markup=False)
    planar = manifest.spec.dimensions == 2
    unit, what = ("mm²", "pixels") if planar else ("mm³", "voxels")
    total = sum(c.voxels for c in done.classes.values())
    width = max(map(len, done.classes))
    for name, counts in done.classes.items():
        if name == "ignored" and not counts.voxels:
            continue
        mean = "" if counts.volume is None else f", {counts.volume / counts.cases:,.0f} {unit} a case that has it"
        share = 100 * counts.voxels / total if total else 0.0
        out.print(
            f"  {name:{width}}  {counts.cases} of {done.read} cases, {counts.voxels:,} {what} ({share:.2f} %){mean}",
            markup=False,
        )
    for name in manifest.classes:
        if done.read and not done.classes[name].cases:
            out.print(f"class {name} is in no case", markup=False)
    out.print(f"{done.read} cases read, {len(done.faults)} with faults")


def _ranges(done: Verified) -> dict[str, str]:
    """Least and largest shape and spacing, per axis."""
    texts: dict[str, str] = {}
    for name, rows, form in (
        ("shape", list(done.shapes.values()), "{:d}"),
        ("spacing mm", list(done.spacings.values()), "{:.4g}"),
    ):
        if not rows:
            continue
        low, high = (tuple(pick(row[i] for row in rows) for i in range(3)) for pick in (min, max))
        one, two = (" × ".join(form.format(v) for v in row) for row in (low, high))
        texts[name] = one + (f" to {two}" if two != one else "") + " (z, y, x)"
    if done.read and len(done.spacings) < done.read:
        texts["spacing mm"] = f"unknown in {done.read - len(done.spacings)} cases: distances are in voxels"
    return texts


def _as_json(manifest: Manifest, cases: Sequence[str], absent: Sequence[Path], done: Verified | None) -> dict[str, Any]:
    spec = manifest.spec
    found: dict[str, Any] = {
        "name": spec.name,
        "title": spec.title,
        "licence": spec.licence,
        "attribution": spec.attribution,
        "obtain": spec.obtain,
        "layout": manifest.layout[0],
        "digest": manifest.digest(),
        "phantom": manifest.phantom,
        "cases": list(cases),
        "missing": [str(p) for p in absent],
    }
    if done is not None:
        found |= {
            "read": done.read,
            "faults": done.faults,
            "shapes": done.shapes,
            "spacings": done.spacings,
            "classes": {n: vars(c) for n, c in done.classes.items()},
        }
    return found


def _track(console: Console) -> Track[Any]:
    def show(items: Iterable[T], total: int, word: str) -> Iterable[T]:
        from rich.progress import track

        return track(items, word, total, console=console, transient=True, disable=not console.is_terminal)

    return show


def _write_phantom(manifest: Manifest, folder: Path, out: Console) -> int:
    """A few patients of each part of the first split, in the data set's own layout."""
    from rich.console import Console
    from rich.progress import Progress

    from harness.data.phantoms import make_phantom

    manifest = load_manifest(str(manifest.path.resolve()), manifest.path.parent, phantom=True)
    cases = list(manifest.cases)
    if not isinstance(manifest.spec.cases, Found):
        name, split = next(iter(manifest.spec.splits.items()))
        parts = manifest.parts(name, 0 if split.folds else None)
        few: set[str] = set()
        for part in (parts.train, parts.val, parts.test):
            few |= set(list(dict.fromkeys(manifest.patient_of(c) for c in part))[:PHANTOM_PART])
        cases = [c for c in cases if manifest.patient_of(c) in few]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing", total=len(cases))
        make_phantom(manifest, cases, folder, lambda number, total: bar.update(task, completed=number, total=total))
    out.print(
        f"a phantom of {manifest.name}, {len(cases)} cases, is in {folder}; nothing in it is a patient", markup=False
    )
    out.print(f"look at it with: bench data {manifest.name} --data {folder} --verify", markup=False)
    return 0


def _write_spacings(manifest: Manifest, root: Path | None, folder: Path, out: Console) -> int:
    """A manifest like this one with a table of spacings, taken from NIfTI files of the same cases."""
    from harness.data.layouts.spacings import manifest_with_spacings, spacings_from_nifti

    table = spacings_from_nifti(manifest, reader_of(manifest, root) if root is not None else None, folder)
    name = f"{manifest.name}_mm"
    path = Path("data_manifests") / f"{name}.yaml"
    if path.exists():
        raise BenchError(f"{path} is there already; remove it, or keep it.")
    text = manifest_with_spacings(manifest, name, table)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: cannot be written: {error.strerror or error}.") from None
    out.print(f"{path}: {manifest.name} with spacings of {len(table)} cases; name {name} in a suite", markup=False)
    return 0
