"""`bench records export|import|merge`: what was packed or laid down, in words or as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import BenchError
from harness.printing import print_json
from harness.sharing.archive import open_archive
from harness.sharing.contents import SHARED, Checked
from harness.sharing.pack import pack, pack_folder, refuse_present
from harness.sharing.place import Outcome, place_records


def records_command(args: argparse.Namespace) -> int:
    """Run one of the three; returns the exit code.

    Raises:
        BenchError: An archive is refused, or cannot be written.
    """
    done, lines = {"export": _export, "import": _import, "merge": _merge}[args.kind](args)
    if args.json:
        print_json(done)
    else:
        print("\n".join(lines))
    return 0


def _export(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from harness.plan import counts, make_plan
    from harness.suite import load_suite

    refuse_present(args.to)
    suite = load_suite(args.suite, args.quick, args.data)
    entries = make_plan(suite, args.out or [Path("runs")], args.reports, args.only)
    contents, packed = pack(suite.name, entries, args.to)
    left = {state: n for state, n in counts(entries).items() if state not in (*SHARED, "stale")}
    stale = counts(entries).get("stale", 0)
    done = {
        "suite": suite.name,
        "to": str(args.to),
        "cells": packed,
        "left_out": left,
        "stale": stale,
        "files": len(contents.files),
        "digest": contents.digest,
    }
    lines = [f"{suite.name}: {packed} of {len(entries)} cells in {args.to}", f"  digest: {contents.digest}"]
    if stale:
        lines.append(f"  {stale} are stale here: the source of a loss or model has changed since they were made")
    if left:
        lines.insert(1, "  left out: " + ", ".join(f"{n} {state}" for state, n in left.items()))
    return done, lines


def _import(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    with open_archive(args.source) as archive:
        found = archive.contents.digest
        if args.digest is not None and args.digest != found:
            raise BenchError(f"{args.source}: its digest is {found}, not {args.digest}; these are other records.")
        target = args.to or args.reports / archive.contents.suite / "records"
        outcome = place_records(archive, target)
        done = {
            "suite": archive.contents.suite,
            "from": str(args.source),
            "to": str(target),
            "digest": found,
            **_counted(outcome),
            "environments": _environments(archive.cells),
        }
        made = [f"  made with: {_words(e)}" for e in done["environments"]]
        lines = [f"{archive.contents.suite}: {_said(outcome)} in {target}", *_left(outcome), *made]
        return done, [*lines, f"  digest: {found}"]


def _merge(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    if len(args.sources) < 2:
        raise BenchError("records merge: give two archives or more.")
    refuse_present(args.to)
    suites: dict[str, Path] = {}
    parts: list[dict[str, Any]] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-records-") as scratch:
        together = Path(scratch, "records")
        for source in args.sources:
            with open_archive(source) as archive:
                suites.setdefault(archive.contents.suite, source)
                if len(suites) > 1:
                    (a, one), (b, other) = suites.items()
                    raise BenchError(f"{other}: is of the suite {b}, {one} of {a}; merge those of one suite.")
                outcome = place_records(archive, together)
                parts.append({"from": str(source), "digest": archive.contents.digest} | _counted(outcome))
                lines += [f"  {source}: {_said(outcome)}", *_left(outcome)]
        cells = sum(1 for _ in together.glob("*/*/record.json"))
        if not cells:
            raise BenchError("records merge: the archives are empty.")
        (suite,) = suites
        contents = pack_folder(suite, together, args.to)
        shutil.rmtree(together)
    done = {"suite": suite, "to": str(args.to), "cells": cells, "digest": contents.digest, "sources": parts}
    return done, [f"{suite}: {cells} cells in {args.to}", *lines, f"  digest: {contents.digest}"]


def _counted(outcome: Outcome) -> dict[str, Any]:
    return {
        "imported": len(outcome.new),
        "present": len(outcome.present),
        "kept": [
            {"train_id": c.record.train_id, "eval_id": c.record.eval_id, "cell": c.title, "reason": reason}
            for c, reason in outcome.kept
        ],
    }


def _said(outcome: Outcome) -> str:
    return f"{len(outcome.new)} new, {len(outcome.present)} there already, {len(outcome.kept)} not taken"


def _left(outcome: Outcome) -> list[str]:
    return [f"  not taken: {cell.title}: {reason}; what is there stays" for cell, reason in outcome.kept]


def _environments(cells: Iterable[Checked]) -> list[dict[str, Any]]:
    """The distinct environments, the most frequent first."""
    found = Counter(json.dumps(c.record.environment, sort_keys=True) for c in cells)
    return [json.loads(text) | {"cells": n} for text, n in found.most_common()]


def _words(environment: Mapping[str, Any]) -> str:
    about = ", ".join(f"{key} {value}" for key, value in environment.items() if key != "cells")
    return f"{about or 'unknown'} ({environment['cells']} cells)"
