"""Lovász losses: the convex closure of the Jaccard loss, over errors in descending order."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.losses._common import IGNORE, class_sizes, full_precision

_LARGEST = 0x7F800000  # the bits of float32 infinity


class LovaszSoftmax(nn.Module):
    """Lovász-softmax loss (Berman et al., 2018): the Lovász extension of the Jaccard loss of each class.

        L = mean_c Σ_k m_(k) (Δ(k) - Δ(k-1)),   m_n = |t_n - p_n| in descending order, Δ(k) = 1 - IoU with the first k
        voxels mispredicted

    Azad et al., 2023, eq. 12; the text there describes the binary hinge variant, `LovaszHinge`. The step of a voxel is
    1 / |G ∪ M| inside the object and |G - M| / (|G ∪ M| (|G ∪ M| + 1)) outside, from counts that are summed as
    integers: exact, and deterministic on CUDA. Ties keep the order of the voxels.

    Args:
        classes: Average over the classes that are `present` in the label (the authors' default), or over `all`.
        per_image: Compute per sample and average; the authors' default is the whole batch.

    Raises:
        ValueError: `classes` is neither present nor all.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [0, 1].

    Advantages:
        The Jaccard loss itself on hard predictions, and a tight convex surrogate of it between them; no smoothing term.

    Disadvantages:
        Sorts every class; slow to start from scratch, and a voxel's gradient depends on all others. Patches without
        objects pull the prediction to the middle.

    Use:
        To finish a training, or with cross-entropy.

    Elsewhere:
        kornia averages over all classes, per image: an absent class adds its largest probability. smp is `present`, the
        whole batch. The authors' code takes probabilities, in 2D, and compares strings by identity.
    """

    version = 1
    taxonomy = ("region", "region")

    def __init__(self, classes: Literal["present", "all"] = "present", per_image: bool = False) -> None:
        super().__init__()
        self.classes, self.per_image = _classes(classes), per_image

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        found = _LovaszSoftmax.apply(  # type: ignore[no-untyped-call]
            logits.flatten(2), target.flatten(1), self.classes == "present", self.per_image
        )
        loss: Tensor = found[0]
        return loss


class LovaszHinge(nn.Module):
    """Lovász hinge (Yu and Blaschko, 2015; Berman et al., 2018): the Lovász extension of the Jaccard loss of margins.

        L = Σ_k max(m_(k), 0) (Δ(k) - Δ(k-1)),   m_n = 1 - s_n F_n in descending order, s_n = ±1

    Binary: F is the difference of the two logits, ln p_1 / p_0, as the authors' single output. With more classes each
    is taken against the rest, F_c = ln p_c / (1 - p_c), and averaged: our reading. This is the variant that Azad et
    al., 2023, describe beside the equation of Lovász-softmax. Not bounded, unlike Lovász-softmax.

    Args:
        classes: Average over `all` classes, the authors' binary form, or those `present` in the label.
        per_image: Compute per sample and average, the authors' default here.
        background: Whether class 0 counts; of two classes it repeats class 1 with the roles exchanged.

    Raises:
        ValueError: `classes` is neither present nor all.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar, at least 0.

    Advantages:
        Gradients do not saturate: a voxel that is wrong with confidence is pulled as hard as any other.

    Disadvantages:
        Unbounded, so a few voxels can dominate; correct voxels beyond the margin have no gradient, and probabilities
        are not calibrated. Sorts every class.

    Use:
        Binary tasks, to finish a training that cross-entropy began.

    Elsewhere:
        smp's binary mode and exacta's loss take one logit, equal to the difference here; exacta pools the batch
        unless told. Some code replaces max(m, 0) by elu(m) + 1.
    """

    version = 1
    taxonomy = ("region", "region")

    def __init__(
        self, classes: Literal["present", "all"] = "all", per_image: bool = True, background: bool = False
    ) -> None:
        super().__init__()
        self.classes, self.per_image, self.background = _classes(classes), per_image, background

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        scores, labels = full_precision(logits).flatten(2), target.flatten(1)
        valid = labels != IGNORE
        pair = scores.shape[1] == 2  # then the odds of one class are those against the other
        margins = scores[:, 1] - scores[:, 0] if pair else _margins(scores)
        groups = [slice(b, b + 1) for b in range(len(scores))] if self.per_image else [slice(None)]
        first = 0 if self.background else 1
        parts = []
        for group in groups:
            losses, there = [], []
            for c in range(first, scores.shape[1]):
                inside = (labels[group] == c).flatten()
                signed = ((margins[group] if c else -margins[group]) if pair else margins[group, c]).flatten()
                errors = (1 - torch.where(inside, signed, -signed)).clamp_min(0)
                steps = _steps(errors.detach(), inside, valid[group].flatten())
                losses.append((errors * steps).sum())
                there.append(inside.any())
            parts.append(_over(torch.stack(losses), torch.stack(there), self.classes == "present"))
        return torch.stack(parts).mean()


class _LovaszSoftmax(torch.autograd.Function):
    """Logits (B, C, N) and labels (B, N) → the loss, and its gradient to the probabilities, which is kept.

    That gradient does not change while the order of the errors stays: a derivative of the backward pass is right
    wherever there is one.
    """

    @staticmethod
    def forward(logits: Tensor, target: Tensor, present: bool, per_image: bool) -> tuple[Tensor, Tensor]:
        batch, classes = logits.shape[:2]
        weights = full_precision(logits).softmax(1)  # class by class, probabilities become weights
        valid = target != IGNORE
        groups = [slice(b, b + 1) for b in range(batch)] if per_image else [slice(None)]
        parts = []
        for group in groups:
            there = class_sizes(target[group], classes).sum(0) > 0
            # absent classes need no sort: looking costs nothing on CPU, and would wait for the device elsewhere
            skipped = there.logical_not().tolist() if present and logits.is_cpu else [False] * classes
            counted = there.sum().clamp_min(1) if present else classes
            loss = weights.new_zeros(())
            for c in range(classes):
                if skipped[c]:
                    weights[group, c] = 0
                    continue
                inside = target[group] == c
                side = inside.to(weights.dtype)
                errors = (side - weights[group, c]).abs()
                steps = _steps(errors.flatten(), inside.flatten(), valid[group].flatten()).view_as(errors)
                steps = steps / counted * (there[c] if present else 1)
                loss = loss + (errors * steps).sum()
                weights[group, c] = steps * (1 - 2 * side)
            parts.append(loss)
        return torch.stack(parts).mean(), weights.div_(len(groups))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, weights = ctx.saved_tensors
        probs = full_precision(logits).softmax(1)
        slope = weights * probs
        return (gradients[0] * (slope - probs * slope.sum(1, keepdim=True))).to(logits.dtype), None, None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        found = []
        for i in range(info.batch_size):
            one = [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, dims, strict=True)]
            found.append(_LovaszSoftmax.apply(*one))  # type: ignore[no-untyped-call]
        return (torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])), (0, 0)


def _steps(errors: Tensor, inside: Tensor, valid: Tensor) -> Tensor:
    """Δ(k) - Δ(k-1) of each voxel: errors (N,) of at least 0, whether of the class (N,), valid (N,) → (N,).

    The bits of a float32 of at least 0 are in its order, and torch sorts integers on CPU by radix, ten times as fast.
    """
    if errors.dtype == torch.float32:
        keys = torch.where(valid, _LARGEST - (errors + 0.0).view(torch.int32), torch.iinfo(torch.int32).max)
        order = keys.sort(stable=True).indices
    else:
        order = torch.where(valid, errors, -1.0).sort(descending=True, stable=True).indices
    ranked = inside.index_select(0, order)
    left = ranked.cumsum(0)  # in place from here on: these are the largest tensors of the loss
    size = left[-1:].clone()
    left.sub_(ranked.view(torch.uint8)).neg_().add_(size)
    # |G ∪ M| of the voxels before: |G - M|, and one for each of them
    union = torch.arange(len(order), device=order.device).add_(left).to(errors.dtype)
    left = left.to(errors.dtype)
    steps = torch.where(ranked, 1 / union, left / (union * (union + 1)).clamp_min(1))
    steps[:1] = torch.where(size > 0, steps[:1], 1.0)  # of an absent class the first voxel alone makes the loss 1
    return torch.empty_like(steps).scatter_(0, order, steps) * valid


def _margins(scores: Tensor) -> Tensor:
    """The log odds ln p_c / (1 - p_c) of each of three classes or more, (B, C, N), also where p_c rounds to 1."""
    best = scores.argmax(1, keepdim=True)
    log_p = scores.log_softmax(1)
    others = log_p - torch.log1p(-log_p.exp().scatter(1, best, 0.0))
    rest = scores.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)
    return others.scatter(1, best, scores.gather(1, best) - rest)


def _over(losses: Tensor, there: Tensor, present: bool) -> Tensor:
    """Mean over all classes, or over those that are there."""
    if not present:
        return losses.mean()
    return (losses * there).sum() / there.sum().clamp_min(1)


def _classes(value: Literal["present", "all"]) -> Literal["present", "all"]:
    if value not in ("present", "all"):
        raise ValueError(f"classes must be 'present' or 'all', found {value!r}")
    return value
