"""The numbers of the report: policy for empty masks, means over patients and runs, leaderboard, the survey's table.

One definition holds in every table but those of the verdicts. Per run (a fold and a seed) and class: the mean over
patients, the cases of one patient averaged first. Per run: the mean over classes. Per loss: the mean over its measured
runs. The verdicts (`harness.report.verdicts`) need one value per patient, so there the classes of a patient are
averaged first; where a class does not apply in a patient, the two means differ. A metric of the scope `dataset` (mIoU)
is made per run and class from the counts of all its cases instead. A `Measure` is a metric with its profile and its
unit, so distances in millimetres and in voxels never meet in one mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
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
    unknown = sorted(set(out["status"].unique()) - set(CASE_STATUSES))
    if unknown:
        raise BenchError(f"cases.status: {unknown[0]!r} is unknown; expected one of {', '.join(CASE_STATUSES)}.")
    value, worst = pd.to_numeric(out["value"]), pd.to_numeric(out["worst"])
    kind = out.groupby(["metric", "profile", "status"], sort=False, observed=True).ngroup().to_numpy()
    first = out.iloc[np.unique(kind, return_index=True)[1]]  # one row of each kind: there are few kinds, and many rows
    kinds = [
        (str(m), str(p), str(s)) for m, p, s in zip(first["metric"], first["profile"], first["status"], strict=True)
    ]
    counted = pd.Series(np.array([applies(*k) for k in kinds], bool)[kind], index=out.index)
    fallback = pd.Series(np.array([takes_worst(*k) for k in kinds], bool)[kind], index=out.index)
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
    rows = cases.loc[cases["unit"] != COUNT_UNIT, _KEYS].drop_duplicates()
    found = [Measure(*map(str, row)) for row in rows.itertuples(index=False)]
    profiles = cases.loc[cases["metric"] == "tp", "profile"].unique() if pooled else ()
    return found + [Measure(m, str(p), "1") for m in pooled for p in profiles]


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
    patients = scored.groupby([*keys, "patient"], sort=False, observed=True)["score"].mean()
    grouped = patients.groupby(level=keys, sort=False, observed=True)
    found = pd.DataFrame({"score": grouped.mean(), "n": grouped.count()}).reset_index()
    return pd.concat([found, *(_pooled(cases, name) for name in pooled)], ignore_index=True) if pooled else found


def all_class_means(frames: Frames) -> pd.DataFrame:
    """`class_means` of a whole report, made once; the caller leaves it as it is."""
    if "class_means" not in frames.memo:
        frames.memo["class_means"] = class_means(frames.cases, frames.pooled)
    found: pd.DataFrame = frames.memo["class_means"]
    return found


def _pooled(cases: pd.DataFrame, name: str) -> pd.DataFrame:
    """The IoU of each run and class from its counts, in the columns of `class_means`."""
    rows = []
    for key, part in cases[cases["metric"].isin(("tp", "fp", "fn"))].groupby(
        [*_RUN, "class", "profile"], sort=False, observed=True
    ):
        by = part.pivot_table(index=["patient", "case"], columns="metric", values="value", sort=False, observed=True)
        counts = [(float(tp), float(fp), float(fn)) for tp, fp, fn in zip(by["tp"], by["fp"], by["fn"], strict=True)]
        iou = pooled_iou(counts)
        seen = by[by.sum(axis=1) > 0].reset_index()["patient"].nunique()
        row = dict(zip([*_RUN, "class", "profile"], key, strict=True))
        rows.append(row | {"metric": name, "unit": "1", "length": "", "score": NAN if iou is None else iou, "n": seen})
    return pd.DataFrame(rows, columns=[*_RUN, "class", *_KEYS, "score", "n"])


def run_means(cases: pd.DataFrame, pooled: Sequence[str] = ()) -> pd.DataFrame:
    """Mean over classes of `class_means`, per run and measure: columns as there, without class and n."""
    return over_classes(class_means(cases, pooled))


def over_classes(per_class: pd.DataFrame) -> pd.DataFrame:
    """`run_means` from what `class_means` gave."""
    keys = [*_RUN, *_KEYS]
    if per_class.empty:
        return pd.DataFrame(columns=[*keys, "score"])
    return per_class.groupby(keys, sort=False, observed=True)["score"].mean().reset_index()


class Spread(NamedTuple):
    """Mean over runs and sample standard deviation over seeds that have every fold; NaN where there is none."""

    mean: float
    sd: float
    runs: tuple[float, ...]
    seeds: int = 0


def spread(values: pd.DataFrame) -> Spread:
    """Summarise the rows of one loss and measure: columns fold, seed, score; see `spread_of`."""
    return spread_of(zip(values["fold"], values["seed"], values["score"], strict=True))


def spread_of(rows: Iterable[tuple[int, int, float]]) -> Spread:
    """Summarise the runs of one loss and measure, given as (fold, seed, score).

    The standard deviation is that of the seeds' means over folds, among seeds that have every fold; one seed has none.
    """
    known = sorted(((f, s, float(v)) for f, s, v in rows if not math.isnan(v)), key=lambda row: row[:2])
    if not known:
        return Spread(NAN, NAN, ())
    runs = tuple(v for _, _, v in known)
    folds = len({f for f, _, _ in known})
    per_seed = [[v for _, s, v in known if s == seed] for seed in sorted({s for _, s, _ in known})]
    whole = [statistics.fmean(part) for part in per_seed if len(part) == folds]
    sd = statistics.stdev(whole) if len(whole) > 1 else NAN
    return Spread(statistics.fmean(runs), sd, runs, len(whole))


def leaderboard(frames: Frames) -> pd.DataFrame:
    """One row per data set, model and loss: runs, failures, mean and SD of every measure, cost.

    Columns of a measure are `dice` and `dice_sd` (fractions), `hd95_mm` and `hd95_mm_sd`, with the profile in the name
    where one metric occurs with several, or with another than the usual one. Rows stand in planned order: without
    intervals there are no ranks.
    """
    found = measures(frames.cases, frames.pooled)
    runs = _runs(over_classes(all_class_means(frames)))
    patients = _patients(frames.cases)
    rows = []
    for (group, model, loss), part in triples(frames):
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
            "patients": patients.get((group, model, loss), 0),
        }
        for measure in found:
            s = spread_of(runs.get((group, model, loss, *measure), ()))
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


def survey_columns(found: Sequence[Measure], classes: Sequence[str]) -> list[Column]:
    """Dice by class where there are several, then the means: one profile by class, all of them as means."""
    dice = [m for m in found if m.metric == "dice"][:1]
    columns = [Column(c, m) for m in dice for c in classes] if len(classes) > 1 else []
    return columns + [Column("average", m) for m in [*dice, *(m for m in survey_metrics(found) if m not in dice)]]


def survey_metrics(found: Sequence[Measure]) -> list[Measure]:
    """DSC and HD95, as published, where no more than the usual was measured; else everything."""
    published = [m for m in found if m.metric in ("dice", "hd95")]
    return published if published and all(m.metric in _USUAL for m in found) else list(found)


def marks(values: Sequence[float], *, lower_is_better: bool, decimals: int = 2) -> list[str]:
    """Mark the best and the second best distinct number, compared as printed."""
    printed = [None if math.isnan(v) else round(v, decimals) for v in values]
    distinct = sorted({p for p in printed if p is not None}, reverse=not lower_is_better)
    if len(distinct) < 2:
        return [""] * len(values)
    names = {distinct[0]: "best", distinct[1]: "second"}
    return ["" if p is None else names.get(p, "") for p in printed]


def triples(frames: Frames) -> list[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The cells of each (data set, model, loss), in planned order."""
    parts = {k: part for k, part in frames.cells.groupby(["group", "model", "loss"], sort=False, observed=True)}
    order = [(g, m, name) for g in frames.groups for m in frames.models for name in frames.losses]
    return [(key, parts[key]) for key in order if key in parts]


