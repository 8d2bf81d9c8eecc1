"""Arguments of the verbs that run cells on this machine."""

from __future__ import annotations

import argparse


def add_local_arguments(parser: argparse.ArgumentParser) -> None:
    """Where cells run on this machine, and how many at once."""
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="cells that train at once (default: one a core, as far as memory goes; on GPUs --per-device for each); "
        "with --on slurm of each array of jobs",
    )
    parser.add_argument(
        "--devices",
        "--device",
        default="auto",
        dest="device",
        metavar="NAMES",
        help="auto (all GPUs, else the CPU), cpu, cuda:N or several: cuda:0,cuda:1 (default: auto)",
    )
    parser.add_argument("--per-device", type=int, metavar="N", help="cells that train at once on each GPU (default: 1)")
    parser.add_argument(
        "--overlap",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="one process more on each device, so that cells are evaluated while others train (default: on GPUs)",
    )
