"""The schema of a manifest file: its keys, and what is wrong with them before any data is looked at."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, ValidationError, field_validator, model_validator

from harness.data.cases import Cases, Found, fault_of
from harness.data.intensity import Intensity
from harness.data.splits import Split
from harness.paths import leads_out
from harness.yamlfile import Strict, YamlFile, nearest

LAYOUTS = {
    "phantom": "harness.data.layouts.phantom:Phantom",
    "decathlon": "harness.data.layouts.decathlon:Decathlon",
    "files": "harness.data.layouts.files:Files",
    "nnunet": "harness.data.layouts.nnunet:NnUnet",
    "synapse_npz": "harness.data.layouts.synapse_npz:SynapseNpz",
    "cityscapes": "harness.data.layouts.cityscapes:Cityscapes",
    "brats": "harness.data.layouts.brats:Brats",
    "acdc": "harness.data.layouts.acdc:Acdc",
}

MOST_CLASSES = 254  # a label array is of 8 bits: 0 is the background, 255 what is ignored

_Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1, le=2048)]
Side = tuple[_Millimetres, _Millimetres, _Millimetres]


class SpacingTable(RootModel[dict[str, Side]]):
    """A file of spacings: case → [z, y, x] in mm."""


class Phantom(Strict):
    """How the phantom of a data set looks: what stands in for its files in `--quick` runs and in tests."""

    scene: str
    shape: tuple[_Side, _Side, _Side]
    spacing: Side = (1.0, 1.0, 1.0)
    cases: list[str] | None = Field(default=None, min_length=1)  # only where the manifest has `cases: found`


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
    background: bool = True  # false: every voxel has a class or is ignored, and a network has no output for 0
    regions: dict[str, list[str]] | None = None  # what is measured instead of the classes: unions of them
    dimensions: Literal[2, 3] = 3  # 2: a case is one image, and distances are in its plane
    spacing: Literal["header", "unknown"] | str | dict[str, Side] = "header"  # or mm (z, y, x) by case, or FILE.yaml
    intensity: Intensity
    cases: Cases
    patient: str | None = None
    splits: dict[str, Split]
    phantom: Phantom | None = None
    files: dict[str, str] = Field(default_factory=dict)  # path below the folder of data → "sha256:..."

    @field_validator("labels")
    @classmethod
    def _values(cls, labels: dict[str, int]) -> dict[str, int]:
        if not labels or min(labels.values()) < 1 or len(set(labels.values())) != len(labels):
            raise ValueError("labels map each class to its own positive value in the files; 0 is the background")
        if len(labels) > MOST_CLASSES:
            raise ValueError(f"{len(labels)} classes; at most {MOST_CLASSES} fit into the arrays beside the background")
        return labels

    @field_validator("cases")
    @classmethod
    def _names(cls, cases: list[str] | Found) -> list[str] | Found:
        if isinstance(cases, list):
            if not cases:
                raise ValueError("no case is named; list them, give a range, or write `found`")
            if fault := fault_of(cases):
                raise ValueError(fault)
        return cases

    @field_validator("spacing", mode="before")
    @classmethod
    def _table(cls, spacing: Any) -> Any:
        if isinstance(spacing, dict):
            try:
                return SpacingTable.model_validate(spacing).root
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"case {first['loc'][0]!r} must have [z, y, x] in mm: {first['msg']}") from None
        if spacing not in ("header", "unknown") and not (isinstance(spacing, str) and spacing.endswith(".yaml")):
            raise ValueError(
                "spacing is `header`, `unknown`, a table of case: [z, y, x] in mm, or a file x.yaml with one"
            )
        if leads_out(spacing):
            raise ValueError(f"{spacing!r} leads out of the manifest's folder; expected a file beside it, without `..`")
        return spacing

    @field_validator("files")
    @classmethod
    def _digests(cls, files: dict[str, str]) -> dict[str, str]:
        for name, digest in files.items():
            if not name or leads_out(name):
                raise ValueError(f"{name!r} leads out of the folder of data; expected a path below it, without `..`")
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                raise ValueError(f"the digest of {name!r} must be 'sha256:' and 64 hexadecimal digits")
        return files

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
        if not self.background and self.dimensions == 3:
            raise ValueError("`background: false` is for images, where every pixel has a class; add `dimensions: 2`")
        reserved = {*self.labels.values(), 0}
        if reserved & set(self.drop) or self.ignore in reserved:
            raise ValueError("a value in `drop` or `ignore` is also a label or the background")
        found = isinstance(self.cases, Found)
        if found and "phantom" in self.layout:
            raise ValueError("the layout `phantom` has no folder to find cases in; list them")
        if self.phantom is not None and self.phantom.cases is not None:
            if not found:
                raise ValueError(
                    "`phantom.cases` is only for `cases: found`; the phantom has the cases of the manifest"
                )
            if fault := fault_of(self.phantom.cases):
                raise ValueError(f"phantom.cases: {fault}")
        return self


def check_regions(spec: ManifestFile, file: YamlFile) -> None:
    """Refuse regions that are no unions of the manifest's classes, or that are named so that they mislead.

    Raises:
        BenchError: One is empty, names a class that is not there or twice, or is a class or another region again.
    """
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
