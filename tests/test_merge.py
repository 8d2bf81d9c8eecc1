"""One report of several suites: what stands side by side, what is kept apart."""

from __future__ import annotations

import os
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cell import Place
from harness.claims import holder_of
from harness.cli import main
from harness.errors import BenchError
from harness.merge import merge, report_merged
from harness.plan import Entry, make_plan
from harness.records import CASE_COLUMNS, RunRecord, write_rows
from harness.report import write_report
from harness.suite import Suite, load_suite

MANIFEST = """\
name: {name}
title: Made
licence: none
attribution: nobody
obtain: It cannot be had.
layout: {{decathlon: {{folder: {name}}}}}
modalities: [MRI]
labels: {{disc: 1, ring: 2}}
intensity: {{zscore: volume}}
cases: [c0, c1, c2, c3, c4, c5, c6, c7]
splits: {{s: {{val: [c0], test: [c4, c5, c6, c7]}}}}
"""
SUITE = """\
suite: {name}
data: {data}
models: [unet]
losses: [{losses}]
seeds: 3
train: {{epochs: {epochs}, steps: 4, batch: 4, optimizer: {{adamw: {{lr: 3e-3}}}}}}
metrics: {metrics}
rank: {{by: [dice]}}
report: {{layout: [survey_table], notes: [Said by {name}.]}}
"""


def suite_of(
    folder: Path, name: str, losses: str, *, data: str = "m", epochs: int = 2, metrics: str = "[dice]"
) -> Suite:
    text = "[" + ", ".join(f"{{manifest: {d}.yaml, split: s, slices: {{size: [32, 32]}}}}" for d in data.split()) + "]"
    path = folder / f"{name}.yaml"
    path.write_text(SUITE.format(name=name, losses=losses, data=text, epochs=epochs, metrics=metrics))
    return load_suite(path)


def leave(suite: Suite, out: Path) -> None:
    """Records that were written, not run: the same for the same cell."""
    for cell in suite.cells:
        rng = random.Random(cell.train_id)
        folder = cell.eval_folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {**cell.labels, "patient": c, "case": c, "class": name, "metric": "dice", "profile": "voxel-max", "unit": "1",
             "value": 0.6 + 0.3 * rng.random(), "worst": 0.0, "status": "ok"}
            for c in cell.data["test"] for name in ("disc", "ring")
        ]  # fmt: skip
        write_rows(folder / "cases.csv", CASE_COLUMNS, rows)
        write_rows(
            folder.parent / "curve.csv", ["epoch", "step", "lr", "loss"], [{"epoch": 0, "step": 4, "lr": 1, "loss": 1}]
        )
        RunRecord(
            cell.train_id, cell.eval_id, "ok", "", cell.described(), {"init": "i", "batches": "b"}, cell.train_id, {},
            {"device": "cpu"}, cell.sources,
        ).write(folder / "record.json")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("m", "n"):
        (tmp_path / f"{name}.yaml").write_text(MANIFEST.format(name=name))
    return tmp_path


def plans(folder: Path, *suites: Suite) -> list[tuple[Suite, list[Entry]]]:
    for suite in suites:
        leave(suite, folder / "runs")
    return [(s, make_plan(s, folder / "runs", folder / "reports")) for s in suites]


def written(folder: Path, *suites: Suite, formats: tuple[str, ...] = ("csv",)) -> Path:
    """The folder of the report `both`."""
    place, reports = Place(folder / "runs", None), folder / "reports"
    report_merged("both", plans(folder, *suites), place, reports, formats)
    return reports / "both"


