"""Losses in nnU-Net v2: the module that its trainer calls, and a trainer with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.errors import BenchError
from harness.integrations.adapter import Loss, LossAdapter, canonical, loss_module

__all__ = ["ForNNUNet", "nnunet_trainer", "to_nnunet"]

STATE = "loss_state"
"""Key of a checkpoint under which our trainer keeps what a loss learned."""


class ForNNUNet(LossAdapter):
    """A loss with the call of nnU-Net v2: `loss(outputs, targets)`, both lists with deep supervision.

    Args:
        weights: One for each scale with deep supervision, None without.
        **about: See `LossAdapter`.
    """

    def __init__(self, *args: Any, weights: Sequence[float] | None = None, **about: Any) -> None:
        super().__init__(*args, **about)
        self.weights = None if weights is None else tuple(float(w) for w in weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss.

        Args:
            outputs: Logits (B, C, *S), or a list of them from the finest to the coarsest.
            target: Label (B, 1, *S), or a list of those of each scale.

        Raises:
            BenchError: One is a list and the other not, their number is not that of the weights, or see
                `LossAdapter.forward`.
        """
        if isinstance(outputs, Tensor) != isinstance(target, Tensor):
            raise BenchError("expected logits and label, or a list of each; found one of them as a list.")
        logits = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        labels = [target] if isinstance(target, Tensor) else list(target)
        weights = (1.0,) if isinstance(outputs, Tensor) else self.weights or (1.0,) * len(logits)
        if not len(logits) == len(labels) == len(weights):
            raise BenchError(
                f"deep supervision has {len(weights)} weights, found {len(logits)} outputs and {len(labels)} labels."
            )
        pairs = [self._fitting(score, label) for score, label in zip(logits, labels, strict=True)]
        for score, label in pairs:
            if tuple(score.shape[2:]) != tuple(label.shape[1:]):
                raise BenchError(
                    f"logits of size {tuple(score.shape[2:])} came with a label of size {tuple(label.shape[1:])}."
                )
        return self._weighted([score for score, _ in pairs], [label for _, label in pairs], weights)


def to_nnunet(
    loss: Loss,
    *,
    spacing: float | Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    ignore_label: int | None = None,
    epochs: int | None = None,
    labels: Sequence[Tensor] = (),
    seed: int = 0,
    **facts: Any,
) -> ForNNUNet:
    """Make a loss of this package, or of a file, for nnU-Net v2's `_build_loss`.

    With deep supervision it takes the place of the loss and of nnU-Net's `DeepSupervisionWrapper` around it, so that
    distances at a coarser scale are measured with the voxels of that scale.

    Args:
        loss: See `harness.integrations.to_monai`.
        spacing: `configuration_manager.spacing`, for losses that measure distances.
        weights: Weight of each scale, as given to nnU-Net's wrapper; a scale with 0 is left away.
        ignore_label: `label_manager.ignore_label`.
        epochs: `num_epochs`, for losses that follow the progress of the training.
        labels: Training labels (*S), for losses that are prepared before the training.
        seed: Of the draws of losses that draw.
        **facts: Facts of the training data for the loss's constructor, see `harness.integrations.to_monai`.

    Raises:
        BenchError: There is no such loss, argument or fact; or it asks for what is not there.
    """
    module = loss_module(loss, facts, ignore_label)
    about: dict[str, Any] = {"ignore_index": ignore_label, "epochs": epochs, "labels": labels, "seed": seed}
    return ForNNUNet(module, spacing=spacing, weights=weights, **about)


def nnunet_trainer(
    loss: Loss,
    name: str,
    *,
    base: type | None = None,
    labels: Sequence[Tensor] = (),
    seed: int = 0,
    **facts: Any,
) -> type:
    """Make a trainer class of nnU-Net v2 that trains with a loss; everything else is nnU-Net's.

    nnU-Net finds it by its name: put `nnUNetTrainerMine = nnunet_trainer("boundary_dou", "nnUNetTrainerMine")` into a
    file of a folder that the environment variable `nnUNet_extTrainer` names, and train with `-tr nnUNetTrainerMine`.

    Classes, dimensions, spacing, ignore label, epochs and the weights of deep supervision come from the plans. Where
    the loss learns, its parameters are a group of the optimizer, whose rate falls as the network's does, and its state
    is in the checkpoint. With several processes (DDP) a loss sees its own part of the batch.

    Args:
        loss: A name, a file's class (the file by its full path, or in the working directory) or an entry of a suite; no
            module, because every fold needs one of its own.
        name: Name of the class, the same as that of the variable.
        base: Trainer to start from; `nnUNetTrainer` by default.
        labels: Training labels (*S), for losses that are prepared before the training.
        seed: Of the draws of losses that draw.
        **facts: Facts of the training data that plans do not know: class_counts, class_surface, adjacency.

    Raises:
        BenchError: nnU-Net v2 is not installed, the name is no name of a class, there is no such loss, it is a module,
            or `base` is no trainer of nnU-Net's. What the loss asks for is looked at when the training begins.
    """
    if not name.isidentifier():
        raise BenchError(f"{name!r} cannot name a class; letters, digits and underscores only.")
    if isinstance(loss, torch.nn.Module):
        raise BenchError(
            f"give the trainer the name of the loss, not a {type(loss).__name__}: each fold needs its own."
        )
    try:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    except ImportError as error:
        raise BenchError(f"nnU-Net v2 cannot be imported ({error}); install nnunetv2.") from None
    start = base or nnUNetTrainer
    if not (isinstance(start, type) and issubclass(start, nnUNetTrainer)):
        raise BenchError(f"base must be a trainer class of nnU-Net v2, found {start!r}.")
    about = {"loss": canonical(loss), "labels": labels, "seed": seed, "facts": facts}
    members = {"__doc__": f"nnU-Net v2 with the loss {loss}.", "_about": about}
    return type(name, (_Methods, start), members)


