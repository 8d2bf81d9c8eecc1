"""Leases: one holder, no clock of a host, no lock, no link; who lost one can publish nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import claims
from harness.claims import Lease, LostLease, held, holder_of, is_held, result_in, take
from harness.records import RunRecord, read_record

RECORD = RunRecord("t" * 16, "e", "ok", "", {"loss": {"name": "dice"}})
BEAT = 0.05
LEASE = 600.0  # nobody waits for its end: the time of a last heartbeat is moved


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", BEAT)
    monkeypatch.setattr(claims, "LEASE_SECONDS", LEASE)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Who looks is on another host than the holder."""
    yield _move(monkeypatch)


def _move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_where", lambda: "another host")


def _taken(folder: Path) -> Lease:
    lease = take(folder)
    assert lease is not None
    return lease


def _age(folder: Path, seconds: float) -> None:
    """Move the last heartbeat, as the file server sees it."""
    holder = holder_of(folder)
    assert holder is not None
    at = time.time_ns() - int(seconds * 1e9)
    os.utime(folder / "claim" / holder.token / "holder.json", ns=(at, at))


def _dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def _edit(folder: Path, **about: Any) -> None:
    holder = holder_of(folder)
    assert holder is not None
    path = folder / "claim" / holder.token / "holder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))


def test_one_has_it_until_it_is_given_back(tmp_path: Path) -> None:
    with _taken(tmp_path) as lease:
        assert take(tmp_path) is None and held(tmp_path)
        holder = holder_of(tmp_path)
        assert holder is not None and holder.token == lease.token
        assert holder.about["pid"] == os.getpid() and holder.about["kind"] == "process"
    assert not held(tmp_path) and list(tmp_path.iterdir()) == []
    with _taken(tmp_path) as again:
        assert again.token != lease.token and again.before is None


def test_what_runs_a_cell_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with _taken(tmp_path):
        assert str(holder_of(tmp_path)).startswith(f"slurm job 17 {os.getpid()} on ")


def test_of_many_that_ask_at_once_one_gets_it_at_a_time(tmp_path: Path) -> None:
    inside, most, turns = [0], [0], [0]
    guard, begin = threading.Lock(), threading.Barrier(8)

    def work() -> None:
        begin.wait()
        for _ in range(10):
            while (lease := take(tmp_path)) is None:
                time.sleep(0.001)
            with lease:
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with guard:
                    inside[0] -= 1
                    turns[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert (most, turns) == ([1], [80]) and list(tmp_path.iterdir()) == []


def test_a_heartbeat_is_a_sign_of_life(tmp_path: Path, elsewhere: None) -> None:
    with _taken(tmp_path):
        first = holder_of(tmp_path)
        until = time.monotonic() + 60
        while holder_of(tmp_path) == first and time.monotonic() < until:
            time.sleep(BEAT)
        assert holder_of(tmp_path) != first


def test_a_process_that_is_gone_is_replaced_at_once_on_its_host_and_not_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _taken(tmp_path)
    _edit(tmp_path, pid=_dead_process())
    with monkeypatch.context() as there:
        _move(there)
        assert take(tmp_path) is None and held(tmp_path)
    assert not held(tmp_path)
    with _taken(tmp_path) as new:
        assert new.before is not None and new.before.token == old.token


def test_a_process_with_the_number_of_one_that_is_gone_is_not_it(tmp_path: Path) -> None:
    _taken(tmp_path)
    assert held(tmp_path)
    _edit(tmp_path, started="1")
    assert not held(tmp_path) and take(tmp_path) is not None


def test_after_its_time_another_host_takes_over(tmp_path: Path, elsewhere: None) -> None:
    old = _taken(tmp_path)  # no heartbeat: it is not entered
    _age(tmp_path, 0.5 * LEASE)
    assert take(tmp_path) is None
    _age(tmp_path, 2 * LEASE)
    new = _taken(tmp_path)
    assert new.before is not None and new.before.token == old.token


@pytest.mark.parametrize("year", [-1, 1])
def test_a_holder_that_lives_is_left_alone_whatever_the_clocks_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """The clock of the host jumps, then that of the file server: the holder looks a year old, or of next year."""
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 1.0)  # as it says: who judges it watches it for 2 s
    seconds = year * 365.25 * 86400
    real, server = time.time, claims._now
    lease = _taken(tmp_path)
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", BEAT)  # as it is, so that a slow machine does not make it silent
    with lease:
        _move(monkeypatch)
        monkeypatch.setattr(time, "time", lambda: real() + seconds)
        assert held(tmp_path) and take(tmp_path) is None
        monkeypatch.setattr(claims, "_now", lambda folder: server(folder) + int(seconds * 1e9))
        assert not held(tmp_path)  # it looks silent ...
        assert take(tmp_path) is None  # ... and shows a sign of life while it is watched


