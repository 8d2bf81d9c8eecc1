"""The properties that a loss is checked for, each a function from a loss to a finding with its number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from harness.check.scenes import (
    CLASSES,
    IGNORE,
    QUALITIES,
    Result,
    Scene,
    acts_on_logits,
    evaluate,
    forward,
    label,
    leaves_of,
    on_voxels,
    one_hot,
    scene,
)

# Makes the loss anew for a target: facts of the data, class counts among them, are those of its labels. A second argument
# renumbers the classes of arguments that have one value for each.
Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Finding:
    """What one property came to.

    Attributes:
        holds: Whether the loss has the property; None where it does not apply.
        number: The number that decided.
        text: What was seen, in a few words.
    """

    holds: bool | None
    number: float | None
    text: str


MEMORY_LIMIT = 16.0


def optimum(make: Make) -> Finding:
    """0 at the truth, and nowhere lower."""
    values = _ladder(make)
    best = values["perfect"]
    lowest = min(values.values())
    scale = max(abs(values["random"]), 1e-12)
    holds = abs(best) <= 1e-3 * min(scale, 1.0) and best <= lowest + 1e-9
    return Finding(holds, best, f"{best:.3g} at the truth, lowest of four predictions {lowest:.3g}")


def order(make: Make) -> Finding:
    """Perfect < degraded < random < inverted."""
    values = _ladder(make)
    found = [values[q] for q in QUALITIES]
    gap = min(b - a for a, b in itertools.pairwise(found)) / max(abs(v) for v in (*found, 1e-12))
    return Finding(gap > 1e-6, gap, " < ".join(f"{q} {v:.4g}" for q, v in zip(QUALITIES, found, strict=True)))


def gradcheck(make: Make) -> Finding:
    """The gradient is that of central differences, float64, along random directions."""
    worst = 0.0
    for seed, quality in ((1, "random"), (2, "degraded")):
        given = scene(quality, seed=seed)
        loss = make(given.target)
        leaves = leaves_of(loss, given)
        value = forward(loss, given, leaves)
        names = list(leaves)
        grads = torch.autograd.grad(value, [leaves[n] for n in names], allow_unused=True)
        draw = torch.Generator().manual_seed(seed)
        for _ in range(4):
            along = {n: torch.randn(leaves[n].shape, generator=draw, dtype=leaves[n].dtype) for n in names}
            slope = sum(float((g * along[n]).sum()) for n, g in zip(names, grads, strict=True) if g is not None)
            step = 1e-6
            with torch.no_grad():
                ends = [
                    float(forward(loss, given, {n: leaves[n].detach() + s * along[n] for n in names}))
                    for s in (step, -step)
                ]
            numeric = (ends[0] - ends[1]) / (2 * step)
            noise = 1e-14 * max(1.0, abs(float(value.detach()))) / step  # of the difference in float64
            worst = max(worst, max(abs(slope - numeric) - noise, 0.0) / max(abs(numeric), abs(slope), 1e-6))
    return Finding(worst < 1e-3, worst, f"largest relative error {worst:.1e}")


def ignored(make: Make) -> Finding:
    """No gradient at ignored voxels, no change of the value when the prediction there changes."""
    worst_gradient = worst_change = 0.0
    for dims in _dims(make):
        given = scene("random", dims, target=_with_ignored(label(dims)))
        loss = make(given.target)
        before = evaluate(loss, given)
        hidden = given.target == IGNORE
        for name, grad in before.leaves.items():
            if grad.shape[2:] == hidden.shape[1:]:
                inside = (grad.abs() * hidden[:, None]).max()
                worst_gradient = max(worst_gradient, float(inside / grad.abs().max().clamp_min(1e-30)))
            elif name == "logits":
                raise AssertionError("logits lie on the voxels")
        moved = _moved_where(hidden, loss, given)
        change = abs(evaluate(loss, moved, gradient=False).value - before.value)
        worst_change = max(worst_change, change / max(abs(before.value), 1e-6))
    holds = worst_gradient == 0 and worst_change <= 1e-9
    text = f"gradient there {worst_gradient:.1e} of the largest, value moves by {worst_change:.1e}"
    return Finding(holds, max(worst_gradient, worst_change), text)


def voxelwise(make: Make) -> Finding:
    """The value with half of the image ignored is the value of the other half alone."""
    given = scene("random", seed=3)
    loss = make(given.target)
    if not on_voxels(loss):
        return Finding(None, None, "reads maps on another grid than the label's")
    half = given.target.shape[-1] // 2
    masked = given.target.clone()
    masked[..., half:] = IGNORE
    left = Scene(given.target[..., :half], given.logits[..., :half], given.spacing, _crop(given.extra, half))
    # what a model gives beside the logits is that of the whole image: its left half, not one made from the half
    whole = {k: v.detach() for k, v in leaves_of(loss, given).items() if k != "logits"}
    full = evaluate(loss, Scene(masked, given.logits, given.spacing, given.extra | whole), gradient=False).value
    alone = evaluate(
        loss, Scene(left.target, left.logits, left.spacing, left.extra | _crop(whole, half)), gradient=False
    ).value
    error = abs(full - alone) / max(abs(alone), 1e-9)
    return Finding(error <= 1e-6, error, f"{full:.6g} against {alone:.6g}")


def finite(make: Make) -> Finding:
    """Finite values and gradients at extreme predictions and labels."""
    bad: list[str] = []
    for dims in _dims(make):
        for name, given in _extremes(dims):
            if not evaluate(make(label(dims)), given).finite:
                bad.append(f"{name} ({dims}D)")
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
    return Finding(worst <= 2e-2, worst, where)


def class_permutation(make: Make) -> Finding:
    """Other numbers for the same foreground classes give the same value."""
    worst = 0.0
    for quality in ("degraded", "random"):
        given = scene(quality)
        swap = torch.tensor([0, 2, 3, 1])
        renamed = Scene(_renamed(given.target, swap), given.logits[:, swap.argsort()], given.spacing, given.extra)
        a = evaluate(make(given.target), given, gradient=False).value
        b = evaluate(make(renamed.target, swap.argsort().tolist()), renamed, gradient=False).value
        worst = max(worst, abs(a - b) / max(abs(a), 1e-9))
    return Finding(worst <= 1e-6, worst, f"value moves by {worst:.1e}")


def batch_order(make: Make) -> Finding:
    """The order of the samples changes nothing."""
    given = scene("random")
    turned = Scene(
        given.target.flip(0),
        given.logits.flip(0),
        given.spacing.flip(0),
        {k: v.flip(0) for k, v in given.extra.items()},
    )
    loss = make(given.target)
    a, b = evaluate(loss, given, gradient=False).value, evaluate(loss, turned, gradient=False).value
    error = abs(a - b) / max(abs(a), 1e-9)
    return Finding(error <= 1e-6, error, f"value moves by {error:.1e}")


def copies(make: Make) -> Finding:
    """A batch that is repeated has the same value: a mean, not a sum."""
    given = scene("random")
    twice = Scene(*(torch.cat([v, v]) for v in (given.target, given.logits, given.spacing)), _twice(given.extra))
    loss = make(given.target)
    a, b = evaluate(loss, given, gradient=False).value, evaluate(loss, twice, gradient=False).value
    error = abs(a - b) / max(abs(a), 1e-9)
    # smooth terms and rank cuts move with the number of voxels, a sum doubles
    return Finding(error <= 1e-3, error, f"value moves by {error:.1e}")


def dimensions(make: Make) -> Finding:
    """Works in 2D and in 3D, with a gradient."""
    missing = []
    for dims in (2, 3):
        try:
            found = evaluate(make(label(dims)), scene("random", dims))
            if not found.finite or all(float(g.abs().max()) == 0 for g in found.leaves.values()):
                missing.append(f"{dims}D: no finite gradient")
        except Exception as error:  # whatever a loss raises for images that it cannot do
            missing.append(f"{dims}D: {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}")
    return Finding(not missing, 2.0 - len(missing), "; ".join(missing) or "2D and 3D")


def memory(make: Make) -> Finding:
    """The largest intermediate is a small multiple of the logits, whatever their number."""
    shares = []
    for factor in (1, 2):
        given = scene("random", dtype=torch.float32, target=label(2).repeat(1, factor, 2))
        loss = make(given.target)
        leaves = leaves_of(loss, given)
        with _Largest() as seen:
            forward(loss, given, leaves).backward()
        shares.append(seen.bytes / (given.logits.numel() * 4))
    holds = max(shares) <= MEMORY_LIMIT and shares[1] <= 1.3 * max(shares[0], 1.0)
    grown = f"; {shares[1] / shares[0]:.1f}× that for twice the voxels" if shares[1] > 1.3 * max(shares[0], 1) else ""
    return Finding(holds, max(shares), f"largest intermediate {shares[0]:.1f}× the logits{grown}")


def descent(make: Make) -> Finding:
    """Twenty steps of Adam on the prediction raise the Dice."""
    draw = torch.Generator().manual_seed(11)
    target = label(2)
    start = 0.5 * torch.randn(one_hot(target).shape, generator=draw, dtype=torch.float64)
    given = Scene(target, start, scene("random").spacing, scene("random").extra)
    loss = make(target)
    leaves = leaves_of(loss, given)
    if not acts_on_logits(loss, scene("random")) and not acts_on_logits(loss, scene("inverted")):
        return Finding(False, 0.0, "has no gradient to the logits")
    own = [p for p in loss.parameters() if p.requires_grad]
    adam = torch.optim.Adam([*leaves.values(), *own], lr=0.2)
    before = _dice(_prediction(leaves), target)
    for _ in range(20):
        adam.zero_grad()
        forward(loss, given, leaves).backward()
        adam.step()
    after = _dice(_prediction(leaves), target)
    return Finding(after >= before + 0.05, after - before, f"Dice {before:.3f} → {after:.3f}")


def monotone_large(make: Make) -> Finding:
    """The value rises as the overlap with a large object shrinks."""
    return _monotone(make, 14)


def monotone_small(make: Make) -> Finding:
    """The value rises as the overlap with a small object shrinks."""
    return _monotone(make, 4)


def classwise(make: Make) -> Finding:
    """Moving the voxels of one class towards the truth never raises the loss."""
    worst, where = 0.0, "never rises"
    for quality, seed in (("random", 4), ("degraded", 5)):
        given = scene(quality, seed=seed)
        loss = make(given.target)
        base = evaluate(loss, given, gradient=False).value
        truth = one_hot(given.target)
        for number in range(CLASSES):
            for step in (0.1, 1.0, 4.0):
                push = step * (truth[:, number : number + 1] * truth).to(given.logits.dtype)
                moved = evaluate(loss, given.with_logits(given.logits + push), gradient=False).value
                rise = (moved - base) / max(abs(base), 1e-3)
                if rise > worst:
                    worst = rise
                    where = f"rises by {rise:.1e} when {step:g} is added to the true logit of class {number}"
    return Finding(worst <= 1e-6, worst, where)


def steady(make: Make) -> Finding:
    """Two calls give the same, and the inputs stay as they are."""
    given = scene("random", dtype=torch.float32)
    kept = (given.logits.clone(), given.target.clone())
    one, two = evaluate(make(given.target), given), evaluate(make(given.target), given)
    if not (torch.equal(kept[0], given.logits) and torch.equal(kept[1], given.target)):
        return Finding(False, math.nan, "changes its inputs")
    moves = max([abs(one.value - two.value)] + [float((one.leaves[n] - two.leaves[n]).abs().max()) for n in one.leaves])
    return Finding(moves == 0, moves, "same value and gradient" if moves == 0 else f"differs by {moves:.1e}")


def _ladder(make: Make) -> dict[str, float]:
    loss = make(label(2))
    return {q: evaluate(loss, scene(q), gradient=False).value for q in QUALITIES}


def _dims(make: Make) -> Iterator[int]:
    """The dimensions that the loss works in; a loss of 2D images alone is told by `dimensions`."""
    for dims in (2, 3):
        try:
            evaluate(make(label(dims)), scene("random", dims), gradient=False)
        except Exception:
            if dims == 2:
                raise
            continue
        yield dims


def _with_ignored(target: Tensor) -> Tensor:
    out = target.clone()
    draw = torch.rand(target.shape, generator=torch.Generator().manual_seed(17))
    out[draw < 0.05] = IGNORE
    window = [slice(0, None)] + [slice(n // 3, 2 * n // 3) for n in target.shape[1:]]
    out[tuple(window)] = IGNORE
    return out


def _moved_where(hidden: Tensor, loss: nn.Module, given: Scene) -> Scene:
    """The scene with other predictions at hidden voxels, and the same elsewhere."""
    draw = torch.Generator().manual_seed(23)
    extra = dict(given.extra)

    def moved(values: Tensor) -> Tensor:
        noise = 8 * torch.randn(values.shape, generator=draw, dtype=values.dtype)
        return torch.where(hidden[:, None], values + noise, values)

    for name, values in leaves_of(loss, given).items():
        if name != "logits":
            extra[name] = moved(values.detach()) if values.shape[2:] == hidden.shape[1:] else values.detach()
    return Scene(given.target, moved(given.logits), given.spacing, extra)


def _extremes(dims: int) -> Iterator[tuple[str, Scene]]:
    target = label(dims)
    for quality in ("perfect", "inverted"):
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
    yield "all ignored", scene("random", dims, torch.float32, target=torch.full_like(target, IGNORE))


def _renamed(target: Tensor, swap: Tensor) -> Tensor:
    return torch.where(target == IGNORE, IGNORE, swap[target.clamp(max=CLASSES - 1)])


def _crop(parts: dict[str, Tensor], half: int) -> dict[str, Tensor]:
    return {k: v[..., :half] for k, v in parts.items()}


def _twice(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.cat([v, v]) for k, v in parts.items()}


def _prediction(leaves: dict[str, Tensor]) -> Tensor:
    logits = leaves["logits"]
    return logits + leaves["embedding"][:, : logits.shape[1]] if "embedding" in leaves else logits


def _dice(logits: Tensor, target: Tensor) -> float:
    """Mean Dice of the foreground classes of the hard prediction."""
    guess = logits.argmax(1)
    scores = []
    for number in range(1, CLASSES):
        a, b = guess == number, target == number
        scores.append(2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0))
    return sum(scores) / len(scores)


def _monotone(make: Make, side: int) -> Finding:
    """A square object, and its prediction shifted further and further, to no overlap."""
    size, at = 32, 9 if side > 8 else 14
    target = torch.zeros(1, size, size, dtype=torch.int64)
    target[:, at : at + side, 2 : 2 + side] = 1
    # each class is there, so that no rule for absent classes speaks
    target[:, 28:30, 28:30], target[:, 28:30, 2:4] = 2, 3
    values = []
    for shift in range(side + 1):
        guess = torch.where(target == 1, 0, target)
        guess[:, at : at + side, 2 + shift : 2 + shift + side] = 1
        logits = 6 * one_hot(guess).double()
        given = Scene(target, logits, torch.ones(1, 2), {"label_weight": torch.ones(target.shape, dtype=torch.float64)})
        values.append(evaluate(make(target), given, gradient=False).value)
    steps = [b - a for a, b in itertools.pairwise(values)]
    span = max(max(values) - min(values), 1e-12)
    lowest = min(steps) / span
    rises = values[-1] - values[0] > 1e-9
    return Finding(rises and lowest > 1e-9, lowest, f"{values[0]:.4g} → {values[-1]:.4g}, smallest step {lowest:.1e}")


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in tree_flatten(out)[0]:
            if isinstance(part, Tensor):
                self.bytes = max(self.bytes, part.untyped_storage().nbytes())
        return out


PROPERTIES: dict[str, Callable[[Make], Finding]] = {
    "optimum": optimum,
    "order": order,
    "gradcheck": gradcheck,
    "ignored": ignored,
    "voxelwise": voxelwise,
    "finite": finite,
    "large_logits": large_logits,
    "half_precision": half_precision,
    "class_permutation": class_permutation,
    "batch_order": batch_order,
    "copies": copies,
    "dimensions": dimensions,
    "memory": memory,
    "descent": descent,
    "monotone_large": monotone_large,
    "monotone_small": monotone_small,
    "classwise": classwise,
    "steady": steady,
}
NEVER_DECLARED = frozenset({"ignored", "finite", "large_logits", "half_precision"})

__all__ = ["NEVER_DECLARED", "PROPERTIES", "Finding", "Make", "Result"]
