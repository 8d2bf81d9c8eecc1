"""Losses as `bench rank` is given them, and the suite that has them beside its own. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.cell import Cell
from harness.errors import BenchError
from harness.grid import Choice, LossChoice, expand_losses, label_of, plain_losses, printed, with_rule
from harness.loss_text import read_loss
from harness.suite import Suite, lacking
from harness.tuning.asked import tuning_of
from harness.yamlfile import YamlFile, parse_value, read_yaml

_LONGEST = 100  # of a folder's name


@dataclass(frozen=True)
class Asked:
    """A loss to rank.

    Attributes:
        text: As it was given.
        name: As in a suite; a file by its name without folders, so that ids are the same wherever it lies.
        args: Its arguments.
        file: The file it stands in, or None.
    """

    text: str
    name: str
    args: dict[str, Any]
    file: Path | None


@dataclass(frozen=True)
class RankSuite(Suite):
    """A suite with more losses behind its own.

    Attributes:
        asked: The ranked losses as they were given.
        ranked: Their labels.
        added: Those of them that the suite does not have.
        twins: Plain specification of every loss by its label, without what the suite's rule `with` adds.
    """

    asked: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    twins: dict[str, dict[str, Any]] | None = None

    @property
    def base(self) -> str:
        """Name of the suite itself."""
        return super().name

    @property
    def name(self) -> str:
        """`SUITE+LOSS`: name of the report's folder."""
        parts = [re.sub(r"[^\w.=-]+", "-", label).strip("-.") for label in self.ranked]
        name = "+".join([self.base, *parts])
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return name


def parse_loss(text: str, extra: Sequence[str] = (), beside: Path = Path()) -> Asked:
    """Read a loss of the command line.

    Args:
        text: `file.py:Class`, `file.py:Class(gamma=2)`, `name`, `name: {argument: value}`.
        extra: Further arguments, each `name=value` with a YAML value.
        beside: Folder in which a file is looked for where the working directory does not have it.

    Raises:
        BenchError: It cannot be read, or there is no such file.
    """
    name, args = read_loss(text)
    for one in extra:
        key, equals, value = one.partition("=")
        if not equals or not key.isidentifier():
            raise BenchError(f"--arg {one}: expected NAME=VALUE, such as --arg gamma=2.")
        try:
            args[key] = parse_value(value)
        except yaml.YAMLError:
            raise BenchError(f"--arg {one}: {value!r} is not a value, such as 2, 0.5, true or [1, 2].") from None
    if ".py:" not in name:
        return Asked(text, name, args, None)
    file, _, cls = name.rpartition(":")
    found = next((p for p in (Path(file), beside / file) if p.is_file()), None)
    if found is None:
        raise BenchError(f"{file}: no such file, neither here nor beside the suite.")
    return Asked(text, f"{found.name}:{cls}", args, found.resolve())


def extended(suite: Suite, asked: Sequence[Asked]) -> RankSuite:
    """The suite with the losses asked for: one more cell for each of its points, and its own as they were.

    A loss that the suite has already is ranked as it stands there. The suite's rule `with` holds for the others, too.

    Raises:
        BenchError: There is no such loss or argument, or two of them have one name.
    """
    file = read_yaml(suite.path)
    rule = suite.spec.with_
    plain = {c.label: c.spec for c in expand_losses(suite.spec.losses, None, file)}
    own = {c.train_id: c.loss_label for c in suite.cells}
    cells = list(suite.cells)
    ranked: list[str] = []
    added: list[str] = []
    names: list[str] = []
    for one in asked:
        choice = _choice(one)
        whole = choice
        if rule is not None and not {one.name, choice.label} & set(rule.get("except", [])):
            whole = with_rule(choice, rule, file)
        made = list(_cells(suite, whole, tuning_of(suite.spec, whole, file)))
        known = own.get(made[0].train_id)
        if known is not None:
            if known in ranked:
                raise BenchError(f"{one.text}: {known} stands here a second time; keep one.")
            ranked.append(known)
            continue
        label = choice.label if choice.label not in {*plain, *ranked} else _apart(one, choice, plain)
        if label in {*plain, *ranked} or made[0].train_id in names:
            raise BenchError(f"{one.text}: another loss is called {label!r}, too; give the class another name.")
        names.append(made[0].train_id)
        ranked.append(label)
        added.append(label)
        plain[label] = choice.spec
        cells += [replace(cell, loss_label=label) for cell in made]
    given = {k: getattr(suite, k) for k in ("path", "spec", "quick", "manifests", "text")}
    texts = tuple(one.text for one in asked)
    return RankSuite(**given, cells=tuple(cells), asked=texts, ranked=tuple(ranked), added=tuple(added), twins=plain)


def _choice(one: Asked) -> LossChoice:
    name = one.name if one.file is None else f"{one.file}:{one.name.rpartition(':')[2]}"
    found = list(plain_losses(name, one.args, YamlFile(Path(one.text), None), ()))
    if len(found) != 1:
        raise BenchError(f"{one.text}: a sweep is several losses; name them one by one.")
    choice = Choice(one.name, dict(found[0].choice.args if found[0].choice else {}))
    return replace(found[0], spec=found[0].spec | {"name": one.name}, choice=choice, label=label_of(choice))


def _apart(one: Asked, choice: LossChoice, plain: Mapping[str, Mapping[str, Any]]) -> str:
    """A label where another loss has the usual one: by its file, or by the arguments in which the two differ."""
    if one.file is not None:
        return f"{one.name} {choice.label}"
    args, others = ({} if "sum" in spec else spec["args"] for spec in (choice.spec, plain[choice.label]))
    keys = [k for k in args | others if repr(args.get(k)) != repr(others.get(k))]
    inner = ", ".join(f"{k}={printed(args[k]) if k in args else 'default'}" for k in keys)
    return f"{choice.label.partition('(')[0]}({inner})" if keys else choice.label


def _cells(suite: Suite, loss: LossChoice, tuning: dict[str, Any] | None) -> Iterator[Cell]:
    """A cell of the loss at each point of the grid of data set, fold, model and seed, tuned with the suite's budget."""
    tuned = {} if tuning is None else {"tune": tuning}
    seen = set()
    for cell in suite.cells:
        point = (cell.dataset, cell.data["split"], cell.data["fold"], cell.model_label, cell.seed)
        if point not in seen:
            seen.add(point)
            skip = lacking(loss, cell.model["name"])
            train = {k: v for k, v in cell.train.items() if k != "tune"} | tuned
            yield replace(cell, loss=loss.spec, loss_label=loss.label, loss_digest=loss.digest, skip=skip, train=train)
