"""What SLURM is asked: the queue, and what it says of jobs that ended. Answers are hints; records are the truth."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.errors import BenchError

SECONDS = 60.0  # for a command of SLURM to answer
ARRAY_SIZE = 1001  # SLURM's own default of MaxArraySize


@dataclass(frozen=True)
class Waiting:
    """What the queue shows of one job array.

    Attributes:
        job: Its id.
        tasks: Indices of its tasks that wait or run; None where SLURM shortens the list: then any of them may.
        running: Number of those that run.
        reasons: Number of waiting tasks by reason.
    """

    job: str
    tasks: frozenset[int] | None
    running: int
    reasons: Counter[str] = field(default_factory=Counter)

    def holds(self, index: int) -> bool:
        """Whether a task waits or runs."""
        return self.tasks is None or index in self.tasks


def check_commands() -> None:
    """See that SLURM's commands are here and that its controller answers.

    Raises:
        BenchError: They are not, or it does not.
    """
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if missing:
        raise BenchError(f"--on slurm: {', '.join(missing)} not found; start it on a login node of the cluster.")
    done = _ask("squeue", "--noheader", "--name=bench-none")
    if done is None or done.returncode:
        said = " ".join(done.stderr.split()) if done is not None else f"no answer within {SECONDS:g} s"
        raise BenchError(f"--on slurm: squeue fails ({said}); is the cluster's controller up?")


def waiting(names: Sequence[str]) -> dict[str, Waiting] | None:
    """The jobs of these names that wait or run, by name; None where SLURM does not answer."""
    if not names:
        return {}
    done = _ask("squeue", "--noheader", f"--name={','.join(names)}", "--format=%F|%K|%T|%r|%j")
    return None if done is None or done.returncode else read_queue(done.stdout)


def read_queue(text: str) -> dict[str, Waiting]:
    """Read lines `job|tasks|state|reason|name` of squeue."""
    lines: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 5:
            lines.setdefault(parts[4], []).append(parts)
    found = {}
    for name, rows in lines.items():
        tasks: set[int] | None = set()
        running, reasons = 0, Counter[str]()
        for _, indices, state, reason, _ in rows:
            numbers = indices_of(indices)
            if numbers is None or tasks is None:
                tasks = None
            else:
                tasks |= numbers
            if state == "PENDING":
                reasons[reason] += len(numbers) if numbers is not None else 1
            else:
                running += 1
        found[name] = Waiting(rows[0][0], None if tasks is None else frozenset(tasks), running, reasons)
    return found


def indices_of(text: str) -> set[int] | None:
    """Task indices such as `3`, `[1-4,7%2]`, `0-8:2`; a job without an array is task 0. None if they are cut short."""
    text = text.strip("[]").partition("%")[0]
    if text in ("N/A", ""):
        return {0}
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            return None
        first, last, step = match.groups()
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def fates(job: str) -> dict[int, str]:
    """What SLURM says of the tasks of a job that ended: `OUT_OF_MEMORY`, `TIMEOUT, exit code 0:15`; empty if nothing.

    Accounting is asked first; without it the controller remembers a job for some minutes.
    """
    done = _ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=JobID,State,ExitCode")
    if done is not None and not done.returncode and (found := read_sacct(done.stdout, job)):
        return found
    done = _ask("scontrol", "show", "job", job, "--oneliner")
    return read_scontrol(done.stdout) if done is not None and not done.returncode else {}


def read_sacct(text: str, job: str) -> dict[int, str]:
    """Read lines `12_3|FAILED|1:0` of sacct about a job; `CANCELLED by 1000` is CANCELLED."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        task, _, rest = line.strip().partition("|")
        state, _, code = rest.partition("|")
        array, _, indices = task.partition("_")
        if array == job and state:  # not 12_3.batch, a step of it
            numbers = indices_of(indices) or set()
            found |= dict.fromkeys(numbers, _fate(state, code))
    return found


def read_scontrol(text: str) -> dict[int, str]:
    """Read the lines of `scontrol show job --oneliner`."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "JobState" in words:
            numbers = indices_of(words.get("ArrayTaskId", "N/A")) or set()
            found |= dict.fromkeys(numbers, _fate(words["JobState"], words.get("ExitCode", "")))
    return found


def _fate(state: str, code: str) -> str:
    word = state.split()[0].rstrip("+")
    return word + (f", exit code {code}" if code not in ("", "0:0") else "")


def cancel(jobs: Iterable[str]) -> str:
    """Cancel jobs (`12`, `12_3`); returns what SLURM objects, or nothing."""
    jobs, objections = list(jobs), []
    for start in range(0, len(jobs), 500):  # the length of a command line has its limits
        done = _ask("scancel", *jobs[start : start + 500])
        if done is None or done.returncode:
            objections.append(" ".join(done.stderr.split()) if done is not None else "no answer")
    return "; ".join(objections)


def max_array_size() -> int:
    """The most tasks of one array."""
    done = _ask("scontrol", "show", "config")
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE) if done is not None else None
    return max(1, int(match.group(1))) if match else ARRAY_SIZE


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run a command of SLURM; None where it is not there or does not answer."""
    environment = os.environ | {"SLURM_BITSTR_LEN": "0"}  # else lists of tasks end in dots after 64 characters
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
