"""Thirds by object volume: the limits by hand, a planted effect on small objects alone, table and figure."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.report.figures import size_effects
from harness.report.frames import prepare
from harness.report.latex import render
from harness.report.sizes import compare_sizes, size_views, terciles
from harness.report.verdicts import Ranking

spec = importlib.util.spec_from_file_location("texcheck", Path(__file__).with_name("texcheck.py"))
texcheck = importlib.util.module_from_spec(spec)
spec.loader.exec_module(texcheck)
check = texcheck.check  # raises where LaTeX would stop


def volumes(**by_class):
    rows = {(f"p{i}", name): float(v) for name, values in by_class.items() for i, v in enumerate(values)}
    index = pd.MultiIndex.from_tuples(rows, names=["patient", "class"])
    return pd.Series(list(rows.values()), index=index)


def test_terciles_by_hand():
    found, limits, left = terciles(volumes(liver=[9, 8, 7, 6, 5, 4, 3, 2, 1]))
    assert limits.to_dict("records") == [
        {"class": "liver", "patients": 9, "low": pytest.approx(11 / 3), "high": pytest.approx(19 / 3)}
    ]
    assert [found[f"p{i}", "liver"] for i in range(9)] == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert left == ()


def test_absent_objects_have_no_size_and_each_class_has_limits_of_its_own():
    found, limits, left = terciles(
        volumes(
            liver=[0, 100, 200, 300, 400, 500, 600],  # six that have it: limits 266.7 and 433.3
            cyst=[6, 1, 2, 3, 4, 5, 0],
            stone=[1, 2, 3, 4, 5, 0, 0],  # five
            tube=[7, 7, 7, 7, 7, 7, 7],  # equal volumes never part
            duct=[1, 1, 1, 1, 1, 8, 9],  # two limits, and nothing between them
        )
    )
    assert left == ("stone", "tube", "duct")
    assert limits["class"].tolist() == ["liver", "cyst"] and limits["patients"].tolist() == [6, 6]
    assert ("p0", "liver") not in found.index and ("p6", "cyst") not in found.index
    assert found["p1", "liver"] == 0 and found["p1", "cyst"] == 0
    assert found["p0", "cyst"] == 2 and found["p6", "liver"] == 2  # small and large are of the class


PATIENTS = 18


def planted(frame, *, seeds=3, lengths=False):
    """Patient i has i + 1 times 10 voxels; `b` gains 0.2 on the six smallest and nothing elsewhere."""
    rng = np.random.default_rng(5)
    base = rng.uniform(0.5, 0.7, PATIENTS)
    noise = rng.normal(0, 0.005, (3, seeds, PATIENTS))
    for k, loss in enumerate(("a", "b", "c")):
        for seed in range(seeds):
            frame.cell(loss, seed)
            for i in range(PATIENTS):
                value = float(base[i] + noise[k, seed, i] + (0.2 if loss == "b" and i < 6 else 0.0))
                at = {"seed": seed, "patient": f"p{i:02}"}
                frame.case(loss, value, **at)
                if lengths:
                    frame.case(loss, 30 * (1 - value), metric="hd95", **at)
                for name, voxels in (("tp", 6.0), ("fn", 4.0)):
                    frame.case(loss, voxels * (i + 1), metric=name, unit="voxels", **at)
    return base, noise


def test_a_gain_on_small_objects_alone_is_found_there_and_nowhere_else(frame):
    _, noise = planted(frame)
    (found,) = compare_sizes(prepare(*frame.frames), Ranking(("dice",), "a"))
    assert found.limits.to_dict("records") == [
        {"class": "liver", "patients": 18, "low": pytest.approx(200 / 3), "high": pytest.approx(370 / 3)}
    ]
    for at, size in enumerate(("small", "medium", "large")):
        analysis = found.parts[size].analysis
        assert analysis.patients == 6
        b = next(r for r in analysis.losses if r.loss == "b")
        third = slice(6 * at, 6 * at + 6)
        expected = (noise[1, :, third] - noise[0, :, third]).mean() + (0.2 if size == "small" else 0.0)
        assert b.effect == pytest.approx(expected, abs=1e-12)
        assert b.verdict == ("better" if size == "small" else b.verdict) and (size == "small") == (
            b.verdict == "better"
        )
    (view,) = size_views([found])
    assert [b.name for b in view.blocks] == [f"{s}, 6 patients" for s in ("small", "medium", "large")]
    row = next(r for r in view.blocks[0].rows if r.name == "b")
    assert row.entries[1].value == pytest.approx(100 * (noise[1, :, :6] - noise[0, :, :6]).mean() + 20)
    assert row.entries[3].text == "better" and row.entries[4].value == 1
    assert "liver 67 and 123" in view.notes[0]
    assert len(check(render([view]))) == 2 + 3 * (1 + 3)  # headings; a line and three losses for each third
    assert view.frame.query("size == 'small' and loss == 'b'")["tier"].tolist() == [1]


def test_the_figure_has_a_row_per_loss_a_line_per_third_and_is_the_same_every_time(frame, tmp_path):
    planted(frame, lengths=True)
    found = compare_sizes(prepare(*frame.frames), Ranking(("dice", "hd95"), "a"))
    assert [s.metric for s in found] == ["dice", "hd95"]
    made = [size_effects(s, tmp_path / "1", f"f{i}") for i, s in enumerate(found)]
    again = [size_effects(s, tmp_path / "2", f"f{i}") for i, s in enumerate(found)]
    assert [p.svg for p in made] == [p.svg for p in again]
    assert "small, 6 patients" in made[0].svg and "more is better" in made[0].svg
    assert "less is better" in made[1].svg and "% of 1 + distance" in made[1].svg
    assert made[0].title == "Difference of DSC to a by object size on synapse, unet"


def test_without_counts_patients_or_trainings_there_is_nothing(frame):
    planted(frame, seeds=1)
    (found,) = compare_sizes(prepare(*frame.frames), Ranking(("dice",), "a"))
    assert not found.judged and size_views([found]) == []  # one training
    cells, cases, curves = frame.frames
    assert compare_sizes(prepare(cells, cases[cases["metric"] == "dice"], curves), Ranking(("dice",), "a")) == []
    few = cases[cases["patient"].isin(["p00", "p01", "p02"])]
    assert compare_sizes(prepare(cells, few, curves), Ranking(("dice",), "a")) == []
