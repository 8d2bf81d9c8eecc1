import hashlib
import math
import os
import re
import signal
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from harness.errors import BenchError
from harness.report.figures import (
    FIGURES,
    case_differences,
    case_ranks,
    class_table,
    cost_points,
    curve_panel,
    draw,
    draw_all,
    epoch_means,
    finished,
    loss_curves,
    running_median,
    sweeps_of,
    validation_curves,
    validation_metrics,
    volume_effects,
)
from harness.report.figures.base import alike, grid, looks, lowest, plain, short
from harness.report.figures.cases import MAX_COLUMNS, merged
from harness.report.figures.cells import behind_edges, nice, signed_edges
from harness.report.figures.classes import best_of
from harness.report.figures.curves import MAX_EPOCHS
from harness.report.figures.ranks import cliques, critical_distance, layers
from harness.report.figures.sweeps import MAX_LINES, drawn
from harness.report.frames import prepare
from harness.report.palette import COLOURS, slug, style_of
from harness.report.qualitative import Panel, crop
from harness.report.tables import Measure

DICE, HD95 = Measure("dice", "voxel-max", "1"), Measure("hd95", "voxel-max", "mm")
NASTY = "<b>Lov\u00e1sz</b> \"'/..\\&amp; $x_1$ _{{ 7*7 }} \u640d\u5931 \x00\n0.123456 " + "long " * 30


def lines(ax):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist(), line.get_linestyle()) for line in ax.get_lines()]


def parsed(svg):
    """The element of the page; there it needs no name spaces."""
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def counts(frame, loss, patient, tp, fn, **more):
    """Voxels of the reference: TP + FN."""
    for metric, value in (("tp", tp), ("fn", fn)):
        frame.case(loss, value, patient=patient, metric=metric, unit="voxels", worst=None, **more)
    return frame


def many(frame, losses, patients=12, model="unet", classes=("liver", "gall_bladder"), seeds=(0, 1)):
    """Every section has something to draw."""
    for i, loss in enumerate(losses):
        for seed in seeds:
            train = f"t{len(frame.cell_rows)}"
            frame.cell(loss, seed, model=model, step_ms=10.0 + 3 * i + seed).curve(train, [1.0, 0.5, 0.2 + 0.1 * i])
            for epoch, row in enumerate(frame.curve_rows[-3:]):
                row["val_dice"] = 0.2 + 0.2 * epoch - 0.01 * i
            for p in range(patients):
                for c, label in enumerate(classes):
                    more = {"seed": seed, "model": model, "patient": f"p{p}", "class": label}
                    value = 0.9 - 0.05 * i + 0.003 * ((p * (i + 2) + c) % 7) + 0.001 * seed
                    frame.case(loss, value, **more).case(loss, 5.0 + i + p, metric="hd95", **more)
                    counts(frame, loss, tp=40.0 * (p + 1), fn=10.0 * c, **more)
    return frame


def test_a_line_is_the_mean_over_seeds_and_a_diverged_run_stands_alone(frame):
    frame.cell("dice", 0).cell("dice", 1).case("dice", 0.5).case("dice", 0.5, seed=1)
    frame.cell("dice", 2, "diverged").cell("dice", 3, "stale")
    frame.curve("t0", [1.0, 0.4]).curve("t1", [2.0, 0.8]).curve("t2", [1.0, 9.0]).curve("t3", [5.0, 5.0])
    frames = prepare(*frame.frames)
    ax = Figure().subplots()
    assert not curve_panel(ax, [(looks(["dice"])["dice"], finished(frames, "synapse", "loss_value"))])
    mean, alone, cross = lines(ax)
    # (1 + 2) / 2 = 1.5 and (0.4 + 0.8) / 2 = 0.6; the stale run is not drawn.
    assert mean[:2] == ([0, 1], pytest.approx([1.5, 0.6]))
    assert alone == ([0, 1], [1.0, 9.0], ":")
    assert cross[0] == [1] and cross[1][0] == ax.get_ylim()[1] < 9  # the cross stands where the curve leaves the frame
    band = np.concatenate([p.vertices for c in ax.collections for p in c.get_paths()])
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.4, 2.0))


