"""Losses of the command line, and the suite that has them beside its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import BenchError
from harness.ranking.asked import extended, parse_loss
from harness.suite import load_suite


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ("dice", "dice", {}),
        ("my_loss.py:MyLoss", "my_loss.py:MyLoss", {}),
        ("my_loss.py:MyLoss(gamma=3)", "my_loss.py:MyLoss", {"gamma": 3}),
        ("my_loss.py:MyLoss(gamma=-0.5, mode='a b', on=True, w=(1, 2))", "my_loss.py:MyLoss",
         {"gamma": -0.5, "mode": "a b", "on": True, "w": [1, 2]}),
        ("focal(gamma=2, on=true, mode=fast, x=null)", "focal", {"gamma": 2, "on": True, "mode": "fast", "x": None}),
        ("focal: {gamma: 1e-1}", "focal", {"gamma": 0.1}),
        ("torch.nn.CrossEntropyLoss()", "torch.nn.CrossEntropyLoss", {}),
    ],
)  # fmt: skip
def test_forms(made, text: str, name: str, args: dict) -> None:
    found = parse_loss(text, (), made.folder)
    assert (found.name, found.args) == (name, args)
    assert (found.file is not None) == name.startswith("my_loss")


def test_arguments_beside_the_name(made) -> None:
    assert parse_loss("focal(alpha=1)", ["gamma=2", "w=[1, 2]"]).args == {"alpha": 1, "gamma": 2, "w": [1, 2]}


@pytest.mark.parametrize(
    ("text", "extra", "said"),
    [
        ("nowhere.py:X", (), "nowhere.py: no such file"),
        ("focal(2)", (), "expected arguments by name"),
        ("focal(gamma=open('x'))", (), "expected arguments by name"),
        ("focal(**x)", (), "expected arguments by name"),
        ("focal(gamma=", (), "expected a loss"),
        ("[a, b]", (), "expected a loss"),
        ("dice", ("gamma",), "--arg gamma: expected NAME=VALUE"),
        ("dice", ("x=[1",), "is not a value"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, extra: tuple, said: str) -> None:
    with pytest.raises(BenchError) as error:
        parse_loss(text, extra)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_ids_are_those_of_a_suite_that_lists_the_loss(made, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made.whole("my_loss.py:MyLoss(gamma=3)")
    own = load_suite(made.suite("[dice, ce, focal]", "[dice, ce, focal, 'my_loss.py:MyLoss': {gamma: 3}]"))
    assert [(c.train_id, c.eval_id) for c in whole.cells] == [(c.train_id, c.eval_id) for c in own.cells]
    assert whole.ranked == whole.added == ("MyLoss(gamma=3)",) and whole.name == "made+MyLoss-gamma=3"
    other = made.folder / "elsewhere"
    other.mkdir()
    (made.folder / "my_loss.py").rename(other / "my_loss.py")
    monkeypatch.chdir(other)
    moved = made.whole("my_loss.py:MyLoss(gamma=3)")
    assert [c.train_id for c in moved.cells] == [c.train_id for c in whole.cells]
    assert Path(moved.cells[-1].loss["class"].rpartition(":")[0]).parent == other


def test_the_rule_with_holds_for_the_ranked_loss(made) -> None:
    path = made.suite("seeds: 5", "with: {varied: 0.5, ce: 0.5, except: [ce]}\nseeds: 5")
    suite = load_suite(path)
    whole = extended(suite, [parse_loss("my_loss.py:MyLoss", (), made.folder)])
    terms = whole.cells[-1].loss["sum"]
    assert [(t["loss"]["name"], t["weight"]) for t in terms] == [("my_loss.py:MyLoss", 0.5), ("ce", 0.5)]
    assert whole.twins["MyLoss"]["name"] == "my_loss.py:MyLoss"
    own = load_suite(
        made.suite(
            "[dice, ce, focal]\nseeds: 5",
            "[dice, ce, 'my_loss.py:MyLoss']\nwith: {varied: 0.5, ce: 0.5, except: [ce]}\nseeds: 5",
        )
    )
    assert {c.train_id for c in own.cells if c.loss_label == "MyLoss"} == {c.train_id for c in whole.cells[-5:]}


def test_a_loss_of_the_suite_is_ranked_as_it_stands(made) -> None:
    whole = made.whole("focal", "my_loss.py:MyLoss")
    assert whole.ranked == ("focal", "MyLoss") and whole.added == ("MyLoss",) and len(whole.cells) == 20


def test_another_argument_has_another_label_where_the_suite_has_taken_the_name(made) -> None:
    path = made.suite("[dice, ce, focal]", "[dice, ce, tversky: {fn_weight: 0.7, fp_weight: 0.3}]")
    suite = load_suite(path)
    whole = extended(suite, [parse_loss("tversky"), parse_loss("tversky(fn_weight=0.6, fp_weight=0.4)")])
    assert "tversky" in {c.loss_label for c in suite.cells}
    assert whole.ranked == whole.added
    assert whole.ranked == ("tversky(fn_weight=default, fp_weight=default)", "tversky(fn_weight=0.6, fp_weight=0.4)")
    (own,) = extended(suite, [parse_loss("tversky(fn_weight=0.7, fp_weight=0.3)")]).ranked
    assert own == "tversky"


def test_losses_of_the_suite_keep_cells_and_names(made) -> None:
    before = load_suite(made.suite()).cells
    whole = made.whole("my_loss.py:MyLoss", "focal(gamma=5)")
    assert whole.cells[: len(before)] == before
    assert whole.ranked == ("MyLoss", "focal(gamma=5)")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (("my_loss.py:MyLoss(gama=2)",), "unknown argument 'gama' (did you mean 'gamma'?)"),
        (("my_loss.py:Other",), "Other"),
        (("dicee",), "did you mean 'dice'?"),
        (("focal(gamma={'sweep': [1, 2]})",), "a sweep is several losses"),
        (("my_loss.py:MyLoss", "my_loss.py:MyLoss"), "another loss is called"),
        (("focal", "focal"), "a second time"),
    ],
)
def test_mistakes_are_one_sentence(made, losses: tuple, said: str) -> None:
    with pytest.raises(BenchError) as error:
        made.whole(*losses)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_loss_that_no_model_serves_has_only_cells_to_skip(made) -> None:
    (made.folder / "deep.py").write_text(
        "from torch import nn\n\n\nclass Deep(nn.Module):\n    def forward(self, logits, target, *, aux):\n        return logits.sum()\n"
    )
    whole = made.whole("deep.py:Deep")
    assert {c.skip for c in whole.cells[-5:]} == {"Deep needs aux, which unet does not provide"}


def test_names_of_folders_are_safe_and_short(made) -> None:
    whole = made.whole(*(f"my_loss.py:MyLoss(gamma={i}.5)" for i in range(9)))
    assert len(whole.name) < 120 and "/" not in whole.name and whole.name.startswith("made+MyLoss-gamma=0.5+")
    assert whole.name != made.whole(*(f"my_loss.py:MyLoss(gamma={i}.5)" for i in range(8, -1, -1))).name
