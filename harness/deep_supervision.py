"""Deep supervision: the loss at several resolutions of a decoder (Lee et al., 2015; as in nnU-Net).

At each scale the label is brought to the size of the logits (nearest voxel) and everything that a loss derives from it
is made there, with the voxels' size of that scale; the loss is the mean over the scales, weighted by 1/2^i from the
finest on. Terms on other outputs of the network (attention, embeddings, attached heads) exist at full resolution only,
and count in full there, so that the weights of a sum keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.compound import Sum
from harness.losses.needs import HEADS, MODEL_NEEDS

# Everything that a loss may ask for at a scale besides what the network gives: of (scale, target, spacing).
Offer = Callable[[int, Tensor, Tensor], Mapping[str, Any]]


class Scales:
    """A loss that is evaluated at several scales.

    A loss that learns shares what it learned between the scales; at lower ones it is in evaluation mode, so that what
    it counts over an epoch is of the full resolution.

    Args:
        loss: The loss.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self._everywhere, self._once = split(loss)

    def __call__(
        self,
        logits: Tensor,
        lower: Sequence[Tensor] | None,
        target: Tensor,
        spacing: Tensor,
        offer: Offer,
        given: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Return the loss under "loss", and the terms as they are at full resolution.

        Args:
            logits: (B, C, *S), at full resolution.
            lower: Logits (B, C, *S') at lower ones, the finest first; without any, the loss is called as it is.
            target: (B, *S) int64, 255 ignored.
            spacing: (B, D), of the full resolution.
            offer: Makes what losses ask for at scale i, 0 the full one, of a label and a spacing there.
            given: What the network gives at full resolution.

        Raises:
            BenchError: See `harness.losses.calls.evaluate_loss`.
        """
        full = {**offer(0, target, spacing), **given}
        if not lower or self._everywhere is None:
            return evaluate_loss(self.loss, logits, target, full)
        terms = evaluate_loss(self._everywhere, logits, target, full)
        total = terms["loss"]
        modes = [(part, part.training) for part in self._everywhere.modules()]
        self._everywhere.eval()
        for i, scores in enumerate(lower, start=1):
            small = downsampled(target, scores.shape[2:])
            there = offer(i, small, coarser(spacing, target.shape[1:], scores.shape[2:]))
            total = total + evaluate_loss(self._everywhere, scores.float(), small, there)["loss"] * 0.5**i
        for part, training in modes:
            part.training = training
        total = total / sum(0.5**i for i in range(len(lower) + 1))
        if self._once is None:
            return {**terms, "loss": total}
        once = evaluate_loss(self._once, logits, target, full)
        both = {k: terms[k] + once[k] if k in terms and k in once else (terms | once)[k] for k in terms | once}
        return {**both, "loss": total + once["loss"]}


def coarser(spacing: Tensor, size: Sequence[int], lower: Sequence[int]) -> Tensor:
    """The spacing (B, D) of a grid of `lower` voxels that covers what a grid of `size` voxels of `spacing` does."""
    factors = [n / m for n, m in zip(size, lower, strict=True)]
    scaled = [spacing[:, axis] * factor for axis, factor in enumerate(factors)]  # numbers only: nothing to wait for
    return torch.stack(scaled, 1)


def downsampled(target: Tensor, size: Sequence[int]) -> Tensor:
    """A label (B, *S) at a lower resolution (B, *size): of every voxel there, the label at its centre."""
    out = target
    for axis, (n, m) in enumerate(zip(target.shape[1:], size, strict=True), start=1):
        if n != m:
            at = torch.arange(m, device=target.device)
            out = out.index_select(axis, (2 * at + 1) * n // (2 * m))  # floor((i + 1/2) n / m)
    return out


def split(loss: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The part of a loss that exists at every scale, and the part that asks for outputs of the network."""
    if not isinstance(loss, Sum):
        return (None, loss) if _needs_network(loss) else (loss, None)
    halves: tuple[list[Any], list[Any]] = ([], [])
    for part, weight, name in zip(loss.parts, loss.weights, loss.names, strict=True):
        for half, of_part in zip(halves, split(part), strict=True):
            if of_part is not None:
                half.append((of_part, weight, name))
    if not halves[0] or not halves[1]:
        return (loss, None) if halves[0] else (None, loss)
    first, second = (_sum(half) for half in halves)
    return first, second


def _needs_network(loss: nn.Module) -> bool:
    return bool(needs_of(loss)[0] & (MODEL_NEEDS | frozenset(HEADS)))


def _sum(parts: Sequence[tuple[nn.Module, Any, str]]) -> Sum:
    made = Sum([p for p, _, _ in parts], [1.0] * len(parts), [str(i) for i in range(len(parts))])
    made.weights = [w for _, w, _ in parts]  # schedules are made already
    made.names = [n for _, _, n in parts]  # of the sum that these are parts of
    scheduled = frozenset({"progress", "epochs"}) if any(callable(w) for w in made.weights) else frozenset()
    required, optional = made.needs
    made.needs = (required | scheduled, optional - scheduled)
    return made
