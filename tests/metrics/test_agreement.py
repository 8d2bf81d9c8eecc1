"""Every metric, profile and engine against independent tools, on the zoo.

1e-6 relative with tools that compute in float64, 1e-4 mm with those in float32 (MONAI; our own engine `simpleitk`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import definitions
import exacta.functional as exacta
import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance
import torch
from medpy.metric import binary as medpy
from mist.metrics import segmentation_metrics as mist
from monai import metrics as monai
from shapes import EMPTY, ZOO, Pair, ball, blob

from harness.metrics import evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance"),  # scipy.ndimage.morphology
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI's own call of its own function
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),  # on masks that are empty
]

VOXEL, POOLED, AREA = "voxel-max", "voxel-pooled", "area"
OVERLAP = ["dice", "iou", "sensitivity", "specificity", "precision", "volume_difference"]
DISTANCES = ["hd", "hd95", "asd", "asd_reverse", "assd", "masd"]
TOLERANCES = (0.63, 1.297, 3.333)
"""Millimetres; no distance in the zoo is as near as 1e-3 to one of them, see `test_no_distance_ties_with_a_tolerance`."""
NSD = [f"nsd@{t:g}" for t in TOLERANCES]
Values = dict[tuple[str, str], float]  # by profile and metric


@cache
def ours(pair: Pair, engine: str) -> Values:
    profiles = [VOXEL, POOLED, AREA, "transunet"] + ["mist2023"] * (pair.pred.ndim == 3)
    bands = ["boundary_iou", "boundary_iou@1", "boundary_iou@3"] if pair.pred.ndim == 2 else []
    metrics = OVERLAP + DISTANCES + NSD + bands
    rows = evaluate(*pair.label_maps, pair.spacing, {"x": 1}, profiles, metrics=metrics, engine=engine)
    values = {(r.profile, r.metric): r.value for r in rows}
    assert len(values) == len(rows)
    assert all(v is None or np.isfinite(v) for v in values.values())
    return values


def one_hot(pair: Pair) -> list[torch.Tensor]:
    return [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (pair.pred, pair.ref)]


def from_medpy(pair: Pair) -> Values:
    masks = pair.pred, pair.ref
    values = {
        (VOXEL, "dice"): medpy.dc(*masks),
        (VOXEL, "iou"): medpy.jc(*masks),
        (VOXEL, "sensitivity"): medpy.sensitivity(*masks),
        (VOXEL, "precision"): medpy.precision(*masks),
        (POOLED, "hd"): medpy.hd(*masks, pair.spacing),
        (POOLED, "hd95"): medpy.hd95(*masks, pair.spacing),
        (POOLED, "asd"): medpy.asd(*masks, pair.spacing),
        (POOLED, "asd_reverse"): medpy.asd(*masks[::-1], pair.spacing),
        (POOLED, "assd"): medpy.assd(*masks, pair.spacing),
    }
    if not pair.ref.all():  # without a negative voxel there is no specificity
        values[VOXEL, "specificity"] = medpy.specificity(*masks)
    return values


def from_definitions(pair: Pair) -> Values:
    values = {(VOXEL, name): v for name, v in definitions.overlap(pair).items()}
    for profile in (VOXEL, POOLED):
        values |= {(profile, name): v for name, v in definitions.voxel_metrics(pair, profile, TOLERANCES).items()}
    values |= {(AREA, name): v for name, v in definitions.area_metrics(pair, TOLERANCES).items()}
    if pair.pred.ndim == 2:
        values[VOXEL, "boundary_iou"] = definitions.boundary_iou(pair)
        values |= {(VOXEL, f"boundary_iou@{d}"): definitions.boundary_iou(pair, d) for d in (1, 3)}
    return values


def from_exacta(pair: Pair) -> Values:
    masks = [m.astype(np.int64)[None] for m in (pair.pred, pair.ref)]

    def value(function: Callable[..., np.ndarray], **options: object) -> float:
        return float(function(*masks, num_classes=2, **options)[0, 1])

    values = {(VOXEL, name): value(getattr(exacta, name)) for name in ("dice", "iou", "sensitivity", "precision")}
    if not pair.ref.all():
        values[VOXEL, "specificity"] = value(exacta.specificity)
    error = exacta.volume_error if pair.pred.ndim == 3 else exacta.area_error
    values[VOXEL, "volume_difference"] = value(error, spacing=pair.spacing, absolute=True)
    for profile, surface in ((VOXEL, "voxels"), (POOLED, "voxels"), (AREA, "surfels")):
        same = {"spacing": pair.spacing, "surface": surface}
        values[profile, "hd"] = value(exacta.hausdorff_distance, **same)
        values[profile, "hd95"] = value(exacta.hd95, combine="pooled" if profile == POOLED else "max", **same)
        values[profile, "assd"] = value(exacta.assd, **same)
        values[profile, "masd"] = value(exacta.assd, combine="mean", **same)
        for t, name in zip(TOLERANCES, NSD, strict=True):
            values[profile, name] = value(exacta.nsd, tolerance=t, **same)
    return values


def from_surface_distance(pair: Pair) -> Values:
    found = surface_distance.compute_surface_distances(pair.ref, pair.pred, pair.spacing)
    back, there = surface_distance.compute_average_surface_distance(found)
    values = {
        (AREA, "hd"): surface_distance.compute_robust_hausdorff(found, 100),
        (AREA, "hd95"): surface_distance.compute_robust_hausdorff(found, 95),
        (AREA, "asd"): there,
        (AREA, "asd_reverse"): back,
        (AREA, "masd"): (there + back) / 2,
    }
    for t, name in zip(TOLERANCES, NSD, strict=True):
        values[AREA, name] = surface_distance.compute_surface_dice_at_tolerance(found, t)
    return values


def from_mist_today(pair: Pair) -> Values:
    """MIST 2.3.0: surface-distance's surfaces, with a pooled mean."""
    found = mist.compute_surface_distances(pair.ref, pair.pred, pair.spacing)
    values = {
        (VOXEL, "dice"): mist.compute_dice_coefficient(pair.ref, pair.pred),
        (AREA, "hd95"): mist.compute_robust_hausdorff(found, 95),
        (AREA, "assd"): mist.compute_average_surface_distance(found),
    }
    for t, name in zip(TOLERANCES, NSD, strict=True):
        values[AREA, name] = mist.compute_surface_dice_at_tolerance(found, t)
    return values


