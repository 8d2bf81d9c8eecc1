"""The SLURM backend without a SLURM: the cluster file, what is submitted, what is read, and jobs that leave nothing."""

import io
import json
import os
import signal
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.backends import Asked, backend_of, slurm_queue
from harness.backends.cluster_file import SlurmCluster, device_on, read_cluster
from harness.backends.slurm import Watch, run_cells
from harness.backends.slurm_jobs import CELLS, bundles, dealt, new_submission, parameters, submissions
from harness.backends.slurm_task import Bundle, Mark, Marks, _limit, read_marks, run_bundle
from harness.cell import Cell, Place
from harness.claims import HELD, take
from harness.errors import BenchError
from harness.follow import Follow
from harness.launch import run_entries
from harness.plan import Entry, make_plan
from harness.progress import RunProgress
from harness.records import RunRecord, read_record
from harness.suite import load_suite


def _file(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("account: a\npartion: gpu\n", ":2: partion: unknown key (did you mean 'partition'?)"),
        ("time: soon\n", ":1: time: expected minutes, or hours as in 12:00:00 or 1-12:00:00, found 'soon'."),
        ("time: 0\n", ":1: time: expected minutes, 1 or more, found 0."),
        ("time: true\n", ":1: time: expected minutes, 1 or more, found True."),
        ("gpus: 4\n", ":1: gpus: expected a number up to 1, found 4."),
        ("gpu_type: a100\n", ":1: gpu_type: names a kind of GPU, and `gpus` is 0; write gpus: 1."),
        ("memory: 8 GB\n", ":1: memory: expected a number with K, M, G or T, such as 8G, found '8 GB'."),
        ("sbatch:\n- --nice=10\n- -p gpu\n", ":3: sbatch[1]: expected an option such as --nice=100, found '-p gpu'."),
        ("sbatch: [--array=0-3]\n", ":1: sbatch[0]: bench sets --array itself; leave it out, found '--array=0-3'."),
        ("data: data\n", ":1: data: expected a folder from the root, found 'data'."),
        ("prepare: {memory: much}\n", ":1: prepare.memory: expected a number with K, M, G or T"),
        ("- a\n", ":1: expected a mapping of keys to values"),
    ],
)
def test_a_mistake_in_the_cluster_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BenchError) as caught:
        read_cluster(_file(tmp_path, text))
    assert f"cluster.yaml{words}" in str(caught.value)


def test_hours_are_not_counted_in_sixties(tmp_path: Path) -> None:
    # YAML 1.1 reads 12:00:00 as 43200 and 1:30 as 90; SLURM would take these for minutes
    assert read_cluster(_file(tmp_path, "time: 12:00:00\n")).time == "12:00:00"
    assert read_cluster(_file(tmp_path, "time: 1:30\n")).time == "1:30"
    assert read_cluster(_file(tmp_path, "time: 90\n")).time == 90
    assert read_cluster(_file(tmp_path, "time: 1-12\n")).time == "1-12"
    assert read_cluster(None) == SlurmCluster()


def test_the_device_of_a_node() -> None:
    gpu, cpu = SlurmCluster(gpus=1), SlurmCluster()
    assert [device_on(gpu, d) for d in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:0", "cuda:0", "cuda:0", "cpu"]
    assert device_on(cpu, "auto") == device_on(cpu, "cpu") == "cpu"
    with pytest.raises(BenchError, match="the jobs ask for no GPU; write gpus: 1"):
        device_on(cpu, "cuda")
    with pytest.raises(BenchError, match="expected auto, cpu or cuda"):
        device_on(gpu, "cuda:1")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", {3}),
        ("[1-4,7%2]", {1, 2, 3, 4, 7}),
        ("1-5%1", {1, 2, 3, 4, 5}),
        ("0-8:4", {0, 4, 8}),
        ("N/A", {0}),
        ("[1,3,5,...", None),
        ("0-3,...%4", None),
    ],
)
def test_task_indices(text: str, found: set[int] | None) -> None:
    assert slurm_queue.indices_of(text) == found


