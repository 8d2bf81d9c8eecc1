"""What a loss can be tuned over: ranges of its arguments and values to choose from. Torch and Optuna are not needed.

A dimension is written as `[a, b]` (two numbers: a range), `{low: a, high: b, log: true}`, a list of other values or
`{choices: [...]}`, or `{one_minus: NAME}` for an argument that is 1 - NAME. A class says it in the same words:

    space = {"gamma": (0.5, 5.0), "mode": ["a", "b"]}
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import BenchError
from harness.resolve import Found, Param

# Canonical: {"low", "high"} with "log" or "int" where true, {"choices": [...]}, or {"one_minus": NAME}.
Dimension = dict[str, Any]
Space = dict[str, Dimension]

DIGITS = 4  # of tuned numbers: an id then does not hang on the last bit of a machine's logarithm
_FORM = (
    "expected a range [a, b], {low: a, high: b, log: true}, values to choose from, [x, y] or {choices: [1, 2]}, or "
    "{one_minus: ANOTHER ARGUMENT}"
)


def space_of(found: Found, given: Mapping[str, Any], where: str = "") -> Space:
    """Bring a space to its canonical form.

    Args:
        found: The class whose arguments these are.
        given: Argument to dimension, as written.
        where: In front of a sentence.

    Raises:
        ValueError: With the argument as `args[1]`: the class has no such argument, or a dimension cannot be read.
    """
    params = {p.name: p for p in found.params}
    space: Space = {}
    for name, value in given.items():
        try:
            if name not in params and not (found.any_keyword and isinstance(name, str)):
                raise ValueError(f"{found.check_arguments({name: 0}, frozenset(params)) or 'no name of an argument.'}")
            space[name] = dimension(value, params.get(name))
            for one in _ends(space[name]):
                if wrong := found.check_arguments({name: one}, frozenset(params)):
                    raise ValueError(wrong)
        except ValueError as error:
            raise ValueError(f"{where}{str(error).removesuffix('.')}.", name) from None
    for name, one in space.items():
        other = one.get("one_minus")
        if other is not None and "low" not in space.get(other, {}):
            raise ValueError(
                f"{where}`one_minus` names an argument with a range in the same space, found {other!r}.", name
            )
    return space


def dimension(value: Any, param: Param | None = None) -> Dimension:
    """Read one dimension.

    Args:
        value: As written.
        param: The argument: one that takes whole numbers gets whole numbers.

    Raises:
        ValueError: It cannot be read.
    """
    whole = param is not None and re.search(r"\bint\b", param.annotation) and "float" not in param.annotation
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(map(_number, value)):
            return _range(value[0], value[1], False, bool(whole))
        return _choices(list(value))
    if isinstance(value, Mapping):
        keys = set(value)
        if {"low", "high"} <= keys <= {"low", "high", "log"} and isinstance(value.get("log", False), bool):
            return _range(value["low"], value["high"], value.get("log", False), bool(whole))
        if keys == {"choices"} and isinstance(value["choices"], (list, tuple)):
            return _choices(list(value["choices"]))
        if keys == {"one_minus"} and isinstance(value["one_minus"], str):
            return {"one_minus": value["one_minus"]}
    raise ValueError(f"{_FORM}, found {value!r}")


def _ends(one: Dimension) -> list[Any]:
    """Values of a dimension that an argument must take."""
    return [one["low"], one["high"]] if "low" in one else list(one.get("choices", []))


def _range(low: Any, high: Any, log: bool, whole: bool) -> Dimension:
    if not _number(low) or not _number(high) or not low < high:
        raise ValueError(f"a range goes from a lower to a higher number, found {low!r} to {high!r}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range starts above 0, found {low!r}")
    if whole and (int(low), int(high)) != (low, high):
        raise ValueError(f"this argument takes whole numbers, found {low!r} to {high!r}")
    ends = {"low": int(low), "high": int(high), "int": True} if whole else {"low": float(low), "high": float(high)}
    return ends | ({"log": True} if log else {})


def _choices(values: list[Any]) -> Dimension:
    plain = [[*v] if isinstance(v, tuple) else v for v in values]
    if len(plain) < 2 or any(plain.count(v) > 1 for v in plain):
        raise ValueError(f"values to choose from are two or more different ones, found {values!r}")
    if not all(_plain(v) for v in plain):
        raise ValueError(
            f"values are numbers, text, true, false, null, or lists and mappings of them, found {values!r}"
        )
    return {"choices": plain}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, bool)) or _number(value)


def class_space(found: Found) -> Mapping[str, Any]:
    """The class attribute `space`, read from the source; empty where there is none.

    Raises:
        BenchError: It is not plain: only running the file could tell.
    """
    if not found.space:
        return {}
    try:
        value = ast.literal_eval(found.space)
    except (ValueError, TypeError, SyntaxError):
        value = None
    if not isinstance(value, dict):
        raise BenchError(
            f"{found.name}: its class attribute `space` is not plain; write arguments with numbers and texts, such as "
            'space = {"gamma": (0.5, 5.0)}.'
        )
    return value


def parts_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The plain losses in a specification, each with what stands before its arguments' names.

    That is nothing for a plain loss, and `tversky.` for a part of a sum; a second part of that name is `tversky#2.`.
    """
    if "sum" not in spec:
        yield "", dict(spec)
        return
    seen: dict[str, int] = {}
    for part in _leaves(spec):
        name = short_name(part)
        seen[name] = seen.get(name, 0) + 1
        yield (f"{name}." if seen[name] == 1 else f"{name}#{seen[name]}."), part


def short_name(part: Mapping[str, Any]) -> str:
    """Name of a plain loss: its class where it is a dotted path or a file."""
    return str(re.split(r"[.:]", part["name"])[-1])


def _leaves(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "sum" in spec:
        for term in spec["sum"]:
            yield from _leaves(term["loss"])
    else:
        yield dict(spec)


def with_arguments(spec: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The specification with arguments set, named as in `parts_of`."""
    prefixes = iter([prefix for prefix, _ in parts_of(spec)])

    def walked(one: Mapping[str, Any]) -> dict[str, Any]:
        if "sum" in one:
            return {**one, "sum": [{**term, "loss": walked(term["loss"])} for term in one["sum"]]}
        prefix = next(prefixes)
        own = {k.removeprefix(prefix): v for k, v in values.items() if _of(k, prefix)}
        return {**one, "args": {**one["args"], **own}}

    return walked(spec)


def _of(key: str, prefix: str) -> bool:
    return key.startswith(prefix) if prefix else True


def derived(space: Mapping[str, Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those that follow from others, in the order of the space."""
    out = {}
    for name, one in space.items():
        if "one_minus" in one:
            out[name] = rounded(1.0 - float(values[one["one_minus"]]))
        else:
            out[name] = values[name]
    return out


def rounded(value: float) -> float:
    """A number with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def text_of(space: Mapping[str, Dimension]) -> str:
    """A space in words: `fn_weight 0.1 to 0.9, fp_weight = 1 - fn_weight`."""
    out = []
    for name, one in space.items():
        if "choices" in one:
            out.append(f"{name} one of {', '.join(map(str, one['choices']))}")
        elif "one_minus" in one:
            out.append(f"{name} = 1 - {one['one_minus']}")
        else:
            out.append(f"{name} {one['low']:g} to {one['high']:g}{' (log)' if one.get('log') else ''}")
    return ", ".join(out)
