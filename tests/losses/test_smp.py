"""Against segmentation_models_pytorch, whose losses are loaded alone: the package itself wants torchvision and timm."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from harness.losses import Dice, Focal, Jaccard, LovaszSoftmax, Tversky

NAME = "segmentation_models_pytorch"
SHAPES = [(2, 4, 9, 8), (2, 3, 5, 6, 4)]


@pytest.fixture(scope="module")
def smp() -> Iterator[ModuleType]:
    found = importlib.util.find_spec(NAME)
    assert found is not None and found.submodule_search_locations, "pip install --no-deps -r tests/oracles.txt"
    stub = ModuleType(NAME)
    stub.__path__ = [str(Path(p)) for p in found.submodule_search_locations]
    sys.modules[NAME] = stub
    yield importlib.import_module(f"{NAME}.losses")
    for name in [n for n in sys.modules if n == NAME or n.startswith(f"{NAME}.")]:
        del sys.modules[name]


def _sample(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=draw, dtype=torch.float64)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=draw)
    assert all(bool((target == c).any()) for c in range(shape[1]))  # smp counts an absent class as a perfect one
    return logits, target


@pytest.mark.parametrize("shape", SHAPES)
def test_region_losses(smp: ModuleType, agree, shape: tuple[int, ...]) -> None:
    logits, target = _sample(shape)
    flat, labels = logits.flatten(2)[..., None], target.flatten(1)[..., None]  # smp takes images
    pairs = {
        "dice": (Dice(smooth=0), smp.DiceLoss("multiclass")),
        "jaccard": (Jaccard(smooth=0), smp.JaccardLoss("multiclass")),
        "tversky": (
            Tversky(fp_weight=0.3, fn_weight=0.7, smooth=0),
            smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        agree(name, f"smp {type(theirs).__name__}", ours(logits, target), theirs(flat, labels))
    lovasz = smp.LovaszLoss("multiclass")(flat.float(), labels)  # it knows float32 alone
    agree("lovasz", "smp LovaszLoss, float32", LovaszSoftmax()(logits.float(), target), lovasz)


def test_the_smooth_term_of_smp_counts_twice_in_dice(smp: ModuleType, agree) -> None:
    """Its Dice is Tversky(0.5, 0.5): (TP + s) / (TP + FP / 2 + FN / 2 + s)."""
    logits, target = _sample(SHAPES[0])
    theirs = smp.DiceLoss("multiclass", smooth=1.0)(logits, target)
    agree("dice", "smp DiceLoss, half the smooth term", Dice(smooth=2)(logits, target), theirs)


def test_binary_focal_is_ours_with_a_second_logit_of_0(smp: ModuleType, agree) -> None:
    """With several classes smp's focal loss is one against the rest with sigmoids: another loss."""
    logits, target = _sample((2, 2, 9, 8))
    logits[:, 0] = 0
    theirs = smp.FocalLoss("binary", gamma=2.0)(logits[:, 1:], target[:, None])
    agree("focal", "smp FocalLoss, binary", Focal(2.0)(logits, target), theirs)


def test_ignored_voxels(smp: ModuleType, agree) -> None:
    logits, target = _sample(SHAPES[0])
    target[:, 2:4, 1:5] = 255
    ours = Dice(smooth=0)(logits, target)
    agree("dice", "smp DiceLoss, ignored voxels", ours, smp.DiceLoss("multiclass", ignore_index=255)(logits, target))
