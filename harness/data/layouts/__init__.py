"""Readers and writers: one class per layout on disk, all with the same methods.

A reader finds the cases, says what is missing, reads one case and writes one in exactly the form that it reads; it
knows nothing of training. A data set in one of these layouts needs a manifest and no code; a new layout is one more
file here and one line in `harness.data.manifest_file.LAYOUTS`.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from harness.data.layouts.base import IGNORE, Reader, Volume
from harness.data.manifest import Manifest
from harness.data.manifest_file import LAYOUTS
from harness.resolve import load

__all__ = ["IGNORE", "Reader", "Volume", "reader_of"]


def reader_of(manifest: Manifest, root: Path | None) -> Reader:
    """The reader of a manifest's layout.

    Args:
        manifest: The data set.
        root: Folder in which data sets lie (`--data` or `BENCH_DATA`); None where none was given.

    Raises:
        BenchError: The layout needs files and no root was given, or its options are wrong.
    """
    name, options = manifest.layout
    kind = load(LAYOUTS[name])
    try:
        inspect.signature(kind).bind(manifest, root, **options)
    except TypeError as error:
        known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
        listed = f"its options: {', '.join(known)}" if known else "it has no options"
        raise manifest.file.error(("layout", name), f"wrong options: {error}; {listed}.") from None
    reader: Reader = kind(manifest, root, **options)
    return reader
