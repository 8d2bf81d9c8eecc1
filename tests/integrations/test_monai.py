"""MONAI's own trainer with our losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor

from harness.errors import BenchError
from harness.integrations import to_monai
from harness.losses.targets import derive

SUM = {"sum": [{"loss": "dice_ce", "weight": {"linear": [1, 0.5]}}, {"loss": "boundary", "weight": 0.05}]}


def _cases(spacing: tuple[float, float] = (0.5, 2.0)) -> list[dict[str, Any]]:
    """Four images with a label each, as MONAI's transforms leave them: MetaTensors with a channel axis."""
    affine = torch.diag(torch.tensor([*spacing, 1.0, 1.0]))
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(16), indexing="ij")
    out = []
    for i in range(4):
        label = ((rows - 8 - i) ** 2 + (columns - 8) ** 2 < 25).float()[None]
        image = label + 0.3 * torch.randn(label.shape, generator=generator)
        out.append({"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)})
    return out


def _network() -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, 2, channels=(4, 8), strides=(2,), num_res_units=0)


def test_the_supervised_trainer_trains_with_distances_and_a_schedule() -> None:
    engines = pytest.importorskip("monai.engines")
    pytest.importorskip("ignite")
    from torch.utils.data import DataLoader

    network, seen = _network(), []
    loss = to_monai(SUM, spacing="meta", epochs=3)

    def spy(outputs: Tensor, target: Tensor) -> Tensor:
        found = loss(outputs, target)
        assert isinstance(target, MetaTensor) and target.shape == (2, 1, 24, 16)
        label, logits = target.as_tensor()[:, 0].long(), outputs.detach().as_subclass(Tensor)
        maps = derive(["distance_in", "distance_out"], label, num_classes=2, spacing=torch.tensor([[0.5, 2.0]] * 2))
        signed = maps["distance_out"] - (maps["distance_in"] - 0.5).clamp(min=0)
        inside = (signed * logits.softmax(1)).mean()  # Kervadec et al., eq. 5, with voxels of 0.5 × 2 mm
        seen.append((engine.state.epoch, float(found.detach()), float(loss.terms["dice_ce"]), float(inside)))
        assert float(loss.terms["boundary"]) == pytest.approx(float(inside), rel=1e-4)
        return found

    engine = engines.SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(_cases(), batch_size=2, collate_fn=list_data_collate),
        network=network,
        optimizer=torch.optim.Adam([{"params": network.parameters()}, *loss.parameter_groups(0.01)], 0.01),
        loss_function=spy,
        train_handlers=[loss],
    )
    engine.run()
    assert len(seen) == 6 and engine.state.output[0]["loss"] == pytest.approx(seen[-1][1])
    for epoch, total, dice_ce, boundary in seen:
        assert total == pytest.approx((1, 0.75, 0.5)[epoch - 1] * dice_ce + 0.05 * boundary, rel=1e-4)
    assert seen[-1][2] < seen[0][2]


def test_a_plain_loop_needs_no_metatensor() -> None:
    network, loss = _network(), to_monai("generalized_surface", spacing=(0.5, 2.0), class_counts=[9, 1])
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    batch = list_data_collate(_cases())
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(network(batch["image"].as_tensor()), batch["label"].as_tensor())
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert type(value) is Tensor and values[-1] < values[0]
    with pytest.raises(BenchError, match="takes a MetaTensor, and the label is a plain tensor"):
        to_monai("boundary", spacing="meta")(network(batch["image"].as_tensor()), batch["label"].as_tensor())


def test_the_spacing_is_that_of_each_label_of_a_batch() -> None:
    near, far = _cases((1.0, 1.0))[:1], _cases((3.0, 1.0))[:1]
    batch = list_data_collate(near + far)
    logits = torch.randn(2, 2, 24, 16, generator=torch.Generator().manual_seed(0))
    found = to_monai("boundary", spacing="meta")(logits, batch["label"])
    each = [
        to_monai("boundary", spacing=sizes)(logits[i : i + 1], batch["label"].as_tensor()[i : i + 1])
        for i, sizes in enumerate([(1.0, 1.0), (3.0, 1.0)])
    ]
    assert float(found) == pytest.approx(float(sum(each)) / 2, rel=1e-5)
    assert float(each[0]) != pytest.approx(float(each[1]), rel=1e-2)


def test_dice_ce_is_monais_own() -> None:
    """Two implementations: MONAI's averages Dice over samples and rounds with 1e-5 on both sides of the fraction."""
    batch = list_data_collate(_cases())
    logits = torch.randn(4, 2, 24, 16, generator=torch.Generator().manual_seed(1))
    ours = to_monai("dice_ce: {reduction: sample}")
    theirs = DiceCELoss(to_onehot_y=True, softmax=True)
    assert float(ours(logits, batch["label"])) == pytest.approx(float(theirs(logits, batch["label"])), abs=1e-5)


def test_a_list_of_outputs_is_deep_supervision() -> None:
    """MONAI's wrapper weights 1, 1/2, 1/4 and adds; ours is the mean with these weights."""
    batch = list_data_collate(_cases())
    generator = torch.Generator().manual_seed(1)
    outputs = [torch.randn(4, 2, 24 // n, 16 // n, generator=generator) for n in (1, 2, 4)]
    ours = to_monai("dice_ce")
    wrapped = DeepSupervisionLoss(to_monai("dice_ce"), weight_mode="exp")
    assert float(ours(outputs, batch["label"])) == pytest.approx(float(wrapped(outputs, batch["label"])) / 1.75)
