"""The profile `area`: its tables and numbers against surface-distance, cases by hand, and what it costs."""

from itertools import permutations, product
from math import sqrt

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from shapes import ZOO, blob, marked
from surface_distance import lookup_tables

from harness.metrics import area
from harness.metrics.engines import tools_of
from harness.metrics.surface import Grid

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # in surface-distance
POINTS = tools_of("points").distances
EXACT = {"simpleitk": {"rel": 3e-5, "abs": 1e-4}, "points": {"rel": 1e-9}, "points-numba": {"rel": 1e-9}}


def grid_of(shape, spacing):
    if len(shape) == 2:
        return Grid((1, *shape), (1.0, *spacing))
    return Grid(shape, spacing)


def surfels_of(mask, spacing, asked=None):
    surface = mask & ~ndimage.binary_erosion(mask)

    def inside(voxels):
        if asked is not None:
            asked.append(voxels.size)
        return mask.reshape(-1)[voxels]

    return area.surfels(np.flatnonzero(surface), inside, grid_of(mask.shape, spacing), flat=mask.ndim == 2)


def measure(pred, ref, spacing, engine=POINTS):
    return area.area_distances(surfels_of(pred, spacing), surfels_of(ref, spacing), engine)


def reduced(distances, tolerance):
    return {name: reduction(distances, tolerance) for name, reduction in area.REDUCTIONS.items()}


def theirs(pred, ref, spacing, tolerance):
    found = surface_distance.compute_surface_distances(ref, pred, spacing)
    asd_reverse, asd = surface_distance.compute_average_surface_distance(found)
    areas = found["surfel_areas_pred"].sum(), found["surfel_areas_gt"].sum()
    return {
        "hd": surface_distance.compute_robust_hausdorff(found, 100),
        "hd95": surface_distance.compute_robust_hausdorff(found, 95),
        "asd": asd,
        "asd_reverse": asd_reverse,
        "assd": (asd * areas[0] + asd_reverse * areas[1]) / sum(areas),
        "masd": (asd + asd_reverse) / 2,
        "nsd": surface_distance.compute_surface_dice_at_tolerance(found, tolerance),
    }


@pytest.mark.parametrize("pair", ZOO, ids=repr)
def test_numbers_are_those_of_surface_distance(pair, engine):
    tolerance = 1.1 * min(pair.spacing) + 1e-3  # at no distance, so float32 cannot change sides
    mine = reduced(measure(pair.pred, pair.ref, pair.spacing, tools_of(engine).distances), tolerance)
    assert mine == pytest.approx(theirs(pair.pred, pair.ref, pair.spacing, tolerance), **EXACT[engine])


@pytest.mark.parametrize("pair", ZOO, ids=repr)
def test_elements_are_those_of_surface_distance(pair):
    found = surface_distance.compute_surface_distances(pair.ref, pair.pred, pair.spacing)
    mine = measure(pair.pred, pair.ref, pair.spacing)
    for distances, areas, to, weight in (
        (mine.pred_to_ref, mine.pred_areas, "distances_pred_to_gt", "surfel_areas_pred"),
        (mine.ref_to_pred, mine.ref_areas, "distances_gt_to_pred", "surfel_areas_gt"),
    ):
        assert np.sort(distances) == pytest.approx(found[to], rel=1e-9, abs=1e-12)
        assert np.sort(areas) == pytest.approx(np.sort(found[weight]), rel=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.7, 1.3, 2.1)])
def test_areas_are_those_of_surface_distance_for_every_code(spacing):
    table = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    turned = [int(f"{code:08b}"[::-1], 2) for code in range(256)]  # its first corner is the highest bit
    assert area.surface_areas(spacing) == pytest.approx(table[turned], rel=1e-14)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 0.8), (0.7, 2.1)])
def test_lengths_are_those_of_surface_distance_for_every_code(spacing):
    table = lookup_tables.create_table_neighbour_code_to_contour_length(spacing)
    turned = [int(f"{code:04b}"[::-1], 2) for code in range(16)]
    assert area.contour_lengths(spacing) == pytest.approx(table[turned], rel=1e-14)


def test_areas_do_not_depend_on_the_order_or_direction_of_the_axes():
    spacing = (1.0, 2.0, 3.0)
    areas = area.surface_areas(spacing)
    for axes in permutations(range(3)):
        turned = area.surface_areas(tuple(spacing[a] for a in axes))
        for steps in product((1, -1), repeat=3):
            for code in range(256):
                cube = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
                other = cube.transpose(axes)[tuple(slice(None, None, s) for s in steps)].ravel()
                assert turned[int((other << np.arange(8)).sum())] == pytest.approx(areas[code], rel=1e-12)


