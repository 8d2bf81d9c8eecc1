import numpy as np
import pandas as pd
import pytest

from harness.errors import BenchError
from harness.stats.sensitivity import across, sensitivity


def rows_of(values, **more):
    """values: {loss: {(class, patient): value or status}}"""
    out = []
    for loss, cells in values.items():
        for (name, patient), value in cells.items():
            status = value if isinstance(value, str) else "ok"
            out.append({
                "loss": loss, "fold": -1, "seed": 0, "patient": patient, "case": patient, "class": name, "metric": "hd95",
                "profile": "voxel-max", "value": np.nan if status != "ok" else value, "worst": 100.0, "status": status,
            } | more)  # fmt: skip
    return pd.DataFrame(out)


def test_a_miss_changes_the_order_with_the_policy_by_hand():
    rows = rows_of({
        "a": {("x", "p"): 2.0, ("x", "q"): "pred_empty"},  # 51; without the miss 2; with 0 for it 1
        "b": {("x", "p"): 4.0, ("x", "q"): 4.0},
        "c": {("x", "p"): 8.0, ("x", "q"): 9.0},
    })  # fmt: skip
    found = sensitivity(rows, "hd95", "voxel-max").set_index(["choice", "variant"])
    assert found.loc[("empty masks", "worst"), "tau"] == 1.0
    for policy in ("drop", "zero"):
        # main order b, c, a; now a, b, c: two of three pairs turned
        assert found.loc[("empty masks", policy), "tau"] == pytest.approx(-1 / 3)
        assert found.loc[("empty masks", policy), "first"] == "a"
    assert found.loc[("aggregation", "median"), "first"] == "b"


def test_the_order_of_means_and_a_class_left_out_by_hand():
    rows = rows_of({
        # class x has three patients, class y one: mean of means 0.5 (0.9 + 0.1) = 0.5, pooled 0.7
        "a": {("x", "p"): 0.9, ("x", "q"): 0.9, ("x", "r"): 0.9, ("y", "p"): 0.1},
        "b": {("x", "p"): 0.5, ("x", "q"): 0.5, ("x", "r"): 0.5, ("y", "p"): 0.8},
    }, metric="dice", worst=0.0)  # fmt: skip
    found = sensitivity(rows, "dice", "voxel-max").set_index(["choice", "variant"])
    assert found.loc[("aggregation", "pooled"), "tau"] == -1.0
    assert found.loc[("aggregation", "rank then mean"), "tau"] == -1.0
    assert found.loc[("class left out", "y"), "first"] == "a" and found.loc[("class left out", "x"), "first"] == "b"
    assert found.loc[("class left out", "y"), "tau"] == -1.0


def test_another_metric_and_another_profile_are_variants_and_counts_are_not():
    dice = rows_of({"a": {("x", "p"): 0.9}, "b": {("x", "p"): 0.8}}, metric="dice", worst=0.0)
    far = rows_of({"a": {("x", "p"): 9.0}, "b": {("x", "p"): 3.0}})
    area = rows_of({"a": {("x", "p"): 5.0}, "b": {("x", "p"): 5.0}}, profile="area")
    counts = rows_of({"a": {("x", "p"): 9.0}, "b": {("x", "p"): 3.0}}, metric="tp")
    found = sensitivity(pd.concat([dice, far, area, counts]), "dice", "voxel-max")
    metric = found[found["choice"] == "metric"].set_index("variant")
    assert list(metric.index) == ["hd95 (voxel-max)", "hd95 (area)"]
    assert metric.loc["hd95 (voxel-max)", "tau"] == -1.0
    assert np.isnan(metric.loc["hd95 (area)", "tau"]) and metric.loc["hd95 (area)", "first"] == "a = b"
    assert "class left out" not in set(found["choice"])  # there is one class only


def test_bad_rows_are_refused():
    rows = rows_of({"a": {("x", "p"): 0.9}}, metric="dice")
    with pytest.raises(BenchError, match="no column 'class'"):
        sensitivity(rows.drop(columns="class"), "dice", "voxel-max")
    with pytest.raises(BenchError, match="no values of hd95"):
        sensitivity(rows, "hd95", "voxel-max")


def test_rows_without_a_fold_are_rows_too():
    rows = rows_of({"a": {("x", "p"): 0.9}, "b": {("x", "p"): 0.8}}, metric="dice", worst=0.0, fold=np.nan)
    found = sensitivity(rows, "dice", "voxel-max")
    assert found["losses"].tolist() == [2] * 6 and found["tau"].tolist() == [1.0] * 6


def three_data_sets():
    values = {  # ranks of a, b, c: 1 2 3, then 1 2 3, then 3 2 1; d is in the first data set alone
        "x": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 1.0},
        "y": {"a": 0.6, "b": 0.5, "c": 0.4},
        "z": {"a": 0.1, "b": 0.3, "c": 0.9},
    }
    parts = [
        rows_of({k: {("k", "p"): v} for k, v in of.items()}, metric="dice", worst=0.0, group=name)
        for name, of in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_data_set_left_out_by_hand():
    found = across(three_data_sets(), "dice").set_index(["choice", "variant"])
    # mean ranks: a 5/3, b 2, c 7/3, although the mean of the values would put c first
    left = found.xs("data set left out")
    assert left.loc["z"].to_dict() == {"tau": 1.0, "first": "a", "losses": 3}
    assert left.loc["x", "first"] == "a = b = c" and np.isnan(left.loc["x", "tau"])  # 2, 2, 2
    alone = found.xs("data set alone")
    assert alone["tau"].tolist() == [1.0, 1.0, -1.0] and alone.loc["z", "first"] == "c"


def test_two_data_sets_are_left_out_and_not_repeated_and_one_is_no_comparison():
    rows = three_data_sets()
    found = across(rows[rows["group"] != "z"], "dice")
    assert found["choice"].tolist() == ["data set left out"] * 2 and found["tau"].tolist() == [1.0, 1.0]
    assert across(rows[rows["group"] == "x"], "dice").empty
    with pytest.raises(BenchError, match="no column 'group'"):
        across(rows.drop(columns="group"), "dice")


def test_lower_is_better_turns_the_ranks():
    rows = three_data_sets().assign(metric="hd95")
    assert across(rows, "hd95").set_index("variant").loc["z", "first"].tolist() == ["c", "a"]
