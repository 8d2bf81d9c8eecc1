"""Images per second and cells per hour: a loop as published, a cell of ours, cells trained as one, and the floor.

Six ways to train the same networks, in turn within every round, so that the machine's moods meet all of them:

- published: a `DataLoader` with workers that rotates and flips each sample with scipy, `.item()` at every step, no
  channels last (the style of the trainers that papers release);
- cell: one cell of this harness, with the augmentation that is nearest;
- compiled: the same with a compiled network (`bench run --engine compiled`), compiled in the warm-up;
- fused: K cells that differ in their loss (`bench run --engine fused`); images count once for each of them;
- free: on a GPU alone, a cell without the deterministic algorithms that a worker always asks for: what these cost;
- floor: forward, backward and optimizer on one batch that is already there. Nothing can be faster on this device.

What bounds a row is measured, too: `data` where drawing the batches alone takes more than half of a step; `fixed` where
half the batch takes more than 80 % of the time of the floor, so that a step costs what it costs whatever is in it: on a
GPU its launches, on a CPU the weights; else `compute or memory`, which this script cannot tell apart.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py              # small sizes on a CPU, full sizes on a GPU
    python benchmarks/throughput.py --device cuda:0 --only unet --batch 24
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the workers'

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import _now
from scipy import ndimage
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from harness.cell import Cell
from harness.compiled import compiled_pass
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.fused import Group
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.machine import settle
from harness.models import MODELS
from harness.models.build import build_model
from harness.resolve import load
from harness.suite import load_suite
from harness.train import Trainer

CLASSES = 9
FUSED = ("ce", "dice", "focal", "tversky", "jaccard", "lovasz")
SUITE = """\
suite: throughput
data: {{manifest: phantom, split: default, {view}}}
models: [unet]
losses: [ce]
train: {{epochs: 100000, steps: 1000, batch: {batch}, optimizer: {{sgd: {{lr: 1e-3, momentum: 0.9}}}},
        precision: {precision}, augment: {augment}}}
