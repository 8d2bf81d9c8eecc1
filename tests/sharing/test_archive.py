"""What is packed comes out as it went in; what was changed, cut, or never was a record of bench is refused."""

from __future__ import annotations

import json
import os
import stat
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from shared import HEX, contents_of, edited, make_archive, make_cell, repacked, write_cell

from harness.errors import BenchError
from harness.sharing import sources
from harness.sharing.archive import open_archive
from harness.sharing.contents import cell_of, check_training, trainings
from harness.sharing.layout import MANIFEST, MB, Limits, check_name
from harness.sharing.pack import pack_folder
from harness.sharing.place import place_records
from harness.suite import load_suite

CELL = make_cell()
RECORD = f"{CELL.train_id}/{CELL.eval_id}/record.json"
CASES = f"{CELL.train_id}/{CELL.eval_id}/cases.csv"
TRAIN, CURVE = f"{CELL.train_id}/train.json", f"{CELL.train_id}/curve.csv"


def refusal(path: Path) -> str:
    """The one sentence with which an archive is refused."""
    target = path.parent / "reports" / "toy" / "records"
    with pytest.raises(BenchError) as caught, open_archive(path) as archive:
        place_records(archive, target)
    assert not target.parent.exists(), "something was imported"
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence and sentence.endswith(".")
    return sentence


def all_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip_through_a_zip_file_and_a_folder(tmp_path: Path) -> None:
    results = tmp_path / "runs"
    write_cell(results, CELL)
    write_cell(results, make_cell("ce", seed=1), status="diverged")
    digests = set()
    for name in ("a.zip", "b.zip", "folder"):
        digests.add(pack_folder("toy", results, tmp_path / name).digest)
        with open_archive(tmp_path / name) as archive:
            assert {c.record.status for c in archive.cells} == {"ok", "diverged"}
            assert archive.contents.digest in digests
            outcome = place_records(archive, tmp_path / f"records of {name}")
        assert (len(outcome.new), outcome.present, outcome.kept) == (2, (), ())
        assert all_files(tmp_path / f"records of {name}") == all_files(results)
    assert len(digests) == 1
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_imported_record_can_be_read_by_all(tmp_path: Path) -> None:
    path = make_archive(tmp_path)
    with open_archive(path) as archive:
        place_records(archive, tmp_path / "records")
    for entry in (tmp_path / "records", *(tmp_path / "records").rglob("*")):
        assert stat.S_IMODE(entry.stat().st_mode) & 0o444 == 0o444, entry
        assert entry.is_file() or stat.S_IMODE(entry.stat().st_mode) & 0o111 == 0o111


def test_weights_masks_and_logs_stay_behind(tmp_path: Path) -> None:
    results = tmp_path / "runs"
    write_cell(results, CELL)
    for name in (f"{CELL.train_id}/weights.pt", f"{CELL.train_id}/{CELL.eval_id}/masks/c4.nii.gz"):
        (results / name).parent.mkdir(exist_ok=True)
        (results / name).write_bytes(b"x")
    from harness.plan import Entry
    from harness.records import read_record
    from harness.sharing.pack import pack

    entries = [Entry(CELL, "stale", read_record(results / RECORD), CELL.eval_folder(results)), Entry(CELL, "missing")]
    contents, count = pack("toy", entries, tmp_path / "a.zip")
    assert count == 1 and set(contents.files) == {RECORD, CASES, TRAIN, CURVE}
    assert set(contents_of(tmp_path / "a.zip")) == {RECORD, CASES, TRAIN, CURVE, MANIFEST}


