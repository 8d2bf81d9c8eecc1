"""`bench clean`: what can go, and above all what stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cell import Cell
from harness.clean import find, hold, remove, size_of
from harness.cli import main
from harness.plan import make_plan
from harness.records import RunRecord, write_rows
from harness.suite import Suite, load_suite


class Results:
    """A folder of results that was written, not run."""

    def __init__(self, toy: Any, losses: str = "[dice, ce]") -> None:
        self.toy, self.out = toy, toy.folder / "runs"
        self.suite = load_suite(toy.suite("losses: [dice, ce]", f"losses: {losses}"))
        self.out.mkdir(exist_ok=True)

    def write(
        self, cell: Cell, status: str = "ok", sources: dict[str, str] | None = None, trained: bool = True
    ) -> Path:
        folder = cell.eval_folder(self.out)
        (folder / "masks").mkdir(parents=True)
        (folder / "masks/c4.nii.gz").write_bytes(b"m" * 40)
        write_rows(folder / "cases.csv", ["case"], [{"case": "c4"}])
        made = RunRecord(cell.train_id, cell.eval_id, status, "", cell.described(), sources=sources or cell.sources)
        made.write(folder / "record.json")
        if trained:
            replace(made, eval_id="").write(folder.parent / "train.json")
            (folder.parent / "weights.pt").write_bytes(b"w" * 100)
        write_rows(folder.parent / "curve.csv", ["epoch", "step", "loss"], [{"epoch": 0, "step": 1, "loss": 1.0}])
        return folder

    def found(self, **options: bool) -> dict[tuple[str, str], int]:
        """Kind and path below the folder of results of what can go."""
        items = find([self.suite], self.out, **options).items
        return {(item.kind, str(item.path.relative_to(self.out))): item.bytes for item in items}

    def files(self) -> set[str]:
        found = (p.relative_to(self.out) for p in self.out.rglob("*") if p.is_file() or p.is_symlink())
        return {str(p) for p in found if p.parts[:2] != ("cache", "store")}  # which a plan keeps


@pytest.fixture
def results(toy: Any) -> Results:
    return Results(toy)


def _states(suite: Suite, results: Results) -> list[str]:
    return [e.state for e in make_plan(suite, results.out, results.toy.folder / "reports")]


def test_what_can_go(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished checkpoint, temporary files and a stale training go; all else stays, and by default everything."""
    dice, ce = results.suite.cells
    done = results.write(dice)
    (done.parent / "checkpoint.pt").write_bytes(b"c" * 1000)
    (done.parent / ".train.json.ab12_xyz").write_bytes(b"t" * 7)
    (done / "masks/.c5.nii.gz").write_bytes(b"t" * 9)
    (done / ".hidden").write_bytes(b"mine")
    old = results.write(ce, sources={**ce.sources, "loss": "0" * 64})
    before = results.files()
    wanted = {
        ("checkpoint", f"{dice.train_id}/checkpoint.pt"): 1000,
        ("temporary", f"{dice.train_id}/.train.json.ab12_xyz"): 7,
        ("temporary", f"{dice.train_id}/{dice.eval_id}/masks/.c5.nii.gz"): 9,
    }
    found = results.found()
    assert found.items() >= wanted.items() and found.keys() - wanted.keys() == {("stale", ce.train_id)}
    arguments = ["clean", str(results.suite.path), "--out", str(results.out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "1.0 kB  checkpoint" in shown and "nothing was removed: --yes does it" in shown
    assert results.files() == before and _states(results.suite, results) == ["ok", "stale"]

    assert main([*arguments, "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["removed"] and told["bytes"] == sum(found.values()) and len(told["items"]) == 4
    gone = {f for f in before if f.startswith(ce.train_id)} | {path for _, path in wanted}
    assert results.files() == before - gone and not old.parent.exists()
    assert _states(results.suite, results) == ["ok", "missing"]
    assert results.found() == {}


def test_unfinished_work_stays(results: Results) -> None:
    """The checkpoint of a training that has not ended, and records of failures, which say what happened."""
    dice, ce = results.suite.cells
    for cell, status in ((dice, "interrupted"), (ce, "oom")):
        folder = results.write(cell, status, trained=False)
        (folder.parent / "checkpoint.pt").write_bytes(b"c")
    assert results.found(orphans=True, cache=True) == {}


def test_one_source_of_several_has_changed(toy: Any) -> None:
    """A loss that scores was edited: the measurement is stale, the training is not."""
    results = Results(toy)
    dice, _ = results.suite.cells
    folder = results.write(dice)
    record = RunRecord(dice.train_id, dice.eval_id, "ok", "", dice.described(), sources=dice.sources | {"loss:ce": "x"})
    record.write(folder / "record.json")
    assert set(results.found()) == {("stale", f"{dice.train_id}/{dice.eval_id}")}


def test_orphans_are_named_only_when_asked_for(results: Results) -> None:
    dice, _ = results.suite.cells
    results.write(dice)
    other = replace(dice, metrics=("dice",))  # an evaluation of other metrics
    results.write(other, trained=False)
    gone = replace(dice, seed=77)  # a training that the suite no longer has
    results.write(gone)
    foreign = replace(dice, suite="another", seed=78)
    results.write(foreign)
    quick = replace(dice, quick=True, seed=79)
    results.write(quick)
    found = find([results.suite], results.out)
    assert found.items == [] and found.orphans[0] == 2 and found.orphans[1] > 200
    wanted = {("orphan", gone.train_id), ("orphan", f"{dice.train_id}/{other.eval_id}")}
    assert set(results.found(orphans=True)) == wanted
    remove(find([results.suite], results.out, orphans=True).items, results.out)
    left = {p.parent for p in results.out.glob("*/*/record.json")}
    assert left == {c.eval_folder(results.out) for c in (dice, foreign, quick)}
    assert (dice.folder(results.out) / "weights.pt").is_file()


def test_nothing_beside_the_results(results: Results) -> None:
    """Links are neither followed nor removed, and what is no training folder is not looked at."""
    dice, ce = results.suite.cells
    aside = results.toy.folder / "aside"
    old = results.write(ce, sources={"loss": "0", "model": "0"})
    old.parent.rename(aside)
    (results.out / ce.train_id).symlink_to(aside)
    folder = results.write(dice)
    (aside / "checkpoint.pt").write_bytes(b"x")
    (folder.parent / ".linked.abcdefgh").symlink_to(aside / "checkpoint.pt")
    (folder.parent / ("f" * 16)).symlink_to(aside)
    (results.out / "mine").mkdir()
    (results.out / "mine/checkpoint.pt").write_bytes(b"x")
    (results.out / "cache").symlink_to(aside)
    outside = {p: p.lstat().st_mtime_ns for p in aside.rglob("*")}
    found = find([results.suite], results.out, orphans=True, cache=True)
    assert [str(i.path.relative_to(results.out)) for i in found.items] == [f"{dice.train_id}/.linked.abcdefgh"]
    assert remove(found.items, results.out) == []
    assert {p: p.lstat().st_mtime_ns for p in aside.rglob("*")} == outside
    assert (results.out / ce.train_id).is_symlink() and (results.out / "mine/checkpoint.pt").is_file()
    assert (results.out / ce.train_id, "a symbolic link") in found.kept


def test_a_link_that_came_after_the_list(results: Results) -> None:
    dice, _ = results.suite.cells
    folder = results.write(dice).parent
    (folder / "checkpoint.pt").write_bytes(b"x")
    found = find([results.suite], results.out)
    aside = results.toy.folder / "aside"
    folder.rename(aside)
    folder.symlink_to(aside)
    assert remove(found.items, results.out) == [(folder / "checkpoint.pt", "a symbolic link leads there")]
    assert (aside / "checkpoint.pt").is_file()


def test_what_another_process_works_on(results: Results) -> None:
    dice, ce = results.suite.cells
    folders = [results.write(cell).parent for cell in (dice, ce)]
    for folder in folders:
        (folder / "checkpoint.pt").write_bytes(b"x")
    cached = results.out / "cache/toy/a.npz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x" * 10)
    everything = find([results.suite], results.out, cache=True)
    assert {i.kind for i in everything.items} == {"checkpoint", "cache"} and everything.kept == []
    with hold(folders[0]) as mine:
        assert mine
        found = find([results.suite], results.out, cache=True)
        assert [i.path for i in found.items] == [folders[1] / "checkpoint.pt"]
        assert {path for path, _ in found.kept} == {folders[0], results.out / "cache"}
        # one that came between list and removal keeps its work, too
        left = remove(everything.items[:1], results.out)
        assert left == [(folders[0] / "checkpoint.pt", "another process works on it")]
    assert remove(everything.items, results.out) == [] and not cached.exists()


def test_the_cache(results: Results) -> None:
    folder = results.out / "cache"
    for name in (
        "toy/a.npz",
        "toy/.a.npz.abcdefgh",
        "toy/.b.npz.abcdefgh",
        "toy/notes.txt",
        "other/a.npz",
        "checks/a.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 10)
    os.utime(folder / "toy/.b.npz.abcdefgh", (0, 0))  # the other may be of a process that runs
    assert results.found() == {}
    assert set(results.found(cache=True)) == {("cache", "cache/toy/a.npz"), ("temporary", "cache/toy/.b.npz.abcdefgh")}


def test_of_several_suites_each_keeps_its_own(results: Results) -> None:
    """What one suite no longer has another may."""
    dice, _ = results.suite.cells
    results.write(dice)
    less = load_suite(results.toy.suite("losses: [dice, ce]", "losses: [ce]", "less"))
    assert find([less], results.out).orphans[0] == 1
    assert find([less, results.suite], results.out).orphans[0] == 0


def test_a_folder_of_which_nothing_is_known_and_one_that_is_not_there(results: Results, capsys: Any) -> None:
    (results.out / ("a" * 16)).mkdir()
    (results.out / ("a" * 16) / "checkpoint.pt").write_bytes(b"x")
    found = find([results.suite], results.out, orphans=True)
    assert found.items == [] and found.kept == [(results.out / ("a" * 16), "no record says of which suite it is")]
    assert main(["clean", str(results.suite.path), "--out", str(results.out / "nowhere")]) == 2
    assert "nowhere: cannot be read" in capsys.readouterr().err


def test_before_the_first_run_there_is_nothing_to_remove(
    results: Results, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results.toy.folder / "empty").mkdir()
    monkeypatch.chdir(results.toy.folder / "empty")
    assert main(["clean", str(results.suite.path)]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_sizes() -> None:
    assert [size_of(n) for n in (0, 999, 1500, 2 * 10**9, 3 * 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 GB",
        "3000.0 TB",
    ]