def test_a_silent_holder_of_next_year_is_replaced(tmp_path: Path, elsewhere: None) -> None:
    _taken(tmp_path)
    _age(tmp_path, -365.25 * 86400)
    assert take(tmp_path) is not None


def _lose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lease:
    """Another host takes the lease over."""
    _age(folder, 3600)
    with monkeypatch.context() as there:
        _move(there)
        return _taken(folder)


def test_who_lost_the_lease_can_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _taken(tmp_path)
    (old.stage / "e").mkdir()
    (old.stage / "e/cases.csv").write_text("old")
    new = _lose(tmp_path, monkeypatch)
    new.write(tmp_path / "weights.pt", lambda stream: stream.write(b"new"))
    for attempt in (
        lambda: old.write(tmp_path / "weights.pt", lambda stream: stream.write(b"old")),
        lambda: old.remove(tmp_path / "weights.pt"),
        lambda: old.remove(tmp_path / "not there"),
        lambda: old.publish(RECORD, tmp_path / "e"),
    ):
        with pytest.raises(LostLease):
            attempt()
    old.__exit__()  # giving back what is another's takes nothing from it
    assert holder_of(tmp_path).token == new.token  # type: ignore[union-attr]
    assert (tmp_path / "weights.pt").read_bytes() == b"new" and not (tmp_path / "e").exists()


