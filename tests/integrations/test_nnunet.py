"""nnU-Net v2's own trainer with our losses, and its own loss beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.errors import BenchError
from harness.integrations import nnunet_trainer, to_nnunet

WEIGHTS = (2 / 3, 1 / 3, 0.0)
REFERENCE = "dice_ce: {background: false, reduction: batch}"
CLASSES = {"background": 0, "disc": 1, "ring": 2}


def _scales(ignore: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and labels of three scales, as a trainer hands them over: labels are floats with a channel."""
    generator = torch.Generator().manual_seed(1)
    outputs = [torch.randn(2, 3, n, n, generator=generator) for n in (16, 8, 4)]
    labels = [torch.randint(0, 3, (2, 1, n, n), generator=generator).float() for n in (16, 8, 4)]
    if ignore is not None:
        for label in labels:
            label[:, :, :2] = ignore
    return outputs, labels


@pytest.mark.parametrize("ignore", [None, 3])
def test_dice_ce_is_nnunets_own_up_to_the_constant(nnunet: ModuleType, ignore: int | None) -> None:
    theirs = nnunet.DeepSupervisionWrapper(
        nnunet.DC_and_CE_loss(
            {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            ignore_label=ignore,
            dice_class=nnunet.MemoryEfficientSoftDiceLoss,
        ),
        WEIGHTS,
    )
    ours = to_nnunet(REFERENCE, weights=WEIGHTS, ignore_label=ignore)
    outputs, labels = _scales(ignore)
    assert float(ours(outputs, labels)) - 1 == pytest.approx(float(theirs(outputs, labels)), abs=1e-6)


def test_distances_at_a_scale_are_in_its_voxels() -> None:
    outputs, labels = _scales()
    loss = to_nnunet("boundary", spacing=(3.0, 1.0), weights=WEIGHTS)
    each = [
        float(to_nnunet("boundary", spacing=(3.0 * f, 1.0 * f))(out, label))
        for out, label, f in zip(outputs, labels, (1, 2, 4), strict=True)
    ]
    assert float(loss(outputs, labels)) == pytest.approx(2 / 3 * each[0] + 1 / 3 * each[1])
    # without deep supervision (a network in validation): tensors
    assert float(loss(outputs[0], labels[0])) == pytest.approx(each[0])


def test_lists_that_do_not_fit_are_refused() -> None:
    outputs, labels = _scales()
    loss = to_nnunet("dice", weights=WEIGHTS)
    with pytest.raises(BenchError, match="found one of them as a list"):
        loss(outputs, labels[0])
    with pytest.raises(BenchError, match="3 weights, found 2 outputs and 2 labels"):
        loss(outputs[:2], labels[:2])
    with pytest.raises(BenchError, match=r"logits of size \(16, 16\) came with a label of size \(8, 8\)"):
        loss(outputs, [labels[1], labels[1], labels[2]])


# -- the real trainer

PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_Toy",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [1.0, 2.0, 2.0],
    "original_median_shape_after_transp": [1, 40, 40],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {},
    "configurations": {
        "2d": {
            "data_identifier": "toy_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [32, 32],
            "median_image_size_in_voxels": [40.0, 40.0],
            "spacing": [2.0, 2.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {},
            "resampling_fn_seg_kwargs": {},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {},
            "batch_dice": True,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 4,
                    "features_per_stage": [4, 4, 8, 8],
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3]] * 4,
                    "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
                    "n_conv_per_stage": [1] * 4,
                    "n_conv_per_stage_decoder": [1] * 3,
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
    },
}


