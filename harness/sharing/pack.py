"""Packing records: a zip file or a folder with a manifest of digests, the same bytes from the same records."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

from harness import __version__
from harness.errors import BenchError
from harness.plan import Entry
from harness.records import UMASK, write_atomic
from harness.sharing.contents import SHARED, check_training, trainings
from harness.sharing.layout import LIMITS, MANIFEST, Contents

Files = Mapping[str, Path]
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that zip knows


def pack(suite: str, entries: Iterable[Entry], to: Path) -> tuple[Contents, int]:
    """Pack the results of a plan: records, curves and case rows; no weights, no masks, no images.

    Args:
        suite: Name of the suite.
        entries: Its plan; packed are results, `ok` or `diverged`, also those that are stale: the record says of which
            source they are, and a plan compares it.
        to: A file `*.zip`, or a folder; neither may be there.

    Returns:
        What was packed, and how many cells.

    Raises:
        BenchError: There is no result, a result is damaged, or `to` cannot be written.
    """
    files: dict[str, Path] = {}
    chosen = [e for e in entries if e.folder is not None and e.record is not None and e.record.status in SHARED]
    for entry in chosen:
        assert entry.folder is not None and entry.record is not None
        train, name = entry.folder.parent, f"{entry.cell.train_id}/{entry.cell.eval_id}"
        if files.setdefault(f"{entry.cell.train_id}/train.json", train / "train.json").parent != train:
            raise BenchError(f"{entry.cell.title}: its training lies in two folders; name one with --out.")
        files[f"{entry.cell.train_id}/curve.csv"] = train / "curve.csv"
        files[f"{name}/record.json"] = entry.folder / "record.json"
        if entry.record.status == "ok":
            files[f"{name}/cases.csv"] = entry.folder / "cases.csv"
    if not chosen:
        raise BenchError(f"{suite}: no cell has a result; `bench plan` shows their states.")
    return _packed(suite, files, to), len(chosen)


def pack_folder(suite: str, folder: Path, to: Path) -> Contents:
    """Pack all records of a folder `TRAINING/EVALUATION`; see `pack`."""
    found = [p for pattern in ("*/*", "*/*/*") for p in folder.glob(pattern) if p.is_file()]
    return _packed(suite, {p.relative_to(folder).as_posix(): p for p in found}, to)


def refuse_present(to: Path) -> None:
    """An archive never replaces anything.

    Raises:
        BenchError: There is something.
    """
    if to.is_symlink() or to.exists():
        raise BenchError(f"{to}: is there already; remove it, or choose another name.")


def _packed(suite: str, files: Files, to: Path) -> Contents:
    refuse_present(to)
    for train_id, evaluations in trainings([*files]).items():
        check_training(suite, train_id, evaluations, lambda name: _content(files[name]) if name in files else None)
    LIMITS.check(suite, {name: path.stat().st_size for name, path in files.items()} | {MANIFEST: 0})
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        return _zip(suite, files, to) if to.suffix.lower() == ".zip" else _folder(suite, files, to)
    except OSError as error:
        raise BenchError(f"{to}: cannot be written ({error.strerror or error}).") from None


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _zip(suite: str, files: Files, to: Path) -> Contents:
    made: list[Contents] = []

    def write(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            made.append(_write(suite, files, lambda name, data: archive.writestr(_info(name), data)))

    write_atomic(to, write)
    return made[0]


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, wherever it is made
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _folder(suite: str, files: Files, to: Path) -> Contents:
    staging = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        contents = _write(suite, files, lambda name, data: write_file(staging / name, data))
        staging.chmod(0o777 & ~UMASK)
        os.rename(staging, to)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return contents


def write_file(path: Path, data: bytes) -> None:
    """Write a file with the permissions that the umask leaves, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda stream: stream.write(data))


def _write(suite: str, files: Files, put: Callable[[str, bytes], object]) -> Contents:
    found: dict[str, tuple[str, int]] = {}
    for name in sorted(files):
        data = files[name].read_bytes()
        put(name, data)
        found[name] = hashlib.sha256(data).hexdigest(), len(data)
    contents = Contents(suite, __version__, found)
    put(MANIFEST, contents.text())
    return contents
