"""Expansion of models and losses: sweeps, sums with schedules, subsets, the rule `with:`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import BenchError
from harness.losses import LOSSES
from harness.losses.needs import FACTS, check_needs
from harness.resolve import Found, locate
from harness.yamlfile import KeyPath, YamlFile, nearest

MOST_LOSSES = 2_000  # of a suite, sweeps and subsets expanded


@dataclass(frozen=True)
class Choice:
    """A name with one set of arguments of an expanded sweep."""

    name: str
    args: dict[str, Any]


@dataclass(frozen=True)
class LossChoice:
    """One loss of the grid.

    Attributes:
        spec: Canonical specification: `{name, class, args, version}` or `{sum: [{loss, weight}]}`.
        label: Its name in tables.
        digest: Of the sources of all its parts.
        needs: Names that the harness or the model must supply.
    """

    spec: dict[str, Any]
    label: str
    digest: str
    needs: frozenset[str]
    choice: Choice | None = None


def expand_arguments(name: str, args: dict[str, Any], file: YamlFile, where: KeyPath) -> list[Choice]:
    """Expand `{x: {sweep: [..]}}` per argument and `{sweep: [{..}, {..}]}` for arguments that move together."""
    if set(args) == {"sweep"}:
        sets = args["sweep"]
        if not isinstance(sets, list) or not sets or not all(isinstance(s, dict) for s in sets):
            raise file.error((*where, "sweep"), "expected a list of argument sets, such as [{a: 1}, {a: 2}].")
        return [Choice(name, _plain(s, file, where)) for s in sets]
    axes: list[list[tuple[str, Any]]] = []
    for key, value in args.items():
        if isinstance(value, dict) and "sweep" in value:
            values = value["sweep"]
            if set(value) != {"sweep"} or not isinstance(values, list) or not values:
                raise file.error((*where, key, "sweep"), "expected `{sweep: [value, value]}` and nothing beside it.")
            axes.append([(str(key), v) for v in values])
        else:
            axes.append([(str(key), value)])
    if math.prod(len(axis) for axis in axes) > MOST_LOSSES:
        raise file.error(where, f"the sweeps make more than {MOST_LOSSES:,} combinations; split the suite.")
    return [Choice(name, _plain(dict(pairs), file, where)) for pairs in itertools.product(*axes)]


def label_of(choice: Choice, among: Sequence[Choice] | None = None) -> str:
    """`focal(gamma=2)`; a dotted path or a file is named by its class.

    Args:
        choice: The choice.
        among: All choices of the table: only the arguments in which those of the same name differ are shown.
    """
    short = re.split(r"[.:]", choice.name)[-1]
    rivals = [c for c in among or () if re.split(r"[.:]", c.name)[-1] == short]
    keys = list(choice.args) if among is None else [k for k in choice.args if _differs(k, rivals)]
    inner = ", ".join(f"{k}={printed(choice.args[k])}" for k in keys)
    return f"{short}({inner})" if inner else short


def _by_name(choices: Sequence[LossChoice]) -> list[LossChoice]:
    return [replace(c, label=f"{c.choice.name} {c.label}") if c.choice is not None else c for c in choices]


def _differs(key: str, choices: Sequence[Choice]) -> bool:
    return len({repr(c.args.get(key)) for c in choices}) > 1


def expand_losses(entries: list[Any], rule: dict[str, Any] | None, file: YamlFile) -> list[LossChoice]:
    """Expand the suite's `losses`, with the rule `with:` applied.

    Raises:
        BenchError: With file and line: an unknown loss, argument or schedule, a repeated loss.
    """
    out: list[LossChoice] = []
    expanded = [
        (_entry(e, file, ("losses", i))[0], list(_expand(e, file, ("losses", i)))) for i, e in enumerate(entries)
    ]
    known = {name for name, _ in expanded} | {c.label for _, choices in expanded for c in choices}
    excepted = _excepted(rule, known, file)
    for i, (name, choices) in enumerate(expanded):
        for choice in choices:
            if rule is not None and name not in excepted and choice.label not in excepted:
                choice = with_rule(choice, rule, file)
            if any(choice.spec == other.spec for other in out):
                raise file.error(("losses", i), f"the loss {choice.label!r} stands here a second time; keep one.")
            out.append(choice)
            if len(out) > MOST_LOSSES:
                raise file.error(("losses", i), f"more than {MOST_LOSSES:,} losses; split the suite.")
    named = [c.choice for c in out if c.choice is not None]
    short = [replace(c, label=label_of(c.choice, named)) if c.choice is not None else c for c in out]
    labels = [c.label for c in short]
    # two files may each define a class of the same name: then the names as written tell them apart
    return [c if labels.count(s.label) > 1 else s for c, s in zip(_by_name(out), short, strict=True)]


def _expand(entry: Any, file: YamlFile, where: KeyPath) -> Iterator[LossChoice]:
    name, args = _entry(entry, file, where)
    here = (*where, name) if isinstance(entry, dict) else where
    if name == "sum":
        yield _sum(args, file, here)
    elif name == "subsets":
        yield from _subsets(args, file, here)
    elif name == "pairs":
        yield from _pairs(args, file, here)
    else:
        if not isinstance(args, dict):
            raise file.error(here, "expected `name: {argument: value}`.")
        yield from plain_losses(name, args, file, here)


def _entry(entry: Any, file: YamlFile, where: KeyPath) -> tuple[str, Any]:
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise file.error(where, "expected a name, or one `name: {arguments}`.")
    name, args = next(iter(entry.items()))
    return str(name), {} if args is None else args


def plain_losses(name: str, args: dict[str, Any], file: YamlFile, where: KeyPath) -> Iterator[LossChoice]:
    """One loss, or one for each point of its sweeps.

    Raises:
        BenchError: With file and line: there is no such loss, or it has no such argument.
    """
    try:
        found = locate(name, LOSSES, "loss", file.path.parent)
        needs = check_needs(n for n, required in found.needs if required)
        check_needs(n for n, _ in found.needs)
    except BenchError as error:
        raise file.error(where, str(error)) from None
    for choice in expand_arguments(name, args, file, where):
        wrong = found.check_arguments(choice.args, frozenset(FACTS))
        if wrong:
            key = next(
                (k for k in choice.args if wrong.startswith((f"unknown argument {k!r}", f"argument {k!r}:"))), None
            )
            raise file.error((*where, key) if key else where, wrong)
        yield LossChoice(_spec(found, choice), label_of(choice), found.digest, frozenset(needs), choice)


def _spec(found: Found, choice: Choice) -> dict[str, Any]:
    args = found.normalised(choice.args)
    return {"name": choice.name, "class": found.target, "args": args, "version": found.version}


def _sum(terms: Any, file: YamlFile, where: KeyPath) -> LossChoice:
    if not isinstance(terms, list) or not terms:
        raise file.error(where, "expected a list of terms {loss: ..., weight: ...}.")
    parts: list[tuple[LossChoice, Any]] = []
    for i, term in enumerate(terms):
        at = (*where, i)
        if not isinstance(term, dict) or not {"loss"} <= set(term) <= {"loss", "weight"}:
            raise file.error(at, "expected {loss: name or {name: {arguments}}, weight: number or schedule}.")
        choices = list(_expand(term["loss"], file, (*at, "loss")))
        if len(choices) != 1:
            raise file.error((*at, "loss"), "a term of a sum is one loss; a sweep cannot stand here.")
        parts.append((choices[0], _weight(term.get("weight", 1), file, (*at, "weight"))))
    return _joined(parts)


def _joined(parts: list[tuple[LossChoice, Any]]) -> LossChoice:
    spec = {"sum": [{"loss": part.spec, "weight": weight} for part, weight in parts]}
    label = " + ".join(f"{_weight_label(w)}{p.label}" for p, w in parts)
    needs = frozenset().union(*(p.needs for p, _ in parts))
    return LossChoice(spec, label, "+".join(p.digest for p, _ in parts), needs)


def _subsets(args: Any, file: YamlFile, where: KeyPath) -> Iterator[LossChoice]:
    if (
        not isinstance(args, dict)
        or not {"of"} <= set(args) <= {"of", "always", "label"}
        or args.get("label", "parts") != "parts"
    ):
        raise file.error(where, "expected {always: [losses], of: [losses], label: parts}.")
    always, of = args.get("always") or [], args["of"]
    if not isinstance(always, list) or not isinstance(of, list) or not of:
        raise file.error(where, "`always` and `of` are lists of losses, and `of` has at least one.")
    fixed = [c for i, e in enumerate(always) for c in _expand(e, file, (*where, "always", i))]
    free = [c for i, e in enumerate(of) for c in _expand(e, file, (*where, "of", i))]
    if 2 ** len(free) > MOST_LOSSES:
        raise file.error(where, f"{len(free)} parts have more than {MOST_LOSSES:,} subsets; split the suite.")
    for size in range(len(free) + 1):
        for chosen in itertools.combinations(free, size):
            parts = [*fixed, *chosen]
            if len(parts) == 1:
                yield parts[0]
            elif parts:
                yield _joined([(p, 1.0) for p in parts])


def _pairs(args: Any, file: YamlFile, where: KeyPath) -> Iterator[LossChoice]:
    """Sums of two losses of different groups, with equal weights."""
    if not isinstance(args, dict) or len(args) < 2 or not all(isinstance(g, list) and g for g in args.values()):
        raise file.error(where, "expected two or more groups of losses, {group: [losses], group: [losses]}.")
    groups = [
        [c for i, e in enumerate(group) for c in _expand(e, file, (*where, name, i))] for name, group in args.items()
    ]
    for one, other in itertools.combinations(groups, 2):
        for a, b in itertools.product(one, other):
            if a.spec == b.spec:
                raise file.error(where, f"the loss {a.label!r} stands in two groups; keep one.")
            yield _joined([(a, 1.0), (b, 1.0)])


def _excepted(rule: dict[str, Any] | None, known: set[str], file: YamlFile) -> set[str]:
    if rule is None:
        return set()
    names = rule.get("except", [])
    if not isinstance(names, list):
        raise file.error(("with", "except"), "expected a list of losses.")
    if not _finite(rule.get("varied")):
        raise file.error(("with", "varied"), "expected the weight of the varied loss, such as {varied: 0.5, ce: 0.5}.")
    for i, name in enumerate(names):
        if str(name) not in known:
            raise file.error(("with", "except", i), f"{name!r} is not one of the losses{nearest(str(name), known)}.")
    return {str(n) for n in names}


def with_rule(choice: LossChoice, rule: dict[str, Any], file: YamlFile) -> LossChoice:
    """Eq. 37 of Azad et al.: total = varied · L + the other terms; the label stays that of the varied loss.

    Raises:
        BenchError: With file and line: a loss or a weight of the rule cannot be read.
    """
    parts: list[tuple[LossChoice, Any]] = [(choice, float(rule["varied"]))]
    for name, weight in rule.items():
        if name not in ("varied", "except"):
            fixed = next(_expand(name, file, ("with", name)))
            parts.append((fixed, _weight(weight, file, ("with", name))))
    joined = _joined(parts)
    return LossChoice(joined.spec, choice.label, joined.digest, joined.needs, choice.choice)


def _weight(value: Any, file: YamlFile, where: KeyPath) -> Any:
    if _finite(value):
        return float(value)
    found = _schedule(value)
    if found is None:
        raise file.error(
            where,
            "expected a number, {linear: [a, b]}, {cosine: [a, b]}, {step: {every: h, from: a, to: b}} "
            "or {switch: {at: share, from: a, to: b}}.",
        )
    if found.get("step", {"every": 1})["every"] <= 0:
        raise file.error(where, "a step schedule needs `every` above 0.")
    if not 0 <= found.get("switch", {"at": 0})["at"] <= 1:
        raise file.error(where, "a switch needs `at` from 0 to 1, a share of the training.")
    return found


def _schedule(value: Any) -> dict[str, Any] | None:
    """A schedule with its numbers as floats; None for anything else."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    kind, args = next(iter(value.items()))
    if kind in ("linear", "cosine") and _numbers(args, 2):
        return {kind: [float(a) for a in args]}
    wanted = {"step": {"every", "from", "to"}, "switch": {"at", "from", "to"}}.get(str(kind))
    if wanted and isinstance(args, dict) and set(args) == wanted and _numbers(list(args.values()), 3):
        return {kind: {k: float(v) for k, v in args.items()}}
    return None


