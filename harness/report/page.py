"""The page: turns tables and pictures into rows for the template. All text is escaped by the template engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from harness.metrics.table import METRICS
from harness.report import checks
from harness.report.figures import Picture
from harness.report.frames import FAILED, Frames, by_group
from harness.report.provenance import cell_rows, provenance
from harness.report.tables import (
    Measure,
    Spread,
    SurveyTable,
    leaderboard,
    measures,
    of_measure,
    run_means,
    spread,
    triples,
)

INLINE_BUDGET = 650_000
NO_VERDICT = (
    "No verdicts: this page shows means and their spread over seeds. Which differences would hold for other patients "
    "and other trainings takes confidence intervals, which this version does not compute."
)
WORDS = {
    "ok": "measured",
    "diverged": "diverged",
    "oom": "out of memory",
    "timeout": "timed out",
    "error": "crashed",
    "interrupted": "interrupted",
    "skip": "skipped",
    "missing": "not run yet",
    "stale": "stale",
}
STRIP = (132.0, 6.0)  # width and inner margin of the drawing of single runs, in px


def environment() -> Environment:
    """The template engine with escaping on for every template."""
    folder = Path(__file__).parent / "templates"
    env = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update({"num": number, "word": WORDS.__getitem__, "label": label})
    return env


def render(
    title: str,
    description: str,
    frames: Frames,
    tables: Sequence[SurveyTable],
    means: Sequence[SurveyTable],
    pictures: Mapping[str, Sequence[Picture]],
    order: Sequence[str],
    about: Mapping[str, Any],
) -> str:
    """The whole page as HTML.

    Args:
        title: Name of the suite.
        description: Sentences under the title.
        frames: The prepared frames.
        tables: One survey table per data set.
        means: The same without the classes, for the section `hyperparameters`.
        pictures: Section to its pictures.
        order: Sections between leaderboard and failures.
        about: What the user tells about data, commands and environment.
    """
    middle = []
    left = INLINE_BUDGET
    for name in order:
        if name in ("survey_table", "hyperparameters"):
            shown = [survey_view(t) for t in (tables if name == "survey_table" else means) if t.columns]
            middle.append({"name": name, "tables": shown, "figures": []})
        elif pictures.get(name):
            figures, left = _figures(pictures[name], left)
            middle.append({"name": name, "tables": [], "figures": figures})
        elif name == "curves":
            middle.append({"name": name, "tables": [], "figures": []})
    pairs = checks.fairness(frames)
    return environment().get_template("index.html.j2").render(
        title=title,
        description=description,
        headline=headline(frames),
        counts=key_numbers(frames),
        fairness_line=fairness_line(pairs),
        no_verdict=NO_VERDICT,
        pooled=[METRICS[n].title for n in frames.pooled],
        one_seed=frames.cells["seed"].nunique() < 2,
        boards=[board_view(frames, g) for g in frames.groups],
        middle=middle,
        failed=failed_rows(frames),
        waiting=waiting_rows(frames),
        pairs=pairs,
        empties=checks.empties(frames),
        partial=[METRICS[n].title for n in checks.partial(frames)],
        policy=checks.empty_policy(frames),
        costs=checks.costs(frames),
        cells=cell_rows(frames),
        n_cells=len(frames.cells),
        about=provenance(about),
        several_groups=len(frames.groups) > 1,
        has_folds=bool((frames.cells["fold"] >= 0).any()),
    ) + "\n"  # fmt: skip


def render_tables(title: str, tables: Sequence[SurveyTable]) -> str:
    """The survey tables alone, as a page to copy from."""
    shown = [survey_view(t) for t in tables if t.columns]
    return environment().get_template("survey_table.html.j2").render(title=title, tables=shown) + "\n"


def headline(frames: Frames) -> str:
    """What was measured, in one sentence."""
    counts = {str(k): int(v) for k, v in frames.cells["status"].value_counts().items()}
    folds = frames.cells.loc[frames.cells["fold"] >= 0, "fold"].nunique()
    parts = [
        _count(len(frames.losses), "loss", "losses"),
        _count(len(frames.models), "model"),
        _count(len(frames.groups), "data set"),
        *([_count(folds, "fold")] if folds else []),
        _count(frames.cells["seed"].nunique(), "seed"),
    ]
    failed = {s: counts[s] for s in FAILED if s in counts}
    tail = [f"{counts.get('ok', 0)} measured"]
    if failed:
        tail.append(f"{sum(failed.values())} failed ({', '.join(f'{n} {WORDS[s]}' for s, n in failed.items())})")
    else:
        tail.append("none failed")
    tail += [f"{counts[s]} {WORDS[s]}" for s in ("skip", "missing", "stale") if s in counts]
    return f"{' × '.join(parts)}. Of {_count(len(frames.cells), 'planned run')}, {_and(tail)}."


def key_numbers(frames: Frames) -> list[tuple[str, str]]:
    """The few numbers under the headline."""
    ok = int((frames.cells["status"] == "ok").sum())
    patients = frames.cases.groupby("group")["patient"].nunique().sum() if len(frames.cases) else 0
    classes = frames.cases.groupby("group")["class"].nunique().sum() if len(frames.cases) else 0
    return [
        ("runs measured", f"{ok} / {len(frames.cells)}"),
        ("losses", str(len(frames.losses))),
        ("seeds", str(frames.cells["seed"].nunique())),
        ("test patients", str(int(patients))),
        ("classes", str(int(classes))),
    ]


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


def board_view(frames: Frames, group: str) -> dict[str, Any]:
    """The leaderboard of one data set: losses of a model ordered by the mean of the first measure, without ranks."""
    cases = frames.cases[frames.cases["group"] == group]
    found = measures(cases, frames.pooled)
    board = leaderboard(frames)
    records = cast(list[dict[str, Any]], board[board["dataset"] == group].to_dict("records"))
    extra = {(r["model"], r["loss"]): r for r in records}
    means = run_means(cases, frames.pooled)
    rows = []
    for (name, model, loss), _ in triples(frames):
        if name != group:
            continue
        own = means[(means["model"] == model) & (means["loss"] == loss)]
        rows.append(extra[model, loss] | {"spreads": [spread(of_measure(own, m)) for m in found]})
    if found:
        sign = 1 if found[0].lower_is_better else -1
        rows.sort(key=lambda r: math.inf if math.isnan(r["spreads"][0].mean) else sign * r["spreads"][0].mean)
        _add_strips(rows, found[0])
    return {
        "group": group,
        "blocks": {m: [r for r in rows if r["model"] == m] for m in by_group(frames, group, frames.cells)},
        "measures": [{"name": m.heading, "profile": m.shown_profile(found), "measure": m} for m in found],
        "axis": _axis(rows, found),
        "patients": cases["patient"].nunique(),
    }


def survey_view(table: SurveyTable) -> dict[str, Any]:
    """The survey's table with its two rows of headings."""
    found = list(dict.fromkeys(c.measure for c in table.columns))
    heads = [
        {
            "name": m.heading,
            "profile": m.shown_profile(found),
            "span": len(list(cs)),
            "lower": m.lower_is_better,
        }
        for m, cs in groupby(table.columns, key=lambda c: c.measure)
    ]
    starts = {sum(int(h["span"]) for h in heads[:i]) for i in range(len(heads))}
    names = ["mean" if c.name == "average" else c.name.replace("_", " ") for c in table.columns]
    return {
        "group": table.group,
        "heads": heads,
        "names": names,
        "decimals": [c.measure.decimals for c in table.columns],
        "rows": table.rows,
        "runs": table.runs,
        "starts": starts,
    }


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


