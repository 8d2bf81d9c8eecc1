"""What the harness costs: training time of a cell over a hand-written loop with the same network, batches and CE.

Both train the same number of steps in one process, in turn, several times; the ratio of medians is printed. The bare
loop has its batches in memory and does nothing but forward, `F.cross_entropy`, backward and step. Run it with nothing
else on the machine: `make bench-overhead`, or `python benchmarks/overhead.py --device cuda`.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from harness.cell import Cell, Place
from harness.data.batches import TrainSet
from harness.data.manifest import load_manifest
from harness.losses.build import build_loss
from harness.suite import load_suite
from harness.train import Trainer
from harness.worker import Cases, _model

SUITE = """\
suite: overhead
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [{unet: {width: WIDTH}}]
losses: [ce]
train: {epochs: EPOCHS, steps: 25, batch: 8, optimizer: {adamw: {lr: 1.0e-3}}, schedule: constant}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=4, help="of 25 steps")
    parser.add_argument("--width", type=int, default=8, help="of the U-Net")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.yaml"
        path.write_text(SUITE.replace("WIDTH", str(args.width)).replace("EPOCHS", str(args.epochs)))
        compare(load_suite(path).cells[0], Place(Path(folder), None, args.device), args.rounds)


def compare(cell: Cell, place: Place, rounds: int) -> None:
    device = torch.device(place.device)
    manifest = load_manifest(cell.manifest_path, Path(cell.manifest_path).parent)
    data, _, _ = Cases(place).train_set(cell, manifest)
    augment = {"rotate": 15.0, "scale": 0.1, "shift": 0.05, "flip": False, "noise": 0.05, "intensity": 0.1}
    augmenting = replace(cell, train=cell.train | {"augment": augment})
    varied, _, _ = Cases(place).train_set(augmenting, manifest)
    classes = len(manifest.classes) + 1
    steps = cell.train["epochs"] * cell.train["steps"]
    batches = [data.batch(i, cell.train["batch"], cell.seed_base) for i in range(steps)]

    def bare() -> float:
        model = _model(cell, manifest).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model.train()
        began = _now(device)
        for batch in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch.image).logits, batch.target)
            loss.backward()
            optimizer.step()
        return _now(device) - began

    def harness(of: Cell, samples: TrainSet) -> float:
        model, loss = _model(of, manifest), build_loss(of.loss, {"num_classes": classes})
        began = _now(device)
        Trainer(of, model, loss, samples, classes, device).run()
        return _now(device) - began

    kinds = {
        "bare loop": bare,
        "cell": lambda: harness(cell, data),
        "cell, augmenting": lambda: harness(augmenting, varied),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(rounds + 1):
        for name, run in kinds.items():
            seconds = run()
            if turn:  # the first round warms up
                times[name].append(seconds)
    base = times["bare loop"]
    print(f"{steps} steps, batch {cell.train['batch']}, {cell.model_label}, 64×64, {device}, median of {rounds}")
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, base, strict=True)]
        ms = 1000 * statistics.median(values) / steps
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        print(f"{name:18} {ms:7.2f} ms/step   {statistics.median(ratios):.3f} of the bare loop ({spread})")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
