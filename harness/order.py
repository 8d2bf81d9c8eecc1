"""The order in which cells start: long ones first, and those of one training set after another. No torch.

The end of a run is then not one long cell beside idle processes. A process keeps the training set of its last cell, so
among cells that take about as long it is given one of the same set.
"""

from __future__ import annotations

import json
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any

from harness.cell import Cell

ALIKE = math.sqrt(2)  # cells whose estimates differ by less than this factor are taken for equally long


class Queue:
    """Cells that wait; every operation takes a time that does not depend on their number.

    Two evaluations of one training take turns: while one runs, the other is set aside.

    Args:
        cells: In the order of the suites.
        weight: What a cell is expected to take; the unit does not matter.
        trainings: Of a cell that stands for a group that is taken as one: the `train_id` of all of them.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        weight: Callable[[Cell], float],
        trainings: Callable[[Cell], Collection[str]] = lambda cell: (cell.train_id,),
    ) -> None:
        self._weight, self._trainings = weight, trainings
        self._texts: dict[int, tuple[Any, str]] = {}
        self._classes: dict[int, dict[Hashable, deque[Cell]]] = {}  # by length, by training set
        self._lengths: list[int] = []  # of the classes, the longest last
        self._aside: dict[str, list[Cell]] = {}  # by training that is busy
        self._next: deque[Cell] = deque()  # set aside before, and free now
        self._busy: set[str] = set()
        for cell in cells:
            self.add(cell)

    def add(self, cell: Cell) -> None:
        """One more cell, behind those that take as long."""
        length = math.floor(math.log(max(self._weight(cell), 1e-9), ALIKE))
        if length not in self._classes:
            self._classes[length] = {}
            insort(self._lengths, length)
        self._classes[length].setdefault(self.group(cell), deque()).append(cell)

    def take(self, held: Hashable = None, elsewhere: Collection[Hashable] = ()) -> Cell | None:
        """The next cell for a process; its training counts as busy until `done`.

        Args:
            held: Group of the training set that the process holds.
            elsewhere: Groups that other processes hold: left to them as long as there are others.

        Returns:
            None where no cell is left, or none whose training is not busy.
        """
        while (cell := self._pop(held, elsewhere)) is not None:
            waits = next((t for t in self._trainings(cell) if t in self._busy), None)
            if waits is None:
                self._busy.update(self._trainings(cell))
                return cell
            self._aside.setdefault(waits, []).append(cell)
        return None

    def done(self, cell: Cell) -> None:
        """A cell that was taken has ended."""
        for training in self._trainings(cell):
            self._busy.discard(training)
            self._next.extend(self._aside.pop(training, ()))

    def __bool__(self) -> bool:
        """Whether a cell waits."""
        return bool(self._classes or self._aside or self._next)

    def group(self, cell: Cell) -> Hashable:
        """What decides a training set; cells of a suite share these parts, so that each is written once."""
        repeat = cell.seed if cell.repeats_differ else None
        return cell.manifest_path, cell.quick, self._text(cell.data), self._text(cell.train["augment"]), repeat

    def _text(self, part: Any) -> str:
        known = self._texts.get(id(part))
        if known is None:
            known = self._texts[id(part)] = part, json.dumps(part, sort_keys=True)
        return known[1]

    def _pop(self, held: Hashable, elsewhere: Collection[Hashable]) -> Cell | None:
        if self._next:
            return self._next.popleft()
        if not self._classes:
            return None
        groups = self._classes[self._lengths[-1]]
        if held not in groups:
            held = next((g for g in groups if g not in elsewhere), next(iter(groups)))
        cell = groups[held].popleft()
        if not groups[held]:
            del groups[held]
        if not groups:
            del self._classes[self._lengths.pop()]
        return cell
