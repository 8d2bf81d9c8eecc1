"""`bench clean`: what a folder of results holds that no plan asks for. It is listed; only `--yes` removes it.

Never removed: a record that the plan of the suites as they are now would use, what another process works on, what lies
outside the folder of results or behind a symbolic link, and what no record says the owner of.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.claims import held, take
from harness.errors import BenchError
from harness.printing import print_json
from harness.records import RunRecord, read_record
from harness.seeds import TUNING_SEED
from harness.suite import Suite

_ID = re.compile(r"[0-9a-f]{16}")
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # of `records.write_atomic`
_RESULTS = ("ok", "diverged")
CACHE_SECONDS = 3600.0  # a temporary file of the cache that is younger may be of a process that runs


@dataclass(frozen=True)
class Item:
    """Something that can go.

    Attributes:
        path: File or folder, below the folder of results.
        kind: checkpoint, temporary, stale, orphan or cache.
        bytes: What it takes, without what symbolic links lead to.
        why: In words.
    """

    path: Path
    kind: str
    bytes: int
    why: str


@dataclass
class Found:
    """What was found in a folder of results.

    Attributes:
        items: What can go.
        kept: What else could, and why it stays.
        orphans: Number and bytes of what no cell of the suites has, where it was not asked for.
    """

    items: list[Item] = field(default_factory=list)
    kept: list[tuple[Path, str]] = field(default_factory=list)
    orphans: tuple[int, int] = (0, 0)


def find(suites: Sequence[Suite], out: Path, *, orphans: bool = False, cache: bool = False) -> Found:
    """Look through a folder of results; nothing is changed.

    Args:
        suites: What is needed is what one of them needs.
        out: Folder of results.
        orphans: Also trainings and evaluations of these suites that no cell of them has.
        cache: Also preprocessed cases of their data sets.
    """
    found = Found()
    wanted: dict[str, list[Cell]] = {}
    for suite in suites:
        for cell in suite.cells:
            wanted.setdefault(cell.train_id, []).append(cell)
    names = {(suite.spec.suite, suite.quick) for suite in suites}
    tuned = {(suite.spec.suite, suite.quick) for suite in suites if suite.spec.tune is not None}
    alone: list[Item] = []
    working = False
    for folder in _folders(out, found):
        if held(folder):
            working = True
            found.kept.append((folder, "another process works on it"))
        elif folder.name in wanted:
            found.items += _of_cells(folder, wanted[folder.name], alone, names)
        elif (
            (record := _owner(folder)) is not None and record.cell.get("seed") == TUNING_SEED and _is_of(record, tuned)
        ):
            continue  # a trial: what the suite chooses rests on it, and which trials there are only a replay tells
        elif record is not None and _is_of(record, names):
            alone.append(_item(folder, "orphan", f"no cell of the suite: {_title(record)}"))
        elif record is None and _size(folder):
            found.kept.append((folder, "no record says of which suite it is"))
    if orphans:
        found.items += alone
    else:
        found.orphans = len(alone), sum(item.bytes for item in alone)
    if cache:
        found.items += _cached(suites, out, found, working)
    return found


def remove(items: Sequence[Item], out: Path) -> list[tuple[Path, str]]:
    """Remove what was found; returns what stays after all, and why.

    Each is looked at once more while its cell is held: a process that came in between keeps what it works on.
    """
    left: list[tuple[Path, str]] = []
    root = out.resolve()
    for item in items:
        training = root / item.path.relative_to(out).parts[0]
        if item.path.parent.resolve() != root / item.path.relative_to(out).parent:
            left.append((item.path, "a symbolic link leads there"))
            continue
        with (
            hold(training)
            if item.kind != "cache" and training.name != "cache"
            else contextlib.nullcontext(True) as mine
        ):
            if not mine:
                left.append((item.path, "another process works on it"))
                continue
            try:
                if item.path.is_dir() and not item.path.is_symlink():
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink(missing_ok=True)
            except OSError as error:
                left.append((item.path, f"cannot be removed ({error.strerror or error})"))
    return left


@contextlib.contextmanager
def hold(training: Path) -> Iterator[bool]:
    """Keep other processes from a training folder, as `harness.worker.run_cell` does; False where one has it."""
    try:
        lease = take(training)
    except OSError:  # what cannot be claimed is left alone
        lease = None
    if lease is None:
        yield False
        return
    with lease:
        yield True


def _folders(out: Path, found: Found) -> Iterator[Path]:
    """The training folders of a folder of results; symbolic links are no such folders."""
    try:
        entries = sorted(os.scandir(out), key=lambda e: e.name)
    except OSError as error:
        raise BenchError(f"--out {out}: cannot be read ({error.strerror or error}).") from None
    for entry in entries:
        if not _ID.fullmatch(entry.name):
            continue
        if entry.is_symlink():
            found.kept.append((Path(entry.path), "a symbolic link"))
        elif entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _of_cells(folder: Path, cells: Sequence[Cell], alone: list[Item], names: set[tuple[str, bool]]) -> Iterator[Item]:
    """What can go of a training that the suites have."""
    training = _record(folder / "train.json")
    sources = {k: v for k, v in cells[0].sources.items() if k in ("loss", "model")}
    known = {cell.eval_id: cell for cell in cells}
    if training is not None and training.status in _RESULTS:
        old = {k: v for k, v in training.sources.items() if k in sources} != sources
        if old and not any(_used(folder, cell) for cell in cells):
            yield _item(folder, "stale", f"the source of the loss or model has changed since: {cells[0].title}")
            return
        if (folder / "checkpoint.pt").is_file():
            yield _item(folder / "checkpoint.pt", "checkpoint", "the training has ended")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_dir():
            if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
                yield _item(path, "temporary", "of a process that was killed")
            continue
        if not _ID.fullmatch(path.name):
            continue
        record = _record(path / "record.json")
        cell = known.get(path.name)
        if cell is None:
            if record is not None and _is_of(record, names):
                alone.append(_item(path, "orphan", f"no evaluation of the suite: {_title(record)}"))
            continue
        if record is not None and record.status in _RESULTS and record.sources != cell.sources:
            yield _item(path, "stale", f"a source has changed since it was measured: {cell.title}")
            continue
        for left in (*path.glob(".*"), *path.glob("masks/.*")):
            if left.parent.name == "masks" or _TEMPORARY.fullmatch(left.name):
                yield _item(left, "temporary", "of a process that was killed")


def _used(folder: Path, cell: Cell) -> bool:
    """Whether the plan takes this cell's record as it is."""
    record = _record(folder / cell.eval_id / "record.json")
    return record is not None and record.status in _RESULTS and record.sources == cell.sources


