"""Statistics of the comparison: which losses differ, over patients and trainings. Pure functions, no torch."""

from harness.stats.analysis import analyse
from harness.stats.crossed import Source
from harness.stats.design import Kind, transform
from harness.stats.detectable import Detectable
from harness.stats.misses import split
from harness.stats.ranks import mean_ranks
from harness.stats.result import Analysis, LossResult, Verdict

__all__ = [
    "Analysis", "Detectable", "Kind", "LossResult", "Source", "Verdict", "analyse", "mean_ranks", "split", "transform",
]  # fmt: skip
