"""From specification to module, and the one way in which losses are called."""

import monai.losses as monai
import pytest
import torch
from torch import nn

from harness.errors import BenchError
from harness.losses import LOSSES, CrossEntropy, Dice, Focal
from harness.losses.build import build_loss
from harness.losses.calls import evaluate_loss, needs_of
from harness.losses.compound import Sum
from harness.losses.needs import NEEDS, check_needs

FACTS = {"num_classes": 3, "spatial_dims": 2, "ignore_index": 255, "class_counts": [50, 30, 20]}
PROGRESS = {"progress": torch.tensor(0.25), "epochs": torch.tensor(5.0), "epoch": torch.tensor(1.0)}


def spec(name, target="", **args):
    return {"name": name, "class": target or LOSSES[name], "args": args, "version": 1}


def sample(ignored=False):
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 5, generator=g), torch.randint(0, 3, (2, 6, 5), generator=g)
    if ignored:
        target[:, 0] = 255
    return logits.requires_grad_(), target


def value(loss, ignored=False, **offered):
    logits, target = sample(ignored)
    return evaluate_loss(loss, logits, target, offered)["loss"]


def test_arguments_reach_the_loss_and_lists_become_tensors():
    loss = build_loss(spec("ce", weight=[0.1, 1, 5]), FACTS)
    assert torch.equal(loss.weight, torch.tensor([0.1, 1.0, 5.0]))
    assert value(loss).item() == pytest.approx(value(CrossEntropy(torch.tensor([0.1, 1, 5]))).item())
    assert value(build_loss(spec("focal", gamma=3.0), FACTS)).item() == pytest.approx(value(Focal(3.0)).item())


def test_tensors_of_a_loss_move_with_it():
    loss = build_loss({"sum": [{"loss": spec("ce", weight=[1, 2, 3]), "weight": 1.0}]}, FACTS).to("meta")
    assert [b.device.type for b in loss.buffers()] == ["meta"]


def test_torch_cross_entropy_works_unmodified():
    loss = build_loss(spec("torch", "torch.nn:CrossEntropyLoss", weight=[1, 2, 3]), FACTS)
    assert loss.ignore_index == 255
    theirs = value(loss, ignored=True).item()
    assert theirs == pytest.approx(value(CrossEntropy(torch.tensor([1.0, 2, 3])), ignored=True).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("DiceLoss", {}),
        ("DiceLoss", {"weight": [1, 2, 3], "batch": True}),
        ("TverskyLoss", {"alpha": 0.3}),
        ("DiceCELoss", {}),
        ("FocalLoss", {"gamma": 1.0}),
        ("GeneralizedDiceLoss", {}),
        ("HausdorffDTLoss", {}),
    ],
)
def test_monai_losses_take_our_logits_and_labels(name, args):
    loss = build_loss(spec(name, f"monai.losses:{name}", **args), FACTS)
    logits, target = sample()
    flag = "use_softmax" if name == "FocalLoss" else "softmax"
    options = {k: torch.tensor(v, dtype=torch.float32) if isinstance(v, list) else v for k, v in args.items()}
    theirs = getattr(monai, name)(to_onehot_y=True, **{flag: True}, **options)(logits, target[:, None])
    assert value(loss).item() == pytest.approx(theirs.item())


def test_monai_losses_ignore_voxels_where_they_can_and_say_so_where_not():
    dice = build_loss(spec("dice", "monai.losses:DiceLoss", batch=True), FACTS | {"has_ignored": True})
    assert value(dice, ignored=True).item() == pytest.approx(value(Dice(), ignored=True).item(), rel=1e-5)
    with pytest.raises(BenchError, match="ignore"):
        build_loss(spec("dice_ce", "monai.losses:DiceCELoss"), FACTS | {"has_ignored": True})


def test_a_monai_loss_without_an_activation_of_its_own_is_refused():
    with pytest.raises(BenchError, match="applies no activation"):
        build_loss(spec("u", "monai.losses:AsymmetricUnifiedFocalLoss"), FACTS)


def test_needs_may_be_stated_as_names_or_as_a_pair():
    class Stated(torch.nn.Module):
        needs = {"valid"}  # noqa: RUF012

    assert needs_of(Stated()) == ({"valid"}, set())
    Stated.needs = (frozenset({"valid"}), frozenset({"spacing"}))
    assert needs_of(Stated()) == ({"valid"}, {"spacing"})


