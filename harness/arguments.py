"""The arguments of every verb of `bench`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from harness import __version__
from harness.backends.arguments import add_cluster_arguments
from harness.errors import BenchError
from harness.listing import LISTS
from harness.local_arguments import add_local_arguments
from harness.paths import folder
from harness.ranking.arguments import add_arguments as add_rank_arguments
from harness.sharing.arguments import records_arguments

Verb = Callable[[argparse.Namespace], int]
_TENSORBOARD = "also write the curves as event files, in OUT/tensorboard/SUITE"


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are sentences like all others."""

    def error(self, message: str) -> NoReturn:
        raise BenchError(f"{message.removeprefix('argument ')}; see {self.prog} --help.")


def parser_of(act: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The parser of the command line; `act` has what each verb does, by its name.

    Parsing raises `BenchError` for what it cannot read.
    """
    parser = _Parser(
        prog="bench",
        description="Compare loss functions for image segmentation: same seeds, same batches, same patients.",
    )
    parser.add_argument("--version", action="version", version=f"bench {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, text in (
        ("run", "train and measure what is missing of a suite, then write its report"),
        ("plan", "show every cell of a suite and its state, and stop before work"),
    ):
        sub = _verb(verbs, name, text)
        _suite_arguments(sub)
        sub.add_argument("--rerun", choices=("diverged", "stale", "all"), help="also run cells of this state again")
        if name == "run":
            add_local_arguments(sub)
            sub.add_argument(
                "--engine",
                default="single",
                choices=("single", "compiled", "fused", "mixed"),
                help="train each cell alone, with a compiled network, or those that differ only in their loss as one "
                "(default: single)",
            )
            sub.add_argument(
                "--fuse", type=int, metavar="K", help="fuse at most K cells (default: all, as memory goes)"
            )
            sub.add_argument("--fail-fast", action="store_true", help="start nothing more after the first failed cell")
            add_cluster_arguments(sub)
            sub.add_argument("--tensorboard", action="store_true", help=_TENSORBOARD)
            sub.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to stderr")
        else:
            sub.add_argument("--json", action="store_true", help="print the plan as JSON")
        sub.set_defaults(verb=act[name])
    report = _verb(verbs, "report", "write the report of a suite from its records")
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
    report.add_argument("--tensorboard", action="store_true", help=_TENSORBOARD)
    report.add_argument("--json", action="store_true", help="print what was written as JSON")
    report.set_defaults(verb=act["report"])
    ranking = _verb(verbs, "rank", "say where a loss stands among the measured losses of a suite")
    add_rank_arguments(ranking, _root())
    ranking.set_defaults(verb=act["rank"])
    clean = _verb(verbs, "clean", "list what of the results no plan asks for, and remove it with --yes")
    _clean_arguments(clean)
    clean.set_defaults(verb=act["clean"])
    listing = _verb(verbs, "list", "list losses, models, metrics, profiles, engines, data sets or suites")
    listing.add_argument("kind", choices=tuple(LISTS))
    listing.add_argument("--json", action="store_true", help="print as JSON")
    listing.set_defaults(verb=act["list"])
    check = _verb(verbs, "check", "check that a loss does what a loss should")
    check.add_argument(
        "losses", nargs="+", metavar="LOSS", help="a name, file.py:Class, 'name: {argument: value}', all"
    )
    check.add_argument("--json", action="store_true", help="print the certificates as JSON")
    check.add_argument(
        "--out", type=folder, default=Path("runs"), metavar="DIR", help="keeps what a loss prepares once"
    )
    check.set_defaults(verb=act["check"])
    new = _verb(verbs, "new", "write a file to start from: a loss of your own")
    new.add_argument("kind", choices=("loss",))
    new.add_argument("name", metavar="NAME", help="my_loss writes my_loss.py with the class MyLoss, here")
    new.add_argument("--json", action="store_true", help="print file and class as JSON")
    new.set_defaults(verb=act["new"])
    landscape = _verb(verbs, "landscape", "show how losses answer to a prediction that gets worse, untrained")
    landscape.add_argument(
        "losses", nargs="+", metavar="LOSS", help="a name, file.py:Class, 'name: {argument: value}', all"
    )
    landscape.add_argument("--json", action="store_true", help="print paths and what was left out as JSON")
    landscape.add_argument(
        "--out", type=folder, default=Path("runs"), metavar="DIR", help="writes DIR/landscape (default: runs)"
    )
    landscape.set_defaults(verb=act["landscape"])
    _score_arguments(_verb(verbs, "score", "measure predictions made elsewhere against their references"), act["score"])
    records = _verb(verbs, "records", "pack records to pass them on, take in or merge those of others")
    records_arguments(records, _root(), act["records"])
    data = _verb(verbs, "data", "show a data set: licence, how to obtain it, what is missing")
    data.add_argument("manifest", help="name of a manifest, or a file")
    data.add_argument("--data", type=folder, default=_root(), metavar="DIR", help="folder of data sets (or BENCH_DATA)")
    data.add_argument("--verify", action="store_true", help="read every case: faults, shapes, spacing, classes")
    data.add_argument("--phantom", type=Path, metavar="DIR", help="write a small phantom in the data set's own layout")
    data.add_argument("--from-nifti", type=Path, metavar="DIR", help="write a manifest with spacings from NIfTI files")
    data.add_argument("--json", action="store_true", help="print as JSON")
    data.set_defaults(verb=act["data"])
    return parser


def _verb(verbs: argparse._SubParsersAction[_Parser], name: str, text: str) -> _Parser:
    """The parser of a verb, whose own help begins with what that of `bench` says of it."""
    return verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _suite_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suites", nargs="+", metavar="SUITE", help="a suite file, or the name of one that ships with bench"
    )
    parser.add_argument(
        "--data", type=folder, default=_root(), metavar="DIR", help="folder of data sets (or BENCH_DATA)"
    )
    parser.add_argument(
        "--out",
        type=folder,
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


def _clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List checkpoints of trainings that ended, temporary files of killed processes and stale results, with sizes; "
        "--yes removes them. Name all suites that share the folder of results."
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="a suite file, or the name of one that ships")
    parser.add_argument(
        "--data", type=folder, default=_root(), metavar="DIR", help="folder of data sets (or BENCH_DATA)"
    )
    parser.add_argument("--out", type=folder, metavar="DIR", help="folder of results (default: runs)")
    parser.add_argument("--quick", action="store_true", help="the results of the suites' small forms")
    parser.add_argument("--orphans", action="store_true", help="also results of these suites that no cell of them has")
    parser.add_argument("--cache", action="store_true", help="also preprocessed cases; they are made again when needed")
    parser.add_argument("--yes", action="store_true", help="remove what is listed")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def _score_arguments(parser: argparse.ArgumentParser, verb: Verb) -> None:
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
    parser.add_argument("--json", action="store_true", help="print rows and means as JSON")
    parser.add_argument("--workers", type=int, metavar="N", help="processes at once (default: all cores)")
    parser.set_defaults(verb=verb)


def _root() -> str | None:
    return os.environ.get("BENCH_DATA") or None
