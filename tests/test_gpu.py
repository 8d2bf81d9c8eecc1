"""What can only be shown on a CUDA device; skipped where there is none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from harness.cell import Place
from harness.losses.build import build_loss
from harness.models.build import digest
from harness.models.unet import UNet
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
