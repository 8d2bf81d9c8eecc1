"""What the losses of pixels and regions keep beyond the check that every loss passes (test_catalogue.py)."""

import importlib

import pytest
import torch

from harness.losses import LOSSES, Dice, Focal, FocalTversky
from harness.losses.calls import evaluate_loss


def make(name, **args):
    module, _, cls = LOSSES[name].partition(":")
    return getattr(importlib.import_module(module), cls)(**args)


def value(loss, logits, target):
    return evaluate_loss(loss, logits, target, {})["loss"]


def sample(shape, seed=0, dtype=torch.float64):
    batch, classes, *space = shape
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=g, dtype=dtype), torch.randint(0, classes, (batch, *space), generator=g)


def hard(labels, classes, size=20.0):
    return size * torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).double()


REGION = ["dice", "jaccard", "tversky", "focal_tversky", "lovasz"]
CORE = ["ce", "focal", *REGION, "dice_ce"]
every = pytest.mark.parametrize("name", CORE)
shapes = pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 4, 3, 5)], ids=["2d", "3d"])


@every
@shapes
def test_ignored_voxels_have_no_value_and_no_gradient(name, shape):
    logits, target = sample(shape)
    target[:, 1:3] = 255
    logits.requires_grad_()
    first = value(make(name), logits, target)
    (grad,) = torch.autograd.grad(first, logits)
    assert torch.equal(grad[:, :, 1:3], torch.zeros_like(grad[:, :, 1:3]))
    assert grad.abs().sum() > 0
    changed = logits.detach().clone()
    changed[:, :, 1:3] = 7 * torch.randn_like(changed[:, :, 1:3])
    assert value(make(name), changed, target).item() == pytest.approx(first.item(), rel=1e-12)


@every
def test_ignored_voxels_are_as_if_cut_off(name):
    logits, target = sample((2, 4, 6, 5))
    target[:, 3:] = 255
    kept, labels = logits[:, :, :3].clone().requires_grad_(), target[:, :3]
    logits.requires_grad_()
    whole, alone = value(make(name), logits, target), value(make(name), kept, labels)
    assert whole.item() == pytest.approx(alone.item(), rel=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(whole, logits)[0][:, :, :3], torch.autograd.grad(alone, kept)[0], rtol=1e-9, atol=1e-14
    )


@every
def test_a_batch_of_ignored_voxels_is_finite(name):
    logits = sample((2, 3, 4, 4))[0].requires_grad_()
    target = torch.full((2, 4, 4), 255)
    loss = value(make(name), logits, target)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert torch.equal(grad, torch.zeros_like(grad))


@every
@shapes
def test_better_predictions_cost_less(name, shape):
    _, target = sample(shape, 1)
    classes = shape[1]
    g = torch.Generator().manual_seed(2)
    flip = torch.rand(target.shape, generator=g) < 0.2
    degraded = torch.where(flip, (target + 1) % classes, target)
    random = torch.randint(0, classes, target.shape, generator=g)
    inverted = (target + 1) % classes
    loss = make(name)
    costs = [value(loss, hard(labels, classes, 9.0), target).item() for labels in (target, degraded, random, inverted)]
    assert costs == sorted(costs)
    assert len(set(costs)) == 4
    assert value(loss, hard(target, classes, 40.0), target).item() < 1e-4


@pytest.mark.parametrize("name", REGION)
def test_region_losses_lie_between_0_and_1(name):
    logits, target = sample((2, 4, 6, 6), 3)
    worst = value(make(name), hard((target + 1) % 4, 4, 50.0), target).item()
    assert worst == pytest.approx(1, abs=1e-3)
    assert 0 < value(make(name), logits, target).item() < 1


@every
def test_the_order_of_the_classes_does_not_matter(name):
    logits, target = sample((2, 4, 6, 5), 4)
    target[0, 0] = 255
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    renamed = torch.where(target == 255, 255, torch.argsort(order)[target.clamp_max(3)])
    first, second = value(make(name), logits, target), value(make(name), logits[:, order], renamed)
    assert second.item() == pytest.approx(first.item(), rel=1e-9)


@every
def test_the_order_of_the_samples_does_not_matter(name):
    logits, target = sample((3, 3, 5, 5), 5)
    first, second = value(make(name), logits, target), value(make(name), logits.flip(0), target.flip(0))
    assert second.item() == pytest.approx(first.item(), rel=1e-12)


@every
def test_a_constant_added_to_all_logits_changes_nothing(name):
    logits, target = sample((2, 3, 5, 5), 6)
    first, second = value(make(name), logits, target), value(make(name), logits + 3, target)
    assert second.item() == pytest.approx(first.item(), rel=1e-9)


@every
@pytest.mark.parametrize("shape", [(2, 3, 3, 2), (1, 3, 2, 2, 2)], ids=["2d", "3d"])
def test_gradients_agree_with_differences(name, shape):
    logits, target = sample(shape, 7)
    target.view(-1)[1] = 255
    loss = make(name)
    assert torch.autograd.gradcheck(lambda x: value(loss, x, target), logits.requires_grad_(), atol=1e-6)


