"""The engines on point sets: exact nearest distances, whatever lies far away, and what they cost in memory."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from harness.metrics import maurer, points
from harness.metrics.surface import Grid

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.71, 1.37, 2.05), (1e-4, 0.1, 1e-4), (2e6, 5e5, 1e6)]


def cloud(mask):
    return np.flatnonzero(mask).astype(np.intp)


def brute(a, b, grid):
    pairs = cdist(grid.coordinates(a).T * grid.spacing, grid.coordinates(b).T * grid.spacing)
    return pairs.min(1), pairs.min(0)


def pairs(shape, seed):
    """Point sets near each other, far apart, with islands, on the border, and of one point."""
    rng = np.random.default_rng(seed)
    zyx = np.indices(shape)
    ball = np.sqrt(sum((x - n * 0.3) ** 2 for x, n in zip(zyx, shape, strict=True))) < min(shape) * 0.3
    moved = np.roll(ball, (1, -2, 3), (0, 1, 2))
    island = np.zeros(shape, bool)
    island[-2:, -3:, -2:] = True
    one = np.zeros(shape, bool)
    one[tuple(n // 2 for n in shape)] = True
    face = np.zeros(shape, bool)
    face[0] = face[:, -1] = True
    sparse = rng.random(shape) > 0.99
    sparse[0, 0, 0] = True
    yield "near", ball, moved
    yield "with an island", moved | island, ball
    yield "islands in both", moved | island, ball | one
    yield "apart", ball, island
    yield "one and one", one, island & (rng.random(shape) > 0.5) | np.roll(one, -3, 2)
    yield "border", face, ball
    yield "sparse", sparse, rng.random(shape) > 0.9
    yield "solid block", np.ones(shape, bool), one  # more than an edge: a cloud may be any set


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(14, 24, 30), (1, 25, 40), (30, 9, 12)])
@pytest.mark.parametrize("large", [2**21, 1])
def test_nearest_distances(shape, spacing, large, monkeypatch):
    monkeypatch.setattr(maurer, "LARGE", large)  # 1: the map covers what both boxes share, the rest goes to the tree
    monkeypatch.setattr(maurer, "MARGIN", 2)
    grid = Grid(shape, spacing)
    unit = max(spacing) * max(shape)
    for name, pred, ref in pairs(shape, 0):
        if not (pred.any() and ref.any()):
            continue
        a, b = cloud(pred), cloud(ref)
        want = brute(a, b, grid)
        for engine, tolerance in ((points, 1e-12), (maurer, 3e-5)):
            got = engine.distances(a, b, grid)
            for mine, true in zip((got.pred_to_ref, got.ref_to_pred), want, strict=True):
                np.testing.assert_allclose(
                    mine, true, rtol=tolerance, atol=1e-7 * unit * (engine is maurer), err_msg=name
                )


def test_the_window_is_what_both_share_when_islands_blow_the_box_up():
    grid = Grid((100, 200, 200), (3.0, 0.8, 0.8))
    ball = sum((x - 40) ** 2 for x in np.indices((80, 80, 80))) < 900
    pred, ref = np.zeros((2, *grid.shape), bool)
    ref[5:85, 20:100, 20:100] = ball
    pred[5:85, 22:102, 21:101] = ball
    pred[97:99, 190:195, 190:195] = True
    at = [grid.coordinates(cloud(m)) for m in (pred, ref)]
    low, high = maurer._window(*at)
    assert np.prod(at[0].max(1) - at[0].min(1) + 1) > maurer.LARGE > np.prod(high - low + 1)
    assert (low >= at[1].min(1) - maurer.MARGIN).all() and (high <= at[1].max(1) + maurer.MARGIN).all()


def test_an_offset_is_tried_only_where_no_shorter_one_is_left_out():
    for spacing in (*SPACINGS, (1e-9, 1.0, 1e9)):
        offsets, lengths = points._offsets(spacing, (False, False, False))
        assert 1 <= offsets.shape[1] <= points.OFFSETS
        assert (np.diff(lengths) >= 0).all() and lengths[0] == 0
        reach = 2 * points.REACH
        every = np.stack([x.ravel() for x in np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij")])
        shorter = np.linalg.norm(every * np.array(spacing)[:, None], axis=0) < lengths[-1] * (1 - 1e-9)
        tried = {tuple(o) for o in offsets.T.tolist()}
        assert {tuple(o) for o in every[:, shorter].T.tolist()} <= tried


def test_clouds_are_not_changed():
    grid = Grid((6, 7, 8), (1.0, 2.0, 3.0))
    a, b = (cloud(np.random.default_rng(s).random(grid.shape) > 0.8) for s in (0, 1))
    before = a.copy(), b.copy()
    a.setflags(write=False), b.setflags(write=False)
    for engine in (points, maurer):
        engine.distances(a, b, grid)
    assert np.array_equal(a, before[0]) and np.array_equal(b, before[1])
