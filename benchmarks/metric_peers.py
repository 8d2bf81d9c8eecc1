"""The phantom and the contenders of `benchmarks/metrics.py`, and the process in which one of them is measured.

`python metric_peers.py NAME FOLDER` loads the pairs in FOLDER, lets NAME warm up and then obeys the lines it reads:
`time FORM` or `peak FORM`; one line of JSON answers each. Only what NAME needs is imported.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.uint8]
Values = dict[str, list[float]]  # quantity → one value per organ
FloatArray = NDArray[np.float64]
Spacing = tuple[float, float, float]
Call = Callable[[Volume, Volume, Spacing], Values]

BODY = (360.0, 409.6, 409.6)  # mm, in (z, y, x) as all here
ORGANS = {  # centre and half-axes in mm
    "liver": ((200, 190, 135), (65, 90, 74)),
    "stomach": ((215, 150, 285), (42, 40, 55)),
    "spleen": ((215, 270, 330), (45, 42, 29)),
    "left kidney": ((130, 300, 285), (50, 27, 27)),
    "right kidney": ((95, 300, 135), (50, 27, 27)),
    "aorta": ((180, 300, 212), (150, 12.4, 12.4)),
    "pancreas": ((140, 205, 255), (17, 18, 60)),
    "gallbladder": ((95, 130, 150), (25, 16, 17)),
}
LABELS = {name: label for label, name in enumerate(ORGANS, 1)}
FORMS = ("clean", "fp")
QUANTITIES = ("dice", "hd95", "asd")


@dataclass(frozen=True)
class Contender:
    """One way to compute DSC, HD95 and ASD of the eight organs.

    `hd95` and `asd` name the profile and metric of ours that mean the same, or nearly so with a `~` in front.
    """

    about: str
    hd95: str
    asd: str
    load: Callable[[], Call]
    slow: bool = False
    package: str = ""


def phantom(shape: Sequence[int], seed: int) -> tuple[dict[str, Volume], Spacing]:
    """Eight organs: `ref`, the prediction `clean`, and `fp`, the same with two far islands of each organ.

    Each is an ellipsoid whose surface a few waves bend by some 7 % of its radius. The prediction is moved by 2 mm,
    scaled by 0.95 to 1.03 and bent by 5 % more; the islands are balls of 4 to 7 mm. An organ never overwrites another.

    Args:
        shape: Voxels in (z, y, x); the body has the same size in mm whatever the shape.
        seed: The same seed gives the same volumes.

    Returns:
        The volumes by name, and the size of a voxel in mm.
    """
    chance = np.random.default_rng(seed)
    depth, height, width = (side / n for side, n in zip(BODY, shape, strict=True))
    spacing = (depth, height, width)
    ref, clean = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for label, (middle, sides) in enumerate(ORGANS.values(), 1):
        centre, axes = np.array(middle, float), np.array(sides, float)
        own, more = waves(chance, 0.07), waves(chance, 0.05)
        step = chance.normal(size=3)
        paint(ref, spacing, label, centre, axes, [own])
        moved = centre + 2.0 * step / np.linalg.norm(step)
        paint(clean, spacing, label, moved, axes * chance.uniform(0.95, 1.03), [own, more])
    fp = clean.copy()
    for label, (middle, sides) in enumerate(ORGANS.values(), 1):
        for _ in range(2):
            island(fp, ref, spacing, label, np.array(middle, float), max(sides), chance)
    return {"ref": ref, "clean": clean, "fp": fp}, spacing


def waves(chance: np.random.Generator, size: float) -> tuple[float, FloatArray, FloatArray]:
    """Random plane waves of 40 to 100 mm: amplitude, wave vectors (24, 3) and phases (24,)."""
    towards = chance.normal(size=(24, 3))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    vectors = 2 * np.pi * towards / chance.uniform(40, 100, (24, 1))
    return size * np.sqrt(2 / 24), vectors, chance.uniform(0, 2 * np.pi, 24)


def paint(
    volume: Volume, spacing: Spacing, label: int, centre: FloatArray, axes: FloatArray, bends: Sequence[Any]
) -> None:
    """Set the background voxels in a bent ellipsoid to the label."""
    box, grids = [], []
    for c, a, s, n in zip(centre, 1.4 * axes, spacing, volume.shape, strict=True):
        box.append(slice(max(0, int((c - a) / s)), min(n, int((c + a) / s) + 2)))
        grids.append((np.arange(box[-1].start, box[-1].stop) + 0.5) * s)
    z, y, x = ((g - c) / a for g, c, a in zip(grids, centre, axes, strict=True))
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    for size, vectors, phases in bends:
        z, y, x = (np.exp(1j * np.outer(v, g)) for v, g in zip(vectors.T, grids, strict=True))
        plane = np.exp(1j * phases)[:, None, None] * z[:, :, None] * y[:, None, :]  # (waves, z, y)
        radius -= size * (plane.reshape(len(phases), -1).T @ x).real.reshape(radius.shape)
    part = volume[tuple(box)]
    part[(radius <= 1) & (part == 0)] = label


def island(
    fp: Volume, ref: Volume, spacing: Spacing, label: int, centre: FloatArray, reach: float, chance: np.random.Generator
) -> None:
    """Draw a ball of the label in the background of both, 60 to 160 mm further from its organ's centre than `reach`."""
    while True:
        at, radius = chance.uniform(15, np.array(BODY) - 15), chance.uniform(4, 7)
        box = tuple(slice(int((c - radius) / s), int((c + radius) / s) + 2) for c, s in zip(at, spacing, strict=True))
        away = float(np.linalg.norm(at - centre)) - reach
        if 60 <= away <= 160 and not fp[box].any() and not ref[box].any():
            break
    grids = (((g + 0.5) * s - c) ** 2 for g, s, c in zip(np.ogrid[box], spacing, at, strict=True))
    fp[box][sum(grids) <= radius**2] = label


