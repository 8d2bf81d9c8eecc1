"""The one exception that a user's input can cause."""


class BenchError(Exception):
    """A mistake that the user can mend: one sentence with what was found, what was expected and what to do.

    The command line prints the sentence without a traceback and exits with code 2.
    """
