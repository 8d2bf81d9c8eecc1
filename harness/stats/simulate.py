"""Grids whose truth is known, many replicates at once, and how often the analysis errs on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.stats.contrasts import ALPHA, holm, interval, p_values
from harness.stats.crossed import Index, Strata, pair_error, strata
from harness.stats.design import KEPT_AT_LEAST, Array
from harness.stats.misses import rate_floor

Shape = Literal["gaussian", "dice", "hd95", "misses"]
SHAPES: tuple[Shape, ...] = ("gaussian", "dice", "hd95", "misses")
CASE_SD, RESIDUAL_SD, RUN_MAIN_SD = 0.05, 0.02, 0.005
MEAN_ERROR = 0.08
"""1 − Dice of a typical case of the skewed form."""
LOG_SCALE, LOG_LEVEL, MISSED_ABOVE = 10.0, 1.6, 2.55
"""log(1 + mm) = 1.6 + 10 × (the effects on the Dice scale); above 2.55 the case is missed: 3 to 4 % of them."""


@dataclass(frozen=True)
class Setting:
    """One truth.

    Attributes:
        losses: Number of losses; none differs from another in the population.
        seeds: Seeds per fold.
        patients: In all.
        folds: 1, or J with the patients dealt among them.
        run_sd: SD of loss × run, on the scale of Dice: one number, or one per loss.
        patient_sd: SD of loss × patient: one number, or one per loss.
        shape: `gaussian`; `dice`: 1 − Dice is lognormal; `hd95`: log(1 + mm) with skewed residuals, hard cases missed
            and left out; `misses`: whether those cases are missed.
        overlap: Share of the variance of loss × fold that all folds have in common because their training sets overlap;
            1 / J is what Nadeau and Bengio's factor assumes. With folds and several seeds, half of the variance of
            loss × run belongs to the fold and half to the seed.
    """

    losses: int
    seeds: int
    patients: int
    folds: int = 1
    run_sd: float | tuple[float, ...] = 0.005
    patient_sd: float | tuple[float, ...] = 0.01
    shape: Shape = "gaussian"
    overlap: float = 0.0

    @property
    def inflation(self) -> float:
        """Nadeau and Bengio's factor for J-fold cross-validation, n_test / n_train = 1 / (J − 1)."""
        return 1.0 if self.folds == 1 else 1 + self.folds / (self.folds - 1)


