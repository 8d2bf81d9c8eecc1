"""The numbers of the report: policy for empty masks, means over patients and runs, leaderboard, the survey's table.

One definition holds everywhere. Per run (a fold and a seed) and class: the mean over patients, the cases of one
patient averaged first. Per run: the mean over classes. Per loss: the mean over its measured runs. A `Measure` is a
metric with its profile and its unit, so distances in millimetres and in voxels never meet in one mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from harness.errors import BenchError
from harness.report.frames import CASE_STATUSES, FAILED, Frames

DISTANCE_UNITS = ("mm", "voxel")
COUNT_UNIT = "voxels"
NAN = float("nan")
_NAMES = {"dice": "DSC", "iou": "IoU", "miou": "mIoU"}


class Measure(NamedTuple):
    """A metric as it was measured: numbers of two measures are never averaged together."""

    metric: str
    profile: str
    unit: str

    @property
    def is_distance(self) -> bool:
        """Whether smaller is better."""
        return self.unit in DISTANCE_UNITS

    @property
    def name(self) -> str:
        """The field's name: DSC, HD95."""
        return _NAMES.get(self.metric, self.metric.upper())

    @property
    def shown_unit(self) -> str:
        """The unit in tables: fractions are shown in per cent."""
        return "%" if self.unit == "1" else self.unit

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.unit == "1" else 1.0


def apply_policy(cases: pd.DataFrame) -> pd.DataFrame:
    """Add `score`, the number that enters the means, under the default policy for empty masks.

    One mask empty: the metric's worst value (0 for Dice, the image diagonal for distances). Both empty: not applicable,
    NaN. Counts of voxels are kept as they are.

    Raises:
        BenchError: A status is unknown, or the value that the policy asks for is not in the row.
    """
    out = cases.copy()
    status, count = out["status"], out["unit"] == COUNT_UNIT
    unknown = sorted(set(status) - set(CASE_STATUSES))
    if unknown:
        raise BenchError(f"cases.status: {unknown[0]!r} is unknown; expected one of {', '.join(CASE_STATUSES)}.")
    value, worst = pd.to_numeric(out["value"]), pd.to_numeric(out["worst"])
    missed = status.isin(("pred_empty", "ref_empty")) & ~count
    absent = (status == "both_empty") & ~count
    out["score"] = value.where(~missed, worst).where(~absent, NAN).astype(float)
    lacking = out[out["score"].isna() & ~absent]
    if len(lacking):
        row = lacking.iloc[0]
        column = "worst" if row["status"] in ("pred_empty", "ref_empty") else "value"
        raise BenchError(
            f"cases: case {row['case']!r}, class {row['class']!r}, {row['metric']}: status {row['status']} without "
            f"a number in {column!r}; score the case again."
        )
    return out


def measures(cases: pd.DataFrame) -> list[Measure]:
    """The measures that occur, in order of first appearance, without the counts of voxels."""
    rows = cases[cases["unit"] != COUNT_UNIT][["metric", "profile", "unit"]].drop_duplicates()
    return [Measure(*map(str, row)) for row in rows.itertuples(index=False)]


def class_means(cases: pd.DataFrame) -> pd.DataFrame:
    """Mean over patients, per run, class and measure.

    Returns:
        Columns group, model, loss, fold, seed, class, metric, profile, unit, score (NaN where the class never applies),
        n (patients that count).
    """
    keys = ["group", "model", "loss", "fold", "seed", "class", "metric", "profile", "unit"]
    if cases.empty:
        return pd.DataFrame(columns=[*keys, "score", "n"])
    scored = apply_policy(cases)
    scored = scored[scored["unit"] != COUNT_UNIT]
    patients = scored.groupby([*keys, "patient"], sort=False)["score"].mean()
    grouped = patients.groupby(level=keys, sort=False)
    return pd.DataFrame({"score": grouped.mean(), "n": grouped.count()}).reset_index()


def run_means(cases: pd.DataFrame) -> pd.DataFrame:
    """Mean over classes of `class_means`, per run and measure: columns as there, without class and n."""
    keys = ["group", "model", "loss", "fold", "seed", "metric", "profile", "unit"]
    per_class = class_means(cases)
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
    where one metric occurs with several. Rows stand in planned order: without intervals there are no ranks.
    """
    found = measures(frames.cases)
    means = run_means(frames.cases)
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
    """Name of a measure's column in CSV: `dice`, `hd95_mm`, `hd95_area_mm` where profiles differ."""
    several = len({m.profile for m in among if m.metric == measure.metric}) > 1
    parts = [measure.metric, measure.profile if several else "", "" if measure.unit == "1" else measure.unit]
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
    """Dice per class, mean Dice and mean HD95 in the survey's layout.

    Args:
        frames: The prepared frames.
        group: The data set.
        only_means: Leave the classes out.

    The best and the second best of a column within a model are marked by the printed number (two decimals); equal
    numbers share a mark, and a column with one distinct number has none.
    """
    cases = frames.cases[frames.cases["group"] == group]
    found = measures(cases)
    dice = [m for m in found if m.metric == "dice"]
    classes = [] if only_means else list(dict.fromkeys(cases["class"]))
    columns = [Column(c, m) for m in dice for c in classes] if len(classes) > 1 else []
    columns += [Column("average", m) for m in found if m.metric in ("dice", "hd95")]
    per_class, per_run = class_means(cases), run_means(cases)
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


def marks(values: Sequence[float], *, lower_is_better: bool) -> list[str]:
    """Mark the best and the second best distinct number, compared as printed with two decimals."""
    printed = [None if math.isnan(v) else round(v, 2) for v in values]
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
            lower_is_better=c.measure.is_distance,
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
    return frame[same & (frame["profile"] == measure.profile) & (frame["unit"] == measure.unit)]


def _patients(cases: pd.DataFrame, group: str, model: str, loss: str) -> int:
    own = cases[(cases["group"] == group) & (cases["model"] == model) & (cases["loss"] == loss)]
    return int(own["patient"].nunique())


def known_mean(column: pd.Series) -> float:
    """Mean of the numbers that are there; NaN where there is none."""
    known = [float(v) for v in column if not math.isnan(float(v))]
    return statistics.fmean(known) if known else NAN
