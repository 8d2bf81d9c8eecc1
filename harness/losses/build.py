"""From a canonical loss specification to a module."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BenchError
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.compound import Sum
from harness.losses.needs import FACTS, check_needs
from harness.resolve import load

# Losses of MONAI whose docstring says logits and whose code wants probabilities.
NO_ACTIVATION = ("AsymmetricUnifiedFocalLoss", "AsymmetricFocalLoss", "AsymmetricFocalTverskyLoss")

__all__ = ["MonaiLoss", "build_loss", "evaluate_loss", "needs_of"]


def build_loss(spec: Mapping[str, Any], facts: Mapping[str, Any]) -> nn.Module:
    """Make the loss of a cell.

    Args:
        spec: `{"name", "class", "args"}` or `{"sum": [{"loss": spec, "weight": number or schedule}]}`.
        facts: Facts of the data set (`needs.FACTS`), filled into constructor parameters that the suite left out, and
            `has_ignored`: whether labels hold ignored voxels.

    Raises:
        BenchError: The class cannot be found or made, or it asks for something that nobody supplies.
    """
    if "sum" in spec:
        terms = spec["sum"]
        names = [t["loss"].get("name", "sum").rpartition(":")[2].rpartition(".")[2] for t in terms]
        parts = [build_loss(t["loss"], facts) for t in terms]
        try:
            return Sum(parts, [t["weight"] for t in terms], names)
        except (TypeError, ValueError, KeyError) as error:
            raise BenchError(f"a weight of the sum of {', '.join(names)} cannot be read: {error}.") from error
    cls = load(spec["class"])
    parameters = inspect.signature(cls).parameters
    args = dict(spec["args"])
    monai = str(cls.__module__).startswith("monai.losses")
    # MONAI 1.6's FocalLoss stops dividing by the number of classes once it has an ignore_index: only where it is needed
    facts = {k: v for k, v in facts.items() if k != "ignore_index" or not monai or facts.get("has_ignored")}
    args |= {k: facts[k] for k in FACTS if k in parameters and k not in args and k in facts}
    if monai:
        if cls.__name__ in NO_ACTIVATION:
            raise BenchError(f"{spec['name']} applies no activation and would take logits for probabilities.")
        if facts.get("has_ignored") and "ignore_index" not in parameters:
            raise BenchError(
                f"{spec['name']} has no ignore_index, and the labels of this data set hold ignored voxels."
            )
        flags = ["to_onehot_y"]
        if not args.get("sigmoid") and args.get("other_act") is None:
            flags.append("use_softmax" if "use_softmax" in parameters else "softmax")
        args |= {flag: True for flag in flags if flag in parameters and flag not in args}
    try:
        loss = cls(**{k: _argument(cls, k, v) for k, v in args.items()})
    except (TypeError, ValueError) as error:
        raise BenchError(f"loss {spec['name']} cannot be made with {dict(spec['args'])}: {error}.") from error
    if not isinstance(loss, nn.Module):
        raise BenchError(f"loss {spec['name']} is a {type(loss).__name__}, expected a torch.nn.Module.")
    required, optional = needs_of(loss)
    check_needs([*required, *optional])
    return MonaiLoss(loss) if monai and "to_onehot_y" in parameters else loss


class MonaiLoss(nn.Module):
    """A loss of MONAI behind our contract: it wants the label with a channel axis."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, C, *S) and target (B, *S)."""
        value: Tensor = self.loss(logits, target[:, None])
        return value


def _argument(cls: type, name: str, value: Any) -> Any:
    """A list becomes a tensor where the annotation says Tensor; elsewhere values stay as they are."""
    if not isinstance(value, list):
        return value
    try:
        hint = typing.get_type_hints(cls.__init__).get(name)  # type: ignore[misc]
    except (NameError, TypeError):
        hint = inspect.signature(cls).parameters[name].annotation if name in inspect.signature(cls).parameters else None
    wanted = hint is Tensor or Tensor in typing.get_args(hint) or "Tensor" in str(hint)
    return torch.tensor(value, dtype=torch.float32) if wanted else value
