"""`rank`: check, train what is missing of the losses asked for, and place them among the records of a suite."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell import Place as Where
from harness.errors import BenchError
from harness.launch import run_entries
from harness.metrics.table import metric_of
from harness.plan import Entry, counts, make_plan, to_rerun
from harness.ranking.asked import RankSuite, extended, parse_loss
from harness.ranking.differences import differences, hardware_differs, load
from harness.resolve import forget
from harness.results import run_command, voxels_of
from harness.rows import Tables, frames
from harness.store import Home
from harness.suite import Suite, load_suite
from harness.tuning.studies import in_words
from harness.yamlfile import nearest

if TYPE_CHECKING:
    from rich.console import Console

    from harness.check import Certificate
    from harness.ranking.place import Standing
    from harness.report.verdicts import Ranking

NOT_STOPPING = "identity"  # a loss that another one equals can be ranked: as what it is


class CheckFailed(BenchError):
    """A loss does not pass its check; nothing was trained.

    Attributes:
        certificates: Of all losses that were checked, by label.
    """

    def __init__(self, text: str, certificates: Mapping[str, Certificate]) -> None:
        super().__init__(text)
        self.certificates = dict(certificates)


@dataclass(frozen=True)
class Ranked:
    """What `rank` found.

    Attributes:
        suite: Name of the suite.
        baseline: The loss that the others are compared with.
        standings: One for each loss, in the order asked for.
        checks: Outcome of `bench check` by label: failed and declared properties with what was seen.
        states: Number of cells by state, by label.
        differences: What differs between the records of these losses and those of the others, as sentences.
        notes: Other sentences.
        page: The report, or None.
    """

    suite: str
    baseline: str
    standings: tuple[Standing, ...]
    checks: dict[str, dict[str, Any]]
    states: dict[str, dict[str, int]]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    page: Path | None

    @property
    def complete(self) -> bool:
        """Whether every cell of the losses has a result and none diverged."""
        return all(state in ("ok", "skip") for found in self.states.values() for state in found)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"page": None if self.page is None else str(self.page)}


def rank(
    losses: str | Sequence[str],
    suite: str | Path | Suite,
    *,
    args: Sequence[str] = (),
    baseline: str | None = None,
    data: str | Path | None = None,
    out: str | Path | Sequence[str | Path] = "runs",
    reports: str | Path = "reports",
    quick: bool = False,
    device: str = "auto",
    workers: int | None = None,
    rerun: str | None = None,
    page: bool = True,
    console: Console | None = None,
    on: str = "local",
    cluster: str | Path | None = None,
    detach: bool = False,
    per_device: int | None = None,
    overlap: bool | None = None,
) -> Ranked:
    """Place losses among those of a suite, whose records stay as they are.

    Each loss is checked first. Then its cells that have no record are run, and no others. Records of the suite's losses
    are taken from `out` and from `reports/*/records`.

    Args:
        losses: `my_loss.py:MyLoss`, `my_loss.py:MyLoss(gamma=2)`, a name, or several of them.
        suite: A suite file, the name of one that ships with the package, or a loaded suite.
        args: Further arguments of the loss as `name=value`, where there is one loss.
        baseline: Compare with this loss of the suite instead of its `rank.baseline`.
        data: Folder of data sets.
        out: Folder of results; of several the first is written to.
        reports: Folder of reports.
        quick: The small form of the suite.
        device: As in `harness.api.run`.
        workers: As in `harness.api.run`.
        rerun: Also run cells of these losses of the state "diverged", "stale" or "all" again.
        page: Whether to write the report `reports/SUITE+LOSS`.
        console: For progress; none is shown without it.
        on: Where the cells run: "local", "slurm" or "ray".
        cluster: A file that describes the cluster.
        detach: Submit to the cluster and go on; cells that are not finished have no result yet.
        per_device: As in `harness.api.run`.
        overlap: As in `harness.api.run`.

    Returns:
        Tier, rank and difference from the baseline of each loss, with what they rest on.

    Raises:
        CheckFailed: A loss does not pass its check in more than being another loss.
        BenchError: A loss or the suite cannot be read, the baseline has no record, or the data is not there.
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written.
    """
    from rich.console import Console as Screen

    quiet = console or Screen(quiet=True)
    outs = [Path(out)] if isinstance(out, (str, Path)) else [Path(one) for one in out]
    place, reports = Where(outs[0].resolve(), Path(data).resolve() if data is not None else None), Path(reports)
    forget()
    loaded = suite if isinstance(suite, Suite) else load_suite(suite, quick, place.root)
    whole = _extended(loaded, [losses] if isinstance(losses, str) else losses, args)
    entries = make_plan(whole, outs, reports)
    against = _baseline(whole, entries, baseline, place.root, reports)
    ours = [e for e in entries if e.cell.loss_label in whole.ranked]
    todo = [e for e in to_rerun(ours, rerun) if not e.cell.skip]
    if todo:
        from harness.preparing import check_data

        if on == "local":
            check_data([e.cell for e in todo], place.root)  # before the seconds of a check
    certificates = _checked(whole, place.cache / "prepared", quiet)
    twins = _twins(whole, place.cache / "prepared")
    if todo:
        names = ", ".join(whole.ranked)
        quiet.print(f"{len(todo)} of {len(ours)} cells of {names} to run{in_words(todo)}", highlight=False)
        run_entries(
            todo,
            place,
            reports=reports,
            device=device,
            workers=workers,
            console=quiet,
            on=on,
            cluster=Path(cluster) if cluster is not None else None,
            detach=detach,
            per_device=per_device,
            overlap=overlap,
            known=[e.record for e in entries if e.record is not None],
        )
        entries = make_plan(whole, outs, reports)
    tables = frames(counted(entries, whole.ranked), Home(place.out, whole.name))
    ranking = ranking_of(whole, against)
    found = placed(whole, entries, tables, ranking, twins)
    ours = [e for e in entries if e.cell.loss_label in whole.ranked]
    result = Ranked(
        whole.base,
        against,
        tuple(found),
        {name: _short(certificate) for name, certificate in certificates.items()},
        {name: counts(e for e in ours if e.cell.loss_label == name) for name in whole.ranked},
        tuple(differences(entries, whole.ranked)),
        tuple([*_notes(whole, ours, certificates), *tables.notes]),
        None,
    )
    if not page:
        return result
    from harness.ranking.page import write_page

    return replace(
        result, page=write_page(whole, counted(entries, whole.ranked), tables, ranking, result, place, reports)
    )


def _extended(suite: Suite, losses: Sequence[str], args: Sequence[str]) -> RankSuite:
    if not losses:
        raise BenchError("rank: no loss; name one or more, such as my_loss.py:MyLoss.")
    if args and len(losses) > 1:
        raise BenchError(
            "--arg: which of the losses is meant? Write the arguments with it: 'my_loss.py:MyLoss(gamma=2)'."
        )
    whole = extended(suite, [parse_loss(text, args, suite.path.parent) for text in losses])
    for label in whole.ranked:
        own = [c for c in whole.cells if c.loss_label == label]
        if all(c.skip for c in own):
            raise BenchError(f"nothing to run: {own[0].skip}.")
    return whole


def _baseline(suite: RankSuite, entries: Sequence[Entry], asked: str | None, root: Path | None, reports: Path) -> str:
    """The loss to compare with; it must have records before anything is trained."""
    labels = list(dict.fromkeys(e.cell.loss_label for e in entries if e.cell.loss_label not in suite.added))
    has = {e.cell.loss_label for e in entries if e.record is not None and e.record.status == "ok"}
    name = asked or suite.spec.rank.baseline or next((x for x in labels if x in has), labels[0])
    if name not in labels:
        raise BenchError(
            f"--baseline {name}: not one of the suite's losses{nearest(name, labels)}: {', '.join(labels)}."
        )
    if name not in has and name not in suite.ranked:
        found = f"{suite.base}: the baseline {name} has no record in the folders of results or in {reports}/*/records"
        beside = _beside(suite, name)
        if beside is not None and beside != reports.resolve():
            raise BenchError(f"{found}; there are some beside the suite: add --reports {shlex.quote(str(beside))}.")
        data = shlex.quote(str(root)) if root is not None else "FOLDER"
        needed = any(not m.phantom and m.layout[0] != "phantom" for m in suite.manifests.values())
        command = run_command(suite, suite.path) + f" --data {data}" * needed
        only = shlex.quote(f"loss={name}")
        raise BenchError(f"{found}; `{command} --only {only}` makes them, `{command}` those of all losses.")
    return name


def _beside(suite: RankSuite, loss: str) -> Path | None:
    """The folder of reports that lies beside the suite or its folder and has committed records of a loss."""
    ids = {c.train_id for c in suite.cells if c.loss_label == loss}
    here = suite.path.resolve().parent
    for folder in (here / "reports", here.parent / "reports"):
        if any((folder / suite.base / "records" / name).is_dir() for name in ids):
            return folder
    return None


def _checked(suite: RankSuite, prepared: Path, console: Console) -> dict[str, Certificate]:
    from harness.check import check_loss

    found: dict[str, Certificate] = {}
    specs = suite.twins or {}
    for label in suite.ranked:
        with console.status(f"checking {label}") if console.is_terminal else nullcontext():
            found[label] = _certificate(specs[label], check_loss, prepared)
    bad = {
        label: [line.name for line in certificate.failed if line.name != NOT_STOPPING]
        for label, certificate in found.items()
    }
    failed = [f"{label} ({', '.join(names)})" for label, names in bad.items() if names]
    if failed:
        raise CheckFailed(f"does not pass the check, so nothing was trained: {'; '.join(failed)}.", found)
    return found


def _certificate(spec: Mapping[str, Any], check: Any, prepared: Path) -> Certificate:
    """Of one loss; of a sum of the suite that of its parts, one after the other."""
    if "sum" not in spec:
        made: Certificate = check(spec, prepared=prepared)
        return made
    parts = [_certificate(term["loss"], check, prepared) for term in spec["sum"]]
    lines = tuple(line for part in parts for line in part.lines)
    return replace(parts[0], loss=" + ".join(p.loss for p in parts), passed=all(p.passed for p in parts), lines=lines)


def _twins(suite: RankSuite, prepared: Path) -> dict[str, tuple[str, ...]]:
    from harness.ranking.duplicates import duplicates

    specs = suite.twins or {}
    return {
        label: duplicates(specs[label], {k: v for k, v in specs.items() if k != label}, prepared)
        for label in suite.ranked
    }


def counted(entries: Sequence[Entry], ranked: Sequence[str]) -> list[Entry]:
    """The plan as it is compared: a stale record of a loss that is not ranked counts as what it is, ok or diverged."""
    return [
        replace(e, state=e.record.status)
        if e.state == "stale" and e.record is not None and e.cell.loss_label not in ranked
        else e
        for e in entries
    ]


def ranking_of(suite: Suite, baseline: str) -> Ranking:
    """What the suite ranks by, against this baseline."""
    from harness.report.verdicts import Ranking

    return Ranking(tuple(suite.spec.rank.by), baseline, suite.spec.rank.rope)


def placed(
    suite: RankSuite,
    entries: Sequence[Entry],
    tables: Tables,
    ranking: Ranking,
    twins: dict[str, tuple[str, ...]] | None = None,
) -> list[Standing]:
    """The places of the ranked losses.

    Args:
        suite: With the ranked losses.
        entries: Its plan.
        tables: Of the same plan, see `counted`.
        ranking: What to rank by.
        twins: For each ranked loss those that it equals.
    """
    from harness.ranking.place import standings
    from harness.report.frames import prepare

    pooled = [m for m in suite.spec.metrics if metric_of(m)[0].scope == "dataset"]
    ready = prepare(tables.cells, tables.cases, tables.curves, pooled, voxels_of(suite))
    same = not hardware_differs(entries, suite.ranked)
    compared = [e for e in entries if e.cell.loss_label in (*suite.ranked, ranking.baseline)]
    return standings(ready, ranking, suite.ranked, duplicates=twins, same_hardware=same, load=load(compared))


def _notes(suite: RankSuite, ours: Sequence[Entry], certificates: Mapping[str, Certificate]) -> list[str]:
    out = []
    stale = counts(ours).get("stale")
    if stale:
        out.append(
            f"STALE: the source of {', '.join(dict.fromkeys(e.cell.loss_label for e in ours if e.state == 'stale'))} "
            f"has changed since {stale} of its cells were trained; they do not count. --rerun stale trains them again."
        )
    for entry in ours:
        if entry.record is not None and entry.state not in ("ok", "stale", "skip"):
            out.append(f"{entry.state.upper()}: {entry.cell.title}: {entry.record.message}")
    out += [f"Left out: {reason}." for reason in dict.fromkeys(e.cell.skip for e in ours if e.cell.skip)]
    for label, certificate in certificates.items():
        for line in certificate.failed:  # only `identity` comes this far
            out.append(f"{label} fails {line.name} of bench check: {line.text}.")
        declared = [f"{line.name} ({line.reason})" for line in certificate.lines if line.outcome == "declared"]
        if declared:
            out.append(f"{label} lacks, as it declares: {', '.join(declared)}.")
    sums = {e.cell.loss_label: e.cell.loss for e in ours if "sum" in e.cell.loss and suite.spec.with_ is not None}
    for label, spec in sums.items():
        if label in suite.added:
            parts = " + ".join(f"{json.dumps(t['weight'])} × {_name(t['loss'])}" for t in spec["sum"])
            out.append(f"{label} is trained as the suite's rule `with` says: {parts}.")
    return out


def _name(spec: Mapping[str, Any]) -> str:
    return "(a sum)" if "sum" in spec else str(spec["name"]).rpartition(":")[2]


def _short(certificate: Certificate) -> dict[str, Any]:
    from harness.check.certificates import short

    return short(certificate)
