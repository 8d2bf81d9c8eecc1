"""A training step on a device that is not the CPU, without one: nothing is left behind, and nothing waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

import harness.data.augment as augment
from harness.check.device import AWAY, Generator, Seen, away
from harness.data.augment import Batch, augmented
from harness.fused import Group
from harness.models import MODELS
from harness.optim import make_optimizer
from tests.small_networks import DEEP, FLAT, loss_of, model_of, toy_cell, trainer_of


def _given(batch: Batch) -> dict[str, Any]:
    return {"image": batch.image, "target": batch.target, "spacing": batch.spacing}


def _waits_of_a_step(trainers: list[Any]) -> list[str]:
    """What a step of the trainers, or of the group that they make, would wait for."""
    seen = Seen()
    batch = trainers[0].draw()
    for trainer in trainers:
        trainer.device = AWAY

    def run(moved: dict[str, Any]) -> None:
        for trainer in trainers:
            trainer.optimizer = make_optimizer(trainer.cell.train["optimizer"], trainer.trained, trainer.loss)
            trainer.parameters = [p for p in trainer.trained.parameters() if p.requires_grad]
            trainer.draw = lambda: Batch(**moved)
            trainer._clock()  # copied to the device once an epoch
        if len(trainers) == 1:
            seen.waits.clear()
            return trainers[0].step()
        group = Group(trainers)
        group._stack()
        seen.waits.clear()
        group._step()
        for error in group.failed.values():
            raise error

    away(run, [m for t in trainers for m in (t.trained, t.loss)], _given(batch), (), seen)
    return [*seen.waits, *seen.unordered]


@pytest.mark.parametrize(
    ("name", "dims"), [*((name, 2) for name in MODELS), *((name, 3) for name in MODELS if name != "transunet")]
)
def test_no_network_waits_for_the_device_or_calls_what_it_cannot_repeat(name: str, dims: int) -> None:
    side = 64 if name == "swin_unetr" else 32
    model, seen = model_of(name, side, dims).train(), Seen()
    image = torch.zeros(2, 1, *[side] * dims)

    def run(moved: dict[str, Any]) -> None:
        output = model(moved["image"])
        found = [output.logits, *(v for v in output.offered().values() if isinstance(v, Tensor) and v.requires_grad)]
        torch.autograd.backward(torch.stack([v.mean() for v in found]).sum())

    away(run, [model], {"image": image}, (), seen)
    assert seen == Seen()


@pytest.mark.parametrize(
    ("losses", "network", "view", "train"),
    [
        (["dice_ce"], "unet", FLAT, "clip: 1.0, accumulate: 2"),
        (["dice_ce"], "nnunet", DEEP, "deep_supervision: true"),
        (["gsl"], "unet", FLAT, "schedule: poly"),
        (["conditional_boundary"], "unet", FLAT, "precision: bf16"),
        (["attention"], "attention_unet", FLAT, "schedule: poly"),
        (["ce", "dice", "lovasz"], "unet", FLAT, "clip: 1.0"),
    ],
)
def test_no_step_waits_for_the_device(losses: list[str], network: str, view: str, train: str, tmp_path: Path) -> None:
    cell = toy_cell(tmp_path, view, train)
    side, dims = (32, 2) if view == FLAT else (16, 3)
    trainers = [trainer_of(cell, loss_of(n), model_of(network, side, dims), side) for n in losses]
    assert _waits_of_a_step(trainers) == []


def test_a_step_that_reads_a_value_is_caught(tmp_path: Path) -> None:
    for losses in (["ce"], ["ce", "dice"]):
        trainers = [trainer_of(toy_cell(tmp_path), loss_of(n)) for n in losses]
        trainers[-1].update = lambda terms: float(terms["loss"])  # type: ignore[method-assign,assignment,return-value]
        with pytest.raises(DataDependentOutputException):
            _waits_of_a_step(trainers)


def _batch(size: tuple[int, ...]) -> Batch:
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (4, *size), generator=draw)
    return Batch(torch.randn(4, 1, *size, generator=draw), target, torch.ones(4, len(size)))


@pytest.mark.parametrize("size", [(24, 24), (8, 16, 16)])
def test_no_augmentation_waits_for_the_device(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers drawn on the CPU go there from pinned memory, which needs a GPU: that is left out here.

    The published augmentations decide on the CPU which samples they move, by values that it has drawn; this device has
    no way to let it.
    """
    monkeypatch.setattr(augment, "onto", lambda values, device: values.to(device, non_blocking=True))
    monkeypatch.setattr(augment, "where_used", lambda generator, device: Generator())
    how = {"rotate": 20, "scale": 0.1, "shift": 0.1, "noise": 0.1, "intensity": 0.1, "flip": True}
    seen = Seen()

    def run(moved: dict[str, Any]) -> None:
        augmented(Batch(**moved), how, torch.Generator().manual_seed(1))

    away(run, [], _given(_batch(size)), (), seen)
    assert seen == Seen()
