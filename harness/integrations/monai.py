"""Losses in MONAI: for `SupervisedTrainer`, `DeepSupervisionLoss`'s outputs and plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.deep_supervision import downsampled
from harness.errors import BenchError
from harness.integrations.adapter import Loss, LossAdapter, loss_module

__all__ = ["ForMonai", "to_monai"]


class ForMonai(LossAdapter):
    """A loss with the call of MONAI's own: `loss(logits, label)`, the label with a channel axis.

    Also a handler: in `train_handlers=[loss]` of a MONAI engine it hears of the epochs by itself.

    Args:
        meta: Take the spacing from the affine of the label, a MetaTensor.
        **about: See `LossAdapter`.
    """

    def __init__(self, *args: Any, meta: bool = False, **about: Any) -> None:
        self._meta = meta  # before the checks of what is known
        super().__init__(*args, **about)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss; that of several scales is the mean weighted with 1/2^i from the finest on.

        Args:
            outputs: Logits (B, C, *S), or a list of them from the finest to the coarsest.
            target: Label (B, 1, *S) of the finest.

        Raises:
            BenchError: See `LossAdapter.forward`.
        """
        if not isinstance(target, Tensor):
            raise BenchError(f"expected one label (B, 1, *S), the finest, found {type(target).__name__}.")
        several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if not several:
            raise BenchError("expected logits, or a list of them from the finest to the coarsest, found an empty list.")
        if self._meta:
            self.spacing = None
            self._of_label = _spacings(target)
        logits, label = self._fitting(several[0], target)
        scores = [logits, *(out.as_subclass(Tensor) for out in several[1:])]
        if tuple(logits.shape[2:]) != tuple(label.shape[1:]):
            raise BenchError(
                f"the finest logits have the size {tuple(logits.shape[2:])} and the label {tuple(label.shape[1:])}."
            )
        targets = [label, *(downsampled(label, part.shape[2:]) for part in scores[1:])]
        weights = [0.5**i for i in range(len(scores))]
        return self._weighted(scores, targets, [w / sum(weights) for w in weights])

    def attach(self, engine: Any) -> None:
        """Follow the epochs of an ignite engine."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: self.start_epoch(e.state.epoch - 1))
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self.end_epoch())

    def _knows_spacing(self) -> bool:
        return self._meta or super()._knows_spacing()

    def _spacing_of(self, target: Tensor) -> Tensor | None:
        return self._of_label.to(target.device) if self._meta else super()._spacing_of(target)


def to_monai(
    loss: Loss,
    *,
    spacing: float | Sequence[float] | str | None = None,
    ignore_index: int | None = None,
    epochs: int | None = None,
    labels: Sequence[Tensor] = (),
    seed: int = 0,
    **facts: Any,
) -> ForMonai:
    """Make a loss of this package, or of a file, for MONAI.

    Args:
        loss: `"dice"`, `"my_loss.py:MyLoss"`, `"tversky: {fn_weight: 0.7}"`, an entry of a suite's `losses`, or a
            module.
        spacing: Size of a voxel along each spatial axis of the tensors (MONAI's order is x, y, z), in mm; one number
            for all; or "meta", from the affine of every label, a MetaTensor. Needed by losses that measure distances.
        ignore_index: The value of ignored voxels in the labels, None where there is none.
        epochs: Epochs of the training, for losses that follow its progress.
        labels: Training labels (*S), for losses that are prepared before the training.
        seed: Of the draws of losses that draw.
        **facts: Facts of the training data for the loss's constructor: num_classes, spatial_dims, class_counts,
            class_surface, adjacency (`harness.losses.facts.label_facts` counts the last three).

    Returns:
        A module: `value = loss(logits, label)`. Where the loss learns, the optimizer takes its `parameter_groups(lr)`.

    Raises:
        BenchError: There is no such loss, argument or fact; or it asks for what is not there.
    """
    if isinstance(spacing, str) and spacing != "meta":
        raise BenchError(f"spacing must be numbers or 'meta', found {spacing!r}.")
    meta = isinstance(spacing, str)
    module = loss_module(loss, facts, ignore_index)
    sizes = None if isinstance(spacing, str) else spacing
    about: dict[str, Any] = {"ignore_index": ignore_index, "epochs": epochs, "labels": labels, "seed": seed}
    return ForMonai(module, meta=meta, spacing=sizes, **about)


def _spacings(label: Tensor) -> Tensor:
    """Spacing (B, D) of a batch of MetaTensors: the lengths of the columns of its affines.

    Raises:
        BenchError: The label has no affine.
    """
    affine = getattr(label, "affine", None)
    if not isinstance(affine, Tensor):
        raise BenchError("spacing='meta' takes a MetaTensor, and the label is a plain tensor; give the numbers.")
    dims = label.ndim - 2
    each = affine.as_subclass(Tensor).float()
    columns = (each if each.ndim == 3 else each.expand(len(label), -1, -1))[:, :3, :dims]
    sizes: Tensor = torch.linalg.vector_norm(columns, dim=1)
    return sizes
