"""Which values of a hyperparameter are in the top tier on every data set, and the figure of how a metric answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from harness.report.figures import response_points, sweep_responses, sweeps_of
from harness.report.frames import Frames, prepare
from harness.report.sweep_ranges import sweep_range_views
from harness.report.verdicts import Ranking
from tests.report.conftest import Frame

T_95_4 = 2.7764  # Student's t, 97.5 %, 4 degrees of freedom


def swept(
    frame: Frame, score: Callable[[float, str], float], *, gammas: tuple[str, ...] = ("1", "2", "3", "4"),
    groups: tuple[str, ...] = ("A", "B"), seeds: int = 5, name: str = "focal(gamma={})",
) -> Frames:  # fmt: skip
    """Twelve patients; noise of patients and runs, the same for every value."""
    rng = np.random.default_rng(5)
    patients, runs = rng.normal(0, 0.05, 12), rng.normal(0, 0.003, 5)
    for group in groups:
        for gamma in gammas:
            loss = name.format(gamma)
            for seed in range(seeds):
                frame.cell(loss, seed, dataset=group)
                for p, shift in enumerate(patients):
                    value = score(float(gamma.split(", ")[0].split("=")[-1]), group) + shift + runs[seed]
                    value += float(rng.normal(0, 0.002))
                    frame.case(loss, float(value), seed=seed, patient=f"p{p}", dataset=group)
    return prepare(*frame.frames)


def said(frames: Frames) -> list[str]:
    return [view.notes[0] for view in sweep_range_views(frames, Ranking())]


def test_the_range_that_is_on_top_on_every_data_set(frame: Frame) -> None:
    # on A 1 is bad, on B 4 is bad
    frames = swept(frame, lambda g, group: 0.6 if (g == 1 and group == "A") or (g == 4 and group == "B") else 0.7)
    assert said(frames) == [
        "focal: gamma: of 4 values 2 and 3 are in the first tier of DSC (%) on every data set and model measured (A with "
        "unet and B with unet)."
    ]
    (view,) = sweep_range_views(frames, Ranking())
    tiers = {row.name: [e.text for e in row.entries] for row in view.blocks[0].rows}
    assert tiers["1"][0].startswith("2 (") and tiers["1"][1].startswith("1 (") and tiers["4"][1].startswith("2 (")
    assert list(view.frame.columns)[:4] == ["loss", "argument", "fixed", "value"] and len(view.frame) == 8


def test_three_neighbours_are_a_range_and_others_a_list(frame: Frame) -> None:
    text = said(swept(frame, lambda g, group: 0.6 if g == 4 else 0.7, groups=("A",)))[0]
    assert "of 4 values 1 to 3 are in the first tier" in text
    text = said(swept(Frame(), lambda g, group: 0.6 if g == 2 else 0.7, groups=("A",)))[0]
    assert "of 4 values 1, 3 and 4 are in the first tier" in text


def test_all_or_none(frame: Frame) -> None:
    text = said(swept(frame, lambda g, group: 0.7))[0]
    assert "all 4 values, 1 to 4, are in the first tier" in text and "no difference between them is shown" in text
    text = said(swept(Frame(), lambda g, group: 0.7 - 0.1 * abs(g - (2 if group == "A" else 3))))[0]
    assert text == (
        "focal: gamma: no value is in the first tier of DSC (%) on every data set and model measured (A with unet: 2; B "
        "with unet: 3)."
    )


def test_other_losses_have_no_part_in_it(frame: Frame) -> None:
    for seed in range(5):
        frame.cell("dice", seed, dataset="A")
        for p in range(12):
            frame.case("dice", 0.95, seed=seed, patient=f"p{p}", dataset="A")
    text = said(swept(frame, lambda g, group: 0.6 if g == 1 else 0.7, groups=("A",)))[0]
    assert "of 4 values 2 to 4 are in the first tier" in text


def test_one_seed_gives_no_verdict_and_says_why(frame: Frame) -> None:
    (text,) = said(swept(frame, lambda g, group: 0.1 * g, seeds=1))
    assert text.startswith("focal: gamma: no verdict is possible. ") and "one" in text.lower()
    # with a verdict on one of two data sets the sentence is of that one, and names the other
    mixed = Frame()
    swept(mixed, lambda g, group: 0.6 if g == 1 else 0.7, groups=("A",))
    (text,) = said(swept(mixed, lambda g, group: 0.7, groups=("B",), seeds=1))
    assert (
        "of 4 values 2 to 4 are in the first tier of DSC (%) wherever there is a verdict (A with unet). No verdict"
        in text
    )
    assert "B with unet: " in text


def test_what_was_not_measured_is_said(frame: Frame) -> None:
    frame.cell("focal(gamma=1)", status="error").cell("focal(gamma=2)").case("focal(gamma=2)", 0.5)
    assert said(prepare(*frame.frames)) == [
        "focal: gamma: fewer than two values were measured by dice, so no verdict is possible."
    ]
    assert sweep_range_views(prepare(*Frame().cell("dice").case("dice", 0.5).frames), Ranking()) == []


def test_points_of_the_response_by_hand(frame: Frame) -> None:
    frames = swept(frame, lambda g, group: 0.1 * g, groups=("A",))
    (sweep,) = sweeps_of(frames.losses)
    points = response_points(frames, "A", "unet", sweep)
    assert list(points["value"]) == ["1", "2", "3", "4"]
    own = frames.cases[frames.cases["loss"] == "focal(gamma=2)"]
    runs = [100 * mean(own.loc[own["seed"] == s, "value"]) for s in range(5)]
    half = T_95_4 * stdev(runs) / math.sqrt(5)
    row = points.iloc[1]
    assert sorted(row["runs"]) == pytest.approx(sorted(runs)) and row["mean"] == pytest.approx(mean(runs))
    assert (row["low"], row["high"]) == pytest.approx((mean(runs) - half, mean(runs) + half), abs=1e-3)
    alone = response_points(swept(Frame(), lambda g, group: 0.1 * g, groups=("A",), seeds=1), "A", "unet", sweep)
    assert alone["low"].isna().all()


@pytest.mark.parametrize(
    ("gammas", "name", "axis"),
    [
        (("1", "2", "3"), "focal(gamma={})", "gamma"),
        (("0.01", "1"), "focal(gamma={})", "gamma"),
        (("0.2, b=0.8", "0.4, b=0.6"), "tversky(a={})", "a (and b)"),
    ],
)
def test_the_response_is_drawn_over_the_argument(
    frame: Frame, tmp_path: Path, gammas: tuple[str, ...], name: str, axis: str
) -> None:
    frames = swept(frame, lambda g, group: 0.5 + 0.1 * g, gammas=gammas, name=name, groups=("A",))
    picture = sweep_responses(frames, "A", "unet", tmp_path, "r")
    assert (
        picture is not None and "95 % interval over repeats" in picture.caption and picture.title.endswith("on A, unet")
    )
    assert axis in picture.svg and (tmp_path / "r.pdf").is_file()
    assert sweep_responses(frames, "A", "transunet", tmp_path, "s") is None
