"""Scenes: deterministic, the same case at any resolution, every class there and learnable from the image."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from harness.data.scenes import SCENES, VOID, Drawn, Order, draw
from harness.data.scenes.street import CLASSES
from harness.errors import BenchError

CHANNELS = {"brain_tumour": ("T1", "T1ce", "T2", "FLAIR"), "street": ("red", "green", "blue"), "blobs": ("a", "b")}
VOLUMES = sorted(set(SCENES) - {"street", "abdomen", "abdomen_scaled", "liver"})  # those drawn on a canvas


@cache
def drawn(name: str, seed: int, frame: int = 0, shape: tuple[int, int, int] | None = None) -> Drawn:
    return draw(
        name, Order(seed, shape or SCENES[name].shape, ("first", "second", "third"), CHANNELS.get(name, ("x",)), frame)
    )


def digest(d: Drawn) -> str:
    return hashlib.sha256(d.image.tobytes() + d.label.tobytes()).hexdigest()


def shares(d: Drawn) -> np.ndarray:
    """Share of the voxels of each class."""
    return np.bincount(d.label[d.label != VOID].ravel(), minlength=len(d.names) + 1)[1:] / d.label.size


@pytest.mark.parametrize("name", SCENES)
def test_types_and_shapes(name):
    d = drawn(name, 0)
    assert d.image.dtype == np.float32 and d.label.dtype == np.uint8
    assert d.image.shape == (len(CHANNELS.get(name, ("x",))), *SCENES[name].shape)
    assert d.label.shape == SCENES[name].shape
    assert np.isfinite(d.image).all()
    if name == "abdomen_scaled":
        assert (d.image.min(), d.image.max()) == (0, 1)
    else:  # whole numbers, that files of 16 bits (8 for photographs) can hold
        assert (d.image == np.rint(d.image)).all()
        assert d.image.min() >= (-1024 if name in ("abdomen", "liver") else 0)
        assert d.image.max() <= (255 if name in ("street", "blobs") else 3071)


@pytest.mark.parametrize("name", SCENES)
def test_the_seed_fixes_the_case_whatever_the_global_generator(name):
    order = Order(3, SCENES[name].shape, ("first", "second", "third"), CHANNELS.get(name, ("x",)))
    np.random.seed(1)
    first = draw(name, order)
    np.random.seed(2)
    assert digest(draw(name, order)) == digest(first)
    assert len({digest(drawn(name, seed)) for seed in range(4)}) == 4


@pytest.mark.parametrize("name", SCENES)
def test_each_class_is_there(name):
    optional = {"gallbladder"} if name.startswith("abdomen") else set()  # one patient in five has none
    for seed in range(8):
        d = drawn(name, seed)
        assert set(np.unique(d.label)) - {VOID} <= set(range(len(d.names) + 1))
        for class_name, share in zip(d.names, shares(d), strict=True):
            assert share * d.label.size >= 8 or class_name in optional, (seed, class_name)


@pytest.mark.parametrize("name", SCENES)
def test_classes_can_be_learned(name):
    # a normal density per class of grey values and place, fitted on five cases, finds the classes of two others
    def features(d: Drawn) -> np.ndarray:
        smooth = [ndimage.gaussian_filter(c, (0.5, 1.2, 1.2)) for c in d.image]
        return np.stack([*d.image, *smooth, *np.indices(d.label.shape)]).reshape(2 * len(d.image) + 3, -1).T

    several = [drawn(name, seed) for seed in range(5)]
    x = np.concatenate([features(d) for d in several])
    y = np.concatenate([d.label.ravel() for d in several])
    densities = {}
    for value in sorted(set(y.tolist()) - {VOID}):
        own = x[y == value].astype(float)
        covariance = np.cov(own.T) + 1e-3 * np.diag(own.var(0) + 1)
        densities[value] = (
            own.mean(0),
            np.linalg.inv(covariance),
            np.log(len(own)) - 0.5 * np.linalg.slogdet(covariance)[1],
        )
    scores = []
    for seed in (5, 6):
        d = drawn(name, seed)
        away = {k: features(d) - mean for k, (mean, _, _) in densities.items()}
        fit = [log - 0.5 * ((away[k] @ inverse) * away[k]).sum(1) for k, (_, inverse, log) in densities.items()]
        found = np.array(list(densities))[np.argmax(fit, axis=0)]
        truth = d.label.ravel()
        for k in range(1, len(d.names) + 1):
            a, b = (found == k) & (truth != VOID), truth == k
            if b.any():
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert np.mean(scores) > 0.4, np.mean(scores)


@pytest.mark.parametrize("name", VOLUMES)
def test_another_resolution_shows_the_same_case(name):
    z, y, x = SCENES[name].shape
    fine = drawn(name, 1, shape=(2 * z, 2 * y, 2 * x))
    assert shares(fine) == pytest.approx(shares(drawn(name, 1)), rel=0.15, abs=5e-4)


def test_the_brain_is_one_piece_inside_a_head():
    for seed in range(4):
        d = drawn("head", seed)
        brain = d.label == 1
        pieces, _ = ndimage.label(brain, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.98 * brain.sum()
        assert 0.12 < brain.mean() < 0.25
        tissue = np.median(d.image[0][brain])
        around = ndimage.binary_dilation(brain, iterations=2) & ~brain
        assert tissue > 1.5 * np.median(d.image[0][around])  # fluid and bone
        assert tissue > 5 * np.median(d.image[0, :, :6, :6])  # air


def test_a_tumour_has_the_contrasts_of_its_sequences():
    for seed in range(4):
        d = drawn("brain_tumour", seed)
        t1, t1ce, t2, flair = d.image
        outside = (d.image == 0).all(axis=0)
        assert ((d.image == 0).any(axis=0) == outside).all()  # the skull is stripped in all alike
        assert outside.mean() > 0.3 and not (d.label[outside] != 0).any()
        healthy = ~outside & (d.label == 0)
        assert np.median(t1ce[d.label == 3]) > 1.25 * np.median(t1ce[healthy])
        assert np.median(t1[d.label == 3]) < np.median(t1[healthy])
        assert np.median(flair[d.label == 2]) > 1.5 * np.median(flair[healthy])
        assert np.median(t2[d.label == 1]) > 1.5 * np.median(t2[healthy])
        inner = ndimage.binary_dilation(d.label == 1) & (d.label != 1)
        assert (d.label[inner] != 0).all()  # the core is wrapped in tumour


def test_channels_follow_the_names_of_the_modalities():
    order = Order(2, (8, 32, 32), (), ("FLAIR", "T1-Gd"))
    flair, t1ce = draw("brain_tumour", order).image
    both = draw("brain_tumour", Order(2, (8, 32, 32), (), ("t1gd", "flair"))).image
    assert np.corrcoef(flair.ravel(), both[1].ravel())[0, 1] > 0.98 > np.corrcoef(flair.ravel(), both[0].ravel())[0, 1]
    assert np.corrcoef(t1ce.ravel(), both[0].ravel())[0, 1] > 0.98
    with pytest.raises(BenchError, match="no sequence 'PET'; `modalities` may name t1, t1ce, t2, flair"):
        draw("brain_tumour", Order(2, (8, 32, 32), (), ("PET",)))


def test_a_heart_contracts():
    for seed in range(6):
        diastole, systole = drawn("heart", seed), drawn("heart", seed, 1)
        right, muscle, left = shares(systole) / shares(diastole)
        assert 0.25 < left < 0.65  # an ejection fraction of 35 to 75 %
        assert right < 0.9 and 0.6 < muscle < 1.4
        # the same patient: what lies around stays where it is
        still = ~((diastole.label > 0) | (systole.label > 0))
        assert np.corrcoef(diastole.image[0][still], systole.image[0][still])[0, 1] > 0.8
        # the cavity is walled in, and the right ventricle is on the patient's right
        in_plane = np.zeros((3, 3, 3), bool)
        in_plane[1] = True
        rim = ndimage.binary_dilation(diastole.label == 3, in_plane) & (diastole.label != 3)
        assert (diastole.label[rim] == 2).mean() > 0.97
        assert np.nonzero(diastole.label == 1)[2].mean() < np.nonzero(diastole.label == 3)[2].mean()
        assert not diastole.label[0].any() or not diastole.label[-1].any()


def test_the_hippocampus_has_its_anterior_part_in_front():
    for seed in range(4):
        d = drawn("hippocampus", seed)
        y = {k: np.nonzero(d.label == k)[1] for k in (1, 2)}
        assert y[1].max() <= y[2].min() + 2
        pieces, _ = ndimage.label(d.label > 0, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.97 * (d.label > 0).sum()


def test_tumours_lie_in_the_liver_and_are_darker():
    for seed in range(6):
        plain, d = drawn("abdomen", seed), drawn("liver", seed)
        assert ((d.label > 0) == (plain.label == 5)).all()
        assert dict(d.part_of) == {"tumour": "liver"}
        core = ndimage.distance_transform_edt(d.label == 2) >= min(
            2, ndimage.distance_transform_edt(d.label == 2).max()
        )
        change = (plain.image - d.image)[0]
        assert 30 < np.median(change[core]) < 75  # HU
        assert (change[d.label == 0] == 0).all()


def test_a_street_has_its_order():
    for seed in range(6):
        d = drawn("street", seed)
        rows = {name: np.nonzero(d.label[0] == k)[0].mean() for k, name in enumerate(CLASSES, start=1)}
        assert rows["sky"] < rows["building"] < rows["road"]
        assert rows["traffic_light"] < rows["pole"] < rows["sidewalk"]
        assert rows["rider"] < max(rows["bicycle"], rows["motorcycle"])
        assert 0 < (d.label == VOID).mean() < 0.12
        assert (d.label[0, -1] == VOID).all() and not (d.label == 0).any()


def test_blobs_make_any_classes_in_volumes_and_images():
    for shape in ((16, 64, 64), (1, 48, 64)):
        for count in (1, 2, 5, 12):
            names = tuple(f"class {i}" for i in range(count))
            cases = [draw("blobs", Order(seed, shape, names, ("grey",))) for seed in range(3)]
            for d in cases:
                assert d.names == names and (shares(d) > 0).all(), (shape, count)
                assert (d.image[0][d.label > 0].mean()) > d.image[0][d.label == 0].mean() + 20
            first = [[np.median(d.image[0][d.label == k]) for k in range(1, count + 1)] for d in cases]
            assert np.median(np.ptp(first, axis=0)) < 15  # a class is as bright in every case


@pytest.mark.parametrize(
    ("name", "order", "sentence"),
    [
        ("haed", Order(0, (8, 32, 32), (), ("x",)), "no scene 'haed' \\(did you mean 'head'\\?\\)"),
        ("head", Order(-1, (8, 32, 32), (), ("x",)), "scene head: found seed -1"),
        ("head", Order(0, (8, 32, 8), (), ("x",)), "8×32×8 voxels .* at least 16×16"),
        ("head", Order(0, (8, 32, 32), (), ("x", "y")), "scene head: 1 channel, and the manifest names 2 modalities"),
        ("street", Order(0, (2, 32, 64), (), ("r", "g", "b")), "one slice of 3 channels, found 2 slices"),
    ],
)
def test_nonsense_is_refused(name, order, sentence):
    with pytest.raises(BenchError, match=sentence):
        draw(name, order)
