"""Losses of other libraries that compute the same value as ours, with the mapping of their conventions."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Call = Callable[[Tensor, Tensor], Tensor]
Make = Callable[[int, int, dict[str, Any]], Call]  # from classes, dimensions, facts


@dataclass(frozen=True)
class Peer:
    """A loss of another library.

    Attributes:
        loss: Our name.
        by: The library.
        make: Gives a function of logits and target.
        args: Arguments with which ours is the same value.
        dims: Where it works.
        binary: Compared on the first two logits and class 1 against the rest.
    """

    loss: str
    by: str
    make: Make
    args: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = (2, 3)
    binary: bool = False


def peers() -> Iterator[Peer]:
    """Other libraries' losses, with the mapping of their conventions to ours; those not installed are left out."""
    yield Peer("ce", "torch", lambda c, d, f: F.cross_entropy)
    yield Peer("weighted_ce", "torch", _torch_weighted)
    for add in (_monai, _exacta, _kornia, _smp):
        try:
            yield from add()
        except ImportError as error:
            print(f"left out {add.__name__[1:]}: {error}")


def _torch_weighted(classes: int, dims: int, facts: dict[str, Any]) -> Call:
    counts = torch.tensor(facts["class_counts"], dtype=torch.float64)
    weight = counts.sum() / (classes * counts)
    return lambda z, y: F.cross_entropy(z, y, weight.to(z), reduction="sum") / y.numel()


def _made(cls: Callable[..., Any], *args: Any, **options: Any) -> Make:
    """Of a loss that takes logits and label as they are."""
    return lambda classes, dims, facts: cls(*args, **options)


def _per_call(call: Callable[..., Tensor], **options: Any) -> Make:
    """Of a function that does."""
    return lambda classes, dims, facts: partial(call, **options)


def _one_logit(loss: Any) -> Make:
    """Of a binary loss of one logit: the difference of two."""
    return lambda classes, dims, facts: lambda z, y: loss((z[:, 1] - z[:, 0])[:, None], y)


def _wasserstein(cls: Callable[..., Any]) -> Make:
    return lambda classes, dims, facts: cls(1 - np.eye(classes))


RECALL = 2.25 / 3.25  # β² / (1 + β²) of β = 1.5


def _monai() -> Iterator[Peer]:
    import monai.losses as m

    def one_hot(cls: Callable[..., nn.Module], softmax: str = "softmax", times: bool = False, **options: Any) -> Make:
        loss = cls(to_onehot_y=True, **{softmax: True}, **options)
        return lambda classes, dims, facts: lambda z, y: loss(z, y[:, None]) * (classes if times else 1)

    batch, exact = {"batch": True}, {"smooth_nr": 0.0, "smooth_dr": 0.0}
    yield Peer("dice", "MONAI", one_hot(m.DiceLoss, **batch))
    # its sums are doubled and its smoothing is not
    yield Peer("jaccard", "MONAI", one_hot(m.DiceLoss, jaccard=True, smooth_nr=2e-5, smooth_dr=2e-5, **batch))
    yield Peer("tversky", "MONAI", one_hot(m.TverskyLoss, **batch))
    yield Peer("asymmetric_similarity", "MONAI", one_hot(m.TverskyLoss, alpha=1 - RECALL, beta=RECALL, **batch))
    # ours scales the weights to at most 1, and s counts accordingly
    yield Peer("generalized_dice", "MONAI", one_hot(m.GeneralizedDiceLoss, **batch, **exact), {"smooth": 0.0})
    # its mean is over classes too
    yield Peer("focal", "MONAI", one_hot(m.FocalLoss, "use_softmax", times=True))
    yield Peer("dice_ce", "MONAI", one_hot(m.DiceCELoss, **batch))
    yield Peer("gwdl", "MONAI", _wasserstein(m.GeneralizedWassersteinDiceLoss), {"reduction": "sample"})
    yield Peer("boundary", "MONAI", one_hot(m.BoundaryLoss, include_background=True))

    def float_label(classes: int, dims: int, facts: dict[str, Any]) -> Call:
        """Its distances take the type of the label, and truncate with integers."""
        loss = m.HausdorffDTLoss(softmax=True)
        return lambda z, y: loss(z, F.one_hot(y, classes).movedim(-1, 1).to(z.dtype))

    yield Peer("hausdorff_dt", "MONAI", float_label)


