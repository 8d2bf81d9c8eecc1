"""A cell: one training and its evaluation, with identities that are the same in plan and record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.data.conditions import DRAWN, kind_of
from harness.turns import Turns

# Raised when the same configuration would give other weights, or other metric values.
TRAIN_VERSION = 1
EVAL_VERSION = 1

PROFILE, ENGINE = "voxel-max", "simpleitk"  # the defaults of a suite; ids were made of them before there were others


@dataclass(frozen=True)
class SourceInfo:
    """Where a class comes from: what a worker imports, its version, the digest of its source."""

    target: str
    version: int
    digest: str


@dataclass(frozen=True)
class Cell:
    """One point of the grid loss × model × data set × fold × seed, fully resolved and plain data.

    Attributes:
        dataset: What the data set is called in tables: its name, and where the suite has such axes what was done to the
            training labels and how many patients were trained on, `hippocampus [5 patients, jitter sigma=2]`.
        data: Manifest name and digest, split, fold, cases of each part, view (slices or patches), labels ("clean", or a
            condition in canonical form, see `harness.data.conditions`); `regions` (name → classes) where they are what
            is measured; `patients`, how many were drawn for training, where the suite asks for several numbers.
        model: Name, arguments, version. `model_source` says where the class is.
        loss: Canonical loss specification (see `harness.grid`).
        seed: The repeat.
        train: Resolved training section, with `select`; and with `tune` where the loss is tuned before it is trained.
        metrics: Canonical names of what is measured; those of the scope `dataset` are made by the report.
        skip: Why this cell cannot be run, or None.
        profiles: Profiles that distances are measured under, in order.
        engine: What computes the distances.
        scored_by: The losses behind the metrics `loss:NAME`: name of the metric to `{"loss": specification, "digest":
            of its sources}`.
        init_path: The file of weights that the model starts from; its digest stands in `model`.
        trial: Which trial of its study the cell is, or None; a name, it enters no id.
    """

    suite: str
    dataset: str
    manifest_path: str
    data: dict[str, Any]
    model: dict[str, Any]
    model_label: str
    model_source: SourceInfo
    loss: dict[str, Any]
    loss_label: str
    loss_digest: str
    seed: int
    train: dict[str, Any]
    metrics: tuple[str, ...]
    quick: bool
    timeout: float | None
    skip: str | None
    profiles: tuple[str, ...] = (PROFILE,)
    engine: str = ENGINE
    init_path: str | None = None
    scored_by: dict[str, dict[str, Any]] = field(default_factory=dict)
    trial: int | None = None

    @cached_property
    def train_id(self) -> str:
        """Hash of everything that decides the weights."""
        data = {k: v for k, v in self.data.items() if k not in ("test", "regions")}
        parts = ["train", TRAIN_VERSION, data, self.model, _identity(self.loss), self.train, self.seed]
        if self.train["select"] == "last" and "tune" not in self.train:
            data.pop("val")  # validation cases are then only watched
        elif extra := self._scoring():
            parts.append({"selected by": extra})  # another score can choose another epoch, or other arguments
        return _hash(*parts, {"quick": self.quick})

    @cached_property
    def eval_id(self) -> str:
        """Hash of `train_id` and of everything that decides the metric rows."""
        scoring = {"profile": PROFILE} | self._scoring()
        if self.scored_by:  # with arguments and version: a name says neither
            scoring["losses"] = self._scored()
        return _hash("eval", EVAL_VERSION, self.train_id, self.data["test"], list(self.metrics), scoring)

    @property
    def sources(self) -> dict[str, str]:
        """Digests of the sources that the results rest on, as they stand in records."""
        found = {"loss": self.loss_digest, "model": self.model_source.digest}
        return found | self.scoring_sources

    @property
    def scoring_sources(self) -> dict[str, str]:
        """Digests of the sources of the losses that score, by metric."""
        return {name: one["digest"] for name, one in self.scored_by.items()}

    def _scored(self) -> dict[str, Any]:
        return {name: _identity(one["loss"]) for name, one in self.scored_by.items()}

    def _scoring(self) -> dict[str, Any]:
        """What of the scoring is not the default: profiles, engine, regions."""
        found: dict[str, Any] = {}
        if self.profiles != (PROFILE,):
            found["profile"] = list(self.profiles)
        if self.engine != ENGINE:
            found["engine"] = self.engine
        if "regions" in self.data:
            found["regions"] = self.data["regions"]
        return found

    @property
    def seed_base(self) -> dict[str, Any]:
        """What seeds depend on: everything that losses of one suite share, and never the loss.

        Nor does it hold what was done to the labels or how many patients there are: settings are paired, too.
        """
        return {
            "data": self.data["manifest"],
            "split": self.data["split"],
            "fold": self.data["fold"],
            "model": {k: self.model[k] for k in ("name", "args")},
            "repeat": self.seed,
        }

    @property
    def repeats_differ(self) -> bool:
        """Whether each repeat trains on data of its own: other patients, or labels degraded by another draw."""
        return "patients" in self.data or kind_of(self.data["labels"]) in DRAWN

    @property
    def title(self) -> str:
        """A short name for progress and messages."""
        fold = "" if self.data["fold"] is None else f" fold {self.data['fold']}"
        run = f"seed {self.seed}" if self.trial is None else f"trial {self.trial}"
        return f"{self.loss_label} / {self.model_label} / {self.dataset}{fold} / {run}"

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that say in every table which cell a row is of."""
        return {
            "dataset": self.dataset,
            "split": self.data["split"],
            "fold": self.data["fold"],
            "model": self.model_label,
            "loss": self.loss_label,
            "seed": self.seed,
        }

    def folder(self, out: Path) -> Path:
        """Folder of the training under the results folder."""
        return out / self.train_id

    def eval_folder(self, out: Path) -> Path:
        """Folder of the evaluation: complete when `record.json` is there."""
        return self.folder(out) / self.eval_id

    def described(self) -> dict[str, Any]:
        """The resolved configuration, as it stands in records."""
        return ({"scored_by": self._scored()} if self.scored_by else {}) | {
            "suite": self.suite,
            "dataset": self.dataset,
            "split": self.data["split"],
            "fold": self.data["fold"],
            "model": self.model | {"label": self.model_label},
            "loss": _identity(self.loss) | {"label": self.loss_label},
            "seed": self.seed,
            "data": self.data,
            "train": self.train,
            "metrics": list(self.metrics),
            "profiles": list(self.profiles),
            "engine": self.engine,
            "quick": self.quick,
        }


@dataclass(frozen=True)
class Place:
    """Where things are on this machine; none of it enters an id.

    Attributes:
        out: Folder of results.
        root: Folder in which data sets lie, or None.
        device: "cpu", "cuda" or "cuda:1".
        beside: Processes that share the memory of the device, this one included.
        sharing: What says how many share a GPU, for messages.
        turns: Who may train on the device, where more processes share it than may train at once.
    """

    out: Path
    root: Path | None
    device: str = "cpu"
    beside: int = 1
    sharing: str = "--per-device"
    turns: Turns | None = None

    @property
    def cache(self) -> Path:
        """Folder of preprocessed cases."""
        return self.out / "cache"


def _identity(loss: Any) -> Any:
    """The loss without the place of its source file, which differs between machines."""
    if isinstance(loss, dict):
        return {k: _identity(v) for k, v in loss.items() if k != "class"}
    return [_identity(v) for v in loss] if isinstance(loss, list) else loss


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
