"""Two evaluations of one training, and what training it again for one of them does to the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cell import Cell, Place
from harness.plan import make_plan
from harness.records import RunRecord, record_at
from harness.rows import Tables, frames
from harness.suite import Suite, load_suite
from harness.worker import run_cell

SUITE = """\
suite: {name}
data: {{manifest: phantom, split: validated, slices: {{size: [32, 32], fit: resize}}}}
models: [unet: {{width: 2, depth: 2}}]
losses: [dice]
train: {{epochs: 1, steps: 2, batch: 2, optimizer: {{adamw: {{lr: 1e-2}}}}, cases: 2}}
quick: {{cases: 2}}
metrics: {metrics}
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "runs", None)


def _suite(place: Place, name: str, metrics: str) -> Suite:
    path = place.out.parent / f"{name}.yaml"
    path.write_text(SUITE.format(name=name, metrics=metrics))
    return load_suite(path, quick=True)


def _both(place: Place) -> tuple[Suite, Suite]:
    suites = _suite(place, "a", "[dice]"), _suite(place, "b", "[dice, iou]")
    (first,), (second,) = suites[0].cells, suites[1].cells
    assert first.train_id == second.train_id and first.eval_id != second.eval_id
    return suites


def _run(cell: Cell, place: Place, fresh: bool = False) -> RunRecord:
    record = run_cell(cell, place, fresh=fresh)
    assert record.status == "ok", record.message
    assert record.cell == cell.described(), "its own, whoever trained"
    return record


def _tables(suite: Suite, place: Place) -> Tables:
    return frames(make_plan(suite, place.out, place.out.parent / "reports"))


def _trainings(cell: Cell, place: Place) -> int:
    return (cell.folder(place.out) / "log.txt").read_text().count(" trained, ")


def test_both_are_made_again_of_one_training(place: Place) -> None:
    suites = _both(place)
    cells = [suite.cells[0] for suite in suites]
    for cell in cells:
        _run(cell, place)
    assert _trainings(cells[0], place) == 1
    for cell in reversed(cells):  # the other one first, with other columns in the curve
        _run(cell, place, fresh=True)
    assert _trainings(cells[0], place) == 2
    for suite in suites:
        tables = _tables(suite, place)
        assert tables.notes == [] and "val_iou" in tables.curves
    _run(cells[0], place, fresh=True)  # both are of one training again, so that one is made anew
    assert _trainings(cells[0], place) == 3


def test_a_curve_of_a_later_training_is_left_out_and_not_called_damaged(place: Place) -> None:
    first, second = _both(place)
    for suite in (first, second):
        _run(suite.cells[0], place)
    _run(second.cells[0], place, fresh=True)
    tables = _tables(first, place)
    (note,) = tables.notes
    assert "curve.csv is of a later training than the record" in note and "damaged" not in note
    assert len(tables.cases) and not len(tables.curves), "what was measured counts, what is of another does not"
    assert _tables(second, place).notes == []
    (first.cells[0].eval_folder(place.out) / "record.json").unlink()  # as the note says
    _run(first.cells[0], place)
    assert _tables(first, place).notes == [] and _trainings(first.cells[0], place) == 2
    curve = first.cells[0].folder(place.out) / "curve.csv"
    curve.write_text(curve.read_text() + "\n")
    assert "curve.csv is damaged" in _tables(first, place).notes[0]


def test_a_later_training_of_an_older_source_is_made_anew(place: Place) -> None:
    first, second = (suite.cells[0] for suite in _both(place))
    for cell in (first, second):
        _run(cell, place)
    _run(second, place, fresh=True)
    path = first.folder(place.out) / "train.json"
    trained = record_at(path)
    assert trained is not None
    replace(trained, sources=trained.sources | {"loss": "as it was"}).write(path)
    record = _run(first, place, fresh=True)
    assert _trainings(first, place) == 3 and record.sources["loss"] == first.loss_digest


def test_a_training_that_diverged_is_not_made_again_for_another_evaluation(place: Place) -> None:
    first, second = (suite.cells[0] for suite in _both(place))
    _run(first, place)
    path = first.folder(place.out) / "train.json"
    trained = record_at(path)
    assert trained is not None
    replace(trained, status="diverged", message="the training loss was not a finite number").write(path)
    record = run_cell(second, place)
    assert (record.status, record.eval_id) == ("diverged", second.eval_id)
    assert record.cell["metrics"] == ["dice", "iou"] and _trainings(first, place) == 1
