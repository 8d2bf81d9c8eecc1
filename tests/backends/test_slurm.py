"""`bench run --on slurm` on a real SLURM with two nodes: tasks, nodes, the parent and the time limit die in it."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .slurm_cluster import Cluster, absent

pytestmark = pytest.mark.slurm

LONG = ("epochs: 2, steps: 4", "epochs: 10, steps: 60")
FILE = "{poll: 0.4, grace: 2, cells_per_task: 1, time: 30, notice: 60, prepare: {tasks: 1}}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := absent():
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        made.stop()
        pytest.skip(f"SLURM does not start here: {error}")
    yield made
    made.stop()


class Site:
    """The toy data set, a cluster file, and the command line on the cluster."""

    def __init__(self, toy, cluster: Cluster) -> None:
        self.toy, self.cluster = toy, cluster
        self.out = toy.folder / "runs"
        self.file = toy.folder / "cluster.yaml"
        self.file.write_text(FILE)

    def command(self, suite: Path, *more: str) -> list[str]:
        words = self.toy.command("run", suite, "--on", "slurm", "--cluster", self.file, *more)
        return [*words, "--out", str(self.out)]

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.env | {"BENCH_CHECKPOINT_SECONDS": "0.3", "OMP_NUM_THREADS": "1"}

    def start(self, suite: Path, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(suite, *more), env=self.environment, cwd=self.toy.folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, suite: Path, *more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(suite, *more)
        said, _ = process.communicate(timeout=500)
        return subprocess.CompletedProcess(process.args, process.returncode, said, "")

    def queue(self) -> list[str]:
        """Ids of the tasks that wait or run."""
        return self.cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()

    def training(self) -> list[tuple[str, str]]:
        """(id, node) of tasks whose cell has a checkpoint by now, which proves that it is in the middle."""
        rows = self.cluster.run("squeue", "-h", "-r", "-t", "R", "-o", "%i %N").stdout.splitlines()
        found = []
        for job, node in (row.split() for row in rows):
            for log in self.out.glob(f"slurm/*/{job}_0_log.out"):
                lines = [text for text in log.read_text().splitlines() if text.endswith(")") and "/" in text]
                train = lines[-1].rpartition("(")[2].partition("/")[0] if lines else ""
                if train and (self.out / train / "checkpoint.pt").is_file():
                    found.append((job, node))
        return found

    def started(self) -> Counter[str]:
        """How often each cell was started by a task."""
        logs = "".join(p.read_text() for p in self.out.glob("slurm/*/*_log.out"))
        return Counter(t.rpartition("(")[2].rstrip(")") for t in logs.splitlines() if t.endswith(")") and " / " in t)

    def submitted(self) -> Counter[str]:
        """How often each cell was submitted."""
        files = [json.loads(p.read_text()) for p in self.out.glob("slurm/*/cells.json")]
        return Counter(name for f in files if f["kind"] == "cells" for task in f["tasks"] for name in task)


@pytest.fixture
def site(toy, cluster: Cluster) -> Iterator[Site]:
    made = Site(toy, cluster)
    yield made
    if left := made.queue():
        cluster.run("scancel", "--signal=KILL", "--full", *{job.partition("_")[0] for job in left})
        cluster.run("scancel", *{job.partition("_")[0] for job in left})
    _wait(lambda: not made.queue(), "an empty queue")


def _wait(ready: Callable[[], object], what: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)


def test_arrays_with_killed_tasks_end_like_a_run_on_this_machine(site: Site) -> None:
    suite = site.toy.suite(*LONG)
    suite.write_text(suite.read_text().replace("seeds: 1", "seeds: 2"))
    process = site.start(suite)
    _wait(lambda: len(site.training()) > 1, "two trainings")
    killed, cancelled = (job for job, _ in site.training()[:2])
    site.cluster.kill_task(killed)
    site.cluster.run("scancel", "--signal=KILL", cancelled)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert f"SLURM job {killed} ended without a record (FAILED, exit code 0:9): 1 cell to be submitted again" in said
    assert f"SLURM job {cancelled} " in said
    files = [json.loads(p.read_text()) for p in site.out.glob("slurm/*/cells.json")]
    sizes = [len(f["tasks"]) for f in files if f["kind"] == "cells"]
    assert sorted(sizes)[-2:] in ([1, 3], [2, 3]) and sum(sizes) == 6  # MaxArraySize is 3; two cells came again
    assert sorted(site.submitted().values()) == [1, 1, 2, 2]
    assert not list(site.out.glob("*/checkpoint.pt"))

    again = site.run(suite)
    assert again.returncode == 0 and "4 done, 0 to run" in again.stdout

    here = site.toy.bench("run", suite, "--only", "seed=0", "--workers", "2", out="here")
    assert here.returncode == 0, here.stderr
    theirs, ours = site.toy.records(), site.toy.records("here")
    for label in ("dice", "ce"):
        assert theirs[label]["weights"] == ours[label]["weights"]
        assert (theirs[label]["folder"] / "cases.csv").read_bytes() == (
            ours[label]["folder"] / "cases.csv"
        ).read_bytes()


def test_a_lost_node_costs_no_cell(site: Site) -> None:
    suite = site.toy.suite("epochs: 2, steps: 4", "epochs: 10, steps: 60")
    text = FILE.replace("cells_per_task: 1", "cells_per_task: 2")
    site.file.write_text(text.replace("{", "{partition: other, ", 1))  # of n2 alone
    process = site.start(suite)
    _wait(site.training, "a training")
    job = site.training()[0][0]
    site.cluster.kill_node("n2")
    site.cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=lost")
    _wait(lambda: job not in site.training(), "the job to leave the node")
    site.cluster.start_node("n2")
    site.cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    for one in site.queue():  # SLURM lets a requeued job wait for two minutes
        site.cluster.run("scontrol", "update", f"JobId={one}", "StartTime=now")
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert [r["status"] for r in site.toy.records().values()] == ["ok", "ok"]
    assert (
        len(site.submitted()) == 2 and max(site.started().values()) >= 2
    )  # the cell that was lost with its node was started again


def test_what_a_parent_that_was_killed_left_running_is_not_submitted_again(site: Site) -> None:
    suite = site.toy.suite("epochs: 2, steps: 4", "epochs: 10, steps: 200")  # the first still trains
    site.file.write_text(FILE.replace("cells_per_task: 1", "cells_per_task: 2"))
    process = site.start(suite)
    _wait(site.training, "a training")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = site.run(suite)
    assert again.returncode == 0, again.stdout
    assert "2 cells are in SLURM jobs that still wait or run" in again.stdout
    assert set(site.submitted().values()) == {1} == set(site.started().values())
    assert len(site.started()) == 2


def test_ctrl_c_cancels_and_detach_leaves_running(site: Site) -> None:
    suite = site.toy.suite("epochs: 2, steps: 4", "epochs: 10, steps: 100")
    process = site.start(suite)
    _wait(site.training, "a training")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert not site.queue()
    assert list(site.out.glob("*/checkpoint.pt"))
    states = {r["status"] for r in site.toy.records().values()}
    assert states <= {"interrupted"} and states

    detached = site.run(suite, "--detach")
    assert detached.returncode == 0 and "the same command attaches" in detached.stdout, detached.stdout
    assert len(site.queue()) == 2

    # SLURM's notice before a time limit: the training stops with a checkpoint and is submitted again
    process = site.start(suite)
    _wait(lambda: any("begun" in p.name for p in site.out.glob("slurm/*/seen/*")) and site.training(), "a training")
    job = site.training()[0][0]
    site.cluster.run("scancel", "--batch", "--signal=TERM", job)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert "2 cells are in SLURM jobs" in said and f"SLURM job {job} was stopped" in said
    assert [r["status"] for r in site.toy.records().values()] == ["ok", "ok"]


@pytest.mark.slow
def test_a_time_limit_in_the_middle_of_a_training(site: Site) -> None:
    """SLURM looks at time limits every half minute: this one takes some minutes."""
    suite = site.toy.suite("epochs: 2, steps: 4", "epochs: 100, steps: 60")
    site.file.write_text(FILE.replace("time: 30, notice: 60", "time: 1, notice: 20, tries: 10"))
    done = site.run(suite, "--only", "loss=ce")
    assert done.returncode == 0, done.stdout
    assert "was stopped" in done.stdout
    assert site.toy.records()["ce"]["status"] == "ok"
