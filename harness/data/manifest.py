"""Manifests: what a data set is, how to obtain it, and which patient belongs to which part.

A manifest is one YAML file in `data_manifests/`; a data set in a known layout needs no code.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.data.intensity import Intensity
from harness.errors import BenchError
from harness.yamlfile import Strict, YamlFile, nearest, read_yaml

LAYOUTS = {
    "phantom": "harness.data.layouts:Phantom",
    "decathlon": "harness.data.layouts:Decathlon",
    "files": "harness.data.layouts:Files",
}


class Split(Strict):
    """Either lists of cases or a seeded k-fold over patients."""

    train: list[str] | Literal["rest"] = "rest"
    val: list[str] = Field(default_factory=list)
    test: list[str] = Field(default_factory=list)
    folds: int | None = Field(default=None, ge=2)
    seed: int = 0

    @model_validator(mode="after")
    def _kind(self) -> Split:
        if self.folds is None and not self.test:
            raise ValueError("a split needs `test` (a list of cases) or `folds` (a number)")
        if self.folds is not None and (self.test or self.val or self.train != "rest"):
            raise ValueError("`folds` deals all cases out by itself; leave train, val and test away")
        return self


class ManifestFile(Strict):
    """The schema of `data_manifests/*.yaml`."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    licence: str
    attribution: str
    obtain: str
    figures: Literal["images", "contours"] = "contours"
    layout: dict[str, dict[str, Any]]
    modalities: list[str] = Field(min_length=1)
    labels: dict[str, int]
    drop: list[int] = Field(default_factory=list)
    ignore: int | None = None
    regions: dict[str, list[str]] | None = None  # what is measured instead of the classes: unions of them
    dimensions: Literal[2, 3] = 3  # 2: a case is one image, and distances are in its plane
    spacing: Literal["header", "unknown"] = "header"
    intensity: Intensity
    cases: list[str] = Field(min_length=1)
    patient: str | None = None
    splits: dict[str, Split]

    @field_validator("labels")
    @classmethod
    def _values(cls, labels: dict[str, int]) -> dict[str, int]:
        if not labels or 0 in labels.values() or len(set(labels.values())) != len(labels):
            raise ValueError("labels map each class to its own positive value in the files; 0 is the background")
        return labels

    @field_validator("cases")
    @classmethod
    def _names(cls, cases: list[str]) -> list[str]:
        for case in cases:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", case):
                raise ValueError(f"case {case!r} names a file: letters, digits, '_', '.' and '-' only")
        return cases

    @field_validator("patient")
    @classmethod
    def _pattern(cls, patient: str | None) -> str | None:
        try:
            re.compile(patient or "")
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return patient

    @model_validator(mode="after")
    def _consistent(self) -> ManifestFile:
        if len(self.layout) != 1 or next(iter(self.layout)) not in LAYOUTS:
            raise ValueError(f"`layout` names one of {', '.join(LAYOUTS)}, found {', '.join(self.layout) or 'none'}")
        double = sorted({c for c in self.cases if self.cases.count(c) > 1})
        if double:
            raise ValueError(f"case {double[0]!r} stands twice in `cases`")
        reserved = {*self.labels.values(), 0}
        if reserved & set(self.drop) or self.ignore in reserved:
            raise ValueError("a value in `drop` or `ignore` is also a label or the background")
        return self


