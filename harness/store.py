"""What reports and plans read, kept in two files per suite: rows in columns, records without their repetitions.

`OUT/cache/store/SUITE.npz` holds the numbers of every cases.csv and curve.csv, `OUT/cache/store/SUITE.json` the
records. Both are caches: a file counts as unchanged while its path, time of change and size are; the rest is read again
from the cells' folders, and a damaged or lacking store is built anew. What comes out is the same with a store, without
one, and whatever it held before. No torch.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.records import RunRecord, read_record, record_at, write_atomic

VERSION = 1  # of both files; raised when their content or what is read from the sources changes
# A file this young could change again without a new time of change: it is read again next time.
YOUNG_NS = 2_000_000_000
_DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)

Columns = dict[str, NDArray[Any]]
Stamp = tuple[int, int]
Form = tuple[str, ...]
_CHANGED: Stamp = (-1, -1)  # equal to no stamp of a file
_FIELDS = [f.name for f in fields(RunRecord)]


class Home:
    """Where the stores of a results folder are, and how files are named in them.

    Args:
        out: The results folder; nothing is written where it does not exist.
        suite: Name of the suite.
    """

    def __init__(self, out: Path, suite: str) -> None:
        self._out = os.path.abspath(out)
        self._stem = os.path.join(self._out, "cache", "store", suite)
        self._roots: dict[str, str] = {}

    @property
    def rows(self) -> Path:
        """File of the rows."""
        return Path(f"{self._stem}.npz")

    @property
    def records(self) -> Path:
        """File of the records."""
        return Path(f"{self._stem}.json")

    def key(self, place: str, name: str) -> str:
        """Name of a file below one of the places: a results folder can be moved with its store."""
        root = self._roots.get(place)
        if root is None:
            whole = os.path.abspath(place)
            root = self._roots[place] = "" if whole == self._out else whole + "/"
        return root + name

    def write(self, path: Path, content: Callable[[Any], Any]) -> None:
        """Write a store, whole or not at all; where that is not possible the next command reads more, and no harm."""
        if not os.path.isdir(self._out):
            return
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)


@dataclass(frozen=True)
class Source:
    """A file that rows are read from.

    Attributes:
        path: The file.
        key: Its name in the store.
        owner: Index of the cell that it belongs to.
        digest: Its SHA-256 as the record of the cell has it; empty where the record has none.
    """

    path: str
    key: str
    owner: int
    digest: str = ""


@dataclass
class Sheet:
    """Rows of many files, file after file, in columns.

    Attributes:
        columns: Name to values; all of one length.
        counts: Rows of each file.
        keys: Name of each file in the store.
        stamps: Time of change in ns and size in bytes of each file as it was read.
        forms: Names of the columns that each file has; where it lacks one of the others its rows are NaN.
        texts: What the codes of a column stand for.
    """

    columns: Columns = field(default_factory=dict)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    keys: list[str] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def check(self) -> None:
        """Whether it fits together.

        Raises:
            ValueError: It does not: the file that it comes from is damaged.
        """
        total = int(self.counts.sum())
        same = len(self.counts) == len(self.keys) == len(self.stamps) == len(self.forms)
        same &= bool((self.counts >= 0).all()) and {n for form in self.forms for n in form} == self.columns.keys()
        if not same or any(c.shape != (total,) for c in self.columns.values()):
            raise ValueError("lengths differ")
        for name, texts in self.texts.items():
            codes = self.columns[name]
            if codes.dtype.kind not in "iu" or (total and not 0 <= int(codes.min()) <= int(codes.max()) < len(texts)):
                raise ValueError(f"{name}: codes without a text")


class OtherTraining(Exception):
    """A curve that is whole, and of another training than the record."""


class Codes(dict[str, int]):
    """Text to number, in order of first appearance."""

    def __missing__(self, text: str) -> int:
        found = self[text] = len(self)
        return found


Parse = Callable[[str, Mapping[str, Codes]], Columns]
Piece = Columns | slice  # rows that were read, or that were kept


def refresh(
    old: Sheet, sources: Sequence[Source], coded: Sequence[str], parse: Parse
) -> tuple[Sheet, list[int], list[str]]:
    """Bring a sheet up to date: files that are as they were keep their rows, the others are read.

    Args:
        old: What was kept; it is left as it is.
        sources: The files, in the order of the result. One that does not exist has no rows and no note.
        coded: Columns of codes.
        parse: Reads the text of a file into columns; raises ValueError where it is damaged.

    Returns:
        The sheet, the owner of each of its files, and a sentence for each damaged file.
    """
    known = {key: i for i, key in enumerate(old.keys)}
    stops = np.cumsum(old.counts)
    codes = {name: Codes((text, i) for i, text in enumerate(old.texts.get(name, ()))) for name in coded}
    new = Sheet()
    owners: list[int] = []
    notes: list[str] = []
    pieces: list[Piece] = []
    counts: list[int] = []
    for source in sources:
        at = known.get(source.key)
        sizes = {name: len(table) for name, table in codes.items()}
        try:
            if at is not None and _stamp(os.stat(source.path)) == old.stamps[at]:
                stamp, form, stop = old.stamps[at], old.forms[at], int(stops[at])
                count = int(old.counts[at])
                if pieces and isinstance(pieces[-1], slice) and pieces[-1].stop == stop - count:
                    pieces[-1] = slice(pieces[-1].start, stop)
                else:
                    pieces.append(slice(stop - count, stop))
            else:
                stamp, text = _read(source.path, source.digest)
                part = parse(text, codes)
                pieces.append(part)
                form, count = tuple(part), len(next(iter(part.values())))
        except FileNotFoundError:
            if source.digest:
                notes.append(f"LEFT OUT: {source.path} is not there; remove the record to run the cell again.")
            continue
        except OtherTraining:
            notes.append(
                f"LEFT OUT: {source.path} is of a later training than the record, made again for another evaluation of "
                "it; remove the record to measure that training."
            )
            continue
        except (OSError, ValueError, csv.Error) as error:
            notes.append(f"LEFT OUT: {source.path} is damaged ({error}).")
            for name, size in sizes.items():  # what it brought in was not checked to its end
                while len(codes[name]) > size:
                    codes[name].popitem()
            continue
        new.keys.append(source.key)
        new.stamps.append(stamp)
        new.forms.append(form)
        counts.append(count)
        owners.append(source.owner)
    new.counts = np.array(counts, np.int64)
    new.columns = _joined(old.columns, pieces, [*dict.fromkeys(n for form in new.forms for n in form)], coded)
    for name in coded:
        new.columns[name], new.texts[name] = _tidy(new.columns.get(name, np.zeros(0, np.int32)), [*codes[name]])
    return new, owners, notes


def _joined(old: Columns, pieces: Sequence[Piece], names: Sequence[str], coded: Sequence[str]) -> Columns:
    """The pieces one after the other."""
    if len(pieces) == 1 and isinstance(pieces[0], slice):
        return {name: old[name][pieces[0]] for name in names}
    out: Columns = {}
    for name in names:
        parts: list[NDArray[Any]] = []
        for piece in pieces:
            if isinstance(piece, slice):
                parts.append(old[name][piece] if name in old else np.full(piece.stop - piece.start, np.nan))
            else:
                parts.append(piece[name] if name in piece else np.full(len(next(iter(piece.values()))), np.nan))
        out[name] = np.concatenate(parts, dtype=np.int32 if name in coded else np.float64, casting="unsafe")
    return out


def _tidy(codes: NDArray[Any], texts: list[str]) -> tuple[NDArray[Any], list[str]]:
    """Codes and texts without the texts that no row has any more."""
    used = np.bincount(codes, minlength=len(texts)) > 0
    if used.all():
        return codes, texts
    return (np.cumsum(used) - 1).astype(np.int32)[codes], [t for t, there in zip(texts, used, strict=True) if there]


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size


def _read(path: str, digest: str) -> tuple[Stamp, str]:
    """A file as it is now, and the stamp of just that content.

    Raises:
        OtherTraining: It is not that of the record, but that of the training beside it.
        ValueError: It is neither.
    """
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        young = status.st_mtime_ns > time.time_ns() - YOUNG_NS
        content = stream.read()
    if digest and (found := hashlib.sha256(content).hexdigest()) != digest:
        training = record_at(Path(path).with_name("train.json"))
        if training is not None and training.files.get(os.path.basename(path)) == found:
            raise OtherTraining
        raise ValueError("its SHA-256 is not that in the record; remove the record to run the cell again")
    return _CHANGED if young else _stamp(status), content.decode("utf-8")


def read_sheets(path: Path) -> dict[str, Sheet]:
    """The sheets of a store; none where there is no store, or none of this version that is whole."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            if about["version"] != VERSION:
                return {}
            sheets = {}
            for name, known in about["sheets"].items():
                columns = {c: archive[f"{name}.{i}"] for i, c in enumerate(known["columns"])}
                stamps = [(int(t), int(size)) for t, size in known["stamps"]]
                kinds = [tuple(form) for form in known["forms"]]
                forms = [kinds[i] for i in known["form"]]
                counts = archive[f"{name}.counts"]
                sheets[name] = Sheet(columns, counts, known["keys"], stamps, forms, known["texts"])
                sheets[name].check()
            return sheets
    except Exception:  # whatever zipfile and numpy make of a damaged archive: it is only read to save time
        return {}


