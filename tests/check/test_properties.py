"""The properties themselves, on toy losses whose numbers can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.check import check_loss, maker
from harness.check.arguments import _others, argument_effects
from harness.check.properties import PROPERTIES, Finding
from harness.check.scenes import CLASSES, IGNORE, QUALITIES, evaluate, facts_of, label, leaves_of, one_hot, scene
from harness.losses import LOSSES

CE = {"name": "mine", "class": "torch.nn:CrossEntropyLoss", "args": {}}


class Toy(nn.Module):
    """A loss made of a function."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(logits, target)


def ask(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Finding:
    return PROPERTIES[name](lambda target, order=None: Toy(function))


def true_probability(logits: Tensor, target: Tensor) -> Tensor:
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    labels = torch.where(target == IGNORE, 0, target)
    return wide.softmax(1).gather(1, labels[:, None])[:, 0]


def error_rate(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - p of the true class over valid voxels: right in every respect."""
    valid = (target != IGNORE).to(true_probability(logits, target).dtype)
    return ((1 - true_probability(logits, target)) * valid).sum() / valid.sum().clamp_min(1)


def of_quality(values: dict[str, float]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss with these values on the four predictions of the check."""

    def function(logits: Tensor, target: Tensor) -> Tensor:
        nearest = min(QUALITIES, key=lambda q: float((scene(q).logits - logits).abs().max()))
        return logits.sum() * 0 + values[nearest]

    return function


@pytest.mark.parametrize("name", [n for n in PROPERTIES if n not in ("large_logits",)])
def test_a_right_loss_has_every_property(name: str) -> None:
    assert ask(name, error_rate).holds


# ---------------------------------------------------------------- scenes


@pytest.mark.parametrize("dims", [2, 3])
def test_the_label(dims: int) -> None:
    target = label(dims)
    assert len(set(target.shape[1:])) > 1, "a square image hides transposed axes"
    assert target.unique().tolist() == [0, 1, 2, 3] and not torch.equal(target[0], target[1])
    assert not torch.equal(target, target.flip(-1)), "a symmetric label hides mirrored axes"
    adjacency = facts_of(target)["adjacency"]
    assert adjacency[1][3] == adjacency[2][3] == 0 and adjacency[1][2] > 0
    counts = facts_of(target)["class_counts"]
    assert counts == [int((target == c).sum()) for c in range(CLASSES)] and len(set(counts)) == CLASSES


@pytest.mark.parametrize("dims", [2, 3])
def test_the_predictions(dims: int) -> None:
    truth, right = label(dims), {}
    for quality in QUALITIES:
        given = scene(quality, dims)
        right[quality] = float((given.logits.argmax(1) == truth).double().mean())
        assert torch.equal(given.target, truth) and given.logits.dtype == torch.float64
    assert right["perfect"] == 1 and right["inverted"] == 0
    assert 0.9 < right["degraded"] < 1 and 0.2 < right["random"] < 0.3
    # for one-vs-rest sigmoids too
    assert torch.equal(scene("perfect", dims).logits > 0, one_hot(truth))
    assert torch.equal(scene("inverted", dims).logits > 3, ~one_hot(truth))


def test_an_embedding_carries_all_of_the_prediction() -> None:
    class Reads(nn.Module):
        def forward(self, logits: Tensor, target: Tensor, *, embedding: Tensor) -> Tensor:
            return (logits * embedding[:, :CLASSES].detach()).mean()

    given = scene("random")
    leaves = leaves_of(Reads(), given)
    assert float(leaves["logits"].detach().abs().max()) == 0
    assert torch.equal(leaves["embedding"][:, :CLASSES], given.logits)
    found = evaluate(Reads(), given)
    assert found.value == pytest.approx(float((given.logits**2).mean()), rel=1e-12)
    # through the logits and not through the factor that is detached
    assert torch.allclose(found.logits, given.logits / given.logits.numel(), rtol=1e-12)


def test_a_call_leaves_the_loss_and_the_scene_as_they_are() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            target[:] = 0
            logits *= 0
            return logits.sum() + self.calls

    loss, given = Counts(), scene("random")
    assert [evaluate(loss, given).value for _ in range(2)] == [1.0, 1.0]
    assert [evaluate(loss, given, fresh=False).value for _ in range(2)] == [1.0, 2.0]
    assert torch.equal(given.logits, scene("random").logits) and torch.equal(given.target, label(2))


# ---------------------------------------------------------------- numbers


def test_optimum() -> None:
    """At the truth the logits are ±12: p = 1 / (1 + 3 e^-24)."""
    found = ask("optimum", lambda x, y: -true_probability(x, y).log().mean())
    assert found.holds and found.number == pytest.approx(math.log1p(3 * math.exp(-24)), rel=1e-5)
    found = ask("optimum", of_quality({"perfect": 0.0, "degraded": 0.3, "random": 0.6, "inverted": -0.1}))
    assert not found.holds and "lowest of four predictions -0.1" in found.text
    assert not ask("optimum", lambda x, y: error_rate(x, y) + 0.01).holds


def test_order() -> None:
    found = ask("order", of_quality({"perfect": 0.0, "degraded": 0.5, "random": 0.75, "inverted": 2.0}))
    assert found.holds and found.number == pytest.approx(0.25 / 2.0)
    found = ask("order", of_quality({"perfect": 0.0, "degraded": 0.8, "random": 0.7, "inverted": 1.0}))
    assert not found.holds and found.number == pytest.approx(-0.1)


class Scaled(torch.autograd.Function):
    """The identity with a gradient that is ten per cent too large."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 1.1 * grad


def test_gradcheck() -> None:
    found = ask("gradcheck", lambda x, y: Scaled.apply(error_rate(x, y)))
    assert not found.holds and found.number == pytest.approx(0.1 / 1.1, rel=1e-3)
    found = ask("gradcheck", lambda x, y: Scaled.apply(error_rate(x.float(), y)))
    assert not found.holds, "in float32 too"
    assert ask("gradcheck", lambda x, y: error_rate(x.float(), y)).holds
    assert not ask("gradcheck", lambda x, y: error_rate(x.detach(), y)).holds


def test_ignored() -> None:
    """A weight of a quarter at ignored voxels, and a gradient that is the same at all voxels."""

    def quarter(logits: Tensor, target: Tensor) -> Tensor:
        return (logits[:, 0] * torch.where(target == IGNORE, 0.25, 1.0)).mean()

    found = ask("ignored", quarter)
    assert not found.holds and "gradient there 2.5e-01 of the largest" in found.text
    assert "value moves by 0.0e+00" not in found.text


@pytest.mark.parametrize("name", ["voxelwise", "copies"])
def test_sums_and_lost_normalisers(name: str) -> None:
    """Half of the voxels are ignored and still divide: half the value. A batch twice: twice the sum."""
    if name == "voxelwise":
        found = ask(name, lambda x, y: ((1 - true_probability(x, y)) * (y != IGNORE)).mean())
        assert found.number == pytest.approx(0.5)
    else:
        found = ask(name, lambda x, y: (1 - true_probability(x, y)).sum())
        assert found.number == pytest.approx(1.0)
        assert ask(name, lambda x, y: error_rate(x, y) / len(y)).number == pytest.approx(0.5)
    assert not found.holds


def test_finite_counts_scenes() -> None:
    """1 / (number of foreground voxels): four of the extreme labels have none, in 2D and in 3D."""
    found = ask("finite", lambda x, y: error_rate(x, y) / ((y > 0) & (y != IGNORE)).sum())
    assert not found.holds and found.number == 2 * 4
    assert "label all background, perfect (2D)" in found.text
    found = ask("finite", lambda x, y: error_rate(x, y) * (1 / min(int((y == 2).sum()), 1)))
    assert found.text.startswith("a class absent (2D): ZeroDivisionError: ")


def test_large_logits() -> None:
    """exp(10,000) is infinite in both precisions, exp(500) in float32 alone."""
    assert ask("large_logits", error_rate).holds
    assert ask("large_logits", lambda x, y: x.exp().mean()).number == 6
    found = ask("large_logits", lambda x, y: (x / 20).exp().mean())
    assert not found.holds and found.number == 3 and "float64" not in found.text


def test_half_precision() -> None:
    assert not ask("half_precision", lambda x, y: error_rate(x, y) * (1.05 if x.dtype == torch.bfloat16 else 1)).holds
    found = ask("half_precision", lambda x, y: error_rate(x, y) * (1.05 if x.dtype == torch.bfloat16 else 1))
    assert found.number == pytest.approx(0.05, rel=1e-3) and "bfloat16 logits" in found.text
    assert not ask("half_precision", lambda x, y: error_rate(x, y) + 0 * x.exp().sum()).holds


def test_class_permutation() -> None:
    """Classes 1, 2, 3 become 3, 1, 2: a loss that is the mean label number moves by the change of that mean."""
    target = label(2).double()
    swapped = torch.tensor([0.0, 2.0, 3.0, 1.0], dtype=torch.float64)[label(2)]
    found = ask("class_permutation", lambda x, y: y.double().mean() + 0 * x.sum())
    assert not found.holds
    assert found.number == pytest.approx(float(abs(swapped.mean() - target.mean()) / target.mean()), rel=1e-9)


def test_batch_order() -> None:
    first, second = (float(error_rate(scene("random").logits[b : b + 1], label(2)[b : b + 1])) for b in (0, 1))
    found = ask("batch_order", lambda x, y: error_rate(x[:1], y[:1]))
    assert not found.holds and found.number == pytest.approx(abs(second - first) / first, rel=1e-9)


def test_axes() -> None:
    """A loss that looks at the height alone."""
    found = ask("axes", lambda x, y: error_rate(x, y) * x.shape[-2])
    assert not found.holds and found.number == pytest.approx((32 - 28) / 32, rel=1e-9)


def test_dimensions() -> None:
    found = ask("dimensions", lambda x, y: error_rate(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), y))
    assert not found.holds and found.number == 1 and found.text.startswith("3D: RuntimeError")
    found = ask("dimensions", lambda x, y: error_rate(x if x.ndim == 4 else x.detach() + 0 * x, y))
    assert not found.holds and found.text == "3D: no finite gradient"


@pytest.mark.parametrize(("times", "holds"), [(16, True), (17, False)])
def test_memory(times: int, holds: bool) -> None:
    found = ask("memory", lambda x, y: error_rate(x, y) + 0 * x.detach().repeat(times, 1, 1, 1).mean())
    assert found.holds is holds and found.number == pytest.approx(times)
    assert ask("memory", lambda x, y: error_rate(x, y)).number <= 2


def test_memory_that_grows_with_the_square() -> None:
    """(n / 64)² values of n logits: 3.5 times them here, and below the limit, but 7 times for twice the voxels."""
    found = ask("memory", lambda x, y: error_rate(x, y) + 0 * torch.ones((x.numel() // 64) ** 2).mean())
    assert not found.holds and found.number == pytest.approx(7)
    assert found.text == "largest intermediate 3.5× the logits; 2.0× that for twice the voxels"


def test_descent() -> None:
    found = ask("descent", error_rate)
    before, after = (float(v) for v in found.text.removeprefix("Dice ").split(" → "))
    assert found.number == pytest.approx(after - before, abs=1e-3) and 0.1 < before < 0.2 and after > 0.9
    assert not ask("descent", lambda x, y: -error_rate(x, y)).holds
    assert ask("descent", lambda x, y: error_rate(x.detach(), y)).text == "has no gradient to the logits"


@pytest.mark.parametrize(("size", "side"), [("large", 14), ("small", 4)])
def test_monotone(size: str, side: int) -> None:
    """Each step of the shift puts one more row of the object on either side wrong: all steps are equal."""
    found = ask(f"monotone_{size}", error_rate)
    assert found.holds and found.number == pytest.approx(1 / side, rel=1e-6)
    assert ask(f"monotone_{size}", lambda x, y: -error_rate(x, y)).number == pytest.approx(-1 / side, rel=1e-6)
    assert not ask(f"monotone_{size}", lambda x, y: error_rate(x, y).clamp_max(0.01)).holds


def test_classwise() -> None:
    """One class counts the wrong way round; one class does not count."""

    def weighted(*weights: float) -> Callable[[Tensor, Tensor], Tensor]:
        table = torch.tensor([*weights, *[0.0] * (IGNORE - 3)], dtype=torch.float64)
        return lambda x, y: (table[y] * (1 - true_probability(x, y))).sum() / y.numel()

    assert ask("classwise", weighted(1, 2, 3, 4)).holds
    found = ask("classwise", weighted(1, -0.5, 1, 1))
    assert not found.holds and found.number is not None and found.number > 0 and found.text.endswith("of class 1")
    found = ask("classwise", weighted(1, 1, 0, 1))
    assert not found.holds and "the voxels of class 2 are put right" in found.text


def test_steady() -> None:
    calls = []

    def counting(logits: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return error_rate(logits, target) + 0.5 * len(calls)

    found = ask("steady", counting)
    assert not found.holds and found.number == pytest.approx(0.5, rel=1e-6) and "a second call" in found.text


def _put(logits: Tensor, target: Tensor) -> Tensor:
    weight = torch.ones_like(logits)
    weight[logits.detach().flatten(2).mean(2) > 0] = torch.zeros_like(weight[0, 0])
    return (weight * error_rate(logits, target)).mean()


def _factored(logits: Tensor, target: Tensor) -> Tensor:
    flat = logits.flatten(2)
    return torch.linalg.cholesky(flat @ flat.mT + torch.eye(CLASSES, device=flat.device)).sum()


def _away(logits: Tensor, target: Tensor) -> Tensor:
    return (error_rate(logits, target) * torch.from_numpy(target.cpu().numpy() + 1.0).to(logits.device)).mean()


def _uploaded(logits: Tensor, target: Tensor) -> Tensor:
    return error_rate(logits, target) * torch.tensor([1.0, 2.0], device=logits.device).sum()


def _brought(logits: Tensor, target: Tensor) -> Tensor:
    return error_rate(logits, target) * torch.ones(2).to(logits).sum()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, y: error_rate(x, y) * (1 if x.sum() > 0 else 2), "a value is read"),
        (lambda x, y: error_rate(x, y) / float(x.detach().sum()), "a value is read"),
        (lambda x, y: x.softmax(1)[one_hot(y)].mean(), "a shape depends on values"),
        (lambda x, y: error_rate(x, y) * len(y.unique()), "a shape depends on values"),
        (_put, "several values are put where a mask is true"),
        (_factored, "a decomposition is checked for success"),
        (_away, "a tensor is copied from the device"),
        (_uploaded, "numbers are copied to the device"),
        (_brought, "a tensor is copied to the device"),
    ],
)
def test_what_waits_for_the_device_is_told_with_its_line(
    function: Callable[[Tensor, Tensor], Tensor], reason: str
) -> None:
    found = ask("device", function)
    assert found.holds and found.number is not None and found.number > 0
    assert f"the host waits for the device: {reason} (test_properties.py:" in found.text


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (
            lambda x, y: nn.functional.cross_entropy(x, y.clamp(max=CLASSES - 1)),
            "nll_loss2d_forward (test_properties.py:",
        ),
        (lambda x, y: x.softmax(1).flatten(2).cumsum(2).mean(), "cumsum (test_properties.py:"),
        (lambda x, y: (x.softmax(1).flatten(2) * 1).cumsum_(2).mean(), "cumsum_ (test_properties.py:"),
        (lambda x, y: ((x > 0).cumsum(1, dtype=x.dtype) * x).mean(), "cumsum (test_properties.py:"),
        (lambda x, y: x.flatten(1).median(1).values.mean(), "median (test_properties.py:"),
        (lambda x, y: nn.functional.pad(x.flatten(2), (1, 1), "reflect").mean(), "reflection_pad1d_backward ("),
    ],
)
def test_what_a_gpu_does_not_repeat_is_told(function: Callable[[Tensor, Tensor], Tensor], operation: str) -> None:
    found = ask("device", function)
    assert found.holds and "no deterministic form on a GPU: " + operation in found.text


def test_what_a_loss_of_torch_does_is_told_without_a_line_of_ours() -> None:
    found = PROPERTIES["device"](maker(CE))
    assert found.holds and found.text == "no deterministic form on a GPU: nll_loss2d_forward (by PyTorch)"


def test_a_tensor_of_the_cpu_cannot_meet_the_device() -> None:
    found = ask("device", lambda x, y: (x * torch.arange(1.0, CLASSES + 1).view(-1, *[1] * (x.ndim - 2))).mean())
    assert found.holds is False and "a tensor of the CPU meets one of the device (test_properties.py:" in found.text


@pytest.mark.parametrize(
    "function",
    [
        error_rate,
        lambda x, y: error_rate(x, y) * torch.tensor(2.0),  # a number without dimensions goes along with the call
        lambda x, y: torch.where(one_hot(y), x, 0.0).mean() + torch.rand(x.shape, device=x.device).sum(),
    ],
)
def test_nothing_waits_for_the_device(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = ask("device", function)
    assert found.holds and found.number == 0


def test_a_loss_that_cannot_be_followed_to_the_device_is_not_judged() -> None:
    def refuses(logits: Tensor, target: Tensor) -> Tensor:
        if logits.device.type != "cpu":
            raise RuntimeError("made for the CPU")
        return error_rate(logits, target)

    found = ask("device", refuses)
    assert found.holds is None and found.text.startswith("cannot be told: RuntimeError (test_properties.py:")


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_of_the_catalogue_waits_for_the_device(name: str) -> None:
    found = PROPERTIES["device"](maker({"name": name, "class": LOSSES[name], "args": {}, "version": 0}))
    assert found.holds
    if name == "topology_focal":  # persistent homology is computed on the CPU
        assert "a tensor is copied from the device (topology.py:" in found.text and "was not seen" in found.text
    else:
        assert found.number == 0, found.text


# ---------------------------------------------------------------- arguments and identity

ARGUMENTS = """
from typing import Literal, Optional
import torch
from torch import Tensor, nn

class Many(nn.Module):
    def __init__(self, scale: float = 1.0, kind: Literal["mean", "sum"] = "mean", weight: Tensor | None = None,
                 power: Optional[float] = None, idle: float = 3.0, unused: bool = True, model: nn.Module | None = None) -> None:
        super().__init__()
        self.scale, self.kind, self.weight, self.power = scale, kind, weight, power or 1.0

    def forward(self, logits, target):
        loss = nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none") ** self.power
        if self.weight is not None:
            loss = loss * self.weight.to(loss.dtype)[target.clamp(max=3)]
        return self.scale * (loss.mean() if self.kind == "mean" else loss.sum())

class Twins(nn.Module):
    def __init__(self, a: float = 0.5, b: float = 0.5, c: float = 0.5, on: bool = False, by: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c, self.on = a, b, c, on + by

    def forward(self, logits, target):
        loss = nn.functional.cross_entropy(logits, target, ignore_index=255)
        return (self.a + {second}) * loss + self.c * loss ** 2 + self.on * loss ** 3
"""


def _effects(name: str, target: str) -> Finding:
    spec = {"name": name, "class": target, "args": {}}
    return argument_effects(spec, maker(spec))


FORMS = """
from typing import Literal

from torch import nn


class Forms(nn.Module):
    def __init__(self, form: Literal["ce", "focal"] = "ce", gamma: float = 2.0, idle: float = 1.0) -> None:
        super().__init__()
        self.form, self.gamma = form, gamma

    def forward(self, logits, target):
        log_p = logits.log_softmax(1).gather(1, target.clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
        focus = (1 - log_p.exp()) ** self.gamma if self.form == "focal" else 1
        return -(focus * log_p * (target != 255)).mean()
"""


def test_an_argument_of_another_form_has_its_effect_there(tmp_path) -> None:
    file = tmp_path / "forms.py"
    file.write_text(FORMS)
    found = _effects("forms", f"{file}:Forms")
    assert not found.holds and found.text == "no effect of idle"


def test_arguments_without_an_effect_are_named(tmp_path) -> None:
    file = tmp_path / "many.py"
    file.write_text(ARGUMENTS)
    found = _effects("many", f"{file}:Many")
    assert not found.holds and found.number == 2
    assert found.text == "no effect of idle, unused; not tried: model"


@pytest.mark.parametrize(("second", "holds"), [("self.b", False), ("2 * self.b", True)])
def test_arguments_that_do_the_same_are_named(tmp_path, second: str, holds: bool) -> None:
    file = tmp_path / "twins.py"
    file.write_text(ARGUMENTS.replace("{second}", second))
    found = _effects("twins", f"{file}:Twins")
    assert found.holds is holds
    assert found.text == ("5 of 5 change the value" if holds else "a and b do the same")


def test_a_matrix_is_not_tried_where_one_value_per_class_is_taken() -> None:
    import inspect

    class Lists:
        def __init__(self, weight: list[float] | None = None, share: float | None = None) -> None: ...

    parameters = inspect.signature(Lists).parameters
    tried = [v for v in _others(Lists, parameters["weight"], None)]
    assert all(isinstance(v, list) for v in tried) and len(tried[0]) == CLASSES
    assert list(_others(Lists, parameters["share"], None)) == [0.3, 2.0]


def test_identity_finds_the_factor(tmp_path) -> None:
    file = tmp_path / "ce.py"
    file.write_text(
        "from torch import nn\nclass Mine(nn.Module):\n    def forward(self, logits, target):\n"
        "        return 7 - 2.5 * -nn.functional.cross_entropy(logits, target, ignore_index=255)\n"
    )
    (line,) = check_loss({"name": "mine", "class": f"{file}:Mine", "args": {}}, ["identity"]).lines
    assert line.outcome == "fail" and line.text == "the gradient is that of 2.5 × ce"
    assert line.number == pytest.approx(0, abs=1e-7)


def test_a_built_in_loss_is_not_its_own_twin() -> None:
    from harness.losses import LOSSES

    for name in ("ce", "dice", "jaccard", "focal"):
        (line,) = check_loss({"name": name, "class": LOSSES[name], "args": {}}, ["identity"]).lines
        assert line.outcome == "pass" and (name == "ce") == (line.text == "nearest: none, 1.0e+00 away")
    (line,) = check_loss({"name": "f", "class": LOSSES["focal"], "args": {"gamma": 0.0}}, ["identity"]).lines
    assert line.text == "the gradient is that of ce"


def test_only_the_asked_properties_are_tested() -> None:
    found = check_loss(CE, ["order", "identity"])
    assert [line.name for line in found.lines] == ["order", "identity"] and found.loss == "mine"
