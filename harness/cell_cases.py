"""The prepared cases of the cells that one worker runs: training sets, validation and test cases, and their view."""

from __future__ import annotations

from typing import Any

import torch

from harness.cell import Cell, Place
from harness.data.batches import TrainSet
from harness.data.fingerprint import resolved
from harness.data.layouts import Reader, reader_of
from harness.data.manifest import Manifest
from harness.data.phantoms import data_root
from harness.data.prepare import prepare
from harness.data.samples import LabelList
from harness.data.stored import Prepared, Stored
from harness.evaluation import fingerprint
from harness.losses.facts import label_facts


class Cases:
    """Prepared cases and training sets, kept between the cells of one worker."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._key: str | None = None
        self._train: TrainSet | None = None
        self._labels = LabelList([])
        self._views: dict[str, dict[str, Any]] = {}
        self._facts: dict[str, Any] = {}
        self.fingerprint = ""

    def reader(self, manifest: Manifest, names: list[str]) -> Reader:
        """What reads these cases; those of a phantom are made where they are not there yet."""
        return reader_of(manifest, data_root(manifest, self._place.root, self._place.cache, names))

    def view(self, cell: Cell, manifest: Manifest) -> dict[str, Any]:
        """The cell's view with numbers in place of words that only its training cases can tell."""
        key = repr((cell.manifest_path, cell.data["digest"], cell.data["train"], cell.data["view"]))
        if key not in self._views:
            train = cell.data["train"]
            reader = self.reader(manifest, train)
            self._views[key] = resolved(manifest, reader, train, cell.data["view"], self._place.cache)
        return self._views[key]

    def load(self, cell: Cell, manifest: Manifest, names: list[str]) -> list[Prepared]:
        """Cases of a cell, preprocessed where the cache lacks them; their arrays stay on disk until they are used."""
        reader, view = self.reader(manifest, names), self.view(cell, manifest)
        return [Stored(prepare(manifest, reader, name, view, self._place.cache), view) for name in names]

    def train_set(self, cell: Cell, manifest: Manifest) -> tuple[TrainSet, LabelList, dict[str, Any]]:
        """The training samples, their labels, and the facts of these; the last set is kept."""
        parts = (cell.data["digest"], cell.data["train"], cell.data["view"], cell.train["augment"])
        key = repr((cell.manifest_path, *parts))
        if self._train is None or key != self._key:
            self._train = None
            cases = self.load(cell, manifest, cell.data["train"])
            self._labels = LabelList(cases)
            self._facts = label_facts((c.label for c in cases), len(manifest.classes) + 1)
            self.fingerprint = fingerprint(part for c in cases for part in (c.image, c.label))
            device = torch.device(self._place.device)
            self._train = TrainSet(cases, self.view(cell, manifest), cell.train["augment"], device)
            self._key = key
        return self._train, self._labels, self._facts
