"""Splits: which cases are for training, validation and test; a patient stands in one part only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from harness.data.cases import chosen_by
from harness.errors import BenchError
from harness.yamlfile import Strict, YamlFile


class Split(Strict):
    """Lists of cases (an entry may hold `*`), a seeded k-fold over patients, or seeded fractions of the patients.

    Of a k-fold, `validation` is the share of a fold's training patients that is held out to choose by.
    """

    train: list[str] | Literal["rest"] = "rest"
    val: list[str] = Field(default_factory=list)
    test: list[str] = Field(default_factory=list)
    folds: int | None = Field(default=None, ge=2, le=1000)
    fractions: tuple[float, float, float] | None = None  # training, validation, test
    validation: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0

    @field_validator("fractions")
    @classmethod
    def _shares(cls, shares: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if shares is not None and (min(shares) < 0 or not shares[0] or not shares[2] or abs(sum(shares) - 1) > 1e-6):
            raise ValueError("fractions are those of training, validation and test; they add up to 1, and only the "
                             "second may be 0")  # fmt: skip
        return shares

    @model_validator(mode="after")
    def _kind(self) -> Split:
        if self.folds is not None and self.fractions is not None:
            raise ValueError("`folds` and `fractions` both deal the cases out; keep one of them")
        if self.validation and self.folds is None:
            raise ValueError(
                "`validation` is a share of the training patients of `folds`; elsewhere name them in `val`"
            )
        dealt = "folds" if self.folds is not None else "fractions" if self.fractions is not None else None
        if dealt is None and not self.test:
            raise ValueError(
                "a split needs `test` (a list of cases), `folds` (a number) or `fractions` (three numbers)"
            )
        if dealt and (self.test or self.val or self.train != "rest"):
            raise ValueError(f"`{dealt}` deals all cases out by itself; leave train, val and test away")
        return self


@dataclass(frozen=True)
class Parts:
    """Cases of one split (and fold)."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def deal(
    split: Split, name: str, fold: int | None, cases: Sequence[str], patient_of: Callable[[str], str], file: YamlFile
) -> Parts:
    """Give each case its part.

    Args:
        split: What the manifest says.
        name: Its name, for sentences.
        fold: The fold, where there are folds.
        cases: All cases, in order.
        patient_of: The patient of a case.
        file: The manifest, for sentences.

    Raises:
        BenchError: A case is unknown, a patient stands in two parts, or a part is empty.
    """
    if split.folds is not None:
        return _fold(split, name, fold, cases, patient_of, file)
    if split.fractions is not None:
        return _fractions(split, name, cases, patient_of, file)
    lists: dict[str, list[str]] = {}
    for part in ("val", "test", "train"):
        entries = getattr(split, part)
        if entries == "rest":
            held = {*lists["val"], *lists["test"]}
            lists[part] = [c for c in cases if c not in held]
            continue
        lists[part], strange = chosen_by(entries, cases)
        if strange is not None:
            what = f"no case matches {strange!r}" if "*" in strange else f"case {strange!r} is not in `cases`"
            raise file.error(("splits", name, part), f"{what}.")
    parts = Parts(tuple(lists["train"]), tuple(lists["val"]), tuple(lists["test"]))
    _check(parts, name, patient_of, file)
    return parts


def _shuffled(seed: int, cases: Sequence[str], patient_of: Callable[[str], str]) -> list[str]:
    patients = sorted({patient_of(c) for c in cases})
    random.Random(seed).shuffle(patients)
    return patients


def _fold(
    split: Split, name: str, fold: int | None, cases: Sequence[str], patient_of: Callable[[str], str], file: YamlFile
) -> Parts:
    assert split.folds is not None
    if fold is None or not 0 <= fold < split.folds:
        raise BenchError(f"{file.path}: split {name!r} has folds 0 to {split.folds - 1}, fold {fold} was asked for.")
    patients = _shuffled(split.seed, cases, patient_of)
    if split.folds > len(patients):
        raise file.error(("splits", name, "folds"), f"{split.folds} folds of {len(patients)} patients.")
    held = set(patients[fold :: split.folds])
    # those that the next folds test come first: no patient is held out in all folds
    rest = [p for shift in range(1, split.folds) for p in patients[(fold + shift) % split.folds :: split.folds]]
    watched = set(rest[: math.ceil(split.validation * len(rest) - 1e-9)])
    if len(watched) == len(rest):
        raise file.error(("splits", name, "validation"), f"no patient of {len(rest)} would be left for training.")
    kept = [c for c in cases if patient_of(c) not in held]
    train, val = (tuple(c for c in kept if (patient_of(c) in watched) is inside) for inside in (False, True))
    return Parts(train, val, tuple(c for c in cases if patient_of(c) in held))


def _fractions(
    split: Split, name: str, cases: Sequence[str], patient_of: Callable[[str], str], file: YamlFile
) -> Parts:
    assert split.fractions is not None
    patients = _shuffled(split.seed, cases, patient_of)
    first = round(split.fractions[0] * len(patients))
    second = round((split.fractions[0] + split.fractions[1]) * len(patients))
    groups = [set(patients[:first]), set(patients[first:second]), set(patients[second:])]
    train, val, test = (tuple(c for c in cases if patient_of(c) in group) for group in groups)
    if not train or not test or (split.fractions[1] and not val):
        raise file.error(
            ("splits", name, "fractions"), f"{len(patients)} patients are too few: a part of the three would be empty."
        )
    return Parts(train, val, test)


def _check(parts: Parts, split: str, patient_of: Callable[[str], str], file: YamlFile) -> None:
    owner: dict[str, tuple[str, str]] = {}
    for part in ("train", "val", "test"):
        seen: set[str] = set()
        for case in getattr(parts, part):
            if case in seen:
                raise file.error(("splits", split, part), f"case {case!r} stands here twice.")
            seen.add(case)
            patient = patient_of(case)
            before, other = owner.setdefault(patient, (part, case))
            if before != part:
                raise file.error(
                    ("splits", split, part),
                    f"patient {patient!r} stands in two parts: {other!r} in {before}, {case!r} in {part}.",
                )
    if not parts.train or not parts.test:
        raise file.error(("splits", split), "no cases are left for training or for testing.")
