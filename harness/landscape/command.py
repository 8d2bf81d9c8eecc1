"""`bench landscape LOSS...`: figures and a table of how losses answer to a prediction that gets worse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from harness.check.command import specify
from harness.errors import BenchError
from harness.grid import Choice, label_of
from harness.landscape.figure import comparison, groups_of, values
from harness.landscape.measure import COLUMNS, FAMILIES, Course, LeftOut, measure, number_of_steps
from harness.losses import LOSSES
from harness.printing import print_json
from harness.processes import writable
from harness.records import write_rows

FOLDER = "landscape"
ENDINGS = ("svg", "png", "pdf")


def run_landscape(losses: Sequence[str], out: Path, as_json: bool) -> int:
    """Measure losses, and write OUT/landscape/landscape.csv with its figures.

    Args:
        losses: As for `bench check`: a name, file.py:Class, 'name: {argument: value}', all.
        out: Folder of results.
        as_json: Print paths and what was left out as JSON.

    Raises:
        BenchError: A loss cannot be found or made, none can be shown, or the folder cannot be written to.
    """
    named = _named(losses)
    folder = out / FOLDER
    writable(folder)
    found = _measured(named)
    courses = [c for c in found if isinstance(c, Course)]
    left = [c for c in found if isinstance(c, LeftOut)]
    if not courses:
        raise BenchError("none of these losses can be shown: " + "; ".join(f"{x.loss}: {x.reason}" for x in left) + ".")
    try:
        paths = _written(courses, folder)
    except OSError as error:
        raise BenchError(f"the landscape cannot be written to {folder}: {error.strerror or error}.") from None
    _tell(courses, left, paths, as_json)
    return 0


def _named(losses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Specifications by name, each loss once."""
    specs: list[dict[str, Any]] = []
    for text in losses:
        for spec in [specify(name) for name in (LOSSES if text == "all" else [text])]:
            if spec not in specs:
                specs.append(spec)
    choices = [Choice(spec["name"], spec["args"]) for spec in specs]
    labels = [label_of(choice) for choice in choices]
    # two files may each define a class of the same name
    labels = [n if labels.count(n) == 1 else f"{c.name} {n}" for n, c in zip(labels, choices, strict=True)]
    return dict(zip(labels, specs, strict=True))


def _measured(named: dict[str, dict[str, Any]]) -> list[Course | LeftOut]:
    steps = number_of_steps()
    console = Console(stderr=True)
    bars = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeRemainingColumn(compact=True))
    found = []
    with Progress(*bars, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=steps * len(named))
        for done, (name, spec) in enumerate(named.items(), 1):
            progress.update(task, description=f"{name} ({done} of {len(named)})")
            found.append(measure(spec, name, lambda: progress.advance(task)))
            progress.update(task, completed=steps * done)
        progress.update(task, description="figures")
    return found


def _written(courses: list[Course], folder: Path) -> list[Path]:
    """The table first, then two figures for each group; figures of an earlier call that are no more are removed."""
    table = folder / "landscape.csv"
    write_rows(table, COLUMNS, [row for course in courses for row in course.rows()])
    paths = [table]
    for end, words, own in groups_of(courses):
        for draw, name in ((comparison, f"landscape{end}"), (values, f"landscape{end}-values")):
            draw(own, folder, name, words)
            paths += [folder / f"{name}.{ending}" for ending in ENDINGS]
    families = "|".join(re.escape(family.replace(" ", "-")) for family in FAMILIES)
    ours = re.compile(rf"landscape(-({families})(-\d+)?)?(-values)?\.({'|'.join(ENDINGS)})")
    for path in folder.iterdir():
        if path not in paths and ours.fullmatch(path.name):
            path.unlink()
    return paths


def _tell(courses: list[Course], left: list[LeftOut], paths: list[Path], as_json: bool) -> None:
    if as_json:
        told = {
            "losses": [c.loss for c in courses],
            "left_out": [asdict(x) for x in left],
            "files": [str(p) for p in paths],
        }
        print_json(told)
        return
    console = Console(highlight=False, soft_wrap=True)
    for x in left:
        console.print(f"left out: {x.loss}: {x.reason}", markup=False)
    table, *figures = paths
    console.print(f"{len(courses)} losses: {table}", markup=False)
    for path in figures[:: len(ENDINGS)]:
        console.print(f"figure: {path} (and {', '.join(ENDINGS[1:])})", markup=False)
