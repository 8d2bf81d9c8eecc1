"""What the page is made of: columns of the leaderboard, curves and slices as numbers, commands, choices."""

import fnmatch
import json
import re
import shlex
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import harness.report.page as page_module
from harness.report import Panel, write_report
from harness.report.board import BoardCell, BoardColumn, boards
from harness.report.charts import chart, points_per_line
from harness.report.figures import CurveKind, Picture
from harness.report.frames import prepare
from harness.report.page import facets, render
from harness.report.provenance import cell_command, cell_rows
from harness.report.qualitative import viewer_data
from harness.report.view import Block, Column, Entry, Head, Row, TableView
from harness.report.words import attribute, number
from harness.results import run_command
from harness.suite import load_suite

STYLE = (Path(page_module.__file__).parent / "templates/style.css").read_text(encoding="utf-8")


def two(frame):
    frame.cell("dice", step_ms=9.0).case("dice", 0.5).case("dice", 7.0, metric="hd95")
    frame.cell("ce", step_ms=4.0, targets_ms=None).case("ce", 0.75).case("ce", 9.0, metric="hd95")
    frame.cell("ce", 1, "diverged").cell("late", status="missing")
    return prepare(*frame.frames)


def test_a_column_more_stands_behind_the_first_measure(frame):
    verdict = BoardColumn("Verdict", {("unet", "ce"): BoardCell("better", 1.0, mark="best")}, kind="text")
    (board,) = boards(two(frame), {"synapse": [verdict]})
    headings = ["DSC (%)", "single runs", "Verdict", "HD95 (mm)", "Runs", "ms/step", "of it, maps", "Peak MB"]
    assert [c.heading for c in board.columns] == headings
    assert board.blocks == {"unet": ["ce", "dice", "late"]}  # by the first measure, what has none last
    dsc, _, verdict, _, runs, step, maps, _ = (c.cell("unet", "ce") for c in board.columns)
    assert (dsc.text, dsc.small, dsc.key) == ("75.00", "± n/a", "0.75")
    assert (runs.text, runs.alert, runs.key) == ("1/2", "1 diverged", "1.0")
    assert (step.text, maps.text, maps.key) == ("4.0", "–", "")
    late = [c.cell("unet", "late") for c in board.columns]
    assert [(e.text, e.key) for e in (late[0], late[2], late[5])] == [("–", "")] * 3
    html = render(
        "T", "", prepare(*frame.frames), {}, [], {}, verdict="ce wins.", extra={"synapse": [verdict_of("ce")]}
    )
    assert '<p class="lede">ce wins.</p>' in html
    assert '<span class="best">better</span><span class="vh"> best</span>' in html


def verdict_of(loss):
    return BoardColumn("Verdict", {("unet", loss): BoardCell("better", "better", mark="best")}, kind="text")


def test_the_order_of_the_page(frame, tmp_path):
    html = write_report("T", "", *_whole(frame), tmp_path, about={"notes": ["n"], "data": [{"a": "b"}]}).read_text()
    first = html.index('<p class="lede">')
    sections = re.findall(r'<section id="(\w+)"', html)
    assert first < html.index("<section")
    assert sections == [
        "leaderboard", "failures", "cost", "statistics", "survey_table", "curves", "distributions", "notes",
        "fairness", "data", "provenance",
    ]  # fmt: skip


def _whole(frame):
    return frame.cell("dice").case("dice", 0.5).case("dice", 0.5, **{"class": "b"}).curve("t0", [1.0, 0.5]).frames


def test_tables_of_a_layout_and_figures_of_cost_stand_in_their_sections(frame):
    row = Row("dice", (Entry(81.0, mark="best"), Entry()))
    view = TableView("loss_by_model", "synapse", "Loss", (Head("DSC (%)", 2, lower=False),), (Column("unet"), Column("net")),
                     (Block("", (row,)),))  # fmt: skip
    frames = prepare(*_whole(frame))
    cost = Picture("gain", '<svg role="img" aria-label="g"></svg>', "Gain against cost", "c")
    html = render("T", "", frames, {"cost": [cost]}, ["loss_by_model", "cost"], {}, views=[view], verdict="None.")
    assert len(re.findall(r'<section id="cost"', html)) == 1
    section = html[html.index('<section id="cost"') : html.index('<section id="loss_by_model"')]
    assert 'aria-label="g"' in section
    assert '<span class="best">81.00</span>' in html[html.index('<section id="loss_by_model"') :]


