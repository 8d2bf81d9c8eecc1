"""Closed forms for complete grids: mean squares of loss × patient × run, and the variance of a difference of losses.

Model: value = loss + patient + run + run×patient + loss×run + loss×patient + residual. A run is a fold and a seed. What
is the same for all losses (patient, run, run×patient) is removed first by centring over the losses, because differences
of losses do not contain it. All functions take leading axes, so that a simulation runs many replicates at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.stats.design import Array

TWO_LOSSES_CAP = 1.5
"""With two losses: the most degrees of freedom, in those of the runs. See docs/decisions/010."""
LEAST_RUN_DF = 2.0
"""With fewer degrees of freedom for the runs there is no verdict. See docs/decisions/010."""

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Stratum:
    """Mean squares and products of one source of variation, between losses.

    Attributes:
        matrix: (..., L, L), of values centred over losses. For a contrast k its own mean square is k'Mk / k'k; under
            the model with equal variances its expectation is the same for every contrast.
        df: Degrees of freedom of one contrast; of the pooled mean square L − 1 times as many.
    """

    matrix: Array
    df: float

    @property
    def losses(self) -> int:
        """Number of losses."""
        return int(self.matrix.shape[-1])

    @property
    def pooled(self) -> Array:
        """The usual mean square of the interaction, over all losses: (...)."""
        return np.asarray(np.trace(self.matrix, axis1=-2, axis2=-1) / (self.losses - 1))

    def own(self, i: Index, j: Index) -> Array:
        """Mean square of the differences of losses i and j alone, halved to the scale of `pooled`: (..., pairs)."""
        m = self.matrix
        return np.asarray((m[..., i, i] + m[..., j, j] - 2 * m[..., i, j]) / 2)


@dataclass(frozen=True)
class Strata:
    """The analysis of variance of one complete grid.

    Attributes:
        means: (..., L), over the patients of a fold, then over runs and folds.
        fold: Loss × fold; None with one fold.
        seed: Loss × seed within folds; None with one seed per fold.
        patient: Loss × patient within folds. With one seed per fold the residual is in it.
        residual: Loss × seed × patient within folds; None with one seed per fold.
        folds: Number of folds J.
        seeds: Seeds per fold S.
        patients: Harmonic mean n of the patients per fold, so that unequal folds keep the expectations.
    """

    means: Array
    fold: Stratum | None
    seed: Stratum | None
    patient: Stratum
    residual: Stratum | None
    folds: int
    seeds: int
    patients: float

    @property
    def size(self) -> float:
        """J S n: what a mean square is divided by to get the variance of a mean."""
        return self.folds * self.seeds * self.patients


@dataclass(frozen=True)
class PairError:
    """How far a difference of two losses may be off; arrays of shape (..., pairs).

    Attributes:
        variance: Of the difference, over patients and trainings, in the squared unit of the values.
        df: Its degrees of freedom.
        fixed_variance: Of the difference for these trained networks, over patients alone.
        fixed_df: Its degrees of freedom.
    """

    variance: Array
    df: Array
    fixed_variance: Array
    fixed_df: Array


def strata(blocks: Sequence[Array]) -> Strata:
    """The mean squares of a complete grid.

    Expectations for S seeds, J folds of n patients: residual σ²; loss×patient σ² + S σ²_lp; loss×seed σ² + n σ²_lr;
    loss×fold σ² + S σ²_lp + n σ²_lr + n S σ²_lf (Cornfield and Tukey 1956).

    Args:
        blocks: One array per fold, (..., loss, seed, patient), the same seeds in number, two patients or more.
    """
    losses, seeds = blocks[0].shape[-3:-1]
    counts = np.array([b.shape[-1] for b in blocks], dtype=float)
    n = float(len(counts) / (1 / counts).sum())
    means = np.mean([b.mean(axis=(-1, -2)) for b in blocks], axis=0)
    centred = [b - b.mean(axis=-3, keepdims=True) for b in blocks]
    levels = [c.mean(axis=(-1, -2)) for c in centred]
    by_patient = [c.mean(axis=-2) - m[..., None] for c, m in zip(centred, levels, strict=True)]
    patient_df = float((counts - 1).sum())
    patient = Stratum(np.asarray(seeds * sum(map(_products, by_patient)) / patient_df), patient_df)
    fold = seed = residual = None
    if len(blocks) > 1:
        between = np.stack(levels, axis=-1)
        between = between - between.mean(axis=-1, keepdims=True)
        fold = Stratum(n * seeds * _products(between) / (len(blocks) - 1), float(len(blocks) - 1))
    if seeds > 1:
        by_seed = [c.mean(axis=-1) - m[..., None] for c, m in zip(centred, levels, strict=True)]
        df = float(len(blocks) * (seeds - 1))
        seed = Stratum(np.asarray(n * sum(map(_products, by_seed)) / df), df)
        rest = [
            (c - p[..., None, :] - s[..., None] - m[..., None, None]).reshape(*c.shape[:-2], -1)
            for c, p, s, m in zip(centred, by_patient, by_seed, levels, strict=True)
        ]
        df = patient_df * (seeds - 1)
        residual = Stratum(np.asarray(sum(map(_products, rest)) / df), df)
    assert losses > 1
    return Strata(means, fold, seed, patient, residual, len(blocks), int(seeds), n)


def _products(x: Array) -> Array:
    """Sums of squares and products over the last axis: (..., L, k) → (..., L, L)."""
    return np.asarray(x @ np.swapaxes(x, -1, -2))


def pairs(losses: int) -> tuple[Index, Index]:
    """All pairs i < j."""
    i, j = np.triu_indices(losses, 1)
    return i.astype(np.intp), j.astype(np.intp)


def pair_error(found: Strata, i: Index, j: Index, inflation: float = 1.0) -> PairError:
    """Variance and degrees of freedom of the differences of losses i and j.

    One fold: 2 (A + B − E) / (R P), never less than 2 max(A, B) / (R P); B is the loss × patient mean square of the
    pair itself, A the loss × run mean square (`larger`), E the residual one. Folds: 2 [F + (c − 1) (F − W)] / (J S n),
    F loss × fold, W what remains within folds, c = 1 + J n_test / n_train because training sets overlap (Nadeau and
    Bengio 2003); never less than 2 max(F, W) / (J S n). Degrees of freedom by Satterthwaite (1946).

    Args:
        found: Of `strata`; there is a fold or a seed stratum.
        i: First losses.
        j: Second losses.
        inflation: c; 1 with one fold.
    """
    b, b_df = found.patient.own(i, j), found.patient.df
    fixed = 2 * b / found.size
    within, weight = b, b**2 / b_df
    seed, residual, fold = found.seed, found.residual, found.fold
    if seed is not None and residual is not None:
        a, a_df, e = _run_square(seed, residual, i, j)
        within, weight = combine(a, a_df, b, b_df, e)
    if fold is not None:
        f, f_df, _ = _run_square(fold, None, i, j)
        within, weight = add_folds(f, f_df, within, weight, inflation)
    df = within**2 / np.where(weight > 0, weight, np.inf)
    df = np.where(weight > 0, df, b_df)
    top = fold or seed
    assert top is not None
    if top.losses == 2:
        df = np.minimum(df, TWO_LOSSES_CAP * top.df)
    return PairError(2 * within / found.size, df, fixed, np.full_like(fixed, b_df))


def combine(a: Array, a_df: Array, b: Array, b_df: Array | float, e: Array) -> tuple[Array, Array]:
    """The run and the patient mean square in one, and its square over its degrees of freedom (Satterthwaite).

    Args:
        a: Loss × run mean square.
        a_df: Its degrees of freedom.
        b: Loss × patient mean square.
        b_df: Its degrees of freedom.
        e: Residual mean square, which is in both.
    """
    return np.maximum(b + np.maximum(a - e, 0), a), a**2 / a_df + b**2 / b_df


def add_folds(f: Array, f_df: Array, within: Array, weight: Array, inflation: float) -> tuple[Array, Array]:
    """The fold mean square with its factor, on top of what remains within folds; as `combine`."""
    more, rest = inflation * f, (inflation - 1) * within
    ahead = f > within
    square = (inflation * f) ** 2 / f_df + (inflation - 1) ** 2 * weight
    return np.where(ahead, more - rest, within), np.where(ahead, square, weight)


def _run_square(top: Stratum, residual: Stratum | None, i: Index, j: Index) -> tuple[Array, Array, Array]:
    """The larger of the pooled and the pair's own mean square, its degrees of freedom, and the residual beside it."""
    pooled, own = np.asarray(top.pooled)[..., None], top.own(i, j)
    a, df = larger(pooled, own, top.df, top.losses)
    if residual is None:
        return a, df, np.zeros_like(a)
    return a, df, np.where(own > pooled, residual.own(i, j), np.asarray(residual.pooled)[..., None])


