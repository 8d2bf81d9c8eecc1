"""The metric family `loss:NAME`: names, ids, refusals, and values against torch and by hand."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.cell import Cell, Place
from harness.data.manifest import load_manifest
from harness.data.prepare import Prepared
from harness.errors import BenchError
from harness.evaluation import score_case
from harness.loss_scores import LossScores, loss_scores
from harness.losses import LOSSES
from harness.losses.build import build_loss
from harness.metrics import evaluate
from harness.metrics.table import canonical, metric_of
from harness.models.build import build_model
from harness.models.output import Output
from harness.plan import make_plan
from harness.predict import predict_case
from harness.records import CASE_COLUMNS
from harness.suite import Suite, load_suite
from harness.suite_losses import refusal
from harness.worker import Cases, run_cell

BASE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 4}]
losses: [dice, focal: {gamma: {sweep: [1, 3]}}, gsl]
train: {epochs: 1, batch: 2, optimizer: {sgd: {lr: 1e-2}}}
metrics: METRICS
"""
FACTS = {"num_classes": 3, "spatial_dims": 2, "ignore_index": 255, "has_ignored": True}


def suite(folder: Path, metrics: str, text: str = BASE) -> Suite:
    path = folder / "toy.yaml"
    path.write_text(text.replace("METRICS", metrics), encoding="utf-8")
    return load_suite(path)


def test_a_member_of_the_family_is_a_metric() -> None:
    metric, parameter = metric_of("loss:focal(gamma=2)")
    assert (metric.name, metric.scope, metric.higher_is_better, parameter) == (
        "loss:focal(gamma=2)", "network", False, None,
    )  # fmt: skip
    assert canonical("loss: dice ") == "loss:dice"
    with pytest.raises(BenchError, match="needs the name of a loss"):
        metric_of("loss:")


def test_masks_alone_are_not_enough_for_it() -> None:
    mask = np.ones((2, 4, 4), np.uint8)
    with pytest.raises(BenchError, match="'loss:dice' takes the logits of a network, which only `bench run` has"):
        evaluate(mask, mask, None, {"a": 1}, metrics=["dice", "loss:dice"])
    case = Prepared("c", np.zeros(0, np.float32), mask, mask, (1.0, 1.0), None, (), ())
    rows = score_case(mask, case, {"a": 1}, ["dice", "loss:dice"], {})
    assert {r["metric"] for r in rows} == {"dice", "tp", "fp", "fn", "tn"}


def test_the_star_is_every_loss_of_the_suite_that_can(tmp_path: Path) -> None:
    cell = suite(tmp_path, '[dice, "loss:*"]').cells[0]
    names = ["loss:dice", "loss:focal(gamma=1)", "loss:focal(gamma=3)"]  # gsl follows its own training
    assert [*cell.metrics] == ["dice", *names] and [*cell.scored_by] == names
    assert cell.scored_by["loss:focal(gamma=3)"]["loss"]["args"] == {"gamma": 3.0}


def test_a_loss_scores_without_what_with_adds(tmp_path: Path) -> None:
    text = BASE.replace("train:", "with: {varied: 0.5, ce: 0.5}\ntrain:")
    cell = suite(tmp_path, '[dice, "loss:dice"]', text).cells[0]
    assert "sum" in cell.loss and cell.scored_by["loss:dice"]["loss"]["name"] == "dice"


def test_a_loss_that_is_not_in_the_suite_scores_with_its_defaults(tmp_path: Path) -> None:
    cell = suite(tmp_path, '[dice, "loss:focal", "loss:torch.nn.CrossEntropyLoss"]').cells[0]
    assert [one["loss"]["args"] for one in cell.scored_by.values()] == [{}, {}]


