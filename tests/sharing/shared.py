"""Records without a training: what `bench run` leaves behind, made of strings."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.cell import Cell, SourceInfo
from harness.records import CASE_COLUMNS, RunRecord, write_rows
from harness.sharing.layout import MANIFEST, Contents
from harness.sharing.pack import pack_folder

HEX = hashlib.sha256(b"").hexdigest()


def make_cell(loss: str = "dice", seed: int = 0, metrics: tuple[str, ...] = ("dice", "hd95")) -> Cell:
    return Cell(
        suite="toy",
        dataset="toy",
        manifest_path="/nowhere/toy.yaml",
        data={
            "manifest": "toy", "digest": HEX, "split": "s", "fold": None, "labels": "clean",
            "train": ["c0", "c1"], "val": [], "test": ["c4", "c5"], "view": {"slices": {"size": [32, 32]}},
        },
        model={"name": "unet", "args": {"width": 4}, "version": 0},
        model_label="unet",
        model_source=SourceInfo("m:C", 0, HEX),
        loss={"name": loss, "class": "harness.losses.dice:Dice", "args": {"smooth": 1e-5}, "version": 1},
        loss_label=loss,
        loss_digest=HEX,
        seed=seed,
        train={"epochs": 2, "optimizer": {"adamw": {"lr": 3e-3}}, "select": "last"},
        metrics=metrics,
        quick=False,
        timeout=None,
        skip=None,
    )  # fmt: skip


def write_cell(folder: Path, cell: Cell, status: str = "ok", value: float = 0.9, weights: str = "") -> RunRecord:
    """A finished cell in a results folder."""
    record = RunRecord(
        cell.train_id,
        cell.eval_id,
        status,
        "" if status == "ok" else "the training loss was not a finite number",
        cell.described(),
        fingerprints={"init": HEX, "batches": HEX, "train_data": HEX, "test_data": HEX},
        weights=weights or hashlib.sha256(f"{cell.train_id} {value} {status}".encode()).hexdigest(),
        cost={"train_s": 1.5, "parameters": 487163},
        environment={"bench": "0.1.0", "torch": "2.13.0", "device": "cpu", "threads": 1},
        sources=cell.sources,
        checks={"dice": {"passed": True, "failed": {}, "declared": {}}},
    )
    evaluation = cell.eval_folder(folder)
    evaluation.mkdir(parents=True)
    record.write(evaluation / "record.json")
    replace(record, eval_id="").write(cell.folder(folder) / "train.json")
    write_rows(cell.folder(folder) / "curve.csv", ("epoch", "step", "lr", "loss"), [{"epoch": 0, "step": 4, "loss": 1}])
    rows = [
        {**cell.labels, "patient": case, "case": case, "class": name, "metric": metric, "profile": "voxel-max"}
        | {"unit": "mm" if metric == "hd95" else "1", "value": value, "worst": 0.0, "status": "ok"}
        for case in cell.data["test"]
        for name in ("disc", "ring")
        for metric in cell.metrics
    ]
    if status == "ok":
        write_rows(evaluation / "cases.csv", CASE_COLUMNS, rows)
    return record


def make_archive(folder: Path, *cells: Cell, to: str = "a.zip", **made: Any) -> Path:
    """An archive of cells, beside a results folder of its own."""
    results = folder / f"{to}.results"
    for cell in cells or (make_cell(),):
        write_cell(results, cell, **made)
    pack_folder("toy", results, folder / to)
    return folder / to


def contents_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repacked(path: Path, files: Mapping[str, bytes], manifest: bytes | None = None) -> Path:
    """A zip file of these files with digests that are right, as somebody with intent would make it."""
    own = {name: data for name, data in files.items() if name != MANIFEST}
    right = Contents("toy", "0.1.0", {n: (hashlib.sha256(d).hexdigest(), len(d)) for n, d in own.items()}).text()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**own, MANIFEST: right if manifest is None else manifest}.items():
            archive.writestr(name, data)
    return path


def edited(data: bytes, **changes: Any) -> bytes:
    """JSON with other values; a key `a__b` is b in a."""
    raw = json.loads(data)
    for key, value in changes.items():
        place = raw
        *path, last = key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return json.dumps(raw).encode()
