"""What a report says of tuning, from records that were written and not run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.plan import Entry
from harness.records import RunRecord
from harness.report.tuning import tuning_views
from harness.suite import Suite
from harness.tuning.told import learning_rates, notes_on, specs_of, told
from tests.tuning.conftest import SUITE, load, write

FEW = SUITE.replace("batch: 2,", "batch: 2, cases: [4],")


def choice(lr: float, failed: int = 0) -> dict[str, Any]:
    return {
        "metric": "dice", "trials": 8, "epochs": 3, "failed": failed, "trial": 1, "lr": lr, "args": {}, "value": 0.8,
        "default": 0.7, "seconds": 20.0, "optuna": "5",
    }  # fmt: skip


def recorded(suite: Suite, out: Path, failed: int = 0) -> list[Entry]:
    """Each repeat with another learning rate."""

    def one(cell: Cell) -> RunRecord:
        return replace(write(cell, out, 0.8), tuned=choice(0.01 * (1 + cell.seed), failed))

    return [Entry(c, "ok", record=one(c)) for c in suite.cells]


class Names:
    """What the table asks of the frames."""

    def __init__(self, suite: Suite) -> None:
        import pandas as pd

        name, split = suite.cells[0].dataset, suite.cells[0].data["split"]
        self.cells = pd.DataFrame([{"dataset": name, "split": split, "group": name}])
        self.groups = [name]


def test_repeats_of_one_study_with_two_choices_are_not_comparable(suite: Suite, tmp_path: Path) -> None:
    found = told(recorded(suite, tmp_path))
    assert [o.cell.loss_label for o in found] == ["dice", "dice", "focal", "focal", "tversky", "tversky"]
    assert len(notes_on(found)) == 3 and all(n.startswith("NOT COMPARABLE: the repeats of ") for n in notes_on(found))
    (view,) = tuning_views(found, Names(suite))  # type: ignore[arg-type]
    assert "repeat" not in [c.name for c in view.columns] and view.frame["repeat"].isna().all()
    assert (
        "the trials took 120 s, the final" in view.notes[1].lower() and "repeat, where" not in learning_rates(suite)[0]
    )


def test_repeats_with_patients_of_their_own_have_a_study_and_a_row_each(tmp_path: Path) -> None:
    suite = load(tmp_path, text=FEW)
    assert all("patients" in c.data for c in suite.cells)
    found = told(recorded(suite, tmp_path, failed=1))
    assert notes_on(found) == [] and [o.runs for o in found] == [1] * 6
    (view,) = tuning_views(found, Names(suite))  # type: ignore[arg-type]
    assert view.columns[0].name == "repeat" and view.heads[0].span == 1
    assert [r.entries[0].text for r in view.blocks[0].rows] == ["0", "1"] * 3
    assert list(view.frame["repeat"]) == [0, 1] * 3
    assert "s, without those that ended with an error, out of memory or by timeout; the final" in view.notes[1]
    assert (
        "data set and fold (and repeat, where these train on patients of their own) every" in learning_rates(suite)[0]
    )


def test_a_loss_has_its_tuned_arguments_where_all_studies_agree(suite: Suite, tmp_path: Path) -> None:
    def specs(*gammas: float | None) -> dict[str, Any]:
        entries = [e for e in recorded(suite, tmp_path) if e.cell.loss_label == "focal"]
        records = [
            replace(e.record, tuned=choice(0.01) | {"args": {} if g is None else {"gamma": g}})  # type: ignore[type-var]
            for e, g in zip(entries, gammas, strict=True)
        ]
        return specs_of([replace(e, record=r) for e, r in zip(entries, records, strict=True)])["focal"]["args"]

    assert specs(3.0, 3.0) == {"gamma": 3.0} and specs(None, None) == {}
    assert specs(None, 3.0) == {"gamma": "tuned"} == specs(2.0, 3.0)
