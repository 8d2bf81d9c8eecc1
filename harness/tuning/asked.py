"""What a suite asks of tuning, resolved for each of its losses; it stands in the training section of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BenchError
from harness.losses import LOSSES
from harness.resolve import Found, locate
from harness.tuning.space import Space, class_space, parts_of, short_name, space_of
from harness.tuning.spaces import SPACES
from harness.yamlfile import YamlFile, nearest

if TYPE_CHECKING:
    from harness.grid import LossChoice
    from harness.suite_file import SuiteFile

VERSION = 1  # raised when the same budget over the same records would choose otherwise


def tuning_of(spec: SuiteFile, loss: LossChoice, file: YamlFile) -> dict[str, Any] | None:
    """How a loss is tuned, as it enters the ids of its cells; None where there is nothing to tune.

    The space of a plain loss or of a part of a sum is what `tune.spaces` says of its label or name; else the class
    attribute `space`; else the table of `harness.tuning.spaces`. Of the last two the arguments that the suite itself
    sets are left out: what a suite says, stays.

    Args:
        spec: The suite.
        loss: One of its losses.
        file: The suite's file.

    Returns:
        trials, metric, epochs, at_once, version; `lr` and `space` where there is something to vary.

    Raises:
        BenchError: With file and line: a space cannot be read.
    """
    tune = spec.tune
    if tune is None:
        return None
    space = _space(tune.spaces, loss, file)
    if not space and tune.lr is None:
        return None
    return {
        "version": VERSION,
        "trials": tune.trials,
        "metric": tune.metric.removesuffix("@val"),
        "epochs": tune.epochs or spec.train.epochs,
        "at_once": min(tune.at_once, tune.trials),
        **({} if tune.lr is None else {"lr": [*tune.lr]}),
        **({"space": space} if space else {}),
    }


def _space(given: Mapping[str, Any], loss: LossChoice, file: YamlFile) -> Space:
    whole: Space = {}
    for prefix, part in _tuned(loss):
        found = locate(part["class"], LOSSES, "loss", Path())
        names = (*([loss.label] if loss.choice is not None else []), part["name"], short_name(part))
        key = next((name for name in names if name in given), None)
        own = _unset(found, part, file) if key is None else _read(found, given[key], file, ("tune", "spaces", key))
        whole |= {f"{prefix}{name}": _prefixed(one, prefix) for name, one in own.items()}
    return whole


def _tuned(loss: LossChoice) -> list[tuple[str, dict[str, Any]]]:
    """The parts of a loss that are tuned: all of a sum, but of the rule `with` the varied loss alone."""
    parts = [*parts_of(loss.spec)]
    return parts if loss.choice is None else parts[:1]


def _unset(found: Found, part: Mapping[str, Any], file: YamlFile) -> Space:
    """The space of the class or of the table, without arguments that the suite sets and those that hang on them."""
    try:
        said = class_space(found)
        given = said or SPACES.get(str(part["name"]), {})
        whole = space_of(found, given, f"the space of {part['name']}: ")
    except ValueError as error:
        raise file.error(("tune",), str(error.args[0])) from None
    except BenchError as error:
        raise file.error(("tune",), str(error)) from None
    fixed = set(part["args"])
    fixed |= {one["one_minus"] for name, one in whole.items() if "one_minus" in one and name in fixed}
    return {k: v for k, v in whole.items() if k not in fixed and v.get("one_minus") not in fixed}


def _read(found: Found, given: Any, file: YamlFile, where: tuple[Any, ...]) -> Space:
    try:
        return space_of(found, given)
    except ValueError as error:
        raise file.error((*where, error.args[1]), str(error.args[0])) from None


def _prefixed(one: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k: f"{prefix}{v}" if k == "one_minus" else v for k, v in one.items()}


def check_spaces(spec: SuiteFile, losses: Iterable[LossChoice], file: YamlFile) -> None:
    """See that every key of `tune.spaces` is a loss of the suite.

    Raises:
        BenchError: With file and line.
    """
    if spec.tune is None:
        return
    known = {name for loss in losses for name in _names(loss)}
    for key in spec.tune.spaces:
        if key not in known:
            listed = ", ".join(sorted(known))
            raise file.error(
                ("tune", "spaces", key), f"not one of the suite's losses{nearest(key, known)}; it has: {listed}."
            )


def _names(loss: LossChoice) -> Iterable[str]:
    if loss.choice is not None:
        yield loss.label
    for _, part in _tuned(loss):
        yield from (str(part["name"]), short_name(part))
