"""What goes wrong: one sentence or one failed cell, the rest finished, exit code 1 or 2, nothing lost."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from harness.cli import main
from tests.conftest import started, wait_for

LOSSES = '''
import os, signal, time
import torch
from torch import nn


class Nan(nn.Module):
    """Finite for three steps, then not a number."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, logits, target):
        self.calls += 1
        return logits.mean() * (1.0 if self.calls < 4 else float("nan"))


class Raises(nn.Module):
    def forward(self, logits, target):
        raise RuntimeError("a mistake in the user's loss\\nwith a second line")


class Kills(nn.Module):
    def forward(self, logits, target):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(nn.Module):
    def forward(self, logits, target):
        time.sleep(1000)


class Vector(nn.Module):
    def forward(self, logits, target):
        return logits.mean((1, 2, 3))


class Hungry(nn.Module):
    def forward(self, logits, target):
        return torch.empty(10**15).sum()
'''


def test_each_bad_loss_fails_its_own_cell(toy) -> None:
    (toy.folder / "bad.py").write_text(LOSSES)
    names = ["Hangs", "Nan", "Raises", "Kills", "Vector", "Hungry"]  # while one process hangs, the other does the rest
    listed = ", ".join(f"'bad.py:{n}'" for n in names)
    suite = toy.suite("losses: [dice, ce]", f"losses: [{listed}, dice, ce]\ntimeout: 60")
    done = toy.bench("run", suite, "--workers", "2")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    records = toy.records()
    assert {n: records[n]["status"] for n in names} == {
        "Nan": "diverged",
        "Raises": "error",
        "Kills": "error",
        "Hangs": "timeout",
        "Vector": "error",
        "Hungry": "oom",
    }
    assert records["dice"]["status"] == records["ce"]["status"] == "ok"
    assert "not a finite number in epoch 1 of 2" in records["Nan"]["message"]
    assert (records["Nan"]["folder"].parent / "curve.csv").is_file()  # a diverged cell keeps its curve
    assert "tried to allocate 3.55 TiB on cpu" in records["Hungry"]["message"]
    assert "the same for all losses: `train: {accumulate: 2}`" in records["Hungry"]["message"]
    assert "a mistake in the user's loss (bad.py:21)" in records["Raises"]["message"]
    assert "signal 9" in records["Kills"]["message"]
    assert "not finished after 60 s" in records["Hangs"]["message"]
    page = (toy.folder / "reports/toy/index.html").read_text()
    assert "a mistake in the user&#39;s loss" in page

    # diverged is a result and is not tried again; the others are
    again = toy.bench("plan", suite, "--json")
    states = {r["loss"]["label"]: r["state"] for r in json.loads(again.stdout)}
    assert states["Nan"] == "diverged" and states["Kills"] == "error" and states["dice"] == "ok"
    assert "3 done" in toy.bench("run", suite, "--only", "loss=[dcN]*").stdout


def _truncated(root: Path) -> None:
    path = root / "imagesTr/c1.nii.gz"
    path.write_bytes(path.read_bytes()[:-500])


def _other_shape(root: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 30, 27), np.float32)), str(root / "imagesTr/c1.nii.gz"))


def _other_value(root: Path) -> None:
    path = str(root / "labelsTr/c1.nii.gz")
    image = sitk.ReadImage(path)
    image[0, 0, 0] = 9
    sitk.WriteImage(image, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_truncated, "imagesTr/c1.nii.gz: cannot be read as an image"),
        (
            _other_shape,
            "imagesTr/c1.nii.gz: the image has 4×30×27 voxels (z, y, x) and its label c1.nii.gz has 4×30×28",
        ),
        (_other_value, "labelsTr/c1.nii.gz: label value 9 is not in the manifest bad.yaml"),
    ],
)
def test_a_bad_file_fails_the_cells_of_its_data_set_and_no_other(toy, spoil, words: str) -> None:
    spoil(toy.data("bad"))
    both = "data:\n- {manifest: bad.yaml, split: s, slices: {size: [32, 32]}}\n- {manifest: toy.yaml, split: s, slices: {size: [32, 32]}}"
    suite = toy.suite("data: {manifest: toy.yaml, split: s, slices: {size: [32, 32]}}", both)
    suite.write_text(suite.read_text().replace("losses: [dice, ce]", "losses: [dice]"))
    done = toy.bench("run", suite, "--workers", "1")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    found = {p["cell"]["dataset"]: p for p in _all(toy.folder / "runs")}
    assert found["bad"]["status"] == "error" and words in found["bad"]["message"]
    assert found["toy"]["status"] == "ok"
    assert words in " ".join(done.stdout.split())


def _all(out: Path) -> list[dict]:
    return [json.loads(p.read_text()) for p in out.glob("*/*/record.json")]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[dice, ce]", "[dise]", "losses[0]: unknown loss 'dise' (did you mean 'dice'?)"),
        ("[dice, ce]", "[dice: {smoth: 1}]", "unknown argument 'smoth' (did you mean 'smooth'?)"),
        ("toy.yaml", "toys", "no data manifest 'toys'"),
    ],
)
def test_mistakes_in_a_suite_exit_with_2(
    toy, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    assert main(["run", str(toy.suite(old, new)), "--out", str(toy.folder / "runs")]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert not (toy.folder / "runs").exists()


def test_missing_data_says_what_is_missing_and_how_to_obtain_it(toy, capsys: pytest.CaptureFixture[str]) -> None:
    (toy.folder / "data/toy/labelsTr/c3.nii.gz").unlink()
    args = ["run", str(toy.suite()), "--out", str(toy.folder / "runs"), "--data", str(toy.folder / "data")]
    assert main(args) == 2
    text = capsys.readouterr().err
    assert "toy/labelsTr/c3.nii.gz is not there" in text and "made by the tests" in text and "--data" in text


def test_an_output_folder_that_cannot_be_written(toy, capsys: pytest.CaptureFixture[str]) -> None:
    (toy.folder / "file").write_text("")
    args = ["run", str(toy.suite()), "--out", str(toy.folder / "file/runs"), "--data", str(toy.folder / "data")]
    assert main(args) == 2
    text = capsys.readouterr().err
    assert "file/runs: cannot be written to" in text and text.count("\n") == 1


def test_a_full_disk_loses_no_finished_cell(toy) -> None:
    """A file-size limit stands in for the full disk: the write fails at the same calls."""
    suite = toy.suite()
    assert toy.bench("run", suite, "--only", "loss=dice").returncode == 0
    before = toy.records()["dice"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [*toy.command("run", suite, "--workers", "1"), "--out", str(toy.folder / "runs")]
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=200, cwd=toy.folder)
    text = full.stdout + full.stderr
    assert full.returncode in (1, 2) and "Traceback" not in text and "no space left" in text, text
    assert toy.records()["dice"] == before

    after = toy.bench("run", suite)
    assert after.returncode == 0, after.stderr
    assert {r["status"] for r in toy.records().values()} == {"ok"} and toy.records()["dice"] == before


def test_a_damaged_record_is_named_left_out_and_run_again(toy) -> None:
    suite = toy.suite("losses: [dice, ce]", "losses: [ce]")
    assert toy.bench("run", suite).returncode == 0
    weights = toy.records()["ce"]["weights"]
    path = toy.records()["ce"]["folder"] / "record.json"
    path.write_text(path.read_text()[:100])
    again = toy.bench("run", suite)
    assert again.returncode == 0 and "1 to run" in again.stdout
    assert toy.records()["ce"]["weights"] == weights


DEAF = """
import signal, time
from pathlib import Path
from torch import nn


class Deaf(nn.Module):
    def forward(self, logits, target):
        if target.shape == (4, 32, 32):  # and not in its check
            signal.signal(signal.SIGTERM, lambda *_: Path(__file__).with_name("told").touch())
            Path(__file__).with_name("trains").touch()
            time.sleep(1000)
        return logits.square().mean()
"""


def test_a_second_ctrl_c_ends_at_once_and_nothing_is_lost(toy) -> None:
    """The loss does not come back, so the worker writes no checkpoint within the grace; the finished cell stays."""
    (toy.folder / "deaf.py").write_text(DEAF)
    suite = toy.suite("losses: [dice, ce]", "losses: [dice, 'deaf.py:Deaf']")
    assert toy.bench("run", suite, "--only", "loss=dice").returncode == 0
    before = toy.records()
    command = [*toy.command("run", suite, "--workers", "1"), "--out", str(toy.folder / "runs")]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for((toy.folder / "trains").exists, "the training")
        os.killpg(process.pid, signal.SIGINT)
        wait_for((toy.folder / "told").exists, "the first Ctrl-C to reach the worker")
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate(timeout=120)
    assert time.monotonic() - began < 29, "it waited for the grace of 30 s"
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert toy.records() == before
    assert [e["state"] for e in json.loads(toy.bench("plan", suite, "--json").stdout)] == ["ok", "missing"]