@pytest.mark.parametrize("name", [RECORD, CASES, TRAIN, CURVE])
def test_a_changed_file_is_named(tmp_path: Path, name: str) -> None:
    files = contents_of(make_archive(tmp_path))
    for place in (0, len(files[name]) // 2, len(files[name]) - 1):
        changed = bytearray(files[name])
        changed[place] ^= 1
        path = repacked(tmp_path / "b.zip", files | {name: bytes(changed)}, files[MANIFEST])
        assert f"{name} is not the file that was packed" in refusal(path)


def test_a_file_too_few_and_one_too_many(tmp_path: Path) -> None:
    files = contents_of(make_archive(tmp_path))
    fewer = {n: d for n, d in files.items() if n != CASES}
    assert f"{CASES} is not there, and its manifest lists it" in refusal(
        repacked(tmp_path / "b.zip", fewer, files[MANIFEST])
    )
    more = files | {RECORD.replace(CELL.eval_id, "0" * 16): b"{}"}
    assert "is not in its manifest" in refusal(repacked(tmp_path / "b.zip", more, files[MANIFEST]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell__train__optimizer": {"adamw": {"lr": 0.01}}}, "ids do not follow"),
        ({"cell__loss__args": {"smooth": 1}}, "ids do not follow"),
        ({"cell__loss__name": "tversky"}, "ids do not follow"),
        ({"cell__metrics": ["dice"]}, "ids do not follow"),
        ({"cell__data__test": ["c4"]}, "ids do not follow"),
        ({"cell__seed": 1}, "ids do not follow"),
        ({"cell__fold": 2}, "split, fold, cases or labels"),
        ({"cell__train": {}}, "not one of a cell"),
        ({"cell__model": {}}, "not one of a cell"),
        ({"cell__data__test": 3}, "not one of a cell"),
        ({"cell__data__val": None}, "not one of a cell"),
        ({"cell__data__val": "c1"}, "split, fold, cases or labels"),
        ({"cell__data__val": [1]}, "split, fold, cases or labels"),
        ({"cell__seed": "0"}, "cell.seed"),
        ({"train_id": "0" * 16}, "not those of the folder"),
        ({"status": "error"}, "only ok and diverged are results"),
        ({"status": "diverged"}, "of two runs"),
        ({"weights": "0" * 64}, "of two runs"),
        (
            {"files": {"cases.csv": "0" * 64}},
            "cases.csv is not the table that it was written with; they are of two runs",
        ),
        (
            {"files": {"curve.csv": "0" * 64}},
            "curve.csv is not the table that it was written with; they are of two runs",
        ),
        ({"files": {"cases.csv": "none"}}, "files.cases.csv"),
        ({"weights": "none"}, "weights"),
        ({"schema": 2}, "of schema 2"),
        ({"extra": 1}, "extra"),
        ({"cost": {"train_s": "fast"}}, "cost.train_s"),
        ({"checks": {"dice": {"passed": True}}}, "checks.dice.failed"),
        ({"message": "\x1b[2J"}, "control character"),
        ({"message": "\ud800"}, "control character"),
    ],
)
def test_a_foreign_record_is_refused_though_its_digest_is_right(tmp_path: Path, changes: dict, words: str) -> None:
    files = contents_of(make_archive(tmp_path))
    sentence = refusal(repacked(tmp_path / "b.zip", files | {RECORD: edited(files[RECORD], **changes)}))
    assert words in sentence and RECORD in sentence


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"cost": {', b'"cost": {"a": NaN, ', "not finite"),
        (b'"cost": {', b'"cost": {"a": 1e999, ', "too large"),
        (b'"cost": {', b'"cost": {"a": 1, "a": 2, ', "a key stands twice"),
        (b'"cost": {', b'"cost": {"a": ' + b"[" * 5000 + b"]" * 5000 + b", ", "nested too deep"),
        (b'"cost": {', b'"cost": {"a": ' + b"[" * 60 + b"]" * 60 + b", ", "nested too deep"),
        (b'"cost": {', b'"cost": {"a": ' + b"9" * 5000 + b", ", "not readable as JSON"),
        (b'"cost": {', b'"cost": {"\xff": 1, ', "not readable as JSON"),
    ],
)
def test_json_that_two_readers_could_read_in_two_ways(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    files = contents_of(make_archive(tmp_path))
    assert old in files[RECORD]
    assert words in refusal(repacked(tmp_path / "b.zip", files | {RECORD: files[RECORD].replace(old, new)}))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"toy,s,,unet,dice,0,c4,c4,disc", b"toy,s,,unet,ce,0,c4,c4,disc", "line 2 is of another cell"),
        (b"c5,c5", b"c6,c6", "not the test cases"),
        (b",0.9,", b",nan,", "not finite"),
        (b",ok\n", b",fine\n", "'fine' is unknown"),
        (b"dataset,", b"data,", "columns"),
        (b"ring,hd95", b"ring,dice", "stands in it twice"),
        (b"hd95", b"asd", "it has no hd95"),
        (b"disc", b"d\x1bsc", "control character"),
        (b"disc", b"d\xffsc", "not UTF-8"),
        (b"disc", b'"disc', "cases.csv"),
    ],
)
def test_case_rows_of_something_else(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    files = contents_of(make_archive(tmp_path))
    times = -1 if old in (b"c5,c5", b"hd95") else 1
    assert old in files[CASES]
    sentence = refusal(repacked(tmp_path / "b.zip", files | {CASES: files[CASES].replace(old, new, times)}))
    assert words in sentence and CASES in sentence


def test_a_bad_case_cannot_be_left_out(tmp_path: Path) -> None:
    files = contents_of(make_archive(tmp_path))
    lines = files[CASES].splitlines(keepends=True)
    path = repacked(tmp_path / "b.zip", files | {CASES: b"".join(line for line in lines if b"c5" not in line)})
    assert "its cases are not the test cases of the record" in refusal(path)
    path = repacked(tmp_path / "b.zip", files | {CASES: b"".join(lines[:-1])})
    assert "do not have the same classes and metrics" in refusal(path)


@pytest.mark.parametrize("name", [RECORD, CASES, TRAIN, CURVE])
def test_half_a_cell(tmp_path: Path, name: str) -> None:
    files = contents_of(make_archive(tmp_path))
    files.pop(name)
    assert f"{name}: is not there" in refusal(repacked(tmp_path / "b.zip", files))


def test_a_curve_that_is_no_table_and_rows_of_a_training_that_diverged(tmp_path: Path) -> None:
    files = contents_of(make_archive(tmp_path))
    assert CURVE in refusal(repacked(tmp_path / "b.zip", files | {CURVE: b"epoch,loss\n1,high\n"}))
    diverged = {n: edited(files[n], status="diverged") for n in (RECORD, TRAIN)}
    assert "diverged, so nothing can have been measured" in refusal(repacked(tmp_path / "b.zip", files | diverged))


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "..\\evil", "C:\\evil", f"{RECORD}\0.exe", f"../{RECORD}", f"a/../{RECORD}", "weights.pt",
     f"{CELL.train_id.upper()}/train.json", f"./{TRAIN}", f"{TRAIN}\n", f"{CELL.train_id}/weights.pt", ""],
)  # fmt: skip
def test_no_name_leads_out_of_an_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError, match="has no place in it"):
        check_name("a.zip", name)
    files = contents_of(make_archive(tmp_path))
    listed = edited(files[MANIFEST], **{"files": {**json.loads(files[MANIFEST])["files"], name: {}}})
    sentence = refusal(repacked(tmp_path / "b.zip", files, listed))
    assert "has no place in it" in sentence or "control character" in sentence
    if name:
        with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name  # the constructor would cut it at a null byte
            archive.writestr(info, b"x")
        assert "has no place in it" in refusal(tmp_path / "a.zip")


