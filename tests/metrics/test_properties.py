"""What must hold for any pair of masks, for every profile and engine (hypothesis)."""

from __future__ import annotations

import itertools

import definitions
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapes import Pair, label_maps

from harness.metrics import evaluate

STANDARD = ["voxel-max", "voxel-pooled", "area"]
OVERLAP = ["dice", "iou", "sensitivity", "specificity", "precision", "volume_difference"]
DISTANCES = ["hd", "hd95", "asd", "asd_reverse", "assd", "masd"]
ODD = 1.0345678901  # a tolerance times this is no distance between voxels

few = settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # the fixture is a name


@st.composite
def pairs(draw, ndim=None, top=6):
    """Two masks with voxels, on grids that may have one voxel along an axis."""
    ndim = draw(st.integers(2, 3)) if ndim is None else ndim
    shape = tuple(draw(st.integers(1, top)) for _ in range(ndim))
    spacing = tuple(draw(st.sampled_from([1.0, 0.5, 3.0]) | st.floats(0.1, 10)) for _ in shape)
    masks = []
    for _ in range(2):
        mask = draw(arrays(bool, shape, elements=st.booleans(), fill=st.booleans()))
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
        masks.append(mask)
    return Pair("drawn", *masks, spacing)


tolerances = st.floats(0.05, 30).map(lambda t: float(f"{t * ODD:g}"))  # as the names of metrics write them


def measure(pred, ref, spacing, engine, metrics=DISTANCES, profiles=STANDARD):
    maps = pred.astype(np.uint8), ref.astype(np.uint8)
    rows = evaluate(*maps, spacing, {"x": 1}, profiles, metrics=metrics, engine=engine)
    assert {r.status for r in rows} == {"ok"}
    return {(r.profile, r.metric): r.value for r in rows}


def close(want, engine, spacing=(1.0,)):
    """Equal up to rounding: float32 in ITK, relative to the longest side of a voxel."""
    if want is None:  # specificity of a full reference
        return None
    if engine == "simpleitk":
        return pytest.approx(want, abs=1e-4 * max(spacing))
    return pytest.approx(want, rel=1e-9, abs=1e-12)


@few
@given(pairs(), tolerances)
def test_symmetry(engine, pair, t):
    names = [*OVERLAP, *DISTANCES, f"nsd@{t:g}"]
    got = measure(pair.pred, pair.ref, pair.spacing, engine, names)
    back = measure(pair.ref, pair.pred, pair.spacing, engine, names)
    other = {"asd": "asd_reverse", "asd_reverse": "asd", "sensitivity": "precision", "precision": "sensitivity"}
    for (profile, metric), value in got.items():
        if metric not in ("specificity", "fp", "fn"):
            assert back[profile, other.get(metric, metric)] == pytest.approx(value, rel=1e-12), (profile, metric)


@few
@given(pairs(), tolerances)
def test_identity(engine, pair, t):
    names = ["dice", "iou", "sensitivity", "precision", "volume_difference", *DISTANCES, f"nsd@{t:g}", "nsd@0"]
    got = measure(pair.pred, pair.pred.copy(), pair.spacing, engine, names)
    for (profile, metric), value in got.items():
        zero = metric in DISTANCES or metric in ("volume_difference", "fp", "fn")
        if metric not in ("tp", "tn"):
            assert value == (0.0 if zero else 1.0), (profile, metric)


@few
@given(pairs(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3), tolerances)
def test_translation_and_padding(engine, pair, margins, t):
    """Empty space beyond the array or within it is the same, so a border is nothing special."""
    profiles, names = [*STANDARD, "transunet"], ["dice", *DISTANCES, f"nsd@{t:g}"]
    width = margins[: pair.pred.ndim]
    got = measure(pair.pred, pair.ref, pair.spacing, engine, names, profiles)
    moved = measure(np.pad(pair.pred, width), np.pad(pair.ref, width), pair.spacing, engine, names, profiles)
    for key in got.keys() - {("voxel-max", "tn")}:
        assert moved[key] == close(got[key], engine, pair.spacing), key


