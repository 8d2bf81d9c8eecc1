"""Records are whole or not there, and hold no number that JSON does not know."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.errors import BenchError
from harness.records import RunRecord, read_record, read_rows, write_atomic, write_rows

RECORD = RunRecord("t" * 16, "e" * 16, "ok", "", {"loss": {"name": "dice"}}, cost={"train_s": 1.5})


def test_round_trip(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == RECORD


def test_no_number_that_is_not_finite_and_no_unknown_status(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        replace(RECORD, cost={"train_s": float("nan")}).write(tmp_path / "record.json")
    with pytest.raises(ValueError, match="is not one of"):
        replace(RECORD, status="fine").write(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


def test_a_record_cut_at_any_byte_is_named_or_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    RECORD.write(path)
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(BenchError, match=r"record\.json"):
            read_record(path)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def half(stream: object) -> None:
        stream.write(b"new")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, half)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_number_of_numpy_is_written_like_any_other(tmp_path: Path) -> None:
    write_rows(tmp_path / "r.csv", ("a", "b"), [{"a": np.float64(0.1), "b": np.float64("nan")}])
    assert (tmp_path / "r.csv").read_text() == "a,b\n0.1,\n"


def test_csv_keeps_all_digits_and_leaves_the_absent_empty(tmp_path: Path) -> None:
    rows = [{"a": 0.1 + 0.2, "b": None, "c": 'x,"y"\n'}, {"a": float("inf"), "b": 3, "c": "é"}]
    write_rows(tmp_path / "r.csv", ("a", "b", "c"), rows)
    back = read_rows(tmp_path / "r.csv")
    assert float(back[0]["a"]) == 0.1 + 0.2 and back[0]["b"] == "" and back[0]["c"] == 'x,"y"\n'
    assert back[1] == {"a": "", "b": "3", "c": "é"}
