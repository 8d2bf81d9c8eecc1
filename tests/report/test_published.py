import importlib
import inspect
import math
from pathlib import Path

import pandas as pd
import pytest

from harness.data.manifest import packed
from harness.errors import BenchError
from harness.losses import LOSSES
from harness.published import published_names, published_table
from harness.report.frames import prepare
from harness.report.layouts import Numbers
from harness.report.published import compare, match_loss
from harness.report.tablefiles import write_tables
from harness.suite import load_suite

ROOT = Path(__file__).parent.parent.parent
TABLES = published_names().tables
ORGANS = ("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach")
SYNAPSE = "azad2023_table3_synapse"


def synapse(frame, losses=("dice", "lovasz"), model="unet", unit="mm", **more):
    for i, loss in enumerate(losses):
        frame.cell(loss, model=model, **more)
        for n, organ in enumerate(ORGANS):
            at = {"model": model, "class": organ} | more
            frame.case(loss, 0.8 - 0.1 * i + 0.001 * n, **at).case(loss, 30.0, metric="hd95", unit=unit, **at)
    return frame


def view_of(frame, name=SYNAPSE, specs=None):
    return compare(Numbers(prepare(*frame.frames)), name, specs)


def test_a_number_stands_beside_the_printed_one_with_its_difference(frame):
    view = view_of(synapse(frame))
    assert view.title == "Beside Azad et al. (2023), Table 3"
    assert [(h.name, h.span) for h in view.heads] == [("DSC (%)", 3), ("HD95 (mm)", 3)]
    assert [c.name for c in view.columns] == ["measured", "published", "difference"] * 2
    rows = {(b.name, r.name): [c.show(e) for c, e in zip(view.columns, r.entries, strict=True)]
            for b in view.blocks for r in b.rows}  # fmt: skip
    assert [b.name for b in view.blocks] == [f"UNet, {o.replace('_', ' ')}" for o in ORGANS] + ["UNet, average"]
    # Table 3: U-Net with Dice has 85.46 for the aorta, with Lovász 88.87; measured were 80.0 and 70.0.
    assert rows["UNet, aorta", "Dice Loss"] == ["80.00", "85.46", "\u22125.46", "", "", ""]
    assert rows["UNet, aorta", "Lovász-Softmax Loss"] == ["70.00", "88.87", "\u221218.87", "", "", ""]
    # means: 80 + (0.1 + ... + 0.7) / 8 = 80.35, printed 74.34; the unit of the printed HD95 is not stated
    assert rows["UNet, average", "Dice Loss"] == ["80.35", "74.34", "+6.01", "30.00", "37.68", "–"]
    assert {r.remark for b in view.blocks for r in b.rows} == {"dice", "lovasz"}
    csv = view.frame.set_index(["model", "loss", "class", "metric"])
    row = csv.loc["UNet", "Dice Loss", "aorta", "DSC"]
    assert row["difference"] == pytest.approx(80.0 - 85.46) and row["our_loss"] == "dice" and row["why"] == ""
    hd = csv.loc["UNet", "Dice Loss", "average", "HD95"]
    assert math.isnan(hd["difference"]) and hd["measured"] == 30.0 and hd["our_unit"] == "mm"
    assert hd["why"] == "the paper's unit is not stated, ours is mm: no difference"


def test_what_is_not_compared_is_listed_and_kept(frame):
    view = view_of(synapse(frame, losses=("dice", "lovasz", "hausdorff_dt")))
    assert len(view.frame) == 120  # every number of the table
    assert view.frame["measured"].notna().sum() == 20
    notes = " ".join(view.notes)
    assert "Not compared, the suite has no loss focal (10 numbers): UNet: Focal Loss." in notes
    assert "Not compared, the suite has no model transunet (60 numbers): TransUNet: Dice Loss, Focal Loss, " in notes
    assert "In the suite, and not in the published table: hausdorff_dt." in notes
    assert view.frame.loc[view.frame["model"] == "TransUNet", "why"].unique().tolist() == [
        "the suite has no model transunet"
    ]


