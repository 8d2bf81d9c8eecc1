"""Deep supervision: labels and maps of each scale, weights by hand, terms on other outputs at full resolution only."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.cell import Cell
from harness.check.scenes import CLASSES, facts_of, label
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.deep_supervision import Scales, coarser, downsampled, split
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.losses.calls import needs_of
from harness.losses.compound import Sum
from harness.losses.needs import HEADS, LABEL_NEEDS, MODEL_NEEDS
from harness.losses.priors import NonAdjacency
from harness.losses.targets import derive
from harness.models.nnunet import NNUNet
from harness.models.unet import UNet
from harness.suite import load_suite
from harness.train import Trainer


class Mean(nn.Module):
    """The mean of the logits of class 1: a number of each scale that can be set by hand."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits[:, 1].mean()


class OnAttention(nn.Module):
    def forward(self, logits: Tensor, target: Tensor, *, attention: Tensor) -> Tensor:
        return attention.mean() + 0 * logits.sum()


class OnHead(nn.Module):
    def forward(self, logits: Tensor, target: Tensor, *, boundary_logits: Tensor) -> Tensor:
        return boundary_logits.mean() + 0 * logits.sum()


class Noted(nn.Module):
    """Notes what it was given at each scale."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def forward(self, logits: Tensor, target: Tensor, *, spacing: Tensor, distance_out: Tensor, progress: Tensor):
        given = {"logits": logits, "target": target, "spacing": spacing, "maps": distance_out, "clock": progress}
        self.seen.append(given | {"training": self.training})
        return logits.mean()


def _levels(*values: float) -> list[Tensor]:
    """Logits (1, 2, n, n), n halved from 16 on, with these values for class 1."""
    out = []
    for i, value in enumerate(values):
        logits = torch.zeros(1, 2, 16 >> i, 16 >> i)
        logits[:, 1] = value
        out.append(logits.requires_grad_())
    return out


def _call(loss: nn.Module, levels: list[Tensor], given: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    target = torch.zeros(1, 16, 16, dtype=torch.int64)
    target[:, 4:12, 4:12] = 1

    def offer(scale: int, target: Tensor, spacing: Tensor) -> dict[str, Any]:
        clock = {"progress": torch.tensor(0.25), "epochs": torch.tensor(5.0), "spacing": spacing}
        return clock | derive(["distance_out"], target, num_classes=2, spacing=spacing)

    return Scales(loss)(levels[0], levels[1:], target, torch.tensor([[2.0, 3.0]]), offer, given or {})


def test_weights_halve_from_scale_to_scale_and_sum_to_one() -> None:
    assert _call(Mean(), _levels(7.0))["loss"].item() == 7
    terms = _call(Mean(), _levels(7.0, 3.0, 1.0))
    assert terms["loss"].item() == pytest.approx((7 + 3 / 2 + 1 / 4) / (1 + 1 / 2 + 1 / 4))
    levels = _levels(5.0, 5.0, 5.0)
    terms = _call(Mean(), levels)
    assert terms["loss"].item() == pytest.approx(5.0)
    terms["loss"].backward()
    sums = [float(level.grad.sum()) for level in levels]
    assert sums == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_terms_are_those_of_the_full_resolution_and_the_loss_is_over_all() -> None:
    loss = Sum([Mean(), Mean()], [1.0, {"linear": [2, 0]}], ["a", "b"])
    terms = _call(loss, _levels(6.0, 3.0))
    assert (terms["a"].item(), terms["b"].item()) == (6, 6)
    over = (6 + 3 / 2) / 1.5
    assert terms["loss"].item() == pytest.approx(over + (2 - 2 * 0.25) * over)


def test_terms_on_other_outputs_count_once_and_in_full() -> None:
    attention, edges = torch.tensor([10.0]), torch.tensor([100.0])
    loss = Sum([Mean(), OnAttention(), OnHead()], [2.0, 3.0, {"linear": [1, 0]}], ["m", "a", "h"])
    terms = _call(loss, _levels(6.0, 3.0), {"attention": attention, "boundary_logits": edges})
    assert terms["loss"].item() == pytest.approx(2 * (6 + 3 / 2) / 1.5 + 3 * 10 + (1 - 0.25) * 100)
    assert {k: v.item() for k, v in terms.items() if k != "loss"} == {"m": 6, "a": 10, "h": 100}
    alone = _call(OnAttention(), _levels(6.0, 3.0), {"attention": attention})
    assert alone["loss"].item() == 10


def test_a_sum_within_a_sum_is_split_too() -> None:
    inner = Sum([Mean(), OnAttention()], [2.0, 5.0], ["m", "a"])
    loss = Sum([inner, Mean()], [3.0, 1.0], ["inner", "m"])
    given = {"attention": torch.tensor([10.0])}
    plain = _call(loss, _levels(6.0), given)
    terms = _call(loss, _levels(6.0, 3.0), given)
    over = (6 + 3 / 2) / 1.5
    assert terms["loss"].item() == pytest.approx(3 * (2 * over + 50) + over)
    assert {k: v.item() for k, v in terms.items() if k != "loss"} == {
        k: v.item() for k, v in plain.items() if k != "loss"
    }


def test_what_needs_nothing_of_the_network_is_not_taken_apart() -> None:
    plain = Sum([Mean(), Mean()], [1.0, 1.0], ["a", "b"])
    assert split(plain) == (plain, None)
    blind = Sum([OnAttention(), OnHead()], [1.0, 1.0], ["a", "b"])
    assert split(blind) == (None, blind)


def test_label_maps_and_spacing_of_each_scale() -> None:
    loss = Noted()
    _call(loss, _levels(1.0, 1.0, 1.0))
    assert [tuple(s["target"].shape) for s in loss.seen] == [(1, 16, 16), (1, 8, 8), (1, 4, 4)]
    assert [s["spacing"].tolist() for s in loss.seen] == [[[2.0, 3.0]], [[4.0, 6.0]], [[8.0, 12.0]]]
    for scale, seen in enumerate(loss.seen):
        assert seen["logits"].shape[2:] == seen["target"].shape[1:]
        # the object's rim lies 4 of the finest voxels from the border along the rows, at 2 mm each: the same in mm
        corner = seen["maps"][0, 1, 0, (16 >> scale) // 2]
        assert float(corner) == pytest.approx(8.0)
        assert float(seen["clock"]) == 0.25


def test_what_a_loss_counts_is_of_the_full_resolution() -> None:
    noted = Noted().train()
    _call(noted, _levels(1.0, 1.0, 1.0))
    assert [s["training"] for s in noted.seen] == [True, False, False] and noted.training
    prior = NonAdjacency(adjacency=[[1.0, 0.0], [0.0, 1.0]]).train()
    _call(prior, _levels(1.0, 1.0))
    assert float(prior.sums[0]) == 1  # one step, not two


def test_a_label_at_a_lower_resolution_is_the_nearest_voxel() -> None:
    target = torch.randint(0, 5, (2, 12, 18, 10), generator=torch.Generator().manual_seed(0))
    for size in [(12, 18, 10), (6, 9, 5), (4, 6, 10), (5, 7, 3)]:
        expected = F.interpolate(target[:, None].double(), size, mode="nearest-exact")[:, 0].long()
        assert torch.equal(downsampled(target, size), expected)
    flat = torch.tensor([[[0, 1, 2, 255]]])
    assert downsampled(flat, (1, 2)).tolist() == [[[1, 255]]]  # ignored stays ignored, and nothing is in between


def test_spacing_grows_by_what_a_grid_shrinks() -> None:
    found = coarser(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (8, 8, 8), (8, 4, 2))
    assert found.tolist() == [[1.0, 4.0, 12.0], [4.0, 10.0, 24.0]]


def _loss(name: str, target: Tensor) -> nn.Module:
    spec = {"name": name, "class": LOSSES[name], "args": {}}
    return build_loss(spec, facts_of(target))


def _offer(loss: nn.Module, scale: int, target: Tensor, spacing: Tensor) -> dict[str, Any]:
    names = set().union(*needs_of(loss))
    found: dict[str, Any] = {"spacing": spacing, "label_weight": torch.ones_like(target, dtype=torch.float32)}
    found |= derive(sorted(names & LABEL_NEEDS), target, num_classes=CLASSES, spacing=spacing)
    found |= {k: torch.tensor(v) for k, v in (("progress", 0.5), ("epoch", 1.0), ("epochs", 3.0))}
    return found | {"generator": torch.Generator().manual_seed(scale)}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_works_at_lower_resolutions(name: str) -> None:
    """At 16 voxels and below: the smallest that a network with deep supervision gives."""
    target = label(2)
    loss = _loss(name, target)
    if needs_of(loss)[0] & (MODEL_NEEDS | set(HEADS)):
        assert split(loss) == (None, loss)
        return
    chance = torch.Generator().manual_seed(1)
    sizes = [tuple(target.shape[1:]), (16, 14), (8, 7)]
    levels = [torch.randn(2, CLASSES, *n, generator=chance).requires_grad_() for n in sizes]
    offer = lambda i, t, s: _offer(loss, i, t, s)  # noqa: E731
    terms = Scales(loss)(levels[0], levels[1:], target, torch.ones(2, 2), offer, {})
    terms["loss"].backward()
    assert all(level.grad is not None and bool(level.grad.isfinite().all()) for level in levels)


SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [32, 32]}}
models: [nnunet: {width: 4}]
losses: [dice]
train: {epochs: 2, steps: 2, batch: 2, optimizer: {sgd: {lr: 1e-2}}}
"""


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (tmp_path / "toy.yaml").write_text(SUITE)
    return load_suite(tmp_path / "toy.yaml").cells[0]


