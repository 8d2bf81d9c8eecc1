"""`bench run --on ray` on a real cluster of this machine: two nodes, killed processes, a lost node, Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'segmentation-loss-bench[ray]'")

from harness.backends import Asked  # noqa: E402
from harness.backends.ray_cluster import Need, RayCluster, capacity, connected  # noqa: E402
from harness.backends.ray_slot import Met, Slot, versions_here  # noqa: E402
from harness.cell import Cell, Place  # noqa: E402
from harness.follow import Follow  # noqa: E402
from harness.plan import Entry  # noqa: E402
from harness.records import RunRecord, read_record  # noqa: E402
from harness.suite import load_suite  # noqa: E402

pytestmark = pytest.mark.ray

LONG = 400.0  # seconds that anything may take on a busy machine
QUICK = {"RAY_TMPDIR": "", "RAY_USAGE_STATS_ENABLED": "0", "BENCH_CHECKPOINT_SECONDS": "0.05"}

LOSSES = '''
import os, signal, time
from pathlib import Path
from torch import nn

CALLS = Path(__file__).with_name("calls")


class Kills(nn.Module):
    def forward(self, logits, target):
        os.kill(os.getpid(), signal.SIGKILL)


class Raises(nn.Module):
    def forward(self, logits, target):
        raise RuntimeError("a mistake in the user's loss")


class Hangs(nn.Module):
    def forward(self, logits, target):
        time.sleep(1000)


class Slow(nn.Module):
    """Writes down which process made a step; the check of the loss before it has other batches."""

    def forward(self, logits, target):
        if tuple(logits.shape) == (4, 3, 32, 32):
            with CALLS.open("a") as stream:
                stream.write(f"{os.getpid()}\\n")
            time.sleep(0.03)
        return logits.square().mean()
'''


class TwoNodes:
    """A head without cores and two nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._options = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=self._options | {"num_cpus": 0})
        for _ in range(2):
            self.add()

    def add(self, **options: Any) -> Any:
        return self.cluster.add_node(**self._options | options)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: sockets lie in it, and theirs may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))
    (path / "ray").mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUICK | {"RAY_TMPDIR": str(folder)}).items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            made = TwoNodes()
        except Exception as error:  # no shared memory, no ports, ...
            pytest.skip(f"Ray cannot start here: {error}")
        try:
            yield made
        finally:
            made.cluster.shutdown()
    assert _wait(lambda: not _processes(folder)), "something of the cluster is left"


