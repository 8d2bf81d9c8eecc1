"""The short form of benchmarks/simulate_statistics.py: the same functions, fewer replicates, fixed random numbers.

The bounds leave three standard errors of the simulation above the 6 % that the long form keeps.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from harness.stats.contrasts import ALPHA, holm
from harness.stats.crossed import pair_error, pairs, strata
from harness.stats.detectable import table
from harness.stats.ranks import tiers
from harness.stats.simulate import SHAPES, Setting, analysed, draw, measure

N = 1500
BOUND = 0.06 + 3 * np.sqrt(0.06 * 0.94 / N)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seeds_folds", [(3, 1), (5, 1), (1, 5)])
@pytest.mark.parametrize("losses", [2, 6])
def test_no_more_than_six_per_cent_false_findings(shape, seeds_folds, losses):
    seeds, folds = seeds_folds
    for n, (run, patient) in enumerate(itertools.product((0.0, 0.005, 0.010), (0.0, 0.02))):
        for overlap in (0.0, 1 / folds) if folds > 1 else (0.0,):
            setting = Setting(losses, seeds, 30, folds, run, patient, shape, overlap)
            found = measure(setting, N, np.random.default_rng([losses, seeds, n]))
            assert found.replicates + found.gaps == N
            assert found.worst <= BOUND
            assert found.family <= BOUND
            assert found.coverage >= 1 - BOUND


def test_intervals_are_not_much_too_wide_where_runs_and_patients_vary():
    for n, (losses, seeds) in enumerate(itertools.product((2, 6), (3, 5))):
        found = measure(Setting(losses, seeds, 30, 1, 0.010, 0.01), N, np.random.default_rng([9, n]))
        assert 0.93 <= found.coverage <= 0.975


def test_a_test_over_patients_alone_finds_what_is_not_there():
    """The simulation must be able to fail: the usual paired test on the means over seeds errs in most replicates."""
    blocks = draw(Setting(2, 3, 30, 1, 0.010, 0.0), N, np.random.default_rng(1))
    m = blocks[0].mean(axis=2)
    assert (stats.ttest_rel(m[:, 0], m[:, 1], axis=1).pvalue < ALPHA).mean() > 0.4


def test_sharing_seeds_at_least_doubles_the_power_of_a_test_on_run_means():
    setting = Setting(6, 5, 30, 1, 0.005, 0.01)
    rng = np.random.default_rng(2)
    blocks = draw(setting, N, rng)
    blocks = [b + rng.normal(size=(N, 1, 5, 1)) * 0.009 for b in blocks]
    blocks[0][:, 1] += 0.02
    effect, variance, df = analysed(blocks, setting)
    ours = (holm(2 * stats.t.sf(np.abs(effect) / np.sqrt(variance), df))[:, 0] < ALPHA).mean()
    m = blocks[0].mean(axis=-1)
    welch = (holm(stats.ttest_ind(m[:, 1:], m[:, :1], axis=-1, equal_var=False).pvalue)[:, 0] < ALPHA).mean()
    assert ours > 0.7
    assert ours >= 2 * welch


@pytest.mark.parametrize(("seeds", "folds"), [(3, 1), (5, 1), (1, 5), (2, 5)])
def test_the_smallest_detectable_difference_is_found_in_eighty_per_cent(seeds, folds):
    setting = Setting(6, seeds, 30, folds, 0.005, 0.01, "gaussian", 0.2 if folds > 1 else 0.0)
    rng = np.random.default_rng([3, seeds, folds])
    pilot = draw(setting, 60, rng)
    said = [table(strata([b[k] for b in pilot]), setting.inflation) for k in range(60)]
    now = float(np.median([row.difference for rows in said for row in rows if row.now]))
    assert measure(setting, N, rng, shift=now).power == pytest.approx(0.8, abs=0.08)


def test_equal_losses_share_the_first_tier():
    losses, n = 6, 800
    found = strata(draw(Setting(losses, 3, 30, 1, 0.005, 0.01), n, np.random.default_rng(4)))
    i, j = pairs(losses)
    error = pair_error(found, i, j)
    p = 2 * stats.t.sf(np.abs(found.means[:, j] - found.means[:, i]) / np.sqrt(error.variance), error.df)
    apart = 0
    for k in range(n):
        square = np.ones((losses, losses))
        square[i, j] = square[j, i] = p[k]
        apart += (tiers(found.means[k], square, np.ones(losses, dtype=bool)) > 1).any()
    assert apart / n <= 0.06
