"""The numbers of the report: policy for empty masks, means over patients and runs, leaderboard, the survey's table.

One definition holds everywhere. Per run (a fold and a seed) and class: the mean over patients, the cases of one
patient averaged first. Per run: the mean over classes. Per loss: the mean over its measured runs. A metric of the scope
`dataset` (mIoU) is made per run and class from the counts of all its cases instead. A `Measure` is a metric with its
profile and its unit, so distances in millimetres and in voxels never meet in one mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from harness.cell import PROFILE
from harness.errors import BenchError
from harness.metrics.policy import applies, pooled_iou, takes_worst
from harness.metrics.table import metric_of, title_of
from harness.report.frames import CASE_STATUSES, FAILED, Frames

COUNT_UNIT = "voxels"
NAN = float("nan")
_SHOWN = {"1": "%", "mm2": "mm²", "mm3": "mm³", "voxel2": "pixels", "voxel3": "voxels"}
# What a suite measures without asking: then the survey's table is the survey's, DSC and HD95.
_USUAL = ("dice", "hd95", "asd")


class Measure(NamedTuple):
    """A metric as it was measured: numbers of two measures are never averaged together.

    Attributes:
        metric: Name in the rows, `nsd@2`.
        profile: Name in the rows.
        unit: Unit in the rows.
        length: Unit of the metric's tolerance, "mm" or "voxel"; empty where it has none.
    """

    metric: str
    profile: str
    unit: str
    length: str = ""

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller is better."""
        return not metric_of(self.metric)[0].higher_is_better

    @property
    def name(self) -> str:
        """The field's name: DSC, HD95, NSD (2 mm)."""
        return title_of(self.metric, self.length or "mm")

    @property
    def shown_unit(self) -> str:
        """The unit in tables: fractions are shown in per cent."""
        return _SHOWN.get(self.unit, self.unit)

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.unit == "1" else 1.0

    @property
    def decimals(self) -> int:
        """How many are printed: volumes are large numbers."""
        return 1 if metric_of(self.metric)[0].unit_kind == "volume" else 2

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.shown_unit}" if self.name.endswith(")") else f"{self.name} ({self.shown_unit})"

    def shown_profile(self, among: Iterable[Measure]) -> str:
        """The profile, where it is not the usual one or not the only one of the metric; else nothing."""
        several = len({m.profile for m in among if m.metric == self.metric}) > 1
        return self.profile if several or self.profile != PROFILE else ""


def apply_policy(cases: pd.DataFrame) -> pd.DataFrame:
    """Add `score`, the number that enters the means, under the default policy of `harness.metrics.policy`.

    Where a row is not applicable the score is NaN. Counts of voxels are kept as they are.

    Raises:
        BenchError: A status or a metric is unknown, or the number that the policy asks for is not in the row.
    """
    out = cases.copy()
    unknown = sorted(set(out["status"]) - set(CASE_STATUSES))
    if unknown:
        raise BenchError(f"cases.status: {unknown[0]!r} is unknown; expected one of {', '.join(CASE_STATUSES)}.")
    value, worst = pd.to_numeric(out["value"]), pd.to_numeric(out["worst"])
    kinds = out[["metric", "profile", "status"]].drop_duplicates().itertuples(index=False, name=None)
    rules = {kind: (applies(*kind), takes_worst(*kind)) for kind in kinds}
    found = [rules[kind] for kind in zip(out["metric"], out["profile"], out["status"], strict=True)]
    counted = pd.Series([f[0] for f in found], index=out.index, dtype=bool)
    fallback = pd.Series([f[1] for f in found], index=out.index, dtype=bool)
    out["score"] = value.where(value.notna() | ~fallback, worst).where(counted, NAN).astype(float)
    lacking = out[out["score"].isna() & counted]
    if len(lacking):
        row = lacking.iloc[0]
        column = "worst" if fallback[lacking.index[0]] else "value"
        raise BenchError(
            f"cases: case {row['case']!r}, class {row['class']!r}, {row['metric']}: status {row['status']} without "
            f"a number in {column!r}; score the case again."
        )
    return out


