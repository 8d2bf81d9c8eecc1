"""Which Ray cluster, what a cell takes of it, and how to reach it: the file of `--cluster` for `--on ray`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from harness.backends.ray_slot import Met
from harness.errors import BenchError
from harness.processes import cores
from harness.yamlfile import Strict, read_yaml

OBJECT_STORE = 80 * 2**20  # bytes, near the least that Ray takes: what passes through it are cells and records
REACH_SECONDS = 60.0  # to connect; Ray's own attempts go on for minutes
_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}  # a bare number is megabytes, as for SLURM


class RayCluster(Strict):
    """A cluster file for Ray. Every key has a default.

    Attributes:
        address: HOST:PORT of the cluster, `auto` for the one that runs on this machine, or `local` to start one here;
            without it RAY_ADDRESS, else `local`.
        cpus: Cores that a cell reserves. It computes with one thread.
        gpus: GPUs that a cell reserves, such as 0.25 for four cells on each; by default 1 where the cluster has GPUs.
        memory: That a cell reserves, such as 8G. Ray counts it and does not enforce it.
        resources: Further resources that a cell reserves, by the names that the nodes were started with.
        tries: How often in a row a cell may be lost without getting anywhere before it counts as failed.
        grace: Seconds for checkpoints to be written after Ctrl-C.
        dashboard: Whether a cluster started here has Ray's dashboard.
    """

    address: str | None = None
    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0, le=1)
    memory: str | None = None
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    tries: int = Field(default=3, ge=1)
    grace: float = Field(default=60.0, ge=0)
    dashboard: bool = False

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else checked_address(value)

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d*[KMGT]?", value):
            raise ValueError("expected a number with K, M, G or T, such as 8G")
        return value

    @field_validator("resources")
    @classmethod
    def _resources(cls, value: dict[str, float]) -> dict[str, float]:
        for name, key in (("CPU", "cpus"), ("GPU", "gpus"), ("memory", "memory")):
            if name in value:
                raise ValueError(f"{name} has a key of its own; write `{key}:`")
        return value


@dataclass(frozen=True)
class Need:
    """What a cell reserves of a node, in the units of Ray: cores, GPUs, bytes and further resources by name."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"cpus {self.cpus:g}"]
        if self.gpus:
            parts.append(f"gpus {self.gpus:g}")
        if self.memory:
            parts.append(f"memory {self.memory / 2**30:.3g}G")
        return ", ".join([*parts, *(f"{name} {amount:g}" for name, amount in self.resources.items())])

    @property
    def options(self) -> dict[str, Any]:
        """As Ray takes it."""
        found: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.resources)}
        return found | ({"memory": self.memory} if self.memory else {})


def read_ray_cluster(path: Path | None) -> RayCluster:
    """Read a cluster file; without one, the defaults.

    Raises:
        BenchError: File, line, key, what was found, what was expected.
    """
    return RayCluster() if path is None else read_yaml(path).parse(RayCluster)


def checked_address(value: str) -> str:
    """An address that a run can use.

    Raises:
        ValueError: It is none, or that of Ray Client, whose driver is no part of the cluster.
    """
    if value in ("auto", "local"):
        return value
    if "://" in value:
        raise ValueError(
            "expected HOST:PORT, `auto` or `local`: bench runs on a machine of the cluster, where it sees the results"
        )
    port = value.rpartition(":")[2]
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d+", value) or not 0 < int(port) < 65536:
        raise ValueError("expected HOST:PORT such as head:6379, `auto` or `local`")
    return value


def device_and_gpus(asked: str, cluster: RayCluster, there: float) -> tuple[str, float]:
    """The device of a cell and the GPUs that it reserves; Ray shows a process only the GPU that it was given.

    Args:
        asked: What the user asks for.
        cluster: The cluster file.
        there: GPUs of the cluster.

    Raises:
        BenchError: The two do not go together.
    """
    if asked not in ("auto", "cpu", "cuda", "cuda:0"):
        raise BenchError(f"--devices {asked}: expected auto, cpu or cuda; which GPU it is Ray decides.")
    gpus = cluster.gpus
    if asked == "cpu":
        if gpus:
            raise BenchError(f"--devices cpu: the file of --cluster has gpus: {gpus:g}; leave out one of the two.")
        return "cpu", 0.0
    if asked == "auto":
        gpus = (1.0 if there else 0.0) if gpus is None else gpus
    elif gpus is None:
        gpus = 1.0
    elif not gpus:
        raise BenchError(f"--devices {asked}: the file of --cluster has gpus: 0; leave out one of the two.")
    return ("cuda:0", gpus) if gpus else ("cpu", 0.0)


def need_of(cluster: RayCluster, gpus: float) -> Need:
    """What a cell reserves, as the cluster file says."""
    number, unit = re.fullmatch(r"(\d+)(\D?)", cluster.memory or "0").groups()  # type: ignore[union-attr]
    return Need(cluster.cpus, gpus, int(number) * _UNITS[unit], cluster.resources)


