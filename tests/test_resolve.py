"""Names become classes by reading source: no import, exact signatures, digests that move only with the code."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import BenchError
from harness.resolve import load, locate, summary

HERE = Path(__file__).parent


def _file(tmp_path: Path, text: str) -> str:
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    return "mine.py:Mine"


LOSS = '''
import torch
from torch import nn

SCALE = 2.0


def helper(x):
    """Doc."""
    return x * SCALE


def unused(x):
    return x


class Base(nn.Module):
    def __init__(self, a, b=1):
        super().__init__()


class Mine(Base):
    """First line.

    More.
    """

    version = 3

    def forward(self, logits, target, *, distance_in, progress=None):
        return helper(logits.mean())
'''


def test_torch_and_monai_are_found_without_an_import() -> None:
    code = (
        "import sys; from pathlib import Path; from harness.resolve import locate\n"
        "a = locate('torch.nn.CrossEntropyLoss', {}, 'loss', Path('.'))\n"
        "b = locate('monai.losses:DiceLoss', {}, 'loss', Path('.'))\n"
        "c = locate('SegResNet', {}, 'model', Path('.'), 'monai.networks.nets')\n"
        "print([p.name for p in a.params][:3], 'to_onehot_y' in [p.name for p in b.params], c.target)\n"
        "print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0] == "['weight', 'size_average', 'ignore_index'] True monai.networks.nets:SegResNet"
    assert out[1] == "False False"


def test_a_file_gives_signature_needs_and_version_through_its_base(tmp_path: Path) -> None:
    found = locate(_file(tmp_path, LOSS), {}, "loss", tmp_path)
    assert [(p.name, p.required) for p in found.params] == [("a", True), ("b", False)]
    assert found.needs == (("distance_in", True), ("progress", False))
    assert found.version == 3
    assert summary(found.target) == "First line."
    assert load(found.target).__name__ == "Mine"


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        (("return x * SCALE", "return x * SCALE + 1"), True),  # a helper that is used
        (("SCALE = 2.0", "SCALE = 3.0"), True),  # a constant that a helper uses
        (("b=1", "b=2"), True),  # the base class
        (("return x\n", "return -x\n"), False),  # a function that is not used
        (('"""Doc."""', '"""Another text."""'), False),
        (("import torch\n", "import torch  # comment\n"), False),
    ],
)
def test_the_digest_follows_what_the_class_uses(tmp_path: Path, change: tuple[str, str], moves: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert change[0] in LOSS
    one = locate(_file(tmp_path / "a", LOSS), {}, "loss", tmp_path / "a").digest
    two = locate(_file(tmp_path / "b", LOSS.replace(*change)), {}, "loss", tmp_path / "b").digest
    assert (one != two) is moves


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dcie", "unknown loss 'dcie' (did you mean 'dice'?)"),
        ("nowhere.py:X", "no file 'nowhere.py'"),
        ("torch.nn.NoSuchLoss", "torch.nn has no class 'NoSuchLoss'"),
        ("torch.nn.CrossEntropyLos", "torch.nn has no class 'CrossEntropyLos' (did you mean 'CrossEntropyLoss'?)."),
        ("no_such_package.mod:X", "no module 'no_such_package.mod' is installed"),
        ("mine.py", "expected a class, found a file; write mine.py:Base or mine.py:Mine."),
        ("mine.py:Mein", "mine.py has no class 'Mein' (did you mean 'Mine'?); it has: Base, Mine."),
        ("mine.py:helper", "mine.py is a function, expected a class derived from torch.nn.Module."),
        ("plain.py", "plain.py holds no class derived from torch.nn.Module, which a loss is."),
        (
            "focal(gamma=2, alpha=[1, 2])",
            "found 'focal(gamma=2, alpha=[1, 2])'; write `focal: {gamma: 2, alpha: [1, 2]}`.",
        ),
        ("mine.py:Mine(b=2)", "write `'mine.py:Mine': {b: 2}`."),
        ("dice()", "write `dice`."),
    ],
)
def test_what_is_not_there_is_said(name: str, words: str, tmp_path: Path) -> None:
    _file(tmp_path, LOSS)
    (tmp_path / "plain.py").write_text("class Plain:\n    pass\n")
    with pytest.raises(BenchError) as error:
        locate(name, {"dice": "harness.losses.region:Dice"}, "loss", tmp_path)
    assert words in str(error.value)


def test_arguments_are_checked(tmp_path: Path) -> None:
    found = locate(_file(tmp_path, LOSS), {}, "loss", tmp_path)
    assert found.check_arguments({"a": 1}) is None
    assert found.check_arguments({}, frozenset({"a"})) is None
    assert "argument 'a' is required" in str(found.check_arguments({}))
    assert "unknown argument 'bb' (did you mean 'b'?)" in str(found.check_arguments({"a": 1, "bb": 2}))


def test_a_subclass_of_a_built_in_loss_inherits_its_signature(tmp_path: Path) -> None:
    text = "from harness.losses import Dice\nclass Mine(Dice):\n    version = 2\n"
    found = locate(_file(tmp_path, text), {}, "loss", tmp_path)
    assert "squared" in [p.name for p in found.params] and found.version == 2
    assert "unknown argument 'sqared' (did you mean 'squared'?)" in str(found.check_arguments({"sqared": True}))


def test_a_file_that_is_gone_is_a_sentence() -> None:
    with pytest.raises(BenchError, match="cannot be imported"):
        load("/nowhere/mine.py:Mine")


def test_a_file_with_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"mine\.py:2: not valid Python"):
        locate(_file(tmp_path, "x = 1\ndef (:\n"), {}, "loss", tmp_path)