def measures(cases: pd.DataFrame, pooled: Sequence[str] = ()) -> list[Measure]:
    """The measures that occur, in order of first appearance, without the counts of voxels; then the pooled ones."""
    rows = cases[cases["unit"] != COUNT_UNIT][_KEYS].drop_duplicates()
    found = [Measure(*map(str, row)) for row in rows.itertuples(index=False)]
    counts = cases[cases["metric"] == "tp"]
    return found + [Measure(m, str(p), "1") for m in pooled for p in dict.fromkeys(counts["profile"])]


_RUN = ["group", "model", "loss", "fold", "seed"]
_KEYS = ["metric", "profile", "unit", "length"]


def class_means(cases: pd.DataFrame, pooled: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over patients, per run, class and measure.

    Args:
        cases: Rows of the measured cells.
        pooled: Metrics of the scope `dataset` that were asked for.

    Returns:
        Columns group, model, loss, fold, seed, class, metric, profile, unit, length, score (NaN where the class never
        applies), n (patients that count).
    """
    keys = [*_RUN, "class", *_KEYS]
    if cases.empty:
        return pd.DataFrame(columns=[*keys, "score", "n"])
    scored = apply_policy(cases)
    scored = scored[scored["unit"] != COUNT_UNIT]
    patients = scored.groupby([*keys, "patient"], sort=False)["score"].mean()
    grouped = patients.groupby(level=keys, sort=False)
    found = pd.DataFrame({"score": grouped.mean(), "n": grouped.count()}).reset_index()
    return pd.concat([found, *(_pooled(cases, name) for name in pooled)], ignore_index=True) if pooled else found


def _pooled(cases: pd.DataFrame, name: str) -> pd.DataFrame:
    """The IoU of each run and class from its counts, in the columns of `class_means`."""
    rows = []
    for key, part in cases[cases["metric"].isin(("tp", "fp", "fn"))].groupby([*_RUN, "class", "profile"], sort=False):
        by = part.pivot_table(index=["patient", "case"], columns="metric", values="value", sort=False)
        counts = [(float(tp), float(fp), float(fn)) for tp, fp, fn in zip(by["tp"], by["fp"], by["fn"], strict=True)]
        iou = pooled_iou(counts)
        seen = by[by.sum(axis=1) > 0].reset_index()["patient"].nunique()
        row = dict(zip([*_RUN, "class", "profile"], key, strict=True))
        rows.append(row | {"metric": name, "unit": "1", "length": "", "score": NAN if iou is None else iou, "n": seen})
    return pd.DataFrame(rows, columns=[*_RUN, "class", *_KEYS, "score", "n"])


def run_means(cases: pd.DataFrame, pooled: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over classes of `class_means`, per run and measure: columns as there, without class and n."""
    keys = [*_RUN, *_KEYS]
    per_class = class_means(cases, pooled)
    if per_class.empty:
        return pd.DataFrame(columns=[*keys, "score"])
    return per_class.groupby(keys, sort=False)["score"].mean().reset_index()


class Spread(NamedTuple):
    """Mean over runs and sample standard deviation over seeds; NaN where there is none."""

    mean: float
    sd: float
    runs: tuple[float, ...]


def spread(values: pd.DataFrame) -> Spread:
    """Summarise the rows of one loss and measure: columns fold, seed, score.

    The standard deviation is that of the seeds' means over folds, among seeds that have every fold; one seed has none.
    """
    known = values[values["score"].notna()].sort_values(["fold", "seed"])
    runs = [float(v) for v in known["score"]]
    if not runs:
        return Spread(NAN, NAN, ())
    folds = known["fold"].nunique()
    per_seed = [[float(v) for v in part["score"]] for _, part in known.groupby("seed")]
    whole = [statistics.fmean(part) for part in per_seed if len(part) == folds]
    sd = statistics.stdev(whole) if len(whole) > 1 else NAN
    return Spread(statistics.fmean(runs), sd, tuple(runs))


def leaderboard(frames: Frames) -> pd.DataFrame:
    """One row per data set, model and loss: runs, failures, mean and SD of every measure, cost.

    Columns of a measure are `dice` and `dice_sd` (fractions), `hd95_mm` and `hd95_mm_sd`, with the profile in the name
    where one metric occurs with several, or with another than the usual one. Rows stand in planned order: without
    intervals there are no ranks.
    """
    found = measures(frames.cases, frames.pooled)
    means = run_means(frames.cases, frames.pooled)
    rows = []
    for (group, model, loss), part in triples(frames):
        own = means[(means["group"] == group) & (means["model"] == model) & (means["loss"] == loss)]
        counts = part["status"].value_counts()
        ok = part[part["status"] == "ok"]
        row: dict[str, object] = {
            "dataset": group,
            "model": model,
            "loss": loss,
            "runs_planned": len(part),
            "runs_ok": len(ok),
            "runs_failed": int(sum(counts.get(s, 0) for s in FAILED)),
            "runs_diverged": int(counts.get("diverged", 0)),
            "runs_other": int(sum(counts.get(s, 0) for s in ("skip", "missing", "stale"))),
            "patients": _patients(frames.cases, group, model, loss),
        }
        for measure in found:
            s = spread(of_measure(own, measure))
            column = column_name(measure, found)
            row |= {column: s.mean, f"{column}_sd": s.sd}
        row |= {"step_ms": known_mean(ok["step_ms"]), "train_s": known_mean(ok["train_s"])}
        rows.append(row)
    return pd.DataFrame(rows)


def column_name(measure: Measure, among: Iterable[Measure]) -> str:
    """Name of a measure's column in CSV: `dice`, `hd95_mm`, `hd95_area_mm` where profiles differ, `nsd@2mm`."""
    unit = "" if measure.unit == "1" else measure.unit
    parts = [measure.metric + measure.length, measure.shown_profile(among), unit]
    return "_".join(p for p in parts if p)


@dataclass(frozen=True)
class Column:
    """A column of the survey's table: one class, or "average" over classes, of one measure."""

    name: str
    measure: Measure


@dataclass(frozen=True)
class Entry:
    """A number of the survey's table.

    Attributes:
        value: In the shown unit (per cent, mm or voxel); NaN where there is none.
        sd: Over seeds, in the shown unit; NaN with one seed.
        mark: "best", "second" or "".
    """

    value: float
    sd: float
    mark: str = ""


@dataclass(frozen=True)
class SurveyTable:
    """One data set in the layout of Azad et al. 2023, Table 3: rows by model and loss, columns by class, then means."""

    group: str
    columns: list[Column]
    rows: dict[str, dict[str, list[Entry]]]
    runs: dict[tuple[str, str], str]  # (model, loss) → "4/5 runs" where runs are missing: those are never marked


def survey_table(frames: Frames, group: str, *, only_means: bool = False) -> SurveyTable:
    """Dice per class, mean Dice and mean HD95 in the survey's layout, and the means of what else the suite asked for.

    Args:
        frames: The prepared frames.
        group: The data set.
        only_means: Leave the classes out.

    The best and the second best of a column within a model are marked by the printed number; equal
    numbers share a mark, and a column with one distinct number has none.
    """
    cases = frames.cases[frames.cases["group"] == group]
    found = measures(cases, frames.pooled)
    dice = [m for m in found if m.metric == "dice"][:1]  # one profile by class, all of them as means
    classes = [] if only_means else list(dict.fromkeys(cases["class"]))
    columns = [Column(c, m) for m in dice for c in classes] if len(classes) > 1 else []
    columns += [Column("average", m) for m in [*dice, *(m for m in _in_survey(found) if m not in dice)]]
    per_class, per_run = class_means(cases, frames.pooled), run_means(cases, frames.pooled)
    rows: dict[str, dict[str, list[Entry]]] = {}
    runs: dict[tuple[str, str], str] = {}
    for (name, model, loss), planned in triples(frames):
        if name != group:
            continue
        entries = []
        for column in columns:
            source = per_run if column.name == "average" else per_class[per_class["class"] == column.name]
            own = source[(source["model"] == model) & (source["loss"] == loss)]
            s, k = spread(of_measure(own, column.measure)), column.measure.scale
            entries.append(Entry(s.mean * k, s.sd * k))
        rows.setdefault(model, {})[loss] = entries
        measured = int((planned["status"] == "ok").sum())
        if measured < len(planned):
            runs[model, loss] = f"{measured}/{len(planned)} runs"
    marked = {m: _marked(block, columns, {x for x in block if (m, x) not in runs}) for m, block in rows.items()}
    return SurveyTable(group, columns, marked, runs)


def _in_survey(found: Sequence[Measure]) -> list[Measure]:
    """DSC and HD95, as published, where no more than the usual was measured; else everything."""
    published = [m for m in found if m.metric in ("dice", "hd95")]
    return published if published and all(m.metric in _USUAL for m in found) else list(found)


def survey_frame(tables: Sequence[SurveyTable]) -> pd.DataFrame:
    """The tables as one long frame with the columns of the published tables, and dataset, profile, sd, mark."""
    names = ["dataset", "model", "loss", "class", "metric", "profile", "unit", "value", "sd", "mark"]
    rows = []
    for table in tables:
        for model, block in table.rows.items():
            for loss, entries in block.items():
                for column, e in zip(table.columns, entries, strict=True):
                    m = column.measure
                    rows.append(
                        (table.group, model, loss, column.name, m.name, m.profile, m.shown_unit, e.value, e.sd, e.mark)
                    )
    return pd.DataFrame(rows, columns=names)


def marks(values: Sequence[float], *, lower_is_better: bool, decimals: int = 2) -> list[str]:
    """Mark the best and the second best distinct number, compared as printed."""
    printed = [None if math.isnan(v) else round(v, decimals) for v in values]
    distinct = sorted({p for p in printed if p is not None}, reverse=not lower_is_better)
    if len(distinct) < 2:
        return [""] * len(values)
    names = {distinct[0]: "best", distinct[1]: "second"}
    return ["" if p is None else names.get(p, "") for p in printed]


def _marked(block: dict[str, list[Entry]], columns: Sequence[Column], complete: set[str]) -> dict[str, list[Entry]]:
    """Mark among the losses with all their runs: a mean that leaves the hard run out is no better mean."""
    by_column = [
        marks(
            [entries[i].value if loss in complete else math.nan for loss, entries in block.items()],
            lower_is_better=c.measure.lower_is_better,
            decimals=c.measure.decimals,
        )
        for i, c in enumerate(columns)
    ]
    return {
        loss: [Entry(e.value, e.sd, by_column[i][row]) for i, e in enumerate(entries)]
        for row, (loss, entries) in enumerate(block.items())
    }


def triples(frames: Frames) -> list[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The cells of each (data set, model, loss), in planned order."""
    parts = {k: part for k, part in frames.cells.groupby(["group", "model", "loss"], sort=False)}
    order = [(g, m, name) for g in frames.groups for m in frames.models for name in frames.losses]
    return [(key, parts[key]) for key in order if key in parts]


def of_measure(frame: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """The rows of one measure."""
    same = frame["metric"] == measure.metric
    same &= (frame["profile"] == measure.profile) & (frame["unit"] == measure.unit)
    return frame[same & (frame["length"] == measure.length)]


def _patients(cases: pd.DataFrame, group: str, model: str, loss: str) -> int:
    own = cases[(cases["group"] == group) & (cases["model"] == model) & (cases["loss"] == loss)]
    return int(own["patient"].nunique())


def known_mean(column: pd.Series) -> float:
    """Mean of the numbers that are there; NaN where there is none."""
    known = [float(v) for v in column if not math.isnan(float(v))]
    return statistics.fmean(known) if known else NAN