"""
TINY = {"width": 8, "blocks": [1, 1, 1], "hidden": 32, "layers": 2, "heads": 2, "mlp": 64, "decoder": [16, 8, 8, 4]}


@dataclass(frozen=True)
class Size:
    """What is measured: a network, the side of its input, its dimensions and its batch."""

    model: str
    args: dict[str, Any]
    side: int
    dims: int
    batch: int

    def __str__(self) -> str:
        return f"{self.model}, {self.side}{'²' if self.dims == 2 else '³'}, batch {self.batch}"


FULL = [Size(m, {}, 224, 2, b) for m in ("unet", "transunet") for b in (8, 24)] + [Size("nnunet", {}, 128, 3, 2)]
SMALL = [
    Size("unet", {"width": 8}, 64, 2, 8),
    Size("transunet", TINY, 64, 2, 8),
    Size("nnunet", {"width": 8}, 32, 3, 2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action=argparse.BooleanOptionalAction, help="small sizes (default on a CPU)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    parser.add_argument("--workers", type=int, default=1, help="of the published loop's DataLoader")
    parser.add_argument("--cell-steps", type=int, default=10_000, help="of a training, for cells per hour")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"))
    parser.add_argument("--only", help="one network")
    parser.add_argument("--batch", type=int, help="one batch size")
    args = parser.parse_args()
    device = torch.device(args.device)
    settle(args.device)
    small = device.type == "cpu" if args.small is None else args.small
    sizes = [s for s in (SMALL if small else FULL) if args.only in (None, s.model) and args.batch in (None, s.batch)]
    print(f"{args.device}, {args.precision}, {args.rounds} rounds of {args.steps} steps, K = {len(FUSED)}")
    print(f"cells per hour: of trainings of {args.cell_steps} steps, without evaluation\n")
    print(
        "| network | way | ms a step | images/s | cells/h | of the floor | bounded by |\n|---|---|--:|--:|--:|--:|---|"
    )
    for size in sizes:
        measure(size, device, args)


def measure(size: Size, device: torch.device, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cell = _cell(Path(folder), size, args.precision)
        data = TrainSet(_cases(size), cell.data["view"], cell.train["augment"], device)
        published, drawing = _published(size, device, args), _drawing(data, cell)
        ways: dict[str, tuple[int, Callable[[], None]]] = {
            "published": (1, published),
            "cell": (1, _alone(size, cell, data, device)),
            "compiled": (1, _alone(size, cell, data, device, compiled=True)),
            "fused": (len(FUSED), _fused(size, cell, data, device)),
            "floor": (1, _floor(size, cell, data, device)),
            "half": (1, _floor(size, cell, data, device, half=True)),
            "drawing": (1, drawing),
        }
        if device.type == "cuda":
            ways["free"] = (1, _free(_alone(size, cell, data, device), device))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn, (name, (_, step)) in itertools.product(range(args.rounds + 1), ways.items()):
            if turn == 0:  # the first round warms up
                step()
                continue
            began = _now(device)
            for _ in range(args.steps):
                step()
            times[name].append((_now(device) - began) / args.steps)
    half, drawn = statistics.median(times.pop("half")), statistics.median(times.pop("drawing"))
    floor = statistics.median(times["floor"])
    for name, values in times.items():
        cells, seconds = ways[name][0], statistics.median(values)
        ratio = statistics.median(v / cells / f for v, f in zip(values, times["floor"], strict=True))
        if name == "published":  # its batches are made in other processes: what they do not hide is the rest
            bound = "data" if seconds > 2 * floor else "as the floor"
        elif name != "floor" and drawn > seconds / 2:
            bound = "data"
        else:
            bound = "fixed" if half > 0.8 * floor else "compute or memory"
        rate = cells * size.batch / seconds
        hour = 3600 * cells / (seconds * args.cell_steps)
        print(
            f"| {size} | {name} | {1000 * seconds:.1f} | {rate:.1f} | {hour:.2f} | {ratio:.2f} | {bound} |", flush=True
        )


def _cell(folder: Path, size: Size, precision: str) -> Cell:
    sides = [size.side] * size.dims
    view = f"slices: {{size: {sides}, fit: resize}}" if size.dims == 2 else f"patches: {{size: {sides}}}"
    augment = "{rotate: 15, flip: true}"
    (folder / "suite.yaml").write_text(SUITE.format(view=view, batch=size.batch, precision=precision, augment=augment))
    return load_suite(folder / "suite.yaml").cells[0]


def _cases(size: Size) -> list[Prepared]:
    """Noise with discs of every class: what is in the images costs nothing."""
    rng = np.random.default_rng(0)
    shape = (4 * size.batch, size.side, size.side) if size.dims == 2 else (size.side + 8,) * 3
    label = rng.integers(0, CLASSES, [max(1, n // 8) for n in shape]).astype(np.uint8)
    for axis, n in enumerate(shape):
        label = np.take(label, np.arange(n) * label.shape[axis] // n, axis)
    image = (label + rng.normal(0, 1, shape)).astype(np.float32)
    image = image[:, None] if size.dims == 2 else image[None]
    return [Prepared("c", image, label, label, (1.0,) * size.dims, None, (), ())]


def _model(size: Size) -> nn.Module:
    torch.manual_seed(0)
    sides = [size.side] * size.dims
    return build_model(
        MODELS[size.model], size.args, in_channels=1, num_classes=CLASSES, spatial_dims=size.dims, size=sides
    )


def _trainer(size: Size, cell: Cell, data: TrainSet, device: torch.device, name: str) -> Trainer:
    spec = {"name": name, "class": LOSSES[name], "args": {}, "version": load(LOSSES[name]).version}
    loss = build_loss(spec, {"num_classes": CLASSES, "spatial_dims": size.dims})
    return Trainer(cell, _model(size), loss, data, CLASSES, device)


def _alone(size: Size, cell: Cell, data: TrainSet, device: torch.device, compiled: bool = False) -> Callable[[], None]:
    trainer = _trainer(size, cell, data, device, "ce")
    trainer.begin()
    if compiled:
        trainer.forward = compiled_pass(trainer)
    return trainer.step


def _free(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def free() -> None:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        try:
            step()
        finally:
            settle(str(device))

    return free


def _fused(size: Size, cell: Cell, data: TrainSet, device: torch.device) -> Callable[[], None]:
    group = Group([_trainer(size, cell, data, device, name) for name in FUSED])
    group.begin()
    return group.step


def _drawing(data: TrainSet, cell: Cell) -> Callable[[], None]:
    steps = itertools.count()
    return lambda: void(data.batch(next(steps), cell.train["batch"], cell.seed_base))


def void(_: object) -> None:
    """Nothing."""


def _floor(size: Size, cell: Cell, data: TrainSet, device: torch.device, half: bool = False) -> Callable[[], None]:
    trainer = _trainer(size, cell, data, device, "ce")
    batch = data.batch(0, max(1, size.batch // 2) if half else size.batch, cell.seed_base)
    image = batch.image.contiguous(memory_format=trainer.layout)
    model = trainer.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        with trainer.precision():
            logits = model(image).logits
        loss = F.cross_entropy(logits, batch.target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples that are turned and flipped one by one, in numpy and scipy."""

    def __init__(self, size: Size) -> None:
        case = _cases(size)[0]
        self.image = case.image[:, 0] if size.dims == 2 else case.image
        self.label = case.label if size.dims == 2 else case.label[None]
        self.size = size

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pick = index % len(self.image)
        cut = tuple(slice(self.size.side) for _ in range(self.size.dims))
        image, label = self.image[pick][cut], self.label[pick][cut]
        rng = np.random.default_rng(index)
        if rng.random() < 0.5:
            angle = rng.uniform(-20, 20)
            image = ndimage.rotate(image, angle, axes=(-2, -1), order=1, reshape=False)
            label = ndimage.rotate(label, angle, axes=(-2, -1), order=0, reshape=False)
        if rng.random() < 0.5:
            axis = int(rng.integers(self.size.dims))
            image, label = np.flip(image, axis), np.flip(label, axis)
        return torch.from_numpy(image.copy()[None]), torch.from_numpy(label.astype(np.int64))


def _published(size: Size, device: torch.device, args: argparse.Namespace) -> Callable[[], None]:
    model = _model(size).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loader = DataLoader(
        Samples(size), size.batch, num_workers=args.workers, pin_memory=device.type == "cuda", drop_last=True
    )
    batches: Iterator[Any] = iter(loader)
    seen: list[float] = []

    def step() -> None:
        image, label = next(batches)
        image, label = image.to(device), label.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            logits = model(image).logits
        loss = F.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())

    return step


if __name__ == "__main__":
    main()
