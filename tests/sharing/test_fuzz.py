"""Whatever stands in an archive: it is refused with a sentence, or what comes out is what was packed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import contents_of, make_archive, make_cell, repacked

from harness.errors import BenchError
from harness.rows import parse_cases
from harness.sharing.archive import Archive, open_archive
from harness.sharing.contents import cell_of
from harness.sharing.layout import MANIFEST
from harness.sharing.place import place_records
from harness.store import Codes

CELL = make_cell()
RECORD = f"{CELL.train_id}/{CELL.eval_id}/record.json"
CASES = f"{CELL.train_id}/{CELL.eval_id}/cases.csv"
PLACES = (RECORD, CASES, f"{CELL.train_id}/train.json", f"{CELL.train_id}/curve.csv", MANIFEST)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    make_archive(made)
    return made


def believed(path: Path) -> Archive | None:
    """The archive if it is believed; whatever is refused leaves nothing and says one sentence."""
    target = path.parent / "records"
    try:
        with open_archive(path) as archive:
            place_records(archive, target)
            return archive
    except BenchError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 and not target.exists()
        return None
    finally:
        for file in sorted(target.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        if target.exists():
            target.rmdir()


@settings(max_examples=100)
@given(data=st.data())
def test_bytes_of_a_zip_file(folder: Path, data: st.DataObject) -> None:
    whole = bytearray((folder / "a.zip").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        cut = data.draw(st.sampled_from((0, 1, 1, 1, 4, 60, len(whole))))
        whole[place : place + cut] = data.draw(st.binary(max_size=4))
        if not whole:
            break
    (folder / "b.zip").write_bytes(whole)
    archive = believed(folder / "b.zip")
    if archive is not None:  # such as a changed date
        (cell,) = archive.cells
        assert cell.record.train_id == CELL.train_id


def test_every_cut_is_noticed(folder: Path) -> None:
    whole = (folder / "a.zip").read_bytes()
    for cut in [*range(0, len(whole), 41), len(whole) - 1]:
        (folder / "b.zip").write_bytes(whole[:cut])
        assert believed(folder / "b.zip") is None, cut


@settings(max_examples=40)
@given(names=st.lists(st.text(max_size=20) | st.sampled_from(PLACES), max_size=4), data=st.binary(max_size=50))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_a_zip_file(folder: Path, names: list[str], data: bytes) -> None:
    path = folder / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            try:
                archive.writestr(name, data)
            except (UnicodeEncodeError, ValueError, IndexError):  # zipfile cannot write a surrogate, or no name
                archive.writestr("x", data)
    assert believed(path) is None


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, item in inner for p in paths(item, (*at, key)))]


def changed(raw: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return raw


@settings(max_examples=150)
@given(data=st.data())
def test_values_of_a_record_whose_digest_is_right(folder: Path, data: st.DataObject) -> None:
    files = contents_of(folder / "a.zip")
    name = data.draw(st.sampled_from(PLACES[:1] * 3 + (PLACES[2], MANIFEST)))
    raw = json.loads(files[name])
    path = data.draw(st.sampled_from(paths(raw)))
    text = json.dumps(changed(raw, path, data.draw(JSON))).encode()
    made = repacked(folder / "b.zip", files | {name: text}, text if name == MANIFEST else None)
    archive = believed(made)
    if archive is not None:
        (cell,) = archive.cells
        again = cell_of(cell.record.cell)
        assert (again.train_id, again.eval_id) == (CELL.train_id, CELL.eval_id)
        assert cell.record.status == "ok"
        found = cell.record.cell
        assert found["train"] == CELL.train
        # with the last weights taken, validation cases were only watched: no id rests on them
        assert found["data"] | {"val": []} == CELL.data and isinstance(found["data"]["val"], list)


@settings(max_examples=100)
@given(data=st.data())
def test_text_of_a_table_whose_digest_is_right(folder: Path, data: st.DataObject) -> None:
    files = contents_of(folder / "a.zip")
    name = data.draw(st.sampled_from((CASES, PLACES[3])))
    text = bytearray(files[name])
    place = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.binary(max_size=3) | st.sampled_from((b'"', b",", b"\n", b"-", b"e", b"0", b"\r", b"\0")))
    text[place : place + data.draw(st.integers(0, 3))] = new
    archive = believed(repacked(folder / "b.zip", files | {name: bytes(text)}))
    if archive is not None and name == CASES:
        columns = parse_cases(text.decode(), {"kind": Codes(), "status": Codes()})
        assert len(columns["value"]) == 2 * 2 * 2