def _started(toy: Any, suite: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    command = [*toy.command("run", suite, "--on", "ray", "--only", "loss=*", *args), "--out", str(toy.folder / "runs")]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=toy.folder,
        env=os.environ | {"BENCH_CHECKPOINT_SECONDS": "0.05", "COLUMNS": "400"} | environment,
        start_new_session=True,
        # a test run in the background of a shell ignores Ctrl-C, and so would everything it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _run(toy: Any, suite: Path, *args: str, **environment: str) -> tuple[int, str]:
    process = _started(toy, suite, *args, **environment)
    text = process.communicate(timeout=LONG)[0]
    assert "Traceback" not in text, text
    return process.returncode, text


def _local(toy: Any, suite: Path, *only: str) -> dict[str, dict[str, Any]]:
    """The records of the same cells on this machine, without Ray."""
    command = [*toy.command("run", suite, "--only", *(only or ("loss=*",))), "--out", str(toy.folder / "local")]
    done = subprocess.run(command, cwd=toy.folder, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = toy.records("local")
    return found


REFERENCE: dict[str, dict[str, Any]] = {}


def _slow_here(toy: Any, suite: Path) -> dict[str, Any]:
    """The record of `Slow` on this machine, without Ray; made once."""
    if not REFERENCE:
        REFERENCE.update(_local(toy, suite))
    return REFERENCE["Slow"]


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in ("status", "train_id", "eval_id", "weights", "fingerprints", "cell", "sources", "environment"):
        assert ours[key] == theirs[key], key
    assert (ours["folder"] / "cases.csv").read_bytes() == (theirs["folder"] / "cases.csv").read_bytes()
    curve = Path("..", "curve.csv")
    assert (ours["folder"] / curve).read_bytes() == (theirs["folder"] / curve).read_bytes()


def _wait(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _processes(folder: Path, title: bytes = b"") -> list[int]:
    """Processes of our clusters, and not of anybody else's: they have their logs open, which lie there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(link) for link in (path / "fd").iterdir()]
            if int(path.name) != os.getpid() and title in (path / "cmdline").read_bytes():
                found += [int(path.name)] if any(str(folder) in file for file in files) else []
        except OSError:
            continue
    return found


def _calls(toy: Any) -> list[int]:
    """The process of every step of `Slow`."""
    path = toy.folder / "calls"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def _slow(toy: Any) -> Path:
    (toy.folder / "mine.py").write_text(LOSSES)
    suite: Path = toy.suite("losses: [dice, ce]", "losses: ['mine.py:Slow']")
    suite.write_text(suite.read_text().replace("epochs: 2, steps: 4", "epochs: 20, steps: 10"))
    return suite


def _continued(toy: Any, before: int) -> None:
    """The last process did what was left, and not all from the start."""
    last = _calls(toy).count(_calls(toy)[-1])
    assert before >= 20 and last < 200 - before / 2, (before, last)
    assert "resumed from step" in (toy.records()["Slow"]["folder"].parent / "log.txt").read_text()


def test_bad_losses_fail_alone_and_the_others_are_those_of_a_local_run(nodes: TwoNodes, folder: Path, toy: Any) -> None:
    (toy.folder / "mine.py").write_text(LOSSES)
    (toy.folder / "cluster.yaml").write_text(f"address: {nodes.cluster.address}\ntries: 2\n")
    listed = "losses: ['mine.py:Kills', 'mine.py:Hangs', dice, 'mine.py:Raises', ce]\ntimeout: 120"
    suite = toy.suite("losses: [dice, ce]", listed)
    code, text = _run(toy, suite, "--cluster", str(toy.folder / "cluster.yaml"))
    assert code == 1, text
    records = toy.records()
    found = {label: record["status"] for label, record in records.items()}
    assert found == {"Kills": "error", "Hangs": "timeout", "dice": "ok", "Raises": "error", "ce": "ok"}, text
    assert "2 times in a row" in records["Kills"]["message"] and "(1 of 2 tries)" in text
    assert "a mistake in the user's loss (mine.py" in records["Raises"]["message"]
    assert "not finished after 120 s" in records["Hangs"]["message"]
    local = _local(toy, suite, "loss=[dc][ie]*")
    for label in ("dice", "ce"):
        _same(records[label], local[label])
    assert _wait(lambda: not _processes(folder, b"ray::Slot")), "processes of cells are left"


def test_a_killed_process_costs_no_cell(nodes: TwoNodes, toy: Any) -> None:
    suite = _slow(toy)
    process = _started(toy, suite, RAY_ADDRESS=nodes.cluster.address)
    assert _wait(lambda: len(_calls(toy)) > 30, LONG)
    before = len(_calls(toy))
    os.kill(_calls(toy)[-1], signal.SIGKILL)
    text = process.communicate(timeout=LONG)[0]
    assert process.returncode == 0 and "Traceback" not in text, text
    assert "Slow / unet / toy / seed 0: its process on" in text and "(1 of 3 tries)" in text
    assert len(set(_calls(toy))) == 2
    _continued(toy, before)
    _same(toy.records()["Slow"], _slow_here(toy, suite))
    assert not list((toy.folder / "runs").glob("*/checkpoint.pt"))
    assert not list((toy.folder / "runs").glob(".seen-*"))


def test_a_lost_node_takes_its_cell_to_another(nodes: TwoNodes, toy: Any) -> None:
    """The only node of its kind is lost; another one of the kind comes later."""
    kind = nodes.add(resources={"kind": 1})
    (toy.folder / "cluster.yaml").write_text(f"address: {nodes.cluster.address}\nresources: {{kind: 1}}\n")
    suite = _slow(toy)
    process = _started(toy, suite, "--cluster", str(toy.folder / "cluster.yaml"))
    other = None
    try:
        assert _wait(lambda: len(_calls(toy)) > 30, LONG)
        nodes.cluster.remove_node(kind, allow_graceful=False)
        before = len(_calls(toy))
        other = nodes.add(resources={"kind": 1})
    finally:
        text = process.communicate(timeout=LONG)[0]
        if other is not None:
            nodes.cluster.remove_node(other)
    assert process.returncode == 0 and "Traceback" not in text, text
    assert len(set(_calls(toy))) == 2 and "(1 of 3 tries)" in text
    _continued(toy, before)
    _same(toy.records()["Slow"], _slow_here(toy, suite))


def test_ctrl_c_keeps_checkpoints_and_the_same_command_continues(nodes: TwoNodes, folder: Path, toy: Any) -> None:
    """First on a cluster of its own: Ctrl-C in a terminal reaches all its processes, too."""
    suite = _slow(toy)
    (own := folder / "own").mkdir()
    process = _started(toy, suite, RAY_ADDRESS="", TMPDIR=str(own))
    assert _wait(lambda: len(_calls(toy)) > 30, LONG)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=LONG)[0]
    assert process.returncode == 130 and "Traceback" not in text, text
    assert "running cells write their checkpoints" in text and "the same command continues" in text
    assert [r["status"] for r in toy.records().values()] == ["interrupted"]
    assert list((toy.folder / "runs").glob("*/checkpoint.pt"))
    assert _wait(lambda: not _processes(own) and not list(own.glob("ray-*"))), "something of the cluster is left"

    before = len(_calls(toy))
    code, text = _run(toy, suite, RAY_ADDRESS=nodes.cluster.address)
    assert code == 0, text
    _continued(toy, before)
    _same(toy.records()["Slow"], _slow_here(toy, suite))


def test_what_bench_counts_is_what_ray_gives(nodes: TwoNodes) -> None:
    """Shares of GPUs: 0.4 of one fits twice into each, and not five times into two."""
    gpus = nodes.add(num_gpus=2, resources={"shared": 100})
    need = Need(cpus=0.01, gpus=0.4, resources={"shared": 1})

    class Tiny:
        def which(self) -> list[str]:
            return os.environ["CUDA_VISIBLE_DEVICES"].split(",")

    with connected(RayCluster(address=nodes.cluster.address), None):
        assert capacity(ray.nodes(), need) == 4
        actors = [ray.remote(Tiny).options(**need.options).remote() for _ in range(5)]
        refs = [actor.which.remote() for actor in actors]
        done, waiting = ray.wait(refs, num_returns=4, timeout=LONG)
        assert sorted(ray.get(done)) == [["0"], ["0"], ["1"], ["1"]]
        assert not ray.wait(waiting, timeout=2)[0]
    nodes.cluster.remove_node(gpus)


Runs = Callable[..., list[RunRecord]]


@pytest.fixture
def quick(nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs cells in a folder, by processes that train nothing: what is tested is who gets which one, and when."""
    from harness.backends import ray_team
    from harness.backends.ray import run_cells

    class Quick(Slot):  # here, so that Ray sends it to processes that cannot import this file
        def meet(self, marker: Path) -> Met:
            return Met("here", versions=versions_here(), out=marker.is_file())

        def prepare(self, job: tuple[Any, ...]) -> str | None:
            return None

        def run(self, cell: Cell, fresh: bool) -> tuple[RunRecord, int | None]:
            path = cell.eval_folder(self._place.out) / "record.json"
            if path.is_file() and not fresh:
                return read_record(path), None
            status = "error" if cell.seed == 3 else "ok"
            message = "made again" if fresh else ""
            record = RunRecord(cell.train_id, cell.eval_id, status, message, cell.described(), sources=cell.sources)
            path.parent.mkdir(parents=True, exist_ok=True)
            record.write(path)
            return record, None

    monkeypatch.setattr(ray_team, "Slot", Quick)
    (tmp_path / "cluster.yaml").write_text(f"address: {nodes.cluster.address}\n")

    def run(folder: str, cells: list[Cell], **asked: Any) -> list[RunRecord]:
        place = Place(tmp_path / folder, None, "cpu")
        place.out.mkdir(exist_ok=True)
        told = Asked(cluster=tmp_path / "cluster.yaml", **asked)
        console = Console(file=StringIO())
        found: list[RunRecord] = run_cells([Entry(c, "missing") for c in cells], place, told, console)
        assert len(list(place.out.glob("*/*/record.json"))) >= len(found)
        return found

    return run


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    """80 of them, of two losses."""
    (tmp_path / "toy.yaml").write_text(
        "suite: toy\ndata: {manifest: phantom, split: default, slices: {size: [32, 32]}}\n"
        "models: [unet: {width: 2, depth: 2}]\nlosses: [dice, ce]\nseeds: 40\n"
        "train: {epochs: 1, steps: 1, batch: 2, optimizer: {adam: {lr: 1e-3}}}\n"
    )
    return [replace(cell, quick=True) for cell in load_suite(tmp_path / "toy.yaml").cells]


def _chain(cells: list[Cell], fresh: frozenset[str] = frozenset()) -> Follow:
    """Each cell that ends brings the next one, as the trials of a study do."""
    waiting = iter(cells)
    return Follow(lambda cell, record: list(islice(waiting, 1)), tuple(cells), len(cells), fresh)


def test_many_cells_cells_that_follow_and_fail_fast(quick: Runs, cells: list[Cell]) -> None:
    every = quick("all", cells)
    assert sorted(r.eval_id for r in every) == sorted(c.eval_id for c in cells)
    assert sum(r.status == "error" for r in every) == 2
    chained = quick("chained", cells[10:11], follow=_chain(cells[11:20]))
    assert [r.eval_id for r in chained] == [c.eval_id for c in cells[10:20]]
    stopped = quick("stopped", cells[2:], fail_fast=True)
    assert stopped[-1].status == "error" and len(stopped) < 10


def test_cells_that_follow_are_made_again_where_that_was_asked(quick: Runs, cells: list[Cell]) -> None:
    before = quick("out", cells[10:11], follow=_chain(cells[11:16]))
    again = frozenset(c.eval_id for c in cells[12:14])
    after = quick("out", cells[10:11], follow=_chain(cells[11:16], again))
    assert [r.eval_id for r in after] == [r.eval_id for r in before] == [c.eval_id for c in cells[10:16]]
    assert [r.message for r in before] == [""] * 6
    assert {r.eval_id for r in after if r.message == "made again"} == again
