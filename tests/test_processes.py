"""What processes that work beside others need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.processes import deaf_to_ctrl_c


@pytest.fixture(autouse=True)
def _hears() -> Iterator[None]:
    """A test run in the background of a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_ctrl_c_while_children_start_is_heard_afterwards() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), deaf_to_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with deaf_to_ctrl_c():
        pass


def test_children_are_deaf_to_ctrl_c_from_their_first_moment() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"
    with deaf_to_ctrl_c():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "lives\n", child.stderr
