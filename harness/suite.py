"""Suite files: validation, and the expansion of the grid loss × model × data set × fold × seed into cells.

No torch here: `bench plan` and a finished `bench run` answer at once.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.cell import Cell, SourceInfo
from harness.data.conditions import Canonical, expand, name_of, refusal, title_of, twice
from harness.data.manifest import Manifest, load_manifest, packed
from harness.errors import BenchError
from harness.grid import Choice, LossChoice, expand_arguments, expand_losses, label_of
from harness.losses.needs import HEADS, MODEL_NEEDS
from harness.metrics.table import check_profiles, metric_of
from harness.models import BARE_MODULE, MODELS, provided
from harness.paths import there
from harness.resolve import locate
from harness.seeds import seed_of
from harness.suite_file import DataEntry, Init, SuiteFile
from harness.suite_losses import scoring_losses
from harness.suite_metrics import canonical_metrics
from harness.tuning.asked import check_spaces, tuning_of
from harness.yamlfile import YamlFile, nearest, read_yaml

MOST_CELLS = 100_000
FILLED_MODEL_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "num_classes",
    "spatial_dims",
    "img_size",
    "image_size",
    "spacing",
)


@dataclass(frozen=True)
class Suite:
    """A validated suite with its cells in the order of the report."""

    path: Path
    spec: SuiteFile
    quick: bool
    manifests: dict[str, Manifest]
    cells: tuple[Cell, ...]
    text: str

    @property
    def name(self) -> str:
        """Name of the suite, and of its folder of results."""
        return self.spec.suite + ("-quick" if self.quick else "")


class ModelChoice(NamedTuple):
    """One model of the grid: name and arguments, source, label, and what it starts from."""

    choice: Choice
    source: SourceInfo
    label: str
    init: dict[str, Any] | None  # as it enters the id: the digest of the file, not its path
    init_path: str | None


def load_suite(path: str | Path, quick: bool = False, root: Path | None = None) -> Suite:
    """Read, validate and expand a suite file.

    Args:
        path: A file, or the name of a suite that ships with the package.
        quick: Apply the suite's `quick:` overrides, on phantoms of its data sets.
        root: Folder of data sets: only asked for by a manifest whose cases are those that are found.

    Raises:
        BenchError: One sentence with file, line, key, what was found and what was expected.
    """
    found = Path(path)
    shipped = packed("suites") / f"{found.name.removesuffix('.yaml')}.yaml"
    if not there(found) and there(shipped):
        found = shipped
    elif not os.path.exists(found):
        known = [p.stem for p in packed("suites").glob("*.yaml")]
        raise BenchError(
            f"{found}: no such file{nearest(shipped.stem, known)}; `bench list suites` names those that ship."
        )
    file = read_yaml(found)
    spec = canonical_metrics(file.parse(SuiteFile), file)
    entries = spec.data if isinstance(spec.data, list) else [spec.data]
    manifests: dict[str, Manifest] = {}
    cells: list[Cell] = []
    if quick:
        spec = _quick(spec)
    for i, entry in enumerate(entries):
        where = ("data", i) if isinstance(spec.data, list) else ("data",)
        manifest = _manifest(entry.manifest, file, where, root, quick)
        manifests[manifest.name] = manifest
        cells += _cells_of(spec, file, entry, where, manifest, quick)
    if scored := scoring_losses(spec, file):
        cells = [replace(cell, scored_by=scored) for cell in cells]
    _check_unique(cells, file)
    _check_baseline(spec, file, {c.loss_label for c in cells})
    return Suite(found, spec, quick, manifests, tuple(cells), found.read_text(encoding="utf-8"))


def _quick(spec: SuiteFile) -> SuiteFile:
    """The suite with what `quick` says of the training; sizes and cases follow cell by cell."""
    small = spec.quick
    batch = small.batch or spec.train.batch
    changes = {"epochs": small.epochs, "steps": small.steps, "batch": batch}
    changes["accumulate"] = math.gcd(batch, spec.train.accumulate)  # another batch can have other divisors
    if small.models is not None:
        changes["init"] = None  # weights of other models
    update: dict[str, Any] = {"train": spec.train.model_copy(update=changes)}
    if small.seeds is not None:
        update["seeds"] = small.seeds
    if small.models is not None:
        update["models"] = small.models
    if spec.tune is not None:
        epochs = min(small.epochs, spec.tune.epochs or small.epochs)
        update["tune"] = spec.tune.model_copy(update={"trials": small.trials, "epochs": epochs})
    return spec.model_copy(update=update)


def _manifest(name: str, file: YamlFile, where: tuple[Any, ...], root: Path | None, quick: bool) -> Manifest:
    try:
        return load_manifest(name, file.path.parent, root, phantom=quick)
    except BenchError as error:
        if str(error).startswith("no data manifest"):
            raise file.error((*where, "manifest"), str(error)) from None
        raise


def _cells_of(
    spec: SuiteFile, file: YamlFile, entry: DataEntry, where: tuple[Any, ...], manifest: Manifest, quick: bool
) -> Iterator[Cell]:
    try:
        folds = _folds(entry, manifest)
    except BenchError as error:
        raise file.error((*where, "split"), str(error)) from None
    if quick:
        folds = folds[: spec.quick.folds]
    for fold in folds:
        if spec.select != "last" and not manifest.parts(entry.split, fold).val:
            raise file.error(
                ("select",), f"{spec.select!r} needs validation cases, and split {entry.split!r} has none."
            )
        if spec.tune is not None and not manifest.parts(entry.split, fold).val:
            raise file.error(
                ("tune",),
                f"trials are compared on validation cases, and split {entry.split!r} of {manifest.name} has none; "
                "take a split with `val`, or leave `tune` away.",
            )
        _check_cases(spec, file, manifest, manifest.parts(entry.split, fold).train, quick)
    _check_dimensions(spec, file, entry, where, manifest)
    losses = expand_losses(spec.losses, spec.with_, file)
    check_spaces(spec, losses, file)
    tunings = {loss.label: tuning_of(spec, loss, file) for loss in losses}
    models = _models(spec, file, ("quick", "models") if quick and spec.quick.models else ("models",))
    conditions = _conditions(spec, file, manifest)
    sizes = _sizes(spec, manifest, entry.split, folds, quick)
    repeats = spec.seeds if isinstance(spec.seeds, int) else len(spec.seeds)
    number = repeats * len(losses) * len(models) * len(folds) * len(conditions) * len(sizes)
    if number > MOST_CELLS:
        raise file.error(("seeds",), f"the grid has {number:,} cells, and a suite at most {MOST_CELLS:,}; split it.")
    seeds = list(range(spec.seeds)) if isinstance(spec.seeds, int) else spec.seeds
    for cases in sizes:
        drawn = isinstance(cases, int) and isinstance(spec.train.cases, list)  # one number alone draws nothing
        draws: list[int | None] = [*seeds] if drawn else [None]
        for labels in conditions:
            datas = {
                (fold, draw): _data(spec, entry, manifest, fold, quick, labels, cases, draw)
                for fold in folds
                for draw in draws
            }
            for model in models:
                for loss in losses:
                    for fold in folds:
                        for seed in seeds:
                            data = datas[fold, seed if drawn else None]
                            tuning = tunings[loss.label]
                            yield _cell(spec, manifest, data, model, loss, seed, quick, cases, tuning)


def _conditions(spec: SuiteFile, file: YamlFile, manifest: Manifest) -> list[Canonical]:
    """What is done to the training labels: the axis `labels`."""
    found = expand(spec.labels)
    for at, labels in found:
        where = ("labels",) if at is None else ("labels", at)
        if reason := refusal(labels, manifest):
            raise file.error(where, reason)
    if (again := twice([labels for _, labels in found])) is not None:
        raise file.error(("labels",), f"{title_of(again)!r} stands in it a second time; keep one.")
    return [labels for _, labels in found]


def _check_cases(spec: SuiteFile, file: YamlFile, manifest: Manifest, train: Sequence[str], quick: bool) -> None:
    """Refuse more training cases, or patients, than there are."""
    wanted = spec.train.cases
    if isinstance(wanted, int) and not quick and wanted > len(train):
        raise file.error(
            ("train", "cases"), f"{wanted} of {len(train)} training cases of {manifest.name}; expected fewer."
        )
    patients = len({manifest.patient_of(c) for c in train})
    for i, one in enumerate(wanted if isinstance(wanted, list) and not quick else ()):
        if isinstance(one, int) and one >= patients:
            raise file.error(
                ("train", "cases", i),
                f"{one} of {patients} training patients of {manifest.name}; expected fewer, or all.",
            )


def _sizes(
    spec: SuiteFile, manifest: Manifest, split: str, folds: Sequence[int | None], quick: bool
) -> list[Literal["all"] | int]:
    """The axis `train.cases`; of few quick cases, the numbers of patients that they have."""
    wanted = spec.train.cases
    if not isinstance(wanted, list):
        return [wanted]
    if not quick:
        return wanted
    few = [manifest.parts(split, fold).train[: spec.quick.cases] for fold in folds]
    least = min(len({manifest.patient_of(c) for c in cases}) for cases in few)
    return [n for n in wanted if n == "all" or n < least] or ["all"]


def _drawn(manifest: Manifest, train: Sequence[str], split: str, fold: int | None, count: int, seed: int) -> list[str]:
    """The cases of `count` patients, drawn by the repeat; those of a smaller number are among those of a larger one."""
    base = {"data": manifest.name, "split": split, "fold": fold, "repeat": seed}
    patients = {manifest.patient_of(case) for case in train}
    chosen = set(sorted(patients, key=lambda p: (seed_of("cases", base | {"patient": p}), p))[:count])
    return [case for case in train if manifest.patient_of(case) in chosen]


def _folds(entry: DataEntry, manifest: Manifest) -> list[int | None]:
    chosen = manifest.split(entry.split)
    if chosen.folds is None:
        if entry.folds is not None:
            raise BenchError(f"split {entry.split!r} of {manifest.name} has no folds; leave `folds` away.")
        return [None]
    folds = entry.folds if isinstance(entry.folds, list) else list(range(chosen.folds))
    for fold in folds:
        manifest.parts(entry.split, fold)
    return [*folds]


def _models(spec: SuiteFile, file: YamlFile, key: tuple[str, ...]) -> list[ModelChoice]:
    found: list[tuple[Choice, SourceInfo, dict[str, Any] | None, str | None]] = []
    for i, entry in enumerate(spec.models):
        if isinstance(entry, dict) and len(entry) != 1:
            raise file.error((*key, i), "expected one `name: {arguments}`.")
        name, args = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        where = (*key, i, name) if isinstance(entry, dict) else (*key, i)
        if args is not None and not isinstance(args, dict):
            raise file.error(where, "expected `name: {argument: value}`.")
        try:
            place = locate(name, MODELS, "model", file.path.parent, BARE_MODULE)
        except BenchError as error:
            raise file.error(where, str(error)) from None
        for choice in expand_arguments(name, args or {}, file, where):
            wanted = {k: v for k, v in choice.args.items() if k != "init"}
            wrong = place.check_arguments(wanted, frozenset(FILLED_MODEL_ARGUMENTS))
            if wrong:
                bad = next((k for k in wanted if f"{k!r}" in wrong), None)
                raise file.error((*where, bad) if bad else where, wrong)
            if name in MODELS and (small := next((k for k, v in wanted.items() if _below_one(v)), None)):
                raise file.error((*where, small), f"expected at least 1, found {wanted[small]}.")
            init, path = _init(spec, choice.args, file, where)
            fixed = Choice(choice.name, place.normalised(wanted))
            one = (fixed, SourceInfo(place.target, place.version, place.digest), init, path)
            if any((fixed, one[1], init) == other[:3] for other in found):
                raise file.error(where, f"the model {label_of(fixed)!r} stands here a second time; keep one.")
            found.append(one)
    named = [Choice(c.name, c.args | ({"init": Path(p).stem} if p else {})) for c, _, _, p in found]
    return [ModelChoice(*f[:2], label_of(n, named), *f[2:]) for f, n in zip(found, named, strict=True)]


def _below_one(value: Any) -> bool:
    """Whether a whole number, or one of a list, is below 1: each of a built-in model counts or measures something."""
    return any(type(v) is int and v < 1 for v in (value if isinstance(value, list) else [value]))


def _init(
    spec: SuiteFile, args: dict[str, Any], file: YamlFile, where: tuple[Any, ...]
) -> tuple[dict[str, Any] | None, str | None]:
    """What a model starts from: its own `init`, else that of `train`; with the digest of the file for the id."""
    given, key = spec.train.init, ("train", "init")
    if "init" in args:
        key = (*where, "init")
        if args["init"] is not None and not isinstance(args["init"], dict):
            raise file.error(key, "expected {checkpoint: FILE}, or null for random weights.")
        given = None if args["init"] is None else file.parse(Init, args["init"], key)
    if given is None:
        return None, None
    places = [folder / given.checkpoint for folder in (file.path.parent, Path())]
    path = next((p for p in places if there(p)), None)
    if path is None:
        raise file.error(
            (*key, "checkpoint"), f"no file {given.checkpoint!r} beside the suite or in the working directory."
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest} | given.model_dump(mode="json", exclude={"checkpoint"}), str(path.resolve())


def _data(
    spec: SuiteFile,
    entry: DataEntry,
    manifest: Manifest,
    fold: int | None,
    quick: bool,
    labels: Canonical,
    cases: Literal["all"] | int,
    draw: int | None,
) -> dict[str, Any]:
    """The data of a cell: which cases, and how they become arrays; with `draw`, `cases` patients of that repeat."""
    parts = manifest.parts(entry.split, fold)
    view = entry.view()
    limit = cases if isinstance(cases, int) and draw is None else None
    train, val, test = list(parts.train[:limit]), list(parts.val), list(parts.test)
    if quick:
        train, val, test = (part[: spec.quick.cases] for part in (train, val, test))
        cut = view.get("slices") or view["patches"]
        cut["size"] = _quick_size(spec.quick.size, 2 if entry.slices else 3)
    if draw is not None:
        train = _drawn(manifest, train, entry.split, fold, int(cases), draw)
    data: dict[str, Any] = {
        "manifest": manifest.name,
        "digest": manifest.digest(),
        "split": entry.split,
        "fold": fold,
        "train": train,
        "val": val,
        "test": test,
        "view": view,
        "labels": labels,
    }
    if draw is not None:
        data["patients"] = cases
    if quick:
        data["phantom"] = 1  # PHANTOM_VERSION of harness.data.phantoms
    if manifest.spec.regions is not None:  # members in the order of the classes: their order changes nothing
        data["regions"] = {n: [c for c in manifest.classes if c in m] for n, m in manifest.spec.regions.items()}
    return data


def _quick_size(size: int | list[int], dims: int) -> list[int]:
    if isinstance(size, list):
        return size[-dims:]
    return [size] * dims if dims == 2 else [min(size, 16), *[size] * 2]


def _cell(
    spec: SuiteFile,
    manifest: Manifest,
    data: dict[str, Any],
    model: ModelChoice,
    loss: LossChoice,
    seed: int,
    quick: bool,
    cases: Literal["all"] | int,
    tuning: dict[str, Any] | None,
) -> Cell:
    named = {"name": model.choice.name, "args": model.choice.args, "version": model.source.version}
    return Cell(
        suite=spec.suite,
        dataset=name_of(manifest.name, data["labels"], data.get("patients")),
        manifest_path=str(manifest.path),
        data=data,
        model=named if model.init is None else named | {"init": model.init},
        model_label=model.label,
        model_source=model.source,
        loss=loss.spec,
        loss_label=loss.label,
        loss_digest=loss.digest,
        seed=seed,
        train=_train(spec, quick, cases) | {"select": spec.select} | ({} if tuning is None else {"tune": tuning}),
        metrics=tuple(spec.metrics),
        quick=quick,
        timeout=spec.timeout,
        skip=lacking(loss, model.choice.name),
        profiles=check_profiles(spec.profile),
        engine=spec.engine,
        init_path=model.init_path,
    )


def _train(spec: SuiteFile, quick: bool, cases: Literal["all"] | int) -> dict[str, Any]:
    """The training section as it enters the id; what a model starts from stands with the model."""
    train = spec.train.model_dump(mode="json") | {"init": None, "cases": cases}
    if train["deep_supervision"] is None:
        del train["deep_supervision"]
    if train["accumulate"] == 1:
        del train["accumulate"]
    if quick:
        train["cases"] = spec.quick.cases
    return train


def lacking(loss: LossChoice, model: str) -> str | None:
    """Why the pair cannot be run: the loss needs what this model does not provide; None where it can."""
    wanted = {"embedding" if n in HEADS else n for n in loss.needs}  # attached heads sit on the embedding
    absent = sorted(n for n in wanted if n in MODEL_NEEDS and n not in provided(model))
    return f"{loss.label} needs {', '.join(absent)}, which {model} does not provide" if absent else None


def _check_unique(cells: list[Cell], file: YamlFile) -> None:
    seen: dict[object, Cell] = {}
    for cell in cells:
        place = (cell.dataset, cell.data["split"], cell.data["fold"], cell.model_label, cell.loss_label, cell.seed)
        if seen.setdefault(cell.train_id, cell) is not cell:
            raise file.error(("data",), f"{cell.title} stands in the grid twice; keep one.")
        if seen.setdefault(place, cell) is not cell:
            raise file.error((), f"two cells would both be called {cell.title}; put them into suites of their own.")


def _check_dimensions(
    spec: SuiteFile, file: YamlFile, entry: DataEntry, where: tuple[Any, ...], manifest: Manifest
) -> None:
    """Refuse what cannot be done with images, or with volumes."""
    dims = manifest.spec.dimensions
    sides = 2 if entry.slices else 3
    if isinstance(spec.quick.size, list) and len(spec.quick.size) < sides:
        raise file.error(("quick", "size"), f"expected one number or {sides}, found {len(spec.quick.size)}.")
    if dims == 2 and (entry.slices is None or entry.slices.axis != 0):
        key = "patches" if entry.slices is None else "slices"
        raise file.error((*where, key), f"{manifest.name} is a 2D data set; give `slices: {{size: [h, w]}}`, axis 0.")
    if spec.tune is not None and dims not in metric_of(spec.tune.metric.removesuffix("@val"))[0].dims:
        raise file.error(
            ("tune", "metric"), f"{spec.tune.metric!r} is for 2D data sets, and {manifest.name} has volumes."
        )
    for i, name in enumerate(spec.metrics):
        if dims not in metric_of(name)[0].dims:
            raise file.error(
                ("metrics", i), f"{name!r} is for 2D data sets, and {manifest.name} has volumes; leave it away."
            )


def _check_baseline(spec: SuiteFile, file: YamlFile, losses: set[str]) -> None:
    if spec.rank.baseline is not None and spec.rank.baseline not in losses:
        known = ", ".join(sorted(losses))
        raise file.error(
            ("rank", "baseline"),
            f"{spec.rank.baseline!r} is not one of the suite's losses{nearest(spec.rank.baseline, losses)}: {known}.",
        )
