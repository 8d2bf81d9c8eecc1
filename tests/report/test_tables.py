import math

import pandas as pd
import pytest

from harness.errors import BenchError
from harness.metrics.table import METRICS
from harness.report.checks import empties, empty_policy, fairness, partial
from harness.report.frames import prepare
from harness.report.layouts import Numbers, build
from harness.report.tables import Measure, apply_policy, leaderboard, marks, measures


def survey(frames):
    """The survey's table of the one data set, and its entries by model and loss."""
    (view,) = build(Numbers(frames), "survey_table")
    return view, {b.name: {r.name: r.entries for r in b.rows} for b in view.blocks}


def test_policy_scores_a_miss_with_the_worst_value_and_leaves_out_what_does_not_apply(frame):
    frame.cell("dice")
    frame.case("dice", 0.8).case("dice", None, patient="p2", status="pred_empty")
    frame.case("dice", None, patient="p3", status="ref_empty").case("dice", None, patient="p4", status="both_empty")
    frame.case("dice", None, patient="p2", status="pred_empty", metric="hd95")
    frame.case("dice", 0, patient="p4", status="both_empty", metric="tp", unit="voxels")
    scored = apply_policy(prepare(*frame.frames).cases)["score"].tolist()
    assert scored[:3] == [0.8, 0.0, 0.0]
    assert math.isnan(scored[3])
    assert scored[4:] == [100.0, 0.0]  # the diagonal; a count stays a count
    (row,) = empties(prepare(*frame.frames))
    assert (row.n, row.missed, row.invented, row.n_empty, row.not_applicable) == (3, 1, 1, 2, 1)


def test_a_value_stands_where_there_is_one_and_the_worst_where_there_is_none(frame):
    frame.cell("dice")
    # 120 mm³ predicted where nothing is: that is the difference, not the worst one, which is the image's volume
    frame.case("dice", 120.0, metric="volume_difference", unit="mm3", worst=9000.0, status="ref_empty")
    frame.case("dice", 0.99, metric="specificity", unit="1", worst=0.0, status="ref_empty")
    frame.case("dice", None, metric="nsd@2", unit="1", worst=0.0, status="ref_empty")
    frame.case("dice", None, metric="asd", status="ref_empty")
    assert apply_policy(prepare(*frame.frames).cases)["score"].tolist() == [120.0, 0.99, 0.0, 100.0]


def test_what_a_paper_gives_for_empty_masks_is_kept(frame):
    frame.cell("dice")
    for status in ("ref_empty", "pred_empty", "both_empty"):
        frame.case("dice", 1.0, status=status, profile="transunet", patient=status)
        frame.case("dice", 0.0, status=status, profile="transunet", patient=status, metric="hd95", unit="voxel")
    assert apply_policy(prepare(*frame.frames).cases)["score"].tolist() == [1.0, 0.0] * 3


def test_sensitivity_without_a_reference_and_precision_without_a_prediction_are_left_out_and_counted(frame):
    frame.cell("dice")
    for metric, values in (("sensitivity", (0.8, 0.0, None, None)), ("precision", (0.6, None, 0.0, None))):
        states = ("ok", "pred_empty", "ref_empty", "both_empty")
        for value, status in zip(values, states, strict=True):
            frame.case("dice", value, metric=metric, unit="1", worst=0.0, status=status, patient=status)
    frames = prepare(*frame.frames)
    scores = apply_policy(frames.cases)["score"].tolist()
    assert scores[:2] == [0.8, 0.0] and scores[4] == 0.6 and scores[6] == 0.0
    assert all(math.isnan(scores[i]) for i in (2, 3, 5, 7))
    row = leaderboard(frames).iloc[0]
    assert (row["sensitivity"], row["precision"]) == pytest.approx((0.4, 0.3))
    assert partial(frames) == ["sensitivity", "precision"]
    (found,) = empties(frames)
    assert (found.n, found.missed, found.invented, found.not_applicable, found.lacking) == (3, 1, 1, 1, (1, 1))
    text = empty_policy(frames)
    assert "Sensitivity has no meaning without a reference" in text
    assert "Precision has no meaning without a prediction" in text


def test_the_policy_of_the_usual_metrics_is_one_sentence_each(frame):
    frame.cell("dice").case("dice", 0.5).case("dice", 3.0, metric="hd95").case("dice", 2.0, metric="asd")
    assert empty_policy(prepare(*frame.frames)) == (
        "One of the two masks empty: DSC 0 and the image diagonal as distance. Both empty: not applicable, left out of "
        "the mean and counted here."
    )


