"""The report of a ranking: that of the suite with the ranked losses in it, and `rank.json`. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell import Place
from harness.errors import BenchError
from harness.metrics.table import metric_of
from harness.panels import panels
from harness.plan import Entry
from harness.ranking.asked import RankSuite
from harness.records import write_atomic
from harness.results import about_of, called, notes_of, run_command, settings_in, voxels_of
from harness.rows import Tables
from harness.tuning.told import told

if TYPE_CHECKING:
    from harness.ranking.rank import Ranked
    from harness.report import Panel
    from harness.report.verdicts import Ranking

RESULT = "rank.json"


def write_page(
    suite: RankSuite,
    entries: Sequence[Entry],
    tables: Tables,
    ranking: Ranking,
    result: Ranked,
    place: Place,
    reports: Path,
) -> Path:
    """Write `REPORTS/SUITE+LOSS`; returns its page.

    Args:
        suite: With the ranked losses.
        entries: Its plan as it is compared.
        tables: Of the same plan.
        ranking: What is ranked by.
        result: What was found: its sentences stand under the title.
        place: Where results and data are.
        reports: Folder of reports.

    Raises:
        BenchError: The folder takes no files.
    """
    from harness.report import write_report

    out = reports / suite.name
    shown: list[Panel] = []
    notes: list[str] = []
    if "qualitative" in suite.spec.report.layout:
        shown, notes = panels(suite, entries, place, tables.cases)
    first, rest = said(result)
    about = about_of(
        suite, entries, [*rest, *result.differences, *result.notes, *notes, *notes_of(suite, entries, reports, [])]
    )
    about["commands"] = [run_command(suite), _rank(suite)]
    try:
        page = write_report(
            suite.name,
            " ".join([*first, suite.spec.description.strip()]),
            tables.cells.assign(command=_commands(suite, entries)),
            tables.cases,
            tables.curves,
            out,
            layout=suite.spec.report.layout,
            about=about,
            panels=shown,
            pooled=[m for m in suite.spec.metrics if metric_of(m)[0].scope == "dataset"],
            voxels=voxels_of(suite),
            settings=settings_in(suite, suite.cells),
            ranking=ranking,
            published=suite.spec.report.published,
            specs={c.loss_label: c.loss for c in suite.cells},
            tuned=told(entries),
        )
        text = json.dumps(result.as_dict() | {"page": page.name}, indent=1, ensure_ascii=False)
        write_atomic(out / RESULT, lambda stream: stream.write(text.encode() + b"\n"))
    except OSError as error:
        raise BenchError(f"the report cannot be written to {out}: {error.strerror or error}.") from None
    return page


def said(result: Ranked) -> tuple[list[str], list[str]]:
    """The places as sentences: duplicates and the first metric, and the rest with what more seeds would buy."""
    first: list[str] = []
    rest: list[str] = []
    for s in result.standings:
        if s.duplicate_of:
            first.append(duplicate_sentence(s.loss, s.duplicate_of))
        if not s.places:
            first.append(f"{s.loss}: {s.missing}.")
        for place in s.places:
            leading = place.metric == s.places[0].metric
            (first if leading else rest).append(f"{s.loss}: {place.said}")
            if place.more:
                rest.append(f"{s.loss}, {place.dataset}, {place.model}, {place.metric}: {place.more}")
    return first, rest


def duplicate_sentence(loss: str, others: Sequence[str]) -> str:
    """What a duplicate is, and by what."""
    return (
        f"{loss} is {' and '.join(others)} under another name: value and gradient agree to 1e-5 on the scenes of the "
        "check, half way through a training."
    )


def _rank(suite: RankSuite) -> str:
    losses = " ".join(shlex.quote(text) for text in suite.asked)
    return f"bench rank {losses} {called(suite)}{' --quick' if suite.quick else ''}"


def _commands(suite: RankSuite, entries: Sequence[Entry]) -> list[str]:
    """The command that makes each cell."""
    from harness.report.provenance import cell_command

    out = []
    for entry in entries:
        labels = entry.cell.labels
        named = labels | {"fold": -1 if labels["fold"] is None else labels["fold"]}
        out.append(_rank(suite) if entry.cell.loss_label in suite.added else cell_command(run_command(suite), named))
    return out
