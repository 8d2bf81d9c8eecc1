"""Arguments against annotations: what fits, what does not, and what is said."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from harness.annotations import expectation, spelled_out
from harness.errors import BenchError, sentence
from harness.losses import LOSSES
from harness.resolve import locate
from harness.suite import load_suite


@pytest.mark.parametrize(
    ("annotation", "fits", "words", "wrong"),
    [
        ("int", [0, -3], "a whole number", [1.5, True, "1", None, [1], 2**63]),
        ("float", [0, 1.5, -1], "a number", [True, "1", None, [1.0], 10**400]),
        ("bool", [True, False], "true or false", [0, 1, "true", None]),
        ("str", ["", "a"], "text", [1, None, ["a"], True]),
        ("None", [None], "null", [0, "", False]),
        ("int | None", [3, None], "a whole number or null", [3.5, "a"]),
        ("Optional[float]", [3, None], "a number or null", ["a", [1]]),
        ("typing.Union[int, str]", [3, "a"], "a whole number or text", [3.5, None]),
        ("Literal['a', 'b']", ["a", "b"], "one of 'a', 'b'", ["c", None, 1]),
        ("Literal[1, 2]", [1, 2], "one of 1, 2", [3, True, 1.0, "1"]),
        ("Sequence[float]", [[], [1, 2.5]], "a list of numbers", [1, "ab", ["a"], [True], None]),
        ("tuple[int, int]", [[1, 2]], "a list of 2 whole numbers", [[1], [1, 2, 3], [1, "a"], 1]),
        ("tuple[int, ...]", [[], [1, 2, 3]], "a list of whole numbers", [["a"], 1]),
        ("list", [[1, "a"]], "a list", [1, {}]),
        ("Mapping[str, int]", [{}, {"a": 1}], "a mapping", [[], {"a": "b"}]),
        ("Sequence[Sequence[float]]", [[[1.0]], []], "a list", [[1.0], 1.0]),
    ],
)
def test_simple_types(annotation: str, fits: list[Any], words: str, wrong: list[Any]) -> None:
    assert [expectation(annotation, value) for value in fits] == [None] * len(fits)
    for value in wrong:
        assert (expectation(annotation, value) or "").startswith(words), value


@pytest.mark.parametrize(
    "annotation",
    ["", "Tensor", "Tensor | None", "LossReduction | str", "Callable[..., int]", "Any", "'int'", "Literal[X]", "a b"],
)
def test_what_cannot_be_judged_fits(annotation: str) -> None:
    for value in (1, "a", None, [1], {"a": 1}):
        assert expectation(annotation, value) is None


def test_names_of_the_module_are_spelled_out() -> None:
    names = {"Kind": "Literal['a', 'b']", "Maybe": "Kind | None", "Loop": "list[Loop]"}

    def alias(name: str) -> ast.expr | None:
        return ast.parse(names[name], mode="eval").body if name in names else None

    def spelled(text: str) -> str:
        return spelled_out(ast.parse(text, mode="eval").body, alias)

    assert spelled("Maybe") == "Literal['a', 'b'] | None"
    assert spelled("dict[str, Kind]") == "dict[str, Literal['a', 'b']]"
    assert spelled("Literal['Kind']") == "Literal['Kind']" and spelled("Other") == "Other"
    assert spelled("Loop").startswith("list[list[")  # ends


def test_null_fits_where_it_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def __init__(self, a: float = None, *, b: int = 2, c=None): ...\n    def forward(self): ...\n"
    )
    found = locate("mine.py:Mine", LOSSES, "loss", tmp_path)
    assert found.check_arguments({"a": None, "b": 3, "c": "x"}) is None
    assert found.check_arguments({"b": None}) == "argument 'b': expected a whole number, found None."
    assert found.check_arguments({"a": "x"}) == "argument 'a': expected a number, found 'x'."


SUITE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 4}]
losses: [dice, ce]
train: {epochs: 1, batch: 2, optimizer: {sgd: {lr: 1e-2}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ce]", "focal: {gamma: two}]", "toy.yaml:4: losses[1].focal.gamma: argument 'gamma': expected a number, found 'two'."),
        ("dice,", "dice: {smooth: [1]},", "toy.yaml:4: losses[0].dice.smooth: argument 'smooth': expected a number, found a list."),
        ("dice,", "dice: {reduction: btch},", "losses[0].dice.reduction: argument 'reduction': expected one of 'batch', 'sample', found 'btch'."),
        ("dice,", "dice: {background: 1},", "expected true or false, found 1."),
        ("ce]", "focal: {gamma: {sweep: [1, x]}}]", "losses[1].focal.gamma: argument 'gamma': expected a number, found 'x'."),
        ("ce]", "torch.nn.CrossEntropyLoss: {label_smoothing: a}]", "argument 'label_smoothing': expected a number, found 'a'."),
        ("width: 4", "width: four", "toy.yaml:3: models[0].unet.width: argument 'width': expected a whole number, found 'four'."),
        ("width: 4", "width: 0", "toy.yaml:3: models[0].unet.width: expected at least 1, found 0."),
        ("unet: {width: 4}", "nnunet: {max_width: 0}", "toy.yaml:3: models[0].nnunet.max_width: expected at least 1, found 0."),
        ("unet: {width: 4}", "segresnet: {blocks_up: [1, 0]}", "models[0].segresnet.blocks_up: expected at least 1, found [1, 0]."),
        ("losses: [dice, ce]", "losses: [dice, ce]\nseeds: 1000000000", "toy.yaml:5: seeds: the grid has 2,000,000,000 cells, and a suite at most 100,000; split it."),
        ("[dice, ce]", "[subsets: {of: [" + ", ".join(f"focal: {{gamma: {i}}}" for i in range(30)) + "]}]", "30 parts have more than 2,000 subsets"),
        ("[dice, ce]", "[tversky: {fn_weight: {sweep: [" + ", ".join(map(str, range(50))) + "]}, fp_weight: {sweep: [" + ", ".join(map(str, range(50))) + "]}}]", "the sweeps make more than 2,000 combinations"),
        ("suite: toy", "suite: toy\ndescription: [" * 70, "toy.yaml"),
        ("suite: toy", 'suite: toy\ndescription: "\\e[31m"', "toy.yaml:2: not valid YAML: a character that is none"),
        ("epochs: 1,", "epochs: 99999999999999999999,", "toy.yaml:5: not valid YAML: a whole number of more than 64 bits."),
    ],
)  # fmt: skip
def test_the_sentences_of_a_suite(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SUITE
    (tmp_path / "toy.yaml").write_text(SUITE.replace(old, new, 1))
    with pytest.raises(BenchError) as error:
        load_suite(tmp_path / "toy.yaml")
    assert words in str(error.value) and "\n" not in sentence(error.value)


def test_a_sentence_stays_one() -> None:
    text = sentence(BenchError(f"a\nb\r\nc {'x' * 5000} end"))
    assert text.startswith("a b c xxx") and text.endswith("xxx end") and len(text) < 300 and "…" in text
