"""What is kept between reports changes how long they take, and nothing else."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import rows, store
from harness.cell import Cell, Place
from harness.errors import BenchError
from harness.plan import Entry, make_plan
from harness.records import CASE_COLUMNS, RunRecord, write_rows
from harness.results import report_suite
from harness.rows import frames
from harness.store import Home, Sheet, read_sheets, write_sheets
from harness.suite import Suite, load_suite

MANIFEST = """\
name: made
title: Made
licence: none
attribution: nobody
obtain: It cannot be had.
layout: {decathlon: {folder: made}}
modalities: [MRI]
labels: {disc: 1, "ring, outer": 2}
intensity: {zscore: volume}
cases: [c0, c1, c2, c3, c4, c5]
splits: {cv: {folds: 2}}
"""
SUITE = """\
suite: made
data: {manifest: made.yaml, split: cv, slices: {size: [32, 32]}}
models: [unet]
losses: [dice, tversky: {fn_weight: 0.3, fp_weight: {sweep: [0.5, 0.7]}}]
seeds: 2
train: {epochs: 2, steps: 4, batch: 4, optimizer: {adamw: {lr: 3e-3}}}
metrics: [dice, hd95]
report: {layout: [survey_table]}
"""


@dataclass
class Made:
    """A suite whose records were not run but written."""

    folder: Path
    suite: Suite

    @property
    def home(self) -> Home:
        return Home(self.folder / "runs", self.suite.name)

    def plan(self, *outs: str) -> list[Entry]:
        return make_plan(self.suite, [self.folder / o for o in outs or ("runs",)], self.folder / "reports")

    def tables(self, kept: bool = True) -> list[str]:
        """What a report is made of, as text with all digits."""
        return [f.to_csv() for f in frames(self.plan(), self.home if kept else None)[:3]]

    def of(self, index: int, name: str = "cases.csv") -> Path:
        cell = self.suite.cells[index]
        return (
            cell.folder(self.folder / "runs") / name
            if name == "curve.csv"
            else cell.eval_folder(self.folder / "runs") / name
        )


def leave(cell: Cell, out: Path, seed: int = 0, status: str = "ok") -> None:
    rng = random.Random(f"{cell.eval_id}{seed}")
    folder = cell.eval_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "dataset": "made",
        "split": "cv",
        "fold": cell.data["fold"],
        "model": cell.model_label,
        "loss": cell.loss_label,
        "seed": cell.seed,
    }
    lines: list[dict[str, Any]] = []
    for case in cell.data["test"]:
        for name in ("disc", "ring, outer"):
            missed = rng.random() < 0.2
            both = {
                "patient": case,
                "case": case,
                "class": name,
                "profile": "voxel-max",
                "status": "pred_empty" if missed else "ok",
            }
            lines.append(
                about | both | {"metric": "dice", "unit": "1", "value": 0.0 if missed else rng.random(), "worst": 0.0}
            )
            lines.append(
                about
                | both
                | {"metric": "hd95", "unit": "mm", "value": None if missed else 9 * rng.random(), "worst": 40.5}
            )
    write_rows(folder / "cases.csv", CASE_COLUMNS, lines)
    term = "dice" if cell.loss_label == "dice" else "tversky"
    curve = [{"epoch": e, "step": 4 * e, "lr": 3e-3, "loss": rng.random(), term: rng.random()} for e in range(2)]
    write_rows(folder.parent / "curve.csv", [*curve[0]], curve)
    sources = {"loss": cell.loss_digest, "model": cell.model_source.digest}
    record = RunRecord(
        cell.train_id,
        cell.eval_id,
        status,
        "",
        cell.described(),
        {"init": "i"},
        f"w{rng.random()}",
        {"train_s": rng.random()},
        {"device": "cpu"},
        sources,
    )
    record.write(folder / "record.json")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(store, "YOUNG_NS", 0)
    (tmp_path / "made.yaml").write_text(MANIFEST)
    (tmp_path / "suite.yaml").write_text(SUITE)
    found = Made(tmp_path, load_suite(tmp_path / "suite.yaml"))
    assert len(found.suite.cells) == 12
    for cell in found.suite.cells:
        leave(cell, tmp_path / "runs")
    return found


class Reads:
    """Counts what is read of the cells' folders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        plain_read, plain_record = store._read, store.read_record

        def read(path: str, digest: str) -> Any:
            self.files.append(Path(path).name)
            return plain_read(path, digest)

        def record(path: Path) -> RunRecord:
            self.files.append(path.name)
            return plain_record(path)

        monkeypatch.setattr(store, "_read", read)
        monkeypatch.setattr(store, "read_record", record)

    def since(self) -> list[str]:
        found, self.files = sorted(self.files), []
        return found


