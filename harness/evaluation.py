"""Measuring a network: the test cases into rows and masks, the validation cases into a number per metric."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.cell import ENGINE, PROFILE, Cell, Place
from harness.data.layouts import IGNORE
from harness.data.manifest import Manifest, members_of
from harness.data.prepare import Prepared
from harness.data.stored import fingerprint
from harness.loss_scores import LossScores
from harness.metrics import evaluate
from harness.metrics.means import mean_of as mean_of
from harness.metrics.table import PROFILES, SURFACE_METRICS, metric_of
from harness.predict import predict_case
from harness.records import CASE_COLUMNS, write_rows

if TYPE_CHECKING:
    from harness.cell_cases import Cases


def validator(
    cell: Cell, cases: Cases, manifest: Manifest, device: torch.device
) -> Callable[[torch.nn.Module], dict[str, float]] | None:
    """A function from the network in training to its validation metrics; None without validation cases."""
    if not cell.data["val"]:
        return None
    held = cases.load(cell, manifest, cell.data["val"])
    wanted = [m for m in cell.metrics if metric_of(m)[0].unit_kind not in ("count", "loss")]
    if cell.train["select"] == "last":
        wanted = [m for m in wanted if metric_of(m)[0].name not in SURFACE_METRICS]  # only watched: the cheap ones
    profiles = [p for p in cell.profiles if any(p == _first_profile(cell, m) for m in wanted)] or cell.profiles[:1]

    def validate(model: torch.nn.Module) -> dict[str, float]:
        rows = [row for case in held for row in _score(cell, case, manifest, model, device, wanted, profiles)[1]]
        found = {name: mean_of(rows, name) for name in wanted}
        return {name: value for name, value in found.items() if value is not None}

    return validate


def _first_profile(cell: Cell, metric: str) -> str | None:
    """The profile that a metric is watched and selected under: the first that has it."""
    return next((p for p in cell.profiles if metric_of(metric)[0].name in PROFILES[p].offers), None)


def _score(
    cell: Cell,
    case: Prepared,
    manifest: Manifest,
    model: torch.nn.Module,
    device: torch.device,
    metrics: Sequence[str],
    profiles: Sequence[str],
    losses: LossScores | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    about = cell.labels | {"patient": manifest.patient_of(case.case), "case": case.case}
    values: list[dict[str, Any]] = []
    prediction = predict_case(
        model,
        case,
        cell.data["view"],
        batch=int(cell.train["batch"]),
        device=device,
        precision=cell.train["precision"],
        keep_logits=None if losses is None else lambda logits: values.extend(losses.rows(logits, case, about)),
    )
    regions = cell.data.get("regions")
    scored = score_case(
        prediction,
        case,
        members_of(manifest.classes, regions) if regions else manifest.classes,
        metrics,
        about,
        profiles=profiles,
        engine=cell.engine,
        dimensions=manifest.spec.dimensions,
    )
    return prediction, scored + values


def evaluate_cell(
    cell: Cell,
    place: Place,
    cases: Cases,
    manifest: Manifest,
    model: torch.nn.Module,
    losses: LossScores | None = None,
    folder: Path | None = None,
) -> tuple[float, str, str]:
    """Predict and measure the test cases; writes cases.csv and the masks.

    Args:
        cell: The cell.
        place: Where things are.
        cases: Prepared cases.
        manifest: The data set.
        model: The trained network, on its device.
        losses: What the metrics `loss:NAME` are measured with.
        folder: Where to write; the cell's own by default.

    Returns:
        Seconds it took, the digest of the references, and the SHA-256 of cases.csv.
    """
    began = time.monotonic()
    folder = folder or cell.eval_folder(place.out)
    masks = folder / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    model.eval()
    device = torch.device(place.device)
    rows: list[dict[str, Any]] = []
    tested: list[Prepared] = []
    for name in cell.data["test"]:
        (case,) = cases.load(cell, manifest, [name])
        prediction, scored = _score(cell, case, manifest, model, device, cell.metrics, cell.profiles, losses)
        tested.append(case)
        rows += scored
        _write_mask(masks / f"{name}.nii.gz", prediction, case)
    table = write_rows(folder / "cases.csv", CASE_COLUMNS, rows)
    return time.monotonic() - began, fingerprint(case.reference for case in tested), table


def _write_mask(path: Path, prediction: Any, case: Prepared) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(prediction)
    if case.spacing is not None:
        image.SetSpacing([float(s) for s in reversed(case.spacing)])
    image.SetOrigin(list(case.origin))
    image.SetDirection(list(case.direction))
    part = path.with_name(f".{path.name}")
    try:
        sitk.WriteImage(image, str(part), useCompression=True, compressionLevel=1)
    except RuntimeError as error:
        part.unlink(missing_ok=True)
        reason = (str(error).strip() or "no reason given").splitlines()[-1]
        raise OSError(errno.EIO, f"the mask cannot be written ({reason})", str(path)) from None
    os.replace(part, path)


def score_case(
    prediction: NDArray[np.uint8],
    case: Prepared,
    classes: Mapping[str, int] | Mapping[str, Sequence[int]],
    metrics: Sequence[str],
    about: dict[str, Any],
    *,
    profiles: Sequence[str] = (PROFILE,),
    engine: str = ENGINE,
    dimensions: int = 3,
) -> list[dict[str, Any]]:
    """Measure one case.

    Args:
        prediction: (z, y, x) on the original grid.
        case: Its prepared case, with reference and spacing.
        classes: Class name to index, or region name to indices; what is in no region counts as background.
        metrics: Names of metrics; the counts come besides, and those of the scope `dataset` are made of the counts.
        about: The columns that do not change within the cell, with `patient` and `case`.
        profiles: Profiles to measure under.
        engine: What computes the distances.
        dimensions: 2 for a data set of images: the one slice is measured in its plane.

    Returns:
        One row per class and metric with the columns of `records.CASE_COLUMNS`.

    Raises:
        BenchError: As `harness.metrics.evaluate`.
    """
    reference, spacing = case.reference, case.spacing
    regions = {name: indices for name, indices in classes.items() if not isinstance(indices, int)}
    if regions:
        prediction, reference = _within(prediction, regions), _within(reference, regions)
    if dimensions == 2:
        prediction, reference = prediction[0], reference[0]
        spacing = None if spacing is None else spacing[1:]
    rows = evaluate(
        prediction,
        reference,
        spacing,
        classes,
        profile=list(profiles),
        metrics=[m for m in metrics if metric_of(m)[0].scope == "case"],
        engine=engine,
        ignore=IGNORE,
    )
    return [
        about
        | {
            "class": row.class_name,
            "metric": row.metric,
            "profile": row.profile,
            "unit": row.unit,
            "value": row.value,
            "worst": row.worst,
            "status": row.status,
        }
        for row in rows
    ]


def _within(volume: NDArray[np.uint8], members: Mapping[str, Sequence[int]]) -> NDArray[np.uint8]:
    """The volume with classes that stand in no region as background."""
    kept = np.zeros(256, np.uint8)
    known = [IGNORE, *(index for indices in members.values() for index in indices)]
    kept[known] = known
    return kept[volume]