def write_sheets(home: Home, sheets: Mapping[str, Sheet]) -> None:
    """Write the rows of a suite; the format is plain arrays, checked by the archive's checksums."""
    arrays: Columns = {}
    about: dict[str, Any] = {"version": VERSION, "sheets": {}}
    for name, sheet in sheets.items():
        arrays[f"{name}.counts"] = sheet.counts
        for i, (column, values) in enumerate(sheet.columns.items()):
            small = np.min_scalar_type(max(0, len(sheet.texts[column]) - 1)) if column in sheet.texts else values.dtype
            arrays[f"{name}.{i}"] = values.astype(small, copy=False)
        forms = {form: i for i, form in enumerate(dict.fromkeys(sheet.forms))}
        about["sheets"][name] = {
            "columns": [*sheet.columns],
            "keys": sheet.keys,
            "stamps": sheet.stamps,
            "forms": [*forms],
            "form": [forms[form] for form in sheet.forms],
            "texts": sheet.texts,
        }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    home.write(home.rows, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


class Records:
    """The records of a suite's cells; a file that is as it was is not parsed again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._values, self._old = _read_index(home.records)
        self._new: dict[str, tuple[Stamp, RunRecord]] = {}
        self._changed = False

    def read(self, place: str, name: str) -> RunRecord | None:
        """The record `name` below a place; None where there is none.

        Raises:
            BenchError: It is damaged or of another schema.
        """
        path, key = f"{place}/{name}", self._home.key(place, name)
        try:
            stamp = _stamp(os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BenchError(f"{path}: cannot be read ({error.strerror}).") from None
        known = self._old.get(key)
        if known is not None and tuple(known[0]) == stamp:
            with suppress(*_DAMAGE):
                record = self._unpacked(known[1], known[2])
                self._new[key] = stamp, record
                return record
        record = read_record(Path(path))
        young = stamp[0] > time.time_ns() - YOUNG_NS
        self._new[key] = (_CHANGED if young else stamp), record
        self._changed = True
        return record

    def save(self) -> None:
        """Keep what was read, and forget what was not, if that changes anything."""
        if self._changed or self._new.keys() != self._old.keys():
            self._home.write(self._home.records, lambda stream: stream.write(self._packed()))

    def _unpacked(self, top: Sequence[int], cell: Mapping[str, int]) -> RunRecord:
        values = self._values
        found = dict(zip(_FIELDS, (None if i < 0 else values[i] for i in top), strict=True))
        return RunRecord(**(found | {"cell": {k: values[i] for k, i in cell.items()}}))

    def _packed(self) -> bytes:
        """Each distinct value once: 10,000 records share their data sets, models, training and environments."""
        texts = Codes()
        values: list[Any] = []
        seen: dict[int, int] = {}  # by identity: values that came out of the index are shared already

        def number(value: Any) -> int:
            found = seen.get(id(value))
            if found is None:
                found = texts[json.dumps(value)]
                if found == len(values):
                    values.append(value)
                seen[id(value)] = found
            return found

        records = {}
        for key, (stamp, record) in self._new.items():
            top = [-1 if name == "cell" else number(getattr(record, name)) for name in _FIELDS]
            records[key] = stamp, top, {k: number(v) for k, v in record.cell.items()}
        text = json.dumps({"version": VERSION, "fields": _FIELDS, "values": values, "records": records})
        return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def _read_index(path: Path) -> tuple[list[Any], dict[str, Any]]:
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            return [], {}
        index = json.loads(text)
        if index["version"] != VERSION or index["fields"] != _FIELDS:
            return [], {}
        return index["values"], index["records"]
    except _DAMAGE:
        return [], {}
