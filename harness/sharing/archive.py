"""An archive that has been read and believed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BenchError
from harness.sharing.contents import Checked, check_training, trainings
from harness.sharing.layout import LIMITS, MANIFEST, Contents, Limits, read_contents
from harness.sharing.sources import Source, open_source


@dataclass(frozen=True)
class Archive:
    """Records that passed every check.

    Attributes:
        path: The zip file or folder.
        contents: Its manifest.
        cells: Its evaluations.
    """

    path: Path
    contents: Contents
    cells: tuple[Checked, ...]
    source: Source

    def read(self, name: str) -> bytes:
        """A file, compared with its digest.

        Raises:
            BenchError: The file is not the one that was packed.
        """
        return _verified(self.path, self.source, self.contents, name)


@contextmanager
def open_archive(path: Path, limits: Limits = LIMITS) -> Iterator[Archive]:
    """Read and check a whole archive; nothing is written and nothing that it names is run.

    Args:
        path: A zip file or a folder that `bench records export` wrote.
        limits: What it may hold.

    Raises:
        BenchError: It is damaged, was changed, is too large, holds anything but records, or records that do not follow
            from their configuration.
    """
    with open_source(path, limits) as source:
        if MANIFEST not in source.sizes:
            raise BenchError(f"{path}: has no {MANIFEST}; records to pass on are packed by `bench records export`.")
        contents = read_contents(str(path), source.read(MANIFEST))
        packed, there = set(contents.files), set(source.sizes) - {MANIFEST}
        if lost := packed - there:
            raise BenchError(f"{path}: {min(lost)} is not there, and its manifest lists it; fetch it again.")
        if added := there - packed:
            raise BenchError(f"{path}: {min(added)} is not in its manifest; it was added after it was packed.")

        def read(name: str) -> bytes | None:
            return _verified(path, source, contents, name) if name in packed else None

        cells = [
            cell
            for train_id, evaluations in trainings([*packed]).items()
            for cell in check_training(str(path), train_id, evaluations, read)
        ]
        if not cells:
            raise BenchError(f"{path}: holds no cell; pack it again with `bench records export`.")
        yield Archive(path, contents, tuple(cells), source)


def _verified(path: Path, source: Source, contents: Contents, name: str) -> bytes:
    data = source.read(name)
    digest, size = contents.files[name]
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise BenchError(f"{path}: {name} is not the file that was packed: its SHA-256 is not that of the manifest.")
    return data
