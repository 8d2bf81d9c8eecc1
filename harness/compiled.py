"""A cell whose network is compiled: `torch.compile` turns its pass, and that of its gradient, into fewer operations.

The compiler fuses what lies between the large operations (normalisation, activation, attention), on a GPU into Triton
kernels and on a CPU into C++; a network of many small operations gains most. Only training uses it: losses, validation
and prediction run as they are. Compiled code is kept by torch on disk and in the process, where all cells of a model
share it.

Numbers that a compiled pass draws are those of the plain one (`fallback_random`), shapes are fixed, and no timing
decides what is compiled: on one machine the same cell gives the same bits, after an interruption, too.

A compiler can be wrong without a word: that of torch 2.13 leaves out a part of the gradient of SegResNet on a CPU. So
every cell compares outputs and gradients of both passes before its first step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from harness.errors import BenchError
from harness.fused import tensors_of
from harness.models.output import Output
from harness.train import Trainer

KEPT = 6  # networks whose code a process keeps; torch gives up at 8 of one class
# How far a gradient may be off, of its own norm and of that of all: in float32 a rectifier that rounding turns on or
# off, in bfloat16 the roundings themselves, which a fused operation leaves out.
NEAR = {False: (0.05, 1e-3), True: (0.3, 1e-2)}

_kept: set[str] = set()


def train_compiled(trainer: Trainer, log: Callable[[str], None] = lambda text: None) -> None:
    """Train a cell with its network compiled; one that cannot be compiled is trained as it is, and its record says so.

    Args:
        trainer: A trainer that has begun.
        log: Takes a sentence.

    Raises:
        BenchError: It was begun compiled, and cannot be compiled here.
        Exception: As `Trainer.run`.
    """
    _make_room(trainer)
    plain, network = trainer.model, compiled_pass(trainer)
    began = time.monotonic()
    with trainer.turn():
        fault = fault_of(trainer, network)
    if fault is None:
        trainer.engine, trainer.forward = {"engine": "compiled"}, network
        log(f"network compiled and compared in {time.monotonic() - began:.0f} s")
    elif trainer.progress.step > 0:
        raise BenchError(f"the training was begun with a compiled network, which fails here: {fault}.")
    else:
        note = f"its network cannot be compiled ({fault})"
        trainer.engine, trainer.forward = {"engine": "single", "engine_note": note}, plain
        log(f"trained as it is: {note}")
    trainer.run()


def compiled_pass(trainer: Trainer) -> Callable[[Tensor], Output]:
    """The pass of a cell's network, to be compiled at its first call."""
    found: Callable[[Tensor], Output] = torch.compile(
        trainer.model, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )
    return found


def fault_of(trainer: Trainer, network: Callable[[Tensor], Output]) -> str | None:
    """What is wrong with a compiled pass; None where outputs and gradients are those of the network.

    It is compiled here, and no weight, running statistic or gradient of the network is changed.
    """
    image = trainer.draw().parts(trainer.accumulate)[0].image.contiguous(memory_format=trainer.layout)
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    found: list[dict[str, dict[str, Tensor]]] = []
    try:
        for each in (trainer.model, network):
            trainer.draw()  # the same numbers for masks of dropout
            found.append(_seen(trainer, each, image))
            for name, buffer in trainer.model.named_buffers():
                found[-1]["running statistics"] |= {name: buffer.clone()}
                buffer.copy_(buffers[name])
    except TorchDynamoException as error:
        return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(buffers[name])
    plain, ours = found
    for kind, tensors in plain.items():
        if (worst := _apart(tensors, ours[kind], *NEAR[trainer.autocast])) is not None:
            return f"{kind} of {worst} differ from those of the network as it is"
    return None


def _seen(trainer: Trainer, network: Callable[[Tensor], Output], image: Tensor) -> dict[str, dict[str, Tensor]]:
    """Outputs of a pass, and the gradients of a sum of all of them with weights of chance."""
    with trainer.precision():
        output = network(image)
    outputs = {name: value for name, value in tensors_of(output).items() if value.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    slopes = {n: torch.randn(v.shape, generator=generator).to(v) for n, v in outputs.items() if v.requires_grad}
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward([outputs[name] for name in slopes], list(slopes.values()))
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in trainer.model.named_parameters()
        if p.requires_grad
    }
    values = {name: value.detach().clone() for name, value in outputs.items()}
    return {"outputs": values, "gradients": gradients, "running statistics": {}}


def _apart(theirs: dict[str, Tensor], ours: dict[str, Tensor], own: float, whole: float) -> str | None:
    """The tensor that is farthest off, if any is too far."""
    if theirs.keys() != ours.keys():
        return ", ".join(sorted(theirs.keys() ^ ours.keys()))

    def norm(value: Tensor) -> Tensor:
        return value.double().norm() if value.numel() else torch.zeros((), dtype=torch.float64)

    every = sum(float(norm(v)) ** 2 for v in theirs.values()) ** 0.5
    off = {
        n: float(norm(ours[n].double() - v.double())) / (own * float(norm(v)) + whole * every + 1e-30)
        for n, v in theirs.items()
    }
    worst = max(off, key=lambda name: off[name], default="")
    return worst if off and not off[worst] <= 1 else None


def _make_room(trainer: Trainer) -> None:
    """Forget all compiled code before there is too much: torch would otherwise refuse to compile."""
    cell = trainer.cell
    sizes = (trainer.classes, trainer.batch, trainer.accumulate, trainer.autocast)
    key = repr((cell.model, cell.data["view"], sizes))
    if key not in _kept and len(_kept) >= KEPT:
        torch._dynamo.reset()
        _kept.clear()
    _kept.add(key)
