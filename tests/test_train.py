"""The training loop: schedules by hand, resumption at any step, isolation of random numbers, divergence, selection."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.cell import Cell
from harness.checkpoints import UnusableCheckpoint, read_checkpoint
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.errors import BenchError
from harness.models.build import digest
from harness.models.output import Output
from harness.models.unet import UNet
from harness.optim import Schedule, make_optimizer
from harness.suite import load_suite
from harness.train import Hooks, Stopped, Trainer

SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [16, 16]}}
models: [unet: {width: 2, depth: 2}]
losses: [dice]
train: {epochs: 3, steps: 4, batch: 2, optimizer: {adamw: {lr: 1e-2}}, schedule: cosine, augment: {rotate: 20, noise: 0.1}}
"""


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (tmp_path / "toy.yaml").write_text(SUITE)
    return load_suite(tmp_path / "toy.yaml").cells[0]


def _data(cell: Cell) -> TrainSet:
    torch.manual_seed(0)
    label = torch.zeros(6, 16, 16, dtype=torch.uint8)
    label[:, 4:10, 5:12] = 1
    image = label[:, None].float() + 0.2 * torch.randn(6, 1, 16, 16)
    case = Prepared("c", image.numpy(), label.numpy(), label.numpy(), (1.0, 1.0), None, (), ())
    return TrainSet([case], cell.data["view"], cell.train["augment"], torch.device("cpu"))


class Mse(nn.Module):
    def forward(self, logits, target):
        return ((logits.softmax(1)[:, 1] - target) ** 2).mean()


def _trainer(cell: Cell, loss: nn.Module | None = None, model: nn.Module | None = None, **kwargs) -> Trainer:
    torch.manual_seed(1)
    return Trainer(
        cell, model or UNet(1, 2, width=2, depth=2), loss or Mse(), _data(cell), 2, torch.device("cpu"), **kwargs
    )


def _with(cell: Cell, **train) -> Cell:
    return replace(cell, train=cell.train | train)