@pytest.fixture
def reads(made: Made, monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads(monkeypatch)
    made.tables()
    assert found.since() == ["cases.csv"] * 12 + ["curve.csv"] * 12 + ["record.json"] * 12
    made.tables()
    assert found.since() == []
    return found


def checked(made: Made, reads: Reads, expected: list[str]) -> None:
    """Only `expected` is read again, the result is that of a fresh reading, and then nothing is read again."""
    kept = made.tables()
    assert reads.since() == sorted(expected)
    assert made.tables() == kept
    assert reads.since() == []
    assert made.tables(kept=False) == kept
    bare = made.folder / "runs/cache"
    shutil.rmtree(bare)
    assert made.tables() == kept
    reads.since()


def test_a_changed_cell_is_read_again(made: Made, reads: Reads) -> None:
    leave(made.suite.cells[4], made.folder / "runs", seed=1)
    checked(made, reads, ["cases.csv", "curve.csv", "record.json"])


def test_a_touched_file_is_read_again(made: Made, reads: Reads) -> None:
    for path in (made.of(3), made.of(5, "record.json")):
        os.utime(path, ns=(1, 1))
    checked(made, reads, ["cases.csv", "record.json"])


def test_a_file_of_another_size_is_read_again_though_its_time_is_the_same(made: Made, reads: Reads) -> None:
    path = made.of(3)
    before = path.stat()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    checked(made, reads, ["cases.csv"])


def test_a_young_file_is_not_trusted(made: Made, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "YOUNG_NS", 10**15)
    leave(made.suite.cells[4], made.folder / "runs", seed=1)
    made.tables()
    assert len(reads.since()) == 3
    made.tables()
    assert len(reads.since()) == 3
    monkeypatch.setattr(store, "YOUNG_NS", 0)
    checked(made, reads, ["cases.csv", "curve.csv", "record.json"])


@pytest.mark.parametrize("index", [0, 5, 11])
def test_a_removed_and_an_added_cell(made: Made, reads: Reads, index: int) -> None:
    folder = made.of(index).parent.parent
    folder.rename(made.folder / "aside")
    without = made.tables()
    assert reads.since() == []
    assert made.tables(kept=False) == without
    reads.since()
    (made.folder / "aside").rename(folder)
    checked(made, reads, ["cases.csv", "curve.csv", "record.json"])


def test_columns_stand_in_the_order_of_the_plan_whatever_was_kept(made: Made, reads: Reads) -> None:
    """Without the cells of dice, the term `tversky` is the first and the only one."""
    for cell in made.suite.cells[:4]:
        shutil.rmtree(cell.folder(made.folder / "runs"))
    assert "tversky" in made.tables()[2] and ",dice" not in made.tables()[2].splitlines()[0]
    assert made.tables() == made.tables(kept=False)
    reads.since()
    leave(made.suite.cells[0], made.folder / "runs")
    checked(made, reads, ["cases.csv", "curve.csv", "record.json"])


def test_a_moved_results_folder_keeps_its_store(made: Made, reads: Reads) -> None:
    first = made.tables()
    (made.folder / "runs").rename(made.folder / "moved")
    plan = make_plan(made.suite, made.folder / "moved", made.folder / "reports")
    assert [f.to_csv() for f in frames(plan, Home(made.folder / "moved", "made"))[:3]] == first
    assert reads.since() == []


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 3, len(content), max(1, len(content) // 7)):
        content[at] ^= 0x15
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["made.npz", "made.json"])
@pytest.mark.parametrize(
    "damage",
    [_flip, _cut, lambda p: p.write_bytes(b""), lambda p: p.write_text("{}\n[]"), lambda p: (p.unlink(), p.mkdir())],
    ids=["flipped", "cut", "empty", "other", "folder"],
)
def test_a_damaged_store_is_built_anew(made: Made, reads: Reads, name: str, damage: Callable[[Path], Any]) -> None:
    before = made.tables()
    damage(made.folder / "runs/cache/store" / name)
    assert made.tables() == before
    assert len(reads.since()) == (24 if name == "made.npz" else 12)
    path = made.folder / "runs/cache/store" / name
    if path.is_dir():
        path.rmdir()
    made.tables()
    reads.since()
    assert made.tables() == before and reads.since() == []


def test_every_flipped_byte_of_the_rows_is_noticed_or_changes_nothing(made: Made, reads: Reads) -> None:
    before, path = made.tables(), made.folder / "runs/cache/store/made.npz"
    whole = path.read_bytes()
    plan = made.plan()
    rng = random.Random(0)
    for at in rng.sample(range(len(whole)), 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        assert [f.to_csv() for f in frames(plan, made.home)[:3]] == before, at


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, counts=s.counts + 1),
        lambda s: replace(s, counts=-s.counts),
        lambda s: replace(s, keys=s.keys[1:]),
        lambda s: replace(s, texts=s.texts | {"kind": s.texts["kind"][:-1]}),
        lambda s: replace(s, texts=s.texts | {"value": ["x"]}),
        lambda s: replace(s, columns={k: v[1:] for k, v in s.columns.items()}),
        lambda s: replace(s, forms=[("kind",)] * len(s.keys)),
    ],
)
def test_a_store_that_does_not_fit_together_is_none(made: Made, reads: Reads, change: Callable[[Sheet], Sheet]) -> None:
    sheets = read_sheets(made.home.rows)
    assert set(sheets) == {"cases", "curves"}
    with pytest.raises((ValueError, KeyError)):
        change(sheets["cases"]).check()
    wrong = change(sheets["cases"])
    if set(wrong.texts) == set(sheets["cases"].texts):
        write_sheets(made.home, sheets | {"cases": wrong})
        assert read_sheets(made.home.rows) == {}


