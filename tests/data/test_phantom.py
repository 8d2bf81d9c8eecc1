"""The phantom: deterministic, anatomically plausible, and the same patient at any resolution.

Golden numbers carry tolerances: numpy promises the streams of PCG64, not the last bit of its transcendental functions.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from harness.data.phantom import ORGANS, PhantomCase, phantom_case
from harness.errors import BenchError

MANY = range(40)
# Patient 1: volume in mL and mean attenuation in HU; measured once, to notice a change of the phantom.
GOLDEN = {
    "aorta": (67.6, 107.7),
    "gallbladder": (25.3, 9.2),
    "left_kidney": (114.3, 150.4),
    "right_kidney": (127.9, 152.3),
    "liver": (1494.5, 99.4),
    "pancreas": (65.2, 81.9),
    "spleen": (153.2, 121.1),
    "stomach": (389.1, 18.3),
}


@cache
def case(seed: int) -> PhantomCase:
    return phantom_case(seed)


def volume(c: PhantomCase, organ: str) -> float:
    """In mL."""
    return float((c.label == ORGANS[organ]).sum() * np.prod(c.spacing) / 1000)


def digest(c: PhantomCase) -> str:
    return hashlib.sha256(c.image.tobytes() + c.label.tobytes()).hexdigest()


def test_labels_are_in_the_order_of_transunet():
    expected = ["aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach"]
    assert list(ORGANS) == expected
    assert list(ORGANS.values()) == list(range(1, 9))


def test_the_seed_fixes_the_case_whatever_the_global_generator():
    np.random.seed(1)
    first = phantom_case(3)
    np.random.seed(2)
    assert digest(phantom_case(3)) == digest(first)


def test_patients_differ():
    assert len({digest(case(s)) for s in MANY}) == len(MANY)
    for organ in ORGANS:
        volumes = [volume(case(s), organ) for s in MANY]
        assert np.std(volumes) > 0.08 * np.mean(volumes), organ


def test_golden_volumes_and_means_of_one_patient():
    c = phantom_case(1)
    for organ, (millilitres, hu) in GOLDEN.items():
        assert volume(c, organ) == pytest.approx(millilitres, rel=0.03, abs=0.5), organ
        assert c.image[c.label == ORGANS[organ]].mean() == pytest.approx(hu, abs=2.0), organ


def test_types_shape_and_anisotropic_spacing():
    c = case(0)
    assert c.image.dtype == np.int16 and c.label.dtype == np.uint8
    assert c.image.shape == c.label.shape == (24, 64, 64)
    # 204 mm / 24 slices, 320 mm / 64 pixels
    assert c.spacing == (8.5, 5.0, 5.0)
    # the same field of view in 96 pixels, another one in 40 slices
    assert phantom_case(0, (24, 96, 96)).spacing == pytest.approx((8.5, 10 / 3, 10 / 3))
    assert phantom_case(0, (40, 64, 48), (200.0, 320.0, 240.0)).spacing == (5.0, 5.0, 5.0)


def test_labels_are_known_and_organs_present():
    without = 0
    for s in MANY:
        found = set(np.unique(case(s).label))
        assert found <= set(range(9))
        assert found >= {0, 1, 3, 4, 5, 6, 7, 8}
        without += ORGANS["gallbladder"] not in found
    # one in five on average; 8 ± 2.5 of 40
    assert 3 <= without <= 14


def test_organs_are_in_one_piece():
    for s in MANY:
        for organ, value in ORGANS.items():
            mask = case(s).label == value
            if mask.any():
                pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
                assert np.bincount(pieces.ravel())[1:].max() > 0.95 * mask.sum(), (s, organ)


def test_volumes_are_those_of_adults():
    # reference ranges of adults are wide, so the bounds are on medians
    low_high = {
        "aorta": (40, 120),
        "gallbladder": (10, 40),
        "left_kidney": (100, 200),
        "right_kidney": (100, 200),
        "liver": (1200, 1900),
        "pancreas": (45, 100),
        "spleen": (120, 300),
        "stomach": (200, 600),
    }
    for organ, (low, high) in low_high.items():
        present = [v for v in (volume(case(s), organ) for s in MANY) if v]
        assert low < np.median(present) < high, organ


def test_the_liver_is_about_a_hundred_times_the_gallbladder():
    ratios = [volume(case(s), "liver") / v for s in range(20) if (v := volume(case(s), "gallbladder"))]
    assert 60 < np.median(ratios) < 150


def test_sides_in_lps_directions():
    for s in MANY:
        label = case(s).label
        centre = {k: np.array(np.nonzero(label == v)).mean(axis=1) for k, v in ORGANS.items() if (label == v).any()}
        x = {k: c[2] for k, c in centre.items()}
        # the patient's right is at low x: liver and right kidney; spleen, stomach and left kidney are on the other side
        assert x["right_kidney"] < x["aorta"] < x["left_kidney"]
        assert x["liver"] < x["aorta"] < x["spleen"]
        assert x["liver"] < x["stomach"]
        # y rises towards the back, z towards the head
        assert centre["stomach"][1] < min(centre["left_kidney"][1], centre["right_kidney"][1])
        assert centre["spleen"][0] > centre["left_kidney"][0]


def test_kidneys_are_a_pair():
    for s in MANY:
        left, right = volume(case(s), "left_kidney"), volume(case(s), "right_kidney")
        assert 0.5 < left / right < 2.0
        # no voxel of one is on the other's side of the aorta
        aorta = np.nonzero(case(s).label == 1)[2].mean()
        assert np.nonzero(case(s).label == 3)[2].min() > aorta > np.nonzero(case(s).label == 4)[2].max()


def test_the_aorta_runs_through_nearly_all_slices():
    for s in MANY:
        assert (case(s).label == ORGANS["aorta"]).any(axis=(1, 2)).sum() >= 22


def test_attenuation_keeps_the_order_of_the_portal_venous_phase():
    # in the core of the organs of a fine case, away from partial volume
    orders = []
    for s in range(4):
        c = phantom_case(s, (24, 128, 128))
        core = {k: ndimage.binary_erosion(c.label == v, np.ones((1, 3, 3))) for k, v in ORGANS.items()}
        orders.append([np.median(c.image[core[k]]) if core[k].any() else np.nan for k in ORGANS])
    hu = dict(zip(ORGANS, np.nanmedian(np.array(orders), axis=0), strict=True))
    assert -5 < hu["gallbladder"] < 30
    assert hu["gallbladder"] < hu["pancreas"] < hu["liver"] < hu["spleen"] < hu["aorta"] < 185
    assert hu["spleen"] < min(hu["left_kidney"], hu["right_kidney"])


def test_background_holds_fat_air_and_lookalikes_of_the_organs():
    image, label = case(0).image, case(0).label
    background = image[label == 0]
    assert (background < -700).mean() > 0.1  # air around the patient and lung
    assert ((background > -130) & (background < -60)).mean() > 0.05  # fat
    soft = ((background > 70) & (background < 130)).sum()
    assert soft > 0.5 * (label == ORGANS["liver"]).sum()  # muscle, bowel, heart and vessels look like organs


def test_another_resolution_shows_the_same_patient():
    for s in (1, 2, 5):
        coarse, fine = case(s), phantom_case(s, (24, 128, 128))
        assert fine.spacing == (8.5, 2.5, 2.5)
        for organ in ORGANS:
            a, b = volume(coarse, organ), volume(fine, organ)
            # sampling the surface of a body of n voxels errs by much less than 1 / sqrt(n)
            assert a == pytest.approx(b, rel=0.06, abs=1.5), organ
        # a coarse voxel centre lies between four fine ones: where these agree, so does the coarse one
        f = fine.label.reshape(24, 64, 2, 64, 2).transpose(0, 1, 3, 2, 4).reshape(24, 64, 64, 4)
        same = (f == f[..., :1]).all(axis=-1)
        assert (f[..., 0] == coarse.label)[same].mean() > 0.995
        # and the images agree but for noise and sharpness
        mean = fine.image.reshape(24, 64, 2, 64, 2).mean(axis=(2, 4))
        assert np.corrcoef(mean.clip(-125, 275).ravel(), coarse.image.clip(-125, 275).ravel())[0, 1] > 0.93


def test_noise_differs_between_patients_and_is_correlated():
    c = phantom_case(4, (24, 128, 128))
    core = ndimage.binary_erosion(c.label == ORGANS["liver"], np.ones((1, 7, 7)))
    rough = c.image - ndimage.uniform_filter(c.image.astype(float), (1, 7, 7))
    assert 6 < rough[core].std() < 30
    both = core[:, :, 1:] & core[:, :, :-1]
    assert np.corrcoef(rough[:, :, 1:][both], rough[:, :, :-1][both])[0, 1] > 0.3


@pytest.mark.parametrize(
    ("seed", "shape", "fov"),
    [
        (-1, (24, 64, 64), (204.0, 320.0, 320.0)),
        (0, (2, 64, 64), (204.0, 320.0, 320.0)),
        (0, (24, 64, 64), (0.0, 1.0, 1.0)),
    ],
)
def test_nonsense_is_refused(seed, shape, fov):
    with pytest.raises(BenchError, match="phantom"):
        phantom_case(seed, shape, fov)
