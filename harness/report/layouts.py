"""The tables of the surveys as layouts: functions from the report's frames to `TableView`s.

Published layouts: Azad et al., 2023, Tables 3 (`survey_table`), 4 (`loss_by_model`) and 5 (`sweeps`); Jadon, 2020,
Table III (`jadon`); Celaya et al., 2023, Tables 1 and 2 (`celaya`). A layout whose metrics were not measured is one
sentence. Every number is one of `harness.report.tables`: a layout only chooses, arranges and rounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import pandas as pd

from harness.errors import BenchError
from harness.metrics.table import METRICS
from harness.report.frames import Frames
from harness.report.tables import (
    Measure,
    Spread,
    all_class_means,
    apply_policy,
    measures,
    over_classes,
    spread_of,
    survey_columns,
    survey_metrics,
    triples,
)
from harness.report.view import (
    NAN,
    Block,
    Column,
    Entry,
    Head,
    Row,
    Source,
    TableView,
    frame_of,
    heads_of,
    marked,
)  # fmt: skip

MARKS = (
    "Per block and column the best is bold and blue, the second best underlined and red. The marks compare printed "
    "means and claim no difference; a loss that lacks runs is never marked."
)
APART = (
    "The statistics average the classes of a patient first and leave misses out of distances: where a class is absent "
    "or missed, their means and differences are others."
)
DEFAULT = "default"
_SEEDS = "± is the standard deviation over seeds."
_MEANS = "Mean over patients, then over classes, then over runs."
_POOLED = "Per class from the counts of all cases of a run together, then the mean over classes and runs."
_OVERLAPS = ("miou", "iou", "dice")
_PLACE = ("group", "model", "loss")
_MEASURE = Measure._fields


class Numbers:
    """The means of a report, looked up by their names."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self._planned = {key: (len(part), int((part["status"] == "ok").sum())) for key, part in triples(frames)}
        per_class = all_class_means(frames)
        self._runs: dict[tuple[object, ...], list[tuple[int, int, float]]] = {}
        for means, names in ((per_class, per_class["class"]), (over_classes(per_class), repeat(None))):
            columns = [means[c] for c in (*_PLACE, *_MEASURE)]
            runs = zip(means["fold"], means["seed"], means["score"], strict=True)
            for name, run, *key in zip(names, runs, *columns, strict=False):
                self._runs.setdefault((*key, name), []).append(run)
        self._measured: dict[str, tuple[list[Measure], list[str]]] = {}
        self._cases: dict[tuple[object, ...], tuple[float, float]] | None = None

    def of(self, group: str, model: str, loss: str, measure: Measure, name: str | None = None) -> Spread:
        """Mean over runs of one class, or of the mean over classes."""
        return spread_of(self._runs.get((group, model, loss, *measure, name), ()))

    def entry(
        self, group: str, model: str, loss: str, m: Measure, value: float, sd: float, name: str = "average",
        unit: str = "", over: str = "seeds",
    ) -> Entry:  # fmt: skip
        """An entry with its source; one that was not planned has none, and no number."""
        if (group, model, loss) not in self._planned:
            return Entry()
        runs = self.lacking(group, model, loss)
        source = Source(group, model, loss, name, m, unit or m.shown_unit, over, runs)
        return Entry(value, sd, source=source)

    def mean(self, group: str, model: str, loss: str, m: Measure, name: str | None = None, unit: str = "") -> Entry:
        """Mean over runs with its spread over seeds, in the shown unit, or as it was measured where `unit` says 1."""
        s, scale = self.of(group, model, loss, m, name), 1.0 if unit == "1" else m.scale
        return self.entry(group, model, loss, m, s.mean * scale, s.sd * scale, name or "average", unit)

    def over_cases(self, group: str, model: str, loss: str, m: Measure, name: str) -> Entry:
        """Mean and sample standard deviation over cases; a case that several runs tested is averaged over them."""
        if self._cases is None:
            keys = [*_PLACE, *_MEASURE, "class"]
            cases = (
                apply_policy(self.frames.cases)
                .groupby([*keys, "patient", "case"], sort=False, observed=True)["score"]
                .mean()
            )
            over = cases.dropna().groupby(level=keys, sort=False, observed=True)
            rows = pd.DataFrame({"mean": over.mean(), "sd": over.std(ddof=1)}).itertuples(name=None)
            self._cases = {tuple(key): (float(mean), float(sd)) for key, mean, sd in rows}
        mean, sd = self._cases.get((group, model, loss, *m, name), (NAN, NAN))
        return self.entry(group, model, loss, m, mean, sd, name, m.unit, "cases")

    def planned(self, group: str, model: str, loss: str) -> bool:
        """Whether any run was planned."""
        return (group, model, loss) in self._planned

    def lacking(self, group: str, model: str, loss: str) -> str:
        """`4/5 runs` where runs are missing, else nothing."""
        runs, ok = self._planned.get((group, model, loss), (0, 0))
        return f"{ok}/{runs} runs" if ok < runs else ""

    def measured(self, group: str) -> list[Measure]:
        """The measures of one data set."""
        if group not in self._measured:
            own = self.frames.of_group(group)
            self._measured[group] = measures(own, self.frames.pooled), [str(c) for c in own["class"].unique()]
        return self._measured[group][0]

    def classes(self, group: str) -> list[str]:
        """The classes of one data set."""
        self.measured(group)
        return self._measured[group][1]

    def models(self, group: str) -> list[str]:
        """The planned models of one data set."""
        there = {m for g, m, _ in self._planned if g == group}
        return [m for m in self.frames.models if m in there]

    def losses(self, group: str, model: str | None = None) -> list[str]:
        """The planned losses of one data set and model."""
        there = {x for g, m, x in self._planned if g == group and model in (None, m)}
        return [x for x in self.frames.losses if x in there]


