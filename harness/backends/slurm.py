"""`bench run --on slurm`: job arrays whose tasks run cells, and a parent that watches the records.

The parent trusts SLURM in nothing: a cell is done when its record says so, and a task that has left the queue without
one is lost, whatever its state. No torch in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from harness.backends import Asked, slurm_queue
from harness.backends.cluster_file import SlurmCluster, device_on, read_cluster
from harness.backends.slurm_ended import advanced, counts, ended, out_of_memory, record_of, why
from harness.backends.slurm_jobs import (
    CASES,
    CELLS,
    Submission,
    bundles,
    dealt,
    new_submission,
    parameters,
    preparations,
    submissions,
    submit,
    tidy,
)
from harness.backends.slurm_task import ELSEWHERE, Bundle, Cases, Mark, read_marks
from harness.cell import Cell, Place
from harness.claims import record_failure
from harness.errors import BenchError
from harness.plan import Entry
from harness.preparing import check_data
from harness.progress import RunProgress
from harness.records import RunRecord
from harness.runner import FAILED

QUEUE_EVERY = 3  # looks at the results for one at the queue
LINE_SECONDS = 30.0  # between lines about the queue
SENTENCES = 5  # about lost tasks at a time
AGAIN_SECONDS = 60.0  # before a cell that is held elsewhere, or an array that SLURM refused, is tried again
END_SECONDS = 90.0  # for cancelled jobs to leave the queue; SLURM's KillWait is 30 s


def run_cells(entries: Sequence[Entry], place: Place, asked: Asked, console: Console) -> list[RunRecord]:
    """Run cells as SLURM jobs; see `harness.backends.Backend`.

    Jobs of an earlier command that still hold some of these cells are attached to; no cell is submitted twice.

    Raises:
        BenchError: The cluster file has a mistake, there is no SLURM here, it refuses the jobs, or data is missing.
        KeyboardInterrupt: After Ctrl-C, when the jobs are cancelled.
    """
    cluster = read_cluster(asked.cluster)
    root = Path(cluster.data) if cluster.data is not None else place.root
    place = replace(place, root=root, device=device_on(cluster, place.device))
    slurm_queue.check_commands()
    if cluster.data is None or Path(cluster.data).is_dir():  # a disk of the nodes may not be here
        check_data([*(e.cell for e in entries), *getattr(asked.follow, "later", ())], root)
    return Watch(entries, place, cluster, asked, console).run()


@dataclass
class Lost:
    """What has become of a cell whose task ended without its record.

    Attributes:
        tries: How often in a row it was lost without getting anywhere.
        since: When it may be submitted again (monotonic seconds).
    """

    tries: int = 0
    since: float = 0.0


class Watch:
    """One run: what is still to be done, who holds it, and what SLURM was asked.

    Args:
        entries: The cells.
        place: As it is on the nodes.
        cluster: The cluster file.
        asked: What the user asked for.
        console: For progress.
    """

    def __init__(
        self, entries: Sequence[Entry], place: Place, cluster: SlurmCluster, asked: Asked, console: Console
    ) -> None:
        self.place, self.cluster, self.asked, self.console = place, cluster, asked, console
        self.folder = place.out / "slurm"
        self.open = {e.cell.eval_id: e.cell for e in entries}  # not ended
        self.fresh = {e.cell.eval_id for e in entries if not e.todo}  # finished ones that were asked for again
        self.fresh |= getattr(asked.follow, "fresh", frozenset())
        self.lost: dict[str, Lost] = {}
        self.held: dict[str, tuple[Submission, int]] = {}  # cell → task
        self.others: dict[str, tuple[Submission, int]] = {}  # cells of earlier commands that may join later
        self.jobs: dict[str, Submission] = {}  # by name
        self.records: list[RunRecord] = []
        self.failed = False
        self.refused = 0.0  # no submission before
        self._array = 0
        self._later = tuple(getattr(asked.follow, "later", ()))
        self._total = len(entries) + getattr(asked.follow, "total", 0)
        self._said, self._line = "", 0.0

    def run(self) -> list[RunRecord]:
        """Submit what is missing, and watch until every cell has ended."""
        try:
            self._attach()
            with RunProgress(self._total, self.console, out=self.place.out) as progress:
                for cell in [c for c in self.open.values() if c.skip]:
                    self._end(cell, record_failure(cell, self.place, "skip", cell.skip or ""), progress)
                self._submit()
                if self.asked.detach:
                    self._tell_detached()
                    return self.records
                self._watch(progress)
        except KeyboardInterrupt:
            self._cancel("cancelling the jobs; checkpoints are written (Ctrl-C again: do not wait)")
            raise
        there = slurm_queue.waiting(list(self.jobs))
        for job in self.jobs.values():
            if there is not None and job.name not in there:
                tidy(job)
        return self.records

    def _watch(self, progress: RunProgress) -> None:
        looks = 0
        while self.open:
            time.sleep(self.cluster.poll)
            self._look(progress)
            looks += 1
            if looks % QUEUE_EVERY == 0 and self.open:
                self._ask(progress)
            if self.failed and self.asked.fail_fast:
                self._cancel("a cell failed: cancelling the other jobs")
                return
            self._submit()

    # What an earlier command left running.

    def _attach(self) -> None:
        known = submissions(self.folder)
        there = slurm_queue.waiting([s.name for s in known])
        if there is None:
            raise BenchError("--on slurm: squeue does not answer; whether jobs of these cells run is not known.")
        for job in known:
            if job.name not in there:
                tidy(job)
                continue
            job.job = there[job.name].job
            if job.kind == CASES:
                self.jobs[job.name] = job
                continue
            marks = read_marks(job.seen)
            for index, task in enumerate(job.tasks):
                if not there[job.name].holds(index):
                    continue
                self.others |= {name: (job, index) for name in task if not ended(marks.get(name))}
        self._hold(self.open)
        if self.held:
            which = ", ".join(sorted(j.job for j in self.jobs.values() if j.kind == CELLS))
            self._print(f"{len(self.held)} cells are in SLURM jobs that still wait or run: {which}")

    def _hold(self, names: Iterable[str]) -> None:
        """Take over what jobs of earlier commands hold of these cells."""
        for name in [n for n in names if n in self.others]:
            job, _ = self.held[name] = self.others.pop(name)
            self.lost[name] = Lost(job.tries.get(name, 0))
            self.jobs[job.name] = job

    # Submission.

    def _submit(self) -> None:
        """Submit what nobody holds."""
        now = time.monotonic()
        if now < self.refused:
            return
        trainings = {self.open[name].train_id for name in self.held if name in self.open}
        due = [
            cell
            for name, cell in self.open.items()
            if name not in self.held
            and cell.train_id not in trainings  # two evaluations of one training take turns
            and (name not in self.lost or self.lost[name].since <= now)
        ]
        if not due:
            return
        self._array = self._array or slurm_queue.max_array_size()
        tasks = bundles(due, self.cluster.cells_per_task)
        arrays = [tasks[k : k + self._array] for k in range(0, len(tasks), self._array)]
        widths = [n for n in (self.asked.workers, self.cluster.at_once) if n is not None]
        at_once = max(1, min(widths) // len(arrays)) if widths else len(tasks)
        try:
            after = self._prepare(due) if len(tasks) > 1 else []
            for array in arrays:
                self._submit_cells(array, at_once, after)
        except BenchError as error:
            if not self.held:
                self._cancel("cancelling what it took before")
                raise
            self.refused = time.monotonic() + AGAIN_SECONDS  # such as a limit on the jobs of a user
            self._print(f"{error}; tried again later")

    def _submit_cells(self, tasks: list[list[Cell]], at_once: int, after: Sequence[str]) -> None:
        names = [[cell.eval_id for cell in task] for task in tasks]
        tries = {n: self.lost[n].tries for task in names for n in task if n in self.lost and self.lost[n].tries}
        job = new_submission(self.folder, CELLS, names, tries)
        work = [
            Bundle(index, tuple(task), frozenset(self.fresh.intersection(names[index])), self.place, job.seen)
            for index, task in enumerate(tasks)
        ]
        held = {name: (job, index) for index, task in enumerate(names) for name in task}
        self.held |= held  # before SLURM has them, so that Ctrl-C finds the job
        self._send(job, work, at_once, after)
        what = f"{_of(len(held), 'cell')} as SLURM job {job.job} with {_of(len(tasks), 'task')}"
        self._print(f"submitted {what}, logs in {job.folder}")

    def _prepare(self, cells: Iterable[Cell]) -> list[str]:
        """Submit the preparation of the cases that was never submitted; returns the ids of jobs to wait for.

        Otherwise all tasks would start with the same case at the same moment, and each would prepare all of them.
        """
        wanted = preparations([*cells, *self._later])
        done = set[str]()
        if self.place.cache.is_dir():  # else it was cleared, and what was done counts no more
            for job in submissions(self.folder):
                if job.kind == CASES:
                    done |= read_marks(job.seen).keys()
        there = slurm_queue.waiting([j.name for j in self.jobs.values() if j.kind == CASES]) or {}
        running = [j for j in self.jobs.values() if j.name in there]
        under_way = {name for job in running for task in job.tasks for name in task}
        missing = [name for name in wanted if name not in done and name not in under_way]
        if missing:
            job = new_submission(self.folder, CASES, dealt(missing, self.cluster.prepare.tasks))
            work = [
                Cases(index, {name: wanted[name] for name in task}, self.place, job.seen)
                for index, task in enumerate(job.tasks)
            ]
            self._send(job, work, len(work), [])
            running.append(job)
            self._print(f"submitted the preparation of {_of(len(missing), 'case')} as SLURM job {job.job}")
        needed = wanted.keys() - done
        return [job.job for job in running if any(name in needed for task in job.tasks for name in task)]

    def _send(self, job: Submission, work: list[Bundle] | list[Cases], at_once: int, after: Sequence[str]) -> None:
        self.jobs[job.name] = job
        try:
            submit(job, work, self.cluster, parameters(self.cluster, job, at_once, after))
        except BenchError:
            del self.jobs[job.name]
            self.held = {name: held for name, held in self.held.items() if held[0] is not job}
            tidy(job)
            raise

    # Records, and what SLURM believes.

    def _look(self, progress: RunProgress) -> None:
        """Take in the records that were written since; one listing for each submission."""
        for job in {id(job): job for job, _ in self.held.values()}.values():
            marks = read_marks(job.seen)
            for name in [n for n, (holder, _) in self.held.items() if holder is job and ended(marks.get(n))]:
                record = record_of(self.open[name], self.place)
                if record is not None and record.status == marks[name].status:
                    self._end(self.open[name], record, progress)

    def _ask(self, progress: RunProgress) -> None:
        """Ask for the queue; tasks that have been gone from it for long enough have ended."""
        jobs = {id(job): job for job, _ in self.held.values()}
        preparing = [job for job in self.jobs.values() if job.kind == CASES]
        there = slurm_queue.waiting([job.name for job in [*jobs.values(), *preparing]])
        if there is None:
            self._tell("squeue does not answer; the results are watched all the same")
            return
        self._tell_queue(there)
        now = time.monotonic()
        sentences: list[str] = []
        for job in jobs.values():
            marks: dict[str, Mark] | None = None
            fates: dict[int, str] | None = None
            for index in sorted({k for holder, k in self.held.values() if holder is job}):
                if job.name in there and there[job.name].holds(index):
                    job.absent.pop(index, None)
                    continue
                since = job.absent.setdefault(index, now)
                marks = read_marks(job.seen) if marks is None else marks
                if f"task-{index}" in marks or now - since >= self.cluster.grace:
                    marks = read_marks(job.seen)
                    fates = slurm_queue.fates(job.job) if fates is None else fates
                    sentences.append(self._task_ended(job, index, marks, fates.get(index, ""), progress))
        sentences = [text for text in sentences if text]
        for text in sentences[:SENTENCES]:
            self._print(text)
        if len(sentences) > SENTENCES:
            self._print(f"... and {len(sentences) - SENTENCES} more tasks of which cells are to be submitted again")

    def _task_ended(self, job: Submission, index: int, marks: dict[str, Mark], fate: str, progress: RunProgress) -> str:
        """A task is gone: its cells have ended, or are to be submitted again; then a sentence says so."""
        names = [n for n in job.tasks[index] if self.held.get(n) == (job, index)]
        begun = any(n in marks for n in job.tasks[index])
        log = job.log(index)
        for name in names:
            del self.held[name]
            cell, mark = self.open[name], marks.get(name)
            record = record_of(cell, self.place)
            if record is not None and counts(record, cell, self.place, mark, job, name in self.fresh):
                self._end(cell, record, progress)
                continue
            if mark is not None:
                self.fresh.discard(name)  # what was there is gone; from here on it continues
            lost = self.lost.setdefault(name, Lost())
            if mark is not None and mark.status == ELSEWHERE:
                lost.since = time.monotonic() + AGAIN_SECONDS
            elif mark is not None and mark.status == "begun" and out_of_memory(fate, log):
                had = f"{self.cluster.memory} (`memory`)" if self.cluster.memory else "the cluster's default"
                message = f"SLURM ended job {job.task(index)} for its memory; it had asked for {had}; log: {log}"
                self._end(cell, record_failure(cell, self.place, "oom", message), progress)
            elif mark is not None or not begun:
                lost.tries = 0 if advanced(cell, self.place, mark, job) else lost.tries + 1
                if lost.tries >= self.cluster.tries:
                    message = why(job, index, fate, self.cluster.tries)
                    self._end(cell, record_failure(cell, self.place, "error", message), progress)
        again = sum(n in self.open for n in names)
        if not again:
            return ""
        left = "was stopped" if f"task-{index}" in marks else "ended without a record"
        said = f" ({fate})" if fate else ""
        return f"SLURM job {job.task(index)} {left}{said}: {_of(again, 'cell')} to be submitted again"

    def _end(self, cell: Cell, record: RunRecord, progress: RunProgress) -> None:
        self.open.pop(cell.eval_id, None)
        self.held.pop(cell.eval_id, None)
        self.records.append(record)
        self.failed |= cell.trial is None and record.status in FAILED  # a trial that failed is an answer
        progress.finished(-1, cell.title, record)
        if self.asked.follow is not None:
            new = {c.eval_id: c for c in self.asked.follow(cell, record)}
            self.open |= new
            self._hold(new)

    # The end.

    def _cancel(self, text: str) -> None:
        """Cancel the tasks that hold these cells, and wait until they have written their checkpoints."""
        ids, gone = self._held_ids()
        if not ids:
            return
        self._print(f"{text}: {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}")
        objection = slurm_queue.cancel(ids)
        if objection:
            self._print(f"scancel: {objection}")
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until and not gone():
            time.sleep(min(1.0, self.cluster.poll))

    def _held_ids(self) -> tuple[list[str], Callable[[], bool]]:
        """Ids of the jobs and tasks that work for these cells alone, and whether they are gone by now."""
        there = slurm_queue.waiting(list(self.jobs))
        ids: list[str] = []
        mine: dict[str, set[int]] = {}
        for name, job in self.jobs.items():
            if there is not None and name in there:
                job.job = there[name].job
            tasks = {k for holder, k in self.held.values() if holder is job}
            tasks = set(range(len(job.tasks))) if job.kind == CASES else tasks
            if not job.job or not tasks or (there is not None and name not in there):
                continue
            mine[name] = tasks
            ids += [job.job] if len(tasks) == len(job.tasks) else [job.task(k) for k in sorted(tasks)]

        def gone() -> bool:
            left = slurm_queue.waiting(list(mine))
            return left is not None and not any(left[n].holds(k) for n in left for k in mine[n])

        return ids, gone

    def _tell_detached(self) -> None:
        which = ", ".join(sorted({j.job for j in self.jobs.values()}))
        rest = len(self.open) - len(self.held)
        self._print(
            f"left to SLURM: {_of(len(self.held), 'cell')} in job {which}; the same command attaches to them"
            + (f" and submits the other {rest}" if rest else "")
        )

    def _tell_queue(self, there: dict[str, slurm_queue.Waiting]) -> None:
        running = sum(one.running for one in there.values())
        reasons: dict[str, int] = {}
        for one in there.values():
            for reason, count in one.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        text = f"SLURM: {_of(running, 'task')} running"
        if reasons:
            named = ", ".join(sorted(reasons, key=lambda r: -reasons[r]))
            text += f", {sum(reasons.values())} waiting in queue: {named}"
        self._tell(text)

    def _tell(self, text: str) -> None:
        """A line about the queue, if it says something new."""
        if text != self._said and time.monotonic() - self._line >= min(LINE_SECONDS, 3 * self.cluster.poll):
            self._said, self._line = text, time.monotonic()
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