def test_schedules_by_hand() -> None:
    assert [Schedule("constant", 4).factor(s) for s in (0, 3)] == [1.0, 1.0]
    assert Schedule("poly", 4).factor(2) == pytest.approx(0.5**0.9)
    assert [Schedule("cosine", 4).factor(s) for s in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
    plateau = Schedule("plateau", 100)
    for loss in [1.0, 0.5] + [0.5] * 10:
        plateau.epoch_end(loss)
    assert plateau.factor(0) == 1.0  # ten epochs without a lower loss are endured
    plateau.epoch_end(0.6)
    assert plateau.factor(0) == pytest.approx(0.1)
    again = Schedule("plateau", 100)
    again.restore(plateau.state())
    assert again.factor(0) == plateau.factor(0)


def test_the_curve_has_one_row_per_epoch_with_the_mean_loss(cell: Cell) -> None:
    seen: list[float] = []

    class Listening(Mse):
        def forward(self, logits, target):
            value = super().forward(logits, target)
            seen.append(float(value.detach()))
            return {"loss": 2 * value, "mse": value}

    state = _trainer(cell, Listening()).run()
    assert [r["epoch"] for r in state.curve] == [0, 1, 2] and [r["step"] for r in state.curve] == [4, 8, 12]
    for row, first in zip(state.curve, (0, 4, 8), strict=True):
        mean = sum(seen[first : first + 4]) / 4
        assert row["mse"] == pytest.approx(mean, rel=1e-5) and row["loss"] == pytest.approx(2 * mean, rel=1e-5)
    # the rate of an epoch's last step: cosine over 12 steps
    assert state.curve[0]["lr"] == pytest.approx(1e-2 * (1 + math.cos(math.pi * 3 / 12)) / 2)
    assert state.curve[2]["loss"] < state.curve[0]["loss"]


@pytest.mark.parametrize("stop_after", [1, 4, 6])  # inside an epoch, at its end, inside the next
def test_a_stopped_training_continues_bit_for_bit(cell: Cell, tmp_path: Path, stop_after: int) -> None:
    whole = _trainer(cell)
    whole.run()
    path = tmp_path / "checkpoint.pt"
    first: Trainer | None = None

    def stop() -> bool:
        return first is not None and first.progress.step >= stop_after

    first = _trainer(cell, hooks=Hooks(stop=stop), checkpoint=path)
    with pytest.raises(Stopped):
        first.run()
    second = _trainer(cell, checkpoint=path)
    torch.rand(100)  # the state of the global generator does not matter
    state = second.run()
    assert digest(second.model) == digest(whole.model)
    assert state.curve == whole.progress.curve and state.fingerprints == whole.progress.fingerprints


def test_a_checkpoint_of_an_edited_loss_is_not_continued(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    first: Trainer | None = None

    def stop() -> bool:
        return first is not None and first.progress.step >= 5

    first = _trainer(cell, hooks=Hooks(stop=stop), checkpoint=path)
    with pytest.raises(Stopped):
        first.run()
    edited = replace(cell, loss_digest="another")
    seen: list[int] = []
    _trainer(edited, hooks=Hooks(report=lambda done, total, loss: seen.append(done)), checkpoint=path).run()
    assert seen == [4, 8, 12]  # from the first step


def _stopped(cell: Cell, path: Path) -> None:
    first: Trainer | None = None

    def stop() -> bool:
        return first is not None and first.progress.step >= 5

    first = _trainer(cell, hooks=Hooks(stop=stop), checkpoint=path)
    with pytest.raises(Stopped):
        first.run()


def test_a_checkpoint_that_was_cut_or_flipped_at_any_place_is_not_continued(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    _stopped(cell, path)
    whole = path.read_bytes()
    assert read_checkpoint(path)["progress"]["step"] == 5
    places = [
        *range(0, len(whole), len(whole) // 100),
        *range(len(whole) - 100, len(whole)),
    ]  # the digest: the engine and the digest: the last 98
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(UnusableCheckpoint, match=r"checkpoint\.pt: damaged checkpoint"):
            read_checkpoint(path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UnusableCheckpoint):
            read_checkpoint(path)
    with pytest.raises(UnusableCheckpoint):
        _trainer(cell, checkpoint=path).run()


def test_a_checkpoint_of_another_cell_or_network_is_not_continued(cell: Cell, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    _stopped(cell, path)
    with pytest.raises(UnusableCheckpoint, match="of another cell"):
        _trainer(replace(cell, seed=1), checkpoint=path).run()
    with pytest.raises(UnusableCheckpoint, match="of another version"):
        _trainer(cell, model=UNet(1, 2, width=3, depth=2), checkpoint=path).run()


def test_a_loss_that_draws_moves_no_other_number(cell: Cell) -> None:
    class Draws(Mse):
        def forward(self, logits, target):
            torch.rand(17)
            return super().forward(logits, target)

    def run(loss: nn.Module) -> str:
        torch.manual_seed(3)
        model = UNet(1, 2, width=2, depth=2)
        model.encoder[0].append(nn.Dropout(0.5))
        trainer = _trainer(cell, loss, model)
        trainer.run()
        return digest(trainer.model)

    assert run(Draws()) == run(Mse())


def test_a_loss_that_asks_for_a_generator_gets_the_same_numbers_each_time(cell: Cell) -> None:
    drawn: list[float] = []

    class Chance(Mse):
        def forward(self, logits, target, *, generator):
            drawn.append(float(torch.rand(1, generator=generator)))
            return super().forward(logits, target)

    _trainer(cell, Chance()).run()
    _trainer(cell, Chance()).run()
    assert drawn[:12] == drawn[12:] and len(set(drawn)) == 12


def test_a_loss_sees_progress_spacing_and_targets(cell: Cell) -> None:
    seen: list[tuple[float, float, float]] = []

    class Asks(Mse):
        def forward(self, logits, target, *, progress, epoch, epochs, spacing, onehot, distance_out, embedding):
            seen.append((float(progress), float(epoch), float(epochs)))
            assert spacing.shape == (2, 2) and onehot.shape == distance_out.shape == logits.shape
            assert embedding.shape == (2, 2, 16, 16)
            return super().forward(logits, target)

    _trainer(cell, Asks()).run()
    assert seen == [(0.0, 0.0, 3.0)] * 4 + [(0.5, 1.0, 3.0)] * 4 + [(1.0, 2.0, 3.0)] * 4


def test_a_loss_that_is_not_finite_ends_the_training_as_diverged(cell: Cell) -> None:
    class Bursts(Mse):
        calls = 0

        def forward(self, logits, target):
            self.calls += 1
            return super().forward(logits, target) * (float("inf") if self.calls == 6 else 1)

    state = _trainer(cell, Bursts()).run()
    assert "epoch 2 of 3" in state.diverged and len(state.curve) == 2 and state.step == 8


def test_epoch_end_is_called_and_learnable_parameters_learn_at_their_own_rate(cell: Cell) -> None:
    class Learns(Mse):
        lr = 0.5

        def __init__(self) -> None:
            super().__init__()
            self.nu = nn.Parameter(torch.tensor(1.0))
            self.ends = 0

        def forward(self, logits, target):
            return super().forward(logits, target) + (self.nu - 3) ** 2

        def epoch_end(self) -> None:
            self.ends += 1

    loss = Learns()
    optimizer = make_optimizer({"adamw": {"lr": 1e-2, "weight_decay": 0.1}}, nn.Linear(1, 1), loss)
    assert optimizer.param_groups[1]["lr"] == 0.5 and optimizer.param_groups[1]["weight_decay"] == 0
    inside = make_optimizer({"adamw": {"lr": 1e-2}}, nn.Linear(1, 1), nn.ModuleList([Mse(), Learns()]))
    assert [g["lr"] for g in inside.param_groups] == [1e-2, 0.5]  # also as a part of a sum
    _trainer(cell, loss).run()
    assert loss.ends == 3 and abs(float(loss.nu.detach()) - 3) < 1.5


def test_best_keeps_the_weights_of_the_best_epoch(cell: Cell) -> None:
    values = iter([0.2, 0.9, 0.5])
    kept: list[str] = []

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        kept.append(digest(model))
        return {"dice": next(values)}

    best = _trainer(_with(cell, select="best:dice@val"), hooks=Hooks(validate=validate))
    state = best.run()
    assert [r["val_dice"] for r in state.curve] == [0.2, 0.9, 0.5]
    assert digest(best.model) == kept[1] != kept[2]


def test_without_any_value_of_the_validation_no_epoch_is_called_best(cell: Cell) -> None:
    trainer = _trainer(_with(cell, select="best:dice@val"), hooks=Hooks(validate=lambda model: {}))
    with pytest.raises(BenchError, match="select: best:dice@val: the validation cases gave no value in any epoch"):
        trainer.run()


def test_a_checkpoint_counts_the_time_of_targets_within_its_epoch(cell: Cell, tmp_path: Path) -> None:
    class Asks(Mse):
        def forward(self, logits, target, *, distance_out):
            return super().forward(logits, target)

    first: Trainer | None = None
    path = tmp_path / "checkpoint.pt"
    hooks = Hooks(stop=lambda: first is not None and first.progress.step >= 2)  # an epoch has four
    first = _trainer(cell, Asks(), hooks=hooks, checkpoint=path)
    with pytest.raises(Stopped):
        first.run()
    assert 0 < torch.load(path, weights_only=True)["progress"]["targets"] < 60


@pytest.mark.parametrize(
    "change", [{"precision": "bf16"}, {"clip": 0.1}, {"optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}]
)
def test_options_change_the_weights(cell: Cell, change: dict) -> None:
    def weights(of: Cell) -> str:
        trainer = _trainer(of)
        trainer.run()
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
        return digest(trainer.model)

    assert weights(_with(cell, **change)) != weights(cell)


def test_no_value_is_read_from_the_device_inside_an_epoch(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each such read would wait for the device; every one of them goes through these methods."""
    trainer = _trainer(cell)
    reads: list[str] = []

    def counting(name: str) -> Callable[..., object]:
        original = getattr(torch.Tensor, name)

        def wrapped(self: torch.Tensor, *args: object) -> object:
            reads.append(name)
            return original(self, *args)

        return wrapped

    trainer.step()  # the first step draws the order of the pass
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)  # its step counters live on the CPU
    for name in ("item", "__float__", "__bool__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    trainer.step()
    assert reads == []


class Edges(Mse):
    """Asks for an attached head."""

    def forward(self, logits, target, *, boundary_logits, boundary, label_weight):
        assert bool((label_weight == 1).all())
        return super().forward(logits, target) + nn.functional.cross_entropy(boundary_logits, boundary.long())


def test_attached_heads_learn_and_the_network_starts_from_the_same_weights(cell: Cell) -> None:
    plain, with_head = _trainer(cell), _trainer(cell, Edges())
    before = {k: v.clone() for k, v in with_head.trained[1].state_dict().items()}
    one, two = plain.run(), with_head.run()
    assert one.fingerprints == two.fingerprints
    assert all(not torch.equal(before[k], v) for k, v in with_head.trained[1].state_dict().items())
    assert two.targets > 0 and one.targets == 0, "the cost of derived targets"


def test_a_stopped_training_with_a_head_continues_bit_for_bit(cell: Cell, tmp_path: Path) -> None:
    whole = _trainer(cell, Edges())
    whole.run()
    path = tmp_path / "checkpoint.pt"
    first: Trainer | None = None

    def stop() -> bool:
        return first is not None and first.progress.step >= 5

    first = _trainer(cell, Edges(), hooks=Hooks(stop=stop), checkpoint=path)
    with pytest.raises(Stopped):
        first.run()
    second = _trainer(cell, Edges(), checkpoint=path)
    second.run()
    assert digest(second.trained) == digest(whole.trained)


class PerSample(nn.Module):
    """A mean over samples: what a mean of means over equal parts gives, too."""

    def forward(self, logits, target):
        each = -logits.log_softmax(1).gather(1, target[:, None]).flatten(1).mean(1)
        return {"loss": each.mean(), "half": 0.5 * each.mean()}


def _first_gradient(cell: Cell, loss: nn.Module) -> tuple[list[torch.Tensor], dict]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, image):
            return Output(self.layers(image))

    trainer = _trainer(cell, loss, Net())
    found: list[torch.Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: found.extend([p.grad.clone() for p in trainer.parameters] if not found else [])
    )
    return found, trainer.run().curve[0]


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_has_the_gradient_of_the_whole_batch(cell: Cell, parts: int) -> None:
    cell = _with(cell, batch=6)
    whole, curve = _first_gradient(cell, PerSample())
    found, in_parts = _first_gradient(_with(cell, accumulate=parts), PerSample())
    for a, b in zip(whole, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert {k: in_parts[k] for k in curve} == pytest.approx(curve, rel=1e-5)


def test_parts_are_the_same_batch_with_its_samples_in_order(cell: Cell) -> None:
    seen: list[torch.Tensor] = []
    drawn: list[float] = []

    class Sees(Mse):
        def forward(self, logits, target, *, spacing, generator):
            assert len(logits) == len(target) == len(spacing)
            seen.append(target)
            drawn.append(float(torch.rand(1, generator=generator)))
            return super().forward(logits, target)

    cell = _with(cell, batch=6)
    state = _trainer(cell, Sees()).run()
    whole, seen[:] = [*seen], []
    in_parts = _trainer(_with(cell, accumulate=3), Sees()).run()
    assert in_parts.step == state.step and in_parts.fingerprints == state.fingerprints
    assert [len(t) for t in seen] == [2] * 36
    assert all(torch.equal(torch.cat(seen[3 * i : 3 * i + 3]), t) for i, t in enumerate(whole))
    assert len(set(drawn)) == 12 + 2 * 12  # the first part draws what the whole batch drew, the others draw anew


def test_a_stopped_training_with_accumulation_continues_bit_for_bit(cell: Cell, tmp_path: Path) -> None:
    cell = _with(cell, accumulate=2)
    whole = _trainer(cell)
    whole.run()
    began: list[int] = []
    first: Trainer | None = None
    hooks = Hooks(stop=lambda: first is not None and first.progress.step >= 5, began=began.append)
    first = _trainer(cell, hooks=hooks, checkpoint=tmp_path / "c.pt")
    with pytest.raises(Stopped):
        first.run()
    second = _trainer(cell, hooks=Hooks(began=began.append), checkpoint=tmp_path / "c.pt")
    second.run()
    assert digest(second.model) == digest(whole.model) and began == [0, 5]