def _cached(suites: Sequence[Suite], out: Path, found: Found, working: bool) -> Iterator[Item]:
    """Preprocessed cases: they are made again when they are needed."""
    if working:
        found.kept.append((out / "cache", "another process works on a cell, and may read from it"))
        return
    for name in sorted({name for suite in suites for name in suite.manifests}):
        folder = out / "cache" / name
        if folder.is_symlink() or (out / "cache").is_symlink():
            found.kept.append((folder, "a symbolic link"))
            continue
        for path in sorted(folder.glob("*.npz")):
            yield _item(path, "cache", f"a preprocessed case of {name}")
        for path in sorted(p for p in folder.glob(".*") if _TEMPORARY.fullmatch(p.name)):
            if time.time() - path.lstat().st_mtime > CACHE_SECONDS:
                yield _item(path, "temporary", "of a process that was killed")


def _record(path: Path) -> RunRecord | None:
    try:
        return read_record(path)
    except BenchError:
        return None


def _owner(folder: Path) -> RunRecord | None:
    """A record of a training folder, of the training or of one of its evaluations."""
    for path in (folder / "train.json", *sorted(folder.glob("*/record.json"))):
        if (record := _record(path)) is not None:
            return record
    return None


def _is_of(record: RunRecord, names: set[tuple[str, bool]]) -> bool:
    return (str(record.cell.get("suite")), bool(record.cell.get("quick"))) in names


def _title(record: RunRecord) -> str:
    cell = record.cell
    labels = (cell.get(key) for key in ("loss", "model"))
    parts = [str(x.get("label", "?")) if isinstance(x, dict) else "?" for x in labels]
    return " / ".join([*parts, str(cell.get("dataset", "?")), f"seed {cell.get('seed', '?')}"])


def _item(path: Path, kind: str, why: str) -> Item:
    return Item(path, kind, _size(path), why)


def _size(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            return path.lstat().st_size
        return 0
    total = 0
    for base, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(base, name)).st_size
    return total


def clean_command(args: argparse.Namespace, suites: Sequence[Suite]) -> int:
    """Run `bench clean`: list, and remove with `--yes`; 1 where something could not be removed."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, stderr=args.json)
    out: Path = args.out or Path("runs")
    nothing = args.out is None and not out.exists()  # as before the first run
    found = Found() if nothing else find(suites, out, orphans=args.orphans, cache=args.cache)
    left = remove(found.items, out) if args.yes else []
    stays = {path for path, _ in left}
    gone = [item for item in found.items if item.path not in stays]
    if args.json:
        print_json(_as_json(found, gone, left, removed=args.yes))
        return 1 if left else 0
    for item in found.items:
        console.print(f"{size_of(item.bytes):>9}  {item.kind:10}  {item.path}  ({item.why})", markup=False)
    for path, why in [*found.kept, *left]:
        console.print(f"     kept  {path}: {why}", markup=False)
    total = size_of(sum(item.bytes for item in gone))
    if found.orphans[0]:
        number, size = found.orphans
        console.print(
            f"{number} trainings or evaluations of no cell of the suites, {size_of(size)}: --orphans lists them, too. "
            "Losses of `bench rank`, trials of a tuning and earlier states of the suites can be among them."
        )
    if args.yes:
        console.print(f"removed: {len(gone)}, {total}")
        return 1 if left else 0
    console.print(f"{len(gone)} could go, {total}; nothing was removed: --yes does it" if gone else "nothing to remove")
    return 0


def _as_json(found: Found, items: Sequence[Item], left: Sequence[tuple[Path, str]], removed: bool) -> dict[str, Any]:
    return {
        "removed": removed,
        "bytes": sum(item.bytes for item in items),
        "items": [asdict(item) | {"path": str(item.path)} for item in items],
        "kept": [{"path": str(path), "why": why} for path, why in [*found.kept, *left]],
        "orphans": {"number": found.orphans[0], "bytes": found.orphans[1]},
    }


def size_of(number: int) -> str:
    """`830 B`, `1.2 MB`."""
    value, units = float(number), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
