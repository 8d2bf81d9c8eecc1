"""Conformance of a loss, behind `bench check`, behind the tests of the built-in losses and in every record.

A loss declares the properties that it rightly lacks in its class attribute `declares` (property → reason); a declared
property is shown, not hidden, and it must really fail.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.check.arguments import argument_effects
from harness.check.identity import twin_of
from harness.check.properties import NEVER_DECLARED, PROPERTIES, Finding, Make
from harness.check.raised import said
from harness.check.scenes import evaluate, facts_of, label, scene
from harness.errors import BenchError
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.losses.prepared import prepare_loss
from harness.processes import writable

CHECK_VERSION = 2
DECLARABLE = (frozenset(PROPERTIES) | {"identity", "arguments"}) - NEVER_DECLARED
Outcome = Literal["pass", "fail", "declared", "not applicable"]


@dataclass(frozen=True)
class Line:
    """One line of a certificate.

    Attributes:
        name: The property.
        outcome: `pass`; `fail`; `declared`: it fails as the loss declares; `not applicable`.
        number: The number that decided, None where there is none or it is not finite.
        text: What was seen.
        reason: The reason that the loss declares.
    """

    name: str
    outcome: Outcome
    number: float | None
    text: str
    reason: str = ""


@dataclass(frozen=True)
class Certificate:
    """The result of a check.

    Attributes:
        loss: Its name.
        passed: No line failed.
        lines: One for each property.
        seconds: How long it took.
        version: Of the check.
        torch: Version of torch.
    """

    loss: str
    passed: bool
    lines: tuple[Line, ...]
    seconds: float
    version: int = CHECK_VERSION
    torch: str = field(default_factory=lambda: str(torch.__version__))

    @property
    def failed(self) -> list[Line]:
        """The lines that failed."""
        return [line for line in self.lines if line.outcome == "fail"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_loss(
    spec: Mapping[str, Any], only: Collection[str] | None = None, prepared: Path | None = None
) -> Certificate:
    """Check one loss.

    Args:
        spec: `{"name", "class", "args", ...}` as for `build_loss`.
        only: Names of properties; all by default.
        prepared: Folder in which what a loss prepares once is kept; in this process alone by default.

    Raises:
        BenchError: The loss cannot be made, or declares a property that does not exist; or `prepared` takes no files.
    """
    make = maker(spec, prepared)
    try:
        first = make(label(2))
    except BenchError:
        raise
    except Exception as error:  # a loss whose construction or preparation fails ends its check, not the run around it
        if prepared is not None and isinstance(error, OSError):
            writable(prepared)  # no fault of the loss, where its preparation cannot be kept
        return Certificate(str(spec["name"]), False, (Line("call", "fail", None, said(error)),), 0.0)
    began = time.monotonic()  # without what a loss prepares once
    declares = dict(getattr(first, "declares", {}))
    unknown = sorted(set(declares) - DECLARABLE)
    if unknown:
        raise BenchError(
            f"{spec['name']} declares {unknown[0]!r}, which cannot be declared; known: {', '.join(sorted(DECLARABLE))}."
        )
    if (fault := _uncallable(make)) is not None:
        line = Line("call", "fail", None, fault)
        return Certificate(str(spec["name"]), False, (line,), round(time.monotonic() - began, 2))
    strict = not spec["args"]  # other arguments may give a property back
    lines = []
    for name in (*PROPERTIES, "arguments", "identity"):
        if only is None or name in only:
            lines.append(_line(name, _find(name, make, spec), declares, strict))
    passed = all(line.outcome != "fail" for line in lines)
    return Certificate(str(spec["name"]), passed, tuple(lines), round(time.monotonic() - began, 2))


def maker(spec: Mapping[str, Any], prepared: Path | None = None) -> Make:
    """A function that makes the loss for the facts of a target, prepared where it needs that."""

    def make(target: Tensor, order: Sequence[int] | None = None) -> nn.Module:
        args = {name: _renumbered(value, order) for name, value in spec["args"].items()} if order else spec["args"]
        torch.manual_seed(0)
        loss = build_loss({**spec, "args": args}, facts_of(target))
        return prepare_loss(loss, spec, lambda: list(target), key="check", seed=0, folder=prepared)

    return make


def _renumbered(value: Any, order: Sequence[int]) -> Any:
    """A list with one value per class, or one row and column, in another order of the classes."""
    if not isinstance(value, list) or len(value) != len(order):
        return value
    return [_renumbered(value[i], order) for i in order]


def _uncallable(make: Make) -> str | None:
    """What a loss raises when it is called with a plain scene, if it does so in 2D and in 3D."""
    fault = None
    for dims in (2, 3):
        given = scene("random", dims)
        try:
            evaluate(make(given.target), given, gradient=False)
            return None
        except Exception as error:  # whatever a loss raises
            fault = fault or said(error)
    return fault


def _find(name: str, make: Make, spec: Mapping[str, Any]) -> Finding:
    try:
        if name == "arguments":
            return argument_effects(spec, make)
        if name == "identity":
            found = twin_of(spec, make)
            # focal with γ = 0 is cross-entropy, and the user knows it
            own = spec["class"] in LOSSES.values() and spec["args"]
            return Finding(None, found.number, found.text) if own and not found.holds else found
        return PROPERTIES[name](make)
    except Exception as error:  # whatever a loss raises is a failure of the property, in its own words
        return Finding(False, None, said(error))


def _line(name: str, found: Finding, declares: Mapping[str, str], strict: bool) -> Line:
    number = found.number if found.number is not None and abs(found.number) < float("inf") else None
    reason = declares.get(name, "")
    outcome: Outcome
    if found.holds is None:
        outcome = "not applicable"
    elif name in declares and (not found.holds or not strict):
        outcome = "pass" if found.holds else "declared"
    elif name in declares:
        return Line(name, "fail", number, f"declared, but it holds: {found.text}", reason)
    else:
        outcome = "pass" if found.holds else "fail"
    return Line(name, outcome, number, found.text, reason)