def larger(pooled: Array, own: Array, own_df: float, losses: int) -> tuple[Array, Array]:
    """The larger of a pooled and a pair's own mean square, and its degrees of freedom.

    Where the own one is the larger, the degrees of freedom pass from the pooled ones to its own as the difference
    becomes hard to explain by chance: 1/df = w / df_pooled + (1 − w) / df_own, w = min(1, 2 p), p of the F ratio.
    """
    pooled_df = own_df * (losses - 1)
    pooled = np.broadcast_to(pooled, own.shape)
    ratio = own / np.where(pooled > 0, pooled, np.inf)
    # own and pooled are equal for two losses but for rounding, which must not decide
    ahead = ratio > 1 + 1e-9
    w = np.minimum(1.0, 2 * stats.f.sf(ratio, own_df, pooled_df))
    mixed = 1 / (w / pooled_df + (1 - w) / own_df)
    return np.maximum(pooled, own), np.where(ahead, mixed, pooled_df)


@dataclass(frozen=True)
class Source:
    """One line of the analysis of variance.

    Attributes:
        name: `patient`, `run`, `run × patient`, `loss × run`, `loss × patient`, `residual`; with folds `fold`,
            `loss × fold`, and `seed` for `run`.
        mean_square: In the squared unit of the values.
        df: Degrees of freedom.
        variance: The component, never below 0.
        sd: Its root: how far values are moved by this source alone.
    """

    name: str
    mean_square: float
    df: float
    variance: float
    sd: float


