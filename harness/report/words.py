"""Numbers and names as the page writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

STATUS = {
    "ok": "measured",
    "diverged": "diverged",
    "oom": "out of memory",
    "timeout": "timed out",
    "error": "crashed",
    "interrupted": "interrupted",
    "skip": "skipped",
    "missing": "not run yet",
    "stale": "stale",
}


def number(value: float | None, decimals: int = 2) -> str:
    """A number with fixed decimals; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", "\u2212")


def label(name: str) -> Markup:
    """A loss or model with its arguments set smaller; the text stays `focal(gamma=2)`."""
    head, bracket, tail = name.partition("(")
    if not head or not bracket or not name.endswith(")"):
        return escape(name)
    return escape(head) + Markup('<span class="args">') + escape(bracket + tail) + Markup("</span>")


def attribute(value: Any) -> Markup:
    """JSON for an attribute in single quotes: shorter than with every double quote escaped, and as safe.

    Raises:
        ValueError: A number is not finite, which JSON cannot hold.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    for sign, code in (("&", "&amp;"), ("'", "&#39;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, code)
    return Markup(text)


def count(n: int, one: str, many: str = "") -> str:
    """`1 loss`, `2 losses`."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
