"""Suite files: schema, validation, and the expansion of the grid loss × model × data set × fold × seed into cells.

No torch here: `bench plan` and a finished `bench run` answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.cell import ENGINE, PROFILE, Cell, SourceInfo
from harness.data.manifest import Manifest, load_manifest, packed
from harness.errors import BenchError
from harness.grid import Choice, LossChoice, expand_arguments, expand_losses, label_of
from harness.losses.needs import HEADS, MODEL_NEEDS
from harness.metrics.table import ENGINES, PROFILES, check_profiles, metric_of
from harness.models import BARE_MODULE, MODELS, provided
from harness.published import published_names, published_table
from harness.resolve import locate
from harness.suite_metrics import canonical_metrics, of_volumes
from harness.yamlfile import Strict, YamlFile, nearest, read_yaml

Positive = Annotated[int, Field(gt=0)]
# Checked by hand, for a sentence that names the nearest; the editor's schema knows the names all the same.
ProfileName = Annotated[str, Field(json_schema_extra={"enum": list(PROFILES)})]
EngineName = Annotated[str, Field(json_schema_extra={"enum": list(ENGINES)})]


class Slices(Strict):
    """2D: every slice along `axis` of the volume is one sample."""

    size: tuple[Positive, Positive]
    fit: Literal["pad", "resize"] = "pad"
    axis: Literal[0, 1, 2] = 0


class Patches(Strict):
    """3D: random patches, a share of them centred on the foreground; sliding window at inference."""

    size: tuple[Positive, Positive, Positive]
    foreground: float = Field(default=0.33, ge=0, le=1)


class DataEntry(Strict):
    """One data set of the grid."""

    manifest: str
    split: str
    folds: Literal["all"] | list[Annotated[int, Field(ge=0)]] | None = None
    slices: Slices | None = None
    patches: Patches | None = None

    @model_validator(mode="after")
    def _view(self) -> DataEntry:
        if (self.slices is None) == (self.patches is None):
            raise ValueError("give either `slices: {size: [h, w]}` (2D) or `patches: {size: [d, h, w]}` (3D)")
        return self


class Augment(Strict):
    """Random transforms of a training batch; ranges are uniform, drawn per sample."""

    rotate: float = Field(default=0.0, ge=0, le=180)  # degrees, ±
    scale: float = Field(default=0.0, ge=0, lt=1)  # zoom by 1 ± this
    shift: float = Field(default=0.0, ge=0, lt=1)  # translation by ± this share of the size
    flip: bool = False  # each spatial axis with probability one half
    noise: float = Field(default=0.0, ge=0)  # SD of added Gaussian noise, in units of the input
    intensity: float = Field(default=0.0, ge=0, lt=1)  # gain by 1 ± this


class Train(Strict):
    """How every cell is trained."""

    epochs: Positive
    batch: Positive
    steps: Positive | None = None  # per epoch; by default as many as visit every sample once
    optimizer: dict[Literal["sgd", "adam", "adamw"], dict[str, float | bool]]
    schedule: Literal["constant", "poly", "cosine", "plateau"] = "poly"
    precision: Literal["float32", "bf16"] = "float32"
    clip: float | None = Field(default=None, gt=0)  # of the gradient's norm
    augment: Augment = Augment()
    cases: Literal["all"] | Positive = "all"
    init: None = None

    @field_validator("optimizer")
    @classmethod
    def _one(cls, value: dict[str, dict[str, float | bool]]) -> dict[str, dict[str, float | bool]]:
        allowed = {
            "sgd": {"lr", "momentum", "weight_decay", "nesterov"},
            "adam": {"lr", "weight_decay"},
            "adamw": {"lr", "weight_decay"},
        }
        if len(value) != 1:
            raise ValueError("expected one of {sgd: {...}}, {adam: {...}}, {adamw: {...}}")
        name, args = next(iter(value.items()))
        for key in args:
            if key not in allowed[name]:
                known = ", ".join(sorted(allowed[name]))
                raise ValueError(f"{name} has no argument {key!r}{nearest(key, allowed[name])}; it has: {known}")
        if not isinstance(args.get("lr"), (int, float)) or args["lr"] <= 0:
            raise ValueError(f"{name} needs a learning rate `lr` above 0")
        if args.get("nesterov") and not args.get("momentum"):
            raise ValueError("nesterov needs a momentum above 0")
        return value


class Rank(Strict):
    """What the report orders by."""

    by: list[str] = Field(default_factory=lambda: ["dice"], min_length=1)
    baseline: str | None = None
    rope: float = Field(default=0.01, gt=0, lt=1)  # differences of fractions up to this do not matter


FORMATS = ("html", "csv", "latex")  # of a report


class Report(Strict):
    """Which tables and figures, and which published table stands beside them."""

    layout: tuple[
        Literal["survey_table", "loss_by_model", "sweeps", "jadon", "celaya", "curves", "qualitative"], ...
    ] = ("survey_table", "curves", "qualitative")
    published: str | None = Field(
        default=None, json_schema_extra=lambda schema: schema.update(enum=[*published_names().tables, None])
    )
    notes: list[str] = Field(default_factory=list)

    @field_validator("published")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                published_table(value)
            except BenchError as error:
                raise ValueError(str(error)) from None
        return value


class Quick(Strict):
    """What `--quick` overrides; it runs on the phantom."""

    epochs: Positive = 2
    steps: Positive | None = None
    cases: Positive = 4
    size: Positive = 64


class SuiteFile(Strict):
    """The schema of `suites/*.yaml`."""

    suite: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    data: DataEntry | list[DataEntry]
    models: list[str | dict[str, Any]] = Field(min_length=1)
    losses: list[str | dict[str, Any]] = Field(min_length=1)
    with_: dict[str, Any] | None = Field(default=None, alias="with")
    seeds: Positive | list[Annotated[int, Field(ge=0)]] = 1
    train: Train
    labels: Literal["clean"] = "clean"
    select: str = "last"
    tune: None = None
    metrics: list[str] = Field(default_factory=lambda: ["dice", "hd95", "asd"], min_length=1)
    profile: ProfileName | list[ProfileName] = PROFILE
    engine: EngineName = ENGINE
    rank: Rank = Rank()
    report: Report = Report()
    quick: Quick = Quick()
    timeout: float | None = Field(default=None, gt=0)

    @field_validator("select")
    @classmethod
    def _select(cls, value: str) -> str:
        if value == "last" or re.fullmatch(r"best:[a-z0-9_]+(@[^@]+)?@val", value):
            return value
        if value.endswith("@test"):
            raise ValueError("a network is never selected on the test set; use last or best:METRIC@val")
        raise ValueError("expected last or best:METRIC@val")


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


def load_suite(path: str | Path, quick: bool = False) -> Suite:
    """Read, validate and expand a suite file.

    Args:
        path: A file, or the name of a suite that ships with the package.
        quick: Apply the suite's `quick:` overrides, on the phantom.

    Raises:
        BenchError: One sentence with file, line, key, what was found and what was expected.
    """
    found = Path(path)
    if not found.is_file() and (packed("suites") / f"{found.name.removesuffix('.yaml')}.yaml").is_file():
        found = packed("suites") / f"{found.name.removesuffix('.yaml')}.yaml"
    file = read_yaml(found)
    spec = canonical_metrics(file.parse(SuiteFile), file)
    entries = spec.data if isinstance(spec.data, list) else [spec.data]
    manifests: dict[str, Manifest] = {}
    cells: list[Cell] = []
    if quick:  # all data sets become the phantom, which has no validation cases
        views = {("slices" if e.slices else "patches"): e for e in reversed(entries)}
        entries = [e for e in entries if any(e is v for v in views.values())]
        spec = spec.model_copy(update={"select": "last"} | of_volumes(spec))
    for i, entry in enumerate(entries):
        where = ("data", i) if isinstance(spec.data, list) else ("data",)
        manifest = _manifest("phantom" if quick else entry.manifest, file, where)
        manifests[manifest.name] = manifest
        cells += _cells_of(spec, file, entry, where, manifest, quick)
    _check_unique(cells, file)
    _check_baseline(spec, file, {c.loss_label for c in cells})
    return Suite(found, spec, quick, manifests, tuple(cells), found.read_text(encoding="utf-8"))


def _manifest(name: str, file: YamlFile, where: tuple[Any, ...]) -> Manifest:
    try:
        return load_manifest(name, file.path.parent)
    except BenchError as error:
        if str(error).startswith("no data manifest"):
            raise file.error((*where, "manifest"), str(error)) from None
        raise


def _cells_of(
    spec: SuiteFile, file: YamlFile, entry: DataEntry, where: tuple[Any, ...], manifest: Manifest, quick: bool
) -> Iterator[Cell]:
    split = "default" if quick else entry.split
    try:
        folds = _folds(entry, manifest, split, quick)
    except BenchError as error:
        raise file.error((*where, "split"), str(error)) from None
    for fold in folds:
        if spec.select != "last" and not manifest.parts(split, fold).val:
            raise file.error(("select",), f"{spec.select!r} needs validation cases, and split {split!r} has none.")
    dims = 2 if entry.slices else 3
    _check_dimensions(spec, file, entry, where, manifest)
    losses = expand_losses(spec.losses, spec.with_, file)
    seeds = list(range(spec.seeds)) if isinstance(spec.seeds, int) else spec.seeds
    models = _models(spec, file)
    for model in models:
        for loss in losses:
            for fold in folds:
                for seed in seeds:
                    label = label_of(model[0], [m for m, _ in models])
                    yield _cell(spec, entry, manifest, split, fold, model, label, loss, seed, quick, dims)


def _folds(entry: DataEntry, manifest: Manifest, split: str, quick: bool) -> list[int | None]:
    chosen = manifest.split(split)
    if quick or chosen.folds is None:
        if entry.folds is not None and not quick:
            raise BenchError(f"split {split!r} of {manifest.name} has no folds; leave `folds` away.")
        return [None]
    folds = entry.folds if isinstance(entry.folds, list) else list(range(chosen.folds))
    for fold in folds:
        manifest.parts(split, fold)
    return [*folds]


def _models(spec: SuiteFile, file: YamlFile) -> list[tuple[Choice, SourceInfo]]:
    out: list[tuple[Choice, SourceInfo]] = []
    for i, entry in enumerate(spec.models):
        name, args = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        where = ("models", i, name) if isinstance(entry, dict) else ("models", i)
        if isinstance(entry, dict) and len(entry) != 1:
            raise file.error(("models", i), "expected one `name: {arguments}`.")
        if args is not None and not isinstance(args, dict):
            raise file.error(where, "expected `name: {argument: value}`.")
        try:
            found = locate(name, MODELS, "model", file.path.parent, BARE_MODULE)
        except BenchError as error:
            raise file.error(where, str(error)) from None
        for choice in expand_arguments(name, args or {}, file, where):
            wrong = found.check_arguments(choice.args, frozenset(FILLED_MODEL_ARGUMENTS))
            if wrong:
                key = next((k for k in choice.args if f"{k!r}" in wrong), None)
                raise file.error((*where, key) if key else where, wrong)
            fixed = Choice(choice.name, found.normalised(choice.args))
            out.append((fixed, SourceInfo(found.target, found.version, found.digest)))
    return out


FILLED_MODEL_ARGUMENTS = ("in_channels", "out_channels", "num_classes", "spatial_dims", "img_size", "image_size")


def _cell(
    spec: SuiteFile,
    entry: DataEntry,
    manifest: Manifest,
    split: str,
    fold: int | None,
    model: tuple[Choice, SourceInfo],
    model_label: str,
    loss: LossChoice,
    seed: int,
    quick: bool,
    dims: int,
) -> Cell:
    parts = manifest.parts(split, fold)
    view = (entry.slices or entry.patches or Strict()).model_dump(mode="json")
    train = spec.train.model_dump(mode="json")
    if quick:
        train |= {"epochs": spec.quick.epochs, "steps": spec.quick.steps, "cases": spec.quick.cases}
        view["size"] = [spec.quick.size] * dims if dims == 2 else [min(spec.quick.size, 16), *[spec.quick.size] * 2]
    limit = None if train["cases"] == "all" else int(train["cases"])
    tests = parts.test[: spec.quick.cases] if quick else parts.test
    data: dict[str, Any] = {
        "manifest": manifest.name,
        "digest": manifest.digest(),
        "split": split,
        "fold": fold,
        "train": list(parts.train[:limit]),
        "val": list(parts.val),
        "test": list(tests),
        "view": {"slices" if dims == 2 else "patches": view},
        "labels": spec.labels,
    }
    if manifest.spec.regions is not None:  # members in the order of the classes: their order changes nothing
        data["regions"] = {n: [c for c in manifest.classes if c in m] for n, m in manifest.spec.regions.items()}
    choice, source = model
    return Cell(
        suite=spec.suite,
        dataset=manifest.name,
        manifest_path=str(manifest.path),
        data=data,
        model={"name": choice.name, "args": choice.args, "version": source.version},
        model_label=model_label,
        model_source=source,
        loss=loss.spec,
        loss_label=loss.label,
        loss_digest=loss.digest,
        seed=seed,
        train=train | {"select": spec.select},
        metrics=tuple(spec.metrics),
        quick=quick,
        timeout=spec.timeout,
        skip=_skip(loss, choice),
        profiles=check_profiles(spec.profile),
        engine=spec.engine,
    )


def _skip(loss: LossChoice, model: Choice) -> str | None:
    """Why the pair cannot be run: the loss needs what this model does not provide."""
    wanted = {"embedding" if n in HEADS else n for n in loss.needs}  # attached heads sit on the embedding
    lacking = sorted(n for n in wanted if n in MODEL_NEEDS and n not in provided(model.name))
    return f"{loss.label} needs {', '.join(lacking)}, which {model.name} does not provide" if lacking else None


def _check_unique(cells: list[Cell], file: YamlFile) -> None:
    seen: dict[object, Cell] = {}
    for cell in cells:
        place = (cell.dataset, cell.data["split"], cell.data["fold"], cell.model_label, cell.loss_label, cell.seed)
        if seen.setdefault(cell.train_id, cell) is not cell:
            raise file.error(("losses",), f"{cell.title} stands in the grid twice; keep one.")
        if seen.setdefault(place, cell) is not cell:
            raise file.error((), f"two cells would both be called {cell.title}; put them into suites of their own.")


def _check_dimensions(
    spec: SuiteFile, file: YamlFile, entry: DataEntry, where: tuple[Any, ...], manifest: Manifest
) -> None:
    """Refuse what cannot be done with images, or with volumes."""
    dims = manifest.spec.dimensions
    if dims == 2 and (entry.slices is None or entry.slices.axis != 0):
        key = "patches" if entry.slices is None else "slices"
        raise file.error((*where, key), f"{manifest.name} is a 2D data set; give `slices: {{size: [h, w]}}`, axis 0.")
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
