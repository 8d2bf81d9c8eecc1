"""Cells that join a run while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.cell import Cell
from harness.records import RunRecord


@dataclass(frozen=True)
class Follow:
    """What can start when a cell has ended, such as the next trial of a study; it is called with every such cell.

    Attributes:
        next: From a cell that ended and its record to the cells that can start now.
        later: Cells that are known from the start to join: their cases are prepared with the others.
        total: How many cells join at most.
        fresh: `eval_id` of those for which what is there is forgotten: finished ones that were asked for again.
    """

    next: Callable[[Cell, RunRecord], Sequence[Cell]]
    later: tuple[Cell, ...] = ()
    total: int = 0
    fresh: frozenset[str] = frozenset()

    def __call__(self, cell: Cell, record: RunRecord) -> Sequence[Cell]:
        """The cells that can start now."""
        return self.next(cell, record)
