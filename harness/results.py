"""From the records of a suite to its report: what `harness.report` is given. No torch."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.cell import ENGINE, PROFILE, Cell, Place
from harness.claims import waited_for
from harness.data.conditions import Setting, settings_of
from harness.data.manifest import packed
from harness.engine import engine_notes
from harness.errors import BenchError
from harness.metrics.table import ENGINES, LOSS, PROFILES, check_profiles, metric_of
from harness.panels import panels
from harness.plan import Entry
from harness.published import NAMES, published_table
from harness.records import write_atomic
from harness.rows import frames
from harness.store import Home
from harness.suite import Suite
from harness.suite_file import FORMATS
from harness.suite_losses import refusal
from harness.tuning.told import learning_rates, notes_on, specs_of, told

if TYPE_CHECKING:
    from harness.report import Panel

STAMP = "report.json"
"""Beside the page of a suite: what it rests on."""
WITH_IMAGES = "with-images"
NOTICE = (
    "Made with --with-images: it shows slices of images that their licence may not allow to pass on. It is for your "
    "own eyes; git ignores this folder."
)


def report_suite(
    suite: Suite,
    entries: Sequence[Entry],
    place: Place,
    reports: Path,
    force: bool = False,
    formats: Sequence[str] = FORMATS,
    *,
    images: bool = False,
    say: Callable[[str], object] | None = None,
) -> tuple[Path, bool]:
    """Write the report of a suite unless the one that is there rests on the same records.

    Args:
        suite: The suite.
        entries: Its plan.
        place: Where results and data are.
        reports: Folder of reports.
        force: Write it anew in any case.
        formats: Which of `FORMATS` to write.
        images: Show image voxels whatever the manifests say, in a report of its own that git ignores.
        say: Takes a sentence for each data set whose slices cannot be drawn.

    Returns:
        The page, and whether it was written anew.
    """
    out = folder_of(reports, suite.name, images=images)
    stamp = _inputs(suite, entries)
    if not force and not images and _is_current(out, stamp):
        return out / "index.html", False
    out.mkdir(parents=True, exist_ok=True)
    with waited_for(out):  # commands that work on one folder of results end at about the same time
        if not force and not images and _is_current(out, stamp):
            return out / "index.html", False
        return _write(suite, entries, place, reports, out, stamp, formats, images, say), True


def _is_current(out: Path, stamp: str) -> bool:
    try:
        known = json.loads((out / STAMP).read_text(encoding="utf-8"))["inputs"]
    except (OSError, ValueError, KeyError):
        return False
    return (out / "index.html").is_file() and bool(known == stamp)


def _write(
    suite: Suite,
    entries: Sequence[Entry],
    place: Place,
    reports: Path,
    out: Path,
    stamp: str,
    formats: Sequence[str],
    images: bool,
    say: Callable[[str], object] | None,
) -> Path:
    from harness.report import write_report
    from harness.report.verdicts import Ranking

    cells, cases, curves, damaged = frames(entries, Home(place.out, suite.name))
    shown: list[Panel] = []
    notes: list[str] = []
    if "qualitative" in suite.spec.report.layout:
        shown, notes = panels(suite, entries, place, cases, images=images)
    said, before = [*notes], slices_in(out)
    notes += notes_of(suite, entries, reports, damaged)
    page = write_report(
        suite.name,
        suite.spec.description.strip(),
        cells,
        cases,
        curves,
        out,
        layout=suite.spec.report.layout,
        about=about_of(suite, entries, notes),
        panels=shown,
        pooled=[m for m in suite.spec.metrics if metric_of(m)[0].scope == "dataset"],
        voxels=voxels_of(suite),
        settings=settings_in(suite, suite.cells),
        ranking=Ranking(tuple(suite.spec.rank.by), suite.spec.rank.baseline, suite.spec.rank.rope),
        published=suite.spec.report.published,
        specs=specs_of(entries),
        formats=formats,
        notice=NOTICE if images else "",
        tuned=told(entries),
    )
    if say is not None and {"html", "latex"} & set(formats):
        tell_slices(said, before, out, say)
    if images or set(formats) != set(FORMATS):
        (out / STAMP).unlink(missing_ok=True)  # `bench run` then writes the whole
        return page
    write_atomic(out / STAMP, lambda stream: stream.write(json.dumps({"inputs": stamp}).encode() + b"\n"))
    return page


def slices_in(out: Path) -> set[str]:
    """Names of the figures of slices that are in a report's folder."""
    return {p.name for pattern in ("ladder-*.svg", "slice-*.svg") for p in (out / "figures").glob(pattern)}


def tell_slices(notes: Sequence[str], before: set[str], out: Path, say: Callable[[str], object]) -> None:
    """Say which slices cannot be drawn and why, and which of the earlier report are gone with that.

    None is kept: nothing says that an earlier figure shows the masks of these records.
    """
    for note in notes:
        say(note)
    gone = sorted(before - slices_in(out))
    if notes and gone:
        say(f"Removed with the earlier report, and not drawn again: {', '.join(gone)}.")


