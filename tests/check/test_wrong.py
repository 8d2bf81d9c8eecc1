"""`bench check` fails on wrong losses, each for its own reason and for no other."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.check import DECLARABLE, Certificate, check_loss
from harness.check.properties import NEVER_DECLARED, PROPERTIES
from harness.errors import BenchError

Certify = Callable[..., Certificate]
FILE = Path(__file__).with_name("wrong_losses.py")

BACKWARDS = "optimum order descent monotone_large monotone_small classwise"
# Wrong loss → the properties that fail, all of them.
FAILS = {
    "SurveyDice": "optimum class_permutation",
    "SurveyFocal": "memory",
    "SurveyCombo": "identity",
    "ComboSign": "classwise",
    "ComboPrinted": "optimum order classwise",
    "SensitivitySpecificity": BACKWARDS,
    "ExpLogOfTheLoss": BACKWARDS,
    "WassersteinPrinted": "order gradcheck descent monotone_large monotone_small classwise",
    "LogSinhDice": "optimum finite large_logits",
    "TverskyTwiceTheSame": "arguments",
    "ShapeAwareSign": f"{BACKWARDS} identity",
    "IgnoresItsWeights": "arguments",
    "IgnoresItsWeightsUntyped": "arguments",
    "DistancePenaltyLost": "identity",
    "WeightsDividedAway": "arguments identity",
    "InverseSquareOfNothing": "finite",
    "SquareOfAlmostNothing": "classwise",
    "FocalDividedByClasses": "identity",
    "SoftmaxOfOneChannel": "order gradcheck descent monotone_large monotone_small classwise",
    "LabelTimesMask": "class_permutation classwise",
    "NoneWithoutBoundary": "finite",
    "ErosionHausdorff": "order monotone_large monotone_small",
    "NegatedPenalty": "optimum",
    "BackgroundDroppedFirst": "classwise",
    "WantsProbabilities": "optimum",
    "HalfOverflow": "half_precision",
    "SoftmaxTwice": "optimum",
    "LogOfSoftmax": "large_logits",
    "SoftmaxOverBatch": "optimum copies monotone_large monotone_small",
    "SoftmaxOverVoxels": "optimum",
    "LabelAsNumber": "class_permutation",
    "FocalUpsideDown": "order descent monotone_large monotone_small classwise",
    "NegativeDice": "optimum identity",
    "DiceWithoutTwo": "optimum identity",
    "TverskyIndex": BACKWARDS,
    "SumOverVoxels": "copies",
    "DividedByTheBatchTwice": "copies",
    "DiceSmoothOne": "identity",
    "NanAtAbsentClass": "finite",
    "MeanOfForeground": "finite",
    "TopKWithIgnored": "voxelwise",
    "TopKOfNothing": "finite",
    "IgnoredInTheDenominator": "voxelwise",
    "IgnoredIsBackground": "ignored voxelwise",
    "IgnoredIsAClass": "voxelwise",
    "DecayOfLogits": "ignored voxelwise",
    "IgnoredPoisonTheGradient": "ignored large_logits",
    "ArgmaxDice": "gradcheck descent",
    "RoundedSensitivity": "gradcheck descent",
    "ConstantGradient": "gradcheck",
    "DetachedDenominator": "gradcheck",
    "PowerAtThePerfect": "finite large_logits",
    "FirstSampleOnly": "batch_order",
    "ImagesOnly": "dimensions",
    "LastClassSkipped": "class_permutation",
    "ViewInPlaceOfPermute": "class_permutation copies",
    "PredictionTransposed": "optimum ignored voxelwise axes monotone_large monotone_small",
    "WeightsTransposed": "voxelwise axes",
    "BoundarySign": BACKWARDS,
    "LogitsInPlace": "steady",
    "TargetInPlace": "steady",
    "RunningScale": "steady",
    "RememberedMask": "steady",
    "WeightsLeftOnTheCpu": "class_permutation device",
}
# What the line has to say, where the property alone does not tell the reason.
SAYS = {
    ("SurveyCombo", "identity"): " × dice, 1.7e-03 away",
    ("SurveyFocal", "memory"): "2.0× that for twice the voxels",
    ("ShapeAwareSign", "identity"): "-1 × ce",
    ("NegativeDice", "identity"): "of dice",
    ("DiceWithoutTwo", "identity"): "0.5 × dice",
    ("DistancePenaltyLost", "identity"): "of ce",
    ("WeightsDividedAway", "identity"): "of dice",
    ("FocalDividedByClasses", "identity"): "0.25 × focal",
    ("TverskyTwiceTheSame", "arguments"): "fp_weight and fn_weight do the same",
    ("IgnoresItsWeights", "arguments"): "no effect of weight",
    ("IgnoresItsWeightsUntyped", "arguments"): "no effect of weight",
    ("WassersteinPrinted", "gradcheck"): "the gradient is 0",
    ("ArgmaxDice", "gradcheck"): "no gradient",
    ("ArgmaxDice", "descent"): "no gradient to the logits",
    ("ComboSign", "classwise"): "true logit of class 0",
    ("LabelTimesMask", "classwise"): "no effect on the value when the voxels of class 0",
    ("BackgroundDroppedFirst", "classwise"): "no effect on the value when the voxels of class 0",
    ("SquareOfAlmostNothing", "classwise"): "class 0, 1, 3 are put right while another class is absent",
    ("InverseSquareOfNothing", "finite"): "a class absent (2D)",
    ("NanAtAbsentClass", "finite"): "a class absent (2D)",
    ("MeanOfForeground", "finite"): "label all background",
    ("NoneWithoutBoundary", "finite"): "label all background, perfect (2D): NoneWithoutBoundary returns NoneType",
    ("TopKOfNothing", "finite"): "one voxel that counts (2D), one voxel that counts (3D)",
    ("PowerAtThePerfect", "finite"): "perfect (2D)",
    ("HalfOverflow", "half_precision"): "not finite with 86,016 voxels",
    ("ImagesOnly", "dimensions"): "3D: RuntimeError: einsum()",
    ("IgnoredPoisonTheGradient", "ignored"): "not finite when logits of 10000 stand at ignored voxels",
    ("LogitsInPlace", "steady"): "changes the logits in place",
    ("TargetInPlace", "steady"): "changes the target in place",
    ("RunningScale", "steady"): "a second call differs",
    ("RememberedMask", "steady"): "a call after another batch differs",
    ("WeightsLeftOnTheCpu", "device"): "a tensor of the CPU meets one of the device (wrong_losses.py:",
    ("NegativeDice", "optimum"): "-1 at the truth",
    ("SensitivitySpecificity", "optimum"): "1 at the truth",
}
# Wrong, and the check cannot know: the value is that of another sound loss. References tell these.
UNSEEN = [
    "SmoothSwallowsTheObject",
    "SpacingReversed",
    "LovaszAscending",
    "DiceOverTheClassAxis",
    "WeightsOffByOne",
]
# Right, whatever they look like.
RIGHT = ["DrawsFromTheGlobalGenerator", "InSinglePrecision", "PooledJaccard", "WeightedUntyped", "SigmoidFocal"]


def test_every_class_of_the_file_stands_in_one_table() -> None:
    names = [n.name for n in ast.parse(FILE.read_text()).body if isinstance(n, ast.ClassDef)]
    assert sorted(names) == sorted([*FAILS, *UNSEEN, *RIGHT])
    assert set(SAYS) <= {(n, p) for n in FAILS for p in FAILS[n].split()}


def test_every_property_fails_somewhere() -> None:
    assert set(" ".join(FAILS.values()).split()) == {*PROPERTIES, "arguments", "identity"}


@pytest.mark.parametrize("name", FAILS)
def test_wrong(name: str, certify: Certify) -> None:
    found = certify(name)
    assert not found.passed
    assert {line.name for line in found.failed} == set(FAILS[name].split()), [
        f"{line.name}: {line.text}" for line in found.failed
    ]
    for line in found.failed:
        assert SAYS.get((name, line.name), "") in line.text
        assert line.text and "\n" not in line.text


@pytest.mark.parametrize("name", [*UNSEEN, *RIGHT])
def test_no_alarm(name: str, certify: Certify) -> None:
    found = certify(name)
    assert found.passed, [f"{line.name}: {line.text}" for line in found.failed]


def test_noise_of_the_global_generator_is_steady_and_declared_by_place(certify: Certify) -> None:
    """The harness seeds it before every step, and so does the check."""
    lines = {
        line.name: line for line in certify("DrawsFromTheGlobalGenerator", ["steady", "gradcheck", "copies"]).lines
    }
    assert lines["steady"].outcome == lines["gradcheck"].outcome == "pass"
    assert lines["copies"].outcome == "declared" and "place" in lines["copies"].reason


DECLARED = '''
from torch import nn

class Declared(nn.Module):
    """CE with what the test declares."""

    declares = {declares}

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits, target):
        ce = nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none")
        p = (-ce).exp()
        return ((1 - p) * ce).sum() / (target != 255).sum().clamp_min(1) * self.scale
'''


def test_a_declaration_that_does_not_hold_is_a_failure(tmp_path, certify: Certify) -> None:
    file = tmp_path / "mine.py"
    file.write_text(DECLARED.format(declares={"order": "it says so", "copies": "it says so, too"}))
    found = certify("Declared", file=file)
    assert not found.passed and [line.name for line in found.failed] == ["order", "copies"]
    for line in found.failed:
        assert line.text.startswith("declared, but it holds: ") and line.reason.startswith("it says so")
    # arguments may give a property back: then it is shown as it is
    found = certify("Declared", file=file, args={"scale": 3.0})
    assert found.passed and {line.outcome for line in found.lines if line.reason} == {"pass"}


def test_a_declaration_that_holds_is_shown_with_its_reason(tmp_path, certify: Certify) -> None:
    file = tmp_path / "mine.py"
    text = DECLARED.format(declares={"optimum": "one more than nothing"})
    file.write_text(text.replace("* self.scale", "* self.scale + 1"))
    found = certify("Declared", file=file)
    assert found.passed and not found.failed
    line = next(line for line in found.lines if line.name == "optimum")
    assert (line.outcome, line.reason) == ("declared", "one more than nothing")
    assert line.number == pytest.approx(1.0)


@pytest.mark.parametrize("key", ["optimal", *sorted(NEVER_DECLARED)])
def test_what_cannot_be_declared(key: str, tmp_path, certify: Certify) -> None:
    file = tmp_path / "mine.py"
    file.write_text(DECLARED.format(declares={key: "why not"}))
    with pytest.raises(BenchError, match=f"declares '{key}', which cannot be declared; known: arguments, axes"):
        certify("Declared", file=file)


def test_what_can_be_declared_is_what_is_checked() -> None:
    assert set(PROPERTIES) > NEVER_DECLARED
    assert (set(PROPERTIES) | {"identity", "arguments"}) - NEVER_DECLARED == DECLARABLE


def test_a_loss_that_raises_fails_with_its_own_words(tmp_path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(
        "from torch import nn\nclass Raises(nn.Module):\n    def forward(self, logits, target):\n"
        "        raise ValueError('no value today\\nand not tomorrow')\n"
    )
    found = check_loss({"name": "raises", "class": f"{file}:Raises", "args": {}})
    assert not found.passed and len(found.lines) == 1, "said once, not for every property"
    assert found.lines[0].text == "ValueError: no value today (raises.py:4)"


def test_a_preparation_that_fails_is_the_finding_and_ends_nothing_else(tmp_path) -> None:
    file = tmp_path / "unprepared.py"
    file.write_text(
        "from torch import nn\nclass Unprepared(nn.Module):\n    def forward(self, logits, target):\n"
        "        return logits.mean()\n    def prepare(self, labels, *, device, generator):\n"
        "        raise RuntimeError('no labels like these')\n"
    )
    found = check_loss({"name": "unprepared", "class": f"{file}:Unprepared", "args": {}})
    assert not found.passed and [line.text for line in found.lines] == [
        "RuntimeError: no labels like these (unprepared.py:6)"
    ]


def test_a_call_that_pytorch_refuses_names_the_line_of_the_loss(tmp_path) -> None:
    file = tmp_path / "err.py"
    file.write_text(
        "from torch import nn\nclass Err(nn.Module):\n    def forward(self, logits, target):\n"
        "        return (logits.softmax(1) - target[:, None, :3]).abs().mean()\n"
    )
    (line,) = check_loss({"name": "err", "class": f"{file}:Err", "args": {}}).lines
    assert line.text.startswith("RuntimeError: The size of tensor a") and line.text.endswith(" (err.py:4)")


def test_a_property_that_raises_names_the_line_of_the_loss(tmp_path) -> None:
    file = tmp_path / "small.py"
    file.write_text(
        "from torch import nn\nclass Small(nn.Module):\n    def forward(self, logits, target):\n"
        "        if len(logits) > 2:\n"
        "            raise ValueError('four')\n        return logits.softmax(1).square().mean()\n"
    )
    found = check_loss({"name": "small", "class": f"{file}:Small", "args": {}}, only=["copies"])
    assert [line.text for line in found.lines] == ["ValueError: four (small.py:5)"]


def test_what_the_harness_says_of_a_loss_is_the_sentence_alone(tmp_path) -> None:
    file = tmp_path / "rows.py"
    file.write_text(
        "from torch import nn\nclass Rows(nn.Module):\n    def forward(self, logits, target):\n"
        "        return logits.flatten(1).mean(1)\n"
    )
    (line,) = check_loss({"name": "rows", "class": f"{file}:Rows", "args": {}}).lines
    assert line.text.startswith("Rows returns shape (") and line.text.endswith("reduce it to a mean or a sum.")