def from_transunet(pair: Pair) -> Values:
    """The rule of TransUNet's `calculate_metric_percase`: medpy without a voxel spacing, so in voxels."""
    if pair.pred.any() and pair.ref.any():
        dice, hd95 = medpy.dc(pair.pred, pair.ref), medpy.hd95(pair.pred, pair.ref)
    else:
        dice, hd95 = (1, 0) if pair.pred.any() else (0, 0)
    return {("transunet", "dice"): dice, ("transunet", "hd95"): hd95}


def from_monai(pair: Pair) -> Values:
    p, r = one_hot(pair)
    same = {"spacing": pair.spacing}
    values = {
        (VOXEL, "dice"): monai.compute_dice(p, r, include_background=False),
        (VOXEL, "iou"): monai.compute_iou(p, r, include_background=False),
        (VOXEL, "hd"): monai.compute_hausdorff_distance(p, r, **same),
        (VOXEL, "hd95"): monai.compute_hausdorff_distance(p, r, percentile=95, **same),
        (VOXEL, "asd"): monai.compute_average_surface_distance(p, r, **same),
        (VOXEL, "asd_reverse"): monai.compute_average_surface_distance(r, p, **same),
        (VOXEL, "assd"): monai.compute_average_surface_distance(p, r, symmetric=True, **same),
    }
    tolerance = [TOLERANCES[1]]
    values[VOXEL, NSD[1]] = monai.compute_surface_dice(p, r, tolerance, **same)
    values[AREA, NSD[1]] = monai.compute_surface_dice(p, r, tolerance, use_subvoxels=True, **same)
    counts = monai.get_confusion_matrix(p, r, include_background=False)
    ratios = ["sensitivity", "precision"] + ["specificity"] * (not pair.ref.all())
    values |= {(VOXEL, name): monai.compute_confusion_matrix_metric(name, counts) for name in ratios}
    return {key: float(v[0, 0]) for key, v in values.items()}