def test_the_same_protocol_stands_side_by_side_and_a_shared_cell_counts_once(folder: Path) -> None:
    a, b = suite_of(folder, "a", "ce, dice"), suite_of(folder, "b", "dice, focal")
    merged = merge(plans(folder, a, b))
    assert [e.cell.loss_label for e in merged.entries] == ["ce"] * 3 + ["dice"] * 3 + ["focal"] * 3
    assert merged.owners == ("a",) * 6 + ("b",) * 3 and merged.notes == ()
    assert {e.cell.train_id for e in merged.entries} == {c.train_id for s in (a, b) for c in s.cells}
    out = written(folder, a, b, formats=("html", "csv"))
    first = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    written(folder, a, b, formats=("html", "csv"))
    assert first == {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    board = pd.read_csv(out / "leaderboard.csv")
    assert board["loss"].tolist() == ["ce", "dice", "focal"] and board["runs_ok"].tolist() == [3, 3, 3]
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "a: Said by a." in text and "b: Said by b." in text
    # each run says how its own suite makes it
    commands = [shlex.split(c) for c in pd.read_csv(out / "cells.csv")["command"]]
    assert [c[2] for c in commands] == ["a.yaml"] * 6 + ["b.yaml"] * 3
    assert commands[-1][3:] == [
        "--only",
        "loss=focal",
        "--only",
        "model=unet",
        "--only",
        "dataset=m",
        "--only",
        "seed=2",
    ]
    assert "bench report a.yaml b.yaml --merge both" in text


def test_another_protocol_is_kept_apart_and_the_reason_said(folder: Path) -> None:
    a, b = suite_of(folder, "a", "ce, dice"), suite_of(folder, "b", "dice, focal", epochs=3)
    merged = merge(plans(folder, a, b))
    assert {e.cell.dataset for e in merged.entries} == {"m [a]", "m [b]"} and len(merged.entries) == 12
    assert merged.notes == ("m stands once for each of a, b: they differ in train.epochs (2 and 3).",)
    out = written(folder, a, b)
    board = pd.read_csv(out / "leaderboard.csv")
    assert list(zip(board["dataset"], board["loss"], strict=True)) == [
        ("m [a]", "ce"), ("m [a]", "dice"), ("m [b]", "dice"), ("m [b]", "focal"),
    ]  # fmt: skip
    last = shlex.split(pd.read_csv(out / "cells.csv")["command"].iloc[-1])
    assert "dataset=m" in last and "b.yaml" in last  # the name that the suite knows


def test_tuned_suites_of_one_budget_stand_side_by_side_also_where_a_loss_has_nothing_to_tune(folder: Path) -> None:
    def tuned(name: str, losses: str, trials: int = 4) -> Suite:
        path = suite_of(folder, name, losses).path
        path.write_text(path.read_text() + f"tune: {{trials: {trials}}}\n")
        return load_suite(path)

    a, b = tuned("a", "dice, focal"), tuned("b", "dice, tversky")
    assert [("tune" in c.train) for c in a.cells] == [False] * 3 + [True] * 3
    assert merge(plans(folder, a, b)).notes == ()
    others = {"c": tuned("c", "tversky", 5), "d": suite_of(folder, "d", "tversky")}
    for name, other in others.items():
        (note,) = merge(plans(folder, a, other)).notes
        assert note.startswith(f"m stands once for each of a, {name}: they differ in tune")


def test_other_data_sets_stand_beside_each_other_and_the_ranking_is_made_without_each(folder: Path) -> None:
    a, b = suite_of(folder, "a", "ce, dice, focal"), suite_of(folder, "b", "ce, dice, focal", data="n")
    out = written(folder, a, b)
    taus = pd.read_csv(out / "tables/sensitivity.csv")
    left = taus[taus["choice"] == "data set left out"]
    assert left["variant"].tolist() == ["m", "n"] and left["losses"].tolist() == [3, 3]
    # left out of two, the ranking is that of the other
    cases = pd.read_csv(out / "cases.csv")
    means = cases.groupby(["dataset", "loss"])["score"].mean()
    assert left["first"].tolist() == [means["n"].idxmax(), means["m"].idxmax()]


def test_a_name_that_is_taken_or_no_name_and_one_suite_alone_are_refused(folder: Path) -> None:
    a, b = suite_of(folder, "a", "ce"), suite_of(folder, "b", "dice")
    planned = plans(folder, a, b)
    place, reports = Place(folder / "runs", None), folder / "reports"
    with pytest.raises(BenchError, match="is the report of a suite; choose another name"):
        report_merged("a", planned, place, reports)
    (reports / "page").mkdir(parents=True)
    (reports / "page/report.json").write_text("{}")
    with pytest.raises(BenchError, match="is the report of a suite"):
        report_merged("page", planned, place, reports)
    (reports / "kept/records").mkdir(parents=True)
    with pytest.raises(BenchError, match="is the report of a suite"):
        report_merged("kept", planned, place, reports)
    with pytest.raises(BenchError, match=re.escape("--merge '../x': expected letters")):
        report_merged("../x", planned, place, reports)
    with pytest.raises(BenchError, match="give two suites or more"):
        report_merged("both", planned[:1], place, reports)
    with pytest.raises(BenchError, match="two suites are called 'a'"):
        merge([planned[0], planned[0]])


@pytest.mark.parametrize("images", [False, True])
def test_it_is_written_under_a_lease(folder: Path, monkeypatch: pytest.MonkeyPatch, images: bool) -> None:
    """So that a second command that writes the same report waits for the first."""
    planned = plans(folder, suite_of(folder, "a", "ce"), suite_of(folder, "b", "dice"))
    reports = folder / "reports"
    holders = []

    def write(*args: Any, **more: Any) -> Path:
        holders.append(holder_of(args[5]))
        return write_report(*args, **more)

    monkeypatch.setattr("harness.report.write_report", write)
    place = Place(folder / "runs", None)
    page = report_merged("both", planned, place, reports, ("csv",), images=images)
    assert [h.about["pid"] for h in holders if h is not None] == [os.getpid()]
    assert (page / "leaderboard.csv").is_file() and holder_of(page) is None


def test_the_command_merges_and_refuses_what_cannot_be_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans(folder, suite_of(folder, "a", "ce"), suite_of(folder, "b", "dice"))
    monkeypatch.chdir(folder)
    assert main(["report", "a.yaml", "b.yaml", "--merge", "both", "--format", "csv"]) == 0
    assert (folder / "reports/both/leaderboard.csv").is_file() and not (folder / "reports/a").exists()
    for flags, words in (
        (["--merge", "both"], "records are committed suite by suite"),
        (["--with-images"], "for your own eyes"),
    ):
        assert main(["report", "a.yaml", "b.yaml", "--commit", *flags]) == 2
        assert words in capsys.readouterr().err
    assert not (folder / "reports/a").exists()