def test_nothing_is_written_where_there_is_no_results_folder(made: Made, tmp_path: Path) -> None:
    entries = make_plan(made.suite, tmp_path / "none", tmp_path / "reports")
    frames(entries, Home(tmp_path / "none", "made"))
    assert not (tmp_path / "none").exists() and {e.state for e in entries} == {"missing"}


def test_a_plan_of_a_part_forgets_nothing(made: Made, reads: Reads) -> None:
    make_plan(made.suite, made.folder / "runs", made.folder / "reports", ["loss=dice"])
    made.plan()
    assert reads.since() == []


DAMAGE: list[tuple[str, Callable[[str], str]]] = [
    ("its last line is cut off", lambda t: t[:-5]),
    ("columns are not those", lambda t: t.replace("value", "values", 1)),
    ("columns are not those", lambda t: ""),
    ("could not convert", lambda t: t.replace(",40.5,", ",4o.5,", 1)),
    ("not finite", lambda t: t.replace(",40.5,", ",inf,", 1)),
    ("status 'good'", lambda t: t.replace(",ok\n", ",good\n", 1)),
    ("fields", lambda t: t.replace(",hd95,voxel-max,", ",hd95,", 1)),
    ("fields", lambda t: t + "x\n"),
    ("fields", lambda t: t.replace("\n", "\n\n", 3)),
    ("metric 'hd96'", lambda t: t.replace(",hd95,", ",hd96,", 1)),
    ("without a number", lambda t: "".join(x.rsplit(",", 3)[0] + ",,0.0,ok\n" if ",dice,voxel" in x else x for x in t.splitlines(keepends=True))),
]  # fmt: skip


@pytest.mark.parametrize(("words", "damage"), DAMAGE, ids=[f"{i} {w}" for i, (w, _) in enumerate(DAMAGE)])
def test_a_damaged_table_is_named_and_left_out(
    made: Made, reads: Reads, words: str, damage: Callable[[str], str]
) -> None:
    path = made.of(6)
    text = damage(path.read_text())
    for index in (6, 7):  # what the first brought in before it was found out does not let the second pass
        made.of(index).write_text(text)
    _, cases, _, notes = frames(made.plan(), made.home)
    assert len(notes) == 2 and str(path) in notes[0] and words in notes[0] and words in notes[1], notes
    ids = {made.suite.cells[i].train_id for i in (6, 7)}
    assert not ids & set(cases["train_id"]) and cases["train_id"].nunique() == 10
    assert reads.since() == ["cases.csv"] * 2
    assert made.tables() == made.tables(kept=False)
    reads.since()


