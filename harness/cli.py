"""The command `bench`: verbs and exit codes. Nothing heavy is imported until a verb needs it.

Exit codes: 0 all done; 1 a cell failed or diverged; 2 a mistake of the user or a file that cannot be read or written,
in one sentence; 130 after Ctrl-C; 141 where what reads the output has closed it, as `head` does.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.arguments import Verb, parser_of
from harness.errors import BenchError, os_sentence, sentence
from harness.listing import LISTS
from harness.printing import json_alone, print_json
from harness.processes import writable

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cell import Place
    from harness.estimates import Estimates
    from harness.plan import Entry
    from harness.records import RunRecord
    from harness.suite import Suite


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # they are None where who started it has closed them
    sys.stdout, sys.stderr = (s or open(os.devnull, "w", encoding="utf-8") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no µ or × still gets its line
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else [*argv]
    if words[:1] in ([], ["help"]):
        words = [*words[1:], "--help"]
    args = argparse.Namespace()
    try:
        args = parser_of(VERBS).parse_args(words)
        with json_alone() if getattr(args, "json", False) else nullcontext():
            code = int(args.verb(args))
        sys.stdout.flush()
        return code
    except BenchError as error:
        print(f"bench: {sentence(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _write_no_more()
        return 141
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Rich's answer to one
            return 141
        raise
    except OSError as error:
        _write_no_more()
        print(f"bench: {os_sentence(error)}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = "the same command continues where it stopped."
        if getattr(args, "rerun", None):  # which would make again what is finished by now
            more = "without --rerun, the same command finishes what is missing."
        print(f"bench: interrupted; {more}", file=sys.stderr)
        return 130


def _write_no_more() -> None:
    """What waits to be written to stdout would fail once more when the process ends."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _load(args: argparse.Namespace) -> list[tuple[Suite, list[Entry]]]:
    from harness.api import load_suite, plan

    suites = [load_suite(path, args.quick, args.data) for path in args.suites]
    return [(s, plan(s, out=_outs(args), reports=args.reports, only=args.only)) for s in suites]


def _outs(args: argparse.Namespace) -> list[Path]:
    """The folders of results, in the order of precedence."""
    return args.out or [Path("runs")]


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.cell import Place
    from harness.engine import Engine, check_engines
    from harness.launch import say
    from harness.plan import make_plan, to_rerun
    from harness.tuning.studies import in_words

    console = Console(stderr=args.json)
    engine = Engine(args.engine, args.fuse)
    engine.check()
    if len(_outs(args)) > 1:
        raise BenchError("--out: a run writes to one folder; give one. `bench report` and `bench plan` merge several.")
    planned = _load(args)
    todo: dict[str, Entry] = {}
    first: list[str] = []
    started: dict[str, int] = {}
    place = Place(_outs(args)[0].resolve(), args.data.resolve() if args.data else None)
    for suite, entries in planned:
        chosen = to_rerun(entries, args.rerun)
        check_engines(entries, chosen, engine, place.out)
        started[suite.name] = len(chosen)
        todo |= {e.cell.eval_id: e for e in chosen}
        first.append(
            f"{suite.name}: {len(entries)} cells, {len(entries) - len(chosen)} done, {len(chosen)} to run"
            f"{in_words(chosen)}"
        )
    if args.tensorboard:
        from harness.tensorboard import followed, require_tensorboard

        require_tensorboard()
    if todo:
        known = [e.record for _, entries in planned for e in entries if e.record is not None]
        with followed([(s.name, e) for s, e in planned], place.out) if args.tensorboard else nullcontext():
            _work(list(todo.values()), place, args, console, known, first)
        if args.detach:
            if args.json:
                print_json([_run_row(s, entries, started[s.name]) for s, entries in planned])
            return 0
        planned = [(s, make_plan(s, _outs(args), args.reports, args.only)) for s, _ in planned]
    else:
        say(console, first)
    _tensorboard(planned, place, args, console)
    return _finish(planned, started, place, args, console)


def _work(
    todo: list[Entry],
    place: Place,
    args: argparse.Namespace,
    console: Console,
    known: Sequence[RunRecord],
    first: Sequence[str],
) -> None:
    from harness.engine import Engine
    from harness.launch import run_entries

    run_entries(
        todo,
        place,
        reports=args.reports,
        device=args.device,
        workers=args.workers,
        fail_fast=args.fail_fast,
        console=console,
        on=args.on,
        cluster=args.cluster,
        detach=args.detach,
        per_device=args.per_device,
        overlap=args.overlap,
        known=known,
        engine=Engine(args.engine, args.fuse),
        first=first,
    )


