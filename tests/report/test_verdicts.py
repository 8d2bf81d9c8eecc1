"""Verdicts in the report: what is compared, by hand, and what is said where nothing can be."""

from dataclasses import replace

import numpy as np
import pytest

from harness.report.frames import prepare
from harness.report.layouts import APART, Numbers, build
from harness.report.tables import leaderboard
from harness.report.verdict_tables import sensitivity_views, statistics_views, tier_views, variance_views
from harness.report.verdicts import Ranking, board_columns, compare, equivalence, verdict_sentence
from tests.report.conftest import Frame

LOSSES = ("dice_ce", "ce", 'my<loss>&"x"/é')


def study(frame, *, seeds=5, patients=12, gap=0.0, losses=LOSSES, status="ok"):
    """Dice of two classes; the second loss is `gap` lower, all else is small noise shared by nobody."""
    rng = np.random.default_rng(3)
    for k, loss in enumerate(losses):
        for seed in range(seeds):
            frame.cell(loss, seed, status)
            for p in range(patients):
                for name, base in (("liver", 0.9), ("spleen", 0.7)):
                    value = base + 0.004 * p - gap * (k == 1) + rng.normal(0, 0.002)
                    frame.case(loss, value, seed=seed, patient=f"p{p}", **{"class": name})
    return frame


def prepared(frame):
    return prepare(*frame.frames)


def by_loss(comparison):
    return {r.loss: r for r in comparison.analysis.losses}


def test_the_effect_is_the_difference_of_means_over_classes_and_a_large_one_is_worse(frame):
    frames = prepared(study(frame, gap=0.05))
    (found,) = compare(frames, Ranking(("dice",), "dice_ce"))
    means = frames.cases.groupby("loss")["value"].mean()
    results = by_loss(found)
    assert results["ce"].effect == pytest.approx(means["ce"] - means["dice_ce"], abs=1e-12)
    assert results["ce"].verdict == "worse" and results["ce"].tier == 2
    assert results[LOSSES[2]].verdict == "equivalent"  # within ±0.01
    best = max(("dice_ce", LOSSES[2]), key=lambda name: means[name])
    assert verdict_sentence([found]).startswith(f"DSC on synapse with unet: {best} and ")
    assert "are not shown to be worse than the best; worse than dice_ce: ce; a difference of" in verdict_sentence(
        [found]
    )
    columns = {c.heading: c for c in board_columns([found], "synapse")}
    assert columns["Verdict"].cell("unet", "ce").text == "worse"
    assert columns["Difference, 95 % (%)"].cell("unet", "ce").text == f"−{-100 * results['ce'].effect:.2f}"
    assert columns["Difference, 95 % (%)"].cell("unet", "dice_ce").text == "baseline"
    assert columns["Tier"].cell("unet", "ce").value == 2


def test_cases_of_a_patient_and_its_classes_are_averaged_before_anything(frame):
    for loss, values in (("a", (0.5, 0.7, 0.2)), ("b", (0.6, 0.6, 0.8))):
        for seed in (0, 1, 2):
            frame.cell(loss, seed)
            for patient in ("p1", "p2"):
                x, y, z = values
                frame.case(loss, x, seed=seed, patient=patient, case=f"{patient}-1")
                frame.case(loss, y, seed=seed, patient=patient, case=f"{patient}-2")
                frame.case(loss, z, seed=seed, patient=patient, **{"class": "spleen"})
    (found,) = compare(prepared(frame), Ranking(("dice",), "a"))
    # a: ((0.5 + 0.7) / 2 + 0.2) / 2 = 0.4; b: (0.6 + 0.8) / 2 = 0.7
    assert by_loss(found)["a"].mean == pytest.approx(0.4)
    assert by_loss(found)["b"].effect == pytest.approx(0.3)


def test_one_seed_and_one_fold_give_no_verdict_and_say_why(frame):
    found = compare(prepared(study(frame, seeds=1, gap=0.3)), Ranking(("dice",), "dice_ce"))
    assert verdict_sentence(found).startswith("No verdict: with one seed and one fold")
    assert {r.verdict for r in found[0].analysis.losses} == {"baseline", "no verdict"}
    headings = [c.heading for c in board_columns(found, "synapse")]
    assert headings == ["Difference, 95 % (%)"]
    assert found[0].analysis.no_verdict in statistics_views(found)[0].notes


