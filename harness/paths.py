"""Paths that stand in files of others."""

from __future__ import annotations

from pathlib import Path


def there(path: Path) -> bool:
    """Whether a file is there; a name that no file can have, such as one that is too long, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def leads_out(text: str) -> bool:
    """Whether a path that is meant to lie below a folder is absolute or climbs out of it, on any system."""
    parts = text.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or parts[0].endswith(":") or "\0" in text
