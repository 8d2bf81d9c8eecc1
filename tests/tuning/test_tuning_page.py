"""docs/tuning.md: its suite is planned as it stands, and its commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness.cli import main
from harness.data.manifest import packed

PAGE = packed("suites").parent / "docs" / "tuning.md"
TEXT = PAGE.read_text(encoding="utf-8")
(SUITE,) = re.findall(r"```yaml tuned\.yaml\n(.*?)```", TEXT, re.DOTALL)
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def test_the_page_and_the_suite_that_ships_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tuned.yaml").write_text(SUITE, encoding="utf-8")
    for path in ("tuned.yaml", str(packed("suites") / "tuned.yaml")):
        assert main(["plan", path]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "12 cells to run" in said and "; up to 48 trials of 4 studies before them" in said


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tuned.yaml").write_text(SUITE, encoding="utf-8")
    for line in COMMANDS.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "bench" and main(arguments) == 0, line
    rows = Path("reports/tuned-quick/tables/tuning.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 4 and all(",3,0," in row for row in rows[1:])
