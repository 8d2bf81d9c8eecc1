"""Optimizers and learning-rate schedules, as the suites name them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def make_optimizer(
    spec: dict[str, dict[str, Any]],
    model: nn.Module,
    loss: nn.Module,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a cell: the network's parameters that learn, and a group of its own for a loss that learns.

    Args:
        spec: `{"sgd": {...}}`, `{"adam": {...}}` or `{"adamw": {...}}`.
        model: The network.
        loss: The loss; its parameters learn at its class attribute `lr`, else at the suite's rate, without decay.
        factors: On the suite's rate, for parameters of the network that learn at another; they form groups of their own
            after the first, which may then be empty.
    """
    name, args = next(iter(spec.items()))
    groups: list[dict[str, Any]] = [{"params": []}]  # the first has the suite's rate, which curves show
    by_factor: dict[float, list[nn.Parameter]] = {1.0: groups[0]["params"]}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        by_factor.setdefault((factors or {}).get(parameter, 1.0), []).append(parameter)
    groups += [{"params": by_factor[f], "lr": f * float(args["lr"])} for f in sorted(by_factor) if f != 1]
    for rate, own in learning_groups(loss, float(args["lr"])):
        groups.append({"params": own, "lr": rate, "weight_decay": 0.0})
    makers: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer: torch.optim.Optimizer = makers[name](groups, **args)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def learning_groups(loss: nn.Module, inherited: float) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """Parameters of a loss and of its parts, each with the rate of the nearest module around it that names one."""
    rate = float(getattr(loss, "lr", inherited))
    own = [p for p in loss.parameters(recurse=False) if p.requires_grad]
    if own:
        yield rate, own
    for part in loss.children():
        yield from learning_groups(part, rate)


class Schedule:
    """Learning-rate factor over the steps of a training.

    poly is (1 - step / steps)^0.9, cosine (1 + cos(π step / steps)) / 2; plateau divides by 10 after over 10 epochs
    in which the training loss was not lower than its best, down to 1e-5 of the base rate.
    """

    def __init__(self, kind: str, steps: int) -> None:
        self._kind, self._steps = kind, steps
        self._factor, self._best, self._bad = 1.0, math.inf, 0

    def factor(self, step: int) -> float:
        """The factor at a step, from 0."""
        share = step / self._steps
        if self._kind == "poly":
            return float((1 - share) ** 0.9)
        if self._kind == "cosine":
            return (1 + math.cos(math.pi * share)) / 2
        return self._factor

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rate of every group; returns that of the network."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step)
        return float(optimizer.param_groups[0]["lr"])

    def epoch_end(self, loss: float) -> None:
        """Tell the mean training loss of an epoch."""
        if self._kind != "plateau":
            return
        if loss < self._best:
            self._best, self._bad = loss, 0
            return
        self._bad += 1
        if self._bad > 10:
            self._factor, self._bad = max(self._factor / 10, 1e-5), 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"factor": self._factor, "best": self._best, "bad": self._bad}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self._factor, self._best, self._bad = state["factor"], state["best"], int(state["bad"])
