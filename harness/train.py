"""The training loop. There is one; what it drives is a cell, or several that step together (`harness.fused`).

It never waits for the device within an epoch: losses are summed where they are computed and read once an epoch.
Every random stream is keyed by (seed, step), so a checkpoint needs no history to continue bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.cell import Cell
from harness.checkpoints import UnusableCheckpoint, read_checkpoint, write_checkpoint
from harness.data.batches import Batch, TrainSet
from harness.deep_supervision import Scales, downsampled
from harness.errors import BenchError
from harness.losses.calls import needs_of
from harness.losses.needs import LABEL_NEEDS
from harness.losses.targets import derive
from harness.models.build import digest
from harness.models.heads import attach, head_channels
from harness.models.output import Output
from harness.models.weights import learning_factors
from harness.optim import Schedule, make_optimizer
from harness.predict import memory_format
from harness.records import Write, write_atomic
from harness.seeds import seed_of

CHECKPOINT_SECONDS = float(os.environ.get("BENCH_CHECKPOINT_SECONDS", "20"))


class Stopped(Exception):
    """Training was asked to stop; its checkpoint is written, if it had begun."""


@dataclass
class Progress:
    """State of a training: everything a checkpoint keeps besides weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    aside: float = 0.0  # of these, spent on validation and checkpoints
    targets: float = 0.0  # of these, spent on targets derived from the label
    sums: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    best_value: float | None = None
    best_weights: dict[str, Tensor] | None = None
    diverged: str = ""


class Stopwatch:
    """Adds up the time of the blocks inside `with`, without waiting for the device; `read` at the end of an epoch."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._cuda:
            both = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            self._events.append((both[0], both[1]))
            both[0].record()
        else:
            self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began

    def read(self) -> float:
        """Seconds since the last reading."""
        for began, ended in self._events:
            ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


@dataclass(frozen=True)
class Hooks:
    """What the loop calls outside of itself.

    Attributes:
        report: Called after every epoch with (steps done, steps in all, mean loss).
        stop: Asked before every step; True ends the training with a checkpoint.
        validate: Called after every epoch with the network in evaluation mode; metric values by name.
        began: Called once before the first step with the number of steps that a checkpoint brought.
        write: Writes checkpoints.
        turn: Held while the device trains: a context, given what says that the training is to stop. It raises
            `Stopped` where that comes first.
    """

    report: Callable[[int, int, float], None] = lambda done, total, loss: None
    stop: Callable[[], bool] = lambda: False
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    began: Callable[[int], None] = lambda step: None
    write: Write = write_atomic
    turn: Callable[[Callable[[], bool]], AbstractContextManager[None]] = lambda stop: nullcontext()


class Steps(Protocol):
    """What the training loop drives."""

    def turn(self) -> AbstractContextManager[None]:
        """Held from the start to the end: the right to train on the device."""

    def begin(self) -> None:
        """Start, or take up from a checkpoint."""

    def epoch(self) -> int | None:
        """The epoch that the next step belongs to; None when there is none."""

    def pause(self) -> None:
        """Called before every step: a checkpoint where it is time for one, and `Stopped` where that is asked for."""

    def step(self) -> None:
        """One step."""

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch."""

    def finish(self) -> None:
        """Called after the last epoch."""


def training_loop(steps: Steps) -> None:
    """Train to the end."""
    with steps.turn():
        steps.begin()
        while (epoch := steps.epoch()) is not None:
            while steps.epoch() == epoch:
                steps.pause()
                steps.step()
            steps.end_epoch(epoch)
        steps.finish()


