"""A model that starts from a file of weights, with parts that do not learn or learn at another rate."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BenchError, first_line
from harness.models.build import Adapter
from harness.yamlfile import nearest

# Where training programs put the weights among other things.
_INSIDE = ("state_dict", "model_state_dict", "model", "network_weights")


def load_initial(model: nn.Module, path: Path, init: Mapping[str, Any]) -> None:
    """Give a model the weights of a file, and stop the parts from learning that are to be frozen.

    Each entry of the file has one place in the model, and each of the model's comes from the file. `map` says how
    prefixes of names in the file read in the model; a prefix that stands for None is left out on both sides: not taken
    from the file, not expected in it.

    Args:
        model: The network, with its random weights.
        path: `.safetensors`; `.pt` or `.pth` with tensors alone; or a published `.npz`, for models with `from_npz`.
        init: `map`, `freeze` and `sha256`, as in a cell's model; each may be absent.

    Raises:
        BenchError: The file cannot be read, was edited since the run was planned, does not fit the model, or a prefix
            is of nothing.
    """
    network = _network(model)
    _check_digest(path, init.get("sha256"))
    renames: dict[str, str | None] = init.get("map") or {}
    if path.suffix == ".npz":
        state = _from_npz(network, path, renames)
    else:
        found = _read(path)
        if isinstance(model, Adapter) and all(name.startswith("network.") for name in found):
            found = {name.removeprefix("network."): value for name, value in found.items()}  # a run's own weights.pt
        state = _matched(network, found, path, renames)
    _check_values(network, state, path)
    network.load_state_dict(state, strict=False)
    _freeze(network, init.get("freeze") or ())


def learning_factors(model: nn.Module, init: Mapping[str, Any] | None) -> dict[nn.Parameter, float]:
    """Factor on the learning rate of each parameter that `lr` names; the longest prefix counts.

    Raises:
        BenchError: A prefix is of nothing in the model.
    """
    rates: dict[str, float] = (init or {}).get("lr") or {}
    network = _network(model)
    names = [name for name, _ in network.named_parameters()]
    for prefix in rates:
        _check_prefix("lr", prefix, names)
    found = {p: _longest(name, rates) for name, p in network.named_parameters()}
    return {p: rates[prefix] for p, prefix in found.items() if prefix is not None}


def _network(model: nn.Module) -> nn.Module:
    return model.network if isinstance(model, Adapter) else model


def _check_digest(path: Path, expected: str | None) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest() if expected else None
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}.") from None
    if found != expected:
        raise BenchError(f"{path}: the file of weights was edited after the run was planned; run it again.")


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, OSError) as error:
        reason = first_line(error, "")
        if "weights_only" in str(error) or "Unsupported" in reason:
            reason = "it holds objects besides tensors; save `model.state_dict()`"
        raise BenchError(f"{path}: cannot be read as weights: {reason.rstrip('.') or type(error).__name__}.") from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise BenchError(f"{path}: cannot be read as safetensors: {str(error).rstrip('.')}.") from None
    while isinstance(content, dict) and (key := next((k for k in _INSIDE if isinstance(content.get(k), dict)), None)):
        content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        listed = ", ".join(_INSIDE)
        raise BenchError(f"{path}: expected tensors by name, alone or in one entry of {listed}.")
    return {str(name): value for name, value in content.items()}


def _from_npz(network: nn.Module, path: Path, renames: Mapping[str, str | None]) -> dict[str, Tensor]:
    import numpy as np

    from_npz = getattr(network, "from_npz", None)
    if from_npz is None:
        name = type(network).__name__
        raise BenchError(f"{path}: {name} cannot start from .npz; expected .safetensors or .pt.")
    if renames:
        raise BenchError(f"{path}: the names of a published .npz are known; leave `map` away.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state: dict[str, Tensor] = from_npz(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = first_line(error, type(error).__name__).rstrip(".")
        raise BenchError(f"{path}: does not hold the weights of this model: {reason}.") from None
    return state


def _matched(
    network: nn.Module, found: Mapping[str, Tensor], path: Path, renames: Mapping[str, str | None]
) -> dict[str, Tensor]:
    """The file's tensors under the model's names: all of the file, all of the model."""
    own = network.state_dict()
    for prefix, target in renames.items():
        _check_prefix("map", prefix, [*found, *own] if target is None else found)
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        new = _renamed(name, renames)
        if new is None:
            continue
        if new not in own:
            shown = repr(name) if new == name else f"{name!r}, by `map` {new!r},"
            raise BenchError(
                f"{path}: {shown} has no place in this model{nearest(new, own)}; rename it with `map`, or leave it "
                "out with `map: {PREFIX: null}`."
            )
        if new in state:
            raise BenchError(f"{path}: two entries of the file become {new!r} by `map`; leave one out.")
        state[new] = value
    if not state:
        raise BenchError(f"{path}: `map` leaves out all of the file, and the model would start from random weights.")
    left_out = {prefix: None for prefix, target in renames.items() if target is None}
    missing = [
        n
        for n in own
        # a counter of BatchNorm that older files do not hold and that nothing here uses
        if n not in state and _longest(n, left_out) is None and not n.endswith("num_batches_tracked")
    ]
    if missing:
        more = f" and for {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BenchError(
            f"{path}: holds nothing for {missing[0]!r}{more}; say where it stands with `map`, or keep its random start "
            "with `map: {PREFIX: null}`."
        )
    return state


def _renamed(name: str, renames: Mapping[str, str | None]) -> str | None:
    prefix = _longest(name, renames)
    if prefix is None:
        return name
    target = renames[prefix]
    return None if target is None else ".".join(p for p in (target, name[len(prefix) :].strip(".")) if p)


def _check_values(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise BenchError(
                f"{path}: {name!r} has shape {tuple(value.shape)}, this model needs {tuple(own[name].shape)}; "
                "`map: {PREFIX: null}` keeps the random start of a part."
            )
        if value.is_floating_point() != own[name].is_floating_point():
            raise BenchError(f"{path}: {name!r} holds {value.dtype}, expected {own[name].dtype}.")
        if not bool(torch.isfinite(value).all()):
            raise BenchError(f"{path}: {name!r} holds values that are not finite numbers.")


def _freeze(network: nn.Module, prefixes: Iterable[str]) -> None:
    """Stop parts from learning: no gradient, and evaluation mode always, so that running statistics stay."""
    names = [name for name, _ in network.named_parameters()]
    wanted = dict.fromkeys(prefixes)
    for prefix in wanted:
        _check_prefix("freeze", prefix, names)
    for name, parameter in network.named_parameters():
        if _longest(name, wanted) is not None:
            parameter.requires_grad_(False)
    for name, module in network.named_modules():
        if _longest(name, wanted) is not None:
            module.eval()
            module.train = lambda mode=True, module=module: module
    if not any(p.requires_grad for p in network.parameters()):
        raise BenchError("`freeze` leaves nothing of the model to learn.")


def _longest(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of the prefixes that a dotted name is under, in whole parts."""
    under = [p for p in prefixes if not p.strip(".") or f"{name}.".startswith(f"{p.rstrip('.')}.")]
    return max(under, key=len, default=None)


def _check_prefix(key: str, prefix: str, names: Iterable[str]) -> None:
    names = list(names)
    if not any(_longest(name, [prefix]) is not None for name in names):
        tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
        listed = ", ".join(tops[:12])
        raise BenchError(
            f"init: `{key}` names {prefix!r}, under which there is nothing{nearest(prefix, tops)}: {listed}."
        )
