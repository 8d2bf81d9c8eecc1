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


@pytest.mark.parametrize("rows", [700, 5000])
def test_repeated_texts_and_numbers_too(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvfile, "_AT_ONCE", 900)
    joins: list[int] = []
    joined = csvfile._Texts.joined

    def counted(self: csvfile._Texts, other: csvfile._Texts, most: int) -> csvfile._Texts | None:
        found = joined(self, other, most)
        joins.append(0 if found is None else len(found.fields))
        return found

    monkeypatch.setattr(csvfile._Texts, "joined", counted)
    rng = np.random.default_rng(rows)
    value = np.where(rng.random(rows) < 0.1, np.nan, rng.standard_normal(rows))
    frame = pd.DataFrame(
        {
            "a": pd.Categorical(rng.choice(np.array(['x,"1"', "y"], dtype=object), rows)),
            "b": pd.Series([None if i % 3 else "z" for i in range(rows)], dtype=object),
            "worst": rng.choice(np.array([0.0, -0.0, np.nan, 40.5]), rows),
            "many": np.arange(rows),
            "value": value,
            "text": ["t"] * rows,
            "score": np.where(np.isnan(value), 0.0, np.where(rng.random(rows) < 0.5, value, -value)),
        }
    )
    write_csv(frame, tmp_path / "ours.csv")
    frame.to_csv(tmp_path / "pandas.csv", index=False, lineterminator="\n")
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "pandas.csv").read_bytes()
    assert 4 in joins and 0 in joins  # two texts by one or none; not with a column that never repeats
