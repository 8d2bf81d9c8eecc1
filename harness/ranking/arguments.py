"""Arguments of `bench rank`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.backends.arguments import add_cluster_arguments
from harness.local_arguments import add_local_arguments
from harness.paths import folder


def add_arguments(parser: argparse.ArgumentParser, root: str | None) -> None:
    """Add what `bench rank` takes; `root` is the default of --data."""
    parser.description = (
        "Check losses, train and measure them alone on a suite whose other losses have records, and say where they "
        "stand: tier, difference from the baseline with its interval, chance of rank 1, gains and losses by class."
    )
    parser.add_argument(
        "names", nargs="+", metavar="LOSS... SUITE", help="file.py:Class, file.py:Class(gamma=2), a name; then a suite"
    )
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="an argument of the loss, where there is one"
    )
    parser.add_argument("--baseline", metavar="LOSS", help="compare with this loss instead of the suite's baseline")
    parser.add_argument("--data", type=folder, default=root, metavar="DIR", help="folder of data sets (or BENCH_DATA)")
    parser.add_argument(
        "--out",
        type=folder,
        action="append",
        metavar="DIR",
        help="folder of results (default: runs); of several, the others are read only",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="folder of reports and of the committed records in REPORTS/*/records (default: reports)",
    )
    parser.add_argument("--quick", action="store_true", help="a small form of the suite on the phantom, in minutes")
    parser.add_argument(
        "--rerun", choices=("diverged", "stale", "all"), help="also run cells of these losses of this state again"
    )
    add_local_arguments(parser)
    add_cluster_arguments(parser)
    parser.add_argument("--no-report", action="store_true", help="leave out the report in REPORTS/SUITE+LOSS")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
