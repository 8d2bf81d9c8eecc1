"""Writing `docs/losses/`, and finding what of it is out of date."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.errors import BenchError
from harness.losses import LOSSES
from harness.reference import drawings, index, measure
from harness.reference.costs import read_costs
from harness.reference.entries import Entry, entry_of, problems
from harness.reference.pages import Facts, page

AGREEMENT = "agreement.json"


def facts_of(folder: Path) -> Facts:
    """Read the results that lie beside the pages."""
    return Facts(measure.read(folder), read_agreement(folder / AGREEMENT), read_costs(folder / "cost.json"))


def read_agreement(path: Path) -> dict[str, list[tuple[str, float]]]:
    """By loss, the references in order and the largest error; nothing where there is no file.

    Raises:
        BenchError: It is not the list that the tests write.
    """
    if not path.is_file():
        return {}
    try:
        rows = [(str(r["loss"]), str(r["oracle"]), float(r["error"])) for r in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError):
        raise BenchError(f"{path}: expected a list of loss, oracle and error; write it with the tests again.") from None
    unknown = sorted({loss for loss, *_ in rows} - set(LOSSES))
    if unknown:
        raise BenchError(f"{path}: there is no loss {unknown[0]!r}; the tests name losses as the table does.")
    return {name: sorted((oracle, error) for loss, oracle, error in rows if loss == name) for name in LOSSES}


def texts(entries: list[Entry], facts: Facts) -> dict[str, str]:
    """Every page by file name."""
    return {
        "README.md": index.overview(entries, facts),
        "checks.md": index.checks(entries, facts),
        "agreement.md": index.agreement(entries, facts),
        **{f"{entry.name}.md": page(entry, facts) for entry in entries},
    }


def figures(entries: list[Entry], facts: Facts) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """File name, digest of what it is made from, and how to draw it, for every figure."""
    groups = {entry.name: entry.taxonomy for entry in entries}
    yield "taxonomy.svg", drawings.digest_of("taxonomy", list(groups.items())), lambda: drawings.taxonomy(groups)
    yield "mismatch.svg", drawings.digest_of("mismatch", None), drawings.mismatch
    for entry in entries:
        found = facts.measured.get(entry.name)
        if found:
            curves: dict[str, Any] = found["behaviour"]
            yield (
                f"{entry.name}.svg",
                drawings.digest_of("behaviour", curves),
                lambda curves=curves: drawings.behaviour(curves),  # type: ignore[misc]
            )


def write_reference(folder: Path) -> list[str]:
    """Write what has changed, remove what nothing stands for any more, and return the names of both.

    Raises:
        BenchError: A loss lacks something that its page needs; all of them are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, facts = _entries(), facts_of(folder)
    changed = []
    wanted = texts(entries, facts)
    for name, text in wanted.items():
        if _read(folder / name) != text:
            (folder / name).write_text(text, encoding="utf-8")
            changed.append(name)
    drawn = set()
    for name, digest, draw in figures(entries, facts):
        drawn.add(name)
        if not _read(folder / name).startswith(drawings.stamp(digest)):
            (folder / name).write_text(f"{drawings.stamp(digest)}\n{draw()}", encoding="utf-8")
            changed.append(name)
    for path in _left(folder, drawn | set(wanted)):
        path.unlink()
        changed.append(path.name)
    return changed


def out_of_date(folder: Path) -> list[str]:
    """What the code and the files do not agree on, in sentences; nothing is run or drawn."""
    if not folder.is_dir():
        return [f"there is no folder {folder}"]
    entries, facts = _entries(), facts_of(folder)
    wanted = texts(entries, facts)
    found = [f"{name} is not what the code says" for name, text in wanted.items() if _read(folder / name) != text]
    names = set(wanted)
    for name, digest, _ in figures(entries, facts):
        names.add(name)
        if not _read(folder / name).startswith(drawings.stamp(digest)):
            found.append(f"{name} is not drawn from what was measured")
    found += [f"{path.name} belongs to no loss" for path in _left(folder, names)]
    found += [f"{name} has changed since it was measured" for name in LOSSES if measure.stale(name, facts.measured)]
    return found


def _entries() -> list[Entry]:
    wrong = {name: problems(name) for name in LOSSES}
    lines = [f"{LOSSES[name]} ({name}): {'; '.join(parts)}" for name, parts in wrong.items() if parts]
    if lines:
        raise BenchError("no page can be written for\n  " + "\n  ".join(lines))
    return [entry_of(name) for name in LOSSES]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _left(folder: Path, wanted: set[str]) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.suffix in (".md", ".svg") and p.name not in wanted]
