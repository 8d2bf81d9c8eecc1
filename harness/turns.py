"""Who may train on a device: processes that share one take turns, so that one can evaluate beside it. No torch.

A turn is a lock of the kernel (flock) on a file in a local folder of the run. The kernel releases it when its process
ends in whatever way, kill -9 included, and the file system of the results has no part in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


def unavailable() -> str:
    """Why there can be no turns on this machine; empty where there can."""
    try:
        with tempfile.TemporaryFile() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"the folder for temporary files takes no locks ({error.strerror or error}); TMPDIR names another"
    return ""


@dataclass(frozen=True)
class Turns:
    """The turns of one device.

    Attributes:
        folder: A folder of this run on this machine, which all of its processes are given.
        device: The device.
        count: How many train on it at once.
        tell: Called with True where a process has to wait for its turn, and with False when that is over.
    """

    folder: Path
    device: str
    count: int
    tell: Callable[[bool], None] | None = None

    @contextlib.contextmanager
    def taken(self, stop: Callable[[], bool]) -> Iterator[bool]:
        """Hold a turn inside `with`; False without one, where `stop` said so while there was none."""
        found = self._free()
        if found is None:
            found = self._awaited(stop)
        try:
            yield found is not None
        finally:
            if found is not None:
                fcntl.flock(found, fcntl.LOCK_UN)  # also where a process that the training forked still has the file
                os.close(found)

    def _awaited(self, stop: Callable[[], bool]) -> int | None:
        self._say(True)
        try:
            while not stop():
                if (found := self._free()) is not None:
                    return found
                time.sleep(POLL_SECONDS)
            return None
        finally:
            self._say(False)

    def _free(self) -> int | None:
        """The file of a turn that is free, locked; None where all are taken."""
        self.folder.mkdir(parents=True, exist_ok=True)  # a system that clears old temporary files ends no training
        for number in range(self.count):
            file = os.open(self.folder / f"{self.device}-{number}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            except BaseException:
                os.close(file)
                raise
            return file
        return None

    def _say(self, waits: bool) -> None:
        if self.tell is not None:
            self.tell(waits)
