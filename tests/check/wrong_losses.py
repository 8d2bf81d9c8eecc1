"""Losses that are wrong, each in one way: errors in print, in released code and from forums.

Apart from its one error each keeps the contract, so that what fails is what the error breaks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = 255


def full(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and one-hot (B, C, N), both 0 at ignored voxels, and valid (B, N)."""
    logits = full(logits)
    valid = (target != IGNORE).flatten(1)
    labels = torch.where(valid, target.flatten(1), 0)
    mask = valid[:, None].to(logits.dtype)
    onehot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype) * mask
    return logits.flatten(2).softmax(1) * mask, onehot, valid


def surprise(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-ln p of the true class, labels with 0 at ignored voxels, and valid, each (B, N)."""
    logits = full(logits)
    valid = (target != IGNORE).flatten(1)
    labels = torch.where(valid, target.flatten(1), 0)
    log_p = logits.flatten(2).log_softmax(1).gather(1, labels[:, None])[:, 0]
    return torch.where(valid, -log_p, 0), labels, valid


def average(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum().clamp_min(1)


def sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TP, Σp and Σt of each class over the batch, (C,)."""
    p, t, _ = parts(logits, target)
    return (p * t).sum((0, 2)), p.sum((0, 2)), t.sum((0, 2))


def dice(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """The right one, (C,)."""
    tp, p, t = sums(logits, target)
    return (2 * tp + smooth) / (p + t + smooth)


# ---------------------------------------------------------------- code of the surveys and of the authors


class SurveyDice(nn.Module):
    """Azad's code: the denominator sums all classes, and the label numbers."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, _ = parts(logits, target)
        numbers = torch.arange(t.shape[1], device=t.device).view(1, -1, 1)
        return 1 - ((2 * (p * t).sum((0, 2)) + 1) / (p.sum() + (numbers * t).sum() + 1)).mean()


class SurveyFocal(nn.Module):
    """Azad's code: (N, 1) times (N,) is N × N, a product of two means."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        weight = valid.flatten().to(ce.dtype)
        miss = (1 - (-ce.flatten()).exp()) ** 2 * weight
        return (miss[:, None] * ce.flatten()).sum() / weight.sum().clamp_min(1) ** 2


class SurveyCombo(nn.Module):
    """Azad's code: the combo has no cross-entropy, half a Dice is left."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (1 - dice(logits, target, smooth=1.0)).mean()


class ComboSign(nn.Module):
    """Combo authors' code: + (1 - β)(1 - t) ln(1 - p) in a loss; raising p of an object on the background lowers it."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        inside, outside = t * p.clamp_min(1e-7).log(), (1 - t) * (1 - p).clamp_min(1e-7).log()
        ce = average((-0.5 * inside + 0.5 * outside)[:, 1:].sum(1), valid)
        return 0.5 * ce + 0.5 * (1 - dice(logits, target)).mean()


class ComboPrinted(nn.Module):
    """Jadon eq. 17: β (t - ln p) in place of a product."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        inside, outside = t - p.clamp_min(1e-7).log(), (1 - t) * (1 - p).clamp_min(1e-7).log()
        ce = average((0.5 * inside - 0.5 * outside).sum(1), valid)
        return 0.5 * ce + 0.5 * (1 - dice(logits, target)).mean()


class SensitivitySpecificity(nn.Module):
    """Azad eq. 18: 1 - α·sens + (1 - α)·spec, where eqs. 19 and 20 are errors: missing the object is rewarded."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        square, other = (t - p) ** 2, (1 - t) * valid[:, None]
        missed = (square * t).sum((0, 2)) / t.sum((0, 2)).clamp_min(1)
        false = (square * other).sum((0, 2)) / other.sum((0, 2)).clamp_min(1)
        return (1 - 0.95 * missed + 0.05 * false).mean()


class ExpLogOfTheLoss(nn.Module):
    """Azad eq. 34: -ln of the Dice loss, lowest where the loss is highest."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return (-(1 - dice(logits, target)).clamp(1e-6, 1 - 1e-6).log()).pow(0.3).mean()


class WassersteinPrinted(nn.Module):
    """Azad eq. 9: -Σ M_cc t p, and M_cc is 0: the loss is 0 everywhere."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, _ = parts(logits, target)
        distance = 1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        return -(distance.diagonal()[:, None] * t * p).sum((1, 2)).mean()


class LogSinhDice(nn.Module):
    """Azad eq. 8: cosh x printed as (e^x - e^-x) / 2, which is sinh; its logarithm is -∞ at the truth."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        x = (1 - dice(logits, target)).mean()
        return ((x.exp() - (-x).exp()) / 2).log()


class TverskyTwiceTheSame(nn.Module):
    """Azad eq. 13: |Y∖T| printed twice, so that false negatives weigh nothing and two arguments do the same."""

    def __init__(self, fp_weight: float = 0.5, fn_weight: float = 0.5) -> None:
        super().__init__()
        self.fp_weight, self.fn_weight = fp_weight, fn_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, _ = sums(logits, target)
        return (1 - (tp + 1e-5) / (tp + self.fp_weight * (p - tp) + self.fn_weight * (p - tp) + 1e-5)).mean()


class ShapeAwareSign(nn.Module):
    """Jadon eq. 16: -CE where the loss is +CE."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        return -average(ce, valid)


class IgnoresItsWeights(nn.Module):
    """SegLoss WeightedCrossEntropyLossV2: class weights are taken and never used."""

    def __init__(self, weight: list[float] | None = None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        focus = 1 - (-ce).exp()
        return average(focus * ce, valid)


class IgnoresItsWeightsUntyped(IgnoresItsWeights):
    """The same in user code without annotations."""

    def __init__(self, weight=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(weight)


class DistancePenaltyLost(nn.Module):
    """SegLoss DisPenalizedCE: the distance-weighted map is computed and the plain mean returned."""

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        weighted = ce * (1 + distance_in.sum(1).flatten(1))
        assert weighted.shape == ce.shape
        return average(ce, valid)


class WeightsDividedAway(nn.Module):
    """MONAI #6765: weights that cancel in the ratio of each class."""

    def __init__(self, weight: list[float] | None = None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        w = torch.tensor(self.weight, dtype=tp.dtype, device=tp.device) if self.weight else 1 / t.clamp_min(1) ** 2
        return 1 - (2 * w * tp / (w * (p + t)).clamp_min(1e-12)).mean()


class InverseSquareOfNothing(nn.Module):
    """Generalized Dice of LIVIA and early MONAI: 1 / (Σt)² of a class that is absent."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        w = 1 / t**2
        return (1 - 2 * (w * tp).sum() / (w * (p + t)).sum()) ** 2


class SquareOfAlmostNothing(nn.Module):
    """Generalized Dice of LIVIA: 1 / (Σt + 1e-10)² gives an absent class a weight of 1e20, and the others none."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        w = 1 / (t + 1e-10) ** 2
        return (1 - 2 * (w * tp).sum() / (w * (p + t)).sum().clamp_min(1e-5)) ** 2


class FocalDividedByClasses(nn.Module):
    """kornia and MONAI: a mean over the class axis of a one-hot product divides by C."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        return average((1 - (-ce).exp()) ** 2 * ce, valid) / logits.shape[1]


class SoftmaxOfOneChannel(nn.Module):
    """InverseForm's code: log-softmax over the only channel of the edge head is 0."""

    channels: ClassVar = {"boundary_logits": 1}

    def forward(self, logits: Tensor, target: Tensor, *, boundary_logits: Tensor, boundary: Tensor) -> Tensor:
        return -(boundary_logits.log_softmax(1)[:, 0] * boundary).mean()


class LabelTimesMask(nn.Module):
    """CBL's code: the mask is multiplied by the label number, so class 0 counts nothing and class 3 threefold."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, labels, valid = surprise(logits, target)
        return average(ce * labels, valid)


class NoneWithoutBoundary(nn.Module):
    """Active boundary loss, authors' code: returns None where there is no boundary."""

    def forward(self, logits: Tensor, target: Tensor, *, boundary: Tensor) -> Tensor | None:
        ce, _, valid = surprise(logits, target)
        edge = boundary.flatten(1) & valid
        return average(ce * (0.5 + edge), valid) if edge.any() else None


class ErosionHausdorff(nn.Module):
    """Karimi's erosion loss (kornia), not declared: 0 with gradient 0 wherever |p - t| < √0.5."""

    def forward(self, logits: Tensor, target: Tensor, *, valid: Tensor) -> Tensor:
        p, t, _ = parts(logits, target)
        bound = ((p - t) ** 2).unflatten(2, target.shape[1:])
        dims, total = target.ndim - 1, bound.new_zeros(())
        for k in range(1, 4):
            bound = (self._cross(bound, dims) - 0.5).clamp_min(0) * valid[:, None]
            top = bound.amax(tuple(range(2, bound.ndim)), keepdim=True)
            bound = bound / top.clamp_min(1e-12)
            total = total + (bound * k**2).sum() / valid.sum().clamp_min(1)
        return total

    def _cross(self, x: Tensor, dims: int) -> Tensor:
        out = x
        for axis in range(2, 2 + dims):
            low, high = x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 1, x.shape[axis] - 1)
            edge = torch.zeros_like(x.narrow(axis, 0, 1))
            out = out + torch.cat([edge, low], axis) + torch.cat([high, edge], axis)
        return out / (2 * dims + 1)


class NegatedPenalty(nn.Module):
    """SegLoss PenaltyGDiceLoss: a negative Dice in a penalty that expects one in [0, 1]."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        score = -dice(logits, target).mean()
        return score / (1 + 2.5 * (1 - score))


class BackgroundDroppedFirst(nn.Module):
    """MONAI FocalLoss(use_softmax=True, include_background=False): the background goes before the softmax."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(
            logits[:, 1:], torch.where(target == 0, IGNORE, torch.where(target == 255, 255, target - 1))
        )
        focal = (1 - (-ce).exp()) ** 2 * ce
        return average(focal, valid)


class WantsProbabilities(nn.Module):
    """MONAI AsymmetricUnifiedFocalLoss: the docstring says logits, and no activation is applied."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _, t, valid = parts(logits, target)
        raw = full(logits).flatten(2) * valid[:, None]
        return (1 - (2 * (raw * t).sum((0, 2)) + 1e-5) / (raw.abs().sum((0, 2)) + t.sum((0, 2)) + 1e-5)).mean()


class HalfOverflow(nn.Module):
    """MONAI Dice on half logits: no cast, and a sum of probabilities above 65,504 is infinite."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        valid = target != IGNORE
        labels = torch.where(valid, target, 0)
        t = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype) * valid[:, None]
        p = logits.softmax(1).to(logits.dtype) * valid[:, None]
        axes = (0, *range(2, p.ndim))
        return (1 - (2 * (p * t).sum(axes) + 1e-3) / (p.square().sum(axes) + t.sum(axes) + 1e-3)).mean()


# ---------------------------------------------------------------- errors in the use of probabilities


class SoftmaxTwice(nn.Module):
    """Forum classic: CrossEntropyLoss on probabilities, softmax of a softmax."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(full(logits).softmax(1), target)
        return average(ce, valid)


class LogOfSoftmax(nn.Module):
    """Forum classic: torch.log(softmax(x)), -∞ as soon as a probability underflows."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        p = (p * t).sum(1) + ~valid
        return average((1 - p) * -p.log(), valid)


class SoftmaxOverBatch(nn.Module):
    """Forum classic: softmax(dim=0), the probabilities of a voxel over the samples."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _, t, valid = parts(logits, target)
        wide = full(logits)
        p = wide.flatten(2).masked_fill(~valid[:, None], -1e4).softmax(0) * valid[:, None]
        return (1 - (2 * (p * t).sum((0, 2)) + 1e-5) / (p.sum((0, 2)) + t.sum((0, 2)) + 1e-5)).mean()


class SoftmaxOverVoxels(nn.Module):
    """Forum classic: softmax over the last axis of (B, C, N)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        _, t, valid = parts(logits, target)
        wide = full(logits)
        p = wide.flatten(2).masked_fill(~valid[:, None], -1e4).softmax(2) * valid[:, None]
        return (1 - (2 * (p * t).sum((0, 2)) + 1e-5) / (p.sum((0, 2)) + t.sum((0, 2)) + 1e-5)).mean()


class LabelAsNumber(nn.Module):
    """Forum classic: mean squared error of the expected label number, a regression."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        numbers = torch.arange(p.shape[1], device=p.device).view(1, -1, 1)
        return average(((numbers * p).sum(1) - (numbers * t).sum(1)) ** 2, valid)


class FocalUpsideDown(nn.Module):
    """Forum classic: p^γ in place of (1 - p)^γ, easy voxels weigh most."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        return average((-2 * ce).exp() * ce, valid)


# ---------------------------------------------------------------- signs, factors, sums


class NegativeDice(nn.Module):
    """nnU-Net and SegLoss return -Dice; here it is not declared."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return -dice(logits, target).mean()


class DiceWithoutTwo(nn.Module):
    """Forum classic: TP / (Σp + Σt), a Dice of at most one half."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        return 1 - ((tp + 1e-5) / (p + t + 1e-5)).mean()


class TverskyIndex(nn.Module):
    """Jadon eq. 12 and others: a score is returned where a loss is expected."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        return ((tp + 1e-5) / (tp + 0.3 * (p - tp) + 0.7 * (t - tp) + 1e-5)).mean()


class SumOverVoxels(nn.Module):
    """Azad eqs. 1 and 2 as printed: a sum where a mean is meant."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        return ((1 - (-ce).exp()) * ce * valid).sum()


class DividedByTheBatchTwice(nn.Module):
    """Forum classic: a mean over samples that is divided by their number again."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        return average((1 - (-ce).exp()) * ce, valid) / len(target)


class SmoothSwallowsTheObject(nn.Module):
    """s = 1 on means in place of sums: the ratio is s / s whatever is predicted."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        n = valid.sum().clamp_min(1)
        tp, p, t = ((v.sum((0, 2)) / n) for v in (p * t, p, t))
        return (1 - (2 * tp + 1) / (p + t + 1)).mean()


class DiceSmoothOne(nn.Module):
    """s = 1 of V-Net and nnU-Net: a few voxels of an object are smoothed away."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return (1 - dice(logits, target, 1.0)).mean()


# ---------------------------------------------------------------- ignored voxels, absent classes


class NanAtAbsentClass(nn.Module):
    """Forum classic: mean recall over classes, 0 / 0 where one is absent."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, _, t = sums(logits, target)
        return (1 - tp / t).mean()


class MeanOfForeground(nn.Module):
    """Forum classic: loss[target > 0].mean(), NaN on a label without foreground."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, labels, valid = surprise(logits, target)
        return average(ce, valid) + ce[(labels > 0) & valid].mean()


class TopKWithIgnored(nn.Module):
    """nnU-Net TopK: ignored voxels stay in the pool with value 0."""

    declares: ClassVar = {"monotone_large": "all of the worst voxels lie in the error as soon as that is large"}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, _ = surprise(logits, target)
        return ce.flatten().topk(max(int(0.15 * ce.numel()), 1)).values.mean()


class TopKOfNothing(nn.Module):
    """nnU-Net TopK: int(N k / 100) is 0 on a tiny patch, and the mean of nothing NaN."""

    declares: ClassVar = {"monotone_large": "all of the worst voxels lie in the error as soon as that is large"}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        count = int(0.15 * int(valid.sum()))
        return ce.flatten().topk(count).values.mean() if valid.any() else ce.sum()


class IgnoredInTheDenominator(nn.Module):
    """mmseg #2996: ignored voxels have no value and still divide."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, _ = surprise(logits, target)
        return ((1 - (-ce).exp()) * ce).mean()


class IgnoredIsBackground(nn.Module):
    """Forum classic: label 255 set to 0 before the one-hot."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return (1 - dice(logits, torch.where(target == IGNORE, 0, target))).mean() ** 2


class IgnoredIsAClass(nn.Module):
    """Forum classic: the mean over target.unique(), where 255 is one of them."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        there = target.unique()
        errors = (1 - dice(logits, target))[there[there != IGNORE]]
        return (errors**2).sum() / len(there)


class DecayOfLogits(nn.Module):
    """Forum classic: a penalty on all logits, ignored or not."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        wide = full(logits)
        return average(ce, valid) + 0.3 * (wide.softmax(1) * (1 - wide.softmax(1))).mean()


class IgnoredPoisonTheGradient(nn.Module):
    """Forum classic: values at ignored voxels are multiplied by 0 after a logarithm; 0 · ∞ is NaN."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wide = full(logits)
        valid = (target != IGNORE).flatten(1)
        labels = torch.where(valid, target.flatten(1), 0)
        p = wide.flatten(2).softmax(1).gather(1, labels[:, None])[:, 0]
        return average((1 - p) ** 3 * -p.log(), valid)


# ---------------------------------------------------------------- gradients


class ArgmaxDice(nn.Module):
    """Forum classic: the Dice of the argmax, without a gradient."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        hard = 1e4 * F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        return (1 - dice(hard, target)).mean()


class RoundedSensitivity(nn.Module):
    """Jadon's code: sensitivity() rounds the probabilities, so the gradient is 0."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, _ = parts(logits, target)
        hard = p.round()
        tp, p, t = (hard * t).sum((0, 2)), hard.sum((0, 2)), t.sum((0, 2))
        return (1 - (2 * tp + 1e-5) / (p + t + 1e-5)).mean()


class ConstantGradient(nn.Module):
    """A straight-through Dice of the argmax: the value does not have the gradient that is returned."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        hard = F.one_hot(p.argmax(1), p.shape[1]).movedim(-1, 1).to(p.dtype) * valid[:, None]
        p = hard + p - p.detach()
        return (1 - (2 * (p * t).sum((0, 2)) + 1e-5) / (p.sum((0, 2)) + t.sum((0, 2)) + 1e-5)).mean()


class DetachedDenominator(nn.Module):
    """Forum classic: the size of the prediction is detached, larger is better."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        return (1 - (2 * tp + 1e-5) / (p.detach() + t + 1e-5)).mean()


class PowerAtThePerfect(nn.Module):
    """Focal Tversky, authors' code: (1 - T)^0.75 has an infinite gradient at T = 1."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = sums(logits, target)
        errors = 0.3 * (p - tp) + 0.7 * (t - tp)
        return ((errors / (tp + errors + 1e-5)) ** 0.6).mean()


# ---------------------------------------------------------------- axes, loops, state


class FirstSampleOnly(nn.Module):
    """Forum classic: logits[0]."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits[:1], target[:1])
        return average((1 - (-ce).exp()) * ce, valid)


class ImagesOnly(nn.Module):
    """Boundary loss, authors' code: an einsum that names two spatial axes."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, _ = parts(logits, target)
        p, t = (v.unflatten(2, target.shape[1:]) for v in (p, t))
        tp = torch.einsum("bchw,bchw->c", p, t)
        size = torch.einsum("bchw->c", p * p) + torch.einsum("bchw->c", t)
        return (1 - (2 * tp + 1e-5) / (size + 1e-5)).mean() ** 2


class LastClassSkipped(nn.Module):
    """Forum classic: for c in range(1, C - 1)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = dice(logits, target)
        return sum(1 - scores[c] for c in range(len(scores) - 1)) / (len(scores) - 1)


class ViewInPlaceOfPermute(nn.Module):
    """Forum classic: probs.view(C, -1) of (B, C, N), which mixes samples and classes."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, _ = parts(logits, target)
        p, t = (v.reshape(v.shape[1], -1) for v in (p, t))
        return (1 - (2 * (p * t).sum(1) + 1e-5) / (p.sum(1) + t.sum(1) + 1e-5)).mean()


class PredictionTransposed(nn.Module):
    """Forum classic: labels of an image read as (W, H), which a square image does not show."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        turned = target.transpose(-1, -2).reshape(target.shape)
        return (1 - dice(logits, turned)).mean() ** 2


class WeightsTransposed(nn.Module):
    """Forum classic: a weight map that is written as (W, H) and read as (H, W)."""

    def forward(self, logits: Tensor, target: Tensor, *, distance_out: Tensor, distance_in: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        away = distance_in.sum(1)
        weight = (1 / (1 + away)).transpose(-1, -2).reshape(away.shape).flatten(1)
        return average((1 + weight) * ce, valid)


class SpacingReversed(nn.Module):
    """Forum classic: spacing in (x, y, z) for an array in (z, y, x), in distances of its own."""

    def forward(self, logits: Tensor, target: Tensor, *, spacing: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        maps = []
        for b in range(len(target)):
            masks = t[b].unflatten(1, target.shape[1:]).numpy() > 0
            steps = spacing[b].flip(0).tolist()
            maps.append(
                torch.stack(
                    [torch.from_numpy(ndimage.distance_transform_edt(~m, steps) if m.any() else 0.0 * m) for m in masks]
                )
            )
        far = torch.stack(maps).flatten(2).to(p.dtype)
        return average((p * far).sum(1), valid) + average(1 - (p * t).sum(1), valid)


class BoundarySign(nn.Module):
    """Boundary loss with the map's sign turned: inside counts as outside."""

    def forward(self, logits: Tensor, target: Tensor, *, distance_in: Tensor, distance_out: Tensor) -> Tensor:
        p, _, valid = parts(logits, target)
        signed = (distance_in - distance_out).flatten(2).to(p.dtype)
        return average((p * signed.sign() * signed.abs().sqrt()).mean(1), valid)


class LovaszAscending(nn.Module):
    """Forum classic: Lovász-softmax with the errors sorted the wrong way round."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        keep = valid.flatten()
        p, t = (v.movedim(1, 0).flatten(1)[:, keep] for v in (p, t))
        errors, order = (p - t).abs().sort(dim=1)
        inside = t.gather(1, order)
        size = inside.sum(1, keepdim=True)
        jaccard = 1 - (size - inside.cumsum(1)) / (size + (1 - inside).cumsum(1)).clamp_min(1)
        steps = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
        return (errors * steps).sum(1).mean()


class LogitsInPlace(nn.Module):
    """Forum classic: logits -= logits.max() in place, in the caller's tensor."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        logits -= logits.detach().amax(1, keepdim=True)
        ce, _, valid = surprise(logits, target)
        return average((1 - (-ce).exp()) * ce, valid)


class TargetInPlace(nn.Module):
    """Forum classic: target[target == 255] = 0 in the caller's tensor."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        valid = target != IGNORE
        target[~valid] = 0
        ce, _, _ = surprise(logits, target)
        return average((1 - (-ce).exp()) * ce, valid.flatten(1))


class RunningScale(nn.Module):
    """State that leaks: each value is divided by a running mean of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))
        self.mean: Tensor

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        value = average((1 - (-ce).exp()) * ce, valid)
        before = self.mean.clamp_min(1e-3)
        self.mean = 0.9 * self.mean + 0.1 * value.detach()
        return value / before


class RememberedMask(nn.Module):
    """State that leaks: a weight map made once from the first batch and kept by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, labels, valid = surprise(logits, target)
        weight = self.kept.setdefault(tuple(labels.shape), 1.0 + (labels > 0))
        return average(weight * ce, valid)


class WeightsLeftOnTheCpu(nn.Module):
    """Weights that are no buffer stay behind when the loss moves to a GPU, and the first call there is the last."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([0.5, 1.0, 1.5, 1.0])

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, labels, valid = surprise(logits, target)
        return average(self.weight.to(ce.dtype)[labels] * ce, valid)


# ---------------------------------------------------------------- right, though it may not look so


class DrawsFromTheGlobalGenerator(nn.Module):
    """Right: noise of torch.rand; the harness seeds the global generator before every step."""

    declares: ClassVar = dict.fromkeys(
        ("voxelwise", "batch_order", "axes", "copies"), "which voxels are drawn goes by their place"
    )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits, target)
        keep = valid & (torch.rand(ce.shape, device=ce.device) < 0.5)
        return average(ce, valid) + average((1 - (-ce).exp()) * ce, keep)


class InSinglePrecision(nn.Module):
    """Right: casts everything to float32, as many a loss does."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, _, valid = surprise(logits.float(), target)
        return average((1 - (-ce).exp()) ** 1.5 * ce, valid)


class PooledJaccard(nn.Module):
    """Right: one ratio over all classes, in another convention than ours."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        tp, p, t = (v.sum() for v in sums(logits, target))
        return 1 - (tp + 1e-5) / (p + t - tp + 1e-5)


class DiceOverTheClassAxis(nn.Module):
    """Forum classic: sums over the class axis, so that the Dice of a voxel is p of its true class."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, t, valid = parts(logits, target)
        return average(1 - (2 * (p * t).sum(1)) / (p.sum(1) + t.sum(1)).clamp_min(1e-5), valid)


class WeightsOffByOne(nn.Module):
    """Forum classic: weights[target - 1], so that each class has the weight of another."""

    def __init__(self, weight: list[float] | None = None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, labels, valid = surprise(logits, target)
        weight = torch.tensor(self.weight or [1.0] * logits.shape[1], dtype=ce.dtype, device=ce.device)
        return average(weight[labels - 1] * (1 - (-ce).exp()) * ce, valid)


class WeightedUntyped(nn.Module):
    """Right: class weights without annotations, a list or a tensor."""

    def __init__(self, weight=None, power=1.5) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.weight, self.power = weight, power

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce, labels, valid = surprise(logits, target)
        value = (1 - (-ce).exp()).clamp_min(1e-7) ** self.power * ce
        if self.weight is not None:
            value = value * torch.as_tensor(self.weight, dtype=value.dtype)[labels]
        return average(value, valid)


class SigmoidFocal(nn.Module):
    """Right, under another name: one-vs-rest sigmoids (smp, MONAI) where a paper has a softmax."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wide = full(logits)
        _, t, valid = parts(logits, target)
        bce = F.binary_cross_entropy_with_logits(wide.flatten(2), t, reduction="none")
        return average(((1 - (-bce).exp()) ** 2 * bce).mean(1), valid)
