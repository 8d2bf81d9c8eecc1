"""Whether the files of a cell are what they say: a record of this version, ids that follow from it, whole tables.

Nothing that a record names is imported, resolved or opened: a configuration is hashed and compared, no more.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from harness import __version__
from harness.cell import Cell, SourceInfo
from harness.errors import BenchError
from harness.metrics.table import canonical, metric_of
from harness.records import SCHEMA, RunRecord
from harness.rows import LABELS, parse_cases, parse_curve
from harness.sharing.layout import ID, check_text, read_json
from harness.store import Codes

SHARED = ("ok", "diverged")  # results; what failed on one machine says nothing on another
_KEY = ("class", "metric", "profile")  # what the rows of every case have in common
_NONE = SourceInfo("", 0, "")

Text = Annotated[str, Field(max_length=10_000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Described(_Strict):
    """`Cell.described`; keys of a later version are left to the ids, which they are part of or do not matter to."""

    suite: Text
    dataset: Text
    split: Text
    fold: int | None
    model: dict[str, Any]
    loss: dict[str, Any]
    seed: int
    data: dict[str, Any]
    train: dict[str, Any]
    metrics: list[Text]
    profiles: list[Text]
    engine: Text
    quick: bool
    scored_by: dict[str, Any] = Field(default_factory=dict)


class _Check(_Strict):
    failed: dict[Text, Text]
    declared: dict[Text, Text]


class _Tuned(_Strict):
    """What the trials of a tuned cell chose."""

    model_config = ConfigDict(strict=True, extra="forbid")

    metric: Text
    trials: int
    epochs: int
    failed: int
    trial: int
    lr: FiniteFloat
    args: dict[Text, Any]
    value: FiniteFloat | None
    default: FiniteFloat | None
    seconds: FiniteFloat
    optuna: Text


class _Record(_Strict):
    """The JSON of `RunRecord`, with the form of every field."""

    model_config = ConfigDict(strict=True, extra="forbid")

    train_id: Text
    eval_id: Text
    status: Text
    message: Text
    cell: _Described
    fingerprints: dict[Text, Text]
    weights: Digest
    cost: dict[Text, FiniteFloat]
    environment: dict[Text, Text | int | FiniteFloat | bool]
    sources: dict[Text, Text]
    checks: dict[Text, _Check]
    files: dict[Text, Digest] = Field(default_factory=dict)
    tuned: _Tuned | None = None
    form: int = Field(alias="schema")


@dataclass(frozen=True)
class Checked:
    """An evaluation that has been checked, with the training it rests on.

    Attributes:
        record: Its record.
        files: Its files and those of its training, as names in an archive.
    """

    record: RunRecord
    files: tuple[str, ...]

    @property
    def title(self) -> str:
        """A short name for messages."""
        cell = self.record.cell
        fold = "" if cell["fold"] is None else f" fold {cell['fold']}"
        return f"{cell['loss']['label']} / {cell['model']['label']} / {cell['dataset']}{fold} / seed {cell['seed']}"


def check_training(
    where: str, train_id: str, evaluations: Sequence[str], read: Callable[[str], bytes | None]
) -> list[Checked]:
    """Check a training and its evaluations.

    Args:
        where: The archive, for sentences.
        train_id: Name of the training's folder.
        evaluations: Names of the folders in it.
        read: Content of a file by its name in the archive; None where it has none.

    Raises:
        BenchError: Something is lacking, damaged, or does not follow from the configuration that the record describes.
    """
    files = [f"{train_id}/train.json", f"{train_id}/curve.csv"]
    trained = _record(f"{where}: {files[0]}", read(files[0]), train_id, "")
    curve = _text(f"{where}: {files[1]}", read(files[1]))
    try:
        parse_curve(curve, {})
    except (ValueError, LookupError, csv.Error) as error:
        raise BenchError(f"{where}: {files[1]}: {error}.") from None
    if not evaluations:
        raise BenchError(f"{where}: {train_id} is a training without an evaluation; there is nothing to compare.")
    found = []
    for eval_id in evaluations:
        name = f"{train_id}/{eval_id}"
        here = f"{where}: {name}/record.json"
        record = _record(here, read(f"{name}/record.json"), train_id, eval_id)
        if (record.weights, record.status) != (trained.weights, trained.status):
            raise BenchError(f"{here}: its status or weights are not those of {files[0]}; they are of two runs.")
        cases = read(f"{name}/cases.csv")
        for table, data in (("curve.csv", read(files[1])), ("cases.csv", cases)):
            known = record.files.get(table)
            if data is not None and known is not None and hashlib.sha256(data).hexdigest() != known:
                raise BenchError(f"{here}: {table} is not the table that it was written with; they are of two runs.")
        if record.status == "ok":
            _check_cases(f"{where}: {name}/cases.csv", _text(f"{where}: {name}/cases.csv", cases), record)
        elif cases is not None:
            raise BenchError(f"{where}: {name}/cases.csv: the training diverged, so nothing can have been measured.")
        own = [f"{name}/record.json", *([f"{name}/cases.csv"] if cases is not None else [])]
        found.append(Checked(record, (*files, *own)))
    return found


def _text(where: str, data: bytes | None) -> str:
    if data is None:
        raise BenchError(f"{where}: is not there; an archive holds whole cells.")
    try:
        text = data.decode("utf-8")
        check_text(text)
    except ValueError as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise BenchError(f"{where}: {reason}.") from None
    return text


def _record(where: str, data: bytes | None, train_id: str, eval_id: str) -> RunRecord:
    """A record that stands where its ids say, and whose ids follow from its configuration."""
    if data is None:
        raise BenchError(f"{where}: is not there; an archive holds whole cells.")
    raw = read_json(where, data)
    try:
        form = _Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"]) or "the whole"
        raise BenchError(f"{where}: no record of this version: {ascii(place)[1:-1]}: {first['msg']}.") from None
    if form.form != SCHEMA:
        raise BenchError(f"{where}: of schema {form.form}, this bench reads {SCHEMA}; take the other bench.")
    if form.status not in SHARED:
        raise BenchError(f"{where}: its status is {ascii(form.status)[:40]}; only {' and '.join(SHARED)} are results.")
    if (form.train_id, form.eval_id) != (train_id, eval_id):
        raise BenchError(f"{where}: its ids are not those of the folder it lies in.")
    record = RunRecord(**raw)
    _check_ids(where, record)
    return record


def cell_of(described: Mapping[str, Any]) -> Cell:
    """The cell that a record describes, as far as its ids and labels go: it has no sources and cannot be run.

    Raises:
        KeyError: A key is lacking.
    """
    return Cell(
        suite=described["suite"],
        dataset=described["dataset"],
        manifest_path="",
        data=described["data"],
        model={k: v for k, v in described["model"].items() if k != "label"},
        model_label=described["model"]["label"],
        model_source=_NONE,
        loss={k: v for k, v in described["loss"].items() if k != "label"},
        loss_label=described["loss"]["label"],
        loss_digest="",
        seed=described["seed"],
        train=described["train"],
        metrics=tuple(described["metrics"]),
        quick=described["quick"],
        timeout=None,
        skip=None,
        profiles=tuple(described["profiles"]),
        engine=described["engine"],
        scored_by={name: {"loss": loss} for name, loss in described.get("scored_by", {}).items()},
    )


def _check_ids(where: str, record: RunRecord) -> None:
    described = record.cell
    try:
        cell = cell_of(described)
        expected = cell.train_id, cell.eval_id if record.eval_id else ""
        told = (described["split"], described["fold"]) == (cell.data["split"], cell.data["fold"])
        parts = [cell.data[name] for name in ("train", "val", "test")]
        told &= all(isinstance(part, list) for part in parts)
        labels = [cell.model_label, cell.loss_label, *itertools.chain(*parts)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BenchError(
            f"{where}: its configuration is not one of a cell ({type(error).__name__}: {ascii(str(error))[:100]})."
        ) from None
    if not told or not all(isinstance(label, str) for label in labels):
        raise BenchError(f"{where}: its split, fold, cases or labels do not have the form that bench writes.")
    if expected != (record.train_id, record.eval_id):
        by = ascii(str(record.environment.get("bench", "unknown")))[1:-1][:40]
        raise BenchError(
            f"{where}: its ids do not follow from the configuration that it describes: it was changed, or the version "
            f"of bench that wrote it ({by}) makes ids otherwise than this one ({__version__})."
        )


def _check_cases(where: str, text: str, record: RunRecord) -> None:
    """Every test case of the configuration with the same rows, labelled as the configuration is."""
    cell = cell_of(record.cell)
    try:
        parse_cases(text, {"kind": Codes(), "status": Codes()})
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        expected = {name: "" if value is None else str(value) for name, value in cell.labels.items()}
        seen: dict[str, set[tuple[str, ...]]] = {}
        for number, row in enumerate(rows, 2):
            if any(row[name] != expected[name] for name in LABELS):
                raise ValueError(f"line {number} is of another cell than its record")
            key, own = tuple(row[name] for name in _KEY), seen.setdefault(row["case"], set())
            if key in own:
                raise ValueError(f"line {number} stands in it twice")
            own.add(key)
        if set(seen) != set(cell.data["test"]):
            raise ValueError("its cases are not the test cases of the record")
        if any(keys != next(iter(seen.values())) for keys in seen.values()):
            raise ValueError("its cases do not have the same classes and metrics")
        measured = {metric for keys in seen.values() for _, metric, _ in keys}
        if lacking := {canonical(m) for m in cell.metrics if metric_of(m)[0].scope != "dataset"} - measured:
            raise ValueError(f"it has no {min(lacking)}")
    except (ValueError, LookupError, TypeError, csv.Error, BenchError) as error:
        raise BenchError(f"{where}: {str(error).removesuffix('.')}.") from None


def trainings(names: Sequence[str]) -> dict[str, list[str]]:
    """The trainings that files belong to, each with its evaluations."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        parts = name.split("/")
        if ID.fullmatch(parts[0]):
            own = found.setdefault(parts[0], [])
            if len(parts) == 3 and parts[1] not in own:
                own.append(parts[1])
    return found
