"""What all layouts share: the case that is read and written, label values, and sentences about what is not there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.cases import sorted_cases
from harness.data.manifest import Manifest
from harness.errors import BenchError
from harness.imagefiles import readable
from harness.paths import leads_out

IGNORE = 255
DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Volume:
    """One case on its original grid.

    Attributes:
        image: (C, z, y, x) float32, in the units of the file; an image of a 2D data set is one slice.
        label: (z, y, x) uint8; 0 background, 1..K classes in the manifest's order, 255 ignored.
        spacing: (z, y, x) in millimetres, or None where the layout stores none.
        origin: Physical position of the first voxel, SimpleITK's order.
        direction: Direction cosines, SimpleITK's order.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing: tuple[float, float, float] | None
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = DIRECTION


class Reader(Protocol):
    """What every layout offers."""

    def cases(self) -> list[str]:
        """The cases that lie in the folder, in natural order."""
        ...

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Files of these cases that are not there."""
        ...

    def digest(self, case: str) -> str:
        """Digest of the case's raw content."""
        ...

    def read(self, case: str) -> Volume:
        """Read one case; faults of a file are a `BenchError` that names it."""
        ...

    def write(self, case: str, volume: Volume) -> None:
        """Write one case as `read` expects it: names, formats and label values of this layout.

        Raises:
            BenchError: The layout cannot hold the volume.
        """
        ...

    def finish(self, cases: Sequence[str]) -> None:
        """Write what belongs to the folder as a whole, after all cases are written."""
        ...


class NoRoot(BenchError):
    """No folder of data was given, and a data set lies in one."""


def root_of(manifest: Manifest, root: Path | None) -> Path:
    """The folder of data.

    Raises:
        NoRoot: None was given.
    """
    if root is None:
        raise NoRoot(
            f"{manifest.name} lies outside the package: say where with --data FOLDER or BENCH_DATA. "
            f"{manifest.spec.obtain.strip()}"
        )
    return root


def text_option(manifest: Manifest, key: str, value: Any) -> str:
    """An option of a layout that must be a path, or the pattern of one, below the folder of data.

    Raises:
        BenchError: It is no text, or leads out of the folder.
    """
    where = ("layout", manifest.layout[0], key)
    if not isinstance(value, str) or not value:
        raise manifest.file.error(where, f"expected text, found {value!r}.")
    if leads_out(value):
        raise manifest.file.error(
            where, f"{value!r} leads out of the folder of data; expected a path below it, without `..`."
        )
    return value


def is_there(path: Path) -> bool:
    """Whether a file or folder is there.

    Raises:
        BenchError: A folder on the way cannot be entered.
    """
    with readable(path):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def either(stem: Path, endings: Sequence[str] = (".nii.gz", ".nii")) -> Path:
    """The file of that name with one of the endings; with the first where there is none.

    Raises:
        BenchError: There are two.
    """
    found = [path for ending in endings if is_there(path := stem.with_name(stem.name + ending))]
    if len(found) > 1:
        raise BenchError(f"{found[0]}: the same file is also there as {found[1].name}; keep one of the two.")
    return found[0] if found else stem.with_name(stem.name + endings[0])


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, hidden files left out; nothing where the folder is not there.

    Raises:
        BenchError: It cannot be entered.
    """
    if not is_there(folder):
        return []
    with readable(folder):
        return [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []


def check_not_empty(path: Path) -> None:
    """Refuse a file of no bytes, for which every library has another sentence.

    Raises:
        EOFError: It is empty.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        if not stream.read(1):
            raise EOFError("the file is empty: 0 bytes")


def digest_of(paths: Iterable[Path]) -> str:
    """Digest of the bytes of some files, in order; a folder stands for its files by name."""
    total = hashlib.sha256()
    for path in paths:
        for part in sorted(listed(path)) if path.is_dir() else [path]:
            with readable(part), part.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def cases_by_pattern(root: Path, pattern: str) -> list[str]:
    """Cases for which a file or folder of the pattern's name lies below `root`; `{case}` may come several times.

    Raises:
        BenchError: A folder on the way cannot be entered.
    """
    parts = [re.escape(p) for p in pattern.split("{case}")]
    expression = re.compile(parts[0] + "(?P<case>[^/]+?)" + "(?P=case)".join(parts[1:]))
    paths = [root]
    for level in pattern.split("/"):
        if "{case}" not in level:
            paths = [p / level for p in paths if is_there(p / level)]
            continue
        name = re.compile(".+".join(map(re.escape, level.split("{case}"))))
        paths = [p for folder in paths for p in listed(folder) if name.fullmatch(p.name)]
    names = (expression.fullmatch(p.relative_to(root).as_posix()) for p in paths)
    return sorted_cases(match["case"] for match in names if match)


def remap(
    manifest: Manifest, values: NDArray[Any], path: Path, merge: Mapping[int, int] | None = None
) -> NDArray[np.uint8]:
    """From label values of a file to the manifest's indices.

    Args:
        manifest: The data set.
        values: As read.
        path: The file, for sentences.
        merge: Value in the file → value that it counts as.

    Raises:
        BenchError: A value is not whole, or is not in the manifest.
    """
    if values.dtype.kind == "f":
        if not (np.isfinite(values) & np.equal(values, np.round(values))).all():
            raise BenchError(f"{path}: label values are not whole numbers.")
        values = values.astype(np.int64)
    spec, same = manifest.spec, merge or {}
    out = np.zeros(values.shape, np.uint8)
    for index, value in enumerate(spec.labels.values(), start=1):
        for own in (value, *(k for k, v in same.items() if v == value)):
            out[values == own] = index
    if spec.ignore is not None:
        out[values == spec.ignore] = IGNORE
    unknown = sorted(set(np.unique(values).tolist()) - known_values(manifest) - set(same))
    if unknown:
        raise BenchError(
            f"{path}: label value {unknown[0]} is not in the manifest {manifest.path.name} "
            f"(labels {', '.join(f'{k}={v}' for k, v in spec.labels.items())}); name it in `labels` or `drop`."
        )
    return out


def known_values(manifest: Manifest) -> set[int]:
    """Label values that the manifest names, and 0."""
    spec = manifest.spec
    return {0, *spec.labels.values(), *spec.drop, *([spec.ignore] if spec.ignore is not None else [])}


def file_values(manifest: Manifest, label: NDArray[np.uint8], ignore: int | None = None) -> NDArray[Any]:
    """From the manifest's indices to label values of a file, of the smallest type that holds them.

    Args:
        manifest: The data set.
        label: 0, 1..K and 255.
        ignore: Value of what is ignored; the manifest's where it is None.

    Raises:
        BenchError: The label holds an index that the manifest has no class for, or is ignored where nothing can be.
    """
    values = list(manifest.spec.labels.values())
    hidden = manifest.spec.ignore if ignore is None else ignore
    known = [0, *values, *([] if hidden is None else [hidden])]
    table, has = np.zeros(256, np.int64), np.zeros(256, bool)
    table[: len(values) + 1], has[: len(values) + 1] = [0, *values], True
    if hidden is not None:
        table[IGNORE], has[IGNORE] = hidden, True
    out = table[label]
    if not has[label].all():
        strange = int(label[~has[label]].max())
        raise BenchError(
            f"{manifest.name}: a label to write holds the index {strange}; the manifest has classes 1 to {len(values)}"
            f"{'' if hidden is not None else ' and no `ignore`'}."
        )
    kinds = (np.uint8, np.int16, np.int32, np.int64)
    fits = (k for k in kinds if np.iinfo(k).min <= min(known) and max(known) <= np.iinfo(k).max)
    return out.astype(next(fits))
