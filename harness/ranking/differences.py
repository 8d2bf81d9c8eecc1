"""What differs between the records of the ranked losses and those of the others, as sentences. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from harness.plan import Entry

NAMES = {
    "device": "the device", "threads": "the number of threads", "instructions": "the processor's instructions",
    "platform": "the operating system", "bench": "the version of bench", "python": "the version of Python",
    "engine": "the engine of training", "fused_cells": "the number of cells trained as one",
}  # fmt: skip
PAIRED = {"init": "initial weights", "batches": "batches"}


def differences(entries: Sequence[Entry], ranked: Sequence[str]) -> list[str]:
    """Sentences on hardware, versions, sources, pairing and missing records; empty where nothing differs.

    Args:
        entries: Cells with their records, those of the ranked losses and those of the others.
        ranked: Labels of the ranked losses.
    """
    ours = [e for e in entries if e.cell.loss_label in ranked]
    theirs = [e for e in entries if e.cell.loss_label not in ranked]
    return [*_environments(ours, theirs), *_stale(theirs), *_pairing(ours, theirs), *_gaps(theirs)]


def hardware_differs(entries: Sequence[Entry], ranked: Sequence[str]) -> bool:
    """Whether times cannot be compared: devices, processors, threads or torch are not the same."""
    ours = _values([e for e in entries if e.cell.loss_label in ranked])
    theirs = _values([e for e in entries if e.cell.loss_label not in ranked])
    return any(
        ours[k] | theirs[k] != ours[k]
        for k in ("device", "engine", "instructions", "platform", "processes", "threads", "torch")
    )


def load(entries: Sequence[Entry]) -> str:
    """Why times of steps cannot be compared although the hardware is the same; empty where they can.

    Records say how many processes shared a GPU, and nothing of what else ran on the processors.
    """
    found = _values([e for e in entries if e.record is not None and e.record.status == "ok"])
    most = max((int(n) for n in found["processes"]), default=1)
    if most > 1:
        return f"up to {most} processes shared the device"
    if any(device.startswith("cpu") for device in found["device"]):
        return "no record says what else ran on the processors"
    return ""


def _environments(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[str]:
    mine, others = _values(ours), _values(theirs)
    out = []
    for key in sorted((mine.keys() | others.keys()) - {"processes"}):  # which change times alone
        if mine[key] != others[key] and mine[key] and others[key]:
            name = NAMES.get(key, f"the version of {key}")
            here, there = (", ".join(sorted(v)) for v in (mine[key], others[key]))
            out.append(f"Not the same: {name} is {here} for what is ranked and {there} for the others.")
    if out:
        out.append("The scores may differ in part because of this.")
    return out


def _values(entries: Sequence[Entry]) -> defaultdict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        environment = entry.record.environment if entry.record else {}
        for key, value in ({"engine": "single", "processes": 1} | environment if environment else {}).items():
            if key not in ("engine_note", "instead_of"):
                found[key].add(str(value))
    return found


def _stale(theirs: Sequence[Entry]) -> list[str]:
    """Records of others whose source has changed since: they count, because no version says that numbers changed."""
    old = [e for e in theirs if e.state == "stale"]
    if not old:
        return []
    changed: dict[str, None] = {}
    for entry in old:
        was = entry.record.sources if entry.record else {}
        for key, digest in entry.cell.sources.items():
            if was.get(key) != digest:
                named = {"loss": f"loss {entry.cell.loss_label}", "model": f"model {entry.cell.model_label}"}
                changed[named.get(key, key)] = None
    return [
        f"{len(old)} of {len(theirs)} records of the others were made with an earlier source of {', '.join(changed)}; "
        "they count, because no version was raised since. `bench run SUITE --rerun stale` measures them anew."
    ]


def _pairing(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[str]:
    """Whether the trainings of one point began with the same weights and saw the same batches."""
    others: dict[Any, list[Entry]] = defaultdict(list)
    for entry in theirs:
        others[_point(entry)].append(entry)
    out = []
    for key, name in PAIRED.items():
        apart = 0
        for entry in ours:
            mine = entry.record.fingerprints.get(key) if entry.record else None
            rest = {e.record.fingerprints.get(key) for e in others[_point(entry)] if e.record} - {None}
            apart += mine is not None and bool(rest - {mine})
        if apart:
            out.append(
                f"NOT PAIRED: in {apart} of {len(ours)} cells the {name} are not those of the other losses; other "
                "versions or hardware draw or add up otherwise. Effects then hold the chance of the start, too."
            )
    return out


def _gaps(theirs: Sequence[Entry]) -> list[str]:
    lacking: dict[str, int] = defaultdict(int)
    for entry in theirs:
        if entry.state not in ("ok", "diverged", "stale", "skip"):
            lacking[entry.cell.loss_label] += 1
    if not lacking:
        return []
    named = ", ".join(f"{loss} ({n})" for loss, n in lacking.items())
    return [
        f"Without a record, so not in the comparison: {named} of {len(theirs)} cells. `bench run SUITE` makes them."
    ]


def _point(entry: Entry) -> tuple[Any, ...]:
    cell = entry.cell
    return cell.dataset, cell.data["split"], cell.data["fold"], cell.model_label, cell.seed
