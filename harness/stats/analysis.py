"""The analysis of one data set, model, class group and metric, from a long frame to verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from harness.errors import BenchError
from harness.stats import ranks as ranking
from harness.stats import reml
from harness.stats.contrasts import ALPHA, equivalence_p, holm, interval, p_values
from harness.stats.crossed import (
    LEAST_RUN_DF,
    TWO_LOSSES_CAP,
    Index,
    PairError,
    Source,
    components,
    pair_error,
    pairs,
    strata,
)
from harness.stats.design import NO_FOLD, Array, Design, Kind, read
from harness.stats.detectable import Detectable, table
from harness.stats.misses import rate_floor
from harness.stats.result import Analysis, LossResult

CRASHED = ("oom", "timeout", "error", "interrupted")
LEAST_PATIENTS = 6
"""Fewer say too little about how patients differ: with two, up to 45 % false findings (docs/statistics.md)."""


def analyse(
    frame: pd.DataFrame,
    baseline: str,
    kind: Kind,
    *,
    higher_is_better: bool,
    sizes: Mapping[int, tuple[int, int]] | None = None,
    rope: float | None = None,
    runs: pd.DataFrame | None = None,
    losses: Sequence[str] | None = None,
    draws: int = ranking.DRAWS,
    detail: bool = True,
) -> Analysis:
    """Compare losses over patients and trainings.

    Args:
        frame: Columns loss, fold, seed, patient, value: one data set, model, class group and metric, the policy for
            empty masks applied; NaN is not applicable. Several rows of a patient in a run are averaged.
        baseline: The loss that others are compared with.
        kind: `fraction`, `volume` (effects on the values), `distance` (on log(1 + value)) or `rate` (0 or 1 per case).
        higher_is_better: Direction of the metric.
        sizes: Per fold, the number of training and of test patients; with folds and without sizes the other folds'
            patients count as the training set.
        rope: Half width of the range of differences that do not matter, on the scale of the effects; None: no verdict
            `equivalent`.
        runs: Planned cells, columns loss, fold, seed, status as in the report's cells; without it none diverged.
        losses: Losses in the order wanted, also those without values.
        draws: Draws for ranks.
        detail: Whether to give `sources`, `detectable` and `bootstrap_first` too, which take most of the time.

    Raises:
        BenchError: The baseline has no value, the frame is not as described (see `read`), or `rope` is not above 0.
    """
    if rope is not None and not rope > 0:
        raise BenchError(f"rope is {rope}, expected a number above 0, in the unit of the effects.")
    seen = list(dict.fromkeys(str(x) for x in frame["loss"])) if "loss" in frame.columns else []
    # inside, the losses stand by name, so that random draws do not depend on the order of the rows
    design = read(frame, kind, sorted(losses if losses is not None else seen))
    if baseline not in design.losses:
        known = ", ".join(design.losses)
        raise BenchError(f"statistics: the baseline {baseline!r} has no value; losses with values: {known}.")
    lost = _statuses(runs)
    wanted = list(losses) if losses is not None else list(dict.fromkeys([*seen, *lost]))
    diverged = [frozenset(lost.get(x, {}).get("diverged", ())) for x in design.losses]
    inflation = _inflation(design, sizes)
    fit = _fit(design, inflation, detail)
    results = _results(design, baseline, fit, higher_is_better, rope, diverged, draws, detail)
    rows = []
    ranked = sum(r.get("rank") is not None for r in results.values())
    for name in wanted:
        gone = lost.get(name, {})
        if name not in results and gone.get("diverged"):
            results[name] = {"rank": ranked + 1}  # nothing but diverged runs: behind everything that has a value
        counts = {"diverged": len(gone.get("diverged", ())), "crashed": len(gone.get("crashed", ()))}
        rows.append(LossResult(name, **{**results.get(name, {}), **counts}))  # type: ignore[arg-type]
    return Analysis(
        kind, higher_is_better, baseline, tuple(rows), fit.sources, fit.detectable, fit.no_verdict, fit.method,
        design.folds, design.run_count, design.patient_count, design.left_out, inflation,
        tuple(_notes(design, baseline, fit, lost, inflation)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    """Effects and errors of all pairs i < j, and what goes with them; effects are second − first."""

    effect: Array
    error: PairError
    sources: tuple[Source, ...]
    detectable: tuple[Detectable, ...]
    no_verdict: str | None
    method: Literal["closed forms", "REML", "patients only"]
    failed: tuple[tuple[int, int], ...] = ()


def _fit(design: Design, inflation: float, detail: bool) -> _Fit:
    losses = len(design.losses)
    i, j = pairs(losses)
    reason = _refusal(design)
    few = [b.fold for b in design.blocks if len(b.patients) < 2]
    if losses < 2 or few:
        empty = np.full(len(i), np.nan)
        return _Fit(empty, PairError(empty, empty, empty, empty), (), (), reason, "patients only")
    if not design.complete:
        return _with_gaps(design, i, j, inflation, reason)
    values = [b.values for b in design.blocks]
    found = strata(values)
    effect = found.means[j] - found.means[i]
    if found.fold is None and found.seed is None:
        b = found.patient.own(i, j)
        nothing = np.full_like(b, np.nan)
        error = PairError(nothing, nothing, 2 * b / found.size, np.full_like(b, found.patient.df))
        return _Fit(effect, _floored(error, design), (), (), reason, "patients only")
    error = _floored(pair_error(found, i, j, inflation), design)
    rows = () if reason or design.kind == "rate" or not detail else tuple(table(found, inflation))
    return _Fit(effect, error, tuple(components(values)) if detail else (), rows, reason, "closed forms")


def _with_gaps(design: Design, i: Index, j: Index, inflation: float, reason: str | None) -> _Fit:
    gaps = reml.fit(design.blocks, i, j, len(design.losses), inflation)
    error = gaps.error
    if len(design.losses) == 2:
        top = design.folds - 1 if design.folds > 1 else design.run_count - 1
        error = PairError(
            error.variance, np.minimum(error.df, TWO_LOSSES_CAP * top), error.fixed_variance, error.fixed_df
        )
    return _Fit(gaps.effect, _floored(error, design), (), (), reason, "REML", gaps.failed)


def _floored(error: PairError, design: Design) -> PairError:
    if design.kind != "rate":
        return error
    least = rate_floor(design.patient_count)
    return PairError(
        np.maximum(error.variance, least), error.df, np.maximum(error.fixed_variance, least), error.fixed_df
    )


def _refusal(design: Design) -> str | None:
    """Why there can be no verdict, or None. The limits are those that hold in simulation."""
    losses = len(design.losses)
    if losses < 2:
        return "No verdict: only one loss has values."
    few = [str(b.fold) for b in design.blocks if len(b.patients) < 2]
    if few:
        return "No verdict: fewer than two patients" + (f" in fold {few[0]}." if design.folds > 1 else ".")
    if design.run_count < 2:
        return "No verdict: with one seed and one fold, the losses cannot be told from their one training."
    if design.folds == 2:
        return (
            "No verdict: two folds are too few to see how trainings differ; use three folds, or one and several seeds."
        )
    if design.patient_count < LEAST_PATIENTS:
        return (
            f"No verdict: {design.patient_count} patients are too few to see how patients differ; "
            f"{LEAST_PATIENTS} are needed."
        )
    top = design.folds - 1 if design.folds > 1 else min(len(b.seeds) for b in design.blocks) - 1
    if top * (losses - 1) < LEAST_RUN_DF:
        return "No verdict: two losses with two runs say too little about how trainings differ; add a seed."
    return None


def _inflation(design: Design, sizes: Mapping[int, tuple[int, int]] | None) -> float:
    """1 + J n_test / n_train, the mean over folds of n_test / n_train (Nadeau and Bengio 2003); 1 with one fold."""
    if design.folds == 1:
        return 1.0
    if sizes is None:
        total = sum(len(b.patients) for b in design.blocks) + len(design.left_out)
        ratio = 1 / (design.folds - 1) if total else 0.0
        return 1 + design.folds * ratio
    ratios = []
    for block in design.blocks:
        if block.fold not in sizes:
            raise BenchError(f"statistics: no sizes for fold {block.fold}; give (n_train, n_test) for every fold.")
        train, test = sizes[block.fold]
        if train < 1 or test < 1:
            raise BenchError(
                f"statistics: fold {block.fold} has {train} training and {test} test patients; expected 1 or more."
            )
        ratios.append(test / train)
    return 1 + design.folds * float(np.mean(ratios))


def _statuses(runs: pd.DataFrame | None) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Per loss, the runs that diverged and those that crashed."""
    if runs is None:
        return {}
    lacking = [c for c in ("loss", "fold", "seed", "status") if c not in runs.columns]
    if lacking:
        raise BenchError(f"statistics: no column {', '.join(map(repr, lacking))} in the planned runs.")
    out: dict[str, dict[str, list[tuple[int, int]]]] = {}
    folds = runs["fold"].fillna(NO_FOLD)
    for loss, fold, seed, status in zip(runs["loss"], folds, runs["seed"], runs["status"], strict=True):
        gone = "diverged" if status == "diverged" else "crashed" if status in CRASHED else ""
        own = out.setdefault(str(loss), {})
        if gone:
            own.setdefault(gone, []).append((int(fold), int(seed)))
    return out


