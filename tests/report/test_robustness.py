"""Worse labels and fewer patients in the report: changes and intervals by hand, panels, tables, figure, ranking."""

import math

import numpy as np
import pytest

from harness.data.conditions import Setting, name_of, settings_of
from harness.report.figures.robustness import MAX_LINES, robustness_curves
from harness.report.frames import prepare
from harness.report.page import headline
from harness.report.robustness import _axes, interval, robustness_panels, robustness_views
from harness.report.verdict_tables import sensitivity_views
from harness.report.verdicts import Ranking
from harness.report.write import write_report

NAMES = {"synapse": 0.0, "synapse [erode radius=1]": 1.0, "synapse [erode radius=2]": 2.0}
SETTINGS = {
    name: Setting("synapse", "erode" if x else "clean", x, patients=None, trained=18) for name, x in NAMES.items()
}
# by loss: Dice of clean, radius 1, radius 2; one number a seed
DICE = {
    "dice": [(0.80, 0.82, 0.84), (0.70, 0.74, 0.72), (0.50, 0.50, 0.50)],
    "ce": [(0.70, 0.72, 0.74), (0.70, 0.71, 0.72), (0.60, 0.62, 0.64)],
}


def filled(frame, dice=DICE, names=NAMES, left_out=()):
    for loss, by_setting in dice.items():
        for name, values in zip(names, by_setting, strict=True):
            for seed, value in enumerate(values):
                gone = (loss, name, seed) in left_out
                frame.cell(loss, seed, "missing" if gone else "ok", dataset=name)
                for patient in ("p1", "p2") if not gone else ():
                    frame.case(loss, value, seed=seed, patient=patient, dataset=name)
    return frame


def ready(frame, settings=SETTINGS):
    cells, cases, curves = frame.frames
    return prepare(cells, cases, curves, settings=settings)


def test_intervals_by_hand():
    mean, low, high = interval([(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0)])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t(0.975, 2), SD 1
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert interval([(0, 0, 5.0)])[0] == 5.0 and math.isnan(interval([(0, 0, 5.0)])[1])
    assert all(math.isnan(v) for v in interval([]))


def test_folds_are_averaged_within_a_repeat_first(frame):
    runs = {(0, 0): 70.0, (1, 0): 90.0, (0, 1): 72.0, (1, 1): 92.0}  # repeats 80 and 82: mean 81, SD of them sqrt(2)
    half = 12.706204736432095  # t(0.975, 1) * sqrt(2) / sqrt(2)
    assert interval((*k, v) for k, v in runs.items()) == pytest.approx((81.0, 81 - half, 81 + half))
    half_done = [(*k, v) for k, v in runs.items() if k != (1, 1)]  # one repeat has every fold
    assert interval(half_done)[0] == pytest.approx(232 / 3) and math.isnan(interval(half_done)[1])
    for (fold, seed), value in runs.items():
        for name, x in NAMES.items():
            frame.cell("dice", seed, dataset=name, fold=fold)
            score = value / 100 - x * (0.1 + 0.02 * seed + 0.04 * fold)
            frame.case("dice", score, seed=seed, fold=fold, patient=f"p{fold}", dataset=name)
    (panel,) = robustness_panels(ready(frame))
    clean, first, _ = panel.points
    assert (clean.mean, clean.low, clean.high) == pytest.approx((81.0, 81 - half, 81 + half))
    # changes -10, -14 of the first repeat and -12, -16 of the second: -12 and -14
    assert (first.change, first.change_low, first.change_high) == pytest.approx((-13.0, -13 - half, -13 + half))
    assert (clean.runs, clean.planned) == (4, 4)


