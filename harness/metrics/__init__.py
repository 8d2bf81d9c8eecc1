"""Metrics of a predicted label volume against its reference: overlap and surface distances, with what a miss costs.

The table of metrics is plain data and cheap to import; numpy, scipy and SimpleITK are imported by the first `evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.metrics.table import COUNTS, METRICS, PROFILES, Metric, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.metrics.overlap import Counts

__all__ = ["COUNTS", "METRICS", "PROFILES", "Metric", "Row", "evaluate"]


def evaluate(
    pred: NDArray[np.integer[Any]],
    ref: NDArray[np.integer[Any]],
    spacing: Sequence[float] | None,
    labels: Mapping[str, int],
    *,
    metrics: Iterable[str] = ("dice", "hd95", "asd", "assd"),
    profile: str = "voxel-max",
    ignore: int | None = None,
) -> list[Row]:
    """Measure every class of one case.

    Dice is 2 TP / (2 TP + FP + FN). Distances are between the centres of surface voxels (`harness.metrics.surface`):
    `hd95` is the larger of the two directed 95th percentiles, `asd` the mean from the prediction to the reference,
    `assd` the mean over the surface voxels of both.

    | masks of the class | dice | distances | status |
    |---|---|---|---|
    | both present | value | value | ok |
    | prediction or reference empty | 0.0 | None | pred_empty, ref_empty |
    | both empty | None | None | both_empty |

    `worst` is 0 for dice, tp and tn, the number of compared voxels for fp and fn, and for distances the diagonal of the
    image: the Euclidean norm of (number of voxels * spacing) over the axes, from outer corner to outer corner, which is
    more than any distance between two voxel centres.

    Args:
        pred: Predicted labels, integers, shape (z, y, x) or (y, x). In a 3D volume of one slice every voxel is on a
            surface; pass (y, x) for contours in the plane.
        ref: Reference labels of the same shape.
        spacing: Size of a voxel in mm, in array order; None where it is unknown, and distances are then in voxels.
        labels: Class name → label value. Background is 0; it is measured only if a class has that value.
        metrics: Keys of `METRICS`. The counts tp, fp, fn and tn are always returned.
        profile: Key of `PROFILES`: `voxel-max` is HD95 as in MONAI and Metrics Reloaded.
        ignore: Reference label whose voxels are left out of both masks and out of the counts. In a prediction this
            value is allowed and stands for no class.

    Returns:
        For each class in the order of `labels`: the metrics in the order asked for, then the counts.

    Raises:
        BenchError: Shapes differ or are not 2D or 3D; labels are not integers, are negative or are not in `labels`; the
            spacing is not positive or not one number per axis; a metric or the profile is unknown.
    """
    import numpy as np

    from harness.metrics import checks, overlap

    names = checks.check_names(metrics, profile)
    known = checks.check_labels(labels, ignore)
    pred, ref = checks.check_volume(pred, "prediction"), checks.check_volume(ref, "reference")
    checks.check_shapes(pred, ref)
    sides = checks.check_spacing(spacing, pred.ndim)
    top = max(*known.values(), ignore or 0)
    for volume, what in ((pred, "prediction"), (ref, "reference")):
        if (high := int(volume.max())) > top:  # before the histograms, which end at `top`
            checks.check_known([high], what, known, ignore)
    histograms = overlap.histograms(pred, ref, top, ignore)
    checks.check_known(np.flatnonzero(histograms.pred_seen).tolist(), "prediction", known, ignore)
    checks.check_known(np.flatnonzero(histograms.ref_seen).tolist(), "reference", known, ignore)

    counts = {name: histograms.counts(label) for name, label in known.items()}
    wanted = [name for name in names if METRICS[name].unit_kind == "distance"]
    distances = _distances(pred, ref, sides, known, counts, wanted, profile, ignore)
    bounds = {
        "diagonal": float(np.linalg.norm(np.multiply(pred.shape, sides or 1.0))),
        "voxels": float(histograms.compared),
    }
    units = {"fraction": "1", "distance": "voxel" if sides is None else "mm", "count": "voxels"}
    rows: list[Row] = []
    for name, count in counts.items():
        values: dict[str, float | None] = {"dice": count.dice, **{c: float(getattr(count, c)) for c in COUNTS}}
        values |= distances[name]
        for key in dict.fromkeys((*names, *COUNTS)):
            metric = METRICS[key]
            worst = bounds[metric.worst] if isinstance(metric.worst, str) else metric.worst
            rows.append(Row(name, key, profile, units[metric.unit_kind], values[key], worst, count.status))
    return rows


def _distances(
    pred: NDArray[np.integer[Any]],
    ref: NDArray[np.integer[Any]],
    spacing: tuple[float, ...] | None,
    labels: Mapping[str, int],
    counts: Mapping[str, Counts],
    wanted: Sequence[str],
    profile: str,
    ignore: int | None,
) -> dict[str, dict[str, float | None]]:
    """Return the wanted distance metrics of every class; None where a mask is empty."""
    values: dict[str, dict[str, float | None]] = {name: dict.fromkeys(wanted) for name in labels}
    measurable = {name: label for name, label in labels.items() if wanted and counts[name].status == "ok"}
    if not measurable:
        return values

    from harness.metrics import surface

    sides = spacing or (1.0,) * pred.ndim
    reductions = surface.REDUCTIONS[profile]
    pred_boxes = surface.boxes(pred, list(measurable.values()))
    ref_boxes = surface.boxes(ref, list(measurable.values()))
    for name, label in measurable.items():
        both = surface.surface_distances(pred, ref, label, (pred_boxes[label], ref_boxes[label]), sides, ignore)
        values[name] = {metric: reductions[metric](both) for metric in wanted}
    return values
