"""A loss in another trainer has the value that it has in the benchmark's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import BenchError
from harness.integrations import to_monai
from harness.losses import LOSSES
from harness.losses.build import build_loss, evaluate_loss, needs_of
from harness.losses.facts import label_facts
from harness.losses.needs import LABEL_NEEDS
from harness.losses.targets import derive

SPACING = (2.0, 0.5, 1.5)
OUTPUTS = {  # losses of other outputs of a network, with the first that they miss
    "attention": "attention",
    "conditional_boundary": "classify",
    "distance_head": "distance_logits",
    "inverse_form": "boundary_logits",
    "kl_shape_prior": "shape_prior",
    "pixel_triplet": "embedding",
    "shape_alignment": "token_maps",
}


def _batch(dims: int) -> tuple[Tensor, Tensor]:
    """Logits (2, 3, *S) and a label (2, *S) with an object of each class."""
    size = (8, 16, 16)[3 - dims :]
    target = torch.zeros(2, *size, dtype=torch.int64)
    target[..., 3:8, 4:9] = 1
    target[1, ..., 9:14, 8:15] = 2
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    return logits, target


def _facts(dims: int) -> dict[str, Any]:
    _, target = _batch(dims)
    counted = label_facts(target.numpy(), 3)
    return {"num_classes": 3, "spatial_dims": dims, **counted}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [n for n in LOSSES if n not in OUTPUTS])
def test_every_loss_of_logits_and_label_has_the_value_of_the_benchmark(name: str, dims: int) -> None:
    logits, target = _batch(dims)
    spacing = torch.tensor(SPACING[3 - dims :]).expand(2, -1)
    spec = {"name": name, "class": LOSSES[name], "args": {}}
    loss = build_loss(spec, _facts(dims))
    names = frozenset().union(*needs_of(loss))
    offered: dict[str, Any] = {"spacing": spacing, "label_weight": torch.ones_like(target, dtype=torch.float32)}
    offered |= {k: torch.tensor(v) for k, v in (("progress", 0.25), ("epoch", 1.0), ("epochs", 5.0))}
    offered |= derive(sorted(names & LABEL_NEEDS), target, num_classes=3, spacing=spacing)
    expected = evaluate_loss(loss, logits, target, offered)["loss"]

    adapter = to_monai(spec, spacing=SPACING[3 - dims :], epochs=5, **_facts(dims))
    adapter.start_epoch(1)
    given = logits.clone().requires_grad_()
    found = adapter(given, target[:, None].float())
    assert found.item() == expected.item()
    found.backward()
    assert given.grad is not None and given.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "missing"), OUTPUTS.items())
def test_a_loss_of_other_outputs_is_refused(name: str, missing: str) -> None:
    with pytest.raises(BenchError, match=rf"needs '{missing}', which a network of this benchmark gives"):
        to_monai(name, spacing=1, epochs=2, labels=[torch.zeros(8, 8, dtype=torch.int64)])


def test_the_ignored_value_is_the_callers() -> None:
    logits, target = _batch(2)
    marked = target.clone()
    marked[:, :4] = 3
    theirs = to_monai("dice_ce", ignore_index=3)(logits, marked[:, None])
    assert (
        theirs
        == build_loss({"name": "dice_ce", "class": LOSSES["dice_ce"], "args": {}}, {})(
            logits, torch.where(marked == 3, 255, target)
        )["loss"]
    )
    assert theirs != to_monai("dice_ce")(logits, target[:, None])


def test_a_schedule_follows_the_epochs_that_it_is_told() -> None:
    logits, target = _batch(2)
    parts = [float(to_monai(name)(logits, target[:, None])) for name in ("dice", "ce")]
    loss = to_monai(
        {"sum": [{"loss": "dice", "weight": {"linear": [1, 0]}}, {"loss": "ce", "weight": {"linear": [0, 1]}}]},
        epochs=5,
    )
    with pytest.raises(BenchError, match=r"Sum changes with the epochs: call start_epoch\(e\)"):
        loss(logits, target[:, None])
    found = []
    for epoch in range(5):
        loss.start_epoch(epoch)
        found.append(float(loss(logits, target[:, None])))
        assert loss.terms["dice"].item() == pytest.approx(parts[0])
    assert found == pytest.approx([parts[0] * (1 - t) + parts[1] * t for t in (0, 0.25, 0.5, 0.75, 1)])


class _Counts(nn.Module):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def epoch_end(self) -> None:
        self.ended += 1

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.mean()


def test_epochs_end_once() -> None:
    inner = _Counts()
    loss = to_monai(inner)
    loss.start_epoch(4)  # a training that is continued
    assert inner.ended == 0
    loss.start_epoch(5)
    assert inner.ended == 1
    loss.end_epoch()
    loss.end_epoch()
    loss.start_epoch(6)
    assert inner.ended == 2


class _Draws(nn.Module):
    """A loss that draws."""

    def forward(self, logits: Tensor, target: Tensor, *, generator: torch.Generator) -> Tensor:
        return logits.mean() * 0 + torch.rand((), generator=generator)


def test_draws_go_by_the_seed_and_the_step() -> None:
    logits, target = _batch(2)

    def values(seed: int) -> list[float]:
        loss = to_monai(_Draws(), seed=seed)
        first = float(loss(logits, target[:, None]))
        loss.eval()
        loss(logits, target[:, None])  # a validation moves no later step
        loss.train()
        return [first, float(loss(logits, target[:, None]))]

    assert values(0) == values(0) != values(1)
    assert len({*values(0)}) == 2


def test_several_scales_are_weighted_and_measured_with_their_voxels() -> None:
    logits, target = _batch(2)
    coarse = logits[:, :, ::2, ::4]
    small = target[:, 1::2, 2::4]  # the label at the centres of the coarser voxels
    loss = to_monai("boundary", spacing=(2.0, 0.5))
    fine = float(loss(logits, target[:, None]))
    low = float(to_monai("boundary", spacing=(4.0, 2.0))(coarse, small[:, None]))
    assert float(loss([logits, coarse], target[:, None])) == pytest.approx((fine + low / 2) / 1.5)
    assert float(to_monai("boundary", spacing=(2.0, 0.5))(coarse, small[:, None])) != pytest.approx(low)


def test_inside_autocast_the_loss_is_computed_in_float32() -> None:
    logits, target = _batch(2)
    half = logits.bfloat16()
    loss = to_monai("dice_ce")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half, target[:, None])
    assert found.dtype == torch.float32
    assert found == loss(half.float(), target[:, None])


def test_a_loss_that_learns_is_a_group_of_the_optimizer() -> None:
    assert to_monai("dice").parameter_groups(0.1) == []
    loss = to_monai("t_loss")
    (group,) = loss.parameter_groups(0.1)
    assert group["weight_decay"] == 0 and [p is loss.loss.log_nu for p in group["params"]] == [True]
    before = loss.loss.log_nu.item()
    optimizer = torch.optim.SGD(loss.parameter_groups(0.1))
    logits, target = _batch(2)
    loss(logits, target[:, None]).backward()
    optimizer.step()
    assert loss.loss.log_nu.item() != before


class _Prepared(nn.Module):
    """A loss that looks at the labels before the training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def prepare(self, labels: list[Tensor], *, device: torch.device, generator: torch.Generator) -> None:
        self.seen = len(labels)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.mean()


