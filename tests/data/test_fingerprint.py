"""Fingerprints by hand: spacing rules, medians, foreground statistics; words become numbers; one case in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness.data.fingerprint as module
from harness.data.fingerprint import (
    CaseFacts,
    Fingerprint,
    asks,
    fingerprint_of,
    measure_case,
    resolve_view,
    resolved,
    summary,
)
from harness.data.layouts import Volume
from harness.data.manifest import Manifest, load_manifest
from harness.data.prepare import load_prepared, prepare
from harness.errors import BenchError

MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: nowhere
layout: {phantom: {shape: [4, 16, 16], seed: 1}}
modalities: [A, B]
labels: {a: 1, b: 2}
intensity: {window: [0, 1]}
cases: [c1, c2, c3]
splits: {s: {test: [c3]}}
"""
PATCHES: dict[str, Any] = {"patches": {"size": [2, 2, 2], "foreground": 0.5}}


class Several:
    """A reader of volumes in memory that counts what it reads."""

    def __init__(self, **volumes: Volume) -> None:
        self.volumes, self.reads = volumes, list[str]()

    def missing(self, cases: list[str]) -> list[Path]:
        return [Path(c) for c in cases if c not in self.volumes]

    def digest(self, case: str) -> str:
        return case

    def read(self, case: str) -> Volume:
        self.reads.append(case)
        return self.volumes[case]


def _manifest(folder: Path, intensity: str = "{window: [0, 1]}") -> Manifest:
    (folder / "toy.yaml").write_text(MANIFEST.replace("{window: [0, 1]}", intensity))
    return load_manifest("toy.yaml", folder)


def _facts(*cases: tuple[tuple[int, ...], tuple[float, ...]]) -> Fingerprint:
    return Fingerprint(tuple(CaseFacts(shape, spacing) for shape, spacing in cases))