@pytest.mark.parametrize("values, logged", [([1.0, 0.03], False), ([1.0, 0.01], True), ([1.0, -0.5], False)])
def test_the_axis_is_logarithmic_from_a_factor_of_fifty(frame, values, logged):
    rows = finished(prepare(*frame.cell("dice").case("dice", 0.5).curve("t0", values).frames), "synapse", "loss_value")
    ax = Figure().subplots()
    assert curve_panel(ax, [(looks(["dice"])["dice"], rows)]) is logged
    assert ax.get_yscale() == ("log" if logged else "linear")
    ax = Figure().subplots()
    assert not curve_panel(ax, [(looks(["dice"])["dice"], rows)], logged=False)


def test_of_many_epochs_the_last_one_stays(frame):
    rows = pd.DataFrame({"epoch": range(2 * MAX_EPOCHS), "value": 1.0})
    found = epoch_means(rows)["epoch"].tolist()
    assert found[:2] == [0, 2] and found[-2:] == [2 * MAX_EPOCHS - 2, 2 * MAX_EPOCHS - 1]


def test_a_training_of_one_epoch_is_a_marker_with_the_range_of_its_runs(frame):
    frame.cell("dice").cell("dice", 1).case("dice", 0.5).case("dice", 0.5, seed=1)
    frames = prepare(*frame.curve("t0", [1.0]).curve("t1", [2.0]).frames)
    for small in (False, True):
        ax = Figure().subplots()
        curve_panel(ax, [(looks(["dice"])["dice"], finished(frames, "synapse", "loss_value"))], small=small)
        assert ax.get_lines()[0].get_marker() == "o"
        assert ax.collections[0].get_linewidth() > 0


def test_curves_that_are_not_finite_and_names_like_hidden_labels(frame, tmp_path):
    frame.cell("_hidden").case("_hidden", 0.5).curve("t0", [1.0, float("nan"), float("inf")])
    picture = loss_curves(prepare(*frame.frames), "synapse", tmp_path, "x")
    assert picture is not None
    assert ">_hidden</text>" in picture.svg
    assert picture.svg.startswith('<svg role="img" aria-label="Training loss per epoch on synapse"')


def test_validation_curves_are_the_columns_that_name_a_metric(frame, tmp_path):
    frame.cell("dice").case("dice", 0.5).curve("t0", [1.0, 0.5])
    for row, value in zip(frame.curve_rows, (0.25, None), strict=True):
        row |= {"val_dice": value, "val_hd95": None, "val_of_my_loss": 3.0}
    frames = prepare(*frame.frames)
    assert validation_metrics(frames, "synapse") == ["dice"]
    rows = finished(frames, "synapse", "val_dice")
    assert rows[["epoch", "value"]].to_numpy().tolist() == [[0, 0.25]]
    picture = validation_curves(frames, "synapse", "dice", tmp_path, "v")
    assert picture is not None and "validation DSC (%)" in picture.svg
    assert validation_curves(frames, "synapse", "hd95", tmp_path, "w") is None  # nothing was kept
    assert validation_curves(frames, "synapse", "iou", tmp_path, "w") is None  # no such column


def test_sweeps_differ_in_one_argument_or_in_those_that_move_together():
    labels = [
        "dice", "focal", "focal(gamma=1)", "focal(gamma=2)", "ce(weight=[0.1, 1])",
        "tversky(a=0.2, b=0.8)", "tversky(a=0.4, b=0.6)", "dice + focal(gamma=1)",
        "combo(x=1, y=1)", "combo(x=2, y=1)", "combo(x=1, y=2)",
    ]  # fmt: skip
    found = {(s.title, *(value for _, value in s.settings)) for s in sweeps_of(labels)}
    assert found == {
        ("focal: gamma", "default", "1", "2"),
        ("tversky: a, b", "0.2, 0.8", "0.4, 0.6"),
        ("combo: x (y=1)", "1", "2"),
        ("combo: y (x=1)", "1", "2"),
    }
    assert sweeps_of(["dice", "ce"]) == []
    kept = drawn([(f"focal(gamma={i})", str(i)) for i in range(28)])
    assert [v for _, v in kept] == [str(3 * i) for i in range(MAX_LINES)]  # 27 / 9 = 3: first and last stay