def _tensorboard(
    planned: list[tuple[Suite, list[Entry]]], place: Place, args: argparse.Namespace, console: Console
) -> None:
    """The curves of all cells that have one as event files, where that was asked for."""
    if not args.tensorboard:
        return
    from harness.tensorboard import FOLDER, curves_of, export_curves, require_tensorboard

    require_tensorboard()
    for suite, entries in planned:
        export_curves(suite.name, curves_of(entries, place.out), place.out)
        console.print(f"tensorboard --logdir {place.out / FOLDER / suite.name}", highlight=False, soft_wrap=True)


def _finish(
    planned: list[tuple[Suite, list[Entry]]],
    started: dict[str, int],
    place: Place,
    args: argparse.Namespace,
    console: Console,
) -> int:
    from harness.plan import counts

    bad = False
    told: list[dict[str, Any]] = []
    for suite, entries in planned:
        states = counts(entries)
        bad |= any(state not in ("ok", "skip", "stale") for state in states)
        console.print(f"{suite.name}: " + ", ".join(f"{n} {state}" for state, n in states.items()), highlight=False)
        for problem in dict.fromkeys(e.problem for e in entries if e.problem and e.state != "skip"):
            console.print(f"  left out: {problem}", highlight=False, soft_wrap=True, markup=False)
        if states.get("stale"):
            console.print(
                "  stale: the source of a loss or model has changed since; --rerun stale runs these again",
                highlight=False,
            )
        told.append(_run_row(suite, entries, started[suite.name]))
        if args.only:
            continue  # a report of a part would replace that of the whole
        page = _page(suite, entries, place, args.reports, console)
        told[-1]["report"] = str(page)
        console.print(f"  report: {page}", highlight=False, soft_wrap=True)
    if args.json:
        print_json(told)
    return 1 if bad else 0


def _run_row(suite: Suite, entries: list[Entry], started: int) -> dict[str, Any]:
    """What `bench run --json` says of a suite; docs/suites.md names the keys."""
    from harness.plan import counts

    return {
        "suite": suite.name,
        "cells": len(entries),
        "started": started,
        "states": dict(counts(entries)),
        "not_ok": [
            {
                **e.cell.labels,
                "train_id": e.cell.train_id,
                "eval_id": e.cell.eval_id,
                "state": e.state,
                "message": e.cell.skip or e.problem or (e.record.message if e.record else ""),
            }
            for e in entries
            if e.state != "ok"
        ],
        "report": None,
    }


def _page(
    suite: Suite,
    entries: list[Entry],
    place: Place,
    reports: Path,
    console: Console,
    force: bool = False,
    formats: Sequence[str] | None = None,
    images: bool = False,
) -> Path:
    from harness.results import report_suite
    from harness.suite_file import FORMATS

    with _written(reports / suite.name):
        return report_suite(
            suite, entries, place, reports, force, formats or FORMATS, images=images, say=_sayer(console)
        )[0]


