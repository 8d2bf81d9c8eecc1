"""Paths that stand in files of others."""

from __future__ import annotations

import argparse
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


def folder(text: str) -> Path:
    """A folder of the command line, which need not be there.

    Raises:
        argparse.ArgumentTypeError: It is a file.
    """
    if there(Path(text)):
        raise argparse.ArgumentTypeError(f"{text} is a file, expected a folder")
    return Path(text)