def test_the_map_of_classes_has_the_means_of_the_tables(frame):
    # dice: liver (80 + 90) / 2 = 85 and spleen 60, mean 72.5; focal: liver 70 and spleen 80, mean 75.
    frame.cell("dice", 0).cell("focal", 0).cell("focal", 1, "diverged")
    frame.case("dice", 0.8).case("dice", 0.9, patient="p2").case("dice", 0.6, **{"class": "spleen"})
    frame.case("focal", 0.7).case("focal", 0.8, **{"class": "spleen"})
    frame.case("dice", 4.0, metric="hd95").case("focal", 3.0, metric="hd95")
    frames = prepare(*frame.frames)
    table = class_table(frames, "synapse", "unet", DICE)
    assert table.index.tolist() == ["focal", "dice"]
    assert table.columns.tolist() == [("class", "liver"), ("class", "spleen"), ("mean", "")]
    assert table.to_numpy() == pytest.approx(np.array([[70, 80, 75], [85, 60, 72.5]]))
    best = best_of(table, DICE, set())
    assert best.to_numpy().tolist() == [[False, True, True], [True, False, False]]
    # focal lacks a run, so nothing of it is the best, and one loss alone is none
    assert not best_of(table, DICE, {"focal"}).to_numpy().any()
    hd95 = class_table(frames, "synapse", "unet", HD95)
    assert hd95.index.tolist() == ["focal", "dice"] and hd95.columns.tolist() == [("class", "liver")]
    assert hd95["class", "liver"].tolist() == [3.0, 4.0]


def test_the_map_of_classes_pools_counts_and_keeps_a_class_called_mean(frame):
    for loss, tp in (("dice", 30.0), ("focal", 10.0)):
        frame.cell(loss)
        for label in ("mean", "spleen"):
            counts(frame, loss, "p1", tp, 10.0, **{"class": label})
            frame.case(loss, 10.0, metric="fp", unit="voxels", worst=None, **{"class": label})
    frames = prepare(*frame.frames, pooled=("miou",))
    table = class_table(frames, "synapse", "unet", Measure("miou", "voxel-max", "1"))
    assert table.columns.tolist() == [("class", "mean"), ("class", "spleen"), ("mean", "")]
    # 30 / (30 + 10 + 10) = 60 % and 10 / 30 = 33.3 %
    assert table.loc["dice"].tolist() == pytest.approx([60, 60, 60])
    assert table.loc["focal"].tolist() == pytest.approx([100 / 3] * 3)


def test_steps_of_the_maps_are_round_and_double():
    assert [nice(v) for v in (0.23, 0.07, 1.0, 8.0, 3.5)] == [0.2, 0.05, 1.0, 10.0, 5.0]
    # of 1 to 10 the quantile 0.9 is 9.1; 9.1 / 8 = 1.1, so the step is 1, and no edge lies beyond the largest
    assert behind_edges(np.array([0.0, math.nan, *range(1, 11)])) == [1, 2, 4, 8]
    assert signed_edges(np.array([-2.0, 0.0, 2.0, math.nan])) == [-2, -1, -0.5, 0.5, 1, 2]
    assert behind_edges(np.zeros(3)) == [1.0]
    assert signed_edges(np.zeros(3)) == [-4, -2, -1, 1, 2, 4]


def volumes(frame):
    for loss, values in (("dice", (0.8, 0.6, 0.5)), ("focal", (0.7, 0.7, 0.5)), ("late", (0.9, None, 0.5))):
        frame.cell(loss)
        for patient, value, tp, fn in zip(("p1", "p2", "p3"), values, (90.0, 5.0, 0.0), (10.0, 5.0, 0.0), strict=True):
            if value is not None:
                counts(frame.case(loss, value, patient=patient), loss, patient, tp, fn)
    return prepare(*frame.frames)


def test_effects_are_differences_to_the_baseline_at_the_volume_of_the_reference(frame):
    frames = volumes(frame)
    found = volume_effects(frames, "synapse", "unet", "dice")
    assert found.columns.tolist() == ["loss", "patient", "class", "volume", "effect"]
    # p3 has no voxel of the class in the reference, and late has no number for p2
    rows = [(r.loss, r.patient, r.volume, round(r.effect, 6)) for r in found.itertuples()]
    assert rows == [("focal", "p1", 100, -10), ("focal", "p2", 10, 10), ("late", "p1", 100, 10)]
    # without a baseline: the mean of dice and focal, which have every number; 75 for p1, 65 for p2
    found = volume_effects(frames, "synapse", "unet")
    rows = {(r.loss, r.patient): round(r.effect, 6) for r in found.itertuples()}
    assert rows == {
        ("dice", "p1"): 5, ("dice", "p2"): -5, ("focal", "p1"): -5, ("focal", "p2"): 5, ("late", "p1"): 15,
    }  # fmt: skip