@few
@given(pairs(), tolerances, st.data())
def test_permutation_and_reflection_of_axes(engine, pair, t, data):
    profiles = [*STANDARD, "transunet"]
    names = [*OVERLAP, *DISTANCES, f"nsd@{t:g}"]
    order = data.draw(st.permutations(range(pair.pred.ndim)))
    axes = data.draw(st.sets(st.sampled_from(range(pair.pred.ndim))))
    got = measure(pair.pred, pair.ref, pair.spacing, engine, names, profiles)
    turned = [np.flip(m.transpose(order), sorted(axes)) for m in (pair.pred, pair.ref)]
    again = measure(*turned, [pair.spacing[i] for i in order], engine, names, profiles)
    for key in got:
        assert again[key] == close(got[key], engine, pair.spacing), key


@few
@given(pairs(), tolerances, st.floats(0.01, 100))
def test_scaling_with_the_spacing(engine, pair, t, factor):
    names = [*OVERLAP, *DISTANCES]
    spacing = [factor * s for s in pair.spacing]
    got = measure(pair.pred, pair.ref, pair.spacing, engine, [*names, f"nsd@{t:g}"])
    scaled = measure(pair.pred, pair.ref, spacing, engine, [*names, f"nsd@{factor * t:g}"])
    power = {"volume_difference": pair.pred.ndim} | dict.fromkeys(DISTANCES, 1)
    for (profile, metric), value in got.items():
        name = f"nsd@{factor * t:g}" if metric.startswith("nsd") else metric
        want = None if value is None else value * factor ** power.get(metric, 0)
        exact = metric not in DISTANCES
        assert scaled[profile, name] == close(want, "points" if exact else engine, spacing), metric
    voxels = [measure(pair.pred, pair.ref, s, engine, ["hd95"], "transunet") for s in (pair.spacing, spacing, None)]
    assert voxels[0] == voxels[1] == voxels[2]


@few
@given(pairs())
def test_order_of_the_distances(engine, pair):
    rows = evaluate(*pair.label_maps, pair.spacing, {"x": 1}, STANDARD, metrics=DISTANCES, engine=engine)
    slack = 1e-9 * max(pair.spacing) * max(pair.pred.shape)
    for profile in STANDARD:
        got = {r.metric: r.value for r in rows if r.profile == profile}
        lower, upper = sorted([got["asd"], got["asd_reverse"]])
        assert lower >= 0 and lower - slack <= got["assd"] <= upper + slack
        assert got["masd"] == pytest.approx((lower + upper) / 2, rel=1e-12)
        assert upper <= got["hd"] + slack
        assert 0 <= got["hd95"] <= got["hd"]
        assert all(got[r.metric] <= r.worst for r in rows if r.metric in DISTANCES)


@few
@given(pairs(), st.lists(st.floats(0, 40), min_size=2, max_size=5))
def test_nsd_grows_with_the_tolerance(engine, pair, given_tolerances):
    hd = measure(pair.pred, pair.ref, pair.spacing, engine, ["hd"])
    for profile in STANDARD:
        beyond = 1.001 * hd[profile, "hd"] + 1e-6
        steps = sorted({float(f"{t:g}") for t in (0.0, *given_tolerances, beyond)})
        got = measure(pair.pred, pair.ref, pair.spacing, engine, [f"nsd@{t:g}" for t in steps], [profile])
        values = [got[profile, f"nsd@{t:g}"] for t in steps]
        assert all(0 <= a <= b <= 1 for a, b in itertools.pairwise([0.0, *values]))
        assert values[-1] == 1 and steps[-1] >= hd[profile, "hd"]


@settings(few, max_examples=50)
@given(pairs(), tolerances)
def test_brute_force(engine, pair, t):
    name = f"nsd@{t:g}"
    got = measure(pair.pred, pair.ref, pair.spacing, engine, [*OVERLAP, *DISTANCES, name])
    want = {("voxel-max", metric): value for metric, value in definitions.overlap(pair).items()}
    for profile in STANDARD[:2]:
        want |= {(profile, m): v for m, v in definitions.voxel_metrics(pair, profile, (t,)).items()}
    want |= {("area", m): v for m, v in definitions.area_metrics(pair, (t,)).items()}
    for key, value in want.items():
        assert got[key] == close(value, engine if key[1] in DISTANCES else "points", pair.spacing), key
    assert {key for key, value in got.items() if value is None} == got.keys() - want.keys()


