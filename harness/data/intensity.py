"""How the values of an image become the network's input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.errors import BenchError
from harness.yamlfile import Strict

_FIRST = ("window", "zscore", "percentiles")  # stand in every digest; what came later only where it is set


class Standard(Strict):
    """Given numbers per channel: clip, divide, subtract the mean, divide by the standard deviation.

    One number serves all channels.
    """

    mean: list[float] = Field(min_length=1)
    sd: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    divide: float = Field(default=1.0, gt=0)  # 255 for photographs: mean and SD are then of values in [0, 1]
    clip: list[tuple[float, float]] | None = Field(default=None, min_length=1)  # [low, high], before dividing

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None}


class Intensity(Strict):
    """How a volume's values become the network's input; exactly one of these."""

    window: tuple[float, float] | None = None  # clip to [low, high], then scale to [0, 1]
    # subtract the mean, divide by the standard deviation: of all voxels, or of those that are not 0, which stay 0
    zscore: Literal["volume", "nonzero"] | None = None
    percentiles: tuple[float, float] | None = None  # clip to these percentiles of the volume, then z-score
    # clip to these percentiles of the foreground of the training cases, then z-score by its mean and SD (nnU-Net, CT)
    foreground: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None  # low becomes 0 and high 1; nothing is clipped
    standard: Standard | None = None

    @model_validator(mode="after")
    def _one(self) -> Intensity:
        names = list(type(self).model_fields)
        given = [n for n in names if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(names)}, found {', '.join(given) or 'none'}")
        for name in ("window", "percentiles", "foreground", "scale"):
            pair = getattr(self, name)
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{name} must be [low, high] with low < high")
        for name in ("percentiles", "foreground"):
            pair = getattr(self, name)
            if pair is not None and not 0 <= pair[0] < pair[1] <= 100:
                raise ValueError(f"{name} are percentiles from 0 to 100")
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k in _FIRST or v is not None}


def normalise(image: NDArray[np.float32], how: Intensity) -> NDArray[np.float32]:
    """Scale intensities per channel.

    Args:
        image: (C, ...) in the units of the file; it is left as it is.
        how: One way; `foreground` must have been turned into `standard` (see `harness.data.fingerprint`).

    Returns:
        (C, ...) float32.

    Raises:
        BenchError: `standard` has another number of channels than the image.
    """
    if how.window is not None:
        low, high = how.window
        return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)
    if how.scale is not None:
        low, high = how.scale
        return ((image - low) / (high - low)).astype(np.float32)
    if how.foreground is not None:
        raise ValueError("the statistics of the foreground were not worked out before `normalise`")
    out = np.empty_like(image)
    for i, channel in enumerate(image):
        values = channel.astype(np.float64)
        if how.standard is not None:
            out[i] = _standard(values, how.standard, i, len(image))
        elif how.zscore == "nonzero":
            out[i] = _nonzero(values)
        else:
            if how.percentiles is not None:
                values = np.clip(values, *np.percentile(values, how.percentiles))
            out[i] = (values - values.mean()) / max(values.std(), 1e-8)
    return out


def _nonzero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = values != 0
    if not inside.any():
        return values
    chosen = values[inside]
    return np.where(inside, (values - chosen.mean()) / max(chosen.std(), 1e-8), 0.0)


def _standard(values: NDArray[np.float64], how: Standard, channel: int, channels: int) -> NDArray[np.float64]:
    for name in ("mean", "sd", "clip"):
        given = getattr(how, name)
        if given is not None and len(given) not in (1, channels):
            raise BenchError(
                f"intensity: `standard` has {len(given)} values in `{name}`, and the images have {channels} channels; "
                "give one value, or one for each channel."
            )
    mean, sd = how.mean[channel % len(how.mean)], how.sd[channel % len(how.sd)]
    if how.clip is not None:
        values = np.clip(values, *how.clip[channel % len(how.clip)])
    return (values / how.divide - mean) / sd
