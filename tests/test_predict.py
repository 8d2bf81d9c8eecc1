"""Inference over whole volumes: the label that must come out is known, because the network marks voxels by intensity."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.data.geometry import Geometry
from harness.data.layouts import Volume
from harness.data.prepare import Prepared, load_prepared, prepare
from harness.models.output import Output
from harness.predict import memory_format, predict_case

CPU = torch.device("cpu")
SHAPE = (9, 14, 11)


class ByIntensity(nn.Module):
    """Class k where the image is nearest to k: logits 2kx − k², whose argmax is that of −(x − k)²."""

    def __init__(self, dims: int, classes: int = 3) -> None:
        super().__init__()
        self.head = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, classes, 1)
        with torch.no_grad():
            k = torch.arange(float(classes))
            self.head.weight.copy_((2 * k).reshape(-1, *[1] * (dims + 1)))
            self.head.bias.copy_(-(k**2))
        self.seen: list[tuple[int, ...]] = []
        self.types: set[torch.dtype] = set()
        self.grad = False

    def forward(self, image: Tensor) -> Output:
        self.seen.append(tuple(image.shape))
        logits = self.head(image)
        self.types.add(logits.dtype)
        self.grad |= torch.is_grad_enabled()
        return Output(logits.float())


def _volume(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def _prepared(tmp_path: Any, label: np.ndarray, view: dict[str, Any]) -> Prepared:
    from harness.data.manifest import load_manifest

    (tmp_path / "toy.yaml").write_text(
        "name: toy\ntitle: t\nlicence: none\nattribution: n\nobtain: n\nlayout: {phantom: {shape: [4, 16, 16], seed: 1}}\n"
        "modalities: [CT]\nlabels: {a: 1, b: 2}\nintensity: {window: [0, 1]}\ncases: [c1, c2]\nsplits: {s: {test: [c2]}}\n"
    )

    class Reader:
        def missing(self, cases: list[str]) -> list[Any]:
            return []

        def digest(self, case: str) -> str:
            return "x"

        def read(self, case: str) -> Volume:
            return Volume(label[None].astype(np.float32) / 2, label, (3.0, 1.0, 2.0))

    return load_prepared(prepare(load_manifest("toy.yaml", tmp_path), Reader(), "c1", view, tmp_path / "cache"))


def _predict(tmp_path: Any, label: np.ndarray, view: dict[str, Any], batch: int = 4, precision: str = "float32"):
    """The image is label / 2, so that the window keeps it; a network on twice the image must give the label back."""
    case = _prepared(tmp_path, label, view)
    case.image[...] *= 2
    model = ByIntensity(2 if "slices" in view else 3).eval()
    found = predict_case(model, case, view, batch=batch, device=CPU, precision=precision)
    assert found.shape == label.shape and found.dtype == np.uint8 and not model.grad
    return found, model


def _slices(size: list[int], fit: str = "pad", axis: int = 0) -> dict[str, Any]:
    return {"slices": {"size": size, "fit": fit, "axis": axis}}


def _patches(size: list[int]) -> dict[str, Any]:
    return {"patches": {"size": size, "foreground": 0.5}}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_padded_slices_give_the_label_exactly(tmp_path: Any, axis: int, precision: str) -> None:
    label = _volume()
    found, model = _predict(tmp_path, label, _slices([17, 16], axis=axis), precision=precision)
    assert np.array_equal(found, label)
    assert model.types == {torch.bfloat16 if precision == "bf16" else torch.float32}
    # every slice once, at most 4 at a time
    assert sum(s[0] for s in model.seen) == SHAPE[axis] and {s[1:] for s in model.seen} == {(1, 17, 16)}
    assert max(s[0] for s in model.seen) == 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resized_slices_give_nearly_the_label(tmp_path: Any, axis: int) -> None:
    shape = (30, 36, 33)
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), 5)
    label = np.digitize(smooth, np.quantile(smooth, [0.4, 0.8])).astype(np.uint8)
    found, _ = _predict(tmp_path, label, _slices([48, 40], "resize", axis), batch=16)
    for k in (0, 1, 2):
        dice = 2 * ((found == k) & (label == k)).sum() / ((found == k).sum() + (label == k).sum())
        assert dice > 0.93
    assert (found == label).mean() > 0.95


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("size", [[4, 6, 5], [9, 14, 11], [12, 16, 16], [4, 20, 8]])
def test_patches_smaller_and_larger_than_the_volume(tmp_path: Any, size: list[int], precision: str) -> None:
    label = _volume()
    found, model = _predict(tmp_path, label, _patches(size), precision=precision)
    assert np.array_equal(found, label)
    assert {s[1:] for s in model.seen} == {(1, *size)}


@pytest.mark.parametrize(("overlap", "windows"), [(0.0, 4), (0.5, 7), (0.75, 13)])
def test_the_overlap_of_windows_is_the_views(tmp_path: Any, overlap: float, windows: int) -> None:
    """Windows of 8 along 32: a step of 8, 4 or 2."""
    label = _volume((8, 8, 32))
    view = {"patches": {"size": [8, 8, 8], "foreground": 0.5, "overlap": overlap}}
    found, model = _predict(tmp_path, label, view, batch=1)
    assert np.array_equal(found, label) and len(model.seen) == windows


def test_the_cases_own_view_counts(tmp_path: Any) -> None:
    """A cell's view may have words; the case brings the numbers that they became."""
    label = _volume()
    case = _prepared(tmp_path, label, _patches([4, 6, 5]))
    case.image[...] *= 2
    words = {"patches": {"size": "nnunet", "foreground": 0.5}}
    case = replace(case, view=_patches([4, 6, 5]))
    found = predict_case(ByIntensity(3), case, words, batch=2, device=CPU, precision="float32")
    assert np.array_equal(found, label)


