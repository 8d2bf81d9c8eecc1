"""`bench score PRED_DIR REF_DIR`: a table in the terminal, all rows as CSV, or JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from harness.errors import BenchError
from harness.metrics.table import METRICS, PROFILES, metric_of, title_of
from harness.printing import print_json
from harness.progress import LINE_SECONDS, duration
from harness.records import write_rows
from harness.scoring.folders import COLUMNS, Labels, Scores, Spacing, score_folders
from harness.scoring.summary import Mean, summarise

_UNITS = {"1": "%", "mm2": "mm²", "mm3": "mm³", "voxel2": "pixels", "voxel3": "voxels"}
SHOWN_FAULTS = 20
SHOWN_CASES = 5  # of one fault
Column = tuple[str, str]  # metric, unit


@dataclass(frozen=True)
class Request:
    """What stands on the command line, as text; defaults are those of the command.

    Attributes:
        pred_dir: Folder of predictions.
        ref_dir: Folder of references.
        labels: `liver=1,tumour=2+3`.
        manifest: Name of a data manifest, or its file.
        ignore: The ignored reference label.
        drop: `4,5`: label values that are background.
        metrics: `dice,nsd@2`.
        profile: `voxel-max,area`.
        engine: Key of `ENGINES`.
        spacing: `3,0.8,0.8`, `unknown` or `header`; None where nothing was asked for.
        workers: Processes; None for all cores.
        out: A file for all rows.
        json: Print JSON instead of the table.
    """

    pred_dir: Path
    ref_dir: Path
    labels: str | None = None
    manifest: str | None = None
    ignore: int | None = None
    drop: str | None = None
    metrics: str = "dice,hd95,asd"
    profile: str = "voxel-max"
    engine: str = "simpleitk"
    spacing: str | None = None
    workers: int | None = None
    out: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class _Labels:
    """What the label values in the files mean."""

    classes: Mapping[str, int | Sequence[int]] | None
    ignore: int | None
    drop: tuple[int, ...]
    spacing: Spacing


def run_score(request: Request) -> int:
    """Measure two folders, show and write the result; returns the exit code.

    Raises:
        BenchError: Nothing could be measured.
    """
    meaning = _meaning(request)
    with CaseProgress(Console(stderr=True)) as progress:
        try:
            scores = score_folders(
                request.pred_dir,
                request.ref_dir,
                meaning.classes,
                metrics=_names(request.metrics),
                profile=_names(request.profile),
                engine=request.engine,
                ignore=meaning.ignore,
                drop=meaning.drop,
                spacing=meaning.spacing,
                workers=request.workers,
                progress=progress.moved,
            )
        except KeyboardInterrupt:
            progress.stop()
            print(f"bench: interrupted; {progress.said} and nothing was written.", file=sys.stderr)
            return 130
    means = summarise(scores)
    if request.out is not None and scores.rows:
        _write(request.out, scores)
    if request.json:
        print_json(_described(scores, means))
    elif scores.rows:
        _show(scores, means, request.out)
    _notes(scores, request)
    return 2 if scores.faults else 0


def parse_labels(text: str) -> dict[str, tuple[int, ...]]:
    """`liver=1,tumour=2+3` as class name → label values.

    Raises:
        BenchError: It is not of that form, or names a class twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, equals, values = (t.strip() for t in part.partition("="))
        numbers = [value.strip() for value in values.split("+")]
        if not name or not equals or not all(n.isascii() and n.isdigit() for n in numbers):
            raise BenchError(f"--labels {text}: {part!r} is not NAME=VALUE; write liver=1,tumour=2+3, + is a union.")
        if name in found:
            raise BenchError(f"--labels {text}: {name!r} stands there twice; give each class its own name.")
        found[name] = tuple(map(int, numbers))
    return found


def parse_spacing(text: str) -> Spacing:
    """`3,0.8,0.8`, `unknown` or `header`.

    Raises:
        BenchError: It is none of these.
    """
    if text in ("header", "unknown"):
        return None if text == "unknown" else "header"
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BenchError(
            f"--spacing {text}: expected mm per axis as z,y,x (pictures: y,x), such as 3,0.8,0.8, or unknown."
        ) from None


