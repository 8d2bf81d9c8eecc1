"""The axes `labels` and `train.cases`: cells, ids, seeds and names, and a short run from suite to report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from harness.cell import Cell, Place
from harness.cell_cases import Cases
from harness.data.conditions import CLEAN
from harness.data.manifest import load_manifest
from harness.errors import BenchError
from harness.losses.facts import label_facts
from harness.order import Queue
from harness.plan import make_plan
from harness.records import read_record
from harness.results import report_suite, settings_in
from harness.seeds import seed_of
from harness.sharing.contents import cell_of
from harness.suite import Suite, load_suite
from harness.worker import run_cell

LABELS = "labels: [clean, {jitter: {sigma: [1, 2]}}, {missing: {share: 0.5}}]\n"
TWO_EACH = 'patient: "c([0-9])[ab]"\n'


def settings(cells: tuple[Cell, ...]) -> list[str]:
    return list(dict.fromkeys(c.dataset for c in cells))


def of(suite: Suite, dataset: str, loss: str = "dice", seed: int = 0) -> Cell:
    (cell,) = [c for c in suite.cells if (c.dataset, c.loss_label, c.seed) == (dataset, loss, seed)]
    return cell


@pytest.fixture
def plain(toy) -> Path:
    return toy.suite()


@pytest.fixture
def noisy(toy) -> Path:
    path = toy.suite("seeds: 1", "seeds: 2", name="noisy")
    path.write_text(path.read_text() + LABELS)
    return path


# --- cells --------------------------------------------------------------------------------------------------------


def test_each_condition_is_a_data_set_of_its_own(plain, noisy):
    suite = load_suite(noisy)
    assert settings(suite.cells) == ["toy", "toy [jitter sigma=1]", "toy [jitter sigma=2]", "toy [missing share=0.5]"]
    assert len(suite.cells) == 4 * 2 * 2
    jittered = of(suite, "toy [jitter sigma=2]")
    assert jittered.data["labels"] == {"jitter": {"sigma": 2.0, "smooth": 6.0, "unit": "voxel"}, "version": 1}
    assert of(suite, "toy").data == load_suite(plain).cells[0].data and of(suite, "toy").data["labels"] == CLEAN
    found = settings_in(suite, suite.cells)
    assert [(s.base, s.kind, s.strength) for s in found.values()] == [
        ("toy", "clean", 0.0), ("toy", "jitter", 1.0), ("toy", "jitter", 2.0), ("toy", "missing", 0.5),
    ]  # fmt: skip
    assert settings_in(load_suite(plain), load_suite(plain).cells) == {}


def test_clean_cells_are_those_of_a_suite_without_the_axis(plain, noisy):
    with_axis = {c.eval_id for c in load_suite(noisy).cells if c.dataset == "toy" and c.seed == 0}
    assert {c.eval_id for c in load_suite(plain).cells} == with_axis
    ids = [c.train_id for c in load_suite(noisy).cells]
    assert len(set(ids)) == len(ids)


def test_settings_are_paired(toy, noisy):
    """The same start and the same batches: no seed knows what was done to the labels or how many patients there are."""
    cells = [c for c in load_suite(noisy).cells if c.seed == 1]
    assert len({json.dumps(c.seed_base, sort_keys=True) for c in cells}) == 1
    assert cells[0].seed_base["data"] == "toy"
    few = toy.suite("augment:", "cases: [1, 2, all], augment:", name="few")
    assert {json.dumps(c.seed_base) for c in load_suite(few).cells} == {
        json.dumps(load_suite(noisy).cells[0].seed_base)
    }
    assert seed_of("init", cells[0].seed_base) == seed_of("init", cells[-1].seed_base)


def test_few_patients_are_nested_and_drawn_by_the_repeat(toy):
    manifest = toy.folder / "toy.yaml"
    names = [f"c{i}{x}" for i in range(10) for x in "ab"]
    text = manifest.read_text().replace("[c0, c1, c2, c3, c4, c5]", str(names)).replace("c4, c5", "c9a, c9b")
    manifest.write_text(text + TWO_EACH)
    path = toy.suite("augment:", "cases: [2, 5, all], augment:")
    path.write_text(path.read_text().replace("seeds: 1", "seeds: 12"))
    suite = load_suite(path)
    assert settings(suite.cells) == ["toy [2 patients]", "toy [5 patients]", "toy"]
    chosen = {}
    for seed in range(12):
        two, five, whole = (of(suite, d, seed=seed).data for d in ("toy [2 patients]", "toy [5 patients]", "toy"))
        assert (two["patients"], five["patients"], "patients" in whole) == (2, 5, False)
        assert len(two["train"]) == 4 and len(five["train"]) == 10 and len(whole["train"]) == 18  # both of a patient
        assert set(two["train"]) < set(five["train"]) < set(whole["train"])
        assert five["train"] == [c for c in whole["train"] if c in five["train"]]  # in the manifest's order
        chosen[tuple(two["train"])] = seed
    assert len(chosen) > 6
    assert {s.trained for s in settings_in(suite, suite.cells).values()} == {2, 5, 9}
    # every loss of a repeat has the same patients, and all patients are the cell of a suite without the axis
    assert of(suite, "toy [2 patients]", "ce", 3).data == of(suite, "toy [2 patients]", "dice", 3).data
    usual = toy.suite(name="usual")
    assert of(suite, "toy").eval_id == load_suite(usual).cells[0].eval_id


def test_one_number_takes_the_first_cases_as_before(toy):
    suite = load_suite(toy.suite("augment:", "cases: 2, augment:"))
    assert settings(suite.cells) == ["toy"] and suite.cells[0].data["train"] == ["c0", "c1"]
    assert suite.cells[0].train["cases"] == 2 and "patients" not in suite.cells[0].data


def test_both_axes_together_and_in_a_quick_run(toy):
    path = toy.suite("augment:", "cases: [2, all], augment:")
    path.write_text(
        path.read_text() + "labels: [clean, {swapped: {share: 1}}]\nquick: {epochs: 1, cases: 2, size: 32}\n"
    )
    assert settings(load_suite(path).cells) == [
        "toy [2 patients]", "toy [2 patients, swapped share=1]", "toy", "toy [swapped share=1]",
    ]  # fmt: skip
    manifest = toy.folder / "toy.yaml"
    manifest.write_text(manifest.read_text() + "phantom: {scene: hippocampus, shape: [6, 32, 32]}\n")
    quick = load_suite(path, quick=True)  # two patients are all that a quick run has
    assert settings(quick.cells) == ["toy", "toy [swapped share=1]"]


def test_a_record_gives_the_cell_back(noisy):
    for cell in load_suite(noisy).cells:
        again = cell_of(json.loads(json.dumps(cell.described())))
        assert (again.train_id, again.eval_id, again.labels) == (cell.train_id, cell.eval_id, cell.labels)
        assert again.seed_base == cell.seed_base


def test_only_takes_the_whole_name_or_a_glob(noisy, tmp_path):
    suite = load_suite(noisy)

    def chosen(text: str) -> list[str]:
        return settings(tuple(e.cell for e in make_plan(suite, tmp_path, tmp_path, [f"dataset={text}"])))

    assert chosen("toy") == ["toy"]
    assert chosen("toy [jitter sigma=2]") == ["toy [jitter sigma=2]"]
    assert chosen("toy*") == settings(suite.cells)


def test_cells_of_one_training_set_follow_each_other(noisy):
    order = Queue([], lambda cell: 1.0)
    cells = load_suite(noisy).cells
    groups = {order.group(c) for c in cells}
    assert len(groups) == 1 + 3 * 2  # clean labels serve both repeats, degraded ones one each


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("labels: noisy\n", "labels: expected clean, a condition such as {jitter: {sigma: 2}}"),
        ("labels: []\n", "labels: the list is empty"),
        ("labels: [clean, clean]\n", "'clean' stands in it a second time"),
        ("labels: [{jitter: {sigma: [2, 2]}}]\n", "'jitter sigma=2' stands in it a second time"),
        ("labels: [{jiter: {sigma: 2}}]\n", "jiter: unknown key (did you mean 'jitter'?)"),
        ("labels: [{jitter: {sigam: 2}}]\n", "sigam: unknown key (did you mean 'sigma'?)"),
        ("labels: {jitter: {sigma: 0}}\n", "expected a number above 0 or a list, found 0."),
        ("labels: {missing: {share: 1.5}}\n", "expected a number up to 1 or a list, found 1.5."),
        ("labels: {erode: {radius: 1}, dilate: {radius: 1}}\n", "expected exactly one of jitter, erode"),
        ("labels: [clean, {partial: {share: 0.5, classes: 2}}]\n", "labels[1]: 2 annotated classes leave nothing out"),
    ],
)
def test_mistakes_are_a_sentence(toy, extra, words):
    path = toy.suite()
    path.write_text(path.read_text() + extra)
    with pytest.raises(BenchError) as caught:
        load_suite(path)
    assert words in str(caught.value) and str(caught.value).startswith(f"{path}:"), caught.value


def test_what_a_data_set_cannot_have_is_a_sentence(toy):
    manifest = toy.folder / "toy.yaml"
    text = manifest.read_text()
    for change, labels, words in (
        ("spacing: unknown\n", "{erode: {radius: 1, unit: mm}}", "the spacing of toy is unknown"),
        ("dimensions: 2\nbackground: false\n", "{missing: {share: 0.5}}", "and toy has none"),
        ("dimensions: 2\nbackground: false\n", "{dilate: {radius: 1}}", "and toy has none"),
    ):
        manifest.write_text(text + change)
        path = toy.suite()
        path.write_text(path.read_text() + f"labels: {labels}\n")
        with pytest.raises(BenchError, match=words):
            load_suite(path)
    manifest.write_text(text.replace("disc: 1, ring: 2", "disc: 1") + "drop: [2]\n")
    path.write_text(path.read_text().replace("dilate: {radius: 1}", "swapped: {share: 0.5}"))
    with pytest.raises(BenchError, match="needs two classes or more"):
        load_suite(path)


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ("[4, all]", "train.cases[0]: 4 of 4 training patients of toy; expected fewer, or all"),
        ("[2, 2]", "the number of training patients 2 stands here a second time"),
        ("[]", "give at least one number of training patients"),
    ],
)
def test_impossible_numbers_of_patients_are_a_sentence(toy, cases, words):
    path = toy.suite("augment:", f"cases: {cases}, augment:")
    with pytest.raises(BenchError) as caught:
        load_suite(path)
    assert words in str(caught.value), caught.value


# --- runs ---------------------------------------------------------------------------------------------------------

WEIGHED = """\
import torch
from torch import nn
from torch.nn import functional as F


