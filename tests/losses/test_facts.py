"""Facts of labels, counted by hand."""

import numpy as np

from harness.losses.facts import label_facts


def test_counts_of_two_labels_by_hand() -> None:
    first = np.array([[0, 0, 1], [255, 255, 3]], np.uint8)
    second = np.array([[1, 1, 1], [0, 255, 0]], np.uint8)
    facts = label_facts([first, second], 4)
    # class 2 is absent; 4 of background, 1 + 3 of class 1, 1 of class 3, and 3 ignored of 12 voxels
    assert facts["class_counts"] == [4, 4, 0, 1] and all(type(n) is int for n in facts["class_counts"])
    # unlike face neighbours: in the first 0|1 in the row and 1|3 in the column, in the second 1|0 twice in columns
    assert facts["class_surface"] == [1 + 2, 1 + 2, 0, 1]
    assert facts["adjacency"] == [[1, 3, 0, 0], [3, 2, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_volume_has_neighbours_along_every_axis() -> None:
    label = np.zeros((2, 2, 2), np.uint8)
    label[1, 1, 1] = 1
    facts = label_facts([label], 2)
    assert facts == {"class_counts": [7, 1], "class_surface": [3, 1], "adjacency": [[9, 3], [3, 0]]}


def test_ignored_voxels_are_nobodys_neighbours() -> None:
    facts = label_facts([np.array([[0, 255, 1]], np.uint8)], 2)
    assert facts == {"class_counts": [1, 1], "class_surface": [0, 0], "adjacency": [[0, 0], [0, 0]]}
