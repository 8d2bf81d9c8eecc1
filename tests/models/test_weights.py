"""Starting from a file of weights: every entry has one place, mistakes are one sentence, frozen parts stay as read."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.cell import Cell, Place
from harness.data.batches import TrainSet
from harness.data.prepare import Prepared
from harness.errors import BenchError
from harness.models.build import build_model, digest
from harness.models.unet import UNet
from harness.models.weights import learning_factors, load_initial
from harness.optim import make_optimizer
from harness.suite import load_suite
from harness.train import Trainer
from harness.worker import run_cell

NETS = "monai.networks.nets:"


def _net(seed: int = 0, classes: int = 3) -> UNet:
    torch.manual_seed(seed)
    return UNet(1, classes, width=2, depth=2)


def _save(path: Path, state: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_a_state_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    source, net = _net(1), _net(0)
    source.encoder[0][1].running_mean.fill_(0.25)
    assert digest(source) != digest(net)
    load_initial(net, _save(tmp_path / name, source.state_dict()), {})
    assert digest(net) == digest(source)
    assert all(p.requires_grad for p in net.parameters()) and net.training


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "network_weights"])
def test_a_state_among_other_things(tmp_path: Path, key: str) -> None:
    source, net = _net(1), _net(0)
    load_initial(net, _save(tmp_path / "w.pt", {"epoch": 3, key: source.state_dict()}), {})
    assert digest(net) == digest(source)


def test_the_file_that_was_planned(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.pt", _net(1).state_dict())
    load_initial(_net(), path, {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    with pytest.raises(BenchError, match=r"w\.pt: the file of weights was edited after the run was planned"):
        load_initial(_net(), path, {"sha256": hashlib.sha256(b"other").hexdigest()})
    with pytest.raises(BenchError, match=r"gone\.pt: cannot be read: No such file"):
        load_initial(_net(), tmp_path / "gone.pt", {"sha256": "0"})


def test_prefixes_are_renamed_and_the_longest_counts(tmp_path: Path) -> None:
    source, net = _net(1), _net(0)
    theirs = {"head": "out", "encoder.1": "deep", "encoder": "backbone.down"}
    state: dict[str, torch.Tensor] = {}
    for name, value in source.state_dict().items():
        prefix = next((p for p in theirs if name.startswith(p + ".")), None)
        state["net." + (theirs[prefix] + name.removeprefix(prefix) if prefix else name)] = value
    renames = {"net": "", "net.out": "head", "net.deep": "encoder.1", "net.backbone.down.": "encoder"}
    load_initial(net, _save(tmp_path / "w.pt", state), {"map": renames})
    assert digest(net) == digest(source)


def test_a_part_that_stands_for_null_keeps_its_random_start(tmp_path: Path) -> None:
    source, net, fresh = _net(1, classes=7), _net(0), _net(0)
    path = _save(tmp_path / "w.pt", source.state_dict())
    load_initial(net, path, {"map": {"head": None}})
    assert torch.equal(net.head.weight, fresh.head.weight) and torch.equal(net.head.bias, fresh.head.bias)
    rest = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    assert rest and all(torch.equal(v, source.state_dict()[k]) for k, v in rest.items())
    # a file of an encoder alone: null says that the others are not expected in it
    encoder = {k: v for k, v in source.state_dict().items() if k.startswith("encoder.")}
    net = _net(0)
    load_initial(net, _save(tmp_path / "e.pt", encoder), {"map": {"up": None, "decoder": None, "head": None}})
    assert torch.equal(net.encoder[0][0].weight, source.encoder[0][0].weight)
    assert torch.equal(net.up[0].weight, fresh.up[0].weight)


def test_counters_of_batches_may_be_absent(tmp_path: Path) -> None:
    state = {k: v for k, v in _net(1).state_dict().items() if not k.endswith("num_batches_tracked")}
    net = _net(0)
    load_initial(net, _save(tmp_path / "w.pt", state), {})
    assert torch.equal(net.head.weight, state["head.weight"])


def test_own_weights_of_a_foreign_network(tmp_path: Path) -> None:
    """`weights.pt` of a run of a wrapped network, and a state of the network itself, both fit."""

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        args = {"features": (4, 4, 8, 8, 16, 6)}
        return build_model(NETS + "BasicUNet", args, in_channels=1, num_classes=3, spatial_dims=2, size=[32, 32])

    source = make(1)
    for state in (source.state_dict(), source.network.state_dict()):
        net = make(0)
        load_initial(net, _save(tmp_path / "w.pt", state), {"freeze": ["conv_0"]})
        assert digest(net) == digest(source)
        assert not any(p.requires_grad for p in net.network.conv_0.parameters())


class Gadget:
    """Not a tensor."""


STATE = _net(1).state_dict()
REST = {k: v for k, v in STATE.items() if k != "head.bias"}


@pytest.mark.parametrize(
    ("state", "init", "words"),
    [
        (REST, {}, "holds nothing for 'head.bias'; say where it stands with `map`, or keep its random start with"),
        ({"head.bias": STATE["head.bias"]}, {}, "holds nothing for 'encoder.0.0.weight' and for 38 more;"),
        (
            STATE | {"head.bais": STATE["head.bias"]},
            {},
            "'head.bais' has no place in this model (did you mean 'head.bias'?); rename it with `map`",
        ),
        (
            STATE | {"head.bias": torch.zeros(4)},
            {},
            "'head.bias' has shape (4,), this model needs (3,); `map: {PREFIX: null}` keeps the random start of a part.",
        ),
        (STATE | {"head.bias": torch.zeros(3, dtype=torch.int64)}, {}, "'head.bias' holds torch.int64, expected"),
        (STATE | {"head.bias": torch.tensor([0.0, torch.nan, 0.0])}, {}, "'head.bias' holds values that are not finite"),
        (REST | {"a": STATE["head.bias"], "b": STATE["head.bias"]}, {"map": {"a": "head.bias", "b": "head.bias"}}, "two entries"),
        (STATE, {"map": {"haed": "head"}}, "init: `map` names 'haed', under which there is nothing (did you mean 'head'?)"),
        (STATE, {"freeze": ["encoder.7"]}, "init: `freeze` names 'encoder.7', under which there is nothing"),
        (STATE, {"freeze": ["enc"]}, "there is nothing (did you mean 'encoder'?): encoder, up, decoder, head."),
        (STATE, {"freeze": ["encoder", "up", "decoder", "head"]}, "`freeze` leaves nothing of the model to learn."),
        (STATE, {"map": {"": None}}, "`map` leaves out all of the file, and the model would start from random weights."),
        (STATE, {"map": {"head": "haed"}}, "'head.weight', by `map` 'haed.weight', has no place in this model (did you mean 'head.weight'?)"),
        ({"epoch": 3}, {}, "expected tensors by name, alone or in one entry of state_dict, model_state_dict"),
        ({}, {}, "expected tensors by name"),
        ({"model": Gadget()}, {}, "cannot be read as weights: it holds objects besides tensors; save `model.state_dict()`."),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(tmp_path: Path, state: dict[str, Any], init: dict[str, Any], words: str) -> None:
    path = _save(tmp_path / "w.pt", state)
    with pytest.raises(BenchError) as error:
        load_initial(_net(), path, init)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith((f"{path}: ", "init: ", "`freeze`"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02}."])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError) as error:
        load_initial(_net(), tmp_path / name, {})
    text = str(error.value)
    assert text.startswith(f"{tmp_path / name}: ") and "\n" not in text
    assert ("UNet cannot start from .npz" in text) is (name == "w.npz")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        path = _save(tmp_path / name, _net(1).state_dict())
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(BenchError, match=rf"{name}: cannot be read as "):
            load_initial(_net(), path, {})


def test_rates_of_the_parts_make_groups() -> None:
    net, learns = _net(), nn.Linear(1, 1)
    net.up[0].bias.requires_grad_(False)
    factors = learning_factors(net, {"lr": {"encoder": 0.1, "encoder.1": 0.5, "head": 2.0}})
    optimizer = make_optimizer({"sgd": {"lr": 1.0}}, nn.ModuleList([net]), learns, factors)
    rates = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    by_hand = {"encoder.0": 0.1, "encoder.1": 0.5, "head": 2.0, "up": 1.0, "decoder": 1.0}
    for name, parameter in net.named_parameters():
        if name == "up.0.bias":
            assert parameter not in rates
        else:
            expected = next(v for k, v in by_hand.items() if name.startswith(k))
            assert rates.pop(parameter) == expected, name
    assert set(rates) == set(learns.parameters())
    assert optimizer.param_groups[0]["lr"] == 1.0  # which the curve shows
    with pytest.raises(BenchError, match="`lr` names 'hed', under which there is nothing"):
        learning_factors(net, {"lr": {"hed": 2.0}})
    # without `lr` there is the one group that there always was
    plain = make_optimizer({"sgd": {"lr": 1.0}}, _net(), nn.Identity(), learning_factors(_net(), None))
    assert len(plain.param_groups) == 1 and len(plain.param_groups[0]["params"]) == len([*_net().parameters()])


SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [16, 16]}}
models:
  - unet: {width: 2, depth: 2, init: {checkpoint: w.pt, freeze: [encoder.0], lr: {head: 0.5}}}
losses: [dice]
train: {epochs: 1, steps: 1, batch: 4, optimizer: {sgd: {lr: 1.0}}, schedule: constant}
"""


