"""`bench rank`: the places of losses in the terminal, or as JSON."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.data.manifest import packed
from harness.errors import BenchError
from harness.paths import there
from harness.printing import print_json
from harness.ranking.page import duplicate_sentence
from harness.ranking.place import Cost, Place, Standing, signed
from harness.ranking.rank import CheckFailed, Ranked, rank
from harness.report.words import number

MEANS = "means: over the classes of a patient, then over patients and runs; the leaderboard takes patients first"


def rank_command(args: argparse.Namespace) -> int:
    """Run `bench rank`; 1 where a loss does not pass its check, or a cell of it failed or diverged."""
    if len(args.names) < 2:
        raise BenchError("bench rank LOSS... SUITE: give a loss and a suite, such as my_loss.py:MyLoss quickstart.")
    _check_order(args.names)
    *losses, suite = args.names
    console = Console(stderr=args.json)
    try:
        result = rank(
            losses,
            suite,
            args=args.arg,
            baseline=args.baseline,
            data=args.data,
            out=args.out or [Path("runs")],
            reports=args.reports,
            quick=args.quick,
            device=args.device,
            workers=args.workers,
            rerun=args.rerun,
            page=not args.no_report,
            console=console,
            on=args.on,
            cluster=args.cluster,
            detach=args.detach,
            per_device=args.per_device,
            overlap=args.overlap,
        )
    except CheckFailed as error:
        if args.json:
            checks = {name: one.as_dict() for name, one in error.certificates.items()}
            print_json({"failed": str(error), "checks": checks})
        else:
            from harness.check.command import show_certificate

            for certificate in error.certificates.values():
                show_certificate(certificate, console)
            console.print(f"\n{escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    if args.json:
        print_json(result.as_dict())
    else:
        show(result, console)
    return 0 if result.complete else 1


def _check_order(names: Sequence[str]) -> None:
    """Say that the suite comes last where what is last is a loss, or where a suite stands before it."""

    def suite(name: str) -> bool:
        return name.endswith((".yaml", ".yml")) or there(packed("suites") / f"{Path(name).name}.yaml")

    *first, last = names
    early = next((x for x in first if suite(x)), None)
    if not suite(last) and not there(Path(last)) and (early is not None or ".py:" in last):
        told = f"bench rank {' '.join(shlex.quote(x) for x in names if x != early)} {early or 'SUITE'}"
        raise BenchError(f"the suite comes last: {told}.")


def show(result: Ranked, console: Console) -> None:
    """Print what was found."""

    def line(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    for standing in result.standings:
        console.print(
            f"\n[bold]{escape(standing.loss)}[/] on {escape(result.suite)}, baseline {escape(result.baseline)}"
        )
        if standing.duplicate_of:
            line(duplicate_sentence(standing.loss, standing.duplicate_of))
        if standing.missing:
            line(standing.missing + ".")
            continue
        for where in dict.fromkeys((p.dataset, p.model) for p in standing.places):
            places = [p for p in standing.places if (p.dataset, p.model) == where]
            console.print(f"\n[bold]{escape(', '.join(where))}[/]", highlight=False, soft_wrap=True)
            console.print(_places(places))
            for place in places:
                line(place.said)
                if place.more:
                    line(f"  {place.more}")
                if place.classes:
                    console.print(_classes(place, standing))
        for text in _costs(standing):
            line(text)
    line("")
    if any(s.places for s in result.standings):
        line(MEANS)
    for name, check in result.checks.items():
        line(f"check: {name} {'passes' if not check['failed'] else 'passes but for ' + ', '.join(check['failed'])}")
    for text in (*result.differences, *result.notes):
        line(text)
    if result.page is not None:
        line(f"report: {result.page}")


def _places(places: Sequence[Place]) -> Table:
    """The places on one data set with one model, in 80 columns; units and verdicts are in the sentences below."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold", max_width=10)
    for name in ("mean", "baseline", "difference", "95 %", "tier", "rank", "first"):
        table.add_column(name, overflow="fold")
    for p in places:
        spans = "" if p.rank_low is None else f" ({p.rank_low}–{p.rank_high})"
        table.add_row(
            escape(p.metric), number(p.mean), number(p.baseline_mean),
            signed(p.effect) + (" %" if p.unit.startswith("%") else ""), _interval(p.low, p.high),
            f"{p.tier or '–'}/{p.tiers}", f"{p.rank or '–'}/{p.losses}{spans}",
            "–" if p.first is None else f"{100 * p.first:.0f} %",
        )  # fmt: skip
    return table


def _classes(place: Place, standing: Standing) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    for name in ("class", escape(standing.loss), escape(standing.baseline), f"difference ({place.unit})", "95 %"):
        table.add_column(name, overflow="fold")
    for c in place.classes:
        table.add_row(
            escape(c.name),
            number(c.mean),
            number(c.baseline),
            signed(c.effect),
            _interval(c.low, c.high),
        )
    return table


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def _costs(standing: Standing) -> Iterator[str]:
    for where, cost in standing.cost.items():
        text = f"cost on {where}: {_cost(cost)}"
        base = standing.baseline_cost.get(where) if standing.baseline_cost is not None else None
        if standing.baseline_cost is None and standing.loss != standing.baseline:
            text += f"; that of {standing.baseline} is left out: records differ in hardware, torch, engine or processes"
        if base is not None and standing.loss != standing.baseline:
            text += f"; {standing.baseline}: {_cost(base)}"
            if standing.load:
                text += f"; no comparison of the times: {standing.load}"
            elif cost.step_ms and base.step_ms:
                text += f"; {cost.step_ms / base.step_ms:.2f} times its step"
        yield text + "."


def _cost(cost: Cost) -> str:
    parts = [
        f"{number(value, decimals)} {unit}"
        for value, decimals, unit in (
            (cost.train_s, 1, "s a training"),
            (cost.step_ms, 1, "ms a step"),
            (cost.targets_ms, 1, "ms of it for distance maps"),
            (cost.peak_rss_mb, 0, "MB at most"),
        )
        if value is not None
    ]
    return ", ".join(parts) or "not measured"
