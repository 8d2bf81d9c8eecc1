import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.report.figures import _curve_panel, loss_curves
from harness.report.frames import prepare
from harness.report.palette import COLOURS, slug, style_of
from harness.report.qualitative import Panel, crop


def lines(ax):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist(), line.get_linestyle()) for line in ax.get_lines()]


def test_a_line_is_the_mean_over_seeds_and_a_diverged_run_stands_alone(frame):
    frame.cell("dice", 0).cell("dice", 1).case("dice", 0.5).case("dice", 0.5, seed=1)
    frame.cell("dice", 2, "diverged").cell("dice", 3, "stale")
    frame.curve("t0", [1.0, 0.4]).curve("t1", [2.0, 0.8]).curve("t2", [1.0, 9.0]).curve("t3", [5.0, 5.0])
    frames = prepare(*frame.frames)
    ax = Figure().subplots()
    assert not _curve_panel(ax, frames.curves, "unet", frames)
    mean, alone, cross = lines(ax)
    # (1 + 2) / 2 = 1.5 and (0.4 + 0.8) / 2 = 0.6; the stale run is not drawn.
    assert mean[:2] == ([0, 1], pytest.approx([1.5, 0.6]))
    assert alone == ([0, 1], [1.0, 9.0], ":")
    assert cross[0] == [1] and cross[1][0] == ax.get_ylim()[1] < 9  # the cross stands where the curve leaves the frame
    band = np.concatenate([p.vertices for c in ax.collections for p in c.get_paths()])
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.4, 2.0))


@pytest.mark.parametrize("values, logged", [([1.0, 0.03], False), ([1.0, 0.01], True), ([1.0, -0.5], False)])
def test_the_axis_is_logarithmic_from_a_factor_of_fifty(frame, values, logged):
    frames = prepare(*frame.cell("dice").case("dice", 0.5).curve("t0", values).frames)
    ax = Figure().subplots()
    assert _curve_panel(ax, frames.curves, "unet", frames) is logged
    assert ax.get_yscale() == ("log" if logged else "linear")


def test_curves_that_are_not_finite_and_names_like_hidden_labels(frame, tmp_path):
    frame.cell("_hidden").case("_hidden", 0.5).curve("t0", [1.0, float("nan"), float("inf")])
    picture = loss_curves(prepare(*frame.frames), "synapse", tmp_path, "x")
    assert picture is not None
    assert ">_hidden</text>" in picture.svg
    assert picture.svg.startswith('<svg role="img" aria-label="Training loss per epoch on synapse"')


def test_dashes_tell_losses_apart_when_the_colours_come_round():
    names = [f"loss {i}" for i in range(4 * len(COLOURS))]
    assert len(set(style_of(names).values())) == len(names)


def test_file_names_are_plain_and_distinct():
    taken: set[str] = set()
    made = [slug(x, taken) for x in ("Lov\u00e1sz / softmax", "lovasz softmax", "\u635f\u5931", "../..", "a" * 99)]
    assert made == ["lovasz-softmax", "lovasz-softmax-2", "x", "x-2", "a" * 60]


def test_the_crop_holds_every_label_with_a_margin():
    truth, other = np.zeros((2, 40, 50), dtype=int)
    truth[10:20, 20:30] = 1
    other[12:22, 20:45] = 1
    other[39, 0] = 255  # ignored, and no class to draw
    panel = Panel("c", "d", "m", None, truth, {"dice": other}, {1: "liver"})
    # Rows 10..21, 12 of them: margin max(2, round(1.44)) = 2. Columns 20..44, 25 of them: margin 3.
    assert crop(panel) == (slice(8, 24), slice(17, 48))
    empty = Panel("c", "d", "m", None, 0 * truth, {"dice": 0 * other}, {1: "liver"})
    assert crop(empty) == (slice(0, 40), slice(0, 50))


def test_a_legend_of_sixty_losses_does_not_cover_the_panel(frame, tmp_path):
    for i in range(60):
        name = f"a loss with a long name {i}"
        frame.cell(name).case(name, 0.5).curve(f"t{i}", [1.0, 0.5])
    picture = loss_curves(prepare(*frame.frames), "synapse", tmp_path, "curves")
    assert picture is not None
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', picture.svg)[0])
    assert height > 30 * 11, "two columns of thirty names, 11 points each, beside the panel"
