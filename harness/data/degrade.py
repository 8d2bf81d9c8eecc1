"""Training labels made worse on purpose: how much a loss loses when annotators err (Azad et al., 2023, section 5.3).

Boundaries that wander, structures drawn too small or too large, left out, exchanged, or not annotated at all: the kinds
of label noise that the field studies (Karimi et al., 2020, Deep learning with noisy labels: exploring techniques and
remedies in medical image analysis; Heller et al., 2018, Imperfect segmentation labels: how much do they matter?; Zhang
et al., 2020, Disentangling human error from ground truth in segmentation of medical images, whose simulated annotators
erode and dilate).

A label is degraded on the network's grid, whole case by whole case: slices of a volume are degraded together. Lengths
are in voxels of that grid or in millimetres. Ignored voxels (255) stay ignored. What is drawn depends on data set,
case, kind of the condition and repeat, and on nothing else: every loss and model sees the same labels, and a resumed
run too. The strength is no part of the seed, so that strengths are compared on the same draws: a case whose structure
is missing at a share of 0.1 misses it at 0.3 as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.conditions import DRAWN, kind_of
from harness.data.layouts import IGNORE
from harness.data.stored import Prepared, Relabelled, Stored
from harness.records import write_atomic
from harness.seeds import seed_of

Label = NDArray[np.uint8]
WHOLE = 255  # a doubt of 1


def degraded(case: Stored, condition: dict[str, Any], dataset: str, repeat: int, classes: int) -> Relabelled:
    """A prepared case with its label degraded; the image, and the reference for scoring, are those of the case.

    The label is kept beside the cached case, keyed by that case's content, the condition and the repeat.

    Args:
        case: The case as `harness.data.prepare.prepare` cached it, with its view.
        condition: In canonical form (`harness.data.conditions`).
        dataset: Name of the data set.
        repeat: The seed of the cell; of no effect on conditions that are not drawn.
        classes: Classes of the data set, without the background.
    """
    kind = kind_of(condition)
    draw = repeat if kind in DRAWN else None
    key = hashlib.sha256(json.dumps([case.path.name, dataset, condition, draw], sort_keys=True).encode()).hexdigest()
    path = case.path.with_name(f"labels-{key[:20]}.npz")
    if not path.is_file():
        base = {"data": dataset, "case": case.case, "kind": kind, "repeat": draw}
        rng = np.random.Generator(np.random.PCG64(seed_of("labels", base)))
        clean = case.label
        label = degrade(clean, condition, sides_of(case), rng, first=1 - case.first_class, classes=classes)
        counted = {"changed": int((label != clean).sum()), "voxels": int(clean.size)}
        _save(path, label=label, meta=np.array(json.dumps(counted)))
    return Relabelled(case, path, condition, classes)


def with_doubt(case: Prepared) -> Prepared:
    """The case with the array `doubt` (uint8, of the label's shape), made where the cache lacks it; see `doubt`."""
    if not isinstance(case, Relabelled) or case.certain:
        return case
    path = case.files["label"].with_name(f"doubt-{case.files['label'].name}")
    if not path.is_file():
        found = doubt(case.label, case.condition, sides_of(case), first=1 - case.first_class, classes=case.classes)
        _save(path, doubt=np.round(found * WHOLE).astype(np.uint8))
    return case.including("doubt", path)


def changed(cases: Sequence[Prepared]) -> dict[str, Any]:
    """How much was changed: cases, cases of which a voxel was changed, and the share of all voxels."""
    counts = [c.counts for c in cases if isinstance(c, Relabelled)]
    voxels = sum(n["voxels"] for n in counts)
    return {
        "cases": len(counts),
        "cases_changed": sum(n["changed"] > 0 for n in counts),
        "voxels_changed": round(sum(n["changed"] for n in counts) / max(voxels, 1), 6),
    }


def sides_of(case: Prepared) -> tuple[float, float, float]:
    """Size of a voxel of the network's grid along the axes of the case's label; ones where it is unknown.

    Of slices, the first axis is that between them.
    """
    if len(case.grid_spacing) == 3:
        return case.grid_spacing[0], case.grid_spacing[1], case.grid_spacing[2]
    axis = int((case.view or {})["slices"]["axis"])
    across = 1.0
    if case.spacing is not None and case.geometry is None:
        across = case.spacing[axis]
    elif case.spacing is not None and case.geometry is not None:
        way = case.geometry
        across = case.spacing[way.axes[axis]] * way.inner[axis] / way.shape[axis]
    return across, case.grid_spacing[0], case.grid_spacing[1]


def degrade(
    label: Label,
    condition: dict[str, Any],
    sides: Sequence[float],
    rng: np.random.Generator,
    *,
    first: int = 1,
    classes: int,
) -> Label:
    """Degrade one label.

    Args:
        label: (z, y, x) uint8, or slices (S, h, w); 255 is ignored.
        condition: In canonical form.
        sides: Size of a voxel along each axis, in mm.
        rng: What is drawn from.
        first: The lowest value that is a class: 1, or 0 where there is no background.
        classes: Classes of the data set, without the background.

    Returns:
        A new array of the same shape.
    """
    kind = kind_of(condition)
    args = condition[kind]
    if kind == "jitter":
        unit = _unit(args, sides)
        return jitter(label, [args["sigma"] / u for u in unit], [args["smooth"] / u for u in unit], rng)
    if kind in ("erode", "dilate"):
        change = erode if kind == "erode" else dilate
        return change(label, args["radius"], _unit(args, sides))
    if kind == "missing":
        return missing(label, args["share"], rng, classes)
    if kind == "swapped":
        return swapped(label, args["share"], rng, first)
    if kind == "partial":
        return partial(label, args["share"], rng, first, args["classes"], args["background"])
    raise ValueError(f"unknown condition {kind!r}")


def jitter(label: Label, sigma: Sequence[float], smooth: Sequence[float], rng: np.random.Generator) -> Label:
    """Displace boundaries by a smooth random field: label'(x) = label(x + u(x)), by the nearest voxel.

    Each component of u is white noise smoothed by a Gaussian of SD `smooth` and scaled to the SD `sigma` at every
    voxel: the field of elastic deformations (Simard et al., 2003), applied to the label alone. A boundary moves along
    its normal by a distance of SD `sigma`, outwards as often as inwards; points nearer than `smooth` move together.
    All classes move with one field, so none overwrites another. The field is periodic, which keeps its SD up to the
    edges; beyond the edge the label is continued. An ignored voxel passes its value to no other.

    Args:
        label: (z, y, x).
        sigma: SD of the displacement along each axis, in voxels.
        smooth: SD of the Gaussian along each axis, in voxels.
        rng: Draws one normal number a voxel and axis.
    """
    from scipy.ndimage import gaussian_filter

    shape = label.shape
    gain = np.prod([_gain(n, s) for n, s in zip(shape, smooth, strict=True)])
    place = np.zeros(shape, np.int64)
    for axis, n in enumerate(shape):
        noise = rng.standard_normal(shape, dtype=np.float32)
        field = gaussian_filter(noise, smooth, mode="wrap") * (sigma[axis] / gain)
        at = np.arange(n).reshape([-1 if a == axis else 1 for a in range(label.ndim)])
        place = place * n + np.clip(np.rint(at + field), 0, n - 1).astype(np.int64)
    moved = label.ravel()[place]
    return np.where((label == IGNORE) | (moved == IGNORE), label, moved)


def _gain(n: int, smooth: float) -> float:
    """SD along one periodic axis of n voxels of white noise of SD 1 that was smoothed: the norm of the kernel."""
    from scipy.ndimage import gaussian_filter1d

    delta = np.zeros(n)
    delta[0] = 1.0
    return float(np.sqrt((gaussian_filter1d(delta, smooth, mode="wrap") ** 2).sum()))


def erode(label: Label, radius: float, unit: Sequence[float]) -> Label:
    """Shrink every class by a ball; what it loses becomes background, also between two classes that touch.

    A voxel stays if no voxel of another value lies within `radius` of it; neither the edge of the image nor an ignored
    voxel is one. With sides of 1 this is the erosion of mathematical morphology by `skimage.morphology.ball`. A class
    no thicker than twice the radius vanishes.

    Args:
        label: (z, y, x), 0 is background.
        radius: Of the ball, in the unit of `unit`.
        unit: Size of a voxel along each axis.
    """
    out = label.copy()
    for value, box in _boxes(label, radius, unit):
        inside = label[box] == value
        near = inside & (_distance(~inside & (label[box] != IGNORE), unit) <= radius)
        out[box][near] = 0
    return out


def dilate(label: Label, radius: float, unit: Sequence[float]) -> Label:
    """Grow every class by a ball into the background, and nowhere else: no class overwrites another.

    A background voxel within `radius` of several classes takes the nearest, of equally near ones the lowest.

    Args:
        label: (z, y, x), 0 is background.
        radius: Of the ball, in the unit of `unit`.
        unit: Size of a voxel along each axis.
    """
    out = label.copy()
    nearest = np.full(label.shape, np.inf, np.float32)
    for value, box in _boxes(label, radius, unit):
        found = _distance(label[box] == value, unit)
        grown = (label[box] == 0) & (found <= radius) & (found < nearest[box])
        out[box][grown] = value
        nearest[box][grown] = found[grown]
    return out


def missing(label: Label, share: float, rng: np.random.Generator, classes: int) -> Label:
    """Remove structures: each class of the case becomes background with the probability `share`, all of it at once.

    One number is drawn for each class of the data set, whether the case has it or not.
    """
    gone = 1 + np.flatnonzero(rng.random(classes) < share)
    return np.where(np.isin(label, gone) & (label != IGNORE), np.uint8(0), label)


def swapped(label: Label, share: float, rng: np.random.Generator, first: int = 1) -> Label:
    """Exchange the names of two classes of the case, with the probability `share`.

    The pair is drawn among the classes that the case has; a case with fewer than two stays as it is. The same exchange
    twice is the label again.
    """
    present = classes_of(label, first)
    chosen, pair = rng.random() < share, rng.permutation(present)[:2]
    if not chosen or len(pair) < 2:
        return label.copy()
    table = np.arange(256, dtype=np.uint8)
    table[pair] = pair[::-1]
    return table[label]


def partial(
    label: Label,
    share: float,
    rng: np.random.Generator,
    first: int = 1,
    annotated: int = 1,
    background: str = "unknown",
) -> Label:
    """Leave classes without annotation, with the probability `share` a case; what is not annotated is ignored (255).

    In such a case `annotated` of its classes, drawn, keep their label. Of every other voxel it is known only that it is
    none of these: background or one of the other classes, as in data sets that were each annotated for one organ
    (Dmitriev and Kaufman, 2019, Learning multi-class segmentations from single-class datasets; Zhou et al., 2019,
    Prior-aware neural network for partially-supervised multi-organ segmentation; Shi et al., 2021, Marginal loss and
    exclusion loss for partially supervised multi-organ segmentation). So all of them are ignored, the background too.
    With `background="known"` the annotator marked the classes that are left out as not annotated: only these are
    ignored. That tells where they are, and is the easier task. A case with no more classes than `annotated` is whole.
    """
    present = classes_of(label, first)
    chosen, order = rng.random() < share, rng.permutation(present)
    if not chosen or len(present) <= annotated:
        return label.copy()
    if background == "known":
        return np.where(np.isin(label, order[annotated:]), np.uint8(IGNORE), label)
    return np.where(np.isin(label, order[:annotated]), label, np.uint8(IGNORE))


def doubt(
    label: Label, condition: dict[str, Any], sides: Sequence[float], *, first: int = 1, classes: int
) -> NDArray[np.float32]:
    """The probability that the condition changed each voxel, as far as the degraded label lets one know.

    It is a function of the degraded label and of the condition alone: whoever has these two can compute it, so it
    carries nothing of the clean label that the degraded one does not carry. `label_weight` is 1 minus it. All labels
    are taken as equally probable before one looks:

    jitter: the chance that a displacement of SD sigma leads to another value, 1 - (G_sigma * [label = own])(x); a
    displacement and its opposite are equally probable, so it leads back as often as it led there.
    erode: 1 at background within the radius of a class, which was certainly taken from one, and 0 elsewhere.
    dilate: 1 at voxels of a class within the radius of the background, which were certainly given to it, and 0
    elsewhere.
    missing: where k classes are absent and each is left out with the probability p, k p / (1 + k p) at background.
    swapped: 2 p / m at the m classes of the case, each of which is in the pair with 2 / m.
    partial: 0; no label that is left is wrong.

    Args:
        label: The degraded label, (z, y, x) uint8; the doubt is 0 where it is ignored.
        condition: In canonical form.
        sides: Size of a voxel along each axis, in mm.
        first: The lowest value that is a class.
        classes: Classes of the data set, without the background.

    Returns:
        float32 in [0, 1], of the label's shape.
    """
    kind = kind_of(condition)
    args = condition[kind]
    found = np.zeros(label.shape, np.float32)
    if kind == "jitter":
        sigma = [args["sigma"] / u for u in _unit(args, sides)]
        _jitter_doubt(label, sigma, found)
    elif kind == "erode":
        unit = _unit(args, sides)
        for value, box in _boxes(label, args["radius"], unit):
            near = _distance(label[box] == value, unit) <= args["radius"]
            found[box][near & (label[box] == 0)] = 1
    elif kind == "dilate":
        unit = _unit(args, sides)
        for value, box in _boxes(label, args["radius"], unit):
            near = _distance(label[box] == 0, unit) <= args["radius"]
            found[box][near & (label[box] == value)] = 1
    elif kind == "missing":
        odds = args["share"] * (classes - len(classes_of(label, first)))
        found[label == 0] = odds / (1 + odds)
    elif kind == "swapped":
        present = classes_of(label, first)
        if len(present) > 1:
            found[np.isin(label, present)] = 2 * args["share"] / len(present)
    return found


def _jitter_doubt(label: Label, sigma: Sequence[float], found: NDArray[np.float32]) -> None:
    from scipy.ndimage import gaussian_filter

    valid = label != IGNORE
    among = gaussian_filter(valid.astype(np.float32), sigma, mode="nearest")
    for value in np.unique(label[valid]):
        own = label == value
        same = gaussian_filter(own.astype(np.float32), sigma, mode="nearest")
        found[own] = np.clip(1 - same[own] / among[own], 0, 1)


def classes_of(label: Label, first: int = 1) -> NDArray[np.int64]:
    """The classes that a label has, sorted."""
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)[:IGNORE])
    return values[values >= first]


def _unit(args: dict[str, Any], sides: Sequence[float]) -> list[float]:
    """Size of a voxel along each axis, in the unit that a condition is stated in."""
    return [float(s) for s in sides] if args["unit"] == "mm" else [1.0] * len(sides)


def _boxes(label: Label, radius: float, unit: Sequence[float]) -> list[tuple[int, tuple[slice, ...]]]:
    """Each class with the box around it that holds everything within `radius` of it."""
    from scipy.ndimage import find_objects

    kept = np.where(label == IGNORE, np.uint8(0), label)
    margin = [int(radius / u) + 1 for u in unit]
    return [
        (value, tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margin, strict=True)))
        for value, box in enumerate(find_objects(kept), start=1)
        if box is not None
    ]


def _distance(mask: NDArray[np.bool_], unit: Sequence[float]) -> NDArray[np.float32]:
    """Distance of every voxel to the nearest one of the mask; infinite where there is none."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return np.asarray(distance_transform_edt(~mask, sampling=unit), np.float32)


def _save(path: Path, **arrays: Any) -> None:
    def write(stream: Any) -> None:
        np.savez(stream, **arrays)

    write_atomic(path, write)
