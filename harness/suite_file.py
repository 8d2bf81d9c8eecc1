"""The schema of a suite file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from harness.cell import ENGINE, PROFILE
from harness.data.conditions import STRENGTHS, Condition
from harness.data.intensity import Intensity
from harness.errors import BenchError
from harness.metrics.table import ENGINES, PROFILES
from harness.published import published_names, published_table
from harness.yamlfile import Strict, nearest

PositiveFloat = Annotated[float, Field(gt=0)]
Positive = Annotated[int, Field(gt=0)]
# Checked by hand, for a sentence that names the nearest; the editor's schema knows the names all the same.
ProfileName = Annotated[str, Field(json_schema_extra={"enum": list(PROFILES)})]
EngineName = Annotated[str, Field(json_schema_extra={"enum": list(ENGINES)})]


T = TypeVar("T", int, int | str)


def _once(what: str, values: list[T]) -> list[T]:
    """A list of numbers without a repetition, and not empty."""
    if not values:
        raise ValueError(f"the list is empty; give at least one {what}")
    if twice := [n for n in values if values.count(n) > 1]:
        raise ValueError(f"the {what} {twice[0]} stands here a second time; keep one")
    return values


class Slices(Strict):
    """2D: every slice along `axis` of the volume is one sample."""

    size: tuple[Positive, Positive] = Field(examples=[[256, 256]])
    fit: Literal["pad", "resize"] = "pad"
    axis: Literal[0, 1, 2] = 0
    keep: Literal["all", "labelled"] = "all"  # labelled: only slices with a class on them are trained on


class Patches(Strict):
    """3D: random patches, a share of them centred on the foreground; sliding window at inference."""

    size: tuple[Positive, Positive, Positive] | Literal["nnunet"] = Field(examples=[[64, 128, 128]])
    foreground: float = Field(default=0.33, ge=0, le=1)
    overlap: float = Field(default=0.5, ge=0, lt=1)  # of neighbouring windows at inference


class Resample(Strict):
    """The grid that volumes are brought to before they are cut; predictions go back to their own."""

    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | Literal["median", "nnunet", "mist"] = Field(
        examples=[[1.0, 1.0, 1.0]]
    )


class DataEntry(Strict):
    """One data set of the grid."""

    manifest: str
    split: str
    folds: Literal["all"] | list[Annotated[int, Field(ge=0)]] | None = None
    slices: Slices | None = Field(default=None, examples=[{"size": [256, 256]}])
    patches: Patches | None = Field(default=None, examples=[{"size": [64, 128, 128]}])
    resample: Resample | None = Field(default=None, examples=[{"spacing": "median"}])
    crop: Literal["nonzero", "body"] | None = None
    intensity: Intensity | None = Field(default=None, examples=[{"zscore": "volume"}])  # instead of the manifest's
    canonical: bool = False  # axes brought into one order first

    @model_validator(mode="after")
    def _view(self) -> DataEntry:
        if (self.slices is None) == (self.patches is None):
            raise ValueError("give either `slices: {size: [h, w]}` (2D) or `patches: {size: [d, h, w]}` (3D)")
        return self

    @field_validator("folds")
    @classmethod
    def _folds(cls, value: str | list[int] | None) -> str | list[int] | None:
        return _once("fold", value) if isinstance(value, list) else value

    def view(self) -> dict[str, Any]:
        """What of this decides the arrays; keys that came later stand in it only where they say something."""
        cut = self.slices or self.patches
        assert cut is not None
        later = {"keep": "all"} if self.slices else {"overlap": 0.5}
        shape = {k: v for k, v in cut.model_dump(mode="json").items() if k not in later or v != later[k]}
        view: dict[str, Any] = {"slices" if self.slices else "patches": shape}
        rest = self.model_dump(mode="json", exclude={"manifest", "split", "folds", "slices", "patches"})
        for key, value in rest.items():
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if v is not None}
            if value is not None and value is not False:
                view[key] = value
        return view


class Augment(Strict):
    """Random transforms of a training batch; ranges are uniform, drawn per sample."""

    rotate: float = Field(default=0.0, ge=0, le=180)  # degrees, ±
    scale: float = Field(default=0.0, ge=0, lt=1)  # zoom by 1 ± this
    shift: float = Field(default=0.0, ge=0, lt=1)  # translation by ± this share of the size
    flip: bool = False  # each spatial axis with probability one half
    noise: float = Field(default=0.0, ge=0)  # SD of added Gaussian noise, in units of the input
    intensity: float = Field(default=0.0, ge=0, lt=1)  # gain by 1 ± this


class PresetAugment(Strict):
    """The augmentation of a published recipe (see docs/suites.md)."""

    preset: Literal["transunet", "nnunet"]
    flip: bool = True  # false where left and right differ


class Init(Strict):
    """Start from a local file of weights instead of random ones."""

    checkpoint: str  # .safetensors, .pt, or a published .npz that the model can read
    # prefix in the file: prefix in the model; null leaves the prefix out on both sides
    map: dict[str, str | None] = Field(default_factory=dict)
    freeze: list[str] = Field(default_factory=list)  # prefixes of what does not learn
    lr: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # prefix: factor on the learning rate


class Train(Strict):
    """How every cell is trained."""

    elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("lr", "learning_rate"), "optimizer: {adamw: {lr: 1e-3}}"
    ) | {
        key: f"optimizer: {{sgd: {{lr: 1e-2, {key}: {value}}}}}"
        for key, value in {"momentum": "0.9", "nesterov": "true", "weight_decay": "1e-4"}.items()
    }
    epochs: Positive
    batch: Positive
    steps: Positive | None = None  # per epoch; by default as many as visit every sample once
    accumulate: Positive = 1  # parts of a batch that go through the model one after the other, before one step
    optimizer: dict[Literal["sgd", "adam", "adamw"], dict[str, float | bool]] = Field(
        examples=[{"adamw": {"lr": 0.001}}]
    )
    schedule: Literal["constant", "poly", "cosine", "plateau"] = "poly"
    precision: Literal["float32", "bf16"] = "float32"
    clip: float | None = Field(default=None, gt=0)  # of the gradient's norm
    augment: Augment | PresetAugment = Field(default=Augment(), examples=[{"preset": "nnunet"}])
    cases: Literal["all"] | Positive | list[Literal["all"] | Positive] = "all"  # a list is an axis, of patients
    init: Init | None = Field(default=None, examples=[{"checkpoint": "weights.pt"}])
    deep_supervision: bool | None = None  # by default where the model gives logits at lower resolutions

    @field_validator("cases")
    @classmethod
    def _cases(cls, value: str | int | list[int | str]) -> str | int | list[int | str]:
        return _once("number of training patients", value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _parts(self) -> Train:
        if self.batch % self.accumulate:
            raise ValueError(
                f"accumulate: {self.accumulate} does not divide the batch of {self.batch}; expected one of "
                f"{', '.join(str(n) for n in range(1, min(self.batch, 1024) + 1) if self.batch % n == 0)}"
            )
        return self

    @field_validator("augment", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        """Say what is wrong with a preset, instead of with the ranges that cannot stand beside it."""
        if isinstance(value, dict) and "preset" in value:
            known = get_args(PresetAugment.model_fields["preset"].annotation)
            if value["preset"] not in known:
                near = nearest(str(value["preset"]), known)
                raise ValueError(f"unknown preset {value['preset']!r}{near}; known: {', '.join(known)}")
            if beside := [str(k) for k in value if k not in PresetAugment.model_fields]:
                raise ValueError(f"a preset takes `flip` and nothing else beside it, found {', '.join(beside)}")
        return value

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
        for key, given in args.items():
            if (key == "nesterov") != isinstance(given, bool) or given < 0:
                wanted = "true or false" if key == "nesterov" else "a number from 0"
                raise ValueError(f"{name}: {key} is {wanted}, found {given}")
        if args.get("lr", 0) <= 0:
            raise ValueError(f"{name} needs a learning rate `lr` above 0")
        if args.get("nesterov") and not args.get("momentum"):
            raise ValueError("nesterov needs a momentum above 0")
        return value


class Tune(Strict):
    """The budget that every loss gets over its parameters and the learning rate, on the validation patients."""

    trials: Positive
    lr: tuple[PositiveFloat, PositiveFloat] | None = Field(
        default=None, examples=[[0.0001, 0.01]]
    )  # ends of a logarithmic range
    metric: str = "dice@val"
    epochs: Positive | None = None  # of a trial; by default those of `train`
    at_once: Positive = 1  # trials of one study that are chosen together, and can run side by side
    spaces: dict[str, dict[str, Any]] = Field(default_factory=dict)  # by name or label of a loss

    @field_validator("lr")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"expected a lower and a higher learning rate, found {value[0]:g} and {value[1]:g}")
        return value

    @field_validator("metric")
    @classmethod
    def _on_validation(cls, value: str) -> str:
        if value.endswith("@test"):
            raise ValueError("nothing is ever tuned on the test set; take METRIC@val")
        if not re.fullmatch(r"[a-z0-9_]+(@[^@]+)?@val", value):
            raise ValueError("expected METRIC@val, such as dice@val")
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


class Protocol(Strict):
    """The published protocol that a suite follows, and where it does not; shown on the page.

    Keys are those of the suite (`seeds`, `train.augment`, ...); each sentence says what the paper has and why this
    differs, or what was taken where the paper is silent.
    """

    source: str
    departures: dict[str, str] = Field(default_factory=dict)
    unstated: dict[str, str] = Field(default_factory=dict)
    readings: list[str] = Field(default_factory=list)  # where the source says two things, which is followed

    @model_validator(mode="after")
    def _once(self) -> Protocol:
        both = sorted(self.departures.keys() & self.unstated.keys())
        if both:
            raise ValueError(f"{both[0]!r} stands in `departures` and in `unstated`; a paper states it or does not")
        return self

    def sentences(self) -> list[str]:
        """What the page says of it."""
        return [
            f"Protocol of {self.source}.",
            *(f"Departure, {key}: {text}" for key, text in self.departures.items()),
            *(f"Not stated in the source, {key}: {text}" for key, text in self.unstated.items()),
            *self.readings,
        ]


class Quick(Strict):
    """What `--quick` overrides; it runs on a phantom in the data set's own layout."""

    epochs: Positive = 2
    steps: Positive | None = None
    cases: Positive = 4  # of each part
    size: Positive | list[Positive] = 64
    batch: Positive | None = None
    seeds: Positive | None = None
    folds: Positive = 1
    trials: Positive = 2  # of each study, where the suite is tuned
    models: list[str | dict[str, Any]] | None = Field(default=None, min_length=1)


