"""Whatever stands in a suite or a manifest: one sentence that names the file, or something that can be planned.

The files that ship are changed at any place of their tree and as text; each input counts once. `make test-long` makes
20,000 and more of them, CI some hundred.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.cli import _plan_row, main
from harness.data.layouts import reader_of
from harness.data.manifest import load_manifest
from harness.errors import BenchError, sentence
from harness.plan import make_plan
from harness.suite import load_suite

ROOT = Path(__file__).parent.parent
SUITES = {p.stem: p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("suites/*.yaml"))}
MANIFESTS = {p.stem: p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("data_manifests/*.yaml"))}
# Keys that few of them have.
SUITES["every key"] = """\
suite: every
description: text
data:
  - {manifest: phantom, split: kfold4, folds: [0, 2], slices: {size: [32, 32], fit: resize, axis: 1, keep: labelled}, canonical: true}
  - {manifest: hippocampus, split: holdout, patches: {size: [16, 16, 16], foreground: 0.5, overlap: 0.25}, crop: nonzero,
     resample: {spacing: [1, 1, 2]}, intensity: {percentiles: [1, 99]}}
models: [unet: {width: {sweep: [4, 8]}, init: null}, UNet: {channels: [4, 8], strides: [2]}, segresnet: {sweep: [{width: 4}, {width: 8}]}]
losses:
  - ce
  - focal: {gamma: {sweep: [1, 2]}}
  - sum: [{loss: dice, weight: {linear: [1, 0]}}, {loss: {boundary: {}}, weight: {step: {every: 5, from: 0, to: 1}}}]
  - subsets: {always: [dice], of: [focal, topk], label: parts}
  - pairs: {region: [dice, jaccard], pixel: [ohem]}
  - torch.nn.CrossEntropyLoss: {label_smoothing: 0.1}
with: {varied: 0.5, ce: {cosine: [0.5, 0]}, except: [ce]}
seeds: [0, 7]
train:
  epochs: 3
  steps: 5
  batch: 4
  accumulate: 2
  optimizer: {sgd: {lr: 1e-2, momentum: 0.9, nesterov: true, weight_decay: 0}}
  schedule: plateau
  precision: bf16
  clip: 1
  augment: {rotate: 10, scale: 0.1, shift: 0.1, flip: true, noise: 0.1, intensity: 0.1}
  cases: [4, all]
  deep_supervision: false