@pytest.mark.parametrize("status, column", [("ok", "value"), ("pred_empty", "worst")])
def test_policy_refuses_a_row_without_its_number(frame, status, column):
    frame.cell("dice").case("dice", None, status=status, worst=None)
    with pytest.raises(BenchError, match=f"case 'p1', class 'liver', dice: .*{column}"):
        apply_policy(prepare(*frame.frames).cases)


def test_mean_over_patients_then_classes_then_runs_and_sd_over_seeds(frame):
    frame.cell("dice", 0).cell("dice", 1)
    # Seed 0, liver: patient p1 has two cases, (0.6 + 0.8) / 2 = 0.7; p2 0.9 -> 0.8. Spleen: p1 0.4 -> 0.4. Run: 0.6.
    frame.case("dice", 0.6, case="a").case("dice", 0.8, case="b").case("dice", 0.9, patient="p2")
    frame.case("dice", 0.4, **{"class": "spleen"})
    # Seed 1, liver: 0.5. Spleen: p1 0.3, p2 both empty -> 0.3. Run: 0.4.
    frame.case("dice", 0.5, seed=1).case("dice", 0.3, seed=1, **{"class": "spleen"})
    frame.case("dice", None, seed=1, patient="p2", status="both_empty", **{"class": "spleen"})
    row = leaderboard(prepare(*frame.frames)).iloc[0]
    assert row["dice"] == pytest.approx((0.6 + 0.4) / 2)
    # Sample SD of 0.6 and 0.4: sqrt((0.1² + 0.1²) / 1) = 0.141421.
    assert row["dice_sd"] == pytest.approx(0.141421, abs=1e-6)
    assert (row["runs_ok"], row["patients"], row["step_ms"], row["train_s"]) == (2, 2, 4.0, 10.0)


def test_sd_with_folds_is_over_seeds_and_needs_every_fold(frame):
    for seed, fold, value in [(0, 0, 0.5), (0, 1, 0.7), (1, 0, 0.6), (1, 1, 0.8), (2, 0, 0.1)]:
        frame.cell("dice", seed, fold=fold).case("dice", value, seed=seed, fold=fold)
    frame.cell("dice", 2, "diverged", fold=1)
    row = leaderboard(prepare(*frame.frames)).iloc[0]
    assert row["dice"] == pytest.approx((0.5 + 0.7 + 0.6 + 0.8 + 0.1) / 5)
    # Seed means 0.6 and 0.7; seed 2 lacks fold 1. SD = 0.1 / sqrt(2).
    assert row["dice_sd"] == pytest.approx(0.1 / math.sqrt(2))
    assert (row["runs_planned"], row["runs_ok"], row["runs_failed"], row["runs_diverged"]) == (6, 5, 1, 1)


def test_one_seed_has_no_sd(frame):
    row = leaderboard(prepare(*frame.cell("dice").case("dice", 0.5).frames)).iloc[0]
    assert row["dice"] == 0.5
    assert math.isnan(row["dice_sd"])


def test_units_and_profiles_are_never_averaged_together(frame):
    frame.cell("dice").case("dice", 4.0, metric="hd95").case("dice", 10.0, metric="hd95", patient="p2", unit="voxel")
    frame.case("dice", 7.0, metric="hd95", patient="p2", profile="area")
    frames = prepare(*frame.frames)
    row = leaderboard(frames).iloc[0]
    assert (row["hd95_voxel-max_mm"], row["hd95_voxel-max_voxel"], row["hd95_area_mm"]) == (4.0, 10.0, 7.0)
    table = survey(frames)[0].frame
    assert list(zip(table["unit"], table["profile"], table["value"], strict=True)) == [
        ("mm", "voxel-max", 4.0), ("voxel", "voxel-max", 10.0), ("mm", "area", 7.0),
    ]  # fmt: skip


def test_counts_of_voxels_are_no_measure(frame):
    frame.cell("dice").case("dice", 0.5).case("dice", 3, metric="tp", unit="voxels")
    assert [m.metric for m in measures(prepare(*frame.frames).cases)] == ["dice"]


