"""Suites: the grid, identities that hold still, and mistakes named with file, line and the nearest right name."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from harness import suite_file
from harness.cell import Cell
from harness.data import conditions
from harness.data.manifest import packed
from harness.errors import BenchError
from harness.losses import LOSSES
from harness.suite import load_suite

BASE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 4}]
losses: [dice, ce]
seeds: 2
train: {epochs: 1, batch: 2, optimizer: {sgd: {lr: 1e-2}}}
rank: {by: [dice], baseline: dice}
"""


def suite(tmp_path: Path, text: str = BASE, **kwargs):
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path, **kwargs)


def labels(tmp_path: Path, losses: str, extra: str = "") -> list[str]:
    text = BASE.replace("losses: [dice, ce]", f"losses: {losses}").replace(", baseline: dice", "") + extra
    return list(dict.fromkeys(c.loss_label for c in suite(tmp_path, text).cells))


def test_the_grid_is_the_product_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = BASE.replace("[unet: {width: 4}]", "[unet: {width: {sweep: [4, 8]}}]")
    cells = suite(tmp_path, text).cells
    assert len(cells) == 2 * 2 * 2
    assert [c.model_label for c in cells[::4]] == ["unet(width=4)", "unet(width=8)"]
    assert [(c.loss_label, c.seed) for c in cells[:4]] == [("dice", 0), ("dice", 1), ("ce", 0), ("ce", 1)]


def test_folds_and_several_data_sets(tmp_path: Path) -> None:
    text = BASE.replace(
        "data: {manifest: phantom, split: default, slices: {size: [64, 64]}}",
        "data:\n  - {manifest: phantom, split: kfold4, folds: [0, 2], slices: {size: [64, 64]}}\n"
        "  - {manifest: hippocampus, split: kfold5, folds: all, slices: {size: [64, 48]}}",
    )
    cells = suite(tmp_path, text).cells
    assert len(cells) == (2 + 5) * 2 * 2
    assert [c.data["fold"] for c in cells if c.dataset == "phantom" and c.loss_label == "dice" and c.seed == 0] == [
        0,
        2,
    ]


def test_only_sweep_expands(tmp_path: Path) -> None:
    assert labels(tmp_path, "[ce: {weight: [0.1, 1, 5]}]") == ["ce"]
    assert labels(tmp_path, "[focal: {gamma: {sweep: [1.5, 2]}}]") == ["focal(gamma=1.5)", "focal(gamma=2)"]
    moving = "[tversky: {sweep: [{fn_weight: 0.2, fp_weight: 0.8}, {fn_weight: 0.4, fp_weight: 0.6}]}]"
    assert labels(tmp_path, moving) == [
        "tversky(fn_weight=0.2, fp_weight=0.8)",
        "tversky(fn_weight=0.4, fp_weight=0.6)",
    ]


def test_a_sum_keeps_weights_and_schedules(tmp_path: Path) -> None:
    entry = "[sum: [{loss: dice_ce, weight: {linear: [1, 0]}}, {loss: {tversky: {fn_weight: 0.7}}, weight: 0.5}]]"
    assert labels(tmp_path, entry) == ["linear(1→0)·dice_ce + 0.5·tversky(fn_weight=0.7)"]
    spec = suite(tmp_path, BASE.replace("[dice, ce]", entry).replace(", baseline: dice", "")).cells[0].loss
    assert [t["weight"] for t in spec["sum"]] == [{"linear": [1.0, 0.0]}, 0.5]
    assert spec["sum"][1]["loss"]["args"] == {"fn_weight": 0.7}


def test_schedules_among_arguments_read_like_weights(tmp_path: Path) -> None:
    step = "{step: {every: 5, from: 1, to: 0}}"
    assert labels(tmp_path, f"[gsl: {{alpha: {{sweep: [linear, {{cosine: [1, 0.1]}}, {step}]}}}}]") == [
        "gsl(alpha=linear)", "gsl(alpha=cosine(1→0.1))", "gsl(alpha=step(1→0, every 5))",
    ]  # fmt: skip
    assert labels(tmp_path, "[gsl, gsl: {region: generalized_dice, region_args: {weights: simple}}]")[1] == (
        "gsl(region=generalized_dice, region_args={weights: simple})"
    )


