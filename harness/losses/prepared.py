"""What a loss does once before training: `prepare(labels, *, device, generator)`, and where its result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.records import write_atomic
from harness.resolve import current_digest

_KEPT: dict[str, dict[str, Tensor]] = {}


def prepare_loss(
    loss: nn.Module,
    spec: Mapping[str, Any],
    labels: Callable[[], Sequence[Tensor]],
    *,
    key: str,
    seed: int,
    folder: Path | None = None,
    device: torch.device | None = None,
) -> nn.Module:
    """Prepare a loss and its parts, or take what was prepared before.

    Args:
        loss: The loss; a loss without `prepare` is returned as it is.
        spec: Its specification: the cache goes by the source of its classes, arguments and versions.
        labels: Gives the training labels (*S), int64, on the network's grid.
        key: Of the data: preparations of other data are other ones.
        seed: Of the generator.
        folder: Where to keep the state on disk; in this process alone by default.
        device: Where to prepare.
    """
    if not any(callable(getattr(part, "prepare", None)) for part in loss.modules()):
        return loss
    place = device or torch.device("cpu")
    name = hashlib.sha256(json.dumps([_identity(spec), key, seed], sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{name}.pt" if folder else None
    if name not in _KEPT and path and path.is_file():
        _KEPT[name] = torch.load(path, map_location="cpu", weights_only=True)
    if name not in _KEPT:
        generator = torch.Generator().manual_seed(seed)
        for part in loss.modules():
            if callable(prepare := getattr(part, "prepare", None)):
                prepare(labels(), device=place, generator=generator)
        _KEPT[name] = {k: v.detach().cpu().clone() for k, v in loss.state_dict().items()}
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda stream: torch.save(_KEPT[name], stream))
    loss.load_state_dict(_KEPT[name])
    return loss


def _identity(spec: Mapping[str, Any]) -> Any:
    if "sum" in spec:
        return [_identity(term["loss"]) for term in spec["sum"]]
    return [spec["class"], spec["args"], spec.get("version", 0), current_digest(spec["class"])]
