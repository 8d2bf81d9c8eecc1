"""What runs on the nodes of a Ray cluster: processes that run cells one after the other, each through `run_cell`.

Importing this module imports neither torch nor Ray: Ray imports it in its processes before they have anything to do.
"""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell import Cell, Place
from harness.processes import oom_kills
from harness.records import RunRecord

if TYPE_CHECKING:
    from harness.cell_cases import Cases

Moved = tuple[int, int, float]  # steps done, steps in all, loss


@dataclass(frozen=True)
class Met:
    """What a process on a node says of itself.

    Attributes:
        host: Name of its machine.
        node: Ray's id of its node.
        versions: Of what results depend on.
        out: Whether it sees the results folder of this run.
        data: Whether it sees the folder of data sets.
        kills: Processes that the machine has killed for lack of memory so far; None where it does not say.
    """

    host: str
    node: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    out: bool = True
    data: bool = True
    kills: int | None = None


class Slot:
    """A process that runs one cell at a time; torch and prepared cases stay in it from one cell to the next.

    As an actor it answers `look` and `stop` in a thread of their own, while a cell runs in another.

    Args:
        place: Where things are, the same on all nodes.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._cases: Cases | None = None
        self._now = ""
        self._moved: Moved | None = None
        self._stopping = False

    def meet(self, marker: Path) -> Met:
        """Import torch, which takes seconds, and say what is here; `marker` lies in the results folder."""
        import ray

        from harness.cell_cases import Cases

        self._cases = Cases(self._place)
        root = self._place.root
        return Met(
            host=socket.gethostname(),
            node=ray.get_runtime_context().get_node_id(),
            versions=versions_here(),
            out=marker.is_file(),
            data=root is None or root.is_dir(),
            kills=oom_kills(),
        )

    def prepare(self, job: tuple[Any, ...]) -> str | None:
        """Preprocess one case; the sentence that says what is wrong with it, or None."""
        from harness.cell_cases import prepare_case
        from harness.machine import settle

        settle(self._place.device)
        return prepare_case(self._place, *job)

    def run(self, cell: Cell, fresh: bool) -> tuple[RunRecord, int | None]:
        """Run a cell; its record, and the number that `look` has, too."""
        from harness.machine import settle
        from harness.worker import run_cell

        settle(self._place.device)  # some of it holds for one thread, and which one this is Ray decides
        self._now, self._moved = cell.eval_id, None
        record = run_cell(cell, self._place, self._cases, self._report, lambda: self._stopping, fresh)
        return record, oom_kills()

    def look(self) -> tuple[str, Moved | None, int | None]:
        """Id of the cell, how far it is, and how many processes its machine has killed for lack of memory."""
        return self._now, self._moved, oom_kills()

    def stop(self) -> None:
        """The cell that is running writes its checkpoint and ends."""
        self._stopping = True

    def _report(self, done: int, total: int, loss: float) -> None:
        self._moved = done, total, loss


def versions_here() -> dict[str, str]:
    """Versions of what results depend on, without importing it."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("segmentation-loss-bench", "torch", "monai", "numpy", "SimpleITK"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its folder
            from harness import __version__

            found[name] = __version__ if name == "segmentation-loss-bench" else "none"
    return found
