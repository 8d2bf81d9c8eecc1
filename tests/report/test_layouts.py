import io
import math
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from harness.errors import BenchError
from harness.report.frames import prepare
from harness.report.layouts import LAYOUTS, Numbers, arguments_of, build, sweep_families
from harness.report.tablefiles import write_tables
from harness.report.view import Block, Column, Entry, Row, marked
from harness.suite_file import Report

NASTY = "<b>Lov\u00e1sz</b> \"'/..\\&amp; $x_1$ _{{ 7*7 }} 0.5,\nnext"


def made(frame, layout, pooled=()):
    return build(Numbers(prepare(*frame.frames, pooled=list(pooled))), layout)


def shown(view):
    """The printed table as a mapping: (block, row) to what stands in its places, marked with * and **."""
    signs = {"best": "**", "second": "*", "": ""}
    return {
        (b.name, r.name or i): [
            " ".join(x for x in (c.show(e) + signs[e.mark], c.show_sd(e), e.remark) if x)
            for c, e in zip(view.columns, r.entries, strict=True)
        ]
        for b in view.blocks
        for i, r in enumerate(b.rows)
    }


def test_the_survey_is_the_survey_table(frame):
    for model, values in (("unet", (0.9, 0.8, 0.7)), ("transunet", (0.5, 0.6, 0.6))):
        for loss, value in zip(("dice", "focal", "ce"), values, strict=True):
            frame.cell(loss, model=model)
            for name, less in (("left_kidney", 0.0), ("spleen", 0.2)):
                at = {"model": model, "class": name}
                frame.case(loss, value - less, **at).case(loss, 10 * value, metric="hd95", **at)
    (view,) = made(frame, "survey_table")
    assert [(h.name, h.span, h.lower) for h in view.heads] == [("DSC (%)", 3, False), ("HD95 (mm)", 1, True)]
    assert [c.name for c in view.columns] == ["left kidney", "spleen", "mean", "mean"]
    assert (view.starts, view.width, view.height) == ((0, 3), 5, 8)
    assert shown(view) == {
        ("unet", "dice"): ["90.00**", "70.00**", "80.00**", "9.00"],
        ("unet", "focal"): ["80.00*", "60.00*", "70.00*", "8.00*"],
        ("unet", "ce"): ["70.00", "50.00", "60.00", "7.00**"],
        # ties share a mark, and with two distinct numbers one is the second best
        ("transunet", "dice"): ["50.00*", "30.00*", "40.00*", "5.00**"],
        ("transunet", "focal"): ["60.00**", "40.00**", "50.00**", "6.00*"],
        ("transunet", "ce"): ["60.00**", "40.00**", "50.00**", "6.00*"],
    }
    assert view.frame.iloc[2].drop(["value", "sd"]).tolist() == [
        "synapse", "unet", "dice", "average", "DSC", "voxel-max", "%", "seeds", "best", "",
    ]  # fmt: skip


def counts(frame, loss, tp, fp, fn, **more):
    for metric, value in (("tp", tp), ("fp", fp), ("fn", fn)):
        frame.case(loss, value, metric=metric, unit="voxels", **more)


def test_loss_by_model_has_one_column_a_model_and_prefers_the_pooled_iou(frame):
    for model, loss, seed, tp in [
        ("unet", "dice", 0, 60), ("unet", "dice", 1, 64), ("unet", "focal", 0, 50), ("unet", "focal", 1, 52),
        ("transunet", "dice", 0, 40), ("transunet", "dice", 1, 40),
    ]:  # fmt: skip
        frame.cell(loss, seed, model=model).case(loss, 0.1, seed=seed, model=model)
        counts(frame, loss, tp, 100 - tp, 0, seed=seed, model=model)
    frame.cell("focal", 0, model="transunet").cell("focal", 1, "oom", model="transunet")
    frame.case("focal", 0.1, model="transunet")
    counts(frame, "focal", 90, 10, 0, model="transunet")
    frame.cell("late", 0, "missing")  # planned for one model only
    (view,) = made(frame, "loss_by_model", ["miou"])
    assert [(h.name, h.span) for h in view.heads] == [("mIoU (%)", 2)]
    # SD of 60 and 64: 4 / sqrt(2) = 2.83; of 50 and 52: 1.41.
    assert shown(view) == {
        ("", "dice"): ["62.00** ± 2.83", "40.00 ± 0.00"],
        ("", "focal"): ["51.00* ± 1.41", "90.00 1/2 runs"],  # 90 without its second run is no best
        ("", "late"): ["– 0/1 runs", "–"],
    }
    assert view.frame[["model", "loss", "runs"]].values.tolist() == [
        ["unet", "dice", ""], ["transunet", "dice", ""], ["unet", "focal", ""], ["transunet", "focal", "1/2 runs"],
        ["unet", "late", "0/1 runs"],
    ]  # fmt: skip
    (dice,) = made(frame, "loss_by_model")
    assert [h.name for h in dice.heads] == ["DSC (%)"]


