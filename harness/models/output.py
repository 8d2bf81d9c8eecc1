"""What every model returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Output:
    """Output of a segmentation network.

    Attributes:
        logits: (B, C, *S), raw, float32 whatever the precision of the trunk.
        embedding: (B, F, *S), the last decoder stage; None where a network hides it.
        classify: The segmentation head, from an embedding to logits.
    """

    logits: Tensor
    embedding: Tensor | None = None
    classify: Callable[[Tensor], Tensor] | None = None

    def offered(self) -> dict[str, object]:
        """The fields that a loss may ask for by name."""
        fields = {"embedding": self.embedding, "classify": self.classify}
        return {k: v for k, v in fields.items() if v is not None}