def test_subsets_are_an_ablation_grid(tmp_path: Path) -> None:
    found = labels(tmp_path, "[subsets: {always: [dice], of: [ce, focal], label: parts}]")
    assert found == ["dice", "dice + ce", "dice + focal", "dice + ce + focal"]


def test_with_is_equation_37_and_spares_its_exceptions(tmp_path: Path) -> None:
    text = BASE + "with: {varied: 0.5, ce: 0.5, except: [ce]}\n"
    by_label = {c.loss_label: c.loss for c in suite(tmp_path, text).cells}
    assert [(t["loss"]["name"], t["weight"]) for t in by_label["dice"]["sum"]] == [("dice", 0.5), ("ce", 0.5)]
    assert by_label["ce"]["name"] == "ce"


def test_ids_ignore_prose_and_order_and_move_with_what_decides_numbers(tmp_path: Path) -> None:
    def ids(text: str = BASE, **kwargs) -> dict[tuple[str, int], tuple[str, str]]:
        return {(c.loss_label, c.seed): (c.train_id, c.eval_id) for c in suite(tmp_path, text, **kwargs).cells}

    base = ids()
    assert ids("description: other\n" + BASE) == base
    assert ids(BASE.replace("[dice, ce]", "[ce, dice]")) == base
    assert ids(BASE.replace("suite: toy", "suite: other")) == base  # a cell belongs to every suite that plans it
    metrics = ids(BASE + "metrics: [dice, hd95]\n")
    assert [v[0] for v in metrics.values()] == [v[0] for v in base.values()]
    assert all(metrics[k][1] != base[k][1] for k in base)
    for old, new in (
        ("epochs: 1", "epochs: 2"),
        ("lr: 1e-2", "lr: 2e-2"),
        ("width: 4", "width: 8"),
        ("[64, 64]", "[64, 96]"),
    ):
        assert set(ids(BASE.replace(old, new)).values()) & set(base.values()) == set()
    one = ids(BASE.replace("[dice, ce]", "[dice, ce: {weight: [1, 1, 1, 1, 1, 1, 1, 1, 2]}]"))
    assert one[("dice", 0)] == base[("dice", 0)] and one[("ce", 0)] != base[("ce", 0)]
    assert set(ids(quick=True).values()) & set(base.values()) == set()


def test_profile_and_engine_are_another_evaluation_of_the_same_training(tmp_path: Path) -> None:
    def first(extra: str = "", text: str = BASE) -> Cell:
        return suite(tmp_path, text + extra).cells[0]

    base = first()
    assert (base.profiles, base.engine) == (("voxel-max",), "simpleitk")
    for same in ("profile: voxel-max\n", "profile: [voxel-max]\n", "engine: simpleitk\n"):
        assert first(same).eval_id == base.eval_id
    others = [
        first(e)
        for e in ("profile: area\n", "profile: [voxel-max, area]\n", "profile: [area, voxel-max]\n", "engine: points\n")
    ]
    assert {c.train_id for c in others} == {base.train_id}
    assert len({base.eval_id, *(c.eval_id for c in others)}) == 5
    assert others[1].profiles == ("voxel-max", "area") and others[3].engine == "points"
    described = others[1].described()
    assert (described["profiles"], described["engine"]) == (["voxel-max", "area"], "simpleitk")


