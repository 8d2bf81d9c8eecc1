"""What a loss raised, in words, and which of its lines did."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from harness.errors import BenchError, first_line
from harness.losses import build, calls, prepared

# frames of these are not the lines of a loss
_OTHERS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    *(str(module.__file__) for module in (build, calls, prepared)),
)


def said(error: Exception, longest: int = 160) -> str:
    """First line of an error with the line of the loss: `ValueError: no value (my_loss.py:5)`.

    Args:
        error: Whatever a loss raised; a `BenchError` is a sentence already.
        longest: Characters of its text.
    """
    text = first_line(error)[:longest]
    if isinstance(error, BenchError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = place_of([f for f in frames if "site-packages" not in Path(f.filename).parts] or frames)
    return f"{type(error).__name__}: {text}" + (f" ({place})" if place else "")


def place_of(frames: Iterable[traceback.FrameSummary]) -> str:
    """The innermost line outside of PyTorch and of the check, `my_loss.py:5`: that of the loss; "" where none is."""
    own = [f for f in frames if not f.filename.startswith(_OTHERS)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