def of_measure(frame: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """The rows of one measure."""
    same = frame["metric"] == measure.metric
    same &= (frame["profile"] == measure.profile) & (frame["unit"] == measure.unit)
    return frame[same & (frame["length"] == measure.length)]


def _runs(means: pd.DataFrame) -> dict[tuple[str, ...], list[tuple[int, int, float]]]:
    """The rows of `run_means` as (fold, seed, score), by data set, model, loss and measure."""
    out: dict[tuple[str, ...], list[tuple[int, int, float]]] = {}
    runs = zip(means["fold"], means["seed"], means["score"], strict=True)
    for run, *key in zip(runs, *(means[c] for c in ("group", "model", "loss", *_KEYS)), strict=True):
        out.setdefault(tuple(key), []).append(run)
    return out


def _patients(cases: pd.DataFrame) -> dict[tuple[str, ...], int]:
    """Number of patients by data set, model and loss."""
    keys = ["group", "model", "loss"]
    found = cases[[*keys, "patient"]].drop_duplicates().groupby(keys, sort=False, observed=True).size()
    return {(str(g), str(m), str(x)): int(n) for (g, m, x), n in zip(found.index, found, strict=True)}


def known_mean(column: pd.Series) -> float:
    """Mean of the numbers that are there; NaN where there is none."""
    known = [float(v) for v in column if not math.isnan(float(v))]
    return statistics.fmean(known) if known else NAN
