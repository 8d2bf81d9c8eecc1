"""The order of cells, what finished ones tell of the others, and that twice the cells are twice the work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import order, preparing, progress, runner
from harness.cell import Cell, Place, SourceInfo
from harness.cell_log import memory_sentence, remedy
from harness.estimates import BASE_MB, Estimates
from harness.order import Queue
from harness.plan import Entry
from harness.progress import RunProgress, duration
from harness.records import RunRecord

VIEW = {"slices": {"size": [32, 32]}}
FOLDS = [
    {
        "manifest": "m", "digest": "d", "split": "s", "fold": fold, "train": [f"a{fold}", f"b{fold}"], "val": [],
        "test": ["c"], "view": VIEW, "labels": "clean",
    }
    for fold in range(3)
]  # fmt: skip
TRAIN = {"epochs": 2, "steps": 10, "batch": 4, "augment": {}, "select": "last"}


def make(loss: str = "dice", model: str = "unet", fold: int = 0, seed: int = 0, **more: Any) -> Cell:
    """A cell; those of a fold share the dictionary of their data, as those of a suite do."""
    given: dict[str, Any] = {
        "suite": "toy", "dataset": "m", "manifest_path": "m.yaml", "data": FOLDS[fold],
        "model": {"name": model, "args": {}, "version": 1}, "model_label": model,
        "model_source": SourceInfo("x:Y", 1, "d"), "loss": {"name": loss, "args": {}, "class": "here.py:Loss"},
        "loss_label": loss, "loss_digest": "d", "seed": seed, "train": TRAIN, "metrics": ("dice",), "quick": False,
        "timeout": None, "skip": None,
    }  # fmt: skip
    return Cell(**(given | more))


def finished(cell: Cell, train: float, test: float = 1.0, peak: float = 500.0, **more: Any) -> RunRecord:
    cost = {"train_s": train, "eval_s": test, "steps": 20.0, "peak_rss_mb": peak}
    record = RunRecord(
        cell.train_id, cell.eval_id, "ok", "", cell.described(), cost=cost, environment={"device": "cpu"}
    )
    return replace(record, **more)


def test_long_cells_start_first_and_equal_ones_keep_their_order() -> None:
    took = {"a": 10.0, "b": 300.0, "c": 10.5, "d": 100.0}
    queue = Queue([make(name) for name in took], lambda cell: took[cell.loss_label])
    assert bool(queue)
    found = [queue.take() for _ in range(5)]
    assert [c and c.loss_label for c in found] == ["b", "d", "a", "c", None] and not queue


def test_a_process_stays_with_its_training_set_and_leaves_others_theirs() -> None:
    cells = [make(loss, fold=fold) for loss in ("a", "b") for fold in (0, 1)]
    queue = Queue(cells, lambda cell: 1.0)
    first = queue.take()
    second = queue.take(None, [queue.group(first)])
    assert (first.data["fold"], second.data["fold"]) == (0, 1)
    third = queue.take(queue.group(second), [queue.group(first)])
    assert third.data["fold"] == 1
    last = queue.take(queue.group(second), [queue.group(first)])
    assert last.data["fold"] == 0  # work goes before what is held
    # and a long cell of another set goes before a short one of the set that is held
    queue = Queue([make("a", fold=0), make("b", fold=1)], lambda cell: 1.0 + 9 * cell.data["fold"])
    assert queue.take(queue.group(make("a", fold=0))).loss_label == "b"


def test_two_evaluations_of_a_training_take_turns() -> None:
    first, other = make("a"), make("b")
    second = replace(first, metrics=("hd95",))
    assert first.train_id == second.train_id and first.eval_id != second.eval_id
    queue = Queue([first, second, other], lambda cell: 1.0)
    assert [queue.take(), queue.take(), queue.take()] == [first, other, None] and bool(queue)
    queue.done(first)
    assert queue.take() == second and not queue
    queue.add(replace(first, seed=1))  # a cell can join
    assert queue.take().seed == 1


def test_the_nearest_finished_cells_tell_the_time() -> None:
    dice, ce = make("dice"), make("ce")
    nothing = Estimates([])
    assert nothing.seconds(dice) is None and nothing.total([dice]) is None and nothing.known == 0
    # voxels of the training: 2 epochs × 10 steps × batch 4 × 32 × 32
    assert nothing.weight(dice) == 2 * 10 * 4 * 32 * 32 < nothing.weight(make(train=TRAIN | {"steps": 20}))

    known = Estimates([finished(dice, 30.0, 3.0), finished(make("dice", seed=1), 50.0, 5.0), finished(ce, 10.0, 2.0)])
    assert known.seconds(make("dice", seed=2)) == pytest.approx(40 + 4)  # the median of its loss
    assert known.seconds(make("dice", fold=1)) == pytest.approx(44)  # another fold is the same data
    assert known.seconds(make("focal")) == pytest.approx(30 + 3)  # of the model on this data, whatever the loss
    assert known.seconds(make("dice", train=TRAIN | {"epochs": 6})) == pytest.approx(3 * 40 + 4)
    large = FOLDS[0] | {"view": {"slices": {"size": [64, 64]}}, "test": ["c", "d"]}
    assert known.seconds(make("dice", data=large)) == pytest.approx(4 * 30 + 2 * 3)  # of all, by voxels and test cases
    assert known.seconds(make(skip="it cannot")) == 0
    assert known.total([dice, make("focal")]) == pytest.approx(44 + 33)


def test_trials_that_are_not_known_yet_weigh_as_those_that_are() -> None:
    nothing, half = Estimates([]), TRAIN | {"epochs": 1}
    trials = [replace(make(loss, train=half), trial=0) for loss in ("dice", "ce")]
    one = nothing.weight(make())
    assert nothing.work([*trials, make()], 10) == pytest.approx(2 * one / 2 + one + 7 * one / 2)
    assert nothing.work([make()], 3) == pytest.approx(3 * one) and nothing.work([], 0) == 0


def test_steps_of_a_pass_are_those_that_finished_cells_took() -> None:
    whole = TRAIN | {"steps": None}
    known = Estimates([finished(make("dice", train=whole), 20.0, 0.0)])  # 20 steps in 2 epochs
    assert known.seconds(make("ce", train=whole | {"epochs": 4})) == pytest.approx(40)


def test_failures_other_devices_and_half_records_tell_nothing() -> None:
    cell = make()
    broken = [
        finished(cell, 9.0, status="error"),
        finished(cell, 9.0, cost={"train_s": 9.0}),
        replace(finished(cell, 9.0), cell={"data": 3}),
        finished(cell, 9.0, environment={"device": "NVIDIA H200"}),
        finished(cell, 9.0, environment={"device": "cpu", "engine": "fused", "fused_cells": 1}),  # the last of a group
    ]
    assert Estimates(broken, gpu=False).seconds(cell) is None
    assert Estimates(broken, gpu=True).known == 1 and Estimates(broken).known == 1


def test_memory_is_that_of_finished_cells_or_a_guess_by_size() -> None:
    dice = make("dice")
    known = Estimates([finished(dice, 1.0, peak=700.0), finished(make("ce"), 1.0, peak=2000.0)])
    assert known.memory(dice) == (700.0, True) and known.memory(make("focal")) == (2000.0, True)
    large = make("dice", train=TRAIN | {"batch": 64})
    guess, measured = known.memory(large)
    assert not measured and guess > BASE_MB
    assert known.memory(make("dice", train=TRAIN | {"batch": 64, "accumulate": 16})) == (700.0, True)  # 4 at once


def test_the_remedy_of_too_little_memory_is_for_all_losses() -> None:
    cell, alone = make(train=TRAIN | {"batch": 6}), Place(Path("runs"), None, "cuda:1")
    text = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 139.81 GiB of which ..."
    assert memory_sentence(cell, text, alone) == (
        "out of memory: tried to allocate 2.5 GiB on cuda:1; the same for all losses: `train: {accumulate: 2}` (3 of "
        "the batch's 6 samples at once instead of 6), or a smaller `batch`"
    )
    said = memory_sentence(cell, text, replace(alone, beside=2))
    assert "on cuda:1; 2 cells share it, so fewer at once (--per-device), or, the same for all losses: `train" in said
    elsewhere = replace(alone, beside=2, sharing="`gpus:` in the file of --cluster")
    assert "fewer at once (`gpus:` in the file of --cluster), or" in memory_sentence(cell, text, elsewhere)
    cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes. Error"
    place = Place(Path("runs"), None)
    assert memory_sentence(cell, cpu, place).startswith("out of memory: tried to allocate 3.64 TiB on cpu; ")
    said = memory_sentence(cell, cpu, replace(place, beside=4), training=False)
    assert "accumulate" not in said and said.endswith("4 cells share it, so fewer at once (--workers)")
    assert "accumulate: 3" in remedy(make(train=TRAIN | {"batch": 6, "accumulate": 2}), place)
    smallest = remedy(make(train=TRAIN | {"batch": 1}), place)
    assert "accumulate" not in smallest and "a smaller `size`" in smallest


def test_time_left_counts_work_and_not_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = RunProgress(4, Console(quiet=True), workers=2, work=400.0, seconds=True)
    with shown:
        shown.prepared()
        assert shown._left() == "about 3 min left"  # 400 s of work on two processes
        shown.started(0, "long", 300.0)
        shown.moved(0, 1, 3, 0.5)
        now[0] = 80.0  # 100 of 400 done in 80 s
        assert shown._left() == f"about {duration(240)} left"
        shown.finished(0, "long", finished(make(), 50.0, 20.0))
        now[0] = 100.0
    first, second = shown.summary()
    assert first == "1 of 4 cells in 2 min, 36 an hour: 1 ok"
    assert (
        second
        == "time of 2 workers: training 25 %, evaluation 10 %, loading and storing 5 %, preparation 0 %, idle 60 %"
    )
    over = RunProgress(1, Console(quiet=True), work=9.0, seconds=True)  # it was thought to be more
    with over:
        over.started(0, "short", 1.0)
        over.finished(0, "short", finished(make(), 1.0, 1.0))
        assert over._left() == ""
    unknown = RunProgress(2, Console(quiet=True))
    assert unknown._left() == "" and unknown.summary() == []


def test_a_group_weighs_what_its_training_does() -> None:
    shown = RunProgress(3, Console(quiet=True), work=300.0)
    with shown:
        shown.started(0, "three", 300.0)
        shown.finished(0, "first", finished(make(), 0.0, status="error"), 2)  # before the training
        assert shown._whole() == 100.0
        shown.continued(0, "second")
        shown.moved(0, 1, 2, 0.5)
        assert shown._whole() == 200.0
        shown.finished(
            0, "second", finished(make(), 1.0, environment={"device": "cpu", "fused_cells": 2}), 1
        )  # the training is over
        assert shown._whole() == 300.0
        shown.continued(0, "third")
        shown.finished(0, "third", finished(make(), 1.0))
        assert shown._whole() == 300.0


@dataclass
class Thread:
    """What the pool needs of a process."""

    thread: threading.Thread
    exitcode: int | None = None

    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float | None = None) -> None:
        self.thread.join(timeout)

    kill = terminate = lambda self: None


class ThreadPool(runner.Pool):
    """A pool whose workers are threads that do nothing."""

    def start(self, slot: int) -> runner.Worker:
        ours, theirs = Pipe()

        def serve() -> None:
            theirs.send(("ready", None))
            while True:
                task, payload = theirs.recv()
                if task == "stop":
                    return
                if task == "prepare":
                    theirs.send(("prepared", None))
                    continue
                theirs.send(("started", None))
                theirs.send(("progress", (1, 1, 0.0)))
                theirs.send(("record", finished(payload[0], 1.0)))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.slots[slot] = runner.Worker(Thread(thread), ours)
        return self.slots[slot]


class Silent(ThreadPool):
    """A pool whose workers answer nothing."""

    def start(self, slot: int) -> runner.Worker:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        ours, self.theirs = Pipe()
        self.slots[slot] = runner.Worker(Thread(thread), ours)
        return self.slots[slot]


def test_a_group_that_is_over_its_time_says_the_limit_that_it_had(tmp_path: Path) -> None:
    job = [replace(make(name), timeout=3.0) for name in ("a", "b", "c")]
    pool = Silent(Place(tmp_path, None), ["cpu"])
    runner._begin(pool, 0, job, set(), alone=False)
    worker = pool.slots[0]
    runner._reported(worker, job[0].eval_id)  # the first has its record
    worker.deadline = 0.0
    records = [record for _, record in runner._collect(pool, RunProgress(3, Console(quiet=True)))]
    assert [(r.status, r.message) for r in records] == [("timeout", "not finished after 9 s")] * 2


def _lines(act: Callable[[], Any], files: set[str]) -> int:
    """Lines that this thread executes in some files."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return count


