"""Beside the published numbers: what was measured, what the paper prints, and the difference.

Rows are matched by loss, model, data set, class and metric. A published number without a counterpart stays in the
list with the reason; so does one whose setting differs from the suite's, or whose unit the paper does not state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.grid import printed
from harness.published import LossName, PublishedTable, published_names, published_table
from harness.report.layouts import Numbers, arguments_of
from harness.report.tables import Measure
from harness.report.view import NAN, Block, Column, Entry, Head, Row, TableView

COLUMNS = (
    "paper", "model", "loss", "dataset", "class", "metric", "unit", "published", "published_sd", "our_model",
    "our_loss", "our_dataset", "profile", "our_unit", "measured", "measured_sd", "difference", "runs", "why",
)  # fmt: skip
MEANS = ("average", "mean")
_FRACTIONS = {"%": 100.0, "1": 1.0}


@dataclass(frozen=True)
class Pair:
    """A published number and what it is compared with.

    Attributes:
        row: Name of the loss in `names.yaml`; `loss` has the arguments of the row behind it.
        model: As in the paper; so are `dataset`, `name` (the class or task), `metric` and `unit`.
        published: As printed, with `sd` where the paper has one, and as many `decimals`.
        ours: Our model, loss and group; empty where nothing was measured for it.
        measure: Our measure; None where nothing was measured for it.
        measured: In the paper's unit, or in our own where the paper does not state one.
        runs: "4/5 runs" where runs are missing.
        why: Why there is no measured number, or no difference; else empty.
    """

    row: str
    model: str
    loss: str
    dataset: str
    name: str
    metric: str
    unit: str
    published: float
    sd: float
    decimals: int
    ours: tuple[str, str, str] = ("", "", "")
    measure: Measure | None = None
    measured: float = NAN
    measured_sd: float = NAN
    runs: str = ""
    why: str = ""

    @property
    def our_unit(self) -> str:
        """The unit of the measured number."""
        if self.measure is None:
            return ""
        return self.unit if self.unit in _FRACTIONS else self.measure.unit

    @property
    def difference(self) -> float:
        """Measured minus published; NaN where the units differ or are not stated."""
        return self.measured - self.published if self.our_unit == self.unit else NAN


def compare(numbers: Numbers, name: str, specs: Mapping[str, Any] | None = None) -> TableView:
    """The measured numbers beside a published table.

    Args:
        numbers: The means of the report.
        name: A table, as `report.published` names it.
        specs: The specification of each loss by its label (`Cell.loss`). With them a loss whose arguments differ from
            the paper's is not compared; without them only the arguments in its label are known.

    Raises:
        BenchError: There is no such table.
    """
    table, path = published_table(name)
    read = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    rows = [{str(k): str(v) for k, v in row.items()} for row in read]
    classes = {table.classes.get(c, c) for row in rows if (c := _class_of(row)) not in MEANS} | {*table.mean_of}
    context = _Context(numbers, table, specs, frozenset(classes))
    pairs = [p for row in rows for p in _pairs(context, row)]
    matched = [p for p in pairs if p.measure is not None]
    notes = _notes(context, pairs)
    frame = pd.DataFrame([_record(table, p) for p in pairs], columns=list(COLUMNS))
    if not matched:
        first = f"No number of this suite can be set beside {table.title}."
        return TableView("published", table.title, notes=(first, *notes), frame=frame)
    heads, columns = _heads(matched)
    blocks = _blocks(matched, heads)
    title = f"Beside {table.title}"
    return TableView("published", title, "Loss", tuple(h for h, _ in heads), columns, blocks, notes, frame)


@dataclass(frozen=True)
class _Context:
    """What every row is matched with; `classes` are all that the table has, in our names."""

    numbers: Numbers
    table: PublishedTable
    specs: Mapping[str, Any] | None
    classes: frozenset[str]


def _class_of(row: Mapping[str, str]) -> str:
    return row.get("class") or row["task"]


def _pairs(context: _Context, row: Mapping[str, str]) -> list[Pair]:
    """A published number with everything that was measured for it: one pair per split and profile."""
    numbers, table = context.numbers, context.table
    printed = row.get("value") or row["mean"]
    params = json.loads(row.get("params") or "{}")
    shown = ", ".join(f"{k} = {v:g}" for k, v in params.items())
    pair = Pair(
        row=row[table.rows],
        model=row["model"],
        loss=row[table.rows] + (f" ({shown})" if shown else ""),
        dataset=row.get("dataset", ""),
        name=_class_of(row),
        metric=row["metric"],
        unit=row["unit"],
        published=float(printed),
        sd=float(row["std"]) if row.get("std") else NAN,
        decimals=min(len(printed.partition(".")[2]), 4),
    )
    meant = table.data[pair.dataset]
    ours = [meant] if isinstance(meant, str) else meant
    cells = numbers.frames.cells
    groups = [g for g in numbers.frames.groups if set(ours) & set(cells.loc[cells["group"] == g, "dataset"])]
    if not groups:
        return [replace(pair, why=f"the suite has no data set {ours[0]}")]
    return [p for g in groups for p in _in_group(context, params, pair, g)]


def _in_group(context: _Context, params: Mapping[str, Any], pair: Pair, group: str) -> list[Pair]:
    numbers, table = context.numbers, context.table
    wanted = table.models[pair.model]
    models = [m for m in numbers.models(group) if (arguments_of(m) or ("", {}))[0] == wanted]
    if len(models) != 1:
        several = f"several models could be meant: {', '.join(models)}"
        return [replace(pair, why=several if models else f"the suite has no model {wanted}")]
    label, why = match_loss(numbers.losses(group, models[0]), table, pair.row, params, context.specs)
    if label is None:
        return [replace(pair, why=why)]
    found = [m for m in numbers.measured(group) if m.metric == table.metrics[pair.metric]]
    if not found:
        return [replace(pair, why=f"{pair.metric} was not measured")]
    name, why = _class(context, pair.name, numbers.classes(group))
    if why:
        return [replace(pair, why=why)]
    return [_measured(context, pair, (models[0], label, group), m, name) for m in found]


def _class(context: _Context, name: str, measured: Sequence[str]) -> tuple[str | None, str]:
    """Our class, None for the mean over classes; and why there is none."""
    if name in MEANS:
        if not context.classes or context.classes == set(measured):
            return None, ""
        return None, f"the mean is over other classes here: {', '.join(measured)}"
    ours = context.table.classes.get(name, name)
    if ours == "*":
        if len(measured) == 1:
            return measured[0], ""
        return None, f"{len(measured)} classes were measured, and the paper has one"
    return (ours, "") if ours in measured else (None, f"no class {ours} was measured")


def _measured(context: _Context, pair: Pair, ours: tuple[str, str, str], measure: Measure, name: str | None) -> Pair:
    numbers, (model, label, group) = context.numbers, ours
    scale = _FRACTIONS.get(pair.unit, 1.0)
    if context.table.over == "cases" and name is not None:
        entry = numbers.over_cases(group, model, label, measure, name)
        value, sd = entry.value * scale, entry.sd * scale
    else:
        mean = numbers.of(group, model, label, measure, name)
        value, sd = mean.mean * scale, NAN  # the paper has no runs, so there is nothing to set a spread beside
    runs = numbers.lacking(group, model, label)
    done = replace(pair, ours=ours, measure=measure, measured=value, measured_sd=sd, runs=runs)
    if value != value:
        return replace(done, measure=None, why="no run was measured")
    if done.our_unit != done.unit:
        stated = "not stated" if "unstated" in done.unit else done.unit
        return replace(done, why=f"the paper's unit is {stated}, ours is {done.our_unit}: no difference")
    return done


def match_loss(
    labels: Sequence[str],
    table: PublishedTable,
    row: str,
    params: Mapping[str, Any],
    specs: Mapping[str, Any] | None = None,
) -> tuple[str | None, str]:
    """The label of the loss that a row of a published table is about.

    Args:
        labels: The losses of the suite.
        table: The published table.
        row: The loss's name in it.
        params: Arguments in the row.
        specs: See `compare`.

    Returns:
        The label, or None and why there is none.
    """
    entry = table.losses[row]
    wanted = _wanted(entry, params)
    whole = [x for x in labels if x in entry.labels]
    own = [x for x in labels if entry.ours and (arguments_of(x) or ("", {}))[0] == entry.ours]
    against = {x: _conflict(entry, wanted, x, table, specs) for x in own}
    fitting = whole + [x for x in own if not against[x]]
    if len(fitting) == 1:
        return fitting[0], ""
    if fitting:
        return None, f"several losses could be meant: {', '.join(fitting)}"
    if own:
        return None, "another setting was measured: " + "; ".join(f"{x}: {against[x]}" for x in own)
    return None, f"the suite has no loss {entry.ours or entry.labels[0]}"


def _wanted(entry: LossName, params: Mapping[str, Any]) -> dict[str, Any]:
    wanted = dict(entry.args) | {entry.params[k]: v for k, v in params.items()}
    return wanted | {ours: round(1.0 - wanted[of], 12) for ours, of in entry.complement.items()}


def _conflict(
    entry: LossName, wanted: Mapping[str, Any], label: str, table: PublishedTable, specs: Mapping[str, Any] | None
) -> str:
    """In what a loss of the suite differs from the paper's, as far as that is known; else nothing."""
    given = (arguments_of(label) or ("", {}))[1]
    spec = specs.get(label) if specs is not None else None
    known: dict[str, Any] = dict(given)
    if spec is not None:
        terms = spec.get("sum", [{"loss": spec, "weight": 1.0}])
        own = next((t for t in terms if t["loss"].get("name") == entry.ours), None)
        if own is None:
            return "a sum of other losses"
        known = published_names().defaults.get(entry.ours, {}) | own["loss"]["args"]
        shape = sorted((str(t["loss"].get("name")), json.dumps(t["weight"])) for t in terms)
        paper = table.partner
        total = [(entry.ours, paper.varied), (paper.loss, paper.weight)] if paper else [(entry.ours, 1.0)]
        if shape != sorted((n, json.dumps(float(w))) for n, w in total):
            return f"the total is not {' + '.join(f'{w:g} {n}' for n, w in total)}"
    other = [f"{k} is {known[k]}, in the paper {v}" for k, v in wanted.items() if k in known and not _same(known[k], v)]
    return ", ".join(other)


