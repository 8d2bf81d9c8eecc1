"""InverseForm: how far a drawn boundary would have to be moved, measured by a small frozen network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.losses._common import IGNORE, full_precision
from harness.losses.heads import OTHER_HEAD

TILE = 32
# The network sees both tiles blurred and on every second pixel: a shift of a thin line is then a smooth change.
BLUR, STRIDE = 9, 2
SIZES = (2 * (TILE // STRIDE) ** 2, 256, 64, 4)
# Training: steps, pairs in a step, learning rate, shapes and crops of labels drawn beforehand.
STEPS, BATCH, RATE, SHAPES, CROPS = 2000, 64, 1.5e-3, 2048, 512
CANVAS = TILE + TILE // 2
# Largest shift, in half tiles, and largest logarithm of a scale.
SHIFT, SCALE = 0.3, 0.25
# Trained once for each seed and each set of crops: the weights of the terms change nothing about it.
_TRAINED: dict[str, list[Tensor]] = {}


class InverseForm(nn.Module):
    """InverseForm (Borse et al., 2021): balanced cross-entropy of an edge head + the warp that would mend its edges.

    Azad et al., 2023, eq. 29, without the cross-entropy of the segmentation.

        L = edge_weight · BCE_w(e, ∂) + inverse_weight · mean_tiles ‖θ̂(e, ∂) - I‖,   e = σ(z_1 - z_0)

    ∂ is the true boundary, z the head `boundary_logits`. Edges and other voxels have weights w of the other kind's
    share, over the batch. θ̂ is measured by a small frozen network on tiles of 32 × 32 pixels of both maps.

    The authors' weights may not be passed on, and how they were trained was never released, so `prepare` trains a
    network of our own (our reading, with less than the paper's 224 × 224 pixels, 1000 units and homographies): a
    perceptron on both tiles, blurred, that regresses shift and log scale along both axes from pairs of a boundary and
    that of the warped mask. The shapes are level sets of random fields, and parts of the training labels. It is seeded,
    takes some ten seconds on one CPU core, and is part of the module's state. What it says of the truth with itself is
    subtracted, so that the term is 0 for a perfect edge. Shifts count in half tiles.

    Tiles start at the first corner, are filled up with zeros, and count if they hold a piece of the true boundary:
    elsewhere there is no shape to measure (there: all tiles of an image stretched to 672 × 1344). 3D images are stacks
    of slices along their first axis (our reading). Ignored voxels have neither edge. The released code has an
    edge-attention term too, which is not in eq. 29, nor here.

    Args:
        edge_weight: Weight of the balanced cross-entropy; 0.3 in the released code.
        inverse_weight: Weight of the measured warp; 0.3 in the released code.

    Raises:
        ValueError: A weight is negative, or both are 0.

    Shape:
        logits (B, C, *S) raw and not used, target (B, *S) int64 with 255 ignored, boundary_logits (B, 2, *S),
        boundary (B, *S) → dict of scalars.

    Advantages:
        Tells an edge that is a little off from one that is far away, where voxel-wise losses count both as wrong, and
        so forgives a small shift of a right shape.

    Disadvantages:
        Needs an edge head and a trained network, whose reading is a rough one with false minima, and
        meaningless for predictions that look like no boundary. The segmentation gains through shared features alone.

    Use:
        Added to cross-entropy with weight 1.

    Elsewhere:
        The released code applies a log-softmax over channels to an edge head with a single channel: its network always
        sees zeros, and the term has no gradient at all. Here the head's probability is used.
    """

    version = 1
    taxonomy = ("boundary", "boundary")
    declares: ClassVar[dict[str, str]] = {
        "descent": OTHER_HEAD,
        "axes": "a trained network is not the same along both axes, and 3D images are slices along the first",
        "monotone_large": "the network knows shifts of up to 0.3 half tiles, and nothing of false edges",
        "classwise": "mending part of an outline can leave a new edge inside it",
    }
    trained: Tensor

    def __init__(self, edge_weight: float = 0.3, inverse_weight: float = 0.3) -> None:
        super().__init__()
        if min(edge_weight, inverse_weight) < 0 or edge_weight == inverse_weight == 0:
            raise ValueError(f"weights must not be negative, nor both 0, found {edge_weight} and {inverse_weight}")
        self.edge_weight, self.inverse_weight = edge_weight, inverse_weight
        for i, (fan_in, fan_out) in enumerate(pairwise(SIZES)):
            self.register_buffer(f"weight_{i}", torch.zeros(fan_out, fan_in))
            self.register_buffer(f"bias_{i}", torch.zeros(fan_out))
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))
        self._ready = False  # the same on the host, so that no step waits for the device

    def prepare(self, labels: Sequence[Tensor], *, device: torch.device, generator: torch.Generator) -> None:
        """Train the network, on the CPU wherever the loss is: some ten seconds, and the same on every device.

        Args:
            labels: Training labels (*S), int64; none are needed.
            device: Where the weights go.
            generator: What the seed is drawn from.
        """
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            crops = _crops(labels, torch.Generator().manual_seed(seed))
            key = hashlib.sha256(crops.numpy().tobytes() + str(seed).encode()).hexdigest()
            if key not in _TRAINED:
                _TRAINED[key] = _train(seed, crops)
        self.to(device)
        for buffer, found in zip(self._weights(), _TRAINED[key], strict=True):
            buffer.copy_(found)
        self.trained.fill_(True)
        self._ready = True

    def forward(
        self, logits: Tensor, target: Tensor, *, boundary_logits: Tensor, boundary: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss with its unweighted terms.

        Raises:
            RuntimeError: `prepare` was not called, nor a prepared state loaded.
            ValueError: The edge head has not 2 channels.
        """
        if not self._ready:
            raise RuntimeError("InverseForm has no trained network yet; call prepare(labels, device=, generator=)")
        if boundary_logits.shape[1] != 2:
            raise ValueError(f"expected 2 channels of boundary_logits, found {boundary_logits.shape[1]}")
        with torch.autocast(logits.device.type, enabled=False):
            scores = full_precision(boundary_logits)
            score, valid = scores[:, 1] - scores[:, 0], target != IGNORE
            truth = (boundary & valid).to(score.dtype)
            edge = _balanced(score, truth, valid)
            inverse = self._measured(torch.where(valid, score.sigmoid(), 0.0), truth)
        # an empty sum: the logits are part of the graph
        loss = self.edge_weight * edge + self.inverse_weight * inverse + full_precision(logits[:0]).sum()
        return {"loss": loss, "edge": edge, "inverse": inverse}

    def measure(self, edges: Tensor, truth: Tensor) -> Tensor:
        """Shift along both axes in half tiles, and log scales, of edges against the true ones: (T, 32, 32) → (T, 4)."""
        return _apply(edges, truth, [w.to(edges.dtype) for w in self._weights()])

    def _measured(self, edges: Tensor, truth: Tensor) -> Tensor:
        edges, truth = _tiles(edges), _tiles(truth)
        size = (self.measure(edges, truth).square().sum(1) + 1e-12).sqrt()
        counts = truth.flatten(1).amax(1)
        return (size * counts).sum() / counts.sum().clamp_min(1)

    def _weights(self) -> list[Tensor]:
        return [self.get_buffer(f"{kind}_{i}") for i in range(len(SIZES) - 1) for kind in ("weight", "bias")]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.trained)


