"""Data sets without a background, such as street scenes: the network has one output for each class and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from harness.data.augment import Batch, augmented
from harness.data.batches import TrainSet
from harness.data.layouts import Volume, reader_of
from harness.data.manifest import Manifest, load_manifest
from harness.data.prepare import load_prepared, prepare
from harness.errors import BenchError
from harness.models.output import Output
from harness.predict import predict_case

MANIFEST = """\
name: street
title: t
licence: l
attribution: a
obtain: o
layout: {files: {image: "i/{case}.png", label: "l/{case}.png"}}
modalities: [grey]
labels: {road: 7, sky: 23, car: 26}
ignore: 255
background: false
dimensions: 2
spacing: unknown
intensity: {window: [0, 255]}
cases: [a, b]
splits: {s: {train: [a], test: [b]}}
"""
LABEL = np.array([[1, 1, 2, 2], [1, 255, 3, 2], [3, 3, 3, 2]], np.uint8)
VIEW = {"slices": {"size": [4, 6], "fit": "pad", "axis": 0}}


@pytest.fixture
def street(tmp_path: Path) -> Manifest:
    (tmp_path / "street.yaml").write_text(MANIFEST)
    manifest = load_manifest("street.yaml", tmp_path)
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    for case in manifest.cases:
        reader_of(manifest, tmp_path).write(case, Volume(image, LABEL[None], None))
    return manifest


def test_classes_are_counted_from_0_and_padding_is_ignored(street: Manifest, tmp_path: Path) -> None:
    assert street.num_classes == 3 and street.classes == {"road": 1, "sky": 2, "car": 3}
    case = load_prepared(prepare(street, reader_of(street, tmp_path), "a", VIEW, tmp_path / "cache"))
    inside = case.label[0, 0:3, 1:5]
    assert inside.tolist() == [[0, 0, 1, 1], [0, 255, 2, 1], [2, 2, 2, 1]]
    assert set(case.label[0, 3]) == {255} and set(case.label[0, :, 0]) == {255}
    assert np.array_equal(case.reference[0], LABEL) and case.first_class == 1


def test_a_pixel_without_a_class_is_ignored_in_training_and_in_scores(street: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "l" / "a.png"
    values = np.array(Image.open(path))
    values[0, 0] = 0  # known to every manifest, and here of no class
    Image.fromarray(values).save(path)
    case = load_prepared(prepare(street, reader_of(street, tmp_path), "a", VIEW, tmp_path / "cache"))
    assert case.label[0, 0, 1] == 255 and case.reference[0, 0, 0] == 255
    assert np.array_equal(case.reference[0].ravel()[1:], LABEL.ravel()[1:])


def test_a_slice_of_the_first_class_alone_is_labelled(street: Manifest, tmp_path: Path) -> None:
    case = load_prepared(prepare(street, reader_of(street, tmp_path), "a", VIEW, tmp_path / "cache"))
    case.label[...] = np.where(case.label == 255, 255, 0)
    view = {"slices": VIEW["slices"] | {"keep": "labelled"}}
    still = {"rotate": 0, "scale": 0, "shift": 0, "flip": False, "intensity": 0, "noise": 0}
    assert TrainSet([case], view, still, torch.device("cpu")).samples == 1
    case.label[...] = 255
    with pytest.raises(BenchError, match="leaves none"):
        TrainSet([case], view, still, torch.device("cpu"))


class Perfect(nn.Module):
    """Gives the prepared label as logits, road where it is ignored."""

    def __init__(self, label: np.ndarray) -> None:
        super().__init__()
        known = torch.from_numpy(np.where(label == 255, 0, label)).long()
        self.logits = torch.nn.functional.one_hot(known, 3).movedim(-1, 1).float()

    def forward(self, image: Tensor) -> Output:
        return Output(self.logits)


def test_predictions_are_classes_of_the_manifest(street: Manifest, tmp_path: Path) -> None:
    case = load_prepared(prepare(street, reader_of(street, tmp_path), "b", VIEW, tmp_path / "cache"))
    cpu = torch.device("cpu")
    found = predict_case(Perfect(case.label), case, VIEW, batch=1, device=cpu, precision="float32")
    known = LABEL != 255
    assert np.array_equal(found[0][known], LABEL[known]) and found[0][~known].tolist() == [1]


@pytest.mark.parametrize(
    "how", [{"rotate": 45, "scale": 0, "shift": 0.3, "flip": False}, {"preset": "transunet"}, {"preset": "nnunet"}]
)
def test_what_turns_in_from_outside_is_ignored(how: dict[str, object]) -> None:
    target = torch.zeros(32, 16, 16, dtype=torch.long)
    how = {"intensity": 0, "noise": 0} | how
    batch = Batch(torch.ones(32, 1, 16, 16), target, torch.ones(32, 2))
    one = augmented(batch, how, torch.Generator().manual_seed(1), 255).target
    assert set(one.unique().tolist()) == {0, 255}  # class 0 is a class here, and is never invented
    same = augmented(batch, how, torch.Generator().manual_seed(1)).target
    assert set(same.unique().tolist()) == {0}


def test_a_volume_has_a_background(tmp_path: Path) -> None:
    (tmp_path / "street.yaml").write_text(MANIFEST.replace("dimensions: 2", "dimensions: 3"))
    with pytest.raises(BenchError, match="`background: false` is for images"):
        load_manifest("street.yaml", tmp_path)
