"""Cells trained as one against the same cells alone: gradients, weights, resumption, and what must not reach others."""

from __future__ import annotations

import traceback
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import fused
from harness.cell import Cell
from harness.data.augment import Batch
from harness.data.batches import TrainSet
from harness.errors import BenchError
from harness.fused import Group, train, train_one
from harness.losses.compound import Sum
from harness.models import PROVIDES
from harness.models.build import digest
from harness.models.output import Output
from harness.train import Hooks, Stopped, Trainer
from tests.small_networks import (
    CLASSES,
    DEEP,
    FLAT,
    SMALL,
    doubled,
    far,
    loss_of,
    model_of,
    toy_cell,
    trainer_of,
    weights_of,
)


def _best(cell: Cell) -> Cell:
    return replace(cell, train=cell.train | {"select": "best:dice@val"})


@pytest.mark.parametrize("name", SMALL)
def test_one_step_has_the_gradients_of_every_cell_alone(name: str, tmp_path: Path, monkeypatch) -> None:
    side = 64 if name == "swin_unetr" else 32
    cell = toy_cell(tmp_path, f"slices: {{size: [{side}, {side}]}}")
    offered = PROVIDES.get(name, frozenset())
    kinds = [["ce", "lovasz", "t_loss", "conditional_boundary", "distance_head"]]
    kinds += [[n, n] for n, need in (("attention", "attention"), ("shape_alignment", "token_maps")) if need in offered]
    seen: dict[int, list[Tensor]] = {}

    def keep(self: Trainer, terms: dict[str, Tensor]) -> None:
        every = [*self.trained.parameters(), *self.loss.parameters()]
        seen[id(self)] = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in every]
        seen[id(self)].append(terms["loss"].detach())

    monkeypatch.setattr(Trainer, "update", keep)
    built = [
        [[doubled(trainer_of(cell, loss_of(n), model_of(name, side), side)) for n in k] for _ in "ab"] for k in kinds
    ]
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # which losses and heads call
    for mine, pair in zip(kinds, built, strict=True):
        group = Group(pair[0])
        group.begin()
        group.step()
        assert not group.failed, group.failed
        for loss, together, alone in zip(mine, *pair, strict=True):
            alone.step()
            assert far(seen[id(together)], seen[id(alone)]) < 1e-5, loss
            buffers = zip(together.model.buffers(), alone.model.buffers(), strict=True)
            assert all(torch.allclose(a, b, rtol=1e-6) for a, b in buffers), loss