def test_a_baseline_that_is_no_loss_is_named(frame):
    with pytest.raises(BenchError, match=r"baseline: 'dise' is no loss of this suite; expected one of dice, focal"):
        volume_effects(volumes(frame), "synapse", "unet", "dise")


def test_the_running_median_moves_over_thirty_per_cent_of_the_points():
    x = np.arange(30.0)[::-1]
    at, median = running_median(x, x**2)
    # windows of 9 of the 30 points, 22 of them: the first around 4, the last around 25
    assert at.tolist() == list(range(4, 26)) and median.tolist() == [v**2 for v in range(4, 26)]
    assert [len(v) for v in running_median(x[:6], x[:6])] == [0, 0]


def test_gain_and_cost_are_means_over_runs_and_the_front_is_beaten_by_none(frame):
    for loss, ms, scores in (("dice", (4.0, 6.0), (0.8, 0.9)), ("focal", (9.0, 11.0), (0.9, 0.9)),
                             ("slow", (20.0, 20.0), (0.9, 0.9)), ("odd", (None, None), (0.5, 0.5))):  # fmt: skip
        for seed in (0, 1):
            frame.cell(loss, seed, step_ms=ms[seed]).case(loss, scores[seed], seed=seed)
    found = cost_points(prepare(*frame.frames), "synapse", "unet")
    assert found["loss"].tolist() == ["dice", "focal", "slow"]  # odd has no time
    assert found["ms"].tolist() == [5, 10, 20]
    # SD of 4 and 6: sqrt(2); of 80 and 90: sqrt(50)
    assert found["ms_sd"].tolist() == pytest.approx([math.sqrt(2), math.sqrt(2), 0])
    assert found["score"].tolist() == pytest.approx([85, 90, 90])
    assert found["score_sd"].tolist() == pytest.approx([math.sqrt(50), 0, 0])
    assert found["front"].tolist() == [True, True, False]


def test_the_map_of_cases_is_relative_to_the_patients_mean(frame):
    frame.cell("dice").cell("focal").cell("late")
    for loss, values in (("dice", (0.8, 0.5)), ("focal", (0.6, 0.7)), ("late", (0.9, None))):
        for patient, value in zip(("p1", "p2"), values, strict=True):
            if value is not None:
                frame.case(loss, value, patient=patient)
    found = case_differences(prepare(*frame.frames), "synapse", "unet")
    # means over dice and focal, which have both patients: 70 for p1 and 60 for p2, who comes first
    assert found.columns.tolist() == ["p2", "p1"] and found.index.tolist() == ["late", "dice", "focal"]
    assert found.to_numpy() == pytest.approx(np.array([[math.nan, 20], [-10, 10], [10, -10]]), nan_ok=True)
    wide = merged(pd.DataFrame(np.tile(np.arange(2.0 * MAX_COLUMNS), (2, 1))))
    assert wide.shape == (2, MAX_COLUMNS) and wide[0, :2].tolist() == [0.5, 2.5]


def test_critical_differences_are_demsars():
    # Demšar, 2006, section 3.2.2 and Table 5: q = 2.569 for 4 classifiers; 14 data sets
    assert critical_distance(4, 14) == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=5e-4)
    assert cliques((1.0, 1.5, 3.0, 4.2, 4.2), 2.1) == ((0, 2), (2, 4))
    assert cliques((1.0, 3.0), 2.0) == ()
    assert cliques((2.0, 2.0, 2.0), 0.5) == ((0, 2),)
    assert layers(((0, 2), (2, 4), (3, 5)), (1.0, 1.5, 3.0, 4.2, 4.2, 6.0), 0.1) == [0, 1, 0]


def ranked(frame, values, patients, **more):
    for loss, value in values.items():
        frame.cell(loss, **more)
        for p in range(patients):
            frame.case(loss, value(p), patient=f"p{p}")
    return prepare(*frame.frames)