def test_links_pipes_and_other_kinds_of_files(tmp_path: Path) -> None:
    folder = make_archive(tmp_path, to="folder")
    (folder / CASES).rename(tmp_path / "cases.csv")
    (folder / CASES).symlink_to(tmp_path / "cases.csv")
    assert f"{CASES}' is a symbolic link" in refusal(folder)
    (folder / CASES).unlink()
    os.mkfifo(folder / CASES)
    assert "no ordinary file" in refusal(folder)
    (folder / CASES).unlink()
    (folder / CASES).mkdir()
    assert "no ordinary file" in refusal(folder)
    (folder / CASES).rmdir()
    (folder / "x").symlink_to("/")
    assert "'x' is a symbolic link" in refusal(folder)
    os.mkfifo(tmp_path / "pipe.zip")
    assert "is no file" in refusal(tmp_path / "pipe.zip")

    files = contents_of(make_archive(tmp_path))
    for kind, words in ((stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "no ordinary file")):
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            info = zipfile.ZipInfo(CASES)
            info.create_system, info.external_attr = 3, (kind | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
            archive.writestr(MANIFEST, files[MANIFEST])
        assert words in refusal(tmp_path / "b.zip")


def test_what_a_zip_file_may_not_be(tmp_path: Path) -> None:
    files = contents_of(make_archive(tmp_path))
    whole = (tmp_path / "a.zip").read_bytes()
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    assert "method 12" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for name in (*files, RECORD):
            archive.writestr(name, files[name])
    assert f"{RECORD} stands in it twice" in refusal(path)
    first = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: first + 8] + b"\x01" + whole[first + 9 :])
    assert "is encrypted" in refusal(path)
    path.write_bytes(whole[:-2] + b"\x03\x00abc")
    assert "is no zip file" in refusal(path)
    path.write_bytes(b"")
    assert "is no zip file" in refusal(path)
    assert "No such file" in refusal(tmp_path / "absent.zip")
    path.write_bytes(b"dataset,split\n" * 100)
    assert "is no zip file" in refusal(path)


