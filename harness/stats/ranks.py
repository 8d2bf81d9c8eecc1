"""Ranks, tiers and the probability of rank 1, from the same errors as the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.stats.contrasts import ALPHA, holm
from harness.stats.design import Array, Block

DRAWS = 4000
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Ranks:
    """Per loss, in the order of the scores.

    Attributes:
        rank: 1 is best; losses with a diverged run stand behind all others. Equal scores share the better rank.
        low: Best rank that is not excluded.
        high: Worst rank that is not excluded.
        first: Probability of rank 1.
        tier: 1: not shown to be worse than the best; then the same among the rest.
    """

    rank: NDArray[np.int_]
    low: NDArray[np.int_]
    high: NDArray[np.int_]
    first: Array
    tier: NDArray[np.int_]


def ranks(score: Array, p: Array, variance: Array, df: Array, diverged: Sequence[int], draws: int = DRAWS) -> Ranks:
    """Rank losses by their scores.

    Tiers test the best against every other loss with Holm over all pairs of the losses at hand: the best is chosen from
    the data, and Holm over its own comparisons alone would forget that. The rank interval is the 95 % range of the rank
    in draws of the fitted model, widened to the ranks that these tests do not exclude, so the two never contradict.

    Args:
        score: (L,), larger is better.
        p: (L, L), two-sided, of each pair; 1 where a pair could not be compared.
        variance: (L, L), of the difference of each pair; NaN where a pair could not be compared.
        df: (L, L), its degrees of freedom.
        diverged: Number of diverged runs per loss.
        draws: From the fitted model; the seed is fixed.
    """
    losses = len(score)
    clean = np.asarray(diverged) == 0
    rank = order(score, diverged)
    tier = tiers(score, p, clean)
    sample = _draws(score, variance, df, draws)
    sample = np.where(clean, sample, sample - 1e6 * (1 + np.asarray(diverged)) * max(float(np.ptp(score)), 1.0))
    ranked = 1 + (sample[:, None, :] > sample[:, :, None]).sum(axis=2)
    first = (ranked == 1).mean(axis=0)
    low, high = np.quantile(ranked, [0.025, 0.975], axis=0, method="closest_observation").astype(int)
    i, j = np.triu_indices(losses, 1)
    adjusted = np.ones((losses, losses))
    adjusted[i, j] = adjusted[j, i] = holm(p[i, j])
    beaten = (adjusted < ALPHA) & (score[:, None] < score[None, :])
    apart = clean[None, :] & ~clean[:, None]  # a loss with a diverged run stands behind every clean one
    same = clean[:, None] == clean[None, :]
    low = np.minimum(low, 1 + (apart | (beaten & same)).sum(axis=1))
    high = np.maximum(high, losses - (apart | (beaten & same)).sum(axis=0))
    low = np.minimum(np.where(tier == 1, 1, low), rank)
    return Ranks(rank, low, np.maximum(high, rank), first, tier)


def order(score: Array, diverged: Sequence[int]) -> NDArray[np.int_]:
    """Ranks by score, larger first; the more runs diverged, the further behind. Equal scores share the better rank."""
    key = [(-d, float(s)) for d, s in zip(diverged, score, strict=True)]
    return np.array([1 + sum(other > mine for other in key) for mine in key])


def tiers(score: Array, p: Array, clean: Flags) -> NDArray[np.int_]:
    """Tier of each loss; one that is not `clean` is looked at from the second tier on.

    Args:
        score: (L,), larger is better.
        p: (L, L), two-sided.
        clean: (L,), whether no run diverged.
    """
    tier = np.zeros(len(score), dtype=int)
    level = 1
    while (tier == 0).any():
        here = np.flatnonzero((tier == 0) & (clean | (level > 1)))
        if len(here):
            best = here[int(np.argmax(score[here]))]
            i, j = np.triu_indices(len(here), 1)
            adjusted = np.ones((len(here), len(here)))
            if len(i):
                adjusted[i, j] = adjusted[j, i] = holm(p[here[i], here[j]])
            row = adjusted[int(np.flatnonzero(here == best)[0])]
            tier[here[row >= ALPHA]] = level
        level += 1
    return tier


def _draws(score: Array, variance: Array, df: Array, draws: int) -> Array:
    """Scores drawn from a multivariate t with the pairs' variances and their median degrees of freedom."""
    losses = len(score)
    off = ~np.eye(losses, dtype=bool)
    known = np.isfinite(variance) & off
    v = np.where(known, variance, np.max(variance[known], initial=0.0))
    np.fill_diagonal(v, 0.0)
    h = np.eye(losses) - 1 / losses
    values, vectors = np.linalg.eigh(-h @ v @ h / 2)
    # the symmetric root does not depend on the signs of the eigenvectors, which differ between machines
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    rng = np.random.default_rng(0)
    nu = float(np.median(df[known])) if known.any() else 1.0
    z = rng.normal(size=(draws, losses)) @ root
    return np.asarray(score + z * np.sqrt(nu / rng.chisquare(nu, size=(draws, 1))))


