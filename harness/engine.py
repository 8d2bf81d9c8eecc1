"""How the cells of a run are trained: each alone, with its network compiled or not, or several as one. No torch.

All are the same computation in another order of rounding (see `harness.fused`, `harness.compiled`), after which
trainings part as they do between machines. One comparison is therefore trained one way, unless the user says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell import Cell
from harness.checkpoints import NAME, engine_of_checkpoint
from harness.errors import BenchError
from harness.plan import Entry
from harness.records import RunRecord

ENGINES = ("single", "compiled", "fused", "mixed")


@dataclass(frozen=True)
class Engine:
    """What `bench run --engine` and `--fuse` say.

    Attributes:
        name: "single"; "compiled": alone, with a compiled network; "fused": those that differ only in their loss as
            one; "mixed": fused, beside records of any.
        fuse: At most so many cells in a group; None for as many as there are.
    """

    name: str = "single"
    fuse: int | None = None

    def check(self) -> None:
        """See that it can be.

        Raises:
            BenchError: Of a name or a number that is none.
        """
        if self.name not in ENGINES:
            raise BenchError(f"--engine {self.name}: expected one of {', '.join(ENGINES)}.")
        if self.fuse is not None and self.fuse < 1:
            raise BenchError(f"--fuse {self.fuse}: expected at least 1.")
        if self.fuse is not None and not self.groups:
            raise BenchError("--fuse: is for --engine fused and --engine mixed.")

    @property
    def groups(self) -> bool:
        """Whether cells train together."""
        return self.name in ("fused", "mixed")

    def jobs(self, cells: Iterable[Cell]) -> list[list[Cell]]:
        """The cells in the groups that train together, of one cell each where each trains alone."""
        if not self.groups:
            return [[cell] for cell in cells]
        groups: dict[object, list[list[Cell]]] = {}
        jobs: list[list[Cell]] = []
        for cell in cells:
            if cell.skip:
                jobs.append([cell])
                continue
            waiting = groups.setdefault(_alike(cell), [])
            for group in waiting:
                full = self.fuse is not None and len(group) >= self.fuse
                if not full and all(cell.train_id != other.train_id for other in group):
                    group.append(cell)
                    break
            else:
                waiting.append([cell])
                jobs.append(waiting[-1])
        return jobs


def engine_of(record: RunRecord | None) -> str | None:
    """How a cell was trained; None where there is no training, or where its network left no choice."""
    if record is None or record.status not in ("ok", "diverged") or "engine_note" in record.environment:
        return None
    return str(record.environment.get("engine", "single"))  # before there were two, there was no word


def check_engines(entries: Iterable[Entry], todo: Iterable[Entry], engine: Engine, out: Path) -> None:
    """See that no comparison comes to hold cells of two engines.

    Args:
        entries: All cells of a suite.
        todo: Those that are to run.
        engine: What they are to run with.
        out: Folder of results, where checkpoints tell how unfinished cells were begun.

    Raises:
        BenchError: Cells of a model on a data set have records or checkpoints of another engine, and others of it are
            to run.
    """
    if engine.name == "mixed":
        return
    running = {e.cell.eval_id: e for e in todo if not e.cell.skip}
    touched = {_comparison(e.cell) for e in running.values()}
    other: Counter[tuple[tuple[str, str], str, str]] = Counter()
    for entry in entries:
        cell = entry.cell
        if cell.eval_id not in running:
            found, what = engine_of(entry.record), "trained"
        elif entry.todo:
            found, what = engine_of_checkpoint(cell.folder(out) / NAME), "begun"
        else:
            continue  # made anew
        if found is not None and found != engine.name:
            other[_comparison(cell), found, what] += 1
    for ((dataset, model), found, what), count in other.items():
        if (dataset, model) in touched:
            anew = "train all of it again with --rerun all" if what == "trained" else "remove their checkpoint.pt"
            raise BenchError(
                f"--engine {engine.name}: {count} of the cells of {model} on {dataset} were {what} with "
                f"--engine {found}, and a comparison is trained one way; run it with --engine {found}, {anew}, or "
                "accept both with --engine mixed."
            )


def engine_notes(entries: Sequence[Entry]) -> list[str]:
    """Sentences for a report on how its cells were trained; none where each was trained alone and as it is."""
    found: dict[tuple[str, str], Counter[str]] = {}
    sizes: Counter[int] = Counter()
    alone: dict[tuple[str, str], str] = {}
    for entry in entries:
        kind = engine_of(entry.record)
        if kind is not None:
            found.setdefault(_comparison(entry.cell), Counter())[kind] += 1
        environment = entry.record.environment if entry.record else {}
        if kind == "fused":
            sizes[int(environment.get("fused_cells", 1))] += 1
        elif "engine_note" in environment:
            alone[entry.cell.model_label, str(environment["engine_note"])] = str(environment["engine_note"])
    notes = [
        f"MIXED ENGINES: of {model} on {dataset}, {_counted(kinds)}; their scores differ by rounding besides, and "
        "their times cannot be compared."
        for (dataset, model), kinds in sorted(found.items())
        if len(kinds) > 1
    ]
    if sizes:
        groups = ", ".join(f"{count} in groups of {size}" for size, count in sorted(sizes.items()))
        notes.append(
            f"Cells trained fused (--engine fused): {groups}. The time of training and the step "
            "of such a cell are its share of the group's, and the memory is the group's: they tell nothing of one loss."
        )
    if compiled := sum(kinds["compiled"] for kinds in found.values()):
        notes.append(
            f"Cells trained with a compiled network (--engine compiled): {compiled}. The time of a step is without "
            "that of compiling."
        )
    notes += [f"{model} was trained alone and as it is: {reason}." for (model, reason) in sorted(alone)]
    most = max((int(e.record.environment.get("processes", 1)) for e in entries if e.record), default=1)
    if most > 1:
        notes.append(
            f"Up to {most} processes shared a device, which makes steps slower at times: to compare the time of "
            "losses, run them with --no-overlap and one process on each device."
        )
    return notes


def _counted(kinds: Counter[str]) -> str:
    words = {"single": "alone", "compiled": "compiled", "fused": "fused"}
    parts = [f"{kinds[k]} cells were trained {word}" for k, word in words.items() if kinds[k]]
    return " and ".join(parts)


def _alike(cell: Cell) -> object:
    """Equal for cells that differ only in their loss: same weights to start from, same batches, same training."""
    data = {k: v for k, v in cell.data.items() if k not in ("test", "regions")}
    return repr((cell.manifest_path, cell.quick, cell.seed_base, data, cell.model, cell.init_path, cell.train))


def _comparison(cell: Cell) -> tuple[str, str]:
    return cell.dataset, cell.model_label
