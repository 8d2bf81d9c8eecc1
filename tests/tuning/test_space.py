"""Spaces: how they are written, where they come from, and what is wrong with them in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import BenchError
from harness.losses import LOSSES
from harness.ranking.asked import extended, parse_loss
from harness.resolve import forget, locate
from harness.suite import Suite
from harness.tuning.space import dimension, parts_of, rounded, space_of, text_of, with_arguments
from harness.tuning.spaces import SOURCES, SPACES
from tests.tuning.conftest import SUITE, cell_of, load


@pytest.mark.parametrize("name", SPACES)
def test_every_entry_of_the_table_names_arguments_of_its_loss_and_a_source(name: str) -> None:
    found = locate(name, LOSSES, "loss", Path())
    space = space_of(found, SPACES[name])
    assert set(space) <= {p.name for p in found.params} and space
    assert not set(space) & {"background", "reduction", "absent", "smooth"}
    assert SOURCES[name].endswith(".") and SOURCES.keys() == SPACES.keys()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([0.1, 1], {"low": 0.1, "high": 1.0}),
        ((0.5, 5.0), {"low": 0.5, "high": 5.0}),
        ({"low": 1, "high": 10, "log": True}, {"low": 1.0, "high": 10.0, "log": True}),
        ({"low": 1, "high": 10, "log": False}, {"low": 1.0, "high": 10.0}),
        (["a", "b"], {"choices": ["a", "b"]}),
        ([1, 2, 3], {"choices": [1, 2, 3]}),
        ({"choices": [1, 2]}, {"choices": [1, 2]}),
        ([True, False], {"choices": [True, False]}),
        ({"one_minus": "x"}, {"one_minus": "x"}),
    ],
)
def test_forms_of_a_dimension(written: Any, read: Any) -> None:
    assert dimension(written) == read


@pytest.mark.parametrize("wrong", [[1, 1], [2, 1], {"low": 0, "high": 1, "log": True}, ["a"], ["a", "a"], 3, {"lo": 1}, None,
                                   {"low": True, "high": 2}, [1, float("inf")]])  # fmt: skip
def test_what_is_no_dimension(wrong: Any) -> None:
    with pytest.raises(ValueError, match="found"):
        dimension(wrong)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("trials: 8", "trails: 8", "toy.yaml:7: tune.trails: unknown key (did you mean 'trials'?)"),
        ("trials: 8", "trials: 0", "toy.yaml:7: tune.trials"),
        ("trials: 8, ", "", "toy.yaml:7: tune.trials: this key is required"),
        ("lr: [1e-4, 1e-1]", "lr: [1e-1, 1e-4]", "toy.yaml:7: tune.lr: expected a lower and a higher learning rate"),
        ("epochs: 3}", "epochs: 3, metric: dice@test}", "toy.yaml:7: tune.metric: nothing is ever tuned on the test set"),
        ("epochs: 3}", "epochs: 3, metric: dice}", "toy.yaml:7: tune.metric: expected METRIC@val"),
        ("epochs: 3}", "epochs: 3, metric: dcie@val}", "toy.yaml:7: tune.metric: unknown metric"),
        ("epochs: 3}", "epochs: 3, metric: tp@val}", "'tp' says nothing of quality"),
        ("epochs: 3}", "epochs: 3, metric: boundary_iou@val}", "toy.yaml:7: tune.metric: 'boundary_iou@val' is for 2D"),
        ("epochs: 3}", "epochs: 3, spaces: {fokal: {}}}", "toy.yaml:7: tune.spaces.fokal: not one of the suite's losses (did you mean 'focal'?)"),
        ("epochs: 3}", "epochs: 3, spaces: {focal: {gama: [1, 2]}}}", "toy.yaml:7: tune.spaces.focal.gama: unknown argument 'gama' (did you mean 'gamma'?)"),
        ("epochs: 3}", "epochs: 3, spaces: {focal: {gamma: [2, 1]}}}", "tune.spaces.focal.gamma: a range goes from a lower to a higher number, found 2 to 1."),
        ("epochs: 3}", "epochs: 3, spaces: {focal: {gamma: high}}}", "tune.spaces.focal.gamma: expected a range [a, b]"),
        ("epochs: 3}", "epochs: 3, spaces: {tversky: {fp_weight: {one_minus: fn_weight}}}}", "`one_minus` names an argument with a range in the same space"),
        ("split: validated", "split: default", "toy.yaml:7: tune: trials are compared on validation cases, and split 'default' of phantom has none"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_with_file_and_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(BenchError) as error:
        load(tmp_path, old, new)
    assert words in str(error.value)


LOSS = """
from torch import nn