def _work(cells: Sequence[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(runner, "Pool", ThreadPool)
    monkeypatch.setattr(preparing, "_asks", lambda path, view: False)
    entries = [Entry(cell, "missing") for cell in cells]
    place = Place(tmp_path, None)

    def act() -> None:
        records = runner.run_cells(entries, place, ["cpu", "cpu"], Console(quiet=True))
        assert len(records) == len(cells) and {r.eval_id for r in records} == {c.eval_id for c in cells}

    return _lines(act, {runner.__file__, preparing.__file__, order.__file__, progress.__file__})


def _many(count: int) -> list[Cell]:
    """Cells of many losses, and as many further evaluations of one training that has to take turns."""
    names = [f"m{i}" for i in range(count // 2)]
    return [make("turns", metrics=(name,)) for name in names] + [make(name, fold=i % 3) for i, name in enumerate(names)]


def test_twice_the_cells_are_twice_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the parent, not its time; with a scan of the queue for every cell it would be four times the work."""
    once, twice = (min(_work(_many(n), tmp_path, monkeypatch) for _ in range(2)) for n in (150, 300))
    assert twice < 2.5 * once


def test_cases_are_looked_at_once_for_all_cells_of_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    kept = preparing.job_of
    monkeypatch.setattr(preparing, "job_of", lambda cell, case: asked.append(case) or kept(cell, case))
    _work([make(f"l{i}", fold=i % 3) for i in range(30)], tmp_path, monkeypatch)
    assert sorted(asked) == sorted(["a0", "a1", "a2", "b0", "b1", "b2", "c", "c", "c"])
