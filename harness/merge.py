"""One report of several suites: `bench report A.yaml B.yaml --merge NAME`. No torch.

Runs are set side by side under one data set only where all but loss, seed and model is the same: cases of each part,
view, training and scoring. Else the data set stands once for each suite, named `DATA SET [SUITE]`, and no verdict, rank
or mean mixes the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell import Cell, Place
from harness.claims import waited_for
from harness.data.conditions import Setting
from harness.errors import BenchError
from harness.metrics.table import metric_of
from harness.panels import panels
from harness.plan import Entry
from harness.results import (
    NOTICE,
    STAMP,
    about_of,
    called,
    folder_of,
    notes_of,
    run_command,
    settings_in,
    slices_in,
    tell_slices,
    voxels_of,
)
from harness.rows import frames
from harness.store import Home
from harness.suite import Suite
from harness.suite_file import FORMATS
from harness.tuning.told import specs_of, told

if TYPE_CHECKING:
    from harness.report import Panel

Planned = Sequence[tuple[Suite, Sequence[Entry]]]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Merged:
    """The cells of several suites as one plan.

    Attributes:
        entries: Each cell once, its data set named as in the report.
        owners: The suite of each entry.
        names: (suite, data set) to the name in the report.
        notes: What was kept apart and why.
    """

    entries: tuple[Entry, ...]
    owners: tuple[str, ...]
    names: Mapping[tuple[str, str], str]
    notes: tuple[str, ...]


def merge(planned: Planned) -> Merged:
    """Bring the plans of several suites together; a cell that several have counts once, the first that was measured.

    Raises:
        BenchError: Two suites have one name.
    """
    suites = [suite.name for suite, _ in planned]
    for name in suites:
        if suites.count(name) > 1:
            raise BenchError(f"--merge: two suites are called {name!r}; give each suite once.")
    names, notes = _names(planned)
    kept: dict[str, tuple[Entry, str]] = {}
    for suite, entries in planned:
        for entry in entries:
            cell = replace(entry.cell, dataset=names[suite.name, entry.cell.dataset])
            key = json.dumps(cell.labels, sort_keys=True)
            if key not in kept or (kept[key][0].state != "ok" and entry.state == "ok"):
                kept[key] = (replace(entry, cell=cell), suite.name)
    return Merged(tuple(e for e, _ in kept.values()), tuple(s for _, s in kept.values()), names, tuple(notes))


def _names(planned: Planned) -> tuple[dict[tuple[str, str], str], list[str]]:
    """The name of each suite's data sets in the report, and a sentence for each that is kept apart."""
    cells: dict[str, dict[str, list[Cell]]] = {}
    for suite, entries in planned:
        for entry in entries:
            cells.setdefault(entry.cell.dataset, {}).setdefault(suite.name, []).append(entry.cell)
    names: dict[tuple[str, str], str] = {}
    notes = []
    for dataset, by_suite in cells.items():
        reason = _difference(by_suite.values())
        for suite_name in by_suite:
            names[suite_name, dataset] = f"{dataset} [{suite_name}]" if reason else dataset
        if reason:
            notes.append(f"{dataset} stands once for each of {', '.join(by_suite)}: they differ in {reason}.")
    return names, notes


def _difference(suites: Iterable[Sequence[Cell]]) -> str:
    """What keeps the cells that several suites have of one data set apart, or nothing."""
    seen: dict[tuple[str, Any, Any], tuple[Cell, dict[str, str]]] = {}
    trained: dict[str, str] = {}
    for cell, tune in [(c, budget) for own in suites for budget in [_budget(own)] for c in own]:
        split, fold = cell.data["split"], cell.data["fold"]
        repeat = cell.seed if "patients" in cell.data else None  # each repeat then has cases of its own
        settings = {
            **{f"data.{k}": _text(v) for k, v in cell.data.items()},
            **{f"train.{k}": _text(v) for k, v in cell.train.items() if k != "tune"},
            "tune": tune,
            "profile": _text(list(cell.profiles)),
            "engine": cell.engine,
            "quick": str(cell.quick),
        }
        _, first = seen.setdefault((split, fold, repeat), (cell, settings))
        for key in (*settings, *first):
            if settings.get(key) != first.get(key):
                values = f" ({first.get(key, 'not set')} and {settings.get(key, 'not set')})"
                return key + (values if len(values) < 80 else "")
        label = _text([cell.model_label, cell.loss_label, cell.seed, split, fold])
        if trained.setdefault(label, cell.train_id) != cell.train_id:
            return f"what {cell.loss_label} with {cell.model_label} is"
    return ""