def _data(cell: Cell) -> TrainSet:
    torch.manual_seed(0)
    label = torch.zeros(4, 16, 16, dtype=torch.uint8)
    label[:, 4:10, 5:12] = 1
    image = label[:, None].float() + 0.2 * torch.randn(4, 1, 16, 16)
    case = Prepared("c", image.numpy(), label.numpy(), label.numpy(), (1.0, 1.0), None, (), ())
    return TrainSet([case], cell.data["view"], cell.train["augment"], torch.device("cpu"))


class Mse(nn.Module):
    def forward(self, logits, target):
        return ((logits.softmax(1)[:, 1] - target) ** 2).mean()


def test_a_suite_trains_with_frozen_parts_and_rates(tmp_path: Path) -> None:
    """One step of gradient descent: frozen parts and their running statistics stay, the head goes half as far."""
    source = _net(1)
    source.encoder[0][1].running_mean.fill_(0.25)
    _save(tmp_path / "w.pt", source.state_dict())
    (tmp_path / "toy.yaml").write_text(SUITE)
    cell = load_suite(tmp_path / "toy.yaml").cells[0]
    trained: dict[str, dict[str, torch.Tensor]] = {}
    for name, init in (("init", cell.model["init"]), ("plain", cell.model["init"] | {"freeze": [], "lr": {}})):
        net = _net(0)
        load_initial(net, Path(str(cell.init_path)), init)
        Trainer(_replaced(cell, init), net, Mse(), _data(cell), 2, torch.device("cpu")).run()
        trained[name] = net.state_dict()
    start, end, plain = source.state_dict(), trained["init"], trained["plain"]
    for name in start:
        if name.startswith("encoder.0."):
            assert torch.equal(end[name], start[name]), name
    assert not torch.equal(plain["encoder.0.1.running_mean"], start["encoder.0.1.running_mean"])
    assert not torch.equal(end["encoder.1.0.weight"], start["encoder.1.0.weight"])
    assert not torch.equal(end["encoder.1.1.running_mean"], start["encoder.1.1.running_mean"])  # not frozen: it learns
    assert not torch.equal(plain["head.bias"], start["head.bias"])


