"""A loss behind the call of other trainers: outputs and a label with a channel axis, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.check.command import specify
from harness.deep_supervision import coarser
from harness.errors import BenchError
from harness.grid import expand_losses
from harness.losses.build import build_loss, evaluate_loss, needs_of
from harness.losses.needs import CHANCE_NEEDS, FACTS, HEADS, LABEL_NEEDS, MODEL_NEEDS, PROGRESS_NEEDS, check_needs
from harness.losses.targets import IGNORE, derive
from harness.optim import learning_groups
from harness.seeds import seed_of
from harness.yamlfile import YamlFile, nearest

__all__ = ["Loss", "LossAdapter", "canonical", "loss_module"]

Loss = str | Mapping[str, Any] | nn.Module
"""`"dice"`, `"my_loss.py:MyLoss"`, `"tversky: {fn_weight: 0.7}"`, an entry of a suite's `losses` (also a `sum`), the
`loss` of a cell, or a module."""

_METRIC = frozenset({"spacing", "distance_in", "distance_out"})
"""What depends on the size of a voxel."""


class LossAdapter(nn.Module):
    """A loss that supplies itself with what it asks for, from the label alone.

    The value is that of the benchmark's training: computed in float32 outside of autocast, every need made anew from
    the label it is given, on its device. A loss that changes with the epochs must be told of them: `start_epoch`.

    Args:
        loss: The loss.
        spacing: Size of a voxel along each spatial axis of the tensors, in that order, in mm; one number for all.
        ignore_index: The value of ignored voxels in the caller's labels, None where there is none.
        epochs: Epochs of the training, for losses that follow its progress.
        labels: Training labels (*S), for losses with a `prepare`.
        seed: Of the draws of losses that draw.

    Attributes:
        loss: The loss itself.
        terms: The terms of the last call at full resolution without gradient, by name; the total of all scales under
            "loss".

    Raises:
        BenchError: The loss asks for something that only a network or the caller can give, and it was not given.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        spacing: float | Sequence[float] | None = None,
        ignore_index: int | None = None,
        epochs: int | None = None,
        labels: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.loss, self.ignore_index, self.epochs = loss, ignore_index, epochs
        self.spacing = _sizes(spacing)
        self.terms: dict[str, Tensor] = {}
        self._seed, self._calls, self._seen = {"seed": seed}, 0, False
        self._epoch: int | None = None
        self._open = False  # an epoch has begun and not ended
        name = type(loss).__name__
        required, optional = needs_of(loss)
        self._needs = check_needs(required | optional)
        if beyond := sorted(required & (MODEL_NEEDS | frozenset(HEADS))):
            raise BenchError(
                f"{name} needs {beyond[0]!r}, which a network of this benchmark gives; another trainer hands over "
                "logits and label alone, so it cannot be used there."
            )
        if self._needs & _METRIC and not self._knows_spacing():
            raise BenchError(
                f"{name} measures distances: give spacing=(...), the size of a voxel in mm along each axis of the "
                "label, or spacing=1 to count in voxels."
            )
        if self._needs & PROGRESS_NEEDS and (epochs is None or epochs < 1):
            raise BenchError(f"{name} follows the progress of the training: give epochs=..., the number it will have.")
        self._steps_epochs = any(callable(getattr(m, "epoch_end", None)) for m in loss.modules())
        self._prepare(labels)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the loss.

        Args:
            outputs: Logits (B, C, *S), raw; or those of deep supervision, a list from the finest to the coarsest.
            target: Label (B, 1, *S), a class from 0 to C - 1 or ignored; a list with the label of every scale where
                outputs are a list, or the finest alone, which is then brought down to each (nearest voxel).

        Raises:
            BenchError: Outputs and label do not fit, or the training's epochs were never told.
        """
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Say that an epoch begins, numbered from 0; one that had begun and not ended has then ended."""
        self.end_epoch()
        self._epoch, self._open = epoch, True

    def end_epoch(self) -> None:
        """Say that an epoch ended; needed only before the state of the adapter is saved."""
        if self._open and callable(end := getattr(self.loss, "epoch_end", None)):
            with torch.no_grad():
                end()
        self._open = False

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimizer must learn besides the network, as groups; empty for most losses.

        Each parameter has the rate that its loss names (`lr`, else the given one) and no weight decay, as in the
        benchmark's training.
        """
        return [{"params": own, "lr": rate, "weight_decay": 0.0} for rate, own in learning_groups(self.loss, lr)]

    def _weighted(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Σ_i w_i L(outputs_i, targets_i); targets (B, *S_i) int64 with 255 ignored, scales of weight 0 left away."""
        if self._epoch is None and (self._needs & PROGRESS_NEEDS or self._steps_epochs):
            raise BenchError(
                f"{type(self.loss).__name__} changes with the epochs: call start_epoch(e) on the adapter before epoch "
                "e = 0, 1, ... of the training."
            )
        sizes = self._spacing_of(targets[0])
        training = self.loss.training
        total = outputs[0].new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        for scale, (logits, target, weight) in enumerate(zip(outputs, targets, weights, strict=True)):
            if weight == 0:
                continue
            spacing = None if sizes is None else coarser(sizes, targets[0].shape[1:], target.shape[1:])
            # what a loss counts over an epoch is of the full resolution
            modes = [(part, part.training) for part in self.loss.modules()] if scale else []
            if scale:
                self.loss.eval()
            with torch.autocast(logits.device.type, enabled=False):
                found = evaluate_loss(self.loss, logits.float(), target, self._offered(logits, target, spacing, scale))
            for part, mode in modes:
                part.training = mode
            terms = terms or {k: v.detach() for k, v in found.items()}
            total = total + weight * found["loss"]
        self.terms = terms | {"loss": total.detach()}
        self._calls += training
        return total

    def _offered(self, logits: Tensor, target: Tensor, spacing: Tensor | None, scale: int) -> dict[str, Any]:
        device, classes = logits.device, logits.shape[1]
        sizes = torch.ones(len(target), target.ndim - 1, device=device) if spacing is None else spacing
        offered: dict[str, Any] = {} if spacing is None else {"spacing": spacing}
        wanted = sorted(self._needs & LABEL_NEEDS)
        with torch.no_grad():
            offered |= derive(wanted, target, num_classes=classes, spacing=sizes)
        if "label_weight" in self._needs:
            offered["label_weight"] = torch.ones_like(target, dtype=torch.float32)
        if self._needs & PROGRESS_NEEDS and self.epochs is not None and self._epoch is not None:
            share = min(self._epoch / (self.epochs - 1), 1.0) if self.epochs > 1 else 0.0
            clock = {"progress": share, "epoch": float(self._epoch), "epochs": float(self.epochs)}
            offered |= {k: torch.tensor(v, device=device) for k, v in clock.items()}
        if self._needs & CHANCE_NEEDS:
            keys = (self._calls, scale) if scale else (self._calls,)
            offered["generator"] = torch.Generator(device).manual_seed(seed_of("loss", self._seed, *keys))
        return offered

    def _knows_spacing(self) -> bool:
        return self.spacing is not None

    def _spacing_of(self, target: Tensor) -> Tensor | None:
        """The spacing (B, D) of the full resolution, or None."""
        if self.spacing is None:
            return None
        dims = target.ndim - 1
        sizes = self.spacing * dims if len(self.spacing) == 1 else self.spacing
        if len(sizes) != dims:
            raise BenchError(f"spacing has {len(sizes)} numbers and the label {dims} spatial axes; give one for each.")
        return torch.tensor(sizes, dtype=torch.float32, device=target.device).expand(len(target), -1)

    def _fitting(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Plain tensors: logits (B, C, *S), and the label (B, *S) int64 with 255 ignored.

        Raises:
            BenchError: They do not fit to each other.
        """
        scores, label = logits.as_subclass(Tensor), target.as_subclass(Tensor)
        if scores.ndim < 4 or scores.shape[1] < 2:
            raise BenchError(
                f"expected logits (B, C, *S) of 2 or more classes in 2D or 3D, found {tuple(scores.shape)}; the losses "
                "apply a softmax: a single sigmoid channel z becomes torch.cat([torch.zeros_like(z), z], 1)."
            )
        if label.ndim != scores.ndim or label.shape[1] != 1 or label.shape[0] != scores.shape[0]:
            raise BenchError(
                f"expected a label (B, 1, *S) of class numbers for logits {tuple(scores.shape)}, found "
                f"{tuple(label.shape)}; one-hot labels become such by label.argmax(1, keepdim=True), stacked outputs "
                "of deep supervision (B, scales, C, *S) a list by outputs.unbind(1)."
            )
        if not self._seen:  # once: it waits for the device
            self._check_values(label, scores.shape[1])
            self._seen = True
        whole = label[:, 0].long()
        if self.ignore_index is not None and self.ignore_index != IGNORE:
            whole = whole.masked_fill(whole == self.ignore_index, IGNORE)
        return scores, whole

    def _check_values(self, label: Tensor, classes: int) -> None:
        values = torch.unique(label)
        wrong = [
            float(v) for v in values if v != self.ignore_index and not (float(v).is_integer() and 0 <= v < classes)
        ]
        if wrong:
            ignored = "none is ignored" if self.ignore_index is None else f"ignored is {self.ignore_index}"
            raise BenchError(
                f"the label holds {wrong[0]:g}, expected classes 0 to {classes - 1}, and {ignored}; ignored voxels are "
                "named by ignore_index=..."
            )

    def _prepare(self, labels: Sequence[Tensor]) -> None:
        waiting = [part for part in self.loss.modules() if callable(getattr(part, "prepare", None))]
        if waiting and not labels:
            raise BenchError(
                f"{type(waiting[0]).__name__} is prepared before the training: give labels=[...], training labels (*S)."
            )
        generator = torch.Generator().manual_seed(seed_of("loss", self._seed))
        for part in waiting:
            prepare: Any = part.prepare
            prepare(labels, device=torch.device("cpu"), generator=generator)


def loss_module(loss: Loss, facts: Mapping[str, Any], ignore_index: int | None) -> nn.Module:
    """Make the module.

    Args:
        loss: See `Loss`; a file is looked for in the working directory.
        facts: Facts of the training data for the constructor, by the names of `harness.losses.needs.FACTS`.
        ignore_index: Of the caller's labels; the loss itself sees 255.

    Raises:
        BenchError: There is no such loss, argument or fact, or a fact is missing.
    """
    for name in facts:
        if name not in FACTS or name == "ignore_index":
            known = [fact for fact in FACTS if fact != "ignore_index"]
            raise BenchError(f"unknown fact {name!r}{nearest(name, known)}; known: {', '.join(known)}.")
    if isinstance(loss, nn.Module):
        if facts:
            raise BenchError(f"{type(loss).__name__} is made already: give {next(iter(facts))!r} to its constructor.")
        return loss
    has_ignored = ignore_index is not None
    return build_loss(canonical(loss), {"ignore_index": IGNORE, **facts, "has_ignored": has_ignored})


def canonical(loss: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The specification that `harness.losses.build.build_loss` takes; a file is looked for in the working directory.

    Raises:
        BenchError: There is no such loss or argument, or it is several.
    """
    if isinstance(loss, str):
        return specify(loss)
    terms = loss.get("sum")
    first = terms[0].get("loss") if isinstance(terms, list) and terms and isinstance(terms[0], Mapping) else None
    if "class" in loss or (isinstance(first, Mapping) and ("class" in first or "sum" in first)):
        return loss
    found = expand_losses([dict(loss)], None, YamlFile(Path(str(next(iter(loss), "loss"))), {"losses": [dict(loss)]}))
    if len(found) != 1:
        raise BenchError(f"{dict(loss)} is {len(found)} losses; give them one by one.")
    return found[0].spec


def _sizes(spacing: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    found = (float(spacing),) if isinstance(spacing, (int, float)) else tuple(float(s) for s in spacing)
    if not found or not all(math.isfinite(s) and s > 0 for s in found):
        raise BenchError(f"spacing must be sizes of a voxel above 0, found {spacing}.")
    return found