def _meaning(request: Request) -> _Labels:
    given: Spacing = "header" if request.spacing is None else parse_spacing(request.spacing)
    drop = _numbers(request.drop)
    if request.manifest is None:
        classes = None if request.labels is None else parse_labels(request.labels)
        return _Labels(classes, request.ignore, drop, given)
    if request.labels is not None:
        raise BenchError("--labels and --manifest both say what the labels mean; leave one of them away.")
    from harness.data.manifest import load_manifest

    manifest = load_manifest(request.manifest, Path.cwd())
    spec = manifest.spec
    return _Labels(
        manifest.file_values,
        spec.ignore if request.ignore is None else request.ignore,
        (*spec.drop, *drop),
        None if spec.spacing == "unknown" and request.spacing is None else given,
    )


def _numbers(text: str | None) -> tuple[int, ...]:
    parts = _names(text or "")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise BenchError(f"--drop {text}: expected label values, such as 4,5.")
    return tuple(map(int, parts))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _write(path: Path, scores: Scores) -> None:
    try:
        write_rows(path, COLUMNS, scores.table())
    except OSError as error:
        raise BenchError(f"{path}: cannot be written ({error.strerror or error}); name another file.") from None


def _described(scores: Scores, means: Sequence[Mean]) -> dict[str, Any]:
    return {
        "labels": dict(scores.labels),
        "unit": scores.unit,
        "cases": list(scores.rows),
        "summary": [
            {"class": m["class_name"], **{k: v for k, v in m.items() if k != "class_name"}} for m in map(asdict, means)
        ],
        "rows": scores.table(),
        "faults": scores.faults,
    }


def _show(scores: Scores, means: Sequence[Mean], out: Path | None) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, 400)  # a table in a file is as wide as it needs to be
    for profile in dict.fromkeys(m.profile for m in means):
        for table in _tables(scores, [m for m in means if m.profile == profile], console):
            console.print(table)
    console.print(policy_line(scores), style="dim")
    if out is not None:
        console.print(f"{sum(map(len, scores.rows.values()))} rows of {len(scores.rows)} cases in {out}")


def _tables(scores: Scores, means: Sequence[Mean], console: Console) -> Iterator[Table]:
    """One profile: a line per class, a column per metric; several tables where the terminal is too narrow for one."""
    columns = list(dict.fromkeys((m.metric, m.unit) for m in means))
    whole = _table(scores, means, columns, " ")
    wide = console.options.update(max_width=10_000)
    if console.measure(whole, options=wide).maximum <= console.width:
        yield whole
        return
    part: list[Column] = []
    for column in columns:
        longer = _table(scores, means, [*part, column], "\n")
        if part and console.measure(longer, options=wide).maximum > console.width:
            yield _table(scores, means, part, "\n")
            part = []
        part.append(column)
    yield _table(scores, means, part, "\n")


