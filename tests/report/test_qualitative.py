"""Slices: the enlarged region is where most is wrong, by hand; figure and viewer show the same one."""

import re

import numpy as np
import pytest

from harness.report import Panel
from harness.report.frames import prepare
from harness.report.qualitative import crop, draw_ladder, draw_panel, viewer_data, zoom_of
from harness.report.write import ladder_losses


def panel_of(truth, predictions, image=None):
    return Panel("c", "d", "m", image, truth, predictions, {1: "liver"})


def square(shape=(60, 50), rows=(10, 50), columns=(5, 45)):
    truth = np.zeros(shape, dtype=int)
    truth[rows[0] : rows[1], columns[0] : columns[1]] = 1
    return truth


def test_the_region_holds_the_wrong_pixels_of_all_losses_together():
    truth = square()
    one, two, three = truth.copy(), truth.copy(), truth.copy()
    one[40:46, 30:36] = 0  # 36 wrong pixels, in each of two losses
    two[40:46, 30:36] = 0
    three[12:19, 8:15] = 0  # 49 in one: more in a single loss, fewer together
    panel = panel_of(truth, {"one": one, "two": two, "three": three})
    assert crop(panel) == (slice(5, 55), slice(0, 50))
    found = zoom_of(panel)
    assert found is not None
    rows, columns = found
    assert (rows.stop - rows.start, columns.stop - columns.start) == (20, 20)  # 0.4 of 50
    assert rows.start <= 40 and rows.stop >= 46 and columns.start <= 30 and columns.stop >= 36
    # of the squares that hold all 72, the one nearest to the middle of all wrong pixels
    assert (rows, columns) == (slice(26, 46), slice(16, 36))


def test_ignored_pixels_are_not_wrong_and_without_a_wrong_pixel_there_is_no_region():
    truth = square()
    assert zoom_of(panel_of(truth, {"a": truth})) is None
    ignored = truth.copy()
    ignored[40:46, 30:36] = 255
    assert zoom_of(panel_of(ignored, {"a": truth})) is None
    guess = truth.copy()
    guess[11, 6] = 0
    rows, columns = zoom_of(panel_of(ignored, {"a": guess}))
    assert rows.start <= 11 < rows.stop and columns.start <= 6 < columns.stop


def test_a_small_slice_is_not_enlarged():
    truth = square((14, 14), (3, 9), (3, 9))
    guess = np.roll(truth, 1, 0)
    panel = panel_of(truth, {"a": guess})
    assert crop(panel) == (slice(1, 12), slice(1, 11))  # 11 by 10: a square of 8 would be most of it
    assert zoom_of(panel) is None and viewer_data(panel)["zoom"] is None


@pytest.mark.parametrize("image", [None, np.arange(3000.0).reshape(60, 50)])
def test_the_figure_frames_and_enlarges_it_and_the_viewer_knows_it(tmp_path, image):
    truth = square()
    guess = truth.copy()
    guess[40:46, 30:36] = 0
    made = draw_panel(panel_of(truth, {"a": guess, "b": truth}, image), tmp_path, "f")
    assert made.viewer["zoom"] == [23, 28, 20, 20]  # within the part from row 5 and column 0 on
    assert "Framed, and enlarged below: where the losses are wrong most often." in made.caption
    assert len(re.findall("#8a8f98", made.svg)) == 3  # the frame in reference, a and b
    assert made.svg.count("data:image/png") == (0 if image is None else 6)  # a whole and a part of each
    plain = draw_panel(panel_of(truth, {"a": truth}, image), tmp_path, "g")
    assert "enlarged" not in plain.caption and "#8a8f98" not in plain.svg


def test_cases_stand_in_rows_and_losses_in_columns(tmp_path):
    truth = square((30, 30), (5, 20), (5, 20))
    cases = [
        Panel(c, "d", "m", None, truth, {"a": truth, "b<&": np.roll(truth, 2, 0)}, {1: "liver"}) for c in ("x", "y")
    ]
    made = draw_ladder(cases, ["b<&", "a", "absent"], "By rule.", tmp_path, "l")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", made.svg)
    shown = [t for t in texts if t in ("x", "y", "reference", "a", "b&lt;&amp;")]
    assert [t for t in shown if t not in "xy"] == ["reference", "b&lt;&amp;", "a"]  # the columns as asked for
    assert [t for t in shown if t in "xy"] == ["x", "y"]
    assert made.caption.endswith("By rule.") and (made.group, made.model) == ("d", "m")
    assert draw_ladder(cases[:1], ["a"], "", tmp_path, "l") is None
    assert draw_ladder(cases, ["absent"], "", tmp_path, "l") is None


def test_of_many_losses_best_middle_and_last_are_shown_by_their_mean(frame):
    truth = square()
    values = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.3, "e": 0.8, "f": 0.1, "g": 0.6}  # b e c g a d f
    for loss, value in values.items():
        frame.cell(loss).case(loss, value)
    frames = prepare(*frame.frames)
    panel = Panel("c", "synapse", "unet", None, truth, dict.fromkeys(values, truth), {1: "liver"})
    losses, rule = ladder_losses(frames, [panel])
    assert losses == ["b", "e", "g", "d", "f"]
    assert rule == "Shown are the best two, the middle one and the last two of 7 losses by mean DSC."
    few = Panel("c", "synapse", "unet", None, truth, {"d": truth, "b": truth}, {1: "liver"})
    assert ladder_losses(frames, [panel, few]) == (["b", "d"], "")  # in the order of the suite, those that all have
