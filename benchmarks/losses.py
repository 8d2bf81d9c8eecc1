"""What each loss costs: forward and backward, beside other libraries where they compute the same value.

Every loss of the table is called at two shapes with a label of blobs and random logits; what it asks for is derived
from the label or random. Ours, the others and one pass over the logits (log-softmax forward and backward, the floor)
take turns in one process; the median over the rounds counts. Before anything is timed, values are asserted to agree.
Run it with nothing else on the machine: `python benchmarks/losses.py --json docs/losses/cost.json`.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peers import Call, Peer, peers
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.facts import label_facts
from harness.losses.needs import HEADS, LABEL_NEEDS
from harness.losses.prepared import prepare_loss
from harness.losses.targets import derive

SHAPES = [(8, 9, 224, 224), (2, 4, 96, 96, 96)]
WIDTH = 16  # channels of the embedding


@dataclass
class Task:
    """Logits, label and whatever a loss may ask for, at one shape."""

    logits: Tensor
    target: Tensor
    facts: dict[str, Any]
    offered: dict[str, Any]
    leaves: list[Tensor]


def task(shape: tuple[int, ...], device: torch.device) -> Task:
    """Labels of blobs, logits that know them a little, and random outputs of a network."""
    chance = torch.Generator().manual_seed(len(shape))
    batch, classes, *space = shape
    dims = len(space)
    coarse = torch.randn(batch, classes, *(max(2, n // 16) for n in space), generator=chance)
    target = F.interpolate(coarse, space, mode="bilinear" if dims == 2 else "trilinear").argmax(1)
    logits = torch.randn(shape, generator=chance)
    logits.scatter_add_(1, target[:, None], torch.full_like(logits[:, :1], 2.0))
    counted = label_facts([label.numpy() for label in target], classes)
    facts = {"num_classes": classes, "spatial_dims": dims, "ignore_index": 255, "has_ignored": False} | counted
    half = [n // 2 for n in space]
    made = {
        "embedding": torch.randn(batch, WIDTH, *space, generator=chance),
        "attention": torch.rand(batch, 2, *half, generator=chance).flatten(2).softmax(2).view(batch, 2, *half),
        "shape_tokens": torch.randn(batch, 8, 64, generator=chance),
        "shape_prior": torch.randn(batch, 2, 16, generator=chance),
        "token_maps": torch.randn(batch, classes, *half, generator=chance).softmax(1),
    }
    made = {name: value.to(device).requires_grad_() for name, value in made.items()}
    head = (nn.Conv2d if dims == 2 else nn.Conv3d)(WIDTH, classes, 1).to(device)
    offered = {
        **made,
        "classify": head,
        "label_weight": torch.rand(batch, *space, generator=chance).to(device),
        "spacing": torch.ones(batch, dims, device=device),
        "generator": torch.Generator(device).manual_seed(0),
        **{name: torch.tensor(value, device=device) for name, value in PROGRESS.items()},
    }
    logits = logits.to(device).requires_grad_()
    return Task(logits, target.to(device), facts, offered, [logits, *made.values(), *head.parameters()])


PROGRESS = {"progress": 0.5, "epoch": 5.0, "epochs": 10.0}


def ours(name: str, args: dict[str, Any], given: Task) -> Call:
    """Our loss as a function of logits and target, with all it asks for at hand."""
    spec = {"name": name, "class": LOSSES[name], "args": args, "version": 1}
    loss = build_loss(spec, given.facts)
    labels = [label.cpu() for label in given.target]
    loss = prepare_loss(loss, spec, lambda: labels, key="benchmark", seed=0).to(given.logits.device)
    wanted = set().union(*needs_of(loss))
    classes = given.logits.shape[1]
    offered = dict(given.offered)
    derived = {"num_classes": classes, "spacing": given.offered["spacing"]}
    offered |= derive(sorted(wanted & LABEL_NEEDS), given.target, **derived)
    channels = HEADS | dict(getattr(loss, "channels", {}))
    shape = given.target.shape
    chance = torch.Generator().manual_seed(1)
    for head in sorted(wanted & set(HEADS)):
        made = torch.randn(shape[0], channels[head], *shape[1:], generator=chance)
        offered[head] = made.to(given.logits.device).requires_grad_()
        given.leaves.append(offered[head])
    return lambda z, y: evaluate_loss(loss, z, y, offered)["loss"]


def floor(z: Tensor, y: Tensor) -> Tensor:
    """One pass over the logits."""
    return z.log_softmax(1).sum()


def once(call: Call, given: Task) -> float:
    """Seconds of one forward and backward pass."""
    for leaf in given.leaves:
        leaf.grad = None
    _wait(given.logits.device)
    began = time.perf_counter()
    call(given.logits, given.target).backward()
    _wait(given.logits.device)
    return time.perf_counter() - began


def saved_bytes(call: Call, given: Task) -> int:
    """Bytes kept between the passes, each storage once: the logits and the label too where they are kept."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself may be an output, and would hold its own graph forever

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = call(given.logits, given.target)
    del value
    return sum(kept.values())


