"""The metrics as data: names, bounds, units, profiles and the row of a result. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["fraction", "distance", "count"]
Bound = float | Literal["diagonal", "voxels"]
Status = Literal["ok", "both_empty", "pred_empty", "ref_empty"]


@dataclass(frozen=True)
class Metric:
    """What a metric is, apart from how it is computed.

    Attributes:
        name: Key in suites and in cases.csv.
        title: As written in tables.
        best: Bound on the good side.
        worst: Bound on the bad side. A bound is a number, `"diagonal"` (of the image, see `evaluate`) or `"voxels"`
            (the number of compared voxels of the image).
        higher_is_better: Direction of the order.
        unit_kind: `fraction` (unit "1"), `distance` (unit "mm", or "voxel" where the spacing is unknown) or `count`
            (unit "voxels").
    """

    name: str
    title: str
    best: Bound
    worst: Bound
    higher_is_better: bool
    unit_kind: UnitKind


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("dice", "DSC", 1.0, 0.0, True, "fraction"),
        Metric("hd95", "HD95", 0.0, "diagonal", False, "distance"),
        Metric("asd", "ASD", 0.0, "diagonal", False, "distance"),
        Metric("assd", "ASSD", 0.0, "diagonal", False, "distance"),
        Metric("tp", "TP", "voxels", 0.0, True, "count"),
        Metric("fp", "FP", 0.0, "voxels", False, "count"),
        Metric("fn", "FN", 0.0, "voxels", False, "count"),
        Metric("tn", "TN", "voxels", 0.0, True, "count"),
    )
}
COUNTS: tuple[str, ...] = tuple(m.name for m in METRICS.values() if m.unit_kind == "count")
PROFILES: tuple[str, ...] = ("voxel-max",)


@dataclass(frozen=True, slots=True)
class Row:
    """One number: a metric of one class of one case.

    Attributes:
        class_name: Name of the class, as in `labels`.
        metric: Key of `METRICS`.
        profile: How surfaces and percentiles are defined; one of `PROFILES`.
        unit: "1", "mm", "voxel" (distances where the spacing is unknown) or "voxels" (counts).
        value: The number, or None where it does not exist (never NaN or infinite).
        worst: What a miss costs: the metric's bad bound for this image.
        status: Which of the two masks of the class are empty.
    """

    class_name: str
    metric: str
    profile: str
    unit: str
    value: float | None
    worst: float
    status: Status
