"""The page: turns tables and pictures into rows for the template. All text is escaped by the template engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.metrics.table import METRICS
from harness.report import checks
from harness.report.board import BoardColumn, boards
from harness.report.charts import chart, points_per_line
from harness.report.figures import CurvePicture, Picture
from harness.report.frames import FAILED, Frames
from harness.report.layouts import APART
from harness.report.provenance import cell_rows, provenance
from harness.report.tables import measures
from harness.report.view import TableView
from harness.report.words import STATUS, attribute, count, joined, label, number

# What all drawings together may take of the page, in bytes; beyond it the page refers to the files beside it.
INLINE_BUDGET = 4_000_000
TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """The template engine with escaping on for every template."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update({"num": number, "word": STATUS.__getitem__, "label": label, "attribute": attribute})
    return env


def render(
    title: str,
    description: str,
    frames: Frames,
    pictures: Mapping[str, Sequence[Picture]],
    order: Sequence[str],
    about: Mapping[str, Any],
    *,
    views: Sequence[TableView] = (),
    verdict: str,
    notice: str = "",
    extra: Mapping[str, Sequence[BoardColumn]] | None = None,
    equivalent: str = "",
) -> str:
    """The whole page as HTML.

    Args:
        title: Name of the suite.
        description: Sentences under the title.
        frames: The prepared frames.
        pictures: Section to its pictures.
        order: Sections between leaderboard and notes.
        about: What the user tells about data, commands and environment.
        views: The tables; each stands in the section of its `layout`.
        verdict: The sentence under the headline.
        notice: A warning on top; nothing where it is empty.
        extra: Data set to further columns of its leaderboard, see `board.BoardColumn`.
        equivalent: What the verdict `equivalent` means; nothing where there is no such verdict.
    """
    middle, cost_figures = _sections(frames, pictures, order, views)
    pairs = checks.fairness(frames)
    return environment().get_template("index.html.j2").render(
        title=title,
        description=description,
        headline=headline(frames),
        fairness_line=fairness_line(pairs),
        verdict=verdict,
        notice=notice,
        pooled=[METRICS[n].title for n in frames.pooled],
        apart=APART,
        equivalent=equivalent,
        one_seed=frames.cells["seed"].nunique() < 2,
        boards=boards(frames, extra),
        verdicts=any(c.heading == "Tier" for columns in (extra or {}).values() for c in columns),
        facets=facets(frames),
        middle=middle,
        failed=failed_rows(frames),
        waiting=waiting_rows(frames),
        pairs=pairs,
        empties=checks.empties(frames),
        partial=[METRICS[n].title for n in checks.partial(frames)],
        policy=checks.empty_policy(frames),
        costs=cost_blocks(frames),
        cost_figures=cost_figures,
        cells=cell_rows(frames, about),
        n_cells=len(frames.cells),
        about=provenance(about),
        several_groups=len(frames.groups) > 1,
        groups=frames.groups,
        has_folds=bool((frames.cells["fold"] >= 0).any()),
    ) + "\n"  # fmt: skip


def headline(frames: Frames) -> str:
    """What was measured, in one sentence."""
    found = {str(k): int(v) for k, v in frames.cells["status"].value_counts().items()}
    folds = frames.cells.loc[frames.cells["fold"] >= 0, "fold"].nunique()
    parts = [
        count(len(frames.losses), "loss", "losses"),
        count(len(frames.models), "model"),
        _data_sets(frames),
        *([count(folds, "fold")] if folds else []),
        count(frames.cells["seed"].nunique(), "seed"),
    ]
    failed = {s: found[s] for s in FAILED if s in found}
    tail = [f"{found.get('ok', 0)} measured"]
    if failed:
        tail.append(f"{sum(failed.values())} failed ({', '.join(f'{n} {STATUS[s]}' for s, n in failed.items())})")
    else:
        tail.append("none failed")
    tail += [f"{found[s]} {STATUS[s]}" for s in ("skip", "missing", "stale") if s in found]
    return f"{' × '.join(parts)}. Of {count(len(frames.cells), 'planned run')}, {joined(tail)}."


def _data_sets(frames: Frames) -> str:
    """How many data sets; one with worse labels or fewer patients is no other data set."""
    if not frames.settings:
        return count(len(frames.groups), "data set")
    bases = {frames.settings[g].base if g in frames.settings else g for g in frames.groups}
    return f"{count(len(bases), 'data set')} in {count(len(frames.groups), 'setting')} of labels or patients"