def test_terms_named_like_columns_of_the_curve_are_refused():
    class Named(torch.nn.Module):
        def forward(self, logits, target):
            return {"loss": logits.mean(), "epoch": logits.mean()}

    logits, target = sample()
    with pytest.raises(BenchError, match="'epoch'"):
        evaluate_loss(Named(), logits, target, {})


def test_monai_activation_given_by_the_user_stays():
    loss = build_loss(spec("DiceLoss", "monai.losses:DiceLoss", sigmoid=True), FACTS)
    logits, target = sample()
    theirs = monai.DiceLoss(to_onehot_y=True, sigmoid=True)(logits, target[:, None])
    assert value(loss).item() == pytest.approx(theirs.item())


USER = """
import torch
from torch import Tensor, nn


class Weighted(nn.Module):
    def __init__(self, num_classes: int, class_counts: "Tensor", power: float = 1.0, extra: list = ()):
        super().__init__()
        self.num_classes, self.extra = num_classes, extra
        self.register_buffer("w", class_counts.pow(-power))

    def forward(self, logits, target, *, distance_in, spacing=None):
        assert spacing is not None
        return (logits.softmax(1) * distance_in).mean()


class NotALoss:
    pass


class Asks(nn.Module):
    def forward(self, logits, target, *, moon_phase):
        return logits.mean()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER)
    return path


def test_a_loss_from_a_file_gets_facts_and_needs(file):
    loss = build_loss(spec("mine", f"{file}:Weighted", extra=[1, 2]), FACTS)
    assert loss.num_classes == 3
    assert loss.extra == [1, 2]  # no Tensor in its annotation
    assert loss.w.tolist() == pytest.approx([1 / 50, 1 / 30, 1 / 20])
    assert needs_of(loss) == ({"distance_in"}, {"spacing"})
    offered = {"distance_in": torch.ones(2, 3, 6, 5), "spacing": torch.ones(2, 2), "progress": torch.tensor(0.0)}
    assert value(loss, **offered).item() == pytest.approx(1 / 3)
    with pytest.raises(BenchError, match="'distance_in'"):
        value(loss, spacing=torch.ones(2, 2))


def test_facts_do_not_replace_what_the_user_gave(file):
    loss = build_loss(spec("mine", f"{file}:Weighted", num_classes=7, class_counts=[1, 2]), FACTS)
    assert loss.num_classes == 7
    assert loss.w.tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("cls", "args", "text"),
    [
        ("NotALoss", {}, "torch.nn.Module"),
        ("Asks", {}, "'moon_phase'.*distance_in"),
        ("Nowhere", {}, "no class 'Nowhere'"),
        ("Weighted", {"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(file, cls, args, text):
    with pytest.raises(BenchError, match=text):
        build_loss(spec("mine", f"{file}:{cls}", **args), FACTS)


def test_a_bad_value_is_said_in_a_sentence():
    with pytest.raises(BenchError, match="gamma must be at least 0"):
        build_loss(spec("focal", gamma=-1), FACTS)


class Returns(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, logits, target):
        return self.result(logits)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda x: x.mean(1), r"shape \(2, 6, 5\)"),
        (lambda x: 3.0, "float"),
        (lambda x: None, "NoneType"),
        (lambda x: {"dice": x.mean()}, "'loss'"),
        (lambda x: {"loss": x.mean(), "parts": x}, "'parts'"),
        (lambda x: x.detach().mean(), "gradient"),
        (lambda x: x.argmax(1).float().mean(), "gradient"),
    ],
)
def test_a_result_that_is_no_loss_is_refused(result, text):
    with pytest.raises(BenchError, match=text):
        value(Returns(result))


def test_a_scalar_and_a_dict_come_back_alike():
    assert set(evaluate_loss(Returns(lambda x: x.mean()), *sample(), {})) == {"loss"}
    terms = evaluate_loss(Returns(lambda x: {"loss": x.mean(), "a": x.sum()}), *sample(), {})
    assert set(terms) == {"loss", "a"}


def test_sum_adds_weighted_terms_and_reports_raw_ones():
    parts = [
        {"loss": spec("dice"), "weight": 0.5},
        {"loss": spec("ce"), "weight": {"linear": [1, 0]}},
        {"loss": spec("focal", gamma=1.0), "weight": {"switch": {"at": 0.5, "from": 0, "to": 1}}},
    ]
    loss = build_loss({"sum": parts}, FACTS)
    assert needs_of(loss) == ({"progress", "epochs"}, frozenset())
    logits, target = sample(ignored=True)
    terms = evaluate_loss(loss, logits, target, PROGRESS)
    dice, ce = value(Dice(), ignored=True), value(CrossEntropy(), ignored=True)
    assert list(terms) == ["loss", "dice", "ce", "focal"]
    assert terms["dice"].item() == pytest.approx(dice.item())
    assert terms["ce"].item() == pytest.approx(ce.item())
    assert terms["focal"].item() == pytest.approx(value(Focal(1.0), ignored=True).item())
    assert terms["loss"].item() == pytest.approx(0.5 * dice.item() + 0.75 * ce.item())


def test_sum_of_constant_weights_needs_no_progress():
    loss = build_loss({"sum": [{"loss": spec("dice"), "weight": 1.0}, {"loss": spec("ce"), "weight": 1.0}]}, FACTS)
    assert needs_of(loss) == (frozenset(), frozenset())
    assert value(loss).item() == pytest.approx(value(build_loss(spec("dice_ce"), FACTS)).item())


def test_sums_nest():
    inner = {"sum": [{"loss": spec("dice"), "weight": 2.0}, {"loss": spec("ce"), "weight": {"linear": [0, 1]}}]}
    loss = build_loss({"sum": [{"loss": inner, "weight": 0.5}, {"loss": spec("ce"), "weight": 1.0}]}, FACTS)
    terms = evaluate_loss(loss, *sample(), PROGRESS)
    dice, ce = value(Dice()).item(), value(CrossEntropy()).item()
    assert terms["loss"].item() == pytest.approx(0.5 * (2 * dice + 0.25 * ce) + ce)


class Sees(nn.Module):
    """Keeps what it was given, and counts epochs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("epochs_seen", torch.zeros(()))
        self.seen = None

    def forward(self, logits, target, *, onehot, spacing=None):
        self.seen = (onehot, spacing)
        return logits.mean()

    def epoch_end(self):
        self.epochs_seen += 1