def test_the_rate_of_a_part_scales_its_step(tmp_path: Path) -> None:
    _save(tmp_path / "w.pt", _net(1).state_dict())
    (tmp_path / "toy.yaml").write_text(SUITE)
    cell = load_suite(tmp_path / "toy.yaml").cells[0]
    moved: list[torch.Tensor] = []
    for factor in (1.0, 0.5):
        net = _net(1)
        before = net.head.weight.detach().clone()
        Trainer(_replaced(cell, {"lr": {"head": factor}}), net, Mse(), _data(cell), 2, torch.device("cpu")).run()
        moved.append(net.head.weight.detach() - before)
    assert moved[0].abs().max() > 1e-4 and torch.allclose(moved[1], moved[0] / 2, atol=1e-7)


def _replaced(cell: Cell, init: dict[str, Any]) -> Cell:
    return replace(cell, model=cell.model | {"init": init})


def test_a_run_starts_from_the_weights_of_another(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """From suite to record: `init` names the `weights.pt` of a finished cell."""
    monkeypatch.setattr("harness.worker.certificates_of", lambda *_: {})  # seconds, and tested elsewhere
    place = Place(toy.folder / "runs", toy.folder / "data")
    first = load_suite(toy.suite()).cells[0]
    done = run_cell(first, place)
    assert done.status == "ok", done.message
    weights = first.folder(place.out) / "weights.pt"
    suite = toy.suite("depth: 3", f"depth: 3, init: {{checkpoint: {weights}, freeze: [encoder]}}", name="tuned")
    tuned = load_suite(suite).cells[0]
    assert tuned.train_id != first.train_id
    record = run_cell(tuned, place)
    assert record.status == "ok", record.message
    assert record.fingerprints["init"] == done.weights != record.weights
    before, after = (torch.load(c.folder(place.out) / "weights.pt", weights_only=True) for c in (first, tuned))
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("encoder."))
    assert not torch.equal(before["head.weight"], after["head.weight"])
    weights.write_bytes(b"edited")
    again = run_cell(replace(tuned, seed=1), place)
    assert again.status == "error" and "was edited after the run was planned" in again.message