def from_monai_directed(pair: Pair) -> Values:
    """The two directions apart; HD and HD95 of `voxel-max` are the larger."""
    p, r = one_hot(pair)
    values = {}
    for name, percentile in (("hd", None), ("hd95", 95)):
        same = {"percentile": percentile, "directed": True, "spacing": pair.spacing}
        values[VOXEL, name] = max(float(monai.compute_hausdorff_distance(a, b, **same)) for a, b in ((p, r), (r, p)))
    return values


def from_itk_overlap(pair: Pair) -> Values:
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(definitions.image(m, pair.spacing) for m in (pair.pred, pair.ref)))
    values = {
        (VOXEL, "dice"): measure.GetDiceCoefficient(1),
        (VOXEL, "iou"): measure.GetJaccardCoefficient(1),
        (VOXEL, "sensitivity"): 1 - measure.GetFalseNegativeError(1),
        (VOXEL, "precision"): 1 - measure.GetFalseDiscoveryRate(1),
    }
    if pair.pred.ndim == 3:
        values["mist2023", "dice"] = measure.GetDiceCoefficient()
    return values


def contours(pair: Pair) -> list[sitk.Image]:
    """Images of the face-connected contours, with the border of the array as a border of the mask."""
    images = [definitions.image(np.pad(m, 1), pair.spacing) for m in (pair.pred, pair.ref)]
    return [sitk.BinaryContour(i, fullyConnected=False, foregroundValue=1) for i in images]


def from_itk_hausdorff(pair: Pair) -> Values:
    """ITK's filter measures between whole sets of voxels, so it is given the contours as the sets."""
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*contours(pair))
    hd, masd = measure.GetHausdorffDistance(), measure.GetAverageHausdorffDistance()
    return {(VOXEL, "hd"): hd, (VOXEL, "masd"): masd}


def from_itk_maurer(pair: Pair) -> Values:
    """Distance maps of the contour images, read at the contour of the other."""
    images = contours(pair)
    fields = [sitk.SignedMaurerDistanceMap(i, squaredDistance=False, useImageSpacing=True) for i in images]
    p, r = (sitk.GetArrayFromImage(i) > 0 for i in images)
    to_pred, to_ref = (abs(sitk.GetArrayFromImage(f).astype(float)) for f in fields)
    there, back = to_ref[p], to_pred[r]
    both = np.concatenate([there, back])
    return {
        (VOXEL, "hd95"): max(np.percentile(there, 95), np.percentile(back, 95)),
        (POOLED, "hd95"): np.percentile(both, 95),
        (POOLED, "asd"): there.mean(),
        (POOLED, "asd_reverse"): back.mean(),
        (VOXEL, "assd"): both.mean(),
    }


def from_mist_2023(pair: Pair) -> Values:
    return {("mist2023", name): v for name, v in definitions.mist2023(pair).items()} if pair.pred.ndim == 3 else {}


FLOAT64 = [from_definitions, from_medpy, from_exacta, from_surface_distance, from_mist_today, from_transunet]
FLOAT32 = [from_monai, from_monai_directed, from_itk_overlap, from_itk_hausdorff, from_itk_maurer, from_mist_2023]
ORACLES = {f.__name__.removeprefix("from_"): f for f in FLOAT64 + FLOAT32}


@cache
def theirs(pair: Pair, oracle: str) -> Values:
    values = {key: float(v) for key, v in ORACLES[oracle](pair).items()}
    assert all(np.isfinite(v) for v in values.values()), f"{oracle} has no number on {pair!r}"
    return values


def disagreements(pair: Pair, oracle: str, engine: str, got: Values | None = None) -> list[str]:
    got, want = ours(pair, engine) if got is None else got, theirs(pair, oracle)
    found = []
    for (profile, metric), value in want.items():
        own = got.get((profile, metric))
        single = engine == "simpleitk" or ORACLES[oracle] in FLOAT32  # float32 on either side
        close = {"rel": 0, "abs": 1e-4} if single and metric in DISTANCES else {"rel": 1e-6, "abs": 1e-9}
        if own is None or own != pytest.approx(value, **close):
            found.append(f"{pair!r} {profile} {metric}: ours {own}, {oracle} {value}")
    return found


