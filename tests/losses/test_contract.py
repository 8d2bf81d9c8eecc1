"""What losses keep beside their invariants: memory, scattered voxels, slices; and how they fail."""

import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss
from torch import nn

from harness.errors import BenchError
from harness.losses import LOSSES, Dice, DiceCE
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.compound import Sum
from harness.losses.needs import LABEL_NEEDS
from harness.losses.targets import derive

FACTS = {"num_classes": 3, "spatial_dims": 2, "ignore_index": 255, "class_counts": [50, 30, 20], "has_ignored": False}

CORE = ["ce", "focal", "dice", "jaccard", "tversky", "focal_tversky", "lovasz", "dice_ce"]


def _spec(name: str, target: str = "", **args: object) -> dict:
    return {"name": name, "class": target or LOSSES[name], "args": args, "version": 1}


def _example(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, 3, 6, 5) and labels without a random number: the same on every version of torch."""
    n = torch.arange(2 * 3 * 6 * 5, dtype=torch.float64)
    logits = (3 * torch.sin(1.7 * n + 0.3)).reshape(2, 3, 6, 5)
    target = (torch.arange(2 * 6 * 5) ** 2 // 5 % 3).reshape(2, 6, 5)
    target[0, 2, 1:4] = 255
    return logits.to(dtype), target


def _value(loss: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    spacing = torch.tensor([[1.0, 2.0, 0.5][: target.ndim - 1]] * len(target))
    names = set().union(*needs_of(loss)) & LABEL_NEEDS
    offered = derive(names, target, num_classes=logits.shape[1], spacing=spacing)
    clock = {"progress": torch.tensor(0.5), "epoch": torch.tensor(1.0), "epochs": torch.tensor(3.0)}
    return evaluate_loss(loss, logits, target, {**offered, **clock, "spacing": spacing})["loss"]


@pytest.mark.parametrize("name", CORE)
def test_memory_grows_with_the_voxels_and_not_with_their_square(name: str) -> None:
    """The focal loss of Azad et al.'s code broadcasts (N, 1) against (N,)."""
    logits, target = torch.zeros(2, 3, 16, 16, requires_grad=True), torch.ones(2, 16, 16, dtype=torch.int64)
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _value(build_loss(_spec(name), FACTS), logits, target)
    assert sizes
    assert max(sizes) <= logits.numel()


@pytest.mark.parametrize("name", CORE)
def test_scattered_ignored_voxels_give_the_value_of_the_others_alone(name: str) -> None:
    """Voxels that are ignored one by one, in other places of each sample."""
    logits, target = _example()
    target[1, 0, 0] = target[1, 3, 2] = target[1, 5, 4] = 255
    valid = (target != 255).flatten()
    loss = build_loss(_spec(name), FACTS)
    if set().union(*needs_of(loss)) & LABEL_NEEDS:
        pytest.skip("reads maps of the image: cut-out voxels have other neighbours")
    alone = logits.movedim(1, -1).reshape(-1, 3)[valid].T[None]
    expected = _value(loss, alone, target.flatten()[valid][None])
    assert _value(loss, logits, target).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", CORE)
def test_a_volume_of_one_slice_is_the_slice(name: str) -> None:
    logits, target = _example()
    loss = build_loss(_spec(name), FACTS)
    flat, deep = _value(loss, logits, target), _value(loss, logits[:, :, None], target[:, None])
    if set().union(*needs_of(loss)) & LABEL_NEEDS:
        assert deep.isfinite()  # another spacing
    else:
        assert deep.item() == pytest.approx(flat.item(), rel=1e-12)


