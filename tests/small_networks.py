"""Small networks, losses and trainers for tests of the ways in which cells are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.cell import Cell
from harness.data.augment import Batch
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.models import MODELS
from harness.models.build import build_model
from harness.resolve import load
from harness.suite import load_suite
from harness.train import Trainer

SUITE = """\
suite: toy
data: {{manifest: phantom, split: default, {view}}}
models: [unet: {{width: 2, depth: 2}}]
losses: [dice]
train: {{epochs: 3, steps: 4, batch: 2, optimizer: {{sgd: {{lr: 1e-2, momentum: 0.9}}}}, {train}}}
"""
FLAT, DEEP = "slices: {size: [32, 32]}", "patches: {size: [16, 16, 16], foreground: 0.5}"
CLASSES = 3
TOKENS = {"hidden": 16, "layers": 2, "heads": 2, "mlp": 32}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"width": 4, "depth": 3},
    "transunet": {"width": 4, "blocks": [1, 1, 1], "decoder": [16, 8, 8, 4], "dropout": 0.0, **TOKENS},
    "shape_prior": {"width": 4, "depth": 3, "layers": 1, "heads": 2, "shapes": 4, "latent": 8},
    "jadon_unet": {"width": 4},
    "attention_unet": {"width": 4, "depth": 3},
    "nnunet": {"width": 4},
    "segresnet": {"width": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "unetr": {"width": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2},
    "swin_unetr": {"width": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 2},
}


def toy_cell(folder: Path, view: str = FLAT, train: str = "schedule: poly") -> Cell:
    (folder / "toy.yaml").write_text(SUITE.format(view=view, train=train))
    return load_suite(folder / "toy.yaml").cells[0]


def toy_case(side: int, dims: int = 2) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    size = (6, side, side) if dims == 2 else (20, side, side)
    label = torch.zeros(size, dtype=torch.uint8)
    label[2:, side // 5 : side // 2, side // 4 : side // 2], label[:, side // 2 :, side // 3 :] = 1, 2
    image = label.float() + 0.2 * torch.randn(size, generator=generator)
    image = image[:, None] if dims == 2 else image[None]
    return Prepared("c", image.numpy(), label.numpy(), label.numpy(), (1.0,) * dims, None, (), ())


def loss_of(name: str) -> nn.Module:
    cls = load(LOSSES[name])
    spec = {"name": name, "class": LOSSES[name], "args": {}, "version": cls.version}
    return build_loss(spec, {"num_classes": CLASSES, "spatial_dims": 2, "class_counts": [5, 3, 2]})


def model_of(name: str, side: int, dims: int = 2, **args: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_model(
        MODELS.get(name, name),
        SMALL.get(name, {}) | args,
        in_channels=1,
        num_classes=CLASSES,
        spatial_dims=dims,
        size=[side] * dims,
    )


def trainer_of(cell: Cell, loss: nn.Module, model: nn.Module | None = None, side: int = 32, **kwargs: Any) -> Trainer:
    dims = 2 if "slices" in cell.data["view"] else 3
    data = TrainSet([toy_case(side, dims)], cell.data["view"], cell.train["augment"], torch.device("cpu"))
    torch.manual_seed(2)
    return Trainer(cell, model or model_of("unet", side, dims), loss, data, CLASSES, torch.device("cpu"), **kwargs)


def far(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The distance of two lists of tensors over the length of the second."""
    pairs = list(zip(first, second, strict=True))
    return float(sum((a - b).square().sum() for a, b in pairs) ** 0.5 / sum(b.square().sum() for _, b in pairs) ** 0.5)


def weights_of(trainer: Trainer) -> list[Tensor]:
    found = [*trainer.trained.state_dict().values(), *trainer.loss.state_dict().values()]
    return [v.detach().double().clone() for v in found]


class Doubles:
    """The batches in double precision, in which no rounding turns a rectifier on or off."""

    def __init__(self, data: TrainSet) -> None:
        self._data, self.samples = data, data.samples

    def batch(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        batch = self._data.batch(step, size, base)
        return replace(batch, image=batch.image.double())


def doubled(trainer: Trainer) -> Trainer:
    trainer.trained.double()
    trainer.loss.double()
    trainer.data = Doubles(trainer.data)  # type: ignore[assignment]
    return trainer
