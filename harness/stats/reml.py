"""Grids with gaps: the same model for the differences of two losses, fitted by REML (Patterson and Thompson 1971).

The differences of two losses contain neither patient nor run nor run×patient, so what is left of the model is small:
difference = effect + fold + seed + patient + residual, over the cells that both losses have. With no gap the estimates
are those of the closed forms. Written here, because it is two or three parameters per pair, and no dependency has this
model with the degrees of freedom that the closed forms use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from harness.stats.crossed import Index, PairError, add_folds, combine, larger
from harness.stats.design import Array, Block

_STARTS = (0.3, 1.0)
_LARGEST = 1e3  # ratio of two SDs beyond which a term is everything


@dataclass(frozen=True)
class PairFit:
    """One pair.

    Attributes:
        effect: Generalised least squares mean of second − first.
        components: Variances of fold, seed, patient, residual, of the differences; 0 for a term that is not there.
        weights: How each of them enters the variance of the effect: variance = Σ weight × component.
        run_df: Degrees of freedom of the seeds within folds.
        fold_df: Of the folds.
        patient_df: Of the patients within folds.
        converged: Whether the likelihood's maximum was found.
    """

    effect: float
    components: Array
    weights: Array
    run_df: float
    fold_df: float
    patient_df: float
    converged: bool


@dataclass(frozen=True)
class GapFit:
    """All pairs asked for.

    Attributes:
        effect: Second − first; NaN for a pair without two common runs and two common patients per fold.
        error: As of the closed forms; NaN likewise.
        failed: Pairs whose fit did not converge.
    """

    effect: Array
    error: PairError
    failed: tuple[tuple[int, int], ...]


def fit(blocks: Sequence[Block], i: Index, j: Index, losses: int, inflation: float = 1.0) -> GapFit:
    """Fit every pair and put variance and degrees of freedom together by the rules of `crossed.pair_error`.

    The pooled run (or fold) mean square is the mean over the pairs.

    Args:
        blocks: One per fold, with NaN where there is no value.
        i: First losses.
        j: Second losses.
        losses: Number of losses.
        inflation: Nadeau and Bengio's factor.
    """
    fits = [fit_pair([b.values[y] - b.values[x] for b in blocks]) for x, y in zip(i, j, strict=True)]
    good = [f for f in fits if f is not None and f.converged]
    failed = tuple((int(x), int(y)) for x, y, f in zip(i, j, fits, strict=True) if f is not None and not f.converged)
    out = np.full((5, len(fits)), np.nan)
    if good:
        pooled = np.mean([f.components for f in good], axis=0)
        for k, f in enumerate(fits):
            if f is not None and f.converged:
                out[:, k] = f.effect, *_error(f, pooled, losses, inflation)
    return GapFit(out[0], PairError(*out[1:]), failed)


def _error(f: PairFit, pooled: Array, losses: int, inflation: float) -> tuple[float, float, float, float]:
    fold, seed, patient, rest = (np.array([x]) for x in f.weights * f.components)
    fold_all, seed_all, patient_all, rest_all = (np.array([x]) for x in f.weights * pooled)
    b = patient + rest
    within, weight = b, b**2 / f.patient_df
    if f.run_df > 0:
        own, shared = seed + rest, seed_all + rest_all
        a, a_df = larger(shared, own, f.run_df, losses)
        within, weight = combine(a, a_df, b, f.patient_df, np.where(own > shared, rest, rest_all))
    if f.fold_df > 0:
        own, shared = fold + seed + patient + rest, fold_all + seed_all + patient_all + rest_all
        total, total_df = larger(shared, own, f.fold_df, losses)
        within, weight = add_folds(total, total_df, within, weight, inflation)
    df = float(within[0] ** 2 / weight[0]) if weight[0] > 0 else f.patient_df
    return float(within[0]), df, float(b[0]), f.patient_df


def fit_pair(differences: Sequence[Array]) -> PairFit | None:
    """REML for the differences of one pair.

    Args:
        differences: One array seed × patient per fold, NaN where one of the two has no value.

    Returns:
        The fit, or None where too little is common: two runs, and two patients in a fold.
    """
    y, labels, counts = _long(differences)
    folds, seeds, patients = (len(np.unique(labels[:, k])) for k in range(3))
    fold_df, run_df, patient_df = folds - 1.0, float(seeds - folds), float(patients - folds)
    if seeds < 2 or patient_df < 1 or counts < 3:
        return None
    crossed = run_df > 0
    terms = [k for k, there in ((0, folds > 1), (1, crossed), (2, crossed)) if there]
    z = np.concatenate([_indicators(labels[:, k]) for k in terms], axis=1)
    sizes = [len(np.unique(labels[:, k])) for k in terms]
    zz, zy, zx = z.T @ z, z.T @ y, z.sum(axis=0)

    def solve(roots: Array) -> tuple[float, float, float, float]:
        """Log determinant, x'V⁻¹x, the effect, and the weighted sum of squares, in units of the residual variance."""
        d = np.repeat(np.abs(roots), sizes)
        m = np.eye(len(d)) + d[:, None] * zz * d
        half = np.linalg.cholesky(m)
        left = np.linalg.solve(half, np.stack([d * zy, d * zx], axis=1))
        xx = len(y) - float(left[:, 1] @ left[:, 1])
        xy = float(y.sum()) - float(left[:, 1] @ left[:, 0])
        yy = float(y @ y) - float(left[:, 0] @ left[:, 0])
        return 2 * float(np.log(np.diag(half)).sum()), xx, xy / xx, max(yy - xy * xy / xx, 0.0)

    centre, scale = float(y.mean()), float(y.std())
    if scale <= 1e-12 * max(1.0, abs(centre)):
        return PairFit(centre, np.zeros(4), np.full(4, 1 / len(y)), run_df, fold_df, patient_df, True)
    # a unit variance keeps the search away from numbers that are small only because of the metric's unit
    y = (y - centre) / scale
    zy = z.T @ y

    def deviance(roots: Array) -> float:
        log_det, xx, _, squares = solve(roots)
        return log_det + float(np.log(xx)) + (len(y) - 1) * float(np.log(max(squares, 1e-300)))

    tries = [
        optimize.minimize(deviance, np.full(len(terms), s), method="L-BFGS-B", bounds=[(0.0, _LARGEST)] * len(terms))
        for s in _STARTS
    ]
    best = min(tries, key=lambda t: float(t.fun))
    roots = np.asarray(best.x, dtype=float)
    _, xx, effect, squares = solve(roots)
    residual = squares / (len(y) - 1) * scale**2
    found, weights = np.zeros(4), np.zeros(4)
    gls = _weights(z, np.repeat(roots, sizes), xx)
    for k, root, part in zip(terms, roots, np.split(z, np.cumsum(sizes)[:-1], axis=1), strict=True):
        found[k], weights[k] = root**2 * residual, float(((part.T @ gls) ** 2).sum())
    found[3], weights[3] = residual, float(gls @ gls)
    stuck = bool((roots >= _LARGEST * 0.999).any())
    return PairFit(
        centre + scale * effect, found, weights, run_df, fold_df, patient_df, bool(best.success) and not stuck
    )


def _weights(z: Array, d: Array, xx: float) -> Array:
    """Weights of the values in the generalised least squares mean; they sum to 1."""
    scaled = z * d
    inner = np.linalg.solve(np.eye(len(d)) + scaled.T @ scaled, scaled.sum(axis=0))
    return np.asarray((1 - scaled @ inner) / xx)


def _long(differences: Sequence[Array]) -> tuple[Array, Index, int]:
    """Values, their fold, run and patient as numbers, and how many there are."""
    values, labels = [], []
    run = patient = 0
    for fold, d in enumerate(differences):
        s, p = np.nonzero(~np.isnan(d))
        values.append(d[s, p])
        labels.append(np.stack([np.full(len(s), fold), run + s, patient + p], axis=1))
        run, patient = run + d.shape[0], patient + d.shape[1]
    y = np.concatenate(values)
    return y, np.concatenate(labels).astype(np.intp), len(y)


def _indicators(labels: Index) -> Array:
    return np.asarray(labels[:, None] == np.unique(labels)[None, :], dtype=float)
