"""The generalized surface loss of Celaya et al., alone and with a region loss that it takes over from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.losses import LOSSES
from harness.losses._common import Reduction, flat, of_class, ratio
from harness.losses._maps import per_axis, signed_map
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.schedules import Schedule, schedule

Weights = Literal["counts", "surface", "none"]


class GeneralizedSurface(nn.Module):
    """Generalized surface loss (Celaya et al., 2023, eq. 12): 1 - Σ_c w_c Σ (D (1 - (T + P)))² / Σ_c w_c Σ D².

    The signed distance map D weighs how far a prediction is from the worst one, P = 1 - T, in a ratio that lies in
    [0, 1] (eqs. 10 to 13):

        L = 1 - Σ_c w_c Σ_n |D_cn (1 - (T_cn + P_cn))|^norm / Σ_c w_c Σ_n |D_cn|^norm

    D is the map of `Boundary`, 0 on the rim of the object; its sign plays no role. Weights of the classes: eq. 13,
    w_c = (1 / n_c) / Σ_j (1 / n_j) with the voxels n_c of the training split, and eq. 17 with a power, (1 / n_c)^power;
    by surface, with its boundary voxels for n_c; given, or none. A common factor of the weights cancels. A class
    without a voxel in the training split has weight 0 (our reading).

    A class that is absent from a sample has no distance map. The authors' code gives it the diagonal of the image
    everywhere, so that predicting it costs (`penalise`); the diagonal here is that of the box of valid voxels, in the
    unit of the spacing. `skip` leaves it out: the maps of the harness are 0 there. The diagonal is larger than any
    distance, so an absent class outweighs those present; a class that fills the sample has D = 0 either way.

    Args:
        norm: Exponent: 2 is eq. 12, 1 the variant with absolute values.
        weights: `counts` (eqs. 13 and 17), `surface`, or `none` for equal ones.
        power: Power of the weights, eq. 17; 1 is eq. 13.
        weight: Weights of the classes with background, (C,), in place of `weights`.
        background: Whether class 0 counts.
        reduction: One ratio per sample, as the authors do, or one for the batch.
        absent: `penalise` or `skip`.
        class_counts: n_c, a fact of the data set.
        class_surface: Boundary voxels of each class, a fact of the data set.

    Raises:
        ValueError: An argument is none of its choices, or the counts that the weights need are not known.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → scalar in [0, 1].

    Advantages:
        Bounded and balanced between classes, with errors weighted by their squared distance: it aims at the Hausdorff
        distance, and needs the maps of the truth only.

    Disadvantages:
        With norm 2 it is concave in the error: the gradient is 0 at the worst prediction and largest near the truth,
        so alone it starts badly. Voxels on the rim of their own class weigh nothing there.

    Use:
        As the second half of `GSL`.

    Elsewhere:
        MIST 2.3 averages one ratio per class without weights, always leaves out the background and adds 1e-6 below;
        with w_c = 1 / Σ D_c² this loss does the same. The authors' first code has w_c = 1 / (n_c² + 1) per sample where
        none are given, and a Maurer map whose inside is measured to the object's own rim.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    weight: Tensor | None

    def __init__(
        self,
        norm: Literal[1, 2] = 2,
        weights: Weights = "counts",
        power: float = 1.0,
        weight: Tensor | None = None,
        background: bool = True,
        reduction: Reduction = "sample",
        absent: Literal["penalise", "skip"] = "penalise",
        class_counts: Sequence[float] | None = None,
        class_surface: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        choices: dict[str, tuple[object, tuple[object, ...]]] = {
            "norm": (norm, (1, 2)),
            "weights": (weights, ("counts", "surface", "none")),
            "reduction": (reduction, ("batch", "sample")),
            "absent": (absent, ("penalise", "skip")),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, found {value!r}")
        if power < 0:
            raise ValueError(f"power must not be negative, found {power}")
        if weight is None and weights != "none":
            numbers = class_counts if weights == "counts" else class_surface
            if numbers is None:
                name = "class_counts" if weights == "counts" else "class_surface"
                raise ValueError(f"{name} are not known; give them, or weight, or weights: none")
            weight = _inverse(numbers, power)
        self.norm, self.background, self.reduction, self.absent = norm, background, reduction, absent
        self.register_buffer("weight", weight, persistent=False)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        distance_in: Tensor,
        distance_out: Tensor,
        spacing: Tensor,
        present: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Return the loss."""
        scores, labels, _ = flat(logits, target)
        probs = scores.softmax(1)
        with torch.no_grad():
            maps = signed_map(distance_in, distance_out, spacing).abs()
            if self.absent == "penalise":
                empty = per_axis(~present, maps) & valid[:, None]
                maps = torch.where(empty, per_axis(_diagonal(valid, spacing), maps).to(maps.dtype), maps)
            maps = maps.flatten(2).to(probs.dtype) ** self.norm
            whole = maps.sum(2)
        # 1 - |1 - (t + p)| is the error e = |t - p| as t is 0 or 1: 1 - (1 - e)², written without cancellation
        error = _error(probs, labels)
        lost = (maps * (error if self.norm == 1 else error * (2 - error))).sum(2)
        if self.weight is not None:
            numbers = torch.arange(probs.shape[1], device=probs.device)
            weight = of_class(self.weight, scores, numbers)
            lost, whole = lost * weight, whole * weight
        first = 0 if self.background else 1
        lost, whole = lost[:, first:].sum(1), whole[:, first:].sum(1)
        if self.reduction == "batch":
            lost, whole = lost.sum(0), whole.sum(0)
        return ratio(lost, whole).mean()


class GSL(nn.Module):
    """GSL (Celaya et al., 2023, eqs. 14 to 16): α · region loss + (1 - α) · generalized surface loss, α from 1 to 0.

        L = α(e) L_region + (1 - α(e)) L_surface

    α falls over the epochs along a line (eq. 14), in steps (eq. 15) or along a cosine (eq. 16): `linear: [1, 0]`,
    `step: {every: 5, from: 1, to: 0}`, `cosine: [1, 0]`; a number stays what it is. The region loss is the sum of Dice
    and cross-entropy in the paper; here it is any loss of the catalogue. Both terms are returned without α. The
    arguments of `GeneralizedSurface` are passed on.

    Args:
        region: Name of the region loss in the catalogue.
        region_args: Its arguments.
        alpha: The schedule of α, the name `linear` or `cosine` for one from 1 to 0, or a number.
        norm: See `GeneralizedSurface`.
        weights: See there.
        power: See there.
        weight: See there.
        background: Whether class 0 counts in the surface loss.
        reduction: See there.
        absent: See there.
        class_counts: A fact of the data set, for both.
        class_surface: A fact of the data set, for both.

    Raises:
        ValueError: The region loss or the schedule is not known, or an argument of the surface loss is wrong.

    Shape:
        logits (B, C, *S) raw, target (B, *S) int64 with 255 ignored → {"loss", "region", "surface"}, scalars.

    Advantages:
        The region loss carries the start, where the surface loss has no gradient, and the surface loss the end, where
        its gradient is largest; both are bounded or nearly so, and need no tuning against each other.

    Disadvantages:
        The schedule has to know the number of epochs; at its end nothing but the surface loss is left, which is blind
        on rims.

    Use:
        Where HD95 and surface distances matter as much as Dice.

    Elsewhere:
        MIST 2.3 halves Dice and cross-entropy, knows no step schedule and keeps α at 1 for the first epochs.
    """

    version = 1
    taxonomy = ("combination", "compound")

    def __init__(
        self,
        region: str = "dice_ce",
        region_args: Mapping[str, Any] | None = None,
        alpha: float | str | Mapping[str, Any] = "linear",
        norm: Literal[1, 2] = 2,
        weights: Weights = "counts",
        power: float = 1.0,
        weight: Tensor | None = None,
        background: bool = True,
        reduction: Reduction = "sample",
        absent: Literal["penalise", "skip"] = "penalise",
        class_counts: Sequence[float] | None = None,
        class_surface: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        # imported late: it needs every module of the losses
        from harness.losses.build import build_loss

        if region not in LOSSES or region == "gsl":
            raise ValueError(f"the region loss must be another loss of the catalogue, found {region!r}")
        known = {"class_counts": class_counts, "class_surface": class_surface}
        facts = {name: value for name, value in known.items() if value is not None}
        self.region = build_loss({"name": region, "class": LOSSES[region], "args": dict(region_args or {})}, facts)
        self.surface = GeneralizedSurface(
            norm, weights, power, weight, background, reduction, absent, class_counts, class_surface
        )
        self.alpha: float | Schedule = _alpha(alpha)
        required, optional = needs_of(self.region)
        scheduled = {"progress", "epochs"} if callable(self.alpha) else set()
        required |= needs_of(self.surface)[0] | scheduled
        self.needs = (required, optional - required)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        distance_in: Tensor,
        distance_out: Tensor,
        spacing: Tensor,
        present: Tensor,
        valid: Tensor,
        progress: Tensor | None = None,
        epochs: Tensor | None = None,
        **offered: Any,
    ) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms."""
        maps = {"distance_in": distance_in, "distance_out": distance_out, "spacing": spacing}
        maps |= {"present": present, "valid": valid}
        clock = {k: v for k, v in (("progress", progress), ("epochs", epochs)) if v is not None}
        region = evaluate_loss(self.region, logits, target, maps | clock | offered)["loss"]
        surface = self.surface(logits, target, **maps)
        alpha = self.alpha(clock["progress"], clock["epochs"]) if callable(self.alpha) else self.alpha
        return {"loss": alpha * region + (1 - alpha) * surface, "region": region, "surface": surface}

    def epoch_end(self) -> None:
        """Tell the region loss."""
        if callable(end := getattr(self.region, "epoch_end", None)):
            end()


def _alpha(spec: float | str | Mapping[str, Any]) -> float | Schedule:
    if isinstance(spec, str):
        if spec not in ("linear", "cosine"):
            raise ValueError(f"alpha must be 'linear', 'cosine', a schedule or a number, found {spec!r}")
        spec = {spec: [1.0, 0.0]}
    return schedule(spec) if isinstance(spec, Mapping) else float(spec)


def _inverse(numbers: Sequence[float], power: float) -> Tensor:
    counts = torch.as_tensor(numbers, dtype=torch.float64)
    weight = torch.where(counts > 0, 1 / counts.clamp_min(1), 0.0) ** power
    weight = torch.where(counts > 0, weight, 0.0)  # 0 to the power of 0 is 1
    return (weight / weight.sum().clamp_min(1e-300)).float()


def _error(probs: Tensor, labels: Tensor) -> Tensor:
    """|t - p| with the probabilities' own digits: 1 - p in the true class, p elsewhere."""
    own = torch.zeros_like(probs, dtype=torch.bool).scatter_(1, labels[:, None], True)
    return torch.where(own, 1 - probs, probs)


def _diagonal(valid: Tensor, spacing: Tensor) -> Tensor:
    """Length of the diagonal of the box of the valid voxels, (B,)."""
    total = torch.zeros(len(valid), device=valid.device)
    for axis in range(1, valid.ndim):
        there = valid.movedim(axis, 1).flatten(2).any(2)
        at = torch.arange(there.shape[1], device=valid.device)
        last = torch.where(there, at, -1).amax(1)
        first = torch.where(there, at, there.shape[1]).amin(1)
        extent = (last - first + 1).clamp_min(0) * spacing[:, axis - 1]
        total = total + extent**2
    return total.sqrt()
