"""Curves for TensorBoard: event files made of curve.csv, in OUT/tensorboard/SUITE. No torch.

The truth is the curve. An event file is written whole from it when a training ends, and again when the curve changed,
so that nothing is doubled or lost after a kill; the folder can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.cell import Cell
from harness.errors import BenchError
from harness.plan import Entry
from harness.records import read_rows, write_atomic

FOLDER = "tensorboard"
FILE = "events.out.tfevents.0.bench"  # TensorBoard knows event files by `tfevents` in their name
SECONDS = 10.0  # between two looks for trainings that ended
_AXES = ("epoch", "step")


def require_tensorboard() -> None:
    """See that the package is there, before any work.

    Raises:
        BenchError: It is not.
    """
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise BenchError(
            f"--tensorboard needs the package tensorboard ({error}): "
            "pip install 'segmentation-loss-bench[tensorboard]'."
        ) from None


def export_curves(suite: str, curves: Sequence[tuple[Cell, Path]], out: Path) -> int:
    """Write the event files whose curve has changed since they were written.

    Args:
        suite: Name of the suite.
        curves: Each cell with its curve.csv; one that does not exist is left out.
        out: Folder of results.

    Returns:
        How many were written.

    Raises:
        BenchError: A curve is damaged, or the folder takes no files.
    """
    written = 0
    folders = run_folders([cell for cell, _ in curves])
    for (_, curve), folder in zip(curves, folders, strict=True):
        file = out / FOLDER / suite / folder / FILE
        try:
            status = os.stat(curve)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(file).st_mtime_ns == status.st_mtime_ns:
                    continue
            content = events(curve, status.st_mtime)
            file.parent.mkdir(parents=True, exist_ok=True)
            for left in file.parent.glob(f".{FILE}.*"):  # of a process that was killed; TensorBoard would read it, too
                left.unlink(missing_ok=True)
            write_atomic(file, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
            os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BenchError(f"{file}: cannot be written ({error.strerror or error}).") from None
        written += 1
    return written


def events(curve: Path, seconds: float) -> bytes:
    """The event file of a curve: one event per epoch at its optimiser step, one scalar per column.

    Args:
        curve: A curve.csv.
        seconds: Time that all events carry; a curve has none of its own.

    Raises:
        BenchError: The curve is damaged.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=seconds, file_version="brain.Event:2").SerializeToString())
    try:
        for row in read_rows(curve):
            # an empty field was no finite number, or was not measured in this epoch
            values = {k: float(v) for k, v in row.items() if k not in _AXES and v}
            scalars = [Summary.Value(tag=tag_of(k), simple_value=v) for k, v in values.items() if math.isfinite(v)]
            writer.write(
                Event(wall_time=seconds, step=int(row["step"]), summary=Summary(value=scalars)).SerializeToString()
            )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{curve}: not a readable curve ({error}); remove it and train.json beside it.") from None
    return stream.getvalue()


def tag_of(column: str) -> str:
    """The name of a column in TensorBoard: `val_dice` is `val/dice`, the terms of a loss are below `loss terms`."""
    if column in ("loss", "lr"):
        return column
    return f"val/{column.removeprefix('val_')}" if column.startswith("val_") else f"loss terms/{column}"


def run_folders(cells: Sequence[Cell]) -> list[Path]:
    """DATASET/MODEL/LOSS/seed for each cell: names as TensorBoard shows them, in characters that every system takes."""
    plain = [_folder(cell) for cell in cells]
    twice = {path for path, n in Counter(plain).items() if n > 1}
    return [
        path.with_name(f"{path.name} {cell.train_id}") if path in twice else path
        for cell, path in zip(cells, plain, strict=True)
    ]


def _folder(cell: Cell) -> Path:
    fold = "" if cell.data["fold"] is None else f" fold {cell.data['fold']}"
    parts = (cell.dataset, cell.model_label, cell.loss_label, f"seed {cell.seed}{fold}")
    return Path(*(re.sub(r"[^\w=+,() .-]", "_", part).strip(". ")[:120] or "_" for part in parts))


def curves_of(entries: Sequence[Entry], out: Path) -> list[tuple[Cell, Path]]:
    """The curve of each cell where its record lies, else where it will be written."""
    trained = {e.cell.train_id: e for e in reversed(entries)}  # two evaluations of one training have one curve
    return [(e.cell, (e.folder.parent if e.folder else e.cell.folder(out)) / "curve.csv") for e in trained.values()]


@contextlib.contextmanager
def followed(suites: Sequence[tuple[str, Sequence[Entry]]], out: Path) -> Iterator[None]:
    """Write event files while cells run, wherever they run: what is looked at is the folder of results alone."""
    curves = {name: [(cell, cell.folder(out) / "curve.csv") for cell, _ in curves_of(e, out)] for name, e in suites}
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(SECONDS):
            for name, wanted in curves.items():
                with contextlib.suppress(BenchError):  # said at the end, when all are written
                    export_curves(name, wanted, out)

    thread = threading.Thread(target=follow, name="bench-tensorboard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