@pytest.mark.parametrize(
    ("name", "view", "train_"),
    [
        ("unet", FLAT, "schedule: plateau, clip: 0.5, augment: {rotate: 20, noise: 0.1}"),
        ("nnunet", DEEP, "schedule: poly, deep_supervision: true"),
        ("shape_prior", FLAT, "schedule: cosine, accumulate: 2"),
        ("monai.networks.nets:UNet", FLAT, "schedule: constant"),
    ],
)
def test_weights_after_a_training_are_those_of_the_cells_alone(
    name: str, view: str, train_: str, tmp_path: Path
) -> None:
    cell = toy_cell(tmp_path, view, train_)
    dims, args = (2, {}) if view is FLAT else (3, {"min_edge": 2, "width": 2})
    if name.startswith("monai"):
        args = {"channels": [4, 8], "strides": [2], "num_res_units": 1}
    kinds = ["ce", "t_loss", *(["lovasz", "distance_head"] if name in ("unet", "shape_prior") else [])]
    side = 32 if dims == 2 else 24
    pair = []
    for _ in range(2):
        size = 32 if dims == 2 else 16
        pair.append([trainer_of(cell, loss_of(n), model_of(name, size, dims, **args), side) for n in kinds])
    found = dict(train(pair[0]))
    assert set(found.values()) == {None}
    for loss, together, alone in zip(kinds, *pair, strict=True):
        alone.run()
        assert together.engine == {"engine": "fused", "fused_cells": len(kinds)} and alone.engine["engine"] == "single"
        assert far(weights_of(together), weights_of(alone)) < 1e-4, loss
        assert [r["lr"] for r in together.progress.curve] == [r["lr"] for r in alone.progress.curve]
        assert together.progress.fingerprints == alone.progress.fingerprints
        values = [[r["loss"] for r in t.progress.curve] for t in (together, alone)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_low_precision_trains(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path, train="precision: bf16")
    pair = [[trainer_of(cell, loss_of(n)) for n in ("ce", "distance_head")] for _ in range(2)]
    assert set(dict(train(pair[0])).values()) == {None}
    for together, alone in zip(*pair, strict=True):
        alone.run()
        assert far(weights_of(together), weights_of(alone)) < 1e-2


def test_dropout_has_one_mask_for_all(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path, "slices: {size: [32, 32]}")
    trainers = [trainer_of(cell, loss_of("ce"), model_of("transunet", 32, dropout=0.5)) for _ in range(2)]
    assert set(dict(train(trainers)).values()) == {None}
    assert digest(trainers[0].model) == digest(trainers[1].model)


def test_a_cell_that_must_stop_alone_leaves_the_others(tmp_path: Path) -> None:
    """As one does whose lease another process took."""
    cell = toy_cell(tmp_path)
    lost = trainer_of(
        cell, loss_of("dice"), hooks=Hooks(stop=lambda: lost.progress.step >= 5), checkpoint=tmp_path / "d"
    )
    others = [trainer_of(cell, loss_of(n)) for n in ("ce", "focal")]
    ended = dict(train([others[0], lost, others[1]]))
    assert isinstance(ended[lost], Stopped) and lost.progress.step == 5 and (tmp_path / "d").exists()
    assert [ended[t] for t in others] == [None, None] and {t.progress.step for t in others} == {12}


class Bad(nn.Module):
    """The Dice loss until a step, then something else."""

    def __init__(self, how: str, step: int) -> None:
        super().__init__()
        self.inner, self.how, self.at, self.calls = loss_of("dice"), how, step, 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        value: Tensor = self.inner(logits, target)
        if self.calls != self.at:
            return value
        if self.how == "raises":
            raise ValueError("a mistake")
        if self.how == "backward":
            value.register_hook(lambda grad: 1 / 0)
        if self.how == "nan":
            return value * torch.nan
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return value


@pytest.mark.parametrize("how", ["raises", "backward", "nan"])
def test_what_happens_in_one_cell_stays_there(how: str, tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)

    def others(bad: str) -> tuple[list[Trainer], dict[Trainer, Any]]:
        trainers = [trainer_of(cell, loss) for loss in (loss_of("ce"), Bad(bad, 6), loss_of("lovasz"))]
        return trainers, dict(train(trainers))

    good, ended = others("")
    assert set(ended.values()) == {None}
    trainers, ended = others(how)
    for i in (0, 2):
        assert ended[trainers[i]] is None
        assert far(weights_of(trainers[i]), weights_of(good[i])) < 1e-5
        assert trainers[i].engine["fused_cells"] == 2, "those that were left"
    if how == "nan":
        assert "epoch 2 of 3" in trainers[1].progress.diverged and trainers[1].progress.step == 8
    else:
        assert isinstance(ended[trainers[1]], ValueError if how == "raises" else ZeroDivisionError)


def test_a_gradient_that_is_no_number_reaches_no_bit_of_the_others(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)
    weights = []
    for how in ("", "nan"):
        trainers = [
            trainer_of(cell, loss, model_of("shape_prior", 32))
            for loss in (loss_of("ce"), Bad(how, 1), loss_of("dice"))
        ]
        group = Group(trainers)
        group.begin()
        for _ in range(3):  # within an epoch, at whose end it would leave
            group.step()
        weights.append([digest(t.model) for t in trainers])
        assert bool(trainers[1].model.head.weight.isnan().any()) == (how == "nan")
    assert weights[0][0] == weights[1][0] and weights[0][2] == weights[1][2]


def test_killed_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    cell = _best(toy_cell(tmp_path, train="schedule: plateau"))
    names = ["ce", "t_loss", "distance_head"]

    def validate(model: nn.Module) -> dict[str, float]:
        return {"dice": -float(sum(p.detach().abs().sum() for p in model.parameters()))}

    def trainers(stop: Any = lambda: False, save: bool = True) -> list[Trainer]:
        return [
            trainer_of(
                cell, loss_of(n), hooks=Hooks(stop=stop, validate=validate), checkpoint=tmp_path / n if save else None
            )
            for n in names
        ]

    whole = trainers(save=False)
    assert set(dict(train(whole)).values()) == {None}
    first: list[Trainer] = []
    first += trainers(lambda: bool(first) and first[0].progress.step >= 6)
    ended = dict(train(first))
    assert all(isinstance(e, Stopped) for e in ended.values()) and len(ended) == 3
    sizes = [(tmp_path / n).stat().st_size for n in names]
    single = trainer_of(cell, loss_of("ce"), checkpoint=tmp_path / "single", hooks=Hooks(validate=validate))
    single.begin()
    single.step()
    single.keep()
    assert max(sizes) < 2.5 * (tmp_path / "single").stat().st_size, "a checkpoint holds one network, and its best"
    second = trainers()
    torch.rand(100)
    assert set(dict(train(second)).values()) == {None}
    for one, other in zip(second, whole, strict=True):
        assert digest(one.trained) == digest(other.trained) and digest(one.loss) == digest(other.loss)
        assert one.progress.curve == other.progress.curve
        assert one.engine == other.engine


def test_a_cell_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)

    def stopped(trainers: list[Trainer]) -> None:
        assert all(isinstance(e, Stopped) for e in dict(train(trainers)).values())

    steps = {"n": 0}

    def stop() -> bool:
        steps["n"] += 1
        return steps["n"] > 8

    stopped([trainer_of(cell, loss_of(n), hooks=Hooks(stop=stop), checkpoint=tmp_path / n) for n in ("ce", "dice")])
    alone = trainer_of(cell, loss_of("ce"), checkpoint=tmp_path / "ce")
    train_one(alone)
    assert alone.engine == {"engine": "fused", "fused_cells": 1}
    single = trainer_of(
        cell, loss_of("lovasz"), hooks=Hooks(stop=lambda: single.progress.step > 2), checkpoint=tmp_path / "l"
    )
    with pytest.raises(Stopped):
        train_one(single)
    both = [trainer_of(cell, loss_of(n), checkpoint=tmp_path / p) for n, p in (("lovasz", "l"), ("dice", "dice"))]
    assert set(dict(train(both)).values()) == {None}
    assert [t.engine["engine"] for t in both] == ["single", "fused"]
    whole = trainer_of(cell, loss_of("lovasz"))
    whole.run()
    assert digest(both[0].model) == digest(whole.model)