@pytest.mark.parametrize("view", [_slices([16, 16]), _patches([4, 6, 5])], ids=["slices", "patches"])
def test_the_size_of_the_batch_does_not_matter(tmp_path: Any, view: dict[str, Any]) -> None:
    """With a network that looks at neighbours, and intensities that leave ties out."""
    dims = 2 if "slices" in view else 3
    case = _prepared(tmp_path, _volume(), view)
    case.image[...] += np.random.default_rng(2).normal(0, 0.3, case.image.shape).astype(np.float32)
    torch.manual_seed(0)
    conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 3, 3, padding=1)

    class Net(nn.Module):
        def forward(self, image: Tensor) -> Output:
            return Output(conv(image))

    found = [predict_case(Net(), case, view, batch=b, device=CPU, precision="float32") for b in (1, 2, 5, 100)]
    assert len(np.unique(found[0])) == 3
    for other in found[1:]:
        assert (other != found[0]).mean() < 1e-3  # the last bit may differ, no more


def test_the_label_of_the_case_is_not_looked_at(tmp_path: Any) -> None:
    view = _slices([16, 16])
    label = _volume()
    case = _prepared(tmp_path, label, view)
    case.image[...] *= 2
    case.label[...] = 0
    case.reference[...] = 0
    found = predict_case(ByIntensity(2), case, view, batch=3, device=CPU, precision="float32")
    assert np.array_equal(found, label)


class _Large(TorchDispatchMode):
    """Counts the blocks of memory with at least so many numbers that operations make."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.held: list[Tensor] = []  # kept, so that no address is given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(one, Tensor) and one.untyped_storage().nbytes() >= self.numbers * one.element_size():
                self.held.append(one)
        return out

    @property
    def blocks(self) -> int:
        return len({one.untyped_storage().data_ptr() for one in self.held})


@pytest.mark.parametrize("view", [_slices([24, 20]), _patches([8, 12, 10])], ids=["slices", "patches"])
def test_of_a_resampled_case_only_the_logits_are_held_whole(tmp_path: Any, view: dict[str, Any]) -> None:
    """Classes go back one by one; the result is that of the whole softmax."""
    flat = "slices" in view
    case = _prepared(tmp_path, _volume((8, 24, 20)), view)
    inner = (10, 31, 22)
    shape = (8, 24, 20)
    geometry = Geometry((0, 1, 2), (False,) * 3, inner, tuple((0, n) for n in inner), shape)
    case = replace(case, geometry=geometry, reference=np.zeros(inner, np.uint8))
    torch.manual_seed(0)
    conv = (nn.Conv2d if flat else nn.Conv3d)(1, 14, 3, padding=1)

    class Net(nn.Module):
        def forward(self, image: Tensor) -> Output:
            return Output(8 * conv(image))

    kept: list[Tensor] = []
    about: dict[str, Any] = {"batch": 1, "device": CPU, "precision": "float32"}
    with _Large(14 * 8 * 24 * 20) as large:
        found = predict_case(Net(), case, view, **about)
    assert large.blocks == 1
    assert np.array_equal(predict_case(Net(), case, view, **about, keep_logits=kept.append), found)
    scores = torch.softmax(kept[0], 1)
    scores = scores.movedim(1, 0) if flat else scores[0]
    expected = geometry.decide(lambda k: scores[k].numpy(), 14)
    assert (found == expected).mean() > 0.999 and len(np.unique(found)) > 5


@pytest.mark.parametrize(("said", "axis_last"), [(True, True), (False, False), (None, False)])
def test_channels_last_only_in_2d_and_only_where_the_network_says_so(tmp_path: Any, said: Any, axis_last: bool) -> None:
    class Watching(ByIntensity):
        def forward(self, image: Tensor) -> Output:
            formats.add(image.is_contiguous(memory_format=torch.channels_last))
            return super().forward(image)

    formats: set[bool] = set()
    view = _slices([16, 16])
    case = _prepared(tmp_path, _volume(), view)
    case = replace(case, image=np.repeat(case.image, 3, axis=1) * 2)  # of one channel both formats would be the same
    model = Watching(2)
    model.head = nn.Conv2d(3, 3, 1)
    if said is not None:
        model.channels_last = said
    predict_case(model, case, view, batch=2, device=CPU, precision="float32")
    assert formats == {axis_last}
    assert memory_format(model, 3, CPU) is torch.contiguous_format
