"""What losses need of the softmax: region sums of every class, and the log-probability of the true class, fused.

On CPU the true class is looked up by index, in pieces that stay in the cache, and summed by class in float64: four
times as fast as a one-hot label, and more accurate. Elsewhere a one-hot by `scatter_`, in which each place is written
once, keeps the result deterministic. For the backward pass one tensor as large as the logits is kept: the logits
themselves, which the caller holds anyway, or on CPU the softmax where region sums need it anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.errors import BenchError

IGNORE = 255
PIECE = 2**19  # logits at a time on CPU: 2 MB of float32
LANES = 8
TINY = 1e-30  # below it the logarithm of a probability is taken from the logits


class SoftmaxSums(NamedTuple):
    """Of logits (B, C, N); what was not asked for has a last axis of 0.

    Attributes:
        tp: Σ t p, (B, C).
        p: Σ p or Σ p² over valid voxels, (B, C).
        t: Σ t, (B, C), without a gradient.
        valid: Number of valid voxels, (B, 1), without a gradient.
        log_p: ln p of the true class of each voxel, times its weight, (B, N); 0 at ignored voxels.
        weight: Σ of those weights over valid voxels, (B, 1), without a gradient.
    """

    tp: Tensor
    p: Tensor
    t: Tensor
    valid: Tensor
    log_p: Tensor
    weight: Tensor


def softmax_sums(
    logits: Tensor,
    target: Tensor,
    *,
    sums: bool = True,
    log_p: bool = False,
    squared: bool = False,
    weights: Tensor | None = None,
) -> SoftmaxSums:
    """Sums over regions, and what each voxel's true class was given.

    Args:
        logits: (B, C, *S), raw, any floating type; half precision is computed and returned in float32.
        target: (B, *S) int64, 255 ignored.
        sums: Return `tp`, `p` and `t`.
        log_p: Return `log_p`.
        squared: Sum p² in place of p.
        weights: Weight of each class in `log_p`, (C,) or for each sample (B, C); 1 by default. No gradient.

    Raises:
        BenchError: A label is neither a class nor 255 (on CPU; elsewhere looking would wait for the device).
    """
    keep = sums and logits.is_cpu and logits.requires_grad and torch.is_grad_enabled()
    if weights is not None:
        weights = weights.detach().to(_working(logits)).expand(len(logits), -1)
    found = _Softmax.apply(  # type: ignore[no-untyped-call]
        logits.flatten(2), target.flatten(1), weights, sums, log_p, squared, keep
    )
    return SoftmaxSums(*found[:6])


class _Softmax(torch.autograd.Function):
    """Logits (B, C, N) and labels (B, N) → the six tensors of `SoftmaxSums`, and the softmax if it is kept."""

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, weights: Tensor | None, sums: bool, log_p: bool, squared: bool, keep: bool
    ) -> tuple[Tensor, ...]:
        run = _forward_cpu if logits.is_cpu else _forward_elsewhere
        return run(logits, target, weights, sums, log_p, squared, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, target, weights, _, _, ctx.squared, ctx.keep = inputs
        ctx.save_for_backward(output[6] if ctx.keep else logits, target, weights)
        ctx.mark_non_differentiable(output[2], output[3], output[5])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        scores, target, weights = ctx.saved_tensors
        # of a part that was not asked for, what comes is empty
        tp, p, _, _, log_p, _, kept = (None if g is None or g.shape[1] == 0 else g for g in gradients)
        out = _Gradient.apply(  # type: ignore[no-untyped-call]
            scores, target, weights, ctx.squared, ctx.keep, tp, p, log_p
        )
        if kept is not None and ctx.keep:  # of a second derivative
            part = scores * kept
            out = out + part - scores * part.sum(1, keepdim=True)
        return out, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = [_fold(arg, dim, info.batch_size) for arg, dim in zip(args, dims, strict=True)]
        found = _Softmax.apply(*folded)  # type: ignore[no-untyped-call]
        return tuple(out.view(info.batch_size, len(out) // info.batch_size, *out.shape[1:]) for out in found), (0,) * 7


class _Gradient(torch.autograd.Function):
    """The gradient of `_Softmax` to the logits, a function of its own: it is differentiable and takes batches too.

    Takes scores (B, C, N), which are logits, or the softmax if `kept`; labels (B, N); the gradients of tp and p,
    (B, C), and of log_p, (B, N), or None.
    """

    @staticmethod
    def forward(
        scores: Tensor, target: Tensor, weights: Tensor | None, squared: bool, kept: bool, *given: Tensor | None
    ) -> Tensor:
        if all(g is None for g in given):
            return torch.zeros_like(scores)
        run = _gradient_cpu if scores.is_cpu else _gradient_elsewhere
        return run(scores, target, weights, squared, kept, *given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, target, weights, ctx.squared, ctx.kept, *given = inputs
        ctx.given = [g is not None for g in given]
        ctx.save_for_backward(scores, target, weights, *[g for g in given if g is not None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, weights, *saved = ctx.saved_tensors

        def plain(x: Tensor, *given: Tensor) -> Tensor:
            each = iter(given)
            parts = [next(each) if g else None for g in ctx.given]
            return _plain_gradient(x, target, weights, ctx.squared, ctx.kept, *parts)

        first, *rest = torch.func.vjp(plain, scores, *saved)[1](gradients[0])
        each = iter(rest)
        return first, None, None, None, None, *(next(each) if g else None for g in ctx.given)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        folded = [_fold(arg, dim, info.batch_size) for arg, dim in zip(args, dims, strict=True)]
        found: Tensor = _Gradient.apply(*folded)  # type: ignore[no-untyped-call]
        return found.view(info.batch_size, len(found) // info.batch_size, *found.shape[1:]), 0


def _forward_cpu(
    logits: Tensor, target: Tensor, weights: Tensor | None, sums: bool, log_p: bool, squared: bool, keep: bool
) -> tuple[Tensor, ...]:
    (batch, classes, voxels), kind = logits.shape, _working(logits)
    shape = batch, classes if sums else 0
    tp, p, t = (logits.new_zeros(shape, dtype=torch.float64) for _ in range(3))
    valid, weight = (logits.new_zeros(batch, 1, dtype=torch.float64) for _ in range(2))
    true = logits.new_empty(batch, voxels if log_p else 0, dtype=kind)
    kept = logits.new_empty(batch, classes if keep else 0, voxels, dtype=kind)
    for b, pieces in _pieces(batch, classes, voxels):
        if keep:
            torch.softmax(logits[b].to(kind), 1, out=kept[b])
        for s in pieces:
            z = None if keep else logits[b, :, s].to(kind).contiguous()
            labels = _Labels(target[b, s], classes, voxels if keep else s.stop - s.start)
            valid[b] += labels.voxels()
            found = None
            if sums:
                probs = kept[b, :, s] if z is None else z.softmax(1)
                found = labels.take(kept[b].view(-1)[s.start :] if keep else probs.view(-1))
                for total, part in zip((tp, t), labels.by_class(found), strict=True):
                    total[b] += part
                if labels.valid is not None:
                    probs = probs * labels.valid[:, None]
                p[b] += (probs * probs if squared else probs).sum(2)
            if log_p:
                if found is not None and found.numel() and float(found.amin()) > TINY:
                    found = found.log()
                else:
                    z = logits[b, :, s].to(kind).contiguous() if z is None else z
                    own = _Labels(target[b, s], classes, z.shape[2]) if keep else labels
                    found = own.take(z.log_softmax(1).view(-1))
                if labels.valid is not None:
                    found = found * labels.valid
                if weights is not None:
                    each = labels.of_class(weights[b])
                    weight[b] += (each if labels.valid is None else each * labels.valid).sum(1, keepdim=True)
                    found = each.mul_(found)
                true[b, s] = found
    weight = valid if weights is None else weight
    return tp.to(kind), p.to(kind), t.to(kind), valid.to(kind), true, weight.to(kind), kept


def _gradient_cpu(
    scores: Tensor,
    target: Tensor,
    weights: Tensor | None,
    squared: bool,
    kept: bool,
    tp: Tensor | None,
    p: Tensor | None,
    log_p: Tensor | None,
) -> Tensor:
    (batch, classes, voxels), kind = scores.shape, _working(scores)
    out = scores.new_empty(scores.shape, dtype=kind)
    for b, pieces in _pieces(batch, classes, voxels):
        if not kept:
            torch.softmax(scores[b].to(kind), 1, out=out[b])
        for s in pieces:
            grad, probs = out[b, :, s], (scores if kept else out)[b, :, s]
            labels = _Labels(target[b, s], classes, voxels)
            # what the true class gets beside the others, (b, n)
            extra = None
            if tp is not None:
                extra = labels.take((scores if kept else out)[b].view(-1)[s.start :]) * labels.of_class(tp[b])
            if log_p is not None:
                part = log_p[b, s] if weights is None else log_p[b, s] * labels.of_class(weights[b])
                extra = part if extra is None else extra + part
            if extra is not None and labels.valid is not None:
                extra = extra * labels.valid
            if p is None:
                torch.mul(probs, _some(extra).neg()[:, None], out=grad)
            else:
                slope = 2 * p[b, :, None] * probs if squared else p[b, :, None]
                mean = _mean(slope, probs)
                slope, mean = (
                    (slope, mean) if labels.valid is None else (slope * labels.valid[:, None], mean * labels.valid)
                )
                mean = mean if extra is None else mean.add_(extra)
                if kept:
                    torch.sub(slope, mean[:, None], out=grad)
                    grad.mul_(probs)
                else:
                    grad.mul_(slope - mean[:, None])
            if extra is not None:
                labels.add(out[b].view(-1)[s.start :], extra)
    return out.to(scores.dtype)


def _forward_elsewhere(
    logits: Tensor, target: Tensor, weights: Tensor | None, sums: bool, log_p: bool, squared: bool, keep: bool
) -> tuple[Tensor, ...]:
    z, valid = logits.to(_working(logits)), target != IGNORE
    labels, weight = torch.where(valid, target, 0)[:, None], valid.to(z.dtype)[:, None]
    none = z.new_zeros(len(z), 0)
    tp, p, t, true, total = none, none, none, none, weight.sum(2)
    if sums:
        probs = z.softmax(1)
        place = torch.zeros_like(probs)
        t = place.scatter_(1, labels, weight).sum(2)
        tp = place.scatter_(1, labels, probs.gather(1, labels) * weight).sum(2)
        p = ((probs * probs if squared else probs) * weight).sum(2)
    if log_p:
        each = weight if weights is None else weight * weights.gather(1, labels[:, 0])[:, None]
        true, total = (z.log_softmax(1).gather(1, labels) * each)[:, 0], each.sum(2)
    return tp, p, t, weight.sum(2), true, total, none[:, :, None]


def _gradient_elsewhere(
    scores: Tensor,
    target: Tensor,
    weights: Tensor | None,
    squared: bool,
    kept: bool,
    tp: Tensor | None,
    p: Tensor | None,
    log_p: Tensor | None,
) -> Tensor:
    probs = scores.to(_working(scores)).softmax(1)
    valid = target != IGNORE
    labels = torch.where(valid, target, 0)
    place, weight = labels[:, None], valid.to(probs.dtype)
    extra = torch.zeros_like(weight) if log_p is None else log_p * weight
    if log_p is not None and weights is not None:
        extra = extra * weights.gather(1, labels)
    if tp is not None:
        extra = extra + probs.gather(1, place)[:, 0] * tp.gather(1, labels) * weight
    if p is None:
        out = probs.mul_(-extra[:, None])
    else:
        slope = 2 * p[:, :, None] * probs if squared else p[:, :, None]
        mean = (slope * probs).sum(1, keepdim=True)
        out = probs.mul_((slope - mean) * weight[:, None] - extra[:, None])
    out.scatter_(1, place, out.gather(1, place) + extra[:, None])
    return out.to(scores.dtype)


def _plain_gradient(
    scores: Tensor,
    target: Tensor,
    weights: Tensor | None,
    squared: bool,
    kept: bool,
    tp: Tensor | None,
    p: Tensor | None,
    log_p: Tensor | None,
) -> Tensor:
    """The same by differentiable operations on whole tensors."""
    probs = scores if kept else scores.to(_working(scores)).softmax(1)
    valid = (target != IGNORE)[:, None]
    onehot = torch.zeros_like(probs).scatter(1, torch.where(valid, target[:, None], 0), 1.0) * valid
    slope = torch.zeros_like(probs)
    if tp is not None:
        slope = slope + tp[:, :, None] * onehot
    if p is not None:
        slope = slope + (2 * probs if squared else 1) * p[:, :, None] * valid
    out = probs * (slope - (slope * probs).sum(1, keepdim=True))
    if log_p is not None:
        each = onehot if weights is None else onehot * weights[:, :, None]
        out = out + log_p[:, None] * (each - probs * each.sum(1, keepdim=True))
    return out.to(scores.dtype)


class _Labels:
    """The labels (b, n) of one piece on CPU, as indices into values whose rows are `row` long.

    Attributes:
        valid: What is not ignored, or None if all is.
    """

    def __init__(self, target: Tensor, classes: int, row: int) -> None:
        self.shape, self.classes, self.valid = target.shape, classes, None
        # half the bytes where they suffice
        kind = torch.int32 if target.shape[0] * classes * row < 2**31 else torch.int64
        labels = target.to(kind)
        low, high = map(int, labels.aminmax()) if labels.numel() else (0, 0)
        if high >= classes:
            self.valid = labels != IGNORE
            labels = torch.where(self.valid, labels, 0)
            high = int(labels.amax())
        if low < 0 or high >= classes:
            raise BenchError(
                f"found the label {low if low < 0 else high} with {classes} classes; "
                "give class numbers from 0, and 255 for ignored voxels."
            )
        self.labels = labels
        self.place = torch.add(_places(*target.shape, classes, row, kind), labels, alpha=row).view(-1)

    def voxels(self) -> Tensor | int:
        """The number of valid voxels of each sample."""
        return self.shape[1] if self.valid is None else self.valid.sum(1, keepdim=True)

    def take(self, values: Tensor) -> Tensor:
        """The values of the true class, (b, n)."""
        return values.index_select(0, self.place).view(self.shape)

    def add(self, values: Tensor, part: Tensor) -> None:
        """Add (b, n) to the values of the true class, in place."""
        values.index_add_(0, self.place, part.reshape(-1))

    def of_class(self, weights: Tensor) -> Tensor:
        """The weight of the true class: (b, C) → (b, n)."""
        return weights.reshape(-1).index_select(0, self._keys()).view(self.shape)

    def by_class(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of (b, n) over the voxels of each class, and their number, both (b, C)."""
        # neighbours are mostly of one class: eight places each, or every addition waits for the one before
        lanes = _lanes(*self.shape, self.classes, self.labels.dtype)
        keys, size = torch.add(lanes, self.labels, alpha=LANES).view(-1), self.shape[0] * self.classes * LANES
        weight = None if self.valid is None else self.valid.flatten().double()
        given = values.flatten().double() if weight is None else values.flatten().double().mul_(weight)
        both = torch.bincount(keys, given, size), torch.bincount(keys, weight, size)
        return both[0].view(-1, self.classes, LANES).sum(2), both[1].view(-1, self.classes, LANES).sum(2)

    def _keys(self) -> Tensor:
        if self.shape[0] == 1:
            return self.labels.view(-1)
        start = torch.arange(0, self.shape[0] * self.classes, self.classes, dtype=self.labels.dtype, device="cpu")
        return (self.labels + start[:, None]).view(-1)