def ours(engine: str) -> Call:
    from harness.metrics import evaluate

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        rows = evaluate(pred, ref, spacing, LABELS, "voxel-max", metrics=QUANTITIES, engine=engine)
        return {q: [float(row.value) for row in rows if row.metric == q] for q in QUANTITIES}

    return call


def reference() -> Call:
    """Ours under every definition that a contender has; never timed."""
    from harness.metrics import evaluate

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        profiles, metrics = ["voxel-max", "voxel-pooled", "area"], ["dice", "hd95", "asd", "assd", "masd"]
        rows = evaluate(pred, ref, spacing, LABELS, profiles, metrics=metrics, engine="points")
        values: Values = {}
        for row in rows:
            key = "dice" if row.metric == "dice" else f"{row.profile}/{row.metric}"
            values.setdefault(key, []).append(float("nan") if row.value is None else float(row.value))
        return values

    return call


def exacta() -> Call:
    import torch
    from exacta.functional import evaluate

    torch.set_num_threads(1)

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        found = evaluate(
            torch.from_numpy(pred)[None],
            torch.from_numpy(ref)[None],
            metrics=["dice", "hd95", "assd"],
            spacing=spacing,
            input_format="index",
            num_classes=len(LABELS) + 1,
            include_background=False,
        )
        return {q: found[key][0].tolist() for q, key in zip(QUANTITIES, ("dice", "hd95", "assd"), strict=True)}

    return call


def surface_distance() -> Call:
    import surface_distance.metrics as tool

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        values: Values = {q: [] for q in QUANTITIES}
        for label in LABELS.values():
            p, r = pred == label, ref == label
            distances = tool.compute_surface_distances(r, p, spacing)
            values["dice"].append(float(tool.compute_dice_coefficient(r, p)))
            values["hd95"].append(float(tool.compute_robust_hausdorff(distances, 95)))
            values["asd"].append(float(tool.compute_average_surface_distance(distances)[1]))
        return values

    return call


def monai() -> Call:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
    from monai.networks import one_hot

    torch.set_num_threads(1)
    size = len(LABELS) + 1

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        p, r = (one_hot(torch.from_numpy(volume)[None, None], size) for volume in (pred, ref))
        return {
            "dice": compute_dice(p, r, include_background=False)[0].tolist(),
            "hd95": compute_hausdorff_distance(p, r, percentile=95, spacing=spacing)[0].tolist(),
            "asd": compute_average_surface_distance(p, r, spacing=spacing)[0].tolist(),
        }

    return call


def medpy(cropped: bool) -> Call:
    from medpy.metric import binary

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        values: Values = {q: [] for q in QUANTITIES}
        for p, r in pairs(pred, ref, cropped):
            values["dice"].append(float(binary.dc(p, r)))
            values["hd95"].append(float(binary.hd95(p, r, voxelspacing=spacing)))
            values["asd"].append(float(binary.asd(p, r, voxelspacing=spacing)))
        return values

    return call