def test_jadon_has_fractions_and_names_what_was_not_measured(frame):
    for loss, dice, sens in (("ce", 0.9684, 0.976), ("dice", 0.9704, 0.981), ("tversky", 0.9703, 0.9)):
        frame.cell(loss).case(loss, dice).case(loss, sens, metric="sensitivity", unit="1")
    (view,) = made(frame, "jadon")
    assert [h.name for h in view.heads] == ["DSC", "Sensitivity"]
    assert shown(view) == {
        ("unet", "ce"): ["0.968*", "0.976*"],
        ("unet", "dice"): ["0.970**", "0.981**"],
        ("unet", "tversky"): ["0.970**", "0.900"],  # the same as printed: both are best
    }
    assert "Not measured: Specificity." in view.notes
    assert view.frame["unit"].tolist() == ["1"] * 6 and view.frame["value"].iloc[0] == 0.9684
    frame.case("ce", 0.999, metric="specificity", unit="1")
    (whole,) = made(frame, "jadon")
    assert [h.name for h in whole.heads] == ["DSC", "Sensitivity", "Specificity"]
    assert not [n for n in whole.notes if n.startswith("Not measured")]


def test_celaya_has_the_spread_over_cases_by_task(frame):
    for seed in (0, 1):
        frame.cell("gsl", seed, dataset="lits").cell("dice", seed, dataset="lits")
        for patient, value in (("p1", 0.9), ("p2", 0.5), ("p3", 0.7)):
            frame.case("gsl", value + 0.1 * seed, seed=seed, patient=patient, dataset="lits")
            frame.case("dice", 0.5, seed=seed, patient=patient, dataset="lits")
    frame.case("gsl", None, patient="p4", dataset="lits", status="both_empty")  # not applicable: enters nothing
    frame.cell("gsl", fold=0, dataset="brats").cell("gsl", fold=1, dataset="brats")
    for fold, patient, name, value in [(0, "a", "WT", 2.0), (1, "b", "WT", 4.0), (0, "a", "ET", None)]:
        at = {"fold": fold, "patient": patient, "dataset": "brats", "class": name, "metric": "hd95"}
        frame.case("gsl", value, status="ok" if value else "pred_empty", **at)
    (view,) = made(frame, "celaya")
    assert view.title == "lits, brats" and [h.name for h in view.heads] == ["DSC", "HD95 (mm)"]
    # Cases of lits: 0.95, 0.55, 0.75: mean 0.75, SD sqrt((0.2² + 0.2² + 0) / 2) = 0.2. brats WT: 3 ± sqrt(2).
    # One case of ET, missed: the worst distance, and no spread.
    assert shown(view) == {
        ("unet: lits, liver", "gsl"): ["0.7500** ± 0.2000", "–"],
        ("unet: lits, liver", "dice"): ["0.5000* ± 0.0000", "–"],
        ("unet: brats, WT", "gsl"): ["–", "3.000 ± 1.414"],
        ("unet: brats, ET", "gsl"): ["–", "100.000"],
    }
    assert set(view.frame["sd_over"]) == {"cases"}
    assert "Not measured: ASD." in view.notes


def test_cases_of_one_patient_are_cases_of_their_own(frame):
    frame.cell("gsl").case("gsl", 0.4, case="a").case("gsl", 0.6, case="b").case("gsl", 0.8, patient="p2", case="a")
    (view,) = made(frame, "celaya")
    assert shown(view) == {("unet: synapse, liver", "gsl"): ["0.6000 ± 0.2000"]}


def test_sweeps_stand_side_by_side(frame):
    settings = [
        ("focal(gamma=1.5)", 0.73), ("focal(gamma=2)", 0.75), ("focal(gamma=3)", 0.74), ("dice", 0.99),
        ("tversky(fn_weight=0.2, fp_weight=0.8)", 0.80), ("tversky(fn_weight=0.4, fp_weight=0.6)", 0.81),
        ("0.5·dice + focal(gamma=1)", 0.98), ("one(x=1)", 0.97),
    ]  # fmt: skip
    for loss, value in settings:
        frame.cell(loss).case(loss, value).case(loss, 100 * (1 - value), metric="hd95")
    frame.cell("focal(gamma=2)", 1, "timeout")
    (view,) = made(frame, "sweeps")
    assert [(h.name, h.span) for h in view.heads] == [("focal", 3), ("tversky", 4)]
    assert [c.name for c in view.columns] == [
        "gamma", "DSC (%)", "HD95 (mm)", "fn_weight", "fp_weight", "DSC (%)", "HD95 (mm)",
    ]  # fmt: skip
    assert shown(view) == {
        ("unet", 0): ["1.5", "73.00*", "27.00*", "0.2", "0.8", "80.00*", "20.00*"],
        ("unet", 1): ["2 1/2 runs", "75.00", "25.00", "0.4", "0.6", "81.00**", "19.00**"],
        ("unet", 2): ["3", "74.00**", "26.00**", "", "", "", ""],
    }
    # with one loss of the two marked columns compared: the marks stay within a sweep
    assert view.stub == "" and view.width == 7
    assert set(view.frame["loss"]) == {x for x, _ in settings if x.startswith(("focal", "tversky"))}


