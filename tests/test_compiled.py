"""Cells with a compiled network against the same cells as they are: gradients, weights, resumption, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.exc import InductorError, TritonMissing

from harness import compiled
from harness.api import load_suite, run
from harness.checkpoints import engine_of_checkpoint
from harness.compiled import GRADIENTS, OUTPUTS, Fault, compare, compiled_pass, train_compiled
from harness.engine import Engine
from harness.errors import BenchError
from harness.fused import train, train_one
from harness.machine import out_of_memory
from harness.models.build import digest
from harness.models.output import Output
from harness.train import Hooks, Stopped, Trainer
from tests.small_networks import SMALL, far, loss_of, model_of, toy_cell, trainer_of, weights_of

pytestmark = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
SMALLEST = {"width": 2, "depth": 2}


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    compiled._kept.clear()


def _unet() -> nn.Module:
    return model_of("unet", 32, **SMALLEST)


@pytest.mark.parametrize(
    ("name", "loss", "args"),
    [
        ("unet", "conditional_boundary", SMALLEST),
        ("monai.networks.nets:UNet", "ce", {"channels": [4, 8], "strides": [2], "dropout": 0.5}),
    ],
)
def test_a_step_has_the_gradients_of_the_plain_network(
    name: str, loss: str, args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loss that calls the head, and with masks of dropout."""
    cell = toy_cell(tmp_path, train="accumulate: 2" if name == "unet" else "schedule: poly")
    both = [trainer_of(cell, loss_of(loss), model_of(name, 32, **args)) for _ in range(2)]
    found: list[list[Tensor]] = []

    def keep(self: Trainer, terms: dict[str, Tensor]) -> None:
        every = [*self.trained.parameters(), *self.loss.parameters()]
        found.append([torch.zeros(()) if p.grad is None else p.grad.clone() for p in every])
        found[-1].append(terms["loss"].detach())

    monkeypatch.setattr(Trainer, "update", keep)
    for trainer in both:
        trainer.begin()
    compare(both[0], compiled_pass)
    both[0].forward = compiled_pass(both[0].model)
    for trainer in both:
        trainer.step()
    assert far(*found) < 1e-5
    buffers = [list(t.model.buffers()) for t in both]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*buffers, strict=True))


def test_a_training_ends_near_the_plain_one_and_at_the_same_bits_each_time(tmp_path: Path) -> None:
    cell = toy_cell(tmp_path, train="schedule: plateau, clip: 0.5, augment: {rotate: 20, noise: 0.1}")
    plain = trainer_of(cell, loss_of("dice"), _unet())
    plain.run()
    made = [trainer_of(cell, loss_of("dice"), _unet()) for _ in range(3)]
    train_one(made[0], "compiled")
    torch._dynamo.reset()  # as in another process
    train_one(made[1], "compiled")

    path, stops = tmp_path / "checkpoint.pt", iter([*[False] * 5, True])
    first = trainer_of(cell, loss_of("dice"), _unet(), hooks=Hooks(stop=lambda: next(stops)), checkpoint=path)
    with pytest.raises(Stopped):
        train_one(first, "compiled")
    torch._dynamo.reset()
    assert first.progress.step == 5
    resumed = trainer_of(cell, loss_of("dice"), _unet(), checkpoint=path)
    train_one(resumed, "single")  # a cell goes on the way it was begun
    made[2] = resumed
    assert len({digest(t.model) for t in made}) == 1
    assert all(t.engine == {"engine": "compiled"} for t in made) and plain.engine == {"engine": "single"}
    assert far(weights_of(made[0]), weights_of(plain)) < 1e-4
    assert made[0].progress.fingerprints == plain.progress.fingerprints
    group = trainer_of(cell, loss_of("ce"), _unet(), checkpoint=path)
    path.unlink()
    assert dict(train([group])) == {group: None} and group.engine["engine"] == "fused"


