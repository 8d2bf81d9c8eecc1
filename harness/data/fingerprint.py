"""Facts of the training cases that a view asks for by words: `median`, `nnunet`, and the foreground's intensities.

One case is in memory at a time; what was found of it is kept in the cache by its content.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.geometry import cut_out
from harness.data.layouts import IGNORE, Reader
from harness.data.manifest import Manifest
from harness.data.prepare import intensity_of
from harness.data.resample import ANISOTROPY, new_shape
from harness.errors import BenchError
from harness.records import write_atomic

FINGERPRINT_VERSION = 1  # raised when the same file would give other facts
# different values of a channel's foreground that are kept of a case: all of a CT, a fine summary of others
KEPT = 65_536
LOWER = 10.0  # percentile of the coarse axis' spacings that nnU-Net takes where the median would be too coarse


@dataclass(frozen=True)
class CaseFacts:
    """What is known of one case.

    Attributes:
        shape: Voxels (z, y, x) after ordering the axes and cropping.
        spacing: Of these axes, mm, or None.
        values: Per channel the sorted values of the foreground; empty where they were not asked for.
        counts: Per channel the voxels that have each value.
        moments: (C, 2): sum of the foreground's values and of their squares, in float64.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    values: tuple[NDArray[np.float32], ...] = ()
    counts: tuple[NDArray[np.int64], ...] = ()
    moments: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Fingerprint:
    """Facts of the training cases of one split and fold.

    Attributes:
        cases: In the order of the split.
    """

    cases: tuple[CaseFacts, ...]

    @property
    def median_spacing(self) -> tuple[float, ...]:
        """Median over the cases along each axis, mm."""
        return _floats(np.median(self._spacings(), axis=0))

    @property
    def target_spacing(self) -> tuple[float, ...]:
        """The spacing that nnU-Net resamples to.

        The median; but where one axis is more than 3 times coarser than the others, and has less than a third of
        their voxels, that axis takes the 10th percentile, and never becomes finer than the others
        (Isensee et al., 2021, Methods and supplementary note 2).
        """
        spacings = self._spacings()
        target = np.median(spacings, axis=0)
        voxels = np.median([c.shape for c in self.cases], axis=0)
        worst = int(target.argmax())
        others = [i for i in range(len(target)) if i != worst]
        finest = float(target[others].max())
        if target[worst] > ANISOTROPY * finest and ANISOTROPY * voxels[worst] < voxels[others].min():
            target[worst] = max(float(np.percentile(spacings[:, worst], LOWER)), finest)
        return _floats(target)

    @property
    def mist_spacing(self) -> tuple[float, ...]:
        """The spacing of Celaya et al., 2023, for LiTS: the median in the plane, the 90th percentile between slices."""
        spacings = self._spacings()
        return _floats(np.array([np.percentile(spacings[:, 0], 90), *np.median(spacings[:, 1:], axis=0)]))

    def median_shape(self, spacing: Sequence[float] | None) -> tuple[int, ...]:
        """Median number of voxels along each axis on grids of this spacing; None for the cases' own grids."""
        shapes = [c.shape for c in self.cases]
        if spacing is not None:
            shapes = [new_shape(n, s, spacing) for n, s in zip(shapes, self._spacings(), strict=True)]
        return tuple(round(float(n)) for n in np.median(shapes, axis=0))

    def standard(self, percentiles: tuple[float, float]) -> dict[str, Any]:
        """Clip, mean and SD of the foreground of all cases, as the `standard` of `Intensity`.

        Mean and SD are of the values before clipping, as in nnU-Net.

        Raises:
            BenchError: No case has any foreground.
        """
        found: dict[str, Any] = {"mean": [], "sd": [], "divide": 1.0, "clip": []}
        for channel in range(len(self.cases[0].values)):
            values = np.concatenate([c.values[channel] for c in self.cases])
            counts = np.concatenate([c.counts[channel] for c in self.cases])
            if not counts.sum():
                raise BenchError(
                    "intensity: no training case has any foreground, so `foreground` has nothing to go by."
                )
            total, squares = sum(c.moments[channel] for c in self.cases if c.moments is not None)
            mean = float(total) / int(counts.sum())
            variance = max(float(squares) / int(counts.sum()) - mean**2, 0.0)
            found["clip"].append([_percentile(values, counts, p) for p in percentiles])
            found["mean"].append(mean)
            found["sd"].append(max(variance**0.5, 1e-8))
        return found

    def _spacings(self) -> NDArray[np.float64]:
        if any(c.spacing is None for c in self.cases):
            raise BenchError(
                "the spacing of these cases is unknown, and the view asks for it; leave `resample` away, or give a "
                "table under `spacing` in the manifest."
            )
        return np.array([c.spacing for c in self.cases], np.float64)


def asks(manifest: Manifest, view: dict[str, Any]) -> bool:
    """Whether a view has words that only the training cases can turn into numbers."""
    return (
        isinstance(view.get("resample", {}).get("spacing"), str)
        or isinstance(view.get("patches", {}).get("size"), str)
        or intensity_of(manifest, view).foreground is not None
    )


def resolved(
    manifest: Manifest,
    reader: Reader,
    cases: Sequence[str],
    view: dict[str, Any],
    cache: Path,
    first: str | None = None,
) -> dict[str, Any]:
    """The view of a split's cells with numbers in place of words; a view without words as it is.

    Args:
        manifest: The data set.
        reader: Its reader.
        cases: The training cases.
        view: As in a cell's data.
        cache: Folder of the cache.
        first: The case to begin with, so that several processes share the work.

    Raises:
        BenchError: A case is missing or damaged, or the spacing is unknown.
    """
    if not asks(manifest, view):
        return view
    return resolve_view(manifest, view, fingerprint_of(manifest, reader, cases, view, cache, first))


