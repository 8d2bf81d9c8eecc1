"""The engines by name: how the two volumes are scanned and how distances are found. All give the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from harness.errors import BenchError
from harness.metrics.scan import Classes, IntArray, Scan
from harness.metrics.surface import Engine
from harness.metrics.table import ENGINES
from harness.yamlfile import nearest


@dataclass(frozen=True)
class Tools:
    """What an engine consists of."""

    scan: Callable[[IntArray, IntArray, Classes, bool], Scan]
    distances: Engine


_MODULES = {
    "simpleitk": ("harness.metrics.scan", "harness.metrics.maurer"),
    "points": ("harness.metrics.scan", "harness.metrics.points"),
    "points-numba": ("harness.metrics.accelerated", "harness.metrics.accelerated"),
}


def check_engine(name: str) -> None:
    """Refuse an engine that is unknown, or whose package is not installed.

    Raises:
        BenchError: One sentence that says what to do.
    """
    if name not in ENGINES:
        raise BenchError(f"unknown engine {name!r}{nearest(name, ENGINES)}; known: {', '.join(ENGINES)}.")
    if name == "points-numba" and find_spec("numba") is None:
        raise BenchError(
            "engine 'points-numba' needs numba, which is not installed; install 'segmentation-loss-bench[numba]', "
            "or choose the engine 'points', which gives the same numbers."
        )


def tools_of(name: str) -> Tools:
    """Import an engine.

    Raises:
        BenchError: As `check_engine`.
    """
    check_engine(name)
    scan, distances = (import_module(module) for module in _MODULES[name])
    return Tools(scan.scan, distances.distances)
