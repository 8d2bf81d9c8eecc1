"""Cross-evaluation: ranks, tiers and the diagonal by hand, and a report whose other numbers do not change."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.report import write_report
from harness.report.cross import cross_views
from harness.report.frames import prepare
from harness.report.verdicts import Ranking
from tests.report.conftest import Frame


def _filled(frame: Frame, values: dict[tuple[str, str], float], seeds: int = 1, patients: int = 2) -> Frame:
    """Losses scored by losses: (trained with, scored by) to the mean, with noise where there are seeds."""
    rng = np.random.default_rng(3)
    for loss in dict.fromkeys(trained for trained, _ in values):
        for seed in range(seeds):
            frame.cell(loss, seed)
            for p in range(patients):
                frame.case(loss, 0.5 + 0.1 * p, seed=seed, patient=f"p{p}")
                for (trained, by), mean in values.items():
                    if trained == loss:
                        value = mean + (p - (patients - 1) / 2) * 0.1 + (rng.normal(0, 0.01) if seeds > 1 else 0)
                        frame.case(
                            loss, value, seed=seed, patient=f"p{p}", metric=f"loss:{by}", profile="", unit="",
                            worst=None, **{"class": "all"},
                        )  # fmt: skip
    return frame


VALUES = {
    ("dice", "dice"): 0.2, ("dice", "ce"): 0.9, ("dice", "focal"): 0.3,
    ("ce", "dice"): 0.3, ("ce", "ce"): 0.4, ("ce", "focal"): 0.1,
    ("focal", "dice"): 0.4, ("focal", "ce"): 0.5, ("focal", "focal"): 0.1,
}  # fmt: skip


def _view(frame: Frame) -> Any:
    (view,) = cross_views(prepare(*frame.frames), Ranking())
    return view


def test_values_ranks_and_the_diagonal_by_hand(frame: Frame) -> None:
    view = _view(_filled(frame, VALUES))
    (block,) = view.blocks
    assert [c.name for c in view.columns] == ["dice", "ce", "focal", "mean rank by others"]
    shown = {r.name: [(round(e.value, 6), e.remark) for e in r.entries] for r in block.rows}
    # ties share the better rank; the last column leaves the own one out: dice (3 + 3) / 2, ce (2 + 1) / 2
    assert shown == {
        "dice": [(0.2, "1, own"), (0.9, "3"), (0.3, "3"), (3.0, "")],
        "ce": [(0.3, "2"), (0.4, "1, own"), (0.1, "1"), (1.5, "")],
        "focal": [(0.4, "3"), (0.5, "2"), (0.1, "1, own"), (2.5, "")],
    }
    marks = {r.name: [e.mark for e in r.entries] for r in block.rows}
    assert marks["dice"][0] == marks["ce"][1] == marks["ce"][2] == marks["focal"][2] == marks["ce"][3] == "best"
    assert "tier" not in " ".join(view.notes)


def test_tiers_stand_where_there_are_seeds(frame: Frame) -> None:
    view = _view(_filled(frame, VALUES, seeds=5, patients=8))
    shown = {r.name: [e.remark for e in r.entries] for r in view.blocks[0].rows}
    assert shown["dice"][:2] == ["1, tier 1, own", "3, tier 3"]
    assert {shown["ce"][2].split(", ")[1], shown["focal"][2].split(", ")[1]} == {"tier 1"}  # equal in the population
    assert "tier 1 is not shown to be worse" in view.notes[0]


def test_the_file_has_what_is_printed(frame: Frame) -> None:
    table = _view(_filled(frame, VALUES)).frame
    own = table[table["own"]]
    assert list(own["loss"]) == list(own["scored_by"]) == ["dice", "ce", "focal"]
    row = table[(table["loss"] == "dice") & (table["scored_by"] == "ce")].iloc[0]
    assert (round(row["value"], 6), row["rank"], row["mean_rank_by_others"]) == (0.9, 3, 3.0)


def test_a_loss_that_lost_runs_says_so_and_another_scorer_has_no_diagonal(frame: Frame) -> None:
    values = {("dice", "jaccard"): 0.5, ("ce", "jaccard"): 0.7}
    _filled(frame, values).cell("ce", 1, status="diverged")
    view = _view(frame)
    assert {r.name: r.remark for r in view.blocks[0].rows} == {"dice": "", "ce": "1/2 runs"}
    assert [r.entries[0].remark for r in view.blocks[0].rows] == ["1", "2"]


@pytest.mark.parametrize(("value", "decimals"), [(1234.5, 0), (12.0, 2), (0.2, 4), (0.0001, 6), (0.0, 4)])
def test_four_digits_of_the_largest_value(frame: Frame, value: float, decimals: int) -> None:
    _filled(frame, {("dice", "ce"): value, ("ce", "ce"): value}, patients=1)
    assert _view(frame).columns[0].decimals == decimals


def test_nothing_else_of_a_report_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same suite with and without: the other tables are the same bytes, and the page has one section more."""
    cells, cases, curves = _filled(Frame(), VALUES, seeds=3, patients=4).frames
    bare = cases[~cases["metric"].str.startswith("loss:")]
    # the figures are slow, and not in question
    monkeypatch.setattr("harness.report.write.drawing_all", lambda *_, **__: nullcontext(dict))
    pages = {}
    for name, rows in (("with", cases), ("without", bare)):
        page = write_report("t", "", cells, rows, curves, tmp_path / name, layout=("survey_table",))
        pages[name] = page.read_text(encoding="utf-8")
    assert 'id="cross"' in pages["with"] and 'id="cross"' not in pages["without"]
    assert "Scored by every loss" in pages["with"]
    there = {p.name for p in (tmp_path / "with" / "tables").iterdir()}
    assert {"cross.html", "cross.csv", "cross.tex"} <= there
    for path in (tmp_path / "without").rglob("*.csv"):
        twin = tmp_path / "with" / path.relative_to(tmp_path / "without")
        assert path.read_bytes() == twin.read_bytes(), path.name
    raw = pd.read_csv(tmp_path / "with" / "cross.csv", keep_default_na=False)
    assert len(raw) == 9 * 3 * 4 and set(raw["class"]) == {"all"}
    write_report("t", "", cells, bare, curves, tmp_path / "with", layout=("survey_table",))
    assert not (tmp_path / "with" / "cross.csv").exists()
    assert not (tmp_path / "with" / "tables" / "cross.csv").exists()