def test_too_little_memory_makes_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = toy_cell(tmp_path)
    names = ["ce", "dice", "lovasz", "focal", "topk"]
    original = Group._pass

    def small(self: Group, image: Tensor, buffers: Any) -> Any:
        given = original(self, image, buffers)
        if len(self.alive) > 2 and buffers is self._buffers:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return given

    monkeypatch.setattr(Group, "_pass", small)
    trainers = [trainer_of(cell, loss_of(n)) for n in names]
    lines: list[str] = []
    assert set(dict(train(trainers, lambda t, text: lines.append(text))).values()) == {None}
    assert [t.engine["fused_cells"] for t in trainers] == [2, 2, 1, 2, 2], "halves of 5: 3 and 2"
    assert "out of memory with 5 cells fused" in lines[0]
    alone = [trainer_of(cell, loss_of(n)) for n in names]
    for one, other in zip(trainers, alone, strict=True):
        other.run()
        assert far(weights_of(one), weights_of(other)) < 1e-3
        passes = {int(v) for n, v in one.model.state_dict().items() if "num_batches" in n}
        assert passes == {12}, "the pass that found no room left its mark"


class Counts(nn.Module):
    """The Dice loss, which counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = loss_of("dice")
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        value: Tensor = self.inner(logits, target)
        return value


@pytest.mark.parametrize("resumed", [False, True])
def test_a_first_step_that_lacked_memory_is_made_again_from_where_it_began(resumed: bool, tmp_path: Path) -> None:
    """Also where memory ran out within an optimizer, whose state was then half there and whose weights had moved."""
    cell = toy_cell(tmp_path)
    cell = replace(cell, train=cell.train | {"optimizer": {"adam": {"lr": 1e-3}}})

    def made(stop: Any = lambda: False) -> list[Trainer]:
        hooks = Hooks(stop=stop)
        return [trainer_of(cell, Counts(), hooks=hooks, checkpoint=tmp_path / f"{k}.pt") for k in range(4)]

    if resumed:
        first: list[Trainer] = []
        first += made(lambda: bool(first) and first[0].progress.step >= 5)
        assert all(isinstance(e, Stopped) for e in dict(train(first)).values())
    trainers = made()
    failing = trainers[1]
    step = failing.optimizer.step

    def full(*arguments: Any) -> Any:
        if failing.sharing < 4:
            return step(*arguments)
        for group in failing.optimizer.param_groups:
            for parameter in group["params"]:
                failing.optimizer.state[parameter] = {"step": torch.tensor(9.0)}
                parameter.data += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    failing.optimizer.step = full  # type: ignore[method-assign]
    assert set(dict(train(trainers)).values()) == {None}
    whole = trainer_of(cell, Counts())
    whole.run()
    for trainer in trainers:
        assert trainer.engine["fused_cells"] < 4
        assert float(trainer.loss.calls) == 12
        assert far(weights_of(trainer), weights_of(whole)) < 1e-3


class Masked(nn.Module):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, CLASSES, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Output:
        return Output(self.drop(self.head(image)))


class Draws(nn.Module):
    """The Dice loss with numbers of the global generator in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = loss_of("dice")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        value: Tensor = self.inner(logits, target) * (1 + torch.rand(7).mean())
        return value