def test_cells_of_a_model_share_the_code(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    cell = toy_cell(tmp_path, train="schedule: poly")
    counters.clear()
    for name in ("ce", "dice", "focal"):
        train_one(trainer_of(cell, loss_of(name), _unet()), "compiled")
    assert counters["stats"]["unique_graphs"] == 1
    compiled._kept.update(f"network {i}" for i in range(compiled.KEPT - 1))
    train_one(trainer_of(cell, loss_of("ce"), _unet()), "compiled")
    assert counters["stats"]["unique_graphs"] == 1 and len(compiled._kept) == compiled.KEPT
    wider = trainer_of(cell, loss_of("ce"), model_of("unet", 32, width=3, depth=2))
    wider.cell.model["args"]["width"] = 3
    train_one(wider, "compiled")
    assert counters["stats"]["unique_graphs"] == 2 and len(compiled._kept) == 1
    assert wider.engine == {"engine": "compiled"}


class Reader(nn.Module):
    """Reads a number off its activations, which no compiler can know beforehand."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Conv2d(1, num_classes, 1)

    def forward(self, image: Tensor) -> Output:
        x = self.norm(image)
        return Output(self.head(x * (2.0 if float(x.detach().mean()) > 0 else 1.0)))


class Counter(Reader):
    """Counts its passes and makes use of it: the code for one pass is not that of the next."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.passes = 0

    def forward(self, image: Tensor) -> Output:
        self.passes += 1
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        return Output(self.head(self.norm(image) * (1 + 1 / self.passes)))


@pytest.mark.parametrize(("network", "reason"), [(Reader, "data-dependent"), (Counter, "")])
def test_a_network_that_cannot_be_compiled_trains_as_it_is_and_says_so(
    network: type[Reader], reason: str, tmp_path: Path
) -> None:
    cell = toy_cell(tmp_path)
    said: list[str] = []
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        both.append(trainer_of(cell, loss_of("ce"), network()))
    ours, plain = both
    train_one(ours, "compiled", lambda _, text: said.append(text))
    plain.run()
    assert digest(ours.model) == digest(plain.model), "the passes that were compared left no trace"
    assert ours.engine["engine"] == "single" and ours.engine["instead_of"] == "compiled"
    assert "cannot be compiled (" in ours.engine["engine_note"] and reason in ours.engine["engine_note"]
    assert said == [f"trained as it is: {ours.engine['engine_note']}"]


class Wrong(nn.Module):
    """A compiled pass with a fault."""

    def __init__(self, network: nn.Module, fault: str) -> None:
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, image: Tensor) -> Output:
        if self.fault == "error":
            raise ValueError("no such kernel")
        output: Output = self.network(image)
        assert output.embedding is not None
        with torch.no_grad():
            if self.fault == "statistics":
                next(b for n, b in self.network.named_buffers() if n.endswith("running_var")).data[0] *= 1.5
            if self.fault == "count":
                next(b for n, b in self.network.named_buffers() if n.endswith("num_batches_tracked")).add_(1)
        changes = {
            "output": {"logits": output.logits * 1.02},
            "gradient": {"embedding": output.embedding.detach()},
            "nan": {"embedding": output.embedding.masked_fill(torch.ones(()) > 0, float("nan"))},
        }
        return replace(output, **changes.get(self.fault, {}))


@pytest.mark.parametrize("train_", ["precision: float32", "precision: bf16"])
def test_a_compiled_pass_with_a_fault_is_seen_and_leaves_no_trace(train_: str, tmp_path: Path) -> None:
    trainer = trainer_of(toy_cell(tmp_path, train=train_), loss_of("ce"), _unet())
    trainer.begin()
    before, found = digest(trainer.model), {}
    kinds = ["none", "output", "statistics", "count", "gradient", "nan", "error"]
    for kind in kinds[:1] + kinds[2:] if trainer.autocast else kinds:
        try:
            compare(trainer, lambda network, kind=kind: Wrong(network, kind))  # type: ignore[misc]
        except Fault as fault:
            found[kind] = str(fault)
    starts = {
        "output": "outputs of logits differ",
        "statistics": "running statistics of ",
        "count": "running statistics of ",
        "gradient": "gradients of ",
        "nan": "outputs of embedding differ",
        "error": "no such kernel",
    }
    for kind, text in found.items():
        assert text.startswith(starts[kind]), (kind, text)
    assert set(found) == set(starts) - ({"output"} if trainer.autocast else set())
    assert digest(trainer.model) == before and all(p.grad is None for p in trainer.model.parameters())


