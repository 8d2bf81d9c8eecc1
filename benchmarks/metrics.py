"""What metrics cost, beside other libraries: DSC, HD95 and ASD of eight organs in one volume of 512×512×120.

The prediction is the reference of a phantom, shifted, scaled and perturbed (`clean`), and with two far islands per
organ (`fp`). Each contender has a process of its own and one thread. The fast ones take turns, form by form; the median
over the rounds counts, and the ratio to exacta is taken within a round. The slow ones run once, with `--slow`. Peak
memory, above inputs and libraries, is measured in processes apart. The last columns say how far the values are from
ours under the same definition; `~` marks a definition that no profile has, where a difference is expected.

`python benchmarks/metrics.py --slow --json OUT.json`; the whole evaluation of 12 such volumes by `bench score`:
`python benchmarks/metrics.py --cases 12 --workers 2`. Linux only; run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(  # the children's too
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    NUMBA_NUM_THREADS="1",
    ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1",
)

import numpy as np
from metric_peers import CONTENDERS, FORMS, LABELS, QUANTITIES, Volume, phantom
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

BASE = "exacta"
AGREE = 1e-4  # mm, or Dice: what float32 allows
SHAPE, SMALL = (120, 512, 512), (60, 128, 128)
CHILD = Path(__file__).with_name("metric_peers.py")
Answer = dict[str, Any]


class Child:
    """A process that holds the pairs and one contender, warmed up; `error` says why it could not."""

    def __init__(self, name: str, folder: Path) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("w", encoding="utf-8") as log:
            command = [sys.executable, str(CHILD), name, str(folder)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.error = self._read().get("error")

    def ask(self, what: str, form: str) -> Answer:
        """Send one command and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {form}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let the process end."""
        self.process.communicate()

    def _read(self) -> Answer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            return {"error": f"the process ended: {' '.join(last)[:200]}"}
        answer: Answer = json.loads(line)
        return answer


def started(name: str, folder: Path) -> Child | None:
    """A child that is ready, or None with a line that says why not."""
    child = Child(name, folder)
    if child.error is None:
        return child
    child.close()
    say(f"left out {name}: {child.error}")
    return None


def race(names: Sequence[str], folder: Path, rounds: int) -> dict[str, dict[str, list[Answer]]]:
    """Answers of each fast contender by form, one per round; they take turns, and the first round does not count."""
    children = {name: child for name in names if (child := started(name, folder))}
    found: dict[str, dict[str, list[Answer]]] = {name: {form: [] for form in FORMS} for name in children}
    order = list(children)
    for turn in range(rounds + 1):
        for form in FORMS:
            for name in order:
                if "error" in (answer := children[name].ask("time", form)):
                    raise SystemExit(f"{name} failed: {answer['error']}")
                if turn:
                    found[name][form].append(answer)
        say(f"round {turn} of {rounds}")
        order.append(order.pop(0))  # nobody is always behind the same one
    for child in children.values():
        child.close()
    return found


def once(names: Sequence[str], folder: Path) -> dict[str, dict[str, list[Answer]]]:
    """Answers of each slow contender by form, from one run."""
    found: dict[str, dict[str, list[Answer]]] = {}
    for name in names:
        if child := started(name, folder):
            answers = {form: child.ask("time", form) for form in FORMS}
            child.close()
            if errors := [answer["error"] for answer in answers.values() if "error" in answer]:  # out of memory, say
                say(f"left out {name}: {errors[0]}")
                continue
            found[name] = {form: [answer] for form, answer in answers.items()}
            say(f"{name}: " + ", ".join(f"{form} {answer['cpu']:.1f} CPU s" for form, answer in answers.items()))
    return found


def peaks(name: str, folder: Path) -> dict[str, float | None]:
    """Peak memory in MB by form, each in a process that has measured nothing before."""
    found: dict[str, float | None] = {}
    for form in FORMS:
        if child := started(name, folder):
            found[form] = child.ask("peak", form).get("peak_mb")
            child.close()
    return found


def our_values(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The values of our engine `points` by form, under every definition that a contender has."""
    if (child := started("reference", folder)) is None:
        raise SystemExit("without our own values, nothing can be compared")
    found = {form: child.ask("time", form)["values"] for form in FORMS}
    child.close()
    return found


