"""The closed forms against numbers by hand, an analysis of variance by least squares, and REML."""

import itertools

import numpy as np
import pytest
from scipy import stats

from harness.stats import reml
from harness.stats.contrasts import equivalence_p, holm, interval, p_values
from harness.stats.crossed import components, larger, pair_error, pairs, strata
from harness.stats.design import Block
from harness.stats.simulate import Setting, draw

FIRST, SECOND = np.array([0]), np.array([1])


def test_two_losses_two_runs_two_patients_by_hand():
    first = np.array([[1.0, 2.0], [3.0, 4.0]])  # run × patient
    difference = np.array([[1.0, 0.0], [2.0, 5.0]])  # mean 2, of runs 0.5 and 3.5, of patients 1.5 and 2.5
    found = strata([np.stack([first, first + difference])])
    # mean squares of the differences are 9, 1 and 4; on the scale of single values half of that
    assert [float(s.pooled) for s in (found.seed, found.patient, found.residual)] == pytest.approx([4.5, 0.5, 2.0])
    error = pair_error(found, FIRST, SECOND)
    # 4.5 + 0.5 − 2 = 3 is less than 4.5 alone, which therefore counts: 2 × 4.5 / (2 × 2)
    assert error.variance == pytest.approx([2.25])
    assert error.df == pytest.approx([4.5**2 / (4.5**2 / 1 + 0.5**2 / 1)])
    assert error.fixed_variance == pytest.approx([2 * 0.5 / 4])
    assert error.fixed_df == pytest.approx([1.0])


def test_two_folds_by_hand():
    difference = [np.array([[1.0, 3.0]]), np.array([[5.0, 7.0]])]  # means 2 and 6, of all 4
    found = strata([np.stack([np.zeros((1, 2)), d]) for d in difference])
    assert found.means[1] - found.means[0] == pytest.approx(4.0)
    assert float(found.fold.pooled) == pytest.approx(2 * (4 + 4) / 2)
    assert float(found.patient.pooled) == pytest.approx(4 / 2 / 2)
    # n_test / n_train = 1: the run part, 8 − 1, counts 3 times
    error = pair_error(found, FIRST, SECOND, inflation=3.0)
    assert error.variance == pytest.approx([2 * (1 + 3 * 7) / 4])
    assert error.df == pytest.approx([22**2 / (24**2 / 1 + 2**2 / 2)])


def _rss(design: list[np.ndarray], y: np.ndarray) -> float:
    x = np.concatenate(design, axis=1)
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())


def _dummies(*labels: np.ndarray) -> np.ndarray:
    key = np.stack(labels, axis=1)
    _, where = np.unique(key, axis=0, return_inverse=True)
    return np.eye(where.max() + 1)[where.ravel()]


def test_mean_squares_are_those_of_a_least_squares_analysis_of_variance():
    shape = (3, 4, 5)
    y = np.random.default_rng(0).normal(size=shape) + np.arange(4)[:, None] + np.arange(5)
    loss, run, patient = (i.ravel() for i in np.indices(shape))
    main = [_dummies(x) for x in (loss, run, patient)]
    two = {
        "loss × run": _dummies(loss, run), "loss × patient": _dummies(loss, patient), "run × patient": _dummies(run, patient),
    }  # fmt: skip
    full = _rss([*main, *two.values()], y.ravel())
    found = {s.name: s for s in components([y])}
    for name in two:
        rest = _rss([*main, *(d for n, d in two.items() if n != name)], y.ravel())
        assert found[name].mean_square == pytest.approx((rest - full) / found[name].df)
    assert found["residual"].mean_square == pytest.approx(full / found["residual"].df)
    for name, k in (("run", 1), ("patient", 2)):
        without = _rss([m for i, m in enumerate(main) if i != k], y.ravel())
        assert found[name].mean_square == pytest.approx((without - _rss(main, y.ravel())) / found[name].df)
    assert sum(s.df for s in found.values()) == y.size - 3