def test_a_loss_is_prepared_with_the_labels_it_is_given() -> None:
    with pytest.raises(BenchError, match=r"_Prepared is prepared before the training: give labels=\[\.\.\.\]"):
        to_monai(_Prepared())
    inner = _Prepared()
    to_monai(inner, labels=[torch.zeros(4, 4)] * 3)
    assert inner.seen == 3


def test_a_file_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Mine(nn.Module):\n    def __init__(self, k: float = 1.0):\n"
        "        super().__init__()\n        self.k = k\n\n"
        "    def forward(self, logits, target, *, onehot):\n"
        "        return self.k * (logits.softmax(1) - onehot).abs().mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    logits, target = _batch(2)
    hand = (logits.softmax(1) - nn.functional.one_hot(target, 3).movedim(-1, 1)).abs().mean()
    assert float(to_monai("mine.py:Mine")(logits, target[:, None])) == pytest.approx(float(hand))
    for spec in ("mine.py:Mine: {k: 3}", {"mine.py:Mine": {"k": 3}}):
        assert float(to_monai(spec)(logits, target[:, None])) == pytest.approx(3 * float(hand))


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("loss", "dise", {}, r"unknown loss 'dise' \(did you mean 'dice'\?\)"),
    ("argument", "tversky: {fn: 0.7}", {}, r"unknown argument 'fn'"),
    ("fact", "dice", {"clas_counts": [1, 2]}, r"unknown fact 'clas_counts' \(did you mean 'class_counts'\?\)"),
    ("made", nn.CrossEntropyLoss(), {"num_classes": 3}, r"CrossEntropyLoss is made already: give 'num_classes'"),
    ("counts", "weighted_ce", {}, r"class_counts"),
    ("sweep", {"focal": {"gamma": {"sweep": [1, 2]}}}, {}, r"is 2 losses; give them one by one"),
    ("spacing", "boundary", {}, r"Boundary measures distances: give spacing="),
    ("zero spacing", "boundary", {"spacing": (1, 0)}, r"sizes of a voxel above 0, found \(1, 0\)"),
    ("word", "boundary", {"spacing": "mm"}, r"spacing must be numbers or 'meta', found 'mm'"),
    (
        "epochs",
        "gsl",
        {"spacing": 1, "class_counts": [9, 1]},
        r"GSL follows the progress of the training: give epochs=",
    ),
]


