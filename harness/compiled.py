"""A cell whose network is compiled: `torch.compile` turns its pass, and that of its gradient, into fewer operations.

The compiler fuses what lies between the large operations (normalisation, activation, attention), on a GPU into Triton
kernels and on a CPU into C++; a network of many small operations gains most. Only training uses it: losses, validation
and prediction run as they are. Compiled code is kept by torch on disk and in the process, where all cells of a model
share it.

Numbers that a compiled pass draws are those of the plain one (`fallback_random`), shapes are fixed, and no timing
decides what is compiled: on one machine the same cell gives the same bits, after an interruption, too.

A compiler can be wrong without a word: that of torch 2.13 leaves out a part of the gradient of SegResNet on a CPU. So
every cell compares outputs, gradients and running statistics of both passes, on copies of its network, before its first
step.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import CalledProcessError

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler, TritonMissing

from harness.errors import BenchError, first_line
from harness.fused import tensors_of
from harness.machine import empty_cache, out_of_memory, reset_peak
from harness.models.output import Output
from harness.train import Trainer

KEPT = 6  # networks whose code a process keeps; torch gives up at 8 of one class

# What a compiler raises for want of something, and not of a network: a compiler, a library, space.
WANTING = (OSError, CalledProcessError, CppCompileError, InvalidCxxCompiler, TritonMissing)

_kept: set[str] = set()


class Fault(Exception):
    """A network that has no compiled pass, or one that gives something else; the text says what."""


@dataclass(frozen=True)
class Near:
    """How far a tensor may be off: a share of its own norm, and of that of all tensors of its kind."""

    own: float
    whole: float = 0.0


# By autocast. In float32 a rectifier that rounding turns on or off moves gradients; in bfloat16 the roundings do, which
# a fused operation leaves out.
OUTPUTS = {False: Near(0.01), True: Near(0.1)}
GRADIENTS = {False: Near(0.05, 1e-3), True: Near(0.3, 1e-2)}
NOTHING = 1e-6  # of the norm of all gradients; below it a gradient is rounding alone


def train_compiled(trainer: Trainer, log: Callable[[str], None] = lambda text: None) -> None:
    """Train a cell with its network compiled; one that cannot be compiled is trained as it is, and its record says so.

    Args:
        trainer: A trainer that has begun.
        log: Takes a sentence.

    Raises:
        BenchError: The compiler fails for want of something, or the cell was begun compiled and cannot be here.
        Exception: As `Trainer.run`.
    """
    began = time.monotonic()
    try:
        with trainer.turn():
            compare(trainer, compiled_pass)
    except Fault as fault:
        if trainer.progress.step > 0:
            raise BenchError(
                f"the training was begun with a compiled network, which fails here: {fault}; go on where it was begun, "
                "or remove its checkpoint.pt to train it anew."
            ) from None
        note = f"its network cannot be compiled ({fault})"
        trainer.engine = {"engine": "single", "engine_note": note, "instead_of": "compiled"}
        log(f"trained as it is: {note}")
    else:
        trainer.engine, trainer.forward = {"engine": "compiled"}, compiled_pass(trainer.model)
        log(f"network compiled and compared in {time.monotonic() - began:.0f} s")
    gc.collect()
    empty_cache(str(trainer.device))
    reset_peak(trainer.device)  # what compiling and comparing took is no need of the cell
    trainer.run()


def compiled_pass(network: nn.Module) -> Callable[[Tensor], Output]:
    """The pass of a network, to be compiled at its first call."""
    found: Callable[[Tensor], Output] = torch.compile(
        network, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )
    return found


def compare(trainer: Trainer, compiler: Callable[[nn.Module], Callable[[Tensor], Output]]) -> None:
    """See that a compiled pass gives what the network gives, on copies of it: nothing of the cell is changed.

    Raises:
        Fault: It does not, or there is none.
        BenchError: The compiler fails for want of something: of a compiler, of space.
    """
    image = trainer.draw().parts(trainer.accumulate)[0].image.contiguous(memory_format=trainer.layout)
    _make_room(trainer, image)
    try:
        plain, ours = (copy.deepcopy(trainer.model).train() for _ in "ab")
    except Exception as error:  # of a user's network any kind
        if out_of_memory(error):
            raise
        raise Fault(f"it cannot be copied, {_reason(error)}") from None
    network = compiler(ours)
    theirs = _seen(trainer, plain, plain, image)
    try:
        try:
            found = _seen(trainer, ours, network, image)
        except FailOnRecompileLimitHit:
            torch._dynamo.reset()
            found = _seen(trainer, ours, network, image)
        with torch._dynamo.config.patch(error_on_recompile=True):  # code that changes with every step
            _seen(trainer, ours, network, image)
    except Exception as error:  # of a compiler many kinds
        if out_of_memory(error):
            raise
        within = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        if isinstance(within, WANTING):
            raise BenchError(f"the network cannot be compiled for now: {_reason(within)}.") from None
        raise Fault(_reason(error)) from None
    near = {"outputs": OUTPUTS, "gradients": GRADIENTS, "running statistics": OUTPUTS}
    for kind, tensors in theirs.items():
        if (worst := _apart(tensors, found[kind], near[kind][trainer.autocast])) is not None:
            raise Fault(f"{kind} of {worst} differ from those of the network as it is")


def _seen(
    trainer: Trainer, model: nn.Module, network: Callable[[Tensor], Output], image: Tensor
) -> dict[str, dict[str, Tensor]]:
    """Outputs of a pass, the gradients of a sum of all of them with weights of chance, and what the pass keeps."""
    trainer.draw()  # the same numbers for masks of dropout
    with trainer.precision():
        output = network(image)
    outputs = {name: value for name, value in tensors_of(output).items() if value.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    slopes = {n: torch.randn(v.shape, generator=generator).to(v) for n, v in outputs.items() if v.requires_grad}
    model.zero_grad(set_to_none=True)
    if slopes:
        torch.autograd.backward([outputs[name] for name in slopes], list(slopes.values()))
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return {
        "outputs": {name: value.detach().clone() for name, value in outputs.items()},
        "gradients": gradients,
        "running statistics": {name: value.clone() for name, value in model.named_buffers()},
    }


def _apart(theirs: dict[str, Tensor], ours: dict[str, Tensor], near: Near) -> str | None:
    """A tensor that is too far off, or that only one of the two has."""
    if theirs.keys() != ours.keys():
        return ", ".join(sorted(theirs.keys() ^ ours.keys()))

    def norm(value: Tensor) -> float:
        return float(value.double().norm()) if value.numel() else 0.0

    every = sum(norm(v) ** 2 for v in theirs.values() if v.is_floating_point()) ** 0.5
    for name, value in theirs.items():
        if not value.is_floating_point():
            if not torch.equal(value, ours[name]):
                return name
            continue
        off, own = norm(ours[name].double() - value.double()), norm(value)
        room = near.own * own + near.whole * every + 1e-5 * value.numel() ** 0.5 * (near.whole == 0.0)
        lost = near.whole > 0.0 and own > NOTHING * every and norm(ours[name]) == 0.0
        if lost or not off <= room:  # a value that is no number is far off, too
            return name
    return None


def _make_room(trainer: Trainer, image: Tensor) -> None:
    """Forget all compiled code before there is too much: torch would otherwise refuse to compile."""
    shapes = [(name, *p.shape) for name, p in trainer.model.named_parameters()]
    key = repr((trainer.cell.model, shapes, image.shape, image.stride(), trainer.autocast))
    if key not in _kept and len(_kept) >= KEPT:
        torch._dynamo.reset()
        _kept.clear()
    _kept.add(key)


def _reason(error: BaseException) -> str:
    return first_line(error, type(error).__name__).rstrip(".")