def test_folders_in_a_zip_file_are_no_fault(tmp_path: Path) -> None:
    files = contents_of(make_archive(tmp_path))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.mkdir(CELL.train_id)
        archive.mkdir(f"{CELL.train_id}/{CELL.eval_id}")
        for name, data in files.items():
            archive.writestr(name, data)
    with open_archive(tmp_path / "b.zip") as archive:
        assert len(archive.cells) == 1


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = contents_of(make_archive(tmp_path))
    real = sources.Zip.read

    def read(self: sources.Zip, name: str) -> bytes:
        raise AssertionError("unpacked")

    monkeypatch.setattr(sources.Zip, "read", read)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, b" " * (5 * MB) if name == RECORD else data)
    assert bomb.stat().st_size < MB and f"{RECORD} is {5 * MB} bytes unpacked" in refusal(bomb)
    for limits, words in ((Limits(files=3), "it holds 5 files, at most 3"), (Limits(total=4000), "at most 4000 are")):
        with pytest.raises(BenchError, match=words), open_archive(tmp_path / "a.zip", limits):
            pass
    whole = (tmp_path / "a.zip").read_bytes()
    bomb.write_bytes(whole[:-10] + (2**30).to_bytes(4, "little") + whole[-6:])
    assert "lists more files than bench reads" in refusal(bomb)
    monkeypatch.setattr(sources.Zip, "read", real)
    # a list that says 100 bytes of data that unpack to 60 MB: no more than it says is unpacked
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, b" " * (60 * MB) if name == CASES else data)
    lying = bytearray(bomb.read_bytes())
    place = lying.index(CASES.encode(), lying.index(b"PK\x01\x02")) - 46
    lying[place + 24 : place + 28] = (100).to_bytes(4, "little")
    bomb.write_bytes(lying)
    with sources.open_source(bomb) as source:
        assert source.sizes[CASES] == 100
        tracemalloc.start()
        with pytest.raises(BenchError, match=r"cut off|damaged"):
            source.read(CASES)
        assert tracemalloc.get_traced_memory()[1] < 2 * MB
        tracemalloc.stop()
    refusal(bomb)


def test_a_folder_with_more_files_than_are_read(tmp_path: Path) -> None:
    folder = make_archive(tmp_path, to="folder")
    with pytest.raises(BenchError, match="more than 2 files"), open_archive(folder, Limits(files=2)):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "zip"}, "no records of bench"),
        ({"version": 2}, "of version 2, this bench reads 1"),
        ({"version": True}, "of version True"),
        ({"more": 1}, "and no other"),
        ({"suite": "../x"}, "is no name"),
        ({"suite": ".."}, "is no name"),
        ({"files": []}, "no mapping"),
        ({"files": {}}, "is not in its manifest"),
    ],
)
def test_a_manifest_of_something_else(tmp_path: Path, changes: dict, words: str) -> None:
    files = contents_of(make_archive(tmp_path))
    assert words in refusal(repacked(tmp_path / "b.zip", files, edited(files[MANIFEST], **changes)))


def test_no_manifest_and_no_cell(tmp_path: Path) -> None:
    results = tmp_path / "runs"
    write_cell(results, CELL)
    assert "bench records export" in refusal(results)
    assert "holds no cell" in refusal(repacked(tmp_path / "b.zip", {}))


def test_a_damaged_record_is_not_packed_and_nothing_is_replaced(tmp_path: Path) -> None:
    results = tmp_path / "runs"
    write_cell(results, CELL)
    (tmp_path / "there.zip").write_text("mine")
    with pytest.raises(BenchError, match="is there already"):
        pack_folder("toy", results, tmp_path / "there.zip")
    assert (tmp_path / "there.zip").read_text() == "mine"
    (results / CASES).write_bytes((results / CASES).read_bytes()[:-20])
    for name in ("a.zip", "a"):
        with pytest.raises(BenchError, match=r"cases\.csv"):
            pack_folder("toy", results, tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "there.zip"}


def test_the_cell_of_a_description_has_the_ids_of_the_cell(tmp_path: Path) -> None:
    """What enters an id stands in the record: for every shipped suite, and with every kind of scoring."""
    root = Path(__file__).parents[2] / "suites"
    count = 0
    for path in sorted(root.glob("*.yaml")):
        for cell in load_suite(path, True, None).cells[:40]:
            again = cell_of(json.loads(json.dumps(cell.described())))
            assert (again.train_id, again.eval_id, again.labels) == (cell.train_id, cell.eval_id, cell.labels), path
            count += 1
    assert count > 100
    scored = replace(
        CELL,
        metrics=("dice", "loss:ce"),
        profiles=("mask-surface",),
        engine="points",
        scored_by={"loss:ce": {"loss": {"name": "ce", "class": "x:Y", "args": {}, "version": 1}, "digest": HEX}},
        data=CELL.data | {"regions": {"all": ["disc", "ring"]}},
        train=CELL.train | {"select": "best:dice@val"},
    )
    again = cell_of(json.loads(json.dumps(scored.described())))
    assert (again.train_id, again.eval_id) == (scored.train_id, scored.eval_id)
    assert scored.train_id != replace(scored, engine="simpleitk").train_id


def test_the_committed_records_pass_every_check() -> None:
    folder = Path(__file__).parents[2] / "reports" / "hippocampus" / "records"
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    found = trainings(names)
    assert found
    for train_id, evaluations in [*found.items()][:10]:
        check_training("records", train_id, evaluations, lambda name: (folder / name).read_bytes())
