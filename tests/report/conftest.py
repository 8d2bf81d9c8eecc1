"""Small frames for the report's tests: two losses, hand-computable numbers."""

from typing import Any

import pandas as pd
import pytest


class Frame:
    """Collects rows of the three frames, with the columns that a test does not care about filled in."""

    def __init__(self) -> None:
        self.cell_rows: list[dict[str, Any]] = []
        self.case_rows: list[dict[str, Any]] = []
        self.curve_rows: list[dict[str, Any]] = []

    def cell(self, loss: str, seed: int = 0, status: str = "ok", **more: Any) -> "Frame":
        row: dict[str, Any] = {
            "dataset": "synapse", "split": "s", "fold": None, "model": "unet", "loss": loss, "seed": seed,
            "status": status, "message": "", "init": "i", "batches": "b", "weights": f"w{len(self.cell_rows)}",
            "train_s": 10.0, "eval_s": 1.0, "step_ms": 4.0, "targets_ms": 1.5, "peak_rss_mb": 100.0, "parameters": 5, "steps": 7,
            "device": "cpu", "torch": "2.13", "lr": 0.01,
        }  # fmt: skip
        row |= {"train_id": f"t{len(self.cell_rows)}", "eval_id": f"e{len(self.cell_rows)}"}
        self.cell_rows.append(row | more)
        return self

    def case(self, loss: str, value: float | None, *, seed: int = 0, patient: str = "p1", **more: Any) -> "Frame":
        metric = more.get("metric", "dice")
        unit = "1" if metric == "dice" else "mm"
        row: dict[str, Any] = {
            "dataset": "synapse", "split": "s", "fold": None, "model": "unet", "loss": loss, "seed": seed,
            "patient": patient, "case": patient, "class": "liver", "metric": metric, "profile": "voxel-max",
            "unit": unit, "value": value, "worst": 0.0 if metric == "dice" else 100.0, "status": "ok",
        }  # fmt: skip
        self.case_rows.append(row | more)
        return self

    def curve(self, train_id: str, values: list[float]) -> "Frame":
        self.curve_rows += [
            {"train_id": train_id, "epoch": e, "step": e, "lr": 0.1, "loss_value": v} for e, v in enumerate(values)
        ]
        return self

    @property
    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        return pd.DataFrame(self.cell_rows), pd.DataFrame(self.case_rows), pd.DataFrame(self.curve_rows)


@pytest.fixture
def frame() -> Frame:
    return Frame()
