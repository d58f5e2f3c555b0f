"""SIGINT and SIGTERM: the first asks the run to end in order, the second ends it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopRequest:
    """What the handlers have seen: `signal` and when, None while nobody asks to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            # Now means now: what is on disk is right at every instant.
            os._exit(SIGNAL_EXIT[signal.Signals(number)])
        self.signal, self._at = signal.Signals(number), time.monotonic()

    def overdue(self, grace_seconds: float) -> bool:
        """Return whether the rows in flight have had their time since the first signal."""
        return self.signal is not None and time.monotonic() - self._at > grace_seconds

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells count it."""
        assert self.signal is not None
        return SIGNAL_EXIT[self.signal]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be the handler of both signals for the body."""
        previous = {number: signal.getsignal(number) for number in SIGNAL_EXIT}
        for number in SIGNAL_EXIT:
            signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
