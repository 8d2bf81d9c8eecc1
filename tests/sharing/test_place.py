"""Records are laid beside those that are there: none is replaced, and all are laid down or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shared import HEX, make_archive, make_cell

from harness.errors import BenchError
from harness.records import read_record
from harness.sharing.archive import open_archive
from harness.sharing.place import Outcome, place_records

ONE, TWO = make_cell(), make_cell(seed=1)


def laid(path: Path, target: Path) -> Outcome:
    with open_archive(path) as archive:
        return place_records(archive, target)


def state(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def counts(outcome: Outcome) -> tuple[int, int, int]:
    return len(outcome.new), len(outcome.present), len(outcome.kept)


def test_new_cells_join_those_that_are_there(tmp_path: Path) -> None:
    target = tmp_path / "reports" / "toy" / "records"
    assert counts(laid(make_archive(tmp_path, ONE, to="a.zip"), target)) == (1, 0, 0)
    both = make_archive(tmp_path, ONE, TWO, to="b.zip")
    assert counts(laid(both, target)) == (1, 1, 0)
    assert counts(laid(both, target)) == (0, 2, 0)
    assert state(target) == state(tmp_path / "b.zip.results")
    assert [p.name for p in target.parent.iterdir()] == ["records"]


def test_the_first_result_stays(tmp_path: Path) -> None:
    target = tmp_path / "records"
    laid(make_archive(tmp_path, ONE, to="a.zip", status="diverged"), target)
    before = state(target)
    outcome = laid(make_archive(tmp_path, ONE, TWO, to="b.zip"), target)
    assert counts(outcome) == (1, 0, 1) and "other weights" in outcome.kept[0][1]
    assert before.items() <= state(target).items()

    ours, theirs = (make_archive(tmp_path, ONE, to=f"{value}.zip", weights=HEX, value=value) for value in (0.8, 0.7))
    laid(ours, tmp_path / "other")
    outcome = laid(theirs, tmp_path / "other")
    assert counts(outcome) == (0, 0, 1) and "other numbers" in outcome.kept[0][1]


def test_another_evaluation_of_the_same_training_joins_it(tmp_path: Path) -> None:
    more = make_cell(metrics=("dice", "hd95", "asd"))
    assert more.train_id == ONE.train_id and more.eval_id != ONE.eval_id
    target = tmp_path / "records"
    laid(make_archive(tmp_path, ONE, to="a.zip", weights=HEX), target)
    before = state(target)
    assert counts(laid(make_archive(tmp_path, more, to="b.zip", weights=HEX), target)) == (1, 0, 0)
    assert before.items() <= state(target).items() and len(state(target)) == 6
    # of another run of that training, an evaluation does not belong to the curve that is there
    outcome = laid(make_archive(tmp_path, more, to="c.zip", weights="0" * 64), target)
    assert counts(outcome) == (0, 0, 1)


def test_work_in_progress_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "runs"
    ONE.folder(target).mkdir(parents=True)
    (ONE.folder(target) / "checkpoint.pt").write_text("half")
    path = make_archive(tmp_path, ONE)
    outcome = laid(path, target)
    assert counts(outcome) == (0, 0, 1) and "unfinished" in outcome.kept[0][1]
    assert state(target) == {f"{ONE.train_id}/checkpoint.pt": b"half"}
    other = tmp_path / "other"
    laid(path, other)
    (ONE.eval_folder(other) / "record.json").write_text("{")
    outcome = laid(path, other)
    assert counts(outcome) == (0, 0, 1) and (ONE.eval_folder(other) / "record.json").read_text() == "{"


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fails_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    target = tmp_path / "reports" / "records"
    if there:
        laid(make_archive(tmp_path, make_cell("ce"), to="a.zip"), target)
    before = state(target)
    path = make_archive(tmp_path, ONE, TWO, to="b.zip")
    real, calls = os.rename, []

    def rename(source: object, goal: object) -> None:
        calls.append(goal)
        if len(calls) == (2 if there else 1):
            raise OSError(28, "No space left on device")
        real(source, goal)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BenchError, match=r"No space left on device\); nothing was imported"):
        laid(path, target)
    assert state(target) == before and target.exists() == there
    assert [p.name for p in target.parent.iterdir()] == (["records"] if there else [])
    monkeypatch.setattr(os, "rename", real)
    assert counts(laid(path, target)) == (2, 0, 0)
    assert read_record(TWO.eval_folder(target) / "record.json").eval_id == TWO.eval_id


def test_an_archive_that_changes_while_it_is_laid_down(tmp_path: Path) -> None:
    folder = make_archive(tmp_path, ONE, to="folder")
    with open_archive(folder) as archive:
        path = ONE.eval_folder(folder) / "cases.csv"
        path.write_bytes(path.read_bytes().replace(b"0.9", b"1.0"))
        with pytest.raises(BenchError, match="not the file that was packed"):
            place_records(archive, tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_a_target_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("mine")
    with pytest.raises(BenchError, match="is no folder"):
        laid(make_archive(tmp_path, ONE), tmp_path / "records")
