"""The command line: what it prints, what it imports, what it exits with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main

HEAVY = {"torch", "monai", "pandas", "numpy", "matplotlib", "SimpleITK", "pydantic", "rich", "yaml"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]" and "run" in out and "--help" in out


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("losses", {"ce", "dice", "focal", "tversky", "focal_tversky", "jaccard", "lovasz", "dice_ce"}),
        ("metrics", {"dice", "hd95", "asd", "assd", "tp", "fp", "fn", "tn"}),
        ("models", {"unet"}),
        ("data", {"phantom", "hippocampus", "synapse"}),
        ("suites", {"quickstart", "hippocampus", "synapse"}),
    ],
)
def test_list(kind: str, names: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    found = {row["name"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert names <= set(found) and all(found.values())
    assert main(["list", kind]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage: bench [-h]"),
        (("help",), "usage: bench [-h]"),
        (("help", "data"), "Show a data set: licence, how to obtain it, what is missing."),
        (("check", "--help"), "Check that a loss does what a loss should."),
    ],
)
def test_help(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert end.value.code == 0 and said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "quickstart", "--workers", "two"), "--workers: invalid int value: 'two'; see bench run --help."),
        (("plan", "quickstart", "--out", "my_loss.py"), "--out: my_loss.py is a file, expected a folder"),
        (("run", "quickstart", "--out", "my_loss.py"), "--out: my_loss.py is a file, expected a folder"),
        (("data", "hippocampus", "--data", "my_loss.py"), "--data: my_loss.py is a file, expected a folder"),
        (("plan", "quikstart"), "quikstart: no such file (did you mean 'quickstart'?); `bench list suites` names"),
        (("plan", "."), ".: is a folder; name a file in it."),
    ],
)
def test_mistakes_of_the_command_line_are_one_sentence(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_loss.py").touch()
    assert main([*words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1


def test_a_folder_of_data_in_the_environment_may_be_a_file_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "file"))
    assert main(["plan", "quickstart"]) == 2
    assert "--data: " in (said := capsys.readouterr().err) and "is a file, expected a folder" in said


def test_how_to_obtain_a_data_set_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BENCH_DATA", raising=False)
    assert main(["data", "hippocampus"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("medicaldecathlon.com") == 1 and captured.err == ""
    assert main(["data", "hippocampus", "--verify"]) == 2  # there is nothing to read
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("medicaldecathlon.com") == 1
    assert main(["plan", "hippocampus", "--data", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "dataset.json is not there. Download" in capsys.readouterr().out


def test_data_says_how_to_obtain_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "phantom"]) == 0
    assert "all files of 36 cases are there" in capsys.readouterr().out
    assert main(["data", "hippocampus", "--data", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    text = " ".join(captured.out.split())
    assert "CC-BY-SA 4.0" in text and "http://medicaldecathlon.com" in text
    assert f"missing: {tmp_path}/Task04_Hippocampus/dataset.json" in text


def test_data_verify_names_every_fault(toy, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["data", str(toy.folder / "toy.yaml"), "--data", str(toy.folder / "data"), "--verify"]
    assert main(args) == 0 and "6 cases read, 0 with faults" in capsys.readouterr().out
    for case in ("c1", "c3"):
        (toy.folder / f"data/toy/imagesTr/{case}.nii.gz").write_bytes(b"")
    assert main(args) == 1
    text = capsys.readouterr().out
    assert "c1.nii.gz" in text and "c3.nii.gz" in text and "4 cases read, 2 with faults" in text


def test_synapse_is_planned_without_its_data_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "synapse", "--out", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "60 cells to run" in text and "syn3193805" in text
    assert main(["run", "synapse", "--out", str(tmp_path), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    where = f"{tmp_path}/Synapse/RawData/Training/img/img0001.nii.gz"
    assert where in error and "is not there and 59 more files" in error and "syn3193805" in error


def test_plan_as_json_has_every_cell(toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(toy.suite()), "--json", "--out", str(toy.folder / "runs")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["loss"]["label"], r["state"]) for r in rows] == [("dice", "missing"), ("ce", "missing")]


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("los=dice", "(did you mean 'loss'?)"),
        ("loss=nothing", "no cell matches; loss is one of: dice, ce"),
        ("loss", "KEY=GLOB"),
    ],
)
def test_filters(toy, capsys: pytest.CaptureFixture[str], only: str, words: str) -> None:
    assert main(["plan", str(toy.suite()), "--only", only]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--devices", "tpu"),
        ("--devices", "cuda:99"),
        ("--devices", "cuda:0,cpu"),
        ("--workers", "0"),
        ("--per-device", "0"),
    ],
)
def test_impossible_options(toy, capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    args = ["run", str(toy.suite()), flag, value, "--out", str(toy.folder / "o"), "--data", str(toy.folder / "data")]
    assert main([*args, "--reports", str(toy.folder / "r")]) == 2
    captured = capsys.readouterr()
    assert f"{flag} {value}" in captured.err and captured.out == ""  # refused before anything else is said


def test_records_meant_for_git_are_read_like_runs(toy) -> None:
    suite = toy.suite()
    assert toy.bench("run", suite).returncode == 0
    assert "2 records" in toy.bench("report", suite, "--commit").stdout
    committed = toy.folder / "reports/toy/records"
    names = sorted(p.name for p in committed.rglob("*") if p.is_file())
    assert names == sorted(["train.json", "curve.csv", "cases.csv", "record.json"] * 2)

    # another machine: no results, no data; the committed records are enough
    page = toy.folder / "reports/toy/index.html"
    (toy.folder / "data").rename(toy.folder / "elsewhere")
    page.unlink()
    again = toy.bench("run", suite, out="empty")
    assert again.returncode == 0 and "2 done, 0 to run" in again.stdout and page.is_file()


def test_a_report_needs_no_torch(toy) -> None:
    suite = toy.suite()
    assert toy.bench("run", suite).returncode == 0
    code = (
        "import sys; from harness.cli import main\n"
        f"main(['report', {str(suite)!r}, '--out', {str(toy.folder / 'runs')!r}, '--reports', {str(toy.folder / 'r')!r}])\n"
        "print(sorted({'torch', 'monai'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=toy.folder
    ).stdout
    assert out.splitlines()[-1] == "[]" and (toy.folder / "r/toy/leaderboard.csv").is_file()


def test_an_edited_loss_is_stale_until_asked_for(toy) -> None:
    (toy.folder / "mine.py").write_text(
        "from torch import nn\nclass Mine(nn.Module):\n    def forward(self, logits, target):\n        return logits.mean() ** 2\n"
    )
    suite = toy.suite("losses: [dice, ce]", "losses: ['mine.py:Mine']")
    assert toy.bench("run", suite).returncode == 0
    before = toy.records()["Mine"]["weights"]
    (toy.folder / "mine.py").write_text((toy.folder / "mine.py").read_text().replace("** 2", "** 2 + logits.std()"))
    shown = toy.bench("run", suite)
    assert "1 stale" in shown.stdout and toy.records()["Mine"]["weights"] == before
    rerun = toy.bench("run", suite, "--rerun", "stale")
    assert "1 ok" in rerun.stdout and toy.records()["Mine"]["weights"] != before


@pytest.mark.parametrize(
    ("more", "words"), [([], "the same command continues"), (["--rerun", "stale"], "without --rerun")]
)
def test_after_an_interruption_it_says_what_continues(
    more: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.api.load_suite", interrupted)
    assert main(["run", "toy.yaml", *more]) == 130
    assert f"bench: interrupted; {words}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("list", "losses"), ("plan", "quickstart")])  # by print, and by Rich
def test_an_output_that_is_closed_or_full_ends_without_a_traceback(words: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", *words]
    reads, writes = os.pipe()
    os.close(reads)  # as after `| head -1`
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("bench: no space left"), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["list losses", "list losses --json", "list nonsense"])
def test_a_run_that_nobody_reads_ends_as_any_other(words: str, tmp_path: Path) -> None:
    shell = ["sh", "-c", f"exec {sys.executable} -m harness {words} >&- 2> errors"]
    done = subprocess.run(shell, cwd=tmp_path)
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert done.returncode == (2 if "nonsense" in words else 0)


def test_a_terminal_without_unicode_gets_every_line(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "harness", *words]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("ascii")

    shown, rows = said("list", "losses"), json.loads(said("list", "losses", "--json"))
    strange = [row for row in rows if not row["about"].isascii()]
    assert strange and len(shown.splitlines()) == len(rows)
    assert all(row["about"].encode("ascii", "backslashreplace").decode() in shown for row in strange)


def test_files_that_cannot_be_read_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.py").write_bytes("class Mine:  # caf\xe9\n    pass\n".encode("latin-1"))
    (tmp_path / "zero.py").write_bytes(b"class Mine:\n    pass\0\n")
    (tmp_path / "secret.py").write_text("class Mine:\n    pass\n")
    real = Path.read_text

    def read(path: Path, *args: Any, **more: Any) -> str:
        if path.name == "secret.py":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", read)
    for name, reason in (("latin", "utf-8"), ("zero", "null bytes"), ("secret", "Permission denied")):
        assert main(["check", f"{name}.py:Mine"]) == 2
        error = capsys.readouterr().err
        assert f"{name}.py" in error and reason in error and error.count("\n") == 1


def test_a_fault_of_the_file_system_that_nobody_foresaw_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("harness.api.load_suite", refused)
    assert main(["plan", "toy.yaml"]) == 2
    assert capsys.readouterr().err == "bench: Permission denied: somewhere.\n"
