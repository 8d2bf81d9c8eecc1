"""What an analysis gives: one result per loss, and everything about the comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from harness.stats.crossed import Source
from harness.stats.design import Kind
from harness.stats.detectable import Detectable

Verdict = Literal["baseline", "better", "worse", "no difference shown", "equivalent", "no verdict"]
Known = float | None


@dataclass(frozen=True)
class LossResult:
    """One loss. Effects are loss − baseline on the analysed scale; None where there is no answer.

    Attributes:
        loss: Its name.
        mean: Plain mean in the metric's own unit: over the patients of a run, then over runs.
        runs: Runs with values.
        diverged: Runs that diverged: not in the mean, not in the effect.
        crashed: Runs that ended otherwise without values.
        patients: Patients with a value.
        effect: Difference from the baseline; for distances of log(1 + value).
        low: Lower end of the 95 % interval for the population of patients and trainings.
        high: Its upper end.
        df: Degrees of freedom of that interval.
        p: Two-sided, unadjusted.
        p_holm: After Holm over the losses.
        p_rope: Of the two one-sided tests for a difference within ±rope, after Holm over the losses.
        fixed_low: Lower end of the 95 % interval for these trained networks on other patients.
        fixed_high: Its upper end.
        verdict: After Holm. `equivalent`: no difference shown and shown to be within ±rope (Holm as well).
        within_rope: Whether it is shown to be within ±rope, also where it is better or worse.
        rank: By the effect; a loss with a diverged run stands behind all others; None where every run crashed.
        rank_low: Best rank that is not excluded.
        rank_high: Worst rank that is not excluded.
        first: Probability of rank 1, from draws of the fitted model.
        bootstrap_first: The same from a two-level bootstrap, as a check; None where the grid has gaps.
        tier: 1 is not shown to be worse than the best.
        run_rank: Mean over runs of the rank in the run, a diverged run being last.
    """

    loss: str
    mean: Known = None
    runs: int = 0
    diverged: int = 0
    crashed: int = 0
    patients: int = 0
    effect: Known = None
    low: Known = None
    high: Known = None
    df: Known = None
    p: Known = None
    p_holm: Known = None
    p_rope: Known = None
    fixed_low: Known = None
    fixed_high: Known = None
    verdict: Verdict = "no verdict"
    within_rope: bool = False
    rank: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    first: Known = None
    bootstrap_first: Known = None
    tier: int | None = None
    run_rank: Known = None


@dataclass(frozen=True)
class Analysis:
    """Everything about one comparison.

    Attributes:
        kind: What was measured; `distance` has effects on log(1 + value), so exp(effect) is a ratio.
        higher_is_better: Direction.
        baseline: Name of the loss that the others are compared with.
        losses: One result per loss, in the order asked for.
        sources: The analysis of variance with its components; empty where the grid has gaps.
        detectable: Smallest detectable difference by seeds; empty for rates, with gaps and without a verdict.
        no_verdict: Why there is none, as a sentence; None where there is one.
        method: `closed forms`, `REML` or `patients only` (one run).
        folds: Number of folds.
        runs: Number of runs.
        patients: Patients that enter the effects.
        left_out: Patients left out because some run of some loss has no value for them.
        inflation: Nadeau and Bengio's factor for the folds; 1 with one fold.
        notes: Sentences that belong beside the table.
    """

    kind: Kind
    higher_is_better: bool
    baseline: str
    losses: tuple[LossResult, ...]
    sources: tuple[Source, ...]
    detectable: tuple[Detectable, ...]
    no_verdict: str | None
    method: Literal["closed forms", "REML", "patients only"]
    folds: int
    runs: int
    patients: int
    left_out: tuple[str, ...]
    inflation: float
    notes: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row per loss, columns as the attributes of `LossResult`."""
        return pd.DataFrame([vars(r) for r in self.losses])
