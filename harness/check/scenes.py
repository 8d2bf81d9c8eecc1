"""Scenes of the conformance check: small labels, and predictions of them from perfect to inverted.

Everything a loss can ask for is supplied and agrees with the prediction: an embedding whose classifier gives the
logits, attached heads that draw its boundary, attention on its foreground.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import BenchError
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.facts import label_facts
from harness.losses.needs import HEADS, LABEL_NEEDS
from harness.losses.targets import derive

IGNORE = 255
CLASSES = 4
EXTRA = 4  # further channels of the embedding
QUALITIES = ("perfect", "degraded", "random", "inverted")
# model outputs that a loss may read; each is a leaf of its own
_ON_ANOTHER_GRID = frozenset({"attention", "shape_tokens", "shape_prior", "token_maps"})


@dataclass
class Scene:
    """A label with a prediction.

    Attributes:
        target: (B, *S) int64, ignored voxels 255.
        logits: (B, C, *S).
        spacing: (B, D).
        extra: Outputs of the model beside the logits.
    """

    target: Tensor
    logits: Tensor
    spacing: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dims(self) -> int:
        """2 or 3."""
        return self.target.ndim - 1

    def with_logits(self, logits: Tensor) -> Scene:
        """The same label with another prediction; what depends on it is made again."""
        return Scene(self.target, logits, self.spacing, {k: v for k, v in self.extra.items() if k == "label_weight"})


@dataclass
class Result:
    """Value and gradients of a loss on a scene.

    Attributes:
        value: The loss.
        logits: Gradient with respect to the logits, through an embedding where the loss reads one; zeros if none.
        leaves: Gradient of every leaf, by name.
    """

    value: float
    logits: Tensor
    leaves: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether the value and every gradient is a finite number."""
        values = [torch.tensor(self.value, dtype=torch.float64), *self.leaves.values()]
        return all(bool(torch.isfinite(v).all()) for v in values)


def label(dims: int, batch: int = 2) -> Tensor:
    """Labels (B, *S) of four classes, each a region of another size; 1 and 3 never touch."""
    size = (32, 28) if dims == 2 else (14, 12, 12)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    out = torch.zeros(batch, *size, dtype=torch.int64)

    def ball(centre: list[float], radius: float) -> Tensor:
        return (
            sum(((a - c * n) ** 2 for a, c, n in zip(axes, centre, size, strict=True)), torch.zeros(()))
            <= (radius * size[-1]) ** 2
        )

    rest = [0.5] * (dims - 2)
    for b in range(batch):
        shift = 0.04 * b
        out[b][ball([0.36 + shift, 0.42, *rest], 0.30)] = 1
        out[b][ball([0.36 + shift, 0.36, *rest], 0.15)] = 2
        out[b][ball([0.82 - shift, 0.74 + shift, *rest], 0.13)] = 3
    return out


def facts_of(target: Tensor, classes: int = CLASSES) -> dict[str, Any]:
    """The facts of a data set that consists of these labels."""
    counted = label_facts([part.numpy() for part in target], classes)
    fixed = {"num_classes": classes, "spatial_dims": target.ndim - 1, "ignore_index": IGNORE, "has_ignored": True}
    return fixed | counted


def scene(
    quality: str, dims: int = 2, dtype: torch.dtype = torch.float64, target: Tensor | None = None, seed: int = 0
) -> Scene:
    """A scene of one of the four qualities."""
    target = label(dims) if target is None else target
    draw = torch.Generator().manual_seed(1000 + seed)
    onehot = one_hot(target).double()
    noise = torch.randn(onehot.shape, generator=draw, dtype=torch.float64)
    # about 0, so that a perfect prediction is one for one-vs-rest sigmoids too
    truth = onehot - 0.5
    logits = {
        "perfect": lambda: 24 * truth,
        "degraded": lambda: 2.5 * truth + 0.8 * noise,
        "random": lambda: noise,
        "inverted": lambda: -12 * truth + 0.1 * noise,
    }[quality]()
    spacing = torch.tensor([[1.0, 1.25, 1.5][:dims]] * len(target))
    weight = 0.5 + 0.5 * torch.rand(target.shape, generator=draw)
    return Scene(target, logits.to(dtype), spacing, {"label_weight": weight.to(dtype)})


