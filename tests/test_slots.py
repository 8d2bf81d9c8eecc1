"""Where cells run on one machine: devices, processes on each, as many as memory allows; and what a process leaves."""

from __future__ import annotations

import errno
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from harness import cell_log, launch, processes, runner
from harness.cell import Cell, Place
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.launch import devices_of, overlaps, run_entries, slots_of, with_more
from harness.plan import Entry
from harness.records import RunRecord, read_record
from harness.runner import run_cells
from harness.suite import load_suite
from tests.conftest import importable

SUITE = """\
suite: slots
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 2, depth: 2}]
losses: [dice]
seeds: 4
train: {epochs: 1, steps: 1, batch: 2, optimizer: {adamw: {lr: 1e-2}}}
quick: {cases: 1, epochs: 1, steps: 1}
"""

CELLS = r'''"""Cells that do nothing, for the processes of the pool."""

import os
import signal
import time

from harness.records import RunRecord


def where(cell, place, *_):
    """A cell that says where it ran."""
    told = {"device": place.device, "beside": place.beside, "process": os.getpid()}
    record = RunRecord(cell.train_id, cell.eval_id, "ok", "", cell.described(), environment=told)
    time.sleep(0.5)  # so that no process takes the cell of another
    return record


def killed(cell, place, *_):
    """The first cell dies as the system kills processes, and its counter says so; the second dies otherwise."""
    if cell.seed == 0:
        (place.out / "vmstat").write_text("oom_kill 8\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def stores(cell, place, *_):
    """A cell that writes its record."""
    record = RunRecord(cell.train_id, cell.eval_id, "ok", "", cell.described())
    cell.eval_folder(place.out).mkdir(parents=True)
    record.write(cell.eval_folder(place.out) / "record.json")
    return record
'''


