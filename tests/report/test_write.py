import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.errors import BenchError
from harness.report import Panel, write_report

NASTY = "<b>Lov\u00e1sz</b> \"'/..\\&amp; $x_1$ _{{ 7*7 }} 0.123456"


class Page(HTMLParser):
    """Every attribute and the text of a page."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.links, self.texts, self.tags, self.skip = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.skip = tag in ("style", "script")
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        if not self.skip:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def small(frame, losses=("dice", "focal(gamma=2)")):
    for i, loss in enumerate(losses):
        for seed in (0, 1):
            frame.cell(loss, seed).curve(f"t{2 * i + seed}", [1.0, 0.5, 0.2 + 0.1 * i])
            frame.case(loss, 0.8 - 0.1 * i + 0.02 * seed, seed=seed).case(loss, 5.0 + i, seed=seed, metric="hd95")
    return frame


def panel(image=True, **more):
    truth = np.zeros((20, 24), dtype=int)
    truth[5:12, 6:15] = 1
    grey = np.arange(480.0).reshape(20, 24) if image else None
    given = {"case": "c/1", "dataset": "synapse", "model": "unet", "predictions": {"dice": np.roll(truth, 2, 1)}}
    return Panel(image=grey, truth=truth, classes={1: "liver"}, **(given | more))


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_page_shows_the_numbers_and_says_why_there_is_no_verdict(frame, tmp_path):
    index = write_report("Synapse", "Words.", *small(frame).frames, tmp_path)
    assert index == tmp_path / "index.html"
    text = Page(index.read_text(encoding="utf-8")).text
    assert "2 losses × 1 model × 1 data set × 2 seeds. Of 4 planned runs, 4 measured and none failed." in text
    assert "No verdict: fewer than two patients." in text
    # dice: seeds 80 and 82, mean 81, SD 2 / sqrt(2) = 1.41; focal: 70 and 72.
    assert re.search(r"dice 81\.00 ± 1\.41", text)
    assert re.search(r"focal \(gamma=2\) 71\.00 ± 1\.41", text)
    assert "Every loss started from the same weights" in text
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert board["dice"].tolist() == pytest.approx([0.81, 0.71])
    assert board["hd95_mm"].tolist() == [5.0, 6.0]


def test_the_same_input_gives_the_same_bytes(frame, tmp_path):
    frames = small(frame).frames
    for name in ("a", "b"):
        write_report("T", "", *frames, tmp_path / name, panels=[panel(), panel(image=False)])
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    write_report("T", "", *frames, tmp_path / "a", panels=[panel(), panel(image=False)])  # over itself
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    endings = {name.rsplit(".", 1)[1] for name in digests(tmp_path / "a")}
    assert endings == {"html", "css", "csv", "svg", "png", "pdf", "tex"}


def test_nothing_is_fetched_from_anywhere(frame, tmp_path):
    about = {"data": [{"name": "synapse", "source": "https://example.org/data"}], "commands": ["bench run x"]}
    index = write_report("T", "", *small(frame).frames, tmp_path, about=about, panels=[panel()])
    html = index.read_text(encoding="utf-8")
    page = Page(html)
    for link in page.links:
        if link.startswith(("#", "data:")):
            continue
        assert not re.match(r"[a-z]+:|//", link)
        assert (tmp_path / link).is_file(), link
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "https://example.org/data" in page.text  # shown, not linked
    assert len(html) < 1_000_000


def test_names_show_as_text_and_break_nothing(frame, tmp_path):
    more = {"dataset": NASTY, "model": NASTY}
    for seed in (0, 1):
        frame.cell(NASTY, seed, **more).cell("dice", seed, **more).curve(f"t{2 * seed}", [1.0, 0.1])
        for loss in (NASTY, "dice"):
            frame.case(loss, 0.5, seed=seed, **more, **{"class": NASTY, "patient": NASTY, "case": NASTY})
            frame.case(loss, 0.5, seed=seed, **more, **{"class": "b", "patient": NASTY, "case": NASTY})
    frame.cell(NASTY, 2, "error", message="<script>alert(1)</script>", **more)
    pictures = [panel(case=NASTY, dataset=NASTY, predictions={NASTY: np.zeros((20, 24), dtype=int)})]
    index = write_report(NASTY, NASTY, *frame.frames, tmp_path, about={"suite": NASTY, NASTY: NASTY}, panels=pictures)
    html = index.read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("script") == 1
    assert "b" not in page.tags[page.tags.index("main") :]
    assert "_49" not in page.text
    assert NASTY in page.text
    assert "<script>alert(1)</script>" in page.text
    names = [p.name for p in (tmp_path / "figures").iterdir()]
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png|pdf)", n) for n in names)
    figure = next((tmp_path / "figures").glob("curves*.svg")).read_text(encoding="utf-8")
    # cut in the middle, but as text, although it starts like a hidden label and holds dollars and a long number
    assert NASTY[:22] in Page(figure).text and "\u2026" in Page(figure).text and NASTY[-11:] in Page(figure).text
    assert pd.read_csv(tmp_path / "leaderboard.csv")["loss"].tolist() == [NASTY, "dice"]


def test_a_suite_in_which_everything_failed(frame, tmp_path):
    frame.cell("dice", 0, "diverged", message="loss is nan at step 3").cell("ce", 0, "missing").cell("x", 0, "skip")
    index = write_report("T", "", *frame.frames, tmp_path)
    text = Page(index.read_text(encoding="utf-8")).text
    assert "Of 3 planned runs, 0 measured, 1 failed (1 diverged), 1 skipped and 1 not run yet." in text
    assert "loss is nan at step 3" in text
    assert "No run was measured, so there are no scores." in text
    assert not re.search(r"\bnan\b", text.replace("loss is nan at step 3", ""), re.IGNORECASE)
    assert pd.read_csv(tmp_path / "leaderboard.csv")["runs_failed"].tolist() == [1, 0, 0]


def test_one_seed_says_that_there_is_no_spread(frame, tmp_path):
    index = write_report("T", "", *frame.cell("dice").case("dice", 0.5).frames, tmp_path)
    text = Page(index.read_text(encoding="utf-8")).text
    assert "50.00 ± n/a" in text
    assert "not available with one seed" in text


def test_several_data_sets_folds_and_units(frame, tmp_path):
    for dataset, unit in (("acdc", "mm"), ("synapse", "voxel")):
        for fold in (0, 1):
            frame.cell("dice", fold=fold, dataset=dataset)
            frame.case("dice", 0.5, fold=fold, dataset=dataset)
            frame.case("dice", 3.0, fold=fold, dataset=dataset, metric="hd95", unit=unit)
    text = Page(write_report("T", "", *frame.frames, tmp_path).read_text(encoding="utf-8")).text
    assert "1 loss × 1 model × 2 data sets × 2 folds × 1 seed" in text
    assert "HD95 (mm)" in text
    assert "HD95 (voxel)" in text
    assert list(pd.read_csv(tmp_path / "leaderboard.csv")["hd95_voxel"].isna()) == [True, False]


def test_unequal_starts_are_said_at_the_top(frame, tmp_path):
    frame.cell("dice", init="x").cell("ce").case("dice", 0.5).case("ce", 0.5)
    text = Page(write_report("T", "", *frame.frames, tmp_path).read_text(encoding="utf-8")).text
    assert "Not paired: in 1 of 1 comparisons" in text


def test_best_is_marked_without_colour_too(frame, tmp_path):
    index = write_report("T", "", *small(frame).frames, tmp_path)
    html = index.read_text(encoding="utf-8")
    assert '<span class="best">81.00</span><span class="vh"> best</span>' in html
    assert '<span class="second">71.00</span><span class="vh"> second best</span>' in html
    assert re.search(r"\.best \{[^}]*font-weight: 700", html)
    assert re.search(r"\.second \{[^}]*text-decoration: underline", html)


def test_layout_orders_the_sections_and_refuses_unknown_names(frame, tmp_path):
    frames = small(frame).frames
    html = write_report("T", "", *frames, tmp_path, layout=["curves", "loss_by_model"]).read_text(encoding="utf-8")
    assert html.index('<section id="curves"') < html.index('<section id="loss_by_model"')
    assert '<section id="survey_table"' not in html
    with pytest.raises(BenchError, match="'curve' is unknown; expected names out of survey_table"):
        write_report("T", "", *frames, tmp_path, layout=["curve"])


def test_a_rebuild_leaves_records_alone_and_removes_old_figures(frame, tmp_path):
    for name in ("records/x/record.json", "figures/old.svg", "figures/keep.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    write_report("T", "", *small(frame).frames, tmp_path)
    assert (tmp_path / "records/x/record.json").exists()
    assert (tmp_path / "figures/keep.txt").exists()
    assert not (tmp_path / "figures/old.svg").exists()


def test_a_panel_without_voxels_holds_no_image(frame, tmp_path):
    frames = small(frame).frames
    html = write_report("T", "", *frames, tmp_path, panels=[panel(image=False)]).read_text(encoding="utf-8")
    assert "Contours only" in html
    assert "data:image" not in html
    assert "data:image" not in next((tmp_path / "figures").glob("slice*.svg")).read_text(encoding="utf-8")
    html = write_report("T", "", *frames, tmp_path, panels=[panel()]).read_text(encoding="utf-8")
    assert html.count("data:image/png") == 5  # the viewer; reference and one loss, each whole and enlarged


def test_a_panel_of_another_shape_is_refused():
    with pytest.raises(BenchError, match=r"dice has shape \(3, 3\), expected the two dimensions of truth, \(20, 24\)"):
        panel(predictions={"dice": np.zeros((3, 3), dtype=int)})


def test_no_planned_cells_is_refused(tmp_path):
    with pytest.raises(BenchError, match="no planned cells"):
        write_report("T", "", pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), tmp_path)


def test_the_report_never_imports_torch():
    code = "import sys, harness.report; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_the_formats_that_were_asked_for(frame, tmp_path):
    frames = small(frame).frames
    endings = {"csv": {".csv"}, "latex": {".tex", ".svg", ".png", ".pdf"}}
    for name, own in endings.items():
        assert write_report("T", "", *frames, tmp_path / name, formats=[name]) == tmp_path / name
        assert {p.suffix for p in (tmp_path / name).rglob("*") if p.is_file()} == own
    page = write_report("T", "", *frames, tmp_path / "html", formats=["html"])
    assert page.name == "index.html"
    assert not list(page.parent.rglob("*.csv")) and not list(page.parent.rglob("*.tex"))


def test_a_format_leaves_the_files_of_the_others_as_they_are(frame, tmp_path):
    frames = small(frame).frames
    write_report("T", "", *frames, tmp_path)
    whole = digests(tmp_path)
    others = {"csv": [".html", ".css", ".tex", ".svg", ".png", ".pdf"], "latex": [".html", ".css", ".csv"],
              "html": [".csv", ".tex"]}  # fmt: skip
    (tmp_path / "tables/old.tex").write_text("x")
    for name, endings in others.items():
        write_report("Another", "", *frames, tmp_path, formats=[name])
        now = digests(tmp_path)
        kept = {p: d for p, d in whole.items() if Path(p).suffix in endings}
        assert kept and {p: now.get(p) for p in kept} == kept, name
        assert (tmp_path / "tables/old.tex").exists() == (name == "csv")