def number(value: float, decimals: int = 2) -> str:
    """A number with fixed decimals; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", "\u2212")


def label(name: str) -> Markup:
    """A loss or model with its arguments set smaller; the text stays `focal(gamma=2)`."""
    head, bracket, tail = name.partition("(")
    if not head or not bracket or not name.endswith(")"):
        return escape(name)
    return escape(head) + Markup('<span class="args">') + escape(bracket + tail) + Markup("</span>")


def _figures(pictures: Sequence[Picture], left: int) -> tuple[list[dict[str, Any]], int]:
    """Inline while the page stays small; beyond that the page refers to the file beside it."""
    out = []
    for p in pictures:
        fits = len(p.svg) <= left
        left -= len(p.svg) if fits else 0
        # The SVG is our own drawing; matplotlib has escaped the names in it.
        out.append({"picture": p, "svg": Markup(p.svg) if fits else None})
    return out, left


def _axis(rows: Sequence[dict[str, Any]], found: Sequence[Measure]) -> tuple[float, float] | None:
    values = [v for r in rows for v in r["spreads"][0].runs] if found else []
    return (min(values) * found[0].scale, max(values) * found[0].scale) if values else None


def _add_strips(rows: Sequence[dict[str, Any]], measure: Measure) -> None:
    limits = _axis(rows, [measure])
    for row in rows:
        row["strip"] = _strip(row["spreads"][0], measure, limits) if limits else None


def _strip(s: Spread, measure: Measure, limits: tuple[float, float]) -> dict[str, Any] | None:
    if not s.runs:
        return None
    width, margin = STRIP
    low, high = limits

    def place(value: float) -> str:
        share = 0.5 if high == low else (value * measure.scale - low) / (high - low)
        return f"{margin + share * (width - 2 * margin):.1f}"

    return {
        "width": f"{width:.0f}",
        "dots": [place(v) for v in s.runs],
        "mean": place(s.mean),
        "label": "single runs: " + ", ".join(number(v * measure.scale, measure.decimals) for v in s.runs),
    }


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
