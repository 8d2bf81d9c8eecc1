"""Where an archive is read from: a zip file or a folder. Neither is unpacked; one file at a time comes to memory."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from harness.errors import BenchError
from harness.sharing.layout import ID, LIMITS, MB, Limits, check_name

_END, _END64 = b"PK\x05\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES = 22, 20
_LARGEST_LIST = 16 * MB  # of the list of files at the end of a zip file
_LARGEST_FILE = 1024 * MB


class Source(Protocol):
    """An archive that can be read.

    Attributes:
        sizes: Name to size in bytes of every file in it; names and sizes are checked.
    """

    sizes: dict[str, int]

    def read(self, name: str) -> bytes:
        """The whole of one file.

        Raises:
            BenchError: It is not what its size says, or cannot be read.
        """
        ...


@contextmanager
def open_source(path: Path, limits: Limits = LIMITS) -> Iterator[Source]:
    """Open a zip file or a folder.

    Raises:
        BenchError: It is neither, is damaged, too large, or holds something that has no place in an archive.
    """
    try:
        folder = path.is_dir()
        # a pipe must not make it wait
        descriptor = None if folder else os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); expected a zip file or a folder.") from None
    if descriptor is None:
        yield Folder(path, limits)
        return
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise BenchError(f"{path}: is no file; expected a zip file or a folder of `bench records export`.")
        yield Zip(path, stream, limits)


class Zip:
    """A zip file; see `Source`."""

    def __init__(self, path: Path, stream: IO[bytes], limits: Limits) -> None:
        self._path = path
        _check_end(path, stream)
        with _damage(path):
            self._archive = zipfile.ZipFile(stream)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            self._add(info)
        self.sizes = {name: info.file_size for name, info in self._members.items()}
        limits.check(str(path), self.sizes)

    def _add(self, info: zipfile.ZipInfo) -> None:
        where, name = str(self._path), info.orig_filename  # as it is written: zipfile cuts `filename` at a null byte
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise BenchError(f"{where}: {name[:100]!a} is a symbolic link; an archive holds files only.")
        if name.endswith("/") and info.file_size == 0 and all(map(ID.fullmatch, name[:-1].split("/"))):
            return  # zip programs write folders, too
        check_name(where, name)
        if kind not in (0, stat.S_IFREG):
            raise BenchError(f"{where}: {name} is no ordinary file.")
        if info.flag_bits & 1:
            raise BenchError(f"{where}: {name} is encrypted; pack it without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BenchError(f"{where}: {name} is packed by method {info.compress_type}; expected stored or deflated.")
        if name in self._members:
            raise BenchError(f"{where}: {name} stands in it twice.")
        self._members[name] = info

    def read(self, name: str) -> bytes:
        """The whole of one file; see `Source`."""
        with _damage(self._path), self._archive.open(self._members[name]) as stream:
            data = stream.read(self.sizes[name] + 1)  # never more, whatever the packed data would unpack to
        if len(data) != self.sizes[name]:
            raise BenchError(f"{self._path}: {name} is cut off; fetch the archive again.")
        return data


def _check_end(path: Path, stream: IO[bytes]) -> None:
    """Look at the end of a zip file before its list of files is loaded: the list itself could fill the memory."""
    size = stream.seek(0, os.SEEK_END)
    if size > _LARGEST_FILE:
        raise BenchError(f"{path}: is {size} bytes, at most {_LARGEST_FILE} are read; split it.")
    tail = min(size, _END_BYTES + _LOCATOR_BYTES)
    stream.seek(size - tail)
    end = stream.read(tail)
    stream.seek(0)
    last = end[-_END_BYTES:]
    if len(last) < _END_BYTES or not last.startswith(_END) or last[-2:] != b"\0\0":
        raise BenchError(f"{path}: is no zip file of `bench records export`, or is cut off; fetch it again.")
    listed = int.from_bytes(last[12:16], "little")
    if listed > _LARGEST_LIST or end[:-_END_BYTES].startswith(_END64):
        raise BenchError(f"{path}: lists more files than bench reads; split it.")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except BenchError:
        raise
    except Exception as error:  # whatever zipfile and zlib make of damaged bytes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BenchError(f"{path}: is damaged ({ascii(reason)[1:-1][:200]}); fetch it again.") from None


class Folder:
    """A folder with the same files; see `Source`."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self.sizes: dict[str, int] = {}
        self._most = limits.files
        self._walk("")
        limits.check(str(path), self.sizes)

    def _walk(self, prefix: str) -> None:
        try:
            with os.scandir(self._path / prefix) as found:
                entries = sorted(found, key=lambda e: e.name)
            for entry in entries:
                self._add(f"{prefix}{entry.name}", entry)
        except OSError as error:
            raise BenchError(f"{error.filename or self._path}: cannot be read ({error.strerror}).") from None

    def _add(self, name: str, entry: os.DirEntry[str]) -> None:
        if entry.is_symlink():
            raise BenchError(f"{self._path}: {name[:100]!a} is a symbolic link; an archive holds files only.")
        if entry.is_dir() and name.count("/") < 2 and ID.fullmatch(entry.name):
            self._walk(f"{name}/")
            return
        check_name(str(self._path), name)
        if not entry.is_file():
            raise BenchError(f"{self._path}: {name} is no ordinary file.")
        if len(self.sizes) > self._most:
            raise BenchError(f"{self._path}: it holds more than {self._most} files; split it.")
        self.sizes[name] = entry.stat().st_size

    def read(self, name: str) -> bytes:
        """The whole of one file; see `Source`."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        data = b""
        with suppress(OSError), os.fdopen(os.open(self._path / name, flags), "rb") as stream:
            data = stream.read(self.sizes[name] + 1)
        if len(data) != self.sizes[name]:
            raise BenchError(f"{self._path}: {name} cannot be read, or changed while it was read; run it again.")
        return data