def check_results(planned: Sequence[tuple[Suite, Sequence[Entry]]]) -> None:
    """Refuse a report of nothing, which would replace one of results that are elsewhere.

    Raises:
        BenchError: No cell has a record, not even of a failure.
    """
    if any(e.record is not None for _, entries in planned for e in entries):
        return
    names = ", ".join(s.name for s, _ in planned)
    commands = " and ".join(f"`{run_command(s, s.path)}`" for s, _ in planned)
    problem = next((f" ({e.problem})" for _, entries in planned for e in entries if e.problem and not e.cell.skip), "")
    makes = "makes" if len(planned) == 1 else "make"
    raise BenchError(f"{names}: no cell has a result{problem}, so no report is written; {commands} {makes} them.")


def called(suite: Suite, other: object = None) -> str:
    """What names a suite on the command line: its name where it ships with the package, else `other` or its file."""
    if suite.path.resolve().parent == packed("suites").resolve():
        return suite.path.stem
    return shlex.quote(str(other or suite.path.name))


def run_command(suite: Suite, other: object = None) -> str:
    """The command that runs a suite, see `called`."""
    return f"bench run {called(suite, other)}{' --quick' if suite.quick else ''}"


def voxels_of(suite: Suite) -> list[str]:
    """The data sets whose distances are in voxels, by their names in tables."""
    unknown = {m.name for m in suite.manifests.values() if m.spec.spacing == "unknown"}
    return list(dict.fromkeys(c.dataset for c in suite.cells if c.data["manifest"] in unknown))


def settings_in(suite: Suite, cells: Sequence[Cell]) -> dict[str, Setting]:
    """The settings of a suite's data sets, by their names in tables; empty where it has no axis of them."""
    first: dict[str, dict[str, Any]] = {}
    for cell in cells:
        first.setdefault(cell.dataset, cell.data)
    patients = {n: {suite.manifests[d["manifest"]].patient_of(c) for c in d["train"]} for n, d in first.items()}
    return settings_of({name: (data, len(patients[name])) for name, data in first.items()})


def folder_of(reports: Path, name: str, *, images: bool) -> Path:
    """Folder of a report; one with images lies in a folder of its own with a file that makes git ignore it."""
    out = reports / name
    if images:
        out = out / WITH_IMAGES
        out.mkdir(parents=True, exist_ok=True)
        (out / ".gitignore").write_text("*\n", encoding="utf-8")
    return out


def notes_of(suite: Suite, entries: Sequence[Entry], reports: Path, damaged: Sequence[str]) -> list[str]:
    """What the reader must know of the records, as sentences; `damaged` are those on files that could not be read."""
    return [
        *_left_out(entries),
        *damaged,
        *_places(entries, reports),
        *_measured(suite),
        *_other_data(entries),
        *notes_on(told(entries)),
        *engine_notes(entries),
        *_checks(entries),
    ]


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
    seen: dict[tuple[str, str, int | None, int | None], dict[tuple[str, str], list[str]]] = {}
    for entry in entries:
        if entry.record is None or "test_data" not in entry.record.fingerprints:
            continue
        cell, prints = entry.cell, entry.record.fingerprints
        repeat = cell.seed if cell.repeats_differ else None  # then only the losses of one repeat share their data
        group = seen.setdefault((cell.dataset, cell.data["split"], cell.data["fold"], repeat), {})
        group.setdefault((prints["train_data"], prints["test_data"]), []).append(cell.loss_label)
    return [
        f"NOT COMPARABLE: the cells of {name} were trained or scored on {len(group)} different contents of the data "
        f"({'; '.join(', '.join(dict.fromkeys(labels)) for labels in group.values())})."
        for (name, *_), group in seen.items()
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
    notes += _scoring_losses(suite)
    for manifest in suite.manifests.values():
        if regions := manifest.spec.regions:
            unions = "; ".join(f"{name} = {' + '.join(classes)}" for name, classes in regions.items())
            notes.append(f"Measured on {manifest.name} are regions, trained are the classes: {unions}.")
        if manifest.spec.dimensions == 2:
            notes.append(f"{manifest.name} is a 2D data set: contours and distances are in the plane of each image.")
    return notes


def _scoring_losses(suite: Suite) -> list[str]:
    """A sentence for each loss of the suite that cannot score the networks of the others, where others can."""
    if not any(name.startswith(LOSS) for name in suite.spec.metrics):
        return []
    rest = {c.loss_label: c.loss for c in suite.cells if f"{LOSS}{c.loss_label}" not in suite.spec.metrics}
    reasons = ((label, refusal(spec)) for label, spec in rest.items())
    # with a rule `with` each loss is the part of a sum that has its name
    said = ((label, reason.removeprefix(f"of its part {label}: ")) for label, reason in reasons if reason)
    return [f"{label} scores no network: {reason}." for label, reason in said]


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


def about_of(suite: Suite, entries: Sequence[Entry], notes: Sequence[str]) -> dict[str, Any]:
    """The provenance of a suite, see `harness.report.write_report`."""
    spec = suite.spec
    quick = " --quick" if suite.quick else ""
    environments = {
        json.dumps(e.record.environment, sort_keys=True) for e in entries if e.record and e.record.environment
    }
    return {
        "suite": suite.text,
        "commands": [run_command(suite), f"bench report {called(suite)}{quick}"],
        "notes": [*spec.report.notes, *(spec.protocol.sentences() if spec.protocol else []), *notes],
        "learning_rates": learning_rates(suite),
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
    for manifest in suite.manifests.values():  # no id holds what the page says of the data, and whether it shows any
        said = manifest.spec.model_dump(mode="json", include={"title", "licence", "attribution", "obtain", "figures"})
        total.update(json.dumps(said, sort_keys=True).encode())
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
