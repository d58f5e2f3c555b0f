"""Where items are processed: in this process, or (in `pipeline.cluster`) by Ray actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import UnusableEnvironmentError
from pipeline.outcomes import Outcome, WorkItem
from pipeline.spec import JobSpec
from pipeline.stages import RowProcessor


@dataclass(frozen=True)
class Completion:
    """A batch that came back: its outcomes, or the reason why its worker is gone.

    `error_type` names a fault that is surely the rows' own, so that they are not tried again; with
    `charged` False it is surely not theirs, and they are tried again as if they had not been.
    `node` is where a worker died. One that died while it was loading comes back without items.
    """

    items: tuple[WorkItem, ...]
    outcomes: tuple[Outcome, ...] = ()
    worker_died: str | None = None
    error_type: str | None = None
    node: str = ""
    charged: bool = True


class Pool(Protocol):
    """Workers that take batches of items and give completions."""

    def has_room(self) -> bool:
        """Return whether a batch submitted now would start at once (or as soon as models load)."""

    def has_fresh_room(self) -> bool:
        """Return `has_room` of a worker that has done nothing yet; else see to it that there is."""

    def submit(self, items: Sequence[WorkItem]) -> None:
        """Give a batch to a free worker; an item that is `fresh` to one that has done nothing."""

    def wait(self, timeout_seconds: float) -> list[Completion]:
        """Return the batches that came back, after at most the timeout if there are none."""

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet back."""

    @property
    def num_workers(self) -> int:
        """Workers that take batches, those that are still loading too."""

    def close(self) -> None:
        """Let the workers go; what they had in flight is lost and stays pending."""


class InlinePool:
    """One worker, this process; `wait` does the work. For debugging and for the smallest jobs.

    Raises: UnusableEnvironmentError if the models cannot be loaded.
    """

    def __init__(self, spec: JobSpec, fingerprint: str, job: Mapping[str, Any]) -> None:
        self._process = RowProcessor(spec, fingerprint, job)
        try:
            self._process.setup()
        except Exception as error:  # whatever it is, no photo is at fault
            raise UnusableEnvironmentError(
                f"the model cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self._queue: list[tuple[WorkItem, ...]] = []

    def has_room(self) -> bool:
        return not self._queue

    def has_fresh_room(self) -> bool:
        return self.has_room()  # there is no other process; what memory can be freed has been

    def submit(self, items: Sequence[WorkItem]) -> None:
        self._queue.append(tuple(items))

    def wait(self, timeout_seconds: float) -> list[Completion]:  # noqa: ARG002 (works, never waits)
        if not self._queue:
            return []
        items = self._queue.pop(0)
        return [Completion(items, tuple(self._process(items)))]

    @property
    def in_flight(self) -> int:
        return len(self._queue)

    @property
    def num_workers(self) -> int:
        return 1

    def close(self) -> None:
        self._queue.clear()
