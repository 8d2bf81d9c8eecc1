"""`--json` of every verb: one JSON document alone on stdout, whatever else is printed on the way."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.arguments import parser_of
from harness.cli import VERBS, main

# A verb that prints no result would stand here with its reason.
WITHOUT: dict[str, str] = {}
LOUD = """\
import sys
from torch import nn

print("imported")


class Loud(nn.Module):
    def forward(self, logits, target):
        print("forward")
        sys.stdout.flush()
        return nn.functional.cross_entropy(logits, target, ignore_index=255)
"""
# Arguments of every verb, with the keys of what it prints, for one that works; {0} is the folder.
WORKS: dict[str, tuple[list[str], set[str]]] = {
    "run": (["{0}/loud.yaml"], {"suite", "cells", "started", "states", "not_ok", "report"}),
    "plan": (["{0}/loud.yaml"], {"suite", "train_id", "eval_id", "state", "skip", "loss"}),
    "report": (["{0}/loud.yaml", "--commit"], {"report", "cells", "committed", "page"}),
    "rank": (["ce", "{0}/loud.yaml", "--no-report"], {"suite", "baseline", "standings", "states", "notes"}),
    "clean": (["{0}/loud.yaml", "--cache"], {"removed", "bytes", "items", "kept", "orphans"}),
    "list": (["metrics"], {"name", "about"}),
    "check": (["{0}/loud.py:Loud"], {"loss", "passed"}),
    "new loss": (["mine"], {"file", "cls", "loss"}),
    "landscape": (["ce"], set()),
    "score": (["{0}/labels", "{0}/data/toy/labelsTr", "--metrics", "dice"], set()),
    "records export": (["{0}/loud.yaml", "--to", "{0}/packed"], {"suite", "cells", "digest"}),
    "records import": (["{0}/packed", "--to", "{0}/taken"], {"suite", "imported", "digest"}),
    "records merge": (["{0}/packed", "{0}/packed", "--to", "{0}/both"], {"suite", "cells", "sources"}),
    "data": (["{0}/toy.yaml"], {"name"}),
}
# One mistake for each, which is one sentence on stderr and nothing on stdout.
MISTAKES: dict[str, list[str]] = {
    "run": ["{0}/none.yaml"],
    "plan": ["{0}/none.yaml"],
    "report": ["{0}/loud.yaml", "--format", "pdf"],
    "rank": ["ce", "{0}/none.yaml"],
    "clean": ["{0}/none.yaml"],
    "check": ["nothing_like_it"],
    "new loss": ["not a name"],
    "landscape": ["nothing_like_it"],
    "score": ["{0}/none", "{0}/none"],
    "records export": ["{0}/none.yaml", "--to", "{0}/other"],
    "records import": ["{0}/none.zip"],
    "records merge": ["{0}/none.zip", "{0}/none.zip", "--to", "{0}/other"],
    "data": ["{0}/none.yaml"],
}


def _leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb with its parser, also those below another."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in below:
        for word, sub in action.choices.items():
            yield from _leaves(sub, f"{name} {word}".strip())
    if not below:
        kinds = [a for a in parser._actions if a.dest == "kind" and a.choices and name == "new"]
        yield from ((f"{name} {kind}", parser) for kind in kinds[0].choices or ()) if kinds else [(name, parser)]


def test_every_verb_has_it() -> None:
    leaves = dict(_leaves(parser_of(VERBS)))
    with_json = {name for name, sub in leaves.items() if "--json" in sub._option_string_actions}
    assert with_json | set(WITHOUT) == set(leaves) and not with_json & set(WITHOUT)
    assert all(leaves[name]._option_string_actions["--json"].dest == "json" for name in with_json)
    assert set(WORKS) == with_json, "a new verb is tried below: add its arguments to WORKS"
    assert set(MISTAKES) | {"list"} == with_json  # a kind that `list` does not know is refused by the parser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_class: Callable[[Path], Any]) -> Path:
    """A suite with a loss that prints, in the state in which `bench run` finds it."""
    made = toy_class(tmp_path_factory.mktemp("json"))
    made.data()
    (made.folder / "loud.py").write_text(LOUD)
    made.suite(
        "losses: [dice, ce]",
        "losses: [ce, 'loud.py:Loud']\nrank: {baseline: ce}\nreport: {layout: [survey_table]}",
        "loud",
    ).rename(made.folder / "loud.yaml")
    shutil.copytree(made.folder / "data/toy/labelsTr", made.folder / "labels")
    return made.folder


def _arguments(name: str, words: list[str], folder: Path) -> list[str]:
    sub = dict(_leaves(parser_of(VERBS)))[name]
    places = {"--out": "runs", "--reports": "reports", "--data": "data", "--workers": None}
    given = [*name.split(), *(w.format(folder) for w in words), "--json"]
    for option, place in places.items():
        if option in sub._option_string_actions and not (name == "score" and option == "--out"):
            given += [option, str(folder / place) if place else "1"]
    return given


@pytest.mark.parametrize("name", WORKS)  # in this order: run leaves the records that the others read
def test_stdout_is_json_alone(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words, keys = WORKS[name]
    monkeypatch.chdir(folder)
    # a loss that is cross entropy is no loss of one's own, which `check` says with exit code 1
    assert main(_arguments(name, words, folder)) == (1 if name == "check" else 0)
    out, err = capfd.readouterr()
    data = json.loads(out)
    rows = data if isinstance(data, list) else [data]
    assert rows and all(keys <= set(row) for row in rows), sorted(rows[0])
    if name == "run":
        assert "forward" in err and "[2/2]" in err
        (row,) = rows
        assert row["states"] == {"ok": 2} and row["not_ok"] == [] and Path(row["report"]).is_file()
    if name == "report":
        assert rows[0]["committed"] == 2
    if name == "check":
        assert "forward" in err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_on_stderr(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(_arguments(name, MISTAKES[name], folder)) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("bench: ") and err.count("\n") == 1


def test_a_process_of_its_own_prints_nothing_else(folder: Path) -> None:
    """From the shell, where worker processes inherit the very stdout; and a failed cell is named."""
    (folder / "bad.py").write_text(LOUD.replace("return nn", 'raise ValueError("not today")\n        return nn'))
    text = (folder / "loud.yaml").read_text().replace("suite: toy", "suite: bad").replace("loud.py", "bad.py")
    (folder / "bad.yaml").write_text(text)
    command = [sys.executable, "-m", "harness", *_arguments("run", ["bad.yaml"], folder)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=280)
    assert found.returncode == 1 and "forward" in found.stderr, found.stderr
    (row,) = json.loads(found.stdout)
    (cell,) = row["not_ok"]
    assert row["states"] == {"ok": 1, "error": 1} and row["started"] == 1
    assert cell["loss"] == "Loud" and cell["state"] == "error" and "not today" in cell["message"]