def _trainer(cell: Cell, loss: nn.Module, model: nn.Module | None = None) -> Trainer:
    torch.manual_seed(0)
    classes = torch.zeros(2, 32, 32, dtype=torch.uint8)
    classes[:, 8:20, 10:24] = 1
    image = classes[:, None].float() + 0.3 * torch.randn(2, 1, 32, 32)
    case = Prepared("c", image.numpy(), classes.numpy(), classes.numpy(), (1.0, 1.0), None, (), ())
    data = TrainSet([case], cell.data["view"], cell.train["augment"], torch.device("cpu"))
    torch.manual_seed(1)
    return Trainer(cell, model or NNUNet(1, 2, [32, 32], 2, width=4), loss, data, 2, torch.device("cpu"))


def test_training_supervises_the_lower_heads_unless_it_is_told_not_to(cell: Cell) -> None:
    assert "deep_supervision" not in cell.train  # the default leaves ids alone
    for setting, moved in (({}, True), ({"deep_supervision": True}, True), ({"deep_supervision": False}, False)):
        trainer = _trainer(replace(cell, train=cell.train | setting), _loss("dice", torch.zeros(1, 4, 4).long()))
        before = [p.detach().clone() for p in trainer.model.lower_heads.parameters()]
        state = trainer.run()
        assert not state.diverged
        after = list(trainer.model.lower_heads.parameters())
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [moved] * len(before)