class _Methods:
    """What our trainer does otherwise than nnU-Net's; a mixin before it."""

    _about: dict[str, Any]

    def configure_optimizers(self: Any) -> Any:
        """The trainer's optimizer, and a group of its own for a loss that learns."""
        optimizer, scheduler = super().configure_optimizers()  # type: ignore[misc]
        self._ours = self._make_loss().to(self.device)  # the optimizer is made before the loss
        for group in self._ours.parameter_groups(self.initial_lr):
            if self.is_ddp:
                raise BenchError("a loss that learns cannot be trained with several processes; use one.")
            optimizer.add_param_group(group | {"share": group["lr"] / self.initial_lr})
        return optimizer, scheduler

    def _build_loss(self: Any) -> Any:
        return self._ours

    def _make_loss(self: Any) -> ForNNUNet:
        if self.label_manager.has_regions:
            raise BenchError(
                "this data set is trained on regions, with a sigmoid each; the losses here apply a softmax."
            )
        dims = len(self.configuration_manager.patch_size)
        known = {"num_classes": self.label_manager.num_segmentation_heads, "spatial_dims": dims}
        return to_nnunet(
            self._about["loss"],
            spacing=[float(s) for s in self.configuration_manager.spacing][-dims:],
            weights=self._scale_weights() if self.enable_deep_supervision else None,
            ignore_label=self.label_manager.ignore_label,
            epochs=self.num_epochs,
            labels=self._about["labels"],
            seed=self._about["seed"],
            **(known | self._about["facts"]),
        )

    def _scale_weights(self: Any) -> list[float]:
        """1/2^i normalised, without the coarsest scale, as in nnU-Net's own `_build_loss`."""
        weights = [0.5**i for i in range(len(self._get_deep_supervision_scales()))]
        # DDP refuses parameters that nothing uses, unless the network is compiled
        weights[-1] = 1e-6 if self.is_ddp and not self._do_i_compile() else 0.0
        return [w / sum(weights) for w in weights]

    def on_train_epoch_start(self: Any) -> None:
        """Tell the loss of the epoch, and its parameters their rate."""
        super().on_train_epoch_start()  # type: ignore[misc]
        self.loss.train()
        self.loss.start_epoch(self.current_epoch)
        network = self.optimizer.param_groups[0]["lr"]
        for group in self.optimizer.param_groups[1:]:
            if "share" in group:
                group["lr"] = network * group["share"]

    def on_train_epoch_end(self: Any, train_outputs: list[dict[str, Any]]) -> None:
        """Tell the loss, before a checkpoint keeps its state."""
        super().on_train_epoch_end(train_outputs)  # type: ignore[misc]
        self.loss.end_epoch()

    def on_validation_epoch_start(self: Any) -> None:
        """What a loss counts over an epoch is of the training."""
        super().on_validation_epoch_start()  # type: ignore[misc]
        self.loss.eval()

    def save_checkpoint(self: Any, filename: str) -> None:
        """As nnU-Net's; with the state of the loss, where it has one."""
        super().save_checkpoint(filename)  # type: ignore[misc]
        if self.local_rank == 0 and not self.disable_checkpointing and self.loss.state_dict():
            content = torch.load(filename, map_location="cpu", weights_only=False)  # written a moment ago
            torch.save(content | {STATE: self.loss.state_dict()}, filename)

    def load_checkpoint(self: Any, filename_or_checkpoint: Any) -> None:
        """As nnU-Net's; with the state of the loss."""
        super().load_checkpoint(filename_or_checkpoint)  # type: ignore[misc]
        if isinstance(filename_or_checkpoint, str):
            # nnU-Net's checkpoints hold more than weights, and it has just read this one in the same way
            content = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
            if content.get(STATE):
                self.loss.load_state_dict(content[STATE])
