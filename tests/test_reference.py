"""The reference of the losses: docstrings can be read, pages are those of the code, figures are small and fixed."""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.check import Certificate, Line
from harness.errors import BenchError
from harness.losses import LOSSES
from harness.losses.needs import NEEDS
from harness.reference import __main__ as command
from harness.reference import drawings, entries, measure, out_of_date, problems, write_reference
from harness.reference.docstrings import cell, markdown, parse, plain
from harness.reference.entries import entry_of
from harness.reference.write import read_agreement

FOLDER = Path(__file__).parent.parent / "docs" / "losses"
HOW = "; run `python -m harness.reference --measure`"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_documented(name: str) -> None:
    assert problems(name) == []


def test_committed_pages_are_those_of_the_code() -> None:
    found = out_of_date(FOLDER)
    assert not found, "\n".join(found) + HOW


def test_no_loss_fails_its_check_in_the_committed_pages() -> None:
    lines = {(n, x["name"]): x["outcome"] for n, m in measure.read(FOLDER).items() for x in m["check"]}
    assert set(LOSSES) == {n for n, _ in lines}
    assert not [key for key, outcome in lines.items() if outcome == "fail"]


def test_every_loss_agrees_with_a_reference_in_the_committed_table() -> None:
    table = read_agreement(FOLDER / "agreement.json")
    assert [name for name in LOSSES if not table.get(name)] == []
    assert max(error for rows in table.values() for _, error in rows) <= 1e-5


def test_figures_are_small_and_hold_no_date() -> None:
    for path in FOLDER.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert len(text.encode()) < drawings.LIMIT, path.name
        assert not re.search(r"20\d\d-\d\d-\d\d|/home/|/tmp/", text)


def test_every_need_is_explained() -> None:
    assert set(entries.NEEDS) >= NEEDS


# --- docstrings

TEXT = """One line with its source (Author, 2020).

    L = Σ_n p_n    (1)
    s = 2

Words about it. They go on in
a second line:

- first, which is
  long
- second

Args:
    gamma: γ, from
        0 to 1.
    low, high (float): Both ends.

Raises:
    ValueError: gamma: is negative.

Use:
    Now and then.

        x = y
"""


def test_a_docstring_falls_into_its_parts() -> None:
    doc = parse(TEXT)
    assert doc.problems == ()
    assert doc.summary == "One line with its source (Author, 2020)."
    assert doc.items("Args") == {"gamma": "γ, from 0 to 1.", "low": "Both ends.", "high": "Both ends."}
    assert doc.items("Raises") == {"ValueError": "gamma: is negative."}
    assert markdown(doc.body) == (
        "```text\nL = Σ_n p_n    (1)\ns = 2\n```\n\nWords about it. They go on in a second line:\n\n"
        "- first, which is long\n- second"
    )
    assert markdown(doc.sections["Use"]) == "Now and then.\n\n```text\nx = y\n```"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no summary"),
        ("A.\n\nArgs:\n    a: x\n\nMore text.", "belongs to no section: 'More text.'"),
        ("A.\n\nArgs:\n    a: x\n\nArgs:\n    b: x", "Args stands there twice"),
        ("A.\n\nUse:\n\nArgs:\n    a: x", "section Use is empty"),
        ("A.\n\nArgs:\n    nothing here", "neither `name: text`"),
        ("A.\n\nArgs:\n    a: x\n    a: y", "a is described twice"),
        ("A.\n\nArgs:\n    a:\n    b: y", "a has no text"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, problem: str) -> None:
    assert any(problem in p for p in parse(text).problems)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("logits (B, C, *S), t (B, *S)", r"logits (B, C, \*S), t (B, \*S)"),
        ("`a*b` and p_n < _x [0](y)", r"`a*b` and p_n &lt; \_x \[0\](y)"),
        ("dice_weight · Σ_c t_c", "dice_weight · Σ_c t_c"),
    ],
)
def test_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_bar_does_not_end_a_cell() -> None:
    assert cell("|S| +\n |G|") == r"\|S\| + \|G\|"


# --- what a class lacks

GOOD = '''
from torch import nn
class Good(nn.Module):
    """A loss (Author, 2020): one minus p.

    Args:
        gamma: γ.
        class_counts: Voxels of each class.

    Advantages:
        Many.

    Disadvantages:
        Few, p < q | r.

    Use:
        Always.

    Elsewhere:
        Nothing known.
    """
    version = 3
    taxonomy = ("pixel", "distribution")
    declares = {"optimum": "negative by design"}
    def __init__(self, gamma: float = 4 / 3, class_counts: list[int] | None = None) -> None:
        super().__init__()
    def forward(self, logits, target, *, distance_in, spacing=None):
        return logits.softmax(1).mean()
'''


