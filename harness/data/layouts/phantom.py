"""The layout `phantom`: cases that are made on the spot; nothing is on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.data.layouts.base import Volume
from harness.data.manifest import Manifest
from harness.errors import BenchError


class Phantom:
    """The embedded procedural abdominal CT: nothing to download.

    Args:
        shape: [z, y, x] of every case.
        seed: Another number, other patients.
    """

    def __init__(self, manifest: Manifest, root: Path | None, *, shape: list[int], seed: int) -> None:
        if not isinstance(shape, list) or len(shape) != 3:
            raise manifest.file.error(("layout", "phantom", "shape"), f"expected [z, y, x], found {shape}.")
        self._manifest, self._seed = manifest, seed
        self._shape = (shape[0], shape[1], shape[2])

    def cases(self) -> list[str]:
        """Those of the manifest."""
        return list(self._manifest.cases)

    def missing(self, cases: Sequence[str]) -> list[Path]:
        """Nothing ever is."""
        return []

    def digest(self, case: str) -> str:
        """Of the generator's source and its parameters."""
        source = (Path(__file__).resolve().parent.parent / "phantom.py").read_bytes()
        return hashlib.sha256(source + repr((self._shape, self._seed, case)).encode()).hexdigest()

    def read(self, case: str) -> Volume:
        """Generate one patient."""
        from harness.data.phantom import phantom_case

        number = self._manifest.cases.index(case)
        made = phantom_case(self._seed * 100_000 + number, shape=self._shape)
        return Volume(made.image[None].astype(np.float32), made.label, made.spacing)

    def write(self, case: str, volume: Volume) -> None:
        """There is nothing to write to.

        Raises:
            BenchError: Always.
        """
        raise BenchError(f"{self._manifest.name}: its cases are made on the spot; there is no file to write.")

    def finish(self, cases: Sequence[str]) -> None:
        """Nothing belongs to the folder."""
