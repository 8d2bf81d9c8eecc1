"""`python -m harness.reference [--measure [--again NAME|all ...]] [--check] [--out docs/losses]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from harness.errors import BenchError
from harness.losses import LOSSES
from harness.reference import measure, out_of_date, write_reference


def main() -> int:
    """Measure if asked to, then write the pages; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.reference", description="Write the losses' pages.")
    parser.add_argument("--out", type=Path, default=Path("docs/losses"), metavar="DIR", help="default: docs/losses")
    parser.add_argument(
        "--measure", action="store_true", help="run the check of losses that changed, and their behaviour"
    )
    parser.add_argument("--again", nargs="+", default=[], metavar="LOSS", help="measure these anyway, or all")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is out of date")
    args = parser.parse_args()
    again = list(LOSSES) if "all" in args.again else args.again
    try:
        unknown = [name for name in again if name not in LOSSES]
        if unknown:
            raise BenchError(f"--again: there is no loss {unknown[0]!r}.")
        if args.check:
            found = out_of_date(args.out)
            print("\n".join(found) or f"{args.out} is up to date.")
            return 1 if found else 0
        if args.measure or again:
            torch.set_num_threads(1)  # the numbers of one thread, whatever the machine
            measure.measure(args.out, again)
        changed = write_reference(args.out)
    except BenchError as error:
        print(f"reference: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(changed)} files written or removed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