def test_the_choices_of_the_filter_are_written_as_the_tables_write_them(frame):
    frame.cell("dice").case("dice", 0.5, **{"class": "left_kidney"}).case("dice", 5.0, metric="hd95")
    assert facets(prepare(*frame.frames)) == {
        "dataset": ["synapse"], "model": ["unet"], "metric": ["DSC (%)", "HD95 (mm)"], "class": ["left kidney", "liver"],
    }  # fmt: skip


LOSS = CurveKind("loss_value", 1.0, "training loss", "t", True, "c")


def test_curves_hold_mean_and_range_over_runs(frame):
    frame.cell("dice", 0).cell("dice", 1).cell("dice", 2, "diverged").case("dice", 0.5).case("dice", 0.5, seed=1)
    frame.curve("t0", [1.0, 0.4]).curve("t1", [2.0, 0.8]).curve("t2", [1.0, 9.0, float("inf")])
    frames = prepare(*frame.frames)
    found = chart(frames, "synapse", LOSS, points_per_line(frames, 1))
    (model,) = found["models"]
    line = {"loss": 0, "runs": 2, "x": [0, 1], "y": [1.5, 0.6], "lo": [1.0, 0.4], "hi": [2.0, 0.8]}
    assert model["lines"] == [line]
    assert model["diverged"] == [{"loss": 0, "runs": 1, "x": [0, 1], "y": [1.0, 9.0]}]
    assert not model["log"]
    assert found["losses"][0]["name"] == "dice"


def test_curves_of_validation_are_numbers_too_in_per_cent_and_never_logarithmic(frame, tmp_path):
    frame.cell("dice").case("dice", 0.5).curve("t0", [1.0, 0.5])
    cells, cases, curves = frame.frames
    curves = curves.assign(val_dice=[0.001, 0.9])
    html = write_report("T", "", cells, cases, curves, tmp_path).read_text(encoding="utf-8")
    section = html[html.index('<section id="validation"') :]
    found = json.loads(unescape(re.search(r"data-charts='([^']*)'", section).group(1)))
    assert found["label"] == "validation DSC (%)" and found["alike"]
    assert '"alike":false' in unescape(html[: html.index('<section id="validation"')])  # of the loss
    assert found["title"] == "DSC of the validation cases per epoch on synapse"
    (model,) = found["models"]
    assert model["lines"] == [{"loss": 0, "runs": 1, "x": [0, 1], "y": [0.1, 90.0]}]
    assert not model["log"]  # although the values span more than a factor of 50
    assert html.count("data-charts=") == 2


def test_long_curves_are_thinned_to_a_bounded_page(frame, monkeypatch):
    monkeypatch.setattr("harness.report.charts.MAX_POINTS", 60)
    for i in range(3):
        frame.cell(f"l{i}").case(f"l{i}", 0.5).curve(f"t{i}", [100.0 / (e + 1) for e in range(1000)])
    frames = prepare(*frame.frames)
    found = chart(frames, "synapse", LOSS, points_per_line(frames, 1))
    for line in found["models"][0]["lines"]:
        assert line["x"][0] == 0 and line["x"][-1] == 999 and len(line["x"]) <= 21
    assert found["models"][0]["log"]


