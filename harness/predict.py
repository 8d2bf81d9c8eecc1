"""Whole-volume inference: from a trained network and a prepared case to a label on the original grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.data.prepare import restore, restore_scores
from harness.data.stored import Prepared


@torch.inference_mode()
def predict_case(
    model: nn.Module,
    case: Prepared,
    view: dict[str, Any],
    *,
    batch: int,
    device: torch.device,
    precision: str,
    keep_logits: Callable[[Tensor], None] | None = None,
) -> NDArray[np.uint8]:
    """Segment one case.

    Slices are predicted in batches and stacked; patches by a sliding window with Gaussian weights, which overlaps by
    half unless the view says another share. Where the case was resampled, probabilities go back to the original grid
    by linear interpolation, and the class with the highest is taken there; else the label itself goes back.

    Args:
        model: A network that returns an `Output`, in evaluation mode.
        case: The prepared case.
        view: `{"slices": {...}}` or `{"patches": {...}}`; the case's own view, where it has one, counts instead.
        batch: Slices or windows per forward pass.
        device: Where the network is.
        precision: "float32" or "bf16".
        keep_logits: Called once with the logits of the whole case on the network's grid and on its device, of the type
            that the network gives: (S, K + 1, h, w) of slices, (1, K + 1, z, y, x) of a volume.

    Returns:
        (z, y, x) uint8 on the original grid; class indices 0..K.
    """
    view = case.view or view
    image = torch.from_numpy(case.image).to(device)
    layout = memory_format(model, image.ndim - 2 if "slices" in view else image.ndim - 1, device)
    scored = case.geometry is not None and case.geometry.resampled

    def logits(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            out: Tensor = model(x.contiguous(memory_format=layout)).logits
        return out

    if "slices" in view:
        whole = scored or keep_logits is not None
        parts = (logits(part) for part in torch.split(image, batch))
        found = torch.cat([part if whole else _labels(part) for part in parts])
    else:
        from monai.inferers import sliding_window_inference

        whole = True
        found = sliding_window_inference(
            image[None],
            view["patches"]["size"],
            batch,
            logits,
            overlap=float(view["patches"].get("overlap", 0.5)),
            mode="gaussian",
        )
    if keep_logits is not None:
        keep_logits(found)
    if case.geometry is None or not scored:
        label = _labels(found) if whole else found
        label = label if "slices" in view else label[0]
        return restore((label + case.first_class).cpu().numpy(), case.reference_shape, view, case.geometry)
    classes = found.movedim(1, 0) if "slices" in view else found[0]  # (K + 1, ...)
    decided = restore_scores(_probability(classes), len(classes), view, case.geometry)
    return decided + np.uint8(case.first_class)


def _probability(logits: Tensor) -> Callable[[int], NDArray[np.float32]]:
    """The softmax of logits (C, ...), one class at a time: a CT of 14 classes has no room for all beside its logits."""
    total = torch.cat([part.float().logsumexp(0) for part in torch.split(logits, 1, dim=1)])
    return lambda k: (logits[k].float() - total).exp().cpu().numpy()


def _labels(logits: Tensor) -> Tensor:
    """The class of the largest logit: (B, C, *S) to (B, *S) uint8."""
    return logits.argmax(1).to(torch.uint8)


def memory_format(model: nn.Module, dims: int, device: torch.device) -> torch.memory_format:
    """Channels last for 2D where it is known to be safe: a fifth faster on a CPU, and what tensor cores want.

    On a CPU only for models that say so by `channels_last = True`: torch 2.13 crashes in the backward pass of MONAI's
    DynUNet in that format.
    """
    safe = device.type == "cuda" or getattr(model, "channels_last", False)
    return torch.channels_last if dims == 2 and safe else torch.contiguous_format