def test_bytes_that_are_no_text_and_a_curve_without_numbers(made: Made) -> None:
    made.of(1).write_bytes(b"\xff\xfe")
    made.of(2, "curve.csv").write_text("epoch,loss\n0,none\n")
    notes = frames(made.plan(), made.home).notes
    assert len(notes) == 2 and "cases.csv is damaged" in notes[0] and "curve.csv is damaged" in notes[1]


def test_a_damaged_record_is_named_on_the_page_and_left_out(made: Made) -> None:
    made.plan()
    made.of(2, "record.json").write_text('{"schema": 1')
    entries = made.plan()
    assert [e.state for e in entries].count("missing") == 1 and str(made.of(2, "record.json")) in entries[2].problem
    made.of(3).write_text("broken")
    page, _ = report_suite(made.suite, entries, Place(made.folder / "runs", None), made.folder / "reports")
    text = page.read_text(encoding="utf-8")
    assert str(made.of(2, "record.json")) in text and str(made.of(3)) in text


def test_lines_that_are_not_plain_are_read_by_the_slow_way_to_the_same_end(made: Made) -> None:
    before = made.tables(kept=False)
    for index in range(12):
        path = made.of(index)
        with path.open(newline="") as stream:
            lines = [*csv.reader(stream)]
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
            csv.writer(stream, lineterminator="\n").writerow(lines[0])
            for i, line in enumerate(lines[1:]):
                writer.writerow([*line[:5], line[5] if i else f"{line[5]} ", *line[6:]])
    assert made.tables(kept=False) == before


@pytest.mark.parametrize("name", ['a "b"\nc, d', "a\nb", " a ", '"', ""])
def test_a_name_with_anything_in_it(made: Made, name: str) -> None:
    path = made.of(0)
    with path.open(newline="") as stream:
        lines = [*csv.DictReader(stream)]
    write_rows(path, CASE_COLUMNS, [{**line, "class": name} for line in lines])
    cases = frames(made.plan()).cases
    own = cases[cases["train_id"] == made.suite.cells[0].train_id]
    assert set(own["class"]) == {name} and len(own) == len(lines)


