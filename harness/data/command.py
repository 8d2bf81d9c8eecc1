"""`bench data`: what a data set is, what of it is missing, what reading it gives, and phantoms of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.cases import Found
from harness.data.layouts import Reader, reader_of
from harness.data.layouts.absent import hint_of
from harness.data.layouts.base import NoRoot
from harness.data.manifest import Manifest, load_manifest
from harness.data.phantoms import is_phantom, made_cases
from harness.data.verify import T, Track, Verified, verify
from harness.errors import BenchError
from harness.printing import print_json
from harness.processes import cores

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # missing files that are listed
PHANTOM_PART = 4  # patients of each part of the first split in a phantom that is asked for
CASES_A_PROCESS = 16  # fewer are read before another process has started


def data_command(args: argparse.Namespace) -> int:
    """Run `bench data`.

    Args:
        args: `manifest` and, all optional, `data`, `verify`, `phantom`, `from_nifti`, `json`.

    Returns:
        0, also where no folder of data is named, so that how to obtain it is all there is to say; or 1 where `--verify`
        found faults.

    Raises:
        BenchError: The manifest is not valid, files are missing, or what is asked for cannot be written.
    """
    from rich.console import Console

    out = Console(highlight=False, soft_wrap=True, quiet=args.json)
    tasks = {"--verify": args.verify, "--phantom": args.phantom, "--from-nifti": args.from_nifti}
    asked = [name for name, value in tasks.items() if value not in (None, False)]
    if len(asked) > 1:
        raise BenchError(f"{' and '.join(asked)}: each is a task of its own; give one of them at a time.")
    manifest = load_manifest(args.manifest, Path.cwd(), args.data)
    if args.phantom is not None:
        return _write_phantom(manifest, args.phantom, out, args.json)
    if args.from_nifti is not None:
        return _write_spacings(manifest, args.data, args.from_nifti, out, args.json)
    if args.data is not None and is_phantom(args.data):
        manifest = load_manifest(args.manifest, Path.cwd(), args.data, phantom=True)
    try:
        reader = reader_of(manifest, args.data)
        cases = _cases_to_read(manifest, reader, args.data)
        absent = reader.missing(cases)
    except BenchError as error:
        if args.json:
            print_json(_as_json(manifest, [], [], None, str(error)))
        if isinstance(error, NoRoot) and not args.verify:
            _describe(manifest, out)
            out.print("name its folder with --data or BENCH_DATA to see what of it is there")
            return 0
        raise
    _describe(manifest, out)
    done: Verified | None = None
    if not absent and args.verify:
        workers = min(cores(), len(cases) // CASES_A_PROCESS)
        done = verify(manifest, reader, cases, args.data, _track(Console(stderr=True)), workers)
    if args.json:
        print_json(_as_json(manifest, cases, absent, done))
    for path in absent[:SHOWN]:
        out.print(f"missing: {path}", markup=False)
    if absent:
        raise BenchError(
            f"{len(absent)} {'files' if len(absent) > 1 else 'file'} of {manifest.name} "
            f"{'are' if len(absent) > 1 else 'is'} not there. {hint_of(manifest, args.data, absent)}".strip()
        )
    if done is None:
        out.print(f"all files of {len(cases)} cases are there")
        return 0
    _show(manifest, done, out)
    return 1 if done.faults else 0


def _cases_to_read(manifest: Manifest, reader: Reader, root: Path | None) -> list[str]:
    """All cases; of a phantom those that it has."""
    if root is None or not is_phantom(root):
        return list(manifest.cases)
    there = {*reader.cases(), *made_cases(root)}  # one that lost a file must not go unnoticed
    cases = [case for case in manifest.cases if case in there]
    if not cases:
        raise BenchError(
            f"{root} is a phantom, and holds no case of {manifest.name}; write one into another folder with "
            f"bench data {manifest.name} --phantom DIR."
        )
    return cases


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


def _as_json(
    manifest: Manifest,
    cases: Sequence[str],
    absent: Sequence[Path],
    done: Verified | None,
    problem: str | None = None,
) -> dict[str, Any]:
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
        "problem": problem,  # why it cannot be told what is missing
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


def _write_phantom(manifest: Manifest, folder: Path, out: Console, as_json: bool) -> int:
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
    if as_json:
        print_json({"name": manifest.name, "phantom": str(folder), "cases": cases})
    out.print(
        f"a phantom of {manifest.name}, {len(cases)} cases, is in {folder}; nothing in it is a patient", markup=False
    )
    out.print(f"look at it with: bench data {manifest.name} --data {folder} --verify", markup=False)
    return 0


def _write_spacings(manifest: Manifest, root: Path | None, folder: Path, out: Console, as_json: bool) -> int:
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
    if as_json:
        print_json({"name": name, "manifest": str(path), "spacings": table})
    out.print(f"{path}: {manifest.name} with spacings of {len(table)} cases; name {name} in a suite", markup=False)
    return 0
