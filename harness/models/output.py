"""What every model returns."""

from __future__ import annotations

import dataclasses
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
        aux: Logits at lower resolutions for deep supervision, the finest first; each half of the one before or less.
        attention: (B, A, *S'), A maps on any grid, none below 0: where a network looks for objects.
        shape_tokens: (B, K), distribution over the learned shapes of a shape prior.
        shape_prior: (B, 2, Z), mean and logarithm of the variance of a latent of shape.
        token_maps: (B, C, *S'), the probabilities of the classes that the tokens of a shape prior expect.
    """

    logits: Tensor
    embedding: Tensor | None = None
    classify: Callable[[Tensor], Tensor] | None = None
    aux: list[Tensor] | None = None
    attention: Tensor | None = None
    shape_tokens: Tensor | None = None
    shape_prior: Tensor | None = None
    token_maps: Tensor | None = None

    def offered(self) -> dict[str, object]:
        """The fields that a loss may ask for by name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "logits"}
        return {k: v for k, v in fields.items() if v is not None}
