"""The driver: plan, feed the workers, compact; every row ends as one row or stays pending."""

from __future__ import annotations

import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.identity import params_fingerprint
from manifests.ledger import Ledger
from manifests.plan import Plan
from manifests.schemas import extra_schema
from pipeline.copies import copy_rows
from pipeline.errors import BreakerTrippedError, DiskFullError
from pipeline.inputs import load_input
from pipeline.outcomes import Outcome, WorkItem
from pipeline.plan import RunChoice, job_record, make_plan, work_items
from pipeline.pools import Completion, InlinePool, Pool
from pipeline.spec import JobSpec
from pipeline.stages import CommitRows

_WAIT_SECONDS = 0.5
_COMPACT_EVERY_SECONDS = 5.0
_MIN_FREE_BYTES = 64 * 2**20
# A delivered photo is about its source's size, once as a file and once in Parquet.
_OUTPUT_PER_INPUT_BYTE = 2.5
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
        exit_code: 0, or as DESIGN says: 3 rows failed, 4 breaker, 7 disk full, 130/143 signals.
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
    """The first SIGINT or SIGTERM asks the run to end; the second one ends it."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal, self.at = signal.Signals(number), time.monotonic()


@contextmanager
def _signals(stop: _StopRequest) -> Iterator[None]:
    previous = {number: signal.signal(number, stop) for number in SIGNAL_EXIT}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_job(
    spec: JobSpec, choice: RunChoice | None = None, observer: Observer | None = None
) -> RunSummary:
    """Run a job until every selected row is done, and return what happened.

    Raises: OutputLockedError, JobConflictError, ManifestError before anything is computed;
        UnusableEnvironmentError if no worker can start. Rows never raise: they fail.
    """
    choice, observer = choice or RunChoice(), observer or Silent()
    folder = OutputFolder(spec.out)
    with folder.lock(if_running=choice.if_running):  # type: ignore[arg-type]
        return _Run(spec, choice, observer, folder).run()


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
        self._compacted_at = time.monotonic()
        self._disk_full: str | None = None

    def run(self) -> RunSummary:
        started = time.monotonic()
        plan = self._open()
        with _signals(self.stop), self.folder.ledger(self.run_id) as ledger:
            commit = CommitRows(self.spec, self.fingerprint)
            self._fail_invalid(plan, commit)
            self.summary.copied += copy_rows(self.folder, plan.copies_first(), self.spec)
            # Published before anything is computed: a source that a copy has read may be redone.
            self.folder.compact(force=True)
            try:
                self._compute(plan, ledger, commit)
                self.summary.copied += copy_rows(self.folder, plan.copies_after(), self.spec)
            except (BreakerTrippedError, DiskFullError) as reason:
                self.summary.exit_code, self.summary.stopped_by = reason.exit_code, str(reason)
            finally:
                self._settle(plan)
        self.summary.seconds = time.monotonic() - started
        return self.summary

    def _open(self) -> Plan:
        spec, folder = self.spec, self.folder
        inputs = load_input(spec.photos)
        extras = extra_schema(inputs.schema)
        folder.open_job(job_record(spec), redo=self.choice.redo, extras=extras)
        report = folder.recover()
        if report.intents_redone or report.quarantined:
            self.observer.message(
                f"recovered: {report.intents_redone} unfinished compaction(s) redone, "
                f"{len(report.quarantined)} damaged staged row(s) set aside"
            )
        folder.storage.write("_state/spec.json", spec.to_json().encode())

        def hashing(done: int, total: int) -> None:
            if done == total or done % 10_000 == 0:
                self.observer.message(f"read {done:,} of {total:,} new or changed photos")

        plan = make_plan(spec, self.choice, folder, inputs, progress=hashing)
        folder.write_manifest(plan.table.drop_columns(["source_row_id", "source_pending"]))
        return plan

    def _fail_invalid(self, plan: Plan, commit: CommitRows) -> None:
        invalid = plan.invalid()
        errors = zip(
            invalid["row_error_type"].to_pylist(), invalid["row_error"].to_pylist(), strict=True
        )
        for item, (kind, message) in zip(work_items(invalid), errors, strict=True):
            now = datetime.now(UTC)
            commit.failed(item, kind, message, (now, now))
            self.observer.message(f"failed: {item.row_id}: {message}")

    def _compute(self, plan: Plan, ledger: Ledger, commit: CommitRows) -> None:
        todo = plan.to_compute()
        self.observer.start(todo.num_rows)
        if todo.num_rows == 0:
            return
        self._check_space(todo)
        pool = self._open_pool(todo.num_rows)
        try:
            with _signals(self.stop):  # again: starting Ray sets its own
                self._feed(pool, work_items(todo), ledger, commit)
        finally:
            self._close_pool(pool)

    def _feed(
        self, pool: Pool, items: Iterator[WorkItem], ledger: Ledger, commit: CommitRows
    ) -> None:
        retries: deque[WorkItem] = deque()
        exhausted = False
        while True:
            while pool.has_room() and self._feeding:
                batch = self._next_batch(retries, items)
                if not batch:
                    exhausted = True
                    break
                exhausted = False
                pool.submit(batch)
            if pool.in_flight == 0 and (not self._feeding or (exhausted and not retries)):
                break
            for completion in pool.wait(_WAIT_SECONDS):
                self._collect(completion, retries, ledger, commit)
            if self.stop.signal and time.monotonic() - self.stop.at > self.spec.grace_seconds:
                break
            self._check_breaker(more=pool.in_flight > 0 or bool(retries) or not exhausted)
            self._compact_now_and_then()
        if self._disk_full is not None:
            raise DiskFullError(f"disk full: {self._disk_full}; free some space and run again.")

    @property
    def _feeding(self) -> bool:
        return self.stop.signal is None and self._disk_full is None

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
            if outcome.status == "disk_full":
                self._disk_full = outcome.error_message
            elif outcome.status != "uncommitted":
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
            # A batch's death may be any of its rows' fault: each gets its attempts alone.
            alone = len(completion.items) == 1
            if item.attempt < self.spec.max_attempts or not alone:
                retries.append(replace(item, attempt=item.attempt + alone))
            else:
                message = f"gave up after {item.attempt} workers died on it: {lost.error_message}"
                commit.failed(item, "WorkerDied", message, (now, now))
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
        needed = (pc.sum(todo["size_bytes"]).as_py() or 0) * _OUTPUT_PER_INPUT_BYTE
        needed += _MIN_FREE_BYTES
        have = free()
        if have < needed:
            raise DiskFullError(
                f"{self.spec.out} has {have / 2**20:,.0f} MiB free and this run may need "
                f"{needed / 2**20:,.0f} MiB; free some, or take fewer photos with --limit."
            )

    def _open_pool(self, num_rows: int) -> Pool:
        if self.spec.runner == "inline":
            self.observer.message("loading the model in this process")
            return InlinePool(self.spec, self.fingerprint)
        from pipeline import cluster

        batches = -(-num_rows // self.spec.batch_size)
        workers = min(batches, self.spec.num_workers or cluster.default_workers(self.spec.device))
        self.observer.message(
            f"starting {workers} worker{'s' if workers > 1 else ''} on a private Ray "
            f"({self.spec.device}), model {self.spec.model}"
        )
        cluster.start_local(workers)
        return cluster.RayPool(self.spec, self.fingerprint, workers)

    def _close_pool(self, pool: Pool) -> None:
        pool.close()
        if self.spec.runner != "inline":
            from pipeline import cluster

            cluster.stop()

    def _compact_now_and_then(self) -> None:
        if time.monotonic() - self._compacted_at > _COMPACT_EVERY_SECONDS:
            self.folder.compact()
            self._compacted_at = time.monotonic()

    def _settle(self, plan: Plan) -> None:
        """Publish what is staged and count how the collection stands."""
        self.folder.compact(force=True)
        table = self._standing(plan)
        self.summary.counts = table
        if self.stop.signal is not None:
            self.summary.exit_code = SIGNAL_EXIT[self.stop.signal]
            self.summary.stopped_by = f"stopped by {self.stop.signal.name}"
        elif self.summary.exit_code == 0 and table["failed"]:
            self.summary.exit_code = 3
        if table["pending"] == 0:
            self.folder.checkpoints.prune(())
            self.folder.close_redo()

    def _standing(self, plan: Plan) -> dict[str, int]:
        """Return the manifest's rows by state; a row whose photo has changed since is pending."""
        done, table = self.folder.done(), plan.table
        at = pc.index_in(table["row_id"], value_set=done["row_id"])
        current = pc.fill_null(pc.equal(done["input_key"].take(at), table["input_key"]), False)
        standing = done["status"].take(at.filter(current))
        counted: dict[str, Any] = {
            entry["values"]: entry["counts"] for entry in pc.value_counts(standing).to_pylist()
        }
        counts = {s: counted.get(s, 0) for s in ("ok", "rejected", "skipped", "failed")}
        counts["pending"] = table.num_rows - len(standing)
        return counts
