"""Agreement with independent references: asserted, and collected for the table in the docs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

Agree = Callable[..., None]
_FOUND: dict[tuple[str, str], float] = {}


@pytest.fixture
def agree() -> Agree:
    """Assert that a loss equals a reference, and note it: `agree("dice", "MONAI DiceLoss", ours, theirs)`."""

    def check(loss: str, oracle: str, ours: object, theirs: object, tolerance: float = 1e-5) -> None:
        a, b = (np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float64) for v in (ours, theirs))
        assert a.shape == b.shape and a.size and np.isfinite(a).all() and np.isfinite(b).all()
        error = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))
        _FOUND[loss, oracle] = max(error, _FOUND.get((loss, oracle), 0.0))
        assert error <= tolerance, f"{loss}: ours {a}, {oracle} {b}, relative error {error:.2e} above {tolerance:.0e}"

    return check


def pytest_sessionfinish() -> None:
    """`make docs` names a file for the table; a plain test run writes nothing."""
    path = os.environ.get("BENCH_AGREEMENT")
    if path and _FOUND:
        rows = [{"loss": k[0], "oracle": k[1], "error": v} for k, v in sorted(_FOUND.items())]
        Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
