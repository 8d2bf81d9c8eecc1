"""All figures of a report, by section."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness.errors import BenchError
from harness.processes import cores
from harness.report.figures.base import Picture
from harness.report.figures.cases import case_map, dice_distribution
from harness.report.figures.classes import class_heatmap
from harness.report.figures.cost import cost_gain
from harness.report.figures.curves import loss_curves, validation_curves, validation_metrics
from harness.report.figures.ranks import critical_difference
from harness.report.figures.responses import sweep_responses
from harness.report.figures.robustness import robustness_curves
from harness.report.figures.scores import rows_of
from harness.report.figures.sweeps import sweep_curves
from harness.report.figures.volume import volume_effect
from harness.report.frames import Frames, by_group
from harness.report.palette import slug
from harness.report.robustness import PATIENTS, robustness_panels
from harness.report.tables import measures, survey_metrics

Maker = Callable[[str], Picture | None]
Makers = Iterable[tuple[str, Maker]]
Task = tuple[str, Maker, str]
FROM_CELLS = 1000  # with fewer, starting processes costs about what it saves
MAX_WORKERS = 8
_tasks: Sequence[Task] = ()  # of the pool that is running


def draw_all(
    frames: Frames, folder: Path, layout: Sequence[str], *, baseline: str | None = None
) -> dict[str, list[Picture]]:
    """Draw the figures of the sections in `layout`, as SVG, PNG and PDF.

    Args:
        frames: The prepared frames.
        folder: Where the files go.
        layout: Names of sections; those without figures of their own, such as tables, are passed over.
        baseline: Label of the loss that others are compared with; None for the mean of the losses.

    Returns:
        Section to its pictures, for every section of `FIGURES` in `layout`; an empty list where there is nothing to
        draw.

    Raises:
        BenchError: The baseline is no loss of the suite.
    """
    with drawing_all(frames, folder, layout, baseline=baseline) as pictures:
        return pictures()


@contextmanager
def drawing_all(
    frames: Frames, folder: Path, layout: Sequence[str], *, baseline: str | None = None
) -> Iterator[Callable[[], dict[str, list[Picture]]]]:
    """As `draw_all`, but what is inside `with` goes on while other processes draw; the call waits for the pictures."""
    taken: set[str] = set()
    sections = [s for s in FIGURES if s in layout]
    tasks = [(s, make, slug(base, taken)) for s in sections for base, make in FIGURES[s](frames, folder, baseline)]

    def sorted_in(made: Iterable[Picture | None]) -> dict[str, list[Picture]]:
        out: dict[str, list[Picture]] = {s: [] for s in sections}
        for (section, _, _), picture in zip(tasks, made, strict=True):
            if picture is not None:
                out[section].append(picture)
        return out

    with _drawn(tasks, len(frames.cells)) as made:
        yield lambda: sorted_in(made)


@contextmanager
def _drawn(tasks: Sequence[Task], cells: int) -> Iterator[Iterable[Picture | None]]:
    """The pictures, those of large suites by several processes, which share the frames as forks do."""
    workers = min(cores(), MAX_WORKERS, len(tasks))
    if cells < FROM_CELLS or workers < 2 or sys.platform != "linux":
        yield (make(name) for _, make, name in tasks)
        return
    global _tasks
    _tasks = tasks
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            yield pool.map(_draw, range(len(tasks)))
    except BrokenProcessPool:
        raise BenchError(
            f"report: a process that drew figures was ended from outside, often for too little memory; {workers} drew "
            "at once. Run it again with fewer cores (taskset) or more memory."
        ) from None
    finally:
        _tasks = ()


def _draw(index: int) -> Picture | None:
    _, make, name = _tasks[index]
    return make(name)


def _pairs(frames: Frames) -> Iterable[tuple[str, str]]:
    return ((g, m) for g in frames.plain_groups for m in by_group(frames, g, frames.cases))


def _curves(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g in frames.plain_groups:
        yield f"curves-{g}", partial(loss_curves, frames, g, folder)


def _validation(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g in frames.plain_groups:
        for metric in validation_metrics(frames, g):
            yield f"validation-{metric}-{g}", partial(validation_curves, frames, g, metric, folder)


def _sweeps(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g, m in _pairs(frames):
        if g in frames.plain_groups:
            yield f"responses-{g}-{m}", partial(sweep_responses, frames, g, m, folder)
    for g in frames.plain_groups:
        for m in by_group(frames, g, frames.curves):
            yield f"sweeps-{g}-{m}", partial(sweep_curves, frames, g, m, folder)


def _classes(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g, m in _pairs(frames):
        for k in survey_metrics(measures(rows_of(frames, g, m), frames.pooled)):
            base = f"classes-{k.metric}-{g}-{m}"
            yield base, partial(class_heatmap, frames, g, m, k, folder)


def _volume(frames: Frames, folder: Path, baseline: str | None) -> Makers:
    for g, m in _pairs(frames):
        yield f"volume-{g}-{m}", partial(volume_effect, frames, g, m, folder, baseline=baseline)


def _cost(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g in frames.plain_groups:
        yield f"cost-{g}", partial(cost_gain, frames, g, folder)


def _distributions(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g, m in _pairs(frames):
        yield f"dice-{g}-{m}", partial(dice_distribution, frames, g, m, folder)


def _cases(frames: Frames, folder: Path, _: str | None) -> Makers:
    for g, m in _pairs(frames):
        yield f"cases-{g}-{m}", partial(case_map, frames, g, m, folder)
        yield f"ranks-{g}-{m}", partial(critical_difference, frames, g, m, folder)


def _robustness(frames: Frames, folder: Path, baseline: str | None) -> Makers:
    places = dict.fromkeys((p.base, p.model, p.kind == PATIENTS) for p in robustness_panels(frames))
    for base, model, patients in places:
        name = f"{'patients' if patients else 'noise'}-{base}-{model}"
        yield name, partial(robustness_curves, frames, base, model, patients, folder, baseline=baseline)


FIGURES: dict[str, Callable[[Frames, Path, str | None], Makers]] = {
    "curves": _curves,
    "validation": _validation,
    "sweeps": _sweeps,
    "classes": _classes,
    "volume": _volume,
    "cost": _cost,
    "distributions": _distributions,
    "cases": _cases,
    "robustness": _robustness,
}
"""Sections with figures, in the order in which they are drawn."""