def one_hot(target: Tensor, classes: int = CLASSES) -> Tensor:
    """(B, C, *S) bool, all False where ignored."""
    numbers = torch.arange(classes, device=target.device).view(1, -1, *[1] * (target.ndim - 1))
    return target[:, None] == numbers


class Classifier(nn.Module):
    """The head of the scenes' embedding: its first channels are the logits."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, *S) of an embedding (B, C + EXTRA, *S)."""
        return embedding[:, :CLASSES]


def evaluate(
    loss: nn.Module, given: Scene, *, gradient: bool = True, low: torch.dtype | None = None, fresh: bool = True
) -> Result:
    """Value and gradients of a loss on a scene.

    Args:
        loss: The loss.
        given: The scene; it is not changed.
        gradient: Whether gradients are wanted.
        low: Run inside autocast of this type.
        fresh: Call a copy, so that what a loss keeps from one call to the next is told by `steady` alone.
    """
    loss = anew(loss) if fresh else loss
    leaves = leaves_of(loss, given)
    with torch.set_grad_enabled(gradient):
        value = forward(loss, given, leaves, low=low)
    if not gradient:
        return Result(float(value.detach()), torch.zeros_like(given.logits), {})
    names = list(leaves)
    wanted = [leaves[n] for n in names]
    found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
    grads = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, found, strict=True)}
    through = grads.get("logits", torch.zeros_like(given.logits))
    if "embedding" in grads:
        through = grads["embedding"][:, : given.logits.shape[1]]  # that of the logits is a part of it
    return Result(float(value.detach()), through, grads)


def forward(
    loss: nn.Module, given: Scene, leaves: dict[str, Tensor], low: torch.dtype | None = None, seed: int = 7
) -> Tensor:
    """Call the loss with everything it asks for.

    A value without a gradient is returned as it is: `gradcheck` and `descent` tell it, and no other property.
    """
    try:
        return _call(loss, *inputs_of(loss, given, leaves, seed), low, seed)
    except BenchError:
        if not torch.is_grad_enabled():
            raise
        with torch.no_grad():  # any other reason is raised again
            return _call(loss, *inputs_of(loss, given, leaves, seed), low, seed)


def _call(
    loss: nn.Module, logits: Tensor, target: Tensor, offered: dict[str, Any], low: torch.dtype | None, seed: int
) -> Tensor:
    torch.manual_seed(seed)
    if logits.dtype == torch.float64:
        loss.double()  # weights of a library's loss, which does not cast them
    with torch.autocast(logits.device.type, dtype=low, enabled=low is not None):
        return evaluate_loss(loss, logits, target, offered)["loss"]


