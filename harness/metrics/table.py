"""The metrics as data: names, bounds, units, profiles, engines and the row of a result. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.errors import BenchError
from harness.yamlfile import nearest

UnitKind = Literal["fraction", "distance", "volume", "count", "loss"]
Bound = float | Literal["diagonal", "image", "voxels"]
Status = Literal["ok", "both_empty", "pred_empty", "ref_empty"]


@dataclass(frozen=True)
class Metric:
    """What a metric is, apart from how it is computed.

    Attributes:
        name: Key in suites and in cases.csv; one with a parameter is written `nsd@2`.
        title: As written in tables.
        about: One line for `bench list metrics`.
        best: Bound on the good side.
        worst: Bound on the bad side. A bound is a number, `"diagonal"` (of the image, see `evaluate`), `"image"` (the
            volume of the image) or `"voxels"` (the number of compared voxels of the image).
        higher_is_better: Direction of the order.
        unit_kind: `fraction` (unit "1"), `distance` ("mm", or "voxel" where the spacing is unknown), `volume` ("mm3",
            "mm2", "voxel3" or "voxel2"), `count` ("voxels") or `loss` (none).
        scope: `case`, `dataset` for a metric that is made from the counts of all cases of a run, or `network` for one
            that takes the network's logits: only a cell has those.
        parameter: What stands behind the @, and whether it may be left away.
        dims: Numbers of axes that it is defined for.
        not_applicable: Statuses for which it has no meaning: left out of means, and counted.
    """

    name: str
    title: str
    about: str
    best: Bound
    worst: Bound
    higher_is_better: bool
    unit_kind: UnitKind
    scope: Literal["case", "dataset", "network"] = "case"
    parameter: Literal["none", "optional", "required"] = "none"
    dims: tuple[int, ...] = (2, 3)
    not_applicable: frozenset[Status] = frozenset({"both_empty"})


def _fraction(name: str, title: str, about: str) -> Metric:
    return Metric(name, title, about, 1.0, 0.0, True, "fraction")


def _distance(name: str, title: str, about: str) -> Metric:
    return Metric(name, title, about, 0.0, "diagonal", False, "distance")


_NO_REFERENCE: frozenset[Status] = frozenset({"both_empty", "ref_empty"})
_NO_PREDICTION: frozenset[Status] = frozenset({"both_empty", "pred_empty"})

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        _fraction("dice", "DSC", "2 TP / (2 TP + FP + FN)"),
        _fraction("iou", "IoU", "TP / (TP + FP + FN)"),
        Metric(
            "sensitivity", "Sensitivity", "TP / (TP + FN)", 1.0, 0.0, True, "fraction", not_applicable=_NO_REFERENCE
        ),
        _fraction("specificity", "Specificity", "TN / (TN + FP)"),
        Metric("precision", "Precision", "TP / (TP + FP)", 1.0, 0.0, True, "fraction", not_applicable=_NO_PREDICTION),
        Metric(
            "volume_difference", "AVD", "volume of prediction and reference, absolute difference",
            0.0, "image", False, "volume",
        ),
        _distance("hd", "HD", "largest surface distance, of both directions"),
        _distance("hd95", "HD95", "95th percentile of the surface distances; how, says the profile"),
        _distance("asd", "ASD", "mean distance from the prediction's surface to the reference's"),
        _distance("asd_reverse", "ASD reverse", "mean distance from the reference's surface to the prediction's"),
        _distance("assd", "ASSD", "mean over the surface elements of both, of the distance to the other"),
        _distance("masd", "MASD", "mean of the two directed means"),
        Metric(
            "nsd", "NSD", "share of both surfaces within a tolerance of the other: nsd@2 (mm)",
            1.0, 0.0, True, "fraction", parameter="required",
        ),
        Metric(
            "boundary_iou", "Boundary IoU", "IoU of the bands within d pixels of the contours; 2D: boundary_iou or @d",
            1.0, 0.0, True, "fraction", parameter="optional", dims=(2,),
        ),
        Metric(
            "miou", "mIoU", "IoU of the counts summed over all cases, mean over classes",
            1.0, 0.0, True, "fraction", scope="dataset",
        ),
        Metric("tp", "TP", "voxels in both", "voxels", 0.0, True, "count"),
        Metric("fp", "FP", "voxels in the prediction only", 0.0, "voxels", False, "count"),
        Metric("fn", "FN", "voxels in the reference only", 0.0, "voxels", False, "count"),
        Metric("tn", "TN", "voxels in neither", "voxels", 0.0, True, "count"),
    )
}  # fmt: skip
# Names of other papers and libraries, where they are not the titles: for "did you mean".
ALSO_CALLED: dict[str, str] = {m.title: m.name for m in METRICS.values()} | {
    "f1": "dice",
    "f score": "dice",
    "jaccard": "iou",
    "mean iou": "miou",
    "recall": "sensitivity",
    "tpr": "sensitivity",
    "tnr": "specificity",
    "ppv": "precision",
    "hausdorff": "hd",
    "hausdorff95": "hd95",
    "95hd": "hd95",
    "surface dice": "nsd",
    "biou": "boundary_iou",
}
COUNTS: tuple[str, ...] = tuple(m.name for m in METRICS.values() if m.unit_kind == "count")
LOSS = "loss:"
"""Begins the name of a family of metrics: `loss:focal` is the value of that loss on a network's logits."""
EVERY_LOSS = f"{LOSS}*"
"""In a suite: each of its losses."""
SURFACE_METRICS = ("hd", "hd95", "asd", "asd_reverse", "assd", "masd", "nsd")
"""Made of surface distances, so a profile says how."""


