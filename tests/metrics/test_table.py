import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from harness.errors import BenchError
from harness.metrics import COUNTS, ENGINES, METRICS, Row, area, engines, surface
from harness.metrics.surface import Distances
from harness.metrics.table import SURFACE_METRICS, canonical, check_metrics, check_profiles, metric_of, title_of


def test_import_is_cheap():
    code = "import sys, harness.metrics; print({'torch', 'SimpleITK', 'scipy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_table():
    assert all(METRICS[name].name == name for name in METRICS)
    assert COUNTS == ("tp", "fp", "fn", "tn")
    dice, hd95 = METRICS["dice"], METRICS["hd95"]
    assert (dice.best, dice.worst, dice.higher_is_better, dice.unit_kind) == (1.0, 0.0, True, "fraction")
    assert (hd95.best, hd95.worst, hd95.higher_is_better, hd95.unit_kind) == (0.0, "diagonal", False, "distance")
    assert METRICS["sensitivity"].not_applicable == {"both_empty", "ref_empty"}
    assert METRICS["precision"].not_applicable == {"both_empty", "pred_empty"}
    assert all(
        m.not_applicable == {"both_empty"} for m in METRICS.values() if m.name not in ("sensitivity", "precision")
    )


def test_every_surface_metric_has_a_reduction_in_every_profile():
    both = Distances(np.array([0.0, 3.0]), np.array([1.0]))
    weighted = area.AreaDistances(both.pred_to_ref, both.ref_to_pred, pred_areas=np.ones(2), ref_areas=np.ones(1))
    assert {m.name for m in METRICS.values() if m.unit_kind == "distance"} | {"nsd"} == set(SURFACE_METRICS)
    for name in SURFACE_METRICS:
        parameter = 1.0 if name == "nsd" else None
        values = {p: table[name](both, parameter) for p, table in surface.REDUCTIONS.items()}
        values["area"] = area.REDUCTIONS[name](weighted, parameter)
        want = {"hd": 3.0, "asd": 1.5, "asd_reverse": 1.0, "assd": 4 / 3, "masd": 1.25, "nsd": 2 / 3}.get(name)
        if name == "hd95":  # 0.95 of the way from 0 to 3; rank 0.95·2 = 1.9 of 0, 1, 3; the first with 95 % of the area
            assert values == pytest.approx({"voxel-max": 2.85, "voxel-pooled": 2.8, "area": 3.0})
        else:
            assert values == pytest.approx(dict.fromkeys(values, want)), name


def test_names_with_a_parameter():
    assert metric_of("nsd@2") == (METRICS["nsd"], 2.0)
    assert metric_of("hd95") == (METRICS["hd95"], None)
    assert [canonical(n) for n in ("nsd@2.0", "nsd@0.5", "nsd@1.23456789", "boundary_iou", "boundary_iou@3")] == [
        "nsd@2", "nsd@0.5", "nsd@1.23456789", "boundary_iou", "boundary_iou@3",
    ]  # fmt: skip
    assert title_of("nsd@2") == "NSD (2 mm)"
    assert title_of("nsd@2", "voxel") == "NSD (2 voxel)"
    assert title_of("boundary_iou@3") == "Boundary IoU (3 px)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nsd", "'nsd' needs a tolerance"),
        ("nsd@", "parameter ''"),
        ("nsd@-1", "expected a distance of 0 or more"),
        ("nsd@nan", "expected a distance of 0 or more"),
        ("nsd@inf", "expected a distance of 0 or more"),
        ("dice@2", "dice takes no parameter"),
        ("boundary_iou@1.5", "a whole number of pixels"),
        ("boundary_iou@0", "a whole number of pixels"),
        ("hd59", r"unknown metric 'hd59' \(did you mean 'hd95'\?\)"),
        ("nds@2", r"unknown metric 'nds@2' \(did you mean 'nsd'\?\)"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(BenchError, match=message) as error:
        metric_of(name)
    assert str(error.value).endswith(".")


def test_a_metric_must_be_in_one_of_the_profiles():
    assert check_metrics(["assd", "dice"], ["transunet", "area"]) == ("assd", "dice")
    with pytest.raises(BenchError, match="'assd' is in none of the profiles asked for: transunet has dice, hd95"):
        check_metrics(["dice", "assd"], ["transunet"])
    assert check_profiles(["area", "area"]) == ("area",)
    with pytest.raises(BenchError, match="no profile"):
        check_profiles([])


def test_engines_have_modules():
    assert set(ENGINES) == set(engines._MODULES)
    with pytest.raises(BenchError, match=r"unknown engine 'point' \(did you mean 'points'\?\)"):
        engines.check_engine("point")


def test_an_engine_without_its_package(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="needs numba, which is not installed; install"):
        engines.tools_of("points-numba")


def test_row_cannot_be_changed():
    row = Row("liver", "dice", "voxel-max", "1", 0.5, 0.0, "ok")
    with pytest.raises(FrozenInstanceError):
        row.value = 1.0
