"""From records to the report: tables of cells, cases and curves, and the qualitative panels. No torch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.cell import ENGINE, PROFILE, Place
from harness.data.layouts import reader_of
from harness.errors import BenchError
from harness.metrics.table import ENGINES, PROFILES, check_profiles, metric_of
from harness.plan import Entry
from harness.published import NAMES, published_table
from harness.records import write_atomic
from harness.rows import frames
from harness.store import Home
from harness.suite import Suite
from harness.suite_file import FORMATS

if TYPE_CHECKING:
    import pandas as pd

    from harness.report import Panel

_STAMP = "report.json"


def report_suite(
    suite: Suite,
    entries: Sequence[Entry],
    place: Place,
    reports: Path,
    force: bool = False,
    formats: Sequence[str] = FORMATS,
) -> tuple[Path, bool]:
    """Write the report of a suite unless the one that is there rests on the same records.

    Returns:
        The page, and whether it was written anew.
    """
    out = reports / suite.name
    stamp = _inputs(suite, entries)
    page = out / "index.html"
    try:
        known = json.loads((out / _STAMP).read_text(encoding="utf-8"))["inputs"]
    except (OSError, ValueError, KeyError):
        known = ""
    if page.is_file() and known == stamp and not force:
        return page, False
    from harness.report import write_report
    from harness.report.verdicts import Ranking

    cells, cases, curves, damaged = frames(entries, Home(place.out, suite.name))
    shown, notes = panels(suite, entries, place, cases) if "qualitative" in suite.spec.report.layout else ([], [])
    notes += [
        *_left_out(entries),
        *damaged,
        *_places(entries, reports),
        *_measured(suite),
        *_other_data(entries),
        *_checks(entries),
    ]
    page = write_report(
        suite.name,
        suite.spec.description.strip(),
        cells,
        cases,
        curves,
        out,
        layout=suite.spec.report.layout,
        about=_about(suite, entries, notes),
        panels=shown,
        pooled=[m for m in suite.spec.metrics if metric_of(m)[0].scope == "dataset"],
        voxels=[m.name for m in suite.manifests.values() if m.spec.spacing == "unknown"],
        ranking=Ranking(tuple(suite.spec.rank.by), suite.spec.rank.baseline, suite.spec.rank.rope),
        published=suite.spec.report.published,
        specs={c.loss_label: c.loss for c in suite.cells},
        formats=formats,
    )
    if set(formats) != set(FORMATS):
        (out / _STAMP).unlink(missing_ok=True)  # `bench run` then writes the whole
        return page, True
    write_atomic(out / _STAMP, lambda stream: stream.write(json.dumps({"inputs": stamp}).encode() + b"\n"))
    return page, True


def panels(suite: Suite, entries: Sequence[Entry], place: Place, cases: pd.DataFrame) -> tuple[list[Panel], list[str]]:
    """Qualitative panels of each data set, chosen by rule: the cases of median and of lowest mean Dice.

    The mean is over losses, classes and seeds of the first model; the first seed's predictions are shown, on the slice
    with the most labelled voxels. Image voxels are shown only where the manifest allows it.

    Returns:
        The panels, and a note for each data set that has none.
    """
    found: list[Panel] = []
    notes: list[str] = []
    for manifest in suite.manifests.values():
        ours = [e for e in entries if e.cell.dataset == manifest.name and e.state == "ok" and e.folder]
        if not ours:
            continue
        first = ours[0].cell
        same = (first.model_label, first.seed, first.data["fold"], first.data["view"])
        shown = [e for e in ours if (e.cell.model_label, e.cell.seed, e.cell.data["fold"], e.cell.data["view"]) == same]
        try:
            for case, why in _chosen(cases, ours, first.model_label, first.data["test"]):
                found.append(_panel(manifest, shown, case, why, place))
        except (BenchError, OSError, RuntimeError) as error:
            notes.append(
                f"No qualitative panels of {manifest.name}: its masks or its labels are not at hand ({error})."
            )
    return found, notes


def _chosen(cases: pd.DataFrame, entries: Sequence[Entry], model: str, tests: list[str]) -> list[tuple[str, str]]:
    if cases.empty:
        return []
    ours = {e.cell.train_id for e in entries if e.cell.model_label == model}
    dice = cases[(cases["metric"] == "dice") & cases["train_id"].isin(ours)]
    dice = dice[(dice["status"] != "both_empty") & dice["case"].isin(tests)]
    dice = dice[dice["profile"] == dice["profile"].iloc[0]] if len(dice) else dice  # of several profiles the first
    means = dice.groupby("case", observed=True)["value"].mean().sort_values(kind="stable")
    if means.empty:
        return []
    picks = [(str(means.index[len(means) // 2]), "median Dice"), (str(means.index[0]), "lowest Dice")]
    return picks[: 1 if len(means) == 1 else 2]


def _panel(manifest: Any, entries: Sequence[Entry], case: str, why: str, place: Place) -> Panel:
    import numpy as np
    import SimpleITK as sitk

    from harness.report import Panel

    volume = reader_of(manifest, place.root).read(case)
    view = entries[0].cell.data["view"]
    axis = view["slices"]["axis"] if "slices" in view else 0
    planes = np.moveaxis(volume.label, axis, 0)
    index = int(np.argmax(((planes > 0) & (planes < 255)).sum(axis=(1, 2))))
    predictions = {}
    for entry in entries:
        assert entry.folder is not None
        path = entry.folder / "masks" / f"{case}.nii.gz"
        if not path.is_file():
            raise FileNotFoundError(path.name)
        predictions[entry.cell.loss_label] = np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), axis, 0)[
            index
        ]
    image = np.moveaxis(volume.image[0], axis, 0)[index] if manifest.spec.figures == "images" else None
    if image is not None and manifest.spec.intensity.window is not None:
        image = np.clip(image, *manifest.spec.intensity.window)
    return Panel(
        case=f"{case}, slice {index}, {why}",
        dataset=manifest.name,
        model=entries[0].cell.model_label,
        image=image,
        truth=planes[index],
        predictions=predictions,
        classes={index: name for name, index in manifest.classes.items()},
    )


def _left_out(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each damaged record: its cell counts as missing."""
    return [f"LEFT OUT: {e.problem}" for e in entries if e.problem and e.state != "skip"]


