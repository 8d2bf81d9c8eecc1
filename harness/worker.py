"""One cell from start to record, and the process that runs cells one after another."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.cell import Cell, Place
from harness.cell_cases import Cases as Cases
from harness.cell_cases import prepare_case
from harness.cell_log import log, memory_sentence
from harness.check.certificates import certificates_of
from harness.checkpoints import UnusableCheckpoint, save
from harness.claims import HELD, Lease, LostLease, take
from harness.data.conditions import CLEAN, kind_of, title_of
from harness.data.manifest import Manifest, load_manifest
from harness.errors import BenchError, first_line, os_sentence
from harness.evaluation import evaluate_cell, validator
from harness.fused import train, train_one
from harness.loss_scores import loss_scores
from harness.losses.build import build_loss
from harness.losses.prepared import prepare_loss
from harness.machine import die_with_parent, empty_cache, environment, named, out_of_memory, peak, reset_peak
from harness.metrics.engines import check_engine
from harness.models.build import build_model, digest, digest_of_state
from harness.models.weights import load_initial
from harness.records import RETRIED, RunRecord, record_at, write_rows
from harness.resolve import current_digest
from harness.seeds import seed_of
from harness.train import Hooks, Stopped, Trainer
from harness.tuning.study import Choice, choice_of

Report = Callable[[int, int, float], None]
# From a cell to its record, with a pause: a trainer comes out, and goes on when that has trained.
Course = Generator[Trainer, None, RunRecord]


def run_cell(
    cell: Cell,
    place: Place,
    cases: Cases | None = None,
    report: Report = lambda done, total, loss: None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    engine: str = "single",
) -> RunRecord:
    """Train and evaluate one cell: the unit of everything.

    Never raises for what a cell can do wrong: the record says it. A finished cell is returned as it is, an unfinished
    one continues from its checkpoint, the way it was begun; `fresh` forgets what is there, when the cell's turn has
    come. One that was not begun trains as `engine` says: "single" or "compiled". For a cell that another process runs,
    on this host or another, the answer is a record of which `claims.is_held` is true.
    """
    course = _course(cell, place, cases or Cases(place), report, stop, fresh)
    ended: Exception | None = None
    try:
        train_one(next(course), engine, lambda _, text: log(cell.folder(place.out), text))
    except StopIteration as done:
        record: RunRecord = done.value
        return record
    except Exception as error:
        ended = error
    return _record_of(course, ended)


def run_group(
    cells: Sequence[Cell],
    place: Place,
    cases: Cases | None = None,
    report: Report = lambda done, total, loss: None,
    stop: Callable[[], bool] = lambda: False,
    fresh: frozenset[str] = frozenset(),
) -> Iterator[RunRecord]:
    """Train cells that differ only in their loss as one (`harness.fused`), and evaluate each; as `run_cell` otherwise.

    Args:
        cells: The cells, of distinct trainings.
        place: As in `run_cell`.
        cases: As in `run_cell`.
        report: Told of the group's progress, once for all cells that train together.
        stop: As in `run_cell`.
        fresh: `eval_id` of the cells for which what is there is forgotten.

    Yields:
        The record of every cell, as it is made.
    """
    cases, told = cases or Cases(place), -1

    def once(done: int, total: int, loss: float) -> None:
        nonlocal told
        if done > told:
            told = done
            report(done, total, loss)

    courses: dict[Trainer, Course] = {}
    with contextlib.ExitStack() as stack:
        for cell in cells:
            course = _course(cell, place, cases, once, stop, cell.eval_id in fresh)
            stack.callback(course.close)  # gives its claim back, whatever happens to the others
            try:
                courses[next(course)] = course
            except StopIteration as ended:
                yield ended.value
        for trainer, error in train([*courses], lambda t, text: log(t.cell.folder(place.out), text)):
            yield _record_of(courses.pop(trainer), error)
            told = -1  # those that did not train with it have their training before them


def _record_of(course: Course, error: Exception | None) -> RunRecord:
    """Let a cell go on that has trained, or whose training ended with an exception."""
    try:
        if error is None:
            next(course)
        else:
            course.throw(error)
    except StopIteration as ended:
        record: RunRecord = ended.value
        return record
    raise RuntimeError("a cell trains once")


def _course(cell: Cell, place: Place, cases: Cases, report: Report, stop: Callable[[], bool], fresh: bool) -> Course:
    folder = cell.folder(place.out)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lease = take(folder)
        except OSError as error:
            return _record(cell, "error", os_sentence(error))
        if lease is None:
            return _record(cell, "interrupted", HELD)
        stack.enter_context(lease)
        if lease.before is not None:
            log(folder, f"taken over from {lease.before}, which is gone or silent")
        try:
            if fresh:
                _forget(cell, place, lease)
            if (done := finished(cell, place.out)) is not None:
                return done
            record = yield from _attempt(cell, place, cases, report, lambda: stop() or lease.lost, lease)
            return _store(record, cell, place, lease)
        except LostLease:
            log(folder, f"another process took this cell over from process {os.getpid()}; what it made is discarded")
            with contextlib.suppress(OSError):
                return finished(cell, place.out) or _record(cell, "interrupted", HELD)
            return _record(cell, "interrupted", HELD)
        except OSError as error:
            return _record(cell, "error", os_sentence(error))


def _forget(cell: Cell, place: Place, lease: Lease) -> None:
    """Remove what is there of a cell that is to be made again.

    A training that is newer than the cell's record was made again for another evaluation of it, whose record rests on
    it and on its curve: that one stays, if it is of the sources as they are.
    """
    known, trained = (record_at(p) for p in (cell.eval_folder(place.out) / "record.json", lease.folder / "train.json"))
    lease.remove(cell.eval_folder(place.out))
    if known is not None and trained is not None:
        newer = not trained.cost.items() <= known.cost.items()
        if newer and all(trained.sources.get(part) == cell.sources[part] for part in ("loss", "model")):
            log(lease.folder, "the training was made again for another evaluation since; this one is made of it")
            return
    for name in ("train.json", "checkpoint.pt"):
        lease.remove(lease.folder / name)


def _attempt(cell: Cell, place: Place, cases: Cases, report: Report, stop: Callable[[], bool], lease: Lease) -> Course:
    try:
        try:
            return (yield from _run(cell, place, cases, report, stop, lease))
        except UnusableCheckpoint as error:
            log(lease.folder, f"{error} The training starts anew.")
            lease.remove(lease.folder / "checkpoint.pt")
            return (yield from _run(cell, place, cases, report, stop, lease))
    except LostLease:
        raise
    except Stopped:
        return _record(cell, "interrupted", "stopped before its end; the same command continues it")
    except BenchError as error:
        return _record(cell, "error", str(error))
    except OSError as error:
        log(lease.folder, traceback.format_exc())
        return _record(cell, "error", os_sentence(error))
    except Exception as error:  # whatever a user's loss raises fails its cell and no other
        log(lease.folder, traceback.format_exc())
        if out_of_memory(error):
            return _out_of_memory(cell, place, error)
        return _record(cell, "error", f"{type(error).__name__}: {first_line(error)} ({_where(error)})")


def _run(cell: Cell, place: Place, cases: Cases, report: Report, stop: Callable[[], bool], lease: Lease) -> Course:
    if cell.skip:
        return _record(cell, "skip", cell.skip)
    losses = [(cell.loss, cell.loss_digest), *((one["loss"], one["digest"]) for one in cell.scored_by.values())]
    edited = any(digest_of(spec) != known for spec, known in losses)
    if edited or current_digest(cell.model_source.target) != cell.model_source.digest:
        raise BenchError("the source of the loss or of the model was edited after the run was planned; run it again")
    check_engine(cell.engine)  # before an hour of training
    manifest = load_manifest(cell.manifest_path, Path(cell.manifest_path).parent, place.root, phantom=cell.quick)
    device = torch.device(place.device)
    model = _model(cell, manifest, cases.view(cell, manifest))
    scores = loss_scores(cell, _facts(cell, manifest), lambda: cases.train_set(cell, manifest)[2], device)
    record = _trained(lease.folder, model)
    if record is not None:
        model.to(device)
    else:
        if cell.init_path is not None:
            load_initial(model, Path(cell.init_path), cell.model["init"])
        tuned = _tuned(cell, place)
        record = yield from _train(tuned.cell, place, cases, manifest, model, report, stop, lease)
        record = replace(record, train_id=cell.train_id, cell=cell.described(), tuned=tuned.told)
        record.write(lease.folder / "train.json", lease.write)
        lease.remove(lease.folder / "checkpoint.pt")
    record = replace(record, eval_id=cell.eval_id, cell=cell.described())  # the training can be of another evaluation
    if record.status != "ok":
        return record
    folder = lease.stage / cell.eval_id
    seconds, tested, rows = evaluate_cell(cell, place, cases, manifest, model, scores, folder)
    return replace(
        record,
        cost=record.cost | {"eval_s": seconds},
        fingerprints=record.fingerprints | {"test_data": tested},
        files=record.files | {"cases.csv": rows},
        sources={k: v for k, v in record.sources.items() if k in ("loss", "model")} | cell.scoring_sources,
    )


def _trained(folder: Path, model: torch.nn.Module) -> RunRecord | None:
    """The record of a training that is whole, with its weights in the model; else None and a line in the log.

    One that diverged has no weights.

    Raises:
        OSError: The system refuses to read a file, which says nothing of its content.
    """
    path = folder / "train.json"
    try:
        if not path.is_file():
            return None
        if (record := record_at(path)) is None:
            raise BenchError(f"{path}: damaged.")
        curve = (folder / "curve.csv").read_bytes()
        if hashlib.sha256(curve).hexdigest() != record.files.get("curve.csv", hashlib.sha256(curve).hexdigest()):
            raise BenchError(f"{folder / 'curve.csv'}: its SHA-256 is not that in train.json.")
        if record.status != "ok":
            return record
        weights = _weights(folder / "weights.pt")
        if digest_of_state(weights) != record.weights:
            raise BenchError(f"{folder / 'weights.pt'}: its SHA-256 is not that in train.json.")
        model.load_state_dict(weights)
    except (BenchError, FileNotFoundError) as error:
        said = str(error) if isinstance(error, BenchError) else f"{error.filename}: is not there."
        log(folder, f"{said} The training starts anew.")
        return None
    return record


def _weights(path: Path) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    try:
        found: dict[str, torch.Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise TypeError
    except Exception as error:  # torch raises many kinds for a damaged file
        raise BenchError(f"{path}: damaged weights ({type(error).__name__}).") from None
    return found


def _model(cell: Cell, manifest: Manifest, view: dict[str, Any]) -> torch.nn.Module:
    flat = "slices" in view
    grid = view.get("resample", {}).get("spacing")
    if grid is not None and flat:
        grid = [s for i, s in enumerate(grid) if i != view["slices"]["axis"]]
    torch.manual_seed(seed_of("init", cell.seed_base))
    return build_model(
        cell.model_source.target,
        cell.model["args"],
        in_channels=len(manifest.spec.modalities),
        num_classes=manifest.num_classes,
        spatial_dims=2 if flat else 3,
        size=list(view["slices" if flat else "patches"]["size"]),
        spacing=grid,
    )


def _facts(cell: Cell, manifest: Manifest) -> dict[str, Any]:
    """What a loss may be told of the data set, but for what is counted in its labels."""
    return {
        "num_classes": manifest.num_classes,
        "spatial_dims": 2 if "slices" in cell.data["view"] else 3,
        "ignore_index": 255,
        "has_ignored": manifest.spec.ignore is not None,
    }


def _train(
    cell: Cell,
    place: Place,
    cases: Cases,
    manifest: Manifest,
    model: torch.nn.Module,
    report: Report,
    stop: Callable[[], bool],
    lease: Lease,
) -> Course:
    folder, device = lease.folder, torch.device(place.device)
    data, labels, counted = cases.train_set(cell, manifest)
    classes = manifest.num_classes
    facts = {**_facts(cell, manifest), **counted}
    if kind_of(cell.data["labels"]) == "partial":
        facts["has_ignored"] = True  # what is not annotated
    checked = certificates_of(cell.loss, place.cache / "checks", classes)
    reset_peak(device)
    torch.manual_seed(seed_of("loss", cell.seed_base))
    loss = prepare_loss(
        build_loss(cell.loss, facts),
        cell.loss,
        labels.tensors,
        key=cases.fingerprint,
        seed=0,  # one preparation for all repeats, as of a published network
        folder=place.cache / "prepared",
        device=device,
    )
    trainer: Trainer
    path = folder / "checkpoint.pt"

    def began(step: int) -> None:
        resumed = f", resumed from step {step}" if step else ""
        log(folder, f"{cell.title} on {named(device)}: {trainer.steps} steps{resumed}")

    hooks = Hooks(report, stop, validator(cell, cases, manifest, device), began, lease.write, partial(_turn, place))
    trainer = Trainer(cell, model, loss, data, classes, device, hooks, path)
    view = cases.view(cell, manifest)
    told = {} if view == cell.data["view"] else {"view": json.dumps(view, sort_keys=True)}  # words became numbers
    for text in told.values():
        log(folder, f"view of the data: {text}")
    if cell.data["labels"] != CLEAN:
        told["labels"] = json.dumps(cases.changed, sort_keys=True)
        log(folder, f"labels degraded ({title_of(cell.data['labels'])}): {told['labels']}")
    try:
        trainer.begin()  # a checkpoint of no use shows before other cells wait for this one
        yield trainer
    except Stopped:
        kept = "checkpoint written" if path.is_file() else "it had not begun"
        log(folder, f"stopped at step {trainer.progress.step} of {trainer.steps}, {kept}")
        raise
    state = trainer.progress
    columns = list(dict.fromkeys(key for row in state.curve for key in row))
    curve = write_rows(folder / "curve.csv", columns, state.curve, lease.write)
    if not state.diverged and not all(bool(torch.isfinite(v).all()) for v in model.state_dict().values()):
        state.diverged = "the trained weights are not finite numbers"
    if not state.diverged:
        weights = {k: v.cpu() for k, v in model.state_dict().items()}
        lease.write(folder / "weights.pt", lambda stream: save(weights, stream))
    log(folder, f"{state.diverged or 'trained'}, {state.step} of {trainer.steps} steps in {state.seconds:.1f} s")
    cost = {
        "train_s": state.seconds,
        "step_ms": 1000 * (state.seconds - state.aside) / max(state.step, 1),
        "peak_rss_mb": peak(device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state.step,
        "targets_ms": 1000 * state.targets / max(state.step, 1),
    }
    return replace(
        _record(cell, "diverged" if state.diverged else "ok", state.diverged),
        eval_id="",
        fingerprints=state.fingerprints | {"train_data": cases.fingerprint} | told,
        weights=digest(model),
        cost=cost,
        environment=environment(device) | _beside(place) | trainer.engine,
        checks=checked,
        files={"curve.csv": curve},
    )


@contextlib.contextmanager
def _turn(place: Place, stop: Callable[[], bool]) -> Iterator[None]:
    """The right to train on the device; what is not in use of its memory is left to the others before and after.

    Raises:
        Stopped: There was none before `stop` said so.
    """
    if place.turns is None:
        yield
        return
    empty_cache(place.device)
    with place.turns.taken(stop) as mine:
        if not mine:
            raise Stopped
        try:
            yield
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # what they hold would be missing in the next training
            raise
        finally:
            empty_cache(place.device)


def _beside(place: Place) -> dict[str, Any]:
    """What shared the device with the training, as the record says it; each worker on a CPU has a core of its own."""
    return {} if place.device == "cpu" or place.beside == 1 else {"processes": place.beside}


def _tuned(cell: Cell, place: Place) -> Choice:
    """The cell as its trials chose it; a cell that is not tuned as it is."""
    return choice_of(cell, place.out) if "tune" in cell.train else Choice(cell, {})


def finished(cell: Cell, out: Path) -> RunRecord | None:
    """The record of a cell that needs no more work; one that is damaged, or was skipped before, is none.

    A trial that failed is an answer to its study, which removes the record of one that is to be tried again.

    Raises:
        OSError: The system refuses to read it.
    """
    record = record_at(cell.eval_folder(out) / "record.json")
    if record is None or (record.train_id, record.eval_id) != (cell.train_id, cell.eval_id):
        return None  # a record of another cell in this folder is damage, too
    if record.status == "skip" and not cell.skip:
        return None
    answer = cell.trial is not None and record.status != "interrupted" and record.sources == cell.sources
    return None if record.status in RETRIED and not answer else record


def digest_of(loss: dict[str, Any]) -> str:
    """Digest of the sources of a loss and of all its parts, as they stand on disk now."""
    if "sum" in loss:
        return "+".join(digest_of(term["loss"]) for term in loss["sum"])
    return current_digest(loss["class"])


def _record(cell: Cell, status: str, message: str) -> RunRecord:
    return RunRecord(cell.train_id, cell.eval_id, status, message, cell.described(), sources=cell.sources)


def _out_of_memory(cell: Cell, place: Place, error: BaseException) -> RunRecord:
    trained = (cell.folder(place.out) / "train.json").is_file()
    return _record(cell, "oom", memory_sentence(cell, str(error), place, training=not trained))


def _store(record: RunRecord, cell: Cell, place: Place, lease: Lease) -> RunRecord:
    """Publish the record; where the disk refuses even that, the parent still learns what happened."""
    seconds = f" in {record.cost['eval_s']:.1f} s" if "eval_s" in record.cost else ""
    log(cell.folder(place.out), record.status + (f": {record.message}" if record.message else f", evaluated{seconds}"))
    try:
        return lease.publish(record, cell.eval_folder(place.out))
    except OSError as error:
        return replace(record, status="error", message=os_sentence(error))


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no place"


def worker_main(connection: Connection, place: Place, run: Callable[..., RunRecord]) -> None:
    """Serve one parent: prepare cases and run cells until told to stop, or until the parent is gone.

    The process is settled (`harness.machine.settle`).
    """
    stopping = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopping
        stopping = True

    def tell(kind: str, content: Any) -> None:
        nonlocal stopping
        try:
            connection.send((kind, content))
        except OSError:  # the parent is gone: keep the checkpoint and end
            stopping = True

    def report(done: int, total: int, loss: float) -> None:
        tell("progress", (done, total, loss))

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    die_with_parent()
    if place.turns is not None:
        place = replace(place, turns=replace(place.turns, tell=partial(tell, "waits")))
    cases = Cases(place)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while not stopping:
            task, payload = connection.recv()
            if task == "stop":
                return
            if task == "prepare":
                connection.send(("prepared", prepare_case(place, *payload)))
                continue

            connection.send(("started", None))
            if task == "group":
                cells, again = payload
                for record in run_group(cells, place, cases, report, lambda: stopping, again):
                    connection.send(("record", record))
                continue
            cell, fresh = payload
            record = run(cell, place, cases, report, lambda: stopping, fresh)
            connection.send(("record", record))
