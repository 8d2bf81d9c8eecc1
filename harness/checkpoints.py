"""Checkpoints that know their own digest: what was cut or flipped on its way is never continued from.

Their last line names the engine besides, so that a plan can tell it without torch (`engine_of_checkpoint`).
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from harness.errors import BenchError

NAME = "checkpoint.pt"

_MARK, _DIGEST = b"\nbench checkpoint ", b" sha256 "
_WORD = 16  # the engine, filled up with spaces
_LENGTH = len(_MARK) + _WORD + len(_DIGEST) + 64


class UnusableCheckpoint(BenchError):
    """A checkpoint that cannot be continued from; without it the training starts anew and ends with the same bits."""


class _Hashing(io.RawIOBase):
    """A stream that passes on what is written, and keeps its digest and what went wrong."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise


def save(content: Any, stream: IO[bytes]) -> str:
    """`torch.save`; returns the SHA-256 of what was written.

    Raises:
        OSError: The disk is full, for example; torch would say "unexpected pos 30 vs 0".
    """
    import torch

    hashing = _Hashing(stream)
    try:
        torch.save(content, hashing)  # type: ignore[arg-type]  # it needs nothing of a stream but `write`
    except RuntimeError:
        if hashing.error is not None:
            raise hashing.error from None
        raise
    return hashing.digest.hexdigest()


def word_of(about: Mapping[str, Any]) -> str:
    """How a cell was trained, in a word, from what its record or checkpoint says: "single", "compiled" or "fused".

    "single/fused" is a cell that trained alone in a fused run, because its network left no choice.
    """
    engine = str(about.get("engine", "single"))  # before there were several, there was no word
    return f"{engine}/{about['instead_of']}" if "instead_of" in about else engine


def write_checkpoint(content: dict[str, Any], stream: IO[bytes]) -> None:
    """Write a checkpoint: torch's file, then the engine and 64 digits, the SHA-256 of both.

    Args:
        content: What to keep; its `engine` says how the training was begun, its `progress` how far it is.
        stream: The file.
    """
    word = word_of(content["engine"]) if content["progress"]["step"] else ""
    stream.write(_last_line(word.encode().ljust(_WORD), save(content, stream)))


def engine_of_checkpoint(path: Path) -> str:
    """How the training of a checkpoint was begun, as `word_of`; empty where there is none that was.

    Raises:
        OSError: The system refuses to read it.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(-_LENGTH, io.SEEK_END)
            line = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.EINVAL:  # shorter than its last line
            return ""
        raise
    if not line.startswith(_MARK):
        return ""  # damaged: the training starts anew
    return line[len(_MARK) :][:_WORD].decode("ascii", "replace").strip()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UnusableCheckpoint: It is damaged, or of a version of bench or of torch that wrote others.
        OSError: The system refuses to read it, which says nothing of its content.
    """
    import torch

    data = path.read_bytes()
    end = len(data) - _LENGTH
    word = data[max(0, end) + len(_MARK) :][:_WORD]
    if end < 0 or data[end:] != _last_line(word, hashlib.sha256(memoryview(data)[:end]).hexdigest()):
        raise UnusableCheckpoint(f"{path}: damaged checkpoint (its SHA-256 is not the one it was written with).")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UnusableCheckpoint(f"{path}: damaged checkpoint ({type(error).__name__}).") from None
    return content


def _last_line(word: bytes, digest: str) -> bytes:
    return _MARK + word + _DIGEST + hashlib.sha256(word + digest.encode()).hexdigest().encode()
