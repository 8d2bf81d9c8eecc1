"""Turns on a device: so many train at once while others evaluate, nothing else changes, and no death blocks the rest."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness import progress as progress_of
from harness import runner
from harness.cell import Cell, Place
from harness.engine import Engine
from harness.launch import run_entries
from harness.plan import Entry, make_plan
from harness.progress import RunProgress
from harness.records import RunRecord
from harness.suite import load_suite
from harness.turns import Turns
from harness.worker import run_cell, run_group
from tests.conftest import importable

SUITE = """\
suite: turns
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 2, depth: 2}]
losses: [dice, ce]
seeds: 2
train: {epochs: 2, steps: 2, batch: 2, optimizer: {adamw: {lr: 1e-2}}}
metrics: [dice, hd95]
quick: {cases: 2, epochs: 2, steps: 2}
"""

ACTS = r'''"""Cells whose trainings and evaluations wait for each other."""

import os
import time

import harness.train
import harness.worker

LIMIT = 100.0  # seconds that one waits for the other


def _first(path):
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def _until(path):
    until = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > until:
            raise RuntimeError(f"{path.name} does not happen")
        time.sleep(0.01)


def _until_others_train(out, own):
    """Or until one that could has not for a while: its log says that it is loaded."""
    until = time.monotonic() + LIMIT
    while not any(" steps" in path.read_text() for path in out.glob("*/log.txt") if path.parent.name != own):
        if time.monotonic() > until:
            raise RuntimeError("no other cell is loaded")
        time.sleep(0.01)
    until = time.monotonic() + float(os.environ.get("ACTS_PATIENCE", LIMIT))
    while time.monotonic() < until and not [p for p in (out / "gate").glob("*.steps") if p.stem != own]:
        time.sleep(0.01)


def gated(cell, place, cases, report, stop, fresh):
    """The first training lasts until another could train beside it; the first evaluation ends only after another
    training has begun, and that only after the evaluation has ended."""
    gate, evaluate, step = place.out / "gate", harness.worker.evaluate_cell, harness.train.Trainer.step
    gate.mkdir(exist_ok=True)

    def measured(*args):
        first = _first(gate / "evaluating")
        if first:
            _until(gate / "beside")
        found = evaluate(*args)
        if first:
            (gate / "evaluated").touch()
        return found

    def stepped(trainer):
        began = time.monotonic()
        step(trainer)
        with (gate / f"{cell.train_id}.steps").open("a") as stream:
            stream.write(f"{began} {time.monotonic()}\n")

    def told(done, total, loss):
        report(done, total, loss)
        if done == total:
            return
        if _first(gate / "first"):
            _until_others_train(place.out, cell.train_id)
        else:
            _until(gate / "evaluating")
            (gate / "beside").touch()
            _until(gate / "evaluated")

    harness.worker.evaluate_cell, harness.train.Trainer.step = measured, stepped
    try:
        return harness.worker.run_cell(cell, place, cases, told, stop, fresh)
    finally:
        harness.worker.evaluate_cell, harness.train.Trainer.step = evaluate, step
'''


@pytest.fixture
def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The functions above, where the processes of a pool can import them."""
    return importable(ACTS, "acts_of_turns", tmp_path, monkeypatch)


def _cells(folder: Path, old: str = "", new: str = "") -> list[Cell]:
    assert old in SUITE
    (folder / "turns.yaml").write_text(SUITE.replace(old, new, 1) if old else SUITE)
    return list(load_suite(folder / "turns.yaml", quick=True).cells)


def _results(out: Path) -> dict[str, Any]:
    """What a cell must be the same in: all but times and memory."""
    found = {}
    for path in sorted(out.glob("*/*/record.json")):
        record = json.loads(path.read_text())
        record.pop("cost")
        record.get("tuned", {}).pop("seconds", None)
        curve = list(csv.DictReader(io.StringIO((path.parents[1] / "curve.csv").read_text())))
        found[path.parent.name] = record, curve, (path.parent / "cases.csv").read_bytes()
    return found


def _plain(cells: list[Cell], out: Path) -> dict[str, Any]:
    """The results of an undisturbed run without turns."""
    records = runner.run_cells([Entry(c, "missing") for c in cells], Place(out, None), ["cpu"], Console(quiet=True))
    assert {r.status for r in records} == {"ok"}
    return _results(out)