def test_what_selects_the_epoch_decides_the_weights(tmp_path: Path) -> None:
    text = (packed("data_manifests") / "phantom.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("default:", "default:\n    val: [p16, p17]"))
    chosen = BASE.replace("manifest: phantom", "manifest: mine.yaml") + "select: best:hd95@val\n"
    one, two = (suite(tmp_path, chosen + e).cells[0] for e in ("", "profile: area\n"))
    assert one.train["select"] == "best:hd95@val" and one.train_id != two.train_id


def test_metrics_have_one_spelling_and_are_known_to_rank_and_select(tmp_path: Path) -> None:
    text = (packed("data_manifests") / "phantom.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("default:", "default:\n    val: [p16, p17]"))
    asked = BASE.replace("by: [dice]", "by: [nsd@2.0, miou]").replace("manifest: phantom", "manifest: mine.yaml")
    found = suite(tmp_path, asked + "metrics: [nsd@2.00, dice, miou, hd]\nselect: best:nsd@2.0@val\n")
    assert found.spec.metrics == ["nsd@2", "dice", "miou", "hd"] and found.spec.rank.by == ["nsd@2", "miou"]
    assert found.cells[0].metrics == ("nsd@2", "dice", "miou", "hd") and found.spec.select == "best:nsd@2@val"
    assert suite(tmp_path, asked + "metrics: [miou, nsd@2]\nprofile: [transunet, area]\n").cells[0].profiles == (
        "transunet",
        "area",
    )


REGIONS = "regions: {organs: [liver, spleen], liver: [liver]}\n"


def test_regions_are_another_evaluation_of_the_same_training(tmp_path: Path) -> None:
    text = (packed("data_manifests") / "phantom.yaml").read_text()
    chosen = BASE.replace("manifest: phantom", "manifest: mine.yaml")

    def first(regions: str) -> Cell:
        (tmp_path / "mine.yaml").write_text(text + regions)
        return suite(tmp_path, chosen).cells[0]

    bare = first("")
    assert "regions" not in bare.data and bare.eval_id == suite(tmp_path).cells[0].eval_id
    some, turned = first(REGIONS), first("regions: {liver: [liver], organs: [spleen, liver]}\n")
    assert some.data["regions"] == {"organs": ["liver", "spleen"], "liver": ["liver"]}
    assert some.train_id == bare.train_id and some.eval_id == turned.eval_id != bare.eval_id


def test_a_2d_data_set_is_cut_into_its_own_images(tmp_path: Path) -> None:
    text = (packed("data_manifests") / "phantom.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text + "dimensions: 2\n")
    flat = BASE.replace("manifest: phantom", "manifest: mine.yaml") + "metrics: [dice, boundary_iou@3]\n"
    assert suite(tmp_path, flat).cells[0].metrics == ("dice", "boundary_iou@3")
    assert suite(tmp_path, flat, quick=True).cells[0].metrics == ("dice", "boundary_iou@3")  # its phantom is flat too
    for wrong in ("patches: {size: [8, 8, 8]}", "slices: {size: [64, 64], axis: 1}"):
        with pytest.raises(BenchError, match="is a 2D data set; give `slices"):
            suite(tmp_path, flat.replace("slices: {size: [64, 64]}", wrong))


def test_equal_numbers_have_equal_ids(tmp_path: Path) -> None:
    one, two = (
        suite(tmp_path, BASE.replace("[dice, ce]", f"[dice, focal: {{gamma: {g}}}]")).cells[2] for g in ("2", "2.0")
    )
    assert one.train_id == two.train_id


def test_two_cells_never_share_a_name(tmp_path: Path) -> None:
    sums = [f"sum: [{{loss: dice}}, {{loss: ce, weight: {{switch: {{at: {a}, from: 0, to: 1}}}}}}]" for a in (0.3, 0.5)]
    assert len(set(labels(tmp_path, f"[{', '.join(sums)}]"))) == 2
    twice = "data:\n  - {manifest: phantom, split: default, slices: {size: [64, 64]}}\n  - {manifest: phantom, split: default, slices: {size: [96, 96]}}"
    with pytest.raises(BenchError, match="two cells would both be called"):
        suite(tmp_path, BASE.replace("data: {manifest: phantom, split: default, slices: {size: [64, 64]}}", twice))


LATER = (
    "resample: {spacing: median}",
    "resample: {spacing: [2, 1, 1]}",
    "crop: nonzero",
    "canonical: true",
    "intensity: {zscore: volume}",
)


def test_keys_of_the_data_that_came_later_change_ids_only_where_they_say_something(tmp_path: Path) -> None:
    def first(extra: str = "", cut: str = "slices: {size: [64, 64]}") -> Cell:
        text = BASE.replace("slices: {size: [64, 64]}", f"{cut}{', ' + extra if extra else ''}")
        return suite(tmp_path, text).cells[0]

    base = first()
    assert base.data["view"] == {"slices": {"size": [64, 64], "fit": "pad", "axis": 0}}
    for same in ("canonical: false", "crop: null"):
        assert first(same).train_id == base.train_id
    assert first(cut="slices: {size: [64, 64], keep: all}").train_id == base.train_id
    assert len({base.train_id, *(first(e).train_id for e in LATER)}) == 1 + len(LATER)
    assert first(LATER[0]).data["view"]["resample"] == {"spacing": "median"}
    assert first(LATER[4]).data["view"]["intensity"] == {"zscore": "volume"}
    kept = first(cut="slices: {size: [64, 64], keep: labelled}")
    assert kept.data["view"]["slices"]["keep"] == "labelled" and kept.train_id != base.train_id
    volume = first(cut="patches: {size: [16, 32, 32]}")
    assert volume.data["view"] == {"patches": {"size": [16, 32, 32], "foreground": 0.33}}
    assert first(cut="patches: {size: nnunet}").data["view"]["patches"]["size"] == "nnunet"


def test_the_quick_form_is_the_suite_on_a_phantom_of_its_own_data(tmp_path: Path) -> None:
    text = BASE.replace("[64, 64]", "[224, 224]")
    full, quick = suite(tmp_path, text), suite(tmp_path, text + "quick: {epochs: 3, cases: 2, size: 32}\n", quick=True)
    assert quick.name == full.name + "-quick" and len(quick.cells) == len(full.cells)
    cell = quick.cells[0]
    assert cell.data["manifest"] == full.cells[0].data["manifest"] and cell.data["split"] == "default"
    assert [len(cell.data[part]) for part in ("train", "val", "test")] == [2, 0, 2]
    assert cell.data["view"]["slices"]["size"] == [32, 32] and cell.train["epochs"] == 3
    small = "quick: {batch: 1, seeds: 1, models: [unet: {width: 2, depth: 2}], size: [32, 48]}\n"
    (one, *_), count = (found := suite(tmp_path, text + small, quick=True)).cells, len(found.cells)
    assert (one.train["batch"], one.model["args"]["width"], count) == (1, 2, 2)
    assert one.data["view"]["slices"]["size"] == [32, 48]


def test_folds_and_validation_cases_are_kept_by_the_quick_form(tmp_path: Path) -> None:
    text = BASE.replace("split: default", "split: kfold4, folds: all")
    assert {c.data["fold"] for c in suite(tmp_path, text).cells} == {0, 1, 2, 3}
    assert {c.data["fold"] for c in suite(tmp_path, text, quick=True).cells} == {0}
    assert {c.data["fold"] for c in suite(tmp_path, text + "quick: {folds: 2}\n", quick=True).cells} == {0, 1}


def test_a_model_may_start_from_weights(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt", "again.pt"):
        (tmp_path / name).write_bytes(b"one" if name != "b.pt" else b"two")

    def cells(init: str, train: str = "") -> tuple[Cell, ...]:
        text = BASE.replace("width: 4", f"width: 4, init: {init}" if init else "width: 4")
        return suite(tmp_path, text.replace("epochs: 1", f"epochs: 1{train}")).cells

    (base, *_), (one, *_), (same, *_), (two, *_) = (
        cells(i) for i in ("", "{checkpoint: a.pt}", "{checkpoint: again.pt}", "{checkpoint: b.pt}")
    )
    assert "init" not in base.model and base.init_path is None and cells("null")[0].train_id == base.train_id
    assert one.init_path == str(tmp_path / "a.pt") and one.train_id == same.train_id != two.train_id
    assert base.train_id not in (one.train_id, two.train_id)
    assert one.seed_base == base.seed_base  # the same batches, with and without
    assert cells("", ", init: {checkpoint: a.pt}")[0].train_id == one.train_id
    frozen = cells("{checkpoint: a.pt, freeze: [encoder], lr: {decoder: 0.1}}")[0]
    assert frozen.model["init"]["freeze"] == ["encoder"] and frozen.train_id != one.train_id
    both = cells("{sweep: [null, {checkpoint: a.pt}]}")
    assert {c.model_label for c in both} == {"unet", "unet(init=a)"}
    for wrong, words in (
        ("{checkpoint: c.pt}", "no file 'c.pt' beside the suite"),
        ("{checkpoint: a.pt, frieze: [x]}", r"init.frieze: unknown key \(did you mean 'freeze'\?\)"),
        ("{freeze: [x]}", "init.checkpoint: this key is required and is not there"),
    ):
        with pytest.raises(BenchError, match=words):
            cells(wrong)


def test_seeds_never_depend_on_the_loss(tmp_path: Path) -> None:
    by_seed: dict[int, set[str]] = {}
    for cell in suite(tmp_path).cells:
        by_seed.setdefault(cell.seed, set()).add(repr(cell.seed_base))
    assert all(len(bases) == 1 for bases in by_seed.values()) and by_seed[0] != by_seed[1]


def test_a_loss_file_is_read_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "raise SystemExit('this file was run')\nclass Mine:\n    version = 2\n    def forward(self, logits, target): ...\n"
    )
    cells = suite(tmp_path, BASE.replace("[dice, ce]", "[dice, 'mine.py:Mine']")).cells
    assert cells[2].loss_label == "Mine" and cells[2].loss["version"] == 2


def test_an_unknown_need_is_refused_and_an_unserved_one_is_a_planned_skip(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class A:\n    def forward(self, logits, target, *, attention): ...\n"
        "class B:\n    def forward(self, logits, target, *, distence_in): ...\n"
    )
    cells = suite(tmp_path, BASE.replace("[dice, ce]", "[dice, 'mine.py:A']")).cells
    assert cells[0].skip is None and "needs attention, which unet does not provide" in str(cells[2].skip)
    with pytest.raises(BenchError, match="distence_in"):
        suite(tmp_path, BASE.replace("[dice, ce]", "[dice, 'mine.py:B']"))


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from harness.suite import load_suite\n"
        f"load_suite({str(packed('suites') / 'quickstart.yaml')!r})\n"
        "print(sorted({'torch', 'monai', 'pandas', 'SimpleITK'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_protocol_of_synapse_table_3() -> None:
    """Typed from the paper and from TransUNet's recipe, not from the suite."""
    found = load_suite(packed("suites") / "synapse.yaml")
    assert found.spec.train.optimizer == {"sgd": {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}}
    assert (found.spec.train.batch, found.spec.train.epochs, found.spec.train.schedule) == (8, 300, "poly")
    by_label = {c.loss_label: c.loss for c in found.cells}
    assert list(by_label) == ["dice", "focal", "tversky", "focal_tversky", "jaccard", "lovasz"]
    for loss in by_label.values():
        assert [t["weight"] for t in loss["sum"]] == [0.5, 0.5] and loss["sum"][1]["loss"]["name"] == "ce"
    varied = {name: loss["sum"][0]["loss"]["args"] for name, loss in by_label.items()}
    assert varied["focal"] == {"gamma": 2.0}
    assert varied["tversky"] == {"fn_weight": 0.2, "fp_weight": 0.8}
    assert varied["focal_tversky"] == {"fn_weight": 0.6, "fp_weight": 0.4, "gamma": 2.0, "classes": "sum"}
    assert len(found.cells[0].data["train"]) == 18 and len(found.cells[0].data["test"]) == 12
    assert found.cells[0].data["view"]["slices"]["size"] == [224, 224]


@pytest.mark.parametrize("name", ["suites/suite.schema.json", "data_manifests/manifest.schema.json"])
def test_the_schemas_for_editors_are_current(name: str) -> None:
    from harness.schema import SCHEMAS, path_of, schema_text

    assert path_of(name).read_text(encoding="utf-8") == schema_text(SCHEMAS[name]), "run python -m harness.schema"


# An id that moves makes every committed record of the suite unfindable. Change these only on purpose, and say why.
GOLDEN = {
    "quickstart": "9993f740a88cc357",
    "hippocampus": "7d8520e6cf3d6391",
    "synapse": "543ee045c8db7a2d",
    "catalogue": "2bb2d6afe5a3b5d4",
    "hippocampus_few": "288707759170afb0",
    "hippocampus_noise": "383484e627a8922f",
}


def _literals(kind: Any) -> set[str]:
    """The words that an annotation lists."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return {word for word in inner if isinstance(word, str)}
    return set().union(*map(_literals, inner))


PARTS = ("SuiteFile", "DataEntry", "Slices", "Patches", "Resample", "Augment", "PresetAugment", "Init", "Train", "Tune",
         "Rank", "Report", "Protocol", "Quick")  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_the_reference_names_every_key_and_word(part: str) -> None:
    pages = packed("suites").parent / "docs"
    text = "".join((pages / name).read_text(encoding="utf-8") for name in ("suites.md", "models.md"))
    code = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))))
    fields = getattr(suite_file, part).model_fields
    words = {f.alias or name for name, f in fields.items()}
    for field in fields.values():
        words |= _literals(field.annotation) - {"clean"}
    assert words <= code, sorted(words - code)


def test_the_catalogue_suite_holds_every_loss() -> None:
    names = [c.loss["sum"][0]["loss"]["name"] if "sum" in c.loss else c.loss["name"] for c in _shipped("catalogue")]
    assert names == list(LOSSES)


def _shipped(name: str) -> list[Cell]:
    return load_suite(packed("suites") / f"{name}.yaml").cells


@pytest.mark.parametrize("part", ["Condition", "Jitter", "Morphology", "Chance", "Partial"])
def test_the_reference_names_every_word_of_a_condition(part: str) -> None:
    text = (packed("suites").parent / "docs" / "robustness.md").read_text(encoding="utf-8")
    code = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))))
    words = set(getattr(conditions, part).model_fields)
    assert words <= code, sorted(words - code)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_ids(name: str) -> None:
    ids = "".join(c.eval_id for c in load_suite(packed("suites") / f"{name}.yaml").cells)
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == GOLDEN[name]


def test_accumulation_enters_the_id_only_where_it_is_set(tmp_path: Path) -> None:
    plain = suite(tmp_path).cells[0]
    once = suite(tmp_path, BASE.replace("batch: 2", "batch: 2, accumulate: 1")).cells[0]
    twice = suite(tmp_path, BASE.replace("batch: 2", "batch: 2, accumulate: 2")).cells[0]
    assert (once.train_id, once.eval_id) == (plain.train_id, plain.eval_id) and "accumulate" not in plain.train
    assert twice.train_id != plain.train_id and twice.described()["train"]["accumulate"] == 2
    assert twice.seed_base == plain.seed_base  # the same batches
    with pytest.raises(
        BenchError, match=r"toy\.yaml:6: train: .*accumulate: 4 does not divide the batch of 6; .* 1, 2, 3, 6"
    ):
        suite(tmp_path, BASE.replace("batch: 2", "batch: 6, accumulate: 4"))
    text = BASE.replace("batch: 2", "batch: 6, accumulate: 6") + "quick: {batch: 4}\n"
    assert suite(tmp_path, text, quick=True).cells[0].train["accumulate"] == 2  # what also divides the quick batch
