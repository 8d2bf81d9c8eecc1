"""The metrics `loss:NAME` of a cell: the value of each of these losses on the network's logits of a test case."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.cell import Cell
from harness.data.prepare import Prepared
from harness.errors import BenchError, first_line
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.facts import COUNTED
from harness.losses.needs import LABEL_NEEDS, SAMPLE_NEEDS
from harness.losses.targets import derive
from harness.resolve import load

ALL = "all"
"""The class of these rows: a loss has one value over all classes."""
_TRIED = 32
"""Voxels along each axis of the image that a loss is tried on before the training."""


@dataclass(frozen=True)
class LossScores:
    """The losses that score the networks of a cell.

    Attributes:
        losses: Name of the metric, `loss:focal`, to the loss.
        num_classes: Classes with background.
    """

    losses: Mapping[str, nn.Module]
    num_classes: int

    def rows(self, logits: Tensor, case: Prepared, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Score one case: all its slices as one batch, or the volume as a batch of one.

        Args:
            logits: (B, C, *S) on the network's grid.
            case: The case, with its label on that grid.
            about: The columns that do not change within the case.

        Returns:
            One row per loss with the columns of `records.CASE_COLUMNS`; class "all", without profile and unit.

        Raises:
            BenchError: A value is not a finite number.
        """
        target = torch.from_numpy(np.asarray(case.label).astype(np.int64)).to(logits.device)
        if target.ndim < logits.ndim - 1:
            target = target[None]
        spacing = torch.tensor(case.grid_spacing, dtype=torch.float32, device=logits.device).expand(len(logits), -1)
        values = self.values(logits.float(), target, spacing)
        for name, value in values.items():
            if not math.isfinite(value):
                raise BenchError(f"{name} is {value} on case {case.case}; leave it out of `metrics` and run again.")
        common = {"class": ALL, "profile": "", "unit": "", "worst": None, "status": "ok"}
        return [dict(about) | common | {"metric": name, "value": value} for name, value in values.items()]

    def values(self, logits: Tensor, target: Tensor, spacing: Tensor) -> dict[str, float]:
        """The value of each loss; what they ask for is derived from the label once.

        Args:
            logits: (B, C, *S), raw.
            target: (B, *S) int64, 255 ignored.
            spacing: (B, D).
        """
        asked = {name for loss in self.losses.values() for part in needs_of(loss) for name in part}
        offered: dict[str, Any] = {"spacing": spacing}
        if "label_weight" in asked:
            offered["label_weight"] = torch.ones_like(target, dtype=torch.float32)
        wanted = sorted(asked & LABEL_NEEDS)
        with torch.no_grad():
            offered |= derive(wanted, target, num_classes=self.num_classes, spacing=spacing)
            return {name: float(evaluate_loss(m, logits, target, offered)["loss"]) for name, m in self.losses.items()}


def loss_scores(
    cell: Cell, facts: Mapping[str, Any], counted: Callable[[], Mapping[str, Any]], device: torch.device
) -> LossScores | None:
    """Make the losses that score the networks of a cell, and try each of them: before an hour of training.

    Args:
        cell: The cell.
        facts: Facts of the data set that are known without its labels, see `losses.facts.loss_facts`.
        counted: Gives what is counted in the training labels; called only if a loss takes one of `facts.COUNTED`.
        device: Where the networks are scored.

    Returns:
        The losses; None where the suite asks for none.

    Raises:
        BenchError: A loss cannot be made, has a state, or fails on an image.
    """
    if not cell.scored_by:
        return None
    made: dict[str, nn.Module] = {}
    for name, one in cell.scored_by.items():
        needed = any(_takes_counts(part) for part in _parts(one["loss"]))
        made[name] = build_loss(one["loss"], {**facts, **counted()} if needed else facts).to(device).eval()
        _check(name, made[name])
    scores = LossScores(made, int(facts["num_classes"]))
    _try(scores, int(facts["spatial_dims"]), device)
    return scores


def _parts(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [leaf for term in spec["sum"] for leaf in _parts(term["loss"])] if "sum" in spec else [spec]


def _takes_counts(spec: Mapping[str, Any]) -> bool:
    parameters = inspect.signature(load(spec["class"])).parameters
    return any(name in parameters and name not in spec["args"] for name in COUNTED)


def _check(name: str, loss: nn.Module) -> None:
    """Refuse what the suite could not tell from the source: state, and needs that logits and label cannot serve."""
    required, optional = needs_of(loss)
    beyond = sorted((required | optional) - LABEL_NEEDS - SAMPLE_NEEDS)
    if beyond:
        raise BenchError(f"{name} cannot score a network: it asks for {beyond[0]!r}; leave it out of `metrics`.")
    if any(p.requires_grad for p in loss.parameters()):
        raise BenchError(f"{name} cannot score a network: it learns a parameter; leave it out of `metrics`.")
    # a compound passes the call on to its parts, so its own method alone says nothing
    if any(callable(getattr(m, hook, None)) for m in loss.modules() for hook in ("epoch_end", "prepare") if _leaf(m)):
        raise BenchError(f"{name} cannot score a network: it changes in its own training; leave it out of `metrics`.")


def _leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _try(scores: LossScores, dims: int, device: torch.device) -> None:
    size = (_TRIED,) * dims
    target = torch.zeros((1, *size), dtype=torch.int64, device=device)
    target[(slice(None), *[slice(_TRIED // 4, _TRIED // 2)] * dims)] = 1
    logits = torch.zeros((1, scores.num_classes, *size), device=device)
    spacing = torch.ones((1, dims), device=device)
    for name, loss in scores.losses.items():
        try:
            LossScores({name: loss}, scores.num_classes).values(logits, target, spacing)
        except BenchError as error:
            raise BenchError(f"{name}: {error}") from None
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            reason = first_line(error, type(error).__name__).rstrip(".")
            raise BenchError(f"{name} cannot score a network here: {reason}; leave it out of `metrics`.") from None