labels: clean
metrics: [dice, hd95, nsd@2, "loss:ce"]
profile: [voxel-max, area]
engine: points
rank: {by: [dice], baseline: ce, rope: 0.02}
report: {layout: [survey_table, sweeps], notes: [a note]}
protocol: {source: a paper, departures: {seeds: two}, unstated: {train: all}, readings: [none]}
quick: {epochs: 1, steps: 2, cases: 4, size: [16, 32, 32], batch: 2, seeds: 1, folds: 1, models: [unet: {width: 4}]}
timeout: 60
"""
SECONDS = 30  # of the processor for one input; most take hundredths
LONG = int(os.environ.get("BENCH_FUZZ", "5200"))  # inputs of each of the four long tests

DEEP: Any = 0
for _ in range(90):
    DEEP = [DEEP]
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**6, 2**31, 10**18, 0.0, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", " ", "a", "..", "../..", "/", "/etc/passwd", "/dev/zero", "a/b.yaml", "x.py:X", "..:..", "a.b", "a:b", ".", ":", "*", "~",
    "ü", "名前", "\u202e", "a\nb", "a'b\"c", "%s", "{x}", "{0.__class__}", "${HOME}", "\\", "a" * 5000, "rest", "all", "found",
    "loss:*", "loss:dice", "nsd@2", "nsd@-1", "nsd@", "hd@@", "best:dice@val", "dice", "ce", "unet", "phantom", "1e3", "on", "yes", "0x1f",
    "2020-01-01", "case_{:03d}", "{:>99999999}", "(", "(a+)+$", [], [[]], {}, {"": None}, {1: 2}, {None: 1}, {True: 1}, [None], [1, 2], [1.5],
    [0.0, 0.0, 0.0], [64, 64], [8, 8, 8], ["dice", "dice"], {"sweep": [1, 2]}, {"sweep": []}, {"sweep": [{"a": 1}]},
    {"sum": [{"loss": "dice", "weight": 1}]}, {"sum": []}, {"subsets": {"of": ["dice", "ce"]}}, {"pairs": {"a": ["dice"], "b": ["ce"]}},
    {"linear": [1, 0]}, {"step": {"every": 0, "from": 0, "to": 1}}, {"varied": 0.5, "ce": 0.5}, {"a": {"b": {"c": [1, {"d": None}]}}},
    {"pattern": "c{:03d}", "from": 0, "to": 10**9}, {"pattern": "c", "from": 0, "to": 3}, {"found": 3}, {"checkpoint": "x"},
    {"mean": [0], "sd": [1]}, list(range(300)), {str(i): i for i in range(40)}, DEEP,
]  # fmt: skip
RAW = [
    "a: &a [*a]", "x: !!python/object/apply:os.system ['true']", "x: !!python/name:os.system", "!!bool x", "!!int ''", "!!float ''", "!!timestamp x",
    "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]", "? [a]\n: b", "? {a: b}\n: c", "<<: {suite: x}", "<<: 3", "<<: *none", "*none", "&a", "&a a: *a",
    "\t", "\x00", "\x07", "\ufeff", "---\n", "...\n", "%YAML 9.9\n---\n", "{", "}", "[", "]", "'", '"', "|", ">", "|9\n a", "#", "@", "`", "- ", ": ",
    '"\\ud800"', '"\\e[31m"', '"\\0"', "0x" + "f" * 5000, "9" * 5000, "-" + "9" * 30, "1_000", "010", "1:30", "1e999", ".nan", "-.inf", "~", "null",
    "2020-01-01", "2020-13-45", "2020-01-01 10:00:00+99:00", "=", "!", "!!", "!<tag:x>", "!a b", "yes", "off", "a: b: c", "\r", "\u2028", "\x85", "[" * 3000,
    "{a: " * 300, "a: 1\na: 1", "é", "\U0001f600",
]  # fmt: skip
LAUGHS = "".join(
    f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'lol'}]\n" for i in range(9)
)  # the billion laughs


@contextmanager
def limited() -> Iterator[None]:
    """Fail where one input takes for ever."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _sentence(error: BenchError, path: Path) -> None:
    text = str(error)
    # a suite that is right can name a data set whose cases are those of a folder, which is not there
    assert str(path) in text or "data_manifests" in text or "say where with --data FOLDER" in text, text
    assert len(sentence(error)) < 8_000 and "\n" not in sentence(error)
    line = re.match(rf"{re.escape(str(path))}:(\d+)", text)
    if line:
        ends = re.findall("[\n\r\x85\u2028\u2029]", path.read_text(encoding="utf-8", errors="replace"))
        assert 1 <= int(line[1]) <= 1 + len(ends), text


def try_suite(path: Path, quick: bool = False) -> bool:
    """Whether it is a suite; it is then planned as by `bench plan --json`."""
    with limited():
        try:
            suite = load_suite(path, quick)
            entries = make_plan(suite, path.parent / "runs", path.parent / "reports")
        except BenchError as error:
            _sentence(error, path)
            return False
        assert entries and all(re.fullmatch("[0-9a-f]{16}", e.cell.train_id) for e in entries)
        json.dumps([_plan_row(suite, e) for e in entries[:3]], allow_nan=False).encode()
        assert re.fullmatch(r"[\w.-]+", suite.name)
        return True


def try_manifest(path: Path) -> bool:
    """Whether it is a manifest; its files are then looked for as by `bench data`."""
    with limited():
        try:
            manifest = load_manifest(str(path), path.parent, path.parent / "data")
            manifest.digest()
            reader = reader_of(manifest, path.parent / "data")
            reader.missing(manifest.cases[:5])
        except BenchError as error:
            text = str(error)
            assert str(path.parent) in text or manifest.name in text, text
            assert len(sentence(error)) < 8_000 and "\n" not in sentence(error)
            return False
        return True


def _places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from _places(value, (*at, key))


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


@st.composite
def changed_tree(draw: st.DrawFn, texts: dict[str, str]) -> str:
    """A file with one to three places of its tree changed."""
    data: Any = yaml.safe_load(texts[draw(st.sampled_from(sorted(texts)))])
    for _ in range(draw(st.integers(1, 3))):
        places = [p for p in _places(data) if p]
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        parent = _at(data, tuple(above))
        kind = draw(
            st.sampled_from(("replace", "replace", "replace", "delete", "rename", "copy", "wrap", "swap", "add"))
        )
        # a copy: what is put in may be changed in the next round
        strange = copy.deepcopy(draw(st.one_of(st.sampled_from(STRANGE), st.text(max_size=6), st.integers(-9, 99))))
        if kind == "delete":
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[
                draw(st.one_of(st.text(max_size=5), st.sampled_from([str(key)[:-1], f"{key}s", 1, None, True, 0.5])))
            ] = parent.pop(key)
        elif kind == "copy" and isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[key]))
        elif kind == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, str(parent[key])]))
        elif kind == "swap":
            other = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(_at(data, other)) if other[: len(above) + 1] != (*above, key) else strange
        elif kind == "add" and isinstance(parent[key], dict):
            parent[key][
                draw(
                    st.one_of(
                        st.text(max_size=5), st.sampled_from(["size", "name", "init", "folds", "cases", "spacing"])
                    )
                )
            ] = strange
        else:
            parent[key] = copy.deepcopy(strange)
    text: str = yaml.dump(data, allow_unicode=True, sort_keys=False, Dumper=yaml.SafeDumper)
    return text