def _results(
    design: Design,
    baseline: str,
    fit: _Fit,
    higher_is_better: bool,
    rope: float | None,
    diverged: Sequence[frozenset[tuple[int, int]]],
    draws: int,
    detail: bool,
) -> dict[str, dict[str, object]]:
    losses, base = len(design.losses), design.losses.index(baseline)
    i, j = pairs(losses)
    square = {
        name: _square(values, i, j, losses)
        for name, values in (
            ("variance", fit.error.variance), ("df", fit.error.df),
            ("fixed", fit.error.fixed_variance), ("fixed_df", fit.error.fixed_df), ("p", _pair_p(fit)),
        )
    }  # fmt: skip
    signed = _square(fit.effect, i, j, losses)
    signed[j, i] = -fit.effect
    effect = signed[base] + 0.0  # signed[a, b] is b − a; the sum turns −0 into 0
    others = np.array([k for k in range(losses) if k != base], dtype=np.intp)
    judged = [k for k in others if fit.no_verdict is None and math.isfinite(square["variance"][base, k])]
    out: dict[str, dict[str, object]] = {
        x: {"mean": design.means[x], "runs": design.runs[x], "patients": design.patients[x]} for x in design.losses
    }
    out[baseline] |= {"effect": 0.0, "verdict": "baseline"}
    direction = 1.0 if higher_is_better else -1.0
    for k in others:
        own = out[design.losses[k]]
        if math.isfinite(effect[k]):
            own["effect"] = float(effect[k])
        if math.isfinite(square["fixed"][base, k]):
            low, high = interval(effect[k], square["fixed"][base, k], square["fixed_df"][base, k])
            own |= {"fixed_low": float(low), "fixed_high": float(high)}
    if judged:
        at = np.array(judged, dtype=np.intp)
        e, v, df = effect[at], square["variance"][base, at], square["df"][base, at]
        p = p_values(e, v, df)
        low, high = interval(e, v, df)
        # a pair that could not be fitted keeps its place in the family
        adjusted = holm(np.concatenate([p, np.ones(losses - 1 - len(at))]))[: len(at)]
        same = np.ones_like(p)
        if rope is not None:
            same = holm(np.concatenate([equivalence_p(e, v, df, rope), np.ones(losses - 1 - len(at))]))[: len(at)]
        for n, k in enumerate(judged):
            shown, inside = bool(adjusted[n] < ALPHA), bool(same[n] < ALPHA)
            verdict = "no difference shown"
            if shown:
                verdict = "better" if e[n] * direction > 0 else "worse"
            elif inside:
                verdict = "equivalent"
            out[design.losses[k]] |= {
                "low": float(low[n]), "high": float(high[n]), "df": float(df[n]), "p": float(p[n]),
                "p_holm": float(adjusted[n]), "verdict": verdict, "within_rope": inside,
                "p_rope": None if rope is None else float(same[n]),
            }  # fmt: skip
    score = np.where(np.isfinite(effect), effect, np.nan) * direction
    _add_ranks(out, design, score, square, fit, higher_is_better, diverged, draws, detail)
    return out


