"""What a property of a loss comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

# Makes the loss anew for a target: facts of the data, class counts among them, are those of its labels. A second
# argument renumbers the classes of arguments that have one value for each.
Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Finding:
    """What one property came to.

    Attributes:
        holds: Whether the loss has the property; None where it does not apply.
        number: The number that decided.
        text: What was seen, in a few words.
    """

    holds: bool | None
    number: float | None
    text: str
