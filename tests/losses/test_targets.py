"""Targets derived from the label, against search over all pairs of voxels."""

import math

import numpy as np
import pytest
import torch

from harness.losses.needs import LABEL_NEEDS
from harness.losses.targets import derive


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
def test_distances_agree_with_a_search_over_all_pairs(size, spacing, ignored):
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
