"""Fused runs from the command line to the records: groups, refusals, notes, and what one cell's fault does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from harness import progress
from harness.api import load_suite, plan, run
from harness.cell import Cell, Place
from harness.checkpoints import write_checkpoint
from harness.engine import Engine, check_engines, engine_notes
from harness.errors import BenchError
from harness.fused import Group
from harness.order import Queue
from harness.plan import Entry
from harness.records import RunRecord, read_rows
from harness.worker import run_cell, run_group

SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [32, 32], fit: resize}}
models: [unet: {width: 2, depth: 2}, nnunet: {width: 2}]
losses: [dice, ce, focal]
seeds: 2
train: {epochs: 1, steps: 2, batch: 2, optimizer: {adamw: {lr: 1e-2}}, cases: 2}
"""


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    (tmp_path / "toy.yaml").write_text(SUITE)
    return list(load_suite(tmp_path / "toy.yaml").cells)


def _made(cell: Cell, status: str = "ok", **environment: object) -> Entry:
    record = RunRecord(cell.train_id, cell.eval_id, status, "", {}, environment=dict(environment))
    return Entry(cell, status, record)


def test_groups_hold_cells_that_differ_in_their_loss_alone(cells: list[Cell]) -> None:
    assert Engine().jobs(cells) == [[c] for c in cells]
    groups = Engine("fused").jobs(cells)
    assert sorted(c.eval_id for g in groups for c in g) == sorted(c.eval_id for c in cells)
    assert [len(g) for g in groups] == [3] * 4
    for group in groups:
        assert len({(c.model_label, c.seed) for c in group}) == 1 and len({c.loss_label for c in group}) == 3
    assert sorted(len(g) for g in Engine("fused", 2).jobs(cells)) == [1] * 4 + [2] * 4
    again = replace(cells[0], metrics=("hd95",))  # another evaluation of one training takes its turn
    assert again.train_id == cells[0].train_id
    assert [len(g) for g in Engine("mixed").jobs([cells[0], again])] == [1, 1]
    skipped = replace(cells[1], skip="no")
    assert [len(g) for g in Engine("fused").jobs([cells[0], skipped])] == [1, 1]


def test_a_group_waits_for_the_trainings_of_all_its_cells(cells: list[Cell]) -> None:
    first, second = cells[0], cells[2]
    of = {first.eval_id: ["a", "b"], second.eval_id: ["b", "c"]}
    queue = Queue([first, second], lambda c: 1.0, lambda c: of[c.eval_id])
    assert queue.take() is first and queue.take() is None and queue
    queue.done(first)
    assert queue.take() is second and not queue


