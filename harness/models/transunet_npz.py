"""From the arrays of Google's `R50+ViT-B_16.npz` to the state of a TransUNet: each array has one place and back.

The file is of the vision transformer's release (Dosovitskiy et al., 2021), pre-trained on ImageNet-21k: convolutions
are (h, w, in, out), dense layers (in, out), attention is split into heads, norms of the ResNet are (1, 1, 1, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from harness.models.transunet import TransUNet

# The classifier of the pre-training, and its token: a segmentation has no use for them.
UNUSED = frozenset({"cls", "head/kernel", "head/bias", "pre_logits/kernel", "pre_logits/bias"})

_Array = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where one array belongs.

    Attributes:
        parameter: Name in the network's state.
        shape: Shape in the file.
        turn: From the file's layout to the network's.
    """

    parameter: str
    shape: tuple[int, ...]
    turn: Callable[[_Array], _Array]


def places(model: TransUNet) -> dict[str, Place]:
    """Names in the file, each with its place in a network.

    All parameters but those of the decoder have one; the position embeddings are (1, 1 + N, hidden) with the class
    token first, N as in this network, although any square number is taken.
    """
    return dict(_of_resnet(model)) | dict(_of_transformer(model))


def state_of(model: TransUNet, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state as far as the file holds it; see `TransUNet.from_npz`.

    Raises:
        ValueError: An array is missing, is too many or has another shape than the network needs.
    """
    table = places(model)
    if missing := sorted(set(table) - set(arrays)):
        raise ValueError(f"array {missing[0]!r} is missing{_others(missing)}")
    if extra := sorted(set(arrays) - set(table) - UNUSED):
        raise ValueError(f"array {extra[0]!r} has no place in this network{_others(extra)}")
    state: dict[str, Tensor] = {}
    for key, place in table.items():
        array = np.asarray(arrays[key])
        if array.dtype.kind != "f":
            raise ValueError(f"array {key!r} holds {array.dtype}, expected floating point numbers")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"array {key!r} holds values that are not finite numbers")
        if place.parameter == "position":
            state[place.parameter] = _position(model, key, array)
            continue
        if "gn" in key.split("/")[-2] and array.shape == (1, 1, 1, *place.shape[-1:]):
            array = array.reshape(place.shape)
        if array.shape != place.shape:
            raise ValueError(f"array {key!r} has shape {array.shape}, expected {place.shape}")
        state[place.parameter] = torch.from_numpy(np.ascontiguousarray(place.turn(array)))
    return state


def _others(names: list[str]) -> str:
    return f" ({len(names) - 1} more)" if len(names) > 1 else ""


def _position(model: TransUNet, key: str, array: _Array) -> Tensor:
    from harness.models.transunet import resized

    hidden = model.position.shape[2]
    side = math.isqrt(array.shape[1] - 1) if array.ndim == 3 and array.shape[1] > 1 else 0
    if array.shape != (1, 1 + side * side, hidden):
        raise ValueError(f"array {key!r} has shape {array.shape}, expected (1, 1 + a square, {hidden})")
    return resized(torch.from_numpy(array[:, 1:].copy()), (side, side), model.grid).contiguous()


def _of_resnet(model: TransUNet) -> Iterator[tuple[str, Place]]:
    yield from _convolution(model, "conv_root", "resnet.conv")
    yield from _norm(model, "gn_root", "resnet.norm")
    for i, stage in enumerate(model.resnet.stages):
        for j, block in enumerate(stage.children()):
            theirs, ours = f"block{i + 1}/unit{j + 1}", f"resnet.stages.{i}.{j}"
            suffixes = ["1", "2", "3", *(["_proj"] if block.project else [])]
            for suffix in suffixes:
                yield from _convolution(model, f"{theirs}/conv{suffix}", f"{ours}.conv{suffix}")
                yield from _norm(model, f"{theirs}/gn{suffix}", f"{ours}.norm{suffix}")


def _of_transformer(model: TransUNet) -> Iterator[tuple[str, Place]]:
    yield from _convolution(model, "embedding", "embed")
    hidden = model.position.shape[2]
    yield "Transformer/posembed_input/pos_embedding", Place("position", (1, model.position.shape[1] + 1, hidden), _same)
    for i in range(len(model.layers)):
        theirs, ours = f"Transformer/encoderblock_{i}", f"layers.{i}"
        yield from _norm(model, f"{theirs}/LayerNorm_0", f"{ours}.norm1")
        yield from _norm(model, f"{theirs}/LayerNorm_2", f"{ours}.norm2")
        yield from _dense(model, f"{theirs}/MlpBlock_3/Dense_0", f"{ours}.fc1")
        yield from _dense(model, f"{theirs}/MlpBlock_3/Dense_1", f"{ours}.fc2")
        heads, attention = (model.heads, hidden // model.heads), f"{theirs}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            place = Place(f"{ours}.{name}.weight", (hidden, *heads), lambda a: a.reshape(len(a), -1).T)
            yield f"{attention}/{name}/kernel", place
            yield f"{attention}/{name}/bias", Place(f"{ours}.{name}.bias", heads, np.ravel)
        kernel = Place(f"{ours}.out.weight", (*heads, hidden), lambda a: a.reshape(-1, a.shape[2]).T)
        yield f"{attention}/out/kernel", kernel
        yield f"{attention}/out/bias", Place(f"{ours}.out.bias", (hidden,), _same)
    yield from _norm(model, "Transformer/encoder_norm", "norm")


def _same(array: _Array) -> _Array:
    return array


def _convolution(model: TransUNet, theirs: str, ours: str) -> Iterator[tuple[str, Place]]:
    outer, inner, *kernel = model.get_parameter(f"{ours}.weight").shape
    if theirs == "conv_root" and inner != 3:
        # other channels than red, green and blue start from their mean; standardised weights have no scale
        def turn(array: _Array) -> _Array:
            mean: _Array = _turned(array).mean(1, keepdims=True)
            return mean.repeat(inner, axis=1)

        yield f"{theirs}/kernel", Place(f"{ours}.weight", (*kernel, 3, outer), turn)
    else:
        yield f"{theirs}/kernel", Place(f"{ours}.weight", (*kernel, inner, outer), _turned)
    if theirs == "embedding":
        yield f"{theirs}/bias", Place(f"{ours}.bias", (outer,), _same)


def _turned(array: _Array) -> _Array:
    return array.transpose(3, 2, 0, 1)


def _norm(model: TransUNet, theirs: str, ours: str) -> Iterator[tuple[str, Place]]:
    shape = tuple(model.get_parameter(f"{ours}.weight").shape)
    for key, name in (("scale", "weight"), ("bias", "bias")):
        yield f"{theirs}/{key}", Place(f"{ours}.{name}", shape, _same)


def _dense(model: TransUNet, theirs: str, ours: str) -> Iterator[tuple[str, Place]]:
    outer, inner = model.get_parameter(f"{ours}.weight").shape
    yield f"{theirs}/kernel", Place(f"{ours}.weight", (inner, outer), np.transpose)
    yield f"{theirs}/bias", Place(f"{ours}.bias", (outer,), _same)
