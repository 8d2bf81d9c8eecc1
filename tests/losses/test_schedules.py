"""Weights over a training, computed by hand."""

import pytest
import torch

from harness.losses.schedules import schedule


def over(spec, epochs):
    weight = schedule(spec)
    out = []
    for e in range(epochs):
        progress = torch.tensor(e / (epochs - 1) if epochs > 1 else 0.0)
        value = weight(progress, torch.tensor(float(epochs)))
        assert isinstance(value, torch.Tensor)
        assert value.shape == ()
        assert value.dtype == torch.float32
        out.append(value.item())
    return out


@pytest.mark.parametrize(
    ("spec", "epochs", "expected"),
    [
        ({"linear": [1, 0]}, 5, [1, 0.75, 0.5, 0.25, 0]),
        ({"linear": [0.2, 1.2]}, 3, [0.2, 0.7, 1.2]),
        # (1 + cos πx) / 2 at x = 0, 1/4, 1/2, 3/4, 1
        ({"cosine": [1, 0]}, 5, [1, 0.8535534, 0.5, 0.1464466, 0]),
        ({"cosine": [0, 2]}, 3, [0, 1, 2]),
        # t = 4 e / 3 = 0, 1.33, 2.67, 4; 1 - (2 / 4) ⌊t / 2⌋
        ({"step": {"every": 2, "from": 1, "to": 0}}, 4, [1, 1, 0.5, 0]),
        # t = 6 e / 5 = 0, 1.2, 2.4, 3.6, 4.8, 6; 0 + (3 / 6) ⌊t / 3⌋
        ({"step": {"every": 3, "from": 0, "to": 1}}, 6, [0, 0, 0, 0.5, 0.5, 1]),
        ({"switch": {"at": 0.5, "from": 0, "to": 1}}, 5, [0, 0, 1, 1, 1]),
        ({"switch": {"at": 0.3, "from": 2, "to": 3}}, 11, [2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
    ],
)
def test_by_hand(spec, epochs, expected):
    assert over(spec, epochs) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        {"linear": [1, 0]},
        {"cosine": [1, 0]},
        {"step": {"every": 1, "from": 1, "to": 0}},
        {"switch": {"at": 0.5, "from": 1, "to": 0}},
    ],
)
def test_a_training_of_one_epoch_stays_at_the_start(spec):
    assert over(spec, 1) == [1]


@pytest.mark.parametrize("every", [1, 5, 25, 50])
@pytest.mark.parametrize("epochs", [50, 100, 300, 1000])
def test_steps_are_as_many_as_fit_and_end_at_the_end(every, epochs):
    """Float32 rounding moves no step: against integer arithmetic, ⌊E e / ((E - 1) h)⌋."""
    found = over({"step": {"every": every, "from": 1, "to": 0}}, epochs)
    expected = [1 - (every / epochs) * ((epochs * e) // ((epochs - 1) * every)) for e in range(epochs)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert (found[0], found[-1]) == (1, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("spec", [{"exponential": [1, 0]}, {}, {"linear": [1, 0], "cosine": [1, 0]}])
def test_what_is_no_schedule_is_refused(spec):
    with pytest.raises(ValueError, match="linear, cosine, step"):
        schedule(spec)
