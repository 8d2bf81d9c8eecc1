import math

import pandas as pd
import pytest

from harness.errors import BenchError
from harness.report.checks import empties, fairness
from harness.report.frames import prepare
from harness.report.tables import apply_policy, leaderboard, marks, measures, survey_frame, survey_table


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


def test_a_value_in_a_row_with_an_empty_mask_does_not_replace_the_worst(frame):
    # The transunet convention scores an empty reference 1; the default policy must not.
    frame.cell("dice").case("dice", 1.0, status="ref_empty")
    assert apply_policy(prepare(*frame.frames).cases)["score"].tolist() == [0.0]


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
    table = survey_frame([survey_table(frames, "synapse")])
    assert list(zip(table["unit"], table["profile"], table["value"], strict=True)) == [
        ("mm", "voxel-max", 4.0), ("voxel", "voxel-max", 10.0), ("mm", "area", 7.0),
    ]  # fmt: skip


def test_counts_of_voxels_are_no_measure(frame):
    frame.cell("dice").case("dice", 0.5).case("dice", 3, metric="tp", unit="voxels")
    assert [m.metric for m in measures(prepare(*frame.frames).cases)] == ["dice"]


def test_survey_table_has_classes_then_means_in_per_cent(frame):
    for loss, liver, spleen in [("dice", 0.90, 0.50), ("focal", 0.80, 0.70), ("ce", 0.70, 0.40)]:
        frame.cell(loss).case(loss, liver).case(loss, spleen, **{"class": "spleen"})
        frame.case(loss, 10 * liver, metric="hd95").case(loss, 10 * spleen, metric="hd95", **{"class": "spleen"})
    frames = prepare(*frame.frames)
    table = survey_table(frames, "synapse")
    assert [(c.name, c.measure.metric) for c in table.columns] == [
        ("liver", "dice"), ("spleen", "dice"), ("average", "dice"), ("average", "hd95"),
    ]  # fmt: skip
    rows = table.rows["unet"]
    assert list(rows) == ["dice", "focal", "ce"]  # planned order, not by result
    # Mean DSC: (90 + 50) / 2 = 70, (80 + 70) / 2 = 75, 55. Mean HD95: 7.0, 7.5, 5.5: smaller is better.
    assert [e.value for e in rows["dice"]] == pytest.approx([90, 50, 70, 7.0])
    assert [e.mark for e in rows["dice"]] == ["best", "second", "second", "second"]
    assert [e.mark for e in rows["focal"]] == ["second", "best", "best", ""]
    assert [e.mark for e in rows["ce"]] == ["", "", "", "best"]
    long = survey_frame([table])
    published = ["model", "loss", "class", "metric", "unit", "value"]  # the columns of the published tables
    assert set(published) <= set(long.columns)
    assert long.iloc[0][published].tolist() == ["unet", "dice", "liver", "DSC", "%", pytest.approx(90)]


def test_marks_stay_within_a_model(frame):
    for model, values in [("unet", (0.5, 0.6)), ("transunet", (0.8, 0.7))]:
        for loss, value in zip(("dice", "ce"), values, strict=True):
            frame.cell(loss, model=model).case(loss, value, model=model)
    rows = survey_table(prepare(*frame.frames), "synapse").rows
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
    table = survey_table(prepare(*frame.frames), frame.frames[0]["dataset"][0])
    assert table.runs == {("unet", "lovasz"): "1/2 runs"}
    assert [entries[0].mark for entries in table.rows["unet"].values()] == ["best", "second", ""]


def test_a_class_absent_in_all_patients_is_left_out_of_the_mean(frame):
    frame.cell("dice").case("dice", 0.8).case("dice", None, status="both_empty", **{"class": "tumour"})
    frames = prepare(*frame.frames)
    assert leaderboard(frames).iloc[0]["dice"] == 0.8
    values = [e.value for e in survey_table(frames, "synapse").rows["unet"]["dice"]]
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
