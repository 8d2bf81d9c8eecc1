"""The parts of `--on ray` that need no cluster: its file, its sentences, and what becomes of a cell that was lost."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.backends import ray_cluster
from harness.backends.ray_cluster import (
    Need,
    RayCluster,
    capacity,
    device_and_gpus,
    need_of,
    no_room,
    problem_of,
    read_ray_cluster,
)
from harness.backends.ray_slot import Met, versions_here
from harness.cell import Cell, Place
from harness.cli import main
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.order import Queue
from harness.progress import RunProgress
from harness.records import RunRecord
from harness.suite import load_suite


def _node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_the_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("address: head:6379\ncpus: 2\ngpus: 0.25\nmemory: 8G\nresources: {a100: 0.5}\ntries: 5\n")
    cluster = read_ray_cluster(path)
    assert need_of(cluster, 0.25) == Need(2, 0.25, 8 * 2**30, {"a100": 0.5})
    assert need_of(cluster, 0.25).options == {
        "num_cpus": 2,
        "num_gpus": 0.25,
        "memory": 8 * 2**30,
        "resources": {"a100": 0.5},
    }
    assert str(need_of(cluster, 0.25)) == "cpus 2, gpus 0.25, memory 8G, a100 0.5"
    assert need_of(read_ray_cluster(None), 0) == Need(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adress: head:6379", "cluster.yaml:1: adress: unknown key (did you mean 'address'?)"),
        ("cpus: 1\ngpus: 2", "cluster.yaml:2: gpus: expected a number up to 1, found 2."),
        ("cpus: 0", "cpus: expected a number above 0, found 0."),
        ("memory: 8 GB", "memory: expected a number with K, M, G or T, such as 8G, found '8 GB'"),
        ("address: ray://head:10001", "expected HOST:PORT, `auto` or `local`: bench runs on a machine of the cluster"),
        ("address: head", "address: expected HOST:PORT such as head:6379"),
        ("address: head:70000", "address: expected HOST:PORT such as head:6379"),
        ("resources: {GPU: 1}", "resources: GPU has a key of its own; write `gpus:`"),
        ("tries: 0", "tries: expected a number from 1, found 0."),
    ],
)
def test_mistakes_in_the_cluster_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(BenchError) as error:
        read_ray_cluster(path)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("asked", "gpus", "there", "expected"),
    [
        ("auto", None, 0, ("cpu", 0)),
        ("auto", None, 4, ("cuda:0", 1)),
        ("auto", 0.25, 0, ("cuda:0", 0.25)),
        ("auto", 0, 4, ("cpu", 0)),
        ("cpu", None, 4, ("cpu", 0)),
        ("cuda", None, 0, ("cuda:0", 1)),
        ("cuda", 0.5, 4, ("cuda:0", 0.5)),
        ("cpu", 0.5, 4, "gpus: 0.5; leave out one of the two"),
        ("cuda", 0, 4, "gpus: 0; leave out one of the two"),
        ("cuda:1", None, 4, "which GPU it is Ray decides"),
    ],
)
def test_the_device_of_a_cell(asked: str, gpus: float | None, there: float, expected: Any) -> None:
    cluster = RayCluster(gpus=gpus)
    if isinstance(expected, tuple):
        assert device_and_gpus(asked, cluster, there) == expected
        return
    with pytest.raises(BenchError, match=expected):
        device_and_gpus(asked, cluster, there)


def test_capacity() -> None:
    nodes = [_node(CPU=4, GPU=2, memory=10 * 2**30), _node(CPU=1, memory=2**30), _node(alive=False, CPU=64, GPU=8)]
    assert capacity(nodes, Need(1)) == 5
    assert capacity(nodes, Need(0.1)) == 50  # and not 49 for want of a last digit
    assert capacity(nodes, Need(1, gpus=1)) == 2
    assert capacity(nodes, Need(0.5, gpus=0.25)) == 8
    assert capacity(nodes, Need(0.1, gpus=0.4)) == 4  # twice on each GPU
    assert capacity(nodes, Need(1, memory=4 * 2**30)) == 2
    assert capacity(nodes, Need(1, resources={"a100": 1})) == 0
    text = str(no_room(nodes, Need(8, gpus=1)))
    assert "a cell asks for cpus 8, gpus 1" in text and "CPU 4, GPU 2, memory 10G; CPU 1, memory 1G" in text
    assert "64" not in text and "--workers" in text


def test_a_node_that_must_not_run_cells() -> None:
    here = versions_here()
    assert {"Python", "torch", "segmentation-loss-bench"} <= here.keys() and here["torch"][0].isdigit()
    good = Met("n1", versions=here)
    assert problem_of(good, here, Path("/out"), None) == ""
    assert "n1 of the Ray cluster does not see /out" in problem_of(replace(good, out=False), here, Path("/out"), None)
    assert "does not see /data" in problem_of(replace(good, data=False), here, Path("/out"), Path("/data"))
    other = replace(good, versions=here | {"torch": "1.0"})
    assert f"has torch 1.0, here it is {here['torch']}" in problem_of(other, here, Path("/out"), None)


def _bench(toy: Any, *args: str) -> int:
    folders = ["--data", str(toy.folder / "data"), "--out", str(toy.folder / "runs"), "--reports", str(toy.folder)]
    return main(["run", str(toy.suite()), *folders, "--on", "ray", *args])


def test_without_the_package(toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert _bench(toy) == 2
    error = capsys.readouterr().err
    assert "pip install 'segmentation-loss-bench[ray]'" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "args", "words"),
    [
        ("127.0.0.1:1", (), "nothing answers at 127.0.0.1:1 (Connection refused)"),
        ("ray://127.0.0.1:10001", (), "RAY_ADDRESS=ray://127.0.0.1:10001: expected HOST:PORT"),
        ("", ("--detach",), "--detach: is for --on slurm"),
        ("", ("--cluster", "none.yaml"), "none.yaml: no such file"),
    ],
)
def test_no_cluster_is_one_sentence(
    toy: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    args: tuple[str, ...],
    words: str,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    assert _bench(toy, *args) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
    assert time.monotonic() - began < 60  # Ray's own attempts take minutes


def test_what_answers_is_no_cluster(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray_cluster, "REACH_SECONDS", 5.0)
        assert _bench(toy) == 2
    error = capsys.readouterr().err
    assert f"what answers at {address} is no Ray cluster" in error and error.count("\n") == 1


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (tmp_path / "toy.yaml").write_text(
        "suite: toy\ndata: {manifest: phantom, split: default, slices: {size: [32, 32]}}\n"
        "models: [unet: {width: 2, depth: 2}]\nlosses: [dice]\ntimeout: 60\n"
        "train: {epochs: 1, steps: 2, batch: 2, optimizer: {adam: {lr: 1e-3}}}\n"
    )
    return load_suite(tmp_path / "toy.yaml").cells[0]


class Rig:
    """A dispatch whose only process is not there."""

    def __init__(self, out: Path, cell: Cell) -> None:
        module = pytest.importorskip("harness.backends.ray_dispatch", reason="Ray is not installed")
        self.module, self.cell, self.text = module, cell, StringIO()
        console = Console(file=self.text, width=400)
        place = Place(out, None)
        team = SimpleNamespace(place=place, console=console, end=lambda seat: None)
        estimates = Estimates(())
        queue = Queue([], estimates.weight)
        progress = RunProgress(1, console)
        self.dispatch = module.Dispatch(team, RayCluster(), progress, estimates, {}, queue, 1, {cell.eval_id})
        self.path = cell.eval_folder(out) / "record.json"
        self.seat = self.begin(False)

    def begin(self, fresh: bool) -> Any:
        task = self.module.Task(self.cell, fresh, self.module._identity(self.path))
        self.seat = self.module.Seat(0, None, None, task, Met("n1"), kills=2)
        return self.seat

    def write(self, status: str, message: str = "") -> RunRecord:
        record = RunRecord(self.cell.train_id, self.cell.eval_id, status, message, self.cell.described())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record.write(self.path)
        return record

    def settle(self, outcome: Any) -> RunRecord | None:
        found: RunRecord | None = self.dispatch._settle(self.seat, self.seat.work, outcome)
        return found


@pytest.fixture
def rig(tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(tmp_path / "runs", cell)
    monkeypatch.setattr(made.module, "_kills_on", lambda node: 2)
    monkeypatch.setattr(made.module, "PATIENCE", 0.3)
    return made


def _died() -> Any:
    from ray.exceptions import ActorDiedError

    return ActorDiedError()


def test_a_lost_cell_goes_back_until_its_tries_are_spent(rig: Rig) -> None:
    assert rig.settle(_died()) is None and rig.dispatch.queue.take() == rig.cell
    assert rig.settle(_died()) is None
    rig.seat.moved = (10, 20, 0.5)  # it got somewhere: this counts as the first time
    assert rig.settle(_died()) is None
    assert rig.settle(_died()) is None
    record = rig.settle(_died())
    assert (
        record is not None and record.status == "error" and "n1 died, or the node was lost, 3 times" in record.message
    )
    assert rig.path.is_file()


def test_a_lost_cell_whose_record_is_there_is_done(rig: Rig) -> None:
    rig.write("ok")
    record = rig.settle(_died())
    assert record is not None and record.status == "ok"
    rig.begin(False)  # its own failure, written before the process went
    rig.write("error", "its own")
    record = rig.settle(_died())
    assert record is not None and record.message == "its own"
    rig.begin(False)  # the failure of an earlier run is no answer
    assert rig.settle(_died()) is None


def test_a_cell_that_is_run_again_is_not_taken_for_done(rig: Rig) -> None:
    rig.write("ok")
    rig.begin(fresh=True)
    assert rig.settle(_died()) is None and rig.cell.eval_id in rig.dispatch.fresh  # it had not begun
    rig.begin(fresh=True)
    rig.path.unlink()  # it had: what is there now is of this run
    assert rig.settle(_died()) is None and rig.cell.eval_id not in rig.dispatch.fresh


def test_too_little_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import OutOfMemoryError

    record = rig.settle(OutOfMemoryError("a long text"))
    assert record is not None and record.status == "oom" and "Ray's memory monitor" in record.message
    rig.path.unlink()
    monkeypatch.setattr(rig.module, "_kills_on", lambda node: 3)  # one more than when the cell began
    record = rig.settle(_died())
    assert record is not None and record.status == "oom" and "n1" in record.message and "the system" in record.message


def test_ray_is_not_believed(rig: Rig) -> None:
    said = RunRecord(rig.cell.train_id, rig.cell.eval_id, "ok", "", rig.cell.described())
    record = rig.settle((said, 2))
    assert record is not None and record.status == "error" and "is this folder the same on all nodes?" in record.message
    rig.path.unlink()
    rig.begin(False)
    rig.write("diverged", "as written")
    record = rig.settle((said, 2))
    assert record is not None and (record.status, record.message) == ("diverged", "as written")


def test_a_cell_that_another_process_runs_is_tried_again_later(rig: Rig) -> None:
    held = replace(rig.write("interrupted"), message="another process is running this cell")
    assert rig.settle((held, 2)) is None
    [(when, cell)] = rig.dispatch.held
    assert when > time.monotonic() and cell == rig.cell and not rig.dispatch.queue and rig.dispatch.left == 1
