"""`bench score`: what is wrong with one case costs that case and no other."""

from __future__ import annotations

import multiprocessing
import operator
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from scored import made, made_folders, refused, volumes, write

from harness.cli import main
from harness.errors import BenchError
from harness.records import read_rows
from harness.scoring.folders import score_folders
from harness.scoring.images import read_labels
from harness.scoring.pool import Failure, Pool
from tests.conftest import started


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return made_folders(tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 0xFF  # in a gzip file, of the checksum
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("c0.nii.gz", _truncate),
        ("c1.mha", _truncate),
        ("c2.nrrd", _truncate),
        ("c0.nii.gz", _flip),
        ("c1.nii", _truncate),
    ],
)
def test_a_damaged_file_costs_its_case_alone(folders, tmp_path: Path, capsys, name, damage) -> None:
    rng = np.random.default_rng(1)
    if name == "c1.nii":
        (folders[0] / "c1.mha").unlink()
    pred = np.where(volumes(1)[0] > 0, rng.integers(1, 3, volumes()[0].shape), 0).astype(np.uint8)
    damage(write(folders[0] / name, pred))
    out = tmp_path / "rows.csv"
    assert main(["score", *map(str, folders), "--out", str(out), "--workers", "2"]) == 2
    case = name.partition(".")[0]
    assert [c for c in dict.fromkeys(r["case"] for r in read_rows(out))] == [c for c in ("c0", "c1", "c2") if c != case]
    captured = capsys.readouterr()
    first, last = [line for line in captured.err.splitlines() if line.startswith("bench: ")]
    assert f"{folders[0] / name}: cannot be read as an image, it is damaged" in first
    assert "1 of 3 cases could not be measured; the other 2 were and are written." in last
    assert "2 cases, mean ± SD" in captured.out


def test_compressed_metaimage_that_is_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / "a.mha", tmp_path / "b.mhd"):
        image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9, (9, 9, 9)).astype(np.uint8))
        sitk.WriteImage(image, str(path), True)
        whole = read_labels(path)
        assert whole.shape == (9, 9, 9)
        data = path if path.suffix == ".mha" else path.with_suffix(".zraw")
        raw = bytearray(data.read_bytes())
        raw[-40] ^= 0xFF
        data.write_bytes(raw)
        with pytest.raises(BenchError, match=f"{path.name}: cannot be read as an image, it is damaged"):
            read_labels(path)


def test_a_label_without_a_name(folders, capsys) -> None:
    pred, _ = volumes(1)
    pred[0, 0, 0] = 7
    write(folders[0] / "c1.mha", pred)
    assert main(["score", *map(str, folders), "--labels", "disc=1,ring=2"]) == 2
    assert f"bench: {folders[0]}/c1.mha: the prediction holds label 7, which is neither" in capsys.readouterr().err
    scores = score_folders(*folders, {"disc": 1}, workers=1)
    assert sorted(scores.faults) == ["c0", "c1", "c2"] and scores.rows == {}