@pytest.fixture
def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The functions above, where the processes of a pool can import them."""
    return importable(CELLS, "cells_of_slots", tmp_path, monkeypatch)


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    (tmp_path / "slots.yaml").write_text(SUITE)
    return list(load_suite(tmp_path / "slots.yaml", quick=True).cells)


def _gpus(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    monkeypatch.setattr(launch.Path, "exists", lambda self: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])


def test_auto_is_every_gpu_of_the_kind_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, ["A", "A", "old", "A"])
    assert devices_of("auto") == ["cuda:0", "cuda:1", "cuda:3"]
    assert devices_of("cuda") == ["cuda:0"] and devices_of("cuda:2, cuda:0") == ["cuda:2", "cuda:0"]
    for asked, words in [
        ("cuda:4", "torch sees 4 CUDA devices here"),
        ("cuda:1,cuda:01", "cuda:1 stands twice; --per-device 2"),
        ("cuda:0,cpu", "name one or the other"),
        ("gpu", "expected auto, cpu, cuda, cuda:N or several"),
        ("cuda:x", "torch sees 4"),
    ]:
        with pytest.raises(BenchError, match=words):
            devices_of(asked)
    _gpus(monkeypatch, [])
    assert devices_of("auto") == ["cpu"]


def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, [])
    monkeypatch.setattr("harness.runner.run_cells", lambda *_, **__: [])
    entries, place = [Entry(cell, "missing") for cell in cells], Place(tmp_path, None)
    for cuda, visible, asked, words in [
        (None, "0", "auto", "is built without CUDA"),
        ("12.8", "0", "auto", "an old driver?"),
        (None, "", "auto", ""),
        (None, "0", "cpu", ""),
    ]:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        said = io.StringIO()
        run_entries(entries, place, reports=tmp_path, device=asked, workers=1, console=Console(file=said, width=200))
        assert words in said.getvalue() and bool(words) == ("though the driver of a GPU is here" in said.getvalue())


def test_processes_are_dealt_to_the_devices(cells: list[Cell]) -> None:
    two, known, jobs = ["cuda:0", "cuda:1"], Estimates([]), [[cell] for cell in cells]
    assert slots_of(two, jobs, known)[0] == two
    slots, said = slots_of(two, jobs, known, per_device=2)
    assert slots == ["cuda:0", "cuda:1"] * 2 and said == "4 workers: 2 on cuda:0, 2 on cuda:1"
    assert slots_of(two, jobs, known, workers=3)[0] == ["cuda:0", "cuda:1", "cuda:0"]
    assert slots_of(two, jobs[:1], known, per_device=4)[0] == ["cuda:0"]  # no more processes than cells
    assert slots_of(["cpu"], jobs, known, workers=3) == (["cpu"] * 3, "")
    for given, words in [
        ({"devices": two, "workers": 2, "per_device": 2}, "leave out one of the two"),
        ({"devices": ["cpu"], "per_device": 2}, "on a CPU --workers says"),
        ({"devices": two, "per_device": 0}, "expected at least 1"),
    ]:
        with pytest.raises(BenchError, match=words):
            slots_of(jobs=jobs, estimates=known, **given)


def test_a_device_has_one_process_more_than_train_on_it() -> None:
    one, two = ["cuda:0"] * 2, ["cuda:0", "cuda:1"]
    assert with_more(one, 9) == (["cuda:0"] * 3, "3 workers: 2 train on cuda:0, 1 more evaluates")
    assert with_more(two, 9)[0] == two * 2
    assert with_more(two, 9)[1] == "4 workers: 1 trains on cuda:0, 1 trains on cuda:1, 2 more evaluate"
    assert with_more(two, 3)[0] == ["cuda:0", "cuda:1", "cuda:0"]  # no more processes than cells
    assert overlaps(None, two, None) and not overlaps(None, ["cpu"], 2)
    assert not overlaps(False, two, None) and overlaps(True, ["cpu"], 2)
    with pytest.raises(BenchError, match="--overlap: on a CPU it needs --workers N"):
        overlaps(True, ["cpu"], None)


def test_where_no_locks_can_be_had_cells_do_not_overlap(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("harness.turns.fcntl.flock", refuses)
    monkeypatch.setattr("harness.launch.devices_of", lambda asked: ["cuda:0"])
    monkeypatch.setattr("harness.preparing.check_data", lambda *_: None)
    seen: list[Any] = []
    monkeypatch.setattr("harness.runner.run_cells", lambda *args, **kwargs: seen.append((args[2], kwargs["at_once"])))
    entries = [Entry(c, "missing") for c in cells]
    place, console = Place(tmp_path / "runs", None), Console(file=io.StringIO(), width=200)
    run_entries(entries, place, reports=tmp_path, console=console)
    assert seen == [(["cuda:0"], None)] and "takes no locks (No locks available)" in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(BenchError, match="--overlap: the folder for temporary files takes no locks"):
        run_entries(entries, place, reports=tmp_path, console=console, overlap=True)


def test_overlap_is_a_flag_of_this_machine(cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(cell, "missing") for cell in cells]
    place, given = Place(tmp_path, None), {"reports": tmp_path / "r", "console": Console(quiet=True)}
    monkeypatch.setattr(launch, "_elsewhere", lambda *_: pytest.fail)
    for overlap, words in [(True, "--overlap: is for this machine"), (False, "--no-overlap: is for this machine")]:
        with pytest.raises(BenchError, match=words):
            run_entries(entries, place, on="slurm", overlap=overlap, **given)
    monkeypatch.undo()
    seen: list[Any] = []
    monkeypatch.setattr("harness.runner.run_cells", lambda *args, **more: seen.append((args[2], more["at_once"])) or [])
    monkeypatch.setattr(launch, "devices_of", lambda asked: asked.split(","))
    for device, more in [
        ("cuda:0,cuda:1", {}),
        ("cuda:0", {"per_device": 2}),
        ("cuda:0", {"per_device": 4}),
        ("cuda:0", {"overlap": False}),
        ("cpu", {"workers": 2}),
        ("cpu", {"workers": 2, "overlap": True}),
    ]:
        run_entries(entries, place, device=device, **given, **more)
    assert seen == [
        (["cuda:0", "cuda:1"] * 2, {"cuda:0": 1, "cuda:1": 1}),
        (["cuda:0"] * 3, {"cuda:0": 2}),
        (["cuda:0"] * 4, None),  # as many processes as cells: each trains at once
        (["cuda:0"], None),
        (["cpu"] * 2, None),
        (["cpu"] * 3, {"cpu": 2}),
    ]


def test_on_a_cpu_memory_bounds_the_processes(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [[cell] for cell in cells]
    monkeypatch.setattr(launch, "cores", lambda: 16)
    monkeypatch.setattr(launch, "free_memory", lambda: 24 * 2**30)
    cost = {"train_s": 1.0, "eval_s": 1.0, "steps": 1.0, "peak_rss_mb": 9.0 * 1024}
    record = RunRecord("", "", "ok", "", cells[0].described(), cost=cost, environment={"device": "cpu"})
    slots, said = slots_of(["cpu"], jobs, Estimates([record]))
    assert slots == ["cpu"] * 2
    assert said == "2 workers: 16 cores, 24.0 GB free, about 9.0 GB a cell (in finished ones)"
    slots, said = slots_of(["cpu"], [cells[:2], cells[2:]], Estimates([record]))
    assert said == "1 worker: 16 cores, 24.0 GB free, about 18.0 GB a group of 2 cells (in finished ones)"
    assert slots_of(["cpu"], [cells], Estimates([record]), workers=4)[0] == ["cpu"]  # one group is one process
    fused = replace(record, environment={"device": "cpu", "engine": "fused", "fused_cells": 3})
    assert Estimates([fused]).known == 0  # its memory is that of three
    slots, said = slots_of(["cpu"], jobs, Estimates([]))
    assert slots == ["cpu"] * 4 and said.endswith("(guessed from its size)")  # as many as cells
    monkeypatch.setattr(launch, "free_memory", lambda: 0)
    assert slots_of(["cpu"], jobs, Estimates([]))[0] == ["cpu"]  # one, whatever there is


def test_free_memory_is_within_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GROUP", tmp_path)
    assert 0 < processes.free_memory() < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    assert processes.free_memory() > 5000
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert processes.free_memory() == 5000


def test_every_process_has_its_device(cells: list[Cell], acts: Any, tmp_path: Path) -> None:
    """No GPU is needed: `meta` is a device without memory."""
    entries = [Entry(cell, "missing") for cell in cells]
    records = run_cells(entries, Place(tmp_path, None), ["cpu", "meta", "cpu"], Console(quiet=True), run=acts.where)
    told = {r.environment["process"]: (r.environment["device"], r.environment["beside"]) for r in records}
    assert len(records) == 4 and sorted(told.values()) == [("cpu", 2), ("cpu", 2), ("meta", 1)]


def test_a_device_that_no_process_can_have_is_no_fault_of_a_case(cells: list[Cell], acts: Any, tmp_path: Path) -> None:
    """A GPU that is not there stands for one without room for a process more."""
    entries = [Entry(cell, "missing") for cell in cells]
    with pytest.raises(
        BenchError,
        match=r"cannot start on cuda:99 \(\w+: .+\); where memory is short, try fewer processes \(--no-overlap",
    ):
        run_cells(entries, Place(tmp_path, None), ["cuda:99"], Console(quiet=True), run=acts.stores)
    assert not [*tmp_path.glob("*/*/record.json")]


def test_a_process_that_cannot_replace_another_costs_its_cell_and_the_second_ends_the_run(tmp_path: Path) -> None:
    pool = runner.Pool(Place(tmp_path, None), ["cuda:0"])

    def says(*messages: tuple[str, Any]) -> list[Any]:
        ours, theirs = runner.mp.Pipe()
        pool.slots[0] = runner.Worker(SimpleNamespace(join=lambda seconds: None), ours)
        for message in messages:
            theirs.send(message)
        return [found for _ in messages for found in runner._messages(pool, 0.0)]

    assert says(("ready", None), ("started", None)) == [(0, ("started", None))] and pool.slots[0].ready
    assert says(("unfit", "no room")) == [(0, None)] and pool.slots[0].unfit == "no room"
    with pytest.raises(BenchError, match=r"cannot start on cuda:0 \(no room\)"):
        says(("unfit", "no room"))


def test_a_process_more_counts_for_memory_and_for_what_helps(tmp_path: Path) -> None:
    pool = runner.Pool(Place(tmp_path, None), ["cuda:0", "cuda:1", "cuda:0"], at_once={"cuda:0": 1})
    first, second = pool.seat(2), pool.seat(1)
    assert first.beside == 2 and first.turns is not None and (first.turns.count, first.turns.device) == (1, "cuda:0")
    assert second.beside == 1 and second.turns is None and pool.training == 2
    assert "2 cells share it, so fewer at once (--no-overlap)" in cell_log._fewer(first)
    several = replace(first, beside=3, turns=replace(first.turns, count=2))
    assert "3 cells share it, so fewer at once (--per-device or --no-overlap)" in cell_log._fewer(several)
    folder = first.turns.folder
    with first.turns.taken(lambda: False):
        assert len([*folder.iterdir()]) == 1
    pool.end(0.0)
    assert not folder.exists()


def test_a_process_that_the_system_killed_for_memory_is_out_of_memory(
    cells: list[Cell], acts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GROUP", tmp_path / "none")
    monkeypatch.setattr(processes, "VMSTAT", tmp_path / "vmstat")
    (tmp_path / "vmstat").write_text("pgfault 3\noom_kill 7\n")
    out = Console(file=(tmp_path / "out.txt").open("w"), width=400)
    entries = [Entry(cell, "missing") for cell in cells[:2]]
    cost = {"train_s": 1.0, "eval_s": 1.0, "steps": 1.0, "peak_rss_mb": 3072.0}
    known = Estimates([RunRecord("", "", "ok", "", cells[0].described(), cost=cost)])
    first, second = run_cells(entries, Place(tmp_path, None), ["cpu"], out, estimates=known, run=acts.killed)
    assert (first.status, second.status) == ("oom", "error")
    assert "signal 9, and the system has just ended a process for lack of memory" in first.message
    assert "`train: {accumulate: 2}`" in first.message and "accumulate" not in second.message
    out.file.close()
    text, log = (tmp_path / "out.txt").read_text(), tmp_path / first.train_id / "log.txt"
    assert f"log: {log}" in text and "oom: its worker process died" in log.read_text()
    assert text.count("memory: other cells of unet on phantom needed up to 3.0 GB") == 1
    assert "2 cells in" in text and "1 oom, 1 error" in text


def test_logs_say_device_steps_resumption_and_end(toy) -> None:
    assert toy.bench("run", toy.suite(), "--only", "loss=dice").returncode == 0
    folder = toy.records()["dice"]["folder"].parent
    lines = [line[20:] for line in (folder / "log.txt").read_text().splitlines()]
    assert lines[0] == "dice / unet / toy / seed 0 on cpu: 8 steps"
    assert lines[1].startswith("trained, 8 of 8 steps in ") and lines[2].startswith("ok, evaluated in ")
    # what is known now is in the plan
    plan = json.loads(toy.bench("plan", toy.folder / "toy.yaml.suite", "--json").stdout)
    assert {row["loss"]["label"]: row["seconds"] is None for row in plan} == {"dice": True, "ce": False}
    text = " ".join(toy.bench("plan", toy.folder / "toy.yaml.suite").stdout.split())
    assert "1 cells to run, about" in text and "of one process (from 1 finished)" in text


def test_records_of_other_suites_are_as_they_were(cells: list[Cell], acts: Any, tmp_path: Path) -> None:
    """The parent puts one copy of what cells share into the records it returns, and only where it is the same."""
    entries = [Entry(cell, "missing") for cell in cells[:2]]
    records = run_cells(entries, Place(tmp_path, None), ["cpu"], Console(quiet=True), run=acts.stores)
    assert records[0].cell["data"] is records[1].cell["data"] is cells[0].data
    for record, cell in zip(records, cells, strict=False):
        assert read_record(cell.eval_folder(tmp_path) / "record.json") == record