@dataclass(frozen=True)
class Parts:
    """Cases of one split (and fold)."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A validated manifest; `spec` has the fields of the file."""

    path: Path
    spec: ManifestFile
    file: YamlFile
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # per cell

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.spec.name

    @property
    def classes(self) -> dict[str, int]:
        """Class name to index 1..K in the arrays that the readers give (not the value in the files)."""
        return {name: i for i, name in enumerate(self.spec.labels, start=1)}

    @property
    def measured(self) -> dict[str, tuple[int, ...]]:
        """Name to indices of what is measured: the regions where there are some, else each class."""
        return members_of(self.classes, self.spec.regions)

    @property
    def layout(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the layout."""
        return next(iter(self.spec.layout.items()))

    def digest(self) -> str:
        """Of everything that changes arrays: prose such as licence and title is left out.

        Splits and regions enter by cell: other regions are another evaluation of the same training.
        """
        if "digest" not in self._known:
            self._known["digest"] = self._digest()
        return str(self._known["digest"])

    def _digest(self) -> str:
        kept = self.spec.model_dump(
            mode="json", exclude={"title", "licence", "attribution", "obtain", "figures", "splits", "regions"}
        )
        if self.spec.dimensions == 3:
            del kept["dimensions"]  # ids of volumes were made before there was this field
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def patient_of(self, case: str) -> str:
        """The patient a case belongs to: group 1 of the pattern `patient`, else the case itself."""
        if self.spec.patient is None:
            return case
        match = re.match(self.spec.patient, case)
        if match is None:
            raise self.file.error(("patient",), f"the pattern does not match case {case!r}.")
        return match.group(1) if match.groups() else match.group(0)

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            BenchError: There is none.
        """
        if name not in self.spec.splits:
            known = ", ".join(self.spec.splits)
            raise BenchError(f"{self.path} has no split {name!r}{nearest(name, self.spec.splits)}; it has: {known}.")
        return self.spec.splits[name]

    def parts(self, split: str, fold: int | None) -> Parts:
        """Training, validation and test cases.

        Raises:
            BenchError: A case is unknown, or a patient stands in two parts.
        """
        if (split, fold) not in self._known:
            self._known[split, fold] = self._parts(split, fold)
        found: Parts = self._known[split, fold]
        return found

    def _parts(self, split: str, fold: int | None) -> Parts:
        chosen = self.split(split)
        if chosen.folds is not None:
            return self._fold(chosen, split, fold)
        held = [*chosen.val, *chosen.test]
        train = [c for c in self.spec.cases if c not in held] if chosen.train == "rest" else list(chosen.train)
        parts = Parts(tuple(train), tuple(chosen.val), tuple(chosen.test))
        self._check(parts, split)
        return parts

    def _fold(self, split: Split, name: str, fold: int | None) -> Parts:
        assert split.folds is not None
        if fold is None or not 0 <= fold < split.folds:
            raise BenchError(
                f"{self.path}: split {name!r} has folds 0 to {split.folds - 1}, fold {fold} was asked for."
            )
        patients = sorted({self.patient_of(c) for c in self.spec.cases})
        if split.folds > len(patients):
            raise self.file.error(("splits", name, "folds"), f"{split.folds} folds of {len(patients)} patients.")
        random.Random(split.seed).shuffle(patients)
        held = set(patients[fold :: split.folds])
        test = tuple(c for c in self.spec.cases if self.patient_of(c) in held)
        return Parts(tuple(c for c in self.spec.cases if c not in test), (), test)

    def _check(self, parts: Parts, split: str) -> None:
        owner: dict[str, tuple[str, str]] = {}
        for part in ("train", "val", "test"):
            for case in getattr(parts, part):
                if case not in self.spec.cases:
                    raise self.file.error(("splits", split, part), f"case {case!r} is not in `cases`.")
                if getattr(parts, part).count(case) > 1:
                    raise self.file.error(("splits", split, part), f"case {case!r} stands here twice.")
                patient = self.patient_of(case)
                before, other = owner.setdefault(patient, (part, case))
                if before != part:
                    raise self.file.error(
                        ("splits", split, part),
                        f"patient {patient!r} stands in two parts: {other!r} in {before}, {case!r} in {part}.",
                    )
        if not parts.train or not parts.test:
            raise self.file.error(("splits", split), "no cases are left for training or for testing.")


def members_of(classes: Mapping[str, int], regions: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[int, ...]]:
    """The indices of each region, or of each class where there are no regions."""
    if regions is None:
        return {name: (index,) for name, index in classes.items()}
    return {region: tuple(classes[name] for name in names) for region, names in regions.items()}


def load_manifest(name: str, base: Path) -> Manifest:
    """Find and validate a manifest.

    Args:
        name: A file `x.yaml` relative to `base` or to the working directory, or a bare name, looked up in the folders
            `data_manifests` beside the suite, beside its folder and in the working directory, then in the package.
        base: Folder of the suite file.

    Raises:
        BenchError: There is none of that name, or it is not valid.
    """
    if name.endswith((".yaml", ".yml")):
        path = next((p for p in (base / name, Path(name)) if p.is_file()), None)
        if path is None:
            raise BenchError(f"no data manifest {name!r} in {base} or in the working directory.")
    else:
        places = [f / "data_manifests" for f in (base, base.parent, Path())] + [packed("data_manifests")]
        path = next((p for p in (f / f"{name}.yaml" for f in places) if p.is_file()), None)
        if path is None:
            known = sorted({p.stem for f in places for p in f.glob("*.yaml")})
            raise BenchError(
                f"no data manifest {name!r}{nearest(name, known)}; known: {', '.join(known)}, or a file x.yaml."
            )
    file = read_yaml(path)
    spec = file.parse(ManifestFile)
    _check_regions(spec, file)
    manifest = Manifest(path, spec, file)
    for split, chosen in spec.splits.items():
        manifest.parts(split, 0 if chosen.folds else None)
    return manifest


def _check_regions(spec: ManifestFile, file: YamlFile) -> None:
    if spec.regions is None:
        return
    if not spec.regions:
        raise file.error(("regions",), "no region is given; name at least one, or leave `regions` away.")
    owner: dict[frozenset[str], str] = {}
    for region, members in spec.regions.items():
        where = ("regions", region)
        if not members:
            raise file.error(where, "the list is empty; name the classes whose union the region is.")
        for i, name in enumerate(members):
            if name not in spec.labels:
                known = ", ".join(spec.labels)
                raise file.error((*where, i), f"{name!r} is no class{nearest(name, spec.labels)}; classes: {known}.")
            if name in members[:i]:
                raise file.error((*where, i), f"class {name!r} stands here twice.")
        if region in spec.labels and members != [region]:
            raise file.error(where, f"{region!r} is the name of a class that the region is not; give it another name.")
        twin = owner.setdefault(frozenset(members), region)
        if twin != region:
            raise file.error(where, f"the same classes as region {twin!r}; keep one of the two.")


def packed(folder: str) -> Path:
    """`suites`, `data_manifests` or `published` as shipped: in the wheel, or at the root of a source checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_packed" / folder
    return inside if inside.is_dir() else package.parent / ("reports/published" if folder == "published" else folder)