def test_masks_of_dropout_do_not_depend_on_a_loss_that_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = toy_cell(tmp_path, train="accumulate: 2")

    def made(loss: nn.Module) -> Trainer:
        torch.manual_seed(3)
        return trainer_of(cell, loss, Masked())

    together, alone = [made(loss_of("ce")), made(Draws())], made(loss_of("ce"))
    images: list[int] = []
    original = Group._pass

    def seen(self: Group, image: Tensor, buffers: Any) -> Any:
        images.append(len(image))
        return original(self, image, buffers)

    monkeypatch.setattr(Group, "_pass", seen)
    assert set(dict(train(together)).values()) == {None}
    alone.run()
    assert far(weights_of(together[0]), weights_of(alone)) < 1e-5
    assert set(images) == {1}, "the probe takes as much memory as a step"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_chance_that_a_loss_starts_from_is_that_of_all_global_generators(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [torch.tensor([1])]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda place: states[0].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, place: states.__setitem__(0, state))
    place = torch.device(device)
    before = fused._chance(place)
    first = torch.rand(3)
    states[0] = torch.tensor([2])
    fused._set_chance(before, place)
    assert torch.equal(torch.rand(3), first) and int(states[0]) == (1 if device == "cuda" else 2)


def test_what_a_failed_cell_held_is_gone_when_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    original = Group._pass

    def seen(self: Group, image: Tensor, buffers: Any) -> Any:
        given = original(self, image, buffers)
        held.append(weakref.ref(given["logits"]))
        return given

    monkeypatch.setattr(Group, "_pass", seen)
    group = Group([trainer_of(toy_cell(tmp_path), loss) for loss in (loss_of("ce"), Bad("raises", 1))])
    group.begin()
    failing = group.alive[1]
    group.step()
    assert held[-1]() is None, "the tensors of the step in which it failed"
    lines = "".join(traceback.format_exception(group.failed[failing]))
    assert 'raise ValueError("a mistake")' in lines, "its log still says where"


