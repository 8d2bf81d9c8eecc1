"""What a suite may do to its training labels: the conditions of `labels`, and what each is called.

The arrays are made by `harness.data.degrade`. A condition enters ids in its canonical form: a plain mapping with every
argument written out and the version of the algorithm.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.yamlfile import Strict

if TYPE_CHECKING:
    from harness.data.manifest import Manifest

CLEAN = "clean"
DEGRADE_VERSION = 1
"""Raised when the same condition would give other labels; part of the canonical form."""
STRENGTHS = {
    "jitter": "sigma", "erode": "radius", "dilate": "radius", "missing": "share", "swapped": "share",
    "partial": "share",
}  # fmt: skip
"""Kind of a condition to the argument that says how strong it is; a list of values there is a sweep."""
DRAWN = frozenset({"jitter", "missing", "swapped", "partial"})
"""Conditions that are drawn, anew for each repeat; the others are the same in all repeats."""
SMOOTH = (
    3.0  # default of `smooth`, in units of sigma: the derivative of the field has then an SD of 0.24, and rarely folds
)

Length = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Unit = Literal["voxel", "mm"]
Canonical = str | dict[str, Any]


class Jitter(Strict):
    """Boundaries displaced by a smooth random field."""

    sigma: Length | Annotated[list[Length], Field(min_length=1)]  # SD of the displacement along each axis
    smooth: Length | None = None  # SD of the Gaussian that smooths the field; by default 3 sigma
    unit: Unit = "voxel"


class Morphology(Strict):
    """Structures eroded or dilated by a ball."""

    radius: Length | Annotated[list[Length], Field(min_length=1)]
    unit: Unit = "voxel"


class Chance(Strict):
    """Something that happens with a probability."""

    share: Share | Annotated[list[Share], Field(min_length=1)]


class Partial(Strict):
    """Cases in which only some classes are annotated."""

    share: Share | Annotated[list[Share], Field(min_length=1)]
    classes: Annotated[int, Field(gt=0)] = 1  # how many are annotated there
    background: Literal["unknown", "known"] = "unknown"


class Condition(Strict):
    """What is done to the labels of the training cases; exactly one of these."""

    jitter: Jitter | None = None
    erode: Morphology | None = None
    dilate: Morphology | None = None
    missing: Chance | None = None
    swapped: Chance | None = None
    partial: Partial | None = None

    @model_validator(mode="after")
    def _one(self) -> Condition:
        given = [n for n in STRENGTHS if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(STRENGTHS)}, found {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Its name."""
        return next(n for n in STRENGTHS if getattr(self, n) is not None)

    def canonical(self) -> list[dict[str, Any]]:
        """One canonical form for each strength, in order."""
        args = getattr(self, self.kind).model_dump()
        name = STRENGTHS[self.kind]
        values = args[name] if isinstance(args[name], list) else [args[name]]
        out = []
        for value in values:
            one = args | {name: float(value)}
            if self.kind == "jitter" and one["smooth"] is None:
                one["smooth"] = SMOOTH * value
            out.append({self.kind: one, "version": DEGRADE_VERSION})
        return out


