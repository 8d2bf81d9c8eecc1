"""Long frames of the analysis from small arrays."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from harness.stats.simulate import Setting, draw


def to_frame(blocks: Sequence[np.ndarray], names: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows of arrays loss × seed × patient, one per fold."""
    rows = []
    for fold, block in enumerate(blocks):
        for (k, seed, patient), value in np.ndenumerate(block):
            loss = names[k] if names else f"L{k}"
            rows.append((loss, fold if len(blocks) > 1 else -1, seed, f"f{fold}p{patient}", value))
    return pd.DataFrame(rows, columns=["loss", "fold", "seed", "patient", "value"])


@pytest.fixture
def frame_of() -> Callable[..., pd.DataFrame]:
    return to_frame


@pytest.fixture
def drawn() -> Callable[..., pd.DataFrame]:
    """A frame of one simulated grid, with effects added to the losses."""

    def make(setting: Setting, effects: Sequence[float] = (), seed: int = 0) -> pd.DataFrame:
        blocks = [b[0] for b in draw(setting, 1, np.random.default_rng(seed))]
        for block in blocks:
            for k, effect in enumerate(effects):
                block[k] += effect
        return to_frame(blocks)

    return make