def _same(one: Any, two: Any) -> bool:
    """Equal as the labels print them: six digits, a schedule by its name or in full."""
    schedules = {"linear": {"linear": [1, 0]}, "cosine": {"cosine": [1, 0]}}
    one, two = (schedules.get(v, v) if isinstance(v, str) else v for v in (one, two))
    try:
        return abs(float(one) - float(two)) <= 1e-6 * max(1.0, abs(float(two)))
    except (TypeError, ValueError):
        return bool(one == two) or str(one).lower() in (str(two).lower(), printed(two).lower())


def _record(table: PublishedTable, p: Pair) -> tuple[Any, ...]:
    return (
        table.title, p.model, p.loss, p.dataset, p.name, p.metric, p.unit, p.published, p.sd, *p.ours,
        p.measure.profile if p.measure else "", p.our_unit, p.measured, p.measured_sd, p.difference, p.runs, p.why,
    )  # fmt: skip


_Heads = list[tuple[Head, tuple[str, Measure, str]]]


def _heads(matched: Sequence[Pair]) -> tuple[_Heads, tuple[Column, ...]]:
    """Three columns for every metric and profile."""
    heads: _Heads = []
    columns: list[Column] = []
    found = list(dict.fromkeys((p.metric, p.measure, p.our_unit) for p in matched if p.measure is not None))
    among = [m for _, m, _ in found]
    for metric, measure, unit in found:
        own = [p for p in matched if (p.metric, p.measure, p.our_unit) == (metric, measure, unit)]
        decimals = max(p.decimals for p in own)
        spread = any(p.sd == p.sd for p in own)
        heads.append((Head(metric if unit == "1" else f"{metric} ({unit})", 3, measure.shown_profile(among)),
                      (metric, measure, unit)))  # fmt: skip
        columns += [Column("measured", decimals, spread=spread), Column("published", decimals, spread=spread)]
        columns.append(Column("difference", decimals, signed=True))
    return heads, tuple(columns)