def test_one_voxel_in_a_corner_of_the_array():
    found = surfels_of(marked((2, 3, 4), (0, 0, 0)), (1.0, 1.0, 1.0))
    assert found.grid.shape == (3, 4, 5)
    assert found.cells.tolist() == [z * 20 + y * 5 + x for z, y, x in product((0, 1), repeat=3)]
    assert found.areas == pytest.approx([sqrt(3) / 8] * 8)  # an equilateral triangle of side sqrt(1/2)


def test_one_pixel():
    found = surfels_of(marked((3, 3), (1, 1)), (3.0, 4.0))
    assert found.grid.shape == (1, 4, 4)
    assert found.cells.tolist() == [5, 6, 9, 10]
    assert found.areas == pytest.approx([2.5] * 4)  # half of the diagonal of 3 by 4


def test_two_voxels_three_apart():
    spacing = (1.0, 1.0, 2.0)
    values = reduced(measure(marked((1, 1, 5), (0, 0, 0)), marked((1, 1, 5), (0, 0, 3)), spacing), 4.0)
    # cells at x = 0 and 1 against 3 and 4, equal areas, 2 mm a step: half of them at 6 mm, half at 4 mm
    assert values == pytest.approx({"hd": 6, "hd95": 6, "asd": 5, "asd_reverse": 5, "assd": 5, "masd": 5, "nsd": 0.5})


def test_percentile_is_by_area_and_not_interpolated():
    distances = np.array([3.0, 1.0, 2.0])
    one = area.AreaDistances(distances, np.zeros(1), pred_areas=np.array([4.0, 95.0, 1.0]), ref_areas=np.ones(1))
    assert area.REDUCTIONS["hd95"](one, None) == 1.0
    one = area.AreaDistances(distances, np.zeros(1), pred_areas=np.array([4.0, 94.5, 1.5]), ref_areas=np.ones(1))
    assert area.REDUCTIONS["hd95"](one, None) == 2.0
    one = area.AreaDistances(np.zeros(1), distances, pred_areas=np.ones(1), ref_areas=np.array([6.0, 90.0, 4.0]))
    assert area.REDUCTIONS["hd95"](one, None) == 3.0
    assert area.REDUCTIONS["asd_reverse"](one, None) == pytest.approx((18 + 90 + 8) / 100)
    assert area.REDUCTIONS["assd"](one, None) == pytest.approx((18 + 90 + 8) / 101)
    assert area.REDUCTIONS["nsd"](one, 2.0) == pytest.approx(95 / 101)


def test_the_work_grows_with_the_surface_and_not_with_the_volume():
    small, large = np.zeros((16, 16, 16), bool), np.zeros((40, 80, 120), bool)
    ball = blob((10, 10, 10), 3, 0.4)
    asked = []
    for volume in (small, large):
        volume[3:13, 3:13, 3:13] = ball
        asked.append([])
        surfels_of(volume, (1.0, 1.0, 1.0), asked[-1])
    surface = np.count_nonzero(ball & ~ndimage.binary_erosion(ball))
    assert sum(asked[0]) == sum(asked[1]) <= 64 * surface


@pytest.mark.parametrize("pair", [p for p in ZOO if p.name in ("blobs1", "full-and-core", "checkerboards")], ids=repr)
def test_blocks_do_not_show(pair, monkeypatch):
    whole = surfels_of(pair.pred, pair.spacing)
    monkeypatch.setattr(area, "BLOCK", 7)
    pieces = surfels_of(pair.pred, pair.spacing)
    assert pieces.cells.dtype == whole.cells.dtype == np.intp
    assert np.array_equal(pieces.cells, whole.cells) and np.array_equal(pieces.areas, whole.areas)


SMALL = st.integers(2, 3).flatmap(
    lambda ndim: st.tuples(*[arrays(bool, (3,) * ndim, elements=st.booleans()).filter(np.any)] * 2)
)


@settings(max_examples=60)
@given(SMALL, st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.8, 0.8)]))
def test_small_masks_agree_and_know_no_side_and_no_place(masks, spacing):
    pred, ref = masks
    spacing = spacing[3 - pred.ndim :]
    values = reduced(measure(pred, ref, spacing), 1.0)
    assert values == pytest.approx(theirs(pred, ref, spacing, 1.0), rel=1e-9)
    swapped = reduced(measure(ref, pred, spacing), 1.0)
    swapped["asd"], swapped["asd_reverse"] = swapped["asd_reverse"], swapped["asd"]
    assert swapped == pytest.approx(values, rel=1e-9)
    moved = reduced(measure(np.pad(pred, (2, 1)), np.pad(ref, (2, 1)), spacing), 1.0)
    assert moved == pytest.approx(values, rel=1e-9)
    assert values["hd95"] <= values["hd"]