def test_losses_are_ranked_within_each_patient(frame):
    # b is best for 9 of 10 patients and worst for one; a and c tie in the other nine
    values = {
        "a": lambda p: 0.5, "b": lambda p: 0.9 if p else 0.1, "c": lambda p: 0.5 if p else 0.4,
    }  # fmt: skip
    found = case_ranks(ranked(frame, values, 10), "synapse", "unet")
    assert found is not None and found.losses == ("b", "a", "c") and found.patients == 10
    assert found.ranks == pytest.approx(((9 * 1 + 3) / 10, (9 * 2.5 + 1) / 10, (9 * 2.5 + 2) / 10))
    # Friedman with ties: mean ranks 1.2, 2.35, 2.45; sum of squared deviations from 2: 0.965; 9 ties of two:
    # 12 * 10 * 0.965 / (3 * 4) / (1 - 9 * 6 / (10 * 24)) = 12.4516; p = exp(-chi / 2) with 2 degrees of freedom
    assert found.p == pytest.approx(math.exp(-12.4516 / 2), rel=1e-3)
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / 60), abs=5e-4)
    assert found.cliques == ((1, 2),)  # 1.15 apart is more than 1.048


def test_equal_losses_are_all_joined_and_a_loss_without_all_runs_is_left_out(frame):
    frames = ranked(frame, dict.fromkeys(("a", "b", "c", "d"), lambda p: 0.1 + 0.2), 10)
    found = case_ranks(frames, "synapse", "unet")
    assert found is not None and found.p == 1 and found.cliques == ((0, 3),)
    frames = prepare(*frame.cell("d", 1, "oom").frames)
    found = case_ranks(frames, "synapse", "unet")
    assert found is not None and found.losses == ("a", "b", "c") and found.excluded == ("d",)


@pytest.mark.parametrize("losses, patients, drawn", [(3, 10, True), (2, 10, False), (3, 9, False)])
def test_no_diagram_for_few_losses_or_patients(frame, losses, patients, drawn):
    values = {f"l{i}": lambda p, i=i: 0.5 + 0.1 * i for i in range(losses)}
    assert (case_ranks(ranked(frame, values, patients), "synapse", "unet") is not None) is drawn


def test_every_section_is_drawn_and_says_what_it_shows(frame, tmp_path):
    losses = ["dice", "focal(gamma=1)", "focal(gamma=2)"]
    frames = prepare(*many(frame, losses).frames)
    found = draw_all(frames, tmp_path, [*FIGURES, "survey_table"], baseline="dice")
    assert list(found) == [
        "curves", "validation", "sweeps", "classes", "volume", "cost", "distributions", "cases", "robustness",
    ]  # fmt: skip
    assert not found.pop("robustness")  # the suite has no such axis
    assert {k: len(v) for k, v in found.items()} == dict.fromkeys(found, 1) | {"sweeps": 2, "classes": 2, "cases": 2}
    for picture in (p for pictures in found.values() for p in pictures):
        assert {p.suffix for p in tmp_path.glob(f"{picture.name}.*")} == {".svg", ".png", ".pdf"}
        assert "synapse" in picture.title and picture.caption.endswith(".")
        parsed(picture.svg)
        assert "<image" not in picture.svg
    for picture in found["cases"]:
        assert "other cases, same trained networks" in picture.title
        assert "other cases, same trained networks" in picture.svg
    assert "No verdict on the losses" in found["cases"][1].caption
    assert "Difference of DSC to dice" in found["volume"][0].title


def test_sections_without_data_are_empty_and_others_are_not_drawn(frame, tmp_path):
    frames = prepare(*frame.cell("dice", status="missing").frames)
    assert draw_all(frames, tmp_path, list(FIGURES)) == {name: [] for name in FIGURES}
    frames = prepare(*frame.cell("focal").case("focal", 0.5).frames)  # one loss, one patient, no curve
    found = draw_all(frames, tmp_path, list(FIGURES))
    assert {k: len(v) for k, v in found.items()} == {name: int(name == "distributions") for name in FIGURES}
    assert draw_all(frames, tmp_path / "none", ["survey_table", "cost"]) == {"cost": []}
    assert not (tmp_path / "none").exists()


def test_no_dice_no_figures_of_dice(frame, tmp_path):
    for loss in ("a", "b", "c"):
        frame.cell(loss)
        for p in range(12):
            frame.case(loss, 2.0 + p, metric="hd95", patient=f"p{p}")
    found = draw_all(prepare(*frame.frames), tmp_path, list(FIGURES))
    assert {k for k, v in found.items() if v} == {"classes"}