def run_ranks(blocks: Sequence[Block], higher_is_better: bool, diverged: Sequence[frozenset[tuple[int, int]]]) -> Array:
    """Mean over runs of the rank within a run by the run's mean; a diverged run is last in its run. NaN without runs.

    Args:
        blocks: One per fold.
        higher_is_better: Direction.
        diverged: Per loss, the runs (fold, seed) that diverged.
    """
    losses = blocks[0].values.shape[0]
    found: list[list[float]] = [[] for _ in range(losses)]
    planned = {run for runs in diverged for run in runs}
    for block in blocks:
        planned |= {(block.fold, s) for s in block.seeds}
    for fold, seed in sorted(planned):
        mean = np.full(losses, np.nan)
        for block in blocks:
            if block.fold == fold and seed in block.seeds:
                part = block.values[:, block.seeds.index(seed)]
                count = (~np.isnan(part)).sum(axis=1)
                mean = np.where(count > 0, np.nansum(part, axis=1) / np.maximum(count, 1), np.nan)
        lost = np.array([(fold, seed) in runs for runs in diverged])
        worst = -np.inf if higher_is_better else np.inf
        value = np.where(lost, worst, mean) * (1 if higher_is_better else -1)
        for loss in np.flatnonzero(~np.isnan(value)):
            better, equal = (value > value[loss]).sum(), (value == value[loss]).sum()
            found[loss].append(1 + float(better) + (float(equal) - 1) / 2)
    return np.array([float(np.mean(f)) if f else np.nan for f in found])


def mean_ranks(per_metric: Sequence[Sequence[float]]) -> list[float]:
    """Ranks over several metrics: the mean of the ranks by each, equal weights."""
    return [float(np.mean(r)) for r in zip(*per_metric, strict=True)]


def bootstrap_first(blocks: Sequence[Block], higher_is_better: bool, draws: int = 1000) -> Array:
    """Share of two-level bootstrap samples (runs, then patients) in which each loss has rank 1: a check, not a result.

    With few runs it is too sure of itself: it never sees a run that it has not drawn from.

    Args:
        blocks: Complete, one per fold; with several, folds are drawn too.
        higher_is_better: Direction.
        draws: Number of samples; the seed is fixed.
    """
    rng = np.random.default_rng(0)
    folds = len(blocks)
    times = rng.multinomial(folds, np.full(folds, 1 / folds), size=draws)
    total = np.zeros((draws, blocks[0].values.shape[0]))
    for f, block in enumerate(blocks):
        _, s, n = block.values.shape
        seeds = rng.multinomial(s, np.full(s, 1 / s), size=draws) / s
        people = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
        means = np.einsum("ds,lsp,dp->dl", seeds, block.values, people, optimize=True)
        total += times[:, f, None] * means
    best = total == (total.max(axis=1, keepdims=True) if higher_is_better else total.min(axis=1, keepdims=True))
    return np.asarray((best / best.sum(axis=1, keepdims=True)).mean(axis=0))