@pytest.fixture
def toy_nnunet(nnunet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders as nnU-Net leaves them after its preprocessing, with three cases."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

    monkeypatch.setattr(nnUNetDatasetNumpy, "unpack_dataset", staticmethod(lambda *_, **__: None))
    base = tmp_path / "preprocessed" / PLANS["dataset_name"]
    (base / "toy_2d").mkdir(parents=True)
    (base / "dataset_fingerprint.json").write_text("{}")
    (base / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    _write(base / "toy_2d")
    return base


def _write(folder: Path, ignored: int | None = None) -> None:
    """Three cases in the form of nnU-Net's preprocessing; the upper rows of the label are ignored where asked."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    for name in "abc":
        away = np.hypot(rows - rng.uniform(15, 25), columns - rng.uniform(15, 25))
        seg = np.where(away < 5, 1, np.where(away < 10, 2, 0)).astype(np.int16)[None, None]
        data = (seg + rng.normal(0, 0.3, seg.shape)).astype(np.float32)
        if ignored is not None:
            seg[:, :, :8] = ignored
        places: dict[Any, Any] = {c: np.argwhere(seg == c) for c in (1, 2)}
        places[(-1, 0, 1, 2)] = np.argwhere(seg < 3)
        nnUNetDatasetNumpy.save_case(data, seg, {"class_locations": places}, str(folder / name))


def _trainer(made: type, labels: dict[str, Any] | None = None, epochs: int = 2) -> Any:
    about: dict[str, Any] = {
        "labels": labels or CLASSES,
        "channel_names": {"0": "MRI"},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    plans = json.loads(json.dumps(PLANS)) | {"continue_training": False}
    about |= {"regions_class_order": [1, 2]} if "whole" in about["labels"] else {}
    trainer: Any = made(plans, "2d", 0, about, torch.device("cpu"))
    trainer.logger.plot_progress_png = lambda folder: None  # seconds each
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 6, 1
    return trainer


@pytest.mark.parametrize("ignore", [False, True])
def test_nnunets_trainer_trains_with_a_loss_of_distances_and_a_schedule(toy_nnunet: Path, ignore: bool) -> None:
    loss = {"sum": [{"loss": "dice_ce", "weight": {"linear": [1, 0.5]}}, {"loss": "boundary", "weight": 0.01}]}
    made = nnunet_trainer(loss, "nnUNetTrainerToy")
    if ignore:
        _write(toy_nnunet / "toy_2d", ignored=3)
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = _trainer(made, CLASSES | ({"ignore": 3} if ignore else {}))
    trainer.run_training()
    adapter = trainer.loss
    assert adapter.spacing == (2.0, 2.0) and adapter.weights == pytest.approx(WEIGHTS)
    assert adapter.ignore_index == (3 if ignore else None)
    assert adapter._epoch == 1 and set(adapter.terms) >= {"loss", "dice_ce", "boundary"}
    losses = [trainer.logger.get_value("train_losses", step=epoch) for epoch in (0, 1)]
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    saved = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert saved["trainer_name"] == "nnUNetTrainerToy"


def test_our_dice_ce_trains_nnunet_to_its_own_weights(nnunet: ModuleType, toy_nnunet: Path) -> None:
    """The same loss, theirs and ours: the same training."""
    found = []
    for made in (nnunet.nnUNetTrainer, nnunet_trainer(REFERENCE, "nnUNetTrainerOurs")):
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = _trainer(made, epochs=1)
        trainer.run_training()
        found.append({k: v.detach().clone() for k, v in trainer.network.state_dict().items()})
    theirs, ours = found
    moved = 0
    for name, value in theirs.items():
        assert torch.allclose(value, ours[name], rtol=1e-3, atol=1e-4), name
        moved += int((value != value.flatten()[0]).any())
    assert moved > 5


def test_what_a_loss_learns_is_trained_saved_and_restored(toy_nnunet: Path) -> None:
    made = nnunet_trainer("t_loss", "nnUNetTrainerT")
    trainer = _trainer(made)
    trainer.initialize()
    before = trainer.loss.loss.log_nu.item()
    trainer.run_training()
    after = trainer.loss.loss.log_nu.item()
    assert after != before
    network, own = trainer.optimizer.param_groups
    assert own["lr"] == pytest.approx(network["lr"] * own["share"]) and own["weight_decay"] == 0
    again = _trainer(made)
    again.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert again.loss.loss.log_nu.item() == after


def test_nnunet_finds_a_trainer_in_a_file(nnunet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from harness.integrations import nnunet_trainer\n\n"
        'nnUNetTrainerMine = nnunet_trainer("dice", "nnUNetTrainerMine")\n'
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    # as nnU-Net looks for a trainer that is not among its own
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found = recursive_find_python_class(
        str(tmp_path), "nnUNetTrainerMine", None, base_folder=str(tmp_path), cleanup_imports_from_base_folder=True
    )
    assert issubclass(found, nnunet.nnUNetTrainer) and found.__name__ == "nnUNetTrainerMine"


def test_what_nnunet_cannot_do_is_one_sentence(nnunet: ModuleType, toy_nnunet: Path) -> None:
    with pytest.raises(BenchError, match="'my trainer' cannot name a class"):
        nnunet_trainer("dice", "my trainer")
    with pytest.raises(BenchError, match="not a CrossEntropyLoss: each fold needs its own"):
        nnunet_trainer(nn.CrossEntropyLoss(), "nnUNetTrainerX")
    with pytest.raises(BenchError, match=r"unknown loss 'dise' \(did you mean 'dice'\?\)"):
        nnunet_trainer("dise", "nnUNetTrainerX")
    with pytest.raises(BenchError, match="base must be a trainer class of nnU-Net v2"):
        nnunet_trainer("dice", "nnUNetTrainerX", base=dict)
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    trainer = _trainer(nnunet_trainer("dice", "nnUNetTrainerX"), regions)
    with pytest.raises(BenchError, match="trained on regions, with a sigmoid each"):
        trainer.initialize()
    trainer = _trainer(nnunet_trainer("pixel_triplet", "nnUNetTrainerX"))
    with pytest.raises(BenchError, match="PixelTriplet needs 'embedding'"):
        trainer.initialize()
