"""Job arrays: how cells are put into tasks, what is submitted, and the small file that remembers it.

`OUT/slurm/NAME/` holds one submission: `cells.json` (written before sbatch, so that no job is ever unknown: SLURM is
asked for the name), the script, the logs of its tasks, and `seen`, their marks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.backends.cluster_file import SlurmCluster
from harness.backends.slurm_task import Bundle, Cases, Preparation, prepare_cases, run_bundle
from harness.cell import Cell
from harness.errors import BenchError
from harness.preparing import job_of
from harness.processes import THREAD_VARIABLES
from harness.records import write_atomic

TASKS = 200  # of one submission, where the cluster file does not say how many cells a task runs
CELLS, CASES = "cells", "cases"


@dataclass
class Submission:
    """One job array.

    Attributes:
        name: Of the job; unique.
        folder: `OUT/slurm/NAME`.
        kind: `cells`, or `cases` where it prepares them.
        tasks: Ids of the cells, or names of the cases, of each task.
        tries: How often in a row each cell was lost before.
        job: Its id, as soon as it is known.
        absent: Tasks that are not in the queue, with the time since when.
    """

    name: str
    folder: Path
    kind: str
    tasks: list[list[str]]
    tries: dict[str, int] = field(default_factory=dict)
    job: str = ""
    absent: dict[int, float] = field(default_factory=dict)

    @property
    def seen(self) -> Path:
        """Folder of marks."""
        return self.folder / "seen"

    def task(self, index: int) -> str:
        """The id of a task as SLURM writes it; an array of one is no array."""
        return f"{self.job}_{index}" if len(self.tasks) > 1 else self.job

    def log(self, index: int) -> Path:
        """The log of a task."""
        return self.folder / f"{self.task(index)}_0_log.out"

    def save(self) -> None:
        """Write `cells.json`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # jobs run what lies in it
        self.seen.mkdir(exist_ok=True)
        content = {"name": self.name, "kind": self.kind, "job": self.job, "tasks": self.tasks, "tries": self.tries}
        write_atomic(self.folder / "cells.json", lambda stream: stream.write(json.dumps(content).encode()))


def new_submission(folder: Path, kind: str, tasks: list[list[str]], tries: dict[str, int] | None = None) -> Submission:
    """A submission with a name of its own, not yet written."""
    name = f"bench-{secrets.token_hex(4)}"
    return Submission(name, folder / name, kind, tasks, tries or {})


def submissions(folder: Path) -> list[Submission]:
    """All submissions that a results folder remembers; damaged files are none."""
    found = []
    for path in sorted(folder.glob("bench-*/cells.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            raw = json.loads(path.read_text(encoding="utf-8"))
            tasks = [[str(one) for one in task] for task in raw["tasks"]]
            tries = {str(key): int(value) for key, value in raw["tries"].items()}
            found.append(Submission(path.parent.name, path.parent, str(raw["kind"]), tasks, tries, str(raw["job"])))
    return found


def bundles(cells: Sequence[Cell], cells_per_task: int | None) -> list[list[Cell]]:
    """Cells by task, in their order: neighbours share training cases, and evaluations of one training share a task."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.train_id, []).append(cell)
    size = cells_per_task or -(-len(cells) // min(TASKS, max(1, len(cells))))
    found: list[list[Cell]] = []
    for group in groups.values():
        if found and len(found[-1]) + len(group) <= size:
            found[-1] += group
        else:
            found.append(list(group))
    return found


def dealt(names: Sequence[str], tasks: int) -> list[list[str]]:
    """Names dealt out to at most so many tasks, one after the other."""
    tasks = max(1, min(tasks, len(names)))
    return [list(names[k::tasks]) for k in range(tasks)]


def preparations(cells: Iterable[Cell]) -> dict[str, Preparation]:
    """What to preprocess for these cells, each once, by a name."""
    found: dict[str, Preparation] = {}
    asked = set[str]()
    for cell in cells:
        parts = json.dumps([cell.manifest_path, cell.quick, cell.data], sort_keys=True)
        if cell.skip or parts in asked:
            continue
        asked.add(parts)
        for case in [*cell.data["train"], *cell.data["val"], *cell.data["test"]]:
            job = job_of(cell, case)
            text = json.dumps([cell.data["digest"], *job], sort_keys=True)
            found.setdefault(hashlib.sha256(text.encode()).hexdigest()[:16], job)
    return found


def parameters(cluster: SlurmCluster, submission: Submission, at_once: int, after: Sequence[str]) -> dict[str, Any]:
    """What submitit is told.

    Args:
        cluster: The cluster file.
        submission: What is submitted.
        at_once: The most tasks at once.
        after: Ids of jobs that must have ended before, well or not.
    """
    cases = submission.kind == CASES
    own = cluster.prepare
    single = [f"export {name}=1" for name in THREAD_VARIABLES]
    told = {
        "job_name": submission.name,
        "account": cluster.account,
        "partition": (own.partition if cases else None) or cluster.partition,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": (own.time if cases else None) or cluster.time,
        "gres": None if cases else cluster.gres,
        "cpus_per_task": 1 if cases else cluster.cpus,
        "mem": (own.memory if cases else None) or cluster.memory,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "array_parallelism": at_once,
        "wckey": None,
        "setup": [*single, "export CUBLAS_WORKSPACE_CONFIG=:4096:8", *cluster.setup],
        "stderr_to_stdout": True,
        # Python takes the place of the script's shell: what SLURM signals is then the process that can answer
        "use_srun": False,
        "additional_parameters": {"signal": f"B:TERM@{cluster.notice}", "requeue": True, **cluster.options},
    }
    return told


def submit(
    submission: Submission, work: Sequence[Bundle] | Sequence[Cases], cluster: SlurmCluster, told: dict[str, Any]
) -> None:
    """Write what the tasks are to do, and submit them; afterwards the submission knows its job.

    Raises:
        BenchError: SLURM refuses.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    submission.save()
    python = f"exec {cluster.python or shlex.quote(sys.executable)}"
    function: Callable[[Any], None] = run_bundle if submission.kind == CELLS else prepare_cases
    try:
        executor = submitit.SlurmExecutor(submission.folder, python=python)
        executor.update_parameters(**told)
        with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words come with the error
            jobs = executor.map_array(function, list(work))
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise BenchError(f"--on slurm: sbatch does not take the jobs: {said}") from None
    submission.job = str(jobs[0].job_id).partition("_")[0]
    submission.save()


def tail(path: Path, lines: int = 1) -> str:
    """The last lines of a log; nothing where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def tidy(submission: Submission) -> None:
    """Remove what only a running job needs; logs stay."""
    for path in [*submission.folder.glob("*.pkl"), *submission.folder.glob(".submission_file_*")]:
        with contextlib.suppress(OSError):
            path.unlink()