class Weighed(nn.Module):
    '''Cross-entropy weighed by how far each voxel's label is trusted; it says what it saw.'''

    def forward(self, logits, target, *, label_weight):
        assert label_weight.shape == target.shape and bool(((label_weight >= 0) & (label_weight <= 1)).all())
        each = F.cross_entropy(logits, target, reduction="none", ignore_index=255)
        return {"loss": (each * label_weight).mean(), "least": label_weight.min()}
"""


@pytest.fixture
def run(toy, monkeypatch):
    """Run the cells of a suite in this process."""
    monkeypatch.setattr("harness.worker.certificates_of", lambda *_: {})  # seconds, and another test's matter
    place = Place(toy.folder / "runs", toy.folder / "data")
    cases = Cases(place)

    def run(cell: Cell):
        record = run_cell(cell, place, cases)
        assert record.status == "ok", record.message
        return record

    return run


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob(pattern))}


def test_a_run_degrades_the_training_labels_and_nothing_else(toy, run):
    (toy.folder / "weighed.py").write_text(WEIGHED)
    path = toy.suite("losses: [dice, ce]", "losses: [dice, weighed.py:Weighed]")
    text = path.read_text().replace("epochs: 2", "epochs: 1").replace("[dice, hd95, asd]", "[dice]")
    path.write_text(text + "labels: [clean, {jitter: {sigma: 2}}, {partial: {share: 1}}]\n")
    suite = load_suite(path)
    clean = run(of(suite, "toy"))
    files = digests(toy.folder / "runs" / "cache" / "toy", "*.npz")
    raw = digests(toy.folder / "data", "*.nii.gz")
    records = {c.dataset + "/" + c.loss_label: run(c) for c in suite.cells}
    after = digests(toy.folder / "runs" / "cache" / "toy", "*.npz")
    # cases of every part, with their references, stay what they were byte by byte; labels are files beside them
    assert {n: d for n, d in after.items() if n in files} == files and digests(toy.folder / "data", "*.nii.gz") == raw
    assert {n.partition("-")[0] for n in after if n not in files} == {"labels", "doubt"}
    assert len([n for n in after if n.startswith("labels-")]) == 2 * 4  # of the four training cases, for both losses
    assert len([n for n in after if n.startswith("doubt-")]) == 4  # for the loss that asks, where labels are in doubt
    prints = {name: r.fingerprints for name, r in records.items()}
    assert len({p["test_data"] for p in prints.values()}) == 1
    assert len({p["init"] for p in prints.values()}) == 1
    assert len({p["train_data"] for p in prints.values()}) == 3
    assert prints["toy [jitter sigma=2]/dice"]["train_data"] == prints["toy [jitter sigma=2]/Weighed"]["train_data"]
    told = json.loads(prints["toy [partial share=1]/dice"]["labels"])
    assert told["cases"] == told["cases_changed"] == 4 and "labels" not in clean.fingerprints
    least = {}
    for cell in suite.cells:
        if cell.loss_label == "Weighed":
            curve = (cell.folder(toy.folder / "runs") / "curve.csv").read_text().splitlines()
            least[cell.dataset] = float(dict(zip(curve[0].split(","), curve[1].split(","), strict=True))["least"])
    assert least["toy"] == least["toy [partial share=1]"] == 1.0 and least["toy [jitter sigma=2]"] < 0.7
    _check_report(toy, suite)


def _check_report(toy, suite: Suite) -> None:
    place = Place(toy.folder / "runs", toy.folder / "data")
    entries = make_plan(suite, place.out, toy.folder / "reports")
    page, _ = report_suite(suite, entries, place, toy.folder / "reports")
    text = page.read_text()
    assert 'id="robustness"' in text and "boundaries jittered" in text and "NOT COMPARABLE" not in text
    assert "3 settings" in text
    rows = (toy.folder / "reports" / "toy" / "cases.csv").read_text()
    assert "toy [jitter sigma=2]" in rows
    for entry in entries:
        assert (
            entry.folder is not None and read_record(entry.folder / "record.json").cell["dataset"] == entry.cell.dataset
        )


def test_repeats_are_drawn_apart_and_again_the_same(toy, noisy, run):
    suite = load_suite(noisy)
    place = Place(toy.folder / "runs", toy.folder / "data")
    manifest = load_manifest("toy.yaml", toy.folder, place.root)
    cases = Cases(place)
    first, second = (of(suite, "toy [jitter sigma=2]", seed=s) for s in (0, 1))
    data, labels, facts = cases.train_set(first, manifest)
    one = cases.fingerprint
    assert facts == label_facts((label.numpy() for label in labels), 3)  # of the degraded labels
    assert cases.train_set(of(suite, "toy [jitter sigma=2]", "ce"), manifest)[0] is data  # for every loss
    assert cases.train_set(second, manifest)[0] is not data
    assert cases.fingerprint != one
    cases.train_set(of(suite, "toy"), manifest)
    clean = cases.fingerprint
    assert clean not in (one, second)
    fresh = Cases(place)
    images = []
    for cell in (first, of(suite, "toy")):
        found = fresh.train_set(cell, manifest)[0]
        images.append(found.batch(0, 4, cell.seed_base).image)
        assert fresh.fingerprint == (one if cell is first else clean)
    assert bool((images[0] == images[1]).all())  # the same batches of the same images