Layout = Callable[[Numbers], list[TableView]]


def survey(numbers: Numbers) -> list[TableView]:
    """Azad et al., 2023, Table 3, per data set: DSC by class, mean DSC and mean HD95, in blocks by model."""
    views = []
    for group in numbers.frames.groups:
        places = survey_columns(numbers.measured(group), numbers.classes(group))
        if not places:
            views.append(_absent("survey_table", group, ("dice", "hd95")))
            continue
        found = [p.measure for p in places]
        names = ["mean" if p.name == "average" else p.name.replace("_", " ") for p in places]
        columns = [Column(n, m.decimals, m.lower_is_better) for n, m in zip(names, found, strict=True)]
        blocks = []
        for model in numbers.models(group):
            rows = []
            for loss in numbers.losses(group, model):
                classes = [None if p.name == "average" else p.name for p in places]
                line = [numbers.mean(group, model, loss, m, c) for m, c in zip(found, classes, strict=True)]
                rows.append(Row(loss, tuple(line), numbers.lacking(group, model, loss)))
            blocks.append(Block(model, tuple(rows)))
        notes = (MARKS, "A class's number is the mean over patients, then over runs; the mean is over classes.", APART)
        views.append(_view("survey_table", group, "Loss", heads_of(found, found), columns, blocks, notes))
    return views


def loss_by_model(numbers: Numbers) -> list[TableView]:
    """Azad et al., 2023, Table 4, per data set: one row a loss, one column a model, one metric (mIoU, IoU or DSC)."""
    views = []
    for group in numbers.frames.groups:
        found = numbers.measured(group)
        metric = next((n for n in _OVERLAPS if any(m.metric == n for m in found)), None)
        if metric is None:
            views.append(_absent("loss_by_model", group, _OVERLAPS))
            continue
        shown = [m for m in found if m.metric == metric]
        models = numbers.models(group)
        columns = [Column(model, m.decimals, m.lower_is_better, spread=True) for m in shown for model in models]
        rows = []
        for loss in numbers.losses(group):
            line = [numbers.mean(group, model, loss, m) for m in shown for model in models]
            rows.append(Row(loss, tuple(replace(e, remark=e.source.runs) if e.source else e for e in line)))
        heads = tuple(Head(m.heading, len(models), m.shown_profile(shown), m.lower_is_better) for m in shown)
        notes = (MARKS, _POOLED if METRICS[metric].scope == "dataset" else _MEANS, *_seeds(rows))
        views.append(_view("loss_by_model", group, "Loss", heads, columns, [Block("", tuple(rows))], notes))
    return views