def test_directions_names_and_units_come_from_the_table_of_metrics():
    def head(metric, unit="1", profile="voxel-max", length="", others=()):
        m = Measure(metric, profile, unit, length)
        shown = m.shown_profile([m, *others])
        return m.heading + (f", {shown}" if shown else ""), m.lower_is_better

    assert head("dice") == ("DSC (%)", False)
    assert head("asd_reverse", "mm") == ("ASD reverse (mm)", True)
    assert head("nsd@2", length="mm") == ("NSD (2 mm), %", False)
    assert head("nsd@1.5", length="voxel") == ("NSD (1.5 voxel), %", False)
    assert head("boundary_iou@5") == ("Boundary IoU (5 px), %", False)
    assert head("volume_difference", "mm3") == ("AVD (mm³)", True)
    assert head("volume_difference", "voxel2") == ("AVD (pixels)", True)
    assert head("hd95", "mm", "area") == ("HD95 (mm), area", True)
    other = Measure("hd95", "voxel-pooled", "mm")
    assert head("hd95", "mm", others=[other]) == ("HD95 (mm), voxel-max", True)


def test_every_metric_has_a_measure_that_can_be_shown():
    for name, metric in METRICS.items():
        asked = name + ("@3" if metric.parameter == "required" else "")
        assert Measure(asked, "voxel-max", "1").heading.startswith(metric.title)
        assert Measure(asked, "voxel-max", "1").lower_is_better is not metric.higher_is_better


def test_miou_is_pooled_over_the_cases_of_a_run_and_iou_is_per_case(frame):
    def counts(patient, name, tp, fp, fn, seed=0):
        for metric, value in (("tp", tp), ("fp", fp), ("fn", fn)):
            frame.case("dice", value, metric=metric, unit="voxels", patient=patient, seed=seed, **{"class": name})
        total = tp + fp + fn
        status = "ok" if total else "both_empty"
        frame.case(
            "dice", tp / total if total else None, metric="iou", unit="1", patient=patient, seed=seed, status=status,
            **{"class": name},
        )  # fmt: skip

    frame.cell("dice", 0).cell("dice", 1)
    counts("p1", "liver", 90, 5, 5)  # 0.9
    counts("p2", "liver", 1, 4, 5)  # 0.1; pooled 91 / 110
    counts("p1", "spleen", 0, 0, 0)
    counts("p2", "spleen", 3, 1, 0)  # 3 / 4
    counts("p1", "tumour", 0, 0, 0)  # nowhere: enters no mean
    counts("p1", "liver", 1, 0, 1, seed=1)
    frames = prepare(*frame.frames, pooled=["miou"])
    row = leaderboard(frames).iloc[0]
    seeds = ((91 / 110 + 3 / 4) / 2, 1 / 2)
    assert row["miou"] == pytest.approx(sum(seeds) / 2)
    assert row["miou_sd"] == pytest.approx(abs(seeds[0] - seeds[1]) / math.sqrt(2))
    assert row["iou"] == pytest.approx((((0.9 + 0.1) / 2 + 0.75) / 2 + 0.5) / 2)
    assert "miou" not in leaderboard(prepare(*frame.frames)).columns  # only where it was asked for
    table = survey(frames)[0].frame
    assert list(zip(table["class"], table["metric"], strict=True)) == [("average", "IoU"), ("average", "mIoU")]


def test_a_tolerance_in_voxels_and_one_in_millimetres_are_two_measures(frame):
    for dataset, value in (("acdc", 0.8), ("synapse", 0.6)):
        frame.cell("dice", dataset=dataset).case("dice", value, metric="nsd@2", unit="1", dataset=dataset)
        frame.case("dice", 0.5, dataset=dataset)
    board = leaderboard(prepare(*frame.frames, voxels=["synapse"])).set_index("dataset")
    assert (board.loc["acdc", "nsd@2mm"], board.loc["synapse", "nsd@2voxel"]) == (0.8, 0.6)
    assert math.isnan(board.loc["acdc", "nsd@2voxel"]) and board["dice"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "metrics, averages",
    [
        (("dice", "hd95", "asd"), ["DSC", "HD95"]),  # the survey's own columns
        (("hd95", "dice", "nsd@2", "asd"), ["DSC", "HD95", "NSD (2 mm)", "ASD"]),
        (("asd",), ["ASD"]),
    ],
)
def test_the_survey_table_has_the_published_columns_or_all_that_was_asked_for(frame, metrics, averages):
    frame.cell("dice")
    for name in ("liver", "spleen"):
        for metric in metrics:
            unit = "mm" if metric in ("hd95", "asd") else "1"
            frame.case("dice", 0.5, metric=metric, unit=unit, **{"class": name})
    table = survey(prepare(*frame.frames))[0].frame
    by_class = ["liver", "spleen"] if "dice" in metrics else []
    assert table["class"].tolist() == [*by_class, *["average"] * len(averages)]
    assert table.loc[table["class"] == "average", "metric"].tolist() == averages


