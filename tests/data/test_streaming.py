"""Bounded memory: parts of cached cases, and batches that are the same bit for bit with any budget."""

import errno
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.batches import Batch, TrainSet
from harness.data.layouts import Volume
from harness.data.manifest import load_manifest
from harness.data.prepare import load_prepared, prepare
from harness.data.samples import LabelList, budget
from harness.data.stored import Prepared, Stored
from harness.errors import BenchError

CPU = torch.device("cpu")
BASE = {"data": "toy", "repeat": 0}
OFF: dict[str, Any] = {"rotate": 0.0, "scale": 0.0, "shift": 0.0, "flip": False, "noise": 0.0, "intensity": 0.0}
SLICES: dict[str, Any] = {"slices": {"size": [20, 24], "fit": "pad", "axis": 1}}
PATCHES: dict[str, Any] = {"patches": {"size": [6, 8, 10], "foreground": 0.6}}
MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: nowhere
layout: {phantom: {shape: [4, 16, 16], seed: 1}}
modalities: [A, B]
labels: {a: 1, b: 2}
intensity: {scale: [0, 1]}
cases: [c1, c2, c3, c4]
splits: {s: {test: [c4]}}
"""


class Made:
    """Volumes of different shapes; mostly background, so that slices without a class are there."""

    def missing(self, cases: list[str]) -> list[Path]:
        return []

    def digest(self, case: str) -> str:
        return case

    def read(self, case: str) -> Volume:
        n = int(case[1])
        rng = np.random.default_rng(n)
        shape = (8 + n, 20, 16 + n)
        label = np.zeros(shape, np.uint8)
        label[2:5, 3 : 5 + n, 4:9], label[3, 10, 5], label[0] = 1, 2, 255
        return Volume(rng.normal(size=(2, *shape)).astype(np.float32), label, (2.0, 1.0, float(n)))


def _cases(folder: Path, view: dict[str, Any]) -> tuple[list[Prepared], list[Prepared]]:
    """The same cases in memory and on disk."""
    (folder / "toy.yaml").write_text(MANIFEST)
    manifest = load_manifest("toy.yaml", folder)
    paths = [prepare(manifest, Made(), c, view, folder / "cache") for c in ("c1", "c2", "c3", "c4")]
    return [load_prepared(p) for p in paths], [Stored(p, view) for p in paths]


def _same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.target, b.target) and torch.equal(a.spacing, b.spacing)


@pytest.mark.parametrize("view", [SLICES, PATCHES], ids=["slices", "patches"])
def test_a_stored_case_is_the_case_in_memory(tmp_path: Path, view: dict[str, Any]) -> None:
    for held, stored in zip(*_cases(tmp_path, view), strict=True):
        assert stored.shape == held.image.shape and stored.reference_shape == held.reference.shape
        assert stored.nbytes == held.image.nbytes + held.label.nbytes
        for name in ("image", "label", "reference"):
            assert np.array_equal(getattr(stored, name), getattr(held, name))
        for name in ("case", "grid_spacing", "spacing", "origin", "direction", "geometry"):
            assert getattr(stored, name) == getattr(held, name)
        assert stored.view is view and held.view is None
        window = (slice(1, 2), slice(None), slice(2, 5))
        part = stored.part("image", window)
        assert np.array_equal(part, held.image[window]) and np.array_equal(part, held.part("image", window))
        assert part.flags["OWNDATA"] and part.flags["WRITEABLE"]
        assert np.array_equal(stored.part("label", (3,)), held.label[3])


AUGMENTS = [OFF, OFF | {"rotate": 20.0, "flip": True, "noise": 0.1}, {"preset": "nnunet"}, {"preset": "transunet"}]


@pytest.mark.parametrize("augment", AUGMENTS, ids=["none", "usual", "nnunet", "transunet"])
@pytest.mark.parametrize("view", [SLICES, PATCHES], ids=["slices", "patches"])
def test_batches_do_not_depend_on_the_budget(tmp_path: Path, view: dict[str, Any], augment: dict[str, Any]) -> None:
    held, stored = _cases(tmp_path, view)
    whole = TrainSet(held, view, augment, CPU, limit=2**30)
    assert whole.resident == whole.samples
    bytes_each = [c.nbytes for c in held]
    for limit in (0, bytes_each[0] + 100, sum(bytes_each) - 1, 2**30):
        data = TrainSet(stored, view, augment, CPU, limit=limit)
        assert data.samples == whole.samples
        assert (data.resident < data.samples) == (limit < sum(bytes_each))
        for step in (0, 7, 3):
            assert _same(data.batch(step, 5, BASE), whole.batch(step, 5, BASE))


def test_what_is_resident_stays_within_the_budget(tmp_path: Path) -> None:
    held, stored = _cases(tmp_path, SLICES)
    each = held[0].nbytes // len(held[0].image)
    assert TrainSet(stored, SLICES, OFF, CPU, limit=7 * each + 5).resident == 7
    _, volumes = _cases(tmp_path, PATCHES)
    data = TrainSet(volumes, PATCHES, OFF, CPU, limit=volumes[0].nbytes + volumes[1].nbytes)
    assert data.resident == 2 and data.samples == 4


@pytest.mark.parametrize("limit", [0, 3000, 2**30])
def test_only_slices_with_a_class_are_kept_where_asked(tmp_path: Path, limit: int) -> None:
    held, stored = _cases(tmp_path, SLICES)
    view = {"slices": SLICES["slices"] | {"keep": "labelled"}}
    # along axis 1 the class a is on rows 3 to 4 + n, b on row 10, the ignored ones on all of them
    expected = sum(len({*range(3, 5 + n), 10}) for n in (1, 2, 3, 4))
    for cases in (held, stored):
        data = TrainSet(cases, view, OFF, CPU, limit=limit)
        assert data.samples == expected
        batches = [data.batch(step, 5, BASE) for step in range(4)]
        assert all(bool(((t > 0) & (t < 255)).any()) for b in batches for t in b.target)
    assert _same(
        TrainSet(held, view, OFF, CPU).batch(2, 6, BASE), TrainSet(stored, view, OFF, CPU, limit).batch(2, 6, BASE)
    )
    for case in held:
        case.label[...] = 0
    with pytest.raises(BenchError, match="leaves none"):
        TrainSet(held, view, OFF, CPU)


def test_labels_come_one_by_one_where_they_are_many(tmp_path: Path) -> None:
    held, stored = _cases(tmp_path, PATCHES)
    labels = LabelList(stored)
    assert isinstance(labels.tensors(2**30), list) and labels.tensors(0) is labels
    for found in (labels, labels.tensors(2**30), labels[1:]):
        mine = held[-len(found) :]
        assert all(
            t.dtype == torch.int64 and np.array_equal(t.numpy(), c.label) for t, c in zip(found, mine, strict=True)
        )


def test_the_budget_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE_MB", "12")
    assert budget(CPU) == 12 * 2**20
    monkeypatch.setenv("BENCH_CACHE_MB", "")
    assert 0 < budget(CPU) < 2**50
    monkeypatch.setenv("BENCH_CACHE_MB", "4 GB")
    with pytest.raises(BenchError, match="BENCH_CACHE_MB is '4 GB'"):
        budget(CPU)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _compress(path: Path) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **content)


def _rename(path: Path) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    content["picture"] = content.pop("image")
    with path.open("wb") as stream:
        np.savez(stream, **content)


@pytest.mark.parametrize("spoil", [_cut, _compress, _rename])
def test_a_damaged_file_is_removed_and_named(tmp_path: Path, spoil: Any) -> None:
    _, stored = _cases(tmp_path, PATCHES)
    path = stored[0].path  # type: ignore[attr-defined]
    spoil(path)
    with pytest.raises(BenchError, match=f"{path.name}: the cached case was damaged"):
        Stored(path)
    assert not path.exists()


def test_a_refusal_of_the_system_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = _cases(tmp_path, PATCHES)
    path = stored[0].path  # type: ignore[attr-defined]

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", refused)
    for access in (lambda: Stored(path), lambda: load_prepared(path), lambda: stored[0].image):
        with pytest.raises(BenchError, match=r"cannot be read \(Too many open files\)"):
            access()
    assert path.is_file()


def test_a_whole_array_is_read_with_its_checksum(tmp_path: Path) -> None:
    _, stored = _cases(tmp_path, PATCHES)
    path = stored[0].path  # type: ignore[attr-defined]
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("image.npy").header_offset + 500
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(BenchError, match="damaged"):
        _ = stored[0].image


FLAT = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
from harness.data.stored import Stored

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(t for t in lines if t.startswith("VmHWM")).split()[1]) / 1024

case = Stored(Path({path!r}))
before = resident()
rng = np.random.default_rng(0)
total = 0.0
for _ in range(400):
    z, y, x = (int(rng.integers(n - 16)) for n in case.shape[1:])
    total += float(case.part("image", (slice(None), slice(z, z + 16), slice(y, y + 16), slice(x, x + 16))).sum())
print(case.blocks["image"].nbytes / 2**20, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_parts_keeps_nothing_of_the_rest(tmp_path: Path) -> None:
    """400 patches from all over a volume of 256 MB: the process' peak does not grow with what it has touched.

    One patch may map 32 MB, where the system keeps files in large pieces.
    """
    import json

    path = tmp_path / "case.npz"
    meta = {"case": "c", "grid_spacing": [1, 1, 1], "spacing": None, "origin": [], "direction": []}
    small = np.zeros((1, 1, 1), np.uint8)
    with path.open("wb") as stream:
        np.savez(
            stream,
            image=np.ones((1, 256, 512, 512), np.float32),
            label=small,
            reference=small,
            meta=np.array(json.dumps(meta)),
        )
    code = FLAT.format(root=str(Path(__file__).parents[2]), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, grown = (float(v) for v in done.stdout.split())
    assert size == 256 and grown < 64
