"""Where the numbers come from: the rows of the cells, and what the user says about data, commands and environment."""

from __future__ import annotations

import glob
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.checks import shown_fold
from harness.report.frames import NO_FOLD, Frames

MAX_ROWS = 2000
KNOWN = ("suite", "commands", "data", "environment", "notes", "learning_rates", "generated")


def cell_rows(frames: Frames, about: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One row per cell for the table of provenance, at most `MAX_ROWS`; cells.csv has them all.

    Args:
        frames: The prepared frames.
        about: What the user tells; its first command `bench run SUITE` is narrowed to each cell, unless the column
            `command` of the cells says how the cell was run.
    """
    columns = ["group", "model", "loss", "seed", "status", "lr", "steps", "device", "torch", "train_id", "eval_id"]
    run = next((c for c in _sentences((about or {}).get("commands")) if c.startswith("bench run ")), "")
    rows = []
    for r in frames.cells.head(MAX_ROWS).to_dict("records"):
        row: dict[str, Any] = {c: r[c] for c in columns}
        command = plain(r.get("command")) or (cell_command(run, r) if run else "")
        row |= {"fold": shown_fold(int(r["fold"])), "command": command, "lr": plain(r["lr"])}
        row["steps"] = "" if math.isnan(r["steps"]) else f"{r['steps']:.0f}"
        rows.append(row)
    return rows


def cell_command(run: str, cell: Mapping[Any, Any]) -> str:
    """The command that makes one cell of a suite: `run` with a filter for each of its names.

    A filter is a glob, so signs that mean something in a glob are escaped where a name holds them.
    """
    keys = ["loss", "model", "dataset", *(["fold"] if int(cell["fold"]) != NO_FOLD else []), "seed"]
    named = [f"{key}={_literal(str(cell[key]))}" for key in keys]
    return " ".join([run, *(f"--only {shlex.quote(one)}" for one in named)])


def _literal(name: str) -> str:
    return glob.escape(name) if re.search(r"[*?\[]", name) else name


def provenance(about: Mapping[str, Any]) -> dict[str, Any]:
    """Bring `about` to one form: texts, lists of sentences, lists of (name, text) pairs."""
    rest = [(key.replace("_", " "), plain(value)) for key, value in about.items() if key not in KNOWN]
    return {
        "suite": plain(about.get("suite")),
        "generated": plain(about.get("generated")),
        "commands": _sentences(about.get("commands")),
        "notes": _sentences(about.get("notes")),
        "learning_rates": _sentences(about.get("learning_rates")),
        "data": [_pairs(entry) for entry in _entries(about.get("data"))],
        "environment": [_pairs(entry) for entry in _entries(about.get("environment"))],
        "rest": rest,
    }


def plain(value: Any) -> str:
    """Any value as text; nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{k}: {plain(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(plain(v) for v in value)
    return str(value)


def _sentences(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return [f"{k}: {plain(v)}" for k, v in value.items()]
    return [plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else [plain(value)]


def _entries(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        nested = [v for v in value.values() if isinstance(v, Mapping)]
        return [{"name": k, **v} for k, v in value.items()] if value and len(nested) == len(value) else [value]
    return [value] if isinstance(value, str) else list(value)


def _pairs(entry: Any) -> list[tuple[str, str]]:
    if isinstance(entry, Mapping):
        return [(str(k).replace("_", " "), plain(v)) for k, v in entry.items() if plain(v)]
    return [("", plain(entry))]
