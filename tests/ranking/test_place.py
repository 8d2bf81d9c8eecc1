"""Planted losses on synthetic records: what is better, worse, the same or diverged is found to be that."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from harness.plan import make_plan
from harness.ranking.command import _costs
from harness.records import read_rows

MINE = "MyLoss"


def _means(made, loss: str, name: str | None = None) -> float:
    """By hand: the mean over runs of the mean over cases and classes."""
    runs = []
    for path in made.out.glob("*/*/cases.csv"):
        rows = [r for r in read_rows(path) if r["loss"] == loss and name in (None, r["class"])]
        if rows:
            runs.append(sum(float(r["value"]) for r in rows) / len(rows))
    return sum(runs) / len(runs)


def test_a_better_loss_is_found_better(made) -> None:
    whole = made.whole()
    found = made.standing(whole, made.leave(whole, {MINE: 0.03}))
    (place,) = found.places
    assert (place.verdict, place.tier, place.rank, place.losses) == ("better", 1, 1, 4)
    assert place.rank_low == place.rank_high == 1 and place.first > 0.99
    assert place.low > 0 and place.p_holm < 0.01 and place.unit == "points"
    assert place.effect == pytest.approx(100 * (_means(made, MINE) - _means(made, "dice")), abs=1e-9)
    assert place.mean == pytest.approx(100 * _means(made, MINE)) and place.runs == 5
    assert place.baseline_mean == pytest.approx(100 * _means(made, "dice"))
    assert (
        "tier 1 of" in place.said and "better after Holm" in place.said and "probability of rank 1: 100 %" in place.said
    )


def test_a_worse_loss_is_put_below(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole, {MINE: -0.03})).places
    assert (place.verdict, place.rank) == ("worse", 4) and place.tier > 1 and place.tier == place.tiers
    assert place.high < 0 and place.first < 0.01 and place.rank_low == 4


def test_what_does_not_differ_is_not_said_to(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole)).places
    assert place.tier == 1 and place.low < 0 < place.high
    assert place.verdict in ("no difference shown", "equivalent")


def test_equivalent_names_the_range_and_the_p_of_its_own_test(made) -> None:
    whole = made.whole()
    entries = made.leave(whole, copies={MINE: "dice"})
    (place,) = made.standing(whole, entries).places
    assert place.verdict == "equivalent" and place.p_holm == 1 and place.p_rope < 0.05
    assert f": equivalent (within ±1 point) after Holm (p = {place.p_rope:.2g})." in place.said


def test_memory_is_the_largest_and_times_that_cannot_be_compared_have_no_ratio(made) -> None:
    whole = made.whole()
    entries = made.leave(whole)
    path = next(e for e in entries if e.cell.loss_label == MINE).folder / "record.json"
    record = json.loads(path.read_text())
    record["cost"]["peak_rss_mb"] = 400.0
    path.write_text(json.dumps(record))

    def costs(**environment: object) -> tuple[str, float]:
        for entry in entries:
            text = json.loads((entry.folder / "record.json").read_text())
            text["environment"] |= environment
            (entry.folder / "record.json").write_text(json.dumps(text))
        found = made.standing(whole, make_plan(whole, made.out, made.folder / "reports"))
        return " ".join(_costs(found)), found.cost["m / unet"].peak_rss_mb

    said, memory = costs()
    assert memory == 400 and "400 MB at most; dice: " in said and "100 MB at most; no comparison" in said
    assert "no comparison of the times: no record says what else ran on the processors" in said
    said, _ = costs(device="cuda:0 H200", processes=4)
    assert "no comparison of the times: up to 4 processes shared the device" in said and "its step" not in said
    assert "1.00 times its step" in costs(processes=1)[0]


def test_the_same_values_stand_in_the_same_tier_with_effect_nought(made) -> None:
    whole = made.whole()
    entries = made.leave(whole, {"dice": 0.03}, copies={MINE: "dice"})
    (place,) = made.standing(whole, entries).places
    assert place.effect == 0 and place.tier == 1 and place.rank == 1 and place.verdict != "better"
    (against,) = made.standing(whole, entries, "ce").places
    assert against.verdict == "better" and against.tier == 1


def test_gains_by_class_are_those_of_the_class(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole, {MINE: {"disc": 0.04, "ring": -0.04}})).places
    disc, ring = place.classes
    assert (disc.name, ring.name) == ("disc", "ring")
    assert disc.low > 0 > ring.high
    for one in (disc, ring):
        assert one.mean == pytest.approx(100 * _means(made, MINE, one.name))
        assert one.effect == pytest.approx(one.mean - one.baseline)
        assert one.low < one.effect < one.high
    assert (disc.effect + ring.effect) / 2 == pytest.approx(place.effect)


def test_a_loss_that_diverged_once_is_last_and_never_in_the_first_tier(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole, {MINE: 0.05}, diverged={MINE: {3}})).places
    assert (place.rank, place.diverged, place.runs) == (4, 1, 4) and place.tier > 1
    assert "Of its 5 runs 1 diverged" in place.said and "cannot be in the first tier" in place.said


def test_a_loss_that_always_diverged_is_behind_all(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole, diverged={MINE: {0, 1, 2, 3, 4}})).places
    assert (place.rank, place.losses, place.tier, place.diverged, place.effect) == (4, 4, None, 5, None)
    assert "Of its 5 runs 5 diverged" in place.said


def test_without_results_there_is_no_place_and_a_reason(made) -> None:
    whole = made.whole()
    entries = made.leave(whole)
    for entry in entries:
        if entry.cell.loss_label == MINE:
            (entry.folder / "record.json").unlink()
    found = made.standing(whole, make_plan(whole, made.out, made.folder / "reports"))
    assert found.places == () and found.missing == "no place: its cells are 5 missing"


def test_more_seeds_find_smaller_differences(made) -> None:
    whole = made.whole()
    (place,) = made.standing(whole, made.leave(whole, {MINE: 0.006})).places
    now = [s for s in place.seeds if s.now]
    assert [s.seeds for s in now] == [5] and place.seeds[-1].seeds == 10
    assert place.seeds[-1].difference < now[0].difference
    shown = re.search(r"With 5 seeds a difference of (\S+) points .*, with 10, (\S+)\.", place.more)
    assert shown and [float(x) for x in shown.groups()] == pytest.approx(
        [now[0].difference, place.seeds[-1].difference], abs=0.005
    )
    assert "would need more than 10 seeds" in place.more or "would need about 10 seeds" in place.more


def test_cost_is_compared_on_the_same_hardware_only(made) -> None:
    whole = made.whole()
    entries = made.leave(whole)
    found = made.standing(whole, entries)
    assert found.cost["m / unet"].train_s == 13 and found.baseline_cost["m / unet"].train_s == 10
    for entry in entries:
        if entry.cell.loss_label == MINE:
            path = entry.folder / "record.json"
            record = json.loads(path.read_text())
            record["environment"]["instructions"] = "AVX512"
            path.write_text(json.dumps(record))
    assert made.standing(whole, make_plan(whole, made.out, made.folder / "reports")).baseline_cost is None


def test_the_places_are_those_of_the_report(made) -> None:
    """The same numbers as the verdicts of a suite that lists the loss itself."""
    whole = made.whole()
    entries = made.leave(whole, {MINE: 0.01})
    (place,) = made.standing(whole, entries).places
    from harness.report.frames import prepare
    from harness.report.verdicts import Ranking, compare
    from harness.rows import frames
    from harness.suite import load_suite

    own = load_suite(made.suite("[dice, ce, focal]", "[dice, ce, focal, 'my_loss.py:MyLoss']"))
    listed = make_plan(own, made.out, made.folder / "reports")
    assert {e.state for e in listed} == {"ok"}
    tables = frames(listed)
    (c,) = compare(prepare(tables.cells, tables.cases, tables.curves), Ranking(("dice",), "dice"))
    mine = next(r for r in c.analysis.losses if r.loss == MINE)
    assert (mine.tier, mine.rank, mine.first) == (place.tier, place.rank, place.first)
    assert 100 * mine.low == pytest.approx(place.low) and mine.verdict == place.verdict
    assert isinstance(tables.cells, pd.DataFrame)
