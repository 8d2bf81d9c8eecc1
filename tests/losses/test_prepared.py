"""What a loss prepares once: kept by source, arguments and data, in the process and on disk."""

from pathlib import Path

import pytest
import torch
from torch import nn

from harness.losses import prepared
from harness.losses.compound import Sum
from harness.losses.prepared import prepare_loss

CALLS: list[int] = []


class Mean(nn.Module):
    """Prepares the mean label and a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("drawn", torch.zeros(()))

    def prepare(self, labels, *, device, generator):
        CALLS.append(len(labels))
        self.mean.fill_(torch.cat([part.flatten() for part in labels]).float().mean())
        self.drawn.copy_(torch.rand((), generator=generator))

    def forward(self, logits, target):
        return logits.mean() + self.mean


SPEC = {"name": "mean", "class": f"{Path(__file__)}:Mean", "args": {}, "version": 1}
LABELS = [torch.tensor([0, 1]), torch.tensor([2, 3])]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_KEPT", {})
    CALLS.clear()


def test_prepares_once_and_gives_every_instance_the_same_state(tmp_path: Path) -> None:
    one = prepare_loss(Mean(), SPEC, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    two = prepare_loss(Mean(), SPEC, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    assert CALLS == [2] and float(one.mean) == 1.5 and torch.equal(one.drawn, two.drawn)


def test_another_process_reads_it_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepare_loss(Mean(), SPEC, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    monkeypatch.setattr(prepared, "_KEPT", {})
    two = prepare_loss(Mean(), SPEC, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    assert CALLS == [2] and torch.equal(one.drawn, two.drawn)


@pytest.mark.parametrize("change", [{"key": "other data"}, {"seed": 2}])
def test_other_data_or_another_seed_prepare_again(tmp_path: Path, change: dict) -> None:
    prepare_loss(Mean(), SPEC, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    prepare_loss(Mean(), SPEC, lambda: LABELS, folder=tmp_path, **({"key": "d", "seed": 1} | change))
    assert CALLS == [2, 2]


def test_other_arguments_prepare_again(tmp_path: Path) -> None:
    prepare_loss(Mean(), SPEC, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    prepare_loss(Mean(), {**SPEC, "args": {"x": 1}}, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    assert CALLS == [2, 2]


def test_a_part_of_a_sum_is_prepared_and_a_plain_loss_reads_no_labels(tmp_path: Path) -> None:
    spec = {"sum": [{"loss": SPEC, "weight": 1.0}]}
    total = prepare_loss(Sum([Mean()], [1.0], ["mean"]), spec, lambda: LABELS, key="d", seed=1, folder=tmp_path)
    assert float(total.parts[0].mean) == 1.5
    plain = nn.CrossEntropyLoss()
    assert prepare_loss(plain, {}, lambda: pytest.fail("labels were read"), key="d", seed=1) is plain