def plainly(entries: list[Entry]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all cases.csv and curve.csv by the csv module alone."""
    out: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for entry in entries:
        if entry.folder is None:
            continue
        own = {
            "dataset": entry.cell.dataset,
            "model": entry.cell.model_label,
            "loss": entry.cell.loss_label,
            "seed": entry.cell.seed,
        }
        for found, path in zip(out, (entry.folder / "cases.csv", entry.folder.parent / "curve.csv"), strict=True):
            with path.open(newline="", encoding="utf-8") as stream:
                for line in csv.DictReader(stream):
                    line["loss_value"] = line.get("loss", "")
                    found.append(line | own | {"train_id": entry.cell.train_id})
    return out


def test_a_real_run_is_read_as_it_stands(toy) -> None:
    suite_path = toy.suite()
    assert toy.bench("run", suite_path).returncode == 0
    suite, out = load_suite(suite_path), toy.folder / "runs"
    entries = make_plan(suite, out, toy.folder / "reports")
    assert [e.state for e in entries] == ["ok", "ok"] and (out / "cache/store/toy.npz").is_file()
    expected_cases, expected_curves = plainly(entries)
    for home in (None, Home(out, "toy"), Home(out, "toy")):
        cells, cases, curves, _ = frames(entries, home)
        assert list(cells["loss"]) == ["dice", "ce"] and len(cases) == len(expected_cases) > 20
        for row, want in zip(cases.to_dict("records"), expected_cases, strict=True):
            for name in (*CASE_COLUMNS, "train_id"):
                if name in ("value", "worst", "fold"):
                    assert str(row[name]) == (str(float(want[name])) if want[name] else "nan")
                else:
                    assert str(row[name]).removesuffix(".0") == str(want[name])
        for row, want in zip(curves.to_dict("records"), expected_curves, strict=True):
            assert all(row[k] == float(want[k]) for k in ("epoch", "step", "lr", "loss_value"))
            assert all(str(row[k]) == str(want[k]) for k in ("dataset", "model", "loss", "train_id"))

    # the same bytes with the store, without it, and with a broken one
    place, written = Place(out, toy.folder / "data"), []
    for prepare in (
        lambda: None,
        lambda: shutil.rmtree(out / "cache/store"),
        lambda: _cut(out / "cache/store/toy.npz"),
    ):
        prepare()
        report_suite(suite, make_plan(suite, out, toy.folder / "reports"), place, toy.folder / "reports", force=True)
        folder = toy.folder / "reports/toy"
        written.append({p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert len(written[0]) > 5 and written[0] == written[1] == written[2]


def test_merging_takes_the_first_complete_record(made: Made) -> None:
    a, b = made.folder / "runs", made.folder / "b"
    for index, cell in enumerate(made.suite.cells):
        leave(cell, b, seed=2)
        if index == 0:
            leave(cell, a, status="oom")  # b has it complete
        if index == 1:
            (a / cell.train_id / cell.eval_id / "record.json").write_text("{")
        if index == 2:
            shutil.rmtree(cell.folder(a))
        if index == 3:
            shutil.rmtree(cell.folder(b))
    entries = made.plan("runs", "b")
    assert all(e.state == "ok" for e in entries) and not any(e.problem for e in entries)
    assert [e.folder.parent.parent.name for e in entries if e.folder] == ["b", "b", "b"] + ["runs"] * 9
    swapped = made.plan("b", "runs")
    assert [e.folder.parent.parent.name for e in swapped if e.folder] == ["b"] * 3 + ["runs"] + ["b"] * 8

    page, _ = report_suite(made.suite, entries, Place(a, None), made.folder / "reports", force=True)
    assert f"Records were merged from {b} (3), {a} (9)." in page.read_text(encoding="utf-8")
    kept = [f.to_csv() for f in frames(entries, made.home)[:3]]
    assert kept == [f.to_csv() for f in frames(entries)[:3]]
    with pytest.raises(BenchError, match=r"--out .*nowhere: no such folder"):
        made.plan("runs", "nowhere")
    alone, _ = report_suite(made.suite, made.plan(), Place(a, None), made.folder / "reports", force=True)
    assert "merged" not in alone.read_text(encoding="utf-8")


def test_two_reports_at_once(made: Made) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.suite import load_suite; from harness.plan import make_plan\n"
        "from harness.rows import frames; from harness.store import Home\n"
        "folder = Path(sys.argv[1]); suite = load_suite(folder / 'suite.yaml'); out = folder / 'runs'\n"
        "for turn in range(40):\n"
        "    if turn % 4 == int(sys.argv[2]): (out / 'cache/store/made.npz').unlink(missing_ok=True)\n"
        "    entries = make_plan(suite, out, folder / 'reports')\n"
        "    texts = [f.to_csv() for f in frames(entries, Home(out, 'made'))[:3]]\n"
        "    assert turn == 0 or texts == before; before = texts\n"
        "import hashlib; print(hashlib.sha256(''.join(texts).encode()).hexdigest())\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(made.folder), str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    ends = [run.communicate(timeout=200) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    assert ends[0][0] == ends[1][0] and len(ends[0][0]) == 65
    assert sorted(p.name for p in (made.folder / "runs/cache/store").iterdir()) == ["made.json", "made.npz"]


def test_categories_are_sorted_and_all_used(made: Made, reads: Reads) -> None:
    shutil.rmtree(made.suite.cells[0].folder(made.folder / "runs"))
    cases = frames(made.plan(), made.home).cases
    for name in ("dataset", "loss", "patient", "class", "metric", "status", "train_id"):
        names = list(cases[name].cat.categories)
        assert names == sorted(set(cases[name])), name


def test_records_out_of_the_index_equal_those_read(made: Made, reads: Reads) -> None:
    again = made.plan()
    assert reads.since() == []
    for entry in again:
        assert entry.folder is not None
        assert json.dumps(entry.record.__dict__) == json.dumps(store.read_record(entry.folder / "record.json").__dict__)


def test_numbers_keep_every_bit() -> None:
    rng = np.random.default_rng(0)
    values = [float(v) for v in rng.random(200)] + [5e-324, 1.7976931348623157e308, 0.1 + 0.2, math.pi]
    found = rows._floats([repr(v) for v in values] + [""])
    assert [*found[:-1]] == values and math.isnan(found[-1])
    assert pd.Series(found).isna().sum() == 1