def test_profiles_stand_apart_and_classes_are_shown_under_the_first(frame):
    frame.cell("dice")
    for name in ("liver", "spleen"):
        for profile, dsc, hd in (("voxel-max", 0.8, 4.0), ("transunet", 1.0, 0.0)):
            frame.case("dice", dsc, profile=profile, **{"class": name})
            frame.case("dice", hd, profile=profile, metric="hd95", **{"class": name})
        frame.case("dice", 3.0, profile="voxel-pooled", metric="hd95", **{"class": name})
    frames = prepare(*frame.frames)
    row = leaderboard(frames).iloc[0]
    assert (row["dice_voxel-max"], row["dice_transunet"], row["hd95_voxel-pooled_mm"]) == (0.8, 1.0, 3.0)
    assert [(h.name, h.profile, h.span) for h in survey(frames)[0].heads] == [
        ("DSC (%)", "voxel-max", 3), ("HD95 (mm)", "voxel-max", 1), ("DSC (%)", "transunet", 1),
        ("HD95 (mm)", "transunet", 1), ("HD95 (mm)", "voxel-pooled", 1),
    ]  # fmt: skip
    assert "The numbers of transunet are what that code gives" in empty_policy(frames)


def test_survey_table_has_classes_then_means_in_per_cent(frame):
    for loss, liver, spleen in [("dice", 0.90, 0.50), ("focal", 0.80, 0.70), ("ce", 0.70, 0.40)]:
        frame.cell(loss).case(loss, liver).case(loss, spleen, **{"class": "spleen"})
        frame.case(loss, 10 * liver, metric="hd95").case(loss, 10 * spleen, metric="hd95", **{"class": "spleen"})
    frames = prepare(*frame.frames)
    view, models = survey(frames)
    assert [c.name for c in view.columns] == ["liver", "spleen", "mean", "mean"]
    rows = models["unet"]
    assert list(rows) == ["dice", "focal", "ce"]  # planned order, not by result
    # Mean DSC: (90 + 50) / 2 = 70, (80 + 70) / 2 = 75, 55. Mean HD95: 7.0, 7.5, 5.5: smaller is better.
    assert [e.value for e in rows["dice"]] == pytest.approx([90, 50, 70, 7.0])
    assert [e.mark for e in rows["dice"]] == ["best", "second", "second", "second"]
    assert [e.mark for e in rows["focal"]] == ["second", "best", "best", ""]
    assert [e.mark for e in rows["ce"]] == ["", "", "", "best"]
    long = view.frame
    published = ["model", "loss", "class", "metric", "unit", "value"]  # the columns of the published tables
    assert set(published) <= set(long.columns)
    assert long.iloc[0][published].tolist() == ["unet", "dice", "liver", "DSC", "%", pytest.approx(90)]


