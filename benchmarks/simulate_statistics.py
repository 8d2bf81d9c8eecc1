"""How often the statistics err where the truth is known: false positives, coverage, variance components, power.

`python benchmarks/simulate_statistics.py` takes some ten minutes on one core, with 4,000 replicates of every setting;
`--quick` takes seconds and shows the form only. `--json OUT` keeps every single setting. The tables of
docs/statistics.md are its output.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from scipy import stats

from harness.stats import reml
from harness.stats.contrasts import ALPHA, holm, p_values
from harness.stats.crossed import TWO_LOSSES_CAP, pair_error, pairs, strata
from harness.stats.design import Block
from harness.stats.detectable import table as detectable
from harness.stats.ranks import tiers
from harness.stats.simulate import SHAPES, Setting, Shape, draw, measure, recovered

Array = NDArray[np.float64]
RUN_SDS, PATIENT_SDS = (0.0, 0.002, 0.005, 0.010), (0.0, 0.010, 0.020)
LOSSES, SEEDS, PATIENTS = (2, 6), (2, 3, 5), (12, 30)
SHARED = 0.010  # SD of what a seed does to all losses alike, in the comparison of powers


def against_first(losses: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    j = np.arange(1, losses, dtype=np.intp)
    return np.zeros_like(j), j


def as_planned(blocks: list[Array]) -> Array:
    """Two-sided p by the rule planned first: every mean square pooled over the losses, no limit of the df. One fold."""
    found = strata(blocks)
    assert found.seed is not None and found.residual is not None and found.fold is None
    k = found.patient.losses - 1
    a, b, e = (s.pooled[..., None] for s in (found.seed, found.patient, found.residual))
    v = np.maximum(a + b - e, np.maximum(a, b))
    df = v**2 / (a**2 / (k * found.seed.df) + b**2 / (k * found.patient.df) + e**2 / (k * found.residual.df))
    return p_values(found.means[..., 1:] - found.means[..., :1], 2 * v / found.size, df)


def own_squares(blocks: list[Array]) -> Array:
    """Two-sided p, all mean squares from the pair: what "differ more than fourfold" comes down to with few seeds."""
    found = strata(blocks)
    assert found.seed is not None and found.residual is not None
    i, j = against_first(found.patient.losses)
    a, b, e = (s.own(i, j) for s in (found.seed, found.patient, found.residual))
    v = np.maximum(a + b - e, np.maximum(a, b))
    df = v**2 / (a**2 / found.seed.df + b**2 / found.patient.df + e**2 / found.residual.df)
    return p_values(found.means[..., j] - found.means[..., i], 2 * v / found.size, df)


def patients_only(blocks: list[Array]) -> Array:
    """The usual question, these trained networks on other cases: a paired t test on the means over seeds."""
    found = strata(blocks)
    i, j = against_first(found.patient.losses)
    b = found.patient.own(i, j)
    return p_values(found.means[..., j] - found.means[..., i], 2 * b / found.size, np.full_like(b, found.patient.df))


def rule(blocks: list[Array]) -> Array:
    """Two-sided p by the rule of the package."""
    found = strata(blocks)
    error = pair_error(found, *against_first(found.patient.losses))
    return p_values(found.means[..., 1:] - found.means[..., :1], error.variance, error.df)


def welch(blocks: list[Array]) -> Array:
    """Two-sided p of Welch's t test between the run means of two losses."""
    m = blocks[0].mean(axis=-1)
    return np.asarray(stats.ttest_ind(m[:, 1:], m[:, :1], axis=-1, equal_var=False).pvalue)


def paired(blocks: list[Array]) -> Array:
    """Two-sided p of the paired t test between the run means of two losses, paired by seed."""
    m = blocks[0].mean(axis=-1)
    return np.asarray(stats.ttest_rel(m[:, 1:], np.broadcast_to(m[:, :1], m[:, 1:].shape), axis=-1).pvalue)


def null_settings() -> Iterable[tuple[str, list[Setting]]]:
    """Every combination, in groups that one row of the table sums up."""
    truths = list(itertools.product(PATIENTS, RUN_SDS, PATIENT_SDS))
    for shape, losses, seeds in itertools.product(SHAPES, LOSSES, SEEDS):
        yield "one fold", [Setting(losses, seeds, n, 1, r, p, shape) for n, r, p in truths]
    for (name, overlap), shape in itertools.product((("five folds", 0.0), ("five folds, overlap", 0.2)), SHAPES):
        for losses in LOSSES:
            yield name, [Setting(losses, 1, n, 5, r, p, shape, overlap) for n, r, p in truths]


