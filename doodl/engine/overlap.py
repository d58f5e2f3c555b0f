"""Work in a thread beside the caller's: what is read ahead, what is delivered behind.

Order is kept, and each piece is computed by one thread alone, as it would have been without: no
number changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

_T = TypeVar("_T")
_R = TypeVar("_R")


class Behind(Generic[_R]):
    """One thread that does what it is given, in order, while the caller goes on.

    At the end of its `with` it drops what has not begun and waits for what has.

    Args:
        thread: False does each piece in the caller's thread, at once.
    """

    def __init__(self, *, thread: bool = True) -> None:
        self._thread = _Thread("doodl-behind") if thread else None
        self._given: deque[tuple[Any, Future[_R]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.end()

    def begin(self, key: Any, work: Callable[..., _R], *arguments: Any) -> None:
        """Take work(*arguments) on; `ended` gives it back with its key."""
        begin = _done_here if self._thread is None else self._thread.begin
        self._given.append((key, begin(work, *arguments)))

    def ended(self, left: int | None = None) -> Iterator[tuple[Any, Future[_R]]]:
        """Yield (key, future) of what has ended, in order, each once.

        Args:
            left: wait until no more than so many are left; None does not wait.
        """
        while self._given:
            waits = left is not None and len(self._given) > left
            if not (waits or self._given[0][1].done()):
                return
            key, future = self._given.popleft()
            future.exception()  # waits for its end
            yield key, future


def read_ahead(
    read: Callable[[_T], _R], items: Iterable[_T], *, ahead: int = 1
) -> Generator[tuple[_T, Callable[[], _R]], None, None]:
    """Yield (item, get) of each item in order, while the next `ahead` are being read.

    get() returns read(item), or raises what it raised. The thread ends with the iterator: close
    one that is not used up.

    Args:
        items: asked for in the caller's thread.
        ahead: 0 reads each item when its get is called, in the caller's thread.
    """
    if not ahead:
        for item in items:
            yield item, partial(read, item)
        return
    reading: deque[tuple[_T, Future[_R]]] = deque()
    thread = _Thread("doodl-ahead")
    try:
        for item in items:
            reading.append((item, thread.begin(read, item)))
            if len(reading) > ahead:
                item, future = reading.popleft()
                yield item, future.result
        while reading:
            item, future = reading.popleft()
            yield item, future.result
    finally:
        thread.end()


class _Thread:
    """A thread that begins with its first piece of work, on the caller's accelerator."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, work: Callable[..., _R], *arguments: Any) -> Future[_R]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, self._name, _same_device())
        return self._pool.submit(work, *arguments)

    def end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _same_device() -> Callable[[], None]:
    """Return what gives a new thread the caller's accelerator: torch has one for each thread."""
    if not torch.cuda.is_initialized():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def _done_here(work: Callable[..., _R], *arguments: Any) -> Future[_R]:
    future: Future[_R] = Future()
    try:
        future.set_result(work(*arguments))
    except Exception as error:  # as a thread keeps it: who asks for the result meets it
        future.set_exception(error)
    return future