def _pair_p(fit: _Fit) -> Array:
    """Two-sided p of every pair; 1 where a pair could not be compared."""
    known = np.isfinite(fit.error.variance) & np.isfinite(fit.error.df)
    out = np.ones_like(fit.effect)
    out[known] = p_values(fit.effect[known], fit.error.variance[known], fit.error.df[known])
    return out


def _add_ranks(
    out: dict[str, dict[str, object]],
    design: Design,
    score: Array,
    square: Mapping[str, Array],
    fit: _Fit,
    higher_is_better: bool,
    diverged: Sequence[frozenset[tuple[int, int]]],
    draws: int,
    detail: bool,
) -> None:
    at = np.flatnonzero(np.isfinite(score))
    lost = [len(diverged[int(k)]) for k in at]
    by_run = ranking.run_ranks(design.blocks, higher_is_better, diverged)
    for name, value in zip(design.losses, by_run, strict=True):
        out[name]["run_rank"] = float(value) if math.isfinite(value) else None
    if fit.no_verdict is not None or len(at) < 2:
        plain = ranking.order(score[at], lost)
        for n, k in enumerate(at):
            out[design.losses[k]]["rank"] = int(plain[n])
        return
    grid = np.ix_(at, at)
    found = ranking.ranks(score[at], square["p"][grid], square["variance"][grid], square["df"][grid], lost, draws)
    check = ranking.bootstrap_first(design.blocks, higher_is_better) if design.complete and detail else None
    for n, k in enumerate(at):
        if check is not None:
            out[design.losses[k]]["bootstrap_first"] = float(check[k])
        out[design.losses[k]] |= {
            "rank": int(found.rank[n]), "rank_low": int(found.low[n]), "rank_high": int(found.high[n]),
            "first": float(found.first[n]), "tier": int(found.tier[n]),
        }  # fmt: skip