@pytest.fixture
def only(tmp_path: Path):
    """A table of one loss, from source."""
    table = dict(LOSSES)

    def put(source: str = GOOD) -> str:
        path = tmp_path / "good.py"
        path.write_text(source, encoding="utf-8")
        LOSSES.clear()
        LOSSES["good"] = f"{path}:Good"
        return "good"

    yield put
    LOSSES.clear()
    LOSSES.update(table)  # in its own order, which the check's `identity` goes by


def test_a_complete_class_has_no_problem_and_its_entry_says_all(only) -> None:
    entry = entry_of(only())
    assert problems("good") == []
    assert entry.needs == (("distance_in", True), ("spacing", False))
    assert [(p.name, p.kind, p.default, p.filled) for p in entry.parameters] == [
        ("gamma", "float", "4/3", False),
        ("class_counts", "`list[int]`", "None", True),
    ]
    assert (entry.version, entry.taxonomy, entry.declares) == (
        3,
        ("pixel", "distribution"),
        {"optimum": "negative by design"},
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    Use:\n        Always.\n", "", "no section Use"),
        ("(Author, 2020)", "", "no source"),
        ("        gamma: γ.\n", "", "Args lacks gamma"),
        ("gamma: γ.", "gamma: γ.\n        beta: β.", "Args describes beta"),
        ('("pixel", "distribution")', '("pixel", "pixel")', "taxonomy is"),
        ("version = 3", "version = 0", "version is 0"),
        ('"optimum":', '"beauty":', "'beauty', which is no property"),
        ('"optimum":', '"ignored":', "'ignored', which is no property"),
        ("negative by design", " ", "no reason for 'optimum'"),
    ],
)
def test_what_a_class_lacks_is_said(only, old: str, new: str, problem: str) -> None:
    assert old in GOOD
    name = only(GOOD.replace(old, new))
    assert any(problem in p for p in problems(name)), problems(name)
    with pytest.raises(BenchError, match="cannot be documented"):
        entry_of(name)


# --- measuring and writing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The check itself has tests of its own."""
    lines = (
        Line("optimum", "declared", -1.0, "-1 at the truth", "negative by design"),
        Line("order", "fail", None, "a < b"),
        Line("arguments", "not applicable", None, "none"),
        Line("steady", "pass", 0.123456789, "same"),
    )
    monkeypatch.setattr(measure, "check_loss", lambda spec: Certificate(spec["name"], False, lines, 1.0))
    yield


def test_the_behaviour_of_cross_entropy_is_that_of_a_hand_count() -> None:
    rows, leaves = measure.behaviour({"name": "ce", "class": LOSSES["ce"], "args": {}}, 14)
    right = math.log(1 + 3 * math.exp(-6))
    assert leaves == ["logits"]
    assert [rows[i]["shift"] for i in (0, 7, 14, 21)] == [0, 0.5, 1, 1.5]
    for shift in (0, 7, 14, 21):
        wrong = 2 * 14 * min(shift, 14) / 40**2  # voxels that are missed, and as many that are found for nothing
        assert rows[shift]["value"] == pytest.approx(right + 6 * wrong, rel=1e-4)
    p, q = 1 / (1 + 3 * math.exp(-6)), math.exp(-6) / (1 + 3 * math.exp(-6))
    assert rows[0]["gradient"] == pytest.approx(math.sqrt(((1 - p) ** 2 + 3 * q**2) / 1600), rel=1e-4)