def resolve_view(manifest: Manifest, view: dict[str, Any], found: Fingerprint) -> dict[str, Any]:
    """Turn the words of a view into numbers.

    `resample: {spacing: median | nnunet | mist}` becomes a spacing, `intensity: {foreground: ...}` becomes `standard`,
    and `patches: {size: nnunet}` the patch of nnU-Net's plan for the median shape on that grid.
    """
    out = dict(view)
    asked = view.get("resample", {}).get("spacing")
    if isinstance(asked, str):
        rules = {"median": found.median_spacing, "nnunet": found.target_spacing, "mist": found.mist_spacing}
        out["resample"] = {"spacing": list(rules[asked])}
    how = intensity_of(manifest, view)
    if how.foreground is not None:
        out["intensity"] = {"standard": found.standard(how.foreground)}
    if view.get("patches", {}).get("size") == "nnunet":
        out["patches"] = view["patches"] | {"size": list(_planned(manifest, out, found))}
    return out


def _planned(manifest: Manifest, view: dict[str, Any], found: Fingerprint) -> tuple[int, ...]:
    from harness.models.nnunet_plan import plan

    grid = view.get("resample", {}).get("spacing")
    known = all(c.spacing is not None for c in found.cases)
    spacing = grid or (found.median_spacing if known else (1.0, 1.0, 1.0))
    planned = plan(
        found.median_shape(grid),
        spacing,
        len(found.cases),
        channels=len(manifest.spec.modalities),
        classes=manifest.num_classes,
    )
    return planned.patch


def fingerprint_of(
    manifest: Manifest,
    reader: Reader,
    cases: Sequence[str],
    view: dict[str, Any],
    cache: Path,
    first: str | None = None,
) -> Fingerprint:
    """Gather the facts of training cases, from the cache where it has them.

    Args:
        manifest: The data set.
        reader: Its reader.
        cases: The training cases.
        view: As in a cell's data: its `canonical` and `crop` come before the facts.
        cache: Folder of the cache.
        first: The case to begin with.
    """
    at = cases.index(first) if first in cases else 0
    found: dict[str, CaseFacts] = {}
    for case in [*cases[at:], *cases[:at]]:
        found[case] = _facts_of(manifest, reader, case, view, cache)
    return Fingerprint(tuple(found[case] for case in cases))


def _facts_of(manifest: Manifest, reader: Reader, case: str, view: dict[str, Any], cache: Path) -> CaseFacts:
    absent = reader.missing([case])
    if absent:
        raise BenchError(f"{absent[0]}: no such file.")
    valued = intensity_of(manifest, view).foreground is not None
    steps = {k: view[k] for k in ("canonical", "crop") if k in view}
    parts = [FINGERPRINT_VERSION, manifest.digest(), case, reader.digest(case), steps, valued]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
    path = cache / manifest.name / f"facts-{key}.npz"
    if path.is_file():
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
    facts = measure_case(reader, case, view, valued)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda stream: _write(stream, facts))
    return facts


def measure_case(reader: Reader, case: str, view: dict[str, Any], valued: bool) -> CaseFacts:
    """Read a case and find its facts; `valued` says whether the foreground's values are wanted."""
    cut, geometry = cut_out(reader.read(case), view)
    if not valued:
        return CaseFacts(geometry.inner, cut.spacing)
    inside = (cut.label > 0) & (cut.label != IGNORE)
    values, counts, moments = [], [], []
    for channel in cut.image:
        chosen = channel[inside]
        own, number = summary(chosen)
        values.append(own)
        counts.append(number)
        wide = chosen.astype(np.float64)
        moments.append([wide.sum(), (wide**2).sum()])
    return CaseFacts(geometry.inner, cut.spacing, tuple(values), tuple(counts), np.array(moments))


def summary(values: NDArray[np.float32], kept: int = KEPT) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The different values and how often each is there; of too many, the middle ones of groups of neighbours.

    Args:
        values: Any number.
        kept: At most so many are returned; with groups, a percentile is off by at most 100/kept in rank.
    """
    own, counts = np.unique(values, return_counts=True)
    if len(own) <= kept:
        return own, counts.astype(np.int64)
    ordered = np.sort(values)
    ends = np.linspace(0, len(ordered), kept + 1).astype(np.int64)
    return ordered[(ends[:-1] + ends[1:] - 1) // 2], np.diff(ends)


def _percentile(values: NDArray[np.float32], counts: NDArray[np.int64], percent: float) -> float:
    """What numpy's percentile of every value repeated as often as it counts would be."""
    order = np.argsort(values, kind="stable")
    values, last = values[order], np.cumsum(counts[order]) - 1
    place = percent / 100 * float(last[-1])
    low, high = (values[np.searchsorted(last, rank)] for rank in (np.floor(place), np.ceil(place)))
    return float(low) + (float(high) - float(low)) * (place - float(np.floor(place)))


def _write(stream: Any, facts: CaseFacts) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "shape": np.array(facts.shape),
        "spacing": np.array([] if facts.spacing is None else facts.spacing),
    }
    if facts.moments is not None:
        arrays["moments"] = facts.moments
    for i, (values, counts) in enumerate(zip(facts.values, facts.counts, strict=True)):
        arrays |= {f"values{i}": values, f"counts{i}": counts}
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> CaseFacts:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        moments = arrays.get("moments")
        channels = 0 if moments is None else len(moments)
        return CaseFacts(
            tuple(int(n) for n in arrays["shape"]),
            tuple(float(s) for s in arrays["spacing"]) or None,
            tuple(arrays[f"values{i}"] for i in range(channels)),
            tuple(arrays[f"counts{i}"] for i in range(channels)),
            moments,
        )


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