def test_distances_are_compared_where_all_have_one_and_misses_apart(frame):
    rng = np.random.default_rng(0)
    for loss, factor in (("a", 1.0), ("b", 2.0)):
        for seed in range(4):
            frame.cell(loss, seed)
            for p in range(10):
                empty = loss == "b" and p == 0 and seed == 1
                value = None if empty else factor * (3 + p + rng.normal(0, 0.1)) + (factor - 1)
                more = {"metric": "hd95", "status": "pred_empty" if empty else "ok"}
                frame.case(loss, value, seed=seed, patient=f"p{p}", **more)
                frame.case(loss, 1.0, seed=seed, patient=f"p{p}", metric="hd95", **{"class": "spleen"})
    far, missed = compare(prepared(frame), Ranking(("hd95",), "a"))
    assert (far.outcome, missed.outcome) == ("distance", "misses")
    assert far.note.startswith("1 of 20 pairs of patient and class are left out")
    assert by_loss(far)["b"].effect > 0.2 and by_loss(far)["b"].verdict == "worse"
    # one of 10 patients × 4 seeds × 2 classes
    assert by_loss(missed)["b"].mean == pytest.approx(1 / 80)
    assert by_loss(missed)["a"].mean == 0.0
    titles = [v.title for v in statistics_views([far, missed])]
    assert titles == [
        "synapse, unet: HD95 (mm), without misses",
        "synapse, unet: misses, one of the two masks empty (%)",
    ]


@pytest.mark.parametrize(
    ("profile", "counted"), [("voxel-max", "the image diagonal."), ("transunet", "transunet does.")]
)
def test_a_table_of_distances_says_how_the_leaderboard_counts_misses(frame, profile, counted):
    rng = np.random.default_rng(0)
    for loss in "ab":
        for seed in range(3):
            frame.cell(loss, seed)
            for p in range(8):
                value = 3 + p + rng.normal(0, 0.1)
                frame.case(loss, value, seed=seed, patient=f"p{p}", metric="hd95", profile=profile)
    far, *_ = compare(prepared(frame), Ranking(("hd95",), "a"))
    (view,) = statistics_views([far])
    assert any(f"Without misses, which the leaderboard counts as {counted}" in note for note in view.notes)


def test_the_two_means_of_a_loss_and_what_is_said_of_them(frame):
    """Where a class is absent in a patient, the leaderboard's mean is not that of the statistics."""
    for loss in ("a", "b"):
        for seed in (0, 1, 2):
            frame.cell(loss, seed).case(loss, 0.9, seed=seed, patient="p1")
            frame.case(loss, 0.5, seed=seed, patient="p2")
            frame.case(loss, 0.1, seed=seed, patient="p1", **{"class": "spleen"})
            frame.case(loss, None, seed=seed, patient="p2", status="both_empty", **{"class": "spleen"})
    frames = prepared(frame)
    (found,) = compare(frames, Ranking(("dice",), "a"))
    # liver (0.9 + 0.5) / 2, spleen 0.1, then (0.7 + 0.1) / 2; and p1 (0.9 + 0.1) / 2, p2 0.5, then 0.5
    assert leaderboard(frames)["dice"].tolist() == pytest.approx([0.4, 0.4])
    assert by_loss(found)["a"].mean == pytest.approx(0.5)
    (view,) = statistics_views([found])
    assert any("Mean: over the classes of a patient, then over patients and runs; in the" in n for n in view.notes)
    (survey,) = build(Numbers(frames), "survey_table")
    assert APART in survey.notes


def test_equivalent_is_defined_with_its_own_p(frame):
    frames = prepared(study(frame, gap=0.05))
    (found,) = compare(frames, Ranking(("dice",), "dice_ce", 0.02))
    same = by_loss(found)[LOSSES[2]]
    assert same.verdict == "equivalent" and same.p_rope < 0.05 < same.p_holm
    said = "Equivalent: no difference is shown, and two one-sided tests (Holm) show that it is within ±2 points."
    assert equivalence(found) == said
    (view,) = statistics_views([found])
    assert said in view.notes and any("p is that of the test for a difference." in n for n in view.notes)
    row = next(r for b in view.blocks for r in b.rows if r.name == LOSSES[2])
    assert f"equivalent (p = {same.p_rope:.2g})" in [e.text for e in row.entries]
    # nothing is defined where no loss is called so
    (other,) = compare(prepare(*study(Frame(), gap=0.05, losses=LOSSES[:2]).frames), Ranking(("dice",), "dice_ce"))
    assert equivalence(other) == "" and "Equivalent" not in " ".join(statistics_views([other])[0].notes)


def test_a_headline_does_not_promise_to_have_found_what_no_loss_ever_shows(frame):
    (found,) = compare(prepared(study(frame)), Ranking(("dice",), "dice_ce"))
    assert "points would have been found with a power of 80 %" in verdict_sentence([found])
    now = next(d for d in found.analysis.detectable if d.now)
    wide = replace(found, analysis=replace(found.analysis, detectable=(replace(now, difference=0.784),)))
    assert verdict_sentence([wide]).endswith(
        "; there are too few seeds or patients to show a difference of a realistic size: the smallest found with a "
        "power of 80 % is 78.4 points."
    )