def test_the_queue_is_read() -> None:
    text = "7|1-3,5%1|PENDING|JobArrayTaskLimit|bench-a\n7|0|RUNNING|None|bench-a\n9|N/A|PENDING|Resources|bench-b\n\nnonsense\n"
    found = slurm_queue.read_queue(text)
    assert found["bench-a"].job == "7" and found["bench-a"].tasks == {0, 1, 2, 3, 5}
    assert found["bench-a"].running == 1 and found["bench-a"].reasons == {"JobArrayTaskLimit": 4}
    assert found["bench-b"].tasks == {0} and not found["bench-b"].holds(1)
    cut = slurm_queue.read_queue("7|1,2,...|PENDING|Priority|bench-a\n7|0|RUNNING|None|bench-a\n")["bench-a"]
    assert cut.tasks is None and cut.holds(99)


def test_fates_are_read() -> None:
    assert slurm_queue.read_sacct("12_0|OUT_OF_MEMORY|0:125\n12_1|CANCELLED by 0|0:15\n12_[2-3]|PENDING|0:0\n12_0.batch|X|0:0\n13_0|X|0:0\n", "12") == {
        0: "OUT_OF_MEMORY, exit code 0:125",
        1: "CANCELLED, exit code 0:15",
        2: "PENDING",
        3: "PENDING",
    }  # fmt: skip
    assert slurm_queue.read_sacct("12|TIMEOUT|0:0\n12.batch|FAILED|1:0\n", "12") == {0: "TIMEOUT"}
    one = "JobId=5 ArrayJobId=2 ArrayTaskId=4 JobName=b JobState=NODE_FAIL Reason=None ExitCode=1:0 Command=/a b\n"
    assert slurm_queue.read_scontrol(one + "JobId=9 JobState=COMPLETED ExitCode=0:0\n") == {
        4: "NODE_FAIL, exit code 1:0",
        0: "COMPLETED",
    }


@pytest.fixture
def cells(toy) -> list[Cell]:
    suite = toy.suite()
    suite.write_text(suite.read_text().replace("seeds: 1", "seeds: 5"))
    return list(load_suite(suite, root=toy.folder / "data").cells)


def test_bundles_keep_the_order_and_the_evaluations_of_a_training_together(cells: list[Cell]) -> None:
    assert [len(task) for task in bundles(cells, None)] == [1] * 10
    tasks = bundles(cells, 4)
    assert [len(task) for task in tasks] == [4, 4, 2] and [c for task in tasks for c in task] == cells
    twins = [replace(cells[0], metrics=("dice",)), cells[1], replace(cells[0], metrics=("asd",))]
    assert twins[0].train_id == twins[2].train_id
    assert bundles(twins, 1) == [[twins[0], twins[2]], [twins[1]]]
    many = [replace(cells[0], seed=k) for k in range(1001)]
    assert len(bundles(many, None)) == 167 and max(map(len, bundles(many, None))) == 6
    assert dealt(["a", "b", "c"], 2) == [["a", "c"], ["b"]] and dealt(["a"], 8) == [["a"]]


def test_what_sbatch_is_told(tmp_path: Path) -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    cluster = SlurmCluster(
        account="lab", partition="gpu", time="12:00:00", gpus=1, gpu_type="a100", cpus=4, memory="8G", notice=90,
        constraint="fast", sbatch=["--nice=100", "--exclusive"], setup=["module load python"],
    )  # fmt: skip
    job = new_submission(tmp_path, CELLS, [["a"], ["b"]])
    told = parameters(cluster, job, 1, ["41", "42"])
    lines = _make_sbatch_string("exec python", tmp_path, map_count=2, **told).splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {
        "--account=lab", "--partition=gpu", "--time=12:00:00", "--gres=gpu:a100:1", "--cpus-per-task=4", "--mem=8G",
        "--constraint=fast", "--nice=100", "--exclusive", "--array=0-1%1", "--dependency=afterany:41:42", "--requeue",
        "--signal=B:TERM@90", f"--job-name={job.name}", "--open-mode=append",
    } <= options  # fmt: skip
    assert not any("wckey" in option or "srun" in option for option in options)
    assert lines.index("export OMP_NUM_THREADS=1") < lines.index("module load python") < lines.index("exec python")
    prepare = parameters(cluster, replace(job, kind="cases"), 2, [])
    assert prepare["gres"] is None and prepare["cpus_per_task"] == 1 and prepare["dependency"] is None