@pytest.mark.parametrize("oracle", ORACLES)
def test_agreement(oracle: str, engine: str) -> None:
    assert sum(len(theirs(pair, oracle)) for pair in ZOO) >= 70
    assert [text for pair in ZOO for text in disagreements(pair, oracle, engine)] == []


def test_every_metric_of_every_profile_has_two_judges() -> None:
    judges: dict[tuple[str, str], set[str]] = {}
    for oracle in ORACLES:
        for key in {key for pair in ZOO for key in theirs(pair, oracle)}:
            judges.setdefault(key, set()).add(oracle)
    # the profiles share all but HD95, boundary IoU has one public implementation, MIST of 2023 none that installs
    single = {(VOXEL, f"boundary_iou{d}") for d in ("", "@1", "@3")} | {(VOXEL, c) for c in ("tp", "fp", "fn", "tn")}
    single |= {("mist2023", m) for m in ("dice", "hd95", "asd")} | {("transunet", m) for m in ("dice", "hd95")}
    measured = {key for pair in ZOO for key in ours(pair, "points")}
    assert measured <= judges.keys()
    assert {key for key in measured if len(judges[key]) < 2} == single


def test_no_distance_ties_with_a_tolerance() -> None:
    for pair in ZOO:
        found = np.concatenate([*definitions.voxel_distances(pair), *definitions.element_distances(pair)[:2]])
        assert all(abs(found - t).min() > 1e-3 for t in TOLERANCES)


def test_zoo_has_every_neighbourhood() -> None:
    """All 256 patterns of 2 x 2 x 2 voxels and all 16 of 2 x 2, each with its own area."""
    for ndim in (2, 3):
        patterns = set()
        for mask in (m for pair in ZOO if pair.pred.ndim == ndim for m in (pair.pred, pair.ref)):
            blocks = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2,) * ndim)
            patterns |= {tuple(b) for b in blocks.reshape(-1, 2**ndim).tolist()}
        assert len(patterns) == 2**2**ndim


TIES = [p for p in ZOO if p.name.startswith(("blobs", "clean", "noise", "line", "sparse"))]


@pytest.mark.parametrize("pair", TIES, ids=repr)
def test_nsd_at_a_tolerance_that_is_a_distance(pair: Pair, engine: str) -> None:
    """One and two voxels along each axis: exact in binary, so a distance equals the tolerance or it does not."""
    tolerances = tuple({float(f"{n * side:g}") for side in pair.spacing for n in (1, 2)})
    names = [f"nsd@{t:g}" for t in tolerances]
    rows = evaluate(*pair.label_maps, pair.spacing, {"x": 1}, [VOXEL, AREA], metrics=names, engine=engine)
    got = {(r.profile, r.metric): r.value for r in rows}
    found = surface_distance.compute_surface_distances(pair.ref, pair.pred, pair.spacing)
    masks = [m.astype(np.int64)[None] for m in (pair.pred, pair.ref)]
    for t in tolerances:
        want = surface_distance.compute_surface_dice_at_tolerance(found, t)
        assert got[AREA, f"nsd@{t:g}"] == pytest.approx(want, rel=1e-6), t
        want = exacta.nsd(*masks, num_classes=2, spacing=pair.spacing, tolerance=t)[0, 1]
        assert got[VOXEL, f"nsd@{t:g}"] == pytest.approx(want, rel=1e-6), t


def big_pair() -> Pair:
    shape = (24, 90, 80)
    organ, found = ball(shape, (11, 40, 35), 9.7) | ball(shape, (14, 48, 37), 8), ball(shape, (11.4, 41, 36), 10.1)
    found |= ball(shape, (3, 84, 75), 2.2) | ball(shape, (21, 4, 70), 1.5)
    return Pair("big", found, organ ^ blob(shape, 5, 0.0005), (3.0, 0.8, 0.8))


