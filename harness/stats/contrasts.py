"""Effects of losses with their intervals, tests, and Holm's adjustment. Leading axes are replicates."""

from __future__ import annotations

import numpy as np
from scipy import stats

from harness.stats.design import Array

LEVEL = 0.95
ALPHA = 0.05


def p_values(effect: Array, variance: Array, df: Array) -> Array:
    """Two-sided p of a t test; 1 where neither the effect nor its error is above 0."""
    se = np.sqrt(variance)
    t = np.abs(effect) / np.where(se > 0, se, 1.0)
    t = np.where(se > 0, t, np.where(effect == 0, 0.0, np.inf))
    return np.asarray(2 * stats.t.sf(t, df))


def interval(effect: Array, variance: Array, df: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Lower and upper end of the t interval."""
    half = np.sqrt(variance) * stats.t.ppf(0.5 + level / 2, df)
    return effect - half, effect + half


def holm(p: Array) -> Array:
    """Holm's (1979) adjusted p values over the last axis: at 0.05 the chance of any false finding is at most 5 %."""
    m = p.shape[-1]
    order = np.argsort(p, axis=-1, kind="stable")
    rising = np.take_along_axis(p, order, axis=-1) * (m - np.arange(m))
    adjusted = np.minimum(np.maximum.accumulate(rising, axis=-1), 1.0)
    out = np.empty_like(adjusted)
    np.put_along_axis(out, order, adjusted, axis=-1)
    return out


def equivalence_p(effect: Array, variance: Array, df: Array, rope: float) -> Array:
    """Test of "the difference is at least ±rope", its p: the larger of two one-sided tests (Schuirmann 1987)."""
    se = np.sqrt(variance)
    inside = (rope - np.abs(effect)) / np.where(se > 0, se, 1.0)
    inside = np.where(se > 0, inside, np.where(np.abs(effect) < rope, np.inf, -np.inf))
    return np.asarray(stats.t.sf(inside, df))
