"""The landscape against values by hand, autograd, and what is known of the losses."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.check.command import specify
from harness.errors import BenchError
from harness.landscape import figure, scenes
from harness.landscape.command import run_landscape
from harness.landscape.measure import Course, LeftOut, Point, measure
from harness.losses.dice import Dice
from harness.losses.distance import Boundary
from harness.losses.targets import derive

OWN = """\
import torch
from torch import nn


class Squared(nn.Module):
    def forward(self, logits, target, *, onehot, embedding=None):
        assert embedding is None, "no network has made one here"
        return ((logits.softmax(1) - onehot) ** 2).mean()


class Network(nn.Module):
    def forward(self, logits, target, *, embedding):
        return (logits * embedding[:, :1]).mean()


class Faulty(nn.Module):
    def forward(self, logits, target):
        raise RuntimeError("no such layer\\nand more")


class Holes(nn.Module):
    def forward(self, logits, target):
        wrong = (logits.argmax(1) != target).sum()
        return logits.mean() * 0 + torch.where(wrong > 20, float("nan"), wrong)
"""


def course(text: str) -> Course:
    found = measure(specify(text), text)
    assert isinstance(found, Course)
    return found


@pytest.fixture(scope="module")
def courses() -> dict[str, Course]:
    return {name: course(name) for name in ("ce", "dice", "tversky")}


@dataclass
class Run:
    folder: Path
    said: str
    losses: list[str]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One call with all there is: built-in, own, arguments, and losses that cannot be shown."""
    from contextlib import redirect_stdout
    from io import StringIO

    folder = tmp_path_factory.mktemp("landscape")
    (folder / "own.py").write_text(OWN)
    own = [f"{folder}/own.py:{name}" for name in ("Squared", "Network", "Faulty", "Holes")]
    losses = ["ce", "tversky: {fn_weight: 0.7}", "tversky", "ce", "attention", *own]
    (folder / "landscape").mkdir()
    for name in ("landscape-pixel-2.svg", "landscape-mine.svg"):
        (folder / "landscape" / name).write_text("old")
    with redirect_stdout(StringIO()) as said:
        assert run_landscape(losses, folder, False) == 0
    return Run(folder, said.getvalue(), losses)