class Mine(nn.Module):
    space = {space}

    def __init__(self, gamma: float = 2.0, mode: str = "a", turns: int = 1) -> None:
        super().__init__()
        raise RuntimeError("planning runs no code of a loss")

    def forward(self, logits, target):
        return logits.mean()
"""


def _mine(folder: Path, space: str) -> dict[str, Any]:
    forget()  # the file of the call before
    (folder / "mine.py").write_text(LOSS.format(space=space), encoding="utf-8")
    suite = load(folder, text=SUITE.replace("[dice, focal, tversky]", "[mine.py:Mine]"))
    return suite.cells[0].train["tune"].get("space", {})


def test_a_class_says_its_space_and_no_code_of_it_is_run(tmp_path: Path) -> None:
    found = _mine(tmp_path, '{"gamma": (0.5, 5.0), "mode": ["a", "b"], "turns": (1, 4)}')
    assert found == {
        "gamma": {"low": 0.5, "high": 5.0},
        "mode": {"choices": ["a", "b"]},
        "turns": {"low": 1, "high": 4, "int": True},
    }
    assert text_of(found) == "gamma 0.5 to 5, mode one of a, b, turns 1 to 4"
    for space, words in (
        ("make()", "`space` is not plain"),
        ('{"gama": (1, 2)}', "unknown argument 'gama'"),
        ('{"turns": (0.5, 2)}', "takes whole numbers"),
    ):
        with pytest.raises(BenchError, match=words):
            _mine(tmp_path, space)


def test_a_space_is_no_part_of_a_loss_digest_and_a_subclass_has_that_of_its_base(tmp_path: Path) -> None:
    digests = set()
    for space in ('{"gamma": (0.5, 5.0)}', '{"gamma": (0.5, 4.0)}'):
        _mine(tmp_path, space)
        suite = load(tmp_path, text=SUITE.replace("[dice, focal, tversky]", "[mine.py:Mine]"))
        digests.add(suite.cells[0].loss_digest)
    assert len(digests) == 1
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n\nclass Heir(Mine):\n    pass\n")
    forget()
    heir = load(tmp_path, text=SUITE.replace("[dice, focal, tversky]", "[mine.py:Heir]")).cells[0]
    assert heir.train["tune"]["space"] == {"gamma": {"low": 0.5, "high": 4.0}}


def test_what_the_suite_sets_stays_unless_it_names_a_space(tmp_path: Path) -> None:
    def spaces(losses: str, extra: str = "", rule: str = "") -> dict[str, Any]:
        text = SUITE.replace("[dice, focal, tversky]", losses).replace("epochs: 3}", f"epochs: 3{extra}}}") + rule
        return {c.loss_label: c.train["tune"].get("space") for c in load(tmp_path, text=text).cells}

    assert spaces("[dice, focal]") == {"dice": None, "focal": {"gamma": {"low": 0.5, "high": 5.0}}}
    assert spaces("[focal: {gamma: {sweep: [1, 2]}}]") == {"focal(gamma=1)": None, "focal(gamma=2)": None}
    assert spaces("[tversky: {fn_weight: 0.7, fp_weight: 0.3}]") == {"tversky": None}
    assert spaces("[tversky: {fp_weight: 0.3}]") == {"tversky": None}  # the other would no longer be 1 minus it
    named = spaces("[focal: {gamma: 1}]", ", spaces: {focal: {gamma: [1, 3]}}")
    assert named == {"focal": {"gamma": {"low": 1.0, "high": 3.0}}}
    assert spaces("[focal]", ", spaces: {focal: {}}") == {"focal": None}
    one = spaces("[focal: {gamma: {sweep: [1, 2]}}]", ', spaces: {"focal(gamma=2)": {gamma: [1, 3]}}')
    assert one == {"focal(gamma=1)": None, "focal(gamma=2)": {"gamma": {"low": 1.0, "high": 3.0}}}
    # of the rule `with` the varied loss alone is tuned
    ruled = spaces("[tversky]", rule="with: {varied: 0.5, focal: 0.5}\n")["tversky"]
    assert set(ruled) == {"tversky.fn_weight", "tversky.fp_weight"}
    assert ruled["tversky.fp_weight"] == {"one_minus": "tversky.fn_weight"}


def test_arguments_reach_the_parts_of_a_nested_sum_by_name(tmp_path: Path) -> None:
    text = SUITE.replace(
        "[dice, focal, tversky]", "[sum: [{loss: focal}, {loss: {sum: [{loss: focal}, {loss: dice}]}}]]"
    )
    spec = load(tmp_path, text=text).cells[0].loss
    assert [prefix for prefix, _ in parts_of(spec)] == ["focal.", "focal#2.", "dice."]
    changed = with_arguments(spec, {"focal.gamma": 1.0, "focal#2.gamma": 3.0})
    assert changed["sum"][0]["loss"]["args"] == {"gamma": 1.0}
    assert changed["sum"][1]["loss"]["sum"][0]["loss"]["args"] == {"gamma": 3.0}
    assert changed["sum"][1]["loss"]["sum"][1]["loss"]["args"] == {} and spec["sum"][0]["loss"]["args"] == {}


def test_ids_hold_the_budget_and_suites_without_it_are_as_they_were(tmp_path: Path) -> None:
    base = cell_of(load(tmp_path))
    bare = cell_of(load(tmp_path, "tune: {trials: 8, lr: [1e-4, 1e-1], epochs: 3}\n"))
    assert "tune" not in bare.train and bare.train_id != base.train_id
    for old, new in (
        ("trials: 8", "trials: 9"),
        ("lr: [1e-4, 1e-1]", "lr: [1e-4, 2e-1]"),
        ("epochs: 3}", "epochs: 4}"),
        ("epochs: 3}", "epochs: 3, metric: iou@val}"),
        ("epochs: 3}", "epochs: 3, at_once: 2}"),
        ("epochs: 3}", "epochs: 3, spaces: {focal: {gamma: [1, 3]}}}"),
    ):
        assert cell_of(load(tmp_path, old, new)).train_id != base.train_id
    same = cell_of(load(tmp_path, "epochs: 3}", "epochs: 3, metric: dice@val, at_once: 1}"))
    assert same.train_id == base.train_id and base.described()["train"]["tune"]["trials"] == 8
    # without a rate and a parameter there is nothing to tune: the cell is that of an untuned suite
    only = load(tmp_path, "lr: [1e-4, 1e-1], ")
    assert "tune" not in cell_of(only, "dice").train and cell_of(only, "focal").train["tune"]["space"]


def test_the_id_of_a_tuned_cell_holds_the_patients_and_the_scoring_that_chose(suite: Suite, tmp_path: Path) -> None:
    bare = load(tmp_path, "tune: {trials: 8, lr: [1e-4, 1e-1], epochs: 3}\n")
    for cell, moves in ((cell_of(suite), True), (cell_of(bare), False)):
        fewer = cell.data["val"][1:]
        others = [
            replace(cell, data=cell.data | {"val": fewer}),
            replace(cell, data=cell.data | {"regions": {"both": ["liver", "spleen"]}}),
            replace(cell, profiles=("nnunet",)),
            replace(cell, engine="surface-distance"),
        ]
        assert fewer and [o.train_id != cell.train_id for o in others] == [moves] * 4
        assert replace(cell, data=cell.data | {"test": cell.data["test"][1:]}).train_id == cell.train_id


def test_quick_has_fewer_trials_and_epochs(tmp_path: Path) -> None:
    tune = cell_of(load(tmp_path, quick=True)).train["tune"]
    assert (tune["trials"], tune["epochs"]) == (2, 2)
    text = SUITE + "quick: {trials: 3, epochs: 1}\n"
    tune = cell_of(load(tmp_path, text=text, quick=True)).train["tune"]
    assert (tune["trials"], tune["epochs"]) == (3, 1)


def test_numbers_are_rounded_to_four_digits() -> None:
    assert (rounded(0.00123456), rounded(2.18549)) == (0.001235, 2.185)


def test_a_ranked_loss_has_the_budget_of_the_suite_over_its_own_space(tmp_path: Path) -> None:
    suite = load(tmp_path)
    whole = extended(suite, [parse_loss("focal_tversky"), parse_loss("ce"), parse_loss("focal(gamma=2)")])
    found = {c.loss_label: c.train["tune"] for c in whole.cells if c.loss_label in whole.ranked}
    assert {label: tune["trials"] for label, tune in found.items()} == {
        "focal_tversky": 8,
        "ce": 8,
        "focal(gamma=2)": 8,
    }
    assert set(found["focal_tversky"]["space"]) == {"fn_weight", "fp_weight", "gamma"}
    assert "space" not in found["ce"] and "space" not in found["focal(gamma=2)"]  # what is asked for stays