def test_marks_stay_within_a_model(frame):
    for model, values in [("unet", (0.5, 0.6)), ("transunet", (0.8, 0.7))]:
        for loss, value in zip(("dice", "ce"), values, strict=True):
            frame.cell(loss, model=model).case(loss, value, model=model)
    rows = survey(prepare(*frame.frames))[1]
    assert {m: [rows[m][x][0].mark for x in ("dice", "ce")] for m in rows} == {
        "unet": ["second", "best"], "transunet": ["best", "second"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "values, lower, expected",
    [
        ([3.0, 1.0, 2.0], False, ["best", "", "second"]),
        ([3.0, 1.0, 2.0], True, ["", "best", "second"]),
        ([80.001, 80.004, 79.0, 78.0], False, ["best", "best", "second", ""]),  # the same as printed
        ([80.0, 79.0, 79.0], False, ["best", "second", "second"]),
        ([80.0, 80.0], False, ["", ""]),  # nothing to tell apart
        ([80.0], False, [""]),
        ([math.nan, 80.0, 70.0], False, ["", "best", "second"]),
        ([math.nan], True, [""]),
        ([], False, []),
    ],
)
def test_marks(values, lower, expected):
    assert marks(values, lower_is_better=lower) == expected


def test_a_loss_that_lacks_a_run_is_never_marked_and_says_so(frame):
    for seed in (0, 1):
        frame.cell("dice", seed).case("dice", 0.8, seed=seed)
        frame.cell("ce", seed).case("ce", 0.7, seed=seed)
    frame.cell("lovasz", 0).case("lovasz", 0.9).cell("lovasz", 1, "diverged")  # 0.9 without its bad run
    rows = survey(prepare(*frame.frames))[1]["unet"]
    assert [entries[0].source.runs for entries in rows.values()] == ["", "", "1/2 runs"]
    assert [entries[0].mark for entries in rows.values()] == ["best", "second", ""]


def test_a_class_absent_in_all_patients_is_left_out_of_the_mean(frame):
    frame.cell("dice").case("dice", 0.8).case("dice", None, status="both_empty", **{"class": "tumour"})
    frames = prepare(*frame.frames)
    assert leaderboard(frames).iloc[0]["dice"] == 0.8
    values = [e.value for e in survey(frames)[1]["unet"]["dice"]]
    assert values[0] == values[2] == 80.0
    assert math.isnan(values[1])


@pytest.mark.parametrize("status", ["diverged", "stale", "skip"])
def test_only_measured_cells_enter_the_means(frame, status):
    frame.cell("dice").case("dice", 0.8).cell("dice", 1, status).case("dice", 0.1, seed=1)
    assert leaderboard(prepare(*frame.frames)).iloc[0]["dice"] == 0.8


def test_ok_without_cases_is_an_error(frame):
    cells = prepare(*frame.cell("dice").case("dice", 0.8).cell("ce").frames).cells
    assert cells["status"].tolist() == ["ok", "error"]
    assert "no measured cases" in cells["message"].iloc[1]


def test_two_splits_of_a_data_set_are_kept_apart(frame):
    frame.cell("dice").case("dice", 0.8).cell("dice", split="t").case("dice", 0.4, split="t")
    board = leaderboard(prepare(*frame.frames))
    assert list(zip(board["dataset"], board["dice"], strict=True)) == [("synapse (s)", 0.8), ("synapse (t)", 0.4)]


def test_text_from_csv_files_is_read_as_numbers(frame):
    cells, cases, curves = frame.cell("dice", fold=0).case("dice", 0.5, fold=0).frames
    as_text = cases.map(str).assign(value="0.5", fold="0")
    assert leaderboard(prepare(cells.astype(str), as_text, curves)).iloc[0]["dice"] == 0.5


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: f.cell("dice"), "dice / unet / synapse / seed 0 stands twice"),
        (lambda f: f.case("ce", 0.5), "ce / unet / synapse / seed 0 is not among the planned cells"),
        (lambda f: f.cell("ce", status="fine"), "'fine' is unknown"),
        (lambda f: f.case("dice", "high", patient="p9"), "cases.value"),
    ],
)
def test_frames_that_contradict_themselves_are_refused(frame, spoil, message):
    spoil(frame.cell("dice").case("dice", 0.8))
    with pytest.raises(BenchError, match=message):
        prepare(*frame.frames)


def test_a_missing_column_is_named():
    with pytest.raises(BenchError, match="cells: no column 'dataset'"):
        prepare(pd.DataFrame([{"loss": "dice"}]), pd.DataFrame(), pd.DataFrame())


def test_fairness_compares_the_losses_within_a_seed(frame):
    frame.cell("dice", 0).cell("ce", 0)
    frame.cell("dice", 1, init="x").cell("ce", 1).cell("focal", 1)  # focal and ce agree, dice differs
    frame.cell("dice", 2).cell("ce", 2, "error", init="", batches="")  # crashed before its first batch
    frame.cell("dice", 3).cell("ce", 3, batches="")
    frame.cell("dice", 4, weights="same").cell("ce", 4, weights="same")
    for row in list(frame.cell_rows):
        if row["status"] == "ok":
            frame.case(row["loss"], 0.5, seed=row["seed"])
    rows = fairness(prepare(*frame.frames))
    assert [(p.seed, p.init, p.batches) for p in rows] == [
        (0, "equal", "equal"), (1, "different", "equal"), (2, "one loss", "one loss"), (3, "equal", "not recorded"),
        (4, "equal", "equal"),
    ]  # fmt: skip
    assert rows[1].note == "other initial weights: dice"
    assert rows[3].note == "first batches not recorded: ce"
    assert rows[4].note == "the same final weights: dice, ce"