def jadon(numbers: Numbers) -> list[TableView]:
    """Jadon, 2020, Table III, per data set: Dice, sensitivity and specificity as fractions with three decimals."""
    wanted = ("dice", "sensitivity", "specificity")
    views = []
    for group in numbers.frames.groups:
        shown = _chosen(numbers.measured(group), wanted)
        if not shown:
            views.append(_absent("jadon", group, wanted))
            continue
        columns = [Column("mean", 3, m.lower_is_better, spread=True) for m in shown]
        blocks = []
        for model in numbers.models(group):
            rows = []
            for loss in numbers.losses(group, model):
                line = tuple(numbers.mean(group, model, loss, m, unit="1") for m in shown)
                rows.append(Row(loss, line, numbers.lacking(group, model, loss)))
            blocks.append(Block(model, tuple(rows)))
        lines = [row for block in blocks for row in block.rows]
        notes = (MARKS, _MEANS, *_seeds(lines), *_not_measured(wanted, shown))
        heads = heads_of(shown, shown, [m.name for m in shown])
        views.append(_view("jadon", group, "Loss", heads, columns, blocks, notes))
    return views


def celaya(numbers: Numbers) -> list[TableView]:
    """Celaya et al., 2023, Tables 1 and 2: mean and standard deviation over cases, in blocks by model and task.

    A task is a class or region of a data set; all of them stand in one table, as in the paper.
    """
    wanted = ("dice", "hd95", "asd")
    groups = numbers.frames.groups
    title = ", ".join(groups)
    shown = _chosen(list(dict.fromkeys(m for g in groups for m in numbers.measured(g))), wanted)
    if not shown:
        return [_absent("celaya", title, wanted)]
    columns = [Column("mean ± SD", 4 if m.unit == "1" else 3, m.lower_is_better, spread=True) for m in shown]
    blocks = []
    for model in numbers.frames.models:
        for group in groups:
            for name in numbers.classes(group):
                rows = []
                for loss in numbers.losses(group, model):
                    line = tuple(numbers.over_cases(group, model, loss, m, name) for m in shown)
                    rows.append(Row(loss, line, numbers.lacking(group, model, loss)))
                if rows:
                    blocks.append(Block(f"{model}: {group}, {name.replace('_', ' ')}", tuple(rows)))
    heads = heads_of(shown, shown, [m.name if m.unit == "1" else m.heading for m in shown])
    notes = (
        MARKS,
        "Mean ± sample standard deviation over cases; a case that several runs tested is averaged over them first.",
        *_not_measured(wanted, shown),
    )
    return [_view("celaya", title, "Loss", heads, columns, blocks, notes)]


def sweeps(numbers: Numbers) -> list[TableView]:
    """Azad et al., 2023, Table 5, per data set: hyperparameter sweeps side by side, one group of columns a sweep."""
    views = []
    for group in numbers.frames.groups:
        families = sweep_families(numbers.losses(group))
        shown = survey_metrics(numbers.measured(group))
        if not families:
            text = f"{group}: no loss of this suite was swept over an argument, so there is no table of sweeps."
            views.append(TableView("sweeps", group, notes=(text,)))
        elif not shown:
            views.append(_absent("sweeps", group, ("dice", "hd95")))
        else:
            views.append(_sweep_view(numbers, group, families, shown))
    return views


@dataclass(frozen=True)
class Family:
    """The settings of one loss in which the same arguments vary: labels with the values of these arguments."""

    name: str
    arguments: tuple[str, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]


def arguments_of(label: str) -> tuple[str, dict[str, str]] | None:
    """`focal(gamma=2)` as name and arguments, `focal` with none; None for sums and other names."""
    match = re.fullmatch(r"([^()+·]+)(?:\((.+)\))?", label, re.DOTALL)
    if match is None:
        return None
    parts = re.split(r", (?=[A-Za-z_]\w*=)", match[2]) if match[2] else []
    pairs = [p.partition("=") for p in parts]
    if not all(sign and re.fullmatch(r"[A-Za-z_]\w*", key) for key, sign, _ in pairs):
        return None
    return match[1], {key: value for key, _, value in pairs}