def rows_of(run: Run) -> list[dict[str, str]]:
    with (run.folder / "landscape" / "landscape.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_objects_have_one_shape_and_nothing_meets() -> None:
    target = scenes.label()
    assert target.unique().tolist() == [0, 1, 2, 3]
    counts = [int((target == c).sum()) for c in range(4)]
    assert counts == [3585, 314, 39, 158]
    own = {of: scenes.object_mask(of) for of in scenes.OBJECTS}
    for step in scenes.steps():
        if step.transformation == "missing":
            continue
        guess = step.probabilities.argmax(1)
        rest = torch.from_numpy(own["small" if step.of == "large" else "large"])
        assert torch.equal(guess[0][rest], target[0][rest]), step
        assert int((guess == 3).sum()) == 158, step
        moved = scenes.moved_mask(step.of, step.transformation, step.x)
        if step.transformation == "translate":
            assert moved.sum() == own[step.of].sum()
            assert not moved[:, [0, -1]].any()  # nothing comes in again on the other side
        if step.transformation in ("shrink", "erode"):
            assert not (moved & ~own[step.of]).any()
        if step.transformation == "shrink":
            assert moved.sum() == pytest.approx(step.x * own[step.of].sum(), abs=1e-9)
        if step.transformation == "dilate":
            assert not (own[step.of] & ~moved).any()


def test_probabilities_add_up_and_are_what_the_softmax_gives() -> None:
    for step in scenes.steps():
        assert torch.allclose(step.probabilities.sum(1), torch.ones(1, 64, 64, dtype=torch.float64))
    given = scenes.scene_of(scenes.faded("small", 0.5))
    assert torch.allclose(given.logits.softmax(1), scenes.faded("small", 0.5))
    assert torch.allclose(scenes.scene_of(scenes.perfect()).logits.abs(), torch.tensor(2.8469).double(), atol=1e-4)


def test_every_way_begins_at_the_perfect_prediction() -> None:
    best = scenes.perfect()
    for step in scenes.steps():
        begin = {"shrink": 1.0}.get(step.transformation, 0.0)
        assert torch.equal(step.probabilities, best) == (step.x == begin), step


def test_the_perfect_prediction_has_the_smallest_value(courses: dict[str, Course]) -> None:
    for name, found in courses.items():
        for key, points in found.points.items():
            start = [p for p in points if p.value == found.perfect]
            assert len(start) == 1, (name, key)
            assert all(p.value > found.perfect for p in points if p is not start[0]), (name, key)
            assert start[0].normalised == 0


def test_dice_of_a_shrinking_object_by_hand(courses: dict[str, Course]) -> None:
    """1 - mean_c (2 TP_c + s) / (N_c + Σ p_c + s), of counts: N_c true, M_c predicted, K_c both, V voxels.

    TP_c = q N_c + (p - q) K_c and Σ p_c = q V + (p - q) M_c, with p at the predicted class and q at each other one.
    """
    p, q, s, v = 0.99, 0.01 / 3, 1e-5, 64 * 64
    true = [3585, 314, 39, 158]
    for of, number in (("large", 1), ("small", 2)):
        for point in courses["dice"].points["shrink", of]:
            kept = round(point.x * true[number])
            predicted, both = list(true), list(true)
            predicted[number] = both[number] = kept
            predicted[0] += true[number] - kept
            ratios = [
                (2 * (q * n + (p - q) * k) + s) / (n + q * v + (p - q) * m + s)
                for n, m, k in zip(true, predicted, both, strict=True)
            ]
            assert point.value == pytest.approx(1 - sum(ratios) / 4, abs=1e-9)


def test_cross_entropy_sees_an_object_by_its_voxels_and_dice_does_not(courses: dict[str, Course]) -> None:
    def rise(name: str, of: str) -> float:
        return courses[name].points["shrink", of][-1].value - courses[name].perfect

    per_voxel = (math.log(0.99) - math.log(0.01 / 3)) / 64**2
    assert rise("ce", "small") == pytest.approx(39 * per_voxel, rel=1e-6)
    assert rise("ce", "large") / rise("ce", "small") == pytest.approx(314 / 39, rel=1e-6)
    assert 0.8 < rise("dice", "large") / rise("dice", "small") < 1.3
    assert courses["ce"].points["shrink", "small"][-1].normalised == pytest.approx(39 / 314, rel=1e-6)
    assert courses["ce"].points["shrink", "large"][-1].normalised == 1


def test_translation_to_the_left_is_that_to_the_right(courses: dict[str, Course]) -> None:
    for of in scenes.OBJECTS:
        points = courses["dice"].points["translate", of]
        assert [p.x for p in points] == list(range(-12, 13))
        for left, right in zip(points, points[::-1], strict=True):
            assert left.value == pytest.approx(right.value, rel=1e-9)
            assert left.gradient == pytest.approx(right.gradient, rel=1e-9)
        assert points[0].value > points[6].value > points[12].value


@pytest.mark.parametrize("name", ["dice", "boundary"])
def test_the_gradient_is_that_of_autograd(name: str) -> None:
    step = next(s for s in scenes.steps() if (s.transformation, s.of, s.x) == ("translate", "small", 3.0))
    given = scenes.scene_of(step.probabilities)
    logits = given.logits.clone().requires_grad_()
    if name == "dice":
        value = Dice()(logits, given.target)
    else:
        needs = ("distance_in", "distance_out")
        maps = derive(needs, given.target, num_classes=4, spacing=given.spacing)
        value = Boundary()(logits, given.target, spacing=given.spacing, **maps)
    (gradient,) = torch.autograd.grad(value, logits)
    point = next(p for p in course(name).points["translate", "small"] if p.x == 3)
    assert point.value == pytest.approx(float(value.detach()), rel=1e-8)
    assert point.gradient == pytest.approx(float(gradient.pow(2).sum().sqrt()), rel=1e-8)


def test_a_loss_that_has_not_what_it_needs_is_named() -> None:
    for name, need in (("attention", "attention"), ("inverse_form", "boundary_logits"), ("pixel_triplet", "embedding")):
        found = measure(specify(name), name)
        assert isinstance(found, LeftOut)
        assert found.reason.startswith(f"it needs {need}, ")


def test_a_loss_that_does_not_answer_is_flat() -> None:
    flat = course("size_prior").points["translate", "large"]
    assert {p.normalised for p in flat} == {0}


def test_the_terminal_names_files_and_what_was_left_out(shown: Run) -> None:
    lines = shown.said.splitlines()
    assert lines[0].startswith("left out: attention: it needs attention, attention maps")
    assert lines[1].startswith("left out: Network: it needs embedding, the network's last feature map")
    assert lines[2] == "left out: Faulty: RuntimeError: no such layer"
    folder = shown.folder / "landscape"
    assert lines[3] == f"5 losses: {folder}/landscape.csv"
    assert lines[4:] == [f"figure: {folder}/landscape{end}.svg (and png, pdf)" for end in ("", "-values")]


def test_old_figures_of_ours_are_gone_and_files_of_others_stay(shown: Run) -> None:
    names = {p.name for p in (shown.folder / "landscape").iterdir()}
    figures = {f"landscape{end}.{kind}" for end in ("", "-values") for kind in ("svg", "png", "pdf")}
    assert names == {*figures, "landscape.csv", "landscape-mine.svg"}


def test_the_table(shown: Run) -> None:
    rows = rows_of(shown)
    assert list(rows[0]) == ["loss", "transformation", "object", "x", "value", "gradient_norm", "normalised"]
    assert list(dict.fromkeys(r["loss"] for r in rows)) == [
        "ce",
        "tversky(fn_weight=0.7)",
        "tversky",
        "Squared",
        "Holes",
    ]
    assert list(dict.fromkeys(r["transformation"] for r in rows)) == list(scenes.TRANSFORMATIONS)
    assert len(rows) == 5 * len(list(scenes.steps()))
    squared = {
        (r["transformation"], r["object"], float(r["x"])): float(r["value"]) for r in rows if r["loss"] == "Squared"
    }
    p, q = 0.99, 0.01 / 3
    right, wrong = (1 - p) ** 2 + 3 * q**2, (1 - q) ** 2 + p**2 + 2 * q**2
    assert squared["erode", "small", 10.0] == pytest.approx((4057 * right + 39 * wrong) / 4096 / 4, rel=1e-6)


def test_a_value_that_is_no_number_is_a_gap(shown: Run) -> None:
    holes = [r for r in rows_of(shown) if r["loss"] == "Holes" and r["transformation"] == "translate"]
    assert [r["value"] for r in holes if r["object"] == "large" and abs(float(r["x"])) > 2] == [""] * 20
    assert {r["normalised"] for r in holes if r["value"] == ""} == {""}
    assert max(float(r["normalised"]) for r in holes if r["value"]) == 1


def test_the_same_command_gives_the_same_bytes(shown: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_landscape(shown.losses, tmp_path, True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["losses"] == ["ce", "tversky(fn_weight=0.7)", "tversky", "Squared", "Holes"]
    assert [x["loss"] for x in told["left_out"]] == ["attention", "Network", "Faulty"]
    assert len(told["files"]) == 7
    for path in map(Path, told["files"]):
        assert path.read_bytes() == (shown.folder / "landscape" / path.name).read_bytes(), path.name


def test_the_figure_has_all_losses_on_white(shown: Run) -> None:
    for name in ("landscape.svg", "landscape-values.svg"):
        svg = (shown.folder / "landscape" / name).read_text()
        assert '<rect width="100%" height="100%" fill="#ffffff"/>' in svg[:600]
        assert len(svg) < 300_000
        for loss in ("ce", "tversky(fn_weight=0.7)", "Squared", "Holes"):
            assert f">{loss}</text>" in svg.replace("&#160;", " ")


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="dicee"):
        run_landscape(["dicee"], tmp_path, False)
    with pytest.raises(BenchError, match=r"none of these losses can be shown: attention: it needs"):
        run_landscape(["attention"], tmp_path, False)
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot be written to"):
        run_landscape(["dice"], tmp_path / "file", False)
    with pytest.raises(BenchError, match="cannot be made"):
        measure({**specify("focal"), "args": {"gamma": -1.0}}, "focal")


def test_many_losses_are_shown_by_family_in_readable_parts() -> None:
    def dummies(**families: int) -> list[Course]:
        return [Course(f"{f}{i}", f.replace("_", " "), 0.0, {}) for f, n in families.items() for i in range(n)]

    few = dummies(pixel=6, other=4)
    assert figure.groups_of(few) == [("", "", few)]
    many = dummies(pixel=3, region=14, boundary=17, shape_prior=1, other=2)
    groups = figure.groups_of(many)
    assert [len(own) for *_, own in groups] == [3, 7, 7, 5, 6, 6, 1, 2]
    assert sorted(c.loss for *_, own in groups for c in own) == sorted(c.loss for c in many)
    assert [end for end, *_ in groups][-3:] == ["-boundary-3", "-shape-prior", "-other"]
    assert groups[1][1] == "region losses (1 of 2)"


def test_lines_can_be_told_apart_without_colour() -> None:
    kinds = {(str(figure._dashes(i)), figure._handle(i).get_marker()) for i in range(figure.TOGETHER)}
    assert len(kinds) == figure.TOGETHER
    assert len({(figure._handle(i).get_color(), figure._dashes(i)) for i in range(figure.TOGETHER)}) == figure.TOGETHER


def test_a_figure_of_losses_without_a_gradient_or_an_answer(tmp_path: Path) -> None:
    keys = [(t, of) for t in scenes.TRANSFORMATIONS for of in scenes.OBJECTS]
    flat = Course(
        "_flat $x$ " + "long_" * 12,
        "other",
        1.0,
        {k: [Point(x, 1.0, 0.0, 0.0) for x in np.linspace(0, 1, 5)] for k in keys},
    )
    for draw in (figure.comparison, figure.values):
        picture = draw([flat], tmp_path, "flat", "a <title>")
        assert picture.svg.startswith("<svg role=")
        assert "a &lt;title&gt;" in picture.svg