def percent(values: Iterable[float]) -> str:
    found = [100 * v for v in values]
    return f"{min(found):.1f} to {max(found):.1f}" if len(found) > 1 else f"{found[0]:.1f}"


def null(replicates: int, seed: int, keep: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for k, (design, group) in enumerate(null_settings()):
        found = []
        for n, setting in enumerate(group):
            errors = measure(setting, replicates, np.random.default_rng([seed, k, n]))
            keep.append({"design": design} | dataclasses.asdict(setting) | dataclasses.asdict(errors))
            found.append(errors)
        first = group[0]
        left = sum(e.gaps for e in found) / (replicates * len(found))
        rows.append(
            (
                design, first.shape, str(first.losses), str(first.seeds),
                percent(e.false_positives for e in found), f"{100 * max(e.worst for e in found):.1f}",
                f"{100 * max(e.family for e in found):.1f}", percent(e.coverage for e in found),
                f"{100 * left:.0f}" if left else "",
            )
        )  # fmt: skip
    return rows


def coverage(keep: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for design, run in itertools.product(dict.fromkeys(e["design"] for e in keep), RUN_SDS):
        found = [
            e["coverage"]
            for e in keep
            if e["design"] == design and e["run_sd"] == run and e["shape"] != "misses" and e["losses"] * e["seeds"] != 4
        ]
        inside = sum(0.93 <= c <= 0.97 for c in found)
        rows.append((design, f"{run:g}", percent(found), str(inside), str(len(found))))
    return rows


def rules(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """False positives of several rules over the settings of one fold, Gaussian, and with more patients."""
    rows = []
    tried: list[Callable[[list[Array]], Array]] = [rule, as_planned, own_squares, patients_only, paired]
    wide = (0.0, 0.002, 0.003, 0.005, 0.007, 0.010, 0.020)
    for k, (losses, seeds, patients) in enumerate(itertools.product((2, 3, 6), SEEDS, (*PATIENTS, 100))):
        rates = []
        for n, (r, p) in enumerate(itertools.product(wide, PATIENT_SDS)):
            rng = np.random.default_rng([seed, 1000 + k, n])
            blocks = draw(Setting(losses, seeds, patients, 1, r, p), replicates, rng)
            rates.append([float((f(blocks) < ALPHA).mean()) for f in tried])
        rows.append((str(losses), str(seeds), str(patients), *(percent(column) for column in zip(*rates, strict=True))))
    return rows


def both(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """Folds and several seeds, half of the loss × run variance in each; two folds get no verdict."""
    rows = []
    for k, (losses, (folds, seeds)) in enumerate(itertools.product((2, 6), ((2, 3), (3, 2), (5, 2), (5, 3)))):
        found = []
        for n, (r, p, overlap) in enumerate(itertools.product((*RUN_SDS, 0.020), PATIENT_SDS, (0.0, 1 / folds))):
            setting = Setting(losses, seeds, 30, folds, r, p, "gaussian", overlap)
            found.append(measure(setting, replicates, np.random.default_rng([seed, 7000 + k, n])))
        cells = percent(e.false_positives for e in found), f"{100 * max(e.family for e in found):.1f}"
        rows.append((str(losses), str(folds), str(seeds), *cells))
    return rows


def few(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """Few patients, one fold: the worst comparison and the worst family over run and loss × patient SD."""
    rows = []
    for k, (losses, seeds) in enumerate(((2, 5), (6, 3), (6, 5), (6, 10), (12, 10))):
        cells = []
        for patients in (2, 3, 4, 5, 6, 8):
            found = []
            for n, (r, p) in enumerate(itertools.product((0.0, 0.005, 0.010), (0.010, 0.020, 0.050))):
                rng = np.random.default_rng([seed, 8000 + k, patients, n])
                found.append(measure(Setting(losses, seeds, patients, 1, r, p), replicates, rng))
            cells.append(f"{100 * max(e.worst for e in found):.1f} / {100 * max(e.family for e in found):.1f}")
        rows.append((str(losses), str(seeds), *cells))
    return rows


def unequal(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """False positives where the losses differ in how far they vary; the worst comparison of five."""
    truths: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = [
        ("equal", (0.005,) * 6, (0.01,) * 6),
        ("run SD of the baseline 2 ×", (0.010, *(0.005,) * 5), (0.01,) * 6),
        ("run SD of the baseline 3 ×", (0.015, *(0.005,) * 5), (0.01,) * 6),
        ("run SD of one loss 3 ×", (*(0.005,) * 5, 0.015), (0.01,) * 6),
        ("loss × patient SD 0.02 and 0.005", (0.005,) * 6, (0.02, 0.005, 0.005, 0.005, 0.02, 0.02)),
    ]
    rows = []
    for k, ((name, run, patient), seeds) in enumerate(itertools.product(truths, SEEDS)):
        blocks = draw(Setting(6, seeds, 30, 1, run, patient), replicates, np.random.default_rng([seed, 2000 + k]))
        cells = []
        for f in (rule, as_planned, own_squares):
            p = f(blocks)
            family = (holm(p) < ALPHA).any(axis=1).mean()
            cells.append(f"{100 * (p < ALPHA).mean(axis=0).max():.1f} / {100 * family:.1f}")
        rows.append((name, str(seeds), *cells))
    return rows


def power(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """How often +0.02 of one loss of six is found after Holm, seeds shared, 30 cases."""
    rows = []
    for k, (seeds, run, patient) in enumerate(itertools.product((3, 5), RUN_SDS[1:], PATIENT_SDS[1:])):
        rng = np.random.default_rng([seed, 3000 + k])
        blocks = draw(Setting(6, seeds, 30, 1, run, patient), replicates, rng)
        extra = np.sqrt(SHARED**2 - 0.005**2)  # `draw` has an SD of 0.005 already
        blocks = [b + rng.normal(size=(replicates, 1, seeds, 1)) * extra for b in blocks]
        blocks[0][:, 1] += 0.02
        found = [100 * (holm(f(blocks))[:, 0] < ALPHA).mean() for f in (rule, as_planned, own_squares, paired, welch)]
        rows.append((str(seeds), f"{run:g}", f"{patient:g}", *(f"{x:.0f}" for x in found)))
    return rows


def components(replicates: int, seed: int) -> list[tuple[str, ...]]:
    rows = []
    truths = ((0.0, 0.0), (0.002, 0.01), (0.005, 0.01), (0.01, 0.02))
    for k, ((run, patient), (seeds, folds)) in enumerate(itertools.product(truths, ((2, 1), (5, 1), (1, 5)))):
        setting = Setting(6, seeds, 30, folds, run, patient)
        found = recovered(setting, replicates, np.random.default_rng([seed, 4000 + k]))
        rest = 0.02**2
        truth = {"loss × run": run**2, "loss × patient": patient**2, "residual": rest}
        truth["loss × patient and residual"] = patient**2 + rest
        cells = [f"{name} {1e4 * v:.3f} ({1e4 * truth[name]:.3f})" for name, v in found.items()]
        rows.append((f"{run:g}", f"{patient:g}", str(seeds), str(folds), "; ".join(cells)))
    return rows


def promised(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """Whether the smallest detectable difference is found in 80 %, and whether equal losses share the first tier."""
    rows = []
    for k, (losses, seeds, run) in enumerate(itertools.product((3, 6), (3, 5), (0.002, 0.005, 0.010))):
        setting = Setting(losses, seeds, 30, 1, run, 0.01)
        rng = np.random.default_rng([seed, 5000 + k])
        pilot = draw(setting, min(replicates, 400), rng)[0]
        said = [r.difference for p in pilot for r in detectable(strata([p]), 1.0, (seeds,)) if r.now]
        difference = float(np.median([d for d in said if d is not None]))
        reached = measure(setting, replicates, rng, shift=difference).power
        blocks = draw(setting, replicates, rng)
        i, j = pairs(losses)
        found = strata(blocks)
        error = pair_error(found, i, j)
        p = p_values(found.means[..., j] - found.means[..., i], error.variance, error.df)
        apart = 0
        for n in range(len(p)):
            square = np.ones((losses, losses))
            square[i, j] = square[j, i] = p[n]
            apart += int((tiers(found.means[n], square, np.ones(losses, dtype=bool)) > 1).any())
        rows.append(
            (
                str(losses),
                str(seeds),
                f"{run:g}",
                f"{difference:.4f}",
                f"{100 * reached:.0f}",
                f"{100 * apart / len(p):.1f}",
            )
        )
    return rows


def gaps(replicates: int, seed: int) -> list[tuple[str, ...]]:
    """REML where grids have gaps: false positives of the pairs with the baseline, and after Holm.

    One fold: Gaussian values, 5 % of them and one run of one loss missing. Five folds: HD95 of few patients, whose
    missed cases leave too few patients that every loss has.
    """
    rows = []
    truths = list(itertools.product((2, 6), ((3, 1), (5, 1), (1, 5)), (0.0, 0.005, 0.010)))
    for k, (losses, (seeds, folds), run) in enumerate(truths):
        rng = np.random.default_rng([seed, 6000 + k])
        shape: Shape = "hd95" if folds > 1 else "gaussian"
        setting = Setting(losses, seeds, 12, folds, run, 0.01, shape, 0.2 if folds > 1 else 0.0)
        values = draw(setting, replicates, rng)
        i, j = against_first(losses)
        hits, family, failed, total = 0, 0, 0, 0
        for n in range(replicates):
            ones = [b[n] for b in values]
            if folds == 1:
                ones[0][rng.random(ones[0].shape) < 0.05] = np.nan
                ones[0][losses - 1, 0] = np.nan
            blocks = [Block(f, tuple(range(seeds)), tuple(map(str, range(b.shape[-1]))), b) for f, b in enumerate(ones)]
            found = reml.fit(blocks, i, j, losses, setting.inflation)
            top = folds - 1 if folds > 1 else seeds - 1
            df = found.error.df if losses > 2 else np.minimum(found.error.df, TWO_LOSSES_CAP * top)
            good = np.isfinite(found.effect)
            p = np.ones(losses - 1)
            p[good] = p_values(found.effect[good], found.error.variance[good], df[good])
            hits, total = hits + int((p < ALPHA).sum()), total + losses - 1
            family, failed = family + int((holm(p) < ALPHA).any()), failed + len(found.failed)
        cells = (f"{100 * hits / total:.1f}", f"{100 * family / replicates:.1f}", f"{100 * failed / total:.1f}")
        rows.append((str(losses), str(seeds), str(folds), f"{run:g}", *cells))
    return rows


def show(console: Console, title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    console.print(f"\n{title}\n")
    table = Table(box=MARKDOWN)
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=4000, help="of every setting (4000)")
    parser.add_argument("--quick", action="store_true", help="60 replicates: the form only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="keep the errors of every setting of the first table here")
    args = parser.parse_args()
    n = 60 if args.quick else args.replicates
    start = time.monotonic()
    console = Console(width=170)
    console.print(f"{n} replicates of every setting, seed {args.seed}.")
    keep: list[dict[str, Any]] = []
    heads = "design", "values", "losses", "seeds", "false positives", "worst", "after Holm", "coverage", "to REML"
    title = "No loss differs; per cent. Each row: 12 and 30 patients, run SD 0 to 0.01, loss × patient SD 0 to 0.02."
    show(console, title, heads, null(n, args.seed, keep))
    show(
        console,
        "Coverage of the 95 % intervals by run SD, without misses and without two losses × two seeds; per cent.",
        ("design", "run SD", "coverage", "93 to 97", "settings"),
        coverage(keep),
    )
    if args.json:
        args.json.write_text(json.dumps(keep, indent=1) + "\n", encoding="utf-8")
    show(
        console,
        "False positives by rule, smallest to largest over run SD 0 to 0.02 and loss × patient SD 0 to 0.02; per cent.",
        ("losses", "seeds", "patients", "this package", "as planned", "own squares", "patients only", "paired t"),
        rules(n, args.seed),
    )
    show(
        console,
        "Folds and seeds, 30 patients, run and loss × patient SD 0 to 0.02, with and without overlap; per cent.",
        ("losses", "folds", "seeds", "false positives", "after Holm"),
        both(n, args.seed),
    )
    show(
        console,
        "Few patients, one fold, loss × patient SD up to 0.05: worst comparison / after Holm; per cent.",
        ("losses", "seeds", *(f"{n} patients" for n in (2, 3, 4, 5, 6, 8))),
        few(n, args.seed),
    )
    show(
        console,
        "Losses that vary differently, six losses, 30 patients: worst comparison / after Holm; per cent.",
        ("truth", "seeds", "this package", "as planned", "own squares"),
        unequal(n, args.seed),
    )
    show(
        console,
        "Power at +0.02 after Holm, six losses, 30 patients, seeds shared (SD 0.01 for all losses); per cent.",
        ("seeds", "run SD", "loss × patient SD", "this package", "as planned", "own squares", "paired t", "Welch"),
        power(n, args.seed),
    )
    show(
        console,
        "Variance components, mean of the estimates and (truth), times 10,000; six losses, 30 patients.",
        ("run SD", "loss × patient SD", "seeds", "folds", "estimates"),
        components(n, args.seed),
    )
    show(
        console,
        "What is promised: power at the smallest detectable difference (80), equal losses apart in tier 1 (at most 6)",
        ("losses", "seeds", "run SD", "difference", "power", "tier 1 broken"),
        promised(n, args.seed),
    )
    show(
        console,
        f"Gaps, by REML, 12 patients, {max(n // 10, 10)} replicates; per cent.",
        ("losses", "seeds", "folds", "run SD", "false positives", "after Holm", "not converged"),
        gaps(max(n // 10, 10), args.seed),
    )
    console.print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