class SuiteFile(Strict):
    """The schema of `suites/*.yaml`."""

    suite: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    data: DataEntry | list[DataEntry] = Field(
        examples=[{"manifest": "phantom", "split": "default", "slices": {"size": [256, 256]}}]
    )
    models: list[str | dict[str, Any]] = Field(min_length=1)
    losses: list[str | dict[str, Any]] = Field(min_length=1)
    with_: dict[str, Any] | None = Field(default=None, alias="with", examples=[{"varied": 0.5, "ce": 0.5}])
    seeds: Positive | list[Annotated[int, Field(ge=0)]] = 1
    train: Train
    labels: Literal["clean"] | Condition | list[Literal["clean"] | Condition] = "clean"  # a list is an axis
    select: str = "last"
    tune: Tune | None = None
    metrics: list[str] = Field(default_factory=lambda: ["dice", "hd95", "asd"], min_length=1)
    profile: ProfileName | list[ProfileName] = PROFILE
    engine: EngineName = ENGINE
    rank: Rank = Rank()
    report: Report = Report()
    protocol: Protocol | None = None
    quick: Quick = Quick()
    timeout: float | None = Field(default=None, gt=0)

    @field_validator("data")
    @classmethod
    def _data(cls, value: DataEntry | list[DataEntry]) -> DataEntry | list[DataEntry]:
        if value == []:
            raise ValueError("the list is empty; give at least one data set")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: int | list[int]) -> int | list[int]:
        return _once("seed", value) if isinstance(value, list) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _labels(cls, value: Any) -> Any:
        """Say what a condition looks like, where what stands there is neither a word nor a mapping of one."""
        for one in value if isinstance(value, list) else [value]:
            if one != "clean" and not isinstance(one, (dict, Condition)):
                raise ValueError(
                    "expected clean, a condition such as {jitter: {sigma: 2}}, or a list of them; conditions are "
                    f"{', '.join(STRENGTHS)}"
                )
        if value == []:
            raise ValueError("the list is empty; give at least one condition, or clean")
        return value

    @field_validator("select")
    @classmethod
    def _select(cls, value: str) -> str:
        if value == "last" or re.fullmatch(r"best:[a-z0-9_]+(@[^@]+)?@val", value):
            return value
        if value.endswith("@test"):
            raise ValueError("a network is never selected on the test set; use last or best:METRIC@val")
        raise ValueError("expected last or best:METRIC@val")