def test_marks_say_where_cells_are(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "seen")
    assert not marks.begin("a") and read_marks(marks.folder) == {"a": Mark("begun")}
    marks.end("a", "interrupted", 12)
    assert read_marks(marks.folder) == {"a": Mark("interrupted", 12)}
    requeued = Marks(tmp_path / "seen")
    assert requeued.begin("a") and not requeued.begin("b")
    assert read_marks(marks.folder) == {"a": Mark("begun"), "b": Mark("begun")}
    requeued.end("a", "ok", 3)
    assert read_marks(marks.folder)["a"] == Mark("ok", 3)
    assert read_marks(tmp_path / "none") == {}


SBATCH = """#!/bin/sh
[ -f "$FAKE/refuse" ] && { cat "$FAKE/refuse" >&2; exit 1; }
n=$(( $(ls "$FAKE" | grep -c script) + 1 ))
cp "$1" "$FAKE/script$n"
echo "Submitted batch job $n"
"""


class Fake:
    """Commands of SLURM that take everything and run nothing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "fake"
        self.folder.mkdir()
        for name, text in {
            "sbatch": SBATCH,
            "srun": "#!/bin/sh\n",
            "squeue": '#!/bin/sh\n[ -f "$FAKE/down" ] && exit 1\ncat "$FAKE/queue" 2>/dev/null\nexit 0\n',
            "sacct": '#!/bin/sh\ncat "$FAKE/accounts" 2>/dev/null\n',
            "scontrol": '#!/bin/sh\n[ "$2" = config ] && echo "MaxArraySize            = 4"\nexit 0\n',
            "scancel": '#!/bin/sh\necho "$@" >> "$FAKE/cancelled"\nrm -f "$FAKE/queue"\n',
        }.items():
            path = self.folder / name
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("FAKE", str(self.folder))
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    @property
    def scripts(self) -> list[str]:
        return [p.read_text() for p in sorted(self.folder.glob("script*"))]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


FAST: dict[str, Any] = {"poll": 0.01, "grace": 0.0, "tries": 2}


def _watch(toy, cells: list[Cell], **keys: Any) -> tuple[Watch, io.StringIO]:
    said = io.StringIO()
    asked = Asked(detach=bool(keys.pop("detach", False)), follow=keys.pop("follow", None))
    place = Place(toy.folder / "runs", toy.folder / "data")
    entries = [Entry(cell, "missing") for cell in cells]
    console = Console(file=said, width=1000)
    return Watch(entries, place, SlurmCluster(**FAST | keys), asked, console), said


def test_a_job_that_slurm_calls_completed_without_a_record_is_lost(toy, cells: list[Cell], fake: Fake) -> None:
    (fake.folder / "accounts").write_text("1|COMPLETED|0:0\n2|COMPLETED|0:0\n")
    watch, said = _watch(toy, cells[:1])
    (record,) = watch.run()
    assert record.status == "error" and len(fake.scripts) == 2  # two tries, then it is a failure
    assert "ended without a record 2 times in a row, at last job 2 (COMPLETED)" in record.message
    assert f"log: {toy.folder}/runs/slurm/bench-" in record.message
    assert read_record(cells[0].eval_folder(toy.folder / "runs") / "record.json") == record
    assert "SLURM job 1 ended without a record (COMPLETED): 1 cell to be submitted again" in said.getvalue()
    (fake.folder / "accounts").write_text("")
    assert "job 4 (SLURM no longer knows it)" in _watch(toy, cells[:1])[0].run()[0].message


def test_a_trial_that_failed_ends_nothing_and_what_follows_is_fresh(toy, cells: list[Cell], fake: Fake) -> None:
    follow = Follow(lambda cell, record: [cells[1]], (cells[1],), 1, frozenset({cells[1].eval_id}))
    trial = replace(cells[0], trial=0)
    watch, _ = _watch(toy, [trial], follow=follow)
    failed = RunRecord(trial.train_id, trial.eval_id, "oom", "", trial.described())
    watch._end(trial, failed, RunProgress(2, watch.console))
    assert not watch.failed and watch.open == {cells[1].eval_id: cells[1]} and cells[1].eval_id in watch.fresh
    watch._end(cells[1], replace(failed, eval_id=cells[1].eval_id), RunProgress(2, watch.console))
    assert watch.failed


def test_the_data_of_cells_that_join_later_is_looked_at_first(toy, cells: list[Cell], fake: Fake) -> None:
    follow = Follow(lambda cell, record: [], (cells[0],), 1)
    place = Place(toy.folder / "runs", toy.folder / "nowhere")
    with pytest.raises(BenchError, match="nowhere"):
        run_cells([], place, Asked(follow=follow), Console(quiet=True))


def test_arrays_preparation_and_width(toy, cells: list[Cell], fake: Fake) -> None:
    watch, said = _watch(toy, cells, at_once=6, detach=True)
    assert watch.run() == [] and "left to SLURM: 10 cells in job 1, 2, 3, 4" in said.getvalue()
    prepare, *arrays = fake.scripts
    assert "#SBATCH --array=0-5%6" in prepare or "#SBATCH --array=0-3%4" in prepare
    assert ["--array=0-3%2" in arrays[0], "--array=0-3%2" in arrays[1], "--array=0-1%2" in arrays[2]] == [True] * 3
    assert all("--dependency=afterany:1" in text for text in arrays)
    folders = list((toy.folder / "runs/slurm").iterdir())
    assert len(folders) == 4 and {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {s.job: len(s.tasks) for s in submissions(toy.folder / "runs/slurm")}["2"] == 4

    # what waits in the queue is not submitted again, by whatever command; what left it is
    names = {s.job: s.name for s in submissions(toy.folder / "runs/slurm")}
    (fake.folder / "queue").write_text(
        f"2|1-3%2|PENDING|Priority|{names['2']}\n3|0-3|PENDING|Priority|{names['3']}\n1|0-3|RUNNING|None|{names['1']}\n"
    )
    watch, said = _watch(toy, cells, detach=True)
    watch.run()
    assert "7 cells are in SLURM jobs that still wait or run: 2, 3" in said.getvalue()
    assert "submitted 3 cells as SLURM job 5 with 3 tasks" in said.getvalue() and len(fake.scripts) == 5
    assert "--dependency=afterany:1" in fake.scripts[4]


def test_a_record_counts_and_no_word_of_slurm(toy, cells: list[Cell], fake: Fake) -> None:
    """The queue says running for ever; the cell's record and mark are what ends it."""
    watch, _ = _watch(toy, cells[:2], detach=True)
    watch.run()
    (job,) = [s for s in submissions(toy.folder / "runs/slurm") if s.kind == CELLS]
    (fake.folder / "queue").write_text(f"{job.job}|0-1|RUNNING|None|{job.name}\n")
    for cell in cells[:2]:
        _finish(job, cell, watch.place.out)
    watch = _watch(toy, cells[:2])[0]
    watch.held = {cell.eval_id: (job, k) for k, cell in enumerate(cells[:2])}
    watch.jobs = {job.name: job}
    watch._watch(RunProgress(2, watch.console))
    assert [r.status for r in watch.records] == ["ok", "ok"] and not watch.open


