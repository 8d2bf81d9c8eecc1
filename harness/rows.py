"""From the folders of cells to tables: one row per cell, per case and per epoch. No torch."""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import BenchError
from harness.metrics.policy import policy_value
from harness.metrics.table import Status, metric_of
from harness.plan import Entry
from harness.records import CASE_COLUMNS
from harness.store import Codes, Columns, Home, Sheet, Source, read_sheets, refresh, write_sheets

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("dataset", "split", "fold", "model", "loss", "seed")  # the same in all rows of a cell
KIND = ("patient", "case", "class", "metric", "profile", "unit")  # what a row is of; cells of one fold share them
_METRIC, _PROFILE = KIND.index("metric"), KIND.index("profile")
_HEADER = ",".join(CASE_COLUMNS)
_LABEL_FIELDS = re.compile(r'(?:(?:"(?:[^"]|"")*"|[^",\r\n]*),)' * len(LABELS))
_CURVE = {"loss": "loss_value"}  # a column `loss` would be taken for the name of the loss


class Tables(NamedTuple):
    """What a report is made of.

    Attributes:
        cells: One row per planned cell.
        cases: One row per case, class and metric: `records.CASE_COLUMNS` and `train_id`. Text is categorical, with
            sorted categories that all occur.
        curves: One row per training and epoch.
        notes: A sentence for each damaged file, whose rows are left out.
    """

    cells: pd.DataFrame
    cases: pd.DataFrame
    curves: pd.DataFrame
    notes: list[str]


def frames(entries: Sequence[Entry], home: Home | None = None) -> Tables:
    """Cells, case rows and curves as tables; labels are those of the suite, whoever ran the cell first.

    Args:
        entries: The plan.
        home: Where rows are kept between reports; without it all are read from the cells' folders.
    """
    import pandas as pd

    old = read_sheets(home.rows) if home else {}
    new: dict[str, Sheet] = {}
    owners: dict[str, list[int]] = {}
    notes: list[str] = []
    for name, coded, parse in (("cases", ("kind", "status"), parse_cases), ("curves", (), parse_curve)):
        files = _sources(entries, name, home)
        new[name], owners[name], found = refresh(old.get(name, Sheet()), files, coded, parse)
        notes += found
    if home and any(name not in old or _differs(old[name], sheet) for name, sheet in new.items()):
        write_sheets(home, new)
    about = [e.cell.labels for e in entries]
    cells = pd.DataFrame([labels | _cell_row(e) for labels, e in zip(about, entries, strict=True)])
    ids = [labels | {"train_id": e.cell.train_id} for labels, e in zip(about, entries, strict=True)]
    cases, curves = _cases(new["cases"], owners["cases"], ids), _curves(new["curves"], owners["curves"], ids)
    return Tables(cells, cases, curves, notes)


def _sources(entries: Sequence[Entry], name: str, home: Home | None) -> list[Source]:
    found = []
    for i, entry in enumerate(entries):
        if entry.folder is None or (name == "cases" and entry.state not in ("ok", "stale")):
            continue
        train, evaluation = os.path.split(entry.folder)
        place, train_id = os.path.split(train)
        file = f"{train_id}/{evaluation}/cases.csv" if name == "cases" else f"{train_id}/curve.csv"
        digest = entry.record.files.get(os.path.basename(file), "") if entry.record else ""
        found.append(Source(f"{place}/{file}", home.key(place, file) if home else "", i, digest))
    return found


def _differs(old: Sheet, new: Sheet) -> bool:
    return old.keys != new.keys or old.stamps != new.stamps


def parse_cases(text: str, codes: Mapping[str, Codes]) -> Columns:
    """The numbers of a cases.csv; what a row is of becomes one code, that of its text from `patient` to `unit`.

    Raises:
        ValueError: It is not a whole table of this version.
    """
    header, _, body = text.partition("\n")
    if header != _HEADER:
        raise ValueError("its columns are not those of this version")
    if body and not body.endswith("\n"):
        raise ValueError("its last line is cut off")
    first = _LABEL_FIELDS.match(body)
    start = first.group() if first else ""
    whole = f"\n{body}"
    if start and whole.count(f"\n{start}") == body.count("\n"):  # one line a row, and all of them of one cell
        rows = [line.rsplit(",", 3) for line in whole.replace(f"\n{start}", "\n")[1:-1].split("\n")]
    else:
        rows = [_split(row) for row in csv.reader(io.StringIO(body), strict=True)]
    if set(map(len, rows)) - {4}:
        raise ValueError("a line has too few fields")
    return _numbers(rows, codes)


def _split(row: Sequence[str]) -> list[str]:
    if len(row) != len(CASE_COLUMNS):
        raise ValueError(f"a line has {len(row)} fields, {len(CASE_COLUMNS)} are expected")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row[len(LABELS) : -3])
    return [text.getvalue()[:-1], *row[-3:]]


