"""The three frames that the report reads, brought to one form: columns, types, and a name per data set and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.data.conditions import Setting
from harness.errors import BenchError
from harness.metrics.table import LOSS

CELL_COLUMNS = (
    "dataset", "split", "fold", "model", "loss", "seed", "status", "message", "train_id", "eval_id", "init", "batches",
    "weights", "train_s", "eval_s", "step_ms", "targets_ms", "peak_rss_mb", "parameters", "steps", "device", "torch",
    "lr",
)  # fmt: skip
CASE_COLUMNS = (
    "dataset", "split", "fold", "model", "loss", "seed", "patient", "case", "class", "metric", "profile", "unit",
    "value", "worst", "status",
)  # fmt: skip
CURVE_COLUMNS = ("train_id", "dataset", "fold", "model", "loss", "seed", "epoch", "step", "lr", "loss_value")
STATUSES = ("ok", "diverged", "oom", "timeout", "error", "interrupted", "skip", "missing", "stale")
FAILED = ("diverged", "oom", "timeout", "error", "interrupted")
CASE_STATUSES = ("ok", "both_empty", "pred_empty", "ref_empty")
CELL_KEY = ["dataset", "split", "fold", "model", "loss", "seed"]
_TEXT_KEY = ["dataset", "split", "model", "loss"]
NO_FOLD = -1

_NUMBERS = {
    "fold", "seed", "train_s", "eval_s", "step_ms", "targets_ms", "peak_rss_mb", "parameters", "steps", "lr", "value",
    "worst", "epoch", "step", "loss_value",
}  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """What every table and figure is made from.

    Attributes:
        cells: One row per planned cell; `CELL_COLUMNS`, `group`, and `command` where it was given.
        cases: Rows of the measured cells only; `CASE_COLUMNS`, `group`, and `length`, the unit of a metric's tolerance.
            Its text is categorical, a byte or two a row where objects have eight, and sorted as text is sorted; group
            it with `observed=True`, or pandas 2 makes rows of what does not occur.
        curves: `CURVE_COLUMNS`, `group`, `status` of the cell, and the columns of the loss's terms.
        groups: Data sets in planned order; with several splits of one data set, `name (split)`.
        models: Models in planned order.
        losses: Losses in planned order.
        pooled: Metrics that are made from the counts of all cases of a run, as far as they were asked for.
        cross: The rows of the metrics `loss:NAME`, in the columns of `cases`; those hold all others.
        settings: Data set to where it stands on the axes `labels` and `train.cases`, its `base` named as in `groups`;
            empty where the suite has none of them.
        memo: What several tables and figures need and takes long to make; see `tables.all_class_means`.
    """

    cells: pd.DataFrame
    cases: pd.DataFrame
    curves: pd.DataFrame
    groups: list[str]
    models: list[str]
    losses: list[str]
    pooled: tuple[str, ...] = ()
    cross: pd.DataFrame = field(default_factory=pd.DataFrame)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def plain_groups(self) -> list[str]:
        """The data sets as they are, without worse labels or fewer patients; all groups where there is none such."""
        return [g for g in self.groups if g not in self.settings or self.settings[g].plain] or self.groups

    def of_group(self, group: str) -> pd.DataFrame:
        """The cases of one data set."""
        own = self.cases["group"] == group
        return self.cases if bool(own.all()) else self.cases[own]

    @cached_property
    def parts(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The cases of each data set and model that has any; not copied where they stand together."""
        groups, models = (pd.Categorical(self.cases[c]) for c in ("group", "model"))
        both = groups.codes.astype(np.int64) * max(len(models.categories), 1) + models.codes
        out = {}
        for code in pd.unique(both):
            at = np.flatnonzero(both == code)
            together = at[-1] - at[0] + 1 == len(at)
            name = (str(groups[at[0]]), str(models[at[0]]))
            out[name] = self.cases.iloc[at[0] : at[-1] + 1] if together else self.cases.iloc[at]
        return out


