"""Which cases a data set has: a list, ranges of numbers, or what lies in its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from harness.yamlfile import Strict

MOST_CASES = 100_000
# `format` can do more than write a number: it reads attributes, and a width of nine digits fills the memory
_PATTERN = re.compile(r"[^{}]*\{(:0?\d{0,2}d?)?\}[^{}]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class CaseRange(Strict):
    """Cases that are numbered: `{pattern: "case_{:03d}", from: 1, to: 20, except: [7]}`; both ends are in it."""

    pattern: str
    first: int = Field(alias="from", ge=0)
    last: int = Field(alias="to", ge=0)
    without: list[int] = Field(default_factory=list, alias="except")

    def names(self) -> list[str]:
        """The cases, in the order of their numbers.

        Raises:
            ValueError: The pattern does not take one number, or the range is empty.
        """
        if self.last < self.first:
            raise ValueError(f"the range from {self.first} to {self.last} is empty")
        if self.last - self.first >= MOST_CASES:
            raise ValueError(f"more than {MOST_CASES:,} cases in a range")
        if not _PATTERN.fullmatch(self.pattern):
            raise ValueError(f"pattern {self.pattern!r} must take one number, as in 'case_{{:03d}}'")
        without = set(self.without)
        strange = [n for n in self.without if not self.first <= n <= self.last]
        if strange:
            raise ValueError(f"`except` names {strange[0]}, which is not between {self.first} and {self.last}")
        return [self.pattern.format(n) for n in range(self.first, self.last + 1) if n not in without]


class Found(Strict):
    """The cases are those that the layout finds in the folder of data; `found: 125` says how many there must be."""

    found: int | None = Field(default=None, ge=1)


def _expanded(value: Any) -> Any:
    """Write ranges out as names; anything that is no range stays for the schema to judge."""
    if value == "found":
        return Found()
    if isinstance(value, dict):
        return Found.model_validate(value) if "found" in value else _range(value)
    if isinstance(value, list):
        return [name for item in value for name in (_range(item) if isinstance(item, dict) else [item])]
    return value


def _range(value: dict[str, Any]) -> list[str]:
    try:
        return CaseRange.model_validate(value).names()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"a range of cases has the keys pattern, from, to and except; {key}: {first['msg']}") from None


Cases = Annotated[
    list[str] | Found,
    BeforeValidator(_expanded, json_schema_input_type=list[str | CaseRange] | CaseRange | Found | str),
]


def natural(name: str) -> list[tuple[int, int | str]]:
    """Key to sort names by, in which `case2` stands before `case10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def fault_of(cases: Iterable[str]) -> str | None:
    """What is wrong with names of cases: characters that no file name should have, or a name that comes twice."""
    seen: set[str] = set()
    for case in cases:
        if not NAME.fullmatch(case):
            return f"case {case!r} names a file: letters, digits, '_', '.' and '-' only"
        if case in seen:
            return f"case {case!r} stands twice in `cases`"
        seen.add(case)
    return None


def sorted_cases(names: Iterable[str]) -> list[str]:
    """Names in natural order, each once."""
    return sorted(set(names), key=lambda name: (natural(name), name))


def chosen_by(entries: Sequence[str], cases: Sequence[str]) -> tuple[list[str], str | None]:
    """The cases that a split names, where an entry with `*` stands for all cases that match it.

    Returns:
        The cases, and the first entry that matches none (None where each does).
    """
    known, out = set(cases), list[str]()
    for entry in entries:
        if "*" in entry:
            matches = re.compile(".*".join(map(re.escape, entry.split("*"))))
            hits = [c for c in cases if matches.fullmatch(c)]
        else:
            hits = [entry] if entry in known else []
        if not hits:
            return out, entry
        out += hits
    return out, None