def test_nested_mean_squares_are_those_of_least_squares():
    y = np.random.default_rng(1).normal(size=(3, 4, 2, 5))  # loss × fold × seed × patient
    loss, fold, seed, patient = (i.ravel() for i in np.indices(y.shape))
    terms = {
        "fold": (fold,), "seed": (fold, seed), "patient": (fold, patient), "run × patient": (fold, seed, patient),
        "loss": (loss,), "loss × fold": (loss, fold), "loss × seed": (loss, fold, seed),
        "loss × patient": (loss, fold, patient), "residual": (loss, fold, seed, patient),
    }  # fmt: skip
    found = {s.name: s for s in components([y[:, f] for f in range(4)])}
    # balanced: a term's sum of squares is what it takes off once all terms that it contains are in
    inside = {
        "fold": [], "seed": ["fold"], "patient": ["fold"], "run × patient": ["seed", "patient"], "loss": [],
        "loss × fold": ["fold", "loss"], "loss × seed": ["seed", "loss × fold"], "loss × patient": ["patient", "loss × fold"],
        "residual": ["run × patient", "loss × seed", "loss × patient"],
    }  # fmt: skip
    for name, source in found.items():
        below = [np.ones((y.size, 1)), *(_dummies(*terms[n]) for n in inside[name])]
        drop = _rss(below, y.ravel()) - _rss([*below, _dummies(*terms[name])], y.ravel())
        assert source.mean_square == pytest.approx(drop / source.df), name


@pytest.mark.parametrize(("seeds", "folds"), [(3, 1), (1, 5), (2, 4)])
def test_effects_and_errors_do_not_depend_on_scale_shift_or_what_all_losses_share(seeds, folds):
    blocks = draw(Setting(4, seeds, 16, folds), 1, np.random.default_rng(2))
    i, j = pairs(4)
    plain = pair_error(strata(blocks), i, j, 1.5)
    rng = np.random.default_rng(3)
    moved = [7 * (b + rng.normal(size=(1, 1, *b.shape[-2:]))) - 2 for b in blocks]
    other = pair_error(strata(moved), i, j, 1.5)
    assert other.variance == pytest.approx(49 * plain.variance)
    assert other.df == pytest.approx(plain.df)


def test_a_leading_axis_is_the_same_as_one_at_a_time():
    blocks = draw(Setting(3, 2, 9, 3), 5, np.random.default_rng(4))
    i, j = pairs(3)
    many = pair_error(strata(blocks), i, j, 1.5)
    for k in range(5):
        one = pair_error(strata([b[k] for b in blocks]), i, j, 1.5)
        assert many.variance[k] == pytest.approx(one.variance)
        assert many.df[k] == pytest.approx(one.df)


def test_folds_of_unequal_size_keep_the_expectations():
    rng = np.random.default_rng(5)
    sizes, run, rest = (3, 5, 10), 0.3, 1.0
    blocks = [rng.normal(size=(40000, 2, 1, n)) * rest + rng.normal(size=(40000, 2, 1, 1)) * run for n in sizes]
    found = strata(blocks)
    assert found.patients == pytest.approx(3 / (1 / 3 + 1 / 5 + 1 / 10))
    assert found.patient.pooled.mean() == pytest.approx(rest**2, rel=0.02)
    assert found.fold.pooled.mean() == pytest.approx(rest**2 + found.patients * run**2, rel=0.03)
    difference = found.means[:, 1] - found.means[:, 0]
    assert difference.var() == pytest.approx(2 * found.fold.pooled.mean() / found.size, rel=0.04)


def test_the_own_mean_square_counts_where_it_is_larger_with_fewer_degrees_of_freedom():
    pooled = np.full(3, 2.0)
    square, df = larger(pooled, np.array([1.0, 2.2, 40.0]), own_df=4, losses=6)
    assert square == pytest.approx([2.0, 2.2, 40.0])
    assert df[0] == 20
    assert 4 < df[1] <= 20
    assert df[2] == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(("seeds", "folds"), [(5, 1), (2, 4)])