def test_the_notes_say_what_the_released_code_computes_and_claim_no_more(frame):
    notes = " ".join(view_of(synapse(frame)).notes)
    assert (
        "Dice Loss: eq. 7 is the plain form. The Dice of the released code sums its denominator over all classes"
        in notes
    )
    assert "Whether the printed table rests on the released code is not known." in notes
    assert "Focal Loss: the paper prints a sum" not in notes  # not measured: its note would be about nothing
    assert (
        "synapse: split s, 1 test patients. Models are matched by name alone: UNet with unet. Losses are matched by name and shown "
        in notes
    )


def test_another_data_set_is_never_set_beside_the_table(frame):
    frame.cell("dice", dataset="phantom").case("dice", 0.9, dataset="phantom", **{"class": "liver"})
    view = view_of(frame)
    assert (
        view.columns == () and view.notes[0] == "No number of this suite can be set beside Azad et al. (2023), Table 3."
    )
    assert set(view.frame["why"]) == {"the suite has no data set synapse"}


def test_profiles_and_splits_stand_apart(frame):
    for split in ("a", "b"):
        synapse(frame, losses=("dice",), split=split)
        frame.case("dice", 20.0, metric="hd95", unit="voxel", profile="transunet", split=split, **{"class": "liver"})
    view = view_of(frame)
    assert [(h.name, h.profile) for h in view.heads] == [
        ("DSC (%)", ""), ("HD95 (mm)", "voxel-max"), ("HD95 (voxel)", "transunet"),
    ]  # fmt: skip
    assert [b.name for b in view.blocks if b.name.endswith("average")] == [
        "UNet, synapse (a), average", "UNet, synapse (b), average",
    ]  # fmt: skip


def test_a_loss_that_lacks_runs_says_so(frame):
    view = view_of(synapse(frame, losses=("dice",)).cell("dice", 1, "diverged"))
    assert {r.remark for b in view.blocks for r in b.rows} == {"dice, 1/2 runs"}
    assert set(view.frame.loc[view.frame["our_loss"] == "dice", "runs"]) == {"1/2 runs"}


def test_a_loss_without_a_measured_run_is_not_compared(frame):
    view = view_of(synapse(frame, losses=("dice",)).cell("lovasz", status="oom"))
    own = view.frame[(view.frame["model"] == "UNet") & (view.frame["loss"] == "Lovász-Softmax Loss")]
    assert set(own["why"]) == {"no run was measured"} and set(own["our_loss"]) == {"lovasz"} and len(own) == 10
    assert "Not compared, no run was measured (10 numbers): UNet: Lovász-Softmax Loss." in view.notes
    assert {r.name for b in view.blocks for r in b.rows} == {"Dice Loss"}


def test_a_class_that_was_not_measured_has_its_reason(frame):
    frame.cell("dice").case("dice", 0.9)
    view = view_of(frame)
    why = view.frame.set_index(["model", "loss", "class", "metric"])["why"]
    assert why["UNet", "Dice Loss", "aorta", "DSC"] == "no class aorta was measured"
    assert why["UNet", "Dice Loss", "average", "HD95"] == "HD95 was not measured"
    assert why["UNet", "Dice Loss", "average", "DSC"] == "the mean is over other classes here: liver"
    assert why["UNet", "Dice Loss", "liver", "DSC"] == ""


def test_settings_of_table_5_are_matched_by_their_arguments(frame):
    labels = ["tversky(fn_weight=0.2, fp_weight=0.8)", "tversky(fn_weight=0.4, fp_weight=0.6)", "focal(gamma=2.5)"]
    for loss, value in zip(labels, (0.7, 0.8, 0.9), strict=True):
        frame.cell(loss, model="transunet")
        for organ in ORGANS:
            frame.case(loss, value, model="transunet", **{"class": organ})
    view = view_of(frame, "azad2023_table5_hyperparameters")
    rows = {
        r.name: [c.show(e) for c, e in zip(view.columns, r.entries, strict=True)] for b in view.blocks for r in b.rows
    }
    assert rows == {
        "Focal Loss (gamma = 2.5)": ["90.00", "73.36", "+16.64"],
        "Tversky Loss (alpha = 0.2)": ["70.00", "80.32", "\u221210.32"],
        "Tversky Loss (alpha = 0.4)": ["80.00", "80.53", "\u22120.53"],
    }
    assert "Focal Loss (gamma = 1.5)" in " ".join(view.notes)
    why = view.frame.set_index(["loss", "metric"])["why"]
    assert why["Tversky Loss (alpha = 0.6)", "DSC"] == (
        "another setting was measured: tversky(fn_weight=0.2, fp_weight=0.8): fn_weight is 0.2, in the paper 0.6, fp_weight is "
        "0.8, in the paper 0.4; tversky(fn_weight=0.4, fp_weight=0.6): fn_weight is 0.4, in the paper 0.6, fp_weight is 0.6, in "
        "the paper 0.4"
    )


