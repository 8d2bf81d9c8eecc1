"""What to say about files that are not there: where they were looked for, and where they seem to lie instead."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from harness.data.cases import Found
from harness.data.layouts.base import is_there, listed
from harness.data.manifest import Manifest
from harness.errors import BenchError

SHOWN = 4  # names of files beside a missing one
TRIED = 50  # folders in which a data set is looked for that is not where it should be


def absence(manifest: Manifest, root: Path | None, absent: Sequence[Path]) -> str:
    """Sentences about missing files of a data set.

    Args:
        manifest: The data set.
        root: Folder of data in which they were looked for.
        absent: The missing files, at least one.

    Returns:
        Which file, how many more, where it lies instead or what of its case is there, and how to obtain the data.
    """
    first = absent[0]
    hint = hint_of(manifest, root, absent)
    obtain = " ".join(manifest.spec.obtain.split())
    what = f"{manifest.name}: {first} is not there{and_more(absent)}."
    return f"{what} {hint}{obtain} Then name its folder with --data or BENCH_DATA."


def and_more(absent: Sequence[Path]) -> str:
    """How many files are missing beside the first, in words."""
    count = len(absent) - 1
    return f" and {count} more {'files' if count > 1 else 'file'}" if count else ""


def none_found(manifest: Manifest, root: Path) -> str:
    """Sentences about a folder of data in which no case of a data set with `cases: found` lies.

    Args:
        manifest: The data set.
        root: Folder of data in which they were looked for.

    Returns:
        Where they were looked for, where they lie instead, and how to obtain the data.
    """
    options = manifest.layout[1]
    place = root / str(options.get("folder") or options.get("label", ""))
    obtain = " ".join(manifest.spec.obtain.split())
    return f"{root} holds no case of {manifest.name}: looked for {place}. {_other_root(manifest, root)}{obtain}"


def _other_root(manifest: Manifest, root: Path) -> str:
    """Whether the folder that has them is one deeper, as is an archive in a folder of its own name, or one higher."""
    if not is_there(root):
        return f"There is no folder {root}. "
    for inner in sorted(p for p in listed(root) if p.is_dir())[:TRIED]:
        if _has_cases(manifest, inner):
            return f"They lie one folder deeper: name {inner} with --data. "
    above = root.absolute().parent
    return f"{root} is one folder too deep: name {above} with --data. " if _has_cases(manifest, above) else ""


def _has_cases(manifest: Manifest, root: Path) -> bool:
    from harness.data.layouts import reader_of

    with contextlib.suppress(BenchError):
        return bool(reader_of(manifest, root).cases())
    return False


def hint_of(manifest: Manifest, root: Path | None, absent: Sequence[Path]) -> str:
    """Where the first missing file lies instead, or what of its case is there; empty, or a sentence and a space."""
    first = absent[0]
    return (_elsewhere(first, root) if root is not None else "") or _beside(manifest, first)


def _elsewhere(path: Path, root: Path) -> str:
    """Whether it lies one folder deeper, or `root` itself is one folder too deep."""
    if not path.is_relative_to(root):
        return ""
    parts = path.relative_to(root).parts
    folder = root
    for k in range(len(parts)):
        for inner in sorted(listed(folder)):
            deeper = inner.joinpath(*parts[k:])
            if inner.is_dir() and inner.name != parts[k] and is_there(deeper):
                return f"It lies one folder deeper, in {inner}: move what is there up to {folder}. "
        twice = folder / parts[k] / parts[k]  # an archive that was unpacked into a folder of its own name
        if k + 1 < len(parts) and is_there(twice.joinpath(*parts[k + 1 :])):
            return f"It lies one folder deeper, in {twice}: move what is there up to {folder / parts[k]}. "
        folder = folder / parts[k]
    if root.name == parts[0] and is_there(root.parent / path.relative_to(root)):
        return f"{root} is one folder too deep: name {root.parent} with --data. "
    return "" if is_there(root) else f"There is no folder {root}. "


def _beside(manifest: Manifest, path: Path) -> str:
    """What of the same case is in the same folder: one file of several is missing."""
    name = path.name.split(".")[0]
    if isinstance(manifest.spec.cases, Found) and manifest.root is None:
        return ""
    owners = [c for c in manifest.cases if c in name or c == path.parent.name]
    if not owners:
        return ""
    case = max(owners, key=len)
    there = sorted(p.name for p in listed(path.parent) if case in p.name)
    if not there:
        return ""
    shown = ", ".join(there[:SHOWN]) + (f" and {len(there) - SHOWN} more" if len(there) > SHOWN else "")
    return f"Of case {case} its folder has only {shown}. "
