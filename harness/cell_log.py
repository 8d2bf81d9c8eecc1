"""What a person reads of a cell besides its record: the lines of its log, and what helps where memory ran out."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from harness.cell import Cell, Place

LOG = "log.txt"
# "Tried to allocate 2.50 GiB" (CUDA), "you tried to allocate 40000 bytes" (torch on a CPU),
# "Unable to allocate 7.45 GiB for an array" (numpy)
_ASKED = re.compile(r"allocate ([0-9.]+) ?(bytes|[KMGTP]iB)")


def log(folder: Path, text: str) -> None:
    """Add a line with the time to a cell's log; a full disk loses the line and nothing else."""
    with contextlib.suppress(OSError), (folder / LOG).open("a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def memory_sentence(cell: Cell, text: str, place: Place, training: bool = True) -> str:
    """The message of a cell that ran out of memory.

    Args:
        cell: The cell.
        text: Of the error that the allocator raised.
        place: Where it ran, and beside how many others.
        training: Whether it was being trained, and not evaluated.
    """
    found = _ASKED.search(text)
    asked = f"tried to allocate {_size(float(found[1]), found[2])} on {place.device}" if found else f"on {place.device}"
    if not training:
        return f"out of memory: {asked}, in the evaluation; the training is kept{_fewer(place, '; ')}"
    return f"out of memory: {asked}; {remedy(cell, place)}"


def remedy(cell: Cell, place: Place) -> str:
    """What helps cells that lack memory: fewer at once, or less for each, the same for all losses."""
    fewer, train = _fewer(place), cell.train
    batch, parts = int(train["batch"]), int(train.get("accumulate", 1))
    more = next((n for n in range(parts + 1, batch + 1) if batch % n == 0), None)
    if more is None:
        return f"{fewer}the same for all losses: a smaller `size` of slices or patches, or a smaller model"
    return (
        f"{fewer}the same for all losses: `train: {{accumulate: {more}}}` ({batch // more} of the batch's {batch} "
        f"samples at once instead of {batch // parts}), or a smaller `batch`"
    )


def _fewer(place: Place, before: str = "") -> str:
    """What to do where several cells share a device."""
    if place.beside == 1:
        return ""
    flag = "--workers" if place.device == "cpu" else place.sharing
    if place.turns is not None:  # of one that trains at once there are no fewer
        flag = "--no-overlap" if place.turns.count == 1 else f"{flag} or --no-overlap"
    return f"{before}{place.beside} cells share it, so fewer at once ({flag})" + ("" if before else ", or, ")


def _size(number: float, unit: str) -> str:
    if unit != "bytes":
        return f"{number:g} {unit}"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):  # noqa: B007
        if number < 1024:
            break
        number /= 1024
    return f"{number:.3g} {unit}"
