"""What `python -m pvt_kernels` does while PyTorch, which takes seconds, is being imported.

It acts when it is imported, if the command is what imports it.
"""

import os
import signal
import sys

_NOTE = "importing PyTorch ..."


def _begin() -> None:
    """Tell a terminal that this takes a while, and end in one line on Ctrl-C."""
    if sys.stderr.isatty():
        print(_NOTE, end="\r", file=sys.stderr, flush=True)
    # an ignored SIGINT stays ignored
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def finish() -> None:
    """Undo what the import of this module did."""
    if sys.stderr.isatty():
        print(" " * len(_NOTE), end="\r", file=sys.stderr, flush=True)
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether `python -m pvt_kernels` is importing the package of its main module."""
    # the documented sign of a main module that is being looked for
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return False
    return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["pvt_kernels"]


def _end(number: int, frame: object) -> None:
    # at once, with no traceback: nothing has been begun, and imports may catch exceptions
    os.write(2, b"Interrupted while PyTorch was being imported.\n")
    os._exit(128 + number)


if _is_command():
    _begin()
