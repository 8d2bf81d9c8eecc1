"""A benchmark of loss functions for medical and semantic image segmentation.

`harness.load_suite`, `harness.run`, `harness.load_records` and `harness.rank` are those of `harness.api`, which has
`plan`, too. They are imported when they are asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import load_records, load_suite, rank, run

__version__ = "0.1.0"
__all__ = ["load_records", "load_suite", "rank", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness import api

    return getattr(api, name)