@pytest.mark.parametrize("weighted", [0, 1])
def test_every_loss_gets_the_label_weights_that_it_asks_for(weighted: int, tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)

    class Weighs(nn.Module):
        needs = frozenset({"label_weight"})

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = loss_of("ce"), list[Tensor]()

        def forward(self, logits: Tensor, target: Tensor, label_weight: Tensor) -> Tensor:
            self.seen.append(label_weight.clone())
            value: Tensor = self.inner(logits, target) * label_weight.mean()
            return value

    def made() -> list[Trainer]:
        losses: list[nn.Module] = [loss_of("dice")]
        losses.insert(weighted, Weighs())
        trainers = [trainer_of(cell, loss) for loss in losses]
        trainers[weighted].data = Doubted(trainers[weighted].data)  # type: ignore[assignment]
        return trainers

    together, alone = made(), made()
    assert set(dict(train(together)).values()) == {None}
    alone[weighted].run()
    seen, expected = together[weighted].loss.seen, alone[weighted].loss.seen
    assert len(seen) == len(expected) == 12 and all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert float(seen[0].min()) < 1


class Doubted:
    """A set whose labels are in doubt."""

    def __init__(self, data: TrainSet) -> None:
        self._data, self.samples = data, data.samples

    def batch(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        batch = self._data.batch(step, size, base)
        return replace(batch, weight=(batch.target == step % CLASSES).float())


def test_memory_that_runs_out_beside_a_failed_cell_keeps_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.update

    def update(self: Trainer, terms: dict[str, Tensor]) -> None:
        if getattr(self.loss, "how", "") == "full" and self.sharing > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, terms)

    monkeypatch.setattr(Trainer, "update", update)
    cell = toy_cell(tmp_path)
    trainers = [trainer_of(cell, loss) for loss in (Bad("raises", 1), Bad("full", 0))]
    ended = list(train(trainers))
    assert len(ended) == 2, "each ends once"
    assert isinstance(dict(ended)[trainers[0]], ValueError) and dict(ended)[trainers[1]] is None
    assert trainers[0].progress.step == 0 and trainers[1].progress.step == 12


def test_a_checkpoint_that_cannot_be_written_is_the_end_of_its_cell(tmp_path: Path) -> None:
    cell, stop = toy_cell(tmp_path), Hooks(stop=lambda: trainers[0].progress.step >= 5)
    trainers = [trainer_of(cell, loss_of(n), hooks=stop, checkpoint=tmp_path / n) for n in ("ce", "dice")]

    def full() -> None:
        raise OSError(28, "No space left on device")

    trainers[1].keep = full  # type: ignore[method-assign]
    ended = dict(train(trainers))
    assert isinstance(ended[trainers[0]], Stopped) and isinstance(ended[trainers[1]], OSError)


def test_memory_that_one_loss_takes_alone_is_its_own(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)
    trainers = [trainer_of(cell, loss_of("ce")), trainer_of(cell, Greedy())]
    ended = dict(train(trainers))
    assert ended[trainers[0]] is None and isinstance(ended[trainers[1]], torch.OutOfMemoryError)