@pytest.mark.parametrize("spacing", [(3.0, 0.8), (1.0, 1.0), (0.3, 2.0), (3.0, 0.8, 0.8), (0.4, 1.0, 5.0)])
def test_nearest_of_two_that_are_almost_as_far(spacing, engine):
    """A voxel, and two at offsets of nearly one length: a search that looks at offsets in turn must not stop early."""
    reach = 9 if len(spacing) == 2 else 6
    offsets = np.array(list(itertools.product(range(reach + 1), repeat=len(spacing)))[1:])
    offsets = offsets[np.argsort(np.linalg.norm(offsets * spacing, axis=1))]
    rng = np.random.default_rng(len(spacing))
    for i in rng.choice(len(offsets) - 4, 60, replace=False):
        near, far = offsets[i], offsets[i + rng.integers(1, 4)]
        pred, ref = np.zeros((2, *(2 * reach + 1,) * len(spacing)), np.uint8)
        pred[(reach,) * len(spacing)] = 1
        for offset in (near, far):
            ref[tuple(reach + rng.choice([-1, 1], len(spacing)) * offset)] = 1
        rows = evaluate(pred, ref, spacing, {"x": 1}, metrics=["asd", "hd"], engine=engine)
        got = {r.metric: r.value for r in rows}
        assert got["asd"] == pytest.approx(np.linalg.norm(near * spacing), rel=1e-6), (near, far)
        assert got["hd"] == pytest.approx(np.linalg.norm(far * spacing), rel=1e-6), (near, far)


@few
@given(pairs(ndim=3, top=5))
def test_brute_force_mist2023(pair):
    got = measure(pair.pred, pair.ref, pair.spacing, "points", ["hd95", "asd"], ["mist2023"])
    for metric, value in definitions.mist2023(pair).items():
        assert got["mist2023", metric] == pytest.approx(value, abs=1e-4 * max(pair.spacing)), metric


@few
@given(pairs(ndim=2, top=9), st.integers(1, 4))
def test_brute_force_boundary_iou(pair, d):
    got = measure(pair.pred, pair.ref, pair.spacing, "points", ["boundary_iou", f"boundary_iou@{d}"])
    assert got["voxel-max", f"boundary_iou@{d}"] == pytest.approx(definitions.boundary_iou(pair, d), rel=1e-12)
    assert got["voxel-max", "boundary_iou"] == pytest.approx(definitions.boundary_iou(pair), rel=1e-12)


@few
@given(pairs(), tolerances)
def test_engines_agree(pair, t):
    pytest.importorskip("numba")
    names = [*OVERLAP, *DISTANCES, f"nsd@{t:g}"]
    profiles = [*STANDARD, "transunet"] + ["mist2023"] * (pair.pred.ndim == 3)
    engines = ("simpleitk", "points", "points-numba")
    ours = {e: measure(pair.pred, pair.ref, pair.spacing, e, names, profiles) for e in engines}
    for key, value in ours["points"].items():
        exact = key[1] not in DISTANCES
        assert ours["points-numba"][key] == (value if exact else pytest.approx(value, rel=1e-12, abs=1e-12)), key
        assert ours["simpleitk"][key] == (value if exact else close(value, "simpleitk", pair.spacing)), key


# Label maps: several classes, regions, types and memory order

LAYOUTS = {
    "c-order": lambda m: m.copy(),
    "fortran": lambda m: np.asfortranarray(m),
    "mixed": lambda m: np.ascontiguousarray(m.swapaxes(0, -1)).swapaxes(0, -1),
    "strided": lambda m: np.repeat(m, 2, axis=-1)[..., ::2],
    "reversed": lambda m: np.ascontiguousarray(m[::-1])[::-1],
    "read-only": lambda m: np.frombuffer(m.tobytes(), m.dtype).reshape(m.shape),
}
DTYPES = ["u1", "i1", "u2", ">i2", "i4", "u4", ">u4", "i8", "u8"]
LABELS = {"a": 1, "b": 2, "ab": (1, 2), "bcd": [2, 3, 4], "c": 3, "all": (4, 3, 2, 1), "d": 4, "rest": (0, 3)}


def table(rows):
    return {(r.class_name, r.profile, r.metric): r.value for r in rows}


