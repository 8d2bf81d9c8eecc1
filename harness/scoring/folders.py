"""Folders of predictions made elsewhere: every case against its reference, each whole case in one process.

    from harness.scoring.folders import score_folders

    scores = score_folders("predictions", "references", {"liver": 1, "tumour": 2, "both": (1, 2)})
    frame = pandas.DataFrame(scores.table())

The process that calls stays small: headers and pixels are read by the workers, one case each at a time. A script that
calls it needs `if __name__ == "__main__":`, as every one that starts processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from harness.errors import BenchError
from harness.metrics.table import Row, canonical, check_metrics, check_profiles, metric_of
from harness.processes import cores
from harness.scoring.pool import Failure, Pool

if TYPE_CHECKING:
    from harness.scoring.images import Header, IntArray, Pair

METRICS = ("dice", "hd95", "asd")
COLUMNS = ("case", "class", "metric", "profile", "unit", "value", "worst", "status")
MAX_VALUES = 255  # label values in a reference without names; more of them are the grey values of an image
PRELOAD = ("harness.scoring.images", "harness.metrics.case", "harness.metrics.maurer", "nibabel")
COMPILED = ("harness.metrics.accelerated",)  # numba is 100 MB in each process that imports it by itself

Labels = Mapping[str, int | Sequence[int]]
Spacing = Literal["header"] | Sequence[float] | None
Progress = Callable[[str, int, int], None]
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """How each case is measured.

    Attributes:
        labels: Class name → label value, or values of a region.
        profiles: Keys of `PROFILES`.
        metrics: Names of metrics of a case.
        engine: Key of `ENGINES`.
        ignore: The ignored reference label.
        drop: Label values in the files that are background.
        spacing: "header", numbers in mm per axis (z, y, x), or None for distances in voxels.
    """

    labels: Labels
    profiles: tuple[str, ...]
    metrics: tuple[str, ...]
    engine: str
    ignore: int | None
    drop: tuple[int, ...]
    spacing: Spacing


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        labels: Class name → label value or values, as measured.
        metrics: Names asked for, in canonical spelling, also those of a whole data set.
        profiles: As asked for.
        unit: Of distances and tolerances, "mm" or "voxel".
        rows: Case → its rows, for every case that could be measured, by name.
        faults: Case → why it could not be measured, in a sentence.
    """

    labels: Labels
    metrics: tuple[str, ...]
    profiles: tuple[str, ...]
    unit: str
    rows: dict[str, list[Row]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """All rows with the columns `COLUMNS`, raw: a value of None stays None."""
        return [
            {"case": case, "class": values.pop("class_name"), **values}
            for case, rows in self.rows.items()
            for values in map(asdict, rows)
        ]


def score_folders(
    pred_dir: str | Path,
    ref_dir: str | Path,
    labels: Labels | None = None,
    *,
    metrics: Iterable[str] = METRICS,
    profile: str | Sequence[str] = "voxel-max",
    engine: str = "simpleitk",
    ignore: int | None = None,
    drop: Iterable[int] = (),
    spacing: Spacing = "header",
    workers: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Scores:
    """Measure every case of two folders.

    A case is a file in each folder with the same name; the endings may differ. All headers are compared before anything
    is measured. Pictures (png, tif, bmp) state no spacing, and distances are then in voxels. A volume of one slice is
    measured as an image in the plane.

    Args:
        pred_dir: Folder of predicted label images.
        ref_dir: Folder of reference label images.
        labels: Class name → label value, or → several values for a region. None takes the values found in the
            references, named "1", "2" and so on.
        metrics: Keys of `METRICS`, as `evaluate` takes them; `miou` is made from the counts that are always there.
        profile: Key of `PROFILES`, or several.
        engine: Key of `ENGINES`.
        ignore: Reference label whose voxels are left out.
        drop: Label values in the files that count as background.
        spacing: "header" reads it from the references; numbers in mm, in the order (z, y, x) or (y, x), replace what
            the headers say, and these are then compared in size only; None measures in voxels, likewise.
        workers: Processes; all cores by default.
        progress: Called with a stage ("headers", "labels" or "cases"), the number done and the number in all.

    Returns:
        The rows of all cases that could be measured, and a sentence for each that could not: a damaged file, a label
        that `labels` lacks, a process that was killed.

    Raises:
        BenchError: The files do not pair, two headers differ or are no labels, or what is asked for is impossible.
    """
    from harness.scoring.images import pair_files

    profiles = check_profiles(profile)
    asked = _asked(metrics, profiles)
    hidden = tuple(drop)
    count = cores() if workers is None else workers
    if count < 1:
        raise BenchError(f"--workers {workers}: expected at least 1.")
    pairs = pair_files(Path(pred_dir), Path(ref_dir))
    with Pool(count, PRELOAD + (COMPILED if engine == "points-numba" else ())) as pool:
        compare = partial(_compared, spacing == "header")
        headers = _all(pool, compare, pairs, partial(progress, "headers"))
        unit = _unit(pairs, headers, spacing)
        if labels is None:
            found = _all(pool, _values, [pair.ref for pair in pairs], partial(progress, "labels"))
            labels = _named(found, {0, *hidden} if ignore is None else {0, ignore, *hidden}, Path(ref_dir))
        settings = Settings(
            labels=dict(labels),
            profiles=profiles,
            metrics=tuple(m for m in asked if metric_of(m)[0].scope == "case"),
            engine=engine,
            ignore=ignore,
            drop=hidden,
            spacing=spacing if spacing is None or isinstance(spacing, str) else tuple(spacing),
        )
        _check_drop(settings)
        _all(pool, partial(_tried, settings), sorted({len(header.shape) for header in headers}))
        outcomes = _each(
            pool, partial(_measured, settings), list(zip(pairs, headers, strict=True)), partial(progress, "cases")
        )
    scores = Scores(settings.labels, asked, profiles, unit)
    for pair, outcome in zip(pairs, outcomes, strict=True):
        if isinstance(outcome, Failure):
            scores.faults[pair.case] = outcome.reason if outcome.told else f"case {pair.case}: {outcome.reason}."
        else:
            scores.rows[pair.case] = outcome
    return scores


def _asked(metrics: Iterable[str], profiles: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics asked for, each once, in canonical spelling; those of a case must be in one of the profiles."""
    if isinstance(metrics, str):
        check_metrics(metrics, profiles)  # says that a list is expected
    names = tuple(dict.fromkeys(canonical(name) for name in metrics))
    check_metrics([name for name in names if metric_of(name)[0].scope != "dataset"], profiles)
    return names


def _unit(pairs: Sequence[Pair], headers: Sequence[Header], spacing: Spacing) -> str:
    """The unit of distances, one for all cases: millimetres and voxels never meet in a mean."""
    if not isinstance(spacing, str):
        return "voxel" if spacing is None else "mm"
    without = [pair.ref for pair, header in zip(pairs, headers, strict=True) if header.spacing is None]
    if 0 < len(without) < len(pairs):
        raise BenchError(
            f"{without[0]}: states no spacing ({len(without)} of {len(pairs)} references do not), and mm and voxels "
            "cannot be averaged; give it (--spacing z,y,x), or measure all in voxels (--spacing unknown)."
        )
    return "voxel" if without else "mm"


def _check_drop(settings: Settings) -> None:
    for name, values in settings.labels.items():
        both = set(values if isinstance(values, Sequence) else [values]) & set(settings.drop)
        if both:
            raise BenchError(f"label {min(both)} is both dropped and class {name!r}; take it out of one of them.")


def _each(
    pool: Pool, task: Callable[[Job], Result], jobs: Sequence[Job], progress: Callable[[int, int], None]
) -> list[Result | Failure]:
    """The outcomes of all jobs, in the order of the jobs."""
    outcomes: dict[int, Result | Failure] = {}
    progress(0, len(jobs))
    for number, outcome in pool.run(task, jobs):
        outcomes[number] = outcome
        progress(len(outcomes), len(jobs))
    return [outcomes[number] for number in range(len(jobs))]


def _all(
    pool: Pool,
    task: Callable[[Job], Result],
    jobs: Sequence[Job],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """The results of all jobs; the first that has none ends it, with a count of the others."""
    outcomes = _each(pool, task, jobs, progress)
    failures = [(job, o) for job, o in zip(jobs, outcomes, strict=True) if isinstance(o, Failure)]
    if failures:
        job, failure = failures[0]
        text = failure.reason if failure.told else f"{job}: {failure.reason}."
        more = (
            f" The same or another fault is in {len(failures) - 1} more of {len(jobs)} cases." if failures[1:] else ""
        )
        raise BenchError(text + more)
    return [o for o in outcomes if not isinstance(o, Failure)]


def _named(found: Iterable[Sequence[int]], hidden: set[int], folder: Path) -> dict[str, int]:
    """A class for each label value that occurs in the references."""
    values = sorted({value for part in found for value in part} - hidden)
    if not values:
        raise BenchError(f"{folder}: the references hold nothing but background; name the classes with --labels.")
    return {str(value): value for value in values}


# What follows runs in the workers.


def _compared(geometry: bool, pair: Pair) -> Header:
    """The header of the reference; the prediction's fits it."""
    from harness.scoring.images import check_headers, read_header

    ref = read_header(pair.ref, spacing=geometry)
    check_headers(pair, read_header(pair.pred, spacing=geometry), ref, geometry=geometry)
    return ref


def _values(path: Path) -> list[int]:
    """The label values of a file."""
    import numpy as np

    from harness.metrics.checks import MAX_LABEL
    from harness.scoring.images import read_labels

    labels = read_labels(path)
    high = int(labels.max())
    seen = np.zeros(min(high, MAX_LABEL) + 1, np.int64)
    if high <= MAX_LABEL:
        for part in labels:  # slice by slice: bincount makes 8 bytes of each label
            seen += np.bincount(part.reshape(-1), minlength=high + 1)
    values = np.flatnonzero(seen).tolist()
    if high > MAX_LABEL or len(values) > MAX_VALUES + 1:
        what = f"values up to {high}" if high > MAX_LABEL else f"{len(values)} different values"
        raise BenchError(f"{path}: holds {what}, which looks like an image; if they are labels, name them (--labels).")
    return values


def _tried(settings: Settings, axes: int) -> None:
    """Refuse impossible settings before the first case, and in one sentence instead of one per case."""
    import numpy as np

    spacing = (1.0,) * axes if isinstance(settings.spacing, str) else settings.spacing
    empty = np.zeros((6,) * axes, np.uint8)
    _evaluated(empty, empty, spacing, settings)
    # an engine that compiles does so here, in one process, and not in all of them at once
    values = next(iter(settings.labels.values()))
    value = values[0] if isinstance(values, Sequence) else values
    pred, ref = np.zeros((2, *empty.shape), np.min_scalar_type(value))
    pred[1:4], ref[2:5] = value, value
    _evaluated(pred, ref, spacing, settings)


def _measured(settings: Settings, job: tuple[Pair, Header]) -> list[Row]:
    """The rows of one case."""
    from harness.metrics.checks import UnknownLabel
    from harness.scoring.images import read_labels

    pair, header = job
    pred, ref = (_without(read_labels(path), settings.drop) for path in (pair.pred, pair.ref))
    spacing = header.spacing if isinstance(settings.spacing, str) else settings.spacing
    try:
        return _evaluated(pred, ref, spacing, settings)
    except BenchError as error:
        path = pair.pred if str(error).startswith("the prediction") else pair.ref
        text = str(error)
        if isinstance(error, UnknownLabel):
            text = f"{error.found}; name it (--labels), or make it background (--drop {error.label})."
        raise BenchError(f"{path}: {text}") from None


def _without(labels: IntArray, drop: Sequence[int]) -> IntArray:
    """Labels with some values turned to background."""
    import numpy as np

    there = [value for value in drop if value <= int(labels.max())]
    if not there:
        return labels
    kept = np.arange(int(labels.max()) + 1, dtype=labels.dtype)
    kept[there] = 0
    return kept[labels]


def _evaluated(pred: IntArray, ref: IntArray, spacing: Sequence[float] | None, settings: Settings) -> list[Row]:
    from harness.metrics import evaluate

    return evaluate(
        pred,
        ref,
        spacing,
        settings.labels,
        settings.profiles,
        metrics=settings.metrics,
        engine=settings.engine,
        ignore=settings.ignore,
    )