def prepare(
    cells: pd.DataFrame,
    cases: pd.DataFrame,
    curves: pd.DataFrame,
    pooled: Sequence[str] = (),
    voxels: Sequence[str] = (),
    settings: Mapping[str, Setting] | None = None,
) -> Frames:
    """Check the frames and bring them to one form.

    Args:
        cells: One row per planned cell.
        cases: Rows of all cases.csv.
        curves: One row per training and epoch.
        pooled: Metrics of the scope `dataset` that were asked for.
        voxels: Data sets whose distances are in voxels, because no spacing is known.
        settings: Data set to its setting, where the suite degrades labels or takes fewer patients.

    Rows of cases whose cell is not `ok` are left out. A cell that says `ok` and has no rows becomes an `error`.

    Raises:
        BenchError: A column is missing, a cell stands twice, a status is unknown, or rows belong to no planned cell.
    """
    cells = _typed(cells, CELL_COLUMNS, "cells", required=(*CELL_KEY, "status"))
    cases = _typed(cases, CASE_COLUMNS, "cases", required=CASE_COLUMNS)
    curves = _typed(curves, CURVE_COLUMNS, "curves", required=("train_id", "epoch", "loss_value"))
    _closed(cells["status"], STATUSES, "cells")
    _closed(cases["status"], CASE_STATUSES, "cases")
    twice = cells[cells.duplicated(CELL_KEY)]
    if len(twice):
        raise BenchError(f"cells: {describe(twice.iloc[0])} stands twice; give each planned cell one row.")
    cells["group"] = _groups(cells)

    cases, measured = _of_measured(cases, cells)
    cases["length"] = _lengths(cases, voxels)
    empty = (cells["status"] == "ok") & ~cells.index.isin(measured)
    cells.loc[empty, "status"] = "error"
    cells.loc[empty, "message"] = "The record says ok, but holds no measured cases."
    cases, cross = _apart(cases)
    curves = _with_cells(curves, cells)
    groups, models, losses = (list(dict.fromkeys(cells[c])) for c in ("group", "model", "loss"))
    placed = _settings(cells, settings or {})
    return Frames(cells, cases, curves, groups, models, losses, tuple(pooled), cross, placed)


def describe(row: pd.Series) -> str:
    """A cell in words: `dice / unet / synapse fold 0 / seed 1`."""
    fold = "" if int(row["fold"]) == NO_FOLD else f" fold {int(row['fold'])}"
    return f"{row['loss']} / {row['model']} / {row['dataset']}{fold} / seed {int(row['seed'])}"


def by_group(frames: Frames, group: str, frame: pd.DataFrame) -> list[str]:
    """The models of one data set that occur in `frame`, in planned order."""
    if frame is frames.cases:
        there = {m for g, m in frames.parts if g == group}
    else:
        there = set(frame.loc[frame["group"] == group, "model"].unique())
    return [m for m in frames.models if m in there]


def _typed(frame: pd.DataFrame, columns: Sequence[str], name: str, required: Sequence[str]) -> pd.DataFrame:
    lacking = [c for c in required if c not in frame.columns]
    if lacking and len(frame):
        raise BenchError(f"{name}: no column {', '.join(map(repr, lacking))}; expected {', '.join(columns)}.")
    extra = [c for c in frame.columns if c not in columns]
    out = frame.reset_index(drop=True).reindex(columns=[*columns, *extra])
    for column in columns:
        if column in _NUMBERS:
            out[column] = _number(out[column], f"{name}.{column}")
        elif name == "cases":  # millions of rows
            out[column] = _categorical(out[column])
        else:
            out[column] = _texts(out[column])
    if "fold" in columns:
        out["fold"] = out["fold"].fillna(NO_FOLD).astype(int)
    if "seed" in columns:
        if name != "curves" and bool(out["seed"].isna().any()):
            raise BenchError(f"{name}: a row has no seed; every row needs the seed of its cell.")
        out["seed"] = out["seed"].fillna(0).astype(int)
    return out


