"""Value and gradient of a loss at every step, through the very calls that `bench check` makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from harness.check.scenes import Scene, evaluate, facts_of
from harness.errors import BenchError, first_line
from harness.landscape.scenes import TRANSFORMATIONS, label, perfect, scene_of, steps
from harness.losses.build import build_loss
from harness.losses.calls import needs_of
from harness.losses.needs import HEADS, MODEL_NEEDS
from harness.losses.prepared import prepare_loss
from harness.reference.entries import AZAD, NEEDS

COLUMNS = ("loss", "transformation", "object", "x", "value", "gradient_norm", "normalised")
FAMILIES = (*AZAD, "other")
# What a network gives beside its prediction.
NOT_HERE = MODEL_NEEDS | frozenset(HEADS)
DIGITS = 10


@dataclass(frozen=True)
class Point:
    """A loss at one step.

    Attributes:
        x: How far the transformation has gone.
        value: The loss; NaN where it is not finite.
        gradient: 2-norm of its gradient with respect to the logits; NaN where it is not finite.
        normalised: (value - value of the perfect prediction) / the largest size of that difference over both objects
            of the transformation.
    """

    x: float
    value: float
    gradient: float
    normalised: float = math.nan


@dataclass(frozen=True)
class Course:
    """What was found of one loss.

    Attributes:
        loss: Its name, with the arguments that were given.
        family: Its group of Azad et al., "other" where it says none.
        perfect: Its value where the prediction is right everywhere.
        points: By transformation and object, in the order of x.
    """

    loss: str
    family: str
    perfect: float
    points: Mapping[tuple[str, str], Sequence[Point]]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the CSV."""
        return [
            dict(zip(COLUMNS, (self.loss, *key, p.x, p.value, p.gradient, p.normalised), strict=True))
            for key, points in self.points.items()
            for p in points
        ]


@dataclass(frozen=True)
class LeftOut:
    """A loss that cannot be shown.

    Attributes:
        loss: Its name.
        reason: Why, without a full stop.
    """

    loss: str
    reason: str


def number_of_steps() -> int:
    """How often each loss is called."""
    return len(_scenes())


def measure(spec: Mapping[str, Any], name: str, tick: Callable[[], None] = lambda: None) -> Course | LeftOut:
    """Call a loss at every step.

    Args:
        spec: `{"name", "class", "args", ...}` as for `build_loss`.
        name: What to call it.
        tick: Called after each step.

    Raises:
        BenchError: The loss cannot be made.
    """
    torch.manual_seed(0)  # a loss may draw its weights
    loss = build_loss(spec, facts_of(label()))
    if missing := sorted(needs_of(loss)[0] & NOT_HERE):
        return LeftOut(name, f"it needs {missing[0]}, {NEEDS[missing[0]]}, and a prediction alone has none")
    _without_model(loss)
    try:
        # its state belongs to this label: a key of its own, and nothing kept on disk
        prepare_loss(loss, spec, lambda: list(label()), key="landscape", seed=0)
        points, best = _points(loss, tick)
    except Exception as error:  # whatever a loss raises is the reason why it is not shown
        kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
        return LeftOut(name, f"{kind}{first_line(error, '')}".rstrip(".: ")[:200] or kind)
    found = [p for own in points.values() for p in own]
    if not math.isfinite(best) or all(math.isnan(p.value) for p in found):
        return LeftOut(name, "its value at the perfect prediction is not finite")
    return Course(name, _family(loss), best, _normalised(points, best))


def _without_model(loss: nn.Module) -> None:
    """A loss that can use outputs of a model goes without: the check's own would be shown otherwise."""
    required, optional = needs_of(loss)
    if optional & NOT_HERE:
        loss.needs = (required, optional - NOT_HERE)  # type: ignore[assignment]


def _family(loss: nn.Module) -> str:
    groups = getattr(loss, "taxonomy", None)
    return groups[0] if isinstance(groups, tuple) and groups and groups[0] in FAMILIES else "other"


@cache
def _scenes() -> tuple[tuple[tuple[str, str, float], bytes, Scene], ...]:
    """Every step with its scene; equal predictions have equal bytes."""
    return tuple(
        ((s.transformation, s.of, s.x), s.probabilities.numpy().tobytes(), scene_of(s.probabilities)) for s in steps()
    )


def _points(loss: nn.Module, tick: Callable[[], None]) -> tuple[dict[tuple[str, str], list[Point]], float]:
    """Points by transformation and object, and the value at the perfect prediction."""
    start = evaluate(loss, scene_of(perfect()), gradient=False).value
    known: dict[bytes, tuple[float, float]] = {}  # the way begins at the same prediction each time
    points: dict[tuple[str, str], list[Point]] = {}
    for (transformation, of, x), same, scene in _scenes():
        if same not in known:
            found = evaluate(loss, scene)
            known[same] = _short(found.value), _short(float(found.logits.norm()))
        points.setdefault((transformation, of), []).append(Point(x, *known[same]))
        tick()
    in_order = {key: points[key] for name in TRANSFORMATIONS for key in points if key[0] == name}
    return in_order, _short(start)


def _normalised(
    points: Mapping[tuple[str, str], Sequence[Point]], best: float
) -> dict[tuple[str, str], tuple[Point, ...]]:
    out = {}
    for key, own in points.items():
        both = [p.value - best for (name, _), row in points.items() if name == key[0] for p in row]
        worst = max((abs(v) for v in both if math.isfinite(v)), default=0.0)
        if worst <= 1e-9 * max(1.0, abs(best)):  # the loss does not answer; what is left is rounding
            out[key] = tuple(replace(p, normalised=0.0 * p.value) for p in own)
        else:
            out[key] = tuple(replace(p, normalised=_short((p.value - best) / worst)) for p in own)
    return out


def _short(value: float) -> float:
    """Ten digits: the rest differs with the number of threads. No number where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else math.nan
