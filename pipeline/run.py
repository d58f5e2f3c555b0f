"""The driver: plan, feed the workers, compact; every row ends as one row or stays pending."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from types import FrameType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.identity import params_fingerprint
from manifests.ledger import Ledger
from manifests.plan import DEFERRED, Plan
from manifests.reader import INVALID_ROW
from manifests.schemas import DONE_STATUSES, extra_schema
from pipeline.collection import standing
from pipeline.copies import copy_rows
from pipeline.errors import (
    BreakerTrippedError,
    DiskFullError,
    OutputUnwritableError,
    PipelineError,
    UnusableEnvironmentError,
)
from pipeline.inputs import load_input
from pipeline.outcomes import POISON, Outcome, WorkItem
from pipeline.plan import RunChoice, job_record, make_plan, work_items
from pipeline.pools import Completion, InlinePool, Pool
from pipeline.spec import JobSpec, model_revision
from pipeline.stages import CommitRows, writing_output

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5
_COMPACT_EVERY_SECONDS = 5.0
_FLUSH_EVERY_SECONDS = 30.0
_MIN_FREE_BYTES = 64 * 2**20
# A delivered photo is about its source's size, each time it is kept.
_OUTPUT_PER_INPUT_BYTE = 1.25
GPU_HOURS_EXIT = 8
SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Observer(Protocol):
    """Who is told how the run goes."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def start(self, total: int) -> None:
        """The rows that are about to be computed."""

    def row(self, row_id: str, status: str, detail: str | None) -> None:
        """One row is finished."""


class Silent:
    """Nobody is told."""

    def message(self, text: str) -> None: ...

    def start(self, total: int) -> None: ...

    def row(self, row_id: str, status: str, detail: str | None) -> None: ...


@dataclass
class RunSummary:
    """What a run did, and how its collection stands after it.

    Attributes:
        counts: rows of the manifest by status, and `pending`.
        computed, copied: rows done in this run.
        exit_code: 0 no row failed, and none is pending but by --limit, --since or --only-failed;
            3 some are; 4 breaker, 6 output not writable, 7 disk full, 8 bound of GPU hours
            reached, 130/143 signals.
    """

    out: str
    run_id: str
    counts: dict[str, int] = field(default_factory=dict)
    computed: int = 0
    copied: int = 0
    seconds: float = 0.0
    exit_code: int = 0
    stopped_by: str | None = None