@pytest.mark.parametrize(
    "label, found",
    [
        ("dice", ("dice", {})),
        ("focal(gamma=2)", ("focal", {"gamma": "2"})),
        ("tversky(fn_weight=0.2, fp_weight=0.8)", ("tversky", {"fn_weight": "0.2", "fp_weight": "0.8"})),
        ("ce(weight=[0.1,1,5], scheme=inverse)", ("ce", {"weight": "[0.1,1,5]", "scheme": "inverse"})),
        ("a.py:L L(x=f(1), y=a, b=)", ("a.py:L L", {"x": "f(1)", "y": "a", "b": ""})),
        ("dice + focal(gamma=2)", None),
        ("linear(1→0)·dice", None),
        ("odd(2)", None),
        ("f(a b=1)", None),
        ("", None),
    ],
)
def test_arguments_are_read_from_labels(label, found):
    assert arguments_of(label) == found


def test_each_argument_is_a_sweep_of_its_own_with_the_default_in_it():
    families = sweep_families(["f", "f(a=1)", "f(a=2)", "f(b=3)", "g(a=1)", "h"])
    assert [(f.name, f.arguments, f.settings) for f in families] == [
        ("f", ("a",), (("f", ("default",)), ("f(a=1)", ("1",)), ("f(a=2)", ("2",)))),
        ("f", ("b",), (("f", ("default",)), ("f(b=3)", ("3",)))),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "layout, sentence",
    [
        ("survey_table", "synapse: neither DSC nor HD95 was measured, so there is no table."),
        ("loss_by_model", "synapse: neither mIoU, IoU nor DSC was measured, so there is no table."),
        ("jadon", "synapse: neither DSC, Sensitivity nor Specificity was measured, so there is no table."),
        ("celaya", "synapse: neither DSC, HD95 nor ASD was measured, so there is no table."),
        ("sweeps", "synapse: no loss of this suite was swept over an argument, so there is no table of sweeps."),
    ],
)
def test_a_layout_without_its_metrics_is_one_sentence(frame, tmp_path, layout, sentence):
    frames = prepare(*frame.cell("dice", status="oom").frames)
    (view,) = write_tables(frames, [layout, "curves"], tmp_path)
    assert (view.layout, view.columns, view.blocks, view.notes) == (layout, (), (), (sentence,))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"{layout}.html", "style.css"])
    assert sentence in (tmp_path / f"{layout}.html").read_text(encoding="utf-8")


def test_swept_losses_without_a_measured_run_are_one_sentence(frame):
    (view,) = made(frame.cell("f(a=1)", status="error").cell("f(a=2)", status="error"), "sweeps")
    assert view.notes == ("synapse: neither DSC nor HD95 was measured, so there is no table.",)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_profiles_never_meet(frame, layout):
    for loss in ("f(a=1)", "f(a=2)"):
        frame.cell(loss)
        for profile, dsc, hd in (("voxel-max", 0.8, 4.0), ("transunet", 1.0, 0.0)):
            frame.case(loss, dsc, profile=profile).case(loss, hd, profile=profile, metric="hd95")
        frame.case(loss, 3.0, profile="area", metric="hd95")
    (view,) = made(frame, layout)
    heads = [(h.profile, h.name) for h in view.heads] if layout != "sweeps" else []
    named = heads or [tuple(reversed(c.name.split(", "))) for c in view.columns if not c.words]
    hd = [p for p, name in named if name == "HD95 (mm)"]
    assert sorted(p for p, name in named if name.startswith("DSC")) == ["transunet", "voxel-max"]
    assert sorted(hd) == ([] if layout in ("loss_by_model", "jadon") else ["area", "transunet", "voxel-max"])
    values = {(p, m): v for p, m, v in view.frame[["profile", "metric", "value"]].itertuples(index=False)}
    unit = 1.0 if layout in ("jadon", "celaya") else 100.0
    assert values["transunet", "DSC"] == unit and values["voxel-max", "DSC"] == pytest.approx(0.8 * unit)