def capacity(nodes: Iterable[Mapping[str, Any]], need: Need) -> int:
    """How many cells the nodes that are alive can hold at once, were there nothing else.

    Args:
        nodes: As `ray.nodes()` gives them.
        need: Of one cell.
    """
    total = 0
    for node in nodes:
        if not node["Alive"]:
            continue
        have = node["Resources"]
        fits = [_times(have.get("CPU", 0.0), need.cpus)]
        if need.gpus:  # a cell's share is of one GPU: 0.4 goes twice into each
            fits.append(int(have.get("GPU", 0.0)) * _times(1.0, need.gpus))
        if need.memory:
            fits.append(_times(have.get("memory", 0.0), need.memory))
        fits += [_times(have.get(name, 0.0), amount) for name, amount in need.resources.items()]
        total += min(fits)
    return total


def room(nodes: Iterable[Mapping[str, Any]], need: Need) -> int:
    """The most cells that share the memory of a device: of one GPU, or of the node that holds the most of them."""
    if need.gpus:
        return _times(1.0, need.gpus)
    return max([1, *(capacity([node], need) for node in nodes)])


def _times(have: float, need: float) -> int:
    return int(have / need + 1e-9)


def no_room(nodes: Iterable[Mapping[str, Any]], need: Need) -> BenchError:
    """What to say where not one cell fits on any node."""
    names = ("CPU", "GPU", *need.resources)
    found = [
        ", ".join(f"{n} {node['Resources'][n]:g}" for n in names if n in node["Resources"])
        + f", memory {node['Resources'].get('memory', 0) / 2**30:.3g}G"
        for node in nodes
        if node["Alive"]
    ]
    has = "; ".join(dict.fromkeys(found)) or "nothing"
    return BenchError(
        f"--on ray: a cell asks for {need}, and no node of the cluster has that (there: {has.removeprefix(', ')}); "
        "change the file of --cluster, or say --workers N to wait for nodes that an autoscaler starts."
    )


def problem_of(met: Met, here: Mapping[str, str], out: Path, root: Path | None) -> str:
    """Why cells must not run in a process on a node, in one sentence; empty if they may.

    Args:
        met: What the process says.
        here: `versions_here` of the machine that gives the orders.
        out: Folder of results.
        root: Folder of data sets, or None.
    """
    for seen, folder in ((met.out, out), (met.data, root)):
        if not seen:
            return (
                f"{met.host} of the Ray cluster does not see {folder} as it is here; results and data must lie in "
                "folders that all nodes share, under the same path (docs/clusters.md)"
            )
    for name, known in here.items():
        found = met.versions.get(name, "none")
        if found != known:
            return (
                f"{met.host} of the Ray cluster has {name} {found}, here it is {known}; "
                "cells of one comparison need the same on all nodes"
            )
    return ""


@contextlib.contextmanager
def connected(cluster: RayCluster, workers: int | None) -> Iterator[None]:
    """Inside, Ray is connected to the cluster, or to one started on this machine that ends with the block.

    A Ray that the calling program has initialised itself is used as it is, and left so.

    Raises:
        BenchError: There is no cluster at the address, or it cannot be started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = _asked_address(cluster)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "configure_logging": True,
    }
    with contextlib.ExitStack() as stack:
        if address == "local":
            # sockets lie in this folder, and their paths may have 107 bytes, of which Ray takes some 65
            usual = tempfile.gettempdir()
            folder = tempfile.mkdtemp(prefix="ray-", dir=usual if len(usual) < 25 else "/tmp")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            quiet |= {
                "num_cpus": max(cores(), int(-(-(workers or 0) * cluster.cpus // 1))),
                "include_dashboard": cluster.dashboard,
                "object_store_memory": OBJECT_STORE,
                "_temp_dir": folder,
            }
        else:
            _reach(address)
        stack.callback(ray.shutdown)
        try:
            ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises many kinds
            what = "no Ray could be started here" if address == "local" else f"the cluster at {address} refuses"
            raise BenchError(f"--on ray: {what} ({_last_line(str(error))}).") from None
        _silence()
        yield


def _asked_address(cluster: RayCluster) -> str:
    if cluster.address is not None:
        return cluster.address
    told = os.environ.get("RAY_ADDRESS")
    try:
        return checked_address(told) if told else "local"
    except ValueError as error:
        raise BenchError(f"RAY_ADDRESS={told}: {error}.") from None


def _reach(address: str) -> None:
    """See that there is a cluster, within seconds: left to itself, Ray tries for minutes and ends with a traceback.

    Raises:
        BenchError: There is none, or it cannot be used from here.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise BenchError(
                f"--on ray: nothing answers at {address} ({error.strerror or error}); is the cluster up (`ray start "
                "--head`), and is this the address of its head?"
            ) from None
    code = f"import logging, ray; ray.init({address!r}, log_to_driver=False, logging_level=logging.CRITICAL)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=REACH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(
            f"--on ray: what answers at {address} is no Ray cluster that this machine is a part of (tried for "
            f"{REACH_SECONDS:g} s); the port is that of `ray start --head`, 6379 by default."
        ) from None
    if done.returncode:
        raise BenchError(f"--on ray: no connection to {address} ({_last_line(done.stderr)}).")


def _silence() -> None:
    """Take Ray's messages of its daemons off the terminal; what they mean for a cell is said in its own sentence."""
    with contextlib.suppress(ImportError, AttributeError):  # a detail of Ray's that may be another in a later version
        from ray._private import worker

        if callable(worker.print_to_stdstream):
            worker.print_to_stdstream = lambda *args, **kwargs: None


def _last_line(text: str) -> str:
    """The last line that says something, without the name of an exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1]).rstrip(".") if lines else "no message"