def _numbers(values: Any, n: int) -> bool:
    return isinstance(values, list) and len(values) == n and all(_finite(v) for v in values)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _weight_label(weight: Any) -> str:
    if isinstance(weight, float):
        return "" if weight == 1 else f"{weight:g}·"
    kind, args = next(iter(weight.items()))
    ends = args if isinstance(args, list) else [args["from"], args["to"]]
    rest = "" if isinstance(args, list) else "".join(f", {k} {v:g}" for k, v in args.items() if k in ("at", "every"))
    return f"{kind}({ends[0]:g}→{ends[1]:g}{rest})·"


def _plain(args: dict[str, Any], file: YamlFile, where: KeyPath) -> dict[str, Any]:
    for key, value in args.items():
        if not _json(value):
            raise file.error((*where, key), "expected numbers, text, true, false, null, or lists and mappings of them.")
    return dict(args)


def _json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _json(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_json(v) for v in value)
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return value is None or isinstance(value, (str, int, bool))


def printed(value: Any) -> str:
    """An argument as labels show it: numbers with six digits, a schedule as the weight of a sum is shown."""
    if isinstance(value, list):
        return "[" + ",".join(printed(v) for v in value) + "]"
    if isinstance(value, dict):
        if _schedule(value):
            return _weight_label(value).removesuffix("·")  # reads the same as the weight of a sum
        return "{" + ", ".join(f"{k}: {printed(v)}" for k, v in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
