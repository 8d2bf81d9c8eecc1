"""Write a report: page, tables and figures of one suite. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.data.conditions import Setting
from harness.errors import BenchError
from harness.report import cross, page, robustness, sizes, verdict_tables, verdicts
from harness.report.csvfile import write_csv
from harness.report.figures import FIGURES, Picture, drawing_all, size_effects
from harness.report.figures.scores import dice_of, patient_means, rows_of
from harness.report.frames import NO_FOLD, Frames, prepare
from harness.report.layouts import LAYOUTS as TABLES
from harness.report.palette import slug
from harness.report.qualitative import Panel, draw_ladder, draw_panel
from harness.report.sweep_ranges import sweep_range_views
from harness.report.tablefiles import write_tables, write_views
from harness.report.tables import apply_policy, leaderboard
from harness.report.tuning import tuning_views
from harness.report.verdicts import Ranking
from harness.suite_file import FORMATS
from harness.tuning.told import Told

_TABLES = {"html": (".html", ".css"), "csv": (".csv",), "latex": (".tex",)}  # endings of a format's tables
LADDER = 5  # losses in the figure of all cases together
LAYOUTS = (*TABLES, "curves", "distributions", "qualitative")
# Behind the sections that the suite asks for; each is left out where it has nothing to show.
USUAL = ("tuning", "published", "distributions", "classes", "sweeps", "validation", "sizes", "volume", "cost", "cases",
         "cross", "variance", "sensitivity", "qualitative")  # fmt: skip


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
    ranking: Ranking | None = None,
    published: str | None = None,
    specs: Mapping[str, Any] | None = None,
    formats: Sequence[str] = FORMATS,
    notice: str = "",
    settings: Mapping[str, Setting] | None = None,
    tuned: Sequence[Told] = (),
) -> Path:
    """Write `index.html`, the numbers as CSV (leaderboard, cells, cases, curves), `tables/` and `figures/`.

    Args:
        title: Name of the suite.
        description: One or two sentences under the title.
        cells: One row per planned cell, see `frames.CELL_COLUMNS`; a column `command` is shown where given.
        cases: Rows of all cases.csv, see `frames.CASE_COLUMNS`, one row per case, class and metric.
        curves: One row per training and epoch, see `frames.CURVE_COLUMNS`.
        out: Folder of the report; made if needed. Figures and tables of an earlier report there are replaced,
            its files in other formats than `formats` stay.
        layout: Sections in the middle of the page, in order, out of `LAYOUTS`, behind the statistics; the other figures
            and the panels follow.
        about: Provenance: `suite` (text), `commands`, `data` (mappings with name, attribution, licence, source),
            `environment` (mappings), `notes`, `learning_rates` (sentences), `generated`; other keys are shown as text.
        panels: Qualitative slices.
        pooled: Metrics that are made from the counts of all cases of a run, such as miou.
        voxels: Data sets whose distances are in voxels, because no spacing is known.
        ranking: What the suite ranks by, and its baseline.
        published: Name of a published table to set the numbers beside.
        specs: Specification of each loss by its label, for the comparison with a published table.
        formats: Which of `FORMATS` to write; the page is of `html`, figures belong to `html` and `latex`.
        notice: A warning on top of the page.
        settings: Data set to its setting, where the suite degrades labels or takes fewer patients.
        tuned: What the studies of a tuned suite chose.

    Returns:
        The path of `index.html`, or of the folder where no page was asked for.

    Raises:
        BenchError: A frame lacks a column or contradicts itself, or the layout names an unknown section.
    """
    unknown = [x for x in layout if x not in LAYOUTS]
    if unknown:
        raise BenchError(f"report.layout: {unknown[0]!r} is unknown; expected names out of {', '.join(LAYOUTS)}.")
    if cells.empty:
        raise BenchError("report: no planned cells; a report needs at least one row in `cells`.")
    ranking = ranking or Ranking()
    frames = prepare(cells, cases, curves, pooled, voxels, settings)
    out.mkdir(parents=True, exist_ok=True)
    _clear(out, formats)
    drawn = [*FIGURES] if {"html", "latex"} & set(formats) else []
    baseline = ranking.baseline if ranking.baseline in set(frames.cases["loss"].unique()) else None
    with drawing_all(frames, out / "figures", drawn, baseline=baseline) as pictures_of:
        views = write_tables(frames, ["survey_table", *layout], out / "tables", published, specs=specs, formats=formats)
        compared = verdicts.compare(frames, ranking)
        by_size = sizes.compare_sizes(frames, ranking)
        for name, made in (
            ("robustness", robustness.robustness_views(robustness.robustness_panels(frames))),
            ("statistics", verdict_tables.statistics_views(compared)),
            ("tiers", verdict_tables.tier_views(frames, ranking)),
            ("tuning", tuning_views(tuned, frames)),
            ("sweep_ranges", sweep_range_views(frames, ranking)),
            ("sizes", sizes.size_views(by_size)),
            ("cross", cross.cross_views(frames, ranking)),
            ("variance", verdict_tables.variance_views(compared)),
            ("sensitivity", verdict_tables.sensitivity_views(frames, ranking)),
        ):
            write_views(name, made, out / "tables", formats)
            views += made
        if "csv" in formats:
            write_csv(leaderboard(frames), out / "leaderboard.csv")
            write_csv(_raw(apply_policy(frames.cases)), out / "cases.csv")
            if len(frames.cross):
                write_csv(_raw(apply_policy(frames.cross)), out / "cross.csv")
            write_csv(_raw(frames.curves), out / "curves.csv")
            write_csv(_raw(frames.cells), out / "cells.csv")
        others = {
            "qualitative": _panel_pictures(frames, panels if drawn else (), out / "figures"),
            "sizes": _size_pictures(by_size if drawn else [], out / "figures"),
        }
        pictures = pictures_of() | others
    if "html" not in formats:
        return out
    html = page.render(
        title,
        description,
        frames,
        pictures,
        list(dict.fromkeys(["robustness", "statistics", "tiers", *layout, *USUAL])),
        dict(about or {}),
        views=views,
        verdict=_verdict(frames, compared),
        notice=notice,
        extra={g: verdicts.board_columns(compared, g) for g in frames.groups},
        equivalent=next((s for s in map(verdicts.equivalence, compared) if s), ""),
    )
    index = out / "index.html"
    index.write_text(html, encoding="utf-8")
    return index


def _verdict(frames: Frames, compared: Sequence[verdicts.Comparison]) -> str:
    """The first sentence: of the data sets as they are, and where the rest is said."""
    said = verdicts.verdict_sentence([c for c in compared if c.group in frames.plain_groups])
    left = len(frames.groups) - len(frames.plain_groups)
    more = f" What {left} other settings of labels or patients change is said under Worse labels, fewer patients."
    return said + more * (left > 0)


def _size_pictures(found: Sequence[sizes.BySize], folder: Path) -> list[Picture]:
    taken: set[str] = set()
    made = [size_effects(s, folder, slug(f"sizes-{s.metric}-{s.group}-{s.model}", taken)) for s in found if s.judged]
    return [p for p in made if p is not None]


def _panel_pictures(frames: Frames, panels: Sequence[Panel], folder: Path) -> list[Picture]:
    """Of each data set and model first all cases in one figure, then each case on its own."""
    taken: set[str] = set()
    made: list[Picture] = []
    for dataset, model in dict.fromkeys((p.dataset, p.model) for p in panels):
        own = [p for p in panels if (p.dataset, p.model) == (dataset, model)]
        losses, rule = ladder_losses(frames, own)
        ladder = draw_ladder(own, losses, rule, folder, slug(f"ladder-{dataset}-{model}", taken))
        made += [ladder] if ladder else []
        made += [draw_panel(p, folder, slug(f"slice-{p.dataset}-{p.model}-{p.case}", taken)) for p in own]
    return made


def ladder_losses(frames: Frames, panels: Sequence[Panel]) -> tuple[list[str], str]:
    """The losses that one figure of several cases shows, and by what rule where it does not show all."""
    there = [x for x in panels[0].predictions if all(x in p.predictions for p in panels)]
    rows = rows_of(frames, panels[0].dataset, panels[0].model)  # of several splits none has this name
    measure = dice_of(rows)
    if len(there) <= LADDER or measure is None:
        return there[:LADDER], "" if len(there) <= LADDER else f"Shown are the first {LADDER} of {len(there)} losses."
    means = patient_means(rows, measure, there).mean().sort_values(ascending=False, kind="stable")
    order = [str(x) for x in means.index]
    picks = [*order[:2], order[len(order) // 2], *order[-2:]]
    return picks, f"Shown are the best two, the middle one and the last two of {len(order)} losses by mean DSC."


def _clear(out: Path, formats: Sequence[str]) -> None:
    """Remove what an earlier report left in these formats, and nothing else: other formats and records stay."""
    # the page shows what is drawn as SVG or PNG, LaTeX what is drawn as PDF
    drawings = [*(".svg", ".png") * ("html" in formats), *(".pdf",) * ("latex" in formats)]
    tables = [ending for name in formats for ending in _TABLES[name]]
    for folder, endings in (("figures", drawings), ("tables", tables)):
        for path in sorted((out / folder).glob("*")):
            if path.suffix in endings and path.is_file():
                path.unlink()
    if "csv" in formats:
        (out / "cross.csv").unlink(missing_ok=True)  # not every suite has one
    (out / "tables").mkdir(exist_ok=True)


def _raw(frame: pd.DataFrame) -> pd.DataFrame:
    """As in the records: an empty field where there is no fold, and no column of our own but the score."""
    raw = frame.drop(columns=["group", "length"], errors="ignore")
    raw["fold"] = raw["fold"].map({f: "" if f == NO_FOLD else str(f) for f in raw["fold"].unique()})
    return raw
