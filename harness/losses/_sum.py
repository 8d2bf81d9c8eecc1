"""The weighted sum of losses that a suite writes as `sum:`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor, nn

from harness.losses.calls import RESERVED, evaluate_loss, needs_of
from harness.losses.schedules import Schedule, schedule


class Sum(nn.Module):
    """A weighted sum of losses, as `sum:` in a suite.

    Args:
        losses: The parts.
        weights: A number or a schedule such as `{"linear": [1, 0]}` for each.
        names: Names of the terms in curves; repeated ones are numbered, and so are "loss", the name of the total, and
            the columns of a curve. A part that returns terms of its own adds them as `part.term`.

    Attributes:
        needs: (required, optional) names over all parts, and what schedules read.

    Raises:
        ValueError: A schedule is not one, or the lists differ in length.
    """

    version = 1
    taxonomy = ("combination", "compound")

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
            found = dict(evaluate_loss(part, logits, target, offered))
            value = terms[name] = found.pop("loss")
            for term, inner in found.items():
                terms[_free(f"{name}.{term}", {*terms, *self.names})] = inner
            total = total + (weight(offered["progress"], offered["epochs"]) if callable(weight) else weight) * value
        return {"loss": total, **terms}

    def epoch_end(self) -> None:
        """Tell the parts that have state of their own."""
        for part in self.parts:
            if callable(end := getattr(part, "epoch_end", None)):
                end()


def _unique(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once, "loss" and the columns of a curve, with the first number that is free."""
    reserved = {"loss", *RESERVED}
    taken = {*reserved, *names}
    out: list[str] = []
    for name in names:
        if name in reserved or list(names).count(name) > 1:
            name = _free(name, taken, len(out))
            taken.add(name)
        out.append(name)
    return out


def _free(name: str, taken: set[str], first: int = 0) -> str:
    """The name with the first number from `first` on that makes it free, or the name itself where it is."""
    if name not in taken:
        return name
    return next(free for j in count(first) if (free := f"{name}_{j}") not in taken)
