"""Disks that fill up, refuse and lie: one sentence, no wrong record, and the same command ends with the same bits."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import records, worker
from harness.cell import Cell, Place
from harness.claims import holder_of, result_in
from harness.plan import Entry, make_plan
from harness.records import RunRecord, read_record
from harness.rows import frames
from harness.store import Home
from harness.suite import load_suite
from harness.worker import Cases, run_cell

SMALL = "epochs: 2, steps: 1, batch: 2"


@dataclass
class Bench:
    """One small cell that is run in this process, and what came of it undisturbed."""

    cell: Cell
    place: Place
    cases: Cases
    expected: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.cell.folder(self.place.out)

    @property
    def evaluation(self) -> Path:
        return self.cell.eval_folder(self.place.out)

    def run(self, **more: Any) -> RunRecord:
        return run_cell(self.cell, self.place, self.cases, **more)

    def results(self) -> dict[str, Any]:
        record = read_record(self.evaluation / "record.json")
        trained = read_record(self.folder / "train.json")
        for name, path in (("cases.csv", self.evaluation), ("curve.csv", self.folder)):
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == record.files[name]
        assert trained.weights == record.weights
        return {"status": record.status, "weights": record.weights, "files": record.files, "of": record.fingerprints}

    def check(self) -> None:
        """The same command now ends well, with the bits of a run that nothing disturbed."""
        record = self.run()
        assert record.status == "ok", record.message
        assert self.results() == self.expected
        assert [p.name for p in self.folder.iterdir() if p.name.startswith(".")] == []
        assert holder_of(self.folder) is None

    def consistent(self) -> None:
        """Whatever happened: a result is the right one, or there is none."""
        if result_in(self.evaluation) is not None:
            assert self.results() == self.expected

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    from tests.conftest import Toy

    toy = Toy(tmp_path_factory.mktemp("disk"))
    toy.data()
    path = toy.suite("epochs: 2, steps: 4, batch: 4", SMALL)
    path.write_text(path.read_text().replace("[dice, hd95, asd]", "[dice]").replace("depth: 3", "depth: 2"))
    cell = load_suite(path).cells[0]
    place = Place(toy.folder / "runs", toy.folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "certificates_of", lambda *_: {})  # seconds, and another test's matter
        bench = Bench(cell, place, Cases(place), {})
        assert bench.run().status == "ok"
        bench.expected = bench.results()
        yield bench


@pytest.fixture
def bench(made: Bench) -> Iterator[Bench]:
    """With nothing of the cell there, but its prepared cases."""
    shutil.rmtree(made.folder, ignore_errors=True)
    yield made


@pytest.fixture
def stopped(bench: Bench) -> Bench:
    """Stopped after its first step."""
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 1

    assert bench.run(stop=stop).status == "interrupted"
    assert (bench.folder / "checkpoint.pt").is_file()
    return bench


@pytest.fixture
def done(bench: Bench) -> Bench:
    assert bench.run().status == "ok"
    return bench


# what reaches a disk: names that are made, bytes that are written, and that they are there


class _Disk:
    """Counts what a process asks of the disk below a folder, and refuses from a number on."""

    def __init__(self) -> None:
        self.below: str | None = None
        self.count = 0
        self.first, self.last, self.number = 0, 0, errno.ENOSPC

    def asked(self, path: Any) -> None:
        if self.below is None or not os.fspath(path).startswith(self.below):
            return
        self.count += 1
        if self.first <= self.count <= self.last:
            raise OSError(self.number, os.strerror(self.number), os.fspath(path))

    @contextmanager
    def refusing(self, below: Path, first: int, last: int, number: int = errno.ENOSPC) -> Iterator[None]:
        self.below, self.count, self.first, self.last, self.number = str(below), 0, first, last, number
        try:
            yield
        finally:
            self.below = None


_disk = _Disk()


class _Stream:
    def __init__(self, stream: Any, path: str) -> None:
        self._stream, self._path = stream, path

    def write(self, data: Any) -> int:
        _disk.asked(self._path)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, made: Bench) -> _Disk:
    import tempfile

    def counting(module: Any, name: str, at: int = 0) -> None:
        real = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not isinstance(args[at], int):
                _disk.asked(args[at])
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("mkdir", "rename", "replace"):
        counting(os, name, 0 if name == "mkdir" else 1)
    real_temp, real_open, real_stream, real_sync = tempfile.mkstemp, Path.open, os.fdopen, os.fsync
    names: dict[int, str] = {}

    def mkstemp(*args: Any, **kwargs: Any) -> Any:
        _disk.asked(kwargs["dir"])
        handle, name = real_temp(*args, **kwargs)
        names[handle] = name
        return handle, name

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not {*mode} & {*"wax+"}:
            return real_open(path, mode, *args, **kwargs)
        _disk.asked(path)
        stream = real_open(path, mode, *args, **kwargs)
        return _Stream(stream, str(path)) if _disk.below else stream

    def fsync(handle: int) -> None:
        if handle in names:
            _disk.asked(names[handle])
        real_sync(handle)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(records.os, "fdopen", lambda h, mode: _Stream(real_stream(h, mode), names.get(h, "")))
    monkeypatch.setattr(os, "fsync", fsync)
    return _disk


def _writes(bench: Bench, disk: _Disk) -> int:
    with disk.refusing(bench.place.out, 0, 0):
        assert bench.run().status == "ok"
    shutil.rmtree(bench.folder)
    return disk.count


def _refuse(bench: Bench, disk: _Disk, first: int, last: int, number: int = errno.ENOSPC) -> RunRecord:
    with disk.refusing(bench.place.out, first, last, number):
        record = bench.run()
    bench.consistent()
    return record


def _every(bench: Bench, disk: _Disk, step: int) -> None:
    total = _writes(bench, disk)
    assert total > 100
    for n in [*range(1, 40), *range(40, total - 60, step), *range(max(40, total - 60), total + 1, max(1, step // 6))]:
        for last in (total * 10, n):  # full from then on; or somebody made room at once
            if step == 1 or (last == n) == n % 2:
                record = _refuse(bench, disk, n, last)
                assert record.status == "ok" or "no space left for" in record.message, (n, record)
                bench.check()
                shutil.rmtree(bench.folder)


def test_a_disk_that_is_full_at_any_write_loses_and_spoils_nothing(bench: Bench, disk: _Disk, monkeypatch) -> None:
    monkeypatch.setattr("harness.train.CHECKPOINT_SECONDS", -1.0)  # before every step
    _every(bench, disk, 60)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disk_that_is_full_at_every_single_write(bench: Bench, disk: _Disk, monkeypatch) -> None:
    monkeypatch.setattr("harness.train.CHECKPOINT_SECONDS", -1.0)
    _every(bench, disk, 1)


def test_a_folder_that_takes_no_files(bench: Bench, disk: _Disk) -> None:
    record = _refuse(bench, disk, 1, 10**9, errno.EROFS)
    assert record.status == "error" and record.message.startswith("Read-only file system: ")
    bench.check()


# damage


class _Takes(worker.torch.nn.Module):
    def load_state_dict(self, state: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]
        pass


def _cut(data: bytes, at: int) -> bytes:
    return data[:at]


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flip])
@pytest.mark.parametrize("name", ["train.json", "curve.csv", "weights.pt"])
def test_a_damaged_training_is_not_used_and_made_again(done: Bench, name: str, damage: Callable[..., bytes]) -> None:
    path = done.folder / name
    whole = path.read_bytes()
    for at in [0, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(damage(whole, at))
        shutil.rmtree(done.evaluation)
        done.check()
        assert worker._trained(done.folder, _Takes()) is not None
    if damage is _cut:
        assert f"{path}: " in done.log and "The training starts anew." in done.log


def test_no_byte_of_a_training_can_be_lost_unnoticed(done: Bench) -> None:
    model = _Takes()
    assert worker._trained(done.folder, model) is not None
    for name, step in (("train.json", 1), ("curve.csv", 1), ("weights.pt", 61)):
        path = done.folder / name
        whole = path.read_bytes()
        for at in range(0, len(whole), step):
            path.write_bytes(whole[:at])
            assert worker._trained(done.folder, model) is None, (name, at)
        path.unlink()
        assert worker._trained(done.folder, model) is None
        path.write_bytes(whole)
    path = done.folder / "weights.pt"
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):  # what is flipped is seen, or was no part of a weight
        path.write_bytes(_flip(whole, at))
        found = worker._trained(done.folder, model)
        assert found is None or found.weights == done.expected["weights"]


@pytest.mark.parametrize("damage", [_cut, _flip])
def test_a_damaged_checkpoint_is_not_continued(stopped: Bench, damage: Callable[..., bytes]) -> None:
    path = stopped.folder / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes(), 5000))
    stopped.check()
    assert "checkpoint.pt: damaged checkpoint" in stopped.log and "The training starts anew." in stopped.log
    assert not path.exists()


def test_a_cut_record_is_made_again_from_the_weights(done: Bench) -> None:
    path = done.evaluation / "record.json"
    whole = path.read_bytes()
    for at in range(len(whole) - 1):
        path.write_bytes(whole[:at])
        assert result_in(done.evaluation) is None, at
    trained = (done.folder / "weights.pt").stat().st_mtime_ns
    done.check()
    assert (done.folder / "weights.pt").stat().st_mtime_ns == trained


@pytest.mark.parametrize("field", ["train_id", "eval_id"])
def test_a_record_of_another_cell_counts_for_the_plan_as_little_as_for_a_run(done: Bench, field: str) -> None:
    """Such as one in a folder that was copied by hand."""
    suite = load_suite(Path(done.cell.manifest_path).parent / "toy.yaml.suite")
    path = done.evaluation / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "0" * 16}))
    os.utime(path, ns=(0, 0))  # long ago, so that the second look is at the index

    def entry() -> Entry:
        return next(e for e in make_plan(suite, done.place.out, done.place.out) if e.cell == done.cell)

    for found in (entry(), entry()):
        assert (found.state, found.problem) == ("missing", f"{path}: the record is of another cell")
    assert worker.finished(done.cell, done.place.out) is None
    done.check()
    assert entry().state == "ok"


def test_rows_that_are_not_those_of_the_record_are_left_out_with_a_sentence(done: Bench) -> None:
    suite = load_suite(Path(done.cell.manifest_path).parent / "toy.yaml.suite")

    def entry() -> Entry:
        return next(e for e in make_plan(suite, done.place.out, done.place.out) if e.cell == done.cell)

    for path in (done.evaluation / "cases.csv", done.folder / "curve.csv"):
        whole = path.read_bytes()
        lines = [i + 1 for i, byte in enumerate(whole) if byte == 10]
        home = Home(done.place.out, "toy")
        for at in [0, *lines[:-1], lines[-1] - 1, len(whole) // 2]:
            path.write_bytes(whole[:at])
            (note,) = frames([entry()], home).notes
            assert note.startswith(f"LEFT OUT: {path} is damaged (") and "SHA-256" in note, note
        path.unlink()
        assert frames([entry()], home).notes == [
            f"LEFT OUT: {path} is not there; remove the record to run the cell again."
        ]
        (done.evaluation / "record.json").unlink()  # as the sentence says
        assert entry().todo
        done.check()
        assert frames([entry()], home).notes == []


# refusals and clocks


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["record.json", "train.json", "curve.csv", "weights.pt", "checkpoint.pt"])
def test_what_cannot_be_read_now_is_neither_damaged_nor_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    if name == "checkpoint.pt":
        asked = [0]
        assert bench.run(stop=lambda: asked.append(0) or len(asked) > 2).status == "interrupted"
        path = bench.folder / name
    else:
        assert bench.run().status == "ok"
        path = bench.evaluation / name if name == "record.json" else bench.folder / name
        if name != "record.json":
            shutil.rmtree(bench.evaluation)
    before, real = path.read_bytes(), Path.read_bytes

    def refused(asked: Path) -> bytes:
        if asked == path:
            raise OSError(number, os.strerror(number), str(asked))
        return real(asked)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        record = bench.run()
    assert (record.status, record.message) == ("error", f"{os.strerror(number)}: {path}")
    assert path.read_bytes() == before
    bench.check()


@pytest.mark.parametrize("years", [-1, 1])
def test_clocks_that_jump_change_nothing(stopped: Bench, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    real, seconds = time.time, years * 365.25 * 86400
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + seconds) * 1e9))
    for path in stopped.folder.rglob("*"):
        os.utime(path, (real() + seconds, real() + seconds))
    stopped.check()


def test_a_file_system_without_locks_and_links(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for module, name in ((fcntl, "flock"), (fcntl, "lockf"), (os, "link"), (os, "symlink")):
        monkeypatch.setattr(module, name, refused)
    bench.check()


# a disk of its own


_SMALL_DISK = """
import json, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
from harness import worker
from harness.cell import Place
from harness.claims import result_in
from harness.suite import load_suite

