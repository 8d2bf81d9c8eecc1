"""The one exception that a user's input can cause, and how it is printed."""

from __future__ import annotations

import errno
import re

_LONGEST = 300  # of a word that is printed whole; a path is one


class BenchError(Exception):
    """A mistake that the user can mend: one sentence with what was found, what was expected and what to do.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def sentence(error: BenchError) -> str:
    """An error as it is printed: on one line, and an endless word that stood in a file shortened."""
    line = " ".join(str(error).splitlines())
    return re.sub(rf"\S{{{_LONGEST},}}", lambda word: f"{word[0][: _LONGEST // 2]}…{word[0][-_LONGEST // 3 :]}", line)


def first_line(error: BaseException, otherwise: str = "no message") -> str:
    """The first line of what an error says, or `otherwise` where it says nothing."""
    return next(iter(str(error).strip().splitlines()), otherwise)


def os_sentence(error: OSError) -> str:
    """What a fault of the file system says, and what to do where that is known."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left for {error.filename or 'a result'}: free some and run the same command again"
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