def test_reml_without_gaps_gives_the_closed_forms(seeds, folds):
    setting = Setting(3, seeds, 12 * folds, folds, run_sd=0.03, patient_sd=0.03)
    i, j = pairs(3)
    tried = 0
    for seed in range(6):
        values = [b[0] for b in draw(setting, 1, np.random.default_rng(seed))]
        found = strata(values)
        own = [s.own(i, j) for s in (found.fold, found.seed, found.patient, found.residual) if s is not None]
        inner = own[-3] + own[-2] - own[-1]
        if not ((own[-3] > own[-1]).all() and (own[-2] > own[-1]).all() and (folds == 1 or (own[0] > inner).all())):
            continue  # there REML puts a component at 0 and pools it; the closed forms take the larger mean square
        tried += 1
        blocks = [Block(f, tuple(range(seeds)), tuple(map(str, range(v.shape[-1]))), v) for f, v in enumerate(values)]
        gaps = reml.fit(blocks, i, j, 3, inflation=1.0)
        closed = pair_error(found, i, j)
        assert gaps.failed == ()
        assert gaps.effect == pytest.approx(found.means[j] - found.means[i], abs=1e-9)
        assert gaps.error.variance == pytest.approx(closed.variance, rel=1e-3)
        assert gaps.error.df == pytest.approx(closed.df, rel=2e-2)
        assert gaps.error.fixed_variance == pytest.approx(closed.fixed_variance, rel=1e-3)
    assert tried >= 2


def test_reml_with_gaps_maximises_the_likelihood_of_the_dense_model():
    rng = np.random.default_rng(6)
    d = rng.normal(size=(4, 7)) + rng.normal(size=(4, 1)) * 3 + rng.normal(size=(1, 7)) * 2 + 0.5
    d[rng.random(d.shape) < 0.2] = np.nan
    found = reml.fit_pair([d])
    s, p = np.nonzero(~np.isnan(d))
    y, same_run, same_patient = d[s, p], s[:, None] == s, p[:, None] == p
    one = np.ones(len(y))

    def deviance(c):
        v = c[1] * same_run + c[2] * same_patient + c[3] * np.eye(len(y))
        w = np.linalg.inv(v)
        xx = one @ w @ one
        effect = one @ w @ y / xx
        r = y - effect
        return np.linalg.slogdet(v)[1] + np.log(xx) + r @ w @ r, effect, 1 / xx

    best, effect, variance = deviance(found.components)
    assert found.converged
    assert found.effect == pytest.approx(effect, abs=1e-6)
    assert float(found.weights @ found.components) == pytest.approx(variance, rel=1e-6)
    for k, factor in itertools.product((1, 2, 3), (0.8, 1.25)):
        near = found.components.copy()
        near[k] *= factor
        assert deviance(near)[0] > best


def test_too_little_in_common_is_no_fit():
    one_run = np.full((3, 6), np.nan)
    one_run[1] = 0.5
    assert reml.fit_pair([one_run]) is None
    assert reml.fit_pair([np.full((1, 1), 0.2), np.full((1, 1), 0.3)]) is None


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([[0.5, 0.02], [0.6, 0.9]])) == pytest.approx(np.array([[0.5, 0.04], [1.0, 1.0]]))


def test_the_t_test_is_scipys():
    x = np.random.default_rng(7).normal(0.3, 1, size=20)
    variance, df = x.var(ddof=1) / 20, 19.0
    effect = np.array([x.mean()])
    assert p_values(effect, np.array([variance]), np.array([df])) == pytest.approx([stats.ttest_1samp(x, 0).pvalue])
    low, high = interval(effect, np.array([variance]), np.array([df]))
    known = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert (low[0], high[0]) == pytest.approx((known.low, known.high))
    upper = stats.ttest_1samp(x, 1.5, alternative="less").pvalue
    lower = stats.ttest_1samp(x, -1.5, alternative="greater").pvalue
    assert equivalence_p(effect, np.array([variance]), np.array([df]), 1.5) == pytest.approx([max(upper, lower)])
    assert p_values(np.array([0.0, 1.0]), np.zeros(2), np.ones(2)).tolist() == [1.0, 0.0]