def _numbers(rows: Sequence[Sequence[str]], codes: Mapping[str, Codes]) -> Columns:
    known = len(codes["kind"])
    n = len(rows)
    kinds, values, worsts, statuses = zip(*rows, strict=True) if rows else ((), (), (), ())
    out: Columns = {
        "kind": np.fromiter(map(codes["kind"].__getitem__, kinds), np.int32, n),
        "status": np.fromiter(map(codes["status"].__getitem__, statuses), np.int32, n),
        "value": _floats(values),
        "worst": _floats(worsts),
    }
    if strange := set(statuses) - set(get_args(Status)):
        raise ValueError(f"its status {min(strange)!r} is unknown")
    try:
        for kind in itertools.islice(codes["kind"], known, None):
            metric_of(_fields(kind)[_METRIC])
        for kind, worst, status in {(kinds[i], worsts[i], statuses[i]) for i in np.flatnonzero(np.isnan(out["value"]))}:
            fields = _fields(kind)
            policy_value(fields[_METRIC], fields[_PROFILE], None, float(worst) if worst else None, status)
    except BenchError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    return out


def _fields(kind: str) -> list[str]:
    found = next(csv.reader([kind], strict=True), [])
    if len(found) != len(KIND):
        raise ValueError(f"{kind!r} are not the fields {', '.join(KIND)}")
    return found


def _floats(texts: Sequence[str]) -> NDArray[np.float64]:
    """Numbers, NaN where a field is empty; what is not finite is never written."""
    found = np.array([float(text) if text else math.nan for text in texts], np.float64)
    if np.isfinite(found).sum() != len(texts) - texts.count(""):
        raise ValueError("a number is not finite")
    return found


def parse_curve(text: str, codes: Mapping[str, Codes]) -> Columns:
    """The columns of a curve.csv; `loss` is called `loss_value`.

    Raises:
        ValueError: It is not a whole table of numbers.
    """
    header, *rows = csv.reader(io.StringIO(text), strict=True) or [[]]
    if not {"epoch", "loss"} <= set(header) or not text.endswith("\n") or any(len(r) != len(header) for r in rows):
        raise ValueError("it is not a whole table with the columns epoch and loss")
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return {_CURVE.get(name, name): _floats(column) for name, column in zip(header, columns, strict=True)}


def _cases(sheet: Sheet, owners: Sequence[int], ids: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    if not len(sheet.columns.get("kind", ())):
        return pd.DataFrame()
    kinds = [_fields(kind) for kind in sheet.texts["kind"]]
    found = _label_columns(sheet.counts, owners, ids)
    for i, name in enumerate(KIND):
        found[name] = _categorical([fields[i] for fields in kinds], sheet.columns["kind"])
    found |= {"value": sheet.columns["value"], "worst": sheet.columns["worst"]}
    found["status"] = _categorical(sheet.texts["status"], sheet.columns["status"])
    return pd.DataFrame({name: found[name] for name in (*CASE_COLUMNS, "train_id")}, copy=False)


def _curves(sheet: Sheet, owners: Sequence[int], ids: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    if not len(sheet.columns.get("epoch", ())):
        return pd.DataFrame()
    return pd.DataFrame(sheet.columns | _label_columns(sheet.counts, owners, ids))


def _label_columns(
    counts: NDArray[np.int64], owners: Sequence[int], ids: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The labels of each row's cell, from the rows of each file."""
    where = np.repeat(np.asarray(owners, np.int64), counts)
    out: dict[str, Any] = {}
    for name in (*LABELS, "train_id"):
        values = [cell[name] for cell in ids]
        if name in ("fold", "seed"):
            out[name] = np.array([math.nan if v is None else v for v in values], np.float64)[where]
        else:
            out[name] = _categorical(values, where)
    return out


def _categorical(texts: Sequence[str], codes: NDArray[Any]) -> pd.Categorical:
    """`texts[codes]`, with the categories that occur, sorted: the same whatever the order of the texts."""
    import pandas as pd

    used = np.bincount(codes, minlength=len(texts)) > 0
    names = sorted({text for text, there in zip(texts, used, strict=True) if there})
    place = {text: i for i, text in enumerate(names)}
    small = np.min_scalar_type(-max(1, len(names)))
    table = np.array([place.get(text, 0) for text in texts], small)
    return pd.Categorical.from_codes(table[codes], pd.Index(names, dtype=object))


def _cell_row(entry: Entry) -> dict[str, Any]:
    record = entry.record
    cost = record.cost if record else {}
    environment = record.environment if record else {}
    optimizer = next(iter(entry.cell.train["optimizer"].values()))
    return {
        "status": entry.state,
        "message": (record.message if record else "") or entry.problem or "",
        "train_id": entry.cell.train_id,
        "eval_id": entry.cell.eval_id,
        "init": record.fingerprints.get("init", "") if record else "",
        "batches": record.fingerprints.get("batches", "") if record else "",
        "weights": record.weights if record else "",
        **{
            k: cost.get(k) for k in ("train_s", "eval_s", "step_ms", "targets_ms", "peak_rss_mb", "parameters", "steps")
        },
        "device": environment.get("device", ""),
        "torch": environment.get("torch", ""),
        "lr": (record.tuned if record else {}).get("lr", optimizer["lr"]),
    }
