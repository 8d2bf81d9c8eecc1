"""The check of a loss goes into every record and onto the page, once for each state of its source."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.check import certificates
from harness.check.certificates import certificates_of
from harness.losses import LOSSES

SIGN = '''
import torch

class Sign(torch.nn.Module):
    """Rewards what it should punish."""
    version = 1

    def forward(self, logits, target):
        labels = target.clamp(max=logits.shape[1] - 1)
        return logits.log_softmax(1).gather(1, labels[:, None])[:, 0].mul(target != 255).mean()
'''


def _spec(name: str, target: str = "", **args: object) -> dict[str, Any]:
    return {"name": name, "class": target or LOSSES[name], "args": args, "version": 1}


def test_a_wrong_loss_is_recorded_and_said_on_the_page(toy) -> None:
    (toy.folder / "sign.py").write_text(SIGN)
    suite = toy.suite("losses: [dice, ce]", "losses: [dice, sign.py:Sign]")
    done = toy.bench("run", suite)
    assert done.returncode == 0, done.stderr  # the check informs; the user decides
    records = toy.records()
    assert records["dice"]["checks"]["dice"]["passed"] and not records["dice"]["checks"]["dice"]["failed"]
    wrong = records["Sign"]["checks"]["sign.py:Sign"]
    assert not wrong["passed"] and {"order", "classwise", "descent"} <= set(wrong["failed"])
    page = (toy.folder / "reports/toy/index.html").read_text()
    assert "LOSS CHECK FAILED: sign.py:Sign" in page and "Loss check passed (bench check): dice." in page


def test_parts_of_a_sum_are_checked_one_by_one_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"sum": [{"loss": _spec("dice"), "weight": 1.0}, {"loss": _spec("focal", gamma=1.0), "weight": 0.5}]}
    state = torch.get_rng_state()
    first = certificates_of(spec, tmp_path)
    assert list(first) == ["dice", "focal(gamma=1.0)"] and all(c["passed"] for c in first.values())
    assert torch.equal(torch.get_rng_state(), state), "a check moves no other number"
    monkeypatch.setattr(certificates, "check_loss", lambda spec: pytest.fail("checked again"))
    assert certificates_of(spec, tmp_path) == first


def test_an_edited_loss_is_checked_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SIGN)
    spec = _spec("mine.py:Sign", f"{file}:Sign")
    assert not certificates_of(spec, tmp_path / "c")["mine.py:Sign"]["passed"]
    file.write_text(
        SIGN.replace("return logits", "return -logits").replace(".mean()", ".sum() / (target != 255).sum()")
    )
    # it has become cross-entropy, divided by the number of voxels that count
    found = certificates_of(spec, tmp_path / "c")["mine.py:Sign"]
    assert set(found["failed"]) <= {"identity", "finite"}


def test_a_loss_that_cannot_be_made_here_says_why(tmp_path: Path) -> None:
    found = certificates_of(_spec("ce", weight=[1.0, 2.0]), tmp_path)
    (only,) = found.values()
    assert not only["passed"] and any("4 classes" in text for text in only["failed"].values())


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_weights_of_the_classes_of_the_data_fit_the_scenes(tmp_path: Path, classes: int) -> None:
    weights = [0.5 + 0.1 * c for c in range(classes)]
    (found,) = certificates_of(_spec("ce", weight=weights), tmp_path, classes).values()
    assert found["passed"], found