def row_of(
    name: str,
    times: dict[str, list[Answer]],
    base: dict[str, list[Answer]] | None,
    peak: dict[str, float | None],
    truth: dict[str, dict[str, list[float]]],
) -> dict[str, Any]:
    """What is known of one contender, by form."""
    contender = CONTENDERS[name]
    row: dict[str, Any] = {"name": name, "definition": contender.about, "hd95": contender.hd95, "asd": contender.asd}
    if contender.package:
        row["version"] = version(contender.package)
    for form, answers in times.items():
        cpu = [answer["cpu"] for answer in answers]
        of_base = None
        if base:
            theirs = [answer["cpu"] for answer in base[form]]
            if len(theirs) != len(cpu):  # one run beside several rounds
                theirs = [statistics.median(theirs)] * len(cpu)
            of_base = statistics.median(a / b for a, b in zip(cpu, theirs, strict=True))
        row[form] = {
            "cpu_s": statistics.median(cpu),
            "wall_s": statistics.median(answer["wall"] for answer in answers),
            "of_exacta": of_base,
            "peak_mb": peak.get(form),
            "off": offs(name, answers[-1]["values"], truth[form]),
            "values": answers[-1]["values"],
            "rounds_cpu_s": cpu,
        }
        if any(answer["cpu"] > 1.2 * answer["wall"] for answer in answers):
            say(f"{name} used more than one thread")
    return row


def offs(name: str, values: dict[str, list[float]], truth: dict[str, list[float]]) -> dict[str, float]:
    """Largest difference from ours over the organs, by quantity; infinite if a value is not a number."""
    keys = {"dice": "dice", "hd95": CONTENDERS[name].hd95, "asd": CONTENDERS[name].asd}
    found = {}
    for quantity, key in keys.items():
        gaps = [abs(a - b) for a, b in zip(values[quantity], truth[key.lstrip("~")], strict=True)]
        found[quantity] = max(math.inf if math.isnan(gap) else gap for gap in gaps)
    return found