def sweep_families(losses: Sequence[str]) -> list[Family]:
    """The sweeps among the labels of losses, in their order; a loss without shown arguments stands in as `default`."""
    read = [(label, found) for label in losses if (found := arguments_of(label)) is not None]
    keys = dict.fromkeys((name, tuple(args)) for _, (name, args) in read if args)
    out = []
    for name, arguments in keys:
        settings = tuple(
            (label, tuple(args[a] for a in arguments) if args else (DEFAULT,) * len(arguments))
            for label, (own, args) in read
            if own == name and tuple(args) in ((), arguments)
        )
        if len(settings) > 1:
            out.append(Family(name, arguments, settings))
    return out


def _sweep_view(numbers: Numbers, group: str, families: Sequence[Family], shown: Sequence[Measure]) -> TableView:
    columns: list[Column] = []
    heads = []
    for family in families:
        columns += [Column(a, words=True) for a in family.arguments]
        for m in shown:
            profile = m.shown_profile(shown)
            columns.append(Column(m.heading + (f", {profile}" if profile else ""), m.decimals, m.lower_is_better))
        heads.append(Head(family.name, len(family.arguments) + len(shown)))
    blocks = []
    for model in numbers.models(group):
        rows = []
        for i in range(max(len(f.settings) for f in families)):
            rows.append(Row("", tuple(e for f in families for e in _setting(numbers, group, model, f, i, shown))))
        blocks.append(Block(model, tuple(rows)))
    left = any(DEFAULT in values for f in families for _, values in f.settings)
    notes = (MARKS, *([f"{DEFAULT}: the suite leaves the argument to the loss."] if left else []))
    return _view("sweeps", group, "", heads, columns, blocks, notes)


def _setting(
    numbers: Numbers, group: str, model: str, family: Family, i: int, shown: Sequence[Measure]
) -> Iterator[Entry]:
    """The places of the i-th setting of one sweep; empty ones below the end of a shorter sweep."""
    if i >= len(family.settings) or not numbers.planned(group, model, family.settings[i][0]):
        yield from [Entry(text="")] * (len(family.arguments) + len(shown))
        return
    label, values = family.settings[i]
    yield from (Entry(text=v) for v in values[:-1])
    yield Entry(text=values[-1], remark=numbers.lacking(group, model, label))
    yield from (numbers.mean(group, model, label, m) for m in shown)


def _view(
    layout: str,
    title: str,
    stub: str,
    heads: Sequence[Head],
    columns: Sequence[Column],
    blocks: Sequence[Block],
    notes: Sequence[str],
) -> TableView:
    """Mark the numbers and join the printed table with its CSV."""
    done = tuple(marked(block, columns) for block in blocks)
    return TableView(layout, title, stub, tuple(heads), tuple(columns), done, tuple(notes), frame_of(done))


def _chosen(found: Sequence[Measure], wanted: Sequence[str]) -> list[Measure]:
    """The wanted metrics in the paper's order, each under every profile that it was measured with."""
    return [m for name in wanted for m in found if m.metric == name]


def _absent(layout: str, title: str, wanted: Sequence[str]) -> TableView:
    names = [METRICS[n].title for n in wanted]
    listed = f"{', '.join(names[:-1])} nor {names[-1]}"
    return TableView(layout, title, notes=(f"{title}: neither {listed} was measured, so there is no table.",))


def _not_measured(wanted: Sequence[str], shown: Sequence[Measure]) -> list[str]:
    lacking = [METRICS[n].title for n in wanted if all(m.metric != n for m in shown)]
    return [f"Not measured: {', '.join(lacking)}."] if lacking else []


def _seeds(lines: Sequence[Row]) -> list[str]:
    return [_SEEDS] if any(e.sd == e.sd for row in lines for e in row.entries) else []


LAYOUTS: dict[str, Layout] = {
    "survey_table": survey,
    "loss_by_model": loss_by_model,
    "sweeps": sweeps,
    "jadon": jadon,
    "celaya": celaya,
}


def build(numbers: Numbers, name: str) -> list[TableView]:
    """The tables of one layout, one per data set (`celaya`: one for all).

    Raises:
        BenchError: There is no such layout.
    """
    if name not in LAYOUTS:
        raise BenchError(f"report.layout: {name!r} is no table; expected one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name](numbers)
