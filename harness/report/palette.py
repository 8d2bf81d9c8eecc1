"""Colours of the figures: safe for colour-blind readers, legible on white and on near-black."""

from __future__ import annotations

import re
import unicodedata

# Okabe and Ito's palette in seaborn's shades, without the yellow and the pale pink that vanish on white.
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#56b4e9", "#a0785a", "#8a8f98")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))

# Neutral colours of the figures. In the page they are replaced by CSS variables, so that figures follow the theme.
INK = "#1d2228"
GRID = "#d9dce0"
BLANK = "#f4f5f6"
THEMED = {INK: "currentColor", GRID: "var(--rule)", BLANK: "var(--panel)"}


def style_of(names: list[str]) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Colour and dashes by name; the dashes change when the colours come round again."""
    n = len(COLOURS)
    return {name: (COLOURS[i % n], DASHES[i // n % len(DASHES)]) for i, name in enumerate(names)}


def slug(text: str, taken: set[str]) -> str:
    """A file name from any text: ASCII letters, digits and hyphens, not yet in `taken`, to which it is added."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    base = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "x"
    name, n = base, 2
    while name in taken:
        name, n = f"{base}-{n}", n + 1
    taken.add(name)
    return name