def _finish(job: Any, cell: Cell, out: Path) -> None:
    """What a task does, without its work."""
    cell.eval_folder(out).mkdir(parents=True)
    record = RunRecord(cell.train_id, cell.eval_id, "ok", "", cell.described(), sources=cell.sources)
    record.write(cell.eval_folder(out) / "record.json")
    marks = Marks(job.seen)
    marks.begin(cell.eval_id)
    marks.end(cell.eval_id, "ok", 8)


def test_cells_that_follow_join_and_are_not_submitted_twice_either(toy, cells: list[Cell], fake: Fake) -> None:
    first, second, third = cells[:3]
    watch, _ = _watch(toy, [second], detach=True)
    watch.run()  # an earlier command left the second in a job that waits
    (job,) = submissions(toy.folder / "runs/slurm")
    (fake.folder / "queue").write_text(f"{job.job}|N/A|PENDING|Priority|{job.name}\n")
    after = {first.eval_id: [second], second.eval_id: [third], third.eval_id: []}

    def follow(cell: Cell, record: RunRecord) -> list[Cell]:
        assert record.status == "ok"
        return after[cell.eval_id]

    watch, said = _watch(toy, [first], follow=follow)
    real = watch._look

    def look(progress: Any) -> None:
        for holder, index in list(watch.held.values()):
            for name in holder.tasks[index]:
                _finish(holder, watch.open[name], watch.place.out)
        real(progress)

    watch._look = look  # type: ignore[method-assign]
    assert [r.eval_id for r in watch.run()] == [first.eval_id, second.eval_id, third.eval_id]
    assert len(fake.scripts) == 3 and "submitted 1 cell as SLURM job 3" in said.getvalue()