def draw(setting: Setting, replicates: int, rng: np.random.Generator) -> list[Array]:
    """Values of all replicates: one array (replicate, loss, seed, patient) per fold; NaN where a case was missed."""
    run_sd = np.broadcast_to(np.asarray(setting.run_sd, dtype=float), setting.losses)[:, None, None]
    patient_sd = np.broadcast_to(np.asarray(setting.patient_sd, dtype=float), setting.losses)[:, None, None]
    n, losses, seeds, j = replicates, setting.losses, setting.seeds, setting.folds
    common = rng.normal(size=(n, losses, 1, 1)) * np.sqrt(setting.overlap)
    by_seed = 0.5 if j > 1 and seeds > 1 else 0.0
    counts = [setting.patients // j + (f < setting.patients % j) for f in range(j)]
    out = []
    for count in counts:
        own = rng.normal(size=(n, losses, 1 if by_seed else seeds, 1)) * np.sqrt(1 - setting.overlap)
        run = (common + own) * np.sqrt(1 - by_seed)
        if by_seed:
            run = run + rng.normal(size=(n, losses, seeds, 1)) * np.sqrt(by_seed)
        u = rng.normal(size=(n, 1, 1, count)) * CASE_SD + rng.normal(size=(n, 1, seeds, 1)) * RUN_MAIN_SD
        u = u + run * run_sd + rng.normal(size=(n, losses, 1, count)) * patient_sd
        shape = (n, losses, seeds, count)
        if setting.shape in ("hd95", "misses"):
            u = u + (rng.gamma(2.0, size=shape) - 2.0) / np.sqrt(2.0) * RESIDUAL_SD
        else:
            u = u + rng.normal(size=shape) * RESIDUAL_SD
        out.append(_shaped(u, setting.shape))
    return out


def _shaped(u: Array, shape: Shape) -> Array:
    if shape == "gaussian":
        return 0.85 + u
    if shape == "dice":
        return 1 - np.minimum(MEAN_ERROR * np.exp(u / MEAN_ERROR), 1.0)
    value = LOG_LEVEL + LOG_SCALE * u
    missed = value > MISSED_ABOVE
    return missed.astype(float) if shape == "misses" else np.where(missed, np.nan, value)


@dataclass(frozen=True)
class Errors:
    """What a setting gave.

    Attributes:
        replicates: Analysed by the closed forms.
        gaps: Not: too few patients remained that every loss has, which is a case for REML.
        false_positives: Share of the comparisons with p < 0.05, averaged over the losses against the baseline.
        worst: The same for the loss where it is largest.
        family: Share of the replicates with any finding after Holm.
        coverage: Share of the 95 % intervals that hold the true difference, averaged as `false_positives`.
        power: Share of the replicates that find loss 1 after Holm.
    """

    replicates: int
    gaps: int
    false_positives: float
    worst: float
    family: float
    coverage: float
    power: float


def measure(setting: Setting, replicates: int, rng: np.random.Generator, shift: float = 0.0) -> Errors:
    """Draw, analyse and count. With `shift`, loss 1 is truly better by that much and counts for power only.

    Args:
        setting: The truth.
        replicates: How many.
        rng: Random numbers.
        shift: Added to loss 1, on the scale of the effects.
    """
    blocks = draw(setting, replicates, rng)
    for block in blocks:
        block[:, 1] += shift
    effect, variance, df = analysed(blocks, setting)
    truth = np.zeros(setting.losses - 1)
    truth[0] = shift
    p = p_values(effect, variance, df)
    lower, upper = interval(effect, variance, df)
    adjusted = holm(p)
    null = truth == 0
    rate = (p[:, null] < ALPHA).mean(axis=0) if null.any() else np.zeros(1)
    inside = ((lower <= truth + 1e-12) & (truth - 1e-12 <= upper)).mean()
    family = (adjusted[:, null] < ALPHA).any(axis=1).mean() if null.any() else 0.0
    return Errors(
        len(p),
        replicates - len(p),
        float(rate.mean()),
        float(rate.max()),
        float(family),
        float(inside),
        float((adjusted[:, 0] < ALPHA).mean()),
    )


def analysed(blocks: Sequence[Array], setting: Setting) -> tuple[Array, Array, Array]:
    """Effects against loss 0, their variances and degrees of freedom: (replicates, losses − 1)."""
    j = np.arange(1, setting.losses, dtype=np.intp)
    i = np.zeros_like(j)
    if not any(bool(np.isnan(b).any()) for b in blocks):
        return _closed(strata(blocks), i, j, setting)
    whole = [np.asarray(~np.isnan(b).any(axis=(1, 2))) for b in blocks]
    counts = np.stack([w.sum(axis=1) for w in whole], axis=1)
    order = np.argsort(counts, axis=1, kind="stable")  # folds are alike: fewer shapes when sorted by their size
    shapes = np.sort(counts, axis=1)
    parts = []
    for shape in np.unique(shapes, axis=0):
        if shape.min() < 2 or shape.sum() < KEPT_AT_LEAST * setting.patients:
            continue
        rows = np.flatnonzero((shapes == shape).all(axis=1))
        kept = [_kept(blocks, whole, rows, order[rows, f], int(count)) for f, count in enumerate(shape)]
        parts.append(_closed(strata(kept), i, j, setting))
    effect, variance, df = (np.concatenate(x) for x in zip(*parts, strict=True))
    return effect, variance, df


def _kept(blocks: Sequence[Array], whole: Sequence[NDArray[np.bool_]], rows: Index, folds: Index, count: int) -> Array:
    """The complete patients of one fold of each replicate, as one array."""
    out = [blocks[f][r][:, :, whole[f][r]] for r, f in zip(rows, folds, strict=True)]
    assert all(x.shape[-1] == count for x in out)
    return np.stack(out)


def _closed(found: Strata, i: Index, j: Index, setting: Setting) -> tuple[Array, Array, Array]:
    error = pair_error(found, i, j, setting.inflation)
    variance = error.variance
    if setting.shape == "misses":
        variance = np.maximum(variance, rate_floor(setting.patients))
    return found.means[..., j] - found.means[..., i], variance, error.df


def recovered(setting: Setting, replicates: int, rng: np.random.Generator) -> dict[str, float]:
    """Mean over replicates of the components loss × run, loss × patient and residual, negative estimates included."""
    found = strata(draw(setting, replicates, rng))
    if found.seed is None or found.residual is None:
        assert found.fold is not None
        f, b = found.fold.pooled, found.patient.pooled
        return {"loss × run": float(((f - b) / found.patients).mean()), "loss × patient and residual": float(b.mean())}
    a, b, e = found.seed.pooled, found.patient.pooled, found.residual.pooled
    return {
        "loss × run": float(((a - e) / found.patients).mean()),
        "loss × patient": float(((b - e) / found.seeds).mean()),
        "residual": float(e.mean()),
    }