def test_never_more_hold_a_turn_than_there_are(tmp_path: Path) -> None:
    turns, guard, now, most, had = Turns(tmp_path / "t", "cuda:0", 2), threading.Lock(), 0, 0, 0

    def act() -> None:
        nonlocal now, most, had
        with turns.taken(lambda: False) as mine:
            with guard:
                now, had = now + 1, had + mine
                most = max(most, now)
            time.sleep(0.1)
            with guard:
                now -= 1

    threads = [threading.Thread(target=act) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, had) == (2, 6)


HOLDER = """\
import sys, time
from pathlib import Path
from harness.turns import Turns
with Turns(Path(sys.argv[1]), "cpu", 1).taken(lambda: False):
    print("mine", flush=True)
    time.sleep(1000)
"""


def test_a_process_that_is_killed_gives_its_turn_back(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "mine\n"
        told: list[bool] = []
        turns = Turns(tmp_path, "cpu", 1, told.append)
        asked = iter(range(5))
        with turns.taken(lambda: next(asked, None) is None) as mine:
            assert not mine and told == [True, False]
        killed = threading.Timer(0.2, lambda: os.kill(holder.pid, signal.SIGKILL))
        killed.start()
        with turns.taken(lambda: False) as mine:
            assert mine and told == [True, False] * 2
        with turns.taken(lambda: False) as mine:
            assert mine and len(told) == 4  # it was free: nothing to tell
    finally:
        holder.kill()
        holder.wait()


def test_a_folder_that_is_gone_ends_no_training(tmp_path: Path) -> None:
    with Turns(tmp_path / "swept" / "away", "cpu", 1).taken(lambda: False) as mine:
        assert mine


def test_one_evaluates_while_another_trains_with_the_same_bits(
    acts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTS_PATIENCE", "3")  # it is used up: no other trains
    cells = _cells(tmp_path)
    expected = _plain(cells, tmp_path / "plain")
    out, place = Console(file=io.StringIO(), width=400), Place(tmp_path / "beside", None)
    entries = [Entry(c, "missing") for c in cells]
    records = runner.run_cells(entries, place, ["cpu"] * 2, out, run=acts.gated, at_once={"cpu": 1})
    assert [(r.status, r.message) for r in records] == [("ok", "")] * 4
    assert _results(place.out) == expected and len(expected) == 4
    trained = [
        sorted(float(t) for line in path.read_text().splitlines() for t in line.split())
        for path in (place.out / "gate").glob("*.steps")
    ]
    trained.sort()
    assert len(trained) == 4
    assert all(one[-1] <= other[0] for one, other in itertools.pairwise(trained))  # one trains at once
    assert "waiting for the device" in out.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]


def test_without_turns_both_would_train_at_once(acts: Any, tmp_path: Path) -> None:
    """The test above can fail: two processes without turns wait for each other within their trainings."""
    cells = _cells(tmp_path, "losses: [dice, ce]\nseeds: 2", "losses: [dice, ce]\nseeds: 1")
    place = Place(tmp_path / "beside", None)
    runner.run_cells([Entry(c, "missing") for c in cells], place, ["cpu"] * 2, Console(quiet=True), run=acts.gated)
    first, second = sorted(
        sorted(float(t) for line in path.read_text().splitlines() for t in line.split())
        for path in (place.out / "gate").glob("*.steps")
    )
    assert second[0] < first[-1]


def _run(cells: list[Cell], out: Path, **more: Any) -> tuple[list[RunRecord], str]:
    """Records of `bench run --workers 1 --overlap` and what it said."""
    console = Console(file=io.StringIO(), width=400)
    given: dict[str, Any] = {"device": "cpu", "workers": 1, "overlap": True, "console": console} | more
    out.mkdir(exist_ok=True)
    records = run_entries([Entry(c, "missing") for c in cells], Place(out, None), reports=out / "reports", **given)
    return records, console.file.getvalue()  # type: ignore[attr-defined]


def test_fused_groups_take_turns(tmp_path: Path) -> None:
    cells = _cells(tmp_path)
    way = Engine("fused", 2)
    plain, _ = _run(cells, tmp_path / "plain", overlap=False, engine=way)
    records, said = _run(cells, tmp_path / "beside", engine=way)
    assert {r.status for r in [*plain, *records]} == {"ok"} and len(records) == 4
    assert _results(tmp_path / "plain") == _results(tmp_path / "beside")
    assert "2 workers: 1 trains on cpu, 1 more evaluates" in said


def test_tuned_cells_join_a_run_with_turns(tmp_path: Path) -> None:
    text = SUITE.replace("split: default", "split: validated").replace("seeds: 2", "seeds: 1")
    text = text.replace("metrics:", "tune: {trials: 2, lr: [1e-3, 1e-2], epochs: 1}\nrank: {by: [dice]}\nmetrics:")
    (tmp_path / "tuned.yaml").write_text(text)
    suite, found = load_suite(tmp_path / "tuned.yaml", quick=True), []
    for name, overlap in (("plain", False), ("beside", True)):
        todo = make_plan(suite, [tmp_path / name], tmp_path / "reports", ())
        (tmp_path / name).mkdir()
        records = run_entries(
            todo,
            Place(tmp_path / name, None),
            reports=tmp_path / "reports",
            device="cpu",
            workers=1,
            overlap=overlap,
            console=Console(quiet=True),
        )
        assert {r.status for r in records} == {"ok"} and len(records) == 6  # two losses, each with two trials
        found.append(_results(tmp_path / name))
    assert found[0] == found[1]


KILLS = '''
import os, signal
from pathlib import Path
from torch import nn


class Kills(nn.Module):
    """Kills its process in the fourth step, once."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, logits, target):
        self.calls += target.shape == (4, 32, 32)  # and not those of its check
        marker = Path(__file__).parent / "killed"
        if self.calls == 4 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ((logits.softmax(1)[:, 1] - (target == 1).float()) ** 2).mean()
'''


def test_kill_9_of_the_process_that_trains_blocks_nobody(toy: Any) -> None:
    (toy.folder / "kills.py").write_text(KILLS)
    suite = toy.suite("losses: [dice, ce]", "losses: ['kills.py:Kills', dice, ce]")
    args = ("run", suite, "--workers", "1", "--overlap", "--devices", "cpu")
    done = toy.bench(*args, BENCH_CHECKPOINT_SECONDS="0")
    assert done.returncode == 1 and "2 workers: 1 trains on cpu, 1 more evaluates" in done.stdout, done.stderr
    states = {name: record["status"] for name, record in toy.records().items()}
    assert states == {"Kills": "error", "dice": "ok", "ce": "ok"}
    assert "signal 9" in toy.records()["Kills"]["message"]
    again = toy.bench(*args)
    assert again.returncode == 0, again.stderr
    plain = toy.bench("run", suite, "--workers", "1", "--devices", "cpu", out="plain")
    assert plain.returncode == 0 and _results(toy.folder / "plain") == _results(toy.folder / "runs")
    assert "resumed from step 3" in (toy.records()["Kills"]["folder"].parent / "log.txt").read_text()


def test_ctrl_c_ends_the_one_that_trains_and_the_one_that_waits(toy: Any) -> None:
    suite = toy.suite("epochs: 2, steps: 4", "epochs: 50, steps: 100")
    toy.interrupted("run", suite, "--workers", "1", "--overlap", logs=2, after=1.0)
    assert [r["status"] for r in toy.records().values()] == ["interrupted"] * 2
    logs = "".join(path.read_text() for path in (toy.folder / "runs").glob("*/log.txt"))
    assert logs.count("checkpoint written") == len(list((toy.folder / "runs").glob("*/checkpoint.pt"))) == 1
    assert logs.count("stopped at step 0 of 5000, it had not begun") == 1


class Busy:
    """A device whose only turn another process holds, until it is asked `patience` times or for `seconds`."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.asked, self.waited, self._began = folder, 0, 0.0, 0.0
        self._held = Turns(folder, "cpu", 1).taken(lambda: False)
        self._held.__enter__()
        self.turns, self._seconds = Turns(folder, "cpu", 1, self._tell), seconds

    def _tell(self, waits: bool) -> None:
        if waits:
            self._began = time.monotonic()
            if self._seconds:
                threading.Timer(self._seconds, self.free).start()
        else:
            self.waited = time.monotonic() - self._began

    def free(self) -> None:
        self._held.__exit__(None, None, None)

    def stop(self) -> bool:
        self.asked += 1
        return self.asked > 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_stop_while_waiting_leaves_no_checkpoint(fused: bool, tmp_path: Path) -> None:
    cells = _cells(tmp_path, "seeds: 2", "seeds: 1")
    device = Busy(tmp_path / "turns")
    place = Place(tmp_path / "runs", None, turns=device.turns)
    if fused:
        records = list(run_group(cells, place, stop=device.stop))
    else:
        records = [run_cell(cells[0], place, stop=device.stop)]
    assert {r.status for r in records} == {"interrupted"} and len(records) == (2 if fused else 1)
    assert not list(place.out.glob("*/checkpoint.pt"))
    device.free()
    assert run_cell(cells[0], place).status == "ok"


@pytest.mark.parametrize("fused", [False, True])
def test_waiting_is_no_time_of_the_training(fused: bool, tmp_path: Path) -> None:
    cells = _cells(tmp_path, "seeds: 2", "seeds: 1")
    device = Busy(tmp_path / "turns", seconds=3.0)
    place = Place(tmp_path / "runs", None, turns=device.turns)
    began = time.monotonic()
    records = list(run_group(cells, place)) if fused else [run_cell(cells[0], place)]
    assert {r.status for r in records} == {"ok"} and device.waited >= 3.0
    assert sum(r.cost["train_s"] for r in records) < time.monotonic() - began - device.waited
    with replace(device.turns, tell=None).taken(lambda: False) as mine:
        assert mine  # it was given back


def test_a_training_that_is_over_needs_no_turn(tmp_path: Path) -> None:
    """Only its evaluation is missing: it is not kept waiting by others that train."""
    cell = _cells(tmp_path)[0]
    place = Place(tmp_path / "runs", None)
    assert run_cell(cell, place).status == "ok"
    (cell.eval_folder(place.out) / "record.json").unlink()
    device = Busy(tmp_path / "turns")
    assert run_cell(cell, replace(place, turns=device.turns), stop=device.stop).status == "ok" and device.asked == 0


def test_those_that_wait_are_stopped_before_the_one_that_trains(tmp_path: Path) -> None:
    """It gives its turn back, and they would begin to train."""
    pool, cell, stopped = runner.Pool(Place(tmp_path, None), ["cpu"] * 3), _cells(tmp_path)[0], []

    def process(slot: int) -> SimpleNamespace:
        return SimpleNamespace(
            is_alive=lambda: slot not in stopped, terminate=lambda: stopped.append(slot), join=lambda seconds: None
        )

    for slot, waits in enumerate([None, 5.0, 5.0]):
        pool.slots[slot] = runner.Worker(process(slot), runner.mp.Pipe()[0], cell, waits=waits)
    pool.end(grace=0.0)
    assert stopped == [1, 2, 0]


def test_ctrl_c_while_workers_are_told_to_stop_ends_them_all(tmp_path: Path) -> None:
    pool, cell, killed = runner.Pool(Place(tmp_path, None), ["cpu"] * 2), _cells(tmp_path)[0], []

    def interrupted() -> None:
        raise KeyboardInterrupt

    for slot in range(2):
        process = SimpleNamespace(
            is_alive=lambda: True, terminate=interrupted, kill=partial(killed.append, slot), join=lambda *_: None
        )
        pool.slots[slot] = runner.Worker(process, runner.mp.Pipe()[0], cell)
    with pytest.raises(KeyboardInterrupt):
        pool.end(grace=30.0)
    assert killed == [0, 1]


class Told(runner.Pool):
    """A pool whose one worker says what the test says."""

    def start(self, slot: int) -> runner.Worker:
        ours, self.theirs = runner.mp.Pipe()
        self.slots[slot] = runner.Worker(threading.current_thread(), ours)
        return self.slots[slot]


def test_a_timeout_does_not_count_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, ended = [1000.0], []
    for module in (runner, progress_of):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(runner, "_end_now", ended.append)
    pool, cell = Told(Place(tmp_path, None), ["cpu"]), replace(_cells(tmp_path)[0], timeout=10.0)
    progress = RunProgress(1, Console(quiet=True), 2)
    say: Callable[..., list[Any]] = lambda *message: pool.theirs.send(message) or [*runner._collect(pool, progress)]  # noqa: E731
    pool.start(0)
    runner._begin(pool, 0, [cell], set(), alone=True)
    progress.started(0, cell.title)
    assert say("started", None) == []
    now[0] += 4
    assert say("waits", True) == []
    now[0] += 1000
    assert [*runner._collect(pool, progress)] == [] and not ended
    assert say("waits", False) == []
    now[0] += 5  # 9 of its 10 seconds
    assert say("progress", (1, 2, 0.5)) == [] and not ended
    now[0] += 2
    ((_, record),) = runner._collect(pool, progress)
    assert ended and (record.status, record.message) == ("timeout", "not finished after 10 s")
    first, second = progress.summary()
    assert "1 timeout" in first and "waiting for the device" in second
    assert progress._spent["waiting"] == 1000 and progress._spent["other"] + progress._spent["training"] == 11