@pytest.mark.parametrize(("loss", "about", "sentence"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_missing_is_one_sentence(loss: Any, about: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence) as caught:
        to_monai(loss, **about)
    assert "\n" not in str(caught.value)


MISFITS: list[tuple[str, tuple[int, ...], tuple[int, ...], int, str]] = [
    ("sigmoid", (2, 1, 8, 8), (2, 1, 8, 8), 0, r"torch.cat\(\[torch.zeros_like\(z\), z\], 1\)"),
    ("one-hot", (2, 3, 8, 8), (2, 3, 8, 8), 0, r"label.argmax\(1, keepdim=True\)"),
    ("no channel", (2, 3, 8, 8), (2, 8, 8), 0, r"expected a label \(B, 1, \*S\)"),
    ("stacked", (2, 4, 3, 8, 8), (2, 1, 8, 8), 0, r"outputs.unbind\(1\)"),
    ("size", (2, 3, 8, 8), (2, 1, 8, 9), 0, r"the finest logits have the size \(8, 8\) and the label \(8, 9\)"),
    ("value", (2, 3, 8, 8), (2, 1, 8, 8), 3, r"holds 3, expected classes 0 to 2, and none is ignored"),
    ("axes", (2, 3, 4, 8, 8), (2, 1, 4, 8, 8), 0, r"spacing has 2 numbers and the label 3 spatial axes"),
]


@pytest.mark.parametrize(
    ("outputs", "label", "value", "sentence"), [m[1:] for m in MISFITS], ids=[m[0] for m in MISFITS]
)
def test_outputs_and_label_that_do_not_fit(outputs: Any, label: Any, value: int, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        to_monai("boundary", spacing=(1, 2))(torch.zeros(outputs), torch.full(label, value))


def test_the_readme_counts_them() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"hands {len(LOSSES) - len(OUTPUTS)} of them" in readme
