"""A study: the trials of one loss, model, data set and fold, replayed from their records; and what they choose.

The sampler is seeded by what the study is of and never by test patients, its trials are told in the order of their
numbers, and nothing is kept besides the records. So the same records give the same next trial and the same choice,
however they came about: in any order, on any number of workers, after any kill. Optuna is imported here and only here.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.errors import BenchError
from harness.losses import LOSSES
from harness.metrics.means import mean_of
from harness.metrics.table import metric_of
from harness.records import read_record, read_rows
from harness.resolve import locate
from harness.seeds import TUNING_SEED
from harness.tuning.space import Dimension, Space, derived, parts_of, rounded, with_arguments

LR = "lr"  # the learning rate among the sampler's names; those of arguments follow a colon, which no argument has
STARTUP = 10  # trials that are drawn at random before the sampler learns


@dataclass(frozen=True)
class Outcome:
    """What the record of a trial says.

    Attributes:
        status: Of the record; `ok` without a value is `error`, no case having had one.
        value: The validation metric.
        seconds: Of training and evaluation.
    """

    status: str
    value: float | None
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: From 0, which is the suite's own configuration.
        cell: What is run.
        lr: Its learning rate.
        args: The arguments that were set, named as in the space; none in trial 0.
    """

    number: int
    cell: Cell
    lr: float
    args: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What a study chose.

    Attributes:
        cell: The cell with the chosen loss and learning rate, to be trained under the id of the tuned cell.
        told: What the record says of it, see `RunRecord.tuned`.
    """

    cell: Cell
    told: dict[str, Any]


def trial_cell(cell: Cell, number: int, lr: float, args: Mapping[str, Any]) -> Cell:
    """The cell of a trial: the validation patients are its test patients, and no test patient has a part in it.

    Where the suite selects the epoch on the validation patients, the trial does the same, as the trained network will.
    """
    tune = cell.train["tune"]
    chosen = _with(cell, lr, args)
    selects = cell.train["select"] != "last"
    named = [tune["metric"]]
    if selects:
        named.append(cell.train["select"].removeprefix("best:").removesuffix("@val"))
    held = list(cell.data["val"])
    return replace(
        chosen,
        data=cell.data | {"val": held if selects else [], "test": held},
        train=chosen.train | {"epochs": tune["epochs"]},
        seed=TUNING_SEED,
        metrics=tuple(dict.fromkeys(named)),
        scored_by={},
        trial=number,
    )


def _with(cell: Cell, lr: float, args: Mapping[str, Any]) -> Cell:
    """The cell with this rate and these arguments, without its tuning."""
    train = {k: v for k, v in cell.train.items() if k != "tune"}
    ((name, given),) = train["optimizer"].items()
    train["optimizer"] = {name: given | {"lr": lr}}
    return replace(cell, loss=with_arguments(cell.loss, args), train=train)


def study_key(cell: Cell) -> str:
    """Identity of the study of a tuned cell: its repeats have the same, and no test patient enters."""
    first = trial_cell(cell, 0, own_lr(cell), {})
    text = json.dumps([first.eval_id, cell.train["tune"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def own_lr(cell: Cell) -> float:
    """The learning rate that the suite states."""
    ((_, given),) = cell.train["optimizer"].items()
    return float(given["lr"])


def outcome_of(cell: Cell, metric: str, out: Path) -> Outcome | None:
    """What the record of a trial says; None where there is none, or one of another source, or it was interrupted."""
    folder = cell.eval_folder(out)
    try:
        record = read_record(folder / "record.json")
    except BenchError:
        return None
    if record.sources != cell.sources or record.status == "interrupted":
        return None
    seconds = record.cost.get("train_s", 0.0) + record.cost.get("eval_s", 0.0)
    if record.status != "ok":
        return Outcome(record.status, None, seconds)
    try:
        rows = [row | {k: _number(row[k]) for k in ("value", "worst")} for row in read_rows(folder / "cases.csv")]
        value = mean_of(rows, metric)
    except (OSError, ValueError, LookupError, BenchError):
        return None
    return Outcome("ok" if value is not None else "error", value, seconds)


def _number(text: str) -> float | None:
    return float(text) if text else None


class Study:
    """The trials of a tuned cell, as far as the records go.

    Args:
        cell: One of the repeats.
        out: Folder of results.

    Raises:
        BenchError: Optuna is not installed.
    """

    def __init__(self, cell: Cell, out: Path) -> None:
        self.cell, self.out = cell, out
        self.tune: dict[str, Any] = cell.train["tune"]
        self.space: Space = self.tune.get("space", {})
        self.metric: str = self.tune["metric"]
        self.higher = metric_of(self.metric)[0].higher_is_better
        self.trials: list[Trial] = []
        self.outcomes: list[Outcome] = []  # of the batches that are whole
        self._optuna = _optuna()
        self._study = self._optuna.create_study(
            direction="maximize" if self.higher else "minimize",
            sampler=self._optuna.samplers.TPESampler(seed=self._seed(), n_startup_trials=STARTUP),
        )
        self._asked: list[Any] = []

    def _seed(self) -> int:
        """Of the sampler: by data set, split, fold, model and loss, and the seed that no repeat has."""
        loss = {k: v for k, v in self.cell.described()["loss"].items() if k != "label"}
        base = self.cell.seed_base | {"repeat": TUNING_SEED}
        text = json.dumps(["bench-tune-1", base, loss], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def pending(self) -> list[Trial]:
        """The trials that have no outcome and can run now; none where the study is complete."""
        while True:
            batch = self.trials[len(self.outcomes) :]
            known = [outcome_of(t.cell, self.metric, self.out) for t in batch]
            if missing := [t for t, o in zip(batch, known, strict=True) if o is None]:
                return missing
            for trial, outcome in zip(batch, known, strict=True):
                assert outcome is not None
                self._tell(trial, outcome)
            if len(self.trials) >= self.tune["trials"]:
                return []
            for number in range(len(self.trials), min(len(self.trials) + self.tune["at_once"], self.tune["trials"])):
                self.trials.append(self._ask(number))

    @property
    def complete(self) -> bool:
        """Whether every trial has an outcome."""
        return len(self.outcomes) == int(self.tune["trials"])

    def _ask(self, number: int) -> Trial:
        if number == 0:
            self._asked.append(None)
            return self._trial(0, own_lr(self.cell), {})
        asked = self._study.ask(self._distributions)
        self._asked.append(asked)
        lr = rounded(asked.params[LR]) if LR in asked.params else own_lr(self.cell)
        drawn = {}
        for name, one in self.space.items():
            if "choices" in one:
                drawn[name] = one["choices"][asked.params[f":{name}"]]
            elif "low" in one:
                drawn[name] = _inside(asked.params[f":{name}"], one)
        return self._trial(number, lr, derived(self.space, drawn))

    def _trial(self, number: int, lr: float, args: dict[str, Any]) -> Trial:
        return Trial(number, trial_cell(self.cell, number, lr, args), lr, args)

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        states, asked = self._optuna.trial.TrialState, self._asked[trial.number]
        if asked is not None:
            state = states.COMPLETE if outcome.value is not None else states.FAIL
            self._study.tell(asked, outcome.value, state=state)
        elif outcome.value is not None:
            values = self._own_values()
            kinds = {k: self._distributions[k] for k in values}
            made = self._optuna.trial.create_trial(params=values, distributions=kinds, value=outcome.value)
            self._study.add_trial(made)

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        found: dict[str, Any] = {}
        if LR in self.tune:
            found[LR] = kinds.FloatDistribution(*self.tune[LR], log=True)
        for name, one in self.space.items():
            if "choices" in one:
                found[f":{name}"] = kinds.CategoricalDistribution(tuple(range(len(one["choices"]))))
            elif "low" in one:
                kind = kinds.IntDistribution if one.get("int") else kinds.FloatDistribution
                found[f":{name}"] = kind(one["low"], one["high"], log=bool(one.get("log")))
        return found

    def _own_values(self) -> dict[str, Any]:
        """Where trial 0 stands in the sampler's space, in its own numbers, as far as that is known and within it."""
        rate = own_lr(self.cell)
        found: dict[str, Any] = {LR: rate} if LR in self.tune and self.tune[LR][0] <= rate <= self.tune[LR][1] else {}
        for prefix, part in parts_of(self.cell.loss):
            params = {p.name: p.default for p in locate(part["class"], LOSSES, "loss", Path()).params}
            for name, one in self.space.items():
                bare = name.removeprefix(prefix)
                if "one_minus" in one or not name.startswith(prefix) or bare not in {*params, *part["args"]}:
                    continue
                value = part["args"][bare] if bare in part["args"] else _default(params[bare])
                if "choices" in one and value in one["choices"]:
                    found[f":{name}"] = one["choices"].index(value)
                elif "low" in one and isinstance(value, (int, float)) and one["low"] <= value <= one["high"]:
                    found[f":{name}"] = value
        return found

    @property
    def choice(self) -> Choice:
        """The best trial, the first of equals; trial 0 where every trial failed.

        Raises:
            BenchError: A trial has no record.
        """
        if missing := self.pending():
            raise BenchError(
                f"trial {missing[0].number} of its tuning has no record in the folder of results; `bench run` runs it "
                "before the cell"
            )
        told = [(o.value if self.higher else -o.value, -t.number) for t, o in self._pairs() if o.value is not None]
        number = -max(told)[1] if told else 0
        best, failed = self.trials[number], sum(o.value is None for o in self.outcomes)
        seen = {t.cell.eval_id: o.seconds for t, o in self._pairs()}
        tuned = {
            "metric": self.metric,
            "trials": len(self.trials),
            "epochs": self.tune["epochs"],
            "failed": failed,
            "trial": number,
            "lr": best.lr,
            "args": best.args,
            "value": self.outcomes[number].value,
            "default": self.outcomes[0].value,
            "seconds": math.fsum(seen.values()),
            "optuna": self._optuna.__version__,
        }
        return Choice(_with(self.cell, best.lr, best.args), tuned)

    def _pairs(self) -> list[tuple[Trial, Outcome]]:
        return list(zip(self.trials, self.outcomes, strict=False))


def _inside(value: Any, one: Dimension) -> Any:
    if one.get("int"):
        return int(value)
    return min(max(rounded(value), one["low"]), one["high"])


def _default(text: str) -> Any:
    """The value of a default as it is written, where it is plain or a quotient; else nothing that a range holds."""
    try:
        if " / " in text:
            above, below = text.split(" / ")
            return float(ast.literal_eval(above)) / float(ast.literal_eval(below))
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, ZeroDivisionError):
        return ...


def choice_of(cell: Cell, out: Path) -> Choice:
    """What the records choose for a tuned cell.

    Raises:
        BenchError: A trial has no record, or Optuna is not installed.
    """
    return Study(cell, out).choice


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise BenchError(
            "`tune:` needs the package optuna: pip install 'segmentation-loss-bench[tune]'. Plans and reports do "
            "without."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
