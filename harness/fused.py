"""Several cells of one model trained as one: one pass of the network for K sets of weights.

All losses of a suite see the same initial weights and the same batches, so cells that differ only in their loss can
share the passes through the network (Wang et al., 2021, "Horizontally fused training array"). The weights and buffers
of the K networks are parts of stacked tensors, over which `torch.func.vmap` makes one forward and one backward pass
with one mask of dropout. All the rest of a cell stays its own and is the code of `harness.train.Trainer`: its loss,
its optimizer on its part of the weights, clipping, schedule, validation, checkpoint.

Each loss is differentiated on its own, down to what the network gave for it; only these gradients enter the shared
backward pass, in which no operation mixes the K networks. So a loss that raises, or that is not a finite number, has no
way into another cell.
"""

from __future__ import annotations

import contextlib
import gc
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from harness.data.augment import Batch
from harness.losses.needs import MODEL_NEEDS
from harness.machine import out_of_memory
from harness.models.output import Output
from harness.train import Stopped, Trainer, in_host_memory, training_loop

Log = Callable[[Trainer, str], None]


class Unfusable(Exception):
    """The network has no pass for several sets of weights at once; the text says why."""


def train(trainers: Sequence[Trainer], log: Log = lambda trainer, text: None) -> Iterator[tuple[Trainer, Any]]:
    """Train cells of one model that differ only in their loss; each comes back as its training ends.

    Cells at different steps, cells whose losses use different outputs of the network, and cells that were begun alone
    do not step with the others. Where the memory of the device is too small for a group, its halves train in turn.

    Args:
        trainers: Of the same `seed_base`, data and training section.
        log: Takes a sentence on a cell.

    Yields:
        A trainer, and the exception that ended its training; None at its end.
    """
    ready: list[Trainer] = []
    for trainer in trainers:
        try:
            trainer.begin()
            ready.append(trainer)
        except Exception as error:
            yield trainer, error
    queue = deque(_groups(ready))
    while queue:
        members = queue.popleft()
        if _alone(members[0]):
            for trainer in members:
                yield trainer, _ending(partial(train_one, trainer, log=log))
            continue
        group = Group(members)
        ended = _ending(group.run)
        if isinstance(ended, Unfusable):
            for trainer in members:
                trainer.model.to(memory_format=trainer.layout)  # type: ignore[call-overload]  # stacking took it
                trainer.engine = {"engine": "single", "engine_note": str(ended), "instead_of": "fused"}
                log(trainer, f"trained alone: {ended}")
            queue.appendleft(members)
            continue
        left = [m for m in group.alive if m not in group.failed]  # what a cell raised itself stays its ending
        together = len(group.alive)
        if ended is not None and left and together > 1 and out_of_memory(ended) and group.steps == 0:
            ended = None  # with it go the tensors of the frames that it came through
            gc.collect()
            torch.cuda.empty_cache()
            for trainer in left:
                log(trainer, f"out of memory with {together} cells fused; its half of them goes on")
            half = (len(left) + 1) // 2
            for part in (left[half:], left[:half]):
                queue.extendleft(_groups(part))
        elif ended is not None:
            group.failed |= dict.fromkeys(left, ended)
        for trainer in members:
            if trainer not in group.alive or trainer in group.failed:
                yield trainer, group.failed.get(trainer)


def train_one(trainer: Trainer, engine: str = "single", log: Log = lambda trainer, text: None) -> None:
    """Train a cell of its own: the way it was begun, or where it was not begun as `engine` says.

    Args:
        trainer: The cell.
        engine: "single" or "compiled".
        log: As in `train`.
    """
    trainer.begin()
    begun = trainer.progress.step > 0 or "engine_note" in trainer.engine
    way = trainer.engine["engine"] if begun else engine
    if way == "single":
        trainer.run()
    elif way == "compiled":
        from harness.compiled import train_compiled

        train_compiled(trainer, lambda text: log(trainer, text))
    else:
        for _, error in train([trainer]):
            if error is not None:
                raise error


def _ending(run: Callable[[], object]) -> Exception | None:
    try:
        run()
    except Exception as error:
        return error
    return None


