"""Every loss of the table: its certificate, its golden numbers, and a training in the harness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.losses as package
from harness.check import check_loss
from harness.check.scenes import CLASSES, evaluate, facts_of, label, scene
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.losses.calls import needs_of
from harness.losses.dice import Dice
from harness.losses.needs import HEADS
from harness.models.shape_prior import ShapePriorNet
from harness.models.unet import UNet
from harness.resolve import load
from harness.suite import load_suite
from harness.train import Trainer

# {"name@version": [value in 2D, norm of the gradient, value in 3D]} on the scene `degraded`
GOLDEN: dict[str, list[float]] = json.loads(Path(__file__).with_name("golden.json").read_text())
every = pytest.mark.parametrize("name", LOSSES)


def spec_of(name: str) -> dict[str, Any]:
    return {"name": name, "class": LOSSES[name], "args": {}, "version": load(LOSSES[name]).version}


@every
def test_every_loss_passes_its_check(name: str) -> None:
    certificate = check_loss(spec_of(name))
    assert certificate.passed, "\n".join(f"{line.name}: {line.text}" for line in certificate.failed)


def fixed(name: str, target: torch.Tensor) -> torch.nn.Module:
    """The loss; what it would prepare by training, which differs in the last bits between processors, is a sine."""
    loss = build_loss(spec_of(name), facts_of(target))
    if hasattr(loss, "prepare"):
        state = {
            k: torch.sin(torch.arange(v.numel()).double()).reshape(v.shape).to(v) / 4
            if v.is_floating_point()
            else v + 1
            for k, v in loss.state_dict().items()
        }
        loss.load_state_dict({k: v.bool() if loss.state_dict()[k].dtype == torch.bool else v for k, v in state.items()})
    return loss


def numbers(name: str) -> list[float]:
    flat, deep = (evaluate(fixed(name, label(d)), scene("degraded", d)) for d in (2, 3))
    size = sum(float(g.square().sum()) for g in flat.leaves.values()) ** 0.5
    return [flat.value, size, deep.value]


@every
def test_golden_numbers(name: str) -> None:
    """A number that moves has a new `version` in its class, and a new line here: old results stay what they were."""
    key, found = f"{name}@{spec_of(name)['version']}", numbers(name)
    assert key in GOLDEN, f"{key} has no golden numbers; add {json.dumps(key)}: {json.dumps(found)}"
    assert found == pytest.approx(GOLDEN[key], rel=1e-6, abs=1e-12), f"{name} gives other numbers: raise its version"


def test_golden_numbers_are_of_losses_in_the_table() -> None:
    assert {key.partition("@")[0] for key in GOLDEN} == set(LOSSES)


def test_a_changed_number_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dice, "forward", lambda self, logits, target: logits.mean())
    with pytest.raises(AssertionError, match="raise its version"):
        test_golden_numbers("dice")
    monkeypatch.setattr(Dice, "version", 99)
    with pytest.raises(AssertionError, match="no golden numbers"):
        test_golden_numbers("dice")


@every
def test_memory_layout_does_not_matter(name: str) -> None:
    given = scene("degraded")
    other = replace(given, logits=given.logits.to(memory_format=torch.channels_last))
    loss = fixed(name, given.target)
    first, second = evaluate(loss, given), evaluate(loss, other)
    assert second.value == pytest.approx(first.value, rel=1e-9)


SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [32, 28]}}
models: [unet: {width: 4, depth: 2}]
losses: [dice]
train: {epochs: 2, steps: 2, batch: 2, optimizer: {adamw: {lr: 1e-2}}}
"""


def _trainer(folder: Path, loss: torch.nn.Module, shape: bool = False) -> Trainer:
    (folder / "toy.yaml").write_text(SUITE)
    cell = load_suite(folder / "toy.yaml").cells[0]
    torch.manual_seed(0)
    classes = label(2).to(torch.uint8)
    image = classes[:, None].float() + 0.3 * torch.randn(2, 1, 32, 28)
    case = Prepared("c", image.numpy(), classes.numpy(), classes.numpy(), (1.0, 1.0), None, (), ())
    data = TrainSet([case], cell.data["view"], cell.train["augment"], torch.device("cpu"))
    small = {"width": 4, "depth": 2}
    model = ShapePriorNet(1, CLASSES, layers=1, heads=2, **small) if shape else UNet(1, CLASSES, **small)
    return Trainer(cell, model, loss, data, CLASSES, torch.device("cpu"))


@every
def test_every_loss_trains_in_the_harness(name: str, tmp_path: Path) -> None:
    """Two epochs with a small network: everything that the loss asks for is supplied."""
    loss = fixed(name, label(2))
    required, _ = needs_of(loss)
    trainer = _trainer(tmp_path, loss, shape=bool(required & {"attention", "shape_prior", "token_maps"}))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    state = trainer.run()
    assert not state.diverged and len(state.curve) == 2
    moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert moved, "no weight of the network moved"
    assert bool(set(HEADS) & required) == (len(trainer.trained) == 2)


def test_classes_of_the_package_come_by_name_and_others_do_not() -> None:
    assert {load(target) for target in LOSSES.values()} == {
        getattr(package, target.partition(":")[2]) for target in LOSSES.values()
    }
    assert "Dice" in dir(package)
    with pytest.raises(AttributeError, match="Dcie"):
        _ = package.Dcie


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
def test_cuda_agrees_and_repeats_with_deterministic_algorithms(name: str) -> None:
    given = scene("degraded", dtype=torch.float32)
    expected = evaluate(fixed(name, given.target), given)
    moved = fixed(name, given.target).cuda()
    there = replace(
        given,
        target=given.target.cuda(),
        logits=given.logits.cuda(),
        spacing=given.spacing.cuda(),
        extra={k: v.cuda() for k, v in given.extra.items()},
    )
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one, two = evaluate(moved, there), evaluate(moved, there)
    finally:
        torch.use_deterministic_algorithms(before)
    assert one.value == two.value and all(torch.equal(one.leaves[k], two.leaves[k]) for k in one.leaves)
    if "generator" not in set().union(*needs_of(moved)):  # which draws other numbers on another device
        assert one.value == pytest.approx(expected.value, rel=1e-4)
