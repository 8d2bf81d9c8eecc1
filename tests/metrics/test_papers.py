"""The profiles of two papers' code: restated here with medpy and SimpleITK as their authors called them."""

import numpy as np
import pytest
import SimpleITK as sitk
from medpy.metric import binary
from scipy import ndimage
from shapes import EMPTY, ZOO, blob, marked

from harness.errors import BenchError
from harness.metrics import papers
from harness.metrics.engines import tools_of
from harness.metrics.maurer import one_thread
from harness.metrics.surface import Grid

SOLID = [p for p in ZOO + EMPTY if p.pred.ndim == 3]


@pytest.fixture(autouse=True)
def single_thread():
    """ITK's threads cost more than they save on images of this size."""
    with one_thread():
        yield


def grid_of(shape, spacing):
    return Grid(shape, spacing) if len(shape) == 3 else Grid((1, *shape), (1.0, *spacing))


def cloud(mask):
    return np.flatnonzero(mask & ~ndimage.binary_erosion(mask))


def counts(pred, ref):
    return tuple(int(np.count_nonzero(m)) for m in (pred & ref, pred & ~ref, ref & ~pred))


def medpy_per_case(pred, ref):
    """TransUNet's rule, with medpy."""
    if not pred.any():
        return 0.0, 0.0
    if not ref.any():
        return 1.0, 0.0
    return binary.dc(pred, ref), binary.hd95(pred, ref)


@pytest.mark.parametrize("pair", ZOO + EMPTY, ids=repr)
def test_transunet_is_medpy_in_voxels_with_its_own_empty_masks(pair, engine):
    distances = None
    if pair.pred.any() and pair.ref.any():
        grid = grid_of(pair.pred.shape, (1.0,) * pair.pred.ndim)
        distances = tools_of(engine).distances(cloud(pair.pred), cloud(pair.ref), grid)
    mine = papers.transunet_dice(*counts(pair.pred, pair.ref)), papers.transunet_hd95(distances)
    assert mine == pytest.approx(medpy_per_case(pair.pred, pair.ref), rel=1e-6 if engine == "simpleitk" else 1e-12)


def mist_per_case(pred, ref, spacing):
    """MIST's rules on whole images: what is not finite, or raises, is the worst value, and two empty masks are 0."""
    images = []
    for mask in (pred, ref):
        images.append(sitk.GetImageFromArray(mask.astype(np.uint8)))
        images[-1].SetSpacing(spacing[::-1])
    size, sides = images[0].GetSize(), images[0].GetSpacing()
    worst = np.linalg.norm([size[0] * sides[1], size[1] * sides[2], size[2] * sides[0]])

    def distances(weights, keep):
        found = []
        for one, (weight, field) in enumerate(zip(weights, fields[::-1], strict=True)):
            masked = sitk.GetArrayFromImage(field * sitk.Cast(weight, sitk.sitkFloat32))
            kept = masked[keep(masked)]
            points = int(sitk.GetArrayFromImage(weight).sum())
            found.append(np.concatenate([kept.astype(float), np.zeros(points - kept.size)]))
            assert points == np.count_nonzero(contours[one] if weights is not images else images[one])
        return found

    def guarded(value):
        if not pred.any() and not ref.any():
            return 0.0
        try:
            with np.errstate(invalid="ignore"):
                result = value()
        except IndexError:  # a percentile of nothing
            return worst
        return result if np.isfinite(result) else worst

    fields = [sitk.SignedMaurerDistanceMap(i, squaredDistance=False, useImageSpacing=True) for i in images]
    contours = [sitk.LabelContour(i) for i in images]
    hd95 = guarded(lambda: max(np.percentile(d, 95) for d in distances(images, lambda m: m > 0)))
    fields = [sitk.Abs(f) for f in fields]
    mean = lambda d: d.mean() if d.size else np.nan  # noqa: E731  # numpy's, without the warning
    asd = guarded(lambda: np.mean([mean(d) for d in distances(contours, lambda m: m != 0)]))

    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    dice = overlap.GetDiceCoefficient()
    return {"dice": 1.0 if dice == np.inf else dice if np.isfinite(dice) else 0.0, "hd95": hd95, "asd": asd}


def mist(pred, ref, spacing):
    return {
        "dice": papers.mist2023_dice(*counts(pred, ref)),
        **papers.mist2023_distances(pred, ref, spacing),
    }


