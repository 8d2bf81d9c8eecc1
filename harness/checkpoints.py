"""Checkpoints that know their own digest: what was cut or flipped on its way is never continued from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import IO, Any

import torch

from harness.errors import BenchError

_MARK = b"\nbench checkpoint sha256 "
_LENGTH = len(_MARK) + 64


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
    hashing = _Hashing(stream)
    try:
        torch.save(content, hashing)  # type: ignore[arg-type]  # it needs nothing of a stream but `write`
    except RuntimeError:
        if hashing.error is not None:
            raise hashing.error from None
        raise
    return hashing.digest.hexdigest()


def write_checkpoint(content: dict[str, Any], stream: IO[bytes]) -> None:
    """Write a checkpoint: torch's file, then 64 digits of its SHA-256."""
    stream.write(_MARK + save(content, stream).encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UnusableCheckpoint: It is damaged, or of a version of bench or of torch that wrote others.
        OSError: The system refuses to read it, which says nothing of its content.
    """
    data = path.read_bytes()
    end = len(data) - _LENGTH
    if end < 0 or data[end:] != _MARK + hashlib.sha256(memoryview(data)[:end]).hexdigest().encode():
        raise UnusableCheckpoint(f"{path}: damaged checkpoint (its SHA-256 is not the one it was written with).")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UnusableCheckpoint(f"{path}: damaged checkpoint ({type(error).__name__}).") from None
    return content