@pytest.fixture
def lost(toy, cells: list[Cell], fake: Fake) -> Any:
    """A task of two cells whose first one had begun when it was lost."""
    watch, _ = _watch(toy, cells[:2], cells_per_task=2, memory="4G", detach=True)
    watch.run()
    (job,) = submissions(toy.folder / "runs/slurm")
    Marks(job.seen).begin(cells[0].eval_id)

    def end(fate: str) -> str:
        return watch._task_ended(watch.jobs[job.name], 0, read_marks(job.seen), fate, RunProgress(2, watch.console))

    return watch, job, end


def test_memory(lost: Any, cells: list[Cell]) -> None:
    watch, _, end = lost
    assert end("OUT_OF_MEMORY, exit code 0:125").endswith("1 cell to be submitted again")
    (record,) = watch.records
    assert record.status == "oom" and record.eval_id == cells[0].eval_id
    assert "SLURM ended job 1 for its memory; it had asked for 4G (`memory`); log: " in record.message
    assert watch.lost[cells[1].eval_id].tries == 0  # it had not begun


def test_memory_is_seen_in_the_log_where_there_is_no_accounting(lost: Any, cells: list[Cell]) -> None:
    watch, job, end = lost
    job.log(0).write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=1.batch.\n")
    end("")
    assert [r.status for r in watch.records] == ["oom"]


def test_who_is_to_blame_for_a_lost_task(lost: Any, cells: list[Cell]) -> None:
    watch, job, end = lost
    first, second = cells[0].eval_id, cells[1].eval_id
    end("NODE_FAIL")
    assert (watch.lost[first].tries, watch.lost[second].tries) == (1, 0)
    assert not watch.held and set(watch.open) == {first, second}
    # with a checkpoint that is newer than its beginning it came further, and may go on for ever
    watch.held = {first: (watch.jobs[job.name], 0), second: (watch.jobs[job.name], 0)}
    time.sleep(0.02)
    cells[0].folder(watch.place.out).mkdir(parents=True)
    (cells[0].folder(watch.place.out) / "checkpoint.pt").touch()
    end("TIMEOUT")
    assert watch.lost[first].tries == 0


def test_a_cell_that_another_process_runs_waits(lost: Any, cells: list[Cell]) -> None:
    watch, job, end = lost
    Marks(job.seen).end(cells[0].eval_id, "elsewhere", 0)
    end("COMPLETED")
    assert watch.lost[cells[0].eval_id].tries == 0 and watch.lost[cells[0].eval_id].since > time.monotonic() + 30