def test_how_far_is_too_far() -> None:
    """One that is lost or no number is seen wherever it stands, and rounding about nothing is not."""
    theirs = {"large": torch.full((9,), 100.0), "small": torch.full((9,), 1e-3), "noise": torch.full((9,), 1e-6)}
    near, same = GRADIENTS[False], compiled._apart
    assert same(theirs, dict(theirs), near) is None
    assert same(theirs, theirs | {"noise": -theirs["noise"]}, near) is None
    assert same(theirs, theirs | {"small": torch.zeros(9)}, near) == "small"
    assert same(theirs, theirs | {"large": theirs["large"] * 1.1}, near) == "large"
    for name in theirs:
        assert same(theirs, theirs | {name: torch.full((9,), float("nan"))}, near) == name
    assert same(theirs, {"large": theirs["large"]}, near) == "noise, small"
    counts = {"count": torch.tensor(10_000), "mean": torch.tensor([0.1])}
    assert same(counts, counts | {"count": torch.tensor(10_001)}, OUTPUTS[False]) == "count"
    assert same(counts, counts | {"mean": torch.tensor([0.11])}, OUTPUTS[False]) == "mean"
    assert same(counts, counts | {"mean": torch.tensor([0.1001])}, OUTPUTS[False]) is None


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (InductorError(OSError(28, "No space left on device"), None), "cannot be compiled for now: .*No space left"),
        (InductorError(CalledProcessError(1, "gcc"), None), "cannot be compiled for now: .*gcc"),
        (TritonMissing(None), "cannot be compiled for now: .*triton"),
        (InductorError(torch.OutOfMemoryError("CUDA out of memory"), None), "CUDA out of memory"),
    ],
)
def test_a_compiler_that_lacks_something_is_an_error_and_no_property_of_the_network(
    lacks: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(toy_cell(tmp_path), loss_of("ce"), _unet())

    def compiler(network: nn.Module) -> Callable[[Tensor], Output]:
        def full(image: Tensor) -> Output:
            raise lacks

        return full

    monkeypatch.setattr("harness.compiled.compiled_pass", compiler)
    with pytest.raises((BenchError, InductorError), match=words) as raised:
        train_one(trainer, "compiled")
    assert isinstance(raised.value, BenchError) != out_of_memory(raised.value)


def test_a_compiler_is_looked_for_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BenchError, match=r"no C\+\+ compiler no-such-compiler"):
        Engine("compiled").check()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_model_is_compiled_or_the_reason_is_named(name: str, tmp_path: Path) -> None:
    """Which of them the documentation names; `segresnet` loses a part of its gradient in torch 2.13 on a CPU."""
    side = 64 if name == "swin_unetr" else 32
    trainer = trainer_of(toy_cell(tmp_path), loss_of("ce"), model_of(name, side), side)
    train_one(trainer, "compiled")
    documented = (Path(__file__).parents[1] / "docs/running.md").read_text()
    assert ("engine_note" in trainer.engine) == (f"`{name}`" in documented), trainer.engine


def test_what_was_begun_compiled_is_not_ended_otherwise(tmp_path: Path) -> None:
    begun = trainer_of(toy_cell(tmp_path), loss_of("ce"), Reader())
    begun.begin()
    begun.progress.step = 5
    with pytest.raises(BenchError, match=r"was begun with a compiled network, which fails here.*checkpoint\.pt"):
        train_compiled(begun)


def test_what_made_no_step_is_begun_as_it_is_asked_for(tmp_path: Path) -> None:
    cell, path = toy_cell(tmp_path), tmp_path / "checkpoint.pt"
    stopped = trainer_of(cell, loss_of("dice"), _unet(), hooks=Hooks(stop=lambda: True), checkpoint=path)
    with pytest.raises(Stopped):
        train_one(stopped, "compiled")
    assert stopped.engine == {"engine": "compiled"} and stopped.progress.step == 0 and path.is_file()
    assert engine_of_checkpoint(path) == ""
    ours, plain = (trainer_of(cell, loss_of("dice"), _unet(), checkpoint=p) for p in (path, None))
    train_one(ours)
    plain.run()
    assert ours.engine == {"engine": "single"} and digest(ours.model) == digest(plain.model)


SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [32, 32], fit: resize}}
models: [unet: {width: 2, depth: 2}]
losses: [dice, ce]
train: {epochs: 1, steps: 3, batch: 2, optimizer: {adamw: {lr: 1e-2}}, cases: 2}
"""


def test_a_compiled_run_through_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    suite = load_suite(tmp_path / "toy.yaml")
    records = run(suite, device="cpu", workers=1, engine="compiled", overlap=True)
    assert [(r.status, r.message) for r in records] == [("ok", "")] * 2
    assert [r.environment["engine"] for r in records] == ["compiled"] * 2
    logs = [(tmp_path / "runs" / r.train_id / "log.txt").read_text() for r in records]
    assert all("network compiled and compared in" in text for text in logs)
    (tmp_path / "toy.yaml").write_text(SUITE.replace("[dice, ce]", "[dice, ce, focal]"))
    with pytest.raises(BenchError, match="2 of the cells of unet on phantom were trained with --engine compiled"):
        run(load_suite(tmp_path / "toy.yaml"), device="cpu", workers=1)