def test_pages_are_written_once_and_found_out_of_date(only, quick: None, tmp_path: Path) -> None:
    only()
    out = tmp_path / "out"
    said: list[str] = []
    measure.measure(out, say=said.append)
    assert said == ["good: fails order"]
    (out / "old.md").write_text("of a loss that is gone")
    assert set(write_reference(out)) == {
        "README.md", "checks.md", "agreement.md", "good.md", "good.svg", "taxonomy.svg", "mismatch.svg", "old.md",
    }  # fmt: skip
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    assert write_reference(out) == [] == out_of_date(out)
    for path in out.glob("*.svg"):
        path.unlink()
    write_reference(out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == first
    page = first["good.md"].decode()
    for line in (
        "| `gamma` | float | `4/3` | γ. |",
        "| `class_counts` | `list[int]` | from the data | Voxels of each class. |",
        "Few, p &lt; q | r.",
        "| `optimum` | D declared | -1 | -1 at the truth. Declared: negative by design |",
        "| `order` | ✗ fail | – | a &lt; b |",
        "| `steady` | ✓ pass | 0.123 | same |",
        "- `spacing`: size of a voxel along each axis, 1 where unknown (optional)",
        "No comparison with an independent reference was collected.",
    ):
        assert line in page.splitlines()
    (out / "good.md").write_text("edited by hand")
    (out / "good.svg").unlink()
    assert out_of_date(out) == ["good.md is not what the code says", "good.svg is not drawn from what was measured"]


def test_a_loss_that_changes_is_measured_again_and_another_is_not(only, quick: None, tmp_path: Path) -> None:
    only()
    said: list[str] = []
    measure.measure(tmp_path, say=said.append)
    measure.measure(tmp_path, say=said.append)
    assert len(said) == 1
    only(GOOD.replace("Always.", "Often."))  # a docstring gives no other numbers
    assert not measure.stale("good", measure.read(tmp_path))
    only(GOOD.replace(".mean()", ".sum()"))
    assert measure.stale("good", measure.read(tmp_path))
    write_reference(tmp_path)
    assert out_of_date(tmp_path) == ["good has changed since it was measured"]
    measure.measure(tmp_path, say=said.append)
    measure.measure(tmp_path, again=["good"], say=said.append)
    assert len(said) == 3


def test_agreement_stands_on_the_page_and_in_the_table(only, tmp_path: Path) -> None:
    only()
    rows = [{"loss": "good", "oracle": "numpy | loops", "error": 3e-16}]
    (tmp_path / "agreement.json").write_text(json.dumps(rows))
    write_reference(tmp_path)
    assert r"| numpy \| loops | 3.0e-16 |" in (tmp_path / "good.md").read_text()
    assert r"| [good](good.md) | numpy \| loops | 3.0e-16 |" in (tmp_path / "agreement.md").read_text()


@pytest.mark.parametrize(
    "text", ["{", '{"loss": 1}', '[{"loss": "good"}]', '[{"loss": "bad", "oracle": "x", "error": 0}]']
)
def test_a_file_of_agreement_that_is_none_is_said(only, tmp_path: Path, text: str) -> None:
    only()
    (tmp_path / "agreement.json").write_text(text)
    with pytest.raises(BenchError, match=r"agreement\.json"):
        write_reference(tmp_path)


def test_costs_are_told_beside_one_pass_over_the_logits(only, tmp_path: Path) -> None:
    only()
    row = {"shape": [2, 4, 8, 8], "device": "cpu", "by": "ours"}
    rows = [
        {**row, "loss": "good", "by": "MONAI", "ms": 30.0, "peak_bytes": 2**20},
        {**row, "loss": "good", "ms": 5.0, "peak_bytes": 2**21},
        {**row, "loss": "floor", "ms": 2.0, "peak_bytes": 2**20},
    ]
    (tmp_path / "cost.json").write_text(json.dumps({"machine": "Two cores", "rows": rows}))
    write_reference(tmp_path)
    page = (tmp_path / "good.md").read_text()
    assert "one pass over the logits. Two cores.\n" in page
    ours, theirs = (
        "| 2×4×8×8 | cpu | ours | 5 ms | 2.5× | 2 MiB | 2× |",
        "| 2×4×8×8 | cpu | MONAI | 30 ms | 15× | 1 MiB | 1× |",
    )
    assert page.index(ours) < page.index(theirs)
    assert "| `distance_in`, `spacing`? | 2.5× | – |" in (tmp_path / "README.md").read_text()
    (tmp_path / "cost.json").write_text(json.dumps({"machine": "Two cores", "rows": [row]}))
    with pytest.raises(BenchError, match=r"cost\.json: cannot be read"):
        write_reference(tmp_path)


def test_the_tree_names_every_loss_once() -> None:
    groups = {name: (group, kind) for i, name in enumerate("abcde") for group, kind in [_pair(i)]}
    text = drawings.taxonomy({f"loss_{n}": g for n, g in groups.items()})
    for name in groups:
        assert text.count(f">loss_{name}<") == 1
    for group in (*entries.AZAD, *entries.MA):
        assert f">{group} (1)<" in text or f">{group}<" in text


def _pair(i: int) -> tuple[str, str]:
    return entries.AZAD[i], entries.MA[i % 4]


def test_gaps_and_constants_are_drawn() -> None:
    rows = [{"shift": i / 4, "value": None if i == 1 else 0.0, "gradient": None} for i in range(7)]
    assert "<svg" in drawings.behaviour({"large": rows, "small": rows})


def test_the_command_says_what_is_wrong(
    only, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only()

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["reference", "--out", str(tmp_path / "out"), *args])
        return command.main()

    assert run("--again", "bad") == 2
    assert "there is no loss 'bad'" in capsys.readouterr().err
    assert run("--check") == 1
    assert "no folder" in capsys.readouterr().out
    assert run("--measure") == 0
    assert run("--check") == 0
    (tmp_path / "out" / "README.md").unlink()
    assert run("--check") == 1
    assert "README.md is not what the code says" in capsys.readouterr().out
    only(GOOD.replace("Advantages:", "Advantage:"))
    assert run() == 2
    assert "no section Advantages" in capsys.readouterr().err
