"""What stands beside the numbers: fairness of the comparison, empty masks, failed cells, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pandas as pd

from harness.metrics.policy import applies
from harness.metrics.table import METRICS, PROFILES, metric_of
from harness.report.frames import FAILED, NO_FOLD, Frames
from harness.report.tables import COUNT_UNIT, known_mean, triples

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
    if not known["weights"].duplicated().any():
        return []
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
    lacking: tuple[int, ...] = ()  # of each metric of `partial`: one mask empty, and no meaning without it

    @property
    def n_empty(self) -> int:
        """Those that got the worst value."""
        return self.missed + self.invented


def empty_policy(frames: Frames) -> str:
    """How empty masks enter the means, in sentences, as far as the measured metrics and profiles ask for it."""
    names = list(frames.cases["metric"].unique())
    kinds = {metric_of(n)[0].name for n in names}
    profiles = list(frames.cases["profile"].unique())
    own = [p for p in profiles if p in PROFILES and PROFILES[p].own_empties]
    zero = list(dict.fromkeys(metric_of(n)[0].title for n in names if metric_of(n)[0].name in _ZERO)) or ["DSC"]
    costs = [f"{_and(zero)} 0"]
    if "specificity" in kinds:
        costs.append("specificity as measured")
    if "volume_difference" in kinds:
        costs.append("the whole volume of the other as volume difference")
    text = f"One of the two masks empty: {', '.join(costs)} and the image diagonal as distance. "
    text += "Both empty: not applicable, left out of the mean and counted here."
    for name in partial(frames):
        what = "reference" if "ref_empty" in METRICS[name].not_applicable else "prediction"
        text += f" {METRICS[name].title} has no meaning without a {what}: not applicable there, too."
    if own:
        text += f" The numbers of {_and(own)} are what that code gives, for empty masks too, and stay as they are."
    return text


_ZERO = ("dice", "iou", "nsd", "boundary_iou", "sensitivity", "precision")


def partial(frames: Frames) -> list[str]:
    """The measured metrics that one empty mask can make not applicable."""
    return [n for n in frames.cases["metric"].unique() if len(metric_of(n)[0].not_applicable) > 1]


def empties(frames: Frames) -> list[Empties]:
    """Count the masks behind the means, once per case and class (on the first metric of the data set)."""
    rows = []
    names = partial(frames)
    parts = {
        (*key, str(loss)): own
        for key, part in frames.parts.items()
        for loss, own in part.groupby("loss", sort=False, observed=True)
    }
    for (group, model, loss), _ in triples(frames):
        own = parts.get((group, model, loss), frames.cases.iloc[:0])
        lacking = []
        for name in names:
            rest = own[(own["metric"] == name) & (own["status"] != "both_empty")]
            pairs = zip(rest["profile"], rest["status"], strict=True)
            lacking.append(sum(not applies(name, profile, status) for profile, status in pairs))
        own = own[own["unit"] != COUNT_UNIT] if (own["unit"] != COUNT_UNIT).any() else own
        if own.empty:
            continue
        one = own.drop_duplicates(["fold", "seed", "patient", "case", "class"])
        counts: Mapping[str, int] = {str(k): int(v) for k, v in one["status"].value_counts().items()}
        absent = counts.get("both_empty", 0)
        missed, invented = counts.get("pred_empty", 0), counts.get("ref_empty", 0)
        rows.append(Empties(group, model, loss, len(one) - absent, missed, invented, absent, tuple(lacking)))
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


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