def _groups(trainers: Sequence[Trainer]) -> list[list[Trainer]]:
    """Trainers that can step together: at one step, and of losses that use the same outputs of the network.

    An output that one loss uses and another does not would have gradients of 0 for the latter, where it has none alone.
    """
    found: dict[Any, list[Trainer]] = {}
    for trainer in trainers:
        used = frozenset(trainer.needs & (MODEL_NEEDS - {"embedding", "classify"}))
        found.setdefault((trainer.progress.step, used, _alone(trainer)), []).append(trainer)
    return list(found.values())


def _alone(trainer: Trainer) -> bool:
    """Whether a cell trains alone: its network cannot be fused, or it was begun so."""
    begun = "engine_note" in trainer.engine or trainer.progress.step > 0
    return begun and trainer.engine["engine"] != "fused"


class Group:
    """Cells that step together.

    Args:
        members: At the same step; they differ only in their loss.

    Attributes:
        alive: Those that still train.
        failed: Those that ended with an exception of their own.
        steps: How many steps were made.
    """

    def __init__(self, members: Sequence[Trainer]) -> None:
        self.alive = list(members)
        self.failed: dict[Trainer, Exception] = {}
        self.steps = 0
        self._stacked: list[Trainer] = []
        self._weights: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._parts: list[list[nn.Parameter]] = []
        self._classify: Any = None

    def run(self) -> None:
        """Train all of them; those in `failed` or still in `alive` did not come to their end.

        Raises:
            Stopped: As a single training.
            Unfusable: Before the first step: the network cannot be fused.
            Exception: What the shared passes raised; `alive` are those that it ended.
        """
        try:
            training_loop(self)
        finally:
            for member in self.alive:
                self._release(member)

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """The right to train on the device, one for all; not awaited any more where all of them are to stop."""
        left = [m for m in self.alive if m.epoch() is not None]
        return left[0].hooks.turn(lambda: all(m.hooks.stop() for m in left)) if left else contextlib.nullcontext()

    def begin(self) -> None:
        """Stack the networks, and see that their shared pass is the pass of each."""
        began = time.monotonic()
        for member in self.alive:
            member.begin()
        for member in self.alive:
            member.share(len(self.alive), began)
        for member in list(self.alive):
            if member.epoch() is None:
                self._leave(member)
        if self.alive:
            self._stack()
            self._probe()

    def epoch(self) -> int | None:
        """The epoch of the next step."""
        return self.alive[0].epoch() if self.alive else None

    def pause(self) -> None:
        """All write their checkpoints at the same step, so that they continue together."""
        asked = [m for m in self.alive if m.hooks.stop()]
        everyone = len(asked) == len(self.alive)
        for member in list(self.alive if everyone or self.alive[0].due() else asked):
            with self._guard(member), self._waited_for(member):
                member.keep()
        if everyone:
            raise Stopped
        for member in asked:  # the others go on
            self.failed.setdefault(member, Stopped())

    def step(self) -> None:
        """One step of every cell."""
        self._drop_failed()
        if not self.alive:
            return
        if self._stacked != self.alive:
            self._stack()
        if self.steps == 0 and len(self.alive) > 1:
            self._first_step()
        else:
            self._step()
        self._drop_failed()
        self.steps += 1

    def _first_step(self) -> None:
        """A step that leaves no trace in cells that did not come to its end: smaller groups make it again."""
        at = self.alive[0].progress.step
        kept = [member.movable() for member in self.alive]
        buffers = in_host_memory(self._buffers)  # not all of them are in a state
        try:
            self._step()
        except Exception:
            for k, (member, state) in enumerate(zip(self.alive, kept, strict=True)):
                if member.progress.step == at:
                    with self._guard(member):  # a loss that cannot go back to where it was ends, and no other
                        member.move_back(state)
                    for name, whole in buffers.items():
                        self._buffers[name][k].copy_(whole[k])
            raise

    def _step(self) -> None:
        lead = self.alive[0]
        # images and targets are the same bits for all; weights of labels come only with the data of a cell that asks
        batch = next((m for m in self.alive if "label_weight" in m.needs), lead).draw()
        found: dict[Trainer, dict[str, Tensor]] = {member: {} for member in self.alive}
        for member in self.alive:
            member.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(batch.parts(lead.accumulate)):
            self._learn(part, number, found)
        for member in self.alive:
            if member not in self.failed:
                with self._guard(member):
                    member.update(found[member])

    def _learn(self, batch: Batch, number: int, found: dict[Trainer, dict[str, Tensor]]) -> None:
        """Add the gradients of a part of a batch."""
        lead = self.alive[0]
        with lead.precision():
            given = self._pass(batch.image.contiguous(), self._buffers)
        chance = _chance(lead.device)
        slopes: dict[str, Tensor] = {}
        for k, member in enumerate(self.alive):
            if member in self.failed:
                continue
            with self._guard(member):
                _set_chance(chance, lead.device)  # a loss that draws, draws as it would alone
                leaves = {name: v[k].detach().requires_grad_(v.requires_grad) for name, v in given.items()}
                member.learn(_output(leaves, self._head(member)), batch, number, found[member])
                for name, leaf in leaves.items():
                    if leaf.grad is not None:
                        if name not in slopes:
                            slopes[name] = torch.zeros_like(given[name])
                        slopes[name][k] = leaf.grad
        _set_chance(chance, lead.device)  # the masks of the next part are of no loss
        if not slopes:
            return
        learning = [w for w in self._weights.values() if w.requires_grad]
        outputs = [given[name] for name in slopes]
        gradients = torch.autograd.grad(outputs, learning, list(slopes.values()), allow_unused=True)
        for k, parts in enumerate(self._parts):
            for parameter, gradient in zip(parts, gradients, strict=True):
                if gradient is not None:  # a loss that calls the head itself has left a part of it there
                    own = gradient[k]
                    parameter.grad = own if parameter.grad is None else parameter.grad + own

    def end_epoch(self, epoch: int) -> None:
        """All end their epoch, each with the same share of the time; those that diverged or are through leave."""
        ended: list[Trainer] = []
        try:
            for member in list(self.alive):
                with self._guard(member), self._waited_for(member):
                    member.end_epoch(epoch)
                    ended.append(member)
        finally:  # where memory runs out for one, those before it have come to their end
            for member in ended:
                if member.epoch() is None:
                    self._leave(member)
        self._drop_failed()

    def finish(self) -> None:
        """Nothing is left to do: each has finished as it left."""

    def _leave(self, member: Trainer) -> None:
        self._release(member)
        with self._guard(member):
            member.finish()
        self._remove(member)

    def _drop_failed(self) -> None:
        for member in [m for m in self.alive if m in self.failed]:
            traceback.clear_frames(self.failed[member].__traceback__)  # they hold what all networks gave
            self._release(member)
            self._remove(member)

    def _remove(self, member: Trainer) -> None:
        """The time from here on is that of the others."""
        self.alive.remove(member)
        now = time.monotonic()
        for other in self.alive:
            other.tally(now)
            other.share(len(self.alive), now)

    @contextlib.contextmanager
    def _waited_for(self, member: Trainer) -> Iterator[None]:
        """What one does beside training takes the time of all: each has its share of it, as of the seconds."""
        before = member.progress.aside
        try:
            yield
        finally:
            share = (member.progress.aside - before) / len(self.alive)
            member.progress.aside = before
            for each in self.alive:
                each.progress.aside += share

    @contextlib.contextmanager
    def _guard(self, member: Trainer) -> Iterator[None]:
        """What a cell raises ends that cell; memory that ran out may be missing because of the others."""
        try:
            yield
        except Exception as error:
            if out_of_memory(error) and len(self.alive) > 1:
                raise
            self.failed[member] = error

    def _stack(self) -> None:
        """Make the weights and buffers of every network parts of stacked tensors, in the plain layout.

        Grouped convolutions, which the passes of K networks become, gain nothing from channels last on a CPU.
        """
        members = self._stacked = list(self.alive)
        networks = [dict(m.model.named_parameters()) for m in members]
        self._weights, self._buffers = {}, {}
        for name, first in networks[0].items():
            # `stack` would keep the strides of channels last in 1×1 kernels, where they count as plain
            whole = torch.empty((len(networks), *first.shape), dtype=first.dtype, device=first.device)
            for own, part in zip(networks, whole, strict=True):
                own[name].data = part.copy_(own[name].detach())
            self._weights[name] = whole.detach().requires_grad_(first.requires_grad)
        self._parts = [[p for p in own.values() if p.requires_grad] for own in networks]
        places = [_places(m.model) for m in members]
        for name in places[0]:
            whole = self._buffers[name] = torch.stack([_buffer(*at[name]) for at in places])
            for at, part in zip(places, whole, strict=True):
                module, key = at[name]
                module._buffers[key] = part
        for member in members:
            member.engine = {"engine": "fused", "fused_cells": len(members)}

    def _release(self, member: Trainer) -> None:
        """Give a network tensors of its own again."""
        if member not in self._stacked:
            return
        for parameter in member.model.parameters():
            parameter.data = parameter.data.clone()
            parameter.grad = None
        for module, key in _places(member.model).values():
            module._buffers[key] = _buffer(module, key).clone()
        member.tally()

    def _pass(self, image: Tensor, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What every network gives for the images, (K, ...) by the name of the output."""
        network = self.alive[0].model

        def one(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
            output: Output = functional_call(network, (weights, own), (image,))
            self._classify = output.classify
            return tensors_of(output)

        found: dict[str, Tensor] = vmap(one, randomness="same")(self._weights, dict(buffers))
        return found

    def _head(self, member: Trainer) -> Callable[[Tensor], Tensor] | None:
        """The segmentation head of a network, which a loss may call."""
        if self._classify is None or "classify" not in member.needs:
            return None
        head: Callable[[Tensor], Tensor] = getattr(member.model, self._classify.__name__)
        return head

    def _probe(self) -> None:
        """One pass in training mode, and one without its chance that is compared with the network's own.

        Raises:
            Unfusable: It is refused, or gives something else.
        """
        lead = self.alive[0]
        image = lead.draw().parts(lead.accumulate)[0].image.contiguous()
        try:
            copies = {name: b.clone() for name, b in self._buffers.items()}
            with lead.precision(), torch.no_grad():
                self._pass(image, copies)
            name = getattr(self._classify, "__name__", "")
            if any("classify" in m.needs for m in self.alive) and not hasattr(lead.model, name):
                raise Unfusable("its head is no method of the network")
            lead.model.eval()
            with torch.no_grad():
                ours, theirs = self._pass(image, copies)["logits"][0], _own_logits(lead.model, image, copies)
        except Unfusable:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise Unfusable(f"its network has no pass for several sets of weights ({reason})") from None
        finally:
            lead.model.train()
        if not torch.allclose(ours, theirs, rtol=0, atol=1e-2 * float(theirs.abs().max()), equal_nan=True):
            raise Unfusable("the pass of its network for several sets of weights gives other logits than its own")


def _own_logits(network: nn.Module, image: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
    output: Output = functional_call(network, {name: b[0] for name, b in buffers.items()}, (image,))
    return output.logits


def tensors_of(output: Output) -> dict[str, Tensor]:
    """The tensors of an output by name; `aux.0`, `aux.1` of a list."""
    found: dict[str, Tensor] = {}
    for field in fields(output):
        value = getattr(output, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value
        elif isinstance(value, (list, tuple)):
            found |= {f"{field.name}.{i}": part for i, part in enumerate(value)}
    return found


def _output(parts: Mapping[str, Tensor], classify: Callable[[Tensor], Tensor] | None) -> Output:
    """The output whose tensors these are."""
    values: dict[str, Any] = {"classify": classify}
    for name, part in parts.items():
        whole, dot, _ = name.partition(".")
        if dot:
            values.setdefault(whole, []).append(part)
        else:
            values[name] = part
    return Output(**values)


def _places(network: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where the buffers of a network stand, by name."""
    return {
        f"{prefix}.{key}" if prefix else key: (module, key)
        for prefix, module in network.named_modules()
        for key, value in module._buffers.items()
        if value is not None
    }


def _buffer(module: nn.Module, key: str) -> Tensor:
    buffer = module._buffers[key]
    assert buffer is not None
    return buffer


def _chance(device: torch.device) -> list[Tensor]:
    """The states of the global generators: the host's, and that of a GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_chance(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
