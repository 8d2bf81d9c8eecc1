"""Write a report: page, tables and figures of one suite. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import BenchError
from harness.report import page
from harness.report.figures import Picture, dice_distribution, loss_curves
from harness.report.frames import NO_FOLD, Frames, by_group, prepare
from harness.report.palette import slug
from harness.report.qualitative import Panel, draw_panel
from harness.report.tables import apply_policy, leaderboard, survey_frame, survey_table

LAYOUTS = ("survey_table", "hyperparameters", "curves", "distributions", "qualitative")


def write_report(
    title: str,
    description: str,
    cells: pd.DataFrame,
    cases: pd.DataFrame,
    curves: pd.DataFrame,
    out: Path,
    *,
    layout: Sequence[str] = ("survey_table", "curves"),
    about: Mapping[str, Any] | None = None,
    panels: Sequence[Panel] = (),
    pooled: Sequence[str] = (),
    voxels: Sequence[str] = (),
) -> Path:
    """Write `index.html`, the numbers as CSV (leaderboard, cells, cases, curves), `tables/` and `figures/`.

    Args:
        title: Name of the suite.
        description: One or two sentences under the title.
        cells: One row per planned cell, see `frames.CELL_COLUMNS`; a column `command` is shown where given.
        cases: Rows of all cases.csv, see `frames.CASE_COLUMNS`, one row per case, class and metric.
        curves: One row per training and epoch, see `frames.CURVE_COLUMNS`.
        out: Folder of the report; made if needed. Figures and tables of an earlier report there are replaced.
        layout: Sections in the middle of the page, in order, out of `LAYOUTS`. Distributions and panels follow when
            they are not named.
        about: Provenance: `suite` (text), `commands`, `data` (mappings with name, attribution, licence, source),
            `environment` (mappings), `notes`, `learning_rates` (sentences), `generated`; other keys are shown as text.
        panels: Qualitative slices.
        pooled: Metrics that are made from the counts of all cases of a run, such as miou.
        voxels: Data sets whose distances are in voxels, because no spacing is known.

    Returns:
        The path of `index.html`.

    Raises:
        BenchError: A frame lacks a column or contradicts itself, or the layout names an unknown section.
    """
    unknown = [x for x in layout if x not in LAYOUTS]
    if unknown:
        raise BenchError(f"report.layout: {unknown[0]!r} is unknown; expected names out of {', '.join(LAYOUTS)}.")
    if cells.empty:
        raise BenchError("report: no planned cells; a report needs at least one row in `cells`.")
    frames = prepare(cells, cases, curves, pooled, voxels)
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    sections = {
        "curves": _curve_pictures(frames, out / "figures"),
        "distributions": _distribution_pictures(frames, out / "figures"),
        "qualitative": _panel_pictures(panels, out / "figures"),
    }
    tables = [survey_table(frames, g) for g in frames.groups]
    means = [survey_table(frames, g, only_means=True) for g in frames.groups]
    _write_csv(leaderboard(frames), out / "leaderboard.csv")
    _write_csv(_raw(apply_policy(frames.cases)), out / "cases.csv")
    _write_csv(_raw(frames.curves), out / "curves.csv")
    _write_csv(_raw(frames.cells), out / "cells.csv")
    _write_csv(survey_frame(tables), out / "tables" / "survey_table.csv")
    html = page.render(title, description, frames, tables, means, sections, _order(layout), dict(about or {}))
    (out / "tables" / "survey_table.html").write_text(page.render_tables(title, tables), encoding="utf-8")
    index = out / "index.html"
    index.write_text(html, encoding="utf-8")
    return index


def _order(layout: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*layout, "distributions", "qualitative"]))


def _curve_pictures(frames: Frames, folder: Path) -> list[Picture]:
    taken: set[str] = set()
    made = [loss_curves(frames, g, folder, slug(f"curves-{g}", taken)) for g in frames.groups]
    return [p for p in made if p is not None]


def _distribution_pictures(frames: Frames, folder: Path) -> list[Picture]:
    taken: set[str] = set()
    made = [
        dice_distribution(frames, g, m, folder, slug(f"dice-{g}-{m}", taken))
        for g in frames.groups
        for m in by_group(frames, g, frames.cases)
    ]
    return [p for p in made if p is not None]


def _panel_pictures(panels: Sequence[Panel], folder: Path) -> list[Picture]:
    taken: set[str] = set()
    return [draw_panel(p, folder, slug(f"slice-{p.dataset}-{p.model}-{p.case}", taken)) for p in panels]


def _clear(out: Path) -> None:
    """Remove what an earlier report left, and nothing else: records beside it stay."""
    for folder, endings in (("figures", (".svg", ".png", ".pdf")), ("tables", (".csv", ".html"))):
        for path in sorted((out / folder).glob("*")):
            if path.suffix in endings and path.is_file():
                path.unlink()
    (out / "tables").mkdir(exist_ok=True)


def _raw(frame: pd.DataFrame) -> pd.DataFrame:
    """As in the records: an empty field where there is no fold, and no column of our own but the score."""
    raw = frame.drop(columns=["group", "length"], errors="ignore")
    raw["fold"] = raw["fold"].map(lambda f: "" if f == NO_FOLD else str(int(f)))
    return raw


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, lineterminator="\n")
