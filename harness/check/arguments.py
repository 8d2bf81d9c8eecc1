"""Whether each argument of a loss has an effect: a loss that ignores its weights passes every other test."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.check.properties import Finding
from harness.check.scenes import CLASSES, IGNORE, Scene, evaluate, facts_of, label, scene
from harness.errors import BenchError
from harness.losses.build import build_loss
from harness.losses.needs import FACTS
from harness.losses.prepared import prepare_loss
from harness.resolve import load

# facts of the data that a loss may not need at all here, and switches of the machinery
_NOT_TRIED = {"ignore_index", "num_classes", "spatial_dims"}


def argument_effects(spec: Mapping[str, Any]) -> Finding:
    """Change each argument of the constructor and look for another value or gradient on some scene."""
    cls = load(spec["class"])
    parameters = [
        p for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    base: list[Any] | None = None
    idle, tried, untried = [], 0, []
    for parameter in parameters:
        if parameter.name in _NOT_TRIED:
            continue
        if base is None:
            base = _values(spec, {})
        found = False
        accepted = False
        for value in _others(cls, parameter, spec["args"].get(parameter.name, parameter.default)):
            try:
                changed = _values(spec, {parameter.name: value})
            except (BenchError, ValueError, TypeError, RuntimeError, KeyError, AttributeError):
                continue
            accepted = True
            if any(_differ(a, b) for a, b in zip(base, changed, strict=True)):
                found = True
                break
        if not accepted:
            untried.append(parameter.name)
            continue
        tried += 1
        if not found:
            idle.append(parameter.name)
    note = f"; not tried: {', '.join(untried)}" if untried else ""
    if not tried:
        return Finding(None, None, f"no argument to try{note}")
    if idle:
        return Finding(False, float(len(idle)), f"no effect of {', '.join(idle)}{note}")
    return Finding(True, float(tried), f"{tried} of {tried} change the value{note}")


def _differ(a: tuple[float, Tensor], b: tuple[float, Tensor]) -> bool:
    same = abs(a[0] - b[0]) <= 1e-9 * max(abs(a[0]), 1e-6) and a[1].shape == b[1].shape
    return not same or not bool(torch.allclose(a[1], b[1], rtol=1e-6, atol=1e-12))


def _values(spec: Mapping[str, Any], changed: Mapping[str, Any]) -> list[tuple[float, Tensor]]:
    """Values and gradients on scenes with an absent class, ignored voxels, unequal samples, an empty one."""
    out = []
    for given in _scenes():
        torch.manual_seed(0)
        full = {**spec, "args": {**spec["args"], **changed}}
        loss = prepare_loss(build_loss(full, facts_of(label(2))), full, lambda: list(label(2)), key="check", seed=0)
        found = evaluate(loss, given)
        grads = torch.cat([g.flatten() for _, g in sorted(found.leaves.items())])
        if callable(end := getattr(loss, "epoch_end", None)):
            with torch.no_grad():
                end()
            found = evaluate(loss, given, gradient=False)
        out.append((found.value, grads))
    return out


def _scenes() -> Iterator[Scene]:
    yield scene("degraded")
    rare = label(2)
    rare[0] = torch.where(rare[0] == 2, 0, rare[0])
    rare[1, :4] = IGNORE
    rare = torch.where(rare == 3, 0, rare)
    yield scene("random", target=rare, seed=8)
    yield scene("perfect", target=torch.cat([label(2)[:1], torch.zeros_like(label(2)[:1])]))


def _others(cls: type, parameter: inspect.Parameter, value: Any) -> Iterator[Any]:
    """Other values to try, by type and annotation."""
    try:
        hint = typing.get_type_hints(cls.__init__).get(parameter.name)  # type: ignore[misc]
    except Exception:
        hint = parameter.annotation
    options = _literals(hint)
    for option in options:
        if option != value:
            yield option
    if isinstance(value, bool):
        yield not value
        return
    text = str(hint)
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
        if "float" in text:
            yield from (0.3, 2.0)
        if "int" in text:
            yield from (1, 2, 3)
        if "list" in text.lower() or "sequence" in text.lower():
            yield per_class
            yield [[float(abs(i - j)) / (CLASSES - 1) for i in range(CLASSES)] for j in range(CLASSES)]
        if "bool" in text:
            yield True


def _literals(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in _literals(part)]