def test_jadon_takes_the_one_class_whatever_its_name(frame):
    at = {"dataset": "nfbs", "model": "jadon_unet"}
    frame.cell("ce", **at).case("ce", 0.96, **at, **{"class": "brain"})
    view = view_of(frame, "jadon2020_table3_nfbs")
    ((row,),) = [b.rows for b in view.blocks]
    assert [c.show(e) for c, e in zip(view.columns, row.entries, strict=True)] == ["0.960", "0.968", "\u22120.008"]
    frame.case("ce", 0.9, **at, **{"class": "skull"})
    two = view_of(frame, "jadon2020_table3_nfbs")
    assert two.columns == () and "2 classes were measured, and the paper has one" in set(two.frame["why"])


def test_celaya_compares_means_and_spreads_over_cases(frame):
    label = "linear(1→0)·dice_ce + linear(0→1)·boundary"
    for loss in ("gsl", label):
        frame.cell(loss, dataset="lits", model="nnunet")
        for patient, value in (("p1", 0.9), ("p2", 0.5)):
            frame.case(loss, value, patient=patient, dataset="lits", model="nnunet")
    view = view_of(frame, "celaya2023_table1_losses")
    rows = {r.name: [f"{c.show(e)} {c.show_sd(e)}".strip() for c, e in zip(view.columns, r.entries, strict=True)]
            for b in view.blocks for r in b.rows}  # fmt: skip
    # 0.7 ± 0.4 / sqrt(2) of two cases; printed: GSL 0.9302 (0.1075), BL 0.9270 (0.1221)
    assert rows == {
        "BL": ["0.7000 ± 0.2828", "0.9270 ± 0.1221", "\u22120.2270"],
        "GSL": ["0.7000 ± 0.2828", "0.9302 ± 0.1075", "\u22120.2302"],
    }
    assert [b.name for b in view.blocks] == ["nnUNet, Liver"]


def specs_of(suite):
    return {c.loss_label: c.loss for c in suite.cells}


