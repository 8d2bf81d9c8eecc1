"""Certificates of the losses of a cell, as its record keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.check import CHECK_VERSION, Certificate, check_loss
from harness.check.scenes import CLASSES
from harness.errors import BenchError
from harness.records import write_atomic
from harness.resolve import current_digest


def certificates_of(loss: Mapping[str, Any], folder: Path, num_classes: int = CLASSES) -> dict[str, dict[str, Any]]:
    """Check every part of a loss, once for each state of its source.

    Args:
        loss: Specification of a loss or of a sum.
        folder: Where certificates are kept.
        num_classes: Classes of the data. The scenes of the check have four: arguments with one value per class are cut
            to four, or their last value is repeated.

    Returns:
        By label: `passed`, the version of the check, `failed` and `declared` (property → what was seen or the reason).
    """
    return {label: _kept({**spec, "args": _fitted(spec["args"], num_classes)}, folder) for label, spec in _parts(loss)}


def _fitted(args: Mapping[str, Any], classes: int) -> dict[str, Any]:
    return {name: _four(value, classes) for name, value in args.items()}


def _four(value: Any, classes: int) -> Any:
    if not isinstance(value, list) or len(value) != classes:
        return value
    rows = [_four(part, classes) for part in value[:CLASSES]]
    return rows + [rows[-1]] * (CLASSES - len(rows))


def short(certificate: Certificate) -> dict[str, Any]:
    """A certificate as a record keeps it."""
    return {
        "passed": certificate.passed,
        "version": certificate.version,
        "torch": certificate.torch,
        "failed": {line.name: line.text for line in certificate.failed},
        "declared": {line.name: line.reason for line in certificate.lines if line.outcome == "declared"},
    }


def _kept(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    parts = [spec["class"], spec["args"], current_digest(spec["class"]), CHECK_VERSION, str(torch.__version__)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{key}.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        pass
    with torch.random.fork_rng(devices=[]):
        try:
            found = short(check_loss(spec, prepared=folder.with_name("prepared")))
        except BenchError as error:  # such as a loss that needs other facts than the scenes have
            found = {"passed": False, "version": CHECK_VERSION, "failed": {"check": str(error)}, "declared": {}}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda stream: stream.write(json.dumps(found, indent=1, ensure_ascii=False).encode()))
    return found


def _parts(loss: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "sum" in loss:
        for term in loss["sum"]:
            yield from _parts(term["loss"])
        return
    inner = ", ".join(f"{k}={v}" for k, v in sorted(loss["args"].items()))
    yield (f"{loss['name']}({inner})" if inner else str(loss["name"])), loss