def recipe(cropped: bool) -> Call:
    """SimpleITK's segmentation evaluation notebook: contours asked for the signed map of the mask itself."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def directed(contour: Any, other: Any) -> NDArray[np.float32]:
        field = sitk.Abs(sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True))
        return sitk.GetArrayViewFromImage(field)[sitk.GetArrayViewFromImage(contour) > 0]

    def call(pred: Volume, ref: Volume, spacing: Spacing) -> Values:
        values: Values = {q: [] for q in QUANTITIES}
        for arrays in pairs(pred, ref, cropped):
            p, r = (sitk.GetImageFromArray(a.view(np.uint8)) for a in arrays)
            p.SetSpacing(spacing[::-1])
            r.SetSpacing(spacing[::-1])
            overlap = sitk.LabelOverlapMeasuresImageFilter()
            overlap.Execute(r, p)
            both = np.concatenate([directed(sitk.LabelContour(a), b) for a, b in ((p, r), (r, p))])
            values["dice"].append(overlap.GetDiceCoefficient())
            values["hd95"].append(float(np.percentile(both, 95)))
            values["asd"].append(float(both.mean(dtype=np.float64)))
        return values

    return call


def pairs(pred: Volume, ref: Volume, cropped: bool) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The two masks of each organ, whole or in the box of their union with a margin of one voxel."""
    if not cropped:
        yield from ((pred == label, ref == label) for label in LABELS.values())
        return
    from scipy.ndimage import find_objects

    found = [find_objects(volume, max_label=len(LABELS)) for volume in (pred, ref)]
    for label in LABELS.values():
        both = zip(found[0][label - 1], found[1][label - 1], strict=True)
        box = tuple(slice(max(0, min(a.start, b.start) - 1), max(a.stop, b.stop) + 1) for a, b in both)
        yield pred[box] == label, ref[box] == label


MAX, POOLED, AREA = "voxel-max/hd95", "voxel-pooled/hd95", "area/hd95"
V_ASD = "voxel-max/asd"
CONTENDERS = {
    "points": Contender("voxels: max, asd", MAX, V_ASD, partial(ours, "points")),
    "points-numba": Contender("voxels: max, asd", MAX, V_ASD, partial(ours, "points-numba"), package="numba"),
    "simpleitk": Contender("voxels: max, asd", MAX, V_ASD, partial(ours, "simpleitk"), package="simpleitk"),
    "exacta": Contender("voxels: max, assd", MAX, "voxel-max/assd", exacta, package="exacta"),
    "surface-distance": Contender("area: max, asd", AREA, "area/asd", surface_distance, package="surface-distance"),
    "medpy-cropped": Contender("voxels: pooled, asd", POOLED, V_ASD, partial(medpy, True), package="medpy"),
    "recipe-cropped": Contender(
        "mixed: pooled, assd", f"~{POOLED}", "~voxel-pooled/assd", partial(recipe, True), package="simpleitk"
    ),
    "monai": Contender("voxels: max, asd", MAX, V_ASD, monai, slow=True, package="monai"),
    "recipe": Contender(
        "mixed: pooled, assd",
        f"~{POOLED}",
        "~voxel-pooled/assd",
        partial(recipe, False),
        slow=True,
        package="simpleitk",
    ),
    "medpy": Contender("voxels: pooled, asd", POOLED, V_ASD, partial(medpy, False), slow=True, package="medpy"),
}


def serve(name: str, folder: Path) -> None:
    """Answer commands until the input ends; what libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    spacing = tuple(json.loads((folder / "facts.json").read_text())["spacing"])
    ref = np.load(folder / "ref.npy")
    preds = {form: np.load(folder / f"{form}.npy") for form in FORMS}
    load = reference if name == "reference" else CONTENDERS[name].load
    try:
        call = load()
        thin = tuple(slice(None, None, max(1, n // 48)) for n in ref.shape)
        wide = tuple(s * max(1, n // 48) for s, n in zip(spacing, ref.shape, strict=True))
        for pred in preds.values():  # imports, compilation: on a coarse copy that has all organs
            call(np.ascontiguousarray(pred[thin]), np.ascontiguousarray(ref[thin]), wide)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0][:200]}"}), file=answers)
        return
    print(json.dumps({"ready": name}), file=answers)
    for line in sys.stdin:
        what, form = line.split()
        measure = peaked if what == "peak" else timed
        print(json.dumps(measure(lambda form=form: call(preds[form], ref, spacing))), file=answers)


def timed(run: Callable[[], Values]) -> dict[str, Any]:
    """CPU seconds of all threads, wall seconds, and the values."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    values = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "values": values}


def peaked(run: Callable[[], Values]) -> dict[str, Any]:
    """The most memory (MB) that the process held above what it held before: inputs and libraries."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else a peak could hide in what the warm-up left behind
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    run()
    return {"peak_mb": (_status("VmHWM") - before) / 1e6}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}; this benchmark needs Linux.")


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