def test_the_first_step_by_hand(cell: Cell) -> None:
    trainer = _trainer(cell, Mean())
    batch = trainer.data.batch(0, 2, cell.seed_base)
    with torch.no_grad():
        output = trainer.model.train()(batch.image)
    levels = [float(x[:, 1].mean()) for x in [output.logits, *output.aux]]
    assert len(levels) == 2
    trainer.step()
    assert float(trainer.progress.sums["loss"]) == pytest.approx((levels[0] + levels[1] / 2) / 1.5, rel=1e-5)


def test_a_loss_that_asks_for_the_lower_logits_gets_them_and_is_called_once(cell: Cell) -> None:
    class OnAux(nn.Module):
        calls = 0

        def forward(self, logits: Tensor, target: Tensor, *, aux: list[Tensor]) -> Tensor:
            type(self).calls += 1
            return sum(a.mean() for a in aux) + logits.mean()

    trainer = _trainer(cell, OnAux())
    trainer.step()
    assert OnAux.calls == 1


def test_each_scale_has_random_numbers_of_its_own(cell: Cell) -> None:
    class Chance(nn.Module):
        drawn: list[float] = []  # noqa: RUF012

        def forward(self, logits: Tensor, target: Tensor, *, generator: torch.Generator) -> Tensor:
            self.drawn.append(float(torch.rand(1, generator=generator)))
            return logits.mean()

    trainer = _trainer(cell, Chance())
    trainer.step()
    assert len(set(Chance.drawn)) == 2
    _trainer(cell, Chance(), UNet(1, 2, width=2, depth=2)).step()
    assert Chance.drawn[2] == Chance.drawn[0]  # the full resolution draws what it does without deep supervision
