"""A training that was stopped continues bit for bit with every option that changes batches, network or loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.cell import Cell
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.losses.dice import Dice
from harness.models.build import digest
from harness.models.nnunet import NNUNet
from harness.models.unet import UNet
from harness.models.weights import load_initial
from harness.suite import load_suite
from harness.train import Hooks, Stopped, Trainer

SUITE = """\
suite: toy
data: {{manifest: phantom, split: default, {view}}}
models: [unet: {{width: 2, depth: 2}}]
losses: [dice]
train: {{epochs: 3, steps: 3, batch: 2, clip: 1.0, optimizer: {{sgd: {{lr: 1e-2, momentum: 0.9}}}}, {train}}}
"""
FLAT, DEEP = "slices: {size: [32, 32]}", "patches: {size: [16, 16, 16], foreground: 0.5}"
INIT: dict[str, Any] = {"freeze": ["encoder.0"], "lr": {"encoder": 0.1, "head": 0.5}}


def _cell(folder: Path, view: str, train: str) -> Cell:
    (folder / "toy.yaml").write_text(SUITE.format(view=view, train=train))
    return load_suite(folder / "toy.yaml").cells[0]


def _case(dims: int) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    size = (6, 32, 32) if dims == 2 else (20, 22, 24)
    label = torch.zeros(size, dtype=torch.uint8)
    label[2:, 6:16, 7:18], label[:, -3:] = 1, 255
    image = (label == 1).float() + 0.2 * torch.randn(size, generator=generator)
    image = image[:, None] if dims == 2 else image[None]
    return Prepared("c", image.numpy(), label.numpy(), label.numpy(), (1.0,) * dims, None, (), ())


def _trainer(cell: Cell, name: str, folder: Path, **kwargs: Any) -> Trainer:
    dims = 2 if "slices" in cell.data["view"] else 3
    torch.manual_seed(1)
    model: nn.Module = (
        NNUNet(1, 2, [32, 32] if dims == 2 else [16, 16, 16], dims, width=2, min_edge=2 if dims == 3 else 4)
        if name == "nnunet"
        else UNet(1, 2, spatial_dims=dims, width=2, depth=2)
    )
    if "init" in cell.model:
        weights = folder / "start.pt"
        if not weights.is_file():
            torch.save(model.state_dict(), weights)
        load_initial(model, weights, cell.model["init"])
    data = TrainSet([_case(dims)], cell.data["view"], cell.train["augment"], torch.device("cpu"))
    hooks = Hooks(stop=kwargs.pop("stop", lambda: False), validate=_validate)
    return Trainer(cell, model, Dice(), data, 2, torch.device("cpu"), hooks, **kwargs)


def _validate(model: nn.Module) -> dict[str, float]:
    """A number that falls as the weights grow: the first epochs are the best."""
    return {"dice": -float(sum(p.detach().abs().sum() for p in model.parameters()))}


@pytest.mark.parametrize(
    ("name", "view", "train", "init"),
    [
        ("nnunet", FLAT, "augment: {preset: nnunet}, schedule: poly", None),
        ("nnunet", DEEP, "augment: {preset: nnunet}, schedule: plateau", None),
        ("unet", FLAT, "augment: {preset: transunet}, schedule: poly", INIT),
        ("unet", DEEP, "augment: {preset: nnunet, flip: false}, schedule: cosine", INIT),
    ],
    ids=["nnunet 2D", "nnunet 3D", "frozen 2D", "frozen 3D"],
)
@pytest.mark.parametrize("stop_after", [2, 3])
def test_it_continues_bit_for_bit(tmp_path: Path, name: str, view: str, train: str, init: Any, stop_after: int) -> None:
    cell = _cell(tmp_path, view, train)
    if init is not None:
        cell = replace(cell, model=cell.model | {"init": init}, train=cell.train | {"select": "best:dice@val"})
    whole = _trainer(cell, name, tmp_path)
    before = {k: v.clone() for k, v in whole.model.state_dict().items()}
    state = whole.run()
    first: Trainer | None = None

    def stop() -> bool:
        return first is not None and first.progress.step >= stop_after

    path = tmp_path / "checkpoint.pt"
    first = _trainer(cell, name, tmp_path, stop=stop, checkpoint=path)
    with pytest.raises(Stopped):
        first.run()
    second = _trainer(cell, name, tmp_path, checkpoint=path)
    torch.rand(100)
    again = second.run()
    assert digest(second.model) == digest(whole.model)
    assert again.curve == state.curve and again.fingerprints == state.fingerprints
    same = {k for k, v in second.model.state_dict().items() if torch.equal(v, before[k])}
    frozen = {k for k in before if k.startswith("encoder.0.")} if init else set()
    assert frozen <= same  # with its running statistics
    assert all(k.endswith(".bias") for k in same - frozen)  # a bias before BatchNorm has no gradient