@pytest.mark.parametrize("name", CORE)
def test_neither_input_is_written_to(name: str) -> None:
    logits, target = _example()
    before = logits.clone(), target.clone()
    _value(build_loss(_spec(name), FACTS), logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize(
    "options", [{"smooth": 0.0}, {"smooth": 0.0, "squared": True}, {"smooth": 0.0, "absent": "skip"}]
)
def test_no_smoothing_is_finite_where_nothing_is_there_or_predicted(options: dict) -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    for labels in (target, torch.full_like(target, 255)):
        logits = torch.zeros(1, 3, 4, 4)
        logits[:, 0] = 1e4  # classes 1 and 2 get exactly 0 in float32
        value = Dice(**options)(logits.requires_grad_(), labels)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert gradient.isfinite().all()


def test_dice_ce_is_the_weighted_sum_of_its_terms() -> None:
    logits, target = _example()
    terms = DiceCE(dice_weight=2, ce_weight=0.5)(logits, target)
    assert terms["loss"].item() == pytest.approx(2 * terms["dice"].item() + 0.5 * terms["ce"].item(), rel=1e-12)


def test_values_of_monai_are_those_of_a_direct_call() -> None:
    logits, target = _example(torch.float32)
    target[target == 255] = 2
    dice = build_loss(_spec("d", "monai.losses:DiceLoss", include_background=False), FACTS)
    direct = DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(logits, target[:, None])
    assert _value(dice, logits, target).item() == pytest.approx(direct.item(), rel=1e-6)
    focal = build_loss(_spec("f", "monai.losses:FocalLoss", gamma=1.0), FACTS)
    direct = FocalLoss(gamma=1.0, to_onehot_y=True, use_softmax=True)(logits, target[:, None])
    assert _value(focal, logits, target).item() == pytest.approx(direct.item(), rel=1e-6)


class Needs(nn.Module):
    """Asks for a map."""

    def forward(self, logits, target, *, distance_out):
        return (logits * distance_out).mean()


def test_a_need_that_is_not_at_hand_is_named_also_in_a_sum() -> None:
    logits, target = _example()
    for loss in (Needs(), Sum([Dice(), Needs()], [1.0, 1.0], ["dice", "needs"])):
        with pytest.raises(BenchError, match=r"'distance_out'.*at hand: progress, spacing"):
            evaluate_loss(loss, logits, target, {"spacing": 1, "progress": 0})


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("ce", {"weight": ["a", "b", "c"]}, "ce cannot be made"),
        ("ce", {"weight": [[1.0], [1.0, 2.0]]}, "ce cannot be made"),
        ("ce", {"weight": 2.0}, "ce cannot be made"),
        ("focal", {"gamma": "two"}, "focal cannot be made"),
        ("dice", {"absent": "drop"}, "absent must be"),
        ("tversky", {"fp_weight": -1}, "must not be negative"),
        ("lovasz", {"classes": "some"}, "present"),
        ("dice_ce", {"colour": "red"}, "colour"),
    ],
)
def test_wrong_values_are_the_users_and_said_in_a_sentence(name: str, args: dict, text: str) -> None:
    with pytest.raises(BenchError, match=text):
        build_loss(_spec(name, **args), FACTS)


@pytest.mark.parametrize(
    "weight", ["much", {"linear": [1]}, {"cubic": [1, 0]}, {"step": {"from": 1, "to": 0}}, {"switch": 0.5}, None]
)
def test_weights_that_cannot_be_read_are_said_in_a_sentence(weight: object) -> None:
    spec = {"sum": [{"loss": _spec("dice"), "weight": 1.0}, {"loss": _spec("ce"), "weight": weight}]}
    with pytest.raises(BenchError, match="sum of dice, ce"):
        build_loss(spec, FACTS)


def test_lists_of_unequal_length_are_no_sum() -> None:
    with pytest.raises(ValueError, match="2 losses, 1 weights"):
        Sum([Dice(), Dice()], [1.0], ["a", "b"])


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_scheduled_term_counts_as_the_schedule_says(kind: str, progress: float, weight: float) -> None:
    logits, target = _example()
    terms = [{"loss": _spec("ce"), "weight": {kind: [1, 0]}}, {"loss": _spec("dice"), "weight": 1.0}]
    offered = {"progress": torch.tensor(progress), "epochs": torch.tensor(5.0)}
    found = evaluate_loss(build_loss({"sum": terms}, FACTS), logits, target, offered)
    expected = weight * found["ce"].item() + found["dice"].item()
    assert found["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert not math.isclose(found["ce"].item(), 0)
