"""From a suite to its page with what is not usual: images, regions, profiles, another engine, tolerances, pooled IoU."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from harness.metrics.policy import pooled_iou

MANIFEST = """\
name: spots
title: Spots
licence: none
attribution: nobody
obtain: It is made by the tests.
layout: {files: {image: "spots/img/{case}.png", label: "spots/lab/{case}.png"}}
modalities: [R, G, B]
labels: {core: 1, rim: 2, scar: 3}
regions: {whole: [core, rim], core: [core]}
dimensions: 2
spacing: unknown
intensity: {zscore: volume}
cases: [c0, c1, c2, c3, c4, c5]
splits: {s: {val: [c3], test: [c4, c5]}}
"""
SUITE = """\
suite: spots
data: {manifest: spots.yaml, split: s, slices: {size: [32, 32]}}
models: [unet: {width: 4, depth: 3}]
losses: [dice_ce, ce]
train: {epochs: 2, steps: 15, batch: 4, optimizer: {adamw: {lr: 1e-2}}}
metrics: [dice, hd95, nsd@1.0, sensitivity, boundary_iou, volume_difference, miou, iou]
profile: [voxel-max, transunet]
engine: points
select: best:nsd@1@val
rank: {by: [miou], baseline: ce}
"""


def _images(folder: Path) -> None:
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:28, :30]
    for number in range(6):
        y, x = rng.uniform(11, 17, 2)
        distance = np.hypot(rows - y, columns - x)
        label = np.select([distance < 5, distance < 9], [1, 2], 0).astype(np.uint8)
        label[:4, :4] = 3
        image = label[..., None] * np.array([70, 40, 10]) + rng.integers(0, 20, (28, 30, 3))
        for kind, made in (("img", sitk.GetImageFromArray(image.astype(np.uint8), isVector=True)),
                           ("lab", sitk.GetImageFromArray(label))):  # fmt: skip
            (folder / "spots" / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(made, str(folder / "spots" / kind / f"c{number}.png"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    from tests.conftest import Toy

    toy = Toy(tmp_path_factory.mktemp("spots"))
    _images(toy.folder / "data")
    (toy.folder / "spots.yaml").write_text(MANIFEST)
    (toy.folder / "spots.suite.yaml").write_text(SUITE)
    done = toy.bench("run", toy.folder / "spots.suite.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return toy


def test_the_rows_are_of_regions_in_the_plane_and_name_their_profile(run) -> None:
    cases = pd.read_csv(run.records()["ce"]["folder"] / "cases.csv")
    assert list(dict.fromkeys(cases["class"])) == ["whole", "core"]
    assert set(cases.loc[cases["profile"] == "transunet", "metric"]) == {"dice", "hd95"}
    assert set(cases.loc[cases["profile"] == "voxel-max", "metric"]) == {
        "dice", "hd95", "nsd@1", "sensitivity", "boundary_iou", "volume_difference", "iou", "tp", "fp", "fn", "tn",
    }  # fmt: skip
    assert set(cases.loc[cases["metric"] == "volume_difference", "unit"]) == {"voxel2"}
    worst = cases.loc[cases["metric"] == "hd95", "worst"]
    assert worst.tolist() == pytest.approx([math.hypot(28, 30)] * len(worst))  # of the image, not of one slice's depth
    four = cases[(cases["case"] == "c4") & cases["metric"].isin(["tp", "fp", "fn", "tn"])]
    assert four.groupby("class")["value"].sum().tolist() == [28 * 30] * 2


def test_the_record_says_how_it_was_measured_and_the_curve_holds_what_was_watched(run) -> None:
    record = run.records()["ce"]
    cell = record["cell"]
    assert (cell["profiles"], cell["engine"]) == (["voxel-max", "transunet"], "points")
    assert cell["data"]["regions"] == {"whole": ["core", "rim"], "core": ["core"]}
    assert cell["train"]["select"] == "best:nsd@1@val"
    curve = pd.read_csv(record["folder"].parent / "curve.csv")
    assert {"val_nsd@1", "val_miou", "val_dice"} <= set(curve.columns) and curve["val_miou"].between(0, 1).all()


def test_the_page_names_all_of_it(run) -> None:
    folder = run.folder / "reports/spots"
    page = (folder / "index.html").read_text(encoding="utf-8")
    for text in (
        "NSD (1 voxel), %", "Boundary IoU (%)", "AVD (pixels)", "mIoU (%)", '<small class="profile">transunet</small>',
        "Measured on spots are regions, trained are the classes: whole = core + rim; core = core.",
        "Distances by the engine points", "spots is a 2D data set", "Sensitivity: not applicable, too",
        "The numbers of transunet are what that code gives",
    ):  # fmt: skip
        assert text in page, text
    board = pd.read_csv(folder / "leaderboard.csv").set_index("loss")
    cases = pd.read_csv(run.records()["ce"]["folder"] / "cases.csv")
    by_class = []
    for name in ("whole", "core"):
        own = cases[(cases["class"] == name) & cases["metric"].isin(["tp", "fp", "fn"])]
        wide = own.pivot(index="case", columns="metric", values="value")
        by_class.append(pooled_iou(wide[["tp", "fp", "fn"]].itertuples(index=False, name=None)))
    assert board.loc["ce", "miou"] == pytest.approx(sum(by_class) / 2)
    assert "iou" in board.columns and board.loc["ce", "iou"] != board.loc["ce", "miou"]


def test_another_engine_evaluates_the_same_training_again(run) -> None:
    last = SUITE.replace("best:nsd@1@val", "last").replace("[dice_ce, ce]", "[ce]").replace("steps: 15", "steps: 4")
    for name, text in (("one", last), ("two", last.replace("engine: points\n", ""))):
        path = run.folder / f"{name}.suite.yaml"
        path.write_text(text)
        done = run.bench("run", path, out="again")
        assert done.returncode == 0, done.stdout + done.stderr
    found = [p.parent for p in sorted((run.folder / "again").glob("*/*/record.json"))]
    assert len(found) == 2 and len({p.parent for p in found}) == 1
    one, two = (pd.read_csv(p / "cases.csv") for p in found)
    assert one["metric"].tolist() == two["metric"].tolist()
    np.testing.assert_allclose(one["value"], two["value"], rtol=1e-4, atol=1e-4)
