"""The engines, and the zoo on the path of the tests of this folder (`from shapes import ZOO`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(params=["simpleitk", "points", "points-numba"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "points-numba":
        pytest.importorskip("numba")
    return request.param
