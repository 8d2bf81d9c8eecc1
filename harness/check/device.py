"""Whether a loss stays on the device of its inputs, shown without such a device.

The loss and what it is given are moved to the device "meta", whose tensors have a shape and no values, inside PyTorch's
fake tensor mode, which holds every operation to the rule of a GPU: all tensors on one device. What makes the host wait
for a GPU, a value that is read or a shape that depends on values, is impossible there, and so it is seen.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.check.finding import Finding, Make
from harness.check.raised import place_of
from harness.check.scenes import inputs_of, leaves_of, scene, working_dims
from harness.losses.calls import evaluate_loss

AWAY = torch.device("meta")
# the call of a loss, whose frames come after it
_CALLERS, _CALLS = (__file__, evaluate_loss.__code__.co_filename), ("run", evaluate_loss.__name__)
_UNSEEN = "; what follows was not seen)"
# operations that PyTorch refuses where deterministic algorithms are asked for (`torch.use_deterministic_algorithms`),
# and for which arguments
_UNORDERED: dict[str, Callable[[Sequence[Any], Tensor], bool]] = {
    **dict.fromkeys(
        [
            *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
            *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
            *("max_unpool2d", "max_unpool3d", "_ctc_loss_backward", "nll_loss2d_forward", "put_", "histc"),
            *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
            *("upsample_trilinear3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
            *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
        ],
        lambda args, result: True,
    ),
    "cumsum": lambda args, result: result.is_floating_point() or result.is_complex(),
    "bincount": lambda args, result: len(args) > 1 and args[1] is not None,
    "median": lambda args, result: len(args) > 1,
    "scatter_reduce": lambda args, result: args[4] == "prod",
    "_embedding_bag": lambda args, result: len(args) > 4 and args[4] == 2,
}
_TWO_DEVICES = re.compile(r"found (at least )?two (different )?devices")  # older and newer words of PyTorch
_NUMPY = "is not supported for tensor subclasses"  # what PyTorch says of `.numpy()` and the like


def device(make: Make) -> Finding:
    """No operation mixes the device with the CPU; whether the host waits for the device stands in the text."""
    seen = Seen()
    for dims in working_dims(make):
        given = scene("degraded", dims, dtype=torch.float32)
        loss = make(given.target)
        leaves = leaves_of(loss, given)
        with torch.no_grad():
            logits, target, offered = inputs_of(loss, given, leaves)
        try:
            _step(loss, {"logits": logits, "target": target, **offered}, leaves, seen)
        except DataDependentOutputException as error:
            seen.waits.append(f"a value is read ({_line(error)}{_UNSEEN}")
        except DynamicOutputShapeException as error:
            seen.waits.append(f"a shape depends on values ({_line(error)}{_UNSEEN}")
        except Exception as error:
            if _TWO_DEVICES.search(str(error)):
                return Finding(False, None, f"a tensor of the CPU meets one of the device ({_line(error)})")
            if _NUMPY not in str(error):
                return Finding(None, None, f"cannot be told: {type(error).__name__} ({_line(error)})")
            seen.waits.append(f"it leaves PyTorch ({_line(error)}{_UNSEEN}")
    texts = [f"{what}: {', '.join(dict.fromkeys(found))}" for what, found in seen.told() if found]
    number = float(sum(len(found) for _, found in seen.told()))
    return Finding(True, number, "; ".join(texts) or "one device, and the host never waits for it")


@dataclass
class Seen:
    """What a GPU would be slow at, or not repeat, each with its line.

    Attributes:
        waits: What makes the host wait for it.
        unordered: Operations that have no deterministic form there.
    """

    waits: list[str] = field(default_factory=list)
    unordered: list[str] = field(default_factory=list)

    def told(self) -> tuple[tuple[str, list[str]], ...]:
        """Both, with what they are."""
        return ("the host waits for the device", self.waits), ("no deterministic form on a GPU", self.unordered)


class Generator(torch.Generator):
    """The device has no generator of its own; that of the CPU says that it is there, and no number is drawn."""

    device = AWAY


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations that a GPU waits for, or does not repeat, and that are possible without values."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        name = func.overloadpacket.__name__
        rule = _UNORDERED.get(name, _UNORDERED.get(name.removesuffix("_")))
        if rule is not None and rule(args, result):
            self._seen.unordered.append(f"{name} ({_place(traceback.extract_stack())})")
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
        self._seen.waits.append(f"{text} ({_place(traceback.extract_stack())})")


class _Made(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host on the device in each call."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        numbers = func in (torch.tensor, torch.as_tensor) and not any(isinstance(a, Tensor) for a in args)
        if numbers and given.get("device") is not None and torch.device(given["device"]) == AWAY:
            self._seen.waits.append(f"numbers are copied to the device ({_place(traceback.extract_stack())})")
        return func(*args, **given)


def _masked(indices: Iterable[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _step(loss: nn.Module, given: dict[str, Any], leaves: Iterable[str], seen: Seen) -> None:
    """Value and gradient on the device."""

    def run(moved: dict[str, Any]) -> None:
        logits, target = moved.pop("logits"), moved.pop("target")
        torch.autograd.backward(evaluate_loss(loss, logits, target, moved)["loss"])

    away(run, [loss], given, leaves, seen)


def away(
    run: Callable[[dict[str, Any]], object],
    modules: Iterable[nn.Module],
    given: Mapping[str, Any],
    leaves: Iterable[str],
    seen: Seen,
) -> None:
    """Run something on the device; the moves to it are not counted as its own.

    Args:
        run: Takes what is given, there.
        modules: They go there, and stay.
        given: Tensors, which go there, a generator, in whose place comes one of the device, and anything else.
        leaves: Names of the tensors that get gradients.
        seen: Takes what is seen.

    Raises:
        RuntimeError: Tensors of two devices meet, in the words of PyTorch.
        DataDependentOutputException: A value is read.
        DynamicOutputShapeException: A shape depends on values.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.allow_meta = True
    with mode:
        for module in modules:
            module.to(AWAY)
        moved = {k: v.to(AWAY) if isinstance(v, Tensor) else v for k, v in given.items()}
        moved |= {k: Generator() for k, v in given.items() if isinstance(v, torch.Generator)}
        for name in leaves:
            moved[name].requires_grad_()
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)  # as on a GPU: some operations have another form then
        try:
            with _Watch(seen), _Made(seen), patch.object(torch.autocast, "__init__", _autocast):
                run(moved)
        finally:
            torch.use_deterministic_algorithms(deterministic)


_plain_autocast = torch.autocast.__init__


def _autocast(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
    """The device has no mixed precision of its own; that of the CPU stands for it."""
    _plain_autocast(self, "cpu" if device_type == AWAY.type else device_type, *args, **kwargs)


def _line(error: BaseException) -> str:
    return _place(traceback.extract_tb(error.__traceback__))


def _place(frames: Iterable[traceback.FrameSummary]) -> str:
    """The innermost line that is neither PyTorch's nor ours: that of the loss, where it calls or is differentiated."""
    stack = list(frames)
    inside = max((i for i, f in enumerate(stack) if f.filename in _CALLERS and f.name in _CALLS), default=-1)
    return place_of(stack[inside + 1 :]) or "by PyTorch"
