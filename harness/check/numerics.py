"""Gradients, finite numbers, half precision and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from harness.check.finding import Finding, Make
from harness.check.raised import said
from harness.check.scenes import (
    IGNORE,
    QUALITIES,
    Scene,
    anew,
    evaluate,
    forward,
    label,
    leaves_of,
    scene,
    working_dims,
)

MEMORY_LIMIT = 16.0


def gradcheck(make: Make) -> Finding:
    """The gradient is that of central differences, float64, along random directions; and there is one."""
    worst = judged = steepest = 0.0
    for seed, quality in ((1, "random"), (2, "degraded")):
        given = scene(quality, seed=seed)
        loss = make(given.target)
        leaves = leaves_of(loss, given)
        value = forward(anew(loss), given, leaves)
        if not value.requires_grad:
            return Finding(False, 0.0, "the value has no gradient")
        names = list(leaves)
        grads = torch.autograd.grad(value, [leaves[n] for n in names], allow_unused=True)
        # a loss that computes in float32 has fewer digits, and needs longer steps
        single = value.dtype == torch.float32
        step, digits, tolerance = (3e-3, 1e-6, 2e-2) if single else (1e-6, 1e-14, 1e-3)
        draw = torch.Generator().manual_seed(seed)
        for _ in range(4):
            along = {n: torch.randn(leaves[n].shape, generator=draw, dtype=leaves[n].dtype) for n in names}
            slope = sum(float((g * along[n]).sum()) for n, g in zip(names, grads, strict=True) if g is not None)
            with torch.no_grad():
                ends = [
                    float(forward(anew(loss), given, {n: leaves[n].detach() + s * along[n] for n in names}))
                    for s in (step, -step)
                ]
            numeric = (ends[0] - ends[1]) / (2 * step)
            noise = digits * max(1.0, abs(float(value.detach()))) / step  # of the difference
            error, size = abs(slope - numeric), max(abs(numeric), abs(slope), 1e-6)
            worst, steepest = max(worst, error / size), max(steepest, abs(slope))
            judged = max(judged, max(error - noise, 0.0) / size)
    if steepest == 0 and judged <= tolerance:
        return Finding(False, 0.0, "the gradient is 0 for random and for degraded predictions")
    return Finding(judged <= tolerance, worst, f"largest relative error {worst:.1e}")


def finite(make: Make) -> Finding:
    """Finite values and gradients at extreme predictions and labels."""
    bad: list[str] = []
    for dims in working_dims(make):
        for name, given in _extremes(dims):
            try:
                if not evaluate(make(label(dims)), given).finite:
                    bad.append(f"{name} ({dims}D)")
            except Exception as error:  # whatever a loss raises for a label or prediction that it did not expect
                bad.append(f"{name} ({dims}D): {said(error, 80)}")
    return Finding(not bad, float(len(bad)), ", ".join(bad[:4]) or "all finite")


def large_logits(make: Make) -> Finding:
    """Logits of ±10,000 give finite values and gradients, in float32 too."""
    bad = []
    for quality in ("perfect", "random", "inverted"):
        for dtype in (torch.float32, torch.float64):
            given = scene(quality, dtype=dtype)
            top = given.logits.abs().max()
            if not evaluate(make(given.target), given.with_logits(given.logits / top * 1e4)).finite:
                bad.append(f"{quality} in {str(dtype).removeprefix('torch.')}")
    return Finding(not bad, float(len(bad)), ", ".join(bad) or "all finite")


def half_precision(make: Make) -> Finding:
    """Half-precision logits and autocast give nearly the value of float32."""
    worst, where = 0.0, "agrees with float32"
    for kind in (torch.float16, torch.bfloat16):
        base = scene("degraded", dtype=torch.float32)
        rounded = base.with_logits(base.logits.to(kind).float())
        wanted = evaluate(make(base.target), rounded)
        low = evaluate(make(base.target), Scene(base.target, base.logits.to(kind), base.spacing, base.extra))
        casts = evaluate(make(base.target), rounded, low=kind)
        for name, found in (("logits", low), ("autocast", casts)):
            if not found.finite:
                return Finding(False, math.inf, f"not finite with {kind} {name}")
            error = abs(found.value - wanted.value) / max(abs(wanted.value), 1e-3)
            if error > worst:
                worst, where = error, f"{error:.1e} off with {str(kind).removeprefix('torch.')} {name}"
    # of so many voxels, a sum of half-precision probabilities is above 65,504, and infinite
    wide = scene("degraded", dtype=torch.float16, target=label(2, batch=1).repeat(1, 12, 8))
    if _share(make(label(2)), scene("random")) <= MEMORY_LIMIT and not evaluate(make(label(2)), wide).finite:
        return Finding(False, math.inf, f"not finite with {wide.target.numel():,} voxels in float16")
    return Finding(worst <= 2e-2, worst, where)


def memory(make: Make) -> Finding:
    """The largest intermediate is a small multiple of the logits, whatever their number."""
    shares = []
    for factor in (1, 2):
        given = scene("random", dtype=torch.float32, target=label(2).repeat(1, factor, 2))
        shares.append(_share(make(given.target), given))
    holds = max(shares) <= MEMORY_LIMIT and shares[1] <= 1.3 * max(shares[0], 1.0)
    grown = f"; {shares[1] / shares[0]:.1f}× that for twice the voxels" if shares[1] > 1.3 * max(shares[0], 1) else ""
    return Finding(holds, max(shares), f"largest intermediate {shares[0]:.1f}× the logits{grown}")


def _share(loss: nn.Module, given: Scene) -> float:
    """Size of the largest tensor that is made, in multiples of the logits."""
    leaves = leaves_of(loss, given)
    with _Largest() as seen:
        value = forward(loss, given, leaves)
        if value.requires_grad:
            torch.autograd.backward(value)
    return float(seen.bytes) / (given.logits.numel() * given.logits.element_size())


def _extremes(dims: int) -> Iterator[tuple[str, Scene]]:
    target = label(dims)
    for quality in QUALITIES:
        yield quality, scene(quality, dims, torch.float32)
    like = scene("random", dims, torch.float32)
    flat = torch.zeros_like(like.logits)
    yield "uniform", like.with_logits(flat)
    for name, number in (("everything background", 0), ("everything class 1", 1)):
        one = flat.clone()
        one[:, number] = 20
        yield name, like.with_logits(one)
    rare = torch.where(target == 2, 1, target)
    yield "a class absent", scene("random", dims, torch.float32, target=rare)
    for quality in ("perfect", "random", "inverted"):
        yield f"label all background, {quality}", scene(quality, dims, torch.float32, target=torch.zeros_like(target))
    yield "one sample empty", scene("random", dims, torch.float32, target=torch.cat([target[:1], 0 * target[1:]]))
    yield "label one class only", scene("random", dims, torch.float32, target=torch.ones_like(target))
    alone = torch.full_like(target, IGNORE)
    alone.flatten()[target.numel() // 3] = 1
    yield "one voxel that counts", scene("random", dims, torch.float32, target=alone)
    half = torch.cat([target[:1], torch.full_like(target[1:], IGNORE)])
    yield "one sample ignored", scene("random", dims, torch.float32, target=half)
    yield "all ignored", scene("random", dims, torch.float32, target=torch.full_like(target, IGNORE))


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest tensor that any operation made, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in tree_flatten(out)[0]:
            if isinstance(part, Tensor):
                self.bytes = max(self.bytes, part.untyped_storage().nbytes())
        return out
