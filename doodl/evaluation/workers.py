"""Worker processes of one thread each, or this process in their place."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from doodl.errors import DoodlError

_T = TypeVar("_T")
Submit = Callable[..., "Future[Any]"]


class WorkerDiedError(DoodlError):
    """A worker process ended without a word: killed, or out of memory."""


@contextmanager
def workers_of(count: int) -> Iterator[Submit]:
    """Give a `submit`: to processes of one thread each, or for one worker to this process."""
    if count <= 1:
        torch.set_num_threads(1)
        yield _run_here
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker)
    try:
        yield pool.submit
    finally:
        # Rows in work are given up after a Ctrl-C or an error; those finished are kept.
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    # A Ctrl-C reaches the workers too: they shall end, and leave the telling to the parent.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Deferred(Future[Any]):
    """A future computed in this process when its result is asked for."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self._work = (function, arguments)

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            function, arguments = self._work
            self.set_result(function(*arguments))
        return super().result(timeout)


def _run_here(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    return _Deferred(function, arguments)


def completed(futures: Sequence[Future[_T]] | dict[Future[_T], Any]) -> Iterator[Future[_T]]:
    """Yield futures as they finish; those of this process in their order."""
    waiting = list(futures)
    while waiting:
        if isinstance(waiting[0], _Deferred):
            future = waiting.pop(0)
            future.result()
            yield future
            continue
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            waiting.remove(future)
            yield future


def finished(futures: Sequence[Future[_T]]) -> Iterator[_T]:
    """Yield results as they come. Raises: WorkerDiedError."""
    for future in completed(futures):
        yield result_of(future)


def result_of(future: Future[_T]) -> _T:
    """Return what the future holds. Raises: WorkerDiedError."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise WorkerDiedError(
            "a worker process died, perhaps for lack of memory; the same command goes on from the "
            "finished rows: try fewer --workers or a smaller --batch-size."
        ) from error
