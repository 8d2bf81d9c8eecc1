"""The file of `--cluster`: what a SLURM cluster wants to be told. Every key has a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from harness.errors import BenchError
from harness.yamlfile import Strict, read_yaml

MINUTES, CLOCK = r"\d+", r"(\d+-)?\d+(:\d+){1,2}|\d+-\d+"
OURS = ("array", "job-name", "output", "error", "open-mode", "signal", "dependency", "requeue", "no-requeue", "wrap")


def _limit(value: Any) -> Any:
    if isinstance(value, int) and (value is True or value < 1):
        raise ValueError("expected minutes, 1 or more")
    if isinstance(value, str) and not re.fullmatch(f"{MINUTES}|{CLOCK}", value):
        raise ValueError("expected minutes, or hours as in 12:00:00 or 1-12:00:00")
    return value


def _memory(value: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", value):
        raise ValueError("expected a number with K, M, G or T, such as 8G")
    return value


def _option(value: str) -> str:
    name = value.removeprefix("--").partition("=")[0]
    if not re.fullmatch(r"--[a-z][a-z-]*(=[^\n]+)?", value):
        raise ValueError("expected an option such as --nice=100")
    if name in OURS:
        raise ValueError(f"bench sets --{name} itself; leave it out")
    return value


Name = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]
Limit = Annotated[str | int, BeforeValidator(_limit)]
Memory = Annotated[str, AfterValidator(_memory)]
Option = Annotated[str, AfterValidator(_option)]


class Prepare(Strict):
    """Keys of `prepare`: the jobs that preprocess the cases before the first cell starts; they take no GPU."""

    tasks: int = Field(default=8, ge=1)
    partition: Name | None = None
    time: Limit | None = None
    memory: Memory | None = None


class SlurmCluster(Strict):
    """A cluster file for SLURM.

    Attributes:
        account: As of `sbatch --account`, and so on for `partition`, `qos`, `constraint`.
        time: Limit of a job in minutes, or as SLURM writes it (1-12:00:00). A training that meets it continues.
        gpus: GPUs of a task: a cell uses one at most.
        gpu_type: Such as a100.
        cpus: Cores of a task. A cell computes with one thread.
        memory: Of a task, such as 8G; the cluster's default without it.
        sbatch: Further options, such as --nice=100.
        setup: Shell lines that run on the node before Python starts.
        python: What starts Python there; the one that runs `bench` without it.
        data: Folder of data sets there, where it is another than here.
        cells_per_task: Cells that a task runs one after the other; without it all are spread over at most 200 tasks.
        at_once: The most tasks of an array at once.
        notice: Seconds before the time limit at which a training is told to write its checkpoint.
        tries: How often in a row a cell may be lost without getting anywhere before it counts as failed.
        poll: Seconds between two looks at the results.
        grace: Seconds for which a job must be gone from the queue before it counts as ended.
        prepare: What the preparation of cases asks for instead.
    """

    account: Name | None = None
    partition: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    time: Limit | None = None
    gpus: int = Field(default=0, ge=0, le=1)
    gpu_type: Name | None = None
    cpus: int = Field(default=1, ge=1)
    memory: Memory | None = None
    sbatch: list[Option] = Field(default=[])
    setup: list[str] = Field(default=[])
    python: str | None = None
    data: str | None = None
    cells_per_task: int | None = Field(default=None, ge=1)
    at_once: int | None = Field(default=None, ge=1)
    notice: int = Field(default=120, ge=1)
    tries: int = Field(default=3, ge=1)
    poll: float = Field(default=10.0, gt=0)
    grace: float = Field(default=60.0, ge=0)
    prepare: Prepare = Prepare()

    @property
    def options(self) -> dict[str, Any]:
        """The further options by name; True for those without a value."""
        parts = (option.removeprefix("--").partition("=") for option in self.sbatch)
        return {name: value if equals else True for name, equals, value in parts}

    @property
    def gres(self) -> str | None:
        """The GPU as `sbatch --gres` takes it."""
        kind = f":{self.gpu_type}" if self.gpu_type else ""
        return f"gpu{kind}:{self.gpus}" if self.gpus else None


def read_cluster(path: Path | None) -> SlurmCluster:
    """Read a cluster file; without one, what the cluster itself takes for default.

    Raises:
        BenchError: File, line, key, what was found, what was expected.
    """
    if path is None:
        return SlurmCluster()
    file = read_yaml(path)
    cluster = file.parse(SlurmCluster)
    if cluster.gpu_type and not cluster.gpus:
        raise file.error(("gpu_type",), "names a kind of GPU, and `gpus` is 0; write gpus: 1.")
    if cluster.data is not None and not Path(cluster.data).is_absolute():
        raise file.error(("data",), f"expected a folder from the root, found {cluster.data!r}.")
    return cluster


def device_on(cluster: SlurmCluster, asked: str) -> str:
    """The device on a node; SLURM shows a job only the GPU that it was given.

    Raises:
        BenchError: A GPU is asked for, and the cluster file takes none.
    """
    if asked == "auto":
        return "cuda:0" if cluster.gpus else "cpu"
    if asked == "cpu":
        return "cpu"
    if asked not in ("cuda", "cuda:0"):
        raise BenchError(f"--device {asked}: expected auto, cpu or cuda; which GPU it is SLURM decides.")
    if not cluster.gpus:
        raise BenchError(f"--device {asked}: the jobs ask for no GPU; write gpus: 1 into the file of --cluster.")
    return "cuda:0"
