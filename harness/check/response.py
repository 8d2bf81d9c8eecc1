"""How the value answers to better and worse predictions."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from harness.check.finding import Finding, Make
from harness.check.scenes import (
    CLASSES,
    QUALITIES,
    Scene,
    acts_on_logits,
    evaluate,
    forward,
    label,
    leaves_of,
    one_hot,
    scene,
)


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
        torch.autograd.backward(forward(loss, given, leaves))
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
    """Moving the voxels of one class towards the truth never raises the loss, and lowers it for every class."""
    worst, where = 0.0, "never rises"
    falls, fewer = [0.0] * CLASSES, [0.0] * CLASSES
    for quality, seed, absent in (("random", 4, None), ("degraded", 5, None), ("random", 6, 2)):
        given = scene(quality, seed=seed, target=torch.where(label(2) == absent, 1, label(2)) if absent else None)
        loss = make(given.target)
        base = evaluate(loss, given, gradient=False).value
        truth = one_hot(given.target)
        for number in range(CLASSES):
            lowest = fewer if absent else falls
            for step in (0.1, 1.0, 4.0):
                push = step * (truth[:, number : number + 1] * truth).to(given.logits.dtype)
                moved = evaluate(loss, given.with_logits(given.logits + push), gradient=False).value
                rise = (moved - base) / max(abs(base), 1e-3)
                if not math.isfinite(rise):  # told by `finite`
                    rise = -1.0
                lowest[number] = min(lowest[number], rise)
                if rise > worst:
                    worst = rise
                    where = f"rises by {rise:.1e} when {step:g} is added to the true logit of class {number}"
    fewer[2] = -1.0  # the absent class has no voxel to put right
    for lows, why in ((falls, ""), (fewer, " while another class is absent")):
        idle = ", ".join(str(number) for number, low in enumerate(lows) if low > -1e-9)
        if idle and worst <= 1e-6:
            return Finding(False, 0.0, f"no effect on the value when the voxels of class {idle} are put right{why}")
    return Finding(worst <= 1e-6, worst, where)


def _ladder(make: Make) -> dict[str, float]:
    loss = make(label(2))
    return {q: evaluate(loss, scene(q), gradient=False).value for q in QUALITIES}


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
        logits = 6 * one_hot(guess).double() - 3
        given = Scene(target, logits, torch.ones(1, 2), {"label_weight": torch.ones(target.shape, dtype=torch.float64)})
        values.append(evaluate(make(target), given, gradient=False).value)
    steps = [b - a for a, b in itertools.pairwise(values)]
    span = max(max(values) - min(values), 1e-12)
    lowest = min(steps) / span
    rises = values[-1] - values[0] > 1e-9
    return Finding(rises and lowest > 1e-9, lowest, f"{values[0]:.4g} → {values[-1]:.4g}, smallest step {lowest:.1e}")
