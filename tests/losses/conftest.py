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


Case = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def example() -> Callable[..., Case]:
    """Make random float64 logits of a shape (B, C, *S) and labels, a third of them ignored if asked."""

    def make(shape: tuple[int, ...], ignored: bool = False, seed: int | None = None) -> Case:
        chance = torch.Generator().manual_seed(len(shape) if seed is None else seed)
        logits = torch.randn(shape, generator=chance, dtype=torch.float64)
        target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=chance)
        if ignored:
            target[torch.rand(target.shape, generator=chance) < 0.3] = 255
        return logits, target

    return make


@pytest.fixture
def four() -> Case:
    """Four voxels: p of class 1 is 3/4, 1/2, 1/4, 3/4; the labels are 1, 1, 1, 0.

    The true classes got 3/4, 1/2, 1/4, 1/4. Class 1: TP = 3/2, FP = 3/4, FN = 3/2, Σp = 9/4, Σt = 3. Class 0: TP = 1/4,
    FP = 3/2, FN = 3/4, Σp = 7/4, Σt = 1.
    """
    ln3 = float(np.log(3))
    logits = torch.tensor([[[0.0, 0, 0, 0], [ln3, 0, -ln3, ln3]]], dtype=torch.float64)
    return logits, torch.tensor([[1, 1, 1, 0]])


@pytest.fixture
def voxels() -> Callable[..., list[tuple[int, list[float], int]]]:
    """List (sample, probabilities, label) of every valid voxel, in plain loops without torch's softmax."""

    def make(logits: torch.Tensor, target: torch.Tensor) -> list[tuple[int, list[float], int]]:
        z, y = logits.detach().flatten(2).numpy(), target.flatten(1).numpy()
        out = []
        for b in range(len(z)):
            for n in range(z.shape[2]):
                if y[b, n] != 255:
                    e = np.exp(z[b, :, n] - z[b, :, n].max())
                    out.append((b, list(e / e.sum()), int(y[b, n])))
        return out

    return make
