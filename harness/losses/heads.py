"""A loss on a head of its own: the distance to the outline, in bins, at every voxel of an object."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.losses._common import IGNORE, full_precision
from harness.losses.active_boundary import smallest
from harness.losses.targets import distance_to

# Of a distance in voxels: 0.6 / 0.2 is 3.0000002 in float32, and shall not be rounded up to 4.
SLACK = 1e-4
OTHER_HEAD = "reads a head of its own, so the logits of the segmentation have no gradient from it"


class DistanceHead(nn.Module):
    """Boundary-aware distance head (Hayder et al., 2017): K binary cross-entropies of the truncated distance's bin.

    Azad et al., 2023, eq. 27.

        D(p) = min(⌈d(p)⌉, R) inside an object, 0 outside,   D(p) = Σ_n r_n b_n(p),   Σ_n b_n(p) = 1
        L = mean_p Σ_n BCE(σ(z_n(p)), b_n(p))

    z are the `bins` channels of the head `distance_logits`, one sigmoid each. The object is decoded as the union of
    discs around all voxels, with the radius of their bin (`decode`).

    The paper is on single instances. With several classes d is the distance to the nearest voxel outside the voxel's
    own foreground class, in the unit of the smallest spacing, so at least 1; the background is bin 0. R and K are not
    known to us: bins and radii are r_n = n R / (K - 1), with R = K - 1 = 9 and so a bin for each whole distance by
    default. With fewer bins a distance goes to the next larger one, so that bin 0 is the background alone. A class that
    fills the patch has no outside, and its voxels get R. Sum over bins, mean over voxels. (All our reading.)

    Args:
        bins: K, the channels of the head.
        max_distance: R; K - 1 by default.

    Attributes:
        channels: The head's channels, for the harness.

    Raises:
        ValueError: Fewer than 2 bins, or R below 1.

    Shape:
        logits (B, C, *S) raw and not used, target (B, *S) int64 with 255 ignored, distance_logits (B, K, *S) → scalar.

    Advantages:
        Every voxel of an object says where the outline is, so a part that is missed elsewhere can be mended, and the
        shape is learned along with the label. The distances are cut off, so no far voxel rules the loss.

    Disadvantages:
        Trains a head of its own: the segmentation gains through the shared features alone. Distances are whole voxels,
        and thick objects all end in the last bin.

    Use:
        Added to cross-entropy or Dice; `decode` turns the head into a foreground mask.

    Elsewhere:
        Jadon, 2020, cites this paper for its shape-aware loss and prints the formula of Al Arif et al., 2017, another
        loss. No released code is known to us.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "descent": OTHER_HEAD,
        "classwise": "distances are of a whole object: mending some voxels can set the bins of others further off",
    }
    radii: Tensor

    def __init__(self, bins: int = 10, max_distance: float | None = None) -> None:
        super().__init__()
        reach = bins - 1.0 if max_distance is None else float(max_distance)
        if bins < 2 or reach < 1:
            raise ValueError(f"expected bins >= 2 and max_distance >= 1, found {bins} and {reach}")
        self.bins, self.max_distance = bins, reach
        self.channels = {"distance_logits": bins}
        self.register_buffer("radii", torch.arange(bins) * (reach / (bins - 1)), persistent=False)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        distance_in: Tensor,
        distance_logits: Tensor,
        spacing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss.

        Raises:
            ValueError: The head has another number of channels.
        """
        if distance_logits.shape[1] != self.bins:
            raise ValueError(f"expected {self.bins} channels of distance_logits, found {distance_logits.shape[1]}")
        scores = full_precision(distance_logits)
        valid = target != IGNORE
        # Σ_n BCE = Σ_n softplus(z_n) - z of the true bin: no one-hot of the head's size
        true = scores.gather(1, self._bin(target, distance_in, spacing)[:, None])[:, 0]
        loss = torch.where(valid, F.softplus(scores).sum(1) - true, 0.0)
        # an empty sum: the logits are part of the graph
        return loss.sum() / valid.sum().clamp_min(1) + full_precision(logits[:0]).sum()

    def encode(self, target: Tensor, distance_in: Tensor, spacing: Tensor | None = None) -> Tensor:
        """The true bins, (B, K, *S) bool with one True at each voxel; an ignored voxel has bin 0."""
        numbers = torch.arange(self.bins, device=target.device).view(-1, *[1] * (target.ndim - 1))
        return self._bin(target, distance_in, spacing)[:, None] == numbers

    def decode(self, distance_logits: Tensor, spacing: Tensor | None = None) -> Tensor:
        """The foreground that a head draws: the union of open discs (balls) with the radius of the most likely bin.

        A disc is open, because D is at least the distance to the nearest voxel outside: an object of straight sides
        along the axes is recovered exactly, another one is drawn too large, by up to the next voxel, where D was
        rounded up, and more with fewer bins.

        Args:
            distance_logits: (B, K, *S).
            spacing: (B, D).

        Returns:
            (B, *S) bool.
        """
        chosen = distance_logits.argmax(1)
        found = torch.zeros_like(chosen, dtype=torch.bool)
        sides = distance_logits.new_ones(len(chosen), chosen.ndim - 1) if spacing is None else spacing
        unit = smallest(sides, found.float())
        for number in range(1, self.bins):
            away = distance_to((chosen == number)[:, None], sides)[:, 0] / unit
            found |= away < self.radii[number] - SLACK
        return found

    def _bin(self, target: Tensor, distance_in: Tensor, spacing: Tensor | None) -> Tensor:
        """The number of each voxel's bin, (B, *S)."""
        with torch.no_grad():
            inside = (target != IGNORE) & (target != 0)
            # outside of a class its inner distance is 0: the sum is the one of the voxel's own class
            distance = distance_in.sum(1)
            distance = distance / smallest(spacing, distance)
            whole = torch.where(distance > 0, (distance - SLACK).ceil(), self.max_distance).clamp(max=self.max_distance)
            steps = whole * ((self.bins - 1) / self.max_distance) - SLACK
            return torch.where(inside, steps.ceil(), 0.0).long()
