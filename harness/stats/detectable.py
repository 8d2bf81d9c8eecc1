"""The smallest difference that the comparison would find, now and with other numbers of seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from harness.stats.contrasts import ALPHA
from harness.stats.crossed import LEAST_RUN_DF, Strata, Stratum, pair_error
from harness.stats.design import Array

POWER = 0.80
DRAWS = 400


@dataclass(frozen=True)
class Detectable:
    """What a number of seeds would show.

    Attributes:
        seeds: Seeds per fold.
        difference: Found with a power of 80 % against the baseline, at Holm's first step; in the unit of the effects.
            None where there would be no verdict.
        now: Whether this is the number of seeds at hand.
    """

    seeds: int
    difference: float | None
    now: bool


@dataclass(frozen=True)
class _Parts:
    """Components between losses, none below 0, in the squared unit of the values: the truth that is assumed."""

    fold: float
    seed: float
    patient: float
    residual: float


def table(found: Strata, inflation: float, seeds: tuple[int, ...] = (2, 3, 5, 10)) -> list[Detectable]:
    """The smallest detectable difference at hand and with more seeds, from the same mean squares.

    With S seeds the loss × run and residual parts shrink as 1/S; the loss × patient and loss × fold parts stay. With
    folds and one seed the part of the seed cannot be told from that of the fold, and only the row at hand is given.

    Args:
        found: Of a complete grid, without leading axes.
        inflation: Nadeau and Bengio's factor; 1 with one fold.
        seeds: Numbers of seeds per fold to look at.
    """
    parts = _parts(found)
    counts = {found.seeds} | (set(seeds) if found.seed is not None else set())
    return [Detectable(s, _difference(found, parts, inflation, s), s == found.seeds) for s in sorted(counts)]


def _parts(found: Strata) -> _Parts:
    b, s, n = float(found.patient.pooled), found.seeds, found.patients
    seed, residual, inner = 0.0, b, b
    patient = 0.0
    if found.seed is not None and found.residual is not None:
        a, e = float(found.seed.pooled), float(found.residual.pooled)
        seed, patient, residual = max(a - e, 0.0) / n, max(b - e, 0.0) / s, e
        inner = n * seed + s * patient + e
    fold = max(float(found.fold.pooled) - inner, 0.0) / (n * s) if found.fold is not None else 0.0
    return _Parts(fold, seed, patient, residual)


def _difference(found: Strata, parts: _Parts, inflation: float, seeds: int) -> float | None:
    """Draw mean squares as they would come out, apply the rule of the tests, and look for a power of 80 %."""
    n, j, losses = found.patients, found.folds, found.patient.losses
    top_df = (j - 1 if j > 1 else seeds - 1) * (losses - 1)
    if top_df < LEAST_RUN_DF:
        return None
    rng = np.random.default_rng(0)
    a, b = n * parts.seed + parts.residual, seeds * parts.patient + parts.residual
    within = a + b - parts.residual if seeds > 1 else b
    total = within + inflation * n * seeds * parts.fold
    fold = _drawn(within + n * seeds * parts.fold, j - 1, losses, rng) if j > 1 else None
    seed = _drawn(a, j * (seeds - 1), losses, rng) if seeds > 1 else None
    patient = _drawn(b, int(found.patient.df), losses, rng)
    # with its many degrees of freedom the residual is as good as known
    centring = np.eye(losses) - 1 / losses
    residual = Stratum(np.tile(parts.residual * centring, (DRAWS, 1, 1)), found.patient.df * (seeds - 1))
    nothing = np.zeros((DRAWS, losses))
    drawn = Strata(nothing, fold, seed, patient, residual if seeds > 1 else None, j, seeds, n)
    error = pair_error(drawn, np.array([0]), np.array([1]), inflation)
    if not total > 0:
        return 0.0
    sd = float(np.sqrt(2 * total / drawn.size))
    needed = np.sqrt(error.variance) * stats.t.ppf(1 - ALPHA / (2 * (losses - 1)), error.df) / sd

    def short(shift: float) -> float:
        return float((stats.norm.sf(needed - shift) + stats.norm.cdf(-needed - shift)).mean()) - POWER

    upper = 3.0
    while short(upper) < 0:
        upper *= 1.5
    return float(optimize.brentq(short, 0.0, upper)) * sd


def _drawn(mean_square: float, df: int, losses: int, rng: np.random.Generator) -> Stratum:
    """A stratum as it comes out by chance, where its expectation is `mean_square` for every pair."""
    x: Array = rng.normal(size=(DRAWS, losses, df)) * np.sqrt(mean_square)
    x = x - x.mean(axis=1, keepdims=True)
    return Stratum(np.asarray(x @ np.swapaxes(x, 1, 2)) / df, float(df))
