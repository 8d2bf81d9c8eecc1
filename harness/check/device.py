"""Whether a loss stays on the device of its inputs, shown without such a device.

The loss and what it is given are moved to the device "meta", whose tensors have a shape and no values, inside PyTorch's
fake tensor mode, which holds every operation to the rule of a GPU: all tensors on one device. What makes the host wait
for a GPU, a value that is read or a shape that depends on values, is impossible there, and so it is seen.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.check.finding import Finding, Make
from harness.check.raised import place_of
from harness.check.scenes import inputs_of, leaves_of, scene, working_dims
from harness.losses import calls

AWAY = torch.device("meta")
_UNSEEN = "; what follows was not seen)"
_NUMPY = "is not supported for tensor subclasses"  # what PyTorch says of `.numpy()` and the like


def device(make: Make) -> Finding:
    """No operation mixes the device with the CPU; whether the host waits for the device stands in the text."""
    waits: list[str] = []
    for dims in working_dims(make):
        given = scene("degraded", dims, dtype=torch.float32)
        loss = make(given.target)
        leaves = leaves_of(loss, given)
        with torch.no_grad():
            logits, target, offered = inputs_of(loss, given, leaves)
        try:
            _step(loss, {"logits": logits, "target": target, **offered}, leaves, waits)
        except FakeTensorDeviceMismatchError as error:
            return Finding(False, None, f"a tensor of the CPU meets one of the device ({_line(error)})")
        except DataDependentOutputException as error:
            waits.append(f"a value is read ({_line(error)}{_UNSEEN}")
        except DynamicOutputShapeException as error:
            waits.append(f"a shape depends on values ({_line(error)}{_UNSEEN}")
        except Exception as error:
            if _NUMPY not in str(error):
                return Finding(None, None, f"cannot be told: {type(error).__name__} ({_line(error)})")
            waits.append(f"it leaves PyTorch ({_line(error)}{_UNSEEN}")
    if waits:
        return Finding(True, float(len(waits)), f"the host waits for the device: {', '.join(dict.fromkeys(waits))}")
    return Finding(True, 0.0, "one device, and the host never waits for it")


class _Generator(torch.Generator):
    """The device has no generator of its own; that of the CPU says that it is there, and no number is drawn."""

    device = AWAY


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what makes the host wait for a GPU and is possible without values."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func is aten._to_copy.default:
            self._copied(args[0], result, (kwargs or {}).get("non_blocking", False))
        elif func is aten.copy_.default:
            self._copied(args[1], result, len(args) > 2 and args[2])
        elif func is aten._linalg_check_errors.default:
            self._note("a decomposition is checked for success")
        elif func in (aten.index_put_.default, aten.index_put.default) and _masked(args[1]) and args[2].numel() != 1:
            self._note("several values are put where a mask is true")
        return result

    def _copied(self, source: Tensor, result: Tensor, non_blocking: bool) -> None:
        if source.device != result.device and not non_blocking:
            way = "to" if result.device == AWAY else "from"
            self._note(f"a tensor is copied {way} the device")

    def _note(self, text: str) -> None:
        self._found.append(f"{text} ({_place(traceback.extract_stack())})")


class _Made(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host on the device in each call."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        numbers = func in (torch.tensor, torch.as_tensor) and not any(isinstance(a, Tensor) for a in args)
        if numbers and given.get("device") is not None and torch.device(given["device"]) == AWAY:
            self._found.append(f"numbers are copied to the device ({_place(traceback.extract_stack())})")
        return func(*args, **given)


def _masked(indices: Iterable[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _step(loss: nn.Module, given: dict[str, Any], leaves: Iterable[str], waits: list[str]) -> None:
    """Value and gradient on the device; the moves themselves are not those of the loss."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.allow_meta = True
    with mode:
        loss.to(AWAY)
        moved = {k: v.to(AWAY) if isinstance(v, Tensor) else v for k, v in given.items()}
        moved["generator"] = _Generator()
        for name in leaves:
            moved[name].requires_grad_()
        logits, target = moved.pop("logits"), moved.pop("target")
        with _Waits(waits), _Made(waits), patch.object(torch.autocast, "__init__", _autocast):
            value = calls.evaluate_loss(loss, logits, target, moved)["loss"]
            torch.autograd.backward(value)


_plain_autocast = torch.autocast.__init__


def _autocast(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
    """The device has no mixed precision of its own; that of the CPU stands for it."""
    _plain_autocast(self, "cpu" if device_type == AWAY.type else device_type, *args, **kwargs)


def _line(error: BaseException) -> str:
    return _place(traceback.extract_tb(error.__traceback__))


def _place(frames: Iterable[traceback.FrameSummary]) -> str:
    return place_of(frames) or "inside PyTorch"
