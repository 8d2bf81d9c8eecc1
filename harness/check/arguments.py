"""Whether each argument of a loss has an effect: a loss that ignores its weights passes every other test."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.check.finding import Finding, Make
from harness.check.scenes import CLASSES, IGNORE, Scene, evaluate, facts_of, label, scene
from harness.losses.build import build_loss
from harness.losses.needs import FACTS
from harness.losses.prepared import prepare_loss
from harness.resolve import load

_Values = list[tuple[float, Tensor]]
EPOCHS = 6  # for state that moves every few epochs
# facts of the data that a loss may not need at all here, and switches of the machinery
_NOT_TRIED = {"ignore_index", "num_classes", "spatial_dims"}
# of torch and MONAI: withdrawn, set by `build_loss`, or about soft labels
_OF_LIBRARIES = {"size_average", "reduce", "to_onehot_y", "softmax", "use_softmax", "soft_label"}


@dataclass(frozen=True)
class _Effect:
    """A change of one argument and what it came to."""

    name: str
    before: Any
    after: Any
    values: _Values


def argument_effects(spec: Mapping[str, Any], make: Make) -> Finding:
    """Change each argument of the constructor and look for another value or gradient on some scene.

    An argument without an effect at the given values of the others is tried again with each of their other choices:
    the smoothing of one form of a loss is none of the other's business.
    """
    cls = load(spec["class"])
    parameters = [
        p for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    passed_over = _NOT_TRIED | (_OF_LIBRARIES if cls.__module__.split(".")[0] in ("torch", "monai") else set())
    parameters = [p for p in parameters if p.name not in passed_over]
    trials = _Trials(cls, spec, make)
    idle, untried = [], []
    effects: list[_Effect] = []
    for parameter in parameters:
        around = ({p.name: c} for p in parameters if p is not parameter for c in trials.choices(p))
        accepted, effect = False, None
        for context in itertools.chain([{}], around):
            taken, effect = trials.effect(parameter, context)
            accepted |= taken
            if effect is not None or not accepted:
                break
        if effect is not None:
            effects.append(effect)
        elif accepted:
            idle.append(parameter.name)
        else:
            untried.append(parameter.name)
    note = f"; not tried: {', '.join(untried)}" if untried else ""
    if not effects and not idle:
        return Finding(None, None, f"no argument to try{note}")
    if idle:
        return Finding(False, float(len(idle)), f"no effect of {', '.join(idle)}{note}")
    for one, other in itertools.combinations(effects, 2):
        # such as weights of two errors where a misprint has one of them twice
        alike = (one.before, one.after) == (other.before, other.after) and _is_number(one.before)
        if alike and _is_number(one.after) and not _unlike(one.values, other.values):
            return Finding(False, 2.0, f"{one.name} and {other.name} do the same{note}")
    return Finding(True, float(len(effects)), f"{len(effects)} of {len(effects)} change the value{note}")


class _Trials:
    """Values of a loss with some of its arguments changed, each set of changes evaluated once."""

    def __init__(self, cls: type, spec: Mapping[str, Any], make: Make) -> None:
        self._cls, self._spec = cls, spec
        self._known: dict[str, _Values] = {}
        base = make(label(2))
        # what a loss prepared is used again with other arguments, wherever it fits
        self._state = base.state_dict() if any(hasattr(part, "prepare") for part in base.modules()) else None

    def choices(self, parameter: inspect.Parameter) -> list[Any]:
        """The other choices of an argument that has a closed set of them."""
        value = self._value(parameter)
        options = [not value] if isinstance(value, bool) else _literals(_hint(self._cls, parameter))
        return [option for option in options if option != value]

    def effect(self, parameter: inspect.Parameter, context: dict[str, Any]) -> tuple[bool, _Effect | None]:
        """Whether the loss takes another value of an argument, and the first value with an effect."""
        try:
            base = self._at(context)
        except Exception:  # the choices may exclude each other
            return False, None
        accepted, value = False, self._value(parameter)
        for other in _others(self._cls, parameter, value):
            if accepted and isinstance(other, list) and isinstance(other[0], list):
                continue  # one value per class is what it takes; a matrix might broadcast
            try:
                changed = self._at({**context, parameter.name: other})
            except Exception:  # whatever a loss raises for a value that it does not take
                continue
            accepted = True
            if _unlike(base, changed):
                return True, _Effect(parameter.name, value, other, changed)
        return accepted, None

    def _value(self, parameter: inspect.Parameter) -> Any:
        return self._spec["args"].get(parameter.name, parameter.default)

    def _at(self, changed: Mapping[str, Any]) -> _Values:
        key = repr(sorted(changed.items()))
        if key not in self._known:
            self._known[key] = [self._on(given, changed) for given in _scenes()]
        return self._known[key]

    def _on(self, given: Scene, changed: Mapping[str, Any]) -> tuple[float, Tensor]:
        loss = self._loss({**self._spec, "args": {**self._spec["args"], **changed}})
        found = evaluate(loss, given, fresh=False)
        grads = torch.cat([g.flatten() for _, g in sorted(found.leaves.items())])
        if callable(end := getattr(loss, "epoch_end", None)):
            for _ in range(EPOCHS):
                with torch.no_grad():
                    end()
                found = evaluate(loss, given, gradient=False, fresh=False)
        return found.value, grads

    def _loss(self, spec: Mapping[str, Any]) -> nn.Module:
        torch.manual_seed(0)
        loss = build_loss(spec, facts_of(label(2)))
        if self._state is not None:
            try:
                loss.load_state_dict(self._state)
                return loss
            except RuntimeError:  # another shape
                pass
        return prepare_loss(loss, spec, lambda: list(label(2)), key="check", seed=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unlike(some: _Values, others: _Values) -> bool:
    return any(_differ(a, b) for a, b in zip(some, others, strict=True))


def _differ(a: tuple[float, Tensor], b: tuple[float, Tensor]) -> bool:
    same = math.isclose(a[0], b[0], rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a[0]) and math.isnan(b[0]))
    alike = a[1].shape == b[1].shape and bool(torch.allclose(a[1], b[1], rtol=1e-6, atol=1e-12, equal_nan=True))
    return not (same and alike)


def _scenes() -> Iterator[Scene]:
    """Scenes with thin and thick errors, an absent class, ignored voxels, unequal samples, an empty one."""
    yield scene("degraded")
    yield scene("inverted")
    rare = label(2)
    rare[0] = torch.where(rare[0] == 2, 0, rare[0])
    rare[1, :4] = IGNORE
    rare = torch.where(rare == 3, 0, rare)
    yield scene("random", target=rare, seed=8)
    yield scene("perfect", target=torch.cat([label(2)[:1], torch.zeros_like(label(2)[:1])]))


def _others(cls: type, parameter: inspect.Parameter, value: Any) -> Iterator[Any]:
    """Other values to try, by type and annotation."""
    hint = _hint(cls, parameter)
    options = _literals(hint)
    for option in options:
        if option != value:
            yield option
    if isinstance(value, bool):
        yield not value
        return
    text = str(hint)
    plain = re.sub(r"(?i)\b(list|tuple|sequence|dict|mapping|literal)\[.*?\]+", "", text)  # list[float] takes no float
    per_class = [0.4 + 0.7 * c for c in range(CLASSES)]
    if parameter.name in FACTS and parameter.name != "ignore_index":
        if parameter.name == "adjacency":
            yield [[0 if i != j else 9 for i in range(CLASSES)] for j in range(CLASSES)]
        yield [900, 40, 300, 7]
        return
    if isinstance(value, int | float):
        for factor in (2, 0.5, 0.3, 4):
            other = value * factor if value else factor
            yield round(other) or 1 if isinstance(value, int) and "float" not in text else float(other)
    if "Tensor" in text:
        yield per_class
    if isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value):
        yield [v * 2 for v in value]
        yield list(value)[:-1]
    if value is None or value is inspect.Parameter.empty:
        if "float" in plain:
            yield from (0.3, 2.0)
        if "int" in plain:
            yield from (1, 2, 3)
        if "list" in text.lower() or "sequence" in text.lower():
            yield per_class
            yield [[float(abs(i - j)) / (CLASSES - 1) for i in range(CLASSES)] for j in range(CLASSES)]
        if "bool" in text:
            yield True
        if parameter.annotation is inspect.Parameter.empty:  # a user's class without annotations
            yield from (per_class, torch.tensor(per_class), 0.3, 2.0, 1, True)


def _hint(cls: type, parameter: inspect.Parameter) -> Any:
    try:
        return typing.get_type_hints(cls.__init__).get(parameter.name)  # type: ignore[misc]
    except Exception:  # annotations may name what is not imported
        return parameter.annotation


def _literals(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in _literals(part)]