VARIANTS = {
    "dice": [{"squared": True}, {"background": False}]
    + [{"reduction": r, "absent": a} for r in ("batch", "sample") for a in ("include", "skip", "penalise")],
    "jaccard": [{"reduction": "sample", "absent": "skip"}, {"absent": "penalise", "background": False}],
    "tversky": [{"fp_weight": 0.2, "fn_weight": 0.8, "reduction": "sample"}, {"fn_weight": 0.0}],
    "focal_tversky": [{"gamma": 3.0, "classes": "sum"}, {"gamma": 0.5}, {"absent": "skip", "reduction": "sample"}],
    "lovasz": [{"classes": "all"}, {"per_image": True}, {"classes": "all", "per_image": True}],
    "ce": [{"weight": torch.tensor([1.0, 0.0, 2.0])}],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 1.0}, {"alpha": torch.tensor([0.2, 0.3, 0.5])}],
    "dice_ce": [{"background": False, "weight": torch.tensor([0.1, 1.0, 5.0])}],
}
ALL = [(name, args) for name in CORE for args in ({}, *VARIANTS[name])]


@pytest.mark.parametrize(("name", "args"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_finite_everywhere(name, args, dtype):
    """Perfect, worst, empty, full and uniform predictions, against full, empty and mixed labels, up to logits of 1e4."""
    loss = make(name, **args)
    mixed = sample((2, 3, 6, 5), 8)[1]
    partly = mixed.clone()
    partly[0] = 255
    for target in (mixed, partly, torch.zeros_like(mixed), torch.full_like(mixed, 2)):
        labels = target.clamp_max(2)
        predictions = {
            "perfect": hard(labels, 3, 1.0),
            "worst": hard((labels + 1) % 3, 3, 1.0),
            "empty": hard(torch.zeros_like(labels), 3, 1.0),
            "full": hard(torch.full_like(labels, 2), 3, 1.0),
            "uniform": torch.zeros(2, 3, 6, 5),
        }
        for case, shape in predictions.items():
            for size in (1.0, 30.0, 1e4):
                logits = (size * (2 * shape - float(case != "uniform"))).to(dtype).requires_grad_()
                result = value(loss, logits, target)
                (grad,) = torch.autograd.grad(result, logits)
                assert result.isfinite(), (case, size)
                assert grad.isfinite().all(), (case, size)
                assert result.dtype == torch.float32


@pytest.mark.parametrize(("name", "args"), ALL)
def test_variants_ignore_and_differentiate_too(name, args):
    logits, target = sample((2, 3, 3, 3), 9)
    target[:, 0] = 255
    target[target == 2] = 1  # an absent class
    loss = make(name, **args).double()
    logits.requires_grad_()
    first = value(loss, logits, target)
    (grad,) = torch.autograd.grad(first, logits)
    assert torch.equal(grad[:, :, 0], torch.zeros_like(grad[:, :, 0]))
    cut = value(loss, logits[:, :, 1:], target[:, 1:])
    assert cut.item() == pytest.approx(first.item(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: value(loss, x, target), logits, atol=1e-6)


@every
def test_autocast_costs_no_digits(name):
    logits, target = sample((2, 4, 40, 40), 10, torch.float32)
    plain = value(make(name), logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value(make(name), logits, target)
    assert inside.item() == pytest.approx(plain.item(), rel=1e-6)
    assert inside.dtype == torch.float32


@every
def test_half_precision_input_is_summed_in_float32(name):
    """512² probabilities of one half add up to more than float16 holds."""
    logits, target = torch.zeros(1, 2, 512, 512), torch.zeros(1, 512, 512, dtype=torch.long)
    target[:, ::2] = 1
    assert value(make(name), logits.half(), target).item() == pytest.approx(
        value(make(name), logits, target).item(), rel=1e-5
    )


@every
def test_the_same_input_gives_the_same_bits(name):
    logits, target = sample((2, 3, 16, 16), 11, torch.float32)
    logits.requires_grad_()
    runs = [torch.autograd.grad(value(make(name), logits, target), logits)[0] for _ in range(2)]
    assert torch.equal(*runs)


@every
def test_memory_layout_does_not_matter(name):
    logits, target = sample((2, 4, 8, 6), 12)
    first = value(make(name), logits, target)
    second = value(make(name), logits.to(memory_format=torch.channels_last), target)
    assert second.item() == pytest.approx(first.item(), rel=1e-12)


@every
def test_gradient_descent_on_the_logits_finds_the_label(name):
    _, target = sample((1, 3, 8, 8), 13)
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    loss = make(name)
    for _ in range(60):
        optimizer.zero_grad()
        value(loss, logits, target).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), target)


def test_known_broken_forms_would_be_caught():
    """The published Dice that sums its denominator over all classes scores a perfect prediction far from 0."""
    _, target = sample((1, 4, 8, 8), 14)
    p = hard(target, 4, 50.0).softmax(1)
    true = p.gather(1, target[:, None])
    broken = 1 - (2 * true.sum() + 4) / (4 * (target.numel() + target.sum() + 1))
    assert broken > 0.5
    assert value(Dice(), hard(target, 4, 50.0), target) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "args"), ALL)
def test_cuda_agrees_and_repeats_with_deterministic_algorithms(name, args):
    logits, target = sample((2, 3, 96, 96), 15, torch.float32)
    target[0, :5] = 255
    on = logits.cuda().requires_grad_()
    loss = make(name, **args)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        moved = loss.cuda()
        runs = [torch.autograd.grad(value(moved, on, target.cuda()), on)[0] for _ in range(3)]
        result = value(moved, on, target.cuda()).item()
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert result == pytest.approx(value(make(name, **args), logits, target).item(), rel=1e-5)


def test_focal_tversky_of_a_perfect_prediction_is_zero_for_every_gamma():
    _, target = sample((1, 3, 8, 8), 16)
    for gamma in (1.0, 4 / 3, 2.0, 3.0):
        assert value(FocalTversky(gamma=gamma), hard(target, 3, 60.0), target).item() < 5e-3, gamma
    assert value(Focal(0.5), hard(target, 3, 60.0), target).item() < 1e-6
