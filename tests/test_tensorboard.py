"""Event files are the curves, point by point, whatever happened before."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.cli import main
from harness.plan import make_plan
from harness.records import read_rows, write_rows
from harness.suite import load_suite
from harness.tensorboard import FILE, events, export_curves, followed, run_folders, tag_of

pytest.importorskip("tensorboard")


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def _equal(folder: Path, curve: Path) -> None:
    """Every finite number of the curve stands in the event file, at its step, and nothing besides."""
    rows = read_rows(curve)
    wanted: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, text in row.items():
            if name not in ("epoch", "step") and text:
                wanted.setdefault(tag_of(name), []).append((int(row["step"]), float(text)))
    found = _scalars(folder)
    assert rows and found.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert [s for s, _ in found[tag]] == [s for s, _ in points]
        # TensorBoard keeps 32 bits
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found[tag], points, strict=True))


def _made(toy, losses: str = "[dice, ce]", rows: int = 3) -> dict[str, Path]:  # type: ignore[no-untyped-def]
    """Curves that were written, not trained, by label."""
    suite = load_suite(toy.suite("losses: [dice, ce]", f"losses: {losses}"))
    found = {}
    for i, cell in enumerate(suite.cells):
        curve = cell.folder(toy.folder / "runs") / "curve.csv"
        curve.parent.mkdir(parents=True, exist_ok=True)
        write_rows(
            curve,
            ["epoch", "step", "lr", "loss", "t0", "val_dice"],
            [
                {"epoch": e, "step": 4 * (e + 1), "lr": 0.1 / (e + 1), "loss": 1 / (e + i + 1), "t0": e,
                 "val_dice": math.nan if e == 1 else 0.5}
                for e in range(rows)
            ],
        )  # fmt: skip
        found[cell.loss_label] = curve
    return found


def _arguments(toy, verb: str = "report") -> list[str]:  # type: ignore[no-untyped-def]
    folder = toy.folder
    places = ["--out", str(folder / "runs"), "--reports", str(folder / "reports"), "--data", str(folder / "data")]
    return [verb, str(folder / "toy.yaml.suite"), *places, "--tensorboard"]


def test_a_run_leaves_what_its_curves_hold(toy) -> None:
    """Through a real run, and again after another point of the grid was asked for."""
    suite = toy.suite("losses: [dice, ce]", "losses: [dice]\nreport: {layout: [survey_table]}")
    assert toy.bench("run", suite, "--tensorboard").returncode == 0
    (cell,) = load_suite(suite).cells
    folder = toy.folder / "runs/tensorboard/toy" / run_folders([cell])[0]
    assert folder.parts[-4:] == ("toy", "unet", "dice", "seed 0")
    _equal(folder, cell.folder(toy.folder / "runs") / "curve.csv")
    before = (folder / FILE).stat().st_mtime_ns
    assert main(_arguments(toy, "run")) == 0  # nothing to do
    assert (folder / FILE).stat().st_mtime_ns == before and sorted(p.name for p in folder.iterdir()) == [FILE]


def test_a_curve_that_grew_or_shrank_is_written_anew(toy) -> None:
    """After a kill the curve is that of the resumed training: the event file has its points once."""
    out = toy.folder / "runs"
    for rows in (2, 5, 3):
        curves = _made(toy, rows=rows)
        for curve in curves.values():
            os.utime(curve, ns=(rows, rows))
        for left in out.rglob(FILE):  # a process that was killed while it wrote
            (left.parent / f".{FILE}.abc").write_bytes(left.read_bytes())
        cells = load_suite(toy.folder / "toy.yaml.suite").cells
        pairs = [(c, c.folder(out) / "curve.csv") for c in cells]
        assert export_curves("toy", pairs, out) == 2
        assert export_curves("toy", pairs, out) == 0
        for cell, folder in zip(cells, run_folders(cells), strict=True):
            _equal(out / "tensorboard/toy" / folder, curves[cell.loss_label])


def test_curves_are_followed_while_cells_run(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tensorboard.SECONDS", 0.01)
    out = toy.folder / "runs"
    entries = make_plan(load_suite(toy.suite()), out, toy.folder / "reports")
    file = out / "tensorboard/toy" / run_folders([entries[0].cell])[0] / FILE
    with followed([("toy", entries)], out):
        _made(toy)
        until = time.monotonic() + 60
        while not file.is_file() and time.monotonic() < until:
            time.sleep(0.01)
    assert file.is_file()


def test_names_that_no_folder_takes() -> None:
    names = {"a/b": "a_b", "../..": "_..", "..": "_"}

    class Named:
        def __init__(self, label: str, train_id: str) -> None:
            self.dataset, self.model_label, self.loss_label, self.seed = "d", "m", label, 0
            self.data, self.train_id = {"fold": 1}, train_id

    cells: Sequence[Named] = [Named(label, str(i)) for i, label in enumerate([*names, "a:b"])]
    found = [path.parts for path in run_folders(cells)]  # type: ignore[arg-type]
    assert all(".." not in parts and len(parts) == 4 for parts in found)
    assert found[0] == ("d", "m", "a_b", "seed 0 fold 1 0") and found[-1] == ("d", "m", "a_b", "seed 0 fold 1 3")
    assert found[1][2] == "_"


def test_mistakes_are_one_sentence(toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    curve = _made(toy)["dice"]
    curve.write_text("epoch,step,loss\n0,x,1\n")
    assert main(_arguments(toy)) == 2
    error = capsys.readouterr().err
    assert f"{curve}: not a readable curve" in error and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    for verb in ("report", "run"):
        assert main(_arguments(toy, verb)) == 2
        error = capsys.readouterr().err
        assert "pip install 'segmentation-loss-bench[tensorboard]'" in error and error.count("\n") == 1


def test_the_same_curve_makes_the_same_bytes_without_torch(toy) -> None:
    curve = _made(toy)["dice"]
    code = (
        "import sys; from pathlib import Path; from harness.tensorboard import events\n"
        f"sys.stdout.buffer.write(events(Path({str(curve)!r}), 5.0))\n"
        "assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert out == events(curve, 5.0)