def test_no_case_at_all(folders, tmp_path: Path, capsys) -> None:
    out = tmp_path / "rows.csv"
    assert main(["score", *map(str, folders), "--labels", "disc=1", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not out.exists()
    said = captured.err.splitlines()
    assert len(said) == 2, "what is the same in all cases is said once"
    assert said[0].startswith(f"bench: {folders[0] / 'c0.nii.gz'}: the prediction holds label 2, which is neither")
    assert said[0].endswith(
        "background (0) nor a class (disc=1); name it (--labels), or make it background (--drop 2). "
        "The same in 2 more cases: c1, c2."
    )
    assert "3 of 3 cases could not be measured" in captured.err


def test_other_faults_are_said_each(folders, capsys) -> None:
    write(folders[0] / "c1.mha", np.where(volumes(1)[0] > 0, 3, 0).astype(np.uint8))
    write(folders[1] / "c2.mhd", np.where(volumes(2)[1] > 0, 3, 0).astype(np.int32))
    assert main(["score", *map(str, folders), "--labels", "disc=1,ring=2", "--workers", "1"]) == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert "c1.mha: the prediction holds label 3" in first and "c2.mhd: the reference holds label 3" in second
    assert "The same" not in first + second and "2 of 3 cases could not be measured" in last


def test_negative_labels_and_images(folders, tmp_path: Path, capsys) -> None:
    pred, _ = volumes(1)
    write(folders[0] / "c1.mha", pred.astype(np.int16) - 1)
    fault = score_folders(*folders, workers=1).faults["c1"]
    assert fault == f"{folders[0]}/c1.mha: holds the negative label -1, expected labels from 0 up; correct it."
    write(folders[1] / "c1.nii", np.arange(pred.size).reshape(pred.shape).astype(np.uint16))
    assert "c1.nii: holds 2880 different values, which looks like an image" in refused(capsys, *folders)
    write(folders[1] / "c1.nii", np.full(pred.shape, 100_000, np.int32))
    assert "c1.nii: holds values up to 100000, which" in refused(capsys, *folders)


def test_references_of_background_alone(tmp_path: Path, capsys) -> None:
    for folder in ("pred", "ref"):
        write(tmp_path / folder / "a.mha", np.zeros((3, 3, 3), np.uint8))
    assert "the references hold nothing but background" in refused(capsys, tmp_path / "pred", tmp_path / "ref")


def test_255_is_pointed_out(folders, capsys) -> None:
    for folder in folders:
        pred, _ = volumes()
        pred[0] = 255
        write(folder / "c0.nii.gz", pred)
    assert main(["score", *map(str, folders)]) == 0
    assert "label 255 was measured as a class" in capsys.readouterr().err
    assert main(["score", *map(str, folders), "--ignore", "255"]) == 0
    assert "255" not in capsys.readouterr().err


def test_a_killed_process_costs_its_case_alone(folders, monkeypatch) -> None:
    give = Pool._give

    def murder(pool: Pool, worker, number, task, jobs) -> None:
        last = isinstance(jobs[number], tuple) and jobs[number][0].case == "c1"
        if last:
            os.kill(worker.process.pid, signal.SIGSTOP)  # it must not be done before it is killed
        give(pool, worker, number, task, jobs)
        if last:
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(Pool, "_give", murder)
    scores = score_folders(*folders, workers=1)
    assert list(scores.rows) == ["c0", "c2"]
    assert scores.faults == {
        "c1": "case c1: its process was lost (signal 9, often the system's answer to too little memory; try fewer workers)."
    }
    assert multiprocessing.active_children() == []


def test_where_processes_are_not_forked(folders, monkeypatch) -> None:
    """As on macOS, where libraries do not survive a fork."""
    want = score_folders(*folders, workers=1)
    monkeypatch.setattr("harness.scoring.pool.sys", SimpleNamespace(platform="darwin"))
    assert score_folders(*folders, workers=2) == want


def test_a_process_that_dies_over_a_header_is_a_sentence(folders, monkeypatch) -> None:
    give = Pool._give

    def murder(pool: Pool, worker, number, task, jobs) -> None:
        os.kill(worker.process.pid, signal.SIGSTOP)
        give(pool, worker, number, task, jobs)
        os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(Pool, "_give", murder)
    with pytest.raises(BenchError, match=r"^case c0: its process was lost \(signal 9.*\)\. .* in 2 more of 3 cases\.$"):
        score_folders(*folders, workers=1)


def test_what_a_task_raises_is_its_failure() -> None:
    with Pool(2) as pool:
        found = dict(pool.run(partial(operator.truediv, 1), [1, 0, 4]))
        large = dict(pool.run(bytes, [1 << 62, 2]))
    assert found == {0: 1.0, 1: Failure("ZeroDivisionError: division by zero"), 2: 0.25}
    assert large == {0: Failure("out of memory (no reason given)"), 1: bytes(2)}


def test_ctrl_c_while_a_process_starts_is_not_lost_and_ends_it(monkeypatch) -> None:
    kind, started = multiprocessing.get_context("forkserver").Process, []
    begin = kind.start

    def start(process) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        begin(process)
        started.append(process)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Pool(1) as pool:
            monkeypatch.setattr(kind, "start", start)
            list(pool.run(bytes, [1]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [p.exitcode for p in started] == [-signal.SIGKILL] and multiprocessing.active_children() == []


# Says when the first case is with a process.
SCORE = """
import sys
from harness.cli import main
from harness.scoring.pool import Pool

give = Pool._give

def told(pool, worker, number, task, jobs):
    give(pool, worker, number, task, jobs)
    if isinstance(jobs[number], tuple):
        print("given", flush=True)

Pool._give = told
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_a_message_and_writes_nothing(tmp_path: Path) -> None:
    pred = np.random.default_rng(0).integers(0, 3, (60, 200, 200)).astype(np.uint8)
    for number in range(30):
        for folder in ("pred", "ref"):
            path = made(tmp_path / folder) / f"c{number}.mha"
            if number:
                os.link(tmp_path / folder / "c0.mha", path)
            else:
                write(path, pred)
    command = [sys.executable, "-c", SCORE, "score", "pred", "ref", "--labels", "a=1,b=2", "--out", "rows.csv"]
    with started(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "given\n"
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 130 and not (tmp_path / "rows.csv").exists()
    assert re.fullmatch(
        r"bench: interrupted; (no case was|\d+ of 30 cases were) measured and nothing was written\.\n", errors
    )