@pytest.mark.parametrize("pair", SOLID, ids=repr)
def test_mist_is_what_its_code_does(pair):
    for spacing in (pair.spacing, (1.0, 1.0, 1.0)):
        expected = mist_per_case(pair.pred, pair.ref, spacing)
        assert mist(pair.pred, pair.ref, spacing) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("pair", SOLID, ids=repr)
def test_a_crop_does_not_change_mist(pair):
    for pad in (((0, 0),) * 3, ((4, 3), (0, 2), (1, 0)), ((1, 1), (5, 0), (0, 7))):
        pred, ref = np.pad(pair.pred, pad), np.pad(pair.ref, pad)
        box = papers.crop(cloud(pred), cloud(ref), Grid(pred.shape, pair.spacing))
        mine = papers.mist2023_distances(pred[box], ref[box], pair.spacing, pred.shape)
        whole = mist_per_case(pred, ref, pair.spacing)
        assert mine == pytest.approx({"hd95": whole["hd95"], "asd": whole["asd"]}, rel=1e-5, abs=1e-5)


def test_the_crop_is_the_box_with_one_voxel_more():
    grid = Grid((9, 9, 9), (1.0, 1.0, 1.0))
    pred, ref = marked(grid.shape, (0, 4, 8)), marked(grid.shape, (3, 5, 8))
    assert papers.crop(cloud(pred), cloud(ref), grid) == (slice(0, 5), slice(3, 7), slice(7, 9))
    assert papers.crop(cloud(pred), cloud(pred & ref), grid) == (slice(0, 2), slice(3, 6), slice(7, 9))
    nothing = cloud(pred & ref)
    assert papers.crop(nothing, nothing, grid) == (slice(0, 1),) * 3


def test_simpleitk_gives_what_the_docstring_says_for_empty_and_full_masks():
    shape = (4, 5, 6)
    empty, full = (sitk.GetImageFromArray(np.full(shape, value, np.uint8)) for value in (0, 1))
    for image, sign in ((empty, 1), (full, -1)):
        field = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        assert np.unique(sitk.GetArrayFromImage(field) * sign).tolist() == [
            float(np.float32(np.finfo(np.float32).max ** 0.5))
        ]
        assert not sitk.GetArrayFromImage(sitk.LabelContour(image)).any()
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(empty, empty)
    assert overlap.GetDiceCoefficient() == np.inf


def test_mist_by_hand():
    spacing = (5.0, 6.0, 7.0)
    worst = (24**2 + 15**2 + 14**2) ** 0.5  # 4 x 6, 3 x 5 and 2 x 7: each size with another axis's spacing
    assert papers.mist2023_worst((2, 3, 4), spacing) == worst
    voxel, empty = marked((2, 3, 4), (0, 0, 0)), np.zeros((2, 3, 4), bool)
    both = {"hd95": 0.0, "asd": 0.0}
    assert papers.mist2023_distances(empty, empty, spacing) == both
    assert papers.mist2023_distances(voxel, empty, spacing) == {"hd95": worst, "asd": worst}
    assert papers.mist2023_distances(empty, voxel, spacing) == {"hd95": worst, "asd": worst}
    assert papers.mist2023_distances(~empty, ~empty, spacing) == {"hd95": 0.0, "asd": worst}
    # 0 for the voxel inside, 1, 2, 3 steps of 7 for the others: the 95th percentile lies at 2.85 steps
    line = marked((2, 3, 4), (0, 0))
    found = papers.mist2023_distances(line, voxel, spacing)
    assert found["hd95"] == pytest.approx(2.85 * 7)
    # the contour of the line is all of it, and so is that of the voxel
    assert found["asd"] == pytest.approx((0 + 1 + 2 + 3) / 4 * 7 / 2)


def test_mist_hd95_is_zero_where_the_masks_differ_in_few_voxels():
    pred = np.zeros((12, 12, 12), bool)
    pred[1:11, 1:11, 1:11] = True
    ref = pred.copy()
    ref[1, 1:5, 1:11] = False  # 40 of 1000 voxels
    assert papers.mist2023_distances(pred, ref, (1.0, 1.0, 1.0))["hd95"] == 0.0


def test_mist_refuses_an_image_in_the_plane():
    mask = blob((9, 9), 1, 0.3)
    with pytest.raises(BenchError, match="volumes of 3 axes, this image has 2"):
        papers.mist2023_distances(mask, mask, (1.0, 1.0))