def test_units_never_meet(frame):
    for dataset, unit in (("a", "mm"), ("b", "voxel")):
        frame.cell("gsl", dataset=dataset).case("gsl", 3.0, metric="hd95", unit=unit, dataset=dataset)
    (view,) = made(frame, "celaya")
    assert [h.name for h in view.heads] == ["HD95 (mm)", "HD95 (voxel)"]
    assert shown(view) == {("unet: a, liver", "gsl"): ["3.000", "–"], ("unet: b, liver", "gsl"): ["–", "3.000"]}


class Page(HTMLParser):
    """Cells of the tables as text, and every tag."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.rows, self.tags, self.cell = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([int(dict(attrs).get("colspan", 1)), ""])
            self.cell = self.rows[-1][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[1] += data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_holds_any_name_as_text_and_every_row_is_as_wide_as_the_table(frame, tmp_path, layout):
    losses = [f"{NASTY}(a=1)", f"{NASTY}(a={NASTY})"]
    for loss in losses:
        frame.cell(loss, model=NASTY, dataset=NASTY)
        for name in (NASTY, "b_c"):
            frame.case(loss, 0.5, model=NASTY, dataset=NASTY, **{"class": name})
    views = write_tables(prepare(*frame.frames), [layout], tmp_path)
    text = (tmp_path / f"{layout}.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"b", "img", "script"} & set(page.tags) and "49" not in re.sub(
        r"<style>.*?</style>", "", text, flags=re.S
    )
    (view,) = views
    assert {sum(n for n, _ in row) for row in page.rows} == {view.width}
    assert any(NASTY in t for row in page.rows for _, t in row)
    back = pd.read_csv(
        tmp_path / f"{layout}.csv", keep_default_na=False, na_values={"value": "", "sd": ""}, dtype={"unit": str}
    )
    pd.testing.assert_frame_equal(back, view.frame, check_dtype=False)
    assert set(back["dataset"]) == {NASTY} and set(back["model"]) == {NASTY}
    assert (tmp_path / f"{layout}.tex").read_bytes().isascii()


def test_the_same_frames_give_the_same_bytes_and_the_layout_its_order(frame, tmp_path):
    for loss in ("f(a=1)", "f(a=2)"):
        frame.cell(loss).case(loss, 0.5).case(loss, 2.0, metric="hd95").curve("t0", [1.0])
    order = ["celaya", "curves", "survey_table", "sweeps", "celaya"]
    for name in ("a", "b"):
        views = write_tables(prepare(*frame.frames), order, tmp_path / name)
    assert [v.layout for v in views] == ["celaya", "survey_table", "sweeps"]
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    tables = {f"{n}.{e}" for n in ("celaya", "survey_table", "sweeps") for e in ("csv", "html", "tex")}
    assert set(files) == tables | {"style.css"}
    for name in tables:  # one sheet for all pages, none of them repeats it
        if name.endswith(".html"):
            assert b'<link rel="stylesheet" href="style.css">' in files[name] and b"<style" not in files[name]
    assert b"--paper" in files["style.css"]


def test_numbers_are_read_back_exactly(frame, tmp_path):
    frame.cell("dice").case("dice", 1 / 3).cell("ce").case("ce", 2 / 3)
    (view,) = write_tables(prepare(*frame.frames), ["jadon"], tmp_path)
    back = pd.read_csv(io.StringIO((tmp_path / "jadon.csv").read_text()))
    assert back["value"].tolist() == [1 / 3, 2 / 3] == view.frame["value"].tolist()


@pytest.mark.parametrize(
    "column, entry, text",
    [
        (Column("x"), Entry(1234.567), "1\u202f234.57"),
        (Column("x"), Entry(-0.5), "\u22120.50"),
        (Column("x", 1, signed=True), Entry(0.25), "+0.2"),
        (Column("x"), Entry(math.nan), "–"),
        (Column("x"), Entry(math.inf), "–"),
        (Column("x"), Entry(3.0, text=""), ""),
    ],
)
def test_how_numbers_are_printed(column, entry, text):
    assert column.show(entry) == text


def test_columns_without_a_direction_are_never_marked():
    block = marked(Block("", tuple(Row(n, (Entry(v), Entry(v))) for n, v in (("a", 1.0), ("b", 2.0)))), [Column("x"), Column("y", lower_is_better=True)])  # fmt: skip
    assert [[e.mark for e in row.entries] for row in block.rows] == [["", "best"], ["", "second"]]


def test_an_unknown_layout_is_refused(frame):
    with pytest.raises(BenchError, match=r"report\.layout: 'curves' is no table; expected one of survey_table, "):
        made(frame.cell("dice").case("dice", 0.5), "curves")


def test_the_suite_can_ask_for_every_layout():
    assert Report(layout=tuple(LAYOUTS)).layout == tuple(LAYOUTS)