def _places(entries: Sequence[Entry], reports: Path) -> list[str]:
    """Which results folder gave how many records, where there are several; committed records are no such folder."""
    found = Counter(e.folder.parent.parent for e in entries if e.folder is not None)
    named = [f"{place} ({n})" for place, n in found.items() if place.parent.parent != reports]
    return [f"Records were merged from {', '.join(named)}."] if len(named) > 1 else []


def _other_data(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each data set whose cells were trained or scored on different content."""
    seen: dict[tuple[str, str, int | None], dict[tuple[str, str], list[str]]] = {}
    for entry in entries:
        if entry.record is None or "test_data" not in entry.record.fingerprints:
            continue
        cell, prints = entry.cell, entry.record.fingerprints
        group = seen.setdefault((cell.dataset, cell.data["split"], cell.data["fold"]), {})
        group.setdefault((prints["train_data"], prints["test_data"]), []).append(cell.loss_label)
    return [
        f"NOT COMPARABLE: the cells of {name} were trained or scored on {len(group)} different contents of the data "
        f"({'; '.join(', '.join(dict.fromkeys(labels)) for labels in group.values())})."
        for (name, _, _), group in seen.items()
        if len(group) > 1
    ]


def _measured(suite: Suite) -> list[str]:
    """Sentences on how it was measured, where that is not the usual way."""
    spec = suite.spec
    notes: list[str] = []
    if (profiles := check_profiles(spec.profile)) != (PROFILE,):
        notes += [f"Profile {name}: {PROFILES[name].about}." for name in profiles]
    if spec.engine != ENGINE:
        notes.append(f"Distances by the engine {spec.engine}: {ENGINES[spec.engine]}.")
    for manifest in suite.manifests.values():
        if regions := manifest.spec.regions:
            unions = "; ".join(f"{name} = {' + '.join(classes)}" for name, classes in regions.items())
            notes.append(f"Measured on {manifest.name} are regions, trained are the classes: {unions}.")
        if manifest.spec.dimensions == 2:
            notes.append(f"{manifest.name} is a 2D data set: contours and distances are in the plane of each image.")
    return notes


def _checks(entries: Sequence[Entry]) -> list[str]:
    """Sentences on the certificates of the losses (`bench check`): failures first, then what losses declare."""
    failed: dict[str, str] = {}
    declared: dict[str, str] = {}
    passed: set[str] = set()
    for entry in entries:
        for loss, found in (entry.record.checks if entry.record else {}).items():
            if found["failed"]:
                failed[loss] = "; ".join(f"{name}: {text}" for name, text in found["failed"].items())
            else:
                passed.add(loss)
            if found["declared"]:
                declared[loss] = "; ".join(f"{name}: {reason}" for name, reason in found["declared"].items())
    notes = [f"LOSS CHECK FAILED: {loss} ({text})." for loss, text in sorted(failed.items())]
    if passed - set(failed):
        notes.append(f"Loss check passed (bench check): {', '.join(sorted(passed - set(failed)))}.")
    return notes + [f"{loss} lacks, as it declares: {text}." for loss, text in sorted(declared.items())]


def _about(suite: Suite, entries: Sequence[Entry], notes: list[str]) -> dict[str, Any]:
    spec = suite.spec
    quick = " --quick" if suite.quick else ""
    name, args = next(iter(spec.train.optimizer.items()))
    environments = {
        json.dumps(e.record.environment, sort_keys=True) for e in entries if e.record and e.record.environment
    }
    return {
        "suite": suite.text,
        "commands": [f"bench run {suite.path.name}{quick}", f"bench report {suite.path.name}{quick}"],
        "notes": [*spec.report.notes, *notes],
        "learning_rates": f"{name} at {args['lr']:g} for every loss, schedule {spec.train.schedule}.",
        "environment": [json.loads(e) for e in sorted(environments)],
        "data": [
            {
                "name": f"{m.name}: {m.spec.title}",
                "licence": m.spec.licence,
                "attribution": m.spec.attribution,
                "source": " ".join(m.spec.obtain.split()),
                "figures": m.spec.figures,
            }
            for m in suite.manifests.values()
        ],
    }


def _inputs(suite: Suite, entries: Sequence[Entry]) -> str:
    """Digest of what the report rests on."""
    total = hashlib.sha256(f"{__version__}\n{suite.name}\n{suite.text}".encode())
    for entry in entries:
        total.update(f"{entry.cell.eval_id} {entry.state}\n".encode())
        if entry.folder is not None:
            total.update((entry.folder / "record.json").read_bytes())
    if suite.spec.report.published is not None:
        _, table = published_table(suite.spec.report.published)
        for path in (table, table.with_name(NAMES)):
            total.update(path.read_bytes())
    return total.hexdigest()


def export_records(entries: Sequence[Entry], target: Path) -> int:
    """Copy the small files of finished cells to a folder meant for git; returns how many cells.

    Weights, masks, logs and checkpoints stay behind.
    """
    count = 0
    for entry in entries:
        if entry.folder is None or entry.state not in ("ok", "diverged", "skip"):
            continue
        source, goal = entry.folder.parent, target / entry.cell.train_id
        (goal / entry.cell.eval_id).mkdir(parents=True, exist_ok=True)
        pairs = [(source / n, goal / n) for n in ("train.json", "curve.csv")]
        pairs += [(entry.folder / n, goal / entry.cell.eval_id / n) for n in ("cases.csv", "record.json")]
        for path, copy in pairs:
            if path.is_file() and path.resolve() != copy.resolve():
                content = path.read_bytes()
                write_atomic(copy, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        count += 1
    return count
