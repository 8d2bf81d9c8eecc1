"""What differs between records is said, and what does not is not."""

from __future__ import annotations

from harness.plan import make_plan
from harness.ranking.differences import differences, hardware_differs

MINE = "MyLoss"


def _written(made, **record):
    """Records of the suite's own losses, then those of the ranked one with other fields."""
    whole = made.whole()
    suite = type(whole)(**{**vars(whole), "cells": tuple(c for c in whole.cells if c.loss_label != MINE)})
    made.leave(suite)
    return whole, made.leave(whole, **record)


def test_nothing_is_said_of_what_is_equal(made) -> None:
    whole, entries = _written(made)
    assert differences(entries, whole.ranked) == [] and not hardware_differs(entries, whole.ranked)


def test_hardware_and_versions(made) -> None:
    environment = {"device": "cuda:0 H200", "instructions": "AVX2", "platform": "Linux", "threads": 1, "torch": "2.12"}
    whole, entries = _written(made, environment=environment)
    said = differences(entries, whole.ranked)
    assert said[0] == "Not the same: the device is cuda:0 H200 for what is ranked and cpu for the others."
    assert said[1] == "Not the same: the version of torch is 2.12 for what is ranked and 2.13 for the others."
    assert len(said) == 3 and hardware_differs(entries, whole.ranked)


def test_other_weights_or_batches_are_no_pairs(made) -> None:
    whole, entries = _written(made, fingerprints={"init": "i0", "batches": "z"})
    said = differences(entries, whole.ranked)
    assert [s.partition(";")[0] for s in said] == [
        "NOT PAIRED: in 4 of 5 cells the initial weights are not those of the other losses",  # seed 0 has i0
        "NOT PAIRED: in 5 of 5 cells the batches are not those of the other losses",
    ]


def test_records_of_an_earlier_source_count_and_are_named(made) -> None:
    whole = made.whole()
    stale = {"sources": {"loss": "other", "model": whole.cells[0].sources["model"]}}
    focal = tuple(c for c in whole.cells if c.loss_label == "focal")
    made.leave(type(whole)(**{**vars(whole), "cells": focal}), **stale)
    entries = made.leave(whole)
    assert [e.state for e in entries if e.cell.loss_label == "focal"] == ["stale"] * 5
    (said,) = differences(entries, whole.ranked)
    assert said.startswith("5 of 15 records of the others were made with an earlier source of loss focal; they count")
    (place,) = made.standing(whole, entries).places
    assert place.losses == 4


def test_the_ranked_loss_itself_does_not_count_with_an_earlier_source(made) -> None:
    whole, entries = _written(made, sources={"loss": "other", "model": "other"})
    assert made.standing(whole, entries).missing == "no place: its cells are 5 stale"


def test_cells_without_a_record_are_named(made) -> None:
    whole, entries = _written(made)
    gone = next(e for e in entries if e.cell.loss_label == "ce")
    (gone.folder / "record.json").unlink()
    again = make_plan(whole, made.out, made.folder / "reports")
    assert differences(again, whole.ranked) == [
        "Without a record, so not in the comparison: ce (1) of 15 cells. `bench run SUITE` makes them."
    ]