def test_ids_hold_the_loss_and_change_no_training(tmp_path: Path) -> None:
    bare, one, other = (suite(tmp_path, m).cells[0] for m in ("[dice]", '[dice, "loss:focal"]', '[dice, "loss:ce"]'))
    assert bare.train_id == one.train_id == other.train_id
    assert len({bare.eval_id, one.eval_id, other.eval_id}) == 3
    again = suite(tmp_path, '[dice, "loss:focal"]').cells[0]
    assert again.eval_id == one.eval_id
    again.scored_by["loss:focal"]["loss"]["version"] += 1
    newer = suite(tmp_path, '[dice, "loss:focal"]').cells[0]
    newer.scored_by["loss:focal"]["loss"]["version"] += 1
    assert newer.eval_id != one.eval_id
    assert "scored_by" not in bare.described() and bare.sources.keys() == {"loss", "model"}
    assert one.sources["loss:focal"] and one.described()["scored_by"]["loss:focal"]["name"] == "focal"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('[dice, "loss:gsl"]', "gsl cannot score a network: it follows the progress of its own training"),
        ('[dice, "loss:t_loss"]', "t_loss cannot score a network: it learns a parameter"),
        ('[dice, "loss:non_adjacency"]', "non_adjacency cannot score a network: it changes from epoch to epoch"),
        ('[dice, "loss:pixel_triplet"]', "pixel_triplet cannot score a network: it reads 'embedding'"),
        ('[dice, "loss:inverse_form"]', "inverse_form cannot score a network: it reads 'boundary_logits'"),
        ('[dice, "loss:dcie"]', "neither a loss of the suite nor one of `bench list losses` (did you mean 'dice'?)"),
        ('[dice, "loss:dice", "loss:*", "loss:dice"]', "'loss:dice' stands here a second time"),
        ('[dice, "loss:dice"]\nrank: {by: ["loss:dice"]}', "favours the loss itself"),
        ('[dice, "loss:dice"]\nselect: best:loss:dice@val', "expected last or best:METRIC@val"),
    ],
)
def test_what_cannot_be_is_one_sentence_with_its_line(tmp_path: Path, metrics: str, message: str) -> None:
    with pytest.raises(BenchError) as error:
        suite(tmp_path, metrics)
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path / "toy.yaml:"))


def test_a_star_that_stands_for_nothing_says_why(tmp_path: Path) -> None:
    text = BASE.replace("[dice, focal: {gamma: {sweep: [1, 3]}}, gsl]", "[gsl]")
    with pytest.raises(BenchError, match="no loss of the suite can score a network; gsl: it follows"):
        suite(tmp_path, '[dice, "loss:*"]', text)


def test_a_scheduled_sum_is_refused_and_a_constant_one_is_not() -> None:
    dice = {"name": "dice", "class": "harness.losses.dice:Dice", "args": {}, "version": 1}
    gsl = {"name": "gsl", "class": "harness.losses.surface:GSL", "args": {}, "version": 1}
    assert refusal({"sum": [{"loss": dice, "weight": 1.0}, {"loss": dice, "weight": 0.5}]}) is None
    assert "weights follow" in str(refusal({"sum": [{"loss": dice, "weight": {"linear": [1, 0]}}]}))
    assert "of its part gsl: it follows" in str(refusal({"sum": [{"loss": gsl, "weight": 1.0}]}))


def _case(seed: int = 0) -> tuple[torch.Tensor, Prepared]:
    """Four slices of three classes, a corner ignored, anisotropic."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (4, 8, 10)).astype(np.uint8)
    label[1, :2, :3] = 255
    logits = torch.from_numpy(rng.normal(0, 2, (4, 3, 8, 10)).astype(np.float32))
    return logits, Prepared("c", np.zeros(0, np.float32), label, label, (0.5, 2.0), None, (), ())


def _scores(**specs: str) -> LossScores:
    made = {
        f"loss:{name}": build_loss({"name": name, "class": target, "args": {}}, FACTS) for name, target in specs.items()
    }
    return LossScores(made, 3)


def test_cross_entropy_is_the_mean_over_the_valid_voxels_of_all_slices() -> None:
    logits, case = _case()
    scores = _scores(ce="harness.losses.pixel:CrossEntropy", torch="torch.nn:CrossEntropyLoss")
    about = {"patient": "p", "case": "c"} | dict.fromkeys(("dataset", "split", "fold", "model", "loss", "seed"), "x")
    rows = scores.rows(logits, case, about)
    expected = F.cross_entropy(logits, torch.from_numpy(case.label).long(), ignore_index=255).item()
    assert [r["value"] for r in rows] == pytest.approx([expected, expected], rel=1e-6)
    assert [r["metric"] for r in rows] == ["loss:ce", "loss:torch"]
    for row in rows:
        assert set(row) == set(CASE_COLUMNS)
        assert (row["class"], row["unit"], row["profile"], row["status"], row["worst"]) == ("all", "", "", "ok", None)


def test_a_volume_is_a_batch_of_one_and_maps_know_its_spacing() -> None:
    """A boundary loss by hand: the mean of softmax times the signed distance in the unit of the grid's spacing."""
    label = np.zeros((3, 4, 6), np.uint8)
    label[:, :, 2:4] = 1
    case = Prepared("c", np.zeros(0, np.float32), label, label, (1.0, 1.0, 2.5), None, (), ())
    logits = torch.zeros(1, 2, 3, 4, 6)
    seen: dict[str, Any] = {}

    class Spy(torch.nn.Module):
        def forward(self, logits: Any, target: Any, *, distance_out: Any, spacing: Any) -> torch.Tensor:
            seen.update(target=target, distance_out=distance_out, spacing=spacing)
            return (torch.softmax(logits, 1) * distance_out).mean()

    (row,) = LossScores({"loss:spy": Spy()}, 2).rows(logits, case, {})
    assert seen["target"].shape == (1, 3, 4, 6) and seen["spacing"].tolist() == [[1.0, 1.0, 2.5]]
    # outside class 1 along x: 5, 2.5, 0, 0, 2.5, 5; outside class 0 (the rest): 2.5 at its two columns; probability 1/2
    assert row["value"] == pytest.approx(0.5 * (15 + 5) / 12)