def _square(values: Array, i: Index, j: Index, losses: int) -> Array:
    out = np.zeros((losses, losses))
    out[i, j] = out[j, i] = values
    return out


def _notes(
    design: Design,
    baseline: str,
    fit: _Fit,
    lost: Mapping[str, Mapping[str, Sequence[tuple[int, int]]]],
    inflation: float,
) -> list[str]:
    out = []
    if fit.method == "REML":
        out.append("The grid has gaps: each pair of losses is compared by REML on the cases that both have.")
    if design.left_out:
        out.append(
            f"{len(design.left_out)} of {len(design.left_out) + design.patient_count} patients are left out of the "
            "effects, because some run of some loss has no value for them."
        )
    for i, j in fit.failed:
        out.append(f"The fit for {design.losses[i]} and {design.losses[j]} did not converge; no verdict on this pair.")
    if fit.no_verdict is None and fit.method == "REML":
        base = design.losses.index(baseline)
        for i, j, effect in zip(*pairs(len(design.losses)), fit.effect, strict=True):
            if base in (i, j) and not math.isfinite(effect) and (int(i), int(j)) not in fit.failed:
                other = design.losses[j if i == base else i]
                out.append(f"{other} and {baseline} have too few runs or patients in common; no verdict on {other}.")
    gone = {x: len(s.get("diverged", ())) for x, s in lost.items() if s.get("diverged")}
    if gone:
        named = ", ".join(f"{x} ({n})" for x, n in gone.items())
        out.append(f"Diverged runs, left out of means and effects: {named}.")
    if design.folds == 1 and fit.method != "patients only":
        out.append("One split: the trainings differ in their seed, not in their training patients.")
    if design.folds > 1:
        out.append(f"Training sets of folds overlap: the fold term counts {inflation:.3g} times.")
    return out
