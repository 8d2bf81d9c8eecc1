"""Write the tables of a report: each layout as HTML, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report import latex
from harness.report.csvfile import write_csv
from harness.report.frames import Frames
from harness.report.layouts import LAYOUTS, Numbers, build
from harness.report.page import TEMPLATES, environment
from harness.report.published import compare
from harness.report.view import TableView
from harness.suite_file import FORMATS


def write_tables(
    frames: Frames,
    layout: Sequence[str],
    out_tables_dir: Path,
    published: str | None = None,
    *,
    specs: Mapping[str, Any] | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[TableView]:
    """Write `LAYOUT.html`, `LAYOUT.csv` and `LAYOUT.tex` for every table of the report.

    Args:
        frames: The prepared frames.
        layout: Sections of the report; those that are no table are passed over.
        out_tables_dir: Folder for the files; made if needed.
        published: A published table to set the numbers beside, in files called `published`.
        specs: Specification of every loss by its label, see `harness.report.published.compare`.
        formats: Which of `FORMATS` to write.

    Returns:
        The tables in the order of the layout; `layout` of a table is its section. One without columns is sentences,
        and has no LaTeX file; without numbers it has no CSV file either.

    Raises:
        BenchError: There is no such published table.
    """
    numbers = Numbers(frames)
    made = {name: build(numbers, name) for name in dict.fromkeys(layout) if name in LAYOUTS}
    if published is not None:
        made["published"] = [compare(numbers, published, specs)]
    out_tables_dir.mkdir(parents=True, exist_ok=True)
    for name, views in made.items():
        write_views(name, views, out_tables_dir, formats)
    return [v for views in made.values() for v in views]


def write_style(folder: Path) -> None:
    """Write `style.css`, which all tables of the folder share, unless it is there."""
    text = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    path = folder / "style.css"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_views(name: str, views: Sequence[TableView], folder: Path, formats: Sequence[str] = FORMATS) -> None:
    """Write `NAME.html`, `NAME.csv` and `NAME.tex`; nothing where there is no table and no sentence."""
    if not views:
        return
    path = folder / name
    title = "Beside the published numbers" if name == "published" else name.replace("_", " ")
    if "html" in formats:
        write_style(folder)
        html = environment().get_template("survey_page.html.j2").render(title=title, views=views)
        path.with_suffix(".html").write_text(html + "\n", encoding="utf-8")
    kept = [v.frame for v in views if not v.frame.empty]
    if kept and "csv" in formats:
        write_csv(pd.concat(kept, ignore_index=True), path.with_suffix(".csv"))
    if "latex" in formats and any(v.columns for v in views):
        path.with_suffix(".tex").write_text(latex.render(views), encoding="ascii")
