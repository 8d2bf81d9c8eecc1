"""Kill -9 at random, processes that sleep and come back, several commands on one folder: each result once, the same bits."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.claims import holder_of

LOSSES, SEEDS = ("dice", "ce", "jaccard"), 4
PATIENCE = 240.0  # seconds without any change, after which something hangs


def _suite(toy: Any, losses: tuple[str, ...] = LOSSES, seeds: int = SEEDS, epochs: int = 4, steps: int = 12) -> Path:
    path = toy.suite("losses: [dice, ce]", f"losses: [{', '.join(losses)}]")
    text = path.read_text().replace("seeds: 1", f"seeds: {seeds}")
    path.write_text(text.replace("epochs: 2, steps: 4", f"epochs: {epochs}, steps: {steps}"))
    return path


def _start(toy: Any, suite: Path, out: Path, workers: int, **more: str) -> subprocess.Popen[bytes]:
    command = [*toy.command("run", suite, "--workers", str(workers)), "--out", str(out)]
    with (out.parent / f"{out.name}.txt").open("ab") as said:
        environment = os.environ | {"BENCH_CHECKPOINT_SECONDS": "0.05"} | more
        return subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=said, stderr=said, cwd=toy.folder
        )


def _results(out: Path) -> dict[str, tuple[Any, ...]]:
    """What a cell must be the same in, by cell: all but times."""
    found = {}
    for path in sorted(out.glob("*/*/record.json")):
        record = json.loads(path.read_text())
        with (path.parents[1] / "curve.csv").open() as stream:
            curve = [{k: v for k, v in row.items() if not k.endswith(("_s", "_ms"))} for row in csv.DictReader(stream)]
        cell = f"{record['cell']['loss']['label']}#{record['cell']['seed']}"
        assert cell not in found, f"{cell} is recorded twice"
        rows = (path.parent / "cases.csv").read_bytes()
        found[cell] = record["status"], record["weights"], record["fingerprints"], rows, curve
    return found


def _changes(out: Path) -> tuple[int, int]:
    paths = [p for p in out.rglob("*") if "cache" not in p.parts]
    return len(paths), max((p.stat().st_mtime_ns for p in paths if p.exists()), default=0)


@dataclass
class Killer:
    """Runs a suite again and again, killing, until the command says that all is done.

    Attributes:
        seed: Of the schedule: what is killed, and how long after a cell began.
        parents: Commands at once on the folder.
        kills: How many were killed, by kind.
        commands: How many were started.
    """

    toy: Any
    suite: Path
    seed: int
    parents: int = 1
    workers: int = 2
    kills: Counter[str] = field(default_factory=Counter)
    commands: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._until = time.monotonic() + float(os.environ.get("BENCH_KILLS_SECONDS", "inf"))
        self._rounds = 0

    def enough(self, most: int) -> bool:
        return self.kills.total() >= most or time.monotonic() > self._until

    def round(self, most: int, cache: Path) -> Path:
        """One folder of results from nothing to the end, with at most so many kills in all; returns the folder."""
        self._rounds += 1
        out = self.toy.folder / f"killed-{self._rounds}"
        shutil.copytree(cache, out / "cache")  # certificates and prepared cases: they are not what is tested
        running: list[subprocess.Popen[bytes]] = []
        try:
            while True:
                while len(running) < self.parents:
                    running.append(_start(self.toy, self.suite, out, self.workers))
                    self.commands += 1
                if not self.enough(most):
                    self._strike(running, out)
                else:
                    for process in running:
                        process.wait(timeout=PATIENCE)
                codes = [p.poll() for p in running]
                if 0 in codes:
                    return out
                assert not {*codes} - {None, 1, -signal.SIGKILL}, (out.parent / f"{out.name}.txt").read_text()
                running = [p for p in running if p.poll() is None]
        finally:
            _end(running)

    def _strike(self, running: list[subprocess.Popen[bytes]], out: Path) -> None:
        """Wait until a cell is where the schedule wants it, then a moment, and kill something."""
        phase = self._random.choices(["start", "claimed", "training", "evaluating"], [1, 4, 10, 5])[0]
        until = time.monotonic() + (0 if phase == "start" else PATIENCE)
        found: list[int] = []
        while not found and time.monotonic() < until and all(p.poll() is None for p in running):
            found = _holders(out, phase)
            time.sleep(0.005)
        time.sleep(self._random.uniform(0, 2 if phase == "start" else 0.2))
        kind = self._random.choices(["worker", "parent", "group"], [8, 1, 1])[0]
        alive = [p for p in running if p.poll() is None]
        if not alive:
            return
        with suppress(ProcessLookupError):
            if kind == "worker":
                if not (found := [pid for pid in found if _lives(pid)]):
                    return
                os.kill(self._random.choice(found), signal.SIGKILL)
            else:
                victim = self._random.choice(alive)
                os.kill(victim.pid, signal.SIGKILL) if kind == "parent" else os.killpg(victim.pid, signal.SIGKILL)
                victim.wait()
            self.kills[f"{kind}, {phase}"] += 1


def _holders(out: Path, phase: str = "claimed") -> list[int]:
    """Processes that run a cell, and are so far with it."""
    found = []
    for claim in out.glob("*/claim"):
        holder = holder_of(claim.parent)
        with suppress(OSError, AttributeError, KeyError):
            pid, began = holder.about["pid"], claim.stat().st_mtime_ns  # type: ignore[union-attr]
            if phase == "training":  # a checkpoint of this process
                there = (claim.parent / "checkpoint.pt").stat().st_mtime_ns > began
            elif phase == "evaluating":
                there = any(p.is_dir() for p in claim.glob("*/*"))
            else:
                there = True
            if there and _lives(pid):
                found.append(pid)
    return sorted(found)


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _undisturbed(toy: Any, suite: Path) -> dict[str, tuple[Any, ...]]:
    done = toy.bench("run", suite, "--workers", "2", out="undisturbed")
    assert done.returncode == 0, done.stdout + done.stderr
    return _results(toy.folder / "undisturbed")


def _endure(toy: Any, kills: int, seed: int, parents: int = 1) -> Killer:
    suite = _suite(toy)
    expected = _undisturbed(toy, suite)
    assert len(expected) == len(LOSSES) * SEEDS and {r[0] for r in expected.values()} == {"ok"}
    killer = Killer(toy, suite, seed, parents)
    while not killer.enough(kills):
        out = killer.round(kills, toy.folder / "undisturbed/cache")
        assert _results(out) == expected
        assert not list(out.glob("*/checkpoint.pt")) and not _holders(out)
        (toy.folder / "so-far.json").write_text(json.dumps(_told(killer)))
        shutil.rmtree(out)
    return killer


def _told(killer: Killer) -> dict[str, Any]:
    return {
        "kills": killer.kills.total(),
        "of": dict(sorted(killer.kills.items())),
        "folders of results completed": killer._rounds,
        "commands started": killer.commands,
        "cells in each": len(LOSSES) * SEEDS,
        "commands at once": killer.parents,
        "seed": killer.seed,
    }


@pytest.mark.timeout(1200)
def test_twenty_kills_change_nothing(toy: Any) -> None:
    _endure(toy, kills=20, seed=1)


def _trainings(out: Path) -> Counter[int]:
    """How many cells were trained to their end how often."""
    logs = [path.read_text() for path in out.glob("*/log.txt")]
    return Counter(text.count(" trained, ") for text in logs)


@pytest.mark.parametrize("parents", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.timeout(1200)
def test_several_commands_on_one_folder_train_each_cell_once(toy: Any, parents: int) -> None:
    suite = _suite(toy, ("dice", "ce"), seeds=3, epochs=2, steps=6)
    expected = _undisturbed(toy, suite)
    out = toy.folder / "shared"
    shutil.copytree(toy.folder / "undisturbed/cache", out / "cache")
    running = [_start(toy, suite, out, workers=1) for _ in range(parents)]
    try:
        assert [p.wait(timeout=PATIENCE) for p in running] == [0] * parents, (toy.folder / "shared.txt").read_text()
    finally:
        _end(running)
    assert _results(out) == expected and _trainings(out) == {1: 6}


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(1200)
def test_a_holder_that_slept_beyond_its_time_discards_what_it_made(toy: Any) -> None:
    """Stopped in its training, taken over by a second command, continued: one record, and both commands end well."""
    suite = _suite(toy, ("dice",), seeds=1, epochs=4, steps=100)
    expected = _undisturbed(toy, suite)
    out = toy.folder / "slept"
    shutil.copytree(toy.folder / "undisturbed/cache", out / "cache")
    beats = {"BENCH_HEARTBEAT_SECONDS": "0.25", "BENCH_LEASE_SECONDS": "10"}
    running = [_start(toy, suite, out, 1, **beats)]
    try:
        _until(lambda: bool(_holders(out, "training")))
        os.killpg(running[0].pid, signal.SIGSTOP)
        (asleep,) = _holders(out)
        running.append(_start(toy, suite, out, 1, **beats))
        _until(lambda: _holders(out) not in ([], [asleep]))
        os.killpg(running[0].pid, signal.SIGCONT)
        assert [p.wait(timeout=PATIENCE) for p in running] == [0, 0], (toy.folder / "slept.txt").read_text()
    finally:
        _end(running)
    assert _results(out) == expected and _trainings(out) == {1: 1}
    log = next(out.glob("*/log.txt")).read_text()
    assert f"taken over from process {asleep} on " in log
    assert f"another process took this cell over from process {asleep}; what it made is discarded" in log
    assert "waiting for 1 cell that another process runs" in (toy.folder / "slept.txt").read_text()


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("parents", [1, 2])
def test_two_hundred_kills_change_nothing(toy: Any, parents: int) -> None:
    """`BENCH_KILLS` and `BENCH_KILLS_SECONDS` end it earlier; `BENCH_KILLS_REPORT` is a file for what was done."""
    kills = int(os.environ.get("BENCH_KILLS", "200")) // 2
    killer = _endure(toy, kills, seed=2 + parents, parents=parents)
    if report := os.environ.get("BENCH_KILLS_REPORT"):
        with Path(report).open("a") as stream:
            stream.write(json.dumps(_told(killer)) + "\n")


def test_reports_of_several_commands_at_once(toy: Any) -> None:
    suite = _suite(toy, ("dice", "ce"), seeds=1, epochs=1, steps=2)
    assert toy.bench("run", suite).returncode == 0
    shutil.rmtree(toy.folder / "reports/toy")
    running = [_start(toy, suite, toy.folder / "runs", 1) for _ in range(3)]
    assert [p.wait(timeout=PATIENCE) for p in running] == [0, 0, 0], (toy.folder / "runs.txt").read_text()
    assert (toy.folder / "reports/toy/index.html").is_file() and not (toy.folder / "reports/toy/claim").exists()