def test_an_old_failure_is_not_what_became_of_a_lost_cell(lost: Any, cells: list[Cell]) -> None:
    watch, job, end = lost
    folder = cells[0].eval_folder(watch.place.out)
    folder.mkdir(parents=True)
    RunRecord(cells[0].train_id, cells[0].eval_id, "error", "of last week", cells[0].described()).write(
        folder / "record.json"
    )
    os.utime(folder / "record.json", (1, 1))
    end("FAILED")
    assert not watch.records
    watch.held = {cells[0].eval_id: (watch.jobs[job.name], 0)}
    os.utime(folder / "record.json")  # its task died between record and mark
    end("FAILED")
    assert [r.message for r in watch.records] == ["of last week"]


def test_a_silent_controller_is_no_empty_queue(toy, cells: list[Cell], fake: Fake) -> None:
    watch, said = _watch(toy, cells[:1], detach=True)
    watch.run()
    (fake.folder / "down").touch()
    watch._ask(RunProgress(1, watch.console))
    assert len(watch.held) == 1 and "squeue does not answer" in said.getvalue()
    with pytest.raises(BenchError, match="squeue does not answer; whether jobs of these cells run is not known"):
        _watch(toy, cells[:1])[0].run()


def test_what_sbatch_refuses_is_one_sentence_and_nothing_is_left(
    toy, cells: list[Cell], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.folder / "refuse").write_text("sbatch: error: Invalid account or account/partition combination\n")
    watch, _ = _watch(toy, cells)
    with pytest.raises(BenchError, match="sbatch does not take the jobs: sbatch: error: Invalid account"):
        watch.run()
    assert not watch.held and not list((toy.folder / "runs/slurm").glob("*/*.pkl"))
    assert "Invalid" not in capsys.readouterr().err


def test_ctrl_c_cancels_what_holds_these_cells(toy, cells: list[Cell], fake: Fake, monkeypatch: Any) -> None:
    watch, _ = _watch(toy, cells[:3])

    def interrupt(progress: Any) -> None:
        job = next(j for j in watch.jobs.values() if j.kind == CELLS)
        (fake.folder / "queue").write_text(f"{job.job}|0-2|RUNNING|None|{job.name}\n")
        del watch.held[cells[1].eval_id], watch.open[cells[1].eval_id]
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        watch.run()
    assert (fake.folder / "cancelled").read_text() == "2_0 2_2\n"


