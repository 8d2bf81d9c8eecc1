"""Two images with two objects each, and a network trained on them: what every model must be able to learn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.losses.dice import Dice


@pytest.fixture
def overfit() -> Callable[..., float]:
    """Dice after training on two images: `overfit(make, dims, side, steps)`; see `dice_after_training`."""
    return dice_after_training


@pytest.fixture
def two_images() -> Callable[..., tuple[Tensor, Tensor]]:
    """`two_images(dims, side)`; see `make_two_images`."""
    return make_two_images


def make_two_images(dims: int, side: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Images (2, channels, *S) with noise and labels (2, *S) of three classes; the objects lie elsewhere in each."""
    target = torch.zeros(2, *[side] * dims, dtype=torch.int64)

    def box(image: int, low: float, high: float, value: int) -> None:
        target[(image, *[slice(round(low * side), round(high * side))] * dims)] = value

    for image, (low, high) in enumerate([(0.15, 0.6), (0.5, 0.9)]):
        box(image, low, high, 1)
        box(image, low + 0.15, high, 2)
    noise = torch.randn(2, channels, *target.shape[1:], generator=torch.Generator().manual_seed(1))
    return target[:, None].float() + 0.2 * noise, target


def dice_after_training(make: Callable[[], nn.Module], dims: int, side: int, steps: int, lr: float = 5e-3) -> float:
    """Dice of the worse of two classes over both images, after training with Dice + cross-entropy."""
    image, target = make_two_images(dims, side)
    torch.manual_seed(0)
    model, loss = make(), Dice()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        torch.manual_seed(step)
        logits = model(image).logits
        optimizer.zero_grad()
        (loss(logits, target) + F.cross_entropy(logits, target)).backward()
        optimizer.step()
    with torch.inference_mode():
        found = model.eval()(image).logits.argmax(1)
    return min(
        float(2 * ((found == c) & (target == c)).sum() / ((found == c).sum() + (target == c).sum())) for c in (1, 2)
    )
