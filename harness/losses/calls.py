"""How the harness calls a loss: exactly what it declares is passed, and one form comes back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BenchError

RESERVED = ("epoch", "step", "lr")


def needs_of(loss: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Names that a loss needs, and names that it can use: the keyword-only parameters of its `forward`.

    A compound states them in an attribute `needs`: names, all required, or a pair (required, optional) of sets of
    names.
    """
    stated = getattr(loss, "needs", None)
    if stated is not None:
        if isinstance(stated, tuple) and len(stated) == 2 and not any(isinstance(part, str) for part in stated):
            return frozenset(stated[0]), frozenset(stated[1])
        return frozenset([stated] if isinstance(stated, str) else stated), frozenset()
    parameters = inspect.signature(loss.forward).parameters.values()
    asked = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    required = frozenset(p.name for p in asked if p.default is inspect.Parameter.empty)
    return required, frozenset(p.name for p in asked) - required


def evaluate_loss(loss: nn.Module, logits: Tensor, target: Tensor, offered: Mapping[str, Any]) -> dict[str, Tensor]:
    """Call a loss and return its terms as 0-dim tensors, the total under "loss".

    Args:
        loss: Any module with `forward(logits, target, *, needs)`.
        logits: (B, C, *S), raw.
        target: (B, *S) int64, 255 ignored.
        offered: Everything at hand, by name.

    Raises:
        BenchError: A need is not at hand, or the result is neither a scalar nor a dict of scalars with "loss".
    """
    required, optional = needs_of(loss)
    name = type(loss).__name__
    missing = sorted(n for n in required if n not in offered)
    if missing:
        raise BenchError(
            f"{name} needs {missing[0]!r}, which is not at hand here; at hand: {', '.join(sorted(offered))}."
        )
    result = loss(logits, target, **{n: offered[n] for n in (*required, *optional) if n in offered})
    terms = result if isinstance(result, dict) else {"loss": result}
    if "loss" not in terms:
        raise BenchError(f"{name} returns a dict without the key 'loss', found: {', '.join(map(str, terms))}.")
    for key, value in terms.items():
        if key in RESERVED:
            raise BenchError(f"{name} returns a term called {key!r}, a column of the curve; give it another name.")
        if not isinstance(value, Tensor) or value.ndim != 0:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BenchError(
                f"{name} returns {found} for {key!r}, expected a scalar tensor: reduce it to a mean or a sum."
            )
    if torch.is_grad_enabled() and logits.requires_grad and not terms["loss"].requires_grad:
        raise BenchError(f"{name} returns a value without a gradient to the logits; nothing could be learned from it.")
    return terms