@dataclass(frozen=True)
class Profile:
    """How surfaces, percentiles and empty masks are defined.

    Attributes:
        name: Key; stands in every row.
        about: Whose definition it is.
        offers: Metrics that this profile has; the overlap metrics of the first three are the same numbers.
        own_empties: Whether the numbers for empty masks are the tool's own, which no policy replaces.
    """

    name: str
    about: str
    offers: frozenset[str]
    own_empties: bool = False


_EVERY = frozenset(METRICS)
PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("voxel-max", "MONAI, Metrics Reloaded: edge voxels, HD95 the larger of the two directed", _EVERY),
        Profile("voxel-pooled", "medpy: edge voxels, HD95 of both directions pooled", _EVERY),
        Profile("area", "surface-distance: surface elements weighted by their area, HD95 the larger directed", _EVERY),
        Profile(
            "transunet", "TransUNet's code: medpy in voxels, with its own empty masks",
            frozenset({"dice", "hd95"}), own_empties=True,
        ),
        Profile(
            "mist2023", "MIST in February 2023: HD95 over all voxels of the masks",
            frozenset({"dice", "hd95", "asd"}), own_empties=True,
        ),
    )
}  # fmt: skip

ENGINES: dict[str, str] = {
    "simpleitk": "SimpleITK's SignedMaurerDistanceMap of the edge image (float32)",
    "points": "nearest surface voxel by offsets and a k-d tree, numpy and scipy (float64)",
    "points-numba": "nearest surface voxel in a bit map, compiled; needs numba (float64)",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One number: a metric of one class of one case.

    Attributes:
        class_name: Name of the class or region, as in `labels`.
        metric: Key of `METRICS`, with its parameter: `nsd@2`.
        profile: How surfaces, percentiles and empty masks are defined; a key of `PROFILES`.
        unit: "1", "mm" or "voxel" (distances), "mm3" or "voxel3" (volumes; 2 in the plane), "voxels" (counts).
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


def metric_of(name: str) -> tuple[Metric, float | None]:
    """The metric of a name as written in a suite, and its parameter.

    Args:
        name: `hd95`, `nsd@2`, `boundary_iou@5`; `loss:` and the name of a loss, which is not looked up here.

    Raises:
        BenchError: The metric is unknown, or its parameter is missing, needless or not a positive number.
    """
    if name.startswith(LOSS):
        return _loss_value(name.removeprefix(LOSS).strip()), None
    base, at, text = name.partition("@")
    if base not in METRICS:
        raise BenchError(f"unknown metric {name!r}{nearest(base, METRICS, ALSO_CALLED)}; known: {', '.join(METRICS)}.")
    metric = METRICS[base]
    if not at:
        if metric.parameter == "required":
            raise BenchError(f"metric {name!r} needs a tolerance in the unit of the distances; write {base}@2.")
        return metric, None
    if metric.parameter == "none":
        raise BenchError(f"metric {name!r}: {base} takes no parameter; write {base}.")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = base != "boundary_iou" or value == int(value) if math.isfinite(value) else False
    least = 0.0 if base == "nsd" else 1.0
    if not (whole and value >= least):
        wanted = "a distance of 0 or more" if base == "nsd" else "a whole number of pixels from 1 up"
        raise BenchError(f"metric {name!r} has the parameter {text!r}, expected {wanted}; write {base}@2.")
    return metric, value


def _loss_value(loss: str) -> Metric:
    """The member of the family `loss:` that a loss is."""
    if not loss:
        raise BenchError(f"metric {LOSS!r} needs the name of a loss; write {LOSS}dice, or {EVERY_LOSS} in a suite.")
    return Metric(
        f"{LOSS}{loss}", f"Loss {loss}", "value of that loss on the logits of a trained network",
        -math.inf, math.inf, False, "loss", scope="network", not_applicable=frozenset(),
    )  # fmt: skip


def canonical(name: str) -> str:
    """The one spelling of a metric's name: `nsd@2.0` is `nsd@2`.

    Raises:
        BenchError: As `metric_of`.
    """
    metric, value = metric_of(name)
    return metric.name if value is None else f"{metric.name}@{value:.12g}"


def title_of(name: str, unit: str = "mm") -> str:
    """A metric as headings write it: `NSD (2 mm)`."""
    metric, value = metric_of(name)
    if value is None:
        return metric.title
    return f"{metric.title} ({value:.12g} {'px' if metric.name == 'boundary_iou' else unit})"


def check_profiles(profile: str | Iterable[str]) -> tuple[str, ...]:
    """The profiles asked for, each once, in order.

    Raises:
        BenchError: There is none, or one is unknown.
    """
    names = (profile,) if isinstance(profile, str) else tuple(dict.fromkeys(profile))
    for name in names:
        if name not in PROFILES:
            raise BenchError(f"unknown profile {name!r}{nearest(name, PROFILES)}; known: {', '.join(PROFILES)}.")
    if not names:
        raise BenchError(f"no profile was asked for; known: {', '.join(PROFILES)}.")
    return names


def check_metrics(metrics: Iterable[str], profiles: Iterable[str]) -> tuple[str, ...]:
    """The metrics asked for, each once, in order and in canonical spelling.

    Raises:
        BenchError: One is unknown, or none of the profiles has it.
    """
    if isinstance(metrics, str):
        raise BenchError(f"metrics is the string {metrics!r}, expected a list of names; write [{metrics!r}].")
    names = tuple(dict.fromkeys(canonical(name) for name in metrics))
    asked = list(profiles)
    for name in names:
        base = metric_of(name)[0].name
        if base.startswith(LOSS):
            raise BenchError(
                f"metric {name!r} takes the logits of a network, which only `bench run` has: write it into `metrics` "
                "of a suite, and leave it away here."
            )
        if base not in COUNTS and not any(base in PROFILES[p].offers for p in asked):
            offers = "; ".join(f"{p} has {', '.join(sorted(PROFILES[p].offers))}" for p in asked)
            raise BenchError(f"metric {name!r} is in none of the profiles asked for: {offers}.")
    return names