class Greedy(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


class Reads(nn.Module):
    """A network that reads a number off its own activations."""

    def __init__(self, in_channels: int = 1, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, image: Tensor) -> Output:
        logits = self.head(image)
        return Output(logits * 2 if float(logits.detach().sum()) > 1e9 else logits)


class Lasts(Reads):
    channels_last = True


class Mixes(Reads):
    """A network that behaves differently where it sees several sets of weights."""

    def forward(self, image: Tensor) -> Output:
        batched = torch._C._functorch.is_batchedtensor(self.head.weight)
        return Output(self.head(image) * (2 if batched else 1))


@pytest.mark.parametrize(("network", "reason"), [(Reads, "has no pass for several"), (Mixes, "gives other logits")])
def test_a_network_that_cannot_be_fused_trains_alone_and_says_why(network: Any, reason: str, tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)

    def made(name: str) -> Trainer:
        torch.manual_seed(3)
        return trainer_of(cell, loss_of(name), network())

    lines: list[str] = []
    trainers = [made("ce"), made("dice")]
    assert set(dict(train(trainers, lambda t, text: lines.append(text))).values()) == {None}
    for trainer, name in zip(trainers, ("ce", "dice"), strict=True):
        assert trainer.engine["engine"] == "single" and reason in trainer.engine["engine_note"]
        whole = made(name)
        whole.run()
        assert digest(whole.model) == digest(trainer.model)
    assert len(lines) == 2 and all(reason in line for line in lines)


def test_a_network_that_cannot_be_fused_has_its_layout_back(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path)

    def made() -> Trainer:
        return trainer_of(cell, loss_of("ce"), Lasts(in_channels=2))

    trainers, plain = [made(), made()], made()
    for trainer in [*trainers, plain]:
        trainer.data = Twofold(trainer.data)  # type: ignore[assignment]
    assert set(dict(train(trainers)).values()) == {None}
    (expected,) = {p.stride() for n, p in plain.model.named_parameters() if n == "head.weight"}
    assert expected == (2, 1, 2, 2)
    for trainer in trainers:
        assert "engine_note" in trainer.engine
        assert dict(trainer.model.named_parameters())["head.weight"].stride() == expected


class Twofold:
    """A set whose images have two channels."""

    def __init__(self, data: TrainSet) -> None:
        self._data, self.samples = data, data.samples

    def batch(self, step: int, size: int, base: dict[str, Any]) -> Batch:
        batch = self._data.batch(step, size, base)
        return replace(batch, image=batch.image.repeat(1, 2, 1, 1))


def test_what_ends_at_the_end_of_one_cell_is_its_own(tmp_path: Path) -> None:
    cell = _best(toy_cell(tmp_path))
    values: list[dict[str, float]] = [{"dice": 0.5}, {}]
    trainers = [trainer_of(cell, loss_of("ce"), hooks=Hooks(validate=lambda m, v=v: v)) for v in values]
    ended = dict(train(trainers))
    assert ended[trainers[0]] is None and isinstance(ended[trainers[1]], BenchError)


def test_the_sum_of_seconds_is_the_time_that_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def slow(place: type, name: str) -> None:
        does = getattr(place, name)

        def slowly(*arguments: Any) -> None:
            time.sleep(0.3)
            does(*arguments)

        monkeypatch.setattr(place, name, slowly)

    slow(Group, "_stack")  # what few steps do quickly
    slow(Trainer, "finish")
    cell = toy_cell(tmp_path)
    trainers = [
        trainer_of(cell, Sum([loss_of("ce"), loss_of(n)], [0.5, 0.5], ["a", "b"])) for n in ("dice", "topk", "lovasz")
    ]
    began = time.monotonic()
    assert set(dict(train(trainers)).values()) == {None}
    passed = time.monotonic() - began
    assert 1.2 < sum(t.progress.seconds for t in trainers) <= passed  # four pauses of 0.3 s among it


def test_what_one_cell_does_aside_is_shared_as_its_seconds_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: every validation takes 10 s, every step 1 s."""
    now = [0.0]

    def later(seconds: float) -> None:
        now[0] += seconds

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        perf_counter = staticmethod(lambda: now[0])

    monkeypatch.setattr("harness.train.time", Clock)
    monkeypatch.setattr("harness.fused.time", Clock)
    original = Group._step

    def step(self: Group) -> None:
        later(1)
        original(self)

    monkeypatch.setattr(Group, "_step", step)

    def validate(model: nn.Module) -> dict[str, float]:
        later(10)
        return {}

    cell = toy_cell(tmp_path)
    hooks = Hooks(validate=validate, write=lambda path, content: later(5))
    names = ("ce", "dice", "lovasz")
    trainers = [trainer_of(cell, loss_of(n), hooks=hooks, checkpoint=tmp_path / "none") for n in names]
    assert set(dict(train(trainers)).values()) == {None}
    assert now[0] >= 3 * 3 * 10 + 12
    assert sum(t.progress.seconds for t in trainers) == pytest.approx(now[0])
    for trainer in trainers:
        assert trainer.progress.seconds - trainer.progress.aside == pytest.approx(12 / 3), "a third of the 12 steps"
        assert trainer.progress.seconds == pytest.approx(now[0] / 3)