@dataclass(frozen=True)
class Setting:
    """Where a cell stands on the axes `labels` and `train.cases` of its suite.

    Attributes:
        base: Name of the data set.
        kind: Of the condition; "clean" without one.
        strength: Of the condition; 0 without one.
        rest: What else its label says, such as "mm".
        patients: Training patients, where `train.cases` is a list; None for all of them.
        trained: Training patients that there are.
        smooth: That of `jitter`, stated or its default; its label says it only where it is not the default.
    """

    base: str
    kind: str = CLEAN
    strength: float = 0.0
    rest: str = ""
    patients: int | None = None
    trained: int = 0
    smooth: float | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the data set as it is."""
        return self.kind == CLEAN and self.patients is None


def expand(given: str | Condition | Sequence[str | Condition]) -> list[tuple[int | None, Canonical]]:
    """The axis `labels` of a suite, each with its place in the list (None where there is no list)."""
    several = isinstance(given, Sequence) and not isinstance(given, str)
    entries: list[Any] = [*given] if several else [given]
    return [
        (i if several else None, one)
        for i, entry in enumerate(entries)
        for one in ([CLEAN] if isinstance(entry, str) else entry.canonical())
    ]


def kind_of(labels: Canonical) -> str:
    """The kind of a canonical condition; "clean" without one."""
    return CLEAN if isinstance(labels, str) else next(k for k in labels if k != "version")


def title_of(labels: Canonical) -> str:
    """What a canonical condition is called: `jitter sigma=2`, `erode radius=1.5 mm`, `partial share=0.5 classes=2`."""
    kind = kind_of(labels)
    if isinstance(labels, str):
        return kind
    name = STRENGTHS[kind]
    return " ".join(part for part in (kind, f"{name}={labels[kind][name]:g}", rest_of(labels)) if part)


def rest_of(labels: Canonical) -> str:
    """What is not the default in a condition besides its strength."""
    if isinstance(labels, str):
        return ""
    args = labels[kind_of(labels)]
    parts = []
    if "smooth" in args and args["smooth"] != SMOOTH * args["sigma"]:
        parts.append(f"smooth={args['smooth']:g}")
    if args.get("classes", 1) != 1:
        parts.append(f"classes={args['classes']}")
    if args.get("background", "unknown") != "unknown":
        parts.append(f"background={args['background']}")
    if args.get("unit", "voxel") != "voxel":
        parts.append(args["unit"])
    return " ".join(parts)


def strength_of(labels: Canonical) -> float:
    """The strength of a canonical condition; 0 without one."""
    return 0.0 if isinstance(labels, str) else float(labels[kind_of(labels)][STRENGTHS[kind_of(labels)]])


def _smooth_of(labels: Canonical) -> float | None:
    return None if isinstance(labels, str) or kind_of(labels) != "jitter" else float(labels["jitter"]["smooth"])


def name_of(dataset: str, labels: Canonical, patients: int | None) -> str:
    """The name of a data set in a setting: `hippocampus [5 patients, jitter sigma=2]`; as it is, its own."""
    parts = [f"{patients} patient{'s' if patients != 1 else ''}"] if patients is not None else []
    parts += [title_of(labels)] if labels != CLEAN else []
    return f"{dataset} [{', '.join(parts)}]" if parts else dataset


def refusal(labels: Canonical, manifest: Manifest) -> str | None:
    """Why a data set cannot have a condition, as a sentence; None where it can."""
    if isinstance(labels, str):
        return None
    kind = kind_of(labels)
    args, classes = labels[kind], len(manifest.spec.labels)
    if not manifest.spec.background and kind in ("erode", "dilate", "missing"):
        return (
            f"{kind!r} gives voxels to the background or takes them from it, and {manifest.name} has none; "
            "take jitter, swapped or partial."
        )
    if kind in ("swapped", "partial") and classes < 2:
        return f"{kind!r} needs two classes or more, and {manifest.name} has one; leave it away."
    if kind == "partial" and args["classes"] >= classes:
        return (
            f"{args['classes']} annotated classes leave nothing out, {manifest.name} has {classes}; expected fewer in "
            "`classes`."
        )
    if args.get("unit") == "mm" and manifest.spec.spacing == "unknown":
        return f"the spacing of {manifest.name} is unknown; leave `unit: mm` away and count in voxels."
    return None


def settings_of(cells: Mapping[str, tuple[Mapping[str, Any], int]]) -> dict[str, Setting]:
    """Name of a data set in a setting to the setting; empty where every data set is as it is.

    Args:
        cells: The name to a cell's data, and the number of patients it was trained on.
    """
    found = {
        name: Setting(
            data["manifest"], kind_of(data["labels"]), strength_of(data["labels"]), rest_of(data["labels"]),
            data.get("patients"), trained, _smooth_of(data["labels"]),
        )
        for name, (data, trained) in cells.items()
    }  # fmt: skip
    return found if any(not s.plain for s in found.values()) else {}


def twice(conditions: Sequence[Canonical]) -> Canonical | None:
    """The first condition that stands a second time; None where each stands once."""
    pairs = itertools.combinations(conditions, 2)
    return next((b for a, b in pairs if a == b), None)