def _balanced(scores: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy whose weights are the share of the other kind among all valid voxels."""
    number, positive = valid.sum().to(scores.dtype), truth.sum()
    weight = torch.where(truth > 0, number - positive, positive) / number.clamp_min(1)
    loss = torch.where(valid, weight * (F.softplus(scores) - truth * scores), 0.0)
    return loss.sum() / number.clamp_min(1)


def _tiles(maps: Tensor) -> Tensor:
    """(B, *S) → (T, TILE, TILE), with zeros at the far ends."""
    maps = maps.flatten(0, -3)
    rows, columns = (-(-side // TILE) for side in maps.shape[1:])
    full = F.pad(maps, [0, columns * TILE - maps.shape[2], 0, rows * TILE - maps.shape[1]])
    return full.view(-1, rows, TILE, columns, TILE).transpose(2, 3).reshape(-1, TILE, TILE)


def _apply(edges: Tensor, truth: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The measured shift and log scale of each tile, (T, 4): those of the pair, less those of the truth with itself."""
    seen, true = _blurred(edges), _blurred(truth)
    pairs = torch.cat([torch.cat([seen, true], 1), torch.cat([true, true], 1)])
    measured, rest = _network(pairs, weights).chunk(2)
    return measured - rest


def _network(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for i in range(0, len(weights), 2):
        x = F.linear(x, weights[i], weights[i + 1])
        if i + 2 < len(weights):
            x = F.silu(x)
    return x


def _blurred(tiles: Tensor) -> Tensor:
    """(T, TILE, TILE) → (T, (TILE / STRIDE)²)."""
    axis = torch.arange(BLUR, dtype=tiles.dtype, device=tiles.device) - BLUR // 2
    line = torch.exp(-axis.square() / (2 * (BLUR / 4) ** 2))
    kernel = (line[:, None] * line / line.sum())[None, None]
    return F.conv2d(tiles[:, None], kernel, stride=STRIDE, padding=BLUR // 2).flatten(1)


def _shapes(number: int, draw: torch.Generator) -> Tensor:
    """Random masks (number, CANVAS, CANVAS): level sets of smooth random fields, of large and of small scale."""
    out = []
    for cells in (3, 4, 6, 9):
        noise = torch.randn(number // 4, 1, cells, cells, generator=draw)
        field = F.interpolate(noise, size=(CANVAS, CANVAS), mode="bicubic", align_corners=True)[:, 0]
        out.append(field > 0.5 * torch.randn(number // 4, 1, 1, generator=draw))
    return torch.cat(out).float()


def _crops(labels: Sequence[Tensor], draw: torch.Generator) -> Tensor:
    """Parts of slices of the labels around pixels of a boundary, (number, CANVAS, CANVAS); few or none where rare."""
    out = [torch.zeros(0, CANVAS, CANVAS)]
    for _ in range(CROPS if len(labels) else 0):
        label = labels[_integer(len(labels), draw)]
        plane = (label if label.ndim == 2 else label[_integer(len(label), draw)]).cpu().float()
        found = _edge(plane[None])[0].nonzero()
        if not len(found):
            continue
        centre = found[_integer(len(found), draw)]
        window = []
        for at, side in zip(centre, plane.shape, strict=True):
            start = int(at) - CANVAS // 2 + _integer(TILE // 2, draw) - TILE // 4
            window.append(torch.arange(start, start + CANVAS).clamp(0, side - 1))
        out.append(plane[window[0]][:, window[1]][None])
    return torch.cat(out)


def _integer(number: int, draw: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=draw))


def _edge(labels: Tensor) -> Tensor:
    """1 at pixels with a face neighbour of another class, neither ignored, as in the need `boundary`."""
    found = torch.zeros_like(labels)
    for axis in (1, 2):
        size = labels.shape[axis] - 1
        low, high = labels.narrow(axis, 0, size), labels.narrow(axis, 1, size)
        differs = ((low != high) & (low != IGNORE) & (high != IGNORE)).to(labels.dtype)
        for start in (0, 1):
            part = found.narrow(axis, start, size)
            part.copy_(torch.maximum(part, differs))
    return found


def _warped(labels: Tensor, warp: Tensor) -> Tensor:
    """The tile in the middle of each canvas, scaled about its centre and shifted: (T, CANVAS, CANVAS) → (T, 32, 32)."""
    # the value at x is that of the label at (x - shift) / scale
    at = (torch.arange(TILE) + 0.5) * (2 / TILE) - 1
    y, x = ((at - warp[:, i : i + 1]) * torch.exp(-warp[:, i + 2 : i + 3]) * (TILE / CANVAS) for i in (0, 1))
    grid = torch.stack([x[:, None].expand(-1, TILE, -1), y[:, :, None].expand(-1, -1, TILE)], -1)
    return F.grid_sample(labels[:, None], grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0]


def _turned(labels: Tensor, way: int) -> Tensor:
    """One of the eight ways to turn and mirror a square: few labels go a long way."""
    labels = labels.transpose(1, 2) if way & 4 else labels
    return labels.flip([axis for axis in (1, 2) if way & axis])


def _train(seed: int, crops: Tensor) -> list[Tensor]:
    """Weights and biases of the network."""
    draw = torch.Generator().manual_seed(seed)
    bank = torch.cat([_shapes(SHAPES, draw), crops])
    weights: list[Tensor] = []
    for fan_in, fan_out in pairwise(SIZES):
        bound = fan_in**-0.5
        for shape in ((fan_out, fan_in), (fan_out,)):
            weights.append((torch.rand(shape, generator=draw) * 2 * bound - bound).requires_grad_())
    adam = torch.optim.Adam(weights, lr=RATE)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        labels = _turned(bank[torch.randint(len(bank), (BATCH,), generator=draw)], _integer(8, draw))
        limits = torch.tensor([SHIFT, SHIFT, SCALE, SCALE])
        warp = (torch.rand(BATCH, 4, generator=draw) * 2 - 1) * limits
        with torch.no_grad():
            truth, moved = (_edge(_warped(labels, w)) for w in (torch.zeros_like(warp), warp))
            # predicted edges are paler than true ones
            pale = moved * (0.3 + 0.7 * torch.rand(BATCH, 1, 1, generator=draw))
        error = (_apply(pale, truth, weights) - warp).square().mean()
        adam.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return [w.detach() for w in weights]
