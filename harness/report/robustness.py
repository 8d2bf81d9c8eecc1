"""What worse labels and fewer training patients cost: one panel per kind of degradation, and one over patients.

The settings of a suite's axes `labels` and `train.cases` stand in the report as data sets of their own. Here they are
brought together again: along the strength of a condition, from the clean labels on, or along the number of patients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from scipy import stats

from harness.data.conditions import CLEAN, STRENGTHS, Setting
from harness.report.frames import Frames, by_group
from harness.report.tables import Measure, all_class_means, measures, of_measure, over_classes, spread_of
from harness.report.view import NAN, Block, Column, Entry, Head, Row, TableView
from harness.report.words import number

LEVEL = 0.95
PATIENTS = "patients"
_OF = {
    "jitter": "SD of the displacement", "erode": "radius", "dilate": "radius", "missing": "share of structures",
    "swapped": "share of cases", "partial": "share of cases",
}  # fmt: skip
_NAMES = {
    "jitter": "boundaries jittered", "erode": "structures eroded", "dilate": "structures dilated",
    "missing": "structures missing", "swapped": "two classes swapped", "partial": "classes not annotated",
    PATIENTS: "training patients",
}  # fmt: skip

_ABOUT = (
    "In brackets the 95 % interval over the runs (Student's t; with folds over the repeats, each the mean of its "
    "folds), single and not adjusted. Changes are paired: the same repeat and start, and of worse labels the same "
    "batches where the labels do not choose them. The interval speaks of other trainings, not of other patients. A "
    "loss that is low in the first column has less to lose. This holds for all tables of this section."
)

Run = tuple[int, int]


@dataclass(frozen=True)
class Point:
    """One loss in one setting.

    Attributes:
        x: Strength, 0 for clean labels; or the number of training patients.
        mean: Over the runs, in the shown unit; `low` and `high` are its 95 % interval over the runs.
        runs: Runs that were measured, out of `planned`.
        change: Mean difference to the reference of the panel, run by run, with its interval; NaN where there is none.
    """

    loss: str
    x: float
    mean: float
    low: float
    high: float
    runs: int
    planned: int
    change: float
    change_low: float
    change_high: float


@dataclass(frozen=True)
class Panel:
    """One axis of one data set and model.

    Attributes:
        base: The data set.
        kind: Of the condition, or `PATIENTS`.
        about: What is the same in the whole panel besides: "mm", "10 patients".
        reference: The x that changes are taken from: 0, or the largest number of patients; None where it was not run.
        points: By loss in planned order, then by x.
    """

    base: str
    model: str
    kind: str
    about: str
    measure: Measure
    reference: float | None
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """What was varied."""
        return _NAMES[self.kind] + (f" ({self.about})" if self.about else "")

    @property
    def axis(self) -> str:
        """What x is, with its unit."""
        if self.kind == PATIENTS:
            return "training patients"
        unit = "" if STRENGTHS[self.kind] == "share" else " (mm)" if "mm" in self.about.split() else " (voxels)"
        return _OF[self.kind] + unit

    @property
    def xs(self) -> list[float]:
        """The values of x."""
        return sorted({p.x for p in self.points})

    @property
    def losses(self) -> list[str]:
        """The losses, in planned order."""
        return list(dict.fromkeys(p.loss for p in self.points))


def robustness_panels(frames: Frames) -> list[Panel]:
    """The panels of every data set and model; none where the suite has no such axis."""
    out: list[Panel] = []
    for (base, kind, about), groups in _axes(frames.settings).items():
        for model in frames.models:
            there = {g: x for g, x in groups.items() if model in by_group(frames, g, frames.cases)}
            measure = next((m for g in there for m in measures(frames.parts[g, model]) if m.metric == "dice"), None)
            if measure is not None and len(set(there.values())) > 1:
                out.append(_panel(frames, base, model, kind, about, measure, there))
    return out


def _axes(settings: Mapping[str, Setting]) -> dict[tuple[str, str, str], dict[str, float]]:
    """(data set, kind, what stays) to its groups with their x.

    In a sweep of `jitter` with one stated `smooth`, the strength of which it is the default has no `smooth` in its
    name, and belongs to the sweep all the same.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    stated: dict[tuple[str, str, str], set[str]] = {}  # axis without `smooth` to what stands in one with it
    for group, s in settings.items():
        few = f"{s.patients} patients" if s.patients is not None else ""
        if s.kind != CLEAN:
            about = " ".join(part for part in (s.rest, few) if part)
            own = found.setdefault((s.base, s.kind, about), {})
            clean = [g for g, c in settings.items() if (c.base, c.kind, c.patients) == (s.base, CLEAN, s.patients)]
            own |= {g: 0.0 for g in clean} | {group: s.strength}
            if s.rest.startswith("smooth="):
                rest = s.rest.partition(" ")[2]
                bare = " ".join(part for part in (rest, few) if part)
                same = (s.base, s.kind, rest, s.patients, s.smooth)
                own |= {
                    g: c.strength for g, c in settings.items() if (c.base, c.kind, c.rest, c.patients, c.smooth) == same
                }
                stated.setdefault((s.base, s.kind, bare), set()).update(own)
    for axis, there in stated.items():
        if set(found.get(axis, {})) <= there:  # it holds nothing that the others do not
            found.pop(axis, None)
    for group, s in settings.items():
        if any(c.patients is not None for c in settings.values() if c.base == s.base):
            about = "" if s.kind == CLEAN else " ".join(p for p in (s.kind, f"{s.strength:g}", s.rest) if p)
            found.setdefault((s.base, PATIENTS, about), {})[group] = float(s.patients or s.trained)
    return found


