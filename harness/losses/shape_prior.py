"""Losses on what a network shows besides its logits: attention maps, a latent of shape, maps of class tokens.

The note on shape priors names these parts without formulas; the formulas are ours.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.losses._common import (
    IGNORE,
    Absent,
    Reduction,
    RegionSums,
    check_absent,
    check_reduction,
    full_precision,
    over_classes,
    ratio,
)


class AttentionRegularisation(nn.Module):
    """Attention regularisation (ours): how much attention falls outside the object, 1 - its mass in the dilated truth.

        mass: L = mean_{b,a} (1 - Σ_{n in D(G)} a_n / Σ_n a_n)
        kl:   L = mean_{b,a} Σ_n a_n ln(a_n / g_n),   g = (1 - ε) G / Σ G + ε / N

    G is the share of foreground in each cell of the attention's grid, D a dilation by a box. Cells that hold an ignored
    voxel are left out, and the attention is normalised over the rest; samples without foreground are left out, as there
    is nothing to attend to.

    Args:
        form: `mass`, or `kl` from the attention to the normalised truth.
        dilation: Cells by which the truth is dilated on the attention's grid, for `mass`.
        smooth: ε of `kl`.

    Raises:
        ValueError: form is neither mass nor kl, dilation is negative, or smooth is not in (0, 1].

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored, attention (B, A, *S') → scalar.

    Advantages:
        Teaches a network to look where the structure is; `mass` leaves it free within the object.

    Disadvantages:
        Context outside of the object is often what tells classes apart, and is punished; the prediction itself is not
        looked at.

    Use:
        A term of a sum with a small weight, with a model that returns attention.

    Elsewhere:
        Nowhere in this form.
    """

    version = 1
    taxonomy = ("shape prior", "region")
    declares: ClassVar[dict[str, str]] = {
        "descent": "acts on the attention, not on the prediction",
        "monotone_large": "on a coarser grid, and within the dilated truth, a small shift is free",
        "monotone_small": "on a coarser grid, and within the dilated truth, a small shift is free",
    }

    def __init__(self, form: Literal["mass", "kl"] = "mass", dilation: int = 1, smooth: float = 1e-3) -> None:
        super().__init__()
        if form not in ("mass", "kl"):
            raise ValueError(f"form must be 'mass' or 'kl', found {form!r}")
        if dilation < 0 or not 0 < smooth <= 1:
            raise ValueError(f"expected dilation of at least 0 and smooth in (0, 1], found {dilation}, {smooth}")
        self.form, self.dilation, self.smooth = form, dilation, smooth

    def forward(self, logits: Tensor, target: Tensor, *, attention: Tensor) -> Tensor:
        """Return the loss."""
        maps = full_precision(attention)
        with torch.no_grad():
            ignored = target == IGNORE
            foreground = _shares((target > 0) & ~ignored, maps)
            whole = _shares(ignored, maps) == 0
            foreground = (foreground * whole).flatten(1)
            there = (foreground > 0).any(1)
        maps = (maps * whole[:, None]).flatten(2)
        maps = ratio(maps, maps.sum(2, keepdim=True))
        if self.form == "mass":
            inside = _dilate((foreground > 0).reshape(whole.shape), self.dilation) & whole
            losses = 1 - (maps * inside.flatten(1)[:, None]).sum(2)
        else:
            losses = self._divergence(maps, foreground, whole.flatten(1))
        weight = there.to(losses.dtype)
        return (losses.mean(1) * weight).sum() / weight.sum().clamp_min(1)

    def _divergence(self, maps: Tensor, foreground: Tensor, whole: Tensor) -> Tensor:
        uniform = ratio(whole.to(maps.dtype), whole.sum(1, keepdim=True).to(maps.dtype))
        truth = (1 - self.smooth) * ratio(foreground, foreground.sum(1, keepdim=True)) + self.smooth * uniform
        tiny = 1e-30  # a ln a is 0 at 0, with a finite slope
        log_ratio = maps.clamp_min(tiny).log() - truth.clamp_min(tiny).log()[:, None]
        return (maps * log_ratio * whole[:, None]).sum(2)


class KLShapePrior(nn.Module):
    """KL shape prior (ours): divergence of the latent of shape from its prior, as in a variational autoencoder.

        L = mean_b Σ_z KL(N(μ, σ²) || N(μ0, σ0²)) = mean_b Σ_z ½ (ln(σ0² / σ²) + (σ² + (μ - μ0)²) / σ0² - 1)

    `shape_prior` holds μ and ln σ². A sample whose label is ignored throughout is left out. Label and prediction are
    used for nothing else.

    Args:
        mean: μ0 of each latent variable, (Z,), or 0 for all.
        log_variance: ln σ0² of each latent variable, (Z,), or 0 for all.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored, shape_prior (B, 2, Z) → scalar.

    Advantages:
        Keeps the latent space smooth, so that shapes between and around those of training are plausible.

    Disadvantages:
        Too strong, it empties the latent (posterior collapse); it says nothing about the segmentation.

    Use:
        A term of a sum with a small weight or a rising schedule, with a model that returns a latent.

    Elsewhere:
        torch.distributions.kl_divergence gives the same for each variable.
    """

    version = 1
    taxonomy = ("shape prior", "distribution")
    declares: ClassVar[dict[str, str]] = {
        "descent": "acts on the latent, not on the prediction",
    }
    mean: Tensor | None
    log_variance: Tensor | None

    def __init__(self, mean: Tensor | None = None, log_variance: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("log_variance", log_variance, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, *, shape_prior: Tensor) -> Tensor:
        """Return the loss."""
        mean, log_variance = full_precision(shape_prior).unbind(1)
        if self.mean is not None:
            mean = mean - self.mean.to(mean.dtype)
        precision = torch.ones_like(mean)
        if self.log_variance is not None:
            prior = self.log_variance.to(mean.dtype)
            # ln σ² - ln σ0² is all that ln σ² enters by
            log_variance, precision = log_variance - prior, (-prior).exp()
        # beyond e^60 the tangent: still a number of float32
        spread = log_variance.clamp_max(60).exp() * (1 + (log_variance - 60).clamp_min(0))
        losses = (spread - log_variance + mean * mean * precision - 1).sum(1) / 2
        weight = (target != IGNORE).flatten(1).any(1).to(losses.dtype)
        return (losses * weight).sum() / weight.sum().clamp_min(1)


class ShapeAlignment(nn.Module):
    """Shape alignment (ours): how far the maps of class tokens are from the truth on their grid, by Dice or the cosine.

        dice:   L = 1 - mean_c (2 Σ m_c t_c + s) / (Σ m_c² + Σ t_c² + s)
        cosine: L = 1 - mean_c (Σ m_c t_c + s) / (sqrt(Σ m_c² Σ t_c²) + s)

    m are the maps, t_c the share of class c in each cell of their grid. Squares in the denominator, because t is not 0
    or 1 in cells on a contour: both forms are 0 at m = t and only there (the cosine at any multiple). Cells that hold
    an ignored voxel are left out.

    Args:
        form: `dice` or `cosine`.
        background: Whether class 0 counts.
        reduction: Sums over the whole batch, or per sample.
        absent: What a class without a voxel contributes: as it comes out, nothing, or its mean probability.
        smooth: s.

    Raises:
        ValueError: form is neither dice nor cosine, or another option is unknown.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored, token_maps (B, C, *S') → scalar.

    Advantages:
        Gives tokens a meaning early, on a coarse grid, where shape rather than contour is seen.

    Disadvantages:
        The prediction itself is not looked at; small structures are lost on a coarse grid.

    Use:
        A term of a sum, with a model that returns maps of class tokens.

    Elsewhere:
        Nowhere in this form.
    """

    version = 1
    taxonomy = ("shape prior", "region")
    declares: ClassVar[dict[str, str]] = {
        "descent": "acts on the token maps, not on the prediction",
    }

    def __init__(
        self,
        form: Literal["dice", "cosine"] = "dice",
        background: bool = True,
        reduction: Reduction = "batch",
        absent: Absent = "include",
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if form not in ("dice", "cosine"):
            raise ValueError(f"form must be 'dice' or 'cosine', found {form!r}")
        self.form, self.background, self.smooth = form, background, smooth
        self.reduction, self.absent = check_reduction(reduction), check_absent(absent)

    def forward(self, logits: Tensor, target: Tensor, *, token_maps: Tensor) -> Tensor:
        """Return the loss."""
        maps = full_precision(token_maps)
        with torch.no_grad():
            whole = (_shares(target == IGNORE, maps) == 0).to(maps.dtype)
            shares = [_shares(target == c, maps) for c in range(maps.shape[1])]
            truth = (torch.stack(shares, 1) * whole[:, None]).flatten(2)
        maps = (maps * whole[:, None]).flatten(2)
        rows = [(maps * truth).sum(2), (maps * maps).sum(2), (truth * truth).sum(2), maps.sum(2), truth.sum(2)]
        counted = whole.flatten(1).sum(1, keepdim=True)
        if self.reduction == "batch":
            rows, counted = [r.sum(0, keepdim=True) for r in rows], counted.sum(0, keepdim=True)
        both, m2, t2, m, t = rows
        if self.form == "dice":
            losses = ratio(m2 + t2 - 2 * both, m2 + t2 + self.smooth)
        else:
            # the root of a product that may be 0 has no finite slope
            norm = (m2 * t2).clamp_min(torch.finfo(m2.dtype).tiny).sqrt()
            losses = 1 - (both + self.smooth) / (norm + self.smooth)
        return over_classes(losses, RegionSums(both, m, t, counted), self.background, self.absent)


def _shares(mask: Tensor, maps: Tensor) -> Tensor:
    """The share of a mask (B, *S) in each cell of the grid of maps (B, A, *S')."""
    size = maps.shape[2:]
    if mask.shape[1:] == size:
        return mask.to(maps.dtype)
    values = mask.to(maps.dtype)[:, None]
    if len(size) == 2:
        return F.adaptive_avg_pool2d(values, (size[0], size[1]))[:, 0]
    return F.adaptive_avg_pool3d(values, (size[0], size[1], size[2]))[:, 0]


def _dilate(mask: Tensor, steps: int) -> Tensor:
    """Dilate (B, *S) by a box of 2 steps + 1."""
    if steps == 0:
        return mask
    pool = F.max_pool2d if mask.ndim == 3 else F.max_pool3d
    return pool(mask.float()[:, None], 2 * steps + 1, stride=1, padding=steps)[:, 0] > 0