@functools.lru_cache(maxsize=8)
def _lanes(samples: int, voxels: int, classes: int, kind: torch.dtype) -> Tensor:
    """Where class 0 of each voxel is summed in (b, C, LANES), (b, n)."""
    start = classes * LANES * torch.arange(samples, dtype=kind, device="cpu")[:, None]
    return start + torch.arange(voxels, dtype=kind, device="cpu") % LANES


@functools.lru_cache(maxsize=8)
def _places(samples: int, voxels: int, classes: int, row: int, kind: torch.dtype) -> Tensor:
    """Where class 0 of each voxel lies in values (b, C, row), (b, n)."""
    start = classes * row * torch.arange(samples, dtype=kind, device="cpu")[:, None]
    return start + torch.arange(voxels, dtype=kind, device="cpu")


def _mean(slope: Tensor, probs: Tensor) -> Tensor:
    """Σ_c slope_c p_c: (b, C, n or 1), (b, C, n) → (b, n)."""
    if len(probs) == 1 and slope.shape[2] == 1:
        with torch.autocast("cpu", enabled=False):
            return torch.mv(probs[0].T, slope[0, :, 0].to(probs.dtype))[None]
    return (slope * probs).sum(1)


def _pieces(batch: int, classes: int, voxels: int) -> Iterator[tuple[slice, list[slice]]]:
    """Samples, and pieces of their voxels."""
    if batch * classes * voxels <= PIECE:
        yield slice(0, batch), [slice(0, voxels)]
        return
    width = -(-voxels // -(-classes * voxels // PIECE))
    pieces = [slice(s, min(s + width, voxels)) for s in range(0, voxels, width)]
    for b in range(batch):
        yield slice(b, b + 1), pieces


def _working(logits: Tensor) -> torch.dtype:
    """At least float32: a sum of half-precision probabilities overflows at 65,504."""
    return torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype


def _some(value: Tensor | None) -> Tensor:
    if value is None:
        raise AssertionError("a gradient was given")
    return value


def _fold(arg: Any, dim: int | None, size: int) -> Any:
    """An argument under vmap with its mapped axis joined to the samples: each sample is on its own here."""
    if not isinstance(arg, Tensor):
        return arg
    mapped = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
    return mapped.flatten(0, 1)