@pytest.mark.parametrize(
    ("name", "fuse", "words"),
    [
        ("both", None, "single, compiled, fused, mixed"),
        ("fused", 0, "at least 1"),
        ("single", 3, "--fuse"),
        ("compiled", 3, "--fuse"),
    ],
)
def test_mistakes_are_named(name: str, fuse: int | None, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        Engine(name, fuse).check()


def test_records_of_another_engine_are_refused(cells: list[Cell], tmp_path: Path) -> None:
    unet, other = [c for c in cells if c.model_label == cells[0].model_label], cells[-1]
    old = _made(unet[0])  # from before there was a word for it
    todo = [Entry(c, "missing") for c in unet[1:]]
    check_engines([old, *todo], todo, Engine(), tmp_path)
    check_engines([old, *todo], todo, Engine("mixed"), tmp_path)
    with pytest.raises(
        BenchError, match=r"--engine fused: 1 of the cells of .* trained with --engine single.*--engine mixed"
    ):
        check_engines([old, *todo], todo, Engine("fused"), tmp_path)
    fused = _made(unet[0], engine="fused", fused_cells=3)
    check_engines([fused, *todo], todo, Engine("fused"), tmp_path)
    with pytest.raises(BenchError, match="trained with --engine fused"):
        check_engines([fused, *todo], todo, Engine(), tmp_path)
    check_engines([fused, *todo], [], Engine(), tmp_path)  # nothing is to run
    check_engines([fused, Entry(other, "missing")], [Entry(other, "missing")], Engine(), tmp_path)  # of another model
    check_engines([fused, *todo], [fused, *todo], Engine(), tmp_path)  # all of it again
    alone = _made(unet[0], engine="single", engine_note="its network cannot", instead_of="fused")
    check_engines([alone, *todo], todo, Engine("fused"), tmp_path)
    check_engines([alone, *todo], todo, Engine("single"), tmp_path)
    with pytest.raises(BenchError, match="trained with --engine single"):
        check_engines([alone, *todo], todo, Engine("compiled"), tmp_path)
    check_engines([_made(unet[0], "error"), *todo], todo, Engine("fused"), tmp_path)


def test_checkpoints_of_another_engine_are_refused(cells: list[Cell], tmp_path: Path) -> None:
    todo = [Entry(c, "missing") for c in cells if c.model_label == cells[0].model_label]
    path = todo[0].cell.folder(tmp_path) / "checkpoint.pt"
    path.parent.mkdir(parents=True)

    def begun(step: int = 5, **engine: object) -> None:
        with path.open("wb") as stream:
            write_checkpoint({"engine": engine, "progress": {"step": step}}, stream)

    for name in ("single", "compiled", "fused"):
        begun(engine=name)
        for asked in ("single", "compiled", "fused"):
            if asked == name:
                check_engines(todo, todo, Engine(asked), tmp_path)
                continue
            with pytest.raises(BenchError, match=rf"--engine {asked}: 1 of the cells of .* begun with --engine {name}"):
                check_engines(todo, todo, Engine(asked), tmp_path)
        check_engines(todo, todo, Engine("mixed"), tmp_path)
        again = [Entry(e.cell, "ok") for e in todo]
        check_engines(again, again, Engine("single"), tmp_path)  # made anew
    begun(engine="single", engine_note="its network cannot", instead_of="fused")
    for name in ("single", "fused"):
        check_engines(todo, todo, Engine(name), tmp_path)
    with pytest.raises(BenchError, match="begun with --engine single"):
        check_engines(todo, todo, Engine("compiled"), tmp_path)
    begun(step=0, engine="compiled")
    check_engines(todo, todo, Engine("fused"), tmp_path)
    for damaged in (b"", b"short", path.read_bytes()[:-1]):
        path.write_bytes(damaged)
        check_engines(todo, todo, Engine("fused"), tmp_path)
    _made(todo[0].cell, engine="compiled").record.write(path.with_name("train.json"))  # trained and not evaluated
    with pytest.raises(BenchError, match="begun with --engine compiled"):
        check_engines(todo, todo, Engine("fused"), tmp_path)
    path.unlink()
    path.mkdir()
    path.with_name("train.json").unlink()
    with pytest.raises(BenchError, match="directory"):
        check_engines(todo, todo, Engine("fused"), tmp_path)


def test_the_report_says_how_cells_were_trained(cells: list[Cell]) -> None:
    assert engine_notes([_made(c) for c in cells]) == []
    one, two, three = cells[:3]
    notes = engine_notes([_made(one), _made(two, engine="fused", fused_cells=2), _made(three, engine="single")])
    same = {c.model_label for c in (one, two, three)}
    assert notes[0].startswith("MIXED ENGINES") == (len(same) == 1)
    assert "Cells trained fused (--engine fused): 1 in groups of 2" in notes[-1]
    noted = _made(one, engine="single", engine_note="it reads numbers", instead_of="fused")
    (note,) = engine_notes([noted])
    assert note.startswith("--engine fused: 1 cells of ") and note.endswith("alone and as they are: it reads numbers.")
    notes = engine_notes([noted, _made(replace(two, model_label=one.model_label), engine="fused", fused_cells=2)])
    assert (
        notes[0].startswith("MIXED ENGINES") and "1 cells were trained alone and 1 cells were trained fused" in notes[0]
    )
    (note,) = engine_notes([_made(one, processes=2), _made(two)])
    assert note.startswith("Up to 2 processes shared a device")


def test_a_group_makes_the_records_of_its_cells(cells: list[Cell], tmp_path: Path) -> None:
    group = Engine("fused").jobs(cells)[0]
    edited = replace(group[1], loss_digest="another")
    place = Place(tmp_path / "runs", None)
    seen: list[int] = []
    made = list(run_group([group[0], edited, group[2]], place, report=lambda done, total, loss: seen.append(done)))
    records = {r.eval_id: r for r in made}
    assert len(made) == 3 and records[edited.eval_id].status == "error" and seen == [2]
    assert "edited after the run was planned" in records[edited.eval_id].message
    for cell in (group[0], group[2]):
        record = records[cell.eval_id]
        assert record.status == "ok", record.message
        assert record.environment["engine"] == "fused" and record.environment["fused_cells"] == 2
        folder = cell.folder(place.out)
        assert not (folder / "checkpoint.pt").exists() and read_rows(cell.eval_folder(place.out) / "cases.csv")
        alone = run_cell(cell, Place(tmp_path / "alone", None))
        assert alone.environment["engine"] == "single" and alone.fingerprints == record.fingerprints
        ours, theirs = (read_rows(f / "curve.csv") for f in (folder, cell.folder(tmp_path / "alone")))
        assert float(ours[0]["loss"]) == pytest.approx(float(theirs[0]["loss"]), rel=1e-3)
        sizes = [(f / "weights.pt").stat().st_size for f in (folder, cell.folder(tmp_path / "alone"))]
        assert sizes[0] == sizes[1], "a file holds one network, not the group"
        assert next(run_group([cell], place)).weights == record.weights, "a finished cell is returned as it is"
        assert run_cell(cell, place).weights == record.weights


def test_the_parts_of_a_group_report_and_count_as_training_each(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, original = [0.0], Group._pass
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def small(self: Group, image: Tensor, buffers: Any) -> Any:
        if len(self.alive) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, image, buffers)

    monkeypatch.setattr(Group, "_pass", small)
    group = Engine("fused").jobs(cells)[0]
    shown = progress.RunProgress(3, Console(quiet=True), work=300.0)
    seen: list[int] = []

    def report(done: int, total: int, loss: float) -> None:
        seen.append(done)
        now[0] += 100
        shown.moved(0, done, total, loss)

    with shown:
        shown.prepared()
        shown.started(0, "group", 300.0)
        left = len(group)
        for record in run_group(group, Place(tmp_path / "runs", None), report=report):
            assert record.status == "ok", record.message
            left -= 1
            timed = replace(
                record, cost=record.cost | {"train_s": 100 / record.environment["fused_cells"], "eval_s": 0}
            )
            shown.finished(0, "cell", timed, left)
            if left == 2:
                assert shown._worked == pytest.approx(200), "two of three cells"
            if left:
                shown.continued(0, "cell")
    assert seen == [2, 2], "two cells, then one"
    assert shown._worked == pytest.approx(300) and shown._spent["training"] == pytest.approx(200)


def test_a_fused_run_through_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.py").write_text(
        "import torch\n"
        "class Bad(torch.nn.Module):\n"
        "    version = 1\n"
        "    def forward(self, logits, target):\n"
        "        raise ValueError('a mistake')\n"
    )
    text = SUITE.replace("[dice, ce, focal]", "[dice, 'bad.py:Bad', focal]").replace("seeds: 2", "seeds: 1")
    (tmp_path / "toy.yaml").write_text(text.replace(", nnunet: {width: 2}", ""))
    monkeypatch.chdir(tmp_path)
    suite = load_suite(tmp_path / "toy.yaml")
    found = {r.cell["loss"]["label"]: r for r in run(suite, device="cpu", workers=1, engine="fused")}
    assert {k: r.status for k, r in found.items()} == {"dice": "ok", "Bad": "error", "focal": "ok"}
    assert "a mistake" in found["Bad"].message and found["dice"].environment["fused_cells"] == 2
    with pytest.raises(BenchError, match=r"2 of the cells of .* trained with --engine fused"):
        run(suite, device="cpu", workers=1)
    assert sum(e.todo for e in plan(suite)) == 1