def test_the_command_of_a_cell_selects_that_cell_alone(frame):
    names = ["tversky(fn_weight=0.7, fp_weight=0.3)", "a[1]*", "a1x", "it's"]
    for name in names:
        frame.cell(name, 3, fold=1).case(name, 0.5, seed=3, fold=1)
    rows = cell_rows(prepare(*frame.frames), {"commands": ["bench run toy.yaml --quick", "bench report toy.yaml"]})
    for name, row in zip(names, rows, strict=True):
        words = shlex.split(row["command"])
        assert words[:4] == ["bench", "run", "toy.yaml", "--quick"]
        only = dict(w.split("=", 1) for w in words[5::2])
        assert (only["model"], only["dataset"], only["fold"], only["seed"]) == ("unet", "synapse", "1", "3")
        assert [n for n in names if n == only["loss"] or fnmatch.fnmatchcase(n, only["loss"])] == [name]
    given = cell_rows(prepare(*frame.frames), {"commands": []})
    assert [r["command"] for r in given] == [""] * 4
    assert "fold" not in cell_command("bench run x", {"loss": "a", "model": "m", "dataset": "d", "fold": -1, "seed": 0})


def test_the_viewer_holds_the_cropped_slice_and_closed_contours():
    truth = np.zeros((30, 40), dtype=int)
    truth[10:12, 20:23] = 1
    panel = Panel("c", "d", "m", np.arange(1200.0).reshape(30, 40), truth, {"ce": 0 * truth}, {1: "liver", 2: "spleen"})
    data = viewer_data(panel)
    # Two rows and three columns with a margin of two on each side.
    assert (data["height"], data["width"]) == (6, 7)
    assert [one["name"] for one in data["classes"]] == ["liver"]
    assert [layer["name"] for layer in data["layers"]] == ["reference", "ce"]
    path = data["layers"][0]["paths"][0]
    points = [tuple(map(float, p.split())) for p in re.findall(r"[\d.]+ [\d.]+", path)]
    assert path.startswith("M") and points[0] == points[-1]
    xs, ys = zip(*points, strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == (2.0, 5.0, 2.0, 4.0)  # the label's own edges
    assert data["layers"][1]["paths"] == [""]
    assert data["image"].startswith("data:image/png;base64,")
    bare = viewer_data(Panel("c", "d", "m", None, truth, {"ce": truth}, {1: "liver"}))
    assert bare["image"] is None


def test_json_in_an_attribute_cannot_leave_it(frame, tmp_path):
    nasty = "'><script>alert(1)</script>&amp;\u2028"
    text = str(attribute({"name": nasty}))
    assert not set("'<>") & set(text)
    frame.cell(nasty).case(nasty, 0.5).curve("t0", [1.0, 0.5])
    html = write_report("T", "", *frame.frames, tmp_path).read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    found = re.search(r"data-charts='([^']*)'", html)
    assert found is not None
    assert json.loads(unescape(found.group(1)))["losses"][0]["name"] == nasty
    with pytest.raises(ValueError, match="not JSON compliant"):
        attribute(float("nan"))


def test_a_page_too_large_refers_to_the_files_beside_it(frame, tmp_path, monkeypatch):
    frames = _whole(frame)
    monkeypatch.setattr(page_module, "INLINE_BUDGET", 10)
    html = write_report("T", "", *frames, tmp_path).read_text(encoding="utf-8")
    linked = re.findall(r'<img src="(figures/[^"]+)"', html)
    assert len(linked) == 2 and all((tmp_path / name).is_file() for name in linked)


def test_both_ways_to_be_dark_have_the_same_colours():
    blocks = re.findall(r"--paper: #14171b;[^}]*", STYLE)
    assert len(blocks) == 2
    assert blocks[0].split() == blocks[1].split()


def test_numbers_are_written_for_reading():
    assert [number(x, 1) for x in (1234.56, -0.5, float("nan"), None)] == ["1\u202f234.6", "\u22120.5", "–", "–"]


@pytest.mark.parametrize("quick", [False, True])
def test_the_commands_of_a_page_work_as_they_stand(tmp_path, quick):
    """A suite that ships is found by its name from anywhere, by its file only from `suites/`."""
    flag = " --quick" if quick else ""
    ours = load_suite("quickstart", quick)
    assert run_command(ours) == run_command(ours, "elsewhere/x.yaml") == f"bench run quickstart{flag}"
    copy = tmp_path / "my suite.yaml"
    copy.write_text(ours.text)
    assert run_command(load_suite(copy, quick)) == f"bench run 'my suite.yaml'{flag}"