def test_slices_are_one_batch_for_losses_that_pool_it() -> None:
    logits, case = _case(1)
    (row,) = _scores(dice="harness.losses.dice:Dice").rows(logits, case, {})
    target = torch.from_numpy(case.label).long()
    valid = (target != 255)[:, None]
    onehot = torch.stack([target == c for c in range(3)], 1) & valid
    soft = torch.softmax(logits.double(), 1) * valid
    overlap = 2 * (soft * onehot).sum((0, 2, 3)) / (soft + onehot).sum((0, 2, 3))
    assert row["value"] == pytest.approx(1 - overlap.mean().item(), rel=1e-5)


def test_a_value_that_is_no_number_names_loss_and_case() -> None:
    class Broken(torch.nn.Module):
        def forward(self, logits: Any, target: Any) -> torch.Tensor:
            return logits.sum() * math.nan

    logits, case = _case()
    with pytest.raises(BenchError, match="loss:broken is nan on case c; leave it out of `metrics`"):
        LossScores({"loss:broken": Broken()}, 3).rows(logits, case, {})


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        ({"slices": {"size": [8, 10], "fit": "pad", "axis": 0}}, (4, 8, 10)),
        ({"patches": {"size": [2, 8, 8], "foreground": 0.33}}, (4, 8, 10)),
    ],
)
def test_the_scored_logits_are_those_of_the_mask(view: dict[str, Any], shape: tuple[int, ...]) -> None:
    flat = "slices" in view
    head = (torch.nn.Conv2d if flat else torch.nn.Conv3d)(1, 3, 1)

    class Net(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> Output:
            return Output(head(image))

    image = np.random.default_rng(0).normal(size=(4, 1, 8, 10) if flat else (1, 4, 8, 10)).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    case = Prepared("c", image, label, label, (1.0,) * (2 if flat else 3), None, (), ())
    kept: list[torch.Tensor] = []
    about: dict[str, Any] = {"batch": 3, "device": torch.device("cpu"), "precision": "float32"}
    mask = predict_case(Net().eval(), case, view, **about, keep_logits=kept.append)
    (logits,) = kept
    assert logits.shape == ((4, 3, 8, 10) if flat else (1, 3, 4, 8, 10))
    assert np.array_equal(logits.argmax(1).numpy().reshape(shape), mask)
    assert np.array_equal(predict_case(Net().eval(), case, view, **about), mask)
    with torch.no_grad():
        whole = head(torch.from_numpy(image) if flat else torch.from_numpy(image)[None])
    assert torch.allclose(logits, whole, atol=1e-5)


def _cell(folder: Path, metrics: str, losses: str = "[dice]") -> Any:
    text = BASE.replace("[dice, focal: {gamma: {sweep: [1, 3]}}, gsl]", losses)
    return suite(folder, metrics, text).cells[0]


def test_counts_of_the_labels_are_asked_for_only_where_a_loss_takes_them(tmp_path: Path) -> None:
    asked: list[int] = []

    def counted() -> dict[str, Any]:
        asked.append(1)
        return {"class_counts": [90, 9, 1], "class_surface": [9, 5, 1], "adjacency": np.ones((3, 3)).tolist()}

    device = torch.device("cpu")
    assert loss_scores(_cell(tmp_path, "[dice]"), FACTS, counted, device) is None
    loss_scores(_cell(tmp_path, '[dice, "loss:dice"]'), FACTS, counted, device)
    assert not asked
    scores = loss_scores(_cell(tmp_path, '[dice, "loss:weighted_ce"]'), FACTS, counted, device)
    assert len(asked) == 1 and scores is not None
    logits, case = _case()
    plain = _scores(ce="harness.losses.pixel:CrossEntropy").rows(logits, case, {})[0]["value"]
    assert scores.rows(logits, case, {})[0]["value"] != pytest.approx(plain, rel=0.05)


REFUSED = {  # of the built-in losses; typed from what they are, not from their source
    "t_loss", "conditional_boundary", "pixel_triplet", "distance_head", "inverse_form", "gsl", "non_adjacency",
    "attention", "kl_shape_prior", "shape_alignment",
}  # fmt: skip


def test_every_built_in_loss_scores_or_is_refused() -> None:
    logits, case = _case()
    counts = {"class_counts": [90, 9, 1], "class_surface": [9, 5, 1], "adjacency": np.ones((3, 3)).tolist()}
    facts, refused = FACTS | counts, set()
    for name, target in LOSSES.items():
        spec = {"name": name, "class": target, "args": {}, "version": 1}
        if refusal(spec):
            refused.add(name)
            continue
        with torch.inference_mode():  # as in the evaluation of a cell
            (row,) = LossScores({name: build_loss(spec, facts)}, 3).rows(logits, case, {})
        assert math.isfinite(row["value"]), name
    assert refused == REFUSED


def test_what_fails_on_an_image_fails_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Flat(torch.nn.Module):\n    def forward(self, logits, target):\n"
        "        return torch.nn.functional.conv1d(logits, logits)\n"
        "class Late(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.add_module('inner', torch.nn.Linear(2, 2))\n    def forward(self, logits, target):\n"
        "        return logits.mean()\n"
    )
    device = torch.device("cpu")
    with pytest.raises(BenchError, match=r"loss:mine.py:Flat cannot score a network here: .*conv1d"):
        loss_scores(_cell(tmp_path, '[dice, "loss:mine.py:Flat"]'), FACTS, dict, device)
    with pytest.raises(BenchError, match=r"loss:mine.py:Late cannot score a network: it learns a parameter"):
        loss_scores(_cell(tmp_path, '[dice, "loss:mine.py:Late"]'), FACTS, dict, device)