class _StopRequest:
    """The first SIGINT or SIGTERM asks the run to end in order; the second one ends it."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            # Now means now: what is on disk is right at every instant.
            os._exit(SIGNAL_EXIT[signal.Signals(number)])
        self.signal, self.at = signal.Signals(number), time.monotonic()

    @contextmanager
    def installed(self) -> Iterator[None]:
        previous = {number: signal.getsignal(number) for number in SIGNAL_EXIT}
        self.install()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def install(self) -> None:
        for number in SIGNAL_EXIT:
            signal.signal(number, self)


def run_job(
    spec: JobSpec, choice: RunChoice | None = None, observer: Observer | None = None
) -> RunSummary:
    """Run a job until every selected row is done, and return what happened.

    Raises: OutputLockedError, JobConflictError, ManifestError before anything is computed;
        UnusableEnvironmentError if no worker can start. Rows never raise: they fail.
    """
    choice, observer = choice or RunChoice(), observer or Silent()
    inputs = load_input(spec.photos)
    folder = OutputFolder(spec.out)
    folder.refuse_foreign()
    with writing_output(), folder.lock(if_running=choice.if_running):  # type: ignore[arg-type]
        return _Run(spec, choice, observer, folder).run(inputs)


class _Run:
    """One run's moving parts; `run` reads in order."""

    def __init__(
        self, spec: JobSpec, choice: RunChoice, observer: Observer, folder: OutputFolder
    ) -> None:
        self.spec, self.choice, self.observer, self.folder = spec, choice, observer, folder
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self.summary = RunSummary(spec.out, self.run_id)
        self.fingerprint = params_fingerprint(spec.params())
        self.stop = _StopRequest()
        self.statuses: Counter[str] = Counter()
        self._fault: PipelineError | None = None
        self._worker_seconds = 0.0
        self._compacted_at = self._flushed_at = self._told_at = time.monotonic()

    def run(self, inputs: pa.Table) -> RunSummary:
        started = time.monotonic()
        with self.stop.installed(), self.folder.ledger(self.run_id) as ledger:
            plan, job = self._open(inputs)
            commit = CommitRows(self.spec, self.fingerprint, job)
            try:
                self._fail_invalid(plan, commit)
                orphaned = self._copy(plan.copies_first(), pending_sources=False)
                # Published before anything is computed: a copy's source may be redone.
                self.folder.compact(force=True)
                self._compute(plan, orphaned, ledger, commit)
                self._copy(plan.copies_after(), pending_sources=True)
            except (BreakerTrippedError, DiskFullError, OutputUnwritableError) as reason:
                self.summary.exit_code, self.summary.stopped_by = reason.exit_code, str(reason)
            finally:
                self._settle(plan)
        self.summary.seconds = time.monotonic() - started
        return self.summary

    def _open(self, inputs: pa.Table) -> tuple[Plan, dict[str, Any]]:
        spec, folder = self.spec, self.folder
        extras = extra_schema(inputs.schema)
        job = folder.open_job(job_record(spec), redo=self.choice.redo, extras=extras)
        report = folder.recover()
        if report.intents_redone or report.quarantined:
            self.observer.message(
                f"recovered: {report.intents_redone} unfinished compaction(s) redone, "
                f"{len(report.quarantined)} damaged staged row(s) set aside"
            )
        folder.storage.write("_state/spec.json", spec.to_json().encode())

        def hashing(done: int, total: int) -> None:
            if self.stop.signal is not None:
                raise SystemExit(SIGNAL_EXIT[self.stop.signal])
            if done == total or time.monotonic() - self._told_at > 10:
                self._told_at = time.monotonic()
                self.observer.message(f"read {done:,} of {total:,} new or changed photos")

        plan = make_plan(spec, self.choice, folder, inputs, progress=hashing)
        folder.write_manifest(plan.table.drop_columns(["source_row_id", "source_pending"]))
        folder.checkpoints.prune(set(plan.to_compute()["work_key"].to_pylist()))
        return plan, job

    def _fail_invalid(self, plan: Plan, commit: CommitRows) -> None:
        """Commit the rows that cannot run; but a photo out of reach tonight keeps its result."""
        invalid = plan.invalid()
        done = self.folder.done()
        finished = done.filter(pc.is_in(done["status"], value_set=pa.array(DONE_STATUSES)))
        out_of_reach = pc.and_(
            pc.not_equal(invalid["row_error_type"], INVALID_ROW),
            pc.is_in(invalid["row_id"], value_set=finished["row_id"].combine_chunks()),
        )
        if kept := pc.sum(out_of_reach).as_py():
            self.observer.message(
                f"{kept:,} photo(s) cannot be read now; their earlier results are kept"
            )
        invalid = invalid.filter(pc.invert(out_of_reach))
        kinds, errors = invalid["row_error_type"].to_pylist(), invalid["row_error"].to_pylist()
        for item, kind, message in zip(work_items(invalid), kinds, errors, strict=True):
            if not self._going_on:
                return
            now = datetime.now(UTC)
            commit.failed(item, kind, message, (now, now))
            self.observer.message(f"failed: {item.row_id}: {message}")
            self._now_and_then(None)

    def _copy(self, copies: pa.Table, *, pending_sources: bool) -> list[WorkItem]:
        made, orphaned = copy_rows(
            self.folder,
            copies,
            self.spec,
            pending_sources=pending_sources,
            go_on=lambda: self._going_on,
        )
        self.summary.copied += made
        return orphaned

    def _compute(
        self, plan: Plan, orphaned: list[WorkItem], ledger: Ledger, commit: CommitRows
    ) -> None:
        todo = plan.to_compute()
        total = todo.num_rows + len(orphaned)
        self.observer.start(total)
        if total == 0 or not self._going_on:
            return
        self._check_space(todo)
        pool = self._open_pool(total, commit)
        try:
            self._feed(pool, chain(orphaned, work_items(todo)), ledger, commit)
        finally:
            pool.close()

    def _feed(
        self, pool: Pool, items: Iterator[WorkItem], ledger: Ledger, commit: CommitRows
    ) -> None:
        retries: deque[WorkItem] = deque()
        exhausted = False
        while True:
            while pool.has_room() and self._going_on:
                batch = self._next_batch(retries, items)
                if not batch:
                    exhausted = True
                    break
                pool.submit(batch)
            if pool.in_flight == 0 and (not self._going_on or (exhausted and not retries)):
                break
            for completion in pool.wait(_WAIT_SECONDS):
                self._collect(completion, retries, ledger, commit)
            if self.stop.signal and time.monotonic() - self.stop.at > self.spec.grace_seconds:
                break
            self._check_breaker(more=pool.in_flight > 0 or bool(retries) or not exhausted)
            self._now_and_then(ledger)
        if self._fault is not None:
            raise self._fault

    @property
    def _going_on(self) -> bool:
        return self.stop.signal is None and self._fault is None and not self._bound_reached

    @property
    def _bound_reached(self) -> bool:
        hours = self.choice.max_gpu_hours
        return hours is not None and self._worker_seconds >= 3600 * hours

    def _next_batch(
        self, retries: deque[WorkItem], items: Iterator[WorkItem]
    ) -> tuple[WorkItem, ...]:
        if retries:
            # Alone: a row that killed a worker may be poison, and would take others with it.
            return (retries.popleft(),)
        batch = []
        for item in items:
            batch.append(item)
            if len(batch) == self.spec.batch_size:
                break
        return tuple(batch)

    def _collect(
        self,
        completion: Completion,
        retries: deque[WorkItem],
        ledger: Ledger,
        commit: CommitRows,
    ) -> None:
        by_key = {item.work_key: item for item in completion.items}
        for outcome in completion.outcomes:
            self._note(ledger, by_key[outcome.work_key], outcome)
            # A batch's rows share their worker's time.
            self._worker_seconds += outcome.edit_seconds / len(completion.items)
            if outcome.status == "disk_full":
                self._fault = DiskFullError(str(outcome.error_message))
            elif outcome.status == "unwritable":
                self._fault = OutputUnwritableError(str(outcome.error_message))
            else:
                self._count(outcome.row_id, outcome.status, outcome.error_message)
        if completion.worker_died is None:
            return
        for item in completion.items:
            now = datetime.now(UTC)
            lost = Outcome(
                item.row_id, item.work_key, "worker_died", "WorkerDied", completion.worker_died,
                started_at=now, finished_at=now,
            )  # fmt: skip
            self._note(ledger, item, lost)
            if self.stop.signal is None:
                self._requeue(item, completion, retries, commit)

    def _requeue(
        self,
        item: WorkItem,
        completion: Completion,
        retries: deque[WorkItem],
        commit: CommitRows,
    ) -> None:
        """Let a row whose worker died try again, or give it up.

        While the run is being stopped nobody is charged: the signal may have reached the workers.
        """
        # A batch's death may be any of its rows' fault: each gets its attempts alone.
        alone = len(completion.items) == 1
        own_fault = completion.error_type is not None and alone
        if not own_fault and (item.attempt < self.spec.max_attempts or not alone):
            retries.append(replace(item, attempt=item.attempt + alone))
            return
        kind, message = completion.error_type, str(completion.worker_died)
        if kind is None:
            kind, message = POISON, f"gave up after {item.attempt} workers died on it: {message}"
        now = datetime.now(UTC)
        commit.failed(item, kind, message, (now, now))
        self._count(item.row_id, "failed", message)

    def _count(self, row_id: str, status: str, detail: str | None) -> None:
        self.statuses[status] += 1
        self.summary.computed += 1
        self.observer.row(row_id, status, detail)

    def _note(self, ledger: Ledger, item: WorkItem, outcome: Outcome) -> None:
        ledger.append(
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
            peak_memory_bytes=outcome.peak_memory_bytes or None,
        )

    def _check_breaker(self, *, more: bool) -> None:
        failed = self.statuses["failed"]
        alone = failed == sum(self.statuses.values())
        if self.spec.breaker and more and alone and failed >= self.spec.breaker:
            raise BreakerTrippedError(
                f"the first {failed} photos all failed, so the run stops; see the report, "
                "and raise --breaker to go on regardless."
            )

    def _check_space(self, todo: pa.Table) -> None:
        free = getattr(self.folder.storage, "free_bytes", None)
        if free is None:
            return
        copies = self.spec.keep_files + self.spec.keep_parquet
        needed = (pc.sum(todo["size_bytes"]).as_py() or 0) * _OUTPUT_PER_INPUT_BYTE * copies
        needed += _MIN_FREE_BYTES
        have = free()
        if have < needed:
            raise DiskFullError(
                f"{self.spec.out} has {have / 2**20:,.0f} MiB free and this run may need "
                f"{needed / 2**20:,.0f} MiB; free some, or take fewer photos with --limit."
            )

    def _open_pool(self, num_rows: int, commit: CommitRows) -> Pool:
        spec = self.spec
        found = model_revision(spec.model)
        if found != spec.model_revision:
            raise UnusableEnvironmentError(
                f"model {spec.model} is {found} here and {spec.model_revision} in the job's spec; "
                "start the job anew with this installation."
            )
        self.observer.message(f"loading model {spec.model} on {spec.device} ({spec.runner})")
        if spec.runner == "inline":
            return InlinePool(spec, self.fingerprint, commit.job)
        from pipeline.cluster import RayPool

        pool = RayPool(spec, self.fingerprint, commit.job, -(-num_rows // spec.batch_size))
        self.stop.install()  # Ray has set a SIGTERM handler of its own
        return pool

    def _now_and_then(self, ledger: Ledger | None) -> None:
        now = time.monotonic()
        if now - self._compacted_at > _COMPACT_EVERY_SECONDS:
            self.folder.compact()
            self._compacted_at = now
        if ledger is not None and now - self._flushed_at > _FLUSH_EVERY_SECONDS:
            ledger.flush()
            self._flushed_at = now

    def _settle(self, plan: Plan) -> None:
        """Publish what is staged and count how the collection stands."""
        try:
            self.folder.compact(force=True)
        except OSError as error:
            # Staged rows are committed all the same; the next run publishes them.
            _log.warning("compaction put off: %s", error)
        counts = self.summary.counts = standing(plan.table, self.folder.done())
        left_undone = counts["pending"] - plan.counts[DEFERRED]
        if self.stop.signal is not None:
            self.summary.exit_code = SIGNAL_EXIT[self.stop.signal]
            self.summary.stopped_by = f"stopped by {self.stop.signal.name}"
        elif self.summary.exit_code == 0 and self._bound_reached and left_undone > 0:
            self.summary.exit_code = GPU_HOURS_EXIT
            self.summary.stopped_by = f"--max-gpu-hours {self.choice.max_gpu_hours:g} is spent"
        elif self.summary.exit_code == 0 and (counts["failed"] or left_undone > 0):
            self.summary.exit_code = 3
        if counts["pending"] == 0:
            self.folder.close_redo()