def test_the_synapse_suite_measures_what_the_paper_states():
    suite = load_suite(ROOT / "suites" / "synapse.yaml")
    specs = specs_of(suite)
    table, _ = published_table(SYNAPSE)
    found = {row: match_loss(list(specs), table, row, {}, specs) for row in table.losses}
    assert found == {
        "Dice Loss": ("dice", ""), "Focal Loss": ("focal", ""), "Tversky Loss": ("tversky", ""),
        "Focal Tversky Loss": ("focal_tversky", ""), "Jaccard Loss": ("jaccard", ""), "Lovász-Softmax Loss": ("lovasz", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    "spec, why",
    [
        ({"name": "tversky", "args": {"fn_weight": 0.2, "fp_weight": 0.8}}, "the total is not 0.5 tversky + 0.5 ce"),
        ({"sum": [("tversky", {}, 0.5), ("ce", {}, 0.5)]}, "fn_weight is 0.5, in the paper 0.2, fp_weight is 0.5, in the paper 0.8"),
        ({"sum": [("tversky", {"fn_weight": 0.2, "fp_weight": 0.8}, 0.5), ("dice", {}, 0.5)]}, "the total is not 0.5 tversky + 0.5 ce"),
        ({"sum": [("focal", {}, 0.5), ("ce", {}, 0.5)]}, "a sum of other losses"),
    ],
)  # fmt: skip
def test_another_setting_is_not_compared(spec, why):
    if "sum" in spec:
        spec = {"sum": [{"loss": {"name": n, "args": a}, "weight": w} for n, a, w in spec["sum"]]}
    table, _ = published_table(SYNAPSE)
    label, found = match_loss(["tversky"], table, "Tversky Loss", {}, {"tversky": spec})
    assert (label, found) == (None, f"another setting was measured: tversky: {why}")


def test_two_losses_that_fit_are_compared_with_none():
    table, _ = published_table(SYNAPSE)
    labels = ["jaccard(smooth=1)", "jaccard(smooth=2)"]
    assert match_loss(labels, table, "Jaccard Loss", {}) == (
        None, "several losses could be meant: jaccard(smooth=1), jaccard(smooth=2)",
    )  # fmt: skip


def test_a_schedule_is_the_same_by_name_and_in_full():
    table, _ = published_table("celaya2023_table2_schedules")
    steps = {"step": {"every": 5, "from": 1, "to": 0}}
    alphas = {"gsl": {}, "gsl(alpha=a)": {"alpha": {"linear": [1, 0]}}, "gsl(alpha=b)": {"alpha": steps}}
    specs = {label: {"name": "gsl", "args": args} for label, args in alphas.items()}
    assert match_loss(["gsl"], table, "Linear", {}, specs) == ("gsl", "")
    assert match_loss(["gsl(alpha=a)", "gsl(alpha=b)"], table, "Linear", {}, specs) == ("gsl(alpha=a)", "")
    assert match_loss(["gsl(alpha=a)", "gsl(alpha=b)"], table, "Step - 5", {}, specs) == ("gsl(alpha=b)", "")
    assert match_loss(["gsl(alpha=a)"], table, "Cosine", {}, specs)[0] is None
    shown = ["gsl(alpha=linear)", "gsl(alpha=step(1→0, every 5))", "gsl(alpha=step(1→0, every 25))"]
    assert match_loss(shown, table, "Step - 25", {}) == (shown[2], "")  # by what a label shows alone


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_published_table_has_a_name_here(name):
    table, path = published_table(name)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert set(rows[table.rows]) == set(table.losses)
    assert set(rows["model"]) == set(table.models) and set(rows["metric"]) == set(table.metrics)
    assert set(rows.get("dataset", pd.Series([""]))) == set(table.data)
    assert set(table.classes) <= set(rows.get("class", rows.get("task")))
    for column in ("value", "mean", "std"):
        assert rows.get(column, pd.Series(dtype=str)).astype(float).notna().all()


SUITES = sorted(p.stem for p in packed("suites").glob("*.yaml") if "published:" in p.read_text(encoding="utf-8"))
COUNTED = {"tp": 8.0, "fp": 1.0, "fn": 1.0, "tn": 90.0}


@pytest.mark.parametrize("name", SUITES)
def test_every_row_of_the_table_that_a_suite_names_finds_its_cell(frame, found_data, name):
    """A record of every cell, made up: models, losses, classes and data sets of the suite are those of the table."""
    suite = load_suite(packed("suites") / f"{name}.yaml", root=found_data)
    published = suite.spec.report.published
    table, _ = published_table(published)
    specs = {c.loss_label: c.loss for c in suite.cells}
    metrics = [m for m in suite.spec.metrics if m != "miou"]
    for cell in suite.cells:
        if cell.seed != suite.cells[0].seed or cell.data["fold"] not in (None, 0):
            continue
        at = {
            "dataset": cell.dataset,
            "model": cell.model_label,
            "split": cell.data["split"],
            "fold": cell.data["fold"],
        }
        frame.cell(cell.loss_label, cell.seed, **at)
        manifest = suite.manifests[cell.dataset]
        for measured in manifest.measured:
            for metric, value in (dict.fromkeys(metrics, 0.8) | COUNTED).items():
                unit = "mm" if metric in ("hd95", "asd") else "voxels" if metric in COUNTED else "1"
                row = at | {"class": measured, "metric": metric, "unit": unit}
                frame.case(cell.loss_label, value, seed=cell.seed, **row)
    pooled = [m for m in suite.spec.metrics if m == "miou"]
    view = compare(Numbers(prepare(*frame.frames, pooled)), published, specs)
    found, have = view.frame, set(suite.manifests)
    there = [d for d, ours in table.data.items() if have & ({ours} if isinstance(ours, str) else {*ours})]
    assert there
    own, other = found[found["dataset"].isin(there)], found[~found["dataset"].isin(there)]
    allowed = {""} | {w for w in own["why"] if w.startswith("the paper's unit is not stated, ours is")}
    assert set(own["why"]) <= allowed and own["measured"].notna().all(), own[~own["why"].isin(allowed)].to_string()
    assert own["our_loss"].nunique() == len(specs), "a loss of the suite is not in the table"
    assert set(own["our_model"]) == {c.model_label for c in suite.cells}
    assert all(why.startswith("the suite has no data set") for why in other["why"])


def test_no_published_table_is_without_names():
    assert {p.stem for p in packed("published").glob("*.csv")} == set(TABLES)


def test_the_names_are_losses_and_arguments_of_ours_with_their_defaults():
    for table in TABLES.values():
        for entry in table.losses.values():
            stated = {**entry.args, **dict.fromkeys(entry.params.values()), **entry.complement}
            assert not entry.ours or entry.ours in LOSSES
            assert set(stated) <= set(published_names().defaults.get(entry.ours, {})), entry
    for name, defaults in published_names().defaults.items():
        module, cls = LOSSES[name].split(":")
        known = inspect.signature(getattr(importlib.import_module(module), cls)).parameters
        assert {k: known[k].default for k in defaults} == defaults


def test_the_comparison_is_written_as_html_csv_and_latex(frame, tmp_path):
    views = write_tables(prepare(*synapse(frame).frames), ["curves"], tmp_path, SYNAPSE)
    assert [v.layout for v in views] == ["published"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "published.csv",
        "published.html",
        "published.tex",
        "style.css",
    ]
    back = pd.read_csv(tmp_path / "published.csv", keep_default_na=False, na_values={"measured": "", "difference": ""})
    assert back["published"].tolist() == views[0].frame["published"].tolist() and len(back) == 120
    assert back["measured"].tolist() == pytest.approx(views[0].frame["measured"].tolist(), nan_ok=True)
    assert "Lov\\'{a}sz-Softmax Loss {\\footnotesize (lovasz)}" in (tmp_path / "published.tex").read_text()
    assert "Lovász-Softmax Loss <small>(lovasz)</small>" in (tmp_path / "published.html").read_text(encoding="utf-8")


def test_a_comparison_without_a_match_is_sentences_and_the_list(frame, tmp_path):
    write_tables(prepare(*frame.cell("dice").case("dice", 0.5).frames), [], tmp_path, "jadon2020_table3_nfbs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published.csv", "published.html", "style.css"]
    assert "<table" not in (tmp_path / "published.html").read_text(encoding="utf-8")


def test_an_unknown_table_is_one_sentence(frame, tmp_path):
    with pytest.raises(
        BenchError, match=r"'azad2023_table3' is no published table \(did you mean '.*?'\?\); known: azad2023_table3"
    ):
        view_of(synapse(frame), "azad2023_table3")
    suite = tmp_path / "s.yaml"
    text = (ROOT / "suites" / "quickstart.yaml").read_text(encoding="utf-8")
    suite.write_text(
        text + "\nreport:\n  published: jadon\n"
        if "report:" not in text
        else text.replace("report:", "report:\n  published: jadon")
    )
    with pytest.raises(BenchError, match=r"s\.yaml:\d+: report\.published: 'jadon' is no published table"):
        load_suite(suite)


def test_a_suite_may_name_a_table(tmp_path):
    quickstart = ROOT / "suites" / "quickstart.yaml"
    assert load_suite(quickstart).spec.report.published is None
    text = quickstart.read_text(encoding="utf-8")
    (tmp_path / "s.yaml").write_text(text.replace("report:", f"report:\n  published: {SYNAPSE}"))
    assert load_suite(tmp_path / "s.yaml").spec.report.published == SYNAPSE
    assert load_suite(ROOT / "suites" / "synapse.yaml").spec.report.published == SYNAPSE