def test_the_same_frames_give_the_same_bytes(frame, tmp_path):
    frames = prepare(*many(frame, ["dice", "focal(gamma=1)", "focal(gamma=2)"]).frames)
    made = []
    for name in ("a", "b"):
        draw_all(frames, tmp_path / name, list(FIGURES))
        files = sorted((tmp_path / name).iterdir())
        made.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert made[0] == made[1] and len(made[0]) == 3 * 11


def test_names_show_as_text_and_break_nothing(frame, tmp_path):
    losses = [NASTY, NASTY + "2", "a/../b", "_hidden", "</svg><script>alert(1)</script>", "f(x=<i>)", "f(x=$2^$)"]
    many(frame, losses, patients=10, model=NASTY, classes=(NASTY, "mean"), seeds=(0,))
    for rows in (frame.cell_rows, frame.case_rows):
        for row in rows:
            row["dataset"] = NASTY
    found = draw_all(prepare(*frame.frames), tmp_path, [k for k in FIGURES if k != "robustness"])
    assert all(found.values())
    for picture in (p for pictures in found.values() for p in pictures):
        root = parsed(picture.svg)
        assert {e.tag.rpartition("}")[2] for e in root.iter()}.isdisjoint({"script", "b", "i"})
        assert "\x00" not in picture.svg and "\n" not in picture.title
        ET.parse(tmp_path / f"{picture.name}.svg")
    assert {p.parent for p in tmp_path.rglob("*")} == {tmp_path}


def test_many_losses_and_patients_stay_within_a_page(frame, tmp_path):
    losses = [f"a loss with quite a long name, number {i}" for i in range(58)]
    many(frame, losses, patients=41, classes=("liver",), seeds=(0,))
    frames = prepare(*frame.frames)
    found = draw_all(frames, tmp_path, [k for k in FIGURES if k not in ("sweeps", "validation", "robustness")])
    assert all(found.values())
    for picture in (p for pictures in found.values() for p in pictures):
        width, height = (float(v) for v in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture.svg)[0])
        assert width < 11 * 72 and height < 22 * 72, picture.name
        assert len(picture.svg) < 700_000
    named = [p for p in (found["classes"][0], found["cases"][0], found["cases"][1], found["distributions"][0])]
    for picture in named:
        assert sum(f"number {i}<" in picture.svg for i in range(58)) == 58, picture.name
    assert "p7<" not in found["cases"][0].svg and "41 patients" in found["cases"][0].svg


def test_long_names_lose_their_middle():
    assert short("focal(gamma=2)", 34) == "focal(gamma=2)"
    cut = short("a" * 30 + "(gamma=2)", 20)
    assert len(cut) == 20 and cut.endswith("ma=2)") and "…" in cut
    assert plain(" a\n\x00b\ufffe\t\u640d ") == "a \ufffdb\ufffd \u640d"


def test_the_lowest_panels_of_a_grid_that_is_not_full():
    assert lowest([0, 1, 2, 3, 4], 3) == [2, 3, 4] and lowest([0, 1], 3) == [0, 1]


def test_dashes_tell_losses_apart_when_the_colours_come_round():
    names = [f"loss {i}" for i in range(4 * len(COLOURS))]
    assert len(set(style_of(names).values())) == len(names)
    assert len({(x.dashes, x.marker) for x in looks(names).values()}) == len(names)  # without colour


def test_file_names_are_plain_and_distinct():
    taken: set[str] = set()
    made = [slug(x, taken) for x in ("Lov\u00e1sz / softmax", "lovasz softmax", "\u635f\u5931", "../..", "a" * 99)]
    assert made == ["lovasz-softmax", "lovasz-softmax-2", "x", "x-2", "a" * 60]


def test_the_crop_holds_every_label_with_a_margin():
    truth, other = np.zeros((2, 40, 50), dtype=int)
    truth[10:20, 20:30] = 1
    other[12:22, 20:45] = 1
    other[39, 0] = 255  # ignored, and no class to draw
    panel = Panel("c", "d", "m", None, truth, {"dice": other}, {1: "liver"})
    # Rows 10..21, 12 of them: margin max(2, round(1.44)) = 2. Columns 20..44, 25 of them: margin 3.
    assert crop(panel) == (slice(8, 24), slice(17, 48))
    empty = Panel("c", "d", "m", None, 0 * truth, {"dice": 0 * other}, {1: "liver"})
    assert crop(empty) == (slice(0, 40), slice(0, 50))


