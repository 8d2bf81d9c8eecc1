"""nnU-Net's rules against its three published plans, and each rule by hand."""

import math

import pytest

from harness.models.nnunet_plan import BUDGET_2D, BUDGET_3D, memory, plan, topology

TWICE = (2, 2, 2)


def test_the_published_plan_of_the_hippocampus() -> None:
    found = plan([36, 50, 35], [1.0, 1.0, 1.0], 260, channels=1, classes=3)
    assert found.patch == (40, 56, 40) and found.batch == 9
    assert found.topology.strides == (TWICE, TWICE, TWICE)
    assert found.topology.kernels == ((3, 3, 3),) * 4


def test_the_published_plan_of_the_lung() -> None:
    found = plan([252, 512, 512], [1.245, 0.785, 0.785], 63, channels=1, classes=2)
    assert found.patch == (80, 160, 160) and found.batch == 2
    assert found.topology.pools == (4, 5, 5)
    assert found.topology.strides == ((1, 2, 2), TWICE, TWICE, TWICE, TWICE)


def test_the_published_plan_of_the_liver() -> None:
    found = plan([482, 512, 512], [1.0, 0.768, 0.768], 131, channels=1, classes=3)
    assert found.patch == (128, 128, 128) and found.batch == 2
    assert found.topology.strides == (TWICE,) * 5


def test_the_order_of_the_axes_does_not_matter() -> None:
    """nnU-Net puts the coarsest axis first; here the rules see sizes and spacings alone."""
    found = plan([512, 512, 252], [0.785, 0.785, 1.245], 63, channels=1, classes=2)
    assert found.patch == (160, 160, 80) and found.topology.strides[0] == (2, 2, 1)


def test_memory_by_hand() -> None:
    # 8 × 16 at min_edge 4: (1, 2) poolings, (1, 2) and (2, 2); stages of 8 × 16, 8 × 8, 4 × 4 with 3, 6, 10 channels
    net = topology([8, 16], [1.0, 1.0])
    assert net.strides == ((1, 2), (2, 2))
    full = 128 * (5 * 3 + 2 + 4)  # five convolutions of 3 channels, an image of 2, logits of 4
    assert memory(net, width=3, limit=10, channels=2, classes=4) == full + 64 * 5 * 6 + 16 * 2 * 10


@pytest.mark.parametrize(
    ("size", "pools", "patch"),
    [
        ([7, 8, 9], (0, 1, 1), (7, 8, 10)),
        ([20, 16, 31], (2, 2, 2), (20, 16, 32)),
        ([4, 320, 320], (0, 6, 6), (4, 320, 320)),
        ([3, 33], (0, 3), (3, 40)),
    ],
)
def test_sides_are_halved_down_to_four_voxels(size: list[int], pools: tuple[int, ...], patch: tuple[int, ...]) -> None:
    net = topology(size, [1.0] * len(size))
    assert net.pools == pools and net.patch == patch
    for axis, count in enumerate(pools):
        assert math.prod(s[axis] for s in net.strides) == 2**count
        assert patch[axis] // 2**count >= 4 or count == 0


def test_kernels_do_not_reach_across_coarse_axes_until_the_others_have_caught_up() -> None:
    net = topology([16, 256, 256], [8.0, 1.0, 1.0])  # pools (2, 6, 6)
    assert net.strides == ((1, 2, 2),) * 4 + (TWICE,) * 2
    assert net.kernels == ((1, 3, 3),) * 3 + ((3, 3, 3),) * 4  # the fourth stage has 8 mm along all three
    net = topology([16, 256, 256], [2.0, 1.0, 1.0])
    assert net.kernels[0] == (1, 3, 3) and net.kernels[1] == (3, 3, 3)  # twice as coarse is too coarse
    assert topology([16, 256, 256], [1.9, 1.0, 1.0]).kernels == ((3, 3, 3),) * 7


@pytest.mark.parametrize("shape", [(155, 240, 240), (30, 320, 320), (600, 90, 700), (64, 64, 2000), (9, 512, 512)])
def test_every_patch_fits_and_no_larger_one_does(shape: tuple[int, int, int]) -> None:
    spacing = [3.0, 1.0, 1.0]
    found = plan(shape, spacing, 100, channels=4, classes=4)
    used = memory(found.topology, 30, 320, 4, 4)
    assert used <= BUDGET_3D and found.batch >= 2
    assert all(p % 2**n == 0 for p, n in zip(found.patch, found.topology.pools, strict=True))
    assert all(p < n + 2**k for p, n, k in zip(found.patch, shape, found.topology.pools, strict=True))
    if any(p < n for p, n in zip(found.patch, shape, strict=True)):  # it was shrunk, by the least step
        covered = [p / n for p, n in zip(found.patch, shape, strict=True)]
        larger = [p + 2**n for p, n in zip(found.patch, found.topology.pools, strict=True)]
        grown = [
            memory(topology([*found.patch[:i], larger[i], *found.patch[i + 1 :]], spacing), 30, 320, 4, 4)
            for i in range(3)
            if covered[i] < 1
        ]
        assert max(grown) > BUDGET_3D


def test_a_batch_holds_at_most_a_twentieth_of_a_small_data_set() -> None:
    few = plan([36, 50, 35], [1.0, 1.0, 1.0], 80, channels=1, classes=3)
    assert few.batch == round(0.05 * 36 * 50 * 35 * 80 / (40 * 56 * 40)) == 3
    assert plan([36, 50, 35], [1.0, 1.0, 1.0], 2, channels=1, classes=3).batch == 2  # and never fewer than two


def test_in_2d_the_patch_is_the_median_slice() -> None:
    small = plan([50, 35], [1.0, 1.0], 260 * 36, channels=1, classes=3)
    assert small.patch == (56, 40)
    assert small.batch == round(0.05 * 50 * 35 * 260 * 36 / (56 * 40)) == 366
    large = plan([512, 512], [0.8, 0.8], 100_000, channels=1, classes=3)
    assert large.patch == (512, 512) and large.topology.pools == (7, 7)
    assert large.batch == math.floor(BUDGET_2D / memory(large.topology, 30, 512, 1, 3) * 50) == 12


@pytest.mark.parametrize(
    ("size", "spacing"), [([8], [1.0]), ([8, 8], [1.0]), ([8, 8, 8], [1.0, 1.0, 0.0]), ([0, 8], [1.0, 1.0])]
)
def test_wrong_arguments_are_one_sentence(size: list[int], spacing: list[float]) -> None:
    with pytest.raises(ValueError, match="expected a size and a spacing of 2 or 3 axes above 0"):
        topology(size, spacing)