worker.certificates_of = lambda *_: {}
suite, data, full, sizes = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
cell, out = load_suite(suite).cells[0], full / "runs"
seen = []
for size in sizes:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(full)], check=True)
    place = Place(out, data)
    first = worker.run_cell(cell, place)
    subprocess.run(["mount", "-o", "remount,size=64m", str(full)], check=True)
    second = worker.run_cell(cell, place)
    subprocess.run(["mount", "-o", "remount,ro", str(full)], check=True)
    third = worker.run_cell(replace(cell, seed=1), place)
    table = (cell.eval_folder(out) / "cases.csv").read_text()
    seen.append([first.status, first.message, second.status, second.message, second.weights, table, third.message])
    subprocess.run(["umount", str(full)], check=True)
print(json.dumps(seen))
"""


def _may_mount() -> bool:
    try:
        return (
            subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
            == 0
        )
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux" or not _may_mount(), reason="needs a file system of its own")
def test_a_disk_that_really_is_full_or_read_only(done: Bench, tmp_path: Path) -> None:
    suite = Path(done.cell.manifest_path).parent / "toy.yaml.suite"
    script, full = tmp_path / "small.py", tmp_path / "full"
    script.write_text(_SMALL_DISK)
    full.mkdir()
    sizes = [4, 12, 16, 24, 40, 100, 200, 300, 310, 320, 330, 340, 350, 360, 380, 400, 450, 500, 600, 1000]
    arguments = [str(suite), str(done.place.root), str(full), json.dumps(sizes)]
    run = subprocess.run(
        ["unshare", "-rm", sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr
    table = (done.evaluation / "cases.csv").read_text()
    seen = json.loads(run.stdout)
    assert {"error", "ok"} == {one[0] for one in seen}
    for size, (status, message, again, second, weights, rows, third) in zip(sizes, seen, strict=True):
        assert status == "ok" or "no space left" in message or "the mask cannot be written" in message, (size, message)
        assert (again, weights, rows) == ("ok", done.expected["weights"], table), (size, second)
        assert third.startswith("Read-only file system"), third