@st.composite
def changed_text(draw: st.DrawFn, texts: dict[str, str]) -> bytes:
    """A file with bytes cut out, put in or doubled, or cut off anywhere."""
    whole = texts[draw(st.sampled_from(sorted(texts)))].encode()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(whole)))
        kind = draw(st.sampled_from(("cut off", "cut out", "raw", "raw", "bytes", "line twice", "value", "laughs")))
        if kind == "cut off":
            whole = whole[:place]
        elif kind == "cut out":
            whole = whole[:place] + whole[place + draw(st.integers(1, 40)) :]
        elif kind == "bytes":
            whole = whole[:place] + draw(st.binary(max_size=4)) + whole[place:]
        elif kind == "line twice":
            lines = whole.splitlines(keepends=True)
            n = min(whole[:place].count(b"\n"), len(lines) - 1) if lines else 0
            whole = b"".join([*lines[: n + 1], *lines[n:]])
        elif kind == "laughs":
            whole += LAUGHS.encode() if draw(st.booleans()) else b""
        else:
            raw = draw(st.sampled_from(RAW)).encode("utf-8", "surrogatepass")
            if kind == "value":  # in the place of one
                found = [m.span() for m in re.finditer(rb"(?<=: )[^\s,{}\[\]]+", whole)]
                start, end = draw(st.sampled_from(found)) if found else (place, place)
                whole = whole[:start] + raw + whole[end:]
            else:
                whole = whole[:place] + raw + whole[place:]
    return whole


def _few(count: int, derandomize: bool = True) -> Any:
    # explaining a failure traces every line, which takes longer than all else
    return settings(
        max_examples=count,
        derandomize=derandomize,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )


MANY = _few(LONG, derandomize=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "data").mkdir()
    return folder / "made.yaml"


@_few(150)
@given(text=changed_tree(SUITES), quick=st.booleans())
def test_suites_with_changed_values(file: Path, text: str, quick: bool) -> None:
    file.write_text(text, encoding="utf-8")
    try_suite(file, quick)


@_few(150)
@given(content=changed_text(SUITES))
def test_suites_with_changed_text(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try_suite(file)


@_few(150)
@given(text=changed_tree(MANIFESTS))
def test_manifests_with_changed_values(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    try_manifest(file)


@_few(150)
@given(content=changed_text(MANIFESTS))
def test_manifests_with_changed_text(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try_manifest(file)


@pytest.mark.slow
@pytest.mark.timeout(0)
@MANY
@given(text=changed_tree(SUITES), quick=st.booleans())
def test_many_suites_with_changed_values(file: Path, text: str, quick: bool) -> None:
    file.write_text(text, encoding="utf-8")
    try_suite(file, quick)


@pytest.mark.slow
@pytest.mark.timeout(0)
@MANY
@given(content=changed_text(SUITES))
def test_many_suites_with_changed_text(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try_suite(file)


@pytest.mark.slow
@pytest.mark.timeout(0)
@MANY
@given(text=changed_tree(MANIFESTS))
def test_many_manifests_with_changed_values(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    try_manifest(file)


@pytest.mark.slow
@pytest.mark.timeout(0)
@MANY
@given(content=changed_text(MANIFESTS))
def test_many_manifests_with_changed_text(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try_manifest(file)


@pytest.mark.parametrize("raw", [*RAW, LAUGHS], ids=range(len(RAW) + 1))
def test_each_raw_text_alone_and_as_a_value(file: Path, raw: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command: exit code 2, one line, no traceback."""
    for text in (raw, f"suite: {raw}\n", f"{SUITES['quickstart']}\ndescription: {raw}\n", f"seeds: {raw}"):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert main(["plan", str(file), "--out", str(file.parent / "runs"), "--json"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("bench: ") and error.count("\n") == 1 and str(file) in error


def test_the_files_that_ship_are_what_is_changed(file: Path) -> None:
    """Without a change nearly all of them are planned, so that most refusals are of the change."""
    planned = 0
    for text in SUITES.values():
        file.write_text(text, encoding="utf-8")
        planned += try_suite(file) or try_suite(file, quick=True)
    assert planned == len(SUITES)
