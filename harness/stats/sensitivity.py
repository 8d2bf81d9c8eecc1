"""How much the ranking depends on choices: metric, profile, empty masks, order of the means, classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from harness.errors import BenchError
from harness.metrics.policy import applies, takes_worst
from harness.metrics.table import COUNTS, metric_of
from harness.stats.design import NO_FOLD

COLUMNS = (
    "loss", "fold", "seed", "patient", "case", "class", "metric", "profile", "value", "worst", "status",
)  # fmt: skip
POLICIES = ("drop", "worst", "zero")
ORDERS = ("mean of patient means", "pooled", "rank then mean", "median")
_RUN = ["loss", "fold", "seed"]


def sensitivity(rows: pd.DataFrame, metric: str, profile: str) -> pd.DataFrame:
    """Kendall's tau-b between the main ranking and those that other choices give.

    Main ranking: mean over the cases of a patient, patients, classes, then runs, under the default policy. Variants,
    one at a time: every other metric and profile in the rows; cases with one empty mask left out (`drop`), counted with
    the metric's worst value (`worst`) or as the number 0 (`zero`, which some tools write for distances too); one mean
    over all cases of all classes and runs (`pooled`); ranks within each run, class and patient, averaged (`rank then
    mean`); the median over patients; and every class left out in turn.

    Args:
        rows: One data set and model, columns as `COLUMNS`; the raw rows of all metrics.
        metric: The one of the main ranking.
        profile: Its profile.

    Returns:
        Columns choice ("metric", "empty masks", "aggregation", "class left out"), variant, tau (NaN where one of the
        two rankings has only ties), first (the best loss, several joined by " = "), losses (how many both have).

    Raises:
        BenchError: A column is missing, or the main ranking has no values.
    """
    lacking = [c for c in COLUMNS if c not in rows.columns]
    if lacking:
        raise BenchError(f"sensitivity: no column {', '.join(map(repr, lacking))}; expected {', '.join(COLUMNS)}.")
    rows = rows.assign(fold=rows["fold"].fillna(NO_FOLD))
    chosen = rows[(rows["metric"] == metric) & (rows["profile"] == profile)]
    values = _policy(chosen, "default")
    main = _mean_of_means(values)
    if main.empty:
        raise BenchError(f"sensitivity: no values of {metric} ({profile}).")
    sign = _sign(metric)
    out: list[tuple[str, str, float, str, int]] = []

    def add(choice: str, variant: str, score: pd.Series) -> None:
        out.append((choice, variant, *_compare(main * sign, score)))

    others = rows[~rows["metric"].isin(COUNTS)][["metric", "profile"]].drop_duplicates()
    for name, kind in others.itertuples(index=False, name=None):
        if (name, kind) != (metric, profile):
            part = rows[(rows["metric"] == name) & (rows["profile"] == kind)]
            add("metric", f"{name} ({kind})", _mean_of_means(_policy(part, "default")) * _sign(name))
    for policy in POLICIES:
        add("empty masks", policy, _mean_of_means(_policy(chosen, policy)) * sign)
    by: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
        "pooled": lambda f: f.groupby("loss")["score"].mean(),
        "rank then mean": lambda f: -_rank_then_mean(f, sign) * sign,
        "median": lambda f: _mean_of_means(f, "median"),
    }
    for order in ORDERS[1:]:
        add("aggregation", order, by[order](values) * sign)
    classes = list(dict.fromkeys(chosen["class"]))
    for name in classes if len(classes) > 1 else []:
        add("class left out", str(name), _mean_of_means(values[values["class"] != name]) * sign)
    return pd.DataFrame(out, columns=["choice", "variant", "tau", "first", "losses"])


def across(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Kendall's tau-b between the ranking over all data sets and those without one of them.

    Main ranking: in each data set the rank by the main ranking of `sensitivity`, among the losses that every data set
    has (1 the best, ties share the mean rank), then the mean over the data sets: numbers of different data sets have no
    common mean. Variants: each data set left out in turn and, of three or more, each alone.

    Args:
        rows: One model and metric, one profile in each data set; columns as `COLUMNS` and `group`, the data set.
        metric: The metric.

    Returns:
        Columns as those of `sensitivity`, choice being "data set left out" or "data set alone". Without rows where
        fewer than two data sets share two losses.

    Raises:
        BenchError: A column is missing.
    """
    lacking = [c for c in (*COLUMNS, "group") if c not in rows.columns]
    if lacking:
        raise BenchError(
            f"sensitivity: no column {', '.join(map(repr, lacking))}; expected {', '.join(COLUMNS)}, group."
        )
    rows = rows.assign(fold=rows["fold"].fillna(NO_FOLD))
    scores = {
        str(name): _mean_of_means(_policy(part, "default")) * _sign(metric)
        for name, part in rows.groupby("group", sort=False, observed=True)
    }
    table = pd.DataFrame(scores).dropna()
    out: list[tuple[str, str, float, str, int]] = []
    if table.shape[0] > 1 and table.shape[1] > 1:
        places = -table.rank(ascending=False)  # larger is better, as in all scores here
        main = places.mean(axis=1)
        for name in table.columns:
            rest = places.drop(columns=name).mean(axis=1)
            out.append(("data set left out", str(name), *_compare(main, rest)))
        for name in table.columns if table.shape[1] > 2 else []:
            out.append(("data set alone", str(name), *_compare(main, places[name])))
    return pd.DataFrame(out, columns=["choice", "variant", "tau", "first", "losses"])