def _blocks(matched: Sequence[Pair], heads: _Heads) -> tuple[Block, ...]:
    """One block per model, data set and class; one row per loss."""
    several = len({p.ours[2] for p in matched}) > 1

    def place(p: Pair) -> str:
        words = [p.model, *([p.ours[2]] if several else []), p.name.replace("_", " ")]
        return ", ".join(words)

    blocks = []
    for title in dict.fromkeys(place(p) for p in matched):
        own = [p for p in matched if place(p) == title]
        rows = []
        for loss in dict.fromkeys(p.loss for p in own):
            line = {(p.metric, p.measure, p.our_unit): p for p in own if p.loss == loss}
            entries = [e for _, key in heads for e in _entries(line.get(key))]
            first = next(iter(line.values()))
            remark = ", ".join(x for x in (first.ours[1], first.runs) if x)
            rows.append(Row(loss, tuple(entries), remark))
        blocks.append(Block(title, tuple(rows)))
    return tuple(blocks)


def _entries(pair: Pair | None) -> tuple[Entry, Entry, Entry]:
    if pair is None:
        return Entry(text=""), Entry(text=""), Entry(text="")
    return Entry(pair.measured, pair.measured_sd), Entry(pair.published, pair.sd), Entry(pair.difference)


def _notes(context: _Context, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """What is not compared and why, in what the compared losses differ, and what is known of the paper's code."""
    numbers, table = context.numbers, context.table
    matched = [p for p in pairs if p.measure is not None]
    groups = list(dict.fromkeys(p.ours[2] for p in matched))
    notes = ["The difference is measured minus published."] if matched else []
    for group in groups:
        cells, cases = (f[f["group"] == group] for f in (numbers.frames.cells, numbers.frames.cases))
        notes.append(f"{group}: split {cells['split'].iloc[0]}, {cases['patient'].nunique()} test patients.")
    if matched:
        models = ", ".join(dict.fromkeys(f"{p.model} with {p.ours[0]}" for p in matched))
        notes.append(f"Models are matched by name alone: {models}.")
        if context.specs is None:
            notes.append("Losses are matched by name and shown arguments; what is not shown is not checked.")
    lacking = [p for p in pairs if p.measure is None]
    for why in dict.fromkeys(p.why for p in lacking):
        own = [p for p in lacking if p.why == why]
        notes.append(f"Not compared, {why} ({len(own)} numbers): {_listed(own)}.")
    compared = {p.ours[1] for p in matched}
    rest = [x for g in groups for x in numbers.losses(g) if x not in compared]
    if rest:
        notes.append(f"In the suite, and not in the published table: {', '.join(dict.fromkeys(rest))}.")
    notes += [f"{row}: {why}" for row in dict.fromkeys(p.row for p in matched) if (why := table.losses[row].why)]
    return (*notes, *table.notes)


def _listed(pairs: Sequence[Pair]) -> str:
    by_model = {m: dict.fromkeys(p.loss for p in pairs if p.model == m) for m in dict.fromkeys(p.model for p in pairs)}
    return "; ".join(f"{model}: {', '.join(losses)}" for model, losses in by_model.items())