def test_several_processes_draw_the_same_files(frame, tmp_path, monkeypatch):
    for loss in ("dice", "ce"):
        for seed in (1, 2):
            frame.cell(loss, seed)
            for i in range(4):
                frame.case(loss, 0.5 + 0.01 * seed + 0.1 * i, seed=seed, patient=f"p{i}")
    frames = prepare(*frame.frames)
    alone = draw_all(frames, tmp_path / "alone", ["classes", "distributions", "cases"])
    monkeypatch.setattr(draw, "FROM_CELLS", 0)
    monkeypatch.setattr(draw, "cores", lambda: 2)
    monkeypatch.setattr(draw.sys, "platform", "linux")
    assert draw_all(frames, tmp_path / "many", ["classes", "distributions", "cases"]) == alone
    files = sorted(p.name for p in (tmp_path / "alone").iterdir())
    assert len(files) == 9 and files == sorted(p.name for p in (tmp_path / "many").iterdir())
    for name in files:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def _ends(frames, group, folder, name):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process draws all")
def test_a_drawing_process_that_is_killed_is_said_in_a_sentence(frame, tmp_path, monkeypatch):
    frame.cell("dice").case("dice", 0.5)
    frame.cell("ce").case("ce", 0.6)
    frames = prepare(*frame.frames)
    monkeypatch.setattr(draw, "FROM_CELLS", 0)
    monkeypatch.setattr(draw, "cores", lambda: 2)
    monkeypatch.setattr(draw, "cost_gain", _ends)
    with pytest.raises(BenchError, match="drew figures was ended"):
        draw_all(frames, tmp_path, ["cost", "distributions"])


@pytest.mark.parametrize("losses", [2, 14])  # a panel per model, and a panel per loss
def test_validation_panels_have_one_scale_and_those_of_the_loss_one_each(frame, tmp_path, monkeypatch, losses):
    for k, model in enumerate(("unet", "transunet")):
        for i in range(losses):
            frame.curve(f"t{len(frame.cell_rows)}", [1.0, 2.0 + 10 * i]).cell(f"l{i}", model=model).case(
                f"l{i}", 0.5, model=model
            )
            frame.curve_rows[-2]["val_dice"], frame.curve_rows[-1]["val_dice"] = (
                0.25 + 0.5 * k,
                0.26 + 0.5 * k + 0.01 * i,
            )
    frame.curve(f"t{len(frame.cell_rows)}", [1.0, 1.0]).cell("l0", 1, "diverged")
    frame.curve_rows[-2]["val_dice"], frame.curve_rows[-1]["val_dice"] = 0.3, 0.0
    frames = prepare(*frame.frames)
    drawn = []
    monkeypatch.setattr("harness.report.figures.curves.save", lambda figure, *_: drawn.append(figure) or "<svg/>")
    validation_curves(frames, "synapse", "dice", tmp_path, "v")
    loss_curves(frames, "synapse", tmp_path, "l")
    values, terms = ([ax for ax in figure.axes if ax.get_visible()] for figure in drawn)
    assert len(values) == len(terms) == (2 if losses == 2 else 14)
    high = 76.0 + losses - 1
    rim = 0.05 * (high - 25.0)
    for ax in values:
        assert ax.get_ylim() == pytest.approx((25.0 - rim, high + rim))
        shown = [label for label in ax.get_yticklabels() if label.get_visible()]
        assert shown or ax is not values[0]
    crosses = [line.get_ydata()[0] for ax in values for line in ax.get_lines() if line.get_marker() == "x"]
    assert crosses == pytest.approx([25.0 - rim])  # a run that diverged ends at the frame
    assert losses == 2 or len({ax.get_ylim() for ax in terms}) > 1


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_panels_are_alike_as_if_they_shared_their_axis(scale):
    ours, theirs = Figure(), Figure()
    panels = [grid(ours, 3, 2, sharex=True), list(theirs.subplots(2, 2, sharex=True).flat[:3])]
    for axes in panels:
        for ax, x in zip(axes, ([2.0, 3.0], [5.0, 70.0], []), strict=True):
            ax.plot(x, x)
    alike(panels[0])
    for axes in panels:
        for ax in axes:
            ax.set_xscale(scale)
    limits = [[ax.get_xlim() for ax in axes] for axes in panels]
    assert limits[0] == limits[1] and len(set(limits[0])) == 1
    assert [ax.xaxis.get_tick_params()["labelbottom"] for ax in panels[0]] == [False, True, True]
