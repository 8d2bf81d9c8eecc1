"""What can only be shown on a CUDA device; skipped where there is none."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from harness.cell import Place
from harness.check.scenes import facts_of, label
from harness.fused import Group, train_one
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.losses.calls import needs_of
from harness.losses.needs import MODEL_NEEDS
from harness.models import MODELS
from harness.models.build import build_model, digest
from harness.models.unet import UNet
from harness.plan import Entry
from harness.resolve import load
from harness.runner import run_cells
from harness.suite import load_suite
from harness.train import Trainer
from harness.worker import Cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SUITE = """\
suite: gpu
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 8}]
losses: [ce, dice, focal, tversky, focal_tversky, jaccard, lovasz, dice_ce]
train: {epochs: 2, steps: 5, batch: 8, optimizer: {adamw: {lr: 1e-3}}, cases: 2,
        augment: {rotate: 10, scale: 0.1, shift: 0.1, noise: 0.1, intensity: 0.1}}
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("gpu") / "gpu.yaml"
    path.write_text(SUITE)
    return {c.loss_label: c for c in load_suite(path).cells}


def _trainer(cell, folder: Path) -> Trainer:
    from harness.data.manifest import load_manifest

    place = Place(folder, None, "cuda")
    manifest = load_manifest(cell.manifest_path, Path(cell.manifest_path).parent)
    data, _, _ = Cases(place).train_set(cell, manifest)
    torch.manual_seed(0)
    model: nn.Module = UNet(1, 9, width=8)
    return Trainer(cell, model, build_loss(cell.loss, {"num_classes": 9}), data, 9, torch.device("cuda"))


@pytest.mark.parametrize("loss", ["ce", "dice", "focal", "tversky", "focal_tversky", "jaccard", "lovasz", "dice_ce"])
def test_a_step_never_waits_for_the_device(cells, tmp_path: Path, loss: str) -> None:
    trainer = _trainer(cells[loss], tmp_path)
    trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", ["ce", "dice", "lovasz"])
def test_two_trainings_end_at_the_same_weights(cells, tmp_path: Path, loss: str) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        digests = []
        for _ in range(2):
            trainer = _trainer(cells[loss], tmp_path)
            trainer.run()
            digests.append(digest(trainer.model))
    finally:
        torch.use_deterministic_algorithms(False)
    assert digests[0] == digests[1]


def test_a_fused_step_never_waits_for_the_device(cells, tmp_path: Path) -> None:
    group = Group([_trainer(cells[loss], tmp_path) for loss in ("ce", "dice", "lovasz")])
    group.begin()
    group.step()
    group.step()  # the first step may lack memory, and keeps copies for that
    torch.cuda.set_sync_debug_mode("error")
    try:
        group.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_evaluation_beside_training_changes_no_bit(cells, tmp_path: Path) -> None:
    """Two cells, alone and with a process more than trains at once."""
    entries = [Entry(cells[loss], "missing") for loss in ("ce", "dice")]
    found = []
    for name, devices, at_once in (("plain", ["cuda:0"], None), ("beside", ["cuda:0"] * 2, {"cuda:0": 1})):
        place = Place(tmp_path / name, None)
        records = run_cells(entries, place, devices, Console(quiet=True), at_once=at_once)
        assert [r.status for r in records] == ["ok", "ok"], [r.message for r in records]
        found.append({r.eval_id: (r.weights, r.fingerprints, r.files) for r in records})
    assert found[0] == found[1]


def _twice(make: Callable[[], Trainer]) -> tuple[list[str], set[str]]:
    """Digests after two trainings with deterministic algorithms, and the operations that have no such form."""
    digests = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for _ in range(2):
                trainer = make()
                trainer.run()
                digests.append(digest(trainer.model))
    finally:
        torch.use_deterministic_algorithms(False)
    said = [str(w.message) for w in heard]
    return digests, {m.split()[0] for m in said if "does not have a deterministic implementation" in m}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_deterministic_or_the_operation_is_named(cells, tmp_path: Path, name: str) -> None:
    def make() -> Trainer:
        trainer = _trainer(cells["ce"], tmp_path)
        version = load(LOSSES[name]).version
        spec = {"name": name, "class": LOSSES[name], "args": {}, "version": version}
        loss = build_loss(spec, facts_of(label(2)) | {"num_classes": 9})
        torch.manual_seed(0)
        return Trainer(trainer.cell, UNet(1, 9, width=8), loss, trainer.data, 9, torch.device("cuda"))

    spec = {"name": name, "class": LOSSES[name], "args": {}, "version": 0}
    required, _ = needs_of(build_loss(spec, facts_of(label(2))))
    if required & (MODEL_NEEDS - {"embedding", "classify"}):
        pytest.skip("asks for what a U-Net does not give")
    digests, without = _twice(make)
    assert digests[0] == digests[1] or without, "differs, and torch names no operation"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_deterministic_or_the_operation_is_named(cells, tmp_path: Path, name: str) -> None:
    def make() -> Trainer:
        trainer = _trainer(cells["ce"], tmp_path)
        torch.manual_seed(0)
        model = build_model(MODELS[name], {}, in_channels=1, num_classes=9, spatial_dims=2, size=[64, 64])
        return Trainer(trainer.cell, model, build_loss(cells["ce"].loss, {}), trainer.data, 9, torch.device("cuda"))

    digests, without = _twice(make)
    assert digests[0] == digests[1] or without, "differs, and torch names no operation"


def test_a_compiled_training_is_that_of_the_plain_network(cells, tmp_path: Path) -> None:
    ours, again, plain = (_trainer(cells["dice_ce"], tmp_path) for _ in range(3))
    train_one(ours, "compiled")
    train_one(again, "compiled")
    plain.run()
    assert ours.engine == {"engine": "compiled"} and digest(ours.model) == digest(again.model)
    values = [[row["loss"] for row in t.progress.curve] for t in (ours, plain)]
    assert values[0] == pytest.approx(values[1], rel=1e-2)