def _volume(shape: tuple[int, int, int], spacing: Any, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    image = rng.integers(-500, 500, (2, *shape)).astype(np.float32)
    return Volume(image, rng.choice(np.array([0, 0, 1, 2, 255], np.uint8), shape), spacing)


def test_medians_by_hand() -> None:
    found = _facts(((10, 40, 40), (5.0, 1.0, 1.0)), ((20, 50, 30), (2.0, 0.8, 0.8)), ((30, 60, 20), (3.0, 0.5, 0.9)))
    assert found.median_spacing == (3.0, 0.8, 0.9)
    assert found.median_shape(None) == (20, 50, 30)
    # on a grid of 2 mm: z 25, 20, 45; y 20, 20, 15; x 20, 12, 9
    assert found.median_shape((2.0, 2.0, 2.0)) == (25, 20, 12)


def test_nnunets_target_is_the_median_where_voxels_are_even() -> None:
    found = _facts(((100, 200, 200), (2.9, 1.0, 1.0)), ((100, 200, 200), (2.9, 1.0, 1.0)))
    assert found.target_spacing == (2.9, 1.0, 1.0)


def test_nnunets_target_of_a_coarse_axis_is_its_tenth_percentile() -> None:
    spacings = [10.0, 10.0, 8.0, 6.0, 5.0, 10.0, 9.0, 10.0, 10.0, 10.0, 7.0]
    found = _facts(*(((12, 256, 224), (s, 1.5, 1.4)) for s in spacings))
    # sorted: 5 6 7 8 9 10 ...; the 10th percentile of 11 is the second
    assert found.target_spacing == (6.0, 1.5, 1.4)
    assert found.median_spacing == (10.0, 1.5, 1.4)


def test_celayas_grid_is_the_median_in_the_plane_and_the_ninetieth_percentile_between_slices() -> None:
    spacings = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    found = _facts(*(((12, 256, 224), (s, s / 2, 0.8)) for s in spacings))
    # of 11 sorted values the 90th percentile is the tenth
    assert found.mist_spacing == (10.0, 3.0, 0.8)


def test_a_coarse_axis_with_many_voxels_keeps_its_median() -> None:
    found = _facts(*(((100, 256, 224), (s, 1.0, 1.0)) for s in (5.0, 4.0, 3.5)))
    assert found.target_spacing == (4.0, 1.0, 1.0)  # 3 × 100 voxels are not fewer than 224


def test_the_coarse_axis_never_becomes_finer_than_the_others() -> None:
    found = _facts(*(((10, 256, 256), (s, 1.0, 0.9)) for s in [0.5, 0.6, *[6.0] * 8]))
    assert found.target_spacing == (1.0, 1.0, 0.9)


@pytest.mark.parametrize("kept", [10, 100, 1000])
def test_a_summary_keeps_percentiles(kept: int) -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    own, counts = summary(values, kept)
    assert len(own) == kept and counts.sum() == 5000 and (np.diff(own) >= 0).all()
    for percent in (10, 50, 90):
        rank = (values < module._percentile(own, counts, percent)).mean() * 100
        assert abs(rank - percent) < 100 / kept
    few = np.array([3, 1, 3, 2, 3], np.float32)
    assert [a.tolist() for a in summary(few, 3)] == [[1, 2, 3], [1, 1, 3]]


def test_percentiles_of_counts_are_numpys() -> None:
    rng = np.random.default_rng(1)
    values, counts = rng.permutation(np.arange(20.0, dtype=np.float32)), rng.integers(1, 6, 20)
    for percent in (0, 0.5, 3, 50, 77.7, 99.5, 100):
        assert module._percentile(values, counts, percent) == pytest.approx(
            np.percentile(np.repeat(values, counts), percent), abs=1e-6
        )


def test_the_foreground_of_all_cases_together() -> None:
    reader = Several(c1=_volume((5, 6, 7), (1.0, 1.0, 1.0), 1), c2=_volume((4, 9, 5), (1.0, 1.0, 1.0), 2))
    facts = Fingerprint(tuple(measure_case(reader, c, PATCHES, True) for c in ("c1", "c2")))
    found = facts.standard((0.5, 99.5))
    for channel in range(2):
        pooled = np.concatenate(
            [v.image[channel][(v.label > 0) & (v.label < 255)] for v in reader.volumes.values()]
        ).astype(float)
        assert found["mean"][channel] == pytest.approx(pooled.mean())
        assert found["sd"][channel] == pytest.approx(pooled.std())
        assert found["clip"][channel] == pytest.approx(np.percentile(pooled, [0.5, 99.5]).tolist())


def test_without_foreground_there_is_nothing_to_go_by() -> None:
    empty = Volume(np.ones((1, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), None)
    with pytest.raises(BenchError, match="no training case has any foreground"):
        Fingerprint((measure_case(Several(c1=empty), "c1", PATCHES, True),)).standard((0, 100))


def test_words_become_numbers_and_numbers_stay(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    reader = Several(c1=_volume((6, 8, 8), (2.0, 1.0, 1.0), 1), c2=_volume((6, 8, 8), (4.0, 1.0, 1.0), 2))
    words = PATCHES | {"resample": {"spacing": "median"}, "intensity": {"foreground": [0.5, 99.5]}}
    assert asks(manifest, words) and not asks(manifest, PATCHES)
    found = resolved(manifest, reader, ["c1", "c2"], words, tmp_path / "cache")
    assert found["resample"] == {"spacing": [3.0, 1.0, 1.0]} and found["patches"] == PATCHES["patches"]
    assert set(found["intensity"]) == {"standard"} and len(found["intensity"]["standard"]["clip"]) == 2
    assert not asks(manifest, found)
    assert words["resample"] == {"spacing": "median"}  # the cell's own view is left as it is
    assert resolved(manifest, reader, ["c1"], PATCHES, tmp_path / "cache") is PATCHES
    # with the numbers a case can be prepared
    case = load_prepared(prepare(manifest, reader, "c1", found, tmp_path / "cache"))
    assert case.geometry is not None and case.geometry.shape == (4, 8, 8)


def test_the_manifests_own_foreground_counts_too(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "{foreground: [0, 100]}")
    reader = Several(c1=_volume((6, 8, 8), None, 1))
    assert asks(manifest, PATCHES)
    found = resolved(manifest, reader, ["c1"], PATCHES, tmp_path / "cache")
    case = load_prepared(prepare(manifest, reader, "c1", found, tmp_path / "cache"))
    inside = (case.label > 0) & (case.label < 255)
    for channel in case.image:
        assert float(channel[inside].mean()) == pytest.approx(0, abs=1e-6)
        assert float(channel[inside].std()) == pytest.approx(1, abs=1e-6)
    assert not asks(manifest, PATCHES | {"intensity": {"zscore": "volume"}})


def test_the_patch_is_nnunets_plan(tmp_path: Path) -> None:
    """The hippocampus of the Decathlon: 36×50×35 at 1 mm gives 40×56×40 (the published plan)."""
    view = {"patches": {"size": "nnunet", "foreground": 0.33}, "resample": {"spacing": "nnunet"}}
    found = resolve_view(_manifest(tmp_path), view, _facts(*[((36, 50, 35), (1.0, 1.0, 1.0))] * 200))
    assert found["patches"] == {"size": [40, 56, 40], "foreground": 0.33}
    assert found["resample"] == {"spacing": [1.0, 1.0, 1.0]}


def test_cropping_and_axes_come_before_the_facts() -> None:
    image = np.zeros((2, 10, 12, 14), np.float32)
    image[1, 2:5, 3:9, 4:5] = 1
    volume = Volume(
        image, np.zeros(image.shape[1:], np.uint8), (3.0, 2.0, 1.0), (0.0,) * 3, (0, 0, 1, 0, -1, 0, 1, 0, 0)
    )
    facts = measure_case(Several(c1=volume), "c1", {"crop": "nonzero", "canonical": True}, False)
    # file x goes up, y to the front, z to the left: up has x's single voxel and its 1 mm
    assert facts == CaseFacts((1, 6, 3), (1.0, 2.0, 3.0))


def test_an_unknown_spacing_is_one_sentence(tmp_path: Path) -> None:
    reader = Several(c1=_volume((4, 4, 4), None))
    with pytest.raises(BenchError, match="spacing of these cases is unknown"):
        resolved(_manifest(tmp_path), reader, ["c1"], PATCHES | {"resample": {"spacing": "median"}}, tmp_path)


def test_facts_are_kept_by_content_and_each_process_begins_elsewhere(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "{foreground: [0, 100]}")
    reader = Several(**{f"c{i}": _volume((4, 4, 4), (1.0, 1.0, float(i)), i) for i in (1, 2, 3)})
    names = ["c1", "c2", "c3"]
    first = fingerprint_of(manifest, reader, names, PATCHES, tmp_path / "cache", first="c2")
    assert reader.reads == ["c2", "c3", "c1"]
    again = fingerprint_of(manifest, reader, names, PATCHES, tmp_path / "cache")
    assert len(reader.reads) == 3
    assert [c.spacing for c in again.cases] == [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.0, 1.0, 3.0)]
    assert again.standard((1, 99)) == first.standard((1, 99))
    for path in (tmp_path / "cache").rglob("facts-*.npz"):  # damaged ones are made again
        path.write_bytes(path.read_bytes()[:40])
    fingerprint_of(manifest, reader, names, PATCHES, tmp_path / "cache")
    assert len(reader.reads) == 6
    fingerprint_of(manifest, reader, ["c1"], PATCHES | {"crop": "nonzero"}, tmp_path / "cache")
    assert len(reader.reads) == 7


def test_a_missing_case_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="c9: no such file"):
        fingerprint_of(_manifest(tmp_path), Several(), ["c9"], PATCHES, tmp_path)
