"""`bench new loss`: what it writes, and what it refuses to write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import harness.new_loss
from harness.check import check_loss
from harness.check.command import specify
from harness.cli import main
from harness.errors import BenchError
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.targets import derive
from harness.new_loss import names_of, new_loss


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["my_loss", "MyLoss"])
def test_what_is_written_passes_the_check(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "loss", name]) == 0
    said = capsys.readouterr().out
    assert [p.name for p in here.iterdir()] == ["my_loss.py"]
    assert "bench check my_loss.py:MyLoss" in said and "losses: [dice_ce, 'my_loss.py:MyLoss']" in said
    certificate = check_loss(specify("my_loss.py:MyLoss"))
    assert certificate.passed, certificate.failed
    # not by declaring what it lacks, and its argument and need are seen
    outcomes = {line.name: line.outcome for line in certificate.lines}
    assert set(outcomes.values()) == {"pass"}
    assert needs_of(build_loss(specify("my_loss.py:MyLoss"), {})) == ({"onehot", "valid"}, set())


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_its_value_is_that_of_its_formula(here: Path, power: float) -> None:
    new_loss("my_loss", here)
    draw = np.random.default_rng(3)
    logits, label = draw.normal(size=(2, 3, 5, 4)), draw.integers(0, 3, (2, 5, 4))
    label[0, :2] = 255
    expected = []
    for b, y, x in zip(*np.nonzero(label != 255), strict=True):
        p = np.exp(logits[b, :, y, x])
        expected.append((np.abs(np.eye(3)[label[b, y, x]] - p / p.sum()) ** power).sum())
    target = torch.from_numpy(label)
    loss = build_loss(specify(f"my_loss.py:MyLoss: {{power: {power}}}"), {})
    given = derive(["onehot", "valid"], target, num_classes=3, spacing=torch.ones(2, 2))
    found = evaluate_loss(loss, torch.from_numpy(logits).requires_grad_(), target, given)["loss"]
    assert float(found.detach()) == pytest.approx(np.mean(expected), rel=1e-6)


def test_it_is_short_and_documented(here: Path) -> None:
    made = new_loss("HausdorffLike2D", here)
    text = Path(made.file).read_text(encoding="utf-8")
    assert made.cls == "HausdorffLike2D" and "class HausdorffLike2D(nn.Module):" in text and "Source:" in text
    assert "MyLoss" not in text and "my_loss" not in text and "{" not in text
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(('"""', "Source"))]
    assert len(code) <= 13 and max(map(len, text.splitlines())) <= 120


def test_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "loss", "a_b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "a_b.py", "cls": "AB", "loss": "a_b.py:AB"}


@pytest.mark.parametrize(
    ("name", "stem", "cls"),
    [
        ("my_loss", "my_loss", "MyLoss"),
        ("My_Loss", "my_loss", "MyLoss"),
        ("HDLoss", "hd_loss", "HDLoss"),
        ("HausdorffLike2D", "hausdorff_like2d", "HausdorffLike2D"),
        ("U2Net", "u2_net", "U2Net"),
        ("dice2", "dice2", "Dice2"),
        ("a_2d", "a_2d", "A2d"),
        ("LOSS", "loss", "LOSS"),
    ],
)
def test_names(name: str, stem: str, cls: str) -> None:
    assert names_of(name) == (stem, cls)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("9lives", "'9lives' is not a name for a loss: expected a letter"),
        ("my loss", "is not a name"),
        ("my-loss", "is not a name"),
        ("_mine", "is not a name"),
        ("", "is not a name"),
        ("größe", "is not a name"),
        ("a\n", "is not a name"),
        ("x" * 41, "at most 40 in all"),
        ("../mine", "is not a name"),
        ("{cls}", "is not a name"),
        ("my_loss.py", "for this file: bench new loss my_loss."),
        ("class", "would give the name 'class'"),
        ("none", "would give the name 'None'"),
        ("tensor", "would give the name 'Tensor'"),
        ("Dice", "dice is a loss of `bench list losses`"),
        ("torch", "would hide the installed Python module 'torch'"),
        ("Json", "would hide the installed Python module 'json'"),
    ],
)
def test_a_name_that_cannot_be_is_one_sentence(
    here: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "loss", name]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.rstrip().endswith((".", "apart."))
    assert not list(here.iterdir())


def test_a_file_that_is_there_stays_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_loss.py").write_text("mine")
    (here / "other.py").mkdir()
    (here / "third.py").symlink_to(here / "nowhere.py")
    for name in ("my_loss", "MyLoss", "other", "third"):
        assert main(["new", "loss", name]) == 2
        assert "is there already and stays as it is" in capsys.readouterr().err
    assert (here / "my_loss.py").read_text() == "mine" and not (here / "nowhere.py").exists()


def test_a_file_that_appears_meanwhile_stays_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def appears(module: str) -> bool:
        (here / f"{module}.py").write_text("theirs")
        return False

    monkeypatch.setattr(harness.new_loss, "_importable", appears)
    with pytest.raises(BenchError, match="is there already"):
        new_loss("my_loss", here)
    assert (here / "my_loss.py").read_text() == "theirs"


def test_a_folder_that_cannot_be_written_is_one_sentence(here: Path) -> None:
    with pytest.raises(BenchError, match=r"my_loss\.py cannot be written: No such file or directory"):
        new_loss("my_loss", here / "nowhere")
    if os.geteuid() == 0:
        return  # root writes everywhere
    here.chmod(0o555)
    with pytest.raises(BenchError, match="cannot be written: Permission denied"):
        new_loss("my_loss", here)