def _texts(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").map(str).astype(object)


def _categorical(column: pd.Series) -> pd.Series:
    """As categories of text, sorted and without one that does not occur."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names, codes = column.cat.categories, column.cat.codes.to_numpy()
        whole = names.is_monotonic_increasing and all(isinstance(n, str) for n in names) and not (codes < 0).any()
        if whole and bool((np.bincount(codes, minlength=len(names)) > 0).all()):
            return column
    texts = _texts(column)
    names = pd.Index(sorted(set(texts)), dtype=object)
    return pd.Series(pd.Categorical(texts, categories=names), index=column.index)


def _number(column: pd.Series, where: str) -> pd.Series:
    if pd.api.types.is_float_dtype(column.dtype):
        return column.astype(float)
    blank = column.astype(object)
    blank = blank.where(blank.map(lambda v: v is not None and v != ""), float("nan"))
    try:
        return pd.to_numeric(blank).astype(float)
    except (ValueError, TypeError) as error:
        raise BenchError(f"{where}: {error}; expected numbers, or empty where there is none.") from None


def _closed(column: pd.Series, allowed: Sequence[str], name: str) -> None:
    unknown = sorted(set(column) - set(allowed))
    if unknown:
        raise BenchError(f"{name}.status: {unknown[0]!r} is unknown; expected one of {', '.join(allowed)}.")


def _groups(cells: pd.DataFrame) -> list[str]:
    splits = {d: set(part["split"]) for d, part in cells.groupby("dataset", sort=False)}
    pairs = zip(cells["dataset"], cells["split"], strict=True)
    return [f"{d} ({s})" if len(splits[d]) > 1 else str(d) for d, s in pairs]


def _settings(cells: pd.DataFrame, settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Group to its setting; of several splits of a data set, the base has the split in its name as the group has."""
    pairs = cells[["dataset", "group"]].drop_duplicates().itertuples(index=False)
    return {
        str(g): replace(settings[d], base=settings[d].base + str(g).removeprefix(d)) for d, g in pairs if d in settings
    }


def _of_measured(cases: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The rows of the cells that are `ok`, with `group`, and the positions of all cells that have rows."""
    run = cases.groupby(CELL_KEY, sort=False, observed=True).ngroup()
    firsts = cases.loc[~run.duplicated(), CELL_KEY].astype(dict.fromkeys(_TEXT_KEY, object))
    found = firsts.merge(cells[CELL_KEY].assign(at=np.arange(len(cells))), on=CELL_KEY, how="left", sort=False)["at"]
    if found.isna().any():
        stray = firsts.iloc[int(found.isna().to_numpy().argmax())]
        raise BenchError(f"cases: {describe(stray)} is not among the planned cells; give its row in cells too.")
    at = found.to_numpy(np.int64)
    groups = pd.Categorical(cells["group"], categories=pd.Index(sorted(set(cells["group"])), dtype=object))
    out = cases.assign(group=groups[at[run.to_numpy()]])
    ok = (cells["status"] == "ok").to_numpy()[at]
    if not ok.all():
        out = out[ok[run.to_numpy()]].reset_index(drop=True)
    texts = [c for c in out.columns if isinstance(out[c].dtype, pd.CategoricalDtype)]
    return out.assign(**{c: _categorical(out[c]) for c in texts}), at


def _apart(cases: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the metrics of masks, and those of the family `loss:`."""
    names = [m for m in cases["metric"].cat.categories if m.startswith(LOSS)]
    if not names:
        return cases, cases.iloc[:0]
    of_loss = cases["metric"].isin(names)
    parts = [cases[~of_loss].reset_index(drop=True), cases[of_loss].reset_index(drop=True)]
    texts = [c for c in cases.columns if isinstance(cases[c].dtype, pd.CategoricalDtype)]
    masks, losses = (part.assign(**{c: _categorical(part[c]) for c in texts}) for part in parts)
    return masks, losses


def _lengths(cases: pd.DataFrame, voxels: Sequence[str]) -> pd.Categorical:
    """The unit of the tolerance of each row's metric; empty where it has none."""
    names = ["", "mm", "voxel"]
    tolerant = np.array([m.startswith("nsd@") for m in cases["metric"].cat.categories], bool)
    units = np.array([names.index("voxel" if d in voxels else "mm") for d in cases["dataset"].cat.categories], np.int8)
    codes = np.where(tolerant[cases["metric"].cat.codes], units[cases["dataset"].cat.codes], 0)
    return pd.Categorical.from_codes(codes, pd.Index(names, dtype=object)).remove_unused_categories()


def _with_cells(curves: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Names and status come from the planned cell; a training that two evaluations share is drawn once."""
    names = [c for c in (*CELL_KEY, "group", "status")]
    one = cells[cells["train_id"] != ""].drop_duplicates("train_id")[["train_id", *names]]
    bare = curves.drop(columns=[c for c in names if c in curves.columns])
    out = bare.merge(one, on="train_id", how="inner", sort=False)
    terms = [c for c in out.columns if c not in (*CURVE_COLUMNS, *names)]
    return out[["train_id", *names, "epoch", "step", "lr", "loss_value", *terms]]
