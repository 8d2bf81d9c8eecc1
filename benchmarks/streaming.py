"""Training on more data than memory may hold: peak resident memory of preparing, counting and drawing batches.

Volumes of the shape of BraTS (four channels of 155×240×240) are made one by one, prepared, and drawn from; nothing of
them is kept but the cached files, which are removed at the end. Run it with room on the disk:
`python benchmarks/streaming.py --gb 8 --budget-mb 1024`.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.data.batches import TrainSet
from harness.data.layouts import Volume
from harness.data.manifest import load_manifest
from harness.data.prepare import prepare
from harness.data.stored import Stored
from harness.evaluation import fingerprint
from harness.losses.facts import label_facts

SHAPE = (155, 240, 240)
MANIFEST = """\
name: streaming
title: Noise in the shape of BraTS
licence: none
attribution: none
obtain: made by benchmarks/streaming.py
layout: {{phantom: {{shape: [4, 16, 16], seed: 1}}}}
modalities: [t1, t1ce, t2, flair]
labels: {{core: 1, oedema: 2, enhancing: 3}}
intensity: {{zscore: nonzero}}
cases: [{cases}]
splits: {{s: {{test: [c0]}}}}
"""


class Noise:
    """A volume of noise with a box of each class, another one for each case."""

    def missing(self, cases: list[str]) -> list[Path]:
        """Nothing ever is."""
        return []

    def digest(self, case: str) -> str:
        """The case's number is its content."""
        return case

    def read(self, case: str) -> Volume:
        """Make one case."""
        rng = np.random.default_rng(int(case[1:]))
        image = rng.standard_normal((4, *SHAPE), np.float32)
        image[:, :10] = 0
        label = np.zeros(SHAPE, np.uint8)
        for k in (1, 2, 3):
            start = [int(rng.integers(20, n - 60)) for n in SHAPE]
            label[tuple(slice(s, s + 40 - 10 * k) for s in start)] = k
        return Volume(image, label, (1.0, 1.0, 1.0))


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024


@contextlib.contextmanager
def measured(name: str, found: dict[str, Any]) -> Iterator[None]:
    """Seconds, and the peak resident memory of this part alone."""
    Path("/proc/self/clear_refs").write_text("5")
    began = time.monotonic()
    yield
    found[name] = {"seconds": round(time.monotonic() - began, 1), "peak_mb": round(peak_mb())}
    print(f"{name:>12}: {found[name]['seconds']:8.1f} s, peak {found[name]['peak_mb']:6d} MB", flush=True)


def run(folder: Path, gigabytes: float, budget_mb: int, batches: int, view: dict[str, Any]) -> dict[str, Any]:
    each = 4 * int(np.prod(SHAPE)) * 4
    count = max(2, round(gigabytes * 2**30 / each))
    names = [f"c{i}" for i in range(count)]
    (folder / "streaming.yaml").write_text(MANIFEST.format(cases=", ".join(names)))
    manifest = load_manifest("streaming.yaml", folder)
    found: dict[str, Any] = {
        "cases": count,
        "data_mb": round(count * each / 2**20),
        "budget_mb": budget_mb,
        "imports_mb": round(peak_mb()),
    }
    print(f"{count} cases, {found['data_mb']} MB of images, budget {budget_mb} MB, imports {found['imports_mb']} MB")
    with measured("prepare", found):
        paths = [prepare(manifest, Noise(), name, view, folder / "cache") for name in names]
    cases = [Stored(p) for p in paths]
    with measured("count", found):
        label_facts((c.label for c in cases), 4)
        fingerprint(part for c in cases for part in (c.image, c.label))
    with measured("load", found):
        data = TrainSet(cases, view, {"preset": "nnunet", "flip": True}, torch.device("cpu"), budget_mb * 2**20)
    found["resident"] = data.resident
    with measured("batches", found):
        for step in range(batches):
            data.batch(step, 2, {"repeat": 0})
    found["ms_per_batch"] = round(1000 * found["batches"]["seconds"] / batches)
    print(f"{data.resident} of {data.samples} samples resident, {found['ms_per_batch']} ms a batch of 2")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=8.0, help="size of the data set")
    parser.add_argument("--budget-mb", type=int, default=1024, help="what a training set may hold")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--slices", action="store_true", help="2D slices instead of patches of 64×96×96")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    patches = {"patches": {"size": [64, 96, 96], "foreground": 0.33}}
    view = {"slices": {"size": [240, 240], "fit": "pad", "axis": 0}} if args.slices else patches
    folder = Path(tempfile.mkdtemp(prefix="streaming-", dir=args.folder))
    try:
        found = run(folder, args.gb, args.budget_mb, args.batches, view)
    finally:
        shutil.rmtree(folder)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