def _sign(metric: str) -> float:
    return 1.0 if metric_of(metric)[0].higher_is_better else -1.0


def _policy(rows: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Rows with `score`, the number that enters the means; NaN where there is none."""
    out = rows.copy()
    value, worst = pd.to_numeric(out["value"]).astype(float), pd.to_numeric(out["worst"]).astype(float)
    keys = ["metric", "profile", "status"]
    kind = out.groupby(keys, sort=False, observed=True).ngroup().to_numpy()
    kinds = [*out[keys].drop_duplicates().itertuples(index=False, name=None)]  # in the order of their numbers
    counted = pd.Series(np.array([applies(*k) for k in kinds], bool)[kind], index=out.index)
    empty = pd.Series(np.array([takes_worst(*k) for k in kinds], bool)[kind], index=out.index)
    score = value.where(value.notna() | ~empty, worst)
    if policy != "default":
        score = score.where(~empty, {"drop": np.nan, "zero": 0.0}.get(policy, worst))
    out["score"] = score.where(counted)
    return out


def _mean_of_means(frame: pd.DataFrame, over_patients: str = "mean") -> pd.Series:
    patients = frame.groupby([*_RUN, "class", "patient"])["score"].mean()
    per_class = patients.groupby(level=[*_RUN, "class"]).agg(over_patients)
    per_run = per_class.groupby(level=_RUN).mean()
    return per_run.groupby(level="loss").mean().dropna()


def _rank_then_mean(frame: pd.DataFrame, sign: float) -> pd.Series:
    """Mean over runs, classes and patients of the rank among the losses, 1 the best; ties share the mean rank."""
    keys = ["fold", "seed", "class", "patient"]
    mean = (frame.groupby([*keys, "loss"])["score"].mean() * sign).dropna()
    place = mean.groupby(level=keys).rank(ascending=False)
    return place.groupby(level="loss").mean()


def _compare(main: pd.Series, other: pd.Series) -> tuple[float, str, int]:
    """Tau-b over the losses that both have, the best loss of the other, and their number; larger is better in both."""
    known = other.dropna()
    common = [x for x in main.index if x in known.index]
    tau = float(stats.kendalltau(main[common], known[common]).statistic) if len(common) > 1 else float("nan")
    first = " = ".join(str(x) for x in known.index[known == known.max()])
    return tau, first, len(common)
