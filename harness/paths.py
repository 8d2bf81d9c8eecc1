"""Paths that stand in files of others."""

from __future__ import annotations

from pathlib import Path


def there(path: Path) -> bool:
    """Whether a file is there; a name that no file can have, such as one that is too long, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