def _exacta() -> Iterator[Peer]:
    import exacta.losses as e

    batch = {"batch_dice": True}
    yield Peer("dice", "exacta", _made(e.DiceLoss, **batch))
    yield Peer("jaccard", "exacta", _made(e.TverskyLoss, alpha=1, beta=1, **batch))
    yield Peer("tversky", "exacta", _made(e.TverskyLoss, **batch))
    yield Peer("asymmetric_similarity", "exacta", _made(e.TverskyLoss, alpha=1 - RECALL, beta=RECALL, **batch))
    yield Peer("focal_tversky", "exacta", _made(e.FocalTverskyLoss, **batch))
    yield Peer("generalized_dice", "exacta", _made(e.GeneralizedDiceLoss, smooth=0.0, **batch), {"smooth": 0.0})
    yield Peer("focal", "exacta", _made(e.FocalLoss))
    yield Peer("topk", "exacta", _made(e.TopKCELoss))  # rounds the number of voxels up
    yield Peer("lovasz", "exacta", _made(e.LovaszSoftmaxLoss))
    yield Peer("lovasz_hinge", "exacta", _one_logit(e.LovaszHingeLoss()), binary=True)
    yield Peer("dice_ce", "exacta", _made(e.DiceCELoss, **batch))
    yield Peer("dice_topk", "exacta", _made(e.DiceTopKCELoss, **batch))
    yield Peer("dice_focal", "exacta", _made(e.DiceFocalLoss, **batch))
    yield Peer("gwdl", "exacta", _wasserstein(e.GeneralizedWassersteinDiceLoss), {"reduction": "sample"})
    yield Peer("hausdorff_dt", "exacta", _per_call(e.HausdorffDTLoss(), spacing=1.0))
    yield Peer("soft_cldice", "exacta", _made(e.SoftClDiceLoss, iterations=3), {"reduction": "sample"})


def _kornia() -> Iterator[Peer]:
    import kornia.losses as k

    exact, image = {"reduction": "sample", "smooth": 0.0}, {"classes": "all", "per_image": True}
    focal = partial(k.focal_loss, alpha=None, gamma=2.0, reduction="mean")
    yield Peer("focal", "kornia", lambda c, d, f: lambda z, y: c * focal(z, y))
    macro = {"absent": "skip", **exact}
    yield Peer("dice", "kornia", _per_call(k.dice_loss, average="macro", eps=1e-12), macro, (2,))
    micro = {"weights": "uniform", **exact}
    yield Peer("generalized_dice", "kornia", _per_call(k.dice_loss, average="micro", eps=1e-12), micro, (2,))
    yield Peer("tversky", "kornia", _per_call(k.tversky_loss, alpha=0.5, beta=0.5, eps=1e-12), exact, (2,))
    yield Peer("lovasz", "kornia", _per_call(k.lovasz_softmax_loss), image, (2,))
    yield Peer("lovasz_hinge", "kornia", _one_logit(k.lovasz_hinge_loss), {}, (2,), binary=True)

    def erosion(classes: int, dims: int, facts: dict[str, Any]) -> Call:
        loss = (k.HausdorffERLoss if dims == 2 else k.HausdorffERLoss3D)(k=10, reduction="none")
        return lambda z, y: loss(z.softmax(1), y[:, None]).mean()

    yield Peer("hausdorff_erosion", "kornia", erosion, {"background": True})


def _smp() -> Iterator[Peer]:
    s = _alone("segmentation_models_pytorch", "losses")  # the package itself wants torchvision and timm

    def flat(loss: Any) -> Make:
        """2D is what it accepts: the last two axes of a volume become one."""
        return lambda classes, dims, facts: lambda z, y: loss(z.flatten(3), y.flatten(2))

    yield Peer("dice", "smp", flat(s.DiceLoss("multiclass", smooth=1e-5)))
    yield Peer("jaccard", "smp", flat(s.JaccardLoss("multiclass", smooth=1e-5)))
    yield Peer("tversky", "smp", flat(s.TverskyLoss("multiclass", smooth=1e-5)))
    yield Peer("lovasz", "smp", flat(s.LovaszLoss("multiclass")))
    hinge = s.LovaszLoss("binary", per_image=True)
    yield Peer("lovasz_hinge", "smp", _one_logit(lambda z, y: hinge(z.flatten(1), y.flatten(1))), binary=True)


def _alone(package: str, part: str) -> Any:
    """A part of a package, without what the package imports itself.

    Raises:
        ImportError: It is not installed.
    """
    if package not in sys.modules:
        found = importlib.util.find_spec(package)
        if found is None or found.submodule_search_locations is None:
            raise ImportError(f"{package} is not installed")
        stub = ModuleType(package)
        stub.__path__ = list(found.submodule_search_locations)
        sys.modules[package] = stub
    return importlib.import_module(f"{package}.{part}")
