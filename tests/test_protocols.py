"""Published protocols, typed from the papers and not from the suites: every suite equals its own, or says where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cell import Cell
from harness.data.intensity import Intensity
from harness.data.manifest import load_manifest, packed
from harness.suite import Suite, load_suite

SYNAPSE_TEST = ["0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035", "0036", "0038"]
ACDC_TEST = [2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95]
ACDC_VAL = [19, 21, 29, 33, 41, 50, 61, 71, 76, 80]
# labelIds that Cityscapes evaluates
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]

AZAD: dict[str, Any] = {
    "train.optimizer": "sgd",
    "train.lr": 0.01,
    "train.batch": 8,
    "train.epochs": 300,
    "with": {"varied": 0.5, "ce": 0.5},  # eq. 37
    "seeds": 1,
    "train.precision": "float32",
    # not in the paper; the TransUNet literature's
    "train.momentum": 0.9,
    "train.weight_decay": 1e-4,
    "train.schedule": "poly",
    "train.clip": None,
    "train.cases": "all",
    "select": "last",
    "profile": "voxel-max",
}
SIX = ["dice", "focal", "tversky", "focal_tversky", "jaccard", "lovasz"]
CELAYA: dict[str, Any] = {
    "train.optimizer": "adam",
    "train.lr": 3e-4,
    "train.batch": 2,
    "train.epochs": 1000,
    "train.steps": 250,
    "train.augment": {"preset": "nnunet", "flip": True},
    "train.precision": "float32",
    "train.schedule": "constant",
    "train.clip": None,
    "train.cases": "all",
    "train.weight_decay": 0.0,
    "select": "last",
    "profile": "voxel-max",
    "with": None,
    "seeds": [42],
    "folds": 5,
    "models": ["nnunet"],
    "metrics": ["dice", "hd95", "asd"],
}
LITS_VIEW = {
    "patches": {"size": [128, 256, 256], "foreground": 0.33},
    "resample": {"spacing": "mist"},
    "intensity": {"foreground": [0.5, 99.5]},
}
BRATS_VIEW = {"patches": {"size": [128, 128, 128], "foreground": 0.33}, "crop": "nonzero"}
LINEAR = [{"linear": [1.0, 0.0]}, {"linear": [0.0, 1.0]}]
ONE_MINUS = [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2)]  # α weighs false negatives, β = 1 - α

# suite → what its source states, or what is taken where it is silent (then the suite says so under `unstated`)
PROTOCOLS: dict[str, dict[str, Any]] = {
    "synapse": AZAD
    | {
        "losses": SIX,
        "models": ["unet", "transunet"],
        "metrics": ["dice", "hd95"],
        "data.train": 18,
        "data.test": SYNAPSE_TEST,
        "intensity": [{"window": [-125.0, 275.0]}],
        "view": [{"slices": {"size": [224, 224], "fit": "resize", "axis": 0}}],
        "train.augment": {"preset": "transunet", "flip": True},
        "args.tversky": [(0.2, 0.8)],
        "args.focal_tversky": [(0.6, 0.4, 2.0, "sum")],
        "args.focal": [2.0],
    },
    "synapse_hyperparameters": AZAD
    | {
        "losses": ["focal_tversky"] * 4 + ["focal"] * 4 + ["tversky"] * 4,
        "models": ["transunet"],
        "metrics": ["dice", "hd95"],
        "data.train": 18,
        "data.test": SYNAPSE_TEST,
        "intensity": [{"window": [-125.0, 275.0]}],
        "view": [{"slices": {"size": [224, 224], "fit": "resize", "axis": 0}}],
        "train.augment": {"preset": "transunet", "flip": True},
        "args.tversky": ONE_MINUS,
        "args.focal_tversky": [(a, b, 2.0, "sum") for a, b in ONE_MINUS],
        "args.focal": [1.5, 2.0, 2.5, 3.0],
    },
    "cityscapes": AZAD
    | {
        "losses": SIX,
        "models": ["unet", "transunet"],
        "metrics": ["miou"],
        "data.train": 2975,
        "intensity": [{"window": [0.0, 255.0]}],
        "data.test": 500,
        "view": [{"slices": {"size": [512, 512], "fit": "resize", "axis": 0}}],
        "train.augment": {"rotate": 20, "flip": True},
        "args.tversky": [(0.2, 0.8)],
        "args.focal_tversky": [(0.6, 0.4, 2.0, "sum")],
        "args.focal": [2.0],
    },
    "nfbs": {
        "losses": [
            "ce",
            "weighted_ce",
            "focal",
            "dice",
            "tversky",
            "focal_tversky",
            "sensitivity_specificity",
            "exp_log",
            "log_cosh_dice",
        ],
        "models": ["jadon_unet"],
        "metrics": ["dice", "sensitivity", "specificity"],
        "train.optimizer": "adam",
        "train.lr": 1e-3,
        "train.batch": 32,
        "train.schedule": "plateau",
        "train.epochs": 50,
        "with": None,
        "seeds": 1,
        "data.train": 75,
        "data.val": 25,
        "data.test": 25,
        "view": [{"slices": {"size": [256, 256], "fit": "pad", "axis": 0}}],
        "train.augment": {},
        "train.precision": "float32",
        "train.clip": None,
        "train.weight_decay": 0.0,
        "intensity": [{"zscore": "volume"}],
        "select": "last",
        "profile": "voxel-max",
    },
    "lits": CELAYA
    | {
        "losses": ["dice", "dice_ce", "generalized_dice", "hausdorff_one_sided", "boundary", "gsl"],
        "view": [LITS_VIEW],
        "cases": {"lits": 131},
        "mixtures": [LINEAR],
        "args.gsl": ["linear"],
        "args.dice": [True],  # eq. 3 squares the denominator
    },
    "brats": CELAYA
    | {
        "losses": ["dice", "dice_ce", "generalized_dice", "hausdorff_one_sided", "boundary", "gsl"],
        "view": [BRATS_VIEW],
        "cases": {"brats2020": 369},
        "intensity": [{"zscore": "nonzero"}],
        "mixtures": [LINEAR],
        "args.gsl": ["linear"],
        "args.dice": [True],
    },
    "gsl_schedules": CELAYA
    | {
        "losses": ["gsl"] * 5,
        "view": [LITS_VIEW, BRATS_VIEW],
        "cases": {"lits": 131, "brats2020": 369},
        "args.gsl": [
            "linear",
            {"step": {"every": 5, "from": 1, "to": 0}},
            {"step": {"every": 25, "from": 1, "to": 0}},
            {"step": {"every": 50, "from": 1, "to": 0}},
            "cosine",
        ],
    },
    "gsl_variants": CELAYA
    | {
        "losses": ["gsl"] * 10,
        "view": [LITS_VIEW, BRATS_VIEW],
        "cases": {"lits": 131, "brats2020": 369},
        "args.gsl": ["linear"] * 10,
        "variants": [  # section 4: the region loss, the power of eq. 17, weights by surface or none, the 1-norm
            {},
            {"region": "dice"},
            {"region": "generalized_dice", "region_args": {"weights": "simple"}},
            {"region": "ce"},
            {"region": "focal"},
            {"power": 0.5},
            {"power": 2.0},
            {"weights": "surface"},
            {"weights": "none"},
            {"norm": 1},
        ],
    },
    "acdc": {
        "losses": ["dice", "ce", "dice_ce", "tversky", "boundary", "boundary_dou"],
        "models": ["unet", "transunet"],
        "metrics": ["dice", "hd95", "asd"],
        "train.epochs": 150,
        "train.batch": 24,
        "train.optimizer": "sgd",
        "train.lr": 0.01,
        "train.momentum": 0.9,
        "train.weight_decay": 1e-4,
        "train.schedule": "poly",
        "train.augment": {"preset": "transunet", "flip": True},
        "train.precision": "float32",
        "train.clip": None,
        "with": None,
        "select": "best:dice@val",
        "profile": "voxel-max",
        "mixtures": [LINEAR, [0.5, 0.5]],
        "intensity": [{"percentiles": [0.5, 99.5]}],
        "seeds": 1,
        "data.train": 140,
        "data.val": [f"patient{n:03d}_{t}" for n in ACDC_VAL for t in ("ED", "ES")],
        "data.test": [f"patient{n:03d}_{t}" for n in ACDC_TEST for t in ("ED", "ES")],
        "view": [{"slices": {"size": [224, 224], "fit": "resize", "axis": 0}}],
    },
}
# TransUNet's files hold what the window leaves, scaled to [0, 1]
PROTOCOLS["synapse_npz"] = PROTOCOLS["synapse"] | {"intensity": [{"window": [0.0, 1.0]}]}
PARTS = ["dice", "sobel_boundary", "attention", "kl_shape_prior", "hausdorff_dt", "shape_alignment"]


def _suite(name: str, root: Path) -> Suite:
    return load_suite(packed("suites") / f"{name}.yaml", root=root)


def _plain(loss: dict[str, Any]) -> dict[str, Any]:
    """The loss that varies: of 0.5 L + 0.5 CE the first term, of α Dice-CE + (1 - α) L the second."""
    if "sum" not in loss:
        return loss
    names = [term["loss"]["name"] for term in loss["sum"]]
    found: dict[str, Any] = loss["sum"][0 if names[1] == "ce" else 1]["loss"]
    return found


def _set(intensity: Intensity) -> dict[str, Any]:
    return {k: v for k, v in intensity.model_dump(mode="json").items() if v is not None}


def _unique(cells: tuple[Cell, ...], what: Callable[[Cell], Any]) -> list[Any]:
    found: list[Any] = []
    for cell in cells:
        value = what(cell)
        if value not in found:
            found.append(value)
    return found


def _args(suite: Suite, name: str, keys: tuple[str, ...]) -> list[Any]:
    own = _unique(suite.cells, lambda c: c.loss)
    rows = [tuple(_plain(x)["args"].get(k) for k in keys) for x in own if _plain(x)["name"] == name]
    return [row[0] if len(keys) == 1 else row for row in rows]


ARGS = {
    "tversky": ("fn_weight", "fp_weight"),
    "focal_tversky": ("fn_weight", "fp_weight", "gamma", "classes"),
    "focal": ("gamma",),
    "gsl": ("alpha",),
    "dice": ("squared",),
}


def _resolved(suite: Suite, key: str, like: Any) -> Any:
    """What a suite resolves to, in the words of the table."""
    cells, spec = suite.cells, suite.spec
    train, first = cells[0].train, cells[0].data
    optimizer, rates = next(iter(train["optimizer"].items()))
    if key.startswith("args."):
        found = _args(suite, key[5:], ARGS[key[5:]])
        return ["linear" if v is None and key == "args.gsl" else v for v in found]
    if key in ("data.train", "data.val", "data.test"):
        cases = first[key[5:]]
        return len(cases) if isinstance(like, int) else sorted(cases)
    if key == "train.augment":
        return {k: v for k, v in train["augment"].items() if v}
    simple: dict[str, Callable[[], Any]] = {
        "losses": lambda: [_plain(x)["name"] for x in _unique(cells, lambda c: c.loss)],
        "models": lambda: _unique(cells, lambda c: c.model["name"]),
        "metrics": lambda: list(spec.metrics),
        "with": lambda: spec.with_,
        "seeds": lambda: spec.seeds,
        "folds": lambda: len(_unique(cells, lambda c: c.data["fold"])),
        "view": lambda: _unique(cells, lambda c: c.data["view"]),
        "cases": lambda: {m.name: len(m.cases) for m in suite.manifests.values()},
        "mixtures": lambda: _unique(
            tuple(c for c in cells if "sum" in c.loss), lambda c: [t["weight"] for t in c.loss["sum"]]
        ),
        "select": lambda: spec.select,
        "profile": lambda: spec.profile,
        "intensity": lambda: [_set(m.spec.intensity) for m in suite.manifests.values()],
        "variants": lambda: [x["args"] for x in _unique(cells, lambda c: c.loss)],
        "train.optimizer": lambda: optimizer,
        "train.lr": lambda: rates["lr"],
        "train.momentum": lambda: rates["momentum"],
        "train.weight_decay": lambda: rates.get("weight_decay", 0.0),
    }
    return simple[key]() if key in simple else train[key.removeprefix("train.")]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_suite_is_its_papers_protocol_or_says_where_not(name: str, found_data: Path) -> None:
    suite = _suite(name, found_data)
    assert suite.spec.protocol is not None
    departures = suite.spec.protocol.departures
    differs = set()
    for key, stated in PROTOCOLS[name].items():
        wanted = sorted(stated) if key in ("data.test", "data.val") and isinstance(stated, list) else stated
        found = _resolved(suite, key, stated)
        if found != wanted:
            differs.add(key)
            assert key in departures, f"{name}: {key} is {found}, the protocol has {wanted}, and no departure says so"
    stale = set(departures) & set(PROTOCOLS[name]) - differs
    assert not stale, f"{name}: departures that are none: {stale}"


@pytest.mark.parametrize("name", sorted({*PROTOCOLS, "shape_prior", "combos"}))
def test_departures_have_reasons_and_stand_on_the_page(name: str, found_data: Path) -> None:
    protocol = _suite(name, found_data).spec.protocol
    assert protocol is not None and protocol.source
    said = [*protocol.departures.values(), *protocol.unstated.values(), *protocol.readings]
    assert said and all(len(text) > 4 and text.endswith(".") for text in said)
    page = " ".join(protocol.sentences())
    assert all(text in page for text in said)


def test_every_combination_of_the_six_parts(found_data: Path) -> None:
    cells = _suite("shape_prior", found_data).cells
    sets = {
        frozenset(t["loss"]["name"] for t in c.loss["sum"]) if "sum" in c.loss else frozenset([c.loss["name"]])
        for c in cells
    }
    assert len(sets) == 63 and set().union(*sets) == set(PARTS) and not any(c.skip for c in cells)


def test_every_pair_of_two_kinds_of_loss(found_data: Path) -> None:
    labels = _unique(_suite("combos", found_data).cells, lambda c: c.loss_label)
    assert len(labels) == 1 + 3 * 9 and len(set(labels)) == 28


def test_cityscapes_evaluates_its_19_classes() -> None:
    manifest = load_manifest("cityscapes", packed("suites"))
    assert sorted(manifest.spec.labels.values()) == EVALUATED and manifest.spec.ignore is not None


def test_brats_merges_its_labels() -> None:
    manifest = load_manifest("brats2020", packed("suites"))
    values = manifest.spec.labels
    merged = [sorted(values[n] for n in names) for names in (manifest.spec.regions or {}).values()]
    assert merged == [[1, 2, 4], [1, 4], [4]] and len(manifest.spec.modalities) == 4


def test_folds_hold_every_patient_once(found_data: Path) -> None:
    for name, count in (("lits", 131), ("brats", 369)):
        tests = [c.data["test"] for c in _suite(name, found_data).cells if c.loss_label == "dice_ce"]
        assert len(tests) == 5 and len({case for part in tests for case in part}) == sum(map(len, tests)) == count
