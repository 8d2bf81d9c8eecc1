"""Targets derived from the label, against search over all pairs of voxels."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from harness.losses import targets
from harness.losses.needs import LABEL_NEEDS
from harness.losses.targets import derive, distance_to, separable_distance


def by_search(label, known, c, spacing):
    """(inside, outside) distances of class c in one sample: to the nearest known voxel centre of the other side."""
    points = [at for at in np.ndindex(*label.shape) if known[at]]
    own, other = [p for p in points if label[p] == c], [p for p in points if label[p] != c]
    maps = np.zeros((2, *label.shape))
    if own and other:
        for i, (side, far) in enumerate(((own, other), (other, own))):
            for p in side:
                maps[(i, *p)] = min(math.dist(np.multiply(p, spacing), np.multiply(q, spacing)) for q in far)
    return maps


@pytest.mark.parametrize(
    ("size", "spacing"),
    [((7, 6), [[1.0, 1.0], [0.5, 3.0]]), ((4, 5, 3), [[1.0, 1.0, 1.0], [2.5, 0.8, 0.7]])],
    ids=["2d", "3d"],
)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("path", ["scipy", "device"])
def test_distances_agree_with_a_search_over_all_pairs(size, spacing, ignored, path, monkeypatch):
    if path == "device":
        monkeypatch.setattr(targets, "_on_cpu", separable_distance)
    g = torch.Generator().manual_seed(0)
    target = (torch.rand(2, *size, generator=g) < 0.3).long() * 2  # class 1 is absent
    if ignored:
        target[:, 1:3, 2] = 255
    spacing = torch.tensor(spacing)
    found = derive(["distance_in", "distance_out"], target, num_classes=3, spacing=spacing)
    for b in range(2):
        known = target[b].numpy() != 255
        for c in range(3):
            inner, outer = by_search(target[b].numpy(), known, c, spacing[b].tolist())
            np.testing.assert_allclose(found["distance_in"][b, c], inner, rtol=1e-6)
            np.testing.assert_allclose(found["distance_out"][b, c], outer, rtol=1e-6)
    assert found["distance_in"].dtype == found["distance_out"].dtype == torch.float32
    assert found["distance_in"].shape == (2, 3, *size)


def test_distances_by_hand():
    """A row 0 0 1 1 255 1 with 2 mm between voxels: the nearest voxel centre, and the ignored one counts for nothing."""
    target = torch.tensor([[[0, 0, 1, 1, 255, 1]]])
    found = derive(["distance_in", "distance_out"], target, num_classes=3, spacing=torch.tensor([[5.0, 2.0]]))
    assert found["distance_in"][0, :, 0].tolist() == [[4, 2, 0, 0, 0, 0], [0, 0, 2, 4, 0, 8], [0] * 6]
    assert found["distance_out"][0, :, 0].tolist() == [[0, 0, 2, 4, 0, 8], [4, 2, 0, 0, 0, 0], [0] * 6]


def test_a_class_that_fills_the_image_has_no_distance():
    found = derive(
        ["distance_in", "distance_out"], torch.ones(1, 4, 4, dtype=torch.long), num_classes=2, spacing=torch.ones(1, 2)
    )
    assert not found["distance_in"].any()
    assert not found["distance_out"].any()


def test_masks_by_hand():
    target = torch.tensor([[[0, 1, 1], [0, 255, 1]], [[2, 2, 2], [2, 2, 2]]])
    found = derive(["onehot", "valid", "present", "boundary"], target, num_classes=3, spacing=torch.ones(2, 2))
    assert found["valid"].tolist() == [[[True] * 3, [True, False, True]], [[True] * 3] * 2]
    assert found["present"].tolist() == [[True, True, False], [False, False, True]]
    assert found["onehot"][0].tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 1]], [[0] * 3] * 2]
    # only 0|1 of the first row differs; what touches the ignored voxel alone is no boundary
    assert found["boundary"].tolist() == [[[True, True, False], [False] * 3], [[False] * 3] * 2]
    assert {k: v.dtype for k, v in found.items()} == {
        "onehot": torch.float32,
        "valid": torch.bool,
        "present": torch.bool,
        "boundary": torch.bool,
    }


def test_boundary_in_3d_is_between_face_neighbours():
    target = torch.zeros(1, 3, 3, 3, dtype=torch.long)
    target[0, 1, 1, 1] = 1
    found = derive(["boundary"], target, num_classes=2, spacing=torch.ones(1, 3))["boundary"]
    assert found.sum() == 7
    assert not found[0, 0, 0, 0]


def test_every_need_of_the_label_can_be_derived():
    target = torch.randint(0, 2, (1, 4, 4))
    assert set(derive(LABEL_NEEDS, target, num_classes=2, spacing=torch.ones(1, 2))) == LABEL_NEEDS
    with pytest.raises(ValueError, match="edges"):
        derive(["edges"], target, num_classes=2, spacing=torch.ones(1, 2))


def scipy_distance(masks, spacing):
    out = np.full(masks.shape, np.inf)
    for at in np.ndindex(*masks.shape[:2]):
        if masks[at].any():
            out[at] = distance_transform_edt(~masks[at].numpy(), sampling=spacing[at[0]].numpy())
    return out


PATHS = pytest.mark.parametrize("transform", [distance_to, separable_distance])


@PATHS
@pytest.mark.parametrize("size", [(23, 17), (1, 9), (11, 7, 13), (3, 1, 8)], ids=str)
def test_both_transforms_agree_with_scipy(transform, size):
    g = torch.Generator().manual_seed(1)
    for density in (0.01, 0.1, 0.5, 0.99):
        masks = torch.rand(2, 3, *size, generator=g) < density
        spacing = torch.rand(2, len(size), generator=g) * 4 + 0.1
        found = transform(masks, spacing)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        np.testing.assert_allclose(found, scipy_distance(masks, spacing), rtol=1e-6)


@PATHS
def test_empty_full_and_single_voxel_masks(transform):
    masks = torch.zeros(1, 3, 5, 4, dtype=torch.bool)
    masks[0, 1] = True
    masks[0, 2, 1, 3] = True
    found = transform(masks, torch.tensor([[2.0, 3.0]]))
    assert found[0, 0].isinf().all()
    assert not found[0, 1].any()
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(4), indexing="ij")
    assert torch.allclose(found[0, 2], torch.hypot(2.0 * (rows - 1), 3.0 * (columns - 3)), rtol=1e-6)


@PATHS
def test_whole_numbers_are_exact(transform):
    """Unit spacing: squared distances are whole numbers, and exact before the root."""
    masks = torch.rand(1, 1, 200, 150, generator=torch.Generator().manual_seed(2)) < 2e-4
    squares = np.round(scipy_distance(masks, torch.ones(1, 2)) ** 2)
    assert squares.max() > 1000
    found = transform(masks, torch.ones(1, 2)).double()
    assert torch.equal((found**2).round(), torch.from_numpy(squares))
    np.testing.assert_allclose(found, np.sqrt(squares), rtol=1.2e-7)


def test_the_transform_in_pieces_is_the_same(monkeypatch):
    masks = torch.rand(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(3)) < 0.02
    spacing = torch.tensor([[1.0, 2.0, 0.7], [3.0, 0.5, 1.0]])
    whole = separable_distance(masks, spacing)
    for chunk in (1, 4 * masks.numel(), 5 * masks.numel()):
        monkeypatch.setattr(targets, "CHUNK", chunk)
        assert torch.equal(separable_distance(masks, spacing), whole)


def test_threads_change_no_bit():
    target = torch.randint(0, 3, (3, 20, 20), generator=torch.Generator().manual_seed(4))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(derive(["distance_out"], target, num_classes=3, spacing=torch.ones(3, 2))["distance_out"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_small_object_in_a_large_background_is_cut_out_rightly(corner, ignored):
    """Only the box around an object is searched for the background; ignored voxels at its rim widen it."""
    target = torch.zeros(1, 14, 12, dtype=torch.long)
    low = 0 if corner else 5
    target[0, low : low + 4, low : low + 3] = 1
    if ignored:
        target[0, low + 4, low : low + 3] = 255
        target[0, low : low + 4, low + 3] = 255
        target[0, 10, 3:5] = 255
    spacing = torch.tensor([[1.0, 3.0]])
    found = derive(["distance_in", "distance_out"], target, num_classes=2, spacing=spacing)
    known = target[0].numpy() != 255
    for c in range(2):
        inner, outer = by_search(target[0].numpy(), known, c, spacing[0].tolist())
        np.testing.assert_allclose(found["distance_in"][0, c], inner, rtol=1e-6)
        np.testing.assert_allclose(found["distance_out"][0, c], outer, rtol=1e-6)


def test_one_map_alone_is_the_one_of_both():
    target = torch.randint(0, 3, (2, 8, 7), generator=torch.Generator().manual_seed(5))
    target[0, :3] = 255
    options = {"num_classes": 3, "spacing": torch.rand(2, 2) + 0.5}
    both = derive(["distance_out", "distance_in"], target, **options)
    for name in both:
        assert torch.equal(derive([name], target, **options)[name], both[name])


def test_neither_distance_map_has_a_gradient():
    target = torch.randint(0, 2, (1, 6, 6), generator=torch.Generator().manual_seed(6))
    spacing = torch.ones(1, 2, requires_grad=True)
    maps = derive(["distance_in", "distance_out"], target, num_classes=2, spacing=spacing)
    assert not any(m.requires_grad for m in maps.values())


def test_a_batch_of_ignored_voxels_has_no_distance():
    maps = derive(["distance_in", "distance_out"], torch.full((2, 4, 3), 255), num_classes=3, spacing=torch.ones(2, 2))
    assert not maps["distance_in"].any()
    assert not maps["distance_out"].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_without_waiting_for_the_device():
    target = torch.randint(0, 3, (2, 40, 30, 20), generator=torch.Generator().manual_seed(7)) // 2
    target[:, 3:5] = 255
    spacing = torch.tensor([[1.0, 2.0, 0.7], [3.0, 0.5, 1.0]])
    wanted = derive(LABEL_NEEDS, target, num_classes=3, spacing=spacing)
    on, sides = target.cuda(), spacing.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = derive(LABEL_NEEDS, on, num_classes=3, spacing=sides)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in LABEL_NEEDS:
        torch.testing.assert_close(found[name].cpu(), wanted[name], rtol=1e-6, atol=0)
