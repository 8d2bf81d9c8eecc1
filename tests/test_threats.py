"""What docs/threat-model.md says is defended: files of others neither run code nor reach outside of their folder."""

from __future__ import annotations

import ast
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.data.layouts import reader_of
from harness.data.manifest import load_manifest
from harness.errors import BenchError
from harness.paths import leads_out
from harness.report.latex import escape
from harness.yamlfile import read_yaml

ROOT = Path(__file__).parent.parent
# Reading one of these runs code that stands in the file. nnU-Net's checkpoints are read as nnU-Net has just read them.
EXCEPTED = {("harness/integrations/nnunet.py", "torch.load")}


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _keywords(call: ast.Call) -> dict[str, str]:
    return {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg}


def test_nothing_is_read_in_a_way_that_can_run_code() -> None:
    """Every place of the package that loads a file, seen in its source, so that a new one is seen, too."""
    needed = {
        "torch.load": {"weights_only": "True"},
        "np.load": {"allow_pickle": "False"},
        "yaml.load": {"Loader": "_Loader"},
    }
    forbidden = re.compile(
        r"(eval|exec|compile|os\.system|os\.popen|tempfile\.mktemp|yaml\.(unsafe_load|full_load|load_all)|"
        r"pickle\.loads?|marshal\.loads?|shelve\.open|joblib\.load|pd\.read_pickle|torch\.hub\.\w+|\w*\.?extractall)"
    )
    seen: set[str] = set()
    for path in sorted((ROOT / "harness").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for name, call in _calls(path):
            assert not forbidden.fullmatch(name), f"{file}:{call.lineno}: {name}"
            assert _keywords(call).get("shell") != "True", f"{file}:{call.lineno}"
            if name in needed:
                seen.add(name)
                right = needed[name].items() <= _keywords(call).items()
                assert right or (file, name) in EXCEPTED, f"{file}:{call.lineno}: {name} without {needed[name]}"
    assert seen == set(needed)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch ran']",
        "a: !!python/object/new:subprocess.Popen [['touch', 'ran']]",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
    ],
)
def test_a_yaml_file_makes_no_objects(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    with pytest.raises(BenchError, match="not valid YAML"):
        read_yaml(Path("x.yaml"))
    assert not Path("ran").exists()


MANIFEST = """\
name: toy
title: Toy
licence: none
attribution: nobody
obtain: It is made by the tests.
layout: {LAYOUT}
modalities: [MRI]
labels: {disc: 1}
intensity: {zscore: volume}
cases: [c0, c1, c2]
splits: {s: {test: [c2]}}
"""
OUT = ("../x", "a/../../x", "/x", "a/..", "..\\\\x", "C:/x", "..")


@pytest.mark.parametrize("path", OUT)
def test_no_path_of_a_manifest_leads_out_of_the_folder_of_data(tmp_path: Path, path: str) -> None:
    """Neither read nor, for a phantom, written."""
    layouts = [f"{name}: {{folder: '{path}'}}" for name in ("decathlon", "nnunet", "brats", "acdc", "cityscapes")]
    layouts += [f"synapse_npz: {{folder: '{path}', volumes: [c0]}}"]
    layouts += [f"files: {{image: '{path}/{{case}}.nii', label: 'l/{{case}}.nii'}}"]
    layouts += [f"files: {{image: 'i/{{case}}.nii', label: '{path}/{{case}}.nii'}}"]
    layouts += [f"files: {{image: ['{path}/{{case}}.nii'], label: 'l/{{case}}.nii'}}"]
    (tmp_path / "data").mkdir()
    for layout in layouts:
        (tmp_path / "toy.yaml").write_text(MANIFEST.replace("LAYOUT", layout))
        with pytest.raises(BenchError, match="leads out of the folder of data"):
            reader_of(load_manifest("toy.yaml", tmp_path), tmp_path / "data")
    good = MANIFEST.replace("LAYOUT", "decathlon: {folder: toy}")
    for more in (f"spacing: '{path}/t.yaml'", f"files: {{'{path}': 'sha256:{'0' * 64}'}}"):
        (tmp_path / "toy.yaml").write_text(good + more)
        with pytest.raises(BenchError, match="leads out of"):
            load_manifest("toy.yaml", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "toy.yaml"]


def test_an_hdf5_file_shows_no_other_file(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    from harness.data.layouts.synapse_npz import _hdf5

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["image"] = file["label"] = np.zeros((2, 2, 2))
    (tmp_path / "raw").write_bytes(bytes(64))
    makers = {
        "is a link to another file": lambda f: f.__setitem__("image", h5py.ExternalLink("secret.h5", "/image")),
        "lies in other files": lambda f: f.create_dataset("image", (8,), "f8", external=[("raw", 0, 64)]),
    }
    for words, make in makers.items():
        with h5py.File(tmp_path / "case.h5", "w") as file:
            file["label"] = np.zeros((2, 2, 2))
            make(file)
        with pytest.raises(BenchError, match=words):
            _hdf5(tmp_path / "case.h5")


def test_which_paths_lead_out() -> None:
    assert all(leads_out(p) for p in (*OUT, "", "a\0b", "//x", "\\\\host\\x", "a\\..\\b"))
    assert not any(leads_out(p) for p in ("x", "a/b", "a..b/c", "...", ".a", "a/.", "./a"))


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    """While it is written a file is for its owner alone."""
    code = (
        f"import os; os.umask({umask})\n"
        "from pathlib import Path\n"
        "from harness.records import write_atomic\n"
        "from harness.sharing.pack import write_file\n"
        "def write(stream):\n"
        "    (part,) = [p for p in Path().iterdir()]\n"
        "    assert part.stat().st_mode & 0o777 == 0o600, part\n"
        "write_atomic(Path('a'), write)\n"
        "write_file(Path('b/c'), b'x')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=100)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert modes == {"a": 0o666 & ~umask, "b": 0o777 & ~umask, "c": 0o666 & ~umask}


def test_latex_commands_are_text() -> None:
    for text in (r"\input{/etc/passwd}", r"\write18{rm -rf /}", r"\immediate\openin", "^^5cinput", "$x$ % & # ~ _"):
        shown = escape(text)
        commands = set(re.findall(r"\\([A-Za-z]+)", shown))
        assert commands <= {"textbackslash", "textasciicircum", "textasciitilde"}, shown
        assert "^^" not in shown and not re.search(r"(?<!\\)[$%&#_]", shown)


class _Active(HTMLParser):
    """What of a page could run something or fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "base", "form", "meta", "link"):
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on") or re.match(r"\s*(javascript|vbscript|data:text)", value or "", re.IGNORECASE):
                self.found.append(f"{tag} {name}={value}")


def test_a_report_shows_the_texts_of_others_and_runs_none(tmp_path: Path) -> None:
    import pandas as pd

    from harness.report import write_report

    bad = "\"'><img src=x onerror=alert(1)><svg onload=alert(1)></script><script>alert(1)</script><a href='javascript:alert(1)'>"
    pages = {}
    for name, text in (("good", "plain"), ("bad", bad)):
        labels = {"dataset": text, "split": text, "fold": None, "model": text}
        cells, cases, curves = [], [], []
        for i, loss in enumerate((text, "ce")):
            cells.append(
                {**labels, "loss": loss, "seed": 0, "status": "ok", "message": text, "init": text, "batches": text,
                 "weights": f"w{i}", "train_s": 1.0, "eval_s": 1.0, "step_ms": 1.0, "targets_ms": 0.0, "peak_rss_mb": 1.0,
                 "parameters": 5, "steps": 7, "device": text, "torch": text, "lr": 0.01, "train_id": f"t{i}", "eval_id": f"e{i}"}
            )  # fmt: skip
            curves += [{"train_id": f"t{i}", "epoch": e, "step": e, "lr": 0.1, "loss_value": 1.0} for e in range(2)]
            cases += [
                {**labels, "loss": loss, "seed": 0, "patient": text, "case": text, "class": c, "metric": "dice",
                 "profile": "voxel-max", "unit": "1", "value": 0.5, "worst": 0.0, "status": "ok"}
                for c in (text, "liver")
            ]  # fmt: skip
        cells.append(cells[0] | {"seed": 1, "status": "error", "train_id": "t9", "eval_id": "e9"})
        about = {
            "suite": text, "commands": [text], "notes": [text], "learning_rates": text, "environment": [{text: text}],
            "data": [{"name": text, "licence": text, "attribution": text, "source": text, "figures": text}],
        }  # fmt: skip
        frames = (pd.DataFrame(cells), pd.DataFrame(cases), pd.DataFrame(curves))
        page = write_report(text, text, *frames, tmp_path / name, about=about, notice=text, formats=("html",))
        pages[name] = page.read_text(encoding="utf-8")
    assert "onerror" in pages["bad"]  # it is shown
    assert _Active(pages["bad"]).found == _Active(pages["good"]).found


def test_no_folder_is_open_to_everybody() -> None:
    """No mode in the source lets others write."""
    for path in sorted((ROOT / "harness").rglob("*.py")):
        for name, call in _calls(path):
            if name.endswith(("chmod", "mkdir", "makedirs", "os.open")):
                for part in ast.walk(call):
                    wide = isinstance(part, ast.Constant) and isinstance(part.value, int) and part.value & 0o022
                    masked = "UMASK" in ast.unparse(call)
                    assert not wide or masked or isinstance(part.value, bool), f"{path}:{call.lineno}"  # type: ignore[attr-defined]