def test_a_thousand_surface_voxels(engine: str) -> None:
    """More than one block of anything, islands far away, distances of 1 and of 44 mm."""
    pair = big_pair()
    for oracle in ("medpy", "exacta", "surface_distance", "transunet", "itk_hausdorff", "itk_overlap", "mist_2023"):
        assert disagreements(pair, oracle, engine) == []
    assert len(definitions.surface_voxels(pair.pred)) > 1000 and theirs(pair, "medpy")[POOLED, "hd"] > 44


@pytest.mark.parametrize("window", [1, 200])
def test_maps_that_do_not_cover_both_surfaces(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SimpleITK engine leaves far voxels to a k-d tree where the box of both surfaces is large."""
    from harness.metrics import maurer

    monkeypatch.setattr(maurer, "LARGE", window)
    monkeypatch.setattr(maurer, "MARGIN", 1)
    for pair in (*ZOO, big_pair()):
        names = [*DISTANCES, *NSD]
        rows = evaluate(*pair.label_maps, pair.spacing, {"x": 1}, [POOLED, AREA], metrics=names, engine="simpleitk")
        got = {(r.profile, r.metric): r.value for r in rows}
        for key, value in got.items():
            if key in (want := ours(pair, "points")):
                assert value == pytest.approx(want[key], rel=0, abs=1e-4), (pair, key)


def test_elements_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.metrics import area

    monkeypatch.setattr(area, "BLOCK", 7)
    for pair in ZOO[::3]:
        rows = evaluate(*pair.label_maps, pair.spacing, {"x": 1}, AREA, metrics=[*DISTANCES, *NSD], engine="points")
        assert {r.metric: r.value for r in rows if r.metric in (*DISTANCES, *NSD)} == {
            m: v for (profile, m), v in ours(pair, "points").items() if profile == AREA
        }


# Empty masks: what we give, and what the tools do

NO_NUMBER = [p for p in EMPTY if p.name != "ok"]


@pytest.mark.parametrize("pair", NO_NUMBER, ids=repr)
def test_empty_masks_by_profile(pair: Pair, engine: str) -> None:
    got = ours(pair, engine)
    for profile in (VOXEL, POOLED, AREA):
        assert all(got[profile, m] is None for m in (*DISTANCES, *NSD))
    for key, value in theirs(pair, "transunet").items():
        assert got[key] == value
    if pair.pred.ndim == 3:
        assert {m: got["mist2023", m] for m in ("hd95", "asd")} == pytest.approx(definitions.mist2023(pair), abs=1e-9)
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(*(definitions.image(m, pair.spacing) for m in (pair.pred, pair.ref)))
        dice = measure.GetDiceCoefficient()  # infinite if both are empty, for which MIST has 1
        assert got["mist2023", "dice"] == (1.0 if np.isinf(dice) else dice)
        assert np.isinf(dice) == (pair.name == "both_empty")


@pytest.mark.parametrize("pair", NO_NUMBER, ids=repr)
def test_what_other_tools_do_with_empty_masks(pair: Pair) -> None:
    """Why a status stands beside the value here: no two of them give the same."""
    for function in (medpy.hd, medpy.hd95, medpy.asd, medpy.assd):
        with pytest.raises(RuntimeError, match="does not contain any binary object"):
            function(pair.pred, pair.ref, pair.spacing)
    with pytest.raises(AttributeError, match=r"np\.Inf"):  # removed in numpy 2; mended, but not on the index
        found = surface_distance.compute_surface_distances(pair.ref, pair.pred, pair.spacing)
        surface_distance.compute_robust_hausdorff(found, 95)
    p, r = one_hot(pair)
    assert np.isnan(float(monai.compute_hausdorff_distance(p, r, percentile=95, spacing=pair.spacing)))
    asd = float(monai.compute_average_surface_distance(p, r, spacing=pair.spacing))
    assert np.isnan(asd) if pair.name == "both_empty" else np.isinf(asd)
    masks = [m.astype(np.int64)[None] for m in (pair.pred, pair.ref)]
    hd95 = exacta.hd95(*masks, num_classes=2, spacing=pair.spacing)[0, 1]
    assert np.isnan(hd95) if pair.name == "both_empty" else np.isinf(hd95)
    with pytest.raises(RuntimeError, match="pixelcount is equal to 0"):
        sitk.HausdorffDistanceImageFilter().Execute(*contours(pair))