class Trainer:
    """One training of one cell.

    Args:
        cell: The cell.
        model: The network, already initialised from the cell's stream `init`.
        loss: The loss module.
        data: Training samples on the device.
        num_classes: Classes with background.
        device: Where to train.
        hooks: Reporting, stopping, validation.
        checkpoint: File to write checkpoints to, or None for none.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        loss: nn.Module,
        data: TrainSet,
        num_classes: int,
        device: torch.device,
        hooks: Hooks | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        train = cell.train
        self.cell, self.model, self.loss, self.data = cell, model.to(device), loss.to(device), data
        self.device, self.hooks, self.path = device, hooks or Hooks(), checkpoint
        self.classes, self.batch, self.epochs = num_classes, int(train["batch"]), int(train["epochs"])
        self.per_epoch = int(train["steps"] or math.ceil(data.samples / self.batch))
        self.steps = self.epochs * self.per_epoch
        self.accumulate, self._part = int(train.get("accumulate", 1)), 0  # parts of a batch before one step
        self.autocast = train["precision"] == "bf16"
        dims = 2 if "slices" in cell.data["view"] else 3
        self.layout = memory_format(self.model, dims, device)
        self.model = self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        required, optional = needs_of(self.loss)
        self.needs = {*required, *optional}
        self.label_needs = sorted(self.needs & LABEL_NEEDS)
        if "label_weight" in self.needs:
            self.data = data.weighted()
        self.scales = Scales(self.loss)
        # a loss that asks for the lower logits makes its own use of them
        self.supervised = train.get("deep_supervision") is not False and "aux" not in self.needs
        self.trained = nn.ModuleList([self.model])  # the network, and heads that the loss asks for
        if channels := head_channels(self.loss, self.needs):
            self.trained.append(self._heads(channels))
        factors = learning_factors(self.model, cell.model.get("init"))
        self.optimizer = make_optimizer(train["optimizer"], self.trained, self.loss, factors)
        self.schedule = Schedule(train["schedule"], self.steps)
        self.forward: Callable[[Tensor], Output] = self.model  # or a compiled pass of it, see `harness.compiled`
        self.parameters = [p for p in self.trained.parameters() if p.requires_grad]
        self.targets = Stopwatch(self.device)
        self.progress = Progress()
        self.sharing = 1  # cells that step together, this one included
        self.engine: dict[str, Any] = {"engine": "single"}  # as the record says it
        self._begun = False
        self._hour: tuple[int, dict[str, Tensor]] = (-1, {})

    def _heads(self, channels: dict[str, int]) -> nn.Module:
        image = self.data.batch(0, self.batch, self.cell.seed_base).image[:1]
        return attach(self.model, channels, image, seed_of("heads", self.cell.seed_base))

    def run(self) -> Progress:
        """Train to the end, or until the loss stops being a finite number.

        Raises:
            Stopped: `hooks.stop` said so; the checkpoint holds everything.
            UnusableCheckpoint: The checkpoint is damaged or of another cell; without it training starts anew.
            BenchError: The best epoch is wanted, and no epoch has a value to go by.
        """
        training_loop(self)
        return self.progress

    def turn(self) -> AbstractContextManager[None]:
        """The right to train on the device; a training that is over needs none."""
        return nullcontext() if self.epoch() is None else self.hooks.turn(self.hooks.stop)

    def begin(self) -> None:
        """Start, or take up from the checkpoint, once only; the time counts from the last call."""
        if not self._begun:
            if not self._resume():
                self.progress.fingerprints = {"init": digest(self.model), "batches": self._fingerprint()}
            self._begun = True
            self.hooks.began(self.progress.step)
        self._since = self._saved = time.monotonic()
        self.sharing = 1
        self.model.train()

    def epoch(self) -> int | None:
        """The epoch of the next step."""
        state = self.progress
        return None if state.step >= self.steps or state.diverged else state.step // self.per_epoch

    def finish(self) -> None:
        """Take the weights of the best epoch where these are wanted."""
        state = self.progress
        if state.best_weights is not None:
            self.model.load_state_dict(state.best_weights)
        elif self.cell.train["select"] != "last" and not state.diverged:
            raise BenchError(
                f"select: {self.cell.train['select']}: the validation cases gave no value in any epoch, so no epoch is "
                "the best; take other validation cases, or `select: last`."
            )
        self.tally()

    def tally(self, now: float | None = None) -> None:
        """Add the time since the last call; of cells that step together each has its share.

        Args:
            now: One reading of `time.monotonic` for all of them; None to read it.
        """
        now = time.monotonic() if now is None else now
        self.progress.seconds += (now - self._since) / self.sharing
        self._since = now

    def share(self, cells: int, since: float) -> None:
        """Count the time from `since`, of `time.monotonic`, as one of `cells` that step together."""
        self.sharing, self._since = cells, since

    def step(self) -> None:
        """One step of this cell alone."""
        found: dict[str, Tensor] = {}
        batch = self.draw()
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(batch.parts(self.accumulate)):
            with self.precision():
                output = self.forward(part.image.contiguous(memory_format=self.layout))
            self.learn(output, part, number, found)
        self.update(found)

    def draw(self) -> Batch:
        """The batch of the next step; the global generator is left at this step's stream of dropout."""
        base = self.cell.seed_base
        batch = self.data.batch(self.progress.step, self.batch, base)
        # a loss or a layer that draws from the global generator moves no other cell, and no later step
        torch.manual_seed(seed_of("dropout", base, self.progress.step))
        return batch

    def precision(self) -> torch.autocast:
        """The context of the network's pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def learn(self, output: Output, part: Batch, number: int, found: dict[str, Tensor]) -> None:
        """Differentiate the loss on a part of a batch.

        Args:
            output: What the network gives for the part.
            part: The part, of `accumulate`.
            number: Its number, from 0.
            found: The terms of the loss over the whole batch, "loss" among them; those of the part are added.
        """
        self._part = number
        given = output.offered()
        for heads in self.trained[1:]:
            given |= heads(output.embedding)
        lower = output.aux if self.supervised else None
        offer = partial(self._offered, self._clock(), part.weight)
        terms = self.scales(output.logits.float(), lower, part.target, part.spacing, offer, given)
        torch.autograd.backward(terms["loss"] / self.accumulate if self.accumulate > 1 else terms["loss"])
        for name, value in terms.items():
            own = value.detach() / self.accumulate if self.accumulate > 1 else value.detach()
            found[name] = found[name] + own if name in found else own

    def update(self, terms: dict[str, Tensor]) -> None:
        """Let the gradients of a step move the weights, and count it."""
        state = self.progress
        self._lr = self.schedule.apply(self.optimizer, state.step)
        if self.cell.train["clip"] is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.cell.train["clip"])
        self.optimizer.step()
        for name, value in terms.items():
            state.sums[name] = state.sums[name] + value if name in state.sums else value
        state.step += 1

    def _offered(
        self, clock: dict[str, Tensor], weight: Tensor | None, scale: int, target: Tensor, spacing: Tensor
    ) -> dict[str, Any]:
        offered: dict[str, Any] = {"spacing": spacing, **clock}
        if self.label_needs:
            with self.targets:
                offered |= derive(self.label_needs, target, num_classes=self.classes, spacing=spacing)
        if "label_weight" in self.needs:
            certain = torch.ones_like(target, dtype=torch.float32)
            offered["label_weight"] = certain if weight is None else downsampled(weight, target.shape[1:])
        if "generator" in self.needs:
            keys: tuple[int, ...] = (self.progress.step, scale) if scale else (self.progress.step,)
            if self._part:  # each part of an accumulated batch has numbers of its own
                keys = (self.progress.step, scale, self._part)
            seed = seed_of("loss", self.cell.seed_base, *keys)
            offered["generator"] = torch.Generator(self.device).manual_seed(seed)
        return offered

    def _clock(self) -> dict[str, Tensor]:
        epoch = self.progress.step // self.per_epoch
        if self._hour[0] == epoch:  # copied to the device once an epoch
            return self._hour[1]
        values = {
            "progress": epoch / (self.epochs - 1) if self.epochs > 1 else 0.0,
            "epoch": float(epoch),
            "epochs": float(self.epochs),
        }
        self._hour = (epoch, {k: torch.tensor(v, device=self.device) for k, v in values.items()})
        return self._hour[1]

    def end_epoch(self, epoch: int) -> None:
        """Read the sums of the epoch, validate, and write the row of the curve."""
        state = self.progress
        means = {k: float(v) / self.per_epoch for k, v in state.sums.items()}  # the one read from the device
        state.sums = {}
        state.targets += self.targets.read()
        row = {"epoch": epoch, "step": state.step, "lr": self._lr, "loss": means["loss"], **means}
        if not math.isfinite(means["loss"]):
            state.diverged = f"the training loss was not a finite number in epoch {epoch + 1} of {self.epochs}"
        else:
            self.schedule.epoch_end(means["loss"])
            if callable(epoch_end := getattr(self.loss, "epoch_end", None)):
                with torch.no_grad():
                    epoch_end()
            row |= self._validate()
        state.curve.append(row)
        self.hooks.report(state.step, self.steps, means["loss"])

    def _validate(self) -> dict[str, float]:
        if self.hooks.validate is None:
            return {}
        began = time.monotonic()
        self.model.eval()
        values = self.hooks.validate(self.model)
        self.model.train()
        self.progress.aside += time.monotonic() - began
        self._keep_best(values)
        return {f"val_{name}": value for name, value in values.items()}

    def _keep_best(self, values: dict[str, float]) -> None:
        select, state = self.cell.train["select"], self.progress
        if select == "last":
            return
        from harness.metrics.table import metric_of

        name = select.removeprefix("best:").removesuffix("@val")
        if name not in values:
            return  # no class of any validation case was there, or predicted
        value = values[name] if metric_of(name)[0].higher_is_better else -values[name]
        if state.best_value is None or value > state.best_value:
            state.best_value = value
            state.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def _fingerprint(self) -> str:
        total = hashlib.sha256()
        for step in range(2):
            batch = self.data.batch(step, self.batch, self.cell.seed_base)
            for part in (batch.image, batch.target):
                total.update(part.cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def pause(self) -> None:
        """Write a checkpoint where one is due or the training is to stop."""
        stop = self.hooks.stop()
        if stop or self.due():
            self.keep()
        if stop:
            raise Stopped

    def movable(self) -> dict[str, Any]:
        """A copy, in host memory, of all that a step moves."""
        return {
            "trained": in_host_memory(self.trained.state_dict()),
            "loss": in_host_memory(self.loss.state_dict()),
            "optimizer": in_host_memory(self.optimizer.state_dict()),
        }

    def move_back(self, state: dict[str, Any]) -> None:
        """Undo a step that did not come to its end, with what `movable` gave before it."""
        self.trained.load_state_dict(state["trained"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])

    def due(self) -> bool:
        """Whether the last checkpoint is old; cells that step together write theirs in turn, and less often."""
        return time.monotonic() - self._saved > CHECKPOINT_SECONDS * self.sharing

    def keep(self) -> None:
        """Write the checkpoint."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # steps that are queued are training; the file waits for them anyway
        began = time.monotonic()
        self.tally()
        self.progress.targets += self.targets.read()
        self._save()
        self._saved = time.monotonic()
        self.progress.aside += self._saved - began

    def _save(self) -> None:
        if self.path is None:
            return
        state = self.progress
        content = {
            "train_id": self.cell.train_id,
            "engine": self.engine,
            "sources": self._sources(),
            "trained": {name: _own(value) for name, value in self.trained.state_dict().items()},
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "progress": {f: getattr(state, f) for f in state.__dataclass_fields__},
        }
        self.hooks.write(self.path, lambda stream: write_checkpoint(content, stream))

    def _sources(self) -> list[str]:
        return [self.cell.loss_digest, self.cell.model_source.digest]

    def _resume(self) -> bool:
        if self.path is None or not self.path.is_file():
            return False
        content = read_checkpoint(self.path)
        if content["train_id"] != self.cell.train_id:
            raise UnusableCheckpoint(f"{self.path}: the checkpoint is of another cell.")
        if content["sources"] != self._sources() or "trained" not in content:
            return False  # the loss or the model was edited since: half of one and half of another is neither
        try:
            self.trained.load_state_dict(content["trained"])
            self.loss.load_state_dict(content["loss"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.restore(content["schedule"])
            self.progress = Progress(**content["progress"])
            if self.progress.step:
                self.engine = content["engine"]
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UnusableCheckpoint(f"{self.path}: of another version ({type(error).__name__}).") from None
        # the optimizer's step counters stay on the CPU, where reading them waits for nothing
        self.progress.sums = {k: v.to(self.device) for k, v in self.progress.sums.items()}
        return True


def in_host_memory(value: Any) -> Any:
    """A copy of a state, its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: in_host_memory(part) for key, part in value.items()}
    if isinstance(value, list):
        return [in_host_memory(part) for part in value]
    return copy.deepcopy(value)


def _own(value: Tensor) -> Tensor:
    """The tensor without what it is a part of: a file would hold the whole."""
    whole = value.untyped_storage().nbytes()
    return value if whole == value.nbytes else value.detach().clone()