def strays(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of those that do not compute what they should, and so cannot be compared."""
    return [
        row["name"]
        for row in rows
        if any(
            row[form]["off"][quantity] > AGREE and not row.get(quantity, "").startswith("~")
            for form in FORMS
            for quantity in QUANTITIES
        )
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line per contender; where two numbers share a cell they are of clean and fp, differences the larger one."""
    shown = Table(box=MARKDOWN)
    for head in ("contender", "definition of HD95, ASD"):
        shown.add_column(head, no_wrap=True)
    heads = ("CPU s clean", "CPU s fp", "wall s", "× exacta clean", "× exacta fp", "peak MB")
    for head in (*heads, "Δ DSC", "Δ HD95 mm", "Δ ASD mm"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        clean, fp = (row[form] for form in FORMS)
        cells = [row["name"], row["definition"], f"{clean['cpu_s']:.3g}", f"{fp['cpu_s']:.3g}"]
        cells.append(f"{clean['wall_s']:.3g} / {fp['wall_s']:.3g}")
        cells += [_number(form["of_exacta"], ".2f") for form in (clean, fp)]
        cells.append(f"{_number(clean['peak_mb'], '.0f')} / {_number(fp['peak_mb'], '.0f')}")
        for quantity in QUANTITIES:
            other = "~ " if row.get(quantity, "").startswith("~") else ""
            cells.append(f"{other}{max(form['off'][quantity] for form in (clean, fp)):.1e}")
        shown.add_row(*cells)
    return shown


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def measure(args: argparse.Namespace, folder: Path) -> Answer:
    """Every contender asked for on the pair; what `--json` writes."""
    volumes, spacing = phantom(SMALL if args.quick else SHAPE, args.seed)
    for name, volume in volumes.items():
        np.save(folder / f"{name}.npy", volume)
    facts = facts_of(volumes["clean"], volumes["ref"]) | {"spacing": spacing, "seed": args.seed}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    say(f"phantom {facts['shape']}, {facts['surface']} surface voxels in both, {facts['coincident']:.0%} coincide")
    names = args.only or [name for name, c in CONTENDERS.items() if args.slow or not c.slow]
    truth = our_values(folder)
    found = race([name for name in names if not CONTENDERS[name].slow], folder, args.rounds)
    found |= once([name for name in names if CONTENDERS[name].slow], folder)
    rows = [row_of(name, found[name], found.get(BASE), peaks(name, folder), truth) for name in names if name in found]
    shown = table(rows)
    console = Console()
    console.width = max(console.width, 200)
    console.print(shown)
    if wrong := strays(rows):
        raise SystemExit(f"{', '.join(wrong)}: more than {AGREE} from ours under the same definition")
    return {"phantom": facts, "rounds": args.rounds, "rows": rows}


def score_cases(args: argparse.Namespace, folder: Path) -> Answer:
    """Score volumes with `bench score`; wall and CPU seconds, and the most memory of all its processes together."""
    import SimpleITK as sitk

    pred_dir, ref_dir = folder / "pred", folder / "ref"
    for case in range(args.cases):
        volumes, spacing = phantom(SMALL if args.quick else SHAPE, args.seed + case)
        for place, form in ((pred_dir, "fp"), (ref_dir, "ref")):
            place.mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(volumes[form])
            image.SetSpacing(spacing[::-1])
            sitk.WriteImage(image, str(place / f"case_{case:02}.nii"))
    command = [str(Path(sys.executable).with_name("bench")), "score", str(pred_dir), str(ref_dir)]
    command += ["--labels", ",".join(f"{name}={label}" for name, label in LABELS.items())]
    command += ["--engine", args.engine, "--workers", str(args.workers), "--out", str(folder / "rows.csv")]
    say(" ".join(command))
    plain = {key: value for key, value in os.environ.items() if not key.endswith("_THREADS")}
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: to wait for, and so count, whatever it leaves behind
    before, idle, began, most, samples = os.times(), idle_seconds(), time.perf_counter(), 0, 0
    log = folder / "score.log"
    with log.open("w", encoding="utf-8") as stream:
        scored = subprocess.Popen(command, cwd=folder, env=plain, stdout=stream, stderr=subprocess.STDOUT)
    while scored.poll() is None:
        most, samples = max(most, tree_pss(scored.pid)), samples + 1
        time.sleep(0.05)
    wall, idle = time.perf_counter() - began, idle_seconds() - idle
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    if scored.returncode:
        raise SystemExit(f"bench score failed:\n{log.read_text(encoding='utf-8')}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    cores = len(os.sched_getaffinity(0))
    found = {"cases": args.cases, "workers": args.workers, "wall_s": wall, "cpu_s": cpu, "cores": cores}
    found |= {"use_of_cores": cpu / wall / cores, "use_of_free": cpu / (cpu + idle)}
    found |= {"peak_mb": most / 1e6, "memory_samples": samples}
    print(
        f"{args.cases} cases, {args.workers} workers: {wall:.1f} s wall, {cpu:.1f} s CPU, "
        f"{found['use_of_cores']:.0%} of {cores} cores and {found['use_of_free']:.0%} of what others left of them, "
        f"at most {most / 1e6:.0f} MB in all processes"
    )
    return found


def idle_seconds() -> float:
    """Seconds that all cores together have idled or waited for a disk."""
    ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return (int(ticks[4]) + int(ticks[5])) / os.sysconf("SC_CLK_TCK")


def tree_pss(root: int) -> int:
    """Bytes of a process and all that it started, shared pages counted once between them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    total = 0
    for pid in parents:
        above = pid
        while above not in (root, 0, 1):
            above = parents.get(above, 0)
        if above == root:
            with contextlib.suppress(OSError):  # it has just ended
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def facts_of(pred: Volume, ref: Volume) -> dict[str, Any]:
    """Size of each organ in the reference, its Dice, and the surface voxels of both: what the cost depends on."""
    surface = coincident = 0
    organs = {}
    for name, label in LABELS.items():
        p, r = pred == label, ref == label
        on_p, on_r = edge(p), edge(r)
        surface += int(on_p.sum() + on_r.sum())
        coincident += 2 * int((on_p & on_r).sum())
        organs[name] = {"voxels": int(r.sum()), "dice": 2 * int((p & r).sum()) / int(p.sum() + r.sum())}
    return {"shape": ref.shape, "organs": organs, "surface": surface, "coincident": coincident / surface}


def edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of a mask with a face neighbour outside of it; the organs do not touch the border."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        inside &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return mask & ~inside


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=None, metavar="NAME", help="contenders")
    parser.add_argument("--slow", action="store_true", help="also those that take minutes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the phantom")
    parser.add_argument("--quick", action="store_true", help="a small phantom, to try it")
    parser.add_argument("--cases", type=int, default=0, help="instead: score this many volumes with `bench score`")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of `bench score`")
    parser.add_argument("--engine", default="simpleitk", help="of `bench score`")
    parser.add_argument("--json", metavar="OUT", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = score_cases(args, Path(folder)) if args.cases else measure(args, Path(folder))
    machine = f"{platform.machine()} {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    machine += "".join(f", {name} {version(name)}" for name in ("numpy", "scipy"))
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine} | found, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
