"""Compound losses: weighted sums of other losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor, nn

from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.pixel import CrossEntropy
from harness.losses.region import Dice
from harness.losses.schedules import Schedule, schedule


class DiceCE(nn.Module):
    """Dice + cross-entropy (Isensee et al., 2018): dice_weight · Dice + ce_weight · CE; the terms are returned too.

    Args:
        dice_weight: Weight of Dice.
        ce_weight: Weight of cross-entropy.
        weight: Class weights of the cross-entropy, (C,).
        background: Whether class 0 counts in Dice.
    """

    version = 1

    def __init__(
        self,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        weight: Tensor | None = None,
        background: bool = True,
    ) -> None:
        super().__init__()
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.dice, self.ce = Dice(background=background), CrossEntropy(weight)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        dice, ce = self.dice(logits, target), self.ce(logits, target)
        return {"loss": self.dice_weight * dice + self.ce_weight * ce, "dice": dice, "ce": ce}


class Sum(nn.Module):
    """A weighted sum of losses, as `sum:` in a suite.

    Args:
        losses: The parts.
        weights: A number or a schedule such as `{"linear": [1, 0]}` for each.
        names: Names of the terms in curves; repeated ones are numbered, and so is "loss", the name of the total.

    Attributes:
        needs: (required, optional) names over all parts, and what schedules read.

    Raises:
        ValueError: A schedule is not one, or the lists differ in length.
    """

    def __init__(
        self, losses: Sequence[nn.Module], weights: Sequence[float | Mapping[str, Any]], names: Sequence[str]
    ) -> None:
        super().__init__()
        if not len(losses) == len(weights) == len(names):
            raise ValueError(f"{len(losses)} losses, {len(weights)} weights and {len(names)} names")
        self.parts = nn.ModuleList(losses)
        self.weights: list[float | Schedule] = [schedule(w) if isinstance(w, Mapping) else float(w) for w in weights]
        self.names = _unique(names)
        pairs = [needs_of(part) for part in losses]
        scheduled = {"progress", "epochs"} if any(callable(w) for w in self.weights) else set()
        required = frozenset(scheduled).union(*(p[0] for p in pairs))
        self.needs = (required, frozenset().union(*(p[1] for p in pairs)) - required)

    def forward(self, logits: Tensor, target: Tensor, **offered: Any) -> dict[str, Tensor]:
        """Return the loss, and each part under its name without its weight."""
        terms: dict[str, Tensor] = {}
        total = logits.new_zeros(())
        for part, weight, name in zip(self.parts, self.weights, self.names, strict=True):
            value = evaluate_loss(part, logits, target, offered)["loss"]
            terms[name] = value
            total = total + (weight(offered["progress"], offered["epochs"]) if callable(weight) else weight) * value
        return {"loss": total, **terms}

    def epoch_end(self) -> None:
        """Tell the parts that have state of their own."""
        for part in self.parts:
            if callable(end := getattr(part, "epoch_end", None)):
                end()


def _unique(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once, and "loss", with the first number that is free."""
    taken, out = {"loss", *names}, []
    for i, name in enumerate(names):
        if name == "loss" or list(names).count(name) > 1:
            name = next(free for j in count(i) if (free := f"{name}_{j}") not in taken)
            taken.add(name)
        out.append(name)
    return out