def test_each_part_of_a_sum_gets_only_what_it_asks_for():
    part = Sees()
    loss = Sum([part, Dice(), Sum([Sees()], [1.0], ["inner"])], [1.0, 1.0, 1.0], ["sees", "dice", "sum"])
    assert needs_of(loss) == ({"onehot"}, {"spacing"})
    offered = {"onehot": torch.ones(1), "spacing": torch.ones(2, 2), "progress": torch.tensor(0.0)}
    evaluate_loss(loss, *sample(), offered)
    assert part.seen[0] is offered["onehot"]
    assert part.seen[1] is offered["spacing"]
    loss.epoch_end()
    assert [b.item() for b in loss.buffers()] == [1, 1]
    again = Sum([Sees(), Dice(), Sum([Sees()], [1.0], ["inner"])], [1.0, 1.0, 1.0], ["sees", "dice", "sum"])
    again.load_state_dict(loss.state_dict())
    assert [b.item() for b in again.buffers()] == [1, 1]


@pytest.mark.parametrize("names", [["ce", "ce"], ["ce", "ce", "ce_1"], ["loss", "ce"]])
def test_terms_have_names_of_their_own(names):
    """No two parts share a name, and nothing overwrites the total."""
    loss = Sum([Focal(float(i)) for i in range(len(names))], [1.0] * len(names), names)
    terms = evaluate_loss(loss, *sample(), {})
    assert len(terms) == len(names) + 1
    total = sum(value(Focal(float(i))).item() for i in range(len(names)))
    assert terms["loss"].item() == pytest.approx(total)


def test_needs_are_checked_by_name():
    assert check_needs(["onehot", "progress"]) == {"onehot", "progress"}
    with pytest.raises(BenchError, match="'distance'") as error:
        check_needs(["distance", "onehot"])
    assert all(name in str(error.value) for name in NEEDS)
