"""The arguments of `bench records`. Nothing heavy: the command line makes them for every verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from harness.paths import folder


def records_arguments(parser: argparse.ArgumentParser, root: str | None, verb: Callable[..., int]) -> None:
    """Add export, import and merge to the parser of `bench records`."""
    parser.description = "Pass records on: packed with digests, checked when they are read; nothing in them is run."
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    export = kinds.add_parser("export", help="pack records, curves and case rows of a suite")
    export.add_argument("suite", metavar="SUITE", help="a suite file, or the name of one that ships with bench")
    export.add_argument("--data", type=folder, default=root, metavar="DIR", help="folder of data sets (or BENCH_DATA)")
    export.add_argument(
        "--out",
        type=folder,
        action="append",
        metavar="DIR",
        help="folder of results (default: runs); several are merged",
    )
    export.add_argument("--only", action="append", default=[], metavar="KEY=GLOB", help="only cells that match")
    export.add_argument("--quick", action="store_true", help="the records of the suite's small form")
    taken = kinds.add_parser("import", help="check packed records and lay them beside those that are there")
    taken.add_argument("source", type=Path, metavar="FILE", help="a zip file or folder of `bench records export`")
    taken.add_argument("--to", type=Path, metavar="DIR", help="folder of records (default: reports/SUITE/records)")
    taken.add_argument("--digest", metavar="sha256:HEX", help="what export printed; anything else is refused")
    merge = kinds.add_parser(
        "merge", help="pack the records of several archives as one; of two results the first stays"
    )
    merge.add_argument("sources", type=Path, nargs="+", metavar="FILE", help="zip files or folders of one suite")
    for one in (export, merge):
        one.add_argument("--to", type=Path, required=True, metavar="FILE.zip|DIR", help="the archive to write")
    for one in (export, taken):
        one.add_argument(
            "--reports", type=Path, default=Path("reports"), metavar="DIR", help="folder of reports (default: reports)"
        )
    for one in (export, taken, merge):
        one.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(verb=verb)
