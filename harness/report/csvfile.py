"""Write a large table as CSV: the bytes of pandas' `to_csv` without an index, in a third to a half of the time.

Millions of case rows hold few distinct texts: each is quoted once, where pandas quotes it in every row.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_AT_ONCE = 200_000  # rows; a chunk's text is some 40 MB


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write the columns of a frame, without its index; what is missing becomes an empty field.

    Args:
        frame: Columns of numbers, of text or of categories of text.
        path: The file; one that is there is replaced.
    """
    columns = [_Texts(frame.iloc[:, i]) for i in range(frame.shape[1])]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerow(frame.columns)
        for start in range(0, len(frame), _AT_ONCE):
            parts = [column.of(slice(start, start + _AT_ONCE)) for column in columns]
            stream.writelines(f"{line}\n" for line in map(",".join, zip(*parts, strict=True)))


class _Texts:
    """A column as fields of a CSV file."""

    def __init__(self, column: pd.Series) -> None:
        self._values: NDArray[Any] | None = None
        if pd.api.types.is_float_dtype(column.dtype):
            self._values = column.to_numpy(np.float64)
        else:
            self._codes, names = pd.factorize(column)
            # the last one is for the code -1, that of what is missing
            self._fields = np.array([*(_field(name) for name in names), ""], dtype=object)

    def of(self, rows: slice) -> list[str]:
        """The fields of some rows."""
        if self._values is None:
            return list(self._fields[self._codes[rows]])
        values = self._values[rows]
        return ["" if value != value else repr(value) for value in values.tolist()]


def _field(value: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([value, 0])  # two, as a lone empty field would be quoted
    return text.getvalue()[:-3]
