"""A study is a function of its records: any order, any kill, the same trials and the same choice; no test patient."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.data.manifest import packed
from harness.errors import BenchError
from harness.seeds import TUNING_SEED
from harness.suite import Suite
from harness.tuning.study import Study, Trial, choice_of, study_key
from tests.tuning.conftest import SUITE, by_formula, cell_of, load, peak, rate, write


def run(study: Study, order: random.Random | None = None, answer: Any = by_formula) -> Study:
    """Answer pending trials, one at a time, to the end."""
    while waiting := study.pending():
        answer(waiting[order.randrange(len(waiting)) if order else 0], study.out)
    return study


def asked(trials: Sequence[Trial]) -> list[tuple[float, dict[str, Any], str]]:
    return [(t.lr, t.args, t.cell.eval_id) for t in trials]


def test_the_choice_is_the_best_trial_and_never_worse_than_the_suites_own(suite: Suite, tmp_path: Path) -> None:
    cell = cell_of(suite)
    study = run(Study(cell, tmp_path / "runs"))
    scores = [peak(t.cell) for t in study.trials]
    assert len(scores) == 8 and study.trials[0].args == {} and study.trials[0].lr == 0.01
    chosen = choice_of(cell, tmp_path / "runs")
    assert chosen.told["trial"] == scores.index(max(scores)) and chosen.told["value"] == pytest.approx(max(scores))
    assert chosen.told["default"] == pytest.approx(scores[0]) and chosen.told["value"] >= chosen.told["default"]
    assert (chosen.told["trials"], chosen.told["failed"], chosen.told["seconds"]) == (8, 0, 20.0)
    assert rate(chosen.cell) == chosen.told["lr"] == study.trials[chosen.told["trial"]].lr
    assert chosen.cell.loss["args"] == chosen.told["args"] and "tune" not in chosen.cell.train
    assert chosen.cell.data == cell.data and chosen.cell.seed == cell.seed and chosen.cell.train["epochs"] == 6
    assert all(1e-4 <= t.lr <= 1e-1 and 0.5 <= t.args["gamma"] <= 5 for t in study.trials[1:])


@pytest.mark.parametrize("at_once", [1, 3])
def test_any_order_and_any_kill_give_the_same_trials_and_choice(tmp_path: Path, at_once: int) -> None:
    cell = cell_of(load(tmp_path, "epochs: 3}", f"epochs: 3, at_once: {at_once}}}"))
    whole = run(Study(cell, tmp_path / "whole"))
    shuffled = run(Study(cell, tmp_path / "shuffled"), random.Random(3))
    assert asked(whole.trials) == asked(shuffled.trials) and whole.choice == shuffled.choice
    # killed after five answers; a new process knows nothing but the records
    killed = Study(cell, tmp_path / "killed")
    for _ in range(5):
        by_formula(killed.pending()[-1], killed.out)
    with pytest.raises(BenchError, match="has no record in the folder of results"):
        choice_of(cell, tmp_path / "killed")
    resumed = run(Study(cell, tmp_path / "killed"))
    assert asked(resumed.trials) == asked(whole.trials)
    assert choice_of(cell, tmp_path / "killed") == whole.choice
    # at most `at_once` wait at a time
    assert len(Study(cell, tmp_path / "empty").pending()) == at_once


def test_failed_trials_count_and_are_never_chosen(suite: Suite, tmp_path: Path) -> None:
    statuses = ["ok", "diverged", "oom", "ok", "timeout", "error", "ok", "ok"]

    def answer(trial: Trial, out: Path) -> None:
        status = statuses[trial.number]
        write(trial.cell, out, peak(trial.cell) if status == "ok" else None, status)

    study = run(Study(cell_of(suite), tmp_path / "runs"), answer=answer)
    told = study.choice.told
    assert (told["trials"], told["failed"]) == (8, 4) and statuses[told["trial"]] == "ok"


def test_where_every_trial_fails_the_suites_own_configuration_is_trained(suite: Suite, tmp_path: Path) -> None:
    study = run(Study(cell_of(suite), tmp_path / "runs"), answer=lambda t, out: write(t.cell, out, None, "diverged"))
    told = study.choice.told
    assert (told["trial"], told["failed"], told["value"], told["default"], told["lr"]) == (0, 8, None, None, 0.01)


def test_an_interrupted_a_stale_and_a_rowless_record_are_no_answers(suite: Suite, tmp_path: Path) -> None:
    study = Study(cell_of(suite), tmp_path)
    (first,) = study.pending()
    for spoilt in (
        lambda: write(first.cell, tmp_path, None, "interrupted"),
        lambda: write(replace(first.cell, loss_digest="other"), tmp_path, 0.9),
        lambda: (write(first.cell, tmp_path, 0.9), (first.cell.eval_folder(tmp_path) / "cases.csv").unlink()),
    ):
        shutil.rmtree(first.cell.folder(tmp_path), ignore_errors=True)
        spoilt()
        assert [t.number for t in study.pending()] == [0]
    write(first.cell, tmp_path, 0.9)
    assert [t.number for t in study.pending()] == [1]


def test_a_metric_that_is_better_lower_is_minimised(tmp_path: Path) -> None:
    cell = cell_of(load(tmp_path, "epochs: 3}", "epochs: 3, metric: hd95@val}"))
    assert cell.train["tune"]["metric"] == "hd95"
    study = Study(cell, tmp_path)
    values = [5.0, 4.0, 9.0, 3.0, 3.0, 8.0, 7.0, 6.0]
    while waiting := study.pending():
        trial = waiting[0]
        write(trial.cell, tmp_path, values[trial.number])
        path = trial.cell.eval_folder(tmp_path) / "cases.csv"
        path.write_text(path.read_text().replace(",dice,", ",hd95,"))
    assert (study.choice.told["trial"], study.choice.told["value"]) == (3, 3.0)  # the first of equals


def test_no_trial_names_a_test_patient_and_test_patients_change_nothing(tmp_path: Path) -> None:
    text = (packed("data_manifests") / "phantom.yaml").read_text(encoding="utf-8")
    mine = SUITE.replace("manifest: phantom", "manifest: mine.yaml")
    found = []
    for test in ("[p28, p29, p30, p31, p32, p33, p34, p35]", "[p24, p25]"):
        old = "    test: [p28, p29, p30, p31, p32, p33, p34, p35]\n  kfold4"
        assert old in text
        (tmp_path / "mine.yaml").write_text(text.replace(old, f"    test: {test}\n  kfold4"), encoding="utf-8")
        cell = cell_of(load(tmp_path, text=mine))
        study = run(Study(cell, tmp_path / f"runs{len(found)}"))
        for trial in study.trials:
            named = {*trial.cell.data["train"], *trial.cell.data["val"], *trial.cell.data["test"]}
            assert named.isdisjoint(cell.data["test"]) and trial.cell.data["test"] == cell.data["val"] != []
            assert trial.cell.seed == TUNING_SEED < 0 and trial.cell.train["epochs"] == 3
        found.append((asked(study.trials), study.choice.told, cell))
    assert found[0][:2] == found[1][:2] and found[0][2].eval_id != found[1][2].eval_id
    assert study_key(found[0][2]) == study_key(found[1][2])


def test_with_a_selected_epoch_the_trial_selects_the_same_way(tmp_path: Path) -> None:
    chosen = load(tmp_path, "metrics: [dice]", "metrics: [dice, iou]\nselect: best:iou@val")
    (first,) = Study(cell_of(chosen), tmp_path).pending()
    assert first.cell.data["val"] == first.cell.data["test"] and first.cell.metrics == ("dice", "iou")
    (last,) = Study(cell_of(load(tmp_path)), tmp_path).pending()
    assert last.cell.data["val"] == [] and last.cell.metrics == ("dice",)


def test_every_loss_has_the_same_budget_and_its_repeats_one_study(suite: Suite, tmp_path: Path) -> None:
    sizes = {}
    for cell in suite.cells:
        sizes.setdefault(study_key(cell), []).append((cell.loss_label, cell.seed, cell.train["tune"]["trials"]))
    assert list(sizes.values()) == [[(x, 0, 8), (x, 1, 8)] for x in ("dice", "focal", "tversky")]
    lengths = {x: len(run(Study(cell_of(suite, x), tmp_path)).trials) for x in ("dice", "focal", "tversky")}
    assert set(lengths.values()) == {8}
    # trial 0 of every loss starts from the same weights and sees the same batches
    bases = [
        Study(cell_of(suite, x), tmp_path).pending() or run(Study(cell_of(suite, x), tmp_path)).trials for x in lengths
    ]
    assert len({str(trials[0].cell.seed_base) for trials in bases}) == 1


def test_tied_weights_and_parts_of_sums_are_set(tmp_path: Path) -> None:
    text = SUITE.replace(
        "[dice, focal, tversky]", "[tversky, sum: [{loss: tversky, weight: 1}, {loss: focal, weight: 2}]]"
    )
    suite = load(tmp_path, text=text)
    plain = run(Study(cell_of(suite, "tversky"), tmp_path))
    for trial in plain.trials[1:]:
        args = trial.cell.loss["args"]
        assert args["fn_weight"] + args["fp_weight"] == pytest.approx(1, abs=1e-3) and 0.1 <= args["fn_weight"] <= 0.9
    mixed = run(Study(cell_of(suite, "tversky + 2·focal"), tmp_path))
    for trial in mixed.trials[1:]:
        first, second = (term["loss"]["args"] for term in trial.cell.loss["sum"])
        assert set(first) == {"fn_weight", "fp_weight"} and set(second) == {"gamma"}
        assert trial.args == {
            "tversky.fn_weight": first["fn_weight"],
            "tversky.fp_weight": first["fp_weight"],
            "focal.gamma": second["gamma"],
        }
        assert [term["weight"] for term in trial.cell.loss["sum"]] == [1.0, 2.0]


def test_the_sampler_knows_where_the_suites_own_configuration_stands(tmp_path: Path) -> None:
    text = SUITE.replace("[dice, focal, tversky]", "[focal, focal_tversky, soft_cldice]")
    suite = load(tmp_path, text=text)
    known = {x: Study(cell_of(suite, x), tmp_path)._own_values() for x in ("focal", "focal_tversky", "soft_cldice")}
    assert known["focal"] == {"lr": 0.01, ":gamma": 2.0}
    assert known["focal_tversky"] == {"lr": 0.01, ":fn_weight": 0.7, ":gamma": pytest.approx(4 / 3)}
    assert known["soft_cldice"] == {"lr": 0.01, ":iterations": 3}
    assert all(
        isinstance(t.args["iterations"], int) for t in run(Study(cell_of(suite, "soft_cldice"), tmp_path)).trials[1:]
    )
