"""docs/add-a-loss.md: every block is executed, every loss checked, trained on the phantom and computed by hand."""

from __future__ import annotations

import csv
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.cell import Place
from harness.check import check_loss
from harness.check.command import specify
from harness.cli import main
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.targets import derive
from harness.plan import Entry
from harness.suite import load_suite
from harness.worker import run_cell

PAGE = Path(__file__).parent.parent / "docs" / "add-a-loss.md"
BLOCKS: list[tuple[str, str, str]] = re.findall(
    r"^```(\S+)(?: (\S+))?\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
FILES = {name: body for _, name, body in BLOCKS if name}
LOSSES = {
    "my_loss.py:MyLoss": {"onehot", "valid"},
    "tolerant.py:Tolerant": {"onehot", "valid", "distance_in"},
    "hardening.py:Hardening": {"onehot", "valid", "progress"},
    "weighed.py:Weighed": {"onehot", "valid"},
    "class_means.py:ClassMeans": {"onehot", "embedding", "classify"},
}


def _write(folder: Path) -> None:
    for name, body in FILES.items():
        (folder / name).write_text(body, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files in a folder, and that folder to work in."""
    before, made = Path.cwd(), tmp_path_factory.mktemp("add-a-loss")
    _write(made)
    os.chdir(made)
    yield made
    os.chdir(before)


def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path)
    (tmp_path / "my_loss.py").unlink()  # the first command makes it
    trained = []

    def in_this_process(todo: Sequence[Entry], place: Place, *_: object, **__: object) -> None:
        trained.extend(run_cell(entry.cell, place) for entry in todo)

    monkeypatch.setattr("harness.runner.run_cells", in_this_process)
    assert {language for language, _, _ in BLOCKS} == {"sh", "python", "yaml"}, "a block that nothing executes"
    assert all(name for language, name, _ in BLOCKS if language != "sh"), "a block that nothing executes"
    for line in "".join(body for language, _, body in BLOCKS if language == "sh").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "bench"
        assert main(arguments) == 0, f"{line}\n{capsys.readouterr()}"
    said = capsys.readouterr().out
    assert all(f"{name} passes" in said for name in LOSSES), said
    assert (tmp_path / "my_loss.py").read_text(encoding="utf-8") == FILES["my_loss.py"], "as bench new loss writes it"

    assert [r.status for r in trained] == ["ok"] * 6, [r.message for r in trained]
    curves = {r.cell["loss"]["label"]: _curve(tmp_path, r.train_id) for r in trained}
    assert list(curves) == [
        "dice_ce",
        "MyLoss",
        "Tolerant",
        "Hardening",
        "Weighed",
        "dice_ce + 0.5·ClassMeans",
    ]
    for label, rows in curves.items():
        assert len(rows) == 2 and rows[1]["loss"] < rows[0]["loss"], label
    # the parameters have moved, or the loss would be the sum of its terms
    late = curves["Weighed"][1]
    assert abs(late["loss"] - late["ce"] - late["dice"]) > 1e-5
    mixed = curves["dice_ce + 0.5·ClassMeans"][1]
    assert mixed["loss"] == pytest.approx(mixed["dice_ce"] + 0.5 * mixed["ClassMeans"])


def _curve(folder: Path, train_id: str) -> list[dict[str, float]]:
    with (folder / "runs" / train_id / "curve.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("loss", "needs"), LOSSES.items())
def test_what_each_asks_for(folder: Path, loss: str, needs: set[str]) -> None:
    assert needs_of(build_loss(specify(loss), {})) == (needs, set())


def test_the_page_speaks_of_arguments_and_sums_that_suites_take(folder: Path) -> None:
    swept = re.search(r"`(my_loss\.py:MyLoss: \{power.*?\}\})`", PAGE.read_text(encoding="utf-8"))
    mixed = re.search(r"`(sum: \[.*?\])`\.", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert swept and mixed
    text = re.sub(
        r"losses:\n.*?(?=seeds)", f"losses:\n  - {swept[1]}\n  - {mixed[1]}\n", FILES["mine.yaml"], flags=re.S
    )
    (folder / "more.yaml").write_text(text.replace(", baseline: dice_ce", ""), encoding="utf-8")
    labels = list(dict.fromkeys(c.loss_label for c in load_suite(folder / "more.yaml").cells))
    assert labels == [
        "MyLoss(power=1)",
        "MyLoss(power=1.5)",
        "MyLoss(power=2)",
        "linear(1→0)·ce + linear(0→1)·MyLoss",
    ]


@pytest.mark.parametrize(
    ("loss", "old", "new", "failed"),
    [
        # what the page says of lines that a reader may want to leave away
        ("my_loss.py:MyLoss", ".clamp_min(1)\n", "\n", {"finite"}),
        (
            "hardening.py:Hardening",
            "(-(q * log_p).expm1() / q).sum()",
            "((1 - (logits.softmax(1) * onehot).sum(1) ** q) / q * valid).sum()",
            {"ignored", "finite", "large_logits"},
        ),
    ],
)
def test_what_the_check_says_without_a_line(folder: Path, loss: str, old: str, new: str, failed: set[str]) -> None:
    name, _, cls = loss.partition(":")
    assert FILES[name].count(old) == 1
    (folder / f"wrong_{name}").write_text(FILES[name].replace(old, new), encoding="utf-8")
    found = check_loss(specify(f"wrong_{name}:{cls}"), only={"ignored", "finite", "large_logits", "optimum"})
    assert {line.name for line in found.failed} == failed


def _value(loss: str, logits: NDArray[Any], label: NDArray[Any], **more: Any) -> float:
    target, classes = torch.from_numpy(label), logits.shape[1]
    sides = torch.tensor([[2.0, 1.0]] * len(label))
    given = derive(["onehot", "valid", "distance_in"], target, num_classes=classes, spacing=sides)
    parts = torch.from_numpy(logits).requires_grad_()
    return float(evaluate_loss(build_loss(specify(loss), {}), parts, target, given | more)["loss"].detach())


@pytest.fixture
def drawn() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits (2, 3, 6, 5), their probabilities, and labels with ignored voxels."""
    draw = np.random.default_rng(11)
    logits, label = draw.normal(size=(2, 3, 6, 5)), draw.integers(0, 3, (2, 6, 5))
    label[1, 4:] = 255
    raised = np.exp(logits)
    return logits, raised / raised.sum(1, keepdims=True), label


def _true(p: NDArray[Any], label: NDArray[Any]) -> NDArray[Any]:
    """The probability of the true class at every voxel that counts, (n,)."""
    return np.array([p[b, label[b, y, x], y, x] for b, y, x in zip(*np.nonzero(label != 255), strict=True)])


def test_the_weights_of_tolerant_by_hand(folder: Path) -> None:
    label = np.zeros((1, 1, 4), np.int64)
    label[0, 0, 2:] = 1  # distances 2, 1, 1, 2 along x, where a voxel is 1 mm
    p = np.array([0.9, 0.6, 0.3, 0.8])  # of class 1
    logits = np.log(np.stack([1 - p, p]))[None, :, None, :]
    near, far = 1 - np.exp(-1 / 4), 1 - np.exp(-4 / 4)
    expected = (far * 0.9 + near * 0.6 + near * 0.7 + far * 0.2) / (2 * near + 2 * far)
    assert _value("tolerant.py:Tolerant", logits, label) == pytest.approx(expected, rel=1e-6)
    # an image of one class only counts in full
    alone = np.zeros((1, 1, 4), np.int64)
    assert _value("tolerant.py:Tolerant", logits, alone) == pytest.approx(p.mean(), rel=1e-6)


def test_hardening_goes_from_cross_entropy_to_the_error(folder: Path, drawn: Any) -> None:
    logits, p, label = drawn
    true = _true(p, label)
    name = "hardening.py:Hardening: {q: 1.0}"
    start = _value(name, logits, label, progress=torch.tensor(0.0))
    half = _value(name, logits, label, progress=torch.tensor(0.5))
    end = _value(name, logits, label, progress=torch.tensor(1.0))
    assert start == pytest.approx(-np.log(true).mean(), rel=2e-3)
    assert half == pytest.approx(((1 - np.sqrt(true)) / 0.5).mean(), rel=1e-6)
    assert end == pytest.approx((1 - true).mean(), rel=1e-6)


def test_weighed_by_hand_and_its_gradient_moves_the_weights(folder: Path, drawn: Any) -> None:
    logits, p, label = drawn
    t = np.stack([label == c for c in range(3)], 1)
    p = p * (label != 255)[:, None]
    dice = 1 - np.mean([(2 * (p * t)[:, c].sum() + 1) / ((p + t)[:, c].sum() + 1) for c in (1, 2)])
    ce = -np.log(_true(p, label)).mean()
    loss = build_loss(specify("weighed.py:Weighed"), {})
    with torch.no_grad():
        loss.s.copy_(torch.tensor([0.5, -1.0]))
    target = torch.from_numpy(label)
    given = derive(["onehot", "valid"], target, num_classes=3, spacing=torch.ones(2, 2))
    terms = evaluate_loss(loss, torch.from_numpy(logits).requires_grad_(), target, given)
    assert float(terms["ce"].detach()) == pytest.approx(ce, rel=1e-6)
    assert float(terms["dice"].detach()) == pytest.approx(dice, rel=1e-6)
    assert float(terms["loss"].detach()) == pytest.approx(np.exp(-0.5) * ce + np.exp(1) * dice - 0.5, rel=1e-6)
    terms["loss"].backward()
    assert loss.s.grad.tolist() == pytest.approx([1 - np.exp(-0.5) * ce, 1 - np.exp(1) * dice], rel=1e-5)


def test_class_means_by_hand(folder: Path, drawn: Any) -> None:
    logits, _, label = drawn
    label = np.where(label == 2, 1, label)  # class 2 has no voxel, and counts for nothing
    features = np.random.default_rng(2).normal(size=(2, 4, 6, 5))
    weight = np.random.default_rng(5).normal(size=(3, 4))
    expected = []
    for c in (0, 1):
        mean = np.mean([features[b, :, y, x] for b, y, x in zip(*np.nonzero(label == c), strict=True)], axis=0)
        z = weight @ mean
        expected.append(np.log(np.exp(z).sum()) - z[c])
    embedding = torch.from_numpy(features).requires_grad_()
    head = torch.from_numpy(weight)[:, :, None, None]
    found = _value(
        "class_means.py:ClassMeans",
        logits,
        label,
        embedding=embedding,
        classify=lambda e: torch.nn.functional.conv2d(e, head),
    )
    assert found == pytest.approx(np.mean(expected), rel=1e-6)
