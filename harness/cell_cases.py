"""The prepared cases of the cells that one worker runs: training sets, validation and test cases, and their view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.cell import Cell, Place
from harness.data.batches import TrainSet
from harness.data.conditions import CLEAN
from harness.data.degrade import changed, degraded
from harness.data.fingerprint import asks, resolved
from harness.data.layouts import Reader, reader_of
from harness.data.manifest import Manifest, load_manifest
from harness.data.phantoms import data_root
from harness.data.prepare import prepare
from harness.data.samples import LabelList, budget
from harness.data.stored import Stored, fingerprint
from harness.errors import BenchError, os_sentence
from harness.losses.facts import label_facts


class Cases:
    """Prepared cases and training sets, kept between the cells of one worker."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._key: str | None = None
        self._train: TrainSet | None = None
        self._labels = LabelList([])
        self._views: dict[str, dict[str, Any]] = {}
        self._files: dict[str, Path] = {}
        self._facts: dict[str, Any] = {}
        self.fingerprint = ""
        self.changed: dict[str, Any] = {}

    def reader(self, manifest: Manifest, names: list[str]) -> Reader:
        """What reads these cases; those of a phantom are made where they are not there yet."""
        return reader_of(manifest, data_root(manifest, self._place.root, self._place.cache, names))

    def view(self, cell: Cell, manifest: Manifest) -> dict[str, Any]:
        """The cell's view with numbers in place of words that only its training cases can tell."""
        view, train = dict(cell.data["view"]), cell.data["train"]
        if not asks(manifest, view):
            return view
        key = repr((cell.manifest_path, cell.data["digest"], cell.quick, train, view))
        if key not in self._views:
            self._views[key] = resolved(manifest, self.reader(manifest, train), train, view, self._place.cache)
        return self._views[key]

    def load(self, cell: Cell, manifest: Manifest, names: list[str]) -> list[Stored]:
        """Cases of a cell, preprocessed where the cache lacks them; their arrays stay on disk until they are used.

        Their labels are those of the data set: only the labels of `train_set` are degraded.
        """
        reader, view = self.reader(manifest, names), self.view(cell, manifest)
        return [Stored(self._file(cell, manifest, reader, name, view), view) for name in names]

    def _file(self, cell: Cell, manifest: Manifest, reader: Reader, name: str, view: dict[str, Any]) -> Path:
        """The cached file of a case; its raw files are read through once in a process, to know their content."""
        key = repr((cell.manifest_path, cell.data["digest"], cell.quick, name, view))
        if key not in self._files or not self._files[key].is_file():
            self._files[key] = prepare(manifest, reader, name, view, self._place.cache)
        return self._files[key]

    def train_set(self, cell: Cell, manifest: Manifest) -> tuple[TrainSet, LabelList, dict[str, Any]]:
        """The training samples, their labels, and the facts of these; the last set is kept.

        Where the suite degrades labels, these are the degraded ones of the cell's repeat, and `changed` says how much
        of them was changed.
        """
        parts = (cell.data["digest"], cell.data["train"], cell.data["view"], cell.train["augment"])
        labels = cell.data["labels"]
        drawn = () if labels == CLEAN else (labels, cell.seed if cell.repeats_differ else None)
        key = repr((cell.manifest_path, cell.quick, *parts, *drawn))
        if self._train is None or key != self._key:
            self._train = None
            cases: list[Stored] = self.load(cell, manifest, cell.data["train"])
            if labels != CLEAN:
                cases = [degraded(c, labels, manifest.name, cell.seed, len(manifest.spec.labels)) for c in cases]
            self.changed = changed(cases)
            self._labels = LabelList(cases)
            self._facts = label_facts((c.label for c in cases), manifest.num_classes)
            self.fingerprint = fingerprint(part for c in cases for part in (c.image, c.label))
            device = torch.device(self._place.device)
            limit = budget(device, self._place.beside) if self._place.beside > 2 else None
            self._train = TrainSet(cases, self.view(cell, manifest), cell.train["augment"], device, limit)
            self._key = key
        return self._train, self._labels, self._facts


def prepare_case(
    place: Place, manifest_path: str, case: str, view: dict[str, Any], quick: bool, train: list[str]
) -> str | None:
    """Preprocess one case; the sentence that says what is wrong with it, or None.

    `train` are the training cases where the view has words for what they tell.
    """
    try:
        manifest = load_manifest(manifest_path, Path(manifest_path).parent, place.root, phantom=quick)
        reader = Cases(place).reader(manifest, [case, *train])
        if train:
            view = resolved(manifest, reader, train, view, place.cache, first=case)
        prepare(manifest, reader, case, view, place.cache)
    except BenchError as error:
        return str(error)
    except OSError as error:
        return os_sentence(error)
    return None
