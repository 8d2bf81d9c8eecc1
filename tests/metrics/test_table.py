import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from harness.metrics import COUNTS, METRICS, PROFILES, Row
from harness.metrics.surface import REDUCTIONS


def test_import_is_cheap():
    code = "import sys, harness.metrics; print({'torch', 'SimpleITK', 'scipy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_table():
    assert list(METRICS) == ["dice", "hd95", "asd", "assd", "tp", "fp", "fn", "tn"]
    assert all(METRICS[name].name == name for name in METRICS)
    assert COUNTS == ("tp", "fp", "fn", "tn")
    dice, hd95 = METRICS["dice"], METRICS["hd95"]
    assert (dice.best, dice.worst, dice.higher_is_better, dice.unit_kind) == (1.0, 0.0, True, "fraction")
    assert (hd95.best, hd95.worst, hd95.higher_is_better, hd95.unit_kind) == (0.0, "diagonal", False, "distance")


def test_every_profile_reduces_every_distance():
    distances = {m.name for m in METRICS.values() if m.unit_kind == "distance"}
    assert set(REDUCTIONS) == set(PROFILES)
    assert all(set(table) == distances for table in REDUCTIONS.values())


def test_row_cannot_be_changed():
    row = Row("liver", "dice", "voxel-max", "1", 0.5, 0.0, "ok")
    with pytest.raises(FrozenInstanceError):
        row.value = 1.0
