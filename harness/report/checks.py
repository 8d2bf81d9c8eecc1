"""What stands beside the numbers: fairness of the comparison, empty masks, failed cells, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import pandas as pd

from harness.report.frames import FAILED, NO_FOLD, Frames
from harness.report.tables import COUNT_UNIT, known_mean, triples

EMPTY_POLICY = (
    "One of the two masks empty: DSC 0 and the image diagonal as distance. Both empty: not applicable, left out of the "
    "mean and counted here."
)
_WORDS = {"init": "initial weights", "batches": "first batches"}


@dataclass(frozen=True)
class Pairing:
    """Whether the losses of one run were compared on equal terms.

    Attributes:
        init: "equal", "different", "not recorded" or "one loss".
        batches: The same for the first batches.
        losses: How many losses left fingerprints.
        note: Which loss differs or lacks a fingerprint; empty if none.
    """

    group: str
    model: str
    fold: str
    seed: int
    init: str
    batches: str
    losses: int
    note: str


def fairness(frames: Frames) -> list[Pairing]:
    """One row per data set, model, fold and seed, from the fingerprints of every cell that was started."""
    started = frames.cells[frames.cells["status"].isin(("ok", *FAILED))]
    rows = []
    for key, part in started.groupby(["group", "model", "fold", "seed"], sort=False):
        group, model, fold, seed = cast(tuple[str, str, int, int], key)
        found = {kind: _compare(part, kind) for kind in _WORDS}
        notes = [note for _, note in found.values() if note] + _same_weights(part)
        n = int((part["init"] != "").sum())
        states = (found["init"][0], found["batches"][0])
        rows.append(Pairing(group, model, shown_fold(int(fold)), int(seed), *states, n, "; ".join(notes)))
    return rows


def _compare(part: pd.DataFrame, kind: str) -> tuple[str, str]:
    known = part[part[kind] != ""]
    # A cell that failed before its first batch has no fingerprint, and no numbers either.
    lacking = list(part.loc[(part[kind] == "") & (part["status"] == "ok"), "loss"])
    note = f"{_WORDS[kind]} not recorded: {', '.join(lacking)}" if lacking else ""
    if known.empty:
        return "not recorded", ""
    if known[kind].nunique() > 1:
        usual = known[kind].mode().iloc[0]
        other = ", ".join(known.loc[known[kind] != usual, "loss"])
        return "different", "; ".join(x for x in (f"other {_WORDS[kind]}: {other}", note) if x)
    return ("not recorded" if lacking else "equal" if len(known) > 1 else "one loss"), note


def _same_weights(part: pd.DataFrame) -> list[str]:
    """Two losses that end at bitwise equal weights are one loss under two names, or one of them was not used."""
    known = part[(part["weights"] != "") & (part["status"] == "ok")]
    shared = [list(same["loss"]) for _, same in known.groupby("weights", sort=False) if same["loss"].nunique() > 1]
    return [f"the same final weights: {', '.join(names)}" for names in shared]


@dataclass(frozen=True)
class Empties:
    """Cases × classes × runs of one loss, by what the masks held."""

    group: str
    model: str
    loss: str
    n: int
    missed: int
    invented: int
    not_applicable: int

    @property
    def n_empty(self) -> int:
        """Those that got the worst value."""
        return self.missed + self.invented


def empties(frames: Frames) -> list[Empties]:
    """Count the masks behind the means, once per case and class (on the first metric of the data set)."""
    rows = []
    for (group, model, loss), _ in triples(frames):
        cases = frames.cases
        own = cases[(cases["group"] == group) & (cases["model"] == model) & (cases["loss"] == loss)]
        own = own[own["unit"] != COUNT_UNIT]
        if own.empty:
            continue
        one = own.drop_duplicates(["fold", "seed", "patient", "case", "class"])
        counts: Mapping[str, int] = {str(k): int(v) for k, v in one["status"].value_counts().items()}
        absent = counts.get("both_empty", 0)
        missed, invented = counts.get("pred_empty", 0), counts.get("ref_empty", 0)
        rows.append(Empties(group, model, loss, len(one) - absent, missed, invented, absent))
    return rows


@dataclass(frozen=True)
class Cost:
    """Means over the measured runs of one loss; the memory is the largest."""

    group: str
    model: str
    loss: str
    step_ms: float
    targets_ms: float
    train_s: float
    eval_s: float
    peak_rss_mb: float
    parameters: float
    steps: float
    device: str


def costs(frames: Frames) -> list[Cost]:
    """What each loss cost, over its measured runs."""
    rows = []
    for (group, model, loss), part in triples(frames):
        ok = part[part["status"] == "ok"]
        if len(ok):
            means = {
                c: known_mean(ok[c]) for c in ("step_ms", "targets_ms", "train_s", "eval_s", "parameters", "steps")
            }
            devices = ", ".join(dict.fromkeys(d for d in ok["device"] if d))
            memory = float(ok["peak_rss_mb"].max())
            rows.append(Cost(group, model, loss, **means, peak_rss_mb=memory, device=devices))
    return rows


def shown_fold(fold: int) -> str:
    """A fold in tables; empty where the split has none."""
    return "" if fold == NO_FOLD else str(fold)