def _budget(cells: Sequence[Cell]) -> str:
    """The tuning budget of a suite, also for losses that have nothing to tune; the space is each loss's own."""
    tune: dict[str, Any] = next((c.train["tune"] for c in cells if "tune" in c.train), {})
    return _text({k: v for k, v in tune.items() if k != "space"})


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def report_merged(
    name: str,
    planned: Planned,
    place: Place,
    reports: Path,
    formats: Sequence[str] = FORMATS,
    *,
    images: bool = False,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Write one report of several suites to `REPORTS/NAME`.

    Ranked is as the first suite asks for; layouts follow each other, each once.

    Args:
        name: Of the report.
        planned: The suites with their plans.
        place: Where results and data are.
        reports: Folder of reports.
        formats: Which of `FORMATS` to write.
        images: Show image voxels whatever the manifests say, see `report_suite`.
        say: Takes a sentence for each data set whose slices cannot be drawn.

    Raises:
        BenchError: The name is that of a suite's own report or cannot name a folder, or there are fewer than two
            suites.
    """
    _check_name(name, planned, reports)
    merged = merge(planned)
    out = folder_of(reports, name, images=images)
    out.mkdir(parents=True, exist_ok=True)
    with waited_for(out):  # as of a suite's own report: two commands may write it at about the same time
        return _write(name, planned, merged, place, reports, out, formats, images, say)


def _write(
    name: str,
    planned: Planned,
    merged: Merged,
    place: Place,
    reports: Path,
    out: Path,
    formats: Sequence[str],
    images: bool,
    say: Callable[[str], object] | None,
) -> Path:
    from harness.report import write_report
    from harness.report.verdicts import Ranking

    cells, cases, curves, damaged = frames(merged.entries, Home(place.out, name))
    cells["command"] = _commands(planned, merged)
    first, layout = planned[0][0], _layout(planned)
    shown, notes = _panels(planned, merged, place, cases, images=images) if "qualitative" in layout else ([], [])
    said, before = [*notes], slices_in(out)
    published = {s.spec.report.published for s, _ in planned} - {None}
    notes += [*merged.notes, *_ranked(planned), *damaged]
    if len(published) > 1:
        notes.append("The suites name different published tables, so none stands beside the numbers.")
    page = write_report(
        name,
        " ".join(f"{s.name}: {' '.join(s.spec.description.split())}" for s, _ in planned),
        cells,
        cases,
        curves,
        out,
        layout=layout,
        about=_about(name, planned, merged, notes, reports),
        panels=shown,
        pooled=list(dict.fromkeys(m for s, _ in planned for m in s.spec.metrics if metric_of(m)[0].scope == "dataset")),
        voxels=[merged.names[s.name, d] for s, _ in planned for d in voxels_of(s) if (s.name, d) in merged.names],
        settings=_settings(planned, merged),
        ranking=Ranking(tuple(first.spec.rank.by), first.spec.rank.baseline, first.spec.rank.rope),
        published=published.pop() if len(published) == 1 else None,
        specs=specs_of(merged.entries),
        formats=formats,
        notice=NOTICE if images else "",
        tuned=told(merged.entries),
    )
    if say is not None and {"html", "latex"} & set(formats):
        tell_slices(said, before, out, say)
    return page


def _check_name(name: str, planned: Planned, reports: Path) -> None:
    if len(planned) < 2:
        raise BenchError("--merge: give two suites or more; one suite has a report of its own.")
    if not NAME.fullmatch(name):
        raise BenchError(
            f"--merge {name!r}: expected letters, digits, '.', '_' and '-', beginning with one of the first."
        )
    if name in [s.name for s, _ in planned] or any((reports / name / x).exists() for x in ("records", STAMP)):
        raise BenchError(f"--merge {name}: {reports / name} is the report of a suite; choose another name.")


def _layout(planned: Planned) -> list[str]:
    return list(dict.fromkeys(x for s, _ in planned for x in s.spec.report.layout))


def _settings(planned: Planned, merged: Merged) -> dict[str, Setting]:
    """The settings by their names in the report; of a data set that stands once for each suite, each on its own."""
    found: dict[str, Setting] = {}
    for suite, entries in planned:
        for name, setting in settings_in(suite, [e.cell for e in entries]).items():
            base = merged.names.get((suite.name, setting.base), setting.base)
            found[merged.names[suite.name, name]] = replace(setting, base=base)
    return found


def _panels(
    planned: Planned, merged: Merged, place: Place, cases: Any, *, images: bool
) -> tuple[list[Panel], list[str]]:
    """The panels of each suite; of a data set that several suites share, those of the first that has any."""
    found: dict[str, list[Panel]] = {}
    notes: list[str] = []
    for suite, entries in planned:
        shown, said = panels(suite, entries, place, cases, images=images)
        notes += said
        own: dict[str, list[Panel]] = {}
        for panel in shown:
            label = merged.names[suite.name, panel.dataset]
            own.setdefault(label, []).append(replace(panel, dataset=label))
        for label, one in own.items():
            found.setdefault(label, one)
    return [p for some in found.values() for p in some], list(dict.fromkeys(notes))


def _ranked(planned: Planned) -> list[str]:
    first, others = planned[0][0], [s for s, _ in planned[1:] if s.spec.rank != planned[0][0].spec.rank]
    if not others:
        return []
    names = ", ".join(s.name for s in others)
    return [f"Ranked and compared as {first.name} asks for; {names} would rank otherwise on their own."]


def _commands(planned: Planned, merged: Merged) -> list[str]:
    """The command that makes each cell: that of its own suite, in which the data set has its own name."""
    from harness.report.provenance import cell_command

    runs = {s.name: run_command(s) for s, _ in planned}
    originals = {(s, label): dataset for (s, dataset), label in merged.names.items()}
    out = []
    for entry, owner in zip(merged.entries, merged.owners, strict=True):
        labels = entry.cell.labels
        fold = -1 if labels["fold"] is None else labels["fold"]
        named = labels | {"fold": fold, "dataset": originals[owner, entry.cell.dataset]}
        out.append(cell_command(runs[owner], named))
    return out


def _about(name: str, planned: Planned, merged: Merged, notes: Sequence[str], reports: Path) -> dict[str, Any]:
    """The provenance of all suites, each in its own words."""
    parts = [(s, about_of(s, entries, notes_of(s, entries, reports, []))) for s, entries in planned]
    flags = " --quick" if planned[0][0].quick else ""
    files = " ".join(called(s) for s, _ in planned)
    environments = {_text(e): e for _, about in parts for e in about["environment"]}
    data = {_text(d): d for _, about in parts for d in about["data"]}
    return {
        "suite": "\n".join(f"# {s.name}\n{about['suite'].rstrip()}\n" for s, about in parts),
        "commands": [*(run_command(s) for s, _ in planned), f"bench report {files} --merge {name}{flags}"],
        "notes": list(dict.fromkeys([*notes, *(f"{s.name}: {n}" for s, about in parts for n in about["notes"])])),
        "learning_rates": [f"{s.name}: {text}" for s, about in parts for text in about["learning_rates"]],
        "environment": [environments[k] for k in sorted(environments)],
        "data": list(data.values()),
    }