def test_a_write_that_was_under_way_when_the_lease_was_lost_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between a look at the lease and the rename does not exist: the rename is the look."""
    old = _taken(tmp_path)

    def slow(stream: Any) -> None:
        stream.write(b"old")
        _lose(tmp_path, monkeypatch).write(tmp_path / "train.json", lambda other: other.write(b"new"))

    with pytest.raises(LostLease):
        old.write(tmp_path / "train.json", slow)
    assert (tmp_path / "train.json").read_bytes() == b"new"


def test_a_heartbeat_notices_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _taken(tmp_path) as old:
        claims._remove(tmp_path, old.token)
        until = time.monotonic() + 60
        while not old.lost and time.monotonic() < until:
            time.sleep(BEAT)
        assert old.lost


def _publish(lease: Lease, record: RunRecord, rows: str | None = None) -> RunRecord:
    target = lease.folder / "e"
    (lease.stage / "e").mkdir(exist_ok=True)
    if rows is not None:
        (lease.stage / "e/cases.csv").write_text(rows)
    return lease.publish(record, target)


def test_a_result_stays_and_a_failure_makes_room(tmp_path: Path) -> None:
    (folder := tmp_path / RECORD.train_id).mkdir()
    failed = replace(RECORD, status="error", message="a mistake")
    with _taken(folder) as lease:
        assert _publish(lease, failed) == failed
    with _taken(folder) as lease:
        assert _publish(lease, RECORD, "first") == RECORD
        assert read_record(folder / "e/record.json") == RECORD
    other = replace(RECORD, weights="other")
    for late in (other, failed):
        with _taken(folder) as lease:
            assert _publish(lease, late, "second") == RECORD
        assert (folder / "e/cases.csv").read_text() == "first" and result_in(folder / "e") == RECORD
    assert sorted(p.name for p in folder.iterdir()) == ["e"]


def test_rows_without_a_record_make_room(tmp_path: Path) -> None:
    (tmp_path / "e/masks").mkdir(parents=True)
    (tmp_path / "e/cases.csv").write_text("half")
    (tmp_path / "e/record.json").write_text("{")
    with _taken(tmp_path) as lease:
        assert _publish(lease, RECORD) == RECORD
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["record.json"]


def test_no_lock_and_no_link_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    for module, name in ((fcntl, "flock"), (fcntl, "lockf"), (os, "link"), (os, "symlink")):
        monkeypatch.setattr(module, name, refused)
    with _taken(tmp_path) as lease:
        assert take(tmp_path) is None and _publish(lease, RECORD) == RECORD


def test_the_claim_of_an_older_version_and_what_killed_processes_left(tmp_path: Path) -> None:
    (tmp_path / "claim").write_text("")
    (tmp_path / ".claim.0123" / "0123").mkdir(parents=True)
    (tmp_path / ".now.0123456").write_text("")
    (tmp_path / ".train.json.abcdefgh").write_text("half")
    (tmp_path / ".keep").write_text("")
    with _taken(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".keep", "claim"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"heartbeat": "x", "lease": 1}', '{"heartbeat": NaN, "lease": 1e9}'])
def test_a_holder_that_cannot_be_read_has_its_time_and_no_more(tmp_path: Path, elsewhere: None, text: str) -> None:
    lease = _taken(tmp_path)
    (lease.stage / "holder.json").write_text(text)
    assert held(tmp_path) and take(tmp_path) is None
    _age(tmp_path, 3600)
    assert take(tmp_path) is not None


def test_a_lease_without_its_file_has_its_time_and_no_more(tmp_path: Path) -> None:
    lease = _taken(tmp_path)
    (lease.stage / "holder.json").unlink()
    assert held(tmp_path)
    os.utime(lease.stage, (0, 0))
    assert not held(tmp_path) and take(tmp_path) is not None


def test_a_folder_that_cannot_be_read_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    _taken(tmp_path)
    monkeypatch.setattr(os, "listdir", stale)
    assert held(tmp_path)
    with pytest.raises(OSError, match="Stale"):
        take(tmp_path)


def test_a_holder_that_slept_beyond_its_time_is_replaced_and_learns_it(tmp_path: Path) -> None:
    """Another process on this host, stopped and continued: alive, but without a heartbeat."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom harness.claims import LostLease, take\n"
        "folder = Path(sys.argv[1])\nwith take(folder) as lease:\n    print('has it', flush=True)\n    sys.stdin.readline()\n"
        "    try:\n        lease.write(folder / 'x', lambda stream: stream.write(b'old'))\n"
        "    except LostLease:\n        print('lost it', flush=True)\n"
    )
    environment = os.environ | {"BENCH_HEARTBEAT_SECONDS": "0.1", "BENCH_LEASE_SECONDS": "1"}
    sleeper = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True, env=environment
    )
    assert sleeper.stdin is not None and sleeper.stdout is not None
    try:
        assert sleeper.stdout.readline() == "has it\n"
        os.kill(sleeper.pid, signal.SIGSTOP)
        until = time.monotonic() + 60
        while (lease := take(tmp_path)) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert lease is not None and lease.before is not None and lease.before.about["pid"] == sleeper.pid
        with lease:
            os.kill(sleeper.pid, signal.SIGCONT)
            sleeper.stdin.write("\n")
            sleeper.stdin.flush()
            assert sleeper.stdout.readline() == "lost it\n"
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert list(tmp_path.iterdir()) == []


def test_the_answer_for_a_held_cell_is_no_other_interruption() -> None:
    assert is_held(replace(RECORD, status="interrupted", message=claims.HELD))
    assert not is_held(replace(RECORD, status="interrupted", message="stopped")) and not is_held(RECORD)
