"""What `--json` prints: one JSON document alone on stdout, whatever else the work behind it prints."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_waiting: list[list[str]] = []


@contextlib.contextmanager
def json_alone() -> Iterator[None]:
    """Send to stderr what is printed inside, also by worker processes and by a loss of the user's.

    What `print_json` was given comes out on stdout at the end, also where the work ended with a mistake.
    """
    documents: list[str] = []
    _waiting.append(documents)
    sys.stdout.flush()
    try:
        with _descriptor_to_stderr(), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _waiting.pop()
        for text in documents:
            print(text)
        sys.stdout.flush()


def print_json(data: Any) -> None:
    """Print plain data as JSON; a number that is not finite, which JSON does not have, becomes null."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(_finite(data), indent=1, ensure_ascii=not unicode, allow_nan=False)
    if _waiting:
        _waiting[-1].append(text)
    else:
        print(text)


@contextlib.contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    """File descriptor 1 is what worker processes inherit and what libraries in C write to."""
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        if sys.__stdout__ is not None:  # what was written to the descriptor by its own name goes where it belongs
            sys.__stdout__.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value