def inputs_of(
    loss: nn.Module, given: Scene, leaves: dict[str, Tensor], seed: int = 7
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, target and offers: copies, none of them a leaf, as a network gives them."""
    device = given.logits.device
    wanted = set().union(*needs_of(loss))
    logits = leaves["logits"].clone()
    if "embedding" in leaves:
        logits = logits + Classifier()(leaves["embedding"])
    offered: dict[str, Any] = {
        "spacing": given.spacing.clone(),
        "progress": torch.tensor(0.5, device=device),
        "epoch": torch.tensor(1.0, device=device),
        "epochs": torch.tensor(3.0, device=device),
        "generator": torch.Generator(device).manual_seed(seed),
        "classify": Classifier(),
        **{k: v.clone() for k, v in given.extra.items() if k in wanted},
        **{k: v.clone() for k, v in leaves.items() if k != "logits"},
    }
    names = wanted & LABEL_NEEDS
    if names:
        classes = given.logits.shape[1]
        offered |= derive(names, given.target, num_classes=classes, spacing=given.spacing)
    return logits, given.target.clone(), offered


def anew(loss: nn.Module) -> nn.Module:
    """A copy of a loss, in the state it is in."""
    try:
        return copy.deepcopy(loss)
    except (RuntimeError, TypeError):  # it keeps something that cannot be copied
        return loss


def leaves_of(loss: nn.Module, given: Scene) -> dict[str, Tensor]:
    """What the gradient is taken of: the logits, or the embedding behind them, and further outputs of the model."""
    wanted = set().union(*needs_of(loss))
    parts: dict[str, Tensor] = {"logits": given.logits.detach().clone()}
    prediction = given.logits.detach()
    for name, make in _MODEL_OUTPUTS.items():
        if name in wanted:
            parts[name] = (given.extra[name] if name in given.extra else make(prediction, given, loss)).detach().clone()
    if "embedding" in parts:
        # the logits of a network are those of its embedding: all of the prediction stands there
        parts["logits"] = torch.zeros_like(parts["logits"])
    return {k: v.requires_grad_() for k, v in parts.items()}


def working_dims(make: Callable[..., nn.Module]) -> Iterator[int]:
    """The dimensions that the loss works in; a loss of 2D images alone is told by `dimensions`."""
    for dims in (2, 3):
        try:
            evaluate(make(label(dims)), scene("random", dims), gradient=False)
        except Exception:
            if dims == 2:
                raise
            continue
        yield dims


def on_voxels(loss: nn.Module) -> bool:
    """Whether everything the loss reads lies on the voxels of the label."""
    return not set().union(*needs_of(loss)) & _ON_ANOTHER_GRID


def acts_on_logits(loss: nn.Module, given: Scene) -> bool:
    """Whether the loss has a gradient to the logits, or to the embedding behind them, somewhere."""
    return bool(evaluate(loss, given).logits.abs().max() > 0)


def _embedding(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    shape = (logits.shape[0], EXTRA, *logits.shape[2:])
    noise = 1e-3 * torch.randn(shape, generator=draw, dtype=torch.float64)
    return torch.cat([logits, noise.to(logits.dtype)], dim=1)


def _boundary_logits(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    """As sharp as the prediction: high where it has an edge, low elsewhere."""
    guess = torch.where(given.target == IGNORE, given.target, logits.argmax(1))
    found = derive(["boundary"], guess, num_classes=logits.shape[1], spacing=given.spacing)["boundary"]
    sharp = logits.abs().mean() * found.to(logits.dtype).mul(2).sub(1)
    single = getattr(loss, "channels", {}).get("boundary_logits") == 1
    return torch.stack([sharp] if single else [-sharp, sharp], dim=1)


def _distance_logits(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    channels = int(getattr(loss, "channels", {}).get("distance_logits", HEADS["distance_logits"]))
    encode: Callable[..., Tensor] | None = getattr(loss, "encode", None)
    if encode is None:
        return logits.repeat_interleave(-(-channels // logits.shape[1]), 1)[:, :channels]
    guess = torch.where(given.target == IGNORE, given.target, logits.argmax(1))
    maps = derive(["distance_in"], guess, num_classes=logits.shape[1], spacing=given.spacing)
    bins = encode(guess, maps["distance_in"])
    return logits.abs().mean() * (2 * bins.to(logits.dtype) - 1)


def _projection(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    channels = int(getattr(loss, "channels", {}).get("projection", HEADS["projection"]))
    return F.pad(logits, [0, 0] * given.dims + [0, channels - logits.shape[1]])


def _coarse(values: Tensor) -> Tensor:
    """Means of cells of two voxels a side."""
    pooled: Tensor = (F.avg_pool2d if values.ndim == 4 else F.avg_pool3d)(values, 2)
    return pooled


def _attention(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    mass = _coarse(1 - logits.softmax(1)[:, :1]) + 1e-9
    mass = mass / mass.flatten(2).sum(2).view(-1, 1, *[1] * given.dims)
    return mass.repeat_interleave(2, 1)


def _shape_tokens(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    return logits.flatten(2)[:, :, :8]


def _shape_prior(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    """The further the prediction is from the truth, the further the latent is from N(0, 1)."""
    truth = one_hot(given.target).to(logits.dtype)
    valid = (given.target != IGNORE)[:, None]
    error = ((logits.softmax(1) - truth).abs() * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)
    return (error[:, None, None] * torch.tensor([[1.0], [-0.5]], dtype=logits.dtype)).repeat(1, 1, 6)


def _token_maps(logits: Tensor, given: Scene, loss: nn.Module) -> Tensor:
    return _coarse(logits.softmax(1))


_MODEL_OUTPUTS: dict[str, Callable[[Tensor, Scene, nn.Module], Tensor]] = {
    "embedding": _embedding,
    "boundary_logits": _boundary_logits,
    "distance_logits": _distance_logits,
    "projection": _projection,
    "attention": _attention,
    "shape_tokens": _shape_tokens,
    "shape_prior": _shape_prior,
    "token_maps": _token_maps,
}
