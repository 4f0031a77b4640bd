"""Ctrl-C and SIGTERM at a moment that suits the run."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from pvt_kernels.systems.training.distributed import largest_of_processes

# seconds in which a signal that comes again is the same one: a launcher and the scheduler above it
# both send it, and `timeout` sends it to its command and to the group
_SAME = 1.0


class Interruption:
    """What has been asked for since the context began.

    Attributes:
        signal: the number of the first signal that this process received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received = 0.0

    def receive(self, number: int, _frame: object) -> None:
        """Take note of a signal.

        A second Ctrl-C stops the process at once. A second SIGTERM does not: who sends it and
        can't wait goes on to SIGKILL.
        """
        if self.signal is None:
            self.signal, self._received = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received > _SAME:
            raise KeyboardInterrupt

    def agreed(self) -> int | None:
        """The signal that any process of the run received; all of them must ask."""
        return largest_of_processes(self.signal or 0) or None


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Take note of SIGINT and SIGTERM rather than stop; outside the main thread neither comes."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, asked.receive) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