def test_a_machine_without_slurm(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    entries = make_plan(load_suite(toy.suite(), root=toy.folder / "data"), tmp_path / "runs", tmp_path / "reports")
    with pytest.raises(
        BenchError, match="--on slurm: sbatch, squeue, scancel, srun not found; start it on a login node"
    ):
        run_cells(entries, Place(tmp_path / "runs", toy.folder / "data"), Asked(), Console(file=io.StringIO()))


def test_a_controller_that_is_down(toy, tmp_path: Path, fake: Fake) -> None:
    (fake.folder / "down").touch()
    entries = make_plan(load_suite(toy.suite(), root=toy.folder / "data"), tmp_path / "runs", tmp_path / "reports")
    with pytest.raises(BenchError, match="--on slurm: squeue fails"):
        run_cells(entries, Place(tmp_path / "runs", toy.folder / "data"), Asked(), Console(file=io.StringIO()))


def test_flags_without_their_backend(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="--on moon: expected one of local, slurm, ray"):
        backend_of("moon")
    with pytest.raises(BenchError, match="--detach: is for --on slurm and --on ray"):
        run_entries([], Place(tmp_path, None), reports=tmp_path, detach=True)
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(
        BenchError, match=r"needs the package submitit .* pip install 'segmentation-loss-bench\[slurm\]'"
    ):
        backend_of("slurm")


def test_a_damaged_file_of_a_submission_is_none(tmp_path: Path) -> None:
    for name, text in (("bench-1", "{"), ("bench-2", "[]"), ("bench-3", json.dumps({"kind": "cells"}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cells.json").write_text(text)
    assert submissions(tmp_path) == []


@pytest.fixture
def signals() -> Any:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_task_waits_for_the_lease_of_a_task_that_died_and_stops_at_sigterm(
    toy, cells: list[Cell], monkeypatch: pytest.MonkeyPatch, signals: Any
) -> None:
    ran: list[tuple[str, bool]] = []

    def run_cell(cell: Cell, place: Place, cases: Any, *, stop: Any, fresh: bool) -> RunRecord:
        ran.append((cell.eval_id, fresh))
        if cell is cells[0] and len(ran) < 4:
            return RunRecord(cell.train_id, cell.eval_id, "interrupted", HELD, cell.described())
        if cell is cells[2]:
            for step in range(6):
                if step == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.01)
                if stop():
                    return RunRecord(cell.train_id, cell.eval_id, "interrupted", "stopped", cell.described())
        return RunRecord(cell.train_id, cell.eval_id, "ok", "", cell.described())

    monkeypatch.setattr("harness.worker.run_cell", run_cell)
    monkeypatch.setattr("harness.machine.settle", lambda device: None)  # is for a process of its own
    monkeypatch.setattr("harness.backends.slurm_task.HEARTBEAT_SECONDS", 0.01)
    ids = [cell.eval_id for cell in cells[:4]]
    place, seen = Place(toy.folder / "runs", toy.folder / "data"), toy.folder / "seen"
    run_bundle(Bundle(0, tuple(cells[:2]), frozenset(ids[:1]), place, seen))
    assert ran == [(ids[0], True), (ids[1], False), (ids[0], True), (ids[0], True)]
    assert {name: mark.status for name, mark in read_marks(seen).items()} == {
        ids[0]: "ok",
        ids[1]: "ok",
        "task-0": "ended",
    }
    ran.clear()
    for _ in range(2):  # SLURM may start a task again: what was begun then continues
        run_bundle(Bundle(1, tuple(cells[2:4]), frozenset(ids[2:]), place, seen))
    assert ran == [(ids[2], True), (ids[2], False)]
    assert read_marks(seen)[ids[2]] == Mark("interrupted", 5) and ids[3] not in read_marks(seen)


def test_a_fault_on_a_device_ends_its_task_and_no_other_cell(
    toy, cells: list[Cell], lost: Any, monkeypatch: pytest.MonkeyPatch, signals: Any
) -> None:
    watch, job, end = lost
    ran: list[str] = []

    def run_cell(cell: Cell, place: Place, *_: Any, **__: Any) -> RunRecord:
        ran.append(cell.eval_id)
        return RunRecord(cell.train_id, cell.eval_id, "error", "CUDA error: an illegal address", cell.described())

    monkeypatch.setattr("harness.worker.run_cell", run_cell)
    monkeypatch.setattr("harness.machine.settle", lambda device: None)
    ids = [cell.eval_id for cell in cells[:2]]
    bundle = Bundle(0, tuple(cells[:2]), frozenset(), replace(watch.place, device="cuda:0"), job.seen)
    run_bundle(bundle)
    assert ran == ids[:1] and ids[1] not in read_marks(job.seen)
    assert "was stopped" in end("COMPLETED") and watch.lost[ids[1]].tries == 0
    run_bundle(replace(bundle, place=watch.place))  # on a CPU an error is its cell's own
    assert ran[1:] == ids


def test_a_cell_over_its_timeout_ends_its_process_with_a_record(toy, cells: list[Cell], monkeypatch: Any) -> None:
    cell = replace(cells[0], timeout=0.05)
    place = Place(toy.folder / "runs", toy.folder / "data")
    over = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: over.set())
    marks = Marks(toy.folder / "seen")
    marks.begin(cell.eval_id)
    cell.folder(place.out).mkdir(parents=True)
    lease = take(cell.folder(place.out))  # as `run_cell` does
    assert lease is not None
    with lease, _limit(cell, place, marks):
        assert over.wait(30)
    record = read_record(cell.eval_folder(place.out) / "record.json")
    assert (record.status, record.message) == ("timeout", "not finished after 0.05 s")
    assert read_marks(marks.folder)[cell.eval_id].status == "timeout"
