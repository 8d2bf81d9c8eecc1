"""Intensities by hand, and their digests: keys that came later stand in it only where they are set."""

import numpy as np
import pytest
from pydantic import ValidationError

from harness.data.intensity import Intensity, normalise
from harness.errors import BenchError


def _image(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)[:, None, None, :]


def _values(image: np.ndarray, **how: object) -> list[list[float]]:
    found = normalise(image, Intensity.model_validate(how))
    assert found.dtype == np.float32 and found.shape == image.shape
    return [[round(float(v), 5) for v in channel.ravel()] for channel in found]


def test_zscore_over_what_is_not_zero_leaves_zero_where_it_was() -> None:
    # 1, 3: mean 2, SD 1; the zeros are no part of it. An empty channel stays empty.
    assert _values(_image([0, 1, 3, 0], [0, 0, 0, 0]), zscore="nonzero") == [[0, -1, 1, 0], [0, 0, 0, 0]]
    assert _values(_image([0, 5, 5, 0]), zscore="nonzero") == [[0, 0, 0, 0]]


def test_scale_does_not_clip() -> None:
    assert _values(_image([0, 255, 51, 510]), scale=[0, 255]) == [[0, 1, 0.2, 2]]


def test_standard_divides_then_subtracts_and_divides_by_the_sd() -> None:
    how = {"mean": [0.5, 0.25], "sd": [0.25, 0.5], "divide": 255.0}
    assert _values(_image([0, 255], [0, 255]), standard=how) == [[-2, 2], [-0.5, 1.5]]
    # one number serves all channels
    assert _values(_image([0, 255], [255, 0]), standard={"mean": [0.5], "sd": [0.5], "divide": 255}) == [
        [-1, 1],
        [1, -1],
    ]


def test_standard_clips_in_the_units_of_the_file() -> None:
    how = {"mean": [100.0], "sd": [50.0], "clip": [[0.0, 200.0]]}
    assert _values(_image([-1000, 0, 150, 3000]), standard=how) == [[-2, -2, 1, 2]]


def test_a_wrong_number_of_channels_is_one_sentence() -> None:
    how = Intensity.model_validate({"standard": {"mean": [0.0, 1.0], "sd": [1.0]}})
    with pytest.raises(BenchError, match=r"2 values in `mean`.*3 channels"):
        normalise(_image([1, 2], [3, 4], [5, 6]), how)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"zscore": "volume", "scale": [0, 1]},
        {"foreground": [99.5, 0.5]},
        {"foreground": [-1, 99]},
        {"percentiles": [1, 101]},
        {"scale": [3, 3]},
        {"standard": {"mean": [0.0], "sd": [0.0]}},
        {"standard": {"mean": [], "sd": []}},
        {"zscore": "foreground"},
    ],
)
def test_what_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Intensity.model_validate(wrong)


def test_later_keys_are_not_in_the_digest_of_manifests_without_them() -> None:
    assert Intensity(window=(0, 1)).model_dump(mode="json") == {"window": [0, 1], "zscore": None, "percentiles": None}
    assert Intensity.model_validate({"scale": [0, 2]}).model_dump(mode="json") == {
        "window": None, "zscore": None, "percentiles": None, "scale": [0, 2],
    }  # fmt: skip


def test_words_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="not worked out"):
        normalise(_image([1, 2]), Intensity(foreground=(0.5, 99.5)))