@pytest.mark.parametrize("shape", [(6, 12, 10), (12, 10)])
def test_memory_order_and_type_do_not_matter(shape, engine):
    pred, ref = label_maps(shape, seed=3)
    spacing, names = (3.0, 0.8, 0.7)[-len(shape) :], ["dice", "volume_difference", *DISTANCES, "nsd@1.234"]
    profiles = [*STANDARD, "transunet", *["mist2023"] * (len(shape) == 3)]
    names += ["boundary_iou@2"] * (len(shape) == 2)
    options = {"metrics": names, "engine": engine, "profile": profiles}
    labels = {"a": 1, "ab": (1, 2), "cd": [3, 4]}
    want = table(evaluate(pred, ref, spacing, labels, **options))
    for i, (one, other) in enumerate([*zip(LAYOUTS, LAYOUTS, strict=True), *itertools.pairwise([*LAYOUTS, "c-order"])]):
        kinds = DTYPES[i % len(DTYPES)], DTYPES[-1 - i % len(DTYPES)]
        maps = LAYOUTS[one](pred.astype(kinds[0])), LAYOUTS[other](ref.astype(kinds[1]))
        before = [m.copy() for m in maps]
        got = table(evaluate(*maps, spacing, labels, **options))
        assert all(np.array_equal(a, b) for a, b in zip(before, maps, strict=True))
        assert got.keys() == want.keys()
        for key, value in got.items():  # another order of the voxels is another order of adding up, and no more
            rel = 1e-5 if engine == "simpleitk" else 1e-12
            assert value == pytest.approx(want[key], rel=rel), (key, one, other, kinds)


@pytest.mark.parametrize("ignore", [None, 9])
@pytest.mark.parametrize("shape", [(7, 15, 12), (15, 12)])
def test_classes_and_regions_equal_their_masks_alone(shape, ignore, engine):
    pred, ref = label_maps(shape, seed=5)
    spacing = (2.0, 0.8, 1.1)[-len(shape) :]
    profiles = [*STANDARD, "transunet"] + ["mist2023"] * (len(shape) == 3)
    metrics = [*OVERLAP, *DISTANCES, "nsd@1.3"] + ["boundary_iou@2"] * (len(shape) == 2)
    if ignore is not None:
        ref[np.random.default_rng(0).random(shape) < 0.2] = ignore
    together = evaluate(pred, ref, spacing, LABELS, profiles, metrics=metrics, engine=engine, ignore=ignore)
    left_out = ref == ignore if ignore is not None else np.zeros(shape, bool)
    for name, values in LABELS.items():
        masks = [(np.isin(m, values) & ~left_out).astype(np.uint8) for m in (pred, ref)]
        alone = evaluate(*masks, spacing, {name: 1}, profiles, metrics=metrics, engine=engine)
        want, got = table(alone), table(r for r in together if r.class_name == name)
        # voxels that are left out are no negatives
        tn = want[name, "voxel-max", "tn"] = want[name, "voxel-max", "tn"] - left_out.sum()
        want[name, "voxel-max", "specificity"] = tn / (tn + want[name, "voxel-max", "fp"])
        assert got == want
        if ignore is None:
            assert [r for r in together if r.class_name == name] == alone


def test_profiles_and_metrics_asked_for_alone(engine):
    """What else is asked for, in what order, changes no number."""
    pred, ref = label_maps((6, 14, 12), seed=8)
    every = [*OVERLAP, *DISTANCES, "nsd@1.3", "nsd@0.5"]
    profiles = [*STANDARD, "transunet", "mist2023"]
    labels = {"a": 1, "bcd": (2, 3, 4)}
    options = {"pred": pred, "ref": ref, "spacing": (2.0, 0.8, 1.1), "labels": labels, "engine": engine}
    want = table(evaluate(**options, profile=profiles, metrics=every))
    turned = table(evaluate(**options, profile=profiles[::-1], metrics=every[::-1]))
    of_surfaces = [*DISTANCES, "nsd@1.3", "nsd@0.5"]
    assert {k: v for k, v in turned.items() if k[2] in of_surfaces} == {
        k: v for k, v in want.items() if k[2] in of_surfaces
    }
    for profile in profiles:
        for name in every if profile in STANDARD else ["dice", "hd95"]:
            for key, value in table(evaluate(**options, profile=profile, metrics=[name])).items():
                shared = key if key in want else (key[0], "voxel-max", key[2])
                assert value == want[shared], key
