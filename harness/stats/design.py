"""From a long frame of values to arrays: loss × seed × patient, one array per fold, and what is missing in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.errors import BenchError

Kind = Literal["fraction", "distance", "volume", "rate", "loss"]
"""What is measured. A distance is analysed as log(1 + value); a rate is 0 or 1 per case; a loss may be negative."""
KINDS: tuple[Kind, ...] = ("fraction", "distance", "volume", "rate", "loss")
COLUMNS = ("loss", "fold", "seed", "patient", "value")
Array = NDArray[np.float64]

NO_FOLD = -1
"""The fold of a split that has none."""

KEPT_AT_LEAST = 0.5
"""Share of the patients that must have a value everywhere for the others to be left out."""


@dataclass(frozen=True)
class Block:
    """The values of one fold.

    Attributes:
        fold: Its number; -1 where the split has no folds.
        seeds: Seeds of the runs, in order.
        patients: Patients of its test set, in order.
        values: Loss × seed × patient, transformed; NaN where there is no value.
    """

    fold: int
    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    values: Array


@dataclass(frozen=True)
class Design:
    """All values of one analysis.

    Attributes:
        kind: What is measured.
        losses: Names, in order of first appearance; the first axis of every block.
        blocks: One per fold.
        means: Plain mean per loss in the metric's own unit: over the patients of a run, then over runs.
        runs: Number of measured runs per loss.
        patients: Number of patients per loss that have a value.
        left_out: Patients that were left out because a value is missing in some run of some loss.
        complete: Whether no value is missing in what is left.
    """

    kind: Kind
    losses: tuple[str, ...]
    blocks: tuple[Block, ...]
    means: dict[str, float]
    runs: dict[str, int]
    patients: dict[str, int]
    left_out: tuple[str, ...] = field(default=())
    complete: bool = True

    @property
    def folds(self) -> int:
        """Number of folds."""
        return len(self.blocks)

    @property
    def run_count(self) -> int:
        """Number of runs: pairs of a fold and a seed."""
        return sum(len(block.seeds) for block in self.blocks)

    @property
    def patient_count(self) -> int:
        """Number of patients that enter the effects."""
        return sum(len(block.patients) for block in self.blocks)


def transform(value: Array, kind: Kind) -> Array:
    """The scale that effects are taken on: log(1 + value) for distances, the value itself otherwise.

    Args:
        value: In the metric's unit, any shape; distances in mm or voxels.
        kind: What is measured.
    """
    return np.log1p(value) if kind == "distance" else value


def read(frame: pd.DataFrame, kind: Kind, losses: Sequence[str] | None = None) -> Design:
    """Arrange the rows. Several rows of one patient in one run (images, slices) are averaged first, after `transform`.

    A patient who lacks a value in one measured run of one loss is left out for all losses, so that every loss is judged
    on the same patients, as long as half of the patients remain; else they all stay and the grid counts as incomplete.
    A run that a loss has not at all makes the grid incomplete.

    Args:
        frame: Columns loss, fold, seed, patient, value; one data set, model, class group and metric. NaN: not
            applicable, or not among the cases that the outcome is about.
        kind: What is measured.
        losses: Order of the losses; those of the frame in order of first appearance where it is not given.

    Raises:
        BenchError: A column is missing, there is no value, a value is out of range, or folds share patients.
    """
    if kind not in KINDS:
        raise BenchError(f"statistics: unknown kind {kind!r} of metric; known: {', '.join(KINDS)}.")
    lacking = [c for c in COLUMNS if c not in frame.columns]
    if lacking:
        raise BenchError(f"statistics: no column {', '.join(map(repr, lacking))}; expected {', '.join(COLUMNS)}.")
    rows = frame[list(COLUMNS)].copy()
    rows["patient"], rows["loss"] = rows["patient"].map(str), rows["loss"].map(str)
    rows["fold"] = rows["fold"].fillna(NO_FOLD).astype(int)
    number = rows["value"].astype(float)
    if bool(np.isinf(number).any()):
        raise BenchError("statistics: a value is infinite; use NaN where a case has no value.")
    if kind not in ("fraction", "loss") and bool((number < 0).any()):
        raise BenchError(f"statistics: a {kind} is {number.min():g}, expected 0 or more.")
    rows["plain"], rows["value"] = number, transform(np.asarray(number, dtype=np.float64), kind)
    known = rows[rows["value"].notna()]
    if known.empty:
        raise BenchError("statistics: no case has a value, so there is nothing to compare.")
    order = tuple(losses) if losses is not None else tuple(dict.fromkeys(rows["loss"]))
    names = tuple(x for x in order if bool((known["loss"] == x).any()))
    unknown = sorted(set(rows["loss"]) - set(order))
    if unknown:
        raise BenchError(f"statistics: rows of the loss {unknown[0]!r}, which is not among {', '.join(order)}.")
    keys = ["loss", "fold", "seed", "patient"]
    mean = rows.groupby(keys, sort=True)[["value", "plain"]].mean().reset_index()
    homes = mean[mean["value"].notna()].groupby("patient")["fold"].nunique()
    if bool((homes > 1).any()):
        raise BenchError(
            f"statistics: patient {homes[homes > 1].index[0]!r} stands in the test sets of several folds; each patient "
            "belongs to one fold."
        )
    blocks, left_out, complete = _blocks(mean, names)
    plain = mean.groupby(["loss", "fold", "seed"])["plain"].mean().groupby("loss").mean()
    there = mean[mean["value"].notna()]
    runs = there[["loss", "fold", "seed"]].drop_duplicates().groupby("loss").size()
    patients = there[["loss", "patient"]].drop_duplicates().groupby("loss").size()
    return Design(
        kind,
        names,
        blocks,
        {x: float(plain[x]) for x in names},
        {x: int(runs[x]) for x in names},
        {x: int(patients[x]) for x in names},
        left_out,
        complete,
    )


def _blocks(mean: pd.DataFrame, losses: Sequence[str]) -> tuple[tuple[Block, ...], tuple[str, ...], bool]:
    """One array per fold; patients with gaps left out where enough remain."""
    found = [_block(mean[mean["fold"] == fold], fold, losses) for fold in sorted({int(f) for f in mean["fold"]})]
    found = [b for b in found if b.values.size]
    whole = [_whole(b.values) for b in found]
    total, kept = sum(len(w) for w in whole), sum(int(w.sum()) for w in whole)
    enough = kept >= KEPT_AT_LEAST * total and all(int(w.sum()) >= 2 for w in whole)
    left_out: list[str] = []
    if enough:
        left_out = [p for b, w in zip(found, whole, strict=True) for p, k in zip(b.patients, w, strict=True) if not k]
        found = [
            Block(b.fold, b.seeds, tuple(p for p, k in zip(b.patients, w, strict=True) if k), b.values[:, :, w])
            for b, w in zip(found, whole, strict=True)
        ]
    same = len({len(b.seeds) for b in found}) == 1
    return tuple(found), tuple(left_out), same and all(not np.isnan(b.values).any() for b in found)


def _block(part: pd.DataFrame, fold: int, losses: Sequence[str]) -> Block:
    there = part[part["value"].notna()]
    seeds, patients = sorted({int(s) for s in there["seed"]}), sorted(set(there["patient"]))
    values = np.full((len(losses), len(seeds), len(patients)), np.nan)
    axes = (("loss", list(losses)), ("seed", seeds), ("patient", patients))
    where = tuple(pd.Index(axis).get_indexer(pd.Index(there[column])) for column, axis in axes)
    values[where] = there["value"].to_numpy(dtype=float)
    return Block(fold, tuple(seeds), tuple(patients), values)


def _whole(values: Array) -> NDArray[np.bool_]:
    """Which patients have a value in every run that the loss has."""
    gap = np.isnan(values)
    measured = ~gap.all(axis=2, keepdims=True)
    return np.asarray(~(gap & measured).any(axis=(0, 1)))
