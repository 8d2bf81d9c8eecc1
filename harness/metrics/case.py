"""One case: what a pass over the two volumes gave, and the rows that each class's counts and surfaces make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics import area, boundary, papers, surface
from harness.metrics.engines import Tools
from harness.metrics.overlap import OVERLAP, Counts, counts_of
from harness.metrics.scan import Classes, IntArray
from harness.metrics.surface import Grid
from harness.metrics.table import COUNTS, PROFILES, SURFACE_METRICS, Row, metric_of

BoolArray = NDArray[np.bool_]
Values = Callable[[str, float | None], float | None]


class Case:
    """A prediction and its reference, checked, with what is asked of them.

    Args:
        pred: Predicted labels, shape (z, y, x) or (y, x).
        ref: The same for the reference.
        spacing: Size of a voxel in array order, or None where it is unknown.
        labels: Class name → label values.
        ignore: The ignored reference label.
        profiles: Keys of `PROFILES`, each once.
        metrics: Canonical names, each once.
        tools: The engine.
    """

    def __init__(
        self,
        pred: IntArray,
        ref: IntArray,
        spacing: tuple[float, ...] | None,
        labels: Mapping[str, Sequence[int]],
        ignore: int | None,
        profiles: Sequence[str],
        metrics: Sequence[str],
        tools: Tools,
    ) -> None:
        self.profiles, self.metrics = tuple(profiles), tuple(metrics)
        self._standard = [p for p in profiles if not PROFILES[p].own_empties]
        self._unit = "voxel" if spacing is None else "mm"
        self._spacing = spacing or (1.0,) * pred.ndim
        self._volumes = (pred, ref)
        self._engine = tools.distances
        self._labels, self._ignore = labels, ignore
        # Volumes in Fortran order (nibabel's) are read the other way round: nothing here depends on the axes' order.
        self._turned = pred.flags.f_contiguous and ref.flags.f_contiguous and not pred.flags.c_contiguous
        self._read = (pred.T, ref.T) if self._turned else (pred, ref)
        sides = self._spacing[::-1] if self._turned else self._spacing
        self._flat = pred.ndim == 2
        shape = (1, *self._read[0].shape) if self._flat else self._read[0].shape
        self._grid = Grid(shape, (1.0, *sides) if self._flat else sides)  # type: ignore[arg-type]  # three of each
        self._classes = Classes.of(labels, ignore)
        bases = {metric_of(name)[0].name for name in metrics}
        surfaces = bool(bases & set(SURFACE_METRICS)) or self._standard != [*profiles]
        self.scan = tools.scan(*self._read, self._classes, surfaces)
        self.counts = counts_of(self.scan, self._classes)
        voxels = float(self.counts[0].compared)
        self._latest: tuple[int, surface.Distances] | None = None
        self._bounds = {
            "diagonal": float(np.linalg.norm(np.multiply(pred.shape, self._spacing))),
            "image": voxels * float(np.prod(self._spacing)),
            "voxels": voxels,
        }

    def rows(self, number: int) -> Iterator[Row]:
        """The rows of one class, by its number in the order of the labels."""
        counts = self.counts[number]
        seen: set[str] = set()
        for profile in self.profiles:
            values = self._own(profile, number) if PROFILES[profile].own_empties else self._values(profile, number)
            for name in self.metrics:
                metric, parameter = metric_of(name)
                once = metric.name not in SURFACE_METRICS and profile in self._standard
                if metric.name not in PROFILES[profile].offers or (once and name in seen):
                    continue
                seen |= {name} if once else set()
                yield self._row(number, name, profile, values(name, parameter), counts)
        for name in COUNTS:
            if name not in seen:
                yield self._row(number, name, (self._standard or self.profiles)[0], OVERLAP[name](counts), counts)

    def _row(self, number: int, name: str, profile: str, value: float | None, counts: Counts) -> Row:
        metric, _ = metric_of(name)
        length = "voxel" if profile == "transunet" else self._unit
        units = {"fraction": "1", "distance": length, "volume": f"{length}{len(self._spacing)}", "count": "voxels"}
        worst = self._bounds[metric.worst] if isinstance(metric.worst, str) else metric.worst
        if profile == "mist2023" and metric.unit_kind == "distance":
            worst = papers.mist2023_worst(self._volumes[0].shape, self._spacing)
        return Row(self._classes.names[number], name, profile, units[metric.unit_kind], value, worst, counts.status)

    def _values(self, profile: str, number: int) -> Values:
        """Metrics of one class in a profile that leaves empty masks to the policy."""
        counts = self.counts[number]
        distances: list[Any] = []  # found when the first metric needs them

        def value(name: str, parameter: float | None) -> float | None:
            base = metric_of(name)[0].name
            if base in OVERLAP:
                return OVERLAP[base](counts)
            if base == "volume_difference":
                return abs(counts.fp - counts.fn) * float(np.prod(self._spacing))
            if base == "boundary_iou":
                width = boundary.band_width(self._volumes[0].shape, parameter)
                return boundary.boundary_iou(*self._masks(number, (...,)), width)
            if counts.status != "ok":
                return None
            if not distances:
                distances.append(self._area(number) if profile == "area" else self._voxel(number))
            if profile == "area":
                return area.REDUCTIONS[base](distances[0], parameter)
            return surface.REDUCTIONS[profile][base](distances[0], parameter)

        return value

    def _own(self, profile: str, number: int) -> Values:
        """Metrics of one class as a paper's code gives them, empty masks too."""
        counts, clouds = self.counts[number], self.scan.clouds[number]
        cells = counts.tp, counts.fp, counts.fn
        found: dict[str, float] = {}  # MIST's two distances come together

        def value(name: str, parameter: float | None) -> float | None:
            if name == "dice":
                return papers.transunet_dice(*cells) if profile == "transunet" else papers.mist2023_dice(*cells)
            if profile == "transunet":
                in_voxels = replace(self._grid, spacing=(1.0, 1.0, 1.0))
                return papers.transunet_hd95(self._engine(*clouds, in_voxels) if counts.status == "ok" else None)
            if not found:
                box = papers.crop(*clouds, self._grid)
                masks = self._masks(number, box[::-1] if self._turned else box)
                found.update(papers.mist2023_distances(*masks, self._spacing, self._volumes[0].shape))
            return found[name]

        return value

    def _voxel(self, number: int) -> surface.Distances:
        """Distances between the surface voxels of one class; two profiles in a row share them."""
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self._engine(*self.scan.clouds[number], self._grid)
        return self._latest[1]

    def _area(self, number: int) -> area.AreaDistances:
        pred, ref = (
            area.surfels(cloud, self._inside(side, number), self._grid, flat=self._flat)
            for side, cloud in enumerate(self.scan.clouds[number])
        )
        return area.area_distances(pred, ref, self._engine)

    def _inside(self, side: int, number: int) -> area.Inside:
        """Whether voxels, by flat index in reading order, belong to a class."""
        values = np.array(self._labels[self._classes.names[number]])

        def gather(volume: IntArray, voxels: NDArray[np.intp]) -> IntArray:
            if volume.flags.c_contiguous:
                return volume.reshape(-1)[voxels]
            return volume[np.unravel_index(voxels, volume.shape)]

        def inside(voxels: NDArray[np.intp]) -> BoolArray:
            member: BoolArray = np.isin(gather(self._read[side], voxels), values)
            if self._ignore is not None:
                member &= gather(self._read[1], voxels) != self._ignore
            return member

        return inside

    def _masks(self, number: int, box: tuple[Any, ...]) -> tuple[BoolArray, BoolArray]:
        """Both masks of a class within a box, the axes in the order that the caller gave."""
        values = self._labels[self._classes.names[number]]
        pred, ref = (np.isin(volume[box], values) for volume in self._volumes)
        if self._ignore is not None:
            kept = self._volumes[1][box] != self._ignore
            pred, ref = pred & kept, ref & kept
        return pred, ref
