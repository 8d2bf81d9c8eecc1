"""Arguments of the verbs that run cells: where."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.backends import PLACES


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--on`, `--cluster` and `--detach`."""
    parser.add_argument(
        "--on", choices=PLACES, default="local", help="run the cells on this machine or on a cluster (default: local)"
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="a YAML file that describes the cluster")
    parser.add_argument(
        "--detach", action="store_true", help="submit to the cluster and end; the same command attaches again"
    )
