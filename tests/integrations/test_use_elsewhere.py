"""Every block of docs/use-elsewhere.md is executed."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.losses.needs import NEEDS

PAGE = (Path(__file__).parents[2] / "docs" / "use-elsewhere.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def _run(text: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(text, names)
    return names


def _block(part: str) -> str:
    (found,) = [block for block in BLOCKS if part in block]
    return str(found)


def test_the_blocks_are_those_that_are_run_here() -> None:
    parts = ("start_epoch(epoch)", "SupervisedTrainer(", "nnUNetTrainerBoundaryDoU", "to_nnunet(", "label_facts(")
    assert len(BLOCKS) == len(parts) == len({_block(part) for part in parts})


def test_the_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    names = _run(_block("start_epoch(epoch)"))
    assert set(names["loss"].terms) == {"loss", "dice_ce", "dice_ce.dice", "dice_ce.ce", "boundary"}
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_supervised_trainer() -> None:
    pytest.importorskip("ignite")
    names = _run(_block("SupervisedTrainer("))
    assert names["trainer"].state.epoch == 2 and names["loss"]._epoch == 1


def test_the_trainer_of_nnunet(nnunet: ModuleType) -> None:
    made = _run(_block("nnUNetTrainerBoundaryDoU"))["nnUNetTrainerBoundaryDoU"]
    assert issubclass(made, nnunet.nnUNetTrainer) and made.__name__ == "nnUNetTrainerBoundaryDoU"


def test_the_module_for_nnunet() -> None:
    assert torch.isfinite(_run(_block("to_nnunet("))["value"])


def test_the_counts() -> None:
    assert sum(_run(_block("label_facts("))["counted"]["class_counts"]) == 4 * 32 * 32


def test_every_need_stands_in_the_table() -> None:
    heads = {"boundary_logits", "distance_logits", "projection"}
    assert all(f"`{name}`" in PAGE for name in NEEDS - heads) and "attached heads" in PAGE
