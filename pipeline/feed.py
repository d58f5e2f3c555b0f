"""Feeding workers: batches out, outcomes in, rows of dead workers tried again or given up."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, islice

from manifests.ledger import Ledger
from pipeline.errors import (
    BreakerTrippedError,
    DiskFullError,
    OutputUnwritableError,
    PipelineError,
)
from pipeline.observers import Broadcast
from pipeline.outcomes import AGAIN, POISON, Outcome, WorkItem
from pipeline.plan import RunChoice
from pipeline.pools import Completion, Pool
from pipeline.signals import StopRequest
from pipeline.spec import MAX_AUTO_BATCH, JobSpec
from pipeline.stages import CommitRows

_WAIT_SECONDS = 0.5
_DELIVERED = frozenset({"ok", "rejected", "skipped"})
_BATCHES_AT_ONCE = 4
"""Batches' worth of photos that a worker is given: as one is done, the next takes its place."""


class Feeder:
    """Keeps a pool busy until the items end, or a signal, a fault or a bound ends the feeding.

    Attributes:
        statuses: outcomes of this run by status.
        fault: what keeps the output from taking rows; once set, nothing more is fed.
    """

    def __init__(
        self,
        spec: JobSpec,
        choice: RunChoice,
        commit: CommitRows,
        ledger: Ledger,
        observer: Broadcast,
        stop: StopRequest,
    ) -> None:
        self.statuses: Counter[str] = Counter()
        self.fault: PipelineError | None = None
        self._spec, self._choice, self._commit = spec, choice, commit
        self._ledger, self._observer, self._stop = ledger, observer, stop
        self._retries: deque[WorkItem] = deque()
        self._worker_seconds = 0.0
        self._submitted_at: dict[str, float] = {}
        self._returned: deque[WorkItem] = deque()
        self._left = 0

    @property
    def going_on(self) -> bool:
        """Whether new work may begin."""
        return self._stop.signal is None and self.fault is None and not self.bound_reached

    @property
    def bound_reached(self) -> bool:
        """Whether the workers have spent --max-gpu-hours."""
        hours = self._choice.max_gpu_hours
        return hours is not None and self._worker_seconds >= 3600 * hours

    @property
    def computed(self) -> int:
        """Rows finished in this run, whatever became of them."""
        return sum(self.statuses.values())

    def feed(
        self,
        pool: Pool,
        items: Iterator[WorkItem],
        now_and_then: Callable[[], None],
        total: int = 0,
    ) -> None:
        """Process the items; `now_and_then` is called between waits.

        Args:
            total: how many items there are, if it is known; the workers get equal shares.
        Raises: BreakerTrippedError, DiskFullError, OutputUnwritableError.
        """
        exhausted, self._left = False, total
        while True:
            exhausted = self._refill(pool, items) or exhausted
            self._observer.load(pool.in_flight)
            nothing_left = exhausted and not self._retries and not self._returned
            if pool.in_flight == 0 and (nothing_left or not self.going_on):
                break
            completions = pool.wait(_WAIT_SECONDS)
            if self._choice.max_gpu_hours is None and all(map(_went_well, completions)):
                # Nothing in them bears on what comes next: no worker waits for the bookkeeping.
                exhausted = self._refill(pool, items) or exhausted
            for completion in completions:
                self._collect(completion)
            if self._stop.overdue(self._spec.grace_seconds):
                break
            self._check_breaker(more=pool.in_flight > 0 or bool(self._retries) or not exhausted)
            now_and_then()
        if self.fault is not None:
            raise self.fault

    def _refill(self, pool: Pool, items: Iterator[WorkItem]) -> bool:
        """Give the workers with room their next batches; return whether the items have ended."""
        while pool.has_room() and self.going_on:
            batch = self._next_batch(pool, items)
            if not batch:
                return not self._retries
            pool.submit(batch)
            self._submitted_at[batch[0].work_key] = time.monotonic()
        return False

    def _batch_size(self, pool: Pool) -> int:
        """Return how many rows to give a worker: more than one batch, where it can refill one."""
        size = self._spec.batch_size
        if size == 0:  # the workers find out how many they hold
            size = max(1, min(MAX_AUTO_BATCH, -(-self._left // max(pool.num_workers, 1))))
        if size == 1 or self._spec.task != "enhance":
            return size
        # Half of a fair share of what is left, so that the workers end together.
        share = self._left // (2 * max(pool.num_workers, 1))
        return max(size, min(_BATCHES_AT_ONCE * size, share))

    def _next_batch(self, pool: Pool, items: Iterator[WorkItem]) -> tuple[WorkItem, ...]:
        if self._retries and (not self._retries[0].fresh or pool.has_fresh_room()):
            # Alone: a row that killed a worker may be poison, and would take others with it.
            return (self._retries.popleft(),)
        size = self._batch_size(pool)
        batch = list(islice(chain(self._drained(), items), size))
        self._left -= len(batch)
        return tuple(batch)

    def _drained(self) -> Iterator[WorkItem]:
        """Yield what workers gave back without beginning it, each once."""
        while self._returned:
            yield self._returned.popleft()

    def _collect(self, completion: Completion) -> None:
        by_key = {item.work_key: item for item in completion.items}
        for outcome in completion.outcomes:
            seconds = outcome.edit_seconds / outcome.together
            self._worker_seconds += seconds
            self._note(by_key[outcome.work_key], outcome, seconds)
            if outcome.status == "disk_full":
                self.fault = DiskFullError(str(outcome.error_message))
            elif outcome.status == "unwritable":
                self.fault = OutputUnwritableError(str(outcome.error_message))
            elif outcome.status == AGAIN:
                item = by_key[outcome.work_key]
                self._retries.append(replace(item, attempt=item.attempt + 1, fresh=True))
            else:
                self._count(outcome.row_id, outcome.status, outcome.error_message)
        if completion.worker_died is None:
            told = {outcome.work_key for outcome in completion.outcomes}
            self._returned += [item for item in completion.items if item.work_key not in told]
        begun = self._submitted_at.pop(completion.items[0].work_key, None) if by_key else None
        if completion.worker_died is None:
            return
        self._observer.event("worker_died", reason=completion.worker_died, rows=len(by_key))
        # What a dead worker spent is paid for too.
        spent = 0.0 if begun is None else (time.monotonic() - begun) / len(by_key)
        for item in completion.items:
            self._worker_seconds += spent
            now = datetime.now(UTC)
            lost = Outcome(
                item.row_id, item.work_key, "worker_died", "WorkerDied", completion.worker_died,
                started_at=now, finished_at=now, node=completion.node,
            )  # fmt: skip
            self._note(item, lost, spent)
            if self._stop.signal is None:
                self._requeue(item, completion)

    def _requeue(self, item: WorkItem, completion: Completion) -> None:
        """Let a row whose worker died try again, or give it up.

        While the run is being stopped nobody is charged: the signal may have reached the workers.
        """
        # A batch's death may be any of its rows' fault: each gets its attempts alone.
        alone = len(completion.items) == 1
        if not completion.charged:
            # Alone again what was alone: it may be poison all the same.
            (self._retries if alone else self._returned).append(item)
            return
        own_fault = completion.error_type is not None and alone
        if not own_fault and (item.attempt < self._spec.max_attempts or not alone):
            self._retries.append(replace(item, attempt=item.attempt + alone))
            return
        kind, message = completion.error_type, str(completion.worker_died)
        if kind is None:
            kind, message = POISON, f"gave up after {item.attempt} workers died on it: {message}"
        now = datetime.now(UTC)
        self._commit.failed(item, kind, message, (now, now))
        self._count(item.row_id, "failed", message)
        self._observer.event(
            "row", row_id=item.row_id, status="failed", attempt=item.attempt,
            error_type=kind, error=message,
        )  # fmt: skip

    def _count(self, row_id: str, status: str, detail: str | None) -> None:
        self.statuses[status] += 1
        self._observer.row(row_id, status, detail)

    def _note(self, item: WorkItem, outcome: Outcome, worker_seconds: float) -> None:
        self._ledger.append(
            row_id=item.row_id,
            work_key=item.work_key,
            attempt=item.attempt,
            state=outcome.status,
            error_type=outcome.error_type,
            error_tail=outcome.error_message,
            node=outcome.node,
            device=outcome.device,
            started_at=outcome.started_at,
            finished_at=outcome.finished_at,
            worker_seconds=worker_seconds,
            peak_memory_bytes=outcome.peak_memory_bytes or None,
        )
        if outcome.status == "worker_died":
            return
        self._observer.event(
            "row", row_id=item.row_id, status=outcome.status, attempt=item.attempt,
            seconds=round(outcome.edit_seconds, 3), worker_seconds=round(worker_seconds, 3),
            node=outcome.node, error_type=outcome.error_type, error=outcome.error_message,
        )  # fmt: skip

    def _check_breaker(self, *, more: bool) -> None:
        failed = self.statuses["failed"]
        if self._spec.breaker and more and self.computed == failed >= self._spec.breaker:
            raise BreakerTrippedError(
                f"the first {failed} photos all failed, so the run stops; see the report, "
                "and raise --breaker to go on regardless."
            )


def _went_well(completion: Completion) -> bool:
    """Return whether a worker did all it was given and nothing of it failed."""
    done = [outcome.status for outcome in completion.outcomes]
    return (
        completion.worker_died is None
        and len(done) == len(completion.items)
        and all(status in _DELIVERED for status in done)
    )