def test_a_sweep_of_jitter_with_one_smooth_is_one_panel_where_it_is_the_default_too():
    def axes(*jitters):
        conditions = [{"jitter": {"sigma": s, "smooth": w, "unit": "voxel"}, "version": 1} for s, w in jitters]
        cells = {name_of("d", c, None): ({"manifest": "d", "labels": c}, 18) for c in ["clean", *conditions]}
        return {about: sorted(groups.values()) for (_, _, about), groups in _axes(settings_of(cells)).items()}

    assert axes((1.0, 6.0), (2.0, 6.0), (4.0, 6.0)) == {"smooth=6": [0, 1, 2, 4]}
    assert axes((1.0, 3.0), (2.0, 6.0), (4.0, 12.0)) == {"": [0, 1, 2, 4]}
    # both sweeps: the strength that they share stands in both
    both = axes((1.0, 6.0), (2.0, 6.0), (4.0, 6.0), (1.0, 3.0), (4.0, 12.0))
    assert both == {"smooth=6": [0, 1, 2, 4], "": [0, 1, 2, 4]}


def test_the_caption_says_of_reference_and_choice_what_is_drawn(frame, tmp_path):
    few = {n: Setting("synapse", patients=k, trained=k) for n, k in zip(NAMES, (2, 5, 10), strict=True)}
    names = [f"l{i}" for i in range(MAX_LINES + 1)]
    data = filled(frame, {n: [(0.7,), (0.6,), (0.5,)] for n in names})
    caption = robustness_curves(ready(data, few), "synapse", "unet", True, tmp_path, "few").caption
    assert "on the right" not in caption and "losses: those with the highest mean at 10 in the first panel." in caption
    whole = few | {"synapse [erode radius=2]": Setting("synapse", trained=18)}
    caption = robustness_curves(ready(data, whole), "synapse", "unet", True, tmp_path, "few", baseline="l0").caption
    assert ", all of them on the right;" in caption and "losses: the baseline, and those with" in caption
    dirty = {n: Setting("synapse", "erode", x + 1, trained=18) for n, x in NAMES.items()}
    caption = robustness_curves(ready(data, dirty), "synapse", "unet", False, tmp_path, "noise").caption
    assert "clean labels at 0" not in caption and "losses: the first in order." in caption


def test_changes_are_paired_by_run(frame):
    (panel,) = robustness_panels(ready(filled(frame)))
    assert (panel.base, panel.kind, panel.reference, panel.xs) == ("synapse", "erode", 0.0, [0.0, 1.0, 2.0])
    assert panel.axis == "radius (voxels)" and panel.losses == ["dice", "ce"]
    by = {(p.loss, p.x): p for p in panel.points}
    assert by["dice", 0.0].mean == pytest.approx(82.0) and math.isnan(by["dice", 0.0].change)
    # run by run -10, -8, -12: not the difference of unpaired spreads
    assert by["dice", 1.0].change == pytest.approx(-10.0)
    half = 4.302652729911275 * 2.0 / math.sqrt(3)
    assert by["dice", 1.0].change_low == pytest.approx(-10 - half)
    assert by["dice", 1.0].change_high == pytest.approx(-10 + half)
    assert by["ce", 2.0].change == pytest.approx(-10.0) and by["ce", 2.0].change_low == pytest.approx(-10.0)


def test_a_run_that_is_missing_is_no_pair_and_is_said(frame):
    gone = ("dice", "synapse", 2)
    found = robustness_panels(ready(filled(frame, left_out=[gone])))
    by = {(p.loss, p.x): p for p in found[0].points}
    assert (by["dice", 0.0].runs, by["dice", 0.0].planned) == (2, 3)
    assert by["dice", 1.0].runs == 3 and by["dice", 1.0].change == pytest.approx(-9.0)  # seeds 0 and 1
    (view,) = robustness_views(found)
    assert [(r.name, r.remark) for r in view.blocks[0].rows] == [("dice", "2/3 runs in 1"), ("ce", "")]


def test_the_table_has_the_clean_mean_and_signed_changes_and_no_marks(frame):
    (view,) = robustness_views(robustness_panels(ready(filled(frame))))
    assert [c.name for c in view.columns] == ["clean", "1", "2"]
    row = view.blocks[0].rows[0]
    assert [c.show(e) for c, e in zip(view.columns, row.entries, strict=True)] == ["82.00", "−10.00", "−32.00"]
    assert row.entries[1].remark == "−14.97 to −5.03"
    assert not any(e.mark for r in view.blocks[0].rows for e in r.entries)
    assert set(view.frame["kind"]) == {"erode"} and len(view.frame) == 6