def _sayer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"  {text}", highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A report that cannot be written is one sentence."""
    try:
        yield
    except OSError as error:
        raise BenchError(f"the report cannot be written to {folder}: {error.strerror or error}.") from None


def _plan(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from harness.estimates import Estimates
    from harness.plan import counts, to_rerun
    from harness.tuning.studies import in_words

    planned = _load(args)
    estimates = Estimates(e.record for _, entries in planned for e in entries if e.record is not None)
    if args.json:
        rows = [
            _plan_row(s, e) | {"seconds": estimates.seconds(e.cell) if to_rerun([e], args.rerun) else None}
            for s, entries in planned
            for e in entries
        ]
        print_json(rows)
        return 0
    console = Console()
    for suite, entries in planned:
        table = Table(
            "data set", "model", "loss", "seeds", "state", title=f"{suite.name}: {len(entries)} cells", box=None
        )
        groups: dict[tuple[str, str, str], list[Entry]] = {}
        for e in entries:
            groups.setdefault((e.cell.dataset, e.cell.model_label, e.cell.loss_label), []).append(e)
        for (dataset, model, loss), group in groups.items():
            states = ", ".join(f"{n} {state}" for state, n in counts(group).items())
            table.add_row(dataset, model, loss, str(len(group)), states)
        console.print(table, markup=False)
        for reason in dict.fromkeys(e.cell.skip for e in entries if e.cell.skip):
            console.print(f"skipped: {reason}", markup=False, highlight=False)
        todo = to_rerun(entries, args.rerun)
        console.print(f"{len(todo)} cells to run{_expected(todo, estimates)}{in_words(todo)}", highlight=False)
        _data_notes(suite, args, console)
    return 0


def _expected(todo: Sequence[Entry], estimates: Estimates) -> str:
    """How long that will take, as far as it is known."""
    from harness.progress import duration

    seconds = estimates.total(e.cell for e in todo)
    if not todo:
        return ""
    if seconds is None:
        return "; how long they take is not known before one is finished"
    return f", about {duration(seconds)} of one process (from {estimates.known} finished)"


def _plan_row(suite: Suite, entry: Entry) -> dict[str, Any]:
    from harness.tuning.studies import budget

    study, trials = next(iter(budget([entry]).items()), (None, 0))  # cells of one study share its trials
    return {
        "suite": suite.name,
        "train_id": entry.cell.train_id,
        "eval_id": entry.cell.eval_id,
        "state": entry.state,
        "skip": entry.cell.skip,
        "study": study,
        "trials": trials,
        **{
            k: v
            for k, v in entry.cell.described().items()
            if k in ("dataset", "split", "fold", "seed", "model", "loss", "train")
        },
    }


def _data_notes(suite: Suite, args: argparse.Namespace, console: Console) -> None:
    """Say whether the data is there; a plan does not need it."""
    from harness.data.layouts import reader_of
    from harness.data.layouts.absent import and_more

    for manifest in suite.manifests.values():
        try:
            absent = reader_of(manifest, args.data).missing(manifest.cases)
            note = f"{absent[0]} is not there{and_more(absent)}. {manifest.spec.obtain.strip()}" if absent else ""
        except BenchError as error:
            note = str(error)
        if note:
            console.print(f"data: {' '.join(note.split())}", markup=False, highlight=False, soft_wrap=True)


def _report(args: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.cell import Place
    from harness.results import check_results, export_records
    from harness.suite_file import FORMATS
    from harness.yamlfile import nearest

    console = Console(stderr=args.json)
    place = Place(_outs(args)[0].resolve(), args.data.resolve() if args.data else None)
    if args.only:
        raise BenchError("--only: a report is of a whole suite; a part would replace it.")
    formats = [name.strip() for name in args.format.split(",")]
    for name in formats:
        if name not in FORMATS:
            raise BenchError(f"--format {name!r}{nearest(name, FORMATS)}: expected names out of {', '.join(FORMATS)}.")
    if args.with_images and args.commit:
        raise BenchError("--commit: a report made with --with-images is for your own eyes; leave out one of the two.")
    if args.merge and args.commit:
        raise BenchError("--commit: records are committed suite by suite; leave out --merge.")
    planned = _load(args)
    _tensorboard(planned, place, args, console)
    for part in [planned] if args.merge else [[one] for one in planned]:
        check_results(part)
    writable(args.reports)
    if args.merge:
        from harness.merge import report_merged

        with _written(args.reports / args.merge):
            page = report_merged(
                args.merge, planned, place, args.reports, formats, images=args.with_images, say=_sayer(console)
            )
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
        if args.json:
            cells = sum(len(entries) for _, entries in planned)
            print_json([{"report": args.merge, "cells": cells, "committed": None, "page": str(page)}])
        return 0
    told: list[dict[str, Any]] = []
    for suite, entries in planned:
        committed: int | None = None
        if args.commit:
            target = args.reports / suite.name / "records"
            committed = export_records(entries, target)
            console.print(f"{committed} records in {target}", highlight=False)
        page = _page(suite, entries, place, args.reports, console, force=True, formats=formats, images=args.with_images)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
        told.append({"report": suite.name, "cells": len(entries), "committed": committed, "page": str(page)})
    if args.json:
        print_json(told)
    return 0


def _clean(args: argparse.Namespace) -> int:
    from harness.api import load_suite
    from harness.clean import clean_command

    return clean_command(args, [load_suite(path, args.quick, args.data) for path in args.suites])


def _rank(args: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from harness.ranking.command import rank_command

    return rank_command(args)


def _check(args: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from harness.check.command import run_check

    return run_check(args.losses, args.json, args.out / "cache")


def _new(args: argparse.Namespace) -> int:
    from harness.new_loss import new_loss_command

    return new_loss_command(args.name, args.json)


def _landscape(args: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from harness.landscape.command import run_landscape

    return run_landscape(args.losses, args.out, args.json)


def _score(args: argparse.Namespace) -> int:
    from harness.scoring.command import Request, run_score

    if args.out is not None:
        if args.out.is_dir():
            raise BenchError(f"--out {args.out}: is a folder; name a file.")
        writable(args.out.parent)
    given = {name: value for name, value in vars(args).items() if name != "verb" and value is not None}
    return run_score(Request(**given))


def _records(args: argparse.Namespace) -> int:
    from harness.sharing.command import records_command

    return records_command(args)


def _list(args: argparse.Namespace) -> int:
    rows = LISTS[args.kind]()
    if args.json:
        print_json([{"name": n, "about": t} for n, t in rows])
        return 0
    width = max((len(n) for n, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:{width}}  {text}".rstrip())
    return 0


def _data(args: argparse.Namespace) -> int:
    from harness.data.command import data_command

    return data_command(args)


VERBS: dict[str, Verb] = {
    "run": _run,
    "plan": _plan,
    "report": _report,
    "rank": _rank,
    "clean": _clean,
    "list": _list,
    "check": _check,
    "new": _new,
    "landscape": _landscape,
    "score": _score,
    "records": _records,
    "data": _data,
}

if __name__ == "__main__":
    sys.exit(main())
