"""Qualitative panels of a report: which cases and slices are shown, by rule, and what is read for them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.cell import Place
from harness.data.layouts import reader_of
from harness.data.manifest import Manifest
from harness.data.phantoms import data_root
from harness.errors import BenchError
from harness.plan import Entry
from harness.suite import Suite

if TYPE_CHECKING:
    import pandas as pd

    from harness.report import Panel

# From easier to harder: places in the order of the cases by their mean Dice.
PICKS = ((1.0, "highest Dice"), (2 / 3, "upper third"), (1 / 3, "lower third"), (0.0, "lowest Dice"))
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue


def panels(
    suite: Suite, entries: Sequence[Entry], place: Place, cases: pd.DataFrame, *, images: bool = False
) -> tuple[list[Panel], list[str]]:
    """Qualitative panels of each data set, from easier to harder cases chosen by rule, see `chosen`.

    The first seed's predictions of the first model are shown, on the slice with the most labelled voxels. Image voxels
    are shown where the manifest allows it, of phantoms, or where the user asks for them.

    Args:
        suite: The suite.
        entries: Its plan.
        place: Where results and data are.
        cases: Rows of all cases.
        images: Show image voxels whatever the manifest says.

    Returns:
        The panels, and a note for each data set that has none.
    """
    found: list[Panel] = []
    notes: list[str] = []
    for manifest in suite.manifests.values():
        ours = [e for e in entries if e.cell.data["manifest"] == manifest.name and e.state == "ok" and e.folder]
        ours = [e for e in ours if e.cell.dataset == ours[0].cell.dataset]  # of several settings the first
        if not ours:
            continue
        first = ours[0].cell
        same = (first.model_label, first.seed, first.data["fold"], first.data["view"])
        shown = [e for e in ours if (e.cell.model_label, e.cell.seed, e.cell.data["fold"], e.cell.data["view"]) == same]
        voxels = images or manifest.phantom or manifest.spec.figures == "images"
        try:
            picked = chosen(cases, ours, first.model_label, first.data["test"])
            found += [_panel(manifest, shown, case, why, place, voxels=voxels) for case, why in picked]  # all or none
        except (BenchError, OSError, RuntimeError) as error:
            notes.append(
                f"No qualitative panels of {manifest.name}: its masks or its labels are not at hand ({error})."
            )
    return found, notes


def chosen(cases: pd.DataFrame, entries: Sequence[Entry], model: str, tests: Sequence[str]) -> list[tuple[str, str]]:
    """Up to four of the test cases, from easier to harder, each with what it is: those nearest to `PICKS`.

    In the order of the mean Dice over losses, classes and seeds of one model; what is absent from reference and
    prediction does not count.
    """
    if cases.empty:
        return []
    ours = {e.cell.train_id for e in entries if e.cell.model_label == model}
    dice = cases[(cases["metric"] == "dice") & cases["train_id"].isin(ours)]
    dice = dice[(dice["status"] != "both_empty") & dice["case"].isin(tests)]
    dice = dice[dice["profile"] == dice["profile"].iloc[0]] if len(dice) else dice  # of several profiles the first
    dice = dice.assign(value=dice["value"].fillna(0.0))  # one of the two masks is empty
    means = dice.groupby("case", observed=True)["value"].mean().sort_values(kind="stable")
    picks: dict[int, str] = {}
    for part, why in sorted(PICKS, key=lambda p: p[0] in (0.0, 1.0), reverse=True) if len(means) else ():
        picks.setdefault(round(part * (len(means) - 1)), why)  # of few cases the ends come first
    return [(str(means.index[i]), f"{why} ({100 * means.iloc[i]:.0f} %)") for i, why in sorted(picks.items())[::-1]]


def _panel(manifest: Manifest, entries: Sequence[Entry], case: str, why: str, place: Place, *, voxels: bool) -> Panel:
    import SimpleITK as sitk

    from harness.report import Panel

    volume = reader_of(manifest, data_root(manifest, place.root, place.cache, [case])).read(case)
    view = entries[0].cell.data["view"]
    axis = view["slices"]["axis"] if "slices" in view else 0
    planes = np.moveaxis(volume.label, axis, 0)
    index = int(np.argmax(((planes > 0) & (planes < 255)).sum(axis=(1, 2))))
    predictions = {}
    for entry in entries:
        assert entry.folder is not None
        path = entry.folder / "masks" / f"{case}.nii.gz"
        if not path.is_file():
            raise FileNotFoundError(path.name)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        if mask.shape != volume.label.shape:
            raise BenchError(f"{path} has {mask.shape} voxels, its label {volume.label.shape}")
        predictions[entry.cell.loss_label] = np.moveaxis(mask, axis, 0)[index]
    return Panel(
        case=f"{case}, slice {index}, {why}",
        dataset=entries[0].cell.dataset,
        model=entries[0].cell.model_label,
        image=_grey(manifest, volume.image, axis, index) if voxels else None,
        truth=planes[index],
        predictions=predictions,
        classes={index: name for name, index in manifest.classes.items()},
    )


def _grey(manifest: Manifest, image: NDArray[np.float32], axis: int, index: int) -> NDArray[Any]:
    """One slice of the first modality, in the window of the data set; of a photograph its luminance."""
    if manifest.spec.dimensions == 2 and len(image) == len(LUMINANCE):
        image = np.tensordot(np.array(LUMINANCE, np.float32), image, 1)[None]
    plane: NDArray[Any] = np.moveaxis(image[0], axis, 0)[index]
    window = manifest.spec.intensity.window
    return plane if window is None else np.clip(plane, *window)
