"""How the values of an image become the network's input."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from harness.yamlfile import Strict


class Intensity(Strict):
    """How a volume's values become the network's input; exactly one of the three."""

    window: tuple[float, float] | None = None  # clip to [low, high], then scale to [0, 1]
    zscore: Literal["volume"] | None = None  # subtract the volume's mean, divide by its standard deviation
    percentiles: tuple[float, float] | None = None  # clip to these percentiles of the volume, then z-score

    @model_validator(mode="after")
    def _one(self) -> Intensity:
        given = [n for n in ("window", "zscore", "percentiles") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of window, zscore, percentiles, found {', '.join(given) or 'none'}")
        for name in ("window", "percentiles"):
            pair = getattr(self, name)
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{name} must be [low, high] with low < high")
        return self