def _panel(
    frames: Frames, base: str, model: str, kind: str, about: str, measure: Measure, groups: Mapping[str, float]
) -> Panel:
    means = over_classes(of_measure(all_class_means(frames), measure))
    means = means[(means["model"] == model) & means["group"].isin(groups)]
    scores: dict[tuple[str, float], dict[Run, float]] = {}
    for group, loss, fold, seed, score in means[["group", "loss", "fold", "seed", "score"]].itertuples(index=False):
        if not math.isnan(score):
            scores.setdefault((loss, groups[group]), {})[int(fold), int(seed)] = float(score) * measure.scale
    cells = frames.cells[(frames.cells["model"] == model) & frames.cells["group"].isin(groups)]
    counted = cells.groupby(["group", "loss"], sort=False).size()
    planned = {(str(x), groups[str(g)]): int(n) for (g, x), n in zip(counted.index, counted, strict=True)}
    at = max(groups.values()) if kind == PATIENTS else 0.0
    reference = at if at in groups.values() else None
    points = []
    for loss in frames.losses:
        clean = scores.get((loss, at), {})
        for x in sorted(set(groups.values())):
            own = scores.get((loss, x), {})
            if own:
                both = ((*run, own[run] - clean[run]) for run in own if run in clean)
                change = interval(both) if x != at else (NAN,) * 3
                row = (
                    loss,
                    x,
                    *interval((*run, score) for run, score in own.items()),
                    len(own),
                    planned.get((loss, x), len(own)),
                    *change,
                )
                points.append(Point(*row))
    return Panel(base, model, kind, about, measure, reference, tuple(points))


def interval(runs: Iterable[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Mean of runs, given as (fold, seed, value), and its 95 % interval; NaN for what there is too little for.

    The interval is Student's t over the seeds' means over folds, see `spread_of`: the folds of one seed share most of
    their training patients and differ by their test patients, so they are no further runs.
    """
    found = spread_of(runs)
    if found.seeds < 2:
        return found.mean, NAN, NAN
    half = float(stats.t.ppf((1 + LEVEL) / 2, found.seeds - 1)) * found.sd / math.sqrt(found.seeds)
    return found.mean, found.mean - half, found.mean + half


def robustness_views(found: Sequence[Panel]) -> list[TableView]:
    """A small table per panel: the mean in the reference, and the change to it in every other setting."""
    shown = [_view(p) for p in found if p.reference is not None]
    return [replace(view, notes=(_ABOUT,)) if i == 0 else view for i, view in enumerate(shown)]


def _view(panel: Panel) -> TableView:
    by = {(p.loss, p.x): p for p in panel.points}
    others = [x for x in panel.xs if x != panel.reference]
    start = f"{panel.reference:g} patients" if panel.kind == PATIENTS else CLEAN
    columns = (Column(start, panel.measure.decimals), *(Column(f"{x:g}", 2, signed=True) for x in others))
    rows = []
    for loss in panel.losses:
        clean = by.get((loss, panel.reference or 0.0))
        first = Entry(clean.mean, remark=_span(clean.low, clean.high)) if clean else Entry()
        changes = [
            Entry(p.change, remark=_span(p.change_low, p.change_high)) if (p := by.get((loss, x))) else Entry()
            for x in others
        ]
        short = [p for p in panel.points if p.loss == loss and p.runs < p.planned]
        lost = f"{sum(p.runs for p in short)}/{sum(p.planned for p in short)} runs in {len(short)}" if short else ""
        rows.append(Row(loss, (first, *changes), lost))
    heads = (
        Head(panel.measure.heading, 1, lower=panel.measure.lower_is_better),
        Head(f"change in points by {panel.axis}", len(others)),
    )
    frame = pd.DataFrame([vars(p) for p in panel.points])
    for name, value in (
        ("metric", panel.measure.metric), ("about", panel.about), ("kind", panel.kind), ("model", panel.model),
        ("dataset", panel.base),
    ):  # fmt: skip
        frame.insert(0, name, value)
    title = f"{panel.base}, {panel.model}: {panel.title}"
    return TableView("robustness", title, "Loss", heads, columns, (Block("", tuple(rows)),), frame=frame)


def _span(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}" if math.isfinite(low) and math.isfinite(high) else ""
