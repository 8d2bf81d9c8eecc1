"""Degraded labels: small cases by hand, what each kind may change and what not, seeds, and the doubt of a voxel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.morphology import ball

from harness.data import batches
from harness.data.batches import TrainSet
from harness.data.conditions import CLEAN, Condition, expand, name_of, title_of
from harness.data.degrade import (
    changed,
    classes_of,
    degrade,
    degraded,
    dilate,
    doubt,
    erode,
    jitter,
    missing,
    partial,
    sides_of,
    swapped,
)
from harness.data.geometry import Geometry
from harness.data.stored import Prepared, Stored
from harness.errors import BenchError

ONES = (1.0, 1.0, 1.0)
OFF = {"rotate": 0.0, "scale": 0.0, "shift": 0.0, "flip": False, "noise": 0.0, "intensity": 0.0}
ALL = {"rotate": 30.0, "scale": 0.2, "shift": 0.1, "flip": True, "noise": 0.1, "intensity": 0.2}
BASE = {"data": "d", "split": "s", "fold": None, "model": {"name": "unet", "args": {}}, "repeat": 0}


def canonical(**given) -> dict:
    return Condition.model_validate(given).canonical()[0]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def line(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)[None, None]


def scene(seed: int = 3, ignored: bool = True) -> np.ndarray:
    """Two ellipsoids that touch, and a corner that is ignored."""
    z, y, x = np.ogrid[:14, :26, :30]
    label = np.zeros((14, 26, 30), np.uint8)
    label[((z - 7) / 5) ** 2 + ((y - 12) / 8) ** 2 + ((x - 10) / 7) ** 2 < 1] = 1
    label[(((z - 7) / 4) ** 2 + ((y - 12) / 6) ** 2 + ((x - 20) / 7) ** 2 < 1) & (label == 0)] = 2
    if ignored:
        label[:3, :8, :8] = 255
    return label


# --- erosion and dilation -----------------------------------------------------------------------------------------


def test_erosion_by_hand():
    label = line(0, 1, 1, 1, 2, 2, 2, 0)
    assert erode(label, 1, ONES).ravel().tolist() == [0, 0, 1, 0, 0, 2, 0, 0]  # both sides of a contact shrink
    assert erode(line(1, 1, 1, 0), 1, ONES).ravel().tolist() == [1, 1, 0, 0]  # the edge of the image is no outside
    assert erode(line(1, 1, 255, 0), 1, ONES).ravel().tolist() == [1, 1, 255, 0]  # nor is an ignored voxel
    assert erode(line(0, 1, 0), 1, ONES).ravel().tolist() == [0, 0, 0]


def test_dilation_by_hand():
    assert dilate(line(0, 0, 1, 0, 0), 1, ONES).ravel().tolist() == [0, 1, 1, 1, 0]
    assert dilate(line(1, 0, 2), 1, ONES).ravel().tolist() == [1, 1, 2]  # of equally near classes the lowest
    assert dilate(line(1, 0, 0, 0, 2), 3, ONES).ravel().tolist() == [1, 1, 1, 2, 2]  # else the nearest
    assert dilate(line(1, 2, 255, 0), 2, ONES).ravel().tolist() == [1, 2, 255, 2]  # none overwrites another, or 255


def test_a_radius_in_millimetres_counts_the_size_of_voxels():
    label = np.zeros((3, 7, 7), np.uint8)
    label[1, 3, 3] = 1
    thick = dilate(label, 2.0, (5.0, 1.0, 1.0))
    assert not thick[0].any() and not thick[2].any()  # the next slice is 5 mm away
    assert thick[1].sum() == 13  # a disc of radius 2
    how = canonical(dilate={"radius": 2, "unit": "mm"})
    assert np.array_equal(degrade(label, how, (5.0, 1.0, 1.0), rng(), classes=1), thick)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_morphology_equals_that_of_skimage_for_one_class(radius):
    from skimage.morphology import dilation, erosion

    mask = scene(ignored=False) == 1
    label = mask.astype(np.uint8)
    # a border of what is inside, so that skimage does not take the edge for an outside
    assert np.array_equal(erode(label, radius, ONES) == 1, erosion(mask, ball(radius)))
    assert np.array_equal(dilate(label, radius, ONES) == 1, dilation(mask, ball(radius)))


def test_eroded_is_within_and_dilated_is_around_class_by_class():
    label = scene()
    small, large = erode(label, 1, ONES), dilate(label, 2, ONES)
    for value in (1, 2):
        assert not ((small == value) & (label != value)).any()
        assert not ((large != value) & (label == value)).any()
        assert (small == value).sum() < (label == value).sum() < (large == value).sum()
    for out in (small, large):
        assert np.array_equal(out == 255, label == 255)


# --- jitter -------------------------------------------------------------------------------------------------------


def test_a_displacement_has_the_stated_spread_along_the_normal():
    """A plane is displaced: where it is found again along each line is a draw of the field."""
    label = np.zeros((40, 60, 60), np.uint8)
    label[20:] = 1
    places = []
    for seed in range(6):
        moved = jitter(label, [2.0] * 3, [4.0] * 3, rng(seed))
        places.append(40 - (moved == 1).sum(0).astype(float))  # first voxel of the class, where the field is small
    found = np.stack(places) - 20
    assert abs(found.mean()) < 0.35  # outwards as often as inwards
    assert found.std() == pytest.approx(2.0, rel=0.12)
    near, far = found[:, :, 1:] - found[:, :, :-1], found[:, :, 24:] - found[:, :, :-24]
    assert near.std() < 0.4 * far.std()  # neighbours move together


def test_jitter_moves_boundaries_and_nothing_else():
    label = scene()
    moved = jitter(label, [1.0] * 3, [3.0] * 3, rng())
    assert np.array_equal(moved == 255, label == 255)
    assert set(np.unique(moved)) == {0, 1, 2, 255}
    assert 0 < (moved != label).mean() < 0.2
    core = erode(erode(label, 3, ONES), 2, ONES) > 0  # five voxels from any boundary: five SD
    assert core.any() and np.array_equal(moved[core & (label != 255)], label[core & (label != 255)])
    assert np.array_equal(jitter(label, [1e-6] * 3, [3.0] * 3, rng()), label)


def test_an_image_of_one_slice_is_jittered_in_its_plane():
    label = scene()[7:8]
    assert jitter(label, [2.0] * 3, [4.0] * 3, rng()).shape == label.shape
    full = np.full((1, 8, 8), 1, np.uint8)
    assert np.array_equal(jitter(full, [3.0] * 3, [4.0] * 3, rng()), full)


# --- missing, swapped, partial ------------------------------------------------------------------------------------


def test_missing_removes_whole_classes_and_nothing_else():
    label = scene()
    kinds = set()
    for seed in range(40):
        out = missing(label, 0.5, rng(seed), 2)
        gone = [v for v in (1, 2) if not (out == v).any()]
        kinds.add(tuple(gone))
        assert np.array_equal(out, np.where(np.isin(label, gone), 0, label))
    assert kinds == {(), (1,), (2,), (1, 2)}
    assert not np.isin(missing(label, 1.0, rng(), 2), (1, 2)).any()


def test_more_are_missing_with_a_larger_share_and_always_those_of_the_smaller():
    label = scene()
    for seed in range(20):
        few, many = (missing(label, share, rng(seed), 2) for share in (0.2, 0.7))
        assert not ((few == 0) & (many != 0)).any()
    drawn = [int((missing(label, 0.3, rng(s), 2) == 1).any()) for s in range(400)]
    assert np.mean(drawn) == pytest.approx(0.7, abs=0.07)  # three SD


def test_swapped_twice_is_the_label_again():
    label = scene()
    label[0, 20, 20] = 3
    out = swapped(label, 1.0, rng(1))
    pair = [v for v in (1, 2, 3) if ((label == v) != (out == v)).any()]
    assert len(pair) == 2 and np.array_equal(out == pair[0], label == pair[1])
    assert np.array_equal(swapped(out, 1.0, rng(1)), label)
    alone = np.where(label == 1, label, 0).astype(np.uint8)
    assert np.array_equal(swapped(alone, 1.0, rng(1)), alone)
    assert np.array_equal(swapped(line(0, 1, 1, 255), 1.0, rng(0), first=0).ravel(), [1, 0, 0, 255])


def test_partial_only_adds_255():
    label = scene()
    for how in ("unknown", "known"):
        out = partial(label, 1.0, rng(2), background=how)
        assert ((out == label) | (out == 255)).all()
        kept = classes_of(out)
        assert len(kept) == 1 and np.array_equal(out == kept[0], label == kept[0])
        assert bool((out == 0).any()) == (how == "known")
    assert np.array_equal(partial(label, 1.0, rng(2), annotated=2), label)
    whole = [np.array_equal(partial(label, 0.3, rng(s)), label) for s in range(200)]
    assert np.mean(whole) == pytest.approx(0.7, abs=0.1)


def test_without_a_background_the_first_class_is_one_like_the_others():
    label = np.array([[[0, 0, 1, 2, 255]]], np.uint8)
    seen = {tuple(partial(label, 1.0, rng(s), first=0).ravel().tolist()) for s in range(40)}
    assert seen == {(0, 0, 255, 255, 255), (255, 255, 1, 255, 255), (255, 255, 255, 2, 255)}


# --- the doubt ----------------------------------------------------------------------------------------------------


def test_the_doubt_of_a_jittered_boundary_is_the_normal_distribution():
    label = np.zeros((1, 1, 41), np.uint8)
    label[..., 20:] = 1
    found = doubt(label, canonical(jitter={"sigma": 3}), ONES, classes=1).ravel()
    # Φ(-(d + 1/2) / 3) at d voxels from the boundary
    assert found[20:23] == pytest.approx([0.4338, 0.3085, 0.2023], abs=0.002)
    assert found[17:20] == pytest.approx([0.2023, 0.3085, 0.4338], abs=0.002)
    assert found[0] < 1e-3


def test_the_doubt_of_jitter_agrees_with_how_often_voxels_changed():
    """Averaged over many draws: what the doubt says of degraded labels is how much of them was changed."""
    label = scene(ignored=False)
    how = canonical(jitter={"sigma": 1.5})
    said, was = [], []
    for seed in range(30):
        out = degrade(label, how, ONES, rng(seed), classes=2)
        said.append(doubt(out, how, ONES, classes=2).mean())
        was.append((out != label).mean())
    assert np.mean(said) == pytest.approx(np.mean(was), rel=0.15)


def test_what_erosion_and_dilation_certainly_changed_is_in_doubt_and_nothing_that_they_left():
    label = scene(ignored=False)
    for how in (canonical(erode={"radius": 2}), canonical(dilate={"radius": 2})):
        out = degrade(label, how, ONES, rng(), classes=2)
        found = doubt(out, how, ONES, classes=2)
        assert set(np.unique(found)) == {0.0, 1.0}
        assert (out != label)[found == 1].all()  # never said of a voxel that is right
        assert found[out != label].mean() > 0.5


def test_doubts_in_closed_form():
    label = line(0, 0, 1, 1, 255)
    how = canonical(missing={"share": 0.5})
    # two of three classes are absent, each left out with 1/2: odds 2 · 1/2 to 1
    assert doubt(label, how, ONES, classes=3).ravel().tolist() == pytest.approx([0.5, 0.5, 0, 0, 0])
    assert not doubt(label, how, ONES, classes=1).any()
    how = canonical(swapped={"share": 0.3})
    assert doubt(line(0, 1, 2, 3, 255), how, ONES, classes=4).ravel() == pytest.approx([0, 0.2, 0.2, 0.2, 0])
    assert not doubt(line(0, 1, 1), how, ONES, classes=4).any()
    assert not doubt(label, canonical(partial={"share": 0.3}), ONES, classes=3).any()


@pytest.mark.parametrize(
    "given",
    [{"jitter": {"sigma": 1}}, {"erode": {"radius": 1}}, {"dilate": {"radius": 1}}, {"missing": {"share": 0.5}},
     {"swapped": {"share": 0.5}}],
    ids=lambda g: next(iter(g)),
)  # fmt: skip
def test_the_doubt_knows_the_degraded_label_alone(given):
    """Two clean labels that are degraded to one label have one doubt: nothing of the clean one can be read from it."""
    how = canonical(**given)
    out = degrade(scene(), how, ONES, rng(), classes=2)
    found = doubt(out, how, ONES, classes=2)
    assert np.array_equal(found, doubt(out.copy(), how, ONES, classes=2))
    assert found.min() >= 0 and found.max() <= 1 and not found[out == 255].any()


# --- cached cases and batches -------------------------------------------------------------------------------------


def stored(folder: Path, name: str = "c0", *, view=None, label=None, seed: int = 0) -> Stored:
    """A cached case as `prepare` writes it."""
    import json

    label = scene(seed) if label is None else label
    image = rng(seed).normal(size=(label.shape[0], 1, *label.shape[1:])).astype(np.float32)
    view = view or {"slices": {"size": list(label.shape[1:]), "fit": "pad", "axis": 0}}
    if "patches" in view:
        image = np.moveaxis(image, 1, 0)
    grid = [1.0, 1.0] if "slices" in view else [2.0, 1.0, 1.0]
    meta = {"case": name, "grid_spacing": grid, "spacing": [2.0, 1.0, 1.0], "origin": [0.0] * 3,
            "direction": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]}  # fmt: skip
    path = folder / f"{name}.npz"
    np.savez(path, image=image, label=label, reference=label, meta=np.array(json.dumps(meta)))
    return Stored(path, view)


JITTER = canonical(jitter={"sigma": 2})


def test_a_degraded_case_is_kept_and_shares_image_and_reference(tmp_path):
    clean = stored(tmp_path)
    before = clean.path.read_bytes()
    case = degraded(clean, JITTER, "toy", 0, 2)
    assert np.array_equal(case.image, clean.image) and np.array_equal(case.reference, clean.reference)
    assert not np.array_equal(case.label, clean.label)
    assert np.array_equal(case.part("label", (3,)), case.label[3])
    assert np.array_equal(case.part("image", (3,)), clean.image[3])
    assert clean.path.read_bytes() == before  # the case itself stays what it is
    (kept,) = tmp_path.glob("labels-*.npz")
    stamp = kept.stat().st_mtime_ns
    again = degraded(stored_again(clean), JITTER, "toy", 0, 2)
    assert kept.stat().st_mtime_ns == stamp and np.array_equal(again.label, case.label)
    assert case.counts == {"changed": int((case.label != clean.label).sum()), "voxels": clean.label.size}
    assert changed([case, case]) == {
        "cases": 2, "cases_changed": 2, "voxels_changed": round(float((case.label != clean.label).mean()), 6),
    }  # fmt: skip


def stored_again(case: Stored) -> Stored:
    return Stored(case.path, case.view)


def test_the_draw_is_that_of_data_set_case_kind_and_repeat(tmp_path):
    clean, other = stored(tmp_path), stored(tmp_path, "c1")
    first = degraded(clean, JITTER, "toy", 0, 2).label
    assert not np.array_equal(degraded(clean, JITTER, "toy", 1, 2).label, first)
    assert not np.array_equal(degraded(clean, JITTER, "another", 0, 2).label, first)
    assert not np.array_equal(degraded(other, JITTER, "toy", 0, 2).label, first)  # the same label by another name
    before = len(list(tmp_path.glob("labels-*")))
    eroded = canonical(erode={"radius": 1})
    assert np.array_equal(degraded(clean, eroded, "toy", 0, 2).label, degraded(clean, eroded, "toy", 1, 2).label)
    assert len(list(tmp_path.glob("labels-*"))) == before + 1  # nothing is drawn: one file for all repeats


def test_a_damaged_label_is_made_again(tmp_path):
    clean = stored(tmp_path)
    label = degraded(clean, JITTER, "toy", 0, 2).label
    (kept,) = tmp_path.glob("labels-*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(BenchError, match="damaged"):
        degraded(clean, JITTER, "toy", 0, 2)
    assert np.array_equal(degraded(clean, JITTER, "toy", 0, 2).label, label)


def test_the_way_between_slices_is_known():
    def case(**more) -> Prepared:
        empty = np.zeros((1, 1, 1), np.uint8)
        about = {"case": "c", "image": empty, "label": empty, "reference": empty, "origin": (), "direction": ()}
        return Prepared(**about, **more)

    slices = {"slices": {"size": [4, 4], "fit": "pad", "axis": 1}}
    assert sides_of(case(grid_spacing=(3.0, 1.0, 1.0), spacing=None)) == (3.0, 1.0, 1.0)
    assert sides_of(case(grid_spacing=(3.0, 1.0), spacing=(3.0, 2.0, 1.0), view=slices)) == (2.0, 3.0, 1.0)
    assert sides_of(case(grid_spacing=(1.0, 1.0), spacing=None, view=slices)) == (1.0, 1.0, 1.0)
    # axes in another order, and axis 1 of the grid, axis 2 of the file, halved
    way = Geometry((0, 2, 1), (False,) * 3, (4, 10, 6), ((0, 4), (0, 10), (0, 6)), (4, 20, 6))
    found = sides_of(case(grid_spacing=(3.0, 2.0), spacing=(3.0, 2.0, 1.0), view=slices, geometry=way))
    assert found == (0.5, 3.0, 2.0)


VIEWS = {
    "slices": ({"slices": {"size": [26, 30], "fit": "pad", "axis": 0}}, ALL),
    "transunet": ({"slices": {"size": [26, 30], "fit": "pad", "axis": 0}}, {"preset": "transunet", "flip": True}),
    "patches": ({"patches": {"size": [8, 16, 16], "foreground": 0.5}}, ALL),
    "nnunet": ({"patches": {"size": [8, 16, 16], "foreground": 0.5}}, {"preset": "nnunet", "flip": True}),
}


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_weights_ride_along_and_change_nothing_else(tmp_path, name):
    view, augment = VIEWS[name]
    cases = [degraded(stored(tmp_path, f"c{i}", view=view, seed=i), JITTER, "toy", 0, 2) for i in range(2)]
    device = torch.device("cpu")
    data = TrainSet(cases, view, augment, device)
    assert not list(tmp_path.glob("doubt-*"))  # nobody asked
    heavy = data.weighted()
    streamed = TrainSet(cases, view, augment, device, limit=0).weighted()
    found = []
    for step in range(6):
        plain, batch, read = (d.batch(step, 4, BASE) for d in (data, heavy, streamed))
        assert plain.weight is None and batch.weight is not None and read.weight is not None
        assert torch.equal(plain.image, batch.image) and torch.equal(plain.target, batch.target)
        assert torch.equal(plain.spacing, batch.spacing) and torch.equal(batch.weight, read.weight)
        assert batch.weight.shape == batch.target.shape and batch.weight.dtype == torch.float32
        assert bool((batch.weight[batch.target == 255] == 1).all())
        found.append(batch.weight)
    whole = torch.cat([w.flatten() for w in found])
    assert 0 < float(whole.min()) < 0.7 and float(whole.max()) == 1


def test_the_weight_of_a_voxel_is_one_minus_its_doubt(tmp_path):
    view = VIEWS["slices"][0]
    case = degraded(stored(tmp_path, view=view), JITTER, "toy", 0, 2)
    data = TrainSet([case], view, OFF, torch.device("cpu")).weighted()
    expected = 1 - doubt(case.label, JITTER, sides_of(case), classes=2)
    keys = [one.tobytes() for one in case.label]
    slices = {key: expected[i] for i, key in enumerate(keys) if keys.count(key) == 1}
    assert len(slices) > 5  # some slices are alike in their labels, and not in their doubts
    batch = data.batch(0, 14, BASE)
    assert batch.weight is not None
    for target, weight in zip(batch.target, batch.weight, strict=True):
        if (own := slices.get(target.to(torch.uint8).numpy().tobytes())) is not None:
            assert weight.numpy() == pytest.approx(own, abs=0.5 / 255 + 1e-6)


def test_a_clean_set_has_no_weights(tmp_path):
    view = VIEWS["slices"][0]
    data = TrainSet([stored(tmp_path, view=view)], view, OFF, torch.device("cpu"))
    assert data.weighted() is data and data.batch(0, 2, BASE).weight is None
    partly = degraded(stored(tmp_path, "c1", view=view), canonical(partial={"share": 1.0}), "toy", 0, 2)
    sure = TrainSet([partly], view, OFF, torch.device("cpu"))
    assert sure.weighted() is sure  # no label that is left is in doubt
    assert batches.WHOLE == 255


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "titles"),
    [
        ({"jitter": {"sigma": [1, 2.5]}}, ["jitter sigma=1", "jitter sigma=2.5"]),
        ({"jitter": {"sigma": 2, "smooth": 8, "unit": "mm"}}, ["jitter sigma=2 smooth=8 mm"]),
        ({"erode": {"radius": 1}}, ["erode radius=1"]),
        ({"partial": {"share": 0.5, "classes": 2, "background": "known"}},
         ["partial share=0.5 classes=2 background=known"]),
    ],
)  # fmt: skip
def test_titles(given, titles):
    condition = Condition.model_validate(given)
    assert [title_of(c) for c in condition.canonical()] == titles
    assert [title_of(c) for _, c in expand([CLEAN, condition])] == [CLEAN, *titles]
    assert [at for at, _ in expand([CLEAN, condition])] == [0, *[1] * len(titles)]


def test_names_of_settings():
    assert name_of("toy", CLEAN, None) == "toy"
    assert name_of("toy", JITTER, None) == "toy [jitter sigma=2]"
    assert name_of("toy", CLEAN, 1) == "toy [1 patient]"
    assert name_of("toy", JITTER, 5) == "toy [5 patients, jitter sigma=2]"