def peak_bytes(call: Call, given: Task) -> int:
    """The most that torch allocated at a time beyond the inputs; what numpy and scipy allocate is not seen."""
    for leaf in given.leaves:
        leaf.grad = None
    gc.collect()
    device = given.logits.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        once(call, given)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        once(call, given)
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(calls: dict[str, tuple[Call, Task]], rounds: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of each; all take turns, and slow ones get fewer rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(rounds + 1):
        for name, (call, given) in calls.items():
            spent = once(call, given)
            if turn:  # the first round warms up
                times[name].append(spent)
        if turn >= 2 and time.perf_counter() - began > seconds:
            break
    return {name: 1000 * statistics.median(found) for name, found in times.items()}


def bench(name: str, given: Task, known: list[Peer], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one loss at one shape: ours, the others, and ours with the arguments that make them equal."""
    dims = given.target.ndim - 1
    default = (ours(name, {}, given), given)
    calls = {"floor": (floor, given), "ours": default}
    pairs: dict[str, str] = {}
    for peer in known:
        if peer.loss != name or dims not in peer.dims:
            continue
        at = _binary(given) if peer.binary else given
        same = "ours" if not peer.args and not peer.binary else f"ours {_text(peer.args, peer.binary)}"
        if same not in calls:
            calls[same] = (ours(name, peer.args, at), at)
        theirs = peer.make(at.logits.shape[1], dims, at.facts)
        agree(name, peer.by, calls[same][0], theirs, at)
        calls[f"{peer.by} {_text(peer.args, peer.binary)}".strip()] = (theirs, at)
        pairs[f"{peer.by} {_text(peer.args, peer.binary)}".strip()] = same
    times = measure(calls, options.rounds, options.seconds)
    rows = []
    for by, (call, at) in calls.items():
        if by != "floor" or name == "ce":
            row = {"loss": "floor" if by == "floor" else name, "by": by, "shape": list(given.logits.shape)}
            row |= {"device": _name(given.logits.device), "ms": times[by], "of_floor": times[by] / times["floor"]}
            row |= {"saved_bytes": saved_bytes(call, at), "peak_bytes": peak_bytes(call, at), "same_as": pairs.get(by)}
            rows.append(row)
    return rows


def agree(name: str, by: str, mine: Call, theirs: Call, given: Task) -> None:
    """Stop if two losses that are to be compared do not compute the same value: in float64 where both can."""
    with torch.no_grad():
        try:
            a, b = (float(call(given.logits.double(), given.target)) for call in (mine, theirs))
            tolerance = 2e-5
        except RuntimeError:  # float32 alone
            a, b = (float(call(given.logits, given.target)) for call in (mine, theirs))
            tolerance = 2e-4
    if not abs(a - b) <= tolerance * max(abs(b), 1e-6):
        raise SystemExit(f"{name}: ours is {a}, that of {by} {b}; they cannot be compared")


def _binary(given: Task) -> Task:
    logits = given.logits.detach()[:, :2].clone().requires_grad_()
    target = (given.target == 1).long()
    counts = label_facts([label.cpu().numpy() for label in target], 2)
    return Task(logits, target, given.facts | {"num_classes": 2} | counts, given.offered, [logits])


def distances(given: Task, rounds: int) -> dict[str, Any]:
    """Both maps of all classes: `derive`, and a loop of scipy's transform over samples and classes."""
    classes, target = given.logits.shape[1], given.target
    names = ["distance_in", "distance_out"]
    labels = target.cpu().numpy()

    def scipy_loop() -> None:
        for label in labels:
            for c in range(classes):
                distance_transform_edt(label == c)
                distance_transform_edt(label != c)

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: derive(names, target, num_classes=classes, spacing=given.offered["spacing"]),
        "scipy": scipy_loop,
    }
    try:
        from exacta.losses.geometry import distance_maps

        onehot = F.one_hot(target, classes).movedim(-1, 1).contiguous()
        calls["exacta, sum of both"] = lambda: distance_maps(onehot, spacing=1.0)
    except ImportError as error:
        print(f"left out exacta: {error}")
    times: dict[str, list[float]] = {by: [] for by in calls}
    for turn in range(min(rounds, 5) + 1):
        for by, call in calls.items():
            _wait(target.device)
            began = time.perf_counter()
            call()
            _wait(target.device)
            if turn:
                times[by].append(time.perf_counter() - began)
    return {by: 1000 * statistics.median(found) for by, found in times.items()}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: each of our losses, and the other that comes closest; the ratio is with equal arguments."""
    heads = ["loss", "shape", "ms", "× floor", "saved MB", "peak MB"]
    heads += ["closest other", "its ms", "its saved MB", "its peak MB", "ours / its ms"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|"]
    for row in rows:
        if row["by"] not in ("ours", "floor"):
            continue
        here = [r for r in rows if r["loss"] == row["loss"] and r["shape"] == row["shape"]]
        times = {r["by"]: r["ms"] for r in here}
        best = max((r for r in here if r["same_as"]), key=lambda r: times[r["same_as"]] / r["ms"], default=None)
        cells = [row["loss"], "×".join(map(str, row["shape"])), f"{row['ms']:.1f}", f"{row['of_floor']:.2f}"]
        cells += [f"{row['saved_bytes'] / 1e6:.1f}", f"{row['peak_bytes'] / 1e6:.1f}"]
        if best is None:
            cells += [""] * 5
        else:
            cells += [best["by"], f"{best['ms']:.1f}", f"{best['saved_bytes'] / 1e6:.1f}"]
            cells += [f"{best['peak_bytes'] / 1e6:.1f}", f"{times[best['same_as']] / best['ms']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="stop a loss's rounds after this, at least two")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="losses, or `distances`")
    parser.add_argument("--json", metavar="OUT", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    device = torch.device(args.device)
    known, rows, maps = list(peers()), [], {}
    for shape in SHAPES:
        for name in args.only or [*LOSSES, "distances"]:
            given = task(shape, device)
            if name == "distances":
                maps["×".join(map(str, shape))] = distances(given, args.rounds)
                continue
            try:
                found = bench(name, given, known, args)
            except Exception as error:
                print(
                    f"skipped {name} at {shape}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True
                )
                continue
            for row in found:
                mine = next((r for r in found if r["by"] == row["same_as"]), None)
                ratio = f"   ours / its {mine['ms'] / row['ms']:.2f}" if mine else ""
                size = f"{row['saved_bytes'] / 1e6:7.1f} MB saved {row['peak_bytes'] / 1e6:7.1f} MB peak"
                print(f"{row['loss']:24} {row['by']:40} {row['ms']:9.1f} ms {size}{ratio}", flush=True)
            rows += found
    print("\n".join(["", *table(rows)]))
    for shape_text, found in maps.items():
        print(f"distances at {shape_text}: " + ", ".join(f"{by} {ms:.0f} ms" for by, ms in found.items()))
    if args.json:
        threads = f"{args.threads} thread{'s' * (args.threads != 1)}"
        machine = f"{platform.machine()} {_name(device)}, {threads}, torch {torch.__version__}"
        with open(args.json, "w", encoding="utf-8") as stream:
            json.dump({"machine": machine, "rows": rows, "distances": maps}, stream, indent=1)
            stream.write("\n")


def _text(args: dict[str, Any], binary: bool) -> str:
    parts = [f"{k}={v}" for k, v in args.items()] + (["two classes"] if binary else [])
    return f"({', '.join(parts)})" if parts else ""


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
