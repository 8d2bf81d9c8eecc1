"""From the long frame to verdicts: what is said, what is refused, and what must not change it."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.errors import BenchError
from harness.stats import analyse, split
from harness.stats.design import read
from harness.stats.simulate import Setting, recovered


def by_loss(found):
    return {r.loss: r for r in found.losses}


def go(frame, **more):
    return analyse(frame, "L0", more.pop("kind", "fraction"), higher_is_better=more.pop("higher", True), **more)


GRID = Setting(4, 5, 20, 1, run_sd=0.003, patient_sd=0.005)


def test_a_clear_difference_is_found_in_its_direction_and_none_is_not(drawn):
    frame = drawn(GRID, effects=[0, 0.05, -0.05, 0])
    found = go(frame, rope=0.01)
    rows = by_loss(found)
    assert [rows[f"L{k}"].verdict for k in range(3)] == ["baseline", "better", "worse"]
    assert rows["L3"].verdict in ("no difference shown", "equivalent")
    assert found.no_verdict is None and found.method == "closed forms"
    assert rows["L1"].low < 0.05 < rows["L1"].high
    assert rows["L1"].p <= rows["L1"].p_holm
    assert rows["L1"].tier == 1 and rows["L1"].first > 0.99 and (rows["L1"].rank_low, rows["L1"].rank_high) == (1, 1)
    assert rows["L2"].tier == 3 and rows["L2"].rank == 4
    lower = by_loss(go(frame, higher=False))
    assert (lower["L1"].verdict, lower["L2"].verdict, lower["L2"].tier) == ("worse", "better", 1)


def test_the_interval_for_these_networks_is_narrower(drawn):
    r = by_loss(go(drawn(Setting(4, 5, 20, 1, run_sd=0.02, patient_sd=0.005))))["L1"]
    assert r.fixed_high - r.fixed_low < 0.7 * (r.high - r.low)


def test_equivalent_needs_a_rope_and_the_interval_inside_it(drawn):
    frame = drawn(Setting(3, 5, 40, 1, run_sd=0.0005, patient_sd=0.001), seed=1)
    assert by_loss(go(frame))["L1"].verdict == "no difference shown"
    assert by_loss(go(frame, rope=0.02))["L1"].verdict == "equivalent"
    assert by_loss(go(frame, rope=1e-5))["L1"].verdict == "no difference shown"
    small = by_loss(go(drawn(Setting(3, 5, 40, 1, run_sd=0.0005, patient_sd=0.001), effects=[0, 0.01]), rope=0.03))
    assert (small["L1"].verdict, small["L1"].within_rope) == ("better", True)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Setting(4, 1, 20), "one seed and one fold"),
        (Setting(2, 2, 20), "two losses with two runs"),
        (Setting(4, 1, 20, 2), "two folds"),
        (Setting(4, 3, 1), "fewer than two patients"),
        (Setting(4, 3, 2), "2 patients are too few"),
        (Setting(4, 3, 5), "5 patients are too few"),
    ],
)
def test_where_no_verdict_can_hold_there_is_none_and_the_reason_is_given(drawn, setting, words):
    found = go(drawn(setting, effects=[0, 0.5]))
    assert words in found.no_verdict
    for r in found.losses:
        assert (r.low, r.p, r.p_holm, r.tier, r.first) == (None,) * 5
        assert r.verdict == ("baseline" if r.loss == "L0" else "no verdict")
    assert found.detectable == ()


def test_one_run_keeps_the_interval_for_its_networks(drawn):
    frame = drawn(Setting(3, 1, 20))
    r = by_loss(go(frame))["L1"]
    wide = frame.pivot(index="patient", columns="loss", values="value")
    d = wide["L1"] - wide["L0"]
    assert r.effect == pytest.approx(d.mean())
    known = stats.ttest_rel(wide["L1"], wide["L0"]).confidence_interval(0.95)
    assert (r.fixed_low, r.fixed_high) == pytest.approx((known.low, known.high))


def test_the_order_of_rows_a_constant_and_the_scale_change_nothing(drawn):
    frame = drawn(GRID, effects=[0, 0.02, 0.01, 0])
    plain = go(frame).frame().set_index("loss")
    mixed = go(frame.sample(frac=1, random_state=0)).frame().set_index("loss").loc[plain.index]
    pd.testing.assert_frame_equal(mixed, plain)
    pd.testing.assert_frame_equal(go(frame.assign(fold=np.nan)).frame().set_index("loss"), plain)  # no folds, as in CSV
    other = go(frame.assign(value=frame["value"] * 100 + 7)).frame().set_index("loss")
    for column in ("effect", "low", "high", "fixed_low", "fixed_high"):
        assert other[column].to_numpy(dtype=float) == pytest.approx(
            plain[column].to_numpy(dtype=float) * 100, nan_ok=True
        )
    for column in ("df", "p", "p_holm", "first", "rank_low", "rank_high", "tier"):
        assert other[column].to_numpy(dtype=float) == pytest.approx(plain[column].to_numpy(dtype=float), nan_ok=True)
    assert other["verdict"].tolist() == plain["verdict"].tolist()


def test_images_of_a_patient_are_averaged_first(drawn):
    frame = drawn(Setting(3, 3, 8))
    twice = pd.concat([frame.assign(value=frame["value"] + 0.1), frame.assign(value=frame["value"] - 0.1), frame[:1]])
    twice.iloc[-1, twice.columns.get_loc("value")] = frame["value"].iloc[0]
    assert go(twice).frame()["p"].dropna().to_numpy() == pytest.approx(go(frame).frame()["p"].dropna().to_numpy())


def test_a_patient_without_a_value_is_left_out_for_all_losses(drawn):
    frame = drawn(GRID)
    gap = (frame["loss"] == "L2") & (frame["seed"] == 3) & (frame["patient"] == "f0p7")
    found = go(frame.assign(value=frame["value"].where(~gap)))
    assert found.left_out == ("f0p7",) and found.method == "closed forms" and found.patients == 19
    assert any("1 of 20 patients" in n for n in found.notes)
    without = go(frame[frame["patient"] != "f0p7"])
    assert by_loss(found)["L1"].p == by_loss(without)["L1"].p


def test_where_most_patients_have_gaps_reml_keeps_them(drawn):
    frame = drawn(GRID, effects=[0, 0.05])
    rng = np.random.default_rng(0)
    gap = (frame["loss"] == "L3") & (frame["seed"] == 0) & frame["patient"].isin([f"f0p{k}" for k in range(14)])
    gap |= pd.Series(rng.random(len(frame)) < 0.02)
    found = go(frame.assign(value=frame["value"].where(~gap)))
    assert found.method == "REML" and found.left_out == () and found.sources == ()
    assert any("gaps" in n for n in found.notes)
    whole = by_loss(go(frame))["L1"]
    r = by_loss(found)["L1"]
    assert r.verdict == "better"
    assert r.effect == pytest.approx(whole.effect, abs=0.003)
    assert r.high - r.low == pytest.approx(whole.high - whole.low, rel=0.35)


def runs_of(frame, **status):
    runs = frame[["loss", "fold", "seed"]].drop_duplicates()
    return runs.assign(status=[status.get(f"{x}s{s}", "ok") for x, s in zip(runs["loss"], runs["seed"], strict=True)])


def test_diverged_runs_are_counted_left_out_ranked_last_and_never_first(drawn):
    frame = drawn(GRID, effects=[0, 0.06, 0.03])
    runs = runs_of(frame, L1s2="diverged", L3s0="oom")
    gone = ((frame["loss"] == "L1") & (frame["seed"] == 2)) | ((frame["loss"] == "L3") & (frame["seed"] == 0))
    found = go(frame[~gone], runs=runs, losses=["L0", "L1", "L2", "L3"])
    rows = by_loss(found)
    assert (rows["L1"].diverged, rows["L1"].crashed, rows["L1"].runs) == (1, 0, 4)
    assert (rows["L3"].diverged, rows["L3"].crashed, rows["L3"].runs) == (0, 1, 4)
    assert rows["L1"].verdict == "better"
    assert rows["L1"].tier > 1 and rows["L1"].rank == 4 and rows["L1"].first == 0.0
    assert rows["L2"].rank == 1 and rows["L2"].tier == 1
    # first in four runs, and behind the three others in the one where it diverged
    assert rows["L1"].run_rank == pytest.approx((4 * 1 + 4) / 5)
    assert any("Diverged" in n and "L1 (1)" in n for n in found.notes)


def test_a_loss_that_never_finished_is_last_if_it_diverged_and_unranked_if_it_crashed(drawn):
    frame = drawn(GRID)
    runs = runs_of(frame, **{f"L2s{s}": "diverged" for s in range(5)}, **{f"L3s{s}": "timeout" for s in range(5)})
    rows = by_loss(go(frame[frame["loss"].isin(["L0", "L1"])], runs=runs))
    assert (rows["L2"].rank, rows["L2"].diverged, rows["L2"].effect, rows["L2"].verdict) == (3, 5, None, "no verdict")
    assert (rows["L3"].rank, rows["L3"].crashed, rows["L3"].mean) == (None, 5, None)


def test_one_common_run_gives_no_verdict_on_that_loss_only(drawn):
    frame = drawn(GRID, effects=[0, 0.05])
    found = go(frame[(frame["loss"] != "L2") | (frame["seed"] == 1)])
    rows = by_loss(found)
    assert rows["L1"].verdict == "better" and rows["L2"].verdict == "no verdict" and rows["L2"].p is None
    assert any("L2" in n and "too few runs" in n for n in found.notes)


def test_folds_use_their_own_factor(drawn):
    frame = drawn(Setting(4, 1, 30, 5, run_sd=0.02), effects=[0, 0.02])
    plain = go(frame)
    assert plain.inflation == pytest.approx(1 + 5 / 4)
    sized = go(frame, sizes={f: (60, 6) for f in range(5)})
    assert sized.inflation == pytest.approx(1.5)
    a, b = by_loss(plain)["L1"], by_loss(sized)["L1"]
    assert (a.high - a.low) > (b.high - b.low)
    with pytest.raises(BenchError, match="no sizes for fold 4"):
        go(frame, sizes={f: (60, 6) for f in range(4)})
    with pytest.raises(BenchError, match="several folds"):
        go(frame.assign(patient=frame["patient"].str.replace("f1", "f0")))


def test_distances_are_compared_as_logarithms_among_cases_with_both_masks(drawn):
    frame = drawn(Setting(3, 3, 12))
    mm = frame.assign(value=np.expm1(frame["value"] * 3), status="ok")
    mm.loc[mm["loss"] == "L1", "value"] = (mm["value"] + 1) * 1.5 - 1
    miss = (mm["patient"] == "f0p2") & (mm["loss"] == "L2")
    mm.loc[miss, ["value", "status"]] = [np.nan, "pred_empty"]
    mm.loc[mm["patient"] == "f0p3", ["value", "status"]] = [np.nan, "both_empty"]
    distance, missed = split(mm)
    found = go(distance, kind="distance", higher=False)
    assert found.left_out == ("f0p2",)
    plain = by_loss(go(frame[~frame["patient"].isin(["f0p2", "f0p3"])]))["L1"]
    assert by_loss(found)["L1"].effect == pytest.approx(3 * plain.effect + np.log(1.5))
    # the plain mean stands beside it, in mm, over all cases that have one
    assert by_loss(found)["L2"].mean == pytest.approx(distance.query("loss == 'L2'")["value"].mean())
    rates = go(missed, kind="rate", higher=False)
    assert rates.detectable == ()  # components of 0 would promise that any difference is seen
    rate = by_loss(rates)
    assert rate["L2"].mean == pytest.approx(1 / 11) and rate["L2"].effect == pytest.approx(1 / 11)
    assert rate["L1"].effect == 0 and rate["L1"].verdict == "no difference shown"
    # nobody missed among 11 is not a proof that nobody ever will be
    assert rate["L1"].high >= 1 / 11


def test_more_seeds_find_smaller_differences_until_the_patients_are_the_limit(drawn):
    found = go(drawn(Setting(6, 3, 30, 1, run_sd=0.008), seed=2))
    by_seeds = {d.seeds: d for d in found.detectable}
    assert list(by_seeds) == [2, 3, 5, 10] and [d.seeds for d in found.detectable if d.now] == [3]
    values = [d.difference for d in found.detectable]
    assert all(a > b > 0 for a, b in itertools.pairwise(values))
    folds = go(drawn(Setting(6, 1, 30, 5)))
    assert [(d.seeds, d.now) for d in folds.detectable] == [(1, True)]


def test_the_components_are_those_of_the_truth():
    truth = {"loss × run": 0.005**2, "loss × patient": 0.01**2, "residual": 0.02**2}
    found = recovered(Setting(6, 3, 12, 1, 0.005, 0.01), 3000, np.random.default_rng(0))
    for name, value in truth.items():
        assert found[name] == pytest.approx(value, rel=0.06), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop(columns="seed"), "no column 'seed'"),
        (lambda f: f[f["loss"] != "L0"], "baseline 'L0' has no value"),
        (lambda f: f.assign(value=np.nan), "no case has a value"),
        (lambda f: f.assign(value=np.inf), "infinite"),
    ],
)
def test_bad_frames_are_refused_in_a_sentence(drawn, change, words):
    with pytest.raises(BenchError, match=words):
        go(change(drawn(Setting(3, 2, 5))))


def test_bad_arguments_are_refused(drawn):
    frame = drawn(Setting(3, 2, 5))
    with pytest.raises(BenchError, match="rope is 0"):
        go(frame, rope=0)
    with pytest.raises(BenchError, match="unknown kind 'dice'"):
        go(frame, kind="dice")
    with pytest.raises(BenchError, match="a distance is -1"):
        go(frame.assign(value=-1.0), kind="distance")
    with pytest.raises(BenchError, match="the loss 'L2', which is not among"):
        go(frame, losses=["L0", "L1"])


def test_a_frame_becomes_sorted_arrays(frame_of):
    design = read(frame_of([np.arange(12.0).reshape(2, 2, 3)]).iloc[::-1], "fraction")
    assert design.losses == ("L1", "L0")
    (block,) = design.blocks
    assert (block.fold, block.seeds, block.patients) == (-1, (0, 1), ("f0p0", "f0p1", "f0p2"))
    assert block.values[1].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert design.means == {"L1": 8.5, "L0": 2.5} and design.run_count == 2
