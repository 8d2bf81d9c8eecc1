"""The form of an archive: which names it has, how large its files may be, and its manifest of digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import BenchError

FORMAT, VERSION = "bench records", 1
MANIFEST = "manifest.json"
ID = re.compile(r"[0-9a-f]{16}")
SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # names a folder
_NAME = re.compile(r"[0-9a-f]{16}/(?:train\.json|curve\.csv|[0-9a-f]{16}/(?:record\.json|cases\.csv))")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DEEPEST = 40

MB = 2**20
_LARGEST = {MANIFEST: 32 * MB, "train.json": 4 * MB, "record.json": 4 * MB, "curve.csv": 16 * MB, "cases.csv": 64 * MB}


@dataclass(frozen=True)
class Limits:
    """What an archive may hold: enough for 16,000 cells of a large data set.

    Attributes:
        files: Number of files.
        total: Bytes of all files, unpacked.
    """

    files: int = 65_535  # of a zip archive without the extension zip64
    total: int = 2048 * MB

    def check(self, where: str, sizes: Mapping[str, int]) -> None:
        """Refuse what would fill memory or disk, before a byte of it is unpacked.

        Raises:
            BenchError: Too many files, one too large, or all together too large.
        """
        if len(sizes) > self.files:
            raise BenchError(f"{where}: it holds {len(sizes)} files, at most {self.files} are read; split it.")
        for name, size in sizes.items():
            largest = _LARGEST[name.rpartition("/")[2]]
            if size > largest:
                raise BenchError(f"{where}: {name} is {size} bytes unpacked, at most {largest} are read.")
        if (total := sum(sizes.values())) > self.total:
            raise BenchError(f"{where}: it is {total} bytes unpacked, at most {self.total} are read; split it.")


LIMITS = Limits()


def check_name(where: str, name: str) -> None:
    """Let the names of an archive pass and no other: no path leads out of it, none is a surprise within.

    Raises:
        BenchError: The name is another.
    """
    if name != MANIFEST and not _NAME.fullmatch(name):
        raise BenchError(
            f"{where}: {name[:100]!a} has no place in it: it holds {MANIFEST} and TRAINING/train.json, curve.csv, "
            "EVALUATION/record.json, cases.csv, and nothing else."
        )


def read_json(where: str, data: bytes) -> Any:
    """Parse JSON with nothing that two readers could understand in two ways.

    Raises:
        BenchError: It is no JSON, repeats a key, has a number that is not finite, a control character, or is nested
            too deep.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_not_finite)
        _plain(found, 0)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BenchError(f"{where}: not readable as JSON ({reason}).") from None
    return found


def check_text(text: str) -> None:
    """See that a text holds no control character, with which a terminal can be made to show anything.

    Raises:
        ValueError: It holds one.
    """
    if found := _UNPRINTABLE.search(text):
        raise ValueError(f"it holds the control character {found.group()!a}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _not_finite(text: str) -> float:
    raise ValueError(f"the number {text} is not finite")


def _plain(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            _plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _plain(item, depth + 1)
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):  # of 1e999
        raise ValueError("a number is too large")


@dataclass(frozen=True)
class Contents:
    """What the manifest of an archive says.

    Attributes:
        suite: Name of the suite.
        made_by: Version of bench that packed it.
        files: Name to SHA-256 and size in bytes.
    """

    suite: str
    made_by: str
    files: dict[str, tuple[str, int]]

    @property
    def digest(self) -> str:
        """Digest of all that was packed, whatever it was packed in: the same for the zip file and for the folder."""
        text = json.dumps([self.suite, self.files], sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def text(self) -> bytes:
        """The manifest as it is written."""
        files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(self.files.items())}
        about = {"format": FORMAT, "version": VERSION, "suite": self.suite, "bench": self.made_by, "files": files}
        return (json.dumps(about, indent=1) + "\n").encode()


def read_contents(where: str, data: bytes) -> Contents:
    """Read a manifest.

    Raises:
        BenchError: It is none, or of a newer form.
    """
    here = f"{where}: {MANIFEST}"
    raw = read_json(here, data)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BenchError(f'{here}: does not say "format": "{FORMAT}", so these are no records of bench.')
    if type(raw.get("version")) is not int or raw["version"] != VERSION:
        raise BenchError(
            f"{here}: of version {raw.get('version')!r}, this bench reads {VERSION}; take the other bench."
        )
    if set(raw) != {"format", "version", "suite", "bench", "files"}:
        raise BenchError(f"{here}: expected the keys format, version, suite, bench and files, and no other.")
    suite, made_by, files = raw["suite"], raw["bench"], raw["files"]
    if not isinstance(suite, str) or not SUITE.fullmatch(suite) or not isinstance(made_by, str):
        raise BenchError(f"{here}: the suite {ascii(suite)[:100]} or the version is no name.")
    if not isinstance(files, dict):
        raise BenchError(f"{here}: `files` is no mapping of names to digests.")
    found: dict[str, tuple[str, int]] = {}
    for name, entry in files.items():
        check_name(here, name)
        if (
            name == MANIFEST
            or not isinstance(entry, dict)
            or set(entry) != {"sha256", "bytes"}
            or not (isinstance(entry["sha256"], str) and _DIGEST.fullmatch(entry["sha256"]))
            or type(entry["bytes"]) is not int
        ):
            raise BenchError(f"{here}: the entry of {name} is no SHA-256 with a size in bytes.")
        found[name] = entry["sha256"], entry["bytes"]
    return Contents(suite, made_by, found)