def components(blocks: Sequence[Array]) -> list[Source]:
    """The variance split: mean squares set equal to their expectations; a negative component is given as 0.

    Args:
        blocks: As in `strata`, without leading axes.
    """
    found = strata(blocks)
    size = found.patient.losses
    n, s, k = found.patients, float(found.seeds), size - 1
    one = [b.mean(axis=-3) for b in blocks]  # what all losses share: seed × patient
    levels = np.array([o.mean() for o in one])
    out: list[tuple[str, float, float, float]] = []
    b = float(found.patient.pooled)
    rows = [o.mean(axis=0) - o.mean() for o in one]
    main_patient = size * s * float(sum((r**2).sum() for r in rows)) / found.patient.df
    if found.seed is not None and found.residual is not None:
        a, e = float(found.seed.pooled), float(found.residual.pooled)
        columns = [o.mean(axis=1) - o.mean() for o in one]
        main_seed = size * n * float(sum((c**2).sum() for c in columns)) / found.seed.df
        rest = [o - o.mean() - r - c[:, None] for o, r, c in zip(one, rows, columns, strict=True)]
        both = size * float(sum((x**2).sum() for x in rest)) / found.residual.df
        name = "seed" if found.fold else "run"
        out += [
            ("patient", main_patient, found.patient.df, (main_patient - both - b + e) / (size * s)),
            (name, main_seed, found.seed.df, (main_seed - both - a + e) / (size * n)),
            ("run × patient", both, found.residual.df, (both - e) / size),
            (f"loss × {name}", a, k * found.seed.df, (a - e) / n),
            ("loss × patient", b, k * found.patient.df, (b - e) / s),
            ("residual", e, k * found.residual.df, e),
        ]
        inner, main_inner = a + b - e, main_seed + main_patient - both
    else:
        out += [
            ("patient", main_patient, found.patient.df, (main_patient - b) / size),
            ("loss × patient and residual", b, k * found.patient.df, b),
        ]
        inner, main_inner = b, main_patient
    if found.fold is not None:
        f = float(found.fold.pooled)
        main = size * n * s * float(((levels - levels.mean()) ** 2).sum()) / found.fold.df
        out += [
            ("fold", main, found.fold.df, (main - f - main_inner + inner) / (size * n * s)),
            ("loss × fold", f, k * found.fold.df, (f - inner) / (n * s)),
        ]
    return [Source(name, ms, df, max(v, 0.0), float(np.sqrt(max(v, 0.0)))) for name, ms, df, v in out]