def test_a_diverged_run_keeps_a_loss_out_of_the_first_tier(frame):
    study(frame, seeds=5)
    for row in frame.cell_rows:
        if row["loss"] == "ce" and row["seed"] == 2:
            row["status"] = "diverged"
    frame.case_rows = [r for r in frame.case_rows if not (r["loss"] == "ce" and r["seed"] == 2)]
    (found,) = compare(prepared(frame), Ranking(("dice",), "dice_ce"))
    result = by_loss(found)["ce"]
    assert result.diverged == 1 and result.tier != 1
    row = next(r for b in statistics_views([found])[0].blocks for r in b.rows if r.name == "ce")
    assert row.remark == "1 diverged"


def test_a_baseline_without_values_is_a_sentence(frame):
    (found,) = compare(prepared(study(frame)), Ranking(("dice",), "tversky"))
    assert found.analysis is None and "'tversky' has no value" in found.reason
    assert statistics_views([found])[0].notes == (found.reason,)
    assert board_columns([found], "synapse") == []


def test_without_a_baseline_the_first_loss_of_the_suite_is_it(frame):
    (found,) = compare(prepared(study(frame)), Ranking(("dice",)))
    assert found.analysis.baseline == "dice_ce"


def test_a_metric_that_was_not_measured_is_passed_over(frame):
    assert compare(prepared(study(frame)), Ranking(("hd95",))) == []
    assert verdict_sentence([]) == "No verdict: no run was measured."


def test_variance_and_sensitivity_tables(frame):
    frames = prepared(study(frame, gap=0.05))
    found = compare(frames, Ranking(("dice",), "dice_ce"))
    (variance,) = variance_views(found)
    shares = [row.entries[1].value for row in variance.blocks[0].rows]
    assert sum(shares) == pytest.approx(100)
    assert variance.blocks[0].rows[0].name == "patient" and shares[0] > 50
    assert "5 seeds (now): " in variance.notes[0]
    (order,) = sensitivity_views(frames, Ranking(("dice",), "dice_ce"))
    rows = {(b.name, r.name): r.entries[0].value for b in order.blocks for r in b.rows}
    assert rows["empty masks", "drop"] == 1.0
    assert {name for kind, name in rows if kind == "class left out"} == {"liver", "spleen"}


def test_tiers_by_metric_and_by_class(frame):
    study(frame, gap=0.05)
    rng = np.random.default_rng(1)
    for row in [r for r in frame.case_rows if r["metric"] == "dice"]:
        value = 2.0 + rng.normal(0, 0.1)  # no loss differs in distance
        frame.case(
            row["loss"], value, seed=row["seed"], patient=row["patient"], metric="hd95", **{"class": row["class"]}
        )
    (view,) = tier_views(prepared(frame), Ranking(("dice",), "dice_ce"))
    assert [c.name for c in view.columns] == ["DSC", "HD95", "liver", "spleen"]
    shown = {r.name: [e.text for e in r.entries] for r in view.blocks[0].rows}
    assert [text[0] for text in shown["ce"]] == ["2", "1", "2", "2"]
    assert [text[0] for text in shown["dice_ce"]] == ["1"] * 4
    assert set(view.frame["column"]) == {"DSC", "HD95", "liver", "spleen"}


def test_no_tiers_without_a_verdict(frame):
    assert tier_views(prepared(study(frame, seeds=1)), Ranking(("dice",), "dice_ce")) == []


def test_the_sentence_where_every_loss_lost_a_run(frame):
    study(frame, seeds=5)
    lost = {(loss, seed) for seed, loss in enumerate(LOSSES)}
    for row in frame.cell_rows:
        if (row["loss"], row["seed"]) in lost:
            row["status"] = "diverged"
    frame.case_rows = [r for r in frame.case_rows if (r["loss"], r["seed"]) not in lost]
    found = compare(prepared(frame), Ranking(("dice",), "dice_ce"))
    assert all(r.tier != 1 for r in found[0].analysis.losses)
    assert "no loss has all of its runs, so none is in the first tier" in verdict_sentence(found)


def test_the_sentence_where_one_loss_is_alone_in_front(frame):
    found = compare(prepared(study(frame, gap=-0.05, losses=("dice_ce", "ce", "dice"))), Ranking(("dice",), "dice_ce"))
    assert "DSC on synapse with unet: ce alone is in the first tier; better than dice_ce: ce" in verdict_sentence(found)


def test_the_sensitivity_of_the_ranking_names_the_losses_that_lack_runs(frame):
    whole = sensitivity_views(prepare(*study(frame, seeds=2).frames), Ranking())
    assert whole and not any("lack some" in note for view in whole for note in view.notes)
    frame.cell(LOSSES[-1], 9, "diverged")
    (view,) = sensitivity_views(prepare(*frame.frames), Ranking())
    assert f"These lack some: {LOSSES[-1]} (2/3 runs)." in " ".join(view.notes)
