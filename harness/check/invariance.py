"""What must change nothing: ignored voxels, the order of classes, samples and axes, copies, earlier calls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.check.finding import Finding, Make
from harness.check.raised import said
from harness.check.scenes import (
    CLASSES,
    IGNORE,
    Scene,
    anew,
    evaluate,
    inputs_of,
    label,
    leaves_of,
    on_voxels,
    scene,
    working_dims,
)
from harness.losses.calls import evaluate_loss


def ignored(make: Make) -> Finding:
    """No gradient at ignored voxels, no change of the value when the prediction there changes."""
    worst_gradient = worst_change = 0.0
    for dims in working_dims(make):
        given = scene("random", dims, target=_with_ignored(label(dims)))
        loss = make(given.target)
        before = evaluate(loss, given)
        hidden = given.target == IGNORE
        for grad in before.leaves.values():
            if grad.shape[2:] == hidden.shape[1:]:
                inside = (grad.abs() * hidden[:, None]).max()
                worst_gradient = max(worst_gradient, float(inside / grad.abs().max().clamp_min(1e-30)))
        for size in (8.0, 1e4):
            after = evaluate(loss, _moved_where(hidden, loss, given, size))
            if not after.finite:
                return Finding(False, math.inf, f"not finite when logits of {size:g} stand at ignored voxels")
            worst_change = max(worst_change, abs(after.value - before.value) / max(abs(before.value), 1e-6))
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
    if not (math.isfinite(full) or math.isfinite(alone)):
        return Finding(None, None, "the value is not finite, with and without ignored voxels")
    error = abs(full - alone) / max(abs(alone), 1e-9)
    return Finding(error <= 1e-6, error, f"{full:.6g} against {alone:.6g}")


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


def axes(make: Make) -> Finding:
    """Image, label and spacing with their axes in another order have the same value."""
    worst = 0.0
    for dims in working_dims(make):
        given = scene("degraded", dims, seed=9)
        loss = make(given.target)
        if not on_voxels(loss):
            return Finding(None, None, "reads maps on another grid than the label's")
        order = list(range(dims))[::-1]

        def turned(values: Tensor, order: list[int] = order) -> Tensor:
            first = values.ndim - len(order)
            return values.permute(*range(first), *(first + axis for axis in order)).contiguous()

        extra = given.extra | {k: v.detach() for k, v in leaves_of(loss, given).items() if k != "logits"}
        there = Scene(given.target, given.logits, given.spacing, extra)
        back = Scene(
            turned(given.target),
            turned(given.logits),
            given.spacing[:, order],
            {k: turned(v) for k, v in extra.items()},
        )
        a = evaluate(loss, there, gradient=False).value
        b = evaluate(make(back.target), back, gradient=False).value
        worst = max(worst, abs(a - b) / max(abs(a), 1e-9))
    return Finding(worst <= 1e-6, worst, f"value moves by {worst:.1e}")


def copies(make: Make) -> Finding:
    """A batch that is repeated has the same value: a mean, not a sum."""
    given = scene("random")
    target, logits, spacing = (torch.cat([v, v]) for v in (given.target, given.logits, given.spacing))
    twice = Scene(target, logits, spacing, _twice(given.extra))
    loss = make(given.target)
    a, b = evaluate(loss, given, gradient=False).value, evaluate(loss, twice, gradient=False).value
    error = abs(a - b) / max(abs(a), 1e-9)
    # smooth terms and rank cuts move with the number of voxels, a sum doubles
    return Finding(error <= 1e-3, error, f"value moves by {error:.1e}")


def dimensions(make: Make) -> Finding:
    """Works in 2D and in 3D, with a gradient in 3D where there is one in 2D."""
    missing, sloped = [], False
    for dims in (2, 3):
        try:
            found = evaluate(make(label(dims)), scene("random", dims))
            slopes = any(float(g.abs().max()) > 0 for g in found.leaves.values())
            if not found.finite or (sloped and not slopes):
                missing.append(f"{dims}D: no finite gradient")
            sloped = sloped or slopes
        except Exception as error:  # whatever a loss raises for images that it cannot do
            missing.append(f"{dims}D: {said(error, 80)}")
    return Finding(not missing, 2.0 - len(missing), "; ".join(missing) or "2D and 3D")


def steady(make: Make) -> Finding:
    """A second call gives the same, whatever was called before, and the inputs stay as they are."""
    given = scene("random", dtype=torch.float32, target=_with_ignored(label(2)))
    other = scene("degraded", dtype=torch.float32, target=_with_ignored(label(2)).flip(-1), seed=6)
    loss = make(given.target)
    changed = _changed_inputs(loss, given)
    if changed:
        return Finding(False, None, f"changes {changed} in place")
    first, late = make(given.target), make(given.target)
    one, two = (evaluate(first, given, fresh=False) for _ in range(2))
    evaluate(late, other, fresh=False)
    three = evaluate(late, given, fresh=False)
    for name, found in (("a second call", two), ("a call after another batch", three)):
        slopes = [float((one.leaves[n] - found.leaves[n]).abs().max()) for n in one.leaves]
        moves = max([abs(one.value - found.value), *slopes])
        if moves != 0:
            return Finding(False, moves, f"{name} differs by {moves:.1e}")
    return Finding(True, 0.0, "same value and gradient")


def _changed_inputs(loss: nn.Module, given: Scene) -> str:
    """The name of an input that a call writes to."""
    leaves = leaves_of(loss, given)
    logits, target, offered = inputs_of(loss, given, leaves)
    inputs = {"the logits": logits, "the target": target}
    inputs |= {k: v for k, v in offered.items() if isinstance(v, Tensor)}
    kept = {k: v.detach().clone() for k, v in inputs.items()}
    with torch.no_grad():
        evaluate_loss(anew(loss), logits, target, offered)
    return next((k for k, v in inputs.items() if not torch.equal(kept[k], v)), "")


def _with_ignored(target: Tensor) -> Tensor:
    out = target.clone()
    draw = torch.rand(target.shape, generator=torch.Generator().manual_seed(17))
    out[draw < 0.05] = IGNORE
    window = [slice(0, None)] + [slice(n // 3, 2 * n // 3) for n in target.shape[1:]]
    out[tuple(window)] = IGNORE
    return out


def _moved_where(hidden: Tensor, loss: nn.Module, given: Scene, size: float) -> Scene:
    """The scene with other predictions at hidden voxels, and the same elsewhere."""
    draw = torch.Generator().manual_seed(23)
    extra = dict(given.extra)

    def moved(values: Tensor) -> Tensor:
        noise = size * torch.randn(values.shape, generator=draw, dtype=values.dtype)
        return torch.where(hidden[:, None], values + noise, values)

    for name, values in leaves_of(loss, given).items():
        if name != "logits":
            extra[name] = moved(values.detach()) if values.shape[2:] == hidden.shape[1:] else values.detach()
    return Scene(given.target, moved(given.logits), given.spacing, extra)


def _renamed(target: Tensor, swap: Tensor) -> Tensor:
    return torch.where(target == IGNORE, IGNORE, swap[target.clamp(max=CLASSES - 1)])


def _crop(parts: dict[str, Tensor], half: int) -> dict[str, Tensor]:
    return {k: v[..., :half] for k, v in parts.items()}


def _twice(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.cat([v, v]) for k, v in parts.items()}
