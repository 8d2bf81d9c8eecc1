"""`bench check`: what it takes, what it prints, what it exits with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.check.command import specify
from harness.cli import main
from harness.errors import BenchError
from harness.losses import LOSSES

MINE = '''
from torch import Tensor, nn

class Loss(nn.Module):
    """Cross-entropy of the authors' own, with a focus."""

    def __init__(self, focus: float = 0.5) -> None:
        super().__init__()
        self.focus = focus

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce = nn.functional.cross_entropy(logits.float() if logits.dtype.itemsize == 2 else logits, target,
                                         ignore_index=255, reduction="none")
        valid = target != 255
        return ((1 + self.focus * (1 - (-ce).exp())) * ce).sum() / valid.sum().clamp_min(1)

class Backwards(Loss):
    """The same with the wrong sign, and a sum."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return -super().forward(logits, target) * target.numel()
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def certificates(out: str) -> dict[str, dict]:
    return {c["loss"]: c for c in json.loads(out)}


def test_a_users_file(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "my.py:Loss"]) == 0
    text = capsys.readouterr().out
    assert "my.py:Loss passes" in text and "FAIL" not in text
    assert main(["check", "--json", "my.py:Loss", "my.py:Loss: {focus: 0.3}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["passed"] for c in found] == [True, True]
    value = [next(line["text"] for line in c["lines"] if line["name"] == "order") for c in found]
    assert value[0] != value[1], "arguments reach the loss"


def test_a_failing_loss_prints_one_line_for_each_failed_property(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", "my.py:Backwards"]) == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert main(["check", "my.py:Backwards", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    failed = {line["name"]: line for line in found["lines"] if line["outcome"] == "fail"}
    assert {"optimum", "order", "copies", "descent", "classwise"} <= set(failed)
    assert not {"gradcheck", "ignored", "finite", "class_permutation", "dimensions", "steady"} & set(failed)
    assert [line.split()[0] for line in shown] == list(failed)
    for line, (name, entry) in zip(shown, failed.items(), strict=True):
        assert " ".join(entry["text"].split()) in " ".join(line.split())
        assert re.search(r"\d", line), f"{name} has no number"
    assert f"my.py:Backwards fails {len(failed)}" in _shown(capsys, "my.py:Backwards")


def _shown(capsys: pytest.CaptureFixture[str], name: str) -> str:
    main(["check", name])
    return capsys.readouterr().out


def test_json_holds_the_whole_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ce", "boundary", "--json"]) == 0
    found = certificates(capsys.readouterr().out)
    assert list(found) == ["ce", "boundary"]
    for certificate in found.values():
        assert set(certificate) == {"loss", "passed", "lines", "seconds", "version", "torch"}
        for line in certificate["lines"]:
            assert set(line) == {"name", "outcome", "number", "text", "reason"}
            assert line["outcome"] in ("pass", "declared", "not applicable") and line["text"]
    declared = {line["name"]: line for line in found["boundary"]["lines"] if line["outcome"] == "declared"}
    assert set(declared) == {"optimum"} and "negative" in declared["optimum"]["reason"]
    assert declared["optimum"]["number"] < 0


def test_declared_properties_are_shown_with_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "boundary"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"optimum declared -?0\.\d+ at the truth", text) and "(negative by design" in text


def test_losses_of_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "monai.losses.DiceLoss", "--json"]) == 0
    (dice,) = json.loads(capsys.readouterr().out)
    assert not [line for line in dice["lines"] if line["outcome"] == "fail"]
    assert main(["check", "torch.nn.CrossEntropyLoss", "--json"]) == 1
    (ce,) = json.loads(capsys.readouterr().out)
    failed = {line["name"]: line["text"] for line in ce["lines"] if line["outcome"] == "fail"}
    # 0 / 0 where every voxel is ignored; and it is a loss of the catalogue
    assert failed == {
        "finite": "all ignored (2D), all ignored (3D)",
        "identity": "the gradient is that of ce",
    }
    assert main(["check", "monai.losses.DiceLoss: {softmax: false}", "--json"]) == 1
    (raw,) = json.loads(capsys.readouterr().out)
    assert "optimum" in {line["name"] for line in raw["lines"] if line["outcome"] == "fail"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "unknown loss"),
        ("dice: {nope: 1}", "unknown argument 'nope'"),
        ("dice: {squared: {sweep: [true, false]}}", "several losses"),
        ("[dice]", "expected a loss"),
        ("dice: 3", "expected a loss"),
        ("my.py", "bench: my.py: expected a class, found a file; write my.py:Loss or my.py:Backwards."),
        ("my.py:Nope", "my.py has no class 'Nope'; it has: Loss, Backwards."),
        ("focal(2)", "expected arguments by name"),
        ("no.py:Loss", "no file 'no.py'"),
        ("tversky: {fp_weight: -1}", "must not be negative"),
    ],
)
def test_what_cannot_be_checked_exits_with_2(
    mine: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", text]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.err.count(f"{text}: ") <= 1, "the name is said once"


def test_a_folder_that_cannot_keep_what_a_loss_prepares_is_no_fault_of_the_loss(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "runs").touch()  # no folder can be made there, whoever asks
    assert main(["check", "inverse_form"]) == 2
    captured = capsys.readouterr()
    assert "runs/cache/prepared: cannot be written to" in captured.err and "FAIL" not in captured.out


def test_an_undeclarable_key_exits_with_2(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "my.py").write_text(MINE + "\n    declares = {'finite': 'no'}\n")
    assert main(["check", "my.py:Backwards"]) == 2
    assert "declares 'finite', which cannot be declared" in capsys.readouterr().err


def test_the_specification_is_that_of_a_suite(mine: Path) -> None:
    spec = specify("tversky: {fn_weight: 1, fp_weight: 0.3}")
    assert spec == {
        "name": "tversky",
        "class": LOSSES["tversky"],
        "args": {"fn_weight": 1.0, "fp_weight": 0.3},
        "version": spec["version"],
    }
    assert specify("tversky(fn_weight=1, fp_weight=0.3)") == spec, "as tables show it"
    assert specify("my.py:Loss")["class"] == f"{(mine / 'my.py').resolve()}:Loss"
    with pytest.raises(BenchError, match="unknown loss"):
        specify("Dice")


def test_in_a_process_of_its_own(mine: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "harness", "check", "my.py:Loss", "focal"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and run.stderr == ""
    assert "my.py:Loss passes" in run.stdout and "focal passes" in run.stdout
