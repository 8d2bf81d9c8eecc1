"""nnU-Net v2 without the two packages that it imports for its files alone."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


class _Named:
    """A name that can be passed on and not used: calling it is an error."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named()


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named()


@pytest.fixture(scope="session")
def nnunet() -> ModuleType:
    """The package; blosc2 and cc3d, for compressed volumes and cascades, are empty where they are not installed."""
    if importlib.util.find_spec("nnunetv2") is None:
        pytest.skip("nnunetv2 is not installed (tests/oracles.txt)")
    for name in ("blosc2", "cc3d"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = _StandIn(name)
    if isinstance(sys.modules.get("blosc2"), _StandIn):
        arrays = ModuleType("blosc2.ndarray")
        arrays.NDArray = type("NDArray", (), {})  # type: ignore[attr-defined]
        sys.modules["blosc2"].ndarray = arrays  # type: ignore[attr-defined]
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as trainer

    return trainer
