"""The quick way to write CSV gives the bytes of pandas."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.report import csvfile
from harness.report.csvfile import write_csv

HOSTILE = ["plain", "a,b", 'say "x"', "two\nlines", " space ", "", "β→∞", "0.10", "-", "'", "a\rb"]


@pytest.mark.parametrize("rows", [0, 1, 11, 1000])
def test_the_bytes_are_those_of_pandas(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvfile, "_AT_ONCE", 300)
    rng = np.random.default_rng(rows)
    texts = rng.choice(np.array(HOSTILE, dtype=object), rows)
    values = rng.standard_normal(rows) * 10.0 ** rng.integers(-30, 30, rows)
    values[rng.random(rows) < 0.2] = np.nan
    frame = pd.DataFrame(
        {
            "text, quoted": texts,
            "category": pd.Categorical(texts),
            "missing": pd.Series([None if t == "" else t for t in texts], dtype=object),
            "seed": rng.integers(-3, 9, rows),
            "value": values,
            "whole": np.full(rows, 40.0),
            "mixed": pd.Series([[1.5, None, "x", 7][i % 4] for i in range(rows)], dtype=object),
        }
    )
    write_csv(frame, tmp_path / "ours.csv")
    frame.to_csv(tmp_path / "pandas.csv", index=False, lineterminator="\n")
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "pandas.csv").read_bytes()
