"""Ctrl-C and SIGTERM at a moment that suits the run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interruption:
    """What has been asked for since the context began.

    Attributes:
        signal: the number of the signal received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def receive(self, number: int, _frame: object) -> None:
        """Take note of a signal; a second one stops the process at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


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
