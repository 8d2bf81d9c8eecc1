"""Manifests: what a data set is, how to obtain it, and which patient belongs to which part.

A manifest is one YAML file in `data_manifests/`; a data set in a known layout needs no code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.cases import Found, fault_of
from harness.data.manifest_file import ManifestFile, SpacingTable, check_regions
from harness.data.splits import Parts, Split, deal
from harness.errors import BenchError
from harness.paths import there
from harness.yamlfile import YamlFile, nearest, read_yaml

__all__ = ["Manifest", "ManifestFile", "load_manifest", "members_of", "packed"]


@dataclass(frozen=True)
class Manifest:
    """A validated manifest; `spec` has the fields of the file."""

    path: Path
    spec: ManifestFile
    file: YamlFile
    root: Path | None = None  # where `cases: found` looks
    phantom: bool = False  # the cases are those of the phantom, where the manifest has `cases: found`
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
    def num_classes(self) -> int:
        """Outputs of a network: the classes, and the background where there is one."""
        return len(self.spec.labels) + self.spec.background

    @property
    def measured(self) -> dict[str, tuple[int, ...]]:
        """Name to indices of what is measured: the regions where there are some, else each class."""
        return members_of(self.classes, self.spec.regions)

    @property
    def file_values(self) -> dict[str, tuple[int, ...]]:
        """Name to values in the files of what is measured, with those that the layout merges."""
        option = self.layout[1].get("merge")
        merged: dict[int, int] = option if isinstance(option, dict) else {}  # the layout refuses another kind itself
        own = {n: (v, *(k for k, target in merged.items() if target == v)) for n, v in self.spec.labels.items()}
        if self.spec.regions is None:
            return own
        return {region: tuple(v for n in names for v in own[n]) for region, names in self.spec.regions.items()}

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
        prose = {"title", "licence", "attribution", "obtain", "figures", "splits", "regions", "phantom", "files"}
        kept = self.spec.model_dump(mode="json", exclude=prose)
        # ids were made before there were these: they are named only where they are used
        if self.spec.dimensions == 3:
            del kept["dimensions"]
        if self.spec.background:
            del kept["background"]
        if isinstance(self.spec.cases, Found):
            kept["cases"] = "found"  # which ones enter by cell
        if self.spacings:
            kept["spacing"] = {case: list(sides) for case, sides in self.spacings.items()}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def patient_of(self, case: str) -> str:
        """The patient a case belongs to: group 1 of the pattern `patient`, else the case itself.

        Raises:
            BenchError: The pattern does not match the case, or finds nothing in it.
        """
        if self.spec.patient is None:
            return case
        match = re.match(self.spec.patient, case)
        if match is None:
            raise self.file.error(("patient",), f"the pattern does not match case {case!r}.")
        patient = match.group(1) if match.groups() else match.group(0)
        if not patient:
            raise self.file.error(("patient",), f"the pattern finds no patient in case {case!r}: its group is empty.")
        return str(patient)

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
        return deal(self.split(split), split, fold, self.cases, self.patient_of, self.file)

    @property
    def cases(self) -> tuple[str, ...]:
        """All cases, in order.

        Raises:
            BenchError: They are those found in the folder of data, and no folder was given, or it has others than
                expected.
        """
        if not isinstance(self.spec.cases, Found):
            return tuple(self.spec.cases)
        if "cases" not in self._known:
            self._known["cases"] = self._found(self.spec.cases)
        return tuple(self._known["cases"])

    def _found(self, expected: Found) -> list[str]:
        if self.phantom:
            if self.spec.phantom is None or self.spec.phantom.cases is None:
                raise self.file.error(
                    ("phantom", "cases"),
                    "names of the phantom's cases are needed where the manifest has `cases: found`.",
                )
            return list(self.spec.phantom.cases)
        if self.root is None:
            raise BenchError(
                f"the cases of {self.name} are those in its folder: say where with --data FOLDER or BENCH_DATA. "
                f"{' '.join(self.spec.obtain.split())}"
            )
        from harness.data.layouts import reader_of
        from harness.data.layouts.absent import none_found

        cases = reader_of(self, self.root).cases()
        if not cases:
            raise BenchError(none_found(self, self.root))
        if fault := fault_of(cases):
            raise BenchError(f"{self.root}: {fault}; rename it.")
        if expected.found is not None and len(cases) != expected.found:
            raise BenchError(
                f"{self.root} holds {len(cases)} cases of {self.name}, its manifest expects {expected.found}; "
                "complete the folder, or state the number that you have in a manifest of your own."
            )
        return cases

    def spacing_of(self, case: str, stated: Sequence[float] | None) -> tuple[float, float, float] | None:
        """Spacing (z, y, x) in mm of a case.

        Args:
            case: The case.
            stated: What its file states; None where the format has none.

        Raises:
            BenchError: The manifest has a table of spacings that lacks the case, or says `header` of a format that
                states none.
        """
        if self.spec.spacing == "unknown":
            return None
        if self.spec.spacing == "header":
            if stated is None:
                raise self.file.error(
                    ("spacing",), "the files of this layout state no spacing; write `unknown` or a table by case."
                )
            return (float(stated[0]), float(stated[1]), float(stated[2]))
        table = self.spacings
        if case not in table:
            raise self.file.error(
                ("spacing",), f"the table has no spacing of case {case!r}; it has {len(table)} cases."
            )
        return table[case]

    @property
    def spacings(self) -> dict[str, tuple[float, float, float]]:
        """Spacings by case, from the manifest or from the file that it names; empty where it has no table."""
        if isinstance(self.spec.spacing, dict):
            return self.spec.spacing
        if self.spec.spacing in ("header", "unknown"):
            return {}
        if "spacings" not in self._known:
            self._known["spacings"] = read_yaml(self.path.parent / self.spec.spacing).parse(SpacingTable).root
        found: dict[str, tuple[float, float, float]] = self._known["spacings"]
        return found


def members_of(classes: Mapping[str, int], regions: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[int, ...]]:
    """The indices of each region, or of each class where there are no regions."""
    if regions is None:
        return {name: (index,) for name, index in classes.items()}
    return {region: tuple(classes[name] for name in names) for region, names in regions.items()}


def load_manifest(name: str, base: Path, root: Path | None = None, *, phantom: bool = False) -> Manifest:
    """Find and validate a manifest.

    Args:
        name: A file `x.yaml` relative to `base` or to the working directory, or a bare name, looked up in the folders
            `data_manifests` beside the suite, beside its folder and in the working directory, then in the package.
        base: Folder of the suite file.
        root: Folder of data, where `cases: found` looks. Loading does not need it; `.cases` and `.parts` then do.
        phantom: The data is the phantom, and `cases: found` are those of the section `phantom`.

    Raises:
        BenchError: There is none of that name, or it is not valid.
    """
    if name.endswith((".yaml", ".yml")):
        path = next((p for p in (base / name, Path(name)) if there(p)), None)
        if path is None:
            raise BenchError(f"no data manifest {name!r} in {base} or in the working directory.")
    else:
        places = [f / "data_manifests" for f in (base, base.parent, Path())] + [packed("data_manifests")]
        path = next((p for p in (f / f"{name}.yaml" for f in places) if there(p)), None)
        if path is None:
            known = sorted({p.stem for f in places for p in f.glob("*.yaml")})
            raise BenchError(
                f"no data manifest {name!r}{nearest(name, known)}; known: {', '.join(known)}, or a file x.yaml."
            )
    file = read_yaml(path)
    spec = file.parse(ManifestFile)
    check_regions(spec, file)
    manifest = Manifest(path, spec, file, root, phantom)
    if phantom or not isinstance(spec.cases, Found):
        _check_spacings(manifest)
        for split, chosen in spec.splits.items():
            manifest.parts(split, 0 if chosen.folds else None)
    return manifest


def _check_spacings(manifest: Manifest) -> None:
    table = manifest.spacings
    absent = [c for c in manifest.cases if table and c not in table]
    if absent:
        raise manifest.file.error(
            ("spacing",), f"the table has no spacing of case {absent[0]!r} ({len(absent)} cases are not in it)."
        )


def packed(folder: str) -> Path:
    """`suites`, `data_manifests` or `published` as shipped: in the wheel, or at the root of a source checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_packed" / folder
    return inside if inside.is_dir() else package.parent / ("reports/published" if folder == "published" else folder)