def test_a_cell_writes_the_values_of_its_network(toy: Any) -> None:
    """Rows of each case, equal to what its weights give here; another metric trains nothing again."""
    path = toy.suite("metrics: [dice, hd95, asd]", 'metrics: [dice, "loss:*"]')
    place = Place(toy.folder / "runs", toy.folder / "data")
    place.out.mkdir()
    cell = load_suite(path).cells[0]
    record = run_cell(cell, place)
    assert record.status == "ok", record.message
    assert {*record.sources} == {"loss", "model", "loss:dice", "loss:ce"}
    assert [e.state for e in make_plan(load_suite(path), place.out, toy.folder)] == ["ok", "missing"]
    with (cell.eval_folder(place.out) / "cases.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["metric"].startswith("loss:")]
    assert [(r["case"], r["metric"]) for r in rows] == [(c, m) for c in ("c4", "c5") for m in ("loss:dice", "loss:ce")]
    assert all(r["value"] and r["class"] == "all" and r["worst"] == "" for r in rows)
    expected = _recomputed(cell, place)
    assert [float(r["value"]) for r in rows if r["metric"] == "loss:ce"] == pytest.approx(expected, rel=1e-5)
    weights = cell.folder(place.out) / "weights.pt"
    before = weights.stat().st_mtime_ns
    path.write_text(path.read_text().replace('"loss:*"', '"loss:jaccard"'))
    other = load_suite(path).cells[0]
    again = run_cell(other, place)
    assert (again.status, {*again.sources}) == ("ok", {"loss", "model", "loss:jaccard"})
    assert again.train_id == record.train_id and again.eval_id != record.eval_id
    assert weights.stat().st_mtime_ns == before
    other.scored_by["loss:jaccard"]["digest"] = "0"
    assert "edited after the run was planned" in run_cell(other, place, fresh=True).message


def _recomputed(cell: Cell, place: Place) -> list[float]:
    """Cross entropy of the trained network on the test cases, by torch."""
    manifest = load_manifest(cell.manifest_path, Path(cell.manifest_path).parent)
    model = build_model(
        cell.model_source.target, cell.model["args"], in_channels=1, num_classes=3, spatial_dims=2, size=[32, 32]
    )
    model.load_state_dict(torch.load(cell.folder(place.out) / "weights.pt", weights_only=True))
    model.eval()
    out = []
    for case in Cases(place).load(cell, manifest, cell.data["test"]):
        with torch.no_grad():
            logits = model(torch.from_numpy(np.array(case.image))).logits
        out.append(F.cross_entropy(logits, torch.from_numpy(np.array(case.label)).long()).item())
    return out
