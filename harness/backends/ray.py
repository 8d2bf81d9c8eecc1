"""`bench run --on ray`: cells in processes of a Ray cluster. What runs on the nodes is `harness.backends.ray_slot`.

Each process is an actor that takes one cell at a time, so that at most one task per process is under way, however many
cells wait. Ray starts processes where there is room and says when one is gone (`harness.backends.ray_team`); the rest
is decided here (`harness.backends.ray_dispatch`). Ray's own retries are off: it repeats without end what ran out of
memory, and would not know that a record is there already.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from harness.backends import Asked
from harness.backends.ray_cluster import connected, device_and_gpus, need_of, read_ray_cluster, room
from harness.backends.ray_dispatch import Dispatch
from harness.backends.ray_team import Team, short
from harness.cell import Cell, Place
from harness.errors import BenchError
from harness.estimates import Estimates
from harness.order import Queue
from harness.plan import Entry
from harness.preparing import Case, Shared, check_data, faulty, jobs_of, key_of
from harness.progress import RunProgress
from harness.records import RunRecord
from harness.runner import FAILED
from harness.seeds import TUNING_SEED


def run_cells(entries: Sequence[Entry], place: Place, asked: Asked, console: Console) -> list[RunRecord]:
    """Run cells on a Ray cluster, or on one that is started on this machine and ended afterwards.

    Args:
        entries: Cells to run; long ones start first.
        place: Results folder and data root, which all nodes see under the same path; the device asked for.
        asked: What the user asks for.
        console: For progress.

    Returns:
        The records of all cells that were started.

    Raises:
        BenchError: There is no such cluster, or no node can run a cell.
        KeyboardInterrupt: After Ctrl-C, when all checkpoints are written; after a second one at once.
    """
    cluster = read_ray_cluster(asked.cluster)
    if asked.detach:
        raise BenchError("--detach: is for --on slurm; with Ray the command runs as long as its cells do.")
    cells = [e.cell for e in entries]
    later: Sequence[Cell] = getattr(asked.follow, "later", ())
    total = len(cells) + int(getattr(asked.follow, "total", 0))
    check_data([*cells, *later], place.root)
    records: list[RunRecord] = []
    with connected(cluster, asked.workers), tempfile.NamedTemporaryFile(prefix=".seen-", dir=place.out) as marker:
        device, gpus = device_and_gpus(place.device, cluster, ray.cluster_resources().get("GPU", 0.0))
        need = need_of(cluster, gpus)
        beside = min(room(ray.nodes(), need), asked.workers or total)
        place = replace(place, device=device, beside=beside, sharing="`gpus:` in the file of --cluster")
        team = Team(place, need, asked.workers, Path(marker.name), console)
        estimates = Estimates(asked.known, gpu=device != "cpu")
        work = estimates.work([*cells, *later], total)
        progress = RunProgress(
            total, console, min(team.limit(), total), work=work, seconds=estimates.known > 0, out=place.out
        )
        clean = False
        try:
            faults = _prepare_all([*cells, *later], team, total, cluster.tries)
            progress.prepared()
            fresh = {e.cell.eval_id for e in entries if not e.todo}  # finished ones that were asked for again
            fresh |= getattr(asked.follow, "fresh", frozenset())
            queue = Queue(cells, estimates.weight)
            dispatch = Dispatch(team, cluster, progress, estimates, faults, queue, len(cells), fresh)
            dispatch.more = asked.follow is not None
            with progress:
                for cell, record in dispatch.run():
                    records.append(record)
                    if asked.fail_fast and record.status in FAILED and record.cell["seed"] != TUNING_SEED:
                        break
                    for other in asked.follow(cell, record) if asked.follow is not None else ():
                        dispatch.add(other)
                else:
                    clean = True
        except KeyboardInterrupt:
            console.print("stopping: running cells write their checkpoints (Ctrl-C again ends at once)")
            raise
        finally:
            try:
                if not clean:
                    team.stop(cluster.grace)
            finally:
                team.dismiss()
        for line in progress.summary()[:1]:  # what processes did is not known here: their number changes
            console.print(line, highlight=False, soft_wrap=True)
    return records


def _prepare_all(cells: Sequence[Cell], team: Team, total: int, tries: int) -> dict[Shared, str]:
    """Preprocess every case once, in parallel; returns what is wrong with the data of cells."""
    jobs, wanted = jobs_of(cells)
    faults: dict[Case, str] = {}
    queue = deque(jobs.values())
    deaths: dict[Case, int] = {}
    began = time.monotonic()
    console = team.console
    with console.status(f"preparing {len(jobs)} cases") if console.is_terminal else contextlib.nullcontext():
        while queue or team.busy():
            team.grow(min(total, len(queue) + len(team.busy())))
            for seat in team.idle():
                if queue:
                    seat.work = queue.popleft()
                    seat.ref = seat.actor.prepare.remote(seat.work)
            for _, done, outcome in team.outcomes():
                assert isinstance(done, tuple)
                if not isinstance(outcome, RayError):
                    if outcome is not None:
                        faults[key_of(done)] = outcome
                    continue
                deaths[key_of(done)] = deaths.get(key_of(done), 0) + 1
                if isinstance(outcome, RayTaskError) or deaths[key_of(done)] >= tries:
                    faults[key_of(done)] = f"case {done[1]}: the process that prepared it died ({short(outcome)})"
                else:
                    queue.append(done)
    if time.monotonic() - began > 5:
        console.print(f"prepared {len(jobs)} cases in {time.monotonic() - began:.0f} s", highlight=False)
    return faulty(wanted, faults)
