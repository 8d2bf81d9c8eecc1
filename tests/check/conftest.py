"""Certificates of the wrong losses, which are a user's file to the check."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch

from harness.check import Certificate, check_loss

FILE = Path(__file__).with_name("wrong_losses.py")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def certify() -> Callable[..., Certificate]:
    """Check a class of wrong_losses.py, or of another file: `certify("SurveyDice", only=["optimum"])`."""

    def check(
        name: str, only: Collection[str] | None = None, file: Path = FILE, args: dict | None = None
    ) -> Certificate:
        return check_loss({"name": name, "class": f"{file}:{name}", "args": args or {}}, only)

    return check
