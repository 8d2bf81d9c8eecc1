import numpy as np
import pytest

from harness.stats.contrasts import p_values
from harness.stats.design import Block
from harness.stats.ranks import bootstrap_first, mean_ranks, ranks, run_ranks, tiers


def pairwise(score, variance, df=30.0):
    v = np.full((len(score), len(score)), variance)
    np.fill_diagonal(v, 0)
    d = np.full_like(v, df)
    p = p_values(score[:, None] - score[None, :], np.where(v > 0, v, 1.0), d)
    return p, v, d


def test_tiers_by_hand():
    score = np.array([0.90, 0.89, 0.80, 0.79, 0.10])
    p, *_ = pairwise(score, 0.01**2)
    assert tiers(score, p, np.ones(5, dtype=bool)).tolist() == [1, 1, 2, 2, 3]
    assert tiers(score, p, np.array([False, True, True, True, True])).tolist() == [2, 1, 3, 3, 4]


def test_the_best_is_chosen_from_the_data_so_all_pairs_count():
    p = np.ones((3, 3))
    p[0, 2] = p[2, 0] = 0.02  # 2 comparisons of the best: 0.04; 3 pairs: 0.06
    assert tiers(np.array([3.0, 2.0, 1.0]), p, np.ones(3, dtype=bool)).tolist() == [1, 1, 1]
    p[0, 2] = p[2, 0] = 0.016
    assert tiers(np.array([3.0, 2.0, 1.0]), p, np.ones(3, dtype=bool)).tolist() == [1, 1, 2]


def test_ranks_and_tiers_never_contradict_each_other():
    rng = np.random.default_rng(0)
    for k in range(60):
        score = rng.normal(size=5) * 0.02
        lost = [0, 0, 0, 0, int(k % 3 == 0)]
        p, v, d = pairwise(score, 0.01**2, df=6.0)
        found = ranks(score, p, v, d, lost, draws=1000)
        assert (found.low <= found.rank).all() and (found.rank <= found.high).all()
        assert (found.low[found.tier == 1] == 1).all()
        assert found.tier[int(np.argmin(found.rank))] == 1
        assert found.first.sum() == pytest.approx(1.0)
        assert (found.first[found.low > 1] < 0.05).all()


def test_probability_of_rank_one_of_two_losses_is_the_one_sided_p():
    score = np.array([0.01, 0.0])
    p, v, d = pairwise(score, 0.01**2, df=9.0)
    found = ranks(score, p, v, d, [0, 0], draws=40000)
    assert found.first[1] == pytest.approx(p[0, 1] / 2, abs=0.006)


def test_equal_losses_share_rank_one():
    p, v, d = pairwise(np.zeros(4), 1.0)
    found = ranks(np.zeros(4), p, v, d, [0] * 4)
    assert found.rank.tolist() == [1] * 4 and found.tier.tolist() == [1] * 4
    assert found.first == pytest.approx(0.25, abs=0.03)
    assert found.low.tolist() == [1] * 4 and found.high.tolist() == [4] * 4


def test_a_pair_that_could_not_be_compared_separates_nobody():
    p, v, d = pairwise(np.array([1.0, 0.5, 0.0]), 0.01**2)
    v[0, 2] = v[2, 0] = d[0, 2] = d[2, 0] = np.nan
    p[0, 2] = p[2, 0] = 1.0
    found = ranks(np.array([1.0, 0.5, 0.0]), p, v, d, [0, 0, 0])
    assert found.tier.tolist() == [1, 2, 1]


def test_rank_in_a_run_by_hand():
    values = np.array([[[0.9], [0.5]], [[0.8], [0.6]], [[0.8], [np.nan]]])  # loss × seed × patient
    block = Block(-1, (0, 1), ("p",), values)
    none = frozenset()
    assert run_ranks([block], True, [none] * 3).tolist() == [1.5, 1.25 + 0.5, 2.5]
    assert run_ranks([block], True, [none, none, frozenset({(-1, 1)})]).tolist() == [1.5, 1.75, 2.75]
    assert run_ranks([block], False, [none] * 3)[0] == 2.0


def test_ranks_over_metrics_are_averaged():
    assert mean_ranks([[1, 2, 3], [3, 2, 1]]) == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError):
        mean_ranks([[1, 2], [1, 2, 3]])


def test_the_bootstrap_sees_the_better_loss_and_splits_ties():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1, 3, 10))
    blocks = [Block(f, (0, 1, 2), tuple("abcdefghij"), np.concatenate([shared, shared, shared - 1])) for f in range(2)]
    assert bootstrap_first(blocks, True) == pytest.approx([0.5, 0.5, 0.0])
    assert bootstrap_first(blocks, False) == pytest.approx([0.0, 0.0, 1.0])
