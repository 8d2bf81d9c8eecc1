"""A small data set in the Decathlon's layout and a suite on it, made from strings."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, settings

# The same examples in each run: what has always been wrong is found by who looks for it (`make test-long`), not by a
# change of something else. A slow machine fails nothing.
SLOW = [HealthCheck.too_slow]
settings.register_profile("bench", deadline=None, database=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("random", settings.get_profile("bench"), derandomize=False)
settings.load_profile(os.environ.get("BENCH_HYPOTHESIS", "bench"))

MANIFEST = """\
name: {name}
title: Toy
licence: none
attribution: nobody
obtain: It is made by the tests.
layout: {{decathlon: {{folder: {name}}}}}
modalities: [MRI]
labels: {{disc: 1, ring: 2}}
intensity: {{zscore: volume}}
cases: [c0, c1, c2, c3, c4, c5]
splits: {{s: {{test: [c4, c5]}}}}
"""

SUITE = """\
suite: toy
data: {manifest: toy.yaml, split: s, slices: {size: [32, 32]}}
models: [unet: {width: 4, depth: 3}]
losses: [dice, ce]
seeds: 1
train: {epochs: 2, steps: 4, batch: 4, optimizer: {adamw: {lr: 3e-3}}, augment: {rotate: 10, noise: 0.1}}
metrics: [dice, hd95, asd]
"""


@dataclass
class Toy:
    """A folder with a data set, a manifest and a suite, and the command line to run it."""

    folder: Path

    def suite(self, old: str = "", new: str = "", name: str = "toy") -> Path:
        assert old in SUITE
        path = self.folder / f"{name}.yaml.suite"
        path.write_text(SUITE.replace(old, new, 1) if old else SUITE)
        return path

    def data(self, name: str = "toy") -> Path:
        rng = np.random.default_rng(7)
        (self.folder / f"{name}.yaml").write_text(MANIFEST.format(name=name))
        root = self.folder / "data" / name
        grid = np.stack(np.meshgrid(np.arange(4), np.arange(30), np.arange(28), indexing="ij"))
        for i in range(6):
            centre = np.array([1.5, 15, 14]) + rng.uniform(-3, 3, 3) * [0, 1, 1]
            distance = np.sqrt(
                (((grid - centre[:, None, None, None]) * np.array([2, 1, 1])[:, None, None, None]) ** 2).sum(0)
            )
            label = np.where(distance < 4, 1, np.where(distance < 8, 2, 0)).astype(np.uint8)
            image = (label * 40 + rng.normal(0, 12, label.shape)).astype(np.float32)
            for kind, array in (("imagesTr", image), ("labelsTr", label)):
                (root / kind).mkdir(parents=True, exist_ok=True)
                volume = sitk.GetImageFromArray(array)
                volume.SetSpacing((1.0, 1.0, 2.0))
                sitk.WriteImage(volume, str(root / kind / f"c{i}.nii.gz"))
        (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "disc", "2": "ring"}}))
        return root

    def command(self, *args: str | Path) -> list[str]:
        verb, *rest = [str(a) for a in args]
        places = ["--data", str(self.folder / "data"), "--reports", str(self.folder / "reports")]
        return [sys.executable, "-m", "harness", verb, *rest, *places]

    def bench(self, *args: str | Path, out: str = "runs", **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*self.command(*args), "--out", str(self.folder / out)]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | environment, timeout=280, cwd=self.folder
        )

    def interrupted(self, *args: str | Path, logs: int = 1, after: float = 0.5) -> subprocess.CompletedProcess[str]:
        """A command that gets Ctrl-C some seconds after so many cells have a log."""
        command = [*self.command(*args), "--out", str(self.folder / "runs")]
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: len(list((self.folder / "runs").glob("*/log.txt"))) >= logs, f"{logs} cells with a log")
            time.sleep(after)
            os.killpg(process.pid, signal.SIGINT)
            began = time.monotonic()
            output, errors = process.communicate(timeout=120)
        assert time.monotonic() - began < 29, "a process did not end by itself, it was killed after the grace of 30 s"
        assert process.returncode == 130 and "Traceback" not in errors, errors
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def records(self, out: str = "runs") -> dict[str, dict]:
        """Records by loss label (and seed, where it is not 0)."""
        found = {}
        for path in sorted((self.folder / out).glob("*/*/record.json")):
            record = json.loads(path.read_text()) | {"folder": path.parent}
            cell = record["cell"]
            found[cell["loss"]["label"] + (f"#{cell['seed']}" if cell["seed"] else "")] = record
        return found


def wait_for(holds: Callable[[], object], what: str, seconds: float = 200.0) -> None:
    """Return as soon as it holds; where it does not within so many seconds, the test fails."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.01)


@contextmanager
def started(command: list[str], **more: Any) -> Iterator[subprocess.Popen[Any]]:
    """A command as a terminal starts it, in a group of its own; none of its processes is left in the end."""
    # a test run in the background of a shell ignores Ctrl-C, and so would everything it starts
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=hears, **more)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def importable(text: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of this text, where the processes of a pool can import it, too."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    made = Toy(tmp_path)
    made.data()
    return made


@pytest.fixture(scope="session")
def found_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files under the true names of the data sets whose cases are those that are found."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(125):
        case = f"A{i:08d}"
        (folder / "NFBS_Dataset" / case).mkdir(parents=True)
        for kind in ("T1w", "T1w_brainmask"):
            (folder / "NFBS_Dataset" / case / f"sub-{case}_ses-NFB3_{kind}.nii.gz").touch()
    for part, city, count in (
        ("train", "aachen", 2975),
        ("val", "frankfurt", 267),
        ("val", "lindau", 59),
        ("val", "munster", 174),
    ):
        for kind, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            place = folder / "Cityscapes" / kind / part / city
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{city}_{i:06d}_000019_{end}.png").touch()
    return folder


@pytest.fixture(scope="session")
def toy_class() -> type[Toy]:
    """For fixtures that keep one for several tests."""
    return Toy
