"""The command `bench`: verbs and exit codes. Nothing heavy is imported until a verb needs it.

Exit codes: 0 all done; 1 a cell failed or diverged; 2 a mistake of the user, in one sentence; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.errors import BenchError
from harness.listing import LISTS
from harness.processes import writable
from harness.ranking.arguments import add_arguments as add_rank_arguments
from harness.sharing.arguments import records_arguments

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cell import Place
    from harness.plan import Entry
    from harness.suite import Suite


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.verb(args))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Compare loss functions for image segmentation: same seeds, same batches, same patients.",
    )
    parser.add_argument("--version", action="version", version=f"bench {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, text in (
        ("run", _run, "train and measure what is missing of a suite, then write its report"),
        ("plan", _plan, "show every cell of a suite and its state, and stop before work"),
    ):
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _suite_arguments(sub)
        sub.add_argument("--rerun", choices=("diverged", "stale", "all"), help="also run cells of this state again")
        if name == "run":
            sub.add_argument(
                "--workers", type=int, metavar="N", help="processes at once (default: all cores, or one on a GPU)"
            )
            sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
            sub.add_argument("--fail-fast", action="store_true", help="start nothing more after the first failed cell")
        else:
            sub.add_argument("--json", action="store_true", help="print the plan as JSON")
        sub.set_defaults(verb=verb)
    report = verbs.add_parser("report", help="write the report of a suite from its records")
    _suite_arguments(report)
    report.add_argument("--commit", action="store_true", help="also copy the records to reports/SUITE/records, for git")
    report.add_argument(
        "--format", default="html,csv,latex", metavar="NAMES", help="what to write of html,csv,latex (default: all)"
    )
    report.add_argument(
        "--merge", metavar="NAME", help="one report of all suites in reports/NAME instead of one for each"
    )
    report.add_argument(
        "--with-images",
        action="store_true",
        help="show slices of the images whatever their licence, in reports/SUITE/with-images, for your own eyes",
    )
    report.set_defaults(verb=_report)
    ranking = verbs.add_parser("rank", help="say where a loss stands among the measured losses of a suite")
    add_rank_arguments(ranking, _root())
    ranking.set_defaults(verb=_rank)
    listing = verbs.add_parser("list", help="list losses, models, metrics, profiles, engines, data sets or suites")
    listing.add_argument("kind", choices=tuple(LISTS))
    listing.add_argument("--json", action="store_true", help="print as JSON")
    listing.set_defaults(verb=_list)
    check = verbs.add_parser("check", help="check that a loss does what a loss should")
    check.add_argument(
        "losses", nargs="+", metavar="LOSS", help="a name, file.py:Class, 'name: {argument: value}', all"
    )
    check.add_argument("--json", action="store_true", help="print the certificates as JSON")
    check.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="keeps what a loss prepares once")
    check.set_defaults(verb=_check)
    new = verbs.add_parser("new", help="write a file to start from: a loss of your own")
    new.add_argument("kind", choices=("loss",))
    new.add_argument("name", metavar="NAME", help="my_loss writes my_loss.py with the class MyLoss, here")
    new.add_argument("--json", action="store_true", help="print file and class as JSON")
    new.set_defaults(verb=_new)
    landscape = verbs.add_parser("landscape", help="show how losses answer to a prediction that gets worse, untrained")
    landscape.add_argument(
        "losses", nargs="+", metavar="LOSS", help="a name, file.py:Class, 'name: {argument: value}', all"
    )
    landscape.add_argument("--json", action="store_true", help="print paths and what was left out as JSON")
    landscape.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="writes DIR/landscape (default: runs)"
    )
    landscape.set_defaults(verb=_landscape)
    _score_parser(verbs.add_parser("score", help="measure predictions made elsewhere against their references"))
    records = verbs.add_parser("records", help="pack records to pass them on, take in or merge those of others")
    records_arguments(records, _root(), _records)
    data = verbs.add_parser("data", help="show a data set: licence, how to obtain it, what is missing")
    data.add_argument("manifest", help="name of a manifest, or a file")
    data.add_argument("--data", type=Path, default=_root(), metavar="DIR", help="folder of data sets (or BENCH_DATA)")
    data.add_argument("--verify", action="store_true", help="read every case: faults, shapes, spacing, classes")
    data.add_argument("--phantom", type=Path, metavar="DIR", help="write a small phantom in the data set's own layout")
    data.add_argument("--from-nifti", type=Path, metavar="DIR", help="write a manifest with spacings from NIfTI files")
    data.add_argument("--json", action="store_true", help="print as JSON")
    data.set_defaults(verb=_data)
    return parser


def _suite_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suites", nargs="+", metavar="SUITE", help="a suite file, or the name of one that ships with bench"
    )
    parser.add_argument("--data", type=Path, default=_root(), metavar="DIR", help="folder of data sets (or BENCH_DATA)")
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder of results (default: runs); plan and report take several, the first complete record wins",
    )
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="folder of reports (default: reports)"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=GLOB",
        help="only cells whose loss, model, dataset, seed or fold matches",
    )
    parser.add_argument("--quick", action="store_true", help="a small form of the suite on the phantom, in minutes")


def _score_parser(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure label images against references of the same names (nii, mha, mhd, nrrd, png, tif)."
    parser.add_argument("pred_dir", type=Path, metavar="PRED_DIR", help="folder of predicted label images")
    parser.add_argument("ref_dir", type=Path, metavar="REF_DIR", help="folder of reference label images")
    parser.add_argument("--labels", metavar="NAME=VALUE,...", help="liver=1,tumour=2+3; default: the values found")
    parser.add_argument("--manifest", metavar="NAME", help="take labels, ignore and regions from a data manifest")
    parser.add_argument("--ignore", type=int, metavar="VALUE", help="reference label that is left out of everything")
    parser.add_argument("--drop", metavar="VALUE,...", help="label values that count as background")
    parser.add_argument("--metrics", metavar="NAME,...", help="default: dice,hd95,asd; see bench list metrics; nsd@2")
    parser.add_argument("--profile", metavar="NAME,...", help="definition of the distances (default: voxel-max)")
    parser.add_argument("--engine", metavar="NAME", help="simpleitk (default), points or points-numba")
    parser.add_argument("--spacing", metavar="Z,Y,X", help="mm per axis instead of what the files say, or unknown")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all rows as CSV")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print rows and means as JSON")
    parser.add_argument("--workers", type=int, metavar="N", help="processes at once (default: all cores)")
    parser.set_defaults(verb=_score)


def _root() -> Path | None:
    return Path(os.environ["BENCH_DATA"]) if os.environ.get("BENCH_DATA") else None


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
    from harness.plan import make_plan, to_rerun

    console = Console(stderr=False)
    if len(_outs(args)) > 1:
        raise BenchError("--out: a run writes to one folder; give one. `bench report` and `bench plan` merge several.")
    planned = _load(args)
    todo: dict[str, Entry] = {}
    for suite, entries in planned:
        chosen = to_rerun(entries, args.rerun)
        todo |= {e.cell.eval_id: e for e in chosen}
        console.print(
            f"{suite.name}: {len(entries)} cells, {len(entries) - len(chosen)} done, {len(chosen)} to run",
            highlight=False,
        )
    place = Place(_outs(args)[0].resolve(), args.data.resolve() if args.data else None)
    if todo:
        _work(list(todo.values()), place, args, console)
        planned = [(s, make_plan(s, _outs(args), args.reports, args.only)) for s, _ in planned]
    return _finish(planned, place, args, console)


def _work(todo: list[Entry], place: Place, args: argparse.Namespace, console: Console) -> None:
    from harness.launch import run_entries

    run_entries(
        todo,
        place,
        reports=args.reports,
        device=args.device,
        workers=args.workers,
        fail_fast=args.fail_fast,
        console=console,
    )


def _finish(planned: list[tuple[Suite, list[Entry]]], place: Place, args: argparse.Namespace, console: Console) -> int:
    from harness.plan import counts

    bad = False
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
        if args.only:
            continue  # a report of a part would replace that of the whole
        page = _page(suite, entries, place, args.reports)
        console.print(f"  report: {page}", highlight=False, soft_wrap=True)
    return 1 if bad else 0


def _page(
    suite: Suite,
    entries: list[Entry],
    place: Place,
    reports: Path,
    force: bool = False,
    formats: Sequence[str] | None = None,
    images: bool = False,
) -> Path:
    from harness.results import report_suite
    from harness.suite_file import FORMATS

    with _written(reports / suite.name):
        return report_suite(suite, entries, place, reports, force, formats or FORMATS, images=images)[0]


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

    from harness.plan import counts, to_rerun

    planned = _load(args)
    if args.json:
        import json

        print(json.dumps([_plan_row(s, e) for s, entries in planned for e in entries], indent=1, ensure_ascii=False))
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
        console.print(f"{len(to_rerun(entries, args.rerun))} cells to run", highlight=False)
        _data_notes(suite, args, console)
    return 0


def _plan_row(suite: Suite, entry: Entry) -> dict[str, Any]:
    return {
        "suite": suite.name,
        "train_id": entry.cell.train_id,
        "eval_id": entry.cell.eval_id,
        "state": entry.state,
        "skip": entry.cell.skip,
        **{
            k: v
            for k, v in entry.cell.described().items()
            if k in ("dataset", "split", "fold", "seed", "model", "loss", "train")
        },
    }


def _data_notes(suite: Suite, args: argparse.Namespace, console: Console) -> None:
    """Say whether the data is there; a plan does not need it."""
    from harness.data.layouts import reader_of

    for manifest in suite.manifests.values():
        try:
            absent = reader_of(manifest, args.data).missing(manifest.cases)
            note = (
                f"{absent[0]} and {len(absent) - 1} more are not there. {manifest.spec.obtain.strip()}"
                if absent
                else ""
            )
        except BenchError as error:
            note = str(error)
        if note:
            console.print(f"data: {' '.join(note.split())}", markup=False, highlight=False, soft_wrap=True)


def _report(args: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.cell import Place
    from harness.results import export_records
    from harness.suite_file import FORMATS
    from harness.yamlfile import nearest

    console = Console()
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
    writable(args.reports)
    if args.merge:
        from harness.merge import report_merged

        with _written(args.reports / args.merge):
            page = report_merged(args.merge, planned, place, args.reports, formats, images=args.with_images)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
        return 0
    for suite, entries in planned:
        if args.commit:
            target = args.reports / suite.name / "records"
            console.print(f"{export_records(entries, target)} records in {target}", highlight=False)
        page = _page(suite, entries, place, args.reports, force=True, formats=formats, images=args.with_images)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 0


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
        import json

        print(json.dumps([{"name": n, "about": t} for n, t in rows], indent=1, ensure_ascii=False))
        return 0
    width = max((len(n) for n, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:{width}}  {text}".rstrip())
    return 0


def _data(args: argparse.Namespace) -> int:
    from harness.data.command import data_command

    return data_command(args)


if __name__ == "__main__":
    sys.exit(main())
