"""The queue of a run: trials of all studies side by side, each study in order, then the cells that waited."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cell import Cell
from harness.claims import result_in, take
from harness.plan import Entry
from harness.records import RunRecord
from harness.suite import Suite
from harness.tuning.studies import Studies, budget, in_words
from harness.tuning.study import Study, choice_of
from harness.worker import finished
from tests.tuning.conftest import by_formula, cell_of, load, peak, write


def entries(suite: Suite) -> list[Entry]:
    return [Entry(c, "missing") for c in suite.cells]


def work(suite: Suite, out: Path, order: random.Random, status: str = "ok", stop: int = 10_000) -> list[Cell]:
    """A pool that ends its cells in any order; what it ran, in the order in which it ended."""
    studies = Studies(entries(suite), out)
    queue, done = [e.cell for e in studies.start], []
    assert len(queue) + studies.follow.total == 3 * 8 + 6 or stop < 10_000 or status != "ok" or any(out.iterdir())
    while queue and len(done) < stop:
        cell = queue.pop(order.randrange(len(queue)))
        record = write(cell, out, peak(cell) if status == "ok" else None, status if cell.trial is not None else "ok")
        done.append(cell)
        queue += studies.follow(cell, record)
    return done


def test_trials_come_first_in_order_and_every_cell_once(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    studies = Studies(entries(suite), tmp_path / "runs")
    assert [(e.cell.loss_label, e.cell.trial) for e in studies.start] == [("dice", 0), ("focal", 0), ("tversky", 0)]
    assert len(studies.start) + studies.follow.total == 3 * 8 + 6 and len(studies.follow.later) == 6
    done = work(suite, tmp_path / "runs", random.Random(1))
    assert len(done) == len({c.eval_id for c in done}) == 3 * 8 + 6
    for label in ("dice", "focal", "tversky"):
        own = [c.trial for c in done if c.loss_label == label]
        assert own == [*range(8), None, None]


def test_killed_and_started_again_nothing_is_run_twice_and_the_choice_is_the_same(suite: Suite, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    work(suite, tmp_path / "whole", random.Random(1))
    before = work(suite, tmp_path / "killed", random.Random(2), stop=11)
    after = work(suite, tmp_path / "killed", random.Random(3))
    assert not {c.eval_id for c in before if c.trial is not None} & {c.eval_id for c in after}
    for cell in suite.cells:
        assert choice_of(cell, tmp_path / "whole") == choice_of(cell, tmp_path / "killed")
    again = Studies(entries(suite), tmp_path / "whole")  # every trial is there: the cells can start
    assert [e.cell for e in again.start] == list(suite.cells) and again.follow.total == 0


def test_failed_trials_are_not_tried_again_but_where_all_failed_they_are(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    work(suite, out, random.Random(1), status="diverged")
    assert all(e.cell.trial is None for e in Studies(entries(suite), out).start)
    out = tmp_path / "broken"
    out.mkdir()
    work(suite, out, random.Random(1), status="error")
    assert [e.cell.trial for e in Studies(entries(suite), out).start] == [0, 0, 0]
    work(suite, out, random.Random(1))
    study = Study(cell_of(suite), out)
    study.pending()
    trial = study.trials[3].cell
    write(trial, out, None, "oom")  # one failure among answers is an answer
    assert all(e.cell.trial is None or e.cell.trial > 3 for e in Studies(entries(suite), out).start)


def test_a_trial_that_failed_in_another_command_is_an_answer(suite: Suite, tmp_path: Path) -> None:
    (trial,) = Study(cell_of(suite), tmp_path).pending()
    for status in ("oom", "timeout", "error"):
        assert finished(trial.cell, tmp_path) is None
        record = write(trial.cell, tmp_path, None, status)
        assert finished(trial.cell, tmp_path) == record
        plain = replace(trial.cell, trial=None)
        assert finished(plain, tmp_path) is None, "any other cell is tried again"
        assert finished(replace(trial.cell, loss_digest="edited"), tmp_path) is None
        (trial.cell.eval_folder(tmp_path) / "record.json").unlink()
    write(trial.cell, tmp_path, None, "interrupted")
    assert finished(trial.cell, tmp_path) is None


def test_a_record_of_another_cell_is_none(suite: Suite, tmp_path: Path) -> None:
    first, second = cell_of(suite), cell_of(suite, seed=1)
    write(first, tmp_path, 0.5)
    assert finished(first, tmp_path) is not None and result_in(first.eval_folder(tmp_path)) is not None
    second.folder(tmp_path).mkdir()
    first.eval_folder(tmp_path).rename(second.eval_folder(tmp_path))
    assert finished(second, tmp_path) is None and result_in(second.eval_folder(tmp_path)) is None


def test_cells_that_wait_are_made_again_where_that_was_asked_for(suite: Suite, tmp_path: Path) -> None:
    first, *rest = suite.cells
    studies = Studies([Entry(first, "stale"), *(Entry(c, "missing") for c in rest)], tmp_path)
    assert studies.follow.fresh == {first.eval_id} and first in studies.follow.later


def test_failed_trials_stay_as_long_as_another_process_is_at_their_study(suite: Suite, tmp_path: Path) -> None:
    study = Study(cell_of(suite), tmp_path)
    (first,) = study.pending()
    write(first.cell, tmp_path, None, "error")
    (second,) = study.pending()
    second.cell.folder(tmp_path).mkdir(parents=True)
    lease = take(second.cell.folder(tmp_path))
    assert lease is not None
    own = [e for e in entries(suite) if e.cell.loss_label == "focal"]
    with lease:
        assert [e.cell.trial for e in Studies(own, tmp_path).start] == [1]
    assert [e.cell.trial for e in Studies(own, tmp_path).start] == [0]


def test_an_interrupted_trial_holds_its_study_and_nothing_else(suite: Suite, tmp_path: Path) -> None:
    studies = Studies(entries(suite), tmp_path)
    first = studies.start[0].cell
    stopped = RunRecord(first.train_id, first.eval_id, "interrupted", "", first.described(), sources=first.sources)
    assert list(studies.follow(first, stopped)) == []
    second = studies.start[1].cell
    assert [c.trial for c in studies.follow(second, write(second, tmp_path, 0.5))] == [1]


def test_a_trial_of_another_source_is_run_anew(suite: Suite, tmp_path: Path) -> None:
    (first,) = Study(cell_of(suite), tmp_path).pending()
    write(replace(first.cell, loss_digest="of before the edit"), tmp_path, 0.9)
    studies = Studies(entries(suite), tmp_path)
    assert [e.cell.trial for e in studies.start] == [0, 0, 0]
    assert not (first.cell.eval_folder(tmp_path) / "record.json").exists()  # else `run_cell` would take it for done


def test_a_training_of_another_source_goes_where_its_evaluation_was_killed(suite: Suite, tmp_path: Path) -> None:
    (first,) = Study(cell_of(suite), tmp_path).pending()
    path = first.cell.folder(tmp_path) / "train.json"
    path.parent.mkdir(parents=True)
    for digest, there in (("of before the edit", False), (first.cell.loss_digest, True)):
        record = RunRecord(first.cell.train_id, "", "ok", "", {}, sources=first.cell.sources | {"loss": digest})
        record.write(path)
        Studies(entries(suite), tmp_path)
        assert path.exists() is there


def test_a_plan_says_how_many_trials_without_optuna(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert sorted(budget(entries(suite)).values()) == [8, 8, 8]
    assert in_words(entries(suite)) == "; up to 24 trials of 3 studies before them"
    bare = load(tmp_path, "tune: {trials: 8, lr: [1e-4, 1e-1], epochs: 3}\n")
    assert in_words(entries(bare)) == ""
    from harness.errors import BenchError

    with pytest.raises(BenchError, match=r"needs the package optuna: pip install 'segmentation-loss-bench\[tune\]'"):
        Study(cell_of(suite), tmp_path)


def test_trials_do_not_depend_on_what_else_is_in_the_run(suite: Suite, tmp_path: Path) -> None:
    alone = Studies([e for e in entries(suite) if e.cell.loss_label == "focal"], tmp_path)
    (first,) = alone.start
    by_formula(next(t for t in Study(cell_of(suite), tmp_path).pending()), tmp_path)
    assert first.cell.eval_id in {e.cell.eval_id for e in Studies(entries(suite), tmp_path / "other").start}