def fairness_line(pairs: Sequence[checks.Pairing]) -> tuple[str, bool]:
    """Whether the losses were compared on equal terms, in one sentence, and whether that is good news."""
    several = [p for p in pairs if p.losses > 1]
    unequal = [p for p in pairs if "different" in (p.init, p.batches)]
    unknown = [p for p in pairs if "not recorded" in (p.init, p.batches)]
    if unequal:
        where = f"Not paired: in {len(unequal)} of {len(pairs)} comparisons"
        return f"{where} the losses started from different weights or saw different batches.", False
    if unknown:
        where = f"In {len(unknown)} of {len(pairs)} comparisons"
        return f"{where} a fingerprint is missing: equal starts are not proven there.", False
    if not several:
        return "Nothing to compare: no two losses ran from the same seed.", True
    return "Every loss started from the same weights and saw the same first batches, in each comparison.", True


def facets(frames: Frames) -> dict[str, list[str]]:
    """What the page can be filtered by: the choices of each kind, as the tables write them."""
    metrics = [m.heading for m in measures(frames.cases, frames.pooled)] if len(frames.cases) else []
    classes = [str(c).replace("_", " ") for c in frames.cases["class"].unique()]
    return {
        "dataset": frames.groups,
        "model": frames.models,
        "metric": list(dict.fromkeys(metrics)),
        "class": list(dict.fromkeys(classes)),
    }


def cost_blocks(frames: Frames) -> dict[str, dict[str, list[checks.Cost]]]:
    """Data set to model to the costs of its losses, in planned order."""
    out: dict[str, dict[str, list[checks.Cost]]] = {}
    for cost in checks.costs(frames):
        out.setdefault(cost.group, {}).setdefault(cost.model, []).append(cost)
    return out


def failed_rows(frames: Frames) -> list[dict[str, Any]]:
    """Each failed cell with its message."""
    rows = frames.cells[frames.cells["status"].isin(FAILED)].to_dict("records")
    return [{str(k): v for k, v in r.items()} | {"fold": checks.shown_fold(int(r["fold"]))} for r in rows]


def waiting_rows(frames: Frames) -> list[dict[str, Any]]:
    """Cells that were skipped, not run or are stale: one row per loss, with its seeds."""
    rest = frames.cells[frames.cells["status"].isin(("skip", "missing", "stale"))]
    rows = []
    for key, part in rest.groupby(["status", "group", "model", "loss", "message"], sort=False):
        status, group, model, loss, message = key
        seeds = ", ".join(str(s) for s in sorted(set(part["seed"])))
        row = {"status": status, "group": group, "model": model, "loss": loss, "message": message}
        rows.append(row | {"runs": len(part), "seeds": seeds})
    return rows


def _sections(
    frames: Frames,
    pictures: Mapping[str, Sequence[Picture]],
    order: Sequence[str],
    views: Sequence[TableView],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The sections in the user's order, and the figures for the section on cost, which the page always has."""
    left = INLINE_BUDGET
    drawn = _charts(frames, [p for name in order for p in pictures.get(name, ())])
    middle: list[dict[str, Any]] = []
    cost: list[dict[str, Any]] = []
    figures: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(order, key=lambda n: n == "qualitative"):  # slices are large, so they take what the rest leaves
        figures[name], left = _figures(pictures.get(name, ()), left, drawn)
    for name in order:
        section: dict[str, Any] = {"name": name, "views": [v for v in views if v.layout == name]}
        section["figures"] = figures[name]
        if name == "cost":
            cost = section["figures"]
        elif section["views"] or section["figures"] or name == "curves":
            middle.append(section)
    return middle, cost


def _charts(frames: Frames, pictures: Sequence[Picture]) -> dict[str, dict[str, Any]]:
    """Name of a figure of curves to the numbers that the page draws itself."""
    curves = [(p, p.kind) for p in pictures if isinstance(p, CurvePicture) and p.kind is not None]
    keep = points_per_line(frames, len({kind.column for _, kind in curves}))
    return {p.name: chart(frames, p.group, kind, keep) for p, kind in curves}


def _figures(
    pictures: Sequence[Picture], left: int, drawn: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """Inline while the page stays small; beyond that the page refers to the file beside it."""
    out = []
    for p in pictures:
        fits = len(p.svg) <= left
        left -= len(p.svg) if fits else 0
        # Not every picture belongs to one data set or model, and few can be looked through.
        more = {name: getattr(p, name, "") for name in ("group", "model", "viewer")}
        # The SVG is our own drawing; matplotlib has escaped the names in it.
        out.append({"picture": p, "svg": Markup(p.svg) if fits else None, "chart": drawn.get(p.name), **more})
    return out, left
