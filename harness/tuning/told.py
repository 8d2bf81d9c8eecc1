"""What a report says of tuning: the budget in words, and what each study chose, from the records of the tuned cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.cell import Cell
from harness.plan import Entry
from harness.tuning.space import text_of, with_arguments

if TYPE_CHECKING:
    from harness.suite import Suite


@dataclass(frozen=True)
class Told:
    """What one study chose.

    Attributes:
        cell: One of the repeats that were trained with it.
        tuned: As in the record, see `harness.records.RunRecord.tuned`.
        runs: How many repeats were.
        seconds: Of their trainings and evaluations.
    """

    cell: Cell
    tuned: dict[str, Any]
    runs: int
    seconds: float


def told(entries: Iterable[Entry]) -> list[Told]:
    """What the studies of a suite chose, in the order of the plan; two of one study where its repeats differ."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.record is not None and entry.record.tuned:
            groups.setdefault(json.dumps([_study(entry.cell), entry.record.tuned], sort_keys=True), []).append(entry)
    out = []
    for found in groups.values():
        records = [e.record for e in found if e.record is not None]
        seconds = sum(r.cost.get("train_s", 0.0) + r.cost.get("eval_s", 0.0) for r in records)
        out.append(Told(found[0].cell, records[0].tuned, len(found), seconds))
    return out


def notes_on(found: Sequence[Told]) -> list[str]:
    """A sentence for each study whose repeats were trained with different choices."""
    seen: dict[str, list[Told]] = {}
    for one in found:
        choice = json.dumps([one.tuned["lr"], one.tuned["args"]], sort_keys=True)
        own = seen.setdefault(json.dumps(_study(one.cell), sort_keys=True), [])
        if all(choice != json.dumps([o.tuned["lr"], o.tuned["args"]], sort_keys=True) for o in own):
            own.append(one)
    return [
        f"NOT COMPARABLE: the repeats of {own[0].cell.loss_label} / {own[0].cell.model_label} / {own[0].cell.dataset} "
        "were trained with different choices of their tuning: its trials were run again in between."
        for own in seen.values()
        if len(own) > 1
    ]


def specs_of(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """The specification of each loss by its label, with its tuned arguments; where these differ they are "tuned"."""
    specs: dict[str, dict[str, Any]] = {}
    chosen: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        specs.setdefault(entry.cell.loss_label, entry.cell.loss)
        if entry.record is not None and entry.record.tuned:
            chosen.setdefault(entry.cell.loss_label, []).append(entry.record.tuned["args"])
    for label, found in chosen.items():
        same = all(args == found[0] for args in found)
        specs[label] = with_arguments(specs[label], found[0] if same else {k: "tuned" for args in found for k in args})
    return specs


def _study(cell: Cell) -> dict[str, Any]:
    """The labels that the cells of one study share: all but the repeat, unless each has patients of its own."""
    return {k: v for k, v in cell.labels.items() if k != "seed" or "patients" in cell.data}


def learning_rates(suite: Suite) -> list[str]:
    """Whether the suite is tuned, and with which budget; else the one learning rate of all losses."""
    spec = suite.spec
    ((name, args),) = spec.train.optimizer.items()
    fixed = f"{name} at {args['lr']:g}, schedule {spec.train.schedule}"
    if spec.tune is None:
        return [f"Not tuned: one learning rate for all losses, {fixed}."]
    tune = spec.tune
    losses = {c.loss_label: c.train.get("tune") for c in suite.cells}
    over = "its own parameters"
    if tune.lr is not None:
        over += f" and the learning rate ({tune.lr[0]:g} to {tune.lr[1]:g}, log)"
    by = tune.metric.removesuffix("@val")
    own = any("patients" in c.data for c in suite.cells)
    each = "model, data set and fold" + " (and repeat, where these train on patients of their own)" * own
    first = (
        f"Tuned: for each {each} every loss got {tune.trials} trials of "
        f"{tune.epochs or spec.train.epochs} epochs over {over}, compared by {by} on the "
        f"validation patients, with a seed that no repeat has. Trial 0 is the suite's own configuration ({fixed}). "
        "Test patients were not seen."
    )
    spaces = [f"{label}: {text_of(t['space'])}" for label, t in losses.items() if t and "space" in t]
    bare = [label for label, t in losses.items() if t and "space" not in t]
    none = [label for label, t in losses.items() if not t]
    return [
        first,
        *([f"Parameters that were tuned: {'; '.join(spaces)}."] if spaces else []),
        *([f"The learning rate alone, with as many trials: {', '.join(bare)}."] if bare else []),
        *([f"Nothing to tune, so no trials: {', '.join(none)}."] if none else []),
    ]
