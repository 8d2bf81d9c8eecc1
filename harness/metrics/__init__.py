"""Metrics of a predicted label volume against its reference: overlap and surface distances, with what a miss costs.

The table of metrics is plain data and cheap to import; numpy, scipy and SimpleITK are imported by the first `evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.metrics.table import COUNTS, ENGINES, METRICS, PROFILES, Metric, Row, check_metrics, check_profiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["COUNTS", "ENGINES", "METRICS", "PROFILES", "Metric", "Row", "evaluate"]


def evaluate(
    pred: NDArray[np.integer[Any]],
    ref: NDArray[np.integer[Any]],
    spacing: Sequence[float] | None,
    labels: Mapping[str, int | Sequence[int]],
    profile: str | Sequence[str] = "voxel-max",
    *,
    metrics: Iterable[str] = ("dice", "hd95", "asd", "assd"),
    engine: str = "simpleitk",
    ignore: int | None = None,
) -> list[Row]:
    """Measure every class of one case.

    One pass over the two volumes gives the counts and the surface voxels of all classes; each class is then measured
    from those. What the metrics mean, `METRICS` says in a line each, and docs/metrics.md in full.

    | masks of the class | dice, iou | distances, nsd | status |
    |---|---|---|---|
    | both present | value | value | ok |
    | prediction or reference empty | 0.0 | None | pred_empty, ref_empty |
    | both empty | None | None | both_empty |

    Rows are raw: None is a quotient of 0 / 0 or a distance to nothing, and a policy for empty masks is the business of
    whoever makes a mean. `worst` is what a miss costs under the default policy: for distances the diagonal of the
    image, which is the Euclidean norm of (number of voxels * spacing) over the axes, from outer corner to outer corner.
    The profiles `transunet` and `mist2023` have numbers of their own for empty masks, those of the code that they
    stand for.

    Args:
        pred: Predicted labels, integers, shape (z, y, x) or (y, x). In a 3D volume of one slice every voxel is on a
            surface; pass (y, x) for contours in the plane. Any other order of the axes will do, if the spacing has it.
        ref: Reference labels of the same shape.
        spacing: Size of a voxel in mm, in array order; None where it is unknown, and distances are then in voxels.
        labels: Class name → label value, or → several values for a region, which is their union; regions may overlap.
            Background is 0; it is measured only if a class has that value.
        profile: Key of `PROFILES`, or several.
        metrics: Keys of `METRICS`; NSD with its tolerance, `nsd@2`. The counts tp, fp, fn and tn are always returned.
        engine: Key of `ENGINES`.
        ignore: Reference label whose voxels are left out of both masks and out of the counts. In a prediction this
            value is allowed and stands for no class.

    Returns:
        For each class in the order of `labels`: for each profile its metrics in the order asked for, then the counts.
        Overlap metrics are the same in `voxel-max`, `voxel-pooled` and `area`, and stand once, under the first of them.

    Raises:
        BenchError: Shapes differ or are not 2D or 3D; labels are not integers, are negative or are not in `labels`; the
            spacing is not positive or not one number per axis; a metric, a profile or the engine is unknown, or a
            metric is in none of the profiles.
    """
    from harness.metrics import checks
    from harness.metrics.case import Case
    from harness.metrics.engines import tools_of

    profiles = check_profiles(profile)
    names = check_metrics(metrics, profiles)
    tools = tools_of(engine)
    known = checks.check_labels(labels, ignore)
    pred, ref = checks.check_volume(pred, "prediction"), checks.check_volume(ref, "reference")
    checks.check_shapes(pred, ref)
    checks.check_dims(names, profiles, pred.shape)
    sides = checks.check_spacing(spacing, pred.ndim)
    for volume, what in ((pred, "prediction"), (ref, "reference")):
        checks.check_range(volume, what, known, ignore)
    case = Case(pred, ref, sides, known, ignore, profiles, names, tools)
    checks.check_known(int(case.scan.joint[-1].sum()), pred, "prediction", known, ignore)
    checks.check_known(int(case.scan.joint[:, -1].sum()), ref, "reference", known, ignore)
    return [row for number in range(len(known)) for row in case.rows(number)]