def test_patients_are_a_panel_of_their_own_and_all_of_them_are_its_reference(frame):
    names = ["synapse [2 patients]", "synapse [5 patients]", "synapse"]
    settings = {n: Setting("synapse", patients=k, trained=k or 18) for n, k in zip(names, (2, 5, None), strict=True)}
    dice = {"dice": [(0.5, 0.5), (0.6, 0.7), (0.8, 0.8)]}
    found = robustness_panels(ready(filled(frame, dice, names), settings))
    (panel,) = found
    assert (panel.kind, panel.xs, panel.reference) == ("patients", [2.0, 5.0, 18.0], 18.0)
    assert [p.change for p in panel.points][:2] == pytest.approx([-30.0, -15.0])
    (view,) = robustness_views(found)
    assert [c.name for c in view.columns] == ["18 patients", "2", "5"]


def test_without_such_an_axis_there_is_nothing(frame, tmp_path):
    data = ready(filled(frame), {})
    assert robustness_panels(data) == [] and data.plain_groups == data.groups
    cells, cases, curves = frame.frames
    write_report("toy", "", cells, cases, curves, tmp_path, formats=("csv",))
    assert not (tmp_path / "tables" / "robustness.csv").exists()


def test_the_page_shows_figure_and_tables_and_draws_details_of_the_clean_data_alone(frame, tmp_path):
    cells, cases, curves = filled(frame).frames
    ranking = Ranking(baseline="ce")
    page = write_report(
        "toy", "", cells, cases, curves, tmp_path, settings=SETTINGS, ranking=ranking, formats=("html", "csv")
    )
    text = page.read_text()
    assert 'id="robustness"' in text and "Worse labels, fewer patients" in text
    assert "ce (baseline)" in text and "structures eroded" in text
    drawn = sorted(p.stem for p in (tmp_path / "figures").glob("*.svg"))
    assert "noise-synapse-unet" in drawn
    assert not [name for name in drawn if "erode" in name], drawn
    assert "1 data set in 3 settings" in headline(ready(frame))


def test_at_most_so_many_lines_with_the_baseline_among_them(frame, tmp_path):
    names = [f"l{i}" for i in range(MAX_LINES + 3)]
    dice = {n: [(0.9 - 0.01 * i, 0.9 - 0.01 * i), (0.5, 0.5), (0.4, 0.4)] for i, n in enumerate(names)}
    data = ready(filled(frame, dice))
    picture = robustness_curves(data, "synapse", "unet", False, tmp_path, "noise", baseline=names[-1])
    assert picture is not None and f"Shown are {MAX_LINES} of {len(names)} losses" in picture.caption
    shown = [n for n in names if f">{n}<" in picture.svg or f">{n} (baseline)<" in picture.svg]
    assert shown == [*names[: MAX_LINES - 1], names[-1]]
    assert robustness_curves(data, "synapse", "unet", True, tmp_path, "few") is None


def test_the_same_input_gives_the_same_bytes(frame, tmp_path):
    data = ready(filled(frame))
    for name in ("a", "b"):
        robustness_curves(data, "synapse", "unet", False, tmp_path / name, "noise", baseline="dice")
    for ending in ("svg", "png", "pdf"):
        assert (tmp_path / "a" / f"noise.{ending}").read_bytes() == (tmp_path / "b" / f"noise.{ending}").read_bytes()


def test_the_ranking_over_data_sets_takes_each_once(frame):
    rng = np.random.default_rng(0)
    dice = {x: [tuple(rng.uniform(0.6, 0.9, 2)) for _ in range(4)] for x in ("dice", "ce", "focal")}
    names = [*NAMES, "acdc"]
    data = ready(filled(frame, dice, names), SETTINGS | {"acdc": Setting("acdc", trained=70)})
    (view,) = [v for v in sensitivity_views(data, Ranking()) if v.title.startswith("All data sets")]
    left_out = {row.name for block in view.blocks for row in block.rows}
    assert not [name for name in left_out if "erode" in name] and "With worse labels" in view.notes[-1]
