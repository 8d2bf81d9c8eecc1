"""Segmentation losses: logits in, softmax inside, ignored voxels without value or gradient.

`LOSSES` is the table of built-in names. Classes are imported when they are first asked for, so the table costs nothing:

    from harness.losses import Dice
    value = Dice()(logits, target)     # logits (B, C, *S) raw, target (B, *S) int64, 255 ignored
"""

from __future__ import annotations

from typing import Any

LOSSES: dict[str, str] = {
    "ce": "harness.losses.pixel:CrossEntropy",
    "focal": "harness.losses.pixel:Focal",
    "dice": "harness.losses.region:Dice",
    "jaccard": "harness.losses.region:Jaccard",
    "tversky": "harness.losses.region:Tversky",
    "focal_tversky": "harness.losses.region:FocalTversky",
    "lovasz": "harness.losses.region:LovaszSoftmax",
    "dice_ce": "harness.losses.compound:DiceCE",
}
_CLASSES = {target.partition(":")[2]: target.partition(":")[0] for target in LOSSES.values()}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'harness.losses' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_CLASSES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_CLASSES]
