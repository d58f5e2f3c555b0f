"""A time limit for what has none of its own: a name's look-up, a server's answer, a client."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(TimeoutError):
    """What was asked took longer than it may."""


@dataclass(frozen=True)
class Limits:
    """How long one address may take: to let us in, to say nothing, and from beginning to end."""

    connect_seconds: float = 10.0
    silence_seconds: float = 30.0
    total_seconds: float = 300.0


LIMITS = Limits()
"""Those of every address that is not on this machine."""


def within(seconds: float, ask: Callable[[], T], give_up: Callable[[], object] | None = None) -> T:
    """Return what `ask` returns, or raise what it raises. Raises: DeadlineError if it takes longer.

    It runs in a thread, which is left to itself when its time is up.

    Args:
        give_up: called then, so that the thread ends soon.
    """
    answers: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        if give_up is not None:
            give_up()
        raise DeadlineError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
