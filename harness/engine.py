"""How the cells of a run are trained: each alone, with its network compiled or not, or several as one. No torch.

All are the same computation in another order of rounding (see `harness.fused`, `harness.compiled`), after which
trainings part as they do between machines. One comparison is therefore trained one way, unless the user says otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell import Cell
from harness.checkpoints import NAME, engine_of_checkpoint, word_of
from harness.errors import BenchError, os_sentence
from harness.plan import Entry
from harness.records import RunRecord, record_at

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
        compiler = os.environ.get("CXX", "g++")  # as torch looks for it
        if self.name == "compiled" and shutil.which(compiler) is None:
            raise BenchError(f"--engine compiled: there is no C++ compiler {compiler} here; install one, or set CXX.")

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


def engine_of(record: RunRecord | None) -> str:
    """How a cell was trained, as `checkpoints.word_of`; empty where there is no training."""
    return word_of(record.environment) if record is not None and record.status in ("ok", "diverged") else ""


def _begun(folder: Path) -> str:
    """How the training in a folder was begun that has no evaluation; empty where none was.

    Raises:
        BenchError: The system refuses to read it.
    """
    try:
        return engine_of(record_at(folder / "train.json")) or engine_of_checkpoint(folder / NAME)
    except OSError as error:
        raise BenchError(os_sentence(error)) from None


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
            found, what = _begun(cell.folder(out)), "begun"
        else:
            continue  # made anew
        found, _, instead = found.partition("/")
        if found and engine.name not in (found, instead):
            other[_comparison(cell), found, what] += 1
    for ((dataset, model), found, what), count in other.items():
        if (dataset, model) in touched:
            anew = (
                "train all of it again with --rerun all"
                if what == "trained"
                else "remove what they have in the folder of results, where no other command runs them"
            )
            raise BenchError(
                f"--engine {engine.name}: {count} of the cells of {model} on {dataset} were {what} with "
                f"--engine {found}, and a comparison is trained one way; run it with --engine {found}, {anew}, or "
                "accept both with --engine mixed."
            )


def engine_notes(entries: Sequence[Entry]) -> list[str]:
    """Sentences for a report on how its cells were trained; none where each was trained alone and as it is."""
    found: dict[tuple[str, str], Counter[str]] = {}
    sizes: Counter[int] = Counter()
    alone: dict[tuple[tuple[str, str], str], list[str]] = {}
    for entry in entries:
        word = engine_of(entry.record)
        if entry.record is None or not word:
            continue
        kind, _, instead = word.partition("/")
        about = entry.record.environment
        found.setdefault(_comparison(entry.cell), Counter())[kind] += 1
        if kind == "fused":
            sizes[int(about.get("fused_cells", 1))] += 1
        if instead:
            alone.setdefault((_comparison(entry.cell), instead), []).append(str(about.get("engine_note", "")))
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
            "that of compiling, the memory on a CPU is with the compiler's."
        )
    notes += [
        f"--engine {asked}: {len(reasons)} cells of {model} on {dataset} were trained alone and as they are: "
        f"{reasons[0]}."
        for ((dataset, model), asked), reasons in sorted(alone.items())
    ]
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