def _table(scores: Scores, means: Sequence[Mean], columns: Sequence[Column], gap: str) -> Table:
    cells = {(m.class_name, m.metric, m.unit): m for m in means}
    profile, n = means[0].profile, len(scores.rows)
    own = PROFILES[profile].own_empties
    length = "voxel" if profile == "transunet" else scores.unit
    title = f"{profile}, distances in {length}, {n} case{'s'[: n != 1]}, mean ± SD over cases"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    for heading in ("n", *(_heading(metric, unit, length, gap) for metric, unit in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    for mask in ("pred", "ref", "both"):
        table.add_column(f"{mask}{gap}empty", justify="right", style="dim", no_wrap=True)
    names: list[str | None] = [*scores.labels]
    whole = "mean over classes" + (", which overlap" if _overlapping(scores.labels) else "")
    for name in [*names, None] if len(names) > 1 else names:
        line = [cells[name, *column] for column in columns]
        status = line[0]
        counted = n if own or name is None else n - status.both_empty
        values = [_cell(mean, counted, gap) for mean in line]
        empties = [str(k) for k in (status.pred_empty, status.ref_empty, status.both_empty)]
        texts = [whole if name is None else name, str(counted), *values, *empties]
        table.add_row(*map(Text, texts), style="bold" if name is None else None)
    return table


def _overlapping(labels: Labels) -> bool:
    """Whether a label value is in two classes: a region is averaged with its parts."""
    values = [v for given in labels.values() for v in (given if isinstance(given, Sequence) else [given])]
    return len(set(values)) < len(values)


def _heading(metric: str, unit: str, length: str, gap: str) -> str:
    shown = _UNITS.get(unit, unit)
    title = title_of(metric, length)
    text = f"{title}, {shown}" if title.endswith(")") else f"{title} ({shown})"
    return text.replace(" (", f"{gap}(")


def _cell(mean: Mean, counted: int, gap: str) -> str:
    if mean.mean is None:
        return "–"
    scale = 100.0 if mean.unit == "1" else 1.0
    spread = "" if mean.sd is None else f"{gap}± {mean.sd * scale:.2f}"
    return f"{mean.mean * scale:.2f}{spread}" + ("" if mean.n == counted else f"{gap}(n={mean.n})")


def policy_line(scores: Scores) -> str:
    """How empty masks enter these means, as far as the metrics and profiles ask for it."""
    bases = list(dict.fromkeys(metric_of(name)[0].name for name in scores.metrics))
    kinds = [METRICS[base] for base in bases]
    costs = [
        f"{m.title} 0" for m in kinds if m.unit_kind == "fraction" and m.scope == "case" and m.name != "specificity"
    ]
    if any(m.unit_kind == "distance" for m in kinds):
        costs.append("distances the image diagonal")
    text = "Empty masks: both empty is not applicable, left out and counted"
    if costs:
        text += f"; one of the two empty counts {', '.join(costs)}"
    for metric in kinds:
        lacking = metric.not_applicable - {"both_empty"}
        if lacking:
            what = "reference" if "ref_empty" in lacking else "prediction"
            text += f"; {metric.title} is not applicable without a {what}"
    own = [p for p in scores.profiles if PROFILES[p].own_empties]
    return text + (f"; the numbers of {', '.join(own)} are what that code gives, empty masks too." if own else ".")


def _notes(scores: Scores, request: Request) -> None:
    """What the user should know besides, on the error stream."""
    kinds: dict[str, list[str]] = {}  # what is the same but for its file is said once
    for case, fault in scores.faults.items():
        kinds.setdefault(fault.partition(": ")[2], []).append(case)
    for number, cases in enumerate(kinds.values()):
        if number == SHOWN_FAULTS:
            more = sum(len(others) for others in [*kinds.values()][number:])
            print(f"bench: and {more} more cases.", file=sys.stderr)
            break
        print(f"bench: {scores.faults[cases[0]]}{_same(cases[1:])}", file=sys.stderr)
    if scores.faults:
        left = len(scores.rows)
        written = f"; the other {left} were" + (" and are written" if request.out is not None and left else "")
        print(
            f"bench: {len(scores.faults)} of {left + len(scores.faults)} cases could not be measured{written}.",
            file=sys.stderr,
        )
    if request.labels is None and request.manifest is None and "255" in scores.labels and len(scores.labels) > 1:
        print(
            "bench: label 255 was measured as a class; if it means 'not annotated', add --ignore 255.", file=sys.stderr
        )


def _same(cases: Sequence[str]) -> str:
    """The further cases of a fault: their number, and the first of them."""
    if not cases:
        return ""
    names = ", ".join(cases[:SHOWN_CASES]) + (", …" if len(cases) > SHOWN_CASES else "")
    return f" The same in {len(cases)} more case{'s'[: len(cases) != 1]}: {names}."


@dataclass
class CaseProgress:
    """A bar with the time left in a terminal, a line now and then in a log file."""

    console: Console
    said: str = "no case was measured"
    _bars: Progress = field(init=False)
    _task: TaskID | None = None
    _stage: str = ""
    _began: float = 0.0
    _line: float = 0.0

    def __post_init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> CaseProgress:
        """Start the display."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display."""
        self.stop()

    def stop(self) -> None:
        """End the display; nothing of it stays."""
        self._bars.stop()

    def moved(self, stage: str, done: int, total: int) -> None:
        """Some of a stage is done."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._line = stage, now, now
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(stage, total=total)
        assert self._task is not None
        self._bars.update(self._task, completed=done)
        if stage == "cases":
            self.said = f"{done} of {total} cases were measured"
        if not self.console.is_terminal and 0 < done < total and now - self._line > LINE_SECONDS:
            self._line = now
            left = duration((now - self._began) * (total - done) / done)
            self.console.print(f"  {done} of {total} {stage}, about {left} left", highlight=False)
